"""Photos of clothes, ours against a plain loop with pytorch-metric-learning:

`python benchmarks/clothing.py --data FOLDER --weights squeezenet1_1_rgb_torchvision.pt`

The folder holds `train.csv` and `test.csv`, two columns: `image`, a path in the folder, and `label`, one of ten kinds
of clothes. The model is torchvision's SqueezeNet 1.1 with the weights of ImageNet. Both sides learn with the same loss,
the same batches in the same order, AdamW and the same schedule, on images of the same size. The peer is what one writes
with pytorch-metric-learning: a data set of torchvision whose loader decodes in two processes, and one step after the
other. Ours decodes once. Each side trains in a process of its own, so that the peak of its memory is its own (the
loader's processes are not counted), and one evaluation judges both, and the frozen model as it came, in the size that
it was made for: the photos of `test.csv` search those of `train.csv`. CPU seconds are less disturbed by other work on
the machine; those of the peer lack its loader's processes.
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
from sides import Result, comparison, fit, judge, peak_memory, run_job, take_turns

ARCHITECTURE = 'squeezenet1_1'
TEMPERATURE = 0.1
WARMUP = 20  # steps
SEED = 0


def train_ours(target: Path, settings: dict[str, Any]) -> Result:
    return fit(
        ARCHITECTURE,
        Path(settings['data']) / 'train.csv',
        target,
        settings,
        model_options={
            'weights': settings['weights'],
            'preprocess_options': {'size': settings['size']},
            'augment': settings['augment'],
        },
        loss='SupConLoss',
        loss_options={'temperature': TEMPERATURE},
        num_items_per_class=settings['per_class'],
        optimizer='AdamW',
        scheduler='cosine',
        scheduler_options={'num_warmup_steps': WARMUP},
        seed=SEED,
    )


def train_theirs(target: Path, settings: dict[str, Any]) -> Result:
    import torch
    import torchvision
    from PIL import Image
    from pytorch_metric_learning.losses import SupConLoss
    from safetensors.torch import save_file
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms
    from transformers import get_cosine_schedule_with_warmup

    from training.samplers import ClassSampler

    start = time.perf_counter()
    torch.manual_seed(SEED)
    paths, names = read(settings, 'train')
    labels = np.array([list(dict.fromkeys(names)).index(name) for name in names])
    size = settings['size']
    cut = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    if settings['augment']:
        cut += [transforms.RandomResizedCrop(size, (0.5, 1)), transforms.RandomHorizontalFlip()]
    normalize = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    transform = transforms.Compose([*cut, transforms.ToTensor(), normalize])

    class Photos(Dataset[tuple[Any, int]]):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, row: int) -> tuple[Any, int]:
            return transform(Image.open(paths[row]).convert('RGB')), int(labels[row])

    class Batches:
        """Ours, so that both see the same."""

        def __init__(self) -> None:
            self.sampler, self.epoch = ClassSampler(labels, settings['batch_size'], settings['per_class'], SEED), 0

        def __len__(self) -> int:
            return len(self.sampler)

        def __iter__(self) -> Any:
            self.epoch += 1
            return iter(batch.tolist() for batch in self.sampler.batches(self.epoch))

    model = torchvision.models.get_model(ARCHITECTURE)
    model.load_state_dict(torch.load(settings['weights'], weights_only=True))
    model.train()
    loader = DataLoader(Photos(), batch_sampler=Batches(), num_workers=2, persistent_workers=True)
    loss = SupConLoss(TEMPERATURE)
    optimizer = torch.optim.AdamW(model.features.parameters(), settings['learning_rate'])
    steps = settings['epochs'] * len(loader)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP, steps)
    cost = {'preparing': time.perf_counter() - start}
    samples, start, cpu = 0, time.perf_counter(), time.process_time()
    for _ in range(settings['epochs']):
        for images, classes in loader:
            optimizer.zero_grad()
            loss(model.features(images).mean((2, 3)), classes).backward()
            optimizer.step()
            schedule.step()
            samples += len(images)
    cost |= {'seconds': time.perf_counter() - start, 'cpu': time.process_time() - cpu}
    save_file(model.state_dict(), target / 'model.safetensors')
    return cost | {'samples': samples, 'peak': peak_memory(), 'model': str(target / 'model.safetensors')}


def evaluate(target: Path, settings: dict[str, Any]) -> Result:
    from finetuner.inference import build_model, load_engine

    model = settings['model']
    if model.endswith('.zip'):
        engine = load_engine(model, is_onnx=False)
    else:
        options = {'weights': model, 'preprocess_options': {'size': settings['size']}}
        engine = build_model(ARCHITECTURE, options, device='cpu')
    contents = [read(settings, name) for name in ('test', 'train')]
    sides = [(engine.encode_contents(paths), labels) for paths, labels in contents]
    near, far = (judge(np.asarray, *sides, limit=limit) for limit in (1, len(sides[1][1])))
    return {'metrics': {'1-NN': near['precision_at_k'], 'mAP': far['average_precision']}}


def read(settings: dict[str, Any], name: str) -> tuple[list[str], list[str]]:
    """The paths of photos, and their labels."""
    folder = Path(settings['data'])
    with (folder / f'{name}.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    return [str(folder / row['image']) for row in rows], [row['label'] for row in rows]


JOBS = {'ours': train_ours, 'pytorch-metric-learning': train_theirs, 'evaluate': evaluate}


def main(
    data: Annotated[Path, typer.Option(help='The folder of train.csv, test.csv and the photos.')] = Path(),
    weights: Annotated[Path, typer.Option(help="torchvision's state dict of squeezenet1_1.")] = Path(),
    epochs: int = 6,
    batch_size: int = 64,
    per_class: Annotated[int, typer.Option(help='Photos of one class in a batch.')] = 8,
    learning_rate: float = 1e-3,
    size: Annotated[int, typer.Option(help='Height and width of the images that are learned from.')] = 160,
    augment: Annotated[bool, typer.Option(help='Random crops, half of them mirrored.')] = False,
    rounds: Annotated[int, typer.Option(help='Times that the sides take turns; the fastest of each counts.')] = 1,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
    target: Annotated[Path, typer.Option(hidden=True)] = Path(),
    settings: Annotated[str, typer.Option(hidden=True)] = '{}',
) -> None:
    """Train with ours and with pytorch-metric-learning, and print what came of it."""
    if job is not None:
        print(json.dumps(JOBS[job](target, json.loads(settings))))
        return
    console = Console()
    options = {
        'data': str(data.absolute()),
        'weights': str(weights.absolute()),
        'epochs': epochs,
        'batch_size': batch_size,
        'per_class': per_class,
        'learning_rate': learning_rate,
        'size': size,
        'augment': augment,
    }
    with tempfile.TemporaryDirectory() as folder, console.status('Evaluating the frozen model') as status:
        work = Path(folder)
        frozen = options | {'model': str(weights.absolute()), 'size': 224}
        before = run_job(__file__, 'evaluate', work / 'before', frozen)['metrics']
        status.update('Training')
        sides = take_turns(__file__, ('ours', 'pytorch-metric-learning'), work, options, rounds)
        status.update('Evaluating')
        for side in sides:
            side |= run_job(__file__, 'evaluate', work / 'after', options | {'model': side['model']})
    title = f'{ARCHITECTURE} on photos of clothes, {epochs} epochs, batches of {batch_size}, images of {size}'
    console.print(comparison(title, before, *sides, 'pytorch-metric-learning', 0))


if __name__ == '__main__':
    typer.run(main)
