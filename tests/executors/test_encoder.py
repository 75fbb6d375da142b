"""FinetunerExecutor: what clients may make it read."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import torch
from PIL import Image

from executors.encoder import FinetunerExecutor
from executors.parameters import EncodeParameters
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import DataError
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
    return executor.encode(docs=documents, parameters=EncodeParameters())[0].embedding


def test_images_come_with_the_request(model_directory, picture):
    executor = FinetunerExecutor(str(model_directory))
    sent = encode(executor, blob=picture.read_bytes())
    np.testing.assert_allclose(encode(executor, tensor=np.asarray(Image.open(picture))), sent, atol=1e-5)


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
