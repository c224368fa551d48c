"""Released models: within the size limits, loadable, and as good on the sample pictures as their cards say."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tokodec
from tokodec.codec.bench.metrics import feature_distance
from tokodec.codec.generate.model import load_generator
from tokodec.codec.image.format import Extras
from tokodec.codec.image.quality import photo_file
from tokodec.codec.media.audio import read_audio
from tokodec.codec.media.read_image import read_image
from tokodec.codec.media.synthetic import KINDS, synthetic_picture
from tokodec.codec.metrics.picture import ms_ssim, psnr
from tokodec.codec.metrics.spectra import mel_distance
from tokodec.codec.models import list_generators, list_models, load_model
from tokodec.entropy.context.prior import ContextPrior
from tokodec.entropy.hyperprior.prior import HyperPrior
from tokodec.tests.motion_model import decoded_motion
from tokodec.tokenizers.audio.grvq import RATE, AudioGRVQ, StreamingDecoder, StreamingEncoder
from tokodec.tokenizers.folders import ASSETS, read_config, released_models
from tokodec.tokenizers.image.grid import ImageGrid
from tokodec.tokenizers.image.photo import ImagePhoto
from tokodec.tokenizers.image.sequence import ImageSequence
from tokodec.tokenizers.image.tiling import decode_tiled, encode_tiled
from tokodec.tokenizers.video.motion import Near, VideoMotion
from tokodec.tokenizers.video.motion_records import GUESSED, STANDS_ALONE

TABLES_HASH = "03114317a85fa2da74094318e197ad19b44b7eca1ba8e7ad6ba32ae79348b400"
PHOTO_HASHES = {
    "image-photo": "ce9ec180d9b00f94f3df73d07f43d07ca6aaac93e9d50fb7b6bdd16e55f4fd93",
    "video-motion": "5effb18c12d2bafdf26defb1c7ebb8a61093bed7812e709e552260b979912d20",
    "image-photo-2": "4b1d1f743c79f2a73f826fd19de96ad63e4a570e5bd0d6bd27e2bccfb10efb68",
}
SAMPLE = ASSETS / "kodim05.webp"  # the hard one: fine detail everywhere


@pytest.fixture(scope="module")
def model() -> ImageGrid:
    found = tokodec.load("image-grid", "cpu")
    assert isinstance(found, ImageGrid)
    return found


@pytest.mark.parametrize("name", released_models())
def test_a_release_is_complete_and_small(name: str) -> None:
    folder = ASSETS / name
    files = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "README.md", "training.json"} <= files
    base = read_config(folder).get("base")
    assert base is None or base in released_models()
    parts = files if base is None else {p.name for p in (ASSETS / base).iterdir()}
    assert parts & {"prior.safetensors", "hyperprior.safetensors", "tail.safetensors"}
    for f in files:  # a tokenizer and its priors are trained and loaded on their own
        assert (folder / f).stat().st_size < 16 << 20
    assert sum((folder / f).stat().st_size for f in files) < 28 << 20
    assert not [f for f in files if Path(f).suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt")]
    card = (folder / "README.md").read_text()
    for section in ("## Data", "## Training", "## Results", "## Bad at", "## Licence"):
        assert section in card
    assert load_model(name).tokenizer.weights_hash in card
    assert load_model(name).prior.hash in card
    (entry,) = [entry for entry in list_models() if entry["name"] == name]
    tokenizer = load_model(name).tokenizer
    assert entry["modality"] == tokenizer.modality
    assert entry["rate_control"] == tokenizer.rate_control
    if tokenizer.rate_control == "levels":
        assert entry["codebook_sizes"] == list(tokenizer.codebook_sizes)


def test_released_generators_are_complete_and_small() -> None:
    """And know the tokens of a released tokenizer."""
    for entry in list_generators():
        folder = Path(entry["folder"])
        files = {p.name for p in folder.iterdir()}
        assert {"config.json", "model.safetensors", "README.md", "training.json"} <= files
        assert entry["bytes"] < 16 << 20
        card = (folder / "README.md").read_text()
        for section in ("## Data", "## Training", "## Results", "## Bad at", "## Licence"):
            assert section in card
        assert entry["weights_hash"] in card
        assert load_model(entry["tokenizer"]).tokenizer.weights_hash == entry["tokenizer_hash"]
        assert load_generator(entry["name"], "cpu").weights_hash == entry["weights_hash"]


def test_codebooks_are_used_on_the_training_set() -> None:
    training = json.loads((ASSETS / "image-grid" / "training.json").read_text())
    assert min(training["codebook_usage"]) > 0.95


@pytest.mark.parametrize(("levels", "most_bpp", "least_db"), [(1, 0.055, 20.2), (4, 0.190, 22.3)])
def test_rate_and_distortion_of_a_hard_picture(levels: int, most_bpp: float, least_db: float, tmp_path: Path) -> None:
    done = tokodec.encode_file(SAMPLE, tmp_path / "a.tok", model="image-grid", levels=levels)
    assert (tmp_path / "a.tok").stat().st_size == len(done.data)
    assert done.bpp <= most_bpp
    x_hat = tokodec.decode_file(tmp_path / "a.tok").picture.pixels
    assert psnr(read_image(SAMPLE, "sample", 1 << 20).pixels, x_hat) >= least_db


def test_the_sharp_net_is_nearer_in_deep_features_and_the_faithful_one_in_pixels(tmp_path: Path) -> None:
    easy = ASSETS / "kodim23.webp"
    x = read_image(easy, "sample", 1 << 20).pixels
    data = tmp_path / "a.tok"
    tokodec.encode_file(easy, data, model="image-grid", levels=1)
    faithful, sharp = (tokodec.decode_file(data, synthesis=s).picture.pixels for s in ("faithful", "sharp"))
    assert psnr(x, faithful) > psnr(x, sharp)
    assert feature_distance(x, sharp) < feature_distance(x, faithful)
    assert (ms_ssim(x, sharp) or 0) > 0.8


def test_the_context_prior_is_in_the_card() -> None:
    assert load_model("image-grid", prior="context").prior.hash in (ASSETS / "image-grid" / "README.md").read_text()


def test_the_context_prior_computes_these_tables_on_every_machine() -> None:
    """The codes are made with integers, so that nothing but the prior decides the hash."""
    prior = load_model("image-grid", prior="context").prior
    assert isinstance(prior, ContextPrior)
    number = np.arange(4 * 11 * 13, dtype=np.int64).reshape(4, 11, 13)
    codes = number * 7919 % np.array(prior.codebook_sizes)[:, None, None]
    assert prior.tables_hash(codes) == TABLES_HASH


@pytest.mark.parametrize(("sample", "least"), [("kodim05", 0.08), ("kodim23", 0.24)])  # the hard one and an easy one
def test_what_the_context_prior_saves_at_every_number_of_levels(sample: str, least: float, model: ImageGrid) -> None:
    pixels = read_image(ASSETS / f"{sample}.webp", "sample", 1 << 20).pixels
    codes = encode_tiled(model, torch.from_numpy(pixels)).codes[0].numpy()
    static, context = (
        np.cumsum([len(p) for p in load_model("image-grid", prior=kind).prior.compress(codes)])
        for kind in ("static", "context")
    )
    assert (context < static * (1 - least)).all(), (static, context)


@pytest.mark.parametrize("kind", ["static", "context"])
def test_files_are_as_long_as_the_tables_say(kind: str, model: ImageGrid) -> None:
    prior = load_model("image-grid", prior=kind).prior
    pixels = read_image(SAMPLE, "sample", 1 << 20).pixels
    codes = encode_tiled(model, torch.from_numpy(pixels)).codes[0].numpy()
    for payload, bits in zip(prior.compress(codes), prior.bits(codes), strict=True):
        assert 8 * len(payload) <= 1.01 * bits + 64


def test_tiles_give_the_codes_and_pixels_of_the_whole(model: ImageGrid) -> None:
    pixels = read_image(SAMPLE, "sample", 1 << 20).pixels
    pixels = np.ascontiguousarray(pixels[:501, :707])  # borders inside a cell
    whole = model.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
    tiled = encode_tiled(model, torch.from_numpy(pixels), cells=15)
    # The sums of a convolution may be ordered differently for another width; only a near tie may notice.
    assert int((tiled.codes != whole.codes).any(1).sum()) <= 1
    x_hat = model.decode(whole)[0].mul(255).round().byte().permute(1, 2, 0)
    x_tiled = decode_tiled(model, whole, cells=15)
    assert int((x_hat.int() - x_tiled.int()).abs().max()) <= 1


# ------------------------------------------------------------------------------------------------ image-photo


@pytest.fixture(scope="module")
def photo() -> ImagePhoto:
    found = tokodec.load("image-photo", "cpu")
    assert isinstance(found, ImagePhoto)
    return found


@pytest.mark.parametrize(("quality", "most_bpp", "least_db"), [(5, 0.25, 25.2), (50, 0.97, 32.0), (95, 3.6, 40.0)])
def test_photo_rate_and_distortion_of_a_hard_picture(
    quality: float, most_bpp: float, least_db: float, tmp_path: Path
) -> None:
    done = tokodec.encode_file(SAMPLE, tmp_path / "a.tok", quality=quality)  # the default model
    assert done.bpp <= most_bpp
    x_hat = tokodec.decode_file(tmp_path / "a.tok").picture.pixels
    assert psnr(read_image(SAMPLE, "sample", 1 << 20).pixels, x_hat) >= least_db


@pytest.mark.parametrize("bpp", [0.1, 0.3, 0.6])
def test_photo_hits_a_wanted_size_from_below(bpp: float, tmp_path: Path) -> None:
    done = tokodec.encode_file(ASSETS / "kodim23.webp", tmp_path / "a.tok", bpp=bpp)
    assert 0.97 * bpp <= done.bpp <= bpp


def test_photo_files_are_as_long_as_the_tables_say(photo: ImagePhoto) -> None:
    pixels = read_image(SAMPLE, "sample", 1 << 20).pixels
    y = photo.analyse_tiled(torch.from_numpy(pixels))
    for steps in (1000, 5000, 9000):
        walk = photo.quantise(y, steps)
        payloads = photo.entropy.payloads(walk, 3)
        assert 8 * sum(map(len, payloads)) <= 1.001 * photo.entropy.bits(walk).sum() + 3 * 48


@pytest.mark.parametrize(("sample", "quality"), [("kodim05", 8), ("kodim05", 60), ("kodim23", 65), ("kodim23", 90)])
def test_photo_files_are_within_a_percent_of_the_bits(sample: str, quality: int, photo: ImagePhoto) -> None:
    """Everything around the payloads included, from a quarter of a bit per pixel on."""
    pixels = read_image(ASSETS / f"{sample}.webp", "sample", 1 << 20).pixels
    walks = [w for _, w in photo.quantise_windows(photo.analyse_tiled(torch.from_numpy(pixels)), 100 * quality)]
    file = photo_file(photo, walks, 100 * quality, pixels.shape[:2], Extras(3, 8))
    assert 8 * len(file) / pixels[..., 0].size > 0.24
    assert 8 * len(file) <= 1.01 * sum(photo.entropy.bits(w).sum() for w in walks)


@pytest.mark.parametrize("name", PHOTO_HASHES)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_photo_codes_are_these_on_every_machine(device: str, name: str) -> None:
    """Latents are made with integers, so that nothing but the entropy model decides codes, means and tables."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    entropy = HyperPrior.from_pretrained(ASSETS / name, device)
    m = entropy.latents
    number = np.arange(m * 11 * 13, dtype=np.int64).reshape(m, 11, 13)
    y = ((number * 7919 % 1009 - 504) / 16 / (1 + np.arange(m) // 16)[:, None, None]).astype(np.float32)
    z = (np.arange(128 * 3 * 4).reshape(128, 3, 4) * 31 % 9 - 4).astype(np.float32)
    found = hashlib.sha256()
    for steps in (500, 5000, 9500):
        walk = entropy.quantise(y, z, steps)
        payloads = entropy.payloads(walk, 5)
        back = entropy.decompress(payloads, (11, 13), steps, 5)
        assert (back.codes == walk.codes).all()
        assert (back.latents == walk.latents).all()
        for part in (walk.codes.tobytes(), walk.latents.tobytes(), *payloads):
            found.update(part)
    assert found.hexdigest() == PHOTO_HASHES[name]


@pytest.mark.parametrize(("kind", "least_db"), [("hatching", 24.0), ("saturated", 28.0), ("test_chart", 24.0)])
def test_no_drawn_picture_is_destroyed(kind: str, least_db: float, tmp_path: Path) -> None:
    """And more quality is never further off; `image-photo` stays under 20 dB on most of these."""
    x = synthetic_picture(list(KINDS).index(kind), 3000, size=(192, 256))
    model = tokodec.load("image-photo-2", "cpu")
    assert isinstance(model, ImagePhoto)
    y = model.analyse_tiled(torch.from_numpy(x))
    found = []
    for steps in (2000, 5000, 9000):
        walk = model.quantise(y, steps)
        found.append(psnr(x, model.synthesise_tiled(walk.latents, steps, (192, 256)).numpy()))
    assert found == sorted(found)
    assert found[1] >= least_db


def test_a_frame_that_comes_after_another_takes_half_the_bits() -> None:
    """Of one that stands alone, a decibel below it at most, where a camera moves over a hard photograph."""
    with Image.open(SAMPLE) as im:
        pixels = np.asarray(im.convert("RGB"))
    frames = [np.ascontiguousarray(pixels[200 + t : 328 + t, 150 + 3 * t : 310 + 3 * t]) for t in (0, 2)]
    model = tokodec.load("video-motion", "cpu")
    assert isinstance(model, VideoMotion)
    alone = [model.encode_alone(frame, 4000) for frame in frames]
    after = model.encode_after(frames[1], 4000, [Near(alone[0][1], -2)])
    assert len(after[0]) < 0.5 * len(alone[1][0])
    levels = [psnr(frames[1], model.pixels_of(found, (128, 160))) for _, found in (after, alone[1])]
    assert levels[0] > levels[1] - 1


def test_a_golden_video_decodes_to_its_codes() -> None:
    """Of every kind of frame, with the weights that are released: `python tests/golden/make.py motion` with new ones.
    Pixels of references may drift apart a little between machines."""
    folder = Path(__file__).parent / "golden" / "motion"
    data, expected = (folder / "six.tok").read_bytes(), json.loads((folder / "expected.json").read_text())
    kinds = {"guessed" if q == GUESSED else "alone" if q & STANDS_ALONE else "after" for q in expected["qualities"][1:]}
    assert kinds >= {"alone", "after"}
    before, seen = torch.get_num_threads(), expected.pop("seen")
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = decoded_motion(data)
            assert np.abs(np.array(found.pop("seen")) - np.array(seen)).max() <= 3
            assert found | {"bytes": len(data)} == expected
    finally:
        torch.set_num_threads(before)


def test_photo_prefixes_of_the_layers_are_coarser_pictures(photo: ImagePhoto, tmp_path: Path) -> None:
    x = read_image(SAMPLE, "sample", 1 << 20).pixels
    tokodec.encode_file(SAMPLE, tmp_path / "a.tok", quality=60)
    found = [psnr(x, tokodec.decode_file(tmp_path / "a.tok", levels=n).picture.pixels) for n in range(1, 6)]
    assert found == sorted(found)
    assert found[0] > 18


# ------------------------------------------------------------------------------------------------------------- image-1d


def test_more_tokens_are_nearer_and_few_are_tiny_files(tmp_path: Path) -> None:
    """32 tokens a window are under 0.008 bits a pixel; shared by content, as many in all are nearer."""
    x = read_image(SAMPLE, "sample", 1 << 20).pixels
    model = tokodec.load("image-1d", "cpu")
    assert isinstance(model, ImageSequence)
    tokens = model.encode(torch.from_numpy(x.copy()).permute(2, 0, 1)[None].float() / 255)
    alike = []
    for n in (16, 32, 64, 128, 256):
        pixels = model.decode(tokens.levels(n))[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        alike.append((psnr(x, pixels), ms_ssim(x, pixels) or 0, -feature_distance(x, pixels)))
    for quality in zip(*alike, strict=True):
        assert list(quality) == sorted(quality)
    done = tokodec.encode_file(SAMPLE, tmp_path / "a.tok", model="image-1d", tokens=6 * 32, device="cpu")
    assert done.bpp < 0.008
    shared = tokodec.decode_file(tmp_path / "a.tok", device="cpu").picture.pixels
    assert psnr(x, shared) > alike[1][0]


# ----------------------------------------------------------------------------------------------------------- generators


def test_samples_are_pictures_and_sounds() -> None:
    """Nothing to compare them with: they are neither flat nor noise, and their codes are ones that belong together."""
    seed = torch.Generator().manual_seed(0)
    image = load_generator("generator-image", "cpu")
    tokens = image.sample(1, generator=seed, top_p=0.95)
    drawn = float(image.bits(tokens).sum())
    shuffled = replace(tokens, codes=tokens.codes.flatten(2)[..., torch.randperm(256)].view_as(tokens.codes))
    assert drawn < 0.9 * float(image.bits(shuffled).sum())
    pixels = tokodec.load("image-grid", "cpu").decode(tokens)[0]
    assert 0.02 < float(pixels.std()) < 0.4
    assert float((pixels[:, :, 1:] - pixels[:, :, :-1]).abs().mean()) < 0.5 * float(pixels.std())


# ------------------------------------------------------------------------------------------------------------ audio-24k

SPEECH = ASSETS / "ljspeech.ogg"  # not among the training sounds
SOUND_HASH = "46aed71a2c1d41ed7b289852ba7e5dc429b8ada09fd316717c296e5f36a46473"
PRIORS = ("context", "static")
SAVED = 0.78  # of fixed-length codes at about 3 kbit/s


@pytest.fixture(scope="module")
def audio() -> AudioGRVQ:
    found = tokodec.load("audio-24k", "cpu")
    assert isinstance(found, AudioGRVQ)
    return found


def test_codebooks_of_sounds_are_used() -> None:
    training = json.loads((ASSETS / "audio-24k" / "training.json").read_text())
    assert min(training["codebook_usage"]) > 0.95


@pytest.mark.parametrize(("kbps", "most_mel"), [(1.5, 0.223), (3.0, 0.191), (5.0, 0.176)])
def test_rate_and_distortion_of_speech(kbps: float, most_mel: float, tmp_path: Path) -> None:
    """The default of `codec encode` for a sound, from a file and back."""
    done = tokodec.encode_file(SPEECH, tmp_path / "a.tok", kbps=kbps, device="cpu")
    assert (tmp_path / "a.tok").stat().st_size == len(done.data)
    assert 0.93 * kbps < done.kbps <= kbps
    sound = read_audio(SPEECH, "sample")
    heard = tokodec.decode_file(tmp_path / "a.tok", device="cpu").sound
    assert heard.sample_rate == sound.sample_rate
    assert heard.samples.shape == sound.samples.shape
    x, x_hat = torch.from_numpy(sound.samples), torch.from_numpy(heard.samples)
    assert float(mel_distance(x, x_hat, RATE)) < most_mel


def test_the_prior_of_sounds_saves_bits(audio: AudioGRVQ) -> None:
    """Against fixed-length codes, and against the static prior, on speech that no training saw."""
    x = torch.from_numpy(read_audio(SPEECH, "sample").samples)[None]
    codes = audio.encode(x).codes[0].numpy()
    segments = [codes[:, i : i + 150] for i in range(0, codes.shape[1], 150)]  # of two seconds, as in files
    context, static = (sum(load_model("audio-24k", "cpu", kind).prior.bits(s) for s in segments) for kind in PRIORS)
    fixed = codes.shape[1] * np.log2(audio.codebook_sizes)
    assert context[:5].sum() < SAVED * fixed[:5].sum()
    assert context.sum() < static.sum()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tables_of_sounds_are_these_on_every_machine(device: str, audio: AudioGRVQ) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU here")
    prior = ContextPrior.from_pretrained(ASSETS / "audio-24k", device)
    number = np.arange(10 * 100, dtype=np.int64).reshape(10, 100)
    codes = number * 7919 % np.array(audio.codebook_sizes)[:, None]
    assert prior.tables_hash(codes) == SOUND_HASH
    payload = prior.compress_joint([codes, codes[:3]])
    assert all(map(np.array_equal, prior.decompress_joint(payload, (10, 3), (100,)), (codes, codes[:3])))


def test_streams_of_speech_are_the_whole(audio: AudioGRVQ) -> None:
    """Chunks of 80 ms with the released weights: the same codes, near ties at most 1 in 100,000; samples to 1e-4."""
    x = torch.from_numpy(read_audio(SPEECH, "sample").samples)[None]
    whole = audio.encode(x)
    encoder, decoder = StreamingEncoder(audio), StreamingDecoder(audio)
    codes = torch.cat([*(encoder.push(part) for part in x.split(1920, 2)), encoder.finish()], 2)
    assert int((codes != whole.codes).sum()) <= 1e-5 * codes.numel()
    samples = [decoder.push(part) for part in whole.codes.split(6, 2)]
    heard = torch.cat([*samples, decoder.finish()], 2)[:, :, : x.shape[2]]
    assert torch.allclose(heard, audio.decode(whole), atol=1e-4)
