"""Variants: a model released as its difference to another one, its base.

A variant's weights file holds, for a tensor ``NAME [O, ...]`` of the base, either

- ``NAME.left [O, r]`` and ``NAME.right [r, I]``: left @ right, reshaped, is added to it (LoRA, Hu et al. 2021,
  arXiv:2106.09685), int8 per row; or
- ``NAME``: takes its place, float16.

and in ``base_hash`` the weights hash of the base (first 8 bytes of the SHA-256 of the unpacked file). ``config.json``
names the base, a release or a folder beside the variant's. What a base has beside its weights (an entropy model) the
variant shares. So a second set of weights costs a tenth of the first; merged, it computes as fast as any.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

LEFT, RIGHT = ".left", ".right"
BASE_HASH = "base_hash"


def merge(base: dict[str, Tensor], change: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a variant, from those of its base and its own. Raises ValueError if they do not fit.

    Products are summed in float64 and rounded once, so that all machines get the same weights.
    """
    merged = dict(base)
    for name, tensor in change.items():
        if name == BASE_HASH or name.endswith(RIGHT):
            continue
        target = name.removesuffix(LEFT)
        old = base.get(target)
        if old is None:
            raise ValueError(f"the base has no {target}")
        if name.endswith(LEFT):
            right = change.get(target + RIGHT)
            flat = old.flatten(1)
            fits = right is not None and tensor.ndim == right.ndim == 2 and tensor.shape[1] == right.shape[0]
            if right is None or not fits or (len(tensor), right.shape[1]) != flat.shape:
                raise ValueError(f"the factors of {target} do not fit it")
            merged[target] = (flat.double() + tensor.double() @ right.double()).float().view(old.shape)
        else:
            if tensor.shape != old.shape:
                raise ValueError(f"{target} has another shape in the base")
            merged[target] = tensor
    return merged


def find_base(folder: Path, name: str) -> Path:
    """Folder of the base that the variant in ``folder`` names. Raises ValueError.

    A release or a folder beside it: a model's file must not make us open others, or download.
    """
    from .folders import ASSETS, CONFIG_FILE, released_models

    beside = folder.parent / name
    if Path(name).name == name and name not in ("", ".", "..") and (beside / CONFIG_FILE).is_file():
        return beside
    if name in released_models():
        return ASSETS / name
    raise ValueError(f"{folder} is a variant of {name!r}, which is neither a release nor a folder beside it")


def check_base(change: dict[str, Tensor], base_hash: str, folder: Path) -> None:
    """Raise ValueError unless the variant in ``folder`` was made from weights of that hash."""
    held = change.get(BASE_HASH)
    if held is None or held.dtype != torch.uint8 or bytes(held.tolist()).hex() != base_hash:
        raise ValueError(f"{folder} is a variant of other weights than {base_hash}")
