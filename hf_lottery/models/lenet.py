"""LeNet: the fully-connected networks of the paper, such as LeNet-300-100, as a transformers model."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from hf_lottery.models.common import ImageClassifier, ImageConfig, require_sizes


class LeNetConfig(ImageConfig):
    """The shape of a LeNet.

    Args:
        hidden_sizes: width of each hidden layer; [300, 100] is LeNet-300-100.
        image_size, num_channels, num_labels: see ImageConfig.
    """

    model_type = "lenet"

    def __init__(self, hidden_sizes=(300, 100), image_size=28, num_channels=1, **kwargs):
        require_sizes(hidden_sizes=list(hidden_sizes))
        self.hidden_sizes = list(hidden_sizes)
        super().__init__(image_size, num_channels, **kwargs)


class LeNetForImageClassification(ImageClassifier):
    """Linear layers with ReLU between them: 784–300–100–10 by default, 266,200 weights and 410 biases.

    Gaussian Glorot weights, zero biases.

    Source: LeCun et al. 1998; Frankle & Carbin 2019 (arXiv 1803.03635 v5), Figure 2.
    """

    config_class = LeNetConfig

    def __init__(self, config: LeNetConfig):
        super().__init__(config)
        sizes = [config.num_channels * config.image_size**2, *config.hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        x = pixel_values.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return x
