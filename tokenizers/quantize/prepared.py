"""A quantizer for streams: what its weights alone decide is computed once, not for each handful of latents."""

from __future__ import annotations

from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ABSENT, Quantizer
from .beam import beam_codewords
from .codebook import CodebookQuantizer
from .nearest import prepare_codebook, residual_codewords
from .nearest_cpu import Prepared
from .residual import GroupResidualQuantizer, ResidualQuantizer


class _Kept:
    """A prepared codebook and the weights that it was made of."""

    def __init__(self, level: CodebookQuantizer) -> None:
        # Storages are held, so that an address that comes again is the same memory.
        self._made_of = [(t.data_ptr(), _version(t), t.untyped_storage()) for t in level.sources]
        with torch.autocast("cpu", enabled=False):
            self.codebook: Prepared = prepare_codebook(level.codebook, level.penalty)

    def is_current(self, level: CodebookQuantizer) -> bool:
        sources = level.sources
        return len(sources) == len(self._made_of) and all(
            t.data_ptr() == address and version is not None and _version(t) == version
            for t, (address, version, _) in zip(sources, self._made_of, strict=True)
        )


def _version(t: Tensor) -> int | None:
    """How often a tensor was written to; None where that is not counted."""
    return None if t.is_inference() else t._version


class PreparedQuantizer:
    """Codes and latents of a :class:`GroupResidualQuantizer`, the same as its own, in less time for few latents.

    On a CPU the codebooks of the levels in use are kept with what their search needs, and made anew when weights were
    written, loaded or moved. Elsewhere all is left to the quantizer. Writing through ``.data`` is not noticed: make
    another then. Carries no gradient.
    """

    def __init__(self, quantizer: GroupResidualQuantizer) -> None:
        self.quantizer = quantizer
        self._kept: dict[CodebookQuantizer, _Kept] = {}

    def _codebooks(self, group: nn.Module, count: int) -> list[Prepared]:
        """The first codebooks of a group, of the weights as they are now."""
        assert isinstance(group, ResidualQuantizer)
        found = []
        for level in islice(group.levels, count):
            assert isinstance(level, CodebookQuantizer)
            kept = self._kept.get(level)
            if kept is None or not kept.is_current(level):
                kept = self._kept[level] = _Kept(level)
            found.append(kept.codebook)
        return found

    @torch.no_grad()
    def encode(
        self, z_e: Tensor, n_levels: int | None = None, beams: int = 1, seen: int | None = None
    ) -> Tensor:
        """Latents ``[B, D, t]`` to codes ``[B, n_levels * G, t]`` (all levels by default).

        beams, seen: as in :func:`~.beam.beam_codewords`, in each group.
        """
        n_levels = self.quantizer.n_levels if n_levels is None else n_levels
        if z_e.device.type != "cpu" or z_e.ndim != 3 or not 1 <= n_levels <= self.quantizer.n_levels:
            return self.quantizer.encode(z_e, n_levels, beams, seen)
        codes = []
        for group, part in self.quantizer.split(z_e):
            rows = part.transpose(1, 2).flatten(0, 1)  # [B * t, D / G]
            tables = self._codebooks(group, n_levels)
            own = beam_codewords(rows, tables, beams, seen) if beams > 1 else residual_codewords(rows, tables)
            codes.append(own)  # [B * t, n_levels]
        stacked = torch.stack(codes, dim=2)  # [B * t, n_levels, G]
        return stacked.view(len(z_e), -1, n_levels * len(codes)).transpose(1, 2).contiguous()

    def search(self, z_e: Tensor, n_codes: int | None = None, beams: int = 1, seen: int | None = None) -> Tensor:
        """As :meth:`~.base.Quantizer.search`."""
        levels, last = (None if n is None else -(-n // self.quantizer.n_groups) for n in (n_codes, seen))
        return self.encode(z_e, levels, beams, last)[:, :n_codes]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``[B, k, t]``, the first ``k <= K`` codebooks, to latents ``[B, D, t]``."""
        if codes.device.type != "cpu" or codes.ndim != 3:
            return self.quantizer.decode(codes)
        self.quantizer.check_codes(codes)
        count = len(self.quantizer.groups)
        there = codes != ABSENT
        whole = bool(there.all())
        b, k, t = codes.shape
        parts = []
        for g, group in enumerate(self.quantizer.groups):
            own = range(g, k, count)  # the group's levels among all codes
            total = torch.zeros(b, t, self.quantizer.dim // count)  # [B, t, D / G]
            for i, level in zip(own, self._codebooks(group, len(own)), strict=True):
                z_q = F.embedding(codes[:, i] if whole else codes[:, i].clamp_min(0), level.codebook)
                total = total + (z_q if whole else z_q * there[:, i, :, None])
            parts.append(total)
        return torch.cat(parts, dim=2).transpose(1, 2)


def prepared(quantizer: Quantizer) -> Quantizer | PreparedQuantizer:
    """A quantizer for a stream; itself where nothing can be computed before."""
    return PreparedQuantizer(quantizer) if isinstance(quantizer, GroupResidualQuantizer) else quantizer
