"""Inference with torch: any model directory, short name or hub id, with or without an ONNX model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from finetuner.inference.engine import InferenceEngine
from finetuner.inference.text_encoder import TextEncoder
from finetuner.inference.tokenization import TextTokenizer


class TorchInferenceEngine(InferenceEngine):
    """Runs a :class:`TextEncoder`.

    :param encoder: the encoder, or where to load it from. It is moved to the device and set to evaluation.
    :param batch_size: how many texts the model is given at once.
    :param device: `cpu` or `cuda`.
    :param device_id: which of several GPUs.
    :param omp_num_threads: as `intra_op_num_threads`, where that is 0.
    :param intra_op_num_threads: threads that compute one operator on the CPU, for all of torch in this process; 0
        leaves it as it is.
    :param inter_op_num_threads: of no effect here: the operators of a text model run one after the other.
    :raises ValueError: the model is not to be found or not supported.
    :raises RuntimeError: there is no such GPU.
    """

    def __init__(
        self,
        encoder: TextEncoder | str | Path,
        *,
        batch_size: int = 32,
        device: str = 'cpu',
        device_id: int = 0,
        omp_num_threads: int | None = None,
        intra_op_num_threads: int = 0,
        inter_op_num_threads: int = 0,
    ):
        self.device = _device(device, device_id)
        if threads := intra_op_num_threads or omp_num_threads:
            torch.set_num_threads(threads)
        encoder = encoder if isinstance(encoder, TextEncoder) else TextEncoder.load(encoder)
        self.encoder = encoder.eval().to(self.device)
        self._takes_types = 'token_type_ids' in encoder.input_names
        # a copy: the encoder's own is changed by every call
        tokenizer = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
        pad_id = encoder.tokenizer.pad_token_id or 0
        super().__init__(TextTokenizer(tokenizer, encoder.max_length, pad_id), encoder.dim, batch_size)

    def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        names = ['input_ids', 'attention_mask', *['token_type_ids'] * self._takes_types]
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(inputs[name]).to(self.device, non_blocking=True) for name in names}
            return self.encoder(**tensors).cpu().numpy()


def _device(device: str, device_id: int) -> torch.device:
    if device == 'cpu':
        return torch.device('cpu')
    if not torch.cuda.is_available():
        raise RuntimeError("device 'cuda' was asked for, but torch finds no CUDA device: use device='cpu'")
    if not 0 <= device_id < torch.cuda.device_count():
        raise RuntimeError(f'there is no GPU {device_id}: torch finds {torch.cuda.device_count()}, counted from 0')
    return torch.device('cuda', device_id)
