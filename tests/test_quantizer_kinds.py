"""Quantizers that a recipe chooses: each kind trains, is saved, and codes the same in another process, in files too."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokodec
from tokodec.codec.counting import count_prior
from tokodec.codec.errors import ModelError
from tokodec.codec.models import describe_model, load_model
from tokodec.entropy.context.prior import CONTEXT_FILE
from tokodec.tests.hostile import refused_within
from tokodec.tokenizers import quantizers
from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.audio.grvq import AudioGRVQ, AudioGRVQConfig
from tokodec.tokenizers.image.grid import ImageGrid, ImageGridConfig
from tokodec.tokenizers.image.sequence import ImageSequence, ImageSequenceConfig
from tokodec.tokenizers.quantize import VQ, FullVQ
from tokodec.tokenizers.quantize.residual import ResidualQuantizer
from tokodec.tokenizers.quantizers import (
    ALLOWED,
    QuantizerKind,
    describe,
    make_quantizer,
    quantizer_kinds,
    register_quantizer,
)  # fmt: skip
from tokodec.tokenizers.video.grid import VideoGrid, VideoGridConfig
from tokodec.train import audio, image, image_1d, video
from tokodec.train.adapted import SMALL_PRIOR
from tokodec.train.prior import main as train_prior
from tokodec.train.recipe import change, checked, read_recipe

VQ_PYTORCH = "vector_quantize_pytorch"
EMA = {"kind": "ema", "kmeans_iterations": 2}
# Of pictures: name -> section, D and N of every codebook.
KINDS: dict[str, tuple[dict[str, Any], int, tuple[int, ...]]] = {
    "simvq": ({"kind": "simvq", "codebook_size": 32}, 6, (32,)),
    "vq": ({"kind": "vq", "codebook_size": 32, "dim": 5, "metric": "cosine"}, 5, (32,)),
    "ema": ({**EMA, "codebook_size": 32}, 6, (32,)),
    "fullvq": ({"kind": "fullvq", "codebook_size": 32, "group": 4, "width": 16, "heads": 2}, 6, (32,)),
    "fsq": ({"kind": "fsq", "levels": [5, 4, 3]}, 3, (60,)),
    "lfq": ({"kind": "lfq", "dim": 5}, 5, (32,)),
    "bsq": ({"kind": "bsq", "dim": 7, "group_bits": 4}, 7, (128,)),
    "rvq": ({"kind": "rvq", "of": EMA}, 6, (32, 16, 16)),
    "grvq": ({"kind": "grvq", "of": "vq", "codebook_sizes": [16, 8]}, 6, (16, 16, 8, 8)),
    "pvq": ({"kind": "pvq"}, 6, (32, 16, 16)),
    "pvq-fsq": ({"kind": "pvq", "of": {"kind": "fsq", "levels": [5, 3]}, "groups": 2}, 4, (15, 15)),
    "external-rvq": (
        {"kind": "external", "class": f"{VQ_PYTORCH}.ResidualVQ", "codebook_size": 32, "num_quantizers": 3},
        6, (32, 32, 32),
    ),
    "external-fsq": ({"kind": "external", "class": f"{VQ_PYTORCH}.FSQ", "levels": [5, 4, 3]}, 6, (60,)),
}  # fmt: skip
# A section for each of the other models.
OTHERS: dict[str, dict[str, Any]] = {
    "audio-fsq": {"kind": "fsq", "levels": [5, 5, 3]},
    "audio-external": KINDS["external-rvq"][0],
    "audio-grvq": {"kind": "grvq", "of": EMA, "groups": 3, "codebook_sizes": [16, 8]},
    "video-lfq": {"kind": "lfq", "dim": 6},
    "video-external": KINDS["external-rvq"][0],
    "video-rvq": {"kind": "rvq", "of": "fullvq"},
    "sequence-fsq": {"kind": "fsq", "levels": [5, 4, 3]},
    "sequence-ema": EMA,
    "sequence-external": {"kind": "external", "class": f"{VQ_PYTORCH}.VectorQuantize", "codebook_size": 32},
}
NETS = ["channels=[8,8,8]", "analysis_blocks=[1,1,1]", "synthesis_blocks=[1,1,1]"]
SIZES = {
    "image": [*NETS, "dim=6", "codebook_sizes=[32,16,16]"],
    "audio": ["analysis_channels=[8,12]", "synthesis_channels=[12,8]", "analysis_blocks=[1,1]",
              "synthesis_blocks=[1,1]", "dim=6", "codebook_sizes=[32,16]"],
    "video": [*NETS, "analysis_time=[1,1]", "synthesis_time=[1,1]", "dim=6", "codebook_sizes=[32,16]"],
    "sequence": ["width=16", "heads=2", "analysis_blocks=1", "synthesis_blocks=1", "tokens=8", "smooth=4",
                 "codebook_size=32", "dim=6"],
}  # fmt: skip
WINGS: dict[str, tuple[str, Any, type[Any]]] = {
    "image": ("image-grid", image, ImageGrid), "audio": ("audio-24k", audio, AudioGRVQ),
    "video": ("video-grid", video, VideoGrid), "sequence": ("image-1d", image_1d, ImageSequence),
}  # fmt: skip


def signal(wing: str, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = {"image": (2, 3, 64, 48), "audio": (2, 1, 3200), "video": (2, 3, 5, 32, 32), "sequence": (2, 3, 272, 272)}
    return torch.rand(shape[wing], generator=generator)


def model_of(wing: str, section: dict[str, Any]) -> Any:
    """As a trainer makes it of its recipe, tiny."""
    name, script, kind = WINGS[wing]
    recipe = read_recipe(name)
    change(recipe, [f"model.{item}" for item in SIZES[wing]] + [f"model.quantizer={json.dumps(section)}"])
    torch.manual_seed(0)
    model = kind(checked(script.Recipe, recipe).model, f"{wing}-{section['kind']}")
    with torch.no_grad():  # latents of all sizes, for those whose codewords are fixed
        list(model.analysis.parameters())[-2].mul_(20)
    return model


def losses(wing: str, model: Any) -> tuple[torch.Tensor, ...]:
    """What the trainer's module gives of a batch, without x_hat."""
    x = signal(wing)
    net = WINGS[wing][1].Autoencoder(model)
    more: dict[str, tuple[Any, ...]] = {
        "image": (), "audio": (torch.tensor([1, len(model.codebook_sizes)]),),
        "video": (torch.tensor([1, len(model.codebook_sizes)]),), "sequence": (torch.tensor([4, 8]), True),
    }  # fmt: skip
    x_hat, *found = net(x, *more[wing])
    return ((x_hat - x).square().mean(), *found)


