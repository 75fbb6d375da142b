"""Removing from MLflow what is left there of runs and accounts that were deleted.

Every task does so in its end. Who runs the service does it at once by `python -m training.iterations.tidying`, with the
environment of the trainer.
"""

from __future__ import annotations

from typing import Annotated

import typer

from registry import Registry
from training.iterations.tracking import Tracker


def remove_lost(registry: Registry, tracker: Tracker, all_accounts: bool = False) -> int:
    """Remove the iterations whose run is no more, with their models, and return how many they were.

    :param all_accounts: also where the registry does not know their account. On a server, those may be another
        registry's; the store in the home has those of this one alone.
    """
    owned = tracker.owned()  # before the runs, which are there before their iterations
    there = registry.run_statuses([found.run_id for found in owned])
    accounts = None if all_accounts or tracker.is_local else _account_ids(registry)
    lost = [
        found for found in owned if found.run_id not in there and (accounts is None or found.account_id in accounts)
    ]
    for found in lost:
        tracker.remove(found.experiment_id)
    return len(lost)


def _account_ids(registry: Registry) -> set[str]:
    found: set[str] = set()
    page = 1
    while items := registry.list_accounts(page, 1000).items:
        found |= {account.id for account in items}
        page += 1
    return found


def main(
    all_accounts: Annotated[
        bool,
        typer.Option(help='Of deleted accounts, too: no other registry uses the server of MLflow.'),
    ] = False,
) -> None:
    """Remove from MLflow the iterations, with their models, whose runs were deleted."""
    with Registry.open_existing() as registry:
        typer.echo(f'{remove_lost(registry, Tracker(), all_accounts)} iterations are removed')


if __name__ == '__main__':
    typer.run(main)
