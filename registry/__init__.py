"""What outlives a process: accounts, tokens, data sets, experiments, runs, artifacts, in SQL and an object store."""

from registry.records import (
    Account,
    ArtifactRecord,
    Dataset,
    DatasetSummary,
    ExperimentRecord,
    Page,
    RunRecord,
    Shard,
    Token,
)
from registry.registry import Registry

__all__ = [
    'Account',
    'ArtifactRecord',
    'Dataset',
    'DatasetSummary',
    'ExperimentRecord',
    'Page',
    'Registry',
    'RunRecord',
    'Shard',
    'Token',
]
