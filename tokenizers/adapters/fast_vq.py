"""Quantizers of `vector-quantize-pytorch` that search by `nearest_codeword`, in place of theirs; see accelerate.py.

Theirs makes a distance and a one-hot number for each row and codeword, ``[M, N]``. Here neither is made: codewords are
looked up by their index, and what the running means of codewords need is added up by it.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor
from vector_quantize_pytorch import SimVQ, VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import Codebook, accum_grad_, ema_inplace, rotate_to

from ..precision import no_autocast
from ..quantize.nearest import nearest_codeword


class FastCodebook(Codebook):
    """The same arguments and results, but no distances, which the losses of most quantizers do not use."""

    whole = False  # whether all distances are asked for

    def forward(self, x: Tensor, *places: Any, **more: Any) -> Any:
        drawn = self.training and any(self.gumbel_sample.keywords.values())  # at random, or with gradients
        others = [more.get(name) for name in ("codebook_transform_fn", "topk")]
        if self.whole or drawn or places or others != [None, None]:
            return super().forward(x, *places, **more)
        with no_autocast(x.device):
            return self.search(x, **more)

    def search(
        self, x: Tensor, mask: Tensor | None = None, freeze_codebook: bool = False, ema_update_weight: Any = None,
        accum_ema_update: bool = False, ema_update: bool | None = None, update_usage: bool = True, **_: Any,
    ) -> tuple[Tensor, Tensor, None]:  # fmt: skip
        """``x [B, n, d]``, or ``[h, B, n, d]`` of h codebooks, to codewords in its shape and their indices."""
        heads = x.float() if x.ndim == 4 else x.float()[None]
        rows = heads.flatten(1, -2)  # [h, M, d]
        if mask is not None:
            times = rows.shape[1] // mask.numel()
            mask = repeat(mask, "b n -> c (b h n)", c=len(rows), h=times)
        self.init_embed_(rows, mask=mask)
        embed = self.words(rows, mask)
        indices = nearest_codeword(rows, embed, "dot" if self.use_cosine_sim else "l2")  # [h, M]
        z_q = embed.gather(1, indices[..., None].expand(-1, -1, embed.shape[2])).view(heads.shape)
        if self.training and update_usage and not freeze_codebook:
            self.update_codebook(
                rows, indices, mask=mask, ema_update_weight=ema_update_weight, accum_ema_update=accum_ema_update,
                ema_update=ema_update,
            )  # fmt: skip
        indices = indices.view(heads.shape[:-1])
        return (z_q, indices, None) if x.ndim == 4 else (z_q[0], indices[0], None)

    def words(self, rows: Tensor, mask: Tensor | None) -> Tensor:
        """The codewords that are searched, ``[h, N, d]``, as theirs are made of ``embed``."""
        if self.affine_param:
            self.update_affine(rows, self.embed, mask=mask)
        embed: Tensor = (self.embed if self.learnable_codebook else self.embed.detach()).float()
        if self.vq_bridge is not None:
            embed = self.vq_bridge(embed)
        if self.affine_param:
            spread = self.batch_variance.clamp(min=1e-5).sqrt() / self.codebook_variance.clamp(min=1e-5).sqrt()
            embed = (embed - self.codebook_mean) * spread + self.batch_mean
        return embed

    def track_cluster_size_and_embed_avg(
        self, flatten: Tensor, embed_onehot: Tensor, mask: Tensor | None = None, ema_update_weight: Any = None,
        accum_ema_update: bool = False,
    ) -> None:  # fmt: skip
        """As theirs, of indices ``[h, M]`` instead of one-hot rows."""
        if embed_onehot.ndim == flatten.ndim:
            super().track_cluster_size_and_embed_avg(flatten, embed_onehot, mask, ema_update_weight, accum_ema_update)
            return
        indices = embed_onehot
        if self.affine_param:
            spread = self.codebook_variance.clamp(min=1e-5).sqrt() / self.batch_variance.clamp(min=1e-5).sqrt()
            flatten = (flatten - self.batch_mean) * spread + self.codebook_mean
        counted = torch.ones_like(flatten[..., 0]) if mask is None else mask.to(flatten)  # [h, M]
        sizes = torch.zeros_like(self.cluster_size, dtype=flatten.dtype).scatter_add_(1, indices, counted)
        sums = torch.zeros_like(self.embed_avg, dtype=flatten.dtype)
        sums.scatter_add_(1, indices[..., None].expand_as(flatten), flatten.detach() * counted[..., None])
        self.all_reduce_fn(sizes)
        self.all_reduce_fn(sums)
        weight = ema_update_weight(sums, sizes) if callable(ema_update_weight) else ema_update_weight
        for kept, new in ((self.cluster_size, sizes), (self.embed_avg, sums)):
            if accum_ema_update:
                accum_grad_(kept, new)
            else:
                ema_inplace(kept, new, self.decay, weight)


class FastVectorQuantize(VectorQuantize):
    """Says when its loss is of all distances: the cross entropy with codes that are given."""

    def forward(self, x: Tensor, indices: Tensor | None = None, **more: Any) -> Any:
        self._codebook.whole = indices is not None
        return super().forward(x, indices=indices, **more)


class FastSimVQ(SimVQ):
    """As theirs, with another search."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = rearrange(x, "b d ... -> b ... d") if self.channel_first else x
        rows = x.flatten(1, -2)  # [B, n, d]
        codebook = self.codebook
        indices = nearest_codeword(rows.flatten(0, 1), codebook).view(rows.shape[:2])
        z_q = codebook[indices]
        loss = (rows.detach() - z_q).square().mean()
        loss = loss + (rows - z_q.detach()).square().mean() * self.input_to_quantize_commit_loss_weight
        z_q = rotate_to(rows, z_q) if self.rotation_trick else (z_q - rows).detach() + rows
        z_q, indices = z_q.view(x.shape), indices.view(x.shape[:-1])
        z_q = rearrange(z_q, "b ... d -> b d ...") if self.channel_first else z_q
        return z_q, indices, loss * self.commitment_weight


def faster(module: Any) -> type[Any] | None:
    """The class that a module can have instead of its own, None if there is none."""
    if type(module) is VectorQuantize:
        return FastVectorQuantize
    return {Codebook: FastCodebook, SimVQ: FastSimVQ}.get(type(module))


def keeps_distances(module: Any) -> bool:
    """Whether the loss of a quantizer is of all distances in training, so that it is left as it is."""
    return isinstance(module, VectorQuantize) and (
        module.has_codebook_diversity_loss or module.commitment_use_cross_entropy_loss
    )
