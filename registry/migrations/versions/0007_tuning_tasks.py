"""Fine-tuning tasks, each carried by a run."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from registry.models import UTCDateTime

revision = '0007'
down_revision = '0006'


def upgrade() -> None:
    op.create_table(
        'tuning_tasks',
        sa.Column('id', sa.String(24), nullable=False),
        sa.Column('account_id', sa.String(24), nullable=False),
        sa.Column('method', sa.String(255), nullable=False),
        sa.Column('batch_id', sa.String(24)),
        sa.Column('idempotency_key', sa.String(255)),
        sa.Column('meta', sa.JSON()),
        sa.Column('run_id', sa.String(24), nullable=False),
        sa.Column('is_canceled', sa.Boolean(), nullable=False),
        sa.Column('restarts', sa.BigInteger(), nullable=False),
        sa.Column('updated_at', UTCDateTime(), nullable=False),
        sa.Column('created_at', UTCDateTime(), nullable=False),
        sa.ForeignKeyConstraint(['account_id'], ['accounts.id'], op.f('fk_tuning_tasks_account_id')),
        sa.ForeignKeyConstraint(['batch_id'], ['click_batches.id'], op.f('fk_tuning_tasks_batch_id')),
        sa.ForeignKeyConstraint(['run_id'], ['runs.id'], op.f('fk_tuning_tasks_run_id'), ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_tuning_tasks')),
        sa.UniqueConstraint('account_id', 'idempotency_key', name=op.f('uq_tuning_tasks_account_id_idempotency_key')),
        sa.UniqueConstraint('run_id', name=op.f('uq_tuning_tasks_run_id')),
    )
    op.create_index(op.f('ix_tuning_tasks_account_id_created_at'), 'tuning_tasks', ['account_id', 'created_at'])
