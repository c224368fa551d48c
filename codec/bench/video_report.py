"""What `codec bench video` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .audio_report import memory_table
from .report import new_table

METRIC_NOTE = (
    "PSNR (of RGB) is the mean over all frames, MS-SSIM (of clips of 161 pixels a side or more) and feature distance"
    " over one of {every}."
)


def print_video_report(report: dict[str, Any], out: Path) -> None:
    """Means over clips with speed, bytes and BD-rates clip by clip, memory."""
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    n = len(report["clips"])
    place = report["machine"]
    where = place["device"] if place["device"] != "cpu" else place["processor"]
    threads = f"{place['torch_threads']} CPU thread{'s' * (place['torch_threads'] != 1)}"
    say(f"means over {n} clip{'s' * (n != 1)}; {METRIC_NOTE.format(every=report['every'])} {frames_note(report)}")
    say(f"fps by the clock, RGB frames to file and back; ours on {where}, all with {threads}")
    console.print(means_table(report))
    anchors = anchors_of(report)
    if anchors and own_codecs(report):
        say("bytes that ours takes more at equal PSNR, clip by clip; negative: fewer; -: the other has no such PSNR")
        console.print(equal_table(report, anchors))
    for anchor in anchors:
        if any(pair["against"] == anchor for pair in report["bd_rate"]["pairs"]):
            say(f"bits more than {anchor} at equal PSNR (BD-rate), clip by clip; -: too little in common")
            console.print(bd_table(report, anchor))
    if report["memory"]:
        say(f"peak memory of processes that code {report['memory']['clip']}")
        console.print(memory_table(report))
    for note in report["notes"]:
        say(f"note: {note}")
    for reason in report["skipped"]:
        say(f"left out: {reason}")
    say(f"results.csv, results.json, index.html and sheet.png are in {out}")


def frames_note(report: dict[str, Any]) -> str:
    """What the figures of a model for pictures stand on, if there is one."""
    names = [name for name, codec in report["codecs"].items() if codec["kind"] == "frames"]
    if not names:
        return ""
    every = report["every_photo"]
    coded = "all frames" if every == 1 else f"one of {every} frames, bytes scaled to all of them"
    return f"{names[0]} is run frame by frame: {coded}."


def own_codecs(report: dict[str, Any]) -> list[str]:
    """Names of our models for videos."""
    return [name for name, codec in report["codecs"].items() if codec["kind"] == "ours"]


def anchors_of(report: dict[str, Any]) -> list[str]:
    """The codecs that others are compared with, as far as they were measured."""
    return [key for key in report["equal"][0] if key in report["codecs"]]


def equal_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of "equal" of our models."""
    return [entry for entry in report["equal"] if entry["codec"] in own_codecs(report)]


def signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.0f} %"


def means_table(report: dict[str, Any]) -> Table:
    """Every codec at each of its settings."""
    table = new_table(
        "", "\ncodec", "\nbytes", "\nbpp", "PSNR\ndB", "worst\nframe", "MS-\nSSIM", "feat.\ndist.", "enc.\nfps",
        "dec.\nfps",
    )  # fmt: skip
    forms = {
        "bytes": ".0f", "bpp": ".4f", "psnr": ".2f", "psnr_worst": ".2f", "ms_ssim": ".4f", "feature_distance": ".4f",
        "encode_fps": ".1f", "decode_fps": ".1f",
    }  # fmt: skip
    previous = None
    for entry in report["aggregates"]:
        if previous not in (None, entry["codec"]):
            table.add_section()
        previous = entry["codec"]
        cells = ["-" if entry[key] is None else f"{entry[key]:{form}}" for key, form in forms.items()]
        table.add_row(f"{entry['codec']} {entry['setting']}", *cells)
    return table


def equal_table(report: dict[str, Any], anchors: list[str]) -> Table:
    """Our files beside those of the anchors at the same PSNR."""
    table = new_table("", "clip", "ours", "bytes", "PSNR dB", *anchors)
    previous = None
    for entry in equal_rows(report):
        if previous not in (None, entry["clip"]):
            table.add_section()
        previous = entry["clip"]
        cells = [str(entry["bytes"]), f"{entry['psnr']:.2f}", *(signed(entry.get(anchor)) for anchor in anchors)]
        table.add_row(entry["clip"], f"{entry['codec']} {entry['setting']}", *cells)
    return table


def bd_table(report: dict[str, Any], anchor: str) -> Table:
    """A row for each clip, a column for each codec."""
    pairs = {(p["clip"], p["codec"]): p["percent"] for p in report["bd_rate"]["pairs"] if p["against"] == anchor}
    names = list(dict.fromkeys(codec for _, codec in pairs))
    table = new_table("", "clip", *names)
    for clip in report["clips"]:
        table.add_row(clip["name"], *(signed(pairs.get((clip["name"], name))) for name in names))
    return table
