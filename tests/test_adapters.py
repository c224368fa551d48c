"""Tokenizers of others give the codes and the output of the original module, whatever shape, type and place x has."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import tokodec
from tokodec.tests.adapted_models import (
    CODECS,
    Encoding,
    saved,
    signals,
    tiny_adapted,
    tiny_codec,
    tiny_nets,
    tiny_quantizer,
    tiny_vqgan,
)
from tokodec.tokenizers.adapters.vqgan import VQGAN

QUANTIZERS = ("VectorQuantize", "ResidualVQ", "GroupedResidualVQ", "SimVQ", "FSQ", "LFQ", "ResidualFSQ")
NESTED = ("ResidualVQ", "GroupedResidualVQ", "ResidualFSQ")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {kind: saved(tiny_codec(kind), home / f"tiny-{kind}") for kind in CODECS}


@pytest.fixture(scope="module")
def codecs(folders: dict[str, Path]) -> dict[str, Any]:
    return {kind: tokodec.load(folder, "cpu") for kind, folder in folders.items()}


@torch.no_grad()
def original(kind: str, model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and samples as somebody gets them who uses the model of `transformers` alone."""
    if kind == "encodec":
        made = model.encode(x, bandwidth=model.config.target_bandwidths[-1])
        return made.audio_codes[0], model.decode(made.audio_codes, made.audio_scales).audio_values
    if kind == "dac":
        codes = model.encode(F.pad(x, (0, -x.shape[2] % model.config.hop_length))).audio_codes  # as its extractor pads
        return codes, model.decode(audio_codes=codes).audio_values[:, None]
    codes = model.encode(x).audio_codes
    return codes, model.decode(codes).audio_values


def far(x: Tensor, y: Tensor) -> float:
    """The largest difference, as a part of the largest value of ``y``."""
    return float((x - y).abs().max() / y.abs().max())


# ------------------------------------------------------------------------------------------------------ transformers


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("n", [1, 319, 320, 5000])
def test_a_codec_is_the_original(codecs: dict[str, Any], kind: str, n: int) -> None:
    model, x = codecs[kind], torch.randn(2, 1, n, generator=torch.Generator().manual_seed(n)) * 0.3
    codes, x_hat = original(kind, tiny_codec(kind), x)
    tokens = model.encode(x)
    assert torch.equal(tokens.codes, codes)
    assert tokens.spec.size == (n,)
    decoded = model.decode(tokens)
    assert decoded.shape == x.shape
    held = min(n, x_hat.shape[2])  # DAC makes a few samples less where a stride is odd
    assert far(decoded[..., :held], x_hat[..., :held]) < 2e-6
    assert not decoded[..., held:].any()


@pytest.mark.parametrize("kind", CODECS)
def test_fewer_levels_are_those_of_the_original(codecs: dict[str, Any], kind: str) -> None:
    model, net, x = codecs[kind], tiny_codec(kind), signals("audio") * 0.5
    tokens = model.encode(x)
    with torch.no_grad():
        if kind == "encodec":
            x_hat = net.decode(tokens.codes[None, :, :2], [None]).audio_values
        elif kind == "dac":
            x_hat = net.decode(audio_codes=tokens.codes[:, :2]).audio_values[:, None]
        else:
            x_hat = net.decode(tokens.codes[:, :2]).audio_values
    decoded = model.decode(tokens.levels(2))[..., : x_hat.shape[2]]
    assert far(decoded, x_hat[..., : decoded.shape[2]]) < 2e-6
    assert far(decoded, model.decode(tokens)[..., : x_hat.shape[2]]) > 1e-4
    assert torch.equal(model.encode(x, levels=2).codes, tokens.codes[:, :2])
    errors = model.level_errors(model.whole_frames(x), tokens.codes)
    assert errors.shape == tokens.codes.shape
    absent = torch.cat([tokens.codes[:, :2], torch.full_like(tokens.codes[:, 2:], -1)], 1)
    assert torch.equal(model.decode(tokodec.Tokens(absent, tokens.spec)), model.decode(tokens.levels(2)))


@pytest.mark.parametrize("kind", CODECS)
def test_what_a_codec_says_of_itself(codecs: dict[str, Any], folders: dict[str, Path], kind: str) -> None:
    from tokodec.entropy.packed import file_hash

    model = codecs[kind]
    assert model.name == f"tiny-{kind}"
    assert model.weights_hash == file_hash(folders[kind] / "model.safetensors")
    assert (model.hertz, model.stride) == ({"dac": 16000}.get(kind, 24000), 320)
    assert [len(table) for table in model.codewords()] == list(model.codebook_sizes)
    assert model.accepts(model.encode(torch.zeros(1, 1, 320)).spec)


