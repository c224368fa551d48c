"""A prepared quantizer gives what its quantizer gives, also after the weights have changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tokodec.tokenizers.quantize import (
    ABSENT,
    VQ,
    CodebookQuantizer,
    FullVQ,
    GroupResidualQuantizer,
    PreparedQuantizer,
    SimVQ,
    prepared,
)

Change = Callable[[GroupResidualQuantizer], object]

MAKERS: dict[str, Callable[[int], CodebookQuantizer]] = {
    "simvq": lambda n: SimVQ(n, 3),
    "vq": lambda n: VQ(n, 3),
    "fullvq": lambda n: FullVQ(n, 3, group=4, width=16, depth=1, heads=2),
}


def make(kind: str = "simvq") -> GroupResidualQuantizer:
    torch.manual_seed(0)
    return GroupResidualQuantizer([[MAKERS[kind](n) for n in (64, 32, 16)] for _ in range(2)]).eval()


def latents(batch: int = 2, frames: int = 5) -> Tensor:
    return torch.randn(batch, 6, frames, generator=torch.Generator().manual_seed(1))


def assert_same(quick: PreparedQuantizer, quantizer: GroupResidualQuantizer) -> None:
    z = latents()
    with torch.no_grad():
        codes = quantizer.encode(z)
        assert torch.equal(quick.encode(z), codes)
        assert torch.equal(quick.decode(codes), quantizer.decode(codes))


@pytest.mark.parametrize("kind", MAKERS)
def test_codes_and_latents_are_the_quantizers(kind: str) -> None:
    quantizer = make(kind)
    quick = PreparedQuantizer(quantizer)
    for batch, frames in ((1, 1), (1, 6), (3, 7), (1, 0), (2, 400)):
        z = latents(batch, frames)
        for n_levels in (1, 2, 3, None):
            codes = quantizer.encode(z, n_levels)
            found = quick.encode(z, n_levels)
            assert torch.equal(found, codes)
            assert found.is_contiguous()
        for k in range(1, 7):  # also where the last level has one of its groups only
            assert torch.equal(quick.decode(codes[:, :k]), quantizer.decode(codes[:, :k]))
        lost = torch.where(torch.rand(codes.shape) < 0.5, codes, ABSENT)
        assert torch.equal(quick.decode(lost), quantizer.decode(lost))
    assert not quick.decode(codes).requires_grad


def step(quantizer: GroupResidualQuantizer) -> None:
    optimizer = torch.optim.AdamW(quantizer.parameters(), 0.1)
    out = quantizer.train()(latents())
    (out.commitment_loss + out.codebook_loss).backward()
    optimizer.step()
    quantizer.eval()


def other_weights(quantizer: GroupResidualQuantizer) -> dict[str, Tensor]:
    return {k: v + torch.randn(v.shape) if v.is_floating_point() else v for k, v in quantizer.state_dict().items()}


def first(quantizer: GroupResidualQuantizer) -> SimVQ:
    return next(m for m in quantizer.modules() if isinstance(m, SimVQ))


def replace_parameter(quantizer: GroupResidualQuantizer) -> None:
    first(quantizer).projection = nn.Parameter(torch.randn(3, 3))


def penalise(quantizer: GroupResidualQuantizer) -> None:
    first(quantizer).penalty = torch.rand(64)


def replace_data(quantizer: GroupResidualQuantizer) -> None:
    for p in quantizer.parameters():
        p.data = torch.randn_like(p)


def replace_level(quantizer: GroupResidualQuantizer) -> None:
    levels = quantizer.groups[0].levels
    assert isinstance(levels, nn.ModuleList)
    levels[1] = SimVQ(32, 3)


CHANGES: dict[str, Change] = {
    "a training step": step,
    "weights loaded": lambda q: q.load_state_dict(other_weights(q)),
    "weights assigned": lambda q: q.load_state_dict(other_weights(q), assign=True),
    "there and back": lambda q: q.to(torch.bfloat16).to(torch.float32),
    "data replaced": replace_data,
    "a parameter replaced": replace_parameter,
    "a level replaced": replace_level,
    "a penalty": penalise,
    "no penalty": lambda q: setattr(first(q), "penalty", None),
    "folded": lambda q: first(q).fold(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_the_weights_are_noticed(name: str) -> None:
    quantizer = make()
    penalise(quantizer)
    quick = PreparedQuantizer(quantizer)
    for _ in range(2):
        assert_same(quick, quantizer)
        CHANGES[name](quantizer)
    assert_same(quick, quantizer)


def test_codebooks_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []

    def prepare(codebook: Tensor, penalty: Tensor | None) -> prepared.Prepared:
        made.append(codebook)
        return prepare_codebook(codebook, penalty)

    prepare_codebook = prepared.prepare_codebook
    monkeypatch.setattr(prepared, "prepare_codebook", prepare)
    quantizer = make()
    quick = PreparedQuantizer(quantizer)
    for _ in range(3):
        codes = quick.encode(latents(), 2)
        quick.decode(codes)
    assert len(made) == 4  # those of the levels in use
    with torch.no_grad():
        first(quantizer).projection.mul_(2)
    quick.decode(codes)
    assert len(made) == 5


def test_inference_mode_changes_nothing() -> None:
    quantizer = make()
    quick = PreparedQuantizer(quantizer)
    with torch.inference_mode():
        assert_same(quick, quantizer)
    assert_same(quick, quantizer)
    with torch.inference_mode():  # writes to tensors that are made here are not counted: they are never taken for kept
        quantizer.load_state_dict(other_weights(quantizer), assign=True)
        for _ in range(2):
            assert_same(quick, quantizer)
            first(quantizer).projection.mul_(2)
        assert_same(quick, quantizer)


def test_autocast_changes_nothing() -> None:
    quantizer = make()
    z = latents()
    codes = quantizer.encode(z)
    with torch.autocast("cpu", torch.bfloat16):
        quick = PreparedQuantizer(quantizer)
        assert torch.equal(quick.encode(z), codes)
        assert torch.equal(quick.decode(codes), quantizer.decode(codes))


def test_what_does_not_fit_is_refused_as_by_the_quantizer() -> None:
    quick = PreparedQuantizer(make())
    with pytest.raises(ValueError, match="n_levels must be"):
        quick.encode(latents(), 4)
    with pytest.raises(ValueError, match="latents have 5 channels"):
        quick.encode(latents()[:, :5])
    with pytest.raises(ValueError, match="outside its codebook"):
        quick.decode(torch.full((1, 2, 3), 64))
