"""Rate and quality of a sound model beside Opus, and its speed beside other networks.

::

    clip -> mono, 24 kHz, 16 bits -> our file at each rate -> decoded -> metrics -> a row each
                                  -> Opus at each of its rates -> decoded -> metrics -> a row each
                                  -> our nets alone, our nets in chunks of 80 ms, EnCodec, DAC -> seconds -> a row each
    rows -> means for each kind of clip and each rate -> what ours beats and what beats ours
         -> results.csv, results.json, index.html

Rates are real bytes: of ours the whole file, of Opus its packets (see :mod:`.opus`). The kind of a clip, which decides
what is averaged and how ViSQOL listens, is the part of its name before the first "_".
"""

from __future__ import annotations

import dataclasses
import datetime
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MediaError, RateError, UsageError
from ...provenance import commit, machine, versions
from ..audio_report import print_audio_report
from ..clips import RATE, SPEECH, Clip, Timed, clip_files, read_clip, timed
from ..curves import means
from ..memory import START, weigh_jobs
from ..report import make_folder, rows_as_csv, write_results, write_text
from ..sound_metrics import SOUND_METRICS, SoundMetric, choose_sound_metrics, measure_sound
from . import opus
from .neural import SOUND_BASELINES, SoundBaseline, find_sound_baselines, load_sound_baseline
from .ours import (
    CHUNK,
    KBPS,
    SoundCoder,
    codes_of,
    decode_sound,
    encode_smallest,
    encode_sound,
    prepare_sound,
    run_nets,
    run_stream,
)
from .page import SoundExhibit, SoundVersion, audio_page

SPEED_KBPS = 3.0  # our rate whose speed is compared, or the nearest to it
WARM_UP = 2 * RATE  # samples that every codec runs on before the first clip


@dataclass(frozen=True)
class SoundRow:
    """One clip coded one way; a line of results.csv. What does not apply or was not asked for is None."""

    clip: str
    kind: str  # of clip, e.g. "speech"
    codec: str  # name of our model, of the peer or of the baseline
    role: str  # "curve"; only times: "nets" (ours without files), "stream" (in chunks), "baseline" (random weights)
    seconds: float  # of the clip
    encode_s: float  # by the clock
    decode_s: float
    encode_cpu_s: float  # of the processor
    decode_cpu_s: float
    asked_kbps: float | None = None
    kbps: float | None = None  # the whole file; of Opus its packets
    file_kbps: float | None = None  # the whole file
    bytes: int | None = None  # of the whole file
    levels: float | None = None  # mean levels of a frame in our file
    saved: float | None = None  # share of the bits of fixed-length codes that our file does without
    reached: bool | None = None  # False if our smallest file is above the rate that was asked for
    visqol: float | None = None
    mel_distance: float | None = None
    stft_distance: float | None = None
    pesq: float | None = None
    stoi: float | None = None
    dnsmos: float | None = None
    si_sdr: float | None = None


# What is averaged over clips; the rest of a row says which group it belongs to.
MEANS = ("kbps", "file_kbps", "bytes", "levels", "saved", *(metric.key for metric in SOUND_METRICS.values()))


