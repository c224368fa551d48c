"""The video codec with references: nets, search, exact integers, what a frame leaves to others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokodec.tests.motion_model import SMALL, clip, doubtful, tiny_motion
from tokodec.tokenizers.video.hierarchy import between, turns
from tokodec.tokenizers.video.motion import Alone, LowDelayDecoder, LowDelayEncoder, Near, VideoMotion, still_quality
from tokodec.tokenizers.video.motion_nets import MotionNets, VideoMotionConfig, haar, unhaar
from tokodec.tokenizers.video.motion_records import (
    GUESSED,
    STANDS_ALONE,
    Record,
    grid_of,
    marked_alone,
    only,
    pack_record,
    pack_stream,
    read_records,
    unmarked_alone,
)
from tokodec.tokenizers.video.search import moved, search

SIZE = (50, 70)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo_model: Path) -> Path:
    return tiny_motion(tmp_path_factory.mktemp("motion"), photo_model)


@pytest.fixture(scope="module")
def model(folder: Path) -> VideoMotion:
    return VideoMotion.from_pretrained(folder)


@pytest.fixture(autouse=True)
def _after_references() -> Iterator[None]:
    with doubtful(math.inf):
        yield


# ---------------------------------------------------------------------------------------------------------- hierarchy


def test_frames_between_two_come_level_by_level() -> None:
    found = between(0, 8)
    assert [b.frame for b in found] == [4, 2, 6, 1, 3, 5, 7]
    assert [b.level for b in found] == [1, 2, 2, 3, 3, 3, 3]
    assert found[2] == (6, 4, 8, 2)
    assert between(5, 6) == []
    for last in range(1, 40):
        known = {0, last}
        for b in between(0, last):
            assert {b.earlier, b.later} <= known
            assert b.earlier < b.frame < b.later
            known.add(b.frame)
        assert known == set(range(last + 1))


@pytest.mark.parametrize("step", [1, 2, 3, 4, 7, 16])
def test_frames_come_after_what_is_known(step: int) -> None:
    for n in range(1, 20):
        known = {0, n}
        for turn in turns(n, step):
            assert set(turn.references) <= known
            if len(turn.references) == 1:
                assert turn.references == (turn.frame - step,)
                assert turn.level == 1
            known.add(turn.frame)
        assert known == set(range(n + 1))
    assert [(t.frame, t.references, t.level) for t in turns(6, 4)] == [
        (4, (0,), 1), (2, (0, 4), 2), (1, (0, 2), 3), (3, (2, 4), 3), (5, (4, 6), 2)
    ]  # fmt: skip
    assert turns(8, 8) == [(b.frame, (b.earlier, b.later), b.level) for b in between(0, 8)]


# ------------------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("apart", [(3, -2), (-9, 5), (0, 0)])
def test_the_search_finds_what_moved(apart: tuple[int, int]) -> None:
    dx, dy = apart
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 24, 28, generator=generator)
    picture = torch.nn.functional.interpolate(coarse, scale_factor=6, mode="bicubic").clamp(0, 1)
    reference, x = picture[:, :, 32:96, 32:112], picture[:, :, 32 + dy : 96 + dy, 32 + dx : 112 + dx]
    flow = search(x, reference)
    inner = flow[:, :, 2:-2, 2:-2]
    assert inner.shape == (1, 2, 4, 6)
    assert float((inner[:, 0] - dx).abs().mean()) < 0.3
    assert float((inner[:, 1] - dy).abs().mean()) < 0.3


def test_candidates_may_be_tried_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x, reference = torch.rand(2, 2, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    whole = search(x, reference, 3)
    monkeypatch.setattr("tokodec.tokenizers.video.search.AT_ONCE", 4000)
    assert torch.equal(search(x, reference, 3), whole)


def test_moving_by_whole_pixels_is_a_shift() -> None:
    x = torch.rand(1, 2, 10, 12, generator=torch.Generator().manual_seed(0))
    flow = torch.tensor([2.0, -1.0])[None, :, None, None].expand(1, 2, 10, 12)
    assert torch.allclose(moved(x, flow)[:, :, 1:, :10], x[:, :, :9, 2:], atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- nets


def test_blocks_of_flows_come_back() -> None:
    flows = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    m = haar(flows)
    assert m.shape == (2, 16, 3, 4)
    assert torch.allclose(m[:, :4], torch.nn.functional.avg_pool2d(flows, 2), atol=1e-6)
    assert torch.allclose(unhaar(m), flows, atol=1e-6)


def test_an_untrained_model_codes_what_references_leave_over() -> None:
    """Whatever is expected comes back if nothing of y is sent but what a gray picture gives."""
    nets = MotionNets(SMALL).eval()
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    reference, apart = nets.alone(x), torch.tensor([[-1.0, 0.0]])
    with torch.no_grad():
        seen = nets.see(torch.zeros(1, 18, 2, 2), (reference, None), torch.zeros(1, 4, 4, 4), apart)
        assert torch.allclose(seen.x, x, atol=1e-5)
        y, gray = nets.analyse(x, seen), nets.analysis(torch.zeros(1, 3, 32, 32))
        assert torch.allclose(y, gray, atol=1e-5)


def test_motion_is_expected_to_go_on() -> None:
    nets = MotionNets(SMALL)
    still = nets.alone(torch.zeros(1, 3, 16, 16))
    flows = torch.zeros(1, 4, 2, 2)
    flows[:, 0], flows[:, 1] = -8.0, 4.0  # to a frame 4 earlier
    moving = nets.reference(still.x, still.features, flows, torch.tensor([[-4.0, 0.0]]))
    assert float(moving.velocity[0, 0, 0, 0]) == 2.0
    expected = nets.expected(still, moving, torch.tensor([[-2.0, 3.0]]))[0, :, 0, 0]
    assert expected.tolist() == [-4.0, 2.0, 6.0, -3.0]
    assert nets.expected(moving, None, torch.tensor([[-1.0, 0.0]]))[0, :, 0, 0].tolist() == [-2.0, 1.0, 0.0, 0.0]


def test_a_second_reference_that_is_not_there_has_no_part() -> None:
    """As a batch has it: the first one in its place."""
    torch.manual_seed(0)
    nets = MotionNets(SMALL)
    for p in nets.parameters():
        torch.nn.init.normal_(p, std=0.05)
    first, other = (nets.alone(torch.rand(1, 3, 32, 32)) for _ in range(2))
    apart, expected = torch.tensor([[-1.0, 0.0]]), torch.zeros(1, 4, 4, 4)
    m = torch.randn(1, 18, 2, 2)
    with torch.no_grad():
        alone = nets.see(m, (first, None), expected, apart)
        beside = nets.see(m, (first, other), expected, apart)
    for a, b in zip(alone, beside, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not bool(alone.flows[:, 2:].any())


def test_sizes_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="two widths"):
        VideoMotionConfig(context=(8,))
    with pytest.raises(ValueError, match="16 channels at least"):
        VideoMotionConfig(motion=8)
    with pytest.raises(ValueError, match="detail"):
        VideoMotionConfig(latents=4, detail=4)


def test_the_default_model_is_within_16_mib() -> None:
    """int8 weights in a release take about three quarters of a byte; the entropy models as many as their weights."""
    parameters = sum(p.numel() for p in MotionNets(VideoMotionConfig()).parameters())
    assert parameters < 13.5e6


# -------------------------------------------------------------------------------------------------------------- frames


def test_a_model_comes_back_from_its_folder(folder: Path, model: VideoMotion, tmp_path: Path) -> None:
    assert (folder / "motion.safetensors").is_file()
    assert model.weights_hash
    assert model.still.name == "tiny-photo"
    (tmp_path / "photo").symlink_to(folder.parent / "photo")
    assert model.save_pretrained(tmp_path / "again") == model.weights_hash
    assert VideoMotion.from_pretrained(tmp_path / "again").entropy.hash == model.entropy.hash
    (tmp_path / "again" / "motion.safetensors").write_bytes((folder / "hyperprior.safetensors").read_bytes())
    with pytest.raises(ValueError, match="other channels"):
        VideoMotion.from_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="makes files and no tokens"):
        model.encode(torch.zeros(1, 3, 1, 16, 16))


def test_another_model_of_still_frames_is_refused(folder: Path, photo_model: Path, tmp_path: Path) -> None:
    from tokodec.tokenizers.image.photo import ImagePhoto

    other = ImagePhoto.from_pretrained(photo_model)
    with torch.no_grad():
        next(other.nets.log_gain.parameters()).add_(0.1)
    other.save_pretrained(tmp_path / "photo")
    own = tmp_path / "tiny-motion"
    own.mkdir()
    for file in folder.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="than its weights were made with"):
        VideoMotion.from_pretrained(own)


@pytest.mark.parametrize("size", [SIZE, (16, 16), (33, 130)])
def test_frames_come_back_as_the_encoder_saw_them(model: VideoMotion, size: tuple[int, int]) -> None:
    frames = clip(3, *size)
    data, first = model.encode_alone(frames[0], 4000)
    assert torch.equal(model.decode_alone(only(read_records(data, [True], size)), size).x, first.x)
    several: list[list[Near]] = [[Near(first, -2)], [Near(first, -1), Near(model.shown(frames[2]), 1)]]
    for near in several:
        data, found = model.encode_after(frames[1], 4000, near)
        record = only(read_records(data, [False], size))
        again = model.decode_after(record, near, size)
        for a, b in zip(again, found, strict=True):
            assert torch.equal(a, b)
        assert model.pixels_of(found, size).shape == (*size, 3)
        assert record.quality in (4000, GUESSED)


def test_frames_larger_than_a_window_are_coded_in_several(model: VideoMotion, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("motion", "motion_records"):
        monkeypatch.setattr(f"tokodec.tokenizers.video.{module}.WINDOW", 3)
    frames = clip(2, *SIZE)
    first = model.shown(frames[0])
    data, found = model.encode_after(255 - frames[1], 9000, [Near(first, -1)])
    record = only(read_records(data, [False], SIZE))
    assert len(record.streams) == 2 * 2 * 2
    assert torch.equal(model.decode_after(record, [Near(first, -1)], SIZE).x, found.x)


def test_integers_are_the_same_with_two_threads(model: VideoMotion) -> None:
    frames = clip(2, *SIZE)
    first, before = model.shown(frames[0]), torch.get_num_threads()
    coded: list[tuple[torch.Tensor, bytes]] = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            data, _ = model.encode_after(255 - frames[1], 5000, [Near(first, -1)])
            record = only(read_records(data, [False], SIZE))
            coded.append((model._decode(model.priors[1], record.streams[:1], (5000, 0), grid_of(SIZE)), data))
    finally:
        torch.set_num_threads(before)
    assert coded[0][1] == coded[1][1]
    assert torch.equal(coded[0][0], coded[1][0])


def test_a_frame_that_was_expected_takes_two_bytes(model: VideoMotion) -> None:
    first = model.shown(clip(1, *SIZE)[0])
    guess = model.guess([Near(first, -1)])
    data, found = model.encode_after(model.pixels_of(guess, SIZE), 3000, [Near(first, -1)])
    assert data == b"\xff\xff"
    assert torch.equal(found.x, guess.x)
    assert torch.equal(model.decode_after(Record(GUESSED, []), [Near(first, -1)], SIZE).x, guess.x)


def test_a_guess_is_made_only_where_it_may_cost_less(model: VideoMotion, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken is the cheaper one all the same, of frames from one that was expected to one that was not."""
    frames = clip(2, *SIZE)
    near = [Near(model.shown(frames[0]), -1)]
    guess = model.guess(near)
    shown, made = model.pixels_of(guess, SIZE).astype(float), []

    def counted(near: list[Near]) -> Any:
        made.append(1)
        return guess

    monkeypatch.setattr(model, "guess", counted)
    for share in (0.0, 0.02, 0.1, 0.3, 1.0):
        pixels = ((1 - share) * shown + share * (255 - frames[1])).round().astype(np.uint8)
        data, found = model.encode_after(pixels, 4000, near)
        coded, other = model.encode_after(pixels, 4000, near, may_guess=False)
        costs = [model.cost(pixels, guess, b"\xff\xff", 4000), model.cost(pixels, other, coded, 4000)]
        assert model.cost(pixels, found, data, 4000) == min(costs)
    made.clear()
    exact = near[0].reference._replace(x=model.padded(pixels))
    monkeypatch.setattr(model, "_synthesise", lambda *_: exact)  # a frame that is coded is right
    data, _ = model.encode_after(pixels, 9000, near)
    assert (data == b"\xff\xff", made) == (False, [])


