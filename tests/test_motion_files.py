"""Files of videos whose frames come after others: segments, seeking, damage, rates, and the command line."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from tokodec.codec.bench.video.ours import prepare_video
from tokodec.codec.cli import run
from tokodec.codec.container.chunks import LAYR, chunk_at
from tokodec.codec.container.fields import VideoHeader
from tokodec.codec.container.read import read_tok
from tokodec.codec.contract import Encoded
from tokodec.codec.datasets import TokenDataset
from tokodec.codec.decode import decode_file, file_tokens, video_frames
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import HeaderError, RateError, TokodecError, UsageError
from tokodec.codec.files import atomic_output
from tokodec.codec.media.write_video import VideoWriter
from tokodec.codec.video.motion.encode import DROP, FLAT, MotionEncoder, next_steps
from tokodec.codec.video.motion.refine import FrameRefiner
from tokodec.entropy.hyperprior.net import QUALITY_STEPS
from tokodec.tests.motion_model import clip, doubtful, tiny_motion
from tokodec.tokenizers.image.photo import rate_weight
from tokodec.tokenizers.video.motion import Near, VideoMotion
from tokodec.tokenizers.video.motion_records import GUESSED, STANDS_ALONE, read_records

FRAMES = 11  # two groups of 4 and a part of one
SHAPE = (40, 52)


def write_clip(path: Path, frames: np.ndarray, rate: int = 25) -> Path:
    with (
        atomic_output(path, True) as file,
        VideoWriter(file, path.suffix, path.name, frames.shape[1], frames.shape[2], Fraction(1, rate)) as writer,
    ):
        for t, pixels in enumerate(frames):
            writer.write(pixels, Fraction(t, rate))
    return path


@pytest.fixture(scope="module", autouse=True)
def _short_groups() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokodec.codec.video.motion.encode.GROUP", 4)
        with doubtful(math.inf):
            yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo_model: Path) -> Path:
    """A model, and a clip with a cut behind its frame 5."""
    out = tmp_path_factory.mktemp("files")
    tiny_motion(out, photo_model)
    frames = clip(FRAMES, *SHAPE, speed=1)
    blocks = np.random.default_rng(0).integers(0, 256, (10, 13, 3), dtype=np.uint8)
    frames[6:] = blocks.repeat(4, 0).repeat(4, 1)
    write_clip(out / "clip.mkv", frames)
    return out


@pytest.fixture(scope="module")
def encoded(folder: Path) -> Encoded:
    return encode_file(folder / "clip.mkv", model=str(folder / "tiny-motion"), quality=40)


def shown(
    data: bytes, folder: Path, start: float | None = None, end: float | None = None
) -> tuple[list[np.ndarray], list[Fraction], list[str]]:
    """Frames, their times, and what was damaged."""
    tok = read_tok(data)
    found = list(video_frames(tok, model=str(folder / "tiny-motion"), start=start, end=end))
    return [pixels for _, pixels in found], [time for time, _ in found], tok.problems


def chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Where each chunk begins and ends, and its type."""
    at = 9
    while at < len(data):
        found = chunk_at(data, at)
        assert found is not None
        end = at + 12 + len(found[1])
        yield at, end, found[0]
        at = end


def test_a_file_holds_two_layers_by_time(encoded: Encoded) -> None:
    tok = read_tok(encoded.data)
    header = tok.video
    assert (header.layers, header.segment, header.group, header.n_segments) == (2, 4, 1, 3)
    assert encoded.quality == 40
    order = [key[1:] for key in sorted(tok.places, key=tok.places.__getitem__) if key[0] == LAYR]
    assert order == [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (1, 2)]
    kinds = [(tok.payload(LAYR, 0, s) or b"")[0] for s in range(3)]
    assert kinds == [1, 0, 1]  # the first frame behind the cut that begins a segment stands alone
    with pytest.raises(HeaderError, match="a video has 1, of prior 3 2, not 1"):
        VideoHeader(**{**vars(header), "layers": 1})


def test_frames_come_back_and_seeking_equals_the_whole(encoded: Encoded, folder: Path) -> None:
    whole, times, problems = shown(encoded.data, folder)
    assert problems == []
    assert times == [Fraction(t, 25) for t in range(FRAMES)]
    assert all(pixels.shape == (*SHAPE, 3) for pixels in whole)
    again = encode_file(folder / "clip.mkv", model=str(folder / "tiny-motion"), quality=40)
    assert again.data == encoded.data
    for first, last in ((0, 1), (2, 3), (4, 5), (6, 10), (10, 11)):
        part, own, _ = shown(encoded.data, folder, start=first / 25, end=last / 25)
        assert own == times[first:last]
        assert all(np.array_equal(a, b) for a, b in zip(part, whole[first:last], strict=True))


