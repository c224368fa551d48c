"""Chunks of a `.tok` file: type, length, payload, CRC-32; and the layout of the payloads."""

from __future__ import annotations

import re
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from ..errors import ChunkError, HeaderError, LimitError
from .fields import STATIC, AudioHeader, read_header, write_header

# Chunk types. As in PNG the case of the first letter says what a reader that does not know the type must do: upper
# case is critical (refuse the file), lower case is ancillary (skip the chunk).
HEAD, LAYR, ALPH, EXCT, TEND = b"HEAD", b"LAYR", b"ALPH", b"EXCT", b"TEND"
ICCP, EXIF, XMPP, INDX = b"iCCP", b"eXIF", b"xMPP", b"iNDX"
TIME, AHED, AUDL = b"TIME", b"AHED", b"AUDL"  # of videos: uneven times of frames, their sound
CNTS = b"CNTS"  # counts of codes, of which static tables are made
MAX_METADATA = 16 << 20  # bytes of an ICC profile, EXIF block or XMP packet after decompression
FRAME = 12  # bytes of a chunk beside its payload: type, length, CRC-32
INDEX_ENTRY = struct.Struct("<4sBIQ")  # type, layer, segment, offset of the chunk from the start of the file
INDEX_POINTER = struct.Struct("<Q")


@dataclass(frozen=True)
class ChunkKind:
    """A kind of chunks, a row each; reader, writer and `codec info` go by it.

    Attributes:
        name: of its payloads, in `codec info` and for :func:`.write.write_tok`; "" where they count as overhead.
        begins: what its payloads begin with: "" (there is one), "segment", or "layer and segment".
        modality: of the only files that have it, "" for all.
        flag: the field of their header that says whether it is there, "" if none does.
        prior: of the only files that have it, by its number in their header; 0 for all.
        deflated: whether it is stored compressed.
        late: whether a picture's or a sound's lie behind the first layer, and not before it.
    """

    name: str = ""
    begins: str = ""
    modality: str = ""
    flag: str = ""
    prior: int = 0
    deflated: bool = False
    late: bool = False

    def belongs(self, modality: str) -> bool:
        """Whether files of a modality may have it."""
        return self.modality in ("", modality)


CHUNKS = {
    HEAD: ChunkKind(),
    LAYR: ChunkKind(begins="layer and segment"),
    ICCP: ChunkKind("icc", deflated=True),
    EXIF: ChunkKind("exif", deflated=True),
    XMPP: ChunkKind("xmp", deflated=True),
    ALPH: ChunkKind("alpha", modality="image", flag="alpha", late=True),
    EXCT: ChunkKind("exact", "segment", modality="image", late=True),
    CNTS: ChunkKind("counts", prior=STATIC),
    TIME: ChunkKind("time", modality="video", flag="times"),
    AHED: ChunkKind(modality="video", flag="sound"),
    AUDL: ChunkKind("sound", "segment", modality="video", flag="sound"),
    INDX: ChunkKind(),
    TEND: ChunkKind(),
}


def pack_layer_prefix(layer: int, segment: int) -> bytes:
    """What a LAYR payload starts with: the layer, and the segment as an unsigned LEB128."""
    if not 0 <= segment < 1 << 32:
        raise ValueError(f"segment {segment} is not in 0..2^32-1")
    return bytes([layer]) + pack_segment(segment)


def pack_segment(segment: int) -> bytes:
    out = bytearray()
    while segment >= 0x80:
        out.append(segment & 0x7F | 0x80)
        segment >>= 7
    out.append(segment)
    return bytes(out)


def read_layer_prefix(payload: bytes) -> tuple[int, int, int] | None:
    """Layer, segment and length of the prefix; None if it is cut off or not as :func:`pack_layer_prefix` writes it."""
    found = _read_segment(payload[1:6])
    return None if found is None else (payload[0], found[0], 1 + found[1])


def _read_segment(data: bytes) -> tuple[int, int] | None:
    """A segment at the beginning of some bytes and how many it takes, None if there is none in its shortest form."""
    segment = 0
    for i, byte in enumerate(data[:5]):
        segment |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            shortest = byte > 0 or i == 0
            return (segment, 1 + i) if shortest and segment < 1 << 32 else None
    return None


def read_prefix(kind: bytes, payload: bytes) -> tuple[int, int, int] | None:
    """Layer, segment and length of what a payload begins with, as its row in :data:`CHUNKS` says; (0, 0, 0) for
    nothing, None if it is cut off or not as it is written."""
    begins = CHUNKS[kind].begins
    if begins != "segment":
        return read_layer_prefix(payload) if begins else (0, 0, 0)
    found = _read_segment(payload)
    return None if found is None else (0, *found)


def pack_chunk(kind: bytes, payload: bytes) -> bytes:
    """Frame a payload: type, length, payload, CRC-32 over type and payload."""
    return kind + struct.pack("<I", len(payload)) + payload + struct.pack("<I", zlib.crc32(payload, zlib.crc32(kind)))


def compress_metadata(data: bytes) -> bytes:
    """Payload of iCCP, eXIF or xMPP. Raises LimitError for a block that no reader would take."""
    if len(data) > MAX_METADATA:
        raise LimitError(f"metadata of {len(data)} bytes is over {MAX_METADATA >> 20} MiB; leave it out: --keep")
    return zlib.compress(data, 9)


def decompress_metadata(payload: bytes) -> bytes:
    """Inverse of :func:`compress_metadata`, bounded by ``MAX_METADATA``. Raises ChunkError."""
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(payload, MAX_METADATA)
    except zlib.error as error:
        raise ChunkError(f"metadata is not a zlib stream: {error}") from error
    if not inflate.eof:
        raise ChunkError(f"metadata is cut short or larger than {MAX_METADATA >> 20} MiB")
    return data


