"""Promises that every quantizer keeps, then what each one promises by itself."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokodec.tokenizers.quantize import (
    ABSENT,
    BSQ,
    EMAVQ,
    FSQ,
    LFQ,
    VQ,
    CodebookUsage,
    FullVQ,
    Gradient,
    GroupResidualQuantizer,
    Metric,
    QuantizerOutput,
    ResidualQuantizer,
    ScalarQuantizer,
    SimVQ,
    UsageReport,
    kmeans,
    pass_gradient,
    rotation_trick,
    straight_through,
)
from tokodec.tokenizers.quantize.residual import _LevelStep

D, N = 6, 32


def sim(gradient: Gradient = "straight-through", dim: int = D, size: int = N) -> SimVQ:
    return SimVQ(size, dim, gradient=gradient)


MAKERS: dict[str, Callable[[], Any]] = {
    "vq": lambda: VQ(N, D, kmeans_iterations=2),
    "vq-cosine": lambda: VQ(N, D, "cosine", kmeans_iterations=2),
    "vq-rotation": lambda: VQ(N, D, gradient="rotation", kmeans_iterations=0),
    "ema": lambda: EMAVQ(N, D, kmeans_iterations=2),
    "ema-cosine": lambda: EMAVQ(N, D, "cosine", kmeans_iterations=2),
    "simvq": sim,
    "simvq-cosine-rotation": lambda: SimVQ(N, D, "cosine", "rotation"),
    "fullvq": lambda: FullVQ(N, D, group=4, width=16, depth=1, heads=2),
    "residual": lambda: ResidualQuantizer([sim(size=n) for n in (32, 16, 8)]),
    "residual-rotation": lambda: ResidualQuantizer([sim("rotation") for _ in range(3)], dropout=0.5),
    "residual-ema": lambda: ResidualQuantizer([EMAVQ(N, D) for _ in range(2)]),
    "group-residual": lambda: GroupResidualQuantizer([[sim(dim=3, size=n) for n in (32, 16)] for _ in range(2)]),
    "lfq": lambda: LFQ(D),
    "lfq-rotation": lambda: LFQ(D, "rotation"),
    "bsq": lambda: BSQ(D),
    "fsq": lambda: FSQ([8, 5, 5, 4, 3, 7]),
    "fsq-rotation": lambda: FSQ([8, 5, 5, 4, 3, 7], "rotation"),
    "scalar": lambda: ScalarQuantizer(D, half_range=3),
    "scalar-straight-through": lambda: ScalarQuantizer(D, 3, 0.5, "straight-through"),
}
ONE_CODEBOOK = ["vq", "vq-cosine", "vq-rotation", "simvq", "simvq-cosine-rotation", "fullvq"]
SEVERAL = ["residual", "residual-rotation", "residual-ema", "group-residual", "scalar"]
GRIDS = [(7,), (3, 5), (2, 3, 4)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=list(MAKERS))
def quantizer(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


def latents(grid: tuple[int, ...] = (3, 5), batch: int = 4, dim: int = D) -> torch.Tensor:
    return torch.randn(batch, dim, *grid)


def gradient_of(loss: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, z, retain_graph=True)[0]


# ---- every quantizer ----


@pytest.mark.parametrize("grid", GRIDS)
def test_shapes_and_agreement_of_encode_decode_forward(quantizer: Any, grid: tuple[int, ...]) -> None:
    quantizer.eval()
    z_e = latents(grid)
    codes = quantizer.encode(z_e)
    assert codes.shape == (4, quantizer.n_codebooks, *grid)
    assert codes.dtype == torch.int64
    quantizer.check_codes(codes)
    assert codes.unique().numel() > 1
    out = quantizer(z_e)
    assert isinstance(out, QuantizerOutput)
    assert torch.equal(out.codes, codes)
    z_q = quantizer.decode(codes)
    assert z_q.shape == z_e.shape
    assert z_q.dtype == torch.float32
    assert torch.equal(out.z_q, z_q)  # to the bit
    assert torch.equal(quantizer.encode(z_e), codes)
    for loss in (out.commitment_loss, out.codebook_loss, out.auxiliary_loss):
        assert loss.shape == ()
        assert torch.isfinite(loss)


def test_grid_cells_are_independent(quantizer: Any) -> None:
    quantizer.eval()
    z_e = latents((3, 5))
    codes = quantizer.encode(z_e)
    assert torch.equal(quantizer.encode(z_e.flip(2, 3)).flip(2, 3), codes)
    assert torch.equal(quantizer.encode(z_e[1:2, :, 1:, 2:4]), codes[1:2, :, 1:, 2:4])


def test_training_output_is_what_decode_gives(quantizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer.train()
    quantizer(latents())  # k-means starts here
    if isinstance(quantizer, ScalarQuantizer) and quantizer.relaxation == "noise":
        return  # its z_q is not quantized; see test_scalar_noise
    monkeypatch.setattr(EMAVQ, "observe", lambda *_: None)  # else the codewords move between forward and decode
    out = quantizer(latents())
    assert torch.equal(out.z_q, quantizer.decode(out.codes))


def test_encode_takes_no_gradient_and_no_rows(quantizer: Any) -> None:
    codes = quantizer.encode(latents().requires_grad_())
    assert not codes.requires_grad
    assert quantizer.encode(latents(batch=0)).shape == (0, quantizer.n_codebooks, 3, 5)
    assert quantizer.decode(codes[:0]).shape == (0, D, 3, 5)


def test_absent_codes_add_zero(quantizer: Any) -> None:
    quantizer.eval()
    codes = quantizer.encode(latents())
    assert not quantizer.decode(torch.full_like(codes, ABSENT)).any()
    hole = codes.clone()
    hole[1, :, 2, 3] = ABSENT
    z_q, whole = quantizer.decode(hole), quantizer.decode(codes)
    assert not z_q[1, :, 2, 3].any()
    z_q[1, :, 2, 3] = whole[1, :, 2, 3]
    assert torch.equal(z_q, whole)


def test_codes_outside_the_codebook_are_refused(quantizer: Any) -> None:
    codes = quantizer.encode(latents())
    for k, size in enumerate(quantizer.codebook_sizes):
        for value in (size, ABSENT - 1):
            bad = codes.clone()
            bad[2, k, 1, 1] = value
            with pytest.raises(ValueError, match="outside"):
                quantizer.decode(bad)
        edge = codes.clone()
        edge[2, k, 1, 1] = size - 1
        quantizer.decode(edge)
    for bad in (codes.int(), codes.float(), codes[0, 0, 0]):
        with pytest.raises(ValueError, match="int64"):
            quantizer.decode(bad)
    for bad in (codes[:, :0], torch.cat([codes, codes[:, :1]], dim=1)):
        with pytest.raises(ValueError, match="levels of codes"):
            quantizer.decode(bad)


def test_gradient_reaches_the_encoder(quantizer: Any) -> None:
    quantizer.train()
    z_e = latents().requires_grad_()
    out = quantizer(z_e)
    (grad,) = torch.autograd.grad((out.z_q * torch.randn_like(z_e)).sum(), z_e)
    assert torch.isfinite(grad).all()
    assert (grad != 0).any(1).all()  # every cell


@pytest.mark.parametrize("name", SEVERAL)
def test_a_prefix_of_levels_is_a_coarser_code(name: str) -> None:
    quantizer = MAKERS[name]().eval()
    z_e = latents()
    codes = quantizer.encode(z_e)
    for k in range(1, quantizer.n_codebooks + 1):
        padded = codes.clone()
        padded[:, k:] = ABSENT
        assert torch.equal(quantizer.decode(codes[:, :k]), quantizer.decode(padded))


@pytest.mark.parametrize("name", ["simvq", "fullvq", "residual", "group-residual", "fsq", "bsq"])
def test_autocast_changes_nothing(name: str) -> None:
    quantizer = MAKERS[name]().eval()
    z_e = latents((20, 20))
    codes = quantizer.encode(z_e)
    z_q = quantizer.decode(codes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.encode(z_e), codes)
        assert torch.equal(quantizer(z_e).codes, codes)
        assert torch.equal(quantizer.decode(codes), z_q)


@pytest.mark.parametrize("name", list(MAKERS))
def test_weights_survive_saving(name: str) -> None:
    quantizer, twin = MAKERS[name]().train(), MAKERS[name]().eval()
    quantizer(latents())
    twin.load_state_dict(quantizer.eval().state_dict())
    z_e = latents()
    assert torch.equal(twin.encode(z_e), quantizer.encode(z_e))
    assert torch.equal(twin(z_e).z_q, quantizer(z_e).z_q)


def test_state_dict_names_are_kept() -> None:
    # Released weights hold these names.
    assert set(sim().state_dict()) == {"basis", "projection", "penalty"}
    names = {f"levels.{k}.{x}" for k in range(3) for x in ("basis", "projection", "penalty")}
    assert set(MAKERS["residual"]().state_dict()) == names
    assert set(VQ(N, D).state_dict()) == {"codewords", "cluster_size", "started"}
    assert set(EMAVQ(N, D).state_dict()) == {"codewords", "cluster_size", "cluster_sum", "started"}
    for name in ("lfq", "bsq", "fsq", "scalar"):
        assert not MAKERS[name]().state_dict()


# ---- gradient estimators ----


def test_straight_through_value_and_gradient() -> None:
    z_e = (1e4 * torch.randn(50, D)).requires_grad_()
    z_q = torch.randn(50, D, requires_grad=True)
    out, weight = straight_through(z_e, z_q), torch.randn(50, D)
    assert torch.equal(out, z_q)  # to the bit, though z_e is far larger
    grad_e, grad_q = torch.autograd.grad((out * weight).sum(), (z_e, z_q), allow_unused=True)
    assert torch.equal(grad_e, weight)
    assert grad_q is None


def test_rotation_trick_value_and_gradient() -> None:
    z_e, z_q = torch.randn(50, D, dtype=torch.double), torch.randn(50, D, dtype=torch.double)
    z_e.requires_grad_()
    out, weight = rotation_trick(z_e, z_q), torch.randn(50, D, dtype=torch.double)
    assert torch.equal(out, z_q)
    (grad,) = torch.autograd.grad((out * weight).sum(), z_e)
    for e, q, w, got in zip(z_e.detach(), z_q, weight, grad, strict=True):
        e_unit, q_unit = e / e.norm(), q / q.norm()
        r = (e_unit + q_unit) / (e_unit + q_unit).norm()
        rotation = torch.eye(D) - 2 * torch.outer(r, r) + 2 * torch.outer(q_unit, e_unit)
        jacobian = q.norm() / e.norm() * rotation
        torch.testing.assert_close(rotation @ rotation.T, torch.eye(D).double())
        torch.testing.assert_close(jacobian @ e, q)  # it carries e to q
        torch.testing.assert_close(got, jacobian.T @ w)


def test_rotation_trick_of_opposite_and_zero_vectors() -> None:
    z_e = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    z_q = torch.tensor([[-6.0, -8.0], [1.0, 1.0], [0.0, 0.0]])
    out = rotation_trick(z_e, z_q)
    assert torch.equal(out, z_q)
    (grad,) = torch.autograd.grad(out.sum(), z_e)
    assert torch.isfinite(grad).all()
    torch.testing.assert_close(grad[0], torch.tensor([2.0, 2.0]))  # only the rescaling stays


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown gradient estimator"):
        pass_gradient(torch.zeros(1, 2), torch.zeros(1, 2), "identity")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["vq", "ema", "simvq", "fullvq", "residual", "group-residual", "lfq"])
def test_straight_through_quantizers_pass_the_identity(name: str) -> None:
    quantizer = MAKERS[name]().eval()
    z_e = latents().requires_grad_()
    weight = torch.randn_like(z_e)
    (grad,) = torch.autograd.grad((quantizer(z_e).z_q * weight).sum(), z_e)
    assert torch.equal(grad, weight)


@pytest.mark.parametrize("name", ["vq-rotation", "residual-rotation", "lfq-rotation", "fsq-rotation"])
def test_rotation_quantizers_rotate_the_gradient(name: str) -> None:
    quantizer = MAKERS[name]().eval()
    z_e = latents().requires_grad_()
    weight = torch.randn_like(z_e)
    out = quantizer(z_e).z_q
    (grad,) = torch.autograd.grad((out * weight).sum(), z_e)
    rows = z_e.movedim(1, -1)
    if name == "fsq-rotation":  # the estimator starts behind the bound
        rows = quantizer.bound(rows) / quantizer.half_width
    expected = rotation_trick(rows, out.detach().movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(grad, torch.autograd.grad((expected * weight).sum(), z_e)[0])
    assert not torch.allclose(grad, weight, atol=1e-2)


# ---- losses ----


@pytest.mark.parametrize("name", [*ONE_CODEBOOK, "residual", "residual-rotation", "group-residual"])
def test_each_loss_moves_one_side(name: str) -> None:
    quantizer = MAKERS[name]().train()
    z_e = latents().requires_grad_()
    parameters = list(quantizer.parameters())
    out = quantizer(z_e)
    pulled = torch.autograd.grad(out.commitment_loss, [z_e, *parameters], allow_unused=True, retain_graph=True)
    assert pulled[0].abs().sum() > 0
    assert all(g is None or not g.any() for g in pulled[1:])
    pulled = torch.autograd.grad(out.codebook_loss, [z_e, *parameters], allow_unused=True)
    assert pulled[0] is None or not pulled[0].any()
    assert any(g is not None and g.any() for g in pulled[1:])


def test_losses_of_one_codebook_are_mean_squares() -> None:
    quantizer = sim()
    z_e = latents()
    out = quantizer(z_e)
    expected = (z_e - quantizer.decode(out.codes)).square().mean()
    torch.testing.assert_close(out.commitment_loss, expected)
    torch.testing.assert_close(out.codebook_loss, expected)
    assert out.auxiliary_loss == 0


def test_losses_of_levels_are_summed_over_kept_cells() -> None:
    quantizer = MAKERS["residual"]()
    z_e = latents()
    kept = torch.tensor([1, 2, 3, 1])
    out = quantizer(z_e, kept)
    expected = torch.zeros(())
    for k in range(3):
        error = (z_e - quantizer.decode(out.codes[:, : k + 1]))[kept > k]
        expected = expected + error.square().mean()
    torch.testing.assert_close(out.commitment_loss, expected)
    torch.testing.assert_close(out.codebook_loss, expected)


@pytest.mark.parametrize("name", ["ema", "ema-cosine", "residual-ema"])
def test_moving_averages_have_no_codebook_loss(name: str) -> None:
    quantizer = MAKERS[name]().train()
    assert not list(quantizer.parameters())
    assert quantizer(latents()).codebook_loss == 0


# ---- residual and group-residual ----


def test_level_step_is_the_plain_formula() -> None:
    g = torch.Generator().manual_seed(0)
    keep = torch.rand(12, 1, generator=g) < 0.6
    weight = keep[:, 0] / (keep.sum() * 5)
    mix = torch.randn(12, 5, generator=g, dtype=torch.float64)

    def run(fused: bool) -> tuple[list[Tensor], list[Tensor]]:
        g = torch.Generator().manual_seed(1)
        residual = torch.randn(12, 5, generator=g, dtype=torch.float64).requires_grad_()
        z_q = torch.randn(12, 5, generator=g, dtype=torch.float64).requires_grad_()
        if fused:
            commitment, codebook, left = _LevelStep.apply(residual, z_q, keep, weight.double())
        else:
            share = weight.double()[:, None]
            commitment = ((residual - z_q.detach()).square() * share).sum()
            codebook = ((z_q - residual.detach()).square() * share).sum()
            left = residual - z_q.detach() * keep
        (3 * commitment + 0.5 * codebook + (left * mix).sum()).backward()
        assert residual.grad is not None
        assert z_q.grad is not None
        return [commitment, codebook, left], [residual.grad, z_q.grad]

    torch.testing.assert_close(run(True), run(False), rtol=1e-12, atol=1e-12)


def test_each_level_codes_the_residual() -> None:
    quantizer = MAKERS["residual"]().eval()
    z_e = latents()
    codes = quantizer.encode(z_e)
    residual = z_e
    for k, level in enumerate(quantizer.levels):
        assert torch.equal(codes[:, k : k + 1], level.encode(residual))
        residual = residual - level.decode(codes[:, k : k + 1])
    for k in (1, 2, 3):
        assert torch.equal(quantizer.encode(z_e, n_levels=k), codes[:, :k])
    for k in (0, 4, -1):
        with pytest.raises(ValueError, match="n_levels"):
            quantizer.encode(z_e, n_levels=k)


@pytest.mark.parametrize("name", ["residual", "group-residual"])
def test_quantizer_dropout_statistics(name: str) -> None:
    quantizer = MAKERS[name]()
    groups = 2 if name == "group-residual" else 1
    levels = quantizer.n_codebooks // groups
    counts = {}
    for share in (0.0, 0.5, 1.0):
        for part in [quantizer, *getattr(quantizer, "groups", [])]:
            part.dropout = share
        codes = quantizer.train()(torch.randn(4000, D, 1)).codes  # [B, K * G, 1]
        present = (codes >= 0).unflatten(1, (levels, groups))[..., 0]  # [B, K, G]
        assert (present == present[:, :, :1]).all()  # the same levels in all groups
        assert (present[:, 1:, 0] <= present[:, :-1, 0]).all()  # a prefix
        counts[share] = torch.bincount(present[:, :, 0].sum(1), minlength=levels + 1)[1:] / 4000
    expected = {s: torch.full((levels,), s / levels) for s in counts}
    for share, values in expected.items():
        values[-1] += 1 - share
        torch.testing.assert_close(counts[share], values, rtol=0, atol=0.04)
    quantizer.eval()
    assert (quantizer(latents()).codes >= 0).all()  # none in use


def test_groups_are_level_major() -> None:
    quantizer = MAKERS["group-residual"]().eval()
    assert quantizer.codebook_sizes == (32, 32, 16, 16)
    z_e = latents()
    codes = quantizer.encode(z_e)
    for g, group in enumerate(quantizer.groups):
        assert torch.equal(codes[:, g::2], group.encode(z_e[:, 3 * g : 3 * g + 3]))
    assert torch.equal(quantizer.encode(z_e, n_levels=1), codes[:, :2])
    one_more = quantizer.decode(codes[:, :3])
    assert torch.equal(one_more[:, :3], quantizer.decode(codes)[:, :3])
    assert torch.equal(one_more[:, 3:], quantizer.decode(codes[:, :2])[:, 3:])


def test_group_losses_are_means_over_groups() -> None:
    quantizer = MAKERS["group-residual"]()
    z_e, kept = latents(), torch.tensor([1, 2, 2, 1])
    out = quantizer(z_e, kept)
    parts = [group(z_e[:, 3 * g : 3 * g + 3], kept) for g, group in enumerate(quantizer.groups)]
    for loss in ("commitment_loss", "codebook_loss"):
        torch.testing.assert_close(getattr(out, loss), sum(getattr(part, loss) for part in parts) / 2)


def test_more_levels_come_closer() -> None:
    quantizer = GroupResidualQuantizer([[VQ(64, 3) for _ in range(4)] for _ in range(2)], dropout=0).train()
    for _ in range(3):
        quantizer(latents((200,)))
    z_e = latents((200,))
    codes = quantizer.eval().encode(z_e)
    with torch.no_grad():
        errors = [float((z_e - quantizer.decode(codes[:, :k])).square().mean()) for k in (2, 4, 6, 8)]
    assert all(b < 0.6 * a for a, b in itertools.pairwise(errors)), errors


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResidualQuantizer([]),
        lambda: ResidualQuantizer([sim(), sim(dim=3)]),
        lambda: ResidualQuantizer([SimVQ(N, D, "cosine")]),
        lambda: ResidualQuantizer([sim()], dropout=1.5),
        lambda: GroupResidualQuantizer([]),
        lambda: GroupResidualQuantizer([[sim()], [sim(), sim()]]),
        lambda: GroupResidualQuantizer([[sim()], [sim(dim=3)]]),
        lambda: MAKERS["group-residual"]().encode(latents(dim=7)),
        lambda: VQ(0, D),
        lambda: VQ(N, D, decay=1.0),
        lambda: VQ(N, D, dead_below=-1),
        lambda: FullVQ(N, D, group=5),
        lambda: LFQ(0),
        lambda: LFQ(63),
        lambda: LFQ(8, temperature=0),
        lambda: LFQ(8)(latents(dim=7)),
        lambda: FSQ([]),
        lambda: FSQ([8, 2]),
        lambda: FSQ([8, 5])(latents(dim=3)),
        lambda: ScalarQuantizer(0),
        lambda: ScalarQuantizer(4, step=0.0),
        lambda: ScalarQuantizer(4, relaxation="soft"),  # type: ignore[arg-type]
        lambda: ScalarQuantizer(4)(latents(dim=3)),
        lambda: kmeans(torch.zeros(0, 3), 4),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


# ---- learned codebooks ----


def blobs(n_blobs: int, per_blob: int, dim: int = D) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around well separated centres: ``[n_blobs * per_blob, dim]`` shuffled, and the centres."""
    centres = 10 * torch.randn(n_blobs, dim)
    rows = (centres[:, None] + 0.01 * torch.randn(n_blobs, per_blob, dim)).flatten(0, 1)
    return rows[torch.randperm(len(rows))], centres


