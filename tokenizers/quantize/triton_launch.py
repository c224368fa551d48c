"""Launches of the kernels in nearest_triton.py: tiling, workspaces, and what is remembered for each shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources

from .nearest_triton import (
    BIAS_COLUMNS,
    CANDIDATES,
    EXTRA_COLUMNS,
    FIELDS,
    MEAN,
    _codebook_operand,
    _codebook_range,
    _collect,
    _refine,
    _search,
    _settle,
    _subtract,
)

__all__ = ["OutOfResources", "plan", "search", "subtract_codewords"]


class Plan(NamedTuple):
    """How a search is tiled."""

    parts: int  # 1: high halves only; 3: high x high, low x high, high x low
    columns: int  # of the product, bias included
    bias_at: int  # first column of the bias
    block_k: int  # columns of one product
    block_d: int  # elements of a row of latents that are read at once: all of them, if registers hold them
    block_m: int
    block_n: int
    group: int
    codewords_first: bool  # which side of the product: the tensor cores' layout decides what a thread holds
    warps: int
    stages: int


# Shared memory that a program of an H100 can have, in bytes.
HOPPER_SHARED = 232448


@lru_cache
def plan(dim: int, size: int, shared: int = HOPPER_SHARED) -> Plan:
    """Tile sizes for ``size`` codewords of ``dim`` elements, measured on an H100 (NEAREST.md, section 5).

    With less ``shared`` memory (bytes that a program can have) fewer tiles are on their way at once.
    """
    p = _largest_plan(dim, size)
    stages = p.stages
    columns = min(p.columns, p.block_k + EXTRA_COLUMNS.value)
    while stages > 1 and (p.block_m + stages * p.block_n) * columns * 2 > shared:
        stages -= 1
    return p._replace(stages=stages)


def _largest_plan(dim: int, size: int) -> Plan:
    parts = 3 if 3 * dim + BIAS_COLUMNS.value <= 32 else 1  # then the tensor cores are idle anyway
    width = max(16, triton.next_power_of_2(parts * dim))
    if width > 256:  # columns in several blocks, which are made anew for each tile
        columns = triton.cdiv(dim + BIAS_COLUMNS.value, 64) * 64
        return Plan(parts, columns, dim, 64, 64, 128, 128, 8, False, 8, 3)
    if width <= 64 and width - parts * dim >= BIAS_COLUMNS.value:
        columns, bias_at = width, parts * dim
    elif width <= 32:
        columns, bias_at, width = 2 * width, parts * dim, 2 * width
    else:
        columns, bias_at = width + EXTRA_COLUMNS.value, width
    block_d = max(2, triton.next_power_of_2(dim))
    if width <= 64:
        return Plan(parts, columns, bias_at, width, block_d, 128 if size > 2048 else 64, 128, 8, False, 4, 3)
    return Plan(parts, columns, bias_at, width, block_d, 64, 64, 1, True, 4, 3 if width == 128 else 2)


def search(z: Tensor, codebook: Tensor, dot: bool = False, penalty: Tensor | None = None) -> Tensor:
    """Indices ``[G, M]`` int64 of the nearest codewords ``codebook [G, N, D]`` of latents ``z [G, M, D]``.

    Args:
        z: float32, bfloat16 or float16, any strides, on a CUDA device.
        codebook: likewise, or float64; the same device.
        dot: largest inner product instead of smallest distance.
        penalty: ``[G, N]`` float32, added to the squared distances.

    See :func:`~.nearest.nearest_codeword` for what is promised. Memory: 48 bytes for each row with its index, and the
    codebook in float16; 20 more for each further split of the codebook, which only few rows get.
    """
    if z.is_cuda and z.device.index != torch.cuda.current_device():  # kernels run on the current device
        with torch.cuda.device_of(z):
            return _launch(z, codebook, dot, penalty)
    return _launch(z, codebook, dot, penalty)


@lru_cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program can have."""
    if device.type != "cuda":  # Triton's interpreter
        return HOPPER_SHARED
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


class _Stage(NamedTuple):
    """One kernel of a search and what it is called with; the arguments come in this order."""

    kernel: Any
    grid: tuple[int, int, int]
    tensors: tuple[str, ...]  # names of inputs and buffers
    numbers: tuple[int, ...]
    constants: dict[str, Any]
    options: dict[str, int]


class _Buffer(NamedTuple):
    """A buffer of a search: a piece of its workspace."""

    start: int  # bytes, a multiple of 16
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def view(self, workspace: Tensor) -> Tensor:
        return workspace[self.start : self.stop].view(self.dtype).view(self.shape)


