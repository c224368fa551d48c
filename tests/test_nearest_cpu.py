"""Promises of the exact search in plain PyTorch: the index that brute force in float64 finds, whatever the input."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tokodec.tokenizers.quantize import nearest_cpu
from tokodec.tokenizers.quantize.nearest_cpu import prepare, search, search_prepared

SIZES = [1, 97, 257, 1025]


def scores64(z: Tensor, codebook: Tensor, dot: bool, penalty: Tensor | None = None) -> Tensor:
    """Scores [M, N] in float64 by the definition; NaN where a codeword or its penalty is not finite."""
    z, codebook = z.double(), codebook.double()
    rows = [-(row * codebook).sum(-1) if dot else (row - codebook).square().sum(-1) for row in z]
    return torch.stack(rows) if penalty is None else torch.stack(rows) + penalty.double()


def brute(z: Tensor, codebook: Tensor, dot: bool = False, penalty: Tensor | None = None) -> Tensor:
    """Indices [G, M] as the docstring of search promises them."""
    found = []
    for g in range(len(z)):
        scores = scores64(z[g], codebook[g], dot, None if penalty is None else penalty[g])
        bad = ~codebook[g].isfinite().all(-1)
        if penalty is not None:
            bad |= ~penalty[g].isfinite()
        scores[:, bad] = math.inf
        indices = (scores == scores.amin(-1, keepdim=True)).int().argmax(-1)  # the first of equals
        indices[~z[g].isfinite().all(-1)] = 0
        found.append(indices)
    return torch.stack(found)


def assert_exact(z: Tensor, codebook: Tensor, dot: bool = False, penalty: Tensor | None = None) -> None:
    """Of a search, and of one in prepared codebooks where there is such a one."""
    wanted = brute(z, codebook, dot, penalty)
    with torch.no_grad():
        indices = search(z, codebook, dot, penalty)
        assert indices.dtype == torch.int64
        assert torch.equal(indices, wanted)
        for g in range(0 if dot else len(z)):
            prepared = prepare(codebook[g], None if penalty is None else penalty[g])
            found = search_prepared(z[g].float(), prepared)
            assert found.dtype == torch.int64
            assert torch.equal(found, wanted[g])
            few = torch.cat([search_prepared(part, prepared) for part in z[g].float()[:60].split(6)])
            assert torch.equal(few, wanted[g][:60])


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks smaller than the data, in both steps."""
    monkeypatch.setattr(nearest_cpu, "SCAN_SCORES", 2000)
    monkeypatch.setattr(nearest_cpu, "WIDE_ROWS", 40)
    monkeypatch.setattr(nearest_cpu, "SCAN_CODEWORDS", 96)
    monkeypatch.setattr(nearest_cpu, "DECIDE_SCORES", 1000)
    monkeypatch.setattr(nearest_cpu, "MAX_ROWS", 50)


@pytest.fixture
def float64_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """No row is settled in step 1, and no candidates of float32 are taken."""
    monkeypatch.setattr(nearest_cpu, "CROWD", 0)
    monkeypatch.setattr(nearest_cpu, "_scan", lambda z, *_: torch.zeros(len(z)))


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 8, 33, 256])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("m", SIZES)
def test_agrees_with_brute_force(m: int, n: int, dim: int, dot: bool) -> None:
    assert_exact(randn(1, m, dim, seed=m), randn(1, n, dim, seed=n + 1), dot)


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 8, 33, 256])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("small_blocks")
def test_blocks_change_nothing(n: int, dim: int, dot: bool) -> None:
    assert_exact(randn(2, 257, dim), randn(2, n, dim, seed=1), dot)


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 33, 256])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.usefixtures("float64_only", "small_blocks")
def test_step_2_alone_is_right(n: int, dim: int, dot: bool) -> None:
    assert_exact(randn(1, 97, dim), randn(1, n, dim, seed=1), dot)
    assert_exact(randn(1, 97, dim).round(), randn(1, n, dim, seed=1).round(), dot)