@pytest.mark.parametrize("kind", [VQ, EMAVQ])
def test_kmeans_starts_from_the_first_training_batch(kind: Any) -> None:
    vq = kind(N, D)
    z_e = latents((100,))
    before = vq.eval()(z_e).commitment_loss
    assert not vq.started  # only training starts it
    vq.train()(z_e)
    assert vq.started
    assert vq.eval()(z_e).commitment_loss < 0.6 * before
    if kind is VQ:
        settled = vq.codebook.detach().clone()
        vq.train()(latents((100,)) + 50)
        assert torch.equal(vq.codebook, settled)  # no second start


def test_kmeans_centres_are_means_of_their_rows() -> None:
    rows = torch.randn(500, 3)
    centres = kmeans(rows, 8, iterations=50)
    nearest = torch.cdist(rows, centres).argmin(-1)
    for k in range(8):
        torch.testing.assert_close(centres[k], rows[nearest == k].mean(0), rtol=1e-4, atol=1e-4)


def test_kmeans_with_fewer_rows_than_clusters() -> None:
    rows = torch.randn(5, 3)
    centres = kmeans(rows, 12, iterations=0)
    assert centres.unique(dim=0).shape == (12, 3)
    assert torch.cdist(centres, rows).amin(-1).max() < 0.2
    assert (torch.cdist(rows, centres).amin(-1) == 0).all()


