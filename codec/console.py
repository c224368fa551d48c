"""What all commands of `codec` share: their options, progress on the terminal, and one output for every input."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import OUT_OF_MEMORY, ReaderGoneError, TokodecError, UsageError, is_out_of_memory
from .files import is_stream, make_folder
from .progress import Progress

EXIT_FAULT, EXIT_USER, EXIT_DAMAGED, EXIT_INTERRUPTED = 1, 2, 3, 130
STREAM = "-"
SLOW = 1.0  # seconds after which a picture gets a progress bar
Inputs = Annotated[list[str], typer.Argument(help="files or folders; - is standard input", metavar="IN...")]
Output = Annotated[
    str | None,
    typer.Option("--out", "-o", help="file, or folder for several inputs or if it ends in /; - is standard output"),
]
Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="folders with all folders inside them")]
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
Track = Annotated[
    int | None, typer.Option(help="of a sound or a video, from 1 on; the file's default if not given", min=1)
]
Sound = Annotated[bool, typer.Option(help="keep the sound of a video")]
SoundModel = Annotated[str | None, typer.Option(help=f"model of a video's sound: {HOW_NAMED}")]
Effort = Annotated[
    int, typer.Option(help="0 to 10: none to 160 steps towards better codes, each longer than encoding without")
]


def say(text: str) -> None:
    """One line to stderr: stdout is for data. What a terminal would take for a command is shown escaped."""
    if sys.stderr is not None:  # it was closed, and print() would take standard output instead
        print(printable(text), file=sys.stderr)


def print_fields(found: dict[str, Any], as_json: bool) -> None:
    """Names and values to stdout: a line each, or one JSON object."""
    width = max(map(len, found))
    lines = (printable(f"{key:<{width}}  {value}") for key, value in found.items())
    print(json.dumps(found) if as_json else "\n".join(lines))


def printable(text: str) -> str:
    """``text`` with line breaks, escape sequences and the like, which names of files may hold, as ``\\n`` and so on."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


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
            from rich.markup import escape

            columns = *progress.Progress.get_default_columns(), progress.TextColumn("{task.fields[speed]}")
            self.bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self.bar.add_task(escape(printable(self.what)), total=None, speed="")
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


@dataclass(frozen=True)
class _Source:
    """An input. folder: where it lies below the folder that was named, ``top``, if one was."""

    name: str
    folder: Path = Path()
    top: Path | None = None

    @property
    def file(self) -> str:
        """Its name without folders."""
        return "stdin" if self.name == STREAM else Path(self.name).name


def labelled(
    inputs: list[str], wanted: tuple[str, ...], recursive: bool, key: Callable[[str], str]
) -> list[tuple[str, str]]:
    """Keys of inputs and the inputs, with each folder replaced by the files in it that have a ``wanted`` suffix.

    A ``key`` is made of a file's name with the folders below the one that was named, so classes in folders are kept;
    where two would be the same, the name of that folder stands in front, or of the one that a file is in.

    Raises: UsageError for a folder without such files, or one that cannot be read.
    """
    sources = _sources(inputs, wanted, recursive, "")
    keys = [key((source.folder / source.file).as_posix()) for source in sources]
    if len(set(keys)) < len(keys):
        tops = [(source.top or Path(source.name).parent).resolve().name for source in sources]
        keys = [
            key((Path(top) / source.folder / source.file).as_posix()) for top, source in zip(tops, sources, strict=True)
        ]
    return [(label, source.name) for label, source in zip(keys, sources, strict=True)]


def _sources(inputs: list[str], wanted: tuple[str, ...], recursive: bool, made: str) -> list[_Source]:
    """Inputs with each folder replaced by the files in it that have a ``wanted`` suffix.

    What else is in a folder is told in one line, except hidden files and what ends in ``made``, the suffix of outputs.
    """
    sources: list[_Source] = []
    for name in inputs:
        top = Path(name)
        if name == STREAM or not top.is_dir():
            sources.append(_Source(name))
            continue
        inside, left_out, folders = _walk(top, wanted, recursive, made)
        if folders:
            why = "links are not followed" if recursive else "--recursive takes what is inside"
            say(f"codec: {name}: {_some(folders, 'folder')} left out: {why}")
        if left_out:
            say(f"codec: {name}: {_some(left_out, 'file')} left out, of no kind that is read here")
        if not inside:
            raise UsageError(f"no {', '.join(wanted)} files in the folder {name}")
        sources += inside
    return sources


def _walk(top: Path, wanted: tuple[str, ...], recursive: bool, made: str) -> tuple[list[_Source], list[str], list[str]]:
    """Files of a folder to be read; others; folders that are not entered. In the order of their names."""
    inside: list[_Source] = []
    left_out: list[str] = []
    folders: list[str] = []

    def refuse(error: OSError) -> None:
        raise UsageError(f"cannot read the folder {error.filename}: {(error.strerror or str(error)).lower()}")

    for here, below, names in os.walk(top, onerror=refuse):
        shown = [name for name in sorted(below) if not name.startswith(".")]
        linked = [name for name in shown if (Path(here) / name).is_symlink()]  # not followed: they may form a circle
        below[:] = [name for name in shown if name not in linked] if recursive else []
        folder = Path(here).relative_to(top)
        folders += [str(folder / name) for name in (linked if recursive else shown)]
        for name in sorted(names):
            path = Path(here) / name
            suffix = path.suffix.lower()
            if suffix in wanted and path.is_file():
                inside.append(_Source(str(path), folder, top))
            elif not name.startswith(".") and (not made or suffix != made):
                left_out.append(str(folder / name))
    return inside, left_out, folders


