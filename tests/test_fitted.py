"""Fitted clips: their integers come back to the last one, cost what the fit thought, and damage is named."""

import itertools
import math
import time

import numpy as np
import pytest
import torch

from tokodec.codec.video.fit import optimize as fit_module
from tokodec.codec.video.fit.optimize import Fit, FitProgress, default_groups
from tokodec.codec.video.fit.payload import Fitted, read_fitted, write_fitted
from tokodec.entropy.fitted.codes import (
    LIMIT,
    REACH,
    SCALES,
    Weights,
    context_shapes,
    decode_grids,
    decode_weights,
    encode_grids,
    encode_weights,
    laplace_table,
    logarithms,
)
from tokodec.entropy.fitted.net import ContextNet
from tokodec.entropy.tables import TOTAL
from tokodec.tokenizers.video.fit import DOWN, FEATURES, RIGHT, FitShape, FitSynthesis, Group, double

STILL = Group(FEATURES, 0, 0, 3)
MOVING = Group(FEATURES, 1, 2, 3)
EVERY_KIND = (STILL, Group(FEATURES, 4, 1, 3), MOVING, Group(DOWN, 1, 3, 4), Group(RIGHT, 1, 3, 4))


def random_net(rng: np.random.Generator, levels: int, slots: int, hidden: int) -> dict[str, Weights]:
    shapes = context_shapes(levels, slots, hidden)
    return {n: Weights(rng.integers(-40, 41, s).astype(np.int32), 8 if n != "bias" else 2) for n, s in shapes.items()}


def scene(frames: int = 16, height: int = 32, width: int = 32) -> torch.Tensor:
    """Waves that stand still and a disc that moves, ``[T, H, W, 3]`` uint8."""
    y, x, t = (torch.arange(n, dtype=torch.float32) for n in (height, width, frames))
    waves = 128 + 60 * torch.sin(y / 4)[:, None] * torch.cos(x / 6)
    disc = (y[:, None] - height / 2) ** 2 + (x - 6 - t[:, None, None]) ** 2 < 20
    clip = torch.where(disc, 240.0, waves)
    return torch.stack([clip, clip * 0.8, 255 - clip], dim=-1).round().to(torch.uint8)


def test_tables_are_those_of_laplace() -> None:
    n = np.arange(-REACH, REACH + 1)
    for scale, offset in itertools.product(range(SCALES), range(-4, 4)):
        table = laplace_table(scale, offset)
        b, f = 2 ** ((scale - 20) / 4), offset / 8
        upper = np.where(n - f > 0, n - f, f - n)
        share = 0.5 * np.exp(-(upper - 0.5) / b) * -np.expm1(-1 / b)
        share[REACH] = 1 - 0.5 * (math.exp(-(0.5 + f) / b) + math.exp(-(0.5 - f) / b))
        inner = np.abs(n) < REACH // 2
        inner[REACH] = False  # has what is left: roundings, and what a wide distribution has beyond the table
        assert table.sum() == TOTAL
        assert table.min() >= 1
        np.testing.assert_allclose(table[inner], 1 + share[inner] * (TOTAL - n.size), atol=2, rtol=1e-5)
        assert scale > 30 or table[REACH] == pytest.approx(share[REACH] * (TOTAL - n.size), abs=n.size)


def test_logarithms_leave_no_doubt() -> None:
    """Rounded to 2^-8, no logarithm lies so near the middle that two machines could differ."""
    exact = np.log2(1.0 + np.arange(9 * LIMIT + 1)) * 256
    assert np.abs(exact - np.floor(exact) - 0.5).min() > 1e-6
    assert np.array_equal(logarithms() * 256, np.rint(exact))


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (8, 8), (13, 9)])
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_grids_come_back(size: tuple[int, int], slots: int) -> None:
    rng = np.random.default_rng(0)
    shapes = [(slots, -(-size[0] >> level), -(-size[1] >> level)) for level in (2, 1, 0)]
    grids = [rng.integers(-3, 4, s).astype(np.int32) ** 3 for s in shapes]
    grids[0].flat[0], grids[-1].flat[-1] = LIMIT, -LIMIT
    net = random_net(rng, 3, slots, 6)
    data = encode_grids([grids, grids], [net, net])
    found = decode_grids(data, [shapes, shapes], [net, net])
    assert all(np.array_equal(a, b) for own in found for a, b in zip(own, grids, strict=True))
    with pytest.raises(ValueError, match=r"payload|range"):
        decode_grids(data[:-4], [shapes, shapes], [net, net])


