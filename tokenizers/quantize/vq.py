"""Vector quantization with a free codebook, learned by gradient (:class:`VQ`) or moving averages (:class:`EMAVQ`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Gradient
from .codebook import CodebookQuantizer
from .nearest import Metric, nearest_codeword
from .processes import agree, summed


@torch.no_grad()
def kmeans(rows: Tensor, n_clusters: int, iterations: int = 10, metric: Metric = "l2") -> Tensor:
    """Cluster centres of ``rows`` by Lloyd's algorithm, started from random rows.

    Args:    rows: ``[M, D]`` float32, M >= 1.  metric: "l2", or "cosine" for unit centres (spherical k-means).
    Returns: centres ``[n_clusters, D]``. A cluster that lost all its rows keeps its last centre.
    Raises:  ValueError if there are no rows.
    Cost:    O(iterations * M * n_clusters * D).

    With fewer rows than clusters some rows start several clusters; those copies are moved by 1 % of the rows'
    deviation, as equal codewords would all lose to the first of them.
    """
    m = rows.shape[0]
    if m == 0:
        raise ValueError("k-means needs at least one row")
    picks = torch.cat([torch.randperm(m, device=rows.device) for _ in range(-(-n_clusters // m))])[:n_clusters]
    centres = rows[picks].clone()
    if n_clusters > m:
        spread = rows.std(0, correction=0)  # [D]
        centres[m:] += 0.01 * spread * torch.randn_like(centres[m:])
    for _ in range(iterations):
        if metric == "cosine":
            centres = F.normalize(centres, dim=-1)
        indices = nearest_codeword(rows, centres, metric)  # [M]
        counts, sums = count_and_sum(rows, indices, n_clusters)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return F.normalize(centres, dim=-1) if metric == "cosine" else centres


def count_and_sum(rows: Tensor, indices: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Number ``[n]`` and sum ``[n, D]`` of the ``rows [M, D]`` with each index; a negative index leaves its row out."""
    kept = indices >= 0
    rows, indices = rows[kept], indices[kept]
    counts = torch.bincount(indices, minlength=n).to(rows.dtype)
    return counts, rows.new_zeros(n, rows.shape[1]).index_add_(0, indices, rows)


class VQ(CodebookQuantizer):
    """Vector quantizer whose codewords are parameters, pulled to the encoder by ``codebook_loss``.

    Args:
        codebook_size, dim, metric, gradient: see :class:`CodebookQuantizer`.
        kmeans_iterations: the first training batch sets the codewords by k-means; 0 keeps the random start.
        dead_below: a codeword whose moving average of choices per training batch is below this is dead. Before the next
            search it becomes a random row of that batch. 0 turns revival off.
        decay: of the moving averages.

    In training with several processes averages are those of the batches of all of them, and k-means and revival take
    rows of the first one. So all have to search at the same time, as they do in steps that they make together.

    Source: van den Oord et al., arXiv:1711.00937, eq. (3); revival: Jukebox, arXiv:2005.00341, section 3 ("random
    restarts").
    We differ: a revived codeword starts with an average of ``fresh_count``, so it has time to be chosen before it
    counts as dead again.
    """

    codewords: Tensor
    cluster_size: Tensor
    started: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        metric: Metric = "l2",
        gradient: Gradient = "straight-through",
        kmeans_iterations: int = 10,
        dead_below: float = 1.0,
        decay: float = 0.99,
    ) -> None:
        super().__init__(codebook_size, dim, metric, gradient)
        if kmeans_iterations < 0 or dead_below < 0 or not 0 <= decay < 1:
            raise ValueError("need kmeans_iterations >= 0, dead_below >= 0 and decay in [0, 1)")
        self.kmeans_iterations = kmeans_iterations
        self.dead_below = dead_below
        self.decay = decay
        self.fresh_count = max(1.0, 2 * dead_below)
        self.register_codewords(torch.randn(codebook_size, dim) * dim**-0.5)
        self.register_buffer("cluster_size", torch.full((codebook_size,), self.fresh_count))
        self.register_buffer("started", torch.tensor(kmeans_iterations == 0))

    def register_codewords(self, codewords: Tensor) -> None:
        self.codewords = nn.Parameter(codewords)

    # Coarser types would swallow the small shares that a batch adds to an average.
    float32_buffers: tuple[str, ...] = ("cluster_size",)
    training_buffers: tuple[str, ...] = ("cluster_size",)
    moves = True

    @property
    def codebook(self) -> Tensor:
        return self.codewords

    @torch.no_grad()
    def replace_codewords(self, where: Tensor, rows: Tensor) -> None:
        """Set the codewords numbered ``where [R]`` to ``rows [R, D]`` and give them a fresh count."""
        self.codewords[where] = rows.to(self.codewords.dtype)
        self.cluster_size[where] = self.fresh_count

    @torch.no_grad()
    def set_codewords(self, codewords: Tensor) -> None:
        self.replace_codewords(torch.arange(len(codewords), device=codewords.device), codewords)
        self.started.fill_(True)

    @torch.no_grad()
    def restart(self) -> None:
        where = torch.arange(len(self.codewords), device=self.codewords.device)
        self.replace_codewords(where, self.codewords.detach().clone())

    @torch.no_grad()
    def prepare(self, rows: Tensor) -> None:
        if not self.started:
            if len(rows):
                self.set_codewords(kmeans(rows, self.codebook_sizes[0], self.kmeans_iterations, self.metric))
            agree(self.started, *self.moving())
        elif self.dead_below > 0:
            dead = (self.cluster_size < self.dead_below).nonzero()[:, 0]  # the same in all processes
            if not len(dead):
                return
            # No row is used twice: of more dead codewords than rows, some wait for the next batch.
            dead = dead[torch.randperm(len(dead), device=dead.device)[: rows.shape[0]]]
            picks = torch.randperm(rows.shape[0], device=rows.device)[: len(dead)]
            self.replace_codewords(dead, rows[picks])
            agree(*self.moving())

    def moving(self) -> tuple[Tensor, ...]:
        """What training moves without gradients."""
        return self.codewords, self.cluster_size

    @torch.no_grad()
    def observe(self, rows: Tensor, indices: Tensor) -> None:
        super().observe(rows, indices)
        counts, _ = count_and_sum(rows, indices, self.codebook_sizes[0])
        self.cluster_size.lerp_(summed(counts), 1 - self.decay)


