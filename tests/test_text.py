"""Texts go through files, tokens, corpora and the command line."""

import json
from pathlib import Path

import numpy as np
import pytest

from tokodec.codec.cli import run
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import UsageError
from tokodec.entropy.static import StaticPrior
from tokodec.tokenizers.text.bytes import TextBytes

TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\n" * 100


def test_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = str(tmp_path / "text-bytes"), TEXT.encode()
    TextBytes().save_pretrained(model)
    StaticPrior.from_counts([np.bincount(np.frombuffer(data, np.uint8), minlength=256)]).save_pretrained(model)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_bytes(data)
    src, tok, back = (str(tmp_path / name) for name in ("in/a.txt", "a.tok", "b.txt"))
    assert run(["encode", src, "-m", model, "-o", tok]) == 0
    assert run(["decode", tok, "-m", model, "-o", back]) == 0
    assert Path(back).read_bytes() == data
    capsys.readouterr()
    assert run(["info", tok, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["modality"], told["length"], told["segments"]) == ("text", len(data), 2)
    assert told["bits_per_byte"] < 5
    for name in ("a.npz", "corpus.tar", "corpus.bin"):
        what = src if name == "a.npz" else str(tmp_path / "in")
        assert run(["tokenize", what, "-m", model, "-o", str(tmp_path / name)]) == 0
    assert run(["detokenize", str(tmp_path / "a.npz"), "-m", model, "-o", str(tmp_path / "c.txt")]) == 0
    assert (tmp_path / "c.txt").read_bytes() == data
    assert run(["detokenize", str(tmp_path / "a.npz"), "-m", model, "-o", str(tmp_path / "c.tok")]) == 0
    assert (tmp_path / "c.tok").read_bytes() == Path(tok).read_bytes()
    bad = bytearray(Path(tok).read_bytes())
    bad[-40] ^= 1
    (tmp_path / "bad.tok").write_bytes(bad)
    lost = decode_file(tmp_path / "bad.tok", model=model)
    assert lost.problems[1:] == ["segment 1: missing or damaged; its characters are question marks"]
    assert lost.media.encode()[:4000] == data[:4000]
    with pytest.raises(UsageError, match="levels does not set the rate of text-bytes: nothing does"):
        encode_file(src, model=model, levels=1)
