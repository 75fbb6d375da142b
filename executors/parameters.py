"""The parameters of the endpoints. Jina validates a request against the model that annotates its handler."""

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StrictBool,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from executors.patterns import RULES, SHA256
from executors.told import Told
from finetuner.excepts import ParameterError
from registry.plain import check_description
from registry.queue import SCHEDULING
from training.numbers import EXACT, integers

SHOWN = 200
"""Characters of a wrong value that an error shows."""
INT32 = 2**31 - 1
INT53 = EXACT - 1
"""The largest whole number that arrives as it was sent: numbers travel as floats."""


def refuse_truth_for_a_number(model: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    """For a validator of all fields of a model, before its own: pydantic would take true for 1."""
    kind = model.model_fields[str(info.field_name)].annotation
    kinds = {kind, *get_args(kind)}
    if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
        raise ValueError('it must be a number')
    return value


class Parameters(BaseModel):
    """Base of all: an unknown name is an error, and no error shows a token."""

    model_config = ConfigDict(extra='forbid', hide_input_in_errors=True)

    token: SecretStr | None = Field(default=None, description='The token of an account of this service.')

    @field_validator('*', mode='before')
    @classmethod
    def _refuse_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        return refuse_truth_for_a_number(cls, value, info)

    def __init__(self, **values: Any) -> None:
        values.pop('__results__', None)  # Jina's client adds it where there are no parameters
        try:
            super().__init__(**values)
        except ValidationError as error:
            # pydantic's own text would show the input, and with it the token
            raise ParameterError(f'parameters: {describe(error)}') from None

    @property
    def secret(self) -> str | None:
        """The token in the clear, to be checked and nothing else."""
        return self.token.get_secret_value() if self.token is not None else None


def describe(error: ValidationError) -> str:
    """One sentence for each wrong field: its name, what is wrong, and its value where that is no secret."""
    details = error.errors(include_url=False)
    return '; '.join(_sentence('.'.join(str(part) for part in detail['loc']), detail) for detail in details)


def _sentence(name: str, detail: Any) -> str:
    reason = detail['msg'].removeprefix('Value error, ')
    if detail['type'] == 'missing':
        return f'{name!r} is missing'
    if detail['type'] == 'extra_forbidden':  # its value stays hidden: it may be a token under a misspelt name
        return f'{name!r} is unknown'
    value = detail['input']
    if rule := broken_rule(detail):
        return f'{name!r}: {shorten(value)} {rule}'
    shown = (
        '' if 'token' in name or not isinstance(value, str | int | float | bool | None) else f', got {shorten(value)}'
    )
    return f'{name!r}: {reason[:1].lower()}{reason[1:]}{shown}'


def broken_rule(detail: Any) -> str | None:
    """What is to be said of a text that does not match a pattern, or of a number too large, if pydantic complains of
    that.
    """
    if detail['type'] == 'int_parsing_size':
        return 'is too large a number'
    return RULES.get(detail['ctx']['pattern']) if detail['type'] == 'string_pattern_mismatch' else None


def shorten(value: object) -> str:
    """The value as it would be written, not all of it if it is long."""
    written = repr(integers(value) if isinstance(value, float) else value)
    return written if len(written) <= SHOWN else f'{written[:SHOWN]}…'


class IngestParameters(Parameters):
    """`/ingest`: the documents of the request, or of the file at `uri`, become a part of the data set `name`."""

    name: str
    part: int | None = Field(
        default=None, ge=0, le=INT32, description='Number of this part: sent again, it is not added again.'
    )
    uri: str | None = Field(
        default=None, description='A CSV, JSONL, Parquet or Arrow file that the service can read, instead of documents.'
    )
    format: Literal['csv', 'jsonl', 'parquet', 'arrow'] | None = Field(
        default=None, description='The one document holds such a file in its blob, which is read instead.'
    )
    sha256: str | None = Field(
        default=None, pattern=SHA256, description='Of the bytes of that file, checked before it is read.'
    )
    csv_options: dict[str, Any] | None = None


class FitParameters(Parameters):
    """`/fit`: besides the token, the arguments of `finetuner.fit`, which `training.config.FitConfig` checks."""

    model_config = ConfigDict(extra='allow')

    check_only: StrictBool = Field(
        default=False, description='Check the arguments, before data is sent, and make no run.'
    )
    priority: int = Field(default=0, ge=-1000, le=1000, description='Runs of a higher one are worked on first.')
    cpus: float | None = Field(default=None, gt=0, le=4096, description='Cores that the run is given, default any.')
    gpus: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description='GPUs that share the work. Default one if device is cuda and there are any; 0 is none.',
    )
    memory_limit: int | None = Field(
        default=None, ge=1 << 26, le=1 << 50, description='Bytes that the run may take, default no limit.'
    )
    max_retries: int | None = Field(
        default=None, ge=0, le=100, description='Attempts after the first, where the worker is lost; default 2.'
    )

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def scheduling(self) -> dict[str, Any]:
        """How the run is to be worked on."""
        return {name: getattr(self, name) for name in SCHEDULING}