@pytest.mark.parametrize("kind", CODECS)
def test_blocks_are_the_whole(codecs: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a second, with context: all codes, and samples to 1e-4 of the loudest; context is what matters."""
    model = codecs[kind]
    x = torch.randn(2, 1, 4 * model.hertz + 77, generator=torch.Generator().manual_seed(0)) * 0.3
    whole = model.encode(x)
    monkeypatch.setattr(type(model), "block_seconds", 1)
    monkeypatch.setattr(model, "context", round(model.hertz / model.stride))

    @torch.no_grad()
    def blocks() -> tuple[float, float]:
        encoder, decoder = model.encoder(), model.decoder(75)
        codes = [encoder.code(part).codes for part in x.split(5000, dim=2)] + [encoder.code_rest().codes]
        made = [decoder.push(part) for part in whole.codes.split(40, dim=2)] + [decoder.finish()]
        x_hat, wanted = torch.cat(made, 2)[..., : x.shape[2]], model.decode(whole)
        equal = (torch.cat(codes, 2) == whole.codes).double().mean()
        return float(equal), float((x_hat - wanted).abs().max() / wanted.abs().max())

    equal, error = blocks()
    assert equal > 0.999
    assert error < 1e-4
    monkeypatch.setattr(model, "context", 0)
    assert blocks()[0] < equal


def test_mimi_moves_the_codebooks_that_it_keeps(codecs: dict[str, Any]) -> None:
    """Its module keeps codewords from the first use on; a copy that is cast has others."""
    model = copy.deepcopy(codecs["mimi"])
    model.encode(torch.zeros(1, 1, 640))
    level = model.levels[0].codebook
    assert level.embed.dtype == torch.float32
    assert model.double().levels[0].codebook.embed.dtype == torch.float64


# -------------------------------------------------------------------------------------------------------- diffusers


@pytest.mark.parametrize("size", [(24, 36), (21, 30)])
def test_a_vqgan_is_the_original(size: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    net = tiny_vqgan()
    model: Any = tokodec.load(saved(net, tmp_path / "vqgan"), "cpu")
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    tokens = model.encode(x)
    padded = F.pad(x, (0, -size[1] % 4, 0, -size[0] % 4), mode="replicate")
    with torch.no_grad():
        z = net.encode(2 * padded - 1).latents
        z_q, _, (_, _, indices) = net.quantize(z)
        x_hat = (net.decode(z).sample + 1) / 2
    assert torch.equal(tokens.codes.flatten(), indices)
    assert tokens.codes.shape == (2, 1, -(-size[0] // 4), -(-size[1] // 4))
    assert torch.allclose(model.decode(tokens), x_hat[..., : size[0], : size[1]], rtol=0, atol=2e-5)
    with torch.no_grad():
        exact = (net.decode(z_q, force_not_quantize=True).sample + 1) / 2
    assert torch.allclose(model.decode(tokens), exact[..., : size[0], : size[1]], rtol=0, atol=2e-5)


# --------------------------------------------------------------------------------------------- vector-quantize-pytorch


@pytest.mark.parametrize("kind", QUANTIZERS)
@pytest.mark.parametrize("modality", ["image", "audio", "video"])
def test_an_autoencoder_is_the_original(modality: str, kind: str) -> None:
    model, x = tiny_adapted(modality, kind), signals(modality)
    tokens = model.encode(x)
    grid = tokens.spec.grid
    span = [n - have for n, have in zip(tokens.spec.span(grid), x.shape[2:], strict=True)]
    pads = [part for n in reversed(span) for part in (0, n)]
    padded = F.pad(x, pads, mode="constant" if modality == "audio" else "replicate")
    quantizer = model.quantizer.eval()
    with torch.no_grad():
        z_q, indices = quantizer(model.analysis(padded).flatten(2).mT)[:2]  # rows [B, n, D]
        x_hat = model.synthesis(z_q.mT.unflatten(2, grid))
    if kind == "GroupedResidualVQ":
        codes = indices.permute(1, 3, 0, 2).flatten(1, 2)  # [G, B, n, K] -> [B, K*G, n]
    else:
        codes = indices.mT if indices.ndim == 3 else indices[:, None]
    assert torch.equal(tokens.codes, codes.unflatten(2, grid).long())
    x_hat = x_hat[(..., *(slice(n) for n in x.shape[2:]))]
    x_hat = x_hat.clamp(0, 1) if modality == "video" else x_hat
    assert torch.allclose(model.decode(tokens), x_hat, rtol=0, atol=1e-6)


LAYOUTS: dict[str, dict[str, Any]] = {
    "VectorQuantize": {"accept_image_fmap": True},
    "SimVQ": {"channel_first": True},
    "FSQ": {"channel_first": True},
    "LFQ": {"channel_first": True},
    "ResidualFSQ": {"is_channel_first": True},
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_layout_of_a_quantizer_does_not_matter(kind: str) -> None:
    """It gets what it was made for when others call it, too: the adapter leaves it as it was."""
    plain, other = tiny_adapted("image", kind), tiny_adapted("image", kind, **LAYOUTS[kind])
    x = signals("image")
    tokens = other.encode(x)
    assert torch.equal(tokens.codes, plain.encode(x).codes)
    assert torch.equal(other.decode(tokens), plain.decode(plain.encode(x)))
    z = other.analysis(F.pad(x, (0, 4, 0, 3), mode="replicate"))
    with torch.no_grad():
        indices = other.quantizer.eval()(z)[1]
    assert torch.equal(indices.flatten(), tokens.codes.movedim(1, 1 if kind == "ResidualFSQ" else -1).flatten())


@pytest.mark.parametrize("kind", NESTED)
def test_levels_are_nested(kind: str) -> None:
    """A prefix of the codes is what the quantizer itself gives for a prefix; groups take turns."""
    model, x = tiny_adapted("image", kind), signals("image")
    tokens = model.encode(x)
    n = len(model.codebook_sizes)
    z = model.books.decode(tokens.codes)
    tables = [torch.from_numpy(table) for table in model.codewords()]
    vectors = [table[own] for table, own in zip(tables, tokens.codes.unbind(1), strict=True)]  # [B, h, w, d]
    groups = 2 if kind == "GroupedResidualVQ" else 1
    for k in range(1, n + 1):
        parts = [sum(vectors[g:k:groups], torch.zeros_like(vectors[0])) for g in range(groups)]
        total = torch.cat(parts, -1)
        if kind == "ResidualFSQ":
            total = model.quantizer.project_out(total)
        assert torch.allclose(model.books.decode(tokens.codes[:, :k]), total.movedim(-1, 1), atol=1e-6)
    assert torch.allclose(z, model.books.decode(tokens.codes[:, :n]))


def test_heads_stand_side_by_side() -> None:
    """Levels of their own; a cell that lacks one is zero."""
    model = tiny_adapted("image", "VectorQuantize", heads=2, codebook_dim=4, separate_codebook_per_head=True)
    tokens = model.encode(signals("image"))
    assert tokens.codes.shape[1] == 2
    assert [table.shape for table in model.codewords()] == [(32, 4), (32, 4)]
    assert not model.books.decode(tokens.codes[:, :1]).any()
    assert model.books.decode(tokens.codes).any()


def test_the_range_of_pixels() -> None:
    encoder, decoder, strides = tiny_nets("image")
    quantizer = tiny_quantizer("VectorQuantize")
    x = signals("image")[..., :40, :56]
    wide = tokodec.adapt(encoder, quantizer, decoder, modality="image", strides=strides, pixels=(-1, 1))
    plain = tokodec.adapt(encoder, quantizer, decoder, modality="image", strides=strides)
    codes = wide.encode_codes(x)
    assert torch.equal(codes, plain.encode_codes(2 * x - 1))
    assert torch.allclose(wide.decode_codes(codes), (plain.decode_codes(codes) + 1) / 2, atol=1e-6)


@pytest.mark.parametrize("kind", QUANTIZERS)
def test_training_goes_through_the_quantizer(kind: str) -> None:
    """Gradients reach both nets; encoding in the middle of it changes nothing that is learned."""
    model = tiny_adapted("image", kind).train()
    x = signals("image")[..., :40, :56]
    out = model(x)
    (F.mse_loss(out.x_hat, x) + out.losses["auxiliary"]).backward()
    assert model.analysis.weight.grad.abs().sum() > 0
    assert model.synthesis.weight.grad.abs().sum() > 0
    assert out.codes.shape == (2, len(model.codebook_sizes), 5, 7)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    held = model.weights_hash
    codes = model.encode(x).codes
    assert model.quantizer.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(codes, model.eval().encode(x).codes)
    assert model.weights_hash == held
    with torch.no_grad():
        model.analysis.weight += 1
    assert model.weights_hash not in ("", held)


def test_weights_are_kept_to_the_last_bit(tmp_path: Path) -> None:
    model, x = tiny_adapted("image", "ResidualVQ"), signals("image")
    tokens = model.encode(x)
    assert model.save_pretrained(tmp_path / "mine") == model.weights_hash == tokens.spec.weights_hash
    encoder, decoder, strides = tiny_nets("image")
    more: dict[str, Any] = {"modality": "image", "strides": strides, "weights_from": tmp_path / "mine"}
    again = tokodec.adapt(encoder, tiny_quantizer("ResidualVQ"), decoder, **more)
    assert torch.equal(again.encode(x).codes, tokens.codes)
    assert torch.equal(again.decode(tokens), model.decode(tokens))
    with pytest.raises(ValueError, match="holds weights of other modules"):
        tokodec.adapt(encoder, tiny_quantizer("SimVQ"), decoder, **more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"modality": "smell"}, "a modality is one of"),
        ({"modality": "audio"}, "sounds have a sample_rate"),
        ({"sample_rate": 16000.0}, "sounds have a sample_rate"),
        ({"quantizer": torch.nn.Identity()}, "a quantizer is one of ResidualVQ"),
    ],
)
def test_what_does_not_fit(more: dict[str, Any], message: str) -> None:
    encoder, decoder, strides = tiny_nets("image")
    given: dict[str, Any] = {"quantizer": tiny_quantizer("FSQ"), "modality": "image", "strides": strides} | more
    with pytest.raises(ValueError, match=message):
        tokodec.adapt(encoder, given.pop("quantizer"), decoder, **given)


# ------------------------------------------------------------------------------------------- what users reported


def every(codecs: dict[str, Any]) -> dict[str, Any]:
    adapted = {kind: tiny_adapted("image", kind) for kind in QUANTIZERS}
    vqgan = VQGAN(tiny_vqgan())
    return {**codecs, **adapted, "vqgan": vqgan, "sounds": tiny_adapted("audio", "ResidualVQ")}


def test_a_batch_is_its_members(codecs: dict[str, Any]) -> None:
    for name, model in every(codecs).items():
        x = signals(model.modality, 3)
        tokens = model.encode(x)
        x_hat = model.decode(tokens)
        for i in range(3):
            one = model.encode(x[i : i + 1])
            assert torch.equal(one.codes, tokens.codes[i : i + 1]), name
            assert torch.allclose(model.decode(one), x_hat[i : i + 1], rtol=0, atol=1e-5), name


@pytest.mark.parametrize("kind", ["encodec", "mimi"])
def test_padding_changes_no_codes_of_causal_codecs(codecs: dict[str, Any], kind: str) -> None:
    model, x = codecs[kind], signals("audio")
    whole = x.shape[2] // model.stride
    codes = model.encode(x[..., : whole * model.stride]).codes
    assert torch.equal(model.encode(F.pad(x, (0, 5000))).codes[..., :whole], codes)


@pytest.mark.parametrize("kind", ["dac", "sounds"])
def test_padding_changes_codes_only_within_the_context(codecs: dict[str, Any], kind: str) -> None:
    """Of nets that look ahead."""
    model = every(codecs)[kind]
    n = 2 * model.context * model.stride
    x = torch.randn(1, 1, n, generator=torch.Generator().manual_seed(0)) * 0.3
    codes = model.encode(x).codes
    padded = model.encode(F.pad(x, (0, 5000))).codes[..., : codes.shape[2]]
    assert torch.equal(padded[..., : -model.context], codes[..., : -model.context])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_the_same_numbers_in_float32(codecs: dict[str, Any], dtype: torch.dtype) -> None:
    for name, model in every(codecs).items():
        x = signals(model.modality).to(dtype)
        tokens = model.encode(x)
        assert torch.equal(tokens.codes, model.encode(x.float()).codes), name
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(model.encode(x).codes, tokens.codes), name
            assert torch.equal(model.decode(tokens), model.decode(tokens)), name


def test_copies_are_the_same_and_casts_are_refused(codecs: dict[str, Any]) -> None:
    for name, model in every(codecs).items():
        x = signals(model.modality)
        tokens = model.encode(x)
        other = copy.deepcopy(model).to("cpu")
        assert other.weights_hash == model.weights_hash, name
        assert torch.equal(other.encode(x).codes, tokens.codes), name
        assert torch.equal(other.decode(tokens), model.decode(tokens)), name
        if any(True for _ in model.parameters()):
            with pytest.raises(ValueError, match="float32"):
                other.half().decode(tokens)


@pytest.mark.parametrize("kind", [*CODECS, "ResidualVQ"])
def test_workers_that_are_spawned(codecs: dict[str, Any], kind: str) -> None:
    model = every(codecs)[kind]
    x = signals(model.modality, 2)
    loader = DataLoader(TensorDataset(x), 2, collate_fn=Encoding(model), num_workers=1, multiprocessing_context="spawn")
    assert torch.equal(next(iter(loader)), model.encode(x).codes)
