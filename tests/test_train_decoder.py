"""A trainer of the synthesis net alone: it gets better, and the codes stay."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tokodec
from tokodec.train import decoder


@pytest.mark.usefixtures("_trains")
def test_one_command(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(data / f"{i}.png")
    words = ["--data", str(data), "--resume", str(tiny_model), "--out", str(out), "--minutes", "0.1"]
    monkeypatch.setattr(sys, "argv", ["decoder", *words, "--set", "optim.lr=1e-2"])
    decoder.main()
    told = json.loads((out / "training.json").read_text())
    assert told["steps"] > 3
    assert told["holdout"][0]["psnr"] > told["history"][0]["rows"][0]["psnr"] + 0.5
    x = torch.rand(1, 3, 64, 64)
    before, after = tokodec.load(str(tiny_model), "cpu"), tokodec.load(str(out), "cpu")
    same = before.encode(x).codes == after.encode(x).codes
    assert same[:, 0].all()  # all but what rounding the weights once more changes
    assert same.float().mean() > 0.8
