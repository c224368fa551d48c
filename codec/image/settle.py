"""Pictures that were decoded before: the codes that they came from, so that encoding them again loses next to nothing.

The latents of a decoded picture are nearly those that it was decoded from, but analysis and synthesis are not inverse
to each other, and what is missing adds up: 2 dB in five generations. So the encoder goes back and forth, and rounds at
the end::

    y = analysis(x);  then y = y + analysis(x) - analysis(shown(y)), repeated, until y shows x;  y_hat = rounded(y)

Of a decoded picture, y is then nearly what it was decoded from, and codes are the same but where hyper latents lay on
the edge of rounding and fall to its other side. For any other picture this would pull codes off their best values, so
it is done only where latents lie on the lattice of the quantiser, and taken only if it shows the picture better. Kim et
al. 2020, "Instability of successive deep image compression" (arXiv:2010.00357), train the nets for it; this needs no
training and leaves the first generation as it is.
"""

from __future__ import annotations

import numpy as np
import torch

from ...entropy.hyperprior.walk import Walk
from ...tokenizers.image.photo import cut, pad_to_cells
from ...tokenizers.image.tiling import Tile
from .canvas import Canvas, grown

# Median distance of latents from their rounded values, in steps of the quantiser, where codes are not zero: over 0.25
# for pictures that are new, 0.09 to 0.23 for those decoded from codes of the same quality.
CLOSE = 0.24
ENOUGH = 200  # codes to tell it by
ROUNDS = 6


def was_decoded(canvas: Canvas, tile: Tile, walk: Walk, steps: int) -> bool:
    """Whether a window looks as if it was decoded from codes of this quality. walk: over its latents."""
    latents = cut(canvas.latents, tile) * canvas.model.gain(steps)
    rest = np.abs(latents - walk.latents)[walk.codes != 0]
    return bool(rest.size >= ENOUGH and np.median(rest) < CLOSE)


@torch.no_grad()
def settle(canvas: Canvas, tile: Tile, walk: Walk, steps: int) -> Walk:
    """The codes that a window was decoded from, or nearly, if they show it better than ``walk``, which the canvas
    holds; it holds the better ones afterwards."""
    model, gain, free = canvas.model, canvas.model.gain(steps), canvas.free(tile)
    region = grown(tile.core, canvas.grid, model.analysis_halo)
    inside, x, held = Tile(tile.core, region).inner, canvas.original(tile.core), cut(canvas.held, tile)

    def error() -> float:
        shown = canvas.shown(tile.core, steps)
        return float((shown - x).square().sum())

    before, least = held.copy(), error()
    y = wanted = cut(canvas.latents, tile)
    for _ in range(ROUNDS):
        canvas.hold(tile, y * gain)
        again = model.latents(pad_to_cells(canvas.shown(region, steps)))[0, :, inside[0], inside[1]].cpu().numpy()
        y = y + wanted - again
    settled = model.quantise(y, steps, free)
    canvas.hold(tile, settled.latents)
    if error() < least:
        return settled
    held[:] = before
    return walk
