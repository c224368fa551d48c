"""Pictures of models whose rate dial is a quality. Twins again: encoding above, decoding below.

The latents of a picture are computed once, whatever the rate; a quality is then a scaling, a rounding and a walk of the
entropy model over each segment. So a wanted size is found by trying qualities. With effort, codes are refined at a
quality (refine.py), which takes longer than all of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...entropy.hyperprior.walk import Walk
from ...tokenizers.image.layers import STRIDE
from ...tokenizers.image.photo import DEFAULT_QUALITY, WINDOW, ImagePhoto, cut, pack_codes, unpack_codes
from ...tokenizers.image.tiling import Tile, tiles
from ...tokenizers.tokens import Tokens
from ..container.fields import (
    ImageHeader,
)
from ..container.read import TokFile
from ..container.write import write_tok
from ..contract import EFFORTS, Encoded
from ..errors import ChunkError, RateError, UsageError
from ..media.read_image import Picture
from ..media.write_image import encode_alpha
from ..models import Model, model_for, pick_device
from .refine import Refiner
from .segments import check_one_synthesis, notes_of

if TYPE_CHECKING:
    from ...tokenizers.image.photo import ImagePhoto
    from ..contract import Rate
    from ..media.read_image import Picture


def photo_model(model: Model) -> ImagePhoto:
    from ...tokenizers.image.photo import ImagePhoto

    if not isinstance(model.tokenizer, ImagePhoto):
        raise ChunkError(f"the header's entropy model is not one of {model.tokenizer.name}")
    return model.tokenizer


def photo_pixels(
    tok: TokFile,
    model: str | None,
    device: str,
    levels: int | None,
    synthesis: str | None,
    progress: Callable[[float], None] | None,
) -> tuple[np.ndarray, int]:
    """Pixels ``[H, W, channels]`` of a file whose rate dial is a quality, and the fewest layers of a segment."""
    photo = photo_model(model_for(tok.header, model, pick_device(device)))
    check_one_synthesis(photo, synthesis)
    walks, held = read_walks(tok, photo, levels, None if progress is None else lambda share: progress(share / 2))
    return decode_walks(walks, tok, photo, None if progress is None else lambda share: progress(0.5 + share / 2)), held


def photo_file_tokens(tok: TokFile, model: Model, levels: int | None) -> Tokens:
    """Tokens of such a file: the channels that all of its segments have."""
    import torch

    from ...tokenizers.image.photo import pack_codes
    from ...tokenizers.tokens import Tokens

    photo, header = photo_model(model), tok.picture
    walks, _ = read_walks(tok, photo, levels)
    codes = torch.from_numpy(pack_codes(walks, header.grid))
    return Tokens(codes[None], photo.spec((header.height, header.width), quality=header.quality / 100))


def build_photo(
    picture: Picture,
    model: Model,
    metadata: bool,
    rate: Rate,
    progress: Callable[[float], None] | None = None,
    effort: int = 0,
) -> Encoded:
    """The file of a model whose rate dial is a quality."""
    from ...tokenizers.image.photo import ImagePhoto
    from ..container.read import read_tok

    tokenizer = model.tokenizer
    assert isinstance(tokenizer, ImagePhoto)
    if rate.levels is not None or rate.tokens is not None:
        what = "levels" if rate.tokens is None else "tokens"
        raise UsageError(f"the rate dial of {tokenizer.name} is a quality: use --quality, --bpp or --bytes, not {what}")
    height, width, channels = picture.pixels.shape
    extra = Metadata(
        channels,
        picture.bit_depth,
        None if picture.alpha is None else encode_alpha(picture.alpha),
        picture.icc if metadata else None,
        picture.exif if metadata else None,
    )
    most = rate.most_bytes(height * width)
    data, quality = encode_photo(picture, tokenizer, extra, rate.quality, most, EFFORTS[effort], progress)
    return Encoded(data, read_tok(data).header.layers, height * width, notes_of(picture, metadata), quality)


Progress = Callable[[float], None]
# A file of few bytes has few layers, since each costs 18 bytes: (largest mean payload of a segment, layers).
LAYERS = ((3000, 1), (16000, 2), (32000, 3), (math.inf, 5))
CLOSE_ENOUGH = 0.985  # a file of this share of the wanted size ends the search
TRIES = 12
LIKELY = 0.99  # of the wanted size is what a try aims at
REFINED_TRIES = 5
REFINED_ENOUGH = 0.975  # as CLOSE_ENOUGH, for refined codes
ENOUGH = 0.97  # of the wanted size must be used
ANALYSED = 0.05  # of the progress, where codes are refined


@dataclass(frozen=True)
class Metadata:
    """What a file holds beside the codes. alpha: payload of ALPH.  icc, exif: uncompressed."""

    channels: int
    bit_depth: int
    alpha: bytes | None = None
    icc: bytes | None = None
    exif: bytes | None = None


class PhotoFile:
    """Files of one picture at any quality.

    Args: latents: ``[M, h, w]``, see :meth:`~..tokenizers.image.photo.ImagePhoto.analyse_tiled`.
          size: height and width in pixels.
          refiner: of the same picture, if its codes are to be refined.
    """

    def __init__(
        self,
        model: ImagePhoto,
        latents: np.ndarray,
        size: tuple[int, int],
        metadata: Metadata,
        refiner: Refiner | None = None,
    ) -> None:
        self.model, self.latents, self.size, self.metadata = model, latents, size, metadata
        self.refiner = refiner
        self.tried: dict[int, bytes] = {}
        self.refined: dict[int, bytes] = {}

    def best_at(self, steps: int, progress: Progress | None = None) -> bytes:
        """The file of a quality in hundredths, its codes refined if there is a refiner."""
        if self.refiner is None:
            return self.at(steps)
        if steps not in self.refined:
            walks = self.refiner.refine(self.model.quantise_windows(self.latents, steps), steps, progress)
            self.refined[steps] = photo_file(self.model, walks, steps, self.size, self.metadata)
        return self.refined[steps]

    def best_within(self, most: int, progress: Progress | None = None) -> tuple[bytes, int]:
        """A file of at most ``most`` bytes and, if possible, hardly less, and its quality in hundredths.

        Refined codes take fewer bytes than others of their quality, or more; each try tells the next how many. Raises
        RateError as :meth:`within` does.
        """
        if self.refiner is None:
            steps = self.within(most)
            return self.at(steps), steps
        if len(self.at(0)) > most >= len(self.best_at(0, progress)):
            return self.best_at(0), 0
        plain = steps = self.within(most)
        best, aim = (b"", 0), float(most)
        for i in range(REFINED_TRIES):
            file = self.best_at(steps, None if progress is None else _later(progress, i))
            if len(best[0]) < len(file) <= most:
                best = file, steps
            if REFINED_ENOUGH * most <= len(file) <= most:
                break
            aim *= LIKELY * most / len(file)
            steps = self.within(max(int(aim), len(self.at(0))))
            if steps in self.refined:
                break
        # A refined file of as high a quality is the better one; of a lower quality, where it makes use of the bytes.
        if best[0] and (best[1] >= plain or len(best[0]) >= ENOUGH * most):
            return best
        return self.at(plain), plain

    def at(self, steps: int) -> bytes:
        """The file of a quality in hundredths, its codes as they are."""
        if steps not in self.tried:
            walks = [walk for _, walk in self.model.quantise_windows(self.latents, steps)]
            self.tried[steps] = photo_file(self.model, walks, steps, self.size, self.metadata)
        return self.tried[steps]

    def within(self, most: int) -> int:
        """The quality, in hundredths, of a file of at most ``most`` bytes and, if possible, hardly less.

        Raises: RateError if the lowest quality takes more.
        """
        low, high = 0, 10000
        least = len(self.at(low))
        if least > most:
            pixels = self.size[0] * self.size[1]
            raise RateError(
                f"the smallest file takes {least} bytes ({8 * least / pixels:.4f} bpp), more than the {most} asked for"
            )
        if len(self.at(high)) <= most:
            return high
        for _ in range(TRIES):
            if high - low < 2 or len(self.at(low)) >= CLOSE_ENOUGH * most:
                break
            # The logarithm of the size is nearly a straight line between two qualities.
            sizes = [math.log(len(self.at(steps))) for steps in (low, high)]
            share = (math.log(LIKELY * most) - sizes[0]) / max(sizes[1] - sizes[0], 1e-9)
            steps = min(max(low + round(share * (high - low)), low + 1), high - 1)
            if len(self.at(steps)) <= most:
                low = steps
            else:
                high = steps
        return low


def _later(progress: Progress, i: int) -> Progress:
    """Progress of try i of an unknown number: each one is half of what is left."""
    return lambda share: progress(1 - 0.5**i * (1 - share / 2))


def photo_file(model: ImagePhoto, walks: list[Walk], steps: int, size: tuple[int, int], metadata: Metadata) -> bytes:
    """A whole file from the walks over all segments."""
    entropy = model.entropy
    mean = sum(float(entropy.bits(walk).sum()) for walk in walks) / 8 / len(walks)
    slices = len(entropy.slices)
    n = min(slices, next(layers for most, layers in LAYERS if mean <= most))
    columns = [entropy.payloads(walk, n) for walk in walks]
    header = ImageHeader(
        model=model.name,
        weights_hash=model.weights_hash,
        prior=entropy.wire_id,
        prior_hash=entropy.hash,
        layers=n,
        height=size[0],
        width=size[1],
        stride=STRIDE,
        segment=WINDOW,
        channels=metadata.channels,
        alpha=int(metadata.alpha is not None),
        bit_depth=metadata.bit_depth,
        quality=steps,
    )
    layers = [list(row) for row in zip(*columns, strict=True)]
    return write_tok(header, layers, metadata.alpha, metadata.icc, metadata.exif)


def encode_photo(
    picture: Picture,
    model: ImagePhoto,
    metadata: Metadata,
    quality: float | None,
    most: int | None,
    n_steps: int = 0,
    progress: Progress | None = None,
) -> tuple[bytes, float]:
    """File and quality of a picture: of ``quality``, or of at most ``most`` bytes, or of the default quality.

    Args: n_steps: of descent, see refine.py.
    """
    size = (picture.pixels.shape[0], picture.pixels.shape[1])
    first = later = progress
    if n_steps and progress is not None:
        first, later = _part(progress, 0, ANALYSED), _part(progress, ANALYSED, 1)
    latents = model.analyse_tiled(torch.from_numpy(picture.pixels), progress=first)
    refiner = Refiner(model, picture.pixels, latents, n_steps) if n_steps else None
    files = PhotoFile(model, latents, size, metadata, refiner)
    if most is None:
        steps = round(100 * (DEFAULT_QUALITY if quality is None else quality))
        return files.best_at(steps, later), steps / 100
    data, steps = files.best_within(most, later)
    return data, steps / 100


def _part(progress: Progress, begin: float, end: float) -> Progress:
    return lambda share: progress(begin + share * (end - begin))


def photo_tokens(
    pixels: np.ndarray, model: ImagePhoto, quality: float | None = None, progress: Progress | None = None
) -> Tokens:
    """``pixels [H, W, C]`` uint8 to tokens, tile by tile."""
    steps = round(100 * (DEFAULT_QUALITY if quality is None else quality))
    latents = model.analyse_tiled(torch.from_numpy(pixels), progress=progress)
    codes = pack_codes(model.quantise_windows(latents, steps), latents.shape[1:])
    return Tokens(torch.from_numpy(codes)[None], model.spec(tuple(pixels.shape[:2]), quality=steps / 100))


def photo_file_of_tokens(tokens: Tokens, model: ImagePhoto) -> bytes:
    """A `.tok` file from tokens ``[1, K, h, w]``. Raises UsageError if they are not all of a picture's."""
    steps = round(100 * (tokens.spec.quality or 0))
    levels = tokens.codes[0].numpy()
    if len(levels) != len(model.codebook_sizes):
        raise UsageError(f"a .tok file wants all {len(model.codebook_sizes)} levels, got {len(levels)}")
    walks = []
    try:
        for tile in tiles(levels.shape[1], levels.shape[2], 0, WINDOW):
            z, codes = unpack_codes(cut(levels, tile), model.config.hyper)
            walks.append(model.entropy.walk(z, codes, steps))
    except ValueError as error:
        raise UsageError(str(error)) from error
    height, width = tokens.spec.size
    return photo_file(model, walks, steps, (height, width), Metadata(3, 8))


