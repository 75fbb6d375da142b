"""The registry: the one door to the database and the object store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, make_url, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from finetuner import settings
from finetuner.artifact.cache import make_room, mark_used
from finetuner.excepts import ArtifactError, DataError, RegistryError
from registry import (
    accounts,
    artifacts,
    checkpoints,
    datasets,
    experiments,
    first_start,
    logs,
    promotions,
    queue,
    quotas,
    removal,
    runs,
)
from registry.clicks import Clicks
from registry.database import Database, has_registry
from registry.models import ArtifactRow, CheckpointRow, ShardRow
from registry.names import check_alias, check_id, check_name, new_id
from registry.objects import ObjectStore, copy_hashed, file_digest
from registry.plain import plain
from registry.records import (
    CANCELLED,
    FAILED,
    STARTED,
    Account,
    ArtifactRecord,
    CheckpointRecord,
    Dataset,
    DatasetSummary,
    ExperimentRecord,
    Page,
    Promotion,
    RunRecord,
    Shard,
    Token,
    Usage,
)
from registry.search_items import SearchItems
from registry.shards import write_shard
from registry.snapshots import hold, restore, snapshot
from registry.staging import Staging, exclusive
from registry.tuning import Tuning

if TYPE_CHECKING:
    from finetuner.documents import Document

MAX_READ = 16 << 20
MAX_PAGE_SIZE = 1000
MAX_PAGE = 2**31


def open_places(
    home: Path | None = None, database_url: str | None = None, objects_url: str | None = None
) -> tuple[Path, Database, ObjectStore]:
    """The folder, the database and the object store of a registry, as :meth:`Registry.open` finds them."""
    home = (Path(home) if home else settings.home()).expanduser().absolute()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    database = Database(database_url or _database_url(home))
    return home, database, ObjectStore(objects_url or os.environ.get('FINETUNER_OBJECTS_URL') or str(home / 'objects'))


def _database_url(home: Path) -> str | URL:
    return settings.secret('FINETUNER_DATABASE_URL') or URL.create('sqlite', database=str(home / 'registry.db'))


class Registry:
    """Accounts, data sets, runs and artifacts. Open one per process; every method may be called from any thread."""

    def __init__(self, home: Path, database: Database, objects: ObjectStore, staging: Staging):
        self.home = home
        self.database = database
        self.objects = objects
        self.clicks = Clicks(database)
        self.tuning = Tuning(database)
        self.items = SearchItems(database)
        self._staging = staging

    @classmethod
    def open(
        cls, home: Path | None = None, database_url: str | None = None, objects_url: str | None = None
    ) -> Registry:
        """Open the registry; make it, with a local account and token, if it is not there. Processes may do so at once.

        :param home: the folder of the state on this machine, default `FINETUNER_HOME`.
        :param database_url: an SQLAlchemy URL, default `FINETUNER_DATABASE_URL` (or the file that
            `FINETUNER_DATABASE_URL_FILE` names), or else an SQLite file in `home`.
        :param objects_url: a folder or an fsspec URL, default `FINETUNER_OBJECTS_URL`, or else a folder in `home`.
        :raises RegistryError: the database was made by a newer version, the token of the first start cannot be kept, or
            a limit of the environment is none.
        :raises UnavailableError: the database cannot be reached.
        """
        quotas.check_limits()
        home, database, objects = open_places(home, database_url, objects_url)
        with exclusive(home / 'open.lock'):
            database.migrate()
            first_start.make_local_account(database)
            staging = Staging(home / 'staging', objects, lambda key: _is_referenced(database, key))
            staging.recover()
        return cls(home, database, objects, staging)

    @classmethod
    def open_existing(cls) -> Registry:
        """Open the registry that the environment names, if there is one: nothing is made where there is none.

        :raises RegistryError: there is none, or what :meth:`open` raises.
        :raises UnavailableError: the database cannot be reached.
        """
        home = settings.home()
        url = _database_url(home)
        if not has_registry(url):
            raise RegistryError(
                f'There is no registry in the database {make_url(url)} (home: {home}): FINETUNER_HOME and '
                'FINETUNER_DATABASE_URL must be those of the service, which makes it at its first start'
            )
        return cls.open()

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
        :raises NotFoundError: there is none of this name.
        """
        with self.database.read() as session:
            return accounts.find_account(session, name)

    def delete_account(self, account_id: str) -> None:
        """Delete an account with its tokens, data sets, experiments, runs, artifacts, aliases, clicks and search items.

        For who runs the service. What its runs have left in MLflow and in the folders of other machines stays there,
        until `training.iterations.tidying` and the trainers there remove it.

        :raises RegistryError: there is no such account, or it is the one of the first start.
        :raises RunInProgressError: one of its runs is at work; then nothing is deleted.
        """
        self._delete(account_id, lambda session: removal.delete_account(session, account_id))

    def list_accounts(self, page: int = 1, size: int = 50) -> Page[Account]:
        """One page of all accounts, by name. For who runs the service: no owner is checked.

        :raises RegistryError: the page or size (1 to 1000) makes no sense.
        """
        page, size = check_page(page, size, 'accounts')
        with self.database.read() as session:
            return accounts.list_accounts(session, page, size)

    def set_quota(self, account_id: str, max_bytes: int | None, max_runs: int | None) -> Account:
        """Say what an account may have; None is no limit. What it has already stays. For who runs the service.

        :param max_bytes: of data sets and artifacts together, see `registry.quotas`.
        :param max_runs: at work at the same time.
        :raises RegistryError: there is no such account, or a number is below 0.
        """
        with self.database.write() as session:
            return quotas.set_quota(session, account_id, max_bytes, max_runs)

    def usage(self, account_id: str) -> Usage:
        """What the account has, and may have.

        :raises RegistryError: there is no such account.
        """
        with self.database.read() as session:
            return quotas.usage(session, account_id)

    def create_token(self, account_id: str, name: str, expires_at: datetime | None = None) -> str:
        """A new token for the account. It is returned here and never again: the database has its hash alone.

        :param expires_at: with its time zone; None for a token without end.
        :raises RegistryError: there is no such account, the name is malformed, or the time has passed.
        """
        return self.issue_token(account_id, name, expires_at)[0]

    def issue_token(self, account_id: str, name: str, expires_at: datetime | None = None) -> tuple[str, Token]:
        """As `create_token`, with what the registry keeps of it."""
        token = accounts.new_token()
        with self.database.write() as session:
            return token, accounts.insert_token(session, account_id, name, token, expires_at)

    def list_tokens(self, account_id: str, page: int = 1, size: int = 50) -> Page[Token]:
        """One page of tokens, the oldest first.

        :raises RegistryError: the page or size (1 to 1000) makes no sense.
        """
        page, size = check_page(page, size, 'tokens')
        with self.database.read() as session:
            return accounts.list_tokens(session, account_id, page, size)

    def revoke_token(self, account_id: str, token_id: str) -> Token:
        """Make a token worthless. One that is revoked already stays as it is.

        :raises RegistryError: the account has no such token.
        """
        with self.database.write() as session:
            return accounts.revoke_token(session, account_id, token_id)

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
        :raises RegistryError: the name is malformed, the part is there with other content and a run reads what it
            would replace.
        :raises QuotaError: the account's quota has no room for the documents, or they take more than
            `FINETUNER_PART_BYTES`. What has been written of them by then is removed.
        """
        check_name('data set', dataset_name)
        part = datasets.check_part(part)
        shard_id = new_id()
        with ExitStack() as stages:
            staged = stages.enter_context(self._staging.stage(f'shards/{shard_id}.arrow'))
            with self.database.read() as session:
                replaced = datasets.replaced_bytes(session, account_id, dataset_name, part)
                bound = quotas.part_bound(session, account_id, replaced)
            info = write_shard(documents, staged.path, bound)
            with self.database.read() as session:
                if part is not None:
                    found = datasets.find_part(session, account_id, dataset_name, part, info.content_digest)
                    if found is not None:
                        return found
                replaced = datasets.replaced_bytes(session, account_id, dataset_name, part)
                quotas.check_room(session, account_id, info.size - replaced)
            self.objects.put(staged.path, staged.key)
            with self.database.write() as session:
                limited = quotas.lock_quota(session, account_id)
                dataset, dropped = datasets.insert_shard(
                    session, account_id, dataset_name, part, shard_id, staged.key, info
                )
                if limited:
                    quotas.check_room(session, account_id, 0)
                self._let_go(stages, dropped)
            return dataset

    def get_dataset(self, account_id: str, name: str) -> Dataset:
        """
        :raises NotFoundError: the account has none of this name.
        """
        with self.database.read() as session:
            return datasets.get_dataset(session, account_id, name)

    def list_datasets(self, account_id: str, page: int = 1, size: int = 50) -> Page[DatasetSummary]:
        """One page of data sets, the newest first.

        :raises RegistryError: the page or size (1 to 1000) makes no sense.
        """
        page, size = check_page(page, size, 'data sets')
        with self.database.read() as session:
            return datasets.list_datasets(session, account_id, page, size)

    def list_shards(
        self, account_id: str, name: str, page: int = 1, size: int = 50
    ) -> tuple[DatasetSummary, Page[Shard]]:
        """A data set with one page of its shards, in the order of their parts.

        :raises RegistryError: the account has none of this name, or the page or size (1 to 1000) makes no sense.
        """
        page, size = check_page(page, size, 'parts')
        with self.database.read() as session:
            summary = datasets.get_summary(session, account_id, name)
            return summary, datasets.list_shards(session, account_id, name, page, size)

    def delete_dataset(self, account_id: str, name: str) -> DatasetSummary:
        """Delete a data set, and return what it was. Runs that have ended and read it cannot be resumed then.

        :raises RegistryError: the account has none of this name.
        :raises RunInProgressError: a run that waits or is at work reads it.
        """
        with ExitStack() as stages, self.database.write() as session:
            summary, keys = datasets.delete_dataset(session, account_id, name)
            self._let_go(stages, keys)
        return summary

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
        priority: int = 0,
    ) -> tuple[RunRecord, bool]:
        """Make a run, and its experiment if there is none; or find the run of this name and this `config`.

        :param config: JSON. `'public': True` lets any account that knows the artifact's id read it. How a run is
            worked on (:data:`registry.queue.SCHEDULING`) does not make it another.
        :param datasets: names of the data sets that the run reads; it sees them as they are now.
        :param prepare: is called with the run before anyone else sees it, or if it was there, before this returns. If
            it raises, no run is made.
        :param defaults: values that mean the same in a `config` as none.
        :param priority: the higher, the sooner. A run that is there keeps its own.
        :return: the run, and whether it was made by this call.
        :raises RegistryError: a malformed name, a run of this name with another `config` or with data sets that have
            changed since, no such data set, or a new run of an account that is at the end of its quota.
        """
        check_name('experiment', experiment_name)
        check_name('run', run_name)
        with self.database.write() as session:
            kept = snapshot(session, account_id, datasets or [])
            run, is_new = runs.create_run(
                session, account_id, experiment_name, run_name, config, description, kept, defaults, priority
            )
            if is_new:
                quotas.check_room(session, account_id, 1)
            if prepare is not None:
                prepare(run)
            return run, is_new

    def get_run(self, account_id: str, experiment_name: str, run_name: str) -> RunRecord:
        """
        :raises NotFoundError: the account has none of this name.
        """
        with self.database.read() as session:
            return runs.get_run(session, account_id, experiment_name, run_name)

    def get_run_by_id(self, run_id: str) -> RunRecord:
        """For the service itself: no owner is checked.

        :raises NotFoundError: there is none of this id.
        """
        with self.database.read() as session:
            return runs.get_run_by_id(session, run_id)

    def get_run_datasets(self, run_id: str) -> dict[str, Dataset]:
        """The data sets of a run, by name, as they were when it was created.

        :raises NotFoundError: there is no such run.
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

    def claim_run(
        self, worker: str, machines: Collection[queue.Machine], exclude: Iterable[str] = ()
    ) -> RunRecord | None:
        """Take the run that is next in the queue and fits, under a new lease. None if there is none.

        :param worker: who works on it, `host:pid`.
        :param machines: what there is to work with, and what is free; a run needs one of them.
        :param exclude: ids of runs that are not to be taken.
        """
        with self.database.read() as session:
            if queue.is_empty(session):  # services ask every second, and need not take a lock for that
                return None
        with self.database.write() as session:
            run_id = queue.claim_run(session, worker, machines, exclude)
            return None if run_id is None else runs.get_run_by_id(session, run_id)

    def start_run(self, run_id: str, worker: str, lease: str | None = None) -> bool:
        """Take this very run, whatever its place in the queue. False if somebody else has it, or it has ended.

        :param worker: `host:pid`.
        :param lease: the new one, default a random one.
        """
        with self.database.write() as session:
            runs.get_run_row(session, run_id)
            return queue.start(session, run_id, worker, lease or new_id())

    def leases(self) -> list[queue.Lease]:
        """Every run, of every account, that somebody works on, or that waits for its last worker to end."""
        with self.database.read() as session:
            return queue.held(session)

    def check_writable(self) -> None:
        """Wait as long as others keep everybody from writing.

        :raises UnavailableError: it took too long, or the connection was lost.
        """
        self.database.check_writable()

    def run_statuses(self, run_ids: Collection[str]) -> dict[str, str]:
        """The statuses of those of the runs, of every account, that there are."""
        with self.database.read() as session:
            return queue.statuses(session, run_ids)

    def is_held(self, run_id: str, lease: str) -> bool:
        """Whether the run is STARTED under this lease."""
        with self.database.read() as session:
            return queue.is_held(session, run_id, lease)

    def heartbeat(
        self,
        run_id: str,
        progress: dict[str, Any] | None = None,
        lease: str | None = None,
        worker: str | None = None,
    ) -> bool:
        """Note that the worker lives. False if the run has ended or is another's: then there is nothing to work for.

        :param progress: JSON, kept until the next one; NaN becomes None.
        :param lease: of the worker. None stands for anybody, here and below: it is for the service itself.
        :param worker: `host:pid`, if that is news.
        """
        with self.database.write() as session:
            return runs.heartbeat(session, run_id, progress, lease, worker)

    def finish_run(
        self,
        run_id: str,
        artifact_path: Path,
        metrics: dict[str, Any],
        examples: dict[str, Any],
        lease: str | None = None,
        details: str = 'Run finished',
        alias: str | None = None,
        in_place_of: str | None = promotions.ANYTHING,
    ) -> None:
        """Store the artifact and end the run as FINISHED: both or neither. Its checkpoint is deleted.

        :param artifact_path: copied, and left where it is.
        :param details: one sentence.
        :param alias: is to name the artifact from then on, in the same moment.
        :param in_place_of: the id of the artifact that the alias must name until then, None for nothing; by default
            that does not matter.
        :raises RegistryError: the run is not STARTED, or another's.
        :raises AliasMovedError: the alias names another artifact; then nothing is stored.
        """
        run = self.get_run_by_id(run_id)
        if run.status != STARTED or (lease is not None and run.lease != lease):
            raise runs.not_started(run)
        metrics = plain(metrics, 'metrics', lossy=True)
        examples = plain(examples, 'examples', lossy=True)
        # a key of its own, so that two that finish the same run never write one object
        with ExitStack() as stages:
            staged = stages.enter_context(self._staging.stage(f'artifacts/{run.artifact_id}-{new_id()}.zip'))
            sha256, size = copy_hashed(artifact_path, staged.path)
            self.objects.put(staged.path, staged.key)
            with self.database.write() as session:
                if alias is not None:  # the account first: whoever deletes runs locks it before them
                    accounts.lock_account(session, run.account_id)
                    if in_place_of != promotions.ANYTHING:
                        promotions.check_named(session, run.account_id, alias, in_place_of)
                runs.finish_run(session, run_id, metrics, examples, sha256, size, staged.key, lease, details)
                if alias is not None:
                    artifact = artifacts.get_artifact(session, run.account_id, run.artifact_id)
                    promotions.promote(session, run.account_id, alias, artifact)
                for key in checkpoints.delete_checkpoints(session, [run_id]):
                    stages.enter_context(self._staging.stage(key))

    def fail_run(self, run_id: str, reason: str, lease: str | None = None) -> bool:
        """End the run as FAILED. False, and the first reason stays, if it has ended already or is another's."""
        with self.database.write() as session:
            return runs.fail_run(session, run_id, reason, lease)

    def retry_run(
        self,
        run_id: str,
        lease: str | None,
        reason: str,
        *,
        max_retries: int,
        delay: float,
        counts: bool = True,
        heartbeat_at: datetime | None = None,
    ) -> str | None:
        """Queue a run whose worker is lost again, or after the last attempt end it as FAILED.

        :param reason: one sentence without its full stop.
        :param max_retries: attempts after the first, where the run's config says nothing.
        :param delay: seconds until the second attempt may begin, twice as many until the third, and so on.
        :param counts: False if it was not the run's fault: then it waits for nothing, and the attempt is forgotten.
        :param heartbeat_at: the last sign of life that is known: a later one saves the worker.
        :return: the status that the run has now; None if nothing was done, as the lease is another's.
        """
        with self.database.write() as session:
            return queue.retry_run(
                session,
                run_id,
                lease,
                reason,
                max_retries=max_retries,
                delay=delay,
                counts=counts,
                heartbeat_at=heartbeat_at,
            )

    def release_run(self, run_id: str, lease: str, heartbeat_at: datetime | None = None) -> None:
        """Tell that the worker of a run that was ended or queued again meanwhile has ended: others may have it.

        :param heartbeat_at: the last sign of life that is known: a later one saves the worker.
        """
        with self.database.write() as session:
            queue.release(session, run_id, lease, heartbeat_at)

    def cancel_run(self, run_id: str, reason: str) -> bool:
        """End the run as CANCELLED; its worker stops when it next gives a sign of life. False if it has ended already.

        :param reason: one sentence.
        """
        with self.database.write() as session:
            return runs.cancel_run(session, run_id, reason)

    def resume_run(self, run_id: str) -> bool:
        """Have a FAILED or CANCELLED run worked on again. False if it is neither.

        :raises RegistryError: there is no such run, or a data set that it reads has been deleted.
        """
        with self.database.write() as session:
            run = runs.get_run_row(session, run_id)
            if run.status in (FAILED, CANCELLED):
                hold(session, run.datasets)
            return runs.resume_run(session, run_id)

    def delete_run(self, account_id: str, experiment_name: str, run_name: str) -> None:
        """Delete a run with its artifact, its log and its checkpoints.

        :raises RegistryError: the account has none of this name, or an alias names its artifact.
        :raises RunInProgressError: it is at work.
        """
        self._delete(
            account_id,
            lambda session: experiments.delete_runs(
                session, [runs.find_run_row(session, account_id, experiment_name, run_name).id]
            ),
        )

    def delete_runs(self, account_id: str, experiment_name: str | None = None) -> list[RunRecord]:
        """Delete all runs of an experiment, or of all experiments, which stay. Returns what they were, without
        `examples`.

        :raises NotFoundError: there is no such experiment.
        :raises RunInProgressError: one is at work; then none is deleted.
        """
        found: list[RunRecord] = []

        def change(session: Session) -> experiments.Deleted:
            rows = runs.find_rows(session, account_id, experiment_name)
            found.extend(runs.read_all(session, rows))
            return experiments.delete_runs(session, [run.id for run in found])

        self._delete(account_id, change)
        return found

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
        :raises NotFoundError: the account has none of this name.
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

        :raises RegistryError: there is none of a name, or an alias names the artifact of a run; then nothing is
            deleted.
        :raises RunInProgressError: one of their runs is at work; then nothing is deleted.
        """
        deleted = self._delete(account_id, lambda session: experiments.delete_experiments(session, account_id, names))
        return deleted.experiments

    def _delete(self, account_id: str, change: Callable[[Session], experiments.Deleted]) -> experiments.Deleted:
        """Commit a deletion, and then remove what it leaves in the object store and on this disk."""
        with ExitStack() as stages, self.database.write() as session:
            accounts.lock_account(session, account_id)
            deleted = change(session)
            self._let_go(stages, deleted.keys)
        for run_id in deleted.runs:
            shutil.rmtree(self.home / 'runs' / check_id('run', run_id), ignore_errors=True)
        return deleted

    def _let_go(self, stages: ExitStack, keys: Iterable[str]) -> None:
        """Note objects before the commit, to remove them after it: a stage ends with the objects that no row knows."""
        for key in keys:
            stages.enter_context(self._staging.stage(key))

    def run_directory(self, run_id: str) -> Path:
        """The folder of a run on this machine, made if it is not there."""
        folder = self.home / 'runs' / check_id('run', run_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # logs and checkpoints of runs

    def import_logs(self) -> None:
        """Make the logs known that an earlier version has left in the folders of runs on this machine."""
        for path in (self.home / 'runs').glob('*/log.txt'):
            logs.import_log(self.database, path.parent.name, path)

    def sent_log(self, run_id: str, lease: str) -> int:
        """How many bytes of what the attempt under this lease has printed are in the run's log."""
        with self.database.read() as session:
            return logs.sent_bytes(session, run_id, lease)

    def append_log(self, run_id: str, lease: str, start: int, data: bytes) -> None:
        """Add what the attempt under this lease has printed, from its byte `start` on. Repeated, it is there once.

        The log of a run ends at 64 MiB with a sentence that says so. A run that was deleted has none.
        """
        logs.append_log(self.database, run_id, lease, start, data)

    def read_log(self, run_id: str, offset: int, limit: int) -> bytes:
        """At most `limit` bytes of the log of all attempts at a run, from `offset` on."""
        with self.database.read() as session:
            return logs.read_log(session, run_id, offset, limit)

    def store_checkpoint(self, run_id: str, lease: str, name: str, path: Path) -> None:
        """Make a file the checkpoint of a run that other machines can fetch, in place of the one before.

        :param path: is moved away.
        :raises RegistryError: the lease is not (any more) that of the run.
        """
        with ExitStack() as stages:
            staged = stages.enter_context(self._staging.stage(checkpoints.new_key(run_id)))
            size, sha256 = path.stat().st_size, file_digest(path)
            try:
                self.objects.put(path, staged.key)
            finally:
                path.unlink(missing_ok=True)  # a store that is not local has a copy
            with self.database.write() as session:
                replaced = checkpoints.replace_checkpoint(session, run_id, lease, name, size, sha256, staged.key)
                for key in replaced:
                    stages.enter_context(self._staging.stage(key))

    def find_checkpoint(self, run_id: str) -> CheckpointRecord | None:
        """The checkpoint of a run in the object store, if there is one."""
        with self.database.read() as session:
            return checkpoints.find_checkpoint(session, run_id)

    def fetch_checkpoint(self, checkpoint: CheckpointRecord, directory: Path) -> Path:
        """The file of a checkpoint on this machine.

        :raises DataError: it is missing, or is not what was stored.
        """
        return self.objects.fetch(checkpoint.key, checkpoint.sha256, directory)

    # artifacts

    def get_artifact(self, account_id: str | None, artifact_id: str) -> ArtifactRecord:
        """The artifact of this id, if it is public or the account's. An account of None sees the public ones.

        :raises ArtifactNotFoundError: there is none that the account may read.
        :raises RunInProgressError: its run has not finished.
        :raises RunFailedError: its run has failed.
        """
        with self.database.read() as session:
            return artifacts.get_artifact(session, account_id, artifact_id)

    def find_artifact(self, account_id: str | None, reference: str) -> ArtifactRecord:
        """The artifact that a reference names: an id, 'experiment/run' or 'name@stage'. The last two are the account's.

        :raises ArtifactError: there is none that the account may read.
        :raises RunInProgressError: its run has not finished.
        :raises RunFailedError: its run has failed.
        """
        with self.database.read() as session:
            return artifacts.find_artifact(session, account_id, reference)

    def list_artifacts(self, account_id: str, page: int = 1, size: int = 50) -> Page[ArtifactRecord]:
        """One page of the account's own artifacts, the newest first.

        :raises RegistryError: the page or size (1 to 1000) makes no sense.
        """
        page, size = check_page(page, size, 'artifacts')
        with self.database.read() as session:
            return artifacts.list_artifacts(session, account_id, page, size)

    def artifact_file(self, artifact: ArtifactRecord) -> Path:
        """The zip file on this machine: that of the store itself if it is local, else a copy that is kept.

        :raises ArtifactError: it is missing, or is not what was stored.
        """
        cache = self.home / 'cache' / 'objects'
        try:
            path = self.objects.fetch(artifact.key, artifact.sha256, cache)
        except DataError as error:
            raise ArtifactError(str(error)) from error
        if not self.objects.is_local:
            mark_used(path)
            make_room(cache)
        return path

    def read_artifact(self, artifact: ArtifactRecord, offset: int, length: int) -> bytes:
        """Bytes of the zip file from `offset` on: at most `length` of them, at most 16 MiB, and none at its end.

        :raises ArtifactError: offset or length make no sense, or the file is missing.
        """
        if not 0 <= offset <= artifact.size or length < 1:
            raise ArtifactError(f'An artifact of {artifact.size} bytes cannot be read at {offset} for {length} bytes')
        if offset == artifact.size:
            return b''
        try:
            return self.objects.read(artifact.key, int(offset), min(int(length), MAX_READ))
        except FileNotFoundError as error:
            raise ArtifactError(f'The file of the artifact {artifact.id} is missing in the object store') from error

    # promotions

    def promote(self, account_id: str, alias: str, reference: str) -> Promotion:
        """Have an alias name an artifact of the account from now on. If it does already, nothing changes.

        :param alias: 'name@stage', made if there is none.
        :param reference: see `find_artifact`.
        :raises RegistryError: the alias is malformed.
        :raises ArtifactError: the account has no such artifact.
        :raises RunInProgressError: its run has not finished.
        :raises RunFailedError: its run has failed.
        """
        check_alias(alias)
        with self.database.write() as session:
            artifact = artifacts.find_artifact(session, account_id, reference)
            if artifact.account_id != account_id:
                raise ArtifactError(f'The artifact {artifact.id!r} is public, and not yours: only yours have aliases')
            return promotions.promote(session, account_id, alias, artifact)

    def roll_back(self, account_id: str, alias: str) -> Promotion:
        """Promote the artifact that the alias named before; done twice, all is as it was.

        :raises RegistryError: there is no such alias, or it has named nothing else that is there still.
        """
        with self.database.write() as session:
            return promotions.roll_back(session, account_id, alias)

    def get_promotion(self, account_id: str, alias: str) -> Promotion:
        """What the alias names now.

        :raises RegistryError: the account has no such alias.
        """
        with self.database.read() as session:
            return promotions.get_promotion(session, account_id, alias)

    def list_promotions(self, account_id: str, page: int = 1, size: int = 50) -> Page[Promotion]:
        """One page of what the account's aliases name now, by the names of the aliases.

        :raises RegistryError: the page or size (1 to 1000) makes no sense.
        """
        page, size = check_page(page, size, 'aliases')
        with self.database.read() as session:
            return promotions.list_promotions(session, account_id, page, size)

    def list_history(self, account_id: str, alias: str, page: int = 1, size: int = 50) -> Page[Promotion]:
        """One page of all promotions of an alias, the newest first.

        :raises RegistryError: the account has no such alias, or the page or size (1 to 1000) makes no sense.
        """
        page, size = check_page(page, size, 'promotions')
        with self.database.read() as session:
            return promotions.list_history(session, account_id, alias, page, size)

    def delete_alias(self, account_id: str, alias: str) -> Promotion:
        """Delete an alias with its history, and return what it named.

        :raises RegistryError: the account has no such alias.
        """
        with self.database.write() as session:
            return promotions.delete_alias(session, account_id, alias)


def check_page(page: float, size: float, what: str) -> tuple[int, int]:
    """
    :raises RegistryError: there is no such page.
    """
    if not 1 <= page <= MAX_PAGE or not 1 <= size <= MAX_PAGE_SIZE:
        raise RegistryError(
            f'There is no page {page} of {size} {what}: pages count from 1, a size is 1 to {MAX_PAGE_SIZE}'
        )
    return int(page), int(size)


def _is_referenced(database: Database, key: str) -> bool:
    with database.read() as session:
        rows = (ShardRow, ArtifactRow, CheckpointRow)
        return any(session.scalar(select(row.id).where(row.key == key)) is not None for row in rows)
