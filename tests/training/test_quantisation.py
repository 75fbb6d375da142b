"""ONNX models of fewer bits: smaller, near to fp32, measured, and refused where they are not near enough."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
import torch

from finetuner.artifact import open_artifact
from finetuner.inference.backbones import load_encoder
from finetuner.inference.mlp_encoder import MLPEncoder
from finetuner.inference.point_encoder import PointEncoder
from finetuner.inference.text_encoder import TextEncoder
from training import quantisation
from training.export import build_artifact, export_all
from training.parity import onnx_run
from training.samples import random_features


def make_mlp():
    torch.manual_seed(0)
    return MLPEncoder(64, [128, 64], activation='relu')


def export(encoder, directory, precision, **options):
    report = export_all({'model': encoder}, directory / precision, precision, **options)['model']
    return report, directory / precision / 'model' / 'model.onnx'


def share(path, other):
    return path.stat().st_size / other.stat().st_size


def types_of_weights(path):
    return {tensor.data_type for tensor in onnx.load(path).graph.initializer if np.prod(tensor.dims) > 16}


@pytest.mark.parametrize(
    ('precision', 'weights', 'largest', 'cosine'),
    [('fp16', onnx.TensorProto.FLOAT16, 0.6, 0.99999), ('int8', onnx.TensorProto.INT8, 0.4, 0.999)],
)
def test_linear_layers(tmp_path, precision, weights, largest, cosine):
    encoder = make_mlp()
    _, exact = export(encoder, tmp_path, 'fp32')
    report, path = export(encoder, tmp_path, precision)
    assert report['precision'] == precision
    assert weights in types_of_weights(path)
    assert share(path, exact) < largest
    assert report['to_fp32'][report['method']]['mean_cosine'] > cosine
    inputs = encoder.preprocessor.collate(random_features(encoder, 5))
    one, two = onnx_run(exact)(inputs), onnx_run(path)(inputs)
    assert two.dtype == np.float32
    assert not np.array_equal(one, two)
    assert ((one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)).min() > cosine - 0.001


@pytest.mark.parametrize(('precision', 'cosine'), [('fp16', 0.999), ('int8', 0.9)])
def test_texts(tiny_model, tmp_path, precision, cosine):
    report, path = export(TextEncoder.load(tiny_model), tmp_path, precision, min_cosine=cosine)
    assert report['precision'] == precision, report
    assert path.is_file()


@pytest.mark.parametrize('method', ['dynamic', 'blockwise'])
def test_both_ways_to_int8(tmp_path, monkeypatch, method):
    way = {'dynamic': quantisation.to_int8_dynamic, 'blockwise': quantisation.to_int8_blockwise}[method]
    monkeypatch.setattr(quantisation, 'methods', lambda precision, path: {method: way})
    report, path = export(make_mlp(), tmp_path, 'int8')
    assert report['method'] == method
    assert report['to_fp32'][method]['mean_cosine'] > 0.999
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {'dynamic': 'MatMulInteger', 'blockwise': 'MatMulNBits'}[method] in kinds


def test_the_next_way_is_tried_where_the_first_is_not_near_enough(tmp_path):
    report, _ = export(make_mlp(), tmp_path, 'int8')
    dynamic = report['to_fp32']['dynamic']['mean_cosine']
    report, _ = export(make_mlp(), tmp_path, 'int8', min_cosine=dynamic + 1e-5)
    assert report['method'] == 'blockwise'
    assert set(report['to_fp32']) == {'dynamic', 'blockwise'}


def test_convolutions_are_calibrated_with_samples(tmp_path):
    torch.manual_seed(0)
    options = {'pretrained': False, 'preprocess_options': {'size': 64}}
    encoder = load_encoder('squeezenet1_1', options=options)
    samples = {'model': random_features(encoder, 8)}
    report, path = export(encoder, tmp_path, 'int8', samples=samples, min_cosine=0.9)
    assert (report['precision'], report['method'], report['measured_on']) == ('int8', 'static', '8 samples')
    assert path.stat().st_size < 1_200_000  # of 2.9 MB


def test_positions_are_found_in_full_precision(tmp_path):
    """In 16 bits, the squares of the grid would overflow."""
    torch.manual_seed(0)
    report, _ = export(PointEncoder(64, width=0.25).eval(), tmp_path, 'fp16', min_cosine=0.9)
    assert report['precision'] == 'fp16'
    assert report['to_fp32']['float16']['cosine'] > 0.95


@pytest.mark.parametrize('precision', ['fp16', 'int8'])
def test_what_is_not_near_enough_is_refused_and_fp32_stays(tmp_path, precision, caplog):
    encoder = make_mlp()
    _, exact = export(encoder, tmp_path, 'fp32')
    with caplog.at_level(logging.WARNING):
        report, path = export(encoder, tmp_path, precision, min_cosine=1.0)
    assert report['precision'] == 'fp32'
    assert report['refused'] == f'no {precision} model has a mean cosine to fp32 of 1.0 or more (onnx_min_cosine)'
    assert 'mean_cosine' in next(iter(report['to_fp32'].values()))
    assert 'stays in fp32' in caplog.text
    assert path.read_bytes() == exact.read_bytes()
    assert [file.name for file in path.parent.glob('*.onnx')] == ['model.onnx']


def test_a_tool_that_fails_loses_no_run(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError('no such luck')

    monkeypatch.setattr(quantisation, 'methods', lambda precision, path: {'broken': fail})
    report, path = export(make_mlp(), tmp_path, 'int8')
    assert report['precision'] == 'fp32'
    assert report['to_fp32'] == {'broken': {'error': 'RuntimeError: no such luck'}}
    assert path.is_file()


def test_metrics_are_measured_with_the_model_of_fewer_bits(tmp_path):
    encoder, asked = make_mlp(), []

    def measure(runs):
        (run,) = runs.values()
        asked.append(run(encoder.preprocessor.collate(random_features(encoder, 2))))
        return {'recall_at_k': 0.7, 'hit_at_k': 1.0}

    def build(precision):
        path = build_artifact(
            {'model': encoder},
            name='run',
            config={},
            metrics={'after': {'recall_at_k': 0.75}},
            target=tmp_path / f'{precision}.zip',
            onnx_precision=precision,
            measure=measure,
        )
        return open_artifact(path, cache=tmp_path / 'cache').models['model'].export

    assert 'metrics' not in build('fp32')
    assert not asked
    found = build('int8')['metrics']
    assert found['recall_at_k'] == {'value': 0.7, 'loss': pytest.approx(0.05)}
    assert found['hit_at_k'] == {'value': 1.0}
    assert asked[0].shape == (2, 64)


def test_nothing_is_printed_and_the_log_stays_as_it_was(tmp_path, capfd):
    handlers, disabled = list(logging.getLogger().handlers), logging.root.manager.disable
    for precision in ('fp16', 'int8'):
        export(make_mlp(), tmp_path, precision)
    assert logging.getLogger().handlers == handlers
    assert logging.root.manager.disable == disabled
    assert capfd.readouterr() == ('', '')
