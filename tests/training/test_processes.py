"""Several processes that are asked to end do so together."""

import threading
import time

import pytest
import torch

from training import processes
from training.interruption import Interrupted, Interruption
from training.processes import ending_together


@pytest.fixture
def store(monkeypatch):
    """What the processes of a training share; each is one thread here."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: int(threading.current_thread().name))
    monkeypatch.setattr(torch.distributed.distributed_c10d, '_get_default_store', lambda: store)
    return store


class Process(threading.Thread):
    """Ends in a thread of its own."""

    def __init__(self, rank, seconds=0.0):
        super().__init__(name=str(rank), daemon=True)
        self.interruption, self.seconds, self.has_saved = Interruption(), seconds, False
        self.start()

    def run(self):
        try:
            with ending_together(self.interruption):
                try:
                    self.interruption.exit()
                finally:
                    time.sleep(self.seconds)
                    self.has_saved = True
        except Interrupted:
            pass


def test_the_others_wait_for_what_the_first_has_to_save(store):
    other, first = Process(1), Process(0, seconds=0.5)
    other.join(60)
    assert first.has_saved and not other.is_alive()


def test_the_first_waits_for_nobody(store):
    first = Process(0)
    first.join(60)
    assert not first.is_alive()


@pytest.mark.parametrize('end', ['signal', 'store', 'patience'])
def test_the_others_do_not_wait_for_ever(store, monkeypatch, end):
    if end == 'patience':
        monkeypatch.setattr(processes, 'PATIENCE', 0.3)
    other = Process(1)
    other.join(0.2)
    assert other.is_alive()
    if end == 'signal':
        other.interruption.repeated = True
    elif end == 'store':

        def fail(keys):
            raise torch.distributed.DistNetworkError('Connection reset by peer')

        lost = type('Lost', (), {'check': staticmethod(fail)})()
        monkeypatch.setattr(torch.distributed.distributed_c10d, '_get_default_store', lambda: lost)
        other = Process(1)
    other.join(60)
    assert not other.is_alive()
