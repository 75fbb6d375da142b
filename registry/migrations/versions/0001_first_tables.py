"""The first tables: accounts, tokens, data sets, shards, experiments, runs, artifacts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = '0001'
down_revision = None


def upgrade() -> None:
    op.create_table(
        'accounts',
        sa.Column('id', sa.String(length=24), nullable=False),
        sa.Column('name', sa.String(length=255), nullable=False),
        sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_accounts')),
        sa.UniqueConstraint('name', name=op.f('uq_accounts_name')),
    )
    op.create_table(
        'datasets',
        sa.Column('id', sa.String(length=24), nullable=False),
        sa.Column('account_id', sa.String(length=24), nullable=False),
        sa.Column('name', sa.String(length=255), nullable=False),
        sa.Column('rows', sa.BigInteger(), nullable=False),
        sa.Column('size', sa.BigInteger(), nullable=False),
        sa.Column('digest', sa.String(length=64), nullable=False),
        sa.Column('labelled', sa.Boolean(), nullable=False),
        sa.Column('texts', sa.Boolean(), nullable=False),
        sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(['account_id'], ['accounts.id'], name=op.f('fk_datasets_account_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_datasets')),
        sa.UniqueConstraint('account_id', 'name', name=op.f('uq_datasets_account_id_name')),
    )
    op.create_table(
        'experiments',
        sa.Column('id', sa.String(length=24), nullable=False),
        sa.Column('account_id', sa.String(length=24), nullable=False),
        sa.Column('name', sa.String(length=255), nullable=False),
        sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(['account_id'], ['accounts.id'], name=op.f('fk_experiments_account_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_experiments')),
        sa.UniqueConstraint('account_id', 'name', name=op.f('uq_experiments_account_id_name')),
    )
    op.create_table(
        'tokens',
        sa.Column('id', sa.String(length=24), nullable=False),
        sa.Column('account_id', sa.String(length=24), nullable=False),
        sa.Column('name', sa.String(length=255), nullable=False),
        sa.Column('digest', sa.String(length=64), nullable=False),
        sa.Column('expires_at', sa.DateTime(timezone=True), nullable=True),
        sa.Column('revoked_at', sa.DateTime(timezone=True), nullable=True),
        sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(['account_id'], ['accounts.id'], name=op.f('fk_tokens_account_id'), ondelete='CASCADE'),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_tokens')),
        sa.UniqueConstraint('digest', name=op.f('uq_tokens_digest')),
    )
    op.create_index(op.f('ix_tokens_account_id'), 'tokens', ['account_id'], unique=False)
    op.create_table(
        'runs',
        sa.Column('id', sa.String(length=24), nullable=False),
        sa.Column('experiment_id', sa.String(length=24), nullable=False),
        sa.Column('name', sa.String(length=255), nullable=False),
        sa.Column('status', sa.String(length=16), nullable=False),
        sa.Column('details', sa.Text(), nullable=False),
        sa.Column('description', sa.Text(), nullable=False),
        sa.Column('config', sa.JSON(), nullable=False),
        sa.Column('datasets', sa.JSON(), nullable=False),
        sa.Column('artifact_id', sa.String(length=24), nullable=False),
        sa.Column('started_at', sa.DateTime(timezone=True), nullable=True),
        sa.Column('finished_at', sa.DateTime(timezone=True), nullable=True),
        sa.Column('heartbeat_at', sa.DateTime(timezone=True), nullable=True),
        sa.Column('worker', sa.String(length=255), nullable=True),
        sa.Column('progress', sa.JSON(), nullable=False),
        sa.Column('metrics', sa.JSON(), nullable=True),
        sa.Column('examples', sa.JSON(), nullable=True),
        sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("status IN ('CREATED', 'STARTED', 'FINISHED', 'FAILED')", name=op.f('ck_runs_status')),
        sa.ForeignKeyConstraint(['experiment_id'], ['experiments.id'], name=op.f('fk_runs_experiment_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_runs')),
        sa.UniqueConstraint('artifact_id', name=op.f('uq_runs_artifact_id')),
        sa.UniqueConstraint('experiment_id', 'name', name=op.f('uq_runs_experiment_id_name')),
    )
    op.create_index(op.f('ix_runs_status_created_at'), 'runs', ['status', 'created_at'], unique=False)
    op.create_table(
        'shards',
        sa.Column('id', sa.String(length=24), nullable=False),
        sa.Column('dataset_id', sa.String(length=24), nullable=False),
        sa.Column('part', sa.BigInteger(), nullable=False),
        sa.Column('rows', sa.BigInteger(), nullable=False),
        sa.Column('size', sa.BigInteger(), nullable=False),
        sa.Column('sha256', sa.String(length=64), nullable=False),
        sa.Column('content_digest', sa.String(length=64), nullable=False),
        sa.Column('labelled', sa.Boolean(), nullable=False),
        sa.Column('texts', sa.Boolean(), nullable=False),
        sa.Column('key', sa.String(length=255), nullable=False),
        sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(['dataset_id'], ['datasets.id'], name=op.f('fk_shards_dataset_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_shards')),
        sa.UniqueConstraint('dataset_id', 'part', name=op.f('uq_shards_dataset_id_part')),
        sa.UniqueConstraint('key', name=op.f('uq_shards_key')),
    )
    op.create_table(
        'artifacts',
        sa.Column('id', sa.String(length=24), nullable=False),
        sa.Column('account_id', sa.String(length=24), nullable=False),
        sa.Column('run_id', sa.String(length=24), nullable=False),
        sa.Column('size', sa.BigInteger(), nullable=False),
        sa.Column('sha256', sa.String(length=64), nullable=False),
        sa.Column('public', sa.Boolean(), nullable=False),
        sa.Column('key', sa.String(length=255), nullable=False),
        sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(['account_id'], ['accounts.id'], name=op.f('fk_artifacts_account_id')),
        sa.ForeignKeyConstraint(['run_id'], ['runs.id'], name=op.f('fk_artifacts_run_id')),
        sa.PrimaryKeyConstraint('id', name=op.f('pk_artifacts')),
        sa.UniqueConstraint('key', name=op.f('uq_artifacts_key')),
        sa.UniqueConstraint('run_id', name=op.f('uq_artifacts_run_id')),
    )
    op.create_index(op.f('ix_artifacts_account_id'), 'artifacts', ['account_id'], unique=False)
