"""The bytes of the frames of `video-motion`, see FORMAT.md."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..image.layers import STRIDE
from ..image.photo import WINDOW as STILL_WINDOW
from ..image.tiling import tiles

WINDOW = 128  # cells, of a frame that has references
GUESSED = 0xFFFF  # in place of a quality: the frame is what its references make expect, and nothing follows
STANDS_ALONE = 0x8000  # beside a quality, in a frame that has references: they do not help, it stands alone
_QUALITY = struct.Struct("<H")


class Record(NamedTuple):
    """The bytes of a frame: its quality in hundredths, with :data:`STANDS_ALONE` or as :data:`GUESSED`, and a stream
    for each window (m and y, or y alone)."""

    quality: int
    streams: list[bytes]


def _quality(data: bytes, at: int = 0) -> int:
    return int(_QUALITY.unpack_from(data, at)[0])


def pack_record(quality: int, streams: Sequence[bytes] = ()) -> bytes:
    """Of a frame of such streams."""
    return _QUALITY.pack(quality) + b"".join(map(pack_stream, streams))


def marked_alone(data: bytes) -> bytes:
    """The record of a frame that has references and stands alone, from that of one which has none."""
    return _QUALITY.pack(_quality(data) | STANDS_ALONE) + data[_QUALITY.size :]


def unmarked_alone(data: bytes) -> bytes | None:
    """Inverse of :func:`marked_alone`; None for the record of a frame that does not stand alone."""
    quality = _quality(data)
    if quality == GUESSED or not quality & STANDS_ALONE:
        return None
    return _QUALITY.pack(quality ^ STANDS_ALONE) + data[_QUALITY.size :]


def pack_stream(stream: bytes) -> bytes:
    """Its length as LEB128, and the stream."""
    out, left = bytearray(), len(stream)
    while left >= 0x80:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes(out) + bytes([left]) + stream


def read_records(data: bytes, alone: Sequence[bool], size: tuple[int, int]) -> Iterator[Record]:
    """Records of frames, one after another. alone: of each, whether it has no references. Raises ValueError."""
    h, w = grid_of(size)
    at = 0
    for own in alone:
        if at + 2 > len(data):
            raise ValueError("a frame ends in its quality")
        quality, at = _quality(data, at), at + _QUALITY.size
        guessed = quality == GUESSED and not own
        one = own or bool(quality & STANDS_ALONE)  # stream for each window
        n = len(list(tiles(h, w, 0, STILL_WINDOW if one else WINDOW))) * (1 if one else 2)
        streams = []
        for _ in range(0 if guessed else n):
            length, at = _length(data, at)
            streams.append(data[at : at + length])
            at += length
        yield Record(quality, streams)
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes follow the frames")


def only(records: Iterator[Record]) -> Record:
    """The one record that there is."""
    (record,) = records
    return record


def _length(data: bytes, at: int) -> tuple[int, int]:
    """A length as LEB128 that the data can hold, and where it ends. Raises ValueError."""
    length = 0
    for i, byte in enumerate(data[at : at + 5]):
        length |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if length > len(data) - at - i - 1 or (i and not byte):
                break
            return length, at + i + 1
    raise ValueError("a frame ends in one of its streams")


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    """Cells of a frame."""
    return -(-size[0] // STRIDE), -(-size[1] // STRIDE)
