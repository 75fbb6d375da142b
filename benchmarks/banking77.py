"""Training on Banking77, ours against sentence-transformers: `python benchmarks/banking77.py --data FOLDER`.

The folder holds `train.csv` and `test.csv`, two columns, text and label. `--loss` chooses among four, each one formula
under two names:

triplet   all triplets of a batch that violate the margin (our TripletMarginLoss, their BatchAllTripletLoss)
hard      the farthest positive and the nearest negative of every text (BatchHardMiner, BatchHardTripletLoss)
ranking   pairs of one intent; each finds its partner in the batch (MultipleNegativeRankingLoss, InfoNCE)
scored    pairs with the score 1 for one intent and 0 for two (CosineSimilarityLoss)

Both sides fine-tune the same model on the same rows with the same numbers: batch size, epochs, AdamW with the same
learning rate, linear decay and gradient clipping. Each trains in a process of its own, so that the peak of its memory
is its own, and one evaluation judges both: the texts of `test.csv` search `train.csv`; `spearman` is the correlation
between the cosine of test pairs and whether they are of one intent. CPU seconds are less disturbed by other work on the
machine than seconds.
"""

from __future__ import annotations

import csv
import json
import random
import tempfile
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from sides import Result, comparison, fit, judge, peak_memory, run_job, take_turns

LIMIT = 20
LEARNING_RATE = 5e-5
MARGIN = {'triplet': 0.05, 'hard': 0.2}
PEER = 'sentence-transformers'


class Loss(StrEnum):
    triplet = 'triplet'
    hard = 'hard'
    ranking = 'ranking'
    scored = 'scored'


OURS: dict[str, dict[str, Any]] = {
    'triplet': {'loss': 'TripletMarginLoss', 'loss_options': {'margin': MARGIN['triplet']}, 'num_items_per_class': 2},
    'hard': {
        'loss': 'TripletMarginLoss',
        'loss_options': {'margin': MARGIN['hard'], 'reducer': 'MeanReducer'},
        'miner': 'BatchHardMiner',
        'num_items_per_class': 2,
    },
    'ranking': {'loss': 'MultipleNegativeRankingLoss'},
    'scored': {'loss': 'CosineSimilarityLoss'},
}


def train_ours(target: Path, settings: dict[str, Any]) -> Result:
    return fit(
        settings['model'],
        settings['train'],
        target,
        settings | {'learning_rate': LEARNING_RATE},
        optimizer='AdamW',
        optimizer_options={'weight_decay': 0},
        scheduler='linear',
        max_grad_norm=1.0,
        **OURS[settings['loss']],
    )


def train_theirs(target: Path, settings: dict[str, Any]) -> Result:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.base.sampler import BatchSamplers
    from sentence_transformers.sentence_transformer import losses

    from finetuner.inference.pretrained import resolve

    rows = read(Path(settings['train']))
    columns: dict[str, list[Any]] = {'one': [row[0] for row in rows], 'other': [row[-1] for row in rows]}
    name, by_label = settings['loss'], settings['loss'] in MARGIN
    if by_label:
        numbers = {label: number for number, label in enumerate(dict.fromkeys(columns['other']))}
        columns = {'text': columns['one'], 'label': [numbers[label] for label in columns['other']]}
    elif name == 'scored':
        columns = {'one': columns['one'], 'other': [row[1] for row in rows], 'score': [float(row[2]) for row in rows]}
    model = SentenceTransformer(str(resolve(settings['model'])), device='cpu')
    loss = {
        'triplet': lambda: losses.BatchAllTripletLoss(model, margin=MARGIN['triplet']),
        'hard': lambda: losses.BatchHardTripletLoss(model, margin=MARGIN['hard']),
        'ranking': lambda: losses.MultipleNegativesRankingLoss(model),
        'scored': lambda: losses.CosineSimilarityLoss(model),
    }[name]()
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(target / 'checkpoints'),
            num_train_epochs=settings['epochs'],
            per_device_train_batch_size=settings['batch_size'],
            learning_rate=LEARNING_RATE,
            batch_sampler=BatchSamplers.GROUP_BY_LABEL if by_label else BatchSamplers.BATCH_SAMPLER,
            use_cpu=True,
            save_strategy='no',
            logging_strategy='no',
            report_to='none',
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(columns),
        loss=loss,
    )
    start, cpu = time.perf_counter(), time.process_time()
    done = trainer.train()
    cost = {'seconds': time.perf_counter() - start, 'cpu': time.process_time() - cpu, 'peak': peak_memory()}
    model.save(str(target / 'model'))
    samples = min(done.global_step * settings['batch_size'], len(rows) * settings['epochs'])
    return cost | {'preparing': 0.0, 'samples': samples, 'model': str(target / 'model')}


