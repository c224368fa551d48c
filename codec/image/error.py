"""Pictures whose rate is set by the error that a segment may have: as few levels of its codes as it needs.

A file has one layer; the payload of a segment is its number of levels, then the codes of all of them.
"""

from __future__ import annotations

import numpy as np
import torch

from ...tokenizers.tokens import Tokens
from ..container.chunks import LAYR
from ..container.read import TokFile
from ..contract import Encoded
from ..errors import UsageError
from ..media.picture import Picture
from ..models import Model
from ..options import DecodeOptions, EncodeOptions
from ..progress import Progress
from .format import ImageFormat, check_header_grid, decode_pixels, extras_of, image_tokenizer
from .segments import conceal_segment, fewest_levels, image_header


class ErrorFormat(ImageFormat):
    """``quality`` is the least PSNR in dB of every segment, where the levels reach it."""

    rates = ("quality",)

    def build(self, picture: Picture, model: Model, options: EncodeOptions, progress: Progress) -> Encoded:
        tokens = image_tokenizer(model).encode_picture(torch.from_numpy(picture.pixels), progress=progress.update)
        header, most = image_header(tokens, model, 1), 255**2 / 10 ** ((options.rate.quality or 100) / 10)
        levels = np.full(header.n_segments, tokens.n_levels)
        for k in range(tokens.n_levels - 1, 0, -1):
            error = decode_pixels(tokens.levels(k), model, 3, None).astype(np.float64) - picture.pixels
            for s in range(header.n_segments):
                top, left, bottom, right = (header.stride * n for n in header.segment_box(s))
                if np.square(error[top:bottom, left:right]).mean() <= most:
                    levels[s] = k
        kept = tokens.codes.clone()
        for s, k in enumerate(levels.tolist()):
            top, left, bottom, right = header.segment_box(s)
            kept[0, k:, top:bottom, left:right] = -1
        data = self._file(Tokens(kept, tokens.spec), model, picture)
        return Encoded(data, int(levels.max()), picture.pixels[..., 0].size)

    def _file(self, tokens: Tokens, model: Model, picture: Picture | None = None) -> bytes:
        header, payloads = image_header(tokens, model, 1), []
        for s in range(header.n_segments):
            top, left, bottom, right = header.segment_box(s)
            codes = tokens.codes[0, :, top:bottom, left:right].numpy()
            k = int((codes >= 0).all(axis=(1, 2)).sum())
            if not k:
                raise UsageError("some codes are absent (-1), a .tok file wants all of them")
            payloads.append(bytes([k]) + model.prior.compress_joint([codes[:k]]))
        extras = extras_of(Picture(np.zeros((1, 1, 3), np.uint8)) if picture is None else picture)
        return extras.write(header, [payloads])

    def pixels(self, tok: TokFile, model: Model, options: DecodeOptions, progress: Progress) -> tuple[np.ndarray, int]:
        tokens = self.tokens_of(tok, model, options.levels)
        return decode_pixels(tokens, model, tok.picture.channels, options.synthesis, progress), fewest_levels(tokens)

    def tokens_of(self, tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
        header = tok.picture
        spec = image_tokenizer(model).spec((header.height, header.width))
        check_header_grid(header, spec.grid)
        codes = np.full((1, len(spec.codebook_sizes), *header.grid), -1, dtype=np.int64)
        for s in range(header.n_segments):
            top, left, bottom, right = box = header.segment_box(s)
            payload = tok.payload(LAYR, 0, s)
            try:
                if not payload:
                    raise ValueError("missing or damaged")
                part = model.prior.decompress_joint(payload[1:], payload[:1], (bottom - top, right - left))[0]
                codes[0, : len(part), top:bottom, left:right] = part
            except ValueError as error:
                tok.damaged(f"segment {s}: {error}")
                conceal_segment(codes[0], box, model)
        return Tokens(torch.from_numpy(codes[:, : levels or None]), spec)

    def pack(self, tokens: Tokens, model: Model) -> bytes:
        return self._file(tokens, model)
