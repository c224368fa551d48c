"""`video-fit`: a clip as grids of integers and a small network, both fitted to it alone.

::

    still grids [1,h,w], one slot       -> doubled -> [1,Ls,H,W] -> 1x1 -> displaced -+
    moving grids, a slot a frame        -> doubled -> [n,Lm,H,W] -> 1x1 --------------+-> 1x1 -> 1x1 -> 3x3 -> x_hat
    grids of displacements, likewise    -> 1x1 -> doubled -> [n,2,H,W], in pixels        [n,3,H,W]

A group of grids is a pyramid: level l has cells of 2^l pixels, and the grids are doubled and laid beside each other
from coarse to fine, as in COOL-CHIC (Ladune et al. 2023, arXiv:2212.05458; 3x3 layers and learned kernels of the
doubling: Leguay et al. 2023, arXiv:2307.12706) and C3 (Kim et al. 2023, arXiv:2312.02753, clips as well). What differs:
groups have slots over time of their own. A group with one slot is seen by all frames, so what does not move is in the
file once, at the finest resolution; slots that are ``period`` frames apart are blended linearly in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES, DOWN, RIGHT = 0, 1, 2  # kinds of groups
MAX_LEVEL = 12
MAX_WIDTH = 64  # of the networks
BAND = 1 << 22  # values of all channels that are computed at once where no gradients are wanted
KERNEL = (0.0, 0.25, 0.75, 0.0)  # the doubling starts as linear interpolation


@dataclass(frozen=True)
class Group:
    """A pyramid of grids.

    Attributes:
        kind: ``FEATURES`` for what the network sees, ``DOWN`` and ``RIGHT`` for how far still groups are displaced.
        period: frames between two slots; 0 for a group of one slot that all frames see.
        fine: level of the finest grid; cells of level l are squares of 2^l pixels.
        coarse: level of the coarsest.
    """

    kind: int
    period: int
    fine: int
    coarse: int

    def __post_init__(self) -> None:
        if not FEATURES <= self.kind <= RIGHT or not 0 <= self.period < 1 << 16:
            raise ValueError(f"a group of grids has a kind 0..2 and a period below 2^16, got {self}")
        if not 0 <= self.fine <= self.coarse <= MAX_LEVEL:
            raise ValueError(f"levels of a group are 0 <= fine <= coarse <= {MAX_LEVEL}, got {self}")
        if self.kind != FEATURES and not self.period:
            raise ValueError("displacements have slots over time")

    @property
    def levels(self) -> tuple[int, ...]:
        """Coarse to fine."""
        return tuple(range(self.coarse, self.fine - 1, -1))

    @property
    def still(self) -> bool:
        return self.kind == FEATURES and not self.period

    def slots(self, frames: int) -> int:
        return 1 if not self.period else -(-(frames - 1) // self.period) + 1


@dataclass(frozen=True)
class FitShape:
    """What a decoder must know of a fitted clip before its numbers.

    Attributes:
        frames: T.  height: H.  width: W.
        groups: at least one; if there are displacements, one of each kind.
        margin: pixels that still groups reach beyond the picture on all four sides.
        channels: C, width of the synthesis.
        hidden: width of the context nets.
    """

    frames: int
    height: int
    width: int
    groups: tuple[Group, ...]
    margin: int = 0
    channels: int = 16
    hidden: int = 12

    def __post_init__(self) -> None:
        kinds = [group.kind for group in self.groups]
        if not kinds.count(FEATURES) or kinds.count(DOWN) != kinds.count(RIGHT) or kinds.count(DOWN) > 1:
            raise ValueError("a fitted clip has a group of features, and displacements along both sides or none")
        if min(self.frames, self.height, self.width) < 1 or not 0 <= self.margin <= 255:
            raise ValueError("a fitted clip has frames, rows and columns, and a margin of 0 to 255")
        if not 1 <= min(self.channels, self.hidden) <= max(self.channels, self.hidden) <= MAX_WIDTH:
            raise ValueError(f"networks of a fitted clip are 1 to {MAX_WIDTH} wide")

    def area(self, group: Group, level: int) -> tuple[int, int]:
        """``(h, w)`` of the group's grid of a level: of all that its cells cover."""
        more = 2 * self.margin if group.still else 0
        return -(-(self.height + more) >> level), -(-(self.width + more) >> level)

    def sizes(self, group: Group) -> list[tuple[int, int]]:
        """``(h, w)`` of the group's grids, coarse to fine."""
        return [self.area(group, level) for level in group.levels]

    def grids(self, group: Group) -> list[tuple[int, int, int]]:
        """``(slots, h, w)`` of the group's grids, coarse to fine."""
        return [(group.slots(self.frames), h, w) for h, w in self.sizes(group)]

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of the synthesis, in the order in which they are written."""
        c = self.channels
        shapes: dict[str, tuple[int, ...]] = {}
        for i, group in enumerate(self.groups):
            shapes[f"double{i}"] = (len(KERNEL),)
            shapes[f"first{i}"] = (c if group.kind == FEATURES else 1, len(group.levels))
        shapes |= {"first": (c,), "second": (c, c), "second_bias": (c,), "third": (3, c), "third_bias": (3,)}
        return shapes | {"fourth": (3, 3, 3, 3), "fourth_bias": (3,), "fifth": (3, 3, 3, 3), "fifth_bias": (3,)}


def mix(weight: Tensor, x: Tensor) -> Tensor:
    """A 1x1 convolution, ``[O, C]`` by ``[n, C, h, w]``. (Plain products: convolutions would turn the layout round.)"""
    return torch.bmm(weight.expand(len(x), -1, -1), x.flatten(2)).unflatten(2, x.shape[2:])


def double(x: Tensor, kernel: Tensor, h: int, w: int) -> Tensor:
    """``[n, C, h', w']`` to twice the size, cut to ``[n, C, h, w]``; the edges are repeated.

    Along each axis ``out[2i] = k0 x[i-2] + k1 x[i-1] + k2 x[i] + k3 x[i+1]`` and ``out[2i+1]`` its mirror image.
    """
    zero = kernel.new_zeros(1)
    taps = torch.stack([torch.cat([kernel, zero]), torch.cat([zero, kernel.flip(0)])])  # [2, 5]: x[i-2] .. x[i+2]
    rows, columns = x.shape[2:]
    x = F.pad(x, (2, 2, 2, 2), mode="replicate")
    if x.shape[1] > 1 and not torch.is_grad_enabled():  # channel after channel: less memory
        return torch.cat([_doubled(x[:, i : i + 1], taps, (rows, columns), (h, w)) for i in range(x.shape[1])], 1)
    return _doubled(x, taps, (rows, columns), (h, w))


def _doubled(x: Tensor, taps: Tensor, inner: tuple[int, int], outer: tuple[int, int]) -> Tensor:
    shape, (rows, columns), (h, w) = x.shape[:2], inner, outer
    x = torch.stack([x[:, :, i : i + rows] for i in range(5)], dim=2).flatten(0, 1)  # [n C, 5, h', w' + 4]
    x = mix(taps, x).transpose(1, 2).flatten(1, 2).unflatten(0, shape)[:, :, :h]  # [n, C, h, w' + 4]
    x = torch.stack([x[..., i : i + columns] for i in range(5)], dim=-1)  # [n, C, h, w', 5]
    return (x @ taps.T).flatten(3)[..., :w]


class FitSynthesis(nn.Module):
    """Grids to pixels."""

    def __init__(self, shape: FitShape) -> None:
        super().__init__()
        self.shape = shape
        tensors = {name: nn.Parameter(torch.zeros(size)) for name, size in shape.weights().items()}
        c = shape.channels
        with torch.no_grad():
            for name, tensor in tensors.items():
                if name.startswith("double"):
                    tensor.copy_(torch.tensor(KERNEL))
                elif tensor.dim() == 2:
                    nn.init.normal_(tensor, std=(0.1 if name.startswith("first") else (2 / c) ** 0.5))
            for i, group in enumerate(shape.groups):
                if group.kind != FEATURES:
                    tensors[f"first{i}"].fill_(0.25)  # pixels that a unit displaces
            tensors["third"].mul_(0.3)
            tensors["third_bias"].fill_(0.5)
            tensors["fourth"].copy_(0.02 * torch.randn_like(tensors["fourth"]))
        self.tensors = nn.ParameterDict(tensors)

    def pyramid(self, index: int, grids: Sequence[Tensor], kernel: Tensor) -> Tensor:
        """Grids ``[n, h, w]``, coarse to fine, of group number ``index`` to ``[n, L, H, W]``."""
        group, area = self.shape.groups[index], self.shape.area
        x = grids[0][:, None]
        for level, finer in zip(group.levels[1:], grids[1:], strict=True):
            x = torch.cat([double(x, kernel, *area(group, level)), finer[:, None]], 1)
        if group.kind != FEATURES:
            return x
        for level in range(group.fine - 1, -1, -1):
            x = double(x, kernel, *area(group, level))
        return x

    def forward(self, weights: dict[str, Tensor], grids: Sequence[Sequence[Tensor]], frames: Tensor) -> Tensor:
        """Pixels ``[n, 3, H, W]``, 0..1 but not clamped, of some frames.

        Args:
            weights: the tensors to use, these parameters or what rounding makes of them.
            grids: for every group its grids, coarse to fine: ``[n, h, w]``, the slots of these frames for a group of
                period 1; ``[1, h, w]`` for still ones; all slots for the others.
            frames: ``[n]`` their numbers, int64.
        """
        height, width, edge = self.shape.height, self.shape.width, self.shape.margin
        still: list[tuple[int, Tensor]] = []  # pyramids [n, L, H, W] and the numbers of their groups
        moving: list[tuple[int, Tensor]] = []
        displaced: dict[int, Tensor] = {}
        for i, (group, own) in enumerate(zip(self.shape.groups, grids, strict=True)):
            if group.period > 1:
                own = [blend(x, frames, group.period) for x in own]
            x = self.pyramid(i, own, weights[f"double{i}"])
            if group.kind != FEATURES:
                x = mix(weights[f"first{i}"], x)
                for level in range(group.fine - 1, -1, -1):
                    x = double(x, weights[f"double{i}"], *self.shape.area(group, level))
                displaced[group.kind] = x[:, 0]
            else:
                (still if group.still else moving).append((i, x))

        def features(groups: Sequence[tuple[int, Tensor]], top: int, bottom: int) -> Tensor | None:
            """Sum of what groups make of their rows, ``[n, C, bottom - top, W]``."""
            parts = [mix(weights[f"first{i}"], x[:, :, top:bottom]) for i, x in groups]
            return sum(parts[1:], parts[0]) if parts else None

        whole = features(still, 0, height + 2 * edge) if displaced else None  # displacements may reach anywhere

        def rows(top: int, bottom: int) -> Tensor:
            x = weights["first"][:, None, None]
            for i, pyramid in moving:
                x = x + mix(weights[f"first{i}"], pyramid[:, :, top:bottom])
            if whole is not None:
                down, right = (displaced[kind][:, top:bottom] for kind in (DOWN, RIGHT))
                x = x + displace(whole, down, right, edge, top)
            elif (seen := features(still, edge + top, edge + bottom)) is not None:
                x = x + seen[..., edge : edge + width]
            x = F.relu(x)
            x = F.relu(mix(weights["second"], x) + weights["second_bias"][:, None, None])
            return mix(weights["third"], x) + weights["third_bias"][:, None, None]

        # Widths of the network are looked at for some rows at a time, but gradients want all of them.
        high = height if torch.is_grad_enabled() else max(1, BAND // (len(frames) * width * self.shape.channels))
        x = torch.cat([rows(top, min(top + high, height)) for top in range(0, height, high)], dim=2)
        x = x + F.conv2d(_edges(x), weights["fourth"], weights["fourth_bias"])
        x = x + F.conv2d(_edges(F.relu(x)), weights["fifth"], weights["fifth_bias"])
        return x.expand(len(frames), -1, -1, -1)


def displace(x: Tensor, down: Tensor, right: Tensor, margin: int, top: int = 0) -> Tensor:
    """``x [1, C, H + 2m, W + 2m]`` read at ``(row + m + down, column + m + right)``, linearly, for every pixel.

    Args: down, right: ``[n, H, W]`` in pixels, or of the rows from ``top`` on. Beyond the edges is what lies on them.

    Returns: ``[n, C, H, W]``.
    """
    n, h, w = down.shape
    rows = torch.arange(top, top + h, device=x.device, dtype=x.dtype)[:, None] + margin + down
    columns = torch.arange(w, device=x.device, dtype=x.dtype) + margin + right
    height, width = x.shape[2:]
    where = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=-1)
    return F.grid_sample(x.expand(n, -1, -1, -1), where, padding_mode="border", align_corners=False)


def _edges(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="replicate")


def blend(slots: Tensor, frames: Tensor, period: int) -> Tensor:
    """``[S, h, w]`` slots to ``[n, h, w]``, linear between the two around a frame."""
    before = frames // period
    share = ((frames % period).to(slots.dtype) / period)[:, None, None]
    return slots[before] * (1 - share) + slots[(before + 1).clamp_max(len(slots) - 1)] * share
