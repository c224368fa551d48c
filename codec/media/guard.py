"""The one way in which sounds and videos are opened: through FFmpeg's demuxers, of which none may open anything else.

FFmpeg can follow references: playlists name further files and addresses, session descriptions bind ports, a file's
*name* can be an address. Here the bytes of one open file are all that a demuxer gets. It has no name, so nothing can be
read into one; the list of demuxers has none that follows references; no protocol is allowed, should one try
nonetheless. What is a list of references is refused by name, and so is a track of QuickTime that lies in another file.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import MediaError, UnsupportedMediaError, UsageError, one_line
from ..files import stored
from .whole import Extent, boxes, extent

# Demuxers that may look at a file, all of which read that file and nothing else.
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,gif,h264,hevc,iff,ircam,ivf,loas,m4v,matroska,mov,"
    "mp3,mpc,mpc8,mpeg,mpegts,mpegvideo,nistsphere,ogg,pvf,sds,tak,truehd,tta,voc,w64,wav,wv,yuv4mpegpipe"
)
HEAD = 192  # bytes at the beginning of a file that tell what it is
_TEXTS = (  # what a text that points to media begins with, in lower case, and what it is called
    (b"ffconcat version", "a list of files (ffconcat)"),
    (b"#extm3u", "a playlist (HLS, M3U)"),
    (b"[playlist]", "a playlist (PLS)"),
    (b"[reference]", "a list of addresses (ASX)"),
    (b"<asx", "a playlist (ASX)"),
    (b"<mpd", "a manifest (DASH)"),
    (b"<smoothstreamingmedia", "a manifest (Smooth Streaming)"),
    (b"<smil", "a presentation (SMIL)"),
    (b"<playlist", "a playlist (XSPF)"),
    (b"v=0\no=", "a session description (SDP)"),
    (b"rtsptext", "an address (RTSP)"),
)
_MOST_TAGS = 8  # that are named
# Tags in which containers and programs say how a file was made.
_TECHNICAL = {
    "major_brand", "minor_version", "compatible_brands", "creation_time", "encoder", "handler_name", "vendor_id",
    "language", "duration", "bps", "number_of_frames", "number_of_bytes", "alpha_mode", "rotate", "metadatacreator",
    "hasvideo", "hasaudio", "hasmetadata", "haskeyframes", "cansektoend", "datasize", "filesize", "totalduration",
    "totaldatarate", "deviceconformancetemplate", "isvbr", "wmfsdkversion", "wmfsdkneeded", "variant_bitrate",
    "service_name", "service_provider", "timecode", "software",
}  # fmt: skip
_NESTS = {b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"moof", b"traf"}  # boxes on the way to those looked at
_CLAIMS = {b"tkhd": 1 << 24, b"stsz": 1 << 23, b"trun": 1 << 20}  # boxes, and what they may claim in any case


def references(head: bytes) -> str | None:
    """What a text that points to further files or addresses is called, from its first bytes; None for other files."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().replace(b"\r\n", b"\n").replace(b"\r", b"\n").lower()
    if text.startswith((b"<?xml", b"<!--")):
        text = text[text.find(b">") + 1 :].lstrip()
    return next((noun for start, noun in _TEXTS if text.startswith(start)), None)


class Media:
    """An open file and what FFmpeg found in it.

    Attributes:
        container: PyAV's, None for what FFmpeg does not read.  file: the bytes.
        extent: what lacks at the file's end, or follows it.
    """

    def __init__(self, container: Any, extent: Extent, file: BinaryIO, own: bool) -> None:
        self.container, self.extent, self.file, self._own = container, extent, file, own

    def close(self) -> None:
        if self.container is not None:
            self.container.close()
        if self._own:
            self.file.close()


