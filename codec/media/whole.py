"""Whether a file ends before it says it would, or after that, by the sizes that its container states.

Formats that are written as a stream state none, or a placeholder; then nothing can be said, and nothing is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import BinaryIO

_PLACEHOLDER = 0x7FFFF000  # sizes from here on were written by a stream that did not know its end
_XING = 4096  # bytes in which a first frame of MP3 lies
_FRAME = 1024  # bytes of it, which some count and some do not
_MOST_BOXES = 10_000
_TAG = 4096  # bytes that may lie between two files
_MOST_TAGS = 1 << 20
_EBML = b"\x1a\x45\xdf\xa3"


@dataclass(frozen=True)
class Extent:
    """Of a file in bytes, 0 if nobody knows.

    Attributes:
        missing: that it lacks at its end, at least.
        further: of a further file that follows it.
        whole: up to the last box of ISO media that is whole, if the next one is not.
    """

    missing: int = 0
    further: int = 0
    whole: int = 0

    @property
    def lacks(self) -> str | None:
        """What is missing, for messages."""
        return f"cut off: at least {self.missing} bytes are missing at its end" if self.missing else None

    @property
    def problems(self) -> list[str]:
        """A line each."""
        return [f"a further file of {self.further} bytes follows in it and is not read"] if self.further else []


def extent(file: BinaryIO) -> Extent:
    """Of a file that can seek, from where it stands, and there it is left."""
    begin = file.tell()
    try:
        head = file.read(64)
        size = file.seek(0, io.SEEK_END) - begin
        missing = max(0, _stated(file, begin, head, size) - size)
        whole = 0
        if missing and head[4:8] == b"ftyp":
            stops = [stop - begin for _, _, stop in _top_boxes(file, begin, size)]
            whole = max((stop for stop in stops if stop <= size), default=0)
        return Extent(missing, _further(file, begin, head, size), whole)
    finally:
        file.seek(begin)


def _further(file: BinaryIO, begin: int, head: bytes, size: int) -> int:
    """Bytes of a second file of the same format behind one whose demuxer stops at its end (or takes its head for
    samples); of Matroska of a third one."""
    if head[:4] in (b"RIFF", b"RIFX", b"FORM") and head[8:12] != b"AVI ":
        length = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        file.seek(begin + 8 + length + length % 2)
        return size - 8 - length - length % 2 if file.read(4) == head[:4] else 0
    if head[:4] in (b"caff", b"riff", b"TTA1", b"FLV\x01", b"RF64", b"BW64", b".snd", b"wvpk"):
        end = _stated(file, begin, head, size)
        file.seek(begin + end)
        at = file.read(_TAG).find(head[:4]) if 0 < end < size else -1
        return size - end - at if at >= 0 else 0
    if head[4:8] == b"ftyp":
        heads = [start - 8 for kind, start, _ in _top_boxes(file, begin, size) if kind == b"ftyp"]
        return begin + size - heads[1] if len(heads) > 1 else 0
    if head[:4] == _EBML:
        heads = [start for kind, start, _ in _elements(file, begin, size) if kind == _EBML]
        return begin + size - heads[2] if len(heads) > 2 else 0
    return 0


def _stated(file: BinaryIO, begin: int, head: bytes, size: int) -> int:
    """Bytes that a file says it has, at least, from its beginning on."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] in (b"WAVE", b"AVI "):
        return _riff(file, begin, size, "big" if head[:4] == b"RIFX" else "little")
    if head[:4] == b"FORM":
        return 8 + int.from_bytes(head[4:8], "big")
    if head[:4] == b"riff":  # Sony Wave64
        stated = int.from_bytes(head[16:24], "little")
        return stated if stated < 1 << 62 else 0
    if head[:4] == b"caff":
        return _caf(file, begin, size)
    if head[:3] == b"TTA":
        return _tta(file, begin, head)
    if head[:4] == b"FLV\x01":
        return _flv(file, begin, size)
    if head[:4] == b".snd":
        length = int.from_bytes(head[8:12], "big")
        return int.from_bytes(head[4:8], "big") + length if length < _PLACEHOLDER else 0
    if head[:4] == b"wvpk":
        return _wavpack(file, begin, size)
    if head[:4] == _EBML:
        return max((stop for _, _, stop in _elements(file, begin, size)), default=begin) - begin
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        last = max((stop for _, _, stop in _top_boxes(file, begin, size)), default=begin)
        return last - begin
    if head[:4] == b"OggS":
        return _ogg(file, begin, size)
    if head[:3] == b"ID3" or head[:1] == b"\xff":
        return _mp3(file, begin, head)
    return 0


def _riff(file: BinaryIO, begin: int, size: int, order: str) -> int:
    """By the first chunks; the size of the whole, which streams leave at 0, counts only if that of the data does.

    Sizes of large files are in a chunk of their own (EBU Tech 3306, ds64).
    """
    at, most, large = begin + 12, 0, 0
    for _ in range(64):
        file.seek(at)
        chunk = file.read(8)
        length = int.from_bytes(chunk[4:], order)  # type: ignore[arg-type]
        if len(chunk) < 8 or min(chunk[:4]) < 0x20:  # padding
            return most
        if chunk[:4] == b"ds64":
            large = int.from_bytes(file.read(16)[8:], "little")
        if chunk[:4] == b"data" and length == 0xFFFFFFFF and 0 < large < 1 << 62:
            length = large
        elif chunk[:4] in (b"data", b"LIST") and length >= _PLACEHOLDER:
            return 0
        most = at + 8 + length - begin
        if chunk[:4] == b"data" or most > size:
            return most
        at += 8 + length + length % 2
    return most


