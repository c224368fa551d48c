"""What the training scripts share: a budget of wall-clock time, a learning rate that follows it, PSNR."""

from __future__ import annotations

import math
import time

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor


class Clock:
    """Share of a stage's time that has passed, agreed by all ranks."""

    def __init__(self, accelerator: Accelerator, seconds: float) -> None:
        self.accelerator, self.seconds, self.begin, self.share = accelerator, seconds, time.monotonic(), 0.0

    def read(self) -> float:
        passed = (time.monotonic() - self.begin) / max(self.seconds, 1e-3)
        share = torch.tensor(passed, device=self.accelerator.device)
        self.share = float(broadcast(share))
        return self.share


def learning_rate(step: int, share: float, warmup_steps: int, cooldown: float) -> float:
    """Factor on the learning rate: linear warm-up by steps, flat, linear cool-down by time."""
    return min(1.0, (step + 1) / warmup_steps, max(0.0, (1 - share) / cooldown))


def psnr(x: Tensor, x_hat: Tensor) -> float:
    """PSNR in dB of one picture pair in [0, 1], after rounding to 8 bits as a file would."""
    x_hat = (x_hat.clamp(0, 1) * 255).round() / 255
    return -10 * math.log10(max(1e-10, float((x - x_hat).square().mean())))
