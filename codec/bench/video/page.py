"""The HTML page of `codec bench video`: clips side by side, curves, tables. Everything is inside the file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ...media.read_video import Pixels
from ...media.write_video import VideoWriter
from ..page import OURS, PEERS, chart, document, finite, html_table, number
from ..video_report import METRIC_NOTE, anchors_of, equal_rows, frames_note, own_codecs, signed
from ..videos import Video

ALL = "all clips, means"
METRICS = (
    ("psnr", "PSNR, dB", 2),
    ("psnr_worst", "PSNR of the worst frame, dB", 2),
    ("ms_ssim", "MS-SSIM", 4),
    ("feature_distance", "feature distance (Lite2, lower is better)", 4),
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
    size: int | None  # bytes; None for the original
    psnr: float | None
    mp4: bytes
    still: Pixels


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
    video: Video, label: str, kind: str, size: int | None, psnr: float | None, frames: Sequence[Pixels] | Pixels
) -> Player:
    """Decoded frames at the times of the clip, as H.264 of a quality that is hardly told from them."""
    buffer = io.BytesIO()
    with VideoWriter(buffer, ".mp4", label, video.height, video.width, video.time_base, video.rate) as writer:
        for pixels, time in zip(frames, video.times, strict=True):
            writer.write(pixels, time, video.seconds - time)
    return Player(label, kind, size, psnr, buffer.getvalue(), np.array(frames[len(frames) // 2]))


def video_page(report: dict[str, Any], reels: Sequence[Reel]) -> str:
    """The page as text. ``report`` is what results.json holds, see :func:`~.video.bench_video`."""
    n = len(report["clips"])
    title = f"{', '.join(report['models']) or 'other codecs'}: {n} clip{'s' * (n != 1)}"
    place = report["machine"] | report["versions"] | {key: report[key] for key in ("commit", "date")}
    facts = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in place.items())
    how = "".join(f"<li><b>{escape(name)}</b>: {escape(codec['how'])}</li>" for name, codec in report["codecs"].items())
    notes = "".join(f"<p>Note: {escape(note)}</p>" for note in report["notes"])
    notes += "".join(f"<p>Left out: {escape(reason)}</p>" for reason in report["skipped"])
    body = f"""<p>Sizes are those of whole files. {escape(METRIC_NOTE.format(every=report["every"]))}
{escape(frames_note(report))}</p>
{notes}
<h2>Clips side by side</h2>
<p>The first codec at its middle setting, the others at the setting whose bytes are nearest to that. What plays is H.264
at a quality that is hardly told from what each codec gave.</p>
{"".join(article(reel) for reel in reels)}
<h2>Rate and distortion</h2>
{chart(chart_data(report), (0.05, 0.1, 0.2, 0.5))}
{equal_section(report)}
{bd_section(report)}
{means_section(report)}
{memory_section(report)}
<h2>How it was measured</h2>
<ul>{how}</ul>
<dl>{facts}</dl>
"""
    return document(title, body, chart_data(report), STYLE, SCRIPT)


def chart_data(report: dict[str, Any]) -> dict[str, Any]:
    """What the script draws: a series for each codec, with the means and with every clip by itself."""
    colours = {True: iter(OURS), False: iter(PEERS)}
    series = []
    for name, codec in report["codecs"].items():
        entries = [entry | {"group": ALL} for entry in report["aggregates"] if entry["codec"] == name]
        entries += [point | {"group": point["clip"]} for point in report["points"] if point["codec"] == name]
        keys = ("group", "setting", "bpp", *(key for key, _, _ in METRICS))
        points = [{key: entry[key] for key in keys if finite(entry[key])} for entry in entries]
        points.sort(key=lambda point: point["bpp"])
        kind = "ours" if codec["kind"] == "ours" else "peer"
        colour = next(colours[kind == "ours"])
        series.append({"name": name, "kind": kind, "colour": colour, "shown": True, "points": points})
    return {
        "rate": {"key": "bpp", "name": "bits per pixel", "unit": "bpp", "digits": 4},
        "groups": [ALL, *(clip["name"] for clip in report["clips"])],
        "metrics": [{"key": key, "name": name, "digits": digits} for key, name, digits in METRICS],
        "series": series,
    }


# ------------------------------------------------------------------------------------------------------------ tables


def equal_section(report: dict[str, Any]) -> str:
    """Our files beside those of the anchors at the same PSNR."""
    anchors = anchors_of(report)
    rows = []
    previous = None
    for entry in equal_rows(report):
        cells = [escape(entry["clip"]), escape(f"{entry['codec']}, {entry['setting']}"), f"{entry['bytes']:,}"]
        cells += [number(entry["psnr"], 2), *(signed(entry.get(anchor)) for anchor in anchors)]
        rows.append(("first" if previous not in (None, entry["clip"]) else "", cells))
        previous = entry["clip"]
    if not rows or not anchors:
        return ""
    return f"""<h2>Bytes at equal PSNR</h2>
