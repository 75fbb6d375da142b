"""get_model, build_model and encode, and the places that artifacts come from."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import threading
import traceback
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest

import finetuner
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import ArtifactError, DataError
from finetuner.inference import build_model, encode, get_model, resolve_artifact
from finetuner.inference.onnx_engine import ONNXRuntimeInferenceEngine
from finetuner.inference.remote import fetch_url
from finetuner.inference.torch_engine import TorchInferenceEngine

ARTIFACT_ID = '0123456789abcdef01234567'
TEXTS = ['where is my card', 'my card is lost', '']


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        if self.path.startswith('/broken'):
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()
            self.wfile.write(b'PK')
        elif self.path.startswith('/endless'):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(bytes(10_000))
        else:
            super().do_GET()


@pytest.fixture
def web(tiny_artifact):
    """The address of a server that has the artifact as /tiny-run.zip."""
    handler = partial(QuietHandler, directory=str(tiny_artifact.parent))
    with ThreadingHTTPServer(('localhost', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://localhost:{server.server_port}'
        server.shutdown()


@pytest.fixture
def served_artifact(service, tiny_artifact):
    """A service that has the artifact under ARTIFACT_ID."""
    content = tiny_artifact.read_bytes()

    def answer(parameters, documents):
        assert parameters['artifact_id'] == ARTIFACT_ID
        start = int(parameters['offset'])
        piece = content[start : start + int(parameters['length'])]
        tags = {'size': float(len(content)), 'sha256': hashlib.sha256(content).hexdigest(), 'offset': float(start)}
        return [Document(blob=piece, tags=tags)]

    service.endpoints['/artifact'] = answer
    return service


def downloads(tmp_path):
    return sorted(path.name for path in (tmp_path / 'home' / 'cache' / 'downloads').iterdir())


def test_a_local_artifact(tiny_artifact):
    model = get_model(tiny_artifact)
    assert isinstance(model, ONNXRuntimeInferenceEngine)
    assert isinstance(get_model(str(tiny_artifact), is_onnx=False), TorchInferenceEngine)
    assert encode(model, TEXTS).shape == (3, 24)


def test_it_is_what_finetuner_offers():
    assert (finetuner.get_model, finetuner.build_model, finetuner.encode) == (get_model, build_model, encode)


def test_logging_level(tiny_artifact, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger('finetuner'), 'level', logging.NOTSET)
    get_model(tiny_artifact)
    assert not caplog.messages
    get_model(tiny_artifact, logging_level='debug')
    assert 'ONNXRuntimeInferenceEngine on cpu: 24 dimensions' in caplog.text
    assert logging.getLogger('finetuner').level == logging.DEBUG
    with pytest.raises(ValueError, match='LOUD'):
        get_model(tiny_artifact, logging_level='LOUD')


def test_an_artifact_of_the_service_is_downloaded_once(served_artifact, tmp_path):
    first, second = get_model(ARTIFACT_ID), get_model(ARTIFACT_ID)
    np.testing.assert_array_equal(encode(first, TEXTS), encode(second, TEXTS))
    assert len(served_artifact.parameters('/artifact')) == 1
    assert downloads(tmp_path) == [f'{ARTIFACT_ID}.zip']


def test_an_artifact_that_the_service_does_not_have(service, tmp_path):
    def refuse(parameters, documents):
        raise ArtifactError('there is no such artifact')

    service.endpoints['/artifact'] = refuse
    with pytest.raises(ArtifactError, match='there is no such artifact'):
        get_model(ARTIFACT_ID)
    assert downloads(tmp_path) == []


def test_a_url(web, tiny_artifact, tmp_path):
    path = resolve_artifact(f'{web}/tiny-run.zip')
    assert path.read_bytes() == tiny_artifact.read_bytes()
    assert downloads(tmp_path) == [f'{hashlib.sha256(tiny_artifact.read_bytes()).hexdigest()}.zip']
    assert get_model(f'{web}/tiny-run.zip?key=secret').dim == 24


def test_other_urls(tiny_artifact):
    assert resolve_artifact(tiny_artifact.as_uri()).read_bytes() == tiny_artifact.read_bytes()
    fsspec.filesystem('memory').pipe('/somewhere/run.zip', tiny_artifact.read_bytes())
    assert resolve_artifact('memory://somewhere/run.zip').read_bytes() == tiny_artifact.read_bytes()


@pytest.mark.parametrize(
    ('address', 'match'),
    [
        ('{web}/nothing.zip', '404|not found'),
        ('{web}/broken.zip', 'broke off after 2 of 1000 bytes'),
        ('{web}/endless.zip', 'larger than the limit of 5000 bytes'),
        ('{web}/tiny-run.zip', 'larger than the limit of 5000 bytes'),
        ('http://localhost:1/run.zip', 'Connection refused'),
        ('file:///no/such/file.zip', 'No such file'),
        ('nonsense://somewhere/run.zip', 'nonsense'),
    ],
)
def test_urls_that_cannot_be_used(web, tmp_path, address, match):
    url = address.format(web=web)
    with pytest.raises(ArtifactError, match=match) as caught:
        fetch_url(f'{url}?key=secret' if url.startswith('http') else url, max_bytes=5000)
    assert url in str(caught.value)
    assert 'secret' not in str(caught.value)
    assert downloads(tmp_path) == []


@pytest.mark.parametrize(
    ('url', 'shown'),
    [
        ('http://user:sekret@localhost:1/x.zip', 'http://localhost:1/x.zip'),
        ('http://localhost:1/a b?sig=sekret', 'http://localhost:1/a b'),
        ('http://[user:sekret@h/x.zip', 'http://h/x.zip'),
        ('file:///nonexist?sig=sekret', 'file:///nonexist: No such file'),
        ('http://localhost:1/x.zip?sig=' + 'sekret' * 100, 'http://localhost:1/x.zip: Connection refused'),
        ('github://org:sekret@repo/x', 'github://repo/x'),
        ('zip://x.zip::http://user:sekret@localhost:1/x.zip', 'zip://x.zip::http://localhost:1/x.zip'),
    ],
)
def test_secrets_of_a_url_are_not_shown(tmp_path, url, shown):
    with pytest.raises(ArtifactError) as caught:
        resolve_artifact(url)
    assert f'cannot download the artifact {shown}' in str(caught.value)
    assert 'sekret' not in ''.join(traceback.format_exception(caught.value))
    assert downloads(tmp_path) == []


def test_old_leftovers_of_downloads_are_removed(tiny_artifact, tmp_path):
    folder = tmp_path / 'home' / 'cache' / 'downloads'
    for name in ('.download-old', '.download-new', 'kept-old'):
        (folder / name).mkdir(parents=True)
        (folder / name / 'x').touch()
    for name in ('.download-old', 'kept-old'):
        os.utime(folder / name, (0, 0))
    path = resolve_artifact(tiny_artifact.as_uri())
    assert downloads(tmp_path) == sorted(['.download-new', 'kept-old', path.name])


def test_a_url_of_something_else(web, tiny_artifact):
    (tiny_artifact.parent / 'page.html').write_text('<html>')
    with pytest.raises(ArtifactError, match='this is not a zip file'):
        get_model(f'{web}/page.html')


def test_build_model():
    model = build_model('all-minilm-l6-v2', model_options={'pooling': 'cls', 'max_length': 16}, batch_size=8)
    assert (model.encoder.pooling, model.max_length, model.batch_size, model.dim) == ('cls', 16, 8, 384)
    with pytest.raises(ValueError, match="model_options: 'depth' is not an option of this model"):
        build_model('all-minilm-l6-v2', model_options={'depth': 3})
    with pytest.raises(ValueError, match='pretrained models are run with torch'):
        build_model('all-minilm-l6-v2', is_onnx=True)


def test_encode_documents_and_texts(tiny_artifact):
    model = get_model(tiny_artifact)
    documents = DocumentArray([Document(text=text) for text in TEXTS])
    assert encode(model, documents) is documents
    np.testing.assert_allclose(documents.embeddings, encode(model, TEXTS), rtol=0, atol=1e-5)
    assert encode(model, []).shape == (0, 24)
    assert encode(model, DocumentArray()) == DocumentArray()
    with pytest.raises(DataError, match=r"document 1 \(id 'x'\) has no text to encode"):
        encode(model, DocumentArray([Document(text='a'), Document(id='x')]))


def test_many_batches_go_through_the_progress_bar(tiny_artifact):
    model = get_model(tiny_artifact)
    texts = [f'card {number}' for number in range(50)]
    documents = DocumentArray([Document(text=text) for text in texts])
    np.testing.assert_allclose(encode(model, texts, batch_size=4), model.encode_texts(texts), rtol=0, atol=1e-5)
    np.testing.assert_allclose(encode(model, documents, 4).embeddings, model.encode_texts(texts), rtol=0, atol=1e-5)


def test_a_relative_path_wins_over_a_name(tiny_artifact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_artifact, tmp_path / ARTIFACT_ID)
    assert get_model(ARTIFACT_ID).dim == 24
