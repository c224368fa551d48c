"""Videos on one device beside the CPU: whether each reads the other's files to the same codes, how far apart what they
make is, and how fast they are.

::

    clip -> file made on the CPU, file made on the device -> codes of both files on both -> payloads of the codes again
    .tok file                                             -> its codes on both           -> payloads of the codes again
    codes of the CPU's file                               -> frames on both

Analysis and synthesis are in floats, so a few codes and pixels of the two may differ; what a file decodes to may not.
The SHA-256 over the codes of all files of the CPU is equal on all machines for equal files in equal order.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ...tokenizers.video.grid import StreamingVideoEncoder
from ...tokenizers.video.tiling import FrameDecoder
from ..container.chunks import LAYR
from ..container.fields import FIT
from ..container.read import TokFile, read_tok
from ..encode import encode_file
from ..errors import FormatError, UsageError
from ..files import open_output
from ..media.read_video import Pixels, VideoReader
from ..models import Model, load_model, model_for, pick_device
from ..provenance import as_json, commit, machine, versions
from ..registry import FITTED, MODALITIES
from ..video.segments import Codes, read_segment, segment_payload, video_tokenizer
from .devices import read_bytes
from .videos import video_files

PART = 7  # frames of a part of a stream, which ends within groups

T = TypeVar("T")


@dataclass(frozen=True)
class Seconds:
    """Of one device, for a whole clip."""

    encode: float | None  # from a video file to a .tok file in memory, without sound; None without a clip
    entropy: float  # payloads to codes
    nets: float  # codes to frames in the CPU's memory


@dataclass(frozen=True)
class Made:
    """What encoding a clip on both devices tells."""

    same_file: bool
    other_codes: tuple[int, ...]  # of the codes in each level of the CPU's file, those that are others in the device's
    chunked_cpu: bool  # whether the first segment as a stream, seven frames at a time, has the codes of the file
    chunked_device: bool
    read_s: float  # what reading the video file takes of encoding


@dataclass(frozen=True)
class VideoRow:
    """One clip, or one .tok file, which was not made here."""

    name: str
    height: int
    width: int
    frames: int
    segments: int
    bytes_cpu: int  # of the file made on the CPU
    same_codes: bool  # of all segments of both files, read on both devices
    same_bytes: bool  # whether either device makes the files' payloads of these codes
    codes: tuple[int, ...]  # of the CPU's file, in each level
    largest: int  # difference of samples of 8 bits between both devices' frames of the same codes
    other_pixels: float  # share of pixels that differ there
    made: Made | None
    cpu: Seconds
    device: Seconds


@dataclass(frozen=True)
class Found:
    """What the device that made a file reads in it, and another one."""

    codes: list[Codes]  # of its segments, ``[k, t, h, w]`` each, as its maker reads them
    same_codes: bool
    same_bytes: bool
    maker_s: float
    reader_s: float


def timed(run: Callable[[], T]) -> tuple[T, float]:
    begin = time.perf_counter()
    result = run()
    return result, time.perf_counter() - begin


def read_codes(tok: TokFile, model: Model) -> list[Codes | None]:
    return [read_segment(tok, model, segment) for segment in range(tok.video.n_segments)]


def compare_codes(tok: TokFile, maker: Model, reader: Model) -> Found:
    """Read a file on both devices, and make its payloads again on both.

    Raises: FormatError if its maker cannot read it; that the other one cannot is a difference.
    """
    own, maker_s = timed(partial(read_codes, tok, maker))
    codes = [part for part in own if part is not None]
    if len(codes) < len(own):
        raise FormatError(tok.problems[-1])
    read, reader_s = timed(partial(read_codes, tok, reader))
    same = all(b is not None and np.array_equal(a, b) for a, b in zip(codes, read, strict=True))
    again = all(
        segment_payload(part, model) == tok.payload(LAYR, 0, segment)
        for model in (maker, reader)
        for segment, part in enumerate(codes)
    )
    return Found(codes, same, again, maker_s, reader_s)


def paint(codes: Codes, model: Model, height: int, width: int) -> Pixels:
    """Frames ``[n, H, W, 3]`` of a segment's codes ``[k, t, h, w]``, with those that fill its last group."""
    decoder = FrameDecoder(video_tokenizer(model), height, width)
    return np.concatenate([decoder.push(cell) for cell in codes.swapaxes(0, 1)])


