"""Shards: every sample once, with the codes that it has alone, however often a rank was killed on the way."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader

import tokodec
from tokodec.codec import cli
from tokodec.codec.corpus import device, readers, run
from tokodec.codec.corpus.device import Device
from tokodec.codec.corpus.manifest import Corpus, finish, verify
from tokodec.codec.corpus.readers import Readers
from tokodec.codec.corpus.run import tokenize_corpus
from tokodec.codec.corpus.sources import Sample, expand, list_samples, owner
from tokodec.codec.corpus.tally import Tally
from tokodec.codec.datasets import ShardSampler, TokenDataset
from tokodec.codec.errors import MediaError, UsageError, WeightsMismatchError
from tokodec.codec.models import load_model
from tokodec.codec.options import CORPUS_FORMATS, CorpusOptions, TokenizeOptions
from tokodec.codec.tokens import tokenize_file
from tokodec.tests.test_datasets import write_picture, write_sound

SIZES = ((33, 40), (32, 32), (64, 48), (16, 16))
PNG = (".png",)


def write_pictures(folder: Path, n: int, size: tuple[int, int] | None = None) -> Path:
    for i in range(n):
        write_picture(folder / f"class{i % 3}" / f"p{i:05}.png", *(size or SIZES[i % 4]), seed=i)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 pictures of four sizes in three folders: three windows of the pipeline."""
    return write_pictures(tmp_path_factory.mktemp("media") / "pictures", 150)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "small", 6)


def made(sources: Any, folder: Path, model: Path, **options: Any) -> Tally:
    sources = [str(source) for source in (sources if isinstance(sources, list) else [sources])]
    given = {"shard_size": "20", "workers": 0, **options}
    return tokenize_corpus(sources, folder, CorpusOptions(**given), TokenizeOptions(model=str(model), device="cpu"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shard_bytes(folder: Path) -> dict[str, str]:
    """Hashes of everything in shards, and of the rows but their times."""
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("part-*") if p.suffix != ".jsonl"}
    for path in folder.glob("part-*.jsonl"):
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(path)]
        found[path.name] = json.dumps(rows)
    return found


def codes_of(folder: Path) -> dict[str, str]:
    """Hash of the codes by key; a key that is there twice is refused."""
    rows = [row for path in sorted(folder.glob("part-*.jsonl")) for row in rows_of(path)]
    found = {row["key"]: row["codes"] for row in rows}
    assert len(found) == len(rows)
    return found


# ----------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("format", CORPUS_FORMATS)
def test_every_format_holds_the_tokens_of_each_file_alone(
    format: str, small: Path, tiny_model: Path, tmp_path: Path
) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    (small / "notes.txt").write_text("no picture")
    done = made(small, tmp_path / "out", tiny_model, format=format, shard_size="4")
    assert (done.written, done.failed, done.finished, done.exit_code) == (6, 0, True, 0)
    corpus = Corpus(tmp_path / "out", load_model(str(tiny_model)))
    assert [n for _, n in corpus.shards] == [4, 2]
    paths = sorted(small.rglob("*.png"))
    found = [(key, corpus.shard(s).tokens(i)) for s in range(2) for i, key in enumerate(corpus.shard(s).keys)]
    assert [key for key, _ in found] == [str(path.relative_to(small).with_suffix("")) for path in paths]
    for path, (_, tokens) in zip(paths, found, strict=True):
        alone = tokenize_file(path, model=str(tiny_model), device="cpu").tokens
        assert tokens.spec == alone.spec
        assert torch.equal(tokens.codes, alone.codes)
        assert torch.equal(corpus.tokens(str(path.relative_to(small).with_suffix(""))).codes, alone.codes)
    assert list(verify(tmp_path / "out", [str(small)], str(tiny_model))) == []


