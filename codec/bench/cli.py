"""The commands `codec bench ...`: what each takes, and the function that does it. Its help is in :mod:`.options`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import typer

from ..flags import with_flags
from . import options

bench_app = typer.Typer(help="Benchmarks against other codecs.", no_args_is_help=True, rich_markup_mode=None)
COMMANDS: dict[str, tuple[type[Any], str]] = {
    "image": (options.ImageOptions, ".image.bench:bench_images"),
    "audio": (options.AudioOptions, ".audio.bench:bench_audio"),
    "video": (options.VideoOptions, ".video.bench:bench_video"),
    "allocation": (options.AllocationOptions, ".image.allocation:bench_allocation"),
    "shares": (options.AllocationOptions, ".image.allocation:bench_allocation"),  # as it was called
    "quality": (options.QualityOptions, ".image.quality:bench_quality"),
    "process": (options.ProcessOptions, ".memory:bench_processes"),
    "nearest": (options.NearestOptions, ".search.nearest:bench_nearest"),
    "prior": (options.PriorOptions, ".entropy.prior:bench_prior"),
    "generator": (options.GeneratorOptions, ".entropy.generator:bench_generator"),
    "corpus": (options.CorpusBenchOptions, ".corpus:bench_corpus"),
    "devices": (options.DeviceOptions, ".devices:bench_devices"),
    "conceal": (options.ConcealOptions, ".entropy.conceal:bench_conceal"),
}
HIDDEN = ("shares",)


def command(kind: type[Any], target: str) -> Callable[..., None]:
    """A command with the options of a dataclass, whose text is its help. Benchmarks are imported when they are run."""

    def run(*, options: Any) -> None:
        module, _, function = target.partition(":")
        getattr(importlib.import_module(module, __package__), function)(options)

    run.__annotations__["options"], run.__doc__ = kind, kind.__doc__
    return with_flags(run)


for name, (kind, target) in COMMANDS.items():
    bench_app.command(name, hidden=name in HIDDEN)(command(kind, target))