class EMAVQ(VQ):
    """Vector quantizer whose codewords are the moving averages of the rows that chose them; ``codebook_loss`` is zero.

    Args: see :class:`VQ`; ``decay`` is the paper's gamma.
        smoothing: eps of the Laplace smoothing of cluster sizes, (n_i + eps) / (n + N eps) * n with n = sum of n_i.

    Source: van den Oord et al., arXiv:1711.00937, appendix A.1, eq. (6)-(8).
    We differ: revival as in :class:`VQ`; with metric "cosine" the codewords are put back on the unit sphere.
    """

    learned_by_gradient = False
    float32_buffers = training_buffers = ("cluster_size", "cluster_sum")
    cluster_sum: Tensor

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        metric: Metric = "l2",
        gradient: Gradient = "straight-through",
        kmeans_iterations: int = 10,
        dead_below: float = 1.0,
        decay: float = 0.99,
        smoothing: float = 1e-5,
    ) -> None:
        super().__init__(
            codebook_size, dim, metric, gradient, kmeans_iterations, dead_below=dead_below, decay=decay
        )
        self.smoothing = smoothing
        self.register_buffer("cluster_sum", self.codewords * self.cluster_size[:, None])

    def register_codewords(self, codewords: Tensor) -> None:
        self.register_buffer("codewords", F.normalize(codewords, dim=-1) if self.metric == "cosine" else codewords)

    def moving(self) -> tuple[Tensor, ...]:
        return *super().moving(), self.cluster_sum

    @torch.no_grad()
    def replace_codewords(self, where: Tensor, rows: Tensor) -> None:
        super().replace_codewords(where, rows)
        self.cluster_sum[where] = rows * self.fresh_count

    @torch.no_grad()
    def observe(self, rows: Tensor, indices: Tensor) -> None:
        super().observe(rows, indices)  # the counts
        _, sums = count_and_sum(rows, indices, self.codebook_sizes[0])
        self.cluster_sum.lerp_(summed(sums), 1 - self.decay)
        n, eps = self.cluster_size.sum(), self.smoothing
        smoothed = (self.cluster_size + eps) / (n + len(self.cluster_size) * eps) * n  # [N]
        codewords = self.cluster_sum / smoothed[:, None]
        self.codewords.copy_(F.normalize(codewords, dim=-1) if self.metric == "cosine" else codewords)
