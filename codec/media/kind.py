"""Picture, sound or video: the content decides; the suffix only where the content says nothing.

Containers that hold sounds as well as videos (MP4, Matroska, Ogg, ...) are opened to see whether they have a video
track. A GIF is a picture if it has one frame, a video if it has more; whoever wants a GIF of one frame as a video reads
it as one. Other pictures that move (APNG, WebP, AVIF) stay pictures, whose reader refuses them by name.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, Literal

from ..errors import MediaError, UnsupportedMediaError
from ..files import stored
from .audio import AUDIO_SUFFIXES_IN
from .guard import references
from .read_image import HEIF_BRANDS, IMAGE_SUFFIXES_IN
from .read_video import VIDEO_SUFFIXES_IN, has_video_stream

Kind = Literal["image", "audio", "video"]

MODALITY_SUFFIXES = {"image": IMAGE_SUFFIXES_IN, "audio": AUDIO_SUFFIXES_IN, "video": VIDEO_SUFFIXES_IN}
SUFFIXES_IN = tuple(suffix for suffixes in MODALITY_SUFFIXES.values() for suffix in suffixes)

_LOOK = 192  # bytes at the start of a file that tell; packets of MPEG transport streams have 188 (or 192)
_SOUND_STARTS = (
    b"fLaC", b"ID3", b"FORM", b".snd", b"caff", b"riff", b"#!AMR", b"RF64", b"BW64", b"RIFX", b"\x0b\x77", b"wvpk",
    b"TTA1", b"TTA2", b"MAC ", b"tBaK", b"MPCK", b"MP+", b"DSD ", b"DTSHDHDR", b"\x7f\xfe\x80\x01",
    b"Creative Voice File", b"NIST_1A", b"PVF1\n", b"\xf0\x7e", b"\xfe\x7f\x01\x80", b"\x1f\xff\xe8\0",
    *(b"\x64\xa3" + bytes([n, 0]) for n in range(1, 5)), *(bytes([0, n]) + b"\xa3\x64" for n in range(1, 5)),  # IRCAM
)  # fmt: skip
_CONTAINER_STARTS = (
    b"OggS", b"\x1a\x45\xdf\xa3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"FLV\x01", b"\0\0\x01\xba",
)  # fmt: skip
_VIDEO_STARTS = (  # the last: H.264, H.265 as they are
    b"YUV4MPEG2 ", b"\0\0\x01\xb0", b"\0\0\x01\xb3", b"DKIF", b"\0\0\0\x01",
)  # fmt: skip
_SOUND_BRANDS = (b"M4A ", b"M4B ", b"M4P ")
_PICTURE_BRANDS = (*HEIF_BRANDS, b"avif", b"avis", b"crx ", b"jxl ")


def media_kind(source: Path | BinaryIO) -> tuple[Kind, Path | BinaryIO]:
    """What a media file holds, and the source to read it from: of what can be read only once, a copy.

    A file that cannot be opened is a picture unless its suffix says otherwise; reading it will tell what is wrong.

    Raises: MediaError for a stream that begins like nothing that is read here: it may have no end.
    """
    name = str(source) if isinstance(source, Path) else "standard input"
    suffix = source.suffix if isinstance(source, Path) else ""
    source = stored(source, lambda start: refuse_unknown_start(start, name, suffix))
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                start = file.read(_LOOK)
        except OSError:
            start = b""
        return _kind(start, suffix, source), source
    here = source.tell()
    start = source.read(_LOOK)
    source.seek(here)
    return _kind(start, suffix, source), source


def refuse_unknown_start(start: bytes, name: str, suffix: str) -> None:
    """Raise MediaError for a stream that begins like nothing that is read here."""
    if _kind(start, suffix, io.BytesIO(start)) == "image":  # or anything else
        from .read_image import refuse_unknown

        refuse_unknown(start, name)


def refuse_videos(kind: Kind, name: str) -> None:
    """Raise UnsupportedMediaError where only pictures and sounds can be used."""
    if kind == "video":
        raise UnsupportedMediaError(f"{name}: a video, and only pictures and sounds can be used here; extract one")


def _kind(start: bytes, suffix: str, source: Path | BinaryIO) -> Kind:
    if references(start) is not None:  # whose reader refuses it by name
        return "video" if suffix.lower() in VIDEO_SUFFIXES_IN else "audio"
    if start[:4] == b"RIFF":
        if start[8:12] == b"AVI ":
            return _container_kind(source, suffix, unknown="video")
        return "audio" if start[8:12] == b"WAVE" else "image"
    if start[4:8] == b"ftyp":
        brand = start[8:12]
        if brand in _PICTURE_BRANDS:
            return "image"
        return "audio" if brand in _SOUND_BRANDS else _container_kind(source, suffix)
    if start.startswith(_CONTAINER_STARTS) or start[4:8] in (b"moov", b"mdat", b"wide"):
        return _container_kind(source, suffix)
    if any(start[i : i + 1] == start[i + 188 : i + 189] == b"G" for i in (0, 4)):  # MPEG transport stream
        return _container_kind(source, suffix, unknown="video")
    if start.startswith(_VIDEO_STARTS):
        return "video"
    if start.startswith(_SOUND_STARTS) or _mpeg_audio(start):
        return "audio"
    if start.startswith(b"GIF8"):
        return "video" if _is_animated(source) else "image"
    if suffix.lower() in VIDEO_SUFFIXES_IN and not _picture(start):
        return "video"
    return "audio" if suffix.lower() in AUDIO_SUFFIXES_IN and not _picture(start) else "image"


def _container_kind(source: Path | BinaryIO, suffix: str, unknown: Kind = "audio") -> Kind:
    """By the tracks; where they cannot be read, by the suffix: reading will tell what is wrong."""
    try:
        return "video" if has_video_stream(source, "") else "audio"
    except MediaError:
        return "video" if suffix.lower() in VIDEO_SUFFIXES_IN else unknown


def _is_animated(source: Path | BinaryIO) -> bool:
    """Whether a GIF has a second frame (GIF89a specification, section 17 on: blocks are walked over, not decoded)."""
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                return _second_image(file)
        here = source.tell()
        try:
            return _second_image(source)
        finally:
            source.seek(here)
    except (OSError, IndexError):  # unreadable, or cut off
        return False


def _second_image(file: BinaryIO) -> bool:
    def skip_table(flags: int) -> None:
        if flags & 0x80:
            file.seek(3 << ((flags & 7) + 1), io.SEEK_CUR)

    def skip_blocks() -> None:
        while size := file.read(1)[0]:
            file.seek(size, io.SEEK_CUR)

    skip_table(file.read(13)[10])
    images = 0
    while (kind := file.read(1)) in (b"!", b","):
        if kind == b"!":
            file.seek(1, io.SEEK_CUR)  # the label of an extension
        else:
            images += 1
            if images == 2:
                return True
            skip_table(file.read(9)[8])
            file.seek(1, io.SEEK_CUR)  # size of LZW codes
        skip_blocks()
    return False


def _mpeg_audio(start: bytes) -> bool:
    """Whether a frame of MPEG audio (MP3) or AAC begins here: 12 bits of sync, or 11 for MPEG 2.5 and AAC in LOAS.

    FF FE, layer I with checksums, nobody has; texts in UTF-16 begin so.
    """
    sync = len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0 and start[1] & 0x18 != 0x08
    return (sync and start[1] != 0xFE) or (start[:1] == b"V" and start[1:2] >= b"\xe0")


def _picture(start: bytes) -> bool:
    return start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\xff\x0a"))
