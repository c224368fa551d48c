"""`codec bench image`: what the tables say is what the files are."""

import csv
import io
import itertools
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokodec.codec.bench.image import MEANS, ROOT, _finite, aggregate, bench_images
from tokodec.codec.bench.page import chart, ticks
from tokodec.codec.bench.peers import PEERS, PeerFile, PeerSearch
from tokodec.codec.bench.process import bench_processes, write_synthetic
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import MediaError, ModelError, TokodecError, UsageError
from tokodec.codec.media.image import read_image
from tokodec.entropy.static import StaticPrior
from tokodec.tokenizers.image.grid import ImageGrid, ImageGridConfig

SIZE = (240, 232)  # height and width: large enough for every metric
NAMES = ["a.png", "b.png"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Untrained, with a second level so large that AVIF can get below it and JPEG cannot."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = ImageGridConfig(
        channels=(8, 8, 8), analysis_blocks=(1, 1, 1), synthesis_blocks=(1, 1, 1), dim=4, codebook_sizes=(16, 1 << 15)
    )
    ImageGrid(config).save_pretrained(folder)
    StaticPrior.from_counts([np.zeros(n) for n in config.codebook_sizes]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    smooth = np.stack([rows, columns, (rows + columns) // 2], axis=-1).astype(np.uint8)
    Image.fromarray(smooth).save(folder / "a.png")
    texture = np.random.default_rng(0).integers(0, 8, SIZE, dtype=np.uint8)
    Image.fromarray(smooth[::-1, :, 0] // 2 + texture).save(folder / "b.png")  # gray
    (folder / "c.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (folder / "notes.txt").write_text("not a picture either")
    return folder


@pytest.fixture(scope="module")
def out(model: str, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "new" / "folder"
    bench_images(pictures, out, ["jpeg", "avif"], model, "cpu")
    return out


@pytest.fixture(scope="module")
def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def as_rgb(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_every_combination_has_its_row(rows: list[dict[str, str]]) -> None:
    found = [(r["picture"], r["codec"], r["synthesis"], r["levels"]) for r in rows]
    codecs = [("image-grid", "faithful"), ("image-grid", "sharp"), ("jpeg", ""), ("avif", "")]
    assert found == [(name, *codec, str(levels)) for name in NAMES for levels in (1, 2) for codec in codecs]


def test_our_rows_are_our_files(rows: list[dict[str, str]], pictures: Path, model: str, tmp_path: Path) -> None:
    for r in rows:
        if r["codec"] != "image-grid":
            continue
        rgb = tmp_path / "rgb.png"
        Image.fromarray(as_rgb(pictures / r["picture"])).save(rgb)
        tok, png = tmp_path / "x.tok", tmp_path / "x.png"
        encode_file(rgb, tok, model, levels=int(r["levels"]), device="cpu", force=True)
        decode_file(tok, png, model, synthesis=r["synthesis"], device="cpu", force=True)
        assert int(r["bytes"]) == tok.stat().st_size
        assert float(r["bpp"]) == 8 * tok.stat().st_size / (SIZE[0] * SIZE[1])
        mse = np.square(as_rgb(rgb).astype(float) - as_rgb(png)).mean()
        assert float(r["psnr"]) == pytest.approx(10 * np.log10(255**2 / mse))
        assert r["reached"] == "True"
        assert r["bytes_ratio"] == "1.0"
        assert r["quality"] == ""


def test_the_synthesis_nets_share_a_file_but_not_pixels(rows: list[dict[str, str]]) -> None:
    faithful = [r for r in rows if r["synthesis"] == "faithful"]
    sharp = [r for r in rows if r["synthesis"] == "sharp"]
    assert [r["bytes"] for r in faithful] == [r["bytes"] for r in sharp]
    assert all(a["psnr"] != b["psnr"] for a, b in zip(faithful, sharp, strict=True))


def test_peer_rows_are_peer_files(rows: list[dict[str, str]], pictures: Path) -> None:
    options = {
        "jpeg": {"subsampling": "4:2:0", "optimize": True, "progressive": True},
        "avif": {"speed": 4, "subsampling": "4:2:0"},
    }
    ours = {(r["picture"], r["levels"]): int(r["bytes"]) for r in rows if r["synthesis"] == "faithful"}
    outcomes = set()
    for r in rows:
        if r["codec"] == "image-grid":
            continue
        file = io.BytesIO()
        image = Image.open(pictures / r["picture"]).convert("RGB")
        image.save(file, r["codec"].upper(), quality=int(r["quality"]), **options[r["codec"]])
        assert int(r["bytes"]) == len(file.getvalue())
        most = ours[r["picture"], r["levels"]]
        assert (r["reached"] == "True") == (int(r["bytes"]) <= most)
        assert float(r["bytes_ratio"]) == pytest.approx(int(r["bytes"]) / most)
        if r["reached"] == "False":
            assert int(r["quality"]) == PEERS[r["codec"]].lowest
        outcomes.add((r["codec"], r["levels"], r["reached"]))
    assert ("jpeg", "1", "False") in outcomes
    assert ("avif", "2", "True") in outcomes


def test_aggregates_are_means_of_the_rows(rows: list[dict[str, str]], report: dict[str, Any]) -> None:
    assert len(report["aggregates"]) == 8
    for entry in report["aggregates"]:
        key = (entry["codec"], entry["synthesis"], str(entry["levels"]))
        group = [r for r in rows if (r["codec"], r["synthesis"], r["levels"]) == key]
        assert entry["pictures"] == len(group) == 2
        assert entry["reached"] == sum(r["reached"] == "True" for r in group)
        for name in MEANS:
            assert entry[name] == pytest.approx(np.mean([float(r[name]) for r in group])), name


def test_report_says_where_it_comes_from(report: dict[str, Any]) -> None:
    assert report["pictures"] == NAMES
    assert len(report["skipped"]) == 1
    assert "c.jpg" in report["skipped"][0]
    assert report["versions"]["torch"] == version("torch")  # as installed, without a build tag
    assert report["machine"]["device"] == "cpu"
    assert report["machine"]["torch_threads"] == torch.get_num_threads()
    assert "progressive=True" in report["peers"]["jpeg"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", report["date"])
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", report["commit"])


def test_page_needs_nothing_from_outside(out: Path, rows: list[dict[str, str]]) -> None:
    html = (out / "index.html").read_text()
    assert not re.findall(r"""https?://|@import|<link|src="(?!data:)|url\(""", html)
    assert html.count('<svg viewBox="0 0') == 4  # a chart a metric
    for section in re.findall(r"<section>.*?</section>", html, re.DOTALL):
        (name,) = re.findall(r"<h3>(\S+)", section)
        (levels,) = re.findall(r"ours with (\d)", section)
        captions = re.findall(r"<b>(.*?)</b><br>([\d,]+) bytes", section)
        sizes = {label: int(size.replace(",", "")) for label, size in captions}
        of = {f"{r['codec']} {r['synthesis']}".strip(): int(r["bytes"]) for r in rows
              if r["picture"] == name and r["levels"] == levels}  # fmt: skip
        assert list(sizes) == ["original", "image-grid sharp", "image-grid faithful", "AVIF"]
        assert sizes["image-grid sharp"] == sizes["image-grid faithful"] == of["image-grid sharp"]
        assert sizes["AVIF"] == of["avif"] <= of["image-grid sharp"]
        assert section.count("data:image/webp;base64,") == 4
    assert re.findall(r"<h3>(\S+)", html) == NAMES


def test_metrics_of_small_pictures_are_left_empty(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in NAMES:
        Image.fromarray(np.arange(48 * 32 * 3, dtype=np.uint8).reshape(48, 32, 3)).save(folder / name)
    report = bench_images(folder, tmp_path / "out", [], model, "cpu", limit=1)
    assert report["pictures"] == ["a.png"]
    assert [e["ms_ssim"] for e in report["aggregates"]] == [None] * 4
    assert [e["ssimulacra2"] for e in report["aggregates"]] == [None] * 4
    assert (tmp_path / "out" / "index.html").read_text().count('<svg viewBox="0 0') == 2


def test_users_mistakes_are_one_line(model: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"\x89PNG nothing")
    (tmp_path / "file").write_text("")
    target = tmp_path / "out"
    for error, match, arguments in (
        (UsageError, "unknown codec 'gif'.*jpeg, webp, avif", (pictures, target, ["gif"], model, "cpu")),
        (UsageError, "no pictures in", (tmp_path / "empty", target, [], model, "cpu")),
        (UsageError, "is not a folder", (tmp_path / "nowhere", target, [], model, "cpu")),
        (UsageError, "at least 1", (pictures, target, [], model, "cpu", 0)),
        (UsageError, "is a file", (pictures, tmp_path / "file", [], model, "cpu")),
        (UsageError, "unknown device", (pictures, target, [], model, "abacus")),
        (ModelError, "no model", (pictures, target, [], str(tmp_path / "none"), "cpu")),
        (MediaError, "none of the pictures", (tmp_path / "bad", target, [], model, "cpu")),
    ):
        with pytest.raises(error, match=match) as caught:
            bench_images(*arguments)
        assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_search_finds_the_nearest_size(name: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    peer = PEERS[name]
    all_sizes = [len(PeerSearch(peer, pixels).encode(q).data) for q in range(peer.lowest, 101)]
    search = PeerSearch(peer, pixels)
    for most in (all_sizes[0], all_sizes[20] + 1, all_sizes[50], all_sizes[70] - 1, 10 * all_sizes[-1]):
        file, reached = search.nearest(most)
        assert reached
        assert len(file.data) == max(size for size in all_sizes if size <= most)
    file, reached = search.nearest(all_sizes[0] - 1)
    assert not reached
    assert (file.quality, len(file.data)) == (peer.lowest, all_sizes[0])


def test_search_is_never_above_where_sizes_dip(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [100 + 10 * q - (35 if q % 7 == 0 and q else 0) for q in range(101)]

    def encode(self: PeerSearch, quality: int) -> PeerFile:
        return self.tried.setdefault(quality, PeerFile(bytes(sizes[quality]), quality, 0.0))

    monkeypatch.setattr(PeerSearch, "encode", encode)
    search = PeerSearch(PEERS["webp"], np.zeros((1, 1, 3), np.uint8))
    for most in range(100, 1200, 7):
        file, reached = search.nearest(most)
        assert reached
        assert most - 60 < len(file.data) <= most or file.quality == 100


def test_infinite_psnr_is_null_in_json() -> None:
    assert _finite({"a": [float("inf"), 1.0, None], "b": "x"}) == {"a": [None, 1.0, None], "b": "x"}
    assert aggregate([]) == []


@pytest.mark.parametrize(("low", "high"), [(0, 0.21), (21.3, 21.4), (-367, 25), (0.5, 0.5), (0, 0), (0.9999, 1)])
def test_ticks_are_few_and_enclose_the_values(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    assert len({round(b - a, 9) for a, b in itertools.pairwise(found)}) == 1


def test_chart_marks_what_was_not_reached() -> None:
    group = {"codec": "avif", "synthesis": "", "bpp": 0.1, "psnr": 30.0, "pictures": 2}
    assert 'fill="red"' in chart([{**group, "reached": 2}], {"avif": "red"}, "psnr", "PSNR", "")
    assert 'fill="red"' not in chart([{**group, "reached": 1}], {"avif": "red"}, "psnr", "PSNR", "")


def test_processes_are_timed_and_weighed(tiny_model: Path) -> None:
    runs = bench_processes(None, 0.01, str(tiny_model), "cpu")
    assert [run.command for run in runs] == ["--help", "encode", "info", "decode"]
    assert all(run.seconds > 0 and run.cpu > 0 and run.mib > 1 for run in runs)
    assert runs[1].mib > runs[0].mib  # torch is there only where it is needed
    with pytest.raises(UsageError, match="picture or --megapixels"):
        bench_processes(None, None, None, "cpu")
    with pytest.raises(TokodecError, match=r"encode .* failed: codec: .*no such file"):
        bench_processes(Path("nowhere.png"), None, str(tiny_model), "cpu")


def test_the_synthetic_picture_has_the_size_asked_for(tmp_path: Path) -> None:
    write_synthetic(tmp_path / "a.ppm", 0.03)
    pixels = read_image(tmp_path / "a.ppm", "a.ppm", 1 << 20).pixels
    assert pixels.shape == (150, 200, 3)
    assert pixels.std() > 20
