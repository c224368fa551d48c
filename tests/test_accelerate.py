"""`tokodec.accelerate`: the indices of float64 on the module's own values, ties to the smaller, and nothing else."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokodec
from tokodec.tests.adapted_models import CODECS, signals, tiny_adapted, tiny_codec, tiny_quantizer
from tokodec.tokenizers.quantize import nearest as nearest_module

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("VectorQuantize", {}),
    "cosine": ("VectorQuantize", {"use_cosine_sim": True}),
    "learned": ("VectorQuantize", {"learnable_codebook": True, "ema_update": False}),
    "heads": ("VectorQuantize", {"heads": 2, "codebook_dim": 4}),
    "separate heads": ("VectorQuantize", {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True}),
    "k-means": ("VectorQuantize", {"kmeans_init": True}),
    "affine": ("VectorQuantize", {"affine_param": True}),
    "expiring": ("VectorQuantize", {"threshold_ema_dead_code": 0, "decay": 0.5}),
    "projected": ("VectorQuantize", {"codebook_dim": 3}),
    "residual": ("ResidualVQ", {}),
    "shared": ("ResidualVQ", {"shared_codebook": True}),
    "dropout": ("ResidualVQ", {"quantize_dropout": True}),
    "grouped": ("GroupedResidualVQ", {}),
    "SimVQ": ("SimVQ", {}),
    "SimVQ without rotation": ("SimVQ", {"rotation_trick": False}),
}


def rows(seed: int = 0) -> Tensor:
    return torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(seed))


def pair(name: str) -> tuple[Any, Any]:
    """A quantizer as it is, and the same one accelerated."""
    torch.manual_seed(0)
    kind, more = SETTINGS[name]
    plain = tiny_quantizer(kind, **more)
    return plain, tokodec.accelerate(copy.deepcopy(plain))


@pytest.mark.parametrize("name", SETTINGS)
def test_training_and_inference_are_those_of_the_original(name: str) -> None:
    """Three steps: indices and codewords, losses, gradients and running means, with a mask too."""
    plain, fast = pair(name)
    for step in range(3):
        made = []
        for module in (plain, fast):
            torch.manual_seed(step)
            x = rows(step).requires_grad_()
            module.train()
            z_q, indices, loss = module(x)
            (z_q.square().sum() + loss.sum()).backward()
            made.append((z_q, indices, loss, x.grad))
        assert torch.equal(made[0][1], made[1][1])
        for a, b in zip(made[0], made[1], strict=True):
            assert torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5)
        for (key, a), b in zip(plain.state_dict().items(), fast.state_dict().values(), strict=True):
            assert torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5), key
        for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None)
            assert a.grad is None or torch.allclose(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    for a, b in zip(plain.eval()(rows(9)), fast.eval()(rows(9)), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5)


def test_masked_rows_are_not_counted() -> None:
    plain, fast = pair("plain")
    mask = torch.arange(50)[None] < torch.tensor([50, 20, 1])[:, None]
    for a, b in zip(plain.train()(rows(), mask=mask), fast.train()(rows(), mask=mask), strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5)
    assert torch.allclose(plain._codebook.cluster_size, fast._codebook.cluster_size)
    assert torch.allclose(plain._codebook.embed_avg, fast._codebook.embed_avg, atol=1e-5)


def brute(z: Tensor, codebook: Tensor, dot: bool = False) -> Tensor:
    """The first of the best codewords in float64."""
    z, codebook = z.double(), codebook.double()
    if dot:
        return (z @ codebook.T).argmax(-1)
    return (z[:, None] - codebook[None]).square().sum(-1).argmin(-1)


@pytest.mark.parametrize("cosine", [False, True])
def test_indices_are_those_of_float64_and_ties_go_to_the_smaller(cosine: bool) -> None:
    """Codewords so near each other that float32 products cannot tell them apart, and some twice."""
    torch.manual_seed(0)
    module: Any = tiny_quantizer("VectorQuantize", use_cosine_sim=cosine).eval()
    book = 100 + torch.randn(16, 8) * 1e-3 if not cosine else F.normalize(1 + torch.randn(16, 8) * 1e-4, dim=-1)
    module._codebook.embed.copy_(torch.cat([book, book])[None])
    x = (100 + torch.randn(1, 200, 8) * 1e-3) if not cosine else 1 + torch.randn(1, 200, 8) * 1e-4
    given = module._codebook.transform_input(x[0])
    wanted = brute(given, module._codebook.embed[0], cosine)
    assert not torch.equal(module(x)[1][0], wanted)
    assert torch.equal(tokodec.accelerate(module)(x)[1][0], wanted)
    assert int(wanted.max()) < 16


@pytest.mark.parametrize("kind", CODECS)
def test_codecs_of_transformers(kind: str) -> None:
    """Codes of the whole model; the search alone against float64."""
    model = tiny_codec(kind)
    fast = tokodec.accelerate(copy.deepcopy(model))
    x = signals("audio")
    with torch.no_grad():
        if kind == "encodec":
            codes = [net.encode(x, bandwidth=3.0).audio_codes for net in (model, fast)]
        else:
            codes = [net.encode(F.pad(x, (0, -x.shape[2] % 320))).audio_codes for net in (model, fast)]
    assert torch.equal(*codes)
    book: Any = next(part for part in fast.modules() if type(part).__name__.startswith("Fast"))
    assert {name for name, _ in fast.named_modules()} == {name for name, _ in model.named_modules()}
    if kind == "dac":
        z = torch.randn(1, 4, 60)
        wanted = brute(z[0].mT, F.normalize(book.codebook.weight.double(), dim=-1), dot=True)
        assert torch.equal(book.decode_latents(z)[1][0], wanted)
    else:
        z = torch.randn(60, book.embed.shape[1])
        assert torch.equal(book.quantize(z), brute(z, book.embed))


def test_the_search_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every level searches by the one function, so kernels do it on a GPU."""
    from tokodec.tokenizers.adapters import fast_vq

    calls = []

    def search(*given: Any) -> Tensor:
        calls.append(given[0].shape)
        return nearest_module.nearest_codeword(*given)

    monkeypatch.setattr(fast_vq, "nearest_codeword", search)
    _, fast = pair("residual")
    fast.eval()(rows())
    assert calls == [(1, 150, 8)] * 3