def compare_frames(tok: TokFile, parts: Sequence[Codes], ours: Model, theirs: Model) -> tuple[int, float, float, float]:
    """Largest difference of samples and share of pixels that differ, and the seconds of the CPU and of the device."""
    header = tok.video
    largest, differ, cpu_s, device_s = 0, 0, 0.0, 0.0
    for segment, codes in enumerate(parts):
        begin, end = header.segment_span(segment)
        a, own = timed(partial(paint, codes, ours, header.height, header.width))
        b, other = timed(partial(paint, codes, theirs, header.height, header.width))
        cpu_s, device_s = cpu_s + own, device_s + other
        for x, y in zip(a[: end - begin], b, strict=False):
            apart = np.abs(x.astype(np.int16) - y)
            largest = max(largest, int(apart.max()))
            differ += int(apart.any(2).sum())
    return largest, differ / (header.frames * header.height * header.width), cpu_s, device_s


def stream_codes(frames: Sequence[Pixels], model: Model, levels: int) -> Codes:
    """Codes ``[levels, t, h, w]`` of frames that come :data:`PART` at a time."""
    stream = StreamingVideoEncoder(video_tokenizer(model), levels)
    codes = []
    for begin in range(0, len(frames), PART):
        x = torch.from_numpy(np.stack(frames[begin : begin + PART]))  # [n, H, W, 3]
        codes.append(stream.push(x.permute(3, 0, 1, 2)[None]))
    return torch.cat([*codes, stream.finish()], 2)[0].cpu().numpy()


def read_frames(path: Path, first: int) -> list[Pixels]:
    """Read all frames of a video, and keep the first ones."""
    kept: list[Pixels] = []
    with VideoReader(path, str(path)) as reader:
        for frame in reader:
            if len(kept) < first:
                kept.append(frame.pixels)
    return kept


def level_sizes(parts: Sequence[Codes]) -> tuple[int, ...]:
    """Codes in each level; segments may have different numbers of them."""
    return tuple(sum(part[k].size for part in parts if k < len(part)) for k in range(max(map(len, parts))))


def encode_on(path: Path, levels: int | None, model: str, device: str) -> bytes:
    return encode_file(path, None, model=model, levels=levels, device=device, sound=False).data


def bench_clip(path: Path, levels: int | None, model: str, device: str) -> tuple[VideoRow, list[Codes]]:
    """Measure one clip, or one .tok file; the codes ``[k, t, h, w]`` of the segments of the CPU's file."""
    encode_s: tuple[float | None, float | None] = (None, None)
    other: bytes | None = None
    if path.suffix.lower() == ".tok":
        data = read_bytes(path)
    else:
        data, cpu_s = timed(partial(encode_on, path, levels, model, "cpu"))
        other, device_s = timed(partial(encode_on, path, levels, model, device))
        encode_s = cpu_s, device_s
    tok = read_tok(data)
    header = tok.video
    if header.prior == FIT:
        raise UsageError(f"{path}: a file of {FITTED} has no codes that devices could read differently")
    ours, theirs = (model_for(header, model, where) for where in ("cpu", device))
    found = compare_codes(tok, ours, theirs)
    same_codes, same_bytes, made = found.same_codes, found.same_bytes, None
    if other is not None:
        own = compare_codes(read_tok(other), theirs, ours)
        same_codes, same_bytes = same_codes and own.same_codes, same_bytes and own.same_bytes
        apart = [(a != b).sum((1, 2, 3)) for a, b in zip(found.codes, own.codes, strict=True)]
        first, read_s = timed(partial(read_frames, path, header.segment))
        chunked_cpu, chunked_device = (
            np.array_equal(stream_codes(first, on, len(file.codes[0])), file.codes[0])
            for on, file in ((ours, found), (theirs, own))
        )
        made = Made(data == other, tuple(np.sum(apart, axis=0).tolist()), chunked_cpu, chunked_device, read_s)
    largest, other_pixels, nets_s, their_nets_s = compare_frames(tok, found.codes, ours, theirs)
    row = VideoRow(
        path.name, header.height, header.width, header.frames, header.n_segments, len(data), same_codes, same_bytes,
        level_sizes(found.codes), largest, other_pixels, made,
        Seconds(encode_s[0], found.maker_s, nets_s), Seconds(encode_s[1], found.reader_s, their_nets_s),
    )  # fmt: skip
    return row, found.codes


