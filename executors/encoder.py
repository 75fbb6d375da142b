"""FinetunerExecutor: gives documents their embeddings, with a fine-tuned or a pretrained model."""

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from wsgiref.simple_server import WSGIServer

import numpy as np
from docarray import DocList
from jina import Executor, requests

from executors.artifacts import Found, Store, find_artifact
from executors.caching import make_cache
from executors.endpoints import describe_parameters, unknown_endpoint
from executors.following import Follower
from executors.lifetime import prepare_process
from executors.metrics import EncoderMetrics, metrics_port, serve_metrics
from executors.opening import open_registry
from executors.parameters import EncodeParameters, EncodeTextsParameters, Parameters, shorten
from executors.sources import allowed_links, allowed_roots, allowed_schemes
from executors.tracing import start_tracing
from finetuner.documents import MAX_DOCUMENTS, Content, Document, DocumentArray
from finetuner.excepts import ArtifactError, ArtifactNotFoundError, DataError, ParameterError
from finetuner.inference.admission import MAX_ITEMS, Admission
from finetuner.inference.cache import ModelCache
from finetuner.inference.digest import digest_model
from finetuner.inference.engine import InferenceEngine, name_document
from finetuner.inference.loading import load_engine, load_engines
from finetuner.inference.remote import without_secrets
from finetuner.inference.router import Router, check_together
from finetuner.inference.server import QUICK_CHARACTERS, ModelServer, check_dim, shape_embeddings
from finetuner.inference.watch import ANSWER, Watch

DEFAULT_MODEL = 'all-minilm-l6-v2'
ARTIFACT_TAG, ERROR_TAG = 'finetuner_artifact', 'finetuner_error'
AUTO = 'auto'
"""As `select_model`: all models of an artifact."""
DRAIN = 300.0
"""Seconds that requests have to end when their model was replaced by another."""

Result = TypeVar('Result')


@dataclass(frozen=True)
class Served:
    """The models that answer, and the id of their artifact."""

    models: Router
    artifact_id: str


