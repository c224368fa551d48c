"""Media never lead to other files or to the network: lists of references are refused by name, names are only names."""

from __future__ import annotations

import io
import os
import socket
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pytest

from tokodec.codec.encode import encode_file
from tokodec.codec.errors import MediaError, UnsupportedMediaError
from tokodec.codec.media.audio import read_audio
from tokodec.codec.media.guard import DEMUXERS, open_media
from tokodec.codec.media.kind import media_kind
from tokodec.codec.media.read_video import VideoReader

LISTS = {
    "ffconcat version 1.0\nfile private.mp3\n": "a list of files",
    "\ufeffffconcat version 1.0\r\nfile private.mp3\r\n": "a list of files",
    "#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n": "a playlist",
    "[playlist]\nFile1=private.mp3\n": "a playlist",
    '<?xml version="1.0"?>\n<MPD><BaseURL>private.mp3</BaseURL></MPD>': "a manifest",
    "<smil><body><audio src='private.mp3'/></body></smil>": "a presentation",
    "<ASX><ENTRY><REF HREF='private.mp3'/></ENTRY></ASX>": "a playlist",
    "[Reference]\nRef1=http://127.0.0.1:9/a\n": "a list of addresses",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=audio 5004 RTP/AVP 0\n": "a session description",
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nm=audio 5004 RTP/AVP 0\r\n": "a session description",
    "RTSPtextrtsp://127.0.0.1/x": "an address",
}
Read = Callable[[Path | BinaryIO, str], object]
READERS: list[Read] = [read_audio, VideoReader]


