"""Variants in training: low-rank differences to the weights of a base (LoRA, Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from ..tokenizers.folders import find_model, read_config
from ..tokenizers.image.photo_nets import PhotoNets
from ..tokenizers.variants import LEFT, RIGHT, find_base


class LowRank(nn.Module):
    """Differences to the weights of a codec's nets: of low rank for kernels, free for all else (see `variants.py`)."""

    def __init__(self, nets: PhotoNets, rank: int) -> None:
        super().__init__()
        self.left, self.right, self.free = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for name, p in nets.named_parameters():
            key = name.replace(".", "/")
            if p.ndim == 4:
                inputs = p[0].numel()
                self.left[key] = nn.Parameter(p.new_zeros(len(p), rank))
                self.right[key] = nn.Parameter(torch.randn(rank, inputs, device=p.device) / math.sqrt(inputs))
            else:
                self.free[key] = nn.Parameter(p.detach().clone())

    def weights(self, nets: PhotoNets) -> dict[str, Tensor]:
        """The changed weights, by their names in the codec."""
        found: dict[str, Tensor] = {}
        for name, p in nets.named_parameters():
            key = name.replace(".", "/")
            if key in self.free:
                found[f"nets.{name}"] = self.free[key]
            else:
                found[f"nets.{name}"] = p + (self.left[key] @ self.right[key]).view(p.shape)
        return found

    def change(self) -> dict[str, Tensor]:
        """As :func:`~..tokenizers.api.save_variant` takes it."""
        found: dict[str, Tensor] = {}
        for part, suffix in ((self.left, LEFT), (self.right, RIGHT), (self.free, "")):
            for key, p in part.items():
                found["nets." + key.replace("/", ".") + suffix] = p.detach().float().cpu()
        return found


def base_of(folder: str | None, out: Path) -> Path:
    """Folder of the model that a variant in ``out`` is trained from: ``folder``, or the base of a variant there.

    Raises: ValueError if it cannot be one.
    """
    if folder is None:
        raise ValueError("a variant is trained from a model: name it with --resume")
    base = find_model(folder)
    found = read_config(base)
    if "base" in found:
        base = find_base(base, found["base"])
    if find_base(out, base.name).resolve() != base.resolve():
        raise ValueError(f"the base of a variant is a release or lies beside --out, and {folder} is neither")
    return base
