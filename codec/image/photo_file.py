"""Files of one picture by a model whose rate is a quality, as many as a search tries.

The latents of the picture are computed once. At a quality, window by window::

    latents -> quantised -> decoded -> which blocks are exact (exact.py), codes without them, or none at all
            -> if the picture was decoded before, its old codes (settle.py); else with effort, better ones (refine.py)

Codes end at about 42 dB. At quality 100 windows that they leave below ``CLEAR`` dB are coded pixel by pixel, within an
error that brings them there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...entropy.hyperprior.walk import Walk
from ...tokenizers.image.layers import STRIDE
from ...tokenizers.image.photo import WINDOW, ImagePhoto, cut
from ...tokenizers.image.tiling import Tile
from ..container.fields import ImageHeader
from ..metrics.picture import as_rgb, psnr
from ..metrics.target import measure
from ..options import Target
from ..progress import SILENT, Progress
from .canvas import Canvas
from .exact_segments import ExactSegments, whole_segments
from .format import Extras
from .refine import Refiner
from .settle import settle, was_decoded
from .whole import Samples, pack_whole

# A file of few bytes has few layers, since each costs 18 bytes: (largest mean payload of a segment, layers).
LAYERS = ((3000, 1), (16000, 2), (32000, 3), (math.inf, 5))
BEST = 10000  # the highest quality, in hundredths
CLEAR = 45.0  # dB of PSNR that the highest quality has at least, of models whose distortion is squared error
WITHIN = 2, 1  # the errors, of which the second has 48 dB whatever the picture


@dataclass(frozen=True)
class Attempt:
    """A finished file.

    Attributes: steps: its quality in hundredths.  measured: what it reaches of the target, if there is one.
                lossless: whether no pixel is lost.  name: of what was asked for, in notes.
    """

    steps: int
    data: bytes
    measured: float | None = None
    lossless: bool = False
    name: str = f"quality {BEST / 100:g}"


class PhotoFile:
    """Files of one picture at any quality; each is made once.

    Args: n_steps: of the descent to better codes.
          target: what files are measured with.
    """

    def __init__(self, canvas: Canvas, extras: Extras, n_steps: int = 0, target: Target | None = None) -> None:
        self.canvas, self.extras, self.target = canvas, extras, target
        self.refiner = Refiner(canvas, n_steps) if n_steps else None
        exact = ExactSegments(canvas.model, canvas.pixels)
        self.exact = exact if exact.possible else None
        self.tried: dict[tuple[int, bool], Attempt] = {}
        self.clear: dict[Tile, tuple[bytes, Samples]] = {}

    def at(self, steps: int, refined: bool = False, progress: Progress = SILENT) -> Attempt:
        """The file of a quality in hundredths. refined: its codes as good as the descent makes them."""
        refiner = self.refiner if refined else None
        key = steps, refiner is not None
        if key not in self.tried:
            walks, exact = self._codes(steps, refiner, progress)
            size = self.canvas.pixels.shape[:2]
            data = photo_file(self.canvas.model, walks, steps, size, replace(self.extras, exact=exact))
            measured = None
            if self.target is not None:
                measured = measure(self.target.metric, self.canvas.pixels, self.canvas.picture(steps))
            lossless = self.canvas.exact is self.canvas.pixels and all(walk is None for walk in walks)
            self.tried[key] = Attempt(steps, data, measured, lossless)
        return self.tried[key]

    def within_error(self, error: int) -> Attempt:
        """The file without codes whose pixels differ by so much at most."""
        model, pixels = self.canvas.model, self.canvas.pixels
        payloads, shown = whole_segments(pixels, self.canvas.grid, error)
        layers = [[b""] * len(payloads)]
        data = written(model, layers, BEST, pixels.shape[:2], replace(self.extras, exact=payloads))
        measured = None if self.target is None else measure(self.target.metric, pixels, shown)
        return Attempt(BEST, data, measured, not error, f"a largest error of {error}" if error else "lossless coding")

    def _codes(
        self, steps: int, refiner: Refiner | None, progress: Progress
    ) -> tuple[list[Walk | None], dict[int, bytes]]:
        """What is coded of each window, None where all of it is exact, and the exact blocks of those that have some."""
        canvas, model = self.canvas, self.canvas.model
        canvas.nothing_exact()
        plain, decoded = [], []
        for tile in canvas.windows:
            walk = model.quantise(cut(canvas.latents, tile), steps)
            canvas.hold(tile, walk.latents)
            plain.append(walk.coded())
            decoded.append(was_decoded(canvas, tile, walk, steps))
        payloads = {} if self.exact is None else self._choose(self.exact, plain, steps)
        if steps == BEST and model.config.distortion == "mse":
            payloads |= self._cleared(steps)
        walks: list[Walk | None] = []
        for i, (tile, walk) in enumerate(zip(canvas.windows, plain, strict=True)):
            free = canvas.free(tile)
            if free is not None and free.all():
                canvas.hold(tile, model.entropy.expected(walk.grid, steps).latents)
                walks.append(None)
                continue
            if free is not None:
                walk = model.quantise(cut(canvas.latents, tile), steps, free)
                canvas.hold(tile, walk.latents)
                decoded[i] = was_decoded(canvas, tile, walk, steps)
            if decoded[i]:
                walk = settle(canvas, tile, walk, steps)
            elif refiner is not None:
                part = progress.part(i / len(plain), (i + 1) / len(plain))
                walk = refiner.refine(tile, walk, steps, part)
            walks.append(walk.coded())
        return walks, payloads

    def _choose(self, exact: ExactSegments, plain: list[Walk], steps: int) -> dict[int, bytes]:
        """The exact blocks of each window that has some; the canvas knows them afterwards. plain: its codes without."""
        canvas, model = self.canvas, self.canvas.model
        payloads: dict[int, bytes] = {}
        for i, (tile, walk) in enumerate(zip(canvas.windows, plain, strict=True)):
            decoded = canvas.decoded(tile, steps)
            blocks, payload = exact.choose(tile, decoded, steps)
            if payload:
                payloads[i], canvas.window_blocks(tile)[:] = payload, blocks
            whole = exact.whole(tile)
            if whole is None:
                continue
            if payload:
                walk = model.quantise(cut(canvas.latents, tile), steps, canvas.free(tile))
                canvas.hold(tile, walk.latents)
                decoded = canvas.decoded(tile, steps)
            bits = float(model.entropy.bits(walk).sum()) + 8 * len(payload)
            if exact.pays(whole, tile, decoded, steps, bits):
                payloads[i], canvas.window_blocks(tile)[:] = whole, True
        return payloads


    def _cleared(self, steps: int) -> dict[int, bytes]:
        """Windows that are not clear enough, within an error; the canvas knows them afterwards."""
        canvas, payloads = self.canvas, {}
        for i, tile in enumerate(canvas.windows):
            window = canvas.window_pixels(tile)
            if psnr(as_rgb(window), canvas.decoded(tile, steps)) >= CLEAR:
                continue
            for error in WITHIN if tile not in self.clear else ():
                self.clear[tile] = pack_whole(window, error)
                if psnr(as_rgb(window), as_rgb(self.clear[tile][1])) >= CLEAR:
                    break
            payloads[i], shown = self.clear[tile]
            canvas.take_exact(tile, shown)
        return payloads


def photo_file(
    model: ImagePhoto, walks: Sequence[Walk | None], steps: int, size: tuple[int, ...], extras: Extras
) -> bytes:
    """A whole file from the walks over all segments, None for those that are exact as a whole."""
    entropy = model.entropy
    mean = sum(float(entropy.bits(walk).sum()) for walk in walks if walk is not None) / 8 / len(walks)
    slices = len(entropy.slices)
    n = min(slices, next(layers for most, layers in LAYERS if mean <= most))
    columns = [[b""] * n if walk is None else entropy.payloads(walk, n) for walk in walks]
    return written(model, [list(row) for row in zip(*columns, strict=True)], steps, size, extras)


def written(model: ImagePhoto, layers: list[list[bytes]], steps: int, size: tuple[int, ...], extras: Extras) -> bytes:
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
