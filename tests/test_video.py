"""Videos as `.tok` files: golden files, sizes, times, sound, rates, seeking, damage, and what users do wrong."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import sys
import tracemalloc
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

import tokodec
from tokodec.codec import cli, console
from tokodec.codec.container.chunks import (
    AHED,
    AUDL,
    HEAD,
    LAYR,
    TEND,
    TIME,
    CodedSound,
    chunk_at,
    pack_chunk,
    pack_segment,
    pack_times,
    read_sound_head,
    read_times,
)
from tokodec.codec.container.fields import MAX_CLIP, SIGNATURE, AudioHeader, VideoHeader, read_header, write_header
from tokodec.codec.container.read import TokFile, modality_of, read_tok
from tokodec.codec.container.write import write_video
from tokodec.codec.contract import Decoded, Encoded
from tokodec.codec.corpus.token_files import load_tokens
from tokodec.codec.decode import decode_file, file_tokens, video_frames
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import (
    ChunkError,
    FormatError,
    HeaderError,
    LimitError,
    MediaError,
    ModelError,
    RateError,
    TruncatedError,
    UnsupportedMediaError,
    UsageError,
)
from tokodec.codec.media.audio import AudioReader, Samples
from tokodec.codec.media.read_video import Frame, Pixels, VideoReader
from tokodec.codec.media.write_video import SoundTrack, VideoWriter
from tokodec.codec.models import Model, load_model
from tokodec.codec.progress import Progress
from tokodec.codec.video.clock import Clock, ClockMaker, clock_of
from tokodec.codec.video.decode import decode_frames, part_of, segment_frames_of
from tokodec.codec.video.joined import joined
from tokodec.codec.video.refine import RefinedEncoder
from tokodec.codec.video.segments import read_segment, segment_frames
from tokodec.entropy.static import StaticPrior
from tokodec.tokenizers.video.grid import GROUP, VideoGrid, VideoGridConfig
from tokodec.tokenizers.video.tiling import FrameDecoder, FrameEncoder, even_tiles

GOLDEN = Path(__file__).resolve().parent / "golden" / "video"
SOUND = GOLDEN.parent / "sound"
BAD = sorted((GOLDEN / "bad").glob("*.tok"))
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text())
HEADER = VideoHeader("m", "0" * 16, "1" * 16, 1, 427, 239, 16, 100, 4, 33, 1, 25, 3, 1, 2, 0, 4, 3, 1)
TICK = Fraction(1, 25)


def clip(n: int, height: int, width: int) -> list[Pixels]:
    """Smooth colours that move."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for i in range(n):
        planes = [127 + 100 * np.sin((x + 3 * i) / 9 + c) * np.cos(y / (7 + c)) for c in range(3)]
        frames.append(np.stack(planes, 2).astype(np.uint8))
    return frames


def tone(samples: int, channels: int = 1, rate: int = 24000) -> Samples:
    pitch = 440 * (1 + 0.1 * np.arange(channels))[:, None]
    return (0.4 * np.sin(2 * np.pi * pitch * np.arange(samples) / rate)).astype(np.float32)


def save(
    path: Path,
    frames: Sequence[Pixels],
    ticks: Sequence[int] | None = None,
    tick: Fraction = TICK,
    sound: Samples | None = None,
    start: Fraction = Fraction(0),
    sound_rate: int = 24000,
    pixel_aspect: Fraction = Fraction(1),
) -> Path:
    height, width, _ = frames[0].shape
    about = None if sound is None else SoundTrack(sound_rate, len(sound), start=start)
    ticks = range(len(frames)) if ticks is None else ticks
    with (
        path.open("w+b") as file,
        VideoWriter(file, path.suffix, path.name, height, width, tick, 1 / tick, about, pixel_aspect) as writer,
    ):
        for pixels, at in zip(frames, ticks, strict=True):
            writer.write(pixels, at * tick, tick)
        if sound is not None:
            for begin in range(0, sound.shape[1], 1000):
                writer.write_sound(sound[:, begin : begin + 1000])
    return path


def load(path: Path) -> tuple[VideoReader, list[Frame]]:
    with VideoReader(path, path.name) as reader:
        return reader, list(reader)


def encode_whole(path: Path, **options: Any) -> Encoded:
    return encode_file(path, model=str(GOLDEN), device="cpu", **of_sound(options))


def of_sound(options: dict[str, Any]) -> dict[str, Any]:
    """Options, with a model for the sound if that is not left out."""
    return options if options.get("sound") is False else options | {"sound_model": str(SOUND)}


def encode(path: Path, **options: Any) -> bytes:
    return encode_whole(path, **options).data


def decode(data: bytes, dst: Path, **options: Any) -> Decoded:
    return decode_file(io.BytesIO(data), dst, model=str(GOLDEN), device="cpu", force=True, **of_sound(options))


def model() -> Model:
    return load_model(str(GOLDEN))


def grid() -> VideoGrid:
    tokenizer = model().tokenizer
    assert isinstance(tokenizer, VideoGrid)
    return tokenizer


def frames_of(tok: TokFile | bytes, **options: Any) -> list[tuple[Fraction, Pixels]]:
    tok = tok if isinstance(tok, TokFile) else read_tok(tok)
    return list(decode_frames(tok, segment_frames_of(tok, model(), options.pop("levels", None)), **options))


def same(a: Sequence[tuple[Fraction, Pixels]], b: Sequence[tuple[Fraction, Pixels]]) -> bool:
    return len(a) == len(b) and all(s == t and np.array_equal(x, y) for (s, x), (t, y) in zip(a, b, strict=True))


def run(*arguments: object) -> int:
    return cli.run([str(a) for a in arguments])


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """132 frames with sound: four segments of video, three of sound."""
    path = tmp_path_factory.mktemp("long") / "a.mkv"
    return encode(save(path, clip(132, 20, 34), sound=tone(24000 * 5)), levels=2)


# -------------------------------------------------------------------------------------------------------- golden files


