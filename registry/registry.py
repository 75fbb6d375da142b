"""The registry: the one door to the database and the object store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from finetuner import settings
from finetuner.excepts import ArtifactError, DataError, RegistryError
from registry import accounts, artifacts, datasets, experiments, first_start, runs
from registry.clicks import Clicks
from registry.database import Database
from registry.datasets import restore, snapshot
from registry.models import ArtifactRow, ShardRow
from registry.names import check_id, check_name, new_id
from registry.objects import ObjectStore, copy_hashed
from registry.plain import plain
from registry.records import (
    STARTED,
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
from registry.shards import write_shard
from registry.staging import Staging, exclusive

if TYPE_CHECKING:
    from finetuner.documents import Document

MAX_READ = 16 << 20
MAX_PAGE_SIZE = 1000


class Registry:
    """Accounts, data sets, runs and artifacts. Open one per process; every method may be called from any thread."""

    def __init__(self, home: Path, database: Database, objects: ObjectStore, staging: Staging):
        self.home = home
        self.database = database
        self.objects = objects
        self.clicks = Clicks(database)
        self._staging = staging

    @classmethod
    def open(
        cls, home: Path | None = None, database_url: str | None = None, objects_url: str | None = None
    ) -> Registry:
        """Open the registry; make it, with a local account and token, if it is not there. Processes may do so at once.

        :param home: the folder of the state on this machine, default `FINETUNER_HOME`.
        :param database_url: an SQLAlchemy URL, default `FINETUNER_DATABASE_URL`, or else an SQLite file in `home`.
        :param objects_url: a folder or an fsspec URL, default `FINETUNER_OBJECTS_URL`, or else a folder in `home`.
        :raises RegistryError: the database was made by a newer version, or the token of the first start cannot be kept.
        """
        home = (Path(home) if home else settings.home()).expanduser().absolute()
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        objects_url = objects_url or os.environ.get('FINETUNER_OBJECTS_URL') or str(home / 'objects')
        default = URL.create('sqlite', database=str(home / 'registry.db'))
        database = Database(database_url or os.environ.get('FINETUNER_DATABASE_URL') or default)
        objects = ObjectStore(objects_url)
        with exclusive(home / 'open.lock'):
            database.migrate()
            first_start.make_local_account(database)
            staging = Staging(home / 'staging', objects, lambda key: _is_referenced(database, key))
            staging.recover()
        return cls(home, database, objects, staging)

    def close(self) -> None:
        self._staging.close()
        self.database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # accounts and tokens

    def authenticate(self, token: str | None) -> Account:
        """The account that a token speaks for.

        :raises AuthenticationError: the token is missing, unknown, revoked or expired; each has its own sentence.
        """
        with self.database.read() as session:
            return accounts.authenticate(session, token)

    def create_account(self, name: str) -> Account:
        """
        :raises RegistryError: the name is taken or malformed.
        """
        try:
            with self.database.write() as session:
                return accounts.insert_account(session, name)
        except IntegrityError as error:
            raise RegistryError(f'There is an account {name!r} already') from error

    def get_account(self, name: str = first_start.LOCAL_ACCOUNT) -> Account:
        """
        :raises RegistryError: there is none of this name.
        """
        with self.database.read() as session:
            return accounts.find_account(session, name)

    def create_token(self, account_id: str, name: str, expires_at: datetime | None = None) -> str:
        """A new token for the account. It is returned here and never again: the database has its hash alone.

        :param expires_at: with its time zone; None for a token without end.
        :raises RegistryError: there is no such account, the name is malformed, or the time has passed.
        """
        token = accounts.new_token()
        with self.database.write() as session:
            accounts.insert_token(session, account_id, name, token, expires_at)
        return token

    def list_tokens(self, account_id: str) -> list[Token]:
        with self.database.read() as session:
            return accounts.list_tokens(session, account_id)

    def revoke_token(self, account_id: str, token_id: str) -> None:
        """
        :raises RegistryError: the account has no such token.
        """
        with self.database.write() as session:
            accounts.revoke_token(session, account_id, token_id)

    def credentials_problem(self) -> str | None:
        """Why this user's credentials are not good for this registry, and the way out; None if they are good."""
        return first_start.credentials_problem(self.database)

    # data sets

    def append_documents(
        self, account_id: str, dataset_name: str, documents: Iterable[Document], part: int | None = None
    ) -> DatasetSummary:
        """Append documents to a data set, as one shard; make the data set if there is none. All of them, or none.

        Parts make an upload that can be repeated and corrected. A part that is there with the same documents (their
        ids do not count) is left as it is. A part with other documents replaces the one that is there; if it is part
        0, it begins a new upload and replaces all parts. What a run reads is never replaced.

        :param documents: read once, held in memory batch by batch.
        :param part: where they belong, default after all others.
        :raises DataError: a document is malformed (the message names its position and id), or there are none.
        :raises RegistryError: the name is malformed, or the part is there with other content and a run reads what it
            would replace.
        """
        check_name('data set', dataset_name)
        part = datasets.check_part(part)
        shard_id = new_id()
        with ExitStack() as stages:
            staged = stages.enter_context(self._staging.stage(f'shards/{shard_id}.arrow'))
            info = write_shard(documents, staged.path)
            if part is not None:
                with self.database.read() as session:
                    found = datasets.find_part(session, account_id, dataset_name, part, info.content_digest)
                if found is not None:
                    return found
            self.objects.put(staged.path, staged.key)
            with self.database.write() as session:
                dataset, dropped = datasets.insert_shard(
                    session, account_id, dataset_name, part, shard_id, staged.key, info
                )
                # noted before the commit, removed after it: a stage ends with the objects that no row knows
                for key in dropped:
                    stages.enter_context(self._staging.stage(key))
            return dataset

    def get_dataset(self, account_id: str, name: str) -> Dataset:
        """
        :raises RegistryError: the account has none of this name.
        """
        with self.database.read() as session:
            return datasets.get_dataset(session, account_id, name)

    def fetch_shards(self, shards: Sequence[Shard], directory: Path) -> list[Path]:
        """Files on this machine, to be memory-mapped: the store's own if it is local, else copies in `directory`.

        :raises DataError: a shard is missing, or is not what was ingested.
        """
        return [self.objects.fetch(shard.key, shard.sha256, directory) for shard in shards]

    # runs

    def create_run(
        self,
        account_id: str,
        experiment_name: str,
        run_name: str,
        config: dict[str, Any],
        description: str = '',
        datasets: Iterable[str] | None = None,
        prepare: Callable[[RunRecord], None] | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> tuple[RunRecord, bool]:
        """Make a run, and its experiment if there is none; or find the run of this name and this `config`.

        :param config: JSON. `'public': True` lets anyone who knows the artifact's id read it.
        :param datasets: names of the data sets that the run reads; it sees them as they are now.
        :param prepare: is called with the run before anyone else sees it, or if it was there, before this returns. If
            it raises, no run is made.
        :param defaults: values that mean the same in a `config` as none.
        :return: the run, and whether it was made by this call.
        :raises RegistryError: a malformed name, a run of this name with another `config` or with data sets that have
            changed since, or no such data set.
        """
        check_name('experiment', experiment_name)
        check_name('run', run_name)
        with self.database.write() as session:
            kept = snapshot(session, account_id, datasets or [])
            run, is_new = runs.create_run(
                session, account_id, experiment_name, run_name, config, description, kept, defaults
            )
            if prepare is not None:
                prepare(run)
            return run, is_new

    def get_run(self, account_id: str, experiment_name: str, run_name: str) -> RunRecord:
        """
        :raises RegistryError: the account has none of this name.
        """
        with self.database.read() as session:
            return runs.get_run(session, account_id, experiment_name, run_name)

    def get_run_by_id(self, run_id: str) -> RunRecord:
        """For the service itself: no owner is checked.

        :raises RegistryError: there is none of this id.
        """
        with self.database.read() as session:
            return runs.get_run_by_id(session, run_id)

    def get_run_datasets(self, run_id: str) -> dict[str, Dataset]:
        """The data sets of a run, by name, as they were when it was created.

        :raises RegistryError: there is no such run.
        """
        with self.database.read() as session:
            return restore(session, runs.get_run_row(session, run_id).datasets)

    def list_runs(
        self, account_id: str, experiment_name: str | None = None, page: int = 1, size: int = 50
    ) -> Page[RunRecord]:
        """One page of runs, the newest first, without `examples`.

        :raises RegistryError: there is no such experiment, or the page or size (1 to 1000) makes no sense.
        """
        page, size = check_page(page, size, 'runs')
        with self.database.read() as session:
            return runs.list_runs(session, account_id, experiment_name, page, size)

    def unfinished_runs(self) -> list[RunRecord]:
        """All runs, of every account, that are CREATED or STARTED: the oldest first, without `examples`."""
        with self.database.read() as session:
            return runs.unfinished_runs(session)

    def start_run(self, run_id: str, worker: str) -> bool:
        """Take a CREATED run. False if somebody else has it, or it has ended.

        :param worker: `host:pid`.
        """
        with self.database.write() as session:
            return runs.start_run(session, run_id, worker)

    def heartbeat(self, run_id: str, progress: dict[str, Any] | None = None) -> bool:
        """Note that the worker lives. False if the run has ended meanwhile: then there is nothing to work for.

        :param progress: JSON, kept until the next one; NaN becomes None.
        """
        with self.database.write() as session:
            return runs.heartbeat(session, run_id, progress)

    def finish_run(self, run_id: str, artifact_path: Path, metrics: dict[str, Any], examples: dict[str, Any]) -> None:
        """Store the artifact and end the run as FINISHED: both or neither.

        :param artifact_path: copied, and left where it is.
        :raises RegistryError: the run is not STARTED.
        """
        run = self.get_run_by_id(run_id)
        if run.status != STARTED:
            raise runs.not_started(run)
        metrics = plain(metrics, 'metrics', lossy=True)
        examples = plain(examples, 'examples', lossy=True)
        # a key of its own, so that two that finish the same run never write one object
        with self._staging.stage(f'artifacts/{run.artifact_id}-{new_id()}.zip') as staged:
            sha256, size = copy_hashed(artifact_path, staged.path)
            self.objects.put(staged.path, staged.key)
            with self.database.write() as session:
                runs.finish_run(session, run_id, metrics, examples, sha256, size, staged.key)

    def fail_run(self, run_id: str, reason: str) -> bool:
        """End the run as FAILED. False, and the first reason stays, if it has ended already."""
        with self.database.write() as session:
            return runs.fail_run(session, run_id, reason)

    def cancel_run(self, run_id: str, reason: str) -> bool:
        """End the run as CANCELLED; its worker stops when it next gives a sign of life. False if it has ended already.

        :param reason: one sentence.
        """
        with self.database.write() as session:
            return runs.cancel_run(session, run_id, reason)

    def resume_run(self, run_id: str) -> bool:
        """Have a FAILED or CANCELLED run worked on again. False if it is neither."""
        with self.database.write() as session:
            return runs.resume_run(session, run_id)

    def delete_run(self, account_id: str, experiment_name: str, run_name: str) -> None:
        """Delete a run with its artifact, its log and its checkpoints.

        :raises RegistryError: the account has none of this name.
        :raises RunInProgressError: it is at work.
        """
        run = self.get_run(account_id, experiment_name, run_name)
        self._delete(lambda session: experiments.delete_runs(session, [runs.get_run_row(session, run.id)]))

    def delete_runs(self, account_id: str, experiment_name: str | None = None) -> int:
        """Delete all runs of an experiment, or of all experiments, which stay. Returns how many.

        :raises RegistryError: there is no such experiment.
        :raises RunInProgressError: one is at work; then none is deleted.
        """
        deleted = self._delete(
            lambda session: experiments.delete_runs(session, runs.find_rows(session, account_id, experiment_name))
        )
        return len(deleted.runs)

    # experiments

    def create_experiment(self, account_id: str, name: str, description: str = '') -> ExperimentRecord:
        """The experiment of this name, made if there is none.

        :raises RegistryError: the name is malformed.
        """
        check_name('experiment', name)
        with self.database.write() as session:
            return experiments.create_experiment(session, account_id, name, description)

    def get_experiment(self, account_id: str, name: str) -> ExperimentRecord:
        """
        :raises RegistryError: the account has none of this name.
        """
        with self.database.read() as session:
            return experiments.get_experiment(session, account_id, name)

    def list_experiments(self, account_id: str, page: int = 1, size: int = 50) -> Page[ExperimentRecord]:
        """One page of experiments, the newest first.

        :raises RegistryError: the page or size (1 to 1000) makes no sense.
        """
        page, size = check_page(page, size, 'experiments')
        with self.database.read() as session:
            return experiments.list_experiments(session, account_id, page, size)

    def delete_experiments(self, account_id: str, names: Sequence[str] | None = None) -> list[ExperimentRecord]:
        """Delete experiments with all their runs, and return what they were; None is all of the account.

        :raises RegistryError: there is none of a name.
        :raises RunInProgressError: one of their runs is at work; then nothing is deleted.
        """
        deleted = self._delete(lambda session: experiments.delete_experiments(session, account_id, names))
        return deleted.experiments

    def _delete(self, change: Callable[[Session], experiments.Deleted]) -> experiments.Deleted:
        """Commit a deletion, and then remove what it leaves in the object store and on this disk."""
        with ExitStack() as stages, self.database.write() as session:
            deleted = change(session)
            # noted before the commit, removed after it: a stage ends with the objects that no row knows
            for key in deleted.keys:
                stages.enter_context(self._staging.stage(key))
        for run_id in deleted.runs:
            shutil.rmtree(self.home / 'runs' / check_id('run', run_id), ignore_errors=True)
        return deleted

    def run_directory(self, run_id: str) -> Path:
        """The folder of a run on this machine, made if it is not there; it holds `log.txt`."""
        folder = self.home / 'runs' / check_id('run', run_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # artifacts

    def get_artifact(self, account_id: str | None, artifact_id: str) -> ArtifactRecord:
        """The artifact of this id, if it is public or the account's. An account of None sees the public ones.

        :raises ArtifactError: there is none that the account may read.
        :raises RunInProgressError: its run has not finished.
        :raises RunFailedError: its run has failed.
        """
        with self.database.read() as session:
            return artifacts.get_artifact(session, account_id, artifact_id)

    def artifact_file(self, artifact: ArtifactRecord) -> Path:
        """The zip file on this machine: that of the store itself if it is local, else a copy that is kept.

        :raises ArtifactError: it is missing, or is not what was stored.
        """
        try:
            return self.objects.fetch(artifact.key, artifact.sha256, self.home / 'cache')
        except DataError as error:
            raise ArtifactError(str(error)) from error

    def read_artifact(self, artifact: ArtifactRecord, offset: int, length: int) -> bytes:
        """Bytes of the zip file from `offset` on: at most `length` of them, at most 16 MiB, and none at its end.

        :raises ArtifactError: offset or length make no sense, or the file is missing.
        """
        if not 0 <= offset <= artifact.size or length < 1:
            raise ArtifactError(f'An artifact of {artifact.size} bytes cannot be read at {offset} for {length} bytes')
        try:
            return self.objects.read(artifact.key, int(offset), min(int(length), MAX_READ))
        except FileNotFoundError as error:
            raise ArtifactError(f'The file of the artifact {artifact.id} is missing in the object store') from error


def check_page(page: float, size: float, what: str) -> tuple[int, int]:
    """
    :raises RegistryError: there is no such page.
    """
    if page < 1 or not 1 <= size <= MAX_PAGE_SIZE:
        raise RegistryError(
            f'There is no page {page} of {size} {what}: pages count from 1, a size is 1 to {MAX_PAGE_SIZE}'
        )
    return int(page), int(size)


def _is_referenced(database: Database, key: str) -> bool:
    with database.read() as session:
        return any(session.scalar(select(row.id).where(row.key == key)) is not None for row in (ShardRow, ArtifactRow))
