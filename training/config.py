"""What `fit` can be told, checked in full before any work is done."""

from __future__ import annotations

import logging
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from finetuner.excepts import ParameterError
from finetuner.models import check_options, find_backbone, task_of
from registry.plain import check_description
from training.callbacks.options import CallbackConfig, EvaluationOptions, check_callbacks, evaluation_options
from training.lora import LoRAOptions
from training.losses import check_objective, needs_positives, objective_shape, unknown_name
from training.losses.cross_batch_memory import CrossBatchMemory
from training.losses.objective import Objective, Shape
from training.numbers import integers
from training.optimizers import OF_ENCODERS, SchedulerOptions, check_optimizer, check_scheduler
from training.unions import ADAPTERS, Freeze, GradientCache, either

logger = logging.getLogger(__name__)

DEFAULT_LEARNING_RATE = 5e-5
DEVICE = re.compile(r'cpu|cuda(:\d+)?')
# class weights start at random and must travel further than a pretrained model's
DEFAULT_LOSS_LEARNING_RATE = 1e-2


class FitConfig(BaseModel):
    """The arguments of `finetuner.fit`, and these beyond them:

    :param loss_options: arguments of the loss.
    :param seed: of the order of the batches, dropout and new weights. The same config, data and machine give the
        same weights.
    :param max_length: tokens of a text that are read, default the model's own.
    :param precision: 'bf16' and 'fp16' compute the model in half the bits where the device can; the loss stays float32.
    :param gradient_accumulation_steps: batches whose gradients are averaged into one step.
    :param max_grad_norm: gradients are scaled down to this norm, default not.
    :param freeze: True trains only what is beyond the backbone (a head, adapters, weights of the loss), a number
        freezes that many layer groups from the input on.
    :param lora: True, or options of :class:`LoRAOptions`, trains low-rank adapters instead of the backbone's weights;
        they are merged into the weights in the end.
    :param gradient_cache: compute batches that do not fit into memory in parts, with the gradients of the whole:
        'auto' where that is needed, True always, False never.
    :param compile: have torch compile the encoders; pays on GPUs.
    :param time_limit: seconds after which the training ends, and what it has learned by then is exported.
    :param onnx_precision: of the weights in model.onnx.
    :param onnx_min_cosine: the least mean cosine between embeddings of a reduced ONNX model and the float32 one.

    Defaults of what may be None: `batch_size` what the device has room for, at most 256, `learning_rate` 5e-5,
    `scheduler` a constant learning rate, `loss_optimizer` the same as `optimizer`, with learning rate 1e-2. Without
    `callbacks`, labelled `eval_data` are queries that search `train_data`; with or without, `eval_data` give
    'val_loss'. `num_workers` has no effect: contents are read once, into files that are mapped into memory. `to_onnx`
    has none either: an artifact holds both forms.
    """

    model_config = ConfigDict(
        extra='forbid', protected_namespaces=(), arbitrary_types_allowed=True, hide_input_in_errors=True
    )

    model: str = Field(min_length=1)
    train_data: str = Field(min_length=1)
    eval_data: str | None = None
    val_split: float = Field(default=0.0, ge=0, lt=1)
    model_artifact: str | None = None
    run_name: str | None = None
    description: Annotated[str, AfterValidator(check_description)] | None = None
    experiment_name: str | None = None
    model_options: dict[str, Any] | None = None
    loss: str = 'TripletMarginLoss'
    loss_options: dict[str, Any] | None = None
    miner: str | None = None
    miner_options: dict[str, Any] | None = None
    optimizer: str = 'Adam'
    optimizer_options: dict[str, Any] | None = None
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    epochs: int = Field(default=5, ge=1)
    batch_size: int | None = Field(default=None, ge=2)
    callbacks: list[CallbackConfig] | None = None
    scheduler: str | None = None
    scheduler_options: SchedulerOptions | None = None
    freeze: Freeze = False
    output_dim: int | None = Field(default=None, ge=1)
    device: str = 'cuda'
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
    max_grad_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    lora: Annotated[bool | LoRAOptions, either(ADAPTERS, LoRAOptions)] = False
    gradient_cache: GradientCache = 'auto'
    compile: bool = False
    time_limit: float | None = Field(default=None, gt=0)
    onnx_precision: Literal['fp32', 'fp16', 'int8'] = 'fp32'
    onnx_min_cosine: float = Field(default=0.99, gt=0, le=1)

    @classmethod
    def from_arguments(cls, **arguments: Any) -> FitConfig:
        """Check the arguments of a `fit` call.

        :raises ParameterError: one sentence for every argument that is unknown, of a wrong type or value.
        """
        try:
            return cls(**arguments)
        except ValidationError as error:
            # from None: pydantic's own text would show the input, and with it a token
            raise ParameterError('; '.join(_sentence(dict(found)) for found in error.errors())) from None

    @field_validator('model_options', 'loss_options', 'miner_options', 'optimizer_options', 'loss_optimizer_options')
    @classmethod
    def _integers(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return integers(value)

    @model_validator(mode='before')
    @classmethod
    def _eval_data_over_val_split(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get('eval_data') is not None and values.get('val_split'):
            logger.warning('val_split is ignored: eval_data are what is held out')
            return {**values, 'val_split': 0.0}
        return values

    @field_validator('device')
    @classmethod
    def _device(cls, value: str) -> str:
        if not DEVICE.fullmatch(value):
            raise ValueError(f"device is {value[:200]!r}: give 'cpu', 'cuda' or a GPU by its number, such as 'cuda:1'")
        return value

    @model_validator(mode='after')
    def _names_and_options(self) -> FitConfig:
        if self.csv_options:
            raise ValueError('csv_options tell how to read files, but data sets are read already: give them before')
        backbone = find_backbone(self.model)
        if backbone is not None:  # an artifact brings what is required
            check_options(backbone.library, self.model_options, complete=self.model_artifact is None)
        objective = self.example_objective()
        learned = list(objective.parameters())
        # single numbers go with the encoders, see `make_optimizers`
        alone = learned if self.loss_optimizer else [parameter for parameter in learned if parameter.ndim]
        if self.precision == 'fp16' and self.device == 'cpu':
            raise ValueError("precision 'fp16' needs a GPU: use 'bf16' or 'fp32' with device 'cpu'")
        if self.precision == 'fp16' and alone:  # one gradient scale, two optimizers
            raise ValueError(f"precision 'fp16' cannot be used with {self.loss}, which has weights: use 'bf16'")
        if self.precision == 'fp16' and 'LBFGS' in (self.optimizer, self.loss_optimizer):
            raise ValueError("precision 'fp16' cannot be used with LBFGS, which takes gradients unscaled: use 'bf16'")
        check_optimizer(self.optimizer, self.optimizer_options)
        for encoder in OF_ENCODERS:
            if encoder in (self.optimizer_options or {}) and task_of(self.model) not in (None, 'text-to-image'):
                raise ValueError(f'optimizer_options: {encoder} is an encoder of CLIP, which {self.model} is not')
        check_optimizer(self.loss_optimizer or self.optimizer, self.loss_optimizer_options, 'loss_optimizer')
        for argument in ('loss_optimizer', 'loss_optimizer_options'):
            if getattr(self, argument) and not alone:
                why = 'but single numbers, for which loss_optimizer must be given too' if learned else 'to learn'
                raise ValueError(f'{argument} is given, and {self.loss} has no weights {why}')
        if self.batch_size is not None:
            check_memory(objective, self.batch_size)
        check_scheduler(self.scheduler, self.scheduler_options)
        has_val_loss = bool(self.val_split or self.eval_data)
        check_callbacks(self.callbacks or [], has_val_loss=has_val_loss, has_metrics=bool(self.evaluations))
        whole = backbone is not None and not backbone.has_head and self.model_artifact is None
        if self.freeze is True and whole and self.output_dim is None and not learned and not self.lora:
            raise ValueError(
                f'freeze leaves nothing to train of {self.model}: give output_dim for a head, or a number of layer '
                'groups to freeze'
            )
        if self.lora and self.freeze is True:
            raise ValueError('lora trains adapters in the backbone, and freeze=True freezes it: give one of them')
        return self

    def example_objective(self) -> Objective:
        """The objective as it would be for two classes, to be looked at."""
        return check_objective(self.loss, self.loss_options, miner=self.miner, miner_options=self.miner_options)

    @property
    def shape(self) -> Shape:
        """The shape of data that the loss learns from."""
        return objective_shape(self.loss, self.loss_options, self.miner)

    @property
    def needs_classes(self) -> bool:
        """True if batches must hold several items of a class."""
        return self.shape == 'labelled' and needs_positives(self.loss, self.loss_options)

    @property
    def evaluations(self) -> list[EvaluationOptions]:
        """What to evaluate before and after."""
        return evaluation_options(self.callbacks or [])

    @property
    def data(self) -> list[str]:
        """The names of all data sets, each once."""
        names = [self.train_data, self.eval_data]
        for options in self.evaluations:
            names += [options.query_data, options.index_data]
        return list(dict.fromkeys(name for name in names if name is not None))


def check_memory(objective: Objective, items: int) -> None:
    """:raises ValueError: a CrossBatchMemory is smaller than a batch of so many items."""
    for part in objective.modules():
        if isinstance(part, CrossBatchMemory) and part.memory_size < items:
            raise ValueError(
                f'loss_options of CrossBatchMemory: memory_size is {part.memory_size}, which a batch of {items} items '
                'does not fit in'
            )


def _sentence(found: dict[str, Any]) -> str:
    """One pydantic error as a sentence that begins with the argument's name."""
    place = '.'.join(str(part) for part in found['loc'])
    if found['type'] == 'extra_forbidden' and len(found['loc']) == 1:
        return unknown_name('argument', place, FitConfig.model_fields)
    if found['type'] == 'value_error':
        return str(found['ctx']['error'])
    if found['type'] == 'missing':
        return f'{place} is missing'
    value = found['input']  # a dict or a list may hold a token
    shown = f', got {repr(integers(value))[:200]}' if isinstance(value, str | int | float | bool | None) else ''
    return f'{place}: {found["msg"][0].lower()}{found["msg"][1:]}{shown}'