class Bytes:
    """What FFmpeg (or libsndfile) sees of a file: bytes without a name, from where the file object stands on, ``most``
    of them, or all but the ``less`` last ones."""

    def __init__(self, file: BinaryIO, most: int | None = None, less: int = 0) -> None:
        self._file, self._begin = file, file.tell()
        size = file.seek(0, io.SEEK_END) - self._begin - less
        self._size = size if most is None else min(most, size)
        file.seek(self._begin)

    def read(self, n: int = -1) -> bytes:
        left = max(0, self._size - self.tell())
        return self._file.read(left if n < 0 else min(n, left))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self._size}[whence]
        return self._file.seek(self._begin + base + offset) - self._begin

    def tell(self) -> int:
        return self._file.tell() - self._begin


def open_bytes(source: Path | BinaryIO | bytes, name: str, noun: str) -> tuple[BinaryIO, bool]:
    """A file object that can seek, and whether it is to be closed after use. noun: what a folder is not.

    Raises MediaError for what cannot be opened or is empty.
    """
    own = isinstance(source, (Path, bytes))
    try:
        if isinstance(source, Path) and source.is_dir():
            raise MediaError(f"{name}: a folder, not {noun}")
        kept = io.BytesIO(source) if isinstance(source, bytes) else stored(source)
        file: BinaryIO = kept.open("rb") if isinstance(kept, Path) else kept
        here = file.tell()
        if not file.read(1):
            raise MediaError(f"{name}: the file is empty")
        file.seek(here)
    except OSError as error:
        raise MediaError(f"{name}: {error.strerror or error}") from error
    return file, own


def rereadable(source: Path | BinaryIO) -> Path | bytes:
    """A source that can be read twice at once: the path of a file, or all bytes of anything else."""
    kept = stored(source)
    return kept if isinstance(kept, Path) else kept.read()


def open_big_endian(source: Path | BinaryIO, name: str) -> Media | None:
    """A WAV file of the other byte order (RIFX), which FFmpeg does not read; None if it is anything else."""
    file, own = open_bytes(source, name, "a sound")
    begin = file.tell()
    found = file.read(4) == b"RIFX"
    file.seek(begin)
    if found:
        return Media(None, extent(file), file, own)
    if own:
        file.close()
    return None


def open_media(source: Path | BinaryIO | bytes, name: str, noun: str, alone: bool = False) -> Media:
    """Open a sound or a video.

    Args:    source: path, or binary file object, which is read into memory if it cannot seek.
             name: what messages call it.  noun: "a sound" or "a video", for messages.
             alone: without the files that are joined to it.
    Raises:  MediaError for what is not there, empty or unknown; UnsupportedMediaError for what points to other files.
    """
    import av

    file, own = open_bytes(source, name, noun)
    try:
        _refuse_references(file, name)
        around = extent(file)
        try:
            container = _demuxer(file, around, alone)
        except (av.FFmpegError, ValueError, OSError, OverflowError) as error:
            why = "; ".join(filter(None, (one_line(error), around.lacks)))
            raise MediaError(f"{name}: not {noun} that can be read, or a damaged one ({why})") from error
    except BaseException:
        if own:
            file.close()
        raise
    return Media(container, around, file, own)


def _demuxer(file: BinaryIO, around: Extent, alone: bool) -> Any:
    """PyAV's container. FFmpeg is handed an open file, so it never looks at a name, nor opens anything."""
    import av

    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "none"}
    begin = file.tell()
    try:
        return av.open(Bytes(file, less=around.further * alone), container_options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError):
        if not around.whole:  # a file that is cut off within the head of a fragment has whole fragments before it
            raise
        file.seek(begin)
        return av.open(Bytes(file, most=around.whole), container_options=options, metadata_errors="replace")


def _refuse_references(file: BinaryIO, name: str) -> None:
    begin = file.tell()
    head = file.read(HEAD)
    noun = references(head)
    size = file.seek(0, io.SEEK_END)
    if noun is None and head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
        for kind, start, end in boxes(file, begin, size, _NESTS):
            if kind == b"rmra":
                noun = "a movie of references (QuickTime)"
            elif kind == b"dref" and _is_elsewhere(file, start, end):
                noun = "a movie with a track in another file (QuickTime)"
            elif kind in _CLAIMS and (claim := _claim(file, kind, start, end)) > max(size, _CLAIMS[kind]):
                raise MediaError(f"{name}: damaged: a {kind.decode()} box claims {claim}")
    file.seek(begin)
    if noun is not None:
        raise UnsupportedMediaError(f"{name}: {noun}: other files are never opened from within one; give those instead")


