"""Time stamps of sound and picture: gaps are silence, nothing comes twice, clocks that jump are noticed, both stay
together to 20 ms."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.media.audio import Samples, read_audio
from tokodec.codec.media.read_video import Frame, VideoReader
from tokodec.codec.media.write_video import VideoWriter
from tokodec.codec.video.clock import shown_clock

RATE, FPS = 48000, 25
TOLERANCE = 0.02  # seconds


def beeps(seconds: float, at: list[float]) -> Samples:
    """``[1, n]``: silence, and 50 ms of 1 kHz at some moments."""
    x = np.zeros((1, round(seconds * RATE)), np.float32)
    beep = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE // 20) / RATE)
    for moment in at:
        begin = round(moment * RATE)
        x[0, begin : begin + len(beep)] += beep
    return x


def onsets(x: Samples, rate: int = RATE) -> list[float]:
    """When a mono sound becomes loud, seconds."""
    loud = np.abs(x[0]) > 0.15
    near = np.convolve(loud, np.ones(rate // 50), "full")[: len(loud)] > 0  # loud within the last 20 ms
    return list((np.flatnonzero(near & ~np.r_[False, near[:-1]]) / rate).tolist())


def clip(
    path: Path,
    sounds: list[tuple[float, Samples]],
    codec: str,
    muxer: str,
    flashes: list[float] | None = None,
    frames: int = 0,
    offset: float = 0,
) -> bytes:
    """A file of pieces of sound at their times, and of frames, white where it flashes."""
    with av.open(str(path), "w", format=muxer) as container:
        picture = None
        if frames:
            picture = container.add_stream("mpeg2video" if muxer == "mpegts" else "libx264", rate=FPS)
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
            picture.codec_context.options = {} if muxer == "mpegts" else {"tune": "zerolatency"}
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = 128_000
        packets = []
        for i in range(frames):
            white = any(round(flash * FPS) == i for flash in flashes or [])
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 255 * white, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i + round(offset * FPS), Fraction(1, FPS)
            assert picture is not None
            packets += picture.encode(frame)
        packets += picture.encode(None) if picture is not None else []
        for begin, x in sounds:
            for at in range(0, x.shape[1], 960):
                heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(x[:, at : at + 960]), "flt", "mono")
                heard.sample_rate, heard.time_base = RATE, Fraction(1, RATE)
                heard.pts = round((begin + offset) * RATE) + at
                packets += stream.encode(heard)
        packets += stream.encode(None)
        packets.sort(key=lambda packet: (packet.dts if packet.dts is not None else 0) * packet.time_base)
        for packet in packets:
            container.mux(packet)
    return path.read_bytes()


CODECS = [
    ("a.mkv", "pcm_s16le", "matroska"),
    ("a.webm", "libopus", "webm"),
    ("a.mp4", "aac", "mp4"),
    ("a.ts", "mp2", "mpegts"),
    ("a.flv", "aac", "flv"),
]


@pytest.mark.parametrize(("name", "codec", "muxer"), CODECS)
def test_a_gap_becomes_silence(name: str, codec: str, muxer: str, tmp_path: Path) -> None:
    """A second of sound, nothing for 0.6 s, and sound again, with a beep at 2.0 s."""
    parts = [(0.0, beeps(1, [0.4])), (1.6, beeps(1, [0.4]))]
    clip(tmp_path / name, parts, codec, muxer)
    sound = read_audio(tmp_path / name, name)
    found = onsets(sound.samples)
    delay = found[0] - 0.4  # of raw encoders
    assert 0 <= delay + 0.005 < 0.05
    assert found[1] - delay == pytest.approx(2.0, abs=TOLERANCE)
    assert sound.samples.shape[1] / RATE == pytest.approx(2.6, abs=0.05)
    assert any("gap in its time stamps became 0." in note for note in sound.notes)
    assert sound.problems == []


@pytest.mark.parametrize("codec", ["pcm_s16le", "flac"])
def test_what_overlaps_is_cut(codec: str, tmp_path: Path) -> None:
    """The second part begins 50 ms before the first ends."""
    with av.open(str(tmp_path / "a.mkv"), "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        for begin, x in ((0.0, beeps(1, [0.4])), (0.95, beeps(1, [0.5]))):
            heard = av.AudioFrame.from_ndarray(x, "flt", "mono")
            heard.sample_rate, heard.time_base, heard.pts = RATE, Fraction(1, RATE), round(begin * RATE)
            container.mux(stream.encode(heard))
        container.mux(stream.encode(None))
    sound = read_audio(tmp_path / "a.mkv", "a.mkv")
    assert onsets(sound.samples) == pytest.approx([0.4, 1.45], abs=TOLERANCE)
    assert sound.samples.shape[1] / RATE == pytest.approx(1.95, abs=TOLERANCE)
    assert sound.notes == ["1 frames overlapped those before and were cut"]


def seen(path: Path) -> tuple[list[float], list[float], VideoReader, list[Frame]]:
    """When it flashes and beeps."""
    with VideoReader(path, path.name) as reader:
        frames = list(reader)
        sound, begin = reader.sound()
        with sound:
            x = np.concatenate(list(sound.blocks()), axis=1)
    bright = [frame.pixels.mean() > 128 for frame in frames]
    flashes = [
        float(f.time) for f, now, before in zip(frames, bright, [False, *bright], strict=False) if now and not before
    ]
    return flashes, [float(begin) + moment for moment in onsets(x)], reader, frames


@pytest.mark.parametrize(("name", "codec", "muxer"), [c for c in CODECS if c[0] != "a.webm"])
def test_sound_and_picture_stay_together_across_a_gap(name: str, codec: str, muxer: str, tmp_path: Path) -> None:
    parts = [(0.0, beeps(1, [0.4])), (1.6, beeps(1, [0.4]))]
    clip(tmp_path / name, parts, codec, muxer, [0.4, 2.0], 65)
    flashes, sounds, _, frames = seen(tmp_path / name)
    assert len(frames) == 65
    assert flashes[1] - flashes[0] == pytest.approx(1.6, abs=0.001)
    assert sounds == pytest.approx(flashes, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "codec", "muxer", "offset"),
    [("a.ts", "mp2", "mpegts", 0), ("a.ts", "mp2", "mpegts", 100), ("a.mkv", "pcm_s16le", "matroska", 0)],
)
def test_joined_recordings_stay_together(name: str, codec: str, muxer: str, offset: float, tmp_path: Path) -> None:
    """Files that are joined byte by byte: the clock goes back, or leaps forward."""
    first = clip(tmp_path / "1", [(0.0, beeps(2, [0.8]))], codec, muxer, [0.8], 50)
    second = clip(tmp_path / "2", [(0.0, beeps(2.1, [1.2]))], codec, muxer, [1.2], 50, offset)
    (tmp_path / name).write_bytes(first + second)
    flashes, sounds, reader, frames = seen(tmp_path / name)
    assert len(frames) == 100
    assert flashes == pytest.approx([0.8, 3.2], abs=0.06)
    for flash, sound in zip(flashes, sounds, strict=True):
        assert sound - flash == pytest.approx(sounds[0] - flashes[0], abs=TOLERANCE)
    assert any("clock of the file jumps" in note for note in reader.notes)
    assert reader.problems == []


def test_a_gap_without_measure_is_left_out_and_said(tmp_path: Path) -> None:
    """Two packets 30 days apart do not cost 30 days of silence."""
    clip(tmp_path / "a.mkv", [(0.0, beeps(1, [0.4])), (2_592_000.0, beeps(1, [0.4]))], "pcm_s16le", "matroska")
    sound = read_audio(tmp_path / "a.mkv", "a.mkv")
    assert sound.samples.shape[1] == 2 * RATE
    assert any("is left out: there is more silence than sound" in problem for problem in sound.problems)


# ------------------------------------------------------------------------------------------------- the last frame's end


def still(path: Path, seconds: float, frames: int = 1) -> Path:
    """One frame, or a few, with a sound that goes on."""
    muxer = {".mkv": "matroska", ".ts": "mpegts"}.get(path.suffix, path.suffix[1:])
    clip(
        path,
        [(0.0, beeps(seconds, [seconds - 1]))],
        "libopus" if path.suffix == ".webm" else "aac",
        muxer,
        [0.0],
        frames,
    )
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("frames", [1, 5])
def test_a_picture_stays_while_its_sound_goes_on(
    suffix: str, frames: int, tmp_path: Path, video_model: Path, sound_model: Path
) -> None:
    path = still(tmp_path / f"a{suffix}", 6, frames)
    models = {"model": str(video_model), "sound_model": str(sound_model), "device": "cpu"}
    whole = encode_file(path, **models)  # type: ignore[arg-type]
    assert whole.seconds == pytest.approx(6, abs=0.1)
    bounded = encode_file(path, kbps=4.0, **models)  # type: ignore[arg-type]
    assert len(bounded.data) <= 4000 * 6.1 / 8
    assert bounded.kbps <= 4
    clock = shown_clock(read_tok(whole.data))
    assert float(clock.time(clock.frames)) == pytest.approx(6, abs=0.1)
    for target in (".mp4", ".mkv"):
        out = tmp_path / f"b{target}"
        decode_file(io.BytesIO(whole.data), out, start=3, model=str(video_model), sound_model=str(sound_model))
        _, _, reader, found = seen(out)
        assert len(found) == 1
        assert float(found[0].duration) == pytest.approx(3, abs=0.15)
        assert reader.problems == []


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".gif"])
@pytest.mark.parametrize("frames", [1, 3])
def test_how_long_the_last_frame_is_shown_comes_back(suffix: str, frames: int, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    with (
        path.open("w+b") as file,
        VideoWriter(file, suffix, "a", 16, 16, Fraction(1, 25), rate=Fraction(25)) as writer,
    ):
        for i in range(frames):
            duration = Fraction(3) if i == frames - 1 else None
            writer.write(np.full((16, 16, 3), 40 * i, np.uint8), Fraction(i, 25), duration)
    with VideoReader(path, "a") as reader:
        assert [frame.duration for frame in reader] == [Fraction(1, 25)] * (frames - 1) + [Fraction(3)]
    assert not any("last frame" in note for note in writer.notes)


def test_what_holds_no_duration_says_so(tmp_path: Path) -> None:
    for seconds, said in ((Fraction(1, 25), False), (Fraction(3), True)):
        with (tmp_path / "a.y4m").open("wb") as file:
            writer = VideoWriter(file, ".y4m", "a", 16, 16, Fraction(1, 25), rate=Fraction(25))
            with writer:
                writer.write(np.zeros((16, 16, 3), np.uint8), Fraction(0), seconds)
        assert any("the last frame is shown for 3.000 s" in note for note in writer.notes) == said


def test_an_end_without_measure_is_no_duration(tmp_path: Path) -> None:
    """A file that says it lasts for years does not show its last frame for years."""
    data = clip(tmp_path / "a.mkv", [(0.0, beeps(1, [0.4]))], "pcm_s16le", "matroska", [0.4], 25)
    at = data.index(b"00:00:01.0")  # the tag DURATION of the video track
    for text in (b"9999:00:01.0", b"00:00:01.-1"):
        wrong = bytearray(data)
        wrong[at : at + len(text)] = text
        (tmp_path / "b.mkv").write_bytes(wrong)
        with VideoReader(tmp_path / "b.mkv", "b") as reader:
            assert list(reader)[-1].duration <= Fraction(1, 10)
