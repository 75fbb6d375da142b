"""What is known of iterations, in MLflow: an experiment is an iteration, a run of it a training with some parameters.

An experiment has the tags `account`, `method`, `owner` (the run of the registry that carries it, then what it starts
from and by which method) and `state`. Of all trainings of an iteration one has a model: the best so far.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from training.errors import persistently
from training.iterations import parameters
from training.iterations.parameters import Parameters
from training.methods.method import Space
from training.mlflow_store import local_artifacts, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

logger = logging.getLogger(__name__)

Answer = TypeVar('Answer')

INITIAL, INITIAL_RUN = 'iteration / initial', 'initial_model'
MODEL = 'model'
"""The folder of a training's artifacts that its model is in."""
HAS_MODEL, QUALITY = 'model_uploaded', 'quality'
OPEN, PROMOTED, REFUSED = 'open', 'promoted', 'refused'
"""States of an iteration."""
FINISHED, PRUNED, ENDED = 'finished', 'pruned', ('finished', 'pruned')
"""Outcomes of a training, in its tag `outcome`."""
AT_ONCE = 1000
PATIENCE = 120.0
"""Seconds in which what fails is tried again. Of a server that is away, MLflow's own client has tried for longer by
then; a database that is locked, and an answer that breaks off, it gives up at once."""


class _PatientClient:
    """Does what a client of MLflow does, and tries again for a while what fails for a reason that may pass."""

    def __init__(self, client: MlflowClient):
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)
        return lambda *arguments, **options: _patiently(lambda: call(*arguments, **options))


def _patiently(call: Callable[[], Answer]) -> Answer:
    def tell(error: Exception) -> None:
        logger.warning('MLflow does not answer: trying again')

    return persistently(call, PATIENCE, tell)


@dataclass(frozen=True)
class Training:
    """A training of an iteration.

    :param run_id: of MLflow.
    :param name: of its parameters.
    :param texts: its parameters, as MLflow has them.
    :param outcome: 'finished', 'pruned', or None if it has not come to its end.
    :param quality: the main metric over the sessions by which trainings are compared; None if there is none yet.
    """

    run_id: str
    name: str
    texts: dict[str, str]
    outcome: str | None
    quality: float | None
    has_model: bool


@dataclass(frozen=True)
class Owned:
    """Whose an iteration is.

    :param run_id: of the registry.
    """

    experiment_id: str
    account_id: str
    run_id: str


