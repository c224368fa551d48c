"""What `codec bench video` prints and shows: tables, curves, and clips side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...media.read_video import Pixels
from ...media.write_video import VideoWriter
from ..clips import Video
from ..metrics import METRICS, Metric
from ..page import BPP, Chart, Exhibit, Page, Version, beside, data_uri, draw, page
from ..report import Cell, Column, Section, Table, bd_cell, memory_section, plural, signed, table_of, where
from .vmaf import VMAF

ALL = "all clips, means"
CHARTED = (
    METRICS["psnr"], Metric("psnr_worst", "PSNR of the worst frame, dB", "worst\nframe", 2), METRICS["ms-ssim"],
    VMAF, METRICS["features"],
)  # fmt: skip
COMPARED = {  # what BD-rates are by, metrics and sizes, and the headings
    ("psnr", "bytes"): "by PSNR, whole files and bare streams",
    ("psnr", "mp4_bytes"): "by PSNR, whole files and streams in an .mp4",
    ("ms_ssim_db", "bytes"): "by MS-SSIM, whole files and bare streams",
    ("vmaf", "bytes"): "by VMAF, whole files and bare streams",
}
LEAD = (
    "Sizes are those of whole files, of other codecs those of their bare streams. PSNR (of RGB) is the mean over all"
    " frames, MS-SSIM, VMAF (vmaf-torch, where it is installed) and feature distance over one of {every}. MS-SSIM of"
    " clips below 161 pixels a side has the finest scales that its window fits in, four from 81 on, with their weights"
    " over the sum of those."
    " {frames}"
)
CAPTION = 16  # rows of pixels above each picture of the sheet
GAP = 4  # pixels between them
HINT = (
    "The first codec at its middle setting, the others at the setting whose bytes are nearest to that. What plays is"
    " H.264 at a quality that is hardly told from what each codec gave."
)


def video_page(report: Mapping[str, Any], exhibits: Sequence[Exhibit], sections: Sequence[Section]) -> str:
    """The page as text. ``report`` is what results.json holds, see :func:`.bench.bench_video`."""
    title = f"{', '.join(report['models']) or 'other codecs'}: {plural(len(report['clips']), 'clip')}"
    sources = {name: codec["how"] for name, codec in report["codecs"].items()}
    what = Page(title, lead(report), ("Clips side by side", HINT, exhibits), sources, *beside(__file__))
    return page(what, report, chart_of(report), sections)


def lead(report: Mapping[str, Any]) -> str:
    """What the figures are, and what those of a model for pictures stand on, if there is one."""
    names = [name for name, codec in report["codecs"].items() if codec["kind"] == "frames"]
    every = report["every_photo"]
    coded = "all frames" if every == 1 else f"one of {every} frames, bytes scaled to all of them"
    frames = f"{names[0]} is run frame by frame: {coded}." if names else ""
    return LEAD.format(every=report["every"], frames=frames).strip()


def chart_of(report: Mapping[str, Any]) -> Chart:
    """A series for each codec, with the means and with every clip by itself."""
    entries = [entry | {"group": ALL} for entry in report["aggregates"]]
    entries += [point | {"group": point["clip"]} for point in report["points"]]
    curves = [
        (name, "ours" if codec["kind"] == "ours" else "peer", [entry for entry in entries if entry["codec"] == name])
        for name, codec in report["codecs"].items()
    ]
    series = draw(curves, "bpp", ("group", "setting", "bpp", *(metric.key for metric in CHARTED)))
    return Chart(BPP, CHARTED, series, (0.05, 0.1, 0.2, 0.5), [ALL, *(clip["name"] for clip in report["clips"])])


# --------------------------------------------------------------------------------------------------------- sections


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Means over clips with speed, bytes and BD-rates clip by clip, memory."""
    anchors = [key for key in report["equal"][0] if key in report["codecs"]]
    return [means_section(report), *equal_section(report, anchors), *bd_section(report), *memory_section(report)]


def means_section(report: Mapping[str, Any]) -> Section:
    """Every codec at every setting, with its speed."""
    columns = [("codec", "{codec} {setting}"), ("bytes", "{bytes:.0f}"), ("bpp", "{bpp:.4f}")]
    columns += [*(metric.column for metric in CHARTED), ("enc.\nfps|encode fps", "{encode_fps:.1f}")]
    columns += [("dec.\nfps|decode fps", "{decode_fps:.1f}"), ("kbit/s", "{kbps:.1f}")]
    entries = [e | {"ours": report["codecs"][e["codec"]]["kind"] == "ours"} for e in report["aggregates"]]
    table = table_of(entries, columns, "codec", wide=1)
    about = f"{lead(report)} Frames a second by the clock, from RGB frames to a file and back; {where(report)} for all."
    return Section(f"Means over {plural(len(report['clips']), 'clip')}, and speed", about, [("", table)])


