"""What a caller can ask of encoding, decoding and tokenizing: immutable options, and their short forms as keywords."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from .container.fields import MAX_PIXELS, MAX_SAMPLES
from .errors import UsageError, too_small

if TYPE_CHECKING:
    from ..tokenizers.api import Tokenizer

EFFORTS = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 160)  # gradient steps at effort 0, 1, ... 10
KEEP = frozenset({"icc", "exif", "xmp"})  # what of a picture is kept beside its samples
SOUND_OPTIONS = ("sound", "sound-kbps", "sound-model", "sound-track")  # of videos
COLOURS_ONLY = frozenset({"icc"})
RATES = ("quality", "levels", "bpp", "bytes", "kbps", "tokens", "target", "lossless", "max-error")  # as flags


TARGETS = {"psnr": (0.0, math.inf), "ms-ssim": (0.0, 1.0), "ssimulacra2": (-math.inf, 100.0)}  # and what they can be
MAX_ERROR = 32  # beyond, a quality is better


@dataclass(frozen=True)
class Target:
    """How near a decoded picture is to be at least: decibels of "psnr", or a value of "ms-ssim" or "ssimulacra2".

    Raises: UsageError for an unknown metric, or a value that it does not have.
    """

    metric: str
    least: float

    def __post_init__(self) -> None:
        if self.metric not in TARGETS:
            raise UsageError(f"a target is one of {', '.join(TARGETS)}, got {self.metric!r}")
        lowest, highest = TARGETS[self.metric]
        if not lowest < self.least <= highest or math.isinf(self.least):
            ends = [f"above {lowest:g}"] * math.isfinite(lowest) + [f"at most {highest:g}"] * math.isfinite(highest)
            raise UsageError(f"a target of {self.metric} is {' and '.join(ends)}, got {self.least:g}")

    @classmethod
    def parse(cls, text: str) -> Target:
        """A target as it is written, "psnr=40". Raises UsageError."""
        metric, _, least = text.partition("=")
        try:
            return cls(metric.strip().lower(), float(least))
        except ValueError:
            raise UsageError(f"a target is written psnr=40, ms-ssim=0.98 or ssimulacra2=80, got {text!r}") from None


@dataclass(frozen=True)
class Rate:
    """What the user asked for: at most one of these, the model's default if none. Raises UsageError for more."""

    quality: float | None = None  # 0 to 100
    levels: int | None = None  # 1 to K
    bpp: float | None = None  # most bits per pixel, of a picture or of the frames of a video
    size: int | None = None  # most bytes
    kbps: float | None = None  # most thousands of bits a second, of a sound or a video
    tokens: int | None = None  # of a picture in all
    target: Target | None = None  # how near a picture is at least
    lossless: bool = False  # every pixel of a picture as it was
    max_error: int | None = None  # of a sample of a picture, in 255ths of its range

    @property
    def whole(self) -> bool:
        """Whether samples are coded themselves."""
        return self.lossless or self.max_error is not None

    @property
    def given(self) -> list[str]:
        """What was asked for, by the names of the command line."""
        names = {f.name: f.name for f in fields(self)} | {"size": "bytes", "max_error": "max-error"}
        return [names[f.name] for f in fields(self) if getattr(self, f.name) != f.default]

    def __post_init__(self) -> None:
        if len(given := self.given) > 1:
            one = "quality, levels, tokens, bpp, kbps, bytes, target, lossless and max-error"
            raise UsageError(f"give one of {one}, not {' and '.join(given)}")
        if self.quality is not None and not 0 <= self.quality <= 100:
            raise UsageError(f"quality is 0 to 100, got {self.quality:g}")
        if self.bpp is not None and not 0 < self.bpp < float("inf"):
            raise UsageError(f"bpp must be positive, got {self.bpp:g}")
        if self.kbps is not None and not 0 < self.kbps < float("inf"):
            raise UsageError(f"kbps must be positive, got {self.kbps:g}")
        if self.size is not None and self.size <= 0:
            raise UsageError(f"bytes must be positive, got {self.size}")
        if self.max_error is not None and not 1 <= self.max_error <= MAX_ERROR:
            raise UsageError(f"max-error is 1 to {MAX_ERROR}, got {self.max_error}; without any error: lossless")
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
        raise too_small(len(build(1)), most, pixels=pixels)


@dataclass(frozen=True)
class SoundOptions:
    """What is said of a video's sound; None stands for the default."""

    kbps: float | None = None  # most thousands of bits a second
    model: str | None = None
    track: int | None = None  # which one, from 1 on

    def __post_init__(self) -> None:
        if self.kbps is not None and not 0 < self.kbps < float("inf"):
            raise UsageError(f"kbps of the sound must be positive, got {self.kbps:g}")
        check_track(self.track, "tracks of the sound")


def check_track(track: int | None, what: str = "tracks") -> None:
    """Raise UsageError for what is no number of a track."""
    if track is not None and track < 1:
        raise UsageError(f"{what} are numbered from 1 on, got {track}")


