"""Rate and distortion of models for videos beside x264, x265 and SVT-AV1, and beside a model for pictures that is run
frame by frame.

::

    clip -> RGB frames -> each codec's file at each setting of its own -> decoded -> metrics -> a row each
    rows -> means over clips for each setting
         -> bytes of each codec at our PSNR, clip by clip, and BD-rates -> results.csv, results.json, index.html

Sizes are those of whole files (see :mod:`.peers` for what a file is there). Every codec gets the same RGB frames of 8
bits, and is measured in RGB against them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...console import names_in, number_list, whole_numbers
from ...errors import MediaError, UsageError
from ...files import atomic_output
from ...metrics.picture import decibel, ms_ssim, psnr
from ...models import pick_device
from ...settings import Setting
from ..clips import Video, files_in, read_video
from ..contender import Coded, Contender, chosen, results, warm_up
from ..curves import METHOD, bd_rate, group_by, means, rate_at
from ..metrics import bench_extra, check_bench_extra, measure
from ..options import VideoOptions
from ..page import Exhibit
from ..run import Bench, Findings, Row, run
from .ours import FileCoder, FrameCoder, prepare_files, prepare_frames, prepare_video
from .page import COMPARED, player, sections, sheet, together, video_page
from .peers import VIDEO_PEERS, VideoPeer, find_video_peer
from .vmaf import VmafClip, vmaf_missing

FRAME_BY_FRAME = "image-photo"  # the model for pictures that ours must beat
ANCHORS = ("x264", FRAME_BY_FRAME)  # whose bytes at the PSNR of a file are said
BD_ANCHORS = ("x264", "x264-psnr", "x265", "av1", FRAME_BY_FRAME)  # what the others are compared with, clip by clip
SOME = ("ms_ssim", "feature_distance")  # metrics of some frames, and VMAF
EQUAL_PSNR = 60.0  # dB that a frame counts as at most, or one equal to its source would be infinite; as libvmaf has it
COLUMNS = (  # of results.csv; what does not apply is empty
    "clip", "codec",
    "kind",  # "ours", "frames" (a model for pictures, frame by frame) or "peer"
    "setting",
    "dial",  # the setting's number
    "frames",  # that were coded
    "bytes",  # of the whole file; of kind "frames" of one for each frame, of a peer of its bare stream
    "mp4_bytes",  # of a peer's stream in an .mp4
    "kbps",
    "bpp",  # bits a pixel of a frame
    "psnr",  # mean over the coded frames
    "psnr_worst",  # of one of them
    *SOME, "vmaf",  # means over some of them
    "encode_s",  # by the clock, of the frames that were coded; empty for files that were there
    "decode_s",
)  # fmt: skip
MEANS = ("bytes", "mp4_bytes", "kbps", "bpp", "psnr", "psnr_worst", *SOME, "vmaf")  # averaged over clips


def bench_video(options: VideoOptions) -> dict[str, Any]:
    """Measure models on the clips of a folder; print tables and write the results, see :func:`~..run.run`, and
    sheet.png, a frame of each clip by the codecs that the page shows.

    Raises: a TokodecError: no video, an unknown codec or model. Rates below our smallest file are under "notes".
    """
    paths = files_in(options.folder, "videos", options.limit)
    return run(VideoBench(options, paths), paths, options.out, memory=options.memory, threads=options.threads)


class VideoBench(Bench):
    """What videos add to the runner."""

    things = "videos"
    sections = staticmethod(sections)
    page = staticmethod(video_page)

    def __init__(self, options: VideoOptions, paths: Sequence[Path]) -> None:
        self.options, self.paths = options, paths
        self.models = list(dict.fromkeys(names_in(options.models)))
        self.names = chosen(names_in(options.codecs), [FRAME_BY_FRAME, *VIDEO_PEERS])
        self.levels, self.kbps = whole_numbers(options.levels, "levels"), number_list(options.kbps, "rates")
        self.qualities = number_list(options.qualities, "qualities")
        self.no_vmaf = vmaf_missing()
        if not self.models and not self.names and options.files is None:
            raise UsageError("nothing to measure: name a model or a codec")
        if options.files is not None and options.frames is not None:
            raise UsageError("files are of all frames: leave --frames out")
        if min(options.every, options.every_photo, 1 if options.frames is None else options.frames) < 1:
            raise UsageError("frames are counted from 1")
        with bench_extra():
            import bjontegaard  # noqa: F401
        self.device = pick_device(options.device)
        self.reader = ("clips:read_video", {"frames": options.frames})
        self.seen: set[tuple[int, ...]] = set()

    def prepare(self) -> list[Contender]:
        options, device = self.options, self.device
        self.codecs: list[Contender] = [
            prepare_video(name, device, self.levels, self.kbps, effort=options.effort, qualities=self.qualities)
            for name in self.models
        ]
        if options.files is not None:
            self.codecs.append(prepare_files(options.files, self.paths, device))
        for name in self.names:
            if name in VIDEO_PEERS:
                self.codecs.append(find_video_peer(name, options.threads or 1))
            else:
                self.codecs.append(prepare_frames(name, device, options.every_photo))
        check_bench_extra(device, ("feature_distance",))
        return self.codecs

    def read(self, path: Path) -> Video:
        return read_video(path, self.options.frames)

    def facts(self, clip: Video) -> tuple[dict[str, Any], str]:
        facts = {
            "name": clip.name, "frames": len(clip.frames), "height": clip.height, "width": clip.width,
            "rate": float(clip.rate), "seconds": float(clip.seconds),
        }  # fmt: skip
        return facts, f"{len(clip.frames)} frames of {clip.width} x {clip.height}"

    def measure(self, clip: Video, notes: list[str]) -> tuple[list[Row], Exhibit]:
        size = clip.frames.shape[1:]
        if self.device.startswith("cuda") and size not in self.seen:
            warm_up(clip, [codec for codec in self.codecs if codec.kind != "peer"])
        self.seen.add(size)
        kept: dict[tuple[str, str], Coded] = {}
        rows = list(self.rows(clip, kept, notes))
        return rows, exhibit(clip, rows, self.codecs, kept)

    def rows(self, clip: Video, kept: dict[tuple[str, str], Coded], notes: list[str]) -> Iterator[Row]:
        """Every codec at every setting. ``kept`` gets what was coded."""
        vmaf = None if self.no_vmaf else VmafClip(clip, self.options.every, self.device)
        for result in results(clip, self.codecs, notes):
            codec, setting, coded, x_hat = result.codec, result.setting, result.encoded.result, result.decoded.result
            step = codec.every if isinstance(codec, FrameCoder) else 1
            x = clip.frames[::step]
            if len(x_hat) != len(x):
                raise MediaError(f"{clip.name}: {codec.name} gives {len(x_hat)} of {len(x)} frames back")
            kept[codec.name, setting.label] = coded
            yield (
                row(clip, codec, setting, coded.size)
                | {"frames": len(x)}
                | result.seconds
                | ({"encode_s": None} if isinstance(codec, FileCoder) else {})
                | measure_frames(x, x_hat, self.options.every, self.device)
                | {"mp4_bytes": len(codec.mp4_of(coded, clip.rate)) if isinstance(codec, VideoPeer) else None}
                | {"vmaf": vmaf.score(x_hat, step) if vmaf else None}
            )

    def report(self, found: Findings) -> dict[str, Any]:
        pairs = compare_clips(found.rows)
        return {
            "models": [codec.name for codec in self.codecs if codec.kind == "ours"],
            "clips": found.clips,
            "notes": [*found.notes, *([self.no_vmaf] if self.no_vmaf else [])],
            "codecs": {codec.name: {"kind": codec.kind, "how": codec.described} for codec in self.codecs},
            "every": self.options.every,
            "effort": self.options.effort,
            "every_photo": self.options.every_photo,
            "aggregates": aggregate(found.rows),
            "points": found.rows,
            "equal": equal(found.rows),
            "bd_rate": {"package": "bjontegaard", "method": METHOD, "pairs": pairs, "means": mean_rates(pairs)},
        }

    def write_more(self, found: Findings, out: Path) -> str:
        with atomic_output(out / "sheet.png", force=True) as file:
            sheet(found.exhibits).save(file, "PNG", optimize=True)
        return ", sheet.png"


def row(clip: Video, codec: Contender, setting: Setting, size: int) -> Row:
    """A line of results.csv without what was measured."""
    return dict.fromkeys(COLUMNS) | {
        "clip": clip.name, "codec": codec.name, "kind": codec.kind, "setting": setting.label, "dial": setting.value,
        "bytes": size, "kbps": 8e-3 * size / float(clip.seconds),
        "bpp": 8 * size / (len(clip.frames) * clip.height * clip.width),
    }  # fmt: skip


def measure_frames(x: np.ndarray, x_hat: Sequence[np.ndarray], every: int, device: str) -> dict[str, Any]:
    """Means over frames: PSNR of all of them, with that of the worst, the other metrics of one of ``every``; None where
    frames are too small for a metric. MS-SSIM of small frames has fewer scales. x: ``[n, H, W, 3]`` uint8."""
    values = [min(psnr(a, b), EQUAL_PSNR) for a, b in zip(x, x_hat, strict=True)]
    some = [
        measure(x[i], x_hat[i], ("feature_distance",), device) | {"ms_ssim": ms_ssim(x[i], x_hat[i], fewer=True)}
        for i in range(0, len(x), every)
    ]
    return {"psnr": float(np.mean(values)), "psnr_worst": min(values), **means(some, SOME)}


def aggregate(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over clips at each setting of each codec; frames a second are all frames by all seconds."""
    return [
        key | {"clips": len(group)} | means(group, MEANS)
        | {f"{step}_fps": frames_a_second(group, f"{step}_s") for step in ("encode", "decode")}
        for key, group in group_by(rows, "codec", "kind", "setting")
    ]  # fmt: skip