def test_every_golden_file_has_its_expectation() -> None:
    assert {path.stem for path in GOLDEN.glob("*.tok")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_files_decode_to_their_codes(name: str) -> None:
    tok = read_tok((GOLDEN / f"{name}.tok").read_bytes())
    loaded = load_model(str(GOLDEN), "cpu", "static" if name == "static" else "context")
    digest = hashlib.sha256()
    levels, payloads = [], []
    for segment in range(tok.video.n_segments):
        codes = read_segment(tok, loaded, segment)
        assert codes is not None
        digest.update(codes.astype("<i4").tobytes())
        levels.append(len(codes))
        payloads.append(bytes([len(codes)]) + loaded.prior.compress_joint([codes]))
    assert (tok.problems, tok.complete) == ([], True)
    assert levels == EXPECTED[name]["levels"]
    assert digest.hexdigest()[:32] == EXPECTED[name]["codes"]
    track = None
    if tok.track is not None:
        header, start = tok.track
        track = CodedSound(header, start, [tok.sound_payload(s) or b"" for s in range(header.n_segments)])
    data = (GOLDEN / f"{name}.tok").read_bytes()
    assert write_video(tok.video, payloads, tok.payload(TIME), track) == data
    assert len(data) == EXPECTED[name]["bytes"]


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_frames(name: str) -> None:
    """Networks may round differently on another machine."""
    loaded = load_model(str(GOLDEN), "cpu", "static" if name == "static" else "context")
    tok, expected = read_tok((GOLDEN / f"{name}.tok").read_bytes()), EXPECTED[name]
    found = list(decode_frames(tok, segment_frames_of(tok, loaded)))
    assert [len(found), *found[0][1].shape] == expected["size"]
    assert [str(time) for time, _ in found[:12]] == expected["times"]
    assert clock_of(tok).seconds == Fraction(expected["seconds"])
    last = found[-1][1]
    seen = last[:: last.shape[0] // 4, ::7].mean(2).ravel()
    assert np.abs(seen - expected["seen"]).max() < 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("name", [name for name in EXPECTED if name != "static"])
def test_a_gpu_decodes_the_same_codes(name: str) -> None:
    tok, other = read_tok((GOLDEN / f"{name}.tok").read_bytes()), load_model(str(GOLDEN), "cuda")
    for segment in range(tok.video.n_segments):
        codes, again = read_segment(tok, model(), segment), read_segment(tok, other, segment)
        assert codes is not None
        assert again is not None
        assert np.array_equal(codes, again)
    both = (decode_frames(tok, segment_frames_of(tok, one)) for one in (model(), other))
    pairs = zip(*both, strict=True)
    assert all(int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1 for (_, a), (_, b) in pairs)


def test_golden_files_show_every_path() -> None:
    headers = {name: read_tok((GOLDEN / f"{name}.tok").read_bytes()).video for name in EXPECTED}
    assert len(set(EXPECTED["even"]["levels"])) > 1
    assert headers["even"].n_segments == 3
    assert headers["uneven"].times == 1
    assert headers["uneven"].start > 0
    assert headers["static"].prior == 1
    assert [name for name, header in headers.items() if header.sound] == ["sound"]
    tok = read_tok((GOLDEN / "sound.tok").read_bytes())
    assert tok.track is not None
    assert tok.track[1] == 2400
    assert tok.sound.samples == 72000


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_file_is_refused_by_name(path: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        decode_file(path, tmp_path / "a.mp4", model=str(GOLDEN), device="cpu")
    assert type(caught.value).__name__ == path.stem.split("_")[0]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_there() -> None:
    assert len(BAD) == 7


# ------------------------------------------------------------------------------------------------------------ the file


def test_header_comes_back_and_is_checked() -> None:
    assert read_header(write_header(HEADER)) == HEADER
    assert HEADER.n_segments == 4
    assert [HEADER.segment_span(s) for s in (0, 3)] == [(0, 33), (99, 100)]
    assert [HEADER.segment_grid(s) for s in (0, 3)] == [(9, 27, 15), (1, 27, 15)]
    assert HEADER.grid == (28, 27, 15)
    assert (HEADER.tick, HEADER.pixel_aspect) == (TICK, Fraction(4, 3))
    assert [replace(HEADER, frames=n).grid[0] for n in (1, 2, 5, 6, 33, 34)] == [1, 2, 2, 3, 9, 10]
    wrong: dict[str, Any] = {
        "height": 0, "width": (1 << 20) + 1, "stride": 257, "frames": MAX_CLIP + 1, "group": 0, "segment": 34,
        "tick_seconds": 0, "tick_parts": 0, "start": -1, "duration": 0, "last": 0, "times": 2, "aspect_width": 0,
        "aspect_height": 1 << 16, "sound": 2, "layers": 2,
    }  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(HeaderError, match=name):
            replace(HEADER, **{name: value})
    with pytest.raises(HeaderError, match="1021 frames have more than 8388608 cells"):
        replace(HEADER, segment=1021, frames=2000, height=4000, width=4000)
    assert modality_of((GOLDEN / "frame.tok").read_bytes()[:18]) == 3


def test_times_come_back_and_are_checked() -> None:
    for steps, rate in (([3, 1, (1 << 32) - 1], Fraction(30000, 1001)), ([], None), ([7], None)):
        found, nominal = read_times(pack_times(steps, rate), len(steps) + 1)
        assert (found.tolist(), nominal) == (steps, rate)
    good = pack_times([1, 2], None)
    for wrong, frames in ((good, 4), (good, 2), (good, 1), (good[:-2], 3), (good[:5], 3), (good[:8] + b"x", 3)):
        with pytest.raises(ChunkError, match="the times of frames"):
            read_times(wrong, frames)
    for payload in (pack_times([1, 0], None), b"\1\0\0\0\0\0\0\0" + good[8:]):
        with pytest.raises(ChunkError, match="do not increase"):
            read_times(payload, 3)
    bomb = pack_times([1] * 1_000_000, None)
    tracemalloc.start()
    with pytest.raises(ChunkError):
        read_times(bomb, 3)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_the_head_of_the_sound_is_checked() -> None:
    sound = AudioHeader("m", "0" * 16, "1" * 16, 1, 1000, 24000, 1, 1, 16, 24000, 320, 150)
    head = CodedSound(sound, 77, []).head
    assert read_sound_head(head) == (sound, 77)
    for wrong in (head[:3], head[:20], head[:4] + write_header(HEADER)):
        with pytest.raises(HeaderError):
            read_sound_head(wrong)


def test_what_belongs_to_one_moment_lies_together(long: bytes) -> None:
    tok = read_tok(long)
    order = sorted(tok.places, key=lambda place: tok.places[place])
    assert order == [
        (AHED, 0, 0), (LAYR, 0, 0), (AUDL, 0, 0), (LAYR, 0, 1), (AUDL, 0, 1), (LAYR, 0, 2), (LAYR, 0, 3), (AUDL, 0, 2),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="need 4 segments"):
        write_video(tok.video, [b""])
    with pytest.raises(ValueError, match="disagree"):
        write_video(tok.video, [b""] * 4)


@pytest.mark.parametrize("rate", [None, 10, 24, 25, 30, 50, 60, 120, 10_000])
def test_segments_are_about_a_second(rate: int | None) -> None:
    n = segment_frames(grid(), None if rate is None else Fraction(rate), 239, 427)
    assert (n - 1) % GROUP == 0
    assert n == {None: 33, 10: 33, 24: 33, 25: 33, 30: 33, 50: 65, 60: 65, 120: 161, 10_000: 1021}[rate]
    assert segment_frames(grid(), None if rate is None else Fraction(rate), 1 << 14, 1 << 14) <= 29


# --------------------------------------------------------------------------------------------------------- there, back


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".y4m", ".gif"])
@pytest.mark.parametrize("size", [(239, 427), (48, 32)])
def test_size_frames_and_times_come_back(suffix: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = save(tmp_path / f"a{suffix}", clip(6, *size))
    out = tmp_path / f"b{suffix}"
    data = encode(path)
    done = decode(data, out)
    assert done.problems == []
    assert (done.header.modality, done.layers, done.levels, done.media) == (3, 1, 1, None)
    _, before = load(path)
    again, after = load(out)
    assert (again.height, again.width, again.pixel_aspect) == (*size, 1)
    assert [frame.time for frame in after] == [frame.time for frame in before] == [TICK * i for i in range(6)]
    assert after[-1].duration == TICK
    assert not again.has_sound
    held = read_tok(data).video
    assert (held.height, held.width, held.frames, held.times, held.sound) == (*size, 6, 0, 0)
    assert (held.tick, held.duration, held.last, held.start) == (TICK, 1, 1, 0)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".gif"])
