"""What `codec bench video` prints and shows: tables, curves, and clips side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...media.read_video import Pixels
from ...media.write_video import VideoWriter
from ..clips import Video
from ..metrics import METRICS, Metric
from ..page import Chart, Page, colours, data_uri, page, points_of
from ..report import Section, Table, bd_cell, grouped, memory_section, number, plural, signed, where

ALL = "all clips, means"
BPP = {"key": "bpp", "name": "bits per pixel", "unit": "bpp", "digits": 4}
CHARTED = (
    METRICS["psnr"], Metric("psnr_worst", "PSNR of the worst frame, dB", "worst\nframe", 2), METRICS["ms-ssim"],
    METRICS["features"],
)  # fmt: skip
LEAD = (
    "Sizes are those of whole files. PSNR (of RGB) is the mean over all frames, MS-SSIM (of clips of 161 pixels a side"
    " or more) and feature distance over one of {every}. {frames}"
)
CAPTION = 16  # rows of pixels above each picture of the sheet
GAP = 4  # pixels between them
STYLE = """
article{margin-top:1.6rem}article h3{margin-bottom:.3rem}
.videos{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:.8rem}
.videos figure{margin:0;background:var(--box);border-radius:6px;overflow:hidden}
.videos video{display:block;width:100%;background:#000}.videos figcaption{padding:.3em .7em}
.videos .ours{outline:2px solid #d55e00}
.transport{display:flex;gap:.5rem;align-items:center;margin:.4rem 0}.transport input{flex:1}
"""
# The first player of a clip leads, the others follow it.
SCRIPT = """
for (const article of document.querySelectorAll("article")) {
  const videos = [...article.querySelectorAll("video")], first = videos[0];
  const play = article.querySelector(".play"), place = article.querySelector("input");
  const speed = article.querySelector("select"), step = 1 / Number(article.dataset.rate);
  const last = () => Math.max(0, first.duration - step / 2);
  const go = time => { for (const video of videos) video.currentTime = time; };
  const stop = () => { for (const video of videos) video.pause(); play.textContent = "play"; };
  const follow = () => {
    for (const video of videos.slice(1))
      if (Math.abs(video.currentTime - first.currentTime) > step) video.currentTime = first.currentTime;
    if (first.duration) place.value = first.currentTime / first.duration;
    if (first.ended) { go(0); for (const video of videos) video.play(); }
    if (!first.paused || first.ended) requestAnimationFrame(follow);
  };
  play.addEventListener("click", () => {
    if (!first.paused) return stop();
    play.textContent = "pause";
    go(first.currentTime);
    Promise.all(videos.map(video => video.play())).then(follow);
  });
  place.addEventListener("input", () => { stop(); go(Math.min(last(), place.value * first.duration)); });
  for (const [name, sign] of [[".back", -1], [".on", 1]])
    article.querySelector(name).addEventListener("click", () => {
      stop();
      const frame = Math.floor(first.currentTime / step + 0.01) + sign;  // its middle, where no rounding can reach
      go(Math.min(last(), Math.max(0, (frame + 0.5) * step)));
      place.value = first.currentTime / first.duration;
    });
  speed.addEventListener("change", () => { for (const video of videos) video.playbackRate = Number(speed.value); });
}
"""


@dataclass(frozen=True)
class Player:
    """A clip by one codec. mp4: what the page plays.  still: its middle frame, ``[H, W, 3]`` uint8."""

    label: str
    kind: str  # "original", "ours" or "peer"
    mp4: bytes
    still: Pixels
    size: int | None  # bytes; None for the original
    psnr: float | None


@dataclass(frozen=True)
class Reel:
    """A clip in all its versions, the original first. rate: frames a second."""

    name: str
    height: int
    width: int
    frames: int
    rate: float
    players: list[Player]


def make_player(
    clip: Video, label: str, kind: str, frames: Sequence[Pixels] | Pixels, found: tuple[int, float] | None = None
) -> Player:
    """Decoded frames at the times of the clip, as H.264 of a quality that is hardly told from them.

    Args: found: bytes and PSNR; None for the original.
    """
    buffer = io.BytesIO()
    with VideoWriter(buffer, ".mp4", label, clip.height, clip.width, clip.time_base, clip.rate) as writer:
        for pixels, time in zip(frames, clip.times, strict=True):
            writer.write(pixels, time, clip.seconds - time)
    return Player(label, kind, buffer.getvalue(), np.array(frames[len(frames) // 2]), *(found or (None, None)))


def video_page(report: Mapping[str, Any], reels: Sequence[Reel], sections: Sequence[Section]) -> str:
    """The page as text. ``report`` is what results.json holds, see :func:`.bench.bench_video`."""
    title = f"{', '.join(report['models']) or 'other codecs'}: {plural(len(report['clips']), 'clip')}"
    sources = {name: codec["how"] for name, codec in report["codecs"].items()}
    html = f"""<h2>Clips side by side</h2>
<p>The first codec at its middle setting, the others at the setting whose bytes are nearest to that. What plays is H.264
at a quality that is hardly told from what each codec gave.</p>
{"".join(article(reel) for reel in reels)}"""
    return page(Page(title, lead(report), html, sources, STYLE, SCRIPT), report, chart_of(report), sections)


def lead(report: Mapping[str, Any]) -> str:
    """What the figures are, and what those of a model for pictures stand on, if there is one."""
    names = [name for name, codec in report["codecs"].items() if codec["kind"] == "frames"]
    every = report["every_photo"]
    coded = "all frames" if every == 1 else f"one of {every} frames, bytes scaled to all of them"
    frames = f"{names[0]} is run frame by frame: {coded}." if names else ""
    return LEAD.format(every=report["every"], frames=frames).strip()


def chart_of(report: Mapping[str, Any]) -> Chart:
    """A series for each codec, with the means and with every clip by itself."""
    of_kind = {"ours": colours("ours"), "peer": colours("peer")}
    keys = ("group", "setting", "bpp", *(metric.key for metric in CHARTED))
    series = []
    for name, codec in report["codecs"].items():
        entries = [entry | {"group": ALL} for entry in report["aggregates"] if entry["codec"] == name]
        entries += [point | {"group": point["clip"]} for point in report["points"] if point["codec"] == name]
        kind = "ours" if codec["kind"] == "ours" else "peer"
        points = points_of(entries, "bpp", keys)
        series.append({"name": name, "kind": kind, "colour": next(of_kind[kind]), "shown": True, "points": points})
    groups = [ALL, *(clip["name"] for clip in report["clips"])]
    return Chart(BPP, CHARTED, series, (0.05, 0.1, 0.2, 0.5), groups)


# --------------------------------------------------------------------------------------------------------- sections


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Means over clips with speed, bytes and BD-rates clip by clip, memory."""
    anchors = [key for key in report["equal"][0] if key in report["codecs"]]
    return [
        means_section(report), *equal_section(report, anchors), *bd_section(report, anchors), *memory_section(report)
    ]  # fmt: skip


def means_section(report: Mapping[str, Any]) -> Section:
    """Every codec at every setting, with its speed."""
    entries = report["aggregates"]
    cells = [
        [f"{e['codec']} {e['setting']}", number(e["bytes"], 0), number(e["bpp"], 4),
         *(metric.text(e) for metric in CHARTED), number(e["encode_fps"], 1), number(e["decode_fps"], 1),
         number(e["kbps"], 1)]
        for e in entries
    ]  # fmt: skip
    rows = grouped([entry["codec"] for entry in entries], cells)
    heads = ["codec", "bytes", "bpp", *(metric.head for metric in CHARTED)]
    table = Table([*heads, "enc.\nfps|encode fps", "dec.\nfps|decode fps", "kbit/s"], rows, wide=1)
    about = f"{lead(report)} Frames a second by the clock, from RGB frames to a file and back; {where(report)} for all."
    return Section(f"Means over {plural(len(report['clips']), 'clip')}, and speed", about, [("", table)])


def equal_section(report: Mapping[str, Any], anchors: Sequence[str]) -> list[Section]:
    """Our files beside those of the anchors at the same PSNR."""
    entries = [entry for entry in report["equal"] if report["codecs"][entry["codec"]]["kind"] == "ours"]
    cells = [
        [entry["clip"], f"{entry['codec']} {entry['setting']}", f"{entry['bytes']:,}", number(entry["psnr"], 2),
         *(signed(entry.get(anchor)) for anchor in anchors)]
        for entry in entries
    ]  # fmt: skip
    about = (
        "How much more our file takes than the other codec at the same PSNR, negative: less. Its bytes are taken"
        " between its own settings, on straight lines of their logarithm over PSNR; a dash: it has no such PSNR."
    )
    table = Table(["clip", "ours", "bytes", "PSNR", *anchors], grouped([entry["clip"] for entry in entries], cells))
    return [Section("Bytes at equal PSNR", about, [("", table)])] if entries and anchors else []


def bd_section(report: Mapping[str, Any], anchors: Sequence[str]) -> list[Section]:
    """BD-rates clip by clip: a row for each clip, a column for each codec."""
    tables = []
    for anchor in anchors:
        pairs = [pair for pair in report["bd_rate"]["pairs"] if pair["against"] == anchor]
        names = list(dict.fromkeys(pair["codec"] for pair in pairs))
        cells = {(pair["clip"], pair["codec"]): bd_cell(pair) for pair in pairs}
        clips = [clip["name"] for clip in report["clips"]]
        rows = [("", [clip, *(cells.get((clip, name), "-") for name in names)]) for clip in clips]
        if pairs:
            tables.append((f"against {anchor}", Table(["clip", *names], rows, terse=True)))
    about = "Negative: fewer. Mean over the common range of PSNR in brackets; a dash: too little in common."
    return [Section("Bits more at equal PSNR (BD-rate)", about, tables)] if tables else []


# ------------------------------------------------------------------------------------------------------------- clips


def article(reel: Reel) -> str:
    """All versions of a clip, which play together."""
    cards = "".join(
        f'<figure class="{p.kind}"><video muted playsinline preload="auto" src="{uri}"></video>'
        f"<figcaption><b>{escape(p.label)}</b>{facts_of(p)}</figcaption></figure>"
        for p, uri in ((p, data_uri("video/mp4", p.mp4)) for p in reel.players)
    )
    speeds = "".join(f'<option value="{v}">{v} &times;</option>' for v in (1, 0.5, 0.25))
    return f"""<article data-rate="{reel.rate:.6g}">
<h3>{escape(reel.name)} <small>{reel.frames} frames of {reel.width} &times; {reel.height}</small></h3>
<div class="videos">{cards}</div>
<div class="transport"><button class="play">play</button>
<button class="back" aria-label="a frame back">&lsaquo;</button>
<button class="on" aria-label="a frame on">&rsaquo;</button><select aria-label="speed">{speeds}</select>
<input type="range" min="0" max="1" step="any" value="0" aria-label="place"></div>
</article>
"""


def facts_of(player: Player) -> str:
    if player.size is None or player.psnr is None:
        return ""
    return f"<br>{player.size:,} bytes, {player.psnr:.2f} dB"


def sheet(reels: Sequence[Reel]) -> Image.Image:
    """The middle frame of each clip, a row for each clip and a picture for each version, with captions."""
    height = sum(reel.height + CAPTION + GAP for reel in reels)
    width = max((reel.width + GAP) * len(reel.players) for reel in reels)
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    top = 0
    for reel in reels:
        for i, player in enumerate(reel.players):
            left = i * (reel.width + GAP)
            size = "" if player.size is None else f": {player.size} B, {player.psnr:.1f} dB"
            draw.text((left, top + 2), player.label + size, fill="black")
            image.paste(Image.fromarray(player.still), (left, top + CAPTION))
        top += reel.height + CAPTION + GAP
    return image
