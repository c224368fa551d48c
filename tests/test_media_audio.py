"""Sounds in and out: every common file, sample counts exact, what is wrong is said in one line."""

from __future__ import annotations

import io
from pathlib import Path

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


def save_av(path: Path, x: Samples, codec: str, rate: int = RATE) -> Path:
    """A file that libsndfile does not write."""
    with av.open(str(path), "w") as container:
        layout = "mono" if len(x) == 1 else "stereo"
        stream = container.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0  # so that the file declares the encoder's delay
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


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.flac", tone(100_000))
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(MediaError, match=r"damaged|cut off|missing"):
        read_audio(path, "a.flac")


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