def test_uneven_times_come_back(suffix: str, tmp_path: Path) -> None:
    ticks = [0, 1, 2, 7, 8, 30, 31]
    path = save(tmp_path / f"a{suffix}", clip(7, 33, 18), ticks)
    data = encode(path)
    assert read_tok(data).video.times == 1
    decode(data, tmp_path / f"b{suffix}")
    _, found = load(tmp_path / f"b{suffix}")
    assert [frame.time for frame in found] == [TICK * i for i in ticks]
    with pytest.raises(UnsupportedMediaError, match=r"\.y4m holds one frame rate"):
        decode(data, tmp_path / "b.y4m")
    assert not (tmp_path / "b.y4m").exists()


def test_clocks_that_round_become_even_rates_again(tmp_path: Path) -> None:
    """Matroska counts in milliseconds: 30 frames a second are not even there, but their rate is known."""
    path = save(tmp_path / "a.mkv", clip(7, 16, 16), tick=Fraction(1, 30))
    data = encode(path)
    assert read_tok(data).video.times == 1
    decode(data, tmp_path / "b.y4m")
    reader, found = load(tmp_path / "b.y4m")
    assert reader.rate == 30
    assert len(found) == 7


def test_rotation_and_shape_of_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"
        stream.set_display_rotation(90)
        for pixels in clip(5, 32, 48):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    decode(encode(path), tmp_path / "b.mp4")
    reader, found = load(tmp_path / "b.mp4")
    assert (reader.height, reader.width, len(found)) == (48, 32, 5)
    wide = save(tmp_path / "c.mp4", clip(2, 32, 48), pixel_aspect=Fraction(16, 11))
    decode(encode(wide), tmp_path / "d.mp4")
    assert load(tmp_path / "d.mp4")[0].pixel_aspect == Fraction(16, 11)


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 33, 34, 38])
def test_any_number_of_frames(frames: int, tmp_path: Path) -> None:
    """And what comes out is what the tokenizer makes of each segment as a whole, joined at the borders."""
    path = save(tmp_path / "a.y4m", clip(frames, 19, 35))
    data = encode(path)
    found = frames_of(data)
    assert [time for time, _ in found] == [TICK * i for i in range(frames)]
    x = torch.from_numpy(np.stack([frame.pixels for frame in load(path)[1]])).permute(3, 0, 1, 2)[None]
    apart: list[np.ndarray] = []
    for begin in range(0, frames, 33):
        tokens = grid().encode(x[:, :, begin : begin + 33])
        codes = read_segment(read_tok(data), model(), begin // 33)
        assert codes is not None
        assert np.array_equal(codes, tokens.codes[0].numpy())
        apart += list((grid().decode(tokens)[0] * 255).round().byte().permute(1, 2, 3, 0).numpy())
    expected = joined(iter(enumerate(apart)), 33, read_tok(data).video.joined)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(found, expected, strict=True))


@pytest.mark.parametrize("cells", [1, 2, 5])
def test_tiles_are_the_whole_frame(cells: int) -> None:
    pixels = clip(9, 67, 100)
    whole = FrameEncoder(grid(), 67, 100, errors=True)
    parts = FrameEncoder(grid(), 67, 100, errors=True, cells=cells)
    assert len(parts.tiles) > len(whole.tiles) == 1
    found = []
    for encoder in (whole, parts):
        made = [encoder.push(frame) for frame in pixels] + [encoder.finish()]
        found.append((np.concatenate([codes for codes, _ in made], 1), sum(errors for _, errors in made)))
    (codes, errors), (tiled, tiled_errors) = found
    assert codes.shape == (3, 3, 5, 7)
    assert np.array_equal(codes, tiled)
    assert np.allclose(errors, tiled_errors, rtol=1e-4)
    assert (np.diff(errors) < 0).all()
    once, often = FrameDecoder(grid(), 67, 100), FrameDecoder(grid(), 67, 100, cells)
    for cell in codes.swapaxes(0, 1):
        a, b = once.push(cell), often.push(cell)
        assert a.shape[1:] == (67, 100, 3)
        assert int(np.abs(a.astype(int) - b.astype(int)).max()) <= 1


def test_tiles_cover_a_frame_evenly() -> None:
    found = [tile.core for tile in even_tiles(135, 240, 5)]
    assert [(b - t, r - le) for t, le, b, r in found] == [(67, 120), (67, 120), (68, 120), (68, 120)]
    assert len(list(even_tiles(68, 120, 5))) == 1


# --------------------------------------------------------------------------------------------------------------- clock


def ticking(times: Sequence[Fraction], last: Fraction, base: Fraction) -> Clock:
    maker = ClockMaker(base, "a.mp4")
    for i, time in enumerate(times):
        after = times[i + 1] - time if i + 1 < len(times) else last
        maker.add(Frame(np.zeros((1, 1, 3), np.uint8), time, after))
    return maker.clock(Fraction(25))


