"""What `encode` takes: the obvious is converted, everything else refused with a line that names the wanted form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.audio.grvq import AudioGRVQ, StreamingEncoder
from tokodec.tokenizers.tokens import Tokens
from tokodec.tokenizers.video.grid import StreamingVideoEncoder, VideoGrid

SHAPES = {"tiny": (2, 3, 20, 40), "photo": (2, 3, 20, 40), "sequence": (2, 3, 20, 40), "video": (1, 3, 6, 20, 40)}
PICTURES = ("tiny", "photo", "sequence")


def load(golden: Path, kind: str) -> Any:
    return Tokenizer.from_pretrained(golden / kind)


def whole(shape: tuple[int, ...]) -> Tensor:
    """Random bytes."""
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("kind", SHAPES)
def test_bytes_are_divided_by_255(golden: Path, kind: str) -> None:
    model, pixels = load(golden, kind), whole(SHAPES[kind])
    assert torch.equal(model.encode(pixels).codes, model.encode(pixels.float() / 255).codes)


def test_int16_is_divided_by_32768(golden: Path) -> None:
    model = load(golden, "sound")
    samples = torch.randint(-9000, 9000, (2, 1, 700), generator=torch.Generator().manual_seed(1), dtype=torch.int16)
    expected = model.encode(samples.float() / 32768)
    assert torch.equal(model.encode(samples).codes, expected.codes)
    stream = StreamingEncoder(model)
    assert torch.equal(torch.cat([stream.push(samples), stream.finish()], 2), expected.codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [*SHAPES, "sound"])
def test_floats_of_any_width_become_float32(golden: Path, kind: str, dtype: torch.dtype) -> None:
    model = load(golden, kind)
    x = (whole(SHAPES.get(kind, (2, 1, 700))).float() / 255).to(dtype)
    assert torch.equal(model.encode(x).codes, model.encode(x.float()).codes)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: 2 * x - 1, r"in \[0, 1\], and these are -.*\(x \+ 1\) / 2 might"),
        (lambda x: 255 * x, r"in \[0, 1\], and these are .*x / 255 might"),
        (lambda x: (x - 0.45) / 0.22, r"in \[0, 1\], and these are -"),  # normalized as for ImageNet
        (lambda x: x * 1.1, r"x\.clamp\(0, 1\) might"),
        (lambda x: torch.where(x > 0.5, torch.nan, x), "must be finite"),
        (lambda x: torch.where(x > 0.5, -torch.inf, x), "must be finite"),
        (lambda x: (255 * x).to(torch.int64), r"values in \[0, 1\], or uint8: got int64"),
        (lambda x: x > 0.5, "got bool"),
        (lambda x: x.to(torch.complex64), "got complex64"),
        (lambda x: x[0], r"one of them is x\[None\]"),
        (lambda x: x.movedim(1, -1), r"channels come first, x\.movedim\(-1, 1\)"),
        (lambda x: x[:, :1], "grey is x.expand"),
        (lambda x: torch.cat([x, x[:, :1]], 1), "alpha is no part"),
        (lambda x: x.numpy(), r"got a numpy\.ndarray; torch\.from_numpy"),
        (lambda x: list(x), r"got a builtins\.list; signals of one size"),
        (lambda x: x.numpy().tolist(), r"got a builtins\.list"),
        (lambda x: None, r"got a builtins\.NoneType"),
    ],
)
def test_pixels_in_another_form_are_refused(golden: Path, kind: str, change: Any, message: str) -> None:
    x = whole(SHAPES[kind]).float() / 255
    with pytest.raises(ValueError, match=message):
        load(golden, kind).encode(change(x))


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_of_different_sizes_and_of_pillow(golden: Path, kind: str) -> None:
    model = load(golden, kind)
    with pytest.raises(ValueError, match="others are encoded one by one"):
        model.encode([torch.zeros(3, 16, 16), torch.zeros(3, 16, 32)])
    picture = Image.new("RGB", (16, 24))
    with pytest.raises(ValueError, match=r"got a PIL\.Image; torch\.from_numpy\(numpy\.array\(x\)\)"):
        model.encode(picture)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]  # as the message has it
    assert model.encode(pixels).spec.size == (24, 16)


def test_clips_in_another_order_are_refused(golden: Path) -> None:
    model = load(golden, "video")
    with pytest.raises(ValueError, match=r"time comes after channels, x\.transpose\(1, 2\)"):
        model.encode(torch.zeros(1, 6, 3, 16, 16))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((1, 1, 400), 20000.0), r"in \[-1, 1\], .*x / 32768 might"),
        (torch.full((1, 1, 400), torch.nan), "must be finite"),
        (torch.full((1, 1, 400), torch.inf), "must be finite"),
        (torch.zeros(400), r"one signal \[n\] is x\[None, None\]"),
        (torch.zeros(1, 400), r"one signal \[n\] is x\[None, None\]"),
        (torch.zeros(1, 2, 400), "stereo is two signals"),
        (torch.zeros(1, 1, 400, dtype=torch.int32), "got int32"),
        (torch.zeros(1, 1, 400, dtype=torch.uint8), "got uint8"),
        (np.zeros((1, 1, 400), np.float32), r"got a numpy\.ndarray"),
    ],
)
def test_sounds_in_another_form_are_refused(golden: Path, x: Any, message: str) -> None:
    model = load(golden, "sound")
    with pytest.raises(ValueError, match=message):
        model.encode(x)
    with pytest.raises(ValueError, match=message):
        StreamingEncoder(model).push(x)


def test_loud_sounds_are_sounds(golden: Path) -> None:
    """Floating-point recordings go beyond full scale."""
    model = load(golden, "sound")
    x = 3 * torch.sin(torch.arange(700) / 9)[None, None]
    assert model.encode(x).spec.size == (700,)


def test_a_refused_part_leaves_a_stream_as_it_was(golden: Path) -> None:
    sound, video = AudioGRVQ.from_pretrained(golden / "sound"), VideoGrid.from_pretrained(golden / "video")
    streams: list[tuple[Any, Tensor, Any]] = [
        (StreamingEncoder(sound), torch.rand(1, 1, 700), sound),
        (StreamingVideoEncoder(video), torch.rand(1, 3, 6, 20, 40), video),
    ]
    for stream, x, model in streams:
        first = stream.push(x[:, :, :5])
        with pytest.raises(ValueError, match="must be finite"):
            stream.push(x[:, :, 5:] * torch.nan)
        codes = torch.cat([first, stream.push(x[:, :, 5:]), stream.finish()], 2)
        assert torch.equal(codes, model.encode(x).codes)


@pytest.mark.parametrize("kind", [*SHAPES, "sound"])
def test_what_decode_takes(golden: Path, kind: str) -> None:
    model = load(golden, kind)
    tokens = model.encode(whole(SHAPES.get(kind, (2, 1, 700))).float() / 255)
    for wrong in (tokens.codes, tokens.codes.numpy(), None):
        with pytest.raises(ValueError, match="decode takes Tokens"):
            model.decode(wrong)
    for codes in (tokens.codes.numpy(), tokens.codes.tolist()):
        with pytest.raises(ValueError, match="codes must be an int64 tensor"):
            Tokens(codes, tokens.spec)
    with pytest.raises(ValueError, match="TokenSpec"):
        Tokens(tokens.codes, dataclasses.asdict(tokens.spec))  # type: ignore[arg-type]
