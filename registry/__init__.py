"""What outlives a process: accounts, tokens, data sets, experiments, runs, artifacts, in SQL and an object store."""

from registry.records import (
    Account,
    ArtifactRecord,
    Dataset,
    DatasetSummary,
    ExperimentRecord,
    Page,
    Promotion,
    RunRecord,
    Shard,
    Stored,
    Token,
    Usage,
)
from registry.registry import Registry

__all__ = [
    'Account',
    'ArtifactRecord',
    'Dataset',
    'DatasetSummary',
    'ExperimentRecord',
    'Page',
    'Promotion',
    'Registry',
    'RunRecord',
    'Shard',
    'Stored',
    'Token',
    'Usage',
]
