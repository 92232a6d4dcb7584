"""ConvNet: Conv-2, Conv-4 and Conv-6 of the paper, small VGG-like networks, as a transformers model."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from hf_lottery.models.common import ImageClassifier, ImageConfig, require_sizes


class ConvNetConfig(ImageConfig):
    """The shape of a ConvNet.

    Args:
        blocks: channels of the 3 × 3 convolutions of each block. A block ends in 2 × 2 max-pooling. [[64, 64]] is
            Conv-2, [[64, 64], [128, 128]] is Conv-4, and with [256, 256] added it is Conv-6.
        hidden_sizes: widths of the hidden linear layers.
        image_size, num_channels, num_labels: see ImageConfig.
    """

    model_type = "conv-net"

    def __init__(self, blocks=((64, 64),), hidden_sizes=(256, 256), **kwargs):
        require_sizes(hidden_sizes=list(hidden_sizes), blocks=[size for block in blocks for size in block])
        self.blocks = [list(block) for block in blocks]
        self.hidden_sizes = list(hidden_sizes)
        super().__init__(**kwargs)
        if self.image_size < 2 ** len(self.blocks):
            raise ValueError(
                f"image_size is {self.image_size}, and each of {len(self.blocks)} blocks halves it: nothing is left; "
                "take fewer blocks or larger images"
            )


class ConvNetForImageClassification(ImageClassifier):
    """Blocks of convolutions, then linear layers, with ReLU between all of them; no batch norm.

    Gaussian Glorot weights, zero biases. Conv-2 has 4,300,992 weights, Conv-4 2,425,024 and Conv-6 2,261,184.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635 v5), Figure 2.
    """

    config_class = ConvNetConfig

    def __init__(self, config: ConvNetConfig):
        super().__init__(config)
        channels = [config.num_channels, *(c for block in config.blocks for c in block)]
        self.conv = nn.ModuleList(nn.Conv2d(n, m, 3, padding=1) for n, m in pairwise(channels))
        side = config.image_size // 2 ** len(config.blocks)
        sizes = [channels[-1] * side**2, *config.hidden_sizes]
        self.hidden = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(sizes))
        self.classifier = nn.Linear(sizes[-1], config.num_labels)
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        x, layers = pixel_values, iter(self.conv)
        for block in self.config.blocks:
            for _ in block:
                x = F.relu(next(layers)(x))
            x = F.max_pool2d(x, 2)
        x = x.flatten(1)
        for layer in self.hidden:
            x = F.relu(layer(x))
        return x
