"""Lost codes and what fills them: how much worse a picture gets with each way to conceal a loss.

::

    picture -> codes [K,h,w] -> lose some -> each filler -> faithful net -> PSNR, less than that of the intact codes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from ....entropy.context.prior import ContextPrior
from ....entropy.prior import Codes
from ....entropy.static import StaticPrior
from ....tokenizers.image.base import ImageTokenizer
from ....tokenizers.tokens import Tokens, TokenSpec
from ...errors import ModelError, UsageError
from ...files import atomic_output, make_folder
from ...media.read_image import IMAGE_SUFFIXES_IN, Picture
from ...media.write_image import write_image
from ...metrics.picture import psnr
from ...models import load_model, pick_device
from ...registry import MODALITIES
from ...settings import synthesis_nets
from ..clips import read_photo
from ..inputs import input_files, load_priors, priors_origin
from ..options import ConcealOptions
from ..report import json_file, plain_console, plural, print_table, said, table_of, where

SYNTHESIS = "faithful"  # of models that have it; else their only one
KINDS = ("codes", "cells", "later")
REFERENCE = "nearest"  # the filler that the others are compared with
FILLERS = ("prior", "most probable", "static", REFERENCE, "mean")
SAVED_KIND = "cells"
Filler = Callable[[Codes], Codes]


@dataclass(frozen=True)
class Fill:
    """One picture with one kind of loss and one filler."""

    picture: str
    kind: str
    filler: str
    lost: float  # share of all codes
    psnr: float
    drop: float  # below the intact codes, dB


@dataclass(frozen=True)
class Mean:
    """One kind of loss and one filler, over all pictures."""

    kind: str
    filler: str
    lost: float
    drop: float
    of_nearest: float | None  # drop / drop of copying the nearest; None if that loses nothing


def lose(codes: Codes, kind: str, share: float, rng: np.random.Generator) -> Codes:
    """``codes [K, h, w]`` with -1 where one was lost.

    Args: kind: "codes": each on its own; "cells": all levels of a cell together; "later": each on its own, and with it
        the later levels of its cell, which is what a decoder of the levels one after another sees.
    """
    drawn = rng.random(codes.shape) < share
    if kind == "cells":
        drawn = np.broadcast_to(drawn[:1], codes.shape)
    elif kind == "later":
        drawn = np.logical_or.accumulate(drawn, axis=0)
    elif kind != "codes":
        raise ValueError(f"no kind of loss {kind!r}")
    return np.where(drawn, -1, codes)


def nearest_held(held: np.ndarray) -> np.ndarray:
    """For each cell of ``held [h, w]`` bool the flat index of the nearest cell that is held, ``[h, w]`` int64.

    Distance is Euclidean, equal ones go to the first in raster order; -1 everywhere if no cell is held.
    Cost: offsets are tried nearest first, each on all cells that are still without, so it ends with the farthest hole.
    """
    h, w = held.shape
    found = np.where(held, np.arange(h * w).reshape(h, w), -1)
    lost = np.argwhere(~held)  # [m, 2]
    inner, outer = 0, 1
    while len(lost) and held.any():
        for offset in ring(inner, outer):
            there = lost + offset
            inside = ((there >= 0) & (there < (h, w))).all(1)
            hit = np.zeros(len(lost), dtype=bool)
            hit[inside] = held[tuple(there[inside].T)]
            found[tuple(lost[hit].T)] = there[hit] @ (w, 1)
            lost = lost[~hit]
            if not len(lost):
                break
        inner, outer = outer, 2 * outer
    return found


def ring(inner: int, outer: int) -> np.ndarray:
    """Offsets ``[m, 2]`` farther than ``inner`` and not farther than ``outer``, nearest first, then in raster order."""
    offsets = np.indices((2 * outer + 1, 2 * outer + 1)).reshape(2, -1).T - outer
    squared = np.square(offsets).sum(1)
    offsets, squared = offsets[kept := (squared > inner**2) & (squared <= outer**2)], squared[kept]
    return offsets[np.argsort(squared, kind="stable")]


def copy_nearest(codes: Codes) -> Codes:
    """Fill each level with the code of the nearest cell that has one; a level without any stays absent."""
    levels = []
    for level in codes:
        source = nearest_held(level >= 0)
        levels.append(np.where(source < 0, -1, level.ravel()[source]))
    return np.stack(levels)


def fillers(static: StaticPrior, context: ContextPrior, codewords: Sequence[np.ndarray]) -> dict[str, Filler]:
    """What fills lost codes, by the names in ``FILLERS``. ``codewords [N_k, D]`` of every level."""
    table, first = static.tables[0].astype(np.float64), codewords[0].astype(np.float64)
    mean = int(np.square(first - table @ first / table.sum()).sum(1).argmin())

    def fill_mean(codes: Codes) -> Codes:
        filled = codes.copy()
        filled[0][filled[0] < 0] = mean
        return filled

    return {
        "prior": lambda codes: context.conceal(codes, codewords),
        "most probable": context.conceal,
        "static": lambda codes: static.conceal(codes, codewords),
        REFERENCE: copy_nearest,
        "mean": fill_mean,
    }


def to_pixels(tokenizer: ImageTokenizer, codes: Codes, spec: TokenSpec, synthesis: str | None) -> np.ndarray:
    """``codes [K, h, w]`` to pixels ``[H, W, 3]`` uint8."""
    return tokenizer.decode_picture(Tokens(torch.from_numpy(codes[None]), spec), synthesis=synthesis).numpy()


def bench_conceal(options: ConcealOptions) -> dict[str, Any]:
    """Lose codes of pictures, fill them in every way, and measure what that costs; print a table and write JSON.

    A picture's losses are those of its place in the list. PNG files are each filler's, and the intact codes'.

    Returns: what the JSON file holds.
    Raises:  a TokodecError.
    """
    share, seed, save = options.share, options.seed, options.save
    device = pick_device(options.device)
    if not 0 < share < 1:
        raise UsageError(f"the share of lost codes must be above 0 and below 1, got {share:g}")
    paths = input_files(options.pictures, IMAGE_SUFFIXES_IN, "pictures")
    if save is not None:
        make_folder(save)
    console = plain_console()
    with json_file(options.out) as write, torch.no_grad():
        folder, static, context = load_priors(options.model or MODALITIES["image"].token_model, device)
        tokenizer = load_model(str(folder), device).tokenizer
        words = tokenizer.codewords()
        if not isinstance(tokenizer, ImageTokenizer) or not words:
            raise UsageError(f"{tokenizer.name} is not a model for pictures with codewords")
        synthesis = SYNTHESIS if SYNTHESIS in synthesis_nets(tokenizer) else None
        if tokenizer.codebook_sizes != static.codebook_sizes:
            raise ModelError(f"the entropy models in {folder} have other codebook sizes than the tokenizer")
        ways = fillers(static, context, words)
        fills: list[Fill] = []
        intact: dict[str, float] = {}
        for i, path in enumerate(track(paths, "measuring", console=Console(stderr=True), transient=True)):
            x = read_photo(path).x
            tokens = tokenizer.encode_picture(torch.from_numpy(x.copy()))  # a view of equal channels is read-only
            codes = tokens.codes[0].numpy()
            best = to_pixels(tokenizer, codes, tokens.spec, synthesis)
            intact[str(path)] = psnr(x, best)
            kept = save if i == 0 else None
            save_png(kept, path, "intact", best)
            for k, kind in enumerate(KINDS):
                damaged = lose(codes, kind, share, np.random.default_rng((seed, i, k)))
                lost = float((damaged < 0).mean())
                for name, fill in ways.items():
                    x_hat = to_pixels(tokenizer, fill(damaged), tokens.spec, synthesis)
                    value = psnr(x, x_hat)
                    drop = 0.0 if value == intact[str(path)] else intact[str(path)] - value
                    fills.append(Fill(path.name, kind, name, lost=lost, psnr=value, drop=drop))
                    save_png(kept if kind == SAVED_KIND else None, path, name, x_hat)
        means = summarize(fills)
        report: dict[str, Any] = {
            **priors_origin(folder, static, context, device),
            "seed": seed,
            "share": share,
            "synthesis": synthesis,
            "pictures": [path.name for path in paths],
            "intact_psnr": list(intact.values()),
            "means": [asdict(mean) for mean in means],
            "fills": [asdict(one) for one in fills],
        }
        print_report(report, means, console)
        write(report)
    return report


def save_png(folder: Path | None, picture: Path, name: str, pixels: np.ndarray) -> None:
    """Write ``<picture>-<name>.png`` into ``folder``, if there is one."""
    if folder is None:
        return
    target = folder / f"{picture.stem}-{name.replace(' ', '-')}.png"
    with atomic_output(target, force=True) as file:
        write_image(Picture(pixels), file, ".png", str(target))


def summarize(fills: Sequence[Fill]) -> list[Mean]:
    """Means over the pictures, for each kind of loss and each filler."""
    means = []
    for kind in KINDS:
        own = {name: [f for f in fills if (f.kind, f.filler) == (kind, name)] for name in FILLERS}
        drops = {name: float(np.mean([f.drop for f in group])) for name, group in own.items()}
        lost = float(np.mean([f.lost for f in own[REFERENCE]]))
        for name, drop in drops.items():
            means.append(Mean(kind, name, lost, drop, drop / drops[REFERENCE] if drops[REFERENCE] else None))
    return means


def print_report(report: dict[str, Any], means: Sequence[Mean], console: Console) -> None:
    pictures, place = plural(len(report["pictures"]), "picture"), where(report)
    said(console, f"{pictures}, share {report['share']:g}, seed {report['seed']}; {place}")
    average = float(np.mean(report["intact_psnr"]))
    net = f", synthesis net {report['synthesis']}" if report["synthesis"] else ""
    said(console, f"intact codes: {average:.2f} dB on average{net}")
    entries: list[dict[str, Any]] = [{"filler": name} for name in FILLERS]
    columns: list[tuple[str, str]] = [("filler", "{filler}")]
    for kind in KINDS:
        own = [mean for mean in means if mean.kind == kind]
        for entry, mean in zip(entries, own, strict=True):
            entry |= {f"{kind}_drop": mean.drop, f"{kind}_of": mean.of_nearest}
        head = f"{kind}, {own[0].lost:.1%} lost"
        columns += [(f"{head}\ndrop, dB", f"{{{kind}_drop:.2f}}"), (f"of\n{REFERENCE}", f"{{{kind}_of:.3f}}")]
    print_table(console, table_of(entries, columns), "mean drop of PSNR by kind of loss")
    for line in (
        "codes: each code of each level is lost on its own; cells: a cell loses all its levels",
        "later: as codes, and a lost code takes the later levels of its cell with it",
        "prior: the context prior's expectation by codewords; most probable: its likeliest code, level by level",
        "static: the static prior's expectation by codewords; nearest: a copy of the nearest cell's code of that level",
        "mean: the code nearest to the mean codeword, later levels left out",
    ):
        said(console, line)