def _wavpack(file: BinaryIO, begin: int, size: int) -> int:
    """Where the block ends that holds the last of as many samples as the first one states; 0 if that is not there."""
    at, total = begin, 0
    while at - begin + 32 <= size:
        file.seek(at)
        block = file.read(32)
        length, stated, first, n, flags = (int.from_bytes(block[i : i + 4], "little") for i in (4, 12, 16, 20, 24))
        total = total or stated
        if block[:4] != b"wvpk" or total == 0xFFFFFFFF:
            return 0
        at += 8 + length
        if n and first + n >= total and flags & 0x1000:  # the last of the blocks that share its channels
            return at - begin
    return 0


def _caf(file: BinaryIO, begin: int, size: int) -> int:
    at = begin + 8
    for _ in range(64):
        file.seek(at)
        chunk = file.read(12)
        length = int.from_bytes(chunk[4:], "big", signed=True)
        if len(chunk) < 12 or chunk[:4] == b"caff":
            break
        if length < 0:  # a stream
            return 0
        at += 12 + length
        if at - begin > size:
            break
    return at - begin


def _tta(file: BinaryIO, begin: int, head: bytes) -> int:
    """By the table of its frames (tausoft.org, True Audio codec: the header)."""
    rate, samples = (int.from_bytes(head[at : at + 4], "little") for at in (10, 14))
    frames = -(-samples // max(1, rate * 256 // 245))
    if head[:4] != b"TTA1" or frames > _MOST_BOXES:
        return 0
    file.seek(begin + 22)
    table = file.read(4 * frames)
    return 22 + 4 * frames + 4 + sum(int.from_bytes(table[at : at + 4], "little") for at in range(0, len(table), 4))


def _flv(file: BinaryIO, begin: int, size: int) -> int:
    """By its tags (Adobe Flash Video File Format 10.1, E.4.1)."""
    at = begin + 13
    for _ in range(_MOST_TAGS):
        file.seek(at)
        tag = file.read(4)
        if len(tag) < 4 or tag[:3] == b"FLV":
            break
        at += 15 + int.from_bytes(tag[1:], "big")
        if at - begin > size:
            break
    return at - begin


def _elements(file: BinaryIO, begin: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Id, and where they begin and end, of the elements on the top level of Matroska: EBML heads and segments
    (RFC 8794, 4 and 5; RFC 9559, 5.1). One of unknown size, a stream, is the last."""
    at = begin
    for _ in range(_MOST_BOXES):
        file.seek(at)
        data = file.read(16)
        if not data or not data[0]:
            return
        of_kind = 9 - data[0].bit_length()
        rest = data[of_kind:]
        if not rest or not rest[0]:
            return
        of_size = 9 - rest[0].bit_length()
        length = int.from_bytes(rest[:of_size], "big") - (1 << 7 * of_size)
        if len(rest) < of_size or length == (1 << 7 * of_size) - 1:
            return
        stop = at + of_kind + of_size + length
        yield data[:of_kind], at, stop
        if stop - begin >= size:
            return
        at = stop


def _ogg(file: BinaryIO, begin: int, size: int) -> int:
    """By the last page that begins (RFC 3533, 6)."""
    look = min(size, 1 << 17)  # two pages
    file.seek(begin + size - look)
    tail = file.read(look)
    page = tail.rfind(b"OggS")
    table = tail[page + 27 :]
    if page < 0:
        return 0
    if len(tail) < page + 27:
        return size + 1
    count = tail[page + 26]
    return size - look + page + 27 + count + sum(table[:count])


def _mp3(file: BinaryIO, begin: int, head: bytes) -> int:
    """By the bytes that a Xing or a VBRI header states."""
    at = begin
    while head[:3] == b"ID3":
        at += 10 + sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        file.seek(at)
        head = file.read(10)
    file.seek(at)
    padding = file.read(_XING)
    at += len(padding) - len(padding.lstrip(b"\0"))
    file.seek(at)
    first = file.read(_XING)
    if first[36:40] == b"VBRI" and len(first) >= 50:
        return at - begin + int.from_bytes(first[46:50], "big") - _FRAME
    place = max(first.find(b"Xing"), first.find(b"Info"))
    if place < 0 or place > 64 or len(first) < place + 16:  # it follows the side information of the first frame
        return 0
    flags = first[place + 7]
    if not flags & 2:
        return 0
    stated = int.from_bytes(first[place + 8 + 4 * (flags & 1) :][:4], "big")
    return at - begin + stated - _FRAME


def _top_boxes(file: BinaryIO, begin: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Those that are in no other. What has no printable type is none, and what some writers leave behind the last."""
    return takewhile(lambda box: box[0].isascii() and min(box[0]) >= 0x20, boxes(file, begin, begin + size, set()))


def boxes(
    file: BinaryIO, begin: int, end: int, nests: set[bytes], count: list[int] | None = None
) -> Iterator[tuple[bytes, int, int]]:
    """Type, and where payload begins and ends, of the boxes of an ISO base media file (ISO/IEC 14496-12, 4.2), also of
    those inside ``nests``. The last may end beyond the file. At most 10,000 are looked at."""
    count = [0] if count is None else count
    while begin + 8 <= end and count[0] < _MOST_BOXES:
        count[0] += 1
        file.seek(begin)
        head = file.read(16)
        size, kind, start = int.from_bytes(head[:4], "big"), head[4:8], begin + 8
        if size == 1:
            size, start = int.from_bytes(head[8:], "big"), begin + 16
        stop = end if size == 0 else begin + size
        if stop < start or len(kind) < 4:
            return
        yield kind, start, stop
        if kind in nests:
            yield from boxes(file, start, min(stop, end), nests, count)
        begin = stop
