"""The nets of video-motion that compute in floats: motion, what references tell of a frame, and its pixels.

::

    flows, stride 8, of a search (search.py) -> g_m -> m, stride 16: what the references do not tell of the motion
    m_hat -> flows -> references' pixels (bicubic) and features, moved -> blended: x_bar, and C at strides 8 and 16
    x - x_bar, C -> g_a -> y;   x_hat = x_bar + g_s(y_hat, C);   features of the frame from the end of g_s

Pixels and features as context: DCVC (Li et al. 2021, arXiv:2109.15047) and DCVC-DC (2023, arXiv:2302.14402). The nets
at strides 8 and 16 are those of image-photo (:mod:`..image.photo_nets`): g_a sees the frame and x_bar through kernels
that begin as opposites, and C begins as zero, so an untrained model is image-photo on what x_bar leaves over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..image.photo_nets import PATCH, Dial, ImagePhotoConfig, PhotoNets, blocks
from .search import moved

PIXELS = 3 * PATCH**2  # of a patch
FLOWS = 4  # right and down, to the first and to the second reference
HAAR = 4 * FLOWS  # a 2 x 2 block of flows as its mean and three differences
REFINED = 2.0  # pixels that a unit of the last layer moves by
MOTION_GAINS = (1.0, 4.0)  # steps of the quantiser in a pixel at quality 0 and 100, before training


@dataclass(frozen=True)
class VideoMotionConfig:
    """Sizes of the nets of a VideoMotion."""

    still: str = "image-photo-2"  # the model of frames that stand alone: a release, or a folder beside the model's own
    channels: tuple[int, ...] = (256, 384)  # width at strides 8 and 16, as of image-photo
    analysis_blocks: tuple[int, ...] = (6, 3)
    synthesis_blocks: tuple[int, ...] = (4, 3)
    latents: int = 320  # M, channels of y
    detail: int = 64  # how many of them are those of stride 8
    hyper: int = 128
    hyper_width: int = 192
    features: int = 64  # that a frame leaves to those after it, stride 8
    context: tuple[int, ...] = (128, 192)  # width of C at strides 8 and 16
    context_blocks: int = 3
    motion: int = 24  # channels of m
    motion_hyper: int = 16
    motion_width: int = 96  # of the nets of motion
    rate_weights: tuple[float, ...] = (0.0004, 0.0141421, 1.2)  # as of image-photo

    def __post_init__(self) -> None:
        if len(self.context) != 2:
            raise ValueError("context has two widths, for strides 8 and 16")
        if self.motion < HAAR:
            raise ValueError(f"motion has {HAAR} channels at least, got {self.motion}")
        _ = self.photo  # which checks its own

    @property
    def photo(self) -> ImagePhotoConfig:
        """Of the parts that are those of image-photo."""
        return ImagePhotoConfig(
            channels=self.channels,
            analysis_blocks=self.analysis_blocks,
            synthesis_blocks=self.synthesis_blocks,
            latents=self.latents,
            detail=self.detail,
            hyper=self.hyper,
            hyper_width=self.hyper_width,
            rate_weights=self.rate_weights,
        )


class Reference(NamedTuple):
    """What a coded frame leaves to those that refer to it.

    Attributes:
        x: ``[B, 3, H, W]`` in [0, 1].
        features: ``[B, features, H/8, W/8]``.
        velocity: ``[B, 2, H/8, W/8]``, pixels right and down from a frame to the next, as far as it is known.
        known: ``[B, 1, 1, 1]``, 1 if it is, 0 of a frame that stands alone.
    """

    x: Tensor
    features: Tensor
    velocity: Tensor
    known: Tensor

    def rows(self, which: slice) -> Reference:
        """Some of the batch."""
        return Reference(*(part[which] for part in self))

    @staticmethod
    def joined(parts: Sequence[Reference]) -> Reference:
        """One batch of several."""
        return Reference(*(torch.cat(own) for own in zip(*parts, strict=True)))


class Seen(NamedTuple):
    """What references tell of a frame once its motion is known.

    Attributes:
        flows: ``[B, 4, H/8, W/8]``, pixels.
        x: x_bar, ``[B, 3, H, W]``.
        fine, coarse: C at strides 8 and 16.
    """

    flows: Tensor
    x: Tensor
    fine: Tensor
    coarse: Tensor


def haar(x: Tensor) -> Tensor:
    """2 x 2 blocks as their mean and three differences, ``[B, C, 2h, 2w] -> [B, 4C, h, w]``, all means first."""
    a, b, c, d = x[:, :, 0::2, 0::2], x[:, :, 0::2, 1::2], x[:, :, 1::2, 0::2], x[:, :, 1::2, 1::2]
    return torch.cat([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d], 1) / 4


def unhaar(x: Tensor) -> Tensor:
    """Inverse of :func:`haar`."""
    s, h, v, d = x.chunk(4, 1)
    blocks = torch.stack([s + h + v + d, s - h + v - d, s + h - v - d, s - h - v + d], 2)  # [B, C, 4, h, w]
    return F.pixel_shuffle(blocks.flatten(1, 2), 2)


def up8(flow: Tensor) -> Tensor:
    """Flows of stride 8 for every pixel."""
    return F.interpolate(flow, scale_factor=PATCH, mode="bilinear", align_corners=False)


def silent(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer, which says nothing until it is trained."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class MotionAnalysis(nn.Module):
    """g_m: a frame, its references, the flows of a search and the expected ones to m before its gain."""

    def __init__(self, config: VideoMotionConfig) -> None:
        super().__init__()
        width = config.motion_width
        self.motion = config.motion
        self.look = nn.Conv2d(3 * PIXELS, width, 1)
        self.enter = nn.Conv2d(width + 2 * FLOWS + 1, width, 3, padding=1)
        self.fine = nn.Sequential(*blocks(width, 2))
        self.change = silent(nn.Conv2d(width, FLOWS, 3, padding=1))
        self.down = nn.Conv2d(width, width, 2, stride=2)
        self.coarse = nn.Sequential(*blocks(width, 2))
        self.leave = silent(nn.Conv2d(width, config.motion, 3, padding=1))

    def forward(
        self, x: Tensor, others: tuple[Tensor, Tensor], flows: Tensor, expected: Tensor, both: Tensor
    ) -> Tensor:
        """others: pixels of the references.  both: ``[B, 1, 1, 1]``, 0 where there is no second one."""
        left = x - moved(others[0], up8(flows[:, :2])), (x - moved(others[1], up8(flows[:, 2:]))) * both
        patches = [F.pixel_unshuffle(part, PATCH) for part in (4 * left[0], 4 * left[1], 2 * x - 1)]
        look = self.look(torch.cat(patches, 1))
        one = both.expand(-1, -1, *flows.shape[2:])
        given = torch.cat([flows / PATCH, (flows - expected) / PATCH, one], 1).to(look.dtype)
        hidden = self.fine(self.enter(torch.cat([look, given], 1)))
        found = flows - expected + present(self.change(hidden).float(), both)
        more = self.leave(self.coarse(F.gelu(self.down(hidden), approximate="tanh"))).float()
        return F.pad(haar(found), (0, 0, 0, 0, 0, self.motion - HAAR)) + more


def present(flows: Tensor, both: Tensor) -> Tensor:
    """Flows ``[B, 4, h, w]`` without those to a second reference that is not there."""
    return torch.cat([flows[:, :2], flows[:, 2:] * both], 1)


class MotionSynthesis(nn.Module):
    """Flows ``[B, 4, 2h, 2w]`` from m_hat ``[B, motion, h, w]`` and the expected ones."""

    def __init__(self, config: VideoMotionConfig) -> None:
        super().__init__()
        width = config.motion_width
        self.enter = nn.Conv2d(config.motion, width, 3, padding=1)
        self.coarse = nn.Sequential(*blocks(width, 2))
        self.up = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.PixelShuffle(2))
        self.mix = nn.Conv2d(width // 2 + 2 * FLOWS + 1, width // 2, 3, padding=1)
        self.leave = silent(nn.Conv2d(width // 2, FLOWS, 3, padding=1))

    def forward(self, m: Tensor, expected: Tensor, both: Tensor) -> Tensor:
        rough = present(unhaar(m[:, :HAAR]), both) + expected
        hidden = self.up(self.coarse(self.enter(m / 4)))
        one = both.expand(-1, -1, *rough.shape[2:])
        given = torch.cat([rough / PATCH, expected / PATCH, one], 1).to(hidden.dtype)
        hidden = F.gelu(self.mix(torch.cat([hidden, given], 1)), approximate="tanh")
        return rough + present(self.leave(hidden).float() * REFINED, both)


class Context(nn.Module):
    """What moved references tell of a frame."""

    def __init__(self, config: VideoMotionConfig) -> None:
        super().__init__()
        fine, coarse = config.context
        self.enter = nn.Conv2d(2 * (PIXELS + config.features) + FLOWS + 1, fine, 1)
        self.fine = nn.Sequential(*blocks(fine, config.context_blocks))
        self.blend = silent(nn.Conv2d(fine, PATCH**2, 1))
        self.down = nn.Conv2d(fine, coarse, 2, stride=2)

    def forward(self, first: Reference, second: Reference | None, flows: Tensor, both: Tensor) -> Seen:
        pixels, features = _moved(first, flows[:, :2])
        others = [torch.zeros_like(pixels), torch.zeros_like(features)]
        if second is not None:
            others = [part * both for part in _moved(second, flows[:, 2:])]
        patches = [F.pixel_unshuffle(2 * x - 1, PATCH) for x in (pixels, others[0])]
        one = both.expand(-1, -1, *flows.shape[2:])
        given = [*patches, features, others[1], flows / PATCH, one]
        fine = self.fine(self.enter(torch.cat(given, 1)))
        if second is not None:
            share = torch.sigmoid(F.pixel_shuffle(self.blend(fine).float(), PATCH)) * both
            pixels = torch.lerp(pixels, others[0], share.expand_as(pixels))
        return Seen(flows, pixels, fine, self.down(fine))


def _moved(reference: Reference, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels and features of a reference where a frame has them."""
    return moved(reference.x, up8(flow), "bicubic"), moved(reference.features, flow / PATCH)


