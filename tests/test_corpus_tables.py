"""Parquet files as sources: columns of media and lists of paths, each row once, split over ranks by row groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokodec.codec import cli
from tokodec.codec.corpus.manifest import verify
from tokodec.codec.corpus.sources import Rows, list_samples
from tokodec.codec.errors import MediaError, UsageError
from tokodec.tests.test_corpus_shards import codes_of, made, rows_of, write_pictures
from tokodec.tests.test_datasets import write_sound

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PNG = (".png",)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return sorted(write_pictures(tmp_path / "media", 30).rglob("*.png"))


def write(path: Path, rows: int, **columns: Any) -> str:
    parquet.write_table(pa.table(columns), path, row_group_size=rows)
    return str(path)


def codes_in_order(folder: Path) -> list[str]:
    return [row["codes"] for path in sorted(folder.glob("part-*.jsonl")) for row in rows_of(path)]


def test_columns_of_bytes(paths: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    """Plain, and in the structs of Hugging Face, of which some name a file."""
    data = [path.read_bytes() for path in paths]
    hugging: list[dict[str, Any]] = [{"bytes": x, "path": None} for x in data]
    hugging[3] = {"bytes": None, "path": str(paths[3].relative_to(tmp_path))}
    plain = write(tmp_path / "plain.parquet", 7, label=list(range(30)), jpg=data, caption=["x"] * 30)
    struct = write(tmp_path / "struct.parquet", 7, image=hugging, label=list(range(30)))
    made(tmp_path / "media", tmp_path / "folder", tiny_model)
    for source in (plain, struct):
        out = tmp_path / Path(source).stem
        for workers in (0, 1):
            done = made(source, out, tiny_model, workers=workers, resume=True)
            assert (done.written, done.failed) == (30, 0)
        assert codes_in_order(out) == codes_in_order(tmp_path / "folder")
        assert list(codes_of(out))[29] == f"{out.name}/00000029"
        assert list(verify(out, [source])) == []


def test_datasets_of_hugging_face(paths: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    """Pictures and sounds as the package itself writes them."""
    datasets = pytest.importorskip("datasets")
    pictures = datasets.Dataset.from_dict({"image": [str(path) for path in paths], "label": [1] * 30})
    pictures.cast_column("image", datasets.Image(decode=False)).to_parquet(tmp_path / "pictures.parquet")
    made(tmp_path / "media", tmp_path / "folder", tiny_model)
    made(tmp_path / "pictures.parquet", tmp_path / "out", tiny_model)
    assert codes_in_order(tmp_path / "out") == codes_in_order(tmp_path / "folder")


def test_row_groups_are_split_over_ranks(paths: list[Path], tmp_path: Path) -> None:
    files = [tmp_path / "a" / "0.parquet", tmp_path / "b" / "0.parquet"]
    for path in files:
        path.parent.mkdir()
        write(path, 4, image=[picture.read_bytes() for picture in paths])
    sources = list(map(str, files))
    ranks = [list(list_samples(sources, PNG, rank, 3)) for rank in range(3)]
    keys = [sample.key for samples in ranks for sample in samples]
    assert len(keys) == len(set(keys)) == 60
    assert [len({(s.source.rpartition("!")[0], s.row) for s in samples}) for samples in ranks] == [22, 18, 20]
    assert set(keys) == {sample.key for sample in list_samples(sources, PNG)}


def test_lists_of_paths(paths: list[Path], tiny_model: Path, tmp_path: Path) -> None:
    names = [path.relative_to(tmp_path).as_posix() for path in paths]
    source = write(tmp_path / "list.parquet", 7, url=names, caption=["x"] * 30)
    text = tmp_path / "list.txt"
    text.write_text("\n".join(names))
    ours, others = (list(list_samples([name], PNG)) for name in (source, str(text)))
    assert ours == others
    split = [{s.key for s in list_samples([source], PNG, rank, 2)} for rank in range(2)]
    assert [len(split[0] | split[1]), len(split[0] & split[1])] == [30, 0]
    assert made(source, tmp_path / "out", tiny_model).written == 30


def test_the_column_is_named_where_there_are_several(paths: list[Path], tmp_path: Path) -> None:
    data = [path.read_bytes() for path in paths]
    source = write(tmp_path / "two.parquet", 7, before=data[:15], after=data[15:], note=["x"] * 15)
    with pytest.raises(UsageError, match=r"two\.parquet: which of before, after holds the media"):
        list(list_samples([source], PNG))
    with pytest.raises(UsageError, match="no column 'nothing' of bytes or paths, only before, after, note"):
        list(list_samples([source + "#nothing"], PNG))
    (sample, *_) = list_samples([source + "#after"], PNG)
    assert Rows().fill(sample).data == sample.open().getvalue() == data[15]  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="none of n"):
        list(list_samples([write(tmp_path / "none.parquet", 7, n=[1, 2])], PNG))


def test_what_is_damaged_is_told(
    paths: list[Path], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [path.read_bytes() for path in paths[:6]]
    source = Path(write(tmp_path / "some.parquet", 2, image=[*data[:5], None]))
    assert made(source, tmp_path / "out", tiny_model).written == 5
    assert [row["reason"] for row in rows_of(tmp_path / "out" / "errors.jsonl")] == ["the row is empty"]
    whole = bytearray(source.read_bytes())
    whole[20:4000] = bytes(3980)
    source.write_bytes(whole)
    done = made(source, tmp_path / "damaged", tiny_model)
    assert 0 < done.failed <= 6
    source.write_bytes(whole[:-9])
    out = ["-o", str(tmp_path / "cut"), "--format", "webdataset", "-m", str(tiny_model), "--device", "cpu"]
    assert cli.run(["tokenize", str(source), *out, "--workers", "0"]) == 2
    (row,) = rows_of(tmp_path / "cut" / "errors.jsonl")
    assert row["key"] == "some"
    assert "cannot read the parquet file" in row["reason"]


def test_the_model_of_a_parquet_file_is_that_of_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokodec.codec.corpus.run import _default_model

    write_sound(tmp_path / "a.wav", 5000)
    source = write(tmp_path / "sounds.parquet", 2, audio=[(tmp_path / "a.wav").read_bytes()])
    assert _default_model([source]) == "audio-24k"
    source = write(tmp_path / "late.parquet", 2, audio=[None, (tmp_path / "a.wav").read_bytes()])
    assert _default_model([source]) == "audio-24k"
    first = next(list_samples([source], ()))
    with pytest.raises(MediaError, match="the row is empty"):
        first.open()
