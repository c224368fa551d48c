"""The command line `codec`.

Exit codes: 0 all well; 1 our fault; 2 the user's mistake or a bad file; 3 decoded, but the file was damaged.
Heavy imports happen inside the commands, so that `codec --help` and `codec info` answer at once.
"""

from __future__ import annotations

import itertools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .bench.cli import bench_app
from .console import (
    EXIT_DAMAGED,
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_USER,
    STREAM,
    Device,
    Effort,
    Force,
    GeneratorOption,
    Inputs,
    Levels,
    MaxPixels,
    MaxSamples,
    ModelOption,
    Output,
    Quality,
    Quiet,
    Sound,
    SoundModel,
    each,
    expand,
    plan,
    progress_bar,
    say,
)
from .container import fields
from .container import read as container
from .container.fields import MAX_PIXELS, MAX_SAMPLES
from .errors import ReaderGoneError, TokodecError, UsageError
from .terminal import run_process

app = typer.Typer(
    help="Learned compression: pictures, sounds and videos to small .tok files and back.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_app, name="bench")
# typer carries its own copy of click, older ones import it: take the base of their errors from what they export.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_CommandError: type[Exception] = typer.BadParameter.__mro__[2]


def show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"tokodec {__version__}, format {fields.VERSION}")
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


@app.command()
def encode(
    inputs: Inputs,
    out: Output = None,
    model: ModelOption = None,
    quality: Quality = None,
    levels: Levels = None,
    bpp: Annotated[
        float | None, typer.Option(help="most bits per pixel of a picture or of a video's frames, whole file")
    ] = None,
    kbps: Annotated[
        float | None, typer.Option(help="most thousands of bits a second of a sound or a video, whole file")
    ] = None,
    size: Annotated[int | None, typer.Option("--bytes", help="most bytes, whole file")] = None,
    tokens: Annotated[
        int | None, typer.Option(help="tokens of a picture in all: the rate dial of sequence models, shared by content")
    ] = None,
    prior: Annotated[
        str | None, typer.Option(help="entropy model: context (smaller files, default if there is one) or static")
    ] = None,
    tune: Annotated[
        str | None, typer.Option(help="what photographs are to be best at: psnr (the default) or ms-ssim")
    ] = None,
    effort: Effort = 0,
    minutes: Annotated[
        float | None, typer.Option(help="time that -m video-fit may take, 3 by default; Ctrl-C ends it early")
    ] = None,
    metadata: Annotated[bool, typer.Option(help="keep ICC profile and EXIF")] = True,
    sound: Sound = True,
    sound_kbps: Annotated[
        float | None, typer.Option(help="of a video's sound; by default 3 a channel, at most a fifth of --kbps")
    ] = None,
    sound_model: SoundModel = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    max_samples: MaxSamples = MAX_SAMPLES,
) -> None:
    """Encode pictures, sounds and videos to .tok files."""
    from .encode import encode_file
    from .media.audio import AUDIO_SUFFIXES_IN
    from .media.read_image import IMAGE_SUFFIXES_IN
    from .media.read_video import VIDEO_SUFFIXES_IN

    pairs = plan(inputs, out, ".tok", IMAGE_SUFFIXES_IN + AUDIO_SUFFIXES_IN + VIDEO_SUFFIXES_IN)

    def one(src: str, dst: str) -> int:
        with progress_bar(src, quiet or len(pairs) > 1) as progress:
            done = encode_file(
                sys.stdin.buffer if src == STREAM else src,
                sys.stdout.buffer if dst == STREAM else dst,
                model,
                quality,
                levels=levels,
                bpp=bpp,
                size=size,
                kbps=kbps,
                tokens=tokens,
                prior=prior,
                tune=tune,
                effort=effort,
                device=device,
                force=force,
                metadata=metadata,
                max_pixels=max_pixels,
                max_samples=max_samples,
                sound=sound,
                sound_kbps=sound_kbps,
                sound_model=sound_model,
                minutes=minutes,
                progress=progress,
                count=progress.count,
                report=progress.tell,
            )
        for note in done.notes:
            say(f"codec: {src}: {note}")
        if not quiet:
            dial = f"{done.levels} levels" if done.quality is None else f"quality {done.quality:g}"
            dial = dial if done.tokens is None else f"{done.tokens} tokens"
            rate = f"{done.kbps:.3f} kbps" if done.seconds else f"{done.bpp:.4f} bpp"
            say(f"{src} -> {dst}: {len(done.data)} bytes, {rate}, {dial}")
        return 0

    each(pairs, one, quiet)


