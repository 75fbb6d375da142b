"""Attention in ONNX models, as onnxruntime computes it fastest."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

_HEADS_FIRST = [0, 2, 1, 3]


@dataclass(frozen=True)
class _Split:
    """[batch, length, heads * dim] that is taken as [batch, length, heads, dim]."""

    whole: ir.Value
    heads: int


def keep_heads_together(model: ir.Model) -> int:
    """Let Attention take and give [batch, length, heads * dim] where the model moves the heads before the length for
    it, and back: the operator takes both (https://onnx.ai/onnx/operators/onnx__Attention.html), and four copies of all
    numbers in each layer are saved. What is not exactly of this form stays as it is.

    :return: how many were changed.
    """
    changed = sum([_keep_together(node) for node in list(model.graph) if _is(node, 'Attention')])
    if changed:
        RemoveUnusedNodesPass()(model)  # what moved the heads
    return changed


def _keep_together(attention: ir.Node) -> bool:
    queries, keys, values = (_taken(value) for value in attention.inputs[:3])
    given = _given(attention.outputs[0])
    if not (queries and keys and values and given) or keys.heads != values.heads or len(attention.outputs) > 1:
        return False
    for position, split in enumerate((queries, keys, values)):
        attention.replace_input_with(position, split.whole)
    attention.attributes['q_num_heads'] = ir.AttrInt64('q_num_heads', queries.heads)
    attention.attributes['kv_num_heads'] = ir.AttrInt64('kv_num_heads', keys.heads)
    attention.outputs[0].shape = given.whole.shape
    given.whole.replace_all_uses_with(attention.outputs[0])
    return True


def _taken(value: ir.Value | None) -> _Split | None:
    """What [batch, heads, length, dim] is made of, if it is made of [batch, length, heads * dim]."""
    transpose = _maker(value, 'Transpose')
    reshape = None if transpose is None or not _moves_heads(transpose) else _maker(transpose.inputs[0], 'Reshape')
    return None if reshape is None else _split(reshape.inputs[0], reshape.outputs[0])


def _given(value: ir.Value) -> _Split | None:
    """What is made of [batch, heads, length, dim], if that is [batch, length, heads * dim]."""
    transpose = _only_user(value, 'Transpose')
    reshape = None if transpose is None or not _moves_heads(transpose) else _only_user(transpose.outputs[0], 'Reshape')
    return None if reshape is None else _split(reshape.outputs[0], reshape.inputs[0])


def _moves_heads(transpose: ir.Node) -> bool:
    perm = transpose.attributes.get('perm')
    return perm is not None and list(perm.as_ints()) == _HEADS_FIRST


def _is(node: ir.Node, kind: str) -> bool:
    return node.op_type == kind and node.domain == ''


def _maker(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and _is(node, kind) else None


def _only_user(value: ir.Value, kind: str) -> ir.Node | None:
    users = [usage.node for usage in value.uses()]
    return users[0] if len(users) == 1 and _is(users[0], kind) and not value.is_graph_output() else None


def _split(whole: ir.Value | None, parts: ir.Value | None) -> _Split | None:
    """[batch, length, heads * dim] and [batch, length, heads, dim], if they are that."""
    if whole is None or parts is None or whole.shape is None or parts.shape is None or whole.is_graph_output():
        return None
    before, after = list(whole.shape), list(parts.shape)
    if len(before) != 3 or len(after) != 4 or before[:2] != after[:2] or not all(map(_is_known, before)):
        return None
    width, heads, dim = before[2], after[2], after[3]
    if not (isinstance(width, int) and isinstance(heads, int) and isinstance(dim, int)) or width != heads * dim:
        return None
    return _Split(whole, heads)


def _is_known(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) or dim.value is not None
