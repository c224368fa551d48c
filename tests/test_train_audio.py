"""Training of the audio tokenizer: its data, its discriminators, and the one command that runs it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tokodec.codec.metrics.hearing import BANDS, band_levels, hearing_distance
from tokodec.codec.metrics.spectra import mel_distance, si_sdr
from tokodec.tests.resuming import assert_goes_on
from tokodec.tokenizers.audio.grvq import FRAME, HOP, RATE, AudioGRVQ, AudioGRVQConfig
from tokodec.train import audio as script
from tokodec.train import loop
from tokodec.train.audio_start import start_as_transform, start_from
from tokodec.train.data.audio import (
    LOUDEST,
    QUIETEST,
    SoundStore,
    at_speeds,
    colour,
    level,
    list_sounds,
    read_mono,
)
from tokodec.train.loop import released
from tokodec.train.losses.sound_discriminators import (
    SoundDiscriminators,
    discriminator_loss,
    feature_loss,
    generator_loss,
)

SMALL = (
    "model.analysis_channels=[8,16] model.analysis_blocks=[1,1] model.synthesis_channels=[16,16] "
    "model.synthesis_blocks=[1,1] model.dim=8 model.codebook_sizes=[16,16] data.seconds=0.2 data.holdout_every=3 "
    "optim.batch=2 optim.discriminators_width=2 optim.warmup_steps=5 data.kept=[]"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short sounds of different rates and numbers of channels."""
    out = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for i, (rate, channels) in enumerate(((24000, 1), (48000, 2), (16000, 1), (44100, 2), (24000, 1), (8000, 1))):
        n = rate // 2
        t = np.arange(n)[:, None] / rate
        samples = 0.3 * np.sin(2 * np.pi * (200 + 150 * i) * t) + 0.02 * rng.standard_normal((n, channels))
        soundfile.write(str(out / f"s{i}.{'wav' if i % 2 else 'flac'}"), samples, rate)
    return out


# ---------------------------------------------------------------------------------------------------------------- data


def test_sounds_are_mixed_and_resampled(folder: Path) -> None:
    paths = list_sounds([folder])
    assert [p.name.partition(".")[0] for p in paths] == [f"s{i}" for i in range(6)]
    for i, sound in enumerate(read_mono(path, RATE) for path in paths):
        assert sound.dtype == torch.int16
        assert len(sound) == RATE // 2
        spectrum = torch.fft.rfft(sound.float()).abs()
        assert int(spectrum.argmax()) == pytest.approx((200 + 150 * i) / 2, abs=1)
    stereo, rate = soundfile.read(str(paths[1]), dtype="int16")
    assert torch.equal(read_mono(paths[1], rate), torch.from_numpy(np.round(stereo.mean(1) / 32768 * 32767)).short())


def test_folders_without_sounds(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_sounds([tmp_path / "missing"])
    with pytest.raises(FileNotFoundError, match="no sounds in"):
        list_sounds([tmp_path])


def test_crops_are_parts_of_the_sounds() -> None:
    sounds = [torch.arange(1, 1001).short(), torch.arange(5001, 5031).short()]
    store = SoundStore(sounds, 90, "cpu", seed=3)
    starts = set()
    for row in (store.crops(400) * 32768).round().int():
        own = row[row != 0]
        assert bool((own.diff() == 1).all())  # without a gap,
        assert not bool(row[len(own) :].any())  # then silence,
        assert len(own) >= 30  # of two thirds at most
        starts.add(int(own[0]))
    assert 5001 in starts
    assert len(starts) > 150


def test_batches_have_all_loudnesses_and_no_overflow() -> None:
    torch.manual_seed(0)
    store = SoundStore([(3000 * torch.randn(9000)).short()], 3000, "cpu", mixed=0.5)
    x = store.batch(200)
    assert x.shape == (200, 1, 3000)
    assert float(x.abs().max()) <= 0.9901
    decibel = 10 * torch.log10(x.square().mean((1, 2)))
    assert QUIETEST - 1 < float(decibel.min()) < QUIETEST + 5
    assert LOUDEST - 5 < float(decibel.max()) < LOUDEST + 4
    again, other = (SoundStore([(3000 * torch.ones(9000)).short()], 3000, "cpu", seed=s).batch(20) for s in (0, 1))
    assert torch.equal(again, SoundStore([(3000 * torch.ones(9000)).short()], 3000, "cpu", seed=0).batch(20))
    assert not torch.equal(again, other)


def test_silence_stays_silent() -> None:
    quiet = torch.zeros(2, 100)
    quiet[1] = 1e-6
    assert torch.equal(level(quiet, torch.full((2, 1), -20.0)), quiet)
    loud = level(torch.ones(1, 100), torch.full((1, 1), -20.0))
    assert float(loud.square().mean().sqrt()) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="no sound that is not empty"):
        SoundStore([torch.zeros(0, dtype=torch.int16)], 10, "cpu")


