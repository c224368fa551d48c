"""Distances of spectra: the mel scale, and what a distance must do."""

from __future__ import annotations

import pytest
import torch

from tokodec.codec.metrics.spectra import (
    FLOOR,
    MEL_SCALES,
    hertz_to_mel,
    magnitudes,
    mel_distance,
    mel_filters,
    mel_to_hertz,
    stft_distance,
)

CPU = torch.device("cpu")


def tone(hertz: float, seconds: float = 0.5, rate: int = 24000) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * rate)) / rate)[None]


def test_the_scale_is_slaneys() -> None:
    """15 mel at 1000 Hz, 27 more at 6400 Hz (Auditory Toolbox 1998)."""
    hertz = torch.tensor([0.0, 500.0, 1000.0, 6400.0, 40960.0], dtype=torch.float64)
    mel = torch.tensor([0.0, 7.5, 15.0, 42.0, 69.0], dtype=torch.float64)
    assert torch.allclose(hertz_to_mel(hertz), mel)
    assert torch.allclose(mel_to_hertz(mel), hertz)


@pytest.mark.parametrize(("window", "bands"), MEL_SCALES)
def test_filters_are_triangles_of_equal_area(window: int, bands: int) -> None:
    filters = mel_filters(window, bands, 24000, CPU)
    assert filters.shape == (window // 2 + 1, bands)
    assert bool((filters >= 0).all())
    assert bool((filters.sum(0) > 0).all())
    area = filters.sum(0) * 24000 / window
    wide = area[bands * 3 // 4 :]  # narrow ones are sampled too coarsely for it
    assert torch.allclose(wide, torch.ones_like(wide), atol=0.25)
    for band in filters.T:  # one hill each
        there = band.nonzero()[:, 0]
        top = int(band.argmax())
        assert bool((band[there[0] : top + 1].diff() > 0).all())
        assert bool((band[top : there[-1] + 1].diff() < 0).all())


def test_a_tone_is_where_it_sounds() -> None:
    spectrum = magnitudes(tone(3000), 1024)[0].mean(1)
    assert int(spectrum.argmax()) == round(3000 * 1024 / 24000)
    assert float(magnitudes(torch.zeros(1, 4000), 256).max()) == pytest.approx(FLOOR)
    mel = (magnitudes(tone(3000), 1024).transpose(1, 2) @ mel_filters(1024, 160, 24000, CPU))[0].mean(0)
    edges = mel_to_hertz(torch.linspace(0, 1, 162, dtype=torch.float64) * hertz_to_mel(torch.tensor(12000.0)))
    assert float(edges[mel.argmax()]) < 3000 < float(edges[mel.argmax() + 2])


@pytest.mark.parametrize("distance", [lambda a, b: mel_distance(a, b, 24000), stft_distance])
def test_distances(distance) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    x = torch.cat([tone(440), tone(2000)])
    assert distance(x, x).tolist() == [0, 0]
    near, far = distance(x, x + 0.001 * torch.randn_like(x)), distance(x, x + 0.1 * torch.randn_like(x))
    assert near.shape == (2,)
    assert bool((near > 0).all())
    assert bool((near < far).all())
    assert torch.allclose(distance(x[:1], x[1:]), distance(x[:1], -x[1:]), rtol=1e-4)  # deaf to the sign
    silent = torch.zeros_like(x).requires_grad_()
    distance(x, silent).sum().backward()
    assert silent.grad is not None
    assert bool(silent.grad.isfinite().all())


def test_ten_times_as_loud_is_one() -> None:
    x = tone(440, 1.0) + tone(5000, 1.0)
    noise = 0.1 * torch.randn(1, 24000, generator=torch.Generator().manual_seed(0))
    assert float(mel_distance(x + noise, 10 * (x + noise), 24000)) == pytest.approx(1, abs=0.02)
