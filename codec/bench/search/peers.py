"""Searches to time beside ours: plain PyTorch in several forms, and what is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ....tokenizers.quantize import nearest_codeword
from ..timing import OURS

if TYPE_CHECKING:
    from ..timing import Search


WORKSPACE = {"cuda": 4 << 30, "cpu": 256 << 20}  # bytes of temporaries that a peer without blocks of its own gets


class Shape(NamedTuple):
    """Rows, codewords, dimensions."""

    m: int
    n: int
    d: int

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.d}"


@dataclass(frozen=True)
class Peer:
    """One way to search. ``prepare(z, codebook)`` gives what is timed; ImportError says that a package is missing."""

    name: str
    prepare: Callable[[Tensor, Tensor], Search]
    graph: bool = False  # also timed as a CUDA graph
    counted: bool = True  # takes its memory from PyTorch, so that it can be weighed


@dataclass(frozen=True)
class Case:
    """Inputs of one shape, and what is needed to check answers on some of its rows."""

    shape: Shape
    real: bool  # latents of a model with its codebook, not random numbers
    z: Tensor  # [M, D] float32
    codebook: Tensor  # [N, D] float32
    rows: Tensor | None  # [checked] int64, None for all
    best: Tensor  # [checked] float64, squared distance to the nearest codeword

    def select(self, x: Tensor) -> Tensor:
        """The checked rows of ``x``."""
        return x if self.rows is None else x[self.rows]


# ---------------------------------------------------------------------------------------------------- the peers


def in_blocks(z: Tensor, codewords: int, bytes_per_score: int, search: Callable[[Tensor], Tensor]) -> Tensor:
    """Search block by block of rows, so that the scores of a block fit the workspace; indices ``[M]``."""
    rows = max(1, WORKSPACE[z.device.type] // (bytes_per_score * codewords))
    return torch.cat([search(block) for block in z.split(rows)])


def ours(z: Tensor, codebook: Tensor) -> Search:
    return lambda: nearest_codeword(z, codebook)


def cdist(z: Tensor, codebook: Tensor) -> Search:
    return lambda: in_blocks(z, len(codebook), 4, lambda block: torch.cdist(block, codebook).argmin(-1))


def expanded(z: Tensor, codebook: Tensor, bias: Tensor) -> Tensor:
    """``|c|^2 - 2 z.c``, smallest first; ``bias`` is ``|c|^2``."""
    return torch.addmm(bias, z, codebook.T, alpha=-2).argmin(-1)


def matmul(z: Tensor, codebook: Tensor) -> Search:
    def search() -> Tensor:
        bias = codebook.square().sum(-1)
        return in_blocks(z, len(codebook), 4, lambda block: expanded(block, codebook, bias))

    return search


def compiled(z: Tensor, codebook: Tensor) -> Search:
    torch.compiler.reset()  # each shape is a graph of its own; their number is limited
    fast = torch.compile(expanded, dynamic=False)

    def search() -> Tensor:
        bias = codebook.square().sum(-1)
        return in_blocks(z, len(codebook), 4, lambda block: fast(block, codebook, bias))

    return search


def vector_quantize_pytorch(z: Tensor, codebook: Tensor) -> Search:
    """Its module in eval mode, which also gathers the codewords. A score takes it 24 bytes: with a one-hot of int64."""
    package = importlib.import_module("vector_quantize_pytorch")
    module = package.VectorQuantize(dim=z.shape[1], codebook_size=len(codebook)).to(z.device).eval()
    module.codebook = codebook
    return lambda: in_blocks(z, len(codebook), 24, lambda block: module(block[None])[1][0])


def flash_kmeans(z: Tensor, codebook: Tensor) -> Search:
    """Norms of the rows come from outside. Its products are TF32, which is Triton's default for float32."""
    if not z.is_cuda:
        raise ImportError("needs CUDA")
    assign = importlib.import_module("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    x, centroids, x_sq = z[None], codebook[None], (z * z).sum(-1)[None]
    return lambda: assign(x, centroids, x_sq)[0]  # [M] int32


def faiss(z: Tensor, codebook: Tensor) -> Search:
    package = importlib.import_module("faiss")
    if not z.is_cuda:
        index = package.IndexFlatL2(z.shape[1])
        index.add(codebook.numpy())
        queries = z.numpy()
        return lambda: torch.from_numpy(index.search(queries, 1)[1][:, 0])
    if not hasattr(package, "GpuIndexFlatL2"):
        raise ImportError("faiss is a build without GPU")
    importlib.import_module("faiss.contrib.torch_utils")  # teaches it tensors, and to follow PyTorch's stream
    resources = package.StandardGpuResources()
    on_gpu = package.GpuIndexFlatL2(resources, z.shape[1])
    on_gpu.add(codebook)
    return lambda: (resources, on_gpu.search(z, 1)[1][:, 0])[1]  # resources must live as long as the index


def cuvs(z: Tensor, codebook: Tensor) -> Search:
    if not z.is_cuda:
        raise ImportError("needs CUDA")
    brute_force = importlib.import_module("cuvs.neighbors.brute_force")
    # With resources of ours it does not wait for the GPU after each call.
    resources = importlib.import_module("cuvs.common").Resources(stream=torch.cuda.current_stream().cuda_stream)
    index = brute_force.build(codebook, metric="sqeuclidean", resources=resources)
    neighbors = torch.empty(len(z), 1, dtype=torch.int64, device=z.device)
    distances = torch.empty(len(z), 1, dtype=torch.float32, device=z.device)

    def search() -> Tensor:
        brute_force.search(index, z, 1, neighbors=neighbors, distances=distances, resources=resources)
        return neighbors[:, 0]

    return search


# Packages under which peers are installed.
PACKAGES = (
    "triton", "vector-quantize-pytorch", "flash-kmeans",
    "faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "cuvs-cu12", "cuvs-cu13",
)  # fmt: skip
PEERS = (
    Peer("cdist", cdist),
    Peer("matmul", matmul),
    Peer("compiled", compiled),
    Peer("vector-quantize-pytorch", vector_quantize_pytorch),
    Peer("flash-kmeans", flash_kmeans, graph=True),
    Peer("faiss", faiss, counted=False),
    Peer("cuvs", cuvs, counted=False),
    Peer(OURS, ours, graph=True),
)


def distances(z: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
    """``sum((z - c)^2)`` in float64 of each row and the codeword chosen for it, ``[M]``."""
    rows = max(1, (1 << 24) // z.shape[1])
    blocks = zip(z.split(rows), indices.split(rows), strict=True)
    return torch.cat([(block.double() - codebook[chosen].double()).square().sum(-1) for block, chosen in blocks])


def best_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """Squared distance of each row to its nearest codeword, ``[M]`` float64, by brute force.

    The nearest is the argmin of the expansion ``|c|^2 - 2 z.c`` in float64, on centred inputs; its distance is then
    computed anew as ``sum((z - c)^2)``. The expansion errs by about 2^-52 of the squared norms, so the codeword is the
    best, or not farther than it by anything that counts, unless distances are below 10^-8 of those norms.
    """
    mean = codebook.double().mean(0)  # [D]
    c = codebook.double() - mean  # [N, D]
    bias = c.square().sum(-1)  # [N]
    rows = max(1, (1 << (27 if z.is_cuda else 24)) // len(c))
    indices = [torch.addmm(bias, block.double() - mean, c.T, alpha=-2).argmin(-1) for block in z.split(rows)]
    return distances(z, codebook, torch.cat(indices))
