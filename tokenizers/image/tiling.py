"""Pictures of any size in bounded memory: tiles with a halo give the codes and pixels of the whole picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tokens import Tokens, TokenSpec
from .layers import STRIDE

TILE_CELLS = 64  # 64 x 64 cells are 1024 x 1024 pixels


@dataclass(frozen=True)
class Tile:
    """A rectangle of grid cells (``core``) and what a network must see to get it right (``outer``).

    Attributes: ``core`` and ``outer`` are ``(top, left, bottom, right)`` in cells, bottom and right excluded.
    """

    core: tuple[int, int, int, int]
    outer: tuple[int, int, int, int]

    @property
    def inner(self) -> tuple[slice, slice]:
        """Rows and columns of the core inside the outer rectangle, in cells."""
        (t, le, b, r), (ot, ol, _, _) = self.core, self.outer
        return slice(t - ot, b - ot), slice(le - ol, r - ol)


def tiles(h: int, w: int, halo: int, cells: int = TILE_CELLS) -> Iterator[Tile]:
    """Cover a grid of ``h x w`` cells with tiles of at most ``cells x cells``, row by row."""
    for t in range(0, h, cells):
        for le in range(0, w, cells):
            b, r = min(t + cells, h), min(le + cells, w)
            yield Tile((t, le, b, r), (max(0, t - halo), max(0, le - halo), min(h, b + halo), min(w, r + halo)))


class Analyser(Protocol):
    """A tokenizer whose analysis net sees ``analysis_halo`` cells around its own."""

    @property
    def device(self) -> torch.device: ...
    @property
    def analysis_halo(self) -> int: ...
    def latents(self, x: Tensor) -> Tensor: ...


class Tileable(Analyser, Protocol):
    """A tokenizer whose nets obey the locality rule, such as :class:`~.grid.ImageGrid`."""

    quantizer: Any

    @property
    def synthesis_halo(self) -> int: ...
    def spec(self, size: tuple[int, ...], **about: Any) -> TokenSpec: ...
    def pixels(self, codes: Tensor, synthesis: str | None = None) -> Tensor: ...
    def check_tokens(self, tokens: Tokens) -> None: ...
    def require_float32(self) -> None: ...


Progress = Callable[[float], None]  # told the share that is done


def analyse_tiles(
    model: Analyser, pixels: Tensor, cells: int = TILE_CELLS, progress: Progress | None = None
) -> Iterator[tuple[tuple[slice, slice], Tensor]]:
    """Rows and columns of the cells of each tile of a picture ``[H, W, C]`` uint8, and their latents
    ``[1, D, h, w]``."""
    h, w = (-(-n // STRIDE) for n in pixels.shape[:2])
    todo = list(tiles(h, w, model.analysis_halo, cells))
    for i, tile in enumerate(todo):
        t, le, b, r = tile.outer
        x = pixels[t * STRIDE : b * STRIDE, le * STRIDE : r * STRIDE].to(model.device)
        x = x.permute(2, 0, 1)[None].expand(-1, 3, -1, -1).float() / 255  # [1, 3, <=16(b-t), <=16(r-le)]
        x = F.pad(x, (0, -x.shape[3] % STRIDE, 0, -x.shape[2] % STRIDE), mode="replicate")
        rows, columns = tile.inner
        t, le, b, r = tile.core
        yield (slice(t, b), slice(le, r)), model.latents(x)[..., rows, columns]
        if progress is not None:
            progress((i + 1) / len(todo))


def paint_tiles(
    size: tuple[int, int],
    channels: int,
    halo: int,
    paint: Callable[[tuple[slice, slice]], Tensor],
    *,
    cells: int = TILE_CELLS,
    progress: Progress | None = None,
) -> Tensor:
    """A picture ``[H, W, channels]`` uint8 on the CPU.

    Args: channels: 3, or 1 for the mean of the three.  halo: cells that the synthesis net sees around its own.
          paint: rows and columns of cells to their pixels ``[3, 16h, 16w]`` in [0, 1].
    """
    out = torch.empty(*size, channels, dtype=torch.uint8)
    h, w = (-(-n // STRIDE) for n in size)
    todo = list(tiles(h, w, halo, cells))
    for i, tile in enumerate(todo):
        t, le, b, r = tile.outer
        x_hat = paint((slice(t, b), slice(le, r)))
        rows, columns = (slice(s.start * STRIDE, s.stop * STRIDE) for s in tile.inner)
        x_hat = x_hat[:, rows, columns]
        if channels == 1:
            x_hat = x_hat.mean(0, keepdim=True)
        t, le, b, r = (STRIDE * edge for edge in tile.core)
        target = out[t:b, le:r]
        target.copy_((x_hat * 255).round().byte().permute(1, 2, 0)[: target.shape[0], : target.shape[1]])
        if progress is not None:
            progress((i + 1) / len(todo))
    return out


@torch.no_grad()
def encode_tiled(model: Tileable, pixels: Tensor, cells: int = TILE_CELLS, progress: Progress | None = None) -> Tokens:
    """Encode one picture tile by tile.

    Args:    pixels: ``[H, W, C]`` uint8 on the CPU, C = 1 or 3.  cells: tile edge in grid cells.
    Returns: tokens with codes ``[1, K, h, w]`` on the CPU, those of ``model.encode`` on the whole picture.
    Memory:  one tile with its halo, whatever H and W are.
    """
    model.require_float32()
    height, width, _ = pixels.shape
    spec = model.spec((height, width))
    codes = torch.empty(1, len(spec.codebook_sizes), *spec.grid, dtype=torch.int64)
    for (rows, columns), z_e in analyse_tiles(model, pixels, cells, progress):
        codes[..., rows, columns] = model.quantizer.encode(z_e).cpu()
    return Tokens(codes, spec)


@torch.no_grad()
def decode_tiled(
    model: Tileable,
    tokens: Tokens,
    channels: int = 3,
    synthesis: str | None = None,
    cells: int = TILE_CELLS,
    progress: Progress | None = None,
) -> Tensor:
    """One picture ``[H, W, channels]`` uint8 from its tokens ``[1, k, h, w]``, tile by tile."""
    model.check_tokens(tokens)

    def paint(box: tuple[slice, slice]) -> Tensor:
        rows, columns = box
        return model.pixels(tokens.codes[..., rows, columns].to(model.device), synthesis)[0]

    height, width = tokens.spec.size
    return paint_tiles((height, width), channels, model.synthesis_halo, paint, cells=cells, progress=progress)
