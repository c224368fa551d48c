"""Uniform scalar quantization, the quantizer of transform codecs: every channel is rounded by itself."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import no_autocast
from .base import Quantizer, QuantizerOutput, straight_through

Relaxation = Literal["noise", "straight-through"]


class ScalarQuantizer(Quantizer):
    """Rounds each channel to a multiple of ``step``; one code per channel, K = D.

    The range is finite and symmetric: values beyond ``half_range`` steps are clipped to ``+-half_range * step``. The
    code of channel d is ``round(z_d / step) + half_range``, in 0..2*half_range. Halves round to even, NaN counts as 0.
    A prefix of the codes is the first channels; the rest decode as zero.

    Args:
        dim: D.
        half_range: R; each channel has N = 2R + 1 values.
        step: distance of neighbouring values.
        relaxation: what ``z_q`` is in training. "noise": clipped ``z_e`` plus uniform noise of one step, whose gradient
            is exact and whose ``codes`` are still the rounded ones. "straight-through": the rounded value with the
            gradient of the identity, also where it was clipped.

    ``commitment_loss`` is the mean square of what clipping cut off: it pulls the encoder into the range, zero inside.

    Source: Balle et al., arXiv:1611.01704, section 3 (uniform noise in place of rounding).
    We differ: the finite range, so that codes index tables of a fixed size.
    """

    def __init__(self, dim: int, half_range: int = 127, step: float = 1.0, relaxation: Relaxation = "noise") -> None:
        super().__init__()
        if dim < 1 or half_range < 1 or not step > 0:
            raise ValueError(f"dim, half_range and step must be positive, got {dim}, {half_range}, {step}")
        if relaxation not in ("noise", "straight-through"):
            raise ValueError(f"unknown relaxation {relaxation!r}: use 'noise' or 'straight-through'")
        self.dim = dim
        self.codebook_sizes = (2 * half_range + 1,) * dim
        self.half_range = half_range
        self.step = step
        self.relaxation: Relaxation = relaxation

    def forward(self, z_e: Tensor, *, n_codes: Tensor | None = None) -> QuantizerOutput:
        with no_autocast(z_e.device):
            codes = self.encode(z_e)
            z_e = torch.nan_to_num(z_e.float())
            limit = self.half_range * self.step
            clipped = z_e.clamp(-limit, limit)
            if self.training and self.relaxation == "noise":
                z_q = clipped + (torch.rand_like(z_e) - 0.5) * self.step
            else:
                z_q = straight_through(z_e, self.decode(codes))
            return QuantizerOutput(
                z_q=z_q,
                codes=codes,
                commitment_loss=F.mse_loss(z_e, clipped.detach()),
                codebook_loss=z_e.new_zeros(()),
            )

    def encode(self, z_e: Tensor) -> Tensor:
        if z_e.ndim < 2 or z_e.shape[1] != self.dim:
            raise ValueError(f"need latents [B, {self.dim}, *grid], got {tuple(z_e.shape)}")
        steps = torch.nan_to_num(z_e.detach().float()) / self.step
        return steps.round().clamp(-self.half_range, self.half_range).long() + self.half_range

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        values = (codes - self.half_range) * self.step * (codes >= 0)
        return F.pad(values.float().movedim(1, -1), (0, self.dim - codes.shape[1])).movedim(-1, 1)
