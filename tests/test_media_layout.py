"""Where channels are heard: read in one order from every format, written into every format that holds it, or said."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from tokodec.codec.media.audio import Samples, Sound, read_audio, write_audio
from tokodec.codec.media.layout import CUSTOMARY, described, layout_name, mask_of
from tokodec.codec.media.read_video import VideoReader
from tokodec.codec.media.write_video import SoundTrack, VideoWriter

RATE = 48000
SIDE, BACK, SEVEN = 0x60F, 0x3F, 0x63F  # 5.1 with side channels, with back channels; 7.1
MASKS = [0x3F, 0x60F, 0x63F, 0x33, 0xB, 0x70F, 0xFF, 0x7, 0x107, 0x2D00F, 0x1, 0x30]


def steps(channels: int) -> Samples:
    """``[channels, n]`` of a low tone that each channel has louder than the one before, so that each is known."""
    t = np.sin(2 * np.pi * 60 * np.arange(RATE) / RATE)  # which channels of low frequencies hold too
    return (np.arange(1, channels + 1)[:, None] / 10 * t).astype(np.float32)


def loudness(x: Samples) -> list[float]:
    """Of each channel in the unit of :func:`steps`."""
    return list((np.sqrt(2 * np.square(x[:, 4000:40_000]).mean(1)) * 10).tolist())


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("bits", [16, 24])
def test_positions_are_written_and_read(mask: int, suffix: str, bits: int) -> None:
    x, buffer = steps(mask.bit_count()), io.BytesIO()
    assert write_audio(Sound(x, RATE, bits, layout=mask), buffer, suffix, "x") == []
    buffer.seek(0)
    found = read_audio(buffer, "x")
    assert (found.layout, found.bit_depth, found.samples.shape) == (mask, bits, x.shape)
    assert np.abs(found.samples - x).max() <= 2.0**-bits * 1.001


@pytest.mark.parametrize(
    ("order", "mask"),
    [
        (["FL", "FC", "FR", "BL", "BR", "LFE"], BACK),
        (["FL", "FC", "FR", "SL", "SR", "BL", "BR", "LFE"], SEVEN),
        (["FL", "FC", "FR"], 0x7),
    ],
)
def test_the_order_of_vorbis_becomes_that_of_all(order: list[str], mask: int, tmp_path: Path) -> None:
    """Vorbis I specification, 4.3.9; libsndfile writes channels as they come."""
    wanted = described(mask).split()
    x = steps(len(wanted))
    rows = [x[wanted.index(name)] for name in order]
    soundfile.write(tmp_path / "a.ogg", np.stack(rows, 1), RATE)
    found = read_audio(tmp_path / "a.ogg", "a.ogg")
    assert found.layout == mask
    assert np.argsort(loudness(found.samples)).tolist() == list(range(len(order)))  # its LFE is not exact


@pytest.mark.parametrize(
    ("name", "codec", "layout", "mask"),
    [
        ("a.mka", "flac", "5.1(side)", SIDE),
        ("a.m4a", "aac", "5.1", BACK),
        ("a.m4a", "alac", "7.1(wide)", None),
        ("a.opus", "libopus", "5.1", BACK),
        ("a.ac3", "ac3", "5.1(side)", SIDE),
        ("a.aiff", "pcm_s16be", "5.1", None),
        ("a.caf", "pcm_s16le", "5.1(side)", SIDE),
        ("a.wav", "pcm_s16le", "7.1", SEVEN),
        ("a.ts", "ac3", "5.1(side)", SIDE),
    ],
)
def test_every_format_is_read_in_one_order(
    name: str, codec: str, layout: str, mask: int | None, tmp_path: Path
) -> None:
    x = steps(av.AudioLayout(layout).nb_channels)
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout=layout)
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = 64_000 * len(x)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x.T.reshape(1, -1)), "flt", layout)
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    found = read_audio(tmp_path / name, name)
    if mask is not None:
        assert found.layout == mask
        assert loudness(found.samples) == pytest.approx(range(1, len(x) + 1), abs=0.3)
    assert len(found.samples) == len(x)
    assert found.layout.bit_count() in (0, len(x))


def test_an_order_of_its_own_is_sorted() -> None:
    """What a container calls "custom": channels in any order."""

    class Channel:
        def __init__(self, name: str) -> None:
            self.name = name

    class Layout:
        channels = tuple(Channel(name) for name in ("FC", "FL", "FR", "SL", "SR", "LFE"))

    assert mask_of(Layout()) == (SIDE, [1, 2, 0, 5, 3, 4])
    Layout.channels = (Channel("FL"), Channel("FR"))
    assert mask_of(Layout()) == (0, None)  # there is nothing to tell
    Layout.channels = (Channel("NONE"),) * 3
    assert mask_of(Layout()) == (0, None)
    assert layout_name(0, 6) == "0x3f"
    assert all(mask.bit_count() == channels for channels, mask in CUSTOMARY.items())


@pytest.mark.parametrize(
    ("suffix", "mask", "held"),
    [
        (".mkv", SIDE, True),
        (".mkv", 0x2D00F, True),
        (".mp4", BACK, True),
        (".mov", SEVEN, True),
        (".webm", BACK, True),
        (".mp4", SIDE, False),
        (".webm", SIDE, False),
        (".mp4", 0xB, False),
    ],
)
def test_sound_of_videos_keeps_its_positions_or_says_so(suffix: str, mask: int, held: bool, tmp_path: Path) -> None:
    x = steps(mask.bit_count())
    path, track = tmp_path / f"a{suffix}", SoundTrack(RATE, len(x), layout=mask)
    with path.open("wb") as file:
        writer = VideoWriter(file, suffix, "a", 16, 16, Fraction(1, 25), Fraction(25), track)
        with writer:
            writer.write(np.zeros((16, 16, 3), np.uint8), Fraction(0))
            writer.write_sound(x)
    with VideoReader(path, "a") as reader, reader.sound()[0] as sound:
        y = np.concatenate(list(sound.blocks()), axis=1)
    assert loudness(y) == pytest.approx(range(1, len(x) + 1), abs=0.3)
    assert sound.layout == (mask if held else CUSTOMARY[len(x)])
    said = f"{suffix} does not hold channels at {described(mask)}: they are written as"
    assert any(said in note for note in writer.notes) == (not held)


def test_flac_says_what_it_takes_unknown_channels_for() -> None:
    buffer = io.BytesIO()
    notes = write_audio(Sound(steps(6), RATE), buffer, ".flac", "x")
    assert notes == ["where the channels belong is not known: .flac takes them for FL FR FC LFE BL BR"]
    assert write_audio(Sound(steps(6), RATE), io.BytesIO(), ".wav", "x") == []
