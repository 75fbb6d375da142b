"""What the registry hands out: plain values, never rows of the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

CREATED = 'CREATED'
STARTED = 'STARTED'
FINISHED = 'FINISHED'
FAILED = 'FAILED'
CANCELLED = 'CANCELLED'


Item = TypeVar('Item')


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some of a list.

    :param total: how many there are on all pages.
    :param number: of the page, from 1.
    :param size: the most items that a page has.
    """

    items: list[Item]
    total: int
    number: int
    size: int


@dataclass(frozen=True, slots=True)
class Account:
    """Who owns data sets, runs and artifacts.

    :param max_bytes: of its data sets and artifacts together; None for as many as there is room for.
    :param max_runs: of its runs that are at work at the same time; None for as many as the service works on.
    """

    id: str
    name: str
    created_at: datetime
    max_bytes: int | None
    max_runs: int | None


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token: everything but the token itself."""

    id: str
    account_id: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Stored:
    """How many things of a kind an account has in the object store, and their bytes."""

    count: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What an account has, beside what it may have (see `Account`).

    :param max_search_bytes: that search items may take, of any account.
    :param waiting: runs that are CREATED.
    :param at_work: runs that are STARTED.
    :param runs: all runs.
    """

    account: Account
    datasets: Stored
    artifacts: Stored
    checkpoints: Stored
    search_items: Stored
    max_search_bytes: int
    waiting: int
    at_work: int
    runs: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One ingested part of a data set: an Arrow IPC file in the object store.

    :param size: in bytes.
    :param sha256: of the file's bytes.
    :param content_digest: sha256 of the documents without their ids.
    :param shape: 'items', 'pairs' or 'triplets'.
    :param modalities: of the contents of a row: 'text', 'image', 'mesh' or 'tensor'; empty if it is not known.
    :param labelled: whether every row has a label.
    :param scored: whether every row has a score.
    :param linked: whether a content is known by its URI alone.
    """

    id: str
    part: int
    rows: int
    size: int
    sha256: str
    content_digest: str
    shape: str
    modalities: tuple[str, ...]
    labelled: bool
    scored: bool
    linked: bool
    key: str


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """A named data set, summed up over its shards.

    :param digest: of the content of the shards, in the order of their parts: the same parts give the same.
    :param shape: what every row is: 'items', 'pairs' or 'triplets'.
    :param modalities: of the contents of a row: 'text', 'image', 'mesh' or 'tensor'; empty if it is not known.
    :param labelled: whether every row has a label.
    :param scored: whether every row has a score.
    :param linked: whether a content is known by its URI alone.
    """

    id: str
    name: str
    rows: int
    size: int
    digest: str
    shape: str
    modalities: tuple[str, ...]
    labelled: bool
    scored: bool
    linked: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Dataset(DatasetSummary):
    """A data set with its shards, in the order of their parts."""

    shards: list[Shard]


@dataclass(frozen=True, slots=True)
class ExperimentRecord:
    """A group of runs.

    :param runs: how many there are.
    """

    id: str
    name: str
    description: str
    created_at: datetime
    runs: int


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as it stood when it was read. All times are in UTC.

    :param status: CREATED, STARTED, FINISHED, FAILED or CANCELLED.
    :param details: one sentence about the status; of a FAILED or CANCELLED run, the reason.
    :param artifact_id: handed out at creation; there is an artifact once the run is FINISHED.
    :param worker: who works on it, `host:pid`.
    :param progress: what the worker last reported.
    :param metrics: `{'before': {...}, 'after': {...}}` of a FINISHED run.
    :param examples: `{'before': {query: [match, ...]}, 'after': ...}` of a FINISHED run; None in listings.
    :param priority: the higher, the sooner.
    :param attempts: how often it was started since it was submitted, those that the service broke off not counted.
    :param lease: of the worker that has it, see `registry.queue`.
    :param queue_position: of a CREATED run, among those of all accounts: 1 is next. None of others.
    """

    id: str
    name: str
    experiment_name: str
    account_id: str
    status: str
    details: str
    config: dict[str, Any]
    artifact_id: str
    description: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    heartbeat_at: datetime | None
    worker: str | None
    progress: dict[str, Any]
    metrics: dict[str, Any] | None
    examples: dict[str, Any] | None
    priority: int
    attempts: int
    lease: str | None
    queue_position: int | None


@dataclass(frozen=True, slots=True)
class ArtifactRecord:
    """A stored artifact: the zip file that a finished run left.

    :param name: the name of its run.
    :param aliases: the aliases that name it now.
    :param size: in bytes.
    :param sha256: of the zip file's bytes.
    :param public: whether any account that knows the id may read it.
    """

    id: str
    account_id: str
    run_id: str
    name: str
    experiment_name: str
    size: int
    sha256: str
    public: bool
    created_at: datetime
    key: str
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Promotion:
    """What an alias names, or has named, from a time on.

    :param alias: 'name@stage'.
    :param number: of this promotion among those of the alias, from 1; the highest is the one that counts.
    :param previous: the id of the artifact that it named before; None if it named none.
    """

    alias: str
    number: int
    artifact_id: str
    experiment_name: str
    run_name: str
    previous: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """The latest checkpoint of a run in the object store.

    :param name: that of the folder it was packed from; later ones sort behind earlier ones, see `training.checkpoint`.
    :param size: in bytes.
    :param sha256: of the object's bytes.
    """

    name: str
    size: int
    sha256: str
    key: str


@dataclass(frozen=True, slots=True)
class TuningTask:
    """A fine-tuning by clicks that a client asked for.

    :param method: the name of the fine-tuning method.
    :param status: 'pending', 'processing', 'done', 'error' or 'canceled'.
    :param batch_id: the clicks that it learns from; None as long as it waits for those that collect.
    :param metadata: of the client.
    :param run_id: of the run that carries it now.
    :param details: a sentence about that run.
    :param artifact_id: the best model; None unless the run has finished.
    :param metrics: what the run has found out about that model; None unless it has finished.
    """

    id: str
    account_id: str
    method: str
    status: str
    batch_id: str | None
    idempotency_key: str | None
    metadata: dict[str, Any] | None
    created_at: datetime
    updated_at: datetime
    run_id: str
    run_name: str
    details: str
    artifact_id: str | None
    progress: dict[str, Any]
    metrics: dict[str, Any] | None
