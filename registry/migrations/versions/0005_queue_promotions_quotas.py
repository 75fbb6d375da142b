"""The queue of runs, logs and checkpoints that any machine can read, promotions, and quotas."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0005'
down_revision = '0004'


def upgrade() -> None:
    op.add_column('accounts', sa.Column('max_bytes', sa.BigInteger()))
    op.add_column('accounts', sa.Column('max_runs', sa.BigInteger()))

    op.add_column('runs', sa.Column('priority', sa.BigInteger(), nullable=False, server_default='0'))
    op.add_column('runs', sa.Column('attempts', sa.BigInteger(), nullable=False, server_default='0'))
    op.add_column('runs', sa.Column('lease', sa.String(24)))
    op.add_column('runs', sa.Column('not_before', sa.DateTime(timezone=True)))

    op.create_table(
        'log_pieces',
        sa.Column('id', sa.String(24), nullable=False),
        sa.Column('run_id', sa.String(24), nullable=False),
        sa.Column('offset', sa.BigInteger(), nullable=False),
        sa.Column('data', sa.LargeBinary(), nullable=False),
        sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(['run_id'], ['runs.id'], op.f('fk_log_pieces_run_id'), ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_log_pieces')),
        sa.UniqueConstraint('run_id', 'offset', name=op.f('uq_log_pieces_run_id_offset')),
    )
    op.create_table(
        'checkpoints',
        sa.Column('id', sa.String(24), nullable=False),
        sa.Column('run_id', sa.String(24), nullable=False),
        sa.Column('name', sa.String(255), nullable=False),
        sa.Column('size', sa.BigInteger(), nullable=False),
        sa.Column('sha256', sa.String(64), nullable=False),
        sa.Column('key', sa.String(255), nullable=False),
        sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(['run_id'], ['runs.id'], op.f('fk_checkpoints_run_id'), ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_checkpoints')),
        sa.UniqueConstraint('key', name=op.f('uq_checkpoints_key')),
    )
    op.create_index(op.f('ix_checkpoints_run_id'), 'checkpoints', ['run_id'])
    op.create_table(
        'promotions',
        sa.Column('id', sa.String(24), nullable=False),
        sa.Column('account_id', sa.String(24), nullable=False),
        sa.Column('alias', sa.String(255), nullable=False),
        sa.Column('number', sa.BigInteger(), nullable=False),
        sa.Column('artifact_id', sa.String(24), nullable=False),
        sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(['account_id'], ['accounts.id'], op.f('fk_promotions_account_id')),
        sa.ForeignKeyConstraint(['artifact_id'], ['artifacts.id'], op.f('fk_promotions_artifact_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_promotions')),
        sa.UniqueConstraint('account_id', 'alias', 'number', name=op.f('uq_promotions_account_id_alias_number')),
    )
    op.create_index(op.f('ix_promotions_artifact_id'), 'promotions', ['artifact_id'])
