"""A small patch discriminator and what keeps it from wrecking the training it is meant to help."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class PatchDiscriminator(nn.Module):
    """Says for every patch of about 70 pixels how real it looks (pix2pix, arXiv:1611.07004, section 3.2.2).

    Input ``[B, 3, H, W]`` in [0, 1]; output logits ``[B, 1, H/8, W/8]``. Spectral norm on every layer bounds its slope.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for i in range(3):
            layers += [
                spectral_norm(nn.Conv2d(channels, width << i, 4, stride=2, padding=1)),
                nn.LeakyReLU(0.2),
            ]
            channels = width << i
        layers += [spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)), nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(channels, 1, 3, padding=1))]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(2 * x - 1)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator (arXiv:1705.02894, eq. (3)); logits of any shape."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def adaptive_weight(reference: Tensor, adversarial: Tensor, last: nn.Parameter, largest: float = 10.0) -> Tensor:
    """Weight that gives the adversarial loss the gradient norm of the others at the last layer, at most ``largest``.

    Source: VQGAN, arXiv:2012.09841, eq. (7). We differ: the bound is 10 instead of 10^4; a discriminator that has won
    sends vanishing gradients, and a weight without a tight bound turns them into noise. That is the usual explosion.
    """
    (g_reference,) = torch.autograd.grad(reference, last, retain_graph=True)
    (g_adversarial,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (g_reference.norm() / (g_adversarial.norm() + 1e-6)).clamp(0, largest).detach()


class AdversarialGuard:
    """Holds the adversarial term back while the discriminator is far ahead.

    Keeps a running mean of the share of patches that the discriminator gets right. Above ``won`` the term is switched
    off until the share falls below ``fair`` again; the discriminator waits meanwhile, so the two meet again.
    """

    def __init__(self, won: float = 0.95, fair: float = 0.85, momentum: float = 0.95) -> None:
        self.won, self.fair, self.momentum = won, fair, momentum
        self.accuracy = 0.5
        self.holding = False
        self.held_steps = 0

    def update(self, accuracy: float) -> bool:
        """Feed the accuracy of one step, get whether the adversarial term may act in the next."""
        self.accuracy = self.momentum * self.accuracy + (1 - self.momentum) * accuracy
        self.holding = self.accuracy > (self.fair if self.holding else self.won)
        self.held_steps += self.holding
        return not self.holding
