"""Binary quantization: one sign per channel, one integer of D bits per cell, and no table of 2^D codewords anywhere.

Codewords are the corners of a cube (:class:`LFQ`) or of a cube on the unit sphere (:class:`BSQ`). With D up to 62 the
codebook cannot be held, so nothing here ever builds it; the entropy penalty is computed from bit probabilities.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


class LFQ(Quantizer):
    """Look-up free quantization: codewords are {-1, +1}^D; K = 1, N = 2^D.

    The code of a cell is ``sum_i 2^i [z_i > 0]`` over its channels i = 0..D-1: the first channel is the lowest bit.
    Zero and NaN give bit 0.

    Args:
        dim: D, 1 to 62 bits.
        gradient: "straight-through" or "rotation".
        temperature: of the soft assignment q(c|z) ~ exp(-|z - c|^2 / temperature) in the entropy penalty.
        diversity: weight of the second term of the penalty.
        group_bits: the second term is computed over groups of this many bits, see :meth:`entropy_penalty`.

    ``auxiliary_loss`` is the entropy penalty (nats), zero outside training. Its weight is the trainer's.

    Source: Yu et al. (MAGVIT-v2), arXiv:2310.05737, section 3.1.
    We differ: the entropy of the mean is taken over groups of bits for large D.
    """

    def __init__(
        self,
        dim: int,
        gradient: Gradient = "straight-through",
        temperature: float = 0.01,
        diversity: float = 1.0,
        group_bits: int = 8,
    ) -> None:
        super().__init__()
        if not 1 <= dim <= 62:
            raise ValueError(f"dim must be 1 to 62 bits (a code is an int64), got {dim}")
        if temperature <= 0 or not 1 <= group_bits <= 16:
            raise ValueError(f"need temperature > 0 and group_bits in 1..16, got {temperature} and {group_bits}")
        self.dim = dim
        self.codebook_sizes = (1 << dim,)
        self.gradient: Gradient = gradient
        self.temperature = temperature
        self.diversity = diversity
        self.group_bits = group_bits
        self.usage = CodebookUsage(1 << dim) if 1 << dim <= MAX_COUNTED else None

    @property
    def scale(self) -> float:
        """Codewords are ``{-scale, +scale}^D``."""
        return 1.0

    def project(self, rows: Tensor) -> Tensor:
        """Rows ``[M, D]`` as they are compared with codewords."""
        return rows

    def bits_to_rows(self, bits: Tensor) -> Tensor:
        """Bits ``[..., D]`` bool to codewords ``[..., D]`` float32."""
        return torch.where(bits, self.scale, -self.scale)

    def pack(self, bits: Tensor) -> Tensor:
        """Bits ``[..., D]`` bool to integers ``[...]`` int64."""
        return (bits.long() << torch.arange(self.dim, device=bits.device)).sum(-1)

    def unpack(self, indices: Tensor) -> Tensor:
        """Integers ``[...]`` int64 to bits ``[..., D]`` bool."""
        return (indices.unsqueeze(-1) >> torch.arange(self.dim, device=indices.device)) & 1 == 1

    def entropy_penalty(self, rows: Tensor) -> Tensor:
        """``E[H(q(c|z))] - diversity * H(E[q(c|z)])`` in nats, of projected rows ``[M, D]``.

        q(c|z) is a product over bits, so the first term is exact: a sum of D binary entropies. The mean over rows is no
        product. Its entropy is computed exactly within each group of ``group_bits`` bits, and the groups are added up,
        which is an upper bound (equal if groups are independent) and exact for D <= group_bits.

        Cost: O(M * 2^group_bits * D / group_bits).
        """
        p = torch.sigmoid(4 * self.scale / self.temperature * rows)  # [M, D] probability of bit 1
        own = binary_entropy(4 * self.scale / self.temperature * rows).sum(-1).mean()
        shared = rows.new_zeros(())
        for group in p.split(self.group_bits, dim=-1):  # [M, g]
            joint = torch.ones_like(group[:, :1])  # [M, 2^i] after i bits
            for bit in group.unbind(-1):
                joint = torch.cat([joint * (1 - bit)[:, None], joint * bit[:, None]], dim=-1)
            mean = joint.mean(0)  # [2^g]
            # entr() would be -p log p as well, but its gradient at p = 0 times the zero behind it is NaN.
            shared = shared - (mean * mean.clamp_min(1e-30).log()).sum()
        return own - self.diversity * shared

    def forward(self, z_e: Tensor, *, n_codes: Tensor | None = None) -> QuantizerOutput:
        with no_autocast(z_e.device):
            raw = self.check_rows(z_e)  # [M, D]
            rows = self.project(raw)
            bits = raw > 0  # before the projection, which may round tiny values to zero
            indices, z_q = self.pack(bits), self.bits_to_rows(bits)
            if self.training and self.usage is not None:
                self.usage.update(indices)
            return QuantizerOutput(
                z_q=rows_to_grid(pass_gradient(rows, z_q, self.gradient), z_e),
                codes=rows_to_grid(indices[:, None], z_e),
                commitment_loss=F.mse_loss(rows, z_q),
                codebook_loss=rows.new_zeros(()),
                auxiliary_loss=self.entropy_penalty(rows) if self.training else rows.new_zeros(()),
            )

    def encode(self, z_e: Tensor) -> Tensor:
        return rows_to_grid(self.pack(self.check_rows(z_e) > 0)[:, None], z_e)

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        indices = codes[:, 0]  # [B, *grid]
        z_q = self.bits_to_rows(self.unpack(indices)) * (indices >= 0).unsqueeze(-1)  # [B, *grid, D]
        return z_q.movedim(-1, 1)

    def check_rows(self, z_e: Tensor) -> Tensor:
        if z_e.ndim < 2 or z_e.shape[1] != self.dim:
            raise ValueError(f"need latents [B, {self.dim}, *grid], got {tuple(z_e.shape)}")
        return channels_last_rows(z_e.float())


class BSQ(LFQ):
    """Binary spherical quantization: latents and codewords {-1, +1}^D / sqrt(D) lie on the unit sphere; K = 1, N = 2^D.

    Codes and arguments as in :class:`LFQ`. The error per cell is bounded, at most ``2 - 2 / sqrt(D)`` squared.

    Source: Zhao et al., arXiv:2406.07548, section 4.1.
    We differ: ``temperature`` divides the squared distance, so the paper's tau (which multiplies the inner product) is
    2 / temperature; the entropy of the mean is over groups of bits, where the paper takes single bits (group_bits=1).
    """

    @property
    def scale(self) -> float:
        return self.dim**-0.5

    def project(self, rows: Tensor) -> Tensor:
        return F.normalize(rows, dim=-1)


def binary_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of bits with log-odds ``logits``, without loss of precision (or a NaN gradient) far from zero."""
    return F.softplus(logits) - logits * torch.sigmoid(logits)
