"""A labelled set of meshes, generated: ten families of shapes, each of random proportions, turned and dented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import trimesh
from trimesh.creation import annulus, box, cone, cylinder, icosphere, torus

Shape = trimesh.Trimesh


def _place(mesh: Shape, x: float = 0, y: float = 0, z: float = 0) -> Shape:
    mesh.apply_translation([x, y, z])
    return mesh


def _join(*parts: Shape) -> Shape:
    return trimesh.util.concatenate(list(parts))


def _block(random: np.random.Generator) -> Shape:
    return box(random.uniform(0.4, 1.6, 3))


def _ellipsoid(random: np.random.Generator) -> Shape:
    mesh = icosphere(3)
    mesh.apply_scale(random.uniform(0.4, 1.2, 3))
    return mesh


def _post(random: np.random.Generator) -> Shape:
    return cylinder(random.uniform(0.2, 0.6), random.uniform(0.6, 2))


def _pyramid(random: np.random.Generator) -> Shape:
    return cone(random.uniform(0.3, 0.8), random.uniform(0.6, 2), sections=int(random.integers(3, 24)))


def _ring(random: np.random.Generator) -> Shape:
    return torus(random.uniform(0.6, 1), random.uniform(0.1, 0.35))


def _tube(random: np.random.Generator) -> Shape:
    inner = random.uniform(0.25, 0.6)
    return annulus(inner, inner + random.uniform(0.1, 0.35), random.uniform(0.5, 2))


def _legs(random: np.random.Generator, width: float, depth: float, height: float) -> list[Shape]:
    thick = random.uniform(0.06, 0.16)
    corners = [(x * (width - thick) / 2, y * (depth - thick) / 2) for x in (-1, 1) for y in (-1, 1)]
    return [_place(box([thick, thick, height]), x, y, height / 2) for x, y in corners]


def _table(random: np.random.Generator) -> Shape:
    width, depth, height = random.uniform(0.8, 2), random.uniform(0.6, 1.2), random.uniform(0.5, 1.1)
    top = random.uniform(0.05, 0.15)
    return _join(_place(box([width, depth, top]), z=height + top / 2), *_legs(random, width, depth, height))


def _chair(random: np.random.Generator) -> Shape:
    width, depth, height = random.uniform(0.5, 0.9), random.uniform(0.5, 0.9), random.uniform(0.4, 0.8)
    thick, back = random.uniform(0.05, 0.12), random.uniform(0.5, 1)
    seat = _place(box([width, depth, thick]), z=height + thick / 2)
    rest = _place(box([width, thick, back]), y=(depth - thick) / 2, z=height + thick + back / 2)
    return _join(seat, rest, *_legs(random, width, depth, height))


def _lamp(random: np.random.Generator) -> Shape:
    height, foot = random.uniform(0.8, 1.6), random.uniform(0.2, 0.4)
    shade = _place(cone(random.uniform(0.3, 0.6), random.uniform(0.3, 0.6)), z=height)
    pole = _place(cylinder(random.uniform(0.03, 0.06), height), z=height / 2)
    return _join(_place(cylinder(foot, 0.08), z=0.04), pole, shade)


def _cross(random: np.random.Generator) -> Shape:
    thick = random.uniform(0.1, 0.3)
    return _join(*(box(np.where(np.arange(3) == axis, random.uniform(0.8, 1.6), thick)) for axis in range(3)))


FAMILIES: dict[str, Callable[[np.random.Generator], Shape]] = {
    'block': _block,
    'ellipsoid': _ellipsoid,
    'post': _post,
    'pyramid': _pyramid,
    'ring': _ring,
    'tube': _tube,
    'table': _table,
    'chair': _chair,
    'lamp': _lamp,
    'cross': _cross,
}


def write_shapes(directory: Path, per_family: int, seed: int) -> Path:
    """Write OFF files and `<directory>.csv`, two columns, path and family, with a header.

    :return: the CSV file.
    """
    random = np.random.default_rng(seed)
    directory.mkdir(parents=True)
    lines = ['path,family']
    for number in range(per_family):
        for family, make in FAMILIES.items():
            mesh = make(random)
            mesh.apply_transform(trimesh.transformations.rotation_matrix(random.uniform(0, 2 * np.pi), [0, 0, 1]))
            # a slant, and dents
            mesh.apply_transform(np.eye(4) + np.pad(random.normal(0, 0.12, (3, 3)), (0, 1)))
            mesh.vertices += random.normal(0, 0.03, mesh.vertices.shape)
            path = directory / f'{family}-{number}.off'
            mesh.export(path)
            lines.append(f'{path},{family}')
    table = directory.with_suffix('.csv')
    table.write_text('\n'.join(lines) + '\n')
    return table
