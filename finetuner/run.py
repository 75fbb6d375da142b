"""A fine-tuning run: how far it is, what it wrote, what came out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from finetuner.constants import ARTIFACTS_DIR, CANCELLED, CREATED, ENDED, FAILED, FINISHED, TRAINING_TASK, TUNING_TASK
from finetuner.excepts import FinetunerServerError, RunFailedError, RunInProgressError, RunPreparingError
from finetuner.results import Progress, RunStatus, read_result

if TYPE_CHECKING:
    from finetuner.client.session import Session


class Run:
    """A run of a service. `finetuner.fit`, `get_run` and `list_runs` make them.

    :param session: the service, and who asks.
    :param record: what the service says of the run: id, name, experiment_name, status, details, artifact_id,
        created_at, config, progress.
    """

    def __init__(self, session: Session, record: Mapping[str, Any]):
        self._session = session
        self._record = dict(record)

    def __repr__(self) -> str:
        return f'Run(name={self.name!r}, experiment_name={self.experiment_name!r}, status={self._record["status"]!r})'

    @property
    def name(self) -> str:
        return self._record['name']

    @property
    def experiment_name(self) -> str:
        return self._record['experiment_name']

    @property
    def id(self) -> str | None:
        """What no other run has or will have, unlike a name; None where the service tells none."""
        return self._record.get('id')

    @property
    def description(self) -> str:
        return self._record.get('description') or ''

    @property
    def task(self) -> str:
        """'training'."""
        return self._record.get('task') or TRAINING_TASK

    @property
    def train_data(self) -> str:
        """:raises ValueError: the run trains: it produces no data."""
        raise ValueError(f'{self.task} run does not produce data.')

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of `fit`, with what the service filled in."""
        return self._record['config']

    @property
    def created_at(self) -> str:
        """In ISO 8601."""
        return self._record['created_at']

    @property
    def record(self) -> dict[str, Any]:
        """All that the service last said of the run; no request is made."""
        return self._record

    @property
    def artifact_id(self) -> str:
        """The id of the tuned model, for `get_model` and for FinetunerExecutor.

        :raises RunInProgressError: the run is not finished.
        :raises RunFailedError: the run failed or was cancelled.
        """
        return self._finished_artifact('get the artifact id')

    def status(self) -> RunStatus:
        """`{'status': 'CREATED' | 'STARTED' | 'FINISHED' | 'FAILED' | 'CANCELLED', 'details': ...}`, as of now."""
        return _status(self.refresh())

    def progress(self) -> Progress:
        """How far the run is, as of now: stage, epoch, step, loss, speed and the seconds that are left."""
        record = self.refresh()
        known = {name: value for name, value in (record.get('progress') or {}).items() if value is not None}
        place = {'attempt': max(1, record.get('attempts') or 1), 'queue_position': record.get('queue_position')}
        return read_result(Progress, {**known, **place})

    def cancel(self) -> RunStatus:
        """End the run. Its worker stops within seconds, after a checkpoint if TrainingCheckpoint is among the
        callbacks. A run that has ended stays as it is.

        :return: the status that the run has now, as `status()` tells it.
        """
        self._record = self._session.request('/cancel', **self._key()).tags
        return _status(self._record)

    def resume(self) -> Run:
        """Have a failed or cancelled run worked on again: from its last checkpoint, or from the beginning without one.

        :return: itself.
        :raises RegistryError: the run has finished.
        """
        self._record = self._session.request('/resume', **self._key()).tags
        return self

    def logs(self) -> str:
        """All that the run has logged so far, in all of its attempts.

        :raises RunPreparingError: the run has never started.
        """
        status = self.refresh()['status']
        text, offset = '', 0
        while True:
            part, offset, _ = self.logs_from(offset)
            if not part:
                break
            text += part
        if not text and status == CREATED:
            raise RunPreparingError(f'the run {self.name} waits for its start: there are no logs yet')
        return text

    def stream_logs(self, interval: float = 5) -> Iterator[str]:
        """Yield pieces of the log as they are written, until the run has ended.

        :param interval: seconds between two looks at a run that waits for its start. Where the service is reached over
            HTTP, the log is looked at so often, too, but at least once a second.
        """
        self._wait_for_start(interval)
        offset = 0
        while True:
            for text, seen in self._stream_from(offset):
                offset = seen
                yield text
            # The stream ended or broke: what it left out is read, and if the run goes on, so do we.
            text, offset, status = self.logs_from(offset)
            if text:
                yield text
            elif status in ENDED:
                return
            else:
                time.sleep(min(interval, 1))

    def wait(self, interval: float = 1.0, timeout: float | None = None) -> Run:
        """Block until the run has finished, behind a progress bar.

        :param interval: seconds between two looks.
        :param timeout: seconds after which to give up; None waits for ever. The run goes on.
        :return: itself.
        :raises RunFailedError: with the reason.
        :raises TimeoutError: the run has not ended in time.
        :raises FinetunerServerError: the service has been silent for a minute. The run may go on.
        """
        from finetuner.progress import Watch

        with Watch(self, interval, timeout) as watch:
            while not watch.look():
                time.sleep(watch.pause())
        return self

    def metrics(self) -> dict[str, dict[str, float]]:
        """`{'before': {name: value}, 'after': {name: value}}` of the evaluation; empty if there was none.

        :raises RunInProgressError: the run is not finished.
        :raises RunFailedError: the run failed.
        """
        return self._result('/metrics', 'get the metrics')

    def display_metrics(self) -> None:
        """Print the metrics before and after as a table, or that nothing was evaluated."""
        from finetuner.console import console, metrics_table

        metrics = self.metrics()
        if not metrics.get('after'):
            console.print(f'The run {self.name} evaluated nothing: give fit eval_data, or an EvaluationCallback.')
            return
        console.print(metrics_table(metrics, self.config))

    def example_results(self) -> dict[str, dict[str, list[str]]]:
        """`{'before': {query: [match, ...]}, 'after': {query: [match, ...]}}`, best match first.

        :raises RunInProgressError: the run is not finished.
        :raises RunFailedError: the run failed.
        """
        examples = self._result('/examples', 'get the examples')
        return {stage: examples[stage] for stage in ('before', 'after') if stage in examples}

    def display_examples(self, k: int = 5, queries: int = 5) -> None:
        """Print the best `k` matches of some queries before and after, the right ones marked, or that none were kept.
        Queries whose matches changed come first."""
        from finetuner.console import console, examples_table

        examples = self._result('/examples', 'get the examples')
        if not examples.get('after'):
            is_task = TUNING_TASK in self.config
            advice = 'a task keeps none' if is_task else 'give fit EvaluationCallback(gather_examples=True)'
            console.print(f'The run {self.name} kept no examples: {advice}.')
            return
        console.print(examples_table(examples, k, queries))

    def save_artifact(self, directory: str = ARTIFACTS_DIR) -> str:
        """Download the tuned model.

        :return: its path, `<directory>/<run name>.zip`.
        :raises RunInProgressError: the run is not finished.
        :raises RunFailedError: the run failed.
        :raises ArtifactError: what arrived is not what the service holds.
        """
        from finetuner.client.artifacts import download

        return str(download(self._session, self._finished_artifact('save the artifact'), directory, f'{self.name}.zip'))

    def refresh(self) -> dict[str, Any]:
        """Ask the service for :attr:`record`, and return it."""
        self._record = self._session.request('/status', **self._key()).tags
        return self._record

    def require_finished(self, purpose: str = 'go on') -> None:
        """:param purpose: what it is needed for.

        :raises RunInProgressError: the run is not finished.
        :raises RunFailedError: the run failed or was cancelled.
        """
        if self._record['status'] not in ENDED:
            self.refresh()
        status = self._record['status']
        reason = (self._record.get('details') or 'no reason was given').rstrip('.')
        if status == FAILED:
            message = 'The run failed, please check the `logs` for detailed information.'
            raise RunFailedError(f'{message} {self.name}: {reason}')
        if status == CANCELLED:
            raise RunFailedError(f'The run was cancelled. {self.name}: {reason}. Its resume() goes on')
        if status != FINISHED:
            raise RunInProgressError(
                f'The run needs to be finished in order to {purpose}. {self.name} is {status}: its wait() returns then'
            )

    def _key(self) -> dict[str, Any]:
        """What names this very run to the service; by its name alone another might be found once this is deleted."""
        if self.id is not None:
            return {'run_id': self.id}
        return {'experiment_name': self.experiment_name, 'run_name': self.name}

    def _finished_artifact(self, purpose: str) -> str:
        self.require_finished(purpose)
        return self._record['artifact_id']

    def _result(self, endpoint: str, purpose: str) -> dict[str, Any]:
        self.require_finished(purpose)
        return self._session.request(endpoint, **self._key()).tags

    def _wait_for_start(self, interval: float) -> None:
        from finetuner.console import progress_console

        if self.refresh()['status'] != CREATED:
            return
        with progress_console.status(f'{self.name} waits for its start'):
            while self.refresh()['status'] == CREATED:
                time.sleep(interval)

    def logs_from(self, offset: int) -> tuple[str, int, str]:
        """(text from `offset` on, the offset after it, status of the run)"""
        answer = self._session.request('/logs', offset=offset, **self._key())
        return answer.text or '', int(answer.tags['offset']), answer.tags['status']

    def _stream_from(self, offset: int) -> Iterator[tuple[str, int]]:
        """(text, the offset after it) as they come, until the run or the connection ends."""
        try:
            for answer in self._session.stream('/logstream', offset=offset, **self._key()):
                seen = int(answer.tags['offset'])
                if seen > offset:  # a gateway that repeats a broken stream begins anew
                    offset = seen
                    yield answer.text or '', seen
        except FinetunerServerError:
            return


def _status(record: Mapping[str, Any]) -> RunStatus:
    return {'status': record['status'], 'details': record.get('details') or ''}
