"""What a Flow file needs from the process that loads it. Every `flows/*.yml` names this module in `py_modules`.

Jina substitutes `${{ ENV.NAME }}` in a Flow file but knows no defaults. It imports `py_modules` after its first
substitution and expands `with` once more afterwards, so variables that are set here are defaults.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

DEFAULT_PORT = '51000'
DEFAULT_HTTP_PORT = '51001'


def _exit(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


os.environ.setdefault('FINETUNER_PORT', DEFAULT_PORT)
os.environ.setdefault('FINETUNER_HTTP_PORT', DEFAULT_HTTP_PORT)

# `jina flow` dies of a SIGTERM at once and leaves its executors behind; leaving through an exception closes them.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, _exit)
