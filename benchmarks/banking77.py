"""Training on Banking77, ours against sentence-transformers: `python benchmarks/banking77.py --data FOLDER`.

The folder holds `train.csv` and `test.csv`, two columns, text and label. Both sides fine-tune the same model on
`train.csv` with the same numbers: batch size, epochs, texts of a class in a batch (2, as GROUP_BY_LABEL has it), AdamW
with the same learning rate, linear decay and gradient clipping. The losses are one formula under two names: the mean
over the triplets of a batch that violate the margin, by Euclidean distance of unit vectors (our TripletMarginLoss,
their BatchAllTripletLoss). Each trains in a process of its own, so that the peak of its memory is its own, and one
evaluation, ours, judges both: the texts of `test.csv` search `train.csv`. Seconds are those of training, tokenisation
included, loading excluded; CPU seconds are less disturbed by other work on the machine.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

LIMIT = 20
MARGIN = 0.05
LEARNING_RATE = 5e-5


def train_ours(data: Path, target: Path, settings: dict[str, Any]) -> dict[str, Any]:
    import training

    cost: dict[str, float] = {}

    def report(progress: Any) -> None:  # the export comes after training and is no part of the comparison
        if progress.stage.startswith('Tokenising'):
            cost.setdefault('start', time.process_time())
        if progress.stage == 'Training':
            cost.update(cpu=time.process_time() - cost['start'], peak=peak_memory())

    result = training.fit(
        data / 'train.csv',
        model=settings['model'],
        directory=target,
        report=report,
        loss='TripletMarginLoss',
        loss_options={'margin': MARGIN},
        num_items_per_class=2,
        optimizer='AdamW',
        optimizer_options={'weight_decay': 0},
        scheduler='linear',
        max_grad_norm=1.0,
        learning_rate=LEARNING_RATE,
        epochs=settings['epochs'],
        batch_size=settings['batch_size'],
        device='cpu',
    )
    seconds = sum(spent for stage, spent in result.seconds.items() if stage.startswith(('Training', 'Preparing')))
    return cost | {'seconds': seconds, 'samples': result.samples, 'model': str(result.artifact)}


def train_theirs(data: Path, target: Path, settings: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import BatchSamplers
    from sentence_transformers.sentence_transformer.losses import BatchAllTripletLoss

    from finetuner.data import read_csv
    from finetuner.documents import LABEL
    from finetuner.inference.pretrained import resolve

    rows = [(document.text, document.tags[LABEL]) for document in read_csv(data / 'train.csv')]
    numbers = {label: number for number, label in enumerate(dict.fromkeys(label for _, label in rows))}
    texts = Dataset.from_dict({'text': [text for text, _ in rows], 'label': [numbers[label] for _, label in rows]})
    model = SentenceTransformer(str(resolve(settings['model'])), device='cpu')
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(target / 'checkpoints'),
            num_train_epochs=settings['epochs'],
            per_device_train_batch_size=settings['batch_size'],
            learning_rate=LEARNING_RATE,
            batch_sampler=BatchSamplers.GROUP_BY_LABEL,
            use_cpu=True,
            save_strategy='no',
            logging_strategy='no',
            report_to='none',
            disable_tqdm=True,
        ),
        train_dataset=texts,
        loss=BatchAllTripletLoss(model, margin=MARGIN),
    )
    start, cpu = time.perf_counter(), time.process_time()
    done = trainer.train()
    cost = {'seconds': time.perf_counter() - start, 'cpu': time.process_time() - cpu, 'peak': peak_memory()}
    model.save(str(target / 'model'))
    return cost | {'samples': done.global_step * settings['batch_size'], 'model': str(target / 'model')}


def evaluate(data: Path, target: Path, settings: dict[str, Any]) -> dict[str, Any]:
    import torch

    from finetuner.artifact import open_artifact
    from finetuner.inference.text_encoder import TextEncoder
    from training.config import EvaluationOptions
    from training.data import LabelledTexts, tokenise
    from training.evaluator import Evaluator
    from training.progress import Reporter

    model = settings['model']
    if model.endswith('.zip'):
        model = str(open_artifact(Path(model)).model_directory('model'))
    encoder, reporter = TextEncoder.load(model), Reporter()

    def prepare(name: str) -> Any:
        texts = LabelledTexts.from_csv(data / name, target / name)
        return tokenise(texts, encoder.tokenizer, encoder.max_length, target / name, reporter)

    options = EvaluationOptions(query_data='test.csv', limit=LIMIT)
    evaluator = Evaluator(options, prepare('test.csv'), prepare('train.csv'), target, torch.device('cpu'), reporter)
    return {'metrics': evaluator(encoder)[0]}


JOBS = {'ours': train_ours, 'sentence-transformers': train_theirs, 'evaluate': evaluate}


def peak_memory() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(job: str, data: Path, target: Path, **settings: Any) -> dict[str, Any]:
    """Do one of `JOBS` in a process of its own."""
    target.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, '--data', str(data), '--job', job, '--target', str(target)]
    result = subprocess.run([*command, '--settings', json.dumps(settings)], capture_output=True, text=True)
    if result.returncode:
        sys.exit(f'{job} failed:\n{result.stderr}')
    return dict(json.loads(result.stdout.splitlines()[-1]))


def shorten(data: Path, limit: int, target: Path) -> Path:
    """The same folder with about `limit` training rows, and test rows in proportion, of all classes."""
    import csv

    step = 1.0
    for name in ('train.csv', 'test.csv'):
        with (data / name).open(newline='') as file:
            header, *rows = csv.reader(file)
        step = max(1.0, len(rows) / limit) if name == 'train.csv' else step
        kept = [rows[int(n * step)] for n in range(int(len(rows) / step))]
        with (target / name).open('w', newline='') as file:
            csv.writer(file).writerows([header, *kept])
    return target


def main(
    data: Annotated[Path, typer.Option(help='The folder of train.csv and test.csv.')],
    model: Annotated[str, typer.Option(help='A model directory, a short name or a hub id.')] = 'all-minilm-l6-v2',
    epochs: int = 1,
    batch_size: int = 64,
    limit: Annotated[int | None, typer.Option(help='Training rows, default all.')] = None,
    rounds: Annotated[int, typer.Option(help='Times that the sides take turns; the fastest of each counts.')] = 1,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
    target: Annotated[Path, typer.Option(hidden=True)] = Path(),
    settings: Annotated[str, typer.Option(hidden=True)] = '{}',
) -> None:
    """Train with ours and with sentence-transformers, and print what came of it."""
    if job is not None:
        print(json.dumps(JOBS[job](data, target, json.loads(settings))))
        return
    console = Console()
    sides: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, console.status('') as status:
        work = Path(folder)
        if limit is not None:
            data = shorten(data, limit, work)
        status.update('Evaluating the model as it is')
        before = run('evaluate', data, work / 'before', model=model)['metrics']
        for turn in range(rounds):
            for side in ('ours', 'sentence-transformers'):
                status.update(f'Training: {side}, {turn + 1} of {rounds}')
                done = run(side, data, work / side, model=model, epochs=epochs, batch_size=batch_size)
                sides[side] = min(done, sides.get(side, done), key=lambda result: result['seconds'])
        for side in sides:
            status.update(f'Evaluating: {side}')
            sides[side] |= run('evaluate', data, work / side, model=sides[side]['model'])
    ours, theirs = sides['ours'], sides['sentence-transformers']
    title = f'Banking77: {model}, {epochs} epoch{"s" * (epochs > 1)}, batches of {batch_size}'
    table = Table(title=title, title_justify='left')
    for column in ('', 'before', 'ours', 'sentence-transformers', 'ratio'):
        table.add_column(column, justify='right' if column else 'left', no_wrap=True)
    for name, value in before.items():
        one, two = ours['metrics'][name], theirs['metrics'][name]
        table.add_row(name.replace('_k', f'_{LIMIT}'), f'{value:.4f}', f'{one:.4f}', f'{two:.4f}', f'{one / two:.3f}')
    table.add_section()
    for row, one, two in [
        ('seconds', ours['seconds'], theirs['seconds']),
        ('CPU seconds', ours['cpu'], theirs['cpu']),
        ('samples', ours['samples'], theirs['samples']),
        ('samples/s', ours['samples'] / ours['seconds'], theirs['samples'] / theirs['seconds']),
        ('peak MiB', ours['peak'], theirs['peak']),
    ]:
        table.add_row(row, '', f'{one:,.1f}', f'{two:,.1f}', f'{one / two:.2f}')
    console.print(table)


if __name__ == '__main__':
    typer.run(main)
