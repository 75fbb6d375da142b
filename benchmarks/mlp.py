"""An MLP on embeddings, ours against a plain loop with pytorch-metric-learning.

`python benchmarks/mlp.py --data FOLDER`

The folder holds `train.csv` and `test.csv` of Banking77, two columns, text and label. all-MiniLM-L6-v2 embeds the texts
once; what is trained is an MLP on these embeddings, as one does with vectors of a model that one cannot train. Both
sides start from the same weights and learn with SupConLoss, AdamW, the same learning rate and four items of a class in
a batch. The peer keeps all vectors in memory and calls the loss of pytorch-metric-learning. Each trains in a process of
its own, so that the peak of its memory is its own, and one evaluation judges both and the embeddings as they were: the
texts of `test.csv` search `train.csv`.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from sides import Result, comparison, fit, judge, load_trained, run_job, take_turns, train_plainly

LIMIT = 20
OPTIONS = {'input_size': 384, 'hidden_sizes': [512, 256], 'activation': 'relu', 'l2': True}
TEMPERATURE = 0.1
PER_CLASS = 4


def train_ours(target: Path, settings: dict[str, Any]) -> Result:
    from finetuner import Document, DocumentArray
    from finetuner.documents import LABEL

    vectors, labels = read(settings['train'])
    documents = DocumentArray(
        [Document(tensor=vector, tags={LABEL: label}) for vector, label in zip(vectors, labels, strict=True)]
    )
    return fit(
        settings['model'],
        documents,
        target,
        settings,
        loss='SupConLoss',
        loss_options={'temperature': TEMPERATURE},
        num_items_per_class=settings['per_class'],
        optimizer='AdamW',
    )


def train_theirs(target: Path, settings: dict[str, Any]) -> Result:
    import torch
    from pytorch_metric_learning.losses import SupConLoss

    from finetuner.inference.mlp_encoder import MLPEncoder

    torch.manual_seed(0)
    encoder = MLPEncoder.load(settings['model']).train()
    start = time.perf_counter()
    vectors, names = read(settings['train'])
    preparing = time.perf_counter() - start
    optimizer = torch.optim.AdamW(encoder.parameters(), settings['learning_rate'])
    loss = SupConLoss(TEMPERATURE)
    done = train_plainly(encoder, 'tensor', torch.from_numpy(vectors), names, loss, optimizer, settings)
    return done | {'preparing': preparing, 'model': str(encoder.save(target / 'model'))}


def evaluate(target: Path, settings: dict[str, Any]) -> Result:
    import torch

    if settings['model'] is None:
        embed: Any = np.asarray
    else:
        encoder = load_trained(settings['model'])

        @torch.inference_mode()
        def embed(vectors: np.ndarray) -> np.ndarray:
            return encoder(tensor=torch.from_numpy(vectors)).numpy()

    return {'metrics': judge(embed, read(settings['test']), read(settings['train']), LIMIT)}


def encode(target: Path, settings: dict[str, Any]) -> Result:
    """Texts to vectors, once."""
    from finetuner.inference import build_model

    model, files = build_model('all-minilm-l6-v2'), {}
    for name in ('train', 'test'):
        with (Path(settings['data']) / f'{name}.csv').open(newline='') as file:
            rows = list(csv.reader(file))[1:]
        if settings['limit']:
            rows = rows[:: max(1, len(rows) // settings['limit'])]
        files[name] = str(target / f'{name}.npz')
        np.savez(files[name], vectors=model.encode_texts([row[0] for row in rows]), labels=[row[1] for row in rows])
    return files


def read(file: str) -> tuple[np.ndarray, list[str]]:
    """Vectors, float32 [N, 384], and labels."""
    with np.load(file) as arrays:
        return arrays['vectors'], arrays['labels'].tolist()


JOBS = {'encode': encode, 'ours': train_ours, 'pytorch-metric-learning': train_theirs, 'evaluate': evaluate}


def main(
    data: Annotated[Path, typer.Option(help='The folder of train.csv and test.csv.')] = Path(),
    epochs: int = 10,
    batch_size: int = 256,
    learning_rate: float = 1e-3,
    limit: Annotated[int | None, typer.Option(help='Rows of each file, about; default all.')] = None,
    rounds: Annotated[int, typer.Option(help='Times that the sides take turns; the fastest of each counts.')] = 1,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
    target: Annotated[Path, typer.Option(hidden=True)] = Path(),
    settings: Annotated[str, typer.Option(hidden=True)] = '{}',
) -> None:
    """Train with ours and with pytorch-metric-learning, and print what came of it."""
    if job is not None:
        print(json.dumps(JOBS[job](target, json.loads(settings))))
        return
    import torch

    from finetuner.inference.mlp_encoder import MLPEncoder

    console = Console()
    with tempfile.TemporaryDirectory() as folder, console.status('Embedding the texts') as status:
        work = Path(folder)
        torch.manual_seed(0)
        options = {
            'data': str(data),
            'limit': limit,
            'model': str(MLPEncoder(**OPTIONS).save(work / 'start')),
            'epochs': epochs,
            'batch_size': batch_size,
            'learning_rate': learning_rate,
            'per_class': PER_CLASS,
        }
        options |= run_job(__file__, 'encode', work / 'vectors', options)
        status.update('Evaluating the embeddings as they are')
        before = run_job(__file__, 'evaluate', work / 'before', options | {'model': None})['metrics']
        status.update('Training')
        sides = take_turns(__file__, ('ours', 'pytorch-metric-learning'), work, options, rounds)
        status.update('Evaluating')
        for side in sides:
            side |= run_job(__file__, 'evaluate', work / 'after', options | {'model': side['model']})
    title = f'An MLP on embeddings of Banking77, {epochs} epochs, batches of {batch_size}'
    console.print(comparison(title, before, *sides, 'pytorch-metric-learning', LIMIT))


if __name__ == '__main__':
    typer.run(main)
