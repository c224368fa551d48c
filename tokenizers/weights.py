"""Weights on disk: safetensors, networks as int8 per output channel, everything else as float16, packed.

int8 halves a release against float16 and costs little: the error of a weight is at most 1/254 of the largest weight of
its output channel. Packing (:mod:`~tokodec.entropy.packed`) takes another fifth and costs nothing; with coarser steps
it takes more, for they leave fewer values to tell apart. The loss is measured for every release (see its model card),
never assumed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..entropy import packed
from ..entropy.packed import file_hash, together

__all__ = [
    "SCALE", "WEIGHTS_FILE", "dequantize_int8", "file_hash", "load", "load_hashed", "quantize_int8", "save", "together",
]  # fmt: skip

WEIGHTS_FILE = "model.safetensors"
TABLES = (".basis", ".codewords")  # suffixes of codebooks, of SimVQ and FullVQ before they are multiplied
SCALE = ".int8_scale"  # suffix of the tensor that holds the step size of every output channel


def quantize_int8(weight: Tensor, largest: int = 127) -> tuple[Tensor, Tensor]:
    """``weight [O, ...]`` to int8 values and float32 step sizes ``[O]``, so that ``values * steps`` approximates it.

    Symmetric, round to nearest even; a channel of zeros gets step 1.

    Args:   largest: values are -largest to largest; 63 is steps of 7 bits, 31 of 6.
    Raises: ValueError if that is not 1 to 127.
    """
    if not 1 <= largest <= 127:
        raise ValueError(f"the largest int8 value is 1 to 127, got {largest}")
    flat = weight.detach().float().flatten(1)
    step = flat.abs().amax(1) / largest
    step = torch.where(step > 0, step, torch.ones_like(step))
    values = (flat / step[:, None]).round().clamp(-largest, largest).to(torch.int8)
    return values.reshape(weight.shape), step


def dequantize_int8(values: Tensor, step: Tensor) -> Tensor:
    """Inverse of :func:`quantize_int8`: float32 ``[O, ...]``; one product a weight, the same on every machine."""
    return values.float() * step.reshape(-1, *[1] * (values.ndim - 1))


def is_int8(name: str, tensor: Tensor, int8: tuple[str, ...], half: tuple[str, ...] = ()) -> bool:
    """Whether a release holds this tensor as int8: matrices and kernels whose name starts with one of ``int8``, and
    with none of ``half``."""
    return tensor.ndim >= 2 and name.startswith(int8) and not name.startswith(half)


def save(
    state: dict[str, Tensor], path: Path, int8: tuple[str, ...] = (), largest: int = 127, half: tuple[str, ...] = (),
    codebooks: int = 0, whole: bool = False, exact: tuple[str, ...] = (),
) -> None:  # fmt: skip
    """Write ``state`` to ``path``, as int8 what :func:`is_int8` says, else as float16.

    Args: largest: of the int8 values, see :func:`quantize_int8`.
          codebooks: largest int8 value of codebooks (``TABLES``), each codeword with a step of its own; 0: as float16.
          whole: write all as it is.  exact: prefixes of names that are written as they are.
    """
    if whole:
        packed.write(path, whole_bytes(state))
        return
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu()
        if exact and name.startswith(exact):
            out[name] = tensor.clone()  # modules of others may share memory
        elif is_int8(name, tensor, int8, half):
            out[name], out[name + SCALE] = quantize_int8(tensor, largest)
        elif codebooks and name.endswith(TABLES):
            out[name], out[name + SCALE] = quantize_int8(tensor, codebooks)
        else:
            out[name] = tensor.half() if tensor.is_floating_point() else tensor
    packed.write(path, to_bytes({name: tensor.contiguous() for name, tensor in out.items()}))


def whole_bytes(state: dict[str, Tensor]) -> bytes:
    """The file of ``state`` as it is, not packed; tensors that share memory are written one by one."""
    return to_bytes({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()})


def load(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save` wrote, as float32 on the CPU. Raises ValueError if it is missing or damaged."""
    return load_hashed(path)[0]


def load_hashed(path: Path) -> tuple[dict[str, Tensor], str]:
    """As :func:`load`, with the hash of the file: it is read and unpacked once."""
    try:
        plain = packed.read(path)
        raw = from_bytes(plain)
    except (OSError, ValueError, SafetensorError) as error:
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
        if not bool(torch.isfinite(state[name]).all()):
            raise ValueError(f"weights {path}: {name} holds a number that is not finite")
    return state, packed.hash_of(plain)
