"""What `fit` can be told, checked in full before any work is done."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from finetuner.excepts import ParameterError
from training.losses import make_loss, make_miner, unknown_name
from training.optimizers import SCHEDULERS, SchedulerOptions, check_optimizer

DEFAULT_BATCH_SIZE = 64
DEFAULT_LEARNING_RATE = 5e-5
# class weights start at random and must travel further than a pretrained model's
DEFAULT_LOSS_LEARNING_RATE = 1e-2

REFUSED = {
    'val_split': 'is not supported yet: give the held-out part as eval_data',
    'model_artifact': 'is not supported yet: give a model directory as model',
    'freeze': 'is not supported yet: all layers are trained',
    'output_dim': "is not supported yet: the embeddings keep the backbone's width",
    'csv_options': 'tell how to read files, but data sets are read already: give them when ingesting',
}


class EvaluationOptions(BaseModel):
    """Options of EvaluationCallback: retrieval metrics before and after the training.

    :param query_data: the queries, labelled.
    :param index_data: what is searched, labelled; None is the queries themselves.
    :param limit: how many matches of each query count (the k of the metrics).
    :param exclude_self: where the queries are the index, a query is no match of its own.
    :param gather_examples: keep the matches of some queries, before and after.
    :param batch_size: has no effect: the batches of the evaluation are sized by their tokens.
    """

    model_config = ConfigDict(extra='forbid')

    query_data: str
    index_data: str | None = None
    limit: int = Field(default=20, ge=1)
    exclude_self: bool = True
    distance: Literal['cosine', 'euclidean', 'sqeuclidean'] = 'cosine'
    gather_examples: bool = False
    batch_size: int = Field(default=8, ge=1)
    model: None = None
    index_model: None = None
    steps_per_interval: None = None


class Callback(BaseModel):
    model_config = ConfigDict(extra='forbid')

    name: Literal['EvaluationCallback']
    options: EvaluationOptions


class FitConfig(BaseModel):
    """The arguments of `finetuner.fit`, and these beyond them:

    :param loss_options: arguments of the loss.
    :param seed: of the order of the batches, dropout and new weights. The same config, data and machine give the
        same weights.
    :param max_length: tokens of a text that are read, default the model's own.
    :param precision: 'bf16' and 'fp16' compute the model in half the bits where the device can; the loss stays float32.
    :param gradient_accumulation_steps: batches whose gradients are averaged into one step.
    :param max_grad_norm: gradients are scaled down to this norm, default not.

    Defaults of what may be None: `batch_size` 64, `learning_rate` 5e-5, `scheduler` a constant learning rate,
    `loss_optimizer` the same as `optimizer`, with learning rate 1e-2. Without `callbacks`, `eval_data` are queries that
    search `train_data`. `num_workers` has no effect: texts are tokenised once, so there is nothing left to load.
    `to_onnx` has none either: an artifact holds both forms.
    """

    model_config = ConfigDict(extra='forbid', protected_namespaces=())

    model: str = Field(min_length=1)
    train_data: str = Field(min_length=1)
    eval_data: str | None = None
    val_split: float = 0.0
    model_artifact: str | None = None
    run_name: str | None = None
    description: str | None = None
    experiment_name: str | None = None
    model_options: dict[str, Any] | None = None
    loss: str = 'TripletMarginLoss'
    loss_options: dict[str, Any] | None = None
    miner: str | None = None
    miner_options: dict[str, Any] | None = None
    optimizer: str = 'Adam'
    optimizer_options: dict[str, Any] | None = None
    learning_rate: float | None = Field(default=None, gt=0)
    epochs: int = Field(default=5, ge=1)
    batch_size: int | None = Field(default=None, ge=2)
    callbacks: list[Callback] | None = Field(default=None, max_length=1)
    scheduler: str | None = None
    scheduler_options: SchedulerOptions | None = None
    freeze: bool = False
    output_dim: int | None = None
    device: str = Field(default='cuda', pattern=r'^(cpu|cuda(:\d+)?)$')
    num_workers: int = Field(default=4, ge=0)
    to_onnx: bool = False
    csv_options: dict[str, Any] | None = None
    public: bool = False
    num_items_per_class: int = Field(default=4, ge=2)
    sampler: Literal['auto', 'class', 'random'] = 'auto'
    loss_optimizer: str | None = None
    loss_optimizer_options: dict[str, Any] | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    max_length: int | None = Field(default=None, ge=4)
    precision: Literal['fp32', 'bf16', 'fp16'] = 'fp32'
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_grad_norm: float | None = Field(default=None, gt=0)

    @classmethod
    def from_arguments(cls, **arguments: Any) -> FitConfig:
        """Check the arguments of a `fit` call.

        :raises ParameterError: one sentence for every argument that is unknown, of a wrong type or value.
        """
        try:
            return cls(**arguments)
        except ValidationError as error:
            raise ParameterError('; '.join(_sentence(dict(found)) for found in error.errors())) from error

    @field_validator('callbacks', mode='before')
    @classmethod
    def _callbacks(cls, value: Any) -> Any:
        """Callbacks come as objects from Python and as {name, options} from the wire."""
        if not isinstance(value, (list, tuple)):
            return value
        callbacks = []
        for item in value:
            if dataclasses.is_dataclass(item) and not isinstance(item, type):
                item = {'name': type(item).__name__, 'options': dataclasses.asdict(item)}
            if isinstance(item, dict) and item.get('name') != 'EvaluationCallback':
                raise ValueError(f'callback {item.get("name")!r} is not supported yet: use EvaluationCallback')
            callbacks.append(item)
        return callbacks

    @field_validator('model_options', 'loss_options', 'miner_options', 'optimizer_options', 'loss_optimizer_options')
    @classmethod
    def _integers(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        """JSON that went over the wire has no integers: 4 arrives as 4.0."""
        return None if value is None else {key: _integer(item) for key, item in value.items()}

    @model_validator(mode='after')
    def _names_and_options(self) -> FitConfig:
        for argument, why in REFUSED.items():
            if getattr(self, argument):
                raise ValueError(f'{argument} {why}')
        for option in self.model_options or {}:
            if option != 'pooling':
                raise ValueError('model_options: ' + unknown_name('option', option, ['pooling']))
        loss = make_loss(self.loss, self.loss_options, num_classes=2, embedding_size=2)
        if self.precision == 'fp16' and self.device == 'cpu':
            raise ValueError("precision 'fp16' needs a GPU: use 'bf16' or 'fp32' with device 'cpu'")
        if self.precision == 'fp16' and any(True for _ in loss.parameters()):  # one gradient scale, two optimizers
            raise ValueError(f"precision 'fp16' cannot be used with {self.loss}, which has weights: use 'bf16'")
        make_miner(self.miner, self.miner_options)
        check_optimizer(self.optimizer, self.optimizer_options)
        check_optimizer(self.loss_optimizer or self.optimizer, self.loss_optimizer_options, 'loss_optimizer')
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(unknown_name('scheduler', self.scheduler, SCHEDULERS))
        if self.scheduler is None and self.scheduler_options:
            raise ValueError('scheduler_options are given without a scheduler')
        return self

    @property
    def evaluation(self) -> EvaluationOptions | None:
        """What to evaluate before and after, None for nothing."""
        if self.callbacks:
            return self.callbacks[0].options
        if self.eval_data is None:
            return None
        return EvaluationOptions(query_data=self.eval_data, index_data=self.train_data, gather_examples=True)


def _integer(value: Any) -> Any:
    if isinstance(value, list):
        return [_integer(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sentence(found: dict[str, Any]) -> str:
    """One pydantic error as a sentence that begins with the argument's name."""
    place = '.'.join(str(part) for part in found['loc'])
    if found['type'] == 'extra_forbidden' and len(found['loc']) == 1:
        return unknown_name('argument', place, FitConfig.model_fields)
    if found['type'] == 'value_error':
        return str(found['ctx']['error'])
    if found['type'] == 'missing':
        return f'{place} is missing'
    return f'{place}: {found["msg"][0].lower()}{found["msg"][1:]}, got {found["input"]!r}'
