"""`.tok` -> media file. The twin of encode.py: step N here undoes step N there.

6. read    2. load the model    5. pick the layers    4. codes    3. pixels, tile by tile    1. write the media

Steps 3 to 5 of models whose rate dial is a quality are in photo.py; sounds and videos, which are never in memory as a
whole (sounds are if that is asked for), are in sound.py and video.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .audio.format import decode_sound_file
from .container.fields import (
    AUDIO,
    IMAGE,
    MAX_PIXELS,
    MAX_SAMPLES,
    VIDEO,
    AudioHeader,
    ImageHeader,
    VideoHeader,
)
from .container.read import read_tok
from .errors import FormatError, ModelError, UsageError
from .files import open_output, read_bytes
from .image.levels import decode_picture
from .media.read_image import Picture
from .media.write_image import write_image
from .models import model_for, pick_device
from .video.format import decode_video_file

if TYPE_CHECKING:
    from .contract import Decoded


DEFAULT_SUFFIXES = {IMAGE: ".png", AUDIO: ".wav", VIDEO: ".mp4"}


def decode_file(
    src: str | Path | BinaryIO,
    dst: str | Path | BinaryIO | None = None,
    model: str | None = None,
    *,
    levels: int | None = None,
    synthesis: str | None = None,
    start: float | None = None,
    end: float | None = None,
    format: str | None = None,
    device: str = "auto",
    force: bool = False,
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_samples: int = MAX_SAMPLES,
    sound: bool = True,
    sound_model: str | None = None,
    progress: Callable[[float], None] | None = None,
    count: Callable[[int], None] | None = None,
) -> Decoded:
    """Decode a `.tok` file to a picture, a sound or a video.

    Args:
        src: path or binary file object.
        dst: path or binary file object; nothing is written if None, and of a video nothing is decoded then.
        model: folder or name to take the weights from; the file's own model by default.
        levels: decode at most so many layers.
        synthesis: which synthesis net, e.g. "faithful" or "sharp"; the model's default if None.
        start, end: seconds of a sound or a video; only what lies between is decoded, of a video from the frame on that
            is shown at ``start``.
        format: suffix of the output format where the name of ``dst`` has none; ".png", ".wav" or ".mp4" by
            default.
        device: "auto", "cpu" or "cuda".
        force: overwrite ``dst``.
        strict: raise FormatError for a damaged or truncated file instead of decoding what is left.
        max_pixels, max_samples: refuse larger pictures and frames, and sounds with more samples in all channels.
        sound: decode the sound of a video.  sound_model: folder or name to take its weights from.
        progress: called with the share of the work that is done, now and then.
        count: called with the number of a video's frames that are done.

    Raises: a :class:`~.errors.TokodecError`; ``dst`` is then as it was before.
    """
    name = str(src) if isinstance(src, (str, Path)) else "standard input"
    suffix = format or (Path(dst).suffix if isinstance(dst, (str, Path)) else "")
    with open_output(dst, force) as file:
        try:
            tok = read_tok(read_bytes(src), max_pixels, max_samples if sound else None)  # 6
            suffix = suffix or DEFAULT_SUFFIXES[tok.header.modality]
            names = suffix, str(dst)
            if synthesis is not None and not isinstance(tok.header, ImageHeader):
                raise UsageError(f"{tok.header.model} has one synthesis net only")
            if isinstance(tok.header, VideoHeader):
                of_sound = "--sound-model (or leave the sound out: --no-sound)"
                hear = partial(model_for, tok.sound, sound_model, pick_device(device), of_sound) if tok.track else None
                moments = start, end
                decoded = decode_video_file(
                    tok, file, names, model, hear if sound else None, device, levels, moments, strict, progress, count
                )
            elif isinstance(tok.header, AudioHeader):
                decoded = decode_sound_file(tok, file, names, model, device, levels, (start, end), strict, progress)
            else:
                if (start, end) != (None, None):
                    raise UsageError(f"{name} holds a picture, which has no start and end")
                decoded = decode_picture(tok, model, device, levels, synthesis, progress)
        except (FormatError, ModelError) as error:
            raise type(error)(f"{name}: {error}") from error
        if strict and tok.problems:
            raise FormatError(f"{name}: {tok.problems[0]}")
        if file is not None and isinstance(decoded.media, Picture):
            decoded.notes += write_image(decoded.media, file, suffix, str(dst))  # 1
    return decoded
