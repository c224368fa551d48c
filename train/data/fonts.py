"""Drawn pictures (``codec/media/synthetic.py``), with the fonts that come with Matplotlib."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from ...codec.media.synthetic import synthetic_picture


def matplotlib_fonts() -> list[str]:
    """Files of Matplotlib's Latin fonts: DejaVu, STIX and Computer Modern, all of free licences. None without it."""
    try:
        from matplotlib import get_data_path
    except ImportError:
        return []
    found = sorted(Path(get_data_path(), "fonts", "ttf").glob("*.ttf"))
    return [str(p) for p in found if p.name.startswith(("DejaVu", "STIXGeneral", "cmr", "cmss", "cmtt", "cmb"))]


def drawn_pictures(n: int, seed: int) -> list[Tensor]:
    """``n`` synthetic pictures, uint8 ``[H, W, 3]`` each, drawn by as many processes as there are cores."""
    draw = partial(synthetic_picture, seed=seed, fonts=matplotlib_fonts())
    cores = min(16, os.cpu_count() or 1)
    if cores < 4 or n < 100:
        return [torch.from_numpy(draw(index)) for index in range(n)]
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        return [torch.from_numpy(pixels) for pixels in pool.map(draw, range(n), chunksize=8)]
