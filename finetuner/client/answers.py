"""Reading the documents that services answer with, without docarray, which takes seconds to import beside torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetuner.client import wire_pb2 as wire


@dataclass(frozen=True)
class Answer:
    """What an answering document carries."""

    text: str | None = None
    blob: bytes | None = None
    tags: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_document(cls, document: bytes | wire.Document) -> Answer:
        """:param document: a `docarray.DocProto`, serialized or read."""
        if isinstance(document, bytes):
            document = wire.Document.FromString(document)
        fields = {name: document.data[name] for name in ('text', 'blob', 'tags') if name in document.data}
        return cls(**{name: value for name, node in fields.items() if (value := _read(node)) is not None})


def read_answers(docs: bytes) -> list[Answer]:
    """:param docs: a serialized `docarray.DocListProto`."""
    return [Answer.from_document(document) for document in wire.DocumentList.FromString(docs).docs]


def encode_tags(tags: Mapping[str, Any]) -> bytes:
    """A serialized `docarray.DocProto` with `tags`, each a string, number, boolean or None."""
    document = wire.Document()
    entries = document.data['tags'].entries
    entries.SetInParent()
    for name, value in tags.items():
        entries.data[name].CopyFrom(_write(value))
    return document.SerializeToString()


def _read(node: wire.Node) -> Any:
    kind = node.WhichOneof('content')
    if kind is None:
        return None
    if kind == 'entries':
        return {name: _read(node.entries.data[name]) for name in sorted(node.entries.data)}  # else in any order
    if kind == 'items':
        return [_read(value) for value in node.items.data]
    return getattr(node, kind)


def _write(value: str | int | float | bool | None) -> wire.Node:
    if value is None:
        return wire.Node()
    if isinstance(value, bool):
        return wire.Node(flag=value)
    if isinstance(value, int) and abs(value) < 2**31:
        return wire.Node(integer=value)
    if isinstance(value, int | float):
        return wire.Node(number=value)
    return wire.Node(text=value)
