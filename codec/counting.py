"""Static tables for a tokenizer that has no entropy model: how often each code occurs in some media, or in a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..entropy.prior import Codes
from ..entropy.static import STATIC_FILE, StaticPrior
from .container.chunks import CNTS, pack_counts
from .container.write import add_chunk
from .errors import ModelError, UsageError
from .models import Model, load_model, pick_device, prior_of_counts
from .tokens import tokenize_file

if TYPE_CHECKING:
    from ..tokenizers.api import Tokenizer
    from ..tokenizers.tokens import Tokens
    from .contract import Encoded, Format, Source
    from .options import EncodeOptions
    from .progress import Progress


OWN = "file"  # of `codec encode --prior`: static tables of the file's own codes


class Counts:
    """Histograms ``[N_k]`` of the codes of every level; absent ones are not counted."""

    def __init__(self, codebook_sizes: Iterable[int]) -> None:
        self.levels: list[npt.NDArray[np.int64]] = [np.zeros(n, dtype=np.int64) for n in codebook_sizes]

    def count(self, codes: Codes) -> None:
        """Codes ``[k, *grid]``."""
        for counts, own in zip(self.levels, codes, strict=False):
            counts += np.bincount(own[own >= 0], minlength=len(counts))

    def add(self, tokens: Tokens) -> None:
        for codes in tokens.codes.cpu().numpy():
            self.count(codes)

    @property
    def bits(self) -> float:
        """Mean entropy of a code of all levels together, in bits: what static tables come to."""
        found = 0.0
        for counts in self.levels:
            p = counts[counts > 0] / max(1, counts.sum())
            found -= float((p * np.log2(p)).sum())
        return found


class CountingPrior(StaticPrior):
    """Codes of fixed lengths, and a note of each that is coded."""

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        fixed = StaticPrior.uniform(codebook_sizes)
        super().__init__(fixed.tables)
        self.hash, self.counts = fixed.hash, Counts(codebook_sizes)

    def compress(self, codes: Codes) -> list[bytes]:
        self.counts.count(codes)
        return super().compress(codes)

    def compress_joint(self, parts: Sequence[Codes]) -> bytes:
        for codes in parts:
            self.counts.count(codes)
        return super().compress_joint(parts)


def encode_by_own_tables(
    format: Format, source: Source, tokenizer: Tokenizer, options: EncodeOptions, progress: Progress
) -> Encoded:
    """Encode twice: to count the codes, and with tables of the counts, which the file then holds.

    Returns: the smaller of the two files; the first has codes of fixed lengths.
    Raises:  UsageError for a model whose codes are no levels, or a rate that is a size: it decides what is counted.
    """
    if tokenizer.rate_control != "levels" or tokenizer.needs_prior:
        raise UsageError(f"prior {OWN} is for models whose rate is a number of levels, not for {tokenizer.name}")
    if options.rate.searched:
        raise UsageError(f"prior {OWN} goes with levels, not with {' and '.join(options.rate.given)}")

    def encode(prior: StaticPrior, begin: float) -> Encoded:
        if not isinstance(source.data, Path):
            source.data.seek(0)
        return format.encode(source, Model(tokenizer, prior), options, progress.part(begin, begin + 0.5))

    sizes = tokenizer.codebook_sizes
    counting = CountingPrior(sizes)
    fixed = encode(counting, 0.0)
    payload = pack_counts([level.tolist() for level in counting.counts.levels])
    own = encode(prior_of_counts(payload, sizes), 0.5)
    own.data = add_chunk(own.data, CNTS, payload)
    return min(own, fixed, key=lambda encoded: len(encoded.data))


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
    if tokenizer.needs_prior:
        raise ModelError(f"the entropy model of {tokenizer.name} is part of its weights")
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
