"""`codec bench image`: what the tables say is what the files are."""

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokodec.codec.bench.clips import Photo
from tokodec.codec.bench.contender import Coded, Timed
from tokodec.codec.bench.image.bench import MEANS, aggregate, bench_images
from tokodec.codec.bench.image.peers import PEERS, PeerSearch, find_peers
from tokodec.codec.bench.memory import bench_processes, mirrored, write_large
from tokodec.codec.bench.metrics import KEYS
from tokodec.codec.bench.options import ImageOptions, ProcessOptions
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import MediaError, ModelError, TokodecError, UsageError
from tokodec.codec.media.read_image import read_image
from tokodec.codec.metrics.picture import decibel
from tokodec.codec.provenance import ROOT, finite
from tokodec.entropy.static import StaticPrior
from tokodec.tokenizers.image.grid import ImageGrid, ImageGridConfig


def bench(folder: Path | None, out: Path, against: str, model: str, device: str = "cpu", **more: Any) -> dict[str, Any]:
    return bench_images(ImageOptions(folder=folder, out=out, against=against, model=model, device=device, **more))


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
    bench(pictures, out, "jpeg,avif", model)
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
    ours = [("image-grid", "faithful"), ("image-grid", "sharp")]
    expected = []
    for name in NAMES:
        for levels in ("1", "2"):
            expected += [(name, *codec, "curve", levels, "") for codec in ours]
            expected += [(name, peer, "", "matched", levels, "*") for peer in ("jpeg", "avif")]
        expected += [(name, peer, "", "curve", "", str(q)) for peer in ("jpeg", "avif") for q in PEERS[peer].curve]
    found = []
    for r in rows:
        quality = "*" if r["role"] == "matched" else r["quality"]
        found.append((r["picture"], r["codec"], r["synthesis"], r["role"], r["levels"], quality))
    assert found == expected


