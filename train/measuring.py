"""Rows of measured media, and the histograms that priors are made of."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..entropy.static import StaticPrior
from ..tokenizers.api import Tokenizer

Row = dict[str, Any]  # numbers of a measurement are floats; all else says what was measured


def peak_memory() -> str:
    """What this process has held at most, its resident set, and what it has reserved of the GPU, as text."""
    status = Path("/proc/self/status")
    if status.exists():  # elsewhere the figure may begin with that of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        held = 1024 * int(line.split()[1])
    else:
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = f", {torch.cuda.max_memory_reserved() / 1e9:.2f} GB of the GPU" if torch.cuda.is_available() else ""
    return f"{held / 1e9:.2f} GB{gpu}"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, no gradients and no training behaviour; cuDNN tries no kernels, since media have sizes of their own."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, benchmark=False):
            yield
    finally:
        model.train(training)


def mean_rows(rows_of_media: Iterable[Iterable[Row]]) -> list[Row]:
    """Means over media of the rows that measure the same; a number that some media lack is the mean of the others."""
    sums: dict[tuple[tuple[str, Any], ...], dict[str, list[float]]] = {}
    for rows in rows_of_media:
        for row in rows:
            same = sums.setdefault(tuple((k, v) for k, v in row.items() if not isinstance(v, float)), {})
            for key, value in row.items():
                if isinstance(value, float):
                    same.setdefault(key, []).append(value)
    return [dict(about) | {key: sum(v) / len(v) for key, v in values.items()} for about, values in sums.items()]


def histograms(model: Tokenizer, inputs: Iterable[Tensor]) -> list[Tensor]:
    """Count the codes of inputs, as ``encode`` takes them: how often each codeword is used, ``[N_k]`` a codebook."""
    counts = [torch.zeros(n, dtype=torch.int64) for n in model.codebook_sizes]
    with evaluating(model):
        for x in inputs:
            for count, codes in zip(counts, model.encode(x).codes.cpu().unbind(1), strict=True):
                count += torch.bincount(codes.flatten(), minlength=len(count))
    return counts


def static_prior(counts: Sequence[Tensor]) -> StaticPrior:
    """The static prior of histograms."""
    return StaticPrior.from_counts([count.numpy() for count in counts])
