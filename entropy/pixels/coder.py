"""Pixels to bytes and back, without loss or with a largest error, in integers that are the same on every machine.

The order and what a step knows are in :mod:`.net`, the tables in :mod:`.tables`. Encoding walks the same steps as
decoding, since with an error what is known is what was decoded::

    2 bytes a channel: the first pixel;  fitted: 2 bytes, the length of what follows, and corrections (fit.py)
    then one stream of the constriction coder:
    for each level, channel, phase:  symbols, grouped by table;  random low bits, by number;  what ends of tables left

Raises ValueError for payloads and arrays that are not such.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..coder import IndexedDecoder, IndexedEncoder
from ..integer import ExactLinear
from ..prior import read_prior_arrays
from ..tables import Int64Array
from .fit import FEWEST, Corrections, Spread, fit
from .net import (
    CHANNELS,
    GATE_BITS,
    GATE_MAX,
    INPUT_MAX,
    LEVELS,
    LINEAR_BITS,
    LINEAR_MAX,
    MEAN_BITS,
    PHASES,
    PREDICTED_MAX,
    REACH,
    SCALE_BITS,
    SCALE_UNIT,
    TAIL_UNIT,
    TAILS,
    Step,
    inputs_of,
    name_of,
    net_inputs,
    phase_size,
    predictor_inputs,
)
from .tables import FRACTIONS, SCALE_MAX, SCALE_MIN, PixelTables, random_bits, reaches, table_number

PIXELS_FILE = "pixels.safetensors"
ROWS = 1 << 14  # values that a net takes at once
_LENGTH = 2  # bytes of the length of the corrections
REST_BITS = 9  # of what is beyond a table, in one symbol
POWERS = 2.0 ** -torch.arange(20, dtype=torch.float32)  # of two, exact everywhere
Planes = npt.NDArray[np.uint16]  # [C, H, W]


class PixelCoder:
    """The exact twin of :class:`~.net.PixelNets`.

    Args: arrays: what :meth:`~.net.PixelNets.export` gives.  hash: of the file that they came from.
    Raises: ValueError if they do not fit, or sums may not be exact.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], hash: str = "") -> None:
        self.hash = hash
        self._nets = {
            (c, p): _Net(arrays, name_of(c, p), inputs_of(p, c)) for c in range(CHANNELS) for p in range(len(PHASES))
        }

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PixelCoder:
        """The coder of the nets in a folder. Raises ValueError if there are none, or they are damaged."""
        return cls(*read_prior_arrays(folder, PIXELS_FILE))

    def compress(self, planes: Planes, bits: int, error: int = 0, fitted: bool = False) -> bytes:
        """Payload of ``planes [C, H, W]`` of 1 or 3 channels (green, red, blue) with values below ``2^bits``.

        Args: error: the largest difference of a decoded value.  fitted: correct the nets for this picture.
              :meth:`decompress` has to be told both.
        """
        return self.compressed(planes, bits, error, fitted)[0]

    def compressed(self, planes: Planes, bits: int, error: int = 0, fitted: bool = False) -> tuple[bytes, Planes]:
        """Likewise, and what :meth:`decompress` makes of it."""
        sink = _Sink(planes, fitted)
        shown = self._walk(sink, planes.shape, bits, error)
        side = len(sink.side).to_bytes(_LENGTH, "little") + sink.side if fitted else b""
        return planes[:, 0, 0].astype("<u2").tobytes() + side + sink.coder.finish(), shown

    def decompress(
        self, payload: bytes, shape: tuple[int, int, int], bits: int, error: int = 0, fitted: bool = False
    ) -> Planes:
        """Inverse of :meth:`compress`."""
        head = 2 * shape[0]
        first, corrections = payload[:head], None
        if len(first) < head:
            raise ValueError("a payload of pixels has no first pixel")
        if fitted:
            end = head + _LENGTH + int.from_bytes(payload[head : head + _LENGTH], "little")
            if len(payload) < end:
                raise ValueError("a payload of pixels lacks a correction")
            corrections = Corrections(payload[head + _LENGTH : end])
            head = end
        source = _Source(payload[head:], np.frombuffer(first, dtype="<u2"), corrections)
        known = self._walk(source, shape, bits, error)
        source.finish()
        return known

    def _walk(self, code: _Code, shape: tuple[int, ...], bits: int, error: int) -> Planes:
        if shape[0] not in (1, CHANNELS) or min(shape) < 1:
            raise ValueError(f"pixels are [C, H, W] with 1 or {CHANNELS} channels, got {shape}")
        known = torch.zeros(shape)
        known[:, 0, 0] = torch.from_numpy(code.first.astype(np.float32))
        for level in reversed(range((max(shape[1:]) - 1).bit_length())):
            grid = known[:, :: 1 << level, :: 1 << level]
            # A row or a column alone sees itself beyond the edge.
            grid[:, 1::2, ::2] = grid[:, ::2, ::2][:, : grid.shape[1] // 2]
            grid[:, :, 1::2] = grid[:, :, ::2][:, :, : grid.shape[2] // 2]
            rows, columns = (torch.from_numpy(reflected(n)) for n in grid.shape[1:])
            whole: list[Tensor] = []  # padded, of the channels before
            bases: list[list[Tensor]] = [[] for _ in PHASES]
            errors: list[list[Tensor]] = [[] for _ in PHASES]
            for channel, plane in enumerate(grid):
                for phase, (top, left) in enumerate(PHASES):
                    size = phase_size(grid.shape[1:], phase)
                    if not min(size):
                        continue
                    padded = plane.index_select(0, rows).index_select(1, columns)
                    step = Step([*whole, padded], phase, bases[phase], errors[phase], size)
                    spread = self._nets[channel, phase](step, min(level, LEVELS - 1), bits)
                    true = (channel, slice(top << level, None, 2 << level), slice(left << level, None, 2 << level))
                    values = code.values(step, spread, true, error, (1 << bits) - 1)
                    plane[top::2, left::2] = torch.from_numpy(values.astype(np.float32)).view(size)
                    bases[phase].append(step.base)
                    errors[phase].append(torch.from_numpy((values - spread.mean / FRACTIONS).astype(np.float32)))
                whole.append(plane.index_select(0, rows).index_select(1, columns))
        return known.numpy().astype(np.uint16)


class _Net:
    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], name: str, inputs: int) -> None:
        def layer(part: str, input_max: int, low: int, high: int, input_min: int | None = None) -> ExactLinear:
            try:
                own = {key: arrays[f"{name}.{part}.{key}"] for key in ("weight", "bias", "shift")}
            except KeyError as error:
                raise ValueError(f"the coder of pixels lacks {error}") from None
            return ExactLinear(own, input_max, low, high, torch.device("cpu"), input_min=input_min)

        self.enter = layer("enter", INPUT_MAX, 0, 255)
        self.middle = layer("middle", 255, 0, 255, 0)
        self.head = layer("head", 255, -GATE_MAX, GATE_MAX, 0)
        self.predict = layer("predict", LINEAR_MAX, -PREDICTED_MAX, PREDICTED_MAX)
        k = self.predict.n_out
        sizes = (self.predict.n_in, self.middle.n_in, self.head.n_in, self.head.n_out)
        if sizes != (inputs, self.enter.n_out, self.middle.n_out, k + 2) or self.enter.n_in <= inputs:
            raise ValueError("layers of the coder of pixels do not fit each other")
        if k * PREDICTED_MAX * GATE_MAX >= 1 << 24:
            raise ValueError(f"{k} predictors are too many for exact sums")

    def __call__(self, step: Step, level: int, bits: int) -> Spread:
        m = step.size_bits
        unit = POWERS[m.long()]
        rows = torch.zeros(LEVELS, 1)
        rows[level] = 1
        parts = []
        for d, u, size in zip(step.differences.split(ROWS, 1), unit.split(ROWS), m.split(ROWS), strict=True):
            x = _rows(net_inputs(d, u, size, rows.expand(-1, d.shape[1])))
            out = self.head(self.middle(self.enter(x)))
            predicted = self.predict(_rows(predictor_inputs(d, u)))
            parts.append(torch.cat([out[:, -2:], (predicted * out[:, :-2]).sum(1, keepdim=True)], 1))
        scale, tail, mean = torch.cat(parts).double().numpy().T
        size = m.numpy().astype(np.int64)
        whole = np.floor(np.ldexp(mean, size + (MEAN_BITS - LINEAR_BITS - GATE_BITS)) + 0.5).astype(np.int64)
        mean = whole + FRACTIONS * step.base.numpy().astype(np.int64)
        unit_of = 2.0**-GATE_BITS
        return Spread(
            mean.clip(0, FRACTIONS * ((1 << bits) - 1)),
            np.floor(scale * (SCALE_UNIT * unit_of * (1 << SCALE_BITS)) + 0.5).astype(np.int64) + (size << SCALE_BITS),
            np.floor(tail * (TAIL_UNIT * unit_of) + 0.5).astype(np.int64).clip(0, TAILS - 1),
        )


