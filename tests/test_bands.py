"""The prior of bands codes pictures, named by its row and its file alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokodec.codec.cli import run
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.tokens import tokenize_file
from tokodec.entropy.bands import BandsPrior


def test_a_file(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / tiny_model.name
    shutil.copytree(tiny_model, folder)
    x = np.zeros((160, 96, 3), dtype=np.uint8)
    x[:50] = (40, 90, 230)
    x[100:] = np.random.default_rng(0).integers(0, 256, (60, 96, 3))
    Image.fromarray(x).save(tmp_path / "a.png")
    codes = tokenize_file(tmp_path / "a.png", model=str(folder)).tokens.codes[0].numpy()
    prior = BandsPrior.from_codes([codes], (64, 32, 16))
    prior.save_pretrained(folder)
    before = encode_file(tmp_path / "a.png", model=str(folder), prior="static").data
    encode_file(tmp_path / "a.png", tmp_path / "a.tok", model=str(folder), prior="bands")
    assert run(["info", str(tmp_path / "a.tok"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["prior"] == "bands"
    assert sum(told["layer_bytes"]) * 8 == pytest.approx(prior.bits(codes).sum(), abs=3 * 64)
    assert len((tmp_path / "a.tok").read_bytes()) < len(before)
    (tmp_path / "static.tok").write_bytes(before)
    pixels = [decode_file(tmp_path / n, model=str(folder)).picture.pixels for n in ("a.tok", "static.tok")]
    assert np.array_equal(*pixels)
