"""The documents that travel between client, Flow and executors, on docarray v2 and with a direct wire codec.

JSON carries every field: `blob` as base64 text, `tensor` and `embedding` as (nested) lists of numbers.
"""

import os
import sys
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from docarray import BaseDoc, DocList
from docarray.typing import ID, NdArray
from pydantic import Field, field_serializer, field_validator, model_validator

from finetuner import codec
from finetuner.excepts import DataError

if TYPE_CHECKING:
    from docarray.proto import DocListProto, DocProto, NodeProto

LABEL = 'finetuner_label'
"""The key of `tags` that holds a document's class."""
MAX_DOCUMENTS = 200_000
"""Documents in one message: two bytes of it may become a document, which has a thousand in memory."""
SCORE = 'finetuner_score'
"""The key of `tags` that holds how similar a pair of documents is."""


class Content(BaseDoc):
    """One piece of content, its embedding and what is known about it. A content may be empty.

    Assigned tensors of torch become numpy arrays on the CPU. A str assigned to `blob` is base64, as it is in JSON.
    """

    text: str | None = None
    uri: str | None = None
    # without a type in the schema, a Flow's gateway passes bytes and base64 text on as they are
    blob: bytes | None = Field(
        default=None,
        json_schema_extra=lambda schema: schema.update(
            anyOf=[{'contentEncoding': 'base64', 'description': 'bytes as base64 text'}, {'type': 'null'}]
        ),
    )
    tensor: NdArray | None = None
    modality: str | None = None
    embedding: NdArray | None = None
    # a gateway rebuilds its class from the schema: without a default there, JSON without tags would be refused
    tags: dict[str, Any] = Field(default_factory=dict, json_schema_extra={'default': {}, 'additionalProperties': True})

    _readers: ClassVar[dict[str, codec.Reader]] = {
        'id': codec.read_id,
        'text': codec.read_text,
        'uri': codec.read_text,
        'blob': codec.read_blob,
        'tensor': codec.read_array,
        'modality': codec.read_text,
        'embedding': codec.read_array,
        'tags': codec.read_tags,
    }
    _writers: ClassVar[dict[str, codec.Writer]] = {
        'id': codec.write_id,
        'text': codec.write_text,
        'uri': codec.write_text,
        'blob': codec.write_blob,
        'tensor': codec.write_array,
        'modality': codec.write_text,
        'embedding': codec.write_array,
        'tags': codec.write_tags,
    }

    @model_validator(mode='before')
    @classmethod
    def _place_content(cls, values: Any) -> Any:
        """`content=` is a text, a blob or a tensor, as it was in docarray v1."""
        if not isinstance(values, dict) or 'content' not in values:
            return values
        values = dict(values)
        content = values.pop('content')
        field = 'text' if isinstance(content, str) else 'blob' if isinstance(content, bytes) else 'tensor'
        return {field: content, **values}

    @field_validator('blob', mode='before')
    @classmethod
    def _decode_blob(cls, value: Any) -> Any:
        return codec.decode_base64(value) if isinstance(value, str) else value

    @field_validator('tensor', 'embedding', mode='before')
    @classmethod
    def _to_array(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, str) else codec.as_array(value)

    @field_serializer('blob', 'tensor', 'embedding', 'tags', when_used='json-unless-none')
    def _to_json(self, value: Any) -> Any:
        return codec.to_json_value(value)

    @classmethod
    def from_protobuf(cls, pb_msg: 'DocProto') -> 'Content':
        """The document of a message that this class or stock docarray wrote.

        :raises DataError: a field's content does not fit it.
        """
        return cls._read(pb_msg, 'document', None)

    def to_protobuf(self) -> 'DocProto':
        """The document as stock docarray would write it.

        :raises DataError: a value has no place in a message, such as an integer in `tags` beyond 32 bits.
        """
        from docarray.proto import DocProto

        message = DocProto()
        self._write(message, 'document', None)
        return message

    @classmethod
    def _read(cls, message: 'DocProto', noun: str, position: int | None) -> Any:
        readers = cls.__dict__.get('_readers')
        if readers is None:  # a subclass may have fields and validators of its own
            return super().from_protobuf(message)
        values = codec.read_fields(message, readers, noun, position)
        given = set(values)
        if len(values) < len(readers):
            values = {**dict.fromkeys(readers), 'id': ID(os.urandom(16).hex()), **values}
        if values['tags'] is None:
            values['tags'] = {}
        # what pydantic does to build an instance, without its validation
        document = cls.__new__(cls)
        assign = object.__setattr__
        assign(document, '__dict__', values)
        assign(document, '__pydantic_fields_set__', given)
        assign(document, '__pydantic_extra__', None)
        assign(document, '__pydantic_private__', None)
        return document

    def _write(self, message: 'DocProto', noun: str, position: int | None) -> None:
        writers = type(self).__dict__.get('_writers')
        values = self.__dict__
        if writers is None or type(values) is not dict:  # a subclass, or a view of a DocVec
            message.CopyFrom(super().to_protobuf())
        else:
            codec.write_fields(message, values, writers, noun, position)

    def model_dump(self, *, mode: str = 'python', **options: Any) -> dict[str, Any]:
        """As pydantic's, and with `mode='json'` chunks are JSON too, which they are not in stock docarray."""
        data = super().model_dump(mode=mode, **options)
        if mode == 'json' and data.get('chunks'):
            data['chunks'] = [chunk.model_dump(mode='json') for chunk in self.chunks]
        return data

    def _docarray_to_json_compatible(self) -> dict[str, Any]:
        return self.model_dump(mode='json')