# -------------------------------------------------------------------- decoding


def read_walks(
    tok: TokFile, model: ImagePhoto, levels: int | None = None, progress: Progress | None = None
) -> tuple[list[tuple[Tile, Walk]], int]:
    """Codes and latents of every segment of a file, and the fewest layers that one was decoded from.

    A segment without its first layer is what the entropy model expects of a segment of which nothing is known; means
    stand for later layers that are missing. What is lost is noted in ``tok.problems``.
    """
    header = tok.picture
    if header.segment != WINDOW or header.grid != model.spec((header.height, header.width), quality=0).grid:
        raise ChunkError(f"the header's segments or stride are not those of {header.model}")
    if header.layers > len(model.entropy.slices):
        raise ChunkError(f"the header has {header.layers} layers, {header.model} at most {len(model.entropy.slices)}")
    if levels is not None and levels < 1:
        raise UsageError(f"levels must be at least 1, got {levels}")
    wanted = min(levels or header.layers, header.layers)
    fewest = wanted
    found = []
    for segment in range(header.n_segments):
        box = header.segment_box(segment)
        tile = Tile(box, box)
        payloads = tok.segment_payloads(segment, wanted)
        walk, n = _segment(tok, model, segment, payloads, (box[2] - box[0], box[3] - box[1]))
        fewest = min(fewest, n)
        found.append((tile, walk))
        if progress is not None:
            progress((segment + 1) / header.n_segments)
    return found, fewest


