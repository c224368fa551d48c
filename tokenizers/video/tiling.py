"""Frames of any size in bounded memory: each tile, with a halo, is a stream of its own, and together they give the
codes and pixels of whole frames."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..image.layers import STRIDE
from ..image.tiling import Tile
from .base import CodedCells, Pixels

TILE_CELLS = 128  # a frame of 1920 x 1080 is one tile, of 3840 x 2160 four


class Encoding(Protocol):
    """A stream of frames ``[1, 3, n, H, W]`` to the latents of cells, and those to codes."""

    def latents(self, x: Tensor) -> Tensor: ...
    def last_latents(self) -> Tensor: ...
    def quantize(self, z_e: Tensor) -> Tensor: ...


class Decoding(Protocol):
    """A stream of codes ``[1, k, m, h, w]`` to the frames of their cells."""

    def push(self, codes: Tensor) -> Tensor: ...


class Streamed(Protocol):
    """A tokenizer of videos whose nets see so far only."""

    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def first(self) -> int | None: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def analysis_halo(self) -> int: ...
    @property
    def synthesis_halo(self) -> int: ...
    def check_levels(self, levels: int | None) -> int: ...
    def errors(self, z_e: Tensor, codes: Tensor) -> Tensor: ...
    def stream_encoder(self, levels: int | None = None) -> Encoding: ...
    def stream_decoder(self) -> Decoding: ...


def even_tiles(h: int, w: int, halo: int, cells: int = TILE_CELLS) -> Iterator[Tile]:
    """Cover a grid of ``h x w`` cells with tiles of about one size, at most ``cells x cells``, row by row."""
    rows, columns = (np.linspace(0, n, 1 - (-n // cells), dtype=int).tolist() for n in (h, w))
    for t, b in itertools.pairwise(rows):
        for le, r in itertools.pairwise(columns):
            yield Tile((t, le, b, r), (max(0, t - halo), max(0, le - halo), min(h, b + halo), min(w, r + halo)))


class FrameEncoder:
    """Codes of the frames of one clip, which come one by one: those of :meth:`~.grid.VideoGrid.encode`.

    Args:    height, width: of the frames.  levels: of the codes, all if None.  errors: whether those are wanted.
             cells: tile edge in grid cells.
    Memory:  one tile with its halo for a group of frames, and what the layers over time remember of all tiles.
    """

    def __init__(
        self,
        model: Streamed,
        height: int,
        width: int,
        levels: int | None = None,
        errors: bool = False,
        cells: int = TILE_CELLS,
    ) -> None:
        self.model, self.levels, self.with_errors = model, model.check_levels(levels), errors
        self.grid = -(-height // STRIDE), -(-width // STRIDE)
        self.tiles = list(even_tiles(*self.grid, model.analysis_halo, cells))
        self.streams = [model.stream_encoder(levels) for _ in self.tiles]
        self.waiting: list[Tensor] = []  # frames [H, W, 3] of a group that is not complete
        self.wanted = model.first or model.strides[0]

    def push(self, pixels: Pixels) -> CodedCells:
        """The next frame ``[H, W, 3]`` to codes ``[levels, m, h, w]``, m is 0 or 1, and the squared error of their
        latents after 1, 2, ... levels, ``[levels]``, which is 0 if it is not wanted."""
        self.waiting.append(torch.from_numpy(pixels))
        if len(self.waiting) < self.wanted:
            return np.zeros((self.levels, 0, *self.grid), dtype=np.int64), np.zeros(self.levels)
        x = torch.stack(self.waiting).permute(3, 0, 1, 2)[None]  # [1, 3, n, H, W]
        self.waiting, self.wanted = [], self.model.strides[0]
        return self._cell(x, last=False)

    def finish(self) -> CodedCells:
        """As :meth:`push`, of what is left: the last frame is repeated to the end of its group."""
        if not self.waiting:
            return np.zeros((self.levels, 0, *self.grid), dtype=np.int64), np.zeros(self.levels)
        x = torch.stack(self.waiting).permute(3, 0, 1, 2)[None]
        self.waiting = []
        return self._cell(x, last=True)

    @torch.no_grad()
    def _cell(self, x: Tensor, last: bool) -> CodedCells:
        codes = np.empty((self.levels, 1, *self.grid), dtype=np.int64)
        errors = np.zeros(self.levels)
        for tile, stream in zip(self.tiles, self.streams, strict=True):
            t, le, b, r = tile.outer
            part = x[..., t * STRIDE : b * STRIDE, le * STRIDE : r * STRIDE]
            z_e = stream.latents(part)
            z_e = stream.last_latents() if last else z_e
            rows, columns = tile.inner
            z_e = z_e[..., rows, columns]
            found = stream.quantize(z_e)
            if self.with_errors:
                errors += self.model.errors(z_e, found)[0].double().sum((1, 2, 3)).cpu().numpy()
            t, le, b, r = tile.core
            codes[..., t:b, le:r] = found[0].cpu().numpy()
        return codes, errors


class FrameDecoder:
    """Frames of the codes of one clip, which come cell by cell: those of :meth:`~.grid.VideoGrid.decode`, in 8 bits.

    Memory:  one tile with its halo for a group of frames, the frames of the group, and what the layers over time
             remember of all tiles.
    """

    def __init__(self, model: Streamed, height: int, width: int, cells: int = TILE_CELLS) -> None:
        self.model, self.size = model, (height, width)
        self.tiles = list(even_tiles(-(-height // STRIDE), -(-width // STRIDE), model.synthesis_halo, cells))
        self.streams = [model.stream_decoder() for _ in self.tiles]
        self.frames = model.first or model.strides[0]

    @torch.no_grad()
    def push(self, codes: npt.NDArray[np.int64]) -> Pixels:
        """The next cell ``[k, h, w]`` to the frames of its group ``[n, H, W, 3]``, n is 1 or 4."""
        out = np.empty((self.frames, *self.size, 3), dtype=np.uint8)
        self.frames = self.model.strides[0]
        for tile, stream in zip(self.tiles, self.streams, strict=True):
            t, le, b, r = tile.outer
            part = torch.from_numpy(np.ascontiguousarray(codes[:, t:b, le:r]))
            x_hat = stream.push(part[None, :, None].to(self.model.device))  # [1, 3, n, 16(b-t), 16(r-le)]
            rows, columns = (slice(s.start * STRIDE, s.stop * STRIDE) for s in tile.inner)
            t, le, b, r = (STRIDE * edge for edge in tile.core)
            target = out[:, t:b, le:r]
            frames = (x_hat[0, :, :, rows, columns] * 255).round().byte().permute(1, 2, 3, 0)  # [n, h, w, 3]
            target[:] = frames[:, : target.shape[1], : target.shape[2]].cpu().numpy()
        return out

    def finish(self) -> Pixels:
        """No frames: all came with their cells."""
        return np.zeros((0, *self.size, 3), dtype=np.uint8)
