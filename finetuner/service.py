"""Starting the services on this machine: `jina flow` as a child process."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from finetuner import settings
from finetuner.console import console, progress_console
from finetuner.inference.remote import without_secrets

if TYPE_CHECKING:
    import psutil

PATIENCE = 30.0  # seconds that the service may take to end before it is killed
OF_THE_LOST = 20.0  # and as many more that a Flow waits for a gateway that has died: its `timeout_ctrl`
# Threads that compute wait for each other awake for a moment, as from one layer to the next, and then asleep. By
# default they keep their cores busy, and where others have work, too, they keep the very thread from its core that
# they wait for.
WAITING = {'OMP_WAIT_POLICY': 'PASSIVE', 'GOMP_SPINCOUNT': '10000'}
"""How the threads of a service wait, by variable; the images have the same."""
PARENT = 'FINETUNER_SERVE_PID'
"""The variable by which a Flow knows the process with which it is to end, even if that one is killed."""


def run_service(artifact: str | None, port: int, http_port: int, home: Path | None) -> int:
    """Run `flows/finetuner.yml`, or `flows/serve.yml` with `artifact`, until it ends or a signal ends it.

    :param port: of gRPC.
    :param home: the folder of all state, default `FINETUNER_HOME`.
    :return: its exit code, 0 after a signal.
    :raises RuntimeError: the server side is not installed, or a port is taken.
    :raises FileNotFoundError: `artifact`, or FINETUNER_ARTIFACT, is a path to nothing.
    """
    given = os.environ.get('FINETUNER_ARTIFACT', '')
    is_path = given.startswith(('/', '.', '~'))  # others may be a run, experiment/run
    served = _locate(artifact or (given if is_path else ''))
    for number, option in ((port, '--port'), (http_port, '--http-port')):
        _require_free(number, option)
    flow = _find_flow('serve.yml' if artifact else 'finetuner.yml')
    environment = {
        **os.environ,
        'FINETUNER_PORT': str(port),
        'FINETUNER_HTTP_PORT': str(http_port),
        'JINA_OPTOUT_TELEMETRY': os.environ.get('JINA_OPTOUT_TELEMETRY', '1'),
        'GRPC_VERBOSITY': os.environ.get('GRPC_VERBOSITY', 'ERROR'),  # not a line for every connection that ends
        **{name: os.environ.get(name, value) for name, value in WAITING.items()},
        'JINA_LOG_NO_COLOR': os.environ.get('JINA_LOG_NO_COLOR', '1'),  # and no logo of thirty lines
    }
    if _is_of_one_user(Path.cwd()):
        environment.setdefault('FINETUNER_MODEL_ROOTS', str(Path.cwd()))
    if home:
        environment['FINETUNER_HOME'] = str(home.expanduser().absolute())
    if served:
        environment['FINETUNER_ARTIFACT'] = served

    # A session of its own, so that Ctrl-C reaches it once, through us.
    command = [sys.executable, '-m', 'jina', 'flow', '--uses', str(flow)]
    farewell = '' if artifact else 'Runs at work keep a checkpoint and go on at the next start.'
    return _run(command, environment, lambda child, lost: _attend(child, lost, artifact, environment), farewell)


def _is_of_one_user(folder: Path) -> bool:
    """Whether a folder is not one above the homes of users: services are started in `/`, and mean no file of it."""
    return folder not in Path.home().parents and folder != Path('/')


def _run(
    command: list[str],
    environment: dict[str, str],
    attend: Callable[[subprocess.Popen[bytes], threading.Event], None],
    farewell: str = '',
) -> int:
    """Run a command; the first signal asks it to end, a second one or the end of patience kills it.

    :param attend: called in a thread of its own; sets the event once the command is of no use any more, which ends it.
    :param farewell: said when it is asked to end.
    """
    lost = threading.Event()
    signals: list[int] = []
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, lambda caught, _: signals.append(caught)) for number in numbers}
    try:
        child = subprocess.Popen(command, env={**environment, PARENT: str(os.getpid())}, start_new_session=True)
        threading.Thread(target=attend, args=(child, lost), daemon=True).start()
        asked: float | None = None
        was_lost = False
        while True:
            try:
                code = child.wait(timeout=0.2)
                return 0 if signals and not was_lost else code
            except subprocess.TimeoutExpired:
                if (signals or lost.is_set()) and asked is None:
                    was_lost = not signals
                    why = 'The gateway has ended, the log above may say why: stopping.' if was_lost else 'Stopping.'
                    progress_console.print(f'{why} {farewell}')
                    child.terminate()
                    asked = time.monotonic()
                patience = PATIENCE + (OF_THE_LOST if was_lost else 0)
                if asked is not None and (len(signals) > 1 or time.monotonic() - asked > patience):
                    os.killpg(child.pid, signal.SIGKILL)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _attend(
    child: subprocess.Popen[bytes], lost: threading.Event, artifact: str | None, environment: dict[str, str]
) -> None:
    """Say where the service is, and what to type next, once it answers. Until its end, see that it has a gateway."""
    port = int(environment['FINETUNER_HTTP_PORT'])
    host = _reachable(environment.get('FINETUNER_LISTEN', ''))
    s = 's' if environment.get('FINETUNER_TLS_CERT') else ''
    gateway, is_announced = None, False
    while child.poll() is None:
        gateway = gateway or _find_gateway(child.pid, port)
        if gateway is not None and not _is_alive(gateway):
            if not is_announced:  # the start may have failed, which the Flow tells and ends by itself
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(PATIENCE)
            lost.set()
            return
        if not is_announced and _is_ready(f'http{s}://{host}:{port}/health/ready'):
            is_announced = True
            _announce(host, s, artifact, environment)
        time.sleep(0.5)


def _announce(host: str, s: str, artifact: str | None, environment: dict[str, str]) -> None:
    """
    :param s: 's' if the service speaks TLS, else ''.
    """
    grpc = f'grpc{s}://{host}:{environment["FINETUNER_PORT"]}'
    ready = Table.grid(padding=(0, 2))
    ready.add_row('gRPC', f'[bold]{grpc}[/]')
    ready.add_row('HTTP', f'[bold]http{s}://{host}:{environment["FINETUNER_HTTP_PORT"]}/docs[/]')
    if artifact:
        ready.add_row('Model', escape(without_secrets(environment['FINETUNER_ARTIFACT'])))
    else:
        ready.add_row('Data', escape(environment.get('FINETUNER_HOME') or str(settings.home())))
    elsewhere = '' if grpc == settings.host() else f'FINETUNER_HOST={grpc} '
    command = 'encode "some text to encode"' if artifact else 'fit train.csv --eval-data test.csv'
    ready.add_row('Next', escape(f'{elsewhere}finetuner {command}'))
    console.print(Panel(ready, title='Finetuner is ready', title_align='left', expand=False))


def _reachable(listen: str) -> str:
    """Where a service is reached from here that listens at an address."""
    if listen in ('', '0.0.0.0', '127.0.0.1', '::', '::1'):
        return 'localhost'
    return f'[{listen}]' if ':' in listen else listen


def _find_gateway(flow: int, port: int) -> psutil.Process | None:
    """The process of a Flow that listens on a port, as soon as there is one, and if that can be told."""
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    try:
        for process in psutil.Process(flow).children(recursive=True):
            for connection in process.net_connections('tcp'):
                if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
                    return process
    except (psutil.Error, OSError):  # one that has just ended
        pass
    return None


def _is_alive(process: psutil.Process) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_ready(url: str) -> bool:
    """Whether our own service says so. Its certificate, which may be for another name, is not looked at."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _find_flow(name: str) -> Path:
    if importlib.util.find_spec('jina') is None or (flows := importlib.util.find_spec('flows')) is None:
        raise RuntimeError(
            "the services are not installed here: pip install 'finetuner[server]' on Python 3.11. Without them this is "
            'a client: name a running service with finetuner login --host grpc://name:51000'
        )
    folders = [Path(folder) for folder in flows.submodule_search_locations or []]
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f'there is no {name} in {", ".join(map(str, folders))}: install finetuner again')


