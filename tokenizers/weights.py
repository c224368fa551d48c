"""Weights on disk: safetensors, networks as int8 per output channel, everything else as float16.

int8 halves a release against float16 and costs little: the error of a weight is at most 1/254 of the largest weight of
its output channel. The loss is measured for every release (see its model card), never assumed.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

WEIGHTS_FILE = "model.safetensors"
SCALE = ".int8_scale"  # suffix of the tensor that holds the step size of every output channel


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``weight [O, ...]`` to int8 values and float32 step sizes ``[O]``, so that ``values * steps`` approximates it.

    Symmetric, round to nearest even; a channel of zeros gets step 1.
    """
    flat = weight.detach().float().flatten(1)
    step = flat.abs().amax(1) / 127
    step = torch.where(step > 0, step, torch.ones_like(step))
    values = (flat / step[:, None]).round().clamp(-127, 127).to(torch.int8)
    return values.reshape(weight.shape), step


def dequantize_int8(values: Tensor, step: Tensor) -> Tensor:
    """Inverse of :func:`quantize_int8`: float32 ``[O, ...]``; one product a weight, the same on every machine."""
    return values.float() * step.reshape(-1, *[1] * (values.ndim - 1))


def save(state: dict[str, Tensor], path: Path, int8: tuple[str, ...] = ()) -> None:
    """Write ``state`` to ``path``; matrices and kernels whose name starts with one of ``int8`` go as int8."""
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if tensor.ndim >= 2 and name.startswith(int8):
            out[name], out[name + SCALE] = quantize_int8(tensor)
        else:
            out[name] = tensor.half() if tensor.is_floating_point() else tensor
    beside = path.with_suffix(".tmp")  # and renamed: a half-written file never stays, a mapped one is not pulled away
    beside.write_bytes(to_bytes({name: tensor.contiguous() for name, tensor in out.items()}))
    beside.replace(path)


def load(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save` wrote, as float32 on the CPU. Raises ValueError if it is missing or damaged."""
    try:
        raw = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read weights {path}: {error}") from error
    state: dict[str, Tensor] = {}
    for name, tensor in raw.items():
        if name.endswith(SCALE):
            continue
        if tensor.dtype == torch.int8:
            step = raw.get(name + SCALE)
            if step is None or step.shape != tensor.shape[:1]:
                raise ValueError(f"weights {path}: {name} has no step sizes that fit")
            state[name] = dequantize_int8(tensor, step)
        else:
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    return state


def file_hash(path: Path) -> str:
    """First 8 bytes of the SHA-256 of a file, as 16 hex digits (``sha256sum FILE | cut -c1-16``)."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
