"""Better codes for one sound, found by gradient descent: `codec encode a.wav --effort`. Bitstream-compatible.

The analysis net gives latents that are good on average over sounds. From there those of a block descend on how far what
is decoded is from the samples, to the ear::

    samples -> g_a -> z -> nearest codewords -> g_s -> distance: mel, levels in bands of hearing, spectra, samples
                      '--- codes as ever, of the best that it came to

Slopes pass through the quantizer as if it were not there, so every step sees what a decoder would make, and the best
codes of all steps are taken: they are never worse than those of the analysis net, by this distance.

Source: Campos et al. 2019, "Content adaptive optimization for neural image compression", arXiv:1906.01223; straight
through: van den Oord et al. 2017, arXiv:1711.00937, section 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...tokenizers.audio.base import AudioTokenizer
from ...tokenizers.audio.grvq import FRAME, RATE, AudioGRVQ
from ..errors import UsageError
from ..metrics.hearing import hearing_distance
from ..metrics.spectra import mel_distance, stft_distance

LEARNING = 0.08  # rate of learning, as a part of the root mean square of a signal's latents
BETAS = (0.8, 0.95)
MEL, HEARING, STFT, WAVEFORM = 30.0, 18.0, 1.0, 20.0  # weights of the distances, about as in training
UNHEARD = 2  # frames at the end of a block that do not count: the next block's sound lies over theirs


def sound_distance(x: Tensor, x_hat: Tensor) -> Tensor:
    """What descends, ``[B, n]`` at 24 kHz each to ``[B]``."""
    return (
        MEL * mel_distance(x, x_hat, RATE)
        + HEARING * hearing_distance(x, x_hat, RATE)
        + STFT * stft_distance(x, x_hat)
        + WAVEFORM * (x - x_hat).abs().mean(1)
    )


def check_refinable(model: AudioTokenizer) -> AudioGRVQ:
    """Raises UsageError if a model has no latents that this could refine."""
    if not isinstance(model, AudioGRVQ):
        raise UsageError(f"effort is not an option of {model.name}")
    return model


def refiner_of(model: AudioTokenizer, levels: int, n_steps: int) -> SoundRefiner:
    """See :class:`SoundRefiner`. Raises UsageError as :func:`check_refinable`."""
    return SoundRefiner(check_refinable(model), levels, n_steps)


class SoundRefiner:
    """Refines the latents of signals that come block by block.

    Args:    levels: of the codes whose decoded sound is compared.  n_steps: gradient steps, for each block.
    Memory:  some 55 MB for each second of each signal of a block.
    """

    def __init__(self, model: AudioGRVQ, levels: int, n_steps: int) -> None:
        self.model, self.levels, self.n_steps = model, levels, n_steps
        self.waiting: Tensor | None = None  # samples [B, 1, n] whose latents are still to come
        self.before: Tensor | None = None  # decoded latents [B, D, t] just before the next block

    def push(self, x: Tensor) -> None:
        """The next samples ``[B, 1, n]``, those that the encoder gets as well."""
        x = x.clone()
        self.waiting = x if self.waiting is None else torch.cat([self.waiting, x], 2)

    def refine(self, z: Tensor) -> Tensor:
        """The next latents ``[B, D, t]`` to better ones; silence stands for samples that the last frame lacks."""
        assert self.waiting is not None
        n = z.shape[2] * FRAME
        x, self.waiting = self.waiting[:, 0, :n], self.waiting[:, :, n:]
        x = torch.nn.functional.pad(x, (0, n - x.shape[1]))
        with torch.inference_mode(False), torch.enable_grad():
            found = self.descend(z.clone(), x.clone())
        decoded = self.decoded(found)
        self.before = decoded if self.before is None else torch.cat([self.before, decoded], 2)
        self.before = self.before[:, :, max(0, self.before.shape[2] - self.model.reach) :]
        return found

    @torch.no_grad()
    def decoded(self, z: Tensor) -> Tensor:
        """Latents to the sum of their codewords."""
        decoded: Tensor = self.model.quantizer.decode(self.model.codes(z, self.levels))
        return decoded

    def descend(self, z: Tensor, x: Tensor) -> Tensor:
        """Latents ``[B, D, t]`` whose codes sound more like ``x [B, 320 t]``."""
        before = z[:, :, :0] if self.before is None else self.before.clone()
        skip, end = before.shape[2] * FRAME, x.shape[1] - UNHEARD * FRAME
        end = end if end > 0 else x.shape[1]
        scale = LEARNING * z.square().mean((1, 2), keepdim=True).sqrt()
        moved = torch.zeros_like(z, requires_grad=True)
        optimizer = torch.optim.Adam([moved], 1.0, BETAS)
        best, least = z, z.new_full((len(z),), torch.inf)
        for step in range(self.n_steps + 1):
            now = z + scale * moved
            z_q = now + (self.decoded(now.detach()) - now).detach()
            x_hat = self.model.synthesise(torch.cat([before, z_q], 2))[:, 0, skip:]
            distance = sound_distance(x[:, :end], x_hat[:, :end])
            better = distance.detach() < least
            best = torch.where(better[:, None, None], now.detach(), best)
            least = torch.where(better, distance.detach(), least)
            if step == self.n_steps:
                break
            (moved.grad,) = torch.autograd.grad(distance.sum(), [moved])
            optimizer.param_groups[0]["lr"] = 1 - step / (self.n_steps + 1)
            optimizer.step()
        return best
