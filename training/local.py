"""Fine-tuning in this process: CSV files in, an artifact out, no service needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetuner.data import CSVOptions
from finetuner.excepts import DataError
from training.config import FitConfig
from training.data import LabelledTexts
from training.pipeline import FitResult, run_fit
from training.progress import Progress


def fit(
    train_data: str | Path,
    eval_data: str | Path | None = None,
    model: str = 'all-minilm-l6-v2',
    *,
    directory: str | Path,
    report: Callable[[Progress], None] | None = None,
    csv_options: CSVOptions | None = None,
    **arguments: Any,
) -> FitResult:
    """Fine-tune a model on a CSV file of labelled texts.

    Sets the seeds of Python, numpy and torch in this process.

    :param train_data: a CSV file with two columns, text and label.
    :param eval_data: another one, whose texts search the training data before and after.
    :param model: a sentence-transformers or transformers directory, a short name, or a hub id.
    :param directory: where the artifact goes, as `<run_name or the folder's name>.zip`.
    :param report: is called with the progress, at most about twice a second.
    :param csv_options: how to read the CSV files.
    :param arguments: further arguments of `finetuner.fit`, see `FitConfig`.
    :raises ParameterError: an argument is unknown or has no valid value.
    :raises DataError: a file is missing or malformed; the message names file and line.
    """
    files = {'train_data': str(train_data), 'eval_data': None if eval_data is None else str(eval_data)}
    config = FitConfig.from_arguments(model=model, **files, **arguments)
    evaluation = config.evaluation
    for file in [config.train_data, *([evaluation.query_data, evaluation.index_data] if evaluation else [])]:
        if file is not None and not Path(file).is_file():
            raise DataError(f'the file {file} does not exist (working folder: {Path.cwd()})')

    def open_texts(file: str, folder: Path) -> LabelledTexts:
        return LabelledTexts.from_csv(Path(file), folder, csv_options)

    return run_fit(config, open_texts, Path(directory).absolute(), report)
