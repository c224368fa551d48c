"""Variants: models that are released as their difference to another one."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tokodec.codec import models, registry
from tokodec.codec.cli import run
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import ModelError, UsageError, WeightsMismatchError
from tokodec.tokenizers import weights
from tokodec.tokenizers.api import Tokenizer, save_variant
from tokodec.tokenizers.folders import read_config
from tokodec.tokenizers.image.photo import ImagePhoto
from tokodec.tokenizers.variants import BASE_HASH, LEFT, RIGHT, find_base, merge

KERNEL = "nets.analysis.coarse.0.spatial.weight"
BIAS = "nets.analysis.enter.bias"


def change_of(base: dict[str, Tensor], rank: int = 2) -> dict[str, Tensor]:
    """A new bias, and a difference of low rank for one kernel."""
    torch.manual_seed(0)
    kernel = base[KERNEL].flatten(1)
    return {
        KERNEL + LEFT: torch.randn(kernel.shape[0], rank),
        KERNEL + RIGHT: torch.randn(rank, kernel.shape[1]),
        BIAS: base[BIAS] + 0.5,
    }


@pytest.fixture
def variant(photo_model: Path, tmp_path: Path) -> Path:
    """Folder of a variant of a copy of the golden model, beside it."""
    shutil.copytree(photo_model, tmp_path / "base")
    base = ImagePhoto.from_pretrained(tmp_path / "base")
    model = ImagePhoto(base.config, "other")
    save_variant(model, "base", base.weights_hash, change_of(base.state_dict()), tmp_path / "other")
    return tmp_path / "other"


def test_a_variant_is_its_base_and_a_difference(variant: Path) -> None:
    base, other = (Tokenizer.from_pretrained(folder) for folder in (variant.parent / "base", variant))
    before, after = base.state_dict(), other.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {KERNEL, BIAS}
    change = change_of(before)
    product = (change[KERNEL + LEFT] @ change[KERNEL + RIGHT]).view(before[KERNEL].shape)
    assert torch.allclose(after[KERNEL], before[KERNEL] + product, atol=0.05)  # of int8: 3 % of the largest factors
    assert torch.equal(after[BIAS], change[BIAS].half().float())
    assert (other.name, other.config) == ("other", base.config)
    assert other.weights_hash == weights.file_hash(variant / weights.WEIGHTS_FILE) != base.weights_hash
    assert isinstance(other, ImagePhoto)
    assert isinstance(base, ImagePhoto)
    assert other.entropy.hash == base.entropy.hash
    assert not other.training
    assert sorted(path.name for path in variant.iterdir()) == ["config.json", weights.WEIGHTS_FILE]
    assert read_config(variant)["base"] == "base"


def test_a_difference_of_zero_is_the_base() -> None:
    base = {"w": torch.randn(3, 2, 5), "b": torch.randn(3)}
    change = {"w" + LEFT: torch.zeros(3, 4), "w" + RIGHT: torch.randn(4, 10)}
    merged = merge(base, change)
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_products_are_rounded_once() -> None:
    torch.manual_seed(0)
    base = {"w": torch.randn(7, 9)}
    left, right = torch.randn(7, 5), torch.randn(5, 9)
    merged = merge(base, {"w" + LEFT: left, "w" + RIGHT: right})["w"]
    exact = base["w"].double() + sum(left[:, i, None].double() * right[i].double() for i in range(5))
    assert torch.equal(merged, exact.float())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nothing": torch.zeros(3)}, "the base has no nothing"),
        ({"b": torch.zeros(4)}, "b has another shape in the base"),
        ({"w" + LEFT: torch.zeros(3, 2)}, "the factors of w do not fit it"),
        ({"w" + LEFT: torch.zeros(3, 2), "w" + RIGHT: torch.zeros(3, 10)}, "the factors of w do not fit it"),
        ({"w" + LEFT: torch.zeros(2, 2), "w" + RIGHT: torch.zeros(2, 10)}, "the factors of w do not fit it"),
        ({"w" + LEFT: torch.zeros(3, 2), "w" + RIGHT: torch.zeros(2, 5)}, "the factors of w do not fit it"),
        ({"w" + LEFT: torch.zeros(3), "w" + RIGHT: torch.zeros(10)}, "the factors of w do not fit it"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge({"w": torch.zeros(3, 2, 5), "b": torch.zeros(3)}, change)


def test_other_weights_of_the_base_are_refused(variant: Path) -> None:
    """A retrained base would decode the variant's files to something else without a word."""
    base = ImagePhoto.from_pretrained(variant.parent / "base")
    with torch.no_grad():
        base.nets.log_gain.points.add_(1)
    base.save_pretrained(variant.parent / "base")
    with pytest.raises(ValueError, match="variant of other weights"):
        Tokenizer.from_pretrained(variant)