def test_clocks_are_as_coarse_as_exactness_allows() -> None:
    even = ticking([Fraction(i, 25) for i in range(9)], Fraction(1, 25), Fraction(1, 90000))
    assert (even.tick, even.duration, even.last, even.ticks, even.rate) == (TICK, 1, 1, None, 25)
    film = Fraction(1001, 24000)
    late = ticking([film * i + Fraction(1, 3) for i in range(9)], 2 * film, Fraction(1, 24000))
    assert [late.time(i) for i in (0, 8, 9)] == [Fraction(1, 3), 8 * film + Fraction(1, 3), 10 * film + Fraction(1, 3)]
    assert late.rate == 1 / film
    times = [Fraction(t, 1000) for t in (500, 533, 567, 600, 700)]
    uneven = ticking(times, Fraction(1, 30), Fraction(1, 1000))
    assert [uneven.time(i) for i in range(5)] == times
    assert uneven.rate == 25
    assert uneven.seconds == Fraction(233, 1000)
    one = ticking([Fraction(0)], Fraction(1, 7), Fraction(1, 7))
    assert (one.tick, one.duration, one.rate) == (Fraction(1, 7), 1, 7)


@pytest.mark.parametrize("even", [True, False])
def test_a_clock_knows_what_is_shown(even: bool) -> None:
    steps = [0, 1, 2, 3] if even else [0, 1, 4, 5]
    clock = ticking([Fraction(2 + step, 10) for step in steps], Fraction(1, 10), Fraction(1, 10))
    for moment in (Fraction(i, 20) for i in range(20)):
        expected = sum(clock.time(i) <= moment for i in range(4)) - 1
        assert clock.shown(moment) == expected


def test_times_that_no_file_holds_are_refused() -> None:
    with pytest.raises(MediaError, match=r"a\.mp4: times of its frames are too far apart"):
        ticking([Fraction(0), Fraction(1, 10_007), Fraction(10**6)], Fraction(1), Fraction(1, 10_007))
    awkward = ticking([Fraction(1, 4_000_000_007), Fraction(2)], Fraction(1, 90_000), Fraction(1, 90_000))
    assert awkward.time(0) == 0  # rounded: the clock that holds it does not fit


# --------------------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize(("channels", "rate"), [(1, 24000), (2, 44100)])
@pytest.mark.parametrize("start", [Fraction(0), Fraction(3, 10)])
def test_sound_is_kept(channels: int, rate: int, start: Fraction, tmp_path: Path) -> None:
    samples = tone(rate * 2 + 77, channels, rate)
    path = save(tmp_path / "a.mkv", clip(40, 16, 16), sound=samples, start=start, sound_rate=rate)
    done = encode_whole(path)
    tok = read_tok(done.data)
    assert (tok.sound.samples, tok.sound.channels, tok.sound.sample_rate) == (samples.shape[1], channels, rate)
    assert tok.track is not None
    assert abs(tok.track[1] - start * rate) <= rate / 1000  # Matroska counts in milliseconds
    decode(done.data, tmp_path / "b.mkv")
    with VideoReader(tmp_path / "b.mkv", "b") as reader:
        assert len(list(reader)) == 40
        sound, begin = reader.sound()
        with sound:
            heard = np.concatenate(list(sound.blocks()), axis=1)
    assert heard.shape == samples.shape
    assert abs(begin - start) <= Fraction(1, 1000)
    assert decode(done.data, tmp_path / "b.gif").notes[0].startswith("the sound is not kept")
    silent = encode_whole(path, sound=False)
    assert silent.notes == ["the sound is left out as asked"]
    assert read_tok(silent.data).track is None
    assert len(silent.data) < len(done.data)
    assert decode(done.data, tmp_path / "c.mkv", sound=False).notes == ["the sound is left out as asked"]
    assert not load(tmp_path / "c.mkv")[0].has_sound


def test_sound_has_a_rate_of_its_own(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mkv", clip(75, 16, 16), sound=tone(72000))

    def size(**options: Any) -> int:
        tok = read_tok(encode(path, **options))
        return sum(len(tok.sound_payload(s) or b"") for s in range(tok.sound.n_segments))

    rates = [size(sound_kbps=kbps) for kbps in (1.0, 1.6, 2.2)]
    assert rates == sorted(set(rates))
    assert 0.6 * 2.2 < 8e-3 * rates[-1] / 3 <= 2.2
    assert size() >= rates[-1]
    assert size(kbps=4.0) < rates[-1]
    with pytest.raises(RateError, match=r"a\.mkv: of its sound, the smallest file takes"):
        encode(path, sound_kbps=0.1)
    with pytest.raises(UsageError, match="kbps of the sound must be positive"):
        encode(path, sound_kbps=0.0)


def test_sound_before_the_first_moment_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.mkv", clip(30, 16, 16), sound=tone(24000))
    whole = VideoReader.sound

    def early(self: VideoReader, *limits: int) -> tuple[AudioReader, Fraction]:
        return whole(self, *limits)[0], Fraction(-1, 10)

    monkeypatch.setattr(VideoReader, "sound", early)
    done = encode_whole(path)
    assert "2400 samples of sound before the beginning of the time line are not kept" in done.notes
    tok = read_tok(done.data)
    assert (tok.sound.samples, tok.track and tok.track[1]) == (21600, 0)


def test_a_model_for_sounds_is_needed_for_sound_only(long: bytes, tmp_path: Path) -> None:
    silent = save(tmp_path / "a.mkv", clip(3, 16, 16))
    encode_file(silent, model=str(GOLDEN))
    options: dict[str, Any] = {"model": str(GOLDEN), "device": "cpu"}
    with pytest.raises(ModelError, match=r"give its folder with --sound-model \(or leave the sound out"):
        decode_file(io.BytesIO(long), tmp_path / "b.mp4", **options)
    assert not (tmp_path / "b.mp4").exists()
    decode_file(io.BytesIO(long), tmp_path / "b.mp4", sound=False, **options)
    decode_file(io.BytesIO(long), tmp_path / "b.y4m", **options)


# ---------------------------------------------------------------------------------------------------------------- rate


def test_levels_and_quality_are_dials(tmp_path: Path) -> None:
    path = save(tmp_path / "a.y4m", clip(40, 40, 40))
    sizes = [len(encode(path, levels=n)) for n in (1, 2, 3)]
    assert sizes == sorted(set(sizes))
    assert [len(encode(path, quality=q)) for q in (0, 50, 100)] == sizes
    assert len(encode(path)) == sizes[2]
    assert same(frames_of(encode(path), levels=2), frames_of(encode(path, levels=2)))


def test_a_wanted_rate_is_met_from_below(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mkv", clip(200, 40, 40), sound=tone(24000 * 8))
    least, most = len(encode(path, levels=1)), len(encode(path))
    for share in (0.4, 0.8):
        size = round(least + share * (most - least))
        done = encode_whole(path, size=size, sound_kbps=2.0)
        assert 0.85 * size < len(done.data) <= size
    assert (done.seconds, done.pixels, done.frames) == (8, 200 * 1600, 200)
    assert done.bpp == pytest.approx(8 * len(done.data) / done.pixels)
    assert len(encode(path, kbps=8e-3 * size / 8, sound_kbps=2.0)) == len(done.data)
    assert len(encode(path, bpp=8 * size / done.pixels, sound_kbps=2.0)) == len(done.data)
    with pytest.raises(RateError, match=r"the smallest file takes .* kbps\), sound included"):
        encode(path, size=200)


# --------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        (0, 0.04, 0, 1),
        (0.04, 0.12, 1, 3),
        (1.3, 1.4, 32, 35),
        (2.7, None, 67, 132),
        (None, 1.0, 0, 25),
        (5.27, 99, 131, 132),
        (0.05, 0.06, 1, 2),
    ],
)
def test_a_part_is_that_of_the_whole(
    start: float | None, end: float | None, first: int, last: int, long: bytes, tmp_path: Path
) -> None:
    tok = read_tok(long)
    part = part_of(clock_of(tok), start, end)
    assert (part.first, part.last) == (first, last)
    assert same(frames_of(tok, part=part), frames_of(tok)[first:last])
    decode(long, tmp_path / "a.mp4", start=start, end=end)
    reader, found = load(tmp_path / "a.mp4")
    assert [frame.time for frame in found] == [TICK * i for i in range(last - first)]
    if first * TICK < 5:
        with reader.sound()[0] as sound:
            heard = sum(block.shape[1] for block in sound.blocks())
        stop = Fraction(5) if end is None else min(Fraction(5), last * TICK)
        assert abs(heard - (stop - first * TICK) * 24000) < 2400  # AAC frames


