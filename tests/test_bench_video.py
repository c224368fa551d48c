"""`codec bench video`: every codec gets the same frames, bytes are those of real files, comparisons hold by hand."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokodec.codec.bench import memory, metrics
from tokodec.codec.bench.clips import Photo, Video, read_video
from tokodec.codec.bench.contender import Coded, Contender
from tokodec.codec.bench.curves import rate_at
from tokodec.codec.bench.options import VideoOptions
from tokodec.codec.bench.video.bench import (
    COLUMNS,
    EQUAL_PSNR,
    MEANS,
    bench_video,
    compare_clips,
    equal,
    mean_rates,
    measure_frames,
)
from tokodec.codec.bench.video.ours import VideoCoder, prepare_frames, prepare_video
from tokodec.codec.bench.video.peers import VIDEO_PEERS, find_video_peer
from tokodec.codec.bench.video.vmaf import VmafClip
from tokodec.codec.cli import run
from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import video_frames
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import MediaError, TokodecError, UsageError
from tokodec.codec.media.read_video import VideoReader
from tokodec.codec.media.write_video import VideoWriter
from tokodec.codec.metrics import picture as metrics_picture
from tokodec.codec.metrics.picture import similarity, to_tensor
from tokodec.codec.settings import Setting

FRAMES = 9
NAMES = ["a.mp4", "b.mkv"]
TICK = Fraction(1, 25)


def bench(folder: Path, out: Path, models: str, codecs: str, device: str = "cpu", **more: Any) -> dict[str, Any]:
    return bench_video(VideoOptions(folder=folder, out=out, models=models, codecs=codecs, device=device, **more))


def clip(n: int = FRAMES, height: int = 64, width: int = 80, speed: int = 3) -> np.ndarray:
    """Smooth colours that move, over a grain that does not, ``[n, H, W, 3]`` uint8."""
    y, x = np.mgrid[:height, :width]
    grain = np.random.default_rng(0).integers(-20, 20, (height, width, 3))
    frames = []
    for i in range(n):
        planes = [127 + 90 * np.sin((x + speed * i) / 9 + c) * np.cos(y / (7 + c)) for c in range(3)]
        frames.append(np.clip(np.stack(planes, 2) + grain, 0, 255).astype(np.uint8))
    return np.stack(frames)


def video(x: np.ndarray | None = None, tick: Fraction = TICK) -> Video:
    x = clip() if x is None else x
    return Video("a", x, tuple(i * tick for i in range(len(x))), len(x) * tick, 1 / tick, tick)


def save(path: Path, x: np.ndarray) -> None:
    with (
        path.open("w+b") as file,
        VideoWriter(file, path.suffix, path.name, x.shape[1], x.shape[2], TICK, 1 / TICK) as writer,
    ):
        for i, pixels in enumerate(x):
            writer.write(pixels, i * TICK, TICK)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    save(folder / "b.mkv", clip(speed=0))
    save(folder / "a.mp4", clip(12))
    save(folder / "odd.y4m", clip(2, 33, 47))
    (folder / "bad.mp4").write_bytes(b"nothing")
    (folder / "notes.txt").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def out(clips: Path, video_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "new" / "folder"
    bench(clips, out, str(video_model), "x264,image-photo,x265", frames=FRAMES, kbps="0.01", levels="1,3",
          every_photo=4, every=5, memory=False)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


# ------------------------------------------------------------------------------------------------------------- clips


@pytest.mark.parametrize(("height", "width", "tick"), [(64, 80, TICK), (33, 47, Fraction(1001, 30000))])
def test_our_source_is_the_same_frames_and_times(height: int, width: int, tick: Fraction) -> None:
    a = video(clip(5, height, width), tick)
    with VideoReader(io.BytesIO(a.as_file()), "a") as reader:
        frames = list(reader)
    assert np.array_equal(np.stack([frame.pixels for frame in frames]), a.frames)
    assert tuple(frame.time for frame in frames) == a.times


def test_a_clip_is_read_up_to_so_many_frames(clips: Path) -> None:
    whole, part = (read_video(clips / "a.mp4", n) for n in (None, 5))
    assert (len(whole.frames), whole.seconds, whole.rate) == (12, 12 * TICK, 25)
    assert (len(part.frames), part.seconds, part.times) == (5, 5 * TICK, whole.times[:5])
    assert np.array_equal(part.frames, whole.frames[:5])


def test_sizes_stand_for_all_frames() -> None:
    photo = prepare_frames("image-photo", "cpu", 4)
    a = video()
    coded = photo.encode(a, Setting("quality", 20))
    alone = [photo.coder.encode(Photo("x", a.frames[i]), Setting("quality", 20)).files[0] for i in (0, 4, 8)]
    assert list(coded.files) == alone
    assert coded.size == round(sum(map(len, alone)) * FRAMES / 3)


# ------------------------------------------------------------------------------------------------------------- peers


@pytest.mark.parametrize("name", VIDEO_PEERS)
def test_peers_give_every_frame_back_in_its_place(name: str) -> None:
    peer = find_video_peer(name, 1)
    a = video()
    sizes, quality = [], []
    for setting in (peer.settings[0], peer.settings[-1]):
        coded = peer.encode(a, setting)
        frames = peer.decode(coded)
        assert len(frames) == FRAMES
        sizes.append(coded.size)
        quality.append([[metrics_picture.psnr(x, y) for y in frames] for x in a.frames])
        assert b"core" not in coded.files[0]  # the names of its options
    assert sizes[0] < sizes[1] / 3
    best = np.array(quality[1])
    assert (best.argmax(1) == range(FRAMES)).all()
    assert np.diag(best).min() > np.diag(quality[0]).mean() + 2


@pytest.mark.parametrize("name", VIDEO_PEERS)
def test_a_stream_in_an_mp4_is_the_same_stream(name: str) -> None:
    """It is played at its rate, and takes about a kilobyte more."""
    peer, a = find_video_peer(name, 1), video(clip(20))
    coded = peer.encode(a, Setting("crf", 36))
    boxed = peer.mp4_of(coded, Fraction(25))
    assert 400 < len(boxed) - coded.size < 2000
    with VideoReader(io.BytesIO(boxed), "boxed") as reader:
        frames = list(reader)
    assert [frame.time for frame in frames] == [i * TICK for i in range(20)]
    assert all(np.array_equal(x.pixels, y) for x, y in zip(frames, peer.decode(coded), strict=True))


def test_a_tuned_peer_is_another_codec() -> None:
    a = video()
    plain, tuned = (find_video_peer(name, 1).encode(a, Setting("crf", 31)) for name in ("x264", "x264-psnr"))
    assert plain != tuned


def test_a_missing_encoder_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("av.codecs_available", {"libx264"})
    find_video_peer("x264", 1)
    with pytest.raises(UsageError, match="this PyAV was built without libsvtav1"):
        find_video_peer("av1", 1)


# ------------------------------------------------------------------------------------------------------- comparisons


def test_rates_between_settings_by_hand() -> None:
    curve = [(400.0, 30.0), (100.0, 20.0), (350.0, 19.0)]  # the last is beaten in both
    assert rate_at(curve, 25) == pytest.approx(200)
    assert rate_at(curve, 20) == pytest.approx(100)
    assert rate_at(curve, 30) == pytest.approx(400)
    assert rate_at(curve, 19.9) is None
    assert rate_at(curve, 30.1) is None
    assert rate_at([], 25) is None


def row(codec: str, setting: str, size: int, psnr: float, clip: str = "c") -> dict[str, Any]:
    own = {"clip": clip, "codec": codec, "setting": setting, "bytes": size, "psnr": psnr}
    return dict.fromkeys(COLUMNS) | own


def test_bytes_at_equal_psnr_by_hand() -> None:
    peer = [row("x264", f"crf {i}", 100 * 2**i, 20 + 2.0 * i) for i in range(5)]
    photo = [row("image-photo", f"quality {i}", 200 * 2**i, 20 + 2.0 * i) for i in range(5)]
    ours = [row("ours", "1 level", 150, 22), row("ours", "2 levels", 400, 23), row("ours", "3 levels", 500, 30)]
    found = {(e["codec"], e["setting"]): e for e in equal([*ours, *peer, *photo])}
    assert found["ours", "1 level"]["x264"] == pytest.approx(-25)
    assert found["ours", "1 level"]["image-photo"] == pytest.approx(-62.5)
    assert found["ours", "2 levels"]["x264"] == pytest.approx(100 * (2**0.5 - 1))
    assert (found["ours", "3 levels"]["x264"], found["ours", "3 levels"]["image-photo"]) == (None, None)
    assert found["x264", "crf 2"]["x264"] == pytest.approx(0)
    alone = equal([*ours, row("x264", "crf 1", 100, 22, clip="another")])
    assert "x264" not in alone[0]
    pairs = {(p["codec"], p["against"]): p for p in compare_clips([*ours, *peer, *photo])}
    assert pairs["image-photo", "x264"]["percent"] == pytest.approx(100)
    assert pairs["x264", "image-photo"]["percent"] == pytest.approx(-50)
    assert pairs["ours", "x264"]["percent"] is None


def test_means_of_rates_leave_out_what_is_not_known() -> None:
    about: dict[str, Any] = {"codec": "ours", "against": "x264", "metric": "psnr", "sizes": "bytes"}
    pairs = [about | {"clip": str(i), "percent": percent} for i, percent in enumerate((-10.0, None, 4.0))]
    assert mean_rates(pairs) == [about | {"clips": 2, "percent": -3.0}]
    assert mean_rates(pairs[1:2]) == [about | {"clips": 0, "percent": None}]


def test_vmaf_is_of_the_frames_that_were_coded() -> None:
    pytest.importorskip("vmaf_torch")
    a = video(clip(9, 96, 112))
    of = VmafClip(a, 4, "cpu")
    coarse = [x[::4, ::4].repeat(4, 0).repeat(4, 1) for x in a.frames]
    same, worse = of.score(list(a.frames)), of.score(coarse)
    assert same is not None
    assert worse is not None
    assert same > 95 > worse + 5
    mixed = [x if i in (0, 4, 8) else y for i, (x, y) in enumerate(zip(a.frames, coarse, strict=True))]
    assert of.score(mixed) == same
    every = VmafClip(a, 1, "cpu")
    assert every.score(mixed[::4], 4) == same  # a model for pictures codes some frames
    assert VmafClip(video(clip(2, 40, 40)), 1, "cpu").score(list(clip(2, 40, 40))) is None


def test_equal_frames_have_a_finite_psnr() -> None:
    x = clip(3, 170, 162)
    x_hat = [x[0], x[1] ^ 8, x[2] ^ 8]
    found = measure_frames(x, x_hat, 2, "cpu")
    assert found["psnr"] == pytest.approx((EQUAL_PSNR + 2 * metrics_picture.psnr(x[1], x_hat[1])) / 3)
    assert found["psnr_worst"] == pytest.approx(metrics_picture.psnr(x[1], x_hat[1]))
    assert found["ms_ssim"] == pytest.approx((1 + (metrics_picture.ms_ssim(x[2], x_hat[2]) or 0)) / 2)
    small, small_hat = x[:, :144], [y[:144] for y in x_hat]  # lines of QCIF: the window fits in four scales
    four = float(similarity(to_tensor(small[2])[None], to_tensor(small_hat[2])[None], n_scales=4))
    assert measure_frames(small, small_hat, 2, "cpu")["ms_ssim"] == pytest.approx((1 + four) / 2)
    assert 0.5 < four < 1
    assert metrics_picture.ms_ssim(small[2], small_hat[2]) is None


# ----------------------------------------------------------------------------------------------------------- the run


def test_every_combination_has_its_row(rows: list[dict[str, str]], report: dict[str, Any]) -> None:
    settings = [("tiny-video", "1 level"), ("tiny-video", "3 levels")]
    settings += [("x264", f"crf {crf}") for crf in VIDEO_PEERS["x264"].crfs]
    settings += [("image-photo", f"quality {quality}") for quality in (0, 10, 20, 35, 50)]
    settings += [("x265", f"crf {crf}") for crf in VIDEO_PEERS["x265"].crfs]
    assert [(r["clip"], r["codec"], r["setting"]) for r in rows] == [
        (name, codec, setting) for name in NAMES for codec, setting in settings
    ]
    assert [note.partition(":")[0] for note in report["notes"]] == [
        f"{name}, tiny-video at 0.01 kbit/s" for name in NAMES
    ]
    assert [Path(reason.partition(":")[0]).name for reason in report["skipped"]] == ["bad.mp4", "odd.y4m"]
    assert "odd side of 47 x 33" in report["skipped"][1]
    assert [clip["name"] for clip in report["clips"]] == NAMES


def test_our_rows_are_our_files(rows: list[dict[str, str]], clips: Path, video_model: Path) -> None:
    coder = prepare_video(str(video_model), "cpu")
    assert [setting.label for setting in coder.settings] == ["1 level", "2 levels", "3 levels"]
    for r in rows:
        if r["kind"] != "ours":
            continue
        a = read_video(clips / r["clip"], FRAMES)
        source = io.BytesIO(a.as_file())
        data = encode_file(source, model=str(video_model), levels=int(float(r["dial"])), device="cpu").data
        assert int(r["bytes"]) == len(data)
        check(r, a, coder.decode(Coded.of(data)))


def test_rows_of_others_are_their_files(rows: list[dict[str, str]], clips: Path) -> None:
    """Not those of x264, which makes another file each time where the CPU has AVX-512."""
    photo = prepare_frames("image-photo", "cpu", 4)
    codecs: dict[str, Contender] = {"x265": find_video_peer("x265", 1), "image-photo": photo}
    for r in rows:
        if r["codec"] not in codecs or r["setting"] not in ("crf 31", "quality 20"):
            continue
        a = read_video(clips / r["clip"], FRAMES)
        codec = codecs[r["codec"]]
        coded = codec.encode(a, Setting(r["setting"].split()[0], float(r["dial"])))
        size = sum(map(len, coded.files))
        assert int(r["bytes"]) == (size if r["codec"] == "x265" else round(size * FRAMES / 3))
        check(r, a, codec.decode(coded))


def check(r: dict[str, str], a: Video, x_hat: list[np.ndarray]) -> None:
    """A row's figures, from what was decoded."""
    x = a.frames[:: 4 if r["kind"] == "frames" else 1]
    psnr = [metrics_picture.psnr(u, v) for u, v in zip(x, x_hat, strict=True)]
    assert int(r["frames"]) == len(psnr)
    assert float(r["psnr"]) == pytest.approx(np.mean(psnr), abs=1e-3)
    assert float(r["psnr_worst"]) == pytest.approx(min(psnr), abs=1e-3)
    distance = [metrics.feature_distance(x[i], x_hat[i]) for i in range(0, len(x), 5)]
    assert float(r["feature_distance"]) == pytest.approx(np.mean(distance), abs=1e-4)
    similar = [metrics_picture.ms_ssim(x[i], x_hat[i], fewer=True) or 0 for i in range(0, len(x), 5)]
    assert float(r["ms_ssim"]) == pytest.approx(np.mean(similar), abs=1e-4)
    assert bool(r["mp4_bytes"]) == (r["kind"] == "peer")
    assert float(r["bpp"]) == pytest.approx(8 * int(r["bytes"]) / (FRAMES * 64 * 80))
    assert float(r["kbps"]) == pytest.approx(8e-3 * int(r["bytes"]) / (FRAMES / 25))


def test_aggregates_are_means_of_the_rows(rows: list[dict[str, str]], report: dict[str, Any]) -> None:
    assert len(report["aggregates"]) == len(rows) // 2
    for e in report["aggregates"]:
        own = [r for r in rows if (r["codec"], r["setting"]) == (e["codec"], e["setting"])]
        assert e["clips"] == len(own) == 2
        for key in MEANS:
            found = [float(r[key]) for r in own if r[key]]
            assert e[key] == (pytest.approx(np.mean(found)) if found else None), key
        seconds = sum(float(r["encode_s"]) for r in own)
        assert e["encode_fps"] == pytest.approx(sum(int(r["frames"]) for r in own) / seconds, rel=1e-5)


def test_report_says_how_it_came_about(report: dict[str, Any]) -> None:
    assert report["models"] == ["tiny-video"]
    assert {name: codec["kind"] for name, codec in report["codecs"].items()} == {
        "tiny-video": "ours", "x264": "peer", "image-photo": "frames", "x265": "peer",
    }  # fmt: skip
    assert "preset=medium" in report["codecs"]["x264"]["how"]
    assert "one of 4 frames" in report["codecs"]["image-photo"]["how"]
    assert (report["every"], report["every_photo"]) == (5, 4)
    assert report["machine"]["torch_threads"] == 1
    assert len(report["equal"]) == len(report["points"])


