"""What the codec asks of a tokenizer of sounds beyond :class:`~..api.Tokenizer`: a long sound, block by block."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..api import Tokenizer
from ..inputs import check_samples, to_sounds
from ..tokens import Tokens

BLOCK_SECONDS = 10  # that go through nets at once


class Coded(NamedTuple):
    """The next part of a sound as codes.

    Attributes:
        codes: int64 ``[B, K, t]``, t may be 0.
        errors: ``[B, K, t]`` squared error after 1, 2, ... levels; None if not asked for, or t is 0.
    """

    codes: Tensor
    errors: Tensor | None


class SoundEncoder(Protocol):
    """Codes of signals that come in parts of any length."""

    def code(self, x: Tensor) -> Coded:
        """The next samples ``[B, 1, n]``, whose values are not looked at."""

    def code_rest(self) -> Coded:
        """What is left, after silence to the end of its frame."""


class SoundDecoder(Protocol):
    """Samples of codes that come in parts of any length."""

    def push(self, codes: Tensor) -> Tensor:
        """The next codes ``[B, k, t]`` to samples ``[B, 1, n]``."""

    def finish(self) -> Tensor:
        """The last samples."""


class Refiner(Protocol):
    """Something that knows better latents than the analysis net's."""

    def push(self, x: Tensor) -> None:
        """The next samples ``[B, 1, n]``, before their latents."""

    def refine(self, z: Tensor) -> Tensor:
        """The next latents to better ones."""


class AudioTokenizer(Tokenizer):
    """A tokenizer of sounds, one signal at a time; stereo is a batch of two, middle and side.

    A class sets ``sample_rate`` (whole hertz) and ``strides`` (the samples of a frame), and defines ``encode_codes``
    and ``decode_codes`` for signals of whole frames. A long sound goes through them in blocks with ``context`` frames
    of their neighbours on both sides, which are cut off again: as many as a frame's codes and samples depend on. Who
    carries a state along instead overrides `encoder` and `decoder`, and says ``streaming`` and ``reach``. What fills
    the last frame of a signal is silence, or what `whole_frames` makes of it.

    Attributes:
        block_seconds: that go through the nets at once in encoding.
        streaming: whether samples are the same wherever decoding began, ``reach`` frames before them.
    """

    modality = "audio"
    channels = ("mono", "mid-side", "separate")
    varies = ("channels",)
    context: int = 16
    block_seconds: ClassVar[int] = BLOCK_SECONDS
    streaming: ClassVar[bool] = False

    @property
    def hertz(self) -> int:
        """Samples a second."""
        return round(self.sample_rate or 0)

    @property
    def stride(self) -> int:
        """Samples of a frame."""
        return self.strides[0]

    @property
    def reach(self) -> int:
        """Frames before a frame that its samples depend on."""
        return self.context

    @abc.abstractmethod
    def encode_codes(self, x: Tensor) -> Tensor:
        """Signals ``[B, 1, n]`` of whole frames to codes ``[B, K, t]``."""

    @abc.abstractmethod
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes ``[B, k, t]``, the first k levels, to signals ``[B, 1, n]``; an ``ABSENT`` code adds nothing."""

    def whole_frames(self, x: Tensor) -> Tensor:
        """Signals ``[B, 1, n]`` to what `encode_codes` takes at their end."""
        return F.pad(x, (0, -x.shape[2] % self.stride))

    def level_errors(self, x: Tensor, codes: Tensor) -> Tensor:
        """Squared error ``[B, K, t]`` of the frames of ``x [B, 1, n]``, of whole ones or of what `whole_frames` makes,
        after 1, 2, ... levels of ``codes``."""
        made = (self.decode_codes(codes[:, : k + 1]) for k in range(codes.shape[1]))
        x = F.pad(x, (0, -x.shape[2] % self.stride))
        return torch.stack([(x - x_hat).square().unflatten(2, (-1, self.stride)).sum((1, 3)) for x_hat in made], 1)

    @torch.no_grad()
    def encode(self, x: Tensor, levels: int | None = None) -> Tokens:
        """Signals ``[B, 1, n]`` in [-1, 1] to tokens ``[B, levels, t]``, all levels if None.

        Raises: ValueError for other shapes, types or ranges of ``x``, see :mod:`..inputs`.
        """
        x = to_sounds(x, self.device)
        check_samples(x)
        codes = self.encode_codes(self.whole_frames(x))
        return Tokens(codes[:, : self.check_levels(levels)], self.spec((x.shape[2],)))

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Tokens to signals ``[B, 1, n]``. Raises ValueError if they are another model's."""
        self.check_tokens(tokens)
        return self.decode_codes(tokens.codes.to(self.device))[:, :, : tokens.spec.size[0]]

    def encoder(
        self,
        levels: int | None = None,
        *,
        errors: bool = False,
        seen: int | None = None,
        refiner: Refiner | None = None,
    ) -> SoundEncoder:
        """What codes a sound that comes in parts.

        Args:    levels: of the codes, all if None.  errors: whether those are wanted.
                 seen: levels that will be left when codes are cut off, about; a search for codes may make use of it.
                 refiner: of the latents.
        Raises:  ValueError if there is a refiner, and no latents that it could refine.
        """
        if refiner is not None:
            raise ValueError(f"{self.name} has no latents to refine")
        return WindowEncoder(self, levels, errors)

    def decoder(self, block: int) -> SoundDecoder:
        """What decodes a sound that comes in parts. block: frames that are decoded at once, if it has no state."""
        return WindowDecoder(self, block)


