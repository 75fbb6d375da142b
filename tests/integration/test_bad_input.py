"""What a person or a broken program may send, over REST and gRPC, and the sentence that answers it.

`pytest -s tests/integration/test_bad_input.py` prints it as a table. No answer is a 500, none shows a stack, an object
of Python or a token.
"""

import gzip
import json
import re
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import requests
from jina.proto import jina_pb2

from finetuner import excepts
from finetuner.client import wire_pb2 as wire
from finetuner.client.channel import Channel, Connection
from finetuner.client.transport import make_request
from finetuner.documents import Document, DocumentArray

LEAK = re.compile(r'Traceback|File "|<class|<function|object at 0x|site-packages|pydantic|\bline \d+, in ')
JSON = {'Content-Type': 'application/json'}
TOKEN = object()
RUNS = '/api/v1/experiments/e/runs'


def http(
    method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, token: Any = TOKEN
) -> Callable[[Any], tuple[int, str]]:
    """A request over HTTP; a body that is no bytes is sent as JSON."""

    def send(service: Any) -> tuple[int, str]:
        sent = dict(headers or {})
        if token is not None:
            sent['Authorization'] = f'Bearer {service.token if token is TOKEN else token}'
        raw = body
        if body is not None and not isinstance(body, bytes):
            raw, sent = json.dumps(body).encode(), {**JSON, **sent}
        url = f'http://127.0.0.1:{service.http_port}{path}'
        answer = requests.request(method, url, data=raw, headers=sent, timeout=120)
        assert answer.headers['content-type'] == 'application/json', answer.text
        assert set(answer.json()) == {'detail'}
        return answer.status_code, answer.json()['detail']

    return send


def run_of(**change: Any) -> dict[str, Any]:
    """A run to be made, that would be fine but for the change: `section__name=value`."""
    config: dict[str, Any] = {
        'model': {'name': 'all-minilm-l6-v2'},
        'data': {'train_data': 'fruits'},
        'hyper_parameters': {},
    }
    body = {'name': 'bad', 'device': 'cpu', 'config': config}
    for name, value in change.items():
        section, _, key = name.rpartition('__')
        target = config if section == 'config' else config[section] if section else body
        target[key] = value
    return body


def make_run(**change: Any) -> Callable[[Any], tuple[int, str]]:
    return http('POST', RUNS, run_of(**change))


def ingest(*documents: Any, **parameters: Any) -> Callable[[Any], tuple[int, str]]:
    return http('POST', '/ingest', {'data': list(documents), 'parameters': {'name': 'bad', **parameters}})


def run_without_labels(service: Any) -> tuple[int, str]:
    """A run whose loss needs the labels that the data does not have."""
    service.tags('/ingest', [{'text': text} for text in 'abcd'], name='unlabelled', part=0)
    return make_run(data__train_data='unlabelled')(service)


def message(
    endpoint: str, docs: bytes = b'', token: Any = TOKEN, **parameters: Any
) -> Callable[[Any], tuple[str, str]]:
    """A request over gRPC."""

    def call(service: Any) -> tuple[str, str]:
        if token is not None:
            parameters['token'] = service.token if token is TOKEN else token
        channel = Channel(f'grpc://127.0.0.1:{service.port}')
        try:
            channel.call(endpoint, parameters, docs)
        except tuple(error for error in vars(excepts).values() if isinstance(error, type)) as error:
            return type(error).__name__, str(error)
        finally:
            channel.close()
        return 'OK', ''

    return call


def raw_message(method: str, content: bytes) -> Callable[[Any], tuple[str, str]]:
    """Bytes over gRPC."""

    def call(service: Any) -> tuple[str, str]:
        with grpc.insecure_channel(f'127.0.0.1:{service.port}') as channel:
            try:
                channel.unary_unary(method)(content, timeout=60)
            except grpc.RpcError as error:
                return error.code().name, error.details()
        return 'OK', ''

    return call


def number(value: float) -> bytes:
    """A message whose parameters have a number that JSON does not have."""
    request = wire.DataRequest(header=wire.Header(request_id='x', exec_endpoint='/runs'))
    request.parameters['page'] = value
    return request.SerializeToString()


