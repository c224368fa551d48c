"""What takes part in a rate benchmark: a codec that is ready to run, and what it makes of a clip.

A contender is a model of ours, a codec of others ("peer"), or a network with random weights that is only timed
("baseline"). Nothing here needs PyTorch, which other codecs do without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ..errors import RateError, UsageError
from ..settings import Setting

T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A result, and the seconds it took: by the clock, and of the processor in all threads of this process."""

    result: T
    wall_s: float
    cpu_s: float


def timed(work: Callable[..., T], *arguments: Any) -> Timed[T]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work(*arguments)
    return Timed(result, time.perf_counter() - wall, time.process_time() - cpu)


@dataclass(frozen=True)
class Coded:
    """What a contender made of a clip: one file, or one for each frame. size: the bytes that count for the clip."""

    files: tuple[bytes, ...]
    size: int

    @staticmethod
    def of(data: bytes) -> Coded:
        return Coded((data,), len(data))


class Spec(NamedTuple):
    """How another process makes a contender, and the setting that its memory is measured at.

    ``factory``: "module:function" within the folder of the benchmarks.  ``arguments``: for JSON.
    """

    factory: str
    arguments: Mapping[str, Any]
    setting: Setting


class Contender(Protocol):
    """A codec that is ready to run."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str:
        """ "ours", "frames" (ours for pictures, frame by frame), "peer" or "baseline"."""

    @property
    def settings(self) -> tuple[Setting, ...]:
        """From few bytes to many."""

    @property
    def variants(self) -> tuple[str, ...]:
        """What one file is decoded by, the names of our synthesis nets; one empty name if there is no choice."""

    @property
    def smallest(self) -> Setting | None:
        """What is measured where a rate cannot be reached; None if nothing."""

    @property
    def described(self) -> str:
        """How it is run, for the report."""

    def encode(self, clip: Any, setting: Setting) -> Coded:
        """Raises: RateError if its smallest file is above the rate, MediaError if it cannot code the clip."""

    def decode(self, coded: Coded, variant: str = "") -> Any:
        """What the metrics of its modality take."""

    def spec(self) -> Spec | None:
        """How to measure its memory; None if it is not measured."""


class Codec:
    """What most contenders have in common."""

    variants: tuple[str, ...] = ("",)
    smallest: Setting | None = None


def chosen(names: Iterable[str], known: Collection[str], what: str = "codec {} to compare with") -> list[str]:
    """Names without repetition. Raises UsageError for one that is not known."""
    found = list(dict.fromkeys(names))
    if unknown := [name for name in found if name not in known]:
        raise UsageError(f"unknown {what.format(repr(unknown[0]))}: choose from {', '.join(known)}")
    return found


def ffmpeg_encoder(name: str, options: Mapping[str, str]) -> str:
    """An encoder of FFmpeg with its options, and what it runs through, for the report."""
    import av

    library = ".".join(map(str, av.library_versions["libavcodec"]))
    told = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name} through PyAV {av.__version__} (libavcodec {library}): {told}"


def check_ffmpeg_encoder(name: str) -> None:
    """Raise UsageError for an encoder that this PyAV lacks."""
    import av

    if name not in av.codecs_available:
        raise UsageError(f"this PyAV was built without {name}: pip install -U av")


def middle(settings: Sequence[Setting]) -> Setting:
    return settings[len(settings) // 2]


class Result(NamedTuple):
    """One clip by one contender at one setting, decoded by one variant."""

    codec: Contender
    setting: Setting
    variant: str
    encoded: Timed[Coded]
    decoded: Timed[Any]
    reached: bool  # False if its smallest file was taken, which is above the rate

    @property
    def seconds(self) -> dict[str, float]:
        """By the clock, as fields of a row."""
        return {"encode_s": self.encoded.wall_s, "decode_s": self.decoded.wall_s}


def results(clip: Any, codecs: Sequence[Contender], notes: list[str]) -> Iterator[Result]:
    """Run every contender at every setting on one clip. ``notes`` gets the rates that cannot be reached."""
    for codec in codecs:
        for setting in codec.settings:
            reached = True
            try:
                encoded = timed(codec.encode, clip, setting)
            except RateError as error:
                if codec.smallest is None:
                    notes.append(f"{clip.name}, {codec.name} at {setting.label}: {error}")
                    continue
                encoded, reached = timed(codec.encode, clip, codec.smallest), False
            for variant in codec.variants:
                decoded = timed(codec.decode, encoded.result, variant)
                yield Result(codec, setting, variant, encoded=encoded, decoded=decoded, reached=reached)


def warm_up(clip: Any, codecs: Sequence[Contender], times: int = 1) -> None:
    """Code a clip and forget it, so that no measured time holds what happens only once; on GPUs kernels are chosen and
    recorded in the first runs at each size."""
    for codec in codecs:
        setting = codec.smallest or codec.settings[-1]
        for _ in range(times):
            try:
                coded = codec.encode(clip, setting)
            except RateError:
                break
            for variant in codec.variants:
                codec.decode(coded, variant)
