"""A tokenizer from a package that is not ours goes through everything, and no line of the product knows of it."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from PIL import Image

from tokodec.codec import registry
from tokodec.codec.media.write_video import SoundTrack, VideoWriter
from tokodec.codec.registry import PriorKind, register_format, register_prior
from tokodec.entropy.packed import file_hash
from tokodec.tokenizers.registry import TokenizerKind, register_tokenizer

TOYS = {
    path.stem: path for path in sorted((Path(__file__).resolve().parent / "toy").glob("*.py"))
}  # modules of classes by the names of their files
CLASSES = {"toy_tokenizer": "BlockColours", "toy_sound": "Bands", "toy_video": "Grays", "toy_adapted": "ShopVQ"}
SAVE = """
import sys, torch, toy_tokenizer, toy_sound, toy_video, toy_adapted
torch.manual_seed(0)
for toy in (toy_tokenizer.BlockColours(), toy_sound.Bands(), toy_video.Grays(), toy_adapted.ShopVQ(name="shop")):
    toy.save_pretrained(f"{sys.argv[1]}/{toy.name}")
"""
COMMANDS = """
import json, sys
from tokodec.codec.cli import run
for words in json.loads(sys.argv[1]):
    if code := run(words):
        sys.exit(code)
"""
DATASET = """
import sys, torch, tokodec
from tokodec.datasets import TokenDataset
dataset = TokenDataset(sys.argv[1], model=sys.argv[2], crop=32)
print(len(dataset), tuple(dataset[0].shape), dataset.codebook_sizes)
tokenizer = tokodec.load(sys.argv[2])
print(type(tokenizer).__name__, tuple(tokenizer.decode(dataset.tokens(0)).shape))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which the package of the toy is installed, and the toy nowhere else."""
    site = tmp_path_factory.mktemp("site")
    for path in TOYS.values():
        (site / path.name).write_text(path.read_text())
    info = site / "toy_tokenizer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-tokenizer\nVersion: 1.0\n")
    rows = [f"{CLASSES[module]} = {module}:KIND\n" for module in TOYS]
    (info / "entry_points.txt").write_text("[tokodec.tokenizers]\n" + "".join(rows))
    home = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *home])}


@pytest.fixture(scope="module")
def models(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    python(installed, SAVE, folder)
    return folder


@pytest.fixture(scope="module")
def model(models: Path) -> Path:
    return models / "block-colours"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((83, 70), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def python(environment: dict[str, str], code: str, *arguments: object, fails: bool = False) -> str:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def codec(environment: dict[str, str], *commands: list[object], fails: bool = False) -> str:
    """Commands of `codec` one after the other, in one process."""
    return python(environment, COMMANDS, json.dumps([[str(word) for word in words] for words in commands]), fails=fails)


@pytest.mark.parametrize("toy", TOYS)
def test_a_toy_is_a_page(toy: str) -> None:
    assert len(TOYS[toy].read_text().splitlines()) < 100


def test_files(installed: dict[str, str], model: Path, pictures: Path, tmp_path: Path) -> None:
    """Encode, info, decode, at every number of levels; without an entropy model codes have fixed lengths."""
    source, commands, sizes = pictures / "0.png", [], []
    for levels in (1, 2):
        tok, back = tmp_path / f"{levels}.tok", tmp_path / f"{levels}.png"
        commands += [
            ["encode", source, "-m", model, "--levels", levels, "-o", tok],
            ["info", tok, "--json"],
            ["decode", tok, "-m", model, "-o", back],
        ]
    for levels, line in zip((1, 2), codec(installed, *commands).splitlines(), strict=True):
        told = json.loads(line)
        assert (told["model"], told["prior"], told["stride"], told["layers"]) == ("block-colours", "static", 8, levels)
        sizes.append(sum(told["layer_bytes"]))
        error = np.asarray(Image.open(tmp_path / f"{levels}.png")).astype(float) - np.asarray(Image.open(source))
        blocks = error[:64, :80].reshape(8, 8, 10, 8, 3).mean((1, 3))
        assert np.abs(blocks).max() <= 255 / (10 if levels == 1 else 30) + 1.5  # half a step
    cells = 9 * 11
    assert sizes[0] * 8 == pytest.approx(cells * np.log2(125), abs=64)
    assert sizes[1] * 8 == pytest.approx(cells * np.log2(125 * 27), abs=128)
    line = codec(installed, ["decode", tmp_path / "2.tok", "-o", tmp_path / "x.png"], fails=True)
    assert line.count("\n") == 1
    assert "give its folder with --model" in line


def there_and_back(
    environment: dict[str, str], model: Path, source: Path, suffix: str, out: Path, *more: list[object]
) -> tuple[int, ...]:
    """Tokens of a medium, from them "back" + suffix and by way of a file "again" + suffix, and both corpora of its
    folder, all in ``out``. Returns the shape of the codes."""
    tokens, tok = out / "tokens.npz", out / "back.tok"
    codec(
        environment,
        ["tokenize", source, "-m", model, "-o", tokens],
        *(["detokenize", tokens, "-m", model, "-o", path] for path in (out / f"back{suffix}", tok)),
        ["decode", tok, "-m", model, "-o", out / f"again{suffix}"],
        *(["tokenize", source.parent, "-m", model, "-o", out / name] for name in ("corpus.tar", "corpus.bin")),
        *more,
    )
    assert min((out / name).stat().st_size for name in ("corpus.tar", "corpus.bin")) > 0
    with np.load(tokens) as arrays:
        shape: tuple[int, ...] = arrays["codes"].shape
    return shape


def test_tokens_and_corpora(installed: dict[str, str], model: Path, pictures: Path, tmp_path: Path) -> None:
    assert there_and_back(installed, model, pictures / "0.png", ".png", tmp_path) == (1, 2, 9, 11)
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("back.png", "again.png"))
    assert np.array_equal(first, second)
    told = python(installed, DATASET, pictures, model).splitlines()
    assert told == ["4 (2, 4, 4) (125, 27)", "BlockColours (1, 3, 32, 32)"]


TRAIN = "import sys; from tokodec.train.prior import main; main(sys.argv[1:])"
SMALL = ["net.width=[16]", "net.hidden=[32]", "net.features=[8]", "net.digit=[8]", "data.views=1", "optim.rows=256"]
TRAINED = {  # by toy: a recipe, and what a medium is written as
    "block-colours": ("context", ".png"),
    "bands": ("context-audio", ".wav"),
    "grays": ("context-video", ".mkv"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_prior_is_trained_and_used(
    name: str, installed: dict[str, str], models: Path, pictures: Path, sounds: Path, videos: Path, tmp_path: Path
) -> None:
    """A prior learns from media of a toy; files are coded with it, and decode to the same as without it."""
    recipe, suffix = TRAINED[name]
    source = min({"block-colours": pictures, "bands": sounds, "grays": videos}[name].iterdir())
    media = tmp_path / "media"
    media.mkdir()
    for i in range(4):
        (media / f"{i}{source.suffix}").write_bytes(source.read_bytes())
    words = ["--data", media, "--tokenizer", models / name, "--recipe", recipe, "--steps", 12, "--device", "cpu"]
    told = python(installed, TRAIN, *words, "--out", tmp_path / "prior", "--set", "data.holdout_every=2", *SMALL)
    assert "order-0" in told
    trained = tmp_path / "with-prior"
    trained.mkdir()
    for path in (*(models / name).iterdir(), tmp_path / "prior" / "context.safetensors"):
        (trained / path.name).write_bytes(path.read_bytes())
    commands = []
    for prior, own in (("context", trained), ("static", models / name)):
        tok = tmp_path / f"{prior}.tok"
        sound = ["--no-sound"] * (name == "grays")
        commands += [["encode", source, "-m", own, *sound, "-o", tok], ["info", tok, "--json"]]
        commands += [["decode", tok, "-m", own, "-o", tmp_path / f"{prior}{suffix}"]]
    told = codec(installed, *commands)
    found = [json.loads(line) for line in told.splitlines()]
    assert [info["prior"] for info in found] == ["context", "static"]
    assert found[0]["prior_hash"] == file_hash(trained / "context.safetensors")
    made = [tmp_path / f"{prior}{suffix}" for prior in ("context", "static")]
    if name == "grays":
        assert np.array_equal(pictures_of(made[0]), pictures_of(made[1]))
    else:
        assert made[0].read_bytes() == made[1].read_bytes()
    if name == "block-colours":
        for bench in ("prior", "conceal"):
            codec(installed, ["bench", bench, source, "-m", trained, "--device", "cpu", "-o", tmp_path / "found.json"])
            assert json.loads((tmp_path / "found.json").read_text())["model"] == "with-prior"


def test_devices(
    installed: dict[str, str], models: Path, pictures: Path, sounds: Path, videos: Path, tmp_path: Path
) -> None:
    """A device beside itself reads the same codes of the same files, whatever sets the rate."""
    expected: dict[str, tuple[Path, list[object], dict[str, object]]] = {
        "block-colours": (pictures, [], {"setting": None}),
        "bands": (sounds, ["--levels", 2], {"codes": 2 * 2 * 1313}),
        "grays": (videos, [], {"codes": 2 * [23 * 5 * 7], "same_bytes": True, "largest": 0}),
    }
    commands: list[list[object]] = [
        ["bench", "devices", folder, "-m", models / name, *more, "--device", "cpu", "-o", tmp_path / name]
        for name, (folder, more, _) in expected.items()
    ]
    codec(installed, *commands)
    for name, (folder, _, fields) in expected.items():
        report = json.loads((tmp_path / name).read_text())
        assert report["model"] == name
        assert len(report["rows"]) == len(list(folder.iterdir()))
        assert all(row["same_codes"] for row in report["rows"])
        assert {key: report["rows"][0][key] for key in fields} == fields
    made = report["rows"][0]["made"]
    assert (made["other_codes"], made["whole_cpu"]) == ([0, 0], True)


def test_a_benchmark(installed: dict[str, str], model: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["bench", "image", pictures, "-m", model, "--against", "jpeg", "--metrics", "psnr", "--limit", 2]
    codec(installed, [*words, "--no-memory", "-o", tmp_path / "out"])
    assert "block-colours" in (tmp_path / "out" / "results.json").read_text()


def test_an_adapted_module(installed: dict[str, str], models: Path, pictures: Path, tmp_path: Path) -> None:
    """An autoencoder around ResidualVQ: its folder is found by the entry point, counted, and its codes come back."""
    model, tok = models / "shop", tmp_path / "a.tok"
    told = codec(
        installed,
        ["encode", pictures / "0.png", "-m", model, "-o", tok],
        ["info", tok, "--json"],
        ["decode", tok, "-m", model, "-o", tmp_path / "a.png"],
        ["prior", pictures, "-m", model, "--quiet"],
        ["encode", pictures / "0.png", "-m", model, "-o", tmp_path / "b.tok"],
        ["info", tmp_path / "b.tok", "--json"],
        ["decode", tmp_path / "b.tok", "-m", model, "-o", tmp_path / "b.png"],
        *(["tokenize", tmp_path / f"{name}.tok", "-m", model, "-o", tmp_path / f"{name}.npz"] for name in "ab"),
    )
    fixed, counted = map(json.loads, told.splitlines())
    assert (fixed["model"], fixed["layers"], fixed["stride"]) == ("shop", 3, 8)
    assert sum(fixed["layer_bytes"]) * 8 == pytest.approx(9 * 11 * 3 * 6, abs=3 * 64)
    assert counted["bytes"] < fixed["bytes"]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        assert np.array_equal(a["codes"], b["codes"])


# -------------------------------------------------------------------------------------------------------------- sounds


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven seconds of two different channels, and one of one, by name as benchmarks want them."""
    folder = tmp_path_factory.mktemp("sounds")
    t = np.arange(7 * 44100) / 44100
    left = 0.3 * np.sin(2 * np.pi * 200 * t) * (1 + np.sin(3 * t))
    soundfile.write(folder / "music_a.wav", np.stack([left, 0.6 * left], 1), 44100)
    soundfile.write(folder / "speech_b.wav", left[:44100], 44100)
    return folder


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


