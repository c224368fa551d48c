"""`video-fit`: fitting grids and networks to one clip, and the bytes that hold them.

What is made small is ``bits + weight * squared error``, with the bits of :mod:`....entropy.fitted.net`. A fit has
three parts, by share of its time: grids with noise and a soft rounding that grows harder (C3, Kim et al. 2023,
arXiv:2312.02753, section 3.1); grids that are rounded and stay, while networks get used to them; and weights that are
rounded too, some tensors after the other, largest first, while the rest makes up for it (as in Zhou et al. 2017,
arXiv:1702.03044). It may be ended at any moment: what there is then is rounded and written. (The usual slopes that pass
through rounding lost more than they won, for grids and for weights: values drift to the next edge and back.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ....entropy.fitted.codes import LIMIT, MAX_EXPONENT, REACH, Weights, context_shapes, weight_bits
from ....entropy.fitted.net import ContextNet
from ....entropy.recording import recording
from ....tokenizers.video.fit import DOWN, FEATURES, RIGHT, FitShape, FitSynthesis, Group
from .payload import write_fitted

ROUNDED = 0.85  # share of the time after which grids are rounded and stay as they are
FROZEN, STAGES = 0.9, 4  # after which weights are rounded as well, in so many parts
GRID_RATE, NET_RATE = 0.1, 0.01  # learning rates at the beginning
END_RATE = 0.1  # of the networks' when grids are rounded, relative to the beginning
SOFT = 0.3, 0.1  # temperature of the soft rounding at the beginning and at the end
NOISE = 1.0, 0.5  # width of the noise, likewise; one unit throughout is worse than what rounding does
BETAS = (0.9, 0.99)
AIM = 0.98  # of the bytes that were asked for
PULL = 0.2  # how fast the price follows the bits, every eight steps
MOVING = 0.2  # share of moving blocks from which displacements are worth their weights
MARGIN = 16  # pixels around the picture that still grids then have
ATTEMPTS, STEPS_OF_ATTEMPT = 12, 96  # to get below the bytes that were asked for
T = TypeVar("T")


@dataclass(frozen=True)
class FitProgress:
    """Where a fit stands.

    Attributes:
        share: of the time, 0..1.  steps: so far.  rate: steps a second.
        bits: of the grids in all frames, estimated.  psnr: dB, of the frames of the last step.
    """

    share: float
    steps: int
    rate: float
    bits: float
    psnr: float


class Adam:
    """Adam (Kingma and Ba 2014, arXiv:1412.6980) for rows of large tensors: only those that had a gradient move."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self.first, self.second = torch.zeros_like(values), torch.zeros_like(values)

    def step(self, gradient: Tensor, rate: Tensor, correction: Tensor, rows: Tensor | None = None) -> None:
        """``correction``: the two of the bias; ``rows``: those that ``gradient`` belongs to, all if None."""
        m, v, x = (t if rows is None else t[rows] for t in (self.first, self.second, self.values))
        m = m * BETAS[0] + gradient * (1 - BETAS[0])
        v = v * BETAS[1] + gradient.square() * (1 - BETAS[1])
        x = x - rate * (m / correction[0]) / ((v / correction[1]).sqrt() + 1e-8)
        for t, new in ((self.first, m), (self.second, v), (self.values, x)):
            if rows is None:
                t.copy_(new)
            else:
                t.index_copy_(0, rows, new)


def soft_round(x: Tensor, t: Tensor) -> Tensor:
    """Between the identity and rounding: ``t`` large to small (Agustsson and Theis 2020, arXiv:2006.09952)."""
    low = x.detach().floor()
    return low + torch.tanh((x - low - 0.5) / t) / (2 * torch.tanh(0.5 / t)) + 0.5


