"""The commands `codec bench ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import Device, ModelOption, names_in
from ..flags import with_flags
from .options import (
    AudioOptions,
    ConcealOptions,
    DeviceOptions,
    Folder,
    GeneratorOptions,
    ImageOptions,
    Limit,
    NearestOptions,
    Out,
    PriorOptions,
    QualityOptions,
    Show,
    VideoOptions,
)

bench_app = typer.Typer(help="Benchmarks against other codecs.", no_args_is_help=True, rich_markup_mode=None)


@bench_app.command("image")
@with_flags
def bench_image(*, options: ImageOptions) -> None:
    """Rate, distortion, seconds and memory on a folder of pictures, beside other codecs; tables and a page."""
    from .image.bench import bench_images

    bench_images(options)


@bench_app.command("audio")
@with_flags
def bench_audio_folder(*, options: AudioOptions) -> None:
    """Rate, quality, speed and memory on a folder of sounds, named by kind as speech_1.wav, beside other codecs
    and networks; tables and a page."""
    from .audio.bench import bench_audio

    bench_audio(options)


@bench_app.command("video")
@with_flags
def bench_video_folder(*, options: VideoOptions) -> None:
    """Rate, distortion, speed and memory on a folder of videos, beside x264, x265 and SVT-AV1, and beside a model for
    pictures that is run frame by frame; tables and a page."""
    from .video.bench import bench_video

    bench_video(options)


@bench_app.command("allocation")
@bench_app.command("shares", hidden=True)  # as it was called
def bench_token_allocation(
    folder: Folder,
    out: Out = Path("bench-out"),
    model: ModelOption = None,
    device: Device = "auto",
    limit: Limit = None,
    show: Show = "",
) -> None:
    """Sequence models for pictures at different numbers of tokens: each window alike, and allocated by content."""
    from .image.allocation import bench_allocation

    bench_allocation(folder, out, model, device, limit=limit, show=names_in(show))


@bench_app.command("quality")
@with_flags
def bench_quality_dial(*, options: QualityOptions) -> None:
    """What a quality means: PSNR of whole files at each, whether it rises on every picture, and what generations
    lose."""
    from .image.quality import bench_quality

    bench_quality(options)


@bench_app.command("process")
def bench_process(
    picture: Annotated[Path | None, typer.Argument(help="a picture")] = None,
    megapixels: Annotated[float | None, typer.Option(help="make it so large, or make one", min=1e-6)] = None,
    model: ModelOption = None,
    device: Device = "auto",
) -> None:
    """Wall-clock seconds and peak memory of whole `codec` processes, start-up included."""
    from .memory import bench_processes

    bench_processes(picture, megapixels, model, device)


@bench_app.command("nearest")
@with_flags
def bench_nearest_codeword(*, options: NearestOptions) -> None:
    """The nearest-codeword search beside PyTorch and what is installed: time, memory, wrong indices."""
    from .search.nearest import bench_nearest

    bench_nearest(options)


@bench_app.command("prior")
@with_flags
def bench_entropy_priors(*, options: PriorOptions) -> None:
    """The context prior beside the static one: bytes, a hash of the integer tables, speed.

    "tables SHA-256" is equal on all machines for equal codes in equal order (inputs as given, folders by name). Codes
    of a picture may differ between devices in rare ties of the analysis net, so compare with .tok or token files.
    """
    from .entropy.prior import bench_prior

    bench_prior(options)


@bench_app.command("generator")
@with_flags
def bench_a_generator(*, options: GeneratorOptions) -> None:
    """A generator as a prior beside the context prior and static tables, and its speed with and without a cache."""
    from .entropy.generator import bench_generator

    bench_generator(options)


@bench_app.command("devices")
@with_flags
def bench_device_pair(*, options: DeviceOptions) -> None:
    """A GPU beside the CPU: files of each read on both, the same codes or not, and how long it takes.

    The first file says whether the folder holds pictures, sounds or videos.
    """
    from .devices import bench_devices

    bench_devices(options)


@bench_app.command("conceal")
@with_flags
def bench_concealment(*, options: ConcealOptions) -> None:
    """Lost codes filled by the priors and by simple means: how far PSNR drops."""
    from .entropy.conceal import bench_conceal

    bench_conceal(options)
