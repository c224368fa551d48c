"""The static prior: one fixed frequency table a level (order-0), learned from the training set.

Support: codes 0..N_k-1 of each level. Precision: 24 bits. Exactness: the tables are integers in the file.
Payload of a level: the codes of the grid in raster order (last axis fastest), see :mod:`.coder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .prior import Codes, Prior, read_prior_arrays
from .tables import check_table, frequency_table, table_bits


class StaticPrior(Prior):
    """Order-0 entropy model.

    Args: tables: ``[N_k]`` integers each, valid by :func:`~.tables.check_table`. Raises ValueError otherwise.
    """

    wire_id = 1

    def __init__(self, tables: Sequence[npt.NDArray[np.integer]]) -> None:
        if not tables:
            raise ValueError("a static prior needs at least one table")
        for table in tables:
            check_table(table)
        self.tables = [np.ascontiguousarray(table, dtype=np.int32) for table in tables]
        self.hash = ""

    @classmethod
    def from_counts(cls, counts: Sequence[npt.ArrayLike]) -> StaticPrior:
        """Learn the tables from histograms of codes, ``[N_k]`` each. One is added to each count (Laplace), since a
        codeword that the training set lacks is rare, not impossible."""
        return cls([frequency_table(np.asarray(c, dtype=np.int64) + 1) for c in counts])

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> StaticPrior:
        """Read ``prior.safetensors``. Raises ValueError if it is missing or damaged."""
        arrays, digest = read_prior_arrays(folder)
        names = [f"table.{k}" for k in range(len(arrays))]
        if set(names) != set(arrays):
            raise ValueError(f"the entropy model in {folder} does not hold tables 0..{len(arrays) - 1}")
        prior = cls([arrays[name] for name in names])
        prior.hash = digest
        return prior

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {f"table.{k}": table for k, table in enumerate(self.tables)}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return tuple(table.size for table in self.tables)

    def compress(self, codes: Codes) -> list[bytes]:
        from .coder import encode_static  # the coder's library is not needed to train or to look at tables

        self._check(codes)
        return [encode_static(level.ravel(), table) for level, table in zip(codes, self.tables, strict=False)]

    def decompress(self, payloads: Sequence[bytes], grid: tuple[int, ...]) -> Codes:
        from .coder import decode_static

        if len(payloads) > len(self.tables):
            raise ValueError(f"{len(payloads)} payloads for {len(self.tables)} levels")
        n = int(np.prod(grid))
        out = np.empty((len(payloads), *grid), dtype=np.int64)
        for level, payload, table in zip(out, payloads, self.tables, strict=False):
            level[...] = decode_static(payload, n, table).reshape(grid)
        return out

    def bits(self, codes: Codes) -> npt.NDArray[np.float64]:
        self._check(codes)
        return np.array([table_bits(t)[level].sum() for level, t in zip(codes, self.tables, strict=False)])

    def fill(self, grid: tuple[int, ...]) -> Codes:
        return np.full((1, *grid), int(self.tables[0].argmax()), dtype=np.int64)

    def _check(self, codes: Codes) -> None:
        if codes.ndim < 2 or not 1 <= codes.shape[0] <= len(self.tables):
            raise ValueError(f"codes must be [k, *grid] with k <= {len(self.tables)}, got {codes.shape}")
        for k, level in enumerate(codes):
            if level.size and not 0 <= int(level.min()) <= int(level.max()) < self.tables[k].size:
                raise ValueError(f"level {k + 1} holds a code outside [0, {self.tables[k].size})")
