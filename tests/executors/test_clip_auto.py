"""FinetunerExecutor with `select_model: auto`: one process that takes texts and images for a CLIP model."""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from executors.encoder import FinetunerExecutor
from finetuner.artifact import ModelInfo, pack
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import BusyError, DataError, ParameterError, SelectModelRequired
from finetuner.inference import load_engine
from finetuner.inference.backbones import load_encoders, save_encoders

TEXTS = ['red', 'a red cap', '', 'something else']


@pytest.fixture(scope='module')
def artifact(tiny_clip, tmp_path_factory):
    """The zip of a CLIP model, as a run makes it, without ONNX models."""
    folder = tmp_path_factory.mktemp('clip')
    encoders = load_encoders(tiny_clip)
    save_encoders(encoders, folder / 'models')
    models = {
        'clip-text': ModelInfo(dim=24, max_length=16),
        'clip-vision': ModelInfo(dim=24, preprocess_types=('image',)),
    }
    return pack(folder, folder / 'run.zip', name='run', config={}, metrics={}, models=models)


@pytest.fixture(scope='module')
def blobs():
    pictures = []
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 30, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, 'PNG')
        pictures.append(file.getvalue())
    return pictures


@pytest.fixture(scope='module')
def expected(artifact, blobs):
    """What the two models make of the texts and the pictures, each by itself."""
    texts = load_engine(artifact, select_model='clip-text').encode_texts(TEXTS)
    return texts, load_engine(artifact, select_model='clip-vision').encode_contents(blobs)


@pytest.fixture(scope='module')
def executor(artifact):
    executor = FinetunerExecutor(str(artifact), select_model='auto')
    yield executor
    models, deadline = executor.served.models, time.monotonic() + 5
    while models.waiting and time.monotonic() < deadline:  # the model's threads drop what was given up
        time.sleep(0.01)
    assert models.items == models.waiting == 0
    executor.close()


def answer(executor, documents, **parameters):
    return asyncio.run(executor.encode(docs=DocumentArray(documents), parameters=parameters))


