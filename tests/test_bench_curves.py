"""BD-rates against cases worked out by hand, the published points, and the peers one by one."""

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokodec.codec.bench import memory
from tokodec.codec.bench.clips import Photo
from tokodec.codec.bench.contender import Coded
from tokodec.codec.bench.curves import Curve, bd_rate, compare, mean_point, places, rising
from tokodec.codec.bench.image import compressai as baselines
from tokodec.codec.bench.image.page import chart_of, places_section
from tokodec.codec.bench.image.peers import PEERS, find_peers, jpeg2000_bpp
from tokodec.codec.bench.image.published import check_is_kodak, convert, load_published
from tokodec.codec.bench.page import section_html
from tokodec.codec.bench.report import bd_cell
from tokodec.codec.cli import run
from tokodec.codec.errors import TokodecError, UsageError
from tokodec.codec.settings import QUALITIES, Setting, rate_settings, synthesis_nets
from tokodec.tokenizers.image.grid import ImageGrid, ImageGridConfig

CURVE = [(0.1, 28.0), (0.2, 30.5), (0.4, 33.0), (0.8, 36.0), (1.6, 39.5)]


# ---------------------------------------------------------------------------------------------------------- BD-rate


@pytest.mark.parametrize("factor", [0.9, 1.0, 1.25, 2.0])
def test_rates_times_a_factor_are_that_bd_rate(factor: float) -> None:
    found = bd_rate(CURVE, [(factor * bpp, value) for bpp, value in CURVE])
    assert found.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert (found.low, found.high, found.reason) == (28.0, 39.5, None)


def test_bd_rate_of_straight_lines_by_hand() -> None:
    """Between 30 and 36 dB one line has log10 rates 0 to 0.6, the other 0.1 to 0.4: 0.05 less in the mean."""
    anchor = [(10 ** (0.1 * (value - 30)), float(value)) for value in (30, 32, 34, 36)]
    test = [(10 ** (0.1 + 0.05 * (value - 30)), float(value)) for value in (30, 31, 33, 36)]
    found = bd_rate(anchor, test)
    assert found.percent == pytest.approx(100 * (10**-0.05 - 1))
    # Only what both have counts: here 32 to 36 dB, where the mean difference is 0.1 - 0.05 * 4.
    wider = [(10 ** (0.1 + 0.05 * (value - 30)), float(value)) for value in (32, 34, 36, 40)]
    found = bd_rate(anchor, wider)
    assert found.percent == pytest.approx(100 * (10**-0.1 - 1))
    assert (found.low, found.high) == (32, 36)


def test_bd_rate_does_not_depend_on_order_nor_on_beaten_settings() -> None:
    test = [(0.9 * bpp, value) for bpp, value in CURVE]
    beaten = [(0.5, 31.0), (0.4, 32.0), (0.1, 27.0)]  # each takes more bits for less than a point of the curve
    shuffled = [test[3], *beaten, test[0], test[4], test[1], test[2]]
    assert rising(shuffled) == test
    assert bd_rate(CURVE, shuffled).percent == pytest.approx(-10)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (CURVE[:3], "3 rising points, 4 are needed"),
        ([(bpp, 30 - value) for bpp, value in CURVE], "1 rising points"),
        ([(bpp, value + 20) for bpp, value in CURVE], "share 0% of the shorter"),
        ([(bpp, value + 10) for bpp, value in CURVE], "share 13% of the shorter"),
    ],
)
def test_no_bd_rate_without_enough_in_common(test: list[tuple[float, float]], reason: str) -> None:
    found = bd_rate(CURVE, test)
    assert found.percent is None
    assert found.reason is not None
    assert reason in found.reason


def test_a_missing_bjontegaard_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bjontegaard", None)
    with pytest.raises(UsageError, match=r"bjontegaard is missing: pip install 'tokodec\[bench\]'"):
        bd_rate(CURVE, CURVE)


def test_text_of_a_bd_rate() -> None:
    pair = {"metric": "psnr", "percent": -12.34, "low": 26.1, "high": 38.04}
    assert str(bd_cell(pair)) == "-12.3 % [26.1, 38.0]"
    none = bd_cell({**pair, "percent": None, "reason": "too far apart"})
    assert (str(none), none.hint) == ("-", "too far apart")


def test_mean_point_leaves_out_what_is_missing() -> None:
    row = {"bytes": 10, "bpp": 1.0, "psnr": math.inf, "ms_ssim": 0.9, "ssimulacra2": None, "feature_distance": 0.0,
           "encode_s": 1.0, "decode_s": 2.0}  # fmt: skip
    point = mean_point([row, {**row, "bytes": 30, "ms_ssim": None, "psnr": 30.0}], "quality 3")
    assert (point["setting"], point["pictures"], point["bytes"], point["psnr"]) == ("quality 3", 2, 20, math.inf)
    assert (point["ms_ssim"], point["ssimulacra2"]) == (0.9, None)
    assert point["ms_ssim_db"] == pytest.approx(10)
    assert Curve("x", "peer", [point]).values("psnr") == []  # a perfect copy has no place on a curve