<p>How much more our file takes than the other codec at the same PSNR, negative: less. Its bytes are taken between its
own settings, on straight lines of their logarithm over PSNR; a dash: it has no such PSNR.</p>
{html_table(["clip", "ours", "bytes", "PSNR", *(f"beside {escape(anchor)}" for anchor in anchors)], rows)}"""


def bd_section(report: dict[str, Any]) -> str:
    """BD-rates clip by clip."""
    text = []
    for anchor in anchors_of(report):
        pairs = [pair for pair in report["bd_rate"]["pairs"] if pair["against"] == anchor]
        names = list(dict.fromkeys(pair["codec"] for pair in pairs))
        cells = {(pair["clip"], pair["codec"]): bd_cell(pair) for pair in pairs}
        rows = [
            ("", [escape(clip["name"]), *(cells.get((clip["name"], name), "-") for name in names)])
            for clip in report["clips"]
        ]
        if pairs:
            text.append(f"<h3>against {escape(anchor)}</h3>{html_table(['clip', *map(escape, names)], rows)}")
    if not text:
        return ""
    return f"""<h2>Bits more at equal PSNR (BD-rate)</h2>
<p>Negative: fewer. Mean over the common range of PSNR; a dash says why there is none when it is pointed at.</p>
{"".join(text)}"""


def bd_cell(pair: dict[str, Any]) -> str:
    if pair["percent"] is None:
        return f'<span title="{escape(pair["reason"])}">-</span>'
    return f"{pair['percent']:+.1f} % <small>({pair['low']:.1f} to {pair['high']:.1f} dB)</small>"


def means_section(report: dict[str, Any]) -> str:
    """Every codec at every setting, with its speed."""
    ours = own_codecs(report)
    rows = []
    previous = None
    for entry in report["aggregates"]:
        cells = [escape(f"{entry['codec']}, {entry['setting']}"), number(entry["bytes"], 0), number(entry["bpp"], 4)]
        cells += [number(entry["kbps"], 1), *(number(entry[key], digits) for key, _, digits in METRICS)]
        cells += [number(entry["encode_fps"], 1), number(entry["decode_fps"], 1)]
        kind = "own" if entry["codec"] in ours else "first" if previous not in (None, entry["codec"]) else ""
        rows.append((kind, cells))
        previous = entry["codec"]
    place = report["machine"]
    where = place["device"] if place["device"] != "cpu" else place["processor"]
    threads = place["torch_threads"]
    names = ["codec", "bytes", "bpp", "kbit/s", "PSNR", "worst frame", "MS-SSIM", "feature distance"]
    return f"""<h2>Means over clips, and speed</h2>
<p>Frames a second by the clock, from RGB frames to a file and back: ours on {escape(where)}, all with {threads} CPU
thread{"s" * (threads != 1)}.</p>
{html_table([*names, "encode fps", "decode fps"], rows)}"""


def memory_section(report: dict[str, Any]) -> str:
    """Peaks of whole processes."""
    if not report["memory"]:
        return ""
    rows = [
        ("", [escape(e["codec"]), *(number(e[key], 0) for key in ("encode_mib", "decode_mib", "gpu_mib"))])
        for e in report["memory"]["codecs"]
    ]
    return f"""<h2>Peak memory</h2>
<p>Of a whole process that codes {escape(report["memory"]["clip"])} once, Python, libraries and all frames of the clip
included; start-up is one that only reads them.</p>
{html_table(["codec", "encode MiB", "decode MiB", "GPU MiB"], rows)}"""


# ------------------------------------------------------------------------------------------------------------- clips


def article(reel: Reel) -> str:
    """All versions of a clip, which play together."""
    cards = "".join(
        f'<figure class="{p.kind}"><video muted playsinline preload="auto" src="{mp4_uri(p.mp4)}"></video>'
        f"<figcaption><b>{escape(p.label)}</b>{facts_of(p)}</figcaption></figure>"
        for p in reel.players
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


def mp4_uri(data: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


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
