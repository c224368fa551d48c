"""The tracks of a video: which are taken; of its sound which model and rate it gets, and its encoding."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from ..audio.decode import audio_tokenizer
from ..audio.encode import Search, SoundFile, SoundTokens, analyse_samples, sound_header
from ..container.chunks import CodedSound
from ..errors import MediaError, RateError
from ..media.read_video import VideoReader
from ..models import Model, load_model
from ..progress import Progress
from ..registry import MODALITIES
from .clock import Clock

if TYPE_CHECKING:
    from ..contract import Source
    from ..options import EncodeOptions, Rate


NO_SOUND = "the sound is left out as asked"
SOUND_KBPS = 3.0  # of every signal, unless that is much of the file
SOUND_SHARE = 5  # then a fifth of it


def open_video(source: Source, options: EncodeOptions) -> VideoReader:
    """The tracks that were asked for. Raises MediaError, or UsageError for a track that is not there."""
    sound = None if options.sound is None else options.sound.track
    return VideoReader(source.data, source.name, options.max_pixels, options.track, sound)


def most_bytes(rate: Rate, pixels: int, seconds: Fraction) -> int | None:
    """Bytes that a video of so many pixels in all frames, and seconds, may take; None if that was not said."""
    return rate.most_bytes(pixels) if rate.kbps is None else int(rate.kbps * 125 * seconds)


def sound_share(rate: Rate, pixels: int, seconds: Fraction) -> float:
    """Thousands of bits a second of that which may go to the sound."""
    most = most_bytes(rate, pixels, seconds)
    return float("inf") if most is None else most / 125 / float(seconds) / SOUND_SHARE


@dataclass(frozen=True)
class Track:
    """The sound of a video as codes. start: samples from the beginning of the time line to the first one."""

    name: str
    model: Model
    tokens: SoundTokens
    start: int
    kbps: float | None  # thousands of bits a second that were asked for

    @property
    def end(self) -> Fraction:
        """Seconds from the beginning of the time line."""
        return Fraction(self.start + self.tokens.samples, self.tokens.sample_rate)

    def code(self, most: float) -> CodedSound:
        """Coded with the rate that was asked for; otherwise with the usual one, and at most so many kbit/s.

        Raises: RateError if it cannot be.
        """
        files = SoundFile(self.model, self.tokens, sound_header(self.tokens, self.model))
        kbps = min(SOUND_KBPS * len(self.tokens.codes), most) if self.kbps is None else self.kbps
        size = int(kbps * 125 * self.tokens.seconds)
        try:
            _, levels = files.nearest(size) if self.kbps is None else files.within(size)
        except RateError as error:
            raise RateError(f"{self.name}: of its sound, {error}") from error
        return CodedSound(files.header, self.start, files.payloads(levels))


def code_track(
    reader: VideoReader, options: EncodeOptions, pixels: int, clock: Clock, progress: Progress
) -> tuple[CodedSound | None, Clock, list[str]]:
    """The sound of a video, None if there is none or it is left out; the clock, whose last frame stays until it ends;
    and notes. What is damaged goes into ``reader.problems``.

    Args:   pixels: of all frames.
    Raises: MediaError; RateError if it cannot be coded so small.
    """
    if not reader.has_sound or options.sound is None:
        return None, clock, [NO_SOUND] * reader.has_sound
    track, notes = _analyse(reader, options, sound_share(options.rate, pixels, clock.seconds), progress)
    if track is None:
        return None, clock, notes
    clock = clock.until(track.end)
    return track.code(sound_share(options.rate, pixels, clock.seconds)), clock, notes


def _analyse(
    reader: VideoReader, options: EncodeOptions, most: float, progress: Progress
) -> tuple[Track | None, list[str]]:
    """Codes of the sound, None if it has no samples; and notes.

    most: thousands of bits a second that are fine for the sound, about, if it was not said.
    """
    wanted = options.sound
    assert wanted is not None
    try:
        source, begin = reader.sound(options.max_samples)
        with source:
            model = load_model(wanted.model or MODALITIES["audio"].encode_model, options.device)
            tokenizer = audio_tokenizer(model)
            start = round(begin * source.sample_rate)
            kbps = min(SOUND_KBPS * source.channels, most) if wanted.kbps is None else wanted.kbps
            search = Search(len(tokenizer.codebook_sizes), kbps)
            tokens = analyse_samples(
                source, tokenizer, errors=True, progress=progress, skip=max(0, -start), search=search, pairs=True
            )
            notes = list(source.notes)
            reader.problems += [f"its sound: {said}" for said in source.problems if said not in reader.problems]
    except MediaError as error:
        raise type(error)(f"{error} (its sound; --no-sound leaves it out)") from error
    if tokens is None and source.position == 0:
        return None, [*notes, "its sound track holds no samples"]
    if start < 0:
        notes.append(f"{-start} samples of sound before the beginning of the time line are not kept")
    if tokens is None:
        return None, notes
    return Track(reader.name, model, tokens, max(0, start), wanted.kbps), notes
