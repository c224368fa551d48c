"""`audio-24k`: 24 kHz sound to 75 frames of tokens a second, 0.75 to 7.5 kbit/s, causal, and back.

::

    x [B,1,320 t] -> blocks of 160 samples -> convolutions at 150 and 75 Hz -> z [B,D,t]
    z -> 2 groups of channels, each up to 5 levels of residual SimVQ -> codes [B,10,t], level by level
    codes -> z_q -> convolutions at 75 and 150 Hz -> 640 samples every 160, overlapped -> x_hat

Group-residual quantizer: HiFi-Codec (Yang et al. 2023, arXiv:2305.02765); SimVQ codebooks: Zhu et al. 2024
(arXiv:2411.02038). No net runs at a high rate, which is what makes it fast: as in Vocos (Siuzdak 2023,
arXiv:2306.00814), but the step to samples and back is a learned linear one (Conv-TasNet, Luo and Mesgarani 2019,
arXiv:1809.07454), which training starts as an MDCT, instead of a spectrum whose phases must be found first. Everything
looks back only, but the overlap in the end, 20 ms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..api import Output
from ..inputs import check_samples, to_sounds
from ..precision import whole_float32
from ..quantize.base import ABSENT, Quantizer
from ..quantize.codebook import CodebookQuantizer
from ..quantize.prepared import PreparedQuantizer, prepared
from ..quantizers import Section, checked_section, make_quantizer
from ..tokens import Tokens
from .base import AudioTokenizer, Coded, Refiner
from .causal import CausalBlock, CausalConv1d, CausalSequential, Fold, State, Unfold

RATE = 24000  # samples a second
HOP = 160  # samples of a block, which the first layer takes at once and the last one makes
STRIDE = 2  # blocks of a frame
FRAME = STRIDE * HOP  # 320 samples, 75 a second
WINDOW = 4 * HOP  # samples that a block has a part in; the first HOP of them lie before its own
SOFTEST = 1e-4  # root mean square below which a sound is silence
TYPICAL = 0.05  # root mean square that an untrained net makes, about
BEAMS = 4  # paths of the search for codes: more bring little, and time grows with them
LOUDEST = 3.0  # largest logarithm of a gain
FEW = 32  # frames of all signals up to which a chunk goes through the nets step by step; more gain nothing by it
LATENCY = 3 * HOP  # samples that an output sample waits for, at most: those of its frame and the overlap after it


@dataclass(frozen=True)
class AudioGRVQConfig:
    """Sizes of an AudioGRVQ."""

    analysis_channels: tuple[int, ...] = (256, 384)  # at 150 and 75 Hz
    analysis_blocks: tuple[int, ...] = (3, 4)
    synthesis_channels: tuple[int, ...] = (384, 256)  # at 75 and 150 Hz
    synthesis_blocks: tuple[int, ...] = (5, 4)
    dim: int = 128  # D, of the latents of all groups
    groups: int = 2
    codebook_sizes: tuple[int, ...] = (1024, 1024, 1024, 1024, 1024)  # of each group's levels
    quantizer: Section | None = None  # see ..quantizers; None: grvq. dim, groups and codebook_sizes become its own

    def __post_init__(self) -> None:
        sizes = (self.analysis_channels, self.analysis_blocks, self.synthesis_channels, self.synthesis_blocks)
        if any(len(pair) != 2 for pair in sizes):
            raise ValueError("channels and blocks of the nets have two entries each, one a rate")
        if self.groups < 1 or self.dim % self.groups or not self.codebook_sizes:
            raise ValueError("the latents' channels are split evenly into groups, which have a level at least")
        if self.quantizer is not None:
            object.__setattr__(self, "quantizer", checked_section(self.quantizer))


class Blocks(CausalConv1d):
    """``[B, 1, 160 n] -> [B, C, n]``: a linear map of the last 640 samples, shape and loudness apart.

    ``C - 1`` channels are the map's, divided by the root mean square of its samples; the last one is the logarithm of
    that, so that soft sounds are as good to learn from as loud ones (gain-shape coding, Sabin and Gray 1984).
    """

    def __init__(self, channels: int) -> None:
        super().__init__(HOP, channels - 1, WINDOW // HOP, bias=False)
        self.fold = Fold(HOP)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        blocks = self.fold(x)
        blocks = F.pad(blocks, (self.past, 0)) if state is None else state.extend(self, blocks, self.past)
        power = F.avg_pool1d(blocks.square().mean(1, keepdim=True), WINDOW // HOP, 1)
        power = power + SOFTEST**2
        return torch.cat([F.conv1d(blocks, self.weight) * torch.rsqrt(power), 0.5 * torch.log(power)], 1)

    def step(self, x: Tensor, state: State) -> Tensor:
        blocks = state.extend_rows(self, self.fold.step(x, state), self.past)
        powers = blocks.square().mean(2, keepdim=True).unfold(1, WINDOW // HOP, 1)  # [B, n, 1, 4]
        power = powers.mean(3) + SOFTEST**2
        return torch.cat([self.rows(blocks) * torch.rsqrt(power), 0.5 * torch.log(power)], 2)


def analysis_net(config: AudioGRVQConfig) -> CausalSequential:
    """``[B, 1, 320 t] -> [B, D, t]``."""
    fine, coarse = config.analysis_channels
    n_fine, n_coarse = config.analysis_blocks
    return CausalSequential(
        [
            Blocks(fine),
            *[CausalBlock(fine) for _ in range(n_fine)],
            CausalConv1d(fine, coarse, 2 * STRIDE, STRIDE),
            *[CausalBlock(coarse) for _ in range(n_coarse)],
            CausalConv1d(coarse, config.dim, 3),
        ]
    )


def synthesis_net(config: AudioGRVQConfig) -> CausalSequential:
    """``[B, D, t] -> [B, WINDOW + 1, 2 t]``: every block's part in the samples around it, and its log-loudness."""
    coarse, fine = config.synthesis_channels
    n_coarse, n_fine = config.synthesis_blocks
    head = CausalConv1d(fine, WINDOW + 1, 1)
    with torch.no_grad():
        assert head.bias is not None
        head.bias[-1] = math.log(TYPICAL)
    return CausalSequential(
        [
            CausalConv1d(config.dim, coarse, 7),
            *[CausalBlock(coarse) for _ in range(n_coarse)],
            CausalConv1d(coarse, STRIDE * fine, 1),
            Unfold(STRIDE),
            *[CausalBlock(fine) for _ in range(n_fine)],
            head,
        ]
    )


