"""Pictures whose rate is a number of levels (`image-grid`), and what all kinds of pictures share on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..container.fields import (
    HYPERPRIOR,
    TAIL,
    AudioHeader,
    VideoHeader,
)
from ..container.read import TokFile
from ..container.write import write_tok
from ..contract import Decoded, Encoded
from ..errors import ChunkError, UsageError
from ..media.read_image import Picture, read_image
from ..media.write_image import encode_alpha
from ..models import Model, load_model, model_for, pick_device
from .quality import build_photo, photo_file_tokens, photo_pixels
from .segments import (
    check_one_synthesis,
    compress_tokens,
    conceal_segment,
    decompress_segment,
    fewest_layers,
    fewest_levels,
    image_header,
    notes_of,
    picture_of,
)
from .sequence import build_sequence

if TYPE_CHECKING:
    import numpy as np

    from ...tokenizers.tokens import Tokens
    from ..contract import Rate
    from ..media.read_image import Picture


def decode_picture(
    tok: TokFile,
    model: str | None,
    device: str,
    levels: int | None,
    synthesis: str | None,
    progress: Callable[[float], None] | None,
) -> Decoded:
    header = tok.picture
    if header.prior == HYPERPRIOR:
        pixels, held = photo_pixels(tok, model, device, levels, synthesis, progress)  # 2 to 5
    else:
        tokens, loaded = file_tokens(tok, model, device, levels)  # 2, 5, 4
        held = fewest_layers(tok, levels) if header.prior == TAIL else fewest_levels(tokens)
        pixels = decode_pixels(tokens, loaded, header.channels, synthesis, progress)  # 3
    return Decoded(picture_of(tok, pixels), header, held, tok.problems)


def file_tokens(
    tok: TokFile, model: str | None = None, device: str = "auto", levels: int | None = None
) -> tuple[Tokens, Model]:
    """Tokens of a parsed file and the model they belong to. What is lost is noted in ``tok.problems``.

    A segment without its first layer is filled with what the entropy model expects there; a segment without a later
    layer is ``ABSENT`` (-1) from there on. Raises UsageError for a video of several segments.
    """
    import numpy as np
    import torch

    from ...tokenizers.image.grid import ImageGrid
    from ...tokenizers.image.sequence import ImageSequence
    from ...tokenizers.tokens import Tokens

    loaded = model_for(tok.header, model, pick_device(device))
    if isinstance(tok.header, AudioHeader):
        from ..audio.tokens import file_codes

        return file_codes(tok, loaded, levels), loaded
    if isinstance(tok.header, VideoHeader):
        from ..video.tokens import file_codes as clip_codes

        return clip_codes(tok, loaded, levels), loaded
    header = tok.picture
    if header.prior == HYPERPRIOR:
        return photo_file_tokens(tok, loaded, levels), loaded
    if levels is not None and levels < 1:
        raise UsageError(f"levels must be at least 1, got {levels}")
    wanted = min(levels or header.layers, header.layers)
    tokenizer = loaded.tokenizer
    assert isinstance(tokenizer, (ImageGrid, ImageSequence))
    spec = tokenizer.spec((header.height, header.width))
    if spec.grid != header.grid:  # checked first: a stride of 1 would ask for 256 times the memory
        raise ChunkError(f"the header's stride {header.stride} is not that of {header.model}")
    most = wanted if isinstance(tokenizer, ImageGrid) else tokenizer.config.tokens
    codes = np.full((1, most, *header.grid), -1, dtype=np.int64)
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


def decode_pixels(
    tokens: Tokens,
    model: Model,
    channels: int,
    synthesis: str | None,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Tokens to ``[H, W, channels]`` uint8. Raises UsageError if they do not decode."""
    from ...tokenizers.image.grid import ImageGrid
    from ...tokenizers.image.photo import ImagePhoto
    from ...tokenizers.image.sequence import ImageSequence
    from ...tokenizers.image.tiling import decode_tiled

    tokenizer = model.tokenizer
    if isinstance(tokenizer, ImageSequence):
        check_one_synthesis(tokenizer, synthesis)
        return tokenizer.decode_tiled(tokens, channels, progress).numpy()
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


def encode_picture(
    source: Path | BinaryIO,
    name: str,
    chosen: str,
    rate: Rate,
    prior: str | None,
    effort: int,
    device: str,
    metadata: bool,
    max_pixels: int,
    progress: Callable[[float], None] | None,
) -> Encoded:
    picture = read_image(source, name, max_pixels)  # 1
    loaded = load_model(chosen, pick_device(device), prior)  # 2
    if loaded.tokenizer.modality != "image":
        raise UsageError(f"{chosen} is a model for {loaded.tokenizer.modality}, and {name} is a picture")
    if rate.kbps is not None:
        raise UsageError(f"bits a second are for sounds, and {name} is a picture: use --bpp or --bytes")
    if loaded.tokenizer.dial == "quality":
        return build_photo(picture, loaded, metadata, rate, progress, effort)  # 3, 4, 5
    if effort:
        dial = loaded.tokenizer.dial
        raise UsageError(f"effort is for models whose rate dial is a quality, that of {chosen} is {dial}")
    if loaded.tokenizer.dial == "tokens":
        return build_sequence(picture, loaded, metadata, rate, progress)  # 3, 4, 5
    if rate.tokens is not None:
        raise UsageError(f"the rate dial of {chosen} is its levels, not a number of tokens")
    tokens = encode_tokens(picture.pixels, loaded, progress)  # 3
    layers = compress_tokens(tokens, loaded)  # 4
    return build_file(picture, tokens, layers, loaded, metadata, rate)  # 5


def build_file(
    picture: Picture, tokens: Tokens, layers: list[list[bytes]], model: Model, metadata: bool, rate: Rate
) -> Encoded:
    """Choose the layers that ``rate`` pays for and put the file together."""
    height, width, channels = picture.pixels.shape
    alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
    icc, exif = (picture.icc, picture.exif) if metadata else (None, None)

    def build(n: int) -> bytes:
        header = image_header(tokens, model, n, alpha is not None, channels, picture.bit_depth)
        return write_tok(header, layers[:n], alpha, icc, exif)

    n = rate.choose_levels(build, len(layers), height * width)
    return Encoded(build(n), n, height * width, notes_of(picture, metadata))


def encode_tokens(
    pixels: np.ndarray, model: Model, progress: Callable[[float], None] | None = None, quality: float | None = None
) -> Tokens:
    """``pixels [H, W, C]`` uint8 to tokens with all levels, on the CPU. quality: of models whose rate dial it is."""
    import torch

    from ...tokenizers.image.grid import ImageGrid
    from ...tokenizers.image.photo import ImagePhoto
    from ...tokenizers.image.sequence import ImageSequence
    from ...tokenizers.image.tiling import encode_tiled
    from .quality import photo_tokens

    tokenizer = model.tokenizer
    if isinstance(tokenizer, ImagePhoto):
        return photo_tokens(pixels, tokenizer, quality, progress)
    if isinstance(tokenizer, ImageSequence):
        return tokenizer.encode_tiled(torch.from_numpy(pixels), False, progress)[0]
    assert isinstance(tokenizer, ImageGrid)
    return encode_tiled(tokenizer, torch.from_numpy(pixels), progress=progress)
