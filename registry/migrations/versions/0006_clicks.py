"""Click sessions, what users did in them, and the batches that they are learned from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from registry.models import UTCDateTime

revision = '0006'
down_revision = '0005'


def upgrade() -> None:
    op.create_table(
        'click_batches',
        sa.Column('id', sa.String(24), nullable=False),
        sa.Column('account_id', sa.String(24), nullable=False),
        sa.Column('status', sa.String(16), nullable=False),
        sa.Column('last_number', sa.BigInteger(), nullable=False),
        sa.Column('release_id', sa.String(255)),
        sa.Column('released_at', UTCDateTime()),
        sa.Column('created_at', UTCDateTime(), nullable=False),
        sa.CheckConstraint("status IN ('collecting', 'released')", name=op.f('ck_click_batches_status')),
        sa.ForeignKeyConstraint(['account_id'], ['accounts.id'], op.f('fk_click_batches_account_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_click_batches')),
        sa.UniqueConstraint('account_id', 'release_id', name=op.f('uq_click_batches_account_id_release_id')),
    )
    collecting = sa.text("status = 'collecting'")
    op.create_index(
        op.f('uq_click_batches_collecting'),
        'click_batches',
        ['account_id'],
        unique=True,
        sqlite_where=collecting,
        postgresql_where=collecting,
    )
    op.create_table(
        'click_sessions',
        sa.Column('id', sa.String(24), nullable=False),
        sa.Column('account_id', sa.String(24), nullable=False),
        sa.Column('batch_id', sa.String(24), nullable=False),
        sa.Column('number', sa.BigInteger(), nullable=False),
        sa.Column('session_id', sa.String(255), nullable=False),
        sa.Column('search_query', sa.Text(), nullable=False),
        sa.Column('search_results', sa.JSON(), nullable=False),
        sa.Column('search_meta', sa.JSON()),
        sa.Column('user_id', sa.String(255)),
        sa.Column('is_irrelevant', sa.Boolean(), nullable=False),
        sa.Column('created_at', UTCDateTime(), nullable=False),
        sa.ForeignKeyConstraint(['account_id'], ['accounts.id'], op.f('fk_click_sessions_account_id')),
        sa.ForeignKeyConstraint(['batch_id'], ['click_batches.id'], op.f('fk_click_sessions_batch_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_click_sessions')),
        sa.UniqueConstraint('account_id', 'session_id', name=op.f('uq_click_sessions_account_id_session_id')),
        sa.UniqueConstraint('batch_id', 'number', name=op.f('uq_click_sessions_batch_id_number')),
    )
    for columns in (['account_id', 'user_id'], ['account_id', 'created_at']):
        op.create_index(op.f(f'ix_click_sessions_{"_".join(columns)}'), 'click_sessions', columns)
    op.create_table(
        'click_events',
        sa.Column('id', sa.String(24), nullable=False),
        sa.Column('account_id', sa.String(24), nullable=False),
        sa.Column('session_id', sa.String(255), nullable=False),
        sa.Column('event_id', sa.String(255), nullable=False),
        sa.Column('position', sa.BigInteger(), nullable=False),
        sa.Column('object_id', sa.String(255), nullable=False),
        sa.Column('event_type', sa.String(255), nullable=False),
        sa.Column('meta', sa.JSON()),
        sa.Column('created_at', UTCDateTime(), nullable=False),
        sa.ForeignKeyConstraint(['account_id'], ['accounts.id'], op.f('fk_click_events_account_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_click_events')),
        sa.UniqueConstraint(
            'account_id', 'session_id', 'event_id', name=op.f('uq_click_events_account_id_session_id_event_id')
        ),
    )
    op.create_index(op.f('ix_click_events_account_id_created_at'), 'click_events', ['account_id', 'created_at'])
