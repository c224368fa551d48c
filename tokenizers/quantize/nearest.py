"""Nearest-codeword search: the one function through which every token passes.

Two implementations keep one promise: ``nearest_cpu.py``, plain PyTorch for any device and fast on CPUs, and
``nearest_triton.py``, kernels for CUDA. Both search in low precision, know a bound on its error, and decide in float64
what the bound leaves open; so they give the same indices.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import no_autocast
from . import nearest_cpu
from .nearest_cpu import Prepared

Metric = Literal["l2", "cosine", "dot"]
Backend = Literal["auto", "reference", "triton"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

log = logging.getLogger(__name__)


@lru_cache
def triton_kernels() -> ModuleType | None:
    """The kernels, or None with a warning that says why they cannot be used."""
    try:
        from . import triton_launch
    except ImportError as e:
        warnings.warn(f"nearest-codeword search without its CUDA kernels: {e}", stacklevel=2)
        return None
    return triton_launch


@lru_cache
def choose_backend(device_type: str, index: int | None) -> Literal["reference", "triton"]:
    """What "auto" means on a device; logged once."""
    backend: Literal["reference", "triton"] = "reference"
    if device_type == "cuda" and torch.version.cuda and torch.cuda.get_device_capability(index) >= (8, 0):
        backend = "triton" if triton_kernels() is not None else "reference"
    log.info("nearest-codeword search on %s: %s", device_type, backend)
    return backend


def _search(z: Tensor, codebook: Tensor, dot: bool, penalty: Tensor | None, backend: str) -> Tensor:
    """Indices ``[G, M]`` of ``codebook [G, N, D]`` for ``z [G, M, D]``."""
    chosen = choose_backend(z.device.type, z.device.index) if backend == "auto" else backend
    if chosen == "triton":
        kernels = triton_kernels()
        if kernels is None:
            raise RuntimeError("backend 'triton' needs the package triton")
        try:
            return kernels.search(z, codebook, dot, penalty)
        except kernels.OutOfResources as e:  # a GPU with less shared memory than the kernels want for this D
            if backend == "triton":
                raise
            warnings.warn(f"nearest-codeword search without its CUDA kernels: {e}", stacklevel=2)
    with torch.no_grad(), no_autocast(z.device):
        return nearest_cpu.search(z, codebook, dot, penalty)


# One opaque operator to torch.compile and to fake tensors.
_nearest = torch.library.custom_op("tokodec::nearest_codeword", _search, mutates_args=())


@_nearest.register_fake
def _(z: Tensor, codebook: Tensor, dot: bool, penalty: Tensor | None, backend: str) -> Tensor:
    return z.new_empty(z.shape[:-1], dtype=torch.int64)


@overload
def nearest_codeword(
    z: Tensor,
    codebook: Tensor,
    metric: Metric = "l2",
    penalty: Tensor | None = None,
    backend: Backend = "auto",
    return_distance: Literal[False] = False,
) -> Tensor: ...


@overload
def nearest_codeword(
    z: Tensor,
    codebook: Tensor,
    metric: Metric = "l2",
    penalty: Tensor | None = None,
    backend: Backend = "auto",
    *,
    return_distance: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def nearest_codeword(
    z: Tensor,
    codebook: Tensor,
    metric: Metric = "l2",
    penalty: Tensor | None = None,
    backend: Backend = "auto",
    return_distance: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Find the nearest codeword of every latent vector.

    Args:
        z: ``[M, D]`` latent vectors, float32, bfloat16 or float16; float64 is rounded to float32. Any strides.
        codebook: ``[N, D]`` codewords, likewise. Or several searches at once: ``z [G, M, D]`` in ``[G, N, D]``.
        metric: "l2" smallest squared Euclidean distance, "cosine" largest cosine, "dot" largest inner product.
        penalty: ``[N]`` or ``[G, N]`` float, added to the squared distance to each codeword ("l2" only); lambda times
            the code length in bits gives entropy-constrained search (Chou, Lookabaugh and Gray, IEEE Trans. ASSP 37(1),
            1989).
        backend: "reference" plain PyTorch, "triton" kernels, "auto" kernels on CUDA devices from Ampere on.
        return_distance: return the squared Euclidean distance to the winner too, without the penalty.

    Returns:
        indices ``[M]`` or ``[G, M]`` int64: what brute force in float64 over the given values finds, on every device.
        Equal distances go to the smaller index. A row of ``z`` with a NaN or an infinity gets index 0; a codeword with
        one is never chosen (index 0 if there is no other). With ``return_distance`` also ``[M]`` or ``[G, M]`` float32.

    Raises:
        ValueError: if shapes or types do not fit or the codebook is empty.

    The result does not depend on autocast or on TF32 settings, and carries no gradient.
    Cost: O(M N D) time, O(M) and the codebook in extra memory; see NEAREST.md for the kernels.
    """
    if z.ndim not in (2, 3) or codebook.ndim != z.ndim or z.shape[-1] != codebook.shape[-1]:
        raise ValueError(f"need z [M, D] and codebook [N, D], got {tuple(z.shape)} and {tuple(codebook.shape)}")
    if z.ndim == 3 and z.shape[0] != codebook.shape[0]:
        raise ValueError(f"need z [G, M, D] and codebook [G, N, D], got {tuple(z.shape)} and {tuple(codebook.shape)}")
    if codebook.shape[-2] == 0 or codebook.shape[-1] == 0:
        raise ValueError("the codebook is empty")
    if metric not in ("l2", "cosine", "dot"):
        raise ValueError(f"unknown metric {metric!r}: use 'l2', 'cosine' or 'dot'")
    if backend not in ("auto", "reference", "triton"):
        raise ValueError(f"unknown backend {backend!r}: use 'auto', 'reference' or 'triton'")
    if not (z.is_floating_point() and codebook.is_floating_point()):
        raise ValueError(f"latents and codewords are floating point, got {z.dtype} and {codebook.dtype}")
    if penalty is not None and (metric != "l2" or penalty.shape != codebook.shape[:-1]):
        raise ValueError(f"a penalty is [N] and goes with metric 'l2', got {tuple(penalty.shape)} and {metric!r}")
    single = z.ndim == 2
    z, codebook = z.detach(), codebook.detach()
    given = codebook
    z = z if z.dtype in FLOATS else z.float()
    if metric == "cosine":
        codebook = F.normalize(codebook.double(), dim=-1)  # the length of z does not matter
    elif codebook.dtype not in FLOATS:
        codebook = codebook.float()
    if penalty is not None:
        penalty = penalty.detach().float()
    if single:
        z, codebook = z[None], codebook[None]
        penalty = None if penalty is None else penalty[None]
    # The operator costs host time, so it is passed by where nobody looks for it.
    plain = type(z) is Tensor and type(codebook) is Tensor and not torch.compiler.is_compiling()
    indices = (_search if plain else _nearest)(z, codebook, metric != "l2", penalty, backend)
    indices = indices[0] if single else indices
    if not return_distance:
        return indices
    if single:
        return indices, squared_distance(z[0], given, indices)
    return indices, torch.stack([squared_distance(*own) for own in zip(z, given, indices, strict=True)])


