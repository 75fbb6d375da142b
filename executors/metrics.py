"""What an encoder is doing, for Prometheus, on a port of its own: the gateway cannot tell one replica from another."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from finetuner.inference.cache import EmbeddingCache
from finetuner.inference.meter import ANSWERED, FAILED, GIVEN_UP, HIT, MISS, REFUSED, SHARED, Batch, Meter

VARIABLE = 'FINETUNER_METRICS_PORT'
PREFIX = 'finetuner_encode'
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
SHARES = tuple(step / 10 for step in range(1, 11))


class EncoderMetrics(Meter):
    """Counts what the servers of an encoder tell, and asks what there is at the moment when it is asked."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def count(name: str, what: str, *outcomes: str) -> Counter:
            counter = Counter(f'{PREFIX}_{name}', what, ['outcome'] if outcomes else [], registry=self.registry)
            for outcome in outcomes:
                counter.labels(outcome)  # 0 from the start: of what appears with its first event, no rate tells that
            return counter

        def distribute(name: str, what: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f'{PREFIX}_{name}', what, buckets=buckets, registry=self.registry)

        self._requests = count('requests', 'Requests that have ended, by how.', ANSWERED, FAILED, REFUSED, GIVEN_UP)
        self._documents = count('documents', 'Documents of requests that were answered.')
        self._seconds = distribute('request_seconds', 'From the arrival of a request to its answer.', SECONDS)
        self._queue = distribute('queue_seconds', 'What prepared items waited for the model.', SECONDS)
        self._batches = distribute('batch_items', 'Items in a batch, of all requests.', ITEMS)
        self._mixed = distribute('batch_requests', 'Requests that share a batch.', ITEMS)
        self._fill = distribute('batch_fill', 'What of its room a batch uses, 0 to 1.', SHARES)
        self._tokens = count('tokens', 'Tokens of texts, or items of other contents, that the model has computed.')
        self._lookups = count('cache_lookups', 'Items looked up in the cache, by what was found.', HIT, SHARED, MISS)
        self._cache = Gauge(f'{PREFIX}_cache_bytes', 'Bytes that the cache takes.', registry=self.registry)
        self._padding = count('padding_tokens', 'Tokens that it has computed beside them, to make rows of one length.')

    def watch(self, state: Callable[[], tuple[int, int, str] | None]) -> None:
        """
        :param state: tells documents under way, documents that wait for the model, and the id of the artifact; None
            while there is no model.
        """
        self.registry.register(_State(state))

    def watch_cache(self, cache: EmbeddingCache) -> None:
        """Tell how large a cache is."""
        self._cache.set_function(lambda: cache.size)

    def request(self, items: int, seconds: float, outcome: str) -> None:
        self._requests.labels(outcome).inc()
        if outcome == ANSWERED:
            self._documents.inc(items)
            self._seconds.observe(seconds)

    def waited(self, seconds: float) -> None:
        self._queue.observe(seconds)

    def batch(self, batch: Batch) -> None:
        self._batches.observe(batch.items)
        self._mixed.observe(batch.requests)
        self._fill.observe(batch.used / batch.room)
        self._tokens.inc(batch.used)
        self._padding.inc(batch.computed - batch.used)

    def looked_up(self, items: int, outcome: str) -> None:
        self._lookups.labels(outcome).inc(items)


class _State(Collector):
    def __init__(self, state: Callable[[], tuple[int, int, str] | None]):
        self._state = state

    def collect(self) -> Iterator[Metric]:
        found = self._state()
        model = GaugeMetricFamily(f'{PREFIX}_model_info', 'The artifact that answers.', labels=['artifact'])
        if found is not None:
            under_way, waiting, artifact = found
            model.add_metric([artifact], 1)
            yield GaugeMetricFamily(f'{PREFIX}_documents_under_way', 'Of requests that are admitted.', under_way)
            yield GaugeMetricFamily(f'{PREFIX}_documents_waiting', 'Of these, prepared and not computed.', waiting)
        yield model


def metrics_port(name: str) -> int | None:
    """Where a replica tells its metrics: `FINETUNER_METRICS_PORT`, and one port more for each replica after the first.

    :param name: of the executor at run time, such as `encoder/rep-1`.
    :return: None if nobody wants them.
    :raises ValueError: the variable is no port.
    """
    given = os.environ.get(VARIABLE, '')
    if given in ('', '0'):
        return None
    replica = re.search(r'rep-(\d+)', name)
    port = int(given) + int(replica[1] if replica else 0) if given.isdecimal() and len(given) < 6 else 0
    if not 0 < port < 65536:
        raise ValueError(f'{VARIABLE} is {given!r}, not a port')
    return port


def serve_metrics(registry: CollectorRegistry, port: int) -> WSGIServer:
    """Answer at `http://address:port/metrics`, in a thread; the address is `FINETUNER_LISTEN`, default 127.0.0.1.

    :raises OSError: the port is taken, or is not for us.
    """
    address = os.environ.get('FINETUNER_LISTEN') or '127.0.0.1'
    try:
        server, _ = start_http_server(port, address, registry)
    except OSError as error:
        raise OSError(f'{VARIABLE}: {address}:{port} cannot be listened at: {error.strerror}') from error
    return server