def test_sounds_at_other_speeds() -> None:
    """A tone of 400 Hz at 1.25 times the speed is one of 500 Hz, and as much shorter."""
    tone = (9000 * torch.sin(2 * torch.pi * 400 * torch.arange(RATE) / RATE)).short()
    same, fast = at_speeds([tone], [1, 1.25])
    assert torch.equal(same, tone)
    assert len(fast) == RATE * 4 // 5
    assert int(torch.fft.rfft(fast.float()).abs().argmax()) == 400  # periods in 0.8 s
    assert float(fast[500:-500].float().square().mean().sqrt()) == pytest.approx(9000 / 2**0.5, rel=0.01)
    for speeds in ([], [0.1], [1, 3]):
        with pytest.raises(ValueError, match="speeds are factors of"):
            at_speeds([tone], speeds)


def test_a_coloured_crop_has_the_gains_of_its_curve() -> None:
    """Knots lie evenly in log frequency, the first at 1/256 of half the rate and below, the last at half the rate."""
    n, knots = 4096, torch.tensor([[-6.0, 0.0, 6.0, 0.0, -12.0]])
    for share, decibel in ((1 / 512, -6.0), (1 / 256, -6.0), (1 / 64, 0.0), (1 / 32, 3.0), (1 / 16, 6.0), (1, -12.0)):
        tone = torch.cos(torch.pi * share * torch.arange(n))[None]
        gain = float(colour(tone, knots).square().mean() / tone.square().mean())
        assert 10 * np.log10(gain) == pytest.approx(decibel, abs=0.02)
    store = SoundStore([(3000 * torch.randn(9000)).short()], 3000, "cpu", mixed=0.0, coloured=1.0)
    assert float(store.batch(4).abs().max()) <= 0.9901


# ------------------------------------------------------------------------------------------------------ discriminators