def sound(path: Path, codec: str = "aac", seconds: float = 1) -> Path:
    with av.open(str(path), "w", format={".mp3": "mp3", ".m4a": "ipod"}.get(path.suffix)) as container:
        stream = container.add_stream(codec, rate=24000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        x = np.sin(np.arange(round(24000 * seconds)) / 9).astype(np.float32)[None] * 0.4
        frame = av.AudioFrame.from_ndarray(x, format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 24000, 0, Fraction(1, 24000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("suffix", [".m4a", ".mp3", ".mp4", ".m3u8", ""])
def test_lists_of_files_and_addresses_are_refused_by_name(read: Read, suffix: str, tmp_path: Path) -> None:
    sound(tmp_path / "private.mp3", "libmp3lame")
    for number, (text, noun) in enumerate(LISTS.items()):
        path = tmp_path / f"innocent{number}{suffix}"
        path.write_text(text, newline="")
        for source in (path, io.BytesIO(path.read_bytes())):
            with pytest.raises(UnsupportedMediaError, match=rf"^x: {noun}.*never opened") as caught:
                read(source, "x")
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("piped", [True, False])
def test_encoding_a_list_of_files_encodes_no_neighbour(piped: bool, tmp_path: Path, sound_model: Path) -> None:
    sound(tmp_path / "private.mp3", "libmp3lame")
    for number, text in enumerate(LISTS):
        path = tmp_path / f"innocent{number}.m4a"
        path.write_text(text, newline="")
        with pytest.raises(UnsupportedMediaError, match="never opened"):
            encode_file(io.BytesIO(path.read_bytes()) if piped else path, tmp_path / "out.tok", model=str(sound_model))
        assert not (tmp_path / "out.tok").exists()


def test_a_name_is_never_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        port = server.getsockname()[1]
        names = [
            f"http:127.0.0.1:{port}?x.mp3",
            f"tcp:127.0.0.1:{port}",
            "pipe:0",
            "-",
            "concat:a.mp3|b.mp3",
            "a%03d.mp3",
        ]
        for name in names:
            data = sound(tmp_path / "s.mp3", "libmp3lame").read_bytes()
            (tmp_path / name).write_bytes(data)
            assert read_audio(Path(name), name).samples.shape[1] > 24_000 - 1
            assert media_kind(Path(name))[0] == "audio"
            with pytest.raises(MediaError, match="only sound"):
                VideoReader(Path(name), name)
        for name in (f"http:127.0.0.1:{port}?no.mp3", "b%03d.mp3", f"rtmp:127.0.0.1:{port}"):
            (tmp_path / "b001.mp3").write_bytes(data)
            for read in READERS:
                with pytest.raises(MediaError, match="No such file"):
                    read(Path(name), name)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize("read", READERS)
def test_tracks_that_lie_in_another_file_are_refused(read: Read, tmp_path: Path) -> None:
    """A data reference without flag 1 (ISO/IEC 14496-12, 8.7.2) and a movie of references."""
    data = sound(tmp_path / "a.m4a").read_bytes()
    at = data.index(b"url \0\0\0\x01")
    outside = data[:at] + b"alis\0\0\0\0" + data[at + 8 :]
    with pytest.raises(UnsupportedMediaError, match="track in another file"):
        read(io.BytesIO(outside), "x")
    references = b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + b"\0\0\0\x18moov\0\0\0\x10rmra\0\0\0\x08rmda"
    with pytest.raises(UnsupportedMediaError, match="a movie of references"):
        read(io.BytesIO(references), "x")


def test_no_demuxer_on_the_list_follows_references() -> None:
    names = set(DEMUXERS.split(","))
    there = {name for form in av.formats_available for name in form.split(",")}
    assert names <= there
    follow = (
        "concat hls dash sdp rtsp rtp image2 image2pipe imf webm_dash_manifest lavfi sap ffmetadata mlv vobsub mxf nut"
    )
    assert not names & set(follow.split())


def test_nothing_else_can_be_opened(tmp_path: Path) -> None:
    """Not by a demuxer that was let in either: no protocol is allowed."""
    media = open_media(sound(tmp_path / "a.m4a"), "a", "a sound")
    try:
        assert media.container.name == "<none>"
        assert media.container.container_options["protocol_whitelist"] == "none"
    finally:
        media.close()
    with pytest.raises((av.FFmpegError, OSError)):
        av.open(str(tmp_path / "a.m4a"), container_options={"protocol_whitelist": "none"})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are of Unix")
@pytest.mark.parametrize("name", ["pipe", "pipe.wav", "pipe.mp4"])
def test_pipes_with_names_are_read_once_in_order(name: str, tmp_path: Path) -> None:
    import threading

    data = sound(tmp_path / "a.m4a").read_bytes()
    os.mkfifo(tmp_path / name)
    writer = threading.Thread(target=(tmp_path / name).write_bytes, args=(data,))
    writer.start()
    kind, source = media_kind(tmp_path / name)
    writer.join()
    assert kind == "audio"
    assert np.array_equal(read_audio(source, "x").samples, read_audio(tmp_path / "a.m4a", "a").samples)


def test_a_device_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(MediaError, match=r"^/dev/zero is not"):
        media_kind(Path("/dev/zero"))


def test_boxes_that_claim_much_are_refused_before_they_cost_time() -> None:
    """FFmpeg counts up to the number of a track, and to samples whose sizes take no bytes."""
    media = {name: bytearray(sample_movie(options)) for name, options in (("a", {}), ("b", FRAGMENTED))}
    at = media["b"].index(b"tkhd") + 4
    media["b"][at + 12 : at + 16] = b"\xc4\xd8\x1b\xd4"
    at = media["a"].index(b"stsz") + 4
    media["a"][at + 4 : at + 12] = b"\0\0\0\1\x7f\xff\xff\xff"
    for data, said in ((media["b"], "tkhd"), (media["a"], "stsz")):
        with pytest.raises(MediaError, match=f"x: damaged: a {said} box claims \\d+$"):
            read_audio(io.BytesIO(bytes(data)), "x")


FRAGMENTED = {"movflags": "frag_keyframe+empty_moov"}


def sample_movie(options: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options=options) as container:
        stream = container.add_stream("aac", rate=24000, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 24000), np.float32), format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 24000, 0, Fraction(1, 24000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