def equal_section(report: Mapping[str, Any], anchors: Sequence[str]) -> list[Section]:
    """Our files beside those of the anchors at the same PSNR."""
    entries = [entry for entry in report["equal"] if report["codecs"][entry["codec"]]["kind"] == "ours"]
    columns: list[Column] = [("clip", "{clip}"), ("ours", "{codec} {setting}"), ("bytes", "{bytes:,}")]
    columns += [("PSNR", "{psnr:.2f}"), *((anchor, partial(percent_of, anchor)) for anchor in anchors)]
    about = (
        "How much more our file takes than the other codec at the same PSNR, negative: less. Its bytes are taken"
        " between its own settings, on straight lines of their logarithm over PSNR; a dash: it has no such PSNR."
    )
    table = table_of(entries, columns, "clip")
    return [Section("Bytes at equal PSNR", about, [("", table)])] if entries and anchors else []


def percent_of(anchor: str, entry: Mapping[str, Any]) -> str:
    return signed(entry.get(anchor))


def bd_section(report: Mapping[str, Any]) -> list[Section]:
    """BD-rates of each of our codecs, or of each codec if none is ours: a row for each clip and for the mean, a column
    for each codec that it is compared with."""
    names = list(report["codecs"])
    names = [name for name in names if report["codecs"][name]["kind"] == "ours"] or names[1:]
    tables = []
    for name in names:
        for (metric, sizes), how in COMPARED.items():
            own = [
                {key: entry.get(key) for key in ("clip", "against", "percent", "low", "high", "reason", "clips")}
                for entry in [*report["bd_rate"]["pairs"], *report["bd_rate"]["means"]]
                if (entry["codec"], entry["metric"], entry["sizes"]) == (name, metric, sizes)
            ]
            if own:
                tables.append((f"{name} {how}", bd_table(own)))
    about = (
        "Negative: fewer bits than the codec of the column. Mean over the common range of the metric in brackets; a"
        " dash: too little in common, which the mean leaves out."
    )
    return [Section("Bits more at equal quality (BD-rate)", about, tables)] if tables else []


def bd_table(entries: Sequence[Mapping[str, Any]]) -> Table:
    """Of one codec by one metric. Entries without a clip are means."""
    anchors = list(dict.fromkeys(entry["against"] for entry in entries))
    rows = []
    for clip in dict.fromkeys(entry["clip"] for entry in entries):
        own = {entry["against"]: entry for entry in entries if entry["clip"] == clip}
        cell = mean_cell if clip is None else bd_cell
        rows.append(("", [clip or "mean", *(cell(own[anchor]) if anchor in own else "-" for anchor in anchors)]))
    return Table(["clip", *anchors], rows, terse=True)


def mean_cell(entry: Mapping[str, Any]) -> Cell:
    """A mean of BD-rates, and over how many clips."""
    return Cell(signed(entry["percent"], 1), f"({entry['clips']})")


# ------------------------------------------------------------------------------------------------------------- clips


def player(clip: Video, label: str, kind: str, frames: Sequence[Pixels] | Pixels, note: str = "") -> Version:
    """Decoded frames at the times of the clip, as H.264 of a quality that is hardly told from them."""
    buffer = io.BytesIO()
    with VideoWriter(
        buffer, ".mp4", label, clip.height, clip.width, time_base=clip.time_base, rate=clip.rate
    ) as writer:
        for pixels, time in zip(frames, clip.times, strict=True):
            writer.write(pixels, time, clip.seconds - time)
    uri = data_uri("video/mp4", buffer.getvalue())
    media = f'<video muted playsinline preload="auto" src="{uri}"></video>'
    return Version(label, kind, media, note, np.array(frames[len(frames) // 2]))


def together(clip: Video, versions: Sequence[Version]) -> Exhibit:
    """All versions of a clip, which play together."""
    speeds = "".join(f'<option value="{v}">{v} &times;</option>' for v in (1, 0.5, 0.25))
    below = f"""<div class="transport" data-rate="{float(clip.rate):.6g}"><button class="play">play</button>
<button class="back" aria-label="a frame back">&lsaquo;</button>
<button class="on" aria-label="a frame on">&rsaquo;</button><select aria-label="speed">{speeds}</select>
<input type="range" min="0" max="1" step="any" value="0" aria-label="place"></div>
"""
    about = f"{len(clip.frames)} frames of {clip.width} x {clip.height}"
    return Exhibit(clip.name, about, versions, "videos", below=below)


def sheet(exhibits: Sequence[Exhibit]) -> Image.Image:
    """The middle frame of each clip, a row for each clip and a picture for each version, with captions."""
    rows = [[(v.label, v.note, v.still) for v in exhibit.versions if v.still is not None] for exhibit in exhibits]
    height = sum(row[0][2].shape[0] + CAPTION + GAP for row in rows)
    width = max((row[0][2].shape[1] + GAP) * len(row) for row in rows)
    image = Image.new("RGB", (width, height), "white")
    pen, top = ImageDraw.Draw(image), 0
    for row in rows:
        for i, (label, note, still) in enumerate(row):
            left = i * (still.shape[1] + GAP)
            pen.text((left, top + 2), f"{label}: {note}" if note else label, fill="black")
            image.paste(Image.fromarray(still), (left, top + CAPTION))
        top += row[0][2].shape[0] + CAPTION + GAP
    return image
