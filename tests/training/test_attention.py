"""The heads stay where they are in ONNX models, and nothing else changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from finetuner.inference.backbones import load_encoder, load_encoders
from training.attention import keep_heads_together
from training.export import export, export_all

# queries of another length than the keys, and twice as many heads
MODEL = """
<ir_version: 10, opset_import: ["" : 23]>
graph (float[b, l, 24] q, float[b, m, 12] k, float[b, m, 15] v, bool[l, m] mask) => (float[b, l, 30] out)
<int64[4] of_q = {0, -1, 6, 4}, int64[4] of_k = {0, -1, 3, 4}, int64[4] of_v = {0, -1, 3, 5},
 int64[3] whole = {0, -1, 30},
 float[b, l, 6, 4] q4, float[b, m, 3, 4] k4, float[b, m, 3, 5] v4, float[b, 6, l, 4] qt, float[b, 3, m, 4] kt,
 float[b, 3, m, 5] vt, float[b, 6, l, 5] a, float[b, l, 6, 5] t, float[b, l, 30] r>
{
    q4 = Reshape(q, of_q)
    k4 = Reshape(k, of_k)
    v4 = Reshape(v, of_v)
    qt = Transpose<perm = [0, 2, 1, 3]>(q4)
    kt = Transpose<perm = [0, 2, 1, 3]>(k4)
    vt = Transpose<perm = [0, 2, 1, 3]>(v4)
    a = Attention(qt, kt, vt, mask)
    t = Transpose<perm = [0, 2, 1, 3]>(a)
    r = Reshape(t, whole)
    out = Neg(r)
}
"""
WITHOUT_NAMES = MODEL.replace('float[b, l, 24] q', 'float[?, ?, 24] q').replace(
    'float[b, l, 6, 4] q4', 'float[?, ?, 6, 4] q4'
)


def read(text):
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def compute(model):
    random = np.random.default_rng(0)
    shapes = {'q': (2, 7, 24), 'k': (2, 5, 12), 'v': (2, 5, 15)}
    inputs = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    inputs['mask'] = random.random((7, 5)) < 0.7
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, inputs)


def test_attention_takes_the_heads_together_and_computes_the_same():
    model = read(MODEL)
    (before,) = compute(model)
    assert keep_heads_together(model) == 1
    assert [node.op_type for node in model.graph] == ['Attention', 'Neg']
    np.testing.assert_allclose(compute(model)[0], before, rtol=0, atol=1e-6)
    assert keep_heads_together(model) == 0


def test_what_else_needs_the_heads_keeps_them():
    text = MODEL.replace('out)', 'out, float[b, 3, m, 4] keys)').replace(
        'out = Neg(r)', 'out = Neg(r)\n    keys = Neg(kt)'
    )
    model = read(text)
    before = compute(model)
    assert keep_heads_together(model) == 1
    assert sorted(node.op_type for node in model.graph) == ['Attention', 'Neg', 'Neg', 'Reshape', 'Transpose']
    for found, expected in zip(compute(model), before, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    'text',
    [
        pytest.param(MODEL.replace('float[b, l, 6, 4] q4', 'float[bl, 1, 6, 4] q4'), id='in windows'),
        pytest.param(WITHOUT_NAMES, id='maybe in windows'),
        pytest.param(
            MODEL.replace('Transpose<perm = [0, 2, 1, 3]>(v4)', 'Transpose<perm = [0, 2, 3, 1]>(v4)'), id='other axes'
        ),
        pytest.param(MODEL.replace('Transpose<perm = [0, 2, 1, 3]>(v4)', 'Transpose(v4)'), id='no axes'),
        pytest.param(
            MODEL.replace('Transpose<perm = [0, 2, 1, 3]>(a)', 'Transpose<perm = [2, 0, 1, 3]>(a)'),
            id='other axes after',
        ),
        pytest.param(MODEL.replace('v4 = Reshape(v, of_v)', 'v4 = Identity(v)'), id='not split'),
        pytest.param(MODEL.replace('out)', 'out, float[b, 6, l, 5] a)'), id='heads are an output'),
        pytest.param(MODEL.replace('out)', 'out, float[b, l, 30] r)'), id='what is merged is an output'),
    ],
)
def test_what_is_of_another_form_stays(text):
    model = read(text)
    before = [node.op_type for node in model.graph]
    assert before.count('Transpose') == 4
    assert keep_heads_together(model) == 0
    assert [node.op_type for node in model.graph] == before


def count_kinds(directory):
    return Counter(node.op_type for node in onnx.load(directory / 'model.onnx').graph.node)


def test_an_exported_text_model_moves_no_heads(tiny_model, tmp_path):
    kinds = count_kinds(export(load_encoder(tiny_model), tmp_path / 'model'))
    assert kinds['Attention'] > 0
    assert kinds['Transpose'] == 0


def test_an_exported_clip_moves_no_heads(tiny_clip, tmp_path):
    export_all(load_encoders(tiny_clip), tmp_path)
    text, vision = (count_kinds(tmp_path / name) for name in ('clip-text', 'clip-vision'))
    assert text['Attention'] > 0 and vision['Attention'] > 0
    assert text['Transpose'] == 0
    assert vision['Transpose'] <= 2  # of the pixels, and of the patches
