"""Latents that descend on rate + lambda * distortion, through the entropy model with gradients (:mod:`.relaxed`).

Source: Campos et al. 2019, "Content adaptive optimization for neural image compression", arXiv:1906.01223; Yang, Bamler
and Mandt 2020, "Improving inference for neural image compression", arXiv:2006.04240. We differ in what stands in for
rounding, and in Adam's settings, which are made for few steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

RATE = 0.08  # of learning: most steps of the quantiser that a latent moves in one step, at the start
BETAS = (0.7, 0.9)
SLIGHT = 0.3  # gradients in bits a step of the quantiser, below which a latent moves less
NOISE = 0.5  # width of the noise in place of rounding at the end, in steps of the quantiser; it grows from none


@torch.enable_grad()
def descend(
    relaxed: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
    error: Callable[[Tensor], Tensor],
    found: tuple[Tensor, Tensor],
    n_steps: int,
    done: Callable[[float], None] = lambda _: None,
) -> tuple[Tensor, Tensor]:
    """y and z after ``n_steps`` steps of Adam.

    Args:
        relaxed: y, z and noise of y's shape to what is decoded and its bits, see :class:`~.relaxed.RelaxedPrior`.
        error: what is decoded to lambda times its distortion, in bits.
        found: y, in steps of the quantiser, and z, to begin with.
        done: called with the share that is done.
    """
    y, z = (part.detach().contiguous().requires_grad_() for part in found)
    optimizer = torch.optim.Adam([y, z], lr=RATE, betas=BETAS, eps=SLIGHT)
    generator = torch.Generator(y.device).manual_seed(0)
    for step in range(n_steps):
        rate = RATE * (0.5 + 0.5 * math.cos(math.pi * step / n_steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        width = NOISE * step / max(1, n_steps - 1)
        noise = width * (torch.rand(y.shape, device=y.device, generator=generator) - 0.5)
        y_hat, bits = relaxed(y, z, noise)
        # Only by these: the weights' own gradients would take as long again.
        y.grad, z.grad = torch.autograd.grad(bits + error(y_hat), (y, z))
        optimizer.step()
        done((step + 1) / n_steps)
    return y.detach(), z.detach()
