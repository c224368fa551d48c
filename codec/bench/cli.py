"""The commands `codec bench ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import Device, GeneratorOption, ModelOption, names_in, number_list
from .options import AudioOptions, Folder, ImageOptions, JsonOut, Limit, Out, Show, Threads, VideoOptions, takes

bench_app = typer.Typer(help="Benchmarks against other codecs.", no_args_is_help=True, rich_markup_mode=None)


@bench_app.command("image")
@takes(ImageOptions)
def bench_image(options: ImageOptions) -> None:
    """Rate, distortion, seconds and memory on a folder of pictures, beside other codecs; tables and a page."""
    from .image.bench import bench_images

    bench_images(options)


@bench_app.command("audio")
@takes(AudioOptions)
def bench_audio_folder(options: AudioOptions) -> None:
    """Rate, quality, speed and memory on a folder of sounds, named by kind as speech_1.wav, beside Opus and other
    networks; tables and a page."""
    from .audio.bench import bench_audio

    bench_audio(options)


@bench_app.command("video")
@takes(VideoOptions)
def bench_video_folder(options: VideoOptions) -> None:
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
def bench_quality_dial(
    folder: Folder,
    model: ModelOption = None,
    device: Device = "auto",
    qualities: Annotated[str, typer.Option(help="with commas; none for no table of them")] = (
        "0,10,20,30,40,50,60,70,80,90,100"
    ),
    generations: Annotated[int, typer.Option(help="of decoding and encoding again; 0 for none", min=0)] = 5,
    again: Annotated[float, typer.Option(help="quality of these")] = 80,
    limit: Limit = None,
    out: JsonOut = None,
) -> None:
    """What a quality means: PSNR of whole files at each, whether it rises on every picture, and what generations
    lose."""
    from .image.quality import bench_quality

    wanted = number_list(qualities, "qualities") if qualities else []
    bench_quality(folder, model, device, qualities=wanted, generations=generations, again=again, limit=limit, out=out)


@bench_app.command("process")
def bench_process(
    picture: Annotated[Path | None, typer.Argument(help="a picture")] = None,
    megapixels: Annotated[float | None, typer.Option(help="make a picture of this size instead", min=1e-6)] = None,
    model: ModelOption = None,
    device: Device = "auto",
) -> None:
    """Wall-clock seconds and peak memory of whole `codec` processes, start-up included."""
    from .memory import bench_processes

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
    out: JsonOut = None,
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="also torch.compile; on CUDA it is the default")
    ] = None,
    step: Annotated[bool, typer.Option("--step", help="also steps of training and inference, end to end")] = False,
) -> None:
    """The nearest-codeword search beside PyTorch and what is installed: time, memory, wrong indices."""
    from .search.nearest import bench_nearest

    bench_nearest(
        device, shapes=shapes, seconds=seconds, seed=seed, latents=latents, out=out, compile_too=compile, step=step
    )


@bench_app.command("prior")
def bench_entropy_priors(
    inputs: Annotated[
        list[Path],
        typer.Argument(help="pictures, .tok files, token files (.npz, .safetensors), or folders", metavar="INPUT..."),
    ],
    model: ModelOption = None,
    device: Device = "auto",
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(help="how long each prior is timed on inputs of one size", min=1e-6)] = 0.5,
    large: Annotated[bool, typer.Option("--large/--no-large", help="also coders of large codebooks")] = False,
    out: JsonOut = None,
) -> None:
    """The context prior beside the static one: bytes, a hash of the integer tables, speed.

    "tables SHA-256" is equal on all machines for equal codes in equal order (inputs as given, folders by name). Codes
    of a picture may differ between devices in rare ties of the analysis net, so compare with .tok or token files.
    """
    from .entropy.prior import bench_prior

    bench_prior(inputs, model, device, threads=threads, seconds=seconds, large=large, out=out)


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
    limit: Limit = None,
    threads: Threads = None,
    out: JsonOut = None,
) -> None:
    """A generator as a prior beside the context prior and static tables, and its speed with and without a cache."""
    from .entropy.generator import bench_generator

    bench_generator(
        inputs, model, tokenizer, device,
        samples=samples, full=full, seed=seed, limit=limit, threads=threads, out=out,
    )  # fmt: skip


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
    limit: Limit = None,
    out: JsonOut = None,
) -> None:
    """A GPU beside the CPU: files of each read on both, the same codes or not, and how long it takes.

    The first file says whether the folder holds pictures, sounds or videos.
    """
    from .devices import bench_devices

    bench_devices(
        folder, qualities=qualities, kbps=kbps, levels=levels, model=model, device=device, limit=limit, out=out
    )


@bench_app.command("conceal")
def bench_concealment(
    pictures: Annotated[list[Path], typer.Argument(help="pictures, or folders of them", metavar="PICTURE...")],
    share: Annotated[float, typer.Option(help="of what is lost, between 0 and 1")] = 0.2,
    model: ModelOption = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="of the losses", min=0)] = 0,
    out: JsonOut = None,
    save: Annotated[
        Path | None, typer.Option(help="folder for PNG files of the first picture with lost cells, one a filler")
    ] = None,
) -> None:
    """Lost codes filled by the priors and by simple means: how far PSNR drops."""
    from .entropy.conceal import bench_conceal

    bench_conceal(pictures, share, model, device, seed=seed, out=out, save=save)
