"""The sound of a video: which model and rate it gets, and its encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..audio.decode import audio_tokenizer
from ..audio.encode import Search, SoundFile, analyse_samples, sound_header
from ..container.chunks import CodedSound
from ..errors import MediaError, RateError
from ..media.read_video import VideoReader
from ..models import load_model
from ..progress import SILENT, Progress
from ..registry import MODALITIES

if TYPE_CHECKING:
    from ..options import EncodeOptions


SOUND_KBPS = 3.0  # of every signal, unless that is much of the file
SOUND_SHARE = 5  # then a fifth of it


def encode_track(
    reader: VideoReader, options: EncodeOptions, most: float, progress: Progress = SILENT
) -> tuple[CodedSound | None, list[str]]:
    """The sound of a video, coded, None if it has no samples; and notes. What is damaged goes into ``reader.problems``.

    Args:   most: thousands of bits a second that are fine for the sound if it was not said.
    Raises: RateError if the sound cannot be coded with what was said; MediaError.
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
                source, tokenizer, errors=True, progress=progress, skip=max(0, -start), search=search
            )
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