def raw_answer(content: bytes) -> Callable[[Any], tuple[str, str]]:
    """Bytes over gRPC that are a message: what its header says."""

    def call(service: Any) -> tuple[str, str]:
        with grpc.insecure_channel(f'127.0.0.1:{service.port}') as channel:
            answer = channel.unary_unary(SINGLE, response_deserializer=wire.DataRequest.FromString)(content, timeout=60)
        exception = answer.header.status.exception
        return exception.name, exception.args[0] if exception.args else answer.header.status.description

    return call


def junk_as_documents(endpoint: str) -> bytes:
    """A message whose documents, in the field for those that are serialized already, are none."""
    request = jina_pb2.DataRequestProto(data={'docs_bytes': b'\xff\xff\xff'})
    request.header.exec_endpoint = endpoint
    return request.SerializeToString()


SINGLE = '/jina.JinaSingleDataRequestRPC/process_single_data'
EMPTY_DOCUMENT = DocumentArray([Document()]).to_protobuf().SerializeToString()
NESTED: Any = 1
for _ in range(40):
    NESTED = {'x': NESTED}

ROWS: dict[str, tuple[Callable[[Any], tuple[Any, str]], Any, str]] = {
    # who asks
    'no token': (http('GET', '/api/v1/runs', token=None), 401, 'A token is needed'),
    'an unknown token': (http('GET', '/api/v1/runs', token='nope'), 401, 'token is not known to this service'),
    'a token in the URL': (http('GET', '/api/v1/runs?token=secret'), 400, 'a token in a URL ends up in logs'),
    'a token of the wrong kind': (
        http('GET', '/api/v1/me', headers={'Authorization': 'Basic YTpi'}, token=None),
        401,
        'send the header Authorization: Bearer',
    ),
    'a token that is a list': (
        http('POST', '/whoami', {'parameters': {'token': ['x']}}, token=None),
        422,
        "'token': input should be a valid string",
    ),
    # where to
    'an unknown path': (http('GET', '/api/v1/experimnts'), 404, 'there is no /api/v1/experimnts here'),
    'an unknown endpoint': (http('POST', '/fti', {}), 404, "unknown endpoint '/fti': this service has .*/fit"),
    'a method that is not there': (http('PUT', '/api/v1/experiments', {}), 405, 'use DELETE, GET, POST'),
    'GET where POST is meant': (http('GET', '/fit'), 405, 'GET /fit is not possible: use POST'),
    # bodies
    'no JSON': (http('POST', '/api/v1/experiments', b'name=x', JSON), 400, 'the body is not JSON: Expecting value'),
    'cut-off JSON': (http('POST', '/api/v1/experiments', b'{"name": "x', JSON), 400, 'Unterminated string'),
    'a name twice': (http('POST', '/api/v1/experiments', b'{"name":"a","name":"b"}', JSON), 400, "'name' occurs twice"),
    'NaN': (http('POST', '/status', b'{"parameters":{"run_name":NaN}}'), 400, 'NaN is not a number'),
    'Infinity': (http('POST', RUNS, b'{"cpus": -Infinity}', JSON), 400, '-Infinity is not a number'),
    'no UTF-8': (http('POST', '/api/v1/experiments', b'{"name": "\xff"}', JSON), 400, 'is not UTF-8 at byte 10'),
    'half a character': (http('POST', '/api/v1/experiments', b'{"name": "\\ud800"}', JSON), 400, 'unpaired surrogate'),
    'very deep': (http('POST', RUNS, b'{"config":' * 5000, JSON), 400, 'nests too deep|not JSON'),
    'deep': (http('POST', RUNS, b'[' * 200 + b']' * 200, JSON), 400, 'nests deeper than 64 levels'),
    'a list': (http('POST', '/api/v1/experiments', [1]), 422, 'the body is a list: send a JSON object'),
    'a list for an endpoint': (http('POST', '/encode', []), 422, 'the body is a list: send a JSON object'),
    'a text for an endpoint': (http('POST', '/encode', 'a'), 422, 'the body is a text: send a JSON object'),
    'a list for a stream': (http('POST', '/logstream', [1]), 422, 'the body is a list: send a JSON object'),
    'nothing': (http('POST', RUNS, b'', JSON), 422, 'the body is missing|is missing'),
    'a wrong content type': (
        http('POST', '/api/v1/experiments', b'<a/>', {'Content-Type': 'application/xml'}),
        415,
        'of the type application/xml: send Content-Type: application/json',
    ),
    'no content type': (
        http('POST', '/api/v1/experiments', b'{}'),
        415,
        'of the type that no Content-Type tells: send Content-Type: application/json',
    ),
    'a compressed body': (
        http('POST', '/api/v1/experiments', gzip.compress(b'{"name": "x"}'), {**JSON, 'Content-Encoding': 'gzip'}),
        415,
        'the body has the Content-Encoding gzip, which is not read here: send it as it is',
    ),
    'a compressed file': (
        http('PUT', '/api/v1/datasets/bad/parts/0?format=csv', gzip.compress(b'a,b'), {'Content-Encoding': 'gzip'}),
        415,
        'Content-Encoding gzip',
    ),
    'too many digits': (
        http('POST', '/status', b'{"parameters":{"run_name":' + 5000 * b'9' + b'}}'),
        400,
        'too many digits',
    ),
    'an integer no message holds': (
        http('POST', '/runs', b'{"parameters":{"page":' + 400 * b'9' + b'}}'),
        422,
        'a number is too large',
    ),
    'an unknown key': (http('POST', '/encode', {'documents': []}), 422, "'documents' is unknown: a body is"),
    'a document without envelope': (http('POST', '/encode', {'text': 'a'}), 422, "'text' is unknown: a body is"),
    # names
    'a path as a name': (
        http('POST', '/api/v1/experiments', {'name': '../../etc/passwd'}),
        422,
        "'name': '../../etc/passwd' is not a valid name: use 1 to 200 letters",
    ),
    'a path in the path': (http('GET', '/api/v1/experiments/..%2F..%2Fetc'), 404, 'there is no /api/v1/experiments/'),
    'dots in the path': (http('GET', '/api/v1/experiments/..%00'), 422, 'is not a valid name'),
    'SQL as a name': (
        http('GET', "/api/v1/experiments/x'%20OR%201=1--"),
        422,
        r"'name' in the path: \"x' OR 1=1--\" is not a valid name: use 1 to 200 letters",
    ),
    'SQL as a name, plain': (
        http('POST', '/status', {'parameters': {'run_name': "'; DROP TABLE runs;--", 'experiment_name': 'e'}}),
        400,
        'There is no experiment|There is no run',
    ),
    'NUL in a name': (
        http('POST', '/create_experiment', {'parameters': {'name': 'a\0b'}}),
        400,
        'is not a valid experiment name',
    ),
    'NUL in the description of an experiment': (
        http('POST', '/api/v1/experiments', {'name': 'e', 'description': 'a\0b'}),
        422,
        "'description': a description cannot hold the character U\\+0000",
    ),
    'NUL in the description of a run': (
        make_run(description='a\0b'),
        422,
        'a description cannot hold the character U\\+0000',
    ),
    'an empty name': (http('POST', '/api/v1/experiments', {'name': ''}), 422, "'name': '' is not a valid name"),
    'a name of 10 MB': (
        http('POST', '/create_experiment', {'parameters': {'name': 10_000_000 * 'x'}}),
        400,
        'x… is not a valid experiment name',
    ),
    'a run name of 10 MB': (
        http('POST', '/status', {'parameters': {'run_name': 10_000_000 * 'x', 'experiment_name': 'nowhere'}}),
        400,
        'There is no experiment',
    ),
    'a name that is a number': (http('POST', '/api/v1/experiments', {'name': 7}), 422, 'valid string, got 7'),
    'an experiment that is not there': (http('GET', '/api/v1/experiments/nope'), 404, "There is no experiment 'nope'"),
    'a run that is not there': (http('GET', f'{RUNS}/nope/logs'), 404, 'There is no'),
    'an artifact that is not there': (http('GET', f'/api/v1/artifacts/{"a" * 24}'), 404, 'There is no artifact'),
    'an id that is none': (
        http('GET', '/api/v1/artifacts/abc'),
        422,
        "'artifact' in the path: 'abc' is neither the id of an artifact .* nor an alias, such as support@production",
    ),
    'an alias that is none': (
        http('GET', '/api/v1/aliases/bad'),
        422,
        "'alias' in the path: 'bad' is not a valid alias: write name@stage",
    ),
    'a token id that is none': (
        http('DELETE', '/api/v1/tokens/nope'),
        422,
        "'id' in the path: 'nope' is no id: ids are 24 hexadecimal digits",
    ),
    # pages
    'page 0': (
        http('GET', '/api/v1/runs?page=0'),
        422,
        "'page' in the query: input should be greater than or equal to 1",
    ),
    'a page that is a word': (http('GET', '/api/v1/runs?page=first'), 422, 'valid integer.*, got .first'),
    'a huge page': (http('GET', f'/api/v1/runs?page={10**30}'), 422, "'page' in the query"),
    'a size of a million': (http('GET', '/api/v1/runs?size=1000000'), 422, 'less than or equal to 100'),
    'an unknown query': (http('GET', '/api/v1/runs?pgae=1'), 422, "'pgae' is unknown"),
    'a negative offset': (
        http('POST', '/logs', {'parameters': {'run_name': 'x', 'offset': -1}}),
        422,
        "'offset': input should be greater than or equal to 0, got -1",
    ),
    'an offset beyond all': (
        http('POST', '/logs', {'parameters': {'run_name': 'x', 'offset': 1e300}}),
        422,
        "'offset': ",
    ),
    # runs
    'a misspelt section': (make_run(config__modle={}), 422, "'config.modle' is unknown"),
    'a misspelt option': (make_run(model__outputdim=3), 422, "'config.model.outputdim' is unknown"),
    'no training data': (http('POST', RUNS, {'config': {'model': {'name': 'x'}}}), 422, "'config.data' is missing"),
    'unknown training data': (
        make_run(data__train_data='friuts'),
        400,
        "There is no data set 'friuts': similar names: fruits",
    ),
    'a path as training data': (make_run(data__train_data='/etc/passwd'), 400, "There is no data set '/etc/passwd'"),
    'an unknown loss': (
        make_run(hyper_parameters__loss='TripletMarginLos'),
        422,
        "unknown loss 'TripletMarginLos': did you mean TripletMarginLoss",
    ),
    'an unknown miner': (make_run(hyper_parameters__miner='TripletMarginMinr'), 422, 'did you mean TripletMarginMiner'),
    'an unknown optimizer': (make_run(hyper_parameters__optimizer='AdamX'), 422, 'did you mean Adam'),
    'an unknown scheduler': (make_run(hyper_parameters__scheduler='cosin'), 422, 'did you mean cosine'),
    'an unknown callback': (
        make_run(config__callbacks=[{'name': 'EarlyStoping', 'options': {}}]),
        422,
        'did you mean EarlyStopping',
    ),
    'an unknown option of a callback': (
        make_run(config__callbacks=[{'name': 'EarlyStopping', 'options': {'patence': 3}}]),
        422,
        'patence',
    ),
    'an unknown option of a loss': (make_run(hyper_parameters__loss_options={'margn': 1}), 422, 'margn'),
    'no epochs': (make_run(hyper_parameters__epochs=0), 422, 'epochs.*greater than or equal to 1, got 0'),
    'a negative rate': (make_run(hyper_parameters__learning_rate=-1), 422, 'learning_rate.*greater than 0, got -1'),
    'epochs without end': (make_run(hyper_parameters__epochs=1e30), 422, 'epochs.*1e.30 is too large a number'),
    'a deep line': (
        http('PUT', '/api/v1/datasets/bad/parts/0?format=jsonl', b'{"text":' * 5000),
        400,
        'line 1: it is not JSON: it nests too deep',
    ),
    'true epochs': (make_run(hyper_parameters__epochs=True), 422, 'epochs.*it must be a number'),
    'a memory for all the world': (
        make_run(
            hyper_parameters__loss='CrossBatchMemory',
            hyper_parameters__loss_options={'loss': 'TripletMarginLoss', 'memory_size': 10**15},
        ),
        422,
        'memory_size is 1000000000000000: give at most 1000000',
    ),
    'an artifact that there is not': (make_run(model__artifact='zzz'), 400, "There is no artifact 'zzz'"),
    'a token for no time': (
        http('POST', '/api/v1/tokens', {'name': 'x', 'days': 1e-300}),
        422,
        'days is 1e-300, which is less than a second',
    ),
    'half a batch': (make_run(hyper_parameters__batch_size=1.5), 422, 'batch_size.*valid integer'),
    'epochs in words': (make_run(hyper_parameters__epochs='five'), 422, "epochs.*valid integer.*got 'five'"),
    'a frozen something': (
        make_run(model__freeze='maybe'),
        422,
        "^'config.model.freeze': give true, false, or how many layer groups to freeze, got 'maybe'$",
    ),
    'adapters of something': (make_run(model__lora='maybe'), 422, "^'config.model.lora': give true, false or"),
    'adapters of no rank': (make_run(model__lora={'r': -1}), 422, 'lora.r: .*greater than or equal to 1, got -1'),
    'a cache of something': (
        make_run(hyper_parameters__gradient_cache='x'),
        422,
        "give true, false or 'auto', got 'x'",
    ),
    'a rate in words': (
        make_run(hyper_parameters__optimizer_options={'lr': 'x'}),
        422,
        "optimizer_options: lr is 'x': give a number",
    ),
    'steps in words': (
        make_run(hyper_parameters__scheduler='linear', hyper_parameters__scheduler_options={'num_training_steps': 'x'}),
        422,
        "'config.hyper_parameters.scheduler_options.num_training_steps': give 'auto' or how many",
    ),
    'a device that is none': (make_run(device='tpu'), 422, "'device': 'tpu' is no device: give 'cpu', 'gpu' or"),
    'a task to come': (make_run(task='generation'), 422, 'it does not generate data yet'),
    'a task that is none': (make_run(task='dream'), 422, 'the task is "training"'),
    'two names': (make_run(config__run_name='other'), 422, "config.run_name is 'other', but the run is to be 'bad'"),
    'a model in a folder of the service': (make_run(model__name='/etc'), 422, 'is not below a folder whose models'),
    'a mean option': (make_run(model__options=NESTED), 422, 'nest deeper than 30 levels'),
    'a model that is nowhere': (
        make_run(model__name='no-such-model'),
        422,
        "^the model 'no-such-model' is neither a directory here nor could it be fetched from the hub: HF_HUB_OFFLINE",
    ),
    'no model': (make_run(model__name=None), 422, 'model is missing'),
    # data
    'no documents': (ingest(), 400, 'send documents, or the uri of a file'),
    'an empty document': (ingest({}), 400, r'documents\[0\].* has no content'),
    'no base64': (ingest({'blob': '***'}), 422, 'document 0: .*blob.*base64'),
    'a text that is a number': (ingest({'text': 5}), 422, "document 0: .*'data.0.text'.*got 5"),
    'an unknown field': (ingest({'txt': 'a'}), 422, "document 0: 'txt' is unknown"),
    'an id that is no text': (ingest({'id': {}}), 422, "document 0: 'id' must be a text, got {}"),
    'an id of a chunk that is none': (ingest({'chunks': [{'id': 5}]}), 422, "document 0: chunk 0: 'id' must be a text"),
    'an unknown field of a chunk': (ingest({'chunks': [{'txt': 'a'}]}), 422, "document 0: chunk 0: 'txt' is unknown"),
    'mixed shapes': (
        ingest({'text': 'a'}, {'chunks': [{'text': 'a'}, {'text': 'b'}]}),
        400,
        r'documents\[1\].* is a pair, and the first document an item',
    ),
    'missing labels': (run_without_labels, 400, 'label'),
    'a tag no message holds': (ingest({'text': 'a', 'tags': {'n': 10**12}}), 422, 'document 0'),
    'a negative part': (ingest({'text': 'a'}, part=-1), 422, "'part': input should be greater than or equal to 0"),
    'a huge part': (ingest({'text': 'a'}, part=1e15), 422, "'part': input should be less than or equal to 2147483647"),
    'a file of the service': (
        ingest(uri='/etc/passwd'),
        400,
        '/etc/passwd is not below a folder that this service may',
    ),
    'another scheme': (ingest(uri='gopher://x/y.csv'), 400, 'does not read gopher:// URIs'),
    'an empty file': (http('PUT', '/api/v1/datasets/bad/parts/0?format=csv', b''), 400, 'the body is empty'),
    'a file of no kind': (
        http('PUT', '/api/v1/datasets/bad/parts/0', b'x', {'Content-Type': 'image/png'}),
        415,
        'image/png',
    ),
    'a file of an unknown format': (
        http('PUT', '/api/v1/datasets/bad/parts/0?format=xlsx', b'x'),
        422,
        "'format' in the query",
    ),
    'no Parquet': (
        http('PUT', '/api/v1/datasets/bad/parts/0?format=parquet', b'PAR1xx'),
        400,
        'bad.parquet cannot be read',
    ),
    'no Arrow': (http('PUT', '/api/v1/datasets/bad/parts/0?format=arrow', b'ARROW1'), 400, 'bad.arrow cannot be read'),
    'JSONL with a bad line': (
        http('PUT', '/api/v1/datasets/bad/parts/0?format=jsonl', b'{"text":"a"}\n{"text":'),
        400,
        'bad.jsonl, line 2',
    ),
    'CSV that is no text': (
        http('PUT', '/api/v1/datasets/bad/parts/0?format=csv', b'a,b\n\xff\xfe,c\n'),
        400,
        'is not utf-8',
    ),
    'options that are no JSON': (
        http('PUT', '/api/v1/datasets/bad/parts/0?format=csv&csv_options={', b'a,b\nc,d\n'),
        422,
        "'csv_options': is not JSON",
    ),
    'unknown options': (
        http('PUT', '/api/v1/datasets/bad/parts/0?format=csv&csv_options={"hedaer":true}', b'a,b\nc,d\n'),
        422,
        "'csv_options': 'hedaer' is unknown",
    ),
    'a wrong checksum': (
        http('PUT', f'/api/v1/datasets/bad/parts/0?format=csv&sha256={"0" * 64}', b'a,b\n'),
        400,
        'sha256 says that the sha256 is 0000',
    ),
    'a checksum that is none': (
        http('PUT', '/api/v1/datasets/bad/parts/0?format=csv&sha256=abc', b'a'),
        422,
        "'sha256' in the query: 'abc' is no sha256: that is 64 hexadecimal digits",
    ),
    # messages
    'protobuf that is none': (
        http('POST', '/whoami', b'\xff\xff', {'Content-Type': 'application/x-protobuf'}),
        400,
        'not a serialized jina.DataRequestProto',
    ),
    # gRPC
    'gRPC: no message': (raw_message(SINGLE, b'\xff\xff\xff'), 'INVALID_ARGUMENT', 'the message cannot be read'),
    'gRPC: an unknown method': (raw_message('/jina.Nothing/at_all', b''), 'UNIMPLEMENTED', 'Method not found'),
    'gRPC: no endpoint': (raw_answer(b''), 'FinetunerServerError', "unknown endpoint '/': this service has"),
    'gRPC: an unknown endpoint': (message('/fti'), 'FinetunerServerError', "unknown endpoint '/fti': this service has"),
    'gRPC: no token': (message('/runs', token=None), 'AuthenticationError', 'A token is needed'),
    'gRPC: a wrong token': (message('/runs', token='nope'), 'AuthenticationError', 'is not known'),
    'gRPC: NaN': (raw_answer(number(float('nan'))), 'ParameterError', 'a number is NaN or infinite'),
    'gRPC: infinity': (raw_answer(number(float('inf'))), 'ParameterError', 'a number is NaN or infinite'),
    'gRPC: a wrong type': (message('/runs', page='first'), 'ParameterError', "'page': .*got 'first'"),
    'gRPC: a huge page': (message('/runs', page=1e18), 'ParameterError', "'page': "),
    'gRPC: a number as it was sent': (message('/tokens', size=2000), 'ParameterError', "'size': .*, got 2000$"),
    'gRPC: an argument as it was sent': (
        message('/fit', model='all-minilm-l6-v2', train_data='fruits', num_items_per_class=0),
        'ParameterError',
        'num_items_per_class: .*, got 0$',
    ),
    'gRPC: an option of a callback as it was sent': (
        message(
            '/fit',
            model='all-minilm-l6-v2',
            train_data='fruits',
            callbacks=[{'name': 'EarlyStopping', 'options': {'patience': 0}}],
        ),
        'ParameterError',
        'EarlyStopping: patience: .*, got 0$',
    ),
    'gRPC: a sha256 that is none': (
        message('/ingest', name='bad', sha256='abc'),
        'ParameterError',
        "'sha256': 'abc' is no sha256: that is 64 hexadecimal digits",
    ),
    'gRPC: a device that is none': (
        message('/fit', model='all-minilm-l6-v2', train_data='fruits', device='tpu'),
        'ParameterError',
        "device is 'tpu': give 'cpu', 'cuda' or a GPU by its number",
    ),
    'gRPC: an unknown parameter': (message('/runs', pgae=1), 'ParameterError', "'pgae' is unknown"),
    'gRPC: a broken document': (
        message('/encode', b'\xff\xff\xff'),
        'DataError',
        'the documents of the message cannot be read: they are broken',
    ),
    # parsed in part, it cannot be parsed again
    'gRPC: random bytes': (
        message('/encode', bytes.fromhex('8382413da61dbd39fbb19bbfea4d75a2263e9d85')),
        'DataError',
        'the documents of the message cannot be read: they are broken',
    ),
    'gRPC: junk as documents to encode': (raw_answer(junk_as_documents('/encode')), 'DataError', 'they are broken'),
    'gRPC: junk as documents to keep': (raw_answer(junk_as_documents('/ingest')), 'DataError', 'they are broken'),
    'gRPC: NUL in a description': (
        message('/create_experiment', name='e', description='a\0b'),
        'ParameterError',
        "'description': a description cannot hold the character U\\+0000",
    ),
    'gRPC: an unknown loss': (
        message('/fit', model='all-minilm-l6-v2', train_data='fruits', device='cpu', loss='TripletMarginLos'),
        'ParameterError',
        'did you mean TripletMarginLoss',
    ),
    'gRPC: a path as a name': (message('/experiment', name='../../x'), 'NotFoundError', 'There is no experiment'),
    'gRPC: a stream called as a call': (
        message('/logstream', run_name='x'),
        'FinetunerServerError',
        '/logstream streams',
    ),
    'gRPC: an empty document': (
        message('/ingest', EMPTY_DOCUMENT, name='bad'),
        'DataError',
        r'documents\[0\].* has no content',
    ),
    'gRPC: deep parameters': (
        message('/fit', model='x', train_data='y', loss_options=NESTED),
        'FinetunerServerError',
        'the message cannot be read: it is broken, or its parameters nest too deep',
    ),
}


