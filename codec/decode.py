"""`.tok` -> media file. The twin of encode.py: step N here undoes step N there.

6. read    2. load the model    5. pick the layers    4. codes    3. pixels, tile by tile    1. write the media

Steps 3 to 5 of models whose rate dial is a quality are in photo.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .container import ALPH, EXIF, HYPERPRIOR, ICCP, MAX_PIXELS, ImageHeader, TokFile, read_tok
from .errors import ChunkError, FormatError, ModelError, UsageError
from .files import open_output, read_bytes
from .media.image import Picture, decode_alpha, write_image
from .models import Model, model_for, pick_device

if TYPE_CHECKING:
    import numpy as np

    from ..tokenizers.api import Tokens
    from ..tokenizers.image.photo import ImagePhoto


CONCEAL_MARGIN = 8  # cells around a lost segment that its filling looks at


@dataclass
class Decoded:
    """A decoded picture.

    Attributes:
        picture: pixels and metadata.
        levels: the fewest layers that any segment was decoded with.
        layers: layers that the complete file has.
        problems: damage, one line each; what was lost is filled by the entropy model or decoded coarser.
        notes: what the output format could not keep.
    """

    picture: Picture
    levels: int
    layers: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def decode_file(
    src: str | Path | BinaryIO,
    dst: str | Path | BinaryIO | None = None,
    model: str | None = None,
    *,
    levels: int | None = None,
    synthesis: str | None = None,
    format: str | None = None,
    device: str = "auto",
    force: bool = False,
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: Callable[[float], None] | None = None,
) -> Decoded:
    """Decode a `.tok` file to a picture.

    Args:
        src: path or binary file object.
        dst: path or binary file object; nothing is written if None.
        model: folder or name to take the weights from; the file's own model by default.
        levels: decode at most so many layers.
        synthesis: which synthesis net, e.g. "faithful" or "sharp"; the model's default if None.
        format: suffix of the output format, needed if ``dst`` is a file object, e.g. ".png".
        device: "auto", "cpu" or "cuda".
        force: overwrite ``dst``.
        strict: raise FormatError for a damaged or truncated file instead of decoding what is left.
        max_pixels: refuse larger pictures.
        progress: called with the share of the work that is done, now and then.

    Raises: a :class:`~.errors.TokodecError`; ``dst`` is then as it was before.
    """
    name = str(src) if isinstance(src, (str, Path)) else "standard input"
    suffix = format or (Path(dst).suffix if isinstance(dst, (str, Path)) else "")
    if dst is not None and not suffix:
        raise UsageError("the output needs a suffix or a format that says what it is, e.g. .png")
    with open_output(dst, force) as file:
        try:
            tok = read_tok(read_bytes(src), max_pixels)  # 6
            if tok.header.prior == HYPERPRIOR:
                pixels, held = photo_pixels(tok, model, device, levels, synthesis, progress)  # 2 to 5
            else:
                tokens, loaded = file_tokens(tok, model, device, levels)  # 2, 5, 4
                held = fewest_levels(tokens)
        except (FormatError, ModelError) as error:
            raise type(error)(f"{name}: {error}") from error
        if tok.header.prior != HYPERPRIOR:
            pixels = decode_pixels(tokens, loaded, tok.header.channels, synthesis, progress)  # 3
        decoded = Decoded(picture_of(tok, pixels), held, tok.header.layers, tok.problems)
        if strict and tok.problems:
            raise FormatError(f"{name}: {tok.problems[0]}")
        if file is not None:
            decoded.notes += write_image(decoded.picture, file, suffix, str(dst))  # 1
    return decoded


def fewest_levels(tokens: Tokens) -> int:
    """The number of levels that every cell has at least; codes ``[1, k, h, w]``."""
    return int((tokens.codes >= 0).sum(1).min())


def file_tokens(
    tok: TokFile, model: str | None = None, device: str = "auto", levels: int | None = None
) -> tuple[Tokens, Model]:
    """Tokens of a parsed file and the model they belong to. What is lost is noted in ``tok.problems``.

    A segment without its first layer is filled with what the entropy model expects there; a segment without a later
    layer is ``ABSENT`` (-1) from there on.
    """
    import numpy as np
    import torch

    from ..tokenizers.api import Tokens
    from ..tokenizers.image.grid import ImageGrid

    header = tok.header
    loaded = model_for(header, model, pick_device(device))
    if header.prior == HYPERPRIOR:
        return photo_file_tokens(tok, loaded, levels), loaded
    if levels is not None and levels < 1:
        raise UsageError(f"levels must be at least 1, got {levels}")
    wanted = min(levels or header.layers, header.layers)
    tokenizer = loaded.tokenizer
    assert isinstance(tokenizer, ImageGrid)
    spec = tokenizer.spec(header.height, header.width)
    if spec.grid != header.grid:  # checked first: a stride of 1 would ask for 256 times the memory
        raise ChunkError(f"the header's stride {header.stride} is not that of {header.model}")
    codes = np.full((1, wanted, *header.grid), -1, dtype=np.int64)
    lost = []
    for segment in range(header.n_segments):
        top, left, bottom, right = header.segment_box(segment)
        payloads = tok.segment_payloads(segment, wanted)
        part = decompress_segment(tok, loaded, segment, payloads, (bottom - top, right - left))
        if part is None:
            lost.append(segment)
        else:
            codes[0, : len(part), top:bottom, left:right] = part
    for segment in lost:
        conceal_segment(codes[0], header.segment_box(segment), loaded)
    held = int((codes >= 0).any(axis=(0, 2, 3)).sum())
    return Tokens(torch.from_numpy(codes[:, :held]), spec), loaded


def photo_model(model: Model) -> ImagePhoto:
    from ..tokenizers.image.photo import ImagePhoto

    if not isinstance(model.tokenizer, ImagePhoto):
        raise ChunkError(f"the header's entropy model is not one of {model.tokenizer.name}")
    return model.tokenizer


def check_one_synthesis(model: ImagePhoto, synthesis: str | None) -> None:
    """Raise UsageError if a synthesis net was asked for by name."""
    if synthesis is not None:
        raise UsageError(f"{model.name} has one synthesis net only")


def photo_pixels(
    tok: TokFile,
    model: str | None,
    device: str,
    levels: int | None,
    synthesis: str | None,
    progress: Callable[[float], None] | None,
) -> tuple[np.ndarray, int]:
    """Pixels ``[H, W, channels]`` of a file whose rate dial is a quality, and the fewest layers of a segment."""
    from .photo import decode_walks, read_walks

    photo = photo_model(model_for(tok.header, model, pick_device(device)))
    check_one_synthesis(photo, synthesis)
    walks, held = read_walks(tok, photo, levels, None if progress is None else lambda share: progress(share / 2))
    return decode_walks(walks, tok, photo, None if progress is None else lambda share: progress(0.5 + share / 2)), held


def photo_file_tokens(tok: TokFile, model: Model, levels: int | None) -> Tokens:
    """Tokens of such a file: the channels that all of its segments have."""
    import torch

    from ..tokenizers.api import Tokens
    from ..tokenizers.image.photo import pack_codes
    from .photo import read_walks

    photo, header = photo_model(model), tok.header
    walks, _ = read_walks(tok, photo, levels)
    codes = torch.from_numpy(pack_codes(walks, header.grid))
    return Tokens(codes[None], photo.spec(header.height, header.width, header.quality / 100))


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
    from ..tokenizers.image.grid import ImageGrid

    assert isinstance(model.tokenizer, ImageGrid)
    codewords = [level.codebook.detach().float().cpu().numpy() for level in model.tokenizer.codebooks]
    top, left, bottom, right = box
    y, x = max(0, top - CONCEAL_MARGIN), max(0, left - CONCEAL_MARGIN)
    window = codes[:, y : bottom + CONCEAL_MARGIN, x : right + CONCEAL_MARGIN]
    # Lost neighbours in the window are filled as well, but only to go on from: each has a turn of its own.
    filled = model.prior.conceal(window, codewords, levels=1)
    codes[0, top:bottom, left:right] = filled[0, top - y : bottom - y, left - x : right - x]


def decode_pixels(
    tokens: Tokens,
    model: Model,
    channels: int,
    synthesis: str | None,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Tokens to ``[H, W, channels]`` uint8. Raises UsageError if they do not decode."""
    from ..tokenizers.image.grid import ImageGrid
    from ..tokenizers.image.photo import ImagePhoto
    from ..tokenizers.image.tiling import decode_tiled

    tokenizer = model.tokenizer
    if isinstance(tokenizer, ImagePhoto):
        check_one_synthesis(tokenizer, synthesis)
        try:
            return tokenizer.decode_tiled(tokens, channels).numpy()
        except ValueError as error:
            raise UsageError(str(error)) from error
    assert isinstance(tokenizer, ImageGrid)
    try:
        tokenizer.check_synthesis(synthesis)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return decode_tiled(tokenizer, tokens, channels, synthesis, progress=progress).numpy()


def picture_of(tok: TokFile, pixels: np.ndarray) -> Picture:
    """Put pixels and what else the file holds together."""
    header: ImageHeader = tok.header
    alpha = None
    if header.alpha:
        payload = tok.payload(ALPH)
        try:
            if payload is None:
                raise ChunkError("missing or damaged")
            alpha = decode_alpha(payload, header.height, header.width)
        except FormatError as error:
            tok.damaged(f"alpha channel lost, the picture is opaque: {error}")
    notes = [f"decoded to 8 bits, the source had {header.bit_depth}"] if header.bit_depth != 8 else []
    return Picture(pixels, alpha, tok.metadata(ICCP), tok.metadata(EXIF), header.bit_depth, notes)
