"""What can be searched for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from registry.models import UTCDateTime

revision = '0008'
down_revision = '0007'


def upgrade() -> None:
    op.create_table(
        'search_items',
        sa.Column('id', sa.String(24), nullable=False),
        sa.Column('account_id', sa.String(24), nullable=False),
        sa.Column('object_id', sa.String(255), nullable=False),
        sa.Column('text', sa.Text(), nullable=False),
        sa.Column('meta', sa.JSON()),
        sa.Column('model', sa.String(255), nullable=False),
        sa.Column('embedding', sa.LargeBinary(), nullable=False),
        sa.Column('revision', sa.BigInteger(), nullable=False),
        sa.Column('created_at', UTCDateTime(), nullable=False),
        sa.ForeignKeyConstraint(['account_id'], ['accounts.id'], op.f('fk_search_items_account_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_search_items')),
        sa.UniqueConstraint('account_id', 'object_id', name=op.f('uq_search_items_account_id_object_id')),
    )
