"""Documents as a user of Python and of JSON meets them."""

import json
import pickle

import numpy as np
import pytest
from docarray import DocList
from docarray.proto import DocListProto
from pydantic import ValidationError

from finetuner.documents import LABEL, SCORE, Content, Document, DocumentArray
from finetuner.excepts import DataError


@pytest.fixture
def document() -> Document:
    return Document(
        id='a',
        text='ü',
        uri='https://example.com',
        blob=b'\x00\xff',
        tensor=np.arange(4, dtype='>i2').reshape(2, 2),
        modality='text',
        embedding=[0.5, 1.5],
        tags={LABEL: 'x', SCORE: 0.5, 'nested': {'list': [1, None, True, {'deep': 'ü'}]}},
        chunks=[Content(id='c', text='part', blob=b'\xfe', embedding=np.ones(2, 'f4'))],
    )


JSON = {
    'id': 'a',
    'text': 'ü',
    'uri': 'https://example.com',
    'blob': 'AP8=',
    'tensor': [[0, 1], [2, 3]],
    'modality': 'text',
    'embedding': [0.5, 1.5],
    'tags': {'finetuner_label': 'x', 'finetuner_score': 0.5, 'nested': {'list': [1, None, True, {'deep': 'ü'}]}},
    'chunks': [
        {
            'id': 'c',
            'text': 'part',
            'uri': None,
            'blob': '/g==',
            'tensor': None,
            'modality': None,
            'embedding': [1.0, 1.0],
            'tags': {},
        }
    ],
}


def test_json_carries_every_field(document, recwarn):
    assert json.loads(document.json()) == JSON
    assert json.loads(document.to_json()) == JSON
    assert document.model_dump(mode='json') == JSON
    assert json.loads(DocumentArray([document]).to_json()) == [JSON]
    assert not [warning for warning in recwarn if 'serialized value' in str(warning.message)]


@pytest.mark.parametrize(
    'read',
    [
        Document.model_validate,
        Document.parse_obj,
        lambda values: Document(**values),
        lambda values: Document.model_validate_json(json.dumps(values)),
        lambda values: Document.from_json(json.dumps(values)),
        lambda values: DocumentArray.from_json(json.dumps([values]))[0],
    ],
)
def test_json_is_read_back(document, read):
    assert read(JSON) == document
    assert isinstance(read(JSON).chunks, DocList) and read(JSON).chunks[0].blob == b'\xfe'


def test_json_of_tags_that_json_lacks():
    tags = {'array': np.ones(2), 'scalar': np.float32(0.5), 'bytes': b'\xff', 'set': {1}, 'tuple': (1, b'\x00')}
    written = json.loads(Document(tags=tags).json())['tags']
    assert written == {'array': [1.0, 1.0], 'scalar': 0.5, 'bytes': '/w==', 'set': [1], 'tuple': [1, 'AA==']}


def test_fields_default_to_nothing():
    first, second = Document(), Document()
    assert first.id != second.id and first.tags == {} and first.tags is not second.tags
    names = ('text', 'uri', 'blob', 'tensor', 'modality', 'embedding', 'chunks')
    assert all(getattr(first, name) is None for name in names)


@pytest.mark.parametrize('value', [5, 'x', ['a'], [[1], [1, 2]], [None], np.array([None]), {'a': 1}])
def test_what_is_no_array_is_refused(value):
    with pytest.raises(ValidationError, match='embedding'):
        Document(embedding=value)
    with pytest.raises(ValidationError, match='tensor'):
        Document().tensor = value


def test_a_str_as_blob_is_base64():
    assert Document(blob='aGk=').blob == b'hi'
    with pytest.raises(ValidationError, match='blob(.|\n)*not base64'):
        Document(blob='hi there')


def test_an_array_of_documents():
    documents = DocumentArray([Document(text='a'), Document(), Document(text='c')])
    assert documents.texts == ['a', None, 'c']
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    documents.embeddings = matrix
    assert documents[1].embedding.tolist() == [2.0, 3.0] and documents[1].embedding.shape == (2,)
    assert type(documents.embeddings) is np.ndarray and documents.embeddings.dtype == np.float32
    assert np.array_equal(documents.embeddings, matrix)
    assert type(documents[1:]) is DocumentArray and documents[1:].texts == [None, 'c']
    assert pickle.loads(pickle.dumps(documents)) == documents
    assert DocumentArray().embeddings.shape == (0, 0)


def test_embeddings_name_the_document_without_one():
    documents = DocumentArray([Document(embedding=[1.0]), Document(id='b')])
    with pytest.raises(DataError, match=r"document 1 \(id 'b'\) has no embedding"):
        _ = documents.embeddings
    documents[1].embedding = [1.0, 2.0]
    with pytest.raises(DataError, match=r"document 1 \(id 'b'\) has an embedding of shape \(2,\), document 0 .*\(1,\)"):
        _ = documents.embeddings
    with pytest.raises(DataError, match=r'2 documents cannot take embeddings of shape \(3, 2\)'):
        documents.embeddings = np.ones((3, 2))


def test_a_message_has_a_bounded_number_of_documents():
    message = DocListProto()
    message.MergeFromString(b'\x0a\x00' * 200_001)  # two bytes for each
    with pytest.raises(DataError, match='200001 documents in one message: send at most 200000 at once'):
        DocumentArray.from_protobuf(message)


def test_only_documents_go_into_the_array():
    with pytest.raises(ValueError, match='is not a'):
        DocumentArray([Content()])


@pytest.mark.parametrize(
    ('content', 'field'), [('words', 'text'), (b'bytes', 'blob'), (np.ones(3, np.float32), 'tensor')]
)
def test_content_is_what_it_is(content, field):
    document = Document(content=content)
    assert np.array_equal(getattr(document, field), content)