def test_urls_are_sources(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Pictures and tars that fsspec reads."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    paths = sorted(small.rglob("*.png"))
    for path in paths:
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for path in paths[:2]:
            tar.add(path, path.name)
    memory.pipe("/bucket/a.tar", (tmp_path / "a.tar").read_bytes())
    (tmp_path / "urls.txt").write_text("".join(f"memory://bucket/{path.name}\n" for path in paths))
    done = made([tmp_path / "urls.txt", "memory://bucket/a.tar"], tmp_path / "out", tiny_model)
    made(small, tmp_path / "local", tiny_model)
    assert (done.written, done.failed) == (8, 0)
    found, local = codes_of(tmp_path / "out"), codes_of(tmp_path / "local")
    for i, path in enumerate(paths):
        codes = local[str(path.relative_to(small).with_suffix(""))]
        assert found[f"bucket/{path.stem}"] == codes
        assert i > 1 or found[f"a/{path.stem}"] == codes
    (tmp_path / "urls.txt").write_text("nothing://there/a.png\nmemory://bucket/none.png\n")
    assert made(tmp_path / "urls.txt", tmp_path / "none", tiny_model).failed == 2


def test_rows_say_where_a_sample_comes_from(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    made(small, tmp_path / "out", tiny_model)
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["fingerprint"]["weights_hash"] == load_model(str(tiny_model)).tokenizer.weights_hash
    assert manifest["shards"] == [["part-0000-0000", 6]]
    rows = list(rows_of(tmp_path / "out" / "part-0000-0000.jsonl"))
    for row in rows:
        assert row["sha256"] == hashlib.sha256(Path(row["source"]).read_bytes()).hexdigest()
        assert row["device"] == "cpu"
        assert row["seconds"] > 0


def test_shards_of_bytes(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A sample of a tar takes 2560 bytes at least: two members with their headers, and the end of the file."""
    made(small, tmp_path / "out", tiny_model, shard_size="4KB")
    assert [n for _, n in Corpus(tmp_path / "out").shards] == [2, 2, 2]
    assert CorpusOptions(shard_size="2 GB".replace(" ", "")).most == (2e9, float("inf"))
    for wrong in ("", "MB", "-1", "0", "1TB", "1.5MB", "KM"):
        with pytest.raises(UsageError, match="a shard has bytes"):
            CorpusOptions(shard_size=wrong)


def test_other_media(sound_model: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Sounds, `.tok` files and token files go the same way; of a picture model a sound is an error."""
    folder = tmp_path / "media"
    folder.mkdir()
    write_sound(folder / "a.wav", 5000)
    write_sound(folder / "b.flac", 3000, channels=2)
    assert made(folder, tmp_path / "sounds", sound_model).written == 2
    alone = tokenize_file(folder / "b.flac", model=str(sound_model), device="cpu").tokens
    assert torch.equal(Corpus(tmp_path / "sounds").shard(0).tokens(1).codes, alone.codes)
    write_picture(folder / "c.png", 20, 30)
    for command, name in (("encode", "d.tok"), ("tokenize", "e.npz")):
        arguments = [command, str(folder / "c.png"), "-o", str(folder / name), "-m", str(tiny_model)]
        assert cli.run([*arguments, "--device", "cpu"]) == 0
    (folder / "a.wav").rename(folder / "a.png")
    done = made(folder, tmp_path / "pictures", tiny_model)
    assert (done.written, done.failed) == (3, 1)
    assert len(set(codes_of(tmp_path / "pictures").values())) == 1
    (error,) = rows_of(tmp_path / "pictures" / "errors.jsonl")
    assert "is a model for image" in error["reason"]


# ------------------------------------------------------------------------------------------------- sources and ranks


def test_ranges_and_lists(pictures: Path, tmp_path: Path) -> None:
    assert expand("s3://a/{08..11}-{0..1}.tar")[:3] == ["s3://a/08-0.tar", "s3://a/08-1.tar", "s3://a/09-0.tar"]
    assert len(expand("{08..11}-{0..1}")) == 8
    names = [path.relative_to(pictures).as_posix() for path in sorted(pictures.rglob("*.png"))]
    (pictures / "some.txt").write_text("\n".join(names[::50]) + "\n\n")
    samples = list(list_samples([str(pictures / "some.txt")], PNG))
    assert [sample.source for sample in samples] == [str(pictures / name) for name in names[::50]]
    assert [sample.key for sample in samples] == [name[:-4] for name in names[::50]]
    (pictures / "some.txt").unlink()
    with pytest.raises(UsageError, match="no folder, file or list"):
        list(list_samples([str(tmp_path / "nothing")], PNG))


def test_tars_are_sources(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    paths = sorted(pictures.rglob("*.png"))[:9]
    for k in range(3):
        with tarfile.open(tmp_path / f"{k:03}.tar", "w") as tar:
            for i, path in enumerate(paths[k::3]):
                tar.add(path, f"train/{i:03}.png")
                tar.add(__file__, f"train/{i:03}.txt")
    done = made(str(tmp_path / "{000..002}.tar"), tmp_path / "out", tiny_model)
    assert (done.written, done.failed) == (9, 0)
    made(pictures, tmp_path / "folder", tiny_model)
    folder, tars = codes_of(tmp_path / "folder"), codes_of(tmp_path / "out")
    key = paths[1].relative_to(pictures).with_suffix("").as_posix()
    assert tars["001/train/000"] == folder[key]
    each = [list(list_samples([str(tmp_path / "{000..002}.tar")], PNG, rank, 2)) for rank in range(2)]
    assert [len({s.key.split("/")[0] for s in samples}) for samples in each] == [2, 1]


def test_a_tar_that_breaks_off_is_an_error_and_the_others_go_on(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for i, path in enumerate(sorted(small.rglob("*.png"))):
                tar.add(path, f"{i}.png")
    data = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as tar:
        third = tar.getmembers()[2].offset
    data[third : third + 512] = b"x" * 512
    (tmp_path / "a.tar").write_bytes(data)
    done = made([tmp_path / "a.tar", tmp_path / "b.tar"], tmp_path / "out", tiny_model)
    assert (done.written, done.failed, done.exit_code) == (8, 1, 2)


def test_a_million_keys() -> None:
    """A listing takes the memory of its keys, for which a tenth of them stands here."""
    n = 100_000
    listing = (Sample(f"class{i % 1000:04}/photo{i:08}", f"photos/photo{i:08}.jpg") for i in range(n))
    tracemalloc.start()
    try:
        windows = run._windows(listing, SimpleNamespace(has=lambda _: False))  # type: ignore[arg-type]
        assert sum(map(len, windows)) == n
        assert tracemalloc.get_traced_memory()[1] < 150 * n
    finally:
        tracemalloc.stop()


def test_each_file_belongs_to_one_rank_and_the_split_is_even(pictures: Path) -> None:
    each = [{s.key for s in list_samples([str(pictures)], PNG, rank, 4)} for rank in range(4)]
    assert sum(map(len, each)) == len(set().union(*each)) == 150
    assert owner("class0/p00000", 4) == 1  # the same on every machine and in every version
    assert min(map(len, each)) > 20


def test_ranks_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert CorpusOptions().place == (0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert CorpusOptions().place == (3, 8)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert CorpusOptions().place == (1, 2)
    assert CorpusOptions(rank=0, world=5).place == (0, 5)
    with pytest.raises(UsageError, match="0 to 4, got 5"):
        CorpusOptions(rank=5, world=5)
    with pytest.raises(UsageError, match="rank and world"):
        CorpusOptions(rank=5)


def test_ranks_make_one_corpus(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Also from folders of their own, without a common disk."""
    made(pictures, tmp_path / "one", tiny_model)
    done = [made(pictures, tmp_path / f"out{rank}", tiny_model, rank=rank, world=3) for rank in range(3)]
    assert not any(tally.finished for tally in done)
    with pytest.raises(UsageError, match="of 3 ranks 2 have not ended, the first is rank 1"):
        finish(tmp_path / "out0")
    assert cli.run(["corpus", "merge", *(str(tmp_path / f"out{rank}") for rank in range(3))]) == 0
    assert codes_of(tmp_path / "out0") == codes_of(tmp_path / "one")
    assert list(verify(tmp_path / "out0", [str(pictures)])) == []


def test_nothing_is_lost_by_a_merge(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Of the folder itself, of ranks with the same number, or of one whose merge broke off."""
    for name in ("out", "same"):
        made(pictures, tmp_path / name, tiny_model, rank=0, world=2)
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    (tmp_path / "link").symlink_to("out")
    with pytest.raises(UsageError, match="is the folder that the others are moved to"):
        finish(tmp_path / "out", [tmp_path / "link"])
    shard = tmp_path / "same" / "part-0000-0000.tar"
    data = shard.read_bytes()
    for other in (data[:-1] + b"x", data + b"x"):
        shard.write_bytes(other)
        with pytest.raises(UsageError, match=r"same and .*out both have a part-0000-0000\.tar: their ranks"):
            finish(tmp_path / "out", [tmp_path / "same"])
        assert shard.read_bytes() == other
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    made(pictures, tmp_path / "late", tiny_model, rank=1, world=2)
    (tmp_path / "out" / "part-0001-0000.tar").write_bytes((tmp_path / "late" / "part-0001-0000.tar").read_bytes())
    finish(tmp_path / "out", [tmp_path / "late"])
    assert list(verify(tmp_path / "out", [str(pictures)])) == []
    assert not list((tmp_path / "late").glob("part-*"))


# ------------------------------------------------------------------------------------------------ resume and refusals


def test_a_run_that_broke_off_goes_on_and_gives_the_same_bytes(
    pictures: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (device, run):
        monkeypatch.setattr(module, "WINDOW", 64)
    made(pictures, tmp_path / "whole", tiny_model)
    after, window = run._next, Device.window
    yielded: list[str] = []
    windows: list[int] = []

    def broken(*args: Any) -> Any:
        found = after(*args)
        yielded.append(found[0].key)
        if len(yielded) == 64 + 30:
            raise MediaError("cannot write: no space left")
        return found

    monkeypatch.setattr(run, "_next", broken)
    with pytest.raises(MediaError, match="no space"):
        made(pictures, tmp_path / "out", tiny_model)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tmp")) == []
    kept = shard_bytes(tmp_path / "out")
    assert len(kept) == 8  # four shards of 20, with their rows
    with pytest.raises(UsageError, match="has shards of rank 0 already: --resume"):
        made(pictures, tmp_path / "out", tiny_model)

    def counted(*args: Any) -> Any:
        found = window(*args)
        windows.append(len(found))
        return found

    monkeypatch.setattr(run, "_next", after)
    monkeypatch.setattr(Device, "window", counted)
    done = made(pictures, tmp_path / "out", tiny_model, resume=True)
    assert windows == [64, 22, 0]  # the first window was there
    assert (done.written, done.made, done.finished) == (150, 70, True)
    assert kept.items() <= shard_bytes(tmp_path / "out").items()
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "whole")
    again = made(pictures, tmp_path / "out", tiny_model, resume=True)
    assert (again.written, again.made) == (150, 0)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"world": 2, "rank": 0}, "world 1, not 2"),
        ({"shard_size": "21"}, "shard_size 20, not 21"),
        ({"format": "tok"}, "prior None, not"),
    ],
)
def test_other_options_are_refused(
    changed: dict[str, Any], what: str, small: Path, tiny_model: Path, tmp_path: Path
) -> None:
    made(small, tmp_path / "out", tiny_model)
    before = shard_bytes(tmp_path / "out")
    with pytest.raises(UsageError, match=what):
        made(small, tmp_path / "out", tiny_model, resume=True, **changed)
    assert shard_bytes(tmp_path / "out") == before
    assert (tmp_path / "out" / "_SUCCESS").is_file()


def test_other_weights_are_refused(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = load_model(str(tiny_model)).tokenizer
    made(small, tmp_path / "out", tiny_model)
    other = type(model)(model.config, "tiny")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match="was begun with weights_hash"):
        made(small, tmp_path / "out", tmp_path / "other", resume=True)


def test_what_cannot_be_read_is_named_and_nothing_else_is_lost(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    (small / "class0" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    whole = (small / "class1" / "p00001.png").read_bytes()
    (small / "class1" / "cut.png").write_bytes(whole[: len(whole) * 2 // 3])
    Image.new("RGB", (16, 16)).save(small / "class2" / "p00002.jpg")  # the key of p00002.png
    done = made(small, tmp_path / "out", tiny_model)
    assert (done.written, done.failed, done.damaged, done.exit_code) == (6, 3, 1, 2)
    errors = {Path(row["source"]).name: row["reason"] for row in rows_of(tmp_path / "out" / "errors.jsonl")}
    assert set(errors) == {"bad.png", "cut.png", "p00002.png"}
    assert "there twice" in errors["p00002.png"]
    assert list(verify(tmp_path / "out", [str(small)])) == []
    arguments = ["tokenize", str(small), "-o", str(tmp_path / "cli"), "--format", "webdataset", "--workers", "0"]
    assert cli.run([*arguments, "-m", str(tiny_model), "--device", "cpu"]) == 2


def test_options_of_shards_are_not_ignored(
    small: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (["--resume"], ["--rank", "0"], ["--shard-size", "5"]):
        assert cli.run(["tokenize", str(small), "-o", str(tmp_path / "x.tar"), *option]) == 2
        assert f"{option[0]} is for shards" in capsys.readouterr().err
    shards = ["tokenize", str(small), "--format", "webdataset"]
    assert cli.run([*shards, "-o", str(tmp_path / "out"), "--force"]) == 2
    assert "shards are not overwritten" in capsys.readouterr().err
    assert cli.run(shards) == 2
    assert "name it with -o" in capsys.readouterr().err
    shorts: list[dict[str, Any]] = [{"quality": 5.0}, {"track": 1}]
    for short in shorts:
        options = replace(TokenizeOptions(model=str(tiny_model), device="cpu"), **short)
        with pytest.raises(UsageError, match="tiny"):
            tokenize_corpus([str(small)], tmp_path / "out", CorpusOptions(), options)
    with pytest.raises(UsageError, match="no digits"):
        made(small, tmp_path / "out", tiny_model, format="megatron", digits=True)
    with pytest.raises(UsageError, match="use levels, interleaved, delay, parallel"):
        CorpusOptions(format="megatron", pattern="diagonal")


@pytest.mark.parametrize("damage", ["codes", "row", "shard", "twice"])
def test_verify_finds_what_is_wrong(
    damage: str, small: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    made(small, out, tiny_model, shard_size="3")
    rows, shard = out / "part-0000-0000.jsonl", out / "part-0000-0000.tar"
    if damage == "codes":
        data = bytearray(shard.read_bytes())
        with tarfile.open(shard) as tar:
            data[tar.getmembers()[0].offset_data + 128] ^= 1
        shard.write_bytes(data)
        wanted = "class0/p00000: its codes have another hash"
    elif damage == "row":
        rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
        wanted = "part-0000-0000: its samples are not those of its rows"
    elif damage == "shard":
        shard.unlink()
        wanted = "part-0000-0000.tar is not a shard: no such file"
    else:
        for path in (rows, shard):
            (out / path.name.replace("-0000.", "-0001.")).write_bytes(path.read_bytes())
        wanted = "part-0000-0001: class0/p00000 is there twice"
    assert cli.run(["corpus", "verify", str(out), str(small)]) == 3
    assert wanted in capsys.readouterr().err


def test_show(small: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(small, tmp_path / "out", tiny_model, rank=1, world=2)
    assert cli.run(["corpus", "show", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    n = len(list(list_samples([str(small)], PNG, 1, 2)))
    assert (found["model"], found["finished"], found["ranks ended"], found["samples"]) == ("tiny", False, 1, n)
    with pytest.raises(UsageError, match="not a finished corpus"):
        Corpus(tmp_path / "out")


# ---------------------------------------------------------------------------------------------------------- processes


def own() -> Any:
    """This module as other processes know it."""
    return importlib.import_module("tokodec.tests.test_corpus_shards")


def test_a_process_that_dies_loses_its_sample_alone() -> None:
    """What a decoder may do to its process."""
    pool = Readers(1, ahead=3)
    items = ["1", "2", "__import__('os')._exit(9)", "4", "5", "6"]
    found = [result for _, result in pool.map(eval, items, crashed="crashed")]
    pool.close()
    assert found == [1, 2, "crashed", 4, 5, 6]


def test_a_script_without_its_guard_is_told(tmp_path: Path) -> None:
    """Its processes would run it once more."""
    lines = "from tokodec.codec.corpus.readers import Readers\nprint(list(Readers(1, 4).map(str, [1], '')))"
    (tmp_path / "script.py").write_text(lines)
    done = subprocess.run([sys.executable, str(tmp_path / "script.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("a script runs its work under if __name__ == '__main__'")


def test_reading_in_processes_gives_the_same_bytes(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    (small / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    here, there = (made(small, tmp_path / str(n), tiny_model, workers=n) for n in (0, 1))
    assert (here.written, here.failed) == (there.written, there.failed) == (6, 1)
    assert shard_bytes(tmp_path / "0") == shard_bytes(tmp_path / "1")


def test_large_pictures_wait_for_their_turn(tmp_path: Path) -> None:
    """So that a window of them does not fill the memory."""
    write_picture(tmp_path / "a.png", 40, 50)
    (sample,) = list_samples([str(tmp_path)], PNG)
    found = readers.load(sample, True, 1 << 20)
    assert found.pixels is not None
    assert found.pixels.shape == (40, 50, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "MOST_PIXELS", 1000)
        found = readers.load(sample, True, 1 << 20)
    assert (found.pixels, found.data) == (None, tmp_path / "a.png")


# For a larger trial: CORPUS_PICTURES=20000 CORPUS_KILLS=3 pytest tests/test_corpus_shards.py -k killed
PICTURES, KILLS = int(os.environ.get("CORPUS_PICTURES", 120)), int(os.environ.get("CORPUS_KILLS", 2))
SIZE = str(max(7, PICTURES // 200))  # samples in a shard


def run_rank(rank: int, sources: str, folder: str, model: str, samples: int, seconds: float) -> None:
    """In a process that is killed so long after it wrote so many samples, at the latest when it has ended; 0: never."""
    torch.set_num_threads(1)
    write, count = run._Writer._write, itertools.count(1)

    def die(after: float) -> None:
        time.sleep(after)
        os.kill(os.getpid(), signal.SIGKILL)

    def then_die(*arguments: Any) -> None:
        write(*arguments)
        if next(count) == samples:
            threading.Thread(target=die, args=(seconds,)).start()

    run._Writer._write = then_die  # type: ignore[assignment, method-assign]
    made(sources, Path(folder), Path(model), rank=rank, world=4, resume=True, shard_size=SIZE)
    if samples:
        die(0)


def test_ranks_that_are_killed_and_go_on_make_every_sample_once(tiny_model: Path, tmp_path: Path) -> None:
    """`kill -9` at random places; the codes are those of one process that nobody disturbed."""
    sources, out = write_pictures(tmp_path / "media", PICTURES, (16, 16)), tmp_path / "out"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([own().__name__])
    chance = random.Random(0)
    for rank in range(4):
        for attempt in range(KILLS + 1):
            place = (chance.randint(1, PICTURES // 4 // (KILLS + 1)), chance.uniform(0, 0.02))
            last = attempt == KILLS
            given = (rank, str(sources), str(out), str(tiny_model), *((0, 0.0) if last else place))
            process = context.Process(target=own().run_rank, args=given)
            process.start()
            process.join()
            assert process.exitcode == (0 if last else -signal.SIGKILL)
    assert list(verify(out, [str(sources)])) == []
    made(sources, tmp_path / "one", tiny_model)
    assert codes_of(out) == codes_of(tmp_path / "one")
    assert len(codes_of(out)) == PICTURES
    assert not list(out.glob("*.tmp"))


# ----------------------------------------------------------------------------------------------------------- training


def training_set(folders: Any, model: Path) -> TokenDataset:
    return TokenDataset(folders, str(model), device="cpu")


@pytest.mark.parametrize("format", CORPUS_FORMATS)
def test_a_dataset_reads_shards_of_every_format(format: str, small: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Also in several workers, which read from one file at different places."""
    if format == "parquet":
        pytest.importorskip("pyarrow")
    made(small, tmp_path / "out", tiny_model, format=format, shard_size="4")
    dataset, files = training_set(tmp_path / "out", tiny_model), training_set(small, tiny_model)
    assert [len(part) for part in dataset.parts] == [4, 2]
    _ = dataset[0]  # opened before the workers begin
    for workers in (0, 2):
        found = list(DataLoader(dataset, batch_size=None, num_workers=workers))
        assert len(found) == 6
        for i, codes in enumerate(found):
            assert torch.equal(codes, files[i])
    both = training_set([tmp_path / "out", small], tiny_model)
    assert len(both) == 12
    assert torch.equal(both[-1], dataset[5])


def test_a_dataset_refuses_shards_of_other_weights(small: Path, tiny_model: Path, tmp_path: Path) -> None:
    made(small, tmp_path / "out", tiny_model)
    model = load_model(str(tiny_model)).tokenizer
    type(model)(model.config, "tiny").save_pretrained(tmp_path / "other")
    with pytest.raises(WeightsMismatchError, match="tokens of tiny"):
        training_set(tmp_path / "out", tmp_path / "other")


def test_an_epoch_is_split_over_ranks_and_each_is_in_another_order(
    pictures: Path, tiny_model: Path, tmp_path: Path
) -> None:
    made(pictures, tmp_path / "out", tiny_model)
    dataset = training_set(tmp_path / "out", tiny_model)
    samplers = [ShardSampler(dataset, rank=rank, world=4) for rank in range(4)]
    epochs = [[list(sampler) for sampler in samplers] for _ in range(2)]
    for epoch in epochs:
        assert [len(items) for items in epoch] == [37] * 4
        assert len(set().union(*epoch)) == 148
    assert epochs[0] != epochs[1]
    assert list(ShardSampler(dataset, shuffle=False, rank=1, world=3)) == list(range(50, 100))
    near = [len({i // 20 for i in items}) for items in epochs[0]]
    assert max(near) <= 4  # of the eight shards


def test_training_goes_on_in_the_middle_of_an_epoch(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    made(pictures, tmp_path / "out", tiny_model)
    dataset = training_set(tmp_path / "out", tiny_model)
    sampler = ShardSampler(dataset, rank=1, world=2, seed=5)
    first, second = list(sampler), list(sampler)
    assert sampler.state_dict() == {"epoch": 2, "taken": 0}
    stopped = ShardSampler(dataset, rank=1, world=2, seed=5)
    batches = iter(DataLoader(dataset, batch_sampler=BatchSampler(stopped, 4, False), collate_fn=list, num_workers=1))
    for _ in range(3):
        next(batches)
    assert stopped.state_dict()["taken"] > 12  # the worker reads ahead
    other = ShardSampler(dataset, rank=1, world=2, seed=5)
    other.load_state_dict(stopped.state_dict(taken=12))
    assert list(other) == first[12:]
    assert list(other) == second


def test_the_examples_of_the_page_run(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer tars, and without processes beside this one."""
    pytest.importorskip("pyarrow")
    page = (Path(run.__file__).parent / "README.md").read_text()
    _, shell, remote = re.findall(r"```sh\n(.*?)```", page, re.S)
    (python,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "ShardSampler(" in code]
    small.rename(tmp_path / "photos")
    for i in range(6):  # of which no crop is cut
        write_picture(tmp_path / "photos" / "large" / f"{i}.png", 256, 256, i)
    (tmp_path / "laion").mkdir()
    for name in ("00000", "00001"):
        with tarfile.open(tmp_path / "laion" / f"{name}.tar", "w") as tar:
            tar.add(tmp_path / "photos" / "class0" / "p00000.png", "a.png")
    monkeypatch.chdir(tmp_path)
    memory = pytest.importorskip("fsspec").filesystem("memory")
    memory.put(str(tmp_path / "photos"), "/bucket/photos", recursive=True)
    remote = remote.replace("s3://", "memory://").replace("--resume", "--resume --workers 0")
    for line in [*shell.splitlines(), *remote.splitlines()]:
        line = line.split("#")[0].removeprefix("srun ").replace("--workers 8", "--workers 0").replace("00999", "00001")
        name, *arguments = shlex.split(line)
        assert name == "codec"
        assert cli.run(arguments) == 0, line
    exec(python, {"tokodec": tokodec, "DataLoader": DataLoader})