@pytest.mark.parametrize("n", [5, 257, 4500])
@pytest.mark.parametrize("spread", [0.1, 10, 1e30])
def test_penalty(n: int, spread: float) -> None:
    # Half of the codewords are the others again with another penalty.
    codebook = randn(2, n, 9).repeat(1, 2, 1)
    assert_exact(randn(2, 300, 9, seed=1), codebook, penalty=spread * randn(2, 2 * n, seed=2))
    forbidden = torch.where(torch.arange(2 * n) % 3 == 0, 1e30, 0.0).expand(2, -1)
    assert_exact(randn(2, 300, 9, seed=1), codebook, penalty=forbidden)


def test_a_forbidden_codeword_costs_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_cpu, "_decide", lambda *_, **__: pytest.fail("step 1 should settle all"))
    codebook, penalty = randn(1, 97, 8), torch.zeros(1, 97)
    codebook[0, 5], penalty[0, 7] = 1e12, 1e30
    z = codebook[:, 8:] + 0.01
    assert torch.equal(search(z, codebook, penalty=penalty), brute(z, codebook, penalty=penalty))


def test_few_rows_need_no_float64_in_a_prepared_codebook(monkeypatch: pytest.MonkeyPatch) -> None:
    codebook = randn(97, 8)
    prepared = prepare(codebook)
    monkeypatch.setattr(nearest_cpu, "_decide", lambda *_: pytest.fail("float32 should settle all"))
    assert torch.equal(search_prepared(codebook[8:14] + 0.01, prepared), torch.arange(8, 14))


def test_only_rows_in_question_need_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    original = nearest_cpu._decide

    def decide(*args: Any, **named: Any) -> None:
        asked.append(named["rows"].tolist())
        original(*args, **named)

    monkeypatch.setattr(nearest_cpu, "_decide", decide)
    codebook = randn(97, 8)
    codebook[50] = codebook[3]
    found = search_prepared(codebook[[9, 50, 7, 3]], prepare(codebook))
    assert found.tolist() == [9, 3, 7, 3]
    assert asked == [[1, 3]]


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("half", [1, 3, 97, 2050])
def test_duplicates_give_the_smaller_index(half: int, dot: bool) -> None:
    rows = randn(1, half, 19)
    assert_exact(randn(1, 300, 19, seed=1), torch.cat([rows, rows], 1), dot)
    assert_exact(rows, torch.cat([rows, rows.flip(1), rows], 1), dot)


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("n", [2, 97, 257, 1025])
def test_ties_give_the_smaller_index(n: int, dot: bool) -> None:
    z, codebook = (2 * randn(1, 500, 3)).round(), (2 * randn(1, n, 3, seed=1)).round()
    scores = scores64(z[0], codebook[0], dot)
    assert ((scores == scores.amin(-1, keepdim=True)).sum(-1) > 1).any()
    assert_exact(z, codebook, dot)


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("dim", [1, 8, 33])
def test_codewords_that_differ_in_the_last_bit(dim: int, offset: float, dot: bool) -> None:
    codebook = offset + randn(1, 50, dim)
    up = codebook.clone()
    up[..., 0] = torch.nextafter(up[..., 0], torch.tensor(math.inf))
    down = codebook.clone()
    down[..., -1] = torch.nextafter(down[..., -1], torch.tensor(-math.inf))
    near = torch.cat([up, codebook, down], 1)
    z = torch.cat([near, codebook + 0.01 * randn(1, 50, dim, seed=1), codebook + randn(1, 50, dim, seed=2)], 1)
    assert_exact(z, near, dot)


@pytest.mark.parametrize("dot", [False, True])
def test_latents_with_a_large_mean(dot: bool) -> None:
    assert_exact(1000 + randn(1, 500, 16), 1000 + randn(1, 257, 16, seed=1), dot)
    assert_exact(1000 + randn(1, 500, 16), randn(1, 257, 16, seed=1), dot)
    assert_exact(randn(1, 500, 16), 1e4 + randn(1, 257, 16, seed=1), dot)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-20, 1e18, 1e25, 1e38])
