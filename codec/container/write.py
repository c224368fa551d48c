"""Header and payloads -> the bytes of a `.tok` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from .chunks import (
    AHED,
    AUDL,
    CHUNKS,
    FRAME,
    HEAD,
    INDEX_ENTRY,
    INDEX_POINTER,
    INDX,
    LAYR,
    TEND,
    TIME,
    chunk_at,
    compress_metadata,
    pack_chunk,
    pack_layer_prefix,
    pack_segment,
)
from .fields import SIGNATURE, VERSION, ImageHeader, write_header

if TYPE_CHECKING:
    from .chunks import CodedSound
    from .fields import Header, VideoHeader


def write_video(
    header: VideoHeader,
    payloads: Sequence[bytes],
    times: bytes | None = None,
    track: CodedSound | None = None,
    between: Sequence[bytes] = (),
) -> bytes:
    """Build the file of a video, in which what belongs to one moment lies together.

    Args: payloads: of LAYR, ``header.n_segments``.  times: payload of TIME.  track: the sound, if there is one.
          between: of layer 1, if there is one; none is written where it is empty. It lies behind the next of layer 0.
    """
    if len(payloads) != header.n_segments or len(between) != (header.layers - 1) * header.n_segments:
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
        for i, more in enumerate(between[max(0, s - 1) : s + last], max(0, s - 1)):
            out += pack_chunk(LAYR, pack_layer_prefix(1, i) + more) if more else b""
        until = (header.start + (s + 1) * header.segment * header.duration) * header.tick  # nearly, if times vary
        while track is not None and sounds < len(track.payloads):
            begin = Fraction(track.start, track.header.sample_rate)
            begin += Fraction(sounds * track.header.segment * track.header.stride, track.header.coded_rate)
            if begin >= until and not last:
                break
            out += pack_chunk(AUDL, pack_segment(sounds) + track.payloads[sounds])
            sounds += 1
    return bytes(out + pack_chunk(TEND, b""))


def add_chunk(data: bytes, kind: bytes, payload: bytes) -> bytes:
    """A file with one more chunk behind its header; the index, if there is one, is told of it."""
    head = len(SIGNATURE) + 1
    at = head + FRAME + int.from_bytes(data[head + 4 : head + 8], "little")
    chunk = pack_chunk(kind, payload)
    end = chunk_at(data, len(data) - FRAME - INDEX_POINTER.size)
    if end is None or end[0] != TEND:
        return data[:at] + chunk + data[at:]
    (place,) = INDEX_POINTER.unpack(end[1])
    index = chunk_at(data, place)
    assert index is not None
    entries = [(*own, offset + len(chunk) * (offset >= at)) for *own, offset in INDEX_ENTRY.iter_unpack(index[1])]
    entries.insert(1, (kind, 0, 0, at))
    packed = b"".join(INDEX_ENTRY.pack(*entry) for entry in entries)
    pointer = INDEX_POINTER.pack(place + len(chunk))
    return data[:at] + chunk + data[at:place] + pack_chunk(INDX, packed) + pack_chunk(TEND, pointer)


def write_tok(
    header: Header,
    layers: list[list[bytes]],
    alpha: bytes | None = None,
    **parts: bytes | Mapping[int, bytes] | None,
) -> bytes:
    """Build the file of a picture or a sound.

    Args: layers: ``layers[k][s]`` is the payload of layer k of segment s, ``header.layers`` by ``header.n_segments``.
          alpha, parts: of other chunks, by their names in :data:`.chunks.CHUNKS`: ``icc``, ``exif`` and ``xmp``
          uncompressed, ``alpha``, and by segment ``exact``. None and nothing are the same.
    """
    if len(layers) != header.layers or any(len(row) != header.n_segments for row in layers):
        raise ValueError(f"need {header.layers} layers of {header.n_segments} segments")
    given = {name: part for name, part in {**parts, "alpha": alpha}.items() if part}
    names = {row.name for row in CHUNKS.values()}
    if not given.keys() <= names:
        raise ValueError(f"there are no chunks {' and '.join(sorted(given.keys() - names))}")
    for kind in CHUNKS.values():
        if kind.flag and bool(getattr(header, kind.flag, 0)) != (kind.name in given):
            raise ValueError(f"the header's flag {kind.flag} and the chunks disagree")
    out = bytearray(SIGNATURE + bytes([VERSION]))
    index = bytearray()

    def put(kind: bytes, payload: bytes, layer: int = 0, segment: int = 0) -> None:
        index.extend(INDEX_ENTRY.pack(kind, layer, segment, len(out)))
        out.extend(pack_chunk(kind, payload))

    def put_parts(late: bool) -> None:
        for kind, row in CHUNKS.items():
            part = given.get(row.name) if row.late == late else None
            if isinstance(part, Mapping):
                for s, payload in sorted(part.items()):
                    put(kind, pack_segment(s) + payload, 0, s)
            elif part is not None:
                put(kind, compress_metadata(part) if row.deflated else part)

    put(HEAD, write_header(header))
    put_parts(late=False)
    for k, row in enumerate(layers):
        for s, payload in enumerate(row):
            put(LAYR, pack_layer_prefix(k, s) + payload, k, s)
        if k == 0:
            put_parts(late=True)
    pointer = b""
    # With one segment there is nothing to seek, and the chunks of a sound are small beside 17 bytes of index for each.
    if header.n_segments > 1 and isinstance(header, ImageHeader):
        pointer = INDEX_POINTER.pack(len(out))
        out.extend(pack_chunk(INDX, bytes(index)))
    out.extend(pack_chunk(TEND, pointer))
    return bytes(out)
