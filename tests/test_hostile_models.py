"""Folders of models that strangers give us: damaged, asking for too much, or with numbers that are none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from tokodec.codec.errors import ModelError
from tokodec.codec.generate.files import load_pair
from tokodec.codec.generate.model import Generator, GeneratorConfig, load_generator
from tokodec.codec.models import load_model
from tokodec.entropy import packed
from tokodec.entropy.tree import CodeTree
from tokodec.tests.hostile import NESTED, json_mutations, mutations, refused, refused_within
from tokodec.tokenizers.budget import Budget
from tokodec.tokenizers.tokens import TokenSpec
from tokodec.tokenizers.weights import SCALE

MB = 1 << 20
KINDS = ("tiny", "sound", "video", "photo", "sequence")


@pytest.fixture
def copied(golden: Path, tmp_path: Path) -> Callable[[str], Path]:
    def copy(kind: str) -> Path:
        return Path(shutil.copytree(golden / kind, tmp_path / kind))

    return copy


def with_settings(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["config"] |= settings
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", KINDS)
def test_configs_that_are_none(kind: str, copied: Callable[[str], Path]) -> None:
    """One value is another, or gone; lists in lists without end. Each is one line, and costs next to nothing."""
    folder = copied(kind)
    assert refused(load_model, str(folder)) == ""
    text = (folder / "config.json").read_text()
    load_model(str(folder))
    for other in (*json_mutations(text, 120, seed=7), NESTED, '{"config": ' + NESTED + "}", "", "\xff"):
        (folder / "config.json").write_text(other)
        _, held = refused_within(load_model, str(folder))
        assert held < 64 * MB, other[:300]


def test_settings_ask_for_no_more_than_there_are_weights(copied: Callable[[str], Path]) -> None:
    bombs: dict[str, list[dict[str, object]]] = {
        "tiny": [
            {"channels": [1 << 15, 1 << 15, 1 << 15]},
            {"codebook_sizes": [1 << 30]},
            {"dim": 1 << 28},
            {"analysis_blocks": [1 << 40, 1, 1]},
            {"synthesis": [f"net{i}" for i in range(10_000)]},
        ],
        "sound": [{"codebook_sizes": [1 << 30, 2]}, {"analysis_channels": [1 << 16, 1 << 16]}, {"groups": 0}],
        "sequence": [{"tokens": 1 << 40}, {"codebook_size": 1 << 40}],
        "photo": [{"latents": 1 << 40}, {"hyper": -1}],
        "video": [{"channels": [1 << 15, 1 << 15, 1 << 15]}],
    }
    for kind, settings in bombs.items():
        folder = copied(kind)
        text = (folder / "config.json").read_text()
        for one in settings:
            (folder / "config.json").write_text(text)
            with_settings(folder, **one)
            told, held = refused_within(load_model, str(folder))
            assert told, (kind, one)
            assert held < 64 * MB, (kind, one)


def test_a_budget_counts_before_it_allocates() -> None:
    state = {"weight": torch.zeros(3, 4)}
    with Budget(state):
        torch.nn.Linear(1000, 1000)
    for make in (
        lambda: torch.nn.Linear(1 << 15, 1 << 15),
        lambda: torch.eye(1 << 15),
        lambda: torch.full((1 << 15, 1 << 15), 0.0),
        lambda: torch.randn(1 << 15, 1 << 15),
        lambda: torch.zeros(size=(1 << 40,)),
        lambda: [torch.zeros(1) for _ in range(10_000)],
    ):
        with Budget(state), pytest.raises(ValueError, match="larger network than there are weights"):
            make()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_numbers(kind: str, value: float, copied: Callable[[str], Path]) -> None:
    folder = copied(kind)
    path = folder / "model.safetensors"
    arrays = safetensors.numpy.load(packed.read(path))
    name = next(name for name, array in arrays.items() if array.dtype.kind == "f" and array.size)
    arrays[name].flat[0] = value
    path.write_bytes(safetensors.numpy.save(arrays))
    assert f"{name.removesuffix(SCALE)} holds a number that is not finite" in refused(load_model, str(folder))


def test_entropy_models_are_numbers(copied: Callable[[str], Path]) -> None:
    for kind, file in (("photo", "hyperprior.safetensors"), ("tiny", "context.safetensors")):
        folder = copied(kind)
        path = folder / file
        if not path.is_file():
            continue
        arrays = safetensors.numpy.load(packed.read(path))
        floats = [name for name, array in arrays.items() if array.dtype.kind == "f"]
        for name in floats[:1]:
            arrays[name].flat[0] = np.nan
            path.write_bytes(safetensors.numpy.save(arrays))
            assert "not finite" in refused(load_model, str(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weights_fail_by_name(kind: str, copied: Callable[[str], Path]) -> None:
    folder = copied(kind)
    for path in sorted(folder.glob("*.safetensors")):
        good, failed = path.read_bytes(), 0
        for damaged in mutations(good[:4096], 25, seed=8):
            path.write_bytes(damaged + good[4096:])
            failed += bool(refused(load_model, str(folder)))
        assert failed > 12 or path.name != "model.safetensors"  # a model may have a prior that is not asked for
        path.write_bytes(good)


# ------------------------------------------------------------------------------------------------------- generators


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    window = TokenSpec("some", "0123456789abcdef", "image", (6, 6), (16, 16), (32, 48), "rgb")
    tree = CodeTree((2, 3), np.arange(6))
    Generator(GeneratorConfig(window, 2, "levels", ((2, 3), (2, 3)), 16, 24, 1, 2), [tree, tree]).save_pretrained(
        tmp_path / "generator"
    )
    return tmp_path / "generator"


def test_generators_that_are_none(generator: Path) -> None:
    place = str(generator), "cpu"
    assert refused(load_generator, *place) == ""
    text = (generator / "config.json").read_text()
    for settings in (
        {"heads": 0}, {"hidden": 1 << 20}, {"layers": 1 << 30}, {"inner": 1 << 40}, {"bases": [[0, 3], [2, 3]]},
        {"levels": 0}, {"pattern": "x"}, {"heads": 2.5}, {"hidden": "16"}, {"hidden": float("nan")},
    ):  # fmt: skip
        (generator / "config.json").write_text(text)
        with_settings(generator, **settings)
        told, held = refused_within(load_generator, *place)
        assert told, settings
        assert held < 64 * MB, settings
    for other in (*json_mutations(text, 150, seed=9), NESTED):
        (generator / "config.json").write_text(other)
        _, held = refused_within(load_generator, *place)
        assert held < 64 * MB, other
    (generator / "config.json").write_text(text)
    path = generator / "model.safetensors"
    arrays = safetensors.numpy.load(packed.read(path))
    name = next(name for name, array in arrays.items() if array.dtype == np.float16)
    arrays[name].flat[0] = np.nan
    path.write_bytes(safetensors.numpy.save(arrays))
    assert "not finite" in refused(load_generator, *place)


@pytest.mark.parametrize("name", ["attacker/model", "hf:attacker/model", "/etc", "../golden/tiny", "tiny"])
def test_a_generator_chooses_no_tokenizer(
    name: str, generator: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    config = json.loads((generator / "config.json").read_text())
    config["config"]["window"]["model"] = name
    (generator / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="does not come with tokodec; give its folder with --tokenizer"):
        load_pair(str(generator), None, "cpu")