def test_kmeans_keeps_the_centre_of_an_empty_cluster() -> None:
    rows = torch.tensor([[1.0, 2.0], [5.0, 5.0], [-3.0, 4.0]]).repeat(10, 1)
    centres = kmeans(rows, 8, iterations=5)  # at most 3 of 8 clusters can hold rows
    assert (torch.cdist(centres, rows[:3]).amin(-1) < 1e-3).all()


def test_spherical_kmeans_gives_unit_centres() -> None:
    centres = kmeans(torch.randn(200, 3) * 5, 8, metric="cosine")
    torch.testing.assert_close(centres.norm(dim=-1), torch.ones(8))


@pytest.mark.parametrize("kind", [VQ, EMAVQ])
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_dead_codewords_are_revived(kind: Any, metric: Metric) -> None:
    vq = kind(N, D, metric, kmeans_iterations=0, dead_below=1.0, decay=0.9).train()
    rows, _ = blobs(N, 20)
    z_e = rows.T[None]  # [1, D, M]
    used_at_start = vq(z_e).codes.unique().numel()
    assert used_at_start < 0.7 * N
    for _ in range(150):
        out = vq(z_e)
    assert out.codes.unique().numel() > 0.9 * N
    assert vq.codebook.isfinite().all()


def test_revival_touches_only_the_dead() -> None:
    vq = VQ(N, D, kmeans_iterations=0, dead_below=1.0).train()
    before = vq.codebook.detach().clone()
    vq.cluster_size[[3, 17]] = 0.5
    rows = torch.randn(40, D)
    vq.prepare(rows)
    changed = (vq.codebook != before).any(1).nonzero()[:, 0]
    assert changed.tolist() == [3, 17]
    picked = (vq.codebook[[3, 17], None] == rows).all(-1).nonzero()[:, 1]  # which row each became
    assert len(picked.unique()) == 2
    assert (vq.cluster_size[[3, 17]] == vq.fresh_count).all()
    assert vq.fresh_count > vq.dead_below