class RunParameters(Parameters):
    """A run by its name, or by its id: then it is that very run, and not another that has its name by now."""

    run_name: str | None = None
    experiment_name: str = 'default'
    run_id: str | None = None

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        if self.run_name is None and self.run_id is None:
            raise ParameterError("parameters: 'run_name' is missing")


class LogParameters(RunParameters):
    """`/logs`: `offset` is the number of bytes that the caller has seen."""

    offset: int = Field(default=0, ge=0, le=INT53)


class PageParameters(Parameters):
    """One page of a list: `/experiments`, `/tokens`, `/datasets`, `/artifacts`, `/aliases`."""

    page: int = Field(default=1, ge=1, le=1_000_000)
    size: int = Field(default=50, ge=1, le=100)


class RunsParameters(PageParameters):
    """`/runs`: one page of the runs of an experiment, or of all."""

    experiment_name: str | None = None


class ExperimentParameters(Parameters):
    """An experiment by its name."""

    name: str
    description: Annotated[str, AfterValidator(check_description)] = ''


class DeleteRunsParameters(Parameters):
    """`/delete_runs`: the runs of an experiment, or of all."""

    experiment_name: str | None = None


class DeleteExperimentsParameters(Parameters):
    """`/delete_experiments`: the experiments of these names, or all."""

    names: list[str] | None = Field(default=None, max_length=1000)


class DatasetParameters(Parameters):
    """`/delete_dataset`: a data set by its name."""

    name: str


class PartsParameters(PageParameters):
    """`/dataset`: a data set by its name, with one page of its parts."""

    name: str


class CreateTokenParameters(Parameters):
    """`/create_token`: a name for lists, and how long the new token is valid; for ever by default."""

    name: str
    days: float | None = Field(default=None, gt=0, le=36_500, allow_inf_nan=False)


class RevokeTokenParameters(Parameters):
    """`/revoke_token`: a token by its id, which is not the token."""

    id: str


class PromoteParameters(Parameters):
    """`/promote`: what `alias` ('name@stage') names from now on: an id, 'experiment/run' or 'name@stage'."""

    alias: str
    artifact: str


class AliasParameters(Parameters):
    """`/rollback`, `/delete_alias`: an alias, 'name@stage'."""

    alias: str


class HistoryParameters(PageParameters):
    """`/alias`: an alias, with one page of its history."""

    alias: str


class ArtifactParameters(Parameters):
    """`/artifact`: `length` bytes of an artifact from `offset` on.

    `artifact_id` may also be a reference: 'experiment/run' or 'name@stage'.
    """

    artifact_id: str
    offset: int = Field(default=0, ge=0, le=INT53)
    length: int = Field(default=1 << 20, ge=1, le=1 << 26)


class TokenParameters(Parameters):
    """`/whoami`, `/usage`: a token and nothing else."""


class ShownResult(BaseModel):
    """A result as it was shown to a user."""

    model_config = ConfigDict(extra='forbid')

    object_id: str
    rank: float | None = Field(default=None, description='The score that the search gave it, such as a cosine.')
    meta: Told | None = Field(default=None, description='What is in the item, or where it is.')


class SessionParameters(Parameters):
    """`/register_session`: a search and what it showed, which becomes a part of the batch that collects."""

    session_id: str = Field(description='Of the client, unique within the account.')
    search_query: str
    search_results: list[ShownResult]
    search_meta: Told | None = None
    user_id: str | None = None
    created_at: int | None = Field(default=None, description='Seconds since 1970 in UTC, about now.')


