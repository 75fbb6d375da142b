"""What the terminal shows: tables of metrics, matches and runs, and progress bars."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.table import Table

from finetuner.constants import TUNING_TASK

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

    from finetuner.models import Backbone

console = Console()
progress_console = Console(stderr=True)  # so that a pipe carries results only

DEFAULT_LIMIT = 20  # of EvaluationCallback
WIDE = 100
"""Columns of a terminal that has room for all that is told of models."""
METRICS = (
    'precision_at_k',
    'recall_at_k',
    'f1_score_at_k',
    'hit_at_k',
    'average_precision',
    'reciprocal_rank',
    'ndcg_at_k',
    'dcg_at_k',
)


def make_progress(*columns: ProgressColumn) -> Progress:
    """A progress bar on stderr that is gone when it is done, and silent where nobody watches."""
    return Progress(
        SpinnerColumn(),
        TextColumn('{task.description}'),
        BarColumn(bar_width=30),
        *columns,
        console=progress_console,
        transient=True,
        disable=not (progress_console.is_terminal or progress_console.is_jupyter),
    )


def show_log(*names: str) -> None:
    """Show what these loggers say on stderr, and warnings of all others."""
    handler = RichHandler(console=progress_console, show_path=False, show_level=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format='%(message)s', handlers=[handler])
    for name in names:
        logging.getLogger(name).setLevel(logging.INFO)


def metrics_table(metrics: Mapping[str, Mapping[str, float]], config: Mapping[str, Any] | None = None) -> Table:
    """
    :param metrics: `{'before': {name: value}, 'after': {name: value}}`, the metrics of several evaluations with a
        prefix each.
    :param config: that of the run, which tells k, the matches of each query that count.
    """
    before, after = metrics.get('before', {}), metrics.get('after', {})
    limits = _limits(config)
    table = Table(title='Retrieval metrics', title_justify='left')
    table.add_column('Metric')
    for name in (*(['k'] if limits else []), 'Before', 'After', 'Change'):
        table.add_column(name, justify='right')
    for name in sorted({*before, *after}, key=_evaluation_and_place):
        old, new = before.get(name), after.get(name)
        change = ''
        if old is not None and new is not None:
            style = 'green' if new > old else 'red' if new < old else 'dim'
            change = f'[{style}]{new - old:+.4f}[/]'
        shown = ['' if value is None else f'{value:.4f}' for value in (old, new)]
        table.add_row(escape(name), *([_limit(name, limits)] if limits else []), *shown, change)
    return table


def _evaluation_and_place(name: str) -> tuple[str, int]:
    """For sorting: the metrics of one evaluation together, in the order of METRICS."""
    place = next((place for place, metric in enumerate(METRICS) if _ends(name, metric)), -1)
    return (name.removesuffix(METRICS[place]), place) if place >= 0 else (name, place)


def _ends(name: str, metric: str) -> bool:
    """Whether it is this metric: `ndcg_at_k` ends in `dcg_at_k`, but is another."""
    return name == metric or name.endswith(f'_{metric}')


def _limits(config: Mapping[str, Any] | None) -> list[tuple[str, int]]:
    """What the names of each evaluation's metrics may begin with, and its k; the most telling first."""
    if config is None or TUNING_TASK in config:  # those of a task have their k in their names
        return []
    given = [callback for callback in config.get('callbacks') or [] if callback['name'] == 'EvaluationCallback']
    limits: list[tuple[str, int]] = []
    for number, callback in enumerate(given, 1):
        options = callback.get('options') or {}
        limit = int(options.get('limit') or DEFAULT_LIMIT)
        limits.append((f'evaluation-{number}_', limit))
        named = [options['name']] if options.get('name') else []
        models = '-to-'.join(filter(None, [options.get('model'), options.get('index_model')]))
        limits.append((''.join(f'{part}_' for part in [*named, *([models] if '-to-' in models else [])]), limit))
    # of those that could have the same names, the first has them
    first = dict(reversed(limits))
    return sorted(first.items(), key=lambda item: -len(item[0])) or [('', DEFAULT_LIMIT)]


def _limit(name: str, limits: Sequence[tuple[str, int]]) -> str:
    return next((str(limit) for prefix, limit in limits if name.startswith(prefix)), '')