def _require_free(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('0.0.0.0', port))
        except OSError as error:
            taken = f'{_perhaps_ours(port)}, or ' if error.errno == errno.EADDRINUSE else ''
            raise RuntimeError(
                f'port {port} cannot be used ({error.strerror}): {taken}choose another with {option}'
            ) from error


def _perhaps_ours(port: int) -> str:
    holder = _listener(port)
    who = f' (process {holder})' if holder else ''
    return f'perhaps a service of yours still runs there{who}: end it'


def _listener(port: int) -> int | None:
    """The process that listens on a port, if that can be told; `finetuner serve`, where that has started it."""
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    try:
        for connection in psutil.net_connections('tcp'):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                if connection.pid is None:  # of somebody else
                    return None
                # that of its start: the Flow takes the variable out of its own before it starts others
                started = psutil.Process(connection.pid).environ().get(PARENT, '')
                return int(started) if started.isdecimal() else connection.pid
    except (psutil.Error, OSError):
        pass
    return None


def _locate(artifact: str) -> str:
    """A path is made absolute; a URL or an id goes to the service as it is, and so does none."""
    if not artifact or '://' in artifact:
        return artifact
    path = Path(artifact).expanduser()
    if path.exists():
        return str(path.absolute())
    if os.sep in artifact or path.suffix == '.zip':
        raise FileNotFoundError(f'there is no artifact {path} (working folder: {Path.cwd()})')
    return artifact