def train(wing: str, model: Any, steps: int = 2) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        parts = losses(wing, model)
        assert all(part.shape == () and part.isfinite() for part in parts)
        torch.stack(parts).sum().backward()
        gradients = [p.grad for p in model.analysis.parameters() if p.grad is not None]
        assert sum(float(g.abs().sum()) for g in gradients) > 0
        assert all(g.isfinite().all() for g in gradients)
        optimizer.step()
    model.eval()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(6):
        coarse = rng.integers(0, 256, (5, 7, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((208, 192), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A folder of each, two steps old; pictures' with static tables, two of them with a context prior too."""
    folder = tmp_path_factory.mktemp("models")
    for name, section in {**{n: own[0] for n, own in KINDS.items()}, **OTHERS}.items():
        wing = wing_of(name)
        model = model_of(wing, section)
        train(wing, model)
        model.save_pretrained(folder / name)
        if wing == "image":
            count_prior(sorted(pictures.glob("*.png"))[:2], str(folder / name), device="cpu")
    for name in ("fsq", "external-rvq"):
        words = ["--tokenizer", str(folder / name), "--data", str(pictures), "--out", str(folder / "prior")]
        train_prior([*words, "--steps", "10", "--device", "cpu", "--force", "--set", *SMALL_PRIOR])
        (folder / "prior" / CONTEXT_FILE).rename(folder / name / CONTEXT_FILE)
    return folder


CODES = """
import sys, numpy, torch, tokodec
from pathlib import Path
folder, out = map(Path, sys.argv[1:])
for path in out.glob("*.npy"):
    model = tokodec.load(folder / path.stem, "cpu")
    tokens = model.encode(torch.from_numpy(numpy.load(path)))
    numpy.savez(out / path.stem, codes=tokens.codes.numpy(), x_hat=model.decode(tokens).numpy())
for tok in out.glob("*.tok"):
    model = str(folder / tok.name.partition(".")[0])
    tokodec.decode_file(tok, tok.with_suffix(".again.png"), model=model, device="cpu")
"""


def wing_of(name: str) -> str:
    return name.partition("-")[0] if name in OTHERS else "image"


@pytest.fixture(scope="module")
def elsewhere(models: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of each model, and what another process makes of the models and the files."""
    out = tmp_path_factory.mktemp("out")
    for name in KINDS:
        for prior in ("static", "context"):
            if prior == "static" or (models / name / CONTEXT_FILE).is_file():
                tok = out / f"{name}.{prior}.tok"
                tokodec.encode_file(pictures / "0.png", tok, model=str(models / name), prior=prior, device="cpu")
    for name in (*KINDS, *OTHERS):
        np.save(out / f"{name}.npy", signal(wing_of(name)).numpy())
    subprocess.run([sys.executable, "-c", CODES, str(models), str(out)], check=True)
    return out


# ------------------------------------------------------------------------------------------------------- every kind


def test_every_kind_is_tested() -> None:
    assert {section["kind"] for section, _, _ in KINDS.values()} == set(quantizer_kinds()) - {"toy"}


@pytest.mark.parametrize("name", KINDS)
def test_a_recipe_says_what_it_is(name: str, models: Path) -> None:
    section, dim, sizes = KINDS[name]
    model: Any = tokodec.load(models / name, "cpu")
    assert (model.config.dim, model.quantizer.dim, model.codebook_sizes) == (dim, dim, sizes)
    assert model.config.codebook_sizes == sizes
    config = json.loads((models / name / "config.json").read_text())["config"]
    assert config["quantizer"]["kind"] == section["kind"]
    assert (config["dim"], tuple(config["codebook_sizes"])) == (dim, sizes)
    told = describe_model(models / name)
    assert (told["quantizer"], tuple(told["codebook_sizes"])) == (describe(section), sizes)
    tables = model.codewords()
    assert [len(table) for table in tables] == list(sizes)
    codes = model.encode(signal("image")).codes
    if name in ("simvq", "vq", "ema", "fullvq", "fsq", "lfq", "bsq"):
        words = torch.from_numpy(tables[0])[codes[:, 0]].movedim(-1, 1)
        torch.testing.assert_close(words, model.quantizer.decode(codes))


@pytest.mark.parametrize("name", [*KINDS, *OTHERS])
def test_another_process_has_the_same_codes(name: str, models: Path, elsewhere: Path) -> None:
    model = tokodec.load(models / name, "cpu")
    tokens = model.encode(signal(wing_of(name)))
    with np.load(elsewhere / f"{name}.npz") as found:
        assert np.array_equal(found["codes"], tokens.codes.numpy())
        assert np.array_equal(found["x_hat"], model.decode(tokens).numpy())
    assert model.weights_hash
    assert len(tokens.codes.unique()) > 2


@pytest.mark.parametrize("name", KINDS)
def test_files_come_back(name: str, models: Path, elsewhere: Path, pictures: Path) -> None:
    files = sorted(elsewhere.glob(f"{name}.*.tok"))
    assert len(files) == 1 + (name in ("fsq", "external-rvq"))
    model: Any = tokodec.load(models / name, "cpu")
    pixels = torch.from_numpy(np.array(Image.open(pictures / "0.png")))
    codes = model.encode_picture(pixels).codes
    for tok in files:
        assert torch.equal(tokodec.tokenize_file(tok, model=str(models / name), device="cpu").tokens.codes, codes)
        again = np.asarray(Image.open(tok.with_suffix(".again.png")))
        assert np.array_equal(again, model.decode_picture(model.encode_picture(pixels)).numpy())


@pytest.mark.parametrize("name", KINDS)
def test_the_contract(name: str) -> None:
    """Prefixes, errors, dropout of codes and frozen codewords of each kind alike."""
    section, dim, sizes = KINDS[name]
    torch.manual_seed(0)
    quantizer = make_quantizer(section, dim=6, codebook_sizes=(32, 16, 16))
    z_e = torch.randn(3, dim, 4, 5)
    quantizer.train()(z_e)
    quantizer.freeze()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    kept = torch.tensor([1, len(sizes), 1])
    out = quantizer.train()(z_e, n_codes=kept)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    quantizer.eval()
    codes = quantizer.encode(z_e)
    assert ((out.codes >= 0).sum(1) == kept[:, None, None]).all()
    torch.testing.assert_close(out.z_q, quantizer.decode(out.codes))
    for k in range(1, len(sizes) + 1):
        assert torch.equal(quantizer.search(z_e, k), codes[:, :k])
    wanted = [(z_e - quantizer.decode(codes[:, : k + 1])).square().sum(1) for k in range(len(sizes))]
    torch.testing.assert_close(quantizer.errors(z_e, codes), torch.stack(wanted, 1))
    absent = torch.full_like(codes, -1)
    assert torch.equal(quantizer.encode_after(z_e, absent, torch.zeros(len(sizes))), codes)
    assert len(quantizer.parts) in (1, len(sizes))
    quantizer.fold()
    assert torch.equal(quantizer.encode(z_e), codes)


# -------------------------------------------------------------------------------------------- what is in the weights


def test_a_release_holds_codewords_and_not_how_they_were_learned(models: Path) -> None:
    """A large count overflows float16; it starts anew."""
    model = model_of("image", {**EMA, "codebook_size": 16})
    train("image", model)
    quantizer = model.quantizer
    assert isinstance(quantizer, VQ)
    quantizer.cluster_size.fill_(1e6)
    model.save_pretrained(models / "large")
    again: Any = Tokenizer.from_pretrained(models / "large")
    assert again.quantizer.started
    assert torch.equal(again.quantizer.cluster_size, torch.full((16,), quantizer.fresh_count))
    step = quantizer.codewords.abs().amax(1, keepdim=True) / 127  # of int8
    assert ((again.quantizer.codewords - quantizer.codewords).abs() <= step / 2 + 1e-6).all()
    train("image", again)  # and goes on
    assert again.weights_hash == ""


def test_modules_of_others_keep_their_weights(models: Path) -> None:
    model = model_of("image", KINDS["external-rvq"][0])
    train("image", model)
    model.save_pretrained(models / "kept")
    again, own = Tokenizer.from_pretrained(models / "kept").state_dict(), model.state_dict()
    own = {key: value for key, value in own.items() if key.startswith("quantizer.")}
    assert all(torch.equal(own[key], again[key]) for key in own)


def test_penalties_of_the_search_are_kept(tmp_path: Path) -> None:
    model = model_of("image", {"kind": "rvq", "of": "vq"}).eval()
    assert all(level.penalty is None for level in model.codebooks)
    for level in model.codebooks:
        level.penalty = torch.arange(float(level.codebook_sizes[0]))
    model.save_pretrained(tmp_path)
    for level, own in zip(ImageGrid.from_pretrained(tmp_path).codebooks, model.codebooks, strict=True):
        assert level.penalty is not None
        assert torch.equal(level.penalty, own.penalty)


def test_no_section_is_the_quantizer_of_before() -> None:
    sizes: dict[str, Any] = {"channels": (8, 8, 8), "dim": 4, "codebook_sizes": (16, 8)}
    torch.manual_seed(0)
    plain = ImageGrid(ImageGridConfig(**sizes))
    torch.manual_seed(0)
    named = ImageGrid(ImageGridConfig(**sizes, quantizer={"kind": "rvq", "of": {"kind": "simvq"}}))
    assert isinstance(plain.quantizer, ResidualQuantizer)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), named.state_dict().values(), strict=True))
    assert plain.config.quantizer is None


# -------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "nothing"}, "quantizer.kind is one of simvq, vq, ema"),
        ({"levels": [5]}, "quantizer.kind is one of simvq, vq, ema"),
        ([1], "quantizer is a section of settings with a kind"),
        ({"kind": ["vq"]}, "quantizer.kind is one of"),
        ({"kind": "vq", "size": 3}, "quantizer of kind vq has an unknown setting size: known are codebook_size"),
        ({"kind": "vq"}, "quantizer.codebook_size is missing"),
        ({"kind": "vq", "codebook_size": "many"}, "quantizer.codebook_size is a whole number, got 'many'"),
        ({"kind": "vq", "codebook_size": 0}, "codebook_size and dim must be positive"),
        ({"kind": "vq", "codebook_size": 8, "decay": 2.0}, "decay in [0, 1)"),
        ({"kind": "vq", "codebook_size": 8, "metric": "l3"}, "quantizer.metric is "),
        ({"kind": "fsq"}, "quantizer.levels is missing"),
        ({"kind": "fsq", "levels": 5}, "quantizer.levels is a list, got 5"),
        ({"kind": "fsq", "levels": [5, 2]}, "quantizer of kind fsq: need levels of at least 3"),
        ({"kind": "lfq"}, "quantizer.dim is missing"),
        ({"kind": "lfq", "dim": 63}, "dim must be 1 to 62"),
        ({"kind": "fullvq", "codebook_size": 30}, "group 16 must divide codebook_size 30"),
        ({"kind": "rvq", "of": {"kind": "vq", "dead": 1}}, "quantizer.of of kind vq has an unknown setting dead"),
        ({"kind": "rvq", "of": {"kind": "fsq", "levels": [5]}}, "quantizer.of is a kind whose codewords are a table"),
        ({"kind": "rvq", "of": {"kind": "vq", "metric": "cosine"}}, "use metric 'l2'"),
        ({"kind": "rvq", "of": {"kind": "vq", "codebook_size": 9}}, "quantizer.codebook_sizes has the sizes"),
        ({"kind": "rvq", "codebook_sizes": []}, "quantizer.codebook_sizes has 1 to 1024 entries"),
        ({"kind": "grvq", "groups": 4}, "quantizer.groups splits 6 channels evenly"),
        ({"kind": "grvq", "groups": 0}, "quantizer.groups splits 6 channels evenly"),
        ({"kind": "pvq", "codebook_sizes": [8] * 4}, "quantizer.groups splits 6 channels evenly, got 4"),
        ({"kind": "pvq", "of": {"kind": "rvq", "codebook_sizes": [8, 8]}}, "with one codebook each"),
        ({"kind": "external"}, "quantizer.class is missing"),
        ({"kind": "external", "class": f"{VQ_PYTORCH}.NoSuch"}, "is no class of modules"),
        ({"kind": "external", "class": f"{VQ_PYTORCH}.FSQ", "levels": [5], "foo": 1}, "quantizer.foo is no setting of"),
        ({"kind": "external", "class": f"{VQ_PYTORCH}.ResidualVQ", "foo": 1, "codebook_size": 8, "num_quantizers": 2},
         "foo"),
        ({"kind": "external", "class": f"{VQ_PYTORCH}.LatentQuantize", "levels": [5], "dim": 6},
         "a quantizer is one of ResidualVQ"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_it(section: Any, message: str) -> None:
    with pytest.raises(ValueError, match="quantizer") as caught:
        ImageGrid(ImageGridConfig(dim=6, codebook_sizes=(32, 16, 16), channels=(8, 8, 8), quantizer=section))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_token_is_one_code() -> None:
    with pytest.raises(ValueError, match="3 codebooks, and a token is one code"):
        model_of("sequence", KINDS["external-rvq"][0])
    with pytest.raises(ValueError, match="leave codes out"):
        ImageSequenceConfig(codes="lfq", quantizer={"kind": "simvq"})


def test_models_that_are_none(models: Path, tmp_path: Path) -> None:
    """Settings in a folder's config.json: one line, and no more memory than there are weights."""
    external = KINDS["external-rvq"][0]
    hostile: list[dict[str, Any]] = [
        {"kind": "vq", "codebook_size": 1 << 40},
        {"kind": "rvq", "codebook_sizes": [1 << 30] * 1000},
        {"kind": "fullvq", "codebook_size": 16, "width": 1 << 20},
        {"kind": "pvq", "groups": 1 << 40, "of": {"kind": "fsq", "levels": [5]}},
        {"kind": "grvq", "groups": 1 << 40, "dim": 1 << 40},
        {**external, "codebook_size": 1 << 40},
        {**external, "num_quantizers": 1 << 30},
        {"kind": "external", "class": f"{VQ_PYTORCH}.FSQ", "levels": [999] * 3},
        {"kind": "external", "class": f"{VQ_PYTORCH}.LFQ", "codebook_size": 1 << 30},
        {"kind": "rvq", "of": {"kind": "rvq", "of": {"kind": "rvq", "of": {"kind": "rvq"}}}},
    ]
    (tmp_path / "model.safetensors").write_bytes((models / "external-rvq" / "model.safetensors").read_bytes())
    whole = json.loads((models / "external-rvq" / "config.json").read_text())
    for section in hostile:
        (tmp_path / "config.json").write_text(json.dumps(whole | {"config": whole["config"] | {"quantizer": section}}))
        told, held = refused_within(load_model, str(tmp_path))
        assert "config.json" in told, section
        assert held < 64 << 20, section


# --------------------------------------------------------------------------------------------- classes of strangers

STRANGER = """
from pathlib import Path
Path(__file__).with_suffix(".imported").touch()

import torch
from tokodec.tokenizers.quantize import FSQ

class Stranger(FSQ):
    def __init__(self, levels, scale=1.0):
        super().__init__(levels)
"""


def test_a_file_never_chooses_what_is_imported(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stranger_vq.py").write_text(STRANGER)
    section = {"kind": "external", "class": "stranger_vq.Stranger", "levels": [5, 4, 3]}
    with pytest.raises(ValueError, match=f"set {ALLOWED}=stranger_vq.Stranger"):
        make_quantizer(section)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((models / "fsq" / "model.safetensors").read_bytes())
    whole = json.loads((models / "fsq" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(whole | {"config": whole["config"] | {"quantizer": section}}))
    with pytest.raises(ModelError, match="is not imported because a file says so"):
        tokodec.load(folder)
    for name in ("os.system", "stranger_vq", f"{VQ_PYTORCH}.vector_quantize_pytorch.VectorQuantize"):
        with pytest.raises(ValueError, match="is not imported because a file says so"):
            make_quantizer({**section, "class": name})
    assert not (tmp_path / "stranger_vq.imported").exists()
    assert describe_model(folder)["quantizer"] == "external stranger_vq.Stranger 5 x 4 x 3"

    monkeypatch.setenv(ALLOWED, "another.Class, stranger_vq.Stranger")
    model = tokodec.load(folder, "cpu")
    assert (tmp_path / "stranger_vq.imported").exists()
    x = signal("image")
    assert torch.equal(model.encode(x).codes, tokodec.load(models / "fsq", "cpu").encode(x).codes)


def test_a_kind_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizers, "_KINDS", dict(quantizer_kinds()))
    register_quantizer("toy", QuantizerKind("tokodec.tokenizers.quantize.fsq:FSQ"))
    assert make_quantizer({"kind": "toy", "levels": [5, 5]}).codebook_sizes == (25,)
    with pytest.raises(ValueError, match="another quantizer called 'vq'"):
        register_quantizer("vq", QuantizerKind("tokodec.tokenizers.quantize.fsq:FSQ"))


# ------------------------------------------------------------------------------------------------------ one command


@pytest.mark.usefixtures("_trains")
@pytest.mark.parametrize("name", ["fsq", "external-rvq"])
def test_one_command_trains_it(
    name: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section, _, sizes = KINDS[name]
    out = tmp_path / "model"
    sets = [f"model.{item}" for item in SIZES["image"]] + [f"model.quantizer={json.dumps(section)}"]
    sets += ["data.crop=192", "data.holdout_every=3", "optim.batch=2", "export.bpp_limits=[1.0,1.0,1.0]"]
    sets += ["sharp.adversarial=0.0"]
    words = ["--data", str(pictures), "--minutes", "0.02", "--precision", "no", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["image", *words, "--set", *sets])
    image.main()
    told = json.loads((out / "training.json").read_text())
    assert {entry["stage"] for entry in told["history"]} == {"faithful", "sharp"}
    assert len(told["codebook_usage"]) == len(sizes)
    assert all(math.isfinite(row["psnr"]) for row in told["holdout"])
    assert tokodec.encode_file(pictures / "1.png", tmp_path / "a.tok", model=str(out)).levels == len(sizes)
    tokodec.decode_file(tmp_path / "a.tok", tmp_path / "a.png", model=str(out), synthesis="sharp")
    capsys.readouterr()


def test_wrong_settings_end_a_command(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for section, message in (
        ("{kind: fsq, levels: [1]}", "need levels of at least 3"),
        ("{kind: none}", "quantizer.kind is one of"),
        ("3", "model.quantizer is a section of settings, got 3"),
        ("{kind: rvq, codebook_sizes: [8, 8]}", "export.bpp_limits has an entry for each of 2 codebooks"),
    ):
        words = ["--data", str(pictures), "--precision", "no", "--out", str(tmp_path / "x")]
        monkeypatch.setattr(sys, "argv", ["image", *words, "--set", "data.crop=192", f"model.quantizer={section}"])
        with pytest.raises(SystemExit) as caught:
            image.main()
        assert caught.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_start_sets_tables_of_every_kind() -> None:
    """K-means of latents, level by level."""
    model = AudioGRVQ(AudioGRVQConfig((8, 12), (1, 1), (12, 8), (1, 1), 6, 1, (8,), {"kind": "pvq", "of": "fullvq",
                      "codebook_sizes": [16, 16]}))  # fmt: skip
    rows = torch.randn(64, 6)
    model.quantizer.start(rows, lambda rows, n: rows[:n])
    for group, own in zip(model.quantizer.parts, rows.split(3, 1), strict=True):
        assert isinstance(group, FullVQ)
        assert torch.equal(group.codebook, own[:16])
    assert VideoGrid(VideoGridConfig(quantizer={"kind": "fsq", "levels": [3, 3]})).config.dim == 2
