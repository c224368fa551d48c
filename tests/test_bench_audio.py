"""`codec bench audio`: Opus comes back in place, metrics know good from bad, and the tables say what the files are."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import nn

from tokodec.codec.bench import metrics as sound_metrics
from tokodec.codec.bench.audio import neural as sound_baselines
from tokodec.codec.bench.audio import page as audio_page
from tokodec.codec.bench.audio import peers
from tokodec.codec.bench.audio.bench import MEANS, bench_audio, compare_pairwise, row, speed
from tokodec.codec.bench.audio.ours import CHUNK, prepare_sound, run_nets, run_stream
from tokodec.codec.bench.audio.page import beats_text, losses
from tokodec.codec.bench.clips import SAMPLE_RATE as RATE
from tokodec.codec.bench.clips import Clip, kind_of, read_clip
from tokodec.codec.bench.contender import Coded, Timed
from tokodec.codec.bench.options import AudioOptions
from tokodec.codec.cli import run
from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import decode_file, file_tokens
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import MediaError, ModelError, TokodecError, UsageError
from tokodec.codec.media.audio import Sound, resample, write_audio
from tokodec.codec.metrics import spectrogram
from tokodec.codec.settings import Setting

SECONDS = 1.3
OPUS = peers.SOUND_PEERS["opus"]


def bench(folder: Path, out: Path, against: str, model: str, device: str = "cpu", **more: Any) -> dict[str, Any]:
    return bench_audio(AudioOptions(folder=folder, out=out, against=against, model=model, device=device, **more))


def encode_opus(x: np.ndarray, kbps: float) -> Coded:
    return OPUS.encode(Clip("x", "other", x, b""), Setting("kbps", kbps))


NAMES = ["music_b.flac", "speech_a.wav"]


def voice(seconds: float = SECONDS, seed: int = 0) -> np.ndarray:
    """Something like speech, ``[n]`` float32: syllables of a gliding pitch with many overtones, pauses between them."""
    t = np.arange(round(seconds * RATE)) / RATE
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * t)) / RATE
    tone = sum(np.sin(k * pitch) * np.exp(-(((k * 120 - 500) / 600) ** 2)) for k in range(1, 30))
    noise = np.random.default_rng(seed).standard_normal(len(t))
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * t), 0, None)
    return (0.1 * syllables * (tone + 0.2 * noise)).astype(np.float32)


def noisy(x: np.ndarray, level: float) -> np.ndarray:
    return x + level * np.random.default_rng(1).standard_normal(len(x)).astype(np.float32)


@pytest.fixture(scope="module")
def model(sound_model: Path) -> str:
    return str(sound_model)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    soundfile.write(folder / "speech_a.wav", voice(), RATE, "PCM_16")
    left = resample(voice(1.1, 3)[None], RATE, 44100)[0]
    soundfile.write(folder / "music_b.flac", np.stack([left, 0.5 * left], 1), 44100)  # stereo, another rate
    (folder / "sound_c.wav").write_bytes(b"RIFF not a sound")
    (folder / "notes.txt").write_text("not a sound either")
    return folder


@pytest.fixture(scope="module")
def out(model: str, sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "new" / "folder"
    bench(sounds, out, "opus", model, kbps="0.9,2", baselines="", metrics="mel,si-sdr,stoi")
    return out


@pytest.fixture(scope="module")
def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


# -------------------------------------------------------------------------------------------------------------- Opus


def lag(x: np.ndarray, x_hat: np.ndarray) -> int:
    """Samples that ``x_hat`` is late by, by cross-correlation over all lags."""
    n = 2 * max(len(x), len(x_hat))
    found = int(np.fft.irfft(np.fft.rfft(x_hat, n) * np.conj(np.fft.rfft(x, n)), n).argmax())
    return found - n if found > n // 2 else found


@pytest.mark.parametrize("kbps", OPUS.kbps)
def test_opus_comes_back_in_place_at_the_rate_asked_for(kbps: float) -> None:
    x = voice(3.0137)
    file = encode_opus(x, kbps)
    decoded = OPUS.decode(file)
    assert len(decoded) == 2 * len(x)  # neither pre-skip nor padding
    assert abs(lag(resample(x[None], RATE, 48000)[0], decoded)) <= peers.SHIFT // 2
    x_hat = OPUS.align(x, decoded)
    assert x_hat.shape == x.shape
    assert abs(lag(x, x_hat)) <= 1
    assert np.corrcoef(x, x_hat)[0, 1] > 0.8
    packets, whole = (8e-3 * size / (len(x) / RATE) for size in (file.size, len(file.files[0])))
    assert 0.55 * kbps < packets < 1.15 * kbps  # a variable rate: half of this sound is pauses
    assert packets + 0.3 < whole < packets + 1.6  # a short file's head weighs more than that of a long one
    assert file.files[0].startswith(b"OggS")


@pytest.mark.parametrize("late", [-16, -5, 0, 7, 16])
def test_alignment_undoes_a_delay(late: int) -> None:
    x = voice(0.5)
    fine = resample(x[None], RATE, 48000)[0]
    found = OPUS.align(x, np.roll(fine, late))
    assert np.abs(found - resample(fine[None], 48000, RATE)[0])[200:-200].max() < 1e-5
    assert lag(x, found) == 0
    far = OPUS.align(x, np.roll(fine, 60))
    assert lag(x, far) > 10  # more than the decoder's own delay is an error of the codec, and stays one


def test_opus_gets_better_with_rate() -> None:
    x = voice(1.5)
    low, high = (sound_metrics.si_sdr(x, OPUS.align(x, OPUS.decode(encode_opus(x, k)))) for k in (6, 24))
    assert low is not None
    assert high is not None
    assert high > low + 3


def test_opus_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("av.codecs_available", {"flac"})
    with pytest.raises(UsageError, match="this PyAV was built without libopus"):
        peers.find_sound_peers(["opus"])
    assert peers.find_sound_peers([]) == []


# ----------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    ("name", "function", "best"),
    [
        ("mel_distance", lambda x, y: -sound_metrics._spectral("mel_distance", x, y, RATE), 0.0),
        ("stft_distance", lambda x, y: -sound_metrics._spectral("stft_distance", x, y), 0.0),
        ("si_sdr", sound_metrics.si_sdr, 60.0),
        ("pesq", sound_metrics.pesq, 4.5),
        ("stoi", sound_metrics.stoi, 0.999),
        ("dnsmos", lambda x, y: sound_metrics.dnsmos(y), None),
    ],
)
def test_metrics_know_good_from_bad(
    name: str, function: Callable[[np.ndarray, np.ndarray], float], best: float | None
) -> None:
    x = voice()
    values = [function(x, noisy(x, level)) for level in (0, 0.01, 0.1)]
    assert best is None or values[0] >= best
    assert values[0] > values[1] > values[2]
    assert all(math.isfinite(value) for value in values)


def test_si_sdr_of_noise_by_hand() -> None:
    x = voice()
    noise = noisy(0 * x, 1.0)
    noise -= x * (x @ noise) / (x @ x)  # orthogonal, so that the ratio is that of the energies
    noise *= np.float32(0.1 * np.linalg.norm(x) / np.linalg.norm(noise))
    assert sound_metrics.si_sdr(x, x + noise) == pytest.approx(20, abs=0.01)
    assert sound_metrics.si_sdr(x, 3 * (x + noise)) == pytest.approx(20, abs=0.01)


def test_visqol_knows_good_from_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # compiling would take longer than the rest of this file
    sound_metrics._visqol.cache_clear()
    x = voice(0.9)
    speech = [sound_metrics.visqol(x, noisy(x, level), True) for level in (0, 0.01)]
    assert speech[0] == pytest.approx(5.0, abs=0.01)
    assert speech[1] is not None
    assert 1 < speech[1] < 4.7
    assert sound_metrics.visqol(x[:1200], x[:1200], True) is None  # shorter than a patch
    x = voice(1.2)
    audio = sound_metrics.visqol(x, x, False)
    assert audio == pytest.approx(4.732, abs=0.01)


def test_clips_too_short_or_silent_have_no_speech_scores() -> None:
    short, silent = voice(0.2), np.zeros(RATE, np.float32)
    for x in (short, short[:1], silent, voice(0.45)):  # the last is half a pause
        assert sound_metrics.stoi(x, x) is None
    assert sound_metrics.si_sdr(silent, short) is None
    assert sound_metrics.pesq(silent, silent) is None
    assert sound_metrics.pesq(short[:100], short[:100]) is None


def test_speech_metrics_are_for_speech_only() -> None:
    x = voice(0.7)
    metrics, notes = sound_metrics.choose_sound_metrics(["pesq", "mel"])
    assert notes == []
    assert [m.key for m in metrics] == ["mel_distance", "pesq"]
    speech, music = (sound_metrics.measure_sound(x, x, kind, metrics) for kind in ("speech", "music"))
    assert speech["pesq"] is not None
    assert music["pesq"] is None
    assert music["mel_distance"] == 0
    assert music["visqol"] is None
    with pytest.raises(ValueError, match="of one length"):
        sound_metrics.measure_sound(x, x[:-1], "music", metrics)


def test_a_missing_package_is_a_note_and_costs_its_metric_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pesq", "visqol", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    metrics, notes = sound_metrics.choose_sound_metrics(list(sound_metrics.SOUND_METRICS))
    assert [m.key for m in metrics] == ["mel_distance", "stft_distance", "stoi", "si_sdr"]
    assert notes == [
        f"no {title}: {package} is missing: pip install 'tokodec[bench]'"
        for title, package in (("ViSQOL", "visqol-python"), ("PESQ", "pesq"), ("DNSMOS", "onnxruntime"))
    ]


# --------------------------------------------------------------------------------------------------------- baselines


class Layer(nn.Module):
    """A network of `transformers` in outline: 320 samples a frame, four codebooks, weights with a norm of their own."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 4, 320, 320))

    def encode(self, x: torch.Tensor, bandwidth: float | None = None, n_quantizers: int | None = None) -> Any:
        assert bandwidth == 3.0 or n_quantizers == 4
        codes = self.layer(x).abs().long()  # [B, 4, t]
        return types.SimpleNamespace(audio_codes=codes[None] if bandwidth else codes)

    def decode(self, audio_codes: torch.Tensor, scales: Any = None) -> Any:
        x_hat = audio_codes.reshape(1, 4, -1)[:, :1].float().repeat_interleave(320, 2)
        return types.SimpleNamespace(audio_values=x_hat)


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("transformers")
    for name in ("Encodec", "Dac"):
        setattr(module, f"{name}Config", lambda **settings: settings)
        setattr(module, f"{name}Model", Layer)
    monkeypatch.setitem(sys.modules, "transformers", module)
    return module


