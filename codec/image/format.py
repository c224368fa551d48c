"""What all files of pictures share, whatever sets their rate: `read, codes, payloads, write` and back.

1. read the picture    2. codes and payloads    3. write. Decoding undoes step N in its step N.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ...tokenizers.image.base import ImageTokenizer
from ...tokenizers.tokens import Tokens
from ..container.chunks import ALPH
from ..container.fields import ImageHeader
from ..container.read import TokFile
from ..container.write import write_tok
from ..contract import Decoded, Detokenized, Encoded, Format, Sink, Source, Tokenized
from ..errors import ChunkError, FormatError, UsageError
from ..media.picture import Picture
from ..media.read_image import read_image
from ..media.write_image import check_writable, encode_alpha, write_image
from ..models import Model
from ..options import DecodeOptions, EncodeOptions, TokenizeOptions
from ..progress import Progress
from .exact_segments import paste_segments
from .prepare import coarsen_alpha, prepare
from .segments import picture_of


@dataclass(frozen=True)
class Extras:
    """What a file holds beside the codes.

    alpha: payload of ALPH.  icc, exif, xmp: uncompressed.  exact: payloads of EXCT by segment.
    """

    channels: int = 3
    bit_depth: int = 8
    alpha: bytes | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    exact: Mapping[int, bytes] = field(default_factory=dict)

    def write(self, header: ImageHeader, layers: list[list[bytes]]) -> bytes:
        """The bytes of a file; the header is told what it says of this."""
        header = replace(header, channels=self.channels, alpha=int(self.alpha is not None), bit_depth=self.bit_depth)
        return write_tok(header, layers, self.alpha, icc=self.icc, exif=self.exif, xmp=self.xmp, exact=self.exact)


def extras_of(picture: Picture) -> Extras:
    """What of a picture is not in its codes."""
    return Extras(
        channels=picture.pixels.shape[2],
        bit_depth=picture.bit_depth,
        alpha=None if picture.alpha is None else encode_alpha(picture.alpha),
        icc=picture.icc,
        exif=picture.exif,
        xmp=picture.xmp,
    )


def image_tokenizer(model: Model) -> ImageTokenizer:
    """Raises ChunkError if the model is for something else."""
    if not isinstance(model.tokenizer, ImageTokenizer):
        raise ChunkError(f"{model.tokenizer.name} is a model for {model.tokenizer.modality}, not for pictures")
    return model.tokenizer


class ImageFormat(Format):
    """Files of pictures. A subclass knows how codes become layers, and what sets the rate."""

    options = frozenset({"prior", "synthesis", "keep", "alpha-quality"})

    @abc.abstractmethod
    def build(self, picture: Picture, model: Model, options: EncodeOptions, progress: Progress) -> Encoded:
        """The file of a picture."""

    @abc.abstractmethod
    def pixels(self, tok: TokFile, model: Model, options: DecodeOptions, progress: Progress) -> tuple[np.ndarray, int]:
        """Pixels ``[H, W, channels]`` uint8 of a file, and the fewest layers that a segment was decoded with."""

    def encode(self, source: Source, model: Model | None, options: EncodeOptions, progress: Progress) -> Encoded:
        assert model is not None
        if options.rate.whole and options.alpha_quality is not None:
            raise UsageError("a lossless file has its whole alpha channel: alpha-quality is for others")
        deep = options.rate.whole
        picture = read_image(source.data, source.name, options.max_pixels, options.strict, deep=deep)  # 1
        if options.alpha_quality is not None:
            if picture.alpha is None:
                picture.notes.append("no alpha channel, for which alpha-quality is")
            else:
                coarsen_alpha(picture.alpha, options.alpha_quality)
        prepare(picture, options.keep, hidden=options.rate.whole)
        encoded = self.build(picture, model, options, progress)  # 2, 3
        encoded.notes, encoded.problems = picture.notes + encoded.notes, picture.problems
        return encoded

    def decode(
        self, tok: TokFile, model: Model | None, options: DecodeOptions, sink: Sink | None, progress: Progress
    ) -> Decoded:
        assert model is not None
        header = tok.picture
        if sink is not None:
            has_alpha = bool(header.alpha) and tok.payload(ALPH) is not None
            check_writable(sink.suffix, sink.name, (header.height, header.width), header.channels, has_alpha)
        pixels, held = self.pixels(tok, model, options, progress)  # 3, 2
        picture = picture_of(tok, paste_segments(pixels, tok))
        if options.strict and tok.problems:
            raise FormatError(tok.problems[0])
        notes = [] if sink is None else write_image(picture, sink.file, sink.suffix, sink.name)  # 1
        return Decoded(picture, tok.header, held, tok.problems, notes)

    def tokenize(self, source: Source, model: Model, options: TokenizeOptions) -> Tokenized:
        picture = prepare(read_image(source.data, source.name, options.max_pixels))
        tokenizer = image_tokenizer(model)
        if options.quality is not None and tokenizer.rate_control != "quality":
            raise UsageError(f"quality does not set the rate of {tokenizer.name}: use {tokenizer.rate_control}")
        there = {"alpha channel": picture.alpha, "ICC profile": picture.icc, "EXIF": picture.exif, "XMP": picture.xmp}
        articles = {"alpha channel": "the ", "ICC profile": "the "}
        held = [articles.get(what, "") + what for what, value in there.items() if value is not None]
        notes = [f"{what} is not part of tokens" for what in held]
        tokens = tokenizer.encode_picture(torch.from_numpy(picture.pixels), options.quality)
        return Tokenized(tokens, picture.problems, picture.notes + notes)

    def render(self, tokens: Tokens, model: Model, sink: Sink | None, synthesis: str | None) -> Detokenized:
        picture = Picture(decode_pixels(tokens, model, 3, synthesis))
        return Detokenized(picture, [] if sink is None else write_image(picture, sink.file, sink.suffix, sink.name))


def check_header_grid(header: ImageHeader, grid: tuple[int, ...]) -> None:
    """Raise ChunkError unless a file has the grid that its model makes.

    Checked before anything is made of that size: a stride of 1 would ask for 256 times the memory.
    """
    if header.grid != grid:
        raise ChunkError(f"the header's stride {header.stride} is not that of {header.model}")


def decode_pixels(
    tokens: Tokens, model: Model, channels: int, synthesis: str | None, progress: Progress | None = None
) -> np.ndarray:
    """Tokens to ``[H, W, channels]`` uint8. Raises UsageError if they do not decode."""
    try:
        told = None if progress is None else progress.update
        return image_tokenizer(model).decode_picture(tokens, channels, synthesis, told).numpy()
    except ValueError as error:
        raise UsageError(str(error)) from error