def test_revived_codewords_of_cosine_lie_on_the_sphere() -> None:
    vq = EMAVQ(N, D, "cosine", kmeans_iterations=0).train()
    vq.cluster_size[5] = 0.0
    before = vq.codebook.clone()
    vq(100 * latents())
    assert not torch.allclose(vq.codebook[5], before[5], atol=0.1)
    torch.testing.assert_close(vq.codebook.norm(dim=1), torch.ones(N))
    assert vq.cluster_sum.norm(dim=1).max() < 10  # sums of unit rows: one long row must not outweigh the rest


def test_more_dead_codewords_than_rows() -> None:
    vq = VQ(N, D, kmeans_iterations=0).train()
    vq.cluster_size.zero_()
    vq.prepare(torch.randn(5, D))
    assert int((vq.cluster_size > 0).sum()) == 5


def test_no_revival_when_it_is_off_or_in_use() -> None:
    for vq in (VQ(N, D, kmeans_iterations=0, dead_below=0).train(), VQ(N, D, kmeans_iterations=0).eval()):
        before = vq.codebook.detach().clone()
        vq.cluster_size.zero_()
        vq(latents())
        assert torch.equal(vq.codebook, before)


def test_ema_step_by_hand() -> None:
    vq = EMAVQ(3, 2, kmeans_iterations=0, dead_below=0, decay=0.75, smoothing=0.5).train()
    vq.codewords.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    vq.cluster_size.copy_(torch.tensor([4.0, 2.0, 1.0]))
    vq.cluster_sum.copy_(vq.codewords * vq.cluster_size[:, None])
    z_e = torch.tensor([[[1.0, 9.0, 11.0, 2.0], [1.0, 1.0, 3.0, 0.0]]])  # [1, 2, 4]: rows (1,1) (9,1) (11,3) (2,0)
    out = vq(z_e)
    assert out.codes.tolist() == [[[0, 1, 1, 0]]]
    # sizes: 0.75 * (4, 2, 1) + 0.25 * (2, 2, 0);  sums: 0.75 * old + 0.25 * ((3,1), (20,4), (0,0))
    sizes, sums = [3.5, 2.0, 0.75], [[0.75, 0.25], [20.0, 1.0], [0.0, 7.5]]
    torch.testing.assert_close(vq.cluster_size, torch.tensor(sizes))
    torch.testing.assert_close(vq.cluster_sum, torch.tensor(sums))
    n = sum(sizes)  # 6.25
    expected = [[x / ((size + 0.5) / (n + 1.5) * n) for x in row] for size, row in zip(sizes, sums, strict=True)]
    torch.testing.assert_close(vq.codebook, torch.tensor(expected))


