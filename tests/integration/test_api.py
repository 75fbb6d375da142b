"""/api/v1 as clients of Jina's Finetuner use it, and what it has beyond that."""

import base64
import hashlib
import io
import json
import time
import zipfile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from executors.rate import MAX_STREAMS
from tests.integration.conftest import fruits, wait_until


class Api:
    """As the client of Jina's Finetuner 0.8.1: `Authorization: token`, a slash at the end here and there."""

    def __init__(self, service: Any):
        self.base = f'http://127.0.0.1:{service.http_port}/api/v1'
        self.session = requests.Session()
        self.session.headers.update({'Authorization': f'token {service.token}', 'Accept-Charset': 'utf-8'})

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.session.request(method, f'{self.base}{path}', timeout=120, allow_redirects=False, **options)

    def handle(self, method: str, path: str, params: Any = None, json_data: Any = None) -> Any:
        response = self.send(method, path, params=params, json=json_data)
        assert response.ok, response.json()['detail']
        return response.text if 'text' in response.headers['content-type'] else response.json()

    def create_run(self, experiment: str, name: str, config: dict[str, Any], device: str = 'cpu') -> Any:
        body = {
            'name': name,
            'config': config,
            'task': 'training',
            'finetuner_version': '0.13.10',
            'device': device,
            'cpus': 4,
            'gpus': 1,
        }
        return self.handle('POST', f'/experiments/{experiment}/runs', json_data=body)

    def stream_logs(self, experiment: str, run: str, **options: Any) -> list[str]:
        """The payloads of all `data: ` and `event: ` lines, as that client yields them."""
        path = f'/experiments/{experiment}/runs/{run}/logstream'
        with self.send('GET', path, stream=True, **options) as response:
            assert response.status_code == 200, response.text
            assert response.headers['content-type'].startswith('text/event-stream')
            lines = [line for line in response.iter_lines(decode_unicode=True) if line]
        return [line.partition(': ')[2] for line in lines if line.startswith(('data: ', 'event: '))]


@pytest.fixture(scope='module')
def api(service):
    return Api(service)


def config_of(model: Any, **hyper_parameters: Any) -> dict[str, Any]:
    return {
        'model': {
            'name': str(model),
            'artifact': None,
            'freeze': False,
            'output_dim': None,
            'options': {},
            'to_onnx': False,
        },
        'data': {
            'train_data': 'fruits',
            'eval_data': None,
            'evaluate': False,
            'num_workers': 4,
            'num_items_per_class': 4,
            'val_split': 0.0,
            'sampler': 'auto',
        },
        'hyper_parameters': {
            'loss': 'TripletMarginLoss',
            'loss_options': None,
            'optimizer': 'Adam',
            'optimizer_options': {},
            'miner': None,
            'miner_options': None,
            'batch_size': 8,
            'learning_rate': 1e-4,
            'epochs': 1,
            'scheduler': None,
            'scheduler_options': {'num_warmup_steps': 0, 'num_training_steps': 'auto', 'scheduler_step': 'batch'},
            'loss_optimizer': None,
            'loss_optimizer_options': {},
            **hyper_parameters,
        },
        'callbacks': [
            {'name': 'EvaluationCallback', 'options': {'query_data': 'fruits', 'index_data': None, 'limit': 20}}
        ],
        'public': False,
    }


@pytest.fixture(scope='module')
def made(api, tiny_model):
    """A run that was made as Jina's client makes one, when it has finished."""
    api.handle('POST', '/experiments/', json_data={'name': 'through-rest', 'description': 'a test'})
    config = config_of(tiny_model) | {'experiment_name': 'through-rest', 'run_name': 'first'}
    run = api.create_run('through-rest', 'first', config)
    assert len(run['artifact_id']) == 24, 'the id is handed out at once'

    def has_ended():
        return api.handle('GET', '/experiments/through-rest/runs/first/status')['status'] not in ('CREATED', 'STARTED')

    wait_until(has_ended, 180, 'the end of the run')
    return api.handle('GET', '/experiments/through-rest/runs/first')


def test_experiments_are_made_found_listed_and_deleted(api):
    made = api.handle('POST', '/experiments/', json_data={'name': 'mine', 'description': 'of mine'})
    assert (made['name'], made['status'], made['description'], made['runs']) == ('mine', 'ACTIVE', 'of mine', 0)
    assert api.handle('GET', '/experiments/mine') == made
    assert api.handle('POST', '/experiments', json_data={'name': 'mine', 'description': ''}) == made
    page = api.handle('GET', '/experiments/', params={'page': 1, 'size': 50})
    assert set(page) == {'items', 'total', 'page', 'size'} and made in page['items']
    assert api.handle('DELETE', '/experiments/mine') == made
    response = api.send('GET', '/experiments/mine')
    assert response.status_code == 404
    assert response.json()['detail'].startswith("There is no experiment 'mine'")


