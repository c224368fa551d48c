"""What a caller can ask of encoding, decoding and tokenizing: immutable options, and their short forms as keywords."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict, TypeVar

from .container.fields import MAX_PIXELS, MAX_SAMPLES
from .errors import RateError, UsageError

EFFORTS = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 160)  # gradient steps at effort 0, 1, ... 10
KEEP = frozenset({"icc", "exif", "xmp"})  # what of a picture is kept beside its samples
SOUND_OPTIONS = ("sound-kbps", "sound-model", "sound-track")  # of videos
COLOURS_ONLY = frozenset({"icc"})
RATES = ("quality", "levels", "bpp", "bytes", "kbps", "tokens", "lossless")  # as the command line says them


@dataclass(frozen=True)
class Rate:
    """What the user asked for: at most one of these, the model's default if none. Raises UsageError for more."""

    quality: float | None = None  # 0 to 100
    levels: int | None = None  # 1 to K
    bpp: float | None = None  # most bits per pixel, of a picture or of the frames of a video
    size: int | None = None  # most bytes
    kbps: float | None = None  # most thousands of bits a second, of a sound or a video
    tokens: int | None = None  # of a picture in all
    lossless: bool = False  # every pixel of a picture as it was

    @property
    def given(self) -> list[str]:
        """What was asked for, by the names of the command line."""
        names = {f.name: f.name for f in fields(self)} | {"size": "bytes"}
        return [names[f.name] for f in fields(self) if getattr(self, f.name) not in (None, False)]

    def __post_init__(self) -> None:
        if len(given := self.given) > 1:
            one = "quality, levels, tokens, bpp, kbps, bytes and lossless"
            raise UsageError(f"give one of {one}, not {' and '.join(given)}")
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

    @property
    def searched(self) -> bool:
        """Whether the file may be of a certain size at most."""
        return (self.bpp, self.size, self.kbps) != (None, None, None)

    def fixed_levels(self, n_levels: int) -> int:
        """The number of levels where no size was asked for: all by default, a quality in steps. Raises UsageError."""
        if self.levels is not None and not 1 <= self.levels <= n_levels:
            raise UsageError(f"levels is 1 to {n_levels} with this model, got {self.levels}")
        if self.quality is not None:
            return min(n_levels, 1 + int(self.quality * n_levels / 100))
        return n_levels if self.levels is None else self.levels

    def choose_levels(self, build: Callable[[int], bytes], n_levels: int, pixels: int) -> int:
        """The most levels that stay within the rate; ``build(n)`` makes the file with n of ``n_levels`` levels.

        Raises: UsageError for levels that the model lacks, RateError if one level is too much already.
        """
        most = self.most_bytes(pixels)
        if most is None:
            return self.fixed_levels(n_levels)
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

    kbps: float | None = None  # most thousands of bits a second
    model: str | None = None
    track: int | None = None  # which one, from 1 on

    def __post_init__(self) -> None:
        if self.kbps is not None and not 0 < self.kbps < float("inf"):
            raise UsageError(f"kbps of the sound must be positive, got {self.kbps:g}")


def check_effort(effort: int) -> None:
    """Raise UsageError for what is no effort."""
    if effort not in range(len(EFFORTS)):
        raise UsageError(f"effort is 0 to {len(EFFORTS) - 1}, got {effort}")


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How a medium is encoded.

    Attributes:
        rate: what sets the size.
        model: release name, folder or `hf:USER/MODEL`; the default for the modality if None.
        prior: name of an entropy model; the best that the model has by default.
        tune: what a picture is to be best at, "psnr" (the default) or "ms-ssim", instead of ``model``.
        effort: 0 to 10, time spent on better codes, see ``EFFORTS``.
        minutes: that "video-fit" may take, 3 by default.
        low_delay: no frame of a video waits for a later one, for streams.
        keep: what of a picture's metadata is kept, of ``KEEP``; without its profile ("icc") samples become sRGB.
        strict: raise MediaError for a damaged picture instead of encoding what is left.
        track: of a sound or a video, from 1 on; the one that the file calls its default if None.
        sound: of a video; None leaves it out.
        max_pixels, max_samples: larger pictures and frames are refused, and sounds with more samples in all channels.
        device: "auto", "cpu" or "cuda".
    """

    rate: Rate = Rate()
    model: str | None = None
    prior: str | None = None
    tune: str | None = None
    effort: int = 0
    minutes: float | None = None
    low_delay: bool = False
    keep: frozenset[str] = KEEP
    strict: bool = False
    track: int | None = None
    sound: SoundOptions | None = SoundOptions()
    max_pixels: int = MAX_PIXELS
    max_samples: int = MAX_SAMPLES
    device: str = "auto"

    def __post_init__(self) -> None:
        check_effort(self.effort)
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise UsageError(f"minutes must be positive, got {self.minutes:g}")
        if self.keep - KEEP:
            raise UsageError(f"what can be kept is icc, exif and xmp, got {' and '.join(sorted(self.keep))}")

    @property
    def n_steps(self) -> int:
        """Gradient steps towards better codes."""
        return EFFORTS[self.effort]

    @property
    def given(self) -> list[str]:
        """What not every format knows and the caller asked for."""
        sound = SoundOptions() if self.sound is None else self.sound
        asked = {
            "effort": self.effort, "low-delay": self.low_delay, "minutes": self.minutes, "prior": self.prior,
            "sound-kbps": sound.kbps, "sound-model": sound.model, "sound-track": sound.track, "track": self.track,
        }  # fmt: skip
        return self.rate.given + [name for name, value in asked.items() if value]


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How a `.tok` file is decoded.

    Attributes:
        model: folder or name to take the weights from; the file's own model by default.
        levels: decode at most so many layers.
        synthesis: which synthesis net, e.g. "faithful" or "sharp"; the model's default if None.
        start, end: seconds of a sound or a video; only what lies between is decoded, of a video from the frame on that
            is shown at ``start``.
        strict: raise FormatError for a damaged or truncated file instead of decoding what is left.
        sound: of a video; None leaves it out.
        max_pixels, max_samples: larger pictures and frames are refused, and sounds with more samples in all channels.
        device: "auto", "cpu" or "cuda".
    """

    model: str | None = None
    levels: int | None = None
    synthesis: str | None = None
    start: float | None = None
    end: float | None = None
    strict: bool = False
    sound: SoundOptions | None = SoundOptions()
    max_pixels: int = MAX_PIXELS
    max_samples: int = MAX_SAMPLES
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 1:
            raise UsageError(f"levels must be at least 1, got {self.levels}")

    @property
    def given(self) -> list[str]:
        """What not every format knows and the caller asked for."""
        names = ("synthesis", "start", "end")
        return [name for name in names if getattr(self, name) is not None]


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """How a medium becomes tokens.

    Attributes:
        model: release name, folder or `hf:USER/MODEL`; the default for the modality if None.
        levels: keep at most so many.  quality: 0 to 100, for models whose rate it sets.
        max_pixels: larger pictures and frames are refused.  device: "auto", "cpu" or "cuda".
    """

    model: str | None = None
    levels: int | None = None
    quality: float | None = None
    max_pixels: int = MAX_PIXELS
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 1:
            raise UsageError(f"levels must be at least 1, got {self.levels}")
        if self.quality is not None and not 0 <= self.quality <= 100:
            raise UsageError(f"quality is 0 to 100, got {self.quality:g}")


