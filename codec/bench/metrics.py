"""How far a decoded picture is from its source. Each metric takes two uint8 arrays [H, W, 3] and gives one number.

:func:`psnr` and :func:`ms_ssim` need nothing beyond the runtime dependencies, the other two the `bench` extra.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError
from ..metrics.picture import check_pair, ms_ssim, psnr, to_tensor

if TYPE_CHECKING:
    from ..metrics.features import FeatureDistance


SSIMULACRA2_SMALLEST = 225  # the coarsest of six scales must have 8 pixels
# As the command line calls them, and the key of their values in results.
METRICS = {"psnr": "psnr", "ms-ssim": "ms_ssim", "ssimulacra2": "ssimulacra2", "features": "feature_distance"}


def choose_metrics(names: Collection[str]) -> tuple[str, ...]:
    """Keys of the metrics of these names, in the order of :data:`METRICS`. Raises UsageError for an unknown name."""
    for name in names:
        if name not in METRICS:
            raise UsageError(f"unknown metric {name!r}: choose from {', '.join(METRICS)}")
    if not names:
        raise UsageError(f"at least one metric is needed: choose from {', '.join(METRICS)}")
    return tuple(key for name, key in METRICS.items() if name in names)


def measure(x: np.ndarray, x_hat: np.ndarray, keys: Collection[str], device: str = "cpu") -> dict[str, float | None]:
    """All of :data:`METRICS` by key; None for those that are not among ``keys`` and where the picture is too small.

    Args: device: where the deep features are computed; the other metrics are computed on the CPU.
    """
    return {
        "psnr": psnr(x, x_hat) if "psnr" in keys else None,
        "ms_ssim": ms_ssim(x, x_hat) if "ms_ssim" in keys else None,
        "ssimulacra2": ssimulacra2(x, x_hat) if "ssimulacra2" in keys else None,
        "feature_distance": feature_distance(x, x_hat, device) if "feature_distance" in keys else None,
    }


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


def feature_distance(x: np.ndarray, x_hat: np.ndarray, device: str = "cpu") -> float:
    """Distance of deep features (EfficientNet-Lite2), see :class:`~.features.FeatureDistance`. It is not LPIPS.

    Our models train with Lite0, another network, so that none grades itself; they are of one family, though.

    Returns: 0 to 4, lower is better, 0 for equal pictures. No unit, and no meaning beyond comparison.
    Raises:  UsageError without the `bench` extra.
    """
    import torch

    check_pair(x, x_hat)
    net = _feature_net(device)
    with torch.no_grad():
        return float(net(to_tensor(x)[None].to(device), to_tensor(x_hat)[None].to(device)))


def check_bench_extra(device: str = "cpu", keys: Collection[str] = tuple(METRICS.values())) -> None:
    """Load what the metrics need, so that a missing package is noticed before the work. Raises UsageError."""
    if "ssimulacra2" in keys:
        with bench_extra():
            import ssimulacra2  # noqa: F401
    if "feature_distance" in keys:
        _feature_net(device)


@functools.lru_cache(maxsize=2)
def _feature_net(device: str) -> FeatureDistance:
    from ..metrics.features import FeatureDistance

    with bench_extra():
        return FeatureDistance("lite2").to(device)


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
