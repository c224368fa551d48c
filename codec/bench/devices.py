"""A device beside the CPU: whether each reads the other's files to the same codes, how far apart what they make is, and
how fast they are; for pictures, sounds and videos.

::

    source, setting -> file made on the CPU, file made on the device -> codes of both files on both -> equal or not
    .tok file                                                        -> its codes on both
    CPU's file                                                       -> decoded on both -> seconds; of videos, pixels

Analysis and synthesis are in floats, so a few codes and pixels of the two may differ; what a file decodes to may not.
The SHA-256 over the codes of all files of the CPU is equal on all machines for equal files in equal order.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from rich.console import Console

from ...entropy.hyperprior.walk import Walk
from ...tokenizers.video.motion import VideoMotion
from ..console import number_list
from ..container.fields import HYPERPRIOR, VideoHeader
from ..container.read import TokFile, read_tok
from ..contract import Tokenless
from ..errors import FormatError, UsageError
from ..files import read_bytes
from ..formats import format_of, needs_model
from ..image.exact_segments import is_whole
from ..media.kind import Kind, media_kind
from ..media.read_video import Pixels, VideoReader
from ..models import Model, load_model, model_for
from ..options import DecodeOptions
from ..provenance import origin
from ..registry import FITTED, MODALITY_NAMES
from ..settings import Setting
from ..video.format import AnyVideoFormat
from .clips import SUFFIXES, files_in
from .contender import timed
from .curves import group_by
from .image.ours import batch_decoder, codes_of
from .options import DeviceOptions
from .ours import THINGS, decode, encode, load_ours
from .report import Table, json_file, print_table, said, table_of
from .video.ours import clip_codes, paint, read_codes, same_payloads

if TYPE_CHECKING:
    from ...tokenizers.api import Tokenizer

WARM_UP = 4  # decodings of a size before the clock starts: graphs are captured on the third walk
RUNS = 5  # of which the median is taken
BATCH = 8
DEFAULTS: dict[tuple[str, str], list[Setting | None]] = {  # of modalities and rate controls; else what a model does
    ("image", "quality"): [Setting("quality", quality) for quality in (20.0, 50.0, 80.0)],
    ("audio", "levels"): [Setting("kbps", 3.0)],
}
Codes = Sequence[Any]  # of a file: int64 arrays, one for each segment of a video; None where one cannot be read
Read = Callable[[bytes, str], Codes]  # a file on a device
Row = dict[str, Any]


def folder_kind(folder: Path) -> Kind:
    """What a folder is about: what its first .tok file holds, or if it has none, its first media file."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in files:
        if path.suffix == ".tok":
            return MODALITY_NAMES[read_tok(read_bytes(path)).header.modality]  # type: ignore[return-value]
    suffixes = {suffix for known in SUFFIXES.values() for suffix in known}
    return next((media_kind(path)[0] for path in files if path.suffix.lower() in suffixes), "image")


def median_s(work: Callable[..., object], *arguments: Any, runs: int = RUNS) -> float:
    return statistics.median(timed(work, *arguments).wall_s for _ in range(runs))


class Compared(NamedTuple):
    """Files of one source, read on both devices, each by its maker first."""

    codes: Codes  # of the CPU's file
    other: Codes | None  # of the device's file
    same: bool
    seconds: tuple[float, float]  # for the codes of the CPU's file, on the CPU and on the device


def compare(data: bytes, other: bytes | None, read: Read, device: str) -> Compared:
    """Read the CPU's file, and the device's if there is one, on both."""
    own, theirs = timed(read, data, "cpu"), timed(read, data, device)
    same, made = equal(own.result, theirs.result), None
    if other is not None:
        made = read(other, device)
        same = equal(made, read(other, "cpu")) and same
    return Compared(own.result, made, same, (own.wall_s, theirs.wall_s))


def equal(codes: Codes, read: Codes) -> bool:
    """Whether a reader gives the codes of the file's maker. Raises FormatError if its maker cannot read it."""
    if any(part is None for part in codes):
        raise FormatError("a file is damaged: some of its segments cannot be read")
    return all(b is not None and np.array_equal(a, b) for a, b in zip(codes, read, strict=True))