def test_a_run_goes_from_its_configuration_to_its_results(api, made, tiny_model):
    assert (made['status'], made['task'], made['device']) == ('FINISHED', 'training', 'cpu')
    sent = config_of(tiny_model)
    for section in ('model', 'data'):
        assert made['config'][section] == sent[section], 'as it was sent'
    assert made['config']['hyper_parameters']['learning_rate'] == 1e-4
    assert made['config']['callbacks'][0]['name'] == 'EvaluationCallback'
    assert (made['config']['experiment_name'], made['config']['run_name']) == ('through-rest', 'first')
    at = '/experiments/through-rest/runs/first'
    assert api.handle('GET', f'{at}/status')['status'] == 'FINISHED'
    metrics = api.handle('GET', f'{at}/metrics')
    assert set(metrics) == {'before', 'after'} and 'precision_at_k' in str(metrics['after'])
    assert set(api.handle('GET', f'{at}/examples')) <= {'before', 'after'}
    for path in ('/runs', '/runs/runs', '/experiments/through-rest/runs', '/experiments/through-rest/runs/'):
        page = api.handle('GET', path, params={'page': 1, 'size': 50})
        assert 'first' in [run['name'] for run in page['items']], path


def test_the_same_run_again_is_the_same_run_and_another_is_refused(api, made, tiny_model):
    again = api.create_run('through-rest', 'first', config_of(tiny_model))
    assert again['artifact_id'] == made['artifact_id']
    response = api.send(
        'POST',
        '/experiments/through-rest/runs',
        json={'name': 'first', 'device': 'cpu', 'config': config_of(tiny_model, epochs=3)},
    )
    assert response.status_code == 400
    assert 'another configuration' in response.json()['detail']


def test_logs_come_as_text_and_as_events(api, made):
    at = '/experiments/through-rest/runs/first'
    text = api.handle('GET', f'{at}/logs')
    assert isinstance(text, str) and text.strip()
    assert api.handle('GET', f'{at}/logs', params={'offset': len(text.encode()) - 5}) == text.encode()[-5:].decode()
    lines = [line for line in text.replace('\r', '\n').split('\n') if line]
    assert [line for line in api.stream_logs('through-rest', 'first') if line] == lines


def test_a_stream_that_broke_off_goes_on_where_it_was(api, made):
    with api.send('GET', '/experiments/through-rest/runs/first/logstream', stream=True) as response:
        events = response.text.split('\n\n')
    ids = [event.partition('\n')[0].removeprefix('id: ') for event in events if event.startswith('id: ')]
    rest = api.stream_logs('through-rest', 'first', headers={'Last-Event-ID': ids[1]})
    assert rest == api.stream_logs('through-rest', 'first')[2:]


def test_a_stream_of_a_run_that_waits_begins_at_once_and_ends_with_the_client(api, made, tiny_model):
    for name in ('busy', 'waiting'):
        api.create_run('waits', name, config_of(tiny_model, epochs=10_000))

    def status_of_a_stream():
        with api.send('GET', '/experiments/waits/runs/waiting/logstream', stream=True) as response:
            return response.status_code

    begun = time.monotonic()
    assert status_of_a_stream() == 200
    assert time.monotonic() - begun < 5
    for _ in range(MAX_STREAMS):
        assert status_of_a_stream() in (200, 429)
    wait_until(lambda: status_of_a_stream() == 200, 10, 'the end of the streams')
    assert api.handle('GET', '/experiments/waits/runs/waiting/status')['status'] == 'CREATED'
    for name in ('busy', 'waiting'):
        api.handle('POST', f'/experiments/waits/runs/{name}/cancel')


def test_results_of_a_run_that_has_none_are_a_conflict(api, made, tiny_model):
    config = config_of(tiny_model, epochs=10_000)
    run = api.create_run('through-rest', 'endless', config)
    at = '/experiments/through-rest/runs/endless'
    for path in (
        f'{at}/metrics',
        f'{at}/examples',
        f'/artifacts/{run["artifact_id"]}',
        '/artifacts/through-rest/endless',
    ):
        response = api.send('GET', path)
        assert response.status_code == 409, path
        assert run['name'] in response.json()['detail']
    cancelled = api.handle('POST', f'{at}/cancel')
    assert cancelled['status'] == 'CANCELLED'
    assert api.handle('POST', f'{at}/resume')['status'] == 'CREATED'
    assert api.handle('POST', f'{at}/cancel')['status'] == 'CANCELLED'
    assert api.send('GET', f'{at}/metrics').status_code == 409
    assert api.handle('DELETE', at)['name'] == 'endless'
    assert api.send('GET', at).status_code == 404
    assert api.send('POST', '/experiments/through-rest/runs/first/resume').status_code == 400


