"""Rate and distortion of a picture model beside other codecs: each one's own curve, and all of them at equal bytes.

::

    picture -> RGB -> our file at each setting                -> decoded by every synthesis net -> metrics -> a row each
                   -> each peer's file at each of its settings                       -> decoded -> metrics -> a row
                   -> where our rate control is a few levels: each peer's file, the
                      largest not above ours                                         -> decoded -> metrics -> a row
    rows -> means for each setting -> curves -> BD-rates -> results.csv, results.json, index.html

Sizes are those of whole files. Every codec gets the same 8-bit RGB pixels without alpha and metadata, from memory.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...console import names_in, number_list
from ...errors import MediaError, RateError, UsageError
from ...media.synthetic import synthetic_pictures
from ...metrics.picture import psnr
from ...settings import Setting
from ..clips import Photo, files_in, read_photo
from ..contender import Coded, Contender, results, timed, warm_up
from ..curves import METHOD, Curve, compare, group_by, mean_point, means, places
from ..metrics import KEYS, bench_extra, check_bench_extra, choose_metrics, measure
from ..options import ImageOptions
from ..page import Exhibit, Version
from ..run import Bench, Findings, Row, run
from .compressai import Baseline, check_baselines, load_baseline
from .ours import PhotoCoder, prepare
from .page import image_page, sections, slider, version
from .peers import Peer, PeerSearch, find_peers
from .published import check_is_kodak, load_published

EXHIBITS = 3  # pictures shown on the page
# On it: the first three of these that were asked for and reach our bytes.
SHOWN_PEERS = ("avif", "jxl", "jpeg", "heic", "webp", "jpeg2000", "avif420")
SHOWN_BPP = 0.2  # about so many bits per pixel, where our rate control is a quality
COLUMNS = (  # of results.csv; what does not apply or was not asked for is empty
    "picture", "codec",
    "synthesis",  # our synthesis net; empty for a peer
    "role",  # "curve": a setting of its own; "matched": a peer at our bytes; "speed": only the times mean something
    "levels",  # in our file; for a matched peer, in the file of ours that it is matched with
    "quality", "bytes", "bpp", *KEYS, "encode_s", "decode_s",
    "reached",  # False if the matched peer's file of lowest quality is larger than ours
    "bytes_ratio",  # of the matched peer's file to ours
)  # fmt: skip
# What is averaged over pictures for each number of levels; the rest of a row says which group it belongs to.
MEANS = ("bytes", "bpp", *KEYS, "encode_s", "decode_s", "bytes_ratio")

SYNTHETIC = 48, 3000  # pictures and seed of ``--set synthetic``: training draws from others


def bench_images(options: ImageOptions) -> dict[str, Any]:
    """Measure a model on the pictures of a folder; print tables and write the results, see :func:`~..run.run`.

    Raises: a TokodecError: no picture, an unknown peer, metric or model, a package of an extra missing.
    """
    show = names_in(options.show)
    with ExitStack() as stack:
        folder = options.folder
        if (folder is None) == (options.pictures is None):
            raise UsageError("give a folder with pictures or --set synthetic, and not both")
        if folder is None:
            if options.pictures != "synthetic":
                raise UsageError(f"unknown set of pictures {options.pictures!r}: there is synthetic")
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="tokodec-synthetic-")))
            write_synthetic(folder, *SYNTHETIC)
        return _bench(options, folder, show)


def write_synthetic(folder: Path, n: int, seed: int) -> None:
    """Draw ``n`` pictures of a seed into a folder, as PNG files."""
    for index, (name, pixels) in enumerate(synthetic_pictures(n, seed)):
        Image.fromarray(pixels).save(folder / f"{index:02d}-{name}.png")


def _bench(options: ImageOptions, folder: Path, show: Sequence[str]) -> dict[str, Any]:
    paths = files_in(folder, "pictures", options.limit, show)
    bench = PhotoBench(options, paths, show)
    return run(bench, paths, options.out, memory=options.memory, threads=options.threads)


class PhotoBench(Bench):
    """What pictures add to the runner."""

    things = "pictures"
    memory_clip = "picture"
    reader = ("clips:read_photo", {})
    sections = staticmethod(sections)
    page = staticmethod(image_page)

    def __init__(self, options: ImageOptions, paths: Sequence[Path], show: Sequence[str]) -> None:
        self.options = options
        self.metrics = choose_metrics(names_in(options.metrics))
        self.keys = [metric.key for metric in self.metrics]
        self.qualities = None if options.qualities is None else number_list(options.qualities, "qualities")
        self.threads = options.threads or torch.get_num_threads()
        self.peers = find_peers(names_in(options.against), self.threads)
        names = [path.name for path in paths]
        self.reused = None if options.reuse is None else load_reused(options.reuse, self.peers, names, self.keys)
        self.timed = check_baselines(names_in(options.compressai))
        if options.published is not None:
            if options.published != "kodak":
                raise UsageError(f"unknown published points {options.published!r}: there are those of kodak")
            check_is_kodak([shape_of(path) for path in paths])
        if self.peers or options.published:
            with bench_extra():
                import bjontegaard  # noqa: F401
        spread = (names[round(i * (len(names) - 1) / max(1, EXHIBITS - 1))] for i in range(EXHIBITS))
        self.shown = set(show or spread)
        self.seen: set[tuple[int, ...]] = set()

    def prepare(self) -> list[Contender]:
        options = self.options
        self.coder = prepare(options.model, options.device, self.qualities, strict=True, effort=options.effort)
        if self.reused is not None and self.coder.by_levels:
            raise UsageError(f"peers are matched with every file of {self.coder.name}: curves cannot be reused")
        self.device = self.coder.device
        more = names_in(options.also)
        self.others = [prepare(name, options.device, self.qualities, effort=options.effort) for name in more]
        check_bench_extra(self.device, self.keys)
        self.learned: list[Baseline] = [load_baseline(name, self.device) for name in self.timed]
        return [self.coder, *self.peers, *self.learned]

    def read(self, path: Path) -> Photo:
        return read_photo(path)

    def facts(self, clip: Photo) -> tuple[str, str]:
        return clip.name, f"{clip.x.shape[1]} x {clip.x.shape[0]}"

    def measure(self, clip: Photo, notes: list[str]) -> tuple[list[Row], Exhibit | None]:
        if self.device.startswith("cuda") and clip.x.shape not in self.seen:
            warm_up(clip, [self.coder, *self.others, *self.learned], 3)
        self.seen.add(clip.x.shape)
        searches = [] if self.reused else [PeerSearch(peer, clip) for peer in self.peers]
        files: dict[Setting, Coded] = {}
        rows = list(picture_rows(clip, self.coder, searches, self.keys, files))
        for other in self.others:
            rows += picture_rows(clip, other, [], self.keys)
        for result in results(clip, self.learned, notes):  # only their times mean something
            rows.append(row(clip, codec=result.codec.name, synthesis="", role="speed", **result.seconds))
        shown = exhibit(clip, self.coder, searches, files, self.others) if clip.name in self.shown else None
        return rows, shown

    def report(self, found: Findings) -> dict[str, Any]:
        curves = mean_curves(found.rows, [self.coder, *self.others])
        curves += [] if self.reused is None else self.reused.curves
        source = load_published() if self.options.published else None
        curves += [] if source is None else published_curves(source["curves"])
        comparisons = compare(curves)
        return {
            "model": self.coder.name,
            "also": [other.name for other in self.others],
            "pictures": found.clips,
            "effort": self.options.effort,
            "metrics": self.keys,
            "aggregates": aggregate(found.rows) if self.coder.by_levels else [],
            "speed": speed(found.rows),
            "peers": {peer.name: peer.described for peer in self.peers},
            "reused": None if self.reused is None else self.reused.source,
            "compressai": dict.fromkeys(self.timed, Baseline.described),
            "published": None if source is None else source["source"],
            "curves": [asdict(curve) for curve in curves],
            "bd_rate": {"package": "bjontegaard", "method": METHOD, "pairs": comparisons},
            "places": places(comparisons),
        }


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


# -------------------------------------------------------------------------------------------------------------- rows


def row(clip: Photo, **values: Any) -> Row:
    """A line of results.csv. Bits per pixel follow from the bytes."""
    size = values.get("bytes")
    return dict.fromkeys(COLUMNS) | {"picture": clip.name, "bpp": size and 8 * size / clip.pixels} | values


def picture_rows(
    clip: Photo,
    coder: PhotoCoder,
    searches: Sequence[PeerSearch],
    keys: Sequence[str],
    files: dict[Setting, Coded] | None = None,
) -> Iterator[Row]:
    """Rows of one picture: ours at every setting by every synthesis net, each with the peers matched to it if the rate
    control is levels; then the peers at their own settings. Our files are left in ``files``."""

    @functools.cache
    def peer_fields(search: PeerSearch, quality: int) -> dict[str, Any]:
        """The fields of a peer's row that depend on its file only, measured once for each file."""
        encoded = search.encode(quality)
        decoded = timed(search.peer.decode, encoded.result)
        fields = {"codec": search.peer.name, "synthesis": "", "quality": quality, "bytes": encoded.result.size}
        fields |= {"encode_s": encoded.wall_s, "decode_s": decoded.wall_s}
        return fields | measure(clip.x, decoded.result, keys, coder.device)

    for result in results(clip, [coder], []):
        setting, size = result.setting, result.encoded.result.size
        if files is not None:
            files[setting] = result.encoded.result
        yield row(
            clip, codec=coder.name, synthesis=result.variant, role="curve", bytes=size, reached=True, bytes_ratio=1.0,
            **setting.rate, **result.seconds, **measure(clip.x, result.decoded.result, keys, coder.device),
        )  # fmt: skip
        if not coder.by_levels or result.variant != coder.variants[-1]:
            continue
        for search in searches:
            quality, reached = search.nearest(size)
            fields = {"bytes_ratio": search.size(quality) / size, "reached": reached, **peer_fields(search, quality)}
            yield row(clip, role="matched", levels=int(setting.value), **fields)
    for search in searches:
        for quality in search.peer.curve:
            yield row(clip, role="curve", **peer_fields(search, quality))


