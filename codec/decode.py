"""`.tok` -> media file. The twin of encode.py.

4. read    2. load the model    3. its format decodes    1. and writes

What a format does is in the wings: image/, audio/ and video/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .container.chunks import CNTS
from .container.fields import SIGNATURE
from .container.read import TokFile, read_tok
from .contract import Decoded, Format, Sink
from .errors import FormatError, ModelError
from .files import open_output, output_name, output_suffix, read_bytes, source_name
from .formats import fitted_format, format_of, needs_model
from .models import Model, model_for, pick_device
from .options import DecodeOptions, check_levels, with_short_forms
from .progress import Progress, as_progress
from .registry import MODALITIES, MODALITY_NAMES

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Unpack

    from ..tokenizers.api import Tokenizer
    from ..tokenizers.tokens import Tokens
    from .options import DecodeShort


def decode_file(
    src: str | Path | BinaryIO,
    dst: str | Path | BinaryIO | None = None,
    *,
    options: DecodeOptions | None = None,
    format: str | None = None,
    force: bool = False,
    progress: Progress | Callable[[float], None] | None = None,
    **short: Unpack[DecodeShort],
) -> Decoded:
    """Decode a `.tok` file to a picture, a sound or a video.

    >>> decode_file("photo.tok", "photo.png")
    >>> decode_file("song.tok", "chorus.flac", start=31.5, end=50)

    Args:
        src: path or binary file object.
        dst: path or binary file object; nothing is written if None, and of a video nothing is decoded then.
        options: what is asked for, see :class:`~.options.DecodeOptions`.
        format: suffix of the output format where the name of ``dst`` has none; ".png", ".wav" or ".mp4" by default. A
            name with another suffix is refused.
        force: overwrite ``dst``.
        progress: told how the work goes on; a function is called with the share that is done.
        short: fields of ``options`` and of its sound (``sound``: whether it is decoded, ``sound_model``).

    Raises: a :class:`~.errors.TokodecError`; ``dst`` is then as it was before.
    """
    options = with_short_forms(options or DecodeOptions(), short)
    options = replace(options, device=pick_device(options.device))
    name, suffix = source_name(src), output_suffix(dst, format)
    with open_output(dst, force, src) as file:
        try:
            most_samples = None if options.sound is None else options.max_samples
            tok = read_tok(read_bytes(src, SIGNATURE), options.max_pixels, most_samples)  # 4
            suffix = suffix or MODALITIES[MODALITY_NAMES[tok.header.modality]].suffix
            sink = None if file is None else Sink(file, suffix, output_name(dst))
            wing, loaded = format_and_model(tok, options.model, options.device)  # 2
            wing.check(options.given, f"{name}, a file of {tok.header.model}")
            decoded = wing.decode(tok, loaded, options, sink, as_progress(progress))  # 3
            if options.strict and tok.problems:
                raise FormatError(tok.problems[0])
        except (FormatError, ModelError) as error:
            raise type(error)(f"{name}: {error}") from error
    return decoded


def format_and_model(tok: TokFile, model: str | Tokenizer | None, device: str) -> tuple[Format, Model | None]:
    """What a file is decoded with. Raises ModelError if it is not there or another one.

    Args: model: folder or name to take the weights from; the file's own model if None.
    """
    if not needs_model(tok.header):
        return fitted_format(), None
    loaded = model_for(tok.header, model, device, counts=tok.payload(CNTS))
    return format_of(loaded.tokenizer), loaded


def file_tokens(
    tok: TokFile, model: str | Tokenizer | None = None, device: str = "auto", levels: int | None = None
) -> tuple[Tokens, Model]:
    """Tokens of a parsed file and the model that they belong to. What is lost is noted in ``tok.problems``.

    Raises: UsageError for a file that holds no tokens, a video of several segments, and levels below 1.
    """
    check_levels(levels)
    wing, loaded = format_and_model(tok, model, pick_device(device))
    if loaded is None:
        raise ModelError(f"a file of {tok.header.model} holds networks, no tokens")
    return wing.tokens_of(tok, loaded, levels), loaded


def video_frames(
    tok: TokFile,
    *,
    options: DecodeOptions | None = None,
    progress: Progress | Callable[[float], None] | None = None,
    **short: Unpack[DecodeShort],
) -> Iterator[tuple[Fraction, np.ndarray]]:
    """The frames of a parsed video with their times in seconds, one by one, ``[H, W, 3]`` uint8.

    Only what lies between ``start`` and ``end`` is decoded. What is lost is noted in ``tok.problems``; with ``strict``
    FormatError is raised after the last frame.

    Args:   options, progress, short: as in :func:`decode_file`.
    Raises: a :class:`~.errors.TokodecError`.
    """
    from .video.clock import shown_clock
    from .video.decode import decode_frames, part_of
    from .video.format import AnyVideoFormat

    options = with_short_forms(options or DecodeOptions(), short)
    options = replace(options, device=pick_device(options.device))
    part = part_of(shown_clock(tok), options.start, options.end)  # says so if the file is no video
    wing, loaded = format_and_model(tok, options.model, options.device)
    assert isinstance(wing, AnyVideoFormat)
    wing.check(options.given, f"a file of {tok.header.model}")
    frames = decode_frames(tok, wing.frames_of(tok, loaded, options), part, as_progress(progress))
    return _whole(frames, tok) if options.strict else frames


def _whole(frames: Iterator[tuple[Fraction, np.ndarray]], tok: TokFile) -> Iterator[tuple[Fraction, np.ndarray]]:
    yield from frames
    if tok.problems:
        raise FormatError(tok.problems[0])