def test_a_run_may_go_on_from_an_artifact_whose_model_it_need_not_name(api, made):
    config = config_of(None)
    config['model'] |= {'name': None, 'artifact': made['artifact_id']}
    run = api.create_run('through-rest', 'second', config)
    assert run['config']['model']['name'] == made['config']['model']['name']
    assert run['config']['model']['artifact'] == made['artifact_id']
    api.handle('POST', '/experiments/through-rest/runs/second/cancel')
    api.handle('DELETE', '/experiments/through-rest/runs/second')


def test_all_runs_of_an_experiment_are_deleted(api, tiny_model):
    for name in ('a', 'b'):
        api.create_run('to-be-emptied', name, config_of(tiny_model, epochs=10_000))
        api.handle('POST', f'/experiments/to-be-emptied/runs/{name}/cancel')
    wait_until(
        lambda: api.handle('GET', '/experiments/to-be-emptied/runs')['items'][0]['status'] == 'CANCELLED', 30, 'the end'
    )
    deleted = api.handle('DELETE', '/experiments/to-be-emptied/runs')
    assert sorted(run['name'] for run in deleted) == ['a', 'b']
    assert api.handle('GET', '/experiments/to-be-emptied')['runs'] == 0


# artifacts


def test_an_artifact_is_downloaded_by_its_id_and_by_its_run(api, made):
    whole = api.send('GET', f'/artifacts/{made["artifact_id"]}')
    assert whole.status_code == 200
    assert whole.headers['content-type'] == 'application/zip'
    assert whole.headers['content-disposition'] == 'attachment; filename="first.zip"'
    assert whole.headers['etag'] == f'"{hashlib.sha256(whole.content).hexdigest()}"'
    digest = base64.b64encode(hashlib.sha256(whole.content).digest()).decode()
    assert whole.headers['repr-digest'] == f'sha-256=:{digest}:'
    assert zipfile.ZipFile(io.BytesIO(whole.content)).testzip() is None
    assert api.send('GET', '/artifacts/through-rest/first/').content == whole.content
    head = api.send('HEAD', f'/artifacts/{made["artifact_id"]}')
    assert (head.status_code, head.content) == (200, b'')
    assert head.headers['content-length'] == str(len(whole.content))
    assert head.headers['accept-ranges'] == 'bytes'


def test_a_download_that_broke_off_goes_on(api, made):
    path = f'/artifacts/{made["artifact_id"]}'
    whole = api.send('GET', path)
    content, size, etag = whole.content, len(whole.content), whole.headers['etag']
    for given, expected in (
        ('bytes=0-0', content[:1]),
        ('bytes=100-199', content[100:200]),
        (f'bytes={size - 7}-', content[-7:]),
        ('bytes=-7', content[-7:]),
        (f'bytes=5-{size * 2}', content[5:]),
        (f'bytes=-{size * 2}', content),
    ):
        response = api.send('GET', path, headers={'Range': given})
        assert response.status_code == 206, given
        assert response.content == expected, given
        start = (
            size - len(expected)
            if not given.startswith('bytes=0-0') and expected == content[-len(expected) :]
            else None
        )
        if start is not None:
            assert response.headers['content-range'] == f'bytes {start}-{size - 1}/{size}'
    for headers in (
        {'Range': 'bytes=1-2,4-5'},
        {'Range': 'lines=1-2'},
        {'Range': 'bytes=9-1'},
        {'Range': 'bytes=1-2', 'If-Range': '"another"'},
    ):
        response = api.send('GET', path, headers=headers)
        assert (response.status_code, response.content) == (200, content), headers
    assert api.send('GET', path, headers={'Range': 'bytes=1-2', 'If-Range': etag}).status_code == 206
    for given in (f'bytes={size}-', 'bytes=-0'):
        response = api.send('GET', path, headers={'Range': given})
        assert response.status_code == 416
        assert response.headers['content-range'] == f'bytes */{size}'
    unchanged = api.send('GET', path, headers={'If-None-Match': etag})
    assert (unchanged.status_code, unchanged.content) == (304, b'')


# data sets

CSV = b'text,label\nred apple,apple\ngreen apple,apple\nblue plum,plum\nsour plum,plum\n'


