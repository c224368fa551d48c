"""The kernels of the nearest-codeword search keep the reference's promise.

On a machine with a GPU they run on it, at full size: ``python -m pytest tests/test_nearest_triton.py`` is the whole
parity suite. On others they run in Triton's interpreter (``conftest.py`` turns it on), at sizes that it can do; without
triton they are skipped.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokodec.tokenizers.quantize import Metric, nearest_codeword, nearest_cpu, residual_codewords

pytest.importorskip("triton", reason="the package triton is not installed: no kernels")
ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def brute(z: Tensor, codebook: Tensor, metric: Metric = "l2", penalty: Tensor | None = None) -> Tensor:
    """Indices by the definition in float64, with the smaller index of exact ties; rows in blocks."""
    z, codebook = z.double(), codebook.double()
    if metric == "cosine":
        codebook = F.normalize(codebook, dim=-1)
    found = []
    for block in z.split(max(1, (1 << 24) // codebook.numel())):
        if metric == "l2":
            scores = (block[:, None] - codebook).square().sum(-1)
            scores = scores if penalty is None else scores + penalty.double()
        else:
            scores = -(block[:, None] * codebook).sum(-1)
        scores = torch.where(scores.isfinite(), scores, torch.inf)
        found.append((scores == scores.amin(-1, keepdim=True)).int().argmax(-1))
    return torch.cat(found)


def assert_exact(z: Tensor, codebook: Tensor, metric: Metric = "l2", penalty: Tensor | None = None) -> None:
    """The kernels find what float64 finds; where float64 sums of another order disagree, at the same distance."""
    found = nearest_codeword(z, codebook, metric, penalty, backend="triton")
    want = brute(z, codebook, metric, penalty)
    assert found.dtype == torch.int64
    assert found.shape == want.shape
    rows = (found != want).nonzero()[:, 0]
    if len(rows):
        own = codebook.double() if metric != "cosine" else F.normalize(codebook.double(), dim=-1)
        for row in rows.tolist():
            pair = torch.stack([own[found[row]], own[want[row]]])
            apart = (z[row].double() - pair).square().sum(-1) if metric == "l2" else -(z[row].double() * pair).sum(-1)
            if penalty is not None:
                apart = apart + penalty[torch.stack([found[row], want[row]])].double()
            assert abs(apart[0] - apart[1]) <= 1e-13 * apart.abs().amax(), f"row {row}: {found[row]} not {want[row]}"


# The interpreter takes a second for each tile of 64 latents by 64 or 128 codewords.
SIZES = [(1, 1), (65, 97), (33, 385)]
if ON_GPU:
    SIZES = [(1, 1), (97, 257), (257, 97), (130, 1025), (4099, 16384), (1025, 65537)]
ROWS, BOOK = (97, 257) if ON_GPU else (33, 140)
# one dimension for each way in which a search is tiled, and odd ones
DIMS = [1, 3, 8, 16, 33, 64, 100, 256, 300] if ON_GPU else [3, 64]
SCALES = [1e-12, 1e-3, 1e4, 1e15] if ON_GPU else [1e-12, 1e15]


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize(("m", "n"), SIZES)
@pytest.mark.parametrize("dim", DIMS)
def test_agrees_with_brute_force(m: int, n: int, dim: int, metric: Metric) -> None:
    assert_exact(randn(m, dim, seed=m + dim), randn(n, dim, seed=n), metric)


@pytest.mark.parametrize("dim", [16, 100, 256, 300])
def test_every_tiling(dim: int) -> None:
    assert_exact(randn(33, dim, seed=1), randn(BOOK, dim, seed=2))


@pytest.mark.parametrize("dim", [8, 64])
def test_latents_at_codewords(dim: int) -> None:
    """Distances far below the norms: the expansion |c|^2 - 2 z.c cancels, and the answer must not."""
    codebook = randn(BOOK, dim, seed=3) + 100
    z = codebook[torch.arange(BOOK // 4, device=DEVICE) * 3] + 1e-4 * randn(BOOK // 4, dim, seed=4)
    assert_exact(z, codebook)
    own = codebook[:ROWS]
    assert torch.equal(nearest_codeword(own, codebook, backend="triton"), torch.arange(ROWS, device=DEVICE))


@pytest.mark.parametrize("dim", [8, 64])
def test_near_ties(dim: int) -> None:
    """Pairs of codewords that differ in the last bits of one element."""
    base = randn(BOOK // 2, dim, seed=5)
    twin = base.clone()
    twin[:, 0] = torch.nextafter(twin[:, 0], torch.full_like(twin[:, 0], torch.inf))
    codebook = torch.cat([twin, base])
    assert_exact(randn(ROWS, dim, seed=6), codebook)


@pytest.mark.parametrize("dim", [8, 64])
def test_duplicates_give_the_smaller_index(dim: int) -> None:
    half = BOOK // 2
    rows = randn(half, dim, seed=7)
    found = nearest_codeword(randn(20, dim, seed=8), torch.cat([rows, rows]), backend="triton")
    assert int(found.max()) < half
    # more of them than candidates are kept, and than a tile has codewords
    many = 150 if ON_GPU else 70
    z, one = randn(20, dim, seed=9), randn(1, dim, seed=10)
    assert not nearest_codeword(z, one.expand(2 * many, dim), backend="triton").any()
    other = torch.cat([one.expand(many, dim), randn(3, dim, seed=11), one.expand(many, dim)])
    assert_exact(z, other)


def test_integer_ties() -> None:
    g = torch.Generator().manual_seed(12)
    z = torch.randint(-2, 3, (40, 3), generator=g).float().to(DEVICE)
    codebook = torch.randint(-2, 3, (130, 3), generator=g).float().to(DEVICE)
    assert torch.equal(nearest_codeword(z, codebook, backend="triton"), brute(z, codebook))
    assert torch.equal(nearest_codeword(z, codebook, "dot", backend="triton"), brute(z, codebook, "dot"))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("metric", ["l2", "dot"])
def test_scales(scale: float, metric: Metric) -> None:
    z, codebook = randn(33, 8, seed=13), randn(BOOK // 2, 8, seed=14)
    assert_exact(z * scale, codebook * scale, metric)
    assert_exact(z * scale, codebook, metric)  # latents much smaller or larger than codewords
    mixed = z * torch.logspace(-20, 20, 33, device=DEVICE)[:, None]
    assert_exact(mixed, codebook, metric)


def test_zero_latents_and_codewords() -> None:
    zeros = torch.zeros(9, 8, device=DEVICE)
    codebook = randn(BOOK, 8, seed=15)
    assert_exact(zeros, codebook)
    assert not nearest_codeword(zeros, codebook, "dot", backend="triton").any()
    assert not nearest_codeword(randn(9, 8, seed=16), torch.zeros(BOOK, 8, device=DEVICE), backend="triton").any()


@pytest.mark.parametrize("dim", [8, 64])
def test_what_is_not_finite(dim: int) -> None:
    z, codebook = randn(ROWS, dim, seed=17), randn(BOOK, dim, seed=18)
    z[::3, 1], z[1::9, 0] = torch.nan, torch.inf
    codebook[5, 0], codebook[80, 1] = torch.nan, -torch.inf
    found = nearest_codeword(z, codebook, backend="triton")
    fine = z.isfinite().all(-1)
    assert not found[~fine].any()
    assert torch.equal(found[fine], brute(z[fine], codebook))
    assert not nearest_codeword(z, torch.full_like(codebook, torch.nan), backend="triton").any()


@pytest.mark.parametrize("scale", [0.5, 1e6])
def test_penalty(scale: float) -> None:
    penalty = scale * randn(BOOK, seed=19).abs()
    penalty[7] = torch.inf
    assert_exact(randn(ROWS, 8, seed=20), randn(BOOK, 8, seed=21), penalty=penalty)
    assert_exact(randn(33, 64, seed=20), randn(BOOK, 64, seed=21), penalty=penalty)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    z, codebook = randn(ROWS, 16, seed=22), randn(BOOK, 16, seed=23)
    assert_exact(z.to(dtype), codebook.to(dtype))
    assert_exact(z.to(dtype), codebook)


def test_strides_and_groups() -> None:
    z = randn(16, ROWS, seed=24).T
    codebook = randn(BOOK, 32, seed=25)[:, ::2]
    assert_exact(z, codebook)
    grouped = randn(ROWS, 2, 8, seed=26).transpose(0, 1)  # [2, M, 8], as a group-residual quantizer splits channels
    books = randn(2, BOOK, 8, seed=27)
    penalty = randn(2, BOOK, seed=28).abs()
    found = nearest_codeword(grouped, books, penalty=penalty, backend="triton")
    for g in range(2):
        assert torch.equal(found[g], brute(grouped[g], books[g], penalty=penalty[g]))


def test_the_same_on_every_call_and_as_the_reference() -> None:
    z, codebook = randn(ROWS, 8, seed=29), randn(BOOK, 8, seed=30)
    first = nearest_codeword(z, codebook, backend="triton")
    assert torch.equal(first, nearest_codeword(z, codebook, backend="triton"))
    assert torch.equal(first.cpu(), nearest_cpu.search(z[None].cpu(), codebook[None].cpu())[0])


def test_residual_levels() -> None:
    z, books = randn(ROWS, 8, seed=31), [randn(BOOK, 8, seed=s) / (s - 31) for s in (32, 33, 34)]
    found = residual_codewords(z, books, backend="triton")
    residual = z
    for k, book in enumerate(books):  # each level from the same residual: a changed index changes all later ones
        assert torch.equal(found[:, k], brute(residual, book))
        residual = residual - book[found[:, k]]


@pytest.mark.parametrize("dim", [1, 8, 16, 33, 64, 100, 128, 256, 300, 1000])
def test_plans_fit_smaller_devices(dim: int) -> None:
    from tokodec.tokenizers.quantize.triton_launch import HOPPER_SHARED, plan

    assert plan(dim, 4096) == plan(dim, 4096, HOPPER_SHARED)
    small = plan(dim, 4096, 101376)  # what GPUs without the data centre's caches have
    assert small.stages >= 1
    if dim <= 256:  # beyond, columns come in blocks
        assert (small.block_m + small.stages * small.block_n) * small.columns * 2 <= 101376


def test_too_small_devices_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from tokodec.tokenizers.quantize import nearest, triton_launch

    def refuse(*args: object) -> Tensor:
        raise triton_launch.OutOfResources(2, 1, "shared memory")

    monkeypatch.setattr("tokodec.tokenizers.quantize.triton_launch.search", refuse)
    monkeypatch.setattr(nearest, "choose_backend", lambda kind, index: "triton")
    z, codebook = randn(5, 8, seed=1), randn(9, 8, seed=2)
    with pytest.warns(UserWarning, match="without its CUDA kernels"):
        assert torch.equal(nearest_codeword(z, codebook), brute(z, codebook))
    with pytest.raises(triton_launch.OutOfResources):
        nearest_codeword(z, codebook, backend="triton")


@pytest.mark.skipif(not ON_GPU, reason="no GPU: sizes that the interpreter cannot do, and what only a GPU has")
class TestOnGPU:
    @pytest.mark.parametrize(
        ("m", "n", "dim"), [(65536, 16384, 8), (32768, 16384, 64), (16384, 8192, 256), (16384, 262144, 16)]
    )
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_large(self, m: int, n: int, dim: int, seed: int) -> None:
        g = torch.Generator(DEVICE).manual_seed(seed)
        z = torch.randn(m, dim, generator=g, device=DEVICE)
        codebook = torch.randn(n, dim, generator=g, device=DEVICE)
        found = nearest_codeword(z, codebook)
        norms = codebook.double().square().sum(-1)
        for rows, own in zip(z.split(1024), found.split(1024), strict=True):
            scores = torch.addmm(norms, rows.double(), codebook.double().T, alpha=-2)
            best = scores.amin(-1)
            gap = scores.gather(1, own[:, None])[:, 0] - best
            assert (gap <= 1e-12 * norms.amax()).all()

    def test_memory(self) -> None:
        z, codebook = randn(1 << 20, 16, seed=35), randn(1 << 18, 16, seed=36)
        nearest_codeword(z[:1024], codebook)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        nearest_codeword(z, codebook)
        assert torch.cuda.max_memory_allocated() - before < 200e6

    def test_graph_capture_and_compile(self) -> None:
        z, codebook = randn(4096, 64, seed=37), randn(1024, 64, seed=38)
        want = nearest_codeword(z, codebook)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = nearest_codeword(z, codebook)
        found.zero_()
        graph.replay()
        assert torch.equal(found, want)
        compiled = torch.compile(lambda a, b: nearest_codeword(a, b) + 1, fullgraph=True)
        assert torch.equal(compiled(z, codebook), want + 1)
