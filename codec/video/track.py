"""The sound of a video: which model and rate it gets, and its encoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..audio.decode import audio_tokenizer
from ..audio.encode import Search, SoundFile, analyse_samples, sound_header
from ..container.chunks import CodedSound
from ..errors import MediaError, RateError, UsageError
from ..media.read_video import VideoReader
from ..models import Model, load_model, pick_device
from ..registry import DEFAULT_MODELS

if TYPE_CHECKING:
    from ..contract import Progress, SoundOptions
    from ..models import Model


def sound_wanted(sound: SoundOptions | None, device: str) -> SoundWanted | None:
    """Its model is loaded only if there is a sound."""
    if sound is None:
        return None
    model = sound.model or DEFAULT_MODELS["audio"]
    return SoundWanted(lambda: load_model(model, pick_device(device)), sound.kbps)


SOUND_KBPS = 3.0  # of every signal, unless that is much of the file
SOUND_SHARE = 5  # then a fifth of it


@dataclass(frozen=True)
class SoundWanted:
    """What is to become of a video's sound: a model for it, and thousands of bits a second, None for the default."""

    load: Callable[[], Model]
    kbps: float | None = None

    def __post_init__(self) -> None:
        if self.kbps is not None and not 0 < self.kbps < float("inf"):
            raise UsageError(f"kbps of the sound must be positive, got {self.kbps:g}")


def encode_track(
    reader: VideoReader, wanted: SoundWanted, most: float, max_samples: int, progress: Progress | None = None
) -> tuple[CodedSound | None, list[str]]:
    """The sound of a video, coded, None if it has no samples; and notes. What is damaged goes into ``reader.problems``.

    Args:   most: thousands of bits a second that are fine for the sound if it was not said.
    Raises: RateError if the sound cannot be coded with what was said; MediaError.
    """
    try:
        source, begin = reader.sound(max_samples)
        with source:
            model = wanted.load()
            tokenizer = audio_tokenizer(model)
            start = round(begin * source.sample_rate)
            kbps = min(SOUND_KBPS * source.channels, most) if wanted.kbps is None else wanted.kbps
            search = Search(len(tokenizer.codebook_sizes), kbps)
            tokens = analyse_samples(source, tokenizer, None, True, progress, max(0, -start), search)
            notes = list(source.notes)
            reader.problems += [f"its sound: {said}" for said in source.problems if said not in reader.problems]
    except MediaError as error:
        raise type(error)(f"{error} (its sound; --no-sound leaves it out)") from error
    if start < 0:
        notes.append(f"{-start} samples of sound before the beginning of the time line are not kept")
    if tokens is None:
        return None, [*notes, "its sound track holds no samples"]
    files = SoundFile(model, tokens, sound_header(tokens, model))
    kbps = min(SOUND_KBPS * len(tokens.codes), most) if wanted.kbps is None else wanted.kbps
    size = int(kbps * 125 * tokens.seconds)
    try:
        _, levels = files.nearest(size) if wanted.kbps is None else files.within(size)
    except RateError as error:
        raise RateError(f"{reader.name}: of its sound, {error}") from error
    return CodedSound(files.header, max(0, start), files.payloads(levels)), notes
