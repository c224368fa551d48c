"""Residual search along several paths, beside all sums of codewords."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tokodec.tokenizers.quantize import beam
from tokodec.tokenizers.quantize.beam import beam_codewords
from tokodec.tokenizers.quantize.nearest import prepare_codebook, residual_codewords
from tokodec.tokenizers.quantize.prepared import PreparedQuantizer
from tokodec.tokenizers.quantize.residual import GroupResidualQuantizer
from tokodec.tokenizers.quantize.simvq import SimVQ


def books(*sizes: int, dim: int = 3) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(n, dim) * 0.6**k for k, n in enumerate(sizes)]


def errors(z: Tensor, codebooks: list[Tensor], codes: Tensor) -> Tensor:
    total = sum(codebook[own] for codebook, own in zip(codebooks, codes.unbind(1), strict=True))
    return (z - total).square().sum(1)


def test_with_paths_enough_it_is_the_nearest_of_all_sums() -> None:
    codebooks = books(5, 4, 6)
    z = torch.randn(50, 3)
    everything = torch.tensor(list(itertools.product(range(5), range(4), range(6))))
    best = torch.stack([errors(z, codebooks, codes.expand(50, 3)) for codes in everything]).amin(0)
    found = beam_codewords(z, codebooks, 120)
    torch.testing.assert_close(errors(z, codebooks, found), best)
    few = errors(z, codebooks, beam_codewords(z, codebooks, 3))
    greedy = errors(z, codebooks, residual_codewords(z, codebooks))
    assert best.mean() <= few.mean() < 0.95 * greedy.mean()
    assert torch.equal(beam_codewords(z, codebooks, 1), residual_codewords(z, codebooks))


def test_codes_that_are_cut_off_are_the_best_there() -> None:
    codebooks = books(8, 8, 8, 8)
    z = torch.randn(40, 3)
    for seen in (1, 2, 3):
        found = beam_codewords(z, codebooks, 4, seen)
        assert torch.equal(found[:, :seen], beam_codewords(z, codebooks[:seen], 4))
        rest = z - sum(codebooks[k][found[:, k]] for k in range(seen))
        assert torch.equal(found[:, seen:], beam_codewords(rest, codebooks[seen:], 4))
    assert torch.equal(beam_codewords(z, codebooks, 4, 9), beam_codewords(z, codebooks, 4))
    for wrong in ((0, None), (4, 0)):
        with pytest.raises(ValueError, match="counted from 1"):
            beam_codewords(z, codebooks, *wrong)


def test_codewords_that_cannot_be_chosen_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    codebooks = books(5, 5)
    codebooks[0][1:] = torch.nan
    codebooks[1][[0, 3]] = torch.inf
    z = torch.randn(30, 3)
    found = beam_codewords(z, codebooks, 4)
    assert bool((found[:, 0] == 0).all())
    assert not bool(((found[:, 1] == 0) | (found[:, 1] == 3)).any())
    monkeypatch.setitem(beam.BLOCK, "cpu", 4 * 16 * 7)  # blocks of seven rows
    assert torch.equal(beam_codewords(z, codebooks, 4), found)
    assert beam_codewords(z[:0], codebooks, 4).shape == (0, 2)
    assert beam_codewords(z, [], 4).shape == (30, 0)
    z[3, 1] = torch.nan
    assert beam_codewords(z, codebooks, 4)[3].tolist() == [0, 0]


def test_penalties_are_part_of_the_error() -> None:
    codebooks = books(6, 6)
    penalties = [torch.rand(6), torch.rand(6)]
    z = torch.randn(60, 3)
    tables = [prepare_codebook(*own) for own in zip(codebooks, penalties, strict=True)]
    everything = torch.tensor(list(itertools.product(range(6), range(6))))
    costs = torch.stack(
        [errors(z, codebooks, own.expand(60, 2)) + penalties[0][own[0]] + penalties[1][own[1]] for own in everything]
    )
    assert torch.equal(beam_codewords(z, tables, 36), everything[costs.argmin(0)])


def test_quantizers_search_along_paths() -> None:
    torch.manual_seed(0)
    quantizer = GroupResidualQuantizer([[SimVQ(32, 4) for _ in range(3)] for _ in range(2)]).eval()
    z = torch.randn(2, 8, 30)

    def error(codes: Tensor) -> float:
        return (z - quantizer.decode(codes)).square().sum().item()

    found = quantizer.encode(z, beams=4)
    assert error(found) < 0.97 * error(quantizer.encode(z))
    assert torch.equal(PreparedQuantizer(quantizer).encode(z, beams=4), found)
    cut = quantizer.encode(z, beams=4, seen=1)
    assert torch.equal(cut[:, :2], quantizer.encode(z, 1))
    assert torch.equal(PreparedQuantizer(quantizer).encode(z, beams=4, seen=1), cut)


def test_prepared_codebooks_are_searched_alike() -> None:
    codebooks = books(20, 20, 20)
    penalties = [None, torch.rand(20), None]
    z = torch.randn(200, 3)
    tables = [prepare_codebook(*own) for own in zip(codebooks, penalties, strict=True)]
    found = beam_codewords(z, codebooks, 4, penalties=penalties)
    assert torch.equal(beam_codewords(z, tables, 4), found)
    with pytest.raises(ValueError, match="penalty of its own"):
        beam_codewords(z, tables, 4, penalties=penalties)
