"""Media file -> `.tok`. The twin of decode.py.

1. what does the file hold    2. load the model    3. its format encodes    4. write

What a format does is in the wings: image/, audio/ and video/.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .contract import Encoded, Source
from .counting import OWN, encode_by_own_tables
from .errors import UsageError
from .files import open_output, source_name
from .formats import fitted_format, format_of
from .media.audio import refuse_damage
from .media.kind import media_kind
from .models import load_model, pick_device
from .options import EncodeOptions, with_short_forms
from .progress import Progress, as_progress
from .registry import FITTED, MODALITIES, choose_model

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import EncodeShort


def encode_file(
    src: str | Path | BinaryIO,
    dst: str | Path | BinaryIO | None = None,
    *,
    options: EncodeOptions | None = None,
    force: bool = False,
    progress: Progress | Callable[[float], None] | None = None,
    **short: Unpack[EncodeShort],
) -> Encoded:
    """Encode a picture, a sound or a video.

    >>> encode_file("photo.png", "photo.tok", quality=60)
    >>> encode_file("song.wav", "song.tok", options=EncodeOptions(rate=Rate(kbps=6), effort=1))

    Args:
        src: path or binary file object.
        dst: path or binary file object; nothing is written if None.
        options: what is asked for, see :class:`~.options.EncodeOptions`.
        force: overwrite ``dst``.
        progress: told how the work goes on; a function is called with the share that is done.
        short: by their names, fields of ``options``, of its rate (``quality``, ``levels``, ``bpp``, ``size``, ``kbps``,
            ``tokens``, ``lossless``) and of its sound (``sound``: whether it is kept, ``sound_kbps``, ``sound_model``,
            ``sound_track``).

    Returns: the file and what was noted on the way.
    Raises:  a :class:`~.errors.TokodecError`; ``dst`` is then as it was before.
    """
    options = with_short_forms(options or EncodeOptions(), short)
    options = replace(options, device=pick_device(options.device))
    name = source_name(src)
    with open_output(dst, force, src) as file:
        kind, data = media_kind(Path(src) if isinstance(src, str) else src)  # 1
        source = Source(data, name, kind)
        chosen = choose_model(options.model, options.tune, kind)
        if chosen == FITTED:
            loaded, modality, format = None, "video", fitted_format()
        else:
            loaded = load_model(chosen, options.device, None if options.prior == OWN else options.prior)  # 2
            modality, format = loaded.tokenizer.modality, format_of(loaded.tokenizer)
        if modality != kind:
            what = chosen if loaded is None else loaded.tokenizer.name
            raise UsageError(f"{what} is a model for {modality}, and {name} is {MODALITIES[kind].noun}")
        format.check(options.given, FITTED if loaded is None else loaded.tokenizer.name)
        if options.prior == OWN and loaded is not None:
            encoded = encode_by_own_tables(format, source, loaded.tokenizer, options, as_progress(progress))  # 3
        else:
            encoded = format.encode(source, loaded, options, as_progress(progress))  # 3
        if options.strict:
            refuse_damage(encoded.problems, name)
        if file is not None:
            file.write(encoded.data)  # 4
    return encoded