def examples_table(examples: Mapping[str, Mapping[str, Sequence[Any]]], k: int = 5, queries: int = 5) -> Table:
    """Queries with their best matches, the right ones marked; queries whose matches changed come first.

    :param examples: `{'before': {query: [match, ...]}, 'after': {query: [match, ...]}}`, and perhaps whether each match
        is right: `{'relevant before': {query: [bool, ...]}, 'relevant after': ...}`.
    :param k: how many matches of each query.
    :param queries: how many queries.
    """
    before, after = examples.get('before', {}), examples.get('after', {})
    names = sorted(
        {*before, *after},
        key=lambda query: (list(before.get(query, []))[:k] == list(after.get(query, []))[:k], query),
    )
    table = Table(title='Best matches', title_justify='left', show_lines=True)
    for name in ('Query', 'Before', 'After'):
        table.add_column(name, ratio=1, overflow='fold')
    for query in names[:queries]:
        cells = []
        for stage in ('before', 'after'):
            relevant = examples.get(f'relevant {stage}', {}).get(query, [])
            cells.append(_numbered(examples.get(stage, {}).get(query, [])[:k], relevant))
        table.add_row(escape(query), *cells)
    return table


def print_metrics(stage: str, metrics: Mapping[str, float]) -> None:
    """Print the metrics of one stage as a table.

    :param stage: 'before' or 'after'.
    :param metrics: such as `run.metrics()[stage]`.
    """
    table = Table(title=f'Retrieval metrics {stage} fine-tuning:', title_justify='left')
    table.add_column('Retrieval Metric')
    table.add_column('Value', justify='right')
    for name, value in metrics.items():
        table.add_row(escape(name), f'{value:.5f}')
    console.print(table)


def print_examples(stage: str, results: Mapping[str, Sequence[str]], k: int = 5) -> None:
    """Print queries with their best matches of one stage as a table.

    :param stage: 'before' or 'after'.
    :param results: such as `run.example_results()[stage]`.
    :param k: how many matches of each query.
    """
    table = Table(title=f'Results {stage} fine-tuning:', title_justify='left', show_lines=True)
    for name in ('Query', *(f'Match {number}' for number in range(1, k + 1))):
        table.add_column(name, overflow='fold')
    for query, matches in results.items():
        table.add_row(escape(query), *map(escape, matches[:k]))
    console.print(table)


def print_model_table(model: ModuleType, task: str | None = None) -> None:
    """Print the table of pretrained models.

    :param model: the module `finetuner.model`.
    :param task: only those for one task, such as 'text-to-image'; None is all.
    """
    backbones = [backbone for backbone in model.list_model_classes().values() if backbone.listed]
    console.print(models_table([backbone for backbone in backbones if task in (None, backbone.task)], task))


def models_table(backbones: Sequence[Backbone], task: str | None = None) -> Table:
    """Pretrained models with what they are for, their architecture where there is room for it.

    :param task: is a part of the title.
    """
    from finetuner.model import get_header, get_row

    title = 'Finetuner backbones' + (f': {task}' if task else '')
    caption = 'Any hub id, model directory, timm/<name> and <architecture>::<pretrained> of open_clip will do, too.'
    table = Table(title=title, title_justify='left', caption=caption, caption_justify='left')
    shown = [name for name in get_header() if console.width >= WIDE or name != 'architecture']
    for name in shown:
        justify: Literal['left', 'right'] = 'right' if name == 'output_dim' else 'left'
        table.add_column(name, justify=justify, overflow='fold', no_wrap=name != 'description')
    for backbone in backbones:
        row = dict(zip(get_header(), get_row(backbone), strict=True))
        table.add_row(*(escape(row[name]) for name in shown))
    return table


def embeddings_table(texts: Sequence[str], embeddings: np.ndarray, rows: int = 10) -> Table:
    """The first texts, how near each is to the first of them, and how their embeddings begin.

    :param embeddings: [texts, dimensions].
    """
    shown = embeddings[:rows]
    lengths = (shown**2).sum(axis=1) ** 0.5
    similarities = (shown @ shown[0]) / (lengths * lengths[0]).clip(1e-12)
    table = Table(title=f'{len(texts)} × {embeddings.shape[1]} {embeddings.dtype}', title_justify='left')
    table.add_column('Text', overflow='fold')
    table.add_column('Cosine to the first', justify='right')
    table.add_column('Embedding')
    for text, similarity, embedding in zip(texts, similarities, shown, strict=False):
        start = ' '.join(f'{value:+.3f}' for value in embedding[:4])
        table.add_row(escape(text), f'{similarity:.3f}', f'{start} …')
    if len(texts) > rows:
        table.add_row(f'[dim]and {len(texts) - rows} more[/]', '', '')
    return table


def _numbered(matches: Sequence[str], relevant: Sequence[Any] = ()) -> str:
    """One match in each line, marked if it is known whether it is right."""
    lines = []
    for number, match in enumerate(matches):
        mark = '' if number >= len(relevant) else '[green]✓[/] ' if relevant[number] else '[red]✗[/] '
        lines.append(f'{mark}{number + 1}. {escape(match)}')
    return '\n'.join(lines)
