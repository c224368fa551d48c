"""Pictures of models whose rate is set by a quality. Twins again: encoding above, decoding below.

The latents of a picture are computed once, whatever the rate; a quality is then a scaling, a rounding and a walk of the
entropy model over each segment. So a wanted size is found by trying qualities. With effort, codes are refined at a
quality (refine.py), which takes longer than all of that.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from ...entropy.hyperprior.walk import Walk
from ...tokenizers.image.layers import STRIDE
from ...tokenizers.image.photo import (
    DEFAULT_QUALITY,
    WINDOW,
    ImagePhoto,
    cut,
    pack_codes,
    quality_steps,
    unpack_codes,
)
from ...tokenizers.image.tiling import Tile, tiles
from ...tokenizers.tokens import Tokens
from ..container.chunks import EXCT
from ..container.fields import ImageHeader
from ..container.read import TokFile, read_tok
from ..contract import Encoded
from ..errors import ChunkError, RateError, UsageError
from ..media.picture import Picture
from ..models import Model
from ..options import DecodeOptions, EncodeOptions, Rate
from ..progress import SILENT, Progress
from .exact_segments import ExactSegments, is_whole, whole_segments
from .format import Extras, ImageFormat, extras_of
from .refine import Refiner

# A file of few bytes has few layers, since each costs 18 bytes: (largest mean payload of a segment, layers).
LAYERS = ((3000, 1), (16000, 2), (32000, 3), (math.inf, 5))
BEST = 10000  # the highest quality, in hundredths
CLOSE_ENOUGH = 0.985  # a file of this share of the wanted size ends the search
TRIES = 12
LIKELY = 0.99  # of the wanted size is what a try aims at
REFINED_TRIES = 5
REFINED_ENOUGH = 0.975  # as CLOSE_ENOUGH, for refined codes
ENOUGH = 0.97  # of the wanted size must be used
ANALYSED = 0.05  # of the progress, where codes are refined


class QualityFormat(ImageFormat):
    """Files of models whose rate is a quality: layers are slices of the latents."""

    rates = ("quality", "bpp", "bytes", "lossless", "max-error")
    options = ImageFormat.options | {"effort"}

    def build(self, picture: Picture, model: Model, options: EncodeOptions, progress: Progress) -> Encoded:
        """Codes of the quality that was asked for, or of a file within the size that was."""
        photo = photo_model(model)
        size = picture.pixels.shape[0], picture.pixels.shape[1]
        if options.rate.whole:
            if options.effort:
                raise UsageError("effort is for codes, and a lossless file has none")
            data = lossless_file(photo, picture, options.rate, progress)
            return Encoded(data, read_tok(data).header.layers, math.prod(size), quality=BEST / 100)
        first, later = progress, progress
        if options.effort:
            first, later = progress.part(0, ANALYSED), progress.part(ANALYSED, 1)
        latents = photo.analyse_tiled(torch.from_numpy(picture.pixels), progress=first.update)
        refiner = Refiner(photo, picture.pixels, latents, options.n_steps) if options.effort else None
        exact = ExactSegments(photo, picture.pixels, latents)
        files = PhotoFile(
            photo, latents, size, extras_of(picture), refiner=refiner, exact=exact if exact.possible else None
        )
        most = options.rate.most_bytes(math.prod(size))
        if most is None:
            steps = quality_steps(DEFAULT_QUALITY if options.rate.quality is None else options.rate.quality)
            data = files.best_at(steps, later)
        else:
            data, steps = files.best_within(most, later)
        told = []
        if most is not None and steps == BEST and len(data) < ENOUGH * most:
            told = [f"quality 100 takes {len(data)} of the {most} bytes; --lossless takes more"]
        return Encoded(data, read_tok(data).header.layers, math.prod(size), told, quality=steps / 100)

    def pixels(self, tok: TokFile, model: Model, options: DecodeOptions, progress: Progress) -> tuple[np.ndarray, int]:
        photo = photo_model(model)
        try:
            photo.check_one_synthesis(options.synthesis)
        except ValueError as error:
            raise UsageError(str(error)) from error
        header = tok.picture
        if is_whole(tok):
            return np.zeros((header.height, header.width, header.channels), dtype=np.uint8), header.layers
        walks, held = read_walks(tok, photo, options.levels, progress.part(0, 0.5))
        return decode_walks(walks, tok, photo, progress.part(0.5, 1)), held

    def tokens_of(self, tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
        """Tokens of a file: the channels that all of its segments have."""
        photo, header = photo_model(model), tok.picture
        walks, _ = read_walks(tok, photo, levels)
        codes = torch.from_numpy(pack_codes(walks, header.grid))
        return Tokens(codes[None], photo.spec((header.height, header.width), quality=header.quality / 100))

    def pack(self, tokens: Tokens, model: Model) -> bytes:
        photo = photo_model(model)
        steps = quality_steps(tokens.spec.quality)
        levels = tokens.codes[0].numpy()
        if len(levels) != len(photo.codebook_sizes):
            raise UsageError(f"a .tok file wants all {len(photo.codebook_sizes)} levels, got {len(levels)}")
        walks = []
        try:
            for tile in tiles(levels.shape[1], levels.shape[2], 0, WINDOW):
                z, codes = unpack_codes(cut(levels, tile), photo.config.hyper)
                walks.append(photo.entropy.walk(z, codes, steps))
        except ValueError as error:
            raise UsageError(str(error)) from error
        height, width = tokens.spec.size
        return photo_file(photo, walks, steps, (height, width), Extras())


def photo_model(model: Model) -> ImagePhoto:
    """Raises ChunkError if a file claims such an entropy model, and its tokenizer has none."""
    if not isinstance(model.tokenizer, ImagePhoto):
        raise ChunkError(f"the header's entropy model is not one of {model.tokenizer.name}")
    return model.tokenizer


class PhotoFile:
    """Files of one picture at any quality.

    Args: latents: ``[M, h, w]``, see :meth:`~..tokenizers.image.photo.ImagePhoto.analyse_tiled`.
          size: height and width in pixels.
          refiner: of the same picture, if its codes are to be refined.
          exact: of the same picture, if blocks may be kept exactly.
    """

    def __init__(
        self,
        model: ImagePhoto,
        latents: np.ndarray,
        size: tuple[int, int],
        extras: Extras,
        refiner: Refiner | None = None,
        exact: ExactSegments | None = None,
    ) -> None:
        self.model, self.latents, self.size, self.extras = model, latents, size, extras
        self.refiner, self.exact = refiner, exact
        self.tried: dict[int, bytes] = {}
        self.refined: dict[int, bytes] = {}

    def best_at(self, steps: int, progress: Progress = SILENT) -> bytes:
        """The file of a quality in hundredths, its codes refined if there is a refiner."""
        if self.refiner is None:
            return self.at(steps)
        if steps not in self.refined:
            plain = self.model.quantise_windows(self.latents, steps)
            refined = self.refiner.refine(plain, steps, progress)
            tiles = [tile for tile, _ in plain]
            self.refined[steps] = self._file(list(zip(tiles, refined, strict=True)), steps)
        return self.refined[steps]

    def best_within(self, most: int, progress: Progress = SILENT) -> tuple[bytes, int]:
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
            file = self.best_at(steps, progress.part(1 - 0.5**i, 1 - 0.5 ** (i + 1)))
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
            self.tried[steps] = self._file(self.model.quantise_windows(self.latents, steps), steps)
        return self.tried[steps]

    def _file(self, walks: list[tuple[Tile, Walk]], steps: int) -> bytes:
        extras = self.extras
        if self.exact is not None:
            walks, payloads = self.exact.choose(walks, steps)
            extras = replace(extras, exact=payloads)
        return photo_file(self.model, [walk for _, walk in walks], steps, self.size, extras)

    def within(self, most: int) -> int:
        """The quality, in hundredths, of a file of at most ``most`` bytes and, if possible, hardly less.

        Raises: RateError if the lowest quality takes more.
        """
        low, high = 0, BEST
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


def lossless_file(model: ImagePhoto, picture: Picture, rate: Rate, progress: Progress) -> bytes:
    """A file whose segments are exact as a whole, or within an error, and whose codes say nothing.

    Raises: UsageError for depths between 8 and 16 bits.
    """
    pixels, size = picture.pixels, (picture.pixels.shape[0], picture.pixels.shape[1])
    if picture.bit_depth > 8 and pixels.itemsize == 1:
        raise UsageError("lossless files hold 8 or 16 bits a sample, and this picture has a number between")
    error = (rate.max_error or 0) * (257 if pixels.itemsize == 2 else 1)
    grid = model.spec(size, quality=BEST / 100).grid
    payloads = whole_segments(pixels, grid, error, progress)
    return _written(model, [[b""] * len(payloads)], BEST, size, replace(extras_of(picture), exact=payloads))


def photo_file(model: ImagePhoto, walks: list[Walk], steps: int, size: tuple[int, int], extras: Extras) -> bytes:
    """A whole file from the walks over all segments."""
    entropy = model.entropy
    mean = sum(float(entropy.bits(walk).sum()) for walk in walks) / 8 / len(walks)
    slices = len(entropy.slices)
    n = min(slices, next(layers for most, layers in LAYERS if mean <= most))
    columns = [entropy.payloads(walk, n) for walk in walks]
    return _written(model, [list(row) for row in zip(*columns, strict=True)], steps, size, extras)


def _written(model: ImagePhoto, layers: list[list[bytes]], steps: int, size: tuple[int, int], extras: Extras) -> bytes:
    """A whole file from the payloads of its layers, one for each segment."""
    header = ImageHeader(
        model=model.name,
        weights_hash=model.weights_hash,
        prior=model.entropy.wire_id,
        prior_hash=model.entropy.hash,
        layers=len(layers),
        height=size[0],
        width=size[1],
        stride=STRIDE,
        segment=WINDOW,
        channels=extras.channels,
        alpha=int(extras.alpha is not None),
        bit_depth=extras.bit_depth,
        quality=steps,
    )
    return extras.write(header, layers)


# -------------------------------------------------------------------- decoding


def read_walks(
    tok: TokFile, model: ImagePhoto, levels: int | None = None, progress: Progress = SILENT
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
        progress.update((segment + 1) / header.n_segments)
    return found, fewest


def _segment(
    tok: TokFile, model: ImagePhoto, segment: int, payloads: list[bytes], grid: tuple[int, int]
) -> tuple[Walk, int]:
    """Walk over a segment and the number of layers it has; a payload that does not decode costs later layers too."""
    entropy, header = model.entropy, tok.picture
    if payloads and not payloads[0]:  # exact as a whole
        if (EXCT, 0, segment) not in tok.places:
            tok.damaged(f"segment {segment}: its exact blocks are lost, and it has no codes")
        return entropy.expected(grid, header.quality), len(payloads)
    while payloads:
        try:
            return entropy.decompress(payloads, grid, header.quality, header.layers), len(payloads)
        except ValueError as error:
            payloads = payloads[:-1]
            tok.damaged(f"segment {segment}: {error}; decoded from {len(payloads)} layers")
    tok.damaged(f"segment {segment}: lost, {grid[0]} x {grid[1]} cells filled with what the entropy model expects")
    return entropy.expected(grid, header.quality), 0


def decode_walks(
    walks: list[tuple[Tile, Walk]], tok: TokFile, model: ImagePhoto, progress: Progress = SILENT
) -> np.ndarray:
    """Pixels ``[H, W, channels]`` uint8."""
    header = tok.picture
    latents = np.empty((model.config.latents, *header.grid), dtype=np.float32)
    for tile, walk in walks:
        cut(latents, tile)[:] = walk.latents
    size = (header.height, header.width)
    pixels = model.synthesise_tiled(latents, header.quality, size, header.channels, progress=progress.update)
    return pixels.numpy()