def _rows(columns: Tensor) -> Tensor:
    """``[k, n]`` to ``[n, k]``, viewed anew: of one column it keeps strides that products of int8 mistake."""
    return columns.T.flatten().view(columns.shape[1], columns.shape[0])


class _Code(Protocol):
    first: npt.NDArray[Any]

    def values(self, step: Step, spread: Spread, true: Any, error: int, most: int) -> Int64Array: ...


class _Layout:
    """Tables and centres of the values of a step."""

    def __init__(self, spread: Spread, error: int) -> None:
        self.step = 2 * error + 1
        scale = spread.scale
        if error:
            scale = scale - ((2 * self.step**16).bit_length() - 1) // 2  # 8 log2 of the step, rounded
        scale = np.maximum(scale, SCALE_MIN)
        self.low_bits = np.maximum((scale >> SCALE_BITS) - (SCALE_MAX >> SCALE_BITS), 0)
        scale = scale - (self.low_bits << SCALE_BITS)
        if error:
            self.origin = (spread.mean + FRACTIONS // 2) >> MEAN_BITS
            middle = np.zeros_like(self.origin)
        else:
            self.origin = np.zeros_like(scale)
            middle = spread.mean
        # Of 2^low_bits values that are one symbol, the middle is half of them less a half above the first.
        middle = middle - (FRACTIONS // 2 * ((1 << self.low_bits) - 1))
        middle = middle >> self.low_bits
        self.centre, fraction = middle >> MEAN_BITS, middle & FRACTIONS - 1
        number = table_number(scale, fraction, spread.tail).astype(np.int16)
        self.order = np.argsort(number, kind="stable")
        self.reach = _REACHES[number]
        ordered = number[self.order]
        starts = np.flatnonzero(np.diff(ordered, prepend=-1))
        self.groups = list(zip(ordered[starts].tolist(), np.diff(starts, append=len(number)).tolist(), strict=True))

    def low(self) -> list[tuple[int, npt.NDArray[np.intp]]]:
        """Numbers of random bits, and the values that have them."""
        return [(int(b), np.flatnonzero(self.low_bits == b)) for b in np.unique(self.low_bits) if b]


_REACHES = reaches()


class _Sink:
    def __init__(self, planes: Planes, fitted: bool) -> None:
        self.planes, self.first, self.fitted = planes, planes[:, 0, 0], fitted
        self.coder = IndexedEncoder(PixelTables())
        self.side = b""  # corrections

    def values(self, step: Step, spread: Spread, true: Any, error: int, most: int) -> Int64Array:
        values = self.planes[true].astype(np.int64).ravel()
        if self.fitted and len(values) >= FEWEST:
            correction = fit(step, spread, values)
            self.side += correction.pack()
            spread = correction.apply(step, spread, most)
        layout = _Layout(spread, error)
        whole = values - layout.origin
        if error:
            whole = (whole + error) // layout.step
            values = (layout.origin + whole * layout.step).clip(0, most)
        symbols = (whole >> layout.low_bits) - layout.centre
        inside = symbols.clip(-layout.reach - 1, layout.reach + 1) + layout.reach + 1
        ordered, at = inside[layout.order], 0
        for number, n in layout.groups:
            self.coder.push(ordered[at : at + n], number)
            at += n
        for bits, which in layout.low():
            self.coder.push(whole[which] & (1 << bits) - 1, random_bits(bits))
        rest = np.abs(symbols) - layout.reach - 1
        rest = rest[rest >= 0]
        for shift in _rest_shifts(most):
            self.coder.push(rest >> shift & (1 << REST_BITS) - 1, random_bits(REST_BITS))
        return values


class _Source:
    def __init__(self, payload: bytes, first: npt.NDArray[Any], corrections: Corrections | None) -> None:
        self.first, self.corrections = first, corrections
        self.coder = IndexedDecoder(payload, PixelTables())

    def finish(self) -> None:
        self.coder.finish()
        if self.corrections is not None:
            self.corrections.finish()

    def values(self, step: Step, spread: Spread, true: Any, error: int, most: int) -> Int64Array:
        if self.corrections is not None and len(spread.mean) >= FEWEST:
            spread = self.corrections.next(len(step.differences)).apply(step, spread, most)
        layout = _Layout(spread, error)
        inside = np.empty(len(spread.mean), dtype=np.int64)
        inside[layout.order] = np.concatenate([self.coder.pull(n, number) for number, n in layout.groups])
        symbols = inside - layout.reach - 1
        low = np.zeros_like(symbols)
        for bits, which in layout.low():
            low[which] = self.coder.pull(len(which), random_bits(bits))
        beyond = np.flatnonzero(np.abs(symbols) > layout.reach)
        rest = np.zeros(len(beyond), dtype=np.int64)
        for shift in _rest_shifts(most):
            rest |= self.coder.pull(len(beyond), random_bits(REST_BITS)).astype(np.int64) << shift
        symbols[beyond] += np.sign(symbols[beyond]) * rest
        whole = (symbols + layout.centre << layout.low_bits) + low
        return (layout.origin + whole * layout.step).clip(0, most)


def _rest_shifts(most: int) -> range:
    return range(0, most.bit_length(), REST_BITS)


def reflected(n: int) -> npt.NDArray[np.int64]:
    """Places of a row of n pixels and of ``REACH`` more at both ends, as in a mirror: even ones see even ones."""
    period = max(2 * (n - 1), 1)
    place = np.arange(-REACH, n + REACH) % period
    return np.minimum(place, period - place) if n > 1 else np.zeros_like(place)
