"""The command line `codec`.

Exit codes: 0 all well; 1 our fault; 2 the user's mistake or a bad file; 3 decoded, but the file was damaged.
Heavy imports happen inside the commands, so that `codec --help` and `codec info` answer at once.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from .bench.cli import bench_app
from .console import (
    EXIT_DAMAGED,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_USER,
    STREAM,
    Device,
    Inputs,
    Output,
    Recursive,
    each,
    labelled,
    plan,
    print_fields,
    progress_bar,
    say,
)
from .container.fields import IMAGE, SIGNATURE, VERSION
from .container.read import PEEK, modality_of
from .corpus.cli import WithAddress, corpus_app, corpus_options, run_tokenize
from .errors import OUT_OF_MEMORY, ReaderGoneError, TokodecError, UsageError, is_out_of_memory
from .flags import (
    CorpusFlags,
    DecodeFlags,
    DetokenizeFlags,
    EncodeFlags,
    GenerateFlags,
    PriorFlags,
    TokenizeFlags,
    with_flags,
)
from .registry import MODALITIES, MODALITY_NAMES
from .terminal import run_process

app = typer.Typer(
    help="Learned compression: pictures, sounds and videos to small .tok files and back.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_app, name="bench")
app.add_typer(corpus_app, name="corpus")
# typer carries its own copy of click, older ones import it: take the base of their errors from what they export.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_CommandError: type[Exception] = typer.BadParameter.__mro__[2]


def show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"tokodec {__version__}, format {VERSION}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
    # Eager, as it must answer before the missing command is noticed.
    version: Annotated[
        bool, typer.Option("--version", help="show the version and stop", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def read_from(src: str) -> str | BinaryIO:
    """An input: standard input for "-"."""
    return sys.stdin.buffer if src == STREAM else src


def write_to(dst: str) -> str | BinaryIO:
    """An output: standard output for "-"."""
    return sys.stdout.buffer if dst == STREAM else dst


@app.command()
@with_flags
def encode(inputs: Inputs, out: Output = None, *, flags: EncodeFlags) -> None:
    """Encode pictures, sounds and videos to .tok files. Exit code 3 says that an input was damaged and encoded as far
    as it goes."""
    from .encode import encode_file
    from .media.kind import SUFFIXES_IN

    pairs = plan(inputs, out, ".tok", SUFFIXES_IN, flags.recursive)

    def one(src: str, dst: str) -> int:
        with progress_bar(src, flags.quiet or len(pairs) > 1) as progress:
            done = encode_file(read_from(src), write_to(dst), force=flags.force, progress=progress, **flags.short)
        for note in done.problems + done.notes:
            say(f"codec: {src}: {note}")
        if not flags.quiet:
            control = f"{done.levels} levels" if done.quality is None else f"quality {done.quality:g}"
            control = control if done.tokens is None else f"{done.tokens} tokens"
            control = control if flags.max_error is None else f"error at most {flags.max_error}"
            control = "lossless" if done.lossless else control
            control += f", {done.measured[0]} {done.measured[1]:.5g}" if done.measured is not None else ""
            say(f"{src} -> {dst}: {done.summary}, {control}")
        return EXIT_DAMAGED if done.problems else 0

    each(pairs, one, flags.quiet)


@app.command()
@with_flags
def decode(
    inputs: Inputs,
    out: Output = None,
    format: Annotated[
        str | None, typer.Option(help="output format where -o does not say it, e.g. png, webp, flac, mp4, mkv")
    ] = None,
    *,
    flags: DecodeFlags,
) -> None:
    """Decode .tok files to pictures, sounds and videos. Exit code 3 says that a file was damaged and decoded as far as
    it goes."""
    from .decode import decode_file

    def suffix(src: str) -> str:
        if format is not None:
            return "." + format.lstrip(".")
        try:
            with Path(src).open("rb") as file:
                modality = modality_of(file.read(PEEK))
        except OSError:
            modality = None
        return MODALITIES[MODALITY_NAMES[modality or IMAGE]].suffix

    pairs = plan(inputs, out, suffix, (".tok",), flags.recursive)

    def one(src: str, dst: str) -> int:
        with progress_bar(src, flags.quiet or len(pairs) > 1) as progress:
            done = decode_file(
                read_from(src), write_to(dst), format=format, force=flags.force, progress=progress, **flags.short
            )
        for problem in done.problems:
            say(f"codec: {src}: {problem}")
        picture = done.header.modality == IMAGE
        for note in done.notes + (done.picture.notes if picture else []):
            say(f"codec: {src}: {note}")
        if not flags.quiet:
            layers = f", {done.levels} of {done.layers} layers" if picture else ""
            say(f"{src} -> {dst}: {done.header.summary}{layers}")
        return EXIT_DAMAGED if done.problems else 0

    each(pairs, one, flags.quiet)


@app.command()
def info(
    inputs: Inputs,
    recursive: Recursive = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a file")] = False,
) -> None:
    """Show what a .tok file holds, without decoding it, or what model is in a folder."""
    from .info import describe
    from .models import describe_model, is_model

    def one(src: str, _: str) -> int:
        from .files import read_bytes

        model = is_model(src)
        found = describe_model(Path(src)) if model else describe(read_bytes(read_from(src), SIGNATURE), src)
        if model and not as_json:
            found["codebook_sizes"] = _counted(found["codebook_sizes"])
        print_fields(found, as_json)
        return EXIT_DAMAGED if found.get("problems") else 0

    models = [name for name in inputs if is_model(name)]
    files = labelled(others, (".tok",), recursive, str) if (others := [n for n in inputs if n not in models]) else []
    each([(src, STREAM) for src in (*models, *(src for _, src in files))], one, quiet=True)


def _counted(sizes: list[int]) -> str:
    """Sizes of codebooks as text: "8192 + 3 x 2048"."""
    runs = [(size, len(list(same))) for size, same in itertools.groupby(sizes)]
    return " + ".join(f"{n} x {size}" if n > 1 else str(size) for size, n in runs)


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="one JSON list")] = False) -> None:
    """List the models that come with the package."""
    from .models import list_generators, list_models
    from .registry import FITTED

    found, generators = list_models(), list_generators()
    if as_json:
        print(json.dumps(found + generators))
        return
    for entry in found:
        sizes = _counted(entry["codebook_sizes"])
        control = f"{sizes} codewords" if sizes else "quality 0 to 100"
        print(f"{entry['name']}  {entry['modality']}, {control}, {entry['bytes'] / 2**20:.1f} MiB")
        nets = f", synthesis {', '.join(entry['synthesis'])}" if entry["synthesis"] else ""
        base = f", a variant of {entry['base']}" if entry["base"] else ""
        quantizer = f", quantizer {entry['quantizer']}" if entry["quantizer"] else ""
        print(f"    weights {entry['weights_hash']}{base}{quantizer}{nets}")
        print(f"    entropy models {', '.join(entry['priors'])}")
    print(f"{FITTED}  video, a network for each clip that its file holds: no weights")
    for entry in generators:
        rate, size = entry["sample_rate"], " x ".join(map(str, reversed(entry["size"])))
        size = f"{entry['size'][0] / rate:g} s" if rate else size
        print(f"{entry['name']}  generator of {entry['modality']}, {size}, {entry['bytes'] / 2**20:.1f} MiB")
        print(f"    weights {entry['weights_hash']}, {entry['levels']} levels of {entry['tokenizer']}")


@app.command(cls=WithAddress)
@with_flags
def tokenize(
    inputs: Inputs,
    out: Output = None,
    format: Annotated[
        str | None,
        typer.Option(help="npz (the default) or safetensors; of shards webdataset, megatron, parquet or tok"),
    ] = None,
    *,
    corpus: CorpusFlags,
    flags: TokenizeFlags,
) -> None:
    """Pictures, sounds, videos or .tok files to integer codes, without decoding them: a file each (.npz or
    .safetensors), or all in one corpus if -o ends in .tar (WebDataset) or .bin (Megatron, with .idx and .json). Corpora
    take token files as well. Token files that are there already, as they would be made, are left as they are. With
    --format webdataset, megatron, parquet or tok, -o is a folder for shards, and inputs may be tars and lists."""
    from .contract import Tokenized
    from .corpus.megatron import CORPUS_SUFFIXES, megatron_paths, megatron_writer, sequencer_maker
    from .corpus.sources import key_of
    from .corpus.token_files import TOKEN_SUFFIXES
    from .corpus.webdataset import webdataset_writer
    from .files import refuse_overwriting
    from .media.kind import SUFFIXES_IN
    from .models import load_model, pick_device
    from .options import TokenizeOptions
    from .tokens import is_tokenized, tokenize_file

    if (shards := corpus_options(format, corpus)) is not None:
        run_tokenize(inputs, out, shards, flags)
        return
    wanted = (*SUFFIXES_IN, ".tok")
    suffix = "" if out is None else Path(out).suffix.lower()
    if suffix != ".bin" and (corpus.pattern is not None or corpus.digits):
        option = "--digits" if corpus.pattern is None else "--pattern"
        raise UsageError(f"{option} is for a .bin corpus: name one with -o")

    def read(src: str, dst: str | None) -> Tokenized:
        out = None if dst is None else write_to(dst)
        done = tokenize_file(read_from(src), out, format=format, force=flags.force, **flags.short)
        for note in done.problems + done.notes:
            say(f"codec: {src}: {note}")
        return done

    there = 0

    def one(src: str, dst: str) -> int:
        nonlocal there
        if STREAM not in (src, dst) and not flags.force and is_tokenized(src, dst, TokenizeOptions(**flags.short)):
            there += 1
            return 0
        done = read(src, dst)
        if not flags.quiet:
            say(f"{src} -> {dst}: codes {' x '.join(map(str, done.tokens.codes.shape[1:]))}")
        return EXIT_DAMAGED if done.problems else 0

    if out is None or suffix not in CORPUS_SUFFIXES:
        try:
            each(plan(inputs, out, f".{(format or 'npz').lstrip('.')}", wanted, flags.recursive), one, flags.quiet)
        finally:
            if there and not flags.quiet:
                say(f"codec: {there} already there")
        return
    if format is not None:
        raise UsageError("--format is for token files, and -o names a corpus")
    named = labelled(inputs, (*wanted, *TOKEN_SUFFIXES), flags.recursive, key_of if suffix == ".tar" else str)
    for path in [out] if suffix == ".tar" else megatron_paths(out):
        refuse_overwriting([src for _, src in named], path)
    if suffix == ".tar":
        refuse_equal(named, out)
        writer: Any = webdataset_writer(out, flags.force)
    else:
        pattern, model, device = corpus.pattern, flags.model, flags.device
        if corpus.digits and model is not None:
            _ = load_model(model, pick_device(device)).trees  # refused now, and not once for each file
        maker = sequencer_maker(pattern or "levels", corpus.digits, model, device)
        writer = megatron_writer(out, maker, flags.force)
    write_corpus(writer, named, out, lambda src: read(src, None), flags.quiet)


def refuse_equal(named: list[tuple[str, str]], out: str) -> None:
    """Raise UsageError if two files have one key."""
    keys: dict[str, str] = {}
    for key, src in named:
        if key in keys:
            raise UsageError(f"{keys[key]} and {src} would both be {key!r} in {out}")
        keys[key] = src


def write_corpus(writer: Any, named: list[tuple[str, str]], out: str, read: Callable[[str], Any], quiet: bool) -> None:
    """Tokens of sources with their names, by ``read``, to a corpus; those that fail are told and left out.

    Raises: the error itself for a single source; typer.Exit with the gravest exit code. If all fail there is no output.
    """
    names = {src: name for name, src in named}
    failed: typer.Exit | None = None
    with writer as corpus:

        def one(src: str, _: str) -> int:
            done = read(src)
            corpus.add(names[src], done.tokens)
            return EXIT_DAMAGED if done.problems else 0

        try:
            each([(src, out) for _, src in named], one, quiet)
        except typer.Exit as stop:
            if not len(corpus):
                raise
            failed = stop
    if not quiet:
        say(f"{out}: {len(corpus)} of {len(named)} files, {corpus.summary()}")
    if failed is not None:
        raise failed


@app.command()
@with_flags
def prior(inputs: Inputs, *, flags: PriorFlags) -> None:
    """Count codes in pictures, sounds, videos, .tok or token files, and store static tables beside their model."""
    from ..entropy.static import STATIC_FILE
    from .corpus.token_files import TOKEN_SUFFIXES
    from .counting import Counts, prior_home, store
    from .media.kind import MODALITY_SUFFIXES
    from .tokens import tokenize_file

    tokenizer, folder = prior_home(flags.model, flags.device, flags.force)
    counts = Counts(tokenizer.codebook_sizes)
    wanted = (*MODALITY_SUFFIXES[tokenizer.modality], ".tok", *TOKEN_SUFFIXES)

    def one(src: str, _: str) -> int:
        done = tokenize_file(read_from(src), model=flags.model, device=flags.device)
        counts.add(done.tokens)
        return EXIT_DAMAGED if done.problems else 0

    each([(src, STREAM) for _, src in labelled(inputs, wanted, flags.recursive, str)], one, flags.quiet)
    made = store(counts, folder)
    if not flags.quiet:
        fixed = sum(math.log2(n) for n in tokenizer.codebook_sizes)
        say(f"{folder / STATIC_FILE}: {counts.bits:.2f} bits a cell, {fixed:.2f} with fixed lengths, hash {made.hash}")


@app.command()
@with_flags
def detokenize(
    inputs: Inputs,
    out: Output = None,
    format: Annotated[
        str | None, typer.Option(help="tok, or a format of pictures, sounds or videos, where -o does not say it")
    ] = None,
    *,
    flags: DetokenizeFlags,
) -> None:
    """Integer codes (.npz or .safetensors) to pictures, sounds, videos or .tok files."""
    from .corpus.token_files import token_modality
    from .tokens import detokenize_file

    def suffix(src: str) -> str:
        return MODALITIES[token_modality(src)].suffix if format is None else "." + format.lstrip(".")

    def one(src: str, dst: str) -> int:
        done = detokenize_file(read_from(src), write_to(dst), format=format, force=flags.force, **flags.short)
        for note in done.notes:
            say(f"codec: {src}: {note}")
        if not flags.quiet:
            say(f"{src} -> {dst}")
        return 0

    each(plan(inputs, out, suffix, (".npz", ".safetensors"), flags.recursive), one, flags.quiet)


@app.command()
@with_flags
def generate(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the samples and a sheet of all of them")],
    *,
    flags: GenerateFlags,
) -> None:
    """New pictures or sounds from a generator; with a prompt, the rest of a picture or of a sound. Exit code 3 says
    that the prompt was damaged."""
    from .generate.files import SampleOptions, generate_files

    with progress_bar(str(out), flags.quiet) as progress:
        done = generate_files(out, SampleOptions(**flags.short), force=flags.force, progress=progress)
    for note in done.problems + done.notes:
        say(f"codec: {flags.prompt or out}: {note}")
    if not flags.quiet:
        say(f"{len(done.samples)} samples -> {out}, all of them in {done.files[-1]}")
    if done.problems:
        raise typer.Exit(EXIT_DAMAGED)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="folder for what the demo makes; files of these names are replaced")
    ] = Path("demo-out"),
    device: Device = "auto",
) -> None:
    """Encode and decode the sample pictures, show what was saved, and write a side-by-side picture."""
    from .demo import run_demo

    run_demo(out, device)


def main() -> None:
    """Entry point: runs a command and turns every error into one line and an exit code."""
    sys.exit(run_process(run, sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line on ``arguments``; returns the exit code."""
    debug = "--debug" in arguments
    try:
        code = app(args=[a for a in arguments if a != "--debug"], prog_name="codec", standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # typer turns KeyboardInterrupt into this code, in silence
            say("codec: interrupted")
        return code if isinstance(code, int) else 0
    except (ReaderGoneError, BrokenPipeError):  # `| head` has seen enough
        return 0
    except TokodecError as error:
        if debug:
            traceback.print_exc()
        say(f"codec: {error}")
        return error.exit_code
    except _CommandError as error:  # unknown options, missing arguments, no arguments at all
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message.startswith("Usage:"):  # a command without arguments
            print(message, file=sys.stderr)
        elif message:
            say(f"codec: {' '.join(message.split())}; see codec --help")
        return EXIT_USER
    except (KeyboardInterrupt, typer.Abort):
        say("codec: interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        if is_out_of_memory(error):
            say(f"codec: {OUT_OF_MEMORY}")
            return EXIT_USER
        say(f"codec: internal error, please report it: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return EXIT_FAULT


if __name__ == "__main__":
    main()
