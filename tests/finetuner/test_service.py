"""How the service is started and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from finetuner import service

RUN = """
import os, sys
from finetuner import service
service.PATIENCE = 60
print('ready', flush=True)
sys.exit(service._run([sys.executable, '-c', sys.argv[1]], dict(os.environ), lambda child, lost: None))
"""
# what every Flow file loads first
FLOW = "import executors.environment, time; print('started', flush=True); time.sleep(60)"
OBEDIENT = "import time; print('started', flush=True); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('started', flush=True); time.sleep(60)"


@pytest.mark.parametrize(
    ('folder', 'roots'), [('/', None), ('/home', None), ('/home/ann', '/home/ann'), ('/srv/models', '/srv/models')]
)
def test_models_are_read_from_the_working_folder_unless_it_is_everybodys(monkeypatch, folder, roots):
    given = {}
    monkeypatch.delenv('FINETUNER_MODEL_ROOTS', raising=False)
    monkeypatch.setenv('HOME', '/home/ann')
    monkeypatch.setattr(Path, 'cwd', lambda: Path(folder))
    monkeypatch.setattr(service, '_require_free', lambda number, option: None)
    monkeypatch.setattr(service, '_run', lambda command, environment, *_: given.update(environment) or 0)
    assert service.run_service(None, 51000, 51001, None) == 0
    assert given.get('FINETUNER_MODEL_ROOTS') == roots


def test_an_artifact_that_is_not_there_is_told_before_anything_starts(monkeypatch):
    monkeypatch.setattr(service, '_run', lambda *given: pytest.fail('it was started'))
    monkeypatch.setenv('FINETUNER_ARTIFACT', '/no/such.zip')
    with pytest.raises(FileNotFoundError, match=r'there is no artifact /no/such\.zip'):
        service.run_service(None, 51000, 51001, None)


def test_an_artifact_that_is_no_path_is_left_to_the_service(monkeypatch):
    given = {}
    monkeypatch.setattr(service, '_require_free', lambda number, option: None)
    monkeypatch.setattr(service, '_run', lambda command, environment, *_: given.update(environment) or 0)
    for artifact in ('experiment/run', 'photos@production'):
        monkeypatch.setenv('FINETUNER_ARTIFACT', artifact)
        assert service.run_service(None, 51000, 51001, None) == 0
        assert given['FINETUNER_ARTIFACT'] == artifact


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('program', [OBEDIENT, STUBBORN])
def test_signals_end_the_service(number, program):
    with subprocess.Popen([sys.executable, '-c', RUN, program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'ready\n'
        assert process.stdout.readline() == 'started\n'
        children = psutil.Process(process.pid).children()
        process.send_signal(number)
        if program is STUBBORN:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            process.send_signal(number)
        assert process.wait(10) == 0
        assert len(children) == 1 and not psutil.wait_procs(children, 5)[1]


def test_a_service_that_is_lost_is_ended_and_has_failed():
    lost = RUN.replace('lambda child, lost: None', 'lambda child, lost: lost.set()')
    with subprocess.Popen(
        [sys.executable, '-c', lost, OBEDIENT], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        _, said = process.communicate(timeout=20)
    assert process.returncode != 0
    assert said.startswith('The gateway has ended')


def test_a_flow_ends_when_what_started_it_was_killed():
    with subprocess.Popen([sys.executable, '-c', RUN, FLOW], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'ready\n'
        assert process.stdout.readline() == 'started\n'
        (flow,) = psutil.Process(process.pid).children()
        process.kill()
        assert not psutil.wait_procs([flow], 10)[1]


def test_who_is_on_a_port_is_told():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeError) as raised:
            service._require_free(port, '--port')
    assert str(raised.value) == (
        f'port {port} cannot be used (Address already in use): perhaps a service of yours still runs there (process '
        f'{os.getpid()}): end it, or choose another with --port'
    )


LISTEN = """
import socket
with socket.create_server(('127.0.0.1', 0)) as taken:
    print(taken.getsockname()[1], flush=True)
    input()
"""


def test_of_a_service_on_a_port_the_process_that_a_signal_ends_is_told():
    environment = {**os.environ, 'FINETUNER_SERVE_PID': str(os.getpid())}
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen([sys.executable, '-c', LISTEN], env=environment, **pipes) as gateway:
        port = int(gateway.stdout.readline())
        with pytest.raises(RuntimeError, match=rf'still runs there \(process {os.getpid()}\): end it'):
            service._require_free(port, '--port')
        gateway.communicate('\n')
