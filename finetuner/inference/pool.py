"""Threads that compute several things of one call at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from itertools import islice
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')


class Pool:
    """So many threads, made when they are first needed. Any number of callers share them.

    :param threads: how many.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self._process = 0
        self._executor: ThreadPoolExecutor

    def as_done(self, compute: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results as they come. None is being computed any more once one has failed.

        Of each call few wait for a thread, so that one with many items does not keep the others waiting.
        """
        submit = partial(_submit, self._of_this_process(), compute)
        waiting = iter(items)
        running: set[Future[Result]] = set()
        try:
            running.update(map(submit, islice(waiting, 2 * self.threads)))
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running.update(map(submit, islice(waiting, len(done))))
                while done:
                    yield done.pop().result()
        finally:
            wait([future for future in running if not future.cancel()])

    def _of_this_process(self) -> ThreadPoolExecutor:
        if self._process != os.getpid():  # a fork has no threads
            self._executor = ThreadPoolExecutor(self.threads, 'part')
            self._process = os.getpid()
        return self._executor


def _submit(executor: ThreadPoolExecutor, compute: Callable[[Item], Result], item: Item) -> Future[Result]:
    try:
        return executor.submit(compute, item)
    except RuntimeError:  # Python is ending, and takes nothing new while the last threads work
        future: Future[Result] = Future()
        future.set_result(compute(item))
        return future
