"""`video-motion`: videos for people. Frames are coded after one or two that were coded before.

::

    a frame that stands alone:  image-photo (:mod:`..image.photo`), the model that ``config.still`` names
    any other, with its references:
      search -> flows -> g_m -> m -> coded -> m_hat -> flows -> x_bar and C     of references, moved
      x, x_bar, C -> g_a -> y, times gain(q) -> coded -> y_hat -> g_s, C, x_bar -> x_hat
    m and y are each coded by a hyperprior of their own (entropy/hyperprior/prior.py), which is told q and whether
    there are two references, and knows nothing of other frames

One set of nets (:mod:`.motion_nets`) serves frames with one reference (P) and with two, earlier and later (B).
Probabilities depend on integers of the same frame alone, so every machine decodes the same integers; pixels and
features of references are float, so pixels may drift apart by a little between machines until the next frame that
stands alone. Pixels of references are those that are shown: rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...entropy.hyperprior.net import QUALITY_STEPS, Z_MAX
from ...entropy.hyperprior.prior import HyperPrior
from ...entropy.hyperprior.walk import CODE_MAX, Walk
from ..api import Tokenizer
from ..image.layers import STRIDE, channels_last
from ..image.photo import WINDOW as STILL_WINDOW
from ..image.photo import ImagePhoto, cut, pad_to_cells, quality_steps, rate_weight
from ..image.photo_nets import PATCH
from ..image.tiling import Tile, tiles
from ..precision import whole_float32
from ..tokens import Tokens
from ..variants import find_base
from .motion_nets import MotionNets, Reference, Seen, VideoMotionConfig
from .motion_records import (
    GUESSED,
    STANDS_ALONE,
    WINDOW,
    Record,
    grid_of,
    marked_alone,
    only,
    pack_record,
    read_records,
)
from .search import search

Pixels = npt.NDArray[np.uint8]
Walks = list[tuple[Tile, Walk]]
DEFAULT_QUALITY = 50.0
ALONE = 2.0  # lambda of a frame that stands alone, and that many others come after, over that of others
DOUBTFUL = 0.6  # part of its own detail that the references of a frame leave, from which on it is tried alone as well
HOPELESS = 1.0  # part of it from which on it is tried alone only
KINDS = 2  # of frames that the entropy models are told apart: with one reference, and with two
REACHES = ((2, 8), (4, 12))  # of the search: up to so many frames away; else
FARTHEST = 16


class MotionPrior(HyperPrior):
    """The entropy model of motion."""

    file = "motion.safetensors"


class Near(NamedTuple):
    """A reference of a frame. apart: frames from it to its reference, negative to an earlier one, never 0."""

    reference: Reference
    apart: int


class Alone(NamedTuple):
    """How a frame is coded if it stands alone. steps: quality in hundredths.  weight: its lambda over that of others of
    this quality."""

    steps: int
    weight: float


class Better(Protocol):
    """An encoder that finds better latents than the analysis net. steps: the quality in hundredths."""

    def alone(self, pixels: Pixels, latents: npt.NDArray[np.float32], walks: Walks, steps: int) -> Walks:
        """Codes of the windows of a frame that stands alone."""

    def after(self, x: Tensor, seen: Seen, apart: Tensor, y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """y ``[1, M, h, w]`` and z of a frame of which the references tell what is ``seen``."""


class VideoMotion(Tokenizer):
    """See the module's text. It makes files and no tokens: codes of a frame mean nothing without its references."""

    config_class = VideoMotionConfig
    # All kernels but those at pixels and flows; trained with these steps (train/video_motion.py).
    int8_weights = (
        "nets.hyper_analysis.", "nets.analysis.fine.", "nets.analysis.down.", "nets.analysis.coarse.",
        "nets.analysis.leave.", "nets.analysis.detail.", "nets.synthesis.enter.", "nets.synthesis.coarse.",
        "nets.synthesis.up.", "nets.synthesis.detail.", "nets.synthesis.fine.", "nets.motion_analysis.look.",
        "nets.motion_analysis.enter.", "nets.motion_analysis.fine.", "nets.motion_analysis.down.",
        "nets.motion_analysis.coarse.", "nets.motion_synthesis.enter.", "nets.motion_synthesis.coarse.",
        "nets.motion_synthesis.up.", "nets.motion_synthesis.mix.", "nets.motion_hyper_analysis.", "nets.context.enter.",
        "nets.context.fine.", "nets.context.blend.", "nets.context.down.", "nets.analysis_", "nets.synthesis_",
        "nets.features.", "nets.look.",
    )  # fmt: skip
    synthesis_weights = ()
    modality = "video"
    strides = (1, STRIDE, STRIDE)
    varies = ("quality",)
    rate_control = "quality"

    config: VideoMotionConfig
    entropy_hash: Tensor
    motion_hash: Tensor
    still_hash: Tensor

    def __init__(self, config: VideoMotionConfig | None = None, name: str = "video-motion") -> None:
        super().__init__(config or VideoMotionConfig(), name)
        self.nets = channels_last(MotionNets(self.config))
        for part in ("entropy", "motion", "still"):
            self.register_buffer(f"{part}_hash", torch.zeros(8, dtype=torch.uint8))
        self._priors: tuple[HyperPrior, MotionPrior] | None = None
        self._still: list[ImagePhoto] = []  # no module of this one: it has weights and a file of its own

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> VideoMotion:
        for still in self._still:
            still._apply(fn)
        return super()._apply(fn, recurse)

    # ---------------------------------------------------------------- parts

    @property
    def still(self) -> ImagePhoto:
        """The model of frames that stand alone. Raises ValueError if there is none yet."""
        if not self._still:
            raise ValueError(f"{self.name} lacks its model of still frames: load it with from_pretrained")
        return self._still[0]

    @property
    def priors(self) -> tuple[HyperPrior, MotionPrior]:
        """The entropy models of y and of m, on the device of the nets. Raises ValueError if there are none yet."""
        if self._priors is None:
            raise ValueError(f"{self.name} has no entropy models: load it with from_pretrained, or set_parts first")
        self._priors = self._priors[0].on(self.device), self._priors[1].on(self.device)
        return self._priors

    @property
    def entropy(self) -> HyperPrior:
        """The entropy model of y."""
        return self.priors[0]

    def set_parts(self, still: ImagePhoto, entropy: HyperPrior, motion: MotionPrior) -> None:
        """Give the model what it has beside its nets. Raises ValueError if it does not fit them."""
        config = self.config
        wanted = (config.latents, config.hyper, KINDS), (config.motion, config.motion_hyper, KINDS)
        if tuple((p.latents, p.hyper, p.kinds) for p in (entropy, motion)) != wanted:
            raise ValueError("the entropy models have other channels than the nets, or know other kinds of frames")
        self._still, self._priors = [still.to(self.device)], (entropy, motion)
        if [part.hash for part in self._priors] + [still.weights_hash] != self._hashes():
            self.weights_hash = ""

    def _hashes(self) -> list[str]:
        return [bytes(held.tolist()).hex() for held in (self.entropy_hash, self.motion_hash, self.still_hash)]

    def save_parts(self, folder: Path) -> None:
        for prior in self.priors:
            prior.save_pretrained(folder)
        found = [prior.hash for prior in self.priors] + [self.still.weights_hash]
        if not all(found):
            raise ValueError(f"{self.still.name} is in no file: save the model of still frames first")
        for held, own in zip((self.entropy_hash, self.motion_hash, self.still_hash), found, strict=True):
            held.copy_(torch.tensor(list(bytes.fromhex(own)), dtype=torch.uint8))

    def load_parts(self, folder: Path) -> None:
        still = ImagePhoto.from_pretrained(find_base(folder, self.config.still))
        self.set_parts(still, HyperPrior.from_pretrained(folder), MotionPrior.from_pretrained(folder))
        entropy, motion = self.priors
        if [entropy.hash, motion.hash, still.weights_hash] != self._hashes():
            raise ValueError(f"{folder} has another entropy model or {still.name} than its weights were made with")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Of z's channels, then of y's."""
        return (2 * Z_MAX + 1,) * self.config.hyper + (2 * CODE_MAX + 1,) * self.config.latents

    def encode(self, x: Tensor) -> Tokens:
        raise ValueError(f"{self.name} makes files and no tokens")

    def decode(self, tokens: Tokens) -> Tensor:
        raise ValueError(f"{self.name} makes files and no tokens")

    # ---------------------------------------------------------------- frames that stand alone

    def still_steps(self, steps: int, weight: float = ALONE) -> int:
        """The quality, in hundredths, of a frame that stands alone among others of that quality.

        weight: its lambda over theirs.
        """
        weights = self.config.rate_weights, self.still.config.rate_weights
        return round(QUALITY_STEPS * float(still_quality(np.array(steps / QUALITY_STEPS), *weights, weight)))

    @torch.no_grad()
    def encode_alone(
        self, pixels: Pixels, steps: int, better: Better | None = None, weight: float = ALONE
    ) -> tuple[bytes, Reference]:
        """A frame ``[H, W, 3]`` at a quality in hundredths: its bytes, and what it leaves to others."""
        own = self.still_steps(steps, weight)
        latents = self.still.analyse_tiled(torch.from_numpy(np.ascontiguousarray(pixels)))
        walks = self.still.quantise_windows(latents, own)
        if better is not None:
            walks = better.alone(pixels, latents, walks, own)
        data = pack_record(own, [self.still.entropy.payloads(walk, 1)[0] for _, walk in walks])
        for tile, walk in walks:
            cut(latents, tile)[:] = walk.latents
        return data, self._alone(latents, own, (pixels.shape[0], pixels.shape[1]))

    @torch.no_grad()
    def decode_alone(self, record: Record, size: tuple[int, int]) -> Reference:
        """Inverse of :meth:`encode_alone`. Raises ValueError for bytes that it cannot have made."""
        h, w = grid_of(size)
        if record.quality > QUALITY_STEPS:
            raise ValueError(f"a quality is 0 to {QUALITY_STEPS}")
        latents = np.empty((self.still.config.latents, h, w), dtype=np.float32)
        windows = list(tiles(h, w, 0, STILL_WINDOW))
        for tile, stream in zip(windows, record.streams, strict=True):
            walk = self.still.entropy.decompress([stream], extent(tile), record.quality, 1)
            cut(latents, tile)[:] = walk.latents
        return self._alone(latents, record.quality, size)

    def _alone(self, latents: npt.NDArray[np.float32], steps: int, size: tuple[int, int]) -> Reference:
        pixels = self.still.synthesise_tiled(latents, steps, size)
        return self.shown(pixels.numpy())

    @torch.no_grad()
    def shown(self, pixels: Pixels) -> Reference:
        """What a frame ``[H, W, 3]`` of which nothing else is known leaves to others."""
        with whole_float32(self.device):
            return self.nets.alone(self.padded(pixels))

    def padded(self, pixels: Pixels) -> Tensor:
        """``[1, 3, 16h, 16w]`` in [0, 1] on the device."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).permute(2, 0, 1)[None].float() / 255
        return pad_to_cells(x).contiguous(memory_format=torch.channels_last)

    # ---------------------------------------------------------------- frames with references

    @torch.no_grad()
    def encode_after(
        self, pixels: Pixels, steps: int, near: Sequence[Near], may_guess: bool = True, better: Better | None = None,
        alone: Alone | None = None,
    ) -> tuple[bytes, Reference]:  # fmt: skip
        """A frame ``[H, W, 3]`` after one reference or two, or alone if that costs less: its bytes, and what it leaves
        to others.

        Args: steps: quality in hundredths.  may_guess: whether a frame that its references make expect well enough may
              take two bytes.  better: finds other latents, which are taken if they are better.  alone: what the frame
              has if it stands alone, of quality ``steps`` by default.
        """
        x, (references, apart) = self.padded(pixels), self._references(near)
        quality = torch.tensor([steps / QUALITY_STEPS], device=self.device)
        with whole_float32(self.device):
            flows = self._search(x, near)
            expected = self.nets.expected(*references, apart)
            m = self.nets.motion(x, references, flows, expected, apart) * torch.exp(self.nets.motion_gain(quality))
            motion, m_hat = self._code(self.priors[1], self.nets.motion_hyper_analysis, m, steps, len(near) - 1)
            seen = self._see(m_hat, references, expected, apart, quality)
            left = left_over(x, seen.x)
            tries = []
            if left <= max(DOUBTFUL, HOPELESS):
                tries = self._tries(x, seen, apart, steps, motion, better=better)
        if left > DOUBTFUL:
            own = alone or Alone(steps, 1.0)
            data, found = self.encode_alone(pixels, own.steps, better, own.weight)
            tries.append((marked_alone(data), found))

        def cost(made: tuple[bytes, Reference]) -> float:
            return self._cost(x, made[1].x, made[0], quality)

        best = min(tries, key=cost)
        if may_guess and self._cost(x, rounded(seen.x), b"", quality) < cost(best):  # or a guess is no better, either
            best = min((pack_record(GUESSED), self.guess(near)), best, key=cost)
        return best

    def _tries(
        self, x: Tensor, seen: Seen, apart: Tensor, steps: int, motion: Sequence[bytes], better: Better | None
    ) -> list[tuple[bytes, Reference]]:
        """Records of a frame that comes after what is ``seen`` by its coded motion, and what they leave to others."""
        quality, kind = torch.tensor([steps / QUALITY_STEPS], device=self.device), int(apart[0, 1] != 0)
        y = self.nets.analyse(x, seen) * self.nets.gain(quality)
        latents: list[tuple[Tensor, Tensor | None]] = [(y, None)]
        if better is not None:
            latents.append(better.after(x, seen, apart, y, steps))
        tries = []
        for y, z in latents:
            streams, y_hat = self._code(self.priors[0], self.nets.hyper_analysis, y, steps, kind, z=z)
            pairs = [part for pair in zip(motion, streams, strict=True) for part in pair]
            tries.append((pack_record(steps, pairs), self._synthesise(y_hat, quality, seen, apart)))
        return tries

    @torch.no_grad()
    def decode_after(self, record: Record, near: Sequence[Near], size: tuple[int, int]) -> Reference:
        """Inverse of :meth:`encode_after`. Raises ValueError for bytes that it cannot have made."""
        if record.quality == GUESSED:
            return self.guess(near)
        if record.quality & STANDS_ALONE:
            return self.decode_alone(record._replace(quality=record.quality ^ STANDS_ALONE), size)
        if record.quality > QUALITY_STEPS:
            raise ValueError(f"a quality is 0 to {QUALITY_STEPS}")
        references, apart = self._references(near)
        quality = torch.tensor([record.quality / QUALITY_STEPS], device=self.device)
        m_hat, y_hat = (
            self._decode(prior, record.streams[i::2], (record.quality, len(near) - 1), grid_of(size))
            for prior, i in zip(self.priors[::-1], (0, 1), strict=True)
        )
        with whole_float32(self.device):
            seen = self._see(m_hat, references, self.nets.expected(*references, apart), apart, quality)
            return self._synthesise(y_hat, quality, seen, apart)

    @torch.no_grad()
    def guess(self, near: Sequence[Near]) -> Reference:
        """A frame of which nothing is known but its references: what they make expect if they move on as they did."""
        references, apart = self._references(near)
        h, w = near[0].reference.x.shape[2] // STRIDE, near[0].reference.x.shape[3] // STRIDE
        with whole_float32(self.device):
            m_hat = torch.zeros(1, self.config.motion, h, w, device=self.device)
            seen = self.nets.see(m_hat, references, self.nets.expected(*references, apart), apart)
            x = rounded(seen.x)
            return self.nets.reference(x, self.nets.alone(x).features, seen.flows, apart)

    def pixels_of(self, reference: Reference, size: tuple[int, int]) -> Pixels:
        """The frame ``[H, W, 3]`` that a reference shows."""
        x = reference.x[0, :, : size[0], : size[1]]
        found: Pixels = (x * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return found

    def _references(self, near: Sequence[Near]) -> tuple[tuple[Reference, Reference | None], Tensor]:
        """References and ``apart [1, 2]``."""
        if not 1 <= len(near) <= 2:
            raise ValueError(f"a frame has one reference or two, got {len(near)}")
        apart = torch.tensor([[float(n.apart) for n in near] + [0.0] * (2 - len(near))], device=self.device)
        return (near[0].reference, near[1].reference if len(near) > 1 else None), apart

    def _search(self, x: Tensor, near: Sequence[Near]) -> Tensor:
        flows = [search(x, n.reference.x, reach_of(n.apart)) for n in near]
        return torch.cat([*flows, *[torch.zeros_like(flows[0])] * (2 - len(near))], 1)

    def cost(self, pixels: Pixels, found: Reference, data: bytes, steps: int) -> float:
        """Of a frame ``[H, W, 3]`` that came back as ``found``, at a quality in hundredths: see :meth:`_cost`."""
        return self._cost(self.padded(pixels), found.x, data, torch.tensor([steps / QUALITY_STEPS], device=self.device))

    def _cost(self, x: Tensor, x_hat: Tensor, data: bytes, quality: Tensor) -> float:
        """Bits a pixel, and the distortion of 8-bit values in bits."""
        error = 255**2 * (x - x_hat).square().mean()
        return 8 * len(data) / x[0, 0].numel() + float(rate_weight(quality, self.config.rate_weights) * error)

    def _see(
        self, m_hat: Tensor, references: tuple[Reference, Reference | None], expected: Tensor, apart: Tensor,
        quality: Tensor,
    ) -> Seen:  # fmt: skip
        m = m_hat * torch.exp(self.nets.motion_inverse(quality))
        return self.nets.see(m, references, expected, apart)

    def _synthesise(self, y_hat: Tensor, quality: Tensor, seen: Seen, apart: Tensor) -> Reference:
        y = (y_hat * self.nets.inverse_gain(quality)).contiguous(memory_format=torch.channels_last)
        found = self.nets.synthesise(y, quality, seen, apart)
        return found._replace(x=rounded(found.x))

    def _code(
        self, prior: HyperPrior, hyper_analysis: nn.Module, y: Tensor, steps: int, kind: int, z: Tensor | None = None
    ) -> tuple[list[bytes], Tensor]:
        """Latents ``[1, C, h, w]`` in quantiser steps to a stream for each window, and as they come back.

        z: of a grid that is one window; what the analysis makes of y by default.
        """
        streams, held = [], np.empty(y.shape[1:], dtype=np.float32)
        for tile in tiles(y.shape[2], y.shape[3], 0, WINDOW):
            t, le, b, r = tile.core
            part = y[:, :, t:b, le:r].contiguous(memory_format=torch.channels_last)
            hyper = hyper_analysis(part) if z is None else z
            walk = prior.quantise(part[0].cpu().numpy(), hyper[0].cpu().numpy(), steps, kind=kind)
            cut(held, tile)[:] = walk.latents
            streams.append(prior.payloads(walk, 1)[0])
        return streams, torch.from_numpy(held)[None].to(self.device)

    def _decode(
        self, prior: HyperPrior, streams: Sequence[bytes], about: tuple[int, int], grid: tuple[int, int]
    ) -> Tensor:
        held = np.empty((prior.latents, *grid), dtype=np.float32)
        for tile, stream in zip(tiles(*grid, 0, WINDOW), streams, strict=True):
            cut(held, tile)[:] = prior.decompress([stream], extent(tile), about[0], 1, about[1]).latents
        return torch.from_numpy(held)[None].to(self.device)


class LowDelayEncoder:
    """A video frame by frame: each comes after the one before it, every ``period``-th stands alone.

    >>> encoder, decoder = LowDelayEncoder(model, 40), LowDelayDecoder(model, (height, width))
    >>> shown = [decoder.push(encoder.push(pixels)) for pixels in frames]
    """

    def __init__(self, model: VideoMotion, quality: float = DEFAULT_QUALITY, period: int = 64) -> None:
        if period < 1:
            raise ValueError(f"a period has a frame at least, got {period}")
        self.model, self.steps, self.period = model, quality_steps(quality), period
        self.count = 0
        self.last: Reference | None = None

    def push(self, pixels: Pixels) -> bytes:
        """The bytes of the next frame ``[H, W, 3]``: a byte that says whether it stands alone, then its record."""
        alone = self.last is None or self.count % self.period == 0
        self.count += 1
        if alone or self.last is None:
            data, self.last = self.model.encode_alone(pixels, self.steps)
        else:
            data, self.last = self.model.encode_after(pixels, self.steps, [Near(self.last, -1)])
        return bytes([alone]) + data


class LowDelayDecoder:
    """Frames of a :class:`LowDelayEncoder`. size: height and width."""

    def __init__(self, model: VideoMotion, size: tuple[int, int]) -> None:
        self.model, self.size = model, size
        self.last: Reference | None = None

    def push(self, data: bytes | None) -> Pixels:
        """The next frame ``[H, W, 3]``. data: None if it was lost, which costs the frame, not the stream.

        Raises: ValueError for damaged bytes, and for a first frame that does not stand alone.
        """
        if data is None:
            if self.last is None:
                raise ValueError("nothing is known before the first frame")
            self.last = self.model.guess([Near(self.last, -1)])
            return self.model.pixels_of(self.last, self.size)
        alone = data[:1] == b"\1"
        record = only(read_records(data[1:], [alone], self.size))
        if alone:
            self.last = self.model.decode_alone(record, self.size)
        elif self.last is None:
            raise ValueError("the first frame does not stand alone")
        else:
            self.last = self.model.decode_after(record, [Near(self.last, -1)], self.size)
        return self.model.pixels_of(self.last, self.size)


def extent(tile: Tile) -> tuple[int, int]:
    t, le, b, r = tile.core
    return b - t, r - le


def rounded(x: Tensor) -> Tensor:
    """Pixels as they are shown, in 8 bits; in [0, 1]."""
    return (x.clamp(0, 1) * 255).round() / 255


def left_over(x: Tensor, x_bar: Tensor) -> float:
    """What is left of a frame when what is expected is taken away, over its own detail within 8 x 8 pixels."""
    cells = F.interpolate(F.avg_pool2d(x, PATCH), scale_factor=PATCH)
    return float((x - x_bar).abs().mean() / (x - cells).abs().mean().clamp_min(1e-6))


def still_quality(
    quality: npt.NDArray[np.floating], own: Sequence[float], still: Sequence[float], weight: float = ALONE
) -> npt.NDArray[np.float64]:
    """Qualities in 0..1 of frames that stand alone among others of such a quality.

    Args: own, still: rate weights of the nets and of the model of frames that stand alone, at even steps.
          weight: lambda of such a frame over that of others.
    """
    wanted = np.interp(quality, np.linspace(0, 1, len(own)), np.log(own)) + np.log(weight)
    return np.asarray(np.interp(wanted, np.log(still), np.linspace(0, 1, len(still))))


def reach_of(apart: int) -> int:
    """Of the search for a reference so many frames away."""
    return next((reach for most, reach in REACHES if abs(apart) <= most), FARTHEST)
