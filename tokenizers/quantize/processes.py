"""One codebook in several processes: what each of them counts or draws becomes that of all. Alone, nothing happens."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor


def several() -> bool:
    """Whether this process is one of several that train together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and torch.distributed.get_world_size() > 1


def summed(x: Tensor) -> Tensor:
    """The sum over all processes of a tensor of the same shape in each."""
    if not several():
        return x
    total = x.clone()
    torch.distributed.all_reduce(total)
    return total


@torch.no_grad()
def agree(*tensors: Tensor) -> None:
    """Make tensors those of the first process, in place."""
    if several():
        for x in tensors:
            first = x.detach().clone(memory_format=torch.contiguous_format)
            torch.distributed.broadcast(first, 0)
            x.copy_(first)
