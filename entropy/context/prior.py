"""The context prior: a learned model of token grids whose probabilities are exact integers on every machine.

Codes of a level are coded in few steps (:mod:`..schedule`), all cells of a step at once, each given the codes around
it: those of all coarser levels, and those of its own level that came in earlier steps. An integer network
(:mod:`..integer`, trained as :mod:`.net`) turns the window around a cell into frequencies; a code of a large
codebook is two or three digits (:mod:`..tree`), each with a table of at most 256 entries.

A further network of the same kind, if there is one, sees all levels of the neighbours and tells the first level of a
cell whose codes were lost (:meth:`ContextPrior.conceal`). It codes nothing.

Support: codes 0..N_k-1 of each level; leaves of the tree without a code get the smallest frequency. Precision: 24 bits.
Payload of a level: for each step the first digits of its cells, then their second, then their third; :mod:`..coder`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from ..integer import (
    CONCEAL,
    OneThread,
)
from ..prior import Codes, JointPrior, check_codes, check_levels, read_prior_arrays
from ..tables import PRECISION
from ..tree import CodeTree
from .level import ContextLevel, LevelRun, start_run

if TYPE_CHECKING:
    from ..coder import TableDecoder
    from .level import Arrays, Int64Array, Shares


CONTEXT_FILE = "context.safetensors"
PROBABILITIES = 1 << 24  # elements of a block of whole distributions, in concealment


class ContextPrior(JointPrior):
    """Context model over grids of any number of axes; see the module's text.

    Args: arrays: as in ``context.safetensors``: for each level k names that start with "k.", and maybe "conceal.".
    Raises: ValueError if they do not fit each other.
    """

    wire_id = 2
    file = CONTEXT_FILE

    def __init__(self, arrays: Arrays, device: torch.device | str = "cpu") -> None:
        self._arrays = dict(arrays)
        self.hash = ""
        parts: dict[str, dict[str, npt.NDArray[Any]]] = {}
        for name, array in arrays.items():
            own, _, rest = name.partition(".")
            parts.setdefault(own, {})[rest] = array
        filler = parts.pop(CONCEAL, None)
        if not parts or set(parts) != {str(k) for k in range(len(parts))}:
            raise ValueError("a context model holds levels 0..K-1")
        if any("leaf" not in part for part in parts.values()):
            raise ValueError("the context model lacks 'leaf'")
        self._sizes = tuple(parts[str(k)]["leaf"].size for k in range(len(parts)))
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.levels = [ContextLevel(parts[str(k)], self._sizes[: k + 1], self.device) for k in range(len(parts))]
        self.filler = None
        if filler is not None:
            self.filler = ContextLevel(filler, (*self._sizes[1:], self._sizes[0]), self.device)
        every = [*self.levels, *([self.filler] if self.filler else [])]
        if len({level.schedule.ndim for level in every}) > 1:
            raise ValueError("all levels of a context model are grids of the same number of axes")

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> ContextPrior:
        """Read ``context.safetensors``. Raises ValueError if it is missing or damaged."""
        arrays, digest = read_prior_arrays(folder, CONTEXT_FILE)
        prior = cls(arrays, device)
        prior.hash = digest
        return prior

    def to(self, device: torch.device | str) -> ContextPrior:
        """The same prior on another device; its tables are the same."""
        moved = ContextPrior(self._arrays, device)
        moved.hash = self.hash
        return moved

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return dict(self._arrays)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self._sizes

    @property
    def trees(self) -> list[CodeTree]:
        """The digits of every codebook's codes, coarse to fine."""
        return [level.tree for level in self.levels]

    @property
    def ndim(self) -> int:
        """Axes of the grids that it codes."""
        return self.levels[0].schedule.ndim

    def compress(self, codes: Codes) -> list[bytes]:
        from ..coder import TableEncoder

        payloads = []
        with OneThread(), self._exactly():
            for blocks in self._code(codes):
                encoder = TableEncoder()
                for value, shares in blocks:
                    encoder.push(value, shares)
                payloads.append(encoder.finish())
        return payloads

    def decompress(self, payloads: Sequence[bytes], grid: tuple[int, ...]) -> Codes:
        from ..coder import TableDecoder

        if len(payloads) > len(self.levels):
            raise ValueError(f"{len(payloads)} payloads for {len(self.levels)} levels")
        self._check_axes(grid)
        out = np.empty((len(payloads), math.prod(grid)), dtype=np.int64)
        with OneThread(), self._exactly():
            for k, payload in enumerate(payloads):
                decoder = TableDecoder(payload)
                self._decode_level(k, decoder, out, grid)
                decoder.finish()
        return out.reshape(len(payloads), *grid)

    def _decode_level(self, k: int, decoder: TableDecoder, out: Codes, grid: tuple[int, ...]) -> None:
        """Pull the codes of level k into ``out[k]``, given those of the levels before it, ``out [K, n]``."""
        level = self.levels[k]
        run = start_run(level, torch.from_numpy(out[:k]).to(self.device), grid)
        for step, cells in enumerate(run.layout.steps):
            leaf = np.zeros(len(cells), dtype=np.int64)
            for digit, base in enumerate(level.tree.bases):
                leaf = leaf * base + decoder.pull(run.tables(step, digit, leaf))
            codes = level.tree.code[leaf]
            if codes.size and codes.min() < 0:
                raise ValueError("the payload holds a code that the codebook lacks")
            out[k, cells] = codes
            run.put(step, codes)

    def compress_joint(self, parts: Sequence[Codes]) -> bytes:
        from ..coder import TableEncoder

        encoder = TableEncoder()
        with OneThread(), self._exactly():
            for codes in parts:
                for blocks in self._code(codes):
                    for value, shares in blocks:
                        encoder.push(value, shares)
        return encoder.finish()

    def decompress_joint(self, payload: bytes, levels: Sequence[int], grid: tuple[int, ...]) -> list[Codes]:
        from ..coder import TableDecoder

        check_levels(levels, len(self.levels))
        self._check_axes(grid)
        decoder, found = TableDecoder(payload), []
        with OneThread(), self._exactly():
            for n in levels:
                out = np.empty((n, math.prod(grid)), dtype=np.int64)
                for k in range(n):
                    self._decode_level(k, decoder, out, grid)
                found.append(out.reshape(n, *grid))
        decoder.finish()
        return found

    def bits(self, codes: Codes) -> npt.NDArray[np.float64]:
        found = []
        with OneThread(), self._exactly():
            for blocks in self._code(codes):
                total = 0.0
                for value, shares in blocks:
                    chosen = shares[np.arange(len(value)), value].astype(np.float64)
                    total += float((PRECISION - np.log2(chosen + 1)).sum())
                found.append(total)
        return np.array(found)

    def tables_hash(self, codes: Codes) -> str:
        """SHA-256 of all integer tables that coding ``codes [k, *grid]`` takes: equal on every machine."""
        digest = hashlib.sha256()
        with self._exactly():
            for blocks in self._code(codes):
                for _, shares in blocks:
                    digest.update(shares.astype("<i4").tobytes())
        return digest.hexdigest()

    @contextmanager
    def _exactly(self) -> Iterator[None]:
        """No gradients, and no autocast, which would round the products."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    def _code(self, codes: Codes) -> Iterator[Iterator[tuple[Int64Array, Shares]]]:
        """For each level of ``codes [k, *grid]`` the digits and their tables, in coding order."""
        check_codes(codes, self._sizes)
        grid = codes.shape[1:]
        self._check_axes(grid)
        flat = np.ascontiguousarray(codes.reshape(len(codes), -1))
        for k in range(len(codes)):
            yield self._code_level(self.levels[k], flat[:k], flat[k], grid)

    def _code_level(
        self, level: ContextLevel, coarser: Codes, own: Codes, grid: tuple[int, ...]
    ) -> Iterator[tuple[Int64Array, Shares]]:
        if own.size:
            run = LevelRun(level, torch.from_numpy(coarser).to(self.device), grid)
            for digits in run.all_tables(own):
                yield from digits

    def conceal(
        self, codes: Codes, codewords: Sequence[npt.NDArray[np.floating]] | None = None, levels: int | None = None
    ) -> Codes:
        """Fill missing codes, from the rim of a hole inwards; see :meth:`~..prior.Prior.conceal`.

        With ``codewords`` a missing code of the first level becomes the one nearest to the expected codeword, and what
        that leaves of the expectation is handed on to the finer levels, where a code stays missing if nothing (zero) is
        nearer than every codeword. Without them each becomes its most probable value.
        """
        check_codes(codes, self._sizes, missing=True)
        self._check_axes(codes.shape[1:])
        with self._exactly():
            return self._conceal(codes, codewords, len(codes) if levels is None else min(levels, len(codes)))

    def _conceal(self, codes: Codes, codewords: Sequence[npt.NDArray[np.floating]] | None, levels: int) -> Codes:
        grid = codes.shape[1:]
        flat = torch.from_numpy(np.ascontiguousarray(codes.reshape(len(codes), -1)).copy()).to(self.device)
        n = flat.shape[1]
        tables = None
        if codewords is not None:
            tables = [torch.from_numpy(np.asarray(c, dtype=np.float64)).to(self.device) for c in codewords]
        rest = None if tables is None else tables[0].new_zeros(n, tables[0].shape[1])  # of the expectation, [n, D]
        for k in range(levels):
            lost = flat[k] < 0
            if not bool(lost.any()):
                continue
            level, seen = self.levels[k], flat[:k]
            if k == 0 and self.filler is not None:
                level = self.filler
                seen = flat.new_full((len(self._sizes) - 1, n), -1)
                seen[: len(flat) - 1] = flat[1:]
            run = LevelRun(level, seen, grid)
            there = (~lost).nonzero()[:, 0]
            run.know(there, flat[k, there])
            close = torch.from_numpy(np.flatnonzero((np.abs(level.offsets) <= 1).all(1))).to(self.device)
            near = run.layout.near(torch.arange(n, device=self.device), close)  # [n, 3^ndim]
            while bool(lost.any()):
                held = torch.cat([~lost, lost.new_zeros(1)])
                cells = (lost & held[near].any(1)).nonzero()[:, 0]
                if not len(cells):  # nothing is known at all
                    cells = lost.nonzero()[:, 0]
                found = []
                for block in cells.split(max(1, PROBABILITIES // level.tree.code.size)):
                    p = level.probabilities(run.hidden(run.layout.near(block).view(-1), len(block)))
                    if tables is None or rest is None:
                        found.append(p.argmax(1))
                        continue
                    wanted = p @ tables[k] + rest[block]
                    distance, best = torch.cdist(wanted, tables[k]).min(1)
                    if k:
                        best = torch.where(wanted.norm(dim=1) <= distance, -1, best)
                    rest[block] = wanted - torch.where(best[:, None] < 0, 0.0, tables[k][best.clamp_min(0)])
                    found.append(best)
                filled = torch.cat(found)
                flat[k, cells] = filled
                lost[cells] = False
                run.know(cells[filled >= 0], filled[filled >= 0])
        return flat.cpu().numpy().reshape(codes.shape)

    def _check_axes(self, grid: Sequence[int]) -> None:
        if len(grid) != self.ndim:
            raise ValueError(f"the context model is for grids of {self.ndim} axes, not {tuple(grid)}")
