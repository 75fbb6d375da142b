"""TrainerExecutor: takes runs, has them worked on, and tells how they are."""

import asyncio
import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, AsyncIterator  # noqa: UP035  Jina does not know the one of collections.abc

from jina import Executor, requests

from executors.answers import (
    answer,
    answer_page,
    describe_artifact,
    describe_experiment,
    describe_promotion,
    describe_run,
    describe_task,
    describe_token,
    describe_usage,
)
from executors.endpoints import unknown_endpoint
from executors.launching import make_launcher, read_policy
from executors.lifetime import prepare_process
from executors.logs import read_log, read_piece
from executors.models import check_model, check_model_exists
from executors.opening import open_registry
from executors.parameters import (
    AliasParameters,
    ArtifactParameters,
    CreateTokenParameters,
    DeleteExperimentsParameters,
    DeleteRunsParameters,
    ExperimentParameters,
    FitParameters,
    HistoryParameters,
    LogParameters,
    NewTuningTaskParameters,
    PageParameters,
    PromoteParameters,
    RevokeTokenParameters,
    RunParameters,
    RunsParameters,
    TokenParameters,
    TuningTaskParameters,
    TuningTasksParameters,
)
from executors.supervisor import Supervisor
from executors.tracking import check_trackers
from finetuner.client.names import random_name
from finetuner.documents import Document, DocumentArray
from finetuner.excepts import (
    DataError,
    NotFoundError,
    ParameterError,
    RegistryError,
    RunFailedError,
    RunInProgressError,
)
from registry import RunRecord
from registry.names import check_name
from registry.records import CANCELLED, CREATED, FAILED, FINISHED, STARTED
from training.check import Role, check_data
from training.config import FitConfig
from training.methods import Method, load_method
from training.secrets import keep_secrets

DEFAULTS = {name: field.default for name, field in FitConfig.model_fields.items() if not field.is_required()}
POLL = 0.5
"""Seconds between two looks at a log that is streamed."""
LAST_WORDS = 1.0
"""Seconds that the log of a run which has ended may take to be complete."""