def test_parts_decode_their_segments_only(long: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    tok = read_tok(long)
    asked: list[int] = []
    whole = tok.payload

    def payload(kind: bytes, layer: int = 0, segment: int = 0) -> bytes | None:
        asked.append(segment)
        return whole(kind, layer, segment)

    monkeypatch.setattr(tok, "payload", payload)
    assert len(frames_of(tok, part=part_of(clock_of(tok), 1.6, 2.3))) == 18
    assert asked == [1]
    asked.clear()
    assert len(frames_of(tok, part=part_of(clock_of(tok), 1.4, 2.6))) == 30
    assert asked == [0, 1, 2]  # borders beside it touch it


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (5.28, None, "the video ends after 5.28 s"),
        (2, 2, "no frame lies"),
        (3, 2, "no frame lies"),
        (-1, None, "got -1"),
        (None, float("nan"), "got nan"),
        (None, 0, "no frame lies"),
    ],
)
def test_a_part_that_is_none_is_refused(start: float | None, end: float | None, message: str, long: bytes) -> None:
    with pytest.raises(UsageError, match=message):
        part_of(clock_of(read_tok(long)), start, end)


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    """Of what NumPy and Python hold: frames are 110 kB each."""
    held = []
    for seconds in (2, 7):
        path = save(tmp_path / f"{seconds}.mp4", clip(25, 192, 192) * seconds)
        encode(path, levels=1)
        tracemalloc.start()
        data = encode(path, size=10_000_000)
        out = tmp_path / f"{seconds}-out.mp4"
        decode(data, out)
        held.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert held[1] - held[0] < 1_500_000  # 125 frames are 14 MB


# -------------------------------------------------------------------------------------------------------------- damage


def without_joins(data: bytes) -> bytes:
    """The file, whose segments are shown as they are."""
    tok = read_tok(data)
    return data[:9] + pack_chunk(HEAD, write_header(replace(tok.video, joined=0))) + data[9 + 12 + head_size(data) :]


def head_size(data: bytes) -> int:
    return int.from_bytes(data[13:17], "little")


def test_damage_costs_its_own_segment(long: bytes, tmp_path: Path) -> None:
    long = without_joins(long)
    whole, tok = frames_of(long), read_tok(long)
    for lost in range(4):
        broken = bytearray(long)
        broken[tok.places[LAYR, 0, lost] + 15] ^= 1
        again = read_tok(bytes(broken))
        found = frames_of(again)
        stands = whole[33 * lost - 1][1] if lost else np.full_like(whole[0][1], 128)
        expected = [(time, stands if 33 * lost <= i < 33 * lost + 33 else x) for i, (time, x) in enumerate(whole)]
        assert same(found, expected)
        assert any(f"frames {33 * lost} to {33 * lost + 32} are lost" in problem for problem in again.problems)
    done = decode(bytes(broken), tmp_path / "a.mp4")
    assert len(done.problems) == 2
    assert len(load(tmp_path / "a.mp4")[1]) == 132
    with pytest.raises(FormatError, match="damaged"):
        decode(bytes(broken), tmp_path / "b.mp4", strict=True)
    assert not (tmp_path / "b.mp4").exists()


def test_damage_of_the_sound_costs_the_sound(long: bytes, tmp_path: Path) -> None:
    tok = read_tok(long)
    for place, message in (((AUDL, 0, 1), "2.00 to 4.00 s are silent"), ((AHED, 0, 0), "the sound is lost")):
        broken = bytearray(long)
        broken[tok.places[place] + 15] ^= 1
        done = decode(bytes(broken), tmp_path / "a.mkv")
        assert any(message in problem for problem in done.problems)
        reader, found = load(tmp_path / "a.mkv")
        assert len(found) == 132
        assert reader.has_sound == (place[0] == AUDL)
    assert same(frames_of(bytes(broken)), frames_of(long))


@pytest.mark.parametrize(("samples", "kept"), [((1 << 32) - 1, []), ((1 << 32) - 1, [80_000]), (48_000 * 40, [0, 1])])
def test_a_sound_that_is_not_there_costs_nothing(samples: int, kept: list[int], tmp_path: Path, long: bytes) -> None:
    """A video of few bytes whose sound claims 2^33 samples: what is there bounds the work, not what is claimed."""
    tok = read_tok(long)
    assert tok.track is not None
    header = replace(tok.track[0], samples=samples)
    payload = tok.sound_payload(0)
    assert payload is not None
    out = bytearray(long[: tok.places[AHED, 0, 0]])
    out += pack_chunk(AHED, CodedSound(header, 0, []).head)
    for key, place in sorted(tok.places.items(), key=lambda item: item[1]):
        if key[0] == LAYR:
            out += pack_chunk(*chunk_at(long, place))  # type: ignore[misc]
    for segment in kept:
        out += pack_chunk(AUDL, pack_segment(segment) + payload)
    found = read_tok(bytes(out) + pack_chunk(TEND, b""))
    if kept == [0, 1]:
        assert found.track is not None
        assert found.sound.samples == 2 * 48_000  # two segments of two seconds
        assert any("only the first 4.00 s are there" in problem for problem in found.problems)
        done = decode(found.data, tmp_path / "a.mkv")
        with load_sound(tmp_path / "a.mkv") as sound:
            assert sum(block.shape[1] for block in sound.blocks()) == 2 * 48_000
    else:
        assert found.track is None
        done = decode(found.data, tmp_path / "a.mkv")
    assert any("sound is lost" in problem for problem in done.problems) == (kept != [0, 1])


