"""The `.tok` file: bytes <-> header, chunks, layers. FORMAT.md specifies it; this module is its only reader and writer.

::

    signature  version | HEAD | iCCP eXIF | LAYR (layer 0 of every segment) | ALPH | LAYR (layer 1) ... | iNDX | TEND
    of a video:        | HEAD | TIME AHED | LAYR AUDL ... (by time) | TEND

Segments are squares of a picture's grid, or spans of time.

Needs nothing but the standard library, so `codec info` answers without torch.
"""

from __future__ import annotations

import math
import re
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from .errors import ChunkError, HeaderError, LimitError, SignatureError, TruncatedError, VersionError

# Like PNG's: not ASCII, shows CR/LF conversion, stops `type` on DOS.
SIGNATURE = b"\x89TOK\r\n\x1a\n"
VERSION = 1

# Chunk types. As in PNG the case of the first letter says what a reader that does not know the type must do: upper
# case is critical (refuse the file), lower case is ancillary (skip the chunk).
HEAD, LAYR, ALPH, TEND = b"HEAD", b"LAYR", b"ALPH", b"TEND"
ICCP, EXIF, INDX = b"iCCP", b"eXIF", b"iNDX"
TIME, AHED, AUDL = b"TIME", b"AHED", b"AUDL"  # of videos: uneven times of frames, their sound
KNOWN = {HEAD, LAYR, ALPH, TEND, ICCP, EXIF, INDX, TIME, AHED, AUDL}

# Limits, see FORMAT.md section "Limits".
MAX_LAYERS = 64
MAX_SIDE = 1 << 20
MAX_PIXELS = 1 << 28  # default of readers and writers, raised by --max-pixels
MAX_SEGMENT = 128  # cells: bounds what one chunk, however short, can ask a decoder to do
MAX_FRAMES = 1024  # the same of a sound's or a video's segment
MAX_CLIP = 1 << 24  # frames of a video
MAX_TICK = (1 << 31) - 1  # of both parts of its fraction, as FFmpeg has it
MAX_GROUP = 64  # frames of a video's cell
MAX_CELLS = 1 << 23  # of a video's segment
MAX_CHANNELS = 8
RATES = (1000, 768_000)  # samples a second that make sense
MAX_SAMPLES = 1 << 33  # of all channels, default of readers and writers, raised by --max-samples
MAX_METADATA = 16 << 20  # bytes of an ICC profile or EXIF block after decompression
MAX_MISSING = 8  # refuse a file in which fewer than 1 in 8 segments have their first layer

FRAME = 12  # bytes of a chunk beside its payload: type, length, CRC-32
INDEX_ENTRY = struct.Struct("<4sBIQ")  # type, layer, segment, offset of the chunk from the start of the file
INDEX_POINTER = struct.Struct("<Q")

PEEK = len(SIGNATURE) + 1 + 8 + 1  # bytes up to the modality

# Wire constants. Numbers are never reused.
IMAGE, AUDIO, VIDEO = 1, 2, 3
MODALITIES = {IMAGE: "image", AUDIO: "audio", VIDEO: "video"}
KINDS = {IMAGE: "a picture", AUDIO: "a sound", VIDEO: "a video"}  # in messages
PRIORS = {1: "static", 2: "context", 3: "hyperprior", 4: "tail", 5: "fit"}
HYPERPRIOR = 3  # files of models whose rate dial is a quality: photo.py reads and writes them
TAIL = 4  # files of models whose rate dial is the number of tokens
FIT = 5  # videos whose segments hold networks of their own


