"""Exact blocks of whole pictures: which ones a file of an image-photo model has, and how they come back.

See :mod:`.exact` for one window. The windows are the segments of the file.
"""

from __future__ import annotations

import numpy as np
import torch

from ...entropy.hyperprior.net import QUALITY_STEPS
from ...tokenizers.image.layers import STRIDE
from ...tokenizers.image.photo import WINDOW, ImagePhoto, rate_weight
from ...tokenizers.image.tiling import Tile, tiles
from ..container.chunks import EXCT, LAYR
from ..container.read import TokFile
from ..progress import SILENT, Progress
from .exact import (
    BLOCK,
    LARGEST,
    Blocks,
    Pixels,
    blocks_of,
    choose_exact,
    pack_exact,
    paste_exact,
    simple_blocks,
    worth,
)
from .whole import Samples, bits_of, pack_whole, unpack_whole

GRAPHICS = 0.5  # share of simple blocks from which on a window may be exact as a whole


class ExactSegments:
    """Chooses the exact blocks of one picture, at any quality.

    Args: pixels: ``[H, W, C]`` uint8.
    """

    def __init__(self, model: ImagePhoto, pixels: Pixels) -> None:
        self.model = model
        self.pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        self.simple = simple_blocks(self.pixels)
        self.wholes: dict[Tile, bytes | None] = {}

    @property
    def possible(self) -> bool:
        """Whether any block has so few colours that it could pay, for a model whose distortion is squared error."""
        return self.model.config.distortion == "mse" and bool(self.simple.any())

    def _all(self, tile: Tile) -> bytes:
        window = self._window(tile)
        return pack_exact(window, np.ones(blocks_of(window.shape[:2]), dtype=bool), method=5)

    def _window(self, tile: Tile) -> Pixels:
        top, left, bottom, right = (STRIDE * edge for edge in tile.core)
        return self.pixels[top:bottom, left:right]

    def whole(self, tile: Tile) -> bytes | None:
        """The payload of a window that is exact as a whole, None where it has too few simple blocks for one."""
        if tile not in self.wholes:
            rows, columns = (
                slice(STRIDE * begin // BLOCK, -(-STRIDE * end // BLOCK))
                for begin, end in ((tile.core[0], tile.core[2]), (tile.core[1], tile.core[3]))
            )
            graphics = float(self.simple[rows, columns].mean()) >= GRAPHICS
            self.wholes[tile] = self._all(tile) if graphics else None
        return self.wholes[tile]

    def pays(self, whole: bytes, tile: Tile, decoded: Pixels, steps: int, bits: float) -> bool:
        """Whether a window that is exact as a whole costs no more than what was chosen.

        Args: decoded: what the chosen blocks and codes show.  bits: that they take.
        """
        return 8 * len(whole) <= bits + worth(self._window(tile), decoded, self._weight(steps))

    def _weight(self, steps: int) -> float:
        return float(rate_weight(torch.tensor(steps / QUALITY_STEPS), self.model.config.rate_weights))

    def choose(self, tile: Tile, decoded: Pixels, steps: int) -> tuple[Blocks, bytes]:
        """The exact blocks of a window and their payload.

        Args: decoded: what its codes show at a quality of ``steps`` hundredths.
        """
        window = self._window(tile)
        blocks = choose_exact(window, decoded, self._weight(steps))
        return blocks, pack_exact(window, blocks)


def whole_segments(
    pixels: Samples, grid: tuple[int, ...], error: int, progress: Progress = SILENT
) -> tuple[dict[int, bytes], Samples]:
    """Payloads of all segments, each exact as a whole, or with a largest error; and what they show."""
    payloads, shown = dict[int, bytes](), pixels.copy()
    segments = list(tiles(grid[0], grid[1], 0, WINDOW))
    for segment, tile in enumerate(segments):
        top, left, bottom, right = (STRIDE * edge for edge in tile.core)
        payloads[segment], shown[top:bottom, left:right] = pack_whole(pixels[top:bottom, left:right], error)
        progress.update((segment + 1) / len(segments))
    return payloads, shown


def is_whole(tok: TokFile) -> bool:
    """Whether nothing is seen of the codes of a file: all of its segments are exact as a whole, and there."""
    segments = range(tok.picture.n_segments)
    return all((EXCT, 0, s) in tok.places and tok.payload(LAYR, 0, s) == b"" for s in segments)


def is_deep(tok: TokFile) -> bool:
    """Whether a segment has 16 bits a sample, and so the whole picture; nothing is decoded."""
    header = tok.picture
    for segment in (s for kind, _, s in tok.places if kind == EXCT):
        top, left, bottom, right = (header.stride * edge for edge in header.segment_box(segment))
        size = min(bottom, header.height) - top, min(right, header.width) - left
        if bits_of(tok.payload(EXCT, 0, segment) or b"", size) == 16:
            return True
    return False


def paste_segments(pixels: Pixels, tok: TokFile) -> Samples:
    """A decoded picture ``[H, W, C]`` with the exact blocks of its file, uint16 if any segment has 16 bits.

    What is lost is noted in the file.
    """
    header = tok.picture
    shown: Samples = pixels
    for segment in sorted(s for kind, _, s in tok.places if kind == EXCT):
        top, left, bottom, right = (header.stride * edge for edge in header.segment_box(segment))
        window = shown[top:bottom, left:right]
        size = (window.shape[0], window.shape[1])
        try:
            payload = tok.payload(EXCT, 0, segment)
            if payload is None:
                raise ValueError("missing or damaged")
            if max(bottom - top, right - left) > LARGEST:
                raise ValueError(f"segments of exact blocks have at most {LARGEST} pixels a side")
            found: Samples
            if bits_of(payload, size) is None:
                colour = np.broadcast_to(pixels[top:bottom, left:right], (*size, 3))
                found = paste_exact(colour, payload)[..., : pixels.shape[2]]
            else:
                found = unpack_whole(payload, size, pixels.shape[2])
            if found.itemsize > shown.itemsize:
                shown = shown.astype(np.uint16) * np.uint16(257)
                window = shown[top:bottom, left:right]
            window[:] = found if found.itemsize == shown.itemsize else found * np.uint16(257)
        except ValueError as error:
            tok.damaged(f"segment {segment}: its exact blocks are lost: {error}")
    return shown
