"""CifarResNet: the residual networks for CIFAR-10, ResNet-20 and deeper, as a transformers model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from hf_lottery.models.common import ImageClassifier, ImageConfig, require_sizes


class CifarResNetConfig(ImageConfig):
    """The shape of a CIFAR ResNet.

    Args:
        depth: 6n + 2 for n residual blocks in each stage: 20, 32, 44, 56, 110.
        hidden_sizes: channels of the three stages.
        image_size, num_channels, num_labels: see ImageConfig.

    Raises:
        ValueError: depth is not 6n + 2, or there are not three stages.
    """

    model_type = "cifar-resnet"

    def __init__(self, depth=20, hidden_sizes=(16, 32, 64), **kwargs):
        require_sizes(depth=depth, hidden_sizes=list(hidden_sizes))
        if len(list(hidden_sizes)) != 3:
            raise ValueError(f"hidden_sizes is {list(hidden_sizes)}; it must be the widths of three stages")
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth is {depth}; it must be 6n + 2, such as 20, 32, 56 or 110")
        self.depth = depth
        self.hidden_sizes = list(hidden_sizes)
        super().__init__(**kwargs)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with batch norm, plus a shortcut: a 1 × 1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class CifarResNetForImageClassification(ImageClassifier):
    """A convolution, three stages of residual blocks of which the second and third halve the image, average pooling.

    Gaussian Glorot weights. ResNet-20 (the "ResNet-18" of the lottery-ticket paper) has 270,896 weights: 267,696 in
    3 × 3 convolutions, 2,560 in the shortcuts' 1 × 1 convolutions and 640 in the classifier.

    Source: He et al. 2015 (arXiv 1512.03385), §4.2, with projection shortcuts (option B); Frankle & Carbin 2019
    (arXiv 1803.03635 v5), Figure 2.
    """

    config_class = CifarResNetConfig

    def __init__(self, config: CifarResNetConfig):
        super().__init__(config)
        channels = config.hidden_sizes[0]
        self.conv = nn.Conv2d(config.num_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential()
        for stage, width in enumerate(config.hidden_sizes):
            for block in range((config.depth - 2) // 6):
                stride = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(ResidualBlock(channels, width, stride))
                channels = width
        self.classifier = nn.Linear(channels, config.num_labels)
        self.post_init()

    def features(self, pixel_values: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(pixel_values))))
        return x.mean(dim=(2, 3))