def bench_audio(
    folder: Path,
    out: Path,
    against: Sequence[str],
    model: str | None,
    device: str,
    limit: int | None = None,
    *,
    kbps: Sequence[float] = KBPS,
    effort: int = 0,
    baselines: Sequence[str] = tuple(SOUND_BASELINES),
    metric_names: Sequence[str] = tuple(SOUND_METRICS),
    show: Sequence[str] = (),
    memory: bool = True,
    threads: int = 1,
    max_seconds: float | None = None,
) -> dict[str, Any]:
    """Measure a model on the sounds of a folder; print tables and write the results.

    Args:    folder: sounds directly in it are taken, in the order of their names.
             out: folder for results.csv (a row a clip and setting, written anew after each clip), results.json (means,
             comparisons, settings, machine) and index.html; made if missing, files of these names are replaced.
             against: "opus", or nothing.
             model: name, folder or hub id, the default for sounds if None.  device: "auto", "cpu" or "cuda".
             limit: only the first so many clips.  max_seconds: only so much of each.
             kbps: rates of ours: each file is the best of at most so many kbit/s.  effort: of our encoder.
             baselines: networks to time, see :data:`~.sound_baselines.SOUND_BASELINES`.
             metric_names: see :data:`~.sound_metrics.SOUND_METRICS`.
             show: names of clips for the page's players; the first of each kind if empty.
             memory: weigh each codec in processes of its own, on the first clip.
             threads: of PyTorch; Opus has one.
    Returns: what results.json holds.
    Raises:  a TokodecError: no sound, an unknown peer, metric, baseline or model. Metrics and baselines whose package
             is missing are left out and named under "notes", sounds that cannot be read under "skipped".
    """
    import torch

    paths = clip_files(folder, limit)
    unknown = set(show) - {path.name for path in paths}
    if unknown:
        raise UsageError(f"{min(unknown)} is not among the sounds")
    if max_seconds is not None and max_seconds <= 0:
        raise UsageError(f"the longest part of a sound must be above 0 seconds, got {max_seconds:g}")
    metrics, notes = choose_sound_metrics(metric_names)
    peers = opus.find_sound_peers(list(against))
    timed_names, more = find_sound_baselines(list(baselines))
    notes += more
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; the results need a folder")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        coder = prepare_sound(model, device, kbps, effort)
        learned = [load_sound_baseline(name, coder.device) for name in timed_names]
        for note in notes:
            print(f"codec: {note}", file=sys.stderr)
        rows: list[SoundRow] = []
        exhibits: list[SoundExhibit] = []
        skipped: list[str] = []
        used: list[Path] = []
        for number, path in enumerate(paths, 1):
            sounds: list[SoundVersion] = []
            try:
                clip = read_clip(path, max_seconds)
                if not used:
                    warm_up(coder, peers, learned)
                print(f"{number} of {len(paths)}: {path.name}, {clip.seconds:.1f} s", file=sys.stderr)
                chosen = path.name in show if show else clip.kind not in {row.kind for row in rows}
                found = list(bench_clip(clip, coder, peers, learned, metrics, sounds.append if chosen else None))
            except MediaError as error:
                skipped.append(str(error))
                continue
            if not used:
                make_folder(out)
            rows += found
            used.append(path)
            if chosen:
                exhibits.append(SoundExhibit(clip.name, clip.kind, [original(clip), *sounds]))
            write_text(out / "results.csv", rows_as_csv(rows))
        if not rows:
            raise MediaError(f"none of the sounds in {folder} can be read; the first: {skipped[0]}")
        weighed = []
        if memory:
            weighed = weigh_jobs(memory_jobs(coder, peers, learned, max_seconds), used[0], threads)
        place = machine(coder.device)
    finally:
        torch.set_num_threads(before)

    table = aggregate(rows, coder)
    report: dict[str, Any] = {
        "model": coder.name,
        "effort": effort,
        "clips": [path.name for path in used],
        "kinds": sorted({row.kind for row in rows}, key=lambda kind: (kind != SPEECH, kind)),
        "skipped": skipped,
        "notes": notes + rate_notes(rows, coder),
        "metrics": [metric.key for metric in metrics],
        "aggregates": table,
        "duels": duels(rows, table, metrics),
        "speed": speed(rows, coder),
        "memory": {"clip": used[0].name, "codecs": weighed} if memory else None,
        "peers": {"opus": opus.settings()} if peers else {},
        "baselines": {name: SOUND_BASELINES[name] for name in timed_names},
        "machine": place,
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_results(out, rows_as_csv(rows), report, audio_page(report, exhibits))
    print_audio_report(report, out)
    return report


def original(clip: Clip) -> SoundVersion:
    return SoundVersion("original", "original", 384.0, clip.x)


def warm_up(coder: SoundCoder, peers: Sequence[str], learned: Sequence[SoundBaseline]) -> None:
    """Run everything once, so that no measured time holds what happens only once."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, WARM_UP).astype(np.float32)
    clip = Clip.of("warm-up", noise)
    decode_sound(encode_smallest(clip.wav, coder).data, coder)
    run_stream(noise, coder, 1)
    if peers:
        opus.decode_opus(opus.encode_opus(noise, opus.KBPS[0]).data)
    for baseline in learned:
        baseline.decode(baseline.encode(noise))


def bench_clip(
    clip: Clip,
    coder: SoundCoder,
    peers: Sequence[str],
    learned: Sequence[SoundBaseline],
    metrics: Sequence[SoundMetric],
    keep: Callable[[SoundVersion], None] | None,
) -> Iterator[SoundRow]:
    """Rows of one clip: ours at each rate, its nets alone and in chunks, Opus at each rate, the baselines. ``keep``
    gets what was decoded."""
    compared = min(coder.kbps, key=lambda rate: abs(rate - SPEED_KBPS))
    levels = 1
    for rate in coder.kbps:
        data, reached, encoded = ours_at(clip, coder, rate)
        decoded = timed(lambda data=data: decode_sound(data, coder))  # type: ignore[misc]
        codes = codes_of(data, coder)
        kbps = 8e-3 * len(data) / clip.seconds
        if rate == compared:
            levels = max(1, round(codes.levels))
        yield row(
            clip, coder.name, "curve", encoded, decoded, asked_kbps=rate, kbps=kbps, file_kbps=kbps, bytes=len(data),
            levels=codes.levels, saved=1 - 8 * len(data) / codes.bits, reached=reached,
            **measure_sound(clip.x, decoded.result, clip.kind, metrics),
        )  # fmt: skip
        if keep:
            keep(SoundVersion(f"{coder.name} at {rate:g}", "ours", kbps, decoded.result))
    yield row(clip, coder.name, "nets", *run_nets(clip.x, coder, levels), asked_kbps=compared, levels=levels)
    yield row(clip, coder.name, "stream", *run_stream(clip.x, coder, levels), asked_kbps=compared, levels=levels)
    for rate in opus.KBPS if peers else ():
        file = timed(lambda rate=rate: opus.encode_opus(clip.x, rate))  # type: ignore[misc]
        sound = timed(lambda file=file: opus.decode_opus(file.result.data))  # type: ignore[misc]
        x_hat = opus.align(clip.x, sound.result)
        kbps = 8e-3 * file.result.packet_bytes / clip.seconds
        size = len(file.result.data)
        yield row(
            clip, "opus", "curve", file, sound, asked_kbps=rate, kbps=kbps, file_kbps=8e-3 * size / clip.seconds,
            bytes=size, **measure_sound(clip.x, x_hat, clip.kind, metrics),
        )  # fmt: skip
        if keep:
            keep(SoundVersion(f"Opus at {rate:g}", "peer", kbps, x_hat))
    for baseline in learned:
        found = timed(lambda baseline=baseline: baseline.encode(clip.x))  # type: ignore[misc]
        back = timed(lambda baseline=baseline, found=found: baseline.decode(found.result))  # type: ignore[misc]
        yield row(clip, baseline.name, "baseline", found, back)


def ours_at(clip: Clip, coder: SoundCoder, rate: float) -> tuple[bytes, bool, Timed[Any]]:
    """Our file at a rate, and True; or the smallest one where that is larger, and False."""
    try:
        encoded = timed(lambda: encode_sound(clip.wav, coder, rate))
        return encoded.result.data, True, encoded
    except RateError:
        encoded = timed(lambda: encode_smallest(clip.wav, coder))
        return encoded.result.data, False, encoded


def row(clip: Clip, codec: str, role: str, encoded: Timed[Any], decoded: Timed[Any], **fields: Any) -> SoundRow:
    seconds = encoded.wall_s, decoded.wall_s, encoded.cpu_s, decoded.cpu_s
    return SoundRow(clip.name, clip.kind, codec, role, clip.seconds, *seconds, **fields)


def aggregate(rows: Sequence[SoundRow], coder: SoundCoder) -> list[dict[str, Any]]:
    """Means over the clips of a kind at each rate of each codec, ours first."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for entry in rows:
        if entry.role == "curve" and entry.asked_kbps is not None:
            groups.setdefault((entry.kind, entry.codec, entry.asked_kbps), []).append(dataclasses.asdict(entry))
    return [
        {"kind": kind, "codec": codec, "ours": codec == coder.name, "asked_kbps": rate, "clips": len(group)}
        | means(group, MEANS)
        for (kind, codec, rate), group in groups.items()
    ]


def duels(
    rows: Sequence[SoundRow], table: Sequence[dict[str, Any]], metrics: Sequence[SoundMetric]
) -> list[dict[str, Any]]:
    """Ours at each rate against Opus at each rate, for each kind of clip and each metric.

    Returns: dicts with "kind", "kbps" and "against_kbps" (as asked for), "metric", "ours" and "theirs" (the means),
             "better" (whether our mean is), "clips_better" of "clips".
    """
    values = {(r.clip, r.codec, r.asked_kbps): dataclasses.asdict(r) for r in rows if r.role == "curve"}
    found = []
    for mine in (entry for entry in table if entry["ours"]):
        for theirs in (entry for entry in table if not entry["ours"] and entry["kind"] == mine["kind"]):
            for metric in metrics:
                a, b = mine[metric.key], theirs[metric.key]
                if a is None or b is None:
                    continue
                sign = 1 if metric.higher_is_better else -1
                pairs = [
                    (values[clip, mine["codec"], mine["asked_kbps"]][metric.key],
                     values[clip, theirs["codec"], theirs["asked_kbps"]][metric.key])
                    for clip in dict.fromkeys(r.clip for r in rows if r.kind == mine["kind"])
                ]  # fmt: skip
                both = [(x, y) for x, y in pairs if x is not None and y is not None]
                found.append(
                    {"kind": mine["kind"], "kbps": mine["asked_kbps"], "against_kbps": theirs["asked_kbps"],
                     "metric": metric.key, "ours": a, "theirs": b, "better": sign * a > sign * b,
                     "clips_better": sum(sign * x > sign * y for x, y in both), "clips": len(both)}
                )  # fmt: skip
    return found


def speed(rows: Sequence[SoundRow], coder: SoundCoder) -> list[dict[str, Any]]:
    """Median real-time factors over clips: seconds of work for a second of sound.

    Returns: dicts with "what", "ours", "encode", "decode", "total" (by the clock) and "total_cpu" (of the processor,
             which other work on the machine changes less). Files of ours at each rate, its nets, its stream,
             Opus at all its rates, the baselines.
    """
    groups: dict[tuple[str, bool], list[SoundRow]] = {}
    for entry in rows:
        ours = entry.codec == coder.name
        rate = f"{entry.asked_kbps:g} kbit/s" if entry.asked_kbps else ""
        what = {
            "curve": f"{coder.name}, files, {rate}" if ours else entry.codec,
            "nets": f"{coder.name}, nets alone, {rate}",
            "stream": f"{coder.name}, chunks of {1000 * CHUNK // RATE} ms",
            "baseline": f"{entry.codec} (random weights)",
        }[entry.role]
        groups.setdefault((what, ours), []).append(entry)

    def median(group: list[SoundRow], *names: str) -> float:
        return float(np.median([sum(getattr(r, name) for name in names) / r.seconds for r in group]))

    return [
        {"what": what, "ours": ours, "encode": median(group, "encode_s"), "decode": median(group, "decode_s"),
         "total": median(group, "encode_s", "decode_s"), "total_cpu": median(group, "encode_cpu_s", "decode_cpu_s")}
        for (what, ours), group in groups.items()
    ]  # fmt: skip


def rate_notes(rows: Sequence[SoundRow], coder: SoundCoder) -> list[str]:
    """Where our smallest file is above the rate that was asked for."""
    found = []
    for rate in coder.kbps:
        missed = sum(r.reached is False and r.asked_kbps == rate for r in rows)
        if missed:
            clips = f"{missed} clip{'s' * (missed != 1)}"
            found.append(f"{rate:g} kbit/s is below our smallest file on {clips}: that file is measured there")
    return found


def memory_jobs(
    coder: SoundCoder, peers: Sequence[str], learned: Sequence[SoundBaseline], max_seconds: float | None
) -> list[dict[str, Any]]:
    """For :func:`~.memory.weigh_jobs`: ours at the largest rate, Opus at its middle one, and the baselines."""
    names = [("start", START), ("ours", coder.name)]
    names += [("peer", name) for name in peers] + [("baseline", baseline.name) for baseline in learned]
    kbps = {"ours": coder.kbps[-1], "peer": opus.KBPS[len(opus.KBPS) // 2]}
    return [
        {"sound": True, "kind": kind, "codec": name, "synthesis": "", "model": coder.model, "kbps": kbps.get(kind),
         "max_seconds": max_seconds, "effort": coder.effort,
         "device": None if kind in ("start", "peer") else coder.device}
        for kind, name in names
    ]  # fmt: skip
