"""`video-grid`: a clip becomes a grid of residual SimVQ codes, one cell for 16 x 16 pixels of 4 frames.

::

    x [B,3,T,H,W] -> g_a -> z_e [B,D,t,h,w] -> residual SimVQ -> codes [B,K,t,h,w]     t = 1 + ceil((T-1)/4)
    codes[:, :k] -> sum of codewords z_q [B,D,t,h,w] -> g_s -> x_hat [B,3,T,H,W]        any prefix k = 1..K

    frames      0 | 1 2 3 4 | 5 6 7 8 | ...
    cells       0 |    1    |    2    | ...      a cell sees frames up to its last one, a frame cells up to its own

The first frame stands alone, so a picture is a clip of one frame (MAGVIT-v2, Yu et al. 2023, arXiv:2310.05737). Codes
depend on pixels only, never on decoded ones: nothing drifts, and a clip that is cut into parts, each of which begins
anew, can be decoded from any of them.

In space the nets are those of `image-grid`, frame by frame and with its locality rule; between their blocks are causal
ones over time (factorised as in R(2+1)D, Tran et al. 2018, arXiv:1711.11248), which start as the identity. So
:meth:`VideoGrid.start_from` makes a tokenizer of the codes of every fourth frame of a picture tokenizer, and training
begins there.

A cell keeps the codes that it had in the group before where others are hardly better (`hold`), so that what rests costs
next to nothing and does not flicker.

Frames go through the nets group by group, whoever calls: the codes of a clip are the same to the bit whether it comes
as a whole or in parts, and memory does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..api import Output
from ..image.grid import ImageGrid
from ..image.layers import PATCH, STRIDE, ResidualBlock, ResidualGrid, channels_last
from ..inputs import check_pixels, to_clips
from ..precision import whole_float32
from ..quantizers import Section, checked_section, make_quantizer
from ..tokens import Tokens
from .base import VideoTokenizer
from .causal import CausalNet, PerFrame, State, TimeBlock, TimeDown, TimeUp
from .tiling import FrameDecoder, FrameEncoder

GROUP = 4  # frames of a cell; the first cell of a clip has one
FIRST = 1
NEW = 0.25  # how large the weights of channels begin that a picture tokenizer did not have


@dataclass(frozen=True)
class VideoGridConfig:
    """Sizes of a :class:`VideoGrid`."""

    channels: tuple[int, ...] = (96, 192, 320)  # width at strides 4, 8, 16, as image-grid's
    analysis_blocks: tuple[int, ...] = (2, 4, 2)  # residual blocks over space at strides 4, 8, 16
    analysis_time: tuple[int, ...] = (2, 2)  # blocks over time at strides 8 and 16
    synthesis_blocks: tuple[int, ...] = (2, 4, 3)
    synthesis_time: tuple[int, ...] = (2, 3)
    dim: int = 48  # D of the codewords
    codebook_sizes: tuple[int, ...] = (2048, 2048, *5 * (1024,))  # N of every level, coarse to fine
    quantizer: Section | None = None  # see ..quantizers; None: rvq. dim and codebook_sizes become its own

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.analysis_blocks) == len(self.synthesis_blocks) == 3:
            raise ValueError("channels and blocks have three entries each, for strides 4, 8 and 16")
        for space, time in ((self.analysis_blocks, self.analysis_time), (self.synthesis_blocks, self.synthesis_time)):
            if len(time) != 2 or not all(0 <= n <= most for n, most in zip(time, space[1:], strict=True)):
                raise ValueError("blocks over time have two entries, for strides 8 and 16, at most those over space")
        if not self.codebook_sizes:
            raise ValueError("at least one codebook is needed")
        if self.quantizer is not None:
            object.__setattr__(self, "quantizer", checked_section(self.quantizer))


def stage(channels: int, space: int, time: int) -> list[nn.Module]:
    """``space`` residual blocks over space, with ``time`` blocks over time spread evenly between them."""
    layers: list[nn.Module] = []
    for i in range(space):
        layers.append(PerFrame(ResidualBlock(channels)))
        if (i + 1) * time // space > i * time // space:
            layers.append(TimeBlock(channels))
    return layers


def halves(n: int, more_first: bool) -> tuple[int, int]:
    """n in two parts that differ by one at most."""
    more, less = n - n // 2, n // 2
    return (more, less) if more_first else (less, more)


def analysis_net(config: VideoGridConfig) -> CausalNet:
    """g_a: ``[B, 1 + 4 n, 16h, 16w, 3] -> [B, 1 + n, h, w, D]``."""
    c4, c8, c16 = config.channels
    n4, n8, n16 = config.analysis_blocks
    t8, t16 = config.analysis_time
    (before, after), (t_before, t_after) = halves(n16, False), halves(t16, False)
    return CausalNet(
        [
            PerFrame(
                nn.PixelUnshuffle(PATCH),
                nn.Conv2d(3 * PATCH**2, c4, 3, padding=1),
                *[ResidualBlock(c4) for _ in range(n4)],
                nn.Conv2d(c4, c8, 2, stride=2),
            ),
            *stage(c8, n8, t8),
            TimeDown(c8),  # [B, 1 + 2 n, 2h, 2w, c8]
            PerFrame(nn.Conv2d(c8, c16, 2, stride=2)),
            *stage(c16, before, t_before),
            TimeDown(c16),  # [B, 1 + n, h, w, c16]
            *stage(c16, after, t_after),
            PerFrame(nn.Conv2d(c16, config.dim, 1)),
        ]
    )


def synthesis_net(config: VideoGridConfig) -> CausalNet:
    """g_s: ``[B, 1 + n, h, w, D] -> [B, 1 + 4 n, 16h, 16w, 3]``."""
    c4, c8, c16 = config.channels
    n4, n8, n16 = config.synthesis_blocks
    t8, t16 = config.synthesis_time
    (before, after), (t_before, t_after) = halves(n16, True), halves(t16, True)
    return CausalNet(
        [
            PerFrame(nn.Conv2d(config.dim, c16, 3, padding=1)),
            *stage(c16, before, t_before),
            TimeUp(c16),  # [B, 1 + 2 n, h, w, c16]
            *stage(c16, after, t_after),
            PerFrame(nn.Conv2d(c16, 4 * c8, 1), nn.PixelShuffle(2)),
            TimeUp(c8),  # [B, 1 + 4 n, 2h, 2w, c8]
            *stage(c8, n8, t8),
            PerFrame(
                nn.Conv2d(c8, 4 * c4, 1),
                nn.PixelShuffle(2),
                *[ResidualBlock(c4) for _ in range(n4)],
                nn.Conv2d(c4, 3 * PATCH**2, 3, padding=1),
                nn.PixelShuffle(PATCH),
            ),
        ]
    )


class VideoGrid(ResidualGrid, VideoTokenizer):
    """Causal tokenizer of clips whose rate is a number of levels of its quantizer; see the module's text."""

    config_class = VideoGridConfig
    int8_weights = ("analysis.", "synthesis.")
    int8_largest = 11
    int8_codebooks = 11
    strides = (GROUP, STRIDE, STRIDE)
    first = FIRST
    jumps = True

    config: VideoGridConfig
    hold: Tensor

    def __init__(self, config: VideoGridConfig | None = None, name: str = "video-grid") -> None:
        super().__init__(config or VideoGridConfig(), name)
        c = self.config
        quantizer = make_quantizer(c.quantizer or "rvq", dim=c.dim, codebook_sizes=c.codebook_sizes)
        self.config = replace(c, dim=quantizer.dim, codebook_sizes=quantizer.codebook_sizes)
        self.analysis = analysis_net(self.config)
        self.quantizer = quantizer
        self.synthesis = synthesis_net(self.config)
        # Squared distances by which a cell's last codes may be worse than others; released with the weights.
        self.register_buffer("hold", torch.zeros(len(self.config.codebook_sizes)))
        channels_last(self)

    # ---------------------------------------------------------------- whole clips

    def forward(self, x: Tensor) -> Output:
        """Clips ``[B, 3, T, H, W]`` through the nets with straight-through gradients, as a whole: see
        :meth:`..api.Tokenizer.forward`."""
        x = to_clips(x, self.device)
        frames, height, width = x.shape[2:]
        last = x[:, :, -1:].expand(-1, -1, (FIRST - frames) % GROUP, -1, -1)
        padded = F.pad(torch.cat([x, last], 2), (0, -width % STRIDE, 0, -height % STRIDE, 0, 0), mode="replicate")
        z_e = self.analysis((2 * padded - 1).permute(0, 2, 3, 4, 1).contiguous())
        out = self.quantizer(z_e.permute(0, 4, 1, 2, 3))
        x_hat = self.synthesis(out.z_q.permute(0, 2, 3, 4, 1).contiguous()).permute(0, 4, 1, 2, 3)
        return Output.of(((x_hat.float() + 1) / 2)[:, :, :frames, :height, :width], out)

    @torch.no_grad()
    def encode(self, x: Tensor, levels: int | None = None, rate: float | None = None) -> Tokens:
        """Clips ``[B, 3, T, H, W]`` to tokens ``[B, levels, 1 + ceil((T-1)/4), ceil(H/16), ceil(W/16)]``.

        Args:    x: of any floating-point type in [0, 1], or uint8.  levels: 1..K, sets the rate; all by default.
                 rate: frames a second.
        Raises:  ValueError for other shapes, types or ranges (see :mod:`..inputs`), or an empty clip.
        """
        x = to_clips(x, self.device)
        check_pixels(x)
        return Tokens(self.encode_codes(x, levels), self.spec(tuple(x.shape[2:]), sample_rate=rate))

    @torch.no_grad()
    def encode_codes(self, x: Tensor, levels: int | None = None) -> Tensor:
        """Codes of :meth:`encode`, by tensors alone; values of ``x`` are not looked at."""
        x = to_clips(x, self.device)
        stream = StreamingVideoEncoder(self, levels)
        return torch.cat([stream.quantize(stream.latents(x)), stream.finish()], 2)

    @torch.no_grad()
    def decode_codes(self, codes: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Codes ``[B, k, t, h, w]`` to clips ``[B, 3, T, H, W]`` in [0, 1], by tensors alone.

        Args:    size: (T, H, W); of whole cells, ``(1 + 4 (t - 1), 16 h, 16 w)``, if None.
        """
        frames, height, width = (None, None, None) if size is None else size
        return StreamingVideoDecoder(self, height, width).push(codes)[:, :, :frames]

    def encoder(self, height: int, width: int, levels: int | None = None, errors: bool = False) -> FrameEncoder:
        return FrameEncoder(self, height, width, levels, errors)

    def decoder(self, height: int, width: int) -> FrameDecoder:
        return FrameDecoder(self, height, width)

    def stream_encoder(self, levels: int | None = None) -> StreamingVideoEncoder:
        """A stream of frames of any numbers to codes."""
        return StreamingVideoEncoder(self, levels)

    def stream_decoder(self) -> StreamingVideoDecoder:
        """A stream of codes to frames of whole cells."""
        return StreamingVideoDecoder(self)

    def latents(self, x: Tensor, state: State | None = None) -> Tensor:
        """Analysis only: ``x [B, 3, T, 16h, 16w]`` in [0, 1] to ``z_e [B, D, t, h, w]``.

        T is ``1 + 4 n``, and ``4 n`` in later parts of a stream, which ``state`` belongs to.
        """
        with whole_float32(self.device):
            z_e = self.analysis((2 * x - 1).permute(0, 2, 3, 4, 1).contiguous(), state)
        return z_e.permute(0, 4, 1, 2, 3)

    def errors(self, z_e: Tensor, codes: Tensor) -> Tensor:
        """Squared error of latents ``[B, D, t, h, w]`` after the first 1, 2, ... of their codes, one number each."""
        return self.quantizer.errors(z_e, codes)

    def pixels(self, z_q: Tensor, state: State | None = None) -> Tensor:
        """Synthesis only: ``z_q [B, D, t, h, w]`` to ``x_hat [B, 3, T, 16h, 16w]``, about in [0, 1]."""
        with whole_float32(self.device):
            x_hat = self.synthesis(z_q.permute(0, 2, 3, 4, 1).contiguous(), state)
        return (x_hat.permute(0, 4, 1, 2, 3) + 1) / 2

    # ---------------------------------------------------------------- start

    @torch.no_grad()
    def start_from(self, other: ImageGrid | VideoGrid) -> None:
        """Take over the nets and codebooks of another video tokenizer; or those over space of a picture tokenizer (its
        first synthesis net), while time's layers stay as they are.

        A new model with a picture tokenizer's weights codes every fourth frame as a picture, and shows it four times.
        Latents may have more channels than the other one's: those begin small. Codebooks of other shapes stay as they
        are; penalties of codewords and discounts are left out, which an export decides anew.

        Raises:  ValueError if its nets have other sizes.
        """
        if isinstance(other, VideoGrid):
            own = [tuple(self.analysis.parameters()), tuple(self.synthesis.parameters())]
            theirs = [tuple(other.analysis.parameters()), tuple(other.synthesis.parameters())]
        else:
            own = [(*_space(self.analysis),), (*_space(self.synthesis),)]
            nets = (other.analysis, other.synthesis[other.check_synthesis(None)])
            theirs = [tuple(net.parameters()) for net in nets]
        more = self.config.dim - other.config.dim
        # What differs with D: the last layer of the analysis, weight and bias, and the weight of the synthesis' first.
        wider = {id(p) for p in (*own[0][-2:], own[1][0])} if more > 0 else set()
        for mine, given in zip(own, theirs, strict=True):
            if len(mine) != len(given) or any(
                p.shape != q.shape for p, q in zip(mine, given, strict=True) if id(p) not in wider
            ):
                raise ValueError(f"{other.name} has nets of other sizes than {self.name}")
        for mine, given in zip(own, theirs, strict=True):
            for p, q in zip(mine, given, strict=True):
                if id(p) in wider:
                    p.mul_(NEW)
                    p[tuple(slice(n) for n in q.shape)] = q
                else:
                    p.copy_(q)
        for level, known in zip(self.codebooks, other.codebooks, strict=False):
            if level.codebook.shape == known.codebook.shape:
                level.set_codewords(known.codebook)


def _space(net: CausalNet) -> Iterator[nn.Parameter]:
    for layer in net:
        if isinstance(layer, PerFrame):
            yield from layer.parameters()


class StreamingVideoEncoder:
    """Codes of a clip that comes in parts of any number of frames; together those of :meth:`VideoGrid.encode`.

    The codes of a group are there as soon as its last frame is; the first frame is a group of its own. No gradients.
    """

    # torch.compile cannot trace decorated methods of objects that are made while it traces: no_grad is inside them.

    def __init__(self, model: VideoGrid, levels: int | None = None) -> None:
        model.require_float32()
        self.model, self.levels = model, model.check_levels(levels)
        self.state = State()
        self.wanted = FIRST  # frames of the group that comes next
        self.rest: Tensor | None = None  # frames [B, 3, n, H, W] that wait for the end of their group
        self.last: Tensor | None = None  # codes [B, levels, 1, h, w] of the last cell

    def push(self, x: Tensor) -> Tensor:
        """The next frames ``[B, 3, n, H, W]`` in [0, 1] or uint8 to codes ``[B, levels, m, h, w]``, m may be 0.

        Raises: ValueError as :meth:`VideoGrid.encode` does, or for frames of another size than those before.
        """
        x = to_clips(x, self.model.device, part=True)
        check_pixels(x)
        return self.quantize(self.latents(x))

    def finish(self) -> Tensor:
        """Codes of the frames that are left, the last one repeated to the end of its group: m is 0 or 1."""
        return self.quantize(self.last_latents())

    def latents(self, x: Tensor) -> Tensor:
        """As :meth:`push`, but latents ``[B, D, m, h, w]``; :meth:`quantize` makes codes of them."""
        if self.rest is not None and x.shape[3:] != self.rest.shape[3:]:
            raise ValueError(f"frames of {tuple(x.shape[3:])} in a clip of {tuple(self.rest.shape[3:])}")
        x = x.detach() if self.rest is None else torch.cat([self.rest, x.detach()], 2)
        z_e = []
        begin = 0
        while x.shape[2] - begin >= self.wanted:
            z_e.append(self._group(x[:, :, begin : begin + self.wanted]))
            begin, self.wanted = begin + self.wanted, GROUP
        self.rest = x[:, :, begin:].clone()  # not a view, which would keep all of x
        return torch.cat(z_e, 2) if z_e else self._none(x)

    def last_latents(self) -> Tensor:
        """As :meth:`finish`, but latents."""
        if self.rest is None:
            raise ValueError("nothing was pushed")
        rest, self.rest = self.rest, self.rest[:, :, :0]
        if not rest.shape[2]:
            return self._none(rest)
        missing = self.wanted - rest.shape[2]
        return self._group(torch.cat([rest, rest[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2))

    def _group(self, x: Tensor) -> Tensor:
        x = x.to(self.model.device)
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        height, width = x.shape[3:]
        # Replicated borders cost fewer bits than black ones; decoding cuts them off again.
        x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE, 0, 0), mode="replicate")
        with torch.no_grad():
            return self.model.latents(x, self.state)

    def _none(self, x: Tensor) -> Tensor:
        h, w = (-(-n // STRIDE) for n in x.shape[3:])
        return torch.zeros(len(x), self.model.config.dim, 0, h, w, device=self.model.device)

    def quantize(self, z_e: Tensor) -> Tensor:
        """Latents of the next cells to codes ``[B, levels, m, h, w]``; of whole frames, or always one part of them."""
        codes, quantizer = [], self.model.quantizer
        for cell in z_e.unbind(2):
            z = cell[:, :, None]
            if self.last is None:
                self.last = quantizer.search(z, self.levels)
            else:
                self.last = quantizer.encode_after(z, self.last, self.model.hold, self.levels)
            codes.append(self.last)
        none = torch.zeros(len(z_e), self.levels, 0, *z_e.shape[3:], dtype=torch.int64, device=z_e.device)
        return torch.cat(codes, 2) if codes else none


class StreamingVideoDecoder:
    """Frames of codes that come in parts of any number of cells; together those of :meth:`VideoGrid.decode`.

    Args:    height, width: of the frames; None: those of whole cells.
    """

    def __init__(self, model: VideoGrid, height: int | None = None, width: int | None = None) -> None:
        model.require_float32()
        self.model, self.height, self.width = model, height, width
        self.state = State()

    def push(self, codes: Tensor) -> Tensor:
        """The next codes ``[B, k, m, h, w]`` to all frames of their groups ``[B, 3, n, H, W]`` in [0, 1].

        The first cell of a clip gives one frame, every other one four; the clip's number of frames says which of the
        last four are only padding.
        """
        if codes.ndim != 5 or not codes.shape[2]:
            raise ValueError(f"codes of a clip are [B, k, m, h, w] with m > 0, got {tuple(codes.shape)}")
        model = self.model
        groups = []
        with torch.no_grad():
            for cell in codes.split(1, 2):
                z_q = model.quantizer.decode(cell)
                groups.append(model.pixels(z_q, self.state).clamp(0, 1)[..., : self.height, : self.width])
        return torch.cat(groups, 2)