def squared_distance(z: Tensor, codebook: Tensor, indices: Tensor, max_elements: int = 1 << 22) -> Tensor:
    """Squared Euclidean distance ``[M]`` float32 of each row of ``z [M, D]`` to its codeword ``codebook[indices]``.

    Computed from the differences, in blocks of ``max_elements`` elements, so that it is small where it should be.
    """
    rows = max(1, max_elements // max(1, z.shape[-1]))
    with torch.no_grad(), no_autocast(z.device):
        parts = [
            (block.float() - codebook[own].float()).square().sum(-1)
            for block, own in zip(z.split(rows), indices.split(rows), strict=True)
        ]
        return torch.cat(parts)


def residual_codewords(
    z: Tensor,
    codebooks: Sequence[Tensor | Prepared],
    penalties: Sequence[Tensor | None] | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Indices ``[M, K]`` int64 of a residual search: level k codes ``z`` minus the codewords of the levels before it.

    Args:
        z: ``[M, D]`` latent vectors; the residual is float32.
        codebooks: K codebooks ``[N_k, D]``, coarse to fine; on a CPU :func:`prepare_codebook` makes them
            quick to search for few rows.
        penalties: for each level None or what :func:`nearest_codeword` takes. A prepared codebook has its own.

    On CUDA one kernel makes the next residual; no step waits for the host, so the whole can be captured in a CUDA
    graph. The indices are those of K calls of :func:`nearest_codeword` with subtractions in between.
    """
    penalties = [None] * len(codebooks) if penalties is None else penalties
    with torch.no_grad(), no_autocast(z.device):
        residual, levels = z.detach().float(), []
        for k, (codebook, penalty) in enumerate(zip(codebooks, penalties, strict=True)):
            if isinstance(codebook, Prepared):
                if penalty is not None:
                    raise ValueError("a prepared codebook has a penalty of its own")
                indices, codebook = nearest_cpu.search_prepared(residual, codebook), codebook.codebook
            else:
                indices = nearest_codeword(residual, codebook, "l2", penalty, backend)
            levels.append(indices)
            if k + 1 < len(codebooks):
                residual = _subtract_codewords(residual, codebook.detach(), indices, backend)
        return torch.stack(levels, dim=-1) if levels else z.new_zeros(z.shape[0], 0, dtype=torch.int64)


def prepare_codebook(codebook: Tensor, penalty: Tensor | None = None) -> Prepared:
    """Compute once what searches on the CPU need of ``codebook [N, D]``, with metric "l2" and ``penalty [N]``.

    The result holds the given tensors and is worth nothing once they change.

    Raises: ValueError if they are empty, do not fit, or are on another device.
    """
    if codebook.ndim != 2 or 0 in codebook.shape or (penalty is not None and penalty.shape != codebook.shape[:1]):
        raise ValueError(f"need codebook [N, D] and penalty [N], got {tuple(codebook.shape)}")
    if codebook.device.type != "cpu":
        raise ValueError(f"codebooks are prepared for the CPU, got one on {codebook.device}")
    with torch.no_grad(), no_autocast(codebook.device):
        codebook = codebook.detach() if codebook.dtype in FLOATS else codebook.detach().float()
        return nearest_cpu.prepare(codebook, None if penalty is None else penalty.detach().float())


def _subtract_codewords(z: Tensor, codebook: Tensor, indices: Tensor, backend: Backend = "auto") -> Tensor:
    """``z - codebook[indices]`` float32 ``[M, D]``."""
    if backend != "reference" and z.is_cuda and choose_backend(z.device.type, z.device.index) == "triton":
        kernels = triton_kernels()
        assert kernels is not None
        return kernels.subtract_codewords(z, codebook, indices)
    return z - codebook[indices].float()