def bench_devices(options: DeviceOptions) -> dict[str, Any]:
    """Measure, print tables, and return what the JSON file gets.

    Raises: a TokodecError: nothing there, an option of another kind, or a model that is not for the kind.
    """
    folder = options.folder
    kind = folder_kind(folder)
    model, device, tokenizer = load_ours(options.model, kind, options.device)
    settings = chosen_settings(options, tokenizer)
    toks = sorted(folder.glob("*.tok"))[: options.limit] if kind != "audio" and folder.is_dir() else []
    work: list[tuple[Path, Setting | None]] = [(path, None) for path in toks]
    if not toks:
        work = [(path, setting) for path in files_in(folder, THINGS[kind], options.limit) for setting in settings]
    measure = {"image": Pictures, "audio": Sounds, "video": Videos}[kind](model, device)
    digest, rows = hashlib.sha256(), []
    with json_file(options.out) as write:
        for path, setting in work:
            row, codes = measure.row(path, setting)
            for part in codes:
                digest.update(part.astype("<i4").tobytes())
            rows.append(row)
        report: dict[str, Any] = {
            **origin(device), "model": tokenizer.name, "weights": tokenizer.weights_hash,
            "codes_sha256": digest.hexdigest(), "rows": rows,
            **measure.more(),
        }  # fmt: skip
        console = Console()
        title = f"{report['model']} on {report['machine']['device']} beside the CPU"
        for i, table in enumerate(measure.tables(rows)):
            print_table(console, table, title if not i else "")
        for line in [*measure.lines(rows), f"codes SHA-256 {report['codes_sha256']}"]:
            said(console, line)
        write(report)
    return report


def chosen_settings(options: DeviceOptions, tokenizer: Tokenizer) -> list[Setting | None]:
    """What is asked for, else the :data:`DEFAULTS`. Raises UsageError for what does not set the rate of the model."""
    qualities = [] if options.qualities is None else number_list(options.qualities, "qualities")
    given = [Setting("quality", quality) for quality in qualities]
    given += [Setting(name, value) for name in ("kbps", "levels") if (value := getattr(options, name)) is not None]
    if not given:
        return list(DEFAULTS.get((tokenizer.modality, tokenizer.rate_control), [None]))
    format_of(tokenizer).check([setting.control for setting in given], tokenizer.name)
    return [*given]


class Comparison:
    """What the kinds of media have in common: a row for each file. ``model``: name of ours."""

    options: ClassVar[Mapping[str, Any]] = {}  # of encoding

    def __init__(self, model: str, device: str) -> None:
        self.model, self.device = model, device
        self.seen: set[Any] = set()  # sizes

    def read(self, data: bytes, device: str) -> Codes:
        return list(codes_of(data, self.model, device))

    def encode(self, path: Path, setting: Setting | None, device: str) -> bytes:
        return encode(path, self.model, device, setting, **self.options)

    def made(self, path: Path, setting: Setting | None) -> tuple[bytes, bytes | None]:
        """The CPU's file and the device's; a .tok file is taken as it is."""
        if path.suffix.lower() == ".tok":
            return read_bytes(path), None
        return self.encode(path, setting, "cpu"), self.encode(path, setting, self.device)

    def row(self, path: Path, setting: Setting | None) -> tuple[Row, Codes]:
        """Figures of a file, and the codes of the CPU's."""
        raise NotImplementedError

    def more(self) -> dict[str, Any]:
        """What else the report holds."""
        return {}

    def tables(self, rows: Sequence[Row]) -> Iterator[Table]:
        raise NotImplementedError

    def lines(self, rows: Sequence[Row]) -> Iterator[str]:
        """What is said below the tables."""
        yield from ()


