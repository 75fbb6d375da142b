"""What an executor is told to serve."""

import functools
import logging
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from executors.artifacts import find_artifact
from finetuner.excepts import UnavailableError
from registry import Registry


@pytest.fixture
def web(tiny_artifact):
    """The URL of a folder with an artifact in it."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tiny_artifact.parent))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_the_keys_of_a_url_are_not_what_the_artifact_is_called(web, tiny_artifact):
    url = f'{web}/{tiny_artifact.name}'
    found, _ = find_artifact(f'{url}?X-Amz-Signature=SECRET', None, logging.getLogger())
    assert found.id == url


def test_an_encoder_may_be_the_first_of_a_service_to_start(caplog):
    found, store = find_artifact('support@production', None, logging.getLogger())
    assert found is None, 'nothing is promoted yet'
    assert "There is no alias 'support@production': there are none yet" in caplog.text
    store.close()


def test_an_executor_may_be_part_of_the_service_that_it_would_ask(caplog, monkeypatch):
    monkeypatch.setenv('FINETUNER_HOST', 'grpc://127.0.0.1:1')
    monkeypatch.setenv('FINETUNER_TOKEN', 'x' * 40)
    with pytest.raises(UnavailableError, match='no service answers'):
        find_artifact('support@production', None, logging.getLogger())
    Registry.open().close()
    found, store = find_artifact('support@production', None, logging.getLogger())
    assert found is None and 'no service answers at grpc://127.0.0.1:1' in caplog.text
    store.close()
