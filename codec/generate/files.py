"""New pictures and sounds from a generator, or the rest of one whose beginning is given.

::

    prompt -> fitted to the window -> its first rows (or seconds) alone -> tokenizer -> codes, the others absent
    codes -> generator: n x ids, the known ones kept -> codes -> tokenizer -> sample-1.png ...; all in samples.png

Only what is kept of a prompt is encoded: the net that makes the codes sees nothing of the rest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ...entropy.integer import OneThread
from ...tokenizers.folders import is_release
from ..container.fields import MAX_PIXELS, MAX_SAMPLES
from ..errors import ModelError, UsageError, WeightsMismatchError
from ..files import atomic_outputs, make_folder, refuse_overwriting
from ..image.format import decode_pixels, image_tokenizer
from ..media.audio import AudioReader, Samples, Sound, resample, write_audio
from ..media.kind import Kind, media_kind, refuse_videos
from ..media.picture import Picture
from ..media.read_image import read_image
from ..media.write_image import write_image
from ..metrics.picture import as_rgb
from ..metrics.spectrogram import spectrogram
from ..models import Model, load_model, pick_device
from ..progress import Progress, as_progress
from ..registry import MODALITIES, default_generator
from .model import Generator, load_generator

if TYPE_CHECKING:
    from ...tokenizers.tokens import Tokens, TokenSpec


BATCH = 16  # samples at a time
MOST = 1000
KEEP = {"image": 0.5, "audio": 1.0}  # share of the rows of a picture, seconds of a sound
SHEET = "samples.png"
GAP, WHITE = 4, 255  # pixels between the pictures of a sheet


@dataclass
class Generated:
    """Samples, the files that they were written to (the last one is the sheet), and what there is to say.

    notes: what could not be kept.  problems: what of the prompt is damaged or missing. One line each.
    """

    samples: list[Picture | Sound]
    files: list[Path]
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Prompt(NamedTuple):
    """Codes of what is known, the others absent, and a picture ``[H, W, 3]`` of it for the sheet."""

    tokens: Tokens
    picture: np.ndarray


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What is to be made.

    Attributes:
        model: of the generator; that for the prompt's kind by default, for pictures without a prompt.
        prompt: path of a picture or a sound.
        keep: how much of it: the share of a picture's rows (half by default), the seconds of a sound (one). With 1 all
            of a picture is kept, and what is made are the rows below it.
        n: how many samples.
        tokenizer: folder of the generator's tokenizer, if it is not a release.
        levels, temperature, top_k, top_p: see :meth:`.model.Generator.sample`.  seed: of the random numbers.
        synthesis: of tokenizers with several nets for it.
        device: "auto", "cpu" or "cuda".
    """

    model: str | None = None
    prompt: str | Path | None = None
    keep: float | None = None
    n: int = 8
    tokenizer: str | None = None
    levels: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    synthesis: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 1 <= self.n <= MOST:
            raise UsageError(f"1 to {MOST} samples are made at once, not {self.n}")
        if self.keep is not None and self.prompt is None:
            raise UsageError("how much to keep goes with a prompt")


