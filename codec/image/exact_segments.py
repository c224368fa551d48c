"""Exact blocks of whole pictures: which ones a file of an image-photo model has, and how they come back.

See :mod:`.exact` for one window. The windows are the segments of the file.
"""

from __future__ import annotations

import numpy as np
import torch

from ...entropy.hyperprior.net import QUALITY_STEPS
from ...entropy.hyperprior.walk import Walk
from ...tokenizers.image.layers import STRIDE
from ...tokenizers.image.photo import WINDOW, ImagePhoto, cut, rate_weight
from ...tokenizers.image.tiling import Tile, tiles
from ..container.chunks import EXCT, LAYR
from ..container.read import TokFile
from ..progress import Progress
from .exact import LARGEST, Pixels, choose_exact, free_cells, is_simple, pack_exact, paste_exact
from .whole import Samples, bits_of, pack_whole, unpack_whole

Walks = list[tuple[Tile, Walk]]


class ExactSegments:
    """Chooses the exact blocks of one picture, at any quality.

    Args: pixels: ``[H, W, C]`` uint8.  latents: ``[M, h, w]``, as :class:`~.quality.PhotoFile` has them.
    """

    def __init__(self, model: ImagePhoto, pixels: Pixels, latents: np.ndarray) -> None:
        self.model, self.latents = model, latents
        self.pixels = np.broadcast_to(pixels, (*pixels.shape[:2], 3))

    @property
    def possible(self) -> bool:
        """Whether any block has so few colours that it could pay, for a model whose distortion is squared error."""
        return self.model.config.distortion == "mse" and is_simple(self.pixels)

    def choose(self, walks: Walks, steps: int) -> tuple[Walks, dict[int, bytes]]:
        """Walks that leave out what exact blocks show, and the payloads of the segments that have some.

        Args: walks: of all segments at a quality of ``steps`` hundredths.
        """
        height, width = self.pixels.shape[:2]
        latents = np.empty((self.model.config.latents, *self.latents.shape[1:]), dtype=np.float32)
        for tile, walk in walks:
            cut(latents, tile)[:] = walk.latents
        decoded = self.model.synthesise_tiled(latents, steps, (height, width)).numpy()
        quality = torch.tensor(steps / QUALITY_STEPS)
        weight = float(rate_weight(quality, self.model.config.rate_weights))
        kept: Walks = []
        payloads: dict[int, bytes] = {}
        for segment, (tile, walk) in enumerate(walks):
            top, left, bottom, right = (STRIDE * edge for edge in tile.core)
            window = self.pixels[top:bottom, left:right]
            blocks = choose_exact(window, decoded[top:bottom, left:right], weight)
            if blocks.any():
                payloads[segment] = pack_exact(window, blocks)
                part = cut(self.latents, tile)
                walk = self.model.quantise(part, steps, free_cells(blocks, (part.shape[1], part.shape[2])))
            kept.append((tile, walk))
        return kept, payloads


def whole_segments(pixels: Samples, grid: tuple[int, ...], error: int, progress: Progress) -> dict[int, bytes]:
    """Payloads of all segments, each exact as a whole, or with a largest error."""
    payloads: dict[int, bytes] = {}
    segments = list(tiles(grid[0], grid[1], 0, WINDOW))
    for segment, tile in enumerate(segments):
        top, left, bottom, right = (STRIDE * edge for edge in tile.core)
        payloads[segment] = pack_whole(pixels[top:bottom, left:right], error)
        progress.update((segment + 1) / len(segments))
    return payloads


def is_whole(tok: TokFile) -> bool:
    """Whether nothing is seen of the codes of a file: all of its segments are exact as a whole, and there."""
    segments = range(tok.picture.n_segments)
    return all((EXCT, 0, s) in tok.places and tok.payload(LAYR, 0, s) == b"" for s in segments)


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