@app.command()
def decode(
    inputs: Inputs,
    out: Output = None,
    model: ModelOption = None,
    levels: Levels = None,
    synthesis: Annotated[
        str | None, typer.Option(help="which synthesis net, e.g. faithful (least error) or sharp (most natural)")
    ] = None,
    start: Annotated[float | None, typer.Option(help="seconds of a sound or video to begin at")] = None,
    end: Annotated[float | None, typer.Option(help="seconds of a sound or video to end at")] = None,
    format: Annotated[
        str | None, typer.Option(help="output format where -o does not say it, e.g. png, webp, flac, mp4, mkv")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="refuse damaged or cut-off files")] = False,
    sound: Sound = True,
    sound_model: SoundModel = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    max_pixels: MaxPixels = MAX_PIXELS,
    max_samples: MaxSamples = MAX_SAMPLES,
) -> None:
    """Decode .tok files to pictures, sounds and videos. Exit code 3 says that a file was damaged and decoded as far as
    it goes."""
    from .decode import DEFAULT_SUFFIXES, decode_file

    given = None if format is None else "." + format.lstrip(".")

    def suffix(src: str) -> str:
        if given is not None:
            return given
        try:
            with Path(src).open("rb") as file:
                modality = container.modality_of(file.read(container.PEEK))
        except OSError:
            modality = None
        return DEFAULT_SUFFIXES[modality or fields.IMAGE]

    pairs = plan(inputs, out, suffix, (".tok",))

    def one(src: str, dst: str) -> int:
        with progress_bar(src, quiet or len(pairs) > 1) as progress:
            done = decode_file(
                sys.stdin.buffer if src == STREAM else src,
                sys.stdout.buffer if dst == STREAM else dst,
                model,
                levels=levels,
                synthesis=synthesis,
                start=start,
                end=end,
                format=given if dst == STREAM or not Path(dst).suffix else None,
                device=device,
                force=force,
                strict=strict,
                max_pixels=max_pixels,
                max_samples=max_samples,
                sound=sound,
                sound_model=sound_model,
                progress=progress,
                count=progress.count,
            )
        for problem in done.problems:
            say(f"codec: {src}: {problem}")
        header = done.header
        picture = isinstance(header, fields.ImageHeader)
        for note in done.notes + (done.picture.notes if picture else []):
            say(f"codec: {src}: {note}")
        if not quiet and isinstance(header, fields.ImageHeader):
            size = f"{header.width} x {header.height} pixels"
            say(f"{src} -> {dst}: {size}, {done.levels} of {done.layers} layers")
        elif not quiet and isinstance(header, fields.AudioHeader):
            channels = f"{header.channels} channel{'s' * (header.channels > 1)}"
            say(f"{src} -> {dst}: {header.seconds:.3f} s in the file, {channels}, {header.sample_rate} Hz")
        elif not quiet and isinstance(header, fields.VideoHeader):
            size = f"{header.width} x {header.height} pixels"
            say(f"{src} -> {dst}: {size}, {header.frames} frames in the file")
        return EXIT_DAMAGED if done.problems else 0

    each(pairs, one, quiet)