def test_what_has_nothing_of_its_references_is_tried_alone_only(
    model: VideoMotion, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, tried = clip(2, *SIZE), []
    near, own = [Near(model.shown(255 - frames[0]), -2)], Alone(2000, 1.0)
    real = model._tries

    def counted(*given: Any, **more: Any) -> Any:
        tried.append(1)
        return real(*given, **more)

    monkeypatch.setattr(model, "_tries", counted)
    model.encode_after(frames[1], 5000, near)
    assert tried.pop()
    with doubtful(0):
        monkeypatch.setattr("tokodec.tokenizers.video.motion.HOPELESS", 0.0)
        data, _ = model.encode_after(frames[1], 5000, near, may_guess=False, alone=own)
    assert not tried
    assert unmarked_alone(data) == model.encode_alone(frames[1], own.steps, weight=own.weight)[0]


def test_a_frame_stands_alone_where_that_costs_less(model: VideoMotion) -> None:
    frames = clip(2, *SIZE)
    near = [Near(model.shown(255 - frames[0]), -2)]
    after, found_after = model.encode_after(frames[1], 5000, near)
    with doubtful(0):
        data, found = model.encode_after(frames[1], 5000, near)
        again, _ = model.encode_after(model.pixels_of(model.guess(near), SIZE), 5000, near)
    assert again == pack_record(GUESSED)
    assert model.cost(frames[1], found, data, 5000) < model.cost(frames[1], found_after, after, 5000)
    alone, same = model.encode_alone(frames[1], 5000, weight=1.0)
    assert (data, unmarked_alone(data)) == (marked_alone(alone), alone)
    assert unmarked_alone(after) is unmarked_alone(again) is None
    record = only(read_records(data, [False], SIZE))
    assert record.quality == STANDS_ALONE + only(read_records(alone, [True], SIZE)).quality
    for shown in (found, same):
        assert torch.equal(model.decode_after(record, near, SIZE).x, shown.x)
    with pytest.raises(ValueError, match="quality"):
        model.decode_after(record._replace(quality=STANDS_ALONE + 10001), near, SIZE)
    with doubtful(0):
        encoder, decoder = LowDelayEncoder(model, 50), LowDelayDecoder(model, SIZE)
        packets = [encoder.push(pixels) for pixels in (255 - frames[0], frames[1])]
    assert (packets[1][0], unmarked_alone(packets[1][1:]) is None) == (0, False)
    shown_last = [decoder.push(packet) for packet in packets][-1]
    assert encoder.last is not None
    assert np.array_equal(shown_last, model.pixels_of(encoder.last, SIZE))


def test_bytes_that_lie_are_refused(model: VideoMotion) -> None:
    frames = clip(2, *SIZE)
    first = model.shown(frames[0])
    data, _ = model.encode_after(255 - frames[1], 5000, [Near(first, -1)])
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"ends in|a frame|stream|bytes"):
            model.decode_after(only(read_records(data[:end], [False], SIZE)), [Near(first, -1)], SIZE)
    with pytest.raises(ValueError, match="1 bytes follow"):
        only(read_records(data + b"\0", [False], SIZE))
    with pytest.raises(ValueError, match="quality"):
        model.decode_after(Record(10001, [b"", b""]), [Near(first, -1)], SIZE)
    with pytest.raises(ValueError, match="quality"):
        model.decode_alone(Record(GUESSED, []), SIZE)
    with pytest.raises(ValueError, match="one reference or two"):
        model.guess([])


