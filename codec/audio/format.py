"""Sounds as `.tok` files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..container.read import TokFile
from ..contract import EFFORTS, Decoded, Encoded
from ..errors import UsageError
from ..media.audio import Sound, write_audio
from ..models import Model, load_model, model_for, pick_device

if TYPE_CHECKING:
    from ...tokenizers.tokens import Tokens
    from ..contract import Rate
    from ..models import Model


def decode_sound_file(
    tok: TokFile,
    file: BinaryIO | None,
    names: tuple[str, str],  # suffix, and what messages call the file
    model: str | None,
    device: str,
    levels: int | None,
    moments: tuple[float | None, float | None],
    strict: bool,
    progress: Callable[[float], None] | None,
) -> Decoded:
    from .decode import decode_sound, span_of, write_sound

    span = span_of(tok.sound, *moments)
    loaded = model_for(tok.header, model, pick_device(device))  # 2
    if file is None:
        return Decoded(decode_sound(tok, loaded, span, levels, progress), tok.header, 1, tok.problems)  # 5, 4, 3
    notes = write_sound(tok, loaded, span, file, *names, levels, strict, progress)  # 5, 4, 3, 1
    return Decoded(None, tok.header, 1, tok.problems, notes)


def encode_sound_file(
    source: Path | BinaryIO,
    name: str,
    chosen: str,
    rate: Rate,
    prior: str | None,
    effort: int,
    device: str,
    max_samples: int,
    progress: Callable[[float], None] | None,
) -> Encoded:
    from .encode import encode_sound

    loaded = load_model(chosen, pick_device(device), prior)  # 2
    if loaded.tokenizer.modality != "audio":
        raise UsageError(f"{chosen} is a model for {loaded.tokenizer.modality}, and {name} is a sound")
    found = encode_sound(source, name, loaded, rate, progress, max_samples, EFFORTS[effort])  # 1, 3, 4, 5
    data, levels, tokens = found
    return Encoded(data, int(levels.max()), notes=tokens.notes, seconds=tokens.seconds)


def detokenize_sound(
    tokens: Tokens, model: Model, name: str, file: BinaryIO | None, dst: str | Path | None
) -> Sound | None:
    from .tokens import file_of_codes, sound_of_codes

    if dst is not None and Path(dst).suffix.lower() == ".tok":
        assert file is not None
        try:
            file.write(file_of_codes(tokens, model))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
        return None
    sound = sound_of_codes(tokens, model)
    if file is not None:
        write_audio(sound, file, Path(str(dst)).suffix, str(dst))
    return sound
