"""What a run does when it no longer learns: back to weights that were good, and on at half the learning rates.

Steps whose gradients are not finite change nothing (:func:`~.loop.step_where_finite`). Once the weights are such that
no step has others, a run would spend the rest of its time so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .state import restore

LOST = 32  # steps in a row without finite gradients
LOOK = 16  # steps from one look at how many to the next: a look waits for the device
SLOWER = 0.5  # of the learning rates after it


class Rescue:
    """Good weights of ``net`` and the optimizers that change them, see the module's text.

    All processes have the same gradients, and so come to the same results.
    """

    def __init__(self, net: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.net, self.optimizers = net, optimizers
        self.good: dict[str, Tensor] = {}
        self.lost, self.missed = torch.zeros(2, dtype=torch.int64, device=next(net.parameters()).device)
        self.keep()

    def state_dict(self) -> dict[str, Any]:
        """Of :mod:`.state`."""
        return {"good": self.good, "lost": self.lost, "missed": self.missed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore(self.state_dict(), state)

    @torch.no_grad()
    def keep(self) -> None:
        """The weights as they are now are good, if no step was lost since they were kept last."""
        if not int(self.missed):
            self.good = {name: value.clone() for name, value in self.net.state_dict().items()}
        self.missed = torch.zeros_like(self.missed)

    def needed(self, step: int, norm: Tensor) -> bool:
        """Whether the last steps were all lost. norm: of the gradients of this one."""
        lost = (~norm.isfinite()).to(self.lost)
        self.lost, self.missed = (self.lost + 1) * lost, self.missed + lost
        return step % LOOK == 0 and int(self.lost) >= LOST

    @torch.no_grad()
    def back(self) -> None:
        """Put the good weights back, in place: recorded steps go on. What the optimizers remember is forgotten."""
        self.net.load_state_dict(self.good)
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    if isinstance(value, Tensor) and value.ndim:  # a count of steps has none
                        value.zero_()
            for group in optimizer.param_groups:
                group["base"] *= SLOWER
        self.lost, self.missed = torch.zeros_like(self.lost), torch.zeros_like(self.missed)
