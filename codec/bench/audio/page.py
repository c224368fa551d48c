"""The HTML page of `codec bench audio`: curves, tables, players and spectrograms. Everything is inside the file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ...media.audio import Sound, write_audio
from ...metrics.spectrogram import DYNAMICS, Mono, levels, spectrogram
from ..audio_report import BY_KEY, against_rates, beats_text, duels_of, losses, metrics_of, our_rates
from ..clips import RATE
from ..page import OURS, PEERS, chart, document, finite, html_table, number

SHOWN_SECONDS = 10.0  # of a sound on the page
STYLE = """
article{margin-top:1.4rem}article h3{margin-bottom:.3rem}
.sounds{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:1rem}
.sounds figure{margin:0;background:var(--box);border-radius:6px;overflow:hidden}
.sounds img{display:block;width:100%;height:150px;image-rendering:auto}
.sounds audio{display:block;width:100%;height:36px}.sounds figcaption{padding:.3em .7em}
.sounds .ours{outline:2px solid #d55e00}.better{color:#00795a;font-weight:600}.worse{color:#c0392b}
@media (prefers-color-scheme:dark){.better{color:#4fd1a5}.worse{color:#ff8a7a}}
"""
# One sound at a time; the next goes on where the last one is.
SCRIPT = """
for (const article of document.querySelectorAll("article")) {
  const players = [...article.querySelectorAll("audio")];
  for (const player of players)
    player.addEventListener("play", () => {
      for (const other of document.querySelectorAll("audio"))
        if (other !== player && !other.paused) {
          if (players.includes(other)) player.currentTime = other.currentTime;
          other.pause();
        }
    });
}
"""


@dataclass(frozen=True)
class SoundVersion:
    """One sound by one codec. x: ``[n]`` at 24 kHz."""

    label: str
    kind: str  # "original", "ours" or "peer"
    kbps: float
    x: Mono


@dataclass(frozen=True)
class SoundExhibit:
    """A clip in all its versions, the original first. kind: of clip."""

    name: str
    kind: str
    versions: list[SoundVersion]


def audio_page(report: dict[str, Any], exhibits: Sequence[SoundExhibit]) -> str:
    """The page as text. ``report`` is what results.json holds, see :func:`~.audio.bench_audio`."""
    n = len(report["clips"])
    effort = f", effort {report['effort']}" if report["effort"] else ""
    title = f"{report['model']}{effort}: {n} clip{'s' * (n != 1)}"
    place = report["machine"] | report["versions"] | {key: report[key] for key in ("commit", "date")}
    facts = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in place.items())
    codecs = report["peers"] | report["baselines"]
    how = "".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in codecs.items())
    notes = "".join(f"<p>Note: {escape(note)}</p>" for note in report["notes"])
    notes += "".join(f"<p>Left out: {escape(reason)}</p>" for reason in report["skipped"])
    data = chart_data(report)
    kinds = "".join(kind_section(report, kind) for kind in report["kinds"])
    body = f"""<p>Rates are real bytes: of ours those of whole files, of Opus those of its packets alone, which is
kinder to it; the rate of its Ogg files is in the tables. A point of a curve is the mean over the clips of one kind at
one setting.</p>
{notes}
<h2>Rate and quality</h2>
{chart(data, (16, 32))}
<h2>Listen</h2>
<p>Press play on another version while one plays: it goes on at the same place. Spectrograms span 0 to
{RATE // 2000} kHz and {DYNAMICS:.0f} dB.</p>
{"".join(article(e) for e in sorted(exhibits, key=lambda e: report["kinds"].index(e.kind)))}
{kinds}
{speed_section(report)}
<h2>How it was measured</h2>
<ul>{how}</ul>
<p>ViSQOL listens in its speech mode to clips of kind speech and in its audio mode to all others; the two do not
compare. PESQ (wideband), STOI and DNSMOS (P.835, overall) are for speech only. Mel and STFT distances: lower is
better.</p>
<dl>{facts}</dl>
"""
    return document(title, body, data, STYLE, SCRIPT)


def chart_data(report: dict[str, Any]) -> dict[str, Any]:
    """What the script draws: a series for each codec, whose points belong to the kinds of clips."""
    colours = {True: iter(OURS), False: iter(PEERS)}
    series = []
    for codec, ours in dict.fromkeys((e["codec"], e["ours"]) for e in report["aggregates"]):
        points = [
            {"group": e["kind"], "setting": f"{e['asked_kbps']:g} kbit/s", "kbps": e["kbps"]}
            | {key: e[key] for key in report["metrics"] if finite(e[key])}
            for e in report["aggregates"]
            if e["codec"] == codec
        ]
        points.sort(key=lambda point: point["kbps"])
        kind = "ours" if ours else "peer"
        series.append({"name": codec, "kind": kind, "colour": next(colours[ours]), "shown": True, "points": points})
    names = [(BY_KEY[key], " (lower is better)" * (not BY_KEY[key].higher_is_better)) for key in report["metrics"]]
    return {
        "rate": {"key": "kbps", "name": "kbit/s", "unit": "kbit/s", "digits": 2},
        "groups": report["kinds"],
        "metrics": [{"key": m.key, "name": m.title + more, "digits": m.digits} for m, more in names],
        "series": series,
    }


# ------------------------------------------------------------------------------------------------------------ tables


def kind_section(report: dict[str, Any], kind: str) -> str:
    """Means of one kind of clip, and where ours wins and loses."""
    metrics = metrics_of(report, kind)
    rows = []
    previous = None
    entries = [e for e in report["aggregates"] if e["kind"] == kind]
    for e in entries:
        cells = [escape(f"{e['codec']} {e['asked_kbps']:g}"), number(e["kbps"], 2), number(e["file_kbps"], 2)]
        cells += ["-" if e["saved"] is None else f"{e['saved']:.1%}"]
        cells += [number(e[m.key], m.digits) for m in metrics]
        rows.append(("own" if e["ours"] else "first" if previous else "", cells))
        previous = e["ours"]
    names = ["codec", "kbit/s", "file kbit/s", "saved", *(escape(m.title) for m in metrics)]
    clips = f"{entries[0]['clips']} clip{'s' * (entries[0]['clips'] != 1)}"
    text = f"""<h2>{escape(kind.capitalize())}: means over {clips}</h2>
<p>Saved: share of the bits that fixed-length codes would take.</p>
{html_table(names, rows)}"""
    if not report["duels"]:
        return text
    beats = [
        ("", [f"{rate:g} kbit/s", *(beats_text(report, kind, rate, m.key) for m in metrics)])
        for rate in our_rates(report, kind)
    ]
    sentences = "".join(f"<li>{escape(sentence)}</li>" for sentence in losses(report, kind))
    return f"""{text}
<h3>Up to which rate of Opus, in kbit/s, ours is better in the mean</h3>
{html_table(["ours", *(escape(m.title) for m in metrics)], beats)}
<ul>{sentences}</ul>
<details><summary>every rate against every rate</summary>{duel_table(report, kind)}</details>"""


def duel_table(report: dict[str, Any], kind: str) -> str:
    """For each of our rates against each of Opus's, the difference of each metric and on how many clips ours is
    better."""
    metrics = metrics_of(report, kind)
    rows: list[tuple[str, list[str]]] = []
    for rate in our_rates(report, kind):
        for i, against in enumerate(against_rates(report, kind)):
            cells = [f"{rate:g} against {against:g}"]
            for metric in metrics:
                found = [d for d in duels_of(report, kind, rate, metric.key) if d["against_kbps"] == against]
                cells.append(duel_cell(found[0], metric.digits) if found else "-")
            rows.append(("first" if not i and rows else "", cells))
    return html_table(["kbit/s, ours against Opus", *(escape(m.title) for m in metrics)], rows)


def duel_cell(duel: dict[str, Any], digits: int) -> str:
    verdict = "better" if duel["better"] else "worse"
    difference = f"{duel['ours'] - duel['theirs']:+.{digits}f}"
    return f'<span class="{verdict}">{difference}</span> <small>{duel["clips_better"]}/{duel["clips"]}</small>'


def speed_section(report: dict[str, Any]) -> str:
    """Real-time factors and memory."""
    place = report["machine"]
    where = place["device"] if place["device"] != "cpu" else place["processor"]
    threads = place["torch_threads"]
    keys = ("encode", "decode", "total", "total_cpu")
    entries = report["speed"]
    rows = [("own" if e["ours"] else "", [escape(e["what"]), *(number(e[k], 3) for k in keys)]) for e in entries]
    text = f"""<h2>Speed</h2>
<p>Seconds of work for a second of sound, medians over clips; {escape(where)}, {threads}
thread{"s" * (threads != 1)}. CPU total: seconds of the processor, which other work on the machine changes less.
Files: from the bytes of a WAV file to those of a .tok file, and back to samples. Networks with random weights are there
for their times only.</p>
{html_table(["codec", "encode", "decode", "total", "CPU total"], rows)}"""
    if not report["memory"]:
        return text
    weighed = [
        ("", [escape(e["codec"]), *(number(e[k], 0) for k in ("encode_mib", "decode_mib", "gpu_mib"))])
        for e in report["memory"]["codecs"]
    ]
    return f"""{text}
<p>Peak memory of a whole process that codes {escape(report["memory"]["clip"])} once, Python and libraries included;
start-up is one that only reads the clip.</p>
{html_table(["codec", "encode MiB", "decode MiB", "GPU MiB"], weighed)}"""


# ------------------------------------------------------------------------------------------------------------ sounds


def article(exhibit: SoundExhibit) -> str:
    """Players of all versions of a clip, each under its spectrogram."""
    n = round(SHOWN_SECONDS * RATE)
    loudest = float(levels(exhibit.versions[0].x[:n]).max())
    seconds = len(exhibit.versions[0].x) / RATE
    cut = f", its first {SHOWN_SECONDS:g} s" if seconds > SHOWN_SECONDS else ""
    cards = "".join(
        f'<figure class="{v.kind}"><img alt="spectrogram of {escape(v.label)}" src="{picture_uri(v.x[:n], loudest)}">'
        f'<audio controls preload="metadata" src="{sound_uri(v.x[:n])}"></audio>'
        f"<figcaption><b>{escape(v.label)}</b>, {v.kbps:.2f} kbit/s</figcaption></figure>"
        for v in exhibit.versions
    )
    return f"""<article>
<h3>{escape(exhibit.name)} <small>{escape(exhibit.kind)}, {seconds:.1f} s{cut}</small></h3>
<div class="sounds">{cards}</div>
</article>
"""


def sound_uri(x: Mono) -> str:
    """16-bit FLAC inside an address."""
    buffer = io.BytesIO()
    write_audio(Sound(x[None], RATE), buffer, ".flac", "a player")
    return "data:audio/flac;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture_uri(x: Mono, loudest: float) -> str:
    """The spectrogram as PNG inside an address."""
    buffer = io.BytesIO()
    spectrogram(x, loudest).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
