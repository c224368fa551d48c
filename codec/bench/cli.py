"""The commands `codec bench ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..console import Device, Effort, GeneratorOption, ModelOption, names_in, number_list, whole_numbers
from ..errors import UsageError

bench_app = typer.Typer(help="Benchmarks against other codecs.", no_args_is_help=True, rich_markup_mode=None)


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
    from .image.bench import bench_images

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
    from .audio.bench import bench_audio

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
    from .video.bench import bench_video

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


@bench_app.command("process")
def bench_process(
    picture: Annotated[Path | None, typer.Argument(help="a picture")] = None,
    megapixels: Annotated[float | None, typer.Option(help="make a picture of this size instead", min=1e-6)] = None,
    model: ModelOption = None,
    device: Device = "auto",
) -> None:
    """Wall-clock seconds and peak memory of whole `codec` processes, start-up included."""
    from .process import bench_processes

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
    from .search.nearest import bench_nearest

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
    from .entropy.prior import bench_prior

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
    from .entropy.generator import bench_generator

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
    from .devices import KINDS, bench_devices, folder_kind

    kind = folder_kind(folder)
    for option, things, value in (
        ("qualities", "pictures", qualities), ("kbps", "sounds", kbps), ("levels", "videos", levels)
    ):  # fmt: skip
        if value is not None and things != KINDS[kind]:
            raise UsageError(f"--{option} is for {things}, and {folder} holds {KINDS[kind]}")
    if kind == "video":
        from .video_devices import bench_video_devices

        bench_video_devices(folder, levels, model, device, limit, out)
    elif kind == "audio":
        from .sound_devices import bench_sound_devices

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
    from .shares import bench_shares

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
    from .entropy.conceal import bench_conceal

    bench_conceal(pictures, share, model, device, seed, out, save)
