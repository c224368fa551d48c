"""What the benchmarks are told: each option once, for the command line and for Python.

A field of a class below is an option of its command, with the help that `codec bench ... --help` shows, as is the text
of the class; a benchmark takes the object. Lists are texts with commas, as one types them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..console import Device, Effort, GeneratorOption, ModelOption

Folder = Annotated[Path, typer.Argument(help="folder with files of one kind; those directly in it are taken, by name")]
Out = Annotated[Path, typer.Option("--out", "-o", help="folder for tables and the page")]
Limit = Annotated[int | None, typer.Option(help="only so many of its files", min=1)]
Memory = Annotated[bool, typer.Option(help="measure the peak memory of each codec in processes of its own")]
Threads = Annotated[int | None, typer.Option(help="of PyTorch and of the other codecs", min=1)]
Show = Annotated[str, typer.Option(help="names of the files on the page, with commas; else a few")]
Seed = Annotated[int, typer.Option(help="of the random numbers", min=0)]
JsonOut = Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for all results")]


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Rate, distortion, seconds and memory on a folder of pictures, beside other codecs; tables and a page."""

    folder: Annotated[
        Path | None, typer.Argument(help="folder with pictures; those directly in it are taken, by name")
    ] = None
    pictures: Annotated[
        str | None, typer.Option("--set", help="instead of a folder: synthetic, 48 drawn pictures of all kinds")
    ] = None
    out: Out = Path("bench-out")
    against: Annotated[str, typer.Option(help="peers, with commas: jpeg, webp, avif, avif420, jxl, heic, jpeg2000")] = (
        "jpeg,webp,avif"
    )
    model: ModelOption = None
    also: Annotated[str, typer.Option(help="more models beside the first, with commas")] = ""
    device: Device = "auto"
    limit: Limit = None
    qualities: Annotated[
        str | None, typer.Option(help="qualities of our curve, with commas, if the model's rate is a quality")
    ] = None
    metrics: Annotated[str, typer.Option(help="what to measure, with commas; the last two are slow")] = (
        "psnr,ms-ssim,ssimulacra2,features"
    )
    published: Annotated[
        str | None, typer.Option(help="compare with published points: kodak, for those 24 pictures")
    ] = None
    compressai: Annotated[
        str,
        typer.Option(
            help="time CompressAI models with random weights: bmshj2018-hyperprior, mbt2018-mean, cheng2020-anchor"
        ),
    ] = ""
    show: Show = ""
    effort: Effort = 0
    reuse: Annotated[
        Path | None, typer.Option(help="results.json of the same pictures: take the curves of the peers from there")
    ] = None
    memory: Memory = True
    threads: Threads = None


@dataclass(frozen=True, kw_only=True)
class AudioOptions:
    """Rate, quality, speed and memory on a folder of sounds, named by kind as speech_1.wav, beside other codecs and
    networks; tables and a page."""

    folder: Folder
    out: Out = Path("bench-out")
    against: Annotated[str, typer.Option(help="codecs to compare with, or nothing")] = "opus"
    model: ModelOption = None
    device: Device = "cpu"
    limit: Limit = None
    seconds: Annotated[float | None, typer.Option(help="only so much of each sound", min=0.1)] = None
    kbps: Annotated[str, typer.Option(help="rates of ours, with commas: most kbit/s of a whole file")] = "0.75,1.5,3,6"
    metrics: Annotated[
        str, typer.Option(help="what to measure, with commas; pesq, stoi and dnsmos are for kind speech")
    ] = "visqol,mel,stft,pesq,stoi,dnsmos,si-sdr"
    baselines: Annotated[str, typer.Option(help="networks to time with random weights, with commas: encodec, dac")] = (
        "encodec,dac"
    )
    effort: Effort = 0
    show: Show = ""
    memory: Memory = True
    threads: Threads = 1


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Rate, distortion, speed and memory on a folder of videos, beside x264, x265 and SVT-AV1, and beside a model for
    pictures that is run frame by frame; tables and a page."""

    folder: Folder
    out: Out = Path("bench-out")
    models: Annotated[str, typer.Option("--models", "--model", "-m", help="models for videos, with commas")] = (
        "video-grid"
    )
    codecs: Annotated[
        str,
        typer.Option(help="beside them, with commas: x264, x265, av1, x264-psnr, and image-photo frame by frame"),
    ] = "x264,x264-psnr,x265,av1,image-photo"
    device: Device = "auto"
    limit: Limit = None
    frames: Annotated[int | None, typer.Option(help="only so many frames of each clip", min=1)] = None
    levels: Annotated[str, typer.Option(help="of ours, with commas; else all of them")] = ""
    kbps: Annotated[str, typer.Option(help="rates of ours, with commas: most kbit/s of a whole file")] = ""
    qualities: Annotated[str, typer.Option(help="of ours whose rate is a quality, with commas: 0 to 100")] = ""
    effort: Effort = 0
    every_photo: Annotated[
        int, typer.Option(help="image-photo codes one of so many frames, its bytes are scaled", min=1)
    ] = 4
    every: Annotated[
        int, typer.Option(help="MS-SSIM, VMAF and feature distance are measured on one of so many frames", min=1)
    ] = 4
    memory: Memory = True
    threads: Threads = 1
    files: Annotated[
        Path | None, typer.Option(help="folder with a .tok file for each clip, of its name, to measure as they are")
    ] = None


@dataclass(frozen=True, kw_only=True)
class AllocationOptions:
    """Sequence models for pictures at different numbers of tokens: each window alike, and allocated by content."""

    folder: Folder
    out: Out = Path("bench-out")
    model: ModelOption = None
    device: Device = "auto"
    limit: Limit = None
    show: Show = ""


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Wall-clock seconds and peak memory of whole `codec` processes, start-up included."""

    picture: Annotated[Path | None, typer.Argument(help="a picture")] = None
    megapixels: Annotated[float | None, typer.Option(help="make it so large, or make one", min=1e-6)] = None
    model: ModelOption = None
    device: Device = "auto"