@pytest.mark.parametrize("dot", [False, True])
def test_no_overflow_and_no_underflow(dot: bool, scale: float) -> None:
    z, codebook = randn(1, 60, 7).clamp(-3, 3), randn(1, 97, 7, seed=1).clamp(-3, 3)
    assert_exact(scale * z, scale * codebook, dot)
    assert_exact(z, scale * codebook, dot)
    assert_exact(scale * z, codebook, dot)
    assert_exact(torch.cat([z, scale * z], 1), torch.cat([scale * codebook, codebook], 1), dot)


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("n", [1, 97, 1025])
@pytest.mark.usefixtures("small_blocks")
def test_nothing_but_ties(n: int, dot: bool) -> None:
    z = torch.cat([randn(1, 97, 5), torch.zeros(1, 3, 5)], 1)
    assert_exact(z, randn(1, 1, 5, seed=1).expand(1, n, 5), dot)
    assert_exact(z, torch.zeros(1, n, 5), dot)
    assert_exact(torch.zeros(1, 97, 5), randn(1, n, 5), dot)
    signs = 1 - 2 * (torch.arange(32)[:, None] >> torch.arange(5) & 1).float()
    assert_exact(torch.zeros(1, 97, 5), signs[None], dot)


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_rows_that_are_not_finite_get_index_zero(bad: float, dot: bool) -> None:
    z, codebook = randn(1, 97, 8), randn(1, 257, 8, seed=1)
    z[:, ::3, 5] = bad
    assert_exact(z, codebook, dot)
    assert_exact(torch.full((1, 5, 8), bad), codebook, dot)


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_codewords_that_are_not_finite_are_never_chosen(bad: float, dot: bool) -> None:
    z, codebook = randn(1, 97, 8), randn(1, 257, 8, seed=1)
    codebook[:, ::2, 3] = bad
    assert_exact(z, codebook, dot)
    assert_exact(torch.zeros(1, 3, 8), codebook, dot)  # index 1
    assert_exact(z, codebook[:, ::2], dot)  # none is left: index 0
    if not dot:
        assert_exact(z, randn(1, 257, 8, seed=1), penalty=codebook[:, :, 3])


@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_searched_exactly(dtype: torch.dtype, dot: bool) -> None:
    z, codebook = randn(1, 300, 8).to(dtype), randn(1, 257, 8, seed=1).to(dtype)
    assert_exact(z, codebook, dot)
    assert_exact(z, codebook.float(), dot)
    assert_exact(z.float(), codebook, dot)


def test_float64_codewords() -> None:
    codebook = torch.nn.functional.normalize(randn(2, 257, 8, seed=1).double(), dim=-1)
    close = codebook.repeat(1, 2, 1)
    close[:, 257:] *= 1 + 2.0**-40  # not a tie in float64, one in float32
    assert_exact(randn(2, 300, 8), codebook, True)
    assert_exact(randn(2, 300, 8), close, True)


@pytest.mark.parametrize("dot", [False, True])
def test_non_contiguous_input(dot: bool) -> None:
    z, codebook = randn(8, 97, 2).permute(2, 1, 0), randn(2, 257, 16)[:, :, ::2]
    assert not z.is_contiguous()
    assert_exact(z, codebook, dot)
    assert_exact(z[:1].expand(2, -1, -1), codebook[:1].expand(2, -1, -1), dot)


def test_settings_that_allow_bfloat16_change_nothing() -> None:
    z, codebook = randn(1, 300, 64), randn(1, 1025, 64, seed=1)
    backend: Any = torch.backends.mkldnn
    before = backend.matmul.fp32_precision
    try:
        backend.matmul.fp32_precision = "bf16"
        assert_exact(z, codebook)  # with tables that are prepared under these settings
        prepared = prepare(codebook[0])
        backend.matmul.fp32_precision = before
        assert torch.equal(search_prepared(z[0], prepared), brute(z, codebook)[0])
    finally:
        backend.matmul.fp32_precision = before


def test_no_rows() -> None:
    assert search(torch.zeros(3, 0, 4), torch.zeros(3, 5, 4)).shape == (3, 0)
    assert search(torch.zeros(0, 2, 4), torch.zeros(0, 5, 4)).shape == (0, 2)
    assert search_prepared(torch.zeros(0, 4), prepare(torch.zeros(5, 4))).shape == (0,)
