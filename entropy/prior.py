"""The contract of entropy models: codes of any grid <-> one payload of bytes a level, exactly."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

PRIOR_FILE = "prior.safetensors"

Codes = npt.NDArray[np.int64]


class Prior(abc.ABC):
    """A probability model of token grids, decodable on every machine because only integers reach the coder.

    A prior knows codebook sizes and nothing else about the tokenizer. Payloads are one a level, coarse to fine; a
    prefix of the payloads gives a prefix of the levels.
    """

    wire_id: int  # explicit constant of the file format, see FORMAT.md
    hash: str  # first 8 bytes of the SHA-256 of prior.safetensors as hex digits; "" if never saved

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
    def fill(self, grid: tuple[int, ...]) -> Codes:
        """The most probable codes of the first level, ``[1, *grid]``: what a lost segment becomes."""

    @abc.abstractmethod
    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What the prior consists of, for :meth:`save_pretrained`."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``prior.safetensors`` into ``folder`` and take its hash."""
        path = Path(folder) / PRIOR_FILE
        beside = path.with_suffix(".tmp")
        beside.write_bytes(save(self.arrays(), metadata={"wire_id": str(self.wire_id)}))
        beside.replace(path)
        self.hash = prior_hash(path)


def prior_hash(path: Path) -> str:
    """First 8 bytes of the SHA-256 of a prior's file, as 16 hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def read_prior_arrays(folder: str | Path) -> tuple[dict[str, npt.NDArray[Any]], str]:
    """Arrays and hash of the prior in ``folder``. Raises ValueError if it is missing or damaged."""
    path = Path(folder) / PRIOR_FILE
    try:
        return load_file(str(path)), prior_hash(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"cannot read entropy model {path}: {error}") from error
