"""Texts that find photos: CLIP from scratch, ours against open_clip's loss in a plain loop.

`python benchmarks/grocery.py --data FOLDER`

The folder holds `train.csv` and `test.csv`, photos of groceries with columns `image`, a path in the folder, and `text`,
which describes the product. Both sides begin with the same random weights of a small CLIP (a ResNet for photos of 64
pixels, a transformer of two layers for texts) and see the same batches in the same order, with AdamW and the same
schedule. The peer is what one writes with open_clip: photos and texts prepared once, `ClipLoss`, one step after the
other. Ours is `training.fit` with CLIPLoss: a text that several rows of a batch share goes through the model once, no
text is filled up beyond the longest of its batch, and photos of the same product are no negatives of each other. Each
side trains in a process of its own, so that the peak of its memory is its own, and one evaluation, ours, judges both:
the texts search the photos of `test.csv`, a photo is right if it shows the product of the text. Seconds are those of
preparing the data and of training; CPU seconds are less disturbed by other work on the machine.

What it shows: that text and image towers learn one space together, how fast, and how much false negatives cost. What it
cannot show: all texts of the test are in the training data too, 81 of them. It measures whether products are recognised
on new photos, and says nothing of how new texts are understood; models of this size know no language at all.
"""

from __future__ import annotations

import csv
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

CONFIG = {
    'embed_dim': 128,
    'vision_cfg': {'image_size': 64, 'layers': [1, 1, 1, 1], 'width': 16, 'head_width': 32},
    'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 64, 'heads': 2, 'layers': 2},
}
WEIGHT_DECAY = 0.1
WARMUP = 50  # steps
SEED = 0
CUTOFFS = (1, 5)
SHOWS = (
    'The texts of the test were all seen in training: this measures how well products are recognised on new photos,\n'
    'not how well new texts are understood. Recall@k: a photo of the product is among the first k found.'
)


def train_ours(data: Path, target: Path, settings: dict[str, Any]) -> dict[str, Any]:
    import training
    from finetuner.callback import EvaluationCallback
    from training.callbacks import Callback

    cost: dict[str, float] = {}

    class Meter(Callback):  # evaluation and export are no part of the comparison
        def on_fit_begin(self, state: Any) -> None:
            cost['cpu'] = -time.process_time()

        def on_fit_end(self, state: Any) -> None:
            cost['cpu'] += time.process_time()
            cost['peak'] = peak_memory()

    callbacks = [Meter()] + [
        EvaluationCallback(
            str(data / 'test.csv'), limit=k, model='clip-text', index_model='clip-vision', name=f'first-{k}'
        )
        for k in CUTOFFS
    ]
    result = training.fit(
        settings['model'],
        data / 'train.csv',
        directory=target,
        callbacks=callbacks,
        loss='CLIPLoss',
        sampler='random',
        optimizer='AdamW',
        optimizer_options={'weight_decay': WEIGHT_DECAY},
        learning_rate=settings['learning_rate'],
        scheduler='cosine',
        scheduler_options={'num_warmup_steps': WARMUP},
        epochs=settings['epochs'],
        batch_size=settings['batch_size'],
        seed=SEED,
        device='cpu',
    )
    stages = ('Training', f'Preparing {data / "train.csv"}')
    found = {
        f'recall@{k}': value
        for k in CUTOFFS
        for name, value in result.metrics['after'].items()
        if f'first-{k}_hit' in name
    }
    return cost | {
        'seconds': sum(result.seconds[stage] for stage in stages),
        'pairs': result.samples,
        'model': str(result.artifact),
        'callback': found,
    }


def train_theirs(data: Path, target: Path, settings: dict[str, Any]) -> dict[str, Any]:
    import open_clip
    import torch
    from PIL import Image
    from safetensors.torch import save_file
    from transformers import get_cosine_schedule_with_warmup

    from training.samplers import RandomSampler

    start = time.perf_counter()
    torch.manual_seed(SEED)
    name = f'local-dir:{settings["model"]}'
    model, _, transform = open_clip.create_model_and_transforms(name)
    with (data / 'train.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    photos = torch.stack([transform(Image.open(row['image'])) for row in rows])
    texts = open_clip.get_tokenizer(name)([row['text'] for row in rows])
    sampler = RandomSampler(len(rows), settings['batch_size'], SEED)
    loss = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings['learning_rate'], weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, settings['epochs'] * len(sampler))
    model.train()
    cpu = time.process_time()
    for epoch in range(1, settings['epochs'] + 1):
        for batch in map(torch.from_numpy, sampler.batches(epoch)):
            optimizer.zero_grad()
            loss(*model(photos[batch], texts[batch])).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)  # 100, as open_clip does
    cost = {'seconds': time.perf_counter() - start, 'cpu': time.process_time() - cpu, 'peak': peak_memory()}
    folder = target / 'model'
    folder.mkdir()
    save_file(model.state_dict(), folder / 'open_clip_model.safetensors')
    (folder / 'open_clip_config.json').write_text(json.dumps({'model_cfg': CONFIG, 'preprocess_cfg': {}}))
    return cost | {'pairs': settings['epochs'] * len(rows), 'model': str(folder)}


