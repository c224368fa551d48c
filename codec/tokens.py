"""Media and `.tok` files to tokens and back: `codec tokenize` and `codec detokenize`."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .container.fields import MAX_PIXELS, MAX_SAMPLES, SIGNATURE
from .container.read import read_tok
from .contract import Detokenized, Sink, Source, Tokenized
from .corpus.token_files import TOKEN_SUFFIXES, check_weights, dump_tokens, load_tokens, tokens_model
from .decode import file_tokens
from .errors import FormatError, MediaError, ModelError, UsageError
from .files import open_output, read_bytes, stored
from .formats import format_of
from .media.kind import media_kind, refuse_unknown_start
from .models import load_model, pick_device
from .options import TokenizeOptions, with_short_forms
from .registry import MODALITIES

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..tokenizers.tokens import Tokens
    from .options import TokenizeShort


def tokenize_file(
    src: str | Path,
    dst: str | Path | None = None,
    *,
    options: TokenizeOptions | None = None,
    force: bool = False,
    **short: Unpack[TokenizeShort],
) -> Tokenized:
    """A picture, a sound, a video or a `.tok` file to tokens; the synthesis net does not run. Token files are read as
    they are.

    Args:   dst: `.npz` or `.safetensors`; nothing is written if None.  force: overwrite it.
            options: see :class:`~.options.TokenizeOptions`.  short: fields of it by their names.
    Raises: a :class:`~.errors.TokodecError`.
    """
    options = with_short_forms(options or TokenizeOptions(), short)
    options = replace(options, device=pick_device(options.device))
    if dst is not None and Path(dst).suffix.lower() not in TOKEN_SUFFIXES:
        raise UsageError(f"{dst}: tokens are written as {' or '.join(TOKEN_SUFFIXES)}")
    with open_output(dst, force, src) as file:
        source: Path | BinaryIO = Path(src)
        if Path(src).suffix.lower() in TOKEN_SUFFIXES:
            done: Tokenized | None = Tokenized(_loaded_tokens(src, options))
        else:
            source = stored(source, lambda start: _refuse_unknown(start, src))
            done = _tok_tokens(src, source, options)
        if done is None:
            done = _media_tokens(src, source, options)
        elif given := [name for name in ("quality", "track") if getattr(options, name) is not None]:
            raise UsageError(f"{src}: its codes are made already: {' and '.join(given)} cannot be chosen")
        if options.levels is not None:
            done.tokens = done.tokens.levels(min(options.levels, done.tokens.n_levels))
        if file is not None:
            file.write(dump_tokens(done.tokens, Path(str(dst)).suffix.lower()))
    return done


def _loaded_tokens(src: str | Path, options: TokenizeOptions) -> Tokens:
    """Tokens of a token file; of this model, if one is named."""
    tokens = load_tokens(src, options.max_pixels, options.max_samples)
    if options.model is not None:
        check_weights(tokens.spec, load_model(options.model, options.device).tokenizer, str(src))
    return tokens


def _refuse_unknown(start: bytes, src: str | Path) -> None:
    """Raise MediaError for a pipe that begins like nothing that is read here."""
    if not start.startswith(SIGNATURE):
        refuse_unknown_start(start, str(src), Path(src).suffix)


def _tok_tokens(src: str | Path, source: Path | BinaryIO, options: TokenizeOptions) -> Tokenized | None:
    """Tokens of a `.tok` file, None if ``src`` is something else, of which only the head is read."""
    try:
        with source.open("rb") if isinstance(source, Path) else nullcontext(source) as file:
            head = file.read(len(SIGNATURE))
            file.seek(0)
    except OSError as error:
        raise MediaError(f"cannot read {src}: {error.strerror}") from error
    if head != SIGNATURE and Path(src).suffix.lower() != ".tok":
        return None
    try:
        tok = read_tok(read_bytes(source), options.max_pixels, options.max_samples)
        tokens, _ = file_tokens(tok, options.model, options.device, options.levels)
    except (FormatError, ModelError) as error:
        raise type(error)(f"{src}: {error}") from error
    return Tokenized(tokens, tok.problems, tok.beside_tokens)


def _media_tokens(src: str | Path, source: Path | BinaryIO, options: TokenizeOptions) -> Tokenized:
    kind, source = media_kind(source)
    loaded = load_model(options.model or MODALITIES[kind].token_model, options.device)
    tokenizer = loaded.tokenizer
    if tokenizer.modality != kind:
        raise UsageError(f"{tokenizer.name} is a model for {tokenizer.modality}, and {src} is {MODALITIES[kind].noun}")
    if options.quality is not None and tokenizer.rate_control != "quality":
        raise UsageError(f"quality does not set the rate of {tokenizer.name}: use {tokenizer.rate_control}")
    if options.levels is not None:
        options = replace(options, levels=min(options.levels, len(tokenizer.codebook_sizes)))
    format = format_of(tokenizer)
    if options.track is not None:
        format.check(["track"], tokenizer.name)
    return format.tokenize(Source(source, str(src), kind), loaded, options)


def detokenize_file(
    src: str | Path,
    dst: str | Path | None = None,
    model: str | None = None,
    *,
    synthesis: str | None = None,
    device: str = "auto",
    force: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_samples: int = MAX_SAMPLES,
) -> Detokenized:
    """Tokens to a picture, a sound or a video, or to a `.tok` file if ``dst`` ends so.

    Args:    max_pixels, max_samples: refuse larger pictures and frames, and sounds with more samples in all signals.
    Returns: the picture or sound, none for a video, which is in ``dst`` alone, and for a `.tok` file; and notes.
    Raises:  a :class:`~.errors.TokodecError`; ModelError if the tokens are not this model's.
    """
    with open_output(dst, force, src) as file:
        tokens = load_tokens(src, max_pixels, max_samples)
        loaded = load_model(tokens_model(tokens.spec, model, src), pick_device(device))
        tokenizer = loaded.tokenizer
        check_weights(tokens.spec, tokenizer, str(src))
        if not tokenizer.accepts(tokens.spec):
            raise MediaError(f"{src}: the tokens do not say what {tokenizer.name} makes: {tokens.spec}")
        if tokens.codes.shape[0] != 1 and tokenizer.modality != "audio":  # signals of a sound are a batch
            noun = MODALITIES[tokenizer.modality].noun
            raise UsageError(f"{src}: holds a batch of {tokens.codes.shape[0]}; {noun} is a batch of 1")
        format = format_of(tokenizer)
        suffix = "" if dst is None else Path(dst).suffix
        if synthesis is not None:
            format.check(["synthesis"], tokenizer.name)
            if suffix.lower() == ".tok":
                raise UsageError("synthesis says how tokens are decoded, and a .tok file keeps them as they are")
        if suffix.lower() != ".tok":
            sink = None if file is None else Sink(file, suffix, str(dst))
            return format.render(tokens, loaded, sink, synthesis)
        try:
            data = format.pack(tokens, loaded)
        except UsageError as error:
            raise UsageError(f"{src}: {error}") from error
        assert file is not None
        file.write(data)
        return Detokenized()
