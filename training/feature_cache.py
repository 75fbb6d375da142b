"""What the frozen layers of an encoder give, computed once and kept on disk.

It lies in front of the first layer that is trained, in a folder named by what it was made of and by: the contents, the
preprocessing, the frozen weights. So all epochs, runs and resumed runs that have these in common share it, and it is
never stale.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time

import numpy as np
import torch
from torch import Tensor, nn

from finetuner.inference.encoder import Encoder
from finetuner.inference.transfer import on_device
from training.cache_folder import CacheFolder
from training.cut import CannotCut, Cut, make_cut
from training.embed import ITEMS_AT_ONCE, TOKENS_AT_ONCE, budget_chunks, item_costs
from training.freezing import frozen_groups, keep_frozen
from training.progress import Progress, Reporter
from training.rows import Rows, RowsWriter

logger = logging.getLogger(__name__)

FORMAT = 1  # of the folder; part of its name
KEYS = 'keys.u64'
DTYPE = 'float32'
# settings of an encoder that have no part in what is cached
_BEYOND = {'training', 'normalize'}
SAMPLE = 16  # rows of the features that count for the name beside all keys


class FeatureCache:
    """Embeds items from cached hidden states, or from cached pooled vectors where the whole backbone is frozen.

    :param features: what is cached of every item: hidden states of a text's tokens [T, D], or one row.
    :param inputs: the features that this was made of.
    """

    def __init__(self, cut: Cut, features: Rows, inputs: Rows):
        self.cut, self.features, self.inputs = cut, features, inputs

    @classmethod
    def open_or_fill(
        cls, encoder: Encoder, features: Rows, keys: np.ndarray, device: torch.device, report: Reporter
    ) -> FeatureCache | None:
        """Find what the frozen layers give for these features, or compute it.

        The encoder is set to evaluation meanwhile. Several processes may do this at the same time: a folder appears
        complete or not at all.

        :param keys: content keys of the features, uint64 [N]: items of equal keys are computed once.
        :returns: None if there is nothing to gain, or it cannot be done: no layer that computes anything is frozen, the
            encoder changes its inputs at random, or the cache would not fit; the log says which.
        """
        depth = frozen_groups(encoder)
        if not computes(encoder.layer_groups()[:depth]) or not len(features):
            return None
        if getattr(encoder, 'augment', False):
            logger.info('Features of frozen layers are not cached: the inputs change at random (augment)')
            return None
        distinct, first = np.unique(np.asarray(keys), return_index=True)
        was_training = encoder.training
        encoder.eval()
        try:
            cut = make_cut(encoder, depth, features, device)
            key = cache_key(encoder, cut, features.select(first), distinct)
            folder = CacheFolder()
            rows = folder.open(key)
            if rows is None:
                costs = item_costs(encoder, features, first)
                _fill(cut, folder, key, features.select(first), distinct, costs, device, report)
                rows = folder.open(key)
        except CannotCut as reason:
            logger.info('Features of frozen layers are not cached: %s', reason)
            return None
        finally:
            encoder.train(was_training)
            keep_frozen(encoder)
        if rows is None:
            return None
        stored = np.fromfile(rows.directory / KEYS, np.uint64)
        order = np.argsort(stored)
        return cls(cut, rows.select(order[np.searchsorted(stored[order], keys)]), features)

    def costs(self, items: np.ndarray) -> np.ndarray:
        """What each item costs in a forward: the tokens of a text, 1 for anything else. int64 [B]."""
        return self.features.lengths(items)

    def embed(self, items: np.ndarray, device: torch.device) -> Tensor:
        """float32 [B, dim], in the order of `items`, with the gradients of the layers that are trained."""
        hidden = on_device(self.features.concatenated(items), device)
        return self.cut.resume(hidden, self.features.lengths(items), self.inputs.take(items))


def computes(groups: list[nn.Module]) -> bool:
    """Whether layers multiply matrices: what embedding tables give is looked up faster than it is read from a file."""
    multiply = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)
    modules = [module for group in groups for module in group.modules()]
    return any(isinstance(module, multiply) or type(module).__name__ == 'Conv1D' for module in modules)


def cache_key(encoder: Encoder, cut: Cut, features: Rows, keys: np.ndarray) -> str:
    """sha256 of all that the cached values depend on."""
    digest = hashlib.sha256(json.dumps([FORMAT, DTYPE, cut.name, encoder.preprocessor.digest]).encode())
    digest.update(weights_digest(encoder, cut.trained).encode())
    digest.update(np.ascontiguousarray(keys).tobytes())
    for row in features.take(np.linspace(0, len(features) - 1, SAMPLE).astype(np.int64)):
        digest.update(np.ascontiguousarray(row).tobytes())
    return digest.hexdigest()


def weights_digest(encoder: Encoder, trained: list[nn.Module]) -> str:
    """sha256 of an encoder's weights and settings, those of some of its parts excepted."""
    other = {id(tensor) for part in trained for tensor in (*part.parameters(), *part.buffers())}
    inside = {id(module) for part in trained for module in part.modules()}
    digest = hashlib.sha256()
    for name, module in encoder.named_modules():
        if id(module) not in inside:  # what no weight shows: numbers of heads, strides, pooling
            simple = {key: value for key, value in vars(module).items() if _is_simple(value)}
            known = {
                key: repr(value) for key, value in simple.items() if key not in _BEYOND and not key.startswith('_')
            }
            digest.update(json.dumps([name, type(module).__name__, known], sort_keys=True).encode())
    for name, tensor in (*encoder.named_parameters(), *encoder.named_buffers()):
        if id(tensor) not in other:
            digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}'.encode())
            # as bytes: numpy has no bfloat16
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _is_simple(value: object) -> bool:
    # options of a pooling come as a dict
    values = value.values() if isinstance(value, dict) else [value]
    return all(isinstance(item, (str, int, float, tuple)) for item in values)


@torch.no_grad()
def _fill(
    cut: Cut,
    folder: CacheFolder,
    key: str,
    features: Rows,
    keys: np.ndarray,
    costs: np.ndarray,
    device: torch.device,
    report: Reporter,
) -> None:
    """Compute what is to be cached into the folder, or leave it empty if it gets too large."""
    budget = TOKENS_AT_ONCE if costs.max() > 1 else ITEMS_AT_ONCE
    chunks = list(budget_chunks(costs, budget))
    with torch.autocast(device.type, enabled=False):
        sample = cut.compute(features.take(chunks[-1][-1:]), device)
        needed = int(cut.size(sample, features, costs))
        if not folder.make_room(needed):
            return
        start, done = time.perf_counter(), 0
        with RowsWriter(folder.path(key), DTYPE, sample[0].shape[1:]) as writer:
            for chunk in chunks:
                writer.append(cut.compute(features.take(chunk), device))
                done += len(chunk)
                rate = done / (time.perf_counter() - start)
                left = (len(keys) - done) / rate
                report(Progress('Caching features', done, len(keys), samples_per_second=rate, eta=left))
            keys[np.concatenate(chunks)].tofile(writer.folder / KEYS)
    logger.info('Cached what the frozen layers give for %d items: %.1f MB', len(keys), needed / 1e6)