def parquet() -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table({'text': ['a', 'b'], 'label': ['x', 'y']}), target)
    return target.getvalue()


def arrow() -> bytes:
    table, target = pa.table({'text': ['a', 'b'], 'label': ['x', 'y']}), io.BytesIO()
    with pa.ipc.new_file(target, table.schema) as writer:
        writer.write_table(table)
    return target.getvalue()


JSONL = b''.join(json.dumps({'text': f'{n}', 'label': f'{n % 2}'}).encode() + b'\n' for n in range(4))


@pytest.mark.parametrize(
    ('media_type', 'format', 'content', 'rows'),
    [
        ('text/csv', None, CSV, 4),
        ('text/csv; charset=utf-8', None, CSV, 4),
        ('application/jsonl', None, JSONL, 4),
        ('application/vnd.apache.parquet', None, parquet(), 2),
        ('application/octet-stream', 'arrow', arrow(), 2),
        (None, 'csv', CSV, 4),
    ],
)
def test_a_file_is_sent_as_a_part(api, media_type, format, content, rows):
    headers = {} if media_type is None else {'Content-Type': media_type}
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    headers['Content-Digest'] = f'sha-256=:{digest}:'
    name = f'sent-{hashlib.sha256(content + str(headers).encode()).hexdigest()[:8]}'
    params = {} if format is None else {'format': format}
    first = api.send('PUT', f'/datasets/{name}/parts/0', data=content, headers=headers, params=params)
    assert first.status_code == 200, first.text
    assert (first.json()['rows'], first.json()['labelled']) == (rows, True)
    again = api.send('PUT', f'/datasets/{name}/parts/0', data=content, headers=headers, params=params)
    assert again.json() == first.json(), 'it is not added again'
    more = api.send('PUT', f'/datasets/{name}/parts/1', data=content, headers=headers, params=params)
    assert more.json()['rows'] == 2 * rows


def test_options_say_how_a_file_is_read(api):
    options = json.dumps({'columns': {'content': 2, 'label': 1}, 'header': False})
    response = api.send(
        'PUT',
        '/datasets/turned/parts/0',
        data=b'fruit,apple\nfruit,plum\ntool,saw\n',
        headers={'Content-Type': 'text/csv'},
        params={'csv_options': options},
    )
    assert (response.status_code, response.json()['rows']) == (200, 3)


def test_nothing_is_stored_of_a_file_that_is_not_what_was_said(api, service):
    wrong = hashlib.sha256(b'other').hexdigest()
    coded = base64.b64encode(bytes.fromhex(wrong)).decode()
    for headers, params in (
        ({}, {'sha256': wrong}),
        ({'Content-Digest': f'sha-256=:{coded}:'}, {}),
        ({'Digest': f'sha-256={coded}'}, {}),
        ({'Content-Digest': f'sha-512=:{coded}:'}, {}),
        ({'Content-Digest': 'nonsense'}, {}),
    ):
        response = api.send(
            'PUT', '/datasets/broken/parts/0', data=CSV, headers={'Content-Type': 'text/csv', **headers}, params=params
        )
        assert response.status_code == 400
        assert 'sha256' in response.json()['detail'] or 'sha-256' in response.json()['detail']
    refused = service.post('/fit', model='all-minilm-l6-v2', train_data='broken', device='cpu')
    assert "no data set 'broken'" in refused.json()['detail'].lower()


def test_a_bad_row_is_named_and_a_link_is_not_followed(api, service):
    bad = api.send('PUT', '/datasets/bad/parts/0', data=b'text,label\na,x\n"b', headers={'Content-Type': 'text/csv'})
    assert bad.status_code == 400
    assert bad.json()['detail'].startswith('bad.csv, line 3:')
    secret = service.folder / 'data' / 'secret.png'
    secret.write_bytes(b'not for clients')
    rows = f'image,label\n{secret},x\n{secret},y\n'.encode()
    linked = api.send('PUT', '/datasets/bad/parts/0', data=rows, headers={'Content-Type': 'text/csv'})
    assert linked.status_code == 400
    assert 'line 2' in linked.json()['detail']
    assert 'not for clients' not in linked.text


def test_a_run_learns_from_what_was_sent(api, service, tiny_model):
    rows = '\n'.join(f'{document["text"]},{document["tags"]["finetuner_label"]}' for document in fruits())
    api.send('PUT', '/datasets/fruits-csv/parts/0', data=f'text,label\n{rows}'.encode(), params={'format': 'csv'})
    config = config_of(tiny_model)
    config['data']['train_data'] = 'fruits-csv'
    assert api.create_run('through-rest', 'of-csv', config)['status'] == 'CREATED'
    api.handle('POST', '/experiments/through-rest/runs/of-csv/cancel')


