"""The entropy model of a hyperprior codec while it is trained: float, or float that rounds as the integers will.

Latents ``y [B, h, w, M]`` (the grid a multiple of 4 cells along both axes) are coded as the hyper latents z at a
quarter of the resolution, then slice after slice of channels, few channels first, and in each slice the cells of a
checkerboard in two halves. So every step but the first few is a handful of parallel ones (Minnen and Singh 2020,
arXiv:2007.08739; uneven slices and checkerboard: He et al. 2022, ELIC, arXiv:2203.10886)::

    z, quality -> hyper decoder -> features [h, w, F]
    slice i:  features, slices < i in a 3 x 3 window -> base [h, w, C]
        first half:   base                                        -> blocks -> mean, scale of c_i channels
        second half:  base + first half in a window of 12 cells   -> blocks -> mean, scale
    y_hat = round(y - mean) + mean,   bits of (y - mean) under a normal distribution of that scale

Two things that a model may have besides. The first slices, which hold most of the bits, may go from coarse to fine in
six steps (:mod:`..orders`), each step with a map of its own for what it knows of the slice. And a state may be carried
from slice to slice: before slice i the features become
``features + block(features, slice i - 1 in a 3 x 3 window)``, so that a deep net reads all that is known.

Everything has a twin in :mod:`..integer`: see :mod:`..context.net`, whose layers these are. Means are multiples of
1/16, scales one of 64, and what the nets read of ``y_hat`` is its companded value in 8 bits (:func:`compand`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..context.net import RoundedLinear, part_of, rounded
from ..integer import ACT_BITS, HIDDEN_BITS, STREAM_BITS, STREAM_MAX
from ..orders import CHECKERBOARD, FINE, Offsets, Order
from .windows import WindowLinear, places_of, shuffle

Z_BITS = 2  # what the hyper decoder reads: z and the quality, in quarters
Z_MAX = 31
MEAN_BITS = 4  # means, and what the slices read
SCALES = 64  # number of scale tables
SCALE_MIN, SCALE_MAX = 0.06, 96.0
HATS = 8  # control points of the quality
HAT_TOP = 32  # their largest value, in units of 2^-Z_BITS
QUALITY_STEPS = 10000  # a quality of 0..100 in hundredths
KNEES = ((48, 1), (160, 4), (1248, 32))  # widths and slopes of the compander, in units of 2^-MEAN_BITS
STATE_STEP = 254  # largest change of a feature between slices: from one end to the other, in units of 2^-MEAN_BITS
SQUARE: Offsets = tuple((dy, dx) for dy in range(-1, 2) for dx in range(-1, 2))


@dataclass(frozen=True)
class HyperShape:
    """Sizes of the entropy model of a hyperprior codec."""

    hyper: int = 128  # channels of z
    slices: tuple[int, ...] = (16, 16, 32, 64, 128)  # channels of y that are coded together, in this order
    middle: tuple[int, int] = (256, 192)  # of the hyper decoder
    features: int = 192  # F, what the hyper decoder tells the slices
    width: int = 192  # C, of the residual stream of a slice
    hidden: int = 384  # of a residual block
    blocks: int = 2
    head: int = 192
    fine: int = 0  # number of slices, the first ones, that are coded coarse to fine instead of in a checkerboard
    state: int = 0  # width of the blocks that carry a state from slice to slice; 0: there is none
    kinds: int = 0  # of grids, where the hyper decoder is told which of them it is about

    def __post_init__(self) -> None:
        if not self.slices or min(self.slices) < 1:
            raise ValueError("a hyperprior needs at least one slice of channels")
        if not 0 <= self.fine <= len(self.slices) or self.state < 0:
            raise ValueError("slices coded coarse to fine are some of all, and a state has a width or is 0")

    @property
    def latents(self) -> int:
        """M, the number of channels of y."""
        return sum(self.slices)

    def order(self, i: int) -> Order:
        """In which the cells of slice i are coded."""
        return FINE if i < self.fine else CHECKERBOARD

    @classmethod
    def of_export(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> HyperShape:
        """The sizes of an export that :class:`~.prior.HyperPrior` took."""
        outputs = {name: len(arrays[f"{name}.weight"]) for name in ("decoder.enter", "decoder.mix", "decoder.up2")}
        first = "slices.0.head"
        state = arrays.get("slices.0.state.spatial.weight")
        return cls(
            hyper=len(arrays["z_tables"]),
            slices=tuple(int(n) for n in arrays["slices"]),
            middle=(outputs["decoder.enter"], outputs["decoder.mix"]),
            features=outputs["decoder.up2"] // 4,
            width=len(arrays["slices.0.base.weight"]),
            hidden=len(arrays[f"{first}.up.0.weight"]),
            blocks=sum(name.startswith(f"{first}.up.") and name.endswith(".weight") for name in arrays),
            head=len(arrays[f"{first}.head.weight"]),
            fine=sum(f"slices.{i}.{own_name(FINE, 1)}.weight" in arrays for i in range(len(arrays["slices"]))),
            state=0 if state is None else len(state),
            kinds=int(arrays["kinds"][0]) if "kinds" in arrays else 0,
        )


def own_name(order: Order, step: int) -> str:
    """Name of the map of what a step of a slice knows of that slice."""
    return "own" if order.n == 2 else f"own{step}"


def scale_values() -> npt.NDArray[np.float64]:
    """The standard deviations of the scale tables, ``[SCALES]``, in geometric steps."""
    return SCALE_MIN * (SCALE_MAX / SCALE_MIN) ** (np.arange(SCALES) / (SCALES - 1))


def quality_hats(steps: Tensor) -> Tensor:
    """A quality in hundredths, 0..10000, as weights of ``HATS`` control points: two neighbours share ``HAT_TOP``.

    Args:    steps ``[...]`` int64.
    Returns: ``[..., HATS]`` int64.
    """
    place = steps * (HATS - 1)
    left = (place // QUALITY_STEPS).clamp(max=HATS - 2)
    right = ((place - left * QUALITY_STEPS) * (2 * HAT_TOP) + QUALITY_STEPS) // (2 * QUALITY_STEPS)
    number = torch.arange(HATS, device=steps.device)
    is_left, is_right = number == left[..., None], number == left[..., None] + 1
    return is_left * (HAT_TOP - right)[..., None] + is_right * right[..., None]


def told(steps: Tensor, kind: Tensor, kinds: int) -> Tensor:
    """What the hyper decoder reads beside z: qualities in hundredths and kinds ``[...]``, int64, to
    ``[..., HATS + kinds]`` int64."""
    own = kind[..., None] == torch.arange(kinds, device=kind.device)
    return torch.cat([quality_hats(steps), own * HAT_TOP], -1)


def compand(y: Tensor, rounding: bool) -> Tensor:
    """What the nets see of a latent: exact near zero, coarser further away, at most 127 units of 2^-MEAN_BITS."""
    inner, total = torch.zeros_like(y), torch.zeros_like(y)
    edge = 0.0
    for width, slope in KNEES:
        edge += width * 2.0**-MEAN_BITS
        outer = F.hardtanh(y, -edge, edge)
        part = (outer - inner) / slope
        total = total + (rounded(part, MEAN_BITS, -127, 127, rounding) if slope > 1 else part)
        inner = outer
    return total


class Head(nn.Module):
    """Residual blocks on a stream, and from its end means and scales. Rows in, rows out."""

    def __init__(self, shape: HyperShape, channels: int) -> None:
        super().__init__()
        width, hidden = shape.width, shape.hidden
        self.up = nn.ModuleList(RoundedLinear(width, hidden, 127, ACT_BITS, HIDDEN_BITS) for _ in range(shape.blocks))
        down = [RoundedLinear(hidden, width, 255, HIDDEN_BITS, STREAM_BITS) for _ in range(shape.blocks)]
        self.down = nn.ModuleList(down)
        self.head = RoundedLinear(width, shape.head, 127, ACT_BITS, HIDDEN_BITS)
        self.mean = RoundedLinear(shape.head, channels, 255, HIDDEN_BITS, MEAN_BITS)
        self.scale = RoundedLinear(shape.head, channels, 255, HIDDEN_BITS, 0)
        with torch.no_grad():
            for linear in down:
                linear.weight.mul_(0.3)
            self.mean.weight.mul_(0.1)
            self.scale.bias.fill_(SCALES * 0.3)  # a standard deviation of about 0.5

    def forward(self, stream: Tensor, rounding: bool) -> tuple[Tensor, Tensor]:
        stream = rounded(stream, STREAM_BITS, -STREAM_MAX, STREAM_MAX, rounding)
        for up, down in zip(self.up, self.down, strict=True):
            act = rounded(stream, ACT_BITS, -127, 127, rounding)
            hidden = rounded(up(act, rounding), HIDDEN_BITS, 0, 255, rounding)
            step = rounded(down(hidden, rounding), STREAM_BITS, -STREAM_MAX, STREAM_MAX, rounding)
            stream = rounded(stream + step, STREAM_BITS, -STREAM_MAX, STREAM_MAX, False)
        act = rounded(stream, ACT_BITS, -127, 127, rounding)
        hidden = rounded(self.head(act, rounding), HIDDEN_BITS, 0, 255, rounding)
        mean = rounded(self.mean(hidden, rounding), MEAN_BITS, -STREAM_MAX, STREAM_MAX, rounding)
        return mean, inside(self.scale(hidden, rounding), 0, SCALES - 1)


def inside(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp; outside, gradients that would lead further out are zero and those that lead back pass.

    The lower bound of Balle et al. 2018 (arXiv:1802.01436), on both sides.
    """
    return _Inside.apply(x, low, high)