def exhibit(
    clip: Photo,
    coder: PhotoCoder,
    searches: Sequence[PeerSearch],
    ours: Mapping[Setting, Coded],
    others: Sequence[PhotoCoder] = (),
) -> Exhibit:
    """What the page shows of a picture: the original, ours by every synthesis net, then at our bytes the other models
    with a quality and up to three peers.

    Args: ours: our files by setting, from few bytes to many.

    The size is that of our file at the fewest levels that the first of :data:`SHOWN_PEERS` can reach, or, where the
    rate control is a quality, of our file nearest to :data:`SHOWN_BPP` that it can reach; our largest file if there is
    none. Then it is shown with its smallest file, where no other peer gets there either.
    """
    wanted = sorted(searches, key=lambda search: SHOWN_PEERS.index(search.peer.name))
    files = list(ours.items())
    if not coder.by_levels:
        goal = SHOWN_BPP * clip.pixels / 8
        files.sort(key=lambda pair: abs(math.log(pair[1].size / goal)))
    largest = max(files, key=lambda pair: pair[1].size)
    setting, coded = next((pair for pair in files if not wanted or wanted[0].nearest(pair[1].size)[1]), largest)
    size = coded.size
    shown = [search for search in wanted if search.nearest(size)[1]][:3] or wanted[:1]

    def by(label: str, kind: str, coded: Coded, x_hat: np.ndarray) -> Version:
        return version(label, kind, coded.size, psnr(clip.x, x_hat), x_hat)

    versions = [version("original", "original", clip.source, None, clip.x)]
    for net in reversed(coder.variants):
        versions.append(by(f"{coder.name} {net}".strip(), "ours", coded, coder.decode(coded, net)))
    for other in others:
        if not other.by_levels:
            try:
                same = other.encode(clip, Setting("size", size))
            except RateError:  # its smallest file is larger
                continue
            versions.append(by(other.name, "ours", same, other.decode(same, other.variants[0])))
    for search in shown:
        quality, reached = search.nearest(size)
        file = search.encode(quality).result
        label = search.peer.name.upper() + ("" if reached else ", its smallest file")
        versions.append(by(label, "peer", file, search.peer.decode(file)))
    return slider(clip.name, clip.x.shape[:2], setting.label, versions)


