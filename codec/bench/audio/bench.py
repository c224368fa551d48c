"""Rate and quality of a sound model beside other codecs, and its speed beside other networks.

::

    clip -> mono, 24 kHz, 16 bits -> our file at each rate -> decoded -> metrics -> a row each
                                  -> each peer at its own rates -> decoded -> metrics -> a row each
                                  -> our nets alone, our nets in chunks of 80 ms, EnCodec, DAC -> seconds -> a row each
    rows -> means for each kind of clip and each rate -> what ours beats and what beats ours
         -> results.csv, results.json, index.html

Rates are real bytes: of ours the whole file, of peers their packets (see :mod:`.peers`). The kind of a clip, which
decides what is averaged and how ViSQOL listens, is the part of its name before the first "_".
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....tokenizers.audio.grvq import AudioGRVQ
from ...console import names_in, number_list
from ...errors import UsageError
from ..clips import SAMPLE_RATE, SPEECH, Clip, files_in, read_clip
from ..contender import Contender, Timed, results, warm_up
from ..curves import group_by, means
from ..metrics import SOUND_METRICS, Metric, choose_sound_metrics, measure_sound
from ..options import AudioOptions
from ..page import Exhibit
from ..report import plural
from ..run import Bench, Findings, Row, run
from .neural import SOUND_BASELINES, find_sound_baselines, load_sound_baseline
from .ours import CHUNK, count_codes, prepare_sound, run_nets, run_stream
from .page import audio_page, players, sections
from .peers import SoundPeer, find_sound_peers

SPEED_KBPS = 3.0  # our rate whose speed is compared, or the nearest to it
WARM_UP = 2 * SAMPLE_RATE  # samples that every codec runs on before the first clip
METRIC_KEYS = tuple(metric.key for metric in SOUND_METRICS.values())
COLUMNS = (  # of results.csv; what does not apply or was not asked for is empty
    "clip",
    "kind",  # of clip, e.g. "speech"
    "codec",  # name of our model, of the peer or of the baseline
    "role",  # "curve"; only times: "nets" (ours without files), "stream" (in chunks), "baseline" (random weights)
    "seconds",  # of the clip
    "encode_s", "decode_s",  # by the clock
    "encode_cpu_s", "decode_cpu_s",  # of the processor
    "asked_kbps",
    "kbps",  # the whole file; of peers their packets
    "file_kbps", "bytes",  # the whole file
    "levels",  # mean levels of a frame in our file
    "saved",  # share of the bits of fixed-length codes that our file does without
    "reached",  # False if our smallest file is above the rate that was asked for
    *METRIC_KEYS,
)  # fmt: skip
# What is averaged over clips; the rest of a row says which group it belongs to.
MEANS = ("kbps", "file_kbps", "bytes", "levels", "saved", *METRIC_KEYS)


def bench_audio(options: AudioOptions) -> dict[str, Any]:
    """Measure a model on the sounds of a folder; print tables and write the results, see :func:`~..run.run`.

    Raises: a TokodecError: no sound, an unknown peer, metric, baseline or model. Metrics and baselines whose package
            is missing are left out and named under "notes".
    """
    show = names_in(options.show)
    paths = files_in(options.folder, "sounds", options.limit, show)
    return run(SoundBench(options, show), paths, options.out, memory=options.memory, threads=options.threads)


class SoundBench(Bench):
    """What sounds add to the runner."""

    things = "sounds"
    sections = staticmethod(sections)
    page = staticmethod(audio_page)

    def __init__(self, options: AudioOptions, show: Sequence[str]) -> None:
        self.options, self.show = options, set(show)
        self.kbps = number_list(options.kbps, "rates")
        if options.seconds is not None and options.seconds <= 0:
            raise UsageError(f"the longest part of a sound must be above 0 seconds, got {options.seconds:g}")
        self.metrics, self.notes = choose_sound_metrics(names_in(options.metrics))
        self.peers = find_sound_peers(names_in(options.against))
        self.timed, notes = find_sound_baselines(names_in(options.baselines))
        self.notes += notes
        self.reader = ("clips:read_clip", {"max_seconds": options.seconds})
        self.kinds: set[str] = set()  # that are on the page

    def prepare(self) -> list[Contender]:
        self.coder = prepare_sound(self.options.model, self.options.device, self.kbps, self.options.effort)
        self.device = self.coder.device
        self.learned = [load_sound_baseline(name, self.device) for name in self.timed]
        for note in self.notes:
            print(f"codec: {note}", file=sys.stderr)
        self.codecs: list[Contender] = [self.coder, *self.peers, *self.learned]
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, WARM_UP).astype(np.float32)
        warm_up(Clip.of("warm-up", noise), self.codecs)
        self.streams = isinstance(self.coder.tokenizer, AudioGRVQ)
        if self.streams:
            run_stream(noise, self.coder, 1)
        return self.codecs

    def read(self, path: Path) -> Clip:
        return read_clip(path, self.options.seconds)

    def facts(self, clip: Clip) -> tuple[str, str]:
        return clip.name, f"{clip.seconds:.1f} s"

    def measure(self, clip: Clip, notes: list[str]) -> tuple[list[Row], Exhibit | None]:
        sounds = [("original", "original", 384.0, clip.x)]
        rows, timings = [], []
        compared = min(self.coder.settings, key=lambda setting: abs(setting.value - SPEED_KBPS)).value
        for result in results(clip, self.codecs, notes):
            codec, rate, coded = result.codec, result.setting.value, result.encoded.result
            times = result.encoded, result.decoded
            if codec.kind == "baseline":
                timings.append(row(clip, codec.name, "baseline", times))
                continue
            size = len(coded.files[0])
            fields: Row = {"asked_kbps": rate, "kbps": 8e-3 * coded.size / clip.seconds, "bytes": size}
            fields["file_kbps"] = 8e-3 * size / clip.seconds
            x_hat = result.decoded.result
            if codec is self.coder:
                codes = count_codes(coded.files[0], self.coder)
                fields |= {"levels": codes.levels, "saved": 1 - 8 * size / codes.bits, "reached": result.reached}
            else:
                assert isinstance(codec, SoundPeer)
                x_hat = codec.align(clip.x, x_hat)
            measured = measure_sound(clip.x, x_hat, clip.kind, self.metrics)
            rows.append(row(clip, codec.name, "curve", times, **fields, **measured))
            label = codec.name if codec is self.coder else codec.name.capitalize()
            sounds.append((f"{label} at {rate:g}", codec.kind, fields["kbps"], x_hat))
        ours = [own for own in rows if own["codec"] == self.coder.name]
        levels = next(max(1, round(own["levels"])) for own in ours if own["asked_kbps"] == compared)
        alone = [
            row(clip, self.coder.name, role, work(clip.x, self.coder, levels), asked_kbps=compared, levels=levels)
            for role, work in (("nets", run_nets), ("stream", run_stream))
            if role == "nets" or self.streams
        ]
        rows[len(ours) : len(ours)] = alone
        shown = clip.name in self.show if self.show else clip.kind not in self.kinds
        self.kinds.add(clip.kind)
        return rows + timings, players(clip.name, clip.kind, sounds) if shown else None

    def report(self, found: Findings) -> dict[str, Any]:
        table = aggregate(found.rows, self.coder.name)
        kinds = {own["kind"] for own in found.rows}
        return {
            "model": self.coder.name,
            "effort": self.options.effort,
            "clips": found.clips,
            "kinds": sorted(kinds, key=lambda kind: (kind != SPEECH, kind)),
            "notes": self.notes + rate_notes(found.rows, self.coder),
            "metrics": [metric.key for metric in self.metrics],
            "aggregates": table,
            "pairwise": compare_pairwise(found.rows, table, self.metrics),
            "speed": speed(found.rows, self.coder.name),
            "peers": {peer.name: peer.described for peer in self.peers},
            "baselines": {name: SOUND_BASELINES[name] for name in self.timed},
        }


def row(clip: Clip, codec: str, role: str, times: tuple[Timed[Any], Timed[Any]], **fields: Any) -> Row:
    """A line of results.csv. times: of encoding and decoding."""
    named: Row = {"clip": clip.name, "kind": clip.kind, "codec": codec, "role": role, "seconds": clip.seconds}
    for step, time in zip(("encode", "decode"), times, strict=True):
        named |= {f"{step}_s": time.wall_s, f"{step}_cpu_s": time.cpu_s}
    return dict.fromkeys(COLUMNS) | named | fields


def aggregate(rows: Sequence[Row], ours: str) -> list[dict[str, Any]]:
    """Means over the clips of a kind at each rate of each codec, ours first."""
    groups = group_by((own for own in rows if own["role"] == "curve"), "kind", "codec", "asked_kbps")
    return [key | {"ours": key["codec"] == ours, "clips": len(group)} | means(group, MEANS) for key, group in groups]


def compare_pairwise(
    rows: Sequence[Row], table: Sequence[Mapping[str, Any]], metrics: Sequence[Metric]
) -> list[dict[str, Any]]:
    """Compare ours at each rate with each peer at each of its, for each kind of clip and each metric.

    Returns: dicts with "kind", "kbps", "against" (the peer), "against_kbps" (both rates as asked for), "metric",
             "ours" and "theirs" (the means), "better" (whether our mean is), "clips_better" of "clips".
    """
    values = {(own["clip"], own["codec"], own["asked_kbps"]): own for own in rows if own["role"] == "curve"}
    found = []
    for mine in (entry for entry in table if entry["ours"]):
        clips = dict.fromkeys(own["clip"] for own in rows if own["kind"] == mine["kind"])
        for theirs in (entry for entry in table if not entry["ours"] and entry["kind"] == mine["kind"]):
            for key, sign in ((metric.key, 1 if metric.higher_is_better else -1) for metric in metrics):
                if mine[key] is None or theirs[key] is None:
                    continue
                pairs = [
                    [values[clip, entry["codec"], entry["asked_kbps"]][key] for entry in (mine, theirs)]
                    for clip in clips
                ]
                both = [(x, y) for x, y in pairs if x is not None and y is not None]
                found.append(
                    {"kind": mine["kind"], "kbps": mine["asked_kbps"], "against": theirs["codec"],
                     "against_kbps": theirs["asked_kbps"], "metric": key, "ours": mine[key], "theirs": theirs[key],
                     "better": sign * mine[key] > sign * theirs[key],
                     "clips_better": sum(sign * x > sign * y for x, y in both), "clips": len(both)}
                )  # fmt: skip
    return found


def speed(rows: Sequence[Row], name: str) -> list[dict[str, Any]]:
    """Median real-time factors over clips: seconds of work for a second of sound. ``name``: of our model.

    Returns: dicts with "what", "ours", "encode", "decode", "total" (by the clock) and "total_cpu" (of the processor,
             which other work on the machine changes less). Files of ours at each rate, its nets, its stream,
             peers at all their rates, the baselines.
    """
    groups: dict[tuple[str, bool], list[Row]] = {}
    for own in rows:
        ours = own["codec"] == name
        rate = f"{own['asked_kbps']:g} kbit/s" if own["asked_kbps"] else ""
        what = {
            "curve": f"{name}, files, {rate}" if ours else own["codec"],
            "nets": f"{name}, nets alone, {rate}",
            "stream": f"{name}, chunks of {1000 * CHUNK // SAMPLE_RATE} ms",
            "baseline": f"{own['codec']} (random weights)",
        }[own["role"]]
        groups.setdefault((what, ours), []).append(own)

    def median(group: list[Row], *names: str) -> float:
        return float(np.median([sum(own[name] for name in names) / own["seconds"] for own in group]))

    return [
        {"what": what, "ours": ours, "encode": median(group, "encode_s"), "decode": median(group, "decode_s"),
         "total": median(group, "encode_s", "decode_s"), "total_cpu": median(group, "encode_cpu_s", "decode_cpu_s")}
        for (what, ours), group in groups.items()
    ]  # fmt: skip


def rate_notes(rows: Sequence[Row], coder: Contender) -> list[str]:
    """Where our smallest file is above the rate that was asked for."""
    found = []
    for rate in (setting.value for setting in coder.settings):
        missed = sum(own["reached"] is False and own["asked_kbps"] == rate for own in rows)
        if missed:
            clips = plural(missed, "clip")
            found.append(f"{rate:g} kbit/s is below our smallest file on {clips}: that file is measured there")
    return found
