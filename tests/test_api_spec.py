"""Every tokenizer says in one way what its tokens mean, which tokens are its own, and what its codewords are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.audio.grvq import AudioGRVQ
from tokodec.tokenizers.folders import released_models
from tokodec.tokenizers.image.sequence import ImageSequence, ImageSequenceConfig
from tokodec.tokenizers.tokens import Tokens

# Folder in golden/: shape of a signal, arguments of encode(), what the spec says beside the size.
KINDS: dict[str, tuple[tuple[int, ...], dict[str, Any], dict[str, Any]]] = {
    "tiny": ((1, 3, 20, 40), {}, {}),
    "photo": ((1, 3, 20, 40), {"quality": 30.0}, {"quality": 30.0}),
    "sequence": ((1, 3, 20, 40), {}, {}),
    "sound": ((1, 1, 700), {}, {"channels": "mono"}),
    "video": ((1, 3, 6, 20, 40), {"rate": 25.0}, {"sample_rate": 25.0}),
}


def make(golden: Path, kind: str) -> tuple[Tokenizer, Tensor, Tokens]:
    shape, arguments, _ = KINDS[kind]
    model: Any = Tokenizer.from_pretrained(golden / kind)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return model, x, model.encode(x, **arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_spec_and_accepts(golden: Path, kind: str) -> None:
    model, x, tokens = make(golden, kind)
    about = KINDS[kind][2]
    assert tokens.spec == model.spec(tuple(x.shape[2:]), **about)
    assert model.accepts(tokens.spec)
    model.check_tokens(tokens)
    for wrong in (
        {"model": "another"},
        {"weights_hash": "0" * 16},
        {"modality": "smell"},
        {"codebook_sizes": tokens.spec.codebook_sizes[:-1]},
        {"strides": tuple(s + 1 for s in tokens.spec.strides)},
        {"size": (*tokens.spec.size, 1)},
        {"channels": "cmyk"},
        {"sample_rate": float("nan")},
        {"sample_rate": "24000"},
        {"quality": 101.0},
        {"quality": "30"},
        {"first": 2},
    ):
        assert not model.accepts(dataclasses.replace(tokens.spec, **wrong)), wrong


@pytest.mark.parametrize("kind", KINDS)
def test_check_tokens_compares_all_that_a_spec_says(golden: Path, kind: str) -> None:
    """Codes of the right shape with another meaning are refused by decode()."""
    model, _, tokens = make(golden, kind)
    sizes = tuple(n + 1 for n in tokens.spec.codebook_sizes)
    for wrong in ({"codebook_sizes": sizes}, {"channels": "bgr"}, {"modality": "smell"}):
        with pytest.raises(ValueError, match=f"do not say what {model.name} makes: .*{next(iter(wrong))}"):
            model.decode(Tokens(tokens.codes, dataclasses.replace(tokens.spec, **wrong)))
    with pytest.raises(ValueError, match="given to"):
        model.decode(Tokens(tokens.codes, dataclasses.replace(tokens.spec, weights_hash="")))


@pytest.mark.parametrize("kind", KINDS)
def test_spec_refuses(golden: Path, kind: str) -> None:
    model = Tokenizer.from_pretrained(golden / kind)
    about = KINDS[kind][2]
    size = (32,) * len(model.strides)
    for wrong in ({"colour": 1}, {"channels": "cmyk"}, {"quality": 101.0}, {"sample_rate": -1.0}):
        with pytest.raises(ValueError, match=r"differ in|channels of|is 0 to 100|a second"):
            model.spec(size, **{**about, **wrong})
    for bad in ((*size, 1), (-1, *size[1:])):
        with pytest.raises(ValueError, match="lengths"):
            model.spec(bad, **about)


def test_channels_of_sounds(golden: Path) -> None:
    model = AudioGRVQ.from_pretrained(golden / "sound")
    for channels in ("mono", "mid-side", "separate"):
        spec = model.spec((9,), channels=channels)
        assert spec.channels == channels
        assert spec.sample_rate == 24000
        assert model.accepts(spec)


@pytest.mark.parametrize("kind", KINDS)
def test_codewords(golden: Path, kind: str) -> None:
    """Latents are sums of the rows that codes name."""
    model, _, tokens = make(golden, kind)
    words = model.codewords()
    if kind == "photo":
        assert words is None
        return
    assert words is not None
    assert tuple(len(table) for table in words) == model.codebook_sizes
    assert all(table.dtype == np.float32 for table in words)
    quantizer: Any = model.quantizer
    groups = getattr(model.config, "groups", 1)
    rows = [table[own.numpy()] for table, own in zip(words, tokens.codes.unbind(1), strict=False)]  # [B, *grid, D]
    if kind == "sequence":
        z_q = quantizer.decode(tokens.codes.flatten(2)[0].reshape(1, 1, -1))[0].T.detach().numpy()
        np.testing.assert_array_equal(np.concatenate([row.reshape(-1, row.shape[-1]) for row in rows]), z_q)
        return
    z_q = np.concatenate([sum(rows[g::groups]) for g in range(groups)], -1)
    np.testing.assert_allclose(np.moveaxis(z_q, -1, 1), quantizer.decode(tokens.codes).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("codes", ["lfq", "bsq"])
def test_codewords_of_binary_codes(codes: Any) -> None:
    config = ImageSequenceConfig(
        width=8, heads=2, analysis_blocks=1, synthesis_blocks=1, tokens=3, codes=codes, codebook_size=16, smooth=4
    )
    words = ImageSequence(config).codewords() or []
    assert [table.shape for table in words] == [(16, 4)] * 3
    assert len(np.unique(words[0], axis=0)) == 16


def test_all_releases_have_what_a_spec_needs() -> None:
    assert released_models()
    for name in released_models():
        model = Tokenizer.from_pretrained(name)
        about = {"quality": 50.0} if "quality" in model.varies else {}
        spec = model.spec(model.strides, **about)
        assert model.accepts(spec)
        assert spec.weights_hash == model.weights_hash
