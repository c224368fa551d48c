"""Codebooks that are computed by a learned map, so that every codeword moves with every step: SimVQ and FullVQ."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Gradient, straight_through
from .codebook import CodebookQuantizer
from .nearest import Metric


class SimVQ(CodebookQuantizer):
    """Vector quantizer whose codebook is ``basis @ W``: ``basis [N, D]`` is frozen, ``W [D, D]`` is learned.

    An ordinary codebook updates only the codewords that were chosen, and the others die. Here each gradient moves the
    space that all codewords span, so none is left behind.

    Source: Zhu et al., "Addressing Representation Collapse in VQ Models with One Linear Layer", arXiv:2411.02038,
    eq. (6).
    We differ: W starts as the identity, so that a trained codebook can be folded into the basis (:meth:`fold`).
    """

    basis: Tensor

    def __init__(
        self, codebook_size: int, dim: int, metric: Metric = "l2", gradient: Gradient = "straight-through"
    ) -> None:
        super().__init__(codebook_size, dim, metric, gradient)
        self.register_buffer("basis", torch.randn(codebook_size, dim) * dim**-0.5)
        self.projection = nn.Parameter(torch.eye(dim))
        if metric == "l2":  # released with the weights, since it decides which codes a picture gets
            self.penalty = torch.zeros(codebook_size)

    @property
    def codebook(self) -> Tensor:
        return self.basis @ self.projection

    @property
    def sources(self) -> tuple[Tensor, ...]:
        return (self.basis, self.projection) if self.penalty is None else (self.basis, self.projection, self.penalty)

    def look_up(self, indices: Tensor, codebook: Tensor) -> Tensor:
        # The gradient goes to W only, so the chosen rows of the frozen basis are enough. Indexing the codebook with a
        # gradient would scatter it into [N, D] first, which was the costliest kernel of a training step on a GPU.
        if self.metric != "l2":
            return codebook[indices]
        return straight_through((self.basis[indices] @ self.projection).float(), codebook.detach()[indices])

    @torch.no_grad()
    def set_codewords(self, codewords: Tensor) -> None:
        self.basis.copy_(codewords)
        self.projection.copy_(torch.eye(self.dim))

    def fold(self) -> None:
        """Make the present codebook the basis and W the identity: same codewords, nothing left to multiply."""
        self.set_codewords(self.codebook)


class BridgeBlock(nn.Module):
    """Pre-norm transformer block over ``tokens [T, W]``: attention, then a network of two layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_attention(tokens)).unflatten(-1, (3, self.heads, -1))  # [T, 3, heads, W / heads]
        q, k, v = qkv.permute(1, 2, 0, 3)  # each [heads, T, W / heads]
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None])[0]
        tokens = tokens + self.out(mixed.transpose(0, 1).flatten(1))
        return tokens + self.mlp(self.norm_mlp(tokens))


class VQBridge(nn.Module):
    """The projector of FullVQ: ``[N, D] -> [N, D]``, zero at the start.

    compress: ``group`` neighbouring codewords become one token of ``width``;  process: ``depth`` transformer blocks
    over the N / group tokens;  recover: each token becomes ``group`` codewords again.
    """

    def __init__(self, dim: int, group: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.group = group
        self.compress = nn.Linear(group * dim, width)
        self.process = nn.Sequential(*[BridgeBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.recover = nn.Linear(width, group * dim)
        self.silence()

    def silence(self) -> None:
        """Make the output zero for any input."""
        nn.init.zeros_(self.recover.weight)
        nn.init.zeros_(self.recover.bias)

    def forward(self, codewords: Tensor) -> Tensor:
        tokens = self.compress(codewords.reshape(-1, self.group * codewords.shape[1]))  # [N / group, W]
        return self.recover(self.norm(self.process(tokens))).reshape(codewords.shape)  # [N, D]


class FullVQ(CodebookQuantizer):
    """Vector quantizer whose codebook is ``basis + bridge(basis)``: both learned, the bridge is a small transformer.

    Attention ties each codeword to all others, so all get a gradient in each step, through a map richer than SimVQ's
    matrix.

    Args:
        codebook_size, dim, metric, gradient: see :class:`CodebookQuantizer`.
        group: codewords per token; must divide codebook_size.  width, depth, heads: of the transformer.

    Cost:   one pass of the bridge over N / group tokens per call. A released model keeps only the resulting codewords,
            as in the paper: ``codebook`` copied into a :class:`~.vq.VQ`.
    Source: Chang et al., "Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization",
            arXiv:2509.10140, compress-process-recover projector (VQBridge); the authors train it with an annealed
            learning rate.
    We differ: the bridge is added to the basis and starts at zero, so training starts from a plain codebook and
            :meth:`fold` is exact; no position embedding, as codewords have no order.
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        metric: Metric = "l2",
        gradient: Gradient = "straight-through",
        group: int = 16,
        width: int = 256,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__(codebook_size, dim, metric, gradient)
        if codebook_size % group or width % heads:
            raise ValueError(f"group {group} must divide codebook_size {codebook_size}, heads {heads} width {width}")
        self.basis = nn.Parameter(torch.randn(codebook_size, dim) * dim**-0.5)
        self.bridge = VQBridge(dim, group, width, depth, heads)

    @property
    def codebook(self) -> Tensor:
        return self.basis + self.bridge(self.basis)

    @torch.no_grad()
    def set_codewords(self, codewords: Tensor) -> None:
        self.basis.copy_(codewords)
        self.bridge.silence()

    def fold(self) -> None:
        """Make the present codebook the basis and silence the bridge: same codewords. Meant for after training."""
        self.set_codewords(self.codebook)
