"""The command line `codec`.

Exit codes: 0 all well; 1 our fault; 2 the user's mistake or a bad file; 3 decoded, but the file was damaged.
Heavy imports happen inside the commands, so that `codec --help` and `codec info` answer at once.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from . import container
from .container import MAX_PIXELS, MAX_SAMPLES
from .errors import TokodecError, UsageError

EXIT_FAULT, EXIT_USER, EXIT_DAMAGED, EXIT_INTERRUPTED = 1, 2, 3, 130
STREAM = "-"
SLOW = 1.0  # seconds after which a picture gets a progress bar

app = typer.Typer(
    help="Learned compression: pictures, sounds and videos to small .tok files and back.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
bench_app = typer.Typer(help="Benchmarks against other codecs.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench")

# typer carries its own copy of click, older ones import it: take the base of their errors from what they export.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
_CommandError: type[Exception] = typer.BadParameter.__mro__[2]

Inputs = Annotated[list[str], typer.Argument(help="files or folders; - is standard input", metavar="IN...")]
Output = Annotated[
    str | None, typer.Option("--out", "-o", help="file, or folder for several inputs; - is standard output")
]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="release name, folder or hub id")]
GeneratorOption = Annotated[
    str | None, typer.Option("--model", "-m", help="generator: release name, folder or hub id")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Force = Annotated[bool, typer.Option("--force", "-f", help="overwrite outputs")]
Quiet = Annotated[bool, typer.Option("--quiet", help="say nothing but errors")]
MaxPixels = Annotated[int, typer.Option(help="refuse pictures, and frames of videos, with more pixels", min=1)]
MaxSamples = Annotated[int, typer.Option(help="refuse sounds with more samples in all channels", min=1)]
Levels = Annotated[
    int | None, typer.Option(help="number of levels: the rate dial of token models; decoding: at most so many layers")
]
Quality = Annotated[
    float | None, typer.Option("--quality", "-q", help="0 to 100: the rate dial of models for photographs")
]

Sound = Annotated[bool, typer.Option(help="keep the sound of a video")]
SoundModel = Annotated[str | None, typer.Option(help="model of a video's sound: release name, folder or hub id")]
Effort = Annotated[
    int, typer.Option(help="0 to 10: none to 160 steps towards better codes, each longer than encoding without")
]


def say(text: str) -> None:
    """One line to stderr: stdout is for data."""
    print(text, file=sys.stderr)


class Bar:
    """A bar on stderr for work that takes longer than a moment: called with the share that is done, it shows that and
    the time left, and the speed if it is told of frames. Without shares it shows that something is being done."""

    def __init__(self, what: str, quiet: bool) -> None:
        self.what, self.quiet, self.begin = what, quiet, time.monotonic()
        self.bar: Any = None

    def __call__(self, share: float) -> None:
        self._show(completed=share, total=1.0)

    def tell(self, line: str) -> None:
        """How it stands."""
        self._show(speed=line)

    def count(self, frames: int) -> None:
        """So many frames are done."""
        speed = frames / max(1e-9, time.monotonic() - self.begin)
        self._show(speed=f"{speed:.1f} frames/s")

    def _show(self, **fields: Any) -> None:
        if self.quiet or not sys.stderr.isatty() or time.monotonic() - self.begin < SLOW:
            return
        if self.bar is None:
            from rich.console import Console
            from rich.progress import Progress, TextColumn

            columns = *Progress.get_default_columns(), TextColumn("{task.fields[speed]}")
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.add_task(self.what, total=None, speed="")
            self.bar.start()
        self.bar.update(0, **fields)


@contextmanager
def progress_bar(what: str, quiet: bool) -> Iterator[Bar]:
    """A :class:`Bar` that goes away when the work is done."""
    bar = Bar(what, quiet)
    try:
        yield bar
    finally:
        if bar.bar is not None:
            bar.bar.stop()


def show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        print(f"tokodec {__version__}, format {container.VERSION}")
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
    from .media.image import IMAGE_SUFFIXES_IN
    from .media.video import VIDEO_SUFFIXES_IN

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
        return DEFAULT_SUFFIXES[modality or container.IMAGE]

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
        picture = isinstance(header, container.ImageHeader)
        for note in done.notes + (done.picture.notes if picture else []):
            say(f"codec: {src}: {note}")
        if not quiet and isinstance(header, container.ImageHeader):
            size = f"{header.width} x {header.height} pixels"
            say(f"{src} -> {dst}: {size}, {done.levels} of {done.layers} layers")
        elif not quiet and isinstance(header, container.AudioHeader):
            channels = f"{header.channels} channel{'s' * (header.channels > 1)}"
            say(f"{src} -> {dst}: {header.seconds:.3f} s in the file, {channels}, {header.sample_rate} Hz")
        elif not quiet and isinstance(header, container.VideoHeader):
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

        found = describe(read_bytes(sys.stdin.buffer if src == STREAM else src), src)
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
    from .models import FITTED, list_generators, list_models

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
    from .corpus import CORPUS_SUFFIXES, megatron_writer, sequencer_maker, webdataset_writer
    from .media.audio import AUDIO_SUFFIXES_IN
    from .media.image import IMAGE_SUFFIXES_IN
    from .media.video import VIDEO_SUFFIXES_IN
    from .models import load_model, pick_device
    from .tokens import TOKEN_SUFFIXES, Tokenized, tokenize_file

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
    from .tokens import detokenize_file, token_modality

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
    from .generate import generate_files

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


@bench_app.command("image")
def bench_image(
    folder: Annotated[Path, typer.Argument(help="folder with pictures")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for tables and the page")] = Path("bench-out"),
    against: Annotated[
        str, typer.Option(help="peers, with commas: jpeg, webp, avif, avif420, jxl, heic, jpeg2000")
    ] = "jpeg,webp,avif",
    model: ModelOption = None,
    also: Annotated[str, typer.Option(help="more models beside the first, with commas")] = "",
    device: Device = "auto",
    limit: Annotated[int | None, typer.Option(help="only so many pictures", min=1)] = None,
    qualities: Annotated[
        str | None, typer.Option(help="qualities of our curve, with commas, if the model's dial is a quality")
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="what to measure, with commas; the last two are slow")
    ] = "psnr,ms-ssim,ssimulacra2,features",
    published: Annotated[
        str | None, typer.Option(help="compare with published points: kodak, for those 24 pictures")
    ] = None,
    compressai: Annotated[
        str,
        typer.Option(
            help="time CompressAI models with random weights: bmshj2018-hyperprior, mbt2018-mean, cheng2020-anchor"
        ),
    ] = "",
    show: Annotated[str, typer.Option(help="names of the pictures on the page, with commas; else three")] = "",
    effort: Effort = 0,
    reuse: Annotated[
        Path | None, typer.Option(help="results.json of the same pictures: take the curves of the peers from there")
    ] = None,
    memory: Annotated[bool, typer.Option(help="weigh each codec in processes of its own")] = True,
    threads: Annotated[int | None, typer.Option(help="threads of PyTorch and of the peers", min=1)] = None,
) -> None:
    """Rate, distortion, seconds and memory on a folder of pictures, beside other codecs; tables and a page."""
    from .bench.image import bench_images

    chosen = None if qualities is None else number_list(qualities, "qualities")
    bench_images(
        folder,
        out,
        names_in(against),
        model,
        device,
        limit,
        also=names_in(also),
        qualities=chosen,
        metric_names=names_in(metrics),
        published=published,
        baselines=names_in(compressai),
        show=names_in(show),
        effort=effort,
        reuse=reuse,
        memory=memory,
        threads=threads,
    )


@bench_app.command("audio")
def bench_audio_folder(
    folder: Annotated[Path, typer.Argument(help="folder with sounds, named by kind: speech_1.wav, music_1.flac")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for tables and the page")] = Path("bench-out"),
    against: Annotated[str, typer.Option(help="opus, or nothing")] = "opus",
    model: ModelOption = None,
    device: Device = "cpu",
    limit: Annotated[int | None, typer.Option(help="only so many sounds", min=1)] = None,
    seconds: Annotated[float | None, typer.Option(help="only so much of each sound", min=0.1)] = None,
    kbps: Annotated[str, typer.Option(help="rates of ours, with commas: most kbit/s of a whole file")] = "0.75,1.5,3,6",
    metrics: Annotated[
        str, typer.Option(help="what to measure, with commas; pesq, stoi and dnsmos are for kind speech")
    ] = "visqol,mel,stft,pesq,stoi,dnsmos,si-sdr",
    baselines: Annotated[
        str, typer.Option(help="networks to time with random weights, with commas: encodec, dac")
    ] = "encodec,dac",
    effort: Effort = 0,
    show: Annotated[str, typer.Option(help="names of the sounds on the page, with commas; else one of each kind")] = "",
    memory: Annotated[bool, typer.Option(help="weigh each codec in processes of its own")] = True,
    threads: Annotated[int, typer.Option(help="threads of PyTorch", min=1)] = 1,
) -> None:
    """Rate, quality, speed and memory on a folder of sounds, beside Opus and other networks; tables and a page."""
    from .bench.audio import bench_audio

    bench_audio(
        folder,
        out,
        names_in(against),
        model,
        device,
        limit,
        kbps=number_list(kbps, "rates"),
        effort=effort,
        baselines=names_in(baselines),
        metric_names=names_in(metrics),
        show=names_in(show),
        memory=memory,
        threads=threads,
        max_seconds=seconds,
    )


@bench_app.command("video")
def bench_video_folder(
    folder: Annotated[Path, typer.Argument(help="folder with videos")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for tables and the page")] = Path("bench-out"),
    models: Annotated[str, typer.Option(help="models for videos, with commas")] = "video-grid",
    codecs: Annotated[
        str,
        typer.Option(help="beside them, with commas: x264, x265, av1, x264-psnr, and image-photo frame by frame"),
    ] = "x264,image-photo,x265,av1",
    device: Device = "auto",
    limit: Annotated[int | None, typer.Option(help="only so many clips", min=1)] = None,
    frames: Annotated[int | None, typer.Option(help="only so many frames of each clip", min=1)] = None,
    levels: Annotated[str, typer.Option(help="of ours, with commas; else all of them")] = "",
    kbps: Annotated[str, typer.Option(help="rates of ours, with commas: most kbit/s of a whole file")] = "",
    effort: Effort = 0,
    every_photo: Annotated[
        int, typer.Option(help="image-photo codes one of so many frames, its bytes are scaled", min=1)
    ] = 4,
    every: Annotated[
        int, typer.Option(help="MS-SSIM and feature distance are measured on one of so many frames", min=1)
    ] = 4,
    memory: Annotated[bool, typer.Option(help="weigh each codec in processes of its own")] = True,
    threads: Annotated[int, typer.Option(help="of PyTorch and of the other codecs", min=1)] = 1,
    files: Annotated[
        Path | None, typer.Option(help="folder with a .tok file for each clip, of its name, to measure as they are")
    ] = None,
) -> None:
    """Rate, distortion, speed and memory on a folder of videos, beside x264, x265 and SVT-AV1, and beside a model for
    pictures that is run frame by frame; tables and a page."""
    from .bench.video import bench_video

    bench_video(
        folder,
        out,
        names_in(models),
        names_in(codecs),
        device,
        limit,
        levels=whole_numbers(levels, "levels"),
        kbps=number_list(kbps, "rates"),
        effort=effort,
        frames=frames,
        every_photo=every_photo,
        every=every,
        memory=memory,
        threads=threads,
        files=files,
    )


def number_list(text: str, what: str) -> list[float]:
    """Numbers with commas. Raises UsageError for anything else."""
    try:
        return [float(part) for part in names_in(text)]
    except ValueError as error:
        raise UsageError(f"{what} are numbers with commas, got {text!r}") from error


def whole_numbers(text: str, what: str) -> list[int]:
    """Digits with commas. Raises UsageError for anything else."""
    parts = names_in(text)
    if not all(part.isdecimal() for part in parts):
        raise UsageError(f"{what} are whole numbers with commas, got {text!r}")
    return [int(part) for part in parts]


def names_in(text: str) -> list[str]:
    """Parts between commas."""
    return [name for part in text.split(",") if (name := part.strip())]


@bench_app.command("process")
def bench_process(
    picture: Annotated[Path | None, typer.Argument(help="a picture")] = None,
    megapixels: Annotated[float | None, typer.Option(help="make a picture of this size instead", min=1e-6)] = None,
    model: ModelOption = None,
    device: Device = "auto",
) -> None:
    """Wall-clock seconds and peak memory of whole `codec` processes, start-up included."""
    from .bench.process import bench_processes

    bench_processes(picture, megapixels, model, device)


@bench_app.command("nearest")
def bench_nearest_codeword(
    device: Device = "auto",
    shapes: Annotated[str | None, typer.Option(help="rows x codewords x dimensions, as 4096x1024x8,...")] = None,
    seconds: Annotated[float, typer.Option(help="how long each peer is timed on each shape", min=1e-6)] = 1.0,
    seed: Annotated[int, typer.Option(help="of the random inputs", min=0)] = 0,
    latents: Annotated[
        Path | None,
        typer.Option(help="safetensors file with z [M, D] and codebook [N, D], or a folder of pictures: more shapes"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for all results")] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="also torch.compile; on CUDA it is the default")
    ] = None,
    step: Annotated[bool, typer.Option("--step", help="also steps of training and inference, end to end")] = False,
) -> None:
    """The nearest-codeword search beside PyTorch and what is installed: time, memory, wrong indices."""
    from .bench.nearest import bench_nearest

    bench_nearest(device, shapes, seconds, seed, latents, out, compile, step)


@bench_app.command("prior")
def bench_entropy_priors(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="pictures, .tok files, token files (.npz, .safetensors), or folders", metavar="INPUT..."),
    ],
    model: ModelOption = None,
    device: Device = "auto",
    threads: Annotated[int | None, typer.Option(help="of PyTorch on the CPU", min=1)] = None,
    seconds: Annotated[float, typer.Option(help="how long each prior is timed on inputs of one size", min=1e-6)] = 0.5,
    large: Annotated[bool, typer.Option("--large/--no-large", help="also coders of large codebooks")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for all results")] = None,
) -> None:
    """The context prior beside the static one: bytes, a hash of the integer tables, speed.

    "tables SHA-256" is equal on all machines for equal codes in equal order (inputs as given, folders by name). Codes
    of a picture may differ between devices in rare ties of the analysis net, so compare with .tok or token files.
    """
    from .bench.prior import bench_prior

    bench_prior(inputs, model, device, threads, seconds, large, out)


@bench_app.command("generator")
def bench_a_generator(
    inputs: Annotated[
        list[Path], typer.Argument(help="pictures or sounds, .tok or token files, or folders", metavar="INPUT...")
    ],
    model: GeneratorOption = None,
    tokenizer: Annotated[str | None, typer.Option(help="the generator's tokenizer, if it is not a release")] = None,
    device: Device = "auto",
    samples: Annotated[int, typer.Option("-n", help="samples at a time", min=1)] = 4,
    full: Annotated[bool, typer.Option("--full", help="time every pass without the cache, not some of them")] = False,
    seed: Annotated[int, typer.Option(help="of the random numbers", min=0)] = 0,
    limit: Annotated[int | None, typer.Option(help="only so many inputs", min=1)] = None,
    threads: Annotated[int | None, typer.Option(help="of PyTorch on the CPU", min=1)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for all results")] = None,
) -> None:
    """A generator as a prior beside the context prior and static tables, and its speed with and without a cache."""
    from .bench.generator import bench_generator

    bench_generator(inputs, model, tokenizer, device, samples, full, seed, limit, threads, out)


@bench_app.command("devices")
def bench_device_pair(
    folder: Annotated[
        Path, typer.Argument(help="folder with pictures, sounds or videos, or with .tok files of pictures or videos")
    ],
    qualities: Annotated[str | None, typer.Option(help="of pictures, with commas; else 20,50,80")] = None,
    kbps: Annotated[float | None, typer.Option(help="of sounds; else 3", min=1e-3)] = None,
    levels: Annotated[int | None, typer.Option(help="of videos; else all", min=1)] = None,
    model: ModelOption = None,
    device: Device = "auto",
    limit: Annotated[int | None, typer.Option(help="only so many files", min=1)] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for all results")] = None,
) -> None:
    """A GPU beside the CPU: files of each read on both, the same codes or not, and how long it takes.

    The first file says whether the folder holds pictures, sounds or videos.
    """
    from .bench.devices import KINDS, bench_devices, folder_kind

    kind = folder_kind(folder)
    for option, things, value in (
        ("qualities", "pictures", qualities), ("kbps", "sounds", kbps), ("levels", "videos", levels)
    ):  # fmt: skip
        if value is not None and things != KINDS[kind]:
            raise UsageError(f"--{option} is for {things}, and {folder} holds {KINDS[kind]}")
    if kind == "video":
        from .bench.video_devices import bench_video_devices

        bench_video_devices(folder, levels, model, device, limit, out)
    elif kind == "audio":
        from .bench.sound_devices import bench_sound_devices

        bench_sound_devices(folder, kbps or 3.0, model, device, limit, out)
    else:
        bench_devices(folder, number_list(qualities or "20,50,80", "qualities"), model, device, limit, out)


@bench_app.command("shares")
def bench_token_shares(
    folder: Annotated[Path, typer.Argument(help="folder with pictures")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder for shares.json and a sheet of pictures")] = Path(
        "bench-out"
    ),
    model: ModelOption = None,
    device: Device = "auto",
    limit: Annotated[int | None, typer.Option(help="only so many pictures", min=1)] = None,
    show: Annotated[str, typer.Option(help="names of the pictures on the sheet, with commas; else the first")] = "",
) -> None:
    """Sequence models at different numbers of tokens: each window alike, and shared by content."""
    from .bench.shares import bench_shares

    bench_shares(folder, out, model, device, limit, [name for name in show.split(",") if name])


@bench_app.command("conceal")
def bench_concealment(
    pictures: Annotated[list[Path], typer.Argument(help="pictures, or folders of them", metavar="PICTURE...")],
    share: Annotated[float, typer.Option(help="of what is lost, between 0 and 1")] = 0.2,
    model: ModelOption = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="of the losses", min=0)] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for all results")] = None,
    save: Annotated[
        Path | None, typer.Option(help="folder for PNG files of the first picture with lost cells, one a filler")
    ] = None,
) -> None:
    """Lost codes filled by the priors and by simple means: how far PSNR drops."""
    from .bench.conceal import bench_conceal

    bench_conceal(pictures, share, model, device, seed, out, save)


def expand(inputs: list[str], wanted: tuple[str, ...]) -> list[str]:
    """Inputs with each folder replaced by the files in it that have a ``wanted`` suffix. Raises UsageError for none."""
    sources: list[str] = []
    for name in inputs:
        path = Path(name)
        if name != STREAM and path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in wanted and p.is_file())
            if not inside:
                raise UsageError(f"no {', '.join(wanted)} files in the folder {name}")
            sources += map(str, inside)
        else:
            sources.append(name)
    return sources


def plan(
    inputs: list[str], out: str | None, suffix: str | Callable[[str], str], wanted: tuple[str, ...]
) -> list[tuple[str, str]]:
    """Pair every input with its output, whose suffix may depend on the input.

    A folder stands for the files in it with a ``wanted`` suffix. Without ``out`` an output lies beside its input; with
    several inputs ``out`` is a folder. Raises UsageError if two inputs would write one file, or nothing is found.
    """

    def suffix_of(src: str) -> str:
        found = suffix if isinstance(suffix, str) else suffix(src)
        if not re.fullmatch(r"\.[A-Za-z0-9]+", found):
            raise UsageError(f"{found.lstrip('.')!r} is not a file format")
        return found

    sources = expand(inputs, wanted)
    many = len(sources) > 1 or Path(inputs[0]).is_dir()
    if out == STREAM and many:
        raise UsageError("several inputs cannot share standard output: give a folder with -o")
    if out is not None and out != STREAM and many:
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the folder {out}: {(error.strerror or str(error)).lower()}") from error
    pairs: dict[str, str] = {}
    for src in sources:
        if out is None:
            dst = STREAM if src == STREAM else str(Path(src).with_suffix(suffix_of(src)))
        elif out != STREAM and (many or Path(out).is_dir()):
            dst = str(Path(out) / (("stdin" if src == STREAM else Path(src).stem) + suffix_of(src)))
        else:
            suffix_of(src)
            dst = out
        if dst != STREAM and dst in pairs:
            raise UsageError(f"{pairs[dst]} and {src} would both be written to {dst}")
        if dst == src and src != STREAM:
            raise UsageError(f"{src} would be overwritten by its own output: name another with -o")
        pairs[dst] = src
    return [(src, dst) for dst, src in pairs.items()]


def each(pairs: list[tuple[str, str]], one: Callable[[str, str], int], quiet: bool) -> None:
    """Run ``one`` for every pair. With several, errors are collected, the others go on, and a progress bar shows.

    Raises: the error itself for a single pair; typer.Exit with the gravest exit code otherwise.
    """
    if len(pairs) == 1:
        code = one(*pairs[0])
        if code:
            raise typer.Exit(code)
        return
    codes = []
    for src, dst in track(pairs, quiet):
        try:
            codes.append(one(src, dst))
        except TokodecError as error:
            say(f"codec: {with_name(src, error)}")
            codes.append(error.exit_code)
    failed = sum(code == EXIT_USER for code in codes)
    if failed:
        say(f"codec: {failed} of {len(pairs)} files failed")
        raise typer.Exit(EXIT_USER)
    if any(codes):
        raise typer.Exit(max(codes))


def with_name(src: str, error: TokodecError) -> str:
    return str(error) if src in str(error) else f"{src}: {error}"


def track(pairs: list[tuple[str, str]], quiet: bool) -> Any:
    """Iterate with a progress bar on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        return pairs
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(pairs, description="", console=Console(stderr=True))


def main() -> None:
    """Entry point: runs a command and turns every error into one line and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line on ``arguments``; returns the exit code."""
    debug = "--debug" in arguments
    try:
        code = app(args=[a for a in arguments if a != "--debug"], prog_name="codec", standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # typer turns KeyboardInterrupt into this code, in silence
            say("codec: interrupted")
        return code if isinstance(code, int) else 0
    except TokodecError as error:
        if debug:
            traceback.print_exc()
        say(f"codec: {error}")
        return error.exit_code
    except _CommandError as error:  # unknown options, missing arguments, no arguments at all
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        if message.startswith("Usage:"):  # a command without arguments
            say(message)
        elif message:
            say(f"codec: {' '.join(message.split())}; see codec --help")
        return EXIT_USER
    except BrokenPipeError:
        sys.stderr.close()
        return 0
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
