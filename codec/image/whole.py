"""Windows that are exact as a whole, as payloads of EXCT: by the coder of pixels, or as WebP where that is smaller.

A map of no blocks, which says nothing otherwise, says that a method follows::

    map of 0 bits | method | bits a sample, 8 or 16 | largest error | hash of the nets | payload of the coder
"""

from __future__ import annotations

import struct
from functools import cache

import numpy as np
import numpy.typing as npt

from ...entropy.pixels.coder import PixelCoder
from ...entropy.pixels.net import CODED
from ...tokenizers.folders import ASSETS
from .exact import blocks_of, pack_exact

NETS = "image-lossless"  # the release whose nets code pixels
PIXELS, FITTED = 1, 2  # methods: the nets alone, which is not written any more, and corrected for the picture
_HEAD = struct.Struct("<BBH8s")

Samples = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]  # [H, W, 1 or 3]


@cache
def pixel_coder() -> PixelCoder:
    """The coder of the release."""
    return PixelCoder.from_pretrained(ASSETS / NETS)


def pack_whole(pixels: Samples, error: int = 0) -> tuple[bytes, Samples]:
    """The smallest payload of a window, and the values it holds, which differ from ``pixels`` by ``error`` at most."""
    bits, order = 8 * pixels.itemsize, _order(pixels.shape[2])
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)[order]).astype(np.uint16)
    coder = pixel_coder()
    payload, shown = coder.compressed(planes, bits, error, fitted=True)
    head = _HEAD.pack(FITTED, bits, error, bytes.fromhex(coder.hash))
    found = bytes(_map_bytes(pixels.shape)) + head + payload, _ordered(shown, bits)
    if bits > 8:
        return found
    colour = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).astype(np.uint8)
    webp = pack_exact(colour, np.ones(blocks_of(pixels.shape[:2]), dtype=bool), method=5)
    return found if len(found[0]) < len(webp) else (webp, pixels)


def bits_of(payload: bytes, size: tuple[int, int]) -> int | None:
    """Bits a sample of a payload of :func:`pack_whole`, None if it is one of blocks."""
    at = _map_bytes(size)
    if not payload or len(payload) <= at or any(payload[:at]):
        return None
    return payload[at + 1] if len(payload) > at + 1 else 0


def unpack_whole(payload: bytes, size: tuple[int, int], channels: int) -> Samples:
    """The window ``[H, W, channels]`` of a payload that has bits. Raises ValueError if it is damaged."""
    at = _map_bytes(size)
    if len(payload) < at + _HEAD.size:
        raise ValueError("a payload of pixels is cut short")
    method, bits, error, made = _HEAD.unpack_from(payload, at)
    if method not in (PIXELS, FITTED) or bits not in (8, 16) or error >= 1 << bits:
        raise ValueError(f"pixels are coded by method {method} with {bits} bits, which is unknown")
    coder = pixel_coder()
    if made.hex() != coder.hash:
        raise ValueError(f"pixels are coded with nets {made.hex()}, those of {NETS} are {coder.hash}")
    planes = coder.decompress(payload[at + _HEAD.size :], (channels, *size), bits, error, method == FITTED)
    return _ordered(planes, bits)


def _map_bytes(size: tuple[int, ...]) -> int:
    rows, columns = blocks_of(size[:2])
    return -(-rows * columns // 8)


def _ordered(planes: npt.NDArray[np.uint16], bits: int) -> Samples:
    """``[H, W, C]`` of planes as they are coded."""
    return planes[np.argsort(_order(len(planes)))].transpose(1, 2, 0).astype(f"uint{bits}")


def _order(channels: int) -> list[int]:
    return list(CODED) if channels == len(CODED) else [0]
