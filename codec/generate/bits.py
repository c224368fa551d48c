"""Bits that a generator, a context prior and static tables need for the same codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...entropy.context.prior import ContextPrior
from ...entropy.prior import Codes, Prior
from ...entropy.static import StaticPrior
from ...tokenizers.folders import find_model
from ...tokenizers.tokens import Tokens
from ..audio.encode import segment_frames
from ..image.segments import segment_cells
from ..registry import prior_kinds
from .model import Generator


@dataclass(frozen=True)
class BitsRow:
    """Code length of the same tokens under one model."""

    model: str
    levels: list[float]  # bits a code
    cell: float  # bits of all levels of a cell
    token: float  # bits an id of the generator's sequences


def whole_windows(generator: Generator, codes: Codes) -> Codes | None:
    """Codes ``[K, *grid]`` of the generator's levels, cut to whole windows; None if there is none."""
    cuts = [n // w * w for n, w in zip(codes.shape[1:], generator.window, strict=True)]
    if 0 in cuts:
        return None
    return codes[(slice(generator.config.levels), *map(slice, cuts))]


def segments(codes: Codes, edge: int) -> list[Codes]:
    """Codes in parts of at most ``edge`` cells along each axis."""
    parts = [codes]
    for axis in range(1, codes.ndim):
        parts = [piece for part in parts for piece in np.split(part, range(edge, part.shape[axis], edge), axis)]
    return parts


def window_tokens(generator: Generator, grids: Sequence[Codes]) -> Tokens:
    """All whole windows of codes ``[K, *grid]`` as a batch."""
    found = torch.cat([generator.windows(torch.from_numpy(np.ascontiguousarray(codes))) for codes in grids])
    return Tokens(found, generator.config.window)


def code_bits(generator: Generator, priors: dict[str, Prior], grids: Sequence[Codes]) -> list[BitsRow]:
    """The generator, then every prior on the same codes; "context" also in the segments of files.

    Args:   grids: codes cut by :func:`whole_windows`, at least one.
    """
    tokens = window_tokens(generator, grids)
    cells = tokens.codes[:, 0].numel()
    per_cell = generator.sequencer.n_streams()
    spec = tokens.spec
    sound = spec.modality == "audio"
    edge = segment_frames(spec.sample_rate or 0, spec.strides[0]) if sound else segment_cells(spec.strides[0])

    def row(name: str, levels: np.ndarray) -> BitsRow:
        total = float(levels.sum()) / cells
        return BitsRow(name, [float(b) / cells for b in levels], total, total / per_cell)

    own = generator.bits(tokens).flatten(2).sum((0, 2)).cpu().numpy()
    rows = [row("generator", own)]
    for name, prior in priors.items():
        same = np.sum([prior.bits(codes) for codes in tokens.codes.numpy()], axis=0)
        if name != "context":
            rows.append(row(name, same))
            continue
        rows.append(row("context, same windows", same))
        files = [prior.bits(np.ascontiguousarray(part)) for codes in grids for part in segments(codes, edge)]
        rows.append(row("context, as in files", np.sum(files, axis=0)))
    return rows


def priors_of(name: str | Path, device: str) -> dict[str, Prior]:
    """The entropy models "context" and "static" that a tokenizer's folder holds."""
    folder = find_model(name)
    found: dict[str, Prior] = {}
    if (folder / prior_kinds()["context"].file).is_file():
        found["context"] = ContextPrior.from_pretrained(folder, device)
    if (folder / prior_kinds()["static"].file).is_file():
        found["static"] = StaticPrior.from_pretrained(folder)
    return found


def table_text(rows: Sequence[BitsRow]) -> str:
    """The same as Markdown."""
    heads = [f"level {k + 1}" for k in range(len(rows[0].levels))]
    lines = ["| bits a code | " + " | ".join([*heads, "a cell", "an id"]) + " |"]
    lines.append("| --- |" + " ---: |" * (len(heads) + 2))
    for r in rows:
        lines.append(f"| {r.model} | " + " | ".join(f"{b:.3f}" for b in [*r.levels, r.cell, r.token]) + " |")
    return "\n".join(lines)
