"""Images changed at random for training, all of a batch at once, on the device, by torch's seed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEAST_AREA = 0.5
RATIOS = (3 / 4, 4 / 3)


def augment_images(images: Tensor) -> Tensor:
    """Of each image a crop at random, resized to the whole, and every other one mirrored.

    A crop has from half to all of the area, and its ratio of width to height is changed by at most a third.

    :param images: float [B, C, H, W].
    :return: new images of the same shape.
    """
    count, device = len(images), images.device
    chance = torch.rand(5, count, device=device)
    area = LEAST_AREA + (1 - LEAST_AREA) * chance[0]
    low, high = (torch.tensor(ratio, device=device).log() for ratio in RATIOS)
    ratio = (low + (high - low) * chance[1]).exp()
    # as shares of the image, in whose coordinates it reaches from -1 to 1
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = (1 - width) * (2 * chance[2] - 1), (1 - height) * (2 * chance[3] - 1)
    mirror = torch.where(chance[4] < 0.5, -1.0, 1.0)
    transform = torch.zeros(count, 2, 3, device=device)
    transform[:, 0, 0], transform[:, 0, 2] = width * mirror, left
    transform[:, 1, 1], transform[:, 1, 2] = height, top
    grid = nn.functional.affine_grid(transform, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid.to(images.dtype), padding_mode='reflection', align_corners=False)
