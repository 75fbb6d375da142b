"""Servers of benchmarks, in processes of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

PATIENCE = 180.0
"""Seconds that a server may take to start."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str | Path], variables: Mapping[str, str], is_ready: Callable[[], bool]
) -> Iterator[tuple[psutil.Process, float]]:
    """A server, and the seconds that it took to be ready.

    :param variables: all of its environment.
    :param is_ready: tells whether it can be used.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            while not is_ready():
                if process.poll() is not None or time.monotonic() - began > PATIENCE:
                    log.seek(0)
                    sys.exit(f'{command[0]} does not start:\n{log.read().decode(errors="replace")[-3000:]}')
                time.sleep(0.1)
            yield psutil.Process(process.pid), time.monotonic() - began
        finally:
            process.terminate()
            process.wait(60)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(('127.0.0.1', port)) == 0
