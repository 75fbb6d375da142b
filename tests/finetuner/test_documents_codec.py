"""The direct codec against stock docarray, in both directions, and what it refuses."""

import typing
from typing import Any

import numpy as np
import pytest
from docarray import BaseDoc, DocList
from docarray.proto import DocListProto, DocProto, NodeProto
from docarray.typing import ID, AnyUrl, NdArray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from finetuner.codec import Base64Bytes
from finetuner.documents import Content, Document, DocumentArray
from finetuner.excepts import DataError


class StockContent(BaseDoc):
    text: str | None = None
    uri: str | None = None
    blob: bytes | None = None
    tensor: NdArray | None = None
    modality: str | None = None
    embedding: NdArray | None = None
    tags: dict[str, Any] = {}


class StockDocument(StockContent):
    # as an alias that typing evaluates in an annotation on Python 3.12 too
    chunks: typing._GenericAlias(DocList[StockContent].__origin__, (StockContent,)) | None = None  # type: ignore[misc]


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness='?'),
    hnp.unsigned_integer_dtypes(endianness='?'),
    hnp.floating_dtypes(endianness='?', sizes=(16, 32, 64)),
    hnp.complex_number_dtypes(endianness='?'),
    hnp.datetime64_dtypes(endianness='?'),
    hnp.timedelta64_dtypes(endianness='?'),
    hnp.byte_string_dtypes(max_len=5),
    hnp.unicode_string_dtypes(endianness='?', max_len=5),
    st.sampled_from([np.dtype('longdouble'), np.dtype('V3')]),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
LAYOUTS = st.sampled_from(
    [
        lambda array: array,
        lambda array: array.T,
        lambda array: array[..., ::-1] if array.ndim else array,
        lambda array: array[::2] if array.ndim else array,
        lambda array: np.asfortranarray(array),
        lambda array: np.broadcast_to(array, (2, *array.shape)),
    ]
)


@st.composite
def arrays(draw) -> np.ndarray:
    dtype, shape = draw(DTYPES), draw(SHAPES)
    size = int(np.prod(shape)) * dtype.itemsize
    if dtype.kind in 'SU':
        array = draw(hnp.arrays(dtype, shape))
    else:
        array = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)
    return draw(LAYOUTS)(array)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
)
VALUES = st.recursive(
    SCALARS | arrays() | st.sets(st.text(max_size=3) | st.integers(0, 9), max_size=3),
    lambda values: (
        st.lists(values, max_size=3)
        | st.lists(values, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), values, max_size=3)
    ),
    max_leaves=6,
)
CONTENTS = st.fixed_dictionaries(
    {'id': st.text(min_size=1, max_size=8)},
    optional={
        'text': st.none() | st.text(max_size=20),
        'uri': st.none() | st.text(max_size=20),
        'blob': st.none() | st.binary(max_size=20),
        'tensor': st.none() | arrays(),
        'modality': st.none() | st.sampled_from(['text', 'image']),
        'embedding': st.none() | arrays(),
        'tags': st.dictionaries(st.text(max_size=4), VALUES, max_size=3),
    },
)
DOCUMENTS = st.builds(
    lambda content, chunks: content | chunks,
    CONTENTS,
    st.fixed_dictionaries({}, optional={'chunks': st.none() | st.lists(CONTENTS, max_size=3)}),
)


