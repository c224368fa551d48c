"""The context nets of :mod:`.codes` while they are fitted: the same network in floats, and bits with gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codes import AROUND, LIMIT, SCALE_ONE, SCALES, SEEN, STEPS, context_shapes

LN2 = 0.6931471805599453


class ContextNet(nn.Module):
    """The context net of one group: bits of its grids, relaxed.

    Args: sizes: ``(h, w)`` of every grid, coarse to fine. slots: more than one if the group has a past. hidden: H.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], slots: int, hidden: int) -> None:
        super().__init__()
        self.past = slots > 1
        shapes = context_shapes(len(sizes), slots, hidden)
        self.tensors = nn.ParameterDict({name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()})
        with torch.no_grad():
            nn.init.kaiming_uniform_(self.tensors["input"], a=5**0.5)
            nn.init.normal_(self.tensors["output"], std=0.1)
            self.tensors["bias"][:, 1] = SCALE_ONE  # all grids start with a width of 1
        neighbours = torch.zeros(8, 1, 3, 3)
        for i, (dy, dx) in enumerate(AROUND):
            neighbours[i, 0, 1 + dy, 1 + dx] = 1
        self.register_buffer("neighbours", neighbours, persistent=False)
        for i, (h, w) in enumerate(sizes):
            seen = torch.zeros(8, h, w)
            step = torch.zeros(4, h, w)
            for k, (a, b) in enumerate(STEPS):
                step[k, a::2, b::2] = 1
                seen[:, a::2, b::2] = torch.tensor(SEEN[k], dtype=torch.float32)[:, None, None]
            self.register_buffer(f"seen{i}", seen, persistent=False)
            self.register_buffer(f"step{i}", step, persistent=False)

    def features(self, level: int, grid: Tensor, parent: Tensor | None) -> Tensor:
        """The numbers that are read for every cell, ``[n, F, h, w]``; ``grid [n + 2, h, w]`` as in :meth:`forward`."""
        now = grid[2:]
        h, w = now.shape[1:]
        # The neighbours, one channel each, by filters of a single 1.
        around = F.conv2d(now[:, None], self.get_buffer("neighbours"), padding=1) * self.get_buffer(f"seen{level}")
        sizes = around.abs()
        sums = torch.stack([sizes[:, :4].sum(1), sizes[:, 4:].sum(1)], dim=1)
        found = [around, _log(sums)]
        if parent is None:
            found.append(now.new_zeros(len(now), 3, h, w))
        else:
            size = parent.abs()
            above = torch.stack([parent, _log(size), _log(_nine(size))], dim=1)
            found.append(F.interpolate(above, scale_factor=2.0)[..., :h, :w])
        if self.past:
            past, older = grid[1:-1], grid[:-2]
            size = past.abs()
            logs = _log(torch.stack([size, _nine(size), older.abs()], dim=1))
            found += [torch.stack([past, older], dim=1), logs]
        return torch.cat(found, dim=1)

    def forward(self, weights: dict[str, Tensor], level: int, grid: Tensor, parent: Tensor | None) -> Tensor:
        """Bits of all cells, one number.

        Args:
            weights: the tensors to use, these parameters or what rounding makes of them.
            grid: ``[n + 2, h, w]``, two slots before, then those that are counted.
            parent: ``[n, h', w']`` the grid above in the pyramid, None for the first.
        """
        now = grid[2:]
        steps = self.get_buffer(f"step{level}").expand(len(now), -1, -1, -1)  # which one it is: a bias of each
        x = torch.cat([self.features(level, grid, parent), steps], dim=1).flatten(2)  # [n, F + 4, h w]
        first = torch.cat([weights["input"], weights["step"].T], dim=1)
        hidden = F.relu(_mix(first, x) + weights["level"][level][:, None])
        out = _mix(weights["output"], hidden) + _mix(F.pad(weights["skip"], (0, 4)), x)
        out = out + weights["bias"][level][:, None]
        return laplace_bits(now.flatten(1), out[:, 0], out[:, 1]).sum()


def laplace_bits(values: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Bits of values, integers or not, under a Laplace distribution that is integrated over one unit."""
    rate = torch.exp2((SCALE_ONE - scale.clamp(0, SCALES - 1)) / 4)  # 1 / b
    distance = (values - mean.clamp(-LIMIT, LIMIT)).abs()
    beyond = (distance - 0.5).clamp_min(0) * rate / LN2 + 1 - torch.log2(-torch.expm1(-rate))
    near = distance.clamp_max(0.5)
    inside = 1 - 0.5 * (torch.exp(-(0.5 + near) * rate) + torch.exp(-(0.5 - near) * rate))
    return torch.where(distance > 0.5, beyond, -torch.log2(inside.clamp_min(1e-7)))


def _mix(weight: Tensor, x: Tensor) -> Tensor:
    """``[O, C]`` by ``[n, C, cells]``; as one product for each n, since ``@`` would turn the layout round."""
    return torch.bmm(weight.expand(len(x), -1, -1), x)


def _log(x: Tensor) -> Tensor:
    return torch.log2(1 + x)


def _nine(x: Tensor) -> Tensor:
    return 9 * F.avg_pool2d(x[:, None], 3, 1, 1)[:, 0]
