"""Better codes for one picture, found by gradient descent: `codec encode --effort`. Bitstream-compatible.

The analysis net gives latents that are good on average over pictures. From there, the latents of this picture descend
on rate + lambda * distortion, the sum that the model was trained for, window by window::

    y, z -> RelaxedPrior (entropy/hyperprior/relaxed.py) -> bits
                                                  `-> y_hat, among its neighbours -> g_s -> distortion

What comes out is rounded and coded as ever, and taken only if its real cost, integer bits + lambda * distortion of the
decoded 8-bit pixels, is below that of the codes without it.

Source: Campos et al. 2019, "Content adaptive optimization for neural image compression", arXiv:1906.01223; Yang, Bamler
and Mandt 2020, "Improving inference for neural image compression", arXiv:2006.04240. We differ in what stands in for
rounding, and in Adam's settings, which are made for few steps.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...entropy.hyperprior.net import QUALITY_STEPS
from ...entropy.hyperprior.relaxed import RelaxedPrior
from ...entropy.hyperprior.walk import Walk
from ...tokenizers.image.layers import STRIDE
from ...tokenizers.image.photo import ImagePhoto, cut, rate_weight
from ...tokenizers.image.tiling import Tile
from ..metrics.distortion import distortion
from ..metrics.picture import MS_SSIM_SMALLEST
from ..progress import SILENT, Progress

RATE = 0.08  # of learning: most steps of the quantiser that a latent moves in one step, at the start
BETAS = (0.7, 0.9)
SLIGHT = 0.3  # gradients in bits a step of the quantiser, below which a latent moves less
NOISE = 0.5  # width of the noise in place of rounding at the end, in steps of the quantiser; it grows from none
MARGIN = 2  # cells around a window whose pixels count while it descends
SMALLEST = -(-MS_SSIM_SMALLEST // STRIDE) + 1  # cells of a region, so that MS-SSIM can be taken
Box = tuple[int, int, int, int]  # top, left, bottom, right in cells; the last two excluded


def grown(box: Box, grid: tuple[int, int], cells: int, least: int = 0) -> Box:
    """The box with so many cells more on each side, and at least ``least`` of them long, as far as the grid goes."""
    edges = []
    for begin, end, size in ((box[0], box[2], grid[0]), (box[1], box[3], grid[1])):
        begin, end = max(0, begin - cells), min(size, end + cells)
        begin = max(0, min(begin, end - least))
        edges.append((begin, min(size, max(end, begin + least))))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


class Refiner:
    """Refines the codes of one picture at any quality.

    Args: pixels: ``[H, W, C]`` uint8.  latents: ``[M, h, w]`` of :meth:`ImagePhoto.analyse_tiled`.  n_steps: of
          descent in each window.
    Memory: that of one window (1024 x 1024 pixels) and what its gradients need, about 3 GB, whatever H and W are.
    """

    def __init__(self, model: ImagePhoto, pixels: np.ndarray, latents: np.ndarray, n_steps: int) -> None:
        self.model, self.pixels, self.latents = model, pixels, latents
        self.n_steps = n_steps
        self.grid = (latents.shape[1], latents.shape[2])
        self.distortion = distortion(model.config.distortion)
        self.relaxed = RelaxedPrior(model.entropy)
        self.halo = model.synthesis_halo

    def refine(self, walks: list[tuple[Tile, Walk]], steps: int, progress: Progress = SILENT) -> list[Walk]:
        """Walks at least as good as ``walks``, those of :meth:`ImagePhoto.quantise_windows` at the same quality.

        Args: steps: the quality in hundredths.  progress: called with the share that is done.
        """
        held = np.empty_like(self.latents)
        for tile, walk in walks:
            cut(held, tile)[:] = walk.latents
        found = []
        for i, (tile, walk) in enumerate(walks):
            best, least = walk, self.cost(walk, tile, held, steps)
            y, z = self.descend(tile, held, steps, progress.part(i / len(walks), (i + 1) / len(walks)))
            if bool(torch.isfinite(y).all() and torch.isfinite(z).all()):
                refined = self.model.entropy.quantise(y.cpu().numpy(), z.cpu().numpy(), steps)
                if self.cost(refined, tile, held, steps) < least:
                    best = refined
            cut(held, tile)[:] = best.latents
            found.append(best)
        return found

    def weight(self, steps: int) -> float:
        """lambda: bits a pixel that a unit of distortion is worth."""
        quality = torch.tensor(steps / QUALITY_STEPS, dtype=torch.float64)
        return float(rate_weight(quality, self.model.config.rate_weights))

    def original(self, region: Box) -> Tensor:
        """The picture's pixels in a region, ``[1, 3, H, W]`` in [0, 1]; less than whole cells at its end."""
        t, le, b, r = (STRIDE * edge for edge in region)
        x = torch.from_numpy(np.ascontiguousarray(self.pixels[t:b, le:r])).to(self.model.device)
        return x.permute(2, 0, 1)[None].expand(-1, 3, -1, -1).float() / 255

    def error(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """Distortion times pixels. A picture too small for the metric gets its borders repeated."""
        pixels = x.shape[2] * x.shape[3]
        if self.pixels.shape[2] == 1:
            x_hat = x_hat.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        if self.model.config.distortion == "ms-ssim":
            fill = (0, max(0, MS_SSIM_SMALLEST - x.shape[3]), 0, max(0, MS_SSIM_SMALLEST - x.shape[2]))
            x, x_hat = F.pad(x, fill, mode="replicate"), F.pad(x_hat, fill, mode="replicate")
        return self.distortion(x, x_hat).sum() * pixels

    @torch.no_grad()
    def cost(self, walk: Walk, tile: Tile, held: np.ndarray, steps: int) -> float:
        """Bits of a window's codes, and lambda times the distortion of all decoded pixels that they change."""
        region = grown(tile.core, self.grid, self.halo, SMALLEST)
        outer = grown(region, self.grid, self.halo)
        before = cut(held, tile).copy()
        cut(held, tile)[:] = walk.latents
        part = torch.from_numpy(cut(held, Tile(outer, outer)).copy()).to(self.model.device)
        cut(held, tile)[:] = before
        x = self.original(region)
        x_hat = pixels_of(self.model.pixels(part[None], steps), region, outer, x)
        error = float(self.error(x, (x_hat * 255).round() / 255))
        return float(self.model.entropy.bits(walk).sum()) + self.weight(steps) * error

    @torch.enable_grad()
    def descend(
        self, tile: Tile, held: np.ndarray, steps: int, progress: Progress = SILENT
    ) -> tuple[Tensor, Tensor]:
        """y ``[M, h, w]``, in steps of the quantiser, and z of a window after the descent.

        Args: held: ``[M, h, w]`` what is decoded around it.
        """
        model, device = self.model, self.model.device
        quality = torch.tensor([steps / QUALITY_STEPS], device=device)
        region = grown(tile.core, self.grid, MARGIN, SMALLEST)
        outer = grown(region, self.grid, self.halo - MARGIN)
        around = torch.from_numpy(cut(held, Tile(outer, outer)).copy()).to(device)
        rows, columns = Tile(tile.core, outer).inner
        around[:, rows, columns] = 0
        fill = (columns.start, around.shape[2] - columns.stop, rows.start, around.shape[1] - rows.stop)
        with torch.no_grad():
            inverse, weight = model.nets.inverse_gain(quality), self.weight(steps)
            start = torch.from_numpy(np.ascontiguousarray(cut(self.latents, tile))).to(device)
            y = (start[None] * model.nets.gain(quality))[0]
            z = model.nets.hyper_analysis(y[None])[0]
        x = self.original(region)
        found = [y.requires_grad_(), z.contiguous().requires_grad_()]
        optimizer = torch.optim.Adam(found, lr=RATE, betas=BETAS, eps=SLIGHT)
        generator = torch.Generator(device).manual_seed(0)
        for step in range(self.n_steps):
            rate = RATE * (0.5 + 0.5 * math.cos(math.pi * step / self.n_steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            width = NOISE * step / max(1, self.n_steps - 1)
            noise = width * (torch.rand(y.shape, device=device, generator=generator) - 0.5)
            y_hat, bits = self.relaxed(found[0], found[1], steps, noise)
            whole = (around + F.pad(y_hat, fill))[None] * inverse
            x_hat = model.nets.synthesis(whole.contiguous(memory_format=torch.channels_last), quality)
            loss = bits + weight * self.error(x, pixels_of((x_hat + 1) / 2, region, outer, x))
            # Only by these: the weights' own gradients would take as long again.
            for tensor, slope in zip(found, torch.autograd.grad(loss, found), strict=True):
                tensor.grad = slope
            optimizer.step()
            progress.update((step + 1) / self.n_steps)
        return found[0].detach(), found[1].detach()



def pixels_of(x_hat: Tensor, region: Box, outer: Box, x: Tensor) -> Tensor:
    """A region's pixels, as many as ``x`` has, out of those of ``outer``."""
    t, le = STRIDE * (region[0] - outer[0]), STRIDE * (region[1] - outer[1])
    return x_hat[:, :, t : t + x.shape[2], le : le + x.shape[3]]
