"""Sounds as `.tok` files: golden files, rates, seeking, damage, and what users do wrong."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import tokodec
from tokodec.codec import cli
from tokodec.codec.allocation import allocate
from tokodec.codec.audio.decode import to_channels
from tokodec.codec.audio.encode import SoundFile, to_signals
from tokodec.codec.container.chunks import LAYR
from tokodec.codec.container.fields import AudioHeader, read_header, write_header
from tokodec.codec.container.read import modality_of, read_tok
from tokodec.codec.container.write import write_tok
from tokodec.codec.contract import Decoded
from tokodec.codec.decode import decode_file, file_tokens
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import (
    ChunkError,
    FormatError,
    HeaderError,
    LimitError,
    MediaError,
    ModelError,
    RateError,
    TruncatedError,
    UsageError,
)
from tokodec.codec.media.audio import Samples, Sound, read_audio, write_audio
from tokodec.codec.models import load_model
from tokodec.tokenizers.audio.grvq import AudioGRVQ

GOLDEN = Path(__file__).resolve().parent / "golden" / "sound"
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text())
RATE, SECONDS = 24000, 2.0  # of a segment
HEADER = AudioHeader("m", "0" * 16, "1" * 16, 1, 100_000, 44100, 2, 2, 16, 24000, 320, 150)


def sound(samples: int, channels: int = 1, rate: int = RATE, seed: int = 0) -> Samples:
    """``[channels, samples]`` of tones and noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / rate
    pitch = 300 * (1 + np.arange(channels))[:, None]
    x = 0.2 * np.sin(2 * np.pi * pitch * t) + 0.05 * rng.normal(size=(channels, samples))
    found: Samples = x.astype(np.float32)
    return found


def save(path: Path, x: Samples, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, x.T, rate, subtype=subtype)
    return path


def decode(data: bytes, **options: Any) -> Decoded:
    return decode_file(io.BytesIO(data), model=str(GOLDEN), device="cpu", **options)


def encode(path: Path, **options: Any) -> bytes:
    return encode_file(path, model=str(GOLDEN), device="cpu", **options).data


