"""Fine-tuning in this process, without any service."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from finetuner.data import CSVOptions, read_data
from finetuner.excepts import DataError, ParameterError
from finetuner.models import task_of
from registry.shards import DatasetReader, write_shard
from training.callbacks.options import describe_callback
from training.callbacks.training_checkpoint import TrainingCheckpoint
from training.checkpoint import find_checkpoint
from training.config import FitConfig
from training.interruption import Interruption
from training.losses import unknown_name
from training.pipeline import FitResult, has_checkpoints, run_fit
from training.progress import Progress

logger = logging.getLogger(__name__)


def fit(
    model: str,
    train_data: Any,
    eval_data: Any = None,
    *,
    directory: str | Path,
    report: Callable[[Progress], None] | None = None,
    csv_options: CSVOptions | Mapping[str, Any] | None = None,
    callbacks: Sequence[Any] | None = None,
    resume: bool = False,
    interruption: Interruption | None = None,
    **arguments: Any,
) -> FitResult:
    """Fine-tune a model on files or documents, with the arguments of `finetuner.fit`.

    Sets the seeds of Python, numpy and torch in this process. Started by `torchrun`, the processes share the work.

    :param model: a short name, a hub id or a model directory.
    :param train_data: a CSV, JSONL or Parquet file, documents, or a data set of Hugging Face's `datasets`.
    :param eval_data: held-out data of the same kinds: its loss is 'val_loss', and without `callbacks` it searches the
        training data before and after.
    :param directory: where the artifact goes, as `<run_name or the folder's name>.zip`, and checkpoints.
    :param report: is called with the progress, at most about twice a second.
    :param csv_options: how to read files, or a dict of the arguments of CSVOptions.
    :param callbacks: those of `finetuner.callback`, and objects of your own subclasses of
        `training.callbacks.Callback`.
    :param resume: go on from the last checkpoint in `directory`, if there is one.
    :param arguments: further arguments of `finetuner.fit`, see `FitConfig`. `model_artifact` is a zip or folder.
    :raises ParameterError: an argument is unknown or has no valid value.
    :raises DataError: a file is missing or malformed; the message names file and line.
    """
    csv_options = _csv_options(csv_options)
    sources: dict[str, Any] = {}

    def name_of(data: Any, role: str) -> str | None:
        if data is None:
            return None
        for name, source in sources.items():  # one data set for several purposes is prepared once
            if source is data or (
                isinstance(data, str | Path) and isinstance(source, str | Path) and name == str(data)
            ):
                return name
        name = str(data) if isinstance(data, str | Path) else role
        sources[name] = data
        return name

    names = {'train_data': name_of(train_data, 'train_data'), 'eval_data': name_of(eval_data, 'eval_data')}
    described = []
    for number, callback in enumerate(map(describe_callback, callbacks or [])):
        if isinstance(callback, dict):
            options = dict(callback.get('options') or {})
            for part in options.keys() & {'query_data', 'index_data'}:
                options[part] = name_of(options[part], f'callbacks[{number}].{part}')
            callback = callback | {'options': options}
        described.append(callback)
    config = FitConfig.from_arguments(model=model, callbacks=described or None, **names, **arguments)
    if resume and not has_checkpoints(config):
        raise ParameterError('resume goes on from what the callback TrainingCheckpoint keeps: give it, too')
    if resume and find_checkpoint(Path(directory) / TrainingCheckpoint.FOLDER) is None:
        logger.warning('There is no checkpoint in %s: the training begins at its beginning', directory)
    artifact = None
    if config.model_artifact is not None:
        artifact = Path(config.model_artifact).expanduser()
        if not artifact.exists():
            raise ParameterError(
                f'model_artifact: there is no file or folder {artifact} (working folder: {Path.cwd()})'
            )
    for source in sources.values():  # a file that is not there is told now, not after the model has been loaded
        read_data(source, csv_options, task=task_of(model))

    def open_data(name: str, folder: Path) -> DatasetReader:
        shard = folder / 'shard.arrow'
        if not shard.is_file():
            write_shard(read_data(sources[name], csv_options, name=name, task=task_of(model)), shard)
        return DatasetReader([shard], name)

    return run_fit(
        config,
        open_data,
        Path(directory).absolute(),
        report,
        artifact=artifact,
        resume=resume,
        interruption=interruption,
    )


def _csv_options(options: CSVOptions | Mapping[str, Any] | None) -> CSVOptions | None:
    if not isinstance(options, Mapping):
        return options
    known = [option.name for option in fields(CSVOptions)]
    for option in options:
        if option not in known:
            raise ParameterError('csv_options: ' + unknown_name('option', option, known))
    try:
        return CSVOptions(**options)
    except (DataError, TypeError) as error:
        raise ParameterError(f'csv_options: {str(error).removeprefix("CSVOptions.")}') from error
