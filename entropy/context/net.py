"""The network of the context prior while it is trained: float, or float that rounds as the integers will.

For every cell that is coded, one level after another, the network sees the codes around it: of all coarser levels, and
of its own level where the schedule has already been. What it may not see is a row of its own in the embedding table
("unknown"), so one network serves every schedule and can also fill codes that were lost.

    codes around a cell -> embedding rows, summed over levels -> clamp -> [P * F]
        -> linear -> residual blocks (linear, clamped ReLU, linear) -> h [C]
        -> for each digit of the code, coarse to fine: linear + row of the digits so far -> clamped ReLU -> logits

Everything in it has a twin in :mod:`..integer`: values live on grids of powers of two, sums are exact, rounding is half
up. With ``rounding`` the forward pass computes what the integers will, and gradients pass through (straight-through,
Bengio et al. 2013, arXiv:1308.3432); :meth:`LevelNet.export` then writes down these very integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..integer import ACT_BITS, CONCEAL, EXACT, HIDDEN_BITS, LOGIT_BITS, STREAM_BITS, STREAM_MAX, TABLE_BITS
from ..schedule import Schedule
from ..tree import CodeTree, balanced_tree

Features = npt.NDArray[np.floating]
ROOM = EXACT * 0.75  # for sums before rounding; what rounding adds, half a unit for each weight, fits into the rest


@dataclass(frozen=True)
class LevelShape:
    """Sizes of the network of one level."""

    features: int = 64  # F, of an embedding row
    width: int = 192  # C, of the residual stream
    hidden: int = 384  # of a residual block
    blocks: int = 2
    digit: int = 64  # hidden units of a digit's head


def rounded(x: Tensor, bits: int, low: float, high: float, rounding: bool) -> Tensor:
    """Clamp to ``low..high`` units of ``2^-bits``, and round to units if ``rounding``; the gradient ignores that."""
    if rounding:
        return _Rounded.apply(x, bits, low, high)
    return F.hardtanh(x, low * 2.0**-bits, high * 2.0**-bits)  # clamp() takes five kernels backward, this one


class _Rounded(torch.autograd.Function):
    """Rounded half up to units of ``2^-bits``, then clamped; the gradient is that of a clamp of what was rounded.

    In place where it can be: written with a detached difference this took seven kernels, and more memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, low: float, high: float) -> Tensor:
        whole = (x * 2.0**bits).add_(0.5).floor_()
        ctx.save_for_backward((whole > low) & (whole < high))
        return whole.clamp_(low, high).mul_(2.0**-bits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None, None


def weight_bits(weight: Tensor, bias: Tensor, like: RoundedLinear) -> tuple[Tensor, Tensor]:
    """Fraction bits for int8 weights ``[out, in]``, and a factor on weight and bias, ``[out, 1]`` each.

    The bits are the most that keep sums exact: rows must fit +-127, ``sum |weight| * input_max + |bias|`` must stay
    below ``EXACT`` with room for rounding. But products must be at least as fine as what they are rounded to; a row
    is too large even then is made smaller by the factor, which is 1 otherwise.
    """
    largest = weight.detach().abs().amax(1, keepdim=True).clamp_min(1e-8).double()
    total = weight.detach().abs().sum(1, keepdim=True).double() * like.input_max
    total = (total + bias.detach().abs()[:, None].double() * 2**like.input_bits).clamp_min(1e-8)
    bits = torch.floor(torch.log2(127.0 / largest))
    bits = torch.minimum(bits, torch.floor(torch.log2(ROOM / total)))
    bits = bits.clamp(max(0, like.output_bits - like.input_bits), 16)
    return bits, (ROOM / total * torch.exp2(-bits)).clamp_max(1.0)


class RoundedLinear(nn.Module):
    """``x @ W.T + b`` with int8 weights on a power-of-two grid for each output, when ``rounding``."""

    once = False  # within :func:`rounded_once`
    held: tuple[Tensor, Tensor] | None = None

    def __init__(self, n_in: int, n_out: int, input_max: int, input_bits: int, output_bits: int) -> None:
        super().__init__()
        self.input_max, self.input_bits, self.output_bits = input_max, input_bits, output_bits
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / math.sqrt(n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor, rounding: bool) -> Tensor:
        return F.linear(x, *self.used(rounding))

    def used(self, rounding: bool) -> tuple[Tensor, Tensor]:
        """Weight and bias, rounded or as they are."""
        if not rounding:
            return self.weight, self.bias
        if self.held is not None:
            return self.held
        weight, _, bias = round_weight(self.weight, self.bias, self)
        if self.once:
            self.held = weight, bias
        return weight, bias

    def export(self) -> dict[str, npt.NDArray[np.integer]]:
        return export_linear(self.weight, self.bias, self)

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over exported integers."""
        weight, bias = import_linear(arrays, self)
        self.weight.copy_(weight)
        self.bias.copy_(bias)


@contextmanager
def rounded_once(module: nn.Module) -> Iterator[None]:
    """Within, the maps of a module round their weights once, however often they are used: for one forward pass."""
    layers = [layer for layer in module.modules() if isinstance(layer, RoundedLinear)]
    try:
        for layer in layers:
            layer.once = True
        yield
    finally:
        for layer in layers:
            layer.once, layer.held = False, None


def round_weight(weight: Tensor, bias: Tensor, like: RoundedLinear) -> tuple[Tensor, Tensor, Tensor]:
    """Rounded weight, its fraction bits, rounded bias; gradients pass."""
    bits, factor = weight_bits(weight, bias, like)
    weight, bias = weight * factor.to(weight.dtype), bias * factor[:, 0].to(bias.dtype)
    scale = torch.exp2(bits).to(weight.dtype)
    rows = weight + (((weight * scale + 0.5).floor().clamp(-127, 127) / scale) - weight).detach()
    fine = torch.exp2(bits[:, 0] + like.input_bits).to(bias.dtype)  # of the products
    offset = bias + ((bias * fine + 0.5).floor() / fine - bias).detach()
    return rows, bits, offset


def export_linear(weight: Tensor, bias: Tensor, like: RoundedLinear) -> dict[str, npt.NDArray[np.integer]]:
    rows, bits, offset = round_weight(weight.detach(), bias.detach(), like)
    whole = rows.double() * torch.exp2(bits)
    products = offset.double() * torch.exp2(bits[:, 0] + like.input_bits)
    return {
        "weight": whole.round().to(torch.int8).cpu().numpy(),
        "bias": products.round().to(torch.int32).cpu().numpy(),
        "shift": (bits[:, 0] + like.input_bits - like.output_bits).to(torch.uint8).cpu().numpy(),
    }


def import_linear(arrays: Mapping[str, npt.NDArray[Any]], like: RoundedLinear) -> tuple[Tensor, Tensor]:
    """Weight and bias in float from exported integers."""
    bits = torch.from_numpy(arrays["shift"].astype(np.float64)) - like.input_bits + like.output_bits
    weight = torch.from_numpy(arrays["weight"]).double() * torch.exp2(-bits)[:, None]
    return weight, torch.from_numpy(arrays["bias"]).double() * torch.exp2(-bits - like.input_bits)


def part_of(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays whose names start with ``name.``, without it."""
    return {key[len(name) + 1 :]: value for key, value in arrays.items() if key.startswith(name + ".")}


class Rows(nn.Module):
    """A learned row for each entry: a linear map of known features (codewords) plus a free part."""

    features: Tensor

    def __init__(self, features: Features, width: int, scale: float) -> None:
        super().__init__()
        n, dim = features.shape
        spread = np.sqrt(np.square(features).sum(1).mean()) if dim else 1.0
        self.register_buffer(
            "features", torch.from_numpy(features / max(float(spread), 1e-8)).float(), persistent=False
        )
        self.map = nn.Parameter(torch.randn(dim, width) * scale)
        self.free = nn.Parameter(torch.zeros(n, width) if dim else torch.randn(n, width) * scale)

    def forward(self) -> Tensor:
        return self.free + self.features.to(self.map.dtype) @ self.map

    def load(self, rows: Tensor) -> None:
        """Take over rows: what a linear map of the features explains, and the rest as the free part."""
        features = self.features.double()
        if features.shape[1]:
            self.map.copy_(torch.linalg.lstsq(features, rows.double().to(features.device)).solution)
        self.free.copy_(rows.to(features.device) - features @ self.map.double())


class LevelNet(nn.Module):
    """Probabilities of one level's codes.

    Args:
        codewords: ``[N_j, D]`` of the levels that it sees, its own last; D may be 0.
        tree: digits of its own codes.
        offsets: number P of neighbours in the window.
    """

    def __init__(self, codewords: Sequence[Features], tree: CodeTree, offsets: int, shape: LevelShape) -> None:
        super().__init__()
        self.shape, self.tree = shape, tree
        self.sizes = [len(c) for c in codewords]
        dim = codewords[0].shape[1]
        # Rows of each level's codes and one for "unknown"; at last one for "outside the grid".
        rows = [np.concatenate([c, np.zeros((1, dim))]) for c in codewords] + [np.zeros((1, dim))]
        self.table = Rows(np.concatenate(rows), shape.features, 1.0)
        self.input = RoundedLinear(offsets * shape.features, shape.width, 127, TABLE_BITS, STREAM_BITS)
        self.up = nn.ModuleList(
            RoundedLinear(shape.width, shape.hidden, 127, ACT_BITS, HIDDEN_BITS) for _ in range(shape.blocks)
        )
        self.down = nn.ModuleList(
            RoundedLinear(shape.hidden, shape.width, 255, HIDDEN_BITS, STREAM_BITS) for _ in range(shape.blocks)
        )
        with torch.no_grad():
            for linear in _linears(self.down):
                linear.weight.mul_(0.3)  # blocks start small
        digits = range(len(tree.bases))
        self.head = nn.ModuleList(RoundedLinear(shape.width, shape.digit, 127, ACT_BITS, HIDDEN_BITS) for _ in digits)
        own = codewords[-1]
        self.prefix = nn.ModuleList(Rows(tree.means(own, i), shape.digit, 0.3) for i in digits[:-1])
        self.logits = nn.ModuleList(Rows(tree.means(own, i), shape.digit, 1 / math.sqrt(shape.digit)) for i in digits)
        self.logits_bias = nn.ParameterList(
            torch.where(torch.from_numpy(tree.used(i).reshape(-1)), 0.0, -60.0) for i in digits
        )

    def embed(self, indices: Tensor, rounding: bool, dtype: torch.dtype) -> Tensor:
        """``indices [R, P, k + 1]`` into the table's rows to ``[R, P * F]``."""
        table = rounded(self.table(), TABLE_BITS, -127, 127, rounding).to(dtype)
        bags = F.embedding_bag(indices.flatten(0, 1), table, mode="sum")  # [R * P, F]
        return rounded(bags, TABLE_BITS, -127, 127, False).view(indices.shape[0], -1)

    def stream(self, x: Tensor, rounding: bool) -> Tensor:
        """Embedded windows ``[R, P * F]`` to ``a [R, C]``, what the heads take."""
        h = rounded(self.input(x, rounding).float(), STREAM_BITS, -STREAM_MAX, STREAM_MAX, rounding)
        for up, down in zip(self.up, self.down, strict=True):
            a = rounded(h, ACT_BITS, -127, 127, rounding)
            v = rounded(up(a, rounding), HIDDEN_BITS, 0, 255, rounding)
            v = rounded(down(v, rounding).float(), STREAM_BITS, -STREAM_MAX, STREAM_MAX, rounding)
            h = (h + v).clamp(-STREAM_MAX * 2.0**-STREAM_BITS, STREAM_MAX * 2.0**-STREAM_BITS)
        return rounded(h, ACT_BITS, -127, 127, rounding)

    def digit_logits(self, a: Tensor, digit: int, prefix: Tensor, rounding: bool) -> Tensor:
        """Base-2 logits ``[R, bases[digit]]`` after the digits before it, ``prefix [R]``."""
        v = rounded(self.head[digit](a, rounding), HIDDEN_BITS, -(1 << 16), 1 << 16, rounding)
        if digit:
            row = rounded(self.prefix[digit - 1](), HIDDEN_BITS, -(1 << 15), 1 << 15, rounding)
            v = v + row.index_select(0, prefix).to(v.dtype)
        v = rounded(v, HIDDEN_BITS, 0, 255, False)
        base = self.tree.bases[digit]
        weight, bias = self.logits[digit](), self.logits_bias[digit]
        if rounding:
            weight, _, bias = round_weight(weight, bias, self._logit_form)
        if digit == 0:
            return rounded(
                F.linear(v, weight.to(v.dtype), bias.to(v.dtype)).float(), LOGIT_BITS, -(1 << 15), 1 << 15, rounding
            )
        rows = weight.view(-1, base * self.shape.digit).index_select(0, prefix).view(-1, base, self.shape.digit)
        out = torch.bmm(rows.to(v.dtype), v[:, :, None])[:, :, 0] + bias.view(-1, base).index_select(0, prefix)
        return rounded(out.float(), LOGIT_BITS, -(1 << 15), 1 << 15, rounding)

    @property
    def _logit_form(self) -> RoundedLinear:
        form = RoundedLinear.__new__(RoundedLinear)
        nn.Module.__init__(form)
        form.input_max, form.input_bits, form.output_bits = 255, HIDDEN_BITS, LOGIT_BITS
        return form

    def bits(
        self, indices: Tensor, leaf: Tensor, rounding: bool, dtype: torch.dtype = torch.float32, dropout: float = 0.0
    ) -> Tensor:
        """Code length in bits ``[R]`` of codes at ``leaf [R]``, given windows ``indices [R, P, k + 1]``."""
        x = self.embed(indices, rounding, dtype)
        a = self.stream(x, rounding).to(dtype)
        if dropout:
            a = F.dropout(a, dropout)
        total = a.new_zeros(a.shape[0], dtype=torch.float32)
        rest = self.tree.code.size
        for digit, base in enumerate(self.tree.bases):
            prefix = leaf // rest
            rest //= base
            value = leaf // rest % base
            logits = self.digit_logits(a, digit, prefix, rounding) * math.log(2)
            total = total + F.cross_entropy(logits, value, reduction="none") / math.log(2)
        return total

    def export(self) -> dict[str, npt.NDArray[np.integer]]:
        """The integers of this level; FORMAT.md lists the names."""
        arrays: dict[str, npt.NDArray[np.integer]] = {
            "bases": np.array(self.tree.bases, dtype=np.int32),
            "leaf": self.tree.leaf.astype(np.int32),
            "table": _units(rounded(self.table().detach(), TABLE_BITS, -127, 127, True), TABLE_BITS, np.int8),
        }
        for name, linear in self._linears().items():
            arrays |= {f"{name}.{key}": value for key, value in linear.export().items()}
        for i, (rows, bias) in enumerate(zip(_rows(self.logits), self.logits_bias, strict=True)):
            logits = export_linear(rows(), bias, self._logit_form)
            arrays |= {f"logits.{i}.{key}": value for key, value in logits.items()}
        for i, rows in enumerate(_rows(self.prefix), 1):
            prefix = rounded(rows().detach(), HIDDEN_BITS, -(1 << 15), 1 << 15, True)
            arrays[f"prefix.{i}"] = _units(prefix, HIDDEN_BITS, np.int32)
        return arrays

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over exported integers. Raises RuntimeError or KeyError if they are of another shape."""
        for name, linear in self._linears().items():
            linear.load(part_of(arrays, name))
        self.table.load(torch.from_numpy(arrays["table"]) * 2.0**-TABLE_BITS)
        for i, (rows, bias) in enumerate(zip(_rows(self.logits), self.logits_bias, strict=True)):
            weight, offset = import_linear(part_of(arrays, f"logits.{i}"), self._logit_form)
            rows.load(weight)
            bias.copy_(offset)
        for i, rows in enumerate(_rows(self.prefix), 1):
            rows.load(torch.from_numpy(arrays[f"prefix.{i}"]) * 2.0**-HIDDEN_BITS)

    def _linears(self) -> dict[str, RoundedLinear]:
        linears = {"input": self.input}
        linears |= {f"up.{i}": linear for i, linear in enumerate(_linears(self.up))}
        linears |= {f"down.{i}": linear for i, linear in enumerate(_linears(self.down))}
        return linears | {f"head.{i}": linear for i, linear in enumerate(_linears(self.head))}


def _linears(modules: nn.ModuleList) -> list[RoundedLinear]:
    return [module for module in modules if isinstance(module, RoundedLinear)]


def _rows(modules: nn.ModuleList) -> list[Rows]:
    return [module for module in modules if isinstance(module, Rows)]


def _units(x: Tensor, bits: int, dtype: type[np.integer]) -> npt.NDArray[np.integer]:
    return (x.double() * 2.0**bits).round().cpu().numpy().astype(dtype)


class ContextNet(nn.Module):
    """The networks of all levels, and maybe one that fills lost codes of the first level; with what they are for.

    Args:
        codewords: ``[N_k, D]`` of every level, coarse to fine; similar codes should lie close together. D may be 0.
        schedules: of every level, all for the same number of axes.
        offsets: ``[P_k, ndim]`` of every level.
        shapes: of every level.
        trees: of every level; made from the codewords if None.

    With one more of schedules, offsets and shapes than levels the last is the filler's.

    Attributes:
        names: of the networks, the level's number or ``CONCEAL``; prefixes of the exported arrays.
        orders: the levels that each network sees, its own last.
    """

    def __init__(
        self,
        codewords: Sequence[Features],
        schedules: Sequence[Schedule],
        offsets: Sequence[npt.NDArray[np.int64]],
        shapes: Sequence[LevelShape],
        trees: Sequence[CodeTree] | None = None,
    ) -> None:
        super().__init__()
        n = len(codewords)
        self.schedules, self.offsets = list(schedules), list(offsets)
        self.names = [str(k) for k in range(n)]
        self.orders = [tuple(range(k + 1)) for k in range(n)]
        if len(shapes) == n + 1:
            self.names.append(CONCEAL)
            self.orders.append((*range(1, n), 0))
        trees = list(trees) if trees else [balanced_tree(own) for own in codewords]
        self.levels = nn.ModuleList(
            LevelNet([codewords[j] for j in order], trees[order[-1]], len(own), shape)
            for order, own, shape in zip(self.orders, offsets, shapes, strict=True)
        )

    @property
    def nets(self) -> list[LevelNet]:
        """The networks."""
        return [net for net in self.levels if isinstance(net, LevelNet)]

    @torch.no_grad()
    def export(self, *which: int) -> dict[str, npt.NDArray[np.integer]]:
        """Arrays of the :class:`~.prior.ContextPrior` that computes what this net computes when it rounds.

        Args: which: numbers of networks; all if none are given.
        """
        arrays: dict[str, npt.NDArray[np.integer]] = {}
        for i in which or range(len(self.names)):
            own = self.nets[i].export() | {
                "period": np.array(self.schedules[i].period, dtype=np.int32),
                "steps": np.array(self.schedules[i].steps, dtype=np.int32),
                "offsets": self.offsets[i].astype(np.int32),
            }
            arrays |= {f"{self.names[i]}.{name}": value for name, value in own.items()}
        return arrays

    @torch.no_grad()
    def load_export(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on from an exported prior of the same shape and the same trees; a filler may be missing there.

        Raises: ValueError if it is of another shape.
        """
        try:
            for name, level in zip(self.names, self.nets, strict=True):
                own = part_of(arrays, name)
                if not own and name == CONCEAL:
                    continue
                if not np.array_equal(own["leaf"], level.tree.leaf):
                    raise ValueError(f"network {name} has another tree")
                level.load(own)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the exported prior has another shape: {error}") from error
