"""CPU microseconds to encode and decode one document, ours against stock docarray: `python benchmarks/documents.py`.

Each document has a short text and an embedding of 384 float32. One encode goes from a list of documents to bytes, one
decode from bytes to a list of documents. The two sides take turns, so that a slow moment of the machine meets both.
Exits with 1 when decode is not 5 times, or encode not 2 times, as fast as stock.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer
from docarray import BaseDoc, DocList
from docarray.typing import NdArray
from rich.console import Console
from rich.table import Table

from finetuner.documents import Document, DocumentArray

GOALS = {'encode': 2.0, 'decode': 5.0}
DIM = 384


class StockContent(BaseDoc):
    text: str | None = None
    uri: str | None = None
    blob: bytes | None = None
    tensor: NdArray | None = None
    modality: str | None = None
    embedding: NdArray | None = None
    tags: dict[str, Any] = {}


class StockDocument(StockContent):
    chunks: DocList[StockContent] | None = None


def main(
    documents: Annotated[int, typer.Option(help='Documents in one list.')] = 256,
    repetitions: Annotated[int, typer.Option(help='Times that each side encodes and decodes the list.')] = 21,
) -> None:
    values = [
        {'text': f'how do I return the order with the number {number}', 'embedding': row}
        for number, row in enumerate(np.random.default_rng(0).random((documents, DIM), np.float32))
    ]
    ours = DocumentArray([Document(**one) for one in values])
    stock = DocList[StockDocument]([StockDocument(**one) for one in values])
    message = bytes(stock)
    calls: dict[str, dict[str, Callable[[], object]]] = {
        'encode': {'stock': stock.to_bytes, 'ours': ours.to_bytes},
        'decode': {
            'stock': lambda: DocList[StockDocument].from_bytes(message),
            'ours': lambda: DocumentArray.from_bytes(message),
        },
    }
    table = Table('', 'stock docarray, µs', 'ours, µs', 'ratio', 'goal', title=f'one document, {DIM} float32 + text')
    reached = True
    for name, sides in calls.items():
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(repetitions):
            for side, call in sides.items():
                start = time.process_time()
                call()
                seconds[side].append(time.process_time() - start)
        median = {side: statistics.median(times) / documents * 1e6 for side, times in seconds.items()}
        ratio = median['stock'] / median['ours']
        reached = reached and ratio >= GOALS[name]
        table.add_row(name, f'{median["stock"]:.1f}', f'{median["ours"]:.1f}', f'{ratio:.1f}', f'{GOALS[name]:.0f}')
    Console().print(table)
    sys.exit(0 if reached else 1)


if __name__ == '__main__':
    typer.run(main)
