"""Integer codes that know what they are: :class:`Tokens` and their :class:`TokenSpec`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .quantize.base import ABSENT


@dataclass(frozen=True)
class TokenSpec:
    """What the integers of a :class:`Tokens` mean.

    Attributes:
        model: name of the tokenizer, e.g. "image-grid".
        weights_hash: first 8 bytes of the SHA-256 of its unpacked weights file, as 16 hex digits; "" if never saved.
        modality: "image", "audio" or "video".
        codebook_sizes: N_k of every codebook, coarse to fine, in the order of ``codes``.
        strides: signal samples a grid cell spans, one number per grid axis.
        size: length of the original signal along the grid axes, e.g. (H, W); the last cells may be padding.
        channels: meaning of the signal's channels, e.g. "rgb".
        sample_rate: samples (audio) or frames (video) per second; None for pictures.
        quality: 0 to 100, what the signal was encoded with, for models whose rate it sets; else None.
        first: what the first cell of the first axis spans if that is not its stride: 1 where the first frame of a video
            stands alone; else None.
    """

    model: str
    weights_hash: str
    modality: str
    codebook_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    size: tuple[int, ...]
    channels: str
    sample_rate: float | None = None
    quality: float | None = None
    first: int | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along every axis: ``ceil(size / stride)``; with ``first``, ``1 + ceil((size - first) / stride)``."""
        return tuple(-(-(n + m) // s) for n, m, s in zip(self.size, self._missing, self.strides, strict=True))

    def span(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Size of a signal that fills so many cells along every axis: the inverse of :attr:`grid`."""
        return tuple(n * s - m for n, m, s in zip(grid, self._missing, self.strides, strict=True))

    @property
    def _missing(self) -> tuple[int, ...]:
        """What the first cell of each axis lacks of a stride."""
        first = self.strides[0] if self.first is None else self.first
        return (self.strides[0] - first, *[0] * (len(self.strides) - 1))


@dataclass(frozen=True)
class Tokens:
    """Codes of a batch of signals of one size.

    Attributes:
        codes: ``[B, K, *grid]`` int64, coarse to fine; ``ABSENT`` (-1) marks a code that was dropped or lost.
        spec: what they mean; ``K`` may be smaller than ``len(spec.codebook_sizes)``, a prefix of the levels.

    Raises: ValueError if the codes do not fit the spec.
    """

    codes: Tensor
    spec: TokenSpec

    def __post_init__(self) -> None:
        codes, spec = self.codes, self.spec
        if not isinstance(codes, Tensor) or not isinstance(spec, TokenSpec):
            found = f"{type(codes).__name__} and {type(spec).__name__}"
            raise ValueError(f"codes must be an int64 tensor, and a TokenSpec go with them, got {found}")
        if codes.dtype != torch.int64:
            raise ValueError(f"codes must be int64, got {codes.dtype}")
        if codes.ndim != 2 + len(spec.strides) or tuple(codes.shape[2:]) != spec.grid:
            raise ValueError(f"codes of shape {tuple(codes.shape)} do not fit a grid of {spec.grid}")
        if not 1 <= codes.shape[1] <= len(spec.codebook_sizes):
            raise ValueError(f"{codes.shape[1]} levels of codes, the spec has {len(spec.codebook_sizes)}")
        if codes.numel():
            axes = [0, *range(2, codes.ndim)]
            ranges = zip(codes.amin(axes).tolist(), codes.amax(axes).tolist(), spec.codebook_sizes, strict=False)
            for k, (low, high, size) in enumerate(ranges):
                if not ABSENT <= low <= high < size:
                    raise ValueError(f"level {k + 1} holds a code outside [0, {size})")

    @property
    def n_levels(self) -> int:
        return self.codes.shape[1]

    def levels(self, n: int) -> Tokens:
        """The first ``n`` levels, a coarser version of the same signal."""
        if not 1 <= n <= self.n_levels:
            raise ValueError(f"levels must be 1 to {self.n_levels}, got {n}")
        return Tokens(self.codes[:, :n], self.spec)

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.codes.to(device), self.spec)
