"""Files, corpora, entropy models and benchmarks of tokenizers of others, by the command line and by Python."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader

import tokodec
from tokodec.codec.cli import run
from tokodec.codec.datasets import TokenDataset
from tokodec.codec.models import load_model
from tokodec.entropy.static import StaticPrior
from tokodec.tests.adapted_models import CODECS, saved, tiny_adapted, tiny_codec, tiny_vqgan
from tokodec.tokenizers.folders import find_model, name_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    for kind in CODECS:
        saved(tiny_codec(kind), home / kind)
    return home


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds of two different channels at 44.1 kHz, and a second of one."""
    folder = tmp_path_factory.mktemp("sounds")
    t = np.arange(5 * 44100) / 44100
    left = 0.3 * np.sin(2 * np.pi * 220 * t) * (1 + np.sin(3 * t))
    right = 0.2 * np.sin(2 * np.pi * 330 * t + 1) * (1 + np.sin(2 * t))
    soundfile.write(folder / "music_a.wav", np.stack([left, right], 1), 44100)
    soundfile.write(folder / "speech_b.wav", left[:44100], 44100)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(3):
        coarse = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((83, 70), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def codec(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    """One command of `codec`: what it prints, or its one line of complaint."""
    found = run([str(word) for word in words])
    out, err = capsys.readouterr()
    assert found == code, err
    if code:
        assert err.count("\n") == 1, err
    return err if code else out


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


# -------------------------------------------------------------------------------------------------------------- sounds


@pytest.mark.parametrize("kind", CODECS)
def test_files_of_sounds(
    kind: str, models: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Codes in a file are those of the original; a part is cut out of the whole; codebooks are dropped for a rate."""
    model, source = models / kind, sounds / "music_a.wav"
    tok, rated = tmp_path / "a.tok", tmp_path / "rated.tok"
    codec(capsys, "encode", source, "-m", model, "-o", tok, "--quiet")
    whole = json.loads(codec(capsys, "info", tok, "--json"))
    rate = {"dac": 16000}.get(kind, 24000)
    assert (whole["model"], whole["prior"], whole["coded_rate"], whole["stride"]) == (kind, "static", rate, 320)
    assert whole["weights_hash"] == tokodec.load(model, "cpu").weights_hash
    codec(capsys, "encode", source, "-m", model, "--kbps", 0.7 * whole["kbps"], "-o", rated, "--quiet")
    assert json.loads(codec(capsys, "info", rated, "--json"))["kbps"] <= 0.7 * whole["kbps"]
    for name, path, more in (
        ("whole", tok, []), ("one", tok, ["--levels", 1]), ("rated", rated, []),
        ("part", tok, ["--start", 2.3, "--end", 4.1]),
    ):  # fmt: skip
        codec(capsys, "decode", path, "-m", model, "-o", tmp_path / f"{name}.wav", "--quiet", *more)
    x_hat = samples(tmp_path / "whole.wav")
    assert x_hat.shape == samples(source).shape
    part = samples(tmp_path / "part.wav")
    assert np.array_equal(part, x_hat[round(2.3 * 44100) : round(4.1 * 44100)])
    for name in ("one", "rated"):
        assert not np.array_equal(samples(tmp_path / f"{name}.wav"), x_hat)

    tokens = tokodec.tokenize_file(source, model=str(model)).tokens
    assert torch.equal(tokodec.tokenize_file(tok, model=str(model)).tokens.codes, tokens.codes)
    decoded = tokodec.load(model, "cpu").decode(tokens)[:, 0].numpy()
    stereo = np.stack([decoded[0] + decoded[1], decoded[0] - decoded[1]], 1)
    at_rate = tmp_path / "at-rate.tok"
    soundfile.write(tmp_path / "at-rate.wav", np.zeros((8, 2)), rate)
    tokodec.detokenize_file(dump(tokens, tmp_path), at_rate, model=str(model))
    again = tokodec.decode_file(at_rate, model=str(model)).sound.samples.T
    assert np.abs(again - stereo).max() < 1e-4 * np.abs(stereo).max()  # segments with context, see adapters/README.md


def dump(tokens: tokodec.Tokens, folder: Path) -> Path:
    from tokodec.codec.corpus.token_files import dump_tokens

    path = folder / "dumped.npz"
    path.write_bytes(dump_tokens(tokens, ".npz"))
    return path


@pytest.mark.parametrize("kind", CODECS)
def test_tokens_and_corpora(
    kind: str, models: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models / kind
    codec(capsys, "tokenize", sounds / "music_a.wav", "-m", model, "-o", tmp_path / "a.npz", "--quiet")
    for suffix in (".wav", ".tok"):
        codec(capsys, "detokenize", tmp_path / "a.npz", "-m", model, "-o", tmp_path / f"back{suffix}", "--quiet")
    for name in ("corpus.tar", "corpus.bin"):
        codec(capsys, "tokenize", sounds, "-m", model, "-o", tmp_path / name, "--quiet")
        assert (tmp_path / name).stat().st_size > 0
    tokens = tokodec.tokenize_file(tmp_path / "back.tok", model=str(model)).tokens
    with np.load(tmp_path / "a.npz") as arrays:
        assert np.array_equal(arrays["codes"], tokens.codes.numpy())


def test_datasets_in_spawned_workers(models: Path, sounds: Path) -> None:
    dataset = TokenDataset(sounds, model=models / "encodec", crop=0.5)
    own = [dataset[i] for i in range(len(dataset))]
    loader = DataLoader(dataset, num_workers=1, multiprocessing_context="spawn")
    assert all(torch.equal(codes[0], wanted) for codes, wanted in zip(loader, own, strict=True))
    assert dataset.sequencer().flatten(dataset.tokens(0)).shape[0] == 1


def test_a_benchmark(models: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "audio", sounds, "-m", models / "dac", "--kbps", 6, "--metrics", "mel", "--baselines", ""]
    codec(capsys, *words, "--no-memory", "-o", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {entry["codec"] for entry in report["aggregates"]} == {"dac", "opus"}


# ------------------------------------------------------------------------------------------------------------ pictures


def test_files_of_pictures(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("diffusers")
    model, source = saved(tiny_vqgan(), tmp_path / "vqgan"), pictures / "0.png"
    tok, back = tmp_path / "a.tok", tmp_path / "a.png"
    codec(capsys, "encode", source, "-m", model, "-o", tok, "--quiet")
    codec(capsys, "decode", tok, "-m", model, "-o", back, "--quiet")
    found = json.loads(codec(capsys, "info", tok, "--json"))
    assert (found["model"], found["prior"], found["stride"], found["layers"]) == ("vqgan", "static", 4, 1)
    assert sum(found["layer_bytes"]) * 8 == pytest.approx(18 * 21 * 5, abs=64)
    tokenizer: Any = tokodec.load(model, "cpu")
    pixels = torch.from_numpy(np.asarray(Image.open(source)).copy())
    tokens = tokenizer.encode_picture(pixels)
    assert torch.equal(tokodec.tokenize_file(tok, model=str(model)).tokens.codes, tokens.codes)
    assert np.array_equal(np.asarray(Image.open(back)), tokenizer.decode_picture(tokens).numpy())


@pytest.mark.parametrize("kind", ["ResidualVQ", "GroupedResidualVQ", "FSQ"])
def test_a_tokenizer_itself_is_a_model(kind: str, pictures: Path, tmp_path: Path) -> None:
    """No folder, no registry: the object that `adapt` gave encodes, decodes, tokenizes and fills a dataset."""
    model, source = tiny_adapted("image", kind), pictures / "0.png"
    encoded = tokodec.encode_file(source, tmp_path / "a.tok", model=model)
    assert encoded.levels == len(model.codebook_sizes)
    picture = tokodec.decode_file(tmp_path / "a.tok", model=model).picture
    pixels = torch.from_numpy(np.asarray(Image.open(source)).copy())
    tokens = model.encode_picture(pixels)
    assert np.array_equal(picture.pixels, model.decode_picture(tokens).numpy())
    assert torch.equal(tokodec.tokenize_file(source, model=model).tokens.codes, tokens.codes)
    assert torch.equal(TokenDataset(pictures, model=model)[0], tokens.codes[0])
    with pytest.raises(tokodec.TokodecError, match="made with the model adapted, which does not come with tokodec"):
        tokodec.decode_file(tmp_path / "a.tok")
    with pytest.raises(tokodec.TokodecError, match=r"made with weights .* of adapted, the adapted at hand has"):
        tokodec.decode_file(tmp_path / "a.tok", model=tiny_adapted("image", kind, seed=1))


def test_a_file_of_clips(tmp_path: Path) -> None:
    model = tiny_adapted("video", "ResidualVQ")
    clip = torch.rand(1, 3, 6, 20, 30, generator=torch.Generator().manual_seed(0))
    tokens = model.encode(clip, rate=25.0)
    tokodec.detokenize_file(dump(tokens, tmp_path), tmp_path / "a.tok", model=model)
    assert torch.equal(tokodec.tokenize_file(tmp_path / "a.tok", model=model).tokens.codes, tokens.codes)


# ------------------------------------------------------------------------------------------------------ entropy models


def test_static_tables_of_a_folder(
    models: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted, stored beside the model, used from then on; files of before still decode."""
    model, source = tmp_path / "encodec", sounds / "music_a.wav"
    shutil.copytree(models / "encodec", model)
    before, after = tmp_path / "before.tok", tmp_path / "after.tok"
    codec(capsys, "encode", source, "-m", model, "-o", before, "--quiet")
    codec(capsys, "prior", sounds, "-m", model, "--quiet")
    prior = StaticPrior.from_pretrained(model)
    tokens = [tokodec.tokenize_file(path, model=str(model)).tokens.codes for path in sorted(sounds.iterdir())]
    levels = range(tokens[0].shape[1])
    counts = [sum(np.bincount(own[:, k].flatten(), minlength=64) for own in tokens) for k in levels]
    wanted = StaticPrior.from_counts(counts)
    assert all(np.array_equal(a, b) for a, b in zip(prior.tables, wanted.tables, strict=True))
    codec(capsys, "encode", source, "-m", model, "-o", after, "--quiet")
    assert after.stat().st_size < before.stat().st_size
    assert json.loads(codec(capsys, "info", after, "--json"))["prior_hash"] == prior.hash
    for tok in (before, after):
        codec(capsys, "decode", tok, "-m", model, "-o", tok.with_suffix(".wav"), "--quiet")
    assert np.array_equal(samples(tmp_path / "before.wav"), samples(tmp_path / "after.wav"))
    line = codec(capsys, "prior", sounds, "-m", model, code=2)
    assert "exists already" in line
    line = codec(capsys, "decode", after, "-m", models / "encodec", "-o", tmp_path / "x.wav", code=2)
    assert "entropy model static" in line


def test_tables_of_an_object(pictures: Path, tmp_path: Path) -> None:
    model = tiny_adapted("image", "ResidualVQ")
    from tokodec.codec.counting import count_prior

    with pytest.raises(tokodec.TokodecError, match="lies in no folder"):
        count_prior(pictures.iterdir(), model)
    model.save_pretrained(tmp_path / "mine")
    prior = count_prior(sorted(pictures.iterdir()), model)
    assert load_model(model).prior.hash == prior.hash
    assert tokodec.encode_file(pictures / "0.png", model=model).data[:1] == b"\x89"


# -------------------------------------------------------------------------------------------------------------- errors


def test_what_is_wrong_is_one_line(
    models: Path, sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, tok = sounds / "speech_b.wav", tmp_path / "a.tok"
    codec(capsys, "encode", source, "-m", models / "dac", "-o", tok, "--quiet")
    line = codec(capsys, "decode", tok, "-o", tmp_path / "x.wav", code=2)
    assert "made with the model dac, which does not come with tokodec; give its folder with --model" in line
    line = codec(capsys, "decode", tok, "-m", models / "mimi", "-o", tmp_path / "x.wav", code=2)
    assert "the file was made with weights" in line
    net = tiny_codec("encodec")
    net.config.normalize = True
    loud = saved(net, tmp_path / "loud")
    capsys.readouterr()  # its library shows progress
    assert "divides chunks by their loudness" in codec(capsys, "encode", source, "-m", loud, "-o", "x.tok", code=2)
    lacks = tmp_path / "lacks"
    shutil.copytree(models / "dac", lacks)
    (lacks / "model.safetensors").rename(lacks / "pytorch_model.bin")
    assert "only safetensors weights are read" in codec(capsys, "encode", source, "-m", lacks, "-o", "x.tok", code=2)
    shutil.copyfile(models / "mimi" / "model.safetensors", lacks / "model.safetensors")
    line = codec(capsys, "encode", source, "-m", lacks, "-o", "x.tok", code=2)
    assert "does not fit its config.json" in line or "is no DacModel" in line
    (lacks / "config.json").write_text('{"model_type": "llama"}')
    assert "must hold exactly" in codec(capsys, "encode", source, "-m", lacks, "-o", "x.tok", code=2)
    config = json.loads((models / "dac" / "config.json").read_text())
    (lacks / "config.json").write_text(json.dumps(config | {"encoder_hidden_size": 1 << 14}))
    codec(capsys, "encode", source, "-m", lacks, "-o", "x.tok", code=2)
    adapted = tiny_adapted("image", "FSQ")
    adapted.save_pretrained(tmp_path / "adapted")
    line = codec(capsys, "encode", source, "-m", tmp_path / "adapted", "-o", "x.tok", code=2)
    assert "has no modules: they are code, make it with tokodec.adapt" in line
    monkeypatch.setitem(sys.modules, "transformers", None)
    load_model.__globals__["_load_tokenizer"].cache_clear()
    line = codec(capsys, "encode", source, "-m", models / "dac", "-o", "x.tok", code=2)
    assert "this model needs the package transformers: pip install 'tokodec[transformers]'" in line


def test_a_hub_id(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what files call the model, and only the user's own words fetch it."""
    import huggingface_hub

    snapshot = tmp_path / "models--facebook--encodec_24khz" / "snapshots" / "0123abcd"
    shutil.copytree(models / "encodec", snapshot)
    asked = []

    def download(name: str, **more: Any) -> str:
        asked.append((name, more["allow_patterns"]))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("hf:facebook/encodec_24khz") == snapshot
    assert asked == [("facebook/encodec_24khz", ["*.json", "*.safetensors", "README.md"])]
    model = tokodec.load(snapshot, "cpu")
    assert model.name == "facebook/encodec_24khz"
    soundfile.write(tmp_path / "a.wav", np.zeros(3000), 24000)
    tokodec.encode_file(tmp_path / "a.wav", tmp_path / "a.tok", model="hf:facebook/encodec_24khz")
    asked.clear()
    with pytest.raises(tokodec.TokodecError, match="give its folder with --model, or hf:facebook/encodec_24khz"):
        tokodec.decode_file(tmp_path / "a.tok")
    assert not asked
    tokodec.decode_file(tmp_path / "a.tok", model="hf:facebook/encodec_24khz")


@pytest.mark.parametrize(
    ("path", "name"),
    [("models/my codec!", "my-codec-"), ("..hidden", "hidden"), ("ü", "model"), ("x" * 80, "x" * 64)],
)
def test_names_of_folders_fit_a_header(path: str, name: str, tmp_path: Path) -> None:
    assert name_of(tmp_path / path) == name


def test_nothing_of_this_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, tokodec\n"
        "from tokodec.codec.cli import run\n"
        "run(['--help']); run(['models']); tokodec.load\n"
        "names = ('transformers', 'diffusers', 'vector_quantize_pytorch', 'tokodec.tokenizers.adapters')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize("modality", ["sound", "picture", "large picture", "clip"])
def test_static_tables_in_the_file_itself(modality: str, sounds: Path, tmp_path: Path, golden: Path) -> None:
    """Smaller where that pays, decodable without any other file, and nothing else of the file changes."""
    from tokodec.codec.container.chunks import CNTS
    from tokodec.codec.container.read import read_tok

    rng = np.random.default_rng(0)
    source, model = tmp_path / "a.png", tiny_adapted("image", "ResidualVQ")
    if modality == "sound":
        source, model = sounds / "music_a.wav", tiny_adapted("audio", "ResidualVQ")
    elif modality == "clip":
        source, model = golden / "video" / "clip.mkv", tiny_adapted("video", "ResidualVQ")
        write_clip(source := tmp_path / "a.mkv")
    else:
        side = 1200 if modality == "large picture" else 200  # several segments have an index
        coarse = rng.integers(0, 256, (side // 16, side // 16, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(source)
    fixed = tokodec.encode_file(source, model=model)
    own = tokodec.encode_file(source, tmp_path / "own.tok", model=model, prior="file")
    assert len(own.data) < len(fixed.data)
    tok = read_tok(own.data)
    assert tok.complete
    assert not tok.problems
    assert (CNTS, 0, 0) in tok.places
    assert tok.indexed == (modality == "large picture")
    (tmp_path / "fixed.tok").write_bytes(fixed.data)
    codes = [tokodec.tokenize_file(tmp_path / f"{name}.tok", model=model).tokens.codes for name in ("own", "fixed")]
    assert torch.equal(*codes)
    with pytest.raises(tokodec.TokodecError, match="prior file goes with levels, not with bytes"):
        tokodec.encode_file(source, model=model, prior="file", size=5000)
    damaged = bytearray(own.data)
    place = tok.places[CNTS, 0, 0]
    damaged[place + 20] ^= 1
    (tmp_path / "damaged.tok").write_bytes(damaged)
    with pytest.raises(tokodec.TokodecError, match="the file was made with entropy model static"):
        tokodec.decode_file(tmp_path / "damaged.tok", model=model)


def write_clip(path: Path) -> None:
    """Twenty frames in which a ramp moves."""
    from fractions import Fraction

    from tokodec.codec.media.write_video import VideoWriter

    rate = Fraction(20)
    with path.open("wb") as file, VideoWriter(file, ".mkv", "a", 64, 96, time_base=1 / rate, rate=rate) as writer:
        for i in range(20):
            ramp = (4 * (np.arange(96) + i) % 256).astype(np.uint8)
            writer.write(np.broadcast_to(ramp[None, :, None], (64, 96, 3)).copy(), i / rate, 1 / rate)


def test_tables_that_do_not_pay_are_left_out(tmp_path: Path, tiny_model: Path) -> None:
    Image.new("RGB", (16, 16), (9, 99, 199)).save(tmp_path / "a.png")
    model = tiny_adapted("image", "FSQ", levels=[8, 8, 8])
    own = tokodec.encode_file(tmp_path / "a.png", model=model, prior="file")
    assert own.data == tokodec.encode_file(tmp_path / "a.png", model=model).data
    with pytest.raises(tokodec.TokodecError, match="prior file is for models whose rate is a number of levels"):
        tokodec.encode_file(tmp_path / "a.png", prior="file", model="image-1d")


def test_counts_come_back() -> None:
    from tokodec.codec.container.chunks import pack_counts, read_counts
    from tokodec.codec.errors import ChunkError

    for levels in ([[0, 1, 65535], [7]], [[1 << 20, 3, 0], [70000, 2, 16]]):
        shift = max(0, max(max(level) for level in levels).bit_length() - 16)
        packed = pack_counts(levels)
        assert read_counts(packed, [len(level) for level in levels]) == [[n >> shift for n in own] for own in levels]
    for payload, sizes in ((packed, [3, 2]), (packed[:-5], [3, 3]), (b"?", [3, 3])):
        with pytest.raises(ChunkError, match="counts of codes"):
            read_counts(payload, sizes)


@pytest.mark.usefixtures("_trains")
def test_a_context_prior_of_a_codec(models: Path, sounds: Path, tmp_path: Path) -> None:
    """`train.prior --tokenizer FOLDER`: beside the weights it is what files are made with."""
    from tokodec.train.prior import main

    small = ["net.width=[16]", "net.hidden=[32]", "net.features=[8]", "net.digit=[8]", "data.views=1", "optim.rows=128"]
    words = ["--data", sounds, "--tokenizer", models / "dac", "--recipe", "context-audio", "--steps", 20]
    words += ["--out", tmp_path / "prior", "--device", "cpu", "--set", "data.holdout_every=2", *small]
    main([str(word) for word in words])
    model = tmp_path / "dac"
    shutil.copytree(models / "dac", model)
    shutil.copyfile(tmp_path / "prior" / "context.safetensors", model / "context.safetensors")
    encoded = tokodec.encode_file(sounds / "speech_b.wav", tmp_path / "a.tok", model=str(model))
    decoded = tokodec.decode_file(tmp_path / "a.tok", model=str(model))
    assert decoded.header.prior == 2
    fixed = tokodec.encode_file(sounds / "speech_b.wav", tmp_path / "b.tok", model=str(models / "dac"))
    again = tokodec.decode_file(tmp_path / "b.tok", model=str(models / "dac"))
    assert np.array_equal(decoded.sound.samples, again.sound.samples)
    assert encoded.levels == fixed.levels == 3
