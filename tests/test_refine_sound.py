"""Codes of sounds refined by descent: what they are compared with, that they are better, and rates that hold."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tokodec.codec.audio import encode as sounds
from tokodec.codec.audio import refine as refine_sound
from tokodec.codec.audio.encode import Search, SoundTokens, analyse_samples
from tokodec.codec.audio.refine import UNHEARD, sound_distance
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.media.audio import AudioReader
from tokodec.codec.options import EFFORTS
from tokodec.tokenizers.audio.grvq import FRAME, RATE, AudioGRVQ
from tokodec.tokenizers.tokens import Tokens

GOLDEN = Path(__file__).resolve().parent / "golden" / "sound"


def model() -> AudioGRVQ:
    return AudioGRVQ.from_pretrained(GOLDEN).eval()


def clip(path: Path, samples: int, channels: int = 1) -> Path:
    """A file with ``samples`` of tones that come and go, and noise."""
    rng = np.random.default_rng(0)
    t = np.arange(samples)[:, None] / RATE
    tones = 0.2 * np.sin(2 * np.pi * 300 * (1 + np.arange(channels)) * t) * np.sin(9 * t) ** 2
    soundfile.write(path, tones + 0.03 * rng.normal(size=(samples, channels)), RATE)
    return path


def analysed(path: Path, search: Search | None) -> SoundTokens:
    with AudioReader(path, "x") as reader:
        found = analyse_samples(reader, model(), errors=True, search=search)
    assert found is not None
    return found


@pytest.mark.parametrize(("samples", "channels"), [(1, 1), (FRAME, 2), (30000, 1), (30001, 2)])
def test_no_step_changes_no_code(samples: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "BLOCK_SECONDS", 40 * FRAME / 24000)
    path = clip(tmp_path / "x.wav", samples, channels)
    plain, refined = analysed(path, Search(4)), analysed(path, Search(4, n_steps=0))
    np.testing.assert_array_equal(refined.codes, plain.codes)
    np.testing.assert_array_equal(refined.errors, plain.errors)


def test_what_is_compared_is_what_a_decoder_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block, each after those before it, beside the samples that it stands for."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def noted(x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        seen.append((x.clone(), x_hat.detach().clone()))
        return sound_distance(x, x_hat)

    monkeypatch.setattr(sounds, "BLOCK_SECONDS", 40 * FRAME / 24000)
    monkeypatch.setattr(refine_sound, "sound_distance", noted)
    path = clip(tmp_path / "x.wav", 100 * FRAME)
    tokenizer = model()
    codes = torch.from_numpy(analysed(path, Search(len(tokenizer.codebook_sizes), n_steps=0)).codes.astype(np.int64))
    x_hat = tokenizer.decode(Tokens(codes, tokenizer.spec((100 * FRAME,))))[0, 0]
    x = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
    begin = 0
    assert len(seen) > 2
    for number, (a, b) in enumerate(seen):
        n = a.shape[1]
        torch.testing.assert_close(a[0], x[begin : begin + n])
        torch.testing.assert_close(b[0], x_hat[begin : begin + n], atol=1e-4, rtol=0, msg=f"block {number}")
        begin += n + UNHEARD * FRAME
    assert begin == 100 * FRAME


def test_refined_sounds_are_nearer(tmp_path: Path) -> None:
    path = clip(tmp_path / "x.wav", 20000, 2)
    x = torch.from_numpy(soundfile.read(path, dtype="float32")[0].T.copy())

    def distance(effort: int) -> float:
        data = encode_file(path, model=str(GOLDEN), effort=effort, device="cpu").data
        decoded = decode_file(io.BytesIO(data), model=str(GOLDEN), device="cpu").sound.samples
        return float(sound_distance(x, torch.from_numpy(decoded)).sum())

    plain, refined = distance(0), distance(2)
    assert refined < 0.99 * plain


def test_a_rate_holds_with_effort(tmp_path: Path) -> None:
    path = clip(tmp_path / "x.wav", 60000)
    plain = encode_file(path, model=str(GOLDEN), kbps=2, device="cpu").data
    found = encode_file(path, model=str(GOLDEN), kbps=2, effort=1, device="cpu").data
    assert found != plain
    assert len(found) <= 2 * 125 * 60000 / RATE


def test_levels_that_are_compared() -> None:
    assert Search(10).seen(1, 5.0) == 10
    assert Search(10, kbps=3.0).seen(1, None) == 5
    assert Search(10, kbps=3.0).seen(2, 5.0) == 2
    assert Search(10, kbps=0.1).seen(8, 5.0) == 1
    assert Search(10, size=3750).seen(1, 10.0) == 5
    assert Search(10, size=3750).seen(1, None) == 10  # of a pipe, whose length nobody knows
    assert EFFORTS[0] == 0