def published(name: str, factor: float, metric: str = "psnr") -> Curve:
    return Curve(name, "published", [{"bpp": factor * bpp, metric: value} for bpp, value in CURVE])


def test_our_place_among_published_curves() -> None:
    ours = Curve("ours", "ours", [{"bpp": bpp, "psnr": value, "ms_ssim_db": value} for bpp, value in CURVE])
    far = Curve("far", "published", [{"bpp": 1.0, "psnr": 90.0 + i} for i in range(5)])
    others = [published("worse", 1.25), published("best", 0.5), far, published("better", 0.8)]
    pairs = compare([ours, *others, Curve("jpeg", "peer", others[0].points), published("m", 0.5, "ms_ssim_db")])
    assert [(p["against"], p["kind"], p["metric"]) for p in pairs] == [
        ("worse", "published", "psnr"), ("best", "published", "psnr"), ("far", "published", "psnr"),
        ("better", "published", "psnr"), ("jpeg", "peer", "psnr"), ("m", "published", "ms_ssim_db"),
    ]  # fmt: skip
    psnr, ms_ssim = places(pairs)
    assert (psnr["ours"], psnr["metric"], psnr["place"], psnr["of"]) == ("ours", "psnr", 3, 4)
    assert [e["against"] for e in psnr["order"]] == ["best", "better", "worse"]
    assert [e["percent"] for e in psnr["order"]] == pytest.approx([100, 25, -20])
    assert [e["against"] for e in psnr["left_out"]] == ["far"]
    assert (ms_ssim["place"], ms_ssim["of"]) == (2, 2)


def test_places_and_published_curves_on_the_page() -> None:
    """Ours stands in its place among the numbered curves; what has no figure is named; some curves wait for a click."""
    own = [{"bpp": bpp, "psnr": value, "setting": "s", "ms_ssim_db": None} for bpp, value in CURVE]
    ours = Curve("tiny", "ours", own)
    far = Curve("far", "published", [{"bpp": 1.0, "psnr": 90.0 + i} for i in range(5)])
    curves = [ours, published("VTM (VVC)", 0.5), published("worse", 1.25), far]
    report = {"places": places(compare(curves)), "curves": [vars(curve) for curve in curves]}
    listed, missing = places_section(report)
    ((title, table),) = listed.tables
    assert title == "tiny, PSNR: place 2 of 3"
    assert [(kind, [str(cell) for cell in cells]) for kind, cells in table.rows] == [
        ("", ["1. VTM (VVC)", "+100.0 % [28.0, 39.5]"]), ("own", ["2. tiny", ""]),
        ("", ["3. worse", "-20.0 % [28.0, 39.5]"]),
    ]  # fmt: skip
    assert missing.page_only
    assert missing.notes[0].endswith("without a figure: far: a curve has 1 rising points, 4 are needed")
    html = section_html(missing)
    assert html.count("<details>") == html.count("<li>") == 1
    chart = chart_of(report)
    assert [metric.key for metric in chart.metrics] == ["psnr"]
    assert [(s["name"], s["shown"]) for s in chart.series] == [
        ("tiny", True), ("VTM (VVC)", True), ("worse", False), ("far", False),
    ]  # fmt: skip
    assert len({s["colour"] for s in chart.series}) == 4


# -------------------------------------------------------------------------------------------------- published points


def test_published_points() -> None:
    found = load_published()
    curves = {curve["name"]: curve for curve in found["curves"]}
    assert len(curves) == len(found["curves"]) == 38
    assert "BSD 3-Clause Clear" in found["source"]
    for curve in curves.values():
        assert set(curve) <= {"name", "file", "bpp", "psnr", "ms_ssim_db"}
        assert {"psnr", "ms_ssim_db"} & set(curve)
        for key in set(curve) - {"name", "file"}:
            assert len(curve[key]) == len(curve["bpp"]) >= 6
            assert curve[key] == sorted(set(curve[key])), curve["name"]
    vtm = curves["VTM (VVC)"]
    assert (vtm["bpp"][1], vtm["psnr"][1]) == (0.1125, 28.493)
    assert vtm["ms_ssim_db"][1] == pytest.approx(-10 * math.log10(1 - 0.91769093), abs=1e-3)
    assert curves["elic2022 MSE (paper)"]["psnr"][0] == 29.113
    # A figure of the literature as a check of the whole way: mbt2018 saves about 8 % against BPG by PSNR.
    bpg, mbt = (list(zip(curves[n]["bpp"], curves[n]["psnr"], strict=True))
                for n in ("BPG 4:4:4 (x265)", "mbt2018 MSE (CompressAI)"))  # fmt: skip
    percent = bd_rate(bpg, mbt).percent
    assert percent is not None
    assert -15 < percent < -3


