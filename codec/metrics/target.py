"""What the error of a picture can be told with, by the names of the command line: `--target psnr=40`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import UsageError
from .picture import MS_SSIM_SMALLEST, SSIMULACRA2_SMALLEST, as_rgb, decibel, ms_ssim, psnr, ssimulacra2

Measure = Callable[[np.ndarray, np.ndarray], float | None]
METRICS: dict[str, Measure] = {"psnr": psnr, "ms-ssim": ms_ssim, "ssimulacra2": ssimulacra2}
LARGEST = 1 << 24  # pixels that are measured as a whole: MS-SSIM takes 240 bytes for each, SSIMULACRA 2 500
SMALLEST = {"psnr": 1, "ms-ssim": MS_SSIM_SMALLEST, "ssimulacra2": SSIMULACRA2_SMALLEST}


def check_measurable(metric: str, size: tuple[int, ...]) -> None:
    """Raise UsageError if a metric cannot be taken of pictures of a height and width, or its package is missing."""
    if metric != "psnr" and size[0] * size[1] > LARGEST:
        raise UsageError(f"{metric} is taken of {LARGEST} pixels at most, and this picture has {size[1]} x {size[0]}")
    least = SMALLEST[metric]
    if min(size[:2]) < least:
        raise UsageError(f"{metric} wants {least} pixels a side at least, and this picture has {size[1]} x {size[0]}")
    black = np.zeros((least, least, 3), np.uint8)
    measure(metric, black, black)


def measure(metric: str, x: np.ndarray, x_hat: np.ndarray) -> float:
    """How near ``x_hat`` is to ``x``, ``[H, W, 1 or 3]`` uint8; more is better. Raises UsageError."""
    value = METRICS[metric](as_rgb(x), as_rgb(x_hat))
    assert value is not None
    return value


def on_a_line(metric: str, value: float) -> float:
    """A value as it rises about evenly with the quality: MS-SSIM in decibels."""
    return decibel(value) if metric == "ms-ssim" else value
