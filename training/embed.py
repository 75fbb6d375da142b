"""Texts to embeddings with little padding: rows of like length go through the encoder together."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from training.data import TokenRows
from training.progress import Progress, Reporter

# What starting one more forward costs, in tokens that could be computed instead.
CHUNK_COST = {'cpu': 128, 'cuda': 4096}
MAX_CHUNKS = 16
# Embeddings larger than this are written to a memory-mapped file instead of memory.
IN_MEMORY_BYTES = 256 << 20


def embed(encoder: nn.Module, tokens: TokenRows, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """The embeddings of a batch, with gradients: float [B, D], in the order of `rows`.

    Sorted by length and cut into chunks, a batch of short and long texts computes little padding, and gives the same
    embeddings and gradients as one padded forward (with dropout on: the same in distribution). This is the one place
    through which training runs its encoder.
    """
    lengths = tokens.lengths(rows)
    order = np.argsort(lengths, kind='stable')
    cuts = chunk_cuts(lengths[order], CHUNK_COST[device.type])
    parts = [encoder(*tokens.padded(chunk, device)) for chunk in np.split(rows[order], cuts)]
    return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(device)]


def chunk_cuts(lengths: np.ndarray, chunk_cost: int, max_chunks: int = MAX_CHUNKS) -> list[int]:
    """Where to cut rows sorted by length so that padded tokens plus `chunk_cost` per chunk are fewest.

    :param lengths: ascending, int [B].
    :returns: the cuts inside 1..B-1, at most `max_chunks - 1`.
    """
    # cuts within rows of one length gain nothing, so it is enough to look at where the length changes
    ends = np.append(np.flatnonzero(np.diff(lengths)) + 1, len(lengths))
    starts = np.append(0, ends[:-1])
    padded = lengths[ends - 1]
    best = np.full((max_chunks + 1, len(ends) + 1), np.inf)  # [chunks, groups covered]
    best[0, 0] = 0
    origin = np.zeros(best.shape, np.int64)
    for end in range(1, len(ends) + 1):
        cost = padded[end - 1] * (ends[end - 1] - starts[:end]) + chunk_cost
        total = best[:-1, :end] + cost
        origin[1:, end] = total.argmin(1)
        best[1:, end] = total.min(1)
    cuts, end = [], len(ends)
    for chunks in range(int(best[:, -1].argmin()), 1, -1):
        end = int(origin[chunks, end])
        cuts.append(int(ends[end - 1]))
    return cuts[::-1]


@torch.inference_mode()
def embed_all(
    encoder: nn.Module,
    tokens: TokenRows,
    dim: int,
    device: torch.device,
    *,
    report: Reporter,
    stage: str,
    file: Path,
    tokens_per_batch: int = 4096,
) -> np.ndarray:
    """The embeddings of all rows, float32 [N, D], in batches of about `tokens_per_batch` tokens and like length.

    :param file: where the embeddings go, memory-mapped, if they are too many to hold in memory.
    """
    shape = (len(tokens), dim)
    large = shape[0] * dim * 4 > IN_MEMORY_BYTES
    embeddings = np.memmap(file, np.float32, 'w+', shape=shape) if large else np.empty(shape, np.float32)
    lengths = np.diff(tokens.offsets).astype(np.int32)
    order = np.argsort(lengths, kind='stable')
    was_training = encoder.training
    encoder.eval()
    done, start = 0, time.perf_counter()
    while done < len(order):
        longest = lengths[order[done : done + tokens_per_batch]]
        size = max(1, int((longest * np.arange(1, len(longest) + 1) <= tokens_per_batch).sum()))
        rows = order[done : done + size]
        embeddings[rows] = encoder(*tokens.padded(rows, device)).float().cpu().numpy()
        done += size
        rate = done / (time.perf_counter() - start)
        report(Progress(stage, done, len(order), samples_per_second=rate, eta=(len(order) - done) / rate))
    encoder.train(was_training)
    return embeddings