def test_dropped_levels_do_not_count() -> None:
    quantizer: Any = ResidualQuantizer([EMAVQ(N, D, kmeans_iterations=0, dead_below=0) for _ in range(2)]).train()
    before = quantizer.levels[1].codebook.clone()
    size = float(quantizer.levels[1].cluster_size.sum())
    quantizer(latents(), torch.ones(4, dtype=torch.long))
    assert quantizer.levels[1].usage.report().total == 0
    assert quantizer.levels[0].usage.report().total == 4 * 15
    assert float(quantizer.levels[1].cluster_size.sum()) == pytest.approx(0.99 * size)
    torch.testing.assert_close(quantizer.levels[1].codebook, before, rtol=1e-3, atol=1e-5)


def usage_after_training(quantizer: Any, scale: float = 20.0, steps: int = 300) -> UsageReport:
    """Usage of a codebook of 4 channels that was trained on latents far wider than its start."""
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1)
    quantizer.train()
    for _ in range(steps):
        loss = quantizer(scale * torch.randn(1, 4, 1024)).codebook_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    quantizer.usage.reset()
    for _ in range(8):
        quantizer(scale * torch.randn(1, 4, 1024))
    return quantizer.usage.report()


def test_training_uses_every_codeword() -> None:
    free = usage_after_training(VQ(128, 4, kmeans_iterations=0, dead_below=0))
    assert free.usage < 0.8  # the plain codebook leaves codewords behind, or the rest would prove nothing
    for quantizer in (SimVQ(128, 4), FullVQ(128, 4, group=8, width=32, depth=1, heads=2)):
        report = usage_after_training(quantizer)
        assert report.usage == 1.0
        assert report.perplexity > 0.8 * 128


