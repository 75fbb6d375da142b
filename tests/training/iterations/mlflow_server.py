"""MLflow's tracking server, as it is started for several machines."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.integration.conftest import free_ports, wait_until


class TrackingServer:
    """
    :param folder: for its database and its files, which are in `artifacts`.
    :param empty: the content of a database with nothing in it.
    """

    def __init__(self, folder: Path, empty: Path):
        self.artifacts, self._database, self._empty = folder / 'artifacts', folder / 'mlflow.db', empty
        shutil.copyfile(empty, self._database)
        [port] = free_ports(1)
        self.url = f'http://127.0.0.1:{port}'
        self.command = [
            *(sys.executable, '-m', 'mlflow', 'server', '--host', '127.0.0.1', '--port', str(port), '--workers', '1'),
            *('--backend-store-uri', f'sqlite:///{self._database}', '--serve-artifacts'),
            *('--artifacts-destination', str(self.artifacts)),
        ]

    def empty(self) -> None:
        """Forget all that it was told."""
        with closing(sqlite3.connect(self._empty)) as source, closing(sqlite3.connect(self._database)) as target:
            source.backup(target)
        shutil.rmtree(self.artifacts, ignore_errors=True)
        self.artifacts.mkdir()

    def answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f'{self.url}/health', timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    @contextmanager
    def running(self) -> Iterator[TrackingServer]:
        log = self._database.with_name('log').open('w')
        environment = {**os.environ, 'MLFLOW_DISABLE_TELEMETRY': 'true', 'MLFLOW_SERVER_ENABLE_JOB_EXECUTION': 'false'}
        process = subprocess.Popen(
            self.command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            wait_until(self.answers, 120, 'the server of MLflow')
            yield self
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            log.close()
