"""What a picture adds to the nets of :mod:`.net`: for each step a linear correction of the means, and of the scales.

Nets know pictures in general. How neighbours of this one go together, the encoder finds by least squares over the
values of a step, and writes the coefficients, a byte each, before the stream::

    mean, in eighths += floor(sum_i w_i d_i / 2^5 + 1/2) + bias;   scale, in eighths of an octave += offset of its m

d is what the nets read (:class:`~.net.Step`); what later channels know of the errors of this one is without it, so a
step is fitted when it is coded. Sums are of whole eighths below 2^53, exact in float64 in any order.

Source: Wu, Barthel and Zhang 1998, "Piecewise 2D autoregression for predictive image coding": least squares for each
picture; here of what a net left over, for each level, channel and phase.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ..tables import Int64Array
from .net import MEAN_BITS, SCALE_BITS, SIZES, Step, bits_of

UNIT_BITS = 8  # a weight is a multiple of 2^-8
LARGEST = 127
FEWEST = 1024  # values of a step that is fitted; smaller ones have no correction
TRIED = 8192  # values of each m that choose its offset
ROUNDS = 4  # of least squares
CALM = 2.0  # widths of the spread, below which errors weigh alike
LEAST = -1.5  # octaves, of a width
RIDGE = 5e-6  # of the mean square of the inputs
OFFSETS = np.arange(-16, 17)

Coefficients = npt.NDArray[np.int8]


class Spread:
    """How the values of a step spread, int64 ``[n]`` each.

    Attributes: mean, in eighths; scale, in eighths of an octave; tail.
    """

    def __init__(self, mean: Int64Array, scale: Int64Array, tail: Int64Array) -> None:
        self.mean, self.scale, self.tail = mean, scale, tail


@dataclass(frozen=True)
class Correction:
    """Coefficients of a step, int8: ``weights [inputs]``, ``bias``, and ``offsets [SIZES]`` by m."""

    weights: Coefficients
    bias: int
    offsets: Coefficients

    def apply(self, step: Step, spread: Spread, most: int) -> Spread:
        """The corrected spread of values of 0 to ``most``."""
        mean = spread.mean + moved(self.weights, step) + self.bias
        scale = spread.scale + self.offsets.astype(np.int64)[_classes(step)]
        return Spread(mean.clip(0, most << MEAN_BITS), scale, spread.tail)

    def pack(self) -> bytes:
        return self.weights.tobytes() + self.bias.to_bytes(1, "little", signed=True) + self.offsets.tobytes()


def moved(weights: Coefficients, step: Step) -> Int64Array:
    """What weights add to the means, in eighths."""
    total = weights.astype(np.float64) @ step.differences.numpy().astype(np.float64)
    return np.floor(total * 2.0 ** (MEAN_BITS - UNIT_BITS) + 0.5).astype(np.int64)


def _classes(step: Step) -> Int64Array:
    """m of each value, from 0 on."""
    return step.size_bits.numpy().astype(np.int64).clip(1, SIZES) - 1


def fit(step: Step, spread: Spread, values: Int64Array) -> Correction:
    """The correction of a step whose ``values [n]`` are known, ``FEWEST`` or more.

    Errors have long tails, so that after the first round each weighs less the larger it is.
    """
    left, scale = values - spread.mean / (1 << MEAN_BITS), spread.scale / (1 << SCALE_BITS)
    d = step.differences.numpy().astype(np.float64)
    d = np.concatenate([d, np.ones((1, d.shape[1]))])
    classes, width = _classes(step), scale
    error: npt.NDArray[np.floating] = np.zeros(len(left))
    found: npt.NDArray[np.floating] = np.zeros(len(d))
    for k in range(ROUNDS):
        s = np.exp2(np.maximum(width, LEAST))
        weighted = d / (s * (np.abs(error) + CALM * s) if k else s**2)
        square = weighted @ d.T
        square[np.diag_indices(len(d))] += RIDGE * np.trace(square) / len(d) + 1e-9
        found = np.linalg.solve(square, weighted @ left)
        error = left - found @ d
        width = scale + _offsets(error, scale, spread, classes)[classes] / (1 << SCALE_BITS)
    weights = _bytes(found[:-1] * (1 << UNIT_BITS))
    bias = int(_bytes(found[-1] * (1 << MEAN_BITS)))
    error = left - (moved(weights, step) + bias) / (1 << MEAN_BITS)
    return Correction(weights, bias, _offsets(error, scale, spread, classes))


def _offsets(
    error: npt.NDArray[np.floating], scale: npt.NDArray[np.floating], spread: Spread, classes: Int64Array
) -> Coefficients:
    """The offset of each class that takes the fewest bits."""
    offsets = np.zeros(SIZES, dtype=np.int8)
    tries = torch.from_numpy(OFFSETS / (1 << SCALE_BITS)).float()[:, None]
    for m in np.unique(classes):
        some = np.flatnonzero(classes == m)
        some = some[:: -(-len(some) // TRIED)]
        e, s, tail = (torch.from_numpy(part[some]).float() for part in (error, scale, spread.tail))
        offsets[m] = OFFSETS[int(bits_of(e, s + tries, tail).sum(1).argmin())]
    return offsets


def _bytes(x: npt.NDArray[np.floating]) -> Coefficients:
    return np.clip(np.round(x), -LARGEST, LARGEST).astype(np.int8)


class Corrections:
    """The corrections of a payload, read step by step."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def next(self, inputs: int) -> Correction:
        """That of a step of so many inputs. Raises ValueError if there is none."""
        part = np.frombuffer(self.data[self.at : self.at + inputs + 1 + SIZES], dtype=np.int8)
        if len(part) != inputs + 1 + SIZES:
            raise ValueError("a payload of pixels lacks a correction")
        self.at += len(part)
        return Correction(part[:inputs], int(part[inputs]), part[inputs + 1 :])

    def finish(self) -> None:
        """Raise ValueError unless all were read."""
        if self.at != len(self.data):
            raise ValueError("a payload of pixels holds more than its corrections")