def run(*arguments: object) -> int:
    return cli.run([str(a) for a in arguments])


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A stereo file of eleven seconds at 44.1 kHz: six segments."""
    folder = tmp_path_factory.mktemp("long")
    return encode(save(folder / "long.wav", sound(44100 * 11, 2, 44100), 44100))


# -------------------------------------------------------------------------------------------------------- golden files


def test_every_golden_file_has_its_expectation() -> None:
    assert {path.stem for path in GOLDEN.glob("*.tok")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_codes(name: str) -> None:
    tok = read_tok((GOLDEN / f"{name}.tok").read_bytes())
    tokens, _ = file_tokens(tok, str(GOLDEN), "cpu")
    assert (tok.problems, tok.complete) == ([], True)
    assert list(tokens.codes.shape) == EXPECTED[name]["shape"]
    assert hashlib.sha256(tokens.codes.numpy().astype("<i4").tobytes()).hexdigest()[:32] == EXPECTED[name]["codes"]


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_codes_give_the_same_bytes(name: str) -> None:
    data = (GOLDEN / f"{name}.tok").read_bytes()
    assert len(data) == EXPECTED[name]["bytes"]
    tok = read_tok(data)
    tokens, model = file_tokens(tok, str(GOLDEN), "cpu")
    row = []
    for segment in range(tok.sound.n_segments):
        begin, end = tok.sound.segment_span(segment)
        codes = tokens.codes[:, :, begin:end].numpy()
        levels = (codes >= 0).all(axis=2).sum(1)
        parts = [own[:k] for own, k in zip(codes, levels, strict=True)]
        row.append(bytes(levels.tolist()) + model.prior.compress_joint(parts))
    assert write_tok(tok.sound, [row]) == data


@pytest.mark.parametrize("name", EXPECTED)
def test_golden_samples(name: str) -> None:
    """Networks may round differently on another machine."""
    heard = decode((GOLDEN / f"{name}.tok").read_bytes()).sound
    assert list(heard.samples.shape) == EXPECTED[name]["samples"]
    assert heard.sample_rate == EXPECTED[name]["sample_rate"]
    found = heard.samples[:, :: max(1, heard.samples.shape[1] // 8)].ravel()
    assert np.allclose(found, EXPECTED[name]["heard"], atol=1e-4)


# ------------------------------------------------------------------------------------------------------------ the file


def test_header_comes_back_and_is_checked() -> None:
    assert read_header(write_header(HEADER)) == HEADER
    assert HEADER.coded_samples == -(-100_000 * 24000 // 44100)
    assert HEADER.grid == (171,)
    assert (HEADER.n_segments, HEADER.segment_span(1)) == (2, (150, 171))
    values = vars(HEADER)
    wrong = {
        "samples": 0, "sample_rate": 999, "channels": 9, "signals": 3, "bit_depth": 12, "coded_rate": 0, "stride": 0,
        "segment": 1025, "layers": 2,
    }  # fmt: skip
    for name, value in wrong.items():
        with pytest.raises(HeaderError, match=name):
            AudioHeader(**{**values, name: value})


def test_positions_of_channels_come_back_and_are_checked(tmp_path: Path) -> None:
    """An optional field at the end of the header: files without it are as they were."""
    plain = write_header(HEADER)
    for mask in (0x3, 0x30, 0x201):
        header = replace(HEADER, layout=mask)
        assert write_header(header) == plain + mask.to_bytes(4, "little")
        assert read_header(write_header(header)) == header
    assert read_header(plain).layout == 0  # type: ignore[union-attr]
    for mask in (0x1, 0x7, 1 << 18):
        with pytest.raises(HeaderError, match="layout"):
            replace(HEADER, layout=mask)
    # 5.1 in FLAC with side channels, through a file and back into every format
    x: Samples = (sound(5000, 6) * np.arange(1, 7)[:, None] / 6).astype(np.float32)
    with (tmp_path / "a.flac").open("wb") as file:
        write_audio(Sound(x, RATE, layout=0x60F), file, ".flac", "a")
    data = encode(tmp_path / "a.flac")
    assert read_tok(data).sound.layout == 0x60F
    assert decode(data).sound.layout == 0x60F
    for suffix in (".wav", ".flac"):
        decode_file(io.BytesIO(data), tmp_path / f"b{suffix}", model=str(GOLDEN))
        found = read_audio(tmp_path / f"b{suffix}", "b")
        assert (found.layout, found.samples.shape) == (0x60F, (6, 5000))
        assert np.abs(found.samples - decode(data).sound.samples).max() < 2**-15
    data = (tmp_path / "b.wav").read_bytes()
    form = data[data.index(b"fmt ") + 8 :]
    assert form[:2] == b"\xfe\xff"  # WAVE_FORMAT_EXTENSIBLE
    assert form[20:24] == b"\x0f\x06\0\0"


def test_what_a_file_holds_shows_at_its_start(tiny_model: Path) -> None:
    assert modality_of((GOLDEN / "mono.tok").read_bytes()[:18]) == 2
    assert modality_of((GOLDEN.parent / "gray.tok").read_bytes()[:18]) == 1
    for start in (b"", b"RIFF", (GOLDEN / "mono.tok").read_bytes()[:17]):
        assert modality_of(start) is None


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 96_000])
@pytest.mark.parametrize(("channels", "samples"), [(1, 1), (2, 319), (1, 9_999), (3, 5_000)])
def test_every_sample_comes_back(rate: int, channels: int, samples: int, tmp_path: Path) -> None:
    heard = decode(encode(save(tmp_path / "a.wav", sound(samples, channels, rate), rate), levels=1)).sound
    assert heard.samples.shape == (channels, samples)
    assert heard.sample_rate == rate
    assert bool(np.isfinite(heard.samples).all())


@pytest.mark.parametrize("kind", ["silence", "constant", "clipped", "loud"])
def test_extreme_sounds(kind: str, tmp_path: Path) -> None:
    x = {
        "silence": np.zeros((1, 3000)), "constant": np.ones((1, 3000)), "clipped": np.sign(sound(3000)),
        "loud": 50 * sound(3000),
    }[kind]  # fmt: skip
    heard = decode(encode(save(tmp_path / "a.wav", x.astype(np.float32), subtype="FLOAT"))).sound
    assert heard.samples.shape == (1, 3000)
    assert bool(np.isfinite(heard.samples).all())


def test_codes_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    """Block by block, through the file, and back: what the tokenizer makes of the whole sound."""
    x = sound(RATE * 12 + 5)
    data = encode(save(tmp_path / "a.wav", x, subtype="FLOAT"))
    tokens, model = file_tokens(read_tok(data), str(GOLDEN), "cpu")
    assert isinstance(model.tokenizer, AudioGRVQ)
    expected = model.tokenizer.encode(torch.from_numpy(x)[None])
    assert tokens.spec == expected.spec
    assert torch.equal(tokens.codes, expected.codes)
    heard = decode(data).sound.samples
    assert np.allclose(heard, model.tokenizer.decode(expected)[0].numpy(), atol=1e-5)


def test_channels_become_middle_and_side_and_come_back() -> None:
    x = sound(100, 2)
    signals = to_signals(x)
    assert np.allclose(signals, [(x[0] + x[1]) / 2, (x[0] - x[1]) / 2])
    assert np.allclose(to_channels(signals, 2), x, atol=1e-7)
    three = sound(100, 3)
    assert np.array_equal(to_channels(to_signals(three), 3), three)
    assert np.array_equal(to_channels(x[:1], 4), np.repeat(x[:1], 4, axis=0))


def test_channels_that_are_the_same_are_coded_once(tmp_path: Path) -> None:
    x = sound(50_000)
    one = encode(save(tmp_path / "one.wav", x))
    for channels in (2, 5):
        many = encode(save(tmp_path / "many.wav", np.repeat(x, channels, axis=0)))
        assert read_tok(many).sound.signals == 1
        assert len(many) == len(one)
        heard = decode(many).sound.samples
        assert np.array_equal(heard, np.repeat(decode(one).sound.samples, channels, axis=0))
    nearly = np.repeat(x, 2, axis=0)
    nearly[1, 40_000] += 0.1
    assert read_tok(encode(save(tmp_path / "nearly.wav", nearly))).sound.signals == 2


# ---------------------------------------------------------------------------------------------------------------- rate


def test_levels_are_a_dial(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", sound(RATE * 5))
    sizes = [len(encode(path, levels=n)) for n in range(1, 5)]
    assert sizes == sorted(set(sizes))
    assert len(encode(path)) == sizes[3]
    assert [len(encode(path, quality=q)) for q in (0, 30, 60, 100)] == sizes
    tokens, _ = file_tokens(read_tok(encode(path, levels=2)), str(GOLDEN), "cpu")
    assert tokens.codes.shape == (1, 2, 375)
    assert decode(encode(path), levels=2).sound.samples.shape == decode(encode(path)).sound.samples.shape


@pytest.mark.parametrize("channels", [1, 2])
def test_a_wanted_rate_is_met_from_below(channels: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", sound(RATE * 20, channels))
    least, most = len(encode(path, levels=1)), len(encode(path))
    for share in (0.05, 0.4, 0.8):
        size = round(least + share * (most - least))
        found = len(encode(path, size=size))
        assert 0.95 * size < found <= size
        kbps = 8e-3 * size / 20
        done = encode_file(path, model=str(GOLDEN), device="cpu", kbps=kbps)
        assert len(done.data) == found
        assert done.kbps == pytest.approx(8e-3 * found / 20)
        assert done.seconds == 20
    assert len(encode(path, size=10 * most)) == most
    with pytest.raises(RateError, match=rf"the smallest file takes {least} bytes \({8e-3 * least / 20:.2f} kbps\)"):
        encode(path, size=least - 1)


def test_levels_go_where_they_save_most() -> None:
    bits = np.full((3, 1, 3), 10.0)
    errors = np.array([[[9.0, 4, 3]], [[8.0, 7.5, 1]], [[3.0, 2, 1]]])
    assert allocate(bits, errors, 30).ravel().tolist() == [1, 1, 1]
    assert allocate(bits, errors, 45).ravel().tolist() == [2, 1, 1]
    assert allocate(bits, errors, 90).ravel().tolist() == [3, 3, 3]
    assert allocate(bits, errors, 0).ravel().tolist() == [1, 1, 1]
    assert allocate(bits[..., :1], errors[..., :1], 99).ravel().tolist() == [1, 1, 1]


def test_long_sounds_are_near_the_wanted_size_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour: what rounding adds to 1800 payloads is not foreseen, and must not cost the file its levels."""
    rng = np.random.default_rng(0)
    bits = rng.uniform(900, 1300, (1800, 1, 8))
    long = SoundFile.__new__(SoundFile)
    long.spans, long.shape = [(i, i + 1) for i in range(1800)], (1800, 1)
    errors = rng.uniform(1, 9, (1, 1, 1800)) * np.exp(-0.5 * np.arange(8))[None, :, None]
    long.tokens = SimpleNamespace(errors=errors)  # type: ignore[assignment]
    monkeypatch.setattr(long, "_bits", lambda begin, end: bits[begin])

    def build(levels: np.ndarray) -> bytes:
        payloads = np.take_along_axis(bits.cumsum(-1), (levels - 1)[..., None], -1)[..., 0]
        return bytes(int((20 + 4 * np.ceil((payloads + 30 * (levels % 3)) / 32)).sum()))

    monkeypatch.setattr(long, "build", build)
    for most in range(700_000, 1_500_000, 16_411):
        data, levels = long.within(most)
        assert 0.99 * most < len(data) <= most
        assert levels.min() >= 1


