"""What `codec bench audio` prints and shows: tables, curves, players and spectrograms."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ...media.audio import Sound, write_audio
from ...metrics.spectrogram import DYNAMICS, Mono, levels, spectrogram
from ..clips import SAMPLE_RATE
from ..metrics import SOUND_METRICS, Metric
from ..page import Chart, Page, colours, data_uri, page, points_of
from ..report import Cell, Section, Table, memory_section, number, plural, where

SHOWN_SECONDS = 10.0  # of a sound on the page
KBPS = {"key": "kbps", "name": "kbit/s", "unit": "kbit/s", "digits": 2}
BY_KEY = {metric.key: metric for metric in SOUND_METRICS.values()}
BEATS_NONE = "none"
LEAD = (
    "Rates are real bytes: of ours those of whole files, of Opus those of its packets alone, which is kinder to it; the"
    " rate of its Ogg files is in the tables. A point of a curve is the mean over the clips of one kind at one setting."
    " ViSQOL listens in its speech mode to clips of kind speech and in its audio mode to all others; the two do not"
    " compare. PESQ (wideband), STOI and DNSMOS (P.835, overall) are for speech only. Mel and STFT distances: lower is"
    " better."
)
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


def audio_page(report: Mapping[str, Any], exhibits: Sequence[SoundExhibit], sections: Sequence[Section]) -> str:
    """The page as text. ``report`` is what results.json holds, see :func:`.bench.bench_audio`."""
    effort = f", effort {report['effort']}" if report["effort"] else ""
    title = f"{report['model']}{effort}: {plural(len(report['clips']), 'clip')}"
    by_kind = sorted(exhibits, key=lambda exhibit: report["kinds"].index(exhibit.kind))
    html = f"""<h2>Listen</h2>
