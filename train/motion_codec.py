"""The codec of `video-motion` while it is trained, and the clips under way that it is trained on.

A step codes a part of every clip in its batch, and the next step goes on where it ended. Some clips advance by whole
groups, whose frames are coded level by level (:mod:`..tokenizers.video.hierarchy`), all of a level in one pass; the
others by as many single frames as there are passes, each after the one before. So a few passes train frames with one
reference and with two, near and far. Gradients go through all frames of a step, not from step to step (truncated
back-propagation through time).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..entropy.context.net import rounded_once
from ..entropy.hyperprior.net import QUALITY_STEPS, HyperNet
from ..entropy.hyperprior.prior import HyperPrior
from ..entropy.hyperprior.walk import Walk
from ..tokenizers.video.hierarchy import Between, between
from ..tokenizers.video.motion import MotionPrior, reach_of, rounded, still_quality
from ..tokenizers.video.motion_nets import MotionNets, Reference
from ..tokenizers.video.search import search
from .data.video import ClipStore
from .photo import CodeCounts, PhotoCodec
from .state import Attributes


class Part(NamedTuple):
    """What a step codes. Rows are clips: first those that advance by groups, then those that advance by frames.

    Attributes:
        group: ``[G, n, 3, S, S]`` in [0, 1].  chain: ``[C, passes, 3, S, S]``.
        start: ``[G + C, 3, S, S]``, the frame before, as decoded, of rows that begin.  begins: ``[G + C]``, 1 if so.
        quality: ``[G + C]`` in 0..1.  drop: ``[G + C]``, how much less a level down the hierarchy.
    """

    group: Tensor
    chain: Tensor
    start: Tensor
    begins: Tensor
    quality: Tensor
    drop: Tensor


class Pass(NamedTuple):
    """Frames that were coded together.

    Attributes: x, x_hat, x_bar: ``[B, 3, S, S]``.  quality: ``[B]``.  y_bits, m_bits: ``[B]``.
    """

    x: Tensor
    x_hat: Tensor
    x_bar: Tensor
    quality: Tensor
    y_bits: Tensor
    m_bits: Tensor


def levels_of(n: int) -> list[list[Between]]:
    """The frames between two that are ``n`` apart, by level."""
    frames = between(0, n)
    depth = max((b.level for b in frames), default=0)
    return [[b for b in frames if b.level == level] for level in range(1, depth + 1)]


class MotionCodec(nn.Module):
    """Everything that is trained, as one module. Frames are multiples of 64 pixels along both axes."""

    def __init__(self, nets: MotionNets, entropy: HyperNet, motion: HyperNet) -> None:
        super().__init__()
        self.nets, self.entropy, self.motion = nets, entropy, motion

    def forward(self, part: Part, held: Reference, rounding: bool = False) -> tuple[list[Pass], Reference]:
        """Code a part. held: what rows that go on left; returns the passes, and what rows leave now."""
        with rounded_once(self):
            return self._coded(part, held, rounding)

    def _coded(self, part: Part, held: Reference, rounding: bool) -> tuple[list[Pass], Reference]:
        n, n_groups = part.group.shape[1], len(part.group)
        first = self.nets.alone(part.start)
        begins = part.begins[:, None, None, None] > 0.5
        state = Reference(*(torch.where(begins, new, old) for new, old in zip(first, held, strict=True)))
        known = {0: state.rows(slice(0, n_groups))}
        last = state.rows(slice(n_groups, None))
        one = Between(n, 0, 0, 0)
        passes = []
        for k, level in enumerate([[one], *levels_of(n)]):
            x = torch.cat([*(part.group[:, b.frame - 1] for b in level), part.chain[:, k]])
            references = (
                Reference.joined([*(known[b.earlier] for b in level), last]),
                Reference.joined([*(known[b.later] for b in level), last]),
            )
            apart = [(b.earlier - b.frame, b.later - b.frame if b.later else 0) for b in level]
            rows = [torch.full((n_groups,), float(v), device=x.device) for pair in apart for v in pair]
            alone = torch.zeros(len(part.chain), device=x.device)
            columns = [torch.cat([*rows[i::2], alone - 1 if i == 0 else alone]) for i in (0, 1)]
            drop = part.quality[:n_groups] - k * part.drop[:n_groups]
            quality = torch.cat([*([drop] * len(level)), part.quality[n_groups:]]).clamp(0, 1)
            farthest = max(abs(v) for pair in apart for v in pair)
            done, coded = self.frames(x, references, torch.stack(columns, 1), quality, (reach_of(farthest), rounding))
            passes.append(done)
            for i, b in enumerate(level):
                known[b.frame] = coded.rows(slice(i * n_groups, (i + 1) * n_groups))
            last = coded.rows(slice(len(level) * n_groups, None))
        return passes, Reference.joined([known[n], last])

    def frames(
        self, x: Tensor, references: tuple[Reference, Reference], apart: Tensor, quality: Tensor,
        how: tuple[int, bool],
    ) -> tuple[Pass, Reference]:  # fmt: skip
        """Code frames ``[B, 3, S, S]``. how: reach of the search, and whether the entropy models round."""
        nets, (reach, rounding) = self.nets, how
        kind, steps = (apart[:, 1] != 0).long(), (quality * QUALITY_STEPS).round().long()
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            twice, known = torch.cat([x, x]), torch.cat([own.x for own in references])
            flows = torch.cat(search(twice, known.detach(), reach).chunk(2), 1)
            flows = torch.cat([flows[:, :2], flows[:, 2:] * kind[:, None, None, None]], 1)
        expected = nets.expected(*references, apart)
        m = nets.motion(x, references, flows, expected, apart)
        m, m_bits = self._code(self.motion, nets.motion_hyper_analysis, m, (nets.motion_gain, nets.motion_inverse),
                               (quality, steps, kind, rounding))  # fmt: skip
        seen = nets.see(m, references, expected, apart)
        y = nets.analyse(x, seen)
        y, y_bits = self._code(self.entropy, nets.hyper_analysis, y, (nets.log_gain, nets.log_inverse),
                               (quality, steps, kind, rounding))  # fmt: skip
        found = nets.synthesise(y, quality, seen, apart)
        done = Pass(x, found.x, seen.x, quality, y_bits=y_bits, m_bits=m_bits)
        return done, found._replace(x=found.x.clamp(0, 1))

    @staticmethod
    def _code(
        net: HyperNet, hyper_analysis: nn.Module, y: Tensor, gains: tuple[nn.Module, nn.Module],
        about: tuple[Tensor, Tensor, Tensor, bool],
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Latents ``[B, C, h, w]`` as they come back, and their bits ``[B]``."""
        quality, steps, kind, rounding = about
        with torch.autocast(y.device.type, enabled=False):
            y = y.float() * torch.exp(gains[0](quality))
        z = hyper_analysis(y)
        with torch.autocast(y.device.type, enabled=False):
            rows = (part.float().permute(0, 2, 3, 1) for part in (y, z))
            y_hat, y_bits, z_bits = net(*rows, steps, rounding, kind=kind)
            y_hat = y_hat.permute(0, 3, 1, 2) * torch.exp(gains[1](quality))
        return y_hat, y_bits.sum(1) + z_bits


