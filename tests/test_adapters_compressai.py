"""Models of CompressAI: the symbols and the output of the original, by tables that are the same everywhere.

CompressAI itself wants another NumPy than the rest of the tests, so a module with its parts stands for it; where the
package is there, its own model goes the same way.
"""

import copy
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import tokodec
from tokodec.codec.cli import run
from tokodec.codec.container.read import read_tok
from tokodec.codec.datasets import TokenDataset
from tokodec.entropy.factorized import SPARE, FactorizedPrior, spread_table
from tokodec.tests import adapted_models
from tokodec.tests.adapted_models import signals, tiny_factorized


def real() -> Any:
    """CompressAI's own, small, with random weights whose latents exceed their tables here and there."""
    models = pytest.importorskip("compressai.models")
    torch.manual_seed(0)
    net = models.FactorizedPrior(16, 70).eval()
    with torch.no_grad():
        net.g_a[6].weight *= 600
    net.update()
    return net


MODELS = [tiny_factorized, real]


@pytest.fixture(params=MODELS, ids=["parts", "compressai"])
def net(request: pytest.FixtureRequest) -> Any:
    return request.param()


def symbols_of(net: Any, x: Tensor) -> Tensor:
    """What `compress` gives to the coder of the original."""
    y, bottleneck = net.g_a(x), net.entropy_bottleneck
    if hasattr(bottleneck, "symbols"):
        return bottleneck.symbols(y)
    medians = bottleneck._extend_ndims(bottleneck._get_medians(), 2)
    return bottleneck.quantize(y, "symbols", medians.expand(len(y), -1, -1, -1))


@torch.no_grad()
def test_symbols_and_output_are_those_of_the_original(net: Any) -> None:
    model = tokodec.adapt_compressai(net)
    x = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    tokens = model.encode(x)
    symbols = symbols_of(net, x)
    assert torch.equal(tokens.codes + net.entropy_bottleneck._offset.view(-1, 1, 1) - SPARE, symbols)
    low = net.entropy_bottleneck._offset.view(-1, 1, 1)
    assert (symbols < low).any()  # outside of the table
    assert (symbols == low + 1).any()
    if hasattr(net, "decompress"):
        wanted = net.decompress(**{key: net.compress(x)[key] for key in ("strings", "shape")})["x_hat"]
    else:
        wanted = net.g_s(symbols + net.entropy_bottleneck.quantiles[:, :, 1:2]).clamp(0, 1)
    assert torch.equal(model.decode(tokens), wanted)


def test_files_of_pictures(net: Any, tmp_path: Path) -> None:
    """One layer with all latents; its bytes are what the tables say; an odd size comes back."""
    model = tokodec.adapt_compressai(net, "my-factorized")
    pixels = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    encoded = tokodec.encode_file(tmp_path / "a.png", tmp_path / "a.tok", model=model)
    header = read_tok(encoded.data).picture
    assert (header.model, header.prior, header.layers, header.stride) == ("my-factorized", 6, 1, 16)
    tokens = tokodec.tokenize_file(tmp_path / "a.png", model=model).tokens
    assert torch.equal(tokodec.tokenize_file(tmp_path / "a.tok", model=model).tokens.codes, tokens.codes)
    decoded = tokodec.decode_file(tmp_path / "a.tok", model=model)
    assert decoded.levels == 1
    assert not decoded.problems
    assert np.array_equal(decoded.picture.pixels, model.decode_picture(tokens).numpy())
    assert decoded.picture.pixels.shape == pixels.shape
    bits = model.entropy.bits(tokens.codes[0].numpy()).sum()
    assert len(encoded.data) == pytest.approx(bits / 8, abs=250)
    with pytest.raises(tokodec.TokodecError, match="all 70 levels, got 3"):
        tokodec.detokenize_file(dump(tokens.levels(3), tmp_path), tmp_path / "b.tok", model=model)
    with pytest.raises(tokodec.TokodecError, match="number of levels, not for my-factorized"):
        tokodec.encode_file(tmp_path / "a.png", model=model, prior="file")
    dataset = TokenDataset(tmp_path / "a.png", model=model)
    assert torch.equal(dataset[0], tokens.codes[0])


def dump(tokens: tokodec.Tokens, folder: Path) -> Path:
    from tokodec.codec.corpus.token_files import dump_tokens

    path = folder / "dumped.npz"
    path.write_bytes(dump_tokens(tokens, ".npz"))
    return path


def test_a_lost_segment_is_what_is_probable(tmp_path: Path) -> None:
    """The others are as they were."""
    model = tokodec.adapt_compressai(tiny_factorized())
    Image.fromarray(np.full((32, 1040, 3), 99, np.uint8)).save(tmp_path / "a.png")
    encoded = tokodec.encode_file(tmp_path / "a.png", model=model)
    tok = read_tok(encoded.data)
    damaged = bytearray(encoded.data)
    damaged[tok.places[b"LAYR", 0, 1] + 20] ^= 1
    (tmp_path / "damaged.tok").write_bytes(damaged)
    decoded = tokodec.decode_file(tmp_path / "damaged.tok", model=model)
    assert "segment 1: lost" in decoded.problems[-1]
    (tmp_path / "a.tok").write_bytes(encoded.data)
    whole = tokodec.decode_file(tmp_path / "a.tok", model=model).picture.pixels
    assert np.array_equal(decoded.picture.pixels[:, :1024], whole[:, :1024])
    likely = np.stack([table.argmax() for table in model.entropy.tables])
    codes = torch.from_numpy(likely)[None, :, None, None].expand(-1, -1, 2, 1)
    wanted = model.decode(tokodec.Tokens(codes.contiguous(), model.spec((32, 16))))[0]
    assert np.array_equal(decoded.picture.pixels[:, 1024:], (wanted * 255).round().byte().permute(1, 2, 0).numpy())


