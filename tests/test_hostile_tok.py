"""`.tok` files that ask for much: what decoding costs is bounded by their bytes and by what they declare."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from tokodec.codec.audio.decode import OUTPUT, decode_blocks, span_of
from tokodec.codec.container.chunks import CodedSound
from tokodec.codec.container.fields import FREE_CELLS, AudioHeader, ImageHeader, VideoHeader
from tokodec.codec.container.read import FREE_SEGMENTS, most_cells, read_tok
from tokodec.codec.container.write import write_tok, write_video
from tokodec.codec.contract import Decoded
from tokodec.codec.decode import decode_file
from tokodec.codec.errors import LimitError, TruncatedError
from tokodec.codec.models import Model, load_model
from tokodec.codec.video.fit.payload import Fitted, read_fitted, write_fitted
from tokodec.entropy.context import level as context_level
from tokodec.entropy.context.prior import ContextPrior
from tokodec.entropy.fitted.codes import Weights, context_shapes
from tokodec.tests.hostile import peak_memory, refused, refused_within
from tokodec.tokenizers.folders import ASSETS
from tokodec.tokenizers.video.fit import DOWN, FEATURES, RIGHT, FitShape, Group

MB = 1 << 20


def names(model: Model) -> tuple[str, str, str]:
    return model.tokenizer.name, model.tokenizer.weights_hash, model.prior.hash


def decoded(data: bytes, model: Path) -> Decoded:
    return decode_file(io.BytesIO(data), model=str(model))


def video_header(model: Model, height: int, width: int, frames: int, segment: int, sound: int = 0) -> VideoHeader:
    name, weights, prior = names(model)
    return VideoHeader(
        name, weights, prior, 1, height, width, 16, frames, 4, segment, 1, 25, 0, 1, 1, sound=sound, prior=2
    )


def picture(model: Model, height: int, width: int, segment: int = 64, first: int = 1) -> bytes:
    """A picture with the first layer of its first segments, each empty."""
    name, weights, prior = names(model)
    header = ImageHeader(name, weights, prior, 1, height, width, 16, segment, 3, 0, 8, prior=model.prior.wire_id)
    whole = write_tok(header, [[b""] * header.n_segments])
    small = write_tok(dataclasses.replace(header, height=1, width=1), [[b""]])
    begin = whole.index(b"LAYR")
    return whole[: begin + first * (len(small) - small.index(b"LAYR") - 12)]


# ------------------------------------------------------------------------------------------------------------ videos


def test_a_video_declares_no_more_cells_than_it_has_bytes_for(video_model: Path) -> None:
    model = load_model(str(video_model))
    header = video_header(model, 2896, 2896, 1021, 1021)
    for payload in (b"", b"\3", b"\3" + bytes(7) + b"\1"):
        data = write_video(header, [payload])
        assert len(data) < 140
        told, held = refused_within(decoded, data, video_model)
        assert held < 8 * MB
        assert "too little is left to decode: the first layer of 0 of 1 segments" in told


def test_the_bound_of_cells_is_the_written_one(video_model: Path) -> None:
    model = load_model(str(video_model))
    assert (most_cells(0), most_cells(10)) == (2**14, 2**14 + 10 * 2**10)
    assert FREE_CELLS == 128 * 128  # segments of pictures never reach it
    header = video_header(model, 16 * 128, 16 * 128, 5, 5)  # 2 x 128 x 128 cells
    size = 2 * 2**14 // 2**10 - 2**14 // 2**10  # bytes of a payload that may stand for them, the chunk's prefix too
    assert read_tok(write_video(header, [bytes(size - 2)])).header == header
    with pytest.raises(TruncatedError):
        read_tok(write_video(header, [bytes(size - 3)]))


def test_sound_of_a_video_that_is_not_there_is_left_out(video_model: Path, sound_model: Path) -> None:
    """49 hours of it are declared, and not a byte is there: no silence is made instead."""
    video, sound = load_model(str(video_model)), load_model(str(sound_model))
    name, weights, prior = names(sound)
    header = AudioHeader(name, weights, prior, 1, 2**32 - 1, 24000, 1, 1, 16, 24000, 320, 150)
    track = CodedSound(header, 0, [])
    codes = np.zeros((3, 1, 1, 1), dtype=np.int64)
    payload = b"\3" + video.prior.compress_joint([codes])
    tok = read_tok(write_video(video_header(video, 16, 16, 1, 1, sound=1), [payload], None, track))
    assert tok.track is None
    assert any("the sound is lost: 0 of its" in problem for problem in tok.problems)


# ---------------------------------------------------------------------------------------------------------- pictures


def test_a_picture_declares_no_more_segments_than_it_has_bytes_for(tiny_model: Path) -> None:
    model = load_model(str(tiny_model))
    for height, width, segment in ((16384, 2048, 128), (16384, 16384, 128), (1 << 20, 16, 64), (1024, 16384, 64)):
        data = picture(model, height, width, segment)
        assert len(data) < 104
        told, held = refused_within(decoded, data, tiny_model)
        assert held < 8 * MB
        assert "too little is left to decode" in told


def test_the_bound_of_segments_is_the_written_one(tiny_model: Path) -> None:
    """12 bytes for each but four, and a large segment counts as often as one of 1024 pixels goes into it."""
    model = load_model(str(tiny_model))
    for segment, present in ((64, 2), (128, 1)):
        for count in range(1, 17):
            data = picture(model, 1024, 1024 * count, segment, present)
            segments = -(-count * 64 // segment)
            fits = present * 8 >= segments and count <= FREE_SEGMENTS + len(data) // 12
            assert (refused(read_tok, data) == "") == fits, (segment, count)


# ------------------------------------------------------------------------------------------------------------ sounds


@pytest.mark.parametrize(("rate", "channels", "signals"), [(768_000, 8, 1), (768_000, 8, 8), (1000, 1, 1)])
def test_a_sound_is_decoded_in_pieces(rate: int, channels: int, signals: int, sound_model: Path) -> None:
    """13 s of 768 kHz on 8 channels, out of a hundred bytes: 335 MB, of which few are in memory at any time."""
    model = load_model(str(sound_model))
    name, weights, prior = names(model)
    samples = 1024 * 320 * rate // 24000
    header = AudioHeader(name, weights, prior, 1, samples, rate, channels, signals, 16, 24000, 320, 1024)
    data = write_tok(header, [[b""]])
    assert len(data) < 104
    largest: list[int] = []

    def attempt() -> None:
        tok = read_tok(data)
        blocks = decode_blocks(tok, model, span_of(tok.sound, None, None))
        largest.append(0)
        for block in blocks:
            largest.append(max(largest[-1], block.size))
            largest[0] += block.shape[1]

    held = peak_memory(attempt)
    assert largest[0] == samples
    assert largest[-1] <= OUTPUT + 65536 * channels
    assert held < 200 * MB


# ------------------------------------------------------------------------------------------------------- fitted clips


def fitted(height: int, width: int, groups: tuple[Group, ...]) -> bytes:
    """The payload of a clip of two frames whose numbers are all 0: some hundred bytes for any size."""
    shape = FitShape(2, height, width, groups)
    zeros = {name: Weights(np.zeros(size, np.int32), 0) for name, size in shape.weights().items()}
    sizes = [shape.grids(group) for group in groups]
    nets = [
        {name: Weights(np.zeros(size, np.int32), 0) for name, size in context_shapes(len(own), own[0][0], 12).items()}
        for own in sizes
    ]
    every = [*zeros.values(), *(tensor for net in nets for tensor in net.values())]
    return write_fitted(shape, every, nets, [[np.zeros(s, np.int32) for s in own] for own in sizes])


def test_fitted_clips_cost_what_they_declare() -> None:
    """24 bytes for each cell of their grids and 300 for each pixel of a frame; they were 92 and 400."""
    height, width = 1000, 1500
    groups = (Group(FEATURES, 0, 0, 6), Group(FEATURES, 1, 2, 6), Group(DOWN, 1, 3, 5), Group(RIGHT, 1, 3, 5))
    data = fitted(height, width, groups)
    assert len(data) < 400
    shape = FitShape(2, height, width, groups)
    cells = sum(int(np.prod(grid)) for group in groups for grid in shape.grids(group))
    read: list[Fitted] = []
    held = peak_memory(lambda: read.append(read_fitted(data, 2, height, width)))
    assert held < 24 * cells + 32 * MB, held / cells
    held = peak_memory(lambda: read[0].frames(0, 1))
    assert held < 300 * height * width + 64 * MB, held / height / width


def test_fitted_clips_have_bounds() -> None:
    data = fitted(16, 16, (Group(FEATURES, 0, 2, 3),))
    assert isinstance(read_fitted(data, 2, 16, 16), Fitted)
    with pytest.raises(LimitError, match=r"at most 16777216 pixels a frame, not 16384 x 16384"):
        read_fitted(data, 2, 16384, 16384)
    many = fitted(16, 16, tuple(Group(FEATURES, 0, 12, 12) for _ in range(33)))
    with pytest.raises(ValueError, match="more than 32 grids"):
        read_fitted(many, 2, 16, 16)


# ------------------------------------------------------------------------------------------------------ entropy models


def test_large_grids_cost_less_and_give_the_same(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbours of many cells are computed step by step; payloads and codes are those of the other way."""
    rng = np.random.default_rng(0)
    for folder, grid in (("video", (3, 7, 9)), ("tiny", (13, 11)), ("sound", (50,))):
        if not (golden / folder / "context.safetensors").is_file():
            continue
        kept = ContextPrior.from_pretrained(golden / folder)
        codes = np.stack([rng.integers(0, n, grid) for n in kept.codebook_sizes])
        lost = codes.copy()
        lost[0].flat[::3] = -1
        want, filled = kept.compress(codes), kept.conceal(lost, levels=1)
        with monkeypatch.context() as small:
            small.setattr(context_level, "KEPT_NEIGHBOURS", 0)
            small.setattr(context_level, "STEP_ROWS", 5)
            prior = ContextPrior.from_pretrained(golden / folder)
            assert prior.compress(codes) == want
            assert np.array_equal(prior.decompress(want, grid), codes)
            assert np.array_equal(prior.conceal(lost, levels=1), filled)
            assert not any(level._layouts for level in prior.levels)


def test_memory_of_a_large_grid_is_in_proportion() -> None:
    """Of the released prior that looks at most: 400 bytes a cell and some for the cells at hand; it was 2,600."""
    level = ContextPrior.from_pretrained(ASSETS / "video-grid").levels[-1]
    grid = (4, 300, 300)
    n = 4 * 300 * 300
    assert n * len(level.offsets) > context_level.KEPT_NEIGHBOURS
    coarser = torch.zeros(len(level.sizes) - 1, n, dtype=torch.int64)

    def code() -> None:
        run = context_level.start_run(level, coarser, grid)
        sizes = [len(step) for step in run.layout.steps]
        step = sizes.index(max(sizes))
        tables = run.tables(step, 0, np.zeros(sizes[step], dtype=np.int64))
        assert tables.shape == (max(sizes), level.tree.bases[0])

    held = peak_memory(code)
    assert held < 400 * n + 64 * MB, held / n
