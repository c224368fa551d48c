"""`.tok` -> media file. The twin of encode.py: step N here undoes step N there.

6. read    2. load the model    5. pick the layers    4. codes    3. pixels, tile by tile    1. write the media

Steps 3 to 5 of models whose rate dial is a quality are in photo.py; sounds and videos, which are never in memory as a
whole (sounds are if that is asked for), are in sound.py and video.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .container import (
    ALPH,
    AUDIO,
    EXIF,
    HYPERPRIOR,
    ICCP,
    IMAGE,
    MAX_PIXELS,
    MAX_SAMPLES,
    TAIL,
    VIDEO,
    AudioHeader,
    Header,
    ImageHeader,
    TokFile,
    VideoHeader,
    read_tok,
)
from .errors import ChunkError, FormatError, ModelError, UsageError
from .files import open_output, read_bytes
from .media.audio import Sound
from .media.image import Picture, decode_alpha, write_image
from .models import Model, model_for, pick_device

if TYPE_CHECKING:
    import numpy as np

    from ..tokenizers.api import Tokenizer, Tokens
    from ..tokenizers.image.photo import ImagePhoto


DEFAULT_SUFFIXES = {IMAGE: ".png", AUDIO: ".wav", VIDEO: ".mp4"}
CONCEAL_MARGIN = 8  # cells around a lost segment that its filling looks at


@dataclass
class Decoded:
    """A decoded picture, sound or video.

    Attributes:
        media: pixels and metadata, or the samples; None for a sound that went into a file block by block, and for a
            video, which :func:`.video.decode_frames` gives frame by frame.
        header: what the file says of it.
        levels: the fewest layers that any segment of a picture was decoded with; 1 for sounds and videos.
        problems: damage, one line each; what was lost is filled by the entropy model or decoded coarser, silent, or
            the frame before.
        notes: what the output format could not keep.
    """

    media: Picture | Sound | None
    header: Header
    levels: int
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def layers(self) -> int:
        """Layers that the complete file has."""
        return self.header.layers

    @property
    def picture(self) -> Picture:
        """Raises UsageError if it is something else."""
        if not isinstance(self.media, Picture):
            raise UsageError("no picture was decoded")
        return self.media

    @property
    def sound(self) -> Sound:
        """Raises UsageError if it is something else, or went into a file."""
        if not isinstance(self.media, Sound):
            raise UsageError("no sound was decoded into memory")
        return self.media


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
                decoded = _decode_video(
                    tok, file, names, model, hear if sound else None, device, levels, moments, strict, progress, count
                )
            elif isinstance(tok.header, AudioHeader):
                decoded = _decode_sound(tok, file, names, model, device, levels, (start, end), strict, progress)
            else:
                if (start, end) != (None, None):
                    raise UsageError(f"{name} holds a picture, which has no start and end")
                decoded = _decode_picture(tok, model, device, levels, synthesis, progress)
        except (FormatError, ModelError) as error:
            raise type(error)(f"{name}: {error}") from error
        if strict and tok.problems:
            raise FormatError(f"{name}: {tok.problems[0]}")
        if file is not None and isinstance(decoded.media, Picture):
            decoded.notes += write_image(decoded.media, file, suffix, str(dst))  # 1
    return decoded


def _decode_picture(
    tok: TokFile,
    model: str | None,
    device: str,
    levels: int | None,
    synthesis: str | None,
    progress: Callable[[float], None] | None,
) -> Decoded:
    header = tok.picture
    if header.prior == HYPERPRIOR:
        pixels, held = photo_pixels(tok, model, device, levels, synthesis, progress)  # 2 to 5
    else:
        tokens, loaded = file_tokens(tok, model, device, levels)  # 2, 5, 4
        held = fewest_layers(tok, levels) if header.prior == TAIL else fewest_levels(tokens)
        pixels = decode_pixels(tokens, loaded, header.channels, synthesis, progress)  # 3
    return Decoded(picture_of(tok, pixels), header, held, tok.problems)


def _decode_sound(
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
    from .sound import decode_sound, span_of, write_sound

    span = span_of(tok.sound, *moments)
    loaded = model_for(tok.header, model, pick_device(device))  # 2
    if file is None:
        return Decoded(decode_sound(tok, loaded, span, levels, progress), tok.header, 1, tok.problems)  # 5, 4, 3
    notes = write_sound(tok, loaded, span, file, *names, levels, strict, progress)  # 5, 4, 3, 1
    return Decoded(None, tok.header, 1, tok.problems, notes)


def _decode_video(
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
    from .fit_video import video_model
    from .video import part_of, write_frames

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


def fewest_levels(tokens: Tokens) -> int:
    """The number of levels that every cell has at least; codes ``[1, k, h, w]``."""
    return int((tokens.codes >= 0).sum(1).min())


def fewest_layers(tok: TokFile, levels: int | None) -> int:
    """The number of layers that every segment has at least, of those that are wanted."""
    header = tok.picture
    wanted = min(levels or header.layers, header.layers)
    return min(len(tok.segment_payloads(segment, wanted)) for segment in range(header.n_segments))


def file_tokens(
    tok: TokFile, model: str | None = None, device: str = "auto", levels: int | None = None
) -> tuple[Tokens, Model]:
    """Tokens of a parsed file and the model they belong to. What is lost is noted in ``tok.problems``.

    A segment without its first layer is filled with what the entropy model expects there; a segment without a later
    layer is ``ABSENT`` (-1) from there on. Raises UsageError for a video of several segments.
    """
    import numpy as np
    import torch

    from ..tokenizers.api import Tokens
    from ..tokenizers.image.grid import ImageGrid
    from ..tokenizers.image.sequence import ImageSequence

    loaded = model_for(tok.header, model, pick_device(device))
    if isinstance(tok.header, AudioHeader):
        from .sound import file_codes

        return file_codes(tok, loaded, levels), loaded
    if isinstance(tok.header, VideoHeader):
        from .clip import file_codes as clip_codes

        return clip_codes(tok, loaded, levels), loaded
    header = tok.picture
    if header.prior == HYPERPRIOR:
        return photo_file_tokens(tok, loaded, levels), loaded
    if levels is not None and levels < 1:
        raise UsageError(f"levels must be at least 1, got {levels}")
    wanted = min(levels or header.layers, header.layers)
    tokenizer = loaded.tokenizer
    assert isinstance(tokenizer, (ImageGrid, ImageSequence))
    spec = tokenizer.spec(header.height, header.width)
    if spec.grid != header.grid:  # checked first: a stride of 1 would ask for 256 times the memory
        raise ChunkError(f"the header's stride {header.stride} is not that of {header.model}")
    most = wanted if isinstance(tokenizer, ImageGrid) else tokenizer.config.tokens
    codes = np.full((1, most, *header.grid), -1, dtype=np.int64)
    lost = []
    for segment in range(header.n_segments):
        top, left, bottom, right = header.segment_box(segment)
        payloads = tok.segment_payloads(segment, wanted)
        part = decompress_segment(tok, loaded, segment, payloads, (bottom - top, right - left))
        if part is None:
            lost.append(segment)
        else:
            codes[0, : len(part), top:bottom, left:right] = part
    for segment in lost:
        conceal_segment(codes[0], header.segment_box(segment), loaded)
    held = int((codes >= 0).any(axis=(0, 2, 3)).sum())
    return Tokens(torch.from_numpy(codes[:, :held]), spec), loaded


def photo_model(model: Model) -> ImagePhoto:
    from ..tokenizers.image.photo import ImagePhoto

    if not isinstance(model.tokenizer, ImagePhoto):
        raise ChunkError(f"the header's entropy model is not one of {model.tokenizer.name}")
    return model.tokenizer


def check_one_synthesis(model: Tokenizer, synthesis: str | None) -> None:
    """Raise UsageError if a synthesis net was asked for by name."""
    if synthesis is not None:
        raise UsageError(f"{model.name} has one synthesis net only")


def photo_pixels(
    tok: TokFile,
    model: str | None,
    device: str,
    levels: int | None,
    synthesis: str | None,
    progress: Callable[[float], None] | None,
) -> tuple[np.ndarray, int]:
    """Pixels ``[H, W, channels]`` of a file whose rate dial is a quality, and the fewest layers of a segment."""
    from .photo import decode_walks, read_walks

    photo = photo_model(model_for(tok.header, model, pick_device(device)))
    check_one_synthesis(photo, synthesis)
    walks, held = read_walks(tok, photo, levels, None if progress is None else lambda share: progress(share / 2))
    return decode_walks(walks, tok, photo, None if progress is None else lambda share: progress(0.5 + share / 2)), held


def photo_file_tokens(tok: TokFile, model: Model, levels: int | None) -> Tokens:
    """Tokens of such a file: the channels that all of its segments have."""
    import torch

    from ..tokenizers.api import Tokens
    from ..tokenizers.image.photo import pack_codes
    from .photo import read_walks

    photo, header = photo_model(model), tok.picture
    walks, _ = read_walks(tok, photo, levels)
    codes = torch.from_numpy(pack_codes(walks, header.grid))
    return Tokens(codes[None], photo.spec(header.height, header.width, header.quality / 100))


def decompress_segment(
    tok: TokFile, model: Model, segment: int, payloads: list[bytes], grid: tuple[int, int]
) -> np.ndarray | None:
    """Codes ``[k, *grid]`` of a segment, None if it is lost; a payload that does not decode costs later layers too."""
    while payloads:
        try:
            return model.prior.decompress(payloads, grid)
        except ValueError as error:
            tok.damaged(f"segment {segment}: {error}; decoded from {len(payloads) - 1} layers")
            payloads = payloads[:-1]
    tok.damaged(f"segment {segment}: lost, {grid[0]} x {grid[1]} cells filled with what the entropy model expects")
    return None


def conceal_segment(codes: np.ndarray, box: tuple[int, int, int, int], model: Model) -> None:
    """Fill the first layer of a lost segment of ``codes [K, h, w]`` in place, given what lies around it."""
    from ..tokenizers.image.grid import ImageGrid

    codewords = None
    if isinstance(model.tokenizer, ImageGrid):
        codewords = [level.codebook.detach().float().cpu().numpy() for level in model.tokenizer.codebooks]
    top, left, bottom, right = box
    y, x = max(0, top - CONCEAL_MARGIN), max(0, left - CONCEAL_MARGIN)
    window = codes[:, y : bottom + CONCEAL_MARGIN, x : right + CONCEAL_MARGIN]
    # Lost neighbours in the window are filled as well, but only to go on from: each has a turn of its own.
    filled = model.prior.conceal(window, codewords, levels=1)
    codes[0, top:bottom, left:right] = filled[0, top - y : bottom - y, left - x : right - x]


def decode_pixels(
    tokens: Tokens,
    model: Model,
    channels: int,
    synthesis: str | None,
    progress: Callable[[float], None] | None = None,
) -> np.ndarray:
    """Tokens to ``[H, W, channels]`` uint8. Raises UsageError if they do not decode."""
    from ..tokenizers.image.grid import ImageGrid
    from ..tokenizers.image.photo import ImagePhoto
    from ..tokenizers.image.sequence import ImageSequence
    from ..tokenizers.image.tiling import decode_tiled

    tokenizer = model.tokenizer
    if isinstance(tokenizer, ImageSequence):
        check_one_synthesis(tokenizer, synthesis)
        return tokenizer.decode_tiled(tokens, channels, progress).numpy()
    if isinstance(tokenizer, ImagePhoto):
        check_one_synthesis(tokenizer, synthesis)
        try:
            return tokenizer.decode_tiled(tokens, channels).numpy()
        except ValueError as error:
            raise UsageError(str(error)) from error
    assert isinstance(tokenizer, ImageGrid)
    try:
        tokenizer.check_synthesis(synthesis)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return decode_tiled(tokenizer, tokens, channels, synthesis, progress=progress).numpy()


def picture_of(tok: TokFile, pixels: np.ndarray) -> Picture:
    """Put pixels and what else the file holds together."""
    header = tok.picture
    alpha = None
    if header.alpha:
        payload = tok.payload(ALPH)
        try:
            if payload is None:
                raise ChunkError("missing or damaged")
            alpha = decode_alpha(payload, header.height, header.width)
        except FormatError as error:
            tok.damaged(f"alpha channel lost, the picture is opaque: {error}")
    notes = [f"decoded to 8 bits, the source had {header.bit_depth}"] if header.bit_depth != 8 else []
    return Picture(pixels, alpha, tok.metadata(ICCP), tok.metadata(EXIF), header.bit_depth, notes)
