"""Integer networks: what they compute is the same on every machine, to the last bit.

Probabilities that an arithmetic coder sees must be equal where a file is written and where it is read. Sums of floats
are not: their order, and so their rounding, depends on threads, blocking and device. Here every number is an integer
and every sum is exact, so the order does not matter.

* Weights are int8, activations are integers of at most 16 bits, biases int32.
* They are held in float32, which is exact below ``2^24`` (``EXACT``). :class:`ExactLinear` proves when it is made that
  no partial sum, in whatever order, can leave that range: ``sum |w| * input_max + |b| + half < 2^24`` for each output.
  So a plain matrix product gives the integer result. Where settings allow products of fewer bits (TF32 and the like),
  float64 is used instead; on CPUs that have exact products of int8, those, which are several times faster.
* Rounding is one rule: :func:`ExactLinear` returns ``floor((W x + b) / 2^shift + 1/2)``, half up.
* Probabilities: ``2^(logit / 64)`` from a table of integers that is itself made with integers (:func:`exp2_table`),
  then one exact division (:func:`frequencies`).

The scales (a value v stands for ``v / 2^bits``) are constants of the format, below.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .tables import TOTAL

EXACT = 1 << 24  # float32 holds every integer up to here
TABLE_BITS = 5  # embedding rows and their sums, -127..127
ACT_BITS = 5  # what a residual block or a head reads, -127..127
HIDDEN_BITS = 5  # inside blocks and heads, 0..255
STREAM_BITS = 8  # the residual stream, -32767..32767
STREAM_MAX = (1 << 15) - 1
LOGIT_BITS = 6  # base-2 logits, -32768..32767
LOGIT_MAX = 1 << 15
CONCEAL = "conceal"  # name of the network that fills lost codes of the first level
INT8_MIN = 8  # inputs of a layer from which int8 products are worth their conversions
WEIGHT_BITS = 16  # 2^16 is the largest weight of a symbol in :func:`frequencies`


def exact_dtype(device: torch.device) -> torch.dtype:
    """float32 if matrix products of float32 are computed in float32 on this device, else float64."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return torch.float32 if backend.matmul.fp32_precision in ("none", "ieee") else torch.float64


class OneThread:
    """PyTorch on one CPU thread inside; as many as before outside. May be entered by several Python threads.

    A prior is thousands of small products with something to wait for after each. Two threads gain on an idle machine;
    on a busy one they wait for each other, for whole time slices, and a picture takes seconds, not a tenth of one.
    """

    _lock = threading.Lock()
    _inside = 0
    _before = 1

    def __enter__(self) -> None:
        with OneThread._lock:
            if not OneThread._inside:
                OneThread._before = torch.get_num_threads()
            OneThread._inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        with OneThread._lock:
            OneThread._inside -= 1
            if not OneThread._inside:
                torch.set_num_threads(OneThread._before)


@lru_cache
def int8_products(device: torch.device) -> bool:
    """Whether products of int8 are exact and fast: on CPUs with instructions that sum them in 32 bits (VNNI, AMX).

    Older ones sum pairs in 16 bits, which may saturate, so the instructions are asked for and a worst case is tried.
    `codec bench prior` on Kodak, one core of an Intel Xeon with AMX: a picture's codes decode in 131 ms with float32
    products (commit 782c0fc) and in 78 ms with these (00b0e5d).
    """
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    if device.type != "cpu" or supported is None or not supported() or not hasattr(torch, "_int_mm"):
        return False
    try:
        for sign in (1, -1):
            x = torch.full((33, 96), 127, dtype=torch.int8)
            if not bool((torch._int_mm(x, sign * x.T.contiguous()) == sign * 96 * 127 * 127).all()):
                return False
    except RuntimeError:  # a build of PyTorch without it
        return False
    return True


