"""Blocks of a picture that are kept exactly beside the codes of a lossy model, and which ones should be.

Text, charts and patterns take few bits without any loss, and many with one. So an encoder looks at what it made: where
the error that is left costs more, at the price of the quality, than the block takes as lossless WebP, the block is
exact. That is the rule of rate and distortion, and it also catches what a model breaks: an error far above what the
quality means is worth many bits. Blocks share colours and patterns, and codes around them are not free, so a window is
exact as a whole, without any codes, where that costs less than what was chosen. Work is by windows, as codes are::

    window, decoded -> choose_exact -> blocks [bh, bw] -> pack_exact -> payload -> unpack_exact -> paste_exact
    blocks -> free_cells -> cells whose codes say nothing that is seen (HyperPrior.quantise leaves them out)

A payload is the map of the blocks, a bit each in raster order from the highest bit on, then a WebP file (VP8L) of the
window in which all other blocks are black, which costs next to nothing. A window without exact blocks has the empty
payload. Only whole pixels are pasted, so there is no seam where the decoded block was good, and a clean edge where it
was not.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..media.pillow_guard import DECODER_ERRORS

BLOCK = 64  # pixels: four cells of 16
LARGEST = 1024  # pixels: edge of a window
FRAME = 30  # bytes of a WebP file that are not about its pixels
COLOURS, DENSE = 1024, 8  # a block of more colours is not tried unless its error is worth so many bits a pixel
WORTH = 64  # bits that an exact block must save
CELL = 16
_WEBP = struct.Struct("<4sI8sIBI")  # RIFF, length, WEBPVP8L, length; of the VP8L chunk its signature and header

Pixels = npt.NDArray[np.uint8]  # [H, W, 3]
Blocks = npt.NDArray[np.bool_]  # [ceil(H / 64), ceil(W / 64)]


def choose_exact(pixels: Pixels, decoded: Pixels, weight: float) -> Blocks:
    """The blocks of a window that should be exact.

    Args:
        pixels, decoded: ``[H, W, 3]``, what is to be shown and what the codes show.
        weight: lambda of the quality, bits a pixel that one unit of mean squared error of 8-bit values is worth.

    Raises: ValueError if shapes differ or the window is larger than ``LARGEST``.
    """
    if pixels.shape != decoded.shape or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"windows are [H, W, 3], got {pixels.shape} and {decoded.shape}")
    chosen = np.zeros(blocks_of(pixels.shape[:2]), dtype=bool)
    for (i, j), _ in np.ndenumerate(chosen):
        rows, columns = (slice(k * BLOCK, (k + 1) * BLOCK) for k in (i, j))
        block = pixels[rows, columns]
        error = worth(block, decoded[rows, columns], weight)
        if error <= WORTH or (error < DENSE * block[..., 0].size and _colours(block) > COLOURS):
            continue
        chosen[i, j] = 8 * max(0, len(_webp(block)) - FRAME) + WORTH < error
    return chosen


def simple_blocks(pixels: Pixels) -> Blocks:
    """The blocks with so few colours, for their size, that they are worth a try."""
    found = np.zeros([-(-edge // BLOCK) for edge in pixels.shape[:2]], dtype=bool)
    for (i, j), _ in np.ndenumerate(found):
        block = pixels[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
        found[i, j] = _colours(block) <= min(COLOURS, block[..., 0].size // 4)
    return found


def worth(pixels: Pixels, decoded: Pixels, weight: float) -> float:
    """Bits that the error of ``decoded`` is worth, ``[H, W, 3]`` both. weight: as for :func:`choose_exact`."""
    return weight * float(np.square(pixels.astype(np.int64) - decoded).sum()) / 3


def pack_exact(pixels: Pixels, blocks: Blocks, method: int = 4) -> bytes:
    """The payload of the exact blocks of a window; see the module's text. method: of WebP, 6 is slow."""
    if blocks.shape != blocks_of(pixels.shape[:2]):
        raise ValueError(f"a window of {pixels.shape[:2]} pixels has {blocks_of(pixels.shape[:2])} blocks")
    if not blocks.any():
        return b""
    shown = np.where(_mask(blocks, pixels.shape[:2]), pixels, np.uint8(0))
    return np.packbits(blocks).tobytes() + _webp(shown, method)


