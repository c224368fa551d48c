"""Finite scalar quantization: a few channels, each rounded to a few values; their product is the codebook."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..precision import no_autocast
from .base import (
    MAX_COUNTED,
    CodebookUsage,
    Gradient,
    Quantizer,
    QuantizerOutput,
    channels_last_rows,
    pass_gradient,
    rows_to_grid,
)

# The bound stays this much inside the outermost rounding edges (the value of the paper's code).
EPS = 1e-3


class FSQ(Quantizer):
    """Channel i is squashed by tanh and rounded to one of ``levels[i]`` values in [-1, 1]; D = len(levels), K = 1.

    The code is a number in mixed radix, first channel lowest: ``digit_0 + L_0 (digit_1 + L_1 (digit_2 + ...))`` with
    digits 0..L_i-1 from the lowest value up. N is the product of the levels. NaN counts as 0. There are no losses and
    nothing to learn. For even L_i the values are not symmetric: -1, ..., 0, ..., 1 - 2 / L_i.

    Args:
        levels: L_i >= 3 each (two values: see :class:`~.binary.LFQ`); N < 2^62.
        gradient: through the rounding, "straight-through" or "rotation".

    Raises: ValueError if levels do not fit.
    Source: Mentzer et al., arXiv:2309.15505, section 3 and appendix A.1; we differ: the rotation trick may be used.
    """

    float32_buffers = ("half_range", "offset")  # rounded ones would bound, and so code, latents in another way

    half_width: Tensor
    half_range: Tensor
    offset: Tensor
    radix: Tensor
    levels_of: Tensor

    def __init__(self, levels: Sequence[int], gradient: Gradient = "straight-through") -> None:
        super().__init__()
        if not levels or min(levels) < 3 or math.prod(levels) >= 1 << 62:
            raise ValueError(f"need levels of at least 3 each with a product below 2^62, got {list(levels)}")
        self.dim = len(levels)
        self.levels = tuple(levels)
        self.codebook_sizes = (math.prod(levels),)
        self.gradient: Gradient = gradient
        self.usage = CodebookUsage(self.codebook_sizes[0]) if self.codebook_sizes[0] <= MAX_COUNTED else None
        count = torch.tensor(self.levels)
        radix = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels_of", count, persistent=False)
        self.register_buffer("radix", torch.tensor(radix), persistent=False)
        self.register_buffer("half_width", count // 2, persistent=False)
        self.register_buffer("half_range", (count - 1) * (1 - EPS) / 2, persistent=False)
        self.register_buffer("offset", (count % 2 == 0) * 0.5, persistent=False)

    def bound(self, rows: Tensor) -> Tensor:
        """Rows ``[M, D]`` to the interval that rounds to ``-(L // 2) .. (L - 1) // 2``; 0 goes to 0."""
        shift = torch.atanh(self.offset / self.half_range)
        return torch.tanh(rows + shift) * self.half_range - self.offset

    def forward(self, z_e: Tensor, *, n_codes: Tensor | None = None) -> QuantizerOutput:
        with no_autocast(z_e.device):
            bounded = self.bound(self.check_rows(z_e))  # [M, D]
            digits = bounded.detach().round().long() + self.half_width
            indices = (digits * self.radix).sum(-1)
            if self.training and self.usage is not None:
                self.usage.update(indices)
            z_q = pass_gradient(bounded / self.half_width, self.digits_to_rows(digits), self.gradient)
            zero = bounded.new_zeros(())
            return QuantizerOutput(rows_to_grid(z_q, z_e), rows_to_grid(indices[:, None], z_e), zero, zero)

    def encode(self, z_e: Tensor) -> Tensor:
        digits = self.bound(self.check_rows(z_e).detach()).round().long() + self.half_width  # [M, D]
        return rows_to_grid((digits * self.radix).sum(-1, keepdim=True), z_e)

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        indices = codes[:, 0]  # [B, *grid]
        digits = indices.clamp_min(0).unsqueeze(-1) // self.radix % self.levels_of  # [B, *grid, D]
        return (self.digits_to_rows(digits) * (indices >= 0).unsqueeze(-1)).movedim(-1, 1)

    def digits_to_rows(self, digits: Tensor) -> Tensor:
        """Digits ``[..., D]`` int64 in 0..L_i-1 to values ``[..., D]`` float32 in [-1, 1]."""
        return (digits - self.half_width) / self.half_width

    def check_rows(self, z_e: Tensor) -> Tensor:
        if z_e.ndim < 2 or z_e.shape[1] != self.dim:
            raise ValueError(f"need latents [B, {self.dim}, *grid], got {tuple(z_e.shape)}")
        return torch.nan_to_num(channels_last_rows(z_e.float()))
