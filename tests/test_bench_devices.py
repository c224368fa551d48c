"""`codec bench devices`: files of one device read on the other, hashes of codes, times."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch
from PIL import Image

from tokodec.codec.bench import devices
from tokodec.codec.cli import run
from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import file_tokens
from tokodec.codec.encode import encode_file
from tokodec.codec.media.write_video import VideoWriter
from tokodec.codec.models import Model, load_model
from tokodec.codec.video.segments import read_segment, segment_payload, video_tokenizer

NAMES = ("a.png", "b.png")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in zip(NAMES, ((40, 70), (70, 40)), strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    return folder


def codes(data: bytes, model: Path) -> np.ndarray:
    return file_tokens(read_tok(data), str(model), "cpu")[0].codes[0].numpy()


def bench(*words: object) -> int:
    return run(["bench", "devices", *map(str, words), "--device", "cpu"])


def test_a_device_beside_itself(
    pictures: Path, photo_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert bench(pictures, "-m", photo_model, "--qualities", "20,80", "-o", out) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    files = [
        (name, q, encode_file(pictures / name, None, model=str(photo_model), quality=q, device="cpu").data)
        for name in NAMES
        for q in (20.0, 80.0)
    ]
    expected = [(name, f"quality {quality:g}", len(data)) for name, quality, data in files]
    assert [(r["name"], r["setting"], r["bytes_cpu"]) for r in report["rows"]] == expected
    assert all(r["same_file"] is True and r["same_codes"] is True for r in report["rows"])
    assert all(min(r["encode_s"], r["decode_s"], r["decode_cpu_s"]) > 0 for r in report["rows"])
    digest = hashlib.sha256(b"".join(codes(data, photo_model).astype("<i4").tobytes() for _, _, data in files))
    assert report["codes_sha256"] == digest.hexdigest()
    printed = capsys.readouterr().out
    assert digest.hexdigest() in printed

    # The files themselves, in the order of their names, have the same codes.
    folder = tmp_path / "files"
    folder.mkdir()
    for i, (_, _, data) in enumerate(files):
        (folder / f"{i}.tok").write_bytes(data)
    assert bench(folder, "-m", photo_model, "-o", out) == 0
    again: dict[str, Any] = json.loads(out.read_text())
    assert again["codes_sha256"] == report["codes_sha256"]
    assert all(r["same_file"] is None and r["encode_s"] is None and r["same_codes"] for r in again["rows"])


def test_lossless_files_have_samples_to_compare(pictures: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "files", tmp_path / "found.json"
    folder.mkdir()
    digest = hashlib.sha256()
    for name in NAMES:
        encode_file(pictures / name, folder / f"{name}.tok", lossless=True, device="cpu")
        digest.update(np.asarray(Image.open(pictures / name)).astype("<i4").tobytes())
    assert bench(folder, "-o", out) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    assert report["codes_sha256"] == digest.hexdigest()
    assert all(row["same_codes"] for row in report["rows"])


def test_other_codes_are_noticed(
    pictures: Path, photo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    monkeypatch.setattr(devices, "codes_of", lambda *_: np.array([[next(calls)]]))
    out = tmp_path / "found.json"
    assert bench(pictures, "-m", photo_model, "--qualities", "20", "--limit", "1", "-o", out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["same_codes"] is False


def test_batches_of_one_size(
    pictures: Path, photo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "BATCH", 2)
    (pictures / "c.png").write_bytes((pictures / "a.png").read_bytes())
    out = tmp_path / "found.json"
    assert bench(pictures, "-m", photo_model, "--qualities", "50", "-o", out) == 0
    (batch,) = json.loads(out.read_text())["batches"]
    assert (batch["quality"], batch["height"], batch["width"], batch["batch"]) == (50, 40, 70, 2)
    assert batch["pictures_per_s"] > 0


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, n in (("a.wav", 9000), ("b.flac", 30000)):
        soundfile.write(str(folder / name), 0.1 * rng.standard_normal(n), 24000)
    return folder


def test_sounds_on_a_device_beside_itself(
    sounds: Path, sound_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert bench(sounds, "-m", sound_model, "-o", out) == 0  # at 3 kbit/s
    report: dict[str, Any] = json.loads(out.read_text())
    files = [encode_file(p, None, model=str(sound_model), kbps=3, device="cpu").data for p in sorted(sounds.iterdir())]
    assert [row["bytes_cpu"] for row in report["rows"]] == [len(data) for data in files]
    assert [row["seconds"] for row in report["rows"]] == [9000 / 24000, 30000 / 24000]
    read = [file_tokens(read_tok(data), str(sound_model), "cpu")[0].codes.numpy() for data in files]
    assert all(r["same_codes"] is True and r["analysed_alike"] == r["codes"] for r in report["rows"])
    assert [row["codes"] for row in report["rows"]] == [codes.size for codes in read]
    digest = hashlib.sha256(b"".join(codes.astype("<i4").tobytes() for codes in read)).hexdigest()
    assert report["codes_sha256"] == digest
    assert digest in capsys.readouterr().out


def test_other_codes_of_sounds_are_noticed(
    sounds: Path, sound_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = devices.codes_of, iter(range(100))

    def other(*words: Any) -> np.ndarray:
        return read(*words) + int(next(calls) == 1)

    monkeypatch.setattr(devices, "codes_of", other)  # the second is that of the CPU's file on the device
    out = tmp_path / "found.json"
    assert bench(sounds, "-m", sound_model, "--kbps", "3", "--limit", "1", "-o", out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["same_codes"] is False


SIZES = {"a.mp4": (40, 36, 68), "b.mkv": (5, 48, 32)}  # frames, height, width


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    tick = Fraction(1, 25)
    for name, (n, height, width) in SIZES.items():
        y, x = np.mgrid[:height, :width]
        path = folder / name
        with (
            path.open("w+b") as file,
            VideoWriter(file, path.suffix, name, height, width, tick, 1 / tick) as writer,
        ):
            for i in range(n):
                planes = [127 + 100 * np.sin((x + 3 * i) / 9 + c) * np.cos(y / (7 + c)) for c in range(3)]
                writer.write(np.stack(planes, 2).astype(np.uint8), i * tick, tick)
    (folder / "NOTES.txt").write_text("not a video")
    return folder


def segments(data: bytes, model: Path) -> list[npt.NDArray[np.int64]]:
    tok = read_tok(data)
    read = [read_segment(tok, load_model(str(model)), segment) for segment in range(tok.video.n_segments)]
    return [codes for codes in read if codes is not None]


def test_videos_on_a_device_beside_itself(
    videos: Path, video_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    assert bench(videos, "-m", video_model, "-o", out) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    files = [encode_file(videos / name, None, model=str(video_model), device="cpu").data for name in SIZES]
    read = [segments(data, video_model) for data in files]
    rows = report["rows"]
    assert [(r["name"], (r["frames"], r["height"], r["width"])) for r in rows] == list(SIZES.items())
    assert [r["bytes_cpu"] for r in rows] == [len(data) for data in files]
    assert [r["segments"] for r in rows] == [len(parts) for parts in read] == [2, 1]
    cells = [np.sum([part[0].size for part in parts]) for parts in read]
    assert [r["codes"] for r in rows] == [3 * [n] for n in cells]
    for row in rows:
        assert (row["same_codes"], row["same_bytes"], row["largest"], row["other_pixels"]) == (True, True, 0, 0)
        made = row["made"]
        assert (made["same_file"], made["other_codes"]) == (True, [0, 0, 0])
        assert (made["whole_cpu"], made["whole_device"]) == (True, True)
        for device in ("cpu", "device"):
            assert min(made["read_s"], *row[device].values()) > 0
    digest = hashlib.sha256(b"".join(part.astype("<i4").tobytes() for parts in read for part in parts)).hexdigest()
    assert report["codes_sha256"] == digest
    assert {"tokodec", "torch", "av"} <= set(report["versions"])
    assert digest in capsys.readouterr().out

    # Files of other levels; what was made elsewhere is decoded only.
    folder = tmp_path / "files"
    folder.mkdir()
    for levels in (1, 2):
        encode_file(videos / "b.mkv", folder / f"{levels}.tok", model=str(video_model), levels=levels, device="cpu")
    assert bench(folder, "-m", video_model, "-o", out) == 0
    found = json.loads(out.read_text())["rows"]
    assert [(r["name"], r["codes"]) for r in found] == [("1.tok", [12]), ("2.tok", [12, 12])]
    assert all((r["made"], r["same_codes"], r["same_bytes"]) == (None, True, True) for r in found)
    assert all(r[device]["encode"] is None and r[device]["nets"] > 0 for r in found for device in ("cpu", "device"))
    assert bench(videos, "-m", video_model, "--levels", "2", "--limit", "1", "-o", out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["codes"] == 2 * [cells[0]]


class Second:
    """Says that the second of two devices is asked: of every pair of calls, the later one."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> bool:
        self.calls += 1
        return self.calls % 2 == 0