class _Inside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = (low, high)
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        outside = torch.where(grad < 0, high, low)  # where a step against the gradient leads
        return torch.where((x - outside) * grad.sign() < 0, 0.0, grad), None, None


class HyperDecoder(nn.Module):
    """z and what else is :func:`told` to features of every cell, in units of 2^-MEAN_BITS.

    ``[B, h/4, w/4, hyper]`` and ``[B, HATS + kinds]`` to ``[B, h, w, F]``.
    """

    def __init__(self, shape: HyperShape) -> None:
        super().__init__()
        first, second = shape.middle
        read = shape.hyper + HATS + shape.kinds
        self.enter = WindowLinear(SQUARE, read, first, 127, input_bits=Z_BITS, output_bits=HIDDEN_BITS)
        self.up1 = RoundedLinear(first, 4 * second, 255, HIDDEN_BITS, HIDDEN_BITS)
        self.mix = WindowLinear(SQUARE, second, second, 255, input_bits=HIDDEN_BITS, output_bits=HIDDEN_BITS)
        self.up2 = RoundedLinear(second, 4 * shape.features, 255, HIDDEN_BITS, MEAN_BITS)

    def forward(self, z: Tensor, hats: Tensor, rounding: bool) -> Tensor:
        b, h, w, _ = z.shape
        x = torch.cat([z, hats[:, None, None].expand(b, h, w, -1)], 3)
        x = rounded(self.enter.window(x, None, rounding), HIDDEN_BITS, 0, 255, rounding)
        x = rounded(shuffle(self.up1(x, rounding)), HIDDEN_BITS, 0, 255, rounding)
        x = rounded(self.mix.window(x, None, rounding), HIDDEN_BITS, 0, 255, rounding)
        return rounded(shuffle(self.up2(x, rounding)), MEAN_BITS, -127, 127, rounding)


