"""`codec bench devices`: files of one device read on the other, hashes of codes, times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from tokodec.codec.bench import devices, sound_devices
from tokodec.codec.cli import run
from tokodec.codec.container import read_tok
from tokodec.codec.decode import file_tokens
from tokodec.codec.encode import encode_file
from tokodec.tokenizers.api import Tokens

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
        (name, q, encode_file(pictures / name, None, str(photo_model), q, device="cpu").data)
        for name in NAMES
        for q in (20.0, 80.0)
    ]
    assert [(r["name"], r["quality"], r["bytes_cpu"]) for r in report["rows"]] == [(n, q, len(d)) for n, q, d in files]
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


def test_other_codes_are_noticed(
    pictures: Path, photo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    monkeypatch.setattr(devices, "codes_of", lambda *_: np.array([next(calls)]))
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
    assert bench(sounds, "-m", sound_model, "--kbps", "3", "-o", out) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    files = [encode_file(p, None, str(sound_model), kbps=3, device="cpu").data for p in sorted(sounds.iterdir())]
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
    read, calls = sound_devices.file_tokens, iter(range(100))

    def other(*words: Any) -> tuple[Tokens, Any]:
        tokens, model = read(*words)
        return Tokens((tokens.codes + int(next(calls) == 2)) % tokens.spec.codebook_sizes[0], tokens.spec), model

    monkeypatch.setattr(sound_devices, "file_tokens", other)  # the third is that of the CPU's file on the device
    out = tmp_path / "found.json"
    assert bench(sounds, "-m", sound_model, "--kbps", "3", "--limit", "1", "-o", out) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["same_codes"] is False


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{pictures}", "--kbps", "3"], "no sounds in {pictures}"),
        (["{pictures}", "-m", "image-grid"], "image-grid has no quality for a rate dial"),
        (["{pictures}", "--qualities", "high"], "qualities are numbers with commas, got 'high'"),
        (["{pictures}", "--qualities", "120"], "quality is 0 to 100, got 120"),
        (["{pictures}/nothing"], "is not a folder"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*(word.format(pictures=pictures) for word in words)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.endswith(message.format(pictures=pictures))
