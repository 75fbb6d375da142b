"""From memory to a device."""

from __future__ import annotations

import numpy as np
import torch


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor there. A GPU fetches it by itself, from pinned memory, while the process goes on."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor
