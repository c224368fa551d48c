"""Videos as `.tok` files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..container.read import TokFile
from ..contract import EFFORTS, Decoded, encoded_video
from ..errors import UsageError
from ..models import Model, load_model, pick_device
from .track import sound_wanted

if TYPE_CHECKING:
    from ...tokenizers.tokens import Tokens
    from ..contract import Encoded, Rate, SoundOptions
    from ..models import Model


def decode_video_file(
    tok: TokFile,
    file: BinaryIO | None,
    names: tuple[str, str],  # suffix, and what messages call the file
    model: str | None,
    sound: Callable[[], Model] | None,  # the model of its sound
    device: str,
    levels: int | None,
    moments: tuple[float | None, float | None],
    strict: bool,
    progress: Callable[[float], None] | None,
    count: Callable[[int], None] | None,
) -> Decoded:
    from .clock import clock_of
    from .decode import part_of, write_frames
    from .fit.format import video_model

    header = tok.video
    part = part_of(clock_of(tok), *moments)
    loaded = video_model(header, model, pick_device(device))  # 2
    notes = ["the sound is left out as asked"] if tok.track is not None and sound is None else []
    if file is None:
        return Decoded(None, tok.header, 1, tok.problems, notes)
    notes += write_frames(
        tok, loaded, part, file, *names, sound=sound, levels=levels, strict=strict, progress=progress, count=count
    )  # 5, 4, 3, 1
    return Decoded(None, tok.header, 1, tok.problems, notes)


def encode_video_file(
    source: Path | BinaryIO,
    name: str,
    chosen: str,
    rate: Rate,
    prior: str | None,
    effort: int,
    sound: SoundOptions | None,
    device: str,
    limits: tuple[int, int],  # pixels of a frame, samples
    progress: Callable[[float], None] | None,
    count: Callable[[int], None] | None,
) -> Encoded:
    from .encode import encode_video

    loaded = load_model(chosen, pick_device(device), prior)  # 2
    if loaded.tokenizer.modality != "video":
        raise UsageError(f"{chosen} is a model for {loaded.tokenizer.modality}, and {name} is a video")
    wanted = sound_wanted(sound, device)
    found = encode_video(source, name, loaded, rate, wanted, progress, count, *limits, EFFORTS[effort])  # 1, 3, 4, 5
    return encoded_video(found)


def detokenize_video(tokens: Tokens, model: Model, name: str, file: BinaryIO | None, dst: str | Path | None) -> None:
    from .tokens import file_of_codes, write_codes

    if file is None:
        return
    suffix = Path(str(dst)).suffix
    if suffix.lower() != ".tok":
        write_codes(tokens, model, file, suffix, str(dst))
        return
    try:
        file.write(file_of_codes(tokens, model))
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from error