@dataclass(frozen=True)
class Field:
    """One field of the header.

    kind: "u8", "u16", "u32", "edge" (a byte, in which 0 stands for 256), "hash" (8 bytes, shown as 16 hex digits) or
        "name" (u8 length, then ASCII).
    low, high: allowed range of a number.  names: what the values of an enumeration are called.
    optional: a number that is 0 where the header ends before it. Only the last fields may be optional; a writer leaves
    out those at the end that are 0.
    """

    name: str
    kind: str
    meaning: str
    low: int = 0
    high: int = 0xFFFFFFFF
    names: Mapping[int, str] | None = None
    optional: bool = False

    def check(self, value: Any) -> None:
        """Raise HeaderError for a value that this field cannot hold."""
        if self.kind == "name":
            if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,63}", value):
                raise HeaderError(f"header field {self.name}: {value!r} is not a model name")
        elif self.kind == "hash":
            if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{16}", value):
                raise HeaderError(f"header field {self.name}: {value!r} is not 16 hex digits")
        elif not isinstance(value, int) or not self.low <= value <= self.high:
            raise HeaderError(f"header field {self.name}: {value} is not in {self.low}..{self.high}")
        elif self.names is not None and value not in self.names:
            raise HeaderError(f"header field {self.name}: {value} is not one of {', '.join(map(str, self.names))}")


# One table drives the writer, the reader, `codec info` and the table in FORMAT.md (tests/test_format_md.py).
COMMON_FIELDS = (
    Field("modality", "u8", "kind of signal", names=MODALITIES),
    Field("model", "name", "name of the tokenizer"),
    Field("weights_hash", "hash", "first 8 bytes of the SHA-256 of the model's model.safetensors, unpacked"),
    Field("prior", "u8", "kind of entropy model", names=PRIORS),
    Field("prior_hash", "hash", "first 8 bytes of the SHA-256 of the entropy model's file, unpacked"),
    Field("layers", "u8", "layers that the complete file holds, coarse to fine", 1, MAX_LAYERS),
)
MODALITY_FIELDS: dict[int, tuple[Field, ...]] = {
    IMAGE: (
        Field("height", "u32", "rows of pixels", 1, MAX_SIDE),
        Field("width", "u32", "columns of pixels", 1, MAX_SIDE),
        Field("stride", "edge", "pixels a grid cell spans along each axis", 1, 256),
        Field("segment", "u8", "edge of a segment in grid cells", 1, MAX_SEGMENT),
        Field("channels", "u8", "colour", names={1: "gray", 3: "rgb"}),
        Field("alpha", "u8", "whether an ALPH chunk belongs to the picture", names={0: "no", 1: "yes"}),
        Field("bit_depth", "u8", "bits a sample of the source had (decoded to 8)", names={8: "8", 16: "16"}),
        Field("quality", "u16", "quality dial in hundredths; 0 for models without one", 0, 10_000, optional=True),
    ),
    AUDIO: (
        Field("samples", "u32", "samples of each channel", 1),
        Field("sample_rate", "u32", "samples a second of each channel, Hz", *RATES),
        Field("channels", "u8", "channels of the sound", 1, MAX_CHANNELS),
        Field("signals", "u8", "signals that are coded, see \"Sounds\"", 1, MAX_CHANNELS),
        Field("bit_depth", "u8", "bits a sample of the source had", names={8: "8", 16: "16", 24: "24"}),
        Field("coded_rate", "u32", "samples a second of the signals, Hz", *RATES),
        Field("stride", "u16", "samples of a signal that a frame spans", 1, 65535),
        Field("segment", "u16", "frames of a segment", 1, MAX_FRAMES),
    ),
    VIDEO: (
        Field("height", "u32", "rows of pixels", 1, MAX_SIDE),
        Field("width", "u32", "columns of pixels", 1, MAX_SIDE),
        Field("stride", "edge", "pixels a grid cell spans along height and width", 1, 256),
        Field("frames", "u32", "frames of the video", 1, MAX_CLIP),
        Field("group", "u8", "frames a grid cell spans, but the first one of a segment spans one", 1, MAX_GROUP),
        Field("segment", "u16", "frames of a segment: 1 and a multiple of group", 1, MAX_FRAMES),
        Field("tick_seconds", "u32", "a tick of the clock lasts tick_seconds / tick_parts seconds", 1, MAX_TICK),
        Field("tick_parts", "u32", "the divisor of that", 1, MAX_TICK),
        Field("start", "u32", "ticks from the beginning of the time line to the first frame"),
        Field("duration", "u32", "ticks from frame to frame; about so many if there is a TIME chunk", 1),
        Field("last", "u32", "ticks that the last frame is shown", 1),
        Field("times", "u8", "when frames are shown", names={0: "evenly", 1: "as a TIME chunk says"}),
        Field("aspect_width", "u16", "a pixel's width relative to aspect_height", 1, 65535),
        Field("aspect_height", "u16", "a pixel's height relative to aspect_width", 1, 65535),
        Field("sound", "u8", "whether AHED and AUDL chunks belong to the video", names={0: "no", 1: "yes"}),
    ),
}
_STRUCTS = {kind: struct.Struct(code) for kind, code in (("u8", "<B"), ("edge", "<B"), ("u16", "<H"), ("u32", "<I"))}