# ------------------------------------------------------------------------------------------------------- parts, damage


@pytest.mark.parametrize(("start", "end"), [(0, 1), (2.37, 2.5), (6.1, 9.75), (10.9, None), (None, 3.0), (0.001, 99)])
def test_a_part_is_that_of_the_whole(start: float | None, end: float | None, long: bytes) -> None:
    whole = decode(long).sound.samples
    part = decode(long, start=start, end=end).sound.samples
    first, last = round((start or 0) * 44100), min(round((end or 99) * 44100), whole.shape[1])
    assert part.shape == (2, last - first)
    assert np.allclose(part, whole[:, first:last], atol=1e-4)


@pytest.mark.parametrize("rate", [8000, 24_001, 48_000])
def test_a_part_at_any_rate(rate: int, tmp_path: Path) -> None:
    data = encode(save(tmp_path / "a.wav", sound(rate * 6, 1, rate), rate), levels=2)
    whole = decode(data).sound.samples
    part = decode(data, start=3.3, end=4.1).sound.samples
    assert np.allclose(part, whole[:, round(3.3 * rate) : round(4.1 * rate)], atol=1e-4)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (5, 5, "nothing lies between"),
        (11, None, "the sound has 11.00 s"),
        (-1, None, "got -1"),
        (None, float("nan"), "got nan"),
    ],
)
def test_a_part_that_is_none_is_refused(start: float | None, end: float | None, message: str, long: bytes) -> None:
    with pytest.raises(UsageError, match=message):
        decode(long, start=start, end=end)


