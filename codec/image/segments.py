"""Segments of a picture: squares of its grid that are coded, lost and concealed each on its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..container.chunks import ALPH, EXIF, ICCP, XMPP
from ..container.fields import MAX_SEGMENT, USUAL_CELLS, USUAL_SPAN, ImageHeader
from ..container.read import TokFile
from ..errors import ChunkError, FormatError
from ..media.picture import Picture
from ..media.raster import to_8_bits
from ..media.read_image import decode_alpha
from ..models import Model

if TYPE_CHECKING:
    from ...tokenizers.tokens import Tokens


CONCEAL_MARGIN = 8  # cells around a lost segment that its filling looks at


def fewest_levels(tokens: Tokens) -> int:
    """The number of levels that every cell has at least; codes ``[1, k, h, w]``."""
    return int((tokens.codes >= 0).sum(1).min())


def decompress_segment(
    tok: TokFile, model: Model, segment: int, payloads: list[bytes], grid: tuple[int, int]
) -> np.ndarray | None:
    """Codes ``[k, *grid]`` of a segment, None if it is lost; a payload that does not decode costs later layers too."""
    while payloads:
        try:
            return model.prior.decompress(payloads, grid)
        except ValueError as error:
            tok.damaged(f"segment {segment}: {error}; decoded from {len(payloads) - 1} layers")
            payloads = payloads[:-1]
    tok.damaged(f"segment {segment}: lost, {grid[0]} x {grid[1]} cells filled with what the entropy model expects")
    return None


def conceal_segment(codes: np.ndarray, box: tuple[int, int, int, int], model: Model) -> None:
    """Fill the first layer of a lost segment of ``codes [K, h, w]`` in place, given what lies around it."""
    top, left, bottom, right = box
    y, x = max(0, top - CONCEAL_MARGIN), max(0, left - CONCEAL_MARGIN)
    window = codes[:, y : bottom + CONCEAL_MARGIN, x : right + CONCEAL_MARGIN]
    # Lost neighbours in the window are filled as well, but only to go on from: each has a turn of its own.
    n = model.prior.levels_in(1)
    filled = model.prior.conceal(window, model.tokenizer.codewords(), levels=n)
    codes[:n, top:bottom, left:right] = filled[:n, top - y : bottom - y, left - x : right - x]


def picture_of(tok: TokFile, pixels: np.ndarray) -> Picture:
    """Put pixels and what else the file holds together."""
    header = tok.picture
    alpha = None
    if header.alpha:
        payload = tok.payload(ALPH)
        try:
            if payload is None:
                raise ChunkError("missing or damaged")
            alpha = decode_alpha(payload, header.height, header.width)
            if alpha.itemsize > pixels.itemsize:
                alpha = to_8_bits(alpha)
            elif alpha.itemsize < pixels.itemsize:
                alpha = alpha * np.uint16(257)
        except FormatError as error:
            tok.damaged(f"alpha channel lost, the picture is opaque: {error}")
    notes = [f"decoded to 8 bits, the source had {header.bit_depth}"] if header.bit_depth != 8 * pixels.itemsize else []
    icc, exif, xmp = tok.metadata(ICCP), tok.metadata(EXIF), tok.metadata(XMPP)
    return Picture(pixels, alpha, icc, exif, bit_depth=header.bit_depth, notes=notes, xmp=xmp)


def compress_tokens(tokens: Tokens, model: Model) -> list[list[bytes]]:
    """Payloads ``[k][s]`` of layer k and segment s."""
    header = image_header(tokens, model, 1)
    codes = tokens.codes[0].numpy()
    columns = []
    for segment in range(header.n_segments):
        top, left, bottom, right = header.segment_box(segment)
        columns.append(model.prior.compress(codes[:, top:bottom, left:right]))
    return [list(row) for row in zip(*columns, strict=True)]


def segment_cells(stride: int) -> int:
    """Cells along the edge of a segment of a picture."""
    return min(MAX_SEGMENT, max(USUAL_CELLS, USUAL_SPAN // stride))


def image_header(tokens: Tokens, model: Model, layers: int) -> ImageHeader:
    """Header of a file that holds the first ``layers`` layers of ``tokens``, of a picture in colour without alpha."""
    height, width = tokens.spec.size
    return ImageHeader(
        model=tokens.spec.model,
        weights_hash=tokens.spec.weights_hash,
        prior=model.prior.wire_id,
        prior_hash=model.prior.hash,
        layers=layers,
        height=height,
        width=width,
        stride=tokens.spec.strides[0],
        segment=segment_cells(tokens.spec.strides[0]),
        channels=3,
    )
