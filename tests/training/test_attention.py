"""The heads stay where they are in ONNX models, and nothing else changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from finetuner.inference.backbones import load_encoder
from training.attention import keep_heads_together
from training.export import export

MODEL = """
<ir_version: 10, opset_import: ["" : 23]>
graph (float[b, l, 12] q, float[b, m, 12] k, float[b, m, 12] v, bool[l, m] mask) => (float[b, l, 12] out)
<int64[4] split = {0, -1, 3, 4}, int64[3] whole = {0, -1, 12},
 float[b, l, 3, 4] q4, float[b, m, 3, 4] k4, float[b, m, 3, 4] v4, float[b, 3, l, 4] qt, float[b, 3, m, 4] kt,
 float[b, 3, m, 4] vt, float[b, 3, l, 4] a, float[b, l, 3, 4] t, float[b, l, 12] r>
{
    q4 = Reshape(q, split)
    k4 = Reshape(k, split)
    v4 = Reshape(v, split)
    qt = Transpose<perm = [0, 2, 1, 3]>(q4)
    kt = Transpose<perm = [0, 2, 1, 3]>(k4)
    vt = Transpose<perm = [0, 2, 1, 3]>(v4)
    a = Attention(qt, kt, vt, mask)
    t = Transpose<perm = [0, 2, 1, 3]>(a)
    r = Reshape(t, whole)
    out = Neg(r)
}
"""


def read(text):
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def compute(model):
    random = np.random.default_rng(0)
    inputs = {name: random.normal(size=(2, 5, 12)).astype(np.float32) for name in 'kv'}
    inputs |= {'q': random.normal(size=(2, 7, 12)).astype(np.float32), 'mask': random.random((7, 5)) < 0.7}
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(None, inputs)[0]


def test_attention_takes_the_heads_together_and_computes_the_same():
    model = read(MODEL)
    before = compute(model)
    assert keep_heads_together(model) == 1
    assert [node.op_type for node in model.graph] == ['Attention', 'Neg']
    np.testing.assert_allclose(compute(model), before, rtol=0, atol=1e-6)
    assert keep_heads_together(model) == 0


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('float[b, l, 3, 4] q4', 'float[bl, 1, 3, 4] q4'),  # the length is cut into windows
        ('float[b, l, 3, 4] q4', 'float[?, ?, 3, 4] q4'),  # or may be
        ('vt = Transpose<perm = [0, 2, 1, 3]>(v4)', 'vt = Transpose<perm = [0, 2, 3, 1]>(v4)'),
        ('t = Transpose<perm = [0, 2, 1, 3]>(a)', 't = Transpose<perm = [2, 0, 1, 3]>(a)'),
        ('v4 = Reshape(v, split)', 'v4 = Identity(v)'),
        ('out = Neg(r)', 'x = Neg(a)\n    out = Neg(r)'),  # the heads are needed by themselves
    ],
)
def test_what_is_of_another_form_stays(old, new):
    assert old in MODEL
    model = read(MODEL.replace(old, new))
    before = [node.op_type for node in model.graph]
    assert keep_heads_together(model) == 0
    assert Counter(node.op_type for node in model.graph)['Transpose'] == 4
    assert [kind for kind in before if kind != 'Neg'] == [node.op_type for node in model.graph if node.op_type != 'Neg']


def test_an_exported_text_model_moves_no_heads(tiny_model, tmp_path):
    export(load_encoder(tiny_model), tmp_path / 'model')
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / 'model' / 'model.onnx').graph.node)
    assert kinds['Attention'] > 0
    assert kinds['Transpose'] == 0
