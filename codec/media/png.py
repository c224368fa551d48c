"""PNG files by their chunks: whether all samples are there, and a whole file of what is left of a damaged one.

Decoders are lenient in silence: Pillow takes rows that are missing for black ones and does not look at the checksums of
samples. So the file is walked over once more here, in blocks, without keeping samples.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BLOCK = 1 << 20
# Bytes of payloads; others than these are damage.
_SIZES = {b"gAMA": 4, b"cHRM": 32, b"cICP": 4, b"sRGB": 1, b"pHYs": 9, b"tIME": 7, b"acTL": 8, b"fcTL": 26}
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
# Adam7: first column, first row, step of columns, step of rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


@dataclass
class PngScan:
    """What the chunks of a file say.

    Attributes:
        width, height, bits: of the header.
        row: bytes of a row and its filter, 0 if the file is interlaced.
        size: bytes of all rows.
        got: bytes of them that could be inflated.
        chunks: type and, of text, keyword of all chunks but IDAT.
        colours: payloads of gAMA, cHRM and cICP.
        problems: damage, a line each.
    """

    width: int
    height: int
    bits: int
    row: int
    size: int
    got: int = 0
    chunks: list[tuple[str, str]] = field(default_factory=list)
    colours: dict[str, bytes] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def kinds(self) -> set[str]:
        return {kind for kind, _ in self.chunks}


@dataclass(frozen=True)
class _Chunk:
    kind: bytes
    payload: bytes  # all of it, or a block
    first: bool
    last: bool
    intact: bool  # told with the last block: all bytes are there, and their number and the checksum are right


def read_header(file: BinaryIO) -> PngScan | None:
    """What the header says, None if there is no intact one: before anything of the size of the picture is done."""
    file.seek(0)
    start = file.read(33)
    if len(start) < 33 or not start.startswith(PNG_SIGNATURE) or start[8:16] != b"\0\0\0\x0dIHDR":
        return None
    width, height, bits, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", start, 16)
    if not width or not height or colour not in _SAMPLES or bits not in (1, 2, 4, 8, 16):
        return None

    def row(columns: int) -> int:
        return 1 + (columns * _SAMPLES[colour] * bits + 7) // 8

    if not interlaced:
        return PngScan(width, height, bits, row(width), height * row(width))
    size = 0
    for x, y, dx, dy in _PASSES:
        columns, rows = (width - x + dx - 1) // dx, (height - y + dy - 1) // dy
        size += rows * row(columns) if columns > 0 and rows > 0 else 0
    return PngScan(width, height, bits, 0, size)


def scan_png(file: BinaryIO) -> PngScan | None:
    """Walk over a file, inflating its samples without keeping them; None if it has no intact header."""
    scan = read_header(file)
    if scan is None:
        return None
    wrong: dict[str, None] = {}
    inflater = _Inflater()
    ended = False
    head = b""
    for chunk in _chunks(file):
        kind = chunk.kind.decode("latin-1")
        head = chunk.payload[:80] if chunk.first else head
        if chunk.kind == b"IDAT":
            scan.got += sum(map(len, inflater.feed(chunk.payload, scan.size + 1 - scan.got)))
        if not chunk.last:
            continue
        if not chunk.intact:
            wrong[kind] = None
        elif chunk.kind != b"IDAT":
            keyword = head.split(b"\0")[0].decode("latin-1") if kind in ("tEXt", "zTXt", "iTXt") else ""
            scan.chunks.append((kind, " ".join(keyword.split())))
            if kind in ("gAMA", "cHRM", "cICP"):
                scan.colours.setdefault(kind, head)
        ended = ended or (chunk.kind == b"IEND" and chunk.intact)
    if scan.got < scan.size:
        rows = f"{scan.got // scan.row} of {scan.height} rows" if scan.row else f"{scan.got} of {scan.size} bytes"
        scan.problems.append(f"damaged or cut off: {rows} could be decoded, the rest is filled")
    elif inflater.broken or not ended:
        told = "checksum of the samples is wrong" if inflater.broken else "the end of the file is missing"
        scan.problems.append(told)
    if wrong and (scan.got >= scan.size or wrong.keys() - {"IDAT"}):
        scan.problems.append(f"damaged: {', '.join(kind for kind in wrong if kind.isprintable())} chunk")
    return scan


def repair_png(file: BinaryIO, scan: PngScan) -> BinaryIO:
    """A whole file of the intact chunks and of the samples that can be inflated; missing ones are 0."""
    inflater, deflater = _Inflater(), zlib.compressobj(1)
    out = io.BytesIO()
    out.write(PNG_SIGNATURE)
    samples: list[bytes] = []
    size = 0
    held: list[bytes] = []
    seen = False
    for chunk in _chunks(file):
        if chunk.first:
            held = []
        if chunk.kind == b"IDAT":
            seen = True
            for data in inflater.feed(chunk.payload, scan.size - size):
                size += len(data)
                samples.append(deflater.compress(data))
            continue
        held.append(chunk.payload)
        if chunk.last and chunk.intact and chunk.kind != b"IEND" and not seen:
            out.write(_framed(chunk.kind, b"".join(held)))
    while size < scan.size:
        fill = min(_BLOCK, scan.size - size)
        samples.append(deflater.compress(bytes(fill)))
        size += fill
    samples.append(deflater.flush())
    out.write(_framed(b"IDAT", b"".join(samples)))
    out.write(_framed(b"IEND", b""))
    out.seek(0)
    return out


def write_deep_png(file: BinaryIO, like: BinaryIO, samples: np.ndarray, level: int) -> None:
    """Write samples of 16 bits with the ancillary chunks of another file.

    Args: like: a PNG file.  samples: uint16 ``[H, W, 1 to 4]``: gray or RGB, perhaps with alpha.  level: of zlib.
    """
    height, width, channels = samples.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    file.write(PNG_SIGNATURE)
    file.write(_framed(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)))
    written = False
    held: list[bytes] = []
    for chunk in _chunks(like):
        held = [chunk.payload] if chunk.first else [*held, chunk.payload]
        if chunk.kind == b"IDAT" and not written:
            _write_rows(file, samples, level)
            written = True
        if chunk.last and chunk.kind not in (b"IHDR", b"IDAT"):
            file.write(_framed(chunk.kind, b"".join(held)))


def _write_rows(file: BinaryIO, samples: np.ndarray, level: int) -> None:
    """IDAT chunks: each row as differences to the pixel before it, or to the row above (filters 1 and 2)."""
    _, width, channels = samples.shape
    deflater = zlib.compressobj(level)
    above = np.zeros(2 * width * channels, np.uint8)
    for row in samples:
        raw = np.ascontiguousarray(row, dtype=">u2").reshape(-1).view(np.uint8)
        before = np.concatenate([np.zeros(2 * channels, np.uint8), raw[: -2 * channels]])
        tries = (raw - before, raw - above)
        costs = [int(np.abs(found.view(np.int8).astype(np.int16)).sum()) for found in tries]
        best = costs[1] < costs[0]
        if data := deflater.compress(bytes([1 + best]) + tries[best].tobytes()):
            file.write(_framed(b"IDAT", data))
        above = raw
    file.write(_framed(b"IDAT", deflater.flush()))


def _framed(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(payload, zlib.crc32(kind)))


class _Inflater:
    """Inflates a stream as far as it goes. broken: it went no further, since something in it is wrong."""

    def __init__(self) -> None:
        self.state, self.broken = zlib.decompressobj(), False

    def feed(self, data: bytes, most: int) -> Iterator[bytes]:
        """What comes out of more of the stream, in blocks, ``most`` bytes at most."""
        while data and most > 0 and not self.state.eof and not self.broken:
            before = self.state.copy()
            try:
                block = self.state.decompress(data, min(_BLOCK, most))
                data = self.state.unconsumed_tail
            except zlib.error:  # nothing is given back of what came before the fault: go there in steps
                self.state = before
                block, self.broken = self._to_the_fault(data, most), True
            most -= len(block)
            yield block

    def _to_the_fault(self, data: bytes, most: int) -> bytes:
        out = bytearray()
        with suppress(zlib.error):
            for i in range(len(data)):
                if len(out) >= min(_BLOCK, most):
                    break
                out += self.state.decompress(self.state.unconsumed_tail + data[i : i + 1], min(_BLOCK, most) - len(out))
        return bytes(out)


def _chunks(file: BinaryIO) -> Iterator[_Chunk]:
    """All chunks in blocks, up to IEND or the end of the file."""
    file.seek(len(PNG_SIGNATURE))
    while len(head := file.read(8)) == 8:
        left, kind = struct.unpack(">I4s", head)
        fits = _SIZES.get(kind, left) == left
        crc = zlib.crc32(kind)
        first = True
        while True:
            block = file.read(min(left, _BLOCK))
            left -= len(block)
            crc = zlib.crc32(block, crc)
            if left and block:
                yield _Chunk(kind, block, first, last=False, intact=False)
                first = False
                continue
            intact = not left and file.read(4) == struct.pack(">I", crc) and fits
            yield _Chunk(kind, block, first, last=True, intact=intact)
            break
        if kind == b"IEND" or left:
            return