def test_conversion_of_published_files(tmp_path: Path) -> None:
    text = '{"name": "x", "results": {"bpp": [2, 0.123456], "psnr-rgb": [40, 30.00049], "ms-ssim-rgb": [0.99, 0.9]}}'
    (tmp_path / "jpeg2000.json").write_text(text)
    (tmp_path / "compressai-mbt2018_ms-ssim_cuda.json").write_text(text)
    (tmp_path / "compressai-mbt2018_ms-ssim_cpu.json").write_text(text)
    (tmp_path / "paper-a_mse.json").write_text('{"results": {"bpp": [1], "ms-ssim-db-rgb": [12]}}')
    curves = convert(tmp_path)["curves"]
    assert [c["name"] for c in curves] == ["mbt2018 MS-SSIM (CompressAI)", "JPEG 2000 (ffmpeg)", "a MSE (paper)"]
    assert curves[1] == {"name": "JPEG 2000 (ffmpeg)", "file": "jpeg2000.json", "bpp": [0.12346, 2],
                         "psnr": [30.0, 40], "ms_ssim_db": [10.0, 20.0]}  # fmt: skip
    assert curves[2]["ms_ssim_db"] == [12]


def test_published_points_are_for_the_24_kodak_pictures_only() -> None:
    kodak = [(512, 768)] * 18 + [(768, 512)] * 6
    check_is_kodak(kodak)
    with pytest.raises(UsageError, match="not for 23 pictures"):
        check_is_kodak(kodak[1:])
    with pytest.raises(UsageError, match="not for 24 pictures, one of 640 x 480"):
        check_is_kodak([*kodak[1:], (480, 640)])


# ------------------------------------------------------------------------------------------------------------- peers


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    path = Path(__file__).parents[1] / "assets" / "kodim23.webp"
    return np.array(Image.open(path).convert("RGB"))[100:292, 200:456]


def coded(name: str, x: np.ndarray, quality: float) -> tuple[bytes, np.ndarray]:
    """A peer's file, and what it decodes to."""
    (peer,) = find_peers([name])
    made = peer.encode(Photo("x", x), Setting("quality", quality))
    assert made.size == len(made.files[0])
    return made.files[0], peer.decode(made)


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_keeps_the_picture(name: str, photo: np.ndarray) -> None:
    (peer,) = find_peers([name])
    (low, blurred), (high, sharp) = (coded(name, photo, q) for q in (peer.curve[1], peer.curve[-1]))
    assert len(low) < len(high)
    errors = []
    for x_hat in (blurred, sharp):
        assert (x_hat.shape, x_hat.dtype) == (photo.shape, np.uint8)
        errors.append(np.abs(x_hat.astype(int) - photo).mean())
    assert errors[1] < errors[0] < 20
    assert errors[1] < 4
    assert list(peer.curve) == sorted(set(peer.curve)) == [setting.value for setting in peer.settings]
    assert 8 <= len(peer.curve) <= 10
    assert peer.lowest <= peer.curve[0] <= peer.curve[-1] <= 100
    version = peer.described.split(": ")[0]
    assert any(c.isdigit() for c in version.split(", ")[1])


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_takes_a_single_pixel(name: str) -> None:
    assert coded(name, np.array([[[10, 200, 30]]], np.uint8), 60)[1].shape == (1, 1, 3)


def test_what_quality_means_for_jpeg2000(photo: np.ndarray) -> None:
    assert jpeg2000_bpp(0) == pytest.approx(0.04)
    assert jpeg2000_bpp(100) == pytest.approx(4)
    assert "0.04 to 4 bits per pixel" in PEERS["jpeg2000"].described
    data, _ = coded("jpeg2000", photo, 70)
    assert 8 * len(data) / (192 * 256) == pytest.approx(jpeg2000_bpp(70), rel=0.05)


def test_avif_keeps_colour_edges_that_avif420_blurs() -> None:
    x = np.zeros((64, 64, 3), np.uint8)
    x[:, ::2] = (255, 0, 0)
    x[:, 1::2] = (0, 0, 255)
    full, half = (np.abs(coded(name, x, 95)[1].astype(int) - x).mean() for name in ("avif", "avif420"))
    assert full < half / 4