class ExactLinear:
    """``clamp(floor((W x + b) / 2^shift + 1/2), low, high)`` in exact integers, held as floats.

    Products are those of float32, or those of int8 where :func:`int8_products` says so; the results are the same.

    Args:
        arrays: ``weight`` int8 ``[out, in]``, ``bias`` int32 ``[out]``, ``shift`` uint8 ``[out]``.
        input_max: largest absolute value of an input.
        input_min: smallest input; ``-input_max`` if None.

    Raises: ValueError if types or shapes are not these, or if a sum could leave the exact range.
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        input_max: int,
        low: int,
        high: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        input_min: int | None = None,
    ) -> None:
        weight, bias, shift = check_linear(arrays, input_max)
        self.low, self.high = low, high
        # Powers of two are exact, so scale and rounding go into weight and bias, and floor() is all that is left.
        scale = 2.0 ** -shift.astype(np.float64)
        self.n_out, self.n_in = weight.shape
        # 0..255 does not fit into int8: x - 128 does, and 128 times the sum of a row's weights goes into the bias.
        self.offset = 128 if input_min == 0 and input_max > 127 else 0
        fits = (
            input_max - self.offset <= 127 and self.n_in >= INT8_MIN
        )  # a column alone has strides that _int_mm mistakes
        self.int8 = dtype == torch.float32 and fits and int8_products(device)
        if self.int8:
            bias = bias + self.offset * weight.sum(1)
            self.weight = torch.from_numpy(weight.T.astype(np.int8).copy())  # [in, out]
            self.scale = torch.from_numpy(scale).to(dtype)
        else:
            self.weight = torch.from_numpy((weight * scale[:, None]).T.copy()).to(device, dtype)
        self.bias = torch.from_numpy(bias * scale + 0.5).to(device, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Integers ``[n, in]``, floats or int8, to integers ``[n, out]`` in floats."""
        if not self.int8:
            return torch.addmm(self.bias, x, self.weight).floor_().clamp_(self.low, self.high)
        if x.dtype != torch.int8:
            x = (x - self.offset if self.offset else x).to(torch.int8)
        products = torch._int_mm(x, self.weight).to(torch.float32)
        return products.mul_(self.scale).add_(self.bias).floor_().clamp_(self.low, self.high)


def check_linear(
    arrays: Mapping[str, npt.NDArray[Any]], input_max: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Weight, bias and shift, after the proof that all sums are exact. Raises ValueError."""
    weight, bias, shift = (arrays[name] for name in ("weight", "bias", "shift"))
    if (weight.dtype, bias.dtype, shift.dtype) != (np.int8, np.int32, np.uint8) or weight.ndim != 2:
        raise ValueError("an integer layer is weight int8 [out, in], bias int32 [out] and shift uint8 [out]")
    if bias.shape != shift.shape or bias.shape != weight.shape[:1] or (shift.size and int(shift.max()) > 23):
        raise ValueError("bias and shift of an integer layer do not fit its weight")
    bits = np.maximum(shift.astype(np.int64), 1)  # with a shift of 0 the half makes the unit a half
    reach = np.abs(weight.astype(np.int64)).sum(1) * input_max + np.abs(bias.astype(np.int64))
    reach = (reach << (bits - shift)) + (1 << (bits - 1))
    if reach.size and int(reach.max()) >= EXACT:
        raise ValueError(f"a sum of an integer layer may reach {int(reach.max())}, more than {EXACT} is not exact")
    return weight.astype(np.float64), bias.astype(np.float64), shift.astype(np.int64)


@lru_cache
def exp2_table() -> npt.NDArray[np.int64]:
    """``round(2^(16 - d / 64))`` for d = 0, 1, ... down to the last that is not zero, rounded half up, int64.

    Made with integers only: ``2 * 2^(16 - d/64)`` is the 64th root of ``2^(64 + 1024 - d)``, and the floor of a square
    root may be taken six times over.
    """
    steps = 1 << LOGIT_BITS
    table = []
    for d in range((WEIGHT_BITS + 1) * steps + 1):
        twice = 1 << (steps + WEIGHT_BITS * steps - d)
        for _ in range(LOGIT_BITS):
            twice = math.isqrt(twice)
        table.append((twice + 1) // 2)
    return np.array([*table, 0], dtype=np.int64)


def frequencies(logits: Tensor) -> Tensor:
    """Integer logits ``[n, N]`` to frequencies minus one ``[n, N]`` float32: what the coder takes.

    A symbol's weight is ``exp2_table[max - logit]`` (0 if that is beyond the table). Every symbol gets frequency 1, the
    remaining ``2^24 - N`` are shared in proportion to the weights, rounded down, and what is left over goes to the
    first symbol of the largest logit. So frequencies are at least 1 and sum to ``2^24``.

    The quotients are exact: weight * (2^24 - N) is below 2^40, and the correctly rounded float64 quotient of integers
    a / b with b < 2^25 and a / b < 2^24 never rounds up to an integer, since it is at least 2^-25 away from it.
    """
    n = logits.shape[-1]
    top = logits.amax(-1, keepdim=True)
    table = _device_table(logits.device)
    weights = table[(top - logits).clamp_(max=len(table) - 1).to(torch.int64)]  # [n, N] float64
    share = weights.mul(TOTAL - n).div_(weights.sum(-1, keepdim=True)).floor_()
    number = torch.arange(n, device=logits.device)
    first = torch.where(logits == top, number, n).amin(-1, keepdim=True)  # argmax of equals is any of them
    left = (TOTAL - n) - share.sum(-1, keepdim=True)
    return share.scatter_add_(-1, first, left).float()


@lru_cache
def _device_table(device: torch.device) -> Tensor:
    return torch.from_numpy(exp2_table()).to(device, torch.float64)
