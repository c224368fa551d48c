"""Token files, corpora and names that strangers give us: they choose nothing, cost what is there, and fail by name."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from tokodec.codec.cli import run
from tokodec.codec.corpus.megatron import read_megatron, sequencer_maker
from tokodec.codec.corpus.token_files import (
    CODES_PER_BYTE,
    FREE_CODES,
    FREE_SAMPLES,
    SAMPLES_PER_BYTE,
    TOKEN_SUFFIXES,
    checksum,
    dump_tokens,
    load_tokens,
)
from tokodec.codec.corpus.webdataset import read_webdataset, write_webdataset
from tokodec.codec.errors import LimitError, MediaError, ModelError
from tokodec.codec.models import load_model
from tokodec.codec.tokens import detokenize_file
from tokodec.tests.hostile import NESTED, attempt, json_mutations, mutations, peak_memory, refused, refused_within
from tokodec.tests.test_corpus import write_megatron
from tokodec.tokenizers.folders import as_text, find_model
from tokodec.tokenizers.tokens import Tokens, TokenSpec

MB = 1 << 20


def spec_of(*size: int, modality: str = "image", model: str = "some", **changes: Any) -> TokenSpec:
    strides = {"image": (16, 16), "audio": (320,), "video": (4, 16, 16)}[modality]
    return TokenSpec(model, "0123456789abcdef", modality, (64, 32), strides, size, "rgb", **changes)


def tokens_of(spec: TokenSpec, signals: int = 1) -> Tokens:
    g = torch.Generator().manual_seed(0)
    codes = [torch.randint(n, (signals, *spec.grid), generator=g) for n in spec.codebook_sizes]
    return Tokens(torch.stack(codes, 1), spec)


def samples_of(path: Path) -> list[tuple[str, Tokens]]:
    return list(read_webdataset(path))


def documents_of(path: Path) -> list[tuple[str, Tokens]]:
    return list(read_megatron(path))


def npz_of(spec: TokenSpec, shape: tuple[int, ...]) -> bytes:
    """A file that declares codes of any shape; all of them are 0, and no array of them is made here."""
    buffer = io.BytesIO()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": shape})
    text = io.BytesIO()
    np.save(text, np.array(json.dumps(dataclasses.asdict(spec))))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("spec.npy", text.getvalue())
        with archive.open("codes.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            left = 4 * int(np.prod(shape, dtype=np.int64))
            while left > 0:
                left -= member.write(bytes(min(left, 1 << 22)))
    return buffer.getvalue()


# ------------------------------------------------------------------------------------ what a name and a file may choose


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that remembers what it was asked for."""
    asked: list[str] = []

    def snapshot_download(name: str, **_: object) -> str:
        asked.append(name)
        raise OSError("no such model")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    return asked


def test_a_folder_of_that_name_does_not_replace_a_release(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "image-photo").symlink_to(tiny_model)
    (tmp_path / "mine").symlink_to(tiny_model)
    monkeypatch.chdir(tmp_path)
    assert find_model("image-photo").parent.name == "assets"
    for name in ("./image-photo", "mine/", str(tmp_path / "mine"), Path("image-photo"), Path("mine")):
        assert find_model(name).resolve() == tiny_model
        assert find_model(as_text(name)).resolve() == tiny_model
    with pytest.raises(
        FileNotFoundError, match=r"no model 'mine'.*or one of .*image-photo.*folder of that name is \./mine"
    ):
        find_model("mine")


def test_only_a_hub_id_asks_the_hub(no_hub: list[str]) -> None:
    for name in ("runs/mistyped", "./runs/mistyped", "mistyped", "/no/where", "../there/x", "hf:alone", "hf:a/b/c"):
        with pytest.raises(FileNotFoundError, match="no model"):
            find_model(name)
        with pytest.raises(ModelError, match="no model"):
            load_model(name)
    assert no_hub == []
    with pytest.raises(FileNotFoundError, match="hub is hf:runs/mistyped"):
        find_model("runs/mistyped")
    with pytest.raises(ModelError, match="no such model"):
        load_model("hf:somebody/model")
    assert no_hub == ["somebody/model"]


