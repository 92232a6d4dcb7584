"""VGG for CIFAR-10: VGG-16 and VGG-19 with batch norm and a single linear layer, as a transformers model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_lottery.models.common import ImageConfig, NoEmbeddings, check_images, classify, init_glorot

WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VggConfig(ImageConfig):
    """A VGG's shape.

    Args:
        depth: 11, 13, 16 or 19, as the networks are called.
        image_size, num_channels, num_labels: see ImageConfig.

    Raises:
        ValueError: there is no VGG of that depth.
    """

    model_type = "vgg"

    def __init__(self, depth=19, **kwargs):
        if depth not in DEPTHS:
            raise ValueError(f"depth is {depth}; it must be one of {', '.join(map(str, DEPTHS))}")
        self.depth = depth
        super().__init__(**kwargs)


class VggForImageClassification(NoEmbeddings, PreTrainedModel):
    """3 × 3 convolutions with batch norm and ReLU, max-pooling between the five groups, average pooling at the end.

    Gaussian Glorot weights. VGG-19 has 20,024,000 weights, 20,018,880 of them in convolutions.

    Source: Simonyan & Zisserman 2014 as adapted in Frankle & Carbin 2019 (arXiv 1803.03635 v5), Figure 2.
    """

    config_class = VggConfig
    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # the loss is the batch's mean; gradient accumulation is a plain mean of those

    def __init__(self, config: VggConfig):
        super().__init__(config)
        self.groups = nn.ModuleList()
        channels = config.num_channels
        for width, depth in zip(WIDTHS, DEPTHS[config.depth], strict=True):
            group = nn.Sequential()
            for _ in range(depth):
                # batch norm takes the mean away, so a bias would do nothing
                group.extend([nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()])
                channels = width
            self.groups.append(group)
        self.classifier = nn.Linear(channels, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        init_glorot(module)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **kwargs
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """Classify a batch of images.

        Args:
            pixel_values: float [batch, num_channels, image_size, image_size].
            labels: int64 [batch], the classes; with them the output holds the mean cross entropy as `loss`.

        Raises:
            ValueError: the images have another shape than the config says.
        """
        check_images(pixel_values, self.config)
        x = self.groups[0](pixel_values)
        for group in self.groups[1:]:
            x = group(F.max_pool2d(x, 2))
        return classify(self.classifier(x.mean(dim=(2, 3))), labels, return_dict, ImageClassifierOutput)