class UserEvent(BaseModel):
    """What a user did with a result."""

    model_config = ConfigDict(extra='forbid')

    event_id: str = Field(description='Of the client, unique within the session.')
    object_id: str
    event_type: str = 'click'
    created_at: int | None = Field(default=None, description='Seconds since 1970 in UTC.')
    meta: Told | None = Field(default=None, description='`importance` is a weight.')


class EventsParameters(Parameters):
    """`/register_events`: what a user did in a session."""

    session_id: str
    events: list[UserEvent]


class SessionIdParameters(Parameters):
    """A session by its id."""

    session_id: str


class ReleaseParameters(Parameters):
    """`/release_batch`: the same id gives the same batch."""

    release_id: str


class BatchParameters(Parameters):
    """A batch by its id."""

    batch_id: str


class BatchesParameters(Parameters):
    """`/batches`: one page of batches."""

    page: int = Field(default=1, ge=1, le=INT32)
    size: int = Field(default=50, ge=1, le=100)


class BatchSessionsParameters(Parameters):
    """`/batch_sessions`: the sessions of a batch after a number."""

    batch_id: str
    after_number: int = Field(default=0, ge=0, le=INT53)
    limit: int = Field(default=10, ge=1, le=1000)
    events_limit: int = Field(default=100, ge=1, le=1000)


class DeleteSessionsParameters(Parameters):
    """`/delete_sessions`: those of a user, or those that are older than so many days."""

    user_id: str | None = None
    older_than_days: float | None = Field(default=None, ge=0, le=36_500)


class NewTuningTaskParameters(Parameters):
    """`/create_tuning_task`: the same `idempotency_key` gives the same task."""

    fine_tuning_method: str
    batch_id: str | None = Field(default=None, description='Default the batch that collects when the task begins.')
    metadata: Told | None = None
    idempotency_key: str | None = None


class TuningTaskParameters(Parameters):
    """A fine-tuning task by its id."""

    task_id: str


class TuningTasksParameters(Parameters):
    """`/tuning_tasks`: some tasks, the oldest first."""

    skip: int = Field(default=0, ge=0, le=INT32)
    limit: int = Field(default=100, ge=1, le=1000)
    status: Literal['pending', 'processing', 'done', 'canceled', 'error'] | None = None


class SearchParameters(Parameters):
    """`/search`: how much is found, and whether it becomes a session of the clickstream."""

    limit: int = Field(default=10, ge=1, le=1000)
    create_session: StrictBool = False
    session_id: str | None = Field(
        default=None, description='Of the client, for the session that create_session makes; default a random one.'
    )
    user_id: str | None = None

    @field_validator('session_id', 'user_id')
    @classmethod
    def _refuse_an_id_of_nothing(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get('create_session') is False:
            raise ValueError('it is of the session that create_session makes: set create_session to true, or omit it')
        return value


class DeleteItemsParameters(Parameters):
    """`/delete_items`: items by their ids."""

    object_ids: list[str] = Field(max_length=1000)


class EncodeParameters(Parameters):
    """`/encode`: a token where the executor needs one. The rest is for other executors of the Flow."""

    model_config = ConfigDict(extra='ignore')

    return_content: StrictBool = Field(
        default=False, description='Answer with blobs, tensors, chunks and data: URIs, too; else without them.'
    )
    on_error: Literal['raise', 'tag'] = Field(
        default='raise',
        description='What a document that cannot be read does: it fails the request, or gets the tag finetuner_error '
        'and no embedding.',
    )
    truncate_dim: int | None = Field(default=None, ge=1, description='Keep so many of the first dimensions.')
    normalize: StrictBool = Field(default=False, description='Scale the embeddings, after that, to L2 norm 1.')
    timeout: float | None = Field(default=None, gt=0, description='Seconds that the request may wait for the model.')
    return_artifact: StrictBool = Field(
        default=False, description="Put the id of the artifact that answered into each document's tags."
    )


class EncodeTextsParameters(Parameters):
    """`/encode_texts`: a token where the executor needs one. The document's `text` is a JSON list of texts."""

    model: str | None = Field(default=None, description='The model that is to answer; an error if it is another.')
    dtype: Literal['float32', 'float16'] = Field(default='float32', description='Of the numbers in the answer.')
    truncate_dim: int | None = Field(default=None, ge=1, description='Keep so many of the first dimensions.')
    normalize: StrictBool = Field(default=False, description='Scale the embeddings, after that, to L2 norm 1.')
    timeout: float | None = Field(default=None, gt=0, description='Seconds that the request may wait for the model.')