def test_every_chunk_may_be_lost(encoded: Encoded, folder: Path) -> None:
    """What does not need it comes back as it was; the rest is told."""
    whole, _, _ = shown(encoded.data, folder)
    tok = read_tok(encoded.data)
    names = {place: key for key, place in tok.places.items()}
    same_after = {
        (0, 0): [8, 9, 10], (0, 1): [0, 8, 9, 10], (0, 2): [0, 1, 2, 3, 4],
        (1, 0): [0, *range(4, 11)], (1, 1): [*range(5), 8, 9, 10], (1, 2): [*range(9)],
    }  # fmt: skip
    lost = 0
    for begin, end, kind in chunks(encoded.data):
        if kind != LAYR:
            continue
        _, layer, segment = names[begin]
        damaged = bytearray(encoded.data)
        damaged[end - 6] ^= 1
        data = bytes(damaged) if lost % 2 else encoded.data[:begin] + encoded.data[end:]
        frames, _, problems = shown(data, folder)
        assert len(frames) == FRAMES
        assert any(f"segment {segment}: missing or damaged" in line for line in problems)
        for i in same_after[layer, segment]:
            assert np.array_equal(frames[i], whole[i])
        lost += 1
    assert lost == 6


def test_frames_that_stand_alone_need_no_other(folder: Path) -> None:
    """Inside a segment as well: they come back when its key is lost. A key that costs less alone is a seek point."""
    blocks = np.random.default_rng(1).integers(0, 256, (FRAMES, 10, 13, 3), dtype=np.uint8)
    write_clip(folder / "cuts.mkv", blocks.repeat(4, 1).repeat(4, 2))
    with doubtful(0), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokodec.codec.video.motion.encode.is_cut", lambda *about: False)
        data = encode_file(folder / "cuts.mkv", model=str(folder / "tiny-motion"), quality=40).data
    tok = read_tok(data)
    assert [(tok.payload(LAYR, 0, s) or b"")[0] for s in range(3)] == [1, 1, 1]
    whole, _, problems = shown(data, folder)
    assert problems == []
    (begin,) = (tok.places[key] for key in tok.places if key == (LAYR, 0, 1))
    end = next(end for at, end, _ in chunks(data) if at == begin)
    frames, _, problems = shown(data[:begin] + data[end:], folder)
    assert any("segment 1: missing or damaged" in line for line in problems)
    assert not np.array_equal(frames[4], whole[4])
    assert [i for i in range(FRAMES) if i != 4 and not np.array_equal(frames[i], whole[i])] == []
    part, _, _ = shown(data, folder, start=6 / 25, end=7 / 25)
    assert np.array_equal(part[0], whole[6])


def test_cut_files_decode_as_far_as_they_go(encoded: Encoded, folder: Path) -> None:
    whole, _, _ = shown(encoded.data, folder)
    ends = [end for _, end, kind in chunks(encoded.data) if kind == LAYR]
    for n, good in ((3, 5), (4, 5), (5, 9)):
        frames, _, problems = shown(encoded.data[: ends[n - 1]], folder)
        assert problems
        assert all(np.array_equal(a, b) for a, b in zip(frames[:good], whole[:good], strict=True))


def test_records_that_lie_cost_what_is_behind_them(encoded: Encoded, folder: Path) -> None:
    from dataclasses import replace

    from tokodec.codec.container.write import write_video

    tok = read_tok(encoded.data)
    keys, more = ([tok.payload(LAYR, layer, s) or b"" for s in range(3)] for layer in (0, 1))
    whole, _, _ = shown(encoded.data, folder)
    for change, said in (
        (lambda: ([b"\2" + keys[0][1:], *keys[1:]], more), "an unknown kind 2"),
        (lambda: (keys, [more[0] + b"\0", *more[1:]]), "1 bytes follow"),
        (lambda: (keys, [b"\0" + more[0][1:], *more[1:]]), "a step of 0 frames"),
        (lambda: (keys, [b"\5" + more[0][1:], *more[1:]]), "a step of 5 frames"),
        (lambda: (keys, [more[0][:5], *more[1:]]), "ends in"),
        (lambda: ([b"\0" + keys[1][1:], *keys[1:]], more), "that it refers to is lost"),
    ):
        data = write_video(replace(tok.video), change()[0], between=change()[1])
        frames, _, problems = shown(data, folder)
        assert any(said in line for line in problems)
        assert np.array_equal(frames[10], whole[10])


