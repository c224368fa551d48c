"""The `.tok` file: bytes <-> header, chunks, layers. FORMAT.md specifies it; this module is its only reader and writer.

::

    signature  version | HEAD | iCCP eXIF xMPP | LAYR (layer 0) | ALPH EXCT | LAYR (layer 1) ... | iNDX | TEND
    of a video:        | HEAD | TIME AHED | LAYR AUDL ... (by time) | TEND

Segments are squares of a picture's grid, or spans of time.

Needs nothing but the standard library, so `codec info` answers without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..errors import ChunkError, HeaderError, LimitError, SignatureError, TruncatedError, VersionError
from ..registry import MODALITIES, MODALITY_NAMES
from .chunks import (
    AHED,
    AUDL,
    CHUNKS,
    EXCT,
    FRAME,
    HEAD,
    INDEX_ENTRY,
    INDEX_POINTER,
    INDX,
    LAYR,
    TEND,
    chunk_at,
    decompress_metadata,
    read_prefix,
    read_sound_head,
    scan,
)
from .fields import (
    CELLS_PER_BYTE,
    FREE_CELLS,
    SIGNATURE,
    USUAL_CELLS,
    USUAL_SPAN,
    VERSION,
    AudioHeader,
    ImageHeader,
    VideoHeader,
    read_header,
)

if TYPE_CHECKING:
    from .fields import Header


MAX_PROBLEMS = 100  # lines that are told of one file
MAX_MISSING = 8  # refuse a file in which fewer than 1 in 8 segments have their first layer
FREE_SEGMENTS = 4  # and a file that has less than the frame of a chunk for each segment beyond these
PEEK = len(SIGNATURE) + 1 + 8 + 1  # bytes up to the modality


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
            raise ChunkError(f"the file holds {MODALITIES[MODALITY_NAMES[self.header.modality]].noun}, not a picture")
        return self.header

    @property
    def sound(self) -> AudioHeader:
        """The header of a sound, or of a video's sound. Raises ChunkError if there is none."""
        if self.track is not None:
            return self.track[0]
        if not isinstance(self.header, AudioHeader):
            raise ChunkError(f"the file holds {MODALITIES[MODALITY_NAMES[self.header.modality]].noun}, not a sound")
        return self.header

    @property
    def video(self) -> VideoHeader:
        """The header of a video. Raises ChunkError if the file holds something else."""
        if not isinstance(self.header, VideoHeader):
            raise ChunkError(f"the file holds {MODALITIES[MODALITY_NAMES[self.header.modality]].noun}, not a video")
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
        prefix = read_prefix(kind, payload)
        if prefix is None or prefix[:2] != (layer, segment):
            what = f"layer {layer} of " if kind == LAYR else ""
            self.damaged(f"{kind.decode()} chunk at byte {offset} is not {what}segment {segment}")
            return None
        return payload[prefix[2] :]

    def holds_its_cells(self, segment: int) -> bool:
        """Whether the first chunk of a segment is there, and long enough for the cells that it stands for."""
        at = self.places.get((LAYR, 0, segment))
        if at is None or not isinstance(self.header, VideoHeader):
            return at is not None  # cells of pictures and sounds are few, see MAX_SEGMENT and MAX_FRAMES
        size = int.from_bytes(self.data[at + 4 : at + 8], "little")
        t, h, w = self.header.segment_grid(segment)
        return (t if self.header.layers == 1 else 1) * h * w <= most_cells(size)  # of two layers: its first frame

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

    @property
    def beside_tokens(self) -> list[str]:
        """What of the file's signal is not part of its tokens, a line each."""
        exact = any(kind == EXCT for kind, _, _ in self.places)
        return ["blocks that are kept exactly are not part of tokens"] * exact

    def damaged(self, problem: str) -> None:
        """Put a line on ``problems``, each once and ``MAX_PROBLEMS`` of them: a file may have a fault in every byte."""
        if len(self.problems) <= MAX_PROBLEMS and problem not in self.problems:
            self.problems.append(problem if len(self.problems) < MAX_PROBLEMS else "more is damaged")

    def metadata(self, kind: bytes) -> bytes | None:
        payload = self.payload(kind)
        if payload is None:
            return None
        try:
            return decompress_metadata(payload)
        except ChunkError as error:
            self.damaged(str(error))
            return None


