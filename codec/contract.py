"""What all wings keep: options in, results out, and the :class:`Format` that each of them provides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from .allocation import Levels
from .container.fields import (
    Header,
)
from .errors import RateError, UsageError
from .media.audio import Sound
from .media.read_image import Picture

if TYPE_CHECKING:
    from ..tokenizers.tokens import Tokens
    from .media.read_image import Picture


@dataclass
class Decoded:
    """A decoded picture, sound or video.

    Attributes:
        media: pixels and metadata, or the samples; None for a sound that went into a file block by block, and for a
            video, which :func:`.video.decode_frames` gives frame by frame.
        header: what the file says of it.
        levels: the fewest layers that any segment of a picture was decoded with; 1 for sounds and videos.
        problems: damage, one line each; what was lost is filled by the entropy model or decoded coarser, silent, or
            the frame before.
        notes: what the output format could not keep.
    """

    media: Picture | Sound | None
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


EFFORTS = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 160)  # steps of descent at effort 0, 1, ... 10


@dataclass
class Encoded:
    """A finished file in memory.

    Attributes:
        data: the file.
        levels: layers in it; of a sound or a video the most levels that a segment has.
        pixels: H * W of a picture, of all frames of a video.  seconds: of a sound or a video.  What it lacks is 0.
        frames: of a video, else 0.
        notes: what could not be kept, one line each.
        quality: of models whose rate dial it is, else None.
        tokens: in all, of models whose rate dial is their number, else None.
    """

    data: bytes
    levels: int
    pixels: int = 0
    notes: list[str] = field(default_factory=list)
    quality: float | None = None
    seconds: float = 0.0
    tokens: int | None = None
    frames: int = 0

    @property
    def bpp(self) -> float:
        """Bits per pixel of the whole file, of a picture or a video."""
        return 8 * len(self.data) / self.pixels

    @property
    def kbps(self) -> float:
        """Thousands of bits a second of the whole file, of a sound or a video."""
        return 8e-3 * len(self.data) / self.seconds


@dataclass(frozen=True)
class Rate:
    """What the user asked for: at most one of these, the model's default if none. Raises UsageError for more."""

    quality: float | None = None  # 0 to 100
    levels: int | None = None  # 1 to K
    bpp: float | None = None  # most bits per pixel, of a picture or of the frames of a video
    size: int | None = None  # most bytes
    kbps: float | None = None  # most thousands of bits a second, of a sound or a video
    tokens: int | None = None  # of a picture in all

    def __post_init__(self) -> None:
        given = {
            "quality": self.quality, "levels": self.levels, "bpp": self.bpp, "kbps": self.kbps, "bytes": self.size,
            "tokens": self.tokens,
        }  # fmt: skip
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise UsageError(f"give one of quality, levels, tokens, bpp, kbps and bytes, not {' and '.join(names)}")
        if self.quality is not None and not 0 <= self.quality <= 100:
            raise UsageError(f"quality is 0 to 100, got {self.quality:g}")
        if self.bpp is not None and not 0 < self.bpp < float("inf"):
            raise UsageError(f"bpp must be positive, got {self.bpp:g}")
        if self.kbps is not None and not 0 < self.kbps < float("inf"):
            raise UsageError(f"kbps must be positive, got {self.kbps:g}")
        if self.size is not None and self.size <= 0:
            raise UsageError(f"bytes must be positive, got {self.size}")
        if self.tokens is not None and self.tokens <= 0:
            raise UsageError(f"tokens must be positive, got {self.tokens}")

    def most_bytes(self, pixels: int) -> int | None:
        """The bytes that ``bpp`` or ``size`` allow, None if neither was given."""
        return self.size if self.bpp is None else int(min(self.bpp * pixels / 8, 2**53))

    def choose_levels(self, build: Callable[[int], bytes], n_levels: int, pixels: int) -> int:
        """The most levels that stay within the rate; ``build(n)`` makes the file with n of ``n_levels`` levels.

        Raises: UsageError for levels that the model lacks, RateError if one level is too much already.
        """
        if self.levels is not None:
            if not 1 <= self.levels <= n_levels:
                raise UsageError(f"levels is 1 to {n_levels} with this model, got {self.levels}")
            return self.levels
        if self.quality is not None:
            return min(n_levels, 1 + int(self.quality * n_levels / 100))
        most = self.most_bytes(pixels)
        if most is None:
            return n_levels
        for n in range(n_levels, 0, -1):
            if len(build(n)) <= most:
                return n
        least = len(build(1))
        raise RateError(
            f"the smallest file takes {least} bytes ({8 * least / pixels:.4f} bpp), more than the {most} asked for"
        )


@dataclass(frozen=True)
class SoundOptions:
    """What is said of a video's sound; None stands for the default."""

    kbps: float | None  # most thousands of bits a second
    model: str | None


def check_effort(effort: int) -> None:
    """Raise UsageError for what is not an effort."""
    if effort not in range(len(EFFORTS)):
        raise UsageError(f"effort is 0 to {len(EFFORTS) - 1}, got {effort}")


def encoded_video(video: EncodedVideo, quality: float | None = None) -> Encoded:
    return Encoded(
        video.data,
        int(video.levels.max()),
        video.height * video.width * video.frames,
        video.notes,
        quality,
        float(video.seconds),
        frames=video.frames,
    )


@dataclass
class Tokenized:
    """Tokens of a file, what was damaged in it and what could not be kept."""

    tokens: Tokens
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Progress = Callable[[float], None]
Count = Callable[[int], None]  # frames that are done


@dataclass(frozen=True)
class EncodedVideo:
    """A file and what it holds. levels: of its segments."""

    data: bytes
    levels: Levels
    height: int
    width: int
    frames: int
    seconds: Fraction
    notes: list[str]
    problems: list[str] = field(default_factory=list)  # what is damaged or missing in the source
