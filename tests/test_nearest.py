"""Promises of the nearest-codeword search, held against brute force in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from tokodec.tokenizers.quantize import Metric, nearest_codeword, prepare_codebook, residual_codewords

SIZES = [1, 97, 257, 1025]


def scores64(z: torch.Tensor, codebook: torch.Tensor, metric: Metric) -> torch.Tensor:
    """Scores [M, N] in float64, smaller is better, by the definition and not by the expansion that the search uses."""
    z, codebook = z.double(), codebook.double()
    if metric == "l2":
        return torch.stack([(row - codebook).square().sum(-1) for row in z])
    if metric == "cosine":
        z, codebook = F.normalize(z, dim=-1), F.normalize(codebook, dim=-1)
    return -(z @ codebook.T)


def assert_nearest(
    z: torch.Tensor, codebook: torch.Tensor, metric: Metric, indices: torch.Tensor, eps: float = 1e-5
) -> None:
    """The chosen codeword is within eps of the best; where the second best is farther than eps, it is the best."""
    scores = scores64(z, codebook, metric)
    scale = scores.abs().amax().clamp_min(1)
    best = scores.amin(-1)
    chosen = scores.gather(1, indices[:, None])[:, 0]
    assert (chosen <= best + eps * scale).all()
    if codebook.shape[0] > 1:
        two = scores.topk(2, largest=False).values
        clear = two[:, 1] - two[:, 0] > eps * scale
        assert clear.double().mean() > 0.9 or len(z) < 97  # or the next line would promise nothing
        assert torch.equal(indices[clear], scores.argmin(-1)[clear])


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("m", SIZES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dim", [3, 8, 33])
def test_agrees_with_brute_force(m: int, n: int, dim: int, metric: Metric) -> None:
    g = torch.Generator().manual_seed(m * 7 + n)
    z, codebook = torch.randn(m, dim, generator=g), torch.randn(n, dim, generator=g)
    indices = nearest_codeword(z, codebook, metric)
    assert indices.dtype == torch.int64
    assert indices.shape == (m,)
    assert_nearest(z, codebook, metric, indices)


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("n", [2, 97, 257, 1025])
def test_exact_ties_go_to_the_smaller_index(n: int, metric: Metric) -> None:
    # Small integers: every score is exact in float32, so ties are exact and frequent.
    g = torch.Generator().manual_seed(n)
    z = torch.randint(-2, 3, (500, 3), generator=g).float()
    codebook = torch.randint(-2, 3, (n, 3), generator=g).float()
    scores = scores64(z, codebook, metric)
    tied = (scores == scores.amin(-1, keepdim=True)).sum(-1) > 1
    assert tied.any()
    first = (scores == scores.amin(-1, keepdim=True)).int().argmax(-1)
    assert torch.equal(nearest_codeword(z, codebook, metric), first)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("half", [1, 3, 97, 257, 1025])
@pytest.mark.parametrize("m", [1, 5, 300])
def test_duplicate_rows_give_the_smaller_index(half: int, m: int, metric: Metric) -> None:
    g = torch.Generator().manual_seed(half)
    rows = torch.randn(half, 19, generator=g)
    z = torch.randn(m, 19, generator=g)
    indices = nearest_codeword(z, torch.cat([rows, rows]), metric)
    assert int(indices.max()) < half
    assert_nearest(z, rows, metric, indices)


def test_a_codeword_finds_itself() -> None:
    codebook = torch.randn(1025, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(nearest_codeword(codebook, codebook), torch.arange(1025))


def test_nan_rows_get_index_zero() -> None:
    g = torch.Generator().manual_seed(4)
    z, codebook = torch.randn(97, 8, generator=g), torch.randn(257, 8, generator=g)
    clean = nearest_codeword(z, codebook)
    z[::3, 5] = float("nan")
    indices = nearest_codeword(z, codebook)
    assert (indices[::3] == 0).all()
    kept = torch.arange(97) % 3 != 0
    assert torch.equal(indices[kept], clean[kept])
    assert (nearest_codeword(z, codebook, "cosine")[::3] == 0).all()


def test_autocast_changes_nothing() -> None:
    g = torch.Generator().manual_seed(5)
    z, codebook = torch.randn(2000, 32, generator=g), torch.randn(1025, 32, generator=g)
    plain = nearest_codeword(z, codebook)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (z @ codebook.T).dtype == torch.bfloat16  # autocast is on
        assert torch.equal(nearest_codeword(z, codebook), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_searched_in_float32(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(6)
    z, codebook = torch.randn(97, 8, generator=g).to(dtype), torch.randn(257, 8, generator=g).to(dtype)
    assert torch.equal(nearest_codeword(z, codebook), nearest_codeword(z.float(), codebook.float()))


def test_non_contiguous_input() -> None:
    g = torch.Generator().manual_seed(7)
    z, codebook = torch.randn(8, 97, generator=g).T, torch.randn(257, 16, generator=g)[:, ::2]
    assert not z.is_contiguous()
    assert torch.equal(nearest_codeword(z, codebook), nearest_codeword(z.contiguous(), codebook.contiguous()))


def test_no_rows_and_no_gradient() -> None:
    codebook = torch.randn(5, 4, requires_grad=True)
    indices = nearest_codeword(torch.zeros(0, 4), codebook)
    assert indices.shape == (0,)
    assert indices.dtype == torch.int64
    assert not nearest_codeword(torch.randn(3, 4, requires_grad=True), codebook).requires_grad


@pytest.mark.parametrize(
    ("z", "codebook", "metric"),
    [
        (torch.zeros(3, 4), torch.zeros(5, 3), "l2"),
        (torch.zeros(3, 4), torch.zeros(0, 4), "l2"),
        (torch.zeros(4), torch.zeros(5, 4), "l2"),
        (torch.zeros(3, 4, 1), torch.zeros(5, 4), "l2"),
        (torch.zeros(3, 4), torch.zeros(4), "l2"),
        (torch.zeros(3, 4), torch.zeros(5, 4), "euclid"),
    ],
)
def test_bad_input_is_refused(z: torch.Tensor, codebook: torch.Tensor, metric: Any) -> None:
    with pytest.raises(ValueError, match=r"need z|empty|unknown metric"):
        nearest_codeword(z, codebook, metric)


def test_compiles_whole_and_with_fake_tensors() -> None:
    g = torch.Generator().manual_seed(8)
    z, codebook = torch.randn(97, 8, generator=g), torch.randn(257, 8, generator=g)
    compiled = torch.compile(lambda a, b: nearest_codeword(2 * a, 2 * b) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(z, codebook), nearest_codeword(z, codebook) + 1)
    with FakeTensorMode() as mode:
        indices = nearest_codeword(mode.from_tensor(z), mode.from_tensor(codebook))
    assert (indices.shape, indices.dtype) == ((97,), torch.int64)
    torch.library.opcheck(torch.ops.tokodec.nearest_codeword, (z[None], codebook[None], False, None, "auto"))


def test_groups_are_independent_searches() -> None:
    g = torch.Generator().manual_seed(9)
    z, codebook = torch.randn(3, 97, 8, generator=g), torch.randn(3, 130, 8, generator=g)
    penalty = torch.rand(3, 130, generator=g)
    indices, distance = nearest_codeword(z, codebook, "l2", penalty, return_distance=True)
    for k in range(3):
        assert torch.equal(indices[k], nearest_codeword(z[k], codebook[k], "l2", penalty[k]))
        want = (z[k] - codebook[k][indices[k]]).square().sum(-1)
        assert torch.allclose(distance[k], want)


def test_residual_codewords_are_searches_in_turn() -> None:
    g = torch.Generator().manual_seed(10)
    z = torch.randn(97, 8, generator=g)
    books = [torch.randn(130, 8, generator=g) / 2**k for k in range(3)]
    penalty = torch.rand(130, generator=g)
    found = residual_codewords(z, books, [None, penalty, None])
    residual = z
    for k, book in enumerate(books):
        assert torch.equal(found[:, k], nearest_codeword(residual, book, "l2", penalty if k == 1 else None))
        residual = residual - book[found[:, k]]
    assert residual_codewords(z, []).shape == (97, 0)
    prepared = [prepare_codebook(book, penalty if k == 1 else None) for k, book in enumerate(books)]
    for rows in (1, 6, 97):
        assert torch.equal(residual_codewords(z[:rows], prepared), found[:rows])
    assert torch.equal(residual_codewords(z, [books[0], prepared[1], books[2]]), found)
    with pytest.raises(ValueError, match="penalty of its own"):
        residual_codewords(z, prepared, [None, penalty, None])


def test_codebooks_that_cannot_be_prepared_are_refused() -> None:
    for codebook, penalty in [
        (torch.zeros(0, 4), None), (torch.zeros(5), None), (torch.zeros(5, 4), torch.zeros(4)),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="need codebook"):
            prepare_codebook(codebook, penalty)
    with pytest.raises(ValueError, match="for the CPU"):
        prepare_codebook(torch.zeros(5, 4, device="meta"))


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown backend"):
        nearest_codeword(torch.zeros(3, 4), torch.zeros(5, 4), backend="cuda")  # type: ignore[call-overload]
