"""What `codec bench audio` prints and shows: tables, curves, players and spectrograms."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ...media.audio import Sound, write_audio
from ...metrics.spectrogram import DYNAMICS, Mono, levels, spectrogram
from ..clips import SAMPLE_RATE
from ..metrics import SOUND_METRICS, Metric
from ..page import KBPS, Chart, Exhibit, Page, Version, beside, data_uri, draw, page
from ..report import Cell, Section, Table, memory_section, plural, table_of, where

SHOWN_SECONDS = 10.0  # of a sound on the page
BY_KEY = {metric.key: metric for metric in SOUND_METRICS.values()}
BEATS_NONE = "none"
LEAD = (
    "Rates are real bytes: of ours those of whole files, of peers those of their packets alone, which is kinder to"
    " them; the rate of their files is in the tables. A point of a curve is the mean over the clips of one kind at one"
    " setting. ViSQOL listens in its speech mode to clips of kind speech and in its audio mode to all others; the two"
    " do not compare. PESQ (wideband), STOI and DNSMOS (P.835, overall) are for speech only. Mel and STFT distances:"
    " lower is better."
)
HINT = (
    "Press play on another version while one plays: it goes on at the same place. Spectrograms span 0 to"
    f" {SAMPLE_RATE // 2000} kHz and {DYNAMICS:.0f} dB."
)


def audio_page(report: Mapping[str, Any], exhibits: Sequence[Exhibit], sections: Sequence[Section]) -> str:
    """The page as text. ``report`` is what results.json holds, see :func:`.bench.bench_audio`."""
    effort = f", effort {report['effort']}" if report["effort"] else ""
    title = f"{report['model']}{effort}: {plural(len(report['clips']), 'clip')}"
    by_kind = sorted(exhibits, key=lambda exhibit: report["kinds"].index(exhibit.group))
    sources = report["peers"] | report["baselines"]
    what = Page(title, LEAD, ("Listen", HINT, by_kind), sources, *beside(__file__))
    return page(what, report, chart_of(report), sections)


def chart_of(report: Mapping[str, Any]) -> Chart:
    """A series for each codec, whose points belong to the kinds of clips."""
    entries = [
        entry | {"group": entry["kind"], "setting": f"{entry['asked_kbps']:g} kbit/s"} for entry in report["aggregates"]
    ]
    curves = [
        (codec, "ours" if ours else "peer", [entry for entry in entries if entry["codec"] == codec])
        for codec, ours in dict.fromkeys((entry["codec"], entry["ours"]) for entry in entries)
    ]
    series = draw(curves, "kbps", ("group", "setting", "kbps", *report["metrics"]))
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
    columns = [("codec", "{codec} {asked_kbps:g}"), ("kbit/s", "{kbps:.2f}"), ("file\nkbit/s", "{file_kbps:.2f}")]
    columns += [("saved", "{saved:.1%}"), *(metric.column for metric in metrics)]
    heads = [metric.head for metric in metrics]
    tables = [("", table_of(entries, columns, "codec"))]
    about = (
        "kbit/s of peers are those of their packets. Saved: share of the bits that fixed-length codes would take,"
        " whole files."
    )
    title = f"{kind.capitalize()}: means over {plural(entries[0]['clips'], 'clip')}"
    notes, more = [], []
    for peer in dict.fromkeys(pair["against"] for pair in report["pairwise"]):
        against = {**report, "pairwise": [pair for pair in report["pairwise"] if pair["against"] == peer]}
        name = peer.capitalize()
        beats = [
            ("", [f"{rate:g} kbit/s", *(beats_text(against, kind, rate, metric.key) for metric in metrics)])
            for rate in our_rates(report, kind)
        ]
        better = f"Up to which rate of {name}, in kbit/s, ours is better in the mean"
        tables.append((better, Table(["ours", *heads], beats)))
        notes += losses(against, kind)
        every = Table([f"kbit/s, ours against {name}", *heads], pairwise_rows(against, kind))
        more.append(
            Section(
                f"{kind.capitalize()}: ours against {name}", "The difference, and on how many clips ours is better.",
                [("", every)], page_only="every rate against every rate",
            )
        )  # fmt: skip
    return [Section(title, about, tables, notes), *more]


def metrics_of(report: Mapping[str, Any], kind: str) -> list[Metric]:
    """Those that were measured on this kind of clip."""
    rows = [entry for entry in report["aggregates"] if entry["kind"] == kind]
    return [BY_KEY[key] for key in report["metrics"] if any(entry[key] is not None for entry in rows)]


def comparisons(report: Mapping[str, Any], kind: str, kbps: float, metric: str) -> list[dict[str, Any]]:
    """Entries of "pairwise" against one peer, by its rate, rising."""
    found = [p for p in report["pairwise"] if (p["kind"], p["kbps"], p["metric"]) == (kind, kbps, metric)]
    return sorted(found, key=lambda pair: pair["against_kbps"])


def our_rates(report: Mapping[str, Any], kind: str) -> list[float]:
    return [e["asked_kbps"] for e in report["aggregates"] if e["ours"] and e["kind"] == kind]


def against_rates(report: Mapping[str, Any], kind: str) -> list[float]:
    return sorted({pair["against_kbps"] for pair in report["pairwise"] if pair["kind"] == kind})


def beats_text(report: Mapping[str, Any], kind: str, kbps: float, metric: str) -> str:
    """The highest rate of the peer that ours at ``kbps`` is better than, and than all rates below it, in the mean."""
    best = BEATS_NONE
    for pair in comparisons(report, kind, kbps, metric):
        if not pair["better"]:
            break
        best = f"{pair['against_kbps']:g}"
    return best


def losses(report: Mapping[str, Any], kind: str) -> list[str]:
    """Sentences that say by which metrics ours is better and worse, and on how many clips: each of our rates against
    the rates of the peer that are two to three times as high, or against the next one if there are none."""
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
            peer = report["pairwise"][0]["against"].capitalize()
            what = f"{kind}, ours at {rate:g} against {peer} at {against:g} kbit/s"
            found.append(f"{what}: better by {better}; worse by {worse}")
    return found


def pairwise_rows(report: Mapping[str, Any], kind: str) -> list[tuple[str, Sequence[str | Cell]]]:
    """For each of our rates against each of the peer's, the difference of each metric and on how many clips ours is
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
    about = (
        f"Seconds of work for a second of sound, medians over clips; {where(report)}. CPU total: seconds of the"
        " processor, which other work on the machine changes less. Files: from the bytes of a WAV file to those of a"
        " .tok file, and back to samples. Networks with random weights are there for their times only."
    )
    columns = [("codec", "{what}"), *((key, f"{{{key}:.3f}}") for key in ("encode", "decode", "total"))]
    return Section("Speed", about, [("", table_of(report["speed"], [*columns, ("CPU\ntotal", "{total_cpu:.3f}")]))])