def _claim(file: BinaryIO, kind: bytes, start: int, end: int) -> int:
    """The number of a track, or of samples that take no bytes in a table, for each of which FFmpeg takes time."""
    file.seek(start)
    data = file.read(min(24, max(0, end - start)))
    if kind == b"tkhd":  # ISO/IEC 14496-12, 8.3.2
        return int.from_bytes(data[20:24] if data[:1] == b"\1" else data[12:16], "big")
    if kind == b"stsz":  # 8.7.3.2
        return int.from_bytes(data[8:12], "big") if any(data[4:8]) else 0
    each = int.from_bytes(data[1:4], "big") >> 8 & 0xF  # 8.8.8, a trun
    return 0 if each else int.from_bytes(data[4:8], "big")


def _is_elsewhere(file: BinaryIO, start: int, end: int) -> bool:
    """Whether a dref box has an entry that is not in the file itself, which flag 1 says (ISO/IEC 14496-12, 8.7.2)."""
    for _, begin, stop in boxes(file, start + 8, end, set()):
        file.seek(begin)
        if stop - begin >= 4 and not file.read(4)[3:4][0] & 1:
            return True
    return False


def dropped(container: Any, track: Any) -> list[str]:
    """Notes on what is in a file beside the samples of a track: tags, a cover, chapters."""
    tags = {key.lower() for key in (*container.metadata, *track.metadata)} - _TECHNICAL
    named = sorted(tag for tag in tags if tag.isascii() and tag.isidentifier() and not tag.startswith("_statistics"))
    covers = len(container.streams.video) - len(video_streams(container))
    notes = [f"tags not kept: {', '.join(named[:_MOST_TAGS])}{', ...' * (len(named) > _MOST_TAGS)}"] if named else []
    return notes + ["the cover is not kept"] * bool(covers) + ["chapters are not kept"] * bool(container.chapters())


def video_streams(container: Any) -> list[Any]:
    """Video tracks, without covers of records."""
    import av

    pictures = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


def check_track(n: int, track: int | None, noun: str, name: str) -> None:
    """Raise UsageError for a track that is not among n, see :func:`choose_track`."""
    if track is not None and not 1 <= track <= n:
        there = f"{noun} tracks are numbered 1 to {n}" if n else f"it has no {noun}"
        raise UsageError(f"{name}: {there}, there is none numbered {track}")


def choose_track(streams: Sequence[Any], track: int | None, noun: str, name: str) -> tuple[Any, list[str]]:
    """One of a file's tracks of one kind, and notes.

    Args:   track: its number from 1 on; None: the first that its file calls the default and that has a decoder, rather
            no commentary and none for those who hear or see badly.
            noun: "sound" or "video".
    Raises: UsageError for a track that is not there, MediaError if there is no decoder for it.
    """
    import av

    check_track(len(streams), track, noun, name)
    kind = av.stream.Disposition
    aside = kind.comment | kind.hearing_impaired | kind.visual_impaired | kind.descriptions | kind.dependent

    def rank(stream: Any) -> tuple[bool, bool, bool]:
        disposition = stream.disposition
        return stream.codec_context is None, bool(disposition & aside), not disposition & kind.default

    chosen = min(streams, key=rank) if track is None else streams[track - 1]  # the first of several that are as good
    if chosen.codec_context is None:
        raise MediaError(f"{name}: no decoder for its {noun} track")
    if len(streams) == 1:
        return chosen, []
    which = streams.index(chosen) + 1
    return chosen, [f"only {noun} track {which} of {len(streams)} is kept"]