class _Recipe(NamedTuple):
    """All that a search needs to know before it sees data."""

    head: tuple[int, ...]  # shape of the head: float32, zero before the first stage
    buffers: dict[str, _Buffer]
    size: int  # of the workspace, bytes
    stages: tuple[_Stage, ...]


def _recipe(
    groups: int, rows: int, size: int, dim: int, z_strides: tuple[int, ...], c_strides: tuple[int, ...],
    dot: bool, centre: bool, has_penalty: bool, shared: int,
) -> _Recipe:  # fmt: skip
    # Exponent that moves from the bias to its scale, so that it stays below 2^15: |c|^2 / 2 < D 2^13.
    shift = 14 if has_penalty else max(0, (max(dim, 2) - 1).bit_length() - 2)
    p = plan(dim, size, shared)
    tiles = triton.cdiv(size, p.block_n)
    row_tiles = triton.cdiv(rows, p.block_m)
    splits = 1
    while row_tiles * groups * splits < 128 and splits < min(16, tiles):
        splits *= 2
    room = min(rows, max(4096, rows // 8))
    block_d = max(2, triton.next_power_of_2(dim))
    exact_d = min(32, block_d)
    # Small codebooks: more programs, each with fewer codewords.
    block_range, block_operand, range_d = (16, 16, 128) if size <= 4096 else (128, 64, 32)
    refine_m = 8 if p.group == 1 else 16 if exact_d == 32 else 32
    tiling = {"BLOCK_N": p.block_n, "GROUP": p.group}
    product = {
        "D": dim, "CENTRE": centre, "PENALTY": has_penalty,
        "PARTS": p.parts, "COLUMNS": p.columns, "BIAS_AT": p.bias_at,
    }  # fmt: skip
    search = {
        **product, **tiling, "BLOCK_K": p.block_k, "BLOCK_D": p.block_d, "CODEWORDS_FIRST": p.codewords_first,
    }  # fmt: skip
    exact = {"D": dim, "DOT": dot, "PENALTY": has_penalty, "EXACT_D": exact_d, **tiling}
    pipeline = {"num_warps": p.warps, "num_stages": p.stages}
    results = ("listed", "candidates", "index")
    stages = (
        _Stage(
            _codebook_range, (triton.cdiv(size, block_range), groups, 1), ("codebook", "penalty", "head"),
            (size, *c_strides),
            {
                "D": dim, "CENTRE": centre, "PENALTY": has_penalty,
                "BLOCK_N": block_range, "BLOCK_D": min(range_d, block_d),
            }, {},
        ),
        _Stage(
            _codebook_operand, (tiles * p.block_n // block_operand, groups, 1),
            ("codebook", "penalty", "head", "operand"), (size, tiles * p.block_n, *c_strides, shift),
            {**product, "DOT": dot, "BLOCK_N": block_operand, "BLOCK_D": min(32, block_d)}, {},
        ),
        _Stage(
            _search, (row_tiles, splits, groups), ("z", "head", "operand", "partial"),
            (rows, tiles, triton.cdiv(tiles, splits), *z_strides, shift),
            {**search, "BLOCK_M": p.block_m}, pipeline,
        ),
        _Stage(
            _refine, (triton.cdiv(rows, refine_m), groups, 1),
            ("z", "codebook", "penalty", "head", "partial", *results),
            (rows, size, splits, room, *z_strides, *c_strides),
            {**exact, "BLOCK_M": refine_m}, {"num_warps": 2 if exact_d <= 8 else 4},
        ),
        _Stage(
            _collect, (264, groups, 1), ("z", "head", "operand", "listed", "candidates"),
            (rows, tiles, max(4, triton.cdiv(tiles, 128)), room, *z_strides, shift),
            {**search, "BLOCK_M": p.block_m // 2}, pipeline,
        ),
        _Stage(
            _settle, (528, groups, 1), ("z", "codebook", "penalty", "head", *results),
            (rows, size, room, *z_strides, *c_strides), {**exact, "BLOCK_M": 16}, {},
        ),
    )  # fmt: skip
    buffers, at = {}, 0
    for name, shape, dtype in (
        ("operand", (groups, tiles * p.block_n, p.columns), torch.float16),
        ("partial", (groups, 1 + FIELDS.value * splits, rows), torch.int32),
        ("listed", (groups, 2, rows), torch.int32),
        ("candidates", (groups, room, CANDIDATES.value), torch.int32),
    ):
        buffers[name] = _Buffer(at, shape, dtype)
        at = triton.cdiv(buffers[name].stop, 128) * 128
    return _Recipe((groups, MEAN.value + dim), buffers, at, stages)


class _Launch(NamedTuple):
    """The launcher of a compiled kernel and what it wants: addresses (by their places), then numbers and constants."""

    launcher: Callable[..., None]
    addresses: Callable[[list[int]], tuple[int, ...]]
    rest: tuple[Any, ...]


class _Known(NamedTuple):
    """A search that was run before."""

    head: tuple[int, ...]
    size: int
    starts: tuple[int, ...]  # of the buffers in the workspace
    launches: tuple[_Launch, ...]


# Triton would find the kernels again from their arguments, which takes the host longer than a small search takes the
# device; so the launchers are called directly, with plain addresses.
_known: dict[Any, _Known] = {}
KNOWN_MAX = 1024


def _launch(z: Tensor, codebook: Tensor, dot: bool, penalty: Tensor | None) -> Tensor:
    device = z.device
    index = torch.empty(z.shape[:2], dtype=torch.int64, device=device)
    if index.numel() == 0:
        return index
    given = index if penalty is None else penalty.contiguous()  # what stands in is never read
    own = (z, codebook, given, index)
    addresses = [t.data_ptr() for t in own]
    # What Triton compiles for: numbers, types, and whether addresses are multiples of 16 (those of new buffers are).
    key = (
        z.shape, z.stride(), z.dtype, codebook.shape, codebook.stride(), codebook.dtype, device,
        dot, penalty is None, *[a % 16 for a in addresses],
    )  # fmt: skip
    known = _known.get(key)
    if known is None:
        return _first_launch(own, dot, penalty is not None, key)
    head = torch.zeros(known.head, dtype=torch.float32, device=device)
    workspace = torch.empty(known.size, dtype=torch.uint8, device=device)
    start = workspace.data_ptr()
    addresses.append(head.data_ptr())
    addresses += [start + at for at in known.starts]
    stream = triton.runtime.driver.active.get_current_stream(device.index)
    for launcher, chosen, rest in known.launches:
        launcher(*chosen(addresses), *rest, stream=stream)
    return index


def _first_launch(own: tuple[Tensor, ...], dot: bool, has_penalty: bool, key: Any) -> Tensor:
    """Run a search through Triton, and keep what it compiled."""
    z, codebook, penalty, index = own
    half = (torch.float16, torch.bfloat16)
    centre = not dot and not (z.dtype in half and codebook.dtype in half)  # half precision splits without loss as it is
    groups, rows, dim = z.shape
    recipe = _recipe(
        groups, rows, codebook.shape[1], dim, z.stride(), codebook.stride(),
        dot, centre, has_penalty, _shared_memory(z.device),
    )  # fmt: skip
    head = torch.zeros(recipe.head, dtype=torch.float32, device=z.device)
    workspace = torch.empty(recipe.size, dtype=torch.uint8, device=z.device)
    tensors = {"z": z, "codebook": codebook, "penalty": penalty, "index": index, "head": head}
    tensors |= {name: buffer.view(workspace) for name, buffer in recipe.buffers.items()}
    places = {name: i for i, name in enumerate(tensors)}
    launches = []
    for stage in recipe.stages:
        arguments = [*(tensors[name] for name in stage.tensors), *stage.numbers]
        kernel = stage.kernel[stage.grid](*arguments, **stage.constants, **stage.options)
        if kernel is not None:  # None in the interpreter
            constants = [stage.constants[name] for name in stage.kernel.arg_names[len(arguments) :]]
            chosen = itemgetter(*(places[name] for name in stage.tensors))
            launches.append(_Launch(kernel[stage.grid], chosen, (*stage.numbers, *constants)))
    if len(launches) == len(recipe.stages):
        if len(_known) >= KNOWN_MAX:
            _known.clear()
        starts = tuple(buffer.start for buffer in recipe.buffers.values())
        _known[key] = _Known(recipe.head, recipe.size, starts, tuple(launches))
    return index


def subtract_codewords(z: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
    """``z - codebook[indices]`` float32 ``[M, D]`` in one pass over the data."""
    rows, dim = z.shape
    residual = torch.empty(rows, dim, dtype=torch.float32, device=z.device)
    block_d = max(2, min(64, triton.next_power_of_2(dim)))
    block_m = 2048 // block_d
    if rows:
        _subtract[triton.cdiv(rows, block_m), triton.cdiv(dim, block_d)](
            z, codebook, indices.contiguous(), residual, rows, *z.stride(), *codebook.stride(),
            D=dim, BLOCK_M=block_m, BLOCK_D=block_d,
        )  # fmt: skip
    return residual