class FinetunerExecutor(Executor):
    """Embeds documents at `/encode`, or where `uses_requests` puts its method `encode`.

    :param artifact: the id of an artifact, a run's as `experiment/run`, an alias `name@stage`, a zip file or folder, a
        URL, or a pretrained model by name; default `FINETUNER_ARTIFACT` or all-minilm-l6-v2. An alias is followed: when
        another artifact is promoted, it is loaded beside the one that answers, and then takes its place. Each request
        is answered by one of them. While it names nothing yet, requests are refused.
    :param token: needed to load an artifact of the service; default `FINETUNER_TOKEN` or the credentials file.
    :param batch_size: documents that are embedded at once.
    :param select_model: which model of an artifact that has several, default `FINETUNER_SELECT_MODEL`. 'auto' is all
        of them: then one of CLIP takes texts and images, in one request, too.
    :param device: 'cpu' or 'cuda', default `FINETUNER_DEVICE` or 'cpu'.
    :param device_id: which GPU.
    :param omp_num_threads: threads that compute one operator, where `intra_op_num_threads` is 0; default the engine's
        choice.
    :param intra_op_num_threads: threads that compute one operator, 0 for the engine's choice.
    :param inter_op_num_threads: operators that run at the same time, 0 for the engine's choice.
    :param logging_level: the least level that is logged.
    :param is_onnx: onnxruntime (True) or torch (False), default the one that is faster here, which is found by trying
        where the artifact has an ONNX model.
    :param precision: what torch computes in, 'fp32', 'bf16' or 'fp16', default `FINETUNER_PRECISION` or 'fp32'.
    :param encode_roots: folders whose files documents may name by `uri`, default `FINETUNER_ENCODE_ROOTS` (separated by
        ':') or none. Images and meshes can always be sent as `blob`, `tensor` or in a `data:` URI. What `/ingest` may
        read is no default here: that endpoint needs a token, and this one does not.
    :param encode_schemes: schemes of the URLs that are fetched, default `FINETUNER_ENCODE_SCHEMES` (separated by
        commas) or none. With 'http', whoever reaches the endpoint can make it call any address that it reaches.
    :param require_token: whether every request must carry a token of this service, default `FINETUNER_REQUIRE_TOKEN` or
        no.
    :param refuse_unknown: whether a request for another endpoint is an error. In a Flow with other executors and Jina's
        own gateway, False lets it pass on to them; `/encode_texts` is not there then.
    :param max_documents: of all requests that may be under way; a request that finds no room is told to try again.
    :param cache_bytes: of embeddings that are kept for contents that come again, default `FINETUNER_ENCODE_CACHE_BYTES`
        or 0: none.
    :raises AuthenticationError: a token is needed, and is missing or unknown.
    :raises ArtifactError: there is no such artifact, or it is damaged.
    """

    def __init__(
        self,
        artifact: str | None = None,
        token: str | None = None,
        batch_size: int = 32,
        select_model: str | None = None,
        device: str | None = None,
        device_id: int = 0,
        omp_num_threads: int | None = None,
        intra_op_num_threads: int = 0,
        inter_op_num_threads: int = 0,
        logging_level: str = 'INFO',
        is_onnx: bool | None = None,
        precision: str | None = None,
        encode_roots: Sequence[str] | None = None,
        encode_schemes: Sequence[str] | None = None,
        require_token: bool | None = None,
        refuse_unknown: bool = True,
        max_documents: int = MAX_ITEMS,
        cache_bytes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        prepare_process(self)
        if not refuse_unknown:
            # an endpoint that it has and the next executor lacks would keep Jina's gateway from starting
            for endpoint in ('/default', '/encode_texts'):
                self.requests.pop(endpoint, None)
        describe_parameters(self, 'encode', EncodeParameters)
        describe_parameters(self, 'encode_texts', EncodeTextsParameters)
        if require_token is None:
            require_token = os.environ.get('FINETUNER_REQUIRE_TOKEN', '').lower() in ('1', 'true', 'yes', 'on')
        if artifact is None:
            artifact = os.environ.get('FINETUNER_ARTIFACT') or None
        self._switching = threading.Lock()
        self._metrics = EncoderMetrics()
        replica = str(getattr(self.runtime_args, 'name', ''))
        self._max_documents = max_documents
        self._select_model = select_model or os.environ.get('FINETUNER_SELECT_MODEL') or None
        self.served: Served | None = None
        self._retiring: Router | None = None
        self._options: dict[str, Any] = {
            'is_onnx': is_onnx,
            'choices': {},  # a model that is promoted is mostly of the same shape, and is not tried anew
            'precision': precision or os.environ.get('FINETUNER_PRECISION') or 'fp32',
            'device': device or os.environ.get('FINETUNER_DEVICE') or 'cpu',
            'device_id': device_id,
            'batch_size': batch_size,
            'omp_num_threads': omp_num_threads,
            'intra_op_num_threads': intra_op_num_threads,
            'inter_op_num_threads': inter_op_num_threads,
        }
        try:
            self._set_level(logging_level)
            if artifact is None:
                self.logger.info(f'no artifact is given: serving the pretrained model {DEFAULT_MODEL}')
                artifact = DEFAULT_MODEL
            if not isinstance(artifact, str):
                raise ParameterError(f'artifact is {artifact!r}, not a text: Jina reads digits as a number')
            schemes = allowed_schemes(encode_schemes, 'FINETUNER_ENCODE_SCHEMES', default='')
            # a folder that is named is leave enough to read in it
            self.links = allowed_links(allowed_roots(encode_roots, 'FINETUNER_ENCODE_ROOTS'), ['file', *schemes])
            self._tracing = start_tracing(replica, self.tracer_provider)
            self._cache = make_cache(cache_bytes)
            if self._cache is not None:
                self._metrics.watch_cache(self._cache)
            self._scraped = self._tell_metrics(replica)
            self.registry = open_registry(self.logger) if require_token else None
            found, store = find_artifact(artifact, token, self.logger)
            self.served = self._load(found) if found is not None else None
        except Exception as error:
            # Jina tells the one who starts the Flow that it failed, but not why
            self.logger.critical(f'cannot serve {without_secrets(str(artifact or DEFAULT_MODEL))}: {error}')
            if isinstance(error, ValueError | OSError) and replica:
                self.logger.debug('this is where it failed', exc_info=True)
                sys.exit(1)  # of a server; what it raises, Jina logs once more, with hundreds of lines of its stack
            raise
        self._asked_for = without_secrets(artifact)
        if self.served is None:
            self.logger.warning(f'nothing is promoted as {artifact} yet: waiting for it')
        else:
            engines = ' and '.join(type(server.engine).__name__ for server in self.served.models.servers.values())
            self.logger.info(f'serving {self._asked_for} with {engines}, {self.served.models.dim} dimensions')
        self._follower = self._follow(artifact, store) if store is not None else None

    def _load(self, found: Found) -> Served:
        try:
            models = self._serve(found.source)
            try:
                models.warm_up()
            except BaseException:
                models.close()  # its threads would keep it in memory
                raise
            return Served(models, found.id)
        except Exception as error:
            if found.refusal is None:
                raise
            raise ArtifactError(f'As a run: {found.refusal}. As a model of a hub: {error}') from error

    def _serve(self, source: str | Path) -> Router:
        engines: Mapping[Any, InferenceEngine]
        if self._select_model == AUTO:
            engines = load_engines(source, **self._options)
            check_together(engines.values())
        else:
            engines = {self._select_model: load_engine(source, select_model=self._select_model, **self._options)}
        admission = Admission(self._max_documents, self._metrics)
        servers = []
        for name, engine in engines.items():
            cache = None if self._cache is None else ModelCache(self._cache, digest_model(engine, source, name))
            servers.append(ModelServer(engine, self._metrics, cache, admission))
        return Router(servers, admission)

    def _follow(self, alias: str, store: Store) -> Follower:
        def switch(artifact_id: str) -> None:
            loaded = self._load(Found(store.file_of(artifact_id), artifact_id))
            with self._switching:
                before, self.served = self.served, loaded
            if before is not None:
                self._retire(before.models)
            self.logger.info(f'serving {alias} as it was promoted: the artifact {artifact_id}')

        current = None if self.served is None else self.served.artifact_id
        return Follower(alias, store, current, switch, self.logger)

    def _retire(self, models: Router) -> None:
        """Let a model answer what it has begun, while another one answers what comes: a rollback need not wait for it.

        There is one such model at a time, as each of them takes memory: the one before ends at once.
        """
        with self._switching:
            before, self._retiring = self._retiring, models
        if before is not None:
            before.close()
        threading.Thread(target=self._end, args=(models,), name='retire', daemon=True).start()

    def _end(self, models: Router) -> None:
        """Close a model once it has answered, and forget it: it takes as much memory as the one that answers."""
        models.close(DRAIN)
        with self._switching:
            if self._retiring is models:
                self._retiring = None

    def _tell_metrics(self, replica: str) -> WSGIServer | None:
        self._metrics.watch(self._state)
        port = metrics_port(replica)
        return serve_metrics(self._metrics.registry, port) if port else None

    def _state(self) -> tuple[int, int, str] | None:
        served = self.served
        return None if served is None else (served.models.items, served.models.waiting, served.artifact_id)

    def close(self) -> None:
        if self._scraped is not None:
            self._scraped.shutdown()
            self._scraped.server_close()
        if self._follower is not None:
            self._follower.close()
        if self.served is not None:
            # the server has let requests end, and those that are left wait for the very thread that this runs in
            self.served.models.close()
        with self._switching:
            retiring = self._retiring
        if retiring is not None:
            retiring.close()
        if self.registry is not None:
            self.registry.close()
        self._tracing.close()

    @requests(on='/encode')
    async def encode(self, docs: DocumentArray, parameters: dict[str, Any], **kwargs: Any) -> DocumentArray:
        """The same documents with embeddings. Requests that come at the same time are computed together.

        :param parameters: the fields of `EncodeParameters`.
        """
        with self._tracing.request('/encode', len(docs)) as watch:
            return await self._encode(docs, EncodeParameters(**parameters), watch)

    async def _encode(self, docs: DocumentArray, asked: EncodeParameters, watch: Watch) -> DocumentArray:
        await self._authenticate(asked)
        with self._admitted(len(docs)) as served:
            watch.note(artifact=served.artifact_id)
            check_dim(served.models.dim, asked.truncate_dim)
            failed = await self._embed(served.models, docs, asked, watch)
        began = time.monotonic()
        for position, document in enumerate(docs):
            if position in failed:
                document.tags = {**(document.tags or {}), ERROR_TAG: failed[position]}
            if asked.return_artifact:
                document.tags = {**(document.tags or {}), ARTIFACT_TAG: served.artifact_id}
            if not asked.return_content:
                _strip(document)
        watch.stage(ANSWER, began, time.monotonic(), len(docs))
        self.logger.debug(f'embedded {len(docs)} documents')
        return docs

    @requests(on='/encode_texts')
    async def encode_texts(self, docs: DocumentArray, parameters: dict[str, Any], **kwargs: Any) -> DocumentArray:
        """The embeddings of many texts as one array: next to nothing is done for each of them.

        :param docs: one document, whose `text` is a JSON list of texts.
        :param parameters: the fields of `EncodeTextsParameters`.
        :return: one document. Its `blob` is the array [N, D], row by row, in little-endian numbers; its tags are
            `count` (N), `dim` (D), `dtype`, `tokens` (of all texts, special ones included) and `model`, the id of the
            artifact.
        """
        with self._tracing.request('/encode_texts', len(docs)) as watch:
            return await self._encode_texts(docs, EncodeTextsParameters(**parameters), watch)

    async def _encode_texts(self, docs: DocumentArray, asked: EncodeTextsParameters, watch: Watch) -> DocumentArray:
        await self._authenticate(asked)
        is_short = len(docs) == 1 and len(docs[0].text or '') <= QUICK_CHARACTERS
        texts = _read_texts(docs) if is_short else await asyncio.to_thread(_read_texts, docs)
        with self._admitted(len(texts)) as served:
            watch.note(artifact=served.artifact_id, documents=len(texts))
            check_dim(served.models.dim, asked.truncate_dim)
            if asked.model not in (None, served.artifact_id, self._asked_for):
                raise ArtifactNotFoundError(f'there is no model {shorten(asked.model)}: this is {served.artifact_id!r}')
            model = served.models.of_texts()
            answer = await model.embed(texts, None, lambda row: f'text {row}', asked.timeout, watch=watch)
        began = time.monotonic()
        embeddings = shape_embeddings(answer.embeddings, asked.truncate_dim, asked.normalize)
        tags = {
            'count': len(embeddings),
            'dim': embeddings.shape[1],
            'dtype': asked.dtype,
            'tokens': answer.tokens,
            'model': served.artifact_id,
        }
        blob = embeddings.astype(np.dtype(asked.dtype).newbyteorder('<'), copy=False).tobytes()
        watch.stage(ANSWER, began, time.monotonic(), len(texts))
        return DocumentArray([Document(blob=blob, tags=tags)])

    async def _authenticate(self, asked: Parameters) -> None:
        if self.registry is not None:
            await asyncio.to_thread(self.registry.authenticate, asked.secret)

    @contextmanager
    def _admitted(self, count: int) -> Iterator[Served]:
        """The artifact that answers a request: one for all of it, whatever is promoted meanwhile."""
        with ExitStack() as under_way:
            with self._switching:
                served = self.served
                if served is None:
                    raise ArtifactNotFoundError(
                        f'nothing is promoted as {self._asked_for} yet: finetuner promote RUN {self._asked_for}'
                    )
                under_way.enter_context(served.models.admitted(count))
            yield served

    async def _embed(
        self, models: Router, docs: DocumentArray, asked: EncodeParameters, watch: Watch
    ) -> dict[int, str]:
        """Set the embeddings, and return what is wrong with the documents that have none, by position."""
        failed: dict[int, str] = {}
        parts = models.contents(docs, failed if asked.on_error == 'tag' else None)
        answers = await _together(
            *(self._embed_by(model, contents, docs, asked, watch) for model, contents in parts.items())
        )
        for errors in answers:
            failed |= errors
        return failed

    async def _embed_by(
        self,
        model: ModelServer,
        contents: dict[int, Any],
        docs: DocumentArray,
        asked: EncodeParameters,
        watch: Watch,
    ) -> dict[int, str]:
        """The same of those documents that one model takes.

        :param contents: of them, by position.
        """
        positions = list(contents)
        errors: dict[int, str] = {}
        answer = await model.embed(
            list(contents.values()),
            self.links,
            lambda row: name_document(positions[row], docs[positions[row]]),
            asked.timeout,
            errors if asked.on_error == 'tag' else None,
            watch,
        )
        embeddings = shape_embeddings(answer.embeddings, asked.truncate_dim, asked.normalize)
        for row, position in enumerate(positions):
            docs[position].embedding = None if row in errors else embeddings[row]
        return {positions[row]: error for row, error in errors.items()}

    @requests
    def unknown(self, docs: DocumentArray, **kwargs: Any) -> DocumentArray:
        raise unknown_endpoint(self)

    def _dry_run_func(self, *args: Any, **kwargs: Any) -> None:
        """What is asked for the health of the service."""
        if self.served is not None:
            self.served.models.check()

    def _set_level(self, name: str) -> None:
        level = logging.getLevelNamesMapping().get(str(name).upper())
        if level is None:
            raise ParameterError(f'logging_level is {name!r}: choose DEBUG, INFO, WARNING, ERROR or CRITICAL')
        self.logger.logger.setLevel(level)
        self.logger.debug_enabled = level <= logging.DEBUG
        logging.getLogger('finetuner').setLevel(level)


async def _together(*calls: Coroutine[Any, Any, Result]) -> list[Result]:
    """The results of calls that run at the same time. The first that fails ends the others, and is the error."""
    if len(calls) == 1:
        return [await calls[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except* Exception as several:
        error = several
    else:
        return [task.result() for task in tasks]
    raise error.exceptions[0]


def _read_texts(docs: DocumentArray) -> list[str]:
    """
    :raises DataError: there is not one document with a JSON list of texts.
    """
    try:
        [document] = docs
        texts = json.loads(document.text or '')
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError('send one document, whose text is a JSON list of texts')
    if len(texts) > MAX_DOCUMENTS:
        raise DataError(f'{len(texts)} texts in one message: send at most {MAX_DOCUMENTS} at once')
    return texts


def _strip(document: Document) -> None:
    """Leave out what was sent to be encoded, but for texts: the sender has it, and it may be large."""
    document.blob = document.tensor = None
    document.chunks = DocList[Content]()
    if document.uri and document.uri.startswith('data:'):
        document.uri = None
