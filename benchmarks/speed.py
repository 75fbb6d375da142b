"""Training speed, ours against sentence-transformers: `python benchmarks/speed.py --data FOLDER`.

The folder holds Banking77's `train.csv` and `test.csv`, two columns, text and label. In each of four settings both
sides train the same model on the same texts with the same loss, batch size and number of epochs, AdamW with the same
learning rate, linear decay and gradient clipping:

* short: pairs of texts of one intent, MultipleNegativesRankingLoss;
* long: the same with documents of about 180 tokens, each made of texts of one intent;
* labels: texts and their intents. Ours mines triplets among the 64 texts of a batch, theirs reads columns of anchors,
  positives and negatives, each text once an anchor, 64 triplets a batch;
* head: the short pairs, a frozen backbone and a projection head of three layers; what counts is an epoch after the
  first.

On a GPU, `--device cuda --precision bf16` compares both in half the bits, and `--flash` gives the peer FlashAttention,
where it is installed. MFU is what a side does of the arithmetic that its texts take, padding not counted, in parts of
what a matrix product does there (bf16 on a GPU, float32 on a CPU).

The sides take turns, each in a process of its own, so that the peak of its memory is its own. Seconds are those of
training, tokenisation included, loading and saving excluded; the fastest round counts. 'of CPU' is the ratio by CPU
seconds. Judge of both is one function: the average precision at 20 of held-out texts that search the training texts,
embedded by sentence-transformers.
"""

from __future__ import annotations

import csv
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from sides import Result, preparations, run_job

# how many times as fast as theirs ours is to be
GOALS = {'short': 2.5, 'long': 1.3, 'labels': 5.0, 'head': 100.0}
EPOCHS = {'head': 3}
LEARNING_RATES = {'head': 1e-3}
HEAD = 128
MARGIN = 0.2
LIMIT = 20
TOKENS_PER_WORD = 1.2


