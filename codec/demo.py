"""`codec demo`: samples through the codec, tables of numbers, pictures to look at and sounds to listen to."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..tokenizers.audio.grvq import RATE
from .container.fields import MAX_PIXELS
from .decode import decode_file
from .encode import encode_file
from .errors import UsageError
from .files import atomic_output, make_folder
from .media.audio import AUDIO_SUFFIXES_IN, Sound, read_audio, resample
from .media.read_image import IMAGE_SUFFIXES_IN, read_image
from .metrics.picture import as_rgb, ms_ssim, psnr
from .metrics.spectra import mel_distance
from .metrics.spectrogram import levels, spectrogram
from .models import load_model, pick_device
from .registry import MODALITIES
from .settings import Setting, rate_settings, synthesis_nets

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CELL = 768  # pixels: larger pictures are shrunk to it in the side-by-side picture
GAP, FONT = 12, 30
QUALITIES = (5.0, 25.0, 50.0, 75.0)  # of models whose rate is set by a quality
RATES = (1.5, 3.0, 6.0)  # kbit/s of sounds, at most


@dataclass(frozen=True)
class Coder:
    """A model for pictures, ready to run."""

    model: str  # name, folder or `hf:USER/MODEL`
    name: str
    device: str
    settings: tuple[Setting, ...]  # from few bytes to many
    synthesis: tuple[str, ...]  # names of its synthesis nets; one empty name if there is one only


@dataclass(frozen=True)
class Result:
    """One picture at one setting of a model, decoded by one synthesis net."""

    setting: Setting
    synthesis: str  # "" if the model has one net only
    bytes: int
    encode_s: float
    decode_s: float
    pixels: np.ndarray  # [H, W, 3] uint8

    @property
    def label(self) -> str:
        return self.setting.label + (f", {self.synthesis}" if self.synthesis else "")


def run_demo(out: Path, device: str = "auto", *, model: str | None = None, samples: Path = ASSETS) -> None:
    """Encode and decode the samples at several rates; print tables, write files to look at and to listen to.

    Args:    out: a folder, made if missing. It gets, for each picture, the `.tok` files (``<name>-<levels>.tok``,
             ``<name>-q<quality>.tok``) and ``<name>-side-by-side.png``, for each sound ``<name>-<kbps>kbps.tok``, the
             same as `.wav` and ``<name>-spectrograms.png``; files of these names are replaced.
             device: "auto", "cpu" or "cuda".  model: for pictures, a name, folder or `hf:USER/MODEL`.
             samples: folder whose files are taken; sounds only if no model is given.
    Raises:  a TokodecError.
    """
    paths = sorted(p for p in samples.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES_IN) if samples.is_dir() else []
    if not paths:
        raise UsageError(f"no sample pictures in {samples}")
    # Loading and what happens only once are no part of the times below.
    names = [model] if model else [MODALITIES["image"].encode_model, MODALITIES["image"].token_model]
    coders = [prepare(name, pick_device(device)) for name in names]
    make_folder(out)
    console = Console()
    pictures = {path: as_rgb(read_image(path, str(path), MAX_PIXELS, strict=True).pixels) for path in paths}
    shown: dict[Path, list[Result]] = {path: [] for path in paths}
    for coder in coders:
        table = Table(title=f"{coder.name} on {coder.device}", box=SIMPLE, padding=0)  # fits 80 columns
        control = coder.settings[0].control
        columns = "picture", control, "synthesis", "bytes", "bpp", "PSNR dB", "MS-SSIM", "encode s", "decode s"
        for name in columns:
            text = name in ("picture", "synthesis")
            table.add_column(name, justify="left" if text else "right", no_wrap=not text)
        for path, x in pictures.items():
            with console.status(f"{path.name} ..."):
                results = [r for setting in coder.settings for r in code(path, out, setting, coder)]
            for r in results:
                similarity = ms_ssim(x, r.pixels)
                table.add_row(
                    path.name,
                    f"{r.setting.value:g}",
                    r.synthesis or "-",
                    f"{r.bytes}",
                    f"{8 * r.bytes / (x.shape[0] * x.shape[1]):.4f}",
                    f"{psnr(x, r.pixels):.2f}",
                    "-" if similarity is None else f"{similarity:.4f}",
                    f"{r.encode_s:.2f}",
                    f"{r.decode_s:.2f}",
                    end_section=r is results[-1],
                )
            ends = [coder.settings[0]] if shown[path] else [coder.settings[0], coder.settings[-1]]
            # The net that invents texture first: beside the original it shows what so few bytes can do.
            few = [r for r in results if r.setting in ends]
            few.sort(key=lambda r: (coder.settings.index(r.setting), -coder.synthesis.index(r.synthesis)))
            shown[path] += few
        console.print(table)
    for path, results in shown.items():
        target = out / f"{path.stem}-side-by-side.png"
        with atomic_output(target, force=True) as file:
            side_by_side(pictures[path], path.stat().st_size, results).save(file, "PNG")
        console.print(f"look at {target}", highlight=False, markup=False, soft_wrap=True)
    sounds = [] if model else sorted(p for p in samples.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES_IN)
    if sounds:
        demo_sounds(sounds, out, device, console)


def prepare(model: str, device: str) -> Coder:
    """Load a model for pictures and run it once. Raises UsageError for another kind of model."""
    tokenizer = load_model(model, device).tokenizer
    if tokenizer.modality != "image":
        raise UsageError(f"{tokenizer.name} is not a model for pictures")
    settings = rate_settings(tokenizer, QUALITIES if tokenizer.rate_control == "quality" else None)
    grey = io.BytesIO(b"P6\n64 64\n255\n" + bytes(3 * 64 * 64))
    tok = io.BytesIO(encode_file(grey, model=model, device=device, **settings[-1].rate).data)
    for net in synthesis_nets(tokenizer):
        tok.seek(0)
        decode_file(tok, model=model, synthesis=net or None, device=device)
    return Coder(model, tokenizer.name, device, settings, synthesis_nets(tokenizer))


def demo_sounds(paths: list[Path], out: Path, device: str, console: Console) -> None:
    """The part of :func:`run_demo` for sounds."""
    device = pick_device(device)
    load_model(MODALITIES["audio"].encode_model, device)  # no part of the times below
    table = Table(title=f"{MODALITIES['audio'].encode_model} on {device}", box=SIMPLE, padding=0)
    for name in ("sound", "asked kbps", "kbps", "bytes", "mel distance", "encode s", "decode s"):
        table.add_column(name, justify="left" if name == "sound" else "right", no_wrap=name != "sound")
    sheets = []
    for path in paths:
        x = heard(read_audio(path, str(path), strict=True))
        rows = [(f"{path.name}, {path.stat().st_size:,} bytes", x)]
        for kbps in RATES:
            target = out / f"{path.stem}-{kbps:g}kbps.tok"
            start = time.perf_counter()
            done = encode_file(path, target, kbps=kbps, device=device, force=True)
            half = time.perf_counter()
            decode_file(target, target.with_suffix(".wav"), device=device, force=True)
            end = time.perf_counter()
            x_hat = heard(read_audio(target.with_suffix(".wav"), target.name))
            distance = float(mel_distance(torch.from_numpy(x)[None], torch.from_numpy(x_hat)[None], RATE))
            table.add_row(
                path.name, f"{kbps:g}", f"{done.kbps:.2f}", str(len(done.data)), f"{distance:.3f}",
                f"{half - start:.2f}", f"{end - half:.2f}", end_section=kbps == RATES[-1],
            )  # fmt: skip
            rows.append((f"{done.kbps:.2f} kbit/s, {len(done.data):,} bytes", x_hat))
        sheets.append((out / f"{path.stem}-spectrograms.png", stacked(rows)))
    console.print(table)
    for target, picture in sheets:
        with atomic_output(target, force=True) as file:
            picture.save(file, "PNG")
        what = f"look at {target}, listen to the .wav files beside it"
        console.print(what, highlight=False, markup=False, soft_wrap=True)


def heard(sound: Sound) -> np.ndarray:
    """The channels of a sound mixed, ``[n]`` float32 at 24 kHz, which is what its model hears."""
    mono = sound.samples.mean(0)
    return np.asarray(resample(mono[None], sound.sample_rate, RATE)[0], dtype=np.float32)


def stacked(rows: list[tuple[str, np.ndarray]]) -> Image.Image:
    """Spectrograms of sounds below each other, each under its label; black is as loud for all."""
    font = ImageFont.load_default(size=FONT)
    loudest = float(levels(rows[0][1]).max())
    pictures = [spectrogram(x, loudest) for _, x in rows]
    width = 2 * GAP + max(
        *(picture.width for picture in pictures), *(round(font.getlength(label)) for label, _ in rows)
    )
    sheet = Image.new("RGB", (width, GAP + sum(FONT + 6 + picture.height + GAP for picture in pictures)), "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    for (label, _), picture in zip(rows, pictures, strict=True):
        draw.text((GAP, top), label, "black", font)
        sheet.paste(picture, (GAP, top + FONT + 6))
        top += FONT + 6 + picture.height + GAP
    return sheet


def code(path: Path, out: Path, setting: Setting, coder: Coder) -> list[Result]:
    """One file at a setting, decoded once by every synthesis net."""
    target = out / f"{path.stem}-{'q' * (setting.control == 'quality')}{setting.value:g}.tok"
    start = time.perf_counter()
    encode_file(path, target, model=coder.model, device=coder.device, force=True, **setting.rate)
    encode_s = time.perf_counter() - start
    results = []
    for synthesis in coder.synthesis:
        start = time.perf_counter()
        decoded = decode_file(target, model=coder.model, synthesis=synthesis or None, device=coder.device)
        decode_s = time.perf_counter() - start
        pixels = as_rgb(decoded.picture.pixels)
        results.append(Result(setting, synthesis, target.stat().st_size, encode_s, decode_s=decode_s, pixels=pixels))
    return results


def side_by_side(x: np.ndarray, source_bytes: int, results: list[Result]) -> Image.Image:
    """Columns: the original, then each result, labelled. Rows: the whole picture, its middle at twice the size."""
    columns = [("original", f"{source_bytes:,} bytes", x)]
    for r in results:
        numbers = f"{r.bytes:,} bytes, {psnr(x, r.pixels):.2f} dB"
        columns.append((r.label, numbers, r.pixels))
    scale = min(1.0, CELL / max(x.shape[:2]))
    width, height = (max(1, round(scale * side)) for side in (x.shape[1], x.shape[0]))
    font = ImageFont.load_default(size=FONT)
    cell = max(width, *(round(font.getlength(text)) for label in columns for text in label[:2]))
    head = GAP + 2 * (FONT + 6)
    size = (GAP + len(columns) * (cell + GAP), head + 2 * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, numbers, pixels) in enumerate(columns):
        left = GAP + i * (cell + GAP)
        draw.text((left, GAP), label, "black", font)
        draw.text((left, GAP + FONT + 4), numbers, "black", font)
        picture = Image.fromarray(pixels)
        whole = picture if scale == 1 else picture.resize((width, height), Image.Resampling.LANCZOS)
        sheet.paste(whole, (left, head))
        # Pixels doubled, not smoothed: artefacts are to be seen as they are.
        zoomed = middle(picture, -(-width // 2), -(-height // 2)).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(zoomed, (left, head + height + GAP))
    return sheet


def middle(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The middle ``width x height`` pixels."""
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))