class Tracker:
    """
    :param uri: of MLflow, default `MLFLOW_TRACKING_URI`, or else a database in `FINETUNER_HOME`.
    """

    def __init__(self, uri: str | None = None):
        self.impatient_client = _patiently(lambda: open_client(uri))
        self.client = cast('MlflowClient', _PatientClient(self.impatient_client))
        self._uri = self.impatient_client.tracking_uri
        folder = local_artifacts() if uri is None else None
        self._artifacts = None if folder is None else folder.as_uri()
        self.is_local = folder is not None

    def keep_initial(self, method: str, model: str, make: Callable[[], Path]) -> bool:
        """Keep the model that a method starts from, once. Whether it was new.

        :param model: what the method calls it.
        :param make: writes it, and returns the file.
        """
        experiment = self._experiment(INITIAL, {})
        query = f"tags.method = '{method}' and tags.model = '{_quoted(model)}' and metrics.{HAS_MODEL} = 1"
        if self.client.search_runs([experiment], query, max_results=1):
            return False
        tags = {'method': method, 'model': _quoted(model)}
        run = self.client.create_run(experiment, run_name=INITIAL_RUN, tags=tags)
        self.client.log_param(run.info.run_id, 'plugin_name', method)
        self.client.set_terminated(run.info.run_id)
        self._upload(run.info.run_id, make())
        # another task may have done the same at once: one of the two sees both, and whoever does keeps the same one
        first, *others = sorted(self.client.search_runs([experiment], query), key=_age)
        for other in others:
            self.client.delete_run(other.info.run_id)
            with suppress(FileNotFoundError):  # the other task deletes it, too
                self._delete_artifact(other)
        return bool(first.info.run_id == run.info.run_id)

    def begin(self, account_id: str, method: str, batch_id: str, owner: str) -> Iteration:
        """The iteration of a method on a batch. One that the same owner has begun goes on. What the same run has begun
        as another owner is removed, for nobody goes on with it; what another run has leaves its name, and all else as
        it is.

        :param owner: the id of a run, and after a space whatever else has to be the same.
        """
        name = _name(method, batch_id)
        found = self.client.get_experiment_by_name(name)
        if found is not None and (found.tags.get('owner') != owner or found.lifecycle_stage != 'active'):
            if found.lifecycle_stage == 'active' and _run_of(found.tags.get('owner', '')) == _run_of(owner):
                self._remove(found)
            else:
                self._rename(found)
        tags = {'account': account_id, 'method': method, 'batch': batch_id, 'owner': owner, 'state': OPEN}
        return Iteration(self, self._experiment(name, tags), name, method, batch_id)

    def iteration(self, experiment_id: str, method: str, batch_id: str) -> Iteration:
        """One that another process has begun."""
        return Iteration(self, experiment_id, _name(method, batch_id), method, batch_id)

    def last(self, account_id: str, method: str, other_than: str) -> Iteration | None:
        """The latest iteration of a method whose model was promoted.

        :param other_than: the id of an experiment that is not meant.
        """
        query = f"tags.account = '{account_id}' and tags.method = '{method}' and tags.state = '{PROMOTED}'"
        found = self.client.search_experiments(filter_string=query, order_by=['creation_time DESC'], max_results=2)
        for experiment in found:
            if experiment.experiment_id != other_than:
                batch = experiment.tags.get('batch', '')
                return Iteration(self, experiment.experiment_id, experiment.name, method, batch)
        return None

    def remove_others(self, account_id: str, method: str, kept: str) -> None:
        """Remove all iterations of a method but one, with their models, and but those that may go on."""
        query = f"tags.account = '{account_id}' and tags.method = '{method}' and tags.state != '{OPEN}'"
        for experiment in self.client.search_experiments(filter_string=query, max_results=AT_ONCE):
            if experiment.experiment_id != kept:
                self._remove(experiment)

    def owned(self) -> list[Owned]:
        """All iterations, of every account."""
        found: list[Owned] = []
        token = None
        while True:
            page = self.client.search_experiments(
                filter_string="name LIKE 'iteration / %'", max_results=AT_ONCE, page_token=token
            )
            for experiment in page:
                if owner := experiment.tags.get('owner'):
                    account_id = experiment.tags.get('account', '')
                    found.append(Owned(experiment.experiment_id, account_id, _run_of(owner)))
            if not (token := page.token):
                return found

    def remove(self, experiment_id: str) -> None:
        """Remove an iteration with its models."""
        self._remove(self.client.get_experiment(experiment_id))

    def _experiment(self, name: str, tags: Mapping[str, str]) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            if found.lifecycle_stage != 'active':
                self._set_stage(found.experiment_id, 'active')
            return str(found.experiment_id)
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.create_experiment(name, self._artifacts, dict(tags)))
        except MlflowException:  # another process has made it at once
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _remove(self, experiment: Experiment) -> None:
        """Remove the models of an iteration, and the iteration from all lists. Its name is free then."""
        for run in self._runs(experiment.experiment_id):
            self._delete_model(run)
            if run.info.status == 'RUNNING':  # its worker was lost
                self.client.set_terminated(run.info.run_id, 'KILLED')
        self._rename(experiment)
        self._set_stage(experiment.experiment_id, 'deleted')

    def _rename(self, experiment: Experiment) -> None:
        """Have an experiment leave its name to another: MLflow lets no two have one, even if one is deleted."""
        if experiment.lifecycle_stage != 'active':  # somebody else has deleted it; only so can it be renamed
            self._set_stage(experiment.experiment_id, 'active')
        self.client.rename_experiment(experiment.experiment_id, f'{experiment.name} / {experiment.experiment_id}')
        if experiment.lifecycle_stage != 'active':
            self._set_stage(experiment.experiment_id, 'deleted')

    def _set_stage(self, experiment_id: str, stage: str) -> None:
        """Delete an experiment, or restore it.

        :param stage: 'deleted' or 'active'.
        """
        from mlflow.exceptions import MlflowException

        change = self.client.delete_experiment if stage == 'deleted' else self.client.restore_experiment
        try:
            change(experiment_id)
        except MlflowException:  # MLflow does neither twice, and the answer to the first try may have been lost
            if self.client.get_experiment(experiment_id).lifecycle_stage != stage:
                raise

    def _runs(self, experiment_id: str) -> list[Run]:
        found, token = [], None
        while True:
            page = self.client.search_runs([experiment_id], max_results=AT_ONCE, page_token=token)
            found += list(page)
            if not (token := page.token):
                return found

    def _upload(self, run_id: str, path: Path) -> None:
        self.client.log_artifact(run_id, str(path), MODEL)
        self.client.log_metric(run_id, HAS_MODEL, 1.0)

    def _delete_model(self, run: Run) -> None:
        if not run.data.metrics.get(HAS_MODEL):
            return
        self._delete_artifact(run)
        self.client.log_metric(run.info.run_id, HAS_MODEL, 0.0)
        self.client.log_metric(run.info.run_id, 'model_deleted', 1.0)

    def _delete_artifact(self, run: Run) -> None:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        artifacts = get_artifact_repository(run.info.artifact_uri, tracking_uri=self._uri)
        _patiently(lambda: artifacts.delete_artifacts(MODEL))