def test_low_delay_codes_every_frame_after_the_one_before(folder: Path) -> None:
    low = encode_file(folder / "clip.mkv", model=str(folder / "tiny-motion"), quality=20, low_delay=True)
    tok = read_tok(low.data)
    assert (tok.video.segment, tok.video.n_segments) == (1, FRAMES)
    assert not [key for key in tok.places if key[:2] == (LAYR, 1)]
    frames, _, problems = shown(low.data, folder)
    assert problems == []
    assert len(frames) == FRAMES
    with pytest.raises(UsageError, match="low-delay is not an option of"):
        encode_file(folder / "clip.mkv", low_delay=True)


def test_a_group_has_the_step_that_costs_least(folder: Path) -> None:
    """Of what every step costs, coded as a whole, by bits and the error of all frames."""
    model = VideoMotion.from_pretrained(folder / "tiny-motion")
    frames = list(clip(5, *SHAPE, speed=3))
    found = {}
    for steps in ([4, 2, 1], [4], [2], [1]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tokodec.codec.video.motion.encode.steps_of", lambda group, steps=steps: steps)
            encoder = MotionEncoder(model, 5000, 4, 9)
            for pixels in frames:
                encoder.push(pixels)
            found[tuple(steps)] = encoder.finish().between[0]
    best = found[4, 2, 1]
    assert best[0] in (4, 2, 1)
    assert best == found[best[0],]
    assert [found[step,][0] for step in (4, 2, 1)] == [4, 2, 1]


def test_frames_of_a_group_that_stand_alone_have_one_quality(folder: Path) -> None:
    """However far down the hierarchy they are."""
    model = VideoMotion.from_pretrained(folder / "tiny-motion")
    encoder = MotionEncoder(model, 5000, 4, 9)
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("DOUBTFUL", "HOPELESS"):
            patch.setattr(f"tokodec.tokenizers.video.motion.{limit}", 0.0)
        for pixels in clip(5, *SHAPE, speed=3):
            encoder.push(pixels)
    made = encoder.finish().between[0]
    qualities = {record.quality for record in read_records(made[1:], [False] * 3, SHAPE)} - {GUESSED}
    assert qualities == {STANDS_ALONE + model.still_steps(5000 - DROP * FLAT, 1.0)}


@pytest.mark.parametrize("n", [2, 3, 8, 13, 16, 17, 18])
def test_groups_of_any_length_come_back(folder: Path, n: int) -> None:
    """The last one is what is left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokodec.codec.video.motion.encode.GROUP", 16)
        write_clip(folder / f"{n}.mkv", clip(n, 20, 24))
        data = encode_file(folder / f"{n}.mkv", model=str(folder / "tiny-motion"), quality=40).data
    frames, times, problems = shown(data, folder)
    assert problems == []
    assert (len(frames), len(times)) == (n, n)


def test_effort_makes_each_kind_of_frame_cheaper(folder: Path) -> None:
    """By bits a pixel and lambda times the squared error, which it descends on."""
    model = VideoMotion.from_pretrained(folder / "tiny-motion")
    frames = clip(3, 48, 64)
    better, steps = FrameRefiner(model, 24, (48, 64)), 6000
    key = model.shown(frames[0])
    for near in ([], [Near(key, -1)], [Near(key, -1), Near(model.shown(frames[2]), 1)]):
        costs = []
        for by in (None, better):
            if near:
                data, found = model.encode_after(frames[1], steps, near, False, by)
            else:
                data, found = model.encode_alone(frames[1], steps, by)
            (record,) = read_records(data, [not near], (48, 64))
            again = model.decode_after(record, near, (48, 64)) if near else model.decode_alone(record, (48, 64))
            torch.testing.assert_close(again.x, found.x, rtol=0, atol=0)
            error = (found.x[0].permute(1, 2, 0) * 255 - torch.from_numpy(frames[1])).square().mean()
            of = model if near else model.still
            weight = rate_weight(torch.tensor(record.quality / QUALITY_STEPS), of.config.rate_weights)
            costs.append(8 * len(data) + 48 * 64 * float(weight * error))
        assert costs[1] < 0.99 * costs[0]


def test_effort_reaches_the_encoder(folder: Path) -> None:
    plain, more = (
        encode_file(folder / "clip.mkv", model=str(folder / "tiny-motion"), quality=20, effort=effort)
        for effort in (0, 1)
    )
    assert len(shown(more.data, folder)[0]) == FRAMES
    assert more.data != plain.data
    with pytest.raises(UsageError, match=r"effort takes frames of at most 2048 pixels along an edge, got 2064 x 16"):
        FrameRefiner(VideoMotion.from_pretrained(folder / "tiny-motion"), 4, (16, 2064))


def test_a_size_is_met_from_below(folder: Path, encoded: Encoded) -> None:
    source = io.BytesIO((folder / "clip.mkv").read_bytes())
    most = len(encoded.data) * 5 // 4
    found = encode_file(source, model=str(folder / "tiny-motion"), size=most)
    assert 0.9 * most < len(found.data) <= most
    assert found.quality is not None
    same = encode_file(folder / "clip.mkv", model=str(folder / "tiny-motion"), quality=found.quality)
    assert same.data == found.data


def test_what_is_too_small_is_refused(folder: Path) -> None:
    with pytest.raises(RateError, match=r"the smallest file takes \d+ bytes .*, more than the 200 asked for"):
        encode_file(folder / "clip.mkv", model=str(folder / "tiny-motion"), size=200)


def test_the_search_goes_between_what_it_knows() -> None:
    assert next_steps({4000: 1000}, 500) < 4000
    assert next_steps({4000: 1000}, 2000) > 4000
    assert next_steps({4000: 10**9}, 10) == 0
    assert next_steps({4000: 10}, 10**9) == 10000
    assert 3000 < next_steps({3000: 800, 4000: 1200}, 1000) < 4000
    assert next_steps({3000: 100, 3002: 10**9}, 10**8) == 3001


def test_there_are_no_tokens(folder: Path, encoded: Encoded) -> None:
    with pytest.raises(TokodecError, match="no tokens"):
        file_tokens(read_tok(encoded.data), str(folder / "tiny-motion"), "cpu")


def test_the_command_line(folder: Path, tmp_path: Path) -> None:
    model, target = str(folder / "tiny-motion"), tmp_path / "a.tok"
    assert run(["encode", str(folder / "clip.mkv"), "-o", str(target), "-m", model, "--quality", "30", "--quiet"]) == 0
    assert run(["info", str(target)]) == 0
    assert run(["decode", str(target), "-o", str(tmp_path / "a.mkv"), "-m", model, "--end", "0.2", "--quiet"]) == 0
    assert run(["decode", str(target), "-o", str(tmp_path / "b.mkv"), "--quiet"]) == 2  # the model is no release
    assert run(["tokenize", str(folder / "clip.mkv"), "-m", model, "--quiet"]) == 2
    assert run(["encode", str(folder / "clip.mkv"), "-o", str(target), "-m", model, "--levels", "2", "--quiet"]) == 2
    damaged = bytearray(target.read_bytes())
    damaged[next(end for _, end, kind in chunks(bytes(damaged)) if kind == LAYR) - 6] ^= 1
    target.write_bytes(damaged)
    assert run(["decode", str(target), "-o", str(tmp_path / "c.mkv"), "-m", model, "--quiet"]) == 3
    decoded = decode_file(target, model=model)
    assert decoded.layers == 2


def test_a_bench_measures_it(folder: Path) -> None:
    coder = prepare_video(str(folder / "tiny-motion"), "cpu")
    assert [setting.control for setting in coder.settings] == ["quality"] * len(coder.settings)
    assert coder.spec().setting.control == "quality"
    with pytest.raises(UsageError, match="levels"):
        prepare_video(str(folder / "tiny-motion"), "cpu", levels=[1])


def test_devices_show_the_same(folder: Path, tmp_path: Path) -> None:
    """Its files hold no tokens: integers and what is shown are compared, and files made by the quality that is said."""
    (tmp_path / "clip.mkv").write_bytes((folder / "clip.mkv").read_bytes())
    words = ["bench", "devices", tmp_path, "-m", folder / "tiny-motion", "--qualities", "20", "--device", "cpu"]
    assert run([*map(str, words), "-o", str(tmp_path / "found.json")]) == 0
    (row,) = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert row["bytes_cpu"] == len(encode_file(folder / "clip.mkv", model=str(folder / "tiny-motion"), quality=20).data)
    assert (row["largest"], row["other_pixels"], row["made"]) == (0, 0, {"same_file": True})
    assert (row["same_codes"], row["codes"]) == (True, None)
    assert min(row["cpu"]["nets"], row["device"]["nets"]) > 0


def test_there_is_no_dataset_of_it(folder: Path) -> None:
    with pytest.raises(UsageError, match="tiny-motion: codes of a frame mean nothing without the frames"):
        TokenDataset(folder, model=folder / "tiny-motion")
