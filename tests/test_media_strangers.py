"""What files of strangers showed (media_corpus.py), made anew: each is a kind of fault, with the right value."""

from __future__ import annotations

import io
import re
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from tokodec.codec.encode import encode_file
from tokodec.codec.errors import MediaError
from tokodec.codec.media.audio import AudioReader
from tokodec.codec.media.kind import media_kind
from tokodec.codec.media.picture import Picture
from tokodec.codec.media.read_image import read_image
from tokodec.codec.media.read_video import VideoReader
from tokodec.codec.tokens import tokenize_file

RATE = 48000


def movie(codec: str, options: dict[str, str], form: str = "avi", n: int = 20) -> bytes:
    """A file of ``n`` gray frames that grow brighter, 25 a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for i in range(n):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 12 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"bf": "3"}),
        ("mpeg4", {"bf": "2"}),
        ("mpeg1video", {"bf": "2"}),
        ("mpeg2video", {"bf": "0"}),
        ("mjpeg", {}),
    ],
)
def test_avi_states_when_frames_are_decoded(codec: str, options: dict[str, str]) -> None:
    """So frames that look ahead come in another order than their stamps."""
    with VideoReader(io.BytesIO(movie(codec, options)), "x") as video:
        frames = list(video)
    assert [frame.time for frame in frames] == [Fraction(i, 25) for i in range(20)]
    assert frames[-1].time + frames[-1].duration == Fraction(20, 25)
    brightness = [float(frame.pixels.mean()) for frame in frames]
    assert brightness == sorted(brightness)
    assert video.notes == video.problems == []


def test_padding_behind_the_end_of_a_file_is_none_of_it() -> None:
    """Recorders fill the last sectors with whatever was there before."""
    data = movie("mjpeg", {})
    old = bytes(600) + b"LIST" + struct.pack("<I", 1 << 30) + b"movi"
    with VideoReader(io.BytesIO(data + old), "x") as video:
        assert len(list(video)) == 20
    assert video.problems == []
    with VideoReader(io.BytesIO(data[: len(data) // 2]), "x") as video:
        assert 0 < len(list(video)) < 20
    assert re.fullmatch("cut off: at least [0-9]+ bytes are missing at its end", video.problems[-1])


def test_rubbish_behind_the_last_box_is_no_damage() -> None:
    """A clip of the web has samples of another file there, whose first bytes would be a box of 4 GB."""
    data = movie("mpeg4", {}, "mp4")
    rubbish = struct.pack(">I", 0xEA742FDA) + b"\x91@Ma" + bytes(1000)
    with VideoReader(io.BytesIO(data + rubbish), "x") as video:
        assert len(list(video)) == 20
    assert video.problems == []
    with VideoReader(io.BytesIO(data + struct.pack(">I", 5000) + b"moof" + bytes(1000)), "x") as video:
        list(video)
    assert video.problems[-1] == "cut off: at least 3992 bytes are missing at its end"


# ------------------------------------------------------------------------------------------------------------- sounds


def sound(codec: str, muxer: str, shifts: list[float] | None = None) -> bytes:
    """2 s of a tone; stamps of its packets are off by ``shifts`` seconds, one after the other."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=muxer) as container:
        stream: Any = container.add_stream(codec, rate=RATE, layout="stereo")
        stream.bit_rate = 96_000
        x = (np.sin(np.arange(2 * RATE) / 20) / 2).astype(np.float32).repeat(2)
        frame = av.AudioFrame.from_ndarray(x[None], "flt", "stereo")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        for i, packet in enumerate([*stream.encode(frame), *stream.encode(None)]):
            if shifts and packet.pts is not None:
                packet.pts += round(shifts[i % len(shifts)] / packet.time_base)
                packet.dts = packet.pts
            container.mux(packet)
    return buffer.getvalue()


def length(data: bytes) -> tuple[int, AudioReader]:
    with AudioReader(io.BytesIO(data), "x") as reader:
        return sum(block.shape[1] for block in reader.blocks()), reader


def mp3() -> bytes:
    """With a Xing header, without ID3."""
    data = sound("libmp3lame", "mp3")
    return data[data.index(b"\xff\xfb") :]