def load_sound(path: Path) -> AudioReader:
    with VideoReader(path, path.name) as reader:
        return reader.sound()[0]


def test_lost_times_are_even(tmp_path: Path) -> None:
    data = bytearray((GOLDEN / "uneven.tok").read_bytes())
    data[read_tok(bytes(data)).places[TIME, 0, 0] + 15] ^= 1
    tok = read_tok(bytes(data))
    clock = clock_of(tok)
    assert any("the times of frames are lost" in problem for problem in tok.problems)
    assert clock.time(0) == Fraction(1, 2)
    mean = Fraction(430, 10_000)
    assert abs(clock.time(10) - clock.time(0) - 10 * mean) <= 10 * clock.tick


def test_every_flipped_byte_is_survived() -> None:
    data = (GOLDEN / "sound.tok").read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.choice(len(data), 40, replace=False):
        broken = bytearray(data)
        broken[at] ^= 1 << rng.integers(8)
        out = io.BytesIO()
        try:
            done = decode_file(
                io.BytesIO(broken), out, model=str(GOLDEN), sound_model=str(SOUND), format=".mkv", device="cpu"
            )
        except (FormatError, ModelError):
            continue
        assert done.problems
        with VideoReader(io.BytesIO(out.getvalue()), "out") as reader:
            assert len(list(reader)) == 40


def test_a_payload_that_lies_is_damage() -> None:
    """Chunks whose checksums are right, but whose content is not what it should be."""
    tok = read_tok((GOLDEN / "even.tok").read_bytes())
    payloads = [tok.payload(LAYR, 0, s) or b"" for s in range(3)]
    good = payloads[1]
    for wrong in (b"", b"\0" + good[1:], b"\4" + good[1:], b"\xff" + good[1:], good[:-4], good + b"abcd"):
        again = read_tok(write_video(tok.video, [payloads[0], wrong, payloads[2]]))
        assert len(frames_of(again)) == 70
        assert any("frames 33 to 65 are lost" in problem for problem in again.problems), wrong
    with pytest.raises(FormatError, match="frames 33 to 65 are lost"):
        list(video_frames(again, model=str(GOLDEN), device="cpu", strict=True))
    with pytest.raises(UsageError, match="synthesis is not an option of"):
        video_frames(again, model=str(GOLDEN), device="cpu", synthesis="sharp")


def test_a_file_that_is_cut_off_decodes_to_its_first_part(long: bytes, tmp_path: Path) -> None:
    long = without_joins(long)
    whole, tok = frames_of(long), read_tok(long)
    cut = long[: tok.places[LAYR, 0, 2] + 7]
    done = decode(cut, tmp_path / "a.mp4")
    assert any("cut off" in problem for problem in done.problems)
    found = frames_of(cut)
    assert same(found[:66], whole[:66])
    assert len(found) == 132
    assert all(np.array_equal(pixels, whole[65][1]) for _, pixels in found[66:])
    with pytest.raises(TruncatedError):
        decode(long[: tok.places[LAYR, 0, 0] + 7], tmp_path / "a.mp4")


def test_a_header_that_lies_is_refused(long: bytes, tmp_path: Path) -> None:
    tok = read_tok((GOLDEN / "even.tok").read_bytes())
    payloads = [tok.payload(LAYR, 0, s) or b"" for s in range(3)]
    for header in (replace(tok.video, stride=8), replace(tok.video, group=8)):
        with pytest.raises(ChunkError, match="stride or group is not that of tiny-video"):
            decode(write_video(header, payloads), tmp_path / "a.mp4")
    with pytest.raises(LimitError, match="a video of 34 x 20 pixels is over the limit of 100"):
        decode(long, tmp_path / "a.mp4", max_pixels=100)
    with pytest.raises(LimitError, match="1 x 120000 samples is over the limit of 1000"):
        decode(long, tmp_path / "a.mp4", max_samples=1000)
    assert decode(long, tmp_path / "a.mp4", max_samples=1000, sound=False).problems == []
    with pytest.raises(ModelError, match="of kind video, tiny-sound is a model for audio"):
        decode_file(io.BytesIO(long), model=str(SOUND))
    with pytest.raises(UsageError, match="synthesis is not an option of"):
        decode(long, tmp_path / "a.mp4", synthesis="sharp")
    with pytest.raises(UsageError, match="levels must be at least 1"):
        decode(long, tmp_path / "a.mp4", levels=0)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".y4m", ".gif"])
def test_absurd_times_are_refused_or_written(suffix: str) -> None:
    tok = read_tok((GOLDEN / "uneven.tok").read_bytes())
    payloads, top = [tok.payload(LAYR, 0, 0) or b""], (1 << 31) - 1
    long = replace(tok.video, tick_seconds=top, tick_parts=1, duration=top, last=top)
    late = replace(tok.video, tick_seconds=top, tick_parts=top - 1, start=(1 << 32) - 1)
    short = replace(tok.video, tick_seconds=1, tick_parts=top)
    for header in (long, late, short):
        for times in (0, 1):
            data = write_video(replace(header, times=times), payloads, tok.payload(TIME) if times else None)
            out = io.BytesIO()
            with suppress(MediaError):  # anything else is our fault
                decode_file(io.BytesIO(data), out, model=str(GOLDEN), format=suffix, device="cpu")
                assert out.getvalue()


def test_chunks_that_do_not_belong_are_damage(long: bytes) -> None:
    tok = read_tok(long)
    end = len(long) - 12
    for extra in (pack_chunk(AUDL, b"\x09abc"), pack_chunk(AUDL, b"\x80\x00"), pack_chunk(TIME, b"")):
        assert read_tok(long[:end] + extra + long[end:]).problems
    silent = write_header(replace(tok.video, sound=0))
    start = len(SIGNATURE) + 1
    (n,) = struct.unpack_from("<I", long, start + 4)
    again = read_tok(long[:start] + pack_chunk(HEAD, silent) + long[start + 12 + n :])
    assert len(again.problems) == 4
    with pytest.raises(ChunkError, match="holds a video, not a sound"):
        _ = again.sound
    with pytest.raises(ChunkError, match="holds a video, not a picture"):
        _ = again.picture
    with pytest.raises(ChunkError, match="holds a sound, not a video"):
        _ = read_tok((SOUND / "mono.tok").read_bytes()).video