@pytest.mark.parametrize("name", ["simvq", "simvq-cosine-rotation", "fullvq"])
def test_every_codeword_moves_in_one_step(name: str) -> None:
    quantizer = MAKERS[name]().train()
    if name == "fullvq":
        torch.nn.init.normal_(quantizer.bridge.recover.weight, std=0.02)  # past the first step
    before = quantizer.codebook.detach().clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=1.0)
    out = quantizer(latents((1,), batch=2))
    assert out.codes.unique().numel() <= 2
    out.codebook_loss.backward()
    optimizer.step()
    assert (quantizer.codebook != before).any(1).all()


@pytest.mark.parametrize("name", ["simvq", "fullvq"])
def test_fold_keeps_the_codewords(name: str) -> None:
    quantizer = MAKERS[name]()
    with torch.no_grad():
        if name == "simvq":
            quantizer.projection.add_(0.3 * torch.randn(D, D))
        else:
            torch.nn.init.normal_(quantizer.bridge.recover.weight, std=0.1)
    codebook = quantizer.codebook.detach().clone()
    assert (codebook != quantizer.basis).any()
    quantizer.fold()
    assert torch.equal(quantizer.basis, codebook)
    assert torch.equal(quantizer.codebook, codebook)  # the identity is exact
    quantizer.fold()
    assert torch.equal(quantizer.codebook, codebook)


def test_full_vq_starts_as_its_basis() -> None:
    quantizer = MAKERS["fullvq"]()
    assert torch.equal(quantizer.codebook, quantizer.basis)


def test_cosine_ignores_length() -> None:
    quantizer = SimVQ(N, D, "cosine").eval()
    z_e = latents()
    out = quantizer(z_e)
    assert torch.equal(quantizer.encode(7 * z_e), out.codes)
    torch.testing.assert_close(out.z_q.norm(dim=1), torch.ones(4, 3, 5))


# ---- telemetry ----


def test_telemetry_numbers() -> None:
    usage = CodebookUsage(8)
    assert usage.report().perplexity == 0
    usage.update(torch.tensor([[0, 0, 1], [ABSENT, 1, 2]]))
    usage.update(torch.tensor([0, 0, ABSENT]))
    report = usage.report(dead_below=2)
    assert (report.total, report.dead, report.usage) == (7, 6, 3 / 8)  # counts 4, 2, 1
    p = [4 / 7, 2 / 7, 1 / 7]
    assert report.perplexity == pytest.approx(math.exp(-sum(x * math.log(x) for x in p)))
    assert usage.report().dead == 5
    usage.reset()
    usage.update(torch.arange(8))
    assert usage.report().perplexity == pytest.approx(8)
    assert not usage.state_dict()


@pytest.mark.parametrize("name", ["vq", "simvq", "lfq", "fsq"])
def test_usage_counts_in_training_only(name: str) -> None:
    quantizer = MAKERS[name]()
    quantizer.eval()(latents())
    assert quantizer.usage.report().total == 0
    out = quantizer.train()(latents())
    assert quantizer.usage.report().total == 60
    assert quantizer.usage.report().usage == out.codes.unique().numel() / quantizer.codebook_sizes[0]


