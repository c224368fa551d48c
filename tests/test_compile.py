"""Codes and signals as tensor functions for torch.compile and torch.export, and gradients through the whole."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokodec.tokenizers.api import Output, Tokenizer
from tokodec.tokenizers.quantize import VQ, GroupResidualQuantizer, SimVQ
from tokodec.tokenizers.quantize.beam import beam_codewords

SHAPES = {"tiny": (1, 3, 36, 20), "sound": (2, 1, 700), "video": (1, 3, 3, 16, 20), "sequence": (1, 3, 36, 20)}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model_of(golden: Path, kind: str) -> Any:
    return Tokenizer.from_pretrained(golden / kind)


def signal(kind: str) -> Tensor:
    return torch.rand(SHAPES[kind])


class Function(nn.Module):
    """One function of a model as a module, which is what torch.export takes."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("kind", SHAPES)
def test_compiles_as_one_graph(golden: Path, kind: str) -> None:
    model, x = model_of(golden, kind), signal(kind)
    tokens = model.encode(x)
    encode = torch.compile(model.encode_codes, fullgraph=True, backend="eager")
    assert torch.equal(encode(x), tokens.codes)
    decode = torch.compile(model.decode_codes, fullgraph=True, backend="eager")
    assert torch.equal(decode(tokens.codes, tokens.spec.size), model.decode(tokens))


@pytest.mark.parametrize("kind", SHAPES)
def test_exports(golden: Path, kind: str) -> None:
    model, x = model_of(golden, kind), signal(kind)
    tokens = model.encode(x)
    size = tokens.spec.size
    with torch.no_grad():  # without, PyTorch cannot save it
        encode = torch.export.export(Function(model, model.encode_codes), (x,))
    assert torch.equal(encode.module()(x), tokens.codes)
    other = torch.rand_like(x)  # the values of the example are not in the graph
    assert torch.equal(encode.module()(other), model.encode(other).codes)
    decode = torch.export.export(Function(model, lambda codes: model.decode_codes(codes, size)), (tokens.codes,))
    assert torch.equal(decode.module()(tokens.codes), model.decode(tokens))
    if kind == "tiny":
        file = io.BytesIO()
        torch.export.save(encode, file)
        file.seek(0)
        assert torch.equal(torch.export.load(file).module()(x), tokens.codes)


def test_one_exported_graph_for_all_sizes(golden: Path) -> None:
    model = model_of(golden, "tiny")
    auto = torch.export.Dim.AUTO
    module, x = Function(model, model.encode_codes), torch.rand(2, 3, 36, 20)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},)).module()
    for size in ((3, 3, 50, 33), (2, 3, 70, 90)):  # of several cells along both axes, as the one it was traced with
        x = torch.rand(size)
        assert torch.equal(exported(x), model.encode(x).codes)


