"""Integers and frequency tables -> bytes, with the asymmetric numeral system of `constriction` 0.5.

Stream: 32-bit words, 64-bit state, 24-bit probabilities (constriction's ``DefaultAnsCoder``), words little-endian.
ANS is a stack, so the encoder pushes the symbols in reverse and the decoder pulls them in order.

constriction takes float probabilities and turns them into integers itself. With ``perfect=False`` that rule is: symbol
i gets ``floor(cumulative(i+1) * s) - floor(cumulative(i) * s) + 1``, where ``s = (2^24 - N) / sum``. Given
``frequency - 1`` as "probabilities", which sum to ``2^24 - N``, s is exactly 1 and every number an integer far below
2^53, so the result is our integer table to the last unit on every machine. ``tests/test_entropy.py`` holds this against
an ANS coder in plain Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from .tables import check_table

# Frequencies minus one, float32 [n, N]: integers below 2^24, which float32 holds exactly.
Shares = npt.NDArray[np.float32]

_TABLES = constriction.stream.model.Categorical(perfect=False)


def _words(payload: bytes) -> npt.NDArray[np.uint32]:
    if len(payload) % 4 or payload[-4:] == b"\0\0\0\0":
        raise ValueError("a payload is a row of 32-bit words, the last one not zero")
    return np.frombuffer(payload, dtype="<u4").astype(np.uint32)  # none at all for a row of symbol 0


def table_model(table: npt.NDArray[np.integer]) -> Any:  # a constriction model
    """A frequency table ``[N]`` as the coder takes it. Raises ValueError for what is not one."""
    check_table(table)
    return constriction.stream.model.Categorical((table - 1).astype(np.float64), perfect=False)


def encode_static(symbols: npt.NDArray[np.integer], table: npt.NDArray[np.integer]) -> bytes:
    """Code ``symbols [n]`` in [0, N) with one frequency ``table [N]``; returns a multiple of 4 bytes."""
    if table.size == 1 or symbols.size == 0:  # nothing to tell
        return b""
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(np.ascontiguousarray(symbols, dtype=np.int32), table_model(table))
    return coder.get_compressed().astype("<u4").tobytes()


def decode_static(payload: bytes, n: int, table: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Inverse of :func:`encode_static`: the ``n`` symbols of ``payload``.

    Raises: ValueError if the payload has not the form of a stream, or if it is not used up after ``n`` symbols (it was
            not made for this table and n; a stream that passes can still be wrong, which checksums must catch).
    """
    if table.size == 1 or n == 0:
        if payload:
            raise ValueError("a payload of zero bytes was expected")
        return np.zeros(n, dtype=np.int64)
    coder = constriction.stream.stack.AnsCoder(_words(payload))
    symbols = coder.decode(table_model(table), n)
    if not coder.is_empty():
        raise ValueError("the payload holds more than its symbols")
    return symbols.astype(np.int64)


class TableEncoder:
    """Symbols with a table each, coded in the order in which they are given."""

    def __init__(self) -> None:
        self._blocks: list[tuple[npt.NDArray[np.int32], Shares]] = []

    def push(self, symbols: npt.NDArray[np.integer], shares: Shares) -> None:
        """Add ``symbols [n]`` in [0, N) with frequencies ``shares + 1``, ``[n, N]``."""
        if symbols.size and shares.shape[1] > 1:  # a table of one entry tells nothing
            self._blocks.append((np.ascontiguousarray(symbols, dtype=np.int32), shares))

    def finish(self) -> bytes:
        """All that was pushed, a multiple of 4 bytes."""
        coder = constriction.stream.stack.AnsCoder()
        for symbols, shares in reversed(self._blocks):  # ANS is a stack: push in reverse
            coder.encode_reverse(symbols, _TABLES, np.ascontiguousarray(shares))
        return coder.get_compressed().astype("<u4").tobytes()


class TableDecoder:
    """Inverse of :class:`TableEncoder`. Raises ValueError if the payload has not the form of a stream."""

    def __init__(self, payload: bytes) -> None:
        self._coder = constriction.stream.stack.AnsCoder(_words(payload))

    def pull(self, shares: Shares) -> npt.NDArray[np.int64]:
        """The next symbols ``[n]``, with frequencies ``shares + 1``, ``[n, N]``."""
        if not len(shares) or shares.shape[1] == 1:
            return np.zeros(len(shares), dtype=np.int64)
        symbols: npt.NDArray[np.int32] = self._coder.decode(_TABLES, np.ascontiguousarray(shares))
        return symbols.astype(np.int64)

    def finish(self) -> None:
        """Raise ValueError unless the payload is used up."""
        if not self._coder.is_empty():
            raise ValueError("the payload holds more than its symbols")


class IndexedEncoder:
    """Symbols whose tables are rows of a fixed list, coded in the order in which they are given."""

    def __init__(self, tables: Sequence[Any]) -> None:
        self._tables = tables
        self._blocks: list[tuple[npt.NDArray[np.int32], int]] = []

    def push(self, symbols: npt.NDArray[np.integer], table: int) -> None:
        """Add ``symbols [n]`` of table number ``table``."""
        if symbols.size:
            self._blocks.append((np.ascontiguousarray(symbols, dtype=np.int32), table))

    def finish(self) -> bytes:
        """All that was pushed, a multiple of 4 bytes."""
        coder = constriction.stream.stack.AnsCoder()
        for symbols, table in reversed(self._blocks):  # ANS is a stack: push in reverse
            coder.encode_reverse(symbols, self._tables[table])
        return coder.get_compressed().astype("<u4").tobytes()


class IndexedDecoder:
    """Inverse of :class:`IndexedEncoder`. Raises ValueError if the payload has not the form of a stream."""

    def __init__(self, payload: bytes, tables: Sequence[Any]) -> None:
        self._coder = constriction.stream.stack.AnsCoder(_words(payload))
        self._tables = tables

    def pull(self, n: int, table: int) -> npt.NDArray[np.int32]:
        """The next ``n`` symbols, of table number ``table``."""
        if not n:
            return np.zeros(0, dtype=np.int32)
        symbols: npt.NDArray[np.int32] = self._coder.decode(self._tables[table], n)
        return symbols

    def finish(self) -> None:
        """Raise ValueError unless the payload is used up."""
        if not self._coder.is_empty():
            raise ValueError("the payload holds more than its symbols")