def test_our_rows_are_our_files(rows: list[dict[str, str]], pictures: Path, model: str, tmp_path: Path) -> None:
    for r in rows:
        if r["codec"] != "image-grid":
            continue
        rgb = tmp_path / "rgb.png"
        Image.fromarray(as_rgb(pictures / r["picture"])).save(rgb)
        tok, png = tmp_path / "x.tok", tmp_path / "x.png"
        encode_file(rgb, tok, model=model, levels=int(r["levels"]), device="cpu", force=True)
        decode_file(tok, png, model=model, synthesis=r["synthesis"], device="cpu", force=True)
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
    threads = torch.get_num_threads()
    options = {
        "jpeg": {"subsampling": "4:2:0", "optimize": True, "progressive": True},
        "avif": {"speed": 4, "subsampling": "4:4:4", "autotiling": False, "max_threads": threads},
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
        if r["role"] == "curve":
            assert r["reached"] == r["bytes_ratio"] == ""
            continue
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
        assert {r["role"] for r in group} == {"matched" if entry["codec"] in PEERS else "curve"}
        assert entry["pictures"] == len(group) == 2
        assert entry["reached"] == sum(r["reached"] == "True" for r in group)
        for name in MEANS:
            assert entry[name] == pytest.approx(np.mean([float(r[name]) for r in group])), name


def test_curves_are_means_of_the_rows(rows: list[dict[str, str]], report: dict[str, Any]) -> None:
    assert [(c["name"], c["kind"], len(c["points"])) for c in report["curves"]] == [
        ("image-grid faithful", "ours", 2), ("image-grid sharp", "ours", 2), ("jpeg", "peer", 9), ("avif", "peer", 10),
    ]  # fmt: skip
    for curve in report["curves"]:
        own = [r for r in rows if r["role"] == "curve" and f"{r['codec']} {r['synthesis']}".strip() == curve["name"]]
        for point in curve["points"]:
            number = re.findall(r"\d+", point["setting"])[0]  # "quality 40" or "2 levels"
            group = [r for r in own if r["quality" if curve["kind"] == "peer" else "levels"] == number]
            assert len(group) == 2
            for key in ("bytes", "bpp", *KEYS, "encode_s", "decode_s"):
                assert point[key] == pytest.approx(np.mean([float(r[key]) for r in group])), key
            assert point["ms_ssim_db"] == pytest.approx(decibel(point["ms_ssim"]), abs=1e-3)


def test_every_codec_is_timed_and_weighed(report: dict[str, Any]) -> None:
    ours = [("image-grid", "faithful"), ("image-grid", "sharp")]
    assert [(e["codec"], e["synthesis"]) for e in report["speed"]] == [*ours, ("jpeg", ""), ("avif", "")]
    assert all(e["encode_s"] > 0 and e["decode_s"] > 0 and not e["random_weights"] for e in report["speed"])
    assert [e["files"] for e in report["speed"]] == [4, 4, 18, 20]
    assert report["memory"]["picture"] == "a.png"
    weighed = {(e["codec"], e["synthesis"]): e for e in report["memory"]["codecs"]}
    assert list(weighed) == [("start-up", ""), *ours, ("jpeg", ""), ("avif", "")]
    assert all(e["gpu_mib"] is None and 1 < e["encode_mib"] < 4000 for e in weighed.values())
    # PyTorch is only where ours is.
    assert weighed["jpeg", ""]["decode_mib"] < weighed["image-grid", "sharp"]["decode_mib"] - 50


def test_two_levels_are_too_few_for_a_bd_rate(report: dict[str, Any]) -> None:
    assert len(report["bd_rate"]["pairs"]) == 2 * 2 * 3
    assert {pair["percent"] for pair in report["bd_rate"]["pairs"]} == {None}
    assert "2 rising points" in report["bd_rate"]["pairs"][0]["reason"]
    assert report["places"] == []


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
    assert not re.findall(r"""https?:|@import|<link|src="(?!data:)|url\((?!#)|fetch\(|import\(""", html)
    for section in re.findall(r'<article class="pictures">.*?</article>', html, re.DOTALL):
        (name,) = re.findall(r"<h3>(\S+)", section)
        (levels,) = re.findall(r"ours with (\d)", section)
        captions = re.findall(r"<b>(.*?)</b><br>([\d,]+) bytes", section)
        sizes = {label: int(size.replace(",", "")) for label, size in captions}
        of = {f"{r['codec']} {r['synthesis']}".strip(): int(r["bytes"]) for r in rows
              if r["picture"] == name and r["levels"] == levels}  # fmt: skip
        assert list(sizes)[:4] == ["original", "image-grid sharp", "image-grid faithful", "AVIF"]
        assert sizes["image-grid sharp"] == sizes["image-grid faithful"] == of["image-grid sharp"]
        assert sizes["AVIF"] == of["avif"] <= of["image-grid sharp"]
        assert section.count("data:image/webp;base64,") == len(sizes)
        assert re.findall(r'data-kind="(\w+)"', section)[:4] == ["original", "ours", "ours", "peer"]
    assert re.findall(r"<h3>(\S+)", html) == NAMES


def test_page_holds_the_curves(out: Path, report: dict[str, Any]) -> None:
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', (out / "index.html").read_text())
    data = json.loads(text)
    assert [m["key"] for m in data["metrics"]] == ["psnr", "ms_ssim_db", "ssimulacra2", "feature_distance"]
    assert [(s["name"], s["kind"], s["shown"]) for s in data["series"]] == [
        (c["name"], c["kind"], True) for c in report["curves"]
    ]
    for series, curve in zip(data["series"], report["curves"], strict=True):
        points = sorted(curve["points"], key=lambda p: p["bpp"])
        assert [p["setting"] for p in series["points"]] == [p["setting"] for p in points]
        for key in ("bpp", "psnr", "ssimulacra2"):
            assert [p[key] for p in series["points"]] == pytest.approx([p[key] for p in points])
    assert len({s["colour"] for s in data["series"]}) == 4


def test_a_second_model_is_measured_beside_the_first(photo_model: Path, pictures: Path, tmp_path: Path) -> None:
    """A curve of its own, no peers of its own, and a picture of about the same bytes on the page."""
    other = tmp_path / "other"
    shutil.copytree(photo_model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"name": "second-photo"}))
    report = bench(
        pictures, tmp_path / "out", "jpeg", str(photo_model), limit=1, also=str(other), qualities="5,30,60,90",
        metrics="psnr", memory=False,
    )  # fmt: skip
    first, second = (next(c for c in report["curves"] if c["name"] == name) for name in ("tiny-photo", "second-photo"))
    assert (first["kind"], second["kind"]) == ("ours", "ours")
    bytes_of = [[point["bytes"] for point in curve["points"]] for curve in (first, second)]
    assert max(abs(a - b) for a, b in zip(*bytes_of, strict=True)) <= 2  # only the name in the header differs
    assert {pair["ours"] for pair in report["bd_rate"]["pairs"]} == {"tiny-photo", "second-photo"}
    assert report["also"] == ["second-photo"]
    html = (tmp_path / "out" / "index.html").read_text()
    assert re.findall(r'data-kind="ours"><img alt="([^"]*)"', html) == ["tiny-photo", "second-photo"]


