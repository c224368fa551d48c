"""What is given to `encode`: the obvious is converted, anything else a ValueError that names the form that is wanted.

Converted are 8-bit pixels (uint8, divided by 255), 16-bit samples (int16, divided by 32768), and floating-point numbers
of any width (to float32). Everything else would be a guess, and codes of a wrong guess look like any others: no layout,
range or batch axis is ever guessed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SLACK = 1e-3  # how far pixels may lie outside [0, 1]: rounding, no more
LOUDEST = 8.0  # largest sample: 18 dB above full scale is still taken for a loud sound, integers as floats are not

PICTURES = "pictures are a float tensor [B, 3, H, W] with values in [0, 1], or uint8"
SOUNDS = "sounds are a float tensor [B, 1, n] at the model's sample rate with values in [-1, 1], or int16"
CLIPS = "clips are a float tensor [B, 3, T, H, W] with values in [0, 1], or uint8"


def to_pictures(x: Any, device: torch.device) -> Tensor:
    """``x [B, 3, H, W]`` as float32 on ``device``; values are not looked at. Raises ValueError."""
    x = _tensor(x, PICTURES)
    if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
        raise ValueError(f"{PICTURES}: got {_described(x)}{_pixel_hint(x, 4)}")
    return _to_float(x, torch.uint8, 255, PICTURES, device)


def to_clips(x: Any, device: torch.device, part: bool = False) -> Tensor:
    """``x [B, 3, T, H, W]`` as float32 on ``device``; values are not looked at. Raises ValueError.

    Args:   part: of a stream, which may have no frames.
    """
    x = _tensor(x, CLIPS)
    if x.ndim != 5 or x.shape[1] != 3 or 0 in (x.shape[:2] + x.shape[3:] if part else x.shape):
        raise ValueError(f"{CLIPS}: got {_described(x)}{_pixel_hint(x, 5)}")
    return _to_float(x, torch.uint8, 255, CLIPS, device)


def to_sounds(x: Any, device: torch.device, part: bool = False) -> Tensor:
    """``x [B, 1, n]`` as float32 on ``device``; values are not looked at. Raises ValueError.

    Args:   part: of a stream, which may have no samples.
    """
    x = _tensor(x, SOUNDS)
    if x.ndim != 3 or x.shape[1] != 1 or 0 in (x.shape[:2] if part else x.shape):
        hint = ""
        if x.ndim < 3:
            hint = "; one signal [n] is x[None, None]"
        elif x.shape[1] == 2:
            hint = "; stereo is two signals, torch.stack([(l + r) / 2, (l - r) / 2])[:, None] of left and right [n]"
        raise ValueError(f"{SOUNDS}: got {_described(x)}{hint}")
    return _to_float(x, torch.int16, 32768, SOUNDS, device)


def check_pixels(x: Tensor) -> None:
    """Raise ValueError unless all values lie in [0, 1]. Waits for the device."""
    low, high = _range(x, "pixels")
    if low < -SLACK or high > 1 + SLACK:
        hint = "x.clamp(0, 1)"
        if low >= 0 and high > 2:
            hint = "x / 255"
        elif low >= -1 - SLACK and high <= 1 + SLACK:
            hint = "(x + 1) / 2"
        raise ValueError(f"pixels are in [0, 1], and these are {low:.4g} to {high:.4g}: {hint} might be meant")


def check_samples(x: Tensor) -> None:
    """Raise ValueError unless samples are finite and of at most ``LOUDEST``; full scale is 1. Waits for the device."""
    low, high = _range(x, "samples")
    if max(-low, high) > LOUDEST:
        raise ValueError(f"samples are in [-1, 1], and these are {low:.4g} to {high:.4g}: x / 32768 might be meant")


def _range(x: Tensor, what: str) -> tuple[float, float]:
    """Smallest and largest value. Raises ValueError for a NaN or an infinity."""
    low, high = torch.stack(x.aminmax()).tolist() if x.numel() else (0.0, 0.0)
    if not (abs(low) < float("inf") and abs(high) < float("inf")):  # written so that NaN is refused
        raise ValueError(f"{what} must be finite, and some are NaN or infinite")
    return low, high


def _tensor(x: Any, form: str) -> Tensor:
    if isinstance(x, Tensor):
        return x
    kind = f"{type(x).__module__.partition('.')[0]}.{type(x).__name__}"
    hint = ""
    if isinstance(x, (list, tuple)):
        hint = "; signals of one size are torch.stack(x), others are encoded one by one, as their grids differ"
    elif hasattr(x, "__array_interface__"):
        hint = "; torch.from_numpy(numpy.array(x)) is a tensor, whose axes may need a permute"
    raise ValueError(f"{form}: got a {kind}{hint}")


def _to_float(x: Tensor, whole: torch.dtype, scale: int, form: str, device: torch.device) -> Tensor:
    if x.dtype == whole:
        return x.to(device).float() / scale
    if not x.is_floating_point():
        raise ValueError(f"{form}: got {_described(x)}")
    return x.to(device, torch.float32)


def _described(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"


def _pixel_hint(x: Tensor, rank: int) -> str:
    """What might be meant by a tensor of another shape than pictures, or clips, have."""
    if x.ndim == rank - 1:
        return "; one of them is x[None]"
    if x.ndim == rank and x.shape[-1] == 3:
        return f"; channels come first, x.movedim(-1, 1){' of [B, T, H, W, 3]' if rank == 5 else ''}"
    if x.ndim == rank and x.shape[1] == 1:
        return "; grey is x.expand(-1, 3, *x.shape[2:])"
    if x.ndim == rank and x.shape[1] == 4:
        return "; alpha is no part of it, x[:, :3]"
    if rank == 5 and x.ndim == 5 and x.shape[2] == 3:
        return "; time comes after channels, x.transpose(1, 2)"
    return ""
