"""Processors are what users of `transformers` expect: compared with its own, where that is there."""

import importlib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokodec
from tokodec.tokenizers.processors import AudioProcessor, Features, ImageProcessor, processor

RNG = np.random.default_rng(0)
SOUNDS = [RNG.uniform(-1, 1, n) for n in (700, 1000, 333)]


@pytest.fixture
def audio() -> AudioProcessor:
    stand_in: Any = SimpleNamespace(modality="audio", name="audio-24k", sample_rate=24000.0)
    made = processor(stand_in)
    assert isinstance(made, AudioProcessor)
    return made


@pytest.fixture
def image() -> ImageProcessor:
    stand_in: Any = SimpleNamespace(modality="image", name="image-grid")
    made = processor(stand_in)
    assert isinstance(made, ImageProcessor)
    return made


CALLS: list[tuple[Any, dict[str, Any]]] = [
    (SOUNDS[0], {}),
    (SOUNDS[0].astype(np.float32), {"return_tensors": "np"}),
    (SOUNDS[0].tolist(), {"return_tensors": "pt"}),
    (SOUNDS, {"return_tensors": "pt"}),
    ([x.tolist() for x in SOUNDS], {"return_tensors": "np", "padding": "longest"}),
    (SOUNDS, {"padding": False}),
    (SOUNDS, {"padding": "max_length", "max_length": 1200, "return_tensors": "pt"}),
]


@pytest.mark.parametrize(("sounds", "more"), CALLS)
def test_sounds_are_as_transformers_makes_them(audio: AudioProcessor, sounds: Any, more: dict[str, Any]) -> None:
    theirs: Any = importlib.import_module("transformers").EncodecFeatureExtractor(feature_size=1, sampling_rate=24000)
    own, wanted = audio(sounds, sampling_rate=24000, **more), theirs(sounds, sampling_rate=24000, **more)
    assert set(own) == set(wanted)
    for name in wanted:
        assert "return_tensors" not in more or type(own[name]) is type(wanted[name])
        for a, b in zip(own[name], wanted[name], strict=True):
            assert a.dtype == b.dtype
            assert np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    ("sounds", "more", "message"),
    [
        (SOUNDS[0], {"sampling_rate": 16000}, "audio-24k was trained using a sampling rate of 24000.* not 16000"),
        (SOUNDS, {"padding": True, "truncation": True}, "both padding and truncation"),
        (np.zeros((2, 50)), {}, "expected mono audio .* 2 channels"),
        ([np.zeros((2, 50))], {}, "expected mono audio .* 2 channels"),
        (np.zeros(0), {}, "expected mono audio"),
        (SOUNDS, {"padding": False, "return_tensors": "pt"}, "make no tensor"),
        (SOUNDS, {"padding": "sideways"}, "padding is True"),
        (SOUNDS, {"padding": "max_length"}, "wants a max_length"),
        (SOUNDS, {"return_tensors": "tf"}, "return_tensors is 'pt' or 'np'"),
    ],
)
def test_what_goes_not_with_sounds(audio: AudioProcessor, sounds: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        audio(sounds, **{"sampling_rate": 24000, **more})


def test_tensors_truncation_and_a_rate_that_is_not_said(audio: AudioProcessor) -> None:
    batch = audio([torch.from_numpy(x) for x in SOUNDS], sampling_rate=24000, return_tensors="pt")
    wanted = audio(SOUNDS, sampling_rate=24000, return_tensors="pt")
    assert torch.equal(batch.input_values, wanted["input_values"])
    assert batch.padding_mask.sum(1).tolist() == [700, 1000, 333]
    cut = audio(SOUNDS, sampling_rate=24000, truncation=True, max_length=300, return_tensors="pt")
    assert set(cut) == {"input_values"}
    assert torch.equal(cut.input_values, wanted.input_values[..., :300])
    with pytest.warns(UserWarning, match="audio-24k wants 24000 Hz"):
        audio(SOUNDS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audio(SOUNDS[0], sampling_rate=24000)


def test_features_are_moved_and_cast() -> None:
    batch = Features(input_values=torch.zeros(1, 1, 3), padding_mask=torch.ones(1, 3, dtype=torch.int32))
    assert batch.to("cpu", torch.bfloat16) is batch
    assert (batch.input_values.dtype, batch.padding_mask.dtype) == (torch.bfloat16, torch.int32)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = batch.nonsense


PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_pictures_of_every_kind_are_the_same_batch(image: ImageProcessor) -> None:
    wanted = torch.from_numpy(PIXELS.transpose(2, 0, 1).astype(np.float32) / 255)[None]
    picture, tensor = Image.fromarray(PIXELS), torch.from_numpy(PIXELS)
    for given in (picture, [picture], PIXELS, PIXELS[None], tensor, tensor.permute(2, 0, 1), [tensor]):
        assert torch.equal(image(given, return_tensors="pt").pixel_values, wanted)
    assert torch.equal(image(PIXELS / np.float32(255), return_tensors="pt", do_rescale=False).pixel_values, wanted)
    assert image([picture, PIXELS], return_tensors="np")["pixel_values"].shape == (2, 3, 20, 30)
    gray = image(PIXELS[..., 0], return_tensors="pt").pixel_values
    assert torch.equal(gray, wanted[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(gray, image(Image.fromarray(PIXELS[..., 0]), return_tensors="pt").pixel_values)
    assert [x.shape for x in image([picture, picture.resize((8, 9))])["pixel_values"]] == [(3, 20, 30), (3, 9, 8)]


def test_pictures_are_as_transformers_makes_them(image: ImageProcessor) -> None:
    module: Any = importlib.import_module("transformers.models.vit")
    theirs = getattr(module, "ViTImageProcessorPil", None) or module.ViTImageProcessor
    try:
        made = theirs(do_resize=False, do_normalize=False)(Image.fromarray(PIXELS), return_tensors="pt")
    except ImportError as error:  # some want torchvision
        pytest.skip(str(error).splitlines()[0])
    assert torch.allclose(image(Image.fromarray(PIXELS), return_tensors="pt").pixel_values, made["pixel_values"])


@pytest.mark.parametrize(
    ("images", "more", "message"),
    [
        ([Image.new("RGB", (8, 9)), Image.new("RGB", (9, 8))], {"return_tensors": "pt"}, "make no tensor"),
        (np.zeros((4, 5, 7)), {}, "a picture is .* got the shape"),
        ([], {}, "no pictures"),
        (PIXELS / 255, {}, "do_rescale=False"),
        (PIXELS, {"do_rescale": False}, "pixels are in"),
    ],
)
def test_what_goes_not_with_pictures(image: ImageProcessor, images: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image(images, **more)


def test_by_name_and_with_the_model(tiny_model: Path) -> None:
    tokenizer = tokodec.load(tiny_model, "cpu")
    made = tokodec.processor(str(tiny_model))
    batch = made(Image.fromarray(PIXELS), return_tensors="pt")
    assert tokenizer.encode(batch["pixel_values"]).spec.size == (20, 30)
    assert tokodec.processor(tokenizer).name == tokenizer.name
    sounds: Any = tokodec.processor("audio-24k")
    assert sounds.sampling_rate == 24000
    values = sounds(SOUNDS, sampling_rate=24000, return_tensors="pt").input_values
    assert tokodec.load("audio-24k", "cpu").encode(values).codes.shape[0] == 3
    with pytest.raises(ValueError, match="video-grid is a model for video"):
        tokodec.processor("video-grid")
