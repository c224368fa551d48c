"""Picture or sound: the content decides; the suffix only where the content says nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, Literal

from .audio import AUDIO_SUFFIXES_IN

Kind = Literal["image", "audio"]

_LOOK = 16  # bytes at the start of a file that tell
_SOUND_STARTS = (
    b"fLaC", b"OggS", b"ID3", b"FORM", b".snd", b"caff", b"riff", b"#!AMR", b"\x1a\x45\xdf\xa3", b"RF64",
)  # fmt: skip
_PICTURE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis", b"crx ", b"jxl ")


def media_kind(source: Path | BinaryIO) -> tuple[Kind, Path | BinaryIO]:
    """What a media file holds, and the source to read it from: a stream that cannot seek is read into memory.

    A file that cannot be opened is a picture unless its suffix says otherwise; reading it will tell what is wrong.
    """
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                start = file.read(_LOOK)
        except OSError:
            start = b""
        return _kind(start, source.suffix), source
    if not source.seekable():
        source = io.BytesIO(source.read())
    here = source.tell()
    start = source.read(_LOOK)
    source.seek(here)
    return _kind(start, ""), source


def _kind(start: bytes, suffix: str) -> Kind:
    if start[:4] == b"RIFF":
        return "audio" if start[8:12] == b"WAVE" else "image"  # WebP is RIFF too
    if start[4:8] == b"ftyp":
        return "image" if start[8:12] in _PICTURE_BRANDS else "audio"
    if start.startswith(_SOUND_STARTS) or _mpeg_audio(start):
        return "audio"
    return "audio" if suffix.lower() in AUDIO_SUFFIXES_IN and not _picture(start) else "image"


def _mpeg_audio(start: bytes) -> bool:
    """Whether a frame of MPEG audio (MP3) or AAC in ADTS begins here: 12 bits of sync, or 11 for MPEG 2.5."""
    return len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0 and start[1] & 0x18 != 0x08


def _picture(start: bytes) -> bool:
    return start.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\xff\x0a"))