def _some(names: list[str], what: str) -> str:
    """How many there are and what the first are called."""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({shown})"


def plan(
    inputs: list[str],
    out: str | None,
    suffix: str | Callable[[str], str],
    wanted: tuple[str, ...],
    recursive: bool = False,
) -> list[tuple[str, str]]:
    """Pair every input with its output, whose suffix may depend on the input.

    A folder stands for the files in it with a ``wanted`` suffix, with ``recursive`` also for those in the folders
    below, which the outputs keep. Without ``out`` an output lies beside its input; with several inputs, or if it ends
    in a slash, ``out`` is a folder, made if need be. Outputs are called as their inputs with another suffix; where that
    would give two of them one name (``a.jpg``, ``a.png``), the whole names stay (``a.jpg.tok``, ``a.png.tok``).

    Raises: UsageError if two inputs would still write one file, an output is one of the inputs, or nothing is found.
    """

    def suffix_of(src: str) -> str:
        found = suffix if isinstance(suffix, str) else suffix(src)
        if not re.fullmatch(r"\.[A-Za-z0-9]+", found):
            raise UsageError(f"{found.lstrip('.')!r} is not a file format")
        return found

    sources = _sources(inputs, wanted, recursive, suffix if isinstance(suffix, str) else "")
    many = len(sources) > 1 or any(name != STREAM and Path(name).is_dir() for name in inputs)
    if out == STREAM and many:
        raise UsageError("several inputs cannot share standard output: give a folder with -o")
    into = out is not None and out != STREAM and (many or out.endswith(("/", os.sep)) or Path(out).is_dir())
    planned: list[tuple[str, Path, str]] = []  # input, folder of its output, suffix
    for source in sources:
        src = source.name
        pipe = src != STREAM and is_stream(Path(src))  # not to be opened to learn its kind: it can be read once
        if pipe and (out is None or (into and not isinstance(suffix, str))):
            raise UsageError(f"{src} is a pipe or a device: name the output with -o")
        end = "" if pipe and not into else suffix_of(src)
        if out is not None and not into:
            _refuse_inputs([src], [(src, out)])
            return [(src, out)]
        if into:
            assert out is not None
            planned.append((src, Path(out) / source.folder, end))
        elif src == STREAM:
            return [(src, STREAM)]
        else:
            planned.append((src, Path(src).parent, end))
    pairs = _named(planned)
    _refuse_inputs([src for src, _ in pairs], pairs)
    if into:
        for folder in {folder for _, folder, _ in planned}:
            make_folder(folder)
    return pairs


def _named(planned: list[tuple[str, Path, str]]) -> list[tuple[str, str]]:
    """Names of outputs, whole ones where short ones meet: also in upper and lower case, as disks may not tell them
    apart. Raises UsageError if whole names meet too."""
    whole: set[int] = set()
    roots = {folder: os.path.realpath(folder) for _, folder, _ in planned}
    while True:
        places: dict[tuple[str, str], list[int]] = {}
        outputs: list[Path] = []
        for i, (src, folder, end) in enumerate(planned):
            source = Path("stdin" if src == STREAM else src)
            outputs.append(folder / ((source.name if i in whole else source.stem) + end))
            places.setdefault((roots[folder], outputs[i].name.casefold()), []).append(i)
        meeting = [numbers for numbers in places.values() if len(numbers) > 1]
        for first, second, *_ in meeting:
            if whole >= {first, second}:
                both = f"{planned[first][0]} and {planned[second][0]}"
                raise UsageError(f"{both} would both be written to {outputs[second]}")
        if not meeting:
            return [(src, str(output)) for (src, _, _), output in zip(planned, outputs, strict=True)]
        whole.update(number for numbers in meeting for number in numbers)


def _refuse_inputs(inputs: list[str], pairs: list[tuple[str, str]]) -> None:
    """Raise UsageError if an output is the file of any input, by whatever name or link."""
    read: dict[tuple[int, int], str] = {}
    for src in inputs:
        if src != STREAM and (key := _identity(src)) is not None:
            read[key] = src
    for src, dst in pairs:
        key = None if dst == STREAM else _identity(dst)
        if key is not None and key in read:
            own = read[key] == src
            what = "its own output" if own else f"the output of {src}"
            raise UsageError(f"{read[key]} would be overwritten by {what}: name another with -o")


def _identity(name: str) -> tuple[int, int] | None:
    """What tells a regular file from all others, None of what is none."""
    path = Path(name)
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if path.is_file() else None


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
        except ReaderGoneError:
            raise
        except TokodecError as error:
            say(f"codec: {with_name(src, error)}")
            codes.append(error.exit_code)
        except (MemoryError, RuntimeError) as error:  # the next one may be smaller
            if not is_out_of_memory(error):
                raise
            say(f"codec: {src}: {OUT_OF_MEMORY}")
            codes.append(EXIT_USER)
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