<p>Press play on another version while one plays: it goes on at the same place. Spectrograms span 0 to
{SAMPLE_RATE // 2000} kHz and {DYNAMICS:.0f} dB.</p>
{"".join(article(exhibit) for exhibit in by_kind)}"""
    sources = report["peers"] | report["baselines"]
    return page(Page(title, LEAD, html, sources, STYLE, SCRIPT), report, chart_of(report), sections)


def chart_of(report: Mapping[str, Any]) -> Chart:
    """A series for each codec, whose points belong to the kinds of clips."""
    of_kind = {"ours": colours("ours"), "peer": colours("peer")}
    series = []
    for codec, ours in dict.fromkeys((e["codec"], e["ours"]) for e in report["aggregates"]):
        entries = [
            entry | {"group": entry["kind"], "setting": f"{entry['asked_kbps']:g} kbit/s"}
            for entry in report["aggregates"]
            if entry["codec"] == codec
        ]
        kind = "ours" if ours else "peer"
        points = points_of(entries, "kbps", ("group", "setting", "kbps", *report["metrics"]))
        series.append({"name": codec, "kind": kind, "colour": next(of_kind[kind]), "shown": True, "points": points})
    return Chart(KBPS, [BY_KEY[key] for key in report["metrics"]], series, (16, 32), report["kinds"])


# --------------------------------------------------------------------------------------------------------- sections


def sections(report: Mapping[str, Any]) -> list[Section]:
    """Means for each kind of clip, what ours beats and where it loses, times and memory."""
    found = [section for kind in report["kinds"] for section in kind_sections(report, kind)]
    return [*found, speed_section(report), *memory_section(report)]


def kind_sections(report: Mapping[str, Any], kind: str) -> list[Section]:
    """Means of one kind of clip, and where ours wins and loses."""
    metrics = metrics_of(report, kind)
    entries = [entry for entry in report["aggregates"] if entry["kind"] == kind]
    rows = []
    for i, e in enumerate(entries):
        cells = [f"{e['codec']} {e['asked_kbps']:g}", number(e["kbps"], 2), number(e["file_kbps"], 2)]
        cells += ["-" if e["saved"] is None else f"{e['saved']:.1%}", *(metric.text(e) for metric in metrics)]
        rows.append(("first" if i and entries[i - 1]["codec"] != e["codec"] else "own" * e["ours"], cells))
    heads = [metric.head for metric in metrics]
    tables = [("", Table(["codec", "kbit/s", "file\nkbit/s", "saved", *heads], rows))]
    about = (
        "kbit/s of opus are those of its packets. Saved: share of the bits that fixed-length codes would take, whole"
        " files."
    )
    title = f"{kind.capitalize()}: means over {plural(entries[0]['clips'], 'clip')}"
    if not report["pairwise"]:
        return [Section(title, about, tables)]
    beats = [
        ("", [f"{rate:g} kbit/s", *(beats_text(report, kind, rate, metric.key) for metric in metrics)])
        for rate in our_rates(report, kind)
    ]
    tables.append(("Up to which rate of Opus, in kbit/s, ours is better in the mean", Table(["ours", *heads], beats)))
    every = Table(["kbit/s, ours against Opus", *heads], pairwise_rows(report, kind))
    return [
        Section(title, about, tables, losses(report, kind)),
        Section(
            f"{kind.capitalize()}: ours against Opus", "The difference, and on how many clips ours is better.",
            [("", every)], page_only="every rate against every rate",
        ),
    ]  # fmt: skip


def metrics_of(report: Mapping[str, Any], kind: str) -> list[Metric]:
    """Those that were measured on this kind of clip."""
    rows = [entry for entry in report["aggregates"] if entry["kind"] == kind]
    return [BY_KEY[key] for key in report["metrics"] if any(entry[key] is not None for entry in rows)]


def comparisons(report: Mapping[str, Any], kind: str, kbps: float, metric: str) -> list[dict[str, Any]]:
    """Entries of "pairwise", by the rate of Opus, rising."""
    found = [p for p in report["pairwise"] if (p["kind"], p["kbps"], p["metric"]) == (kind, kbps, metric)]
    return sorted(found, key=lambda pair: pair["against_kbps"])


def our_rates(report: Mapping[str, Any], kind: str) -> list[float]:
    return [e["asked_kbps"] for e in report["aggregates"] if e["ours"] and e["kind"] == kind]


def against_rates(report: Mapping[str, Any], kind: str) -> list[float]:
    return sorted({pair["against_kbps"] for pair in report["pairwise"] if pair["kind"] == kind})


def beats_text(report: Mapping[str, Any], kind: str, kbps: float, metric: str) -> str:
    """The highest rate of Opus that ours at ``kbps`` is better than, and than all rates below it, in the mean."""
    best = BEATS_NONE
    for pair in comparisons(report, kind, kbps, metric):
        if not pair["better"]:
            break
        best = f"{pair['against_kbps']:g}"
    return best


def losses(report: Mapping[str, Any], kind: str) -> list[str]:
    """Sentences that say by which metrics ours is better and worse, and on how many clips: each of our rates against
    the rates of Opus that are two to three times as high, or against the next one if there are none."""
    found = []
    for rate in our_rates(report, kind):
        higher = [r for r in against_rates(report, kind) if r >= 2 * rate]
        for against in [r for r in higher if r <= 3 * rate] or higher[:1]:
            sides: dict[bool, list[str]] = {True: [], False: []}
            for metric in metrics_of(report, kind):
                for pair in comparisons(report, kind, rate, metric.key):
                    if pair["against_kbps"] == against:
                        text = f"{metric.title.partition(',')[0]} ({pair['clips_better']} of {pair['clips']} clips)"
                        sides[pair["better"]].append(text)
            better, worse = (", ".join(sides[side]) or "none" for side in (True, False))
            what = f"{kind}, ours at {rate:g} against Opus at {against:g} kbit/s"
            found.append(f"{what}: better by {better}; worse by {worse}")
    return found


def pairwise_rows(report: Mapping[str, Any], kind: str) -> list[tuple[str, Sequence[str | Cell]]]:
    """For each of our rates against each of Opus's, the difference of each metric and on how many clips ours is
    better."""
    rows: list[tuple[str, Sequence[str | Cell]]] = []
    for rate in our_rates(report, kind):
        for i, against in enumerate(against_rates(report, kind)):
            cells: list[str | Cell] = [f"{rate:g} against {against:g}"]
            for metric in metrics_of(report, kind):
                pairs = comparisons(report, kind, rate, metric.key)
                found = [pair for pair in pairs if pair["against_kbps"] == against]
                cells.append(pair_cell(found[0], metric.digits) if found else "-")
            rows.append(("first" if not i and rows else "", cells))
    return rows


def pair_cell(pair: Mapping[str, Any], digits: int) -> Cell:
    difference = f"{pair['ours'] - pair['theirs']:+.{digits}f}"
    return Cell(difference, f"{pair['clips_better']}/{pair['clips']}", mark="better" if pair["better"] else "worse")


def speed_section(report: Mapping[str, Any]) -> Section:
    """Real-time factors, by the clock and of the processor."""
    keys = ("encode", "decode", "total", "total_cpu")
    rows = [("own" * e["ours"], [e["what"], *(number(e[key], 3) for key in keys)]) for e in report["speed"]]
    about = (
        f"Seconds of work for a second of sound, medians over clips; {where(report)}. CPU total: seconds of the"
        " processor, which other work on the machine changes less. Files: from the bytes of a WAV file to those of a"
        " .tok file, and back to samples. Networks with random weights are there for their times only."
    )
    return Section("Speed", about, [("", Table(["codec", "encode", "decode", "total", "CPU\ntotal"], rows))])


# ------------------------------------------------------------------------------------------------------------ sounds


def article(exhibit: SoundExhibit) -> str:
    """Players of all versions of a clip, each under its spectrogram."""
    n = round(SHOWN_SECONDS * SAMPLE_RATE)
    loudest = float(levels(exhibit.versions[0].x[:n]).max())
    seconds = len(exhibit.versions[0].x) / SAMPLE_RATE
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
    write_audio(Sound(x[None], SAMPLE_RATE), buffer, ".flac", "a player")
    return data_uri("audio/flac", buffer.getvalue())


def picture_uri(x: Mono, loudest: float) -> str:
    """The spectrogram as PNG inside an address."""
    buffer = io.BytesIO()
    spectrogram(x, loudest).save(buffer, "PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())