@dataclass(frozen=True, kw_only=True)
class NearestOptions:
    """The nearest-codeword search beside PyTorch and what is installed: time, memory, wrong indices."""

    device: Device = "auto"
    shapes: Annotated[str | None, typer.Option(help="rows x codewords x dimensions, as 4096x1024x8,...")] = None
    seconds: Annotated[float, typer.Option(help="how long each peer is timed on each shape", min=1e-6)] = 1.0
    seed: Seed = 0
    latents: Annotated[
        Path | None,
        typer.Option(help="safetensors file with z [M, D] and codebook [N, D], or a folder of pictures: more shapes"),
    ] = None
    out: JsonOut = None
    compile: Annotated[
        bool | None, typer.Option("--compile/--no-compile", help="also torch.compile; on CUDA it is the default")
    ] = None
    step: Annotated[bool, typer.Option("--step", help="also steps of training and inference, end to end")] = False
    modules: Annotated[
        bool, typer.Option("--modules", help="also vector-quantize-pytorch alone and by tokodec.accelerate")
    ] = False


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """The context prior beside the static one: bytes, a hash of the integer tables, speed.

    "tables SHA-256" is equal on all machines for equal codes in equal order (inputs as given, folders by name). Codes
    of a picture may differ between devices in rare ties of the analysis net, so compare with .tok or token files.
    """

    inputs: Annotated[
        list[Path],
        typer.Argument(help="pictures, .tok files, token files (.npz, .safetensors), or folders", metavar="INPUT..."),
    ]
    model: ModelOption = None
    device: Device = "auto"
    threads: Threads = None
    seconds: Annotated[float, typer.Option(help="how long each prior is timed on inputs of one size", min=1e-6)] = 0.5
    large: Annotated[bool, typer.Option("--large/--no-large", help="also coders of large codebooks")] = False
    out: JsonOut = None


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions:
    """A generator as a prior beside the context prior and static tables, and its speed with and without a cache."""

    inputs: Annotated[
        list[Path], typer.Argument(help="pictures or sounds, .tok or token files, or folders", metavar="INPUT...")
    ]
    model: GeneratorOption = None
    tokenizer: Annotated[str | None, typer.Option(help="the generator's tokenizer, if it is not a release")] = None
    device: Device = "auto"
    samples: Annotated[int, typer.Option("-n", help="samples at a time", min=1)] = 4
    full: Annotated[bool, typer.Option("--full", help="time every pass without the cache, not some of them")] = False
    seed: Seed = 0
    limit: Limit = None
    threads: Threads = None
    out: JsonOut = None


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """What a quality means: PSNR of whole files at each, whether it rises on every picture, and what generations
    lose."""

    folder: Folder
    model: ModelOption = None
    device: Device = "auto"
    qualities: Annotated[str, typer.Option(help="with commas; none for no table of them")] = (
        "0,10,20,30,40,50,60,70,80,90,100"
    )
    generations: Annotated[int, typer.Option(help="of decoding and encoding again; 0 for none", min=0)] = 5
    again: Annotated[float, typer.Option(help="quality of these")] = 80
    limit: Limit = None
    out: JsonOut = None


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """A GPU beside the CPU: files of each read on both, the same codes or not, and how long it takes.

    The first file says whether the folder holds pictures, sounds or videos.
    """

    folder: Annotated[
        Path, typer.Argument(help="folder with pictures, sounds or videos, or with .tok files of pictures or videos")
    ]
    qualities: Annotated[str | None, typer.Option(help="with commas; else 20,50,80 of pictures")] = None
    kbps: Annotated[float | None, typer.Option(help="of sounds; else 3", min=1e-3)] = None
    levels: Annotated[int | None, typer.Option(help="else all", min=1)] = None
    model: ModelOption = None
    device: Device = "auto"
    limit: Limit = None
    out: JsonOut = None


@dataclass(frozen=True, kw_only=True)
class CorpusBenchOptions:
    """`codec tokenize` into shards beside a loop over files: samples and hours a second, and how busy the device is."""

    folder: Annotated[Path, typer.Argument(help="folder with pictures or sounds, also in folders inside it")]
    model: ModelOption = None
    device: Device = "auto"
    workers: Annotated[str, typer.Option(help="processes that read, with commas: a run for each number")] = "2"
    crops: Annotated[int | None, typer.Option(help="so many crops of the pictures in their place", min=1)] = None
    side: Annotated[int, typer.Option(help="of a crop, in pixels", min=1)] = 256
    limit: Limit = None
    loop: Annotated[int | None, typer.Option(help="only so many files for the loop, which is slow", min=1)] = None
    sizes: Annotated[int, typer.Option(help="of so many samples in shards of each format; 0: none", min=0)] = 100
    threads: Threads = None
    seed: Seed = 0
    out: JsonOut = None


@dataclass(frozen=True, kw_only=True)
class ConcealOptions:
    """Lost codes filled by the priors and by simple means: how far PSNR drops."""

    pictures: Annotated[list[Path], typer.Argument(help="pictures, or folders of them", metavar="PICTURE...")]
    share: Annotated[float, typer.Option(help="of what is lost, between 0 and 1")] = 0.2
    model: ModelOption = None
    device: Device = "auto"
    seed: Seed = 0
    out: JsonOut = None
    save: Annotated[
        Path | None, typer.Option(help="folder for PNG files of the first picture with lost cells, one a filler")
    ] = None