# tokens, health, errors


def test_the_token_may_be_bearer_and_is_needed(api, service):
    for headers, status in (
        ({'Authorization': f'Bearer {service.token}'}, 200),
        ({'Authorization': f'token {service.token}'}, 200),
        ({'Authorization': 'Bearer wrong'}, 401),
        ({'Authorization': f'Basic {service.token}'}, 401),
        ({'Authorization': ''}, 401),
        ({}, 401),
    ):
        response = requests.get(f'{api.base}/me', headers=headers, timeout=60)
        assert response.status_code == status, headers
        if status == 401:
            assert response.headers['www-authenticate'] == 'Bearer'
            assert response.json()['detail']
        else:
            assert response.json() == {'account': 'local'}
    assert requests.get(f'{api.base}/ping/', timeout=60).json()['status'] == 'ok'
    assert requests.get(f'{api.base}/me?token={service.token}', timeout=60).status_code == 400


def test_probes_tell_whether_the_service_can_be_used(api):
    base = api.base.removesuffix('/api/v1')
    assert requests.get(f'{base}/health/live', timeout=60).json() == {'status': 'live'}
    assert requests.get(f'{base}/health/ready', timeout=60).json() == {'status': 'ready'}


def test_a_service_with_an_executor_that_hangs_lives_and_is_not_ready(api, service):
    base = api.base.removesuffix('/api/v1')
    executor = service.process_of('dataset')
    executor.suspend()
    try:
        # an answer is good for a second
        reason = wait_until(lambda: _not_ready(base), 30, 'the news that an executor hangs')
        assert reason == 'not every executor answers within 5 seconds'
        assert requests.get(f'{base}/health/live', timeout=60).status_code == 200
    finally:
        executor.resume()
    wait_until(lambda: not _not_ready(base), 30, 'the service being ready again')


def _not_ready(base):
    response = requests.get(f'{base}/health/ready', timeout=60)
    return response.json()['detail'] if response.status_code == 503 else ''


def test_a_method_that_is_not_there_tells_those_that_are(api):
    response = api.send('PATCH', '/experiments/x')
    assert response.status_code == 405
    assert response.headers['allow'] == 'DELETE, GET'
    assert api.send('GET', '/nothing').status_code == 404


def test_no_page_of_another_origin_reads_anything(api, service):
    headers = {'Origin': 'https://evil.example', 'Authorization': f'Bearer {service.token}'}
    response = requests.get(f'{api.base}/me', headers=headers, timeout=60)
    assert 'access-control-allow-origin' not in response.headers
    asked = {'Origin': 'https://evil.example', 'Access-Control-Request-Method': 'GET'}
    assert requests.options(f'{api.base}/me', headers=asked, timeout=60).status_code == 405


# messages over HTTP


def test_a_message_over_http_is_answered_as_over_grpc(service):
    from docarray.proto import DocListProto
    from jina.proto import jina_pb2

    from finetuner.documents import Document, DocumentArray

    def post(endpoint: str, raw: bytes) -> requests.Response:
        headers = {'Content-Type': 'application/x-protobuf'}
        return requests.post(f'http://127.0.0.1:{service.http_port}{endpoint}', data=raw, headers=headers, timeout=60)

    message = jina_pb2.DataRequestProto()
    message.data.docs.CopyFrom(DocumentArray([Document(text='some text')]).to_protobuf())
    response = post('/encode', message.SerializeToString())
    assert (response.status_code, response.headers['content-type']) == (200, 'application/x-protobuf')
    answer = jina_pb2.DataRequestProto.FromString(response.content)
    documents = DocumentArray.from_protobuf(DocListProto.FromString(answer.data.docs.SerializeToString()))
    over_grpc = service.call('/encode', [Document(text='some text')])
    assert (documents.embeddings == over_grpc.embeddings).all()

    response = post('/whoami', b'')
    answer = jina_pb2.DataRequestProto.FromString(response.content)
    assert (response.status_code, answer.header.status.exception.name) == (200, 'AuthenticationError')
    message = jina_pb2.DataRequestProto()
    message.parameters['token'] = service.token
    answer = jina_pb2.DataRequestProto.FromString(post('/whoami', message.SerializeToString()).content)
    assert answer.header.status.code == 0
    for raw in (b'\xff\xff\xff', b'{}', message.SerializeToString()[:-3]):
        refused = post('/whoami', raw)
        assert refused.status_code == 400
        assert 'DataRequestProto' in refused.json()['detail']
