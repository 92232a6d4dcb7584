"""VGG for CIFAR-10: VGG-16 and VGG-19 with batch norm and a single linear layer, as a transformers model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hf_lottery.models.common import ImageClassifier, ImageConfig, require_sizes

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VggConfig(ImageConfig):
    """The shape of a VGG.

    Args:
        depth: 11, 13, 16 or 19, as in VGG-16.
        image_size, num_channels, num_labels: see ImageConfig.

    Raises:
        ValueError: there is no VGG of this depth.
    """

    model_type = "vgg"

    def __init__(self, depth=19, **kwargs):
        require_sizes(depth=depth)
        if depth not in DEPTHS:
            raise ValueError(f"depth is {depth}; it must be one of {', '.join(map(str, DEPTHS))}")
        self.depth = depth
        super().__init__(**kwargs)


class VggForImageClassification(ImageClassifier):
    """3 × 3 convolutions with batch norm and ReLU, max-pooling between the five groups, average pooling at the end.

    Gaussian Glorot weights. VGG-19 has 20,024,000 weights, 20,018,880 of them in convolutions.

    Source: Simonyan & Zisserman 2014 as adapted in Frankle & Carbin 2019 (arXiv 1803.03635 v5), Figure 2.
    """

    config_class = VggConfig

    def __init__(self, config: VggConfig):
        super().__init__(config)
        self.groups = nn.ModuleList()
        channels = config.num_channels
        for width, depth in zip(WIDTHS, DEPTHS[config.depth], strict=True):
            group = nn.Sequential()
            for _ in range(depth):
                # batch norm subtracts the mean, so a bias would have no effect
                group.extend([nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()])
                channels = width
            self.groups.append(group)
        self.classifier = nn.Linear(channels, config.num_labels)
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        x = self.groups[0](pixel_values)
        for group in self.groups[1:]:
            x = group(F.max_pool2d(x, 2))
        return x.mean(dim=(2, 3))
