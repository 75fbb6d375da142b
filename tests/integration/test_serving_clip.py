"""`flows/serve.yml` with both models of CLIP, a cache, metrics and traces, over gRPC and HTTP."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import requests
from PIL import Image

from finetuner.documents import Document
from finetuner.inference import load_engine
from tests.integration.conftest import Service, free_ports

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def serving(tmp_path_factory, tiny_clip):
    [port] = free_ports(1)
    service = Service(
        'serve.yml',
        tmp_path_factory.mktemp('serving'),
        FINETUNER_ARTIFACT=tiny_clip,
        FINETUNER_SELECT_MODEL='auto',
        FINETUNER_ENCODE_CACHE_BYTES=1 << 20,
        FINETUNER_METRICS_PORT=port,
        OTEL_TRACES_EXPORTER='console',
        OTEL_BSP_SCHEDULE_DELAY=100,
    ).start()
    service.metrics_port = port
    yield service
    if service.process.poll() is None:
        service.stop()


def test_texts_and_images_over_grpc_and_http(serving, tiny_clip):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(file, 'PNG')
    blob = file.getvalue()
    [red] = load_engine(str(tiny_clip), select_model='clip-text').encode_texts(['red'])
    [picture] = load_engine(str(tiny_clip), select_model='clip-vision').encode_contents([blob])
    called = serving.call('/encode', [Document(blob=blob), Document(text='red')], token=None)
    sent = [{'blob': base64.b64encode(blob).decode()}, {'text': 'red'}, {'blob': 'AAAA'}]
    posted = serving.post('/encode', sent, token=None, on_error='tag').json()['data']
    for found in ([one.embedding for one in called], [one['embedding'] for one in posted[:2]]):
        np.testing.assert_allclose(found, [picture, red], atol=1e-5)
    assert 'document 2 ' in posted[2]['tags']['finetuner_error']
    openai = requests.post(f'http://127.0.0.1:{serving.http_port}/v1/embeddings', json={'input': 'red'}, timeout=60)
    np.testing.assert_allclose(openai.json()['data'][0]['embedding'], red, atol=1e-5)

    metrics = requests.get(f'http://127.0.0.1:{serving.metrics_port}/metrics', timeout=60).text
    hits, misses = (
        float(re.search(rf'cache_lookups_total{{outcome="{outcome}"}} (\S+)', metrics)[1])
        for outcome in ('hit', 'miss')
    )
    assert (hits, misses) == (3, 3)
    serving.stop()
    names = re.findall(r'"name": "([\w/]+)"', serving.log.read_text())
    assert {'/encode', '/encode_texts', 'preprocess', 'queue', 'run', 'answer'} <= set(names)
