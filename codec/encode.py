"""Media file -> `.tok`. The twin of decode.py: step N here undoes step N there.

1. read the media    2. load the model    3. codes, tile by tile    4. payloads    5. choose the layers    6. write

Steps 3 to 5 of models whose rate dial is a quality are in photo.py, of those with a number of tokens in sequence.py;
sounds and videos, which are never in memory as a whole, are in sound.py and video.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .audio.format import encode_sound_file
from .container.fields import MAX_PIXELS, MAX_SAMPLES
from .contract import Rate, SoundOptions, check_effort
from .errors import UsageError
from .files import open_output
from .image.levels import encode_picture
from .media.kind import media_kind
from .registry import FITTED, choose_model
from .video.fit.format import encode_fitted_file
from .video.format import encode_video_file

if TYPE_CHECKING:
    from .contract import Encoded


def encode_file(
    src: str | Path | BinaryIO,
    dst: str | Path | BinaryIO | None = None,
    model: str | None = None,
    quality: float | None = None,
    *,
    levels: int | None = None,
    bpp: float | None = None,
    size: int | None = None,
    kbps: float | None = None,
    tokens: int | None = None,
    prior: str | None = None,
    tune: str | None = None,
    effort: int = 0,
    device: str = "auto",
    force: bool = False,
    metadata: bool = True,
    max_pixels: int = MAX_PIXELS,
    max_samples: int = MAX_SAMPLES,
    sound: bool = True,
    sound_kbps: float | None = None,
    sound_model: str | None = None,
    minutes: float | None = None,
    progress: Callable[[float], None] | None = None,
    count: Callable[[int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> Encoded:
    """Encode a picture, a sound or a video.

    Args:
        src: path or binary file object.
        dst: path or binary file object; nothing is written if None.
        model: release name, folder or hub id; the default for the modality if None.
        quality: 0 to 100.  levels: 1 to K.  tokens: of a picture in all.  bpp: most bits per pixel, of a video those of
            all its frames.  kbps: most thousands of bits a second, of a video its sound included.  size: most bytes.
            At most one of these; by default all levels or tokens, or the default quality of a model that has neither.
        prior: entropy model, "context" (smaller files) or "static" of a model that has them; the best by default.
        tune: what the picture is to be best at, "psnr" (the default) or "ms-ssim", instead of ``model``.
        effort: 0 to 10, time spent on better codes, by models whose dial is a quality, and by those for sounds and for
            videos; see :data:`EFFORTS`.
        device: "auto", "cpu" or "cuda".
        force: overwrite ``dst``.
        metadata: keep ICC profile and EXIF.
        max_pixels, max_samples: refuse larger pictures and frames, and sounds with more samples in all channels.
        sound: keep the sound of a video.  sound_kbps: most thousands of bits a second for it, 3 a channel by default
            but no more than a fifth of a size that was asked for.  sound_model: for it, instead of the default.
        minutes: that "video-fit" may take, 3 by default.
        progress: called with the share of the work that is done, now and then.
        count: called with the number of a video's frames that are done.
        report: called with a line on how a fit stands.

    Returns: the file and what was noted on the way.
    Raises:  a :class:`~.errors.TokodecError`; ``dst`` is then as it was before.
    """
    rate = Rate(quality, levels, bpp, size, kbps, tokens)
    check_effort(effort)
    name = str(src) if isinstance(src, (str, Path)) else "standard input"
    with open_output(dst, force) as file:
        kind, source = media_kind(Path(src) if isinstance(src, str) else src)
        chosen = choose_model(model, tune, kind)
        if kind != "video" and (sound_kbps is not None or sound_model is not None):
            raise UsageError(f"the sound of videos has a rate and a model of its own, and {name} is none")
        if chosen == FITTED and kind != "video":
            raise UsageError(f"{FITTED} is for videos, and {name} is none")
        if minutes is not None and chosen != FITTED:
            raise UsageError(f"minutes are for the model {FITTED} only")
        if kind == "video":
            own = SoundOptions(sound_kbps, sound_model) if sound else None
            limits = max_pixels, max_samples
            if chosen == FITTED:
                if prior is not None:
                    raise UsageError(f"{FITTED} has no entropy models to choose from")
                if effort:
                    raise UsageError(f"the effort of {FITTED} is its minutes")
                encoded = encode_fitted_file(source, name, rate, minutes, own, device, limits, progress, report)
            else:
                encoded = encode_video_file(
                    source, name, chosen, rate, prior, effort, own, device, limits, progress, count
                )
        elif kind == "audio":
            encoded = encode_sound_file(source, name, chosen, rate, prior, effort, device, max_samples, progress)
        else:
            encoded = encode_picture(source, name, chosen, rate, prior, effort, device, metadata, max_pixels, progress)
        if file is not None:
            file.write(encoded.data)  # 6
    return encoded
