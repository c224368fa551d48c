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
AT_ONCE = 1 << 18  # pixels of candidates, which a processor's cache holds
AT_ONCE_ON_GPU = 1 << 25


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
    """Flows ``[B, 2, H/8, W/8]`` in pixels, multiples of a quarter, such that ``x(p)`` is like ``reference(p + flow)``.

    Args: x, reference: ``[B, 3, H, W]`` in [0, 1], whole cells.  reach: of the first search, 4 pixels each.
    """
    x, reference = (_luma(part) for part in (x, reference))
    halves = [F.avg_pool2d(part, 2) for part in (x, reference)]
    quarters = [F.avg_pool2d(part, 2) for part in halves]
    flow = _everywhere(quarters[0], quarters[1], reach)
    half, whole = _Level(halves[0], halves[1], 2), _Level(x, reference, 4)
    for step in (0.0, 2.0, 0.0):  # 0: what the neighbours have
        flow = half.better(flow, step)
    for step in STEPS:
        flow = whole.better(flow, step)
        if step == STEPS[0]:
            flow = half.better(flow, 0.0)
    return flow


def _luma(x: Tensor) -> Tensor:
    red, green, blue = LUMA
    return red * x[:, 0:1] + green * x[:, 1:2] + blue * x[:, 2:3]


def _at_once(x: Tensor, n: int) -> int:
    """How many of ``n`` candidates for ``x`` are tried in one pass: many, as long as memory is bounded."""
    most = AT_ONCE if x.device.type == "cpu" else AT_ONCE_ON_GPU
    return max(1, min(n, most // x.numel()))


def _smoothed(cost: Tensor) -> Tensor:
    """Costs of cells ``[B, K, h, w]``, half of them the mean of all cells around."""
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
        apart = (x[:, None] - windows[:, part]).abs_().flatten(1, 2)  # [B, K, h, w]
        apart = apart[:, :, 0::2] + apart[:, :, 1::2]
        cost = _smoothed((apart[..., 0::2] + apart[..., 1::2]) / 4)
        costs.append((cost + far[part].flatten()[:, None, None]).min(1))
    which = torch.stack([cost.values for cost in costs], 1).argmin(1, keepdim=True)  # [B, 1, cells]
    number = torch.stack([cost.indices + i * rows * n for i, cost in enumerate(costs)], 1)
    best = number.gather(1, which)[:, 0]
    return torch.stack([steps[best % n], steps[best // n]], 1)


class _Level:
    """Pictures ``[B, 1, h, w]`` at a resolution, at which flows are made better.

    fine: places of the reference along a pixel, which are between its pixels on straight lines.
    """

    def __init__(self, x: Tensor, reference: Tensor, fine: int) -> None:
        self.x, self.fine = x, fine
        self.edge = fine * CELL // QUARTER  # pixels of a cell: 4 at half, 8 at full resolution
        b, _, h, w = x.shape
        cells = x.view(b, h // self.edge, self.edge, w // self.edge, self.edge)
        self.cells = cells.transpose(2, 3).flatten(3)[:, None]  # [B, 1, cells down, cells right, pixels]
        size = (fine * (h - 1) + 1, fine * (w - 1) + 1)
        self.reference = F.interpolate(reference, size, mode="bilinear", align_corners=True)[:, 0].flatten(1)
        self.size = size

    def better(self, flow: Tensor, step: float) -> Tensor:
        """The best flow of those around each one, or of its neighbours and none at all if ``step`` is 0."""
        padded = F.pad(flow, (1, 1, 1, 1), mode="replicate")
        mean = F.avg_pool2d(padded, 3, 1)[:, None]
        h, w = flow.shape[2:]
        if step:
            around = [(dx, dy) for dy in (-step, 0.0, step) for dx in (-step, 0.0, step)]
            found = torch.stack([torch.stack([flow[:, 0] + dx, flow[:, 1] + dy], 1) for dx, dy in around], 1)
        else:
            ours = [padded[:, :, r : r + h, c : c + w] for r in range(3) for c in range(3)]
            found = torch.stack([*ours, torch.zeros_like(flow)], 1)  # [B, K, 2, h, w]
        costs = [self.costs(part) for part in found.split(_at_once(self.x, found.shape[1]), 1)]
        near = NEAR[1] if self.edge == CELL else NEAR[0]
        away = (found - mean).abs().sum(2).clamp(max=CLIFF)
        which = (torch.cat(costs, 1) + near * away).argmin(1)  # [B, h, w]
        return found.gather(1, which[:, None, None].expand(-1, 1, 2, -1, -1))[:, 0]

    def costs(self, flow: Tensor) -> Tensor:
        """Of flows ``[B, K, 2, h, w]``, in pixels of full resolution: ``[B, K, h, w]``."""
        b, k, _, h, w = flow.shape
        place = (flow * (self.fine * self.edge / CELL)).round().long()
        inside = self.fine * torch.arange(self.edge, device=flow.device)
        corner = [self.fine * self.edge * torch.arange(n, device=flow.device) for n in (h, w)]
        down = (place[:, :, 1] + corner[0][:, None])[..., None] + inside  # [B, K, h, w, edge]
        right = (place[:, :, 0] + corner[1])[..., None] + inside
        down, right = down.clamp_(0, self.size[0] - 1) * self.size[1], right.clamp_(0, self.size[1] - 1)
        there = (down[..., None] + right[..., None, :]).view(b, -1)
        other = self.reference.gather(1, there).view(b, k, h, w, -1)
        return _smoothed((self.cells - other).abs_().mean(4))
