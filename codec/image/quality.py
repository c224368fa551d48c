"""Pictures of models whose rate is set by a quality. Twins again: encoding above, decoding below.

The latents of a picture are computed once, whatever the rate; a quality is then a scaling, a rounding and a walk of the
entropy model over each segment (photo_file.py). So a wanted size, or a target of a metric, is found by trying qualities
(search.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ...entropy.hyperprior.walk import Walk
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
from ..container.chunks import EXCT, LAYR
from ..container.read import TokFile, read_tok
from ..contract import Encoded
from ..errors import ChunkError, UsageError, too_small
from ..media.picture import Picture
from ..metrics.target import check_measurable
from ..models import Model
from ..options import DecodeOptions, EncodeOptions, Rate, Target
from ..progress import SILENT, Progress
from .canvas import Canvas
from .exact_segments import is_whole, whole_segments
from .format import Extras, ImageFormat, extras_of
from .photo_file import BEST, Attempt, PhotoFile, photo_file, written
from .search import ENOUGH, TOP, Reach, Within, search

ANALYSED = 0.05  # of the progress, where codes are refined


class QualityFormat(ImageFormat):
    """Files of models whose rate is a quality: layers are slices of the latents."""

    rates = ("quality", "bpp", "bytes", "target", "lossless", "max-error")
    options = ImageFormat.options | {"effort"}

    def build(self, picture: Picture, model: Model, options: EncodeOptions, progress: Progress) -> Encoded:
        """Codes of the quality that was asked for, or of a file within the size that was."""
        photo = photo_model(model)
        size = picture.pixels.shape[0], picture.pixels.shape[1]
        rate, first, later = options.rate, progress, progress
        if rate.whole:
            if options.effort:
                raise UsageError("effort is for codes, and a lossless file has none")
            return whole(photo, picture, rate, progress)
        if rate.target is not None:
            check_measurable(rate.target.metric, size)
        if options.effort:
            first, later = progress.part(0, ANALYSED), progress.part(ANALYSED, 1)
        latents = photo.analyse_tiled(torch.from_numpy(picture.pixels), progress=first.update)
        canvas = Canvas(photo, picture.pixels, latents)
        files = PhotoFile(canvas, extras_of(picture), options.n_steps, rate.target)
        if rate.target is not None:
            return reaching(files, rate.target, picture, later)
        most = rate.most_bytes(math.prod(size))
        if most is None:
            steps = quality_steps(DEFAULT_QUALITY if rate.quality is None else rate.quality)
            return encoded(files.at(steps, True, later), picture)
        return within(files, most, picture, later)

    def pixels(self, tok: TokFile, model: Model, options: DecodeOptions, progress: Progress) -> tuple[np.ndarray, int]:
        photo = photo_model(model)
        try:
            photo.check_one_synthesis(options.synthesis)
        except ValueError as error:
            raise UsageError(str(error)) from error
        check_grid(tok, photo)
        header, held = tok.picture, tok.picture.layers
        if is_whole(tok):
            return np.zeros((header.height, header.width, header.channels), dtype=np.uint8), held
        latents = np.empty((photo.config.latents, *header.grid), dtype=np.float32)
        for tile, walk, n in each_walk(tok, photo, options.levels, progress.part(0, 0.5)):
            cut(latents, tile)[:] = walk.latents
            held = min(held, n)
        size, told = (header.height, header.width), progress.part(0.5, 1).update
        return photo.synthesise_tiled(latents, header.quality, size, header.channels, progress=told).numpy(), held

    def tokens_of(self, tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
        """Tokens of a file: the channels that all of its segments have."""
        photo, header = photo_model(model), tok.picture
        if any(tok.payload(LAYR, 0, s) == b"" for s in range(header.n_segments)):
            raise UsageError("a part of the picture is stored as pixels and no codes: there are no tokens of it")
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


def encoded(file: Attempt, picture: Picture, note: str = "", metric: str | None = None) -> Encoded:
    """A finished file; what it was measured with, if it was."""
    measured = None if metric is None or file.measured is None else (metric, file.measured)
    layers, pixels = read_tok(file.data).header.layers, math.prod(picture.pixels.shape[:2])
    told, exact = [note] if note else [], file.lossless and picture.bit_depth == 8
    return Encoded(file.data, layers, pixels, told, quality=file.steps / 100, measured=measured, lossless=exact)


def within(files: PhotoFile, most: int, picture: Picture, progress: Progress) -> Encoded:
    """A file of at most so many bytes. Raises RateError if the lowest quality takes more."""
    file = search(files, Within(most), progress)
    if file is None:
        raise too_small(len(files.at(0).data), most, pixels=math.prod(picture.pixels.shape[:2]))
    unused = len(file.data) < ENOUGH * most
    if file.steps == TOP and unused:
        for better in ladder(files, picture):
            if len(better.data) > most:
                break
            file, unused = better, len(better.data) < ENOUGH * most
    note = f"{file.name} takes {len(file.data)} of the {most} bytes" if file.steps >= TOP and unused else ""
    return encoded(file, picture, f"{note}; no pixel is lost" if note and file.lossless else note)


def reaching(files: PhotoFile, target: Target, picture: Picture, progress: Progress) -> Encoded:
    """The smallest file that reaches a target; where codes do not, the first of the :func:`ladder` that does."""
    goal = Reach(target)
    file = search(files, goal, progress)
    if file is not None:
        return encoded(file, picture, metric=target.metric)
    for file in ladder(files, picture):
        if goal.met(file):
            break
    assert file is not None
    assert file.measured is not None
    note = f"{file.name} reaches {target.metric} {file.measured:.5g}, not the {target.least:g} asked for"
    if goal.met(file):
        note = f"only a lossless file reaches {target.metric} {target.least:g}" if file.lossless else ""
    return encoded(file, picture, note, target.metric)


def ladder(files: PhotoFile, picture: Picture) -> Iterator[Attempt]:
    """Files above those of codes, each better than the one before, up to a lossless one if 8 bits are all there is."""
    best = files.at(BEST, True)
    yield best
    if not best.lossless:
        yield from (files.within_error(error) for error in (1, 0)[: 2 if picture.bit_depth == 8 else 1])


def whole(model: ImagePhoto, picture: Picture, rate: Rate, progress: Progress) -> Encoded:
    """Every pixel of a picture, or all within an error."""
    data = whole_file(model, picture, rate, progress)
    layers, pixels = read_tok(data).header.layers, math.prod(picture.pixels.shape[:2])
    return Encoded(data, layers, pixels, quality=BEST / 100, lossless=rate.lossless)


def whole_file(model: ImagePhoto, picture: Picture, rate: Rate, progress: Progress) -> bytes:
    """A file whose segments are exact as a whole, or within an error, and whose codes say nothing.

    Raises: UsageError for depths between 8 and 16 bits.
    """
    pixels, size = picture.pixels, (picture.pixels.shape[0], picture.pixels.shape[1])
    if picture.bit_depth > 8 and pixels.itemsize == 1:
        raise UsageError("lossless files hold 8 or 16 bits a sample, and this picture has a number between")
    error = (rate.max_error or 0) * (257 if pixels.itemsize == 2 else 1)
    grid = model.spec(size, quality=BEST / 100).grid
    payloads, _ = whole_segments(pixels, grid, error, progress)
    return written(model, [[b""] * len(payloads)], BEST, size, replace(extras_of(picture), exact=payloads))


# -------------------------------------------------------------------- decoding


def read_walks(tok: TokFile, model: ImagePhoto, levels: int | None = None) -> tuple[list[tuple[Tile, Walk]], int]:
    """Codes and latents of all segments, see :func:`each_walk`, and the fewest layers that one was decoded from."""
    check_grid(tok, model)
    found = list(each_walk(tok, model, levels))
    return [(tile, walk) for tile, walk, _ in found], min(n for _, _, n in found)


def check_grid(tok: TokFile, model: ImagePhoto) -> None:
    """Raise ChunkError if a file has another grid or more layers than its model makes."""
    header = tok.picture
    if header.segment != WINDOW or header.grid != model.spec((header.height, header.width), quality=0).grid:
        raise ChunkError(f"the header's segments or stride are not those of {header.model}")
    if header.layers > len(model.entropy.slices):
        raise ChunkError(f"the header has {header.layers} layers, {header.model} at most {len(model.entropy.slices)}")


def each_walk(
    tok: TokFile, model: ImagePhoto, levels: int | None = None, progress: Progress = SILENT
) -> Iterator[tuple[Tile, Walk, int]]:
    """Codes and latents of every segment of a file, one by one, and the number of layers it was decoded from.

    A segment without its first layer is what the entropy model expects of a segment of which nothing is known; means
    stand for later layers that are missing. What is lost is noted in ``tok.problems``.
    """
    header = tok.picture
    wanted = min(levels or header.layers, header.layers)
    for segment in range(header.n_segments):
        box = header.segment_box(segment)
        payloads = tok.segment_payloads(segment, wanted)
        walk, n = _segment(tok, model, segment, payloads, (box[2] - box[0], box[3] - box[1]))
        yield Tile(box, box), walk, n
        progress.update((segment + 1) / header.n_segments)


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
