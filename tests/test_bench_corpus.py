"""`codec bench corpus`: both ways tokenize the same files, and what is said of them is what was counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tokodec.codec import cli
from tokodec.codec.bench.corpus import make_crops, media_in
from tokodec.codec.errors import UsageError
from tokodec.codec.options import CORPUS_FORMATS
from tokodec.tests.test_corpus_shards import SIZES, made, write_pictures
from tokodec.tests.test_datasets import write_sound

pytest.importorskip("pyarrow")


def test_both_ways_are_timed(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pictures(tmp_path / "pictures", 6)
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    out = tmp_path / "report.json"
    made(tmp_path / "pictures", tmp_path / "out", tiny_model)
    arguments = ["bench", "corpus", str(tmp_path / "pictures"), "--workers", "0,1", "-m", str(tiny_model)]
    assert cli.run([*arguments, "--device", "cpu", "-o", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [(row["way"], row["workers"], row["samples"], row["failed"]) for row in report["rows"]] == [
        ("loop", None, 6, 1), ("shards", 0, 6, 1), ("shards", 1, 6, 1),
    ]  # fmt: skip
    for row in report["rows"]:
        assert row["samples_s"] == pytest.approx(row["samples"] / row["seconds"], rel=1e-5)
        assert row["times"] == pytest.approx(row["samples_s"] / report["rows"][0]["samples_s"], rel=1e-5)
        assert 0 < row["busy"] <= 1
        assert row["hours_s"] == 0
    sizes = {row["format"]: row for row in report["sizes"]}
    assert list(sizes) == list(CORPUS_FORMATS)
    assert sizes["webdataset"]["bytes"] == next((tmp_path / "out").glob("*.tar")).stat().st_size
    cells = sum(-(-h // 16) * -(-w // 16) for h, w in (SIZES[i % 4] for i in range(6)))
    assert sizes["tok"]["bits"] == pytest.approx(8 * sizes["tok"]["bytes"] / (3 * cells), rel=1e-5)
    assert sizes["tok"]["packed"] == pytest.approx(8 * sizes["tok"]["bytes"] / ((6 + 5 + 4) * cells), rel=1e-5)
    assert "shards" in capsys.readouterr().out


def test_sounds_are_counted_in_hours(sound_model: Path, tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    for i in range(3):
        write_sound(tmp_path / "sounds" / f"{i}.wav", 24000 * (i + 1))
    out = tmp_path / "report.json"
    arguments = ["bench", "corpus", str(tmp_path / "sounds"), "--workers", "0", "-m", str(sound_model)]
    assert cli.run([*arguments, "--device", "cpu", "-o", str(out)]) == 0
    for row in json.loads(out.read_text())["rows"]:
        assert row["hours_s"] * row["seconds"] == pytest.approx(6 / 3600, rel=1e-3)


def test_crops(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 4, (64, 64))
    for name in ("a", "b"):
        make_crops(tmp_path / "pictures", tmp_path / name, 60, 16, seed=3)
    found = [path.read_bytes() for path in sorted((tmp_path / "a").rglob("*.png"))]
    assert len(set(found)) > 20
    assert found == [path.read_bytes() for path in sorted((tmp_path / "b").rglob("*.png"))]
    assert {Image.open(path).size for path in (tmp_path / "a").rglob("*.png")} == {(16, 16)}
    with pytest.raises(UsageError, match="smaller than 99"):
        make_crops(tmp_path / "pictures", tmp_path / "c", 5, 99, seed=0)
    with pytest.raises(UsageError, match="no pictures or sounds"):
        media_in(Path(__file__).parent / "golden" / "bad")
