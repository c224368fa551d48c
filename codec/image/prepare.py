"""A picture before it is coded: what of its metadata is kept, and what lies under transparent pixels.

Privacy and colour are two switches. What tells where and with what a picture was taken (EXIF, XMP) can be left
out without a change of colours, and if the colour profile is left out the samples are converted, so that they look the
same.
"""

from __future__ import annotations

import numpy as np

from ..errors import UsageError
from ..media.picture import Picture
from ..media.profile import to_srgb
from ..media.raster import bands
from ..options import KEEP

_CELL = 16  # pixels along the edge of a cell of colours that are spread under what is transparent
_SWEEPS = 8


def prepare(picture: Picture, keep: frozenset[str] = KEEP, *, hidden: bool = False) -> Picture:
    """The picture as it is to be coded; its arrays are changed in place. What was left out is in its notes.

    Args:   hidden: keep what lies under transparent pixels.
    Raises: UsageError for 16 bits a sample whose profile is to be left out.
    """
    if not hidden and picture.alpha is not None and fill_transparent(picture.pixels, picture.alpha):
        picture.notes.append("colours under fully transparent pixels not kept")
    if "icc" not in keep and picture.icc is not None:
        if picture.pixels.itemsize > 1:
            raise UsageError("samples of 16 bits are not converted to sRGB: keep their profile")
        height, width = picture.pixels.shape[:2]
        converted = to_srgb(picture, list(bands(height, width)))
        picture.icc = None
        how = "samples converted to sRGB" if converted else "it is of no use, samples are taken as sRGB"
        picture.notes.append(f"ICC profile left out as asked: {how}")
    left_out = []
    for name in ("exif", "xmp"):
        if name not in keep and getattr(picture, name) is not None:
            setattr(picture, name, None)
            left_out.append(name.upper())
    if left_out:
        picture.notes.append(f"{' and '.join(left_out)} left out as asked")
    return picture


def coarsen_alpha(alpha: np.ndarray, quality: int) -> None:
    """Round an alpha channel, uint8 [H, W], to fewer levels in place; what is transparent or opaque stays so.

    Args:   quality: 0 to 100, for 2 to 256 levels at even steps.
    Source: the number of levels is that of WebP's ``alpha_quality`` (libwebp, src/enc/alpha_enc.c); its levels are
            fitted to the picture.
    """
    last = (2 + quality // 5 if quality <= 70 else 16 + 8 * (quality - 70)) - 1
    table = np.round(np.round(np.arange(256) * last / 255) * 255 / last).astype(np.uint8)
    for y0, y1 in bands(*alpha.shape):
        alpha[y0:y1] = table[alpha[y0:y1]]


def fill_transparent(pixels: np.ndarray, alpha: np.ndarray) -> bool:
    """Continue colours smoothly under pixels that are fully transparent, so that they cost next to nothing.

    What was there (noise, often) is not seen and has no influence on the result. Means of the visible pixels of cells
    of 16 x 16 are spread over cells without any, coarse to fine, and interpolated.

    Args:    pixels: uint8 [H, W, C], changed in place.  alpha: uint8 [H, W].
    Returns: whether there was something else under them than one colour.
    Cost:    O(H * W); beside bands of rows, memory for a colour in 256 pixels.
    """
    height, width, _ = pixels.shape
    if alpha.all():
        return False
    colours, known, varied = _cell_means(pixels, alpha)
    if not known.any():
        pixels[...] = 128
        return varied
    colours = _spread(colours, known)
    for y0, y1 in bands(height, width):
        hidden = alpha[y0:y1] == 0
        (where,) = np.nonzero(hidden.any(0))
        if not where.size:
            continue
        span = slice(where[0], where[-1] + 1)
        rows, below, y = _between(np.arange(y0, y1), colours.shape[0])
        columns, right, x = _between(np.arange(span.start, span.stop), colours.shape[1])
        lines = colours[rows] * (1 - y)[:, None, None] + colours[below] * y[:, None, None]  # [h, w, C]
        smooth = lines[:, columns] * (1 - x)[:, None] + lines[:, right] * x[:, None]  # [h, W, C]
        smooth += 0.5
        np.copyto(pixels[y0:y1, span], smooth.astype(np.uint8), where=hidden[:, span, None])
    return varied


def _cell_means(pixels: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """Mean colours of the visible pixels of cells, float32 ``[h, w, C]``; which cells have any, ``[h, w]``; and whether
    the others differ from each other."""
    height, width, channels = pixels.shape
    h, w = -(-height // _CELL), -(-width // _CELL)
    colours, known = np.zeros((h, w, channels), np.float32), np.zeros((h, w), bool)
    lowest, highest = np.full(channels, 255, np.uint8), np.zeros(channels, np.uint8)
    starts = np.arange(w) * _CELL
    for i in range(h):
        rows = slice(i * _CELL, (i + 1) * _CELL)
        visible = (alpha[rows] > 0).view(np.uint8)
        count = np.add.reduceat(visible.sum(0, dtype=np.uint16), starts)  # [w]
        shown = pixels[rows] * visible[..., None]
        sums = np.add.reduceat(shown.sum(0, dtype=np.uint16), starts)  # [w, C], at most 255 * 16 * 16: no overflow
        known[i] = count > 0
        colours[i] = sums / np.maximum(count, 1)[:, None].astype(np.float32)
        if not visible.all():
            highest = np.maximum(highest, (pixels[rows] - shown).max((0, 1)))
            lowest = np.minimum(lowest, (pixels[rows] | -visible[..., None]).min((0, 1)))
    return colours, known, bool((highest > lowest).any())


def _spread(colours: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill cells that are not known, coarse to fine: each from a cell of twice its size, then smoothed."""
    if known.all():
        return colours
    h, w = known.shape
    padded = np.zeros((h + h % 2, w + w % 2), bool)
    padded[:h, :w] = known
    weighted = np.zeros((*padded.shape, colours.shape[2]), np.float32)
    weighted[:h, :w] = colours * known[..., None]
    count = padded.reshape(padded.shape[0] // 2, 2, -1, 2).sum((1, 3))
    means = weighted.reshape(*(padded.shape[0] // 2, 2, -1, 2), colours.shape[2]).sum((1, 3))
    coarse = _spread(means / np.maximum(count, 1)[..., None], count > 0)
    filled = np.where(known[..., None], colours, coarse.repeat(2, 0).repeat(2, 1)[:h, :w])
    for _ in range(_SWEEPS):
        around = np.pad(filled, ((1, 1), (1, 1), (0, 0)), mode="edge")
        mean = (around[:-2, 1:-1] + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]) / 4
        filled = np.where(known[..., None], colours, mean)
    return filled


def _between(places: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of pixels along an axis: the cells whose centres they lie between, and the share of the second one."""
    at = np.clip((places + 0.5) / _CELL - 0.5, 0, cells - 1)
    first = np.minimum(at.astype(int), max(0, cells - 2))
    return first, np.minimum(first + 1, cells - 1), (at - first).astype(np.float32)
