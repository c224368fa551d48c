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
from ..container.chunks import EXCT
from ..container.read import TokFile
from ..progress import Progress
from .exact import LARGEST, Blocks, Pixels, blocks_of, choose_exact, pack_exact, paste_exact, simple_blocks, worth

GRAPHICS = 0.5  # share of simple blocks from which on a window may be exact as a whole


class ExactSegments:
    """Chooses the exact blocks of one picture, at any quality.

    Args: pixels: ``[H, W, C]`` uint8.  latents: ``[M, h, w]``, as :class:`~.quality.PhotoFile` has them.
    """

    def __init__(self, model: ImagePhoto, pixels: Pixels, latents: np.ndarray) -> None:
        self.model, self.latents = model, latents
        self.pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        self.wholes: dict[Tile, bytes | None] = {}

    @property
    def possible(self) -> bool:
        """Whether any block has so few colours that it could pay, for a model whose distortion is squared error."""
        return self.model.config.distortion == "mse" and bool(simple_blocks(self.pixels).any())

    def all(self, progress: Progress) -> dict[int, bytes]:
        """Payloads of all segments, exact as a whole."""
        payloads: dict[int, bytes] = {}
        segments = list(tiles(self.latents.shape[1], self.latents.shape[2], 0, WINDOW))
        for segment, tile in enumerate(segments):
            payloads[segment] = self._all(tile)
            progress.update((segment + 1) / len(segments))
        return payloads

    def _all(self, tile: Tile) -> bytes:
        window = self._window(tile)
        return pack_exact(window, np.ones(blocks_of(window.shape[:2]), dtype=bool), method=5)

    def _window(self, tile: Tile) -> Pixels:
        top, left, bottom, right = (STRIDE * edge for edge in tile.core)
        return self.pixels[top:bottom, left:right]

    def whole(self, tile: Tile, decoded: Pixels, steps: int, bits: float) -> bytes | None:
        """The payload of a window that is exact as a whole, None where it costs more than what was chosen.

        Args: decoded: what the chosen blocks and codes show.  bits: that they take.
        """
        if tile not in self.wholes:
            graphics = float(simple_blocks(self._window(tile)).mean()) >= GRAPHICS
            self.wholes[tile] = self._all(tile) if graphics else None
        found = self.wholes[tile]
        if found is None or 8 * len(found) > bits + worth(self._window(tile), decoded, self._weight(steps)):
            return None
        return found

    def _weight(self, steps: int) -> float:
        return float(rate_weight(torch.tensor(steps / QUALITY_STEPS), self.model.config.rate_weights))

    def choose(self, tile: Tile, decoded: Pixels, steps: int) -> tuple[Blocks, bytes]:
        """The exact blocks of a window and their payload.

        Args: decoded: what its codes show at a quality of ``steps`` hundredths.
        """
        window = self._window(tile)
        blocks = choose_exact(window, decoded, self._weight(steps))
        return blocks, pack_exact(window, blocks)


def paste_segments(pixels: Pixels, tok: TokFile) -> None:
    """Put the exact blocks of a file into its decoded picture ``[H, W, C]``. What is lost is noted in the file."""
    header = tok.picture
    for segment in sorted(s for kind, _, s in tok.places if kind == EXCT):
        top, left, bottom, right = (header.stride * edge for edge in header.segment_box(segment))
        window = pixels[top:bottom, left:right]
        try:
            payload = tok.payload(EXCT, 0, segment)
            if payload is None:
                raise ValueError("missing or damaged")
            if max(bottom - top, right - left) > LARGEST:
                raise ValueError(f"segments of exact blocks have at most {LARGEST} pixels a side")
            whole = np.broadcast_to(window, (*window.shape[:2], 3))
            window[:] = paste_exact(whole, payload)[..., : window.shape[2]]
        except ValueError as error:
            tok.damaged(f"segment {segment}: its exact blocks are lost: {error}")
