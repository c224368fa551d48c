"""How far a decoded picture is from its source: PSNR, MS-SSIM and SSIMULACRA 2.

Product, training and benchmarks measure with it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # beta_j = gamma_j of the paper, fine to coarse
MS_SSIM_SMALLEST = 161  # the coarsest of five scales must be larger than the window of 11
SSIMULACRA2_SMALLEST = 225  # the coarsest of six scales must have 8 pixels
_ROWS = 256  # of a picture that are looked at together


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """``[H, W, 1 or 3]`` uint8 to ``[H, W, 3]``: gray three times."""
    return np.ascontiguousarray(pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, 2))


def psnr(x: np.ndarray, x_hat: np.ndarray) -> float:
    """Peak signal-to-noise ratio over all samples of R, G and B together.

    Returns: ``10 log10(255^2 / MSE)``; infinite for equal pictures.
    Units:   decibel, higher is better; 25 is coarse, 40 hard to tell from the source.
    """
    check_pair(x, x_hat)
    parts = ((x[y : y + _ROWS].astype(np.int32), x_hat[y : y + _ROWS]) for y in range(0, len(x), _ROWS))
    squares = sum(int(np.square(part - part_hat).sum(dtype=np.int64)) for part, part_hat in parts)
    return 10 * math.log10(255**2 * x.size / squares) if squares else math.inf


def ms_ssim(x: np.ndarray, x_hat: np.ndarray, fewer: bool = False) -> float | None:
    """Multi-scale structural similarity, the mean of R, G and B.

    Args:    fewer: below 161 pixels a side, take as many of the finest scales as the window fits in, with their weights
             over the sum of those: four from 81 pixels on. Such figures compare with figures of the same size only.
    Returns: 0 to 1, higher is better, 1 for equal pictures; None below 161 pixels a side, or 11 if ``fewer``.
    Source:  Wang, Simoncelli, Bovik 2003, eq. (7): 5 scales, 11 x 11 Gaussian of sigma 1.5, K1 = 0.01, K2 = 0.03. We
             differ where the package pytorch-msssim does, so that numbers compare: colour channels instead of
             luminance, negative similarity counts as 0, odd sides get a border of zeros before they are halved.
    """
    check_pair(x, x_hat)
    n = sum(min(x.shape[:2]) > 10 << scale for scale in range(len(MS_SSIM_WEIGHTS)))
    if n == 0 or (n < len(MS_SSIM_WEIGHTS) and not fewer):
        return None
    return float(similarity(to_tensor(x)[None], to_tensor(x_hat)[None], n_scales=n))


def ssimulacra2(x: np.ndarray, x_hat: np.ndarray) -> float | None:
    """SSIMULACRA 2, a metric fitted to human votes on compressed pictures. The pixels are taken for sRGB.

    Returns: at most 100, higher is better: 90 is hard to tell from the source, 70 high, 50 medium, 30 low quality;
             negative for very bad ones. None below 225 pixels a side: with fewer than six scales the weights meet
             other features.
    Source:  github.com/cloudinary/ssimulacra2 in the reimplementation of the package `ssimulacra2`, which blurs with a
             true Gaussian where the original has a recursive one: compare numbers only with numbers of this package.
    Raises:  UsageError without the `bench` extra.
    """
    check_pair(x, x_hat)
    if min(x.shape[:2]) < SSIMULACRA2_SMALLEST:
        return None
    with bench_extra():
        from ssimulacra2 import compute_ssimulacra2
    return float(compute_ssimulacra2(_as_file(x), _as_file(x_hat)))


@contextmanager
def bench_extra() -> Iterator[None]:
    """Around an import: UsageError in one line, with what to install, for a package that is missing."""
    try:
        yield
    except ImportError as error:
        raise UsageError(f"{error.name or error} is missing: pip install 'tokodec[bench]'") from error


def _as_file(pixels: np.ndarray) -> io.BytesIO:
    """An uncompressed picture file in memory, which is what the package `ssimulacra2` reads."""
    return io.BytesIO(b"P6\n%d %d\n255\n" % (pixels.shape[1], pixels.shape[0]) + pixels.tobytes())


def similarity(x: Tensor, x_hat: Tensor, least: float = 0.0, n_scales: int = len(MS_SSIM_WEIGHTS)) -> Tensor:
    """MS-SSIM as :func:`ms_ssim` takes it, of ``[B, 3, H, W]`` in [0, 1] to ``[B]``; with gradients, on any device.

    Args: least: what smaller similarities of a scale count as; above 0 for training, since the powers of 0 have no
          slope.  n_scales: the finest ones, weighted by their share.
    """
    from torch.nn.functional import avg_pool2d

    pair = x, x_hat
    value = x.new_ones(())
    weights = MS_SSIM_WEIGHTS[:n_scales]
    whole = 1.0 if n_scales == len(MS_SSIM_WEIGHTS) else sum(weights)
    for scale, weight in enumerate(weights):
        luminance, structure = _similarity(*pair)  # [B, 3] each
        last = scale == n_scales - 1
        value = value * (luminance if last else structure).clamp(min=least) ** (weight / whole)
        if not last:
            odd = (pair[0].shape[2] % 2, pair[0].shape[3] % 2)
            pair = avg_pool2d(pair[0], 2, padding=odd), avg_pool2d(pair[1], 2, padding=odd)
    return value.mean(1)


def decibel(similarity: float) -> float:
    """MS-SSIM as the field plots it: ``-10 log10(1 - similarity)`` dB, infinite for 1."""
    return -10 * math.log10(1 - similarity) if similarity < 1 else math.inf


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Means over the picture of ``l * cs`` and of ``cs`` (eq. (6) and its contrast-structure part), ``[B, 3]`` each."""
    import torch
    from torch.nn.functional import conv2d

    window = torch.exp(-((torch.arange(11.0, device=x.device) - 5) ** 2) / (2 * 1.5**2))
    window = (window / window.sum()).view(1, 1, 11, 1).expand(15, 1, 11, 1)
    maps = torch.cat([x, y, x * x, y * y, x * y], 1)  # [B, 15, H, W]; channels are 8 times as fast as a batch of 15
    maps = conv2d(maps, window, groups=15)  # only where the window fits
    maps = conv2d(maps, window.transpose(2, 3), groups=15)  # [B, 15, H-10, W-10]
    mean_x, mean_y, xx, yy, xy = maps.split(3, 1)
    c1, c2 = 0.01**2, 0.03**2
    variances = (xx - mean_x**2) + (yy - mean_y**2)
    structure = (2 * (xy - mean_x * mean_y) + c2) / (variances + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * structure).mean((2, 3)), structure.mean((2, 3))


def check_pair(x: np.ndarray, x_hat: np.ndarray) -> None:
    for pixels in (x, x_hat):
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
            raise ValueError(f"pictures are uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    if x.shape != x_hat.shape:
        raise ValueError(f"pictures of different size: {list(x.shape)} and {list(x_hat.shape)}")


def to_tensor(pixels: np.ndarray) -> Tensor:
    """``[H, W, 3]`` uint8 to ``[3, H, W]`` float in [0, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255
