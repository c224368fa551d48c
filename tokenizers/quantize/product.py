"""Product quantization: channels in groups, and a quantizer of its own for each, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .base import ABSENT, Cluster, Quantizer, QuantizerOutput, keep_codes
from .residual import tables_of


class ProductQuantizer(Quantizer):
    """The channels of group i are quantized by ``groups[i]``: D is the sum of theirs, K the number of groups.

    Any quantizer with one codebook can be a group, and groups may differ. All groups say something of every cell, so a
    prefix of the codes is no coarser version of the whole: the groups that it lacks decode as zeros.

    Args:    groups: quantizers with one codebook each.
    Raises:  ValueError if there is none, or one has several codebooks.
    Source:  Jegou, Douze and Schmid 2011, "Product quantization for nearest neighbor search", IEEE TPAMI 33(1);
             trained with a network: Baevski et al., wav2vec 2.0, arXiv:2006.11477, section 2.
    We differ: no Gumbel softmax; each group has the losses of its own kind, of which the mean is taken.
    """

    def __init__(self, groups: Sequence[Quantizer]) -> None:
        super().__init__()
        if not groups or any(group.n_codebooks != 1 for group in groups):
            raise ValueError("a product quantizer has at least one group, with one codebook each")
        self.groups = nn.ModuleList(groups)
        self.dims = [group.dim for group in groups]
        self.dim = sum(self.dims)
        self.codebook_sizes = tuple(group.codebook_sizes[0] for group in groups)

    @property
    def parts(self) -> Sequence[Quantizer]:
        return [group for group in self.groups if isinstance(group, Quantizer)]

    def split(self, z_e: Tensor) -> Sequence[Tensor]:
        """The channels ``[B, D_i, *grid]`` of each group. Raises ValueError if there are more or fewer."""
        if z_e.ndim < 2 or z_e.shape[1] != self.dim:
            raise ValueError(f"need latents [B, {self.dim}, *grid], got {tuple(z_e.shape)}")
        return z_e.split(self.dims, dim=1)

    def forward(self, z_e: Tensor, *, n_codes: Tensor | None = None) -> QuantizerOutput:
        outs = [group(part) for group, part in zip(self.groups, self.split(z_e), strict=True)]
        out = QuantizerOutput(
            z_q=torch.cat([out.z_q for out in outs], 1),
            codes=torch.cat([out.codes for out in outs], 1),
            commitment_loss=torch.stack([out.commitment_loss for out in outs]).mean(),
            codebook_loss=torch.stack([out.codebook_loss for out in outs]).mean(),
            auxiliary_loss=torch.stack([out.auxiliary_loss.to(z_e.device) for out in outs]).mean(),
        )
        return keep_codes(self, z_e, out, n_codes)

    def encode(self, z_e: Tensor) -> Tensor:
        return torch.cat([group.encode(part) for group, part in zip(self.parts, self.split(z_e), strict=True)], 1)

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        missing = codes.new_full((len(codes), self.n_codebooks - codes.shape[1], *codes.shape[2:]), ABSENT)
        whole = torch.cat([codes, missing], 1).split(1, 1)
        return torch.cat([group.decode(own) for group, own in zip(self.parts, whole, strict=True)], 1)

    def tables(self) -> list[npt.NDArray[np.float32]] | None:
        return tables_of(self.parts)

    def start(self, rows: Tensor, cluster: Cluster, first: int = 0) -> None:
        for k, (group, own) in enumerate(zip(self.parts, self.split(rows), strict=True)):
            group.start(own, cluster, max(0, first - k))

    def fold(self) -> None:
        for group in self.parts:
            group.fold()