def pack_counts(levels: Sequence[Sequence[int]]) -> bytes:
    """Payload of CNTS. Args: levels: how often each code of each level occurs; halved until they are below 2^16."""
    counts = [n for level in levels for n in level]
    shift = max(0, max(counts).bit_length() - 16)
    counts = [n >> shift for n in counts]
    return zlib.compress(bytes(n & 0xFF for n in counts) + bytes(n >> 8 for n in counts), 9)


def read_counts(payload: bytes, sizes: Sequence[int]) -> list[list[int]]:
    """Inverse of :func:`pack_counts` for codebooks of these sizes. Raises ChunkError."""
    total, inflate = sum(sizes), zlib.decompressobj()
    try:
        data = inflate.decompress(payload, 2 * total + 1)
    except zlib.error as error:
        raise ChunkError(f"the counts of codes are not a zlib stream: {error}") from error
    if not inflate.eof or len(data) != 2 * total:
        raise ChunkError(f"the counts of codes are not of {total} codewords")
    counts = iter([low | high << 8 for low, high in zip(data[:total], data[total:], strict=True)])
    return [[next(counts) for _ in range(n)] for n in sizes]


_RATE = struct.Struct("<II")


def pack_times(steps: Sequence[int], rate: Fraction | None) -> bytes:
    """Payload of TIME.

    Args: steps: ticks from each frame to the next one, 1 to 2^32-1.  rate: nominal frames a second, if known.
    """
    known = rate is not None and max(rate.numerator, rate.denominator) < 1 << 32
    fraction = _RATE.pack(rate.numerator, rate.denominator) if rate is not None and known else _RATE.pack(0, 1)
    packed = array("I", steps)
    if sys.byteorder == "big":
        packed.byteswap()
    return fraction + zlib.compress(packed.tobytes(), 9)


def read_times(payload: bytes, frames: int) -> tuple[array[int], Fraction | None]:
    """Inverse of :func:`pack_times` for a video of so many frames. Raises ChunkError."""
    steps = array("I")
    if len(payload) < _RATE.size:
        raise ChunkError("the times of frames are cut short")
    numerator, denominator = _RATE.unpack_from(payload)
    size = steps.itemsize * (frames - 1)
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(payload[_RATE.size :], size + 1)  # 0 would be without a limit
    except zlib.error as error:
        raise ChunkError(f"the times of frames are not a zlib stream: {error}") from error
    if not inflate.eof or len(data) != size:
        raise ChunkError(f"the times of frames are not {frames - 1}")
    steps.frombytes(data)
    if sys.byteorder == "big":
        steps.byteswap()
    if 0 in steps or not denominator:
        raise ChunkError("the times of frames do not increase")
    return steps, Fraction(numerator, denominator) if numerator else None


_START = struct.Struct("<I")


@dataclass(frozen=True)
class CodedSound:
    """The sound of a video.

    Attributes:
        header: as of a sound.
        start: samples from the beginning of the time line to the first one.
        payloads: of its segments, as those of a sound's LAYR.
    """

    header: AudioHeader
    start: int
    payloads: list[bytes]

    @property
    def head(self) -> bytes:
        """Payload of AHED."""
        return _START.pack(self.start) + write_header(self.header)


def read_sound_head(payload: bytes) -> tuple[AudioHeader, int]:
    """Header and start of a :class:`CodedSound`, from the payload of AHED. Raises HeaderError."""
    if len(payload) < _START.size:
        raise HeaderError("the header of the sound is cut short")
    header = read_header(payload[_START.size :])
    if not isinstance(header, AudioHeader):
        raise HeaderError("the header of the sound is not one of a sound")
    return header, _START.unpack_from(payload)[0]


def chunk_at(data: bytes, offset: int) -> tuple[bytes, bytes] | None:
    """Type and payload of the chunk that starts at ``offset``, or None if no intact chunk does."""
    if offset < 0 or offset + FRAME > len(data):
        return None
    kind = data[offset : offset + 4]
    (length,) = struct.unpack_from("<I", data, offset + 4)
    end = offset + 8 + length
    if end + 4 > len(data) or not kind.isalpha():
        return None
    payload = data[offset + 8 : end]
    (crc,) = struct.unpack_from("<I", data, end)
    return (kind, payload) if zlib.crc32(payload, zlib.crc32(kind)) == crc else None


def scan(data: bytes, offset: int) -> Iterator[tuple[int, bytes, bytes] | tuple[int, None, bytes]]:
    """Walk over the chunks from ``offset`` to the end.

    Yields (offset, type, payload) of intact chunks and (offset, None, b"") where damage begins. After damage it looks
    for the next intact chunk of a known type; the bytes it checks on the way are bounded by a small multiple of the
    file.
    """
    budget = 4 * len(data) + 4096
    known = re.compile(b"|".join(re.escape(kind) for kind in sorted(CHUNKS.keys() - {HEAD})))
    while offset < len(data):
        found = chunk_at(data, offset)
        if found is not None:
            yield offset, found[0], found[1]
            offset += FRAME + len(found[1])
            continue
        yield offset, None, b""
        for match in known.finditer(data, offset + 1):
            length = int.from_bytes(data[match.end() : match.end() + 4], "little")
            if match.start() + FRAME + length > len(data):  # no chunk: seen without work, so it costs nothing
                continue
            budget -= length
            if budget < 0:
                return
            if chunk_at(data, match.start()) is not None:
                offset = match.start()
                break
        else:
            return