UNDER_WAY = ("random", "left", "at", "quality", "drop", "clips", "first")  # what a state holds of streams


class Streams:
    """Clips under way.

    Args:
        store: of the clips.  still: codes their first frames, see :meth:`starts`.
        rows: clips that advance by groups, and by frames.  n: frames of a group.
        weights: rate weights of the codec, and of ``still``.  drop: most that the quality falls with a level.
    """

    def __init__(
        self, store: ClipStore, still: Callable[[Tensor, Tensor], Tensor], rows: tuple[int, int], n: int,
        weights: tuple[tuple[float, ...], tuple[float, ...]], drop: float, seed: int,
    ) -> None:  # fmt: skip
        self.store, self.still, self.rows, self.n, self.weights, self.most = store, still, rows, n, weights, drop
        self.passes = 1 + len(levels_of(n))
        self.random = np.random.default_rng(seed)
        total, size = sum(rows), store.size
        self.steps = np.array([n] * rows[0] + [self.passes] * rows[1])  # frames of each row in a step
        self.left = np.zeros(total, dtype=np.int64)  # steps of each row until another clip begins
        self.at = np.zeros(total, dtype=np.int64)
        self.quality, self.drop = np.zeros(total), np.zeros(total)
        device = store.device
        self.clips = torch.zeros(total, store.frames, 3, size, size, dtype=torch.uint8, device=device)
        self.first = torch.zeros(total, 3, size, size, device=device)
        self.stock: list[tuple[Tensor, Tensor, float]] = []

    def state_dict(self) -> dict[str, Any]:
        """Of :mod:`.state`; that of the store is not among it."""
        return Attributes(self, *UNDER_WAY).state_dict() | {"stock": [list(own) for own in self.stock]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        Attributes(self, *UNDER_WAY).load_state_dict(state)
        device = self.clips.device
        self.stock = [(clip.to(device), first.to(device), quality) for clip, first, quality in state["stock"]]

    def starts(self) -> None:
        """Draw clips and code their first frames, as many as there are rows: in one batch, which is what is cheap."""
        x = self.store.batch(len(self.left)).transpose(1, 2)  # [B, T, 3, S, S]
        quality = self.random.random(len(x))
        own = torch.from_numpy(still_quality(quality, *self.weights)).float().to(x.device)
        first = self.still(x[:, 0].contiguous(memory_format=torch.channels_last), own)
        clips = (x * 255).round().byte()
        self.stock += list(zip(clips, first, quality.tolist(), strict=True))

    def next(self) -> Part:
        """The part of the next step."""
        begins = self.left == 0
        for row in np.flatnonzero(begins):
            if not self.stock:
                self.starts()
            clip, first, self.quality[row] = self.stock.pop()
            self.clips[row], self.first[row] = clip, first
            self.at[row] = 0
            self.drop[row] = self.most * self.random.random()
            self.left[row] = self.random.integers(1, (self.store.frames - 1) // self.steps[row] + 1)
        n_groups, device = self.rows[0], self.clips.device
        at = torch.from_numpy(self.at).to(device)
        every = torch.arange(len(at), device=device)[:, None]
        frames = at[:, None] + 1 + torch.arange(max(self.n, self.passes), device=device)
        group = self.clips[every[:n_groups], frames[:n_groups, : self.n]].float() / 255
        chain = self.clips[every[n_groups:], frames[n_groups:, : self.passes]].float() / 255
        self.at += self.steps
        self.left -= 1
        told = (begins, self.quality, self.drop)
        return Part(group, chain, self.first, *(torch.from_numpy(v.astype(np.float32)).to(device) for v in told))


class Still:
    """The model of frames that stand alone, frozen: pictures and qualities to decoded pictures, and to their bits."""

    def __init__(self, codec: PhotoCodec, bf16: bool) -> None:
        self.codec, self.bf16 = codec.eval().requires_grad_(False), bf16

    @torch.no_grad()
    def coded(self, x: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """``x [B, 3, H, W]``, multiples of 64, to pictures and bits ``[B]``."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            x_hat, bits = self.codec(x, quality)
        return rounded(x_hat), bits

    def __call__(self, x: Tensor, quality: Tensor) -> Tensor:
        return self.coded(x, quality)[0]


class CountedPrior(HyperPrior):
    """An entropy model that counts what it codes."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.counts = CodeCounts(self.hyper)

    def quantise(self, *args: Any, **more: Any) -> Walk:
        walk = super().quantise(*args, **more)
        self.counts.add(walk)
        return walk


class CountedMotion(CountedPrior, MotionPrior):
    """Likewise, of motion."""
