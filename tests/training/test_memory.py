"""What a run is told that ran out of memory, and how its memory is measured."""

import mmap
import os

import numpy as np
import pytest
import torch

from training.batch_size import available
from training.errors import is_passing, reason
from training.memory import VARIABLE, Footprint, kills_for_memory, machine_limit, own_bytes
from training.run_folder import FolderInUse

MB = 1_000_000


@pytest.mark.parametrize(
    ('batch_size', 'each', 'limit', 'advice'),
    [
        (512, 10 * MB, 2000 * MB, 'about 64 would fit'),  # 1000 MB are left, of which 800 are taken: 80
        (512, 100 * MB, 2000 * MB, 'about 8 would fit'),
        (512, 1, 2000 * MB, 'about 256 would fit'),  # by what was measured all would: half, then
        (100, 1, 2000 * MB, 'about 32 would fit'),
        (512, 900 * MB, 2000 * MB, 'not even 2 would fit: lower max_length, use a smaller model, or give more memory'),
        (512, 10 * MB, 500 * MB, 'not even 2 would fit: lower max_length, use a smaller model, or give more memory'),
    ],
)
def test_the_advice_is_a_batch_size_that_fits_by_what_was_measured(batch_size, each, limit, advice, tmp_path):
    footprint = Footprint(batch_size, each, 1000 * MB)
    assert footprint.advice(limit) == advice
    footprint.write(tmp_path)
    assert Footprint.read(tmp_path) == footprint
    assert [path.name for path in tmp_path.iterdir()] == ['memory.json']
    (tmp_path / 'memory.json').unlink()
    assert Footprint.read(tmp_path) is None


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB.\nmore'),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 12 bytes."),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_told_with_what_would_fit(error):
    footprint = Footprint(512, 10 * MB, 0)
    text = reason(error, footprint)
    assert text.startswith('Out of memory with batch_size 512 (') and 'would fit' in text
    assert '\n' not in text
    assert reason(error).startswith('Out of memory: ')
    assert not is_passing(error)


@pytest.mark.parametrize(
    ('error', 'passing'),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(28, 'No space left on device'), True),
        (FolderInUse('another training is at work'), True),
        (RuntimeError('[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.1.1]:2'), True),
        (OSError('x is not a local folder and is not a valid model identifier'), False),
        (FileNotFoundError(2, 'No such file'), False),
        (ValueError('the data set is empty'), False),
        (FloatingPointError('the loss is nan in step 3'), False),
        (RuntimeError('mat1 and mat2 shapes cannot be multiplied'), False),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(error, passing):
    assert is_passing(error) is passing


def test_memory_that_a_process_alone_needs_counts_and_mapped_files_do_not(tmp_path):
    before = own_bytes(os.getpid())
    path = tmp_path / 'file'
    path.write_bytes(bytes(64 << 20))
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        assert own_bytes(os.getpid()) - before < 32 << 20
    array = np.ones(64 << 17)  # 64 MiB
    assert own_bytes(os.getpid()) - before > 48 << 20
    del array
    assert own_bytes(2**22 + 1) == 0  # no such process


def test_a_limit_of_the_run_is_one_for_the_batch_size_too(monkeypatch):
    free = available(torch.device('cpu'))
    monkeypatch.setenv(VARIABLE, str(own_bytes(os.getpid()) + 10_000_000))
    assert available(torch.device('cpu')) < min(free, 12_000_000)
    monkeypatch.setenv(VARIABLE, '1')
    assert available(torch.device('cpu')) == 0


def test_the_machine_tells_its_memory_and_its_kills():
    assert machine_limit() > 1 << 28
    assert kills_for_memory() >= 0
