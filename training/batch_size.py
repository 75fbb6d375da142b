"""How much goes through the encoders at once, by what their graphs take on this device."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

from finetuner.inference.encoder import Encoder
from training.data import Examples
from training.embed import ITEMS_AT_ONCE, TOKENS_AT_ONCE, Embedder
from training.freezing import keep_frozen
from training.memory import VARIABLE, Footprint, own_bytes
from training.task import Task

logger = logging.getLogger(__name__)

SMALLEST, LARGEST = 8, 256
BATCHES_PER_EPOCH = 16  # at least: fewer steps teach less, however good each is
SHARE = 0.5  # of free memory: layers need some beyond what they save, and so do gradients on their way
STATES = 3  # copies of trained weights: gradients, and two moments of Adam
SAMPLES = (2, 4)  # items that are measured
CGROUPS = (
    ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory.current'),
    ('/sys/fs/cgroup/memory/memory.limit_in_bytes', '/sys/fs/cgroup/memory/memory.usage_in_bytes'),
)


def find_batch_size(task: Task, examples: Examples, embedders: Mapping[str, Embedder], device: torch.device) -> int:
    """The largest power of two from 8 to 256 of which the longest examples fit into half of the free memory in one
    pass, and of which an epoch has about 16 batches or more.

    Call it before the optimizers are made.
    """
    each = example_bytes(task, examples, embedders, device)
    fitting = max(available(device) - _states(task), 0) * SHARE / max(each, 1)
    useful = len(examples) / BATCHES_PER_EPOCH
    size = SMALLEST
    while size * 2 <= min(fitting, useful, LARGEST):
        size *= 2
    if size * 2 > LARGEST:
        why = 'the largest that is tried'
    elif fitting < useful:
        why = f'so many of the longest examples, {each / 1e6:.1f} MB each, fit into half of the free memory'
    else:
        why = f'{len(examples)} examples give {-(-len(examples) // size)} batches an epoch'
    logger.info('Batch size %d: %s', size, why)
    return _agreed(size, device)


def example_bytes(task: Task, examples: Examples, embedders: Mapping[str, Embedder], device: torch.device) -> float:
    """What the graph of one of the longest examples saves for the backward pass, in bytes; infinity where a GPU has no
    room for a few of them."""
    try:
        each = 0.0
        for column in examples.columns:
            each += item_bytes(task.encoders[column.encoder], embedders[column.encoder], device)  # type: ignore[arg-type]
        return each
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        logger.warning('Not even %d of the longest examples fit into memory', SAMPLES[-1])
        return float('inf')


def measure_footprint(
    task: Task, examples: Examples, embedders: Mapping[str, Embedder], batch_size: int, device: torch.device
) -> Footprint:
    """What a training is going to take: of the GPU, or of the memory of the machine that this process needs alone."""
    each = min(example_bytes(task, examples, embedders, device), 1e15)
    used = torch.cuda.memory_allocated(device) if device.type == 'cuda' else own_bytes(os.getpid())
    return Footprint(batch_size, each, used + _states(task))


def token_budget(encoder: Encoder, embedder: Embedder, device: torch.device) -> int:
    """How much may go through an encoder at once with a graph: tokens of texts, items of anything else, as
    `embedder.costs` counts them. At least the longest item.
    """
    longest = longest_items(embedder, 1)
    cost = int(embedder.costs(longest).sum())
    try:
        each = item_bytes(encoder, embedder, device)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return cost
    if not each:  # nothing is saved, but a forward too needs some memory
        return max(cost, TOKENS_AT_ONCE if encoder.modality == 'text' else ITEMS_AT_ONCE)
    free = max(available(device) - _states(encoder), 0) * SHARE
    return max(cost, int(free / each * cost))


def item_bytes(encoder: Encoder, embedder: Embedder, device: torch.device) -> float:
    """What the graph of one of the longest items saves for the backward pass, in bytes; 0 where nothing is trained.

    :raises torch.OutOfMemoryError: a GPU has no room for a few of them.
    """
    sizes = [_saved_bytes(encoder, embedder, longest_items(embedder, count), device) for count in SAMPLES]
    return max(sizes[1] - sizes[0], 0) / (SAMPLES[1] - SAMPLES[0])


def longest_items(embedder: Embedder, count: int) -> np.ndarray:
    """The longest item, so many times, int64."""
    items = np.arange(len(embedder.features))
    return np.repeat(items[embedder.costs(items).argmax()], count)


def available(device: torch.device) -> int:
    """Bytes of memory that are free: of the GPU, or of the machine and of the container that this process is in."""
    if device.type == 'cuda':
        free, _ = torch.cuda.mem_get_info(device)
        # what torch holds without using it
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    if limit := os.environ.get(VARIABLE):
        free = min(free, int(limit) - own_bytes(os.getpid()))
    for limit, usage in CGROUPS:
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(usage).read_text()))
        except (OSError, ValueError):  # no container, or one without a limit ('max')
            continue
    return max(free, 0)


def _agreed(size: int, device: torch.device) -> int:
    """The least of what the processes of a training have found."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return size
    shared = torch.tensor(size, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MIN)
    return int(shared)


def _states(module: nn.Module) -> int:
    return STATES * sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)


def _saved_bytes(encoder: Encoder, embedder: Embedder, items: np.ndarray, device: torch.device) -> int:
    """Bytes of the tensors that a forward saves, each once, weights not counted. Leaves the encoder as it was."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*encoder.parameters(), *encoder.buffers())}
    saved: dict[int, int] = {}
    held = []  # while a tensor lives, no other gets its place

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with _unchanged(encoder, device), torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            embeddings = embedder.embed(items, device)
        return sum(saved.values()) if embeddings.requires_grad else 0


@contextmanager
def _unchanged(encoder: Encoder, device: torch.device) -> Iterator[None]:
    """Put back running statistics and the state of random numbers, which a forward in training mode changes."""
    modes = [(module, module.training) for module in encoder.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in encoder.buffers()]
    devices = [device] if device.type == 'cuda' else []
    try:
        with torch.random.fork_rng(devices=devices, device_type='cuda'):
            encoder.train()
            keep_frozen(encoder)
            yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)
        for module, training in modes:
            module.training = training
