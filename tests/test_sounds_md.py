"""The page on sounds and videos says what the code does: a file is made for each cell of its tables."""

from __future__ import annotations

import io
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tokodec.codec.errors import MediaError
from tokodec.codec.media import audio
from tokodec.codec.media.audio import AUDIO_SUFFIXES_OUT, Samples, Sound, read_audio, write_audio
from tokodec.codec.media.guard import DEMUXERS
from tokodec.codec.media.layout import CUSTOMARY
from tokodec.codec.media.read_video import VideoReader
from tokodec.codec.media.write_video import VIDEO_SUFFIXES_OUT, SoundTrack, VideoWriter

PAGE = (Path(audio.__file__).parent / "SOUNDS_AND_VIDEOS.md").read_text()
RATE, SIDE = 48000, 0x60F
FORMATS = {  # codec and muxer of each row
    "WAV": ("pcm_s16le", "wav"),
    "AIFF": ("pcm_s16be", "aiff"),
    "CAF": ("pcm_s16le", "caf"),
    "W64": ("pcm_s16le", "w64"),
    "AU": ("pcm_s16be", "au"),
    "FLAC": ("flac", "flac"),
    "WavPack": ("wavpack", "wv"),
    "TTA": ("tta", "tta"),
    "MP3": ("libmp3lame", "mp3"),
    "AAC (ADTS)": ("aac", "adts"),
    "AC-3": ("ac3", "ac3"),
    "Ogg (Opus)": ("libopus", "ogg"),
    "MP4, M4A": ("aac", "mp4"),
    "Matroska, WebM": ("flac", "matroska"),
    "MPEG-TS": ("mp2", "mpegts"),
    "FLV": ("aac", "flv"),
}


def table(title: str) -> dict[str, dict[str, str]]:
    """Rows of the table below a title, by their first cell."""
    lines = re.findall(r"^\| (.*) \|$", PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0], re.M)
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


READ, SOUND_OUT, VIDEO_OUT = (
    table("Sounds that are read"),
    table("Sounds that are written"),
    table("Videos that are written"),
)


def made(name: str, parts: list[tuple[float, float]], layout: str = "mono") -> bytes:
    """A file with noise: seconds at which each part begins, and how long it is."""
    codec, muxer = FORMATS[name]
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    with av.open(buffer, "w", format=muxer) as container:
        stream: Any = container.add_stream(codec, rate=RATE, layout=layout)
        stream.bit_rate = 96_000 * stream.layout.nb_channels
        packets = []
        for begin, seconds in parts:
            x = (0.1 * rng.normal(size=(1, round(seconds * RATE) * stream.layout.nb_channels))).astype(np.float32)
            step = 960 * stream.layout.nb_channels
            for at in range(0, x.shape[1], step):
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x[:, at : at + step]), "flt", layout)
                frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
                frame.pts = round(begin * RATE) + at // stream.layout.nb_channels
                packets += stream.encode(frame)
        for packet in packets + stream.encode(None):
            container.mux(packet)
    return buffer.getvalue()


def read(data: bytes) -> Sound:
    return read_audio(io.BytesIO(data), "x")


def test_every_format_has_a_row() -> None:
    assert list(READ) == list(FORMATS)
    assert set(SOUND_OUT) == set(AUDIO_SUFFIXES_OUT)
    assert set(VIDEO_OUT) == set(VIDEO_SUFFIXES_OUT)
    named = set(re.findall(r"`([a-z0-9]+)`", PAGE.split("\n## What is opened\n")[1].split("\n## ")[0]))
    assert set(DEMUXERS.split(",")) <= named


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_cut_off_is_told(name: str) -> None:
    data = made(name, [(0, 4)])
    assert read(data).problems == []
    if READ[name]["cut off"] == "refused":
        with pytest.raises(MediaError, match="cut off"):
            read(data[: len(data) // 2])
        return
    found = read(data[: len(data) // 2])
    assert RATE < found.samples.shape[1] < 3 * RATE
    told = bool(found.problems)
    assert READ[name]["cut off"] == ("told" if told else "not told")


@pytest.mark.parametrize("name", FORMATS)
def test_joined_files(name: str) -> None:
    data = made(name, [(0, 4)])
    one, every = read(data), read(data * 3)
    if abs(every.samples.shape[1] - 3 * one.samples.shape[1]) <= 3520:  # MP3 has its delay once
        assert READ[name]["joined"] == "read on"
        assert every.problems == []
    else:
        told = bool(every.problems)
        assert READ[name]["joined"] == ("told" if told else "not told")


@pytest.mark.parametrize("name", FORMATS)
def test_gaps(name: str) -> None:
    found = read(made(name, [(0, 0.6), (1.2, 0.6)]))
    seconds = found.samples.shape[1] / RATE
    silent = any("became" in note for note in found.notes)
    assert seconds == pytest.approx(1.8 if silent else 1.2, abs=0.1)
    assert READ[name]["gaps"] == ("silence" if silent else "-")


@pytest.mark.parametrize("name", FORMATS)
def test_positions(name: str) -> None:
    kept = []
    for layout, mask in (("5.1(side)", SIDE), ("5.1", 0x3F)):
        try:
            data = made(name, [(0, 0.3)], layout)
        except (av.FFmpegError, ValueError):
            continue
        found = read(data)
        assert found.layout in (0, SIDE, 0x3F)
        kept.append(found.layout == mask)
    assert READ[name]["positions"] == ("kept" if any(kept) else "not told" if kept else "-")


@pytest.mark.parametrize("suffix", SOUND_OUT)
def test_written_sounds(suffix: str) -> None:
    x: Samples = np.zeros((6, 1000), np.float32)
    for column, mask in (("positions", SIDE), ("unknown positions", 0)):
        buffer = io.BytesIO()
        notes = write_audio(Sound(x, RATE, 24, layout=mask), buffer, suffix, "x")
        buffer.seek(0)
        found = read_audio(buffer, "x")
        assert found.bit_depth == 24
        assert SOUND_OUT[suffix][column] == ("noted" if notes else "kept" if found.layout == mask else "lost")


@pytest.mark.parametrize("suffix", VIDEO_OUT)
def test_written_videos(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    track = SoundTrack(RATE, 6, layout=SIDE)
    with path.open("w+b") as file:
        writer = VideoWriter(file, suffix, "a", 16, 16, Fraction(1, 25), rate=Fraction(25), sound=track)
        with writer:
            writer.write(np.zeros((16, 16, 3), np.uint8), Fraction(0))
            writer.write(np.zeros((16, 16, 3), np.uint8), Fraction(1, 25), Fraction(2))
            writer.write_sound(np.zeros((6, 4800), np.float32))
    row, notes = VIDEO_OUT[suffix], " ".join(writer.notes)
    with VideoReader(path, "a") as reader:
        last = list(reader)[-1].duration
        assert row["sound"] == ("kept" if reader.has_sound else "noted")
        if reader.has_sound:
            with reader.sound()[0] as sound:
                assert row["positions"] == ("kept" if sound.layout == SIDE else "noted")
                assert sound.layout in (SIDE, CUSTOMARY[6])
    assert row["last frame"] == ("kept" if last == 2 else "noted")
    assert ("last frame" in notes) == (row["last frame"] == "noted")
    assert ("does not hold channels" in notes) == (row["positions"] == "noted")
    assert ("the sound is not kept" in notes) == (row["sound"] == "noted")
