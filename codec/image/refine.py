"""Better codes for one picture, found by gradient descent: `codec encode --effort`. Bitstream-compatible.

The analysis net gives latents that are good on average over pictures. From there, the latents of this picture descend
on rate + lambda * distortion, the sum that the model was trained for, window by window::

    y, z -> RelaxedPrior (entropy/hyperprior/relaxed.py) -> bits
                                                  `-> y_hat, among its neighbours -> g_s -> distortion

What comes out is rounded and coded as ever, and taken only if its real cost, integer bits + lambda * distortion of the
decoded 8-bit pixels, is below that of the codes without it.

How they descend: :mod:`tokodec.entropy.hyperprior.descent`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...entropy.hyperprior.descent import descend
from ...entropy.hyperprior.net import QUALITY_STEPS
from ...entropy.hyperprior.relaxed import RelaxedPrior
from ...entropy.hyperprior.walk import Walk
from ...tokenizers.image.layers import STRIDE
from ...tokenizers.image.photo import cut, rate_weight
from ...tokenizers.image.tiling import Tile
from ..metrics.distortion import distortion
from ..metrics.picture import MS_SSIM_SMALLEST
from ..progress import SILENT, Progress
from .canvas import Canvas, grown, pixels_of

MARGIN = 2  # cells around a window whose pixels count while it descends
SMALLEST = -(-MS_SSIM_SMALLEST // STRIDE) + 1  # cells of a region, so that MS-SSIM can be taken


class Refiner:
    """Refines the codes of one picture at any quality, window by window.

    Args: canvas: of the picture.  n_steps: of descent in each window.
    Memory: that of one window (1024 x 1024 pixels) and what its gradients need, about 3 GB, whatever H and W are.
    """

    def __init__(self, canvas: Canvas, n_steps: int) -> None:
        self.model, self.canvas, self.n_steps = canvas.model, canvas, n_steps
        self.distortion = distortion(self.model.config.distortion)
        self.relaxed = RelaxedPrior(self.model.entropy)
        self.halo = self.model.synthesis_halo

    def refine(self, tile: Tile, walk: Walk, steps: int, progress: Progress = SILENT) -> Walk:
        """Codes of a window at least as good as ``walk``, which the canvas holds; it holds the new ones afterwards.

        Args: steps: the quality in hundredths.  progress: called with the share that is done.
        """
        before, least = cut(self.canvas.held, tile).copy(), self.cost(walk, tile, steps)
        y, z = self.descend(tile, steps, progress)
        if bool(torch.isfinite(y).all() and torch.isfinite(z).all()):
            free = self.canvas.free(tile)
            refined = self.model.entropy.quantise(y.cpu().numpy(), z.cpu().numpy(), steps, free)
            self.canvas.hold(tile, refined.latents)
            if self.cost(refined, tile, steps) < least:
                return refined
            cut(self.canvas.held, tile)[:] = before
        return walk

    def weight(self, steps: int) -> float:
        """lambda: bits a pixel that a unit of distortion is worth."""
        quality = torch.tensor(steps / QUALITY_STEPS, dtype=torch.float64)
        return float(rate_weight(quality, self.model.config.rate_weights))

    def error(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Distortion times pixels. A picture too small for the metric gets its borders repeated."""
        pixels = x.shape[2] * x.shape[3]
        if self.model.config.distortion == "ms-ssim":
            fill = (0, max(0, MS_SSIM_SMALLEST - x.shape[3]), 0, max(0, MS_SSIM_SMALLEST - x.shape[2]))
            x, x_hat = F.pad(x, fill, mode="replicate"), F.pad(x_hat, fill, mode="replicate")
        return self.distortion(x, x_hat).sum() * pixels

    @torch.no_grad()
    def cost(self, walk: Walk, tile: Tile, steps: int) -> float:
        """Bits of a window's codes, which the canvas holds, and lambda times the distortion of all decoded pixels that
        they change."""
        region = grown(tile.core, self.canvas.grid, self.halo, SMALLEST)
        error = float(self.error(self.canvas.original(region), self.canvas.shown(region, steps)))
        return float(self.model.entropy.bits(walk).sum()) + self.weight(steps) * error

    def descend(self, tile: Tile, steps: int, progress: Progress = SILENT) -> tuple[Tensor, Tensor]:
        """y ``[M, h, w]``, in steps of the quantiser, and z of a window after the descent."""
        canvas, model, device = self.canvas, self.model, self.model.device
        quality = torch.tensor([steps / QUALITY_STEPS], device=device)
        region = grown(tile.core, canvas.grid, MARGIN, SMALLEST)
        outer = grown(region, canvas.grid, self.halo - MARGIN)
        around = torch.from_numpy(canvas.known(outer)).to(device)
        rows, columns = Tile(tile.core, outer).inner
        around[:, rows, columns] = 0
        fill = (columns.start, around.shape[2] - columns.stop, rows.start, around.shape[1] - rows.stop)
        with torch.no_grad():
            inverse, weight = model.nets.inverse_gain(quality), self.weight(steps)
            start = torch.from_numpy(np.ascontiguousarray(cut(canvas.latents, tile))).to(device)
            y = (start[None] * model.nets.gain(quality))[0]
            free = canvas.free(tile)
            left_out = None if free is None else torch.from_numpy(free).to(device)
            if left_out is not None:
                y = y * ~left_out
            z = model.nets.hyper_analysis(y[None])[0]
        x = canvas.original(region)

        def relaxed(y: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            return self.relaxed(y, z, steps, noise, left_out)

        def error(y_hat: Tensor) -> Tensor:
            whole = (around + F.pad(y_hat, fill))[None] * inverse
            x_hat = model.nets.synthesis(whole.contiguous(memory_format=torch.channels_last), quality)
            x_hat = canvas.finished(pixels_of((x_hat + 1) / 2, region, outer, x), x, region)
            return weight * self.error(x, x_hat)

        return descend(relaxed, error, (y, z), self.n_steps, progress.update)