def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its modules are those of the package, its tables come from the file."""
    model, x = tokodec.adapt_compressai(tiny_factorized(), "mine"), signals("image")
    tokens = model.encode(x)
    assert model.save_pretrained(tmp_path / "mine") == model.weights_hash == tokens.spec.weights_hash
    package = types.ModuleType("compressai.models")
    package.FactorizedPrior = adapted_models.FactorizedPrior  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "compressai.models", package)
    again: Any = tokodec.load(tmp_path / "mine", "cpu")
    assert torch.equal(again.encode(x).codes, tokens.codes)
    assert torch.equal(again.decode(tokens), model.decode(tokens))
    assert again.entropy.hash == model.entropy.hash
    other = copy.deepcopy(model)
    assert torch.equal(other.decode(tokens), model.decode(tokens))
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "a.png")
    words = ["encode", tmp_path / "a.png", "-m", tmp_path / "mine", "-o", tmp_path / "a.tok", "--quiet"]
    assert run([str(word) for word in words]) == 0
    assert run(["prior", str(tmp_path / "a.png"), "-m", str(tmp_path / "mine")]) == 2
    assert "the entropy model of mine is part of its weights" in capsys.readouterr().err
    state = model.state_dict()
    state["net.entropy_bottleneck._cdf_length"] = state["net.entropy_bottleneck._cdf_length"][:5]
    model.load_state_dict(state)
    with pytest.raises(ValueError, match="has no tables of 70 latents"):
        _ = model.codebook_sizes


def test_a_batch_is_its_members_and_copies_are_the_same(net: Any) -> None:
    model, x = tokodec.adapt_compressai(net), signals("image", 3)
    tokens = model.encode(x)
    for i in range(3):
        assert torch.equal(model.encode(x[i : i + 1]).codes, tokens.codes[i : i + 1])
    assert torch.equal(model.encode(x.half()).codes, model.encode(x.half().float()).codes)
    fewer = torch.cat([tokens.codes[:, :3], torch.full_like(tokens.codes[:, 3:], -1)], 1)
    assert torch.equal(model.decode(tokodec.Tokens(fewer, tokens.spec)), model.decode(tokens.levels(3)))


class GaussianConditional(nn.Module):
    pass


class ScaleHyperprior(adapted_models.FactorizedPrior):
    def __init__(self) -> None:
        super().__init__(8, 12)
        self.gaussian_conditional = GaussianConditional()


class NoTables(nn.Module):
    g_a = g_s = N = M = None


def hyperprior(name: str) -> Any:
    models = pytest.importorskip("compressai.models")
    return getattr(models, name)(8, 12)


HYPERPRIORS = ("ScaleHyperprior", "MeanScaleHyperprior", "JointAutoregressiveHierarchicalPriors")


@pytest.mark.parametrize("name", ["", *HYPERPRIORS])
def test_tables_out_of_networks_are_refused(name: str) -> None:
    net = hyperprior(name) if name else ScaleHyperprior()
    with pytest.raises(ValueError, match=f"{type(net).__name__} takes the tables of its gaussian_conditional from the"):
        tokodec.adapt_compressai(net)


def test_what_is_no_such_model() -> None:
    with pytest.raises(ValueError, match="NoTables is no FactorizedPrior of CompressAI"):
        tokodec.adapt_compressai(NoTables())
    with pytest.raises(ValueError, match=r"FactorizedPrior has no tables yet: call its update\(\) first"):
        tokodec.adapt_compressai(adapted_models.FactorizedPrior(8, 12))
    model = tokodec.adapt_compressai(tiny_factorized())
    with torch.no_grad():
        model.net.g_a[2].bias[7] += 9999
    with pytest.raises(ValueError, match="a latent of channel 7 is more than 1024 beyond its table"):
        model.encode(signals("image"))


def test_tables_hold_the_frequencies_and_all_other_values() -> None:
    """As CompressAI's, to a part in 2000; a value outside has what it leaves to all of them."""
    q = np.array([1, 40000, 25000, 535])
    table = spread_table(q)
    assert table.sum() == 1 << 24
    assert table.shape == (3 + 2 * SPARE,)
    assert np.allclose(table[SPARE : SPARE + 3], q[:3] * 256, rtol=5e-4, atol=2)
    assert len(set(table[[*range(SPARE), *range(SPARE + 3, 3 + 2 * SPARE)]])) <= 2
    prior = FactorizedPrior([table, spread_table(q[1:])])
    codes = np.random.default_rng(0).integers(0, 2 + 2 * SPARE, (2, 5, 7))
    payloads = prior.compress(codes)
    assert len(payloads) == 1
    assert np.array_equal(prior.decompress(payloads, (5, 7)), codes)
    for wrong in ([5], [0, 5], [[5, 5]]):
        with pytest.raises(ValueError, match="a table is frequencies of 1 or more"):
            spread_table(np.array(wrong))
    with pytest.raises(ValueError, match="one payload holds all 2 levels, got 1"):
        prior.compress(codes[:1])
    with pytest.raises(ValueError, match="all levels are in one payload, got 2"):
        prior.decompress(payloads * 2, (5, 7))
