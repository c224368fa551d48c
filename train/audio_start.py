"""Where the training of an audio tokenizer starts: as a classical transform codec, or from a trained model.

The nets are linear until their residual blocks, which start as the identity, learn something. So they can begin as an
MDCT of every block, principal components of the frames, and codebooks of k-means: sounds come back at once, and
training does not spend its first hours on finding a transform. (With random weights the waveform was not found at all
in the first thousand steps, `RUNS.md`.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..tokenizers.audio.grvq import FRAME, HOP, STRIDE, WINDOW, AudioGRVQ, Blocks
from ..tokenizers.quantize.vq import kmeans

FLATTEN = 0.6  # power of a band's spread that is divided out: what components and codebooks see is flatter by that
LOUDNESS = 3.0  # weight of the logarithm of loudness beside the bands
FRAMES = 40_000  # of sounds, that components and codewords are learned from
SMALL = 0.1  # of the usual random weights, for what the transform does not need


def mdct_basis() -> Tensor:
    """``[HOP, 2 HOP]``: rows of the orthonormal MDCT with a sine window (Princen and Bradley 1987)."""
    n, k = torch.arange(2 * HOP, dtype=torch.float64), torch.arange(HOP, dtype=torch.float64)[:, None]
    window = torch.sin(math.pi * (n + 0.5) / (2 * HOP))
    found = math.sqrt(2 / HOP) * window * torch.cos(math.pi / HOP * (n + 0.5 + HOP / 2) * (k + 0.5))
    return found.float()


@torch.no_grad()
def start_as_transform(model: AudioGRVQ, sounds: Sequence[Tensor], frames: int = FRAMES, seed: int = 0) -> None:
    """Set the weights of an untrained model.

    Args:
        sounds: ``[n]`` int16 each, at the model's rate, to learn components and codewords from.
        frames: that are looked at, as many of every sound.

    Raises: ValueError for a model whose nets are too narrow: a layer must hold the latents, and the blocks' layers as
            many bands as each other.
    """
    config = model.config
    fine, coarse = config.analysis_channels
    bands = min(HOP, fine - 1, config.synthesis_channels[1] - 1)
    if config.dim > min(coarse, config.synthesis_channels[0], STRIDE * (bands + 1)):
        raise ValueError("a start as a transform wants layers at least as wide as the latents")
    generator = torch.Generator().manual_seed(seed)
    first, steps, last = [m for m in model.analysis if isinstance(m, nn.Conv1d)]
    enter, spread_out, head = [m for m in model.synthesis if isinstance(m, nn.Conv1d)]
    assert isinstance(first, Blocks)

    # Analysis: an MDCT of the last two blocks.
    basis = mdct_basis()[:bands]
    first.weight.mul_(SMALL)
    first.weight[:bands] = 0
    first.weight[:bands, :, -2] = basis[:, :HOP]
    first.weight[:bands, :, -1] = basis[:, HOP:]

    # What it makes of the sounds, flattened: the components of a frame.
    x = _parts(sounds, frames, generator)
    h = first(x.to(model.device)[None, None])[0].cpu()  # [fine, 2 t]
    values = torch.cat([h[:bands], h[-1:]])  # [bands + 1, 2 t]
    scale = values.std(1).clamp_min(1e-4) ** -FLATTEN
    scale[-1] = LOUDNESS / values[-1].std()
    mean = values.mean(1)
    mean[:-1] = 0
    flat = ((values - mean[:, None]) * scale[:, None]).unflatten(1, (-1, STRIDE))  # [bands + 1, t, 2]
    rows = flat.permute(1, 2, 0).flatten(1)  # [t, 2 (bands + 1)]: first half, second half
    _, vectors = torch.linalg.eigh(rows.T.double() @ rows.double())
    components = vectors.flip(1)[:, : config.dim].float().T  # [dim, 2 (bands + 1)], strongest first
    # Every group of channels gets a fair share of them.
    groups = config.groups
    components = torch.cat([components[g::groups] for g in range(groups)])

    halves = components.unflatten(1, (STRIDE, bands + 1))  # [dim, 2, bands + 1]
    biases = []
    for layer in (steps, last, enter, spread_out, head):
        layer.weight.mul_(SMALL)
        assert layer.bias is not None
        biases.append(layer.bias.zero_())
    d = config.dim
    steps.weight[:d] = 0
    for half in range(STRIDE):
        tap = steps.weight.shape[2] - STRIDE + half
        steps.weight[:d, :bands, tap] = (halves[:, half, :bands] * scale[:bands]).to(steps.weight)
        steps.weight[:d, -1, tap] = (halves[:, half, -1] * scale[-1]).to(steps.weight)
        biases[0][:d] -= (halves[:, half, -1] * scale[-1] * mean[-1]).to(steps.weight)
    last.weight[:, :d] = 0
    last.weight[:, :d, -1] = torch.eye(d)

    # Synthesis: the same backwards.
    enter.weight[:d] = 0
    enter.weight[:d, :, -1] = torch.eye(d)
    width = config.synthesis_channels[1]
    for half in range(STRIDE):
        own = spread_out.weight[half * width : (half + 1) * width]
        own[:bands] = 0
        own[-1] = 0
        own[:bands, :d, 0] = (halves[:, half, :bands] / scale[:bands]).T.to(own)
        own[-1, :d, 0] = (halves[:, half, -1] / scale[-1]).to(own)
        biases[3][(half + 1) * width - 1] = mean[-1]
    head.weight[: 2 * HOP] = 0
    head.weight[: 2 * HOP, :bands, 0] = basis.T.to(head.weight)
    head.weight[2 * HOP : WINDOW, :bands] = 0
    head.weight[:, width - 1] = 0
    head.weight[WINDOW] = 0
    head.weight[WINDOW, width - 1, 0] = 1

    start_levels(model, x)


@torch.no_grad()
def start_levels(model: AudioGRVQ, x: Tensor, first: int = 0) -> None:
    """Set the codebooks from level ``first`` on to the k-means of what the levels before leave of a sound ``[n]``."""
    z = model.analysis(x.to(model.device)[None, None])[0].T  # [t, dim]
    model.quantizer.start(z, kmeans, first)


@torch.no_grad()
def start_from(
    model: AudioGRVQ, released: AudioGRVQ, sounds: Sequence[Tensor], frames: int = FRAMES, seed: int = 0
) -> None:
    """Set the weights to those of a trained model, which may have fewer levels.

    Args:   sounds, frames: as of :func:`start_as_transform`, for the levels that are new.
    Raises: ValueError if the models differ in more than that.
    """
    sizes, before = model.config.codebook_sizes, released.config.codebook_sizes
    if replace(model.config, codebook_sizes=before) != released.config or sizes[: len(before)] != before:
        raise ValueError(f"{released.name} has other sizes than the recipe")
    model.load_state_dict(released.state_dict(), strict=False)
    if len(sizes) > len(before):
        start_levels(model, _parts(sounds, frames, torch.Generator().manual_seed(seed)), len(before))


def _parts(sounds: Sequence[Tensor], frames: int, generator: torch.Generator) -> Tensor:
    """So many frames in all, as many of every sound, float ``[n]`` in [-1, 1]."""
    return torch.cat([_part(s, frames // len(sounds) + 1, generator) for s in sounds if len(s) >= FRAME])


def _part(sound: Tensor, frames: int, generator: torch.Generator) -> Tensor:
    """Some frames in a row, float in [-1, 1]."""
    n = min(frames, len(sound) // FRAME) * FRAME
    begin = int(torch.randint(len(sound) - n + 1, (), generator=generator))
    return sound[begin : begin + n].float() / 32768
