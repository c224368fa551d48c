"""Models with CompressAI's contract, and checkpoints with its names, that need no CompressAI."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokodec.tokenizers.image.transforms import ARCHITECTURES


class Bottleneck(nn.Module):
    """A logistic density of each channel, and quantiles that a loss of their own moves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(channels, 1, 1))
        self.quantiles = nn.Parameter(torch.tensor([-10.0, 0.5, 10.0]).repeat(channels, 1, 1))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        y_hat = y + torch.rand_like(y) - 0.5 if self.training else y.round()
        at = y_hat - self.place
        mass = torch.sigmoid(at + 0.5) - torch.sigmoid(at - 0.5)
        return y_hat, mass.clamp_min(1e-9)

    def loss(self) -> Tensor:
        return (self.quantiles[:, 0, 1] - self.place.detach()[:, 0, 0]).abs().sum()


class Tiny(nn.Module):
    """Two convolutions around a bottleneck; what of CompressAI's contract training uses."""

    def __init__(self, M: int = 6) -> None:
        super().__init__()
        self.g_a = nn.Conv2d(3, M, 16, 16)
        self.g_s = nn.ConvTranspose2d(M, 3, 16, 16)
        self.entropy_bottleneck = Bottleneck(M)
        self.updates = 0

    def forward(self, x: Tensor) -> dict[str, Any]:
        y_hat, likelihoods = self.entropy_bottleneck(4 * self.g_a(x))
        return {"x_hat": self.g_s(y_hat), "likelihoods": {"y": likelihoods}}

    def aux_loss(self) -> Tensor:
        return self.entropy_bottleneck.loss()

    def update(self, scale_table: Any = None, force: bool = False) -> bool:
        self.updates += 1
        return True


class Halved(nn.Module):
    """A criterion that gives a number."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, output: dict[str, Any], target: Tensor) -> Tensor:
        bits = -torch.log2(output["likelihoods"]["y"]).sum() / target[:, 0].numel()
        return self.weight * (output["x_hat"] - target).abs().mean() + bits / 2


class Nothing(nn.Module):
    """Keeps to no contract."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Any:
        return self.only(x)


def disturbed(net: Any, by: float = 0.05) -> Any:
    """Random weights that are no zeros and no identities."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(by * torch.randn_like(p))
    return net.eval()


def checkpoint(name: str = "mbt2018-mean", n: int = 8, m: int = 12) -> dict[str, Tensor]:
    """A state dict as CompressAI has it, with buffers that hold no weights."""
    torch.manual_seed(1)
    nets = disturbed(nn.ModuleDict(dict(zip(("g_a", "g_s", "h_a"), ARCHITECTURES[name].make(n, m), strict=True))))
    extra = {
        "g_a.1.beta_reparam.pedestal": torch.zeros(1),
        "h_s.0.weight": torch.zeros(3),
        "g_a.1.x.bound": torch.ones(1),
    }
    return {**nets.state_dict(), **extra}