def frames_a_second(rows: Sequence[Mapping[str, Any]], seconds: str) -> float | None:
    """All frames by all seconds; None where those are not known."""
    known = [own[seconds] for own in rows if own[seconds] is not None]
    return sum(own["frames"] for own in rows) / sum(known) if len(known) == len(rows) else None


def curves_of(
    rows: Sequence[Row], metric: str = "psnr", sizes: str = "bytes"
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """Pairs of bytes and a metric of each clip and codec, of the settings that have it. Files without ``sizes`` have
    their bytes."""
    return {
        (key["clip"], key["codec"]): [
            (float(own[sizes] or own["bytes"]), value)
            for own in group
            if (value := value_of(own, metric)) is not None and math.isfinite(value)
        ]
        for key, group in group_by(rows, "clip", "codec")
    }


def value_of(row: Mapping[str, Any], metric: str) -> float | None:
    """Of a row; MS-SSIM in dB, too."""
    if metric == "ms_ssim_db":
        return None if row["ms_ssim"] is None else decibel(row["ms_ssim"])
    value: float | None = row[metric]
    return value


def equal(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each file beside what each of :data:`ANCHORS` takes for the same PSNR on the same clip.

    Returns: dicts with "clip", "codec", "setting", "bytes", "psnr", and for each anchor that was measured its name with
             how many percent more the file takes, negative if fewer; None where the anchor does not reach that PSNR,
             or is always above it.
    """
    curves = curves_of(rows)
    found = []
    for own in rows:
        entry = {key: own[key] for key in ("clip", "codec", "setting", "bytes", "psnr")}
        for anchor in ANCHORS:
            if (own["clip"], anchor) in curves:
                rate = rate_at(curves[own["clip"], anchor], own["psnr"])
                entry[anchor] = None if rate is None else 100 * (own["bytes"] / rate - 1)
        found.append(entry)
    return found


def compare_clips(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """BD-rate of every codec against each of :data:`BD_ANCHORS` clip by clip, in the ways of :data:`COMPARED`, where
    both were measured.

    Returns: dicts with "clip", "codec", "against", "metric", "sizes" and the fields of :class:`~..curves.BdRate`.
    """
    found = []
    for metric, sizes in COMPARED:
        curves = curves_of(rows, metric, sizes)
        about = {"metric": metric, "sizes": sizes}
        found += [
            {"clip": clip, "codec": codec, "against": anchor} | about | asdict(bd_rate(curves[clip, anchor], curve))
            for (clip, codec), curve in curves.items()
            for anchor in BD_ANCHORS
            if codec != anchor and curve and curves.get((clip, anchor))
        ]
    return found


def mean_rates(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means of BD-rates over the clips that have one, and how many those are."""
    return [
        key | {"clips": len(known), "percent": float(np.mean(known)) if known else None}
        for key, group in group_by(pairs, "codec", "against", "metric", "sizes")
        for known in [[own["percent"] for own in group if own["percent"] is not None]]
    ]


def exhibit(
    clip: Video, rows: Sequence[Row], codecs: Sequence[Contender], kept: Mapping[tuple[str, str], Coded]
) -> Exhibit:
    """What the page shows of a clip: the original, the first codec at its middle setting, which is ours if there is one
    of ours, and the others where their bytes are nearest to those, in ratio."""
    versions = [player(clip, "original", "original", clip.frames)]
    goal: int | None = None
    for codec in codecs:
        own = [row for row in rows if row["codec"] == codec.name]
        if codec.kind == "frames" or not own:
            continue
        shown = own[len(own) // 2]
        if goal is not None:
            shown = min(own, key=lambda row: abs(math.log(row["bytes"] / goal)))
        goal = goal or shown["bytes"]
        frames = codec.decode(kept[codec.name, shown["setting"]])
        note = f"{shown['bytes']:,} bytes, {shown['psnr']:.2f} dB"
        versions.append(player(clip, f"{codec.name}, {shown['setting']}", codec.kind, frames, note))
    return together(clip, versions)
