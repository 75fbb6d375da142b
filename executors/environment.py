"""What a Flow file needs from the process that loads it. Every `flows/*.yml` names this module in `py_modules`.

Jina substitutes `${{ ENV.NAME }}` in a Flow file but knows no defaults. It imports `py_modules` after its first
substitution and expands `with` once more afterwards, so variables that are set here are defaults.

What the variables say is checked here, before anything is started: a sentence is better than the stack of a gateway.

`jina flow` dies of a SIGTERM at once and leaves its executors behind. Here the signal raises SystemExit instead, and
`with flow:` closes them. What `finetuner serve` has started gets that signal when it is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import FrameType, TracebackType

from jina.excepts import RuntimeFailToStart
from jina.helper import reset_ports

from executors.lifetime import end_with
from executors.rate import Buckets, max_body
from executors.tls import read_certificate
from finetuner.service import PARENT

DEFAULT_PORT = '51000'
DEFAULT_HTTP_PORT = '51001'
DEFAULT_LISTEN = '127.0.0.1'
EPHEMERAL = Path('/proc/sys/net/ipv4/ip_local_port_range')
MAX_PORT, FEW = 65535, 1000
AGAIN = 0.5
"""Seconds after which a signal is repeated."""


class Leave:
    """A signal handler that raises SystemExit, and again in `Flow.block` if Jina swallowed it.

    The last part of a Flow's start catches everything.
    """

    def __init__(self) -> None:
        self._is_asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        frames = [inner for inner, _ in traceback.walk_stack(frame)]
        inside = {inner.f_code.co_name for inner in frames if inner.f_globals.get('__name__', '').startswith('jina.')}
        if inside & {'start', 'block'}:
            timer = threading.Timer(AGAIN, signal.pthread_kill, (threading.main_thread().ident, number))
            timer.daemon = True
            timer.start()
        if not self._is_asked or 'block' in inside:
            self._is_asked = True
            sys.exit(128 + number)


def check() -> None:
    """Leave with a sentence if the gateway cannot be what the variables say."""
    try:
        read_certificate()
        Buckets.from_environment()
        max_body()
    except ValueError as error:
        sys.exit(f'finetuner: {error}')


def least_port() -> int | None:
    """The least port that the system gives to no outgoing connection: one of those may be taken between the choice of a
    port for an executor and its use. None where that is not known, or leaves few.
    """
    try:
        above = int(EPHEMERAL.read_text().split()[1]) + 1
    except (OSError, ValueError, IndexError):
        return None
    return above if above <= MAX_PORT - FEW else None


def leave_out_stack(kind: type[BaseException], error: BaseException, stack: TracebackType | None) -> None:
    """Of a Flow that cannot start, Jina has logged what there is to say. Where it failed is not in this process."""
    if not isinstance(error, RuntimeFailToStart):
        sys.__excepthook__(kind, error, stack)


check()
if Path(sys.argv[0]).name in ('jina', '__main__.py') and sys.argv[1:2] == ['flow']:
    sys.excepthook = leave_out_stack
if 'JINA_RANDOM_PORT_MIN' not in os.environ and (port := least_port()):
    os.environ['JINA_RANDOM_PORT_MIN'] = str(port)
    reset_ports()  # it has chosen among others already
os.environ.setdefault('FINETUNER_PORT', DEFAULT_PORT)
os.environ.setdefault('FINETUNER_HTTP_PORT', DEFAULT_HTTP_PORT)
os.environ.setdefault('FINETUNER_LISTEN', DEFAULT_LISTEN)

if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, Leave())
if parent := os.environ.pop(PARENT, None):  # taken out: what the Flow starts has the Flow as its parent
    end_with(int(parent))
