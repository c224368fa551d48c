"""Layers for videos, factorised into space and time: the former see one frame, the latter one place of it and its past.
So tiles with a halo are the whole frame, and parts of a clip with a :class:`State` are the whole clip.

Clips are ``[B, T, H, W, C]``: with channels last, layers over time are products of matrices, and a frame is a picture
in the layout that convolutions want. The first frame stands alone: a clip has ``1 + s n`` frames at stride s, and
becomes ``1 + n`` (Yu et al. 2023, MAGVIT-v2, arXiv:2310.05737, section 3.2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class State:
    """What the layers over time of one stream must know of the parts before."""

    def __init__(self) -> None:
        self._past: dict[nn.Module, Tensor] = {}

    def begins(self, layer: nn.Module) -> bool:
        """Whether this is the first part that ``layer`` sees, once."""
        if layer in self._past:
            return False
        self._past[layer] = torch.zeros(0)
        return True

    def extend(self, layer: nn.Module, x: Tensor, first: int, later: int) -> Tensor:
        """``x [B, T, H, W, C]`` behind the ``later`` frames before it; behind ``first`` zeros if it begins a clip."""
        past = self._past.get(layer)
        joined = _after_zeros(x, first) if past is None else torch.cat([past, x], 1)
        self._past[layer] = joined[:, joined.shape[1] - later :]
        return joined


def _after_zeros(x: Tensor, n: int) -> Tensor:
    return F.pad(x, (0, 0, 0, 0, 0, 0, n, 0))


class PerFrame(nn.Sequential):
    """Layers of pictures ``[N, C, H, W]``, for every frame of ``[B, T, H, W, C]``."""

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        frames = x.flatten(0, 1).permute(0, 3, 1, 2)  # [B*T, C, H, W], channels last
        out = super().forward(frames).permute(0, 2, 3, 1).contiguous()
        return out.unflatten(0, x.shape[:2])


class TimeConv(nn.Linear):
    """A causal convolution over time alone: ``[B, 1 + s n, H, W, C]`` to ``[B, 1 + n, H, W, O]``.

    Frame i of the output sees frames up to ``s i`` of the input, ``kernel`` of them; before the clip there are zeros.
    The weight is ``[O, kernel * C]``, the oldest frame first.
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        if kernel < stride:
            raise ValueError(f"a kernel of {kernel} leaves frames out at stride {stride}")
        super().__init__(kernel * channels, out)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        first, later = self.kernel - 1, self.kernel - self.stride
        x = _after_zeros(x, first) if state is None else state.extend(self, x, first, later)
        n = (x.shape[1] - self.kernel) // self.stride + 1
        end = self.stride * (n - 1) + 1
        taps = [x[:, tap : tap + end : self.stride] for tap in range(self.kernel)]
        return super().forward(torch.cat(taps, -1))


class TimeBlock(nn.Module):
    """``x + up(gelu(mix(x)))`` with a causal convolution to half the channels; starts as the identity."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.mix = TimeConv(channels, channels // 2, kernel)
        self.up = nn.Linear(channels // 2, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return x + self.up(F.gelu(self.mix(x, state), approximate="tanh"))


class TimeDown(TimeConv):
    """Two frames to one, ``[B, 1 + 2 n, ...]`` to ``[B, 1 + n, ...]``; starts as every other frame of it."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__(channels, channels, kernel, 2)
        with torch.no_grad():
            self.weight.zero_()
            self.weight[:, -channels:].copy_(torch.eye(channels))
            self.bias.zero_()


class TimeUp(nn.Linear):
    """One frame to two, ``[B, 1 + n, ...]`` to ``[B, 1 + 2 n, ...]``; starts as a repetition.

    The first frame of a clip stands alone: of its two only the second is kept.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 2 * channels)
        with torch.no_grad():
            self.weight.copy_(torch.eye(channels).repeat(2, 1))
            self.bias.zero_()

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        b, t, h, w, c = x.shape
        pairs = super().forward(x).view(b, t, h, w, 2, c).permute(0, 1, 4, 2, 3, 5)  # [B, t, 2, h, w, C]
        frames = pairs.reshape(b, 2 * t, h, w, c)
        return frames[:, 1:] if state is None or state.begins(self) else frames


class CausalNet(nn.ModuleList):
    """Layers in a row, all of which take a clip and a state."""

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        for layer in self:
            x = layer(x, state)
        return x
