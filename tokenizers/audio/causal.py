"""Causal layers over time that can run chunk by chunk: what a chunk needs of the ones before lies in a :class:`State`.

Signals are ``[B, C, n]``. Without a state a call is a whole signal, which begins after silence; with one it is the next
part of a signal, and parts of any lengths that the strides divide give what the whole gives, up to the rounding of
floats.

Layers have two ways. ``forward`` takes ``[B, C, n]`` and is for training, GPUs and whole signals. ``step`` takes the
next few moments of a stream as rows, ``[B, n, C]``, without gradients: on a CPU a convolution of a dozen moments is
mostly overhead, and a product of rows is not.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Layer(Protocol):
    """What layers have beside ``forward``."""

    def step(self, x: Tensor, state: State) -> Tensor:
        """The next moments ``[B, n, C]`` of a stream to ``[B, m, O]``; values of ``forward`` up to rounding."""


class State:
    """The last inputs of every causal layer of one stream."""

    def __init__(self) -> None:
        self._past: dict[nn.Module, Tensor] = {}

    def extend(self, layer: nn.Module, x: Tensor, n: int) -> Tensor:
        """``x`` after the last ``n`` inputs of ``layer``, zeros at first, ``[B, C, n + len(x)]``; keeps the last."""
        past = self._past.get(layer)
        if past is None:
            past = x.new_zeros(*x.shape[:2], n)
        joined = torch.cat([past, x], 2)
        self._past[layer] = joined[:, :, joined.shape[2] - n :]
        return joined

    def extend_rows(self, layer: nn.Module, x: Tensor, n: int) -> Tensor:
        """As :meth:`extend`, of rows: ``x [B, m, C]`` to ``[B, n + m, C]``."""
        past = self._past.get(layer)
        rows = x.new_zeros(x.shape[0], n, x.shape[2]) if past is None else past.transpose(1, 2)
        joined = torch.cat([rows, x], 1)
        self._past[layer] = joined[:, joined.shape[1] - n :].transpose(1, 2)
        return joined


class CausalConv1d(nn.Conv1d):
    """``[B, C, s t] -> [B, O, t]``: a convolution of stride s; output t sees inputs up to ``s (t + 1) - 1`` only."""

    def __init__(
        self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True
    ) -> None:
        if kernel < stride:
            raise ValueError(f"a kernel of {kernel} leaves inputs out at stride {stride}")
        super().__init__(channels, out, kernel, stride=stride, groups=groups, bias=bias)
        self.past = kernel - stride

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        if self.past:
            x = F.pad(x, (self.past, 0)) if state is None else state.extend(self, x, self.past)
        if self.groups == 1 or x.device.type != "cpu":
            return F.conv1d(x, self.weight, self.bias, self.stride, groups=self.groups)
        # On a CPU the backward pass of a depthwise convolution takes a third of the time with channels last.
        rows = x[:, :, None].contiguous(memory_format=torch.channels_last)
        return F.conv2d(rows, self.weight[:, :, None], self.bias, (1, *self.stride), groups=self.groups)[:, :, 0]

    def step(self, x: Tensor, state: State) -> Tensor:
        return self.rows(state.extend_rows(self, x, self.past) if self.past else x)

    def rows(self, x: Tensor) -> Tensor:
        """The convolution alone, of rows ``[B, past + s t, C]``, the past among them, to ``[B, t, O]``."""
        if self.kernel_size == (1,) and self.groups == 1:
            return F.linear(x, self.weight[:, :, 0], self.bias)
        windows = x.unfold(1, self.kernel_size[0], self.stride[0])  # [B, t, C, k]
        if self.groups == 1:
            return F.linear(windows.flatten(2), self.weight.flatten(1), self.bias)
        if not self.groups == self.in_channels == self.out_channels:
            return F.conv1d(x.transpose(1, 2), self.weight, self.bias, self.stride, groups=self.groups).transpose(1, 2)
        taps = self.weight[:, 0].T.contiguous()  # [k, C]
        found = (windows.permute(0, 3, 1, 2) * taps[:, None]).sum(1)  # [B, t, C]
        return found if self.bias is None else found.add_(self.bias)


class ChannelNorm(nn.Module):
    """Every moment's channels to a root mean square of 1, times a learned weight (Zhang and Sennrich 2019, RMSNorm)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-6) * self.weight

    def step(self, x: Tensor, state: State) -> Tensor:
        return x * torch.rsqrt(x.square().mean(2, keepdim=True) + 1e-6) * self.weight[:, 0]


class CausalBlock(nn.Module):
    """``x + down(gelu(up(norm(depthwise(x)))))``, a ConvNeXt block (Liu et al. 2022) over time; starts as identity."""

    def __init__(self, channels: int, kernel: int = 7, expansion: int = 2) -> None:
        super().__init__()
        self.depthwise = CausalConv1d(channels, channels, kernel, groups=channels)
        self.norm = ChannelNorm(channels)
        self.up = CausalConv1d(channels, expansion * channels, 1)
        self.down = CausalConv1d(expansion * channels, channels, 1)
        nn.init.zeros_(self.down.weight)
        assert self.down.bias is not None
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        hidden = self.up(self.norm(self.depthwise(x, state)))
        return x + self.down(F.gelu(hidden, approximate="tanh"))

    def step(self, x: Tensor, state: State) -> Tensor:
        hidden = self.up.rows(self.norm.step(self.depthwise.step(x, state), state))
        return x + self.down.rows(F.gelu(hidden, approximate="tanh"))


class CausalSequential(nn.ModuleList):
    """Layers in a row; those that look back get the state."""

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        for layer in self:
            x = layer(x, state) if isinstance(layer, (CausalConv1d, CausalBlock)) else layer(x)
        return x

    @torch.no_grad()
    def step(self, x: Tensor, state: State) -> Tensor:
        for layer in self:
            x = cast(Layer, layer).step(x, state)
        return x


class Fold(nn.Module):
    """``s`` moments into channels: ``[B, C, s n] -> [B, s C, n]``."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        b, c, n = x.shape
        return x.view(b, c, n // self.stride, self.stride).permute(0, 3, 1, 2).reshape(b, -1, n // self.stride)

    def step(self, x: Tensor, state: State) -> Tensor:
        b, n, c = x.shape
        return x.reshape(b, n // self.stride, self.stride * c)


class Unfold(nn.Module):
    """Inverse of :class:`Fold`: ``[B, s C, n] -> [B, C, s n]``."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        b, c, n = x.shape
        return x.view(b, self.stride, c // self.stride, n).permute(0, 2, 3, 1).reshape(b, -1, n * self.stride)

    def step(self, x: Tensor, state: State) -> Tensor:
        b, n, c = x.shape
        return x.reshape(b, n * self.stride, c // self.stride)
