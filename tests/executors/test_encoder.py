"""FinetunerExecutor: what clients may make it read."""

from __future__ import annotations

import asyncio
import base64
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from executors.encoder import FinetunerExecutor
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import BusyError, DataError, ParameterError
from finetuner.inference.image_encoder import ImageEncoder


@pytest.fixture(scope='module')
def model_directory(tmp_path_factory):
    torch.manual_seed(0)
    encoder = ImageEncoder.load('timm/test_resnet', pretrained=False, preprocess_options={'size': 32})
    return encoder.save(tmp_path_factory.mktemp('model'))


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    (tmp_path / 'allowed').mkdir()
    Image.fromarray(pixels).save(tmp_path / 'allowed' / 'picture.png')
    Image.fromarray(pixels).save(tmp_path / 'secret.png')
    return tmp_path / 'allowed' / 'picture.png'


def encode(executor, **content):
    documents = DocumentArray([Document(id='a', **content)])
    return asyncio.run(executor.encode(docs=documents, parameters={}))[0].embedding


def test_images_come_with_the_request(model_directory, picture):
    executor = FinetunerExecutor(str(model_directory))
    sent = encode(executor, blob=picture.read_bytes())
    np.testing.assert_allclose(encode(executor, tensor=np.asarray(Image.open(picture))), sent, atol=1e-5)


def test_the_precision_is_an_argument_or_that_of_the_environment(model_directory, picture, monkeypatch):
    exact = encode(FinetunerExecutor(str(model_directory)), blob=picture.read_bytes())
    reduced = encode(FinetunerExecutor(str(model_directory), precision='bf16'), blob=picture.read_bytes())
    assert not np.array_equal(reduced, exact)
    assert np.dot(reduced, exact) / np.linalg.norm(reduced) / np.linalg.norm(exact) > 0.999
    monkeypatch.setenv('FINETUNER_PRECISION', 'bf16')
    np.testing.assert_array_equal(encode(FinetunerExecutor(str(model_directory)), blob=picture.read_bytes()), reduced)
    monkeypatch.setenv('FINETUNER_PRECISION', 'int4')
    with pytest.raises(ValueError, match="precision is 'int4': choose fp32, bf16, fp16"):
        FinetunerExecutor(str(model_directory))


@pytest.mark.parametrize('uri', ['{}', 'file://{}', 'picture.png', '/etc/passwd', 'http://localhost:1/a.png'])
def test_files_of_the_service_are_not_read(model_directory, picture, uri, monkeypatch):
    monkeypatch.chdir(picture.parent)
    executor = FinetunerExecutor(str(model_directory))
    with pytest.raises(DataError, match=r"document 0 \(id 'a'\) cannot be read: "):
        encode(executor, uri=uri.format(picture))


def test_files_below_the_roots_are_read(model_directory, picture, monkeypatch):
    monkeypatch.setenv('FINETUNER_ENCODE_ROOTS', str(picture.parent))
    executor = FinetunerExecutor(str(model_directory))
    sent = encode(executor, blob=picture.read_bytes())
    np.testing.assert_allclose(encode(executor, uri=str(picture)), sent, atol=1e-5)
    for uri in (str(picture.parent.parent / 'secret.png'), f'{picture.parent}/../secret.png'):
        with pytest.raises(DataError, match='not below a folder that this service may read'):
            encode(executor, uri=uri)
    executor = FinetunerExecutor(str(model_directory), encode_roots=[])
    with pytest.raises(DataError, match='cannot be read'):
        encode(executor, uri=str(picture))


def test_what_ingest_may_read_is_not_read_here(model_directory, picture, monkeypatch):
    monkeypatch.setenv('FINETUNER_INGEST_ROOTS', str(picture.parent))
    monkeypatch.setenv('FINETUNER_INGEST_SCHEMES', 'file,http')
    executor = FinetunerExecutor(str(model_directory))
    with pytest.raises(DataError, match='not below a folder that this service may read'):
        encode(executor, uri=str(picture))
    with pytest.raises(DataError, match='http:// URIs are not read here'):
        encode(executor, uri='http://localhost:1/a.png')
    content = base64.b64encode(picture.read_bytes()).decode()
    sent = encode(executor, blob=picture.read_bytes())
    np.testing.assert_array_equal(encode(executor, uri=f'data:image/png;base64,{content}'), sent)


def test_urls_of_an_allowed_scheme_are_fetched(model_directory, monkeypatch):
    monkeypatch.setenv('FINETUNER_ENCODE_SCHEMES', 'http')
    with pytest.raises(DataError, match='Connection refused'):
        encode(FinetunerExecutor(str(model_directory)), uri='http://localhost:1/a.png')


