"""Generators from end to end: one command trains, `codec generate`, `codec bench generator`, the example for
transformers in codec/corpus/README.md."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import tokodec
from tokodec.codec import cli
from tokodec.codec.generate.files import SampleOptions, drawn, fit, generate_files, sheet
from tokodec.codec.generate.model import Generator
from tokodec.codec.media.picture import Picture
from tokodec.tests.resuming import assert_goes_on
from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.tokens import Tokens
from tokodec.train import generator as script
from tokodec.train.data.images import CropStore

ROOT = Path(tokodec.__file__).resolve().parent
SMALL = (
    "model.hidden=16 model.inner=24 model.layers=1 model.heads=2 optim.batch=4 optim.warmup_steps=5"
    " data.holdout_every=3"
)
PICTURES, SOUNDS = f"model.window=[48,48] {SMALL}", f"model.window=[3200] model.levels=3 {SMALL}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(6):
        rows, columns = np.mgrid[: 60 + 8 * i, :70]
        wave = 128 + 90 * np.sin(rows / (4 + i)) * np.cos(columns / 7) + 8 * rng.standard_normal(rows.shape)
        pixels = np.stack([wave, wave[::-1], 255 - wave], -1).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(out / f"{i}.png")
    return out


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    for i in range(6):
        t = np.arange(9600) / 24000
        tone = 0.3 * np.sin(2 * np.pi * (200 + 150 * i) * t) + 0.02 * rng.standard_normal(len(t))
        soundfile.write(str(out / f"s{i}.wav"), tone, 24000)
    return out


def train(monkeypatch: pytest.MonkeyPatch, recipe: str, settings: str, *words: object) -> None:
    arguments = ["generator", "--recipe", recipe, "--set", *settings.split(), *map(str, words)]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_model: Path,
    sound_model: Path,
    pictures: Path,
    sounds: Path,
    training: Callable[[], AbstractContextManager[None]],
) -> dict[str, Path]:
    """A generator of each kind, trained for some steps; what the command printed lies beside it."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for kind, recipe, settings, tokenizer, data in (
            ("image", "generator-image", PICTURES, tiny_model, pictures),
            ("audio", "generator-audio", SOUNDS, sound_model, sounds),
        ):
            out = tmp_path_factory.mktemp(kind) / "model"
            lines: list[str] = []
            patch.setattr(script.Trainer, "log", lambda self, text, lines=lines: lines.append(text))
            words = ("--tokenizer", tokenizer, "--data", data, "--test", data, "--minutes", 0.03, "--out", out)
            with training():
                train(patch, recipe, settings, *words)
            (out / "log.txt").write_text("\n".join(lines))
            found[kind] = out
    return found


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_one_command_trains_and_reports(kind: str, trained: dict[str, Path]) -> None:
    out = trained[kind]
    lines = (out / "log.txt").read_text().splitlines()
    assert "4 " in lines[0]
    assert "2 held out" in lines[0]
    assert any(line.endswith(" kept") for line in lines)
    row = re.compile(r"\| [a-z, ]+ \|( \d+\.\d{3} \|)+")
    wanted = ["generator", "static"]
    if kind == "audio":
        wanted[1:1] = ["context, same windows", "context, as in files"]
    assert [line.split(" | ")[0][2:] for line in lines if row.fullmatch(line)] == 2 * wanted
    report = json.loads((out / "training.json").read_text())
    assert {"held-out", "test", "history", "recipe", "seed", "steps", "weights_hash"} <= set(report)
    curve = [entry["validation_bits"] for entry in report["history"]]
    assert curve
    assert all(0 < bits < 10 for bits in curve)
    assert [entry["model"] for entry in report["test"]][:1] == ["generator"]
    best, levels = report["held-out"][0], report["held-out"][0]["levels"]
    assert best["cell"] == pytest.approx(sum(levels))
    model = Generator.from_pretrained(out)
    assert model.weights_hash == report["weights_hash"]
    assert best["token"] * model.sequencer.n_streams() == pytest.approx(best["cell"])
    assert model.window == ((3, 3) if kind == "image" else (10,))