def vbri(data: bytes) -> bytes:
    """The same with a header as Fraunhofer's encoders write it."""
    second = data.index(data[:2], 100)
    frames = data.count(data[:2]) - 1
    head = b"VBRI" + struct.pack(">HHHII", 1, 0, 75, len(data), frames)
    return (data[:4] + bytes(32) + head).ljust(second, b"\0") + data[second:]


def tag(size: int) -> bytes:
    """An empty ID3 tag, of ``size`` zeros."""
    return b"ID3\4\0\0" + bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127]) + bytes(size)


@pytest.mark.parametrize("before", [b"", tag(100), tag(100) + tag(300), tag(30) + bytes(3000)])
@pytest.mark.parametrize("made", [bytes, vbri])
def test_a_cut_mp3_is_told_by_what_its_header_states(made: type[bytes], before: bytes) -> None:
    data = made(mp3())
    for source, told in ((before + data, 0), (before + data[: len(data) // 2], 1)):
        count, reader = length(source)
        assert abs(count - (1 if told else 2) * RATE) < 6000
        assert [problem.split(":")[0] for problem in reader.problems] == ["cut off"] * told


def test_a_variable_rate_without_a_header_costs_nothing() -> None:
    """What the first frames say of the length is wrong."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3", container_options={"write_xing": "0"}) as container:
        stream: Any = container.add_stream("libmp3lame", rate=RATE, layout="mono", options={"compression_level": "9"})
        stream.codec_context.flags |= av.codec.context.Flags.qscale
        stream.codec_context.global_quality = 9 * 118
        rng = np.random.default_rng(0)
        x = np.where(np.arange(10 * RATE) < 8 * RATE, 0, rng.normal(size=10 * RATE) / 8).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(x[None], "flt", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with av.open(io.BytesIO(buffer.getvalue()), "r") as found:
        assert len({packet.size for packet in found.demux(audio=0)}) > 2
    count, reader = length(buffer.getvalue())
    assert 0 <= count - 10 * RATE < 3000  # what the encoder adds
    assert reader.problems == []


def test_stamps_of_asf_are_those_of_packets() -> None:
    """They are late by what a packet holds of the sound before it, up to a tenth of a second: that is no gap."""
    exact, _ = length(sound("wmav2", "asf"))
    count, reader = length(sound("wmav2", "asf", [0, 0.05, 0.1, 0.08, 0.05, 0.02]))
    assert count == exact
    assert reader.notes == reader.problems == []
    count, reader = length(sound("wmav2", "asf", [*[0] * 20, *[0.6] * 1000]))  # this one is
    assert abs(count - exact - 0.6 * RATE) < RATE / 50
    assert reader.notes == ["1 gap in its time stamps became 0.600 s of silence"]


def test_a_tag_behind_a_sound_is_no_damage() -> None:
    data = sound("wavpack", "wv")
    tag = b"APETAGEX" + struct.pack("<IIII8x", 2000, 32, 0, 0x80000000)
    count, reader = length(data + tag + b"TAG" + bytes(125))
    assert (count, reader.problems) == (2 * RATE, [])
    count, reader = length(data[: len(data) // 2] + tag)
    assert count < 2 * RATE
    assert reader.problems


def test_a_sound_that_was_cut_off_before_its_samples_says_so(tmp_path: Path, sound_model: Path) -> None:
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16) + b"data" + struct.pack("<I", 9600)
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(head) + 9600) + head)
    for call in (encode_file, tokenize_file):
        with pytest.raises(MediaError, match="a sound without samples; cut off: at least 9600 bytes are missing"):
            call(path, model=str(sound_model))


@pytest.mark.parametrize("codec", ["adpcm_ima_wav", "adpcm_ms", "libmp3lame", "GSM610"])
@pytest.mark.parametrize("stated", [30_000, 0, 0xFFFFFFFF])
def test_wav_of_blocks_is_as_long_as_it_says(codec: str, stated: int) -> None:
    """The last block is filled up; a chunk says how many samples count, 0 and 0xFFFFFFFF that nobody knew."""
    x = (np.sin(np.arange(30_000) / 20) / 2).astype(np.float32)
    buffer = io.BytesIO()
    if codec == "GSM610":
        soundfile.write(buffer, x, 44_100, format="WAV", subtype=codec)
    else:
        with av.open(buffer, "w", format="wav") as container:
            stream: Any = container.add_stream(codec, rate=44_100, layout="mono")
            frame = av.AudioFrame.from_ndarray(x[None], "flt", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 44_100, 0, Fraction(1, 44_100)
            frame = av.AudioResampler(format=stream.codec_context.format, layout="mono").resample(frame)[0]
            container.mux([*stream.encode(frame), *stream.encode(None)])
    data = buffer.getvalue()
    place = data.index(b"fact") + 8
    count, reader = length(data[:place] + stated.to_bytes(4, "little") + data[place + 4 :])
    filled = {"adpcm_ima_wav": 30_615, "adpcm_ms": 30_540, "libmp3lame": 32_256, "GSM610": 30_080}
    assert (count, reader.problems) == (30_000 if stated == 30_000 else filled[codec], [])


@pytest.mark.parametrize(("kind", "subtype"), [("CAF", "ALAC_16"), ("SDS", "PCM_16"), ("AIFF", "GSM610")])
def test_lengths_of_sounds_of_other_codecs_are_right(kind: str, subtype: str) -> None:
    """ALAC in CAF was cut at its end, the end of SDS taken for damage, GSM in AIFF for one that lacks samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, (np.sin(np.arange(30_000) / 20) / 2), 44_100, format=kind, subtype=subtype)
    count, reader = length(buffer.getvalue())
    assert (count, reader.problems) == (30_080 if subtype == "GSM610" else 30_000, [])


def test_a_movie_without_tracks_holds_nothing(tmp_path: Path) -> None:
    box = struct.pack(">I4s", 24, b"ftyp") + b"isom\0\0\0\0isommp41"
    path = tmp_path / "a.mp4"
    movie = struct.pack(">I4sI", 108, b"mvhd", 0) + struct.pack(">IIII", 0, 0, 1000, 0).ljust(96, b"\0")
    path.write_bytes(box + struct.pack(">I4s", 8 + len(movie), b"moov") + movie)
    assert media_kind(path)[0] == "audio"
    with pytest.raises(MediaError, match="holds neither pictures nor sound"):
        AudioReader(path, "x")


# ----------------------------------------------------------------------------------------------------------- pictures


def read(data: bytes) -> Picture:
    return read_image(io.BytesIO(data), "x", 1 << 24)


def png_with(*chunks: tuple[bytes, bytes]) -> tuple[np.ndarray, bytes]:
    """A PNG with further chunks behind its header."""
    pixels = np.arange(20 * 30 * 3, dtype=np.uint32).reshape(20, 30, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    data = buffer.getvalue()
    more = b"".join(
        struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))
        for kind, payload in chunks
    )
    return pixels, data[:33] + more + data[33:]


def test_a_png_with_a_long_text_is_a_picture() -> None:
    pixels, data = png_with((b"zTXt", b"Comment\0\0" + zlib.compress(bytes(range(65, 90)) * 80_000)))
    picture = read(data)
    assert np.array_equal(picture.pixels, pixels)
    assert picture.notes == ["text not kept: Comment"]


@pytest.mark.parametrize("kind", [b"cHRM", b"gAMA", b"pHYs", b"sRGB", b"cICP", b"tIME", b"acTL"])
@pytest.mark.parametrize("size", [0, 3])
def test_a_chunk_of_a_wrong_size_costs_no_pixel(kind: bytes, size: int) -> None:
    pixels, data = png_with((kind, bytes(size)))
    picture = read(data)
    assert np.array_equal(picture.pixels, pixels)
    assert picture.problems == [f"damaged: {kind.decode()} chunk"]


def test_a_rare_kind_of_picture_is_not_called_cut_off() -> None:
    """A bitmap whose colours have 10 bits each, which nobody has."""
    masks = struct.pack("<IIII", 0x3FF, 0x3FF << 10, 0x3FF << 20, 0)
    info = struct.pack("<IiiHHIIiiII", 56, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + masks
    data = b"BM" + struct.pack("<IHHI", 14 + len(info) + 8, 0, 0, 14 + len(info)) + info + bytes(8)
    with pytest.raises(MediaError, match=r"^x is damaged or of a rare kind that cannot be read: .*bitfields layout$"):
        read(data)


def test_text_in_utf_16_is_no_sound(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes("\ufeffnotes".encode("utf-16-le"))
    assert media_kind(path)[0] == "image"  # which everything is that nobody knows
    with pytest.raises(MediaError, match="is not a picture in a known format"):
        encode_file(path)