def test_compiled_code_is_not_moved_by_autocast(golden: Path) -> None:
    model, x = model_of(golden, "tiny"), signal("tiny")
    encode = torch.compile(model.encode_codes, fullgraph=True, backend="eager")
    expected = model.encode(x).codes
    assert torch.equal(encode(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode(x), expected)


@pytest.mark.parametrize("kind", SHAPES)
def test_the_rest_of_the_tensor_functions(golden: Path, kind: str) -> None:
    """A size is optional, fewer levels decode, and codes are not looked at in traced code alone."""
    model, x = model_of(golden, kind), signal(kind)
    tokens = model.encode(x)
    whole = model.decode_codes(tokens.codes)
    assert tuple(whole.shape[2:]) == tokens.spec.span(tokens.spec.grid)
    assert torch.equal(whole[(..., *(slice(n) for n in x.shape[2:]))], model.decode(tokens))
    assert torch.equal(model.decode_codes(tokens.codes[:, :1], tokens.spec.size), model.decode(tokens.levels(1)))
    assert torch.equal(model.encode_codes(x, 2), model.encode(x, 2).codes)
    with pytest.raises(ValueError, match="outside its codebook"):
        model.decode_codes(tokens.codes + 1000)


def test_beam_search_is_one_operator() -> None:
    z, codebooks = torch.randn(30, 4), [torch.randn(20, 4) for _ in range(3)]
    penalties = [None, torch.rand(20), None]

    def search(z: Tensor) -> Tensor:
        return beam_codewords(z, codebooks, 4, 2, penalties)

    expected = search(z)
    compiled = torch.compile(search, fullgraph=True, backend="eager", dynamic=True)
    assert torch.equal(compiled(z), expected)
    assert torch.equal(compiled(z[:7]), expected[:7])


# ---------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", SHAPES)
def test_forward(golden: Path, kind: str) -> None:
    model, x = model_of(golden, kind), signal(kind).requires_grad_()
    out = model(x)
    assert isinstance(out, Output)
    assert out.x_hat.shape == x.shape
    assert out.codes.shape == model.encode(x.detach()).codes.shape
    assert set(out.losses) == {"commitment", "codebook", "auxiliary"}
    assert all(loss.ndim == 0 for loss in out.losses.values())
    if kind != "sequence":  # whose windows fade into each other: not to the bit
        assert torch.allclose(out.x_hat.clamp(0, 1), model.decode_codes(out.codes, x.shape[2:]).clamp(0, 1), atol=1e-5)
    (gradient,) = torch.autograd.grad(out.x_hat.square().mean(), x, retain_graph=True)
    assert gradient.abs().sum() > 0  # through the choice of codes
    (out.x_hat.square().mean() + sum(out.losses.values())).backward()
    for name, p in model.named_parameters():
        if "synthesis.sharp" not in name:
            assert p.grad is not None, name


@pytest.mark.parametrize("kind", SHAPES)
def test_losses_go_down(golden: Path, kind: str) -> None:
    model, x = model_of(golden, kind).train(), signal(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2 if kind == "sound" else 2e-3)
    losses = []
    for _ in range(8):
        out = model(x)
        loss = (out.x_hat - x).square().mean() + 0.25 * out.losses["commitment"] + out.losses["codebook"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float((out.x_hat - x).detach().square().mean()))
    assert min(losses[-3:]) < 0.95 * losses[0]
    assert model.weights_hash == ""


def test_forward_compiles_in_training(golden: Path) -> None:
    model, x = model_of(golden, "tiny").train(), signal("tiny")
    out = torch.compile(model, fullgraph=True, backend="eager")(x)
    (out.x_hat.square().mean() + sum(out.losses.values())).backward()
    assert all(p.grad is not None for p in model.analysis.parameters())


def test_forward_follows_autocast_and_the_quantizer_does_not(golden: Path) -> None:
    model, x = model_of(golden, "tiny"), signal("tiny")
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.x_hat.dtype == torch.float32
    assert not torch.equal(out.x_hat, model(x).x_hat)
    assert out.losses["commitment"].dtype == torch.float32


def test_forward_of_the_other_synthesis(golden: Path) -> None:
    model, x = model_of(golden, "tiny"), signal("tiny")
    out = model(x, "sharp")
    assert torch.allclose(out.x_hat.clamp(0, 1), model.decode_codes(out.codes, (36, 20), "sharp"), atol=1e-5)
    with pytest.raises(ValueError, match="no synthesis net"):
        model(x, "blurred")


def test_what_has_no_quantizer_says_so(golden: Path) -> None:
    with pytest.raises(NotImplementedError, match="no quantizer of its own"):
        model_of(golden, "photo")(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("quantizer", [VQ(16, 4), GroupResidualQuantizer([[SimVQ(16, 2)] * 2] * 2)])
def test_quantizers_compile(quantizer: Any) -> None:
    z_e = torch.randn(2, 4, 30)
    quantizer.eval()
    codes = quantizer.encode(z_e)
    assert torch.equal(torch.compile(quantizer.encode, fullgraph=True, backend="eager")(z_e), codes)
    z_q = torch.compile(quantizer.decode, fullgraph=True, backend="eager")(codes)
    assert torch.equal(z_q, quantizer.decode(codes))
