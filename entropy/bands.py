"""The prior of bands: frequency tables of each level for the upper, the middle and the lower third of a grid.

Payload of a level: the codes in raster order, those of each third with the table of that. Precision and exactness as in
:mod:`.static`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .prior import Codes, Prior, check_codes, read_prior_arrays
from .static import StaticPrior
from .tables import frequency_table, table_bits

BANDS = 3


class BandsPrior(Prior):
    """Order-0 entropy model with three tables ``[N_k]`` a level, from top to bottom."""

    wire_id = 6
    file = "bands.safetensors"

    def __init__(self, tables: Sequence[Sequence[npt.NDArray[np.integer]]]) -> None:
        self.bands = [StaticPrior(own) for own in tables]
        self.hash = ""

    @classmethod
    def from_codes(cls, grids: Sequence[Codes], sizes: Sequence[int]) -> BandsPrior:
        """Count the codes ``[K, h, w]`` of grids."""
        counts = [[np.ones(n, dtype=np.int64) for n in sizes] for _ in range(BANDS)]
        for codes in grids:
            for own, part in zip(counts, np.array_split(codes, BANDS, 1), strict=True):
                for count, level in zip(own, part, strict=True):
                    count += np.bincount(level.ravel(), minlength=count.size)
        return cls([[frequency_table(count) for count in own] for own in counts])

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> BandsPrior:
        arrays, digest = read_prior_arrays(folder, cls.file)
        n = len(arrays) // BANDS
        prior = cls([[arrays[f"table.{band}.{k}"] for k in range(n)] for band in range(BANDS)])
        prior.hash = digest
        return prior

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {f"table.{b}.{k}": t for b, own in enumerate(self.bands) for k, t in enumerate(own.tables)}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.bands[0].codebook_sizes

    def compress(self, codes: Codes) -> list[bytes]:
        from .coder import IndexedEncoder, table_model

        check_codes(codes, self.codebook_sizes)
        payloads = []
        for k, level in enumerate(codes):
            encoder = IndexedEncoder([table_model(own.tables[k]) for own in self.bands])
            for band, part in enumerate(np.array_split(level, BANDS)):
                encoder.push(part.ravel(), band)
            payloads.append(encoder.finish())
        return payloads

    def decompress(self, payloads: Sequence[bytes], grid: tuple[int, ...]) -> Codes:
        from .coder import IndexedDecoder, table_model

        codes = np.empty((len(payloads), *grid), dtype=np.int64)
        for k, (level, payload) in enumerate(zip(codes, payloads, strict=True)):
            decoder = IndexedDecoder(payload, [table_model(own.tables[k]) for own in self.bands])
            for band, part in enumerate(np.array_split(level, BANDS)):
                part[...] = decoder.pull(part.size, band).reshape(part.shape)
            decoder.finish()
        return codes

    def bits(self, codes: Codes) -> npt.NDArray[np.float64]:
        found = np.zeros(len(codes))
        for own, part in zip(self.bands, np.array_split(codes, BANDS, 1), strict=True):
            found += [table_bits(own.tables[k])[level].sum() for k, level in enumerate(part)]
        return found

    def conceal(
        self, codes: Codes, codewords: Sequence[npt.NDArray[np.floating]] | None = None, levels: int | None = None
    ) -> Codes:
        thirds = zip(self.bands, np.array_split(codes, BANDS, 1), strict=True)
        return np.concatenate([own.conceal(part, codewords, levels) for own, part in thirds], 1)
