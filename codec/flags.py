"""Options of the command line as dataclasses, so that a command has one argument for all of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Annotated, Any, get_type_hints

import typer

from .console import (
    Device,
    Effort,
    Force,
    GeneratorOption,
    Levels,
    MaxPixels,
    MaxSamples,
    ModelOption,
    Quality,
    Quiet,
    Recursive,
    Sound,
    SoundModel,
    Track,
)
from .container.fields import MAX_PIXELS, MAX_SAMPLES


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What every command with inputs and outputs has."""

    device: Device = "auto"
    force: Force = False
    quiet: Quiet = False

    @property
    def short(self) -> dict[str, Any]:
        """What is meant for the function that does the work, by its keywords."""
        return {name: value for name, value in asdict(self).items() if name not in ("force", "quiet", "recursive")}


@dataclass(frozen=True, kw_only=True)
class InputFlags(Flags):
    """What every command has that folders may be given to."""

    recursive: Recursive = False


@dataclass(frozen=True, kw_only=True)
class EncodeFlags(InputFlags):
    """Of `codec encode`, see :class:`~.options.EncodeOptions`."""

    model: ModelOption = None
    quality: Quality = None
    levels: Levels = None
    bpp: Annotated[
        float | None, typer.Option(help="most bits per pixel of a picture or of a video's frames, whole file")
    ] = None
    kbps: Annotated[
        float | None, typer.Option(help="most thousands of bits a second of a sound or a video, whole file")
    ] = None
    size: Annotated[int | None, typer.Option("--bytes", help="most bytes, whole file")] = None
    tokens: Annotated[
        int | None, typer.Option(help="tokens of a picture in all: the rate of sequence models, shared by content")
    ] = None
    target: Annotated[
        str | None, typer.Option(help="least bytes that reach psnr=40, ms-ssim=0.98 or ssimulacra2=80 on a picture")
    ] = None
    lossless: Annotated[bool, typer.Option("--lossless", help="every pixel of a picture as it was")] = False
    max_error: Annotated[
        int | None, typer.Option(help="most that a sample of a picture may be off, in steps of 8 bits, 1 to 32")
    ] = None
    prior: Annotated[
        str | None,
        typer.Option(help="entropy model of a token model: context (smaller files), static, or file: its own tables"),
    ] = None
    tune: Annotated[
        str | None, typer.Option(help="what photographs are to be best at: psnr (the default) or ms-ssim")
    ] = None
    effort: Effort = 0
    alpha_quality: Annotated[
        int | None, typer.Option(help="levels of a picture's transparency: 0 (two) to 100 (all of them, the default)")
    ] = None
    minutes: Annotated[
        float | None, typer.Option(help="time that -m video-fit may take, 3 by default; Ctrl-C ends it early")
    ] = None
    low_delay: Annotated[
        bool, typer.Option("--low-delay", help="no frame of a video waits for a later one, for streams")
    ] = False
    keep: Annotated[
        str | None, typer.Option(help="of a picture's metadata: icc, exif and xmp with commas, all (default) or none")
    ] = None
    metadata: Annotated[
        bool, typer.Option("--metadata/--no-metadata", help="without: keep the colour profile only, as --keep icc")
    ] = True
    strict: Annotated[bool, typer.Option("--strict", help="refuse damaged inputs")] = False
    track: Track = None
    sound: Sound = True
    sound_kbps: Annotated[
        float | None, typer.Option(help="of a video's sound; by default 3 a channel, at most a fifth of --kbps")
    ] = None
    sound_model: SoundModel = None
    sound_track: Annotated[int | None, typer.Option(help="of a video's sounds, from 1 on", min=1)] = None
    max_pixels: MaxPixels = MAX_PIXELS
    max_samples: MaxSamples = MAX_SAMPLES


@dataclass(frozen=True, kw_only=True)
class DecodeFlags(InputFlags):
    """Of `codec decode`, see :class:`~.options.DecodeOptions`."""

    model: ModelOption = None
    levels: Levels = None
    synthesis: Annotated[
        str | None, typer.Option(help="which synthesis net, e.g. faithful (least error) or sharp (most natural)")
    ] = None
    start: Annotated[float | None, typer.Option(help="seconds of a sound or video to begin at")] = None
    end: Annotated[float | None, typer.Option(help="seconds of a sound or video to end at")] = None
    strict: Annotated[bool, typer.Option("--strict", help="refuse damaged or cut-off files")] = False
    sound: Sound = True
    sound_model: SoundModel = None
    max_pixels: MaxPixels = MAX_PIXELS
    max_samples: MaxSamples = MAX_SAMPLES


