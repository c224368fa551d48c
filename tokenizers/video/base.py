"""What the codec asks of a tokenizer of videos beyond :class:`~..api.Tokenizer`: a clip, frame by frame."""

from __future__ import annotations

import abc
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..api import Tokenizer
from ..inputs import check_pixels, to_clips
from ..tokens import Tokens

Pixels = npt.NDArray[np.uint8]
CodedCells = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


class ClipEncoder(Protocol):
    """Codes of the frames of a clip."""

    def push(self, pixels: Pixels) -> CodedCells:
        """The next frame ``[H, W, 3]`` to codes ``[levels, m, h, w]``, m may be 0, and their squared error after 1, 2,
        ... levels, ``[levels]``, which is 0 if it is not wanted."""

    def finish(self) -> CodedCells:
        """As :meth:`push`, of what is left."""


class ClipDecoder(Protocol):
    """Frames of the codes of a clip, in 8 bits."""

    def push(self, codes: npt.NDArray[np.int64]) -> Pixels:
        """The next cell ``[k, h, w]`` to frames ``[n, H, W, 3]``, n may be 0."""

    def finish(self) -> Pixels:
        """The frames that are left, with those that only fill the last cell."""


class VideoTokenizer(Tokenizer):
    """A tokenizer of clips.

    A class sets ``strides`` (the frames, rows and columns of a cell, the last two alike) and maybe ``first``, and
    defines ``encode_codes`` and ``decode_codes`` for clips of whole cells. A file cuts a video into segments of about a
    second, each a clip of its own. Who does with less than a whole clip in memory overrides `encoder` and `decoder`.

    Attributes: jumps: whether clips differ from their neighbours by detail and tint, which files then spread a little.
    """

    modality = "video"
    varies = ("sample_rate",)
    jumps: ClassVar[bool] = False

    @abc.abstractmethod
    def encode_codes(self, x: Tensor) -> Tensor:
        """Clips ``[B, 3, T, H, W]`` in [0, 1], of whole cells, to codes ``[B, K, t, h, w]``."""

    @abc.abstractmethod
    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes ``[B, k, t, h, w]``, the first k levels, to clips ``[B, 3, T, H, W]``, about in [0, 1]."""

    @torch.no_grad()
    def encode(self, x: Tensor, levels: int | None = None, rate: float | None = None) -> Tokens:
        """Clips ``[B, 3, T, H, W]`` in [0, 1] or uint8 to tokens of ``levels`` levels, all if None.

        Args:   rate: frames a second.
        Raises: ValueError for other shapes, types or ranges, see :mod:`..inputs`.
        """
        x = to_clips(x, self.device)
        check_pixels(x)
        spec = self.spec(tuple(x.shape[2:]), sample_rate=rate)
        missing = [whole - n for whole, n in zip(spec.span(spec.grid), spec.size, strict=True)]
        x = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")
        return Tokens(self.encode_codes(x)[:, : self.check_levels(levels)], spec)

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Tokens to clips ``[B, 3, T, H, W]`` in [0, 1]. Raises ValueError if they are another model's."""
        self.check_tokens(tokens)
        frames, height, width = tokens.spec.size
        return self.decode_codes(tokens.codes.to(self.device))[:, :, :frames, :height, :width].clamp(0, 1)

    def encoder(self, height: int, width: int, levels: int | None = None, errors: bool = False) -> ClipEncoder:
        """What codes a clip whose frames come one by one.

        Args: levels: of the codes, all if None.  errors: whether those are wanted.
        """
        return WholeClipEncoder(self, height, width, levels, errors=errors)

    def decoder(self, height: int, width: int) -> ClipDecoder:
        """What decodes a clip whose cells come one by one."""
        return WholeClipDecoder(self, height, width)


class WholeClipEncoder:
    """See :meth:`VideoTokenizer.encoder`: all codes come at the end. Errors are those of pixels."""

    def __init__(
        self, model: VideoTokenizer, height: int, width: int, levels: int | None = None, *, errors: bool = False
    ) -> None:
        model.require_float32()
        self.model, self.errors = model, errors
        self.levels = model.check_levels(levels)
        stride = model.strides[1]
        self.none = np.zeros((self.levels, 0, -(-height // stride), -(-width // stride)), dtype=np.int64)
        self.frames: list[Pixels] = []

    def push(self, pixels: Pixels) -> CodedCells:
        self.frames.append(pixels)
        return self.none, np.zeros(self.levels)

    @torch.no_grad()
    def finish(self) -> CodedCells:
        x = torch.from_numpy(np.stack(self.frames)).permute(3, 0, 1, 2)[None].to(self.model.device).float() / 255
        tokens = self.model.encode(x, self.levels)
        errors = np.zeros(self.levels)
        if self.errors:
            made = (self.model.decode(tokens.levels(k + 1)) for k in range(self.levels))
            errors = np.array([float((x - x_hat).square().double().sum()) for x_hat in made])
        return tokens.codes[0].cpu().numpy(), errors


class WholeClipDecoder:
    """See :meth:`VideoTokenizer.decoder`: all frames come at the end."""

    def __init__(self, model: VideoTokenizer, height: int, width: int) -> None:
        model.require_float32()
        self.model, self.size = model, (height, width)
        self.cells: list[npt.NDArray[np.int64]] = []

    def push(self, codes: npt.NDArray[np.int64]) -> Pixels:
        self.cells.append(codes)
        return np.zeros((0, *self.size, 3), dtype=np.uint8)

    @torch.no_grad()
    def finish(self) -> Pixels:
        codes = torch.from_numpy(np.stack(self.cells, 1)[None]).to(self.model.device)
        x_hat = self.model.decode_codes(codes)[0, :, :, : self.size[0], : self.size[1]]
        pixels: Pixels = (x_hat.clamp(0, 1) * 255).round().byte().permute(1, 2, 3, 0).cpu().numpy()
        return pixels
