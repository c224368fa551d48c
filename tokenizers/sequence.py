"""Tokens as flat sequences of ids for generators, and back without loss.

::

    codes [K, *grid] -> digits (a large code may be two or three) -> ids (a block of the vocabulary each) -> a pattern
    codes, grid of 2 cells a b, K = 2 codebooks, one digit each (a2: code of cell a in the second codebook)
        levels       begin a1 b1 a2 b2 end                  codebook after codebook: coarse to fine
        interleaved  begin a1 a2 b1 b2 end                  cell after cell
        delay        a row of K ids a step:  begin begin | a1 begin | b1 a2 | end b2 | end end
        parallel     a row of K ids a step:  begin begin | a1 a2 | b1 b2 | end end

Cells are in raster order, the last axis fastest. The delay pattern is that of MusicGen (Copet et al. 2023,
arXiv:2306.05284, figure 1), which calls what is "interleaved" here the flattening pattern.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from .quantize.base import ABSENT
from .tokens import Tokens, TokenSpec

Pattern = Literal["levels", "interleaved", "delay", "parallel"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
ROWS: tuple[Pattern, ...] = ("delay", "parallel")  # patterns with a row of ids a step, not one

PAD, BEGIN, END, MASK, MISSING = range(5)  # the first ids of every vocabulary; MISSING stands for an ABSENT code
SPECIAL = ("pad", "begin", "end", "mask", "missing")
MAX_LEAVES = 1 << 24  # of the digits of all codebooks, in a schema that is read: 128 MiB of tables
IGNORED = -100  # the label that losses of PyTorch skip


class Digits(Protocol):
    """How a code is written in digits: :class:`tokodec.entropy.tree.CodeTree` is one."""

    @property
    def bases(self) -> tuple[int, ...]:
        """Number of values of each digit, the coarse one first."""

    @property
    def leaf(self) -> Any:
        """``[N]`` integers: the digits of each code as one number."""


@dataclass(frozen=True)
class Stream:
    """One digit of one codebook: the unit that a position of a sequence holds.

    Attributes:
        codebook: k.  digit: its place among the digits of the code, 0 is the coarsest.
        offset: id of its value 0.  base: number of its values.
    """

    codebook: int
    digit: int
    offset: int
    base: int


class Sequencer:
    """Maps the Tokens of one tokenizer to ids and back.

    Args:
        codebook_sizes: N of every codebook, coarse to fine.
        pattern: order of the ids, see the module's text.
        digits: for each codebook how a code is split, coarse to fine; None (for one or all): a code is one id.
        shared: codebooks that are written alike share their ids, and only positions tell them apart.

    Raises: ValueError for an unknown pattern, or digits that do not fit the codebooks.
    """

    def __init__(
        self,
        codebook_sizes: Sequence[int],
        pattern: Pattern = "levels",
        digits: Sequence[Digits | None] | None = None,
        shared: bool = False,
    ) -> None:
        if pattern not in PATTERNS:
            raise ValueError(f"unknown pattern {pattern!r}: use {', '.join(PATTERNS)}")
        if not codebook_sizes or min(codebook_sizes) < 1:
            raise ValueError("a sequence has at least one codebook, and a codebook at least one code")
        if digits is not None and len(digits) != len(codebook_sizes):
            raise ValueError(f"digits for {len(digits)} of {len(codebook_sizes)} codebooks")
        self.codebook_sizes = tuple(codebook_sizes)
        self.pattern: Pattern = pattern
        self.shared = shared
        self._leaf: list[Tensor | None] = []
        self._code: list[Tensor | None] = []
        self._copies: dict[tuple[int, torch.device], Tensor] = {}
        written: list[tuple[int, ...]] = []
        for k, n in enumerate(self.codebook_sizes):
            own = None if digits is None else digits[k]
            written.append((n,) if own is None else tuple(own.bases))
            leaf, code = (None, None) if own is None else _tables(own, n)
            self._leaf.append(leaf)
            self._code.append(code)
        self.streams, self._ends, self.vocabulary_size = _blocks(written, shared)

    def n_streams(self, levels: int | None = None) -> int:
        """Ids of a cell if so many levels are kept (None: all)."""
        return self._ends[len(self.codebook_sizes) if levels is None else levels]

    def length(self, cells: int, levels: int | None = None) -> int:
        """Steps of a sequence of so many cells, with begin and end."""
        s = self.n_streams(levels)
        if self.pattern == "delay":
            return cells + s + 1 if cells else 2
        return 2 + (cells if self.pattern == "parallel" else cells * s)

    # ---------------------------------------------------------------- there

    def flatten(self, tokens: Tokens) -> Tensor:
        """Tokens to ids ``[B, L]`` int64; ``[B, L, S]`` for patterns with a row of ids a step, one a stream.

        Raises: ValueError if the tokens have other codebooks, or a code has no digits.
        """
        if tokens.spec.codebook_sizes != self.codebook_sizes:
            raise ValueError("the tokens have other codebooks than the sequence")
        return self.ids(tokens.codes)

    def ids(self, codes: Tensor) -> Tensor:
        """As :meth:`flatten`, from codes ``[B, K, *grid]`` that are not checked: nothing waits for the device."""
        codes = codes.flatten(2)  # [B, K, n]
        columns = [self._ids(codes[:, k], k) for k in range(codes.shape[1])]  # [B, digits of k, n] each
        if self.pattern == "levels":
            flat = torch.cat([ids.transpose(1, 2).flatten(1) for ids in columns], 1)
        else:
            rows = torch.cat(columns, 1)  # [B, S, n]
            if self.pattern in ROWS:
                return self._rows(rows)
            flat = rows.transpose(1, 2).flatten(1)
        edge = flat.new_full((len(flat), 1), BEGIN)
        return torch.cat([edge, flat, torch.full_like(edge, END)], 1)

    def _ids(self, codes: Tensor, k: int) -> Tensor:
        """Codes ``[B, n]`` of codebook k to ids ``[B, digits, n]``."""
        own = self.streams[self._ends[k] : self._ends[k + 1]]
        absent = codes == ABSENT
        leaf = self._leaf_on(k, codes.device)
        rest = codes.clamp(min=0) if leaf is None else leaf[codes.clamp(min=0)]
        ids = []
        for stream in reversed(own):
            ids.append(torch.where(absent, MISSING, rest % stream.base + stream.offset))
            rest = rest // stream.base
        return torch.stack(ids[::-1], 1)

    def _leaf_on(self, k: int, device: torch.device) -> Tensor | None:
        """The digits of codebook k as numbers on a device, copied once: a copy makes the host wait."""
        leaf = self._leaf[k]
        if leaf is None or leaf.device == device:
            return leaf
        if (k, device) not in self._copies:
            self._copies[k, device] = leaf.to(device)
        return self._copies[k, device]

    def _rows(self, ids: Tensor) -> Tensor:
        """``[B, S, n]`` to ``[B, L, S]`` from begin to end; delayed, each stream a step after the one before."""
        b, s, n = ids.shape
        delayed = self.pattern == "delay" and n > 0
        rows = ids.new_full((b, n + s + 1 if delayed else n + 2, s), END)
        for i in range(s):
            late = i if delayed else 0
            rows[:, : late + 1, i] = BEGIN
            rows[:, late + 1 : late + 1 + n, i] = ids[:, i]
        return rows

    # ---------------------------------------------------------------- and back

    def unflatten(self, ids: Tensor, spec: TokenSpec) -> Tokens:
        """The inverse of :meth:`flatten`; how many levels there are follows from the length.

        Raises: ValueError if the ids are no such sequence: another length, a special id or one of another block in the
                place of a code, digits that no code has.
        """
        if spec.codebook_sizes != self.codebook_sizes:
            raise ValueError("the tokens have other codebooks than the sequence")
        wanted = 3 if self.pattern in ROWS else 2
        if ids.ndim != wanted or ids.dtype != torch.int64:
            raise ValueError(f"ids are int64 [B, L{', S' * (wanted - 2)}], got {ids.dtype} {tuple(ids.shape)}")
        n = math.prod(spec.grid)
        s = ids.shape[2] if wanted == 3 else ((ids.shape[1] - 2) // n if n else self.n_streams())
        if s not in self._ends[1:] or ids.shape[1] != self.length(n, self._ends.index(s)):
            raise ValueError(f"{ids.shape[1]} steps are no whole number of levels of {n} cells")
        levels = self._ends.index(s)
        if self.pattern in ROWS:
            late = [i if self.pattern == "delay" and n else 0 for i in range(s)]
            rows = torch.stack([ids[:, 1 + d : 1 + d + n, i] for i, d in enumerate(late)], 1)  # [B, S, n]
            if not torch.equal(self._rows(rows), ids):
                raise ValueError("begin or end is not where it belongs")
            columns = [rows[:, self._ends[k] : self._ends[k + 1]] for k in range(levels)]
        else:
            if not bool((ids[:, 0] == BEGIN).all() and (ids[:, -1] == END).all()):
                raise ValueError("begin or end is not where it belongs")
            flat = ids[:, 1:-1]
            if self.pattern == "levels":
                digits = [self._ends[k + 1] - self._ends[k] for k in range(levels)]
                parts = zip(flat.split([n * d for d in digits], 1), digits, strict=True)
                columns = [part.unflatten(1, (n, d)).transpose(1, 2) for part, d in parts]
            else:
                rows = flat.unflatten(1, (n, s)).transpose(1, 2)
                columns = [rows[:, self._ends[k] : self._ends[k + 1]] for k in range(levels)]
        codes = torch.stack([self._codes(part, k) for k, part in enumerate(columns)], 1)
        return Tokens(codes.unflatten(2, spec.grid), spec)

    def _codes(self, ids: Tensor, k: int) -> Tensor:
        """Ids ``[B, digits, n]`` of codebook k to codes ``[B, n]``."""
        own = self.streams[self._ends[k] : self._ends[k + 1]]
        absent = ids == MISSING
        code = torch.zeros_like(ids[:, 0])
        wrong = absent.any(1) != absent.all(1)
        for j, stream in enumerate(own):
            digit = ids[:, j] - stream.offset
            wrong |= ~absent[:, j] & ((digit < 0) | (digit >= stream.base))
            code = code * stream.base + digit
        code = torch.where(absent[:, 0], 0, code)
        table = self._code[k]
        if table is not None and not bool(wrong.any()):
            code = table.to(code.device)[code]
            wrong |= code < 0
        if bool(wrong.any()):
            raise ValueError(f"codebook {k + 1} holds an id that is none of its codes")
        return torch.where(absent[:, 0], ABSENT, code)

    # ---------------------------------------------------------------- what generators ask

    def layout(self, cells: int, levels: int | None = None) -> tuple[Tensor, Tensor]:
        """What every position holds: (index of its stream, its cell), ``[L]`` or ``[L, S]`` each, -1 for begin and end.

        So a model can have embeddings of both, and a sampler knows which ids may come next (:meth:`allowed`).
        """
        s = self.n_streams(levels)
        k = len(self.codebook_sizes) if levels is None else levels
        stream = torch.arange(s)[:, None].expand(s, cells)
        cell = torch.arange(cells).expand(s, cells)
        found = []
        for grid in (stream, cell):
            if self.pattern in ROWS:
                marks = self._rows(grid[None] + len(SPECIAL))[0]
                found.append(torch.where(marks < len(SPECIAL), -1, marks - len(SPECIAL)))
                continue
            if self.pattern == "interleaved":
                flat = grid.T.flatten()
            else:
                flat = torch.cat([grid[self._ends[i] : self._ends[i + 1]].T.flatten() for i in range(k)])
            edge = flat.new_full((1,), -1)
            found.append(torch.cat([edge, flat, edge]))
        return found[0], found[1]

    def allowed(self, stream: int) -> tuple[int, int]:
        """First id of a stream, and the one after its last."""
        return self.streams[stream].offset, self.streams[stream].offset + self.streams[stream].base

    def schema(self) -> dict[str, Any]:
        """What a reader of ids needs, for JSON: pattern, vocabulary, special ids, the block of each stream, digits."""
        return {
            "pattern": self.pattern,
            "vocabulary_size": self.vocabulary_size,
            "special": dict(zip(SPECIAL, range(len(SPECIAL)), strict=True)),
            "codebook_sizes": list(self.codebook_sizes),
            "streams": [vars(stream) for stream in self.streams],
            "leaves": [None if leaf is None else leaf.tolist() for leaf in self._leaf],
        }

    @classmethod
    def from_schema(cls, schema: dict[str, Any]) -> Sequencer:
        """The inverse of :meth:`schema`, also by way of JSON. Raises ValueError if it is none.

        What is declared is compared and counted before there are tables, of ``MAX_LEAVES`` leaves in all at most.
        """
        try:
            sizes, leaves = tuple(schema["codebook_sizes"]), schema["leaves"]
            bases: list[list[int]] = [[] for _ in sizes]
            for stream in schema["streams"]:
                bases[stream["codebook"]].append(stream["base"])
            if len(leaves) != len(sizes) or not all(type(n) is int and n > 0 for own in (sizes, *bases) for n in own):
                raise TypeError("a codebook without leaves, or a size that is no positive integer")
            written = [tuple(own) for own in bases]
            digits = [None if leaf is None else _Written(own, leaf) for own, leaf in zip(written, leaves, strict=True)]
            if sum(_leaves(own.bases) for own in digits if own is not None) > MAX_LEAVES:
                raise ValueError(f"the digits of a schema have more than {MAX_LEAVES} leaves")
            for shared in (False, True):  # the offsets tell
                streams, _, size = _blocks(written, shared)
                if ([vars(stream) for stream in streams], size) == (schema["streams"], schema["vocabulary_size"]):
                    found = cls(sizes, schema["pattern"], digits, shared)
                    if found.schema() == schema:
                        return found
        except (KeyError, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(f"not the schema of a sequence: {type(error).__name__} {error}") from error
        raise ValueError("not the schema of a sequence: its streams contradict its codebooks")


def _blocks(codebooks: Sequence[tuple[int, ...]], shared: bool) -> tuple[list[Stream], list[int], int]:
    """What bases of digits of each codebook mean: the streams, codebook after codebook, coarse digit first; how many
    the first 0, 1, ... codebooks have; and the size of the vocabulary."""
    streams: list[Stream] = []
    ends, size = [0], len(SPECIAL)
    begins: dict[tuple[int, ...], int] = {}
    for k, bases in enumerate(codebooks):
        new = not shared or bases not in begins
        offset = begins[bases] = size if new else begins[bases]
        for j, base in enumerate(bases):
            streams.append(Stream(k, j, offset, base))
            offset += base
        size = offset if new else size
        ends.append(len(streams))
    return streams, ends, size


def _leaves(bases: Sequence[int]) -> int:
    """The product of the bases, or something beyond ``MAX_LEAVES`` if it is."""
    leaves = 1
    for base in bases:
        leaves *= base
        if leaves > MAX_LEAVES:
            break
    return leaves


@dataclass(frozen=True)
class _Written:
    """Digits as a schema has them."""

    bases: tuple[int, ...]
    leaf: list[int]


def _tables(digits: Digits, n: int) -> tuple[Tensor, Tensor]:
    """Leaf of each code ``[N]``, and the code at each leaf ``[prod(bases)]``, -1 where there is none."""
    leaf = torch.as_tensor(digits.leaf, dtype=torch.int64)
    places = math.prod(digits.bases)
    if leaf.shape != (n,) or int(leaf.min()) < 0 or int(leaf.max()) >= places or len(leaf.unique()) != n:
        raise ValueError(f"digits of bases {digits.bases} do not fit a codebook of {n} codes")
    code = torch.full((places,), -1)
    code[leaf] = torch.arange(n)
    return leaf, code


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences of different lengths side by side.

    Attributes:
        ids: ``[B, L]`` or ``[B, L, S]`` int64, ``PAD`` after the end of the shorter ones.
        mask: ``[B, L]`` bool, true where a sequence is.
    """

    ids: Tensor
    mask: Tensor

    @property
    def labels(self) -> Tensor:
        """What a loss compares with, of the shape of ``ids``: the ids, and ``IGNORED`` where there is only padding.

        Not shifted: models of causal language that take labels shift them, others compare ``labels[:, 1:]``.
        """
        mask = self.mask if self.ids.ndim == 2 else self.mask[..., None]
        return torch.where(mask, self.ids, IGNORED)

    def to(self, device: torch.device | str) -> SequenceBatch:
        return SequenceBatch(self.ids.to(device), self.mask.to(device))

    @property
    def lengths(self) -> list[int]:
        return [int(n) for n in self.mask.sum(1)]

    def split(self) -> list[Tensor]:
        """The sequences again, ``[L_i]`` or ``[L_i, S]`` each."""
        return [row[:n] for row, n in zip(self.ids, self.lengths, strict=True)]


def pad_sequences(sequences: Sequence[Tensor]) -> SequenceBatch:
    """Sequences ``[L_i]`` or ``[L_i, S]`` to a batch as long as the longest; its ``split`` is the inverse.

    Raises: ValueError if there is none, or their numbers of streams differ.
    """
    if not sequences or len({(s.ndim, s.shape[1:]) for s in sequences}) > 1:
        raise ValueError("a batch has at least one sequence, and all have the same number of streams")
    longest = max(len(s) for s in sequences)
    ids = sequences[0].new_full((len(sequences), longest, *sequences[0].shape[1:]), PAD)
    mask = torch.zeros(len(sequences), longest, dtype=torch.bool, device=ids.device)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = sequence
        mask[i, : len(sequence)] = True
    return SequenceBatch(ids, mask)
