"""Watching a run until it has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finetuner.client.names import KINDS, dataset_name
from finetuner.constants import CREATED, ENDED, STARTED
from finetuner.excepts import FinetunerServerError

if TYPE_CHECKING:
    from types import TracebackType

    from finetuner.run import Run

PATIENCE = 60.0  # seconds of silence of the service that are borne


class Watch:
    """Looks at a run, as often as it is asked to, behind a progress bar. Those who wait sleep between two looks, each
    in their way.

    :param interval: seconds between two looks.
    :param timeout: seconds after which to give up; None is never.
    """

    def __init__(self, run: Run, interval: float, timeout: float | None):
        from rich.progress import MofNCompleteColumn, TextColumn

        from finetuner.console import make_progress

        self._run = run
        self._interval = interval
        self._timeout = timeout
        self._began = self._answered = time.monotonic()
        self._bar = make_progress(MofNCompleteColumn(), TextColumn('{task.fields[facts]}'))
        self._task = self._bar.add_task(run.name, total=None, facts='')

    def __enter__(self) -> Watch:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def look(self) -> bool:
        """Whether the run has finished.

        :raises RunFailedError: it has ended otherwise.
        :raises TimeoutError: it has not ended in time.
        :raises FinetunerServerError: the service has been silent for too long.
        """
        try:
            record = self._run.refresh()
        except FinetunerServerError:
            if time.monotonic() - self._answered > PATIENCE:
                raise
            self._bar.update(self._task, description=f'{self._run.name}: the service does not answer')
        else:
            self._answered = time.monotonic()
            self._show(record)
            if record['status'] in ENDED:
                self._run.require_finished()
                return True
        if self._timeout is not None and self._left() <= 0:
            raise TimeoutError(
                f'the run {self._run.name} has not ended within {self._timeout:g} seconds. It goes on: wait() '
                'again, or cancel() it'
            )
        return False

    def pause(self) -> float:
        """Seconds until the next look."""
        return self._interval if self._timeout is None else max(0.0, min(self._interval, self._left()))

    def _left(self) -> float:
        return self._began + (self._timeout or 0.0) - time.monotonic()

    def _show(self, record: Mapping[str, Any]) -> None:
        stage, facts = describe_progress(record)
        done = record.get('progress') or {}
        self._bar.update(self._task, description=f'{self._run.name}: {stage}', facts=facts)
        self._bar.update(self._task, completed=done.get('step', 0), total=done.get('steps'))


def describe_progress(record: Mapping[str, Any]) -> tuple[str, str]:
    """(what a run is doing, how it goes), such as ('Training epoch 2/5', 'loss 0.1234 · 310 samples/s · 0:21 left')."""
    attempts = int(record.get('attempts') or 1)
    again = [f'attempt {attempts}'] if attempts > 1 else []
    progress = record.get('progress') or {}
    if record['status'] == CREATED and record.get('queue_position') is not None:
        again.insert(0, f'place {record["queue_position"]:.0f} in the queue')
    if record['status'] != STARTED or not progress.get('stage'):
        is_over = record['status'] in ENDED
        return record.get('details') or record['status'], '' if is_over else ' · '.join(again)
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
    return f'{stage}{epoch}', ' · '.join(facts + again)
