"""Videos in and out: every frame with its exact time, odd sizes, rotation and sound; what is wrong is one line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tokodec.codec.errors import MediaError, OutputExistsError, UnsupportedMediaError, UsageError
from tokodec.codec.files import atomic_output
from tokodec.codec.generate.files import SampleOptions, generate_files
from tokodec.codec.media.audio import Samples
from tokodec.codec.media.kind import media_kind
from tokodec.codec.media.read_video import Frame, Pixels, VideoReader
from tokodec.codec.media.write_video import SoundTrack, VideoWriter

FILM = Fraction(1001, 24000)
RATE = 24000


def clip(n: int, height: int, width: int) -> list[Pixels]:
    """Smooth colours that move, and a number of bright bars in each frame."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for i in range(n):
        planes = [127 + 100 * np.sin((x + 3 * i) / 9 + c) * np.cos(y / (7 + c)) for c in range(3)]
        frames.append(np.clip(np.stack(planes, 2), 0, 255).astype(np.uint8))
    return frames


def tone(samples: int, channels: int = 1, rate: int = RATE) -> Samples:
    pitch = 440 * (1 + 0.1 * np.arange(channels))[:, None]
    return (0.4 * np.sin(2 * np.pi * pitch * np.arange(samples) / rate)).astype(np.float32)


def save(
    path: Path,
    frames: Sequence[Pixels],
    times: Sequence[Fraction],
    time_base: Fraction = FILM,
    sound: Samples | None = None,
    rate: Fraction | None = 1 / FILM,
    **track: object,
) -> list[str]:
    height, width, _ = frames[0].shape
    about = None if sound is None else SoundTrack(RATE, len(sound), **track)  # type: ignore[arg-type]
    with atomic_output(path, True) as file:
        with VideoWriter(file, path.suffix, path.name, height, width, time_base, rate, about) as writer:
            for pixels, time in zip(frames, times, strict=True):
                writer.write(pixels, time)
            if sound is not None:
                for begin in range(0, sound.shape[1], 1000):
                    writer.write_sound(sound[:, begin : begin + 1000])
        return writer.notes


def load(path: Path) -> tuple[VideoReader, list[Frame]]:
    with VideoReader(path, path.name) as reader:
        return reader, list(reader)


def raw(path: Path, frames: Sequence[Pixels], rotate: int = 0, mirror: bool = False, suffix: str = "") -> Path:
    """A file that :class:`VideoWriter` does not write."""
    with av.open(str(path), "w", format=suffix or None) as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuv444p"
        if rotate or mirror:
            stream.set_display_rotation(rotate, hflip=mirror)
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def psnr(a: Pixels, b: Pixels) -> float:
    return float(-10 * np.log10(max(1e-9, np.square(a / 255.0 - b / 255.0).mean())))


# ---------------------------------------------------------------------------------------------------- there and back