class AudioGRVQ(AudioTokenizer):
    """See the module's text. Stereo is two signals to it: middle and side, a batch of two."""

    config_class = AudioGRVQConfig
    int8_weights = ("analysis.", "synthesis.")
    int8_largest = 95
    strides = (FRAME,)
    sample_rate = float(RATE)
    streaming = True

    config: AudioGRVQConfig

    def __init__(self, config: AudioGRVQConfig | None = None, name: str = "audio-24k") -> None:
        super().__init__(config or AudioGRVQConfig(), name)
        c = self.config
        quantizer = make_quantizer(c.quantizer or "grvq", dim=c.dim, codebook_sizes=c.codebook_sizes, groups=c.groups)
        sizes = quantizer.codebook_sizes[:: quantizer.n_groups]
        self.config = replace(c, dim=quantizer.dim, groups=quantizer.n_groups, codebook_sizes=sizes)
        self.analysis = analysis_net(self.config)
        self.quantizer = quantizer
        self.synthesis = synthesis_net(self.config)
        # The maps from samples and to them, and what sees the former first: rounding these costs four times as much as
        # rounding all others together (train/RUNS.md).
        self.half_weights = ("analysis.0.", "analysis.1.up.", f"synthesis.{len(self.synthesis) - 1}.")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.quantizer.codebook_sizes

    @property
    def codebooks(self) -> list[CodebookQuantizer]:
        """The quantizers of every level, in the order of the codes; none if they are no tables."""
        return [level for level in self.quantizer.parts if isinstance(level, CodebookQuantizer)]

    @property
    def reach(self) -> int:
        """Frames before a frame that its samples depend on, the overlap of the pieces among them."""
        past, rate = [0, 0], 0  # of layers at one and at two steps a frame
        for layer in self.synthesis:
            rate += isinstance(layer, Unfold)
            convs = [m for m in layer.modules() if isinstance(m, CausalConv1d)]
            past[rate] += sum(conv.past for conv in convs)
        return past[0] + -(-(past[1] + WINDOW // HOP) // 2)

    def codewords(self) -> list[npt.NDArray[np.float32]] | None:
        """``[N_k, D / groups]`` of every level of every group, in the order of the codes."""
        return self.quantizer.tables()

    # ---------------------------------------------------------------- whole signals

    def forward(self, x: Tensor) -> Output:
        """Signals ``[B, 1, n]`` through the nets with straight-through gradients: see
        :meth:`..api.Tokenizer.forward`."""
        x = to_sounds(x, self.device)
        n = x.shape[2]
        out = self.quantizer(self.analysis(F.pad(x, (0, -n % FRAME))))
        return Output.of(self.synthesise(out.z_q)[:, :, :n], out)

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        levels: int | None = None,
        lengths: Sequence[int] | None = None,
        seen: int | None = None,
    ) -> Tokens:
        """Signals ``[B, 1, n]`` at 24 kHz in [-1, 1] to tokens ``[B, levels, ceil(n / 320)]``.

        Args:
            levels: codebooks, 1 to 10, 0.75 kbit/s each; all if None. The search looks for the best sum of so many
                codewords, so fewer levels need not be a prefix of more, though any prefix can be decoded.
            lengths: true lengths of signals that were padded at their ends; codes of the padding are ``ABSENT``, the
                others are those of each signal alone.
            seen: as in :meth:`codes`.
        Raises: ValueError for other shapes, types or ranges of ``x`` (floating-point or int16, see :mod:`..inputs`), an
            empty signal, or another number of levels.
        """
        x = to_sounds(x, self.device)
        check_samples(x)
        n = x.shape[2]
        if lengths is not None:
            if len(lengths) != len(x) or not all(1 <= length <= n for length in lengths):
                raise ValueError(f"lengths are one for each signal, 1 to {n}")
            inside = torch.arange(n, device=x.device) < torch.tensor(lengths, device=x.device)[:, None]
            x = torch.where(inside[:, None], x, 0.0)
        codes = self.encode_codes(x, levels, seen)
        if lengths is not None:
            frames = torch.tensor([-(-length // FRAME) for length in lengths], device=x.device)
            codes = torch.where(torch.arange(codes.shape[2], device=x.device) < frames[:, None, None], codes, ABSENT)
        return Tokens(codes, self.spec((n,)))

    @torch.no_grad()
    def encode_codes(self, x: Tensor, levels: int | None = None, seen: int | None = None) -> Tensor:
        """Codes of :meth:`encode`, by tensors alone; values of ``x`` are not looked at."""
        self.require_float32()
        x = to_sounds(x, self.device)
        return self.codes(self.latents(F.pad(x, (0, -x.shape[2] % FRAME))), levels, seen=seen)

    def latents(self, x: Tensor, state: State | None = None) -> Tensor:
        """Analysis only: ``x [B, 1, 320 t]`` to ``z [B, D, t]``. state: of the stream that ``x`` is the next part of.

        Few frames of a stream go through the net step by step, without gradients: see :func:`is_short`.
        """
        with whole_float32(self.device):
            if state is not None and is_short(x, x.shape[2] // FRAME):
                return self.analysis.step(x.transpose(1, 2), state).transpose(1, 2)
            return self.analysis(x, state)

    def codes(
        self,
        z: Tensor,
        levels: int | None = None,
        quantizer: Quantizer | PreparedQuantizer | None = None,
        seen: int | None = None,
    ) -> Tensor:
        """Latents ``[B, D, t]`` to codes ``[B, levels, t]``.

        Args:
            quantizer: the model's, prepared, for many short calls.
            seen: levels that will be left when the codes are cut off, about: those are the best then.
        """
        return (quantizer or self.quantizer).search(z, self.check_levels(levels), BEAMS, seen)

    def errors(self, z: Tensor, codes: Tensor) -> Tensor:
        """Squared error of latents ``[B, D, t]`` after the first 1, 2, ... of ``codes [B, K, t]``, ``[B, K, t]``."""
        return self.quantizer.errors(z, codes)

    @torch.no_grad()
    def decode(self, tokens: Tokens, lengths: Sequence[int] | None = None) -> Tensor:
        """Tokens to signals ``[B, 1, n]``; beyond ``lengths``, if given, they are zero.

        Raises: ValueError if the tokens are another model's.
        """
        self.check_tokens(tokens)
        n = tokens.spec.size[0]
        codes = tokens.codes.to(self.device)
        if lengths is None:
            return self.decode_codes(codes, (n,))
        frames = torch.tensor([-(-length // FRAME) for length in lengths], device=codes.device)
        with whole_float32(self.device):
            x_hat = self.synthesise(self.quantizer.decode(codes), frames)[:, :, :n]
        inside = torch.arange(n, device=x_hat.device) < torch.tensor(lengths, device=x_hat.device)[:, None]
        return torch.where(inside[:, None], x_hat, 0.0)

    @torch.no_grad()
    def decode_codes(self, codes: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Codes ``[B, k, t]`` to signals ``[B, 1, n]``, by tensors alone. size: (n,); of whole frames if None."""
        self.require_float32()
        (n,) = (None,) if size is None else size
        with whole_float32(self.device):
            return self.synthesise(self.quantizer.decode(codes))[:, :, :n]

    def encoder(
        self,
        levels: int | None = None,
        *,
        errors: bool = False,
        seen: int | None = None,
        refiner: Refiner | None = None,
    ) -> StreamingEncoder:
        return StreamingEncoder(self, levels, errors=errors, seen=seen, refiner=refiner)

    def decoder(self, block: int) -> StreamingDecoder:
        return StreamingDecoder(self)

    def next_parts(self, z: Tensor, state: State) -> Tensor:
        """Synthesis net only, of the next part of a stream: ``z [B, D, t]`` to ``[B, WINDOW + 1, 2 t]``."""
        with whole_float32(self.device):
            if is_short(z, z.shape[2]):
                return self.synthesis.step(z.transpose(1, 2), state).transpose(1, 2)
            return self.synthesis(z, state)

    def synthesise(self, z: Tensor, frames: Tensor | None = None) -> Tensor:
        """Latents ``[B, D, t]`` to signals ``[B, 1, 320 t]``, with gradients, in the precision of what surrounds it.

        Args:   frames: ``[B]`` those that count, all if None.
        """
        pieces = self.pieces(self.synthesis(z.to(next(self.synthesis.parameters()).dtype)))
        there = pieces.new_ones(len(z), pieces.shape[1])
        if frames is not None:
            there = (torch.arange(pieces.shape[1], device=z.device) < 2 * frames[:, None]).to(pieces.dtype)
        blocks = self.overlap(pieces * there[:, :, None])[:, 1:-2]  # without those before the first and after the last
        return blocks.reshape(len(z), 1, -1)

    def pieces(self, parts: Tensor) -> Tensor:
        """What the synthesis net makes, ``[B, WINDOW + 1, j]``, to pieces of sound ``[B, j, WINDOW]``."""
        shape, loudness = parts.float().transpose(1, 2).split((WINDOW, 1), 2)
        return shape * torch.exp(loudness.clamp(max=LOUDEST))

    @staticmethod
    def overlap(pieces: Tensor) -> Tensor:
        """Pieces ``[B, j, WINDOW]``, HOP samples apart, to their sum in blocks of HOP samples ``[B, j + 3, HOP]``."""
        parts = pieces.unflatten(2, (WINDOW // HOP, HOP)).unbind(2)
        n = len(parts) - 1
        return sum((F.pad(part, (0, 0, i, n - i)) for i, part in enumerate(parts)), start=torch.zeros(()))


def is_short(x: Tensor, frames: int) -> bool:
    """Whether the next ``frames`` frames of ``x [B, ...]`` take less time step by step than by convolutions."""
    return x.device.type == "cpu" and len(x) * frames <= FEW


class StreamingEncoder:
    """Codes of a signal that comes in chunks of any length; together those of :meth:`AudioGRVQ.encode`.

    A code is there as soon as its 320 samples are.
    """

    def __init__(
        self,
        model: AudioGRVQ,
        levels: int | None = None,
        *,
        errors: bool = False,
        seen: int | None = None,
        refiner: Refiner | None = None,
    ) -> None:
        model.require_float32()
        self.model, self.levels = model, levels
        self.errors, self.seen, self.refiner = errors, seen, refiner
        self.quantizer = prepared(model.quantizer)
        self.state = State()
        self.rest: Tensor | None = None

    @torch.no_grad()
    def push(self, x: Tensor) -> Tensor:
        """The next samples ``[B, 1, n]`` to codes ``[B, levels, t]``, t of which may be 0; n may be 0 as well.

        Raises: ValueError as :meth:`AudioGRVQ.encode` does.
        """
        x = to_sounds(x, self.model.device, part=True)
        check_samples(x)
        return self._codes(self.latents(x))

    @torch.no_grad()
    def finish(self) -> Tensor:
        """Codes of what is left, after silence to the end of its frame."""
        return self._codes(self.last_latents())

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """As :meth:`push`, but latents ``[B, D, t]``; :meth:`AudioGRVQ.codes` makes codes of them."""
        x = x if self.rest is None else torch.cat([self.rest, x], 2)
        whole = x.shape[2] // FRAME * FRAME
        self.rest = x[:, :, whole:]
        return self._latents(x[:, :, :whole])

    @torch.no_grad()
    def last_latents(self) -> Tensor:
        """As :meth:`finish`, but latents."""
        if self.rest is None:
            raise ValueError("nothing was pushed")
        rest, self.rest = self.rest, self.rest[:, :, :0]
        return self._latents(F.pad(rest, (0, -rest.shape[2] % FRAME)))

    def code(self, x: Tensor) -> Coded:
        """As :meth:`push`, of samples that are not looked at, with what :meth:`AudioGRVQ.encoder` was asked for."""
        if self.refiner is not None:
            self.refiner.push(x)
        return self._coded(self.latents(x))

    def code_rest(self) -> Coded:
        """As :meth:`finish`, likewise."""
        return self._coded(self.last_latents())

    def _coded(self, z: Tensor) -> Coded:
        if not z.shape[2]:
            return Coded(self._codes(z), None)
        z = z if self.refiner is None else self.refiner.refine(z)
        codes = self.model.codes(z, self.levels, seen=self.seen)
        return Coded(codes, self.model.errors(z, codes) if self.errors else None)

    def _latents(self, x: Tensor) -> Tensor:
        if not x.shape[2]:
            return x.new_zeros(len(x), self.model.config.dim, 0)
        return self.model.latents(x, self.state)

    def _codes(self, z: Tensor) -> Tensor:
        if not z.shape[2]:
            levels = self.model.check_levels(self.levels)
            return torch.zeros(len(z), levels, 0, dtype=torch.int64, device=z.device)
        return self.model.codes(z, self.levels, self.quantizer)


class StreamingDecoder:
    """Samples of codes that come in chunks of any length; together those of :meth:`AudioGRVQ.decode`.

    A sample is there at most ``LATENCY`` samples after the encoder got it, and the last ones when all codes are known.
    """

    def __init__(self, model: AudioGRVQ) -> None:
        model.require_float32()
        self.model = model
        self.quantizer = prepared(model.quantizer)
        self.state = State()
        self.tail: Tensor | None = None  # sums of the last three blocks, which later pieces add to [B, 3, HOP]
        self.first = True

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """The next codes ``[B, k, t]`` to samples ``[B, 1, n]``."""
        if not codes.shape[2]:
            return torch.zeros(len(codes), 1, 0, device=codes.device)
        model = self.model
        blocks = model.overlap(model.pieces(model.next_parts(self.quantizer.decode(codes), self.state)))
        if self.tail is not None:
            blocks[:, :3] += self.tail
        self.tail = blocks[:, -3:].clone()
        begin, self.first = int(self.first), False  # the first block lies before the signal
        return blocks[:, begin:-3].reshape(len(blocks), 1, -1)

    def finish(self) -> Tensor:
        """The last samples: one block, all that the last frame holds beyond what was given out."""
        if self.tail is None:
            raise ValueError("nothing was pushed")
        last, self.tail = self.tail[:, :1], self.tail[:, :0]
        return last.reshape(len(last), 1, -1)