class StateBlock(nn.Module):
    """The state of the next slice: ``s + expand(relu(window(relu(enter(s, last slice in a window)))))``.

    States are features: ``[B, h, w, F]``, -127..127 units of 2^-MEAN_BITS.
    """

    def __init__(self, shape: HyperShape, channels: int) -> None:
        super().__init__()
        inner = shape.state
        self.enter = WindowLinear(
            SQUARE, channels, inner, 127, input_bits=MEAN_BITS, output_bits=HIDDEN_BITS, extra=shape.features
        )
        self.spatial = WindowLinear(SQUARE, inner, inner, 255, input_bits=HIDDEN_BITS, output_bits=HIDDEN_BITS)
        self.expand = RoundedLinear(inner, shape.features, 255, HIDDEN_BITS, MEAN_BITS)
        with torch.no_grad():
            self.expand.weight.mul_(0.1)

    def forward(self, state: Tensor, last: Tensor, rounding: bool) -> Tensor:
        x = rounded(self.enter.window(last, state, rounding), HIDDEN_BITS, 0, 255, rounding)
        x = rounded(self.spatial.window(x, None, rounding), HIDDEN_BITS, 0, 255, rounding)
        x = rounded(self.expand(x, rounding), MEAN_BITS, -STATE_STEP, STATE_STEP, rounding)
        return rounded(state + x, MEAN_BITS, -127, 127, False)


