"""What every wing keeps: the :class:`Format` of its files, and the results that it gives."""

from __future__ import annotations

import abc
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from .container.fields import Header
from .errors import UsageError
from .media.audio import Sound
from .media.picture import Picture
from .options import RATES

if TYPE_CHECKING:
    from ..tokenizers.tokens import Tokens
    from .container.read import TokFile
    from .models import Model
    from .options import DecodeOptions, EncodeOptions, TokenizeOptions
    from .progress import Progress


@dataclass(frozen=True)
class Source:
    """A medium to read. name: what messages call it.  modality: what it holds."""

    data: Path | BinaryIO
    name: str
    modality: str


@dataclass(frozen=True)
class Sink:
    """Where a medium is written. suffix: its format.  name: what messages call it."""

    file: BinaryIO
    suffix: str
    name: str


@dataclass
class Encoded:
    """A finished file in memory.

    Attributes:
        data: the file.
        levels: layers in it; of a sound or a video the most levels that a segment has.
        pixels: H * W of a picture, of all frames of a video.  seconds: of a sound or a video.  frames: of a video.
            Fields that do not apply are 0.
        notes: what could not be kept, one line each.
        quality: of models whose rate it sets, else None.
        tokens: in all, of models whose rate is their number, else None.
        measured: metric and value of a picture that was to reach some, see :class:`~.options.Target`, else None.
        lossless: whether every pixel is as it was.
        problems: what is damaged or missing in the source, of which the rest was encoded, one line each.
    """

    data: bytes
    levels: int
    pixels: int = 0
    notes: list[str] = field(default_factory=list)
    quality: float | None = None
    seconds: float = 0.0
    tokens: int | None = None
    frames: int = 0
    measured: tuple[str, float] | None = None
    lossless: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """Bytes, and the rate where there is one."""
        rate = f", {self.kbps:.3f} kbps" if self.seconds else f", {self.bpp:.4f} bpp" if self.pixels else ""
        return f"{len(self.data)} bytes{rate}"

    @property
    def bpp(self) -> float:
        """Bits per pixel of the whole file, of a picture or a video."""
        return 8 * len(self.data) / self.pixels

    @property
    def kbps(self) -> float:
        """Thousands of bits a second of the whole file, of a sound or a video."""
        return 8e-3 * len(self.data) / self.seconds


@dataclass
class Decoded:
    """A decoded picture, sound or video.

    Attributes:
        media: a Picture or a Sound, or what another wing makes; None for a sound that went into a file block by block,
            and for a video, which :func:`.video.decode.decode_frames` gives frame by frame.
        header: what the file says of it.
        levels: the fewest layers that any segment of a picture was decoded with; 1 for sounds and videos.
        problems: damage, one line each; what was lost is filled by the entropy model or decoded coarser, silent, or
            the frame before.
        notes: what the output format could not keep.
    """

    media: Any
    header: Header
    levels: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def layers(self) -> int:
        """Layers that the complete file has."""
        return self.header.layers

    @property
    def picture(self) -> Picture:
        """Raises UsageError if it is something else."""
        if not isinstance(self.media, Picture):
            raise UsageError("no picture was decoded")
        return self.media

    @property
    def sound(self) -> Sound:
        """Raises UsageError if it is something else, or went into a file."""
        if not isinstance(self.media, Sound):
            raise UsageError("no sound was decoded into memory")
        return self.media


@dataclass
class Tokenized:
    """Tokens of a file, what was damaged in it and what could not be kept."""

    tokens: Tokens
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Detokenized:
    """What tokens decode to, None for a video, which is in its file alone; and what that could not keep."""

    media: Any = None
    notes: list[str] = field(default_factory=list)


class Format(abc.ABC):
    """How tokens of one modality and one layout become a `.tok` file and come back; one object for each.

    Attributes:
        rates: what can set the rate of encoding, by the names of the command line.
        options: which of the options that not every format knows make sense, likewise.
        needs_model: whether tokens belong to a tokenizer; else the file holds all that decodes it, and the ``model`` of
            all methods is None.
    """

    rates: ClassVar[tuple[str, ...]]
    options: ClassVar[frozenset[str]]
    needs_model: ClassVar[bool] = True

    @abc.abstractmethod
    def encode(self, source: Source, model: Model | None, options: EncodeOptions, progress: Progress) -> Encoded:
        """A medium to the bytes of a file. Raises UsageError, RateError, MediaError."""

    @abc.abstractmethod
    def decode(
        self, tok: TokFile, model: Model | None, options: DecodeOptions, sink: Sink | None, progress: Progress
    ) -> Decoded:
        """A file to a medium, which goes into ``sink``; without one it stays in memory, and of a video nothing is done.

        Raises: FormatError if ``options.strict`` and something is damaged, before a target that cannot seek got bytes.
        """

    @abc.abstractmethod
    def tokenize(self, source: Source, model: Model, options: TokenizeOptions) -> Tokenized:
        """A medium to tokens; neither prior nor synthesis net runs."""

    @abc.abstractmethod
    def tokens_of(self, tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
        """The tokens of a file, at most so many layers. What is lost is noted in ``tok.problems``."""

    @abc.abstractmethod
    def pack(self, tokens: Tokens, model: Model) -> bytes:
        """Tokens to the bytes of a file. Raises UsageError if a file cannot hold them."""

    @abc.abstractmethod
    def render(self, tokens: Tokens, model: Model, sink: Sink | None, synthesis: str | None) -> Detokenized:
        """Tokens to a medium; a video only goes into the sink."""

    def check(self, given: Iterable[str], what: str) -> None:
        """Raise UsageError for options that ``what`` (a model's name) does not have."""
        for name in given:
            if name in RATES and name not in self.rates:
                use = ", ".join(self.rates[:-1]) + " or " * (len(self.rates) > 1) + "".join(self.rates[-1:])
                raise UsageError(f"{name} does not set the rate of {what}: {f'use {use}' if use else 'nothing does'}")
            if name not in RATES and name not in self.options:
                raise UsageError(f"{name} is not an option of {what}")


class Tokenless(Format):
    """Files whose codes mean nothing outside of them. reason: why."""

    reason: ClassVar[str]

    def tokenize(self, source: Source, model: Model, options: TokenizeOptions) -> Tokenized:
        raise UsageError(self.reason)

    def tokens_of(self, tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
        raise UsageError(self.reason)

    def pack(self, tokens: Tokens, model: Model) -> bytes:
        raise UsageError(self.reason)

    def render(self, tokens: Tokens, model: Model, sink: Sink | None, synthesis: str | None) -> Detokenized:
        raise UsageError(self.reason)