def same(first: Any, second: Any, dtype_of_empty: bool = True) -> bool:
    """Equal in value, type and, for arrays, in dtype and bits: NaN equals NaN."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        same_dtype = first.dtype.str == second.dtype.str or (not dtype_of_empty and first.size == 0)
        return same_dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
    if isinstance(first, BaseDoc) and isinstance(second, BaseDoc):
        fields = type(first)._docarray_fields()
        return fields.keys() == type(second)._docarray_fields().keys() and all(
            same(getattr(first, name), getattr(second, name), dtype_of_empty) for name in fields
        )
    if isinstance(first, float) and isinstance(second, float):
        return first == second or (first != first and second != second)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key], dtype_of_empty) for key in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return (
            isinstance(first, tuple) == isinstance(second, tuple)
            and len(first) == len(second)
            and all(same(one, other, dtype_of_empty) for one, other in zip(first, second, strict=True))
        )
    return type(first) is type(second) and first == second


def message_bytes(message: Any) -> bytes:
    return message.SerializeToString(deterministic=True)


@settings(deadline=None, max_examples=150)
@given(DOCUMENTS)
def test_single_documents_cross_both_ways(values):
    ours, stock = Document(**values), StockDocument(**values)
    assert message_bytes(ours.to_protobuf()) == message_bytes(stock.to_protobuf())
    assert same(Document.from_bytes(stock.to_bytes()), stock)
    assert same(Document.from_bytes(ours.to_bytes()), ours)
    # stock docarray reads every empty array as float64
    assert same(StockDocument.from_bytes(ours.to_bytes()), ours, dtype_of_empty=False)


@settings(deadline=None, max_examples=50)
@given(st.lists(DOCUMENTS, max_size=4))
def test_arrays_of_documents_cross_both_ways(rows):
    ours = DocumentArray([Document(**values) for values in rows])
    stock = DocList[StockDocument]([StockDocument(**values) for values in rows])
    assert message_bytes(ours.to_protobuf()) == message_bytes(stock.to_protobuf())
    read = DocumentArray.from_bytes(stock.to_bytes())
    assert type(read) is DocumentArray and same(read, stock)
    assert same(DocList[Document].from_bytes(stock.to_bytes()), stock)
    assert same(DocList[StockDocument].from_bytes(ours.to_bytes()), ours, dtype_of_empty=False)


@settings(deadline=None, max_examples=50)
@given(CONTENTS)
def test_contents_cross_both_ways(values):
    ours, stock = Content(**values), StockContent(**values)
    assert same(Content.from_bytes(stock.to_bytes()), stock)
    assert same(StockContent.from_bytes(ours.to_bytes()), ours, dtype_of_empty=False)


@settings(deadline=None, max_examples=50)
@given(arrays())
def test_decoded_arrays_are_writable_copies(array):
    message = Document(embedding=array).to_protobuf()
    first, second = Document.from_protobuf(message), Document.from_protobuf(message)
    assert type(first.embedding) is NdArray
    assert first.embedding.flags.writeable and not np.shares_memory(first.embedding, second.embedding)


def test_the_empty_document_and_the_empty_array():
    assert Document.from_bytes(b'').tags == {}
    assert len(Document.from_bytes(b'').id) == 32
    assert Document.from_bytes(b'').id != Document.from_bytes(b'').id
    assert len(DocumentArray.from_bytes(b'')) == 0
    assert DocumentArray().to_bytes() == b''


def test_tags_of_documents_read_are_not_shared():
    first, second = DocumentArray.from_bytes(DocList[BaseDoc]([BaseDoc(), BaseDoc()]).to_bytes())
    first.tags['a'] = 1
    assert second.tags == {}


def test_set_fields_are_those_of_the_message():
    message = DocProto(data={'id': NodeProto(text='a'), 'text': NodeProto(text='b')})
    assert Document.from_protobuf(message).model_fields_set == {'id', 'text'}
    assert list(Document.from_protobuf(message).__dict__) == list(Document.model_fields)


def test_what_other_stock_classes_send():
    class Other(BaseDoc):
        id: int = 7
        uri: AnyUrl = 'https://example.com/a.png'
        embedding: list[float] = [0.5, 1.5]
        unknown: str = 'dropped'

    read = Document.from_bytes(Other().to_bytes())
    assert (read.id, type(read.id)) == ('7', ID)
    assert read.uri == 'https://example.com/a.png'
    assert read.embedding.tolist() == [0.5, 1.5]
    assert not hasattr(read, 'unknown')


def test_a_list_of_documents_is_read_as_chunks():
    class Listed(BaseDoc):
        chunks: list[StockContent] = []

    read = Document.from_bytes(Listed(chunks=[StockContent(text='a')]).to_bytes())
    assert isinstance(read.chunks, DocList) and type(read.chunks[0]) is Content and read.chunks[0].text == 'a'


def test_torch_tensors_travel_as_arrays():
    torch = pytest.importorskip('torch')
    document = Document(
        tensor=torch.ones(2, 3, requires_grad=True),
        embedding=torch.ones(2, dtype=torch.bfloat16),
        tags={'weights': torch.arange(3)},
    )
    assert document.tensor.dtype == np.float32 and document.embedding.dtype == np.float32
    document.embedding = torch.zeros(4)
    read = Document.from_bytes(document.to_bytes())
    assert read.embedding.shape == (4,)
    assert isinstance(read.tags['weights'], np.ndarray) and read.tags['weights'].tolist() == [0, 1, 2]

    class Torch(BaseDoc):
        embedding: Any = torch.ones(2)

    assert type(Document.from_bytes(Torch().to_bytes()).embedding) is NdArray


def test_numpy_scalars_in_tags_become_python_numbers():
    tags = {'a': np.float32(0.5), 'b': np.int64(3), 'c': np.bool_(True)}
    assert Document.from_bytes(Document(tags=tags).to_bytes()).tags == {'a': 0.5, 'b': 3, 'c': True}


def test_base64_text_in_blob_comes_back_as_it_came():
    message = DocProto(data={'blob': NodeProto(text='AP/+')})
    document = Document.from_protobuf(message)
    assert document.blob == b'\x00\xff\xfe'
    assert document.to_protobuf().data['blob'].text == 'AP/+'
    document.blob = bytes(document.blob)
    assert document.to_protobuf().data['blob'].blob == b'\x00\xff\xfe'
    assert Document.from_protobuf(DocProto(data={'blob': NodeProto(text='AP_-')})).blob == b'\x00\xff\xfe'
    assert Document(blob=Base64Bytes(b'a')).to_protobuf().data['blob'].text == 'YQ=='


def test_subclasses_keep_their_own_fields_and_validation():
    class Priced(Document):
        price: float = 0.0
        embedding: NdArray[2] | None = None

    priced = Priced(id='a', text='b', price=1.5, embedding=[1.0, 2.0], chunks=[{'text': 'c'}], blob=b'\xff')
    read = Priced.from_bytes(priced.to_bytes())
    assert type(read) is Priced and same(read, priced)
    assert Document.from_bytes(priced.to_bytes()).text == 'b'
    assert DocumentArray.from_bytes(DocumentArray([priced]).to_bytes())[0].chunks[0].text == 'c'


def array_node(buffer: bytes, shape: list[int], dtype: str) -> NodeProto:
    node = NodeProto(type='ndarray')
    node.ndarray.dense.buffer, node.ndarray.dense.dtype = buffer, dtype
    node.ndarray.dense.shape.extend(shape)
    return node


def list_node(kind: str, *items: NodeProto) -> NodeProto:
    node = NodeProto()
    getattr(node, kind).data.extend(items)
    return node


def dict_node(**items: NodeProto) -> NodeProto:
    node = NodeProto()
    for key, item in items.items():
        node.dict.data[key].CopyFrom(item)
    return node


MALFORMED = [
    ('text', NodeProto(integer=3), 'expected text, got an integer'),
    ('uri', NodeProto(blob=b'a'), 'expected text, got bytes'),
    ('modality', NodeProto(boolean=True), 'expected text, got a boolean'),
    ('id', NodeProto(float=1.0), 'expected text, got a float'),
    ('blob', NodeProto(integer=1), 'expected bytes, or base64 text, got an integer'),
    ('blob', NodeProto(text='not base64!'), 'the text is not base64'),
    ('blob', NodeProto(text='ü'), 'the text is not base64'),
    ('embedding', NodeProto(text='[1]'), 'expected an array, got text'),
    ('embedding', array_node(b'1234', [2], '<f4'), r'shape \(2,\) and dtype .<f4. takes 8 bytes, its buffer has 4'),
    ('embedding', array_node(b'12345678', [1], '<f4'), 'takes 4 bytes, its buffer has 8'),
    ('embedding', array_node(b'', [3], '<f4'), 'takes 12 bytes, its buffer has 0'),
    ('embedding', array_node(b'', [2**32 - 1] * 4, '<f4'), 'its buffer has 0'),
    ('embedding', array_node(b'', [0, 2**32 - 1, 2**32 - 1, 2**32 - 1], '<f4'), ''),
    ('tensor', array_node(b'12345678', [1], '|O'), 'Python objects'),
    ('tensor', array_node(b'1234', [1], 'nonsense'), 'not a numpy dtype'),
    ('tensor', array_node(b'1234', [1], ''), ''),
    ('tensor', list_node('list', NodeProto(text='a')), 'expected numbers'),
    ('tensor', list_node('list', list_node('list'), NodeProto(integer=1)), 'lengths differ'),
    ('tags', NodeProto(text='a'), 'expected a dict, got text'),
    ('tags', list_node('list'), 'expected a dict, got a list'),
    ('tags', dict_node(a=dict_node(b=NodeProto(doc=DocProto()))), "key 'a': key 'b': a document cannot be nested"),
    ('tags', dict_node(a=array_node(b'1', [2], '<f4')), "key 'a': .* its buffer has 1"),
    ('tags', dict_node(a=list_node('set', list_node('list'))), "key 'a': a set cannot hold"),
    ('chunks', NodeProto(text='a'), 'expected documents, got text'),
    ('chunks', NodeProto(doc=DocProto()), 'expected documents, got a document'),
    ('chunks', list_node('list', NodeProto(text='a')), 'expected documents, got a list'),
]


@pytest.mark.parametrize(('field', 'node', 'reason'), MALFORMED)
def test_malformed_messages_are_refused_by_place(field, node, reason):
    good, bad = Document(id='good').to_protobuf(), DocProto(data={'id': NodeProto(text='broken'), field: node})
    identity = '' if field == 'id' else r" \(id 'broken'\)"
    with pytest.raises(DataError, match=f'^document{identity}, field {field!r}: .*{reason}'):
        Document.from_protobuf(bad)
    with pytest.raises(DataError, match=f'^document 1{identity}, field {field!r}: .*{reason}'):
        DocumentArray.from_protobuf(DocListProto(docs=[good, bad]))


def test_malformed_chunks_are_named():
    chunk = DocProto(data={'id': NodeProto(text='inner'), 'text': NodeProto(integer=1)})
    bad = DocProto(data={'chunks': NodeProto(doc_array=DocListProto(docs=[DocProto(), chunk]))})
    with pytest.raises(DataError, match=r"^document, field 'chunks': chunk 1 \(id 'inner'\), field 'text': expected"):
        Document.from_protobuf(bad)


UNWRITABLE = [
    ({'a': {'b': [2**31]}}, "key 'a': key 'b': 2147483648 is beyond the 32 bits"),
    ({'a': -(2**31) - 1}, "key 'a': -2147483649 is beyond"),
    ({'a': {1: 2}}, "key 'a': key 1 is not a str"),
    ({'a': object()}, "key 'a': object values cannot travel"),
    ({'a': Document()}, "key 'a': Document cannot be nested"),
    ({'a': np.array([None])}, "key 'a': arrays of dtype object"),
    ({'a': '\ud800'}, "key 'a': .*surrogates"),
]


@pytest.mark.parametrize(('tags', 'reason'), UNWRITABLE)
def test_tags_that_cannot_travel_are_refused_by_place(tags, reason):
    bad = Document(id='broken', tags=tags)
    with pytest.raises(DataError, match=rf"^document \(id 'broken'\), field 'tags': {reason}"):
        bad.to_protobuf()
    with pytest.raises(DataError, match=rf"^document 1 \(id 'broken'\), field 'tags': {reason}"):
        DocumentArray([Document(), bad]).to_bytes()


def test_tags_that_contain_themselves_are_refused():
    bad = Document(id='broken')
    bad.tags['again'] = bad.tags
    with pytest.raises(DataError, match=r"^document \(id 'broken'\), field 'tags' nests deeper than 20 levels"):
        bad.to_protobuf()


@pytest.mark.parametrize('wrap', [lambda value: {'a': value}, lambda value: [value]])
def test_tags_travel_as_deep_as_a_message_holds_them(wrap):
    value = 'deep'
    for _ in range(19):
        value = wrap(value)
    fine = Document(id='fine', chunks=[Content(tags={'a': value})])
    sent = DocumentArray.from_bytes(DocumentArray([fine]).to_bytes())
    assert sent[0].chunks[0].tags == {'a': value}
    with pytest.raises(DataError, match=r"^document 1 \(id 'deep'\), field 'tags' nests deeper than 20 levels"):
        DocumentArray([fine, Document(id='deep', tags={'a': wrap(value)})]).to_bytes()


def test_values_set_past_validation_are_refused_by_place():
    with pytest.raises(DataError, match="field 'text'"):
        Document.model_construct(id='a', text=3).to_protobuf()
    with pytest.raises(DataError, match="chunk 1 .*field 'blob'"):
        Document(chunks=[Content(), Content.model_construct(blob=[])]).to_protobuf()
