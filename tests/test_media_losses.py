"""What a reader cannot keep it says, what is damaged costs no more than itself, and colours are those of the source."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from tokodec.codec.bench.clips import read_clip, read_photo, read_video
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import MediaError, UsageError
from tokodec.codec.media.audio import AudioReader, read_audio
from tokodec.codec.media.color import Conversion
from tokodec.codec.media.read_video import VideoReader
from tokodec.codec.tokens import tokenize_file

RATE = 24000
Tag = Callable[[Any], None]


def video(
    path: Path,
    levels: list[int],
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer_options: dict[str, str] | None = None,
    tag: Tag | None = None,
    sound: float = 0,
) -> bytes:
    """Gray frames, 64 x 64, of some levels, and seconds of a tone."""
    with av.open(str(path), "w", options=muxer_options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixel_format
        if tag is not None:
            tag(stream.codec_context)
        packets = []
        for i, level in enumerate(levels):
            pixels = np.full((64, 64, 4), level, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=pixel_format)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if sound:
            track: Any = container.add_stream("aac", rate=RATE, layout="mono")
            x = (0.4 * np.sin(np.arange(round(sound * RATE)) / 9)).astype(np.float32)[None]
            heard = av.AudioFrame.from_ndarray(x, "flt", "mono")
            heard.sample_rate, heard.pts, heard.time_base = RATE, 0, Fraction(1, RATE)
            packets += [*track.encode(heard), *track.encode(None)]
        for packet in sorted(packets, key=lambda p: (p.dts or 0) * p.time_base):
            container.mux(packet)
    return path.read_bytes()


def read(source: Path | bytes) -> tuple[VideoReader, list[Any]]:
    with VideoReader(io.BytesIO(source) if isinstance(source, bytes) else source, "x") as reader:
        return reader, list(reader)


# -------------------------------------------------------------------------------------------------------------- colours


def tags(transfer: int, primaries: int, matrix: int = 9) -> Tag:
    def tag(context: Any) -> None:
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = (
            transfer,
            primaries,
            matrix,
            1,
        )

    return tag


def gray_of(nits: float) -> int:
    """The 8 bit gray of a display of BT.1886, where 203 cd/m2 are white; below the knee."""
    return round(255 * (nits / 203) ** (1 / 2.4))


def pq(code: float) -> float:
    """cd/m2 of a value of 0 to 1 (SMPTE ST 2084, equation 4.1)."""
    power = code ** (32 / 2523)
    return float(10_000 * (max(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (16384 / 2610))


def test_pq_is_tone_mapped_and_said(tmp_path: Path) -> None:
    levels = [40, 80, 128, 200, 255]
    video(tmp_path / "a.mkv", levels, "ffv1", "yuv420p10le", tag=tags(16, 9))
    reader, frames = read(tmp_path / "a.mkv")
    assert "high dynamic range (PQ) is tone-mapped to standard range" in reader.notes
    assert any("colours of BT.2020 are converted to BT.709" in note for note in reader.notes)
    grays = [int(frame.pixels[32, 32, 1]) for frame in frames]
    assert grays[:3] == pytest.approx([gray_of(pq(level / 255)) for level in levels[:3]], abs=3)
    assert sorted(grays) == grays
    assert 240 <= grays[3] <= grays[4] <= 255
    assert all(np.ptp(frame.pixels.reshape(-1, 3).mean(0)) < 1.5 for frame in frames)  # gray stays gray


def test_hlg_and_wide_gamuts_are_converted(tmp_path: Path) -> None:
    video(tmp_path / "a.mkv", [128], "ffv1", "yuv420p10le", tag=tags(18, 9))
    reader, frames = read(tmp_path / "a.mkv")
    assert "high dynamic range (HLG) is tone-mapped to standard range" in reader.notes
    nits = 1000 * (0.50196**2 / 3) ** 1.2
    assert int(frames[0].pixels[0, 0, 0]) == pytest.approx(gray_of(nits), abs=3)
    video(tmp_path / "b.mkv", [128], "ffv1", "yuv420p", tag=tags(1, 12, 1))
    reader, frames = read(tmp_path / "b.mkv")
    assert any("colours of Display P3 are converted to BT.709" in note for note in reader.notes)
    assert int(frames[0].pixels[0, 0, 0]) == pytest.approx(128, abs=2)
    video(tmp_path / "c.mkv", [128], "ffv1", "yuv420p", tag=tags(1, 1, 1))
    assert read(tmp_path / "c.mkv")[0].notes == []


def test_primaries_are_those_of_their_standards() -> None:
    """Red of Display P3 in BT.709: the linear matrix of CSS Color 4, section 18, 1.2249 -0.0420 -0.0196."""
    p3 = Conversion(12, 1)
    assert p3.matrix[0] == pytest.approx([1.2249, -0.0420, -0.0196], abs=2e-4)
    assert p3.matrix.sum(0) == pytest.approx([1, 1, 1], abs=1e-5)  # white stays white
    same = Conversion(1, 1)
    codes = np.repeat(np.arange(256, dtype=np.uint16)[None, :, None] * 257, 3, axis=2)
    assert np.array_equal(same(codes)[0, :, 0], np.arange(256))


@pytest.mark.parametrize(
    ("codec", "pixel_format"), [("libvpx-vp9", "yuva420p"), ("libvpx", "yuva420p"), ("ffv1", "bgra")]
)
def test_alpha_is_said_to_be_lost(codec: str, pixel_format: str, tmp_path: Path) -> None:
    """VP8 and VP9 keep it in a second stream, beside what is decoded."""
    path = tmp_path / ("a.mkv" if codec == "ffv1" else "a.webm")
    options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
    video(path, [0, 60, 120], codec, pixel_format, options)
    assert "the alpha channel is not kept" in read(path)[0].notes
    video(path, [0, 60, 120], codec, pixel_format.replace("a", "", 1) if codec != "ffv1" else "bgr0", options)
    assert read(path)[0].notes == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_motion_jpeg_with_exif_is_upright(orientation: int, tmp_path: Path) -> None:
    x = np.zeros((32, 64, 3), np.uint8)
    x[:16, :32] = 255  # top left
    x[16:, :32] = (255, 0, 0)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x112], exif[0x10F] = orientation, "camera"
    Image.fromarray(x).save(buffer, "JPEG", exif=exif, quality=95)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
        for i in range(3):
            packet = av.Packet(buffer.getvalue())
            packet.pts = packet.dts = i
            packet.time_base, packet.stream = Fraction(1, 25), stream
            container.mux(packet)
    _reader, frames = read(tmp_path / "a.avi")
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))))
    assert len(frames) == 3
    assert frames[0].pixels.shape == upright.shape
    assert np.abs(frames[0].pixels.astype(int) - upright).max() < 30


# --------------------------------------------------------------------------------------------------------------- tracks


def tracks(path: Path, defaults: list[bool], aside: list[bool], *, frames: int = 0) -> Path:
    """Tones of 500, 1000, ... Hz, beside some frames of a video."""
    kind = av.stream.Disposition
    with av.open(str(path), "w") as container:
        shown: Any = container.add_stream("ffv1", rate=25) if frames else None
        if frames:
            shown.width, shown.height, shown.pix_fmt = 64, 64, "yuv420p"
        streams: list[Any] = [container.add_stream("flac", rate=RATE, layout="mono") for _ in defaults]
        for stream, default, comment in zip(streams, defaults, aside, strict=True):
            stream.disposition = kind((kind.default if default else 0) | (kind.comment if comment else 0))
        for i, stream in enumerate(streams):
            x = (0.4 * np.sin(2 * np.pi * 500 * (i + 1) * np.arange(RATE) / RATE)).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(x, "flt", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for _ in range(frames):
            container.mux(shown.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), "rgb24")))
        if frames:
            container.mux(shown.encode(None))
    return path


def pitch(path: Path, track: int | None = None) -> float:
    x = read_audio(path, "x", track=track).samples[0]
    return float(np.abs(np.fft.rfft(x)).argmax() * RATE / len(x))


def test_the_default_track_is_taken_or_the_one_asked_for(tmp_path: Path) -> None:
    path = tracks(tmp_path / "a.mka", [False, True, False], [False] * 3)
    assert [round(pitch(path, track)) for track in (None, 1, 2, 3)] == [1000, 500, 1000, 1500]
    assert read_audio(path, "x").notes == ["only sound track 2 of 3 is kept"]
    commented = tracks(tmp_path / "b.mka", [True, False], [True, False])
    assert round(pitch(commented)) == 1000
    assert round(pitch(tracks(tmp_path / "c.mka", [True, True], [False, False]))) == 500
    for wrong in (0, 4, -1):
        with pytest.raises(UsageError, match="x: sound tracks are numbered 1 to 3, there is none numbered"):
            AudioReader(path, "x", track=wrong)


def test_the_track_to_encode_can_be_chosen(tmp_path: Path, sound_model: Path, video_model: Path) -> None:
    path = tracks(tmp_path / "a.mka", [False, True, False], [False] * 3)
    default, *each = (encode_file(path, model=str(sound_model), track=track).data for track in (None, 1, 2, 3))
    assert default == each[1]
    assert len(set(each)) == 3
    clip = tracks(tmp_path / "a.mkv", [True, False], [False] * 2, frames=25)
    one: Any = {"model": str(video_model), "sound_model": str(sound_model)}
    default, *each = (encode_file(clip, sound_track=track, **one).data for track in (None, 1, 2))
    assert default == each[0] != each[1]
    assert encode_file(clip, track=1, **one).data == default
    with pytest.raises(UsageError, match="video tracks are numbered 1 to 1, there is none numbered 2"):
        encode_file(clip, track=2, **one)
    made = [tokenize_file(path, model=str(sound_model), track=track).tokens.codes for track in (None, 1, 2)]
    assert made[0].equal(made[2])
    assert not made[0].equal(made[1])
    with pytest.raises(UsageError, match="video tracks are numbered 1 to 1, there is none numbered 2"):
        tokenize_file(clip, model=str(video_model), track=2)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(UsageError, match="track is not an option of image-grid"):
        encode_file(tmp_path / "a.png", model="image-grid", track=1)
    with pytest.raises(UsageError, match="track is not an option of image-grid"):
        tokenize_file(tmp_path / "a.png", model="image-grid", track=1)


def test_a_sound_without_a_decoder_is_told(tmp_path: Path, video_model: Path) -> None:
    path = tracks(tmp_path / "a.mkv", [True], [False], frames=3)
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_XLAC"))
    reader, frames = read(path)
    assert len(frames) == 3
    assert not reader.has_sound
    assert reader.notes == ["the sound is not kept: there is no decoder for it"]
    with pytest.raises(MediaError, match="x: no decoder for its sound track"):
        VideoReader(path, "x", sound_track=1)
    with pytest.raises(UsageError, match="x: sound tracks are numbered 1 to 1, there is none numbered 2"):
        VideoReader(path, "x", sound_track=2)
    video(tmp_path / "b.mkv", [8] * 3)
    with pytest.raises(UsageError, match="x: it has no sound, there is none numbered 1"):
        VideoReader(tmp_path / "b.mkv", "x", sound_track=1)
    with pytest.raises(UsageError, match="sound-kbps and sound-track cannot go with a sound that is left out"):
        encode_file(path, model=str(video_model), sound=False, sound_track=1, sound_kbps=3)
    data = encode_file(path, model=str(video_model), device="cpu").data
    with pytest.raises(UsageError, match="sound-model cannot go with a sound that is left out"):
        encode_file(path, sound=False, sound_model="x")
    with pytest.raises(UsageError, match="sound-model cannot go with a sound that is left out"):
        decode_file(io.BytesIO(data), sound=False, sound_model="x")


def test_a_track_in_which_there_is_nothing(tmp_path: Path, video_model: Path, sound_model: Path) -> None:
    """Neither samples nor a header that tells of channels: the picture is there all the same."""
    path = tmp_path / "a.ts"
    noise = np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        shown: Any = container.add_stream("mpeg2video", rate=25)
        shown.width, shown.height, shown.pix_fmt = 64, 64, "yuv420p"
        container.add_stream("mp2", rate=RATE, layout="mono")
        for x in noise:
            container.mux(shown.encode(av.VideoFrame.from_ndarray(x, "rgb24")))
        container.mux(shown.encode(None))
    done = encode_file(path, model=str(video_model), sound_model=str(sound_model), device="cpu")
    assert (done.frames, done.notes, done.problems) == (9, ["its sound track holds no samples"], [])


def test_a_video_track_without_frames_names_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        shown: list[Any] = [container.add_stream("ffv1", rate=25) for _ in range(2)]
        for stream in shown:
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(shown[1].encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), "rgb24")))
        container.mux(shown[1].encode(None))
    with pytest.raises(MediaError, match=r"x: holds no frames; another of its video tracks can be chosen \(track\)"):
        VideoReader(path, "x")
    with VideoReader(path, "x", track=2) as reader:
        assert len(list(reader)) == 1


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 0.98])
@pytest.mark.parametrize("sound", [0, 4])
def test_of_a_cut_fragmented_mp4_whole_frames_are_kept(share: float, sound: float, tmp_path: Path) -> None:
    options = {"movflags": "frag_keyframe+empty_moov"}
    levels = [8 + 2 * i for i in range(100)]
    data = video(tmp_path / "a.mp4", levels, options={"g": "10", "bf": "0"}, muxer_options=options, sound=sound)
    assert len(read(data)[1]) == 100
    reader, frames = read(data[: int(share * len(data))])
    assert 20 * share < len(frames) < 100 or share == 0.98
    late = frames[1].time - Fraction(1, 25)  # this muxer moves all but the first by the delay of the sound
    assert 0 <= late < Fraction(1, 20)
    assert [frame.time for frame in frames[1:]] == [Fraction(i, 25) + late for i in range(1, len(frames))]
    assert all(abs(int(frame.pixels[9, 9, 1]) - level) < 6 for frame, level in zip(frames, levels, strict=False))
    assert any(problem.startswith("cut off") for problem in reader.problems)


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".mp4"])
def test_a_cut_file_does_not_stretch_its_last_frame(suffix: str, tmp_path: Path) -> None:
    muxer_options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
    rng = np.random.default_rng(0)
    data = video(
        tmp_path / f"a{suffix}", rng.integers(0, 255, 100).tolist(), options={"bf": "0"}, muxer_options=muxer_options
    )
    for share in (0.6, 0.8):
        reader, frames = read(data[: int(share * len(data))])
        assert 20 < len(frames) < 100
        assert frames[-1].duration == Fraction(1, 25)
        assert any(problem.startswith("cut off: ") for problem in reader.problems)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".avi", ".flv"])
def test_a_damaged_packet_costs_itself(suffix: str, tmp_path: Path) -> None:
    levels = [100 + i for i in range(50)]
    path = tmp_path / f"a{suffix}"
    data = bytearray(video(path, levels, "mpeg4" if suffix == ".avi" else "libx264", options={"g": "1", "bf": "0"}))
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][20]
        at = data.index(bytes(packet)) + packet.size // 2
    data[at : at + packet.size // 3] = b"\xff" * (packet.size // 3)
    reader, frames = read(bytes(data))
    assert 44 <= len(frames) <= 50
    assert reader.problems
    last = frames[-1]
    assert abs(int(last.pixels[9, 9, 1]) - 149) < 6
    assert last.time == Fraction(49, 25)


def test_encoding_tells_of_problems(tmp_path: Path, sound_model: Path) -> None:
    """So that the command can exit with 3."""
    path = tracks(tmp_path / "a.mka", [True], [False])
    assert encode_file(path, model=str(sound_model)).problems == []
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    done = encode_file(path, model=str(sound_model))
    assert done.problems[0].startswith("cut off: at least ")
    assert 0.3 < done.seconds < 0.9
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(MediaError):
        encode_file(path, model=str(sound_model))


def test_what_is_damaged_is_not_measured(tmp_path: Path) -> None:
    """A curve of a broken file would be taken for one of the codec."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    tracks(tmp_path / "a.mka", [True], [False])
    video(tmp_path / "a.mkv", [8 + 2 * i for i in range(100)])
    for name, read_one in (("a.png", read_photo), ("a.mka", read_clip), ("a.mkv", read_video)):
        path = tmp_path / name
        assert read_one(path).name == name
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 4 // 5])
        with pytest.raises(MediaError, match=rf"{name}: .*(damaged|cut off)"):
            read_one(path)