def test_grids_cost_what_the_relaxed_net_says() -> None:
    rng = np.random.default_rng(1)
    net = ContextNet([(6, 10), (12, 20), (24, 40)], 6, 8)
    weights = random_net(rng, 3, 6, 8)
    weights["bias"] = Weights(np.tile(np.array([[0, 76]], np.int32), (3, 1)), 2)
    values = {name: torch.from_numpy(w.values).float() for name, w in weights.items()}
    grids = [np.rint(rng.laplace(0, 1.5, (6, h, w))).astype(np.int32) for h, w in ((6, 10), (12, 20), (24, 40))]
    padded = [torch.from_numpy(np.pad(g, ((2, 0), (0, 0), (0, 0)))).float() for g in grids]
    bits = sum(float(net(values, i, g, padded[i - 1][2:] if i else None)) for i, g in enumerate(padded))
    assert 8 * len(encode_grids([grids], [weights])) == pytest.approx(bits, rel=0.01)


def test_weights_come_back() -> None:
    rng = np.random.default_rng(0)
    kinds: list[tuple[int, tuple[int, ...], int]] = [(255, (3, 4), 0), (0, (5,), 12), (2, (), 7)]
    tensors = [Weights(rng.integers(-m, m + 1, s).astype(np.int32), e) for m, s, e in kinds]
    data = encode_weights(tensors)
    found = decode_weights(data, [t.integers.shape for t in tensors])
    for a, b in zip(tensors, found, strict=True):
        assert np.array_equal(a.integers, b.integers)
        assert a.exponent == b.exponent
    for wrong in (b"\x0d" + data[1:], data[:1] + b"\x2d" + data[2:], data[:3]):
        with pytest.raises(ValueError, match=r"exponent|early"):
            decode_weights(wrong, [t.integers.shape for t in tensors])
    with pytest.raises(ValueError, match="255"):
        Weights(np.array([256], np.int32), 0)


def test_doubling_a_constant_or_a_ramp() -> None:
    kernel = torch.tensor([0.0, 0.25, 0.75, 0.0])
    assert torch.equal(double(torch.full((2, 3, 4, 5), 7.0), kernel, 7, 10), torch.full((2, 3, 7, 10), 7.0))
    ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    doubled = double(ramp, kernel, 12, 12)[0, 0, 5]
    torch.testing.assert_close(doubled[2:10], torch.arange(2, 10) / 2 - 0.25)


def test_displacement_by_whole_pixels() -> None:
    shape = FitShape(2, 8, 12, (STILL, Group(DOWN, 1, 2, 2), Group(RIGHT, 1, 2, 2)), margin=4)
    net = FitSynthesis(shape)
    weights = {n: w.detach() for n, w in net.tensors.items()}
    weights["first1"], weights["first2"] = torch.ones(1, 1), torch.ones(1, 1)
    grids = [[torch.randn(s).round() * 2 for s in shape.grids(g)] for g in shape.groups]
    for moved, down, right in ((0, 0, 0), (1, 2, -3)):
        for group, by in ((1, down), (2, right)):
            grids[group][0][moved] = by
    frames = net(weights, grids, torch.arange(2))
    inside = frames[1, :, 1:-3, 4:-1], frames[0, :, 3:-1, 1:-4]
    torch.testing.assert_close(*inside, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("frames", "height", "width"), [(16, 32, 32), (5, 17, 23), (1, 8, 8), (2, 1, 3)])
def test_a_fit_comes_back_as_it_was(frames: int, height: int, width: int) -> None:
    clip = scene(frames, height, width)
    fit = Fit(clip, FitShape(frames, height, width, default_groups(frames, height, width)), bit_cost=0.01)
    for i in range(80):
        fit.step(i / 80)
    fitted = read_fitted(fit.export(), frames, height, width)
    assert fitted.shape == fit.shape
    for own, fits in zip(fitted.grids, fit.rounded(), strict=True):
        assert all(np.array_equal(a, b.numpy()) for a, b in zip(own, fits, strict=True))
    whole = fitted.frames(0, frames)
    assert whole.shape == tuple(clip.shape)
    parts = np.concatenate([fitted.frames(i, i + 1) for i in range(frames)])
    assert np.abs(parts.astype(int) - whole).max() <= 1  # sums in another order
    error = np.square(whole.astype(float) - clip.numpy()).mean()
    assert height < 8 or error < clip.double().var() / 4  # a handful of pixels is not worth a bit


