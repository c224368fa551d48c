"""The contract of entropy models: codes of any grid <-> one payload of bytes a level, exactly."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from . import packed

Codes = npt.NDArray[np.int64]


class Prior(abc.ABC):
    """A probability model of token grids, decodable on every machine because only integers reach the coder.

    A prior knows codebook sizes and nothing else about the tokenizer. Payloads are one a level, coarse to fine; a
    prefix of the payloads gives a prefix of the levels.
    """

    wire_id: ClassVar[int]  # explicit constant of the file format, see FORMAT.md
    file: ClassVar[str]  # name of its file in a model's folder
    hash: str  # first 8 bytes of the SHA-256 of its unpacked file as hex digits; "" if never saved

    @property
    @abc.abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """N of every level."""

    @abc.abstractmethod
    def compress(self, codes: Codes) -> list[bytes]:
        """Codes ``[k, *grid]``, k <= K, to k payloads. Raises ValueError for codes outside their codebook."""

    @abc.abstractmethod
    def decompress(self, payloads: Sequence[bytes], grid: tuple[int, ...]) -> Codes:
        """Payloads of the first ``len(payloads)`` levels to codes ``[len(payloads), *grid]``.

        Raises: ValueError if a payload is not one that :meth:`compress` makes for this grid.
        """

    @abc.abstractmethod
    def bits(self, codes: Codes) -> npt.NDArray[np.float64]:
        """Ideal code length of codes ``[k, *grid]`` in bits, one number a level, ``[k]``."""

    @abc.abstractmethod
    def conceal(
        self, codes: Codes, codewords: Sequence[npt.NDArray[np.floating]] | None = None, levels: int | None = None
    ) -> Codes:
        """Fill the missing codes (-1) of ``[k, *grid]``, given those that are there.

        An estimate: unlike what is coded, it may differ from machine to machine where two codes are nearly as good.

        Args:
            codewords: ``[N_k, D]`` of every level. With them codes are chosen for the least expected squared error, and
                one that is better left out stays -1; without, each is the most probable one.
            levels: fill only so many, coarse to fine; all of them by default.
        """

    def levels_in(self, layers: int) -> int:
        """How many levels the first layers of a file hold at most: as many, where a layer is a level."""
        return layers

    def layers(self, levels: int) -> int:
        """How many layers hold so many levels."""
        return levels

    @abc.abstractmethod
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What the prior consists of, for :meth:`save_pretrained`."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the prior's file into ``folder``, packed (see :mod:`.packed`), and take its hash."""
        self.hash = save_prior(self.arrays(), self.wire_id, Path(folder) / self.file)


class JointPrior(Prior):
    """A prior that can also code several grids in one payload."""

    @abc.abstractmethod
    def compress_joint(self, parts: Sequence[Codes]) -> bytes:
        """Codes ``[k, *grid]`` of several grids, each with a k of its own, to one payload.

        For signals in many short segments: a payload of its own for each level would cost some 4 bytes more a level.
        Raises ValueError as :meth:`compress` does.
        """

    @abc.abstractmethod
    def decompress_joint(self, payload: bytes, levels: Sequence[int], grid: tuple[int, ...]) -> list[Codes]:
        """Inverse of :meth:`compress_joint`, for grids of one size; ``levels`` is the k of each.

        Raises: ValueError if the payload is not one that :meth:`compress_joint` makes for these.
        """


def prior_bytes(arrays: Mapping[str, npt.NDArray[Any]], wire_id: int) -> bytes:
    """The file of an entropy model, not packed."""
    found = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return bytes(save(found, metadata={"wire_id": str(wire_id)}))


def save_prior(arrays: Mapping[str, npt.NDArray[Any]], wire_id: int, path: Path) -> str:
    """Write the file of an entropy model, packed. Returns its hash."""
    plain = prior_bytes(arrays, wire_id)
    packed.write(path, plain)
    return packed.hash_of(plain)


def read_prior_arrays(folder: str | Path, file: str) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """Arrays and hash of the prior ``file`` in ``folder``. Raises ValueError if it is missing or damaged."""
    path = Path(folder) / file
    try:
        plain = packed.read(path)
        arrays = load(plain)
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(f"{name} holds a number that is not finite")
        return arrays, packed.hash_of(plain)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"cannot read entropy model {path}: {error}") from error


def check_codes(codes: Codes, sizes: Sequence[int], missing: bool = False) -> None:
    """Raise ValueError unless ``codes [k, *grid]`` are codes of the first k codebooks (or -1, if ``missing``)."""
    if codes.ndim < 2 or not 1 <= codes.shape[0] <= len(sizes):
        raise ValueError(f"codes must be [k, *grid] with k <= {len(sizes)}, got {codes.shape}")
    least = -1 if missing else 0
    for k, level in enumerate(codes):
        if level.size and not least <= int(level.min()) <= int(level.max()) < sizes[k]:
            raise ValueError(f"level {k + 1} holds a code outside [0, {sizes[k]})")


def check_levels(levels: Sequence[int], n_levels: int) -> None:
    """Raise ValueError unless every number is 1 to ``n_levels``."""
    for k in levels:
        if not 1 <= k <= n_levels:
            raise ValueError(f"{k} levels, the entropy model has {n_levels}")