if TYPE_CHECKING or sys.version_info < (3, 12):
    Contents = DocList[Content]
else:  # there docarray makes an alias that typing cannot evaluate in an annotation; this is the one it makes before
    Contents = typing._GenericAlias(DocList[Content].__origin__, (Content,))


def _read_chunks(node: 'NodeProto', content: str) -> Contents:
    if content == 'doc_array':
        messages = node.doc_array.docs
    elif content == 'list' and all(item.WhichOneof('content') == 'doc' for item in node.list.data):
        messages = [item.doc for item in node.list.data]
    else:
        raise codec.unexpected('documents', content)
    chunks = [Content._read(message, 'chunk', position) for position, message in enumerate(messages)]
    return Contents(chunks, validate_input_docs=False)


def _write_chunks(node: 'NodeProto', value: Sequence[Content]) -> None:
    node.doc_array.SetInParent()
    for position, chunk in enumerate(value):
        chunk._write(node.doc_array.docs.add(), 'chunk', position)


class Document(Content):
    """A content that may be made of others, one level deep."""

    # written out in the schema: out of a reference, the gateway of several executors makes a model that it cannot use
    chunks: Contents | None = Field(
        default=None,
        json_schema_extra=lambda schema: schema.update(
            anyOf=[{'type': 'array', 'items': Content.model_json_schema()}, {'type': 'null'}]
        ),
    )

    _readers: ClassVar[dict[str, codec.Reader]] = {**Content._readers, 'chunks': _read_chunks}
    _writers: ClassVar[dict[str, codec.Writer]] = {**Content._writers, 'chunks': _write_chunks}


class DocumentArray(DocList[Document]):
    """A list of documents: what every endpoint takes and answers."""

    @property
    def texts(self) -> list[str | None]:
        """The documents' texts, None where there is none."""
        return [document.text for document in self]

    @property
    def embeddings(self) -> np.ndarray:
        """The documents' embeddings as one new array [N, D]; float32 [0, 0] if there are no documents.

        :raises DataError: a document has no embedding, or one of another shape than the first.
        """
        if not self:
            return np.empty((0, 0), np.float32)
        rows: list[np.ndarray] = []
        for position, document in enumerate(self):
            if document.embedding is None:
                raise DataError(f'document {position} (id {document.id!r}) has no embedding')
            rows.append(document.embedding.unwrap())
            if rows[-1].shape != rows[0].shape:
                raise DataError(
                    f'document {position} (id {document.id!r}) has an embedding of shape {rows[-1].shape}, '
                    f'document 0 one of {rows[0].shape}'
                )
        return np.stack(rows)

    @embeddings.setter
    def embeddings(self, values: Any) -> None:
        """Give each document one row of [N, D]: the rows share the array's memory.

        :raises DataError: there are not as many rows as documents.
        """
        array = codec.as_array(values)
        if array.ndim < 1 or len(array) != len(self):
            raise DataError(f'{len(self)} documents cannot take embeddings of shape {array.shape}')
        for document, row in zip(self, array, strict=True):
            document.embedding = row

    @classmethod
    def from_protobuf(cls, pb_msg: 'DocListProto') -> 'DocumentArray':
        """The documents of a message that this class or stock docarray wrote.

        :raises DataError: a document's field does not fit it, and the message names the document's position and id; or
            there are more than `MAX_DOCUMENTS`.
        """
        if len(pb_msg.docs) > MAX_DOCUMENTS:
            raise DataError(f'{len(pb_msg.docs)} documents in one message: send at most {MAX_DOCUMENTS} at once')
        read = Document._read
        return cls.construct([read(message, 'document', position) for position, message in enumerate(pb_msg.docs)])

    def to_protobuf(self) -> 'DocListProto':
        """The documents as stock docarray would write them.

        :raises DataError: a value has no place in a message. The message names the document's position and id.
        """
        from docarray.proto import DocListProto

        message = DocListProto()
        add = message.docs.add
        for position, document in enumerate(self):
            document._write(add(), 'document', position)
        return message
