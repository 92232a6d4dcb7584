"""What the networks share: fields of the config, the initialisation of the paper, the image classifier, the loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput, ModelOutput


class ImageConfig(PretrainedConfig):
    """Input and output of an image network.

    Args:
        image_size: height and width of an image, in pixels.
        num_channels: 1 for grey images, 3 for colour images.
        num_labels: number of classes.

    Raises:
        ValueError: a size is not a whole number above 0.
    """

    def __init__(self, image_size=32, num_channels=3, num_labels=10, **kwargs):
        require_sizes(image_size=image_size, num_channels=num_channels, num_labels=num_labels)
        self.image_size = image_size
        self.num_channels = num_channels
        super().__init__(**with_labels(kwargs, num_labels))


class ImageClassifier(PreTrainedModel):
    """Images -> classes: a network defines `features`; `classifier` is the linear layer after them."""

    main_input_name = "pixel_values"
    accepts_loss_kwargs = False  # the loss is the batch's mean; gradient accumulation is a plain mean of those

    def features(self, pixel_values: Tensor) -> Tensor:
        """The input of the classifier: float [batch, features] of images [batch, channels, height, width]."""
        raise NotImplementedError

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **kwargs
    ) -> ImageClassifierOutput | tuple[Tensor, ...]:
        """Classify a batch of images.

        Args:
            pixel_values: float [batch, num_channels, image_size, image_size].
            labels: int64 [batch], the classes; with them the output holds the mean cross entropy as `loss`.

        Raises:
            ValueError: the shape of the images is not that of the config.
        """
        check_images(pixel_values, self.config)
        return classify(self.classifier(self.features(pixel_values)), labels, return_dict, ImageClassifierOutput)

    def get_input_embeddings(self) -> None:
        """None. FSDP2 asks for the embeddings, to shard them separately, and the default method raises an error."""

    def _init_weights(self, module: nn.Module) -> None:
        init_glorot(module)


def require_sizes(**sizes: Any) -> None:
    """Raise ValueError for an argument of a config, by name, that is not a whole number above 0, or a list of them."""
    for name, value in sizes.items():
        for size in value if isinstance(value, (list, tuple)) else [value]:
            if type(size) is not int or size < 1:
                what = "has" if isinstance(value, (list, tuple)) else "is"
                raise ValueError(f"{name} {what} {size!r}; it must be a whole number, 1 or more")


def with_labels(kwargs: dict[str, Any], num_labels: int) -> dict[str, Any]:
    """Add num_labels to a config's `kwargs`, unless they have id2label: that of a saved config must not change."""
    return kwargs if "id2label" in kwargs else {**kwargs, "num_labels": num_labels}


def init_glorot(module: nn.Module) -> None:
    """Initialise one layer as the paper does: Gaussian Glorot weights, std √(2 / (fan_in + fan_out)), and zero biases.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635 v5), Figure 2; Glorot & Bengio 2010.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        init.xavier_normal_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        init.ones_(module.weight)
        init.zeros_(module.bias)
        init.zeros_(module.running_mean)
        init.ones_(module.running_var)
        init.zeros_(module.num_batches_tracked)


def check_images(pixel_values: Tensor, config: ImageConfig) -> None:
    """Raise ValueError unless the images [batch, channels, height, width] have the shape of the config."""
    expected = (config.num_channels, config.image_size, config.image_size)
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
        raise ValueError(
            f"images of shape {tuple(pixel_values.shape[1:])} are given to a {config.model_type} built for {expected} "
            "(channels, height, width): set the config's num_channels and image_size to the images', or resize them"
        )


def classify(
    logits: Tensor, labels: Tensor | None, return_dict: bool | None, output_class: type[ModelOutput]
) -> ModelOutput | tuple[Tensor, ...]:
    """The model's output: logits [batch, classes], and with labels int64 [batch] the mean cross entropy as `loss`."""
    # in float32 under autocast too: the eight bits of bf16 are not precise enough for a log-sum-exp
    loss = None if labels is None else F.cross_entropy(logits.float(), labels)
    output = output_class(loss=loss, logits=logits)
    return output if return_dict is not False else output.to_tuple()
