"""Whether weights are still what they were: cheap enough to ask each time that tokens are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

SAMPLES = 8  # numbers of a tensor that are looked at


class Stamp:
    """What weights were at one moment: where they lay, how often they were written to, and some of their numbers.

    PyTorch counts writes in place (optimizers, `load_state_dict`, indexing), but not those through ``.data``, of
    replayed CUDA graphs or of other programs: these are noticed if they change one of ``SAMPLES`` numbers, evenly
    spaced, of some tensor. Not noticed is a change of a few numbers in one of these ways, say of one row of a table.

    Cost: less than a millisecond; on a GPU it waits for the device.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._places = {name: _place(t) for name, t in weights.items()}
        self._views = [_view(t) for t in weights.values() if _is_sampled(t)]
        self._numbers = self._read()

    def holds(self, weights: Mapping[str, Tensor]) -> bool:
        """Whether these are the same weights, unchanged as far as can be told."""
        if weights.keys() != self._places.keys():
            return False
        if any(_place(t) != self._places[name] for name, t in weights.items()):
            return False
        return torch.equal(self._read(), self._numbers)  # the places are the same, so the views are theirs

    def _read(self) -> Tensor:
        return torch.cat(self._views).view(torch.int32) if self._views else torch.zeros(0)  # bits: a NaN is like itself


def samples(weights: Iterable[Tensor]) -> list[Tensor]:
    """Some numbers of every tensor, on the CPU: the same ones wherever and in whatever layout it lies."""
    found = []
    for t in weights:
        places = torch.linspace(0, max(0, t.numel() - 1), min(SAMPLES, t.numel()), dtype=torch.float64).long()
        cells: list[Tensor] = []
        for side in reversed(t.shape):  # torch.unravel_index would import SymPy, which takes half a second
            cells.insert(0, places % max(1, side))
            places = places // max(1, side)
        found.append(t.detach()[tuple(cells)].cpu() if t.ndim else t.detach().cpu())
    return found


def _is_sampled(t: Tensor) -> bool:
    return type(t) in (Tensor, nn.Parameter) and t.dtype == torch.float32 and t.numel() > 0 and not t.is_meta


def _view(t: Tensor) -> Tensor:
    """Some numbers of a tensor, evenly spaced in its memory, as long as that is its."""
    count = min(SAMPLES, t.numel())
    return t.detach().as_strided((count,), (max(1, (t.numel() - 1) // max(1, count - 1)),), t.storage_offset())


def _place(t: Tensor) -> object:
    """Type, shape, address and number of writes; equal to nothing where these are not known."""
    if type(t) not in (Tensor, nn.Parameter) or t.is_meta:  # a tensor that stands for parts elsewhere, or for none
        return object()
    return t.dtype, t.shape, t.stride(), t.data_ptr(), None if t.is_inference() else t._version
