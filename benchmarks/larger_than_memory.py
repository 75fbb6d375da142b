"""Training on data sets that are far larger than the memory it takes: `python benchmarks/larger_than_memory.py`.

Makes labelled vectors in a Parquet file, trains an `mlp` on it through `training.fit`, and watches the anonymous memory
of the process (`RssAnon`: what it holds, beside the files that it maps). Once with the data set, once with an eighth of
it: if memory is constant, the peaks are about the same. Everything lies in a temporary folder and is removed; the disk
needs room for about five times the data. Exit code 1 if the peak is beyond `--limit`.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

WIDTH = 1024
CLASSES = 200
CHUNK_ROWS = 10_000


def main() -> int:
    arguments = parse_arguments()
    if arguments.worker:
        work(arguments)
        return 0
    folder = Path(tempfile.mkdtemp(prefix='larger-than-memory-', dir=arguments.folder))
    try:
        needed = int(5 * arguments.gigabytes * 1e9)
        if shutil.disk_usage(folder).free < needed:
            print(f'{folder} has no room for {needed / 1e9:.0f} GB: give another --folder, or less --gigabytes')
            return 1
        results = [measure(arguments, folder / str(share), arguments.gigabytes / share) for share in (8, 1)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = Table(
        'data', 'rows', 'peak memory', 'before it', 'of the data', 'seconds', 'rows/s', 'loss, first and last'
    )
    for result in results:
        table.add_row(
            f'{result["size"] / 1e9:.2f} GB',
            f'{result["rows"]:,}',
            f'{result["peak"] / 1e6:.0f} MB',
            f'{result["before"] / 1e6:.0f} MB',
            f'{result["peak"] / result["size"]:.1%}',
            f'{result["seconds"]:.0f}',
            f'{result["rows"] * arguments.epochs / result["training"]:,.0f}',
            f'{result["losses"][0]:.3f}, {result["losses"][-1]:.3f}',
        )
    Console().print(table)
    peak = results[-1]['peak']
    print(f'Peak anonymous memory {peak / 1e9:.2f} GB, limit {arguments.limit} GB')
    return 0 if peak <= arguments.limit * 1e9 else 1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--gigabytes', type=float, default=4, help='of vectors (default 4)')
    parser.add_argument('--limit', type=float, default=1.5, help='of anonymous memory, in GB (default 1.5)')
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--batch-size', type=int, default=4096)
    parser.add_argument('--folder', help='where the temporary folder is made')
    parser.add_argument('--worker', help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(arguments: argparse.Namespace, folder: Path, gigabytes: float) -> dict:
    """Train in a process of its own, whose memory is its own."""
    folder.mkdir()
    rows = write_vectors(folder / 'vectors.parquet', int(gigabytes * 1e9 / (4 * WIDTH)))
    options = ['--epochs', str(arguments.epochs), '--batch-size', str(arguments.batch_size)]
    subprocess.run([sys.executable, __file__, '--worker', str(folder), *options], check=True)
    result = json.loads((folder / 'result.json').read_text())
    shutil.rmtree(folder)
    return {**result, 'rows': rows, 'size': rows * 4 * WIDTH}


def write_vectors(path: Path, rows: int) -> int:
    """Points around the centres of classes, in a Parquet file of columns `vector` and `label`. Returns their number."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(0)
    centres = random.normal(size=(CLASSES, WIDTH)).astype(np.float32)
    schema = pa.schema([('vector', pa.list_(pa.float32(), WIDTH)), ('label', pa.string())])
    start = time.perf_counter()
    with pq.ParquetWriter(path, schema, compression='none', use_dictionary=['label']) as writer:
        for first in range(0, rows, CHUNK_ROWS):
            labels = random.integers(CLASSES, size=min(CHUNK_ROWS, rows - first))
            vectors = centres[labels] + 4 * random.standard_normal((len(labels), WIDTH), np.float32)
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH)
            writer.write_table(pa.table([column, [f'class {label}' for label in labels]], schema=schema))
    print(f'Wrote {rows:,} vectors, {path.stat().st_size / 1e9:.2f} GB, in {time.perf_counter() - start:.0f} s')
    return rows


def work(arguments: argparse.Namespace) -> None:
    import training

    folder = Path(arguments.worker)
    gc.collect()
    before = anonymous_memory()
    with Watch() as watch:
        start = time.perf_counter()
        result = training.fit(
            'mlp',
            folder / 'vectors.parquet',
            directory=folder / 'run',
            model_options={'input_size': WIDTH, 'hidden_sizes': [256, 64], 'activation': 'relu'},
            loss='ArcFaceLoss',
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            learning_rate=1e-3,
            device='cpu',
        )
        seconds = time.perf_counter() - start
    for stage, taken in result.seconds.items():
        print(f'  {stage}: {taken:.0f} s')
    losses = [epoch['train_loss'] for epoch in result.history]
    found = {'peak': watch.peak, 'before': before, 'seconds': seconds, 'losses': losses}
    found['training'] = result.seconds['Training']
    (folder / 'result.json').write_text(json.dumps(found))


def anonymous_memory() -> int:
    """Bytes of memory of this process that no file backs."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('RssAnon:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError('/proc/self/status has no RssAnon: this runs on Linux alone')


class Watch:
    """The peak of the anonymous memory, looked at every 20 ms."""

    def __enter__(self) -> Watch:
        self.peak, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, anonymous_memory())


if __name__ == '__main__':
    sys.exit(main())