# -------------------------------------------------------------------------------------------------------------- effort


def trained(folder: Path) -> Path:
    """A model whose nets fit each other, a little: random ones make noise of everything, whatever the codes."""
    torch.manual_seed(0)
    sizes = VideoGridConfig((6, 8, 8), (1, 1, 1), (1, 1), (1, 1, 1), (1, 1), 4, (32, 16))
    model = VideoGrid(sizes, "learnt-video").train()
    x = torch.from_numpy(np.stack(clip(9, 48, 64))).permute(3, 0, 1, 2)[None].float() / 255
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(60):
        out = model.quantizer(model.latents(x))
        loss = 10 * (model.pixels(out.z_q) - x).square().mean() + 0.25 * out.commitment_loss + out.codebook_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    codes = VideoGrid.from_pretrained(folder).encode(x).codes[0]
    counts = [np.bincount(own.flatten(), minlength=n) for own, n in zip(codes, (32, 16), strict=True)]
    StaticPrior.from_counts(counts).save_pretrained(folder)
    return folder


def test_effort_finds_codes_that_are_worth_their_bits(tmp_path: Path) -> None:
    folder = str(trained(tmp_path / "model"))
    path = save(tmp_path / "a.mkv", clip(43, 40, 52))  # two segments, the second with part of a group
    frames = [frame.pixels.astype(float) for frame in load(path)[1]]
    errors, sizes = [], []
    for effort in (0, 2):
        shares: list[float] = []
        options = {"effort": effort, "progress": shares.append}
        data = encode_file(path, model=folder, device="cpu", **options).data  # type: ignore[arg-type]
        tok = read_tok(data)
        assert not tok.problems
        shown = [pixels for _, pixels in decode_frames(tok, segment_frames_of(tok, load_model(folder, "cpu")))]
        errors.append(np.mean([np.square(a - b).mean() for a, b in zip(shown, frames, strict=True)]))
        sizes.append(len(data))
        assert shares == sorted(shares)
        assert shares[-1] == 1
        assert len(shares) > 8  # of effort, one for each step of each segment
    latents = 4 * 3 * 4 * (9 + 4)
    assert errors[1] < 0.97 * errors[0]
    assert 8 * (sizes[1] - sizes[0]) <= 0.5 * latents * np.log2(errors[0] / errors[1]) + 8 * 8  # words are rounded up
    assert data == encode_file(path, model=folder, device="cpu", effort=2).data


def test_rates_are_met_with_effort(tmp_path: Path) -> None:
    folder = str(trained(tmp_path / "model"))
    path = save(tmp_path / "a.mkv", clip(12, 40, 52))
    whole = encode_file(path, model=folder, device="cpu", effort=1)
    most = len(whole.data) - 1
    less = encode_file(path, model=folder, device="cpu", effort=1, size=most)
    assert len(less.data) <= most
    assert (whole.levels, less.levels) == (2, 1)


def test_no_effort_is_taken_where_it_brings_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RefinedEncoder, "descend", lambda self, z, x: -z)
    folder = str(trained(tmp_path / "model"))
    path = save(tmp_path / "a.mkv", clip(6, 48, 64))
    plain, refined = (encode_file(path, model=folder, device="cpu", effort=effort).data for effort in (0, 3))
    assert refined == plain


def test_frames_too_large_for_effort_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokodec.codec.video.refine.MOST_PIXELS", 32 * 31)
    path = save(tmp_path / "a.mkv", clip(2, 32, 32))
    with pytest.raises(UsageError, match="effort takes frames of at most 992 pixels, got 32 x 32"):
        encode(path, effort=1)
    assert encode(path)


# --------------------------------------------------------------------------------------------------------- python, cli


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mp4", clip(3, 16, 16))
    picture = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(picture)
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (path, {"levels": 4}, "levels is 1 to 3 with this model, got 4"),
        (path, {"tokens": 4}, "tokens does not set the rate of"),
        (path, {"keep": "exif"}, "keep is not an option of"),
        (picture, {}, r"is a model for video, and .* is a picture"),
    ]
    for source, options, message in wrong:
        with pytest.raises(UsageError, match=message):
            encode_file(source, model=str(GOLDEN), device="cpu", **options)
    with pytest.raises(UsageError, match=r"is a model for image, and .* is a video"):
        encode_file(path, model=str(GOLDEN.parent / "tiny"))
    with pytest.raises(UsageError, match="sound-model is not an option of"):
        encode_file(picture, model=str(GOLDEN.parent / "tiny"), sound_model="x")
    (tmp_path / "bad.mp4").write_bytes(path.read_bytes()[:400])
    with pytest.raises(MediaError, match=r"bad\.mp4"):
        encode(tmp_path / "bad.mp4")
    with pytest.raises(UsageError, match="its codes begin anew in each of 3 segments"):
        file_tokens(read_tok((GOLDEN / "even.tok").read_bytes()), str(GOLDEN), "cpu")
    with pytest.raises(UsageError, match="levels must be at least 1, got 0"):
        file_tokens(read_tok((GOLDEN / "even.tok").read_bytes()), str(GOLDEN), "cpu", levels=0)
    with pytest.raises(MediaError, match="more than the limit of 100"):
        encode(path, max_pixels=100)


def test_from_file_to_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.mp4", clip(50, 24, 40), sound=tone(48000))
    models = ("--model", GOLDEN, "--sound-model", SOUND)
    assert run("encode", path, *models, "--kbps", 8) == 0
    assert "kbps" in capsys.readouterr().err
    tok = tmp_path / "a.tok"
    assert run("decode", tok, *models) == 2  # a.mp4 is there
    assert run("decode", tok, *models, "-o", tmp_path / "b.mp4") == 0
    assert "40 x 24 pixels, 50 frames in the file" in capsys.readouterr().err
    assert len(load(tmp_path / "b.mp4")[1]) == 50
    part = ("--start", 0.4, "--end", 0.8, "--no-sound", "-o", tmp_path / "c.webm")
    assert run("decode", tok, *models[:2], *part) == 0
    assert len(load(tmp_path / "c.webm")[1]) == 10
    capsys.readouterr()
    assert run("info", tok, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["modality"], found["frames"], found["segments"], found["grid"]) == ("video", 50, 2, [14, 2, 3])
    assert (found["seconds"], found["sound_model"], found["sound_channels"]) == (2.0, "tiny-sound", 1)
    assert found["kbps"] == pytest.approx(4e-3 * found["bytes"])
    assert found["bpp"] == pytest.approx(8 * found["bytes"] / (50 * 24 * 40), abs=1e-6)
    parts = found["layer_bytes"][0] + found["sound_bytes"] + found["time_bytes"] + found["overhead_bytes"]
    assert parts == found["bytes"]
    broken = bytearray(tok.read_bytes())
    broken[read_tok(bytes(broken)).places[LAYR, 0, 1] + 20] ^= 1
    (tmp_path / "d.tok").write_bytes(broken)
    assert run("decode", tmp_path / "d.tok", *models) == 3
    assert "frames 33 to 49 are lost" in capsys.readouterr().err
    assert (tmp_path / "d.mp4").exists()