class Fit:
    """A clip that is being fitted.

    Args:
        clip: ``[T, H, W, 3]`` uint8.
        shape: sizes; its T, H, W must be the clip's.
        bit_cost: what a bit per pixel must save in mean squared error (of values 0..1): lambda.
        device: where to compute.
        window: frames of a step; all if None.
    """

    def __init__(
        self,
        clip: Tensor,
        shape: FitShape,
        bit_cost: float,
        device: torch.device | str = "cpu",
        window: int | None = None,
    ) -> None:
        if clip.dtype != torch.uint8 or tuple(clip.shape) != (shape.frames, shape.height, shape.width, 3):
            raise ValueError(f"expected uint8 frames of the shape {shape}, got {clip.dtype} {tuple(clip.shape)}")
        torch.manual_seed(0)
        self.shape, self.device = shape, torch.device(device)
        self.clip = clip.permute(0, 3, 1, 2).contiguous().to(self.device)
        self.window = min(window or shape.frames, shape.frames)
        self.pixels = clip.numel() // 3
        self.price = self.pixels / bit_cost  # bits for a mean squared error of 1
        self.synthesis = FitSynthesis(shape).to(self.device)
        self.contexts = [
            ContextNet(shape.sizes(g), g.slots(shape.frames), shape.hidden).to(self.device) for g in shape.groups
        ]
        # All weights in one row, in the order of the file; and for each group its grids side by side, slot by slot:
        # so a step has few kernels beside those of the networks.
        nets = [(self.synthesis.tensors, shape.weights())]
        for net, g in zip(self.contexts, shape.groups, strict=True):
            nets.append((net.tensors, context_shapes(len(g.levels), g.slots(shape.frames), shape.hidden)))
        self.shapes = [size for _, sizes in nets for size in sizes.values()]
        self.names = [list(sizes) for _, sizes in nets]
        self.weights = Adam(torch.cat([own[n].detach().flatten() for own, sizes in nets for n in sizes]))
        self.cells = [
            Adam(torch.zeros(g.slots(shape.frames), sum(h * w for h, w in shape.sizes(g)), device=self.device))
            for g in shape.groups
        ]
        self.exponents: list[int | None] = [None] * len(self.shapes)  # of tensors that are rounded and stay
        self.free = torch.ones_like(self.weights.values)  # 0 for their weights
        # What recorded graphs read anew at every step: rates of grids and nets, corrections, softness, price, noise.
        self.settings = torch.zeros(7, device=self.device)
        self.frames = torch.arange(self.window, device=self.device)
        self.measured = torch.zeros(2, device=self.device)  # bits, mean squared error
        self.recorded: dict[bool, torch.cuda.CUDAGraph] = {}
        self.steps = 0
        self.share = 0.0
        self.random = np.random.default_rng(0)

    @property
    def quality(self) -> float:
        """The inverse of :func:`~.format.bit_cost`, of the price as it is now."""
        return 25 * math.log10(self.price / self.pixels)

    def tensors(self, row: Tensor) -> list[Tensor]:
        """All weights in a row to tensors, in the order of the file."""
        parts = row.split([math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def nets(self, tensors: Sequence[T]) -> tuple[dict[str, T], list[dict[str, T]]]:
        """Those of the synthesis, and of every context net, by name."""
        left = iter(tensors)
        synthesis, *contexts = [{name: next(left) for name in names} for names in self.names]
        return synthesis, contexts

    def grids(self, index: int, cells: Tensor) -> list[Tensor]:
        """Grids ``[n, h, w]``, coarse to fine, of a group's ``cells [n, sum of h w]``."""
        sizes = self.shape.sizes(self.shape.groups[index])
        parts = cells.split([h * w for h, w in sizes], dim=1)
        return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]

    def rounded(self) -> list[list[Tensor]]:
        """All grids, rounded."""
        return [self.grids(i, adam.values.round()) for i, adam in enumerate(self.cells)]

    def bits(self, grids: Sequence[Sequence[Tensor]], contexts: Sequence[dict[str, Tensor]]) -> Tensor:
        """Bits of all frames, estimated from the grids of some.

        Args: grids: ``[2 + n, h, w]`` with two slots before those that count.
        """
        total = self.settings.new_zeros(())
        for net, group, own, weights in zip(self.contexts, self.shape.groups, grids, contexts, strict=True):
            parent, bits = None, self.settings.new_zeros(())
            for level, grid in enumerate(own):
                bits = bits + net(weights, level, grid, parent)
                parent = grid[2:]
            total = total + bits * (self.shape.frames / (len(own[0]) - 2) if group.period == 1 else 1)
        return total

    def _step(self, rounded: bool) -> None:
        grid_rate, net_rate, soft = self.settings[0], self.settings[1], self.settings[4]
        correction = self.settings[2:4]
        rows = torch.cat([self.frames[:1] - 2, self.frames[:1] - 1, self.frames])
        leaves, seen, shown = [], [], []
        for i, (group, adam) in enumerate(zip(self.shape.groups, self.cells, strict=True)):
            # Two slots before those that count, zeros if there are none.
            per_frame = group.period == 1
            x = adam.values[rows.clamp_min(0)] if per_frame else F.pad(adam.values, (0, 0, 2, 0))
            there = rows >= 0 if per_frame else torch.arange(len(x), device=self.device) >= 2
            leaves.append(x.requires_grad_(not rounded))
            relaxed = (x.round() if rounded else relax(x, soft, self.settings[6])) * there[:, None]
            seen.append(self.grids(i, relaxed))
            shown.append([grid[2:] for grid in seen[-1]])
        row = self.weights.values.clone().requires_grad_()
        synthesis, contexts = self.nets(self.tensors(row))
        bits = self.bits(seen, contexts)
        x_hat = self.synthesis(synthesis, shown, self.frames)
        error = (x_hat - self.clip[self.frames].float() / 255).square().mean()
        loss = bits + self.settings[5] * error
        self.measured.copy_(torch.stack([bits.detach(), error.detach()]))
        gradient, *gradients = torch.autograd.grad(loss, [row] if rounded else [row, *leaves])
        self.weights.step(gradient, net_rate * self.free, correction)
        if not rounded:
            for group, adam, slope in zip(self.shape.groups, self.cells, gradients, strict=True):
                adam.step(slope[2:], grid_rate, correction, self.frames if group.period == 1 else None)
                adam.values.clamp_(-LIMIT, LIMIT)

    def step(self, share: float) -> None:
        """One step, at this share of the fit's time."""
        self.share = share
        rounded = share >= ROUNDED
        if share >= FROZEN:
            self._freeze(min(1 + int((share - FROZEN) / (1 - FROZEN) * STAGES), STAGES))
        decay = 0.5 + 0.5 * math.cos(math.pi * share / ROUNDED)
        if rounded:
            decay = END_RATE * (1 - share) / (1 - ROUNDED)
        warm = min(1.0, (self.steps + 1) / 50)
        soft, noise = (a + (b - a) * min(share / ROUNDED, 1) for a, b in (SOFT, NOISE))
        n = self.steps + 1
        rates = GRID_RATE * decay * warm, NET_RATE * (decay if rounded else max(decay, END_RATE)) * warm
        settings = (*rates, 1 - BETAS[0] ** n, 1 - BETAS[1] ** n, soft, self.price, noise)
        self.settings.copy_(torch.tensor(settings), non_blocking=True)
        last = self.shape.frames - self.window  # frames at the ends are seen as often as those in the middle
        start = int(np.clip(self.random.integers(1 - self.window, last + self.window), 0, last))
        self.frames.copy_(torch.arange(start, start + self.window), non_blocking=True)
        if self.device.type != "cuda" or self.steps < 3:
            self._step(rounded)
        else:
            if rounded not in self.recorded:
                self.recorded = {rounded: self._record(rounded)}
            self.recorded[rounded].replay()
        self.steps += 1

    def _freeze(self, stage: int) -> None:
        """Round the tensors of the first ``stage`` parts; what is beyond all stages is rounded when it is written."""
        order = np.argsort([-math.prod(shape) for shape in self.shapes], kind="stable")
        due = [int(i) for i in order[: len(order) * stage // (STAGES + 1)] if self.exponents[i] is None]
        if due:
            exponents = self.choose_exponents(due)
            tensors, free = self.tensors(self.weights.values), self.tensors(self.free)
            for i in due:
                self.exponents[i] = exponents[i]
                tensors[i].copy_(quantized(tensors[i], exponents[i]))
                free[i].zero_()

    def _thaw(self) -> None:
        self.exponents = [None] * len(self.exponents)
        self.free.fill_(1)

    def _record(self, rounded: bool) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._step(rounded)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with recording(graph):
            self._step(rounded)
        return graph

    def run(
        self,
        seconds: float,
        report: Callable[[FitProgress], None] | None = None,
        every: float = 1.0,
        most: int | None = None,
    ) -> None:
        """Fit for so long. KeyboardInterrupt ends it early, and what there is can be exported.

        Args:
            report: is told how it stands, every so many seconds.
            most: bytes to aim at: what a bit is worth then moves until the grids take what is left beside the weights.
        """
        begin = last = time.monotonic()
        first = self.steps
        room = None if most is None else max(8 * most - self._weight_bits(), most)
        matmul = torch.backends.cuda.matmul
        exact = matmul.allow_tf32
        matmul.allow_tf32 = True
        try:
            while (now := time.monotonic()) - begin < seconds or self.steps == first:
                self.step(min((now - begin) / seconds, 1.0) if seconds > 0 else 1.0)
                if self.steps % 8 == 0:  # the host may be this far ahead of the device
                    bits, error = self.measured.tolist()
                    if room is not None and self.share > 0.05:
                        self.price *= float(np.clip(room * AIM / max(bits, 1.0), 0.9, 1 / 0.9)) ** PULL
                    if report and now - last >= every:
                        last = now
                        psnr = -10 * math.log10(max(error, 1e-10))
                        report(FitProgress(self.share, self.steps, (self.steps - first) / (now - begin), bits, psnr))
        except KeyboardInterrupt:
            pass
        finally:
            matmul.allow_tf32 = exact

    def export_within(self, most: int) -> bytes:
        """:meth:`export` in at most ``most`` bytes: if it takes more, a bit gets dearer until it does not.

        Raises: ValueError if that does not help.
        """
        least = data = self.export()
        for _ in range(ATTEMPTS):
            if len(data) <= most:
                return data
            self._thaw()
            self.price *= 0.9 * min(1.0, most / len(data))
            for i in range(STEPS_OF_ATTEMPT):  # the last third of a fit once more
                self.step(1 + (i / STEPS_OF_ATTEMPT - 1) / 3)
            data = self.export()
            least = min(least, data, key=len)
        raise ValueError(f"{most} bytes are too few: the smallest that was found takes {len(least)}")

    def _weight_bits(self) -> float:
        """About what the weights will take."""
        return 5.0 * self.weights.values.numel()

    @torch.no_grad()
    def choose_exponents(self, due: Sequence[int]) -> dict[int, int]:
        """For some tensors, one after the other, the step that is best for bits of the weights, bits of the grids and
        error together."""
        frames = torch.linspace(0, self.shape.frames - 1, min(8, self.shape.frames), device=self.device).long().unique()
        grids = self.rounded()
        shown = [
            [x[frames] for x in own] if g.period == 1 else own for g, own in zip(self.shape.groups, grids, strict=True)
        ]
        seen = [[F.pad(x, (0, 0, 0, 0, 2, 0)) for x in own] for own in grids]
        target = self.clip[frames].float() / 255
        tensors = self.tensors(self.weights.values)
        used, chosen = list(tensors), dict[int, int]()
        for i in due:
            costs = {}
            for e in range(max(finest(tensors[i]) - 7, 0), finest(tensors[i]) + 1):
                used[i] = quantized(tensors[i], e)
                synthesis, contexts = self.nets(used)
                if i < len(self.names[0]):
                    cost = self.price * (self.synthesis(synthesis, shown, frames) - target).square().mean()
                else:
                    cost = self.bits(seen, contexts)
                costs[e] = float(cost) + min(weight_bits(integers(tensors[i], e)))
            chosen[i] = min(costs, key=lambda e: costs[e])
            used[i] = quantized(tensors[i], chosen[i])
        return chosen

    @torch.no_grad()
    def export(self) -> bytes:
        """The clip as it is fitted now, as bytes."""
        known = {i: e for i, e in enumerate(self.exponents) if e is not None}
        known |= self.choose_exponents([i for i in range(len(self.shapes)) if i not in known])
        tensors = [Weights(integers(w, known[i]), known[i]) for i, w in enumerate(self.tensors(self.weights.values))]
        grids = [[x.cpu().numpy().astype(np.int32) for x in own] for own in self.rounded()]
        return write_fitted(self.shape, tensors, self.nets(tensors)[1], grids)


def relax(x: Tensor, soft: Tensor, noise: Tensor) -> Tensor:
    """Values as rounding will leave them, nearly, with slopes (C3, equation 5; its noise is less even than ours)."""
    return soft_round(soft_round(x, soft) + noise * (torch.rand_like(x) - 0.5), soft)


def integers(w: Tensor, exponent: int) -> npt.NDArray[np.int32]:
    values = torch.round(w.detach().double() * 2.0**exponent).clamp(-REACH, REACH)
    return values.cpu().numpy().astype(np.int32)


def quantized(w: Tensor, exponent: int) -> Tensor:
    return torch.round(w.detach() * 2.0**exponent).clamp(-REACH, REACH) * 2.0**-exponent


def finest(w: Tensor) -> int:
    """The largest exponent with which all of ``w`` is within reach."""
    largest = float(w.detach().abs().max())
    return int(min(max(math.floor(math.log2(REACH / max(largest, 2.0**-12))), 0), MAX_EXPONENT))


def default_shape(clip: Tensor) -> FitShape:
    """Sizes for a clip ``[T, H, W, 3]``: still grids of all levels and moving ones of 4 pixels and more; displacements
    if much of the picture moves, which a camera that stands still does not make."""
    frames, height, width, _ = clip.shape
    groups = default_groups(frames, height, width)
    if frames < 2 or moving_share(clip) < MOVING:
        return FitShape(frames, height, width, groups)
    coarse = groups[0].coarse
    groups += tuple(Group(kind, 1, min(4, coarse), coarse) for kind in (DOWN, RIGHT))
    return FitShape(frames, height, width, groups, margin=MARGIN)


def default_groups(frames: int, height: int, width: int) -> tuple[Group, ...]:
    """Still grids of all levels, moving ones of 4 pixels and more."""
    coarse = max(2, min(6, int(math.log2(min(height, width))) - 2))
    if frames == 1:
        return (Group(FEATURES, 0, 0, coarse),)
    return (Group(FEATURES, 0, 0, coarse), Group(FEATURES, 1, 2, coarse))


def moving_share(clip: Tensor, apart: int = 2, pairs: int = 6, reach: int = 6, block: int = 16) -> float:
    """The share of blocks, 32 pixels wide, in which something moves: they are much nearer to another place of the frame
    ``apart`` frames before, up to ``2 reach`` pixels away, than to their own."""
    frames = len(clip)
    apart = min(apart, frames - 1)
    at = torch.linspace(0, frames - apart - 1, min(pairs, frames - apart)).long()
    luma = clip[torch.cat([at, at + apart])].float().mean(-1)[:, None]
    before, after = F.avg_pool2d(luma, 2, ceil_mode=True).chunk(2)  # [pairs, 1, h, w]
    h, w = before.shape[2:]
    before = F.pad(before, (reach,) * 4, mode="replicate")
    errors = []
    for down in range(2 * reach + 1):
        for right in range(2 * reach + 1):
            difference = after - before[..., down : down + h, right : right + w]
            errors.append(F.avg_pool2d(difference.square(), min(block, h, w), ceil_mode=True))
    own = errors[len(errors) // 2]
    best = torch.stack(errors).amin(0)
    return float(((best < 0.6 * own) & (own > 10)).float().mean())