def evaluate(target: Path, settings: dict[str, Any]) -> Result:
    from scipy.stats import spearmanr

    from finetuner.artifact import open_artifact
    from finetuner.inference.torch_engine import TorchInferenceEngine

    model = settings['model']
    if model.endswith('.zip'):
        model = str(open_artifact(Path(model)).model_directory('model'))
    engine = TorchInferenceEngine(model)
    rows = [read(Path(settings[name])) for name in ('test', 'index')]
    queries, index = ([list(side) for side in zip(*part, strict=True)] for part in rows)
    metrics = judge(engine.encode_texts, queries, index, LIMIT)
    pairs = make_pairs(rows[0], scored=True)
    one, other = (engine.encode_texts([pair[side] for pair in pairs]) for side in (0, 1))
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    return {'metrics': metrics | {'spearman': float(spearmanr(cosines, [float(pair[2]) for pair in pairs])[0])}}


JOBS = {'ours': train_ours, PEER: train_theirs, 'evaluate': evaluate}


def read(file: Path) -> list[list[str]]:
    """The rows without the header."""
    with file.open(newline='') as lines:
        return list(csv.reader(lines))[1:]


def write(file: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    with file.open('w', newline='') as lines:
        csv.writer(lines).writerows([header, *rows])
    return str(file)


def shorten(rows: list[list[str]], limit: int | None) -> list[list[str]]:
    """About `limit` rows, evenly spread over all."""
    step = max(1.0, len(rows) / limit) if limit else 1.0
    return [rows[int(n * step)] for n in range(int(len(rows) / step))]


def make_pairs(rows: Sequence[Sequence[str]], scored: bool) -> list[list[str]]:
    """Each text with another of its intent; scored, every second one with one of another intent."""
    chance = random.Random(0)
    by_label: dict[str, list[str]] = {}
    for text, label in rows:
        by_label.setdefault(label, []).append(text)
    pairs = []
    for number, (text, label) in enumerate(rows):
        same = not scored or number % 2 == 0
        other = label if same else chance.choice([name for name in by_label if name != label])
        partner = chance.choice([found for found in by_label[other] if found != text] or by_label[other])
        pairs.append([text, partner, *([str(int(same))] if scored else [])])
    chance.shuffle(pairs)
    return pairs


def main(
    data: Annotated[Path, typer.Option(help='The folder of train.csv and test.csv.')] = Path(
        '../shared/data/banking77'
    ),
    loss: Annotated[Loss, typer.Option(help='What is learned.')] = Loss.triplet,
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
        print(json.dumps(JOBS[job](target, json.loads(settings))))
        return
    console = Console()
    with tempfile.TemporaryDirectory() as folder, console.status('') as status:
        work = Path(folder)
        rows, test = shorten(read(data / 'train.csv'), limit), read(data / 'test.csv')
        test = shorten(test, limit and limit * len(test) // len(read(data / 'train.csv')))
        header = ['text', 'label']
        files = {'test': write(work / 'test.csv', header, test), 'index': write(work / 'index.csv', header, rows)}
        if loss not in MARGIN:
            scored = loss == Loss.scored
            rows, header = make_pairs(rows, scored), ['one', 'other', *(['score'] if scored else [])]
        files['train'] = write(work / 'train.csv', header, rows)
        status.update('Evaluating the model as it is')
        before = run_job(__file__, 'evaluate', work / 'before', files | {'model': model})['metrics']
        status.update('Training')
        numbers = {'model': model, 'loss': str(loss), 'epochs': epochs, 'batch_size': batch_size}
        sides = take_turns(__file__, ('ours', PEER), work, files | numbers, rounds)
        status.update('Evaluating')
        for side in sides:
            side |= run_job(__file__, 'evaluate', work / 'after', files | {'model': side['model']})
    title = f'Banking77: {model}, {loss}, {epochs} epoch{"s" * (epochs > 1)}, batches of {batch_size}'
    console.print(comparison(title, before, *sides, PEER, LIMIT))


if __name__ == '__main__':
    typer.run(main)
