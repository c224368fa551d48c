"""Tokens name the weights that made them: those of a file, or none at all once weights were changed in memory."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tokodec.codec.errors import UsageError
from tokodec.codec.models import load, load_model, pick_device
from tokodec.codec.tokens import tokenize_file
from tokodec.entropy.hyperprior.prior import HyperPrior
from tokodec.tokenizers import weights
from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.image.grid import ImageGrid
from tokodec.tokenizers.image.photo import ImagePhoto

KINDS = ("tiny", "photo", "sequence", "sound", "video")
SHAPES = {"audio": (1, 1, 700), "video": (1, 3, 5, 16, 16)}


def model_of(golden: Path, kind: str) -> Any:
    return Tokenizer.from_pretrained(golden / kind)


def encode(model: Any) -> Any:
    shape = SHAPES.get(model.modality, (1, 3, 16, 16))
    return model.encode(torch.rand(shape, generator=torch.Generator().manual_seed(3)))


def first(model: nn.Module) -> nn.Parameter:
    return next(p for p in model.parameters() if p.ndim > 1)


def step(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def in_place(model: Any) -> None:
    with torch.no_grad():
        first(model)[0, 0] += 1e-3


def through_data(model: Any) -> None:
    first(model).data.mul_(1.01)  # which PyTorch does not count


def new_data(model: Any) -> None:
    first(model).data = first(model).data.clone() + 1e-3


def assigned(model: Any) -> None:
    model.load_state_dict({name: t + 0.01 for name, t in model.state_dict().items()}, strict=False, assign=True)


def new_parameter(model: Any) -> None:
    owner = next(m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear)))
    owner.weight = nn.Parameter(owner.weight.detach() + 0.01)


def through_numpy(model: Any) -> None:
    np.multiply(first(model).detach().numpy(), 1.01, out=first(model).detach().numpy())


CHANGES: dict[str, Callable[[Any], object]] = {
    "an optimizer's step": step,
    "in place": in_place,
    "load_state_dict": lambda m: m.load_state_dict({name: 0 * t + 1 for name, t in m.state_dict().items()}),
    "load_state_dict(assign=True)": assigned,
    "a table": lambda m: m.state_dict()[next(reversed(m.state_dict()))].fill_(1),
    "a part of it": lambda m: next(m.children()).load_state_dict(
        {name: t + 0.01 for name, t in next(m.children()).state_dict().items()}
    ),
    ".data, all": through_data,
    ".data, another": new_data,
    "a new parameter": new_parameter,
    "numpy": through_numpy,
    "half and back": lambda m: m.half().float(),
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "apply": lambda m: m.apply(lambda own: nn.init.ones_(own.bias) if getattr(own, "bias", None) is not None else None),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["tiny", "sound"])
def test_changed_weights_have_no_hash(golden: Path, kind: str, change: str) -> None:
    model = model_of(golden, kind)
    tokens = encode(model)
    assert tokens.spec.weights_hash == model.weights_hash != ""
    CHANGES[change](model)
    assert model.weights_hash == ""
    with pytest.raises(ValueError, match=r"given to .*\(unsaved\)"):
        model.decode(tokens)
    for t in model.state_dict().values():
        t.nan_to_num_()  # of to_empty
    own = encode(model)
    assert own.spec.weights_hash == ""
    model.decode(own)
    with pytest.raises(ValueError, match=r"\(unsaved\) given to"):
        model_of(golden, kind).decode(own)


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizers_step_is_noticed_in_every_model(golden: Path, kind: str) -> None:
    model = model_of(golden, kind)
    assert model.weights_hash
    step(model)
    assert model.weights_hash == ""


KEPT: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda m: m,
    "use": lambda m: (m.decode(encode(m)), m)[1],
    "a move": lambda m: m.to("cpu").cpu().float(),
    "training mode": lambda m: m.train().requires_grad_(False).eval(),
    "gradients": lambda m: (sum(p.sum() for p in m.parameters()).backward(), m.zero_grad(), m)[2],
    "a deep copy": copy.deepcopy,
    "a shallow copy": copy.copy,
    "shared memory": lambda m: m.share_memory(),
    "another layout": lambda m: m.to(memory_format=torch.channels_last) if m.modality == "image" else m,
}


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.parametrize("kind", KINDS)
def test_what_leaves_weights_as_they_are_keeps_the_hash(golden: Path, kind: str, what: str) -> None:
    model = model_of(golden, kind)
    expected = model.weights_hash
    after = KEPT[what](model)
    assert after.weights_hash == expected != ""
    step(after)
    assert after.weights_hash == ""


def test_a_copy_of_changed_weights_has_no_hash(golden: Path) -> None:
    model = model_of(golden, "tiny")
    in_place(model)
    assert copy.deepcopy(model).weights_hash == ""


def test_another_entropy_model_gives_codes_another_meaning(golden: Path) -> None:
    model = ImagePhoto.from_pretrained(golden / "photo")
    arrays = model.entropy.arrays()
    model.set_entropy(HyperPrior(arrays | {"skip": arrays["skip"] - 1}))
    assert model.weights_hash == ""


def test_what_is_not_noticed(golden: Path) -> None:
    """The limit of the check, as its docstring has it: few numbers, through `.data`. If this fails, say so there."""
    model = model_of(golden, "tiny")
    first(model).data[0, 1] += 1
    assert model.weights_hash != ""


# ------------------------------------------------------------------------------------------------------------- saving


def save_again(golden: Path, kind: str, folder: Path) -> Path:
    """A model whose weights are what saving leaves of them, with the entropy models of its kind beside them."""
    with pytest.warns(UserWarning, match="no entropy model") if kind == "tiny" else nullcontext():
        model_of(golden, kind).save_pretrained(folder)
    for path in (golden / kind).glob("*.safetensors"):
        if path.name not in (weights.WEIGHTS_FILE, HyperPrior.file):
            shutil.copy(path, folder)
    return folder


def priors(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors") if p.name != weights.WEIGHTS_FILE}


@pytest.mark.parametrize("kind", ["tiny", "sound", "video", "sequence", "photo"])
def test_priors_are_saved_along(golden: Path, kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    source = save_again(golden, kind, tmp_path / "source")
    assert priors(source)
    recwarn.clear()
    model: Any = Tokenizer.from_pretrained(source)
    assert model.save_pretrained(tmp_path / "same") == model.weights_hash  # rounding again changes nothing
    assert priors(tmp_path / "same") == priors(source)
    tokens = encode(load_model(str(tmp_path / "same")).tokenizer)
    assert tokens.spec == encode(model).spec
    with torch.no_grad():  # of no concern to codes
        net = model.nets.synthesis if kind == "photo" else model.synthesis
        first(net).mul_(1.5)
    assert model.save_pretrained(tmp_path / "synthesis") != tokens.spec.weights_hash
    assert priors(tmp_path / "synthesis") == priors(source)
    loaded = load_model(str(tmp_path / "synthesis")).tokenizer
    assert torch.equal(encode(loaded).codes, tokens.codes)
    assert not recwarn.list


def test_priors_of_other_codes_are_left_out(golden: Path, tmp_path: Path) -> None:
    source = save_again(golden, "tiny", tmp_path / "source")
    model = ImageGrid.from_pretrained(source)
    with torch.no_grad():
        first(model.analysis).mul_(1.5)
    with pytest.warns(UserWarning, match="has no entropy model: those of .*source are of other codes"):
        model.save_pretrained(tmp_path / "other")
    assert not priors(tmp_path / "other")
    Image.new("RGB", (40, 24), (200, 100, 50)).save(tmp_path / "picture.png")
    tokens = tokenize_file(tmp_path / "picture.png", model=str(tmp_path / "other"), device="cpu").tokens
    loaded = Tokenizer.from_pretrained(tmp_path / "other")
    assert loaded.accepts(tokens.spec)
    assert tokens.spec.weights_hash == loaded.weights_hash != ""


def test_saving_over_the_source_leaves_its_priors(golden: Path, tmp_path: Path) -> None:
    source = save_again(golden, "tiny", tmp_path / "source")
    before = priors(source)
    ImageGrid.from_pretrained(source).save_pretrained(source)
    assert priors(source) == before


def test_a_source_that_is_gone(golden: Path, tmp_path: Path) -> None:
    source = save_again(golden, "tiny", tmp_path / "source")
    model = ImageGrid.from_pretrained(source)
    shutil.rmtree(source)
    with pytest.warns(UserWarning, match="no entropy model"):
        model.save_pretrained(tmp_path / "other")


def test_hash_of_what_was_saved(golden: Path, tmp_path: Path) -> None:
    """Rounding changes weights: only those that it leaves alone are those of the file."""
    model = model_of(golden, "sound")
    step(model)
    with pytest.warns(UserWarning, match="no entropy model"):
        written = model.save_pretrained(tmp_path)
    assert model.weights_hash == ""
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.weights_hash == written
    model.load_state_dict(loaded.state_dict())
    with pytest.warns(UserWarning, match="no entropy model"):
        assert model.save_pretrained(tmp_path / "again") == model.weights_hash == written


# ------------------------------------------------------------------------------------------------------------ devices


def test_devices(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cpu", torch.device("cpu"), "cpu:0", torch.device("cpu", 0)):
        assert load(golden / "tiny", device).device == torch.device("cpu")
        assert load_model(str(golden / "tiny"), device).tokenizer.device.type == "cpu"
    for wrong in ("gpu", "cuda:", "cuda:x", "cuda:-1", "mps", "", "cuda:1:2"):
        with pytest.raises(UsageError, match="use auto, cpu, cuda or cuda:N"):
            pick_device(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    given: list[str | torch.device] = ["auto", "cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 0)]
    assert [pick_device(device) for device in given] == ["cuda"] * 5
    assert pick_device("cuda:1") == pick_device(torch.device("cuda", 1)) == "cuda:1"
    with pytest.raises(UsageError, match="no GPU 2 here: they are numbered 0 to 1"):
        pick_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:0", torch.device("cuda")):
        with pytest.raises(UsageError, match="no CUDA GPU"):
            pick_device(device)
