"""Linear maps of windows over the known cells of a grid, as the hyperprior is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..context.net import RoundedLinear
from ..orders import Order


class Places:
    """Where the cells of each step of an order are in a grid, on a device.

    Attributes:
        sizes: number of cells of each step.
        order: the cells step after step, ``[h * w]``; back: its inverse.
        around: places of what each cell of a step knows, ``[n * P]``, in a map with a border of the order's reach.
    """

    def __init__(self, order: Order, grid: tuple[int, int], device: torch.device) -> None:
        cells = [torch.from_numpy(order.cells(grid, step)) for step in range(order.n)]
        self.sizes = [len(own) for own in cells]
        self.order = torch.cat(cells).to(device)
        self.back = torch.argsort(self.order)
        self.reach, width = order.reach, grid[1] + 2 * order.reach
        self.around: list[Tensor] = []
        for step, own in enumerate(cells):
            row, column = own // grid[1] + order.reach, own % grid[1] + order.reach
            places = [(row + dy) * width + column + dx for dy, dx in order.offsets(step)]
            self.around.append((torch.stack(places, 1).flatten() if places else own[:0]).to(device))

    def split(self, x: Tensor) -> list[Tensor]:
        """``[B, h, w, C]`` to the cells of each step, ``[B, n, C]`` each."""
        return list(_Permuted.apply(x.flatten(1, 2), self.order, self.back).split(self.sizes, 1))

    def merge(self, steps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Inverse of :meth:`split`, with zeros for the last steps if they are not there yet."""
        n = sum(self.sizes[len(steps) :])
        rest = [steps[0].new_zeros(len(steps[0]), n, steps[0].shape[2])] if n else []
        return _Permuted.apply(torch.cat([*steps, *rest], 1), self.back, self.order).unflatten(1, grid)

    def windows(self, x: Tensor, step: int) -> Tensor:
        """What each cell of a step knows, zeros outside: ``[B, h, w, C] -> [B, n, P * C]``.

        A convolution would compute all cells, and all places of a window.
        """
        x = F.pad(x, (0, 0, *[self.reach] * 4)).flatten(1, 2)
        return x.index_select(1, self.around[step]).reshape(len(x), self.sizes[step], -1)


@lru_cache(maxsize=64)
def places_of(order: Order, grid: tuple[int, int], device: torch.device) -> Places:
    return Places(order, grid, device)


class _Permuted(torch.autograd.Function):
    """``x [B, n, C]`` in another order of its cells. Its gradient gathers too, where index_select's would add up."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.index_select(1, ctx.back), None, None


def shuffle(x: Tensor) -> Tensor:
    """``[B, h, w, 4 C] -> [B, 2 h, 2 w, C]``."""
    b, h, w, c = x.shape
    return x.view(b, h, w, 2, 2, c // 4).permute(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


class WindowLinear(RoundedLinear):
    """A linear map of what lies in a window: a convolution whose kernel has the taps ``offsets``.

    The weight is ``[out, extra + P * C]``: first ``extra`` inputs of the cell itself, then C inputs for each offset.
    """

    def __init__(
        self, offsets: Sequence[tuple[int, int]], n_in: int, n_out: int, input_max: int, input_bits: int,
        output_bits: int, extra: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(extra + len(offsets) * n_in, n_out, input_max, input_bits, output_bits)
        self.extra, self.channels = extra, n_in
        self.reach = max(max(abs(dy), abs(dx)) for dy, dx in offsets)
        edge = 2 * self.reach + 1
        taps = [(dy + self.reach) * edge + dx + self.reach for dy, dx in offsets]
        self.register_buffer("taps", torch.tensor(taps), persistent=False)
        self.edge = edge

    taps: Tensor

    def channels_of_taps(self) -> Tensor:
        """The weight of what lies in the window, ``[out, C, P]``, a view."""
        return self.weight[:, self.extra :].unflatten(1, (len(self.taps), self.channels)).transpose(1, 2)

    def window(self, x: Tensor, extra: Tensor | None, rounding: bool) -> Tensor:
        """``x [B, h, w, C]`` and ``extra [B, h, w, extra]`` to ``[B, h, w, out]``; zeros lie outside the grid."""
        weight, bias = self.used(rounding)
        result = None
        if self.channels:
            rows = weight[:, self.extra :].unflatten(1, (-1, self.channels)).transpose(1, 2)  # [out, C, P]
            kernel = rows.new_zeros(*rows.shape[:2], self.edge**2).index_copy(2, self.taps, rows)
            kernel = kernel.unflatten(2, (self.edge, self.edge)).contiguous(memory_format=torch.channels_last)
            result = F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding=self.reach).permute(0, 2, 3, 1)
        if extra is not None:
            own = F.linear(extra, weight[:, : self.extra], None if self.channels else bias)
            result = own if result is None else result + own
        assert result is not None
        return result