def answer(executor, documents, **parameters):
    return asyncio.run(executor.encode(docs=DocumentArray(documents), parameters=parameters))


def test_a_document_that_cannot_be_read_can_fail_alone(model_directory, picture, monkeypatch):
    executor = FinetunerExecutor(str(model_directory))
    good = picture.read_bytes()
    documents = [Document(blob=good), Document(blob=good[:50]), Document(text='no image'), Document(blob=good)]
    with pytest.raises(DataError, match='document 2 .* has no image to encode'):
        answer(executor, documents)
    with pytest.raises(DataError, match='document 1 .* cannot be decoded'):
        answer(executor, documents[:2])
    first, second, third, last = answer(executor, documents, on_error='tag')
    np.testing.assert_array_equal(first.embedding, last.embedding)
    assert second.embedding is None and 'document 1 ' in second.tags['finetuner_error']
    assert third.embedding is None and 'has no image to encode' in third.tags['finetuner_error']
    assert first.tags == last.tags == {}
    monkeypatch.setenv('FINETUNER_ENCODE_ROOTS', str(picture.parent))
    executor = FinetunerExecutor(str(model_directory))
    uris = [str(picture), f'{picture.parent}/{300 * "a"}.png']
    first, second = answer(executor, [Document(uri=uri) for uri in uris], on_error='tag')
    assert first.embedding is not None and 'File name too long' in second.tags['finetuner_error']


def test_what_was_sent_comes_back_when_it_is_asked_for(model_directory, picture):
    executor = FinetunerExecutor(str(model_directory))
    blob = picture.read_bytes()
    document = {'id': 'a', 'blob': blob, 'text': 'kept', 'tags': {'kept': 1}}
    [bare] = answer(executor, [Document(**document)])
    assert (bare.id, bare.text, bare.tags, bare.blob) == ('a', 'kept', {'kept': 1}, None)
    [whole] = answer(executor, [Document(**document)], return_content=True)
    assert whole.blob == blob
    content = base64.b64encode(blob).decode()
    [linked] = answer(executor, [Document(uri=f'data:image/png;base64,{content}')])
    assert linked.uri is None and linked.embedding is not None


def test_embeddings_are_cut_and_normalized(model_directory, picture):
    executor = FinetunerExecutor(str(model_directory))
    documents = [Document(blob=picture.read_bytes())]
    whole = answer(executor, documents)[0].embedding
    short = answer(executor, [Document(blob=picture.read_bytes())], truncate_dim=4, normalize=True)[0].embedding
    np.testing.assert_allclose(short, whole[:4] / np.linalg.norm(whole[:4]), rtol=1e-6)
    with pytest.raises(ParameterError, match="'truncate_dim' is 9999: the model has"):
        answer(executor, [Document(blob=picture.read_bytes())], truncate_dim=9999)


def test_requests_at_the_same_time_are_computed_together(tiny_model):
    executor = FinetunerExecutor(str(tiny_model))
    engine = executor.served.models.of_texts().engine
    sizes, run = [], engine.embed

    def embed(features):
        sizes.append(len(features))
        return run(features)

    engine.embed = embed
    words = ['card', 'lost', 'my', 'where', 'the'] * 20

    async def ask(text):
        # as Jina calls it
        answered = await executor.__acall__(
            '/encode', docs=DocumentArray([Document(text=text)]), parameters={}, tracing_context=None
        )
        return answered[0]

    async def ask_all():
        return await asyncio.gather(*map(ask, words))

    answers = asyncio.run(ask_all())
    assert [document.text for document in answers] == words
    assert sum(sizes) == 100 and len(sizes) < 50
    np.testing.assert_allclose([a.embedding for a in answers], engine.encode_texts(words), atol=1e-6)
    executor.close()


def test_ids_may_repeat_and_the_order_is_kept(tiny_model):
    executor = FinetunerExecutor(str(tiny_model))
    words = ['my card', 'lost', 'a much longer text than the others', '', 'lost']
    found = answer(executor, [Document(id='same', text=text) for text in words])
    assert [document.text for document in found] == words and {document.id for document in found} == {'same'}
    np.testing.assert_allclose(
        found.embeddings, executor.served.models.of_texts().engine.encode_texts(words), atol=1e-6
    )
    executor.close()


def test_parameters_that_differ_leave_nothing_behind(tiny_model):
    executor = FinetunerExecutor(str(tiny_model))

    def state():
        model = executor.served.models.of_texts()
        return threading.active_count(), model.items, model.waiting, len(model._batcher._jobs)

    answer(executor, [Document(text='a')])
    asyncio.run(_many(executor))
    before = state()
    asyncio.run(_many(executor))
    assert state() == before
    executor.close()


