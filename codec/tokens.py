"""Tokens as files: `.npz` and `.safetensors` with the codes and the spec that says what they mean.

Schema, the same for both: array ``codes`` int32 ``[B, K, *grid]`` and the fields of
:class:`~..tokenizers.api.TokenSpec` as one JSON text: in .npz the zero-dimensional string array ``spec``, in
.safetensors the metadata entry ``spec``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .audio.format import detokenize_sound
from .container.fields import MAX_PIXELS, SIGNATURE
from .container.read import read_tok
from .container.write import write_tok
from .contract import Tokenized
from .corpus.token_files import TOKEN_SUFFIXES, check_weights, dump_tokens, load_tokens, tokens_model
from .errors import FormatError, MediaError, ModelError, UsageError
from .files import open_output, read_bytes
from .image.levels import decode_pixels, encode_tokens, file_tokens
from .image.segments import compress_tokens, image_header
from .media.audio import Sound
from .media.kind import media_kind
from .media.read_image import Picture, read_image
from .media.write_image import write_image
from .models import load_model, pick_device
from .registry import TOKEN_MODELS
from .video.format import detokenize_video

if TYPE_CHECKING:
    from ..tokenizers.api import Tokenizer
    from ..tokenizers.tokens import Tokens, TokenSpec


_THINGS = {"audio": "a sound", "video": "a video"}


def tokenize_file(
    src: str | Path,
    dst: str | Path | None = None,
    model: str | None = None,
    *,
    levels: int | None = None,
    quality: float | None = None,
    device: str = "auto",
    force: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> Tokenized:
    """A picture, a sound, a video or a `.tok` file to tokens; the synthesis net does not run. Token files are read as
    they are.

    Args:   dst: `.npz` or `.safetensors`; nothing is written if None.  levels: keep at most so many.
            quality: 0 to 100, for pictures and models whose rate dial it is.
    Raises: a :class:`~.errors.TokodecError`.
    """
    if dst is not None and Path(dst).suffix.lower() not in TOKEN_SUFFIXES:
        raise UsageError(f"{dst}: tokens are written as {' or '.join(TOKEN_SUFFIXES)}")
    if levels is not None and levels < 1:
        raise UsageError(f"levels must be at least 1, got {levels}")
    if quality is not None and not 0 <= quality <= 100:
        raise UsageError(f"quality is 0 to 100, got {quality:g}")
    with open_output(dst, force) as file:
        if Path(src).suffix.lower() in TOKEN_SUFFIXES:
            done: Tokenized | None = Tokenized(_loaded_tokens(src, model, device))
        else:
            done = _tok_tokens(src, model, levels, device, max_pixels)
        if done is None:
            done = _media_tokens(src, model, device, max_pixels, quality, levels)
        elif quality is not None:
            raise UsageError(f"{src}: its codes are made already, with a quality of their own")
        if levels is not None:
            done.tokens = done.tokens.levels(min(levels, done.tokens.n_levels))
        if file is not None:
            file.write(dump_tokens(done.tokens, Path(str(dst)).suffix.lower()))
    return done


def _loaded_tokens(src: str | Path, model: str | None, device: str) -> Tokens:
    """Tokens of a token file; of this model, if one is named."""
    tokens = load_tokens(src)
    if model is not None:
        check_weights(tokens.spec, load_model(model, pick_device(device)).tokenizer, str(src))
    return tokens


def _tok_tokens(
    src: str | Path, model: str | None, levels: int | None, device: str, max_pixels: int
) -> Tokenized | None:
    """Tokens of a `.tok` file, None if ``src`` is something else."""
    data = read_bytes(src)
    if not data.startswith(SIGNATURE) and Path(src).suffix.lower() != ".tok":
        return None
    try:
        tok = read_tok(data, max_pixels)
        tokens, _ = file_tokens(tok, model, device, levels)
    except (FormatError, ModelError) as error:
        raise type(error)(f"{src}: {error}") from error
    return Tokenized(tokens, tok.problems)


def _media_tokens(
    src: str | Path, model: str | None, device: str, max_pixels: int, quality: float | None, levels: int | None
) -> Tokenized:
    kind, source = media_kind(Path(src))
    if kind != "image":
        loaded = load_model(model or TOKEN_MODELS[kind], pick_device(device))
        if loaded.tokenizer.modality != kind:
            modality = loaded.tokenizer.modality
            raise UsageError(f"{loaded.tokenizer.name} is a model for {modality}, and {src} is {_THINGS[kind]}")
        if quality is not None:
            raise UsageError(f"the rate dial of {loaded.tokenizer.name} is levels, not a quality")
        most = len(loaded.tokenizer.codebook_sizes)
        levels = None if levels is None else min(levels, most)
        if kind == "video":
            from .video.tokens import media_codes as clip_codes

            tokens, notes = clip_codes(source, str(src), loaded, levels, max_pixels)
        else:
            from .audio.tokens import media_codes

            tokens, notes = media_codes(source, str(src), loaded, levels)
        return Tokenized(tokens, [], notes)
    picture = read_image(Path(src), str(src), max_pixels)
    loaded = load_model(model or TOKEN_MODELS["image"], pick_device(device))
    if loaded.tokenizer.modality != "image":
        raise UsageError(f"{loaded.tokenizer.name} is a model for {loaded.tokenizer.modality}, and {src} is a picture")
    if quality is not None and loaded.tokenizer.dial != "quality":
        raise UsageError(f"the rate dial of {loaded.tokenizer.name} is levels, not a quality")
    notes = list(picture.notes)
    notes += [f"{what} is not part of tokens" for what, value in _extras(picture).items() if value]
    return Tokenized(encode_tokens(picture.pixels, loaded, quality=quality), [], notes)


def _extras(picture: Picture) -> dict[str, bool]:
    return {
        "the alpha channel": picture.alpha is not None,
        "the ICC profile": picture.icc is not None,
        "EXIF": picture.exif is not None,
    }


def detokenize_file(
    src: str | Path,
    dst: str | Path | None = None,
    model: str | None = None,
    *,
    synthesis: str | None = None,
    device: str = "auto",
    force: bool = False,
) -> Picture | Sound | None:
    """Tokens to a picture, a sound or a video, or to a `.tok` file if ``dst`` ends so.

    Returns: the picture or sound; None for a video, which is in ``dst`` alone, and for a `.tok` file.

    Raises: a :class:`~.errors.TokodecError`; ModelError if the tokens are not this model's.
    """
    from ..tokenizers.image.photo import ImagePhoto

    with open_output(dst, force) as file:
        tokens = load_tokens(src)
        loaded = load_model(tokens_model(tokens.spec, model, src), pick_device(device))
        tokenizer = loaded.tokenizer
        check_weights(tokens.spec, tokenizer, str(src))
        if not _made_by(tokens.spec, tokenizer):
            raise MediaError(f"{src}: the tokens do not say what {tokenizer.name} makes: {tokens.spec}")
        if tokenizer.modality == "audio":
            return detokenize_sound(tokens, loaded, str(src), file, dst)
        if tokens.codes.shape[0] != 1:
            what = "video" if tokenizer.modality == "video" else "picture"
            raise UsageError(f"{src}: holds a batch of {tokens.codes.shape[0]}; a {what} is a batch of 1")
        if tokenizer.modality == "video":
            detokenize_video(tokens, loaded, str(src), file, dst)
            return None
        if dst is not None and Path(dst).suffix.lower() == ".tok":
            assert file is not None
            if isinstance(tokenizer, ImagePhoto):
                from .image.quality import photo_file_of_tokens

                file.write(photo_file_of_tokens(tokens, tokenizer))
                return None
            if int(tokens.codes.min()) < 0 and tokenizer.dial != "tokens":
                raise UsageError(f"{src}: some codes are absent (-1), a .tok file wants all of them")
            try:
                payloads = compress_tokens(tokens, loaded)
            except ValueError as error:
                raise UsageError(f"{src}: {error}") from error
            file.write(write_tok(image_header(tokens, loaded, len(payloads)), payloads))
            return None
        picture = Picture(decode_pixels(tokens, loaded, 3, synthesis))
        if file is not None:
            write_image(picture, file, Path(str(dst)).suffix, str(dst))
        return picture


def _made_by(spec: TokenSpec, tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer makes tokens that say this of themselves."""
    from ..tokenizers.audio.grvq import AudioGRVQ
    from ..tokenizers.image.grid import ImageGrid
    from ..tokenizers.image.photo import ImagePhoto
    from ..tokenizers.image.sequence import ImageSequence
    from ..tokenizers.video.grid import VideoGrid

    if isinstance(tokenizer, AudioGRVQ):
        return len(spec.size) == 1 and any(spec == tokenizer.spec(spec.size[0], n) for n in (1, 2, 3))
    if isinstance(tokenizer, VideoGrid):
        rate = spec.sample_rate
        valid = rate is None or (isinstance(rate, (int, float)) and 1e-3 < rate < 1e6)
        return valid and len(spec.size) == 3 and spec == tokenizer.spec(*spec.size, rate)
    if len(spec.size) != 2:
        return False
    height, width = spec.size
    if isinstance(tokenizer, ImagePhoto):
        valid = isinstance(spec.quality, (int, float)) and 0 <= spec.quality <= 100
        return valid and spec == tokenizer.spec(height, width, spec.quality or 0.0)
    return isinstance(tokenizer, (ImageGrid, ImageSequence)) and spec == tokenizer.spec(height, width)
