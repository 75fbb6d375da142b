"""Inference with torch: any model directory, short name or hub id, with or without an ONNX model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from finetuner.inference.backbones import load_encoder
from finetuner.inference.encoder import Encoder
from finetuner.inference.engine import InferenceEngine
from finetuner.inference.precision import DTYPES, Precision, check_precision, mean_cosine
from finetuner.inference.prepacking import PREPACKED_MULTIPLE, prepack
from finetuner.inference.preprocessing import Modality
from finetuner.inference.samples import sample_contents
from finetuner.inference.text_encoder import TextEncoder

# tokens of a batch of texts without padding: enough for large products, little memory
_PACKED_TOKENS = {'cpu': 4096, 'cuda': 32768}
_SAMPLES = 16  # contents that a reduced model is measured with
_TIMED: dict[Modality, int] = {'text': 8, 'image': 2, 'mesh': 0, 'tensor': 0}  # and one that is to be faster

_logger = logging.getLogger(__name__)


class TorchInferenceEngine(InferenceEngine):
    """Runs an :class:`Encoder`.

    :param encoder: the encoder, or where to load it from. It is moved to the device and set to evaluation. One that is
        loaded here is made fit for this engine alone: it can be neither trained nor saved.
    :param select_model: which encoder of a model that has several.
    :param batch_size: how many items the model is given at once.
    :param device: `cpu` or `cuda`.
    :param device_id: which of several GPUs.
    :param omp_num_threads: as `intra_op_num_threads`, where that is 0.
    :param intra_op_num_threads: threads that compute one operator on the CPU, for all of torch in this process; 0
        leaves it as it is.
    :param inter_op_num_threads: of no effect here: the operators of a model run one after the other.
    :param precision: of what torch has kernels for in it, `fp32`, `bf16` or `fp16`. How near the embeddings
        are to those of fp32 is measured and logged.
    :raises SelectModelRequired: the model has several encoders and none was selected.
    :raises ValueError: the model is not to be found or not supported.
    :raises RuntimeError: there is no such GPU.
    """

    def __init__(
        self,
        encoder: Encoder | str | Path,
        *,
        select_model: str | None = None,
        batch_size: int = 32,
        device: str = 'cpu',
        device_id: int = 0,
        omp_num_threads: int | None = None,
        intra_op_num_threads: int = 0,
        inter_op_num_threads: int = 0,
        precision: Precision = 'fp32',
    ):
        self.precision = check_precision(precision)
        self.device = _device(device, device_id)
        if threads := intra_op_num_threads or omp_num_threads:
            torch.set_num_threads(threads)
        is_own = not isinstance(encoder, Encoder)
        encoder = encoder if isinstance(encoder, Encoder) else load_encoder(encoder, select=select_model)
        self.encoder = encoder.eval().to(self.device)
        self._input_names = encoder.input_names
        super().__init__(encoder.preprocessor, encoder.dim, batch_size)
        self._casts = False
        self._multiple = 1
        if precision != 'fp32':
            self._reduce()
        if is_own and self.device.type == 'cpu' and not self._casts:
            self._prepack()

    def _reduce(self) -> None:
        """Have the backbone compute in half the bits, and tell what that changes."""
        samples = self.preprocessor.features(sample_contents(self.modality, _SAMPLES))
        # in fp32 it is found out, too, whether texts can be computed without padding: in fewer bits they differ by more
        exact = self.embed(samples) if samples else None
        if isinstance(self.encoder, TextEncoder):
            self.encoder.to(DTYPES[self.precision])
            self.encoder.head.float()
        else:  # its own code makes floats of pixels
            self._casts = True
        if exact is not None:
            cosine = mean_cosine(exact, self.embed(samples))
            _logger.info('computing in %s: the mean cosine to the embeddings of fp32 is %.5f', self.precision, cosine)

    def _prepack(self) -> None:
        """Have the layers lie as the processor reads them, where that is faster."""
        samples = self.preprocessor.features(sample_contents(self.modality, _TIMED[self.modality]))
        if samples and prepack(self.encoder, lambda: self.embed(samples)):
            self._multiple = PREPACKED_MULTIPLE
            _logger.info('the layers of the model are prepacked, which is faster here')

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            tensors = {
                name: torch.from_numpy(inputs[name]).to(self.device, non_blocking=True) for name in self._input_names
            }
            with torch.autocast(self.device.type, DTYPES[self.precision], enabled=self._casts):
                return self.encoder(**tensors).cpu().numpy()

    @cached_property
    def packs(self) -> bool:
        """Whether texts are computed without padding; then a batch is as many as have so and so many tokens."""
        return isinstance(self.encoder, TextEncoder) and self.encoder.can_pack

    def embed(self, features: Sequence[np.ndarray]) -> np.ndarray:
        if not self.packs:
            return super().embed(features)
        assert isinstance(self.encoder, TextEncoder)
        lengths = torch.tensor([len(row) for row in features])
        with torch.inference_mode():
            tokens = torch.from_numpy(np.concatenate(features).astype(np.int64)).to(self.device, non_blocking=True)
            return self.encoder.packed(tokens, lengths, self._multiple).cpu().numpy()

    def computed(self, features: Sequence[np.ndarray]) -> int:
        if not self.packs:
            return super().computed(features)
        tokens = sum(map(len, features))
        return tokens + -tokens % self._multiple

    def split(self, features: Sequence[np.ndarray], batch_size: int) -> Iterator[np.ndarray]:
        if not self.packs:
            yield from super().split(features, batch_size)
            return
        order = np.array(sorted(range(len(features)), key=lambda row: -len(features[row])), np.int64)
        ends = np.cumsum([len(features[row]) for row in order])
        first = 0
        while first < len(order):
            room = _PACKED_TOKENS[self.device.type] + (ends[first - 1] if first else 0)
            last = max(first + 1, int(np.searchsorted(ends, room, 'right')))
            yield order[first:last]
            first = last


def _device(device: str, device_id: int) -> torch.device:
    if device == 'cpu':
        return torch.device('cpu')
    if not torch.cuda.is_available():
        raise RuntimeError("device 'cuda' was asked for, but torch finds no CUDA device: use device='cpu'")
    if not 0 <= device_id < torch.cuda.device_count():
        raise RuntimeError(f'there is no GPU {device_id}: torch finds {torch.cuda.device_count()}, counted from 0')
    return torch.device('cuda', device_id)
