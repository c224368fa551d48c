"""What building a network may allocate: its `config.json` is believed only as far as there are weights.

A configuration of a few bytes can ask for layers of any size, which would be allocated before the first comparison with
the weights file. Within :class:`Budget` the functions that make tensors are counted before they run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GROWTH, SPARE = 2, 1 << 22  # elements that may be made: a multiple of those that are there, and some
CALLS, SPARE_CALLS = 2, 1 << 10  # tensors that may be made, for each that is there, and some
MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.eye, torch.arange)


class Budget(TorchFunctionMode):
    """Refuse to make more tensors, or larger ones, than weights of this size can need.

    Raises: ValueError in the code within, before anything over the bound is allocated.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.elements = GROWTH * sum(tensor.numel() for tensor in state.values()) + SPARE
        self.calls = CALLS * len(state) + SPARE_CALLS

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MAKERS:
            self.calls -= 1
            self.elements -= _elements(func, args, kwargs)
            if min(self.calls, self.elements) < 0:
                raise ValueError("the config asks for a larger network than there are weights")
        return func(*args, **kwargs)


def _elements(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Elements of what one of ``MAKERS`` is about to make."""
    if func is torch.arange:
        ends = [n for n in (*args, *kwargs.values()) if isinstance(n, int | float) and not isinstance(n, bool)]
        return int(max(map(abs, ends), default=0))  # with steps of one or more
    size = kwargs.get("size", kwargs.get("n", args[0] if args else 0))
    if func is torch.eye:
        return int(size) * int(kwargs.get("m", args[1] if len(args) > 1 else size))
    if isinstance(size, int):
        size = [n for n in args if isinstance(n, int)] or [size]
    return math.prod(int(n) for n in size)
