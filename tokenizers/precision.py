"""Arithmetic that is the same on a GPU and a CPU, and whatever surrounds the call: float32, all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

WHOLE = ("none", "ieee")  # settings of float32 that leave it as it is


class DtypeError(ValueError):
    """Weights are of another type than float32, in which alone codes and signals are made."""


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Around what computes in the types that it is given.

    Nothing at all while a graph is traced outside of autocast, since PyTorch cannot save exported graphs that switch it
    (`torch.compile` traces anew when it is switched on; an exported graph must be called without).
    """
    if torch.compiler.is_compiling() and not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextmanager
def whole_float32(device: torch.device) -> Iterator[None]:
    """No autocast, and no TF32 or bfloat16 in place of float32: they would move codes and pixels.

    While `torch.compile` or `torch.export` trace, only autocast is switched off: the other settings are those of the
    moment when the traced code runs.
    """
    with no_autocast(device):
        if torch.compiler.is_compiling():
            yield
        elif device.type == "cuda":
            with _whole_on_cuda():
                yield
        else:
            mkldnn: Any = torch.backends.mkldnn
            with _whole(mkldnn.matmul, mkldnn.conv):
                yield


@contextmanager
def _whole_on_cuda() -> Iterator[None]:
    cuda: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    try:  # PyTorch refuses to read the older settings where the newer ones were used, and to compute with a mix
        before = cuda.allow_tf32, cudnn.allow_tf32
    except RuntimeError:
        with _whole(cuda, cudnn.conv, cudnn.rnn):
            yield
        return
    cuda.allow_tf32 = False
    try:
        with cudnn.flags(enabled=True, allow_tf32=False):
            yield
    finally:
        cuda.allow_tf32 = before[0]


@contextmanager
def _whole(*parts: Any) -> Iterator[None]:
    """Set ``fp32_precision`` of these parts of ``torch.backends`` to "ieee" where it is less."""
    less = [(part, part.fp32_precision) for part in parts if part.fp32_precision not in WHOLE]
    for part, _ in less:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        for part, before in less:
            part.fp32_precision = before


def require_float32(module: nn.Module, name: str) -> None:
    """Raise DtypeError if weights of ``module``, which is called ``name``, are of another type than float32."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise DtypeError(
                f"{name} computes in float32, and holds weights of {str(tensor.dtype).removeprefix('torch.')}:"
                " call .float(), or load it again, since rounded weights make other codes"
            )