class _Windows:
    """A stream along the last axis, cut into windows: a block with ``context`` on both sides. unit: length of one."""

    def __init__(self, block: int, context: int, unit: int = 1) -> None:
        self.block, self.context, self.unit = block, context, unit
        self.x: Tensor | None = None
        self.past = 0  # of the context before the next block

    def push(self, x: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """Windows that the next part completes, and where their block lies, in units."""
        self.x = x if self.x is None else torch.cat([self.x, x], -1)
        while self.x.shape[-1] >= (self.past + self.block + self.context) * self.unit:
            yield self._cut(self.block)

    def finish(self) -> Iterator[tuple[Tensor, slice]]:
        """Windows of what is left; the last unit may lack something."""
        assert self.x is not None, "nothing was pushed"
        while (left := -(-self.x.shape[-1] // self.unit) - self.past) > 0:
            yield self._cut(min(left, self.block))

    def _cut(self, n: int) -> tuple[Tensor, slice]:
        assert self.x is not None
        inside = slice(self.past, self.past + n)
        window = self.x[..., : (inside.stop + self.context) * self.unit]
        self.past = min(inside.stop, self.context)
        self.x = self.x[..., (inside.stop - self.past) * self.unit :]
        return window, inside


class WindowEncoder:
    """See :meth:`AudioTokenizer.encoder`."""

    def __init__(self, model: AudioTokenizer, levels: int | None, errors: bool) -> None:
        model.require_float32()
        self.model, self.levels, self.errors = model, levels, errors
        block = max(1, model.block_seconds * model.hertz // model.stride)
        self.windows = _Windows(block, model.context, model.stride)

    def code(self, x: Tensor) -> Coded:
        return self._joined(x, self.windows.push(x))

    def code_rest(self) -> Coded:
        x = self.windows.x
        assert x is not None, "nothing was pushed"
        self.windows.x = self.model.whole_frames(x)
        return self._joined(x, self.windows.finish())

    def _joined(self, x: Tensor, windows: Iterator[tuple[Tensor, slice]]) -> Coded:
        made = [self._coded(*window) for window in windows]
        if not made:
            n_levels = self.model.check_levels(self.levels)
            return Coded(torch.zeros(len(x), n_levels, 0, dtype=torch.int64, device=x.device), None)
        errors = [own.errors for own in made if own.errors is not None]
        return Coded(torch.cat([own.codes for own in made], 2), torch.cat(errors, 2) if errors else None)

    @torch.no_grad()
    def _coded(self, x: Tensor, inside: slice) -> Coded:
        codes = self.model.encode_codes(x)[:, : self.levels]
        if not self.errors:
            return Coded(codes[:, :, inside], None)
        return Coded(codes[:, :, inside], self.model.level_errors(x, codes)[:, :, inside])


class WindowDecoder:
    """See :meth:`AudioTokenizer.decoder`."""

    def __init__(self, model: AudioTokenizer, block: int) -> None:
        model.require_float32()
        self.model, self.windows = model, _Windows(block, model.context)

    def push(self, codes: Tensor) -> Tensor:
        return self._joined(codes, self.windows.push(codes))

    def finish(self) -> Tensor:
        assert self.windows.x is not None, "nothing was pushed"
        return self._joined(self.windows.x, self.windows.finish())

    @torch.no_grad()
    def _joined(self, codes: Tensor, windows: Iterator[tuple[Tensor, slice]]) -> Tensor:
        stride = self.model.stride
        made = [self.model.decode_codes(x)[:, :, inside.start * stride : inside.stop * stride] for x, inside in windows]
        return torch.cat(made, 2) if made else torch.zeros(len(codes), 1, 0, device=codes.device)


def channels_of(signals: int) -> str:
    """What so many signals of a sound are, as :class:`~..tokens.TokenSpec` says it: two of them are middle and side."""
    return {1: "mono", 2: "mid-side"}.get(signals, "separate")
