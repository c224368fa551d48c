"""`--target`: the smallest file that reaches so much of a metric. And pictures that were decoded before, again."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokodec.codec import cli
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import UsageError
from tokodec.codec.metrics.picture import ms_ssim, psnr
from tokodec.codec.metrics.target import check_measurable
from tokodec.codec.options import Rate, Target

ASSETS = Path(__file__).resolve().parent.parent / "assets"
MODEL = "image-photo-2"


def photo(size: int = 240, left: int = 300, mode: str = "RGB") -> np.ndarray:
    with Image.open(ASSETS / "kodim23.webp") as image:
        return np.array(image.convert(mode).crop((left, 100, left + size, 100 + size)))


def png(pixels: np.ndarray) -> io.BytesIO:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    out.seek(0)
    return out


def shown(data: bytes) -> np.ndarray:
    pixels = decode_file(io.BytesIO(data), device="cpu").picture.pixels
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


@pytest.mark.parametrize(("target", "least"), [("psnr=36", 36.0), ("psnr=40.5", 40.5), ("ms-ssim=0.985", 0.985)])
def test_the_smallest_file_that_reaches_a_target(target: str, least: float) -> None:
    x = photo()
    made = encode_file(png(x), model=MODEL, target=target, device="cpu")
    value = (psnr if target.startswith("psnr") else ms_ssim)(x, shown(made.data))
    assert value is not None
    assert made.measured == (target.partition("=")[0], value)
    assert value >= least
    assert made.quality is not None
    # Half a step: in hundredths of a quality metrics go up and down.
    less = encode_file(png(x), model=MODEL, quality=made.quality - 0.5, device="cpu").data
    assert len(less) <= len(made.data)
    below = (psnr if target.startswith("psnr") else ms_ssim)(x, shown(less))
    assert below is not None
    assert below < least


def test_ssimulacra2_grey_and_exact_blocks_are_measured_as_they_are_shown() -> None:
    pytest.importorskip("ssimulacra2")
    x = photo(mode="L")
    x[:64] = np.where(np.arange(240) // 2 % 2, 0, 255)
    made = encode_file(png(x), model=MODEL, target="ssimulacra2=70", device="cpu")
    from tokodec.codec.metrics.picture import as_rgb, ssimulacra2

    assert made.measured is not None
    assert made.measured[1] == ssimulacra2(as_rgb(x[..., None]), shown(made.data))
    assert 70 <= made.measured[1] < 72
    assert np.array_equal(shown(made.data)[:64, :, 0], x[:64])


def test_effort_reaches_it_with_no_more_bytes() -> None:
    x = photo(128)
    plain, refined = (encode_file(png(x), model=MODEL, target="psnr=37", effort=e, device="cpu") for e in (0, 1))
    assert len(refined.data) <= len(plain.data)
    assert psnr(x, shown(refined.data)) >= 37


def test_what_no_quality_reaches_is_lossless() -> None:
    x = photo(80)
    made = encode_file(png(x), model=MODEL, target="psnr=60", device="cpu")
    assert made.lossless
    assert np.array_equal(shown(made.data), x)
    assert made.notes == ["only a lossless file reaches psnr 60"]


def test_above_codes_an_error_of_1_is_tried_first() -> None:
    x = photo(80)
    made = encode_file(png(x), model=MODEL, target="psnr=49", device="cpu")
    assert (made.lossless, made.notes) == (False, [])
    assert np.abs(shown(made.data).astype(int) - x).max() == 1
    assert made.measured is not None
    assert made.measured[1] == pytest.approx(psnr(x, shown(made.data)))


def test_more_than_8_bits_end_at_quality_100() -> None:
    deep = Image.fromarray(photo(80, mode="L").astype(np.uint16) * 257)
    out = io.BytesIO()
    deep.save(out, "png")
    made = encode_file(io.BytesIO(out.getvalue()), model=MODEL, target="psnr=60", device="cpu")
    assert (made.lossless, made.quality) == (False, 100)
    assert made.measured is not None
    assert made.measured[1] < 60
    assert any("not the 60 asked for" in note for note in made.notes)


def test_the_lowest_quality_may_do() -> None:
    made = encode_file(png(photo(80)), model=MODEL, target="psnr=10", device="cpu")
    assert (made.quality, made.notes) == (0, [])


def test_the_report_says_what_was_reached(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(png(photo(80, 60)).getvalue())
    assert cli.run(["encode", str(tmp_path / "a.png"), "--target", "psnr=36", "-m", MODEL, "--device", "cpu"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert ", psnr 36." in line
    assert "quality " in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "psnr"}, "a target is written psnr=40"),
        ({"target": "psnr=much"}, "a target is written psnr=40"),
        ({"target": "vmaf=90"}, "one of psnr, ms-ssim, ssimulacra2"),
        ({"target": "ms-ssim=1.1"}, "above 0 and at most 1"),
        ({"target": "psnr=nan"}, "a target of psnr is above 0"),
        ({"target": "psnr=inf"}, "a target of psnr is above 0"),
        ({"target": "ssimulacra2=101"}, "at most 100"),
        ({"target": "psnr=40", "quality": 50}, "give one of .*, not quality and target"),
        ({"target": "ms-ssim=0.98"}, "ms-ssim wants 161 pixels a side at least, and this picture has 80 x 80"),
        ({"target": "psnr=40", "model": "image-grid"}, "target does not set the rate of image-grid"),
    ],
)
def test_targets_that_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        encode_file(png(photo(80)), **({"model": MODEL, "device": "cpu"} | options))  # type: ignore[arg-type]


def test_large_pictures_have_a_psnr_only() -> None:
    """The others are taken of whole pictures, so memory grows with them."""
    check_measurable("psnr", (1 << 20, 1 << 20))
    check_measurable("ms-ssim", (4096, 4096))
    for metric in ("ms-ssim", "ssimulacra2"):
        with pytest.raises(UsageError, match=f"^{metric} is taken of 16777216 pixels at most, .* has 4097 x 4096$"):
            check_measurable(metric, (4096, 4097))


def test_sounds_and_videos_have_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="target does not set the rate of audio-24k"):
        encode_file(ASSETS / "ljspeech.ogg", model="audio-24k", target="psnr=40", device="cpu")


def test_a_package_that_is_missing_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ssimulacra2", None)
    with pytest.raises(UsageError, match="ssimulacra2 is missing: pip install"):
        encode_file(png(photo(240)), model=MODEL, target="ssimulacra2=80", device="cpu")


def test_a_target_is_one_of_the_rates() -> None:
    assert Rate(target=Target("psnr", 40)).given == ["target"]
    assert Target.parse(" PSNR = 40.5") == Target("psnr", 40.5)


# ------------------------------------------------------------------------------------------------------- generations


@pytest.mark.parametrize(("effort", "generations"), [(0, 5), (1, 2)])
def test_a_decoded_picture_is_coded_as_it_was(effort: int, generations: int) -> None:
    """Generations lose next to nothing, also where blocks are exact."""
    x = photo(192)
    x[:64] = np.where((np.arange(192) // 2 % 2)[:, None], np.uint8(0), np.uint8(255))
    now, found = x, []
    for _ in range(generations):
        now = shown(encode_file(png(now), model=MODEL, quality=80, effort=effort, device="cpu").data)
        found.append(psnr(x, now))
    assert np.array_equal(now[:64], x[:64])
    assert found[0] - found[-1] < 0.4
    assert found[0] > 40
