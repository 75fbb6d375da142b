"""The status CANCELLED of runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'

BEFORE = "'FAILED')"
AFTER = "'FAILED', 'CANCELLED')"


def upgrade() -> None:
    if op.get_bind().dialect.name == 'sqlite':
        _make_again()
        return
    op.drop_constraint(op.f('ck_runs_status'), 'runs', type_='check')
    statuses = "status IN ('CREATED', 'STARTED', 'FINISHED', 'FAILED', 'CANCELLED')"
    op.create_check_constraint(op.f('ck_runs_status'), 'runs', statuses)


def _make_again() -> None:
    """SQLite cannot alter a constraint: the table is made again, while artifacts refer to its rows."""
    connection = op.get_bind()
    master = sa.text("SELECT sql FROM sqlite_master WHERE tbl_name = 'runs' AND sql IS NOT NULL ORDER BY type DESC")
    table, *indexes = connection.execute(master).scalars().all()
    if BEFORE not in table:
        raise RuntimeError(f'the table of runs is not that of version 0002: {table}')
    connection.exec_driver_sql('PRAGMA defer_foreign_keys = ON')  # until the end of the transaction
    connection.exec_driver_sql('CREATE TEMPORARY TABLE kept_runs AS SELECT * FROM runs')
    connection.exec_driver_sql('DROP TABLE runs')
    for statement in (table.replace(BEFORE, AFTER), *indexes):
        connection.exec_driver_sql(statement)
    connection.exec_driver_sql('INSERT INTO runs SELECT * FROM kept_runs')
    connection.exec_driver_sql('DROP TABLE kept_runs')
