"""Rate and distortion of models for videos beside x264, x265 and SVT-AV1, and beside a model for pictures that is run
frame by frame.

::

    clip -> RGB frames -> each codec's file at each setting of its own -> decoded -> metrics -> a row each
    rows -> means over clips for each setting
         -> bytes of each codec at our PSNR, clip by clip, and BD-rates -> results.csv, results.json, index.html

Sizes are those of whole files (see :mod:`.video_peers` for what a file is there). Every codec gets the same RGB frames
of 8 bits, and is measured in RGB against them.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MediaError, RateError, UsageError
from ...files import atomic_output
from ...metrics import picture
from ...models import pick_device
from ...provenance import commit, machine, versions
from .. import metrics
from ..clips import timed
from ..curves import METHOD, bd_rate, means, rate_at
from ..memory import START, weigh_jobs
from ..report import make_folder, rows_as_csv, write_results, write_text
from ..video_report import print_video_report
from ..videos import Coded, Video, VideoCodec, read_video, video_files
from .ours import FileCoder, prepare_files, prepare_frames, prepare_video
from .page import Reel, make_player, sheet, video_page
from .peers import VIDEO_PEERS, find_video_peer

FRAME_BY_FRAME = "image-photo"  # the model for pictures that ours must beat
ANCHORS = ("x264", FRAME_BY_FRAME)  # what the others are compared with, clip by clip
CODECS = (*ANCHORS, "x265", "av1")
METRICS = ("psnr", "ms_ssim", "feature_distance")
EQUAL_PSNR = 60.0  # dB that a frame counts as at most, or one equal to its source would be infinite; as libvmaf has it


@dataclass(frozen=True)
class VideoRow:
    """One clip coded one way; a line of results.csv. What does not apply is None."""

    clip: str
    codec: str
    kind: str  # "ours", "frames" (a model for pictures, frame by frame) or "peer"
    setting: str
    dial: float  # the setting's number
    frames: int  # that were coded
    bytes: int  # of the whole file; of kind "frames" of one for each frame
    kbps: float
    bpp: float  # bits a pixel of a frame
    psnr: float  # mean over the coded frames
    psnr_worst: float  # of one of them
    ms_ssim: float | None  # mean over some of them
    feature_distance: float | None
    encode_s: float | None  # by the clock, of the frames that were coded; None of files that were there
    decode_s: float


MEANS = ("bytes", "kbps", "bpp", "psnr", "psnr_worst", "ms_ssim", "feature_distance")  # averaged over clips


def bench_video(
    folder: Path,
    out: Path,
    models: Sequence[str],
    codecs: Sequence[str] = CODECS,
    device: str = "auto",
    limit: int | None = None,
    *,
    levels: Sequence[int] = (),
    kbps: Sequence[float] = (),
    effort: int = 0,
    frames: int | None = None,
    every_photo: int = 4,
    every: int = 4,
    memory: bool = True,
    threads: int = 1,
    files: Path | None = None,
) -> dict[str, Any]:
    """Measure models on the clips of a folder; print tables and write the results.

    Args:    folder: videos directly in it are taken, in the order of their names.
             out: folder for results.csv (a row a clip and setting, written anew after each clip), results.json (means,
             comparisons, settings, machine), index.html and sheet.png (a frame of each clip by the codecs that the page
             shows); made if missing, files of these names are replaced.
             models: names, folders or hub ids of ours; none is possible.
             codecs: of :data:`~.video_peers.VIDEO_PEERS`, and :data:`FRAME_BY_FRAME`.
             device: "auto", "cpu" or "cuda", of our models.
             limit: only the first so many clips.  frames: only so many of each.
             levels: of ours; all of them if there are neither levels nor rates.  kbps: rates of ours.
             effort: of our encoder.
             every_photo: the model for pictures codes one of so many frames, and its bytes are scaled.
             every: MS-SSIM and feature distance are measured on one of so many frames, PSNR on all.
             memory: weigh each codec in processes of its own, on the first clip.
             threads: of PyTorch and of the peers.
             files: folder with a .tok file for each clip, of the same name but for the suffix, which are measured too.
    Returns: what results.json holds.
    Raises:  a TokodecError: no video, an unknown codec or model. Clips that cannot be read, or that a codec refuses,
             are named under "skipped"; rates below our smallest file under "notes".
    """
    import torch

    paths = video_files(folder, limit)
    for name in codecs:
        if name != FRAME_BY_FRAME and name not in VIDEO_PEERS:
            known = ", ".join([FRAME_BY_FRAME, *VIDEO_PEERS])
            raise UsageError(f"unknown codec {name!r} to compare with: choose from {known}")
    if not models and not codecs and files is None:
        raise UsageError("nothing to measure: name a model or a codec")
    if files is not None and frames is not None:
        raise UsageError("files are of all frames: leave --frames out")
    if min(every, every_photo, 1 if frames is None else frames) < 1:
        raise UsageError("frames are counted from 1")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; the results need a folder")
    with metrics.bench_extra():
        import bjontegaard  # noqa: F401
    device = pick_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        measured: list[VideoCodec] = [
            prepare_video(name, device, levels, kbps, effort) for name in dict.fromkeys(models)
        ]
        if files is not None:
            measured.append(prepare_files(files, paths, device))
        for name in dict.fromkeys(codecs):
            peer = name in VIDEO_PEERS
            measured.append(find_video_peer(name, threads) if peer else prepare_frames(name, device, every_photo))
        metrics.check_bench_extra(device, ("feature_distance",))
        rows: list[VideoRow] = []
        used: list[tuple[Path, dict[str, Any]]] = []
        reels: list[Reel] = []
        skipped: list[str] = []
        notes: list[str] = []
        seen: set[tuple[int, ...]] = set()
        for number, path in enumerate(paths, 1):
            try:
                video = read_video(path, frames)
                size = f"{len(video.frames)} frames of {video.width} x {video.height}"
                print(f"{number} of {len(paths)}: {path.name}, {size}", file=sys.stderr)
                if device == "cuda" and video.frames.shape[1:] not in seen:
                    warm_up(video, [codec for codec in measured if codec.kind != "peer"])
                seen.add(video.frames.shape[1:])
                kept: dict[tuple[str, str], Coded] = {}
                missed: list[str] = []
                found = list(bench_clip(video, measured, every, device, kept, missed))
            except MediaError as error:
                skipped.append(str(error))
                continue
            if not used:
                make_folder(out)
            rows += found
            notes += missed
            used.append((path, describe(video)))
            reels.append(reel(video, found, measured, kept))
            write_text(out / "results.csv", rows_as_csv(rows))
        if not rows:
            raise MediaError(f"none of the videos in {folder} can be read; the first: {skipped[0]}")
        weighed = []
        if memory:
            own = [job for codec in measured if (job := codec.job()) is not None]
            jobs = [{"kind": "start", "codec": START}, *own]
            jobs = [{"video": True, "synthesis": "", "frames": frames, **job} for job in jobs]
            weighed = weigh_jobs(jobs, used[0][0], threads)
        place = machine(device)
    finally:
        torch.set_num_threads(before)

    report: dict[str, Any] = {
        "models": [codec.name for codec in measured if codec.kind == "ours"],
        "clips": [facts for _, facts in used],
        "skipped": skipped,
        "notes": notes,
        "codecs": {codec.name: {"kind": codec.kind, "how": codec.described} for codec in measured},
        "every": every,
        "effort": effort,
        "every_photo": every_photo,
        "aggregates": aggregate(rows),
        "points": [dataclasses.asdict(row) for row in rows],
        "equal": equal(rows),
        "bd_rate": {"package": "bjontegaard", "method": METHOD, "pairs": compare_clips(rows)},
        "memory": {"clip": used[0][0].name, "codecs": weighed} if memory else None,
        "machine": place,
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_results(out, rows_as_csv(rows), report, video_page(report, reels))
    with atomic_output(out / "sheet.png", force=True) as file:
        sheet(reels).save(file, "PNG", optimize=True)
    print_video_report(report, out)
    return report


def describe(video: Video) -> dict[str, Any]:
    """A clip, for the report."""
    return {
        "name": video.name, "frames": len(video.frames), "height": video.height, "width": video.width,
        "rate": float(video.rate), "seconds": float(video.seconds),
    }  # fmt: skip


def warm_up(video: Video, codecs: Sequence[VideoCodec]) -> None:
    """Code a clip and forget it: GPUs choose and record kernels in the first runs at each size."""
    for codec in codecs:
        with suppress(RateError):
            for _ in codec.decode(codec.encode(video, codec.settings[-1])):
                pass


def bench_clip(
    video: Video,
    codecs: Sequence[VideoCodec],
    every: int,
    device: str,
    kept: dict[tuple[str, str], Coded],
    notes: list[str],
) -> Iterator[VideoRow]:
    """Rows of one clip: every codec at every setting. ``kept`` gets what was coded, ``notes`` the rates that are below
    our smallest file."""
    for codec in codecs:
        for setting in codec.settings:
            try:
                coded = timed(lambda codec=codec, setting=setting: codec.encode(video, setting))  # type: ignore[misc]
            except RateError as error:
                notes.append(f"{video.name}, {codec.name} at {setting.label}: {error}")
                continue
            decoded = timed(lambda codec=codec, coded=coded: list(codec.decode(coded.result)))  # type: ignore[misc]
            kept[codec.name, setting.label] = coded.result
            size, places = coded.result.size, coded.result.places
            if len(decoded.result) != len(places):
                raise MediaError(f"{video.name}: {codec.name} gives {len(decoded.result)} of {len(places)} frames back")
            pixels = len(video.frames) * video.height * video.width
            yield VideoRow(
                video.name, codec.name, codec.kind, setting.label, setting.value, len(places), size,
                8e-3 * size / float(video.seconds), 8 * size / pixels,
                **measure_frames(video.frames[:: coded.result.every], decoded.result, every, device),
                encode_s=None if isinstance(codec, FileCoder) else coded.wall_s, decode_s=decoded.wall_s,
            )  # fmt: skip


def measure_frames(x: np.ndarray, x_hat: Sequence[np.ndarray], every: int, device: str) -> dict[str, Any]:
    """Means over frames: PSNR of all of them, with that of the worst, the other metrics of one of ``every``; None where
    frames are too small for a metric. x: ``[n, H, W, 3]`` uint8."""
    psnr = [min(picture.psnr(a, b), EQUAL_PSNR) for a, b in zip(x, x_hat, strict=True)]
    some = [metrics.measure(x[i], x_hat[i], METRICS[1:], device) for i in range(0, len(x), every)]
    return {"psnr": float(np.mean(psnr)), "psnr_worst": min(psnr), **means(some, METRICS[1:])}


def aggregate(rows: Sequence[VideoRow]) -> list[dict[str, Any]]:
    """Means over clips at each setting of each codec; frames a second are all frames by all seconds."""
    groups: dict[tuple[str, str, str], list[VideoRow]] = {}
    for row in rows:
        groups.setdefault((row.codec, row.kind, row.setting), []).append(row)
    return [
        {"codec": codec, "kind": kind, "setting": setting, "clips": len(group)}
        | means([dataclasses.asdict(row) for row in group], MEANS)
        | {
            f"{step}_fps": frames_a_second([row.frames for row in group], [getattr(row, f"{step}_s") for row in group])
            for step in ("encode", "decode")
        }
        for (codec, kind, setting), group in groups.items()
    ]


def frames_a_second(frames: Sequence[int], seconds: Sequence[float | None]) -> float | None:
    """All frames by all seconds; None where those are not known."""
    known = [s for s in seconds if s is not None]
    return sum(frames) / sum(known) if len(known) == len(seconds) else None


def curves_of(rows: Sequence[VideoRow]) -> dict[tuple[str, str], list[VideoRow]]:
    """Rows of each clip and codec."""
    curves: dict[tuple[str, str], list[VideoRow]] = {}
    for row in rows:
        curves.setdefault((row.clip, row.codec), []).append(row)
    return curves


def pairs_of(curve: Sequence[VideoRow]) -> list[tuple[float, float]]:
    return [(float(row.bytes), row.psnr) for row in curve]


def equal(rows: Sequence[VideoRow]) -> list[dict[str, Any]]:
    """Each file beside what each of :data:`ANCHORS` takes for the same PSNR on the same clip.

    Returns: dicts with "clip", "codec", "setting", "bytes", "psnr", and for each anchor that was measured its name with
             how many percent more the file takes, negative if fewer; None where the anchor does not reach that PSNR,
             or is always above it.
    """
    curves = curves_of(rows)
    found = []
    for row in rows:
        entry: dict[str, Any] = {key: getattr(row, key) for key in ("clip", "codec", "setting", "bytes", "psnr")}
        for anchor in ANCHORS:
            if (row.clip, anchor) in curves:
                rate = rate_at(pairs_of(curves[row.clip, anchor]), row.psnr)
                entry[anchor] = None if rate is None else 100 * (row.bytes / rate - 1)
        found.append(entry)
    return found


def compare_clips(rows: Sequence[VideoRow]) -> list[dict[str, Any]]:
    """BD-rate of every codec against each of :data:`ANCHORS`, by PSNR, clip by clip.

    Returns: dicts with "clip", "codec", "against" and the fields of :class:`~.curves.BdRate`.
    """
    curves = curves_of(rows)
    found = []
    for (clip, codec), curve in curves.items():
        for anchor in ANCHORS:
            if codec != anchor and (clip, anchor) in curves:
                rate = bd_rate(pairs_of(curves[clip, anchor]), pairs_of(curve))
                names = {"clip": clip, "codec": codec, "against": anchor}
                found.append(names | dataclasses.asdict(rate))
    return found


def nearest(rows: Sequence[VideoRow], size: int) -> VideoRow:
    """The row whose bytes are nearest in ratio."""
    return min(rows, key=lambda row: abs(math.log(row.bytes / size)))


def reel(
    video: Video, rows: Sequence[VideoRow], codecs: Sequence[VideoCodec], kept: dict[tuple[str, str], Coded]
) -> Reel:
    """What the page shows of a clip: the original, the first codec at its middle setting, which is ours if there is one
    of ours, and the others where their bytes are nearest to those."""
    players = [make_player(video, "original", "original", None, None, video.frames)]
    goal: int | None = None
    for codec in codecs:
        own = [row for row in rows if row.codec == codec.name]
        if codec.kind == "frames" or not own:
            continue
        row = own[len(own) // 2] if goal is None else nearest(own, goal)
        goal = goal or row.bytes
        pixels = list(codec.decode(kept[codec.name, row.setting]))
        players.append(make_player(video, f"{codec.name}, {row.setting}", codec.kind, row.bytes, row.psnr, pixels))
    return Reel(video.name, video.height, video.width, len(video.frames), float(video.rate), players)