def check_levels(levels: int | None) -> None:
    """Raise UsageError for what is no number of levels to keep."""
    if levels is not None and levels < 1:
        raise UsageError(f"levels must be at least 1, got {levels}")


def check_effort(effort: int) -> None:
    """Raise UsageError for what is no effort."""
    if effort not in range(len(EFFORTS)):
        raise UsageError(f"effort is 0 to {len(EFFORTS) - 1}, got {effort}")


def _changed(options: Any, names: Collection[str]) -> list[str]:
    """Those of some fields of a dataclass that are not as they are by default, as the command line says them."""
    changed = [f.name for f in fields(options) if f.name in names and getattr(options, f.name) != f.default]
    return [name.replace("_", "-") for name in changed]


def _sound_given(sound: SoundOptions | None) -> list[str]:
    """What was said of a video's sound, by the names of the command line."""
    if sound is None:
        return ["sound"]
    return [f"sound-{f.name}" for f in fields(sound) if getattr(sound, f.name) is not None]


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How a medium is encoded.

    Attributes:
        rate: what sets the size.
        model: release name, folder, `hf:USER/MODEL` or a tokenizer; the default for the modality if None.
        prior: name of an entropy model; the best that the model has by default. "file": static tables that are counted
            on the file's own codes and stored in it, if that is smaller than codes of fixed lengths; encodes twice.
        tune: what a picture is to be best at, "psnr" (the default) or "ms-ssim", instead of ``model``.
        effort: 0 to 10, time spent on better codes, see ``EFFORTS``.
        alpha_quality: 0 to 100, how many levels of transparency a picture has; all of them (100) if None.
        minutes: that "video-fit" may take, 3 by default.
        low_delay: no frame of a video waits for a later one, for streams.
        keep: what of a picture's metadata is kept, of ``KEEP``; without its profile ("icc") samples become sRGB.
        strict: raise MediaError for a damaged input instead of encoding what is left.
        track: of a sound or a video, from 1 on; the one that the file calls its default if None.
        sound: of a video; None leaves it out.
        max_pixels, max_samples: larger pictures and frames are refused, and sounds with more samples in all channels.
        device: "auto", "cpu" or "cuda".
    """

    rate: Rate = Rate()
    model: str | Tokenizer | None = None
    prior: str | None = None
    tune: str | None = None
    effort: int = 0
    alpha_quality: int | None = None
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
        if self.alpha_quality is not None and not 0 <= self.alpha_quality <= 100:
            raise UsageError(f"alpha-quality is 0 to 100, got {self.alpha_quality}")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise UsageError(f"minutes must be positive, got {self.minutes:g}")
        check_track(self.track)
        if frozenset(self.keep) - KEEP:
            raise UsageError(f"what can be kept is icc, exif and xmp, got {' and '.join(sorted(self.keep))}")

    @property
    def n_steps(self) -> int:
        """Gradient steps towards better codes."""
        return EFFORTS[self.effort]

    @property
    def given(self) -> list[str]:
        """What not every format knows and the caller asked for."""
        names = ("effort", "low_delay", "minutes", "prior", "track", "keep", "alpha_quality")
        return self.rate.given + _changed(self, names) + _sound_given(self.sound)


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How a `.tok` file is decoded.

    Attributes:
        model: folder, name or tokenizer to take the weights from; the file's own model by default.
        levels: decode at most so many layers.
        synthesis: which synthesis net, e.g. "faithful" or "sharp"; the model's default if None.
        start, end: seconds of a sound or a video; only what lies between is decoded, of a video from the frame on that
            is shown at ``start``.
        strict: raise FormatError for a damaged or truncated file instead of decoding what is left.
        sound: of a video; None leaves it out.
        max_pixels, max_samples: larger pictures and frames are refused, and sounds with more samples in all channels.
        device: "auto", "cpu" or "cuda".
    """

    model: str | Tokenizer | None = None
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
        check_levels(self.levels)
        if self.sound is not None and (self.sound.kbps, self.sound.track) != (None, None):
            raise UsageError("kbps and track of a sound are for encoding")

    @property
    def given(self) -> list[str]:
        """What not every format knows and the caller asked for."""
        return _changed(self, ("synthesis", "start", "end")) + _sound_given(self.sound)


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """How a medium becomes tokens.

    Attributes:
        model: release name, folder, `hf:USER/MODEL` or a tokenizer; the default for the modality if None.
        levels: keep at most so many.  quality: 0 to 100, for models whose rate it sets.
        track: of a sound or a video, from 1 on; the one that the file calls its default if None.
        max_pixels, max_samples: larger pictures and frames are refused, and sounds with more samples in all channels.
        device: "auto", "cpu" or "cuda".
    """

    model: str | Tokenizer | None = None
    levels: int | None = None
    quality: float | None = None
    track: int | None = None
    max_pixels: int = MAX_PIXELS
    max_samples: int = MAX_SAMPLES
    device: str = "auto"

    def __post_init__(self) -> None:
        check_levels(self.levels)
        if self.quality is not None and not 0 <= self.quality <= 100:
            raise UsageError(f"quality is 0 to 100, got {self.quality:g}")


