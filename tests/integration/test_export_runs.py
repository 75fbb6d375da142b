"""An exported deployment works: what its docker-compose file says is done here, without an engine."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests
import yaml

from finetuner.client.channel import Channel
from finetuner.documents import Document
from finetuner.excepts import AuthenticationError, UnavailableError
from tests.integration.conftest import ROOT, Service, wait_until
from tests.integration.dockerfiles import variables
from tools.drill.composed import BIN, Composed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Deployment(Composed, Service):
    """The services of a docker-compose file, called as any other service."""

    @property
    def token(self) -> str:
        return (self.folder / 'secrets' / 'token').read_text()

    def environment(self, member: str) -> dict[str, str]:
        given = {**variables('Dockerfile'), **self.services[self.members[member]]['environment']}
        assert [f'{given["HOME"]}:exec'] == self.services[self.members[member]]['tmpfs'], 'nothing else can be written'
        return super().environment(member)

    def start(self) -> 'Deployment':
        """In the order of `depends_on`, each once those before it are healthy."""
        waiting = dict(self.services)
        while waiting:
            ready = [name for name, one in waiting.items() if not one.get('depends_on', {}).keys() & waiting.keys()]
            assert ready, f'these wait for each other: {list(waiting)}'
            members = [member for member, name in self.members.items() if name in ready]
            for member in members:
                self.start_one(member)
            for member in members:
                self.wait_for_health(member)
            for name in ready:
                del waiting[name]
        self.channel = Channel(f'grpc://127.0.0.1:{self.port}')
        return self

    def wait_for_health(self, member: str) -> None:
        def is_healthy() -> bool:
            assert self.running[member].poll() is None, self.log_of(member)
            return self.is_healthy(member)

        wait_until(is_healthy, 600, f'the health of {member}')

    def kill(self) -> None:
        for process in self.running.values():
            process.kill()


@contextmanager
def deployed(flow: Path, folder: Path, *options: str | Path) -> Iterator[Deployment]:
    file = folder / 'docker-compose.yml'
    command = [BIN / 'finetuner', 'export', 'compose', flow, '--output', file, '--generate-secrets', *options]
    subprocess.run(command, check=True)
    service = Deployment(file, variables('Dockerfile'))
    try:
        yield service.start()
    finally:
        service.kill()


@pytest.fixture(scope='module')
def composed(tmp_path_factory, tiny_model):
    """flows/finetuner.yml as a deployment that serves a tiny model, and may train it."""
    folder = tmp_path_factory.mktemp('composed')
    flow = yaml.safe_load((ROOT / 'flows' / 'finetuner.yml').read_text())
    for executor in flow['executors']:
        if executor['name'] == 'trainer':
            executor['env'] = {'FINETUNER_MODEL_ROOTS': str(tiny_model)}
    (folder / 'flow.yml').write_text(yaml.safe_dump(flow))
    with deployed(folder / 'flow.yml', folder, '--artifact', tiny_model) as service:
        yield service


def test_ingest_fit_and_encode_through_the_gateway(composed, tiny_model):
    assert set(composed.services) == {'gateway', 'dataset', 'clicks', 'trainer', 'encoder'}
    composed.ingest_fruits()
    composed.fit(tiny_model, 'exported', eval_data='fruits')
    run = composed.wait_for('exported', 'FINISHED', 'FAILED')
    assert run['status'] == 'FINISHED', run['details'] + composed.call('/logs', run_name='exported')[0].text
    assert composed.call('/metrics', run_name='exported')[0].tags['after']
    assert composed.call('/encode', [Document(text='plum')]).embeddings.shape == (1, 32)
    (document,) = composed.post('/encode', [{'text': 'plum'}]).json()['data']
    assert len(document['embedding']) == 32


def test_strangers_are_refused(composed):
    assert composed.post('/encode', [{'text': 'plum'}], token=None).status_code == 401
    with pytest.raises(AuthenticationError):
        composed.call('/encode', [Document(text='plum')], token=None)
    assert composed.token not in ''.join(map(composed.log_of, composed.members))


def test_nothing_is_written_beside_the_volumes(composed):
    """The file systems of the containers are read-only."""
    assert all(service['read_only'] for service in composed.services.values())
    assert list(composed.workdir.rglob('*')) == []


@pytest.mark.parametrize('name', ['gateway', 'encoder'])
def test_a_request_at_work_is_answered_although_its_server_was_told_to_end(composed, name):
    texts = [{'text': f'fruit number {number}'} for number in range(3000)]
    answers = []
    over_http = threading.Thread(target=lambda: answers.append(composed.post('/encode', texts).status_code))
    many = [Document(text=text['text']) for text in texts]
    over_grpc = threading.Thread(target=lambda: answers.append(composed.call('/encode', many).embeddings.shape))
    for thread in (over_http, over_grpc):
        thread.start()
    time.sleep(0.7)
    assert not answers, 'the requests are over before the signal: make them larger'
    assert composed.stop_one(f'{name}-0') == 0, composed.log_of(f'{name}-0')
    for thread in (over_http, over_grpc):
        thread.join()
    assert sorted(answers, key=str) == [(3000, 32), 200]
    composed.start_one(f'{name}-0')
    composed.wait_for_health(f'{name}-0')
    composed.wait_for_health('gateway-0')


def test_a_gateway_that_starts_while_an_executor_is_away_serves_the_others(composed, tiny_model):
    for name in ('gateway', 'encoder'):
        composed.stop_one(f'{name}-0')
    url = f'http://127.0.0.1:{composed.http_port}'
    composed.start_one('gateway-0')
    wait_until(lambda: is_live(url), 120, 'the start of the gateway')

    assert composed.post('/runs').status_code == 200
    assert composed.call('/runs')
    away = 'encode is not known yet: the executor encoder has not answered since the gateway started, try again'
    for response in (composed.post('/encode', [{'text': 'plum'}]), requests.post(f'{url}/v1/embeddings', json={})):
        assert (response.status_code, response.headers['Retry-After']) == (503, '1')
        assert 'the executor encoder has not answered since the gateway started' in response.text
    with pytest.raises(UnavailableError, match=away):
        composed.call('/encode', [Document(text='plum')])
    ready = requests.get(f'{url}/health/ready')
    assert (ready.status_code, 'the executor encoder has not answered' in ready.text) == (503, True)
    assert '/encode' not in requests.get(f'{url}/openapi.json').json()['paths']

    composed.start_one('encoder-0')
    composed.wait_for_health('gateway-0')
    assert composed.call('/encode', [Document(text='plum')]).embeddings.shape == (1, 32)
    assert composed.post('/encode', [{'text': 'plum'}]).status_code == 200
    assert requests.get(f'{url}/v1/embeddings').status_code == 405  # it is there, for POST
    assert '/encode' in requests.get(f'{url}/openapi.json').json()['paths']


def is_live(url: str) -> bool:
    try:
        return requests.get(f'{url}/health/live', timeout=5).ok
    except requests.ConnectionError:
        return False


def test_all_end_in_order(composed, tiny_model):
    composed.fit(tiny_model, 'cut-off', epochs=2000)
    composed.wait_for('cut-off', 'STARTED')
    start = time.monotonic()
    for name in ('gateway', 'encoder', 'dataset', 'clicks', 'trainer'):
        assert composed.stop_one(f'{name}-0') == 0, composed.log_of(f'{name}-0')
    assert time.monotonic() - start < 60
    assert composed.running == {}


def test_of_two_encoders_either_may_go(tmp_path, tiny_model):
    with deployed(ROOT / 'flows' / 'encode.yml', tmp_path, '--artifact', tiny_model, '--encoders', '2') as service:
        expected = service.call('/encode', [Document(text='plum')]).embeddings
        for member in ('encoder-0', 'encoder-1'):
            service.running.pop(member).kill()
            for _ in range(10):
                np.testing.assert_allclose(
                    service.call('/encode', [Document(text='plum')]).embeddings, expected, atol=1e-6
                )
                assert service.post('/encode', [{'text': 'plum'}]).status_code == 200
            service.start_one(member)
            service.wait_for_health(member)
