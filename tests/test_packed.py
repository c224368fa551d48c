"""Packed weights: the same file back to the last bit, and nothing but our error for what is damaged or made to hurt."""

from __future__ import annotations

import hashlib
import json
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load, load_file, save
from safetensors.torch import save as save_torch

from tokodec.codec import models
from tokodec.codec.errors import ModelError
from tokodec.entropy import packed
from tokodec.entropy.packed import GROWTH, HEADER, MARK, METADATA, file_hash, main, pack, unpack
from tokodec.entropy.prior import save_prior
from tokodec.entropy.static import STATIC_FILE, StaticPrior
from tokodec.tokenizers import weights
from tokodec.tokenizers.folders import ASSETS
from tokodec.tokenizers.image.grid import ImageGrid, ImageGridConfig
from tokodec.tokenizers.image.photo import ImagePhoto

Edit = Callable[[dict[str, Any]], object]


def example(n: int = 5000) -> bytes:
    """A plain file with tensors of all sorts: what gains by Huffman codes, by repetitions, and not at all."""
    rng = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[Any]] = {
        "bell": np.clip(rng.normal(0, 12, (n // 50, 50)), -127, 127).astype(np.int8),
        "noise": rng.integers(0, 256, n).astype(np.uint8),
        "half": rng.standard_normal(33).astype(np.float16),
        "pairs": np.tile(np.arange(40, dtype=np.int32), (9, 1)),
        "zeros": np.zeros(n, np.int8),
        "empty": np.zeros((0, 3), np.float32),
        "one": np.array([7], np.int64),
    }
    return save(arrays, metadata={"wire_id": "9", "note": '\u00e9 \\ "'})


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def build(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def claim(size: int, stream: bytes, dtype: str = "I8") -> bytes:
    """A packed file of one tensor that is said to have ``size`` bytes."""
    original = json.dumps({"x": {"dtype": dtype, "shape": [size], "data_offsets": [0, size]}})
    entry = {"dtype": "U8", "shape": [len(stream)], "data_offsets": [0, len(stream)]}
    return build({METADATA: {MARK: "1", HEADER: original}, "x": entry}, stream)


# ---------------------------------------------------------------------------------------------------------- round trip


def test_the_file_comes_back_bit_for_bit() -> None:
    plain = example()
    data = pack(plain)
    assert unpack(data) == plain
    assert len(data) < 0.8 * len(plain)
    assert pack(data) == data
    assert unpack(plain) == plain
    header, _ = parts(data)
    original, _ = parts(plain)
    changed = {name for name in original if name != METADATA and header[name]["shape"] != original[name]["shape"]}
    assert changed == {"bell", "pairs", "zeros"}
    assert header["zeros"]["shape"][0] <= 5000 / 8 + 200  # Huffman codes alone: others would grow too much


@pytest.mark.parametrize("pad", [0, 1, 5, 800])
def test_headers_come_back_as_they_were_written(pad: int) -> None:
    """Other writers pad, sort and space otherwise: hashes are of the bytes."""
    header, body = parts(example())
    text = json.dumps(dict(reversed(header.items())), indent=1, ensure_ascii=False).encode() + b" " * pad
    plain = len(text).to_bytes(8, "little") + text + body
    data = pack(plain)
    assert len(data) < len(plain)
    assert unpack(data) == plain
    assert load(unpack(data)).keys() == load(plain).keys()


def test_a_packed_file_is_a_safetensors_file(tmp_path: Path) -> None:
    plain, path = example(), tmp_path / "x.safetensors"
    packed.write(path, plain)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    assert packed.read(path) == plain
    found, want = load_file(str(path)), load(plain)
    assert found.keys() == want.keys()
    assert found["bell"].dtype == np.uint8
    assert zlib.decompress(found["bell"].tobytes()) == want["bell"].tobytes()
    for name in ("noise", "half", "one", "empty"):
        assert found[name].dtype == want[name].dtype
        assert np.array_equal(found[name], want[name])
    with safe_open(str(path), "np") as file:
        metadata = file.metadata()
    assert (metadata["wire_id"], metadata[MARK]) == ("9", "1")
    n = int.from_bytes(plain[:8], "little")
    assert metadata[HEADER].encode() == plain[8 : 8 + n]


def test_types_that_numpy_lacks() -> None:
    tensor = torch.randn(400).to(torch.bfloat16).repeat(4)
    plain = save_torch({"b": tensor, "flags": torch.zeros(500, dtype=torch.bool)})
    assert len(pack(plain)) < len(plain)
    assert unpack(pack(plain)) == plain


def test_what_does_not_get_smaller_stays() -> None:
    for plain in (save({}), save({"x": np.arange(4, dtype=np.int8)}), save({"x": np.zeros(0, np.int8)})):
        assert pack(plain) == plain
    for data in (b"", b"x", b"\xff" * 30, (2).to_bytes(8, "little") + b"[]", (4).to_bytes(8, "little") + b'"\xff"'):
        assert unpack(data) == data  # its reader will tell
        with pytest.raises(ValueError, match="not a safetensors file"):
            pack(data)
    for entry in (3, {}, {"data_offsets": 3}, {"data_offsets": [0, 0.5]}, {"data_offsets": [0, 9]}):
        with pytest.raises(ValueError, match=r"offsets|fill"):
            pack(build({"x": entry}, b"abc"))


def test_the_layout_stays() -> None:
    """Written by hand, as FORMAT.md has it: other streams and another order are as good, for all readers to come."""
    body = bytes(range(4)) * 30
    original = '{"b": {"dtype":"I8","shape":[120],"data_offsets":[1,121]},'
    original += '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]} }'
    stream = zlib.compress(body, 0)[:2] + zlib.compress(body, 9)[2:]
    header = {
        "b": {"dtype": "U8", "shape": [len(stream)], "data_offsets": [0, len(stream)]},
        METADATA: {"tokodec.packed": "1", "tokodec.header": original},
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [len(stream), len(stream) + 1]},
    }
    want = len(original).to_bytes(8, "little") + original.encode() + b"\x05" + body
    assert unpack(build(header, stream + b"\x05")) == want
    assert hashlib.sha256(want).hexdigest()[:16] == "120a53be0fc93a9c"


# -------------------------------------------------------------------------------------------------------------- hashes


def test_hashes_are_of_the_plain_file(tmp_path: Path) -> None:
    plain, path = example(), tmp_path / "x.safetensors"
    hashes = set()
    for data in (plain, pack(plain)):
        path.write_bytes(data)
        hashes.add(file_hash(path))
    assert hashes == {hashlib.sha256(plain).hexdigest()[:16]} == {packed.hash_of(plain)}


def test_models_are_written_packed_and_read_either_way(tmp_path: Path) -> None:
    depth = (1, 1, 1)
    config = ImageGridConfig((16, 32, 48), analysis_blocks=depth, synthesis_blocks=depth, dim=4, codebook_sizes=(300,))
    model, prior = ImageGrid(config), StaticPrior.from_counts([np.ones(300)])
    weights_hash = model.save_pretrained(tmp_path)
    prior.save_pretrained(tmp_path)
    files = [tmp_path / weights.WEIGHTS_FILE, tmp_path / STATIC_FILE]
    sizes, hashes = [path.stat().st_size for path in files], (weights_hash, prior.hash)
    state = weights.load(files[0])
    main(["--unpack", *map(str, files)])
    assert all(path.stat().st_size > size for path, size in zip(files, sizes, strict=True))
    for _ in range(2):
        loaded, other = ImageGrid.from_pretrained(tmp_path), StaticPrior.from_pretrained(tmp_path)
        assert (loaded.weights_hash, other.hash) == hashes == tuple(map(file_hash, files))
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items() if name in state)
        assert np.array_equal(other.tables[0], prior.tables[0])
        main([*map(str, files)])
    assert [path.stat().st_size for path in files] == sizes


@pytest.mark.parametrize("path", sorted(ASSETS.glob("*/*.safetensors")), ids=lambda path: "/".join(path.parts[-2:]))
def test_releases_are_packed(path: Path) -> None:
    """Those that become smaller by it."""
    plain = packed.read(path)
    assert path.read_bytes() == packed.pack(plain)
    assert MARK in parts(path.read_bytes())[0][METADATA] or path.stat().st_size < 100_000


# -------------------------------------------------------------------------------------------------------- damaged files


def test_every_truncation_and_every_tail_is_refused(tmp_path: Path) -> None:
    plain = example(500)
    data, path = pack(plain), tmp_path / "x.safetensors"
    assert data != plain
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(ValueError, match="cannot read weights") as caught:
            weights.load(path)
        assert "\n" not in str(caught.value)
    for tail in (b"\0", b" " * 8, data):
        path.write_bytes(data + tail)
        with pytest.raises(ValueError, match="cannot read weights"):
            weights.load(path)


def test_a_flipped_bit_is_refused_or_changes_the_hash(tmp_path: Path) -> None:
    """Or changes nothing: a few bits of a stream are padding."""
    plain, path = save({"x": np.arange(600, dtype=np.float32) // 9, "y": np.ones(3, np.float16)}), tmp_path / "x"
    data, own = pack(plain), packed.hash_of(plain)
    path.write_bytes(data)
    want = weights.load(path)
    said = []
    for at in range(len(data)):
        for bit in (1, 32):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            try:
                state, found = weights.load_hashed(path)
            except ValueError as error:
                said.append(str(error))
            else:
                assert found != own or all(torch.equal(tensor, want[name]) for name, tensor in state.items())
    assert len(said) > len(data)
    assert not [text for text in said if "\n" in text]


def other_metadata(**entries: object) -> Edit:
    return lambda header: header[METADATA].update({key.replace("_", "."): value for key, value in entries.items()})


def original_of(edit: Edit) -> Edit:
    """Change the header that is said to be the original one."""

    def change(header: dict[str, Any]) -> None:
        own = json.loads(header[METADATA][HEADER])
        edit(own)
        header[METADATA][HEADER] = json.dumps(own)

    return change


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (other_metadata(tokodec_packed="2"), "packed by version '2'"),
        (other_metadata(tokodec_packed=1), "packed by version"),
        (other_metadata(tokodec_packed=["1\n"] * 99), "packed by version"),
        (lambda header: header[METADATA].pop(HEADER), "damaged"),
        (other_metadata(tokodec_header=7), "damaged"),
        (other_metadata(tokodec_header=""), "damaged"),
        (other_metadata(tokodec_header="[]"), "damaged"),
        (other_metadata(tokodec_header="[" * 100_000), "damaged"),
        (other_metadata(tokodec_header="\ud800"), "damaged"),
        (other_metadata(tokodec_header='{"x": 3}'), "no offsets"),
        (lambda header: header.pop("bell"), "one after the other|fill"),
        (lambda header: header["noise"].update(data_offsets=[0, 1 << 70]), "one after the other"),
        (lambda header: header["noise"].update(data_offsets=[-8, 0]), "one after the other"),
        (lambda header: header["noise"].update(data_offsets=[0, True]), "no offsets"),
        (lambda header: header["noise"].update(data_offsets=[0.0, 5.0]), "no offsets"),
        (lambda header: header["noise"].update(data_offsets=[0]), "no offsets"),
        (lambda header: header["noise"].pop("data_offsets"), "no offsets"),
        (lambda header: header.update(noise=None), "no offsets"),
        (lambda header: header.update(more=dict(header["empty"], data_offsets=[0, 0])), "tensors are others"),
        (original_of(lambda own: own.pop("zeros")), "tensors are others|one after the other"),
        (original_of(lambda own: own.update(more={"data_offsets": [0, 0]})), "tensors are others"),
        (original_of(lambda own: own["zeros"].update(data_offsets=[0, 1 << 62])), "one after the other"),
        (original_of(lambda own: own["one"].update(data_offsets=[0, -1])), "one after the other"),
    ],
)
def test_headers_that_lie_are_refused(edit: Edit, message: str, tmp_path: Path) -> None:
    header, body = parts(pack(example()))
    edit(header)
    path = tmp_path / "x.safetensors"
    path.write_bytes(build(header, body))
    with pytest.raises(ValueError, match=message):
        unpack(path.read_bytes())
    with pytest.raises(ValueError, match="cannot read weights") as caught:
        weights.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200 + len(str(path))


@pytest.mark.parametrize(
    ("size", "stream", "message"),
    [
        (100, zlib.compress(b"a" * 101), "another size"),  # more than it says
        (100, zlib.compress(b"a" * 99), "another size"),  # less
        (100, zlib.compress(b"a" * 100) + b"x", "another size"),  # bytes after its end
        (100, zlib.compress(b"a" * 100)[:-1], "another size"),  # no end
        (100, zlib.compress(b"a" * 100)[:-1] + b"x", "incorrect data check"),
        (100, zlib.compress(b"a" * 100)[2:], "header check"),
        (100, b"x" * 20, "header check"),
        (100, b"\x78\xbb\0\0\0\0" + b"x" * 10, "decompressing"),  # a stream that wants a dictionary
        (10, b"x" * 20, "another size"),  # a stream is shorter than what it holds
        (0, b"x", "another size"),
        (1, b"", "another size"),
        (GROWTH * 50 + 1, b"x" * 50, "another size"),
        (1 << 62, zlib.compress(b"a" * 100), "another size"),
    ],
)
def test_streams_that_lie_are_refused(size: int, stream: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=f"damaged packed file: .*{message}") as caught:
        unpack(claim(size, stream))
    assert "\n" not in str(caught.value)


def test_bombs_are_refused_before_they_go_off() -> None:
    """A stream of 64 kB that inflates to 64 MB, under a header that says so, and under one that hides it."""
    stream = zlib.compress(bytes(64 << 20), 9)
    assert len(stream) < 1 << 17
    for size in (64 << 20, GROWTH * len(stream)):
        data = claim(size, stream)
        tracemalloc.start()
        with pytest.raises(ValueError, match="another size"):
            unpack(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 * GROWTH * len(stream)


def test_damaged_priors_and_models_are_model_errors(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(tiny_model, folder)
    monkeypatch.setattr(models, "ASSETS", tmp_path)
    (entry,) = models.list_models()
    assert entry["weights_hash"] == file_hash(tiny_model / weights.WEIGHTS_FILE)
    (folder / STATIC_FILE).write_bytes(claim(100, zlib.compress(b"a" * 99)))
    with pytest.raises(ValueError, match=r"cannot read entropy model .*damaged packed file"):
        StaticPrior.from_pretrained(folder)
    with pytest.raises(ModelError, match="cannot read entropy model"):
        models.load_model(str(folder))
    shutil.move(folder / STATIC_FILE, folder / weights.WEIGHTS_FILE)
    with pytest.raises(ModelError, match=r"cannot read weights .*damaged packed file"):
        models.load_model(str(folder))
    with pytest.raises(ModelError, match=r"cannot read weights .*damaged packed file"):
        models.list_models()


# -------------------------------------------------------------------------------------------------------- command line


def test_the_command_packs_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, path = example(), tmp_path / "x.safetensors"
    path.write_bytes(plain)
    own = packed.hash_of(plain)
    main([str(path)])
    data = path.read_bytes()
    assert data == pack(plain) != plain
    assert capsys.readouterr().out == f"{own}  {path}: {len(plain)} -> {len(data)} bytes\n"
    main([str(path)])
    assert path.read_bytes() == data
    main(["--hash", str(path)])
    assert capsys.readouterr().out.splitlines()[-1] == f"{own}  {path}"
    main(["--unpack", str(path)])
    assert path.read_bytes() == plain
    main(["--hash", str(path)])
    assert capsys.readouterr().out.splitlines()[-1] == f"{own}  {path}"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    for data in (None, b"nothing", claim(100, zlib.compress(b"a" * 99))):
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(SystemExit) as caught:
            main([str(path)])
        assert caught.value.code == 1
        assert capsys.readouterr().err.count("\n") == 1
        assert data is None or path.read_bytes() == data


# ------------------------------------------------------------------------------------------------------ files together


def test_files_appear_together_or_not_at_all(tmp_path: Path) -> None:
    folder, plain = tmp_path / "model", example()
    with packed.together(folder) as beside:
        (beside / "a").write_bytes(b"old")
        packed.write(beside / "b", plain)
        assert list(folder.iterdir()) == [beside]
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert packed.read(folder / "b") == plain
    with packed.together(folder) as first, packed.together(folder) as second:  # two writers at once
        assert first != second
        (first / "a").write_bytes(b"first")
        (second / "a").write_bytes(b"second")
    assert (folder / "a").read_bytes() == b"first"
    with suppress(KeyboardInterrupt), packed.together(folder) as beside:
        (beside / "a").write_bytes(b"half")
        raise KeyboardInterrupt
    assert (folder / "a").read_bytes() == b"first"
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("at", ["save", "load_hashed"])
def test_a_model_that_cannot_be_saved_leaves_the_one_that_was_there(
    at: str, photo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No entropy model beside the weights of another."""
    model = ImagePhoto.from_pretrained(photo_model)
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"config.json", "hyperprior.safetensors", "model.safetensors"}
    arrays = dict(model.entropy.arrays())
    arrays["z_tables"] = arrays["z_tables"][:, ::-1].copy()
    monkeypatch.setattr(model, "save_parts", lambda folder: save_prior(arrays, 3, folder / "hyperprior.safetensors"))

    def fails(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(weights, at, fails)
    with pytest.raises(OSError, match="full"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