def _segment(
    tok: TokFile, model: ImagePhoto, segment: int, payloads: list[bytes], grid: tuple[int, int]
) -> tuple[Walk, int]:
    """Walk over a segment and the number of layers it has; a payload that does not decode costs later layers too."""
    entropy, header = model.entropy, tok.picture
    while payloads:
        try:
            return entropy.decompress(payloads, grid, header.quality, header.layers), len(payloads)
        except ValueError as error:
            payloads = payloads[:-1]
            tok.damaged(f"segment {segment}: {error}; decoded from {len(payloads)} layers")
    tok.damaged(f"segment {segment}: lost, {grid[0]} x {grid[1]} cells filled with what the entropy model expects")
    return entropy.expected(grid, header.quality), 0


def decode_walks(
    walks: list[tuple[Tile, Walk]], tok: TokFile, model: ImagePhoto, progress: Progress | None = None
) -> np.ndarray:
    """Pixels ``[H, W, channels]`` uint8."""
    header = tok.picture
    latents = np.empty((model.config.latents, *header.grid), dtype=np.float32)
    for tile, walk in walks:
        cut(latents, tile)[:] = walk.latents
    size = (header.height, header.width)
    pixels = model.synthesise_tiled(latents, header.quality, size, header.channels, progress=progress)
    return pixels.numpy()
