"""What the coder of pixels knows of a value, and the net that says how it spreads, while it is trained.

A picture is a grid that is halved until one pixel is left. From level to level, from coarse to fine, channel follows
channel: green, red, blue. In each, three phases fill in the pixels between those that are known::

    a B a B     a: known from the coarser level
    C A C A     A: first phase, between four of a
    a B a B     B: second phase, between two of a and two of A
    C A C A     C: third phase, among a, A and B

All values of a phase and channel are a step: nothing of them depends on another. For each, ``d`` is what is known less
the mean of the four nearest: a window of the own channel, thirteen pixels of each channel before, which are whole, and
by how much the nets missed these at the same place. A net reads ``d`` scaled to the size of its neighbourhood
(``2^m``), so it knows 16 bits as it knows 8, and mixes linear predictors of ``d``; it also tells the scale and the
tails of a mixture of two logistic distributions around that mean. There is a net for each phase and channel.

Sources: order as in interlaced PNG and FLIF; conditional coding of channels and mixtures, PixelCNN++ (Salimans et al.
2017, arXiv:1701.05517); levels, SReC (Cao et al. 2020, arXiv:2004.02872). Mixing predictors by a net is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..context.net import RoundedLinear, part_of, rounded
from ..integer import HIDDEN_BITS

Offsets = tuple[tuple[int, int], ...]

PHASES = ((1, 1), (0, 1), (1, 0))  # rows and columns, odd or even, of the pixels of a phase
CHANNELS = 3
CODED = (1, 0, 2)  # channels of RGB in the order of coding
REACH = 3  # pixels that a window looks up, down, left and right
LEVELS = 4  # the coarser ones are one to the net
SIZES = 10  # m of 1..10 are told apart
INPUT_BITS, INPUT_MAX = 6, 127  # d as the net reads it, in units of 2^(m - 6)
LINEAR_BITS, LINEAR_MAX = 10, 2047  # d as the predictors read it, in units of 2^(m - 10)
PREDICTED_MAX = 8191
GATE_BITS, GATE_MAX = 6, 127
MEAN_BITS = 3  # means, in eighths of a grey level
SCALE_BITS = 3  # scales, in eighths of an octave
SCALE_UNIT, TAIL_UNIT = 4.0, 4.0  # octaves and tails that one unit of the net's last layer is
TAILS = 4
TAIL_RATIO = 3  # scales of the two distributions
TAIL_WEIGHTS = (5, 15, 43, 103)  # of the wider one, in 256ths: sigmoid(1.2 tail - 4)


def around(corners: Offsets) -> Offsets:
    """Offsets in all four quadrants, nearest first."""
    found = {(sy * y, sx * x) for y, x in corners for sy in (1, -1) for sx in (1, -1)}
    return tuple(sorted(found, key=lambda at: (at[0] ** 2 + at[1] ** 2, at)))


# What a phase knows of its own channel. A row of pixels is as long as the four nearest, then the others.
OWN = (
    around(((1, 1), (1, 3), (3, 1), (3, 3))),
    around(((0, 1), (1, 0), (1, 2), (2, 1), (0, 3), (3, 0), (2, 3), (3, 2))),
    around(((0, 1), (1, 0), (1, 1), (2, 1), (1, 2), (0, 3), (3, 0), (1, 3), (3, 1))),
)
OTHER = around(((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)))  # and of those before it
NEAREST = 4
NEAR = 8  # pixels of the own window that set the size of a neighbourhood


@dataclass(frozen=True)
class PixelShape:
    """Sizes of the nets."""

    hidden: int = 96
    predictors: int = 16


def inputs_of(phase: int, channel: int) -> int:
    """Differences that the net of a phase and channel reads."""
    return len(OWN[phase]) + channel * (len(OTHER) + 1)


def grid_of(padded: Tensor, phase: int, offset: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Pixels at an offset from all those of a phase, flat; ``padded [..., H, W]`` by ``REACH``."""
    top, left = (REACH + p + o for p, o in zip(PHASES[phase], offset, strict=True))
    return padded[..., top : top + 2 * size[0] : 2, left : left + 2 * size[1] : 2].flatten()


def phase_size(size: tuple[int, ...], phase: int) -> tuple[int, int]:
    """Rows and columns of the pixels of a phase in a grid."""
    return (size[0] - PHASES[phase][0] + 1) // 2, (size[1] - PHASES[phase][1] + 1) // 2