class SliceNet(nn.Module):
    """Means and scales of one slice."""

    def __init__(self, shape: HyperShape, i: int) -> None:
        super().__init__()
        before, channels = sum(shape.slices[:i]), shape.slices[i]
        self.order = shape.order(i)
        self.state = StateBlock(shape, shape.slices[i - 1] if i else 0) if shape.state else None
        self.base = WindowLinear(
            SQUARE, before, shape.width, 127, input_bits=MEAN_BITS, output_bits=STREAM_BITS, extra=shape.features
        )
        for step in range(1, self.order.n):
            known = self.order.offsets(step)
            own = RoundedLinear(len(known) * channels, shape.width, 127, MEAN_BITS, STREAM_BITS)
            self.add_module(own_name(self.order, step), own)
        self.head = Head(shape, channels)

    def own_of(self, step: int) -> RoundedLinear:
        """The map of what a cell of a step knows of the slice, ``[..., P * c] -> [..., C]``."""
        found = getattr(self, own_name(self.order, step))
        assert isinstance(found, RoundedLinear)
        return found


class LogisticMixture(nn.Module):
    """Density of the hyper latents: for each channel a mixture of three logistic distributions."""

    def __init__(self, channels: int, parts: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(parts, channels))
        self.place = nn.Parameter(torch.linspace(-1, 1, parts)[:, None].repeat(1, channels))
        self.log_scale = nn.Parameter(torch.zeros(parts, channels))

    def forward(self, z: Tensor) -> Tensor:
        """Probability of ``z +- 1/2``, ``[..., channels]``."""
        x = (z[..., None, :] - self.place) * torch.exp(-self.log_scale)
        reach = 0.5 * torch.exp(-self.log_scale)
        x = -x.abs()  # the upper tail by symmetry, where the difference keeps its digits
        mass = torch.sigmoid(x + reach) - torch.sigmoid(x - reach)
        return (mass * self.weight.softmax(0)).sum(-2)

    @torch.enable_grad()
    def fit(self, counts: Tensor, steps: int = 300) -> None:
        """Move the parameters towards counts ``[channels, 2 Z_MAX + 1]`` of the values -Z_MAX..Z_MAX."""
        share = (counts / counts.sum(1, keepdim=True)).T.to(self.weight.device)  # [values, channels]
        values = torch.arange(-Z_MAX, Z_MAX + 1, device=self.weight.device)[:, None].expand_as(share).float()
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            (share * bits(self(values))).sum().backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def noise(x: Tensor) -> Tensor:
    return x + torch.rand_like(x) - 0.5


def straight_round(x: Tensor) -> Tensor:
    return x + (x.round() - x).detach()


def normal_mass(value: Tensor, scale: Tensor) -> Tensor:
    """Probability of ``value +- 1/2`` under a normal distribution of mean 0 (Balle et al. 2018, eq. 6)."""
    size = value.abs()
    root = math.sqrt(0.5) / scale
    return 0.5 * (torch.erfc((size - 0.5) * root) - torch.erfc((size + 0.5) * root))


def bits(mass: Tensor) -> Tensor:
    return -torch.log2(inside(mass, 1e-9, 1.0))