class Pictures(Comparison):
    """Pictures at some settings. Seconds are medians of :data:`RUNS`; files of one size and quality also in batches."""

    def __init__(self, model: str, device: str) -> None:
        super().__init__(model, device)
        self.groups: dict[tuple[float, int, int], list[bytes]] = {}

    def read(self, data: bytes, device: str) -> Codes:
        """Codes, or the samples of a lossless file, which has none."""
        if is_whole(read_tok(data)):
            return [decode(data, self.model, device).picture.pixels]
        return super().read(data, device)

    def row(self, path: Path, setting: Setting | None) -> tuple[Row, Codes]:
        data, other = self.made(path, setting)
        tok = read_tok(data)
        header = tok.picture
        extent = header.height, header.width
        if extent not in self.seen:
            median_s(decode, data, self.model, self.device, runs=WARM_UP)
        self.seen.add(extent)
        if header.n_segments == 1 and header.prior == HYPERPRIOR and not is_whole(tok):
            self.groups.setdefault((header.quality / 100, *extent), []).append(data)
        found = compare(data, other, self.read, self.device)
        encode_s = None if other is None else median_s(self.encode, path, setting, self.device)
        return {
            "name": path.name, "setting": setting and setting.label, "height": header.height, "width": header.width,
            "bytes_cpu": len(data), "same_file": None if other is None else other == data, "same_codes": found.same,
            "encode_s": encode_s, "decode_s": median_s(decode, data, self.model, self.device),
            "decode_cpu_s": median_s(decode, data, self.model, "cpu", runs=1),
        }, found.codes  # fmt: skip

    def more(self) -> dict[str, Any]:
        self.batches = []
        for (quality, height, width), members in self.groups.items():
            if len(members) >= BATCH:
                seconds = median_s(batch_decoder(members[:BATCH], self.model, self.device))
                size = {"quality": quality, "height": height, "width": width}
                self.batches.append({**size, "batch": BATCH, "pictures_per_s": BATCH / seconds})
        return {"batches": self.batches}

    def tables(self, rows: Sequence[Row]) -> Iterator[Table]:
        """Means over the files of a setting."""
        entries = []
        for key, group in group_by(rows, "setting"):
            encode, decode, decode_cpu = (
                [1e3 * row[name] for row in group if row[name] is not None]
                for name in ("encode_s", "decode_s", "decode_cpu_s")
            )
            entries.append(
                key | {"files": len(group), "same_codes": sum(row["same_codes"] for row in group),
                       "bpp": statistics.mean(8 * row["bytes_cpu"] / (row["height"] * row["width"]) for row in group),
                       "same_file": sum(row["same_file"] for row in group) if encode else None,
                       "encode": statistics.mean(encode) if encode else None, "decode": statistics.mean(decode),
                       "most": max(decode), "cpu": statistics.mean(decode_cpu)}
            )  # fmt: skip
        columns = [("setting", "{setting}"), ("files", "{files}"), ("bpp", "{bpp:.3f}"), ("same file", "{same_file}")]
        columns += [("same codes", "{same_codes}"), ("encode ms", "{encode:.1f}"), ("decode ms", "{decode:.1f}")]
        yield table_of(entries, [*columns, ("most", "{most:.1f}"), ("CPU ms", "{cpu:.0f}")])

    def lines(self, rows: Sequence[Row]) -> Iterator[str]:
        for entry in self.batches:
            size = f"{entry['width']}x{entry['height']} at quality {entry['quality']:g}"
            yield f"{BATCH} files of {size}, pixels in one batch: {entry['pictures_per_s']:.0f} pictures/s"


class Sounds(Comparison):
    """Sounds at a rate."""

    def row(self, path: Path, setting: Setting | None) -> tuple[Row, Codes]:
        data, other = self.made(path, setting)
        assert other is not None
        encode_s = timed(self.encode, path, setting, self.device).wall_s
        found = compare(data, other, self.read, self.device)
        assert found.other is not None
        decoded = timed(decode, data, self.model, self.device)
        sound = decoded.result.sound
        alike = sum(
            int((a[: len(b)] == b[: len(a)]).sum()) for a, b in zip(found.codes, found.other, strict=True)
        )  # near ties of the nets may fall the other way; the size of a file may have room for other levels
        return {
            "name": path.name, "seconds": sound.samples.shape[1] / sound.sample_rate, "bytes_cpu": len(data),
            "same_codes": found.same, "codes": sum(part.size for part in found.codes), "analysed_alike": alike,
            "encode_s": encode_s, "decode_s": decoded.wall_s,
        }, found.codes  # fmt: skip

    def tables(self, rows: Sequence[Row]) -> Iterator[Table]:
        total = {key: sum(row[key] for row in rows) for key in rows[0] if key != "name"}
        total |= {key: total[key] / total["seconds"] for key in ("encode_s", "decode_s")}
        total |= {"files": len(rows), "kbps": 8e-3 * total["bytes_cpu"] / total["seconds"]}
        columns = [("files", "{files}"), ("same codes", "{same_codes}"), ("kbit/s", "{kbps:.3f}")]
        columns += [("analysed alike", "{analysed_alike} of {codes}"), ("encode, of real time", "{encode_s:.4f}")]
        yield table_of([total], [*columns, ("decode", "{decode_s:.4f}")])


