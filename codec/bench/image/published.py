"""Rate and distortion on the 24 Kodak pictures as others published them: `kodak_published.json` and how it was made.

::

    python -m tokodec.codec.bench.image.published CHECKOUT-OF-COMPRESSAI/results/image/kodak
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError

FILE = Path(__file__).with_name("kodak_published.json")
PICTURES, SHAPES = 24, {(512, 768), (768, 512)}  # of the Kodak set: how many, height and width
SOURCE = (
    "The files results/image/kodak/*.json of github.com/InterDigitalInc/CompressAI, commit"
    " 869a9f5d4126d015b7de8f203fe60ee9e1608193 (2025-06-25), rounded: bpp to 5 decimals, PSNR and MS-SSIM in dB to 3."
    " BSD 3-Clause Clear License, Copyright (c) 2021-2024 InterDigital Communications, Inc."
    " Means over the 24 pictures for each setting. MS-SSIM is here -10 log10(1 - mean)."
    " The networks are measured there on unrounded pixels, which gives them up to 0.07 dB of PSNR at the highest rates,"
    " and their bits are those of the coded symbols, without a header."
)
# Files of the arXiv paper 2203.10886 whose models are called tuned for MS-SSIM, while rates and values are those of
# models tuned for squared error (cheng2020-parallel: 10.575 dB at 0.1004 bpp, cheng2020-checkerboard mse: 10.492 dB at
# 0.0982 bpp). So they are not called tuned for either.
_UNCLEAR = {"paper-cheng2020-parallel_ms-ssim", "paper-elic2022_ms-ssim", "paper-minnen2018-parallel_ms-ssim"}
_NAMES = {
    "av1": "AV1 (libaom)", "bpg_444_x265_ycbcr": "BPG 4:4:4 (x265)", "hm": "HM (HEVC)", "jpeg": "JPEG (Pillow)",
    "jpeg2000": "JPEG 2000 (ffmpeg)", "vtm": "VTM (VVC)", "webp": "WebP (Pillow)",
}  # fmt: skip


def load_published() -> dict[str, Any]:
    """The published curves.

    Returns: ``{"source": text, "curves": [...]}``; each curve has "name", "file" (of the source), "bpp" (rising) and at
             least one of "psnr" and "ms_ssim_db", lists of the same length, in dB.
    """
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def check_is_kodak(shapes: Sequence[tuple[int, ...]]) -> None:
    """Raises UsageError unless these are the heights and widths of the 24 Kodak pictures."""
    if len(shapes) != PICTURES or not {shape[:2] for shape in shapes} <= SHAPES:
        odd = [f"{w} x {h}" for h, w, *_ in shapes if (h, w) not in SHAPES]
        got = f"{len(shapes)} pictures" + (f", one of {odd[0]}" if odd else "")
        raise UsageError(f"published points are for the {PICTURES} Kodak pictures of 768 x 512 pixels, not for {got}")


def convert(folder: Path) -> dict[str, Any]:
    """What :data:`FILE` holds, from the files of :data:`SOURCE`. What was run on a CPU and on a GPU is taken once."""
    curves = []
    for path in sorted(folder.glob("*.json")):
        if path.stem.endswith("_cpu"):
            continue
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
        values = {"psnr": results.get("psnr-rgb"), "ms_ssim_db": results.get("ms-ssim-db-rgb")}
        if "ms-ssim-rgb" in results:
            values["ms_ssim_db"] = [-10 * math.log10(1 - v) for v in results["ms-ssim-rgb"]]
        order = sorted(range(len(results["bpp"])), key=results["bpp"].__getitem__)
        curve: dict[str, Any] = {"name": _name(path.stem), "file": path.name}
        curve["bpp"] = [round(results["bpp"][i], 5) for i in order]
        curve.update({key: [round(v[i], 3) for i in order] for key, v in values.items() if v})
        curves.append(curve)
    return {"source": SOURCE, "curves": curves}


def _name(stem: str) -> str:
    """Name for readers from a file's name, e.g. "mbt2018-mean MS-SSIM (CompressAI)"."""
    if stem in _NAMES:
        return _NAMES[stem]
    where = "paper" if stem.startswith("paper-") else "CompressAI"
    model, _, tuned = stem.removeprefix("paper-").removeprefix("compressai-").removesuffix("_cuda").partition("_")
    tuned = {"": "MSE", "mse": "MSE", "ms-ssim": "MS-SSIM"}[tuned]
    model = model.removesuffix("-ans")
    if stem in _UNCLEAR:
        return f"{model} ({where}, its MS-SSIM plot)"
    return f"{model} {tuned} ({where})"


def _text(found: dict[str, Any]) -> str:
    """JSON with a line a curve."""
    lines = ",\n".join("  " + json.dumps(curve, separators=(",", ":")) for curve in found["curves"])
    return f'{{"source": {json.dumps(found["source"])},\n "curves": [\n{lines}\n]}}\n'


if __name__ == "__main__":
    FILE.write_text(_text(convert(Path(sys.argv[1]))), encoding="utf-8")