def generate_files(
    out: str | Path,
    options: SampleOptions | None = None,
    *,
    force: bool = False,
    progress: Progress | Callable[[float], None] | None = None,
) -> Generated:
    """Write samples and a sheet of all of them into the folder ``out``: all files, or none.

    Raises: a :class:`~..errors.TokodecError`.
    """
    options, told = options or SampleOptions(), as_progress(progress)
    n, prompt = options.n, options.prompt
    kind: Kind = "image" if prompt is None else media_kind(Path(prompt))[0]
    refuse_videos(kind, str(prompt))
    generator, loaded = load_pair(options.model or default_generator(kind), options.tokenizer, options.device)
    modality = loaded.tokenizer.modality
    if prompt is not None and modality != kind:
        raise UsageError(f"{generator.name} is a generator for {modality}, and {prompt} is {MODALITIES[kind].noun}")
    if modality != "image" and options.synthesis is not None:
        raise UsageError("only tokenizers of pictures have several synthesis nets")
    suffix = ".wav" if modality == "audio" else ".png"
    folder = Path(out)
    digits = len(str(n))
    files = [folder / f"sample-{i + 1:0{digits}}{suffix}" for i in range(n)] + [folder / SHEET]
    for path in files:
        refuse_overwriting([prompt], path)
    done = Generated([], files)
    with a_folder(folder), atomic_outputs(files[::-1], force) as outputs, torch.no_grad():
        start = None
        if prompt is not None:
            read = picture_prompt if modality == "image" else sound_prompt
            start = read(
                Path(prompt), KEEP[modality] if options.keep is None else options.keep, generator, loaded, done
            )
        random = torch.Generator().manual_seed(options.seed)
        for begin in range(0, n, BATCH):
            size = min(BATCH, n - begin)
            part = told.part(begin / n, (begin + size) / n)
            try:
                with OneThread():  # an id after the other: small products, as a prior's
                    tokens = generator.sample(
                        size, None if start is None else start.tokens, levels=options.levels,
                        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, generator=random,
                        progress=part.update,
                    )  # fmt: skip
            except ValueError as error:
                raise UsageError(str(error)) from error
            done.samples += [decoded(tokens, i, loaded, options.synthesis) for i in range(size)]
        for sample, file, path in zip(done.samples, outputs[:0:-1], files, strict=False):
            if isinstance(sample, Picture):
                write_image(sample, file, suffix, str(path))
            else:
                done.notes += [f"{path.name}: {note}" for note in write_audio(sample, file, suffix, str(path))]
        tiles = [] if start is None else [start.picture]
        tiles += [s.pixels if isinstance(s, Picture) else drawn(s.samples[0]) for s in done.samples]
        write_image(Picture(sheet(tiles)), outputs[0], ".png", SHEET)
    return done


@contextmanager
def a_folder(folder: Path) -> Iterator[None]:
    """Make a folder; if it was not there before and the block fails, it goes again. Raises UsageError."""
    new = not folder.exists()
    make_folder(folder)
    try:
        yield
    except BaseException:
        if new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def load_pair(model: str, tokenizer: str | None, device: str) -> tuple[Generator, Model]:
    """A generator and its tokenizer. Raises ModelError, WeightsMismatchError if they do not belong together."""
    device = pick_device(device)
    generator = load_generator(model, device)
    window = generator.config.window
    if tokenizer is None and not is_release(window.model):  # no file leads to a folder or to the network
        raise ModelError(
            f"{generator.name} makes tokens of {window.model[:64]!r}, which does not come with tokodec;"
            " give its folder with --tokenizer"
        )
    loaded = load_model(tokenizer or window.model, device)
    own = loaded.tokenizer
    if (own.name, own.weights_hash) != (window.model, window.weights_hash):
        raise WeightsMismatchError(
            f"{generator.name} makes tokens of {window.model} {window.weights_hash},"
            f" the tokenizer at hand is {own.name} {own.weights_hash}; give the right folder with --tokenizer"
        )
    return generator, loaded


# ------------------------------------------------------------------------------------------------------- prompts