@pytest.mark.parametrize(("name", "module"), [("jxl", "pillow_jxl"), ("heic", "pillow_heif")])
def test_a_missing_plugin_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError) as caught:
        find_peers(["jpeg", name])
    package = PEERS[name].package
    assert str(caught.value) == f"{name} needs {package}, which is missing: pip install 'tokodec[bench]'"


# ------------------------------------------------------------------------------------------------ ours and CompressAI


class Graded(ImageGrid):
    """A model whose rate is set by a quality."""

    rate_control = "quality"


def test_settings_of_the_two_kinds_of_dial() -> None:
    config = ImageGridConfig(
        channels=(4, 4, 4), analysis_blocks=(1, 1, 1), synthesis_blocks=(1, 1, 1), dim=4, codebook_sizes=(4, 4, 4)
    )
    grid, photo = ImageGrid(config), Graded(config)
    assert [s.label for s in rate_settings(grid)] == ["1 level", "2 levels", "3 levels"]
    assert [s.rate for s in rate_settings(grid)] == [{"levels": n} for n in (1, 2, 3)]
    assert [s.rate for s in rate_settings(photo)] == [{"quality": quality} for quality in QUALITIES]
    assert [s.label for s in rate_settings(photo, [90, 7.5, 90])] == ["quality 7.5", "quality 90"]
    assert Setting("kbps", 1.5).label == "1.5 kbit/s"
    assert synthesis_nets(grid) == ("faithful", "sharp")
    for wrong in ([], [-1.0], [50, 101.0], [math.nan]):
        with pytest.raises(UsageError, match="0 to 100"):
            rate_settings(photo, wrong)
    with pytest.raises(UsageError, match="is its levels"):
        rate_settings(grid, [50.0])


def test_missing_compressai_is_one_line_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "compressai", None)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    command = ["bench", "image", str(tmp_path), "--against", "", "--out", str(tmp_path / "out")]
    assert run([*command, "--compressai", "mbt2018-mean"]) == 2
    assert capsys.readouterr().err.strip() == "codec: compressai is missing: pip install 'tokodec[baselines]'"
    assert run([*command, "--qualities", "1,x"]) == 2
    assert capsys.readouterr().err.strip() == "codec: qualities are numbers with commas, got '1,x'"


class Net(torch.nn.Module):
    """In the place of a network of CompressAI: takes multiples of 64, keeps the mean colour."""

    def compress(self, x: torch.Tensor) -> dict[str, Any]:
        assert x.shape[2] % 64 == x.shape[3] % 64 == 0
        return {"strings": [[bytes(int(v) for v in (x.mean((0, 2, 3)) * 255).round())]], "shape": x.shape[2:]}

    def decompress(self, strings: list[list[bytes]], shape: Any) -> dict[str, torch.Tensor]:
        colour = torch.tensor(list(strings[0][0])) / 255
        return {"x_hat": colour.view(1, 3, 1, 1).expand(1, 3, *shape)}


def test_baselines_pad_and_cut() -> None:
    x = np.full((70, 130, 3), (10, 20, 30), np.uint8)
    baseline = baselines.Baseline("net", Net(), "cpu")
    made = baseline.encode(Photo("x", x), baseline.settings[0])
    assert made.files[1:] == (bytes([10, 20, 30]),)
    assert (baseline.decode(made) == x).all()


def test_a_failing_process_is_one_line(tmp_path: Path) -> None:
    job: dict[str, Any] = {
        "codec": "jpeg", "reader": ("clips:read_photo", {}), "factory": "image.peers:find_peer",
        "arguments": {"name": "jpeg"}, "setting": {"control": "quality", "value": 5}, "threads": 1,
    }  # fmt: skip
    with pytest.raises(TokodecError, match=r"^measuring jpeg failed: .*no such file"):
        memory.run_step(job, "encode", tmp_path / "none.png", tmp_path / "coded")
    picture = io.BytesIO()
    Image.new("RGB", (40, 30)).save(picture, "PNG")
    (tmp_path / "a.png").write_bytes(picture.getvalue())
    mib, gpu = memory.run_step(job, "encode", tmp_path / "a.png", tmp_path / "coded")
    assert mib > 1
    assert gpu is None
    found = json.loads((tmp_path / "coded").read_text())
    (peer,) = find_peers(["jpeg"])
    data = Coded((bytes.fromhex(found["files"][0]),), found["size"])
    assert data == peer.encode(Photo("a", np.zeros((30, 40, 3), np.uint8)), Setting("quality", 5))
    assert peer.decode(data).shape == (30, 40, 3)
    mib, gpu = memory.run_step({**job, "variant": ""}, "decode", tmp_path / "none.png", tmp_path / "coded")
    assert mib > 1
