"""Traces of requests by OpenTelemetry, as its standard environment variables want them; off as long as none does.

No span holds anything of what was sent: neither texts nor the messages of errors.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Self

from finetuner.excepts import ParameterError
from finetuner.inference.watch import NOBODY, Watch

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

SERVICE = 'finetuner-encoder'
"""The name of the service, where `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` have none."""
PREFIX = 'finetuner'
PATIENCE = 2.0
"""Seconds that the end of an encoder waits for its last spans to be sent."""

_PROTOCOLS = {'grpc': 'otlp_proto_grpc', 'http/protobuf': 'otlp_proto_http'}


class Tracing:
    """Makes a trace of each request, or of none.

    :param provider: where spans go; None is nowhere.
    :param is_own: whether it ends with this.
    """

    def __init__(self, provider: TracerProvider | None, is_own: bool):
        self._provider = provider
        self._is_own = is_own
        self._tracer = None if provider is None else provider.get_tracer(PREFIX)
        self._off = nullcontext(NOBODY)

    def request(self, name: str, documents: int) -> AbstractContextManager[Watch]:
        """Within, a request is at work. Its span is a child of the one that is current, as Jina's own may be.

        :param name: the endpoint.
        """
        return self._off if self._tracer is None else _SpanWatch(self._tracer, name, documents)

    def close(self) -> None:
        """Send what has not been sent, if there is somebody who takes it."""
        if self._provider is not None and self._is_own:
            # it tries a collector that is not there again and again, for ten seconds
            closing = threading.Thread(target=self._provider.shutdown, name='tracing', daemon=True)
            closing.start()
            closing.join(PATIENCE)


class _SpanWatch(Watch):
    """A span for a request, and below it one for each stage."""

    def __init__(self, tracer: Tracer, name: str, documents: int):
        from opentelemetry.trace import SpanKind, get_current_span, set_span_in_context

        kind = SpanKind.INTERNAL if get_current_span().get_span_context().is_valid else SpanKind.SERVER
        self._tracer = tracer
        # OpenTelemetry counts from 1970, in nanoseconds
        self._epoch = time.time() - time.monotonic()
        self._span = tracer.start_span(name, kind=kind, attributes={f'{PREFIX}.documents': documents})
        self._context = set_span_in_context(self._span)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        from opentelemetry.trace import StatusCode

        if kind is not None:
            # its message may show what was sent
            self._span.set_attribute('error.type', 'cancelled' if kind is asyncio.CancelledError else kind.__name__)
            self._span.set_status(StatusCode.ERROR)
        self._span.end()

    def stage(self, name: str, began: float, ended: float, items: int) -> None:
        attributes = {f'{PREFIX}.items': items}
        span = self._tracer.start_span(name, self._context, attributes=attributes, start_time=self._time(began))
        span.end(self._time(ended))

    def note(self, **attributes: str | int) -> None:
        self._span.set_attributes({f'{PREFIX}.{name}': value for name, value in attributes.items()})

    def _time(self, moment: float) -> int:
        return int((self._epoch + moment) * 1e9)


def start_tracing(replica: str, of_jina: TracerProvider | None = None) -> Tracing:
    """Trace requests if `OTEL_TRACES_EXPORTER` names an exporter, or an `OTEL_EXPORTER_OTLP_…ENDPOINT` is set, and
    `OTEL_SDK_DISABLED` is not.

    :param replica: what this process is called among those of the same service.
    :param of_jina: where Jina's own spans go, if it traces; ours go there, too.
    :raises ParameterError: an exporter or a protocol is not known here.
    """
    if os.environ.get('OTEL_SDK_DISABLED', '').strip().lower() == 'true':
        return Tracing(None, is_own=False)
    if of_jina is not None:
        return Tracing(of_jina, is_own=False)
    exporters = [_make_exporter(name) for name in _exporter_names()]
    if not exporters:
        return Tracing(None, is_own=False)
    # what the SDK reads by itself: OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES, OTEL_BSP_…, limits of spans
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create()
    if str(resource.attributes['service.name']).startswith('unknown_service'):
        resource = resource.merge(Resource({'service.name': SERVICE}))
    resource = resource.merge(Resource({f'{PREFIX}.replica': replica}))
    # Jina ends this process by itself, and the executor closes the provider then
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider, is_own=True)


def _exporter_names() -> list[str]:
    given = os.environ.get('OTEL_TRACES_EXPORTER', '')
    if not given:
        has_endpoint = any(os.environ.get(f'OTEL_EXPORTER_OTLP_{kind}ENDPOINT') for kind in ('', 'TRACES_'))
        given = 'otlp' if has_endpoint else 'none'
    return [name for name in map(str.strip, given.split(',')) if name not in ('', 'none')]


def _make_exporter(name: str) -> SpanExporter:
    """An exporter by its name in OpenTelemetry; it takes the rest from the environment."""
    found = entry_points(group='opentelemetry_traces_exporter', name=_otlp() if name == 'otlp' else name)
    if not found:
        raise ParameterError(f'OTEL_TRACES_EXPORTER names {name!r}, and no such exporter is installed')
    return next(iter(found)).load()()


def _otlp() -> str:
    for variable in ('OTEL_EXPORTER_OTLP_TRACES_PROTOCOL', 'OTEL_EXPORTER_OTLP_PROTOCOL'):
        if protocol := os.environ.get(variable):
            if protocol not in _PROTOCOLS:
                raise ParameterError(f'{variable} is {protocol!r}: it is one of {", ".join(_PROTOCOLS)}')
            return _PROTOCOLS[protocol]
    return _PROTOCOLS['grpc']
