"""`codec encode --gray`: a picture without its colours, refused for what is no picture."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokodec.codec.cli import run
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file


def test_gray(tiny_model: Path, sound_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    Image.fromarray(x).save(tmp_path / "a.png")
    Image.fromarray(x).convert("L").save(tmp_path / "b.png")
    assert run(["encode", str(tmp_path / "a.png"), "-m", str(tiny_model), "--gray", "-o", str(tmp_path / "a.tok")]) == 0
    assert decode_file(tmp_path / "a.tok", model=str(tiny_model)).picture.pixels.shape == (40, 50, 1)
    assert encode_file(tmp_path / "b.png", model=str(tiny_model)).data == (tmp_path / "a.tok").read_bytes()
    import soundfile

    soundfile.write(tmp_path / "a.wav", np.zeros(2400), 24000)
    words = ["encode", str(tmp_path / "a.wav"), "-m", str(sound_model), "--gray", "-o", str(tmp_path / "s.tok")]
    assert run(words) == 2
    assert "gray is not an option of" in capsys.readouterr().err
