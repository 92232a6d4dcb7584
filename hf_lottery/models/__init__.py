"""The small networks of the papers as transformers models. Importing this registers them with the Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_lottery.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from hf_lottery.models.conv_net import ConvNetConfig, ConvNetForImageClassification
from hf_lottery.models.lenet import LeNetConfig, LeNetForImageClassification
from hf_lottery.models.small_transformer import SmallTransformerConfig, SmallTransformerForSequenceClassification
from hf_lottery.models.vgg import VggConfig, VggForImageClassification

for _auto, _config, _model in [
    (AutoModelForImageClassification, LeNetConfig, LeNetForImageClassification),
    (AutoModelForImageClassification, ConvNetConfig, ConvNetForImageClassification),
    (AutoModelForImageClassification, CifarResNetConfig, CifarResNetForImageClassification),
    (AutoModelForImageClassification, VggConfig, VggForImageClassification),
    (AutoModelForSequenceClassification, SmallTransformerConfig, SmallTransformerForSequenceClassification),
]:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    _auto.register(_config, _model, exist_ok=True)

__all__ = [
    "CifarResNetConfig",
    "CifarResNetForImageClassification",
    "ConvNetConfig",
    "ConvNetForImageClassification",
    "LeNetConfig",
    "LeNetForImageClassification",
    "SmallTransformerConfig",
    "SmallTransformerForSequenceClassification",
    "VggConfig",
    "VggForImageClassification",
]
