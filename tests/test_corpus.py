"""Corpora: what was written comes back exactly, the bytes are those of the formats, and nothing is half written."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokodec.codec.corpus.megatron import megatron_paths, megatron_writer, read_megatron, sequencer_maker
from tokodec.codec.corpus.webdataset import read_webdataset, write_webdataset
from tokodec.codec.errors import MediaError, ModelError, OutputExistsError, TokodecError, UsageError
from tokodec.codec.models import load_model
from tokodec.codec.tokens import tokenize_file
from tokodec.tokenizers.quantize.base import ABSENT
from tokodec.tokenizers.sequence import BEGIN, END, PATTERNS, Sequencer
from tokodec.tokenizers.tokens import Tokens, TokenSpec

SIZES = (64, 32, 16)


def write_megatron(path: Path, items: Any, sequencer: Any, force: bool = False) -> int:
    """Tokens by name of their source; returns the number of documents."""
    with megatron_writer(path, sequencer, force) as writer:
        for name, tokens in items:
            writer.add(name, tokens)
    return len(writer)


def spec_of(size: tuple[int, ...], sizes: tuple[int, ...] = SIZES, **changes: Any) -> TokenSpec:
    return TokenSpec("some", "0123456789abcdef", "image", sizes, (16,) * len(size), size, "rgb", **changes)


def random_tokens(spec: TokenSpec, signals: int = 1, levels: int | None = None, seed: int = 0) -> Tokens:
    g = torch.Generator().manual_seed(seed)
    codes = [torch.randint(n, (signals, *spec.grid), generator=g) for n in spec.codebook_sizes[:levels]]
    return Tokens(torch.stack(codes, 1), spec)


def several() -> list[tuple[str, Tokens]]:
    """Grids, levels and numbers of signals that differ; some codes are absent."""
    first = random_tokens(spec_of((40, 50)))
    holes = first.codes.clone()
    holes[0, 1:, 2, 3] = ABSENT
    return [
        ("b", first),
        ("a", random_tokens(spec_of((16, 16)), seed=1)),
        ("holes", Tokens(holes, first.spec)),
        ("two levels", random_tokens(spec_of((100, 17)), levels=2, seed=2)),
        ("größe", random_tokens(spec_of((40, 50)), signals=3, seed=3)),
        ("again", first),
    ]


def assert_same(found: list[tuple[str, Tokens]], want: list[tuple[str, Tokens]]) -> None:
    assert [name for name, _ in found] == [name for name, _ in want]
    for (_, a), (_, b) in zip(found, want, strict=True):
        assert a.spec == b.spec
        assert torch.equal(a.codes, b.codes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -------------------------------------------------------------------------------------------------------- WebDataset


def test_a_webdataset_comes_back_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    assert write_webdataset(path, several()) == 6
    assert_same(list(read_webdataset(path)), several())


def test_members_are_those_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    small, large = random_tokens(spec_of((40, 50))), random_tokens(spec_of((16, 16), (32769,)))
    write_webdataset(path, [("small", small), ("large", large)])
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == ["small.codes.npy", "small.json", "large.codes.npy", "large.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
        data = [tar.extractfile(m).read() for m in members]  # type: ignore[union-attr]
    codes = np.load(io.BytesIO(data[0]), allow_pickle=False)
    assert (codes.dtype, codes.shape) == (np.dtype("<i2"), (1, 3, 3, 4))
    assert np.array_equal(codes, small.codes)
    assert np.load(io.BytesIO(data[2]), allow_pickle=False).dtype == np.dtype("<i4")
    assert json.loads(data[1]) == {
        "spec": {
            "model": "some",
            "weights_hash": "0123456789abcdef",
            "modality": "image",
            "codebook_sizes": [64, 32, 16],
            "strides": [16, 16],
            "size": [40, 50],
            "channels": "rgb",
            "sample_rate": None,
            "quality": None,
            "first": None,
        },
        "grid": [3, 4],
        "levels": 3,
        "signals": 1,
    }


def test_the_same_tokens_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tar"):
        write_webdataset(tmp_path / name, several())
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_members_of_other_kinds_are_ignored(tmp_path: Path) -> None:
    """Captions that somebody added, and keys in folders."""
    write_webdataset(tmp_path / "x.tar", [("v1/0/a", several()[0][1]), ("v1/0/b", several()[1][1])])
    with tarfile.open(tmp_path / "x.tar") as source, tarfile.open(tmp_path / "y.tar", "w") as target:
        for member in source:
            target.addfile(member, source.extractfile(member))
            caption = tarfile.TarInfo(member.name.split(".")[0] + ".txt")
            caption.size = 3
            target.addfile(caption, io.BytesIO(b"cat"))
    assert_same(list(read_webdataset(tmp_path / "y.tar")), list(read_webdataset(tmp_path / "x.tar")))


@pytest.mark.parametrize("key", ["", "a.b", "/a", "a/", ".a", "a\0", "\udcff"])
def test_keys_that_are_none(key: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a key"):
        write_webdataset(tmp_path / "x.tar", [("a", several()[0][1]), (key, several()[0][1])])
    assert names(tmp_path) == []


def test_webdatasets_that_are_refused(tmp_path: Path) -> None:
    tokens = several()[0][1]
    with pytest.raises(UsageError, match="twice"):
        write_webdataset(tmp_path / "x.tar", [("a", tokens), ("a", tokens)])
    with pytest.raises(UsageError, match="at least one"):
        write_webdataset(tmp_path / "x.tar", [])
    with pytest.raises(UsageError, match=r"\.tar"):
        write_webdataset(tmp_path / "x.zip", [("a", tokens)])
    assert names(tmp_path) == []
    (tmp_path / "x.tar").write_bytes(b"precious")
    with pytest.raises(OutputExistsError):
        write_webdataset(tmp_path / "x.tar", [("a", tokens)])
    assert (tmp_path / "x.tar").read_bytes() == b"precious"
    write_webdataset(tmp_path / "x.tar", [("a", tokens)], force=True)
    assert_same(list(read_webdataset(tmp_path / "x.tar")), [("a", tokens)])


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_bad_webdatasets(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_webdataset(path, several()[:1])
    with tarfile.open(path) as tar:
        codes, text = (tar.extractfile(m).read() for m in tar)  # type: ignore[union-attr]
    spec = json.loads(text)
    huge = npy(np.zeros((1, 3, 3, 4), np.int16)).replace(b"(1, 3, 3, 4), ", b"(1, 3, 3, 4000000000), ")[:-16]
    bad: list[dict[str, bytes]] = [
        {},
        {"b.txt": b"text"},
        {"b.json": text},
        {"b.codes.npy": codes},
        {"b.codes.npy": codes, "c.json": text},
        {"b.codes.npy": codes[:-1], "b.json": text},
        {"b.codes.npy": b"text", "b.json": text},
        {"b.codes.npy": huge, "b.json": text},
        {"b.codes.npy": npy(np.zeros((1, 3, 3, 4), np.float32)), "b.json": text},
        {"b.codes.npy": npy(np.full((1, 3, 3, 4), 64, np.int16)), "b.json": text},
        {"b.codes.npy": npy(np.zeros((1, 3, 4, 4), np.int16)), "b.json": text},
        {"b.codes.npy": npy(np.array([None])), "b.json": text},
        {"b.codes.npy": codes, "b.json": b"no json"},
        {"b.codes.npy": codes, "b.json": b"[]"},
        {"b.codes.npy": codes, "b.json": json.dumps({"spec": spec["spec"] | {"size": [-1, 2]}}).encode()},
        {"b.codes.npy": codes, "b.json": json.dumps({"spec": {"model": "x"}}).encode()},
    ]
    for i, members in enumerate(bad):
        with pytest.raises(MediaError, match=rf"{i}\.tar"):
            list(read_webdataset(tar_of(tmp_path / f"{i}.tar", members)))
    write_webdataset(path, several(), force=True)
    whole = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        third = tar.getmembers()[4].offset
    for damage in (b"x" * 512, bytes([whole[third] ^ 1])):  # a header that tarfile takes for the end
        (tmp_path / "header.tar").write_bytes(whole[:third] + damage + whole[third + len(damage) :])
        with pytest.raises(MediaError, match=r"header.tar .* it breaks off"):
            list(read_webdataset(tmp_path / "header.tar"))
    for data in (b"", b"text", path.read_bytes()[:700], path.read_bytes()[:512]):
        (tmp_path / "cut.tar").write_bytes(data)
        with pytest.raises(MediaError, match=r"cut.tar"):
            list(read_webdataset(tmp_path / "cut.tar"))
    with pytest.raises(MediaError, match=r"none.tar"):
        list(read_webdataset(tmp_path / "none.tar"))


# ---------------------------------------------------------------------------------------------------------- Megatron


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_megatron_corpus_comes_back(pattern: Any, tmp_path: Path) -> None:
    sequencer = Sequencer(SIZES, pattern)
    assert write_megatron(tmp_path / "x.bin", several(), sequencer) == 6
    assert names(tmp_path) == ["x.bin", "x.idx", "x.json"]
    for name in ("x.bin", "x.idx", "x.json", "x"):
        corpus = read_megatron(tmp_path / name)
        assert_same(list(corpus), several())
    assert corpus.sequencer.schema() == sequencer.schema()
    assert [list(corpus.document(i)) for i in range(6)] == [[0], [1], [2], [3], [4, 5, 6], [7]]
    for i, (_, tokens) in enumerate(several()):
        want = sequencer.flatten(tokens)
        assert torch.equal(torch.stack([corpus.sequence(j) for j in corpus.document(i)]), want)


@pytest.mark.parametrize("name", ["tiny_model", "sound_model"])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_tokens_of_files_with_digits(
    name: str, pattern: str, golden: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Digits are those of the context prior; what is read back needs no model."""
    model = golden / "context" if name == "tiny_model" else request.getfixturevalue(name)
    items = [
        (p.name, tokenize_file(p, None, model=str(model), device="cpu").tokens) for p in sorted(model.glob("*.tok"))
    ]
    if name == "sound_model":
        static = model / "static.tok"
        items = [(n, t) for n, t in items if n != static.name]
    make = sequencer_maker(pattern, True, str(model), "cpu")
    write_megatron(tmp_path / "x.bin", items, make)
    corpus = read_megatron(tmp_path / "x.bin")
    assert_same(list(corpus), items)
    trees = load_model(str(model)).trees
    assert corpus.schema["sequencer"]["leaves"] == [tree.leaf.tolist() for tree in trees]