# ---- binary ----


@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_binary_codes_are_signs(kind: Any) -> None:
    quantizer = kind(4)
    z_e = torch.tensor([[1.0, -1.0, 0.5, -2.0], [-1.0, -1.0, -1.0, 3.0], [0.0, -0.0, float("nan"), 1e-20]])
    codes = quantizer.encode(z_e[:, :, None])
    assert codes[:, 0, 0].tolist() == [0b0101, 0b1000, 0b1000]  # first channel is the lowest bit
    assert torch.equal(quantizer(z_e[:, :, None]).codes, codes)
    tiny = torch.tensor([[1e30, -1e-30, 1e-30, 1.0]])[:, :, None]
    assert quantizer(tiny).codes.item() == quantizer.encode(tiny).item() == 0b1101
    scale = 0.5 if kind is BSQ else 1.0
    assert quantizer.decode(codes)[0, :, 0].tolist() == [scale, -scale, scale, -scale]
    everything = torch.arange(16)[None, None]
    assert torch.equal(quantizer.encode(quantizer.decode(everything)), everything)
    assert quantizer.decode(everything)[0].T.unique(dim=0).shape == (16, 4)


@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_binary_with_62_bits(kind: Any) -> None:
    quantizer = kind(62, gradient="rotation").train()
    assert quantizer.codebook_sizes == (1 << 62,)
    assert quantizer.usage is None  # nothing of size N anywhere
    z_e = latents(dim=62).requires_grad_()
    out = quantizer(z_e)
    assert torch.equal(quantizer.decode(out.codes), out.z_q)
    assert torch.equal(out.z_q > 0, z_e > 0)
    assert gradient_of(out.auxiliary_loss + out.z_q.sum(), z_e).isfinite().all()


@pytest.mark.parametrize("kind", [LFQ, BSQ])
def test_entropy_penalty_against_the_whole_codebook(kind: Any) -> None:
    quantizer = kind(6, temperature=0.7, diversity=0.4, group_bits=6).train()
    z_e = latents()
    penalty = quantizer(z_e).auxiliary_loss
    rows = z_e.movedim(1, -1).reshape(-1, 6)
    if kind is BSQ:
        rows = F.normalize(rows, dim=-1)
    codebook = quantizer.decode(torch.arange(64)[None, None])[0].T  # [64, 6]
    q = (-torch.cdist(rows.double(), codebook.double()).square() / 0.7).softmax(-1)  # [M, 64]
    expected = torch.special.entr(q).sum(-1).mean() - 0.4 * torch.special.entr(q.mean(0)).sum()
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-5, atol=1e-5)


def test_groups_of_bits_bound_the_entropy_from_above() -> None:
    rows = torch.randn(400, 6) @ torch.randn(6, 6)  # dependent bits
    penalties = [float(LFQ(6, temperature=1.0, group_bits=g).entropy_penalty(rows)) for g in (1, 2, 3, 6)]
    assert penalties[0] < penalties[1] < penalties[3]  # the shared entropy is subtracted
    assert penalties[2] < penalties[3]
    independent = torch.randn(1, 6)  # a single row is a product of bits: no gap
    one = [float(LFQ(6, temperature=1.0, group_bits=g).entropy_penalty(independent)) for g in (1, 4, 6)]
    assert one == pytest.approx([0, 0, 0], abs=1e-5)


def test_entropy_penalty_prefers_sure_and_spread_codes() -> None:
    lfq = LFQ(4)
    corners = lfq.decode(torch.arange(16)[None, None])[0].T
    best = float(lfq.entropy_penalty(corners))
    assert best == pytest.approx(-4 * math.log(2), abs=1e-4)
    assert float(lfq.entropy_penalty(corners[:1].expand(16, 4))) == pytest.approx(0, abs=1e-4)  # all one code
    assert float(lfq.entropy_penalty(torch.zeros(16, 4))) == pytest.approx(0, abs=1e-4)  # undecided
    lfq.eval()
    assert lfq(latents(dim=4)).auxiliary_loss == 0


def test_entropy_penalty_has_a_finite_gradient_far_out() -> None:
    for values in ([[1e4, -1e4]], [[1e4, -1e4], [0.0, 1e-8], [-300.0, 20.0]]):  # alone: three codes of probability 0
        rows = torch.tensor(values, requires_grad=True)
        assert gradient_of(LFQ(2).entropy_penalty(rows), rows).isfinite().all()


def test_bsq_error_bound() -> None:
    quantizer = BSQ(16)
    rows = F.normalize(torch.cat([torch.randn(1000, 16), torch.eye(16)]), dim=-1)
    z_q = quantizer.decode(quantizer.encode(rows[:, :, None]))[..., 0]
    errors = (rows - z_q).square().sum(-1)
    assert errors.max() <= 2 - 2 / 4 + 1e-5
    torch.testing.assert_close(errors[-16:], torch.full((16,), 1.5))  # the axes reach it


# ---- finite scalar ----