class MotionNets(PhotoNets):
    """All nets that compute in float, and the gains. Frames are whole cells of 16 pixels along both axes."""

    def __init__(self, config: VideoMotionConfig) -> None:
        super().__init__(config.photo)
        (c8, c16), (fine, coarse) = config.channels, config.context
        width = config.motion_width
        self.motion_analysis, self.motion_synthesis = MotionAnalysis(config), MotionSynthesis(config)
        self.motion_hyper_analysis = nn.Sequential(
            nn.Conv2d(config.motion, width, 3, padding=1), nn.GELU("tanh"),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.GELU("tanh"),
            nn.Conv2d(width, config.motion_hyper, 3, stride=2, padding=1),
        )  # fmt: skip
        self.motion_gain = Dial(config.motion, *map(math.log, MOTION_GAINS))
        self.motion_inverse = Dial(config.motion, *(-math.log(gain) for gain in MOTION_GAINS))
        self.context = Context(config)
        self.seen_enter = nn.Conv2d(PIXELS, c8, 3, padding=1, bias=False)
        self.analysis_fine, self.analysis_coarse = silent(nn.Conv2d(fine, c8, 1)), silent(nn.Conv2d(coarse, c16, 1))
        self.synthesis_fine, self.synthesis_coarse = silent(nn.Conv2d(fine, c8, 1)), silent(nn.Conv2d(coarse, c16, 1))
        self.features = nn.Conv2d(c8, config.features, 1)
        self.look = nn.Conv2d(PIXELS, config.features, 3, padding=1)
        self.oppose()

    def oppose(self) -> None:
        """Let the analysis see x_bar as the opposite of a frame."""
        with torch.no_grad():
            self.seen_enter.weight.copy_(-self.analysis.enter.weight)

    def alone(self, x: Tensor) -> Reference:
        """What a frame of which only pixels are known leaves to others."""
        b, _, h, w = x.shape
        features = self.look(F.pixel_unshuffle(2 * x - 1, PATCH)).float()
        return Reference(x, features, x.new_zeros(b, 2, h // PATCH, w // PATCH), x.new_zeros(b, 1, 1, 1))

    def expected(self, first: Reference, second: Reference | None, apart: Tensor) -> Tensor:
        """Flows ``[B, 4, H/8, W/8]`` that go on as the references moved.

        Args: apart: ``[B, 2]``, frames from a frame to its references, negative to earlier ones; 0 if there is none.
        """
        velocity, known = first.velocity * first.known, first.known
        if second is not None:
            own = second.known * _both(apart)
            velocity, known = velocity + second.velocity * own, known + own
        velocity = velocity / known.clamp_min(1)
        scale = apart[:, :, None, None, None]
        return (velocity[:, None] * scale).flatten(1, 2)

    def motion(
        self, x: Tensor, references: tuple[Reference, Reference | None], flows: Tensor, expected: Tensor, apart: Tensor
    ) -> Tensor:
        """m before its gain, ``[B, motion, h, w]``. flows: of a search."""
        first, second = references
        other = first if second is None else second
        return self.motion_analysis(x, (first.x, other.x), flows, expected, _both(apart))

    def see(self, m: Tensor, references: tuple[Reference, Reference | None], expected: Tensor, apart: Tensor) -> Seen:
        """What the references tell of a frame. m: after its inverse gain."""
        both = _both(apart)
        flows = self.motion_synthesis(m, expected, both)
        return self.context(*references, flows, both)

    def analyse(self, x: Tensor, seen: Seen) -> Tensor:
        """y before its gain, ``[B, M, h, w]``."""
        known = self.seen_enter(F.pixel_unshuffle(2 * seen.x - 1, PATCH)) + self.analysis_fine(seen.fine)
        return self.analysis(2 * x - 1, (known, self.analysis_coarse(seen.coarse)))

    def synthesise(self, y: Tensor, quality: Tensor, seen: Seen, apart: Tensor) -> Reference:
        """The frame, its pixels not clamped. y: after its inverse gain."""
        beside = self.synthesis_fine(seen.fine), self.synthesis_coarse(seen.coarse)
        fine = self.synthesis.features(y, quality, beside)
        x = seen.x + self.synthesis.leave(fine).float() / 2
        return self.reference(x, self.features(fine).float(), seen.flows, apart)

    def reference(self, x: Tensor, features: Tensor, flows: Tensor, apart: Tensor) -> Reference:
        """A frame that was coded with flows."""
        velocity = flows[:, :2] / apart[:, 0, None, None, None]
        return Reference(x, features, velocity, torch.ones_like(apart[:, 0, None, None, None]))


def _both(apart: Tensor) -> Tensor:
    """``[B, 1, 1, 1]``, 0 where there is no second reference."""
    return (apart[:, 1] != 0).to(apart.dtype)[:, None, None, None]
