"""How large what can be searched for is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0009'
down_revision = '0008'


def upgrade() -> None:
    op.add_column('search_items', sa.Column('size', sa.BigInteger(), nullable=False, server_default='0'))
    op.execute(
        'UPDATE search_items SET size = 4096 + length(text) + coalesce(length(CAST(meta AS TEXT)), 4)',
    )
    op.create_index(op.f('ix_search_items_account_id_size'), 'search_items', ['account_id', 'size'])