VARIABLE = [0, 1, 2, 5, 6, 13, 14]  # in frames of a film


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".y4m", ".gif"])
@pytest.mark.parametrize("size", [(31, 47), (48, 32), (36, 64)])  # odd, portrait, landscape
def test_size_frames_and_times_come_back(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    variable = suffix != ".y4m"
    times = [FILM * i for i in (VARIABLE if variable else range(7))]
    frames = clip(len(times), *size)
    notes = save(tmp_path / f"a{suffix}", frames, times)
    reader, found = load(tmp_path / f"a{suffix}")
    assert (reader.height, reader.width) == size
    assert reader.frames in (0, len(frames))
    assert len(found) == len(frames)
    finest = {".mkv": 1000, ".webm": 1000, ".gif": 100}.get(suffix)
    expected = [Fraction(round(t * finest), finest) for t in times] if finest else times
    assert [frame.time for frame in found] == expected
    assert any("times of frames are rounded" in note for note in notes) == bool(finest)
    assert any("4:4:4" in note for note in notes) == (suffix in (".mp4", ".mov", ".mkv") and size[0] % 2 == 1)
    least = {".gif": 22, ".webm": 30}.get(suffix, 36)
    assert min(psnr(a, frame.pixels) for a, frame in zip(frames, found, strict=True)) > least
    assert not reader.has_sound


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    frames = clip(3, 16, 16)

    def stopped() -> None:
        with atomic_output(path, False) as file, VideoWriter(file, ".mp4", "a", 16, 16, FILM) as writer:
            writer.write(frames[0], Fraction(0))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert list(tmp_path.iterdir()) == []
    save(path, frames, [FILM * i for i in range(3)])
    with pytest.raises(OutputExistsError), atomic_output(path, False):
        pass


def test_y4m_holds_the_samples_as_they_are(tmp_path: Path) -> None:
    """Gray survives every conversion, so it comes back to the bit."""
    gray = [np.repeat(frame[..., :1], 3, 2) for frame in clip(3, 15, 23)]
    save(tmp_path / "a.y4m", gray, [FILM * i for i in range(3)])
    _, found = load(tmp_path / "a.y4m")
    assert max(int(np.abs(a.astype(int) - f.pixels).max()) for a, f in zip(gray, found, strict=True)) <= 1
    colours = clip(2, 15, 23)
    save(tmp_path / "b.y4m", colours, [FILM * i for i in range(2)])
    first = load(tmp_path / "b.y4m")[1]
    assert max(int(np.abs(a.astype(int) - f.pixels).max()) for a, f in zip(colours, first, strict=True)) <= 4


def test_times_that_begin_late_and_the_last_duration(tmp_path: Path) -> None:
    path, tick = tmp_path / "a.mp4", Fraction(1, 600)
    frames = clip(4, 16, 24)
    with path.open("wb") as file, VideoWriter(file, ".mp4", "a", 16, 24, tick) as writer:
        for pixels, place in zip(frames, (60, 80, 85, 200), strict=True):
            writer.write(pixels, place * tick, 33 * tick)
    _, found = load(path)
    assert [frame.time for frame in found] == [Fraction(place, 600) for place in (60, 80, 85, 200)]
    assert [frame.duration for frame in found] == [Fraction(n, 600) for n in (20, 5, 115, 33)]


@pytest.mark.parametrize("suffix", [".y4m", ".gif"])
def test_formats_that_begin_at_zero_say_so(suffix: str, tmp_path: Path) -> None:
    path, step = tmp_path / f"a{suffix}", Fraction(1, 25)
    notes = save(path, clip(3, 8, 8), [step * i for i in (7, 8, 9)], step, rate=1 / step)
    assert [frame.time for frame in load(path)[1]] == [step * i for i in range(3)]
    assert f"the first frame is at 0.280 s, and {suffix} begins at 0" in notes


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    frames = clip(3, 8, 8)
    times = [Fraction(n, 1000) for n in (0, 2, 4)]
    with pytest.raises(UnsupportedMediaError, match=r"less than 1/100 s apart .* write \.mp4"):
        save(tmp_path / "a.gif", frames, times, Fraction(1, 1000))
    with pytest.raises(UnsupportedMediaError, match="frame 1 is not at its time"):
        save(tmp_path / "a.y4m", frames, [FILM * i for i in (0, 2, 3)])
    with pytest.raises(UnsupportedMediaError, match="this video has none"):
        save(tmp_path / "a.y4m", frames, times, rate=None)
    with pytest.raises(UsageError, match=r"cannot write \.xyz: use one of \.mp4"):
        save(tmp_path / "a.xyz", frames, times)
    with pytest.raises(MediaError, match="a video without frames"):
        VideoWriter(io.BytesIO(), ".mp4", "a", 8, 8, FILM).close()
    with pytest.raises(ValueError, match="times of frames increase"):
        save(tmp_path / "a.mp4", frames, [times[0]] * 3)
    with pytest.raises(ValueError, match="a frame is uint8"):
        VideoWriter(io.BytesIO(), ".mp4", "a", 8, 8, FILM).write(clip(1, 9, 8)[0], Fraction(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".y4m"])
def test_high_definition_has_colours_of_its_own(suffix: str, tmp_path: Path) -> None:
    """BT.709 from 1280 pixels on, by tags or by custom."""
    frames = clip(2, 16, 1280)
    save(tmp_path / f"a{suffix}", frames, [FILM * i for i in range(2)])
    _, found = load(tmp_path / f"a{suffix}")
    assert all(psnr(a, frame.pixels) > 34 for a, frame in zip(frames, found, strict=True))
    means = [np.abs(a.mean((0, 1)) - frame.pixels.mean((0, 1))).max() for a, frame in zip(frames, found, strict=True)]
    assert max(means) < 1


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".y4m", ".gif"])
def test_the_shape_of_pixels_is_kept_or_said(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    with (
        path.open("wb") as file,
        VideoWriter(file, suffix, "a", 48, 36, FILM, 1 / FILM, pixel_aspect=Fraction(4, 3)) as writer,
    ):
        writer.write(clip(1, 48, 36)[0], Fraction(0))
    kept = load(path)[0].pixel_aspect == Fraction(4, 3)
    assert kept != any("pixels are not square" in note for note in writer.notes)
    assert kept == (suffix not in (".webm", ".gif"))


# --------------------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize(
    ("suffix", "channels", "least"), [(".mp4", 1, 15), (".mov", 2, 15), (".mkv", 2, 80), (".webm", 1, 10)]
)
def test_sound_comes_along(suffix: str, channels: int, least: float, tmp_path: Path) -> None:
    path, x = tmp_path / f"a{suffix}", tone(30_000, channels)
    times = [FILM * i for i in range(6)]
    start = Fraction(1, 4)
    notes = save(path, clip(6, 16, 16), times, sound=x, start=start)
    with VideoReader(path, "a") as reader:
        assert reader.has_sound
        sound, found_start = reader.sound()
        with sound:
            found = np.concatenate(list(sound.blocks(777)), axis=1)
        finest = {".mkv": 1000, ".webm": 1000}.get(suffix, 24000)
        assert [frame.time for frame in reader] == [Fraction(round(t * finest), finest) for t in times]
    resampled = suffix == ".webm"
    assert any("resampled to 48000 Hz" in note for note in notes) == resampled
    assert (sound.sample_rate, sound.channels) == (48000 if resampled else RATE, channels)
    expected = tone(60_000, channels, 48000) if resampled else x
    assert abs(found_start - start) < Fraction(1, 20)
    found = found[:, max(0, round((start - found_start) * sound.sample_rate)) :]  # AAC's run-up is in the file
    assert abs(found.shape[1] - expected.shape[1]) <= 2048
    n = min(found.shape[1], expected.shape[1])
    a, b = expected[:, 4000 : n - 2000], found[:, 4000 : n - 2000]
    assert 10 * np.log10(np.square(a).sum() / max(1e-12, np.square(a - b).sum())) > least


