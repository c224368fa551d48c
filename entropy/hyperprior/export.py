"""From the trained network of a hyperprior to the integers and tables of its file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..tables import frequency_table
from .net import (
    Z_MAX,
    HyperNet,
    scale_values,
)


def scale_reach() -> npt.NDArray[np.int64]:
    """The largest code of each scale's table, ``[SCALES]``: about five standard deviations, at least 2."""
    return np.maximum(2, np.ceil(5 * scale_values())).astype(np.int64)


def normal_tables(
    counts: Sequence[npt.NDArray[np.integer]] | None = None, weight: float = 2000.0
) -> list[npt.NDArray[np.int64]]:
    """Frequency tables of codes -R..R of every scale: normal distributions, or what was counted, mixed with them.

    Args: counts ``[2 R + 1]`` of every scale, or None.  weight: how many counts the normal distribution is worth.
    """
    tables = []
    for i, (scale, reach) in enumerate(zip(scale_values(), scale_reach(), strict=True)):
        edges = (np.arange(-reach, reach + 2) - 0.5) / (scale * math.sqrt(2))
        upper = np.array([math.erf(e) for e in edges[1:-1]])
        mass = np.diff(np.concatenate([[-1.0], upper, [1.0]])) / 2  # the tails belong to the last codes
        mass = np.maximum(mass, 1e-7)
        total = mass / mass.sum() * weight + (0 if counts is None else (counts[i] + counts[i][::-1]) / 2)
        tables.append(frequency_table(np.round(total / total.sum() * 2**38).astype(np.int64)))
    return tables


def export_hyperprior(
    net: HyperNet,
    z_counts: npt.NDArray[np.integer] | None = None,
    scale_counts: Sequence[npt.NDArray[np.integer]] | None = None,
    skip: int = 0,
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a :class:`~.prior.HyperPrior` from the trained network.

    Args: z_counts ``[hyper, 2 Z_MAX + 1]`` and scale_counts (see :func:`normal_tables`): how often each value was
          seen in training pictures; the densities of training stand in where they are None.
    """
    from ..context.net import RoundedLinear

    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, module in net.named_modules():
        if isinstance(module, RoundedLinear):
            for key, value in module.export().items():
                arrays[f"{name}.{key}"] = value
    with torch.no_grad():
        values = torch.arange(-Z_MAX, Z_MAX + 1, device=net.density.weight.device).float()
        mass = net.density(values[:, None].expand(-1, net.shape.hyper)).T.double().cpu().numpy()
    expected = mass / mass.sum(1, keepdims=True) * 200 + 1e-3
    counted = expected + (0 if z_counts is None else z_counts)
    rows = [frequency_table(np.round(row / row.sum() * 2**38).astype(np.int64)) for row in counted]
    arrays["z_tables"] = np.stack(rows).astype(np.int32)
    arrays["scale_tables"] = np.concatenate(normal_tables(scale_counts)).astype(np.int32)
    arrays["scale_reach"] = scale_reach().astype(np.int32)
    arrays["slices"] = np.array(net.shape.slices, dtype=np.int32)
    arrays["skip"] = np.array([skip], dtype=np.int32)
    if net.shape.kinds:
        arrays["kinds"] = np.array([net.shape.kinds], dtype=np.int32)
    return arrays
