"""The papers' small networks as transformers models; importing this makes the Auto classes know them."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForImageClassification

from hf_lottery.models.lenet import LeNetConfig, LeNetForImageClassification

for _config, _model in [(LeNetConfig, LeNetForImageClassification)]:
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModelForImageClassification.register(_config, _model, exist_ok=True)

__all__ = ["LeNetConfig", "LeNetForImageClassification"]