@dataclass(frozen=True, kw_only=True)
class DetokenizeFlags(InputFlags):
    """Of `codec detokenize`, see :func:`~.tokens.detokenize_file`."""

    model: ModelOption = None
    synthesis: Annotated[str | None, typer.Option(help="which synthesis net, e.g. faithful or sharp")] = None
    max_pixels: MaxPixels = MAX_PIXELS
    max_samples: MaxSamples = MAX_SAMPLES


@dataclass(frozen=True, kw_only=True)
class TokenizeFlags(InputFlags):
    """Of `codec tokenize`, see :class:`~.options.TokenizeOptions`."""

    model: ModelOption = None
    quality: Quality = None
    levels: Levels = None
    track: Track = None
    max_pixels: MaxPixels = MAX_PIXELS
    max_samples: MaxSamples = MAX_SAMPLES


@dataclass(frozen=True, kw_only=True)
class PriorFlags(InputFlags):
    """Of `codec prior`, see :func:`~.counting.count_prior`."""

    model: Annotated[str, typer.Option("--model", "-m", help="folder or hf:USER/MODEL, where the tables are stored")]


@dataclass(frozen=True, kw_only=True)
class CorpusFlags:
    """Of `codec tokenize` where tokens of many files go together, see :class:`~.options.CorpusOptions`."""

    pattern: Annotated[
        str | None,
        typer.Option(help="order of the ids of a .bin corpus: levels (the default), interleaved, delay, parallel"),
    ] = None
    digits: Annotated[
        bool, typer.Option("--digits", help="large codes as two or three ids of a .bin corpus, a smaller vocabulary")
    ] = False
    shard_size: Annotated[str | None, typer.Option(help="of a shard: 256MB (the default), or a number of files")] = None
    resume: Annotated[bool, typer.Option("--resume", help="go on with shards that were begun")] = False
    rank: Annotated[
        int | None, typer.Option(help="which part of the shards' files this is; else RANK or SLURM_PROCID")
    ] = None
    world: Annotated[int | None, typer.Option(help="how many parts there are; else WORLD_SIZE or SLURM_NTASKS")] = None
    workers: Annotated[int | None, typer.Option(help="processes that read and decode files for shards")] = None
    ray: Annotated[
        str | None,
        typer.Option(
            help="run all ranks of shards on a Ray cluster: HOST:PORT, ray://HOST:PORT or auto; alone, on this machine",
            metavar="[ADDRESS]",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(Flags):
    """Of `codec generate`, see :class:`~.generate.files.SampleOptions`."""

    model: GeneratorOption = None
    prompt: Annotated[str | None, typer.Option(help="picture or sound whose beginning is kept")] = None
    keep: Annotated[
        float | None, typer.Option(help="of the prompt: share of a picture's rows (0.5), seconds of a sound (1)")
    ] = None
    n: Annotated[int, typer.Option("-n", help="samples")] = 8
    temperature: Annotated[float, typer.Option(help="below 1 safer, above 1 wilder; 0: the most probable id")] = 1.0
    top_k: Annotated[int | None, typer.Option(help="choose among the k most probable ids only")] = None
    top_p: Annotated[float | None, typer.Option(help="only among the ids that have this probability together")] = None
    seed: Annotated[int, typer.Option(help="of the random numbers", min=0)] = 0
    levels: Annotated[int | None, typer.Option(help="only so many levels of codes")] = None
    tokenizer: Annotated[str | None, typer.Option(help="the generator's tokenizer, if it is not a release")] = None
    synthesis: Annotated[str | None, typer.Option(help="which synthesis net of a picture, faithful or sharp")] = None


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters of dataclass types are options of their own for typer, a field each."""
    hints = get_type_hints(command, include_extras=True)
    kinds: dict[str, type[Any]] = {}
    plain: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if hasattr(hints[name], "__dataclass_fields__"):
            kinds[name] = hints[name]
        else:
            plain.append(parameter.replace(annotation=hints[name]))
    options = []
    for kind in kinds.values():
        types = get_type_hints(kind, include_extras=True)
        own = list(inspect.get_annotations(kind))  # what a command has alone comes first in its help
        for field in sorted(fields(kind), key=lambda f: f.name not in own):
            keyword = inspect.Parameter.KEYWORD_ONLY
            options.append(
                inspect.Parameter(
                    field.name,
                    keyword,
                    default=inspect.Parameter.empty if field.default is MISSING else field.default,
                    annotation=types[field.name],
                )
            )

    @functools.wraps(command)
    def called(**given: Any) -> None:
        chosen = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for name, kind in kinds.items()
        }
        command(**given, **chosen)

    called.__signature__ = inspect.Signature([*plain, *options])  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in [*plain, *options]}
    return called
