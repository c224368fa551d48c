"""Codes and signals are made in float32 whatever surrounds the call, and weights of other types are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.audio.grvq import StreamingDecoder, StreamingEncoder
from tokodec.tokenizers.folders import released_models
from tokodec.tokenizers.image.tiling import decode_tiled, encode_tiled
from tokodec.tokenizers.precision import DtypeError, whole_float32
from tokodec.tokenizers.video.grid import StreamingVideoDecoder, StreamingVideoEncoder
from tokodec.tokenizers.video.motion import Near

SHAPES = {
    "tiny": (2, 3, 36, 52), "photo": (2, 3, 36, 52), "sequence": (2, 3, 36, 52), "sound": (2, 1, 3000),
    "video": (1, 3, 6, 36, 52),
}  # fmt: skip


def signal(model: Any, shape: tuple[int, ...]) -> Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    return 0.3 * (2 * x - 1) if model.modality == "audio" else x


def ways(model: Any, x: Tensor) -> Iterator[Callable[[], list[Tensor]]]:
    """All ways from a signal to codes and back, as functions of nothing."""
    tokens = model.encode(x)
    yield lambda: [model.encode(x).codes, model.decode(tokens)]
    if hasattr(model, "encode_codes"):
        yield lambda: [model.encode_codes(x), model.decode_codes(tokens.codes, tokens.spec.size)]
    pixels: Any = (x[0] * 255).round().byte().permute(1, 2, 0) if x.ndim == 4 else None
    if model.modality == "audio":
        yield lambda: [StreamingEncoder(model).push(x), StreamingDecoder(model).push(tokens.codes)]
        yield lambda: [StreamingEncoder(model).push(x[:, :, :700]), StreamingDecoder(model).push(tokens.codes[..., :2])]
    elif model.modality == "video":
        yield lambda: [StreamingVideoEncoder(model).push(x), StreamingVideoDecoder(model).push(tokens.codes)]
    elif type(model).__name__ == "ImagePhoto":
        one = type(tokens)(tokens.codes[:1], tokens.spec)
        yield lambda: [torch.from_numpy(model.analyse_tiled(pixels)), model.decode_tiled(one)]
    elif type(model).__name__ == "ImageGrid":
        yield lambda: [encode_tiled(model, pixels).codes, decode_tiled(model, encode_tiled(model, pixels))]
    else:
        yield lambda: [model.encode_tiled(pixels)[0].codes, model.decode_tiled(model.encode_tiled(pixels)[0])]
        yield lambda: [model.encode(x, total=len(model.prefixes)).codes]


@pytest.mark.parametrize("kind", SHAPES)
def test_autocast_changes_nothing(golden: Path, kind: str) -> None:
    model: Any = Tokenizer.from_pretrained(golden / kind)
    for way in ways(model, signal(model, SHAPES[kind])):
        expected = way()
        with torch.autocast("cpu", torch.bfloat16):
            for own, wanted in zip(way(), expected, strict=True):
                assert own.dtype == wanted.dtype
                assert torch.equal(own, wanted)


@pytest.mark.parametrize("name", [name for name in released_models() if name != "video-motion"])
def test_autocast_changes_nothing_of_a_release(name: str) -> None:
    model: Any = Tokenizer.from_pretrained(name)
    shape = {"audio": (1, 1, 6400), "video": (1, 3, 5, 48, 48)}.get(model.modality, (1, 3, 64, 64))
    x = signal(model, shape)
    tokens = model.encode(x)
    x_hat = model.decode(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(x).codes, tokens.codes)
        assert torch.equal(model.decode(tokens), x_hat)


def test_autocast_changes_nothing_of_frames_and_their_references() -> None:
    """Of `video-motion`, which makes files and no tokens."""
    model: Any = Tokenizer.from_pretrained("video-motion")
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)

    def coded() -> tuple[bytes, bytes, Tensor]:
        first, key = model.encode_alone(frames[0], 5000)
        second, found = model.encode_after(frames[1], 5000, [Near(key, -1), Near(model.shown(frames[2]), 1)], False)
        return first, second, found.x

    expected = coded()
    with torch.autocast("cpu", torch.bfloat16):
        found = coded()
    assert found[:2] == expected[:2]
    assert torch.equal(found[2], expected[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("kind", SHAPES)
def test_weights_of_another_type_are_refused_by_name(golden: Path, kind: str, dtype: torch.dtype) -> None:
    model: Any = Tokenizer.from_pretrained(golden / kind)
    x = signal(model, SHAPES[kind])
    every = list(ways(model, x))
    tokens = model.encode(x)
    model.to(dtype)
    message = f"{model.name} computes in float32, and holds weights of {str(dtype)[6:]}"
    with pytest.raises(DtypeError, match=message):
        model.encode(x)
    with pytest.raises(DtypeError, match=message):
        model.decode(tokens)
    for way in every:
        with pytest.raises(DtypeError, match=message):
            way()
    assert issubclass(DtypeError, ValueError)


def test_one_part_of_another_type_is_enough(golden: Path) -> None:
    model: Any = Tokenizer.from_pretrained(golden / "tiny")
    tokens = model.encode(torch.rand(1, 3, 16, 16))
    model.synthesis.half()
    with pytest.raises(DtypeError, match="weights of float16"):
        model.decode(tokens)


PARTS = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv")


def part(name: str) -> Any:
    found = torch.backends
    for step in name.split("."):
        found = getattr(found, step)
    return found


@pytest.fixture
def settings() -> Iterator[None]:
    """Puts settings of float32 back."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    for name in ("cuda.matmul", "mkldnn.matmul", "mkldnn.conv"):
        part(name).fp32_precision = "none"
    for name in ("cudnn.conv", "cudnn.rnn"):
        part(name).fp32_precision = "tf32" if before[1] else "none"
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("new", [True, False])
def test_whole_float32_by_both_kinds_of_settings(device: str, new: bool) -> None:
    """PyTorch has two ways to allow TF32, and reading the older one after the newer was used is an error."""
    if new:
        for name in PARTS:
            part(name).fp32_precision = "tf32"
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("medium")  # bfloat16 on CPUs that have it
    before = [part(name).fp32_precision for name in PARTS]
    assert any(value not in ("none", "ieee") for value in before)
    matter = [part(name) for name in PARTS if (device == "cuda") == name.startswith("cu")]
    with whole_float32(torch.device(device)):
        assert all(own.fp32_precision in ("none", "ieee") for own in matter)
    assert [part(name).fp32_precision for name in PARTS] == before
    with pytest.raises(RuntimeError, match="stop"), whole_float32(torch.device(device)):
        raise RuntimeError("stop")
    assert [part(name).fp32_precision for name in PARTS] == before