class RateShort(TypedDict, total=False):
    """Fields of :class:`Rate` as keywords."""

    quality: float | None
    levels: int | None
    bpp: float | None
    size: int | None
    kbps: float | None
    tokens: int | None


class EncodeShort(RateShort, total=False):
    """Keywords of :func:`~.encode.encode_file`: fields of :class:`EncodeOptions`, its rate and its sound; ``keep`` also
    as names with commas, and ``metadata=False`` for nothing but colours."""

    rate: Rate
    lossless: bool
    model: str | None
    prior: str | None
    tune: str | None
    effort: int
    minutes: float | None
    low_delay: bool
    keep: frozenset[str] | str | None
    metadata: bool
    strict: bool
    track: int | None
    sound: bool
    sound_kbps: float | None
    sound_model: str | None
    sound_track: int | None
    max_pixels: int
    max_samples: int
    device: str


class DecodeShort(TypedDict, total=False):
    """Keywords of :func:`~.decode.decode_file`: fields of :class:`DecodeOptions` and its sound."""

    model: str | None
    levels: int | None
    synthesis: str | None
    start: float | None
    end: float | None
    strict: bool
    sound: bool
    sound_model: str | None
    max_pixels: int
    max_samples: int
    device: str


class TokenizeShort(TypedDict, total=False):
    """Keywords of :func:`~.tokens.tokenize_file`: fields of :class:`TokenizeOptions`."""

    model: str | None
    levels: int | None
    quality: float | None
    max_pixels: int
    device: str


def parse_keep(text: str) -> frozenset[str]:
    """Names of ``KEEP`` with commas, or "all" or "none". Raises UsageError for others."""
    names = frozenset(name for part in text.split(",") if (name := part.strip().lower()))
    if names in ({"all"}, {"none"}):
        return KEEP if names == {"all"} else frozenset()
    if not names or names - KEEP:
        raise UsageError(f"what can be kept is icc, exif and xmp, or all or none, got {text!r}")
    return names


Options = TypeVar("Options", EncodeOptions, DecodeOptions, TokenizeOptions)


def with_short_forms(options: Options, short: Any) -> Options:
    """``options`` with short forms in their places: fields of it, of its rate and of its sound.

    Raises: TypeError for a name that none of them has, UsageError for a value that makes no sense.
    """
    left: dict[str, Any] = dict(short)
    if isinstance(options, EncodeOptions):
        rate = {f.name: left.pop(f.name) for f in fields(Rate) if f.name in left}
        if rate:
            left["rate"] = replace(left.get("rate", options.rate), **rate)
        keep, metadata = left.pop("keep", None), left.pop("metadata", True)
        if keep is not None and not metadata:
            raise UsageError("say what is to be kept or that no metadata is, not both")
        if keep is not None or not metadata:
            left["keep"] = COLOURS_ONLY if keep is None else parse_keep(keep) if isinstance(keep, str) else keep
    if not isinstance(options, TokenizeOptions):
        wanted = left.pop("sound", options.sound is not None)
        sound = {name: left.pop(f"sound_{name}") for name in ("kbps", "model", "track") if f"sound_{name}" in left}
        if not wanted:
            left["sound"] = None
        elif sound or options.sound is None:
            left["sound"] = replace(options.sound or SoundOptions(), **sound)
    return replace(options, **left)
