"""A fine-tuning run: how far it is, what it wrote, what came out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from finetuner.excepts import FinetunerServerError, RunFailedError, RunInProgressError, RunPreparingError

if TYPE_CHECKING:
    from finetuner.client.session import Session

CREATED, STARTED, FINISHED, FAILED = 'CREATED', 'STARTED', 'FINISHED', 'FAILED'
CANCELLED = 'CANCELLED'
ENDED = (FINISHED, FAILED, CANCELLED)
PREFIX = 'finetuner-dastorage'  # of the names of uploaded data sets
KINDS = ('train', 'eval', 'query', 'index')
MAX_NAME = 200  # the longest name of a data set
PATIENCE = 60.0  # seconds that `wait` bears a service that does not answer


class Run:
    """A run of a service. `finetuner.fit`, `get_run` and `list_runs` make them.

    :param session: the service, and who asks.
    :param record: what the service says of the run: name, experiment_name, status, details, artifact_id, created_at,
        config, progress.
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
        self._require_finished('the artifact')
        return self._record['artifact_id']

    def status(self) -> dict[str, str]:
        """`{'status': 'CREATED' | 'STARTED' | 'FINISHED' | 'FAILED' | 'CANCELLED', 'details': ...}`, as of now."""
        record = self._refresh()
        return {'status': record['status'], 'details': record.get('details') or ''}

    def cancel(self) -> dict[str, str]:
        """End the run. Its worker stops within seconds, after a checkpoint if TrainingCheckpoint is among the
        callbacks. A run that has ended stays as it is.

        :return: the status that the run has now, as `status()` tells it.
        """
        self._record = self._session.request('/cancel', **self._key()).tags
        return {'status': self._record['status'], 'details': self._record.get('details') or ''}

    def resume(self) -> Run:
        """Have a failed or cancelled run worked on again: from its last checkpoint, or from the beginning without one.

        :return: itself.
        :raises RegistryError: the run has finished.
        """
        self._record = self._session.request('/resume', **self._key()).tags
        return self

    def logs(self) -> str:
        """All that the run has logged so far.

        :raises RunPreparingError: the run has not started.
        """
        if self._refresh()['status'] == CREATED:
            raise RunPreparingError(f'the run {self.name} waits for its start: there are no logs yet')
        text, offset = '', 0
        while True:
            part, offset, _ = self._logs_from(offset)
            if not part:
                return text
            text += part

    def stream_logs(self, interval: int = 5) -> Iterator[str]:
        """Yield pieces of the log as they are written, until the run has ended.

        :param interval: seconds between two looks at a run that waits for its start.
        """
        self._wait_for_start(interval)
        offset = 0
        while True:
            for text, seen in self._stream_from(offset):
                offset = seen
                yield text
            # The stream ended or broke: what it left out is read, and if the run goes on, so do we.
            text, offset, status = self._logs_from(offset)
            if text:
                yield text
            elif status in ENDED:
                return
            else:
                time.sleep(min(interval, 1))

    def wait(self, interval: float = 1.0) -> Run:
        """Block until the run has finished, behind a progress bar.

        :param interval: seconds between two looks.
        :return: itself.
        :raises RunFailedError: with the reason.
        :raises FinetunerServerError: the service has been silent for a minute. The run may go on.
        """
        from rich.progress import MofNCompleteColumn, TextColumn

        from finetuner.console import make_progress

        answered = time.monotonic()
        with make_progress(MofNCompleteColumn(), TextColumn('{task.fields[facts]}')) as progress:
            task = progress.add_task(self.name, total=None, facts='')
            while True:
                try:
                    record = self._refresh()
                except FinetunerServerError:
                    if time.monotonic() - answered > PATIENCE:
                        raise
                    progress.update(task, description=f'{self.name}: the service does not answer')
                else:
                    answered = time.monotonic()
                    if record['status'] in ENDED:
                        break
                    stage, facts = describe_progress(record)
                    done = record.get('progress') or {}
                    progress.update(task, description=f'{self.name}: {stage}', facts=facts)
                    progress.update(task, completed=done.get('step', 0), total=done.get('steps'))
                time.sleep(interval)
        if record['status'] != FINISHED:
            raise RunFailedError(self._failure())
        return self

    def metrics(self) -> dict[str, dict[str, float]]:
        """`{'before': {name: value}, 'after': {name: value}}` of the evaluation; empty if there was none.

        :raises RunInProgressError: the run is not finished.
        :raises RunFailedError: the run failed.
        """
        return self._result('/metrics', 'the metrics')

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
        examples = self._result('/examples', 'the examples')
        return {stage: examples[stage] for stage in ('before', 'after') if stage in examples}

    def display_examples(self, k: int = 5, queries: int = 5) -> None:
        """Print the best `k` matches of some queries before and after, the right ones marked, or that none were kept.
        Queries whose matches changed come first."""
        from finetuner.console import console, examples_table

        examples = self._result('/examples', 'the examples')
        if not examples.get('after'):
            console.print(f'The run {self.name} kept no examples: give fit EvaluationCallback(gather_examples=True).')
            return
        console.print(examples_table(examples, k, queries))

    def save_artifact(self, directory: str = 'artifacts/') -> str:
        """Download the tuned model.

        :return: its path, `<directory>/<run name>.zip`.
        :raises RunInProgressError: the run is not finished.
        :raises RunFailedError: the run failed.
        :raises ArtifactError: what arrived is not what the service holds.
        """
        from finetuner.client.artifacts import download

        return str(download(self._session, self.artifact_id, directory, f'{self.name}.zip'))

    def _refresh(self) -> dict[str, Any]:
        self._record = self._session.request('/status', **self._key()).tags
        return self._record

    def _key(self) -> dict[str, Any]:
        return {'experiment_name': self.experiment_name, 'run_name': self.name}

    def _require_finished(self, what: str) -> None:
        if self._record['status'] not in ENDED:
            self._refresh()
        status = self._record['status']
        if status in (FAILED, CANCELLED):
            raise RunFailedError(self._failure())
        if status != FINISHED:
            raise RunInProgressError(f'the run {self.name} is {status}: it needs to be finished to get {what}')

    def _failure(self) -> str:
        reason = (self._record.get('details') or 'no reason was given').rstrip('.')
        if self._record['status'] == CANCELLED:
            return f'the run {self.name} was cancelled: {reason}. Its resume() goes on'
        return f'the run {self.name} failed: {reason}. See its logs'

    def _result(self, endpoint: str, what: str) -> dict[str, Any]:
        self._require_finished(what)
        return self._session.request(endpoint, **self._key()).tags

    def _wait_for_start(self, interval: float) -> None:
        from finetuner.console import progress_console

        if self._refresh()['status'] != CREATED:
            return
        with progress_console.status(f'{self.name} waits for its start'):
            while self._refresh()['status'] == CREATED:
                time.sleep(interval)

    def _logs_from(self, offset: int) -> tuple[str, int, str]:
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


