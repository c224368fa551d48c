"""What all commands of `codec` share: their options, progress on the terminal, and one output for every input."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import TokodecError, UsageError
from .progress import Progress

EXIT_FAULT, EXIT_USER, EXIT_DAMAGED, EXIT_INTERRUPTED = 1, 2, 3, 130
STREAM = "-"
SLOW = 1.0  # seconds after which a picture gets a progress bar
Inputs = Annotated[list[str], typer.Argument(help="files or folders; - is standard input", metavar="IN...")]
Output = Annotated[
    str | None, typer.Option("--out", "-o", help="file, or folder for several inputs; - is standard output")
]
HOW_NAMED = "release name, path of a folder, or hf:USER/MODEL"
ModelOption = Annotated[str | None, typer.Option("--model", "-m", help=HOW_NAMED)]
GeneratorOption = Annotated[str | None, typer.Option("--model", "-m", help=f"generator: {HOW_NAMED}")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda")]
Force = Annotated[bool, typer.Option("--force", "-f", help="overwrite outputs")]
Quiet = Annotated[bool, typer.Option("--quiet", help="say nothing but errors")]
MaxPixels = Annotated[int, typer.Option(help="refuse pictures, and frames of videos, with more pixels", min=1)]
MaxSamples = Annotated[int, typer.Option(help="refuse sounds with more samples in all channels", min=1)]
Levels = Annotated[
    int | None, typer.Option(help="number of levels: the rate of token models; decoding: at most so many layers")
]
Quality = Annotated[float | None, typer.Option("--quality", "-q", help="0 to 100: the rate of models for photographs")]
Sound = Annotated[bool, typer.Option(help="keep the sound of a video")]
SoundModel = Annotated[str | None, typer.Option(help=f"model of a video's sound: {HOW_NAMED}")]
Effort = Annotated[
    int, typer.Option(help="0 to 10: none to 160 steps towards better codes, each longer than encoding without")
]


def say(text: str) -> None:
    """One line to stderr: stdout is for data."""
    print(text, file=sys.stderr)


class Bar(Progress):
    """A bar on stderr for work that takes longer than a moment: it shows the share that is done and the time left, and
    the speed if it is told of frames. Without shares it shows that something is being done."""

    def __init__(self, what: str, quiet: bool) -> None:
        self.what, self.quiet, self.begin = what, quiet, time.monotonic()
        self.bar: Any = None

    def update(self, share: float | None = None, *, frames: int | None = None, note: str = "") -> None:
        fields: dict[str, Any] = {} if share is None else {"completed": share, "total": 1.0}
        if frames is not None:
            fields["speed"] = f"{frames / max(1e-9, time.monotonic() - self.begin):.1f} frames/s"
        if note:
            fields["speed"] = note
        self._show(**fields)

    def _show(self, **fields: Any) -> None:
        if self.quiet or not sys.stderr.isatty() or time.monotonic() - self.begin < SLOW:
            return
        if self.bar is None:
            from rich import progress
            from rich.console import Console

            columns = *progress.Progress.get_default_columns(), progress.TextColumn("{task.fields[speed]}")
            self.bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
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
