"""What the functions of the client return, beside runs and experiments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, TypeVar

from finetuner.excepts import FinetunerServerError

T = TypeVar('T')


class RunStatus(TypedDict):
    """Where a run stands, and what it or the service says of it."""

    status: Literal['CREATED', 'STARTED', 'FINISHED', 'FAILED', 'CANCELLED']
    details: str


@dataclass(frozen=True)
class Progress:
    """How far a run is. What is not known, or does not apply to the stage, is None.

    :param stage: what it is at, such as 'Training'; empty where it is not at work.
    :param epoch: from 1.
    :param step: steps that are done, of `steps` in this stage.
    :param loss: of the last steps.
    :param eta: seconds until the end of this stage.
    :param attempt: from 1; more where the run went on after a crash.
    :param queue_position: of a run that waits: 1 is the next.
    """

    stage: str = ''
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    samples_per_second: float | None = None
    eta: float | None = None
    attempt: int = 1
    queue_position: int | None = None


@dataclass(frozen=True)
class TokenInfo:
    """A token of the account, but not the token itself. Times are in ISO 8601.

    :param expires_at: None: never.
    :param revoked_at: None: it is valid.
    """

    id: str
    name: str
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None


@dataclass(frozen=True)
class NewToken:
    """A token that was just made.

    :param token: the token itself. The service keeps its hash alone: it cannot be shown again.
    """

    id: str
    name: str
    token: str
    created_at: str
    expires_at: str | None = None

    def __repr__(self) -> str:
        return f'NewToken(id={self.id!r}, name={self.name!r}, expires_at={self.expires_at!r})'


@dataclass(frozen=True)
class Amount:
    """How many there are, and what they take in the store."""

    count: int
    bytes: int


@dataclass(frozen=True)
class RunCounts:
    """:param total: those that have ended among them."""

    waiting: int
    at_work: int
    total: int


@dataclass(frozen=True)
class Usage:
    """What an account holds.

    :param max_bytes: that it may hold; None is no limit.
    :param max_runs: that it may have at work at the same time; None is no limit.
    :param search_items: what can be searched for, with their embeddings.
    :param max_search_bytes: that those may take; None is not known.
    """

    account: str
    datasets: Amount
    artifacts: Amount
    checkpoints: Amount
    runs: RunCounts
    max_bytes: int | None = None
    max_runs: int | None = None
    search_items: Amount = Amount(0, 0)
    max_search_bytes: int | None = None


@dataclass(frozen=True)
class PartInfo:
    """A part of a data set, as it was uploaded.

    :param part: the number that it was given; None if it was given none.
    :param size: in bytes.
    """

    part: int | None
    rows: int
    size: int
    sha256: str
    content_digest: str | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """A data set of the service.

    :param size: in bytes.
    :param digest: the same for the same content.
    :param shape: 'single', 'pair' or 'triplet': what its documents are.
    :param modalities: what they hold, such as 'text'.
    :param parts: filled by `get_dataset` alone, a page of them.
    """

    name: str
    rows: int
    size: int
    digest: str
    created_at: str
    shape: str | None = None
    modalities: tuple[str, ...] = ()
    labelled: bool = False
    scored: bool = False
    parts: tuple[PartInfo, ...] = ()
    parts_total: int = 0


@dataclass(frozen=True)
class ArtifactInfo:
    """A tuned model in the store.

    :param size: in bytes.
    :param public: whoever knows its id may download it.
    :param aliases: that name it now.
    """

    id: str
    name: str
    experiment_name: str
    run_name: str
    size: int
    sha256: str
    public: bool
    created_at: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Promotion:
    """What an alias named from some time on.

    :param number: counts the promotions of the alias, from 1.
    :param previous: the artifact that it named before.
    """

    artifact_id: str
    number: int
    created_at: str
    alias: str = ''
    previous: str | None = None


@dataclass(frozen=True)
class Alias:
    """A name for an artifact, such as 'support@production', that can be given to another one.

    :param number: counts its promotions, from 1.
    :param history: filled by `get_alias` alone, the latest first.
    """

    alias: str
    artifact_id: str
    number: int
    experiment_name: str
    run_name: str
    created_at: str
    history: tuple[Promotion, ...] = ()


def read_result(kind: type[T], values: Mapping[str, Any]) -> T:
    """A result from the tags of an answer, in which whole numbers may have become floats. What a newer service says
    beyond is left out.

    :raises FinetunerServerError: something is missing or of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        fields = ', '.join('.'.join(map(str, detail['loc'])) for detail in error.errors())
        raise FinetunerServerError(
            f'the service answered with a {kind.__name__} that is none: {fields}', 'is it of another version?'
        ) from error
