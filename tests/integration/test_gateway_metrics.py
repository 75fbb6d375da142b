"""The gateway with Jina's own metrics, which Jina counts on another way of a request than ours."""

from __future__ import annotations

import re

import pytest
import requests

from finetuner.documents import Document
from finetuner.excepts import DataError, ParameterError
from tests.integration.conftest import ROOT, Service, free_ports


@pytest.fixture(scope='module', params=['encode.yml', pytest.param('serve.yml', marks=pytest.mark.slow)])
def monitored(request, tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp('monitored')
    [port] = free_ports(1)
    flow = folder / 'monitored.yml'
    text = (ROOT / 'flows' / request.param).read_text()
    text = text.replace('with:\n', f'with:\n  monitoring: true\n  port_monitoring: {port}\n', 1)
    variables: dict[str, object] = {'FINETUNER_RATE_LIMIT': 0}
    if request.param == 'serve.yml':
        text += f'  uses_with: {{encoder: {{artifact: {tiny_model}}}}}\n'
    else:
        variables['FINETUNER_ARTIFACT'] = tiny_model
    flow.write_text(text)
    service = Service(str(flow), folder, **variables).start()
    service.metrics_port = port
    try:
        yield service
    finally:
        service.stop()


def counted(service, name):
    text = requests.get(f'http://127.0.0.1:{service.metrics_port}', timeout=60).text
    found = re.search(rf'^jina_{name}{{[^}}]*}} (\S+)$', text, re.MULTILINE)
    return float(found[1])


def test_requests_are_answered_and_counted(monitored):
    done, failed = counted(monitored, 'successful_requests_total'), counted(monitored, 'failed_requests_total')
    assert monitored.call('/encode', [Document(text='a')], token=None)[0].embedding.shape == (32,)
    posted = monitored.post('/encode', [{'text': 'a'}], token=None, encoder__truncate_dim=8)
    assert len(posted.json()['data'][0]['embedding']) == 8
    with pytest.raises(ParameterError, match='truncate_dim'):
        monitored.call('/encode', [Document(text='a')], token=None, truncate_dim=-1)
    with pytest.raises(DataError, match='has no text to encode'):
        monitored.call('/encode', [Document()], token=None)
    assert counted(monitored, 'successful_requests_total') == done + 2
    assert counted(monitored, 'failed_requests_total') == failed + 2
    assert counted(monitored, 'number_of_pending_requests') == 0
