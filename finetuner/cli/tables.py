"""What the command line lists, as tables."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import JustifyMethod
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from finetuner.progress import describe_progress

if TYPE_CHECKING:
    from finetuner.experiment import Experiment
    from finetuner.results import Alias, ArtifactInfo, DatasetInfo, TokenInfo, Usage
    from finetuner.run import Run

Item = TypeVar('Item')

STATUS_STYLES = {'CREATED': 'yellow', 'STARTED': 'cyan', 'FINISHED': 'green', 'FAILED': 'red', 'CANCELLED': 'magenta'}
WHOLE = ('Id', 'Artifact')  # columns that one copies from
RIGHT = ('Runs', 'Rows', 'Size', 'Promotion', 'Count')  # columns of numbers


def runs_table(runs: Sequence[Run]) -> Table:
    def row(run: Run) -> tuple[str, ...]:
        status = run.record['status']
        details = ' · '.join(part for part in describe_progress(run.record) if part and part != status)
        shown = f'[{STATUS_STYLES.get(status, "white")}]{escape(status)}[/]'
        short = textwrap.shorten(details, 80, placeholder=' …')
        return escape(run.name), escape(run.experiment_name), shown, _short_time(run.created_at), escape(short)

    return _table(runs, ('Run', 'Experiment', 'Status', 'Created', 'Details'), row)


def experiments_table(experiments: Sequence[Experiment]) -> Table:
    def row(found: Experiment) -> tuple[str, ...]:
        return escape(found.name), f'{found.runs}', _short_time(found.created_at), escape(found.description)

    return _table(experiments, ('Experiment', 'Runs', 'Created', 'Description'), row)


def tokens_table(tokens: Sequence[TokenInfo]) -> Table:
    def row(token: TokenInfo) -> tuple[str, ...]:
        state = f'until {_short_time(token.expires_at)}' if token.expires_at else 'for ever'
        if token.revoked_at:
            state = f'[red]revoked {_short_time(token.revoked_at)}[/]'
        elif token.expires_at and datetime.fromisoformat(token.expires_at).astimezone() <= datetime.now().astimezone():
            state = f'[red]expired {_short_time(token.expires_at)}[/]'
        return escape(token.id), escape(token.name), _short_time(token.created_at), state

    return _table(tokens, ('Id', 'Token', 'Created', 'Valid'), row)


def datasets_table(datasets: Sequence[DatasetInfo]) -> Table:
    def row(found: DatasetInfo) -> tuple[str, ...]:
        holds = [*found.modalities, *(['labels'] if found.labelled else []), *(['scores'] if found.scored else [])]
        kind = f'{found.shape or ""}: {", ".join(holds)}'.removeprefix(': ')
        return escape(found.name), f'{found.rows:,}', decimal(found.size), _short_time(found.created_at), escape(kind)

    return _table(datasets, ('Data set', 'Rows', 'Size', 'Created', 'Holds'), row)


def artifacts_table(artifacts: Sequence[ArtifactInfo]) -> Table:
    def row(found: ArtifactInfo) -> tuple[str, ...]:
        run = f'{found.experiment_name}/{found.run_name}'
        created = _short_time(found.created_at)
        return found.id, escape(run), decimal(found.size), created, escape(', '.join(found.aliases))

    return _table(artifacts, ('Artifact', 'Run', 'Size', 'Created', 'Aliases'), row)


def aliases_table(aliases: Sequence[Alias]) -> Table:
    def row(found: Alias) -> tuple[str, ...]:
        run = f'{found.experiment_name}/{found.run_name}'
        since = _short_time(found.created_at)
        return escape(found.alias), escape(run), found.artifact_id, f'{found.number}', since

    return _table(aliases, ('Alias', 'Run', 'Artifact', 'Promotion', 'Since'), row)


def usage_table(usage: Usage) -> Table:
    table = Table(title=f'Account {escape(usage.account)}', title_justify='left')
    for name in ('', 'Count', 'Size'):
        table.add_column(name, justify='right' if name else 'left')
    kinds = {'Data sets': usage.datasets, 'Artifacts': usage.artifacts, 'Checkpoints': usage.checkpoints}
    for name, amount in kinds.items():
        table.add_row(name, f'{amount.count:,}', decimal(amount.bytes))
    total = sum(amount.bytes for amount in kinds.values())
    limit = '' if usage.max_bytes is None else f' of {decimal(usage.max_bytes)}'
    table.add_row('Together', '', f'{decimal(total)}{limit}', style='bold')
    limit = '' if usage.max_runs is None else f' of {usage.max_runs}'
    most = '' if usage.max_search_bytes is None else f' of {decimal(usage.max_search_bytes)}'
    table.add_row('Search items', f'{usage.search_items.count:,}', f'{decimal(usage.search_items.bytes)}{most}')
    table.add_row('Runs at work', f'{usage.runs.at_work}{limit}', '')
    table.add_row('Runs waiting', f'{usage.runs.waiting}', '')
    table.add_row('Runs in all', f'{usage.runs.total}', '')
    return table


def _table(items: Sequence[Item], columns: Sequence[str], row: Callable[[Item], Sequence[str]]) -> Table:
    table = Table()
    for name in columns:
        justify: JustifyMethod = 'right' if name in RIGHT else 'left'
        table.add_column(name, justify=justify, overflow='fold', no_wrap=name in WHOLE)
    for item in items:
        table.add_row(*row(item))
    return table


def _short_time(value: Any) -> str:
    if not isinstance(value, str):
        return ''
    try:
        return datetime.fromisoformat(value).astimezone().strftime('%Y-%m-%d %H:%M')
    except ValueError:
        return escape(value)
