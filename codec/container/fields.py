"""The header of a `.tok` file: one table of fields for the writer, the reader, `codec info` and FORMAT.md."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import HeaderError
from ..registry import MODALITIES, MODALITY_NAMES, PRIOR_NAMES

# Like PNG's: not ASCII, shows CR/LF conversion, stops `type` on DOS.
SIGNATURE = b"\x89TOK\r\n\x1a\n"
VERSION = 1
# Limits, see FORMAT.md section "Limits".
MAX_LAYERS = 64
MAX_SIDE = 1 << 20
MAX_PIXELS = 1 << 28  # default of readers and writers, raised by --max-pixels
MAX_SEGMENT = 128  # cells: bounds what one chunk, however short, can ask a decoder to do
USUAL_SPAN, USUAL_CELLS = 1024, 8  # pixels along the edge of a picture's segment, or cells where those are more
MAX_FRAMES = 1024  # the same of a sound's or a video's segment
MAX_CLIP = 1 << 24  # frames of a video
MAX_TICK = (1 << 31) - 1  # of both parts of its fraction, as FFmpeg has it
MAX_GROUP = 64  # frames of a video's cell
MAX_CELLS = 1 << 23  # of a video's segment
FREE_CELLS, CELLS_PER_BYTE = 1 << 14, 1 << 10  # of it that a payload may stand for, and for each of its bytes
MAX_CHANNELS = 8
MAX_LAYOUT = (1 << 18) - 1  # all positions of WAVEFORMATEXTENSIBLE
RATES = (1000, 768_000)  # samples a second that make sense
MAX_SAMPLES = 1 << 33  # of all channels, default of readers and writers, raised by --max-samples

# Wire constants, see registry.py. Numbers are never reused.
IMAGE, AUDIO, VIDEO = (MODALITIES[name].wire_id for name in ("image", "audio", "video"))
STATIC = 1  # tables, beside the model or in the file
HYPERPRIOR = 3  # files of models whose rate is set by a quality
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
    Field("modality", "u8", "kind of signal", names=MODALITY_NAMES),
    Field("model", "name", "name of the tokenizer"),
    Field("weights_hash", "hash", "first 8 bytes of the SHA-256 of the model's model.safetensors, unpacked"),
    Field("prior", "u8", "kind of entropy model", names=PRIOR_NAMES),
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
        Field("quality", "u16", "quality in hundredths; 0 where it does not set the rate", 0, 10_000, optional=True),
    ),
    AUDIO: (
        Field("samples", "u32", "samples of each channel", 1),
        Field("sample_rate", "u32", "samples a second of each channel, Hz", *RATES),
        Field("channels", "u8", "channels of the sound", 1, MAX_CHANNELS),
        Field("signals", "u8", 'signals that are coded, see "Sounds"', 1, MAX_CHANNELS),
        Field("bit_depth", "u8", "bits a sample of the source had", names={8: "8", 16: "16", 24: "24"}),
        Field("coded_rate", "u32", "samples a second of the signals, Hz", *RATES),
        Field("stride", "u16", "samples of a signal that a frame spans", 1, 65535),
        Field("segment", "u16", "frames of a segment", 1, MAX_FRAMES),
        Field("layout", "u32", 'positions of the channels, see "Sounds"; 0: not told', 0, MAX_LAYOUT, optional=True),
    ),
    VIDEO: (
        Field("height", "u32", "rows of pixels", 1, MAX_SIDE),
        Field("width", "u32", "columns of pixels", 1, MAX_SIDE),
        Field("stride", "edge", "pixels a grid cell spans along height and width", 1, 256),
        Field("frames", "u32", "frames of the video", 1, MAX_CLIP),
        Field("group", "u8", "frames a grid cell spans, but the first one of a segment spans first", 1, MAX_GROUP),
        Field("segment", "u16", "frames of a segment: first and a multiple of group", 1, MAX_FRAMES),
        Field("tick_seconds", "u32", "a tick of the clock lasts tick_seconds / tick_parts seconds", 1, MAX_TICK),
        Field("tick_parts", "u32", "the divisor of that", 1, MAX_TICK),
        Field("start", "u32", "ticks from the beginning of the time line to the first frame"),
        Field("duration", "u32", "ticks from frame to frame; about so many if there is a TIME chunk", 1),
        Field("last", "u32", "ticks that the last frame is shown", 1),
        Field("times", "u8", "when frames are shown", names={0: "evenly", 1: "as a TIME chunk says"}),
        Field("aspect_width", "u16", "a pixel's width relative to aspect_height", 1, 65535),
        Field("aspect_height", "u16", "a pixel's height relative to aspect_width", 1, 65535),
        Field("sound", "u8", "whether AHED and AUDL chunks belong to the video", names={0: "no", 1: "yes"}),
        Field("first", "u8", "frames the first grid cell of a segment spans; 0: one", 0, MAX_GROUP, optional=True),
        Field("joined", "u8", "frames on each side of a border over which its jump is spread", 0, 32, optional=True),
    ),
}
_STRUCTS = {kind: struct.Struct(code) for kind, code in (("u8", "<B"), ("edge", "<B"), ("u16", "<H"), ("u32", "<I"))}


def _too_many_pixels(what: str, height: int, width: int, most: int | None) -> str | None:
    if most is None or height * width <= most:
        return None
    return f"{what} of {width} x {height} pixels is over the limit of {most}; see --max-pixels"


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

    def over_limit(self, max_pixels: int | None, max_samples: int | None) -> str | None:
        """What is too large, None if nothing is."""
        return _too_many_pixels("a picture", self.height, self.width, max_pixels)

    def rates(self, size: int) -> dict[str, float]:
        """What a file of ``size`` bytes takes: bits per pixel."""
        return {"bpp": round(8 * size / (self.height * self.width), 6)}

    @property
    def summary(self) -> str:
        return f"{self.width} x {self.height} pixels"


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
    layout: int = 0
    prior: int = 2
    modality: int = AUDIO

    def __post_init__(self) -> None:
        for f in header_fields(self.modality):
            f.check(getattr(self, f.name))
        if self.layers != 1:
            raise HeaderError(f"header field layers: a sound has 1, not {self.layers}")
        if self.signals not in (1, self.channels):
            raise HeaderError(f"header field signals: {self.signals} is neither 1 nor the {self.channels} channels")
        if self.layout and self.layout.bit_count() != self.channels:
            raise HeaderError(
                f"header field layout: {self.layout:#x} has not as many positions as {self.channels} channels"
            )

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

    def over_limit(self, max_pixels: int | None, max_samples: int | None) -> str | None:
        """What is too large, None if nothing is."""
        if max_samples is None or self.samples * self.channels <= max_samples:
            return None
        size = f"{self.channels} x {self.samples}"
        return f"a sound of {size} samples is over the limit of {max_samples}; see --max-samples"

    def rates(self, size: int) -> dict[str, float]:
        """What a file of ``size`` bytes takes: seconds, and thousands of bits a second."""
        return {"seconds": round(self.seconds, 6), "kbps": round(8e-3 * size / self.seconds, 6)}

    @property
    def summary(self) -> str:
        channels = f"{self.channels} channel{'s' * (self.channels > 1)}"
        return f"{self.seconds:.3f} s in the file, {channels}, {self.sample_rate} Hz"


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
    first: int = 0
    joined: int = 0
    prior: int = 2
    modality: int = VIDEO

    def __post_init__(self) -> None:
        for f in header_fields(self.modality):
            f.check(getattr(self, f.name))
        if self.layers != 1 + (self.prior == HYPERPRIOR):
            raise HeaderError(f"header field layers: a video has 1, of prior {HYPERPRIOR} 2, not {self.layers}")
        if self.first > self.group:
            raise HeaderError(f"header field first: {self.first} is more than the {self.group} frames of a cell")
        if self.segment < self.first_frames or (self.segment - self.first_frames) % self.group:
            wanted = f"{self.first_frames} and a multiple of {self.group}"
            raise HeaderError(f"header field segment: {self.segment} is not {wanted}")
        if 2 * self.joined > self.segment:
            raise HeaderError(f"header field joined: {self.joined} is more than half of a segment of {self.segment}")
        if math.prod(self.segment_grid(0)) > MAX_CELLS:
            raise HeaderError(f"header field segment: {self.segment} frames have more than {MAX_CELLS} cells")

    @property
    def first_frames(self) -> int:
        """Frames that the first cell of a segment spans."""
        return self.first or 1

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
        t = 1 - (self.first_frames + begin - end) // self.group
        return t, -(-self.height // self.stride), -(-self.width // self.stride)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Cells of all segments along time, height and width."""
        t, h, w = self.segment_grid(self.n_segments - 1)
        return (self.n_segments - 1) * self.segment_grid(0)[0] + t, h, w

    def over_limit(self, max_pixels: int | None, max_samples: int | None) -> str | None:
        """What is too large, None if nothing is."""
        return _too_many_pixels("a video", self.height, self.width, max_pixels)

    def rates(self, size: int) -> dict[str, float]:
        """What a file of ``size`` bytes takes: seconds (nearly, if frames are not evenly spaced), thousands of bits a
        second, and bits per pixel of all frames."""
        seconds = float(self.tick * ((self.frames - 1) * self.duration + self.last))
        bpp = 8 * size / (self.frames * self.height * self.width)
        return {"seconds": round(seconds, 6), "kbps": round(8e-3 * size / seconds, 6), "bpp": round(bpp, 6)}

    @property
    def summary(self) -> str:
        return f"{self.width} x {self.height} pixels, {self.frames} frames in the file"


Header = ImageHeader | AudioHeader | VideoHeader
HEADERS: dict[int, type[Header]] = {IMAGE: ImageHeader, AUDIO: AudioHeader, VIDEO: VideoHeader}


def header_fields(modality: int) -> tuple[Field, ...]:
    if modality not in MODALITY_FIELDS:
        raise HeaderError(f"header field modality: {modality} is not one of {', '.join(map(str, MODALITY_NAMES))}")
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
