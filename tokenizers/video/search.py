"""Motion by block matching, coarse to fine, as tensors all along: the encoder's first guess of the flows.

Only encoders search: what a file says of motion is what the nets made of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CELL = 8  # pixels: there is a flow for each cell
QUARTER = 4  # the first, exhaustive search is at a quarter of the resolution
FAR = 0.0003  # of the differences' range that a pixel of motion has to gain there,
NEAR = (0.004, 0.0055)  # and that a pixel away from the neighbours has to gain, at half and at full resolution
CLIFF = 12.0  # pixels beyond which it gets no worse
LUMA = (0.299, 0.587, 0.114)
STEPS = (1.0, 0.5, 0.25)  # pixels, at full resolution
AT_ONCE = 1 << 25  # pixels of candidates


def moved(x: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """``x [B, C, H, W]`` at each pixel plus its flow ``[B, 2, H, W]``, right and down; the border goes on outside."""
    height, width = x.shape[2:]
    flow = flow.float()
    rows = torch.arange(height, device=x.device, dtype=torch.float32)[:, None]
    columns = torch.arange(width, device=x.device, dtype=torch.float32)
    right = (columns + flow[:, 0]) * (2 / max(width - 1, 1)) - 1
    down = (rows + flow[:, 1]) * (2 / max(height - 1, 1)) - 1
    grid = torch.stack([right, down], 3)
    return F.grid_sample(x.float(), grid, mode=mode, padding_mode="border", align_corners=True)


@torch.no_grad()
def search(x: Tensor, reference: Tensor, reach: int = 8) -> Tensor:
    """Flows ``[B, 2, H/8, W/8]`` in pixels such that ``x(p)`` is like ``reference(p + flow)``.

    Args: x, reference: ``[B, 3, H, W]`` in [0, 1], whole cells.  reach: of the first search, 4 pixels each.
    """
    x, reference = (_luma(part) for part in (x, reference))
    halves = [F.avg_pool2d(part, 2) for part in (x, reference)]
    quarters = [F.avg_pool2d(part, 2) for part in halves]
    flow = _everywhere(quarters[0], quarters[1], reach)
    for step in (0.0, 2.0, 0.0):  # 0: what the neighbours have
        flow = _better(halves[0], halves[1], flow, step)
    for step in STEPS:
        flow = _better(x, reference, flow, step)
        if step == STEPS[0]:
            flow = _better(halves[0], halves[1], flow, 0.0)
    return flow


def _luma(x: Tensor) -> Tensor:
    red, green, blue = LUMA
    return red * x[:, 0:1] + green * x[:, 1:2] + blue * x[:, 2:3]


def _at_once(x: Tensor, n: int) -> int:
    """How many of ``n`` candidates for ``x`` are tried in one pass: many, as long as memory is bounded."""
    return max(1, min(n, AT_ONCE // x.numel()))


def _costs(x: Tensor, others: Tensor, edge: int) -> Tensor:
    """``x [B, 1, h, w]`` and what it may be like ``[B, K, h, w]`` to costs of cells ``[B, K, h/edge, w/edge]``, half of
    them the mean of all cells around."""
    cost = F.avg_pool2d((x - others).abs(), edge)
    return 0.5 * cost + 0.5 * F.avg_pool2d(cost, 3, stride=1, padding=1, count_include_pad=False)


def _everywhere(x: Tensor, reference: Tensor, reach: int) -> Tensor:
    """The best of all whole displacements up to ``reach``, of pictures ``[B, 1, h, w]``, for cells of 2 x 2 pixels."""
    n = 2 * reach + 1
    height, width = x.shape[2:]
    padded = F.pad(reference, (reach,) * 4, mode="replicate")[:, 0]
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # [B, n, n, h, w]
    steps = QUARTER * torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    far = FAR * (steps.abs()[:, None] + steps.abs())  # [n, n]
    rows = max(1, _at_once(x, n * n) // n)
    costs = []
    for begin in range(0, n, rows):
        part = slice(begin, begin + rows)
        cost = _costs(x, windows[:, part].flatten(1, 2), CELL // QUARTER)
        costs.append((cost + far[part].flatten()[:, None, None]).min(1))
    which = torch.stack([cost.values for cost in costs], 1).argmin(1, keepdim=True)  # [B, 1, cells]
    number = torch.stack([cost.indices + i * rows * n for i, cost in enumerate(costs)], 1)
    best = number.gather(1, which)[:, 0]
    return torch.stack([steps[best % n], steps[best // n]], 1)


def _better(x: Tensor, reference: Tensor, flow: Tensor, step: float) -> Tensor:
    """The best flow of those around each one, or of its neighbours and none at all if ``step`` is 0.

    Args: x, reference: ``[B, 1, h, w]`` at full or half resolution.
    """
    edge = x.shape[2] // flow.shape[2]  # pixels of a cell here
    padded = F.pad(flow, (1, 1, 1, 1), mode="replicate")
    mean = F.avg_pool2d(padded, 3, 1)[:, None]
    b, _, h, w = flow.shape
    if step:
        around = [(dx, dy) for dy in (-step, 0.0, step) for dx in (-step, 0.0, step)]
        found = torch.stack([torch.stack([flow[:, 0] + dx, flow[:, 1] + dy], 1) for dx, dy in around], 1)
    else:
        ours = [padded[:, :, r : r + h, c : c + w] for r in range(3) for c in range(3)]
        found = torch.stack([*ours, torch.zeros_like(flow)], 1)  # [B, K, 2, h, w]
    n = _at_once(x, found.shape[1])
    costs = []
    for part in found.split(n, 1):
        place = (part.flatten(0, 1) * (edge / CELL)).repeat_interleave(edge, 2).repeat_interleave(edge, 3)
        there = reference[:, None].expand(-1, part.shape[1], -1, -1, -1).flatten(0, 1)
        costs.append(_costs(x, moved(there, place).view(b, -1, *x.shape[2:]), edge))
    near = NEAR[1] if edge == CELL else NEAR[0]
    away = (found - mean).abs().sum(2).clamp(max=CLIFF)
    which = (torch.cat(costs, 1) + near * away).argmin(1)  # [B, h, w]
    return found.gather(1, which[:, None, None].expand(-1, 1, 2, -1, -1))[:, 0]