class TrainerExecutor(Executor):
    """Stores runs and starts a worker process for each. Every endpoint needs a token, `/logstream` in its tags.

    When the executor is closed, workers write a checkpoint and end, and their runs wait again: the next service, or
    another one with the same registry, goes on with them.

    :param max_runs: runs without a GPU at work at the same time, default `FINETUNER_MAX_RUNS` or 1. Each GPU is one
        run's at a time.
    :param heartbeat_timeout: seconds without a sign of life after which a worker counts as lost.
    """

    def __init__(self, max_runs: int | None = None, heartbeat_timeout: float = 60.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        prepare_process(self)
        self.registry = open_registry(self.logger)
        if problem := self.registry.credentials_problem():
            self.logger.warning(problem)
        self.registry.import_logs()
        policy = read_policy()
        launcher = make_launcher(self.registry, self.logger, max_runs, policy)
        self.supervisor = Supervisor(self.registry, self.logger, launcher, policy, heartbeat_timeout)
        self.supervisor.start()

    def close(self) -> None:
        self.supervisor.close()
        self.registry.close()

    @requests(on='/fit')
    def fit(self, docs: DocumentArray, parameters: FitParameters, **kwargs: Any) -> DocumentArray:
        """Check the arguments of `finetuner.fit`, store the run and return it. Called again it returns the same run."""
        account = self.registry.authenticate(parameters.secret)
        config = FitConfig.from_arguments(**self._with_model(account.id, parameters.arguments))
        for kind, name in (('run', config.run_name), ('experiment', config.experiment_name)):
            if name:
                check_name(kind, name)
        if parameters.gpus and config.device == 'cpu':
            raise ParameterError(f"gpus is {parameters.gpus} and device 'cpu': give device 'cuda', or no gpus")
        check_trackers(config)
        check_model(config)
        check_model_exists(config)
        if config.model_artifact is not None:
            self.registry.get_artifact(account.id, config.model_artifact)
        if parameters.check_only:
            return answer(checked=True)
        roles = _datasets(config)
        for name, role in roles:
            self._check_dataset(account.id, config, name, role)
        run = self._create_run(
            account.id, config, parameters.scheduling, list(dict.fromkeys(name for name, _ in roles))
        )
        self.supervisor.wake()
        return answer(**describe_run(run))

    def _with_model(self, account_id: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments, with the model that an artifact was made of where they name the artifact alone."""
        artifact_id = arguments.get('model_artifact')
        if arguments.get('model') is not None or not isinstance(artifact_id, str):
            return arguments
        artifact = self.registry.get_artifact(account_id, artifact_id)
        return {**arguments, 'model': self.registry.get_run_by_id(artifact.run_id).config['model']}

    def _create_run(
        self, account_id: str, config: FitConfig, scheduling: dict[str, Any], datasets: list[str]
    ) -> RunRecord:
        experiment_name, description = config.experiment_name or 'default', config.description or ''
        settings = config.model_dump(mode='json', exclude={'run_name', 'experiment_name', 'description'})
        settings |= scheduling

        def prepare(run: RunRecord) -> None:
            if run.status != FINISHED:
                keep_secrets(config, self.registry.run_directory(run.id))

        def create(name: str) -> tuple[RunRecord, bool]:
            return self.registry.create_run(
                account_id,
                experiment_name,
                name,
                settings,
                description,
                datasets,
                prepare,
                DEFAULTS,
                scheduling['priority'],
            )

        if config.run_name:
            return create(config.run_name)[0]
        name = random_name()
        with suppress(RegistryError):  # perhaps the name is taken; whatever else it is, it is raised again below
            run, is_new = create(name)
            if is_new:
                return run
        return create(f'{name}-{secrets.token_hex(4)}')[0]

    def _check_dataset(self, account_id: str, config: FitConfig, name: str, role: Role) -> None:
        dataset = self.registry.get_dataset(account_id, name)
        if not dataset.modalities:
            raise DataError(
                f'the data set {name!r} was ingested before images and meshes were told apart: send it again'
            )
        if dataset.linked:
            raise DataError(
                f'the data set {name!r} names files or URLs, which this service does not open: send what is in them, '
                'as blob'
            )
        check_data(config, dataset, role)

    @requests(on='/status')
    def status(self, docs: DocumentArray, parameters: RunParameters, **kwargs: Any) -> DocumentArray:
        return answer(**describe_run(self._find(parameters)))

    @requests(on='/cancel')
    def cancel(self, docs: DocumentArray, parameters: RunParameters, **kwargs: Any) -> DocumentArray:
        """End a run that waits or is at work, and return it. A run that has ended stays as it is."""
        run = self._find(parameters)
        account = self.registry.authenticate(parameters.secret)
        self.registry.cancel_run(run.id, f'Cancelled by the account {account.name!r}')
        return answer(**describe_run(self._find(parameters)))

    @requests(on='/resume')
    def resume(self, docs: DocumentArray, parameters: RunParameters, **kwargs: Any) -> DocumentArray:
        """Queue a FAILED or CANCELLED run again, and return it. It goes on from its last checkpoint, if it left any."""
        run = self._find(parameters)
        if not self.registry.resume_run(run.id):
            run = self._find(parameters)
            if run.status == FINISHED:
                raise RegistryError(f'the run {run.name!r} has finished: there is nothing to go on with')
        self.supervisor.wake()
        return answer(**describe_run(self._find(parameters)))

    @requests(on='/runs')
    def runs(self, docs: DocumentArray, parameters: RunsParameters, **kwargs: Any) -> DocumentArray:
        """A page of runs, the newest first."""
        account = self.registry.authenticate(parameters.secret)
        runs = self.registry.list_runs(account.id, parameters.experiment_name, parameters.page, parameters.size)
        return answer_page(runs, describe_run)

    @requests(on='/delete_run')
    def delete_run(self, docs: DocumentArray, parameters: RunParameters, **kwargs: Any) -> DocumentArray:
        """Delete a run with its artifact, log and checkpoints, and return it as it was."""
        account = self.registry.authenticate(parameters.secret)
        run = self._find(parameters)
        self.registry.delete_run(account.id, run.experiment_name, run.name)
        return answer(**describe_run(run))

    @requests(on='/delete_runs')
    def delete_runs(self, docs: DocumentArray, parameters: DeleteRunsParameters, **kwargs: Any) -> DocumentArray:
        """Delete all runs of an experiment, or of all, and return what they were. None of them, if one is at work."""
        account = self.registry.authenticate(parameters.secret)
        deleted = self.registry.delete_runs(account.id, parameters.experiment_name)
        return answer(deleted=len(deleted), items=[describe_run(run) for run in deleted])

    @requests(on='/create_experiment')
    def create_experiment(self, docs: DocumentArray, parameters: ExperimentParameters, **kwargs: Any) -> DocumentArray:
        """The experiment of this name, made if there is none."""
        account = self.registry.authenticate(parameters.secret)
        made = self.registry.create_experiment(account.id, parameters.name, parameters.description)
        return answer(**describe_experiment(made))

    @requests(on='/experiment')
    def experiment(self, docs: DocumentArray, parameters: ExperimentParameters, **kwargs: Any) -> DocumentArray:
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_experiment(self.registry.get_experiment(account.id, parameters.name)))

    @requests(on='/experiments')
    def experiments(self, docs: DocumentArray, parameters: PageParameters, **kwargs: Any) -> DocumentArray:
        """A page of experiments, the newest first."""
        account = self.registry.authenticate(parameters.secret)
        found = self.registry.list_experiments(account.id, parameters.page, parameters.size)
        return answer_page(found, describe_experiment)

    @requests(on='/delete_experiments')
    def delete_experiments(
        self, docs: DocumentArray, parameters: DeleteExperimentsParameters, **kwargs: Any
    ) -> DocumentArray:
        """Delete experiments with all their runs, and return what they were. Nothing, if a run is at work."""
        account = self.registry.authenticate(parameters.secret)
        deleted = self.registry.delete_experiments(account.id, parameters.names)
        return answer(items=[describe_experiment(experiment) for experiment in deleted])

    @requests(on='/logs')
    def logs(self, docs: DocumentArray, parameters: LogParameters, **kwargs: Any) -> DocumentArray:
        """The log from `offset` on, at most 1 MiB of it, and in the tags the offset of what follows."""
        run = self._find(parameters)
        text, offset = read_log(self.registry, run.id, parameters.offset)
        return answer(text=text, offset=offset, status=run.status)

    @requests(on='/logstream')
    async def logstream(self, doc: Document, **kwargs: Any) -> AsyncIterator[Document]:
        """The log from `offset` on in pieces, each with the offset of what follows, until the run has ended.

        The first one is empty. One with bytes that are no text has them as they are in its `blob`.
        """
        parameters = LogParameters(**doc.tags)
        run = await asyncio.to_thread(self._find, parameters)
        offset, silent = parameters.offset, 0
        # the answer begins with it, over HTTP too: until then the gateway does not notice that a caller has gone
        yield answer(text='', offset=offset, status=run.status)[0]
        while True:
            run = await asyncio.to_thread(self.registry.get_run_by_id, run.id)
            data, text = await asyncio.to_thread(read_piece, self.registry, run.id, offset)
            if data:
                silent = 0
                offset += len(data)
                blob = data if text.encode() != data else None
                yield answer(text=text, blob=blob, offset=offset, status=run.status)[0]
                continue
            if run.status not in (CREATED, STARTED):
                if silent * POLL > LAST_WORDS:
                    return
                silent += 1
            await asyncio.sleep(POLL)

    @requests(on='/metrics')
    def metrics(self, docs: DocumentArray, parameters: RunParameters, **kwargs: Any) -> DocumentArray:
        """Retrieval metrics before and after the training."""
        return answer(**(self._find_finished(parameters).metrics or {}))

    @requests(on='/examples')
    def examples(self, docs: DocumentArray, parameters: RunParameters, **kwargs: Any) -> DocumentArray:
        """Some queries with their matches, before and after the training."""
        return answer(**(self._find_finished(parameters).examples or {}))

    @requests(on='/artifact')
    def artifact(self, docs: DocumentArray, parameters: ArtifactParameters, **kwargs: Any) -> DocumentArray:
        """A piece of the zip file of an artifact, with its id, which a reference may mean no more the next time."""
        account = self.registry.authenticate(parameters.secret)
        artifact = self.registry.find_artifact(account.id, parameters.artifact_id)
        piece = self.registry.read_artifact(artifact, parameters.offset, parameters.length)
        return answer(
            blob=piece,
            id=artifact.id,
            name=artifact.name,
            size=artifact.size,
            sha256=artifact.sha256,
            offset=parameters.offset,
        )

    @requests(on='/artifacts')
    def artifacts(self, docs: DocumentArray, parameters: PageParameters, **kwargs: Any) -> DocumentArray:
        """A page of the account's artifacts, the newest first."""
        account = self.registry.authenticate(parameters.secret)
        found = self.registry.list_artifacts(account.id, parameters.page, parameters.size)
        return answer_page(found, describe_artifact)

    @requests(on='/promote')
    def promote(self, docs: DocumentArray, parameters: PromoteParameters, **kwargs: Any) -> DocumentArray:
        """Have an alias name an artifact from now on."""
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_promotion(self.registry.promote(account.id, parameters.alias, parameters.artifact)))

    @requests(on='/rollback')
    def rollback(self, docs: DocumentArray, parameters: AliasParameters, **kwargs: Any) -> DocumentArray:
        """Have an alias name the artifact that it named before."""
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_promotion(self.registry.roll_back(account.id, parameters.alias)))

    @requests(on='/aliases')
    def aliases(self, docs: DocumentArray, parameters: PageParameters, **kwargs: Any) -> DocumentArray:
        """A page of what the aliases name now, by their names."""
        account = self.registry.authenticate(parameters.secret)
        found = self.registry.list_promotions(account.id, parameters.page, parameters.size)
        return answer_page(found, describe_promotion)

    @requests(on='/alias')
    def alias(self, docs: DocumentArray, parameters: HistoryParameters, **kwargs: Any) -> DocumentArray:
        """What an alias names now, with a page of its history, the newest first."""
        account = self.registry.authenticate(parameters.secret)
        now = self.registry.get_promotion(account.id, parameters.alias)
        found = self.registry.list_history(account.id, parameters.alias, parameters.page, parameters.size)
        history = [describe_promotion(promotion) for promotion in found.items]
        return answer(**describe_promotion(now), history=history, history_total=found.total)

    @requests(on='/delete_alias')
    def delete_alias(self, docs: DocumentArray, parameters: AliasParameters, **kwargs: Any) -> DocumentArray:
        """Delete an alias with its history, and return what it named."""
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_promotion(self.registry.delete_alias(account.id, parameters.alias)))

    @requests(on='/create_tuning_task')
    def create_tuning_task(
        self, docs: DocumentArray, parameters: NewTuningTaskParameters, **kwargs: Any
    ) -> DocumentArray:
        """Have a method learn from a batch of clicks, and return the task. The same key again gives the same task."""
        account = self.registry.authenticate(parameters.secret)
        method = load_method(parameters.fine_tuning_method)
        self._check_start(account.id, method)
        config = {'model': method.model, 'loss': method.loss, 'device': method.fit.get('device', 'cuda')}
        task, _ = self.registry.tuning.create_task(
            account.id,
            method.name,
            config,
            batch_id=parameters.batch_id,
            metadata=parameters.metadata,
            idempotency_key=parameters.idempotency_key,
        )
        self.supervisor.wake()
        return answer(**describe_task(task))

    @requests(on='/tuning_task')
    def tuning_task(self, docs: DocumentArray, parameters: TuningTaskParameters, **kwargs: Any) -> DocumentArray:
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_task(self.registry.tuning.get_task(account.id, parameters.task_id)))

    @requests(on='/tuning_tasks')
    def tuning_tasks(self, docs: DocumentArray, parameters: TuningTasksParameters, **kwargs: Any) -> DocumentArray:
        """Some tasks, the oldest first."""
        account = self.registry.authenticate(parameters.secret)
        found = self.registry.tuning.list_tasks(account.id, parameters.skip, parameters.limit, parameters.status)
        return answer(items=[describe_task(task) for task in found])

    @requests(on='/cancel_tuning_task')
    def cancel_tuning_task(self, docs: DocumentArray, parameters: TuningTaskParameters, **kwargs: Any) -> DocumentArray:
        """End a task, whatever its status, and return it. What was promoted stays so."""
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_task(self.registry.tuning.cancel_task(account.id, parameters.task_id)))

    @requests(on='/restart_tuning_task')
    def restart_tuning_task(
        self, docs: DocumentArray, parameters: TuningTaskParameters, **kwargs: Any
    ) -> DocumentArray:
        """Have a task that has ended worked on again, and return it. One that waits or is at work goes on."""
        account = self.registry.authenticate(parameters.secret)
        task = self.registry.tuning.restart_task(account.id, parameters.task_id)
        self.supervisor.wake()
        return answer(**describe_task(task))

    @requests(on='/create_token')
    def create_token(self, docs: DocumentArray, parameters: CreateTokenParameters, **kwargs: Any) -> DocumentArray:
        """A new token of the account. This is the one time that it is shown."""
        account = self.registry.authenticate(parameters.secret)
        days = parameters.days
        if days is not None and timedelta(days=days) < timedelta(seconds=1):
            raise ParameterError(f'days is {days:g}, which is less than a second: give more, or none for no end')
        expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
        token, kept = self.registry.issue_token(account.id, parameters.name, expires_at)
        return answer(**describe_token(kept), token=token)

    @requests(on='/tokens')
    def tokens(self, docs: DocumentArray, parameters: PageParameters, **kwargs: Any) -> DocumentArray:
        """A page of the account's tokens, the oldest first; not the tokens themselves."""
        account = self.registry.authenticate(parameters.secret)
        found = self.registry.list_tokens(account.id, parameters.page, parameters.size)
        return answer_page(found, describe_token)

    @requests(on='/revoke_token')
    def revoke_token(self, docs: DocumentArray, parameters: RevokeTokenParameters, **kwargs: Any) -> DocumentArray:
        """Make a token worthless from now on: also the one that asks."""
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_token(self.registry.revoke_token(account.id, parameters.id)))

    @requests(on='/whoami')
    def whoami(self, docs: DocumentArray, parameters: TokenParameters, **kwargs: Any) -> DocumentArray:
        return answer(account=self.registry.authenticate(parameters.secret).name)

    @requests(on='/usage')
    def usage(self, docs: DocumentArray, parameters: TokenParameters, **kwargs: Any) -> DocumentArray:
        """What the account has of data sets, artifacts, checkpoints, search items and runs, and what it may have."""
        account = self.registry.authenticate(parameters.secret)
        return answer(**describe_usage(self.registry.usage(account.id)))

    @requests
    def unknown(self, docs: DocumentArray, **kwargs: Any) -> DocumentArray:
        raise unknown_endpoint(self)

    def _check_start(self, account_id: str, method: Method) -> None:
        """Refuse a method whose model is certainly not to be had, unless a task would begin with another one.

        :raises ParameterError: there is no such model.
        """
        try:
            self.registry.get_promotion(account_id, method.promoted_alias)
        except NotFoundError:
            check_model_exists(method.config({}, train_data='clicks'))

    def _find(self, parameters: RunParameters) -> RunRecord:
        account = self.registry.authenticate(parameters.secret)
        if parameters.run_id is None:
            return self.registry.get_run(account.id, parameters.experiment_name, parameters.run_name or '')
        run = self.registry.get_run_by_id(parameters.run_id)
        if run.account_id != account.id or parameters.run_name not in (None, run.name):
            raise NotFoundError(f'There is no run of the id {parameters.run_id[:80]!r}')
        return run

    def _find_finished(self, parameters: RunParameters) -> RunRecord:
        run = self._find(parameters)
        if run.status == FAILED:
            raise RunFailedError(f'the run {run.name!r} failed: {run.details}')
        if run.status == CANCELLED:
            raise RunFailedError(f'the run {run.name!r} was cancelled: {run.details}')
        if run.status != FINISHED:
            raise RunInProgressError(f'the run {run.name!r} has to be FINISHED first, it is {run.status}')
        return run


def _datasets(config: FitConfig) -> list[tuple[str, Role]]:
    """The names of the data sets that a run reads, and what each is for."""
    roles: list[tuple[str | None, Role]] = [(config.train_data, 'train'), (config.eval_data, 'eval')]
    for evaluation in config.evaluations:
        roles += [(evaluation.query_data, 'query'), (evaluation.index_data, 'index')]
    return [(name, role) for name, role in roles if name is not None]