def test_a_y4m_that_ends_within_a_frame_says_so() -> None:
    data = b"YUV4MPEG2 W4 H4 F25:1\n" + 2 * (b"FRAME\n" + bytes(24))
    for cut, problems in ((0, []), (10, ["cut off: the last 20 bytes are no whole frame"])):
        with VideoReader(io.BytesIO(data[: len(data) - cut]), "x") as reader:
            assert len(list(reader)) == 2 - bool(cut)
            assert reader.problems == problems


def test_a_stream_without_a_container_is_a_video() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="h264") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for pixels in clip(5, 16, 32):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    buffer.seek(0)
    assert media_kind(buffer)[0] == "video"
    with VideoReader(buffer, "x") as reader:
        assert [frame.time for frame in reader] == [Fraction(i, 25) for i in range(5)]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".webm"])
def test_sound_beyond_full_scale_is_told(suffix: str, tmp_path: Path) -> None:
    x = tone(RATE)
    x[0, 100:110] = 1.25
    notes = save(tmp_path / f"a{suffix}", clip(5, 16, 16), [i * FILM for i in range(5)], sound=x)
    resampled = suffix == ".webm"  # to 48 kHz
    counts = [int(note.split()[0]) for note in notes if "beyond full scale and are cut off" in note]
    assert len(counts) == 1
    assert counts[0] == 10 or (resampled and 15 < counts[0] < 25)


def test_a_format_without_sound_says_so(tmp_path: Path) -> None:
    notes = save(tmp_path / "a.gif", clip(2, 8, 8), [Fraction(0), Fraction(1, 25)], sound=tone(1000))
    assert "the sound is not kept: .gif has no place for it" in notes


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (270, 3)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rotation_is_applied(degrees: int, turns: int, suffix: str, tmp_path: Path) -> None:
    frames = clip(2, 32, 48)
    reader, found = load(raw(tmp_path / f"a{suffix}", frames, degrees))
    expected = np.rot90(frames[0], turns)  # FFmpeg's angles turn counterclockwise too
    assert (reader.height, reader.width) == expected.shape[:2] == found[0].pixels.shape[:2]
    assert psnr(expected, found[0].pixels) > 36
    assert found[0].pixels.flags.c_contiguous


