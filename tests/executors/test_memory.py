"""What was freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

FREED = """
import gc, time
import psutil
from executors.memory import give_back_memory

def used():
    return psutil.Process().memory_info().rss / 2**20

blocks = [bytearray(100_000) for _ in range(2000)]  # on the heap: not large enough for a mapping of their own
last = blocks.pop()  # and this one lies behind all others
full = used()
del blocks
gc.collect()
freed = used()
give_back_memory(interval=0.2)
time.sleep(1)
print(full, freed, used())
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='of glibc')
def test_memory_that_was_freed_goes_back_though_something_lies_behind_it():
    shown = subprocess.run([sys.executable, '-c', FREED], check=True, capture_output=True, text=True).stdout
    full, freed, after = map(float, shown.split())
    assert full - freed < 20  # else there is nothing to give back
    assert freed - after > 150