def test_rows_of_ids_are_one_after_the_other(tmp_path: Path) -> None:
    """Of the delay pattern, whose steps have an id of each codebook; the schema says how many."""
    tokens = Tokens(torch.tensor([[[[3, 1]], [[0, 4]]]]), spec_of((16, 32), (4, 5)))
    write_megatron(tmp_path / "x.bin", [("a", tokens), ("b", tokens.levels(1))], Sequencer((4, 5), "delay"))
    rows = [[BEGIN, BEGIN], [5 + 3, BEGIN], [5 + 1, 9 + 0], [END, 9 + 4], [END, END]]
    alone = [BEGIN, 5 + 3, 5 + 1, END]
    assert np.fromfile(tmp_path / "x.bin", "<u2").tolist() == [*itertools.chain(*rows), *alone]
    corpus = read_megatron(tmp_path / "x.bin")
    assert corpus.sequence(0).tolist() == rows
    assert [(kind["length"], kind["streams"]) for kind in corpus.schema["kinds"]] == [(10, 2), (4, 1)]
    for streams in (None, 0, -2, 3, "2"):
        change_json(tmp_path / "x.json", lambda s, streams=streams: s["kinds"][0].update(streams=streams))  # type: ignore[misc]
        with pytest.raises(MediaError, match=r"x.json"):
            read_megatron(tmp_path / "x")


