"""The static prior: one fixed frequency table a level (order-0), learned from the training set.

Support: codes 0..N_k-1 of each level. Precision: 24 bits. Exactness: the tables are integers in the file.
Payload of a level: the codes of the grid in raster order (last axis fastest), see :mod:`.coder`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from . import packed
from .prior import Codes, JointPrior, check_codes, check_levels, prior_bytes, read_prior_arrays
from .tables import check_table, frequency_table, table_bits

STATIC_FILE = "prior.safetensors"

S = TypeVar("S", bound="StaticPrior")


class StaticPrior(JointPrior):
    """Order-0 entropy model.

    Args: tables: ``[N_k]`` integers each, valid by :func:`~.tables.check_table`. Raises ValueError otherwise.
    """

    wire_id = 1
    file = STATIC_FILE

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
    def uniform(cls, codebook_sizes: Sequence[int]) -> StaticPrior:
        """All codes alike: codes of a fixed length, for a tokenizer that has no entropy model of its own.

        It is the same for the same sizes everywhere, so that files made with it need no file to be decoded.
        """
        return cls([frequency_table(np.ones(n, dtype=np.int64)) for n in codebook_sizes]).hashed()

    def hashed(self: S) -> S:
        """Itself, with the hash that its file would have."""
        self.hash = packed.hash_of(prior_bytes(self.arrays(), self.wire_id))
        return self

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> StaticPrior:
        """Read ``prior.safetensors``. Raises ValueError if it is missing or damaged."""
        arrays, digest = read_prior_arrays(folder, STATIC_FILE)
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

        check_codes(codes, self.codebook_sizes)
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

    def compress_joint(self, parts: Sequence[Codes]) -> bytes:
        from .coder import IndexedEncoder

        encoder = IndexedEncoder(self._models())
        for codes in parts:
            check_codes(codes, self.codebook_sizes)
            for k, level in enumerate(codes):
                if self.tables[k].size > 1:  # a table of one entry tells nothing
                    encoder.push(level.ravel(), k)
        return encoder.finish()

    def decompress_joint(self, payload: bytes, levels: Sequence[int], grid: tuple[int, ...]) -> list[Codes]:
        from .coder import IndexedDecoder

        check_levels(levels, len(self.tables))
        decoder, n = IndexedDecoder(payload, self._models()), math.prod(grid)
        found = [np.zeros((k, n), dtype=np.int64) for k in levels]
        for codes in found:
            for k, level in enumerate(codes):
                if self.tables[k].size > 1:
                    level[:] = decoder.pull(n, k)
        decoder.finish()
        return [codes.reshape(len(codes), *grid) for codes in found]

    def _models(self) -> list[Any]:
        """The coder's models, None for tables of one entry, which it does not take."""
        from .coder import table_model

        return [table_model(table) if table.size > 1 else None for table in self.tables]

    def bits(self, codes: Codes) -> npt.NDArray[np.float64]:
        check_codes(codes, self.codebook_sizes)
        return np.array([table_bits(t)[level].sum() for level, t in zip(codes, self.tables, strict=False)])

    def conceal(
        self, codes: Codes, codewords: Sequence[npt.NDArray[np.floating]] | None = None, levels: int | None = None
    ) -> Codes:
        check_codes(codes, self.codebook_sizes, missing=True)
        filled = codes.copy()
        for k, (level, table) in enumerate(zip(filled[:levels], self.tables, strict=False)):
            best = int(table.argmax())
            if codewords is not None:  # a finer level is as likely to hurt as to help: left out
                vectors = np.asarray(codewords[k], dtype=np.float64)
                mean = table @ vectors / table.sum()
                best = -1 if k else int(np.square(vectors - mean).sum(1).argmin())
            level[level < 0] = best
        return filled
