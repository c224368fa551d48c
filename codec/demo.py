"""`codec demo`: the sample pictures through the codec, a table of numbers and a picture to look at."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from .bench.metrics import as_rgb, ms_ssim, psnr
from .decode import decode_file
from .encode import MAX_PIXELS, encode_file
from .errors import UsageError
from .files import atomic_output
from .media.image import IMAGE_SUFFIXES_IN, read_image
from .models import DEFAULT_MODELS, load_model, pick_device

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CELL = 768  # pixels: larger pictures are shrunk to it in the side-by-side picture
GAP, FONT = 12, 30


@dataclass(frozen=True)
class Result:
    """One picture with so many levels, decoded by one synthesis net."""

    levels: int
    synthesis: str
    bytes: int
    encode_s: float
    decode_s: float
    pixels: np.ndarray  # [H, W, 3] uint8


def run_demo(out: Path, device: str = "auto", *, model: str | None = None, samples: Path = ASSETS) -> None:
    """Encode and decode the sample pictures with every number of levels; print a table, write files to look at.

    Args:    out: a folder, made if missing. It gets, for each sample, the `.tok` files (``<name>-<levels>.tok``) and
             ``<name>-side-by-side.png``; files of these names are replaced.
             device: "auto", "cpu" or "cuda".  model: name, folder or hub id; the default for pictures if None.
             samples: folder whose picture files are taken.
    Raises:  a TokodecError.
    """
    from ..tokenizers.image.grid import ImageGrid

    paths = sorted(p for p in samples.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES_IN) if samples.is_dir() else []
    if not paths:
        raise UsageError(f"no sample pictures in {samples}")
    model = model or DEFAULT_MODELS["image"]
    device = pick_device(device)
    tokenizer = load_model(model, device).tokenizer  # kept: loading is no part of the times below
    if not isinstance(tokenizer, ImageGrid):
        raise UsageError(f"{tokenizer.name} is not a model for pictures")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {out}: {(error.strerror or str(error)).lower()}") from error

    console = Console()
    table = Table(title=f"{tokenizer.name} on {device}", box=SIMPLE, padding=0)  # fits 80 columns
    names = "picture", "levels", "synthesis", "bytes", "bpp", "PSNR dB", "MS-SSIM", "encode s", "decode s"
    for name in names:
        text = name in ("picture", "synthesis")
        table.add_column(name, justify="left" if text else "right", no_wrap=not text)
    n_levels, nets = len(tokenizer.codebook_sizes), tokenizer.config.synthesis
    written = []
    for path in paths:
        x = as_rgb(read_image(path, str(path), MAX_PIXELS).pixels)
        with console.status(f"{path.name} ..."):
            results = [r for n in range(1, n_levels + 1) for r in code(path, out, n, nets, model, device)]
        for r in results:
            similarity = ms_ssim(x, r.pixels)
            table.add_row(
                path.name,
                str(r.levels),
                r.synthesis,
                f"{r.bytes}",
                f"{8 * r.bytes / (x.shape[0] * x.shape[1]):.4f}",
                f"{psnr(x, r.pixels):.2f}",
                "-" if similarity is None else f"{similarity:.4f}",
                f"{r.encode_s:.2f}",
                f"{r.decode_s:.2f}",
                end_section=r is results[-1],
            )
        target = out / f"{path.stem}-side-by-side.png"
        shown = [r for r in results if r.levels in (1, n_levels)]
        # The net that invents texture first: beside the original it shows what so few bytes can do.
        shown.sort(key=lambda r: (r.levels, -nets.index(r.synthesis)))
        with atomic_output(target, force=True) as file:
            side_by_side(x, path.stat().st_size, shown).save(file, "PNG")
        written.append(target)
    console.print(table)
    for target in written:
        console.print(f"look at {target}", highlight=False, markup=False, soft_wrap=True)


def code(path: Path, out: Path, levels: int, nets: tuple[str, ...], model: str, device: str) -> list[Result]:
    """One file with so many levels, decoded once by every synthesis net."""
    target = out / f"{path.stem}-{levels}.tok"
    start = time.perf_counter()
    encode_file(path, target, model, levels=levels, device=device, force=True)
    encode_s = time.perf_counter() - start
    results = []
    for synthesis in nets:
        start = time.perf_counter()
        decoded = decode_file(target, model=model, synthesis=synthesis, device=device)
        decode_s = time.perf_counter() - start
        pixels = as_rgb(decoded.picture.pixels)
        results.append(Result(levels, synthesis, target.stat().st_size, encode_s, decode_s, pixels))
    return results


def side_by_side(x: np.ndarray, source_bytes: int, results: list[Result]) -> Image.Image:
    """Columns: the original, then each result, labelled. Rows: the whole picture, its middle at twice the size."""
    columns = [("original", f"{source_bytes:,} bytes", x)]
    for r in results:
        plural = "s" * (r.levels != 1)
        numbers = f"{r.bytes:,} bytes, {psnr(x, r.pixels):.2f} dB"
        columns.append((f"{r.levels} level{plural}, {r.synthesis}", numbers, r.pixels))
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