class Step:
    """What is known of the values of one phase and channel of a level, in whole numbers held as floats.

    Args:
        planes: padded grids ``[..., H, W]`` of the channels before and the own one.
        bases: of the channels before.
        errors: of the channels before, ``[n]`` each: value less base less predicted mean, in grey levels.
        size: rows and columns of the phase.

    Attributes: base ``[n]``, mean of the four nearest; differences ``[inputs, n]``; size_bits ``[n]``, the m.
    """

    def __init__(
        self, planes: list[Tensor], phase: int, bases: list[Tensor], errors: list[Tensor], size: tuple[int, int]
    ) -> None:
        own = torch.stack([grid_of(planes[-1], phase, at, size) for at in OWN[phase]])
        self.base = own[:NEAREST].sum(0).add_(NEAREST // 2).div_(NEAREST).floor_()
        parts = [own.sub_(self.base)]
        largest = parts[0][:NEAR].abs().amax(0)
        for plane, base in zip(planes[:-1], bases, strict=True):
            other = torch.stack([grid_of(plane, phase, at, size) for at in OTHER]).sub_(base)
            largest = torch.maximum(largest, other[0].abs())
            parts.append(other)
        if errors:
            parts.append(torch.stack(errors))
        self.differences = torch.cat(parts)
        self.size_bits = torch.frexp(largest).exponent.clamp_(min=1)  # 2^m is more than the largest


def net_inputs(d: Tensor, unit: Tensor, m: Tensor, level: Tensor) -> Tensor:
    """What a net reads, ``[inputs + SIZES + LEVELS, n]`` whole numbers; ``unit`` is ``2^-m``, ``level [LEVELS, n]``."""
    read = (d * (unit * 2.0**INPUT_BITS)).add_(0.5).floor_().clamp_(-INPUT_MAX, INPUT_MAX)
    sizes = (torch.arange(1, SIZES + 1, device=m.device)[:, None] == m.clamp(max=SIZES)).to(d.dtype)
    return torch.cat([read, sizes.mul_(2.0**INPUT_BITS), level * 2.0**INPUT_BITS])


def predictor_inputs(d: Tensor, unit: Tensor) -> Tensor:
    """What the linear predictors read, ``[inputs, n]`` whole numbers."""
    return (d * (unit * 2.0**LINEAR_BITS)).add_(0.5).floor_().clamp_(-LINEAR_MAX, LINEAR_MAX)


class PixelNet(nn.Module):
    """Mean, scale and tails of the values of one phase and channel, in units of ``2^m``."""

    def __init__(self, inputs: int, shape: PixelShape) -> None:
        super().__init__()
        hidden, k = shape.hidden, shape.predictors
        self.enter = RoundedLinear(inputs + SIZES + LEVELS, hidden, INPUT_MAX, INPUT_BITS, HIDDEN_BITS)
        self.middle = RoundedLinear(hidden, hidden, 255, HIDDEN_BITS, HIDDEN_BITS)
        self.head = RoundedLinear(hidden, k + 2, 255, HIDDEN_BITS, GATE_BITS)
        self.predict = RoundedLinear(inputs, k, LINEAR_MAX, LINEAR_BITS, LINEAR_BITS)
        with torch.no_grad():
            self.head.weight.mul_(0.3)
            self.head.weight[k:].mul_(0.3)
            self.head.bias[:k] = 1 / k
            self.head.bias[k] = -2.5 / SCALE_UNIT
            self.predict.weight.mul_(0.3)

    def forward(self, d: Tensor, m: Tensor, level: Tensor, rounding: bool) -> tuple[Tensor, Tensor, Tensor]:
        """``d [inputs, n]``, ``m [n]``, ``level [LEVELS, n]`` to mean, log2 of the scale, and tail, ``[n]`` each."""
        with torch.no_grad():
            unit = torch.exp2(-m.float())
            x = net_inputs(d, unit, m, level).mul_(2.0**-INPUT_BITS).T  # [n, inputs + SIZES + LEVELS]
            linear = predictor_inputs(d, unit).mul_(2.0**-LINEAR_BITS).T
        h = rounded(self.enter(x, rounding), HIDDEN_BITS, 0, 255, rounding)
        h = rounded(self.middle(h, rounding), HIDDEN_BITS, 0, 255, rounding)
        out = rounded(self.head(h, rounding), GATE_BITS, -GATE_MAX, GATE_MAX, rounding)
        predicted = rounded(
            self.predict(linear, rounding), LINEAR_BITS, -PREDICTED_MAX, PREDICTED_MAX, rounding
        )  # [n, k]
        mean = (predicted * out[:, :-2]).sum(1)
        scale = rounded(out[:, -2] * SCALE_UNIT, SCALE_BITS, -1000, 1000, rounding)
        return mean, scale, rounded(out[:, -1] * TAIL_UNIT, 0, 0, TAILS - 1, rounding)


class PixelNets(nn.Module):
    """All nets, with the bits of whole pictures."""

    def __init__(self, shape: PixelShape) -> None:
        super().__init__()
        self.shape = shape
        self.nets = nn.ModuleDict(
            {name_of(c, p): PixelNet(inputs_of(p, c), shape) for c in range(CHANNELS) for p in range(len(PHASES))}
        )

    def export(self) -> dict[str, npt.NDArray[np.integer]]:
        """The integers of all layers."""
        layers = {name: m for name, m in self.nets.named_modules() if isinstance(m, RoundedLinear)}
        return {f"{name}.{key}": a for name, layer in layers.items() for key, a in layer.export().items()}

    def load_export(self, arrays: Mapping[str, npt.NDArray[np.integer]]) -> None:
        """Take over exported integers. Raises KeyError or RuntimeError if they are of another shape."""
        with torch.no_grad():
            for name, layer in self.nets.named_modules():
                if isinstance(layer, RoundedLinear):
                    layer.load(part_of(arrays, name))

    def forward(self, x: Tensor, rounding: bool) -> Tensor:
        """Bits of pictures ``[B, CHANNELS, H, W]`` in the order of coding, ``[CHANNELS, PHASES, LEVELS]`` sums."""
        grids = [x[..., :: 1 << level, :: 1 << level] for level in range(LEVELS)]
        padded = [F.pad(grid, (REACH,) * 4, mode="reflect") for grid in grids]
        rows = []
        for phase in range(len(PHASES)):
            sizes = [phase_size(grid.shape[2:], phase) for grid in grids]
            bases: list[list[Tensor]] = [[] for _ in grids]
            errors: list[list[Tensor]] = [[] for _ in grids]
            for channel in range(CHANNELS):
                steps, values = [], []
                for level, planes in enumerate(padded):
                    known = [planes[:, c] for c in range(channel + 1)]
                    step = Step(known, phase, bases[level], errors[level], sizes[level])
                    steps.append(step)
                    bases[level].append(step.base)
                    values.append(grid_of(planes[:, channel], phase, (0, 0), sizes[level]) - step.base)
                counts = [len(value) for value in values]
                m = torch.cat([step.size_bits for step in steps])
                levels = torch.cat([_one_row(level, n) for level, n in enumerate(counts)], 1)
                d = torch.cat([step.differences for step in steps], 1)
                net = self.nets[name_of(channel, phase)]
                mean, scale, tail = net(d, m, levels, rounding)
                wanted = torch.cat(values)
                mean = rounded(mean * torch.exp2(m.float()), MEAN_BITS, -(2.0**24), 2.0**24, rounding)
                error = wanted - mean
                for level, part in enumerate(error.detach().split(counts)):
                    errors[level].append(part)
                rows.append(torch.stack([b.sum() for b in bits_of(error, scale + m, tail).split(counts)]))
        return torch.stack(rows).view(len(PHASES), CHANNELS, LEVELS).transpose(0, 1)


def name_of(channel: int, phase: int) -> str:
    return f"c{channel}p{phase}"


def _one_row(row: int, n: int) -> Tensor:
    rows = torch.zeros(LEVELS, n)
    rows[row] = 1
    return rows


def bits_of(error: Tensor, scale: Tensor, tail: Tensor) -> Tensor:
    """Bits of whole numbers whose distance from the mean is ``error``, ``scale`` being the log2 of a scale."""
    weight = torch.sigmoid(1.2 * tail - 4)
    narrow = torch.exp2(-scale.clamp(-4, 16))
    far, near = error.abs() + 0.5, error.abs() - 0.5

    def mass(inverse: Tensor) -> Tensor:
        return torch.sigmoid(-near * inverse) - torch.sigmoid(-far * inverse)

    both = torch.lerp(mass(narrow), mass(narrow / TAIL_RATIO), weight)
    return -torch.log2(both * (1 - 2**-12) + 2**-21)