def picture_prompt(path: Path, keep: float, generator: Generator, loaded: Model, told: Generated) -> Prompt:
    """The first rows of a picture, fitted to the window. Raises a TokodecError."""
    if not 0 < keep <= 1:
        raise UsageError(f"the share of rows to keep is above 0 and at most 1, got {keep:g}")
    window = generator.config.window
    height, width = window.size
    stride = window.strides[0]
    picture = read_image(path, str(path), MAX_PIXELS)
    told.notes += picture.notes
    told.problems += picture.problems
    if picture.alpha is not None:
        told.notes.append("the alpha channel is left out")
    pixels = as_rgb(picture.pixels)
    fitted = fit(pixels, height, width, beginning=keep == 1)
    if fitted.shape != pixels.shape:
        sizes = [f"{p.shape[1]} x {p.shape[0]}" for p in (pixels, fitted)]
        told.notes.append(f"the picture of {sizes[0]} pixels is fitted to the window: {sizes[1]}")
    size = (height if keep == 1 else len(fitted), fitted.shape[1])
    rows, total = math.floor(keep * len(fitted) / stride + 1e-9), -(-size[0] // stride)
    if not 0 < rows < total:
        what = "all rows" if rows else "no whole row"
        raise UsageError(f"{path}: {what} of {total} rows of cells would be kept; keep another share of the picture")
    known = image_tokenizer(loaded).encode_picture(torch.from_numpy(np.ascontiguousarray(fitted[: rows * stride])))
    return Prompt(with_rest(known, dataclasses.replace(window, size=size)), fitted)


def fit(pixels: np.ndarray, height: int, width: int, beginning: bool) -> np.ndarray:
    """Reduce a picture until it just covers the window, if it is larger, and cut out the middle.

    Args:   beginning: it is only the top of a picture: the width decides, and what is too low is cut off.
    """
    factor = width / pixels.shape[1]
    if not beginning:
        factor = max(factor, height / pixels.shape[0])
    if factor < 1:
        size = [max(1, round(n * factor)) for n in pixels.shape[:2]]
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
        pixels = x[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()
    top = 0 if beginning else max(0, pixels.shape[0] - height) // 2
    left = max(0, pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def sound_prompt(path: Path, keep: float, generator: Generator, loaded: Model, told: Generated) -> Prompt:
    """The first seconds of a sound, its channels mixed. Raises a TokodecError."""
    if not (math.isfinite(keep) and keep > 0):
        raise UsageError(f"the seconds to keep are above 0, got {keep:g}")
    window = generator.config.window
    rate, frame = round(window.sample_rate or 1), window.strides[0]
    total = window.grid[0]
    sound = beginning(path, total * frame / rate)
    told.notes += sound.notes
    told.problems += sound.problems
    if len(sound.samples) > 1:
        told.notes.append(f"the {len(sound.samples)} channels are mixed")
    if sound.sample_rate != rate:
        told.notes.append(f"{sound.sample_rate} Hz become {rate}")
    mono = resample(sound.samples.mean(0, keepdims=True), sound.sample_rate, rate)[:, : total * frame]
    frames = math.floor(min(keep * rate, mono.shape[1]) / frame + 1e-9)
    if not 0 < frames < total:
        what = "less than a frame" if not frames else "everything"
        raise UsageError(f"{path}: {what} would be kept of {total * frame / rate:g} s; keep another number of seconds")
    if mono.shape[1] < keep * rate:
        told.notes.append(f"the sound has {mono.shape[1] / rate:.2f} s only, all of them are kept")
    start = torch.from_numpy(mono[:, : frames * frame])[None].to(loaded.tokenizer.device)
    known = loaded.tokenizer.encode(start)
    return Prompt(with_rest(known.to("cpu"), window), drawn(mono[0]))


def beginning(path: Path, seconds: float) -> Sound:
    """The first ``seconds`` of a sound, and one or more behind them, which a resampler looks at."""
    with AudioReader(path, str(path), MAX_SAMPLES) as reader:
        blocks: list[Samples] = [np.zeros((reader.channels, 0), dtype=np.float32)]
        for block in reader.blocks():
            blocks.append(block)
            if reader.position >= (seconds + 1) * reader.sample_rate:
                break
        return Sound(np.concatenate(blocks, axis=1), reader.sample_rate, notes=reader.notes, problems=reader.problems)


def with_rest(known: Tokens, spec: TokenSpec) -> Tokens:
    """Codes of the first rows (or frames) and as many absent ones as a larger signal has."""
    from ...tokenizers.quantize.base import ABSENT
    from ...tokenizers.tokens import Tokens

    codes = torch.full((1, known.n_levels, *spec.grid), ABSENT)
    codes[:, :, : known.codes.shape[2]] = known.codes
    return Tokens(codes, spec)


# ------------------------------------------------------------------------------------------------------- samples


def decoded(tokens: Tokens, i: int, loaded: Model, synthesis: str | None) -> Picture | Sound:
    """Sample i of a batch."""
    from ...tokenizers.tokens import Tokens

    one = Tokens(tokens.codes[i : i + 1], tokens.spec)
    if tokens.spec.modality == "image":
        return Picture(decode_pixels(one.to("cpu"), loaded, 3, synthesis))
    from ..audio.tokens import sound_of_codes

    return sound_of_codes(one, loaded)


def drawn(samples: np.ndarray) -> np.ndarray:
    """The spectrogram of a sound ``[n]`` as pixels ``[H, W, 3]``."""
    return np.asarray(spectrogram(samples).convert("RGB"))


def sheet(tiles: list[np.ndarray]) -> np.ndarray:
    """Pictures ``[H, W, 3]`` side by side in rows, as square as it can be."""
    height, width = (max(tile.shape[axis] for tile in tiles) + GAP for axis in (0, 1))
    columns = min(len(tiles), max(1, round(math.sqrt(len(tiles) * height / width))))
    rows = -(-len(tiles) // columns)
    found = np.full((rows * height - GAP, columns * width - GAP, 3), WHITE, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height, i % columns * width
        found[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return found