@dataclass(frozen=True)
class Iteration:
    """An experiment of MLflow. All that it does is also there for a worker that comes after a lost one.

    :param id: of the experiment.
    """

    tracker: Tracker
    id: str
    name: str
    method: str
    batch_id: str

    def trainings(self) -> list[Training]:
        """All of them, the oldest first."""
        return [_training(run) for run in sorted(self.tracker._runs(self.id), key=_age)]

    def top(self, space: Space, count: int) -> list[Parameters]:
        """The parameters of the best trainings, with their types, as far as the space allows them still."""
        known = [training for training in self.trainings() if training.quality is not None and training.outcome]
        known.sort(key=lambda training: -(training.quality or 0.0))
        found = [parameters.read(space, training.texts) for training in known]
        return [values for values in found if values is not None][:count]

    def start(self, values: Parameters) -> str:
        """The id of the run of a training, which is made if there is none of these parameters."""
        from mlflow.entities import Param

        name = parameters.name_of(values)
        if (run_id := self._oldest(name)) is None:
            made = self.tracker.client.create_run(self.id, run_name=name).info.run_id
            # not what was made: if an answer was lost, and it was made twice, the next one finds the oldest
            run_id = self._oldest(name) or str(made)
        else:
            self.tracker.client.update_run(run_id, 'RUNNING')
        # also of one that is there: the worker that made it may have been lost before it could
        texts = {'batch_id': self.batch_id, 'plugin_name': self.method, **parameters.write(values)}
        self.tracker.client.log_batch(run_id, params=[Param(key, text) for key, text in texts.items()])
        return run_id

    def _oldest(self, name: str) -> str | None:
        return next((training.run_id for training in self.trainings() if training.name == name), None)

    def history(self, run_id: str, metric: str) -> dict[int, float]:
        """By epoch, what was told of a training."""
        return {found.step: found.value for found in self.tracker.client.get_metric_history(run_id, metric)}

    def log(self, run_id: str, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.tracker.client.log_batch(
            run_id, metrics=[Metric(name, float(value), now, step) for name, value in figures.items()]
        )

    def end(self, run_id: str, outcome: str, quality: float) -> None:
        """A training has come to its end: 'finished' or 'pruned'."""
        self.tracker.client.log_metric(run_id, QUALITY, quality)
        self.tracker.client.set_tag(run_id, 'outcome', outcome)
        self.tracker.client.set_terminated(run_id, 'FINISHED' if outcome == FINISHED else 'KILLED')

    def break_off(self, run_id: str, status: str) -> None:
        """A training has not come to its end: 'FAILED' or 'KILLED'. Whatever goes wrong here is not what matters."""
        with suppress(Exception):
            self.tracker.impatient_client.set_terminated(run_id, status)

    def keep_model(self, run_id: str, path: Path) -> None:
        """Make a model the one of the iteration; the one before is deleted."""
        self.tracker._upload(run_id, path)
        for run in self.tracker._runs(self.id):
            if run.info.run_id != run_id:
                self.tracker._delete_model(run)

    def fetch_model(self, run_id: str, folder: Path) -> Path:
        """The file of a training's model, copied into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(self.tracker.client.download_artifacts(run_id, MODEL, str(folder)))
        return next(path.iterdir())

    def conclude(self, state: str) -> None:
        """'promoted' or 'refused'."""
        self.tracker.client.set_experiment_tag(self.id, 'state', state)


def _name(method: str, batch_id: str) -> str:
    return f'iteration / {method} / {batch_id}'


def _run_of(owner: str) -> str:
    """The id of the run, in the registry, of the owner of an iteration."""
    return owner.partition(' ')[0]


def _age(run: Run) -> tuple[int, str]:
    """The oldest is the lowest."""
    return run.info.start_time, run.info.run_id


def _training(run: Run) -> Training:
    metrics: dict[str, Any] = run.data.metrics
    return Training(
        run_id=run.info.run_id,
        name=run.info.run_name,
        texts=dict(run.data.params),
        outcome=run.data.tags.get('outcome'),
        quality=metrics.get(QUALITY),
        has_model=bool(metrics.get(HAS_MODEL)),
    )


def _quoted(text: str) -> str:
    """A model may be a path: what would end the text of a filter is left out of it."""
    return text.replace("'", '')