def test_page_needs_nothing_from_outside(out: Path, report: dict[str, Any]) -> None:
    html = (out / "index.html").read_text()
    assert not re.findall(r"""https?:|@import|<link|src="(?!data:)|url\((?!#)|fetch\(|import\(""", html)
    articles = re.findall(r"<article.*?</article>", html, re.DOTALL)
    assert [re.findall(r"<h3>(\S+)", text)[0] for text in articles] == NAMES
    for name, text in zip(NAMES, articles, strict=True):
        labels = re.findall(r"<b>(.*?)</b>", text)
        assert labels[:2] == ["original", "tiny-video, 3 levels"]
        goal = next(p["bytes"] for p in report["points"] if (p["clip"], p["setting"]) == (name, "3 levels"))
        for codec, label in zip(("x264", "x265"), labels[2:], strict=True):
            points = {p["setting"]: p["bytes"] for p in report["points"] if (p["clip"], p["codec"]) == (name, codec)}
            assert label == f"{codec}, {min(points, key=lambda s: abs(np.log(points[s] / goal)))}"
        for uri in re.findall(r'src="data:video/mp4;base64,([^"]+)"', text):
            with VideoReader(io.BytesIO(base64.b64decode(uri)), "player") as reader:
                assert [frame.time for frame in reader] == [i * TICK for i in range(FRAMES)]
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    data = json.loads(text)
    assert data["groups"][1:] == NAMES
    assert [(s["name"], s["kind"], len(s["points"])) for s in data["series"]] == [
        ("tiny-video", "ours", 6), ("x264", "peer", 21), ("image-photo", "peer", 15), ("x265", "peer", 21),
    ]  # fmt: skip