def read_tok(data: bytes, max_pixels: int | None = None, max_samples: int | None = None) -> TokFile:
    """Parse a file without decoding any layer.

    Args:   max_pixels, max_samples: refuse larger pictures, and sounds with more samples in all channels, before
            anything of their size is allocated.
    Raises: SignatureError, VersionError, TruncatedError, HeaderError, ChunkError, LimitError; see :mod:`..errors`.
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
    if too_large := header.over_limit(max_pixels, max_samples):
        raise LimitError(too_large)
    tok = TokFile(data, header)
    if not _read_index(tok):
        _rebuild_index(tok)
    if isinstance(header, VideoHeader) and header.sound:
        _read_track(tok, max_samples)
    present = sum(key[:2] == (LAYR, 0) and tok.holds_its_cells(key[2]) for key in tok.places)
    if not _enough(present, header, len(data)):
        raise TruncatedError(
            f"too little is left to decode: the first layer of {present} of {header.n_segments} segments"
        )
    return tok


def _enough(present: int, header: Header, size: int) -> bool:
    """Whether so many of the segments are worth decoding, and what all of them cost is in proportion to the file.

    A segment of a picture counts as often as one of usual size goes into it.
    """
    segments = header.n_segments
    if isinstance(header, ImageHeader):
        span = max(USUAL_SPAN, USUAL_CELLS * header.stride)
        segments = max(segments, -(-header.height // span) * -(-header.width // span))
    return present * MAX_MISSING >= header.n_segments and segments <= FREE_SEGMENTS + size // FRAME


def most_cells(size: int) -> int:
    """Cells of a video that a payload of so many bytes may stand for. (Of a black one some 25 take a byte.)"""
    return FREE_CELLS + CELLS_PER_BYTE * size


def modality_of(start: bytes) -> int | None:
    """The modality, from the first ``PEEK`` bytes of a file; None if they are not those of one."""
    whole = len(start) >= PEEK and start.startswith(SIGNATURE) and start[len(SIGNATURE) + 1 :].startswith(HEAD)
    return start[PEEK - 1] if whole and start[PEEK - 1] in MODALITY_NAMES else None


def _cut_head(data: bytes, start: int) -> bool:
    """Whether the data end before the header chunk does."""
    if len(data) < start + 8:
        return HEAD.startswith(data[start : start + 4])
    length = int.from_bytes(data[start + 4 : start + 8], "little")
    return data[start : start + 4] == HEAD and len(data) < start + FRAME + length


def _valid_place(tok: TokFile, kind: bytes, layer: int, segment: int) -> bool:
    header, row = tok.header, CHUNKS[kind]
    if not row.belongs(MODALITY_NAMES[header.modality]) or (row.flag and not getattr(header, row.flag)):
        return False
    if row.prior not in (0, header.prior):
        return False
    layers, segments = header.layers if kind == LAYR else 1, header.n_segments if row.begins else 1
    return layer < layers and (segment < segments or kind == AUDL)  # a sound has segments of its own


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
    if too_large := header.over_limit(None, max_samples):
        raise LimitError(f"{too_large} or --no-sound")
    for key in [key for key in tok.places if key[0] == AUDL and key[2] >= header.n_segments]:
        tok.damaged(f"AUDL chunk at byte {tok.places.pop(key)} does not belong there")
    _bound_track(tok)


def _bound_track(tok: TokFile) -> None:
    """See that what is there of a video's sound, and not what it claims, bounds the work of decoding it."""
    assert tok.track is not None
    header, start = tok.track
    there = [key[2] for key in tok.places if key[0] == AUDL]
    if _enough(len(there), header, len(tok.data)):
        return
    frames = header.segment_span(max(there, default=-1))[1] if there else 0
    samples = min(header.samples, frames * header.stride * header.sample_rate // header.coded_rate)
    if not samples or not _enough(len(there), replace(header, samples=samples), len(tok.data)):
        tok.damaged(f"the sound is lost: {len(there)} of its {header.n_segments} segments are there")
        tok.track = None
        return
    tok.damaged(f"of the sound only the first {samples / header.sample_rate:.2f} s are there")
    tok.track = replace(header, samples=samples), start


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
        if kind not in CHUNKS:
            if kind[:1].isupper():
                raise ChunkError(f"unknown critical chunk {kind!r}; update tokodec")
            continue
        if not _valid_place(tok, kind, layer, segment) or place >= offset or (kind, layer, segment) in places:
            return False
        places[kind, layer, segment] = place
    reached = 0
    for place in sorted(places.values()):
        if place < reached:  # the same bytes would be checked for every chunk that claims them
            return False
        reached = place + FRAME + int.from_bytes(data[place + 4 : place + 8], "little")
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
            what = f" ({was.decode()} chunk)" if was in CHUNKS else ""
            tok.damaged(f"bytes {damage} to {at - 1} are damaged{what}")
            damage = None
        if kind == TEND:
            tok.complete = True
            if at + FRAME + len(payload) != len(tok.data):
                tok.damaged(f"{len(tok.data) - at - FRAME - len(payload)} bytes follow the end of the file")
            break
        if kind not in CHUNKS:
            if kind[:1].isupper():
                raise ChunkError(f"unknown critical chunk {kind.decode()} at byte {at}; update tokodec")
            continue
        prefix = read_prefix(kind, payload)
        if prefix is None:
            tok.damaged(f"{kind.decode()} chunk at byte {at} does not tell its {CHUNKS[kind].begins}")
            continue
        layer, segment, _ = prefix
        if kind == HEAD or not _valid_place(tok, kind, layer, segment) or (kind, layer, segment) in tok.places:
            tok.damaged(f"{kind.decode()} chunk at byte {at} does not belong there")
            continue
        tok.places[kind, layer, segment] = at
    if not tok.complete:
        tok.damaged(f"the file is cut off at byte {len(tok.data)}")