def test_a_variant_without_the_hash_of_its_base_is_refused(variant: Path) -> None:
    state = weights.load(variant / weights.WEIGHTS_FILE)
    del state[BASE_HASH]
    weights.save(state, variant / weights.WEIGHTS_FILE)
    with pytest.raises(ValueError, match="variant of other weights"):
        Tokenizer.from_pretrained(variant)


@pytest.mark.parametrize("name", ["../base", "/etc", "user/model", "", ".", "..", "nothing"])
def test_a_base_is_a_release_or_beside(variant: Path, name: str) -> None:
    """A model's file must not make us open other folders, or download."""
    with pytest.raises(ValueError, match="neither a release nor a folder beside it"):
        find_base(variant, name)
    config = json.loads((variant / "config.json").read_text())
    (variant / "config.json").write_text(json.dumps(config | {"base": name}))
    with pytest.raises(ModelError, match="neither a release nor a folder beside it"):
        models.load_model(str(variant))


def test_a_release_is_found_from_anywhere(tmp_path: Path) -> None:
    assert find_base(tmp_path / "mine", "image-photo").name == "image-photo"


def test_a_base_is_a_text(variant: Path) -> None:
    config = json.loads((variant / "config.json").read_text())
    (variant / "config.json").write_text(json.dumps(config | {"base": 3}))
    with pytest.raises(ValueError, match="'base' is not a text"):
        read_config(variant)


def picture() -> bytes:
    rng = np.random.default_rng(0)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def test_files_of_a_variant_are_its_own(variant: Path) -> None:
    base, other = str(variant.parent / "base"), str(variant)
    mine, theirs = (encode_file(io.BytesIO(picture()), model=model, device="cpu").data for model in (other, base))
    assert mine != theirs
    decoded = decode_file(io.BytesIO(mine), model=other, device="cpu")
    assert decoded.picture.pixels.shape == (70, 90, 3)
    assert not decoded.problems
    with pytest.raises(WeightsMismatchError):
        decode_file(io.BytesIO(mine), model=base, device="cpu")


@pytest.fixture
def tuned(variant: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The variant as what ``--tune ms-ssim`` means."""
    monkeypatch.setitem(registry.TUNES, "ms-ssim", str(variant))
    return variant


def test_tuning_is_a_choice_of_the_model(tuned: Path, tmp_path: Path) -> None:
    source = tmp_path / "p.png"
    source.write_bytes(picture())
    assert run(["encode", str(source), "-o", str(tmp_path / "a.tok"), "--tune", "ms-ssim", "--device", "cpu"]) == 0
    expected = encode_file(source, model=str(tuned), device="cpu").data
    assert (tmp_path / "a.tok").read_bytes() == expected == encode_file(source, tune="ms-ssim", device="cpu").data


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tune", "beauty"], "unknown tune 'beauty': use psnr or ms-ssim"),
        (["--tune", "psnr", "-m", "image-grid"], "give a model or what it is tuned for, not both"),
    ],
)
def test_a_mistake_in_tuning_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "p.png"
    source.write_bytes(picture())
    assert run(["encode", str(source), "-o", str(tmp_path / "a.tok"), *words]) == 2
    assert capsys.readouterr().err.strip() == f"codec: {message}"
    assert not (tmp_path / "a.tok").exists()


def test_tuned_models_are_released() -> None:
    from tokodec.tokenizers.folders import released_models

    assert set(registry.TUNES.values()) <= set(released_models())
    assert registry.TUNES["psnr"] == registry.MODALITIES["image"].encode_model
    with pytest.raises(UsageError):
        registry.choose_model("image-grid", "psnr")
