"""Static tables for a tokenizer that has no entropy model: how often each code occurs in some media."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..entropy.static import STATIC_FILE, StaticPrior
from .errors import ModelError, UsageError
from .models import load_model, pick_device
from .tokens import tokenize_file

if TYPE_CHECKING:
    from ..tokenizers.api import Tokenizer
    from ..tokenizers.tokens import Tokens


class Counts:
    """Histograms ``[N_k]`` of the codes of every level; absent ones are not counted."""

    def __init__(self, codebook_sizes: Iterable[int]) -> None:
        self.levels: list[npt.NDArray[np.int64]] = [np.zeros(n, dtype=np.int64) for n in codebook_sizes]

    def add(self, tokens: Tokens) -> None:
        for counts, codes in zip(self.levels, tokens.codes.unbind(1), strict=False):
            own = codes[codes >= 0].cpu().numpy()
            counts += np.bincount(own, minlength=len(counts))

    @property
    def bits(self) -> float:
        """Mean entropy of a code of all levels together, in bits: what static tables come to."""
        found = 0.0
        for counts in self.levels:
            p = counts[counts > 0] / max(1, counts.sum())
            found -= float((p * np.log2(p)).sum())
        return found


def prior_home(model: str | Tokenizer, device: str = "auto", force: bool = False) -> tuple[Tokenizer, Path]:
    """A tokenizer, and the folder where its static tables will be.

    Raises: ModelError if they cannot be used there, UsageError if there are some and not ``force``.
    """
    tokenizer = load_model(model, pick_device(device)).tokenizer
    folder = tokenizer.source
    if folder is None:
        raise ModelError(f"{tokenizer.name} lies in no folder: save it first, with save_pretrained")
    if tokenizer.rate_control != "levels":
        raise ModelError(
            f"static tables are of levels of codes, the rate of {tokenizer.name} is {tokenizer.rate_control}"
        )
    if (folder / STATIC_FILE).exists() and not force:
        raise UsageError(
            f"{folder / STATIC_FILE} exists already: files made with it need it; overwrite it with --force"
        )
    return tokenizer, folder


def count_prior(
    media: Iterable[str | Path], model: str | Tokenizer, *, device: str = "auto", force: bool = False
) -> StaticPrior:
    """Count the codes of media, `.tok` files and token files, and store static tables in the folder of the model.

    Returns: the entropy model that was stored.
    Raises:  a :class:`~.errors.TokodecError`.
    """
    tokenizer, folder = prior_home(model, device, force)
    counts = Counts(tokenizer.codebook_sizes)
    for path in media:
        counts.add(tokenize_file(path, model=model, device=device).tokens)
    return store(counts, folder)


def store(counts: Counts, folder: Path) -> StaticPrior:
    """Tables of these counts, in ``folder``."""
    prior = StaticPrior.from_counts(counts.levels)
    prior.save_pretrained(folder)
    return prior
