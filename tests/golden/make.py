"""Makes everything in this folder: the model `tiny`, the files `*.tok`, what they decode to, and `bad/*.tok`.

Run `python tests/golden/make.py` (with the words `context`, `photo`, `sequence`, `sound`, `video`, `motion`, `fit` only
those folders), or any tests with GENERATE_EXPECTED=1, after a change of the format *before* it is released. Files of a
released format stay as they are: new ones are added under new names.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

from tokodec.codec.audio.encode import encode_sound
from tokodec.codec.container.chunks import HEAD, INDEX_ENTRY, LAYR, pack_chunk
from tokodec.codec.container.fields import SIGNATURE, ImageHeader, VideoHeader, write_header
from tokodec.codec.container.read import read_tok
from tokodec.codec.container.write import write_video
from tokodec.codec.contract import Encoded, Source
from tokodec.codec.decode import decode_file, file_tokens
from tokodec.codec.encode import encode_file
from tokodec.codec.formats import format_of
from tokodec.codec.image import photo_file as photo
from tokodec.codec.image.format import ImageFormat
from tokodec.codec.image.quality import read_walks
from tokodec.codec.media.audio import Sound, write_audio
from tokodec.codec.media.picture import Picture
from tokodec.codec.models import Model, load_model
from tokodec.codec.options import EncodeOptions, Rate, SoundOptions
from tokodec.codec.progress import SILENT
from tokodec.codec.video.decode import decode_frames, segment_frames_of
from tokodec.codec.video.encode import encode_video
from tokodec.codec.video.fit.optimize import Fit
from tokodec.codec.video.fit.payload import read_fitted
from tokodec.codec.video.segments import read_segment
from tokodec.entropy.context.net import ContextNet, LevelShape
from tokodec.entropy.context.prior import ContextPrior
from tokodec.entropy.hyperprior.export import export_hyperprior
from tokodec.entropy.hyperprior.net import Z_MAX, HyperNet, HyperShape
from tokodec.entropy.hyperprior.prior import HyperPrior
from tokodec.entropy.hyperprior.walk import CODE_MAX, Walk
from tokodec.entropy.schedule import offsets_within, refinement
from tokodec.entropy.static import StaticPrior
from tokodec.entropy.tail import TailPrior
from tokodec.tests.motion_model import decoded_motion
from tokodec.tokenizers.audio.grvq import AudioGRVQ, AudioGRVQConfig
from tokodec.tokenizers.image.grid import ImageGrid, ImageGridConfig
from tokodec.tokenizers.image.photo import ImagePhoto
from tokodec.tokenizers.image.photo_nets import ImagePhotoConfig
from tokodec.tokenizers.image.sequence import ImageSequence, ImageSequenceConfig, to_windows
from tokodec.tokenizers.image.tiling import Tile
from tokodec.tokenizers.quantize.residual import GroupResidualQuantizer, ResidualQuantizer
from tokodec.tokenizers.quantize.simvq import SimVQ
from tokodec.tokenizers.video.fit import DOWN, FEATURES, RIGHT, FitShape, Group
from tokodec.tokenizers.video.grid import VideoGrid, VideoGridConfig
from tokodec.train.image_1d import Autoencoder

HERE = Path(__file__).resolve().parent
TINY = HERE / "tiny"
CONTEXT = HERE / "context"  # the same tokenizer with a context prior, and files made with it
PHOTO = HERE / "photo"  # a model whose rate is set by a quality, and files made with it
SEQUENCE = HERE / "sequence"  # a model of windows, and files made with it
MOTION = HERE / "motion"  # a file of the released video-motion
FIT = HERE / "fit"  # a fitted video, with all kinds of grids
VIDEO = HERE / "video"  # a model for videos, both kinds of entropy models, and files made with it and that for sounds
SOUND = HERE / "sound"  # a model for sounds, both kinds of entropy models, and files made with them
SEQUENCE_CONFIG = ImageSequenceConfig(16, 2, 1, 1, 12, "simvq", 32, 4, 8)
CONFIG = ImageGridConfig(
    channels=(8, 8, 8),
    analysis_blocks=(1, 1, 1),
    synthesis_blocks=(1, 1, 1),
    dim=4,
    codebook_sizes=(64, 32, 16),
)


def smooth_noise(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture-like array, uint8 [H, W, C]: noise at several scales."""
    total = torch.zeros(1, channels, height, width)
    for scale in (2, 5, 13, 40):
        small = rng.normal(size=(1, channels, height // scale + 2, width // scale + 2)).astype(np.float32)
        total += F.interpolate(torch.from_numpy(small), (height, width), mode="bicubic") * scale**0.5
    total = 128 + 40 * total / total.std()
    return total[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


def make_tiny() -> None:
    """A model of random weights whose codes are diverse: codewords are samples of the latents that they stand for."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    model = ImageGrid(CONFIG, "tiny")
    for name, parameter in model.named_parameters():
        if "pointwise" in name:  # zero at the start of training; here they shall do something
            torch.nn.init.normal_(parameter, std=0.2)
    for head in model.synthesis.values():
        assert isinstance(head, torch.nn.Sequential)
        last = head[-2]
        assert isinstance(last, torch.nn.Conv2d)
        with torch.no_grad():
            last.weight *= 2
    model.save_pretrained(TINY)  # rounds the weights, so that the codewords fit what is released
    model = ImageGrid.from_pretrained(TINY)
    pictures = [smooth_noise(rng, 256, 256) for _ in range(12)]
    x = torch.stack([torch.from_numpy(p).permute(2, 0, 1).float() / 255 for p in pictures])
    with torch.no_grad():
        residual = model.latents(x).movedim(1, -1).reshape(-1, CONFIG.dim)
        for level in model.codebooks:
            chosen = torch.from_numpy(rng.choice(len(residual), level.codebook_sizes[0], replace=False))
            level.set_codewords(residual[chosen].half().float())
            residual = residual - level.codebook[torch.cdist(residual, level.codebook).argmin(1)]
    model.save_pretrained(TINY)
    model = ImageGrid.from_pretrained(TINY)
    codes = model.encode(x).codes
    counts = [torch.bincount(codes[:, k].flatten(), minlength=n) for k, n in enumerate(CONFIG.codebook_sizes)]
    print("codewords used:", [f"{float((c > 0).float().mean()):.0%}" for c in counts])
    StaticPrior.from_counts([c.numpy() for c in counts]).save_pretrained(TINY)


def profile() -> bytes:
    """An sRGB profile without today's date."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    made[24:36] = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)
    return bytes(made)


def exif() -> bytes:
    block = Image.Exif()
    block[270] = "a golden picture"
    return block.tobytes().removeprefix(b"Exif\0\0")


def pictures() -> dict[str, tuple[Picture, Rate]]:
    """The sources of the golden files."""
    rng = np.random.default_rng(2)
    flat = np.full((24, 16 * 64 + 20, 3), 90, np.uint8)  # 2 x 66 cells: two segments
    flat[:, 500:] = (30, 160, 220)
    alpha = np.zeros((40, 24), np.uint8)
    alpha[8:30, 5:20] = 200
    return {
        "pixel": (Picture(np.array([[[200, 30, 90]]], np.uint8)), Rate()),
        "gray": (Picture(smooth_noise(rng, 20, 33, 1)), Rate()),
        "extras": (Picture(smooth_noise(rng, 40, 24), alpha, profile(), exif(), 16), Rate()),
        "segments": (Picture(flat), Rate()),
        "coarse": (Picture(smooth_noise(rng, 50, 70)), Rate(levels=2)),
    }


def built(picture: Picture, model: Model, options: EncodeOptions) -> Encoded:
    """The file of a picture."""
    wing = format_of(model.tokenizer)
    assert isinstance(wing, ImageFormat)
    return wing.build(picture, model, options, SILENT)


def codes_hash(codes: torch.Tensor) -> str:
    """SHA-256 of codes ``[1, K, h, w]`` as little-endian int32 in C order, the first 32 hex digits."""
    return hashlib.sha256(codes.numpy().astype("<i4").tobytes()).hexdigest()[:32]


def make_files(model: Model) -> None:
    expected: dict[str, Any] = {}
    for name, (picture, rate) in pictures().items():
        made = built(picture, model, EncodeOptions(rate=rate))
        tokens = file_tokens(read_tok(made.data), str(TINY), "cpu")[0]
        (HERE / f"{name}.tok").write_bytes(made.data)
        kept = tokens.levels(made.levels)
        expected[name] = {"codes": codes_hash(kept.codes), "shape": list(kept.codes.shape), "bytes": len(made.data)}
        decode_file(HERE / f"{name}.tok", HERE / f"{name}.png", model=str(TINY), device="cpu", force=True)
    (HERE / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


def make_context() -> None:
    """A context prior of random weights for `tiny`, and files of every kind of picture made with it."""
    torch.manual_seed(3)
    CONTEXT.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, CONTEXT)
    codewords = ImageGrid.from_pretrained(TINY).codewords() or []
    shape = LevelShape(features=8, width=16, hidden=16, blocks=1, digit=8)
    schedules = [refinement(2, steps) for steps in (8, 4, 2, 1)]  # the last is the filler's
    net = ContextNet(codewords, schedules, [offsets_within(2, (1, 1))] * 4, [shape] * 4)
    ContextPrior(net.export()).save_pretrained(CONTEXT)
    model = load_model(str(CONTEXT))
    expected: dict[str, Any] = {}
    for name, (picture, rate) in pictures().items():
        made = built(replace(picture, icc=None, exif=None), model, EncodeOptions(rate=rate))
        tokens = file_tokens(read_tok(made.data), str(CONTEXT), "cpu")[0]
        (CONTEXT / f"{name}.tok").write_bytes(made.data)
        kept = tokens.levels(made.levels)
        expected[name] = {
            "codes": codes_hash(kept.codes),
            "tables": context_prior(model).tables_hash(kept.codes[0].numpy()),
            "bytes": len(made.data),
        }
    (CONTEXT / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


SOUND_CONFIG = AudioGRVQConfig(
    analysis_channels=(10, 12),
    analysis_blocks=(1, 1),
    synthesis_channels=(12, 10),
    synthesis_blocks=(1, 1),
    dim=8,
    codebook_sizes=(32, 16),
)


def hum(rng: np.random.Generator, samples: int, rate: int, channels: int) -> np.ndarray:
    """A sound-like array, float32 [channels, samples]: tones that come and go, and noise."""
    t = np.arange(samples) / rate
    total = 0.02 * rng.normal(size=(channels, samples))
    for frequency in (110, 330, 777, 2100):
        turns = rng.uniform(0.5, 3, (channels, 1)) * t + rng.uniform(size=(channels, 1))
        swell = 0.5 + 0.5 * np.sin(2 * np.pi * turns)
        total += 0.15 * swell * np.sin(2 * np.pi * frequency * t)
    return total.clip(-0.9, 0.9).astype(np.float32)


def sounds() -> dict[str, tuple[np.ndarray, int, Rate, str]]:
    """Name -> samples [channels, n], Hz, rate, entropy model."""
    rng = np.random.default_rng(7)
    mono = hum(rng, 24000 * 4 + 77, 24000, 1)
    return {
        "mono": (mono, 24000, Rate(), "context"),
        "static": (mono[:, :60_000], 24000, Rate(levels=3), "static"),
        "stereo": (hum(rng, 44100 * 3, 44100, 2), 44100, Rate(kbps=2.2), "context"),
        "same": (np.repeat(hum(rng, 16000, 16000, 1), 2, axis=0), 16000, Rate(levels=2), "context"),
        "three": (hum(rng, 8001, 8000, 3), 8000, Rate(levels=1), "context"),
        "sample": (np.full((1, 1), 0.5, dtype=np.float32), 48000, Rate(), "context"),
    }


def wav(samples: np.ndarray, rate: int) -> bytes:
    """A WAV file of 16 bits."""
    buffer = io.BytesIO()
    write_audio(Sound(samples, rate), buffer, ".wav", "a sound")
    return buffer.getvalue()


def make_sound_model() -> None:
    """A model of random weights whose codes are diverse, a static prior of its codes and a context prior of chance."""
    torch.manual_seed(9)
    rng = np.random.default_rng(9)
    SOUND.mkdir(exist_ok=True)
    model = AudioGRVQ(SOUND_CONFIG, "tiny-sound")
    for name, parameter in model.named_parameters():
        if ".down." in name and parameter.ndim > 1:  # zero at the start of training; here they shall do something
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(SOUND)  # rounds the weights, so that the codewords fit what is released
    model = AudioGRVQ.from_pretrained(SOUND)
    x = torch.from_numpy(hum(rng, 24000 * 20, 24000, 4))[:, None]
    with torch.no_grad():
        z = model.analysis(x).movedim(1, -1).reshape(-1, SOUND_CONFIG.dim)
        assert isinstance(model.quantizer, GroupResidualQuantizer)
        for group, residual in zip(model.quantizer.groups, z.chunk(2, 1), strict=True):
            assert isinstance(group, ResidualQuantizer)
            for level in group.levels:
                assert isinstance(level, SimVQ)
                chosen = torch.from_numpy(rng.choice(len(residual), level.codebook_sizes[0], replace=False))
                level.set_codewords(residual[chosen].half().float())
                residual = residual - level.codebook[torch.cdist(residual, level.codebook).argmin(1)]
    model.save_pretrained(SOUND)
    model = AudioGRVQ.from_pretrained(SOUND)
    codes = model.encode(x).codes
    sizes = model.codebook_sizes
    counts = [torch.bincount(codes[:, k].flatten(), minlength=n) for k, n in enumerate(sizes)]
    print("codewords used:", [f"{float((c > 0).float().mean()):.0%}" for c in counts])
    StaticPrior.from_counts([c.numpy() for c in counts]).save_pretrained(SOUND)
    shape = LevelShape(features=4, width=8, hidden=8, blocks=1, digit=8)
    schedules = [refinement(1, steps) for steps in (8, 4, 2, 2)]
    net = ContextNet([np.zeros((n, 0)) for n in sizes], schedules, [offsets_within(3, (1,))] * 4, [shape] * 4)
    ContextPrior(net.export()).save_pretrained(SOUND)


def make_sound() -> None:
    make_sound_model()
    for path in SOUND.glob("*.tok"):
        path.unlink()
    expected: dict[str, Any] = {}
    for name, (samples, rate, wanted, prior) in sounds().items():
        model = load_model(str(SOUND), "cpu", prior)
        source = Source(io.BytesIO(wav(samples, rate)), name, "audio")
        data, _, _ = encode_sound(source, model, EncodeOptions(rate=wanted))
        (SOUND / f"{name}.tok").write_bytes(data)
        tokens, _ = file_tokens(read_tok(data), str(SOUND), "cpu")
        heard = decode_file(io.BytesIO(data), model=str(SOUND), device="cpu").sound.samples
        expected[name] = {
            "codes": codes_hash(tokens.codes),
            "shape": list(tokens.codes.shape),
            "bytes": len(data),
            "sample_rate": rate,
            "samples": list(heard.shape),
            "heard": [round(float(v), 5) for v in heard[:, :: max(1, heard.shape[1] // 8)].ravel()],
        }
    (SOUND / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


VIDEO_CONFIG = VideoGridConfig(
    channels=(6, 8, 8),
    analysis_blocks=(1, 1, 1),
    analysis_time=(1, 1),
    synthesis_blocks=(1, 1, 1),
    synthesis_time=(1, 1),
    dim=4,
    codebook_sizes=(32, 16, 16),
)


def drift(rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    """A clip-like array, uint8 [T, H, W, 3]: a window that wanders over a picture."""
    picture = smooth_noise(rng, height + 40, width + 40)
    at = [(20 + 18 * np.sin(i / 7), 20 + 18 * np.cos(i / 5)) for i in range(frames)]
    return np.stack([picture[int(y) : int(y) + height, int(x) : int(x) + width] for y, x in at])


def make_video_model() -> None:
    """A model of random weights whose codes are diverse, a static prior of its codes and a context prior of chance."""
    torch.manual_seed(11)
    rng = np.random.default_rng(11)
    VIDEO.mkdir(exist_ok=True)
    model = VideoGrid(VIDEO_CONFIG, "tiny-video")
    for name, parameter in model.named_parameters():
        if "pointwise" in name or ".up." in name:  # zero at the start of training; here they shall do something
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(VIDEO)  # rounds the weights, so that the codewords fit what is released
    model = VideoGrid.from_pretrained(VIDEO)
    clips = np.stack([drift(rng, 9, 128, 128) for _ in range(8)])
    x = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 255  # [B, 3, T, H, W]
    with torch.no_grad():
        residual = model.latents(x).movedim(1, -1).reshape(-1, VIDEO_CONFIG.dim)
        for level in model.codebooks:
            chosen = torch.from_numpy(rng.choice(len(residual), level.codebook_sizes[0], replace=False))
            level.set_codewords(residual[chosen].half().float())
            residual = residual - level.codebook[torch.cdist(residual, level.codebook).argmin(1)]
        model.hold.fill_(float(residual.square().sum(1).mean()))
    model.save_pretrained(VIDEO)
    model = VideoGrid.from_pretrained(VIDEO)
    codes = model.encode(x).codes
    sizes = model.codebook_sizes
    counts = [torch.bincount(codes[:, k].flatten(), minlength=n) for k, n in enumerate(sizes)]
    print("codewords used:", [f"{float((c > 0).float().mean()):.0%}" for c in counts])
    StaticPrior.from_counts([c.numpy() for c in counts]).save_pretrained(VIDEO)
    shape = LevelShape(features=4, width=8, hidden=8, blocks=1, digit=8)
    schedules = [refinement(3, steps, walked=1) for steps in (4, 2, 2, 1)]  # the last is the filler's
    offsets = [offsets_within(1, (1, 1, 1))] * 4
    net = ContextNet([np.zeros((n, 0)) for n in sizes], schedules, offsets, [shape] * 4)
    ContextPrior(net.export()).save_pretrained(VIDEO)


def film(frames: np.ndarray, times: list[int], sound: np.ndarray | None = None) -> bytes:
    """A Matroska file with lossless frames [T, H, W, 3], at so many 1/1000 s each, and lossless sound of 24 kHz."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        track = None if sound is None else container.add_stream("flac", rate=24000, layout="mono")
        for pixels, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if track is not None and sound is not None:
            samples = av.AudioFrame.from_ndarray((sound * 32767).astype(np.int16), format="s16", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 24000, 2400, Fraction(1, 24000)
            container.mux(track.encode(samples))
            container.mux(track.encode(None))
    return buffer.getvalue()


def films() -> dict[str, tuple[bytes, Rate, str]]:
    """Name -> media file, rate, entropy model."""
    rng = np.random.default_rng(12)
    even = [40 * i for i in range(70)]
    uneven = [500 + 33 * i + 100 * (i > 4) for i in range(11)]
    wander = drift(rng, 70, 35, 50)
    return {
        "frame": (film(drift(rng, 1, 16, 16), [0]), Rate(levels=2), "context"),
        "even": (film(wander, even), Rate(kbps=1.4), "context"),
        "static": (film(wander[:34], even[:34]), Rate(levels=1), "static"),
        "uneven": (film(drift(rng, 11, 50, 20), uneven), Rate(), "context"),
        "sound": (film(wander[:40], even[:40], hum(rng, 24000 * 3, 24000, 1)), Rate(levels=2), "context"),
    }


def make_video() -> None:
    make_video_model()
    for path in VIDEO.glob("*.tok"):
        path.unlink()
    expected: dict[str, Any] = {}
    for name, (media, rate, prior) in films().items():
        model = load_model(str(VIDEO), "cpu", prior)
        options = EncodeOptions(rate=rate, sound=SoundOptions(model=str(SOUND)), device="cpu")
        made = encode_video(Source(io.BytesIO(media), name, "video"), model, options)
        (VIDEO / f"{name}.tok").write_bytes(made.data)
        tok = read_tok(made.data)
        digest, levels = hashlib.sha256(), []
        for segment in range(tok.video.n_segments):
            codes = read_segment(tok, model, segment)
            assert codes is not None
            levels.append(len(codes))
            digest.update(codes.astype("<i4").tobytes())
        frames = list(decode_frames(tok, segment_frames_of(tok, model)))
        expected[name] = {
            "codes": digest.hexdigest()[:32],
            "levels": levels,
            "bytes": len(made.data),
            "size": [len(frames), *frames[0][1].shape],
            "times": [str(time) for time, _ in frames][:12],
            "seconds": str(made.seconds),
            "seen": frames[-1][1][:: frames[0][1].shape[0] // 4, ::7].mean(2).round().astype(int).ravel().tolist(),
        }
    (VIDEO / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def make_motion() -> None:
    """Six frames by the released `video-motion`, the fourth of which has nothing to do with the others. To be made anew
    with its weights."""
    rng = np.random.default_rng(17)
    frames = drift(rng, 6, 64, 96)
    frames[3] = smooth_noise(rng, 64, 96)
    media = io.BytesIO(film(frames, [40 * i for i in range(6)]))
    made = encode_file(media, model="video-motion", quality=40, device="cpu")
    MOTION.mkdir(exist_ok=True)
    (MOTION / "six.tok").write_bytes(made.data)
    found = decoded_motion(made.data)
    (MOTION / "expected.json").write_text(json.dumps(found | {"bytes": len(made.data)}, indent=1) + "\n")


def make_fit() -> None:
    """Nine frames of 12 x 20 pixels that move down and to the right, by a few steps of fitting."""
    FIT.mkdir(exist_ok=True)
    picture = torch.from_numpy(smooth_picture(24, 40, 3))
    clip = torch.stack([picture[8 - i // 2 : 20 - i // 2, 12 - i : 32 - i] for i in range(9)])
    kinds = ((FEATURES, 0, 0, 2), (FEATURES, 4, 1, 2), (FEATURES, 1, 1, 2), (DOWN, 1, 1, 2), (RIGHT, 1, 1, 2))
    shape = FitShape(9, 12, 20, tuple(Group(*kind) for kind in kinds), margin=4, channels=8, hidden=6)
    fit = Fit(clip, shape, bit_cost=0.003)
    for i in range(300):
        fit.step(i / 300)
    payload = fit.export()
    header = VideoHeader(
        model="video-fit",
        weights_hash="0" * 16,
        prior=5,
        prior_hash="0" * 16,
        layers=1,
        height=12,
        width=20,
        stride=64,
        frames=9,
        group=1,
        segment=9,
        tick_seconds=1,
        tick_parts=25,
        start=0,
        duration=1,
        last=1,
    )
    (FIT / "clip.tok").write_bytes(write_video(header, [payload]))
    fitted = read_fitted(payload, 9, 12, 20)
    Image.fromarray(fitted.frames(0, 9).reshape(-1, 20, 3)).save(FIT / "clip.png", optimize=True)
    grids = b"".join(grid.astype("<i4").tobytes() for own in fitted.grids for grid in own)
    weights = b"".join(w.integers.astype("<i4").tobytes() + bytes([w.exponent]) for w in fitted.weights.values())
    expected = {"grids": hashlib.sha256(grids).hexdigest(), "weights": hashlib.sha256(weights).hexdigest()}
    (FIT / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def smooth_picture(height: int, width: int, seed: int) -> np.ndarray:
    """Random colours 16 pixels apart and what lies between, uint8 ``[H, W, 3]``."""
    coarse = torch.rand(1, 3, -(-height // 16), -(-width // 16), generator=torch.Generator().manual_seed(seed))
    x = F.interpolate(coarse, scale_factor=16, mode="bilinear")[0, :, :height, :width]
    return (255 * x).round().byte().permute(1, 2, 0).numpy()


def make_sequence_model() -> None:
    """A model that knows one picture a little, so that more tokens are better."""
    torch.manual_seed(0)
    SEQUENCE.mkdir(exist_ok=True)
    model = ImageSequence(SEQUENCE_CONFIG, "tiny-sequence").train()
    net = Autoencoder(model)
    x = to_windows(torch.from_numpy(smooth_picture(300, 530, 3)).permute(2, 0, 1)[None].float() / 255)[0].flatten(0, 1)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    kept = torch.tensor([1, 3, 12, 6, 8, 12])
    for step in range(120):
        x_hat, commitment, codebook, _ = net(x, kept.roll(step), True)
        optimizer.zero_grad()
        (10 * (x - x_hat).square().mean() + 0.25 * commitment + codebook).backward()
        optimizer.step()
    model.save_pretrained(SEQUENCE)
    counts = np.random.default_rng(0).integers(0, 9, (SEQUENCE_CONFIG.tokens, SEQUENCE_CONFIG.codebook_size))
    TailPrior.from_counts(counts).save_pretrained(SEQUENCE)


def make_sequence() -> None:
    make_sequence_model()
    for path in SEQUENCE.glob("*.tok"):
        path.unlink()
    model = load_model(str(SEQUENCE))
    picture = smooth_picture(300, 530, 3)
    pictures = {
        "all": (picture, Rate()),
        "shared": (picture, Rate(tokens=30)),
        "gray": (picture[:70, :80, :1], Rate(tokens=5)),
        "segments": (smooth_picture(40, 2500, 4), Rate(quality=40)),
    }
    expected: dict[str, Any] = {}
    for name, (pixels, rate) in pictures.items():
        data = built(Picture(np.ascontiguousarray(pixels)), model, EncodeOptions(rate=rate)).data
        (SEQUENCE / f"{name}.tok").write_bytes(data)
        tokens, _ = file_tokens(read_tok(data), str(SEQUENCE), "cpu")
        x_hat = decode_file(io.BytesIO(data), model=str(SEQUENCE), device="cpu").picture.pixels
        expected[name] = {
            "codes": codes_hash(tokens.codes),
            "shape": list(tokens.codes.shape),
            "bytes": len(data),
            "size": list(x_hat.shape),
            "pixels": x_hat[:: x_hat.shape[0] // 3, :: x_hat.shape[1] // 5].ravel().tolist(),
        }
    (SEQUENCE / "expected.json").write_text(json.dumps(expected) + "\n")


def context_prior(model: Model) -> ContextPrior:
    assert isinstance(model.prior, ContextPrior)
    return model.prior


PHOTO_CONFIG = ImagePhotoConfig(
    channels=(8, 16), analysis_blocks=(1, 1), synthesis_blocks=(1, 1), latents=10, hyper=6, hyper_width=8
)
PHOTO_SHAPE = HyperShape(hyper=6, slices=(2, 3, 5), middle=(8, 8), features=8, width=16, hidden=16, blocks=1, head=8)
PHOTO_SKIP = 17  # the largest scale whose codes are not coded


def make_photo_model() -> None:
    """A model that a minute of training made good enough to show which picture it was."""
    torch.manual_seed(5)
    rng = np.random.default_rng(5)
    model = ImagePhoto(PHOTO_CONFIG, "tiny-photo")
    nets, net = model.nets, HyperNet(PHOTO_SHAPE)
    heads = [parameter for name, parameter in net.named_parameters() if ".scale." in name]
    others = [parameter for name, parameter in net.named_parameters() if ".scale." not in name]
    groups = [([*nets.parameters(), *others], 4e-3), (heads, 6e-2)]  # scales are counted in units of 1
    with torch.no_grad():
        for dial, sign in ((nets.log_gain, 1), (nets.log_inverse, -1)):
            dial.points.copy_(sign * torch.linspace(-1, 4, len(dial.points))[:, None].expand_as(dial.points))
    optimizer = torch.optim.Adam([{"params": parameters, "lr": lr} for parameters, lr in groups])
    pictures = np.stack([smooth_noise(rng, 128, 128) for _ in range(64)])
    x_all = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    steps_of_training = 1000
    for i in range(steps_of_training):
        for group, (_, lr) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = lr * (1 - i / steps_of_training)
        x = x_all[torch.from_numpy(rng.integers(0, len(x_all), 8))]
        steps = torch.from_numpy(rng.integers(0, 10001, 8))
        kept = torch.from_numpy(rng.choice([0, 1, 2, 3, 3, 3, 3, 3], 8))
        quality = steps / 10000
        y = nets.analysis(2 * x - 1) * nets.gain(quality)
        z = nets.hyper_analysis(y)
        y_hat, y_bits, z_bits = net(y.movedim(1, 3), z.movedim(1, 3), steps, i > steps_of_training // 2, kept)
        x_hat = (nets.synthesis(y_hat.movedim(3, 1) * nets.inverse_gain(quality), quality) + 1) / 2
        error = (x_hat - x).square().mean((1, 2, 3)) * 255**2
        rate = (y_bits.sum(1) + z_bits) / 128**2
        loss = (error * 0.0002 * torch.exp(5 * quality) + rate).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*nets.parameters(), *net.parameters()], 1.0)
        optimizer.step()
        if i % 250 == 249:
            print(f"step {i + 1}: squared error {error.mean():.0f}, {rate.mean():.3f} bpp")
    last = nets.hyper_analysis[-1]
    assert isinstance(last, torch.nn.Conv2d)
    with torch.no_grad():
        last.weight *= 12  # few bits are worth spending on so small a z, but the fixture shall have some
        net.decoder.enter.weight.unflatten(1, (9, -1))[..., : PHOTO_CONFIG.hyper] /= 4
        quality = torch.linspace(0, 1, len(x_all))
        z = nets.hyper_analysis(nets.analysis(2 * x_all - 1) * nets.gain(quality)).round().clamp(-Z_MAX, Z_MAX)
    values = z.movedim(1, 0).flatten(1).long() + Z_MAX  # [hyper, n]
    counts = np.stack([torch.bincount(row, minlength=2 * Z_MAX + 1).numpy() for row in values])
    model.set_entropy(HyperPrior(export_hyperprior(net.eval(), counts, skip=PHOTO_SKIP)))
    model.save_pretrained(PHOTO)


def photo_pictures() -> dict[str, tuple[Picture, float, int]]:
    """The sources of the files: picture, quality, the fewest layers."""
    rng = np.random.default_rng(6)
    plain = pictures()
    wide = np.full((20, 16 * 64 + 6, 3), 90, np.uint8)  # 2 x 65 cells: two segments
    wide[:, 300:] = (30, 160, 220)
    wide[:, 1000:] = smooth_noise(rng, 20, 30)
    noise = rng.integers(0, 256, (70, 50, 3)).astype(np.uint8)  # no code is as expected
    return {
        "pixel": (plain["pixel"][0], 0, 1),
        "gray": (plain["gray"][0], 5.5, 1),
        "extras": (plain["extras"][0], 50, 1),
        "layers": (Picture(smooth_noise(rng, 90, 75)), 50, 3),
        "noise": (Picture(noise), 100, 2),
        "segments": (Picture(wide), 62.35, 3),
    }


def latents_hash(walks: list[tuple[Tile, Walk]]) -> str:
    """SHA-256 of the latents of all segments in 16ths, little-endian int32 in C order, the first 32 hex digits."""
    digest = hashlib.sha256()
    for _, walk in walks:
        sixteenths = np.round(16 * walk.latents).astype("<i4")
        assert np.array_equal(sixteenths / 16, walk.latents)
        digest.update(sixteenths.tobytes())
    return digest.hexdigest()[:32]


def make_photo_files(model: Model) -> None:
    tokenizer = model.tokenizer
    assert isinstance(tokenizer, ImagePhoto)
    reach = tokenizer.entropy.reach
    coded = skipped = excess = 0
    scales: set[int] = set()
    expected: dict[str, Any] = {}
    for name, (picture, quality, layers) in photo_pictures().items():
        with mock.patch.object(photo, "LAYERS", ((math.inf, layers),)):  # a writer may choose; ours would take one
            made = built(picture, model, EncodeOptions(rate=Rate(quality=quality)))
        (PHOTO / f"{name}.tok").write_bytes(made.data)
        walks, held = read_walks(read_tok(made.data), tokenizer)
        assert held == made.levels == layers
        for _, read in walks:
            walk = tokenizer.entropy.walk(read.z, read.codes, round(100 * quality))
            assert np.array_equal(walk.latents, read.latents)
            n = sum(step.codes.size for step in walk.steps)
            coded, skipped = coded + n, skipped + walk.codes.size - n
            excess += sum(int((np.abs(step.codes) >= reach[step.tables]).sum()) for step in walk.steps)
            scales |= {int(t) for step in walk.steps for t in step.tables}
            assert int(np.abs(walk.codes).max(initial=0)) < CODE_MAX
        tokens = tokenizer_tokens(model, made.data)
        expected[name] = {
            "codes": codes_hash(tokens),
            "latents": latents_hash(walks),
            "shape": list(tokens.shape),
            "quality": quality,
            "layers": layers,
            "bytes": len(made.data),
        }
        decode_file(PHOTO / f"{name}.tok", PHOTO / f"{name}.png", model=str(PHOTO), device="cpu", force=True)
    print(f"photo: {coded} codes, {skipped} skipped, {excess} with excess, {len(scales)} scales")
    (PHOTO / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


def tokenizer_tokens(model: Model, data: bytes) -> torch.Tensor:
    """Codes ``[1, K, h, w]`` of a file."""
    return format_of(model.tokenizer).tokens_of(read_tok(data), model).codes


def make_photo() -> None:
    make_photo_model()
    make_photo_files(load_model(str(PHOTO)))


def split_chunks(data: bytes) -> list[bytes]:
    """The framed chunks of an intact file, one after the other."""
    chunks, at = [], len(SIGNATURE) + 1
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at + 4 : at + 8], "little")
        chunks.append(data[at:end])
        at = end
    return chunks


def make_bad() -> None:
    """Files that must be refused, each by the error that its name starts with."""
    good = (HERE / "gray.tok").read_bytes()
    start, (head, *rest) = good[: len(SIGNATURE) + 1], split_chunks(good)
    header = read_tok(good).header
    segments = split_chunks((HERE / "segments.tok").read_bytes())

    def with_header(change: Callable[[bytearray], None] | None = None, **fields: Any) -> bytes:
        payload = bytearray(write_header(replace(header, **fields)))
        if change is not None:
            change(payload)
        return start + pack_chunk(HEAD, bytes(payload)) + b"".join(rest)

    def followed_by(extra: bytes) -> bytes:
        return start + pack_chunk(HEAD, write_header(header) + extra) + b"".join(rest)

    def put(at: int, value: bytes) -> Callable[[bytearray], None]:
        def change(payload: bytearray) -> None:
            payload[at : at + len(value)] = value

        return change

    # ... height u32, width u32, stride, segment, channels, alpha, bit depth; no quality
    size = len(write_header(header))
    height, width, stride = size - 13, size - 9, size - 5
    huge = ImageHeader(**{**vars(header), "height": 1 << 20, "width": 1 << 20, "segment": 128})
    unknown_in_index = pack_chunk(b"iNDX", INDEX_ENTRY.pack(b"WXYZ", 0, 0, len(start)))
    pointer = struct.pack("<Q", len(start) + len(b"".join(segments[:-2])))
    bad = {
        "SignatureError_empty": b"",
        "SignatureError_text": b"not a picture at all\n",
        "SignatureError_png": b"\x89PNG\r\n\x1a\n" + good[8:],
        "SignatureError_newlines": good.replace(b"\r\n", b"\n"),
        "VersionError_2": good[:8] + b"\x02" + good[9:],
        "VersionError_0": good[:8] + b"\x00" + good[9:],
        "TruncatedError_signature": good[:5],
        "TruncatedError_version": good[:8],
        "TruncatedError_header": good[:30],
        "TruncatedError_no_layer": start + head,
        "TruncatedError_one_segment_of_many": with_header(width=16 * 9, segment=1),
        "HeaderError_checksum": good[:20] + bytes([good[20] ^ 1]) + good[21:],
        "HeaderError_not_first": start + b"".join([*rest, head]),
        "HeaderError_modality": with_header(put(0, b"\x09")),
        "HeaderError_width_0": with_header(put(width, b"\0\0\0\0")),
        "HeaderError_height_too_large": with_header(put(height, struct.pack("<I", (1 << 20) + 1))),
        "ChunkError_stride_256": with_header(put(stride, b"\0")),
        "HeaderError_channels_2": with_header(put(size - 3, b"\x02")),
        "HeaderError_name": with_header(put(2, b"../x")),
        "HeaderError_short": start + pack_chunk(HEAD, write_header(header)[:-1]) + b"".join(rest),
        "HeaderError_half_a_quality": followed_by(b"\0"),
        "HeaderError_quality_10001": followed_by(struct.pack("<H", 10_001)),
        "ChunkError_unknown_critical": start + head + pack_chunk(b"WXYZ", b"?") + b"".join(rest),
        "ChunkError_unknown_critical_in_index": start
        + b"".join(segments[:-2])
        + unknown_in_index
        + pack_chunk(b"TEND", pointer),
        "ChunkError_stride": with_header(stride=8, segment=64),
        "LimitError_huge": start + pack_chunk(HEAD, write_header(huge)) + b"".join(rest),
        "ModelError_layers": with_header(layers=64),
        "WeightsMismatchError_weights": with_header(weights_hash="0123456789abcdef"),
        "WeightsMismatchError_prior": with_header(prior_hash="0123456789abcdef"),
    }
    assert rest[0][:4] == LAYR
    (HERE / "bad").mkdir(exist_ok=True)
    for path in (HERE / "bad").glob("*.tok"):
        path.unlink()
    for name, data in bad.items():
        (HERE / "bad" / f"{name}.tok").write_bytes(data)


def make_bad_videos() -> None:
    """Videos that must be refused, each by the error that its name starts with."""
    tok = read_tok((VIDEO / "frame.tok").read_bytes())
    header, payload = tok.video, tok.payload(LAYR) or b""
    head = write_header(header)
    start = SIGNATURE + bytes([1])
    rest = pack_chunk(LAYR, b"\0\0" + payload) + pack_chunk(b"TEND", b"")

    def put(back: int, value: bytes) -> bytes:
        """The header with another value so many bytes before its end."""
        at = len(head) - back
        return start + pack_chunk(HEAD, head[:at] + value + head[at + len(value) :]) + rest

    wide = replace(header, height=1 << 15, width=1 << 15, segment=1)
    bad = {
        "HeaderError_segment_2": put(28, b"\2\0"),
        "HeaderError_tick_parts_0": put(22, b"\0\0\0\0"),
        "HeaderError_sound_2": put(1, b"\2"),
        "HeaderError_too_many_cells": put(42, struct.pack("<II", 1 << 20, 1 << 20)),
        "ChunkError_group": start + pack_chunk(HEAD, write_header(replace(header, group=8))) + rest,
        "TruncatedError_no_segment": start + pack_chunk(HEAD, head),
        "LimitError_frame": start + pack_chunk(HEAD, write_header(wide)) + rest,
    }
    for path in (VIDEO / "bad").glob("*.tok"):
        path.unlink()
    (VIDEO / "bad").mkdir(exist_ok=True)
    for name, data in bad.items():
        (VIDEO / "bad" / f"{name}.tok").write_bytes(data)


def main(wanted: list[str]) -> None:
    if not wanted:
        make_tiny()
        make_files(load_model(str(TINY)))
        make_bad()
    if not wanted or "context" in wanted:
        make_context()
    if not wanted or "photo" in wanted:
        make_photo()
    if not wanted or "sequence" in wanted:
        make_sequence()
    if not wanted or "sound" in wanted:
        make_sound()
    if not wanted or "video" in wanted:
        make_video()
        make_bad_videos()
    if not wanted or "motion" in wanted:
        make_motion()
    if not wanted or "fit" in wanted:
        make_fit()
    print("bytes:", sum(p.stat().st_size for p in HERE.rglob("*") if p.is_file()))


if __name__ == "__main__":
    main(sys.argv[1:])
