"""Arithmetic that a GPU and a CPU do alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def whole_float32(device: torch.device) -> Iterator[None]:
    """No TF32 on a GPU, which would move codes and pixels away from the CPU's."""
    cuda = torch.backends.cuda.matmul
    before = cuda.allow_tf32
    if device.type == "cuda":
        cuda.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        if device.type == "cuda":
            cuda.allow_tf32 = before
