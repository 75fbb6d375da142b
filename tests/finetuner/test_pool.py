"""Threads that callers share: none is kept waiting by another, and none outlives its own call."""

import subprocess
import sys
import threading
import time

import pytest

from finetuner.inference.pool import Pool


def sleep(item):
    time.sleep(0.02)
    return item


def test_results_come_as_they_are_done():
    go = threading.Event()

    def wait_for_the_others(item):
        assert item or go.wait(10)
        return item

    results = Pool(2).as_done(wait_for_the_others, range(5))
    assert {next(results) for _ in range(4)} == {1, 2, 3, 4}
    go.set()
    assert list(results) == [0]


def test_so_many_are_computed_at_the_same_time():
    both = threading.Barrier(3)

    def meet(item):
        both.wait(10)
        return item

    assert sorted(Pool(3).as_done(meet, range(9))) == list(range(9))


def test_a_small_call_does_not_wait_for_a_huge_one():
    pool = Pool(2)
    huge = pool.as_done(sleep, range(1000))
    next(huge)
    began = time.monotonic()
    assert sorted(pool.as_done(sleep, range(2))) == [0, 1]
    assert time.monotonic() - began < 1  # the huge one takes ten
    huge.close()


def test_a_call_that_fails_ends_at_once():
    pool = Pool(2)
    begun, running = [], set()

    def fail_at_first(item):
        begun.append(item)
        running.add(item)
        try:
            sleep(item)
            if item == 0:
                raise ValueError('the first')
        finally:
            running.remove(item)

    huge = pool.as_done(sleep, range(1000))
    next(huge)
    began = time.monotonic()
    with pytest.raises(ValueError, match='the first'):
        list(pool.as_done(fail_at_first, range(100)))
    assert time.monotonic() - began < 1
    assert not running
    count = len(begun)
    time.sleep(0.2)
    assert len(begun) == count < 10
    huge.close()


def run_python(program):
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, '')
    return done.stdout.split()


PROGRAM = """
import os, threading, time
from finetuner.inference.pool import Pool
pool = Pool(2)
def double(item):
    time.sleep(0.01)
    return 2 * item
def double_all(count):
    print(sum(pool.as_done(double, range(count))), flush=True)
"""


def test_a_fork_has_threads_of_its_own():
    fork = 'double_all(5)\nif os.fork():\n    assert os.wait()[1] == 0\nelse:\n    double_all(6)'
    assert run_python(PROGRAM + fork) == ['20', '30']


def test_a_thread_that_outlives_the_main_one_gets_its_results():
    assert run_python(PROGRAM + 'threading.Thread(target=double_all, args=[100]).start()') == ['9900']