def one_row(videos: Path, model: Path, out: Path) -> dict[str, Any]:
    for path in (videos / "a.mp4", videos / "NOTES.txt"):
        path.unlink()
    assert bench(videos, "-m", model, "-o", out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    return dict(row)


def test_codes_read_otherwise_are_noticed(
    videos: Path, video_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, read = Second(), devices.read_codes

    def other(*words: Any) -> list[Any]:
        parts = read(*words)
        return [None] * len(parts) if second() else parts

    monkeypatch.setattr(devices, "read_codes", other)
    row = one_row(videos, video_model, tmp_path / "found.json")
    assert (row["same_codes"], row["same_bytes"], row["made"]["other_codes"]) == (False, True, [0, 0, 0])


def test_other_bytes_of_the_same_codes_are_noticed(
    videos: Path, video_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Second()

    def pack(*words: Any, **more: Any) -> bytes:
        return segment_payload(*words, **more) + b"\0" * second()

    monkeypatch.setattr("tokodec.codec.bench.video.ours.segment_payload", pack)
    row = one_row(videos, video_model, tmp_path / "found.json")
    assert (row["same_codes"], row["same_bytes"]) == (True, False)


def test_codes_chosen_otherwise_are_counted(
    videos: Path, video_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second, encode = Second(), devices.encode

    def other(path: Path, *words: Any, **more: Any) -> bytes:
        return encode(videos / "other.mkv.part" if second() else path, *words, **more)

    with (videos / "other.mkv.part").open("w+b") as file, VideoWriter(file, ".mkv", "", 48, 32, Fraction(1, 25)) as w:
        for i in range(5):
            w.write(np.full((48, 32, 3), 255, dtype=np.uint8), Fraction(i, 25), Fraction(1, 25))
    monkeypatch.setattr(devices, "encode", other)
    expected = [
        np.concatenate(
            segments(encode_file(videos / name, None, model=str(video_model), device="cpu").data, video_model)
        )
        for name in ("b.mkv", "other.mkv.part")
    ]
    row = one_row(videos, video_model, tmp_path / "found.json")
    differ = (expected[0] != expected[1]).sum((1, 2, 3)).tolist()
    assert row["made"]["other_codes"] == differ
    assert sum(differ) > 0
    assert (row["made"]["same_file"], row["same_codes"], row["same_bytes"]) == (False, True, True)
    assert (row["made"]["whole_cpu"], row["made"]["whole_device"]) == (True, False)  # of the other clip's codes


def test_other_pixels_are_counted(
    videos: Path, video_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Second()

    def paint(codes: Any, model: Model, height: int, width: int) -> npt.NDArray[np.uint8]:
        frames = np.full((5, height, width, 3), 10, dtype=np.uint8)
        if second():
            frames[1, :3, :4] -= 1
            frames[1, 0, 0] -= 6
        return frames

    monkeypatch.setattr(devices, "paint", paint)
    row = one_row(videos, video_model, tmp_path / "found.json")
    assert (row["largest"], row["other_pixels"]) == (7, 12 / (5 * 48 * 32))


def test_frames_one_by_one_are_whole_clips(video_model: Path) -> None:
    model = load_model(str(video_model))
    frames = list(np.random.default_rng(0).integers(0, 256, (17, 20, 40, 3), dtype=np.uint8))
    encoder = video_tokenizer(model).encoder(20, 40, 2)
    cells = [encoder.push(pixels)[0] for pixels in frames]
    assert np.array_equal(devices.clip_codes(frames, model, 2), np.concatenate([*cells, encoder.finish()[0]], 1))


def test_a_file_that_holds_its_network_has_no_codes(
    golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next((golden / "fit").glob("*.tok"))
    (tmp_path / path.name).write_bytes(path.read_bytes())
    assert bench(tmp_path) == 2
    assert "has no codes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{pictures}", "--kbps", "3"], "kbps does not set the rate of image-photo-2: use quality, bpp, bytes,"),
        (["{pictures}", "--levels", "3"], "levels does not set the rate of image-photo-2: use quality, bpp, bytes,"),
        (["{videos}", "--levels", "9"], "levels is 1 to 7 with this model, got 9"),
        (["{videos}", "-m", "image-grid"], "image-grid is not a model for videos"),
        (["{pictures}", "--qualities", "high"], "qualities are numbers with commas, got 'high'"),
        (["{pictures}", "--qualities", "120"], "quality is 0 to 100, got 120"),
        (["{pictures}/nothing"], "is not a folder"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, pictures: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"pictures": pictures, "videos": videos}
    assert bench(*(word.format(**folders) for word in words)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message.format(**folders) in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_to_compare(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "devices", str(videos), "--device", "cuda"]) == 2
    assert "no CUDA GPU here" in capsys.readouterr().err
