"""Checking the books: is everything that was accepted there, once and whole, and nothing else?"""

from __future__ import annotations

import hashlib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sqlalchemy import select

from finetuner.documents import Document, DocumentArray
from finetuner.excepts import ArtifactError, DataError, RegistryError
from finetuner.inference import load_engine
from registry import Registry, RunRecord
from registry.models import ArtifactRow, CheckpointRow, ShardRow
from registry.records import FINISHED
from tools.drill.clients import PROBES
from tools.drill.ledger import Ledger, total

Finding = tuple[str, str]  # what was looked at, and what is wrong with it


def check(registry: Registry, objects: Path, ledgers: list[Ledger], alias: str, served: str | None) -> list[Finding]:
    """All that is wrong. Nothing may be at work any more.

    :param objects: the folder of the object store.
    :param served: the artifact that the encoder says it answers with.
    """
    findings = [('answers', sentence) for ledger in ledgers for sentence in ledger.wrong]
    for ledger in ledgers:
        account = registry.authenticate(ledger.token).id
        findings += _check_data(registry, account, ledger)
        findings += _check_runs(registry, account, ledger)
    promoter = ledgers[0]
    if promoter.promoted is not None:
        named = registry.find_artifact(registry.authenticate(promoter.token).id, alias).id
        if named != promoter.promoted:
            findings.append(('promotions', f'{alias} names {named}, promoted was {promoter.promoted}'))
        if served != named:
            findings.append(('promotions', f'{alias} names {named}, but {served} answers'))
    return [*findings, *_check_objects(registry, objects)]


def _check_data(registry: Registry, account: str, ledger: Ledger) -> Iterator[Finding]:
    for name, parts in ledger.parts.items():
        try:
            dataset = registry.get_dataset(account, name)
            registry.fetch_shards(dataset.shards, registry.home / 'cache')  # reads them all and compares digests
        except (RegistryError, DataError) as error:
            yield 'data', f'{ledger.account}: {error}'
            continue
        stored = {shard.part: shard.rows for shard in dataset.shards}
        if stored != parts:
            yield 'data', f'{ledger.account}: {name} has the parts {stored}, accepted were {parts}'


def _check_runs(registry: Registry, account: str, ledger: Ledger) -> Iterator[Finding]:
    stored = {run.name: run for run in all_runs(registry, account)}
    for name in ledger.runs.keys() - stored.keys():
        yield 'runs', f'{ledger.account}: the run {name} was accepted and is gone'
    for name in stored.keys() - ledger.runs.keys():
        yield 'runs', f'{ledger.account}: the run {name} is there and was not accepted'
    weights: dict[str, set[str]] = {}
    for name in stored.keys() & ledger.runs.keys():
        run = stored[name]
        if run.id != ledger.runs[name]:
            yield 'runs', f'{ledger.account}: the run {name} is another than was accepted'
        if run.status != FINISHED:
            yield 'runs', f'{ledger.account}: the run {name} is {run.status}: {run.details}'
            continue
        try:
            path = registry.artifact_file(registry.get_artifact(account, run.artifact_id))
            embeddings = load_engine(path).encode(DocumentArray([Document(text=text) for text in PROBES])).embeddings
        except ArtifactError as error:
            yield 'artifacts', f'{ledger.account}: the artifact of {name}: {error}'
            continue
        answered = ledger.answers.get(run.artifact_id)
        if answered is not None and not np.allclose(answered, np.asarray(embeddings), atol=1e-4):
            yield 'answers', f'{ledger.account}: /encode did not answer with the artifact of {name}'
        digest = ' '.join(sorted(data.digest for data in registry.get_run_datasets(run.id).values()))
        weights.setdefault(digest, set()).add(_weights(path))
    for digests in weights.values():
        if len(digests) > 1:
            yield 'artifacts', f'{ledger.account}: the same training gave {len(digests)} different models'


def _weights(path: Path) -> str:
    with zipfile.ZipFile(path) as artifact:
        names = sorted(name for name in artifact.namelist() if name.endswith('.safetensors'))
        return ' '.join(hashlib.sha256(artifact.read(name)).hexdigest() for name in names)


def _check_objects(registry: Registry, objects: Path) -> Iterator[Finding]:
    """What lies in the object store is what the database knows, and nothing is left on its way there."""
    with registry.database.read() as session:
        known = {key for row in (ShardRow, ArtifactRow, CheckpointRow) for key in session.scalars(select(row.key))}
    stored = stored_keys(objects)
    for key in known - stored:
        yield 'objects', f'{key} is missing in the object store'
    for key in stored - known:
        yield 'objects', f'{key} lies in the object store, and nothing knows it'


def stored_keys(objects: Path) -> set[str]:
    return {str(path.relative_to(objects)) for path in objects.rglob('*') if path.is_file()}


def all_runs(registry: Registry, account: str) -> Iterator[RunRecord]:
    page = 1
    while items := registry.list_runs(account, page=page, size=100).items:
        yield from items
        page += 1


def rows(registry: Registry, objects: Path, ledgers: list[Ledger], findings: list[Finding]) -> list[tuple[str, ...]]:
    """The lines of the table: what, accepted, refused, wrong."""
    wrong = Counter(kind for kind, _ in findings)
    table: list[tuple[str, ...]] = []
    for what, endpoint, kind in (
        ('data parts', '/ingest', 'data'),
        ('runs', '/fit', 'runs'),
        ('encode requests', '/encode', 'answers'),
        ('promotions', '/promote', 'promotions'),
    ):
        accepted, refused = (total(ledgers, endpoint, outcome) for outcome in ('accepted', 'refused'))
        table.append((what, f'{accepted:,}', f'{refused:,}', f'{wrong[kind]:,}'))
    runs = [run for ledger in ledgers for run in all_runs(registry, registry.authenticate(ledger.token).id)]
    again = sum(run.attempts > 1 for run in runs)
    made = sum(run.status == FINISHED for run in runs)
    table.append(('artifacts', f'{made:,}, {again:,} by more than one attempt', '', f'{wrong["artifacts"]:,}'))
    table.append(('objects in the store', f'{len(stored_keys(objects)):,}', '', f'{wrong["objects"]:,}'))
    table.append(('services ended in order', '', '', f'{wrong["ends"]:,}'))
    return table
