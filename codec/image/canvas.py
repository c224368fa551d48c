"""A picture beside what its codes show, window by window: for encoders that look at what they made.

Boxes are (top, left, bottom, right) in cells of the grid, the last two excluded.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...entropy.hyperprior.net import MEAN_BITS
from ...tokenizers.image.layers import STRIDE
from ...tokenizers.image.photo import WINDOW, ImagePhoto, cut
from ...tokenizers.image.tiling import Tile, tiles
from .exact import BLOCK, blocks_of, free_cells

Box = tuple[int, int, int, int]


def grown(box: Box, grid: tuple[int, int], cells: int, least: int = 0) -> Box:
    """The box with so many cells more on each side, and at least ``least`` of them long, as far as the grid goes."""
    edges = []
    for begin, end, size in ((box[0], box[2], grid[0]), (box[1], box[3], grid[1])):
        begin, end = max(0, begin - cells), min(size, end + cells)
        begin = max(0, min(begin, end - least))
        edges.append((begin, min(size, max(end, begin + least))))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def pixels_of(x_hat: Tensor, region: Box, outer: Box, x: Tensor) -> Tensor:
    """A region's pixels, as many as ``x`` has, out of those of ``outer``."""
    t, le = STRIDE * (region[0] - outer[0]), STRIDE * (region[1] - outer[1])
    return x_hat[:, :, t : t + x.shape[2], le : le + x.shape[3]]


class Canvas:
    """One picture, and the codes that it has so far at one quality.

    Args:
        pixels: ``[H, W, C]`` uint8, C = 1 or 3.

    Attributes:
        latents: ``[M, h, w]`` of :meth:`ImagePhoto.analyse_tiled`.
        held: ``[M, h, w]`` int16, what is decoded, in 16ths of the quantiser's steps; larger ones than it holds, which
            hardly any picture has, are looked at as if they were the largest.
        blocks: ``[ceil(H/64), ceil(W/64)]``, which are exact; see :mod:`.exact`.
        exact: ``[H, W, C]`` uint8, what exact blocks show: the picture, or nearly.
        windows: of the grid, in raster order.
    """

    def __init__(self, model: ImagePhoto, pixels: np.ndarray, latents: np.ndarray) -> None:
        self.model, self.pixels, self.latents = model, pixels, latents
        self.grid = (latents.shape[1], latents.shape[2])
        self.held = np.empty(latents.shape, dtype=np.int16)
        self.blocks = np.zeros([-(-edge // BLOCK) for edge in pixels.shape[:2]], dtype=bool)
        self.exact = pixels
        self.windows = list(tiles(*self.grid, 0, WINDOW))

    def hold(self, tile: Tile, latents: np.ndarray) -> None:
        """Take a window's latents ``[M, h, w]``, in steps of the quantiser, for what is decoded."""
        largest = np.iinfo(np.int16).max
        cut(self.held, tile)[:] = np.clip(np.rint(latents * 2**MEAN_BITS), -largest, largest)

    def known(self, region: Box) -> np.ndarray:
        """What is decoded of a region, ``[M, h, w]`` float32 in steps of the quantiser."""
        return cut(self.held, Tile(region, region)) * np.float32(2.0**-MEAN_BITS)

    def window_blocks(self, tile: Tile) -> np.ndarray:
        """The blocks of a window, a view."""
        top, left = (edge * STRIDE // BLOCK for edge in tile.core[:2])
        rows, columns = blocks_of(self.window_pixels(tile).shape[:2])
        return self.blocks[top : top + rows, left : left + columns]

    def window_pixels(self, tile: Tile) -> np.ndarray:
        """The pixels of a window, ``[h, w, C]`` uint8."""
        t, le, b, r = (STRIDE * edge for edge in tile.core)
        return self.pixels[t:b, le:r]

    def nothing_exact(self) -> None:
        """No block is exact from now on."""
        self.blocks[:] = False
        self.exact = self.pixels

    def take_exact(self, tile: Tile, shown: np.ndarray) -> None:
        """Show a window ``[h, w, C]`` in its exact blocks, which are all of them from now on."""
        if self.exact is self.pixels:
            self.exact = self.pixels.copy()
        t, le, b, r = (STRIDE * edge for edge in tile.core)
        self.exact[t:b, le:r] = shown
        self.window_blocks(tile)[:] = True

    def free(self, tile: Tile) -> np.ndarray | None:
        """The cells ``[h, w]`` of a window that need no codes, None if all do. Windows around it count, too."""
        if not self.window_blocks(tile).any():
            return None
        edge = BLOCK // STRIDE
        top, left, bottom, right = grown(tile.core, self.grid, edge)
        blocks = self.blocks[top // edge : -(-bottom // edge), left // edge : -(-right // edge)]
        found: np.ndarray = free_cells(blocks, (bottom - top, right - left))
        return found[Tile(tile.core, (top, left, bottom, right)).inner]

    def original(self, region: Box) -> Tensor:
        """The picture's pixels in a region, ``[1, 3, H, W]`` in [0, 1]; less than whole cells at its end."""
        return self._region(self.pixels, region)

    def _region(self, pixels: np.ndarray, region: Box) -> Tensor:
        t, le, b, r = (STRIDE * edge for edge in region)
        x = torch.from_numpy(np.ascontiguousarray(pixels[t:b, le:r])).to(self.model.device)
        return x.permute(2, 0, 1)[None].expand(-1, 3, -1, -1).float() / 255

    def finished(self, x_hat: Tensor, x: Tensor, region: Box) -> Tensor:
        """What the nets made of a region, as it is shown: grey if the picture is, and with exact blocks."""
        if self.pixels.shape[2] == 1:
            x_hat = x_hat.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        rows, columns = (
            (STRIDE * begin + np.arange(n)) // BLOCK for begin, n in zip(region[:2], x.shape[2:], strict=True)
        )
        exact = self.blocks[np.ix_(rows, columns)]
        if not exact.any():
            return x_hat
        shown = x if self.exact is self.pixels else self._region(self.exact, region)
        return torch.where(torch.from_numpy(exact).to(x.device), shown, x_hat)

    @torch.no_grad()
    def shown(self, region: Box, steps: int) -> Tensor:
        """A region as it is decoded at a quality in hundredths, in 8 bits: ``[1, 3, H, W]`` in [0, 1]."""
        outer = grown(region, self.grid, self.model.synthesis_halo)
        part = torch.from_numpy(self.known(outer)).to(self.model.device)
        x = self.original(region)
        x_hat = self.finished(pixels_of(self.model.pixels(part[None], steps), region, outer, x), x, region)
        return (x_hat * 255).round() / 255

    def decoded(self, tile: Tile, steps: int) -> np.ndarray:
        """A window as it is decoded, ``[h, w, 3]`` uint8."""
        return (self.shown(tile.core, steps)[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()

    def picture(self, steps: int) -> np.ndarray:
        """The whole picture as it is decoded, ``[H, W, 3]`` uint8."""
        out = np.empty((*self.pixels.shape[:2], 3), dtype=np.uint8)
        for tile in self.windows:
            t, le, b, r = (STRIDE * edge for edge in tile.core)
            out[t:b, le:r] = self.decoded(tile, steps)
        return out