def test_the_index_byte_by_byte(tmp_path: Path) -> None:
    """As Megatron-LM's IndexedDataset reads it: two documents, the second of two sequences."""
    spec = spec_of((16, 32), (4, 5))
    one = Tokens(torch.tensor([[[[3, 1]], [[0, 4]]]]), spec)
    two = Tokens(torch.tensor([[[[0, 0]]], [[[2, 3]]]]), spec)
    write_megatron(tmp_path / "x.bin", [("one", one), ("two", two)], Sequencer((4, 5)))
    ids = [BEGIN, 5 + 3, 5 + 1, 9 + 0, 9 + 4, END, BEGIN, 5, 5, END, BEGIN, 7, 8, END]
    assert (tmp_path / "x.bin").read_bytes() == struct.pack("<14H", *ids)
    assert (tmp_path / "x.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + b"\x01\x00\x00\x00\x00\x00\x00\x00"  # version
        + b"\x08"  # uint16
        + b"\x03\x00\x00\x00\x00\x00\x00\x00"  # sequences
        + b"\x03\x00\x00\x00\x00\x00\x00\x00"  # documents and 1
        + struct.pack("<3i", 6, 4, 4)
        + struct.pack("<3q", 0, 12, 20)
        + struct.pack("<3q", 0, 1, 3)
    )
    fields = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert json.loads((tmp_path / "x.json").read_bytes()) == {
        "format": "tokodec corpus 1",
        "model": "some",
        "weights_hash": "0123456789abcdef",
        "modality": "image",
        "codebook_sizes": [4, 5],
        "strides": [16, 16],
        "sample_rate": None,
        "sequencer": Sequencer((4, 5)).schema(),
        "dtype": "uint16",
        "sequences": 3,
        "ids": 14,
        "kinds": [
            {"spec": fields, "grid": [1, 2], "levels": 2, "signals": 1, "length": 6},
            {"spec": fields, "grid": [1, 2], "levels": 1, "signals": 2, "length": 4},
        ],
        "documents": [["one", 0], ["two", 1]],
    }


