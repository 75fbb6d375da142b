"""Files of meshes to clouds of points."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import trimesh

import finetuner.inference.meshes
from finetuner.excepts import DataError
from finetuner.inference.meshes import FORMATS, MeshPreprocessor


def exported(mesh, file_type):
    data = mesh.export(file_type=file_type)
    return data if isinstance(data, bytes) else data.encode()


def cloud(content, size=256):
    (points,) = MeshPreprocessor(size).features([content])
    assert (points.dtype, points.shape) == (np.float32, (size, 3))
    return points


def distances_between(one, two):
    """From every point to the nearest one of the other cloud."""
    return np.sqrt(((one[:, None] - two[None]) ** 2).sum(-1)).min(1)


@pytest.fixture
def sphere():
    return trimesh.creation.icosphere(3)


@pytest.mark.parametrize('file_type', FORMATS)
@pytest.mark.parametrize('source', ['bytes', 'path', 'str', 'path without suffix'])
def test_every_format_gives_points_on_the_surface(tmp_path, sphere, file_type, source):
    data = exported(sphere.apply_translation([5, 0, 0]), file_type)
    path = tmp_path / (f'sphere.{file_type}' if source != 'path without suffix' else 'sphere')
    path.write_bytes(data)
    content = {'bytes': data, 'str': str(path)}.get(source, path)
    lengths = np.linalg.norm(cloud(content), axis=1)
    assert lengths.max() == pytest.approx(1, abs=1e-6)
    assert lengths.min() > 0.85  # centred, though it was not


def test_ascii_stl(sphere):
    assert np.array_equal(np.linalg.norm(cloud(exported(sphere, 'stl_ascii')), axis=1) > 0.85, np.ones(256, bool))


def test_the_same_content_gives_the_same_points_and_other_content_others(tmp_path, sphere):
    data = exported(sphere, 'ply')
    (tmp_path / 'sphere.ply').write_bytes(data)
    together = MeshPreprocessor(64).features([data, data, tmp_path / 'sphere.ply'])
    assert np.array_equal(together[0], together[1])
    assert np.array_equal(together[0], together[2])
    assert np.array_equal(together[0], cloud(data, 64))
    assert not np.array_equal(together[0], cloud(exported(sphere, 'obj'), 64))


def test_points_are_even_by_area():
    # two squares of 1 × 1 in 2 and in 200 triangles
    coarse = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]], process=False)
    fine = coarse.copy()
    for _ in range(4):
        fine = fine.subdivide()
    fine.apply_translation([10, 0, 0])
    points = cloud(exported(trimesh.util.concatenate([coarse, fine]), 'off'), 1000)
    assert abs((points[:, 0] < 0).sum() - 500) <= 2
    # and within a triangle: each quarter of the square has a quarter of its points
    square = points[points[:, 0] < 0]
    low = square[:, :2] < (square[:, :2].min(0) + square[:, :2].max(0)) / 2
    for quarter in range(4):
        assert 90 <= (low @ [1, 2] == quarter).sum() <= 160


def test_size_and_place_do_not_matter(sphere):
    points = cloud(exported(sphere, 'stl'), 512)
    moved = cloud(exported(sphere.copy().apply_scale(70).apply_translation([3, -5, 900]), 'stl'), 512)
    assert distances_between(points, moved).max() < 0.25


def test_the_first_quarter_are_farthest_points(sphere):
    points = cloud(exported(sphere, 'stl'), 400)
    for count in (4, 20, 99):
        gaps = np.sqrt(((points[:, None] - points[None, :count]) ** 2).sum(-1)).min(1)
        assert gaps[count] == pytest.approx(gaps.max(), abs=1e-5)


def test_parts_stand_where_the_scene_puts_them():
    scene = trimesh.Scene()
    ball = trimesh.creation.icosphere(1, 0.1)
    for x in (-1, 1):
        scene.add_geometry(ball, transform=trimesh.transformations.translation_matrix([x, 0, 0]))
    points = cloud(exported(scene, 'glb'))
    assert ((points[:, 0] < -0.7) | (points[:, 0] > 0.7)).all()
    assert 100 < (points[:, 0] > 0).sum() < 156


def test_a_file_of_points_alone_gives_these_points():
    given = np.random.default_rng(0).standard_normal((100, 3))
    points = cloud(exported(trimesh.PointCloud(given), 'ply'), 64)
    given -= given.mean(0)
    radius = np.linalg.norm(given, axis=1).max()
    # those that were picked are centred anew
    assert distances_between(points, given / radius).max() < 0.35


@pytest.mark.parametrize('count', [10, 64, 500])
def test_points_are_taken_as_they_are_left_out_or_repeated(count):
    given = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    points = cloud(given, 64)
    assert len(np.unique(points, axis=0)) == min(count, 64)
    if count == 64:
        expected = given - given.mean(0)
        expected /= np.linalg.norm(expected, axis=1).max()
        assert np.allclose(points[np.lexsort(points.T)], expected[np.lexsort(expected.T)], atol=1e-5)


def test_points_all_in_one_place():
    assert np.array_equal(cloud(np.ones((5, 3))), np.zeros((256, 3)))


@pytest.mark.parametrize('scale', [1e308, 1e-310])
def test_neither_great_nor_small_coordinates_are_lost(scale):
    points = cloud(np.array([[1, 1, 1], [1, 1, 1], [-1, -1, -1]]) * scale, 64)
    assert points.shape == (64, 3)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1)


def glb(header):
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 4)
    return struct.pack('<4sIIII', b'glTF', 2, 20 + len(text), len(text), 0x4E4F534A) + text


BOMB = {
    'asset': {'version': '2.0'},
    'accessors': [{'componentType': 5126, 'type': 'VEC3', 'count': 10**11}],
    'meshes': [{'primitives': [{'attributes': {'POSITION': 0}}]}],
    'nodes': [{'mesh': 0}],
    'scenes': [{'nodes': [0]}],
}
ABROAD = {'asset': {'version': '2.0'}, 'buffers': [{'byteLength': 4, 'uri': 'http://localhost:9/x.bin'}]}


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'item 1 '),
        (b'hello', 'item 1 has no triangles and no points'),
        (b'solid nothing\nendsolid', 'item 1 '),
        (b'ply\nformat ascii 1.0\nelement vertex 99999999999\nend_header\n', 'item 1 cannot be read as PLY'),
        (b'OFF\n3 1 0\n0 0 0\n', 'item 1 cannot be read as OFF'),
        (b'glTF', 'item 1 cannot be read as GLB'),
        (glb(BOMB), 'item 1 cannot be read as GLB: it announces more than it holds'),
        (
            glb({**BOMB, 'accessors': [{'count': -(10**11)}, {'count': 10**11}]}),
            'item 1 cannot be read as GLB: it has a',
        ),
        (glb({**BOMB, 'accessors': []}), 'item 1 cannot be read as GLB: it names numbers that are not there'),
        (glb(ABROAD), 'item 1 needs other files, which are not read'),
        (b'v 0 0 0\nv 1 0 0\nv nan 1 0\nf 1 2 3\n', 'item 1 has a coordinate that is not finite'),
        ('/nowhere/mesh.off', 'item 1 cannot be read: No such file or directory'),
        ('http://localhost/mesh.off', 'item 1 cannot be read'),
        (np.zeros((4, 2)), r'item 1 is not a cloud of points \[P, 3\]: its shape is \[4, 2\]'),
        (np.zeros((0, 3)), 'item 1 is not a cloud of points'),
        (np.array([[0, 0, np.inf]]), 'item 1 has a coordinate that is not finite'),
        (np.array(['a']), 'item 1 is not a mesh but ndarray'),
        (None, 'item 1 is not a mesh but NoneType'),
    ],
)
def test_what_is_no_mesh_is_refused_by_its_position(sphere, content, message):
    with pytest.raises(DataError, match=message):
        MeshPreprocessor(64).features([exported(sphere, 'stl'), content])


def test_files_and_scenes_have_limits(monkeypatch, sphere):
    monkeypatch.setattr(finetuner.inference.meshes, 'MAX_TRIANGLES', 2 * len(sphere.faces))
    scene = trimesh.Scene()
    for _ in range(3):
        scene.add_geometry(sphere, geom_name='ball')
    with pytest.raises(DataError, match='item 0 has more than the limit of 2,560 triangles'):
        MeshPreprocessor(64).features([exported(scene, 'glb')])
    monkeypatch.setattr(finetuner.inference.meshes, 'MAX_BYTES', 1 << 20)
    with pytest.raises(DataError, match='item 0 is larger than the limit of 1 MiB'):
        MeshPreprocessor(64).features([bytes(1 + (1 << 20))])


@pytest.mark.parametrize('how', ['positions', 'indices'])
def test_numbers_that_many_parts_share_are_counted_for_each(monkeypatch, how):
    """A file of a few hundred kB that would become gigabytes is refused before anything is made of it."""
    monkeypatch.setattr(trimesh, 'load_scene', None)
    positions, indices = (30_000, 3) if how == 'positions' else (3, 30_000)
    part = {'attributes': {'POSITION': 0}, 'indices': 1}
    bomb = {**BOMB, 'accessors': [{'count': positions}, {'count': indices}], 'meshes': [{'primitives': [part] * 5000}]}
    with pytest.raises(DataError, match='item 0 has more than the limit of 10,000,000 triangles'):
        MeshPreprocessor(64).features([glb(bomb)])


def test_materials_and_textures_beside_a_file_are_not_read(tmp_path):
    (tmp_path / 'mesh.mtl').mkdir()  # reading it would fail
    text = 'mtllib mesh.mtl\nusemtl x\nv 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n'
    (tmp_path / 'mesh.obj').write_text(text)
    assert cloud(tmp_path / 'mesh.obj').shape == (256, 3)


@pytest.mark.parametrize('size', [15, 0, 20.5, True, '64'])
def test_sizes_that_make_no_sense(size):
    with pytest.raises(ValueError, match='point_cloud_size is'):
        MeshPreprocessor(size)


def test_batches_and_digests(sphere):
    preprocessor = MeshPreprocessor(32)
    batch = preprocessor.collate(preprocessor.features([exported(sphere, 'stl')] * 3))
    assert (batch['points'].shape, batch['points'].dtype) == ((3, 32, 3), np.float32)
    assert preprocessor.digest == MeshPreprocessor(32).digest != MeshPreprocessor(64).digest
