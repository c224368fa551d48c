"""`codec demo`: the table and the picture show what the files decode to."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from rich.console import Console

from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import decode_file
from tokodec.codec.demo import CELL, FONT, GAP, demo_sounds, heard, run_demo
from tokodec.codec.errors import ModelError, UsageError
from tokodec.codec.media.audio import read_audio
from tokodec.codec.metrics.spectra import mel_distance
from tokodec.entropy.static import StaticPrior
from tokodec.tokenizers.image.grid import ImageGrid, ImageGridConfig

HEAD = GAP + 2 * (FONT + 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = ImageGridConfig(
        channels=(8, 8, 8), analysis_blocks=(1, 1, 1), synthesis_blocks=(1, 1, 1), dim=4, codebook_sizes=(16, 8, 8)
    )
    ImageGrid(config).save_pretrained(folder)
    StaticPrior.from_counts([np.zeros(n) for n in config.codebook_sizes]).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (172, 600, 3), dtype=np.uint8)).save(folder / "colour.png")
    Image.fromarray(rng.integers(0, 256, (33, 50), dtype=np.uint8)).save(folder / "gray.png")
    (folder / "README.md").write_text("no picture")
    return folder


def table_rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if re.match(r" *\S+\.png +\d", line)]


def test_table_and_pictures_are_those_of_the_files(
    model: str, samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("ssimulacra2", "pytorch_msssim", "efficientnet_lite_pytorch", "scipy"):
        monkeypatch.setitem(sys.modules, package, None)  # runtime dependencies are enough
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "new" / "out"
    run_demo(out, "cpu", model=model, samples=samples)
    text = capsys.readouterr().out
    names = [f"{stem}-{n}.tok" for stem in ("colour", "gray") for n in (1, 2, 3)]
    sheets = ["colour-side-by-side.png", "gray-side-by-side.png"]
    assert sorted(p.name for p in out.iterdir()) == sorted(names + sheets)
    for name in sheets:
        assert f"look at {out / name}" in text

    rows = table_rows(text)
    nets = ("faithful", "sharp")
    expected = [(name, str(n), net) for name in ("colour.png", "gray.png") for n in (1, 2, 3) for net in nets]
    assert [tuple(row[:3]) for row in rows] == expected
    for sample, levels, synthesis, size, bpp, psnr, similarity, encode_s, decode_s in rows:
        tok = out / f"{Path(sample).stem}-{levels}.tok"
        assert int(size) == tok.stat().st_size
        assert read_tok(tok.read_bytes()).header.layers == int(levels)
        x = np.asarray(Image.open(samples / sample))
        assert float(bpp) == pytest.approx(8 * tok.stat().st_size / (x.shape[0] * x.shape[1]), abs=1e-4)
        x_hat = decode_file(tok, model=model, synthesis=synthesis, device="cpu").picture.pixels.reshape(x.shape)
        mse = np.square(x.astype(float) - x_hat).mean()
        assert float(psnr) == pytest.approx(10 * np.log10(255**2 / mse), abs=0.006)
        assert (similarity == "-") == (sample == "gray.png")  # too small for MS-SSIM
        assert float(encode_s) >= 0
        assert float(decode_s) >= 0

    sheet = np.asarray(Image.open(out / sheets[0]))
    height, width = 172, 600
    x = np.asarray(Image.open(samples / "colour.png"))
    columns = [(None, ""), (1, "sharp"), (1, "faithful"), (3, "sharp"), (3, "faithful")]
    assert sheet.shape == (HEAD + 2 * (height + GAP), GAP + 5 * (width + GAP), 3)
    for i, (n, net) in enumerate(columns):
        tok = out / f"colour-{n}.tok"
        shown = x if n is None else decode_file(tok, model=model, synthesis=net, device="cpu").picture.pixels
        left = GAP + i * (width + GAP)
        assert (sheet[HEAD : HEAD + height, left : left + width] == shown).all()
        zoomed = sheet[HEAD + height + GAP :][:height, left : left + width]
        assert (zoomed == shown[43 : 43 + 86, 150 : 150 + 300].repeat(2, 0).repeat(2, 1)).all()
        assert (sheet[:HEAD, left : left + 200] == 0).any()  # the label


def test_large_pictures_are_shrunk_on_the_sheet(model: str, tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    Image.fromarray(np.zeros((20, 2 * CELL, 3), np.uint8)).save(tmp_path / "samples" / "long.png")
    run_demo(tmp_path, "cpu", model=model, samples=tmp_path / "samples")
    sheet = Image.open(tmp_path / "long-side-by-side.png")
    assert sheet.size == (GAP + 5 * (CELL + GAP), HEAD + 2 * (10 + GAP))


def test_sounds_are_those_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The released model: bytes and distances of the table are those of the files."""
    samples, out = tmp_path / "samples", tmp_path / "out"
    samples.mkdir()
    out.mkdir()
    tone = 0.2 * np.sin(np.arange(48000) / 20)
    soundfile.write(str(samples / "tone.wav"), np.stack([tone, tone], 1), 48000)
    demo_sounds([samples / "tone.wav"], out, "cpu", Console(width=80))
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("tone.wav")]
    assert [row[1] for row in rows] == ["1.5", "3", "6"]
    x = heard(read_audio(samples / "tone.wav", "tone"))
    assert len(x) == 24000
    for _, asked, kbps, size, distance, encode_s, decode_s in rows:
        tok = out / f"tone-{asked}kbps.tok"
        assert int(size) == tok.stat().st_size
        assert float(kbps) <= float(asked)
        decoded, rate = soundfile.read(str(tok.with_suffix(".wav")), dtype="float32", always_2d=True)
        assert decoded.shape == (48000, 2)
        assert rate == 48000
        x_hat = torch.from_numpy(heard(read_audio(tok.with_suffix(".wav"), "tone")))[None]
        assert float(distance) == pytest.approx(float(mel_distance(torch.from_numpy(x)[None], x_hat, 24000)), abs=1e-3)
        assert float(encode_s) >= 0
        assert float(decode_s) >= 0
    assert f"look at {out / 'tone-spectrograms.png'}" in text
    sheet = np.asarray(Image.open(out / "tone-spectrograms.png"))
    line = (sheet != 255).any(2).sum(1)
    assert sheet.shape[0] == GAP + 4 * (FONT + 6 + 256 + GAP)
    assert (line[GAP + FONT + 6 :][:256] >= 90).all()


def test_running_twice_replaces(model: str, samples: Path, tmp_path: Path) -> None:
    (samples / "colour.png").unlink()
    for _ in range(2):
        run_demo(tmp_path / "out", "cpu", model=model, samples=samples)
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_users_mistakes_are_one_line(model: str, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for error, match, out, folder, name, device in (
        (UsageError, "no sample pictures in", tmp_path / "out", tmp_path / "empty", model, "cpu"),
        (UsageError, "no sample pictures in", tmp_path / "out", tmp_path / "nowhere", model, "cpu"),
        (UsageError, "cannot make the folder", tmp_path / "file", samples, model, "cpu"),
        (UsageError, "unknown device", tmp_path / "out", samples, model, "abacus"),
        (ModelError, "no model", tmp_path / "out", samples, str(tmp_path / "none"), "cpu"),
    ):
        with pytest.raises(error, match=match) as caught:
            run_demo(out, device, model=name, samples=folder)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