def test_tokenizers_copies_and_other_processes() -> None:
    """An accelerated tokenizer has the codes and the hash of before."""
    model, x = tiny_adapted("image", "ResidualVQ"), signals("image")
    tokens = model.encode(x)
    fast = tokodec.accelerate(model)
    assert fast is model
    assert fast.weights_hash == tokens.spec.weights_hash
    for other in (fast, copy.deepcopy(fast), pickle_round_trip(fast)):
        assert torch.equal(other.encode(x).codes, tokens.codes)
        assert type(other.quantizer.layers[0]._codebook).__name__ == "FastCodebook"
    assert tokodec.accelerate(model) is model  # once more changes nothing


def pickle_round_trip(model: Any) -> Any:
    """As a spawned worker gets it."""
    from multiprocessing.reduction import ForkingPickler

    return ForkingPickler.loads(ForkingPickler.dumps(model))


def test_under_compile_and_autocast() -> None:
    """Autocast does not round what is compared."""
    plain, fast = pair("residual")
    wanted = plain.eval()(rows())[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast.eval()(rows())[1], wanted)
    compiled = torch.compile(fast.eval(), backend="eager")
    assert torch.equal(compiled(rows())[1], wanted)


def test_losses_of_all_distances_keep_them() -> None:
    torch.manual_seed(0)
    plain, fast = pair("plain")
    wanted = torch.randint(0, 32, (3, 50))
    assert torch.allclose(plain.eval()(rows(), indices=wanted)[1], fast.eval()(rows(), indices=wanted)[1])
    assert torch.equal(plain(rows())[1], fast(rows())[1])
    diverse = tiny_quantizer("VectorQuantize", codebook_diversity_loss_weight=0.1)
    with pytest.raises(ValueError, match="holds no codebook"):
        tokodec.accelerate(diverse)
    beams = tiny_quantizer("ResidualVQ", beam_size=2).eval()
    codes = beams(rows())[1]
    assert torch.equal(tokodec.accelerate(beams)(rows())[1], codes)


def test_there_must_be_a_codebook() -> None:
    with pytest.raises(ValueError, match="Linear holds no codebook of vector-quantize-pytorch or transformers"):
        tokodec.accelerate(nn.Linear(2, 2))


def test_the_benchmark_says_whose_codewords_are_nearer() -> None:
    from tokodec.codec.bench.search.modules import ALONE, Case, ModuleResult, bench_case, compare
    from tokodec.codec.bench.timing import OURS

    results = bench_case(Case(64, 16, 8, 2), 0.01, 0, "cpu")
    assert [(r.step, r.who) for r in results] == [(s, w) for s in ("encode", "training") for w in (OURS, ALONE)]
    assert all(r.reason is None and r.ms and (r.differ, r.worse) == (0, 0) for r in results)
    assert [r.wrong for r in results] == [0, 0, None, None]
    codebook = torch.tensor([[0.0], [1.0], [2.0]])
    x = torch.tensor([[0.1], [0.9], [1.6]])
    pair = [ModuleResult("", 3, "", who, ms=ms) for who, ms in ((OURS, 2.0), (ALONE, 5.0))]
    compare(pair, {OURS: torch.tensor([0, 1, 1]), ALONE: torch.tensor([0, 2, 2])}, x, codebook)
    assert [(r.differ, r.worse, r.over_ours) for r in pair] == [(2, 1, 1.0), (2, 1, 2.5)]


def test_the_benchmark_counts_codes_that_are_not_those_of_float64() -> None:
    """Codewords so near each other that the module's own float32 takes wrong ones, on both levels."""
    from tokodec.codec.bench.search.modules import count_farther

    torch.manual_seed(0)
    module: Any = tiny_quantizer("ResidualVQ", num_quantizers=2).eval()
    module.layers[0]._codebook.embed.copy_(100 + torch.randn(1, 16, 8) * 1e-3)
    x = 100 + torch.randn(1, 200, 8) * 1e-3
    assert count_farther(module, x) > 50
    assert count_farther(tokodec.accelerate(module), x) == 0
    assert not any(part._forward_hooks for part in module.modules())
