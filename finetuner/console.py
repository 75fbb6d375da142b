"""What the terminal shows: tables of metrics, matches and runs, and progress bars."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.table import Table

from finetuner.run import Run, describe_progress

if TYPE_CHECKING:
    import numpy as np

    from finetuner.experiment import Experiment
    from finetuner.models import Backbone

console = Console()
progress_console = Console(stderr=True)  # so that a pipe carries results only

DEFAULT_LIMIT = 20  # of EvaluationCallback
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
STATUS_STYLES = {'CREATED': 'yellow', 'STARTED': 'cyan', 'FINISHED': 'green', 'FAILED': 'red', 'CANCELLED': 'magenta'}


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
    if config is None:
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


def runs_table(runs: Sequence[Run]) -> Table:
    table = Table()
    for name in ('Run', 'Experiment', 'Status', 'Created', 'Details'):
        table.add_column(name, overflow='fold')
    for run in runs:
        status = run.record['status']
        details = ' · '.join(part for part in describe_progress(run.record) if part)
        table.add_row(
            escape(run.name),
            escape(run.experiment_name),
            f'[{STATUS_STYLES.get(status, "white")}]{escape(status)}[/]',
            _short_time(run.created_at),
            '' if details == status else escape(textwrap.shorten(details, 80, placeholder=' …')),
        )
    return table


def experiments_table(experiments: Sequence[Experiment]) -> Table:
    table = Table()
    for name in ('Experiment', 'Runs', 'Created', 'Description'):
        table.add_column(name, justify='right' if name == 'Runs' else 'left', overflow='fold')
    for experiment in experiments:
        created, runs = _short_time(experiment.created_at), f'{experiment.runs}'
        table.add_row(escape(experiment.name), runs, created, escape(experiment.description))
    return table


def models_table(backbones: Sequence[Backbone], task: str | None = None) -> Table:
    """Pretrained models with what they are for.

    :param task: is a part of the title.
    """
    from finetuner.model import get_header, get_row

    title = 'Finetuner backbones' + (f': {task}' if task else '')
    caption = 'Any hub id, model directory, timm/<name> and <architecture>::<pretrained> of open_clip will do, too.'
    table = Table(title=title, title_justify='left', caption=caption, caption_justify='left')
    for name in get_header():
        table.add_column(
            name, justify='right' if name == 'output_dim' else 'left', overflow='fold', no_wrap=name == 'name'
        )
    for backbone in backbones:
        table.add_row(*map(escape, get_row(backbone)))
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


def _short_time(value: Any) -> str:
    if not isinstance(value, str):
        return ''
    try:
        return datetime.fromisoformat(value).astimezone().strftime('%Y-%m-%d %H:%M')
    except ValueError:
        return escape(value)
