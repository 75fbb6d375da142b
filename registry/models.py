"""The tables. Times are UTC, ids are 24 hexadecimal digits that we make, names are unique within their owner."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from registry.names import new_id
from registry.plain import clean


def now() -> datetime:
    return datetime.now(UTC)


class UTCDateTime(TypeDecorator[datetime]):
    """An aware time, kept in UTC also where the database knows no time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f'{value} has no time zone')
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class CleanString(TypeDecorator[str]):
    """A text that databases do not refuse, also where it is only looked for: see `registry.plain.clean`."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean(value)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            'ix': 'ix_%(table_name)s_%(column_0_N_name)s',
            'uq': 'uq_%(table_name)s_%(column_0_N_name)s',
            'ck': 'ck_%(table_name)s_%(constraint_name)s',
            'fk': 'fk_%(table_name)s_%(column_0_N_name)s',
            'pk': 'pk_%(table_name)s',
        }
    )
    type_annotation_map = {
        str: CleanString(255),
        int: BigInteger,
        datetime: UTCDateTime,
        dict[str, Any]: JSON(none_as_null=True),
        list[dict[str, Any]]: JSON(none_as_null=True),
    }

    id: Mapped[str] = mapped_column(CleanString(24), primary_key=True, default=new_id, sort_order=-1)
    created_at: Mapped[datetime] = mapped_column(default=now)


class AccountRow(Base):
    __tablename__ = 'accounts'

    name: Mapped[str] = mapped_column(unique=True)
    # limits, None for none: bytes of data sets and artifacts, and runs at work at once
    max_bytes: Mapped[int | None]
    max_runs: Mapped[int | None]


class TokenRow(Base):
    __tablename__ = 'tokens'

    account_id: Mapped[str] = mapped_column(ForeignKey('accounts.id', ondelete='CASCADE'), index=True)
    name: Mapped[str]
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    account: Mapped[AccountRow] = relationship(lazy='joined', innerjoin=True)


class DatasetRow(Base):
    __tablename__ = 'datasets'
    __table_args__ = (UniqueConstraint('account_id', 'name'),)

    account_id: Mapped[str] = mapped_column(ForeignKey('accounts.id'))
    name: Mapped[str]
    # sums over the shards, kept so that an append need not read them all
    rows: Mapped[int]
    size: Mapped[int]
    digest: Mapped[str] = mapped_column(String(64))
    shape: Mapped[str] = mapped_column(String(16))
    modalities: Mapped[str]  # of the contents of a row, with commas between
    labelled: Mapped[bool]
    scored: Mapped[bool]
    linked: Mapped[bool]


class ShardRow(Base):
    __tablename__ = 'shards'
    __table_args__ = (UniqueConstraint('dataset_id', 'part'),)

    dataset_id: Mapped[str] = mapped_column(ForeignKey('datasets.id'))
    part: Mapped[int]
    rows: Mapped[int]
    size: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    content_digest: Mapped[str] = mapped_column(String(64))
    shape: Mapped[str] = mapped_column(String(16))
    modalities: Mapped[str]  # of the contents of a row, with commas between
    labelled: Mapped[bool]
    scored: Mapped[bool]
    linked: Mapped[bool]
    key: Mapped[str] = mapped_column(unique=True)


class ExperimentRow(Base):
    __tablename__ = 'experiments'
    __table_args__ = (UniqueConstraint('account_id', 'name'),)

    account_id: Mapped[str] = mapped_column(ForeignKey('accounts.id'))
    name: Mapped[str]
    description: Mapped[str] = mapped_column(Text, default='')


class RunRow(Base):
    __tablename__ = 'runs'
    __table_args__ = (
        UniqueConstraint('experiment_id', 'name'),
        CheckConstraint("status IN ('CREATED', 'STARTED', 'FINISHED', 'FAILED', 'CANCELLED')", name='status'),
        Index(None, 'status', 'created_at'),
    )

    experiment_id: Mapped[str] = mapped_column(ForeignKey('experiments.id'))
    name: Mapped[str]
    status: Mapped[str] = mapped_column(String(16))
    details: Mapped[str] = mapped_column(Text, default='')
    description: Mapped[str] = mapped_column(Text, default='')
    config: Mapped[dict[str, Any]]
    # the data sets as they were at creation: {name: {id, digest, rows, size, shape, ..., shards: [id, ...]}}
    datasets: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    artifact_id: Mapped[str] = mapped_column(String(24), unique=True, default=new_id)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    heartbeat_at: Mapped[datetime | None]
    worker: Mapped[str | None]
    priority: Mapped[int] = mapped_column(default=0, server_default='0')  # the higher, the sooner
    attempts: Mapped[int] = mapped_column(default=0, server_default='0')  # starts since it was submitted
    lease: Mapped[str | None] = mapped_column(String(24))  # made anew by each start: the token of its worker
    not_before: Mapped[datetime | None]  # when a run that crashed may be tried again
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    metrics: Mapped[dict[str, Any] | None]
    examples: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)

    experiment: Mapped[ExperimentRow] = relationship(lazy='joined', innerjoin=True)


class ArtifactRow(Base):
    __tablename__ = 'artifacts'

    account_id: Mapped[str] = mapped_column(ForeignKey('accounts.id'), index=True)
    run_id: Mapped[str] = mapped_column(ForeignKey('runs.id'), unique=True)
    size: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    public: Mapped[bool]
    key: Mapped[str] = mapped_column(unique=True)

    run: Mapped[RunRow] = relationship(lazy='joined', innerjoin=True)


class LogPieceRow(Base):
    __tablename__ = 'log_pieces'
    __table_args__ = (UniqueConstraint('run_id', 'offset'),)

    run_id: Mapped[str] = mapped_column(ForeignKey('runs.id', ondelete='CASCADE'))
    offset: Mapped[int]  # in bytes, of the log of all attempts
    data: Mapped[bytes] = mapped_column(LargeBinary)


class CheckpointRow(Base):
    __tablename__ = 'checkpoints'

    run_id: Mapped[str] = mapped_column(ForeignKey('runs.id', ondelete='CASCADE'), index=True)
    name: Mapped[str]
    size: Mapped[int]
    sha256: Mapped[str] = mapped_column(String(64))
    key: Mapped[str] = mapped_column(unique=True)


class PromotionRow(Base):
    """An artifact that an alias names, or has named: the highest number counts."""

    __tablename__ = 'promotions'
    __table_args__ = (UniqueConstraint('account_id', 'alias', 'number'),)

    account_id: Mapped[str] = mapped_column(ForeignKey('accounts.id'))
    alias: Mapped[str]
    number: Mapped[int]
    artifact_id: Mapped[str] = mapped_column(ForeignKey('artifacts.id'), index=True)


class ClickBatchRow(Base):
    """Click sessions that are learned from together. An account has one at most that still collects."""

    __tablename__ = 'click_batches'
    __table_args__ = (
        UniqueConstraint('account_id', 'release_id'),
        CheckConstraint("status IN ('collecting', 'released')", name='status'),
        Index(
            'uq_click_batches_collecting',
            'account_id',
            unique=True,
            sqlite_where=text("status = 'collecting'"),
            postgresql_where=text("status = 'collecting'"),
        ),
    )

    account_id: Mapped[str] = mapped_column(ForeignKey('accounts.id'))
    status: Mapped[str] = mapped_column(String(16))
    last_number: Mapped[int]  # of its sessions: those that are deleted leave a gap
    release_id: Mapped[str | None]
    released_at: Mapped[datetime | None]


class ClickSessionRow(Base):
    """A search and what was shown. `created_at` is when the client says that it was."""

    __tablename__ = 'click_sessions'
    __table_args__ = (
        UniqueConstraint('account_id', 'session_id'),
        UniqueConstraint('batch_id', 'number'),
        Index(None, 'account_id', 'user_id'),
        Index(None, 'account_id', 'created_at'),
    )

    account_id: Mapped[str] = mapped_column(ForeignKey('accounts.id'))
    batch_id: Mapped[str] = mapped_column(ForeignKey('click_batches.id'))
    number: Mapped[int]
    session_id: Mapped[str]
    search_query: Mapped[str] = mapped_column(Text)
    search_results: Mapped[list[dict[str, Any]]]
    search_meta: Mapped[dict[str, Any] | None]
    user_id: Mapped[str | None]
    is_irrelevant: Mapped[bool] = mapped_column(default=False)


class ClickEventRow(Base):
    """What a user did with a result. It may arrive before its session, so there is no key that refers to that."""

    __tablename__ = 'click_events'
    __table_args__ = (
        UniqueConstraint('account_id', 'session_id', 'event_id'),
        Index(None, 'account_id', 'created_at'),
    )

    account_id: Mapped[str] = mapped_column(ForeignKey('accounts.id'))
    session_id: Mapped[str]
    event_id: Mapped[str]
    position: Mapped[int]  # in the request that brought it
    object_id: Mapped[str]
    event_type: Mapped[str]
    meta: Mapped[dict[str, Any] | None]


class TuningTaskRow(Base):
    """What a client asked to have learned from clicks. Its run carries it, and goes with it."""

    __tablename__ = 'tuning_tasks'
    __table_args__ = (
        UniqueConstraint('account_id', 'idempotency_key'),
        UniqueConstraint('run_id'),
        Index(None, 'account_id', 'created_at'),
    )

    account_id: Mapped[str] = mapped_column(ForeignKey('accounts.id'))
    method: Mapped[str]
    batch_id: Mapped[str | None] = mapped_column(ForeignKey('click_batches.id'))
    idempotency_key: Mapped[str | None]
    meta: Mapped[dict[str, Any] | None]
    run_id: Mapped[str] = mapped_column(ForeignKey('runs.id', ondelete='CASCADE'))
    is_canceled: Mapped[bool] = mapped_column(default=False)  # also after its run has finished
    restarts: Mapped[int] = mapped_column(default=0)  # after its run had finished: each is a run of its own
    updated_at: Mapped[datetime] = mapped_column(default=now)

    run: Mapped[RunRow] = relationship(lazy='joined', innerjoin=True)


class SearchItemRow(Base):
    """What can be searched for, with the embedding that a model made of it."""

    __tablename__ = 'search_items'
    __table_args__ = (UniqueConstraint('account_id', 'object_id'), Index(None, 'account_id', 'size'))

    account_id: Mapped[str] = mapped_column(ForeignKey('accounts.id'))
    object_id: Mapped[str]
    text: Mapped[str] = mapped_column(Text)
    meta: Mapped[dict[str, Any] | None]
    model: Mapped[str]  # that the embedding is of
    embedding: Mapped[bytes] = mapped_column(LargeBinary)
    revision: Mapped[int]  # another one with each text
    size: Mapped[int] = mapped_column(default=0, server_default='0')  # what it counts of what an account may have