def test_discriminators_learn_to_tell_and_the_generator_to_fool() -> None:
    """A few steps of each side move each loss the right way; features of equal sounds are equal."""
    torch.manual_seed(0)
    discriminators = SoundDiscriminators(4)
    real = 0.3 * torch.sin(torch.arange(4000) / torch.tensor([[3.0], [7.0]]))[:, None]
    fake = (0.1 * torch.randn(2, 1, 4000)).requires_grad_()
    optimizer = torch.optim.Adam(discriminators.parameters(), 2e-3)
    losses = []
    for _ in range(12):
        loss = discriminator_loss(discriminators(real), discriminators(fake.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    before = generator_loss(discriminators(fake))
    (slope,) = torch.autograd.grad(before, fake)
    assert float(generator_loss(discriminators(fake - 0.02 * slope / slope.abs().max()))) < float(before)
    assert float(feature_loss(discriminators(real), discriminators(real))) == 0
    assert float(feature_loss(discriminators(real), discriminators(fake))) > 0.1
    judgements = discriminators(real)
    assert len(judgements) == 8
    assert all(logits.shape[:2] == (2, 1) and len(features) == 4 for logits, features in judgements)


# ------------------------------------------------------------------------------------------------------------- hearing


def test_band_levels_are_those_of_tones() -> None:
    """A tone has its power in the band around it, twice the amplitude is 6 dB, and white noise rises with the width."""
    t = torch.arange(RATE) / RATE
    middles = torch.tensor([150.0, 1000.0, 6000.0])
    levels = band_levels(0.2 * torch.sin(2 * torch.pi * middles[:, None] * t), RATE)
    assert levels.shape == (3, BANDS, 1 + RATE // 480)
    inner = levels[:, :, 5:-5]
    assert inner.mean(2).argmax(1).diff().min() > 5
    louder = band_levels(0.4 * torch.sin(2 * torch.pi * middles[:, None] * t), RATE)[:, :, 5:-5]
    assert float((louder - inner).amax(1).mean()) == pytest.approx(6.02, abs=0.01)
    assert float((louder - inner)[:, :, 0].max()) < 6.1


def test_hearing_distance_counts_what_is_heard() -> None:
    torch.manual_seed(0)
    t = torch.arange(RATE) / RATE
    swell = 1 + 0.8 * torch.sin(2 * torch.pi * 4 * t)
    x = (0.1 * swell * torch.randn(RATE))[None]
    assert float(hearing_distance(x, x, RATE)) == pytest.approx(0, abs=1e-5)
    softer = float(hearing_distance(x, 0.5 * x, RATE))
    assert softer == pytest.approx(6.02 / 5, abs=0.05)  # levels differ, their rise and fall do not
    flat = float(hearing_distance(x, 0.1 * torch.randn(1, RATE), RATE))
    other = float(hearing_distance(x, (0.1 * swell * torch.randn(RATE))[None], RATE))
    assert 0 < other < flat
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * t)[None]
    hiss = torch.randn(1, RATE)
    assert float(hearing_distance(tone, tone + 1e-5 * hiss, RATE)) < 1e-3  # far below the tone
    assert float(hearing_distance(tone, tone + 1e-2 * hiss, RATE)) > 0.1
    silence = torch.zeros(1, RATE, requires_grad=True)
    (slope,) = torch.autograd.grad(hearing_distance(x, silence + 1e-3 * x, RATE).sum(), silence)
    assert bool(slope.isfinite().all())
    assert bool(slope.any())


# --------------------------------------------------------------------------------------------------------------- start


def test_a_start_as_a_transform_gives_sounds_back() -> None:
    """Wide enough for all components, the nets without quantizer are an MDCT and its inverse, and codebooks fit."""
    torch.manual_seed(0)
    whole = 2 * (HOP + 1)
    config = AudioGRVQConfig((HOP + 1, whole), (1, 1), (whole, HOP + 1), (1, 1), whole, 2, (64, 16))
    model = AudioGRVQ(config)
    t = torch.arange(3 * RATE) / RATE
    sounds = [(3000 * torch.sin(2 * torch.pi * f * t) + 300 * torch.randn(len(t))).short() for f in (200, 900, 3000)]
    start_as_transform(model, sounds, 300)
    x = sounds[1][: 100 * FRAME].float()[None, None] / 32768
    x_hat = model.synthesise(model.analysis(x))
    inside = slice(0, -HOP)  # the last block wants a frame that is not there
    assert si_sdr(x[0, 0, inside], x_hat[0, 0, inside]) > 50
    z = model.analysis(x)
    errors = model.errors(z, model.codes(z)).mean((0, 2))
    assert float(errors.max()) < 0.85 * float(z.square().sum(1).mean())  # of noise only loudness is worth a codeword


def test_a_start_from_a_trained_model_adds_levels() -> None:
    """All that the trained model has stays; the new levels halve what it leaves of sounds like those it saw."""
    torch.manual_seed(0)
    sounds = [(2000 * torch.randn(60 * FRAME)).short() for _ in range(3)]
    config = AudioGRVQConfig((16, 32), (1, 1), (32, 16), (1, 1), 8, 2, (16,))
    trained = AudioGRVQ(config)
    start_as_transform(trained, sounds, 150)
    model = AudioGRVQ(replace(config, codebook_sizes=(16, 64, 32)))
    start_from(model, trained, sounds, 150)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    z = model.analysis(torch.cat(sounds).float()[None, None] / 32768)
    errors = model.errors(z, model.codes(z)).mean((0, 2))
    assert len(errors) == 6
    assert float(errors[5]) < 0.7 * float(errors[1])
    for other in (replace(config, dim=12), replace(config, codebook_sizes=(32,))):
        with pytest.raises(ValueError, match="audio-24k has other sizes than the recipe"):
            start_from(model, AudioGRVQ(other), sounds)


def test_a_start_wants_room_for_the_latents() -> None:
    with pytest.raises(ValueError, match="at least as wide as the latents"):
        start_as_transform(AudioGRVQ(AudioGRVQConfig((8, 16), (1, 1), (16, 8), (1, 1), 18)), [])


# --------------------------------------------------------------------------------------------------------- one command


def command(*words: str) -> list[str]:
    return ["audio", "--precision", "no", "--set", *SMALL.split(), *words]


@pytest.mark.usefixtures("_trains")
def test_one_command_trains_and_reports(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    counted_time: Callable,
) -> None:
    out = tmp_path / "model"
    words = ["loss.adversarial_from=0.4", "rounding.share=1.0", "--data", str(folder), "--test", str(folder)]
    words += ["--minutes", "0.2"]
    monkeypatch.setattr(sys, "argv", command(*words, "--out", str(out)))
    with counted_time(loop, 0.8):
        script.main()
    lines = capsys.readouterr().out.splitlines()
    assert "4 sounds" in lines[0]
    assert "2 held out" in lines[0]
    assert any("from here on with discriminators" in line for line in lines)
    assert any("from here on weights are rounded" in line for line in lines)
    row = re.compile(r" *\w+ \d levels +mel \d\.\d+ +STFT \d+\.\d+ +SI-SDR -?\d+\.\d+ dB")
    assert all(row.fullmatch(line) for line in lines[-3:])
    found = json.loads((out / "training.json").read_text())
    assert [entry["levels"] for entry in found["test"]] == [1, 2, 4]
    assert len(found["codebook_usage"]) == 4
    assert all(0 < share <= 1 for share in found["codebook_usage"])
    model = AudioGRVQ.from_pretrained(out)
    assert model.decode(model.encode(torch.randn(1, 1, 3 * FRAME))).shape == (1, 1, 3 * FRAME)

    # Resuming starts from these weights and discriminators: without a step they are the same.
    again = tmp_path / "again"
    words = ["--data", str(folder), "--minutes", "0", "--resume", str(out), "--out", str(again)]
    monkeypatch.setattr(sys, "argv", command(*words))
    script.main()
    assert any(line.startswith("discriminators from ") for line in capsys.readouterr().out.splitlines())
    assert AudioGRVQ.from_pretrained(again).weights_hash == model.weights_hash


@pytest.mark.usefixtures("_trains")
def test_a_few_steps_bring_the_sound_nearer(folder: Path) -> None:
    """The losses and the gradients of all parts belong together: the distance to a tone falls by a quarter."""
    torch.manual_seed(0)
    config = AudioGRVQConfig((16, 32), (1, 1), (32, 32), (1, 1), 16, 2, (32, 32))
    net = script.Autoencoder(AudioGRVQ(config).train())
    x = 0.3 * torch.sin(2 * torch.pi * 440 * torch.arange(20 * FRAME) / RATE)[None, None]
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    distances = []
    for _ in range(40):
        x_hat, commitment, codebook, _ = net(x, torch.tensor([4]))
        distance = mel_distance(x[:, 0], x_hat[:, 0], RATE).mean()
        optimizer.zero_grad()
        (15 * distance + commitment + codebook).backward()
        optimizer.step()
        distances.append(float(distance.detach()))
    assert distances[-1] < 0.75 * distances[0]


@pytest.mark.usefixtures("_trains")
def test_a_run_that_is_told_to_end_goes_on(folder: Path, tmp_path: Path) -> None:
    words = command("loss.adversarial_from=0.4", "rounding.share=0.3", "--data", str(folder))[1:]
    assert_goes_on(script.main, script.Trainer, words, tmp_path, (2, 2))


@pytest.mark.usefixtures("_trains")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--set data.seconds=0.001", "a crop has at least 320 samples"),
        ("--set model.groups=3", "split evenly into groups"),
        ("--set data.kept=[1,2]", "data.kept has a share for each of 4 codebooks"),
        ("--set loss.beauty=1", "the recipe has no loss.beauty"),
        ("--data {missing}", "no folder"),
        ("--resume nothing", "nothing"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    change: str, message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = change.format(missing=tmp_path / "missing").replace("--set", f"--set {SMALL}").split()
    words += [] if "--data" in words else ["--data", str(folder)]
    monkeypatch.setattr(sys, "argv", ["audio", *words, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.usefixtures("_trains")
def test_only_some_weights_are_trained(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(sys, "argv", command("--data", str(folder), "--minutes", "0", "--out", str(first)))
    script.main()
    words = ["optim.only=[synthesis.0]", "rounding.share=1.0", "--data", str(folder), "--minutes", "0.05"]
    monkeypatch.setattr(sys, "argv", command(*words, "--resume", str(first), "--out", str(second)))
    script.main()
    before, after = (AudioGRVQ.from_pretrained(path).state_dict() for path in (first, second))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("synthesis.0.") for name in changed)
    monkeypatch.setattr(sys, "argv", command("optim.only=[nothing]", *words[2:], "--out", str(tmp_path / "third")))
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2


def test_rounding_is_that_of_a_release(tmp_path: Path) -> None:
    sizes = AudioGRVQConfig((8, 16), (1, 1), (16, 16), (1, 1), 8, 2, (16, 16))
    model = AudioGRVQ(sizes, "small")
    rounded = released(model)
    model.save_pretrained(tmp_path)
    saved = AudioGRVQ.from_pretrained(tmp_path)
    for name, p in rounded.named_parameters():
        if name.startswith(("analysis.", "synthesis.")) and p.ndim > 1 and not name.startswith(model.half_weights):
            assert torch.allclose(p, saved.get_parameter(name), atol=1e-6), name
    head = f"synthesis.{len(model.synthesis) - 1}.weight"
    assert head.startswith(model.half_weights)
    assert torch.equal(rounded.get_parameter(head), model.get_parameter(head))


def test_si_sdr_does_not_hear_loudness() -> None:
    torch.manual_seed(0)
    x, noise = torch.randn(2, 8000)
    noise = noise - (noise @ x) / (x @ x) * x
    for scale in (0.1, 1.0, 3.0):
        found = si_sdr(x, scale * (x + 0.1 * noise))
        assert found == pytest.approx(20 - 10 * np.log10(float(noise @ noise / (x @ x))), abs=0.01)