@pytest.mark.parametrize(("n", "code", "dtype"), [(65494, 8, "<u2"), (65495, 4, "<i4")])
def test_large_vocabularies_have_wider_ids(n: int, code: int, dtype: str, tmp_path: Path) -> None:
    """Five ids are special; from 65500 on Megatron-LM takes int32."""
    tokens = Tokens(torch.tensor([[[[0, n - 1]]]]), spec_of((16, 32), (n,)))
    write_megatron(tmp_path / "x.bin", [("a", tokens)], Sequencer((n,)))
    assert (tmp_path / "x.idx").read_bytes()[17] == code
    assert np.fromfile(tmp_path / "x.bin", dtype).tolist() == [BEGIN, 5, n + 4, END]
    assert_same(list(read_megatron(tmp_path / "x")), [("a", tokens)])


def test_shared_ids_come_back(tmp_path: Path) -> None:
    tokens = random_tokens(spec_of((40, 50), (16, 16, 8)))
    sequencer = Sequencer((16, 16, 8), "interleaved", shared=True)
    assert sequencer.vocabulary_size == 5 + 16 + 8
    write_megatron(tmp_path / "x.bin", [("a", tokens)], sequencer)
    assert read_megatron(tmp_path / "x").sequencer.schema() == sequencer.schema()
    assert_same(list(read_megatron(tmp_path / "x")), [("a", tokens)])


def test_names_of_a_corpus() -> None:
    for name in ("x.bin", "x.idx", "x.json", "x", "x.BIN"):
        assert [str(p) for p in megatron_paths(name)] == ["x.bin", "x.idx", "x.json"]
    assert [str(p) for p in megatron_paths("v1.2")] == ["v1.2.bin", "v1.2.idx", "v1.2.json"]


def fails() -> Iterator[tuple[str, Tokens]]:
    yield several()[0]
    raise MediaError("no more")


def test_megatron_corpora_that_are_refused(tmp_path: Path) -> None:
    tokens = several()[0][1]
    other = Tokens(tokens.codes, dataclasses.replace(tokens.spec, weights_hash="f" * 16))
    refused: list[tuple[Any, Any, str]] = [
        ([("a", tokens), ("b", other)], Sequencer(SIZES), "b: tokens of some ffff"),
        ([("a", tokens)], Sequencer((64, 32)), "a: .*other codebooks"),
        ([("a", tokens)], sequencer_maker("levels", digits=True), "the digits of some"),
        ([], Sequencer(SIZES), "at least one"),
        (fails(), Sequencer(SIZES), "no more"),
    ]
    for items, sequencer, message in refused:
        with pytest.raises(TokodecError, match=message):
            write_megatron(tmp_path / "x.bin", items, sequencer)
        assert names(tmp_path) == []
    with pytest.raises(UsageError, match="pattern"):
        sequencer_maker("diagonal")


def test_digits_that_a_model_does_not_have(tiny_model: Path, photo_model: Path, golden: Path) -> None:
    tokens = tokenize_file(golden / "gray.tok", None, model=str(tiny_model), device="cpu").tokens
    with pytest.raises(UsageError, match="tiny has no digits"):  # a static prior alone
        sequencer_maker(digits=True, model=str(tiny_model), device="cpu")(tokens.spec)
    with pytest.raises(ModelError, match="tokens of tiny"):
        sequencer_maker(digits=True, model=str(photo_model), device="cpu")(tokens.spec)


@pytest.mark.parametrize("suffix", [".bin", ".idx", ".json"])
def test_none_of_the_three_files_is_overwritten(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match="x\\" + suffix):
        write_megatron(tmp_path / "x.bin", several(), Sequencer(SIZES))
    assert names(tmp_path) == [path.name]
    assert path.read_bytes() == b"precious"
    write_megatron(tmp_path / "x.bin", several(), Sequencer(SIZES), force=True)
    assert_same(list(read_megatron(path)), several())