@app.command()
def info(
    inputs: Inputs,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a file")] = False,
) -> None:
    """Show what a .tok file holds, without decoding it."""
    from .info import describe

    def one(src: str, _: str) -> int:
        from .files import read_bytes

        found = describe(read_bytes(sys.stdin.buffer if src == STREAM else src, fields.SIGNATURE), src)
        if as_json:
            print(json.dumps(found))
        else:
            width = max(map(len, found))
            print("\n".join(f"{key:<{width}}  {value}" for key, value in found.items()))
        return EXIT_DAMAGED if found["problems"] else 0

    each([(src, STREAM) for src in inputs], one, quiet=True)


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
        runs = [(size, len(list(same))) for size, same in itertools.groupby(entry["codebook_sizes"])]
        sizes = " + ".join(f"{n} x {size}" if n > 1 else str(size) for size, n in runs)
        dial = f"{sizes} codewords" if sizes else "quality 0 to 100"
        print(f"{entry['name']}  {entry['modality']}, {dial}, {entry['bytes'] / 2**20:.1f} MiB")
        nets = f", synthesis {', '.join(entry['synthesis'])}" if entry["synthesis"] else ""
        base = f", a variant of {entry['base']}" if entry["base"] else ""
        print(f"    weights {entry['weights_hash']}{base}{nets}")
        print(f"    entropy models {', '.join(entry['priors'])}")
    print(f"{FITTED}  video, a network for each clip that its file holds: no weights")
    for entry in generators:
        rate, size = entry["sample_rate"], " x ".join(map(str, reversed(entry["size"])))
        size = f"{entry['size'][0] / rate:g} s" if rate else size
        print(f"{entry['name']}  generator of {entry['modality']}, {size}, {entry['bytes'] / 2**20:.1f} MiB")
        print(f"    weights {entry['weights_hash']}, {entry['levels']} levels of {entry['tokenizer']}")


