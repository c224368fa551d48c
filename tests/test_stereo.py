"""Two channels as middle and side, or as left and right where one is much louder: nothing leaks into a silent one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tokodec.codec.audio.decode import decode_blocks, is_left_right, span_of
from tokodec.codec.audio.encode import Search, analyse_samples
from tokodec.codec.audio.stereo import StereoSegments, to_middle_side
from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import decode_file, file_tokens
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import UsageError
from tokodec.codec.media.audio import AudioReader, Samples, read_audio, resample
from tokodec.codec.models import load_model
from tokodec.codec.tokens import tokenize_file
from tokodec.tokenizers.audio.grvq import AudioGRVQ

RATE, SEGMENT = 24000, 48000
GOLDEN = Path(__file__).resolve().parent / "golden" / "sound"
SPEECH = Path(__file__).resolve().parent.parent / "assets" / "ljspeech.ogg"


def noise(samples: int, left: float, right: float, shared: float = 0.0, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    both = shared * rng.normal(size=samples)
    x = [level * rng.normal(size=samples) + both for level in (left, right)]
    return 0.1 * np.array(x).astype(np.float32)


def choices(x: Samples, chunk: int) -> tuple[list[bool], list[tuple[bool, Samples]]]:
    stereo = StereoSegments(SEGMENT)
    runs = []
    for begin in range(0, x.shape[1], chunk):
        last = begin + chunk >= x.shape[1]
        runs += [
            (stereo.left_right[-1], part) for part in stereo.push(to_middle_side(x[:, begin : begin + chunk]), last)
        ]
    return stereo.left_right, runs


@pytest.mark.parametrize(
    ("x", "left_right"),
    [
        (noise(SEGMENT, 1, 0), True),
        (noise(SEGMENT, 0, 1), True),
        (noise(SEGMENT, 1, 0.03), True),
        (noise(SEGMENT, 0.01, 1), True),
        (noise(SEGMENT, 1, 1), False),
        (noise(SEGMENT, 1, 0.5), False),
        (noise(SEGMENT, 0.1, 0.1, 1), False),
        (noise(SEGMENT, 0, 0), False),
        (noise(SEGMENT, 0, 0, 1), False),
    ],
)
def test_one_sided_sound_is_left_and_right(x: Samples, left_right: bool) -> None:
    assert choices(x, SEGMENT)[0] == [left_right]


def test_a_choice_is_kept_until_it_is_clearly_wrong() -> None:
    levels = [0.0, 0.22, 0.3, 0.22, 0.15]  # of the right channel; taken below 0.18, kept below 0.25
    x = np.concatenate([noise(SEGMENT, 1, level, seed=i) for i, level in enumerate(levels)], axis=1)
    assert choices(x, SEGMENT)[0] == [True, True, False, False, True]
    silent = np.concatenate([noise(SEGMENT, 1, 0), noise(SEGMENT, 0, 0)], axis=1)
    assert choices(silent, SEGMENT)[0] == [True, True]


@pytest.mark.parametrize("chunk", [1000, SEGMENT, 99_999, 1 << 20])
def test_chunks_do_not_matter(chunk: int) -> None:
    parts = [noise(SEGMENT, 1, 1), noise(2 * SEGMENT, 1, 0), noise(SEGMENT + 777, 0.5, 0.5)]
    x = np.concatenate(parts, axis=1)
    left_right, runs = choices(x, chunk)
    assert left_right == [False, True, True, False, False]
    signals = np.concatenate([part for _, part in runs], axis=1)
    middle_side = to_middle_side(x)
    assert np.array_equal(signals[:, :SEGMENT], middle_side[:, :SEGMENT])
    assert np.allclose(signals[:, SEGMENT : 3 * SEGMENT], x[:, SEGMENT : 3 * SEGMENT], atol=1e-7)
    assert np.array_equal(signals[:, 3 * SEGMENT :], middle_side[:, 3 * SEGMENT :])
    assert all(part.shape[1] % SEGMENT == 0 for _, part in runs[:-1])


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Samples, Path]:
    """Both, then left only for two segments, then both again."""
    parts = [noise(SEGMENT, 1, 1), noise(2 * SEGMENT, 1, 0), noise(SEGMENT // 2, 0.5, 0.5, 1)]
    path = tmp_path_factory.mktemp("stereo") / "a.wav"
    x = np.concatenate(parts, axis=1)
    soundfile.write(path, x.T, RATE, subtype="FLOAT")
    return read_audio(path, "a").samples, path


def test_segments_change_their_signals(changing: tuple[Samples, Path]) -> None:
    """Codes of a run of segments are those of its signals alone: the nets begin anew."""
    x, path = changing
    model = load_model(str(GOLDEN), "cpu")
    tok = read_tok(encode_file(path, model=str(GOLDEN), device="cpu").data)
    assert [is_left_right(tok, s) for s in range(4)] == [False, True, True, False]
    x_hat = decode_file(io.BytesIO(tok.data), model=str(GOLDEN), device="cpu").sound.samples
    assert x_hat.shape == x.shape
    signals = np.ascontiguousarray(x[:, SEGMENT : 3 * SEGMENT])
    with torch.inference_mode():
        alone = model.tokenizer.decode(model.tokenizer.encode(torch.from_numpy(signals)[:, None]))[:, 0].numpy()
    assert np.allclose(x_hat[:, SEGMENT : 3 * SEGMENT], alone, atol=1e-4)


def test_effort_begins_anew_with_the_signals(changing: tuple[Samples, Path]) -> None:
    """With no step of descent, what it makes is what is made without it."""
    model = load_model(str(GOLDEN), "cpu")
    assert isinstance(model.tokenizer, AudioGRVQ)
    found = []
    for n_steps in (None, 0):
        with AudioReader(changing[1], "a") as reader:
            tokens = analyse_samples(reader, model.tokenizer, search=Search(2, n_steps=n_steps), pairs=True)
        assert tokens is not None
        found.append(tokens)
    assert list(found[0].left_right) == list(found[1].left_right) == [False, True, True, False]
    assert np.array_equal(found[0].codes, found[1].codes)


def test_a_part_is_that_of_the_whole(changing: tuple[Samples, Path]) -> None:
    model = load_model(str(GOLDEN), "cpu")
    tok = read_tok(encode_file(changing[1], model=str(GOLDEN), device="cpu").data)
    whole = np.concatenate(list(decode_blocks(tok, model, span_of(tok.sound, None, None))), axis=1)
    for start, end in ((1.9, 2.1), (2.5, 6.2), (5.99, None), (0.5, 3.0)):
        span = span_of(tok.sound, start, end)
        part = np.concatenate(list(decode_blocks(tok, model, span)), axis=1)
        assert np.allclose(part, whole[:, span.begin : span.end], atol=1e-5)


def test_tokens_of_such_a_file_are_refused_and_those_of_the_sound_are_not(changing: tuple[Samples, Path]) -> None:
    data = encode_file(changing[1], model=str(GOLDEN), device="cpu").data
    with pytest.raises(UsageError, match="some of its segments hold left and right"):
        file_tokens(read_tok(data), str(GOLDEN), "cpu")
    assert tokenize_file(changing[1], model=str(GOLDEN), device="cpu").tokens.codes.shape[0] == 2


@pytest.mark.parametrize("side", [0, 1])
def test_nothing_leaks_into_a_silent_channel(side: int, tmp_path: Path) -> None:
    """Speech at 3 kbit/s; as middle and side it is heard 9 to 11 dB below."""
    speech = read_audio(SPEECH, "speech")
    x = resample(speech.samples, speech.sample_rate, RATE)[0, : 3 * RATE]
    stereo = np.stack([x, 0.001 * np.random.default_rng(0).normal(size=len(x)).astype(np.float32)])
    soundfile.write(tmp_path / "a.wav", stereo[[side, 1 - side]].T, RATE, subtype="FLOAT")
    data = encode_file(tmp_path / "a.wav", kbps=3, device="cpu").data
    x_hat = decode_file(io.BytesIO(data), device="cpu").sound.samples
    power = np.square(x_hat).mean(1)
    assert 10 * np.log10(power[1 - side] / power[side]) < -35
    assert power[side] == pytest.approx(np.square(x).mean(), rel=0.2)