def test_a_mirror_is_applied(tmp_path: Path) -> None:
    frames = clip(2, 32, 48)
    _, found = load(raw(tmp_path / "a.mp4", frames, 0, mirror=True))
    assert psnr(frames[0][:, ::-1], found[0].pixels) > 36


@pytest.mark.parametrize(
    ("codec", "pixel_format", "note"),
    [
        ("ffv1", "yuv420p10le", "10 bits per sample reduced to 8"),
        ("ffv1", "yuva420p", "the alpha channel is not kept"),
        ("ffv1", "gray", None),
        ("ffv1", "bgr0", None),
        ("mjpeg", "yuvj444p", None),
    ],
)
def test_samples_of_every_kind(codec: str, pixel_format: str, note: str | None, tmp_path: Path) -> None:
    """Ten bits, alpha, gray, RGB and YUV of full range give the gray that they hold."""
    level = np.repeat(np.arange(16, 240, 8, dtype=np.uint8)[None, :, None], 3, 2)  # [1, 28, 3]
    pixels = np.ascontiguousarray(np.broadcast_to(level, (16, 28, 3)))
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = 16, 28, pixel_format
        if codec == "mjpeg":
            stream.codec_context.color_range = 2
        for _ in range(2):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    reader, found = load(tmp_path / "a.mkv")
    assert reader.notes == ([] if note is None else [note])
    assert int(np.abs(found[1].pixels.astype(int) - pixels).max()) <= (8 if codec == "mjpeg" else 2)


def test_a_file_object_is_read_as_a_path(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.mp4", clip(3, 16, 16))
    with VideoReader(io.BytesIO(path.read_bytes()), "a stream") as reader:
        assert [f.pixels.tobytes() for f in reader] == [f.pixels.tobytes() for f in load(path)[1]]
        with pytest.raises(ValueError, match="come once"):
            next(iter(reader))


def test_a_transport_stream_begins_at_zero(tmp_path: Path) -> None:
    reader, found = load(raw(tmp_path / "a.ts", clip(4, 16, 16), suffix="mpegts"))
    assert [frame.time for frame in found] == [Fraction(i, 25) for i in range(4)]
    assert reader.rate == 25


def test_what_is_no_video_is_one_line(tmp_path: Path) -> None:
    unknown = "not a video that can be read"
    cases = {
        "empty.mp4": (b"", "the file is empty"),
        "text.mp4": (b"no video at all\n" * 100, unknown),
        "list.m3u8": (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n", "a playlist"),
        "list.ffconcat": (b"ffconcat version 1.0\nfile 'a.mp4'\n", "a list of files"),
    }
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        for source in (tmp_path / name, io.BytesIO(data)):
            with pytest.raises(MediaError, match=message) as caught:
                VideoReader(source, name)
            assert "\n" not in str(caught.value)
            assert str(caught.value).startswith(f"{name}: ")
    with pytest.raises(MediaError, match="a folder, not a video"):
        VideoReader(tmp_path, "x")
    with pytest.raises(MediaError, match="No such file"):
        VideoReader(tmp_path / "missing.mp4", "x")


def test_a_sound_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(4096), format="fltp", layout="mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="not a video: it holds only sound"):
        VideoReader(tmp_path / "a.m4a", "a.m4a")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".y4m"])
