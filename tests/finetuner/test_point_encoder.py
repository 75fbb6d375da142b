"""PointNet++."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetuner.inference.backbones import load_encoder
from finetuner.inference.point_encoder import PointEncoder, SetAbstraction, find_neighbours, turn


def clouds(count=3, size=64, seed=0):
    from finetuner.inference.meshes import MeshPreprocessor

    random = np.random.default_rng(seed)
    preprocessor = MeshPreprocessor(size)
    rows = preprocessor.features([random.standard_normal((size, 3)) * [1, 0.7, 0.4] for _ in range(count)])
    return torch.from_numpy(preprocessor.collate(rows)['points'])


def make(size=64, width=0.125, **options):
    torch.manual_seed(0)
    return PointEncoder(size, width=width, **options).eval()


def test_names_and_dimensions():
    for name in ('pointnet-base', 'PointNet++'):
        encoder = load_encoder(name)
        assert isinstance(encoder, PointEncoder)
        assert (encoder.dim, encoder.preprocessor.point_cloud_size, encoder.training) == (512, 2048, False)
    assert load_encoder('pointnet-base', options={'width': 0.25, 'point_cloud_size': 128}).dim == 128


@torch.no_grad()
def test_embeddings_depend_on_nothing_else_in_the_batch():
    encoder, points = make().train(), clouds()
    together = encoder(points=points)
    assert (together.shape, together.dtype) == ((3, 64), torch.float32)
    for row in range(3):
        torch.testing.assert_close(encoder(points=points[row : row + 1])[0], together[row], rtol=0, atol=1e-5)
    assert torch.equal(encoder.eval()(points=points), together)


@torch.no_grad()
def test_the_order_of_points_that_are_no_centroids_does_not_matter_where_groups_are_whole():
    encoder, points = make(), clouds()
    mixed = torch.cat([points[:, :16], points[:, 16:].flip(1)], 1)
    torch.testing.assert_close(encoder(points=mixed), encoder(points=points), rtol=0, atol=1e-5)


def test_neighbours_are_those_of_the_plain_search():
    points = clouds(2, 64)
    found = find_neighbours(points, 16, radius=0.5, neighbours=8)
    assert (found.shape, found.dtype) == ((2, 16, 8), torch.int64)
    for cloud, rows in zip(points, found, strict=True):
        for centre, row in enumerate(rows):
            near = [index for index in range(64) if float((cloud[index] - cloud[centre]).norm()) <= 0.5][:8]
            assert row.tolist() == near + [centre] * (8 - len(near))


@torch.no_grad()
def test_a_level_computes_the_formula_of_the_paper():
    torch.manual_seed(0)
    points = torch.cat([clouds(2, 64), torch.randn(2, 64, 5)], -1)
    level = SetAbstraction(8, (6, 7, 9), 16, radius=0.5, neighbours=8)
    groups = find_neighbours(points[..., :3], 16, 0.5, 8)
    expected = torch.empty(2, 16, 12)
    for item in range(2):
        for centre in range(16):
            members = points[item, groups[item, centre]].clone()
            members[:, :3] -= points[item, centre, :3]
            expected[item, centre, 3:] = level.rest(level.first(members)).amax(0)
            expected[item, centre, :3] = points[item, centre, :3]
    torch.testing.assert_close(level(points), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_half_precision_stays_near():
    encoder, points = make(256, 0.25), clouds(4, 256)
    exact = encoder(points=points)
    with torch.autocast('cpu', torch.bfloat16):
        rough = encoder(points=points)
    assert torch.cosine_similarity(exact, rough).min() > 0.999


def test_layer_groups_chain_and_hold_all_weights():
    encoder, points = make(), clouds()
    groups = encoder.layer_groups()
    held = [id(weight) for group in groups for weight in group.parameters()]
    assert sorted(held) == sorted(id(weight) for weight in encoder.parameters())
    hidden = points
    for group in groups:
        hidden = group(hidden)
    assert torch.equal(encoder.finish(hidden), encoder(points=points))


def test_every_weight_learns():
    encoder = make().train()
    encoder(points=clouds()).square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.parameters())


@torch.no_grad()
def test_augmentation_is_for_training_alone():
    points = clouds()
    plain, turning = make(), make(augment=True)
    expected = plain(points=points)
    assert torch.equal(turning(points=points), expected)
    turning.train()
    first, second = turning(points=points), turning(points=points)
    assert not torch.allclose(first, second, atol=1e-3)
    assert not torch.allclose(first, expected, atol=1e-3)
    assert torch.equal(plain.train()(points=points), expected)


@pytest.mark.parametrize('axis', [0, 1, 2])
def test_clouds_turn_around_the_axis(axis):
    torch.manual_seed(0)
    points = clouds(8)
    turned = turn(points, axis)
    torch.testing.assert_close(turned[..., axis], points[..., axis], rtol=0, atol=0.051)  # jitter alone
    others = [number for number in range(3) if number != axis]
    torch.testing.assert_close(turned[..., others].norm(dim=-1), points[..., others].norm(dim=-1), rtol=0, atol=0.08)
    moved = (turned - points)[..., others].norm(dim=-1).mean(1)
    assert len({round(float(value), 3) for value in moved}) == 8


@pytest.mark.parametrize('output_dim', [None, 5])
def test_a_saved_model_is_the_same(tmp_path, output_dim):
    encoder = make(augment=True, up_axis='z', normalize=True)
    if output_dim:
        encoder.add_head(output_dim)
    again = load_encoder(encoder.save(tmp_path / 'model'))
    assert isinstance(again, PointEncoder)
    points = clouds()
    with torch.no_grad():
        assert torch.equal(again(points=points), encoder(points=points))
    assert (again.augment, again.up_axis, again.width, again.dim) == (True, 'z', 0.125, output_dim or 64)
    assert again.preprocessor.digest == encoder.preprocessor.digest


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'point_cloud_size': 8}, 'point_cloud_size is 8'),
        ({'width': 0}, 'width is 0'),
        ({'width': 'wide'}, "width is 'wide'"),
        ({'up_axis': 'w'}, "unknown up_axis 'w': it is one of x, y, z"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PointEncoder(**options)


def test_a_damaged_description_is_refused(tmp_path):
    directory = make().save(tmp_path / 'model')
    description = directory / 'encoder.json'
    description.write_text(description.read_text().replace('"width"', '"breadth"'))
    with pytest.raises(ValueError, match='encoder.json'):
        PointEncoder.load(directory)
