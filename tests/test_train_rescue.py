"""A run whose gradients are no longer finite goes back to good weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokodec.train.graphed import GraphedStep, GraphedUpdate
from tokodec.train.loop import optimizers_of
from tokodec.train.rescue import LOOK, LOST, Rescue

EDGE = 1.5  # beyond which the loss below has no finite gradient


class Cliff(nn.Module):
    """A loss whose slope leads over an edge, behind which no step helps."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((16, 16), 1.0))
        self.register_buffer("seen", torch.zeros(()))

    seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        far = self.w.mean() > EDGE
        return torch.where(far, torch.inf, -1.0) * (self.w * x).mean()


def test_steps_that_are_all_lost_lead_back() -> None:
    net, x = Cliff(), torch.ones(16, 16)
    optim = {"lr": 0.1, "betas": [0.9, 0.99], "muon": 0, "weight_decay": 0.0}
    optimizers = optimizers_of(net.named_parameters(), optim, lambda name, p: False)
    compute = GraphedStep(net, net, (x,), graphs=False)
    update = GraphedUpdate(compute, optimizers, 1.0)
    rescue = Rescue(net, optimizers)
    found = []
    for step in range(1, 200):
        compute((x,))
        if rescue.needed(step, update()):
            over = net.w.mean().item()
            rescue.back()
            found.append((step, over))
            if len(found) == 2:
                break
            assert float(net.w.mean().detach()) == 1.0
            assert float(net.seen) == 0.0
            assert [group["base"] for o in optimizers for group in o.param_groups] == [0.05]
            assert not any(v.any() for o in optimizers for s in o.state.values() for v in s.values() if v.ndim)
    (first, over), _ = found
    assert over > EDGE
    assert first >= LOST
    assert first % LOOK == 0


def test_weights_are_only_kept_if_no_step_was_lost() -> None:
    net = nn.Linear(2, 2)
    rescue = Rescue(net, [])
    before = net.weight.detach().clone()
    for norm, kept in ((torch.tensor(torch.nan), False), (torch.tensor(1.0), True)):
        with torch.no_grad():
            net.weight.add_(1)
        assert not rescue.needed(1, norm)
        rescue.keep()
        rescue.back()
        assert torch.equal(net.weight, before + 1 if kept else before)


def test_single_losses_in_between_are_none() -> None:
    net = nn.Linear(2, 2)
    rescue = Rescue(net, [])
    norms = ([torch.tensor(torch.inf)] * (LOST - 1) + [torch.tensor(1.0)]) * 4
    assert not any(rescue.needed(step, norm) for step, norm in enumerate(norms, start=1))
