"""What the image networks share: the paper's initialisation, and a check of the images' shape."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers import initialization as init


def init_glorot(module: nn.Module) -> None:
    """Initialise one layer as the paper does: Gaussian Glorot weights, std √(2 / (fan_in + fan_out)), and zero biases.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635 v5), Figure 2; Glorot & Bengio 2010.
    """
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        init.xavier_normal_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        init.ones_(module.weight)
        init.zeros_(module.bias)
        init.zeros_(module.running_mean)
        init.ones_(module.running_var)
        init.zeros_(module.num_batches_tracked)


def check_images(pixel_values: Tensor, config: PretrainedConfig) -> None:
    """Raise ValueError unless the images [batch, channels, height, width] have the shape that `config` says."""
    expected = (config.num_channels, config.image_size, config.image_size)
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
        raise ValueError(
            f"images of shape {tuple(pixel_values.shape[1:])} came to a {config.model_type} built for {expected} "
            "(channels, height, width): set the config's num_channels and image_size to the images', or resize them"
        )
