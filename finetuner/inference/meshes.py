"""Files of meshes to clouds of points, with numpy and trimesh. Nothing but the file itself is ever read."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from finetuner.excepts import DataError
from finetuner.inference.preprocessing import Modality

POINT_CLOUD_SIZE = 2048
MAX_BYTES = 256 << 20
MAX_TRIANGLES = 10_000_000
FORMATS = ('glb', 'obj', 'off', 'ply', 'stl')
_MAX_POINTS = 50_000_000
_PART = 100  # triangles that one part of a file counts as besides its own: it takes memory even if it is empty


class MeshPreprocessor:
    """Points at random on the surface, evenly by area; the same content gives the same points.

    A cloud is centred and scaled to the unit sphere. Its first quarter are farthest points: each as far as can be from
    those before it. So the first n, for every n up to that quarter, cover the shape evenly, which is what the levels of
    PointNet++ ask for, and no model need search for them.

    :param point_cloud_size: how many points a cloud has, at least 16.
    """

    modality: ClassVar[Modality] = 'mesh'

    def __init__(self, point_cloud_size: int = POINT_CLOUD_SIZE):
        if isinstance(point_cloud_size, bool) or not isinstance(point_cloud_size, int) or point_cloud_size < 16:
            raise ValueError(f'point_cloud_size is {point_cloud_size!r}: it must be an integer of at least 16')
        self.point_cloud_size = point_cloud_size

    @property
    def digest(self) -> str:
        return hashlib.sha256(f'mesh 1 {self.point_cloud_size}'.encode()).hexdigest()

    def features(self, contents: Sequence[Any]) -> list[np.ndarray]:
        """Clouds, float32 [point_cloud_size, 3].

        :param contents: bytes or paths of files (obj, off, ply, stl, glb), or points, numbers [P, 3], of which some are
            left out or taken twice if they are more or fewer.
        :raises DataError: an item cannot be read; the message begins with its position.
        """
        clouds = []
        for position, content in enumerate(contents):
            try:
                clouds.append(self._cloud(content))
            except DataError as error:
                raise DataError(f'item {position} {error}') from error
        return clouds

    def collate(self, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """`points`, float32 [B, point_cloud_size, 3]."""
        return {'points': np.stack(rows).astype(np.float32, copy=False)}

    def _cloud(self, content: Any) -> np.ndarray:
        if isinstance(content, (bytes, bytearray, memoryview)):
            data = bytes(content)
            points = self._from_file(data, _guess_format(data))
        elif isinstance(content, (str, Path)):
            data = _read(Path(content))
            suffix = Path(content).suffix[1:].lower()
            points = self._from_file(data, suffix if suffix in FORMATS else _guess_format(data))
        else:
            points = self._from_points(content)
        return _order(_normalize(points), self.point_cloud_size // 4)

    def _from_file(self, data: bytes, file_type: str) -> np.ndarray:
        random = _random(data)
        corners, points = _parse(data, file_type)
        if not len(corners):
            return _pick(points, self.point_cloud_size, random)
        return _sample(corners, self.point_cloud_size, random)

    def _from_points(self, content: Any) -> np.ndarray:
        try:
            points = np.asarray(content)
            if points.dtype.kind not in 'fiu':
                raise ValueError
        except (TypeError, ValueError) as error:
            raise DataError(f'is not a mesh but {type(content).__name__}') from error
        points = np.ascontiguousarray(points, np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not 0 < len(points) <= _MAX_POINTS:
            raise DataError(f'is not a cloud of points [P, 3]: its shape is {list(points.shape)}')
        return _pick(points, self.point_cloud_size, _random(points.tobytes()))


def _read(path: Path) -> bytes:
    try:
        with path.expanduser().open('rb') as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DataError(f'cannot be read: {getattr(error, "strerror", None) or error} ({path})') from error
    return data


def _guess_format(data: bytes) -> str:
    start = data[:5].lower()
    if start.startswith(b'gltf'):
        return 'glb'
    if start.startswith(b'ply'):
        return 'ply'
    if data[:6].lstrip(b'CNST4').startswith(b'OFF'):  # COFF and so on carry colours and normals
        return 'off'
    # that length is binary STL's
    is_binary = len(data) >= 84 and len(data) == 84 + 50 * struct.unpack('<I', data[80:84])[0]
    return 'stl' if is_binary or start == b'solid' else 'obj'


def _parse(data: bytes, file_type: str) -> tuple[np.ndarray, np.ndarray]:
    """The triangles of a file, float64 [T, 3, 3], and the points of those parts that have none, float64 [P, 3].

    :raises DataError: it is too large, cannot be read, or has neither.
    """
    import trimesh

    if len(data) > MAX_BYTES:
        raise DataError(f'is larger than the limit of {MAX_BYTES >> 20} MiB')
    try:
        if file_type == 'glb':
            _check_glb(data)
        # from a stream, and without a resolver: a file cannot ask for others
        scene = trimesh.load_scene(io.BytesIO(data), file_type=file_type, process=False, skip_materials=True)
        corners, points, count = [], [], 0
        for node in scene.graph.nodes_geometry:
            matrix, name = scene.graph[node]
            part = scene.geometry[name]
            # one part may be shown in many places
            count += len(getattr(part, 'faces', ())) + len(part.vertices) // 4
            if count > MAX_TRIANGLES:
                raise DataError(f'has more than the limit of {MAX_TRIANGLES:,} triangles')
            vertices = np.asarray(part.vertices, np.float64) @ np.asarray(matrix)[:3, :3].T + np.asarray(matrix)[:3, 3]
            if len(getattr(part, 'faces', ())):
                corners.append(vertices[np.asarray(part.faces)])
            else:
                points.append(vertices)
    except DataError:
        raise
    except Exception as error:  # what trimesh's readers raise has no common base
        reason = ' '.join(str(error).split())[:200] or type(error).__name__
        raise DataError(f'cannot be read as {file_type.upper()}: {reason}') from error
    found = np.concatenate(corners or [np.empty((0, 3, 3))]), np.concatenate(points or [np.empty((0, 3))])
    if not len(found[0]) and not len(found[1]):
        raise DataError(f'has no triangles and no points (read as {file_type.upper()})')
    return found


def _check_glb(data: bytes) -> None:
    """Refuse a file that needs other files, or that asks for more numbers than it has bytes."""
    length, kind = struct.unpack('<II', data[12:20])
    header = json.loads(data[20 : 20 + length]) if kind == 0x4E4F534A else {}
    if any(not str(buffer.get('uri', 'data:')).startswith('data:') for buffer in header.get('buffers', [])):
        raise DataError('needs other files, which are not read: pack it as one GLB')
    counts = [accessor.get('count', 0) for accessor in header.get('accessors', [])]
    if any(type(count) is not int or count < 0 for count in counts):
        raise DataError('cannot be read as GLB: it has a count that is no number of things')
    if sum(counts) > len(data):
        raise DataError('cannot be read as GLB: it announces more than it holds')
    # many primitives may name the same few numbers, and each becomes arrays of its own
    total = 0
    for mesh in header.get('meshes', []):
        for primitive in mesh['primitives']:
            vertices = max((_count(counts, accessor) for accessor in primitive['attributes'].values()), default=0)
            corners = _count(counts, primitive['indices']) if 'indices' in primitive else vertices
            # every corner after the second makes a triangle of a strip
            total += _PART + vertices // 4 + (corners if primitive.get('mode', 4) == 5 else corners // 3)
            if total > MAX_TRIANGLES:
                raise DataError(f'has more than the limit of {MAX_TRIANGLES:,} triangles')


def _count(counts: list[int], accessor: Any) -> int:
    if type(accessor) is not int or not 0 <= accessor < len(counts):
        raise DataError('cannot be read as GLB: it names numbers that are not there')
    return counts[accessor]


def _random(content: bytes) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(content).digest()[:8], 'little'))


def _sample(corners: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Points evenly by area, float64 [size, 3], on triangles, float64 [T, 3, 3]."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = np.linalg.norm(np.cross(first, second), axis=1)
    if not np.isfinite(areas).all():
        raise DataError('has a coordinate that is not finite')
    total = np.cumsum(areas)
    if total[-1] <= 0:  # lines and dots
        return _pick(corners.reshape(-1, 3), size, random)
    # of evenly spaced strips of the surface, one point each: less clumped than independent ones
    chosen = np.searchsorted(total, (np.arange(size) + random.random(size)) / size * total[-1], side='right')
    chosen = np.minimum(chosen, len(corners) - 1)
    root, along = np.sqrt(random.random((size, 1))), random.random((size, 1))
    return corners[chosen, 0] + root * ((1 - along) * first[chosen] + along * second[chosen])


def _pick(points: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """`size` of the points, none twice as long as there are enough."""
    if not np.isfinite(points).all():
        raise DataError('has a coordinate that is not finite')
    if len(points) == size:
        return points
    shuffled = np.argsort(random.random(len(points)), kind='stable')
    return points[np.resize(shuffled, size)]


def _normalize(points: np.ndarray) -> np.ndarray:
    # near 1 first, so that squares do not overflow; by a power of two, which changes no digit
    points = np.ldexp(points, -np.frexp(np.abs(points).max())[1])
    points = points - points.mean(0)
    radius = np.sqrt((points**2).sum(1).max())
    return points / radius if radius > 0 else points


def _order(points: np.ndarray, count: int) -> np.ndarray:
    """Put `count` farthest points first, float32 [P, 3]."""
    points = points.astype(np.float32)
    distances = np.full(len(points), np.inf, np.float32)
    columns = np.ascontiguousarray(points.T)
    chosen = np.empty(count, np.int64)
    farthest = int((points**2).sum(1).argmax())
    for number in range(count):
        chosen[number] = farthest
        offsets = columns - columns[:, farthest, None]
        np.minimum(distances, np.einsum('ij,ij->j', offsets, offsets), out=distances)
        distances[farthest] = -1  # never again, even among points that are all the same
        farthest = int(distances.argmax())
    rest = np.ones(len(points), bool)
    rest[chosen] = False
    return np.concatenate([points[chosen], points[rest]])
