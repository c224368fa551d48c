"""What a codec for pictures keeps small, beside the rate: squared error, or dissimilarity of structure."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .picture import similarity

SQUARED_SHARE = 3e-5  # of the squared error beside the dissimilarity, which hardly sees a shift of colour
LEAST = 1e-4  # similarity of a scale, below which there is no slope
# x, x_hat [B, 3, H, W] in [0, 1] -> [B]
Distortion = Callable[[Tensor, Tensor], Tensor]


def squared_error(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared error of 8-bit values, ``[B, 3, H, W]`` in [0, 1] to ``[B]``."""
    return (x_hat - x).square().mean((1, 2, 3)) * 255**2


def dissimilarity(x: Tensor, x_hat: Tensor) -> Tensor:
    """1 - MS-SSIM, and a little squared error, ``[B, 3, H, W]`` in [0, 1] to ``[B]``."""
    return 1 - similarity(x, x_hat, LEAST) + SQUARED_SHARE * squared_error(x, x_hat)


def distortion(name: str) -> Distortion:
    """The distortion of that name. Raises ValueError for an unknown one."""
    known = {"mse": squared_error, "ms-ssim": dissimilarity}
    if name not in known:
        raise ValueError(f"unknown distortion {name!r}: {' or '.join(known)}")
    return known[name]