def is_whole(payload: bytes, size: tuple[int, int]) -> bool:
    """Whether no pixel of a window of ``size`` is lost: by its map, or pixels (whole.py) without an error."""
    n = -(-size[0] // BLOCK) * -(-size[1] // BLOCK)
    head = -(-n // 8)
    known = int.from_bytes(payload[:head], "big")
    return known == ((1 << n) - 1) << (8 * head - n) or (not known and payload[head + 2 : head + 4] == b"\0\0")


def unpack_exact(payload: bytes, size: tuple[int, int]) -> tuple[Blocks, Pixels]:
    """The exact blocks of a window of ``size`` and a picture of it, black elsewhere.

    Raises: ValueError if no :func:`pack_exact` makes this for such a window.
    """
    grid = blocks_of(size)
    if not payload:
        return np.zeros(grid, dtype=bool), np.zeros((*size, 3), dtype=np.uint8)
    n = grid[0] * grid[1]
    head = -(-n // 8)
    bits = np.unpackbits(np.frombuffer(payload[:head], dtype=np.uint8))
    if len(payload) <= head or bits[n:].any() or not bits.any():
        raise ValueError("a payload of exact blocks does not fit its window")
    blocks = bits[:n].reshape(grid) > 0
    check_lossless_webp(payload[head:], size)
    try:
        with Image.open(io.BytesIO(payload[head:]), formats=["WEBP"]) as image:
            pixels = np.array(image)
    except DECODER_ERRORS as error:
        raise ValueError("a payload of exact blocks holds no picture") from error
    if pixels[~np.broadcast_to(_mask(blocks, size), pixels.shape)].any():
        raise ValueError("a picture of exact blocks holds something beside them")
    return blocks, pixels


def check_lossless_webp(data: bytes, size: tuple[int, int]) -> None:
    """Raise ValueError unless ``data`` is a WebP file of one VP8L chunk, a picture of ``size`` without alpha.

    Nothing is decoded: a header of 25 bytes may ask for 16384 x 16384 pixels, and WebP may be lossy or move.

    Source: RFC 9649, sections 2 (the file) and 3 (VP8L: width and height less 1 in 14 bits each, alpha in 1, version 0
            in 3).
    """
    height, width = size
    kinds, bits = (b"RIFF", b"WEBPVP8L", 0x2F), width - 1 | height - 1 << 14
    if len(data) >= _WEBP.size:
        riff, whole, webp, inner, signature, found = _WEBP.unpack_from(data)
        if (riff, webp, signature, found) == (*kinds, bits) and whole + 8 == len(data) == 20 + inner + inner % 2:
            return
    raise ValueError(f"a picture of exact blocks is no lossless WebP file of {width} x {height} pixels")


def paste_exact(decoded: Pixels, payload: bytes) -> Pixels:
    """``decoded [H, W, 3]`` with the exact blocks of its payload. Raises ValueError as :func:`unpack_exact` does."""
    size = (decoded.shape[0], decoded.shape[1])
    blocks, pixels = unpack_exact(payload, size)
    return np.where(_mask(blocks, size), pixels, decoded)


def free_cells(blocks: Blocks, grid: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """The cells ``[h, w]`` of a part of a picture that need no codes: exact like the two around them on all sides.

    A synthesis net looks further than that, but what it sees two cells away hardly shows.
    """
    edge = BLOCK // CELL
    free = np.kron(blocks, np.ones((edge, edge), dtype=bool))[: grid[0], : grid[1]]
    for _ in range(2):
        inside = np.pad(free, 1, constant_values=True)  # beyond the picture nothing is seen
        for axis in (0, 1):
            before, after = (np.roll(inside, shift, axis) for shift in (1, -1))
            inside = inside & before & after
        free = inside[1:-1, 1:-1]
    return free


def blocks_of(size: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of blocks of a window. Raises ValueError if it is none."""
    if not 1 <= min(size) <= max(size) <= LARGEST:
        raise ValueError(f"a window has 1 to {LARGEST} pixels a side, got {size}")
    return -(-size[0] // BLOCK), -(-size[1] // BLOCK)


def _mask(blocks: Blocks, size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """The pixels of blocks, ``[H, W, 1]``."""
    return np.kron(blocks, np.ones((BLOCK, BLOCK), dtype=bool))[: size[0], : size[1], None]


def _colours(block: Pixels) -> int:
    packed = block.reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    return int(np.unique(packed).size)


def _webp(pixels: Pixels, method: int = 4) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "WEBP", lossless=True, quality=100, method=method)
    return out.getvalue()