def test_streams_are_packed_in_their_shortest_form() -> None:
    assert pack_stream(b"ab") == b"\2ab"
    assert pack_stream(bytes(300))[:2] == b"\xac\x02"
    good = b"\0\0" + pack_stream(b"x") + pack_stream(b"")
    assert only(read_records(good, [False], (16, 16))) == (0, [b"x", b""])
    with pytest.raises(ValueError, match="streams"):
        only(read_records(b"\0\0\x81\0x\0", [False], (16, 16)))


def test_a_stream_frame_by_frame(model: VideoMotion) -> None:
    frames = clip(5, *SIZE)
    encoder, decoder = LowDelayEncoder(model, 60, period=3), LowDelayDecoder(model, SIZE)
    packets = [encoder.push(pixels) for pixels in frames]
    assert [packet[0] for packet in packets] == [1, 0, 0, 1, 0]
    shown = [decoder.push(packet) for packet in packets]
    assert encoder.last is not None
    assert np.array_equal(shown[-1], model.pixels_of(encoder.last, SIZE))
    late = LowDelayDecoder(model, SIZE)
    with pytest.raises(ValueError, match="before the first"):
        late.push(None)
    with pytest.raises(ValueError, match="does not stand alone"):
        late.push(packets[1])
    lossy = LowDelayDecoder(model, SIZE)
    seen = [lossy.push(None if i == 1 else packet) for i, packet in enumerate(packets)]
    assert np.array_equal(seen[0], shown[0])
    assert np.array_equal(seen[4], shown[4])  # behind the next frame that stands alone
    with pytest.raises(ValueError, match="a frame at least"):
        LowDelayEncoder(model, 60, period=0)


def test_frames_that_stand_alone_have_a_higher_quality() -> None:
    own, still = (0.0004, 0.0141421, 1.2), (0.001, 0.0141421, 1.2)
    quality = still_quality(np.array([0.0, 0.5, 1.0]), own, still)
    assert quality[0] == 0.0  # twice the lambda is still below the lowest
    assert 0.5 < quality[1] < 0.6
    assert quality[2] == 1.0
