"""Items to embeddings without computing padding. This is the one place through which training runs its encoders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from finetuner.inference.encoder import Encoder
from finetuner.inference.text_encoder import TextEncoder
from finetuner.inference.transfer import on_device
from training.progress import Progress, Reporter
from training.rows import Rows

# What starting one more forward costs, in tokens that could be computed instead.
CHUNK_COST = {'cpu': 128, 'cuda': 4096}
MAX_CHUNKS = 16
# What is embedded at once without gradients: tokens of texts, items of anything else.
TOKENS_AT_ONCE = 4096
ITEMS_AT_ONCE = 32
# Embeddings larger than this are written to a memory-mapped file instead of memory.
IN_MEMORY_BYTES = 256 << 20


class Embedder(Protocol):
    """Items of one store to embeddings, with gradients: from their features, or from cached hidden states."""

    features: Rows

    def costs(self, items: np.ndarray) -> np.ndarray:
        """What each item costs in a forward: the tokens of a text, 1 for anything else. int64 [B]."""
        ...

    def embed(self, items: np.ndarray, device: torch.device) -> torch.Tensor:
        """float32 [B, dim], in the order of `items`."""
        ...


class FeatureEmbedder:
    """Runs the whole encoder on the features.

    :param pack: texts may be packed into one stream of tokens, where the encoder can.
    """

    def __init__(self, encoder: Encoder, features: Rows, pack: bool = True):
        self.encoder, self.features, self.pack = encoder, features, pack

    def costs(self, items: np.ndarray) -> np.ndarray:
        return item_costs(self.encoder, self.features, items)

    def embed(self, items: np.ndarray, device: torch.device) -> torch.Tensor:
        encoder, features = self.encoder, self.features
        if encoder.modality != 'text':
            return run(encoder, features.take(items), device)
        if self.pack and isinstance(encoder, TextEncoder) and encoder.can_pack:
            tokens = on_device(features.concatenated(items).astype(np.int64), device)
            return encoder.packed(tokens, torch.from_numpy(features.lengths(items)))
        return by_length(
            features.lengths(items), device, lambda chunk: run(encoder, features.take(items[chunk]), device)
        )


def item_costs(encoder: Encoder, features: Rows, items: np.ndarray) -> np.ndarray:
    return features.lengths(items) if encoder.modality == 'text' else np.ones(len(items), np.int64)


def model_inputs(encoder: Encoder, features: Sequence[np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """The arguments of the encoder's forward, of one padded batch."""
    inputs = encoder.preprocessor.collate(features)
    return {name: on_device(inputs[name], device) for name in encoder.input_names}


def run(encoder: Encoder, features: Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """One forward of one padded batch."""
    return encoder(**model_inputs(encoder, features, device))


def length_chunks(lengths: np.ndarray, device: torch.device) -> list[np.ndarray]:
    """Positions of items of like length, int64 each, such that little is padded."""
    order = np.argsort(lengths, kind='stable')
    return np.split(order, chunk_cuts(lengths[order], CHUNK_COST[device.type]))


def by_length(lengths: np.ndarray, device: torch.device, embed: Callable[[np.ndarray], torch.Tensor]) -> torch.Tensor:
    """What `embed` gives for the positions of items of like length, in the order of the items.

    Cut into such chunks, short and long texts compute little padding, and give the same embeddings and gradients as one
    padded forward (with dropout on: the same in distribution).
    """
    chunks = length_chunks(lengths, device)
    back = on_device(np.argsort(np.concatenate(chunks)), device)
    return torch.cat([embed(chunk) for chunk in chunks])[back]


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


def budget_chunks(costs: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Cut items into chunks of like cost, each within the budget or of one item: positions, int64, cheapest first."""
    order = np.argsort(costs, kind='stable')
    done = 0
    while done < len(order):
        ahead = np.cumsum(costs[order[done : done + budget]])
        size = max(1, int(np.searchsorted(ahead, budget, 'right')))
        yield order[done : done + size]
        done += size


@torch.inference_mode()
def embed_all(
    embedder: Embedder,
    encoder: Encoder,
    items: np.ndarray,
    device: torch.device,
    *,
    report: Reporter,
    stage: str,
    file: Path,
    budget: int | None = None,
) -> np.ndarray:
    """The embeddings of items, float32 [N, D], batch by batch of like length.

    :param encoder: is set to evaluation meanwhile.
    :param file: where the embeddings go, memory-mapped, if they are too many to hold in memory.
    :param budget: tokens of texts, or items of anything else, in a batch.
    """
    shape = (len(items), encoder.dim)
    large = shape[0] * shape[1] * 4 > IN_MEMORY_BYTES
    embeddings = np.memmap(file, np.float32, 'w+', shape=shape) if large else np.empty(shape, np.float32)
    budget = budget or (TOKENS_AT_ONCE if encoder.modality == 'text' else ITEMS_AT_ONCE)
    was_training = encoder.training
    encoder.eval()
    done, start = 0, time.perf_counter()
    for chunk in budget_chunks(embedder.costs(items), budget):
        embeddings[chunk] = embedder.embed(items[chunk], device).float().cpu().numpy()
        done += len(chunk)
        rate = done / (time.perf_counter() - start)
        report(Progress(stage, done, len(items), samples_per_second=rate, eta=(len(items) - done) / rate))
    encoder.train(was_training)
    return embeddings
