"""The functions and classes of `finetuner` that take time, to be awaited: `run = await aio.fit(...)`.

Each is the function of the same name, in a thread. Most of the time is not spent on the network: files are parsed,
documents encoded, archives hashed and flushed to disk, and none of that may block an event loop, so there must be
threads whatever the channel. A thread is held only as long as there is something to do: `run.wait()` and
`run.stream_logs()` sleep in the event loop between two short requests, so hundreds of runs can be awaited at once. The
threads are those of the event loop (`loop.set_default_executor` sets how many), and end with it.

A task that is cancelled leaves at once, and what it began ends before its next request: `fit` sends no further part and
starts no run. The one request that is on its way is carried out.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import finetuner
from finetuner import experiment, inference, run
from finetuner.client import encoding
from finetuner.client.session import stopped
from finetuner.constants import CREATED, ENDED
from finetuner.progress import Watch

if TYPE_CHECKING:
    from finetuner.client.upload import Data
    from finetuner.data import CSVOptions

P = ParamSpec('P')
T = TypeVar('T')
U = TypeVar('U')


async def _call(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function in a thread. If the task is cancelled, the function ends before its next request."""
    event = threading.Event()
    token = stopped.set(event)
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except asyncio.CancelledError:
        event.set()
        raise
    finally:
        stopped.reset(token)


def _awaited(function: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return await _call(function, *args, **kwargs)

    return call


def _wrapped(function: Callable[P, T], wrap: Callable[[T], U]) -> Callable[P, Awaitable[U]]:
    """The same, with a class of this module in place of the one that the function returns."""

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> U:
        return wrap(await _call(function, *args, **kwargs))

    return call


def _method(function: Callable[Concatenate[run.Run, P], T]) -> Callable[Concatenate[Run, P], Awaitable[T]]:
    """A method of :class:`finetuner.Run`, awaited."""

    @functools.wraps(function)
    async def call(self: Run, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await _call(function, self.sync, *args, **kwargs)

    return call


class Run:
    """A run, as :class:`finetuner.Run`: what asks the service is awaited, `artifact_id` too.

    :param sync: the run itself.
    """

    def __init__(self, sync: run.Run):
        self.sync = sync

    def __repr__(self) -> str:
        return repr(self.sync)

    @property
    def name(self) -> str:
        return self.sync.name

    @property
    def experiment_name(self) -> str:
        return self.sync.experiment_name

    @property
    def id(self) -> str | None:
        return self.sync.id

    @property
    def created_at(self) -> str:
        return self.sync.created_at

    @property
    def description(self) -> str:
        return self.sync.description

    @property
    def task(self) -> str:
        return self.sync.task

    @property
    def config(self) -> dict[str, Any]:
        return self.sync.config

    @property
    def record(self) -> dict[str, Any]:
        """All that the service last said of the run; no request is made."""
        return self.sync.record

    @property
    async def artifact_id(self) -> str:
        return await _call(lambda: self.sync.artifact_id)

    status = _method(run.Run.status)
    progress = _method(run.Run.progress)
    cancel = _method(run.Run.cancel)
    logs = _method(run.Run.logs)
    metrics = _method(run.Run.metrics)
    display_metrics = _method(run.Run.display_metrics)
    example_results = _method(run.Run.example_results)
    display_examples = _method(run.Run.display_examples)
    save_artifact = _method(run.Run.save_artifact)

    async def resume(self) -> Run:
        await _call(self.sync.resume)
        return self

    async def wait(self, interval: float = 1.0, timeout: float | None = None) -> Run:
        """As :meth:`finetuner.Run.wait`."""
        with Watch(self.sync, interval, timeout) as watch:
            while not await _call(watch.look):
                await asyncio.sleep(watch.pause())
        return self

    async def stream_logs(self, interval: float = 1) -> AsyncIterator[str]:
        """Yield pieces of the log as they are written, until the run has ended.

        :param interval: seconds between two looks. The service itself looks at a log twice a second.
        """
        while (await _call(self.sync.refresh))['status'] == CREATED:
            await asyncio.sleep(interval)
        offset = 0
        while True:
            text, offset, status = await _call(self.sync.logs_from, offset)
            if text:
                yield text
            elif status in ENDED:
                return
            else:
                await asyncio.sleep(interval)


class Experiment:
    """An experiment, as :class:`finetuner.Experiment`: what asks the service is awaited.

    :param sync: the experiment itself.
    """

    def __init__(self, sync: experiment.Experiment):
        self.sync = sync

    def __repr__(self) -> str:
        return repr(self.sync)

    @property
    def name(self) -> str:
        return self.sync.name

    @property
    def status(self) -> str:
        return self.sync.status

    @property
    def description(self) -> str:
        return self.sync.description

    @property
    def created_at(self) -> str:
        return self.sync.created_at

    @property
    def runs(self) -> int:
        return self.sync.runs

    async def create_training_run(
        self,
        model: str,
        train_data: Data,
        run_name: str | None = None,
        eval_data: Data | None = None,
        csv_options: CSVOptions | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Run:
        given = model, train_data, run_name, eval_data, csv_options
        return Run(await _call(self.sync.create_training_run, *given, **kwargs))

    async def get_run(self, name: str) -> Run:
        return Run(await _call(self.sync.get_run, name))

    async def list_runs(self, page: int = 1, size: int = 50) -> list[Run]:
        return _runs(await _call(self.sync.list_runs, page, size))

    async def delete_run(self, name: str) -> None:
        await _call(self.sync.delete_run, name)

    async def delete_runs(self) -> None:
        await _call(self.sync.delete_runs)


def _runs(found: list[run.Run]) -> list[Run]:
    return [Run(one) for one in found]


def _experiments(found: list[experiment.Experiment]) -> list[Experiment]:
    return [Experiment(one) for one in found]


login = _awaited(finetuner.login)
whoami = _awaited(finetuner.whoami)
usage = _awaited(finetuner.usage)
create_token = _awaited(finetuner.create_token)
list_tokens = _awaited(finetuner.list_tokens)
revoke_token = _awaited(finetuner.revoke_token)

create_experiment = _wrapped(finetuner.create_experiment, Experiment)
get_experiment = _wrapped(finetuner.get_experiment, Experiment)
list_experiments = _wrapped(finetuner.list_experiments, _experiments)
delete_experiment = _wrapped(finetuner.delete_experiment, Experiment)
delete_experiments = _wrapped(finetuner.delete_experiments, _experiments)

fit = create_run = create_training_run = _wrapped(finetuner.fit, Run)
get_run = _wrapped(finetuner.get_run, Run)
list_runs = _wrapped(finetuner.list_runs, _runs)
delete_run = _awaited(finetuner.delete_run)
delete_runs = _awaited(finetuner.delete_runs)

list_datasets = _awaited(finetuner.list_datasets)
get_dataset = _awaited(finetuner.get_dataset)
delete_dataset = _awaited(finetuner.delete_dataset)
list_artifacts = _awaited(finetuner.list_artifacts)
download_artifact = _awaited(finetuner.download_artifact)
promote = _awaited(finetuner.promote)
rollback = _awaited(finetuner.rollback)
list_aliases = _awaited(finetuner.list_aliases)
get_alias = _awaited(finetuner.get_alias)
delete_alias = _awaited(finetuner.delete_alias)

build_model = _awaited(inference.build_model)
get_model = _awaited(inference.get_model)
encode_remotely = _awaited(encoding.encode_remotely)


async def encode(model: inference.InferenceEngine, data: Any, batch_size: int = 32) -> Any:
    """As `finetuner.encode`."""
    return await _call(inference.encode, model, data, batch_size)
