"""Normalises images, and crops and flips whole batches with a random draw for each image."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def normalise(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    """uint8 images [N, channels, height, width] -> float32, (pixel / 255 − mean) / std per channel."""
    return F.normalize(F.to_dtype(images, torch.float32, scale=True), mean, std, inplace=True)


class Augment:
    """Pad and crop at random, mirror half, normalise: the transform of a TensorDataset of uint8 images.

    torchvision's RandomCrop draws once for a whole batch; here each image has its own draw. The random seed is
    computed from the indices of the batch's images, in order. So the same batches (in a resumed, rewound or
    distributed run) are augmented in the same way, and batches that a loader has prefetched do not matter.

    Args:
        mean, std: per channel, for `normalise`.
        crop_padding: black pixels added on every side before the crop; 0 does not crop.
        horizontal_flip: whether half of the images are mirrored.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635 v5), App. I: random flips, and crops after padding by 4 pixels.
    """

    def __init__(self, mean: list[float], std: list[float], crop_padding: int, horizontal_flip: bool):
        self.mean = mean
        self.std = std
        self.crop_padding = crop_padding
        self.horizontal_flip = horizontal_flip

    def __call__(self, batch: dict[str, Tensor], indices: Tensor) -> dict[str, Tensor]:
        images = batch["pixel_values"]
        draw = torch.Generator().manual_seed(zlib.crc32(indices.numpy().tobytes()))
        if self.crop_padding:
            offsets = torch.randint(0, 2 * self.crop_padding + 1, (len(images), 2), generator=draw)
            images = crop(F.pad(images, [self.crop_padding]), offsets, images.shape[-2:])
        if self.horizontal_flip:
            mirrored = torch.rand(len(images), generator=draw) < 0.5
            images = torch.where(mirrored[:, None, None, None], F.horizontal_flip(images), images)
        return {**batch, "pixel_values": normalise(images, self.mean, self.std)}


def crop(images: Tensor, offsets: Tensor, size: tuple[int, int]) -> Tensor:
    """From each image [n, channels, H, W] the window of `size` (height, width) with its corner at offsets [n, 2]."""
    windows = images.unfold(2, size[0], 1).unfold(3, size[1], 1)  # a view: [n, channels, row, column, height, width]
    return windows[torch.arange(len(images)), :, offsets[:, 0], offsets[:, 1]]
