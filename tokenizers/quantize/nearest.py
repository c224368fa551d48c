"""Nearest-codeword search: the one function through which every token passes."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Metric = Literal["l2", "cosine", "dot"]

# Largest block of the [M, N] score matrix that is kept at once: 2^24 float32 scores are 64 MiB.
MAX_SCORES = 1 << 24


def nearest_codeword(
    z: Tensor, codebook: Tensor, metric: Metric = "l2", penalty: Tensor | None = None, max_scores: int = MAX_SCORES
) -> Tensor:
    """Find the nearest codeword of every latent vector.

    Args:
        z: ``[M, D]`` latent vectors, any float type.
        codebook: ``[N, D]`` codewords, any float type.
        metric: "l2" smallest squared Euclidean distance, "cosine" largest cosine, "dot" largest inner product.
        penalty: ``[N]`` float, added to the squared distance to each codeword ("l2" only); lambda times the code length
            in bits gives entropy-constrained search (Chou, Lookabaugh and Gray, IEEE Trans. ASSP 37(1), 1989).
        max_scores: the search runs over blocks of rows so that at most ``max(N, max_scores)`` scores exist at once.

    Returns:
        indices ``[M]`` int64. Equal scores go to the smaller index. A row of ``z`` that holds a NaN gets index 0.

    Raises:
        ValueError: if shapes do not fit or the codebook is empty.

    Computed in float32 whatever autocast says: half precision picks wrong codewords. So does TF32: on CUDA leave it off
    for matrix products, as PyTorch does by default.
    Distances are ranked by ``|c|^2 / 2 - z.c``, which leaves out the ``|z|^2`` that all codewords share.
    Cost: O(M N D) time, O(max_scores) memory beyond the inputs.
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(f"need z [M, D] and codebook [N, D], got {tuple(z.shape)} and {tuple(codebook.shape)}")
    n = codebook.shape[0]
    if n == 0:
        raise ValueError("the codebook is empty")
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        z, codebook = z.float(), codebook.float()
        if metric == "cosine":
            z, codebook = F.normalize(z, dim=-1), F.normalize(codebook, dim=-1)
        elif metric not in ("l2", "dot"):
            raise ValueError(f"unknown metric {metric!r}: use 'l2', 'cosine' or 'dot'")
        if penalty is not None and (metric != "l2" or penalty.shape != (n,)):
            raise ValueError(f"a penalty is [N] and goes with metric 'l2', got {tuple(penalty.shape)} and {metric!r}")
        bias = codebook.square().sum(-1) / 2 if metric == "l2" else codebook.new_zeros(n)  # [N]
        if penalty is not None:
            bias = bias + penalty.float() / 2
        rows = max(1, max_scores // n)
        indices = [torch.addmm(bias, block, codebook.T, alpha=-1).argmin(-1) for block in z.split(rows)]
        return torch.cat(indices) if indices else z.new_zeros(0, dtype=torch.long)  # [M]
