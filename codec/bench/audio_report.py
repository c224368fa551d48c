"""What `codec bench audio` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .report import new_table
from .sound_metrics import SOUND_METRICS, SoundMetric

BY_KEY = {metric.key: metric for metric in SOUND_METRICS.values()}
# Short heads of columns, so that a table fits 80 columns.
HEADS = {
    "visqol": "ViS-\nQOL", "mel_distance": "mel\ndist.", "stft_distance": "STFT\ndist.", "pesq": "\nPESQ",
    "stoi": "\nSTOI", "dnsmos": "DNS-\nMOS", "si_sdr": "SI-\nSDR",
}  # fmt: skip
BEATS_NONE = "none"


def print_audio_report(report: dict[str, Any], out: Path) -> None:
    """Means for each kind of clip, what ours beats and where it loses, times and memory."""
    console = Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    for kind in report["kinds"]:
        clips = next(entry["clips"] for entry in report["aggregates"] if entry["kind"] == kind)
        say(f"{kind}: means over {clips} clip{'s' * (clips != 1)}; kbit/s of opus are those of its packets")
        console.print(means_table(report, kind))
        if report["duels"]:
            say(f"{kind}: up to which rate of Opus, in kbit/s, ours is better in the mean")
            console.print(beats_table(report, kind))
        for sentence in losses(report, kind):
            say(sentence)
        say("")
    place = report["machine"]
    where = place["device"] if place["device"] != "cpu" else place["processor"]
    threads = place["torch_threads"]
    say(f"seconds of work for a second of sound, medians; {where}, {threads} thread{'s' * (threads != 1)}")
    console.print(speed_table(report))
    if report["memory"]:
        say(f"peak memory of processes that code {report['memory']['clip']}")
        console.print(memory_table(report))
    for note in report["notes"]:
        say(f"note: {note}")
    for reason in report["skipped"]:
        say(f"left out: {reason}")
    say(f"results.csv, results.json and index.html are in {out}")


def metrics_of(report: dict[str, Any], kind: str) -> list[SoundMetric]:
    """Those that were measured on this kind of clip."""
    rows = [entry for entry in report["aggregates"] if entry["kind"] == kind]
    return [BY_KEY[key] for key in report["metrics"] if any(entry[key] is not None for entry in rows)]


def means_table(report: dict[str, Any], kind: str) -> Table:
    """Every codec at each of its rates."""
    metrics = metrics_of(report, kind)
    rows = [entry for entry in report["aggregates"] if entry["kind"] == kind]
    table = new_table("", "\ncodec", "\nkbit/s", "file\nkbit/s", "\nsaved", *(HEADS[m.key] for m in metrics))
    for i, entry in enumerate(rows):
        if i and entry["codec"] != rows[i - 1]["codec"]:
            table.add_section()
        cells = [f"{entry['kbps']:.2f}", f"{entry['file_kbps']:.2f}"]
        cells.append("-" if entry["saved"] is None else f"{entry['saved']:.0%}")
        cells += ["-" if entry[m.key] is None else f"{entry[m.key]:.{m.digits}f}" for m in metrics]
        table.add_row(f"{entry['codec']} {entry['asked_kbps']:g}", *cells)
    return table


def beaten(report: dict[str, Any], kind: str, kbps: float, metric: str) -> dict[str, Any] | None:
    """The highest rate of Opus that ours at ``kbps`` is better than, and than all rates below it, in the mean.

    Returns: the entry of "duels" for it; None if Opus is not worse at its lowest rate either.
    """
    found = None
    for duel in duels_of(report, kind, kbps, metric):
        if not duel["better"]:
            break
        found = duel
    return found


def duels_of(report: dict[str, Any], kind: str, kbps: float, metric: str) -> list[dict[str, Any]]:
    """By the rate of Opus, rising."""
    found = [d for d in report["duels"] if (d["kind"], d["kbps"], d["metric"]) == (kind, kbps, metric)]
    return sorted(found, key=lambda duel: duel["against_kbps"])


def our_rates(report: dict[str, Any], kind: str) -> list[float]:
    return [e["asked_kbps"] for e in report["aggregates"] if e["ours"] and e["kind"] == kind]


def beats_table(report: dict[str, Any], kind: str) -> Table:
    """For each of our rates and each metric, up to which rate Opus is worse."""
    metrics = metrics_of(report, kind)
    table = new_table("", "\nours, kbit/s", *(HEADS[m.key] for m in metrics))
    for rate in our_rates(report, kind):
        table.add_row(f"{rate:g}", *(beats_text(report, kind, rate, m.key) for m in metrics))
    return table


def beats_text(report: dict[str, Any], kind: str, kbps: float, metric: str) -> str:
    best = beaten(report, kind, kbps, metric)
    return BEATS_NONE if best is None else f"{best['against_kbps']:g}"


def losses(report: dict[str, Any], kind: str) -> list[str]:
    """Sentences that say by which metrics ours is better and worse, and on how many clips: each of our rates against
    the rates of Opus that are two to three times as high, or against the next one if there are none."""
    found = []
    for rate in our_rates(report, kind):
        higher = [r for r in against_rates(report, kind) if r >= 2 * rate]
        for against in [r for r in higher if r <= 3 * rate] or higher[:1]:
            wins: list[str] = []
            defeats: list[str] = []
            for metric in metrics_of(report, kind):
                for duel in duels_of(report, kind, rate, metric.key):
                    if duel["against_kbps"] == against:
                        text = f"{metric.title.partition(',')[0]} ({duel['clips_better']} of {duel['clips']} clips)"
                        (wins if duel["better"] else defeats).append(text)
            found.append(
                f"{kind}, ours at {rate:g} against Opus at {against:g} kbit/s: better by {listed(wins)}; worse by"
                f" {listed(defeats)}"
            )
    return found


def against_rates(report: dict[str, Any], kind: str) -> list[float]:
    return sorted({duel["against_kbps"] for duel in report["duels"] if duel["kind"] == kind})


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"


def speed_table(report: dict[str, Any]) -> Table:
    """Real-time factors, by the clock and of the processor, which other work on the machine changes less."""
    table = new_table("", "\ncodec", "\nencode", "\ndecode", "\ntotal", "CPU\ntotal")
    for entry in report["speed"]:
        cells = [f"{entry[key]:.3f}" for key in ("encode", "decode", "total", "total_cpu")]
        table.add_row(entry["what"], *cells)
    return table


def memory_table(report: dict[str, Any]) -> Table:
    """Peaks of whole processes."""
    table = new_table("", "codec", "encode MiB", "decode MiB", "GPU MiB")
    for entry in report["memory"]["codecs"]:
        gpu = "-" if entry["gpu_mib"] is None else f"{entry['gpu_mib']:.0f}"
        table.add_row(entry["codec"], f"{entry['encode_mib']:.0f}", f"{entry['decode_mib']:.0f}", gpu)
    return table