def dataset_name(experiment_name: str, run_name: str, kind: str) -> str:
    """The name of a run's uploaded data: `finetuner-dastorage-EXPERIMENT-RUN-KIND`.

    Where that could mean another run too, as the experiment has a hyphen, or is too long, it is cut and gets a hash.

    :param kind: one of :data:`KINDS`, or one with a number, as in 'query-2'.
    """
    name = f'{PREFIX}-{experiment_name}-{run_name}-{kind}'
    if '-' not in experiment_name and len(name) <= MAX_NAME:
        return name
    digest = hashlib.sha256(f'{experiment_name}\0{run_name}\0{kind}'.encode()).hexdigest()[:16]
    return f'{name[: MAX_NAME - 17]}-{digest}'


def describe_progress(record: Mapping[str, Any]) -> tuple[str, str]:
    """(what a run is doing, how it goes), such as ('Training epoch 2/5', 'loss 0.1234 · 310 samples/s · 0:21 left')."""
    progress = record.get('progress') or {}
    if record['status'] != STARTED or not progress.get('stage'):
        return record.get('details') or record['status'], ''
    stage = progress['stage']
    for kind in KINDS:
        stage = stage.replace(dataset_name(record['experiment_name'], record['name'], kind), kind)
    facts = []
    if progress.get('loss') is not None:
        facts.append(f'loss {progress["loss"]:.4f}')
    if progress.get('samples_per_second') is not None:
        facts.append(f'{progress["samples_per_second"]:.0f} samples/s')
    if progress.get('eta') is not None and progress['step'] < progress['steps']:
        minutes, seconds = divmod(round(progress['eta']), 60)
        facts.append(f'{minutes}:{seconds:02d} left')
    epoch = f' epoch {progress["epoch"]:.0f}/{progress["epochs"]:.0f}' if progress.get('epoch') else ''
    return f'{stage}{epoch}', ' · '.join(facts)
