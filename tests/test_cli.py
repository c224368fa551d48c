"""The command line: exit codes, one line an error, data on stdout and talk on stderr, outputs whole or not at all."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from tokodec.codec import cli, models, registry
from tokodec.codec.container.read import read_tok
from tokodec.codec.corpus import token_files
from tokodec.codec.corpus.megatron import read_megatron
from tokodec.codec.corpus.webdataset import read_webdataset
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import UsageError

MAIN = "from tokodec.codec.cli import main; main()"


@dataclass
class Result:
    code: int
    out: bytes
    err: list[str]


Codec = Callable[..., Result]


@pytest.fixture
def codec(capsysbinary: pytest.CaptureFixture[bytes]) -> Codec:
    """Runs the command line in this process."""

    def call(*arguments: object) -> Result:
        capsysbinary.readouterr()
        code = cli.run([str(a) for a in arguments])
        out, err = capsysbinary.readouterr()
        assert b"Traceback" not in err or "--debug" in arguments
        return Result(code, out, err.decode().splitlines())

    return call


@pytest.fixture
def tiny(tiny_model: Path) -> list[str]:
    return ["--model", str(tiny_model), "--device", "cpu"]


def samples(height: int = 40, width: int = 50, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of 40 x 50 in a folder of its own."""
    path = tmp_path / "photo.png"
    Image.fromarray(samples()).save(path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_user_error(result: Result, *words: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that holds every one of ``words``."""
    assert result.code == 2
    assert result.out == b""
    assert len(result.err) == 1, result.err
    assert result.err[0].startswith("codec: ")
    assert "internal error" not in result.err[0]
    for word in words:
        assert word in result.err[0]


# --------------------------------------------------------------------------------------------- encode and decode


def test_encode_and_decode(codec: Codec, tiny: list[str], photo: Path) -> None:
    done = codec("encode", photo, *tiny)
    assert (done.code, done.out) == (0, b"")
    tok = photo.with_suffix(".tok")
    size = tok.stat().st_size
    assert done.err == [f"{photo} -> {tok}: {size} bytes, {8 * size / 2000:.4f} bpp, 3 levels"]
    back = photo.parent / "back.png"
    done = codec("decode", tok, "-o", back, *tiny)
    assert (done.code, done.out) == (0, b"")
    assert done.err == [f"{tok} -> {back}: 50 x 40 pixels, 3 of 3 layers"]
    with Image.open(back) as im:
        assert (im.mode, im.size, im.format) == ("RGB", (50, 40), "PNG")
    assert names(photo.parent) == ["back.png", "photo.png", "photo.tok"]


def test_quiet_says_nothing(codec: Codec, tiny: list[str], photo: Path) -> None:
    assert codec("encode", photo, "--quiet", *tiny).err == []
    assert codec("decode", photo.with_suffix(".tok"), "-o", photo.parent / "b.png", "--quiet", *tiny).err == []


def test_encoding_twice_gives_the_same_bytes(codec: Codec, tiny: list[str], photo: Path) -> None:
    for name in ("a.tok", "b.tok"):
        codec("encode", photo, "-o", photo.parent / name, *tiny)
    assert (photo.parent / "a.tok").read_bytes() == (photo.parent / "b.tok").read_bytes()


def test_an_output_is_never_overwritten_without_force(codec: Codec, tiny: list[str], photo: Path) -> None:
    tok = photo.with_suffix(".tok")
    tok.write_bytes(b"precious")
    assert_user_error(codec("encode", photo, *tiny), str(tok), "--force")
    assert tok.read_bytes() == b"precious"
    assert codec("encode", photo, "--force", *tiny).code == 0
    assert tok.read_bytes() != b"precious"
    assert_user_error(codec("decode", tok, *tiny), str(photo), "--force")  # decoding would replace the source
    assert names(photo.parent) == ["photo.png", "photo.tok"]


@pytest.mark.parametrize(("format", "kind"), [("png", "PNG"), ("webp", "WEBP"), ("tiff", "TIFF"), (".png", "PNG")])
def test_output_format(format: str, kind: str, codec: Codec, tiny: list[str], golden: Path, tmp_path: Path) -> None:
    """By option, by suffix, and by option for a name without suffix."""
    tok = tmp_path / "gray.tok"
    shutil.copy(golden / "gray.tok", tok)
    assert codec("decode", tok, "--format", format, *tiny).code == 0
    assert codec("decode", tok, "-o", tmp_path / f"by_suffix.{kind.lower()}", *tiny).code == 0
    assert codec("decode", tok, "-o", tmp_path / "bare", "--format", format, *tiny).code == 0
    for path in (tok.with_suffix("." + format.lstrip(".")), tmp_path / f"by_suffix.{kind.lower()}", tmp_path / "bare"):
        with Image.open(path) as im:
            assert im.format == kind


def test_levels_of_a_decoder(codec: Codec, tiny: list[str], golden: Path, tmp_path: Path) -> None:
    tok = golden / "extras.tok"
    for levels in (1, 2, 3):
        done = codec("decode", tok, "-o", tmp_path / f"{levels}.png", "--levels", levels, *tiny)
        assert done.code == 0
        assert done.err[-1].endswith(f"{levels} of 3 layers")
    pictures = [np.asarray(Image.open(tmp_path / f"{levels}.png")) for levels in (1, 2, 3)]
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[1], pictures[2])
    assert_user_error(codec("decode", tok, "-o", tmp_path / "0.png", "--levels", 0, *tiny), "levels")


def test_synthesis_nets(codec: Codec, tiny: list[str], golden: Path, tmp_path: Path) -> None:
    for name in ("faithful", "sharp"):
        out = tmp_path / f"{name}.png"
        assert codec("decode", golden / "gray.tok", "-o", out, "--synthesis", name, *tiny).code == 0
    assert (tmp_path / "faithful.png").read_bytes() != (tmp_path / "sharp.png").read_bytes()
    done = codec("decode", golden / "gray.tok", "-o", tmp_path / "x.png", "--synthesis", "blurred", *tiny)
    assert_user_error(done, "blurred", "faithful, sharp")
    assert names(tmp_path) == ["faithful.png", "sharp.png"]


# ----------------------------------------------------------------------------------------------------------- rates


def sizes_of(codec: Codec, tiny: list[str], photo: Path) -> list[int]:
    sizes = []
    for levels in (1, 2, 3):
        path = photo.parent / f"level{levels}.tok"
        done = codec("encode", photo, "-o", path, "--levels", levels, *tiny)
        assert done.code == 0
        assert done.err[0].endswith(f"{levels} levels")
        assert read_tok(path.read_bytes()).header.layers == levels
        sizes.append(path.stat().st_size)
    assert sizes == sorted(set(sizes))
    return sizes


def levels_at(codec: Codec, tiny: list[str], photo: Path, *rate: object) -> int:
    path = photo.parent / "rate.tok"
    done = codec("encode", photo, "-o", path, "--force", *rate, *tiny)
    assert done.code == 0, done.err
    return read_tok(path.read_bytes()).header.layers


def test_bytes_and_bpp_are_upper_limits_of_the_whole_file(codec: Codec, tiny: list[str], photo: Path) -> None:
    sizes = sizes_of(codec, tiny, photo)
    for n, size in enumerate(sizes, start=1):
        assert levels_at(codec, tiny, photo, "--bytes", size) == n
        assert levels_at(codec, tiny, photo, "--bpp", 8 * size / 2000 + 1e-9) == n
    assert levels_at(codec, tiny, photo, "--bytes", sizes[2] - 1) == 2
    assert levels_at(codec, tiny, photo, "--bpp", 8 * (sizes[2] - 1) / 2000 + 1e-9) == 2
    assert levels_at(codec, tiny, photo, "--bytes", 10**9) == 3
    assert levels_at(codec, tiny, photo, "--bpp", 1e308) == 3
    for rate in (("--bytes", sizes[0] - 1), ("--bpp", 8 * (sizes[0] - 1) / 2000)):
        done = codec("encode", photo, "-o", photo.parent / "no.tok", *rate, *tiny)
        assert_user_error(done, f"{sizes[0]} bytes", str(sizes[0] - 1))
    assert "no.tok" not in names(photo.parent)


@pytest.mark.parametrize(("quality", "levels"), [(0, 1), (33, 1), (34, 2), (66, 2), (67, 3), (99.9, 3), (100, 3)])
def test_quality_is_mapped_to_levels(quality: float, levels: int, codec: Codec, tiny: list[str], photo: Path) -> None:
    assert levels_at(codec, tiny, photo, "-q", quality) == levels


@pytest.mark.parametrize(
    "rate",
    [
        "-q 101", "-q -1", "-q nan", "--levels 0", "--levels 4", "--bpp 0", "--bpp -1", "--bpp nan", "--bpp inf",
        "--bytes 0", "--bytes -5", "-q 50 --levels 2", "--bpp 1 --bytes 100", "-q 50 --bpp 1", "-q fifty",
        "--levels 1.5", "--bytes ten", "--max-pixels 0", "-q 0 --bpp 8", "--levels 0 -q 50",
    ],
)  # fmt: skip
def test_rates_that_make_no_sense(rate: str, codec: Codec, tiny: list[str], photo: Path) -> None:
    assert_user_error(codec("encode", photo, *rate.split(), *tiny))
    assert names(photo.parent) == ["photo.png"]


# ------------------------------------------------------------------------------------------- what a picture carries


def there_and_back(codec: Codec, tiny: list[str], path: Path, *options: object) -> tuple[Image.Image, list[str]]:
    """The decoded picture and what was said on the way, but for the reports of success."""
    encoded = codec("encode", path, *options, "--quiet", *tiny)
    back = path.parent / "back.png"
    decoded = codec("decode", path.with_suffix(".tok"), "-o", back, "--quiet", "--force", *tiny)
    assert (encoded.code, decoded.code) == (0, 0), encoded.err + decoded.err
    im = Image.open(back)
    im.load()
    return im, encoded.err + decoded.err


def test_gray(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    Image.fromarray(samples(channels=1)[..., 0]).save(tmp_path / "x.png")
    im, said = there_and_back(codec, tiny, tmp_path / "x.png")
    assert (im.mode, im.size) == ("L", (50, 40))
    assert said == []


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_lossless(mode: str, codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    source = Image.fromarray(samples(channels=4), "RGBA") if mode == "RGBA" else Image.fromarray(samples(channels=2))
    source.save(tmp_path / "x.png")
    im, said = there_and_back(codec, tiny, tmp_path / "x.png")
    assert im.mode == mode
    assert np.array_equal(np.asarray(im)[..., -1], np.asarray(source)[..., -1])
    assert {line.split(": ", 2)[2] for line in said} <= {"colours under fully transparent pixels not kept"}


def test_alpha_is_never_dropped_in_silence(codec: Codec, tiny: list[str], golden: Path, tmp_path: Path) -> None:
    done = codec("decode", golden / "extras.tok", "-o", tmp_path / "x.jpg", *tiny)
    assert_user_error(done, "alpha")
    assert names(tmp_path) == []


@pytest.mark.parametrize("out", ["x.jpg", "x.pgm", "x.xyz"])
def test_what_cannot_be_written_is_refused_before_the_work(
    codec: Codec, tiny: list[str], golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.setattr("tokodec.codec.image.format.decode_pixels", lambda *_: pytest.fail("decoded first"))
    monkeypatch.setattr("tokodec.codec.image.levels.decode_pixels", lambda *_: pytest.fail("decoded first"))
    assert_user_error(codec("decode", golden / "extras.tok", "-o", tmp_path / out, *tiny), out)


def test_profile_and_exif(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[270] = "described"
    Image.fromarray(samples()).save(tmp_path / "x.png", icc_profile=profile, exif=exif)
    im, said = there_and_back(codec, tiny, tmp_path / "x.png")
    assert im.info["icc_profile"] == profile
    assert im.getexif()[270] == "described"
    assert said == []
    im, said = there_and_back(codec, tiny, tmp_path / "x.png", "--no-metadata", "--force")
    assert im.info["icc_profile"] == profile
    assert 270 not in im.getexif()
    assert [line.split(": ", 2)[2] for line in said] == ["EXIF left out as asked"]
    im, said = there_and_back(codec, tiny, tmp_path / "x.png", "--keep", "exif", "--force")
    assert "icc_profile" not in im.info
    assert im.getexif()[270] == "described"
    assert [line.split(": ", 2)[2] for line in said] == ["ICC profile left out as asked: samples converted to sRGB"]
    for arguments, word in ((("--keep", "gps"), "icc, exif and xmp"), (("--keep", "icc", "--no-metadata"), "not both")):
        assert_user_error(codec("encode", tmp_path / "x.png", "-f", *arguments, *tiny), word)


def test_exif_orientation_is_applied(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    source = Image.fromarray(samples())
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    source.save(tmp_path / "turned.png", exif=exif)
    source.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turned, _ = there_and_back(codec, tiny, tmp_path / "turned.png")
    upright, _ = there_and_back(codec, tiny, tmp_path / "upright.png")
    assert turned.size == (40, 50)
    assert np.array_equal(np.asarray(turned), np.asarray(upright))
    assert 0x0112 not in turned.getexif()  # or it would be turned once more


def test_16_bits_are_told(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50) * 32).save(tmp_path / "x.png")
    im, said = there_and_back(codec, tiny, tmp_path / "x.png")
    assert im.mode == "L"
    assert len(said) == 2
    assert all("8 bit" in line or "16" in line for line in said)
    assert json.loads(codec("info", tmp_path / "x.tok", "--json").out)["bit_depth"] == 16


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (33, 20)])
def test_awkward_sizes(size: tuple[int, int], codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    Image.fromarray(samples(*size)).save(tmp_path / "x.png")
    im, _ = there_and_back(codec, tiny, tmp_path / "x.png")
    assert im.size == (size[1], size[0])


# ---------------------------------------------------------------------------------------------------- many, folders


def make_folder(folder: Path) -> Path:
    folder.mkdir()
    for i in range(3):
        Image.fromarray(samples(20 + i, 30, seed=i)).save(folder / f"{i}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_folders(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in")
    done = codec("encode", folder, "-o", tmp_path / "deep" / "out", *tiny)
    assert (done.code, done.out, len(done.err)) == (0, b"", 4)
    assert done.err[0] == f"codec: {folder}: 1 file (notes.txt) left out, of no kind that is read here"
    assert names(tmp_path / "deep" / "out") == ["0.tok", "1.tok", "2.tok"]
    done = codec("decode", tmp_path / "deep" / "out", "-o", tmp_path / "back", "--format", "webp", *tiny)
    assert done.code == 0
    assert names(tmp_path / "back") == ["0.webp", "1.webp", "2.webp"]
    assert codec("encode", folder, *tiny).code == 0  # beside the inputs
    assert names(folder) == ["0.png", "0.tok", "1.png", "1.tok", "2.png", "2.tok", "notes.txt"]


def test_one_file_into_a_folder(codec: Codec, tiny: list[str], photo: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert codec("encode", photo, "-o", tmp_path / "out", *tiny).code == 0
    assert names(tmp_path / "out") == ["photo.tok"]


def test_one_bad_file_does_not_stop_the_others(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in")
    (folder / "notes.txt").unlink()
    (folder / "1.png").write_bytes(b"no picture")
    done = codec("encode", folder, tmp_path / "missing.png", "-o", tmp_path / "out", "--quiet", *tiny)
    assert (done.code, done.out, len(done.err)) == (2, b"", 3)
    assert "1.png" in done.err[0]
    assert "missing.png" in done.err[1]
    assert done.err[2] == "codec: 2 of 4 files failed"
    assert names(tmp_path / "out") == ["0.tok", "2.tok"]
    done = codec("encode", folder, "-o", tmp_path / "none", "--bytes", 1, *tiny)  # an error that knows no name
    assert done.code == 2
    assert [f"{i}.png" in line for i, line in enumerate(done.err[:3])] == [True] * 3
    assert names(tmp_path / "none") == []


def test_the_gravest_exit_code_wins(codec: Codec, tiny: list[str], golden: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.tok").write_bytes((golden / "gray.tok").read_bytes()[:-4])
    shutil.copy(golden / "pixel.tok", tmp_path / "good.tok")
    done = codec("decode", tmp_path, *tiny)
    assert done.code == 3
    assert names(tmp_path) == ["cut.png", "cut.tok", "good.png", "good.tok"]
    (tmp_path / "bad.tok").write_bytes(b"")
    done = codec("decode", tmp_path, "--force", *tiny)
    assert done.code == 2
    assert done.err[-1] == "codec: 1 of 3 files failed"


def test_plans_that_are_refused(codec: Codec, tiny: list[str], photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(photo, other / "photo.png")
    shutil.copy(photo, other / "second.png")
    for arguments, word in (
        ((photo, other / "photo.png", "-o", tmp_path / "out"), "both be written"),
        ((photo, photo), "both be written"),
        ((photo, other / "photo.png", "-o", "-"), "standard output"),
        ((photo, other / "second.png", "-o", photo), "cannot make the folder"),
        ((tmp_path / "empty",), "no .png"),
        ((photo, "-o", tmp_path / "no" / "folder.tok"), "does not exist"),
        ((tmp_path / "missing.png",), "no such file"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert_user_error(codec("encode", *arguments, *tiny), word)
    assert_user_error(codec("decode", photo, *tiny), "overwritten by its own output")
    assert list(tmp_path.rglob("*.tok")) == []


# ------------------------------------------------------------------------------------------------------- streams


def test_stdin_and_stdout(codec: Codec, tiny: list[str], photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec("encode", photo, *tiny)
    expected = photo.with_suffix(".tok").read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(photo.read_bytes())))
    piped = codec("encode", "-", *tiny)
    assert (piped.code, piped.out) == (0, expected)
    assert codec("encode", photo, "-o", "-", *tiny).out == expected
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(expected)))
    piped = codec("decode", "-", *tiny)
    assert piped.code == 0
    with Image.open(io.BytesIO(piped.out)) as im:
        assert (im.format, im.size) == ("PNG", (50, 40))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(expected)))
    assert json.loads(codec("info", "-", "--json").out)["width"] == 50
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    assert_user_error(codec("decode", "-", *tiny), "standard input", "empty")
    assert names(photo.parent) == ["photo.png", "photo.tok"]


def test_real_pipes(tiny: list[str], photo: Path) -> None:
    command = [sys.executable, "-c", MAIN]
    encoded = subprocess.run(
        [*command, "encode", "-", "--quiet", *tiny], input=photo.read_bytes(), capture_output=True, check=True
    )
    assert encoded.stdout.startswith(b"\x89TOK")
    assert encoded.stderr == b""
    decoded = subprocess.run(
        [*command, "decode", "-", "--format", "ppm", *tiny], input=encoded.stdout, capture_output=True, check=True
    )
    assert decoded.stdout.startswith(b"P6\n50 40\n255\n")
    assert len(decoded.stdout) == len(b"P6\n50 40\n255\n") + 50 * 40 * 3


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAIN]
    failed = subprocess.run([*command, "decode", str(tmp_path / "x.tok")], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("codec: ")


def test_help_and_info_need_no_torch(golden: Path) -> None:
    code = (
        "import sys; from tokodec.codec.cli import run;"
        "codes = [run(['--help']), run(['encode', '--help']), run(['--version']), run(['info', sys.argv[1]])];"
        "print(codes, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(golden / "segments.tok")], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0] False"
    assert done.stderr == ""


# ------------------------------------------------------------------------------------------------ info and models


def test_info(codec: Codec, golden: Path) -> None:
    done = codec("info", golden / "extras.tok", "--json")
    assert (done.code, done.err) == (0, [])
    found = json.loads(done.out)
    assert found["model"] == "tiny"
    assert found["alpha"] == 1
    assert (found["height"], found["width"]) == (40, 24)
    plain = codec("info", golden / "extras.tok").out.decode().splitlines()
    assert [line.split()[0] for line in plain] == list(found)
    several = codec("info", golden / "extras.tok", golden / "gray.tok", "--json")
    assert [json.loads(line)["channels"] for line in several.out.splitlines()] == ["rgb", "gray"]


def test_info_of_bad_files(codec: Codec, golden: Path, tmp_path: Path) -> None:
    bad = sorted((golden / "bad").glob("*.tok"))
    for path in bad:
        done = codec("info", path, "--json")
        if done.code == 0:  # wrong only in the eyes of a model
            assert path.name.startswith(("ModelError", "WeightsMismatchError", "ChunkError_stride", "LimitError"))
        else:
            assert_user_error(done, str(path))
    assert_user_error(codec("info", tmp_path / "none.tok"), "none.tok")
    assert_user_error(codec("info", tmp_path), str(tmp_path))
    cut = tmp_path / "cut.tok"
    cut.write_bytes((golden / "gray.tok").read_bytes()[:-5])
    done = codec("info", cut, "--json")
    assert done.code == 3
    assert json.loads(done.out)["complete"] is False
    (tmp_path / "deeper").mkdir()
    shutil.copy(golden / "pixel.tok", tmp_path / "deeper")
    for words, found in (((), ["cut.tok"]), (("--recursive",), ["cut.tok", "deeper/pixel.tok"])):
        done = codec("info", tmp_path, "--json", *words)
        assert done.code == 3
        assert [json.loads(line)["file"] for line in done.out.splitlines()] == [str(tmp_path / name) for name in found]


@pytest.mark.parametrize("config", ['{"quantizer": {"kind": "rvq", "levels": 5}}', "[]", '{"quantizer": 5}', "{"])
def test_info_of_a_damaged_folder(config: str, codec: Codec, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"class": "ImageGrid", "name": "\\u001b[31m", "config": {config}}}')
    assert_user_error(codec("info", tmp_path), str(tmp_path / "config.json"))


def test_models(codec: Codec, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(json.loads(codec("models", "--json").out), list)
    shutil.copytree(tiny_model, tmp_path / "assets" / "tiny")
    monkeypatch.setattr(models, "ASSETS", tmp_path / "assets")
    done = codec("models", "--json")
    assert (done.code, done.err) == (0, [])
    (entry,) = json.loads(done.out)
    loaded = models.load_model(str(tiny_model))
    assert entry["name"] == "tiny"
    assert entry["modality"] == "image"
    assert entry["codebook_sizes"] == [64, 32, 16]
    assert entry["weights_hash"] == loaded.tokenizer.weights_hash
    assert entry["bytes"] == sum(path.stat().st_size for path in tiny_model.glob("*.safetensors"))
    assert entry["priors"] == ["static"]
    assert b"tiny  image, 64 + 32 + 16 codewords" in codec("models").out
    assert b"entropy models static" in codec("models").out
    assert b"video-fit  video" in codec("models").out
    window = {"model": "tiny", "weights_hash": "0" * 16, "modality": "image", "size": [48, 64]}
    config = {
        "class": registry.GENERATOR,
        "name": "gen",
        "config": {"window": window, "levels": 2, "pattern": "levels"},
    }
    (tmp_path / "assets" / "gen").mkdir()
    (tmp_path / "assets" / "gen" / "config.json").write_text(json.dumps(config))
    shutil.copy(tiny_model / "model.safetensors", tmp_path / "assets" / "gen")
    assert [entry["class"] for entry in json.loads(codec("models", "--json").out)] == ["ImageGrid", "Generator"]
    assert b"gen  generator of image, 64 x 48" in codec("models").out
    assert b", 2 levels of tiny" in codec("models").out
    config["config"]["window"] |= {"modality": "audio", "size": [96000], "sample_rate": 24000.0}  # type: ignore[index]
    (tmp_path / "assets" / "gen" / "config.json").write_text(json.dumps(config))
    assert b"gen  generator of audio, 4 s" in codec("models").out


def test_the_prior_is_chosen(codec: Codec, golden: Path, tiny_model: Path, photo: Path, tmp_path: Path) -> None:
    """The best that the model has, or the one that is asked for; one that it lacks is refused by name."""
    file = tmp_path / "a.tok"
    for model, wanted, found in (
        (golden / "context", [], "context"),
        (golden / "context", ["--prior", "context"], "context"),
        (tiny_model, [], "static"),
        (tiny_model, ["--prior", "static"], "static"),
    ):
        done = codec("encode", str(photo), "-o", str(file), "--force", "--model", str(model), *wanted)
        assert done.code == 0
        assert json.loads(codec("info", str(file), "--json").out)["prior"] == found
        assert codec("decode", str(file), "-o", str(tmp_path / "a.png"), "--force", "--model", str(model)).code == 0
    for model, kind, message in (
        (golden / "context", "static", "has no entropy model 'static', only 'context'"),
        (tiny_model, "context", "has no entropy model 'context', only 'static'"),
        (tiny_model, "best", "has no entropy model 'best', only 'static'"),
    ):
        before = file.read_bytes()
        done = codec("encode", str(photo), "-o", str(file), "--force", "--model", str(model), "--prior", kind)
        assert (done.code, len(done.err)) == (2, 1)
        assert message in done.err[0]
        assert file.read_bytes() == before


def test_codes_of_fixed_lengths_decode_whatever_the_model_has_got(
    codec: Codec, golden: Path, photo: Path, tmp_path: Path
) -> None:
    """Files of a model that had no entropy model yet: a context prior that came later does not stand in the way."""
    model, name = tmp_path / "model", "context.safetensors"
    shutil.copytree(golden / "context", model, ignore=shutil.ignore_patterns(name))
    words = ("--model", model, "--device", "cpu")
    assert codec("encode", photo, *words).code == 0
    assert codec("decode", photo.with_suffix(".tok"), "-o", tmp_path / "before.png", *words).code == 0
    shutil.copy(golden / "context" / name, model)
    assert codec("decode", photo.with_suffix(".tok"), "-o", tmp_path / "after.png", *words).code == 0
    assert (tmp_path / "after.png").read_bytes() == (tmp_path / "before.png").read_bytes()


# ------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_tokenize_and_detokenize(suffix: str, codec: Codec, tiny: list[str], photo: Path) -> None:
    folder = photo.parent
    done = codec("tokenize", photo, "--format", suffix, *tiny)
    assert (done.code, done.out) == (0, b"")
    made = photo.with_suffix("." + suffix)
    assert done.err == [f"{photo} -> {made}: codes 3 x 3 x 4"]
    codec("encode", photo, *tiny)
    codec("decode", photo.with_suffix(".tok"), "-o", folder / "decoded.png", *tiny)
    for target in ("back.png", "back.tok"):
        assert codec("detokenize", made, "-o", folder / target, *tiny).code == 0
    assert np.array_equal(np.asarray(Image.open(folder / "back.png")), np.asarray(Image.open(folder / "decoded.png")))
    assert (folder / "back.tok").read_bytes() == photo.with_suffix(".tok").read_bytes()
    # A .tok file gives the same tokens, without the picture.
    assert codec("tokenize", photo.with_suffix(".tok"), "-o", folder / f"tok.{suffix}", *tiny).code == 0
    assert np.array_equal(
        token_files.load_tokens(folder / f"tok.{suffix}").codes, token_files.load_tokens(made).codes
    )  # fmt: skip
    assert codec("tokenize", photo, "-o", folder / f"two.{suffix}", "--levels", 2, *tiny).code == 0
    assert token_files.load_tokens(folder / f"two.{suffix}").n_levels == 2


def test_tokens_are_plain_arrays(codec: Codec, tiny: list[str], photo: Path) -> None:
    codec("tokenize", photo, *tiny)
    with np.load(photo.with_suffix(".npz"), allow_pickle=False) as arrays:
        assert arrays["codes"].dtype == np.int32
        assert arrays["codes"].shape == (1, 3, 3, 4)
        spec = json.loads(str(arrays["spec"][()]))
    assert spec["size"] == [40, 50]
    assert spec["codebook_sizes"] == [64, 32, 16]


def test_tokens_that_are_there_are_not_made_again(codec: Codec, tiny: list[str], golden: Path, folder: Path) -> None:
    """A rerun makes what is missing, and replaces nothing that is otherwise than it would be made."""
    shutil.copy(golden / "gray.tok", folder / "d.tok")
    assert codec("tokenize", folder, *tiny).code == 0
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert len(made) == 4
    done = codec("tokenize", folder, *tiny)
    assert (done.code, done.out, done.err) == (0, b"", ["codec: 4 already there"])
    assert codec("tokenize", folder, "--quiet", *tiny).err == []
    assert {path: path.stat().st_mtime_ns for path in made} == made
    (folder / "a.npz").unlink()
    done = codec("tokenize", folder, *tiny)
    assert (done.code, done.err[1:]) == (0, ["codec: 3 already there"])
    assert "a.npz: codes" in done.err[0]
    assert codec("tokenize", folder, "-f", *tiny).err[-1] != "codec: 4 already there"

    assert_user_error(codec("tokenize", folder / "a.png", "--levels", 2, *tiny), "exists already: use --force")
    other = ["--model", golden / "photo", "--device", "cpu"]
    assert_user_error(codec("tokenize", folder / "a.png", *other), "exists already: use --force")
    assert codec("tokenize", folder / "a.png", "-f", *other).code == 0
    assert codec("tokenize", folder / "a.png", *other).err == ["codec: 1 already there"]
    assert_user_error(codec("tokenize", folder / "a.png", "--quality", 40, *other), "exists already: use --force")
    assert codec("tokenize", folder / "a.png", "-f", *tiny).code == 0
    os.utime(folder / "a.png", (2e9, 2e9))  # changed since
    assert_user_error(codec("tokenize", folder / "a.png", *tiny), "exists already: use --force")
    os.utime(folder / "a.png", (1e9, 1e9))
    (folder / "a.npz").write_bytes((folder / "a.npz").read_bytes()[:-40])
    assert_user_error(codec("tokenize", folder / "a.png", *tiny), "exists already: use --force")
    assert codec("tokenize", folder / "d.tok", "-o", folder / "b.npz", *tiny).code == 2
    assert codec("tokenize", folder / "b.png", "-o", folder / "b.npz", *tiny).err == ["codec: 1 already there"]


def test_tokenizing_a_damaged_file_says_so(codec: Codec, tiny: list[str], golden: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.tok"
    cut.write_bytes((golden / "gray.tok").read_bytes()[:-5])
    done = codec("tokenize", cut, "--quiet", *tiny)
    assert done.code == 3
    assert any("cut off" in line for line in done.err)
    bad = golden / "bad" / "VersionError_2.tok"
    assert_user_error(codec("tokenize", bad, "-o", tmp_path / "x.npz", *tiny), "version")


def write_npz(path: Path, codes: Any, spec: Any) -> None:
    np.savez(path, codes=codes, spec=np.array(spec))


def test_tokens_that_are_refused(codec: Codec, tiny: list[str], photo: Path) -> None:
    codec("tokenize", photo, *tiny)
    path = photo.with_suffix(".npz")
    with np.load(path) as arrays:
        codes, spec = arrays["codes"], json.loads(str(arrays["spec"][()]))
    changes: list[tuple[Any, Any]] = [
        (codes, "no json"),
        (codes, json.dumps(spec | {"unknown": 1})),
        (codes, json.dumps({})),
        (codes, json.dumps([])),
        (codes, json.dumps(spec | {"size": [4000, 50]})),
        (codes, json.dumps(spec | {"size": 40})),
        (codes, json.dumps(spec | {"size": [-40, 50]})),
        (codes, json.dumps(spec | {"weights_hash": "0" * 16})),
        (codes, json.dumps(spec | {"strides": [8, 8], "size": [24, 32]})),
        (codes, json.dumps(spec | {"model": "other"})),
        (codes, json.dumps(spec | {"codebook_sizes": [65, 32, 16]})),
        (codes[..., 0], json.dumps(spec | {"strides": [16], "size": [40]})),
        (codes + 64, json.dumps(spec)),
        (codes - 5, json.dumps(spec)),
        (codes.astype(np.float32), json.dumps(spec)),
        (np.concatenate([codes, codes]), json.dumps(spec)),
        (np.zeros((1, 3, 0, 0), np.int32), json.dumps(spec)),
        (np.array([None, {}], dtype=object), json.dumps(spec)),
    ]
    for i, (changed, text) in enumerate(changes):
        write_npz(photo.parent / "bad.npz", changed, text)
        done = codec("detokenize", photo.parent / "bad.npz", "-o", photo.parent / f"{i}.png", *tiny)
        assert_user_error(done, "bad.npz")
    for data in (b"", b"PK\x03\x04", path.read_bytes()[:-30], b"text"):
        for suffix in ("npz", "safetensors"):
            (photo.parent / f"bad.{suffix}").write_bytes(data)
            assert_user_error(codec("detokenize", photo.parent / f"bad.{suffix}", "-o", photo.parent / "x.png", *tiny))
    assert_user_error(codec("detokenize", photo.parent / "none.npz", "-o", photo.parent / "x.png", *tiny), "none.npz")
    assert {p.suffix for p in photo.parent.iterdir()} == {".png", ".npz", ".safetensors"}
    assert len(list(photo.parent.glob("*.png"))) == 1


def test_absent_codes(codec: Codec, tiny: list[str], photo: Path) -> None:
    """They decode to pixels, but a .tok file has no way to say that they are absent."""
    codec("tokenize", photo, *tiny)
    path = photo.with_suffix(".npz")
    with np.load(path) as arrays:
        codes, spec = arrays["codes"].copy(), str(arrays["spec"][()])
    codes[0, 1:, 0, 0] = -1
    write_npz(path, codes, spec)
    assert codec("detokenize", path, "-o", photo.parent / "x.png", *tiny).code == 0
    assert_user_error(codec("detokenize", path, "-o", photo.parent / "x.tok", *tiny), "absent")


# ------------------------------------------------------------------------------------------------------- corpora


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of different sizes."""
    path = tmp_path / "in"
    path.mkdir()
    for i, size in enumerate([(40, 50), (16, 16), (33, 70)]):
        Image.fromarray(samples(*size, seed=i)).save(path / f"{'cab'[i]}.png")
    return path


def read_corpus(path: Path) -> list[tuple[str, Any]]:
    return list(read_webdataset(path) if path.suffix == ".tar" else read_megatron(path))


@pytest.mark.parametrize("suffix", ["tar", "bin"])
def test_a_folder_becomes_a_corpus(suffix: str, codec: Codec, tiny: list[str], folder: Path, tmp_path: Path) -> None:
    """The tokens that `codec tokenize` writes one by one, by name; token files give the same corpus."""
    out = tmp_path / f"corpus.{suffix}"
    done = codec("tokenize", folder, "-o", out, *tiny)
    assert (done.code, done.out) == (0, b"")
    codes = 3 * (12 + 1 + 15)
    summary = {"tar": f"{codes} codes", "bin": f"3 sequences, {codes + 6} ids of a vocabulary of 117"}
    assert done.err == [f"{out}: 3 of 3 files, {summary[suffix]}"]
    found = read_corpus(out)
    assert [name for name, _ in found] == ([*"abc"] if suffix == "tar" else ["a.png", "b.png", "c.png"])
    made = tmp_path / "made"
    assert codec("tokenize", folder, "-o", made, *tiny).code == 0
    for (name, got), path in zip(found, sorted(made.iterdir()), strict=True):
        want = token_files.load_tokens(path)
        assert Path(name).stem == path.stem
        assert got.spec == want.spec
        assert np.array_equal(got.codes, want.codes)
    again = tmp_path / f"again.{suffix}"
    assert codec("tokenize", made, "-o", again, "--quiet", *tiny).err == []
    assert out.read_bytes() == again.read_bytes()
    assert not [name for name in names(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize("suffix", ["tar", "bin"])
def test_a_corpus_of_classes(suffix: str, codec: Codec, tiny: list[str], folder: Path, tmp_path: Path) -> None:
    """Folders in a folder, with files of the same names: each keeps its class."""
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for file in ("a.png", "b.png"):
            shutil.copy(folder / file, folder / name)
    out = tmp_path / f"corpus.{suffix}"
    done = codec("tokenize", folder, "-o", out, "--recursive", *tiny)
    assert (done.code, len(done.err)) == (0, 1)
    found = [str(Path(name).with_suffix("")) for name, _ in read_corpus(out)]
    assert sorted(found) == ["a", "b", "c", "cat/a", "cat/b", "dog/a", "dog/b"]
    assert_user_error(codec("tokenize", folder, "-o", out, "--recursive", *tiny), "exists already: use --force")
    for i, sources in enumerate(
        ([folder / "cat", folder / "dog"], [folder / "cat" / "a.png", folder / "dog" / "a.png"])
    ):
        out = tmp_path / f"{i}.{suffix}"
        assert codec("tokenize", *sources, "-o", out, *tiny).code == 0
        found = [str(Path(name).with_suffix("")) for name, _ in read_corpus(out)]
        assert found == ["cat/a", "cat/b", "dog/a", "dog/b"][:: 1 + i]


def test_settings_of_a_corpus(codec: Codec, golden: Path, folder: Path, tmp_path: Path) -> None:
    model = ["--model", golden / "context", "--device", "cpu"]
    settings = ["--pattern", "interleaved", "--digits", "--levels", 2]
    assert codec("tokenize", folder, "-o", tmp_path / "x.bin", *settings, *model).code == 0
    corpus = read_megatron(tmp_path / "x.bin")
    assert corpus.schema["sequencer"]["pattern"] == "interleaved"
    assert corpus.schema["sequencer"]["leaves"][0] is not None
    assert {kind["levels"] for kind in corpus.schema["kinds"]} == {2}
    assert codec("tokenize", folder, "-o", tmp_path / "y.bin", "--levels", 2, *model).code == 0
    for (_, a), (_, b) in zip(corpus, read_megatron(tmp_path / "y.bin"), strict=True):
        assert np.array_equal(a.codes, b.codes)


@pytest.mark.parametrize("suffix", ["tar", "bin"])
def test_a_bad_file_is_told_and_left_out(
    suffix: str, codec: Codec, tiny: list[str], folder: Path, golden: Path, tmp_path: Path
) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    (folder / "bad2.npz").write_bytes(b"no tokens")
    (folder / "cut.tok").write_bytes((golden / "gray.tok").read_bytes()[:-5])
    out = tmp_path / f"corpus.{suffix}"
    done = codec("tokenize", folder, "-o", out, *tiny)
    assert (done.code, done.out) == (2, b"")
    assert len(done.err) == 5
    told = ["bad.png", "bad2.npz", "cut.tok: ", "2 of 6 files failed", "4 of 6"]
    assert all(words in line for line, words in zip(done.err, told, strict=True))
    assert [Path(name).stem for name, _ in read_corpus(out)] == ["a", "b", "c", "cut"]
    for name in ("bad.png", "bad2.npz"):
        (folder / name).unlink()
    assert codec("tokenize", folder, "-o", out, "--force", *tiny).code == 3  # damaged, and as far as it goes
    shutil.rmtree(folder)
    folder.mkdir()
    for name in ("x.png", "y.png"):
        (folder / name).write_bytes(b"no picture")
    none = tmp_path / f"none.{suffix}"
    assert codec("tokenize", folder, "-o", none, *tiny).code == 2
    assert_user_error(codec("tokenize", folder / "x.png", "-o", none, *tiny), "x.png")
    assert not list(tmp_path.glob("none*"))


def test_a_corpus_in_bin_is_of_one_model(
    codec: Codec, tiny: list[str], folder: Path, photo_model: Path, tmp_path: Path
) -> None:
    assert codec("tokenize", folder / "b.png", "--model", photo_model, "--device", "cpu").code == 0
    (folder / "b.png").unlink()
    done = codec("tokenize", folder, "-o", tmp_path / "x.bin", *tiny)
    assert done.code == 2
    assert "b.npz: tokens of" in done.err[0]
    assert [name for name, _ in read_corpus(tmp_path / "x.bin")] == ["a.png", "c.png"]


def test_corpora_that_are_refused(codec: Codec, tiny: list[str], folder: Path, tmp_path: Path) -> None:
    """One line, before any work."""
    (tmp_path / "more" / "in").mkdir(parents=True)
    shutil.copy(folder / "a.png", tmp_path / "more" / "in" / "a.jpeg")
    tar, bin = tmp_path / "x.tar", tmp_path / "x.bin"
    refused: list[tuple[list[object], list[str]]] = [
        ([folder, "-o", tar, "--pattern", "levels"], ["--pattern", ".bin"]),
        ([folder, "-o", tar, "--digits"], ["--digits", ".bin"]),
        ([folder / "a.png", "--digits"], ["--digits", ".bin"]),
        ([folder / "a.png", "-o", tmp_path / "x.npz", "--pattern", "levels"], ["--pattern", ".bin"]),
        ([folder, "-o", bin, "--pattern", "diagonal"], ["diagonal", "interleaved"]),
        ([folder, "-o", bin, "--digits"], ["tiny", "digits"]),
        ([folder, tmp_path / "more" / "in", "-o", tar], ["a.png", "a.jpeg", "'in/a'"]),
        ([folder / "a.png", "-o", bin, "--levels", 0], ["levels"]),
        ([folder / "a.png", "-o", tmp_path / "none" / "x.tar"], ["none"]),
    ]
    for arguments, words in refused:
        assert_user_error(codec("tokenize", *arguments, *tiny), *words)
    assert names(tmp_path) == ["in", "more"]
    for path in (tar, tmp_path / "x.idx", tmp_path / "x.json"):
        path.write_bytes(b"precious")
    for out in (tar, bin):
        assert_user_error(codec("tokenize", folder, "-o", out, *tiny), "--force")
    assert tar.read_bytes() == (tmp_path / "x.json").read_bytes() == b"precious"
    assert not bin.exists()


def test_token_files_of_another_model_are_refused(
    codec: Codec, tiny: list[str], photo_model: Path, photo: Path
) -> None:
    codec("tokenize", photo, *tiny)
    made = photo.with_suffix(".npz")
    refused = codec("tokenize", made, "-o", photo.parent / "x.npz", "--model", photo_model, "--device", "cpu")
    assert_user_error(refused, "photo.npz", "tokens of tiny")
    assert codec("tokenize", made, "-o", photo.parent / "x.safetensors", "--levels", 1, *tiny).code == 0
    assert token_files.load_tokens(photo.parent / "x.safetensors").n_levels == 1


# ----------------------------------------------------------------------------------------------- damage and errors


def test_damaged_files_decode_with_exit_code_3(codec: Codec, tiny: list[str], golden: Path, tmp_path: Path) -> None:
    data = bytearray((golden / "segments.tok").read_bytes())
    data[80] ^= 1  # in the first layer of the first segment
    tok = tmp_path / "x.tok"
    tok.write_bytes(data)
    done = codec("decode", tok, "--quiet", *tiny)
    assert done.code == 3
    assert done.err
    assert all(line.startswith(f"codec: {tok}: ") for line in done.err)
    assert any("segment 0: lost" in line for line in done.err)
    assert Image.open(tmp_path / "x.png").size == (1044, 24)
    assert_user_error(codec("decode", tok, "-o", tmp_path / "strict.png", "--strict", *tiny), str(tok))
    assert names(tmp_path) == ["x.png", "x.tok"]


def test_suffixes_of_one_format_do_not_contradict(codec: Codec, tiny: list[str], golden: Path, tmp_path: Path) -> None:
    for name, format in (("x.jpeg", "jpg"), ("x.JPG", "jpeg"), ("x.tif", "tiff"), ("x.tiff", "tif")):
        assert codec("decode", golden / "gray.tok", "-o", tmp_path / name, "--format", format, *tiny).code == 0
        assert Image.open(tmp_path / name).format == ("TIFF" if "tif" in format else "JPEG")


def test_bad_files_leave_nothing_behind(codec: Codec, tiny: list[str], golden: Path, tmp_path: Path) -> None:
    for path in sorted((golden / "bad").glob("*.tok")):
        assert_user_error(codec("decode", path, "-o", tmp_path / "x.png", *tiny), str(path))
    assert names(tmp_path) == []


def test_mistakes(codec: Codec, tiny: list[str], photo: Path, golden: Path, tmp_path: Path) -> None:
    tok = golden / "gray.tok"
    mistakes: list[tuple[list[object], str]] = [
        (["encode"], ""),
        (["encode", photo, "--nonsense"], "nonsense"),
        (["nonsense"], "nonsense"),
        (["encode", photo, "--model", "no-such-model"], "no-such-model"),
        (["encode", photo, "--model", tmp_path], "no model"),
        (["encode", photo, "--device", "tpu", *tiny[:2]], "tpu"),
        (["encode", photo, "--max-pixels", "100", *tiny], "100"),
        (["decode", tok, "-o", tmp_path / "x.png", "--max-pixels", "100", *tiny], "--max-pixels"),
        (["decode", tok, "-o", tmp_path / "x.doc", *tiny], ".doc"),
        (["decode", tok, "-o", tmp_path / "x", "--format", "doc", *tiny], "doc"),
        (["decode", tok, "--format", "", *tiny], "format"),
        (["decode", tok, "-o", tmp_path / "x.png", "--format", "webp", *tiny], "x.png is to be .webp"),
        (["tokenize", tok, "-o", tmp_path / "x.npz", "--format", "safetensors", *tiny], "x.npz is to be .safetensors"),
        (["tokenize", tok, "-o", tmp_path / "x.tar", "--format", "npz", *tiny], "-o names a corpus"),
        (["decode", tok, "--format", "a/b", *tiny], "format"),
        (["tokenize", photo, "-o", tmp_path / "x.pt", *tiny], ".npz"),
        (["tokenize", photo, "-o", tmp_path / "x.npz", "--levels", "0", *tiny], "levels"),
        (["encode", photo, "--levels", "two", *tiny], "--levels"),
    ]
    for arguments, word in mistakes:
        assert_user_error(codec(*arguments), word)
    assert names(tmp_path) == ["photo.png"]


def test_a_damaged_model_is_one_line(codec: Codec, photo: Path, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "prior.safetensors"):
        broken = tmp_path / f"broken {name}"
        shutil.copytree(tiny_model, broken)
        (broken / name).write_bytes((tiny_model / name).read_bytes()[:100])
        assert_user_error(codec("encode", photo, "--model", broken), name)


def test_no_arguments_show_help(codec: Codec) -> None:
    done = codec()
    assert b"Usage: codec" in done.out + "\n".join(done.err).encode()
    assert done.code in (0, 2)


def test_version(codec: Codec) -> None:
    from tokodec import __version__

    done = codec("--version")
    assert (done.code, done.out) == (0, f"tokodec {__version__}, format 1\n".encode())


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (RuntimeError("two\nlines"), 1, "internal error, please report it: RuntimeError: two lines"),
        (MemoryError(), 2, "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "out of memory"),
        (RuntimeError("shapes differ"), 1, "internal error"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_failures_of_ours_are_one_line_and_leave_nothing_behind(
    error: BaseException, code: int, word: str, codec: Codec, tiny: list[str], photo: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("tokodec.codec.image.levels.build_file", fail)
    done = codec("encode", photo, *tiny)
    assert (done.code, done.out) == (code, b"")
    assert len(done.err) == 1
    assert word in done.err[0]
    assert names(photo.parent) == ["photo.png"]
    photo.with_suffix(".tok").write_bytes(b"before")
    assert codec("encode", photo, "--force", *tiny).code == code
    assert photo.with_suffix(".tok").read_bytes() == b"before"
    assert names(photo.parent) == ["photo.png", "photo.tok"]


def test_a_disk_that_refuses_in_the_middle(
    codec: Codec, tiny: list[str], photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokodec.codec.image import format as image_format

    def half(picture: object, file: io.BufferedWriter, *_: object) -> list[str]:
        file.write(b"half a picture")
        raise OSError(28, "No space left on device")

    codec("encode", photo, *tiny)
    monkeypatch.setattr(image_format, "write_image", half)
    done = codec("decode", photo.with_suffix(".tok"), "-o", photo.parent / "x.png", *tiny)
    assert done.code != 0
    assert len(done.err) == 1
    assert names(photo.parent) == ["photo.png", "photo.tok"]


def test_debug_shows_the_traceback(codec: Codec, tmp_path: Path) -> None:
    done = codec("--debug", "info", tmp_path / "none.tok")
    assert done.code == 2
    assert done.err[0].startswith("Traceback")
    assert done.err[-1].startswith("codec: cannot read")


# --------------------------------------------------------------------------------------- pictures of all kinds


@pytest.mark.parametrize(
    ("name", "told"), [("x.jpg", "the end of the file is missing"), ("x.tif", "decoded as far as it goes")]
)
def test_damaged_picture_is_encoded_and_told(
    name: str, told: str, codec: Codec, tiny: list[str], tmp_path: Path
) -> None:
    source = tmp_path / name
    Image.fromarray(samples(64, 80)).save(source, quality=90)
    source.write_bytes(source.read_bytes()[:-2])
    done = codec("encode", source, "--quiet", *tiny)
    assert (done.code, len(done.err)) == (3, 1)
    assert told in done.err[0]
    assert codec("decode", tmp_path / "x.tok", *tiny).code == 0
    (tmp_path / "x.tok").unlink()
    assert_user_error(codec("encode", source, "--strict", *tiny), name, told)
    done = codec("tokenize", source, "--quiet", *tiny)
    assert (done.code, len(done.err)) == (3, 1)
    assert names(tmp_path) == sorted([name, "x.npz", "x.png"])


def test_noise_under_transparent_pixels_costs_nothing(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    pixels = np.full((96, 96, 4), 90, np.uint8)
    pixels[..., 3] = 0
    pixels[30:60, 30:60] = samples(30, 30, 4, seed=1)
    pixels[30:60, 30:60, 3] = 255
    noisy = pixels.copy()
    noisy[..., :3] = np.where(pixels[..., 3:] == 0, samples(96, 96), pixels[..., :3])
    for name, picture in (("plain", pixels), ("noisy", noisy)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        assert codec("encode", tmp_path / f"{name}.png", *tiny).code == 0
    assert (tmp_path / "plain.tok").read_bytes() == (tmp_path / "noisy.tok").read_bytes()
    back, said = there_and_back(codec, tiny, tmp_path / "noisy.png", "-f")
    assert np.array_equal(np.asarray(back)[..., 3], pixels[..., 3])
    assert any("colours under fully transparent pixels not kept" in line for line in said)


def test_xmp_goes_there_and_back(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">rights</x:xmpmeta>'
    Image.fromarray(samples()).save(tmp_path / "x.jpg", xmp=packet)
    back, said = there_and_back(codec, tiny, tmp_path / "x.jpg")
    assert back.info["xmp"] == packet
    assert said == []
    back, said = there_and_back(codec, tiny, tmp_path / "x.jpg", "--no-metadata", "-f")
    assert "xmp" not in back.info
    assert [line.split(": ", 2)[2] for line in said] == ["XMP left out as asked"]


def test_folders_below_and_names_that_meet(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    for name in ("in/IMG_1.png", "in/IMG_1.bmp", "in/deep/IMG_1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(samples(20, 20)).save(tmp_path / name)
    done = codec("encode", tmp_path / "in", "-o", tmp_path / "out", "--recursive", "--quiet", *tiny)
    assert (done.code, done.err) == (0, [])
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.tok"))
    assert made == ["IMG_1.bmp.tok", "IMG_1.png.tok", "deep/IMG_1.tok"]
    done = codec("decode", tmp_path / "out", "-o", tmp_path / "back", "-r", "--quiet", *tiny)
    assert (done.code, done.err) == (0, [])
    made = sorted(str(path.relative_to(tmp_path / "back")) for path in (tmp_path / "back").rglob("*.png"))
    assert made == ["IMG_1.bmp.png", "IMG_1.png.png", "deep/IMG_1.png"]


def test_heic_in_a_folder_is_not_forgotten(
    codec: Codec, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokodec.codec.media.read_image._knows_heif", lambda: False)
    folder = make_folder(tmp_path / "in")
    (folder / "IMG_2.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (folder / "notes.txt").unlink()
    done = codec("encode", folder, "-o", tmp_path / "out", "--quiet", *tiny)
    assert done.code == 2
    assert "IMG_2.HEIC is a HEIC picture, which the package pillow-heif reads" in done.err[0]
    assert names(tmp_path / "out") == ["0.tok", "1.tok", "2.tok"]


def test_outputs_that_cannot_be_written_do_not_stop_a_batch(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in")
    (tmp_path / "out" / "1.tok").mkdir(parents=True)
    done = codec("encode", folder, "-o", tmp_path / "out", "--quiet", *tiny)
    assert done.code == 2
    assert any("1.tok: it is a folder" in line for line in done.err)
    assert done.err[-1] == "codec: 1 of 3 files failed"
    assert names(tmp_path / "out") == ["0.tok", "1.tok", "2.tok"]


def test_own_input_is_never_overwritten(codec: Codec, tiny: list[str], photo: Path, monkeypatch: Any) -> None:
    before = photo.read_bytes()
    monkeypatch.chdir(photo.parent)
    for command in ("encode", "tokenize", "decode", "detokenize"):
        for out in ("./photo.png", str(photo), "../" + photo.parent.name + "/photo.png"):
            done = codec(command, "photo.png", "-o", out, "-f", *tiny)
            assert_user_error(done, "photo.png would be overwritten by its own output")
    with pytest.raises(UsageError, match="would be overwritten"):
        encode_file("photo.png", "./photo.png", model=tiny[1], force=True)
    assert photo.read_bytes() == before


def test_names_with_line_breaks_are_one_line(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    source = tmp_path / "a\nb\x1b[2J.png"
    Image.fromarray(samples(20, 20)).save(source)
    done = codec("encode", source, "-o", str(tmp_path / "new") + "/", *tiny)
    assert (done.code, len(done.err)) == (0, 1)
    assert r"a\nb\x1b[2J.png -> " in done.err[0]
    assert names(tmp_path / "new") == ["a\nb\x1b[2J.tok"]
    source.write_bytes(b"no picture")
    assert_user_error(codec("encode", source, "-f", *tiny), r"a\nb\x1b[2J.png is not a picture")
