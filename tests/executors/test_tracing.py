"""Traces of requests: which spans there are, what is in them, and where OpenTelemetry's variables send them."""

from __future__ import annotations

import asyncio
import threading
import time
import timeit
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from executors.encoder import FinetunerExecutor
from executors.tracing import SERVICE, start_tracing
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import DataError, ParameterError
from finetuner.inference.watch import NOBODY

SECRET = 'a text that nobody else may read'


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith('OTEL_')]:
        monkeypatch.delenv(name)


@pytest.fixture
def memory():
    return InMemorySpanExporter()


@pytest.fixture
def executor(tiny_model, memory):
    """One that Jina has given where its own spans go."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    executor = FinetunerExecutor(
        str(tiny_model), cache_bytes=1 << 20, runtime_args={'name': 'encoder/rep-0', 'tracer_provider': provider}
    )
    yield executor
    executor.close()


def encode(executor, *texts, **parameters):
    documents = DocumentArray([Document(text=text) for text in texts])
    return executor.encode(docs=documents, parameters=parameters)


def find(spans, name):
    return [span for span in spans if span.name == name]


def test_a_request_has_a_span_for_each_stage(executor, memory):
    asyncio.run(encode(executor, SECRET, 'lost'))
    spans = memory.get_finished_spans()
    assert [span.name for span in spans] == ['preprocess', 'queue', 'run', 'answer', '/encode']
    *stages, request = spans
    assert request.parent is None and request.kind is SpanKind.SERVER and request.status.status_code is StatusCode.UNSET
    assert dict(request.attributes) == {
        'finetuner.documents': 2,
        'finetuner.artifact': executor.served.artifact_id,
    }
    moment = request.start_time
    for stage in stages:
        assert stage.parent.span_id == request.context.span_id
        assert dict(stage.attributes) == {'finetuner.items': 2}
        assert (
            moment - 1_000_000 <= stage.start_time <= stage.end_time
        )  # one after the other, to the clocks' difference
        moment = stage.end_time
    assert moment <= request.end_time + 1_000_000
    assert abs(request.end_time / 1e9 - time.time()) < 60


def test_what_is_kept_or_shared_does_not_run(executor, memory):
    async def ask_twice():
        return await asyncio.gather(encode(executor, 'lost'), encode(executor, 'lost'))

    asyncio.run(ask_twice())
    spans = memory.get_finished_spans()
    assert len(find(spans, 'run')) == len(find(spans, 'share')) == 1
    assert len(find(spans, '/encode')) == len({span.context.trace_id for span in spans}) == 2
    memory.clear()
    asyncio.run(encode(executor, 'lost'))
    assert [span.name for span in memory.get_finished_spans()] == ['answer', '/encode']


def test_texts_of_one_document_are_counted(executor, memory):
    document = Document(text='["my card", "lost"]')
    asyncio.run(executor.encode_texts(docs=DocumentArray([document]), parameters={}))
    *stages, request = memory.get_finished_spans()
    assert request.name == '/encode_texts' and request.attributes['finetuner.documents'] == 2
    assert {stage.name for stage in stages} == {'preprocess', 'queue', 'run', 'answer'}


def test_a_request_that_fails_says_how_and_shows_nothing_of_what_was_sent(executor, memory):
    with pytest.raises(DataError):
        asyncio.run(encode(executor, f'{SECRET} \ud800'))
    stage, request = memory.get_finished_spans()
    assert stage.name == 'preprocess'
    assert request.status.status_code is StatusCode.ERROR and request.attributes['error.type'] == 'DataError'
    assert not any(span.events or span.status.description for span in (stage, request))
    with pytest.raises(ParameterError):
        asyncio.run(encode(executor, 'a', truncate_dim=-1))
    assert memory.get_finished_spans()[-1].attributes['error.type'] == 'ParameterError'
    assert SECRET not in ''.join(span.to_json() for span in memory.get_finished_spans())


def test_a_request_that_is_given_up_is_a_trace_too(executor, memory):
    engine = executor.served.models.of_texts().engine
    go, embed = threading.Event(), engine.embed
    engine.embed = lambda features: go.wait(10) and embed(features)

    async def give_up():
        asking = asyncio.ensure_future(encode(executor, 'a text'))
        await asyncio.sleep(0.2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        go.set()

    asyncio.run(give_up())
    *stages, request = memory.get_finished_spans()
    assert request.attributes['error.type'] == 'cancelled' and request.status.status_code is StatusCode.ERROR
    assert [stage.name for stage in stages] == ['preprocess', 'queue', 'run']


def test_it_is_a_part_of_the_trace_of_jina(executor, memory):
    call = executor.__acall__('/encode', docs=DocumentArray([Document(text='a')]), parameters={}, tracing_context=None)
    asyncio.run(call)
    ours, jinas = find(memory.get_finished_spans(), '/encode')
    assert ours.parent.span_id == jinas.context.span_id and ours.kind is SpanKind.INTERNAL


def test_it_is_off_unless_it_is_asked_for(monkeypatch):
    for variables in (
        {},
        {'OTEL_TRACES_EXPORTER': 'none', 'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:1'},
        {'OTEL_EXPORTER_OTLP_METRICS_ENDPOINT': 'http://127.0.0.1:1'},
        {'OTEL_TRACES_EXPORTER': 'otlp', 'OTEL_SDK_DISABLED': 'true'},
    ):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with start_tracing('encoder').request('/encode', 1) as watch:
                assert watch is NOBODY


def test_off_it_costs_next_to_nothing():
    """What a request does for it: less than five microseconds, here and on a busy machine."""
    tracing = start_tracing('encoder')

    def request():
        with tracing.request('/encode', 1) as watch:
            watch.note(artifact='a')
            for _ in range(4):
                watch.stage('run', time.monotonic(), time.monotonic(), 1)

    assert min(timeit.repeat(request, number=1000, repeat=20)) / 1000 < 5e-6


@pytest.mark.parametrize(
    ('variable', 'value', 'message'),
    [
        ('OTEL_TRACES_EXPORTER', 'otlp,carrier-pigeon', "names 'carrier-pigeon', and no such exporter is installed"),
        ('OTEL_EXPORTER_OTLP_PROTOCOL', 'smoke', "is 'smoke': it is one of grpc, http/protobuf"),
    ],
)
def test_what_is_not_known_is_refused(monkeypatch, variable, value, message):
    monkeypatch.setenv('OTEL_EXPORTER_OTLP_ENDPOINT', 'http://127.0.0.1:1')
    monkeypatch.setenv(variable, value)
    with pytest.raises(ParameterError, match=f'{variable} {message}'):
        start_tracing('encoder')


class Collector(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        self.server.received.append((self.path, self.headers, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def collector():
    server = HTTPServer(('127.0.0.1', 0), Collector)
    server.received = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_spans_arrive_where_the_variables_send_them(tiny_model, collector, monkeypatch):
    monkeypatch.setenv('OTEL_EXPORTER_OTLP_ENDPOINT', f'http://127.0.0.1:{collector.server_port}')
    monkeypatch.setenv('OTEL_EXPORTER_OTLP_PROTOCOL', 'http/protobuf')
    monkeypatch.setenv('OTEL_EXPORTER_OTLP_HEADERS', 'api-key=key')
    monkeypatch.setenv('OTEL_EXPORTER_OTLP_COMPRESSION', 'none')
    monkeypatch.setenv('OTEL_RESOURCE_ATTRIBUTES', 'deployment.environment.name=test')
    executor = FinetunerExecutor(str(tiny_model), runtime_args={'name': 'encoder/rep-1'})
    asyncio.run(encode(executor, 'a'))
    executor.close()
    [(path, headers, body)] = collector.received
    assert path == '/v1/traces' and headers['api-key'] == 'key'
    [spans] = ExportTraceServiceRequest.FromString(body).resource_spans
    attributes = {attribute.key: attribute.value.string_value for attribute in spans.resource.attributes}
    assert attributes['service.name'] == SERVICE and attributes['finetuner.replica'] == 'encoder/rep-1'
    assert attributes['deployment.environment.name'] == 'test'
    names = {span.name for scope in spans.scope_spans for span in scope.spans}
    assert names == {'/encode', 'preprocess', 'queue', 'run', 'answer'}


def test_a_collector_that_is_not_there_keeps_nobody_waiting(tiny_model, monkeypatch):
    monkeypatch.setenv('OTEL_TRACES_EXPORTER', 'otlp')
    monkeypatch.setenv('OTEL_EXPORTER_OTLP_ENDPOINT', 'http://127.0.0.1:1')
    monkeypatch.setenv('OTEL_SERVICE_NAME', 'mine')
    executor = FinetunerExecutor(str(tiny_model))
    assert asyncio.run(encode(executor, 'a'))[0].embedding is not None
    began = time.monotonic()
    executor.close()
    assert time.monotonic() - began < 5
