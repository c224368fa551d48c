"""The entropy model with gradients: what latents cost before they are rounded, for an encoder that improves them.

The layers are those of :mod:`.net`, in float and without rounding, with the integers of the entropy model
as weights. Rounding has no slope, and three things stand in for it:

- What is decoded is the latent itself plus noise, by default uniform as the error of rounding but smaller.
- Bits of y are mostly those of the latent itself under the normal distribution of its scale (Balle et al. 2018,
  arXiv:1802.01436, eq. 6), which are flat around the mean, and to a fifth straight lines between the bits of the whole
  numbers on both sides, which pull towards zero.
- Bits of z are straight lines between those of its tables.

Slopes of the rate at rounded values, with rounding taken for the identity, make codes worse; samples of codes whose
noise is annealed (Yang, Bamler and Mandt 2020, arXiv:2006.04240) need several times as many steps for the same gain.
`train/RUNS.md` has the figures.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..integer import STREAM_BITS, STREAM_MAX
from ..tables import table_bits
from .net import (
    SCALE_MAX,
    SCALE_MIN,
    SCALES,
    Z_BITS,
    Z_MAX,
    HyperNet,
    HyperShape,
    SliceNet,
    bits,
    compand,
    normal_mass,
    told,
)
from .prior import HyperPrior
from .windows import places_of

LINES = 0.2  # share of the straight lines; with half of them codes of low qualities become worse
LOG_RATIO = math.log(SCALE_MAX / SCALE_MIN) / (SCALES - 1)


class RelaxedPrior:
    """The differentiable twin of an entropy model, on its device."""

    def __init__(self, prior: HyperPrior) -> None:
        arrays = prior.arrays()
        self.skip, self.device = prior.skip, prior.device
        self.net = HyperNet(HyperShape.of_export(arrays))
        self.net.load_layers(arrays)
        self.net.requires_grad_(False).to(self.device)
        lengths = torch.stack([torch.from_numpy(table_bits(table)) for table in prior.z_tables])
        self.z_bits = lengths.float().to(self.device)  # [hyper, 2 Z_MAX + 1]

    def __call__(
        self, y: Tensor, z: Tensor, steps: int, noise: Tensor, free: Tensor | None = None, kind: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Latents that an encoder could choose to what would be decoded and its bits, both with gradients.

        Args:
            y: ``[M, h, w]`` latents in steps of the quantiser.
            z: ``[hyper, ceil(h/4), ceil(w/4)]`` hyper latents.
            steps: the quality in hundredths.
            noise: ``[M, h, w]``, takes the place of the error of rounding.
            free: ``[h, w]`` bool, cells whose codes are all 0, whatever y is.
            kind: of the grid, where the model tells some apart.

        Returns: y_hat ``[M, h, w]`` and bits of y and z, ``[]``.
        """
        net, (h, w) = self.net, y.shape[1:]
        fill = (0, -w % 4, 0, -h % 4)
        inside = F.pad(y.new_ones(1, h, w), fill).permute(1, 2, 0)[None]  # [1, h, w, 1]
        counted = inside if free is None else inside * F.pad(~free, fill).to(y.dtype)[None, :, :, None]
        parts, shifts = (F.pad(x, fill).permute(1, 2, 0)[None].split(net.shape.slices, 3) for x in (y, noise))
        z = F.hardtanh(z, -Z_MAX, Z_MAX)
        number, which = torch.tensor([[steps], [kind]], device=y.device).unbind()
        about = told(number, which, net.shape.kinds)
        hats = about.to(y.dtype) * 2.0**-Z_BITS
        features = net.decoder(z.permute(1, 2, 0)[None], hats, False)
        total = self.bits_of_z(z)
        seen: list[Tensor] = []
        y_hats: list[Tensor] = []
        grid = (inside.shape[1], inside.shape[2])
        for i, (part, shift) in enumerate(zip(parts, shifts, strict=True)):
            layers = net.slices[i]
            assert isinstance(layers, SliceNet)
            places = places_of(layers.order, grid, y.device)
            if layers.state is not None:
                features = layers.state(features, seen[-1] if seen else features[..., :0], False)
            before = torch.cat(seen, 3) if seen else features[..., :0]
            base = inside_stream(layers.base.window(before, features, False))
            done: list[Tensor] = []
            for step, (stream, wanted, valid, moved, open_) in enumerate(
                zip(*map(places.split, (base, part, inside, shift, counted)), strict=True)
            ):
                if step:
                    known = places.windows(compand(places.merge(done, grid), False), step)
                    stream = inside_stream(stream + inside_stream(layers.own_of(step)(known, False)))
                mean, index = layers.head(stream, False)
                coded = index >= self.skip + 0.5
                wanted = torch.where(open_ > 0, wanted, mean)
                cost = bits_of_y(wanted - mean, SCALE_MIN * torch.exp(index * LOG_RATIO))
                total = total + torch.where(coded, cost * valid, 0.0).sum()
                done.append(torch.where(coded, wanted + moved * open_, mean) * valid)
            y_hats.append(places.merge(done, grid))
            seen.append(compand(y_hats[-1], False))
        return torch.cat(y_hats, 3)[0, :h, :w].permute(2, 0, 1), total

    def bits_of_z(self, z: Tensor) -> Tensor:
        """Straight lines between the bits of whole numbers, summed; ``z [hyper, h, w]`` in -Z_MAX..Z_MAX."""
        low = z.detach().floor().clamp(max=Z_MAX - 1)
        place = (low + Z_MAX).long().flatten(1)
        below, above = (self.z_bits.gather(1, place + step) for step in (0, 1))
        return torch.lerp(below, above, (z - low).flatten(1)).sum()


def inside_stream(x: Tensor) -> Tensor:
    top = STREAM_MAX * 2.0**-STREAM_BITS
    return F.hardtanh(x, -top, top)


def bits_of_y(value: Tensor, scale: Tensor) -> Tensor:
    """Bits of latents less their mean, of which codes will be made; see the module's text."""
    low = value.detach().floor()
    below, above = (bits(normal_mass(whole, scale)) for whole in (low, low + 1))
    return torch.lerp(bits(normal_mass(value, scale)), torch.lerp(below, above, value - low), LINES)
