"""The parameters of the endpoints. Jina validates a request against the model that annotates its handler."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from finetuner.excepts import ParameterError


class Parameters(BaseModel):
    """Base of all: an unknown name is an error, and no error shows a token."""

    model_config = ConfigDict(extra='forbid', hide_input_in_errors=True)

    token: SecretStr | None = Field(default=None, description='The token of an account of this service.')

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
    details = error.errors(include_url=False, include_context=False)
    return '; '.join(_sentence('.'.join(str(part) for part in detail['loc']), detail) for detail in details)


def _sentence(name: str, detail: Any) -> str:
    reason = detail['msg'].removeprefix('Value error, ')
    if detail['type'] == 'missing':
        return f'{name!r} is missing'
    if detail['type'] == 'extra_forbidden':  # its value stays hidden: it may be a token under a misspelt name
        return f'{name!r} is unknown'
    value = detail['input']
    shown = '' if 'token' in name or not isinstance(value, str | int | float | bool | None) else f', got {value!r}'
    return f'{name!r}: {reason[:1].lower()}{reason[1:]}{shown}'


class IngestParameters(Parameters):
    """`/ingest`: the documents of the request, or of the file at `uri`, become a part of the data set `name`."""

    name: str
    part: int | None = Field(default=None, ge=0, description='Number of this part: sent again, it is not added again.')
    uri: str | None = Field(
        default=None, description='A CSV, JSONL, Parquet or Arrow file that the service can read, instead of documents.'
    )
    csv_options: dict[str, Any] | None = None


class FitParameters(Parameters):
    """`/fit`: besides the token, the arguments of `finetuner.fit`, which `training.config.FitConfig` checks."""

    model_config = ConfigDict(extra='allow')

    check_only: bool = Field(default=False, description='Check the arguments, before data is sent, and make no run.')

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class RunParameters(Parameters):
    """A run by its name."""

    run_name: str
    experiment_name: str = 'default'


class LogParameters(RunParameters):
    """`/logs`: `offset` is the number of bytes that the caller has seen."""

    offset: int = Field(default=0, ge=0)


class RunsParameters(Parameters):
    """`/runs`: one page of the runs of an experiment, or of all."""

    experiment_name: str | None = None
    page: int = Field(default=1, ge=1)
    size: int = Field(default=50, ge=1, le=100)


class ExperimentParameters(Parameters):
    """An experiment by its name."""

    name: str
    description: str = ''


class ExperimentsParameters(Parameters):
    """`/experiments`: one page of experiments."""

    page: int = Field(default=1, ge=1)
    size: int = Field(default=50, ge=1, le=100)


class DeleteRunsParameters(Parameters):
    """`/delete_runs`: the runs of an experiment, or of all."""

    experiment_name: str | None = None


class DeleteExperimentsParameters(Parameters):
    """`/delete_experiments`: the experiments of these names, or all."""

    names: list[str] | None = None


class ArtifactParameters(Parameters):
    """`/artifact`: `length` bytes of an artifact from `offset` on."""

    artifact_id: str
    offset: int = Field(default=0, ge=0)
    length: int = Field(default=1 << 20, ge=1, le=1 << 26)


class TokenParameters(Parameters):
    """`/whoami`: a token and nothing else."""


class EncodeParameters(Parameters):
    """`/encode`: a token where the executor needs one. The rest is for other executors of the Flow."""

    model_config = ConfigDict(extra='ignore')

    return_content: bool = Field(
        default=False, description='Answer with blobs, tensors, chunks and data: URIs, too; else without them.'
    )
    on_error: Literal['raise', 'tag'] = Field(
        default='raise',
        description='What a document that cannot be read does: it fails the request, or gets the tag finetuner_error '
        'and no embedding.',
    )
    truncate_dim: int | None = Field(default=None, ge=1, description='Keep so many of the first dimensions.')
    normalize: bool = Field(default=False, description='Scale the embeddings, after that, to L2 norm 1.')
    timeout: float | None = Field(default=None, gt=0, description='Seconds that the request may wait for the model.')
    return_artifact: bool = Field(
        default=False, description="Put the id of the artifact that answered into each document's tags."
    )
