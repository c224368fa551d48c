"""Residual quantization: each level codes what the levels before it left over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..precision import no_autocast
from .base import ABSENT, Cluster, Quantizer, QuantizerOutput, channels_last_rows, pass_gradient, rows_to_grid
from .beam import beam_codewords
from .codebook import CodebookQuantizer
from .nearest import residual_codewords


class _LevelStep(torch.autograd.Function):
    """Both losses of a level and what it leaves over; one difference serves the three and their gradients.

    ``residual, z_q [M, D]``, ``keep [M, 1]`` bool, ``weight [M]`` float that is 0 where ``keep`` is not. Returns
    (commitment loss, codebook loss, next residual [M, D]). The losses are equal, ``sum(weight (residual - z_q)^2)``;
    the gradient of the first goes to ``residual``, that of the second to ``z_q``.
    """

    @staticmethod
    def forward(ctx: Any, residual: Tensor, z_q: Tensor, keep: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        difference = residual - z_q
        weighted = difference * weight[:, None]
        loss = torch.dot(weighted.flatten(), difference.flatten())
        ctx.save_for_backward(weighted)
        return loss, loss.clone(), torch.where(keep, difference, residual)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        commitment, codebook, left = gradients
        (weighted,) = ctx.saved_tensors
        return left + (2 * commitment) * weighted, (-2 * codebook) * weighted, None, None


class ResidualQuantizer(Quantizer):
    """K levels in a row, coarse to fine; any prefix of the levels is a valid code (arXiv:2107.03312, section III-C).

    Args:
        levels: quantizers with one codebook each and the same D, metric "l2".
        dropout: in training, the share of batch elements that keep a uniformly random number 1..K of levels; the rest
            keep all. (SoundStream's quantizer dropout; there dropout is 1.)
    """

    def __init__(self, levels: Sequence[CodebookQuantizer], dropout: float = 1.0) -> None:
        super().__init__()
        if not levels:
            raise ValueError("a residual quantizer needs at least one level")
        if len({level.dim for level in levels}) > 1 or any(level.metric != "l2" for level in levels):
            raise ValueError("levels of a residual quantizer share one dim and use metric 'l2'")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is a share in [0, 1], got {dropout}")
        self.levels = nn.ModuleList(levels)
        self.dim = levels[0].dim
        self.codebook_sizes = tuple(level.codebook_sizes[0] for level in levels)
        self.gradient = levels[0].gradient
        self.dropout = dropout

    @property
    def parts(self) -> Sequence[CodebookQuantizer]:
        return [level for level in self.levels if isinstance(level, CodebookQuantizer)]

    @property
    def cascade(self) -> Sequence[CodebookQuantizer]:
        return self.parts

    def draw_levels(self, batch: int, device: torch.device) -> Tensor:
        """How many levels each batch element keeps, ``[B]`` int64 in 1..K."""
        full = torch.full((batch,), self.n_codebooks, device=device)
        if not self.training or self.dropout == 0:
            return full
        kept = torch.randint(1, self.n_codebooks + 1, (batch,), device=device)
        return torch.where(torch.rand(batch, device=device) < self.dropout, kept, full)

    def forward(self, z_e: Tensor, n_codes: Tensor | None = None) -> QuantizerOutput:
        """Quantize ``z_e [B, D, *grid]``; ``n_codes [B]`` int64 overrides the random number of levels."""
        with no_autocast(z_e.device):
            if n_codes is None:
                n_codes = self.draw_levels(z_e.shape[0], z_e.device)
            rows = channels_last_rows(z_e.float())  # [M, D]
            cells = rows.shape[0] // max(1, z_e.shape[0])
            levels = torch.arange(self.n_codebooks, device=rows.device)[:, None]  # [K, 1]
            keep = (n_codes > levels).repeat_interleave(cells, dim=1)  # [K, M]
            weight = keep / (keep.sum(1, keepdim=True).clamp_min(1) * self.dim)  # [K, M] means over kept rows
            residual, total = rows, torch.zeros_like(rows)
            codes, commitment, codebook = [], rows.new_zeros(()), rows.new_zeros(())
            for k, level in enumerate(self.levels):
                assert isinstance(level, CodebookQuantizer)
                _, z_q, indices = level.quantize_rows(residual.detach())
                indices = torch.where(keep[k], indices, ABSENT)
                if level.training:
                    level.observe(residual.detach(), indices)
                own_commitment, own_codebook, left = _LevelStep.apply(residual, z_q, keep[k][:, None], weight[k])
                commitment = commitment + own_commitment
                if level.learned_by_gradient:
                    codebook = codebook + own_codebook
                total = total + z_q.detach() * keep[k][:, None]
                residual = left
                codes.append(rows_to_grid(indices[:, None], z_e))
            return QuantizerOutput(
                z_q=rows_to_grid(pass_gradient(rows, total, self.gradient), z_e),
                codes=torch.cat(codes, dim=1),  # [B, K, *grid]
                commitment_loss=commitment,
                codebook_loss=codebook,
            )

    def encode(
        self, z_e: Tensor, n_levels: int | None = None, beams: int = 1, seen: int | None = None
    ) -> Tensor:
        """Latents ``[B, D, *grid]`` to the codes of the first ``n_levels`` levels (all by default).

        beams, seen: as in :func:`~.beam.beam_codewords`. With one path codes of fewer levels are a prefix of these.
        """
        n_levels = self.n_codebooks if n_levels is None else n_levels
        if not 1 <= n_levels <= self.n_codebooks:
            raise ValueError(f"n_levels must be in 1..{self.n_codebooks}, got {n_levels}")
        rows = channels_last_rows(z_e.detach().float())  # [M, D]
        with torch.no_grad(), no_autocast(z_e.device):  # for codebooks that are computed
            levels = self.parts[:n_levels]
            codebooks, penalties = [v.codebook for v in levels], [v.penalty for v in levels]
            if beams > 1:
                indices = beam_codewords(rows, codebooks, beams, seen, penalties)
            else:
                indices = residual_codewords(rows, codebooks, penalties)
        return rows_to_grid(indices, z_e)  # [B, n_levels, *grid]

    def search(self, z_e: Tensor, n_codes: int | None = None, beams: int = 1, seen: int | None = None) -> Tensor:
        return self.encode(z_e, n_codes, beams, seen)

    @torch.no_grad()
    def encode_after(self, z_e: Tensor, before: Tensor, discounts: Tensor, n_levels: int | None = None) -> Tensor:
        """As :meth:`encode`, where the codes that the cells had a moment before are cheaper than others.

        A cell keeps its code of level k, if it kept those of the levels before, unless another is nearer by more than
        the discount: entropy-constrained search, for an entropy model that expects what was there (see ``penalty`` in
        :func:`~.nearest.nearest_codeword`). Codes of fewer levels are still a prefix.

        Args: before: codes ``[B, K, *grid]`` of the same cells; ``ABSENT`` where there were none.
              discounts: ``[K]`` squared distances.
        """
        n_levels = self.n_codebooks if n_levels is None else n_levels
        rows = channels_last_rows(z_e.detach().float())  # [M, D]
        kept = channels_last_rows(before)[:, :n_levels]  # [M, K]
        stays = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        found = []
        with no_autocast(z_e.device):
            for level, old, discount in zip(self.levels, kept.unbind(1), discounts, strict=False):
                assert isinstance(level, CodebookQuantizer)
                codebook, penalty = level.codebook, level.penalty

                def cost(codes: Tensor, rows: Tensor = rows, codebook: Tensor = codebook,
                         penalty: Tensor | None = penalty) -> Tensor:  # fmt: skip
                    distance = (rows - codebook[codes]).square().sum(1)
                    return distance if penalty is None else distance + penalty[codes]

                best = residual_codewords(rows, [codebook], [penalty])[:, 0]
                cheaper = (old != ABSENT) & (cost(old.clamp_min(0)) - discount < cost(best))
                codes = torch.where(stays & cheaper, old, best)
                stays = stays & (codes == old)
                rows = rows - codebook[codes]
                found.append(codes)
        return rows_to_grid(torch.stack(found, 1), z_e)

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        total = codes.new_zeros(codes.shape[0], self.dim, *codes.shape[2:], dtype=torch.float32)
        for level, indices in zip(self.levels, codes.split(1, dim=1), strict=False):
            assert isinstance(level, CodebookQuantizer)
            total = total + level.decode(indices)  # in the order of forward, so that values agree to the bit
        return total  # [B, D, *grid]

    @torch.no_grad()
    def errors(self, z_e: Tensor, codes: Tensor) -> Tensor:
        rest = z_e.movedim(1, -1)  # [B, *grid, D]
        found = []
        for own, level in zip(codes.unbind(1), self.parts, strict=False):
            rest = rest - F.embedding(own, level.codebook)
            found.append(rest.square().sum(-1))
        return torch.stack(found, 1)

    def tables(self) -> list[npt.NDArray[np.float32]] | None:
        return tables_of(self.parts)

    @torch.no_grad()
    def start(self, rows: Tensor, cluster: Cluster, first: int = 0) -> None:
        for k, level in enumerate(self.parts):
            level.start(rows, cluster, max(0, first - k))
            rows = rows - level.decode(level.encode(rows))

    def fold(self) -> None:
        for level in self.parts:
            level.fold()


def tables_of(parts: Sequence[Quantizer]) -> list[npt.NDArray[np.float32]] | None:
    """:meth:`~.base.Quantizer.tables` of quantizers side by side; None if one of them has none."""
    found = []
    for part in parts:
        own = part.tables()
        if own is None:
            return None
        found += own
    return found


class GroupResidualQuantizer(Quantizer):
    """Channels split into G groups of equal size, a residual quantizer for each.

    The codes are ordered level by level, all groups of a level together: codebook ``k * G + g`` is level k of group g.
    So the first ``k * G`` codes are a valid coarser code: searched along one path, what :meth:`encode` gives for
    ``n_levels=k``. A prefix that ends inside a level decodes too: the groups it leaves out stay one level coarser.

    Args:
        groups: for each group its levels, coarse to fine; the same number of levels and the same D in each.
        dropout: as in :class:`ResidualQuantizer`; a batch element keeps the same number of levels in all groups.

    Source: Yang et al., HiFi-Codec, arXiv:2305.02765 (group-residual vector quantization).
    We differ: level-major order of the codes; quantizer dropout across groups; losses are the mean over groups.
    """

    def __init__(self, groups: Sequence[Sequence[CodebookQuantizer]], dropout: float = 1.0) -> None:
        super().__init__()
        if not groups:
            raise ValueError("a group-residual quantizer needs at least one group")
        quantizers = [ResidualQuantizer(levels, dropout) for levels in groups]
        if len({(q.dim, q.n_codebooks) for q in quantizers}) > 1:
            raise ValueError("groups share one dim and one number of levels")
        self.groups = nn.ModuleList(quantizers)
        self.n_levels = quantizers[0].n_codebooks
        self.dim = sum(q.dim for q in quantizers)
        self.codebook_sizes = tuple(q.codebook_sizes[k] for k in range(self.n_levels) for q in quantizers)

    @property
    def n_groups(self) -> int:
        return len(self.groups)

    @property
    def parts(self) -> Sequence[CodebookQuantizer]:
        groups = [group.parts for group in self.groups if isinstance(group, ResidualQuantizer)]
        return [group[k] for k in range(self.n_levels) for group in groups]

    def split(self, z_e: Tensor) -> list[tuple[ResidualQuantizer, Tensor]]:
        """Each group's quantizer with its channels ``[B, D / G, *grid]`` of ``z_e [B, D, *grid]``."""
        if z_e.shape[1] != self.dim:
            raise ValueError(f"latents have {z_e.shape[1]} channels, the quantizer has {self.dim}")
        pairs = []
        for quantizer, part in zip(self.groups, z_e.chunk(len(self.groups), dim=1), strict=True):
            assert isinstance(quantizer, ResidualQuantizer)
            pairs.append((quantizer, part))
        return pairs

    def forward(
        self, z_e: Tensor, n_levels: Tensor | None = None, n_codes: Tensor | None = None
    ) -> QuantizerOutput:
        """Quantize ``z_e [B, D, *grid]``; ``n_levels [B]`` int64 overrides the random number of levels.

        ``n_codes [B]`` int64 says instead how many codebooks are kept, in the order of the codes: then the last level
        may be there for the first groups only.
        """
        pairs = self.split(z_e)
        if n_codes is not None:
            count = len(pairs)
            kept = [(n_codes + count - 1 - g) // count for g in range(count)]
        else:
            n_levels = pairs[0][0].draw_levels(z_e.shape[0], z_e.device) if n_levels is None else n_levels
            kept = [n_levels] * len(pairs)
        outs = [quantizer(part, n) for (quantizer, part), n in zip(pairs, kept, strict=True)]
        return QuantizerOutput(
            z_q=torch.cat([out.z_q for out in outs], dim=1),
            codes=torch.stack([out.codes for out in outs], dim=2).flatten(1, 2),  # [B, K * G, *grid]
            commitment_loss=torch.stack([out.commitment_loss for out in outs]).mean(),
            codebook_loss=torch.stack([out.codebook_loss for out in outs]).mean(),
        )

    def encode(
        self, z_e: Tensor, n_levels: int | None = None, beams: int = 1, seen: int | None = None
    ) -> Tensor:
        """Latents ``[B, D, *grid]`` to codes ``[B, n_levels * G, *grid]`` (all levels by default).

        beams, seen: as in :func:`~.beam.beam_codewords`, in each group.
        """
        codes = [quantizer.encode(part, n_levels, beams, seen) for quantizer, part in self.split(z_e)]
        return torch.stack(codes, dim=2).flatten(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        count = len(self.groups)
        missing = -codes.shape[1] % count
        if missing:  # the last level is incomplete
            codes = torch.cat([codes, codes.new_full((codes.shape[0], missing, *codes.shape[2:]), ABSENT)], dim=1)
        levels = codes.unflatten(1, (-1, count))  # [B, k, G, *grid]
        parts = []
        for group, own in zip(self.groups, levels.unbind(2), strict=True):
            assert isinstance(group, ResidualQuantizer)
            parts.append(group.decode(own))
        return torch.cat(parts, dim=1)  # [B, D, *grid]

    def search(self, z_e: Tensor, n_codes: int | None = None, beams: int = 1, seen: int | None = None) -> Tensor:
        levels, last = (None if n is None else -(-n // self.n_groups) for n in (n_codes, seen))
        return self.encode(z_e, levels, beams, last)[:, :n_codes]

    @torch.no_grad()
    def errors(self, z_e: Tensor, codes: Tensor) -> Tensor:
        rest = z_e.clone()
        parts = rest.chunk(self.n_groups, 1)  # views
        found = []
        for k, (own, level) in enumerate(zip(codes.unbind(1), self.parts, strict=False)):
            parts[k % len(parts)].sub_(F.embedding(own, level.codebook).movedim(-1, 1))
            found.append(rest.square().sum(1))
        return torch.stack(found, 1)

    def tables(self) -> list[npt.NDArray[np.float32]] | None:
        return tables_of(self.parts)

    def start(self, rows: Tensor, cluster: Cluster, first: int = 0) -> None:
        for group, own in self.split(rows):
            group.start(own, cluster, first)

    def fold(self) -> None:
        for level in self.parts:
            level.fold()
