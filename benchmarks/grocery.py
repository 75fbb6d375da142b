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
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from sides import Result, comparison, fit, peak_memory, run_job, take_turns

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


def train_ours(target: Path, settings: dict[str, Any]) -> Result:
    return fit(
        settings['model'],
        Path(settings['data']) / 'train.csv',
        target,
        settings,
        loss='CLIPLoss',
        sampler='random',
        optimizer='AdamW',
        optimizer_options={'weight_decay': WEIGHT_DECAY},
        scheduler='cosine',
        scheduler_options={'num_warmup_steps': WARMUP},
        seed=SEED,
    )


def train_theirs(target: Path, settings: dict[str, Any]) -> Result:
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
    rows = read(settings, 'train.csv')
    photos = torch.stack([transform(Image.open(row['image'])) for row in rows])
    texts = open_clip.get_tokenizer(name)([row['text'] for row in rows])
    sampler = RandomSampler(len(rows), settings['batch_size'], SEED)
    loss = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings['learning_rate'], weight_decay=WEIGHT_DECAY)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, settings['epochs'] * len(sampler))
    model.train()
    preparing, start, cpu = time.perf_counter() - start, time.perf_counter(), time.process_time()
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
    return cost | {'preparing': preparing, 'samples': settings['epochs'] * len(rows), 'model': str(folder)}


def evaluate(target: Path, settings: dict[str, Any]) -> Result:
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

    rows = read(settings, 'test.csv')
    texts = sorted({row['text'] for row in rows})
    cosines = embed('clip-text', texts) @ embed('clip-vision', [row['image'] for row in rows]).T
    shown = np.array([texts.index(row['text']) for row in rows])
    right = shown[np.argsort(-cosines, 1, kind='stable')] == np.arange(len(texts))[:, None]
    ranks = np.cumsum(right, 1) / np.arange(1, right.shape[1] + 1)
    metrics = {f'recall@{k}': right[:, :k].any(1).mean() for k in CUTOFFS}
    metrics |= {'precision@5': right[:, :5].mean(), 'mAP': ((ranks * right).sum(1) / right.sum(1)).mean()}
    return {'metrics': {name: float(value) for name, value in metrics.items()}}


JOBS = {'ours': train_ours, 'open_clip': train_theirs, 'evaluate': evaluate}


def read(settings: dict[str, Any], name: str) -> list[dict[str, str]]:
    with (Path(settings['data']) / name).open(newline='') as file:
        return list(csv.DictReader(file))


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
    data: Annotated[Path, typer.Option(help='The folder of train.csv, test.csv and the photos.')] = Path(),
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
        print(json.dumps(JOBS[job](target, json.loads(settings))))
        return
    console = Console()
    with tempfile.TemporaryDirectory() as folder, console.status('Writing the model') as status:
        work = Path(folder)
        options = {
            'model': str(write_model(work / 'start')),
            'data': str(write_data(data, work / 'data', limit)),
            'epochs': epochs,
            'batch_size': batch_size,
            'learning_rate': learning_rate,
        }
        status.update('Evaluating the model as it is')
        before = run_job(__file__, 'evaluate', work / 'before', options)['metrics']
        status.update('Training')
        sides = take_turns(__file__, ('ours', 'open_clip'), work, options, rounds)
        status.update('Evaluating')
        for side in sides:
            side |= run_job(__file__, 'evaluate', work / 'after', options | {'model': side['model']})
    title = f'Grocery: texts find photos, {epochs} epochs, batches of {batch_size}'
    console.print(comparison(title, before, *sides, 'open_clip', CUTOFFS[-1]))
    console.print(SHOWS, soft_wrap=True)


if __name__ == '__main__':
    typer.run(main)
