"""Pictures that were decoded before: the codes that they came from, so that encoding them again loses next to nothing.

The latents of a decoded picture are nearly those that it was decoded from, but analysis and synthesis are not inverse
to each other, and what is missing adds up: 2 dB in five generations. So the encoder goes back and forth::

    y = analysis(x);  y_hat = rounded(y);  then y_hat = rounded(y_hat + analysis(x) - analysis(shown(y_hat))), repeated

which ends where the codes show ``x`` itself. For any other picture that would pull codes off their best values, so it
is done only where latents lie on the lattice of the quantiser. Kim et al. 2020, "Instability of successive deep image
compression" (arXiv:2010.00357), train the nets for it; this needs no training and leaves the first generation as it is.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from ...entropy.hyperprior.walk import Walk
from ...tokenizers.image.photo import cut, pad_to_cells
from ...tokenizers.image.tiling import Tile
from .canvas import Canvas, grown, pixels_of

# Median distance of latents from their rounded values, in steps of the quantiser, where codes are not zero: over 0.25
# for pictures that are new, 0.09 to 0.23 for those decoded from codes of the same quality.
CLOSE = 0.24
ENOUGH = 200  # codes to tell it by
ROUNDS = 4


def was_decoded(canvas: Canvas, tile: Tile, walk: Walk, steps: int) -> bool:
    """Whether a window looks as if it was decoded from codes of this quality. walk: over its latents."""
    latents = cut(canvas.latents, tile) * canvas.model.gain(steps)
    rest = np.abs(latents - walk.latents)[walk.codes != 0]
    return bool(rest.size >= ENOUGH and np.median(rest) < CLOSE)


@torch.no_grad()
def settle(canvas: Canvas, tile: Tile, walk: Walk, steps: int) -> Walk:
    """The codes of a window whose decoding is nearest to it, from ``walk`` on, which the canvas holds; it holds the new
    ones afterwards."""
    model, free = canvas.model, canvas.free(tile)
    region = grown(tile.core, canvas.grid, model.analysis_halo)
    inside, wanted = Tile(tile.core, region).inner, cut(canvas.latents, tile)
    x = canvas.original(tile.core)
    held = cut(canvas.held, tile)
    best, kept, least = walk, held.copy(), math.inf
    for _ in range(ROUNDS + 1):
        shown = canvas.shown(region, steps)
        error = float((pixels_of(shown, tile.core, region, x) - x).square().sum())
        if error >= least:
            held[:] = kept
            break
        best, least = walk, error
        kept[:] = held
        if not error:
            break
        again = model.latents(pad_to_cells(shown))[0, :, inside[0], inside[1]].cpu().numpy()
        walk = model.quantise(canvas.known(tile.core) / model.gain(steps) + wanted - again, steps, free)
        canvas.hold(tile, walk)
    return best