def test_of_a_file_that_is_cut_off_what_is_whole_is_kept_and_said(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    times = [Fraction(i, 4) for i in range(16)]
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (16, 32, 3), dtype=np.uint8) for _ in times]
    save(path, frames, times, Fraction(1, 4), rate=Fraction(4))
    data = path.read_bytes()
    assert len(load(path)[1]) == 16
    for keep in (len(data) // 2, len(data) // 20):
        path.write_bytes(data[:keep])
        if suffix == ".y4m":  # it does not say how long it is
            assert len(load(path)[1]) == 7
            break
        if suffix == ".mp4":  # its index comes last
            with pytest.raises(MediaError, match=r"cut off: at least \d+ bytes are missing") as caught:
                load(path)
            assert "\n" not in str(caught.value)
            continue
        if keep == len(data) // 20:
            with pytest.raises(MediaError, match=r"cut off|damaged|no frames"):
                load(path)
            continue
        reader, found = load(path)
        assert 4 < len(found) < 12
        assert [frame.time for frame in found] == times[: len(found)]
        assert found[-1].duration == Fraction(1, 4)  # it is not stretched to the end that was
        end = float(times[len(found) - 1] + Fraction(1, 4))
        assert f"cut off: it ends after {end:.2f} s and not 4.00 s" in reader.problems


def test_bytes_that_are_wrong_are_a_video_or_an_error(tmp_path: Path) -> None:
    """Every outcome is frames or one of our errors, and never takes long."""
    path = tmp_path / "a.mp4"
    rng = np.random.default_rng(1)
    data = bytearray(raw(path, clip(4, 16, 16)).read_bytes())
    for _ in range(60):
        wrong = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            wrong[place] = rng.integers(256)
        try:
            with VideoReader(io.BytesIO(bytes(wrong)), "x") as reader:
                for _, frame in zip(range(50), reader, strict=False):
                    assert frame.pixels.shape == (reader.height, reader.width, 3)
        except MediaError:
            pass


def test_limits(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.mp4", clip(2, 16, 24))
    with VideoReader(path, "x", max_pixels=384) as reader:
        assert len(list(reader)) == 2
    with pytest.raises(MediaError, match="24 x 16 pixels, more than the limit of 383"):
        VideoReader(path, "x", max_pixels=383)


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    parts = [raw(tmp_path / f"{i}.h264", clip(2, 16, 16 * i), suffix="h264").read_bytes() for i in (1, 2)]
    (tmp_path / "a.h264").write_bytes(b"".join(parts))
    with pytest.raises(UnsupportedMediaError, match="frame 2 is 32 x 16, those before 16 x 16"):
        load(tmp_path / "a.h264")


# ---------------------------------------------------------------------------------------------------------------- kind


def test_the_content_decides_what_a_file_is(tmp_path: Path) -> None:
    times = [FILM * i for i in range(3)]
    for suffix in (".mp4", ".mov", ".mkv", ".webm", ".y4m", ".gif"):
        save(tmp_path / f"a{suffix}", clip(3, 16, 16), times)
        path = (tmp_path / f"a{suffix}").rename(tmp_path / f"a{suffix}.wav")
        assert media_kind(path)[0] == "video", suffix
        stream = io.BytesIO(path.read_bytes())
        kind, source = media_kind(stream)
        assert kind == "video", suffix
        assert source is stream
        assert stream.tell() == 0
    for name, form in (("a.ts", "mpegts"), ("a.avi", "avi"), ("a.flv", "flv")):
        assert media_kind(raw(tmp_path / name, clip(2, 16, 16), suffix=form).rename(tmp_path / "x"))[0] == "video", name
    (tmp_path / "cut.mp4").write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0")
    assert media_kind(tmp_path / "cut.mp4")[0] == "video"
    assert media_kind(tmp_path / "missing.mp4")[0] == "video"


def test_a_gif_of_one_frame_is_a_picture_and_a_video_if_asked(tmp_path: Path) -> None:
    pixels = clip(1, 12, 10)[0]
    Image.fromarray(pixels).save(tmp_path / "a.gif")
    assert media_kind(tmp_path / "a.gif")[0] == "image"
    reader, found = load(tmp_path / "a.gif")
    assert (reader.height, reader.width, len(found)) == (12, 10, 1)
    pictures = [Image.fromarray(frame) for frame in clip(3, 12, 10)]
    pictures[0].save(tmp_path / "b.gif", save_all=True, append_images=pictures[1:], duration=[40, 100, 70])
    assert media_kind(tmp_path / "b.gif")[0] == "video"
    reader, found = load(tmp_path / "b.gif")
    assert [frame.time for frame in found] == [0, Fraction(4, 100), Fraction(14, 100)]
    data = (tmp_path / "b.gif").read_bytes()
    for n in range(0, len(data), 7):
        assert media_kind(io.BytesIO(data[:n]))[0] in ("image", "video")


def test_generators_refuse_videos_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    save(path, clip(2, 16, 16), [Fraction(0), FILM])
    with pytest.raises(UnsupportedMediaError, match=r"a\.mp4: a video, and only pictures and sounds can be used here"):
        generate_files(tmp_path / "out", SampleOptions(prompt=path))