# ------------------------------------------------------------------------------------------------------------- means


def mean_curves(rows: Sequence[Row], coders: Sequence[PhotoCoder]) -> list[Curve]:
    """The rows of settings of their own as one curve of means for each codec and synthesis net, ours first."""
    names = {coder.name for coder in coders}
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for own in rows:
        if own["role"] == "curve":
            control = "quality" if own["levels"] is None else "levels"
            settings = groups.setdefault((own["codec"], own["synthesis"]), {})
            settings.setdefault(Setting(control, own[control]).label, []).append(own)
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
    curves = []
    for entry in found:
        names = [key for key in ("bpp", "psnr", "ms_ssim_db") if key in entry]
        points = [dict(zip(names, values, strict=True)) for values in zip(*(entry[n] for n in names), strict=True)]
        curves.append(Curve(entry["name"], "published", points))
    return curves


def aggregate(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over pictures for each number of levels of our file: ours by each synthesis net, and the peers matched.

    A metric that some pictures are too small for is averaged over the others, and None if there are none.
    """
    groups = group_by((own for own in rows if own["levels"] is not None), "codec", "synthesis", "levels")
    return [
        key | {"pictures": len(group), "reached": sum(bool(own["reached"]) for own in group)} | means(group, MEANS)
        for key, group in groups
    ]


def speed(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Median seconds for one picture over pictures and settings, for each codec and synthesis net."""
    groups = group_by((own for own in rows if own["role"] != "matched"), "codec", "synthesis", "role")
    return [
        {
            "codec": key["codec"], "synthesis": key["synthesis"], "random_weights": key["role"] == "speed",
            "files": len(group), **{name: float(np.median([own[name] for own in group]))
                                    for name in ("encode_s", "decode_s")},
        }
        for key, group in groups
    ]  # fmt: skip
