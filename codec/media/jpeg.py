"""JPEG files by their segments: what a decoder would warn of, and how much work it would have.

Pillow passes no warnings of libjpeg on, which fills what it cannot read with grey and says that all is well. So the
segments are walked over here (ITU-T T.81, annex B): is the end there, do restart markers follow each other, and are
there runs of bytes between them that no coder writes, such as zeros where a transfer or a disk failed? And FFmpeg's
decoder, which can be told to stop at the first code that makes no sense, reads the samples a second time.

Not all damage can be seen: codes that were changed into other codes are a picture, too.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

JPEG_END = b"\xff\xd9"
_NEXT = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # any marker but a restart; FF 00 is a sample, FF FF a filler
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_HUFFMAN = frozenset({0xC0, 0xC1, 0xC2})  # what FFmpeg decodes
_MOST_PIXELS = 1 << 26  # of a second opinion: FFmpeg takes no more than a few times as many
_RUN = 64  # bytes of zeros, or of 255, in a row
_LONG_XMP = b"http://ns.adobe.com/xmp/extension/\0"


@dataclass
class JpegScan:
    """What the segments of a file say.

    Attributes:
        scans: passes over the picture.  progressive: whether all coefficients are held in memory.
        samples: bytes of all scans.  ended: whether the end marker was found.
        cut: where the bytes begin that no decoder gets over, if there are any.
        long_xmp: whether there is XMP beyond the first segment.
        problems: damage, a line each.
    """

    scans: int = 0
    progressive: bool = False
    samples: int = 0
    ended: bool = False
    cut: int | None = None
    long_xmp: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass
class _Tables:
    """Huffman tables of AC coefficients: the value whose code is all zeros, by number of the table."""

    zeros: dict[int, int] = field(default_factory=dict)

    def define(self, segment: bytes) -> None:
        at = 0
        while at + 17 <= len(segment):
            count = sum(segment[at + 1 : at + 17])
            if segment[at] >> 4 == 1 and at + 17 < len(segment):
                self.zeros[segment[at] & 15] = segment[at + 17]
            at += 17 + count

    def plain(self, header: bytes, progressive: bool) -> bool:
        """Whether a scan with this header may hold long runs of zeros: where they say that nothing follows in any
        component, as in a picture of one colour, or where they are bits of refinement."""
        count = header[0] if header else 0
        if len(header) < 1 + 2 * count + 3:
            return True
        first, last, bits = header[1 + 2 * count : 4 + 2 * count]
        if progressive and (first == 0 or bits >> 4):  # DC, or refined
            return True
        used = {header[2 + 2 * i] & 15 for i in range(count)}
        return last == 0 or all(self.zeros.get(table, 0) & 15 == 0 for table in used)


def scan_jpeg(data: bytes) -> JpegScan:
    """Walk over the segments of a file up to the end of its first picture."""
    scan, tables = JpegScan(), _Tables()
    frame, sides, components = 0, (0, 0), 0
    core = [data[:2]]  # what samples are decoded with
    at = 2
    while at < len(data):
        at = data.find(b"\xff", at)
        if at < 0:
            break
        while at < len(data) and data[at] == 0xFF:
            at += 1
        if at >= len(data):
            break
        kind = data[at]
        at += 1
        if kind == 0xD9:
            scan.ended = True
            break
        if kind in (0x00, 0x01) or 0xD0 <= kind <= 0xD8:
            continue
        if at + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, at)
        segment = data[at + 2 : at + length]
        if length < 2 or at + length > len(data):
            break
        begin = at - 2
        at += length
        if kind == 0xC4:
            tables.define(segment)
        elif kind in _FRAMES:
            frame, scan.progressive = kind, kind in _PROGRESSIVE
            if len(segment) >= 6:
                _, *size, components = struct.unpack_from(">BHHB", segment)
                sides = size[0], size[1]
        elif kind == 0xE1 and segment.startswith(_LONG_XMP):
            scan.long_xmp = True
        elif kind == 0xDA:
            found = _NEXT.search(data, at)
            end = found.start() if found else len(data)
            scan.scans += 1
            scan.samples += end - at
            _check_samples(data, at, end, scan, frame > 0xC8 or tables.plain(segment, scan.progressive))
            at = end
        if kind < 0xE0:  # neither a description nor a comment, which FFmpeg is particular about
            core.append(data[begin:at])
    usual = frame in _HUFFMAN and components in (1, 3) and 0 < sides[0] * sides[1] <= _MOST_PIXELS
    if scan.ended and not scan.problems and usual and _makes_no_sense(b"".join([*core, JPEG_END])):
        scan.problems.append("damaged: samples that make no sense, decoded as far as it goes")
    if not scan.ended:
        scan.problems.append("the end of the file is missing: decoded as far as it goes, what was not there is filled")
    return scan


def _check_samples(data: bytes, start: int, end: int, scan: JpegScan, zeros: bool) -> None:
    """Note runs that no coder writes, and restart markers that do not follow each other, in the bytes of a scan."""
    for byte, possible in ((b"\0", zeros), (b"\xff", False)):
        run = -1 if possible else data.find(byte * _RUN, start, end)
        if run >= 0:
            value = byte[0]
            if value:  # decoders take them for markers and what follows for anything
                scan.cut = run if scan.cut is None else scan.cut
            scan.problems.append(f"damaged: bytes that are all {value} where samples should be, from byte {run} on")
    restarts = _RESTART.finditer(data, start, end)
    if any(found[1][0] != 0xD0 + i % 8 for i, found in enumerate(restarts)):
        scan.problems.append("damaged: a part between two restart markers is missing")


def _makes_no_sense(data: bytes) -> bool:
    """Whether FFmpeg finds a code that no encoder writes. What it does not know is none."""
    import av

    context = av.CodecContext.create("mjpeg", "r")
    context.options = {"err_detect": "explode"}
    context.thread_count = 1
    try:
        context.decode(av.Packet(data))
        context.decode(None)
    except av.error.InvalidDataError:
        return True
    except av.error.FFmpegError:
        return False
    return False