def test_the_sheet_has_a_frame_of_each_version(out: Path, clips: Path) -> None:
    with Image.open(out / "sheet.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (2 * (64 + 20), 4 * (80 + 4), 3)
    assert np.array_equal(sheet[16:80, :80], read_video(clips / "a.mp4", FRAMES).frames[FRAMES // 2])
    assert np.array_equal(sheet[100:164, :80], read_video(clips / "b.mkv", FRAMES).frames[FRAMES // 2])


# ------------------------------------------------------------------------------------------------------ command line


def test_others_alone_from_the_command_line(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "video", str(clips), "--models", "", "--codecs", "x264,x265", "--frames", "4", "--limit", "1"]
    assert run([*command, "--out", str(tmp_path / "out"), "--device", "cpu", "--every", "4"]) == 0
    printed = capsys.readouterr()
    assert "1 of 1: a.mp4, 4 frames of 80 x 64" in printed.err
    assert re.search(r"x265 crf 31 +\d", printed.out)
    assert re.search(r"a\.mp4 +[+-]\d+\.\d %", printed.out)
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    weighed = {e["codec"]: e for e in report["memory"]["codecs"]}
    assert list(weighed) == ["start-up", "x264", "x265"]
    assert all(20 < e["encode_mib"] < 300 and e["gpu_mib"] is None for e in weighed.values())  # PyTorch is not there
    assert "video-grid" not in (tmp_path / "out" / "index.html").read_text()


def test_models_are_weighed_as_they_are_run(
    clips: Path, video_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = prepare_frames("image-photo", "cpu", 4)
    ours = prepare_video(str(video_model), "cpu")
    for codec in (photo, ours):
        spec = codec.spec()
        job = {"reader": ("clips:read_video", {"frames": 5}), "threads": 1, "variant": ""}
        job |= {"factory": spec.factory, "arguments": spec.arguments, "setting": vars(spec.setting)}
        file = tmp_path / "coded"
        for step in ("encode", "decode"):
            memory.child(json.dumps(job), step, str(clips / "a.mp4"), str(file))
        found = json.loads(file.read_text())
        assert spec.setting.label == ("quality 20" if codec is photo else "3 levels")
        coded = codec.encode(read_video(clips / "a.mp4", 5), spec.setting)
        assert [bytes.fromhex(text) for text in found["files"]] == list(coded.files)
        assert found["size"] == coded.size
        assert capsys.readouterr().out == "null\nnull\n"


def test_users_mistakes_are_one_line(
    clips: Path, tiny_model: Path, video_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_bytes(b"nothing")
    (tmp_path / "file").write_text("")
    target, ours = tmp_path / "out", {"models": str(video_model), "codecs": ""}
    cases: tuple[tuple[type[TokodecError], str, dict[str, Any]], ...] = (
        (UsageError, "unknown codec 'h266'.*image-photo, x264", {"codecs": "h266"}),
        (UsageError, "nothing to measure", {"codecs": ""}),
        (UsageError, "no videos in", {"folder": tmp_path / "empty"}),
        (UsageError, "is not a folder", {"folder": tmp_path / "nowhere"}),
        (UsageError, "at least 1", {"limit": 0}),
        (UsageError, "counted from 1", {"frames": 0}),
        (UsageError, "is a file", {"out": tmp_path / "file"}),
        (UsageError, "unknown device", {"device": "abacus"}),
        (UsageError, "is not a model for videos", {"models": str(tiny_model), "codecs": ""}),
        (UsageError, "are 1 to 3", {**ours, "levels": "4"}),
        (UsageError, "above 0", {**ours, "kbps": "0"}),
        (MediaError, "none of the videos", {"folder": tmp_path / "bad"}),
    )
    for error, match, changed in cases:
        with pytest.raises(error, match=match) as caught:
            bench(**{"folder": clips, "out": target, "models": "", "codecs": "x264", **changed})
        assert "\n" not in str(caught.value)
    assert run(["bench", "video", str(clips), "--levels", "1,x", "--out", str(target)]) == 2
    assert capsys.readouterr().err.strip() == "codec: levels are whole numbers with commas, got '1,x'"
    assert not target.exists()


def test_a_rate_of_ours_is_a_setting(video_model: Path) -> None:
    coder = prepare_video(str(video_model), "cpu", kbps=[90.0])
    assert [setting.label for setting in coder.settings] == ["90 kbit/s"]
    a = video()
    coded = coder.encode(a, coder.settings[0])
    assert 8e-3 * coded.size / float(a.seconds) <= 90
    assert isinstance(coder, VideoCoder)
    assert len(coder.decode(coded)) == FRAMES


# ------------------------------------------------------------------------------------------------- files that are there


def test_files_are_measured_as_they_are(tmp_path: Path) -> None:
    folder, files, out = tmp_path / "clips", tmp_path / "files", tmp_path / "out"
    folder.mkdir()
    files.mkdir()
    save(folder / "a.mp4", clip())
    data = encode_file(folder / "a.mp4", model="video-fit", minutes=0.02, device="cpu").data
    (files / "a.tok").write_bytes(data)
    report = bench(folder, out, "", "x264", files=files)
    point = report["points"][0]
    found = [point[key] for key in ("codec", "kind", "setting", "bytes")]
    assert found == ["video-fit", "ours", "as it is", len(data)]
    assert point["encode_s"] is report["aggregates"][0]["encode_fps"] is None
    decoded = [pixels for _, pixels in video_frames(read_tok(data), device="cpu")]
    source = read_video(folder / "a.mp4").frames
    assert point["psnr"] == pytest.approx(
        np.mean([metrics_picture.psnr(a, b) for a, b in zip(source, decoded, strict=True)])
    )
    assert report["equal"][0]["codec"] == "video-fit"
    assert "video-fit" not in [entry["codec"] for entry in report["memory"]["codecs"]]

    with pytest.raises(UsageError, match="leave --frames out"):
        bench(folder, out, "", "x264", files=files, frames=3)
    save(folder / "b.mkv", clip(4))
    with pytest.raises(UsageError, match=r"no file for b.mkv: cannot read .*b.tok"):
        bench(folder, out, "", "x264", files=files)
    (files / "b.tok").write_bytes(data)
    report = bench(folder, out, "", "x264", files=files, memory=False)
    assert report["skipped"] == ["b.mkv: its .tok file is of 9 frames of another video"]
    picture = Path(__file__).parents[1] / "assets" / "kodim23.webp"
    (files / "b.tok").write_bytes(encode_file(picture, model="image-grid", levels=1, device="cpu").data)
    with pytest.raises(UsageError, match=r"b.tok is not a file of a video"):
        bench(folder, out, "", "x264", files=files)