class Clock:
    """Times epochs, by the wall and by the CPU, which other work on the machine disturbs less."""

    def start(self) -> None:
        self.laps = [(time.perf_counter(), time.process_time())]

    def lap(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.laps.append((time.perf_counter(), time.process_time()))
        on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated()
        self.peak = (on_gpu or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**20

    def result(self, setting: str, examples: int, before: float = 0.0) -> dict[str, float]:
        """What was done from the start on, or of a head after the first epoch, and the peak of memory in MiB, on a GPU
        of its own.

        :param examples: of all epochs.
        :param before: seconds of preparations before the start.
        """
        epochs = len(self.laps) - 1
        first = int(setting == 'head')
        seconds, cpu = (last - begin for begin, last in zip(self.laps[first], self.laps[-1], strict=True))
        if not first:
            seconds, cpu = seconds + before, cpu + before
        return {'examples': examples * (epochs - first) / epochs, 'seconds': seconds, 'cpu': cpu, 'peak': self.peak}


def train_ours(setting: str, work: Path, target: Path, options: dict[str, Any]) -> Result:
    import training
    from finetuner.artifact import open_artifact
    from finetuner.data import CSVOptions
    from training.callbacks import Callback

    class Watch(Callback):
        def __init__(self) -> None:
            self.clock = Clock()

        def on_fit_begin(self, state: Any) -> None:
            self.clock.start()

        def on_epoch_end(self, state: Any) -> None:
            self.clock.lap()

    watch = Watch()
    labelled = setting == 'labels'
    result = training.fit(
        options['model'],
        work / 'train.csv',
        directory=target,
        csv_options=CSVOptions(
            header=True,
            columns={'content': 'text', 'label': 'label'} if labelled else {'content': ['anchor', 'positive']},
        ),
        callbacks=[watch],
        loss='TripletMarginLoss' if labelled else 'MultipleNegativeRankingLoss',
        loss_options={'margin': MARGIN} if labelled else None,
        optimizer='AdamW',
        optimizer_options={'weight_decay': 0},
        scheduler='linear',
        max_grad_norm=1.0,
        learning_rate=LEARNING_RATES.get(setting, 5e-5),
        epochs=EPOCHS.get(setting, 1),
        batch_size=options['batch_size'],
        device=options['device'],
        precision=options['precision'],
        **{'freeze': True, 'output_dim': HEAD} if setting == 'head' else {},
    )
    before = preparations(result)
    model = open_artifact(result.artifact).model_directory('model')
    return watch.clock.result(setting, result.samples, before) | {'model': str(model)}


def train_theirs(setting: str, work: Path, target: Path, options: dict[str, Any]) -> Result:
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses, modules
    from torch import nn
    from transformers import TrainerCallback

    from finetuner.inference.pretrained import resolve

    class Watch(TrainerCallback):
        clock = Clock()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.clock.lap()

    device, attention = options['device'], {'attn_implementation': 'flash_attention_2'} if options['flash'] else {}
    model = SentenceTransformer(str(resolve(options['model'])), device=device, model_kwargs=attention)
    if setting == 'head':
        transformer, pooling = model[0].requires_grad_(False), model[1]
        width = pooling.get_embedding_dimension()
        sizes = [(width, nn.ReLU()), (width, nn.ReLU()), (HEAD, nn.Identity())]
        head = [modules.Dense(width, size, activation_function=activation) for size, activation in sizes]
        model = SentenceTransformer(modules=[transformer, pooling, *head, modules.Normalize()], device=device)
    if setting == 'labels':
        distance = losses.TripletDistanceMetric.EUCLIDEAN
        loss: nn.Module = losses.TripletLoss(model, distance_metric=distance, triplet_margin=MARGIN)
    else:
        loss = losses.MultipleNegativesRankingLoss(model)
    columns = read_csv(work / ('triplets.csv' if setting == 'labels' else 'train.csv'))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(target / 'checkpoints'),
            num_train_epochs=EPOCHS.get(setting, 1),
            per_device_train_batch_size=options['batch_size'],
            learning_rate=LEARNING_RATES.get(setting, 5e-5),
            use_cpu=device == 'cpu',
            bf16=options['precision'] == 'bf16',
            fp16=options['precision'] == 'fp16',
            save_strategy='no',
            logging_strategy='no',
            report_to='none',
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict(columns),
        loss=loss,
        callbacks=[Watch()],
    )
    Watch.clock.start()
    done = trainer.train()
    samples = round(done.metrics['epoch'] * len(next(iter(columns.values()))))
    result = Watch.clock.result(setting, samples)
    model.save(str(target / 'model'))
    return result | {'model': str(target / 'model')}


def evaluate(setting: str, work: Path, target: Path, options: dict[str, Any]) -> Result:
    from sentence_transformers import SentenceTransformer

    from finetuner.inference.pretrained import resolve

    model = SentenceTransformer(str(resolve(options['model'])), device='cpu')
    query, index = read_csv(work / 'query.csv'), read_csv(work / 'index.csv')
    embedded = [
        model.encode(part['text'], normalize_embeddings=True, show_progress_bar=False) for part in (query, index)
    ]
    order = (embedded[0] @ embedded[1].T).argsort(1)[:, : -LIMIT - 1 : -1]
    hits = np.array(query['label'])[:, None] == np.array(index['label'])[order]
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return {'metric': float(((precision * hits).sum(1) / hits.sum(1).clip(1)).mean())}


def measure(setting: str, work: Path, target: Path, options: dict[str, Any]) -> Result:
    """Operations that an example takes on each side, forward and backward, and that the device does in a second."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from finetuner.inference.pretrained import resolve

    location = resolve(options['model'])
    config, tokenizer = AutoConfig.from_pretrained(location), AutoTokenizer.from_pretrained(location)
    weights = AutoModel.from_pretrained(location)
    of_layers = sum(p.numel() for name, p in weights.named_parameters() if 'embeddings' not in name)
    operations = {}
    for side, file in (('ours', 'train.csv'), ('theirs', 'triplets.csv' if setting == 'labels' else 'train.csv')):
        columns = [column for name, column in read_csv(work / file).items() if name != 'label']
        lengths = np.array(
            [len(tokens) for column in columns for tokens in tokenizer(column, truncation=True).input_ids]
        )
        attention = 12 * config.num_hidden_layers * config.hidden_size * lengths**2
        operations[side] = float((6 * of_layers * lengths + attention).sum() / len(columns[0]))
    device = torch.device(options['device'])
    size, dtype = (8192, torch.bfloat16) if device.type == 'cuda' else (2048, torch.float32)
    one = torch.randn(size, size, device=device, dtype=dtype)
    clock = Clock()
    clock.start()
    for _ in range(20):
        one @ one
        clock.lap()
    fastest = min(end[0] - begin[0] for begin, end in zip(clock.laps, clock.laps[1:], strict=False))
    return {'operations': operations, 'device': 2 * size**3 / fastest}


JOBS: dict[str, Callable[..., Result]] = {
    'ours': train_ours,
    'sentence-transformers': train_theirs,
    'evaluate': evaluate,
    'measure': measure,
}


def read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(newline='', encoding='utf-8') as file:
        header, *rows = csv.reader(file)
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open('w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([header, *rows])


Texts = dict[str, list[str]]
"""The texts of every label."""


def read_texts(path: Path, chance: random.Random) -> Texts:
    texts: Texts = {}
    for text, label in zip(*read_csv(path).values(), strict=True):
        texts.setdefault(label, []).append(text)
    for found in texts.values():
        chance.shuffle(found)
    return texts


def make_documents(texts: Texts, chance: random.Random) -> Texts:
    """Texts of one label put together to documents of 60 to 300 tokens, 180 on average."""

    def join(found: list[str]) -> Iterator[str]:
        while True:
            words = chance.uniform(60, 300) / TOKENS_PER_WORD
            document: list[str] = []
            while len(document) < words:
                document += chance.choice(found).split()
            yield ' '.join(document[: int(words)])

    return {
        label: [document for document, _ in zip(join(found), range(40), strict=False)] for label, found in texts.items()
    }


def deal(texts: Texts, size: int, count: int) -> list[tuple[str, list[str]]]:
    """Take `count` groups of `size` texts of one label each, labels in turn, no text twice."""
    groups = {
        label: [found[n : n + size] for n in range(0, len(found) - size + 1, size)] for label, found in texts.items()
    }
    turns = max(map(len, groups.values()))
    dealt = [(label, found[turn]) for turn in range(turns) for label, found in groups.items() if turn < len(found)]
    return dealt[:count]


def prepare(setting: str, data: Path, work: Path, limit: int) -> None:
    """Write what a setting needs: `train.csv`, perhaps `triplets.csv`, and `query.csv`, `index.csv` for the judge."""
    chance = random.Random(0)
    work.mkdir()
    train, test = (read_texts(data / name, chance) for name in ('train.csv', 'test.csv'))
    if setting == 'long':
        train, test, limit = make_documents(train, chance), make_documents(test, chance), limit // 4
    if setting == 'labels':
        items = [(text, label) for label, (text,) in deal(train, 1, limit)]
        write_csv(work / 'train.csv', ('text', 'label'), items)
        triplets = []
        for text, label in items:
            others = [other for other, same in items if same == label and other != text]
            positive = chance.choice(others or [text])
            triplets.append((text, positive, chance.choice([other for other, same in items if same != label])))
        write_csv(work / 'triplets.csv', ('anchor', 'positive', 'negative'), chance.sample(triplets, len(triplets)))
    else:
        pairs = deal(train, 2, limit)
        chance.shuffle(pairs)
        write_csv(work / 'train.csv', ('anchor', 'positive'), [pair for _, pair in pairs])
        items = [(text, label) for label, pair in pairs for text in pair]
    write_csv(work / 'index.csv', ('text', 'label'), items)
    write_csv(work / 'query.csv', ('text', 'label'), [(text, label) for label, (text,) in deal(test, 1, limit)])


def main(
    data: Annotated[Path, typer.Option(help='The folder of train.csv and test.csv.')] = Path(),
    model: Annotated[str, typer.Option(help='A model directory, a short name or a hub id.')] = 'all-minilm-l6-v2',
    batch_size: int = 64,
    limit: Annotated[int, typer.Option(help='Pairs or texts to train on; a quarter of it with long ones.')] = 320,
    rounds: Annotated[int, typer.Option(help='Times that the sides take turns; the fastest of each counts.')] = 2,
    only: Annotated[str, typer.Option(help='Which settings, with commas between.')] = ','.join(GOALS),
    device: Annotated[str, typer.Option(help='cpu or cuda.')] = 'cpu',
    precision: Annotated[str, typer.Option(help='fp32, bf16 or fp16.')] = 'fp32',
    flash: Annotated[bool, typer.Option('--flash', help='Give sentence-transformers FlashAttention.')] = False,
    job: Annotated[str | None, typer.Option(hidden=True)] = None,
    target: Annotated[Path, typer.Option(hidden=True)] = Path(),
    settings: Annotated[str, typer.Option(hidden=True)] = '{}',
) -> None:
    """Train with ours and with sentence-transformers, and print what came of it."""
    if job is not None:
        given = json.loads(settings)
        print(json.dumps(JOBS[job](given['setting'], Path(given['work']), target, given)))
        return
    console = Console()
    sides = ('ours', 'sentence-transformers')
    chosen = only.split(',')
    rows: dict[str, list[str]] = {}
    given = {'model': model, 'batch_size': batch_size, 'device': device, 'precision': precision, 'flash': flash}
    with tempfile.TemporaryDirectory() as folder, console.status('') as status:
        for name in chosen:
            work = Path(folder) / name
            prepare(name, data, work, limit)

            def run(
                job: str, target: Path, given: Result = given | {'setting': name, 'work': str(work)}, **changed: Any
            ) -> Result:
                return run_job(__file__, job, target, given | changed)

            results: dict[str, Result] = {}
            for turn in range(rounds):
                for side in sides:
                    status.update(f'{name}: {side}, {turn + 1} of {rounds}')
                    done = run(side, work / f'{side}-{turn}')
                    results[side] = min(done, results.get(side, done), key=lambda result: float(result['seconds']))
            metrics = []
            for judged in (model, *(results[side]['model'] for side in sides)):
                status.update(f'{name}: evaluating')
                metrics.append(run('evaluate', work / 'evaluation', model=judged)['metric'])
            ours, theirs = (results[side] for side in sides)
            speeds = [side['examples'] / side['seconds'] for side in (ours, theirs)]
            status.update(f'{name}: measuring the device')
            needed = run('measure', work / 'measure')
            flops = [speed * needed['operations'][side] for speed, side in zip(speeds, ('ours', 'theirs'), strict=True)]
            used = [f'{count / needed["device"]:.1%}' if name != 'head' else '' for count in flops]
            figures = {
                'examples/s, ours': f'{speeds[0]:,.1f}',
                'examples/s, theirs': f'{speeds[1]:,.1f}',
                'ratio': f'{speeds[0] / speeds[1]:.2f}',
                'of CPU': f'{theirs["cpu"] / theirs["examples"] / (ours["cpu"] / ours["examples"]):.2f}',
                'goal': f'{GOALS[name]:g}',
                'MFU, ours': used[0],
                'MFU, theirs': used[1],
                'peak MiB, ours': f'{ours["peak"]:,.0f}',
                'peak MiB, theirs': f'{theirs["peak"]:,.0f}',
                'AP@20 before': f'{metrics[0]:.4f}',
                'AP@20, ours': f'{metrics[1]:.4f}',
                'AP@20, theirs': f'{metrics[2]:.4f}',
            }
            for row, figure in figures.items():
                rows.setdefault(row, []).append(figure)
    title = f'{model}, batches of {batch_size}, {precision} on {device}'
    table = Table('')
    for name in chosen:
        table.add_column(name, justify='right')
    for row, found in rows.items():
        table.add_row(row, *found, end_section=row in ('goal', 'MFU, theirs', 'peak MiB, theirs'))
    console.print(title)
    console.print(table)


if __name__ == '__main__':
    typer.run(main)
