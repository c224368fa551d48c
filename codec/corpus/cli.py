"""The commands `codec corpus ...`, and `codec tokenize` where it writes shards."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from itertools import zip_longest
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..console import EXIT_DAMAGED, ModelOption, print_fields, progress_bar, say
from ..errors import UsageError
from ..flags import CorpusFlags, TokenizeFlags
from ..options import CORPUS_FORMATS, CORPUS_PATTERNS, CorpusOptions, TokenizeOptions
from .tally import Tally

corpus_app = typer.Typer(help="Shards of tokens of many files.", no_args_is_help=True, rich_markup_mode=None)
ADDRESS = re.compile(r"auto|local|(ray://)?[^/\s]+:\d+")
Folder = Annotated[str, typer.Argument(help="folder or URL of the shards", metavar="CORPUS")]


class WithAddress(TyperCommand):
    """A command whose ``--ray`` may stand without an address."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_address(args))


def with_address(arguments: list[str]) -> list[str]:
    """Arguments with an empty address after each ``--ray`` that none follows."""
    pairs = zip_longest(arguments, arguments[1:], fillvalue="")
    return ["--ray=" if a == "--ray" and not ADDRESS.fullmatch(b) else a for a, b in pairs]


def corpus_options(format: str | None, flags: CorpusFlags) -> CorpusOptions | None:
    """What `codec tokenize` was told about shards, None if it is to write none. Raises UsageError."""
    given = {name: value for name, value in asdict(flags).items() if value is not None}
    if format in CORPUS_FORMATS:
        return CorpusOptions(format=format, **given)
    names = ("shard_size", "rank", "world", "workers", "ray", *["resume"] * flags.resume)
    alone = [name for name in names if name in given]
    if alone:
        option = "--" + alone[0].replace("_", "-")
        raise UsageError(f"{option} is for shards: say --format {', '.join(CORPUS_FORMATS[:-1])} or tok")
    return None


def run_tokenize(inputs: list[str], out: str | None, options: CorpusOptions, flags: TokenizeFlags) -> None:
    """Write the shards of a rank, with Ray of all. Raises typer.Exit if samples failed, UsageError without a folder."""
    from .cluster import tokenize_on_ray
    from .run import tokenize_corpus

    if out is None:
        raise UsageError("shards want a folder: name it with -o")
    if flags.force:
        raise UsageError("shards are not overwritten: --resume goes on with them, or name another folder")
    write: Callable[..., Tally] = tokenize_corpus if options.ray is None else tokenize_on_ray
    with progress_bar(out, flags.quiet) as progress:
        done = write(inputs, out, options, TokenizeOptions(**flags.short), progress)
    which, errors = "", "errors.jsonl"
    if options.ray is None:
        rank, world = options.place
        which = "" if done.finished or world == 1 else f"rank {rank} of {world}, other ranks are not ready: "
        errors = f"errors-{rank:04}.jsonl"
    if not flags.quiet:
        say(f"{out}: {which}{done.written} samples, {len(done.shards)} shards, {done.note}")
    if done.failed:
        say(f"codec: {out}: {done.failed} samples failed, see {errors}")
        raise typer.Exit(done.exit_code)


@corpus_app.command()
def merge(
    folder: Folder,
    others: Annotated[
        list[str] | None, typer.Argument(help="folders or URLs whose shards are moved there", metavar="OTHER...")
    ] = None,
) -> None:
    """Put the shards of ranks together that wrote to several folders, or whose last one could not."""
    from .manifest import finish

    manifest = finish(folder, others or ())
    say(f"{folder}: {manifest['samples']} samples, {len(manifest['shards'])} shards, {manifest['failed']} failed")


@corpus_app.command()
def compose(
    folders: Annotated[list[str], typer.Argument(help="folders or URLs of shards of one model", metavar="CORPUS...")],
    out: Annotated[str, typer.Option("--out", "-o", help=".bin file, or its URL; .idx and .json come with it")],
    pattern: Annotated[str, typer.Option(help=f"order of the ids: {', '.join(CORPUS_PATTERNS)}")] = "levels",
    digits: Annotated[bool, typer.Option("--digits", help="large codes as two or three ids")] = False,
    levels: Annotated[int | None, typer.Option(help="only so many levels of codes, coarse to fine", min=1)] = None,
    model: ModelOption = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="overwrite")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="say nothing")] = False,
) -> None:
    """Sequences of ids, in any pattern, from the codes in shards of any format: nothing is tokenized again."""
    from .compose import compose as write

    with progress_bar(out, quiet) as progress:
        done = write(folders, out, pattern, digits, levels=levels, model=model, force=force, progress=progress)
    if not quiet:
        say(f"{out}: {len(done)} samples, {done.summary()}")


@corpus_app.command()
def verify(
    folder: Folder,
    sources: Annotated[
        list[str] | None, typer.Argument(help="what it was made of: then nothing may be missing", metavar="SRC...")
    ] = None,
    model: ModelOption = None,
) -> None:
    """Read all shards: every sample must be there once, with the codes that were written. Exit code 3 says that
    something is wrong."""
    from .manifest import verify as problems_of

    problems = 0
    for problem in problems_of(folder, sources or (), model):
        say(f"codec: {problem}")
        problems += 1
    if problems:
        raise typer.Exit(EXIT_DAMAGED)
    say(f"{folder}: all well")


@corpus_app.command()
def show(folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False) -> None:
    """Say what a folder of shards holds, also while it is being made."""
    from .manifest import summary

    print_fields(summary(folder), as_json)