def test_a_model_whose_dial_is_quality(photo_model: Path, pictures: Path, tmp_path: Path) -> None:
    report = bench(
        pictures, tmp_path, "jpeg", str(photo_model), limit=1, qualities="60,10.5", metrics="psnr", memory=False,
        show="a.png", threads=1,
    )  # fmt: skip
    assert report["metrics"] == ["psnr"]
    assert report["aggregates"] == []
    assert report["memory"] is None
    assert report["machine"]["torch_threads"] == 1
    curves = {c["name"]: c["points"] for c in report["curves"]}
    assert [p["setting"] for p in curves["tiny-photo"]] == ["quality 10.5", "quality 60"]
    assert curves["tiny-photo"][0]["bytes"] < curves["tiny-photo"][1]["bytes"]
    assert curves["jpeg"][0]["ms_ssim"] is None
    with (tmp_path / "results.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert {(r["role"], r["levels"], r["ms_ssim"]) for r in found} == {("curve", "", "")}
    html = (tmp_path / "index.html").read_text()
    assert re.findall(r"<h3>a.png <small>.*ours with (.*)</small>", html) in (["quality 10.5"], ["quality 60"])
    assert html.count('<option value="psnr">') == 1
    assert "ms_ssim_db" not in re.findall(r"<option.*?</option>", html)


def test_metrics_of_small_pictures_are_left_empty(model: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in NAMES:
        Image.fromarray(np.arange(48 * 32 * 3, dtype=np.uint8).reshape(48, 32, 3)).save(folder / name)
    report = bench(folder, tmp_path / "out", "", model, limit=1, memory=False)
    assert report["pictures"] == ["a.png"]
    assert [e["ms_ssim"] for e in report["aggregates"]] == [None] * 4
    assert [e["ssimulacra2"] for e in report["aggregates"]] == [None] * 4
    html = (tmp_path / "out" / "index.html").read_text()
    assert re.findall(r'<option value="([a-z]\w+)">', html) == ["psnr", "feature_distance"]


def test_drawn_pictures_need_no_folder(photo_model: Path, tmp_path: Path) -> None:
    bench(None, tmp_path, "", str(photo_model), pictures="synthetic", limit=2, metrics="psnr", memory=False)
    with (tmp_path / "results.csv").open() as file:
        assert {row["picture"] for row in csv.DictReader(file)} == {"00-text-0.png", "01-hatching-0.png"}


def test_users_mistakes_are_one_line(model: str, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"\x89PNG nothing")
    (tmp_path / "file").write_text("")
    target = tmp_path / "out"
    for error, match, folder, changed in (
        (UsageError, "unknown codec 'gif'.*jpeg, webp, avif", pictures, {"against": "gif"}),
        (UsageError, "no pictures in", tmp_path / "empty", {}),
        (UsageError, "is not a folder", tmp_path / "nowhere", {}),
        (UsageError, "--set synthetic, and not both", pictures, {"pictures": "synthetic"}),
        (UsageError, "--set synthetic, and not both", None, {}),
        (UsageError, "unknown set of pictures 'kodak'", None, {"pictures": "kodak"}),
        (UsageError, "at least 1", pictures, {"limit": 0}),
        (UsageError, "is a file", pictures, {"out": tmp_path / "file"}),
        (UsageError, "unknown device", pictures, {"device": "abacus"}),
        (ModelError, "no model", pictures, {"model": str(tmp_path / "none")}),
        (MediaError, "none of the pictures", tmp_path / "bad", {}),
        (UsageError, "unknown metric 'lpips'.*psnr, ms-ssim", pictures, {"metrics": "lpips"}),
        (UsageError, "at least one metric", pictures, {"metrics": ""}),
        (UsageError, "z.png is not among the pictures", pictures, {"show": "z.png"}),
        (UsageError, "unknown published points 'clic'", pictures, {"published": "clic"}),
        (UsageError, "unknown CompressAI model 'elic'.*cheng2020-anchor", pictures, {"compressai": "elic"}),
        (UsageError, "the rate of image-grid is its levels", pictures, {"qualities": "50"}),
    ):
        options: dict[str, Any] = {"out": target, "against": "", "model": model, **changed}
        with pytest.raises(error, match=match) as caught:
            bench(folder, **options)
        assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_search_finds_the_nearest_size(name: str) -> None:
    clip = Photo("noise", np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    (peer,) = find_peers([name])
    all_sizes = [PeerSearch(peer, clip).size(q) for q in range(peer.lowest, 101)]
    search = PeerSearch(peer, clip)
    for most in (all_sizes[0], all_sizes[20] + 1, all_sizes[50], all_sizes[70] - 1, 10 * all_sizes[-1]):
        quality, reached = search.nearest(most)
        assert reached
        assert search.size(quality) == max(size for size in all_sizes if size <= most)
    assert search.nearest(all_sizes[0] - 1) == (peer.lowest, False)


def test_search_is_never_above_where_sizes_dip(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [100 + 10 * q - (35 if q % 7 == 0 and q else 0) for q in range(101)]

    def encode(self: PeerSearch, quality: int) -> Timed[Coded]:
        return self.tried.setdefault(quality, Timed(Coded.of(bytes(sizes[quality])), 0.0, 0.0))

    monkeypatch.setattr(PeerSearch, "encode", encode)
    search = PeerSearch(PEERS["webp"], Photo("black", np.zeros((1, 1, 3), np.uint8)))
    for most in range(100, 1200, 7):
        quality, reached = search.nearest(most)
        assert reached
        assert most - 60 < sizes[quality] <= most or quality == 100


def test_infinite_psnr_is_null_in_json() -> None:
    assert finite({"a": [float("inf"), 1.0, None], "b": "x"}) == {"a": [None, 1.0, None], "b": "x"}
    assert aggregate([]) == []


def test_processes_are_timed_and_weighed(tiny_model: Path) -> None:
    options = ProcessOptions(megapixels=0.01, model=str(tiny_model), device="cpu")
    runs = bench_processes(options)
    assert [run.command for run in runs] == ["--help", "encode", "info", "decode"]
    assert all(run.seconds > 0 and run.cpu > 0 and run.mib > 1 for run in runs)
    assert runs[1].mib > runs[0].mib  # torch is there only where it is needed
    with pytest.raises(UsageError, match="picture or --megapixels"):
        bench_processes(replace(options, megapixels=None))
    with pytest.raises(TokodecError, match=r"encode .* failed: codec: .*no such file"):
        bench_processes(replace(options, megapixels=None, picture=Path("nowhere.png")))


def test_a_large_picture_has_the_size_asked_for(tmp_path: Path) -> None:
    """Made of nothing, or of a picture and its mirror images."""
    write_large(tmp_path / "a.ppm", 0.03)
    pixels = read_image(tmp_path / "a.ppm", "a.ppm", 1 << 20).pixels
    assert pixels.shape == (150, 200, 3)
    assert pixels.std() > 20
    assert mirrored(np.arange(7), 3).tolist() == [0, 1, 2, 2, 1, 0, 0]
    write_large(tmp_path / "b.ppm", 0.12, tmp_path / "a.ppm")
    larger = read_image(tmp_path / "b.ppm", "b.ppm", 1 << 20).pixels.astype(int)
    assert larger.shape == (300, 400, 3)
    assert abs(larger[:150, :200] - pixels).max() == 2
    assert abs(larger[150:, 200:] - pixels[::-1, ::-1]).max() == 2