@pytest.mark.parametrize("suffix", TOKEN_SUFFIXES)
def test_tokens_choose_no_model(
    suffix: str, tmp_path: Path, tiny_model: Path, no_hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    true = load_model(str(tiny_model)).tokenizer
    for name in ("attacker/model", "hf:attacker/model", str(tiny_model), "tiny", "./tiny", "../golden/tiny"):
        spec = dataclasses.replace(spec_of(20, 30), model=name, weights_hash=true.weights_hash)
        path = tmp_path / f"x{suffix}"
        path.write_bytes(dump_tokens(tokens_of(spec), suffix))
        with pytest.raises(ModelError, match=r"does not come with tokodec; give its folder with --model"):
            detokenize_file(path, tmp_path / "x.png")
    assert no_hub == []
    assert [p.name for p in tmp_path.iterdir()] == [f"x{suffix}"]
    good = true.encode(torch.rand(1, 3, 20, 30))
    path.write_bytes(dump_tokens(good, suffix))
    assert detokenize_file(path, model="./tiny").media.pixels.shape == (20, 30, 3)


def test_a_corpus_chooses_no_model(tmp_path: Path, no_hub: list[str]) -> None:
    """Digits are those of a context prior, which would have to be loaded."""
    make = sequencer_maker(digits=True)
    for name in ("attacker/model", "hf:attacker/model", str(tmp_path)):
        assert "give its folder with --model" in refused(make, spec_of(20, 30, model=name))
    assert no_hub == []


# ---------------------------------------------------------------------------------------------- what a file may cost


def test_declared_sizes_are_refused_before_they_are_allocated(tmp_path: Path) -> None:
    bombs = {
        "48000 x 48000 pixels": npz_of(spec_of(48_000, 48_000), (1, 2, 3000, 3000)),
        "a batch of small pictures": npz_of(spec_of(16, 16), (1 << 21, 2, 1, 1)),
        "frames of 2^30 pixels": npz_of(spec_of(1, 1 << 15, 1 << 15, modality="video"), (1, 1, 1, 2048, 2048)),
        "2^25 frames": npz_of(spec_of(1 << 25, 16, 16, modality="video"), (1, 1, 1 << 23, 1, 1)),
        "codes of a still video": npz_of(spec_of(1 << 18, 256, 512, modality="video"), (1, 2, 1 << 16, 16, 32)),
        "ten hours of silence": npz_of(spec_of(24_000 * 36_000, modality="audio"), (1, 1, 75 * 36_000)),
    }
    for what, data in bombs.items():
        path = tmp_path / "bomb.npz"
        path.write_bytes(data)
        assert len(data) < 300_000, what
        _, held = refused_within(load_tokens, path)
        assert held < 8 * MB, what
        with pytest.raises(LimitError, match=r"bomb\.npz: .*(over the limit|may declare)"):
            detokenize_file(path, tmp_path / "x.png")


@pytest.mark.parametrize(
    ("spec", "options", "word"),
    [
        (spec_of(48_000, 48_000), [], "pixels are over the limit of 268435456; see --max-pixels"),
        (spec_of(512, 512), ["--max-pixels", "9"], "262144 pixels are over the limit of 9"),
        (spec_of(3200, modality="audio"), ["--max-samples", "9"], "a sound of 3200 samples is over the limit of 9"),
        (dataclasses.replace(spec_of(512, 512), modality="x/y"), [], "does not come with tokodec"),
    ],
)
def test_the_command_refuses_in_one_line(
    spec: TokenSpec, options: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(npz_of(spec, (1, 2, *spec.grid)))
    assert run(["detokenize", str(path), *options]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert word in told[0]
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_limits_are_those_that_are_written_down(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(npz_of(spec_of(512, 512), (1, 2, 32, 32)))
    assert load_tokens(path, max_pixels=512 * 512).spec.size == (512, 512)
    with pytest.raises(LimitError, match="over the limit of 262143; see --max-pixels"):
        load_tokens(path, max_pixels=512 * 512 - 1)
    path.write_bytes(npz_of(spec_of(3200, modality="audio"), (2, 2, 10)))
    assert len(load_tokens(path, max_samples=6400).codes) == 2
    with pytest.raises(LimitError, match="a sound of 6400 samples is over the limit of 6399"):
        load_tokens(path, max_samples=6399)
    assert (FREE_CODES, CODES_PER_BYTE, FREE_SAMPLES, SAMPLES_PER_BYTE) == (2**25, 64, 2**28, 2**12)


def test_memory_of_reading_is_that_of_the_codes(tmp_path: Path) -> None:
    """12 bytes a code at most, whatever the file's own size is."""
    spec = spec_of(24_000 * 10_000, modality="audio")
    shape = (1, 2, *spec.grid)
    codes = 2 * spec.grid[0]
    (tmp_path / "x.npz").write_bytes(npz_of(spec, shape))
    plain = Tokens(torch.zeros(shape, dtype=torch.int64), spec)
    (tmp_path / "x.safetensors").write_bytes(dump_tokens(plain, ".safetensors"))
    load_tokens(tmp_path / "x.npz")  # imports
    for suffix in TOKEN_SUFFIXES:
        held = peak_memory(load_tokens, tmp_path / f"x{suffix}")
        assert held <= 12 * codes + 8 * MB, suffix


def sparse_tar(size: int) -> bytes:
    """A tar whose first member has ``size`` bytes, all of them a hole (the old GNU way: type "S")."""
    info = tarfile.TarInfo("a.codes.npy")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[156:157] = b"S"
    block[483:495] = b"%011o\0" % size  # real size
    block[386:398], block[398:410] = b"%011o\0" % size, b"%011o\0" % 0  # one part, empty, at the end
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


def pax_tar(size: int) -> bytes:
    """A tar whose extended header claims ``size`` bytes."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


def test_archives_cost_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    long = tarfile.TarInfo("a.codes.npy")
    long.size = 3 << 30
    bombs = {
        "sparse member": sparse_tar(3 << 30),
        "extended header": pax_tar(3 << 30),
        "member beyond the end": long.tobuf() + bytes(2048),
    }
    for what, data in bombs.items():
        path.write_bytes(data)
        assert len(data) <= 2560, what
        told, held = refused_within(samples_of, path)
        assert held < 8 * MB, what
        assert "x.tar is not a WebDataset" in told, what
    path.write_bytes(sparse_tar(3 << 30))
    with pytest.raises(MediaError, match="a sparse member"):
        list(read_webdataset(path))


def test_a_member_that_leads_back_ends(tmp_path: Path) -> None:
    """A size below zero would let the reader meet the same members again and again."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for i in range(2):
            member = tarfile.TarInfo(f"caption{i}.txt")
            member.pax_headers = {"size": "-1536"}
            tar.addfile(member)
    assert refused(samples_of, path)


# ------------------------------------------------------------------------------------------------ damage by its name


def test_tokens_have_a_checksum(tmp_path: Path) -> None:
    """What is damaged is an error, and never other tokens; files without a checksum still read."""
    tokens = tokens_of(spec_of(40, 50))
    for suffix in TOKEN_SUFFIXES:
        data, path = dump_tokens(tokens, suffix), tmp_path / f"x{suffix}"
        failed = 0
        for damaged in mutations(data, 1500, seed=1):
            path.write_bytes(damaged)
            found, told = attempt(load_tokens, path)
            failed += bool(told)
            assert told or (torch.equal(found.codes, tokens.codes) and found.spec == tokens.spec), suffix
        assert failed > 1000, suffix


def test_files_of_tokens_without_a_checksum_are_read(tmp_path: Path) -> None:
    tokens = tokens_of(spec_of(40, 50))
    codes = tokens.codes.numpy().astype(np.int32)
    spec = json.dumps(dataclasses.asdict(tokens.spec))
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors.numpy.save({"codes": codes}, metadata={"spec": spec}))
    assert torch.equal(load_tokens(path).codes, tokens.codes)
    about = {"spec": spec, "sha256": checksum(spec, codes)}
    codes[0, 1, 2, 3] ^= 1
    path.write_bytes(safetensors.numpy.save({"codes": codes}, metadata=about))
    with pytest.raises(MediaError, match=r"damaged: its checksum is another"):
        load_tokens(path)


def test_checksum_is_the_documented_one() -> None:
    import hashlib

    codes = np.array([[[[1, 2], [3, -1]]]], np.int32)
    plain = b'{"a": 1}\x001,1,2,2\x00' + b"\1\0\0\0\2\0\0\0\3\0\0\0\xff\xff\xff\xff"
    assert checksum('{"a": 1}', codes) == hashlib.sha256(plain).hexdigest()


@pytest.mark.parametrize("suffix", TOKEN_SUFFIXES)
def test_specs_that_are_none(suffix: str, tmp_path: Path) -> None:
    """Every field missing, of another type, negative or enormous; JSON that is nested 100,000 deep."""
    tokens = tokens_of(spec_of(40, 50))
    codes = tokens.codes.numpy().astype(np.int32)
    path = tmp_path / f"x{suffix}"

    def write(text: str) -> None:
        if suffix == ".npz":
            np.savez_compressed(path, codes=codes, spec=np.array(text))
        else:
            path.write_bytes(safetensors.numpy.save({"codes": codes}, metadata={"spec": text}))

    text = json.dumps(dataclasses.asdict(tokens.spec))
    for other in json_mutations(text, 300, seed=2):
        write(other)
        found, told = attempt(load_tokens, path)
        assert told or torch.equal(found.codes, tokens.codes)
    for other in (NESTED, NESTED[:60_000], "{", "", "null", '{"model": NaN}', "9" * 5000):
        write(other)
        with pytest.raises(MediaError, match="not a file of tokens"):
            load_tokens(path)


def test_archives_of_other_kinds_are_refused(tmp_path: Path) -> None:
    """Compressed in ways that numpy does not use, encrypted, of Python objects, or of other arrays."""
    path = tmp_path / "x.npz"
    good = dump_tokens(tokens_of(spec_of(40, 50)), ".npz")
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        with pytest.raises(MediaError, match="neither stored nor deflated"):
            load_tokens(path)
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object))
    for name in parts:
        for data in (
            objects.getvalue(),
            parts[name][:-1],
            parts[name] + b"\0",
            b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        ):
            with zipfile.ZipFile(path, "w") as archive:
                for other in parts:
                    archive.writestr(other, data if other == name else parts[other])
            with pytest.raises(MediaError, match=r"x\.npz is not a file of tokens"):
                load_tokens(path)


def test_damaged_corpora_fail_by_name(tmp_path: Path) -> None:
    """The bytes of an archive; index, ids and schema of a Megatron corpus."""
    items = [("a", tokens_of(spec_of(40, 50))), ("b", tokens_of(spec_of(16, 16), 2))]
    tar = tmp_path / "x.tar"
    write_webdataset(tar, items)
    failed = 0
    for damaged in mutations(tar.read_bytes()[:5120], 400, seed=3):
        tar.write_bytes(damaged)
        failed += bool(refused(samples_of, tar))
    assert failed > 100
    base = tmp_path / "x"
    write_megatron(base, items, sequencer_maker())
    schema = tmp_path / "x.json"
    whole = {suffix: (tmp_path / f"x{suffix}").read_bytes() for suffix in (".bin", ".idx", ".json")}
    for suffix in whole:
        failed = 0
        for damaged in mutations(whole[suffix], 200, seed=4):
            (tmp_path / f"x{suffix}").write_bytes(damaged)
            failed += bool(refused(documents_of, base))
        assert failed > 50, suffix
        (tmp_path / f"x{suffix}").write_bytes(whole[suffix])
    for text in (*json_mutations(whole[".json"].decode(), 400, seed=5), NESTED, '{"format": ' + NESTED + "}"):
        schema.write_text(text)
        refused(documents_of, base)
    assert "nested too deeply" in refused(documents_of, base)


def test_a_corpus_member_may_be_nested(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    write_webdataset(path, [("a", tokens_of(spec_of(16, 16)))])
    with tarfile.open(path) as tar:
        codes = tar.extractfile("a.codes.npy").read()  # type: ignore[union-attr]
    with tarfile.open(path, "w") as tar:
        for name, data in (("a.codes.npy", codes), ("a.json", NESTED.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert "nested too deeply" in refused(samples_of, path)