@pytest.mark.usefixtures("_trains")
def test_resuming_starts_from_the_weights(
    trained: dict[str, Path], pictures: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Without a step they are the same, but for the rounding of what was rounded before."""
    words = ("--tokenizer", tiny_model, "--data", pictures, "--minutes", 0, "--resume", trained["image"])
    train(monkeypatch, "generator-image", PICTURES, *words, "--out", tmp_path / "again")
    capsys.readouterr()
    before, after = (Generator.from_pretrained(p).state_dict() for p in (trained["image"], tmp_path / "again"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-4, rtol=1e-2)


@pytest.mark.usefixtures("_trains")
def test_a_run_that_is_told_to_end_goes_on(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = ["--recipe", "generator-image", "--set", *PICTURES.split(), "--tokenizer", str(tiny_model)]
    assert_goes_on(script.main, script.Trainer, [*words, "--data", str(pictures)], tmp_path, (2,))


@pytest.mark.usefixtures("_trains")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--set {set} model.window=[40,48]", "a window of pictures is square"),
        ("--set {set} model.window=[32,32] model.levels=9", "levels must be 1 to 3, got 9"),
        ("--set {set} model.colour=1", "the recipe has no model.colour"),
        ("--set {set} model.window=[64,64]", "nothing that is held out is as large as a window"),
        ("--set {set} --data {missing}", "no folder"),
        ("--set {set} model.window=[32,32] --resume {audio}", "another generator than the recipe's"),
        ("--set {set} model.window=[32,32] --tokenizer {photo}", "makes no codes for generators"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    words: str, message: str, trained: dict[str, Path], pictures: Path, tiny_model: Path, photo_model: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    few = tmp_path / "few"
    few.mkdir()
    Image.fromarray(np.zeros((40, 70, 3), np.uint8)).save(few / "0.png")  # the one that is held out
    for i in (4, 5):
        shutil.copy(pictures / f"{i}.png", few)
    text = words.format(set=PICTURES, missing=tmp_path / "missing", audio=trained["audio"], photo=photo_model)
    given = text.split()
    given += [] if "--data" in given else ["--data", str(few)]
    given += ["--minutes", "0"]
    given += [] if "--tokenizer" in given else ["--tokenizer", str(tiny_model)]
    monkeypatch.setattr(sys, "argv", ["generator", *given, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_crops_that_are_never_turned() -> None:
    rows = torch.arange(40)[:, None, None].expand(40, 50, 3).byte()
    x = CropStore([rows], 16, "cpu", zoom=0.0, turned=0.0).batch(64)
    assert bool((x[:, 0, :, :1] == x[:, 0]).all())  # all of a row alike


# ------------------------------------------------------------------------------------------------------------ generate


def codec(*arguments: object) -> int:
    return cli.run([str(a) for a in arguments])


@pytest.fixture
def image_words(trained: dict[str, Path], tiny_model: Path) -> list[object]:
    return ["-m", trained["image"], "--tokenizer", tiny_model, "--device", "cpu"]


@pytest.fixture
def audio_words(trained: dict[str, Path], sound_model: Path) -> list[object]:
    return ["-m", trained["audio"], "--tokenizer", sound_model, "--device", "cpu"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_and_their_sheet(
    image_words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert codec("generate", *image_words, "-n", 3, "-o", out) == 0
    assert names(out) == ["sample-1.png", "sample-2.png", "sample-3.png", "samples.png"]
    assert capsys.readouterr().err.splitlines() == [f"3 samples -> {out}, all of them in {out / 'samples.png'}"]
    samples = [np.asarray(Image.open(out / f"sample-{i}.png")) for i in (1, 2, 3)]
    assert all(sample.shape == (48, 48, 3) for sample in samples)
    assert not np.array_equal(samples[0], samples[1])
    whole = np.asarray(Image.open(out / "samples.png"))
    assert np.array_equal(whole[:48, :48], samples[0])
    assert np.array_equal(whole[:48, 52:100], samples[1])
    # An existing file is kept unless --force is given; equal seeds give equal files.
    assert codec("generate", *image_words, "-n", 3, "-o", out) == 2
    assert codec("generate", *image_words, "-n", 3, "-o", out, "--seed", 5, "--force", "--quiet") == 0
    assert not np.array_equal(np.asarray(Image.open(out / "sample-1.png")), samples[0])
    assert codec("generate", *image_words, "-n", 3, "-o", out, "--force") == 0
    assert np.array_equal(np.asarray(Image.open(out / "sample-1.png")), samples[0])


def test_a_picture_is_completed(
    image_words: list[object], trained: dict[str, Path], tiny_model: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The codes of its first rows are those of the rows alone; a picture that is too large is fitted, with a note."""
    photo = tmp_path / "photo.png"
    noise = np.random.default_rng(1).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    Image.fromarray(noise).save(photo)
    options = SampleOptions(
        model=str(trained["image"]), prompt=photo, keep=0.4, n=2, tokenizer=str(tiny_model), device="cpu", levels=2
    )
    done = generate_files(tmp_path / "a", options)
    tokenizer = Tokenizer.from_pretrained(tiny_model)
    x = torch.from_numpy(noise[:16]).permute(2, 0, 1)[None].float() / 255
    known = tokenizer.encode(x).codes[0, :2]
    generator = Generator.from_pretrained(trained["image"])
    prompt = torch.full((1, 2, 3, 3), -1)
    prompt[0, :, :1] = known
    tokens = generator.sample(2, Tokens(prompt, generator.config.window), generator=torch.Generator().manual_seed(0))
    for i, sample in enumerate(done.samples):
        x_hat = tokenizer.decode(Tokens(tokens.codes[i : i + 1], tokens.spec))[0].permute(1, 2, 0)
        assert isinstance(sample, Picture)
        assert np.abs(sample.pixels.astype(int) - (255 * x_hat).round().numpy()).max() <= 1
    assert not done.notes
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a" / "samples.png"))[:48, :48], noise)

    large = tmp_path / "large.png"
    Image.fromarray(np.tile(noise, (2, 4, 1))).save(large)
    assert codec("generate", *image_words, "--prompt", large, "-n", 1, "-o", tmp_path / "b") == 0
    line = f"codec: {large}: the picture of 192 x 96 pixels is fitted to the window: 48 x 48"
    assert line in capsys.readouterr().err.splitlines()
    # --keep 1: the file is the upper part itself.
    assert codec("generate", *image_words, "--prompt", large, "--keep", 1, "-n", 1, "-o", tmp_path / "c") == 0
    assert "fitted to the window: 48 x 24" in capsys.readouterr().err
    assert Image.open(tmp_path / "c" / "sample-1.png").size == (48, 48)
    # The prompt is none of the outputs, and there are all files or none.
    for name in ("sample-1.png", "samples.png"):
        kept, link = tmp_path / "c" / name, tmp_path / "link.png"
        link.unlink(missing_ok=True)
        link.symlink_to(kept)
        before = kept.read_bytes()
        assert codec("generate", *image_words, "--prompt", link, "-n", 2, "-f", "-o", tmp_path / "c") == 2
        assert f"would be overwritten by the output {kept}" in capsys.readouterr().err
        assert (kept.read_bytes(), names(tmp_path / "c")) == (before, ["sample-1.png", "samples.png"])
    # A small picture is completed at its own size.
    Image.fromarray(noise[:40, :20]).save(photo)
    assert codec("generate", *image_words, "--prompt", photo, "-n", 1, "-o", tmp_path / "d") == 0
    assert Image.open(tmp_path / "d" / "sample-1.png").size == (20, 40)


def test_a_sound_is_completed(audio_words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(str(clip), 0.1 * np.random.default_rng(0).standard_normal((9600, 2)), 48000)
    out = tmp_path / "out"
    assert codec("generate", *audio_words, "--prompt", clip, "--keep", 0.06, "-n", 2, "-o", out) == 0
    assert names(out) == ["sample-1.wav", "sample-2.wav", "samples.png"]
    notes = capsys.readouterr().err.splitlines()
    assert f"codec: {clip}: the 2 channels are mixed" in notes
    assert f"codec: {clip}: 48000 Hz become 24000" in notes
    first, second = (soundfile.read(str(out / f"sample-{i}.wav"))[0] for i in (1, 2))
    assert len(first) == len(second) == 3200
    assert np.array_equal(first[: 3 * 320], second[: 3 * 320])  # of four frames, the last of which overlaps
    assert not np.array_equal(first, second)
    longer = soundfile.read(str(clip))[0][np.arange(48000 * 6) % 9600]
    longer[-1] = np.nan  # what is not needed is not read
    soundfile.write(str(tmp_path / "longer.wav"), longer, 48000, "FLOAT")
    words = ("--prompt", tmp_path / "longer.wav", "--keep", 0.06, "-n", 2, "-o", tmp_path / "same")
    assert codec("generate", *audio_words, *words) == 0
    assert (tmp_path / "same" / "sample-1.wav").read_bytes() == (out / "sample-1.wav").read_bytes()
    assert codec("generate", *audio_words, "-n", 1, "-o", tmp_path / "free") == 0
    assert names(tmp_path / "free") == ["sample-1.wav", "samples.png"]


def test_a_damaged_prompt_is_told(
    image_words: list[object], audio_words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, clip = tmp_path / "photo.png", tmp_path / "clip.wav"
    noise = np.random.default_rng(1).integers(0, 256, (48, 48, 3)).astype(np.uint8)
    Image.fromarray(noise).save(photo)
    photo.write_bytes(photo.read_bytes()[:-1000])
    soundfile.write(str(clip), np.random.default_rng(0).uniform(-0.1, 0.1, 9600), 24000)
    clip.write_bytes(clip.read_bytes()[:-1000])
    for words, prompt, said in (
        (image_words, photo, "damaged or cut off: "),
        ([*audio_words, "--keep", 0.06], clip, "cut off: at least 1000 bytes are missing at its end"),
    ):
        assert codec("generate", *words, "--prompt", prompt, "-n", 1, "-o", tmp_path / prompt.stem) == 3
        assert f"codec: {prompt}: {said}" in capsys.readouterr().err
        assert "samples.png" in names(tmp_path / prompt.stem)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-n 0", "1 to 1000 samples are made at once, not 0"),
        ("--keep 0.5", "goes with a prompt"),
        ("--top-p 2", "top-p must be above 0 and at most 1"),
        ("--top-k 0", "top-k must be at least 1"),
        ("--temperature -1", "temperature must be 0 or more"),
        ("--levels 3", "levels must be 1 to 2, got 3"),
        ("--synthesis blurred", "no synthesis net 'blurred'"),
        ("--prompt {clip}", "is a generator for image, and"),
        ("--prompt {photo} --keep 0", "above 0 and at most 1, got 0"),
        ("--prompt {photo} --keep 0.1", "no whole row of 3 rows of cells would be kept"),
        ("--prompt {photo} --keep 1", "all rows of 3 rows of cells would be kept"),
        ("--prompt {missing}", "no such file"),
        ("-m {missing}", "no model"),
        ("--tokenizer image-grid", "makes tokens of tiny"),
        ("--device tpu", "unknown device 'tpu'"),
    ],
)
def test_a_wrong_word_is_one_line_and_leaves_nothing(
    words: str, message: str, image_words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: tmp_path / name for name in ("photo", "clip", "missing")}
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(places["photo"], "PNG")
    soundfile.write(str(places["clip"]), np.zeros(2400), 24000, format="WAV")
    assert codec("generate", *image_words, *words.format(**places).split(), "-o", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("codec: ")
    assert message in line
    assert names(tmp_path) == ["clip", "photo"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--prompt {clip} --keep 0.2", "everything would be kept of 0.133333 s"),
        ("--prompt {clip} --keep 0.001", "less than a frame would be kept"),
        ("--prompt {clip} --keep nan", "above 0, got nan"),
        ("--synthesis sharp", "only tokenizers of pictures"),
    ],
)
def test_a_wrong_word_for_sounds(
    words: str, message: str, audio_words: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.wav"
    soundfile.write(str(clip), np.zeros(9600), 24000)
    assert codec("generate", *audio_words, *words.format(clip=clip).split(), "-o", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert names(tmp_path) == ["clip.wav"]


def test_without_transformers(
    image_words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert codec("generate", *image_words, "-o", tmp_path / "out") == 2
    assert "pip install 'tokodec[generate]'" in capsys.readouterr().err
    assert names(tmp_path) == []


def test_fitting_and_sheets() -> None:
    rows = np.repeat(np.arange(100, dtype=np.uint8)[:, None, None], 60, 1).repeat(3, 2)
    assert fit(rows, 30, 30, beginning=False).shape == (30, 30, 3)
    assert abs(int(fit(rows, 30, 30, beginning=False)[15, 0, 0]) - 50) <= 2  # the middle
    assert int(fit(rows, 30, 30, beginning=True)[0, 0, 0]) <= 1  # the top
    assert fit(rows, 200, 200, beginning=False).shape == rows.shape
    assert sheet([rows] * 5).shape == (204, 188, 3)
    assert sheet([rows]).shape == rows.shape
    tone = np.sin(2 * np.pi * 3000 * np.arange(4800) / 24000)
    picture = drawn(tone).sum(2, dtype=int)
    assert picture.shape == (256, 1 + 4800 // 256)
    assert int(picture[:, 10].argmax()) == 255 - 64  # 3000 Hz of 12000, from below
    assert drawn(np.zeros(7)).max() == 4  # silence is dark


# --------------------------------------------------------------------------------------------------------------- bench


def test_bench_of_sounds(
    audio_words: list[object], sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    assert codec("bench", "generator", sounds, *audio_words, "--full", "-n", 2, "--limit", 3, "-o", out) == 0
    text = capsys.readouterr().out
    assert "all passes were timed" in text
    report = json.loads(out.read_text())
    assert [row["model"] for row in report["bits"]] == [
        "generator", "context, same windows", "context, as in files", "static",
    ]  # fmt: skip
    assert report["windows"] == 9
    assert report["speed"]["ids"] == report["speed"]["passes"] == 30
    assert report["speed"]["ratio"] == pytest.approx(report["speed"]["uncached_s"] / report["speed"]["cached_s"])
    # By hand, for one of them.
    generator = Generator.from_pretrained(str(audio_words[1]))
    tokenizer = Tokenizer.from_pretrained(str(audio_words[3]))
    codes = []
    for i in range(3):
        x = torch.from_numpy(soundfile.read(str(sounds / f"s{i}.wav"), dtype="float32")[0])[None, None]
        codes.append(generator.windows(tokenizer.encode(x).codes[0, :3]))
    cells = generator.bits(Tokens(torch.cat(codes), generator.config.window)).sum() / 90
    assert report["bits"][0]["cell"] == pytest.approx(float(cells), rel=1e-4)


def test_bench_of_pictures(
    image_words: list[object], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One too small is left out; without one that is large enough there is nothing to do."""
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((20, 60, 3), np.uint8)).save(small)
    assert codec("bench", "generator", small, *image_words) == 2
    assert "no input holds a whole window of 3 x 3 cells" in capsys.readouterr().err
    assert codec("bench", "generator", small, pictures / "5.png", *image_words, "-n", 1) == 0
    text = capsys.readouterr().out
    assert "2 windows of 1 signals, 1 too small" in text
    assert "static" in text


# ------------------------------------------------------------------------------------------------------------ the rest


def test_the_example_for_transformers(
    pictures: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A plain transformers Trainer on our ids, in less than 60 lines, two steps of it."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "codec" / "corpus" / "README.md").read_text(), re.S)
    (example,) = [block for block in blocks if "Trainer(" in block]
    assert example.count("\n") < 60
    settings = 'MODEL, FOLDER, STEPS = "image-grid", "pictures", 1000'
    assert settings in example
    example = example.replace(settings, f"MODEL, FOLDER, STEPS = {str(tiny_model)!r}, {str(pictures)!r}, 2")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "codec/corpus/README.md", "exec"), {"__name__": "example"})
    assert float(capsys.readouterr().out.splitlines()[-1]) > 0


def test_tokenizers_compile(tiny_model: Path, sound_model: Path) -> None:
    for folder, x in ((tiny_model, torch.rand(1, 3, 32, 32)), (sound_model, 0.1 * torch.randn(1, 1, 640))):
        tokenizer = Tokenizer.from_pretrained(folder)
        tokens = tokenizer.encode(x)
        encode: Any = torch.compile(tokenizer.encode, backend="eager")
        decode: Any = torch.compile(tokenizer.decode, backend="eager")
        assert torch.equal(encode(x).codes, tokens.codes)
        torch.testing.assert_close(decode(tokens), tokenizer.decode(tokens), atol=1e-5, rtol=1e-4)