def close_to(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_texts_and_images_of_one_request_are_answered_in_order(executor, blobs, expected):
    documents, wanted = [], []
    for text, blob, text_embedding, image_embedding in zip(TEXTS, blobs, *expected, strict=True):
        documents += [Document(id='same', text=text), Document(id='same', blob=blob)]
        wanted += [text_embedding, image_embedding]
    order = np.random.default_rng(0).permutation(len(documents))
    found = answer(executor, [documents[position] for position in order])
    close_to(found.embeddings, [wanted[position] for position in order])
    assert found.embeddings.dtype == np.float32
    [short] = answer(executor, [Document(text='red')], truncate_dim=4, normalize=True)
    close_to(short.embedding, expected[0][0][:4] / np.linalg.norm(expected[0][0][:4]))
    with pytest.raises(ParameterError, match="'truncate_dim' is 25: the model has 24 dimensions"):
        answer(executor, [Document(text='red')], truncate_dim=25)


def test_a_request_may_be_of_one_kind_or_empty(executor, blobs, expected):
    close_to(answer(executor, [Document(text=text) for text in TEXTS]).embeddings, expected[0])
    close_to(answer(executor, [Document(blob=blob) for blob in blobs]).embeddings, expected[1])
    assert len(answer(executor, [])) == 0


def test_what_a_document_holds_says_where_it_goes(executor, blobs, expected):
    (red, *_), (picture, *_) = expected
    uri = f'data:image/png;base64,{base64.b64encode(blobs[0]).decode()}'
    pixels = np.asarray(Image.open(io.BytesIO(blobs[0])))
    for document, wanted in (
        (Document(uri=uri), picture),
        (Document(tensor=pixels), picture),
        (Document(text='red', blob=blobs[0]), red),
        (Document(text='', blob=blobs[0]), picture),
        (Document(text='red', blob=blobs[0], modality='image'), picture),
        (Document(text='red', blob=blobs[0], modality='text'), red),
    ):
        close_to(answer(executor, [document])[0].embedding, wanted)


def test_each_bad_document_fails_alone(executor, blobs, expected):
    contents = [
        {'text': 'red'},
        {'blob': blobs[0][:60]},
        {'text': 'half \ud800'},
        {},
        {'blob': blobs[0]},
        {'text': 'red', 'modality': 'mesh'},
        {'text': 'red', 'modality': 'image'},
        {'text': 'a red cap'},
    ]
    found = answer(executor, [Document(**content) for content in contents], on_error='tag')
    wanted = {
        1: 'cannot be decoded',
        2: 'is not valid Unicode',
        3: 'has nothing to encode: set text, blob, tensor or uri',
        5: "has the modality 'mesh': it is one of text, image",
        6: 'has no image to encode',
    }
    for position, document in enumerate(found):
        if position in wanted:
            sentence = document.tags['finetuner_error']
            assert document.embedding is None
            assert sentence.startswith(f'document {position} (id {document.id!r}) ') and wanted[position] in sentence
        else:
            assert document.tags == {}
    close_to([found[position].embedding for position in (0, 4, 7)], [expected[0][0], expected[1][0], expected[0][1]])
    for position, sentence in wanted.items():
        with pytest.raises(DataError, match=sentence):
            answer(executor, [Document(text='red'), Document(**contents[position]), Document(blob=blobs[0])])


def test_many_requests_at_once_get_their_own_answers(executor, blobs, expected):
    async def ask(number):
        documents = DocumentArray([Document(text=TEXTS[number % 4]), Document(blob=blobs[number % 3])])
        if number % 10 == 7:
            documents.append(Document(blob=b'no picture'))
        return await executor.encode(docs=documents, parameters={})

    async def ask_all():
        return await asyncio.gather(*map(ask, range(40)), return_exceptions=True)

    for number, found in enumerate(asyncio.run(ask_all())):
        if number % 10 == 7:
            assert isinstance(found, DataError) and 'document 2 ' in str(found)
        else:
            close_to(found.embeddings, [expected[0][number % 4], expected[1][number % 3]])


def test_a_request_that_is_given_up_leaves_both_queues(executor, blobs):
    async def give_up():
        documents = [Document(text='red') for _ in range(3000)] + [Document(blob=blobs[0]) for _ in range(300)]
        asking = asyncio.ensure_future(executor.encode(docs=DocumentArray(documents), parameters={}))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        return executor.served.models.items

    assert asyncio.run(give_up()) == 0
    assert answer(executor, [Document(text='red')])[0].embedding is not None


def test_texts_alone_may_come_as_a_list(executor, expected):
    [found] = asyncio.run(executor.encode_texts(DocumentArray([Document(text='["red", "a red cap"]')]), {}))
    close_to(np.frombuffer(found.blob, np.float32).reshape(2, -1), expected[0][:2])
    assert found.tags['tokens'] > 4


def test_what_is_under_way_is_bounded_over_both(artifact, blobs):
    executor = FinetunerExecutor(str(artifact), select_model='auto', max_documents=3)

    async def ask_twice():
        mixed = DocumentArray([Document(text='red'), Document(blob=blobs[0])])
        calls = [executor.encode(docs=mixed, parameters={}) for _ in range(2)]
        return await asyncio.gather(*calls, return_exceptions=True)

    first, second = asyncio.run(ask_twice())
    assert len(first) == 2 and isinstance(second, BusyError)
    executor.close()


def test_a_pretrained_model_is_loaded_once_for_both(tiny_clip, blobs, expected, monkeypatch):
    monkeypatch.setenv('FINETUNER_SELECT_MODEL', 'auto')
    executor = FinetunerExecutor(str(tiny_clip), cache_bytes=1 << 20)
    servers = executor.served.models.servers
    assert servers['text'].engine.encoder.whole is servers['image'].engine.encoder.whole
    for _ in range(2):
        found = answer(executor, [Document(text='red'), Document(blob=blobs[0])])
        close_to(found.embeddings, [expected[0][0], expected[1][0]])
    lookups = executor._metrics.registry.get_sample_value
    assert lookups('finetuner_encode_cache_lookups_total', {'outcome': 'hit'}) == 2
    executor.close()


def test_one_of_the_two_is_asked_for_by_its_name_or_the_choice_is_left_open(artifact, blobs):
    with pytest.raises(SelectModelRequired, match='set select_model to one of clip-text, clip-vision'):
        FinetunerExecutor(str(artifact))
    executor = FinetunerExecutor(str(artifact), select_model='clip-text')
    assert set(executor.served.models.servers) == {'text'}
    with pytest.raises(DataError, match='has no text to encode'):
        answer(executor, [Document(blob=blobs[0])])
    executor.close()


def test_a_model_that_is_alone_is_served_as_ever(tiny_model):
    executor = FinetunerExecutor(str(tiny_model), select_model='auto')
    close_to(answer(executor, [Document(text='lost')])[0].embedding, load_engine(tiny_model).encode_texts(['lost'])[0])
    executor.close()


def test_models_that_do_not_belong_together_are_refused(tiny_model, tmp_path):
    for name in ('one', 'other'):
        shutil.copytree(tiny_model, tmp_path / 'models' / name)
    info = ModelInfo(dim=24, max_length=32)
    models = {'one': info, 'other': info}
    path = pack(tmp_path, tmp_path / 'run.zip', name='run', config={}, metrics={}, models=models)
    with pytest.raises(ValueError, match='cannot be served together, which take text to 24 dimensions and text to 24'):
        FinetunerExecutor(str(path), select_model='auto')
