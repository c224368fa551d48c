"""Rate and distortion of a picture model beside other codecs: each one's own curve, and all of them at equal bytes.

::

    picture -> RGB -> our file at each setting of our dial -> decoded by every synthesis net    -> metrics -> a row each
                   -> each peer's file at each setting of its own                    -> decoded -> metrics -> a row
                   -> where our dial is a few levels: each peer's file, the largest
                      not above ours                                                 -> decoded -> metrics -> a row
    rows -> means for each setting -> curves -> BD-rates -> results.csv, results.json, index.html

Sizes are those of whole files. Every codec gets the same 8-bit RGB pixels without alpha and metadata, from memory.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...container.fields import MAX_PIXELS
from ...errors import MediaError, UsageError
from ...media.read_image import read_image
from ...metrics import picture as metrics_picture
from ...provenance import commit, machine, versions
from .. import metrics
from ..curves import METHOD, Curve, compare, mean_point, means, places
from ..inputs import picture_files
from ..memory import weigh
from ..page import Exhibit, Version, page
from ..report import make_folder, print_report, rows_as_csv, write_results
from . import compressai
from .ours import Coder, Setting, decode_ours, encode_ours, prepare, warm_up
from .peers import Peer, PeerSearch, decode_peer, find_peers
from .published import check_is_kodak, load_published

EXHIBITS = 3  # pictures shown on the page
# On it: the first three of these that were asked for and reach our bytes.
SHOWN_PEERS = ("avif", "jxl", "jpeg", "heic", "webp", "jpeg2000", "avif420")
SHOWN_BPP = 0.2  # about so many bits per pixel, where our dial is a quality


@dataclass(frozen=True)
class Row:
    """One picture coded one way; a line of results.csv. What does not apply or was not asked for is None."""

    picture: str
    codec: str  # name of our model, or of the peer
    synthesis: str  # our synthesis net; empty for a peer
    role: str  # "curve": a setting of its own; "matched": a peer at our bytes; "speed": only the times mean something
    levels: int | None  # levels in our file; for a matched peer, in the file of ours that it is matched with
    quality: float | None
    bytes: int | None  # of the whole file
    bpp: float | None
    psnr: float | None
    ms_ssim: float | None
    ssimulacra2: float | None
    feature_distance: float | None
    encode_s: float
    decode_s: float
    reached: bool | None = None  # False if the matched peer's file of lowest quality is larger than ours
    bytes_ratio: float | None = None  # of the matched peer's file to ours


# What is averaged over pictures for each number of levels; the rest of a row says which group it belongs to.
MEANS = (
    "bytes", "bpp", "psnr", "ms_ssim", "ssimulacra2", "feature_distance", "encode_s", "decode_s", "bytes_ratio",
)  # fmt: skip


def bench_images(
    folder: Path,
    out: Path,
    against: list[str],
    model: str | None,
    device: str,
    limit: int | None = None,
    *,
    also: Sequence[str] = (),
    qualities: Sequence[float] | None = None,
    metric_names: Sequence[str] = tuple(metrics.METRICS),
    published: str | None = None,
    baselines: Sequence[str] = (),
    show: Sequence[str] = (),
    effort: int = 0,
    reuse: Path | None = None,
    memory: bool = True,
    threads: int | None = None,
) -> dict[str, Any]:
    """Measure a model on the pictures of a folder; print tables and write the results.

    Args:    folder: pictures directly in it are taken, in the order of their names.
             out: folder for results.csv (a row a picture and setting), results.json (means, BD-rates, settings,
             machine) and index.html; made if missing, files of these names are replaced.
             against: names of peers, see :data:`~.peers.PEERS`.
             model: name, folder or hub id, the default for pictures if None.  device: "auto", "cpu" or "cuda".
             limit: only the first so many pictures.
             also: more models, measured at their own settings and drawn beside the first.
             qualities: 0 to 100, for a model whose rate dial is a quality.
             metric_names: see :data:`~.metrics.METRICS`.
             published: "kodak" to compare with published points too; the pictures must then be those 24.
             baselines: CompressAI models to time, see :data:`~.baselines.MODELS`.
             show: names of pictures for the page's sliders; three of them if empty.
             effort: of our encoder, for models whose rate dial is a quality.
             reuse: results.json of an earlier run on the same pictures, whose curves of the peers are taken.
             memory: weigh each codec in processes of its own, on the first picture.
             threads: of PyTorch and of the peers; what PyTorch has now if None.
    Returns: what results.json holds.
    Raises:  a TokodecError: no picture, an unknown peer, metric or model, a package of an extra missing. A picture that
             cannot be read, or that a peer refuses, is left out and named under "skipped".
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    paths = picture_files(folder, limit)
    keys = metrics.choose_metrics(metric_names)
    missing = set(show) - {path.name for path in paths}
    if missing:
        raise UsageError(f"{min(missing)} is not among the pictures")
    threads = threads or torch.get_num_threads()
    peers = find_peers(against, threads)
    reused = None if reuse is None else load_reused(reuse, peers, [path.name for path in paths], keys)
    timed = compressai.check_baselines(list(baselines))
    if published is not None:
        if published != "kodak":
            raise UsageError(f"unknown published points {published!r}: there are those of kodak")
        check_is_kodak([shape_of(path) for path in paths])
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; the results need a folder")
    if peers or published:
        with metrics.bench_extra():
            import bjontegaard  # noqa: F401
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        coder = prepare(model, device, qualities, strict=True, effort=effort)
        if reused is not None and coder.by_levels:
            raise UsageError(f"peers are matched with every file of {coder.name}: curves cannot be reused")
        others = [prepare(name, device, qualities, effort=effort) for name in also]
        metrics.check_bench_extra(coder.device, keys)
        learned = [compressai.load_baseline(name, coder.device) for name in timed]

        spread = {paths[round(i * (len(paths) - 1) / max(1, EXHIBITS - 1))].name for i in range(EXHIBITS)}
        rows: list[Row] = []
        exhibits: list[Exhibit] = []
        skipped: list[str] = []
        used: list[Path] = []
        seen: set[tuple[int, ...]] = set()
        for path in track(paths, "measuring", console=Console(stderr=True), transient=True):
            try:
                x = metrics_picture.as_rgb(read_image(path, str(path), MAX_PIXELS).pixels)
                if x.shape not in seen:
                    seen.add(x.shape)
                    warm_up_all(x, [coder, *others], learned)
                searches = [] if reused else [PeerSearch(peer, x, threads) for peer in peers]
                files: dict[Setting, bytes] = {}
                found = list(bench_picture(path.name, x, coder, searches, keys, files))
                for other in others:
                    found += bench_picture(path.name, x, other, [], keys)
                found += [time_baseline(path.name, x, baseline) for baseline in learned]
                if path.name in (show or spread):
                    exhibits.append(exhibit(path, x, coder, searches, files, others))
            except MediaError as error:
                skipped.append(str(error))
                continue
            rows += found
            used.append(path)
        if not rows:
            raise MediaError(f"none of the pictures in {folder} can be read; the first: {skipped[0]}")
        weighed = weigh(used[0], threads, coder, peers, learned) if memory else []
        place = machine(coder.device)
    finally:
        torch.set_num_threads(before)

    curves = mean_curves(rows, [coder, *others])
    if reused is not None:
        curves += reused.curves
    report: dict[str, Any] = {
        "model": coder.name,
        "also": [other.name for other in others],
        "pictures": [path.name for path in used],
        "skipped": skipped,
        "effort": effort,
        "metrics": list(keys),
        "aggregates": aggregate(rows) if coder.by_levels else [],
        "speed": speed(rows),
        "memory": {"picture": used[0].name, "codecs": weighed} if memory else None,
        "peers": {peer.name: peer.described for peer in peers},
        "reused": None if reused is None else reused.source,
        "compressai": dict.fromkeys(timed, compressai.LABEL),
        "published": None,
        "machine": place,
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    if published:
        source = load_published()
        report["published"] = source["source"]
        curves += published_curves(source["curves"])
    comparisons = compare(curves)
    report["curves"] = [dataclasses.asdict(curve) for curve in curves]
    report["bd_rate"] = {"package": "bjontegaard", "method": METHOD, "pairs": comparisons}
    report["places"] = places(comparisons)
    make_folder(out)
    write_results(out, rows_as_csv(rows), report, page(report, exhibits))
    print_report(report, out)
    return report


@dataclass(frozen=True)
class Reused:
    """The peers' curves of an earlier run. source: its commit, date and machine."""

    curves: list[Curve]
    source: dict[str, Any]


def load_reused(path: Path, peers: Sequence[Peer], pictures: Sequence[str], keys: Sequence[str]) -> Reused:
    """Curves of the peers from a results.json.

    Raises: UsageError if it is none, or of other pictures, settings or libraries, or lacks a metric.
    """
    try:
        found = json.loads(path.read_text())
        settings, names, curves = found["peers"], found["pictures"], {c["name"]: c["points"] for c in found["curves"]}
        source = {key: found[key] for key in ("commit", "date", "machine")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is no results.json of codec bench image") from error
    if [Path(name).stem for name in names] != [Path(name).stem for name in pictures]:  # any lossless format will do
        raise UsageError(f"{path} was measured on other pictures")
    for peer in peers:
        if settings.get(peer.name) != peer.described or peer.name not in curves:
            raise UsageError(f"{path} has no {peer.name} with the settings and libraries that are here")
        if any(point.get(key) is None for point in curves[peer.name] for key in keys):
            raise UsageError(f"{path} lacks a metric for {peer.name}")
    return Reused([Curve(peer.name, "peer", curves[peer.name]) for peer in peers], source)


def shape_of(path: Path) -> tuple[int, int]:
    """Height and width from a picture's header. Raises MediaError."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise MediaError(f"{path}: not a picture that can be read") from error


def warm_up_all(x: np.ndarray, coders: Sequence[Coder], learned: Sequence[compressai.Baseline]) -> None:
    """Before the first picture of a size, where it matters: GPUs choose and record kernels in the first runs."""
    if coders[0].device == "cuda":
        for coder in coders:
            warm_up(x, coder, 3)
        for baseline in learned:
            compressai.warm_up(x, baseline)


def bench_picture(
    name: str,
    x: np.ndarray,
    coder: Coder,
    searches: list[PeerSearch],
    keys: Sequence[str],
    files: dict[Setting, bytes] | None = None,
) -> Iterator[Row]:
    """Rows of one picture: ours at every setting by every synthesis net, each with the peers matched to it if the dial
    is levels; then the peers at their own settings. Our files are left in ``files``."""
    pixels = x.shape[0] * x.shape[1]
    measured: dict[tuple[str, int], dict[str, Any]] = {}

    def peer_fields(search: PeerSearch, quality: int) -> dict[str, Any]:
        """The fields of a peer's row that depend on its file only, measured once for each file."""
        key = (search.peer.name, quality)
        if key not in measured:
            file = search.encode(quality)
            x_hat, decode_s = decode_peer(file.data)
            measured[key] = {
                "codec": search.peer.name, "synthesis": "", "quality": quality, "bytes": len(file.data),
                "bpp": 8 * len(file.data) / pixels, "encode_s": file.encode_s, "decode_s": decode_s,
                **metrics.measure(x, x_hat, keys, coder.device),
            }  # fmt: skip
        return measured[key]

    for setting in coder.settings:
        data, encode_s = encode_ours(x, coder, setting)
        if files is not None:
            files[setting] = data
        for synthesis in coder.synthesis:
            x_hat, decode_s = decode_ours(data, coder, synthesis)
            yield Row(
                picture=name, codec=coder.name, synthesis=synthesis, role="curve", levels=setting.levels,
                quality=setting.quality, bytes=len(data), bpp=8 * len(data) / pixels, encode_s=encode_s,
                decode_s=decode_s, reached=True, bytes_ratio=1.0, **metrics.measure(x, x_hat, keys, coder.device),
            )  # fmt: skip
        for search in searches if coder.by_levels else ():
            file, reached = search.nearest(len(data))
            yield Row(
                picture=name, role="matched", levels=setting.levels, reached=reached,
                bytes_ratio=len(file.data) / len(data), **peer_fields(search, file.quality),
            )  # fmt: skip
    for search in searches:
        for quality in search.peer.curve:
            yield Row(picture=name, role="curve", levels=None, **peer_fields(search, quality))


def time_baseline(name: str, x: np.ndarray, baseline: compressai.Baseline) -> Row:
    """A row with the times of a network with random weights and nothing else."""
    found, encode_s = baseline.compress(x)
    _, decode_s = baseline.decompress(found, *x.shape[:2])
    nothing = dict.fromkeys(("levels", "quality", "bytes", "bpp", *metrics.METRICS.values()))
    return Row(
        picture=name, codec=baseline.name, synthesis="", role="speed", encode_s=encode_s, decode_s=decode_s, **nothing
    )


def exhibit(
    path: Path,
    x: np.ndarray,
    coder: Coder,
    searches: list[PeerSearch],
    ours: dict[Setting, bytes],
    others: Sequence[Coder] = (),
) -> Exhibit:
    """What the page shows of a picture: the original, ours by every synthesis net, then at our bytes the other models
    with a quality for a dial and up to three peers.

    Args: ours: our files by setting, from few bytes to many.

    The size is that of our file at the fewest levels that the first of :data:`SHOWN_PEERS` can reach, or, where the
    dial is a quality, of our file nearest to :data:`SHOWN_BPP` that it can reach; our largest file if there is none.
    Then it is shown with its smallest file, where no other peer gets there either.
    """
    wanted = sorted(searches, key=lambda search: SHOWN_PEERS.index(search.peer.name))
    files = list(ours.items())
    if not coder.by_levels:
        goal = SHOWN_BPP * x.shape[0] * x.shape[1] / 8
        files.sort(key=lambda pair: abs(math.log(len(pair[1]) / goal)))
    largest = max(files, key=lambda pair: len(pair[1]))
    setting, data = next((pair for pair in files if not wanted or wanted[0].nearest(len(pair[1]))[1]), largest)
    shown = [search for search in wanted if search.nearest(len(data))[1]][:3] or wanted[:1]

    versions = [Version("original", "original", path.stat().st_size, None, x)]
    for synthesis in reversed(coder.synthesis):
        x_hat, _ = decode_ours(data, coder, synthesis)
        versions.append(
            Version(f"{coder.name} {synthesis}".strip(), "ours", len(data), metrics_picture.psnr(x, x_hat), x_hat)
        )
    for other in others:
        if not other.by_levels:
            same, _ = encode_ours(x, other, size=len(data))
            x_hat, _ = decode_ours(same, other, other.synthesis[0])
            versions.append(Version(other.name, "ours", len(same), metrics_picture.psnr(x, x_hat), x_hat))
    for search in shown:
        file, reached = search.nearest(len(data))
        x_hat, _ = decode_peer(file.data)
        label = search.peer.name.upper() + ("" if reached else ", its smallest file")
        versions.append(Version(label, "peer", len(file.data), metrics_picture.psnr(x, x_hat), x_hat))
    return Exhibit(path.name, setting.label, versions)


def mean_curves(rows: Sequence[Row], coders: Sequence[Coder]) -> list[Curve]:
    """The rows of settings of their own as one curve of means for each codec and synthesis net, ours first."""
    names = {coder.name for coder in coders}
    groups: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        if row.role == "curve":
            settings = groups.setdefault((row.codec, row.synthesis), {})
            settings.setdefault(Setting(row.levels, row.quality).label, []).append(dataclasses.asdict(row))
    return [
        Curve(
            f"{codec} {synthesis}".strip(),
            "ours" if codec in names else "peer",
            [mean_point(group, setting) for setting, group in settings.items()],
        )
        for (codec, synthesis), settings in groups.items()
    ]


def published_curves(found: Sequence[dict[str, Any]]) -> list[Curve]:
    """What :func:`~.published.load_published` gives under "curves", as curves."""
    result = []
    for entry in found:
        names = [key for key in ("bpp", "psnr", "ms_ssim_db") if key in entry]
        points = [dict(zip(names, values, strict=True)) for values in zip(*(entry[n] for n in names), strict=True)]
        result.append(Curve(entry["name"], "published", points))
    return result


def aggregate(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over pictures for each number of levels of our file: ours by each synthesis net, and the peers matched.

    A metric that some pictures are too small for is averaged over the others, and None if there are none.
    """
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row.levels is not None:
            groups.setdefault((row.codec, row.synthesis, row.levels), []).append(row)
    result = []
    for (codec, synthesis, levels), group in groups.items():
        entry: dict[str, Any] = {"codec": codec, "synthesis": synthesis, "levels": levels, "pictures": len(group)}
        entry["reached"] = sum(bool(row.reached) for row in group)
        result.append(entry | means([dataclasses.asdict(row) for row in group], MEANS))
    return result


def speed(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Median seconds for one picture over pictures and settings, for each codec and synthesis net."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.role != "matched":
            groups.setdefault((row.codec, row.synthesis, row.role), []).append(row)
    return [
        {
            "codec": codec, "synthesis": synthesis, "random_weights": role == "speed", "files": len(group),
            "encode_s": float(np.median([row.encode_s for row in group])),
            "decode_s": float(np.median([row.decode_s for row in group])),
        }
        for (codec, synthesis, role), group in groups.items()
    ]  # fmt: skip