def bench_video_devices(
    folder: Path,
    levels: int | None,
    model: str | None,
    device: str,
    limit: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure, print tables, and return what the JSON file ``out`` gets.

    The first clip of every size is measured twice, and the first time thrown away: GPUs choose their kernels then.

    Args:    folder: with videos, or with .tok files if it holds any.  levels: of the files made here, all if None.
    Raises:  a TokodecError: nothing there, or a model that is not for videos.
    """
    device, name = pick_device(device), model or MODALITIES["video"].encode_model
    tokenizer = video_tokenizer(load_model(name, device))
    paths = sorted(folder.glob("*.tok"))[:limit] or video_files(folder, limit)
    digest, rows, seen = hashlib.sha256(), [], set()
    for path in paths:
        row, codes = bench_clip(path, levels, name, device)
        if (row.height, row.width) not in seen:
            seen.add((row.height, row.width))
            row, codes = bench_clip(path, levels, name, device)
        for part in codes:
            digest.update(part.astype("<i4").tobytes())
        rows.append(row)
    report: dict[str, Any] = {
        "machine": machine(device), "versions": versions(), "commit": commit(), "model": tokenizer.name,
        "weights": tokenizer.weights_hash, "codes_sha256": digest.hexdigest(), "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    show(report, rows, Console())
    if out is not None:
        with open_output(out, force=True) as file:
            assert file is not None
            file.write(as_json(report).encode())
    return report


def show(report: dict[str, Any], rows: Sequence[VideoRow], console: Console) -> None:
    """Tables on stdout: a line for every clip, and the speed of both devices over all of them."""
    where = report["machine"]["device"]
    table = Table(box=SIMPLE, title=f"{report['model']} on {where} beside the CPU")
    for head in ("clip", "frames", "same codes", "same bytes", "other codes", "other pixels", "most", "in parts"):
        table.add_column(head, justify="left" if head == "clip" else "right")
    for row in rows:
        parts = differ = "-"
        if row.made is not None:
            parts = yes(row.made.chunked_cpu and row.made.chunked_device)
            differ = f"{sum(row.made.other_codes) / sum(row.codes):.3%}"
        table.add_row(
            row.name, str(row.frames), yes(row.same_codes), yes(row.same_bytes), differ, f"{row.other_pixels:.3%}",
            str(row.largest), parts,
        )  # fmt: skip
    console.print(table)
    speeds = Table(box=SIMPLE, title="frames a second")
    for head in ("device", "encode", "decode", "entropy model", "nets"):
        speeds.add_column(head, justify="left" if head == "device" else "right")
    frames = sum(row.frames for row in rows)
    for label, every in (("CPU", [row.cpu for row in rows]), (where, [row.device for row in rows])):
        encode = [seconds.encode for seconds in every if seconds.encode is not None]
        entropy, nets = sum(seconds.entropy for seconds in every), sum(seconds.nets for seconds in every)
        speeds.add_row(
            label, f"{frames / sum(encode):.1f}" if encode else "-", f"{frames / (entropy + nets):.1f}",
            f"{frames / entropy:.1f}", f"{frames / nets:.1f}",
        )  # fmt: skip
    console.print(speeds)
    both = [(sum(row.made.other_codes), sum(row.codes)) for row in rows if row.made is not None]
    if both:
        differ, codes = (sum(column) for column in zip(*both, strict=True))
        console.print(f"{differ} of {codes} codes ({differ / codes:.4%}) are others in files made on {where}")
    console.print(f"codes SHA-256 {report['codes_sha256']}")


def yes(value: bool) -> str:
    return "yes" if value else "NO"
