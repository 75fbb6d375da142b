"""Groups of runs."""

from __future__ import annotations

from finetuner.cli.root import Page, Size, cli, next_command, say_none
from finetuner.console import console


@cli.command(rich_help_panel='Fine-tuning')
def experiments(page: Page = 1, size: Size = 50) -> None:
    """List experiments, newest first."""
    import finetuner
    from finetuner.cli.tables import experiments_table

    found = finetuner.list_experiments(page, size)
    if not found:
        say_none('experiments', page)
        next_command('fit', 'train.csv', '--eval-data', 'test.csv')
        return
    console.print(experiments_table(found))
    next_command('runs', '--experiment', found[0].name)
