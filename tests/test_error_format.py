"""Files whose segments have as many levels as their error asks for."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import UsageError
from tokodec.codec.tokens import detokenize_file, tokenize_file
from tokodec.tokenizers import registry

TOY = Path(__file__).resolve().parent / "toy"


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "error_toy.py").write_text(
        "from toy_tokenizer import BlockColours\n\n\nclass ErrorColours(BlockColours):\n    rate_control = 'error'\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(TOY), str(tmp_path)])
    monkeypatch.setattr(registry, "_KINDS", {**registry.tokenizer_kinds()})
    registry.register_tokenizer("ErrorColours", registry.TokenizerKind("error_toy", "image", "error"))
    from error_toy import ErrorColours

    model = str(tmp_path / "m")
    ErrorColours(name="error-colours").save_pretrained(model)
    x = np.full((64, 1100, 3), 128, dtype=np.uint8)
    x[:, 1024:] = np.random.default_rng(0).integers(0, 256, (64, 76, 3))
    Image.fromarray(x).save(tmp_path / "a.png")
    sizes = []
    for quality in (1, 60):
        done = encode_file(tmp_path / "a.png", tmp_path / "a.tok", model=model, quality=quality, force=True)
        sizes.append(len(done.data))
        picture = decode_file(tmp_path / "a.tok", model=model).picture
    tokens = tokenize_file(tmp_path / "a.tok", tmp_path / "a.npz", model=model).tokens
    held = (tokens.codes >= 0).sum(1)[0]
    assert held[:, :128].unique().tolist() == [1]  # gray is exact with one
    assert held[:, 128:].unique().tolist() == [2]
    assert sizes[0] < sizes[1]
    assert np.array_equal(detokenize_file(tmp_path / "a.npz", model=model).pixels, picture.pixels)
    detokenize_file(tmp_path / "a.npz", tmp_path / "b.tok", model=model)
    assert (tmp_path / "b.tok").read_bytes() == (tmp_path / "a.tok").read_bytes()
    with pytest.raises(UsageError, match="bpp does not set the rate"):
        encode_file(tmp_path / "a.png", model=model, bpp=1)
