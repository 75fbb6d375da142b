"""PointNet++ on clouds of points: Qi et al., 2017, with grouping at a single scale.

Two things differ from the paper. The farthest points that stand for the others are found once, when a cloud is made
(see :class:`finetuner.inference.meshes.MeshPreprocessor`), and not in every forward. And channels are normalized point
by point (LayerNorm), so that an embedding depends on nothing else in its batch: the same in training as in use, in one
batch or in parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetuner.inference.description import DESCRIPTION, read_description, write_description
from finetuner.inference.encoder import Encoder
from finetuner.inference.head import describe_head, load_head, save_head
from finetuner.inference.layers import Dense
from finetuner.inference.layout import find_weights
from finetuner.inference.meshes import POINT_CLOUD_SIZE, MeshPreprocessor
from finetuner.inference.preprocessing import Modality

AXES = ('x', 'y', 'z')
_GRID = 1024  # steps of the unit in which distances are measured
_JITTER = 0.01, 0.05  # standard deviation and limit


class PointEncoder(Encoder):
    """Weights at random, by torch's seed: no pretrained ones are public in a safe format.

    :param point_cloud_size: how many points a cloud has.
    :param width: the number of channels, relative to the paper's; embeddings have 512 times as many dimensions.
    :param augment: in training, turn every cloud at random around `up_axis`, and move its points a little.
    :param up_axis: `x`, `y` or `z`.
    :raises ValueError: an option has a value that makes no sense; the message names it.
    """

    modality: ClassVar[Modality] = 'mesh'

    def __init__(
        self,
        point_cloud_size: int = POINT_CLOUD_SIZE,
        width: float = 1.0,
        augment: bool = False,
        up_axis: str = 'y',
        normalize: bool = False,
        head: list[Dense] | None = None,
    ):
        super().__init__(head, normalize)
        self._preprocessor = MeshPreprocessor(point_cloud_size)
        if not isinstance(width, (int, float)) or not 1 / 64 <= width <= 16:
            raise ValueError(f'width is {width!r}: it must be a number from 1/64 to 16')
        if up_axis not in AXES:
            raise ValueError(f'unknown up_axis {up_axis!r}: it is one of {", ".join(AXES)}')
        self.width = width
        self.augment = augment
        self.up_axis = up_axis
        one, two, three, last = ([round(width * size) for size in sizes] for sizes in _WIDTHS)
        self.levels = nn.ModuleList(
            [
                SetAbstraction(3, one, point_cloud_size // 4, radius=0.2, neighbours=32),
                SetAbstraction(3 + one[-1], two, point_cloud_size // 16, radius=0.4, neighbours=64),
                GlobalAbstraction(3 + two[-1], three),
                nn.Linear(three[-1], last[0]),
            ]
        )

    @classmethod
    def load(cls, directory: str | Path) -> PointEncoder:
        """Read a directory that `save` wrote.

        :raises ValueError: it is not one.
        """
        directory = Path(directory)
        content = read_description(directory)
        try:
            encoder = cls(
                content['preprocess']['point_cloud_size'],
                content['width'],
                content['augment'],
                content['up_axis'],
                content['normalize'],
                load_head(content['head'], directory),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f'{directory / DESCRIPTION} is incomplete: {error}') from error
        encoder.levels.load_state_dict(load_file(find_weights(directory)))
        return encoder.eval()

    @property
    def preprocessor(self) -> MeshPreprocessor:
        return self._preprocessor

    @property
    def input_names(self) -> list[str]:
        return ['points']

    @property
    def backbone_dim(self) -> int:
        last = self.levels[-1]
        assert isinstance(last, nn.Linear)
        return last.out_features

    def pooled(self, points: Tensor) -> Tensor:  # type: ignore[override]
        """:param points: float32 [B, point_cloud_size, 3], as the preprocessor orders them."""
        if self.training and self.augment:
            points = turn(points, AXES.index(self.up_axis))
        for level in self.levels:
            points = level(points)
        return points

    def layer_groups(self) -> list[nn.Module]:
        return list(self.levels)

    def save(self, directory: str | Path) -> Path:
        """Write `encoder.json` and `model.safetensors`."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        state = {name: weight.detach().cpu().contiguous() for name, weight in self.levels.state_dict().items()}
        save_file(state, directory / 'model.safetensors')
        save_head(self.head, directory)
        write_description(
            directory,
            library='pointnet',
            modality='mesh',
            dim=self.dim,
            normalize=self.normalize,
            preprocess={'point_cloud_size': self.preprocessor.point_cloud_size},
            width=self.width,
            augment=self.augment,
            up_axis=self.up_axis,
            head=describe_head(self.head),
        )
        return directory