async def _many(executor):
    calls = [
        executor.encode(DocumentArray([Document(text='a')]), {'timeout': 60 + number / 7, 'limit': number})
        for number in range(500)
    ]
    await asyncio.gather(*calls)


def test_a_request_that_finds_no_room_is_told_to_try_again(tiny_model):
    executor = FinetunerExecutor(str(tiny_model), max_documents=10)
    documents = DocumentArray([Document(text='a')] * 8)

    async def ask_twice():
        calls = [executor.encode(DocumentArray(documents), {}) for _ in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second = asyncio.run(ask_twice())
    assert len(first) == 8
    assert isinstance(second, BusyError) and 'try again in a moment' in str(second)
    assert len(answer(executor, documents)) == 8
    executor.close()


def test_one_bad_request_of_twelve_fails_alone(model_directory, picture):
    executor = FinetunerExecutor(str(model_directory))
    good = picture.read_bytes()

    async def ask_all():
        blobs = [good[:50] if number == 5 else good for number in range(12)]
        calls = [executor.encode(DocumentArray([Document(blob=blob)]), {}) for blob in blobs]
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(ask_all())
    assert isinstance(answers.pop(5), DataError)
    np.testing.assert_allclose([found[0].embedding for found in answers], [answers[0][0].embedding] * 11, atol=1e-6)
    executor.close()


def cached(executor, outcome):
    labels = {'outcome': outcome}
    return executor._metrics.registry.get_sample_value('finetuner_encode_cache_lookups_total', labels) or 0


def test_a_content_that_comes_again_is_not_computed_again(model_directory, picture, monkeypatch):
    monkeypatch.setenv('FINETUNER_ENCODE_CACHE_BYTES', str(1 << 20))
    executor = FinetunerExecutor(str(model_directory))
    blob = picture.read_bytes()
    fresh = encode(FinetunerExecutor(str(model_directory), cache_bytes=0), blob=blob)
    first = encode(executor, blob=blob)
    np.testing.assert_array_equal(first, fresh)
    first[:] = 0  # what a caller has is its own
    np.testing.assert_array_equal(encode(executor, blob=blob), fresh)
    [short] = answer(executor, [Document(blob=blob)], truncate_dim=4, normalize=True)
    np.testing.assert_allclose(short.embedding, fresh[:4] / np.linalg.norm(fresh[:4]), rtol=1e-6)
    bad = [Document(blob=blob), Document(blob=blob[:50]), Document(blob=blob[:50])]
    whole, *broken = answer(executor, bad, on_error='tag')
    np.testing.assert_array_equal(whole.embedding, fresh)
    for number, document in enumerate(broken, 1):
        assert document.embedding is None and f'document {number} ' in document.tags['finetuner_error']
    assert (cached(executor, 'miss'), cached(executor, 'hit')) == (3, 3)
    size = executor._metrics.registry.get_sample_value('finetuner_encode_cache_bytes')
    assert len(fresh) * 4 < size < 1 << 20


def test_a_file_that_changes_is_read_again(model_directory, picture):
    executor = FinetunerExecutor(str(model_directory), encode_roots=[str(picture.parent)], cache_bytes=1 << 20)
    before = encode(executor, uri=str(picture))
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save(picture)
    after = encode(executor, uri=str(picture))
    assert not np.allclose(before, after, atol=1e-3)
    np.testing.assert_array_equal(after, encode(executor, blob=picture.read_bytes()))


def test_tokens_are_counted_for_what_is_cached_too(tiny_model):
    executor = FinetunerExecutor(str(tiny_model), cache_bytes=1 << 20)
    texts = DocumentArray([Document(text='["my card", "lost", "my card"]')])
    first, second = (asyncio.run(executor.encode_texts(docs=texts, parameters={}))[0] for _ in range(2))
    assert first.blob == second.blob and first.tags == second.tags and first.tags['tokens'] > 6
    assert (cached(executor, 'miss'), cached(executor, 'shared'), cached(executor, 'hit')) == (2, 1, 3)
    executor.close()


@pytest.mark.parametrize('size', [-1, 0.5, '1GB', True])
def test_the_cache_has_a_number_of_bytes(tiny_model, size):
    with pytest.raises(ParameterError, match='cache_bytes is .*: it is a number of bytes, and 0 for no cache'):
        FinetunerExecutor(str(tiny_model), cache_bytes=size)
