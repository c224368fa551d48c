"""Our quantizers held against `vector_quantize_pytorch`: same inputs, same codebooks, same codes."""

from functools import partial
from typing import Any

import pytest
import torch
import vector_quantize_pytorch as oracle
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from tokodec.tokenizers.quantize import (
    BSQ,
    EMAVQ,
    FSQ,
    LFQ,
    VQ,
    FullVQ,
    Gradient,
    GroupResidualQuantizer,
    Metric,
    ResidualQuantizer,
    SimVQ,
    rotation_trick,
)

B, T, D, N = 4, 50, 8, 64


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def latents(dim: int = D, batch: int = B, length: int = T) -> torch.Tensor:
    """Our layout ``[B, D, T]``; the oracle wants ``[B, T, D]``."""
    return torch.randn(batch, dim, length)


def plain_vq(codebook: torch.Tensor, **kwargs: Any) -> VQ:
    n, dim = codebook.shape
    vq = VQ(n, dim, kmeans_iterations=0, dead_below=0, **kwargs)
    with torch.no_grad():
        vq.codewords.copy_(codebook)
    return vq


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_vector_quantize(metric: Metric) -> None:
    theirs = oracle.VectorQuantize(dim=D, codebook_size=N, use_cosine_sim=metric == "cosine").eval()
    ours = plain_vq(theirs.codebook, metric=metric).eval()
    z_e = latents()
    z_q, indices, _ = theirs(z_e.movedim(1, -1))
    assert torch.equal(ours.encode(z_e)[:, 0], indices)
    assert indices.unique().numel() > N // 2
    torch.testing.assert_close(ours.decode(indices[:, None]), z_q.movedim(-1, 1))


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_ema_steps(metric: Metric) -> None:
    theirs = oracle.VectorQuantize(dim=D, codebook_size=N, use_cosine_sim=metric == "cosine", decay=0.9)
    theirs.train()
    ours = EMAVQ(N, D, metric, kmeans_iterations=0, dead_below=0, decay=0.9).train()
    ours.codewords.copy_(theirs.codebook)
    ours.cluster_sum.copy_(theirs.codebook)
    ours.cluster_size.fill_(1.0)
    start = ours.codebook.clone()
    for _ in range(5):
        z_e = latents()
        _, indices, loss = theirs(z_e.movedim(1, -1))
        out = ours(z_e)
        assert torch.equal(out.codes[:, 0], indices)
        torch.testing.assert_close(ours.codebook, theirs.codebook, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out.commitment_loss, loss.squeeze())
    assert (ours.codebook - start).norm() > 0.1


def test_residual_vq() -> None:
    theirs = oracle.ResidualVQ(dim=D, num_quantizers=4, codebook_size=N).eval()
    with torch.no_grad():
        for k, layer in enumerate(theirs.layers):
            layer._codebook.embed.copy_(torch.randn(1, N, D) * 0.6**k)
    ours = ResidualQuantizer([plain_vq(codebook) for codebook in theirs.codebooks]).eval()
    z_e = latents()
    z_q, indices, _ = theirs(z_e.movedim(1, -1))
    codes = ours.encode(z_e)
    assert torch.equal(codes.movedim(1, -1), indices)
    torch.testing.assert_close(ours.decode(codes), z_q.movedim(-1, 1))
    torch.testing.assert_close(ours(z_e).z_q, z_q.movedim(-1, 1))


def test_grouped_residual_vq() -> None:
    groups, levels = 2, 3
    theirs = oracle.GroupedResidualVQ(dim=2 * D, groups=groups, num_quantizers=levels, codebook_size=N).eval()
    with torch.no_grad():
        for rvq in theirs.rvqs:
            for k, layer in enumerate(rvq.layers):
                layer._codebook.embed.copy_(torch.randn(1, N, D) * 0.6**k)
    ours = GroupResidualQuantizer([[plain_vq(codebook) for codebook in rvq.codebooks] for rvq in theirs.rvqs]).eval()
    z_e = latents(2 * D)
    z_q, indices, _ = theirs(z_e.movedim(1, -1))  # indices [G, B, T, K]
    codes = ours.encode(z_e)
    for k in range(levels):
        for g in range(groups):
            assert torch.equal(codes[:, k * groups + g], indices[g, ..., k])
    torch.testing.assert_close(ours.decode(codes), z_q.movedim(-1, 1))


