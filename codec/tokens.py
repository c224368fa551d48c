"""Media and `.tok` files to tokens and back: `codec tokenize` and `codec detokenize`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .container.fields import MAX_PIXELS, MAX_SAMPLES, SIGNATURE
from .container.read import read_tok
from .contract import Detokenized, Format, Sink, Source, Tokenized
from .corpus.token_files import TOKEN_SUFFIXES, check_weights, dump_tokens, load_tokens, tokens_model
from .decode import file_tokens
from .errors import FormatError, MediaError, ModelError, UsageError
from .files import open_output, output_name, output_suffix, read_bytes, source_name, stored
from .formats import format_of
from .media.kind import media_kind, refuse_unknown_start
from .models import load_model, pick_device
from .options import TokenizeOptions, with_short_forms
from .registry import MODALITIES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..tokenizers.api import Tokenizer
    from ..tokenizers.tokens import Tokens
    from .options import TokenizeShort


def tokenize_file(
    src: str | Path | BinaryIO,
    dst: str | Path | BinaryIO | None = None,
    *,
    options: TokenizeOptions | None = None,
    format: str | None = None,
    force: bool = False,
    **short: Unpack[TokenizeShort],
) -> Tokenized:
    """A picture, a sound, a video or a `.tok` file to tokens; the synthesis net does not run. Token files are read as
    they are.

    Args:   src, dst: paths or binary file objects; nothing is written if ``dst`` is None.  force: overwrite it.
            format: `.npz`, the default, or `.safetensors`, where the name of ``dst`` does not say it.
            options: see :class:`~.options.TokenizeOptions`.  short: fields of it by their names.
    Raises: a :class:`~.errors.TokodecError`.
    """
    options = with_short_forms(options or TokenizeOptions(), short)
    options = replace(options, device=pick_device(options.device))
    suffix = output_suffix(dst, format).lower() or TOKEN_SUFFIXES[0]
    if dst is not None and suffix not in TOKEN_SUFFIXES:
        raise UsageError(f"{output_name(dst)}: tokens are written as {' or '.join(TOKEN_SUFFIXES)}")
    name = source_name(src)
    with open_output(dst, force, src) as file:
        source = Path(src) if isinstance(src, str) else src
        own = source.suffix.lower() if isinstance(source, Path) else ""
        if own in TOKEN_SUFFIXES:
            done: Tokenized | None = Tokenized(_loaded_tokens(name, options))
        else:
            source = stored(source, lambda start: _refuse_unknown(start, name, own))
            done = _tok_tokens(name, own, source, options)
        if done is None:
            done = _media_tokens(name, source, options)
        elif given := [option for option in ("quality", "track") if getattr(options, option) is not None]:
            raise UsageError(f"{name}: its codes are made already: {' and '.join(given)} cannot be chosen")
        done.tokens = first_levels(done.tokens, options.levels)
        if file is not None:
            file.write(dump_tokens(done.tokens, suffix))
    return done


def is_tokenized(src: str, dst: str, options: TokenizeOptions) -> bool:
    """Whether ``dst`` is whole, no older than ``src``, and holds what tokenizing that would give: of the same weights,
    quality and levels, which is all that can be told of media; tokens of a `.tok` file are compared.

    Raises: a :class:`~.errors.TokodecError` for a model or a `.tok` file that cannot be read.
    """
    import torch

    from ..tokenizers.image.photo import DEFAULT_QUALITY

    paths = Path(src), Path(dst)
    try:
        if not all(path.is_file() for path in paths) or paths[1].stat().st_mtime < paths[0].stat().st_mtime:
            return False  # pipes can be read once only
        there = load_tokens(dst, options.max_pixels, options.max_samples)
    except (OSError, MediaError, FormatError):
        return False
    if Path(src).suffix.lower() in (".tok", *TOKEN_SUFFIXES):
        fresh = tokenize_file(src, options=options).tokens
        return fresh.spec == there.spec and torch.equal(fresh.codes, there.codes)
    model = options.model or MODALITIES[there.spec.modality].token_model
    tokenizer = load_model(model, pick_device(options.device)).tokenizer
    levels = len(tokenizer.codebook_sizes)
    levels = levels if options.levels is None else min(options.levels, levels)
    quality = DEFAULT_QUALITY if options.quality is None and "quality" in tokenizer.varies else options.quality
    found = (there.spec.weights_hash, there.n_levels, there.spec.quality)
    return options.track is None and found == (tokenizer.weights_hash, levels, quality)


def _loaded_tokens(src: str, options: TokenizeOptions) -> Tokens:
    """Tokens of a token file; of this model, if one is named."""
    tokens = load_tokens(src, options.max_pixels, options.max_samples)
    if options.model is not None:
        check_weights(tokens.spec, load_model(options.model, options.device).tokenizer, src)
    return tokens


def _refuse_unknown(start: bytes, name: str, suffix: str) -> None:
    """Raise MediaError for a stream that begins like nothing that is read here."""
    if not start.startswith(SIGNATURE):
        refuse_unknown_start(start, name, suffix)


def _tok_tokens(name: str, suffix: str, source: Path | BinaryIO, options: TokenizeOptions) -> Tokenized | None:
    """Tokens of a `.tok` file, None if it is something else, of which only the head is read."""
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            head = file.read(len(SIGNATURE))
            file.seek(0)
    except OSError as error:
        raise MediaError(f"cannot read {name}: {error.strerror}") from error
    if head != SIGNATURE and suffix != ".tok":
        return None
    try:
        tok = read_tok(read_bytes(source, SIGNATURE), options.max_pixels, options.max_samples)
        tokens, _ = file_tokens(tok, options.model, options.device, options.levels)
    except (FormatError, ModelError) as error:
        raise type(error)(f"{name}: {error}") from error
    return Tokenized(tokens, tok.problems, tok.beside_tokens)


def _media_tokens(name: str, source: Path | BinaryIO, options: TokenizeOptions) -> Tokenized:
    kind, source = media_kind(source)
    loaded = load_model(options.model or MODALITIES[kind].token_model, options.device)
    tokenizer = loaded.tokenizer
    if tokenizer.modality != kind:
        raise UsageError(f"{tokenizer.name} is a model for {tokenizer.modality}, and {name} is {MODALITIES[kind].noun}")
    wing = check_tokenizable(tokenizer, options)
    if options.levels is not None:
        options = replace(options, levels=min(options.levels, len(tokenizer.codebook_sizes)))
    return wing.tokenize(Source(source, name, kind), loaded, options)


def check_tokenizable(tokenizer: Tokenizer, options: TokenizeOptions) -> Format:
    """The format of a tokenizer. Raises UsageError for options that it does not have."""
    if options.quality is not None and tokenizer.rate_control != "quality":
        raise UsageError(f"quality does not set the rate of {tokenizer.name}: use {tokenizer.rate_control}")
    wing = format_of(tokenizer)
    if options.track is not None:
        wing.check(["track"], tokenizer.name)
    return wing


def first_levels(tokens: Tokens, levels: int | None) -> Tokens:
    """At most so many levels, all if None."""
    return tokens if levels is None else tokens.levels(min(levels, tokens.n_levels))


def detokenize_file(
    src: str | Path | BinaryIO,
    dst: str | Path | BinaryIO | None = None,
    model: str | Tokenizer | None = None,
    *,
    format: str | None = None,
    synthesis: str | None = None,
    device: str = "auto",
    force: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_samples: int = MAX_SAMPLES,
) -> Detokenized:
    """Tokens to a picture, a sound or a video, or to a `.tok` file if ``dst`` ends so.

    Args:    src, dst: paths or binary file objects; nothing is written if ``dst`` is None.
             format: as in :func:`~.decode.decode_file`, and ".tok".
             max_pixels, max_samples: refuse larger pictures and frames, and sounds with more samples in all signals.
    Returns: the picture or sound, none for a video, which is in ``dst`` alone, and for a `.tok` file; and notes.
    Raises:  a :class:`~.errors.TokodecError`; ModelError if the tokens are not this model's.
    """
    name, suffix = source_name(src), output_suffix(dst, format)
    with open_output(dst, force, src) as file:
        tokens = load_tokens(src, max_pixels, max_samples)
        loaded = load_model(tokens_model(tokens.spec, model, name), pick_device(device))
        tokenizer = loaded.tokenizer
        check_weights(tokens.spec, tokenizer, name)
        if not tokenizer.accepts(tokens.spec):
            raise MediaError(f"{name}: the tokens do not say what {tokenizer.name} makes: {tokens.spec}")
        if tokens.codes.shape[0] != 1 and tokenizer.modality != "audio":  # signals of a sound are a batch
            noun = MODALITIES[tokenizer.modality].noun
            raise UsageError(f"{name}: holds a batch of {tokens.codes.shape[0]}; {noun} is a batch of 1")
        wing = format_of(tokenizer)
        suffix = suffix or MODALITIES[tokenizer.modality].suffix
        if synthesis is not None:
            wing.check(["synthesis"], tokenizer.name)
            if suffix.lower() == ".tok":
                raise UsageError("synthesis says how tokens are decoded, and a .tok file keeps them as they are")
        if suffix.lower() != ".tok":
            sink = None if file is None else Sink(file, suffix, output_name(dst))
            return wing.render(tokens, loaded, sink, synthesis)
        try:
            data = wing.pack(tokens, loaded)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
        if file is not None:
            file.write(data)
        return Detokenized()
