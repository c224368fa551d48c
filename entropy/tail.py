"""The prior of sequences that may end early: static tables for the codes, and how many a sequence has.

A grid of cells, each with a sequence of up to K codes of one codebook, most important first; ``-1`` from where a cell
has no more. Payloads are not one a level but one a *layer*, a range of places in the sequences, since a level of a few
cells is a few bytes: layer i holds the places from ``bounds[i - 1]`` to ``bounds[i]``.

Payload of a layer: for the cells in raster order that lack no code of the layers before, the number of codes that they
have in this one, with the table of its lengths; then place after place, the codes of the cells that have it, with the
table of the place. See :mod:`.coder`.

Support: codes 0..N-1, lengths 0 to the size of the layer (1 at least in the first one). Precision: 24 bits. Exactness:
the tables are integers in the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .prior import Codes, Prior, read_prior_arrays
from .tables import Int64Array, check_table, frequency_table, table_bits

TAIL_FILE = "tail.safetensors"
BOUNDS = (32, 64, 128, 256)  # ends of the layers of 256 places
ALONE = 16  # places with a table of their own; later ones share it with their neighbours
FULL = 0.5  # share of the cells that have all codes of a layer


class TailPrior(Prior):
    """See the module's text.

    Args:
        tables ``[T, N]``: frequencies of the codes, valid by :func:`~.tables.check_table`.
        table_of ``[K]``: which of them is that of each place.
        lengths: for each layer the frequencies of the numbers of codes, ``[size + 1]``; ``[size]`` for the first.

    Raises: ValueError if they are not such.
    """

    wire_id = 4
    file = TAIL_FILE

    def __init__(
        self, tables: npt.NDArray[np.integer], table_of: npt.ArrayLike, lengths: Sequence[npt.NDArray[np.integer]]
    ) -> None:
        self.table_of = np.asarray(table_of, dtype=np.int64)
        if tables.ndim != 2 or not len(tables) or self.table_of.ndim != 1 or not len(self.table_of):
            raise ValueError("the prior wants tables [T, N] and the table of every place")
        if self.table_of.min() < 0 or self.table_of.max() >= len(tables):
            raise ValueError("a place has a table that is not there")
        for table in (*tables, *lengths):
            check_table(table)
        self.tables = np.ascontiguousarray(tables, dtype=np.int32)
        self.lengths = [np.ascontiguousarray(table, dtype=np.int32) for table in lengths]
        sizes = [table.size - (i > 0) for i, table in enumerate(self.lengths)]
        self.bounds = tuple(int(b) for b in np.cumsum(sizes))
        if not sizes or min(sizes) < 1 or self.bounds[-1] != len(self.table_of):
            raise ValueError(f"layers of {sizes} codes do not make {len(self.table_of)} places")
        self.hash = ""

    @classmethod
    def from_counts(cls, counts: npt.ArrayLike) -> TailPrior:
        """Learn the tables from histograms of the codes, ``[K, N]``; lengths are thought to be full or any other alike.

        The first places have a table each, later ones share them, four to every doubling of the place: a table wants
        examples.
        """
        c = np.asarray(counts, dtype=np.int64)
        table_of = np.array([k if k < ALONE else ALONE + int(4 * math.log2(k / ALONE)) for k in range(len(c))])
        table_of = np.unique(table_of, return_inverse=True)[1]
        joint = np.zeros((int(table_of.max()) + 1, c.shape[1]), dtype=np.int64)
        np.add.at(joint, table_of, c)
        bounds = (*(b for b in BOUNDS if b < len(c)), len(c))
        lengths = []
        for i, b in enumerate(bounds):
            n = b - (bounds[i - 1] if i else 0) + (i > 0)
            others = np.full(n, 1 << 16)
            others[-1] = max(1, round((n - 1) * (1 << 16) * FULL / (1 - FULL)))
            lengths.append(frequency_table(others))
        return cls(np.stack([frequency_table(own + 1) for own in joint]), table_of, lengths)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str = "cpu") -> TailPrior:
        """Read ``tail.safetensors``. Raises ValueError if it is missing or damaged."""
        arrays, digest = read_prior_arrays(folder, TAIL_FILE)
        names = [f"length.{i}" for i in range(len(arrays) - 2)]
        if {"tables", "table_of", *names} != set(arrays):
            raise ValueError(f"the entropy model in {folder} is not tables, table_of and length.0 to length.n")
        prior = cls(arrays["tables"], arrays["table_of"], [arrays[name] for name in names])
        prior.hash = digest
        return prior

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        lengths = {f"length.{i}": table for i, table in enumerate(self.lengths)}
        return {"tables": self.tables, "table_of": self.table_of.astype(np.int32), **lengths}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.tables.shape[1],) * len(self.table_of)

    def levels_in(self, layers: int) -> int:
        return self.bounds[min(layers, len(self.bounds)) - 1]

    def layers(self, levels: int) -> int:
        return 1 + sum(bound < levels for bound in self.bounds)

    # ---------------------------------------------------------------- payloads

    def compress(self, codes: Codes) -> list[bytes]:
        """Codes ``[k, *grid]``, -1 after the end of a cell's, to ``layers(k)`` payloads."""
        from .coder import IndexedEncoder

        flat, counts = self._checked(codes)
        payloads, begin = [], 0
        for i, end in enumerate(self.bounds[: self.layers(len(codes))]):
            encoder = IndexedEncoder(self._models())
            open_ = counts >= begin  # nothing is missing before
            own = np.clip(counts - begin, 0, end - begin)
            if len(self.lengths[i]) > 1:
                encoder.push(own[open_] - (i == 0), len(self.tables) + i)
            for place in range(begin, min(end, len(flat))):
                if self.tables.shape[1] > 1:
                    encoder.push(flat[place, counts > place], int(self.table_of[place]))
            payloads.append(encoder.finish())
            begin = end
        return payloads

    def decompress(self, payloads: Sequence[bytes], grid: tuple[int, ...]) -> Codes:
        """Payloads of the first layers to codes ``[k, *grid]``; k is the most that a cell has."""
        from .coder import IndexedDecoder

        if not 1 <= len(payloads) <= len(self.bounds):
            raise ValueError(f"{len(payloads)} payloads for {len(self.bounds)} layers")
        cells = math.prod(grid)
        flat = np.full((self.bounds[len(payloads) - 1], cells), -1, dtype=np.int64)
        counts, begin = np.zeros(cells, dtype=np.int64), 0
        for i, (end, payload) in enumerate(zip(self.bounds, payloads, strict=False)):
            decoder = IndexedDecoder(payload, self._models())
            open_ = np.flatnonzero(counts >= begin)
            own = np.zeros(len(open_), dtype=np.int64)
            if len(self.lengths[i]) > 1:
                own[:] = decoder.pull(len(open_), len(self.tables) + i)
            counts[open_] += own + (i == 0)
            for place in range(begin, min(end, int(counts.max(initial=0)))):
                there = np.flatnonzero(counts > place)
                flat[place, there] = 0
                if self.tables.shape[1] > 1:
                    flat[place, there] = decoder.pull(len(there), int(self.table_of[place]))
            decoder.finish()
            begin = end
        longest = max(1, int(counts.max(initial=0)))
        return flat[:longest].reshape(longest, *grid)

    def bits(self, codes: Codes) -> npt.NDArray[np.float64]:
        """Of every place ``[k]``; what the lengths of a layer cost is counted with its first place."""
        flat, counts = self._checked(codes)
        price = np.stack([table_bits(table) for table in self.tables])
        found = np.array([price[self.table_of[k], own[own >= 0]].sum() for k, own in enumerate(flat)])
        begin = 0
        for i, end in enumerate(self.bounds[: self.layers(len(codes))]):
            own = np.clip(counts[counts >= begin] - begin, 0, end - begin) - (i == 0)
            found[begin] += table_bits(self.lengths[i])[own].sum()
            begin = end
        return found

    def conceal(
        self, codes: Codes, codewords: Sequence[npt.NDArray[np.floating]] | None = None, levels: int | None = None
    ) -> Codes:
        """Cells without any code get the most probable first one; an end that is lost stays lost."""
        filled = codes.copy()
        first = filled[0]
        first[first < 0] = int(self.tables[self.table_of[0]].argmax())
        return filled

    def _models(self) -> list[Any]:
        """The coder's models, None for tables of one entry, which it does not take."""
        from .coder import table_model

        return [table_model(table) if table.size > 1 else None for table in (*self.tables, *self.lengths)]

    def _checked(self, codes: Codes) -> tuple[Int64Array, Int64Array]:
        """Codes ``[k, cells]`` and how many each cell has. Raises ValueError for what is no row of sequences."""
        k, n = len(codes), self.tables.shape[1]
        if codes.ndim < 2 or not 1 <= k <= len(self.table_of):
            raise ValueError(f"codes must be [k, *grid] with k <= {len(self.table_of)}, got {codes.shape}")
        flat = codes.reshape(k, -1)
        there = flat >= 0
        counts = there.sum(0)
        if flat.size and (int(flat.min()) < -1 or int(flat.max()) >= n):
            raise ValueError(f"a code is outside [0, {n})")
        if (there != (np.arange(k)[:, None] < counts)).any() or (counts < 1).any():
            raise ValueError("a sequence has one code at least, and none after a missing one")
        return flat, counts
