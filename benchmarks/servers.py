"""Servers of benchmarks, in processes of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
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
    command: Sequence[str | Path], variables: Mapping[str, str], health: str
) -> Iterator[tuple[psutil.Process, float]]:
    """A server, and the seconds that it took to be ready.

    :param variables: all of its environment.
    :param health: the URL that answers 200 once it is ready.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log)
        try:
            while not _is_ready(health):
                if process.poll() is not None or time.monotonic() - began > PATIENCE:
                    log.seek(0)
                    sys.exit(f'{command[0]} does not start:\n{log.read().decode(errors="replace")[-3000:]}')
                time.sleep(0.1)
            yield psutil.Process(process.pid), time.monotonic() - began
        finally:
            process.terminate()
            process.wait(60)


def _is_ready(health: str) -> bool:
    try:
        return requests.get(health, timeout=5).ok
    except requests.RequestException:
        return False
