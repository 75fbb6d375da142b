"""What the terminal shows: tables of metrics, matches and runs, and progress bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.table import Table

console = Console()
progress_console = Console(stderr=True)  # so that a pipe carries results only

STATUS_STYLES = {'CREATED': 'yellow', 'STARTED': 'cyan', 'FINISHED': 'green', 'FAILED': 'red'}


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


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """:param metrics: `{'before': {name: value}, 'after': {name: value}}`."""
    before, after = metrics.get('before', {}), metrics.get('after', {})
    table = Table(title='Retrieval metrics', title_justify='left')
    table.add_column('Metric')
    for name in ('Before', 'After', 'Change'):
        table.add_column(name, justify='right')
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        change = ''
        if old is not None and new is not None:
            style = 'green' if new > old else 'red' if new < old else 'dim'
            change = f'[{style}]{new - old:+.4f}[/]'
        table.add_row(escape(name), *('' if value is None else f'{value:.4f}' for value in (old, new)), change)
    return table


def examples_table(examples: Mapping[str, Mapping[str, Sequence[str]]], k: int = 5, queries: int = 5) -> Table:
    """Queries with their best matches; those whose matches changed come first.

    :param examples: `{'before': {query: [match, ...]}, 'after': {query: [match, ...]}}`.
    :param k: how many matches of each query.
    :param queries: how many queries.
    """
    before, after = examples.get('before', {}), examples.get('after', {})
    names = sorted(
        dict.fromkeys([*before, *after]),
        key=lambda query: list(before.get(query, []))[:k] == list(after.get(query, []))[:k],
    )
    table = Table(title='Best matches', title_justify='left', show_lines=True)
    for name in ('Query', 'Before', 'After'):
        table.add_column(name, ratio=1, overflow='fold')
    for query in names[:queries]:
        table.add_row(escape(query), *(_numbered(stage.get(query, [])[:k]) for stage in (before, after)))
    return table


def runs_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """:param runs: each with name, experiment_name, status, created_at, progress, details."""
    table = Table()
    for name in ('Run', 'Experiment', 'Status', 'Created', 'Details'):
        table.add_column(name, overflow='fold')
    for run in runs:
        table.add_row(
            escape(run['name']),
            escape(run['experiment_name']),
            styled_status(run['status']),
            _short_time(run.get('created_at')),
            escape(str(run.get('details') or '')),
        )
    return table


def styled_status(status: str) -> str:
    return f'[{STATUS_STYLES.get(status, "white")}]{escape(status)}[/]'


def _numbered(matches: Sequence[str]) -> str:
    return '\n'.join(f'{number}. {escape(match)}' for number, match in enumerate(matches, 1))


def _short_time(value: Any) -> str:
    if not isinstance(value, str):
        return ''
    try:
        return datetime.fromisoformat(value).astimezone().strftime('%Y-%m-%d %H:%M')
    except ValueError:
        return escape(value)
