"""Tokens as files: `.npz` and `.safetensors` with the codes and the spec that says what they mean.

Schema, the same for both: array ``codes`` int32 ``[B, K, *grid]`` and the fields of
:class:`~..tokenizers.api.TokenSpec` as one JSON text: in .npz the zero-dimensional string array ``spec``, in
.safetensors the metadata entry ``spec``.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .container import MAX_PIXELS, SIGNATURE, read_tok, write_tok
from .decode import decode_pixels, file_tokens
from .encode import compress_tokens, encode_tokens, image_header
from .errors import FormatError, MediaError, ModelError, UsageError, WeightsMismatchError
from .files import open_output, read_bytes
from .media.audio import Sound, write_audio
from .media.image import Picture, read_image, write_image
from .media.kind import media_kind
from .models import TOKEN_MODELS, load_model, pick_device

if TYPE_CHECKING:
    from ..tokenizers.api import Tokenizer, Tokens, TokenSpec
    from .models import Model

TOKEN_SUFFIXES = (".npz", ".safetensors")
_THINGS = {"audio": "a sound", "video": "a video"}


@dataclass
class Tokenized:
    """Tokens of a file, what was damaged in it and what could not be kept."""

    tokens: Tokens
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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


def check_weights(spec: TokenSpec, tokenizer: Tokenizer, name: str = "") -> None:
    """Raise WeightsMismatchError if the tokens (of the file ``name``) are another model's."""
    if tokenizer.weights_hash != spec.weights_hash:
        raise WeightsMismatchError(
            f"{name + ': ' if name else ''}tokens of {spec.model} {spec.weights_hash},"
            f" the {tokenizer.name} at hand has {tokenizer.weights_hash}; give the right folder with --model"
        )


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
            from .clip import media_codes as clip_codes

            tokens, notes = clip_codes(source, str(src), loaded, levels, max_pixels)
        else:
            from .sound import media_codes

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
        loaded = load_model(model or tokens.spec.model, pick_device(device))
        tokenizer = loaded.tokenizer
        check_weights(tokens.spec, tokenizer, str(src))
        if not _made_by(tokens.spec, tokenizer):
            raise MediaError(f"{src}: the tokens do not say what {tokenizer.name} makes: {tokens.spec}")
        if tokenizer.modality == "audio":
            return _detokenize_sound(tokens, loaded, str(src), file, dst)
        if tokens.codes.shape[0] != 1:
            what = "video" if tokenizer.modality == "video" else "picture"
            raise UsageError(f"{src}: holds a batch of {tokens.codes.shape[0]}; a {what} is a batch of 1")
        if tokenizer.modality == "video":
            _detokenize_video(tokens, loaded, str(src), file, dst)
            return None
        if dst is not None and Path(dst).suffix.lower() == ".tok":
            assert file is not None
            if isinstance(tokenizer, ImagePhoto):
                from .photo import photo_file_of_tokens

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


def _detokenize_sound(
    tokens: Tokens, model: Model, name: str, file: BinaryIO | None, dst: str | Path | None
) -> Sound | None:
    from .sound import file_of_codes, sound_of_codes

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


def _detokenize_video(tokens: Tokens, model: Model, name: str, file: BinaryIO | None, dst: str | Path | None) -> None:
    from .clip import file_of_codes, write_codes

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


def dump_tokens(tokens: Tokens, suffix: str) -> bytes:
    """Bytes of a `.npz` or `.safetensors` file; see the module's text for the schema."""
    import numpy as np
    import safetensors.numpy

    codes = np.ascontiguousarray(tokens.codes.cpu().numpy(), dtype=np.int32)  # safetensors would mix other layouts up
    spec = json.dumps(dataclasses.asdict(tokens.spec))
    if suffix == ".safetensors":
        return safetensors.numpy.save({"codes": codes}, metadata={"spec": spec})
    buffer = BytesIO()
    np.savez_compressed(buffer, codes=codes, spec=np.array(spec))
    return buffer.getvalue()


def token_modality(src: str | Path) -> str:
    """What the tokens of a file are of; "image" if it does not say, reading it will tell what is wrong."""
    try:
        return load_tokens(src).spec.modality
    except MediaError:
        return "image"


def load_tokens(src: str | Path) -> Tokens:
    """Read what :func:`dump_tokens` wrote. Raises MediaError for anything else; nothing is unpickled."""
    import numpy as np
    import torch
    from safetensors import SafetensorError, safe_open

    from ..tokenizers.api import Tokens

    path = Path(src)
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(str(path), "np") as file:
                codes, text = file.get_tensor("codes"), (file.metadata() or {})["spec"]
        else:
            with np.load(path, allow_pickle=False) as arrays:
                codes, text = arrays["codes"], str(arrays["spec"][()])
        spec = parse_spec(json.loads(text))
        if codes.dtype != np.int32:
            raise ValueError(f"codes are {codes.dtype}, not int32")
        return Tokens(torch.from_numpy(codes.astype(np.int64)), spec)
    except OSError as error:
        raise MediaError(f"cannot read {src}: {error.strerror or error}") from error
    except (SafetensorError, zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError, EOFError) as error:
        raise MediaError(f"{src} is not a file of tokens: {error}") from error


def parse_spec(fields: dict[str, Any]) -> TokenSpec:
    """A spec from what :func:`dataclasses.asdict` makes of it, by way of JSON.

    Raises: ValueError, TypeError or AttributeError if it is none.
    """
    from ..tokenizers.api import TokenSpec

    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    spec = TokenSpec(**found)
    if not all(isinstance(n, int) and n > 0 for n in (*spec.size, *spec.strides, *spec.codebook_sizes)):
        raise ValueError("the spec holds a size that is not positive")
    if spec.first is not None and not (isinstance(spec.first, int) and 1 <= spec.first <= spec.strides[0]):
        raise ValueError("the first cell of the spec is not 1 to a stride long")
    return spec
