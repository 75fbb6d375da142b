"""The shapes and modalities of data sets, where there were texts only."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'


def upgrade() -> None:
    # column by column: a batch would make the tables again, which SQLite forbids while others refer to their rows
    for table in ('datasets', 'shards'):
        op.add_column(table, sa.Column('shape', sa.String(length=16), nullable=False, server_default='items'))
        op.add_column(table, sa.Column('modalities', sa.String(length=255), nullable=False, server_default=''))
        op.add_column(table, sa.Column('scored', sa.Boolean(), nullable=False, server_default=sa.false()))
        op.add_column(table, sa.Column('linked', sa.Boolean(), nullable=False, server_default=sa.false()))
        columns = sa.table(table, sa.column('modalities', sa.String()), sa.column('texts', sa.Boolean()))
        op.execute(columns.update().where(columns.c.texts).values(modalities='text'))
        op.drop_column(table, 'texts')