def evaluate(data: Path, target: Path, settings: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch

    from finetuner.artifact import open_artifact
    from finetuner.inference.backbones import load_encoders

    model = settings['model']
    if model.endswith('.zip'):
        model = open_artifact(model).directory / 'models'
    encoders = load_encoders(model)

    def embed(name: str, contents: list[str]) -> np.ndarray:
        encoder, parts = encoders[name], []
        for start in range(0, len(contents), 128):
            inputs = encoder.preprocessor.collate(encoder.preprocessor.features(contents[start : start + 128]))
            with torch.inference_mode():
                found = encoder(**{key: torch.from_numpy(inputs[key]) for key in encoder.input_names})
            parts.append(torch.nn.functional.normalize(found, dim=-1).numpy())
        return np.concatenate(parts)

    with (data / 'test.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    texts = sorted({row['text'] for row in rows})
    cosines = embed('clip-text', texts) @ embed('clip-vision', [row['image'] for row in rows]).T
    shown = np.array([texts.index(row['text']) for row in rows])
    right = shown[np.argsort(-cosines, 1, kind='stable')] == np.arange(len(texts))[:, None]
    ranks = np.cumsum(right, 1) / np.arange(1, right.shape[1] + 1)
    metrics = {f'recall@{k}': right[:, :k].any(1).mean() for k in CUTOFFS}
    metrics |= {'precision@5': right[:, :5].mean(), 'mAP': ((ranks * right).sum(1) / right.sum(1)).mean()}
    return {'metrics': {name: float(value) for name, value in metrics.items()}, 'queries': len(texts)}


JOBS = {'ours': train_ours, 'open_clip': train_theirs, 'evaluate': evaluate}


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


def write_data(source: Path, target: Path, limit: int | None) -> Path:
    """CSV files of texts and paths that are true anywhere, with about `limit` rows each."""
    target.mkdir()
    for name in ('train.csv', 'test.csv'):
        with (source / name).open(newline='') as file:
            rows = list(csv.DictReader(file))
        step = max(1.0, len(rows) / (limit or len(rows)))
        with (target / name).open('w', newline='') as file:
            writer = csv.writer(file)
            writer.writerow(['text', 'image'])
            for row in (rows[int(number * step)] for number in range(int(len(rows) / step))):
                writer.writerow([row['text'], (source / row['image']).resolve()])
    return target


def write_model(target: Path) -> Path:
    """A CLIP with random weights, as open_clip keeps one."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    target.mkdir()
    torch.manual_seed(SEED)
    save_file(open_clip.CLIP(**CONFIG).state_dict(), target / 'open_clip_model.safetensors')
    (target / 'open_clip_config.json').write_text(json.dumps({'model_cfg': CONFIG, 'preprocess_cfg': {}}))
    return target


def main(
    data: Annotated[Path, typer.Option(help='The folder of train.csv, test.csv and the photos.')],
    epochs: int = 12,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    limit: Annotated[int | None, typer.Option(help='Rows of each file, default all.')] = None,
    rounds: Annotated[int, typer.Option(help='Times that the sides take turns; the fastest of each counts.')] = 1,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
    target: Annotated[Path, typer.Option(hidden=True)] = Path(),
    settings: Annotated[str, typer.Option(hidden=True)] = '{}',
) -> None:
    """Train a CLIP with ours and with a loop around open_clip's loss, and print what came of it."""
    if job is not None:
        print(json.dumps(JOBS[job](data, target, json.loads(settings))))
        return
    console = Console()
    sides: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder, console.status('') as status:
        work = Path(folder)
        status.update('Writing the model')
        model, pairs = write_model(work / 'start'), write_data(data, work / 'data', limit)
        status.update('Evaluating the model as it is')
        before = run('evaluate', pairs, work / 'before', model=str(model))
        for turn in range(rounds):
            for side in ('ours', 'open_clip'):
                status.update(f'Training: {side}, {turn + 1} of {rounds}')
                options = {'epochs': epochs, 'batch_size': batch_size, 'learning_rate': learning_rate}
                done = run(side, pairs, work / f'{side}-{turn}', model=str(model), **options)
                if turn == 0:
                    status.update(f'Evaluating: {side}')
                    done |= run('evaluate', pairs, work / f'{side}-evaluation', model=done['model'])
                    sides[side] = done
                for figure in ('seconds', 'cpu', 'peak'):
                    sides[side][figure] = min(sides[side][figure], done[figure])
    ours, theirs = sides['ours'], sides['open_clip']
    title = f'Grocery: {before["queries"]} texts find photos, {epochs} epochs, batches of {batch_size}'
    table = Table(title=title, title_justify='left')
    for column in ('', 'before', 'ours', 'open_clip', 'ratio'):
        table.add_column(column, justify='right' if column else 'left', no_wrap=True)
    for name, value in before['metrics'].items():
        one, two = ours['metrics'][name], theirs['metrics'][name]
        table.add_row(name, f'{value:.3f}', f'{one:.3f}', f'{two:.3f}', f'{one / max(two, 1e-9):.2f}')
        if (told := ours['callback'].get(name)) is not None and abs(told - one) > 1e-6:
            table.add_row(f'{name} by EvaluationCallback', '', f'{told:.3f}', '', '')
    table.add_section()
    for label, one, two in [
        ('seconds', ours['seconds'], theirs['seconds']),
        ('CPU seconds of training', ours['cpu'], theirs['cpu']),
        ('pairs', ours['pairs'], theirs['pairs']),
        ('pairs/s', ours['pairs'] / ours['seconds'], theirs['pairs'] / theirs['seconds']),
        ('peak MiB', ours['peak'], theirs['peak']),
    ]:
        table.add_row(label, '', f'{one:,.1f}', f'{two:,.1f}', f'{one / two:.2f}')
    console.print(table)
    console.print(SHOWS, soft_wrap=True)


if __name__ == '__main__':
    typer.run(main)