def test_an_index_that_somebody_else_makes_meanwhile_is_kept(tmp_path: Path) -> None:
    """And nothing of ours is left beside it: the index gets its name last."""

    def items() -> Iterator[tuple[str, Tokens]]:
        yield from several()
        (tmp_path / "x.idx").write_bytes(b"theirs")

    with pytest.raises(OutputExistsError):
        write_megatron(tmp_path / "x.bin", items(), Sequencer(SIZES))
    assert (tmp_path / "x.idx").read_bytes() == b"theirs"
    assert names(tmp_path) == ["x.idx"]


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    schema = json.loads(path.read_bytes())
    found = change(schema)
    path.write_text(json.dumps(schema if found is None else found))


def test_damaged_megatron_corpora(tmp_path: Path) -> None:
    """Whatever differs between the three files is an error of ours, and so is an id that is no code."""
    write_megatron(tmp_path / "x.bin", several(), Sequencer(SIZES))
    good = {path.suffix: path.read_bytes() for path in tmp_path.iterdir()}

    def restore() -> None:
        for suffix, data in good.items():
            (tmp_path / f"x{suffix}").write_bytes(data)

    for suffix, data in good.items():
        for cut in (0, 5, len(data) // 2, len(data) - 2):
            (tmp_path / f"x{suffix}").write_bytes(data[:cut])
            with pytest.raises(MediaError, match=r"x.(idx|json)"):
                read_megatron(tmp_path / "x")
        (tmp_path / f"x{suffix}").write_bytes(data + b"\1\1")
        with pytest.raises(MediaError, match=r"x.(idx|json)"):
            read_megatron(tmp_path / "x")
        (tmp_path / f"x{suffix}").unlink()
        with pytest.raises(MediaError, match=rf"cannot read .*x{suffix}"):
            read_megatron(tmp_path / "x")
        restore()
    index = good[".idx"]
    for at in range(len(index)):  # every bit of the index counts
        (tmp_path / "x.idx").write_bytes(index[:at] + bytes([index[at] ^ 16]) + index[at + 1 :])
        with pytest.raises(MediaError, match=r"x.idx|x.json"):
            read_megatron(tmp_path / "x")
    restore()
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda s: [],
        lambda s: {},
        lambda s: s | {"format": "tokodec corpus 2"},
        lambda s: s | {"documents": s["documents"][:-1]},
        lambda s: s | {"documents": [*s["documents"][:-1], ["again", 99]]},
        lambda s: s | {"documents": [*s["documents"][:-1], ["again", -1]]},
        lambda s: s | {"documents": [*s["documents"][:-1], ["again", 1]]},
        lambda s: s | {"documents": 3},
        lambda s: s | {"kinds": []},
        lambda s: s["kinds"][0].pop("length"),
        lambda s: s["kinds"][0]["spec"].update(model="other"),
        lambda s: s["kinds"][0]["spec"].update(size=[0, 1]),
        lambda s: s["kinds"][0].update(signals=2),
        lambda s: s["kinds"][0].update(streams=2),
        lambda s: s["sequencer"].update(pattern="diagonal"),
        lambda s: s["sequencer"].update(vocabulary_size=9),
        lambda s: s["sequencer"].update(codebook_sizes=[64.0, 32, 16]),
        lambda s: s["sequencer"].update(codebook_sizes=[64, 32]),
        lambda s: s["sequencer"]["streams"][0].update(offset=6),
        lambda s: s["sequencer"]["streams"][0].update(base=1 << 60),
        lambda s: s["sequencer"].update(leaves=[[0], None, None]),
        lambda s: s["sequencer"].update(leaves="leaves"),
    ]
    for change in changes:
        restore()
        change_json(tmp_path / "x.json", change)
        with pytest.raises(MediaError, match=r"x.json"):
            read_megatron(tmp_path / "x")
    restore()
    (tmp_path / "x.bin").write_bytes(b"\xff\xff" + good[".bin"][2:])
    with pytest.raises(MediaError, match=r"x.bin, document 0 \(b\): begin"):
        read_megatron(tmp_path / "x").tokens(0)
    (tmp_path / "x.bin").write_bytes(good[".bin"][:2] + b"\xff\xff" + good[".bin"][4:])
    with pytest.raises(MediaError, match=r"document 0 \(b\): codebook 1"):
        read_megatron(tmp_path / "x").tokens(0)
