"""A quantizer with one codebook: search, look-up and losses in one place; subclasses say where codewords come from."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..precision import no_autocast
from .base import (
    Cluster,
    CodebookUsage,
    Gradient,
    Quantizer,
    QuantizerOutput,
    channels_last_rows,
    pass_gradient,
    rows_to_grid,
)
from .nearest import Metric, nearest_codeword


class CodebookQuantizer(Quantizer):
    """Nearest codeword of a table ``codebook [N, D]``; K = 1.

    Args:
        codebook_size: N.
        dim: D.
        metric: see :func:`nearest_codeword`. With "cosine" latents and codewords are projected to the unit sphere first
            (ViT-VQGAN, arXiv:2110.04627, section 3.2), so ``z_q`` has unit length.
        gradient: estimator through the choice, "straight-through" or "rotation".
    """

    def __init__(
        self, codebook_size: int, dim: int, metric: Metric = "l2", gradient: Gradient = "straight-through"
    ) -> None:
        super().__init__()
        if codebook_size < 1 or dim < 1:
            raise ValueError(f"codebook_size and dim must be positive, got {codebook_size} and {dim}")
        self.dim = dim
        self.codebook_sizes = (codebook_size,)
        self.metric: Metric = metric
        self.gradient: Gradient = gradient
        self.usage = CodebookUsage(codebook_size)
        self.register_buffer("penalty", None)

    @property
    @abc.abstractmethod
    def codebook(self) -> Tensor:
        """The codewords ``[N, D]``, with gradient if they are learned by gradient; of the type of the weights."""

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """What :attr:`codebook` and :attr:`penalty` are computed from: as long as these stay, they stay."""
        return (*self.parameters(), *(buffer for name, buffer in self.named_buffers() if name != "usage.counts"))

    #: ``[N]``, added to the squared distances when encoding, not when training; see ``nearest_codeword``.
    penalty: Tensor | None

    #: False where codewords move by other means (EMA); then ``codebook_loss`` is zero.
    learned_by_gradient: bool = True

    def prepare(self, rows: Tensor) -> None:
        """Hook before each training search over ``rows [M, D]``: codewords may be replaced here. Nothing by default."""

    @torch.no_grad()
    def observe(self, rows: Tensor, indices: Tensor) -> None:
        """Hook after each training search: ``rows [M, D]`` chose ``indices [M]``; ``ABSENT`` rows do not count."""
        self.usage.update(indices)

    def quantize_rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One search over ``rows [M, D]``: returns (targets [M, D], z_q [M, D], indices [M]).

        ``targets`` are the rows as they are compared with codewords (on the sphere for "cosine"); ``z_q`` carries the
        codebook's gradient. Losses are between these two.
        """
        if self.metric == "cosine":
            rows = F.normalize(rows, dim=-1)
        if self.training:
            self.prepare(rows)
        codebook = self.codebook.float()
        codebook = F.normalize(codebook, dim=-1) if self.metric == "cosine" else codebook
        indices = nearest_codeword(rows, codebook, "dot" if self.metric == "cosine" else self.metric)
        return rows, self.look_up(indices, codebook), indices

    def look_up(self, indices: Tensor, codebook: Tensor) -> Tensor:
        """Codewords ``[M, D]`` of ``indices [M]`` with the gradient that trains them; ``codebook [N, D]`` as searched.
        """
        return codebook[indices]

    @property
    def cascade(self) -> Sequence[CodebookQuantizer]:
        return [self] if self.metric == "l2" else []

    @abc.abstractmethod
    def set_codewords(self, codewords: Tensor) -> None:
        """Set the codebook to ``codewords [N, D]``."""

    @torch.no_grad()
    def start(self, rows: Tensor, cluster: Cluster, first: int = 0) -> None:
        if not first:
            self.set_codewords(cluster(rows, self.codebook_sizes[0]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        penalty = state_dict.get(prefix + "penalty")
        if penalty is not None and self.penalty is None and self.metric == "l2":
            self.penalty = torch.zeros(self.codebook_sizes, device=self.codebook.device)
        super()._load_from_state_dict(state_dict, prefix, *more)

    def forward(self, z_e: Tensor, *, n_codes: Tensor | None = None) -> QuantizerOutput:
        with no_autocast(z_e.device):
            rows, z_q, indices = self.quantize_rows(channels_last_rows(z_e.float()))  # [M, D], [M, D], [M]
            if self.training:
                self.observe(rows, indices)
            return QuantizerOutput(
                z_q=rows_to_grid(pass_gradient(rows, z_q, self.gradient), z_e),
                codes=rows_to_grid(indices[:, None], z_e),
                commitment_loss=F.mse_loss(rows, z_q.detach()),
                codebook_loss=F.mse_loss(z_q, rows.detach()) if self.learned_by_gradient else rows.new_zeros(()),
            )

    def encode(self, z_e: Tensor) -> Tensor:
        with torch.no_grad(), no_autocast(z_e.device):  # for a codebook that is computed
            indices = nearest_codeword(channels_last_rows(z_e), self.codebook, self.metric, self.penalty)
        return rows_to_grid(indices[:, None], z_e)  # [B, 1, *grid]

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        with no_autocast(codes.device):
            codebook = self.codebook.float()
            if self.metric == "cosine":
                codebook = F.normalize(codebook, dim=-1)
        indices = codes[:, 0]  # [B, *grid]
        z_q = F.embedding(indices.clamp_min(0), codebook) * (indices >= 0).unsqueeze(-1)  # [B, *grid, D]
        return z_q.movedim(-1, 1)
