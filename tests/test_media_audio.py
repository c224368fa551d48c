"""Sounds in and out: every common file, sample counts exact, what is wrong is said in one line."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from tokodec.codec.errors import MediaError, UnsupportedMediaError, UsageError
from tokodec.codec.media.audio import (
    AudioReader,
    AudioWriter,
    Resampler,
    Samples,
    Sound,
    read_audio,
    resample,
    resampled_length,
    write_audio,
)
from tokodec.codec.media.kind import media_kind

RATE = 24000


def tone(samples: int = 12_345, channels: int = 1, rate: int = RATE, frequency: float = 440.0) -> Samples:
    """``[channels, samples]``, each channel a little higher than the one before."""
    t = np.arange(samples) / rate
    pitch = frequency * (1 + 0.1 * np.arange(channels))[:, None]
    found: Samples = (0.4 * np.sin(2 * np.pi * pitch * t)).astype(np.float32)
    return found


def save(path: Path, x: Samples, rate: int = RATE, subtype: str | None = None) -> Path:
    soundfile.write(path, x.T, rate, subtype=subtype)
    return path


def save_av(path: Path, x: Samples, codec: str, rate: int = RATE, layout: str | None = None, **options: str) -> Path:
    """A file that libsndfile does not write."""
    with av.open(str(path), "w", container_options=options) as container:
        layout = layout or {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[len(x)]
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        packed = np.ascontiguousarray(x.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)  # so that delays are declared
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def snr(x: Samples, x_hat: Samples) -> float:
    return float(10 * np.log10(np.square(x).sum() / np.square(x - x_hat).sum()))


# --------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "subtype", "bits", "step"),
    [
        ("a.wav", "PCM_16", 16, 2**-15),
        ("a.wav", "PCM_24", 24, 2**-23),
        ("a.wav", "PCM_U8", 8, 2**-7),
        ("a.wav", "FLOAT", 24, 0),
        ("a.flac", "PCM_16", 16, 2**-15),
        ("a.flac", "PCM_24", 24, 2**-23),
        ("a.aiff", "PCM_16", 16, 2**-15),
        ("a.caf", "PCM_16", 16, 2**-15),
    ],
)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_lossless_files_are_read_as_they_are(
    name: str, subtype: str, bits: int, step: float, channels: int, tmp_path: Path
) -> None:
    x = tone(channels=channels)
    sound = read_audio(save(tmp_path / name, x, 22050, subtype), "a sound")
    assert (sound.sample_rate, sound.bit_depth, sound.samples.shape) == (22050, bits, x.shape)
    assert float(np.abs(sound.samples - x).max()) <= step
    assert bool(sound.notes) == (subtype == "FLOAT")


@pytest.mark.parametrize(("name", "least"), [("a.ogg", 15), ("a.mp3", 15), ("a.opus", 10)])
def test_lossy_files_keep_their_number_of_samples(name: str, least: float, tmp_path: Path) -> None:
    x = tone(30_000, rate=48000)
    opus = name == "a.opus"
    path = save_av(tmp_path / name, x, "libopus", 48000) if opus else save(tmp_path / name, x, 48000)
    sound = read_audio(path, "a sound")
    assert sound.sample_rate == 48000
    assert abs(sound.samples.shape[1] - 30_000) <= (960 if opus else 0)
    n = min(sound.samples.shape[1], 30_000)
    assert snr(x[:, :n], sound.samples[:, :n]) > least


def test_what_libsndfile_does_not_know_is_read_by_pyav(tmp_path: Path) -> None:
    x = tone(48_000, channels=2, rate=44100)
    sound = read_audio(save_av(tmp_path / "a.m4a", x, "aac", 44100), "a sound")
    assert (sound.sample_rate, len(sound.samples)) == (44100, 2)
    assert abs(sound.samples.shape[1] - 48_000) < 2048
    n = min(sound.samples.shape[1], 48_000)
    assert snr(x[:, 4000 : n - 2000], sound.samples[:, 4000 : n - 2000]) > 15


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.m4a", "aac"), ("a.mp4", "aac"), ("a.mka", "aac"), ("a.mp4", "flac"), ("a.mka", "flac"), ("a.flac", "flac"),
        ("a.mov", "pcm_s16le"), ("a.mka", "pcm_s16le"), ("a.wav", "pcm_s16le"), ("a.opus", "libopus"),
    ],
)  # fmt: skip
def test_eight_channels_are_read(name: str, codec: str, tmp_path: Path) -> None:
    x = tone(30_000, 8, 48000)
    path = save_av(tmp_path / name, x, codec, 48000)
    found = read_audio(path, name).samples
    assert found.shape[0] == 8
    assert abs(found.shape[1] - 30_000) < 1024
    n = min(found.shape[1], 30_000) - 2000
    for channel in (0, 1, 2, 4, 5, 6, 7):  # the fourth has low tones only
        assert snr(x[channel : channel + 1, 2000:n], found[channel : channel + 1, 2000:n]) > 10, channel


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_the_other_byte_order_of_wav_is_read(subtype: str, tmp_path: Path) -> None:
    """RIFX, which FFmpeg does not know."""
    x = tone(50_000, 2)
    path = tmp_path / "a.wav"
    soundfile.write(path, x.T, RATE, subtype=subtype, endian="BIG", format="WAV")
    data = path.read_bytes()
    assert data[:4] == b"RIFX"
    sound = read_audio(path, "a.wav")
    assert media_kind(path)[0] == "audio"
    assert np.abs(sound.samples - x).max() < 2**-15
    assert (sound.bit_depth, sound.problems) == (16 if subtype == "PCM_16" else 24, [])
    assert bool(sound.notes) == (subtype == "FLOAT")
    cut = read_audio(io.BytesIO(data[: len(data) // 2]), "a.wav")
    assert 20_000 < cut.samples.shape[1] < 30_000
    assert cut.problems[0].startswith("cut off: at least")
    with pytest.raises(MediaError, match="not a sound"):
        read_audio(io.BytesIO(data[:20]), "a.wav")


STREAMS = [  # what a pipe is filled with, whose writer knows no end, and raw streams
    ("a.mp3", "libmp3lame", "mp3", {"write_xing": "0"}),
    ("a.flac", "flac", "flac", {}),
    ("a.wav", "pcm_s16le", "wav", {}),
    ("b.wav", "libmp3lame", "wav", {}),
    ("a.ac3", "ac3", "ac3", {}),
    ("a.eac3", "eac3", "eac3", {}),
    ("a.mp2", "mp2", "mp2", {}),
    ("a.aac", "aac", "adts", {}),
    ("a.ts", "mp2", "mpegts", {}),
    ("a.mkv", "flac", "matroska", {}),
    ("a.au", "pcm_s16be", "au", {}),
    ("a.avi", "libmp3lame", "avi", {}),
    ("a.wv", "wavpack", "wv", {}),
    ("a.tta", "tta", "tta", {}),
    ("a.mpg", "mp2", "mpeg", {}),
    ("a.flv", "aac", "flv", {}),
    ("a.wma", "wmav2", "asf", {}),
]


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize(("name", "codec", "muxer", "options"), STREAMS)
def test_sounds_are_as_long_as_they_are_whatever_they_say(
    name: str, codec: str, muxer: str, options: dict[str, str], seekable: bool, tmp_path: Path
) -> None:
    x = tone(5 * 44100, rate=44100)
    path, buffer = tmp_path / name, Filling() if not seekable else io.BytesIO()
    with av.open(buffer, "w", format=muxer, container_options=options) as container:
        stream = container.add_stream(codec, rate=44100, layout="mono")
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = 64_000
        if codec == "libmp3lame":
            stream.codec_context.options = {"compression_level": "9"}
        frame = av.AudioFrame.from_ndarray(x, format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 44100, 0, Fraction(1, 44100)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path.write_bytes(buffer.getvalue())
    assert media_kind(path)[0] == "audio"
    sound = read_audio(path, name)
    assert sound.problems == []
    assert abs(sound.samples.shape[1] - 5 * 44100) <= 3000  # what the encoder adds


class Filling(io.BytesIO):
    """A pipe that is written to."""

    def seekable(self) -> bool:
        return False


def test_a_size_that_was_never_filled_in_is_no_size(tmp_path: Path) -> None:
    data = save(tmp_path / "a.wav", tone(50_000)).read_bytes()
    at = data.index(b"data") + 4
    for size in (0, 0xFFFFFFFF, 0x7FFFFFFF):
        path = tmp_path / "b.wav"
        path.write_bytes(
            data[:4] + size.to_bytes(4, "little") + data[8:at] + size.to_bytes(4, "little") + data[at + 4 :]
        )
        found = read_audio(path, "b.wav")
        assert (found.samples.shape, found.problems) == ((1, 50_000), [])


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp3", "libmp3lame"),
        ("a.aac", "aac"),
        ("a.flac", "flac"),
        ("a.ogg", "sndfile"),
        ("a.mka", "flac"),
        ("a.ts", "mp2"),
    ],
)
def test_joined_files_are_read_to_the_end(name: str, codec: str, tmp_path: Path) -> None:
    """As `cat a.mp3 a.mp3` gives."""
    x = tone(48_000, rate=48000)
    path = save(tmp_path / name, x, 48000) if codec == "sndfile" else save_av(tmp_path / name, x, codec, 48000)
    one = read_audio(path, name).samples.shape[1]
    path.write_bytes(path.read_bytes() * 2)
    both = read_audio(path, name)
    assert abs(both.samples.shape[1] - 2 * one) <= 3000
    assert both.problems == []
    second = both.samples[0, one + 8000 : 2 * one - 8000]
    assert np.sqrt(np.square(second).mean()) == pytest.approx(0.4 / 2**0.5, rel=0.1)


@pytest.mark.parametrize("kind", ["WAV", "RIFX", "RF64", "AIFF", "CAF", "W64", "AU"])
def test_joined_files_of_plain_samples_are_exact(kind: str) -> None:
    """Nothing is lost between them, and no head is taken for samples."""
    parts, both = [], b""
    for seed in range(3):
        x = np.random.default_rng(seed).uniform(-0.5, 0.5, (5001, 2))
        buffer, form = io.BytesIO(), {"RIFX": "WAV"}.get(kind, kind)
        soundfile.write(buffer, x, RATE, "PCM_16", "BIG" if kind == "RIFX" else "FILE", form)
        parts.append(x.T)
        both += buffer.getvalue()
    sound = read_audio(io.BytesIO(both), "x")
    assert sound.samples.shape == (2, 15_003)
    assert np.abs(sound.samples - np.concatenate(parts, 1)).max() <= 2**-15
    assert (sound.notes, sound.problems) == ([], [])


def test_a_second_file_of_another_kind_is_said(tmp_path: Path) -> None:
    first, second = save(tmp_path / "a.wav", tone()), save(tmp_path / "b.wav", tone(), 48000)
    size = second.stat().st_size
    first.write_bytes(first.read_bytes() + second.read_bytes())
    sound = read_audio(first, "x")
    assert sound.samples.shape == (1, tone().shape[1])
    assert sound.problems == [f"a further file of {size} bytes follows in it and is not read"]


@pytest.mark.parametrize(
    ("codec", "kind", "low", "note"),
    [
        ("pcm_s32le", "s32", 0, None),
        ("pcm_s32le", "s32", 1, "integer"),
        ("pcm_s24le", "s32", 0, None),
        ("wavpack", "s32p", 0, None),
        ("wavpack", "s32p", 1, "integer"),
        ("wavpack", "fltp", 0, "float"),
        ("pcm_f64le", "dbl", 0, "float"),
        ("libmp3lame", "fltp", 0, None),
    ],
)
def test_samples_of_more_than_24_bits_are_told(codec: str, kind: str, low: int, note: str | None) -> None:
    """Of integers, if they are more than 24 bits in fact."""
    buffer = io.BytesIO()
    x = np.random.default_rng(0).integers(-(1 << 22), 1 << 22, (1, 9000), dtype=np.int32) << 8 | low
    with av.open(buffer, "w", format="matroska") as container:
        stream: Any = container.add_stream(codec, rate=RATE, layout="mono")
        stream.codec_context.format = kind
        frame = av.AudioFrame.from_ndarray(x, "s32", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        for part in av.AudioResampler(kind, "mono", RATE).resample(frame):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    buffer.seek(0)
    sound = read_audio(buffer, "x")
    assert sound.notes == ([] if note is None else [f"{note} samples are kept with 24 bits"])
    assert sound.bit_depth == (16 if codec == "libmp3lame" else 24)
    if codec != "libmp3lame":
        assert np.abs(sound.samples - x / 2**31).max() < 2**-23


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_tags_are_told(kind: str, tmp_path: Path) -> None:
    with soundfile.SoundFile(tmp_path / "x", "w", RATE, 1, format=kind) as file:
        file.title = "Some words"
        file.write(tone(9000).T)
    assert "tags not kept: title" in read_audio(tmp_path / "x", "x").notes


def test_a_cover_is_told(tmp_path: Path) -> None:
    """And is no video."""
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=RATE, layout="mono")
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), "rgb24")
        frame = av.AudioFrame.from_ndarray(tone(9000), "flt", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        for packet in [*cover.encode(picture), *cover.encode(None), *stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    assert media_kind(path)[0] == "audio"
    assert "the cover is not kept" in read_audio(path, "x").notes


def test_a_track_of_a_file_of_one_must_be_the_first() -> None:
    for endian in ("LITTLE", "BIG"):
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(900).T, RATE, endian=endian, format="WAV")
        data = buffer.getvalue()
        assert read_audio(io.BytesIO(data), "x", track=1).samples.shape == (1, 900)
        with pytest.raises(UsageError, match="x: sound tracks are numbered 1 to 1, there is none numbered 2"):
            read_audio(io.BytesIO(data), "x", track=2)


@pytest.mark.parametrize("kind", ["WAV", "RF64"])
def test_a_large_wav_that_is_cut_off_says_how_much(kind: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(90_000).T, RATE, "PCM_16", format=kind)
    data = buffer.getvalue()
    assert read_audio(io.BytesIO(data), "x").problems == []
    assert read_audio(io.BytesIO(data[:-1000]), "x").problems == ["cut off: at least 1000 bytes are missing at its end"]


def test_blocks_are_the_whole(tmp_path: Path) -> None:
    for path in (save(tmp_path / "a.wav", tone(10_001, 2)), save_av(tmp_path / "a.m4a", tone(10_001, 2), "aac")):
        whole = read_audio(path, "a sound").samples
        with AudioReader(path, "a sound") as reader:
            blocks = list(reader.blocks(777))
            assert reader.position == whole.shape[1]
        assert all(block.shape[1] == 777 for block in blocks[:-1])
        assert np.array_equal(np.concatenate(blocks, axis=1), whole)


class Pipe(io.RawIOBase):
    """Bytes that come once and in order."""

    def __init__(self, data: bytes) -> None:
        self.inner = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, n: int = -1) -> bytes:
        return self.inner.read(n)


def test_a_stream_that_cannot_seek_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.flac", tone())
    pipe = Pipe(path.read_bytes())
    assert np.array_equal(read_audio(pipe, "a pipe").samples, read_audio(path, "a file").samples)  # type: ignore[arg-type]


def test_not_a_number_is_refused_with_its_place(tmp_path: Path) -> None:
    for bad in (np.nan, np.inf):
        x = tone(70_000)
        x[0, 69_000] = bad
        with pytest.raises(MediaError, match=r"a\.wav: sample 69000 is not a number"):
            read_audio(save(tmp_path / "a.wav", x, subtype="FLOAT"), "a.wav")


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "the file is empty"), (b"RIFF", "not a sound"), (b"no sound at all" * 100, "not a sound")],
)
def test_what_is_no_sound_is_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(data)
    for source in (path, io.BytesIO(data)):
        with pytest.raises(MediaError, match=message) as caught:
            read_audio(source, "x.wav")
        assert "\n" not in str(caught.value)


def test_what_is_not_there_or_a_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="a folder, not a sound"):
        read_audio(tmp_path, "x")
    with pytest.raises(MediaError, match="No such file"):
        read_audio(tmp_path / "x.wav", "x")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("a.flac", "samples of each channel"),
        ("a.wav", "bytes"),
        ("a.aiff", "bytes"),
        ("a.caf", "bytes"),
        ("a.w64", "bytes"),
        ("a.ogg", "bytes"),
        ("a.mka", "bytes"),
        ("a.wv", "samples of each channel"),
        ("a.tta", "bytes"),
    ],
)
def test_of_a_file_that_is_cut_off_what_is_whole_is_kept_and_said(name: str, missing: str, tmp_path: Path) -> None:
    x = tone(100_000) + 0.01 * np.random.default_rng(0).normal(size=(1, 100_000)).astype(np.float32)
    codec = {"a.mka": "flac", "a.wv": "wavpack", "a.tta": "tta"}.get(name)
    path = save(tmp_path / name, x) if codec is None else save_av(tmp_path / name, x, codec)
    whole = read_audio(path, name)
    assert whole.problems == []
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    sound = read_audio(path, name)
    n = sound.samples.shape[1]
    assert 20_000 < n < 60_000
    assert np.allclose(sound.samples, whole.samples[:, :n], atol=1e-6)
    assert any(problem.startswith("cut off: ") and missing in problem for problem in sound.problems)


def test_a_movie_without_its_index_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = save_av(tmp_path / "a.m4a", tone(100_000), "aac")
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(MediaError, match=r"a\.m4a: not a sound .*; cut off: at least \d+ bytes are missing"):
        read_audio(path, "a.m4a")


def test_limits(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(1000, 2))
    assert read_audio(path, "x", 2000).samples.shape == (2, 1000)
    with pytest.raises(MediaError, match="more than 1999 samples"):
        read_audio(path, "x", 1999)
    with pytest.raises(UnsupportedMediaError, match="9 channels, at most 8"):
        read_audio(save(tmp_path / "b.wav", tone(100, 9)), "x")
    with pytest.raises(UnsupportedMediaError, match="999 Hz is no sample rate"):
        read_audio(save(tmp_path / "c.wav", tone(100), 999), "x")


def test_a_video_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        heard = av.AudioFrame.from_ndarray(tone(2048), format="fltp", layout="mono")
        heard.sample_rate = RATE
        container.mux(sound.encode(heard))
        container.mux(sound.encode(None))
    with pytest.raises(UnsupportedMediaError, match="a video"):
        read_audio(path, "a.mp4")


# ------------------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize(("bits", "step"), [(16, 2**-16), (24, 2**-24)])
def test_what_is_written_is_rounded_and_no_more(suffix: str, bits: int, step: float) -> None:
    x, buffer = tone(5000, 2), io.BytesIO()
    assert write_audio(Sound(x, 44100, bits), buffer, suffix, "x") == []
    buffer.seek(0)
    found = read_audio(buffer, "x")
    assert (found.sample_rate, found.bit_depth) == (44100, bits)
    assert float(np.abs(found.samples - x).max()) <= step * 1.001


def test_what_is_beyond_full_scale_is_cut_off_and_said() -> None:
    x, buffer = np.array([[0.5, 1.5, -1.5, -1.0]], dtype=np.float32), io.BytesIO()
    assert write_audio(Sound(x, RATE), buffer, ".wav", "x") == ["2 samples were beyond full scale and are cut off"]
    buffer.seek(0)
    assert np.allclose(read_audio(buffer, "x").samples, [[0.5, 1 - 2**-15, -1, -1]])


def test_a_format_that_cannot_hold_it_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cannot write \.ogg: use one of \.wav, \.flac"):
        AudioWriter(io.BytesIO(), ".ogg", "x", RATE, 1)
    with pytest.raises(MediaError, match=r"FLAC holds 8 channels .* write \.wav"):
        AudioWriter(io.BytesIO(), ".flac", "x", 768_000, 1)


# ---------------------------------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 24_001])
def test_resampling_in_blocks_is_the_whole_and_of_exact_length(rate: int) -> None:
    x = tone(9_999, 2, rate)
    whole = resample(x, rate, RATE)
    assert whole.shape == (2, resampled_length(9_999, rate, RATE))
    stream = Resampler(rate, RATE, 2)
    parts = [stream(x[:, i : i + 1000], last=i + 1000 >= 9_999) for i in range(0, 9_999, 1000)]
    assert np.allclose(np.concatenate(parts, axis=1), whole, atol=1e-6)
    expected = tone(whole.shape[1], 2)
    inside = slice(500, whole.shape[1] - 500)
    assert snr(expected[:, inside], whole[:, inside]) > 60


def test_silence_of_no_length_stays_so() -> None:
    assert resample(np.zeros((2, 0), np.float32), 8000, RATE).shape == (2, 0)


# ---------------------------------------------------------------------------------------------------------------- kind


def test_the_content_decides_what_a_file_is(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff"):
        path = save(tmp_path / name, tone())
        path = path.rename(path.with_suffix(path.suffix + ".png"))
        assert media_kind(path)[0] == "audio", name
    path = save_av(tmp_path / "a.m4a", tone(), "aac")
    assert media_kind(path.rename(tmp_path / "b.png"))[0] == "audio"


@pytest.mark.parametrize("kind", ["PVF", "SDS", "IRCAM", "IRCAM BIG", "VOC", "AU", "W64", "CAF", "RF64", "WAV BIG"])
def test_sounds_from_a_pipe_are_sounds(kind: str) -> None:
    """Nothing but their content tells what they are."""
    buffer = io.BytesIO()
    name, _, endian = kind.partition(" ")
    soundfile.write(buffer, tone().T, RATE, format=name, subtype="PCM_16", endian=endian or "FILE")
    assert media_kind(Pipe(buffer.getvalue()))[0] == "audio"  # type: ignore[arg-type]


def test_raw_streams_from_a_pipe_are_what_they_are(tmp_path: Path) -> None:
    path = save_av(tmp_path / "a.latm", tone(), "aac")
    assert media_kind(Pipe(path.read_bytes()))[0] == "audio"  # type: ignore[arg-type]
    assert abs(read_audio(path, "x").samples.shape[1] - 12_345) < 3 * 1024
    with av.open(str(tmp_path / "a.m4v"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 32, 16
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 32, 3), np.uint8), "rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    assert media_kind(Pipe((tmp_path / "a.m4v").read_bytes()))[0] == "video"  # type: ignore[arg-type]


def test_pictures_are_pictures_whatever_their_name(tmp_path: Path) -> None:
    from PIL import Image

    for kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF"):
        path = tmp_path / f"{kind}.wav"
        Image.new("RGB", (8, 8)).save(path, kind)
        assert media_kind(path)[0] == "image", kind
    assert media_kind(tmp_path / "missing.png")[0] == "image"
    assert media_kind(tmp_path / "missing.wav")[0] == "audio"


def test_a_pipe_is_looked_at_without_losing_its_start(tmp_path: Path) -> None:
    data = save(tmp_path / "a.wav", tone()).read_bytes()
    kind, source = media_kind(Pipe(data))  # type: ignore[arg-type]
    assert kind == "audio"
    assert not isinstance(source, Path)
    assert source.read() == data