def test_folders_of_all_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "a.mp4", clip(2, 16, 16))
    save(folder / "b.webm", clip(2, 16, 16))
    (folder / "c.mkv").write_bytes(b"no video")
    assert run("encode", folder, "--model", GOLDEN, "-o", tmp_path / "out") == 2
    assert "1 of 3 files failed" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.tok", "b.tok"]
    assert run("decode", tmp_path / "out", "--model", GOLDEN, "-o", tmp_path / "back", "--format", "gif") == 0
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["a.gif", "b.gif"]


def test_standard_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __init__(self, buffer: Any) -> None:
            self.buffer = buffer

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    path = save(tmp_path / "a.mp4", clip(6, 16, 16), sound=tone(6000))
    models = ("--model", GOLDEN, "--sound-model", SOUND)
    out = Pipe()
    monkeypatch.setattr(sys, "stdin", Stream(Pipe(path.read_bytes())))
    monkeypatch.setattr(sys, "stdout", Stream(out))
    assert run("encode", "-", *models, "--quiet") == 0
    data = out.getvalue()
    assert data == encode(path)
    out = Pipe()
    monkeypatch.setattr(sys, "stdin", Stream(Pipe(data)))
    monkeypatch.setattr(sys, "stdout", Stream(out))
    assert run("decode", "-", *models, "--quiet") == 0
    with VideoReader(io.BytesIO(out.getvalue()), "out") as reader:
        assert len(list(reader)) == 6
        assert reader.has_sound


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_tokens_of_videos(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.y4m", clip(30, 19, 35), tick=Fraction(1001, 30000))
    tokens = tmp_path / f"a{suffix}"
    assert run("tokenize", path, "--model", GOLDEN, "-o", tokens) == 0
    assert "codes 3 x 9 x 2 x 3" in capsys.readouterr().err
    assert run("encode", path, "--model", GOLDEN) == 0
    assert run("detokenize", tokens, "--model", GOLDEN, "-o", tmp_path / "b.tok") == 0
    for name in "ab":
        tok = read_tok((tmp_path / f"{name}.tok").read_bytes())
        found, _ = file_tokens(tok, str(GOLDEN), "cpu")
        assert torch.equal(found.codes, load_tokens(tokens).codes)
        assert found.spec == load_tokens(tokens).spec
    assert same(frames_of((tmp_path / "a.tok").read_bytes()), frames_of((tmp_path / "b.tok").read_bytes()))
    assert run("tokenize", tmp_path / "a.tok", "--model", GOLDEN, "-o", tmp_path / f"b{suffix}", "--levels", 1) == 0
    assert run("detokenize", tmp_path / f"b{suffix}", "--model", GOLDEN, "--format", "gif") == 0
    note = f"codec: {tmp_path / f'b{suffix}'}: .gif holds 256 colours a frame: the others are dithered"
    assert note in capsys.readouterr().err.splitlines()
    assert run("detokenize", tmp_path / f"b{suffix}", "--model", GOLDEN, "--synthesis", "sharp") == 2
    assert "synthesis is not an option of" in capsys.readouterr().err
    assert run("detokenize", tmp_path / f"b{suffix}", "--model", GOLDEN) == 0
    reader, frames = load(tmp_path / "b.mp4")
    assert (reader.height, reader.width, len(frames)) == (19, 35, 30)
    assert frames[1].time == Fraction(1001, 30000)
    long = save(tmp_path / "c.mkv", clip(1030, 16, 16), [*range(1029), 1040], sound=tone(9600))
    assert run("tokenize", long, "--model", GOLDEN, "-o", tmp_path / f"c{suffix}") == 0
    said = capsys.readouterr().err
    assert "the sound is not part of tokens" in said
    assert "uneven times of frames are not part of tokens" in said
    assert run("detokenize", tmp_path / f"c{suffix}", "--model", GOLDEN, "-o", tmp_path / "c.tok") == 2
    assert "1030 frames are more than a .tok file holds as one clip" in capsys.readouterr().err
    assert run("tokenize", path, "--model", "image-grid", "-o", tmp_path / f"d{suffix}") == 2
    assert "is a model for image, and" in capsys.readouterr().err


def test_a_failure_leaves_nothing(long: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr(VideoWriter, "write_sound", stop)
    with pytest.raises(RuntimeError, match="stop"):
        decode(long, tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_progress_reaches_the_end(long: bytes, tmp_path: Path) -> None:
    path = save(tmp_path / "a.mp4", clip(40, 16, 16), sound=tone(38400))
    shares: list[float] = []
    counts: list[int] = []

    class Seen(Progress):
        def update(self, share: float | None = None, *, frames: int | None = None, note: str = "") -> None:
            shares.extend([] if share is None else [share])
            counts.extend([] if frames is None else [frames])

    encode(path, progress=Seen())
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert counts == list(range(1, 41))
    shares.clear()
    counts.clear()
    decode(long, tmp_path / "b.mp4", progress=Seen(), start=1)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert counts == list(range(1, 108))


def test_a_bar_shows_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("tokodec.codec.console.SLOW", 0.0)
    with console.progress_bar("a.mp4", quiet=False) as bar:
        bar.update(frames=7)  # of nobody knows how many
        bar.begin -= 10
        bar.update(frames=100)
        bar.update(0.5)
        bar.bar.refresh()
    text = screen.getvalue()
    assert "a.mp4" in text
    assert "50%" in text
    assert re.search(r"(9|10)\.\d frames/s", text)
    with console.progress_bar("b.mp4", quiet=True) as bar:
        bar.update(frames=7)
    assert "b.mp4" not in screen.getvalue()


def test_names_are_part_of_the_package(tmp_path: Path) -> None:
    path = save(tmp_path / "a.mp4", clip(4, 16, 16))
    tokodec.encode_file(path, tmp_path / "a.tok", model=str(GOLDEN))
    done = tokodec.decode_file(tmp_path / "a.tok", tmp_path / "b.mp4", model=str(GOLDEN))
    assert done.media is None
    with pytest.raises(UsageError, match="no picture was decoded"):
        _ = done.picture