class Videos(Comparison):
    """Clips at some settings. The first of every size is measured twice, and the first time thrown away: GPUs choose
    their kernels then. The codes of files that are no tokens outside of them are what their entropy models give."""

    options: ClassVar[Mapping[str, Any]] = {"sound": False}

    def __init__(self, model: str, device: str) -> None:
        super().__init__(model, device)
        self.wing = format_of(load_model(model, device).tokenizer)

    def read(self, data: bytes, device: str) -> Codes:
        tok = read_tok(data)
        model = model_for(tok.header, self.model, device)
        if not isinstance(model.tokenizer, VideoMotion):
            return [] if isinstance(self.wing, Tokenless) else read_codes(tok, model)
        with decompressed(model.tokenizer) as codes:
            for segment in self.frames_of(tok, model):
                for _ in segment:
                    pass
        return codes

    def row(self, path: Path, setting: Setting | None) -> tuple[Row, Codes]:
        row, codes = self.measure(path, setting)
        if (row["height"], row["width"]) not in self.seen:
            self.seen.add((row["height"], row["width"]))
            row, codes = self.measure(path, setting)
        return row, codes

    def measure(self, path: Path, setting: Setting | None) -> tuple[Row, Codes]:
        encode_s: tuple[float | None, float | None] = (None, None)
        other: bytes | None = None
        if path.suffix.lower() == ".tok":
            data = read_bytes(path)
        else:
            own, theirs = (timed(self.encode, path, setting, on) for on in ("cpu", self.device))
            data, other, encode_s = own.result, theirs.result, (own.wall_s, theirs.wall_s)
        header = read_tok(data).video
        if not needs_model(header):
            raise UsageError(f"{path}: a file of {FITTED} has no codes that devices could read differently")
        models = [model_for(header, self.model, on) for on in ("cpu", self.device)]
        found = compare(data, other, self.read, self.device)
        made = None if other is None else {"same_file": data == other}
        largest, other_pixels, nets_s = compare_frames(
            [self.shown(data, found.codes, model) for model in models], header
        )
        row = {
            "name": path.name, "setting": setting and setting.label, "height": header.height, "width": header.width,
            "frames": header.frames, "segments": header.n_segments, "bytes_cpu": len(data), "largest": largest,
            "other_pixels": other_pixels, "made": made,
            **dict.fromkeys(("same_codes", "same_bytes", "codes")),
        }  # fmt: skip
        apart = isinstance(self.wing, Tokenless)  # what is shown comes with the codes, not after them
        for i, where in enumerate(("cpu", "device")):
            row[where] = {"encode": encode_s[i], "entropy": 0.0 if apart else found.seconds[i], "nets": nets_s[i]}
        if apart:
            row["same_codes"] = found.same if found.codes else None
        elif found.codes:
            row |= self.compare_codes(path, data, other, found, models)
        return row, found.codes

    def compare_codes(
        self, path: Path, data: bytes, other: bytes | None, found: Compared, models: Sequence[Model]
    ) -> Row:
        """What there is to say of codes ``[k, t, h, w]``, segment by segment."""
        same_bytes, made = all(same_payloads(read_tok(data), found.codes, model) for model in models), None
        if other is not None:
            assert found.other is not None
            same_bytes &= all(same_payloads(read_tok(other), found.other, model) for model in reversed(models))
            apart = [(a != b).sum((1, 2, 3)) for a, b in zip(found.codes, found.other, strict=True)]
            first = timed(read_frames, path, read_tok(data).video.segment)
            whole = [
                np.array_equal(clip_codes(first.result, model, len(codes[0])), codes[0])
                for model, codes in zip(models, (found.codes, found.other), strict=True)
            ]
            made = {
                "same_file": data == other, "other_codes": np.sum(apart, axis=0).tolist(), "whole_cpu": whole[0],
                "whole_device": whole[1], "read_s": first.wall_s,
            }  # fmt: skip
        sizes = range(max(map(len, found.codes)))  # segments may have different numbers of levels
        codes = [sum(part[k].size for part in found.codes if k < len(part)) for k in sizes]
        return {"same_codes": found.same, "same_bytes": same_bytes, "codes": codes, "made": made}

    def shown(self, data: bytes, codes: Codes, model: Model) -> Iterator[Pixels]:
        """Frames ``[n, H, W, 3]`` of each segment, maybe with some that only fill its last cell. Raises FormatError."""
        tok = read_tok(data)
        if not isinstance(self.wing, Tokenless):
            yield from (paint(part, model, tok.video.height, tok.video.width) for part in codes)
            return
        for segment in self.frames_of(tok, model):
            yield np.stack(list(segment))
            if tok.problems:
                raise FormatError(f"on {model.tokenizer.device}: {tok.problems[0]}")

    def frames_of(self, tok: TokFile, model: Model) -> Iterator[Iterator[Pixels]]:
        """Frames ``[H, W, 3]`` of each segment."""
        assert isinstance(self.wing, AnyVideoFormat)
        return map(self.wing.frames_of(tok, model, DecodeOptions()), range(tok.video.n_segments))

    def tables(self, rows: Sequence[Row]) -> Iterator[Table]:
        """A line for every clip, and the speed of both devices over all of them."""
        entries = []
        for row in rows:
            made, differ, whole = row["made"], None, None
            if made is not None and row["codes"]:
                differ = sum(made["other_codes"]) / sum(row["codes"])
                whole = yes(made["whole_cpu"] and made["whole_device"])
            words = {key: yes(row[key]) for key in ("same_codes", "same_bytes")}
            entries.append(row | {"differ": differ, "whole": whole} | words)
        columns = [("clip", "{name}"), ("frames", "{frames}"), ("same codes", "{same_codes}")]
        columns += [("same bytes", "{same_bytes}"), ("other codes", "{differ:.3%}")]
        columns += [("other pixels", "{other_pixels:.3%}"), ("most", "{largest}"), ("as a whole", "{whole}")]
        yield table_of(entries, columns)
        frames, speeds = sum(row["frames"] for row in rows), []
        for where in ("cpu", "device"):
            total = {key: sum(row[where][key] or 0.0 for row in rows) for key in ("encode", "entropy", "nets")}
            total["decode"] = total["entropy"] + total["nets"]
            speeds.append({"where": where} | {key: frames / s if s else None for key, s in total.items()})
        columns = [("frames a second", "{where}"), ("encode", "{encode:.1f}"), ("decode", "{decode:.1f}")]
        yield table_of(speeds, [*columns, ("entropy model", "{entropy:.1f}"), ("nets", "{nets:.1f}")])

    def lines(self, rows: Sequence[Row]) -> Iterator[str]:
        both = [(sum(row["made"]["other_codes"]), sum(row["codes"])) for row in rows if row["made"] and row["codes"]]
        if both:
            differ, codes = (sum(column) for column in zip(*both, strict=True))
            yield f"{differ} of {codes} codes ({differ / codes:.4%}) are others in files made on the device"


