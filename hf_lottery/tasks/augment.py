"""Normalising images, and crop and flip on whole batches, each image with its own draw."""

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

    torchvision's own RandomCrop draws once for a whole batch; here each image has its own draw. The draws follow from
    which images lie in the batch together, and in what order: whoever replays the sampler's order (a resumed, a
    rewound, a distributed run) replays the augmentation, however many batches a loader has fetched ahead.

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
    """A window of `size` (height, width) from each image [n, channels, H, W], its corner at offsets int64 [n, 2]."""
    windows = images.unfold(2, size[0], 1).unfold(3, size[1], 1)  # a view: [n, channels, row, column, height, width]
    return windows[torch.arange(len(images)), :, offsets[:, 0], offsets[:, 1]]
