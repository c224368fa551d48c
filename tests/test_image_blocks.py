"""`image-blocks` goes through files and tokens."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokodec.codec.cli import run
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.tokens import detokenize_file, tokenize_file
from tokodec.tokenizers.image.blocks import ImageBlocks


def test_files_and_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tmp_path / "image-blocks")
    ImageBlocks().save_pretrained(model)
    coarse = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    picture = Image.fromarray(coarse).resize((83, 70), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "a.png")
    x = np.asarray(picture).astype(float)
    for levels in (1, 2):
        encode_file(tmp_path / "a.png", tmp_path / "a.tok", model=model, levels=levels, force=True)
        assert run(["info", str(tmp_path / "a.tok"), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["layers"] == levels
        error = decode_file(tmp_path / "a.tok", model=model).picture.pixels - x
        blocks = error[:64, :80].reshape(8, 8, 10, 8, 3).mean((1, 3))
        assert np.abs(blocks).max() <= 255 / (10 if levels == 1 else 30) + 1.5
    codes = tokenize_file(tmp_path / "a.png", tmp_path / "a.npz", model=model).tokens.codes
    assert codes.shape == (1, 2, 9, 11)
    back = detokenize_file(tmp_path / "a.npz", model=model)
    assert np.array_equal(back.pixels, decode_file(tmp_path / "a.tok", model=model).picture.pixels)