_WIDTHS = (64, 64, 128), (128, 128, 256), (256, 512, 1024), (512,)


class SetAbstraction(nn.Module):
    """Each of some centroids from the points around it.

    :param in_channels: of a point, its three coordinates among them, which come first.
    :param widths: of the layers that each point of a group goes through, before the group's maximum.
    :param centroids: how many; they are the first points.
    :param radius: of a group.
    :param neighbours: how many points of a group count: the first ones within the radius.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], centroids: int, radius: float, neighbours: int):
        super().__init__()
        self.first = nn.Linear(in_channels, widths[0])
        self.rest = _layers(widths)
        self.centroids = centroids
        self.radius = radius
        self.neighbours = neighbours

    def forward(self, points: Tensor) -> Tensor:
        """float32 [B, P, 3 + C] to [B, centroids, 3 + widths[-1]]."""
        batch, count, _ = points.shape
        centres = points[:, : self.centroids, :3]
        indices = find_neighbours(points[..., :3], self.centroids, self.radius, self.neighbours)
        offsets = torch.arange(batch, device=points.device)[:, None, None] * count
        # the first layer commutes with the choice of points, and there are far fewer points than members of groups;
        # in half the bits, the difference of two points near each other would be lost
        with full_precision(points.device):
            projected = self.first(points).flatten(0, 1).index_select(0, (indices + offsets).flatten())
            members = projected.unflatten(0, (batch, self.centroids, -1))
            members = members - nn.functional.linear(centres, self.first.weight[:, :3]).unsqueeze(2)
        return torch.cat([centres, self.rest(members).amax(2)], -1)


class GlobalAbstraction(nn.Module):
    """One vector from all points."""

    def __init__(self, in_channels: int, widths: Sequence[int]):
        super().__init__()
        self.first = nn.Linear(in_channels, widths[0])
        self.rest = _layers(widths)

    def forward(self, points: Tensor) -> Tensor:
        """float32 [B, P, 3 + C] to [B, widths[-1]]."""
        return self.rest(self.first(points)).amax(1)


def _layers(widths: Sequence[int]) -> nn.Sequential:
    """What follows the first linear layer."""
    layers: list[nn.Module] = [nn.LayerNorm(widths[0]), nn.ReLU()]
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
    return nn.Sequential(*layers)


@torch.no_grad()
def find_neighbours(points: Tensor, centroids: int, radius: float, neighbours: int) -> Tensor:
    """The first points within a radius of each centroid; where they are too few, the centroid stands in.

    Distances are measured on a grid so fine that it does not matter, and so coarse that float32 holds them exactly:
    the same points are found by every library and on every device.

    :param points: float32 [B, P, 3] within the unit sphere or little more; the first `centroids` are the centroids.
    :return: positions, int64 [B, centroids, neighbours].
    """
    batch, count, _ = points.shape
    points = (points.float() * _GRID).round()
    centres = points[:, :centroids]
    # elementwise, and not as a product of matrices, where autocast would round
    squares = points.square().sum(-1)
    products = sum(centres[:, :, None, axis] * points[:, None, :, axis] for axis in range(3))
    distances = squares[:, :centroids, None] + squares[:, None] - 2 * products
    positions = torch.arange(count, device=points.device, dtype=torch.float32)
    keys = torch.where(distances <= (radius * _GRID) ** 2, positions, float(count))
    found = keys.topk(min(neighbours, count), dim=-1, largest=False).values.long()
    own = torch.arange(centroids, device=points.device)[:, None]
    return torch.where(found < count, found, own)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off where it is on, and is nothing otherwise: exporters do not know it."""
    return torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext()


def turn(points: Tensor, axis: int) -> Tensor:
    """Every cloud turned at random around an axis, its points moved a little."""
    angles = torch.rand(len(points), device=points.device) * (2 * torch.pi)
    cosine, sine = angles.cos(), angles.sin()
    one, two = (number for number in range(3) if number != axis)
    rotation = torch.zeros(len(points), 3, 3, device=points.device)
    rotation[:, axis, axis] = 1
    rotation[:, one, one] = rotation[:, two, two] = cosine
    rotation[:, one, two], rotation[:, two, one] = -sine, sine
    deviation, limit = _JITTER
    return points @ rotation + (torch.randn_like(points) * deviation).clamp(-limit, limit)
