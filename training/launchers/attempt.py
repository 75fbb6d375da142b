"""One try at a run: all that a machine needs to know to work on it, and the files that it keeps meanwhile."""

from __future__ import annotations

import fcntl
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import training
from registry import Registry, RunRecord

RETRIES = 2
RETRY_DELAY = 5.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Policy:
    """What a service allows its runs.

    :param max_retries: attempts after the first, of runs that do not say.
    :param retry_delay: seconds before the second attempt, twice as many before the third, and so on.
    :param max_seconds: that an attempt may take.
    :param stop_seconds: that a worker has to end when its service is stopped: it writes a checkpoint.
    """

    max_retries: int = RETRIES
    retry_delay: float = RETRY_DELAY
    max_seconds: float | None = None
    stop_seconds: float = STOP_SECONDS


@dataclass(frozen=True)
class Attempt:
    """
    :param name: of the run, for the log of the service.
    :param processes: that share the work.
    :param gpus: the ids of those that it may use; None leaves the choice to the machine.
    :param cpus: cores that it may use, if that is limited.
    :param memory_limit: bytes of its process group.
    """

    run_id: str
    lease: str
    name: str
    policy: Policy
    processes: int = 1
    gpus: tuple[str, ...] | None = ()
    cpus: float | None = None
    memory_limit: int | None = None

    @classmethod
    def of(cls, run: RunRecord, policy: Policy, gpus: tuple[str, ...] | None) -> Attempt:
        """:param run: one that was claimed."""
        assert run.lease is not None
        config = run.config
        memory_limit = config.get('memory_limit')
        return cls(
            run_id=run.id,
            lease=run.lease,
            name=f'{run.name} of {run.experiment_name}',
            policy=policy,
            processes=max(1, int(config.get('gpus') or 1)),
            gpus=gpus,
            cpus=config.get('cpus'),
            memory_limit=None if memory_limit is None else int(memory_limit),
        )

    @property
    def command(self) -> list[str]:
        # -P: a folder called `training` in the working directory must not come before ours
        command = [sys.executable, '-P', '-m']
        if self.processes > 1:
            command += ['torch.distributed.run', '--standalone', '--nproc-per-node', str(self.processes), '-m']
        return [*command, 'training.worker', self.run_id, self.lease]

    def environment(self, registry: Registry) -> dict[str, str]:
        """That of the worker."""
        root = str(Path(training.__file__).parent.parent)
        paths = [root, *filter(None, [os.environ.get('PYTHONPATH')])]
        own = {
            'FINETUNER_HOME': str(registry.home),
            'PYTHONPATH': os.pathsep.join(paths),
            'PYTHONUNBUFFERED': '1',
        }
        if self.gpus is not None:
            own['CUDA_VISIBLE_DEVICES'] = ','.join(self.gpus)
        if self.cpus is not None:
            own['OMP_NUM_THREADS'] = str(max(1, int(self.cpus) // self.processes))
        if self.processes > 1:  # torchrun would kill them after its own 30 seconds, however many the policy gives
            own['TORCH_ELASTIC_SHUTDOWN_TIMEOUT'] = str(max(30, math.ceil(self.policy.stop_seconds)))
        if self.memory_limit is not None:
            own['FINETUNER_MEMORY_LIMIT'] = str(self.memory_limit)
        return {**os.environ, **own}


def attempts_folder(home: Path) -> Path:
    return home / 'attempts'


def log_path(home: Path, lease: str) -> Path:
    """What the attempt under this lease prints. It is locked as long as one of its processes lives."""
    return attempts_folder(home) / f'{lease}.log'


def note_path(home: Path, lease: str) -> Path:
    """What its guard knows of it. It is locked as long as there is a guard."""
    return attempts_folder(home) / f'{lease}.json'


def lock(path: Path, mode: str) -> IO[Any] | None:
    """Open a file and hold its lock, which is that of every process which inherits the file; None if others hold it.

    :raises FileNotFoundError: it is to be read and is not there.
    """
    file = path.open(mode)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
