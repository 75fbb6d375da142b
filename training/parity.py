"""How well two ways to compute embeddings agree, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from finetuner.inference.encoder import Encoder
from finetuner.inference.onnx_engine import OUTPUT_NAME
from training.samples import Inputs

Run = Callable[[Inputs], np.ndarray]
"""From the inputs of a batch to embeddings, float32 [B, dim]."""


@dataclass(frozen=True)
class Parity:
    """:param difference: the largest of a coordinate, relative to the length of the embedding.
    :param cosine: the least of two embeddings of the same item.
    :param mean_cosine: over all items.
    """

    difference: float
    cosine: float
    mean_cosine: float

    def plain(self) -> dict[str, float]:
        # rounded, so that the last bits of a sum do not show
        return {
            'difference': float(f'{self.difference:.0e}'),
            'cosine': round(self.cosine, 5),
            'mean_cosine': round(self.mean_cosine, 5),
        }


def compare(expected: Run, found: Run, batches: Sequence[Inputs]) -> Parity:
    """Embeddings that are not finite agree with none."""
    differences, cosines = [], []
    for inputs in batches:
        one, two = (run(inputs).astype(np.float64) for run in (expected, found))
        two = np.where(np.isfinite(two), two, np.inf)
        lengths = np.maximum(np.linalg.norm(one, axis=1), 1e-12)
        with np.errstate(invalid='ignore'):
            differences.append(np.abs(one - two).max(1) / lengths)
            cosines.append((one * two).sum(1) / lengths / np.maximum(np.linalg.norm(two, axis=1), 1e-12))
    cosine = np.nan_to_num(np.concatenate(cosines), nan=-1.0)
    return Parity(float(np.concatenate(differences).max()), float(cosine.min()), float(cosine.mean()))


def torch_run(encoder: Encoder) -> Run:
    """The encoder as it is: set it to evaluation before."""

    @torch.no_grad()
    def run(inputs: Inputs) -> np.ndarray:
        return encoder(**{name: torch.from_numpy(inputs[name]) for name in encoder.input_names}).numpy()

    return run


def onnx_run(path: Path) -> Run:
    """A model.onnx, on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    names = [node.name for node in session.get_inputs()]
    return lambda inputs: session.run([OUTPUT_NAME], {name: inputs[name] for name in names})[0]