def test_damage_costs_its_own_segment(long: bytes) -> None:
    whole, tok = decode(long).sound.samples, read_tok(long)
    place = tok.places[LAYR, 0, 2]
    broken = bytearray(long)
    broken[place + 20] ^= 1
    done = decode(bytes(broken))
    assert len(done.problems) == 2  # where, and what it costs
    assert "4.00 to 6.00 s are silent" in done.problems[-1]
    heard = done.sound.samples
    model = load_model(str(GOLDEN)).tokenizer
    assert isinstance(model, AudioGRVQ)
    edge, after = round(0.02 * 44100), round((model.reach * 320 / RATE + 0.1) * 44100)
    begin, end = 4 * 44100, 6 * 44100
    assert np.allclose(heard[:, : begin - edge], whole[:, : begin - edge], atol=1e-4)
    assert np.abs(heard[:, begin + edge : end - edge]).max() < 1e-3
    assert np.allclose(heard[:, end + after :], whole[:, end + after :], atol=1e-4)
    with pytest.raises(FormatError, match="damaged"):
        decode(bytes(broken), strict=True)


def test_every_flipped_byte_is_survived() -> None:
    data = (GOLDEN / "stereo.tok").read_bytes()
    intact = decode(data).sound.samples
    rng = np.random.default_rng(0)
    for at in rng.choice(len(data), 60, replace=False):
        broken = bytearray(data)
        broken[at] ^= 1 << rng.integers(8)
        try:
            done = decode(bytes(broken))
        except (FormatError, ModelError):
            continue
        assert done.problems
        assert done.sound.samples.shape == intact.shape