class HyperNet(nn.Module):
    """The whole entropy model; see the module's text."""

    def __init__(self, shape: HyperShape) -> None:
        super().__init__()
        self.shape = shape
        self.density = LogisticMixture(shape.hyper)
        self.decoder = HyperDecoder(shape)
        self.slices = nn.ModuleList(SliceNet(shape, i) for i in range(len(shape.slices)))

    def forward(
        self, y: Tensor, z: Tensor, steps: Tensor, rounding: bool = False, kept: Tensor | None = None,
        kind: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Quantise and estimate.

        Args:
            y: ``[B, h, w, M]`` latents in units of the quantiser's step.
            z: ``[B, h/4, w/4, hyper]`` hyper latents.
            steps: ``[B]`` quality in hundredths, int64.
            rounding: compute what the integers will.
            kept: ``[B]`` number of slices that are coded; means stand for the others. All of them if None.
            kind: ``[B]`` of each grid, int64; 0 if None.

        Returns: y_hat ``[B, h, w, M]``, bits of y ``[B, slices]``, bits of z ``[B]``. While training, bits are those of
            ``y`` with uniform noise, else those of the rounded values.
        """
        y_hat, y_bits, z_bits = self.estimate(y, z, steps, rounding, kept=kept, kind=kind)
        cost = torch.stack([own.sum((1, 2)) for own in y_bits], 1)
        if kept is not None:
            cost = cost * (torch.arange(len(y_bits), device=y.device) < kept[:, None])
        return y_hat, cost, z_bits.sum((1, 2, 3))

    def estimate(
        self, y: Tensor, z: Tensor, steps: Tensor, rounding: bool = False, *, kept: Tensor | None = None,
        kind: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], Tensor]:  # fmt: skip
        """As :meth:`forward`, with the bits of every code, also of slices that are not kept.

        Returns: y_hat ``[B, h, w, M]``, bits of each slice ``[B, h * w, c]``, the cells in its order, and bits of z
            ``[B, h/4, w/4, hyper]``.
        """
        kind = torch.zeros_like(steps) if kind is None else kind
        hats = told(steps, kind, self.shape.kinds).to(y.dtype) * 2.0**-Z_BITS
        z = F.hardtanh(z, -Z_MAX, Z_MAX)
        z_bits = bits(self.density(noise(z) if self.training else z.round()))
        features = self.decoder(straight_round(z), hats, rounding)
        parts = y.split(self.shape.slices, 3)
        grid = (y.shape[1], y.shape[2])
        seen: list[Tensor] = []
        y_hats: list[Tensor] = []
        y_bits: list[Tensor] = []
        ratio = math.log(SCALE_MAX / SCALE_MIN) / (SCALES - 1)
        for i, (net, part) in enumerate(zip(self.slices, parts, strict=True)):
            assert isinstance(net, SliceNet)
            places = places_of(net.order, grid, y.device)
            if net.state is not None:
                features = net.state(features, seen[-1] if seen else features[..., :0], rounding)
            before = torch.cat(seen, 3) if seen else features[..., :0]
            base = net.base.window(before, features, rounding)
            base = rounded(base, STREAM_BITS, -STREAM_MAX, STREAM_MAX, rounding)
            coded = 1.0 if kept is None else (kept > i).to(y.dtype)[:, None, None]
            done: list[Tensor] = []
            deltas: list[Tensor] = []
            indices: list[Tensor] = []
            for step, (stream, wanted) in enumerate(zip(places.split(base), places.split(part), strict=True)):
                if step:
                    known = places.windows(compand(places.merge(done, grid), rounding), step)
                    own = net.own_of(step)(known, rounding)
                    own = rounded(own, STREAM_BITS, -STREAM_MAX, STREAM_MAX, rounding)
                    stream = rounded(stream + own, STREAM_BITS, -STREAM_MAX, STREAM_MAX, False)
                mean, index = net.head(stream, rounding)
                delta = wanted - mean
                done.append(mean + coded * straight_round(delta))
                deltas.append(delta)
                indices.append(index)
            y_hat = places.merge(done, grid)
            seen.append(compand(y_hat, rounding))
            y_hats.append(y_hat)
            delta, index = torch.cat(deltas, 1), torch.cat(indices, 1)  # [B, h * w, c]
            if rounding:
                index = index + ((index + 0.5).floor() - index).detach()
            value = noise(delta) if self.training else delta.round()
            y_bits.append(bits(normal_mass(value, SCALE_MIN * torch.exp(index * ratio))))
        return torch.cat(y_hats, 3), y_bits, z_bits

    def map_of(self, y_bits: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Bits of each slice as :meth:`estimate` gives them, in raster order: ``[B, h, w, M]``."""
        found = []
        for net, own in zip(self.slices, y_bits, strict=True):
            assert isinstance(net, SliceNet)
            places = places_of(net.order, grid, own.device)
            found.append(places.merge(own.split(places.sizes, 1), grid))
        return torch.cat(found, 3)

    @torch.no_grad()
    def load_export(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over the integers of an export; the density of z is fitted to its tables.

        Raises: ValueError if they are those of another shape.
        """
        self.load_layers(arrays)
        self.density.fit(torch.from_numpy(arrays["z_tables"].astype(np.float64)).float())

    @torch.no_grad()
    def load_layers(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over the integers of the layers of an export. Raises ValueError if they are those of another shape."""
        layers = {name: module for name, module in self.named_modules() if isinstance(module, RoundedLinear)}
        missing = {"slices", "z_tables", *(f"{name}.weight" for name in layers)} - set(arrays)
        if missing:
            raise ValueError(f"the entropy model lacks {min(missing)}")
        if tuple(arrays["slices"]) != self.shape.slices or len(arrays["z_tables"]) != self.shape.hyper:
            raise ValueError("the entropy model has other channels")
        for name, module in layers.items():
            part = part_of(arrays, name)
            if part["weight"].shape != tuple(module.weight.shape):
                raise ValueError(f"layer {name} of the entropy model has another size")
            module.load(part)