@pytest.mark.parametrize('row', ROWS)
def test_bad_input_gets_a_sentence(service, row):
    request, expected, sentence = ROWS[row]
    status, detail = request(service)
    print(f'\n| {row} | {status} | {detail[:160]} |', end='')
    if isinstance(expected, int):
        assert status == expected, detail
    else:
        wanted = expected if isinstance(expected, tuple) else expected.split('|')
        assert status in wanted, detail
    assert re.search(sentence, detail, re.DOTALL), detail
    assert not LEAK.search(detail), detail
    assert service.token not in detail
    assert len(detail) < 2000


def test_there_are_enough_rows_and_the_service_goes_on(service):
    assert len(ROWS) >= 60
    assert service.post('/whoami').status_code == 200
    assert service.post('/encode', [{'text': 'fine'}], token=None).status_code == 200
    log = service.log.read_text()
    assert service.token not in log
    assert 'Traceback' not in log and 'ERROR' not in log, 'what a caller did wrong is no business of the log'


def test_where_in_the_code_an_error_was_raised_is_not_told(service):
    message = make_request('/encode', {'truncate_dim': -1, 'token': service.token}, EMPTY_DOCUMENT)
    message.header.exec_endpoint = '/encode'
    over_http = requests.post(
        f'http://127.0.0.1:{service.http_port}/encode',
        data=message.SerializeToString(),
        headers={'Content-Type': 'application/x-protobuf'},
        timeout=60,
    )
    for answer in (
        Connection(f'grpc://127.0.0.1:{service.port}').call(message),
        wire.DataRequest.FromString(over_http.content),
    ):
        assert 'truncate_dim' in answer.header.status.exception.args[0]
        assert not answer.header.status.exception.stacks