def test_a_payload_that_lies_is_damage() -> None:
    """Chunks whose checksums are right, but whose content is not what it should be."""
    data = (GOLDEN / "mono.tok").read_bytes()
    tok = read_tok(data)
    payload = tok.payload(LAYR, 0, 1)
    assert payload is not None
    row = [tok.payload(LAYR, 0, s) or b"" for s in range(tok.sound.n_segments)]
    changed = [byte + payload[1:] for byte in (b"\x00", b"\x09", b"\xff")]
    for wrong in (b"", *changed, payload[:-4], payload + b"abcd"):
        done = decode(write_tok(tok.sound, [[row[0], wrong, *row[2:]]]))
        assert any("2.00 to 4.00 s are silent" in problem for problem in done.problems)
        assert done.sound.samples.shape == tuple(EXPECTED["mono"]["samples"])


def test_a_file_that_is_cut_off_decodes_to_its_first_part(long: bytes) -> None:
    whole = decode(long).sound.samples
    tok = read_tok(long)
    cut = long[: tok.places[LAYR, 0, 3] + 7]
    done = decode(cut)
    assert any("cut off" in problem for problem in done.problems)
    n = round(5.9 * 44100)
    assert np.allclose(done.sound.samples[:, :n], whole[:, :n], atol=1e-4)
    assert done.sound.samples.shape == whole.shape
    with pytest.raises(TruncatedError):
        decode(long[: tok.places[LAYR, 0, 0] + 7])


def test_a_header_that_lies_is_refused(long: bytes) -> None:
    tok = read_tok(long)
    row = [tok.payload(LAYR, 0, s) or b"" for s in range(tok.sound.n_segments)]
    values = vars(tok.sound)

    def file(**changes: int) -> bytes:
        header = AudioHeader(**{**values, **changes})
        return write_tok(header, [(row * header.n_segments)[: header.n_segments]])

    with pytest.raises(ChunkError, match="coded rate or stride"):
        decode(file(stride=160))
    with pytest.raises(ChunkError, match="coded rate or stride"):
        decode(file(coded_rate=48000))
    with pytest.raises(LimitError, match="over the limit of 1000; see --max-samples"):
        decode(long, max_samples=1000)
    picture = (GOLDEN.parent / "gray.tok").read_bytes()
    with pytest.raises(ModelError, match="of kind image, tiny-sound is a model for audio"):
        decode(picture)
    with pytest.raises(ModelError, match="of kind audio, tiny is a model for image"):
        decode_file(io.BytesIO(long), model=str(GOLDEN.parent / "context"))
    with pytest.raises(UsageError, match="start is not an option of"):
        decode_file(io.BytesIO(picture), model=str(GOLDEN.parent / "tiny"), start=1)
    with pytest.raises(UsageError, match="synthesis is not an option of"):
        decode(long, synthesis="sharp")
    with pytest.raises(UsageError, match="sound is not an option of"):
        decode(long, sound=False)


# --------------------------------------------------------------------------------------------------------- python, cli


def test_sounds_have_no_samples_or_no_sense(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"empty\.wav: a sound without samples"):
        encode(save(tmp_path / "empty.wav", np.zeros((1, 0), np.float32)))
    path = save(tmp_path / "a.wav", sound(1000))
    picture = tmp_path / "a.png"
    Image.new("RGB", (20, 20)).save(picture)
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (path, {"bpp": 1.0}, "bpp does not set the rate of"),
        (path, {"kbps": 0.0}, "kbps must be positive"),
        (path, {"kbps": 1.0, "levels": 1}, "not levels and kbps"),
        (path, {"levels": 5}, "levels is 1 to 4 with this model, got 5"),
        (path, {"prior": "hyperprior"}, "no entropy model 'hyperprior'"),
        (path, {"keep": ["icc"]}, "keep is not an option of"),
        (path, {"metadata": False}, "keep is not an option of"),
        (path, {"sound": False}, "sound is not an option of"),
    ]
    for source, options, message in wrong:
        with pytest.raises((UsageError, ModelError), match=message):
            encode(source, **options)
    with pytest.raises(UsageError, match=r"is a model for audio, and .* is a picture"):
        encode(picture)
    with pytest.raises(UsageError, match=r"is a model for image, and .* is a sound"):
        encode_file(path, model=str(GOLDEN.parent / "tiny"))
    with pytest.raises(UsageError, match="tuned for pictures only"):
        encode_file(path, tune="ms-ssim")
    with pytest.raises(UsageError, match="kbps does not set the rate of"):
        encode_file(picture, model=str(GOLDEN.parent / "tiny"), kbps=3)