@dataclass(frozen=True)
class ImageHeader:
    """The header of a picture, fields as in :data:`COMMON_FIELDS` and :data:`MODALITY_FIELDS`."""

    model: str
    weights_hash: str
    prior_hash: str
    layers: int
    height: int
    width: int
    stride: int
    segment: int
    channels: int
    alpha: int = 0
    bit_depth: int = 8
    quality: int = 0
    prior: int = 1
    modality: int = IMAGE

    def __post_init__(self) -> None:
        for f in header_fields(self.modality):
            f.check(getattr(self, f.name))

    @property
    def grid(self) -> tuple[int, int]:
        """Cells along height and width."""
        return -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def n_segments(self) -> int:
        h, w = self.grid
        return -(-h // self.segment) * -(-w // self.segment)

    def segment_box(self, segment: int) -> tuple[int, int, int, int]:
        """Cells of a segment, ``(top, left, bottom, right)``, the last two excluded. Segments are in raster order."""
        h, w = self.grid
        row, column = divmod(segment, -(-w // self.segment))
        top, left = row * self.segment, column * self.segment
        return top, left, min(top + self.segment, h), min(left + self.segment, w)


@dataclass(frozen=True)
class AudioHeader:
    """The header of a sound, fields as in :data:`COMMON_FIELDS` and :data:`MODALITY_FIELDS`."""

    model: str
    weights_hash: str
    prior_hash: str
    layers: int
    samples: int
    sample_rate: int
    channels: int
    signals: int
    bit_depth: int
    coded_rate: int
    stride: int
    segment: int
    prior: int = 2
    modality: int = AUDIO

    def __post_init__(self) -> None:
        for f in header_fields(self.modality):
            f.check(getattr(self, f.name))
        if self.layers != 1:
            raise HeaderError(f"header field layers: a sound has 1, not {self.layers}")
        if self.signals not in (1, self.channels):
            raise HeaderError(f"header field signals: {self.signals} is neither 1 nor the {self.channels} channels")

    @property
    def coded_samples(self) -> int:
        """Samples of each signal: ``ceil(samples * coded_rate / sample_rate)``."""
        return -(-self.samples * self.coded_rate // self.sample_rate)

    @property
    def grid(self) -> tuple[int]:
        """Frames."""
        return (-(-self.coded_samples // self.stride),)

    @property
    def n_segments(self) -> int:
        return -(-self.grid[0] // self.segment)

    def segment_span(self, segment: int) -> tuple[int, int]:
        """Frames of a segment, the second number excluded."""
        begin = segment * self.segment
        return begin, min(begin + self.segment, self.grid[0])

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class VideoHeader:
    """The header of a video, fields as in :data:`COMMON_FIELDS` and :data:`MODALITY_FIELDS`."""

    model: str
    weights_hash: str
    prior_hash: str
    layers: int
    height: int
    width: int
    stride: int
    frames: int
    group: int
    segment: int
    tick_seconds: int
    tick_parts: int
    start: int
    duration: int
    last: int
    times: int = 0
    aspect_width: int = 1
    aspect_height: int = 1
    sound: int = 0
    prior: int = 2
    modality: int = VIDEO

    def __post_init__(self) -> None:
        for f in header_fields(self.modality):
            f.check(getattr(self, f.name))
        if self.layers != 1:
            raise HeaderError(f"header field layers: a video has 1, not {self.layers}")
        if (self.segment - 1) % self.group:
            raise HeaderError(f"header field segment: {self.segment} is not 1 and a multiple of {self.group}")
        if math.prod(self.segment_grid(0)) > MAX_CELLS:
            raise HeaderError(f"header field segment: {self.segment} frames have more than {MAX_CELLS} cells")

    @property
    def tick(self) -> Fraction:
        """Seconds."""
        return Fraction(self.tick_seconds, self.tick_parts)

    @property
    def pixel_aspect(self) -> Fraction:
        return Fraction(self.aspect_width, self.aspect_height)

    @property
    def n_segments(self) -> int:
        return -(-self.frames // self.segment)

    def segment_span(self, segment: int) -> tuple[int, int]:
        """Frames of a segment, the second number excluded."""
        begin = segment * self.segment
        return begin, min(begin + self.segment, self.frames)

    def segment_grid(self, segment: int) -> tuple[int, int, int]:
        """Cells of a segment along time, height and width."""
        begin, end = self.segment_span(segment)
        return 1 - (1 + begin - end) // self.group, -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Cells of all segments along time, height and width."""
        t, h, w = self.segment_grid(self.n_segments - 1)
        return (self.n_segments - 1) * self.segment_grid(0)[0] + t, h, w


Header = ImageHeader | AudioHeader | VideoHeader
HEADERS: dict[int, type[Header]] = {IMAGE: ImageHeader, AUDIO: AudioHeader, VIDEO: VideoHeader}


def header_fields(modality: int) -> tuple[Field, ...]:
    if modality not in MODALITY_FIELDS:
        raise HeaderError(f"header field modality: {modality} is not one of {', '.join(map(str, MODALITIES))}")
    return COMMON_FIELDS + MODALITY_FIELDS[modality]


def write_header(header: Header) -> bytes:
    """Payload of HEAD."""
    out = bytearray()
    fields = header_fields(header.modality)
    while fields[-1].optional and getattr(header, fields[-1].name) == 0:
        fields = fields[:-1]
    for f in fields:
        value = getattr(header, f.name)
        if f.kind == "name":
            out += bytes([len(value)]) + value.encode("ascii")
        elif f.kind == "hash":
            out += bytes.fromhex(value)
        else:
            out += _STRUCTS[f.kind].pack(value % 256 if f.kind == "edge" else value)
    return bytes(out)


def read_header(payload: bytes) -> Header:
    """Inverse of :func:`write_header`. Bytes beyond the last known field are ignored: that is how a header may grow."""
    values: dict[str, Any] = {}
    at = 0

    def take(n: int, name: str) -> bytes:
        nonlocal at
        if at + n > len(payload):
            raise HeaderError(f"the header ends inside field {name}")
        at += n
        return payload[at - n : at]

    def read(f: Field) -> None:
        if f.optional and at == len(payload):
            value: Any = 0
        elif f.kind == "name":
            raw = take(take(1, f.name)[0], f.name)
            value = raw.decode("ascii", "backslashreplace")
        elif f.kind == "hash":
            value = take(8, f.name).hex()
        else:
            value = _STRUCTS[f.kind].unpack(take(_STRUCTS[f.kind].size, f.name))[0]
            value = value or 256 if f.kind == "edge" else value
        f.check(value)
        values[f.name] = value

    for f in COMMON_FIELDS:
        read(f)
    for f in MODALITY_FIELDS[values["modality"]]:
        read(f)
    return HEADERS[values["modality"]](**values)


def pack_layer_prefix(layer: int, segment: int) -> bytes:
    """What a LAYR payload starts with: the layer, and the segment as an unsigned LEB128."""
    if not 0 <= segment < 1 << 32:
        raise ValueError(f"segment {segment} is not in 0..2^32-1")
    return bytes([layer]) + _pack_segment(segment)


def _pack_segment(segment: int) -> bytes:
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


def _read_prefix(kind: bytes, payload: bytes) -> tuple[int, int, int] | None:
    """Layer, segment and length of what the payload of a LAYR or AUDL starts with, (0, 0, 0) of other chunks."""
    if kind == LAYR:
        return read_layer_prefix(payload)
    if kind == AUDL:
        found = _read_segment(payload)
        return None if found is None else (0, *found)
    return 0, 0, 0


def pack_chunk(kind: bytes, payload: bytes) -> bytes:
    """Frame a payload: type, length, payload, CRC-32 over type and payload."""
    return kind + struct.pack("<I", len(payload)) + payload + struct.pack("<I", zlib.crc32(payload, zlib.crc32(kind)))


def compress_metadata(data: bytes) -> bytes:
    """Payload of iCCP or eXIF. Raises LimitError for a block that no reader would take."""
    if len(data) > MAX_METADATA:
        raise LimitError(f"metadata of {len(data)} bytes is over {MAX_METADATA >> 20} MiB; leave it out: --no-metadata")
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


def write_video(
    header: VideoHeader, payloads: Sequence[bytes], times: bytes | None = None, track: CodedSound | None = None
) -> bytes:
    """Build the file of a video, in which what belongs to one moment lies together.

    Args: payloads: of LAYR, ``header.n_segments``.  times: payload of TIME.  track: the sound, if there is one.
    """
    if len(payloads) != header.n_segments:
        raise ValueError(f"need {header.n_segments} segments")
    if bool(header.times) != (times is not None) or bool(header.sound) != (track is not None):
        raise ValueError("the header's flags and the chunks disagree")
    out = bytearray(SIGNATURE + bytes([VERSION]) + pack_chunk(HEAD, write_header(header)))
    if times is not None:
        out += pack_chunk(TIME, times)
    sounds = 0
    if track is not None:
        out += pack_chunk(AHED, track.head)
    for s, payload in enumerate(payloads):
        out += pack_chunk(LAYR, pack_layer_prefix(0, s) + payload)
        last = s == header.n_segments - 1
        until = (header.start + (s + 1) * header.segment * header.duration) * header.tick  # nearly, if times vary
        while track is not None and sounds < len(track.payloads):
            begin = Fraction(track.start, track.header.sample_rate)
            begin += Fraction(sounds * track.header.segment * track.header.stride, track.header.coded_rate)
            if begin >= until and not last:
                break
            out += pack_chunk(AUDL, _pack_segment(sounds) + track.payloads[sounds])
            sounds += 1
    return bytes(out + pack_chunk(TEND, b""))


def write_tok(
    header: Header,
    layers: list[list[bytes]],
    alpha: bytes | None = None,
    icc: bytes | None = None,
    exif: bytes | None = None,
) -> bytes:
    """Build the file of a picture or a sound.

    Args: layers: ``layers[k][s]`` is the payload of layer k of segment s, ``header.layers`` by ``header.n_segments``.
          alpha: payload of ALPH.  icc, exif: uncompressed.
    """
    if len(layers) != header.layers or any(len(row) != header.n_segments for row in layers):
        raise ValueError(f"need {header.layers} layers of {header.n_segments} segments")
    if bool(isinstance(header, ImageHeader) and header.alpha) != (alpha is not None):
        raise ValueError("the header's alpha flag and the alpha payload disagree")
    out = bytearray(SIGNATURE + bytes([VERSION]))
    index = bytearray()

    def put(kind: bytes, payload: bytes, layer: int = 0, segment: int = 0) -> None:
        index.extend(INDEX_ENTRY.pack(kind, layer, segment, len(out)))
        out.extend(pack_chunk(kind, payload))

    put(HEAD, write_header(header))
    for kind, data in ((ICCP, icc), (EXIF, exif)):
        if data:
            put(kind, compress_metadata(data))
    for k, row in enumerate(layers):
        for s, payload in enumerate(row):
            put(LAYR, pack_layer_prefix(k, s) + payload, k, s)
        if k == 0 and alpha is not None:
            put(ALPH, alpha)
    pointer = b""
    # With one segment there is nothing to seek, and the chunks of a sound are small beside 17 bytes of index for each.
    if header.n_segments > 1 and isinstance(header, ImageHeader):
        pointer = INDEX_POINTER.pack(len(out))
        out.extend(pack_chunk(INDX, bytes(index)))
    out.extend(pack_chunk(TEND, pointer))
    return bytes(out)


@dataclass
class TokFile:
    """A parsed file: where every chunk lies, and what is wrong with it.

    Payloads are checked against their CRC when they are asked for; what fails counts as lost and is put on
    ``problems``.
    """

    data: bytes
    header: Header
    places: dict[tuple[bytes, int, int], int] = field(default_factory=dict)  # (type, layer, segment) -> offset
    problems: list[str] = field(default_factory=list)
    complete: bool = False  # the end chunk was found
    indexed: bool = False  # places come from the index
    track: tuple[AudioHeader, int] | None = None  # header and start of a video's sound

    @property
    def picture(self) -> ImageHeader:
        """The header of a picture. Raises ChunkError if the file holds something else."""
        if not isinstance(self.header, ImageHeader):
            raise ChunkError(f"the file holds {KINDS[self.header.modality]}, not a picture")
        return self.header

    @property
    def sound(self) -> AudioHeader:
        """The header of a sound, or of a video's sound. Raises ChunkError if there is none."""
        if self.track is not None:
            return self.track[0]
        if not isinstance(self.header, AudioHeader):
            raise ChunkError(f"the file holds {KINDS[self.header.modality]}, not a sound")
        return self.header

    @property
    def video(self) -> VideoHeader:
        """The header of a video. Raises ChunkError if the file holds something else."""
        if not isinstance(self.header, VideoHeader):
            raise ChunkError(f"the file holds {KINDS[self.header.modality]}, not a video")
        return self.header

    def sound_payload(self, segment: int) -> bytes | None:
        """Payload of a segment of :attr:`sound`, as :meth:`payload`."""
        return self.payload(LAYR if isinstance(self.header, AudioHeader) else AUDL, 0, segment)

    def payload(self, kind: bytes, layer: int = 0, segment: int = 0) -> bytes | None:
        """Payload of a chunk, without the prefix of LAYR and AUDL; None if it is missing or damaged."""
        offset = self.places.get((kind, layer, segment))
        if offset is None:
            return None
        found = chunk_at(self.data, offset)
        if found is None and self.indexed:  # bytes may have moved under the index: look where the chunks really are
            self.indexed = False
            self.places.clear()
            _rebuild_index(self)
            return self.payload(kind, layer, segment)
        if found is None or found[0] != kind:
            self.damaged(f"{kind.decode()} chunk at byte {offset} is damaged")
            return None
        payload = found[1]
        prefix = _read_prefix(kind, payload)
        if prefix is None or prefix[:2] != (layer, segment):
            what = "" if kind == AUDL else f"layer {layer} of "
            self.damaged(f"{kind.decode()} chunk at byte {offset} is not {what}segment {segment}")
            return None
        return payload[prefix[2] :]

    def segment_payloads(self, segment: int, wanted: int) -> list[bytes]:
        """Payloads of the layers of a segment up to the first that is missing or damaged, ``wanted`` at most."""
        payloads: list[bytes] = []
        for layer in range(wanted):
            payload = self.payload(LAYR, layer, segment)
            if payload is None:
                if layer:
                    self.damaged(f"segment {segment}: decoded from {layer} of {wanted} layers")
                break
            payloads.append(payload)
        return payloads

    def damaged(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def metadata(self, kind: bytes) -> bytes | None:
        payload = self.payload(kind)
        if payload is None:
            return None
        try:
            return decompress_metadata(payload)
        except ChunkError as error:
            self.damaged(str(error))
            return None


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
    known = re.compile(b"|".join(re.escape(kind) for kind in sorted(KNOWN - {HEAD})))
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


def read_tok(data: bytes, max_pixels: int | None = None, max_samples: int | None = None) -> TokFile:
    """Parse a file without decoding any layer.

    Args:   max_pixels, max_samples: refuse larger pictures, and sounds with more samples in all channels, before
            anything of their size is allocated.
    Raises: SignatureError, VersionError, TruncatedError, HeaderError, ChunkError, LimitError; see :mod:`.errors`.
    """
    start = len(SIGNATURE) + 1
    if not data:
        raise SignatureError("the file is empty")
    if not data.startswith(SIGNATURE):
        if SIGNATURE.startswith(data):
            raise TruncatedError("the file ends inside its signature")
        if data[1:4] == SIGNATURE[1:4] and data[4:8] != SIGNATURE[4:8]:
            raise SignatureError("the signature is damaged, as by a transfer in text mode")
        raise SignatureError("not a .tok file")
    if len(data) < start:
        raise TruncatedError("the file ends before its version")
    if data[start - 1] != VERSION:
        raise VersionError(f"format version {data[start - 1]}, this reader knows {VERSION}; update tokodec")
    first = chunk_at(data, start)
    if first is None:
        if _cut_head(data, start):
            raise TruncatedError("the file ends inside its header")
        raise HeaderError("the header is damaged")
    if first[0] != HEAD:
        raise HeaderError("the first chunk is not a header")
    header = read_header(first[1])
    if isinstance(header, AudioHeader):
        if max_samples is not None and header.samples * header.channels > max_samples:
            raise LimitError(
                f"a sound of {header.channels} x {header.samples} samples is over the limit of {max_samples};"
                " see --max-samples"
            )
    elif max_pixels is not None and header.height * header.width > max_pixels:
        what = "a picture" if isinstance(header, ImageHeader) else "a video"
        raise LimitError(
            f"{what} of {header.width} x {header.height} pixels is over the limit of {max_pixels}; see --max-pixels"
        )
    tok = TokFile(data, header)
    if not _read_index(tok):
        _rebuild_index(tok)
    if isinstance(header, VideoHeader) and header.sound:
        _read_track(tok, max_samples)
    present = sum(key[:2] == (LAYR, 0) for key in tok.places)
    if present * MAX_MISSING < header.n_segments:
        raise TruncatedError(
            f"too little is left to decode: the first layer of {present} of {header.n_segments} segments"
        )
    return tok


def modality_of(start: bytes) -> int | None:
    """The modality, from the first ``PEEK`` bytes of a file; None if they are not those of one."""
    whole = len(start) >= PEEK and start.startswith(SIGNATURE) and start[len(SIGNATURE) + 1 :].startswith(HEAD)
    return start[PEEK - 1] if whole and start[PEEK - 1] in MODALITIES else None


def _cut_head(data: bytes, start: int) -> bool:
    """Whether the data end before the header chunk does."""
    if len(data) < start + 8:
        return HEAD.startswith(data[start : start + 4])
    length = int.from_bytes(data[start + 4 : start + 8], "little")
    return data[start : start + 4] == HEAD and len(data) < start + FRAME + length


def _valid_place(tok: TokFile, kind: bytes, layer: int, segment: int) -> bool:
    header = tok.header
    if kind == LAYR:
        return layer < header.layers and segment < header.n_segments
    flags = {ALPH: "alpha", TIME: "times", AHED: "sound", AUDL: "sound"}  # of a header, 0 where it has no such field
    there = kind not in flags or bool(vars(header).get(flags[kind], 0))
    return layer == 0 and there and (segment == 0 or kind == AUDL)


def _read_track(tok: TokFile, max_samples: int | None) -> None:
    """Fill ``tok.track``; what is wrong with it costs the sound only. Raises LimitError for too many samples."""
    payload = tok.payload(AHED)
    try:
        if payload is None:
            raise HeaderError("missing or damaged")
        tok.track = read_sound_head(payload)
    except HeaderError as error:
        tok.damaged(f"the sound is lost, its header: {error}")
        return
    header = tok.track[0]
    if max_samples is not None and header.samples * header.channels > max_samples:
        raise LimitError(
            f"a sound of {header.channels} x {header.samples} samples is over the limit of {max_samples};"
            " see --max-samples or --no-sound"
        )
    for key in [key for key in tok.places if key[0] == AUDL and key[2] >= header.n_segments]:
        tok.damaged(f"AUDL chunk at byte {tok.places.pop(key)} does not belong there")


def _read_index(tok: TokFile) -> bool:
    """Fill ``tok.places`` from the index at the end of the file; False if there is none or it is not intact."""
    data = tok.data
    end = len(data) - FRAME - INDEX_POINTER.size
    last = chunk_at(data, end)
    if last is None or last[0] != TEND or len(last[1]) != INDEX_POINTER.size:
        return False
    (offset,) = INDEX_POINTER.unpack(last[1])
    found = chunk_at(data, offset)
    if found is None or found[0] != INDX or offset + FRAME + len(found[1]) != end or len(found[1]) % INDEX_ENTRY.size:
        return False
    places: dict[tuple[bytes, int, int], int] = {}
    for kind, layer, segment, place in INDEX_ENTRY.iter_unpack(found[1]):
        if kind not in KNOWN:
            if kind[:1].isupper():
                raise ChunkError(f"unknown critical chunk {kind!r}; update tokodec")
            continue
        if not _valid_place(tok, kind, layer, segment) or place >= offset or (kind, layer, segment) in places:
            return False
        places[kind, layer, segment] = place
    tok.places, tok.complete, tok.indexed = places, True, True
    return True


def _rebuild_index(tok: TokFile) -> None:
    """Fill ``tok.places`` by walking over the chunks that follow the header."""
    head = len(SIGNATURE) + 1
    offset = head + FRAME + int.from_bytes(tok.data[head + 4 : head + 8], "little")
    damage = None
    for at, kind, payload in scan(tok.data, offset):
        if kind is None:
            damage = at  # it is damage only if something intact follows; else the file ends here
            continue
        if damage is not None:
            was = tok.data[damage : damage + 4]
            what = f" ({was.decode()} chunk)" if was in KNOWN else ""
            tok.damaged(f"bytes {damage} to {at - 1} are damaged{what}")
            damage = None
        if kind == TEND:
            tok.complete = True
            if at + FRAME + len(payload) != len(tok.data):
                tok.damaged(f"{len(tok.data) - at - FRAME - len(payload)} bytes follow the end of the file")
            break
        if kind not in KNOWN:
            if kind[:1].isupper():
                raise ChunkError(f"unknown critical chunk {kind.decode()} at byte {at}; update tokodec")
            continue
        prefix = _read_prefix(kind, payload)
        if prefix is None:
            what = "segment" if kind == AUDL else "layer and segment"
            tok.damaged(f"{kind.decode()} chunk at byte {at} does not tell its {what}")
            continue
        layer, segment, _ = prefix
        if kind == HEAD or not _valid_place(tok, kind, layer, segment) or (kind, layer, segment) in tok.places:
            tok.damaged(f"{kind.decode()} chunk at byte {at} does not belong there")
            continue
        tok.places[kind, layer, segment] = at
    if not tok.complete:
        tok.damaged(f"the file is cut off at byte {len(tok.data)}")