def test_fsq_codes_are_a_mixed_radix() -> None:
    fsq = FSQ([3, 4, 5])
    assert fsq.codebook_sizes == (60,)
    everything = torch.arange(60)[None, None]
    z_q = fsq.decode(everything)[0].T  # [60, 3]
    assert z_q[0].tolist() == [-1, -1, -1]
    assert z_q[1].tolist() == [0, -1, -1]
    assert z_q[3].tolist() == [-1, -0.5, -1]
    assert z_q[12].tolist() == [-1, -1, -0.5]
    assert z_q[59].tolist() == [1, 0.5, 1]
    assert z_q.unique(dim=0).shape == (60, 3)
    # Values that are found again from the middle of their cells, and from beyond the range.
    shift = torch.atanh(fsq.offset / fsq.half_range)
    z_e = torch.atanh(((z_q * fsq.half_width + fsq.offset) / fsq.half_range).clamp(-0.9999, 0.9999)) - shift
    assert torch.equal(fsq.encode(z_e.T[None]), everything)
    far = torch.tensor([[[1e9], [-1e9], [float("inf")]], [[float("nan")], [0.0], [-0.0]]])
    assert fsq.encode(far)[:, 0, 0].tolist() == [2 + 0 + 4 * 12, 1 + 2 * 3 + 2 * 12]


def test_fsq_has_no_losses() -> None:
    out = FSQ([8, 5, 5])(latents(dim=3))
    assert out.commitment_loss == out.codebook_loss == out.auxiliary_loss == 0


# ---- scalar ----


def test_scalar_values_codes_and_clipping() -> None:
    scalar = ScalarQuantizer(1, half_range=3, step=0.5).eval()
    z_e = torch.tensor([0.0, 0.24, 0.26, -0.26, 0.25, 0.75, 1.5, 1.8, -99.0, float("inf"), float("nan")])[None, None]
    assert scalar.encode(z_e)[0, 0].tolist() == [3, 3, 4, 2, 3, 5, 6, 6, 0, 6, 3]  # halves to even
    assert scalar.codebook_sizes == (7,)
    z_q = scalar.decode(torch.arange(7)[None, None])[0, 0]
    assert z_q.tolist() == [-1.5, -1, -0.5, 0, 0.5, 1, 1.5]
    inside = torch.tensor([[[0.3, -1.5, 1.5]]])
    assert scalar(inside).commitment_loss == 0
    assert scalar(torch.tensor([[[2.0, -1.5]]])).commitment_loss == pytest.approx(0.5**2 / 2)


def test_scalar_noise() -> None:
    scalar = ScalarQuantizer(2, half_range=4, step=0.5).train()
    z_e = torch.full((1, 2, 20000), 0.1)
    z_e[:, 1] = 5.0  # clipped to 2
    z_e.requires_grad_()
    out = scalar(z_e)
    noise = (out.z_q - torch.tensor([0.1, 2.0])[None, :, None]).detach()
    assert noise.min() >= -0.25 - 1e-5
    assert noise.max() <= 0.25 + 1e-5
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.var()) == pytest.approx(0.5**2 / 12, rel=0.03)
    assert torch.equal(out.codes, scalar.eval().encode(z_e))
    grad = gradient_of(out.z_q.sum(), z_e)
    assert (grad[:, 0] == 1).all()
    assert (grad[:, 1] == 0).all()  # outside the range the commitment loss leads back
    grad = gradient_of(out.commitment_loss, z_e)
    assert (grad[:, 0] == 0).all()
    assert (grad[:, 1] > 0).all()


def test_scalar_straight_through() -> None:
    scalar = MAKERS["scalar-straight-through"]().train()
    z_e = (2 * latents()).requires_grad_()
    out = scalar(z_e)
    assert torch.equal(out.z_q, scalar.decode(out.codes))
    assert torch.equal(gradient_of(out.z_q.sum(), z_e), torch.ones_like(z_e))


# ---- other types than float32 ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", list(MAKERS))
def test_trains_in_other_types(name: str, dtype: torch.dtype) -> None:
    """A quantizer that was cast trains with nets of its type; what comes out is float32 and that of its codes."""
    quantizer, analysis = MAKERS[name]().to(dtype), torch.nn.Conv1d(D, D, 1).to(dtype)
    x = torch.randn(4, D, 40).to(dtype)
    optimizer = torch.optim.SGD([*analysis.parameters(), *quantizer.parameters()], lr=0.1)
    losses = []
    for _ in range(30):
        out = quantizer(analysis(x))
        loss = (out.z_q - x).square().mean() + out.commitment_loss + out.codebook_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert out.z_q.dtype == out.commitment_loss.dtype == torch.float32
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    quantizer.eval()
    z_e = analysis(x)
    out = quantizer(z_e)
    assert torch.equal(quantizer.encode(z_e), out.codes)
    assert torch.equal(quantizer.decode(out.codes), out.z_q)


def test_vq_of_bfloat16_trains() -> None:
    quantizer = VQ(64, 8).bfloat16()
    z_e = torch.randn(4, 8, 40, dtype=torch.bfloat16, requires_grad=True)
    out = quantizer(z_e)
    (out.z_q.square().mean() + out.commitment_loss + out.codebook_loss).backward()
    assert z_e.grad is not None
    assert z_e.grad.abs().sum() > 0
    assert quantizer.codewords.dtype == torch.bfloat16
    assert quantizer.codewords.grad is not None
    assert quantizer.cluster_size.dtype == torch.float32  # an average that bfloat16 would round away


def test_fsq_codes_alike_in_all_types() -> None:
    z_e = (3 * latents((20, 20))).to(torch.bfloat16)
    codes = MAKERS["fsq"]().encode(z_e)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(MAKERS["fsq"]().to(dtype).encode(z_e), codes)
