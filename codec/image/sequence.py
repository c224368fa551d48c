"""Pictures of models whose rate is a number of tokens: how many each window gets.

All tokens of a picture are computed once, with what the first 1, 2, 4, ... of every window are worth. A number of
tokens in all is then shared among the windows, and a wanted size is found by trying numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from ...tokenizers.image.sequence import ImageSequence, share_tokens
from ...tokenizers.quantize.base import ABSENT
from ...tokenizers.tokens import Tokens
from ..container.read import TokFile
from ..contract import Encoded
from ..errors import ChunkError, UsageError, too_small
from ..media.picture import Picture
from ..models import Model
from ..options import EncodeOptions, Rate
from ..progress import SILENT, Progress
from .format import extras_of
from .levels import LevelsFormat
from .segments import compress_tokens, image_header


class SequenceFormat(LevelsFormat):
    """Files of models whose rate is a number of tokens: layers are ranges of places in the sequences."""

    rates = ("tokens", "quality", "bpp", "bytes")

    def build(self, picture: Picture, model: Model, options: EncodeOptions, progress: Progress) -> Encoded:
        extras = extras_of(picture)
        layers = 0

        def build(tokens: Tokens, payloads: list[list[bytes]]) -> bytes:
            nonlocal layers
            layers = len(payloads)
            return extras.write(image_header(tokens, model, layers), payloads)

        data, total = encode_sequence(picture.pixels, model, options.rate, build, progress)
        return Encoded(data, layers, math.prod(picture.pixels.shape[:2]), tokens=total)

    def held(self, tok: TokFile, tokens: Tokens, model: Model, levels: int | None) -> int:
        header = tok.picture
        wanted = min(levels or header.layers, header.layers)
        return min(len(tok.segment_payloads(segment, wanted)) for segment in range(header.n_segments))

    def check_codes(self, tokens: Tokens) -> None:
        """Windows may have few tokens."""


def sequence_tokenizer(model: Model) -> ImageSequence:
    """Raises ChunkError if a file claims to be one of sequences, and its model is none."""
    if not isinstance(model.tokenizer, ImageSequence):
        raise ChunkError(f"{model.tokenizer.name} does not make sequences")
    return model.tokenizer


Build = Callable[[Tokens, list[list[bytes]]], bytes]  # tokens and payloads of layers and segments to a file


class Shares:
    """Files of one picture with any number of tokens.

    Args: tokens: all of every window, ``[1, K, h, w]``.  errors ``[h w, prefixes]``: see ``ImageSequence.errors``.
          build: puts a file together.
    """

    def __init__(self, tokens: Tokens, errors: npt.NDArray[np.float64], model: Model, build: Build) -> None:
        self.tokens, self.errors, self.model, self.build = tokens, errors, model, build
        self.prefixes = sequence_tokenizer(model).prefixes
        self.windows = math.prod(tokens.spec.grid)

    def shared(self, total: int) -> Tokens:
        """The tokens of a picture that has at most so many in all, or one a window if that is more."""
        kept = torch.from_numpy(share_tokens(self.errors, self.prefixes, total)).view(1, 1, *self.tokens.spec.grid)
        places = torch.arange(self.tokens.n_levels).view(1, -1, 1, 1)
        codes = torch.where(places < kept, self.tokens.codes, ABSENT)
        return Tokens(codes[:, : int(kept.max())], self.tokens.spec)

    def file(self, tokens: Tokens) -> bytes:
        return self.build(tokens, compress_tokens(tokens, self.model))

    def within(self, most: int) -> tuple[bytes, Tokens]:
        """A file of at most ``most`` bytes with about as many tokens as fit. Raises RateError if none is so small.

        Payloads grow by whole words, not with every token, so the search may stop some tokens short.
        """
        low, high = self.windows, self.windows * self.tokens.n_levels
        found = self.shared(low)
        data = self.file(found)
        if len(data) > most:
            raise too_small(len(data), most, pixels=math.prod(self.tokens.spec.size))
        while low < high:
            middle = (low + high + 1) // 2
            tokens = self.shared(middle)
            tried = self.file(tokens)
            if len(tried) <= most:
                low, data, found = middle, tried, tokens
            else:
                high = middle - 1
        return data, found


def encode_sequence(
    pixels: npt.NDArray[np.uint8],
    model: Model,
    rate: Rate,
    build: Build,
    progress: Progress = SILENT,
) -> tuple[bytes, int]:
    """``pixels [H, W, C]`` to a file, and its tokens in all.

    A quality q stands for ``256 ** (q / 100)`` tokens a window, shared among them by content; the default is all.

    Raises: UsageError for levels or tokens that make no sense, RateError for a size that is too small.
    """
    tokenizer = sequence_tokenizer(model)
    height, width = pixels.shape[:2]
    windows = math.prod(tokenizer.spec((height, width)).grid)
    most, all_of_them = rate.most_bytes(height * width), windows * tokenizer.config.tokens
    total = rate.tokens
    if total is not None and not windows <= total <= all_of_them:
        raise UsageError(f"tokens of a picture of {windows} windows are {windows} to {all_of_them}, got {total}")
    if rate.quality is not None:
        total = round(windows * tokenizer.config.tokens ** (rate.quality / 100))
    weigh = most is not None or total not in (None, all_of_them)
    tokens, errors = tokenizer.encode_tiled(torch.from_numpy(pixels), weigh, progress.update)
    shares = Shares(tokens, errors, model, build)
    if most is not None:
        data, kept = shares.within(most)
    else:
        kept = tokens if not weigh or total is None else shares.shared(total)
        data = shares.file(kept)
    return data, int((kept.codes != ABSENT).sum())