def test_results_say_what_they_are(long: bytes, tmp_path: Path) -> None:
    done = decode(long)
    assert done.header.modality == 2
    assert done.layers == 1
    with pytest.raises(UsageError, match="no picture was decoded"):
        _ = done.picture
    done = decode(long, dst=tmp_path / "a.wav")
    with pytest.raises(UsageError, match="no sound was decoded into memory"):
        _ = done.sound


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_from_file_to_file(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.wav", sound(30_000, 2, 44100), 44100, "PCM_24")
    assert run("encode", path, "--model", GOLDEN, "--kbps", 2.5) == 0
    said = capsys.readouterr().err
    assert "kbps" in said
    assert "bpp" not in said
    tok = tmp_path / "a.tok"
    out = tmp_path / f"b{suffix}"
    assert run("decode", tok, "--model", GOLDEN, "-o", out) == 0
    assert "0.680 s in the file, 2 channels, 44100 Hz" in capsys.readouterr().err
    info = soundfile.info(out)
    assert (info.frames, info.samplerate, info.channels, info.subtype) == (30_000, 44100, 2, "PCM_24")
    written, _ = soundfile.read(out, dtype="float32", always_2d=True)
    assert np.allclose(written.T, decode(tok.read_bytes()).sound.samples.clip(-1, 1), atol=2**-22)
    assert run("info", tok, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["modality"], found["samples"], found["segments"]) == ("audio", 30_000, 1)
    assert found["kbps"] == pytest.approx(8e-3 * found["bytes"] * 44100 / 30_000, abs=1e-5)


def test_outputs_take_the_suffix_of_what_is_in_them(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.tok").write_bytes((GOLDEN / "sample.tok").read_bytes())
    (folder / "b.tok").write_bytes((GOLDEN / "same.tok").read_bytes())
    assert run("decode", folder, "--model", GOLDEN, "-o", tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.wav", "b.wav"]
    assert run("decode", folder / "a.tok", "--model", GOLDEN, "--start", 0, "--end", 5, "-o", tmp_path / "c.flac") == 0
    assert soundfile.info(tmp_path / "c.flac").frames == 1


def test_folders_of_sounds_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    save(folder / "a.wav", sound(400))
    save(folder / "b.flac", sound(400))
    (folder / "c.mp3").write_bytes(b"no sound")
    assert run("encode", folder, "--model", GOLDEN, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "c.mp3: not a sound that can be read" in said
    assert "1 of 3 files failed" in said
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.tok", "b.tok"]


def test_standard_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __init__(self, buffer: Any) -> None:
            self.buffer = buffer

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    path = save(tmp_path / "a.wav", sound(5000))
    out = Pipe()
    monkeypatch.setattr(sys, "stdin", Stream(Pipe(path.read_bytes())))
    monkeypatch.setattr(sys, "stdout", Stream(out))
    assert run("encode", "-", "--model", GOLDEN, "--quiet") == 0
    data = out.getvalue()
    assert data == encode(path)
    out = Pipe()
    monkeypatch.setattr(sys, "stdin", Stream(Pipe(data)))
    monkeypatch.setattr(sys, "stdout", Stream(out))
    assert run("decode", "-", "--model", GOLDEN, "--quiet") == 0
    found, rate = soundfile.read(io.BytesIO(out.getvalue()), always_2d=True)
    assert (found.shape, rate) == ((5000, 1), RATE)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_tokens_of_sounds(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.wav", sound(RATE * 3 + 7, 2))
    tokens = tmp_path / f"a{suffix}"
    assert run("tokenize", path, "--model", GOLDEN, "-o", tokens) == 0
    assert run("encode", path, "--model", GOLDEN) == 0
    assert run("detokenize", tokens, "--model", GOLDEN, "-o", tmp_path / "b.tok") == 0
    assert (tmp_path / "b.tok").read_bytes() == (tmp_path / "a.tok").read_bytes()
    assert run("tokenize", tmp_path / "a.tok", "--model", GOLDEN, "-o", tmp_path / f"b{suffix}") == 0
    assert run("detokenize", tmp_path / f"b{suffix}", "--model", GOLDEN) == 0
    heard, rate = soundfile.read(tmp_path / "b.wav", always_2d=True)
    assert (heard.shape, rate) == ((RATE * 3 + 7, 2), RATE)
    expected = decode((tmp_path / "a.tok").read_bytes()).sound.samples.clip(-1, 1)
    assert np.allclose(heard.T, expected, atol=1e-4)
    assert run("tokenize", path, "--model", GOLDEN, "-o", tmp_path / f"c{suffix}", "--levels", 1) == 0
    assert run("detokenize", tmp_path / f"c{suffix}", "--model", GOLDEN, "-o", tmp_path / "c.flac") == 0
    capsys.readouterr()
    assert run("detokenize", tokens, "--model", GOLDEN, "-o", tmp_path / "d.wav", "--synthesis", "sharp") == 2
    assert "synthesis is not an option of" in capsys.readouterr().err
    assert run("tokenize", path, "--model", GOLDEN, "-q", 50, "-o", tmp_path / f"d{suffix}") == 2
    assert "quality does not set the rate of" in capsys.readouterr().err
    assert run("tokenize", path, "--model", "image-grid", "-o", tmp_path / f"d{suffix}") == 2
    assert "is a model for image" in capsys.readouterr().err
    few = ("--model", GOLDEN, "-o", tmp_path / f"d{suffix}", "--max-samples", 2 * (RATE * 3 + 7) - 1)
    for source in (path, tmp_path / "a.tok"):
        assert run("tokenize", source, *few) == 2
        assert "samples" in capsys.readouterr().err
    assert run("tokenize", path, "--model", GOLDEN, "-o", tmp_path / f"d{suffix}", "--track", 2) == 2
    assert "sound tracks are numbered 1 to 1, there is none numbered 2" in capsys.readouterr().err
    assert run("tokenize", tmp_path / "a.tok", "--model", GOLDEN, "-o", tmp_path / f"d{suffix}", "--track", 1) == 2
    assert "its codes are made already: track cannot be chosen" in capsys.readouterr().err


def test_a_damaged_sound_is_refused_if_asked(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", sound(RATE))
    path.write_bytes(path.read_bytes()[:-100])
    assert tokodec.encode_file(path, model=str(GOLDEN)).problems
    with pytest.raises(MediaError, match=r"a\.wav: cut off: at least 100 bytes"):
        tokodec.encode_file(path, tmp_path / "a.tok", model=str(GOLDEN), strict=True)
    assert not (tmp_path / "a.tok").exists()


def test_names_are_part_of_the_package(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", sound(30_000))
    done = tokodec.encode_file(path, tmp_path / "a.tok", model=str(GOLDEN), kbps=6)
    assert done.kbps <= 6
    assert tokodec.decode_file(tmp_path / "a.tok", model=str(GOLDEN)).sound.samples.shape == (1, 30_000)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", sound(RATE * 25))
    shares: list[float] = []
    data = encode(path, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    shares.clear()
    decode(data, progress=shares.append)
    assert len(shares) > 5
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_high_rates_take_no_more_memory(tmp_path: Path) -> None:
    """A file of 104 bytes: 8 channels at 768 kHz in one long segment. Its samples never are in memory at once."""
    model = load_model(str(GOLDEN), "cpu")
    frames, tokenizer = 300, model.tokenizer
    header = replace(
        HEADER,
        model=tokenizer.name,
        weights_hash=tokenizer.weights_hash,
        prior=model.prior.wire_id,
        prior_hash=model.prior.hash,
        samples=frames * 320 * 32,
        sample_rate=768_000,
        channels=8,
        signals=8,
        segment=1024,
    )
    payload = bytes([1] * 8) + model.prior.compress_joint([np.zeros((1, frames), np.int64)] * 8)
    data = write_tok(header, [[payload]])
    assert len(data) < 120
    tracemalloc.start()
    decode_file(io.BytesIO(data), tmp_path / "a.wav", model=str(GOLDEN), device="cpu")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    samples = 4 * 8 * header.samples  # bytes
    assert soundfile.info(tmp_path / "a.wav").frames == header.samples
    assert peak < samples / 2
