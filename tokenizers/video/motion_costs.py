"""What an encoder of `video-motion` thinks of what is expected of a frame, before it is coded."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..image.photo_nets import PATCH


def left_over(x: Tensor, x_bar: Tensor) -> float:
    """What is left of a frame when what is expected is taken away, over its own detail within 8 x 8 pixels."""
    cells = F.interpolate(F.avg_pool2d(x, PATCH), scale_factor=PATCH)
    return float((x - x_bar).abs().mean() / (x - cells).abs().mean().clamp_min(1e-6))


def bits_left(x: Tensor, x_bar: Tensor, weight: float) -> float:
    """About what it costs a pixel that a frame is not as it is expected, in bits and in distortion.

    Args: weight: lambda, bits a pixel that a unit of distortion of 8-bit values is worth.
    Source: the rate of Gaussian sources of the variances of the cells: R + lambda D is the least there is, which is
            lambda times the variance where nothing is sent (Cover and Thomas, Elements of Information Theory, 10.3.3).
    """
    error = weight * F.avg_pool2d((255 * (x - x_bar)).square().mean(1, keepdim=True), PATCH)
    bend = 2 * math.log(2)  # from where on bits are sent
    sent = (0.5 * torch.log2((bend * error).clamp_min(1)) + 1 / bend).where(bend * error > 1, error)
    return float(sent.mean())
