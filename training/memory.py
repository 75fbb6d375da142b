"""How much memory a run takes, how much it may, and what batch size would fit instead."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from training.run_folder import FOOTPRINT

VARIABLE = 'FINETUNER_MEMORY_LIMIT'  # bytes, of the processes of a run together
SHARE = 0.8  # of what is left, that a batch may take: some is needed beyond what layers save
EVENTS = (
    Path('/sys/fs/cgroup/memory.events'),
    Path('/sys/fs/cgroup/memory/memory.oom_control'),
    Path('/proc/vmstat'),
)
LIMITS = (Path('/sys/fs/cgroup/memory.max'), Path('/sys/fs/cgroup/memory/memory.limit_in_bytes'))


@dataclass(frozen=True)
class Footprint:
    """What a training was going to take, as measured before its first batch.

    :param batch_size: examples of a batch.
    :param each: bytes that the layers save of one of the longest examples.
    :param base: bytes of all else, with the state of the optimizers.
    """

    batch_size: int
    each: float
    base: int

    def write(self, directory: Path) -> None:
        aside = directory / f'.{FOOTPRINT}.{os.getpid()}'
        aside.write_text(json.dumps(asdict(self)))
        os.replace(aside, directory / FOOTPRINT)

    @classmethod
    def read(cls, directory: Path) -> Footprint | None:
        """What a worker has written here, if it came so far."""
        with suppress(FileNotFoundError):
            return cls(**json.loads((directory / FOOTPRINT).read_text()))
        return None

    def advice(self, limit: float) -> str:
        """Which batch size would fit into so many bytes, in a clause.

        That is the largest power of two whose longest examples do by what was measured, and half of the batch size at
        most: what was measured was too little.
        """
        size = 1
        while size * 2 <= min((limit - self.base) * SHARE / max(self.each, 1), self.batch_size / 2):
            size *= 2
        if size < 2:
            return 'not even 2 would fit: lower max_length, use a smaller model, or give more memory'
        return f'about {size} would fit'


def out_of_memory(footprint: Footprint | None, limit: float, what: str) -> str:
    """Why a run failed, in one sentence without its full stop.

    :param what: happened, in a clause.
    """
    if footprint is None:
        return f'Out of memory: {what}'
    return f'Out of memory with batch_size {footprint.batch_size} ({what}): {footprint.advice(limit)}'


def machine_limit() -> int:
    """Bytes that all processes of this machine, or of the container that this process is in, may take together."""
    limit = psutil.virtual_memory().total
    for path in LIMITS:
        with suppress(OSError, ValueError):  # no container, or one without a limit ('max')
            limit = min(limit, int(path.read_text()))
    return limit


def kills_for_memory() -> int:
    """How often the system has killed a process here for want of memory."""
    for path in EVENTS:
        with suppress(OSError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(' ')
                if name == 'oom_kill':
                    return int(value)
    return 0


def own_bytes(pid: int) -> int:
    """Memory that a process and its descendants alone need: files that are mapped do not count, they can go at once."""
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_anonymous(member.pid) for member in family)


def _anonymous(pid: int) -> int:
    with suppress(OSError):
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
        values = [line.split()[1] for line in lines if line.startswith(('RssAnon:', 'RssShmem:'))]
        return sum(map(int, values)) << 10
    return 0