def test_files_of_sounds(installed: dict[str, str], models: Path, sounds: Path, tmp_path: Path) -> None:
    """Block by block with context; a part decodes to the samples of the whole; a rate is met level by level."""
    model, source = models / "bands", sounds / "music_a.wav"
    tok, rated = tmp_path / "a.tok", tmp_path / "rated.tok"
    told = codec(
        installed,
        ["encode", source, "-m", model, "-o", tok],
        ["encode", source, "-m", model, "--kbps", 6, "-o", rated],
        ["info", tok, "--json"],
        ["info", rated, "--json"],
        *(["decode", tok, "-m", model, "-o", tmp_path / name, *more] for name, more in (
            ("whole.wav", []), ("one.wav", ["--levels", 1]), ("part.wav", ["--start", 3.1, "--end", 5.7]),
        )),
        ["decode", rated, "-m", model, "-o", tmp_path / "rated.wav"],
    )  # fmt: skip
    whole, limited = map(json.loads, told.splitlines())
    assert (whole["model"], whole["prior"], whole["coded_rate"], whole["stride"]) == ("bands", "static", 12000, 64)
    assert (whole["segment"], whole["segments"], whole["signals"]) == (375, 4, 2)
    assert limited["kbps"] <= 6 < whole["kbps"]
    x, x_hat = samples(source), samples(tmp_path / "whole.wav")
    assert x_hat.shape == x.shape

    def error(name: str) -> float:
        return float(np.square(samples(tmp_path / name) - x)[441:-441].mean() / np.square(x).mean())

    assert error("whole.wav") < 0.02
    assert error("whole.wav") <= error("rated.wav") < 0.5
    assert error("one.wav") > error("whole.wav")
    first, last = round(3.1 * 44100), round(5.7 * 44100)
    assert np.array_equal(samples(tmp_path / "part.wav"), x_hat[first:last])
    line = codec(installed, ["encode", source, "-m", model, "--effort", 1, "-o", tmp_path / "x.tok"], fails=True)
    assert "effort is not an option of bands" in line