@app.command()
def tokenize(
    inputs: Inputs,
    out: Output = None,
    model: ModelOption = None,
    quality: Quality = None,
    levels: Levels = None,
    pattern: Annotated[
        str | None, typer.Option(help="order of the ids in a .bin corpus: levels (the default) or interleaved")
    ] = None,
    digits: Annotated[
        bool, typer.Option("--digits", help="large codes as two or three ids of a .bin corpus, a smaller vocabulary")
    ] = False,
    format: Annotated[str, typer.Option(help="npz or safetensors, where -o does not say it")] = "npz",
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Pictures, sounds, videos or .tok files to integer codes, without decoding them: a file each (.npz or
    .safetensors), or all in one corpus if -o ends in .tar (WebDataset) or .bin (Megatron, with .idx and .json). Corpora
    take token files as well."""
    from ..tokenizers.sequence import ROWS
    from .contract import Tokenized
    from .corpus.megatron import CORPUS_SUFFIXES, megatron_writer, sequencer_maker
    from .corpus.token_files import TOKEN_SUFFIXES
    from .corpus.webdataset import webdataset_writer
    from .media.audio import AUDIO_SUFFIXES_IN
    from .media.read_image import IMAGE_SUFFIXES_IN
    from .media.read_video import VIDEO_SUFFIXES_IN
    from .models import load_model, pick_device
    from .tokens import tokenize_file

    wanted = (*IMAGE_SUFFIXES_IN, *AUDIO_SUFFIXES_IN, *VIDEO_SUFFIXES_IN, ".tok")
    suffix = "" if out is None else Path(out).suffix.lower()
    if suffix != ".bin" and (pattern is not None or digits):
        raise UsageError(f"{'--digits' if pattern is None else '--pattern'} is for a .bin corpus: name one with -o")

    def read(src: str, dst: str | None) -> Tokenized:
        done = tokenize_file(
            src, dst, model, levels=levels, quality=quality, device=device, force=force, max_pixels=max_pixels
        )
        for note in done.problems + done.notes:
            say(f"codec: {src}: {note}")
        return done

    def one(src: str, dst: str) -> int:
        done = read(src, dst)
        if not quiet:
            say(f"{src} -> {dst}: codes {' x '.join(map(str, done.tokens.codes.shape[1:]))}")
        return EXIT_DAMAGED if done.problems else 0

    if out is None or suffix not in CORPUS_SUFFIXES:
        each(plan(inputs, out, "." + format.lstrip("."), wanted), one, quiet)
        return
    sources = expand(inputs, (*wanted, *TOKEN_SUFFIXES))
    if suffix == ".tar":
        named = keys_of(sources, out)
        writer: Any = webdataset_writer(out, force)
    else:
        if pattern in ROWS:
            raise UsageError(f"a .bin corpus has one id a step: --pattern is levels or interleaved, not {pattern}")
        if digits and model is not None:
            _ = load_model(model, pick_device(device)).trees  # refused now, and not once for each file
        named = [(Path(src).name, src) for src in sources]
        writer = megatron_writer(out, sequencer_maker(pattern or "levels", digits, model, device), force)
    write_corpus(writer, named, out, lambda src: read(src, None), quiet)


def keys_of(sources: list[str], out: str) -> list[tuple[str, str]]:
    """Sources with their keys in a WebDataset: names without suffix and dots. Raises UsageError if two are the same."""
    keys: dict[str, str] = {}
    for src in sources:
        key = Path(src).stem.replace(".", "_")
        if key in keys:
            raise UsageError(f"{keys[key]} and {src} would both be {key!r} in {out}")
        keys[key] = src
    return list(keys.items())


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
def detokenize(
    inputs: Inputs,
    out: Output = None,
    model: ModelOption = None,
    synthesis: Annotated[str | None, typer.Option(help="which synthesis net, e.g. faithful or sharp")] = None,
    format: Annotated[
        str | None, typer.Option(help="tok, or a format of pictures, sounds or videos, where -o does not say it")
    ] = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Integer codes (.npz or .safetensors) to pictures, sounds, videos or .tok files."""
    from .corpus.token_files import token_modality
    from .tokens import detokenize_file

    def suffix(src: str) -> str:
        if format is not None:
            return "." + format.lstrip(".")
        return {"audio": ".wav", "video": ".mp4"}.get(token_modality(src), ".png")

    def one(src: str, dst: str) -> int:
        detokenize_file(src, dst, model, synthesis=synthesis, device=device, force=force)
        if not quiet:
            say(f"{src} -> {dst}")
        return 0

    each(plan(inputs, out, suffix, (".npz", ".safetensors")), one, quiet)


@app.command()
def generate(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for the samples and a sheet of all of them")],
    model: GeneratorOption = None,
    prompt: Annotated[Path | None, typer.Option(help="picture or sound whose beginning is kept")] = None,
    keep: Annotated[
        float | None, typer.Option(help="of the prompt: share of a picture's rows (0.5), seconds of a sound (1)")
    ] = None,
    number: Annotated[int, typer.Option("-n", help="samples")] = 8,
    temperature: Annotated[float, typer.Option(help="below 1 safer, above 1 wilder; 0: the most probable id")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="choose among the k most probable ids only")] = None,
    top_p: Annotated[float | None, typer.Option(help="only among the ids that have this probability together")] = None,
    seed: Annotated[int, typer.Option(help="of the random numbers", min=0)] = 0,
    levels: Annotated[int | None, typer.Option(help="only so many levels of codes")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="the generator's tokenizer, if it is not a release")] = None,
    synthesis: Annotated[str | None, typer.Option(help="which synthesis net of a picture, faithful or sharp")] = None,
    device: Device = "auto",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """New pictures or sounds from a generator; with a prompt, the rest of a picture or of a sound."""
    from .generate.files import generate_files

    with progress_bar(str(out), quiet) as progress:
        done = generate_files(
            out,
            model,
            prompt,
            keep,
            number,
            tokenizer=tokenizer,
            levels=levels,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            synthesis=synthesis,
            device=device,
            force=force,
            progress=progress,
        )
    for note in done.notes:
        say(f"codec: {prompt or out}: {note}")
    if not quiet:
        say(f"{len(done.samples)} samples -> {out}, all of them in {done.files[-1]}")


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for what the demo makes")] = Path("demo-out"),
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
    except MemoryError:
        say("codec: out of memory")
        return EXIT_FAULT
    except Exception as error:
        if debug:
            traceback.print_exc()
        say(f"codec: internal error, please report it: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return EXIT_FAULT


if __name__ == "__main__":
    main()
