"""The nested configuration of a run, as Jina's Finetuner wrote it, and its way to the arguments of `/fit` and back.

Options that it did not have stand beside those that they belong to; they are left out where they have their defaults.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from executors.api.request import Body
from executors.patterns import NAME
from registry.tuning_tasks import TASK
from training.unions import ADAPTERS, Freeze, GradientCache, Steps, either

MAX_TEXT = 1000
Text = Field(default=None, min_length=1, max_length=MAX_TEXT)


class ModelSection(Body):
    """What is tuned: a model by `name`, or what the artifact of another run holds."""

    name: str | None = Field(default=None, min_length=1, max_length=MAX_TEXT, examples=['all-minilm-l6-v2'])
    artifact: str | None = Text
    freeze: Freeze = False
    output_dim: int | None = Field(default=None, ge=1)
    options: dict[str, Any] | None = None
    to_onnx: bool = False
    lora: Annotated[bool | dict[str, Any], either(ADAPTERS)] = False
    max_length: int | None = Field(default=None, ge=4)
    compile: bool = False
    onnx_precision: Literal['fp32', 'fp16', 'int8'] = 'fp32'
    onnx_min_cosine: float = Field(default=0.99, gt=0, le=1)


class DataSection(Body):
    """What it is tuned on: names of data sets."""

    train_data: str = Field(min_length=1, max_length=MAX_TEXT, examples=['tickets'])
    eval_data: str | None = Text
    evaluate: Literal[False] = Field(default=False, description='An EvaluationCallback evaluates.')
    num_workers: int = Field(default=8, ge=0)
    num_items_per_class: int = Field(default=4, ge=2)
    val_split: float = Field(default=0.0, ge=0, lt=1)
    sampler: Literal['auto', 'class', 'random'] = 'auto'


class SchedulerSection(Body):
    num_warmup_steps: int | None = Field(default=None, ge=0)
    num_training_steps: Steps | None = None
    scheduler_step: Literal['batch', 'epoch'] | None = None
    num_cycles: float | None = Field(default=None, gt=0)
    power: float | None = Field(default=None, gt=0)
    lr_end: float | None = Field(default=None, ge=0)


class HyperParameters(Body):
    """How it is tuned."""

    loss: str = Field(default='TripletMarginLoss', max_length=MAX_TEXT)
    loss_options: dict[str, Any] | None = None
    optimizer: str = Field(default='Adam', max_length=MAX_TEXT)
    optimizer_options: dict[str, Any] | None = None
    miner: str | None = Text
    miner_options: dict[str, Any] | None = None
    batch_size: int | None = Field(default=None, ge=2)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    epochs: int = Field(default=5, ge=1)
    scheduler: str | None = Text
    scheduler_options: SchedulerSection | None = None
    loss_optimizer: str | None = Text
    loss_optimizer_options: dict[str, Any] | None = None
    seed: int = Field(default=0, ge=0, lt=2**32)
    precision: Literal['fp32', 'bf16', 'fp16'] = 'fp32'
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_grad_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    gradient_cache: GradientCache = 'auto'
    time_limit: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class CallbackSection(Body):
    """A callback by the name of its class, with the values of its fields."""

    name: str = Field(min_length=1, max_length=MAX_TEXT, examples=['EarlyStopping'])
    options: dict[str, Any] = {}


class RunConfig(Body):
    """How a model is to be trained."""

    model: ModelSection
    data: DataSection
    hyper_parameters: HyperParameters = HyperParameters()
    callbacks: list[CallbackSection] | None = Field(default=None, max_length=100)
    public: bool = False
    experiment_name: str | None = Field(default=None, pattern=NAME)
    run_name: str | None = Field(default=None, pattern=NAME)


# what other sections call otherwise than `/fit`
NAMES = {'name': 'model', 'artifact': 'model_artifact', 'options': 'model_options'}
# options that Jina's Finetuner did not have
ADDED = {
    ModelSection: ('lora', 'max_length', 'compile', 'onnx_precision', 'onnx_min_cosine'),
    HyperParameters: (
        'seed',
        'precision',
        'gradient_accumulation_steps',
        'max_grad_norm',
        'gradient_cache',
        'time_limit',
    ),
}
SECTIONS: dict[str, type[Body]] = {'model': ModelSection, 'data': DataSection, 'hyper_parameters': HyperParameters}


def to_arguments(config: RunConfig) -> dict[str, Any]:
    """The arguments of `/fit` that mean the same, without those that are None."""
    arguments: dict[str, Any] = {'public': config.public}
    for section in (config.model, config.data, config.hyper_parameters):
        arguments |= {NAMES.get(name, name): value for name, value in section}
    del arguments['evaluate']
    arguments['scheduler_options'] = _scheduler_options(config.hyper_parameters)
    if config.callbacks is not None:
        arguments['callbacks'] = [
            {'name': callback.name, 'options': _without_none(callback.options)} for callback in config.callbacks
        ]
    for section in (config.model, config.hyper_parameters):
        for name in ADDED[type(section)]:
            if getattr(section, name) == _default(type(section), name):
                del arguments[name]
    return _without_none(arguments)


def from_arguments(stored: dict[str, Any]) -> dict[str, Any]:
    """The nested configuration that the arguments of `/fit`, as a run stores them, came from."""
    nested: dict[str, Any] = {}
    # what a task does not say, its method says when the work begins: no default is true of it
    is_task = TASK in stored
    for title, section in SECTIONS.items():
        names = {name: NAMES.get(name, name) if title == 'model' else name for name in section.model_fields}
        nested[title] = {
            name: stored.get(argument, _default(section, name))
            for name, argument in names.items()
            if not is_task or argument in stored
        }
        if is_task:
            continue
        for name in ADDED.get(section, ()):
            if nested[title][name] in (None, _default(section, name)):
                del nested[title][name]
    if is_task:
        return {**nested, TASK: stored[TASK]}
    callbacks = stored.get('callbacks') or []
    return {**nested, 'callbacks': callbacks, 'public': stored.get('public', False)}


def _scheduler_options(parameters: HyperParameters) -> dict[str, Any] | None:
    """Jina's client sends them always, also where there is no scheduler."""
    given = _without_none(parameters.scheduler_options.model_dump()) if parameters.scheduler_options else {}
    usual = {'num_warmup_steps': 0, 'num_training_steps': 'auto', 'scheduler_step': 'batch'}
    if parameters.scheduler is None and given.items() <= usual.items():
        return None
    return given or None


def _default(section: type[Body], name: str) -> Any:
    field = section.model_fields[name]
    return None if field.is_required() else field.default


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