def test_all_kinds_of_groups_in_windows() -> None:
    fit = Fit(scene(9, 21, 18), FitShape(9, 21, 18, EVERY_KIND, margin=3, channels=8), bit_cost=0.01, window=4)
    for i in range(13):
        fit.step(i / 12)
    assert sum(e is not None for e in fit.exponents) > len(fit.exponents) / 2
    fitted = read_fitted(fit.export(), 9, 21, 18)
    assert [len(own) for own in fitted.grids] == [4, 3, 2, 2, 2]
    assert fitted.grids[1][0].shape == (3, 3, 3)  # slots at frames 0, 4 and 8
    assert fitted.grids[0][-1].shape == (1, 27, 24)
    assert fitted.frames(2, 9).shape == (7, 21, 18, 3)


def test_a_fit_keeps_to_its_time_and_tells_of_it() -> None:
    seen: list[FitProgress] = []
    fit = Fit(scene(), FitShape(16, 32, 32, default_groups(16, 32, 32)), bit_cost=0.01)
    begin = time.process_time()
    fit.run(2.0, seen.append, every=0.1)
    assert time.process_time() - begin < 10
    assert seen
    assert all(math.isfinite(p.bits) and math.isfinite(p.psnr) and 0 <= p.share <= 1 for p in seen)
    assert [p.steps for p in seen] == sorted(p.steps for p in seen)


def test_a_fit_of_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The price of a bit moves until the size is that, and never above it."""
    monkeypatch.setattr(fit_module, "STEPS_OF_ATTEMPT", 24)
    fit = Fit(scene(8, 16, 24), FitShape(8, 16, 24, default_groups(8, 16, 24), channels=6, hidden=4), bit_cost=0.001)
    fit.run(2.0, most=600)
    data = fit.export_within(600)
    assert 300 < len(data) <= 600
    monkeypatch.setattr(fit_module, "ATTEMPTS", 2)
    with pytest.raises(ValueError, match="too few"):
        fit.export_within(20)


def test_stopped_early_there_is_a_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Fit(scene(), FitShape(16, 32, 32, default_groups(16, 32, 32)), bit_cost=0.01)
    plain = fit.step

    def step(share: float) -> None:
        if fit.steps == 5:
            raise KeyboardInterrupt
        plain(share)

    monkeypatch.setattr(fit, "step", step)
    fit.run(60.0)
    assert fit.steps == 5
    assert read_fitted(fit.export(), 16, 32, 32).frames(0, 16).shape == (16, 32, 32, 3)


SIZE = 3, 9, 7  # frames, rows, columns


def payload() -> bytes:
    """A tiny clip with weights and grids by chance."""
    rng = np.random.default_rng(0)
    shape = FitShape(*SIZE, (Group(FEATURES, 0, 0, 1), Group(FEATURES, 1, 1, 2)), channels=3, hidden=2)
    tensors = [Weights(rng.integers(-9, 10, s).astype(np.int32), 4) for s in shape.weights().values()]
    nets = [random_net(rng, 2, g.slots(3), 2) for g in shape.groups]
    grids = [[rng.integers(-2, 3, s).astype(np.int32) for s in shape.grids(g)] for g in shape.groups]
    return write_fitted(shape, [*tensors, *(w for net in nets for w in net.values())], nets, grids)


def test_payload_that_ends_early_is_refused() -> None:
    data = payload()
    assert isinstance(read_fitted(data, *SIZE), Fitted)
    for n in range(len(data)):
        with pytest.raises(ValueError, match=r"ends|early|payload|range"):
            read_fitted(data[:n], *SIZE)


def test_damaged_payload_gives_a_clip_or_an_error() -> None:
    data = payload()
    refused = 0
    for i in range(len(data)):
        for mask in (1, 128):
            wrong = data[:i] + bytes([data[i] ^ mask]) + data[i + 1 :]
            try:
                read_fitted(wrong, *SIZE)
            except ValueError:
                refused += 1
    assert refused > len(data) // 2


def test_huge_sizes_are_refused_before_memory_is_taken() -> None:
    with pytest.raises(ValueError, match="cells"):
        read_fitted(payload(), 1 << 24, 1 << 20, 1 << 20)
