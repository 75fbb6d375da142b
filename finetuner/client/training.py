"""Starting runs and finding them again."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from finetuner import callback
from finetuner.client.names import random_name
from finetuner.client.session import Session, current_session
from finetuner.client.upload import Uploader
from finetuner.data import CSVOptions, make_options
from finetuner.excepts import DataError, ParameterError, RegistryError
from finetuner.models import similar_names, task_of
from finetuner.run import Run

if TYPE_CHECKING:
    from finetuner.documents import Document

    Data = str | Path | TextIO | Iterable[Document]

_logger = logging.getLogger(__name__)

DEFAULT_EXPERIMENT = 'default'


def fit(
    model: str,
    train_data: Data,
    eval_data: Data | None = None,
    val_split: float = 0.0,
    model_artifact: str | None = None,
    run_name: str | None = None,
    description: str | None = None,
    experiment_name: str | None = None,
    model_options: dict[str, Any] | None = None,
    loss: str = 'TripletMarginLoss',
    miner: str | None = None,
    miner_options: dict[str, Any] | None = None,
    optimizer: str = 'Adam',
    optimizer_options: dict[str, Any] | None = None,
    learning_rate: float | None = None,
    epochs: int = 5,
    batch_size: int | None = None,
    callbacks: list[Any] | None = None,
    scheduler: str | None = None,
    scheduler_options: dict[str, Any] | None = None,
    freeze: bool | int = False,
    output_dim: int | None = None,
    device: str = 'cuda',
    num_workers: int = 4,
    to_onnx: bool = False,
    csv_options: CSVOptions | Mapping[str, Any] | None = None,
    public: bool = False,
    num_items_per_class: int = 4,
    sampler: str = 'auto',
    loss_optimizer: str | None = None,
    loss_optimizer_options: dict[str, Any] | None = None,
    *,
    loss_options: dict[str, Any] | None = None,
    seed: int = 0,
    max_length: int | None = None,
    precision: str = 'fp32',
    gradient_accumulation_steps: int = 1,
    max_grad_norm: float | None = None,
    lora: bool | dict[str, Any] = False,
    gradient_cache: bool | str = 'auto',
    compile: bool = False,
    time_limit: float | None = None,
    onnx_precision: str = 'fp32',
    onnx_min_cosine: float = 0.99,
    priority: int = 0,
    cpus: float | None = None,
    gpus: int | None = None,
    memory_limit: int | None = None,
    max_retries: int | None = None,
) -> Run:
    """Upload the data and start a run that tunes `model` on it. Returns as soon as the service has taken the run.

    Data is the path of a CSV, JSONL, Parquet or Arrow file, a file opened as text, a data set of the library
    `datasets`, Documents, or the name of a data set that the service has already. Its examples are labelled items,
    pairs, scored pairs or triplets, see docs/data.md.

    :param model: a short name such as 'all-minilm-l6-v2', a hub id, or a directory that the service can read.
    :param train_data: what to learn from.
    :param eval_data: held-out data, for 'val_loss'; without `callbacks`, labelled ones are queries, too, that search
        `train_data`, and pairs search each other.
    :param val_split: share of `train_data` to hold out for 'val_loss'; ignored where there are `eval_data`.
    :param model_artifact: id of an artifact to go on from, in place of the weights of `model`.
    :param run_name: default two random words. The same name with the same arguments is the same run.
    :param description: for people.
    :param experiment_name: a group of runs, default 'default'.
    :param model_options: of the backbone; `finetuner.list_model_options()` lists them.
    :param loss: a loss of pytorch-metric-learning, or CLIPLoss, CosineSimilarityLoss, MultipleNegativeRankingLoss,
        MarginMSELoss and others, by name.
    :param miner: a miner of pytorch-metric-learning, by name; None mines nothing.
    :param miner_options: arguments of the miner.
    :param optimizer: a torch optimizer, by name.
    :param optimizer_options: arguments of the optimizer, and 'layer_wise_lr_decay'.
    :param learning_rate: None takes the service's default.
    :param epochs: passes over the data.
    :param batch_size: documents in a batch; None takes what the service's device has room for.
    :param callbacks: objects of `finetuner.callback`, any number.
    :param scheduler: of the learning rate: 'linear', 'cosine', ...; None keeps it constant.
    :param scheduler_options: of the scheduler, such as 'num_warmup_steps'.
    :param freeze: True trains only what is beyond the backbone, a number freezes that many of its first layer groups.
    :param output_dim: width of a projection head of three layers, which is added.
    :param device: 'cuda' where the service has one, or 'cpu'.
    :param num_workers: has no effect: contents are read once, into files that training maps into memory.
    :param to_onnx: has no effect: every artifact holds an ONNX model.
    :param csv_options: how files are read: `CSVOptions(...)`, or a dict of its arguments.
    :param public: let everybody who knows its id download the artifact.
    :param num_items_per_class: documents of one label in a batch of the class sampler.
    :param sampler: 'auto', 'class' or 'random'.
    :param loss_optimizer: for losses with weights; None is the same as `optimizer`.
    :param loss_optimizer_options: its arguments, 'lr' among them.
    :param loss_options: arguments of the loss.
    :param seed: of all that is random.
    :param max_length: tokens of a text that are read; None is the model's own.
    :param precision: 'fp32', 'bf16' or 'fp16'.
    :param gradient_accumulation_steps: batches to one step of the optimizer.
    :param max_grad_norm: gradients are scaled down to this norm; None leaves them.
    :param lora: True, or `{'r', 'alpha', 'dropout', 'target_modules'}`, trains low-rank adapters instead of the
        backbone's weights, and merges them in the end.
    :param gradient_cache: compute batches that do not fit into memory in parts: 'auto' where needed, True, or False.
    :param compile: have torch compile the model; pays on GPUs.
    :param time_limit: seconds after which the training ends with what it has learned.
    :param onnx_precision: of the weights in model.onnx: 'fp32', 'fp16' or 'int8'.
    :param onnx_min_cosine: the least mean cosine between embeddings of that model and of the float32 one.
    :param priority: of several runs that wait, those of the highest number are started first; -1000 to 1000.
    :param cpus: cores that the run is given; None is any.
    :param gpus: GPUs that share the work; None is one if `device` is 'cuda' and the service has any, 0 is none.
    :param memory_limit: bytes of memory that the run may take; None is no limit.
    :param max_retries: how often the run goes on from its last checkpoint after its worker was lost, before it is
        FAILED; None is the service's default.
    :raises DataError: the data is malformed, or a file does not exist.
    :raises ParameterError: the service refuses an argument.
    :raises RegistryError: the name is taken by another run, or a data set is unknown.
    """
    if not isinstance(model, str) or not model:
        goes_on = ': with model_artifact, it is the one that the artifact was made of' if model_artifact else ''
        raise ParameterError(f'model is {model!r}, and not the name of a model{goes_on}')
    arguments = dict(locals()) | {'priority': priority or None}
    options = make_options(csv_options)
    session = current_session()
    experiment_name = experiment_name or DEFAULT_EXPERIMENT
    run_name = run_name or _free_name(session)
    if near := similar_names(model):
        _logger.warning('%s is none of the models that have a name: did you mean %s?', model, ' or '.join(near))
    uploader = Uploader(session, experiment_name, run_name, options, task_of(model))
    arguments |= {'run_name': run_name, 'experiment_name': experiment_name, 'csv_options': None}  # files are read here

    def describe(name_of: Callable[[Data, str], str]) -> dict[str, Any]:
        data = {
            'train_data': name_of(train_data, 'train'),
            'eval_data': None if eval_data is None else name_of(eval_data, 'eval'),
            'callbacks': _describe_callbacks(callbacks, name_of) if callbacks else None,
        }
        return {name: value for name, value in (arguments | data).items() if value is not None}

    session.request('/fit', check_only=True, **describe(lambda data, kind: kind))  # before anything is uploaded
    try:
        return Run(session, session.request('/fit', **describe(uploader.name_of)).tags)
    except (DataError, ParameterError, RegistryError):
        uploader.discard()
        raise


def get_run(run_name: str, experiment_name: str | None = None) -> Run:
    """:raises RegistryError: there is no such run."""
    session = current_session()
    key: dict[str, Any] = {'run_name': run_name, 'experiment_name': experiment_name or DEFAULT_EXPERIMENT}
    return Run(session, session.request('/status', **key).tags)


def list_runs(experiment_name: str | None = None, page: int = 1, size: int = 50) -> list[Run]:
    """The runs of an experiment, or of all, newest first.

    :param page: from 1.
    :param size: runs on a page, at most 100.
    """
    session = current_session()
    chosen: dict[str, Any] = {} if experiment_name is None else {'experiment_name': experiment_name}
    return [Run(session, record) for record in session.request('/runs', page=page, size=size, **chosen).tags['items']]


def delete_run(run_name: str, experiment_name: str | None = None) -> None:
    """Delete a run with its artifact, its log and its checkpoints.

    :raises RegistryError: there is no such run.
    :raises RunInProgressError: it is at work: cancel it first.
    """
    key: dict[str, Any] = {'run_name': run_name, 'experiment_name': experiment_name or DEFAULT_EXPERIMENT}
    current_session().request('/delete_run', **key)


def delete_runs(experiment_name: str | None = None) -> None:
    """Delete all runs of an experiment, or of all experiments, which stay.

    :raises RegistryError: there is no such experiment.
    :raises RunInProgressError: one is at work; then none is deleted.
    """
    chosen: dict[str, Any] = {} if experiment_name is None else {'experiment_name': experiment_name}
    current_session().request('/delete_runs', **chosen)


def _free_name(session: Session) -> str:
    """A random name that none of the latest runs has."""
    taken = {record['name'] for record in session.request('/runs', page=1, size=100).tags['items']}
    return next(name for name in iter(random_name, None) if name not in taken)


def _describe_callbacks(callbacks: Iterable[Any], name_of: Callable[[Data, str], str]) -> list[Mapping[str, Any]]:
    """`{name, options}` of every callback, with its data by name."""
    described: list[Mapping[str, Any]] = []
    evaluations = 0
    for given in callbacks:
        name, options = _name_and_options(given)
        evaluations += name == 'EvaluationCallback'
        for option in ('query_data', 'index_data'):
            if options.get(option) is not None:
                kind = option.removesuffix('_data')
                options[option] = name_of(options[option], kind if evaluations == 1 else f'{kind}-{evaluations}')
        described.append({'name': name, 'options': {key: value for key, value in options.items() if value is not None}})
    return described


def _name_and_options(given: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(given, Mapping) and isinstance(given.get('name'), str):
        return given['name'], dict(given.get('options') or {})
    known = tuple(item for item in vars(callback).values() if isinstance(item, type) and dataclasses.is_dataclass(item))
    if not isinstance(given, known):
        raise TypeError(
            f'{given!r} is no callback of the service: give objects such as '
            'finetuner.callback.EvaluationCallback(...). One of a class of your own runs with training.fit'
        )
    return type(given).__name__, {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}