CORPUS_PATTERNS = ("levels", "interleaved", "delay", "parallel")  # of tokenizers/sequence.py
CORPUS_FORMATS = ("webdataset", "megatron", "parquet", "tok")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_RANKS = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """How tokens of many files are stored, and which of them this process makes.

    Attributes:
        format: one of ``CORPUS_FORMATS``.
        shard_size: when a shard is full: bytes as "256MB" (the sample that reaches them is the last), or a number of
            samples.
        pattern, digits: order and kind of the ids of "megatron", see :func:`~.corpus.megatron.sequencer_maker`.
        rank, world: which part of how many; from the environment if None (``RANK`` and ``WORLD_SIZE``, or those of
            Slurm), else all.
        workers: processes that read and decode media; 0: none beside this one. On a CPU as many more threads encode.
        resume: go on with a folder that was begun with the same options.
        ray: address of a Ray cluster that runs all ranks, "" for one that is started here; see :mod:`.corpus.cluster`.
    """

    format: str = "webdataset"
    shard_size: str = "256MB"
    pattern: str | None = None
    digits: bool = False
    rank: int | None = None
    world: int | None = None
    workers: int = 1
    resume: bool = False
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.format not in CORPUS_FORMATS:
            raise UsageError(f"a corpus is one of {', '.join(CORPUS_FORMATS)}, got {self.format!r}")
        if self.format != "megatron" and (self.pattern is not None or self.digits):
            raise UsageError("pattern and digits are those of a megatron corpus")
        if self.pattern not in (None, *CORPUS_PATTERNS):
            raise UsageError(f"unknown pattern {self.pattern!r}: use {', '.join(CORPUS_PATTERNS)}")
        if self.ray is not None and self.rank is not None:
            raise UsageError("Ray runs all ranks: give their number alone, the world")
        if (self.rank is None) != (self.world is None) and self.ray is None:
            raise UsageError("give rank and world, or neither")
        if self.workers < 0:
            raise UsageError(f"workers are 0 or more, got {self.workers}")
        _ = self.most, self.place

    @property
    def most(self) -> tuple[float, float]:
        """Bytes and samples of a full shard, one of them infinite. Raises UsageError."""
        text = self.shard_size.strip().upper()
        number, unit = text.rstrip("KMGB"), text[len(text.rstrip("KMGB")) :]
        if not number.isdecimal() or int(number) < 1 or unit.removesuffix("B") not in _UNITS:
            raise UsageError(f"a shard has bytes as 256MB, or a number of samples, got {self.shard_size!r}")
        return (int(number) * _UNITS[unit.removesuffix("B")], math.inf) if unit else (math.inf, int(number))

    @property
    def place(self) -> tuple[int, int]:
        """Rank and world. Raises UsageError."""
        rank, world = self.rank, self.world
        if rank is None or world is None:
            given = ([os.environ.get(name, "") for name in names] for names in _RANKS)
            rank, world = next((tuple(map(int, pair)) for pair in given if all(map(str.isdecimal, pair))), (0, 1))
        if not 0 <= rank < world:
            raise UsageError(f"ranks of a world of {world} are 0 to {world - 1}, got {rank}")
        return rank, world


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
    as any names or names with commas, and ``metadata=False`` for nothing but colours."""

    rate: Rate
    target: Target | str | None
    lossless: bool
    max_error: int | None
    model: str | Tokenizer | None
    prior: str | None
    tune: str | None
    effort: int
    alpha_quality: int | None
    minutes: float | None
    low_delay: bool
    keep: Iterable[str] | None
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

    model: str | Tokenizer | None
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

    model: str | Tokenizer | None
    levels: int | None
    quality: float | None
    track: int | None
    max_pixels: int
    max_samples: int
    device: str


def parse_keep(text: Iterable[str]) -> frozenset[str]:
    """Names of ``KEEP``, also as one text with commas, or "all" or "none". Raises UsageError for others."""
    if not isinstance(text, str):
        return frozenset(text)
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
        if isinstance(target := rate.get("target"), str):
            rate["target"] = Target.parse(target)
        if rate:
            left["rate"] = replace(left.get("rate", options.rate), **rate)
        keep, metadata = left.pop("keep", None), left.pop("metadata", True)
        if keep is not None and not metadata:
            raise UsageError("say what is to be kept or that no metadata is, not both")
        if keep is not None or not metadata:
            left["keep"] = COLOURS_ONLY if keep is None else parse_keep(keep)
    if not isinstance(options, TokenizeOptions):
        wanted = left.pop("sound", options.sound is not None)
        names = ("kbps", "model", "track") if isinstance(options, EncodeOptions) else ("model",)
        sound = {name: left.pop(f"sound_{name}") for name in names if f"sound_{name}" in left}
        if not wanted:
            if said := [f"sound-{name}" for name in names if sound.get(name) is not None]:
                raise UsageError(f"{' and '.join(said)} cannot go with a sound that is left out")
            left["sound"] = None
        elif sound or options.sound is None:
            left["sound"] = replace(options.sound or SoundOptions(), **sound)
    return replace(options, **left)
