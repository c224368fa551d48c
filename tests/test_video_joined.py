"""Borders between segments of a video, over which the jump is spread; codes know nothing of it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokodec.codec.container.chunks import LAYR
from tokodec.codec.container.read import TokFile, read_tok
from tokodec.codec.container.write import write_video
from tokodec.codec.decode import video_frames
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import HeaderError
from tokodec.codec.files import atomic_output
from tokodec.codec.media.write_video import VideoWriter
from tokodec.codec.video.joined import CUT, FRAMES, LARGEST, joined
from tokodec.tests.motion_model import clip


def flat(levels: list[int]) -> list[tuple[int, np.ndarray]]:
    """Gray frames of 8 x 8 pixels."""
    return [(i, np.full((8, 8, 3), level, np.uint8)) for i, level in enumerate(levels)]


def test_a_jump_is_spread_over_both_sides() -> None:
    found = list(joined(iter(flat([100] * 8 + [112] * 8 + [112] * 3)), 8, 3))
    assert [i for i, _ in found] == list(range(19))
    levels = [int(pixels[4, 4, 1]) for _, pixels in found]
    assert levels == [*[100] * 5, 101, 103, 105, 107, 109, 111, *[112] * 8]
    assert all((pixels == pixels[0, 0, 0]).all() for _, pixels in found)


def test_a_jump_is_small_and_no_cut() -> None:
    """What moves is not seen twice, and a cut stays one."""
    frames = flat([60] * 8 + [60 + CUT + 1] * 8)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(joined(iter(frames), 8, 3), frames, strict=True))
    frames = flat([60] * 16)
    for _, pixels in frames[8:]:
        pixels[4:] = 60 + CUT + 10
    found = [pixels for _, pixels in joined(iter(frames), 8, 1)]
    assert found[7][6, 0, 0] == 60 + LARGEST / 4
    assert found[8][6, 0, 0] == 60 + CUT + 10 - LARGEST / 4
    assert (found[7][:3] == 60).all()


@pytest.fixture(scope="module")
def tok(video_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TokFile:
    """Of three segments."""
    path, tick = tmp_path_factory.mktemp("joined") / "clip.mkv", Fraction(1, 25)
    with atomic_output(path, True) as file, VideoWriter(file, ".mkv", path.name, 32, 48, tick, 1 / tick) as writer:
        for t, pixels in enumerate(clip(80, 32, 48, speed=1)):
            writer.write(pixels, t * tick)
    return read_tok(encode_file(path, model=str(video_model), levels=1, device="cpu").data)


def shown(tok: TokFile, model: Path, **part: Any) -> list[np.ndarray]:
    return [pixels for _, pixels in video_frames(tok, model=str(model), device="cpu", **part)]


def test_frames_beside_borders_change_and_no_others(tok: TokFile, video_model: Path) -> None:
    header = tok.video
    n = header.joined
    assert 0 < n == min(FRAMES, header.segment // 4)
    assert header.n_segments >= 3
    payloads = [tok.payload(LAYR, 0, segment) or b"" for segment in range(header.n_segments)]
    apart = read_tok(write_video(replace(header, joined=0), payloads))
    whole, before = shown(tok, video_model), shown(apart, video_model)
    borders = range(header.segment, header.frames, header.segment)
    near = {border + k for border in borders for k in range(-n, n)}
    for i, (a, b) in enumerate(zip(whole, before, strict=True)):
        assert i in near or np.array_equal(a, b)
    for border in borders:
        jumps = [np.abs(x[border].astype(int) - x[border - 1]).mean() for x in (whole, before)]
        assert jumps[0] < jumps[1]


def test_parts_are_those_of_the_whole(tok: TokFile, video_model: Path) -> None:
    whole, border, n = shown(tok, video_model), tok.video.segment, tok.video.joined
    spans = [(border - 2, border), (border, border + 2), (border - 1, border + 1), (border + n, border + n + 1)]
    for first, last in [*spans, (0, border - n), (border - n, border - n + 1), (2 * border + 1, len(whole))]:
        part = shown(tok, video_model, start=first / 25, end=last / 25)
        assert len(part) == last - first
        assert all(np.array_equal(a, b) for a, b in zip(part, whole[first:last], strict=True))


def test_a_lost_segment_costs_no_frame_of_others(tok: TokFile, video_model: Path) -> None:
    payloads = [tok.payload(LAYR, 0, segment) or b"" for segment in range(tok.video.n_segments)]
    payloads[1] = b"\0" + payloads[1][: len(payloads[1]) // 2]
    found = []
    for header in (tok.video, replace(tok.video, joined=0)):
        damaged = read_tok(write_video(header, payloads))
        found.append(shown(damaged, video_model))
        assert len(damaged.problems) == 1
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_one_segment_has_no_border(tok: TokFile) -> None:
    with pytest.raises(HeaderError, match="more than half of a segment"):
        replace(tok.video, joined=tok.video.segment // 2 + 1)
    assert read_tok(write_video(replace(tok.video, joined=0), [b""] * tok.video.n_segments)).video.joined == 0