def test_tokens_of_sounds(installed: dict[str, str], models: Path, sounds: Path, tmp_path: Path) -> None:
    model = models / "bands"
    shape = there_and_back(installed, model, sounds / "music_a.wav", ".wav", tmp_path)
    assert shape == (2, 3, -(-7 * 12000 // 64))
    back, again = samples(tmp_path / "back.wav"), samples(tmp_path / "again.wav")
    assert back.shape == (7 * 12000, 2)
    assert np.abs(back - again).max() < 1e-3
    told = python(installed, DATASET.replace("crop=32", "crop=0.5"), sounds, model).splitlines()
    assert told == ["2 (3, 94) (6561, 6561, 6561)", "Bands (1, 1, 6016)"]


def test_a_benchmark_of_sounds(installed: dict[str, str], models: Path, sounds: Path, tmp_path: Path) -> None:
    words = ["bench", "audio", sounds, "-m", models / "bands", "--kbps", 4, "--metrics", "mel", "--baselines", ""]
    codec(installed, [*words, "--no-memory", "-o", tmp_path / "out"])
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {entry["codec"] for entry in report["aggregates"]} == {"bands", "opus"}


# -------------------------------------------------------------------------------------------------------------- videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 frames of 50 x 36 pixels in which a gray ramp moves, with a second and a half of sound."""
    folder = tmp_path_factory.mktemp("videos")
    sound, rate = (0.2 * np.sin(np.arange(36000) / 20)).astype(np.float32), Fraction(30)
    track = SoundTrack(24000, 1)
    with (
        (folder / "a.mkv").open("wb") as file,
        VideoWriter(file, ".mkv", "a.mkv", 36, 50, time_base=1 / rate, rate=rate, sound=track) as writer,
    ):
        for i in range(45):
            ramp = (4 * (np.arange(50) + i) % 256).astype(np.uint8)
            writer.write(np.broadcast_to(ramp[None, :, None], (36, 50, 3)).copy(), i / rate, 1 / rate)
        writer.write_sound(sound[None])
    return folder


def pictures_of(path: Path) -> np.ndarray:
    """Frames ``[n, H, W, 3]``."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(np.float64)


def test_files_of_videos(installed: dict[str, str], models: Path, videos: Path, tmp_path: Path) -> None:
    """Segments of whole clips of even numbers of frames; a rate is met level by level; the sound is a toy's, too."""
    model, source = models / "grays", videos / "a.mkv"
    tok, rated = tmp_path / "a.tok", tmp_path / "rated.tok"
    sound = ["--sound-model", models / "bands"]
    told = codec(
        installed,
        ["encode", source, "-m", model, *sound, "-o", tok],
        ["encode", source, "-m", model, "--no-sound", "--bytes", 600, "-o", rated],
        ["info", tok, "--json"],
        ["decode", tok, "-m", model, *sound, "-o", tmp_path / "whole.mkv"],
        ["decode", tok, "-m", model, "--no-sound", "--start", 1.2, "-o", tmp_path / "part.mkv"],
        ["decode", rated, "-m", model, "-o", tmp_path / "rated.mkv"],
    )
    whole = json.loads(told)
    assert [whole[name] for name in ("group", "first", "stride", "segment", "segments")] == [2, 2, 8, 34, 2]
    assert whole["grid"] == [23, 5, 7]
    assert (whole["sound_model"], whole["sound_rate"]) == ("bands", 24000)
    assert rated.stat().st_size <= 600
    x, x_hat = pictures_of(source), pictures_of(tmp_path / "whole.mkv")
    assert x_hat.shape == (45, 36, 50, 3)
    blocks = (x_hat - x)[:44, :32, :48].reshape(22, 2, 4, 8, 6, 8, 3).mean((1, 3, 5))
    assert np.abs(blocks).max() < 255 / 64 / 2 + 3  # half a step, and what the output format rounds
    part = pictures_of(tmp_path / "part.mkv")
    assert np.array_equal(part, x_hat[36:])
    error = [float(np.square(pictures_of(tmp_path / name) - x).mean()) for name in ("whole.mkv", "rated.mkv")]
    assert error[0] < error[1]
    line = codec(installed, ["encode", source, "-m", model, "--effort", 1, "-o", tmp_path / "x.tok"], fails=True)
    assert "effort is not an option of grays" in line


def test_tokens_of_videos(installed: dict[str, str], models: Path, videos: Path, tmp_path: Path) -> None:
    model = models / "grays"
    bench: list[object] = ["bench", "video", videos, "--models", model, "--codecs", "x264", "--no-memory"]
    bench += ["-o", tmp_path / "bench"]
    assert there_and_back(installed, model, videos / "a.mkv", ".mkv", tmp_path, bench) == (1, 2, 23, 5, 7)
    told = python(installed, DATASET.replace("crop=32", "crop=(4, 16, 24)"), videos, model).splitlines()
    assert told == ["1 (2, 2, 2, 3) (8, 8)", "Grays (1, 3, 4, 16, 24)"]
    back, again = pictures_of(tmp_path / "back.mkv"), pictures_of(tmp_path / "again.mkv")
    assert np.array_equal(back, again)
    report = json.loads((tmp_path / "bench" / "results.json").read_text())
    assert {entry["codec"] for entry in report["aggregates"]} == {"grays", "x264"}


# ---------------------------------------------------------------------------------------------------------- registries


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="another tokenizer class called 'ImageGrid'"):
        register_tokenizer("ImageGrid", TokenizerKind("elsewhere", "image"))
    same = TokenizerKind(".image.grid", "image", quantizer="rvq of simvq")
    register_tokenizer("ImageGrid", same)  # once more
    for name, kind in (("context", PriorKind(64, "x.safetensors", "x:X")), ("mine", PriorKind(2, "x", "x:X"))):
        with pytest.raises(ValueError, match=r"another entropy model|wire ids"):
            register_prior(name, kind)
    with pytest.raises(ValueError, match="another format of image"):
        register_format("image", "levels", "elsewhere:Format")
    with pytest.raises(ValueError, match="unknown modality"):
        register_format("smell", "levels", "elsewhere:Format")


def test_an_entropy_model_of_others_has_a_number_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ADDED", {})
    register_prior("mine", PriorKind(70, "mine.safetensors", "my_package:Mine"))
    assert registry.PRIOR_NAMES[70] == "mine"
    assert next(iter(registry.prior_kinds())) == "mine"  # it is what a model that has it is used with
    with pytest.raises(ValueError, match="wire id 70"):
        register_prior("other", PriorKind(70, "other.safetensors", "my_package:Other"))
    with pytest.raises(KeyError):
        registry.PRIOR_NAMES[71]
