"""The options of the callbacks that `fit` knows by name, checked before any work is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from training.callbacks.base import Callback
from training.callbacks.monitoring import Mode, check_monitor
from training.evaluation import METRICS, Distance
from training.losses.options import unknown_name
from training.numbers import integers


class Options(BaseModel):
    model_config = ConfigDict(extra='forbid', protected_namespaces=(), hide_input_in_errors=True)


class EvaluationOptions(Options):
    """Retrieval metrics before and after the training, and at the end of every epoch if a callback reads them.

    :param query_data: the queries, with labels, or pairs: then the first column searches the second.
    :param index_data: what is searched, with labels; None is the queries themselves.
    :param batch_size: how many items of the full length that the model reads are encoded at once; of shorter texts as
        many more.
    :param exclude_self: where the queries are the index, a query is no match of its own.
    :param limit: how many matches of each query count (the k of the metrics).
    :param model: which encoder reads the queries, where there are several: 'clip-text' or 'clip-vision'.
    :param index_model: which encoder reads the index.
    :param gather_examples: keep the matches of some queries, before and after.
    :param steps_per_interval: evaluate every so many batches, too.
    :param name: comes before the names of the metrics, as `<name>_precision_at_k`.
    """

    query_data: str
    index_data: str | None = None
    batch_size: int = Field(default=8, ge=1)
    exclude_self: bool = True
    limit: int = Field(default=20, ge=1)
    distance: Distance = 'cosine'
    model: str | None = None
    index_model: str | None = None
    gather_examples: bool = False
    steps_per_interval: int | None = Field(default=None, ge=1)
    name: str | None = Field(default=None, pattern=r'^[A-Za-z0-9._-]{1,64}$')


class BestModelOptions(Options):
    """The weights of the best epoch are those of the artifact.

    :param monitor: 'train_loss', 'val_loss' or a metric of an EvaluationCallback.
    :param mode: whether the best is the 'min' or the 'max'; 'auto' is 'min' for a loss, and 'max' for any other.
    """

    monitor: str = 'val_loss'
    mode: Mode = 'auto'


class TrainingCheckpointOptions(Options):
    """A training that was stopped can go on where it was.

    :param last_k_epochs: how many checkpoints are kept, one for each epoch.
    """

    last_k_epochs: int = Field(default=1, ge=1)


class EarlyStoppingOptions(Options):
    """The training ends when an epoch brings nothing more.

    :param monitor: 'train_loss', 'val_loss' or a metric of an EvaluationCallback.
    :param mode: as that of BestModelCheckpoint.
    :param patience: so many epochs in a row may be no better.
    :param min_delta: by how much an epoch must be better than the best one to count as better.
    :param baseline: what an epoch must be better than, too.
    """

    monitor: str = 'val_loss'
    mode: Mode = 'auto'
    patience: int = Field(default=2, ge=1)
    min_delta: float = Field(default=0, ge=0, allow_inf_nan=False)
    baseline: float | None = Field(default=None, allow_inf_nan=False)


class WiSEFTOptions(Options):
    """In the end the weights are a mean of those before and after the training.

    :param alpha: the share of those after: 0 gives the pretrained weights, 1 the tuned ones.
    """

    alpha: float = Field(ge=0, le=1)


class WandBOptions(Options):
    """Figures go to Weights & Biases.

    :param token: an API key; without one, and without `WANDB_API_KEY`, they are kept on this machine ('offline').
    :param wandb_args: arguments of `wandb.init`.
    """

    # not part of what is stored with a run
    token: Annotated[SecretStr | None, PlainSerializer(lambda token: None)] = None
    wandb_args: dict[str, Any] = Field(default_factory=dict)

    @field_validator('token', mode='before')
    @classmethod
    def _token(cls, value: Any) -> Any:
        if not isinstance(value, str | SecretStr | None):
            raise ValueError('token is no text')  # an error of pydantic would show it
        return value

    @field_validator('wandb_args')
    @classmethod
    def _wandb_args(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if name not in WANDB_ARGUMENTS:
                raise ValueError('wandb_args: ' + unknown_name('argument of wandb.init', name, WANDB_ARGUMENTS))
        return value


# what describes a run: neither settings that reach beyond it nor objects
WANDB_ARGUMENTS = ('project', 'entity', 'name', 'notes', 'tags', 'group', 'job_type', 'mode', 'id', 'config')


class MLFlowOptions(Options):
    """Figures go to MLflow.

    :param experiment: its name; it is made if there is none.
    :param tracking_uri: of a server, a folder or a database; None is `MLFLOW_TRACKING_URI`, or else a database in
        `FINETUNER_HOME`.
    """

    experiment: str = Field(min_length=1)
    tracking_uri: str | None = None

    @field_validator('tracking_uri')
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value and urlsplit(value).password:
            raise ValueError(
                'tracking_uri holds a password, which would be stored with the run: '
                'set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the training runs'
            )
        return value


class NamedConfig(Options):
    name: str


class EvaluationConfig(NamedConfig):
    name: Literal['EvaluationCallback'] = 'EvaluationCallback'
    options: EvaluationOptions


class BestModelConfig(NamedConfig):
    name: Literal['BestModelCheckpoint'] = 'BestModelCheckpoint'
    options: BestModelOptions = BestModelOptions()


class TrainingCheckpointConfig(NamedConfig):
    name: Literal['TrainingCheckpoint'] = 'TrainingCheckpoint'
    options: TrainingCheckpointOptions = TrainingCheckpointOptions()


class EarlyStoppingConfig(NamedConfig):
    name: Literal['EarlyStopping'] = 'EarlyStopping'
    options: EarlyStoppingOptions = EarlyStoppingOptions()


class WiSEFTConfig(NamedConfig):
    name: Literal['WiSEFTCallback'] = 'WiSEFTCallback'
    options: WiSEFTOptions


class WandBConfig(NamedConfig):
    name: Literal['WandBLogger'] = 'WandBLogger'
    options: WandBOptions = WandBOptions()


class MLFlowConfig(NamedConfig):
    name: Literal['MLFlowLogger'] = 'MLFlowLogger'
    options: MLFlowOptions


Named = (
    EvaluationConfig
    | BestModelConfig
    | TrainingCheckpointConfig
    | EarlyStoppingConfig
    | WiSEFTConfig
    | WandBConfig
    | MLFlowConfig
)
_NAMED: TypeAdapter[Named] = TypeAdapter(Annotated[Named, Field(discriminator='name')])
_OPTIONS: dict[str, type[Options]] = {
    'EvaluationCallback': EvaluationOptions,
    'BestModelCheckpoint': BestModelOptions,
    'TrainingCheckpoint': TrainingCheckpointOptions,
    'EarlyStopping': EarlyStoppingOptions,
    'WiSEFTCallback': WiSEFTOptions,
    'WandBLogger': WandBOptions,
    'MLFlowLogger': MLFlowOptions,
}
_ONCE = ('BestModelCheckpoint', 'TrainingCheckpoint', 'WiSEFTCallback')


def describe_callback(item: Any) -> Any:
    """An object of `finetuner.callback` as `{name, options}`, as it comes over the wire; anything else as it is."""
    if isinstance(item, Callback | type) or not dataclasses.is_dataclass(item):
        return item
    options = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return {'name': type(item).__name__, 'options': options}


def read_callback(item: Any) -> Any:
    """A callback as it may be given, checked: an object of `finetuner.callback` or its `{name, options}`. An object of
    a subclass of :class:`Callback` is passed through.

    :raises ValueError: it is no callback, or its name or an option is unknown or has no valid value.
    """
    item = describe_callback(item)
    if isinstance(item, Callback | NamedConfig):
        return item
    if not isinstance(item, dict) or not isinstance(item.get('name'), str):
        kind = f'the class {item.__name__}' if isinstance(item, type) else f'a {type(item).__name__}'
        raise ValueError(
            f'callbacks: {kind} is no callback: give objects of finetuner.callback, or, in training.fit, of subclasses '
            'of training.callbacks.Callback'
        )
    name, options = item['name'], item.get('options') or {}
    if name not in _OPTIONS:
        raise ValueError(unknown_name('callback', name, _OPTIONS))
    for key in item.keys() - {'name', 'options'}:
        raise ValueError(f'{name}: {key!r} is neither its name nor its options')
    known = _OPTIONS[name].model_fields
    for option in options:
        if option not in known:
            raise ValueError(unknown_name(f'option of {name}', option, known))
    try:
        given = {option: value for option, value in options.items() if value is not None}
        return _NAMED.validate_python({'name': name, 'options': given})
    except ValidationError as error:
        raise ValueError('; '.join(_sentence(name, dict(found)) for found in error.errors())) from None


def _sentence(name: str, found: dict[str, Any]) -> str:
    place = '.'.join(str(part) for part in found['loc'][2:])  # the callback and 'options' are known
    if found['type'] == 'missing':
        return f'{name} needs {place or "options"}'
    if found['type'] == 'value_error':
        return f'{name}: {found["ctx"]["error"]}'
    return f'{name}: {place}: {found["msg"][0].lower()}{found["msg"][1:]}, got {integers(found["input"])!r}'


def _describe(callback: Any) -> dict[str, Any]:
    if isinstance(callback, Callback):
        return {'name': callback.name, 'options': {}}
    return callback.model_dump(mode='json')


CallbackConfig = Annotated[
    Named | Callback,
    PlainValidator(read_callback),
    PlainSerializer(_describe),
]
"""A field of a pydantic model: a callback by its name, or one of the user's own."""


def evaluation_options(callbacks: Sequence[Any]) -> list[EvaluationOptions]:
    """Those of the EvaluationCallbacks, in their order."""
    return [callback.options for callback in callbacks if isinstance(callback, EvaluationConfig)]


def check_callbacks(callbacks: Sequence[Any], *, has_val_loss: bool, has_metrics: bool) -> None:
    """Refuse callbacks that cannot work together.

    :param has_val_loss: the run computes one.
    :param has_metrics: the run evaluates retrieval.
    :raises ValueError: a callback is there twice, or watches what is not there; the message says what is.
    """
    names = [callback.name for callback in callbacks]
    for name in _ONCE:
        if names.count(name) > 1:
            raise ValueError(f'callbacks: {name} is given {names.count(name)} times: once is enough')
    if any(isinstance(callback, Callback) for callback in callbacks):
        return  # they may put any figure into the metrics
    known = ['train_loss', *(['val_loss'] if has_val_loss else []), *(METRICS if has_metrics else [])]
    for callback in callbacks:
        if isinstance(callback, BestModelConfig | EarlyStoppingConfig):
            check_monitor(callback.name, callback.options.monitor, known)
