"""Pictures whose rate is a number of levels, such as those of `image-grid`: a layer is a level of the codes."""

from __future__ import annotations

import numpy as np
import torch

from ...tokenizers.tokens import Tokens
from ..container.read import TokFile
from ..container.write import write_tok
from ..contract import Encoded
from ..errors import UsageError
from ..media.picture import Picture
from ..models import Model
from ..options import DecodeOptions, EncodeOptions, Rate
from ..progress import Progress
from .format import Extras, ImageFormat, check_header_grid, decode_pixels, extras_of, image_tokenizer
from .segments import compress_tokens, conceal_segment, decompress_segment, fewest_levels, image_header


class LevelsFormat(ImageFormat):
    """Files with a layer for each level of the codes."""

    rates = ("levels", "quality", "bpp", "bytes")

    def build(self, picture: Picture, model: Model, options: EncodeOptions, progress: Progress) -> Encoded:
        tokens = image_tokenizer(model).encode_picture(torch.from_numpy(picture.pixels), progress=progress.update)
        layers = compress_tokens(tokens, model)
        return build_file(tokens, layers, model, extras_of(picture), options.rate)

    def pixels(self, tok: TokFile, model: Model, options: DecodeOptions, progress: Progress) -> tuple[np.ndarray, int]:
        tokens = self.tokens_of(tok, model, options.levels)
        held = self.held(tok, tokens, model, options.levels)
        return decode_pixels(tokens, model, tok.picture.channels, options.synthesis, progress), held

    def held(self, tok: TokFile, tokens: Tokens, model: Model, levels: int | None) -> int:
        """The number of layers that every segment has at least, of those that are wanted."""
        layers: int = model.prior.layers(fewest_levels(tokens))
        return layers

    def tokens_of(self, tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
        """Tokens of a file.

        A segment without its first layer is filled with what the entropy model expects there; a segment without a later
        layer is ``ABSENT`` (-1) from there on.
        """
        header = tok.picture
        wanted = min(levels or header.layers, header.layers)
        spec = image_tokenizer(model).spec((header.height, header.width))
        check_header_grid(header, spec.grid)
        codes = np.full((1, model.prior.levels_in(wanted), *header.grid), -1, dtype=np.int64)
        lost = []
        for segment in range(header.n_segments):
            top, left, bottom, right = header.segment_box(segment)
            payloads = tok.segment_payloads(segment, wanted)
            part = decompress_segment(tok, model, segment, payloads, (bottom - top, right - left))
            if part is None:
                lost.append(segment)
            else:
                codes[0, : len(part), top:bottom, left:right] = part
        for segment in lost:
            conceal_segment(codes[0], header.segment_box(segment), model)
        held = int((codes >= 0).any(axis=(0, 2, 3)).sum())
        return Tokens(torch.from_numpy(codes[:, :held]), spec)

    def pack(self, tokens: Tokens, model: Model) -> bytes:
        self.check_codes(tokens)
        try:
            payloads = compress_tokens(tokens, model)
        except ValueError as error:
            raise UsageError(str(error)) from error
        return write_tok(image_header(tokens, model, len(payloads)), payloads)

    def check_codes(self, tokens: Tokens) -> None:
        """Raise UsageError for codes that a file cannot leave out."""
        if int(tokens.codes.min()) < 0:
            raise UsageError("some codes are absent (-1), a .tok file wants all of them")


def build_file(tokens: Tokens, layers: list[list[bytes]], model: Model, extras: Extras, rate: Rate) -> Encoded:
    """Choose the layers that ``rate`` pays for and put the file together."""
    height, width = tokens.spec.size

    def build(n: int) -> bytes:
        return extras.write(image_header(tokens, model, n), layers[:n])

    n = rate.choose_levels(build, len(layers), height * width)
    return Encoded(build(n), n, height * width)
