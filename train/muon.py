"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

``torch.optim.Muon`` takes matrices only and orthogonalises one after another; ours takes convolutions too (a kernel is
the matrix [out, in * taps]) and all matrices of one shape at once, which is what makes it cheap for small nets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Quintic iteration that pushes all singular values to about 1; coefficients of the reference implementation.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


@torch.no_grad()
def orthogonal(x: Tensor) -> Tensor:
    """The nearest (semi-)orthogonal matrices to ``x [n, rows, columns]``, nearly."""
    a, b, c = NEWTON_SCHULZ
    turned = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if turned else x
    x = x.bfloat16() if x.is_cuda else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if turned else x


class Muon(torch.optim.Optimizer):
    """Muon for weights of two and more dimensions; steps have the size of AdamW's at the same learning rate.

    The scale ``0.2 sqrt(max(rows, columns))`` is that of Liu et al. 2025 (arXiv:2502.16982). A rate that is a tensor
    may change between the replays of a CUDA graph. A step at which ``found_inf`` is a tensor of 1 changes nothing.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float | Tensor, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        counts = 1 - getattr(self, "found_inf", 0.0)
        for group in self.param_groups:
            rate, pull = counts * group["lr"], counts * (1 - group["momentum"])
            shapes: dict[tuple[int, int], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault((p.shape[0], p[0].numel()), []).append(p)
            for (rows, columns), members in shapes.items():
                grads = [p.grad for p in members if p.grad is not None]
                momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in members]
                torch._foreach_mul_(momenta, 1 - pull)
                torch._foreach_add_(momenta, torch._foreach_mul(grads, pull))
                nesterov = torch._foreach_lerp(grads, momenta, group["momentum"])
                update = orthogonal(torch.stack([g.reshape(rows, columns) for g in nesterov]))
                size = 0.2 * max(rows, columns) ** 0.5 * rate
                if group["weight_decay"]:
                    torch._foreach_mul_(members, 1 - rate * group["weight_decay"])
                updates = (size * update).to(members[0].dtype).unbind()
                torch._foreach_sub_(members, [u.reshape(p.shape) for p, u in zip(members, updates, strict=True)])
