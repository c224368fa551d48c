"""Models go to the hub with a card that is true, and come back; nothing asks the network here."""

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tokodec
from tokodec.entropy.static import StaticPrior
from tokodec.tests.adapted_models import saved, signals, tiny_adapted, tiny_codec, tiny_nets, tiny_quantizer
from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.folders import find_model

hub_mixin: Any = pytest.importorskip("huggingface_hub.hub_mixin")


class Hub:
    """What of the hub is called: a folder for each model."""

    def __init__(self, home: Path) -> None:
        self.home, self.asked = home, list[Any]()

    def __call__(self, token: str | None = None) -> "Hub":
        self.asked.append(token)
        return self

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> SimpleNamespace:
        self.asked.append((repo_id, private))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_folder(self, repo_id: str, folder_path: Path, **more: Any) -> str:
        shutil.copytree(folder_path, self.home / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/{more['revision']}"

    def snapshot_download(self, name: str, **more: Any) -> str:
        self.asked.append((name, more))
        return str(self.home / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub_mixin, "HfApi", made)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    from huggingface_hub import ModelCard

    card = ModelCard.load(folder / "README.md")
    return card.data.to_dict(), card.text


def test_there_and_back(hub: Hub, tmp_path: Path, tiny_model: Path) -> None:
    """Weights, codes and entropy models are those of before; what was pushed stays where it was."""
    model: Any = tokodec.load(tiny_model, "cpu")
    x = torch.rand(1, 3, 40, 56)
    tokens = model.encode(x)
    place = model.push_to_hub("me/tiny", private=True, token="secret", branch="dev",
                              model_card_kwargs={"license": "mit", "datasets": ["kodak"]})  # fmt: skip
    assert place == "https://hub/me/tiny/dev"
    assert hub.asked == ["secret", ("me/tiny", True)]
    assert model.source == tiny_model
    assert model.weights_hash == tokens.spec.weights_hash
    made = hub.home / "me" / "tiny"
    there = {path.name for path in made.iterdir()}
    assert there == {*(path.name for path in tiny_model.iterdir() if path.suffix != ".md"), "README.md"}
    again = Tokenizer.from_pretrained("hf:me/tiny", revision="v1", local_files_only=True)
    assert hub.asked[-1][1]["revision"] == "v1"
    assert torch.equal(again.encode(x).codes, tokens.codes)
    data, text = card_of(made)
    assert (data["library_name"], data["license"], data["datasets"]) == ("tokodec", "mit", ["kodak"])
    assert {"image", "tokenizer", "tokodec", "model_hub_mixin"} <= set(data["tags"])
    assert model.weights_hash in text
    assert 'tokodec.load("hf:me/tiny")' in text
    assert "3 of" in text or ", ".join(map(str, model.codebook_sizes)) in text
    bits = sum(n.bit_length() - 1 for n in model.codebook_sizes) / 256
    assert f"{bits:.4g} bits a pixel" in text


def test_the_code_of_a_card_runs(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of modules that are the user's own it says how they get their weights."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 24), (9, 99, 199)).save("photo.png")
    model = tiny_adapted("image", "ResidualVQ")
    assert model.push_to_hub("mine") == "https://hub/me/mine/None"
    _, text = card_of(hub.home / "me" / "mine")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert "hf:USER/mine" in code
    encoder, decoder, _ = tiny_nets("image")
    names: dict[str, Any] = {"encoder": encoder, "decoder": decoder, "quantizer": tiny_quantizer("ResidualVQ")}
    exec(code.replace("USER", "me"), names)
    x = signals("image")
    assert torch.equal(names["tokenizer"].encode(x).codes, model.encode(x).codes)
    assert Image.open("back.png").size == (40, 24)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_the_code_of_a_card_says_what_is_not_usual(modality: str, tmp_path: Path) -> None:
    made = tiny_adapted(modality, "ResidualVQ")
    made.save_pretrained(tmp_path / "folder")
    encoder, decoder, strides = tiny_nets(modality)
    own_words: dict[str, dict[str, Any]] = {
        "image": {"pixels": (-1.0, 1.0)},
        "audio": {"context": 3, "sample_rate": 22050},
    }
    about = own_words[modality]
    folder, own = tmp_path / "folder", tiny_quantizer("ResidualVQ")
    model: Any = tokodec.adapt(
        encoder, own, decoder, modality=modality, strides=strides, name="mine", weights_from=folder, **about
    )  # fmt: skip
    code = model.load_code(str(folder))
    again = eval(code, {"tokodec": tokodec, "encoder": encoder, "decoder": decoder, "quantizer": own})
    assert {name: getattr(again, name) for name in about} == about
    assert again.name == "mine"
    assert "pixels" not in made.load_code("x")
    assert "context" not in made.load_code("x")


def test_the_card_of_a_folder_is_kept(hub: Hub, tmp_path: Path) -> None:
    """Its text and its metadata, and what is added to them; static tables go along."""
    folder = saved(tiny_codec("dac"), tmp_path / "my-dac")
    own = "---\nlicense: cc-by-4.0\ntags:\n- music\n---\n# Mine\nTrained on birds.\n"
    (folder / "README.md").write_text(own)
    StaticPrior.uniform(tokodec.load(folder, "cpu").codebook_sizes).save_pretrained(folder)
    tokodec.load(folder, "cpu").push_to_hub("me/my-dac", model_card_kwargs={"language": "de"})
    made = hub.home / "me" / "my-dac"
    data, text = card_of(made)
    assert text.strip() == "# Mine\nTrained on birds."
    assert (data["license"], data["language"], data["library_name"]) == ("cc-by-4.0", "de", "tokodec")
    assert {"music", "audio", "tokenizer"} <= set(data["tags"])
    assert (made / "prior.safetensors").read_bytes() == (folder / "prior.safetensors").read_bytes()
    (folder / "README.md").unlink()
    tokodec.load(folder, "cpu").push_to_hub("me/other")
    text = card_of(hub.home / "me" / "other")[1]
    assert "pip install 'tokodec[transformers]'" in text
    assert "3 of 64 codes" in text
    assert f"{18 / 320 * 16:.4g} kbit/s" in text


def test_the_mixin_loads_too(hub: Hub, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokodec.tokenizers.hub import HubTokenizer

    model = tokodec.load(tiny_model, "cpu")
    HubTokenizer(model).save_pretrained(tmp_path / "saved")
    assert "# tiny" in (tmp_path / "saved" / "README.md").read_text()
    assert HubTokenizer.from_pretrained(tmp_path / "saved").tokenizer.weights_hash == model.weights_hash
    HubTokenizer(model).push_to_hub("me/tiny")
    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda repo_id, filename, **_: str(hub.home / repo_id / filename))
    loaded = HubTokenizer.from_pretrained("me/tiny", revision="v2")
    assert loaded.tokenizer.weights_hash == model.weights_hash
    assert hub.asked[-1][1]["revision"] == "v2"


def test_revisions_are_of_the_hub_only(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="revision of 'image-grid': only models of the hub"):
        find_model("image-grid", revision="v1")


def test_without_the_package(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for when it is needed."""
    model = tokodec.load(tiny_model, "cpu")
    monkeypatch.delitem(sys.modules, "tokodec.tokenizers.hub", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"to publish models, pip install 'tokodec\[hub\]' \("):
        model.push_to_hub("me/tiny")