@contextmanager
def decompressed(model: VideoMotion) -> Iterator[list[Any]]:
    """A list of all codes ``[c, h, w]`` that the entropy models of a model decode within, hyper latents first."""
    codes: list[Any] = []

    def kept(decompress: Callable[..., Walk]) -> Callable[..., Walk]:
        def work(*arguments: Any) -> Walk:
            walk = decompress(*arguments)
            codes.extend((walk.z, walk.codes))
            return walk

        return work

    priors: list[Any] = [*model.priors, model.still.entropy]
    for prior in priors:
        prior.decompress = kept(prior.decompress)
    try:
        yield codes
    finally:
        for prior in priors:
            del prior.decompress


def read_frames(path: Path, first: int) -> list[Pixels]:
    """Read all frames of a video, and keep the first ones."""
    kept: list[Pixels] = []
    with VideoReader(path, str(path)) as reader:
        for frame in reader:
            if len(kept) < first:
                kept.append(frame.pixels)
    return kept


def compare_frames(shown: Sequence[Iterator[Pixels]], header: VideoHeader) -> tuple[int, float, list[float]]:
    """Largest difference of samples of 8 bits between the frames of two devices, segment by segment, share of pixels
    that differ, and the seconds of both."""
    largest, differ, seconds = 0, 0, [0.0, 0.0]
    for begin, end in map(header.segment_span, range(header.n_segments)):
        painted = [timed(next, frames) for frames in shown]
        seconds = [total + made.wall_s for total, made in zip(seconds, painted, strict=True)]
        a, b = (made.result for made in painted)
        for x, y in zip(a[: end - begin], b, strict=False):
            apart = np.abs(x.astype(np.int16) - y)
            largest = max(largest, int(apart.max()))
            differ += int(apart.any(2).sum())
    return largest, differ / (header.frames * header.height * header.width), seconds


def yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "NO"