@pytest.mark.parametrize("name", ["encodec", "dac"])
def test_baselines_code_and_fold_their_weights(transformers: types.ModuleType, name: str) -> None:
    x = voice(0.5)
    baseline = sound_baselines.load_sound_baseline(name, "cpu")
    assert not torch.nn.utils.parametrize.is_parametrized(baseline.net.layer)
    assert baseline.net.config == ({} if name == "encodec" else sound_baselines.DAC)
    made = baseline.encode(Clip("x", "other", x, b""), baseline.settings[0])
    assert made.size == 2 * 4 * (len(x) // 320)
    assert baseline.decode(made).shape == (len(x) // 320 * 320,)


def test_baselines_without_their_package_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert sound_baselines.find_sound_baselines(["dac", "encodec"]) == (
        [], ["no dac, encodec: transformers is missing: pip install 'tokodec[baselines]'"]
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"unknown baseline 'mimi': choose from encodec, dac"):
        sound_baselines.find_sound_baselines(["mimi"])


# ------------------------------------------------------------------------------------------------------------- clips


def test_kinds_come_from_names() -> None:
    assert [kind_of(name) for name in ("speech_a_b.wav", "music_1.flac", "rain.wav", "_x.wav")] == [
        "speech", "music", "other", "other",
    ]  # fmt: skip


def test_a_clip_is_mono_at_our_rate_with_16_bits(sounds: Path) -> None:
    clip = read_clip(sounds / "music_b.flac")
    assert (clip.kind, len(clip.x)) == ("music", round(1.1 * RATE))
    assert np.array_equal(clip.x * 32768, np.round(clip.x * 32768))
    mono = 0.75 * voice(1.1, 3)
    assert np.abs(clip.x - mono)[200:-200].max() < 0.01
    again, rate = soundfile.read(io.BytesIO(clip.wav), dtype="float32")
    assert rate == RATE
    assert np.array_equal(again, clip.x)
    assert len(read_clip(sounds / "music_b.flac", 0.5).x) == RATE // 2


# ----------------------------------------------------------------------------------------------------------- the run


def test_every_combination_has_its_row(rows: list[dict[str, str]]) -> None:
    expected = []
    for name in NAMES:
        kind = name.partition("_")[0]
        expected += [(name, kind, "tiny-sound", "curve", "0.9"), (name, kind, "tiny-sound", "curve", "2.0")]
        expected += [(name, kind, "tiny-sound", role, "2.0") for role in ("nets", "stream")]
        expected += [(name, kind, "opus", "curve", str(kbps)) for kbps in OPUS.kbps]
    assert [(r["clip"], r["kind"], r["codec"], r["role"], r["asked_kbps"]) for r in rows] == expected


def test_our_rows_are_our_files(rows: list[dict[str, str]], sounds: Path, model: str, tmp_path: Path) -> None:
    for r in rows:
        if (r["codec"], r["role"]) != ("tiny-sound", "curve"):
            continue
        clip = read_clip(sounds / r["clip"])
        wav, tok = tmp_path / "x.wav", tmp_path / "x.tok"
        wav.write_bytes(clip.wav)
        if r["reached"] == "True":
            encode_file(wav, tok, model=model, kbps=float(r["asked_kbps"]), device="cpu", force=True)
            assert float(r["kbps"]) <= float(r["asked_kbps"])
        else:
            encode_file(wav, tok, model=model, levels=1, device="cpu", force=True)
            assert float(r["kbps"]) > float(r["asked_kbps"])
        data = tok.read_bytes()
        assert int(r["bytes"]) == len(data)
        assert float(r["kbps"]) == float(r["file_kbps"]) == pytest.approx(8e-3 * len(data) / clip.seconds)
        codes = file_tokens(read_tok(data), model, "cpu")[0].codes
        counts = (codes[0] >= 0).sum(1).tolist()
        bits = sum(n * b for n, b in zip(counts, (5, 5, 4, 4), strict=False))
        assert float(r["saved"]) == pytest.approx(1 - 8 * len(data) / bits)
        assert float(r["levels"]) == pytest.approx(float((codes >= 0).sum()) / codes.shape[2])
        x_hat = decode_file(tok, model=model, device="cpu").sound.samples[0]
        assert float(r["si_sdr"]) == pytest.approx(sound_metrics.si_sdr(clip.x, x_hat), abs=1e-3)
        assert (r["stoi"] != "") == (r["kind"] == "speech")
        assert r["visqol"] == r["pesq"] == r["dnsmos"] == ""


def test_opus_rows_are_opus_files(rows: list[dict[str, str]], sounds: Path) -> None:
    found = [r for r in rows if r["codec"] == "opus"]
    assert len(found) == 2 * len(OPUS.kbps)
    for r in found:
        clip = read_clip(sounds / r["clip"])
        file = encode_opus(clip.x, float(r["asked_kbps"]))
        assert int(r["bytes"]) == len(file.files[0])
        assert float(r["kbps"]) == pytest.approx(8e-3 * file.size / clip.seconds)
        assert float(r["file_kbps"]) == pytest.approx(8e-3 * len(file.files[0]) / clip.seconds)
        assert r["saved"] == r["levels"] == r["reached"] == ""


def test_aggregates_are_means_of_the_rows(rows: list[dict[str, str]], report: dict[str, Any]) -> None:
    assert [(e["kind"], e["codec"], e["asked_kbps"], e["clips"]) for e in report["aggregates"]] == [
        (kind, codec, kbps, 1)
        for kind in ("music", "speech")
        for codec, rates in (("tiny-sound", (0.9, 2.0)), ("opus", OPUS.kbps))
        for kbps in rates
    ]
    for e in report["aggregates"]:
        (r,) = (r for r in rows if r["role"] == "curve" and (r["kind"], r["codec"], float(r["asked_kbps"])) == (
            e["kind"], e["codec"], e["asked_kbps"]))  # fmt: skip
        for key in MEANS:
            assert e[key] == (pytest.approx(float(r[key])) if r[key] else None), key


def test_report_says_where_it_comes_from(report: dict[str, Any]) -> None:
    assert (report["model"], report["clips"], report["kinds"]) == ("tiny-sound", NAMES, ["speech", "music"])
    assert report["metrics"] == ["mel_distance", "stoi", "si_sdr"]
    assert len(report["skipped"]) == 1
    assert "sound_c.wav" in report["skipped"][0]
    assert "application=audio" in report["peers"]["opus"]
    assert report["machine"]["torch_threads"] == 1
    assert report["versions"]["av"]


def test_every_codec_is_timed_and_weighed(report: dict[str, Any]) -> None:
    assert [(e["what"], e["ours"]) for e in report["speed"]] == [
        ("tiny-sound, files, 0.9 kbit/s", True), ("tiny-sound, files, 2 kbit/s", True),
        ("tiny-sound, nets alone, 2 kbit/s", True), ("tiny-sound, chunks of 80 ms", True), ("opus", False),
    ]  # fmt: skip
    for entry in report["speed"]:
        assert entry["encode"] > 0
        assert entry["decode"] > 0
        assert entry["total"] >= max(entry["encode"], entry["decode"])
        assert entry["total_cpu"] > 0
    assert report["memory"]["clip"] == NAMES[0]
    weighed = {e["codec"]: e for e in report["memory"]["codecs"]}
    assert list(weighed) == ["start-up", "tiny-sound", "opus"]
    assert all(1 < e["encode_mib"] < 4000 and e["gpu_mib"] is None for e in weighed.values())
    assert weighed["opus"]["decode_mib"] < weighed["tiny-sound"]["decode_mib"] - 50  # PyTorch is only where ours is


def test_page_needs_nothing_from_outside(out: Path, report: dict[str, Any]) -> None:
    html = (out / "index.html").read_text()
    assert not re.findall(r"""https?:|@import|<link|src="(?!data:)|url\((?!#)|fetch\(|import\(""", html)
    articles = re.findall(r"<article.*?</article>", html, re.DOTALL)
    assert [re.findall(r"<h3>(\S+)", text)[0] for text in articles] == NAMES[::-1]  # the first of each kind
    labels = ["original", "tiny-sound at 0.9", "tiny-sound at 2", *(f"Opus at {kbps:g}" for kbps in OPUS.kbps)]
    for text, seconds in zip(articles, (SECONDS, 1.1), strict=True):
        assert re.findall(r"<b>(.*?)</b>", text) == labels
        assert text.count("<audio controls") == text.count("data:audio/flac;base64,") == len(labels)
        assert text.count("data:image/png;base64,") == len(labels)
        (first, *_) = re.findall(r'data:audio/flac;base64,([^"]+)"', text)
        x, rate = soundfile.read(io.BytesIO(base64.b64decode(first)))
        assert (rate, len(x)) == (RATE, round(seconds * RATE))
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    data = json.loads(text)
    assert data["groups"] == report["kinds"]
    assert [(s["name"], s["kind"], len(s["points"])) for s in data["series"]] == [
        ("tiny-sound", "ours", 4), ("opus", "peer", 2 * len(OPUS.kbps)),
    ]  # fmt: skip
    for sentence in losses(report, "speech"):
        assert sentence in html


def test_a_spectrogram_shows_a_tone_where_it_is() -> None:
    t = np.arange(RATE) / RATE
    x = (0.5 * np.sin(2 * np.pi * 3000 * t) * (t > 0.5)).astype(np.float32)
    loudest = float(spectrogram.levels(x).max())
    image = np.asarray(spectrogram.spectrogram(x, loudest).convert("L")).astype(int)
    assert image.shape == (spectrogram.BANDS, 1 + RATE // spectrogram.HOP)
    row = spectrogram.BANDS - 1 - 3000 * spectrogram.BANDS // (RATE // 2)
    assert abs(int(image[:, 80].argmax()) - row) <= 1
    assert image[row, 80] > image[row, 20] + 100  # silence in the first half
    buffer = io.BytesIO()
    spectrogram.spectrogram(x, loudest).save(buffer, "PNG")
    assert Image.open(buffer).format == "PNG"


def test_pairwise_comparisons_and_what_is_said_of_them() -> None:
    """Ours at 3 is better than Opus at 6 by both metrics, than Opus at 8 by one, than Opus at 16 by none."""

    def entry(clip: str, codec: str, kbps: float, mel: float, sdr: float) -> dict[str, Any]:
        sound = Clip(clip, "speech", np.zeros(2 * RATE, np.float32), b"")
        times = Timed(None, 0.5, 0.25), Timed(None, 0.5, 0.5)
        return row(sound, codec, "curve", times, asked_kbps=kbps, mel_distance=mel, si_sdr=sdr)

    rows = []
    for i, clip in enumerate(("speech_1", "speech_2")):
        rows += [entry(clip, "ours", 3.0, 0.3, 5.0), entry(clip, "opus", 6.0, 0.4, 4.0)]
        rows += [entry(clip, "opus", 8.0, 0.25 + 0.2 * i, 9.0), entry(clip, "opus", 16.0, 0.1, 12.0)]
    table = [
        {"kind": "speech", "codec": codec, "ours": codec == "ours", "asked_kbps": kbps, "clips": 2,
         "mel_distance": mel, "si_sdr": sdr}
        for codec, kbps, mel, sdr in (
            ("ours", 3.0, 0.3, 5.0), ("opus", 6.0, 0.4, 4.0), ("opus", 8.0, 0.35, 9.0), ("opus", 16.0, 0.1, 12.0)
        )
    ]  # fmt: skip
    metrics, _ = sound_metrics.choose_sound_metrics(["mel", "si-sdr"])
    found = compare_pairwise(rows, table, metrics)
    assert len(found) == 6
    report = {"pairwise": found, "aggregates": table, "metrics": ["mel_distance", "si_sdr"]}
    assert beats_text(report, "speech", 3.0, "mel_distance") == "8"
    assert beats_text(report, "speech", 3.0, "si_sdr") == "6"
    assert losses(report, "speech") == [
        "speech, ours at 3 against Opus at 6 kbit/s: better by mel distance (2 of 2 clips), SI-SDR (2 of 2 clips); "
        "worse by none",
        "speech, ours at 3 against Opus at 8 kbit/s: better by mel distance (1 of 2 clips); "
        "worse by SI-SDR (0 of 2 clips)",
    ]  # fmt: skip
    assert speed(rows, "ours")[0] == {
        "what": "ours, files, 3 kbit/s", "ours": True, "encode": 0.25, "decode": 0.25, "total": 0.5, "total_cpu": 0.375,
    }  # fmt: skip


def test_a_stream_is_the_whole_in_chunks(model: str) -> None:
    coder = prepare_sound(model, "cpu", [3, 1.5, 3])
    assert [setting.value for setting in coder.settings] == [1.5, 3]
    x = voice(0.77)
    encoded, decoded = run_stream(x, coder, 2)
    frames = [part.shape[2] for part in encoded.result[:-1]]
    assert frames == [CHUNK // 320] * (len(x) // CHUNK) + [len(x) % CHUNK // 320]
    whole, sound = run_nets(x, coder, 2)
    assert torch.equal(torch.cat(encoded.result, 2), whole.result.codes)
    assert np.allclose(decoded.result[: len(x)], sound.result[0, 0].numpy(), atol=1e-5)
    assert min(t for part in (encoded, decoded, whole, sound) for t in (part.wall_s, part.cpu_s)) > 0


def test_the_table_is_there_when_a_run_ends_early(
    model: str, sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def interrupted(self: Any, clip: Clip, notes: list[str]) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(clip.name)
        return [], None

    monkeypatch.setattr("tokodec.codec.bench.run.rows_as_csv", lambda rows: f"{len(rows)} rows of {calls}")
    monkeypatch.setattr("tokodec.codec.bench.audio.bench.SoundBench.measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench(sounds, tmp_path / "out", "", model, metrics="mel", baselines="", kbps="1")
    assert (tmp_path / "out" / "results.csv").read_text() == "0 rows of ['music_b.flac']"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.csv"]


def test_users_mistakes_are_one_line(
    model: str, tiny_model: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.wav").write_bytes(b"RIFF nothing")
    (tmp_path / "file").write_text("")
    target = tmp_path / "out"
    good: dict[str, Any] = {
        "folder": sounds, "out": target, "against": "", "model": model, "metrics": "mel", "baselines": "",
        "memory": False,
    }  # fmt: skip
    cases: tuple[tuple[type[TokodecError], str, dict[str, Any]], ...] = (
        (UsageError, "unknown codec 'mp9'.*opus", {"against": "mp9"}),
        (UsageError, "no sounds in", {"folder": tmp_path / "empty"}),
        (UsageError, "is not a folder", {"folder": tmp_path / "nowhere"}),
        (UsageError, "at least 1", {"limit": 0}),
        (UsageError, "is a file", {"out": tmp_path / "file"}),
        (UsageError, "unknown device", {"device": "abacus"}),
        (UsageError, "is not a model for sounds", {"model": str(tiny_model)}),
        (ModelError, "no model", {"model": str(tmp_path / "none")}),
        (MediaError, "none of the sounds", {"folder": tmp_path / "bad"}),
        (UsageError, "unknown metric 'lpips'.*visqol, mel", {"metrics": "lpips"}),
        (UsageError, "at least one metric", {"metrics": ""}),
        (UsageError, "z.wav is not among the sounds", {"show": "z.wav"}),
        (UsageError, "rates are numbers above 0", {"kbps": "0"}),
        (UsageError, "rates are numbers above 0", {"kbps": ""}),
        (UsageError, "effort is 0 to 10, got 11", {"effort": 11}),
        (UsageError, "above 0 seconds", {"seconds": 0.0}),
    )
    for error, match, changed in cases:
        with pytest.raises(error, match=match) as caught:
            bench(**{**good, **changed})
        assert "\n" not in str(caught.value)
    assert not target.exists()
    capsys.readouterr()
    assert run(["bench", "audio", str(sounds), "--kbps", "1,x", "--out", str(target)]) == 2
    assert capsys.readouterr().err.strip() == "codec: rates are numbers with commas, got '1,x'"
    assert run(["bench", "audio", str(sounds), "--against", "mp3", "--out", str(target)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not target.exists()


def test_command_line_reaches_everything(
    model: str, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    command = ["bench", "audio", str(sounds), "--model", model, "--out", str(tmp_path), "--against", "", "--kbps", "2"]
    command += ["--metrics", "mel", "--no-memory", "--limit", "1", "--show", "music_b.flac", "--seconds", "0.5"]
    assert run(command) == 0
    printed = capsys.readouterr()
    assert "transformers is missing" in printed.err
    assert "1 of 1: music_b.flac, 0.5 s" in printed.err
    assert re.search(r"tiny-sound 2 +\d", printed.out)
    assert "note: no encodec, dac" in printed.out
    report = json.loads((tmp_path / "results.json").read_text())
    assert report["pairwise"] == []
    assert report["memory"] is None
    assert report["clips"] == ["music_b.flac"]
    assert '<article class="sounds">' in (tmp_path / "index.html").read_text()


def test_writing_a_sound_of_the_page_is_lossless_flac() -> None:
    x = Clip.of("a", voice(0.1)).x
    uri = audio_page.sound_uri(x)
    again, _ = soundfile.read(io.BytesIO(base64.b64decode(uri.partition(",")[2])), dtype="float32")
    assert np.array_equal(again, x)
    assert write_audio(Sound(x[None], RATE), io.BytesIO(), ".flac", "a") == []