@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
def test_sim_vq(gradient: Gradient) -> None:
    theirs = oracle.SimVQ(dim=D, codebook_size=N, rotation_trick=gradient == "rotation")
    ours = SimVQ(N, D, gradient=gradient)
    with torch.no_grad():
        ours.basis.copy_(theirs.frozen_codebook)
        ours.projection.copy_(theirs.code_transform.weight.T)
    torch.testing.assert_close(ours.codebook, theirs.codebook)
    z_e = latents().requires_grad_()
    z_q, indices, loss = theirs(z_e.movedim(1, -1))
    out = ours(z_e)
    assert torch.equal(out.codes[:, 0], indices)
    torch.testing.assert_close(out.z_q, z_q.movedim(-1, 1))
    torch.testing.assert_close(out.codebook_loss + 0.25 * out.commitment_loss, loss)
    weight = torch.randn_like(z_e)
    (theirs_grad,) = torch.autograd.grad((z_q.movedim(-1, 1) * weight).sum(), z_e)
    (ours_grad,) = torch.autograd.grad((out.z_q * weight).sum(), z_e)
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-4, atol=1e-5)


def test_full_vq_projector() -> None:
    # The oracle takes any module as projector of a learned codebook: give it ours.
    ours = FullVQ(N, D, group=4, width=32, depth=1).eval()
    torch.nn.init.normal_(ours.bridge.recover.weight, std=0.05)
    theirs = oracle.VectorQuantize(dim=D, codebook_size=N, vq_bridge=lambda c: c + ours.bridge(c[0])[None]).eval()
    with torch.no_grad():
        theirs._codebook.embed.copy_(ours.basis)
    z_e = latents()
    z_q, indices, _ = theirs(z_e.movedim(1, -1))
    codes = ours.encode(z_e)
    assert torch.equal(codes[:, 0], indices)
    torch.testing.assert_close(ours.decode(codes), z_q.movedim(-1, 1))


@pytest.mark.parametrize("spherical", [False, True])
def test_binary(spherical: bool) -> None:
    bits, inverse = 9, 3.0
    theirs = oracle.LFQ(dim=bits, spherical=spherical, diversity_gamma=0.7, commitment_loss_weight=1.0)
    ours = (BSQ if spherical else LFQ)(bits, temperature=1 / inverse, diversity=0.7, group_bits=bits)
    z_e = latents(bits) * 0.3
    ret, parts = theirs(z_e.flip(1).movedim(1, -1), inv_temperature=inverse, return_loss_breakdown=True)
    out = ours(z_e)
    # Their first channel is the highest bit, ours the lowest (as in the paper), hence the flips.
    assert torch.equal(out.codes[:, 0], ret.indices.long())
    torch.testing.assert_close(out.z_q, ret.quantized.movedim(-1, 1).flip(1))
    torch.testing.assert_close(ours.decode(out.codes), ret.quantized.movedim(-1, 1).flip(1))
    torch.testing.assert_close(out.commitment_loss, parts.commitment)
    # They clamp logarithms at 1e-5, which shows in the third digit.
    expected = parts.per_sample_entropy - 0.7 * parts.batch_entropy
    torch.testing.assert_close(out.auxiliary_loss, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [3, 4, 7], [8, 8, 8, 6, 5]])
def test_fsq(levels: list[int]) -> None:
    theirs = oracle.FSQ(levels)
    theirs.bound = partial(theirs.bound, eps=-1e-3)  # the paper's (1 - eps), where they have (1 + eps)
    ours = FSQ(levels)
    z_e = (2 * latents(len(levels))).requires_grad_()
    z_q, indices = theirs(z_e.movedim(1, -1))
    out = ours(z_e)
    assert torch.equal(out.codes[:, 0], indices.long())
    torch.testing.assert_close(out.z_q, z_q.movedim(-1, 1))
    everything = torch.arange(ours.codebook_sizes[0])[None, None]
    torch.testing.assert_close(ours.decode(everything)[0].T, theirs.implicit_codebook)
    (theirs_grad,) = torch.autograd.grad(z_q.square().sum(), z_e)
    (ours_grad,) = torch.autograd.grad(out.z_q.square().sum(), z_e)
    torch.testing.assert_close(ours_grad, theirs_grad)


def test_rotation_trick() -> None:
    e, q = torch.randn(200, D, requires_grad=True), torch.randn(200, D)
    weight = torch.randn(200, D)
    (theirs,) = torch.autograd.grad((rotate_to(e, q) * weight).sum(), e)
    (ours,) = torch.autograd.grad((rotation_trick(e, q) * weight).sum(), e)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