# ------------------------------------------------------------------------------------------------------------ sounds


def players(name: str, kind: str, sounds: Sequence[tuple[str, str, float, Mono]]) -> Exhibit:
    """All versions of a clip, each under its spectrogram. sounds: label, kind, kbit/s and samples, the original first.
    kind: of clip."""
    n = round(SHOWN_SECONDS * SAMPLE_RATE)
    loudest = float(levels(sounds[0][3][:n]).max())
    seconds = len(sounds[0][3]) / SAMPLE_RATE
    cut = f", its first {SHOWN_SECONDS:g} s" if seconds > SHOWN_SECONDS else ""
    versions = []
    for label, of, kbps, x in sounds:
        image = io.BytesIO()
        spectrogram(x[:n], loudest).save(image, "PNG", optimize=True)
        uri = data_uri("image/png", image.getvalue())
        media = f'<img alt="spectrogram of {escape(label)}" src="{uri}">'
        media += f'<audio controls preload="metadata" src="{sound_uri(x[:n])}"></audio>'
        versions.append(Version(label, of, media, f"{kbps:.2f} kbit/s"))
    return Exhibit(name, f"{kind}, {seconds:.1f} s{cut}", versions, "sounds", group=kind)


def sound_uri(x: Mono) -> str:
    """16-bit FLAC inside an address."""
    buffer = io.BytesIO()
    write_audio(Sound(x[None], SAMPLE_RATE), buffer, ".flac", "a player")
    return data_uri("audio/flac", buffer.getvalue())
