"""Files of strangers there and back: no fault of ours, no length that is off, no colour that is, no wrong refusal.

By hand, it takes an hour: ``python tests/media_corpus.py PACKAGE ... --each 8 --jobs 2 --out results.jsonl``.

Every file is read, compared with what another reader finds (Pillow, libsndfile, FFmpeg's own count), encoded and
decoded with the default models, in a child, so that a signal or a hang is seen. Files over the limits are only read.
Results are appended to ``--out``, and what is in there already is not run again. In the end a table by format, the
refusals by reason and what is wrong are printed; ``codec/media/CORPUS.md`` tells of a run.
"""

from __future__ import annotations

import argparse
import io
import json
import mimetypes
import os
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
import torch
from media_fuzz import outcomes  # type: ignore[import-not-found]
from PIL import Image, ImageOps

from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import decode_file, video_frames
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import TokodecError
from tokodec.codec.image.prepare import prepare
from tokodec.codec.media.audio import AudioReader
from tokodec.codec.media.kind import SUFFIXES_IN, media_kind
from tokodec.codec.media.pillow_guard import pillow_without_limits
from tokodec.codec.media.read_image import read_image
from tokodec.codec.media.read_video import VideoReader
from tokodec.codec.models import load_model
from tokodec.codec.registry import MODALITIES

CELL = 32  # pixels along the edge of what colours are compared of
ROUNDING = 1  # grey levels that a mean may be off by beyond what it is off by in the model's hands
OUTCOMES = ("fine", "noted", "damaged", "refused", "wrong")


@dataclass(frozen=True)
class Limits:
    """What is encoded; larger files are only read. pixels: of a picture.  clip: of all frames.  seconds: of a sound."""

    pixels: int
    clip: int
    seconds: float


@dataclass
class Result:
    """What became of a file.

    Attributes:
        kind: "image", "audio" or "video".  coded: whether it was encoded and decoded, and not only read.
        notes, problems: what the reader said.  refused: why.  faults: what is wrong with us.
        off, own: grey levels that a mean colour is off by at most in what was decoded, and in what the model makes of
            the same samples without files.
    """

    path: str
    kind: str = ""
    coded: bool = False
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    refused: str = ""
    faults: list[str] = field(default_factory=list)
    off: float = 0.0
    own: float = 0.0

    @property
    def outcome(self) -> str:
        said = (self.notes, self.problems, self.refused, self.faults)
        return next((name for name, have in zip(OUTCOMES[:0:-1], said[::-1], strict=True) if have), "fine")


def files(folders: list[Path], each: int) -> Iterator[Path]:
    """Media by their suffixes: of every folder that was given, ``each`` of every suffix, drawn with a fixed seed."""
    for top in folders:
        found: dict[str, list[Path]] = defaultdict(list)
        for here, _, names in os.walk(top):
            for name in names:
                kind = (mimetypes.guess_type(name)[0] or "").split("/")[0]
                if Path(name).suffix.lower() in SUFFIXES_IN or kind in CHECKS:
                    found[Path(name).suffix.lower()].append(Path(here) / name)
        for _, paths in sorted(found.items()):
            yield from sorted(random.Random(0).sample(sorted(paths), len(paths))[:each])


def by_model(kind: str, samples: np.ndarray) -> np.ndarray:
    """What the default model makes of uint8 ``[T, H, W, 3]``, without files: float ``[T, H, W, 3]`` in grey levels.

    T is 1 for a picture.
    """
    model = load_model(MODALITIES[kind].encode_model).tokenizer
    x = torch.from_numpy(samples).permute(3, 0, 1, 2)  # [3, T, H, W]
    x = x[:, 0] if kind == "image" else x
    x_hat = model.decode(model.encode(x[None]))[0].cpu()
    x_hat = x_hat[:, None] if kind == "image" else x_hat
    return 255 * x_hat.permute(1, 2, 3, 0).numpy()


def compare_colours(result: Result, off: float, own: Callable[[], float]) -> None:
    """Note how far colours are off. own: how far they are in the model's hands, asked only if they are off at all."""
    result.off = off
    if off > ROUNDING:
        result.own = own()
    if off > result.own + ROUNDING:
        result.faults.append(f"a colour is off by {off:.1f}, and by {result.own:.1f} of the model's own")


# ----------------------------------------------------------------------------------------------------------- pictures


def cells(pixels: np.ndarray) -> np.ndarray:
    """Mean colours of squares, those at the edges cut off; of the whole picture if it is small."""
    height, width, channels = pixels.shape
    if min(height, width) < CELL:
        return pixels.mean((0, 1))
    whole = pixels[: height // CELL * CELL, : width // CELL * CELL]
    return whole.reshape(height // CELL, CELL, width // CELL, CELL, channels).mean((1, 3))


def seen_by_pillow(path: Path) -> np.ndarray | None:
    """The picture as RGB, None if Pillow does not read it in 8 bits without alpha, and whole."""
    try:
        with pillow_without_limits(), Image.open(path) as im:
            plain = im.mode in ("1", "L", "RGB", "P", "YCbCr") and getattr(im, "n_frames", 1) == 1
            if not plain or im.has_transparency_data:
                return None
            for key in ("xmp", "XML:com.adobe.xmp"):  # whose orientation counts for nobody but Pillow
                im.info.pop(key, None)
            return np.asarray(ImageOps.exif_transpose(im).convert("RGB"))
    except Exception:  # whatever it finds wrong
        return None


def check_picture(path: Path, limits: Limits, result: Result) -> None:
    before = prepare(read_image(path, str(path), 1 << 28))
    result.notes, result.problems = before.notes, before.problems
    other = seen_by_pillow(path)
    if other is not None and not result.problems and before.alpha is None:
        if other.shape[:2] != before.pixels.shape[:2]:
            result.faults.append(f"{before.pixels.shape[:2]} and not {other.shape[:2]} as Pillow finds")
        elif (off := float(np.abs(cells(other) - cells(before.pixels)).max())) > 1:
            result.faults.append(f"a colour differs by {off:.0f} from what Pillow finds")
    if before.pixels.shape[0] * before.pixels.shape[1] > limits.pixels:
        return
    result.coded = True
    after = decode_file(io.BytesIO(encode_file(path).data)).picture
    if after.pixels.shape != before.pixels.shape:
        result.faults.append(f"{before.pixels.shape} became {after.pixels.shape}")
        return

    def error_of(pixels: np.ndarray) -> float:
        return float(np.abs(cells(pixels) - cells(before.pixels)).max())

    def own() -> float:
        rgb = np.broadcast_to(before.pixels, (*before.pixels.shape[:2], 3))
        made = by_model("image", np.ascontiguousarray(rgb)[None])[0]
        return error_of(made.mean(2, keepdims=True) if before.pixels.shape[2] == 1 else made)

    compare_colours(result, error_of(after.pixels), own)
    alphas = [np.empty(0) if picture.alpha is None else picture.alpha for picture in (before, after)]
    if not np.array_equal(alphas[0], alphas[1]):
        result.faults.append("the alpha channel differs")
    for what in ("icc", "exif", "xmp"):
        if getattr(before, what) != getattr(after, what):
            result.faults.append(f"{what} differs")


# --------------------------------------------------------------------------------------------------- sounds and videos


def counted_by_libsndfile(path: Path) -> tuple[int, int] | None:
    """Samples of each channel, and how many may differ. (libmpg123 leaves out what decoders need to begin.)"""
    try:
        with soundfile.SoundFile(path) as file:
            count = 0
            while got := len(file.read(1 << 16)):
                count += got
            return count, 2304 if "MPEG" in file.subtype else file.samplerate // 50
    except (soundfile.LibsndfileError, OSError, ValueError):
        return None


def counted_by_headers(data: bytes) -> int:
    """Samples by headers: the position in the last page of Ogg (RFC 3533, 6), or those of the frames of MPEG audio,
    layer III, that follow each other (ISO/IEC 11172-3, 2.4.1)."""
    if data.startswith(b"OggS"):
        return int.from_bytes(data[data.rfind(b"OggS") + 6 :][:8], "little")
    kbps = [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    low = [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
    at = samples = 0
    while at + 4 <= len(data):
        version, rate, column = data[at + 1] >> 3 & 3, data[at + 2] >> 2 & 3, data[at + 2] >> 4
        header = data[at] == 0xFF and data[at + 1] & 0xE6 == 0xE2 and version != 1 and rate < 3 and 0 < column < 15
        if not header:
            at += 1
            continue
        hertz = (44100, 48000, 32000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
        size = 1152 if version == 3 else 576
        at += size // 8 * 1000 * (kbps if version == 3 else low)[column - 1] // hertz + (data[at + 2] >> 1 & 1)
        samples += size
    return samples


def samples_by_ffmpeg(path: Path) -> int:
    """Samples of each channel that FFmpeg decodes, without any of our rules for times and ends."""
    try:
        with av.open(str(path)) as container:
            return sum(frame.samples for frame in container.decode(audio=0))
    except (av.FFmpegError, ValueError):
        return 0


def check_sound(path: Path, limits: Limits, result: Result) -> None:
    with AudioReader(path, str(path)) as reader:
        length = sum(block.shape[1] for block in reader.blocks())
        rate, result.notes, result.problems = reader.sample_rate, reader.notes, reader.problems
    other = counted_by_libsndfile(path)
    if other is not None and not result.problems and abs(other[0] - length) > other[1]:
        # libsndfile guesses some MP3, cuts some Vorbis, and ends where the last page of a wrong Opus file does
        others = [counted_by_headers(path.read_bytes()), samples_by_ffmpeg(path)]
        off = all(abs(count - length) > other[1] for count in others)
        result.faults += [f"{length} samples, and not {other[0]} as libsndfile finds"] * off
    if not length:
        result.refused = "no samples"
    if not 0 < length <= limits.seconds * rate:
        return
    result.coded = True
    after = decode_file(io.BytesIO(encode_file(path).data)).sound
    if after.sample_rate != rate:
        result.faults.append(f"{rate} Hz became {after.sample_rate}")
    if abs(after.samples.shape[1] - length) > rate // 50:
        result.faults.append(f"{length} samples became {after.samples.shape[1]}")


def counted_by_ffmpeg(path: Path) -> tuple[int, Fraction | None] | None:
    """Frames, and seconds from the first to the last if they say it; None if there are several videos."""
    try:
        with av.open(str(path)) as container:
            if len(container.streams.video) != 1:
                return None
            times = [frame.time for frame in container.decode(video=0)]
        told = [time for time in times if time is not None]
        return len(times), Fraction(max(told) - min(told)) if len(told) == len(times) > 0 else None
    except (av.FFmpegError, ValueError):
        return None


def check_video(path: Path, limits: Limits, result: Result) -> None:
    heard, begin = 0, Fraction(0)
    with VideoReader(path, str(path)) as video:
        means, times, size, kept = [], [], video.height * video.width, []
        for frame in video:
            means.append(frame.pixels.mean((0, 1)))
            times.append(frame.time)
            kept += [frame.pixels] if len(means) * size <= limits.clip else []
        result.notes, result.problems = video.notes, video.problems
        if video.has_sound:
            reader, begin = video.sound()
            with reader:
                heard = sum(block.shape[1] for block in reader.blocks())
                result.notes, result.problems = video.notes + reader.notes, video.problems + reader.problems
    other = counted_by_ffmpeg(path)
    if other is not None and not result.problems:
        if other[0] != len(means):
            result.faults.append(f"{len(means)} frames, and not {other[0]} as FFmpeg finds")
        span = times[-1] - times[0]
        if other[1] is not None and abs(other[1] - span) > Fraction(1, 20):
            result.faults.append(f"{float(span):.2f} s, and not {float(other[1]):.2f} s as FFmpeg finds")
    if len(means) * size > limits.clip:
        return
    result.coded = True
    tok = read_tok(encode_file(path).data)
    after = [pixels.mean((0, 1)) for _, pixels in video_frames(tok)]
    if len(after) != len(means):
        result.faults.append(f"{len(means)} frames became {len(after)}")
        return

    def own() -> float:
        spans = [tok.video.segment_span(segment) for segment in range(tok.video.n_segments)]
        made = np.concatenate([by_model("video", np.stack(kept[a:b])).mean((1, 2)) for a, b in spans])
        return float(np.abs(made - means).max())

    compare_colours(result, float(np.abs(np.array(after) - means).max()), own)
    samples = 0 if tok.track is None else tok.track[0].samples
    if samples != heard and (samples == 0 or begin >= 0):  # what comes before the first frame is left out
        result.faults.append(f"{heard} samples of sound became {samples}")


CHECKS: dict[str, Callable[[Path, Limits, Result], None]] = {
    "image": check_picture, "audio": check_sound, "video": check_video,
}  # fmt: skip


def check(path: Path, limits: Limits) -> Result:
    result = Result(str(path))
    try:
        result.kind, _ = media_kind(path)
        CHECKS[result.kind](path, limits, result)
    except TokodecError as error:
        result.refused = str(error).replace(str(path), "FILE")
        if "\n" in result.refused or "[Errno" in result.refused:
            result.faults.append(f"not one line of words: {error}")
        if result.coded:
            result.faults.append(f"refused after it was read: {error}")
    except Exception as error:  # what this script looks for
        result.faults.append(f"{type(error).__name__}: {error}")
    return result


# ------------------------------------------------------------------------------------------------------------- a run


def report(results: list[Result]) -> Iterator[str]:
    """A table by format, refusals by reason, and what is wrong."""
    formats: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results:
        formats[result.kind, Path(result.path).suffix.lower()].append(result)
    yield f"| kind | suffix | files | {' | '.join(OUTCOMES)} | only read | a colour off by | by the model |"
    yield "| --- " * (6 + len(OUTCOMES)) + "|"
    rows = [*sorted(formats.items()), (("all", ""), results)]
    for (kind, suffix), found in rows:
        counts = Counter(result.outcome for result in found)
        only_read = sum(not result.coded and not result.refused for result in found)
        most = max(found, key=lambda result: result.off)
        numbers = (len(found), *(counts[name] for name in OUTCOMES), only_read, f"{most.off:.1f}", f"{most.own:.1f}")
        yield f"| {kind} | {suffix} | {' | '.join(map(str, numbers))} |"
    reasons = Counter(re.sub(r"\d+", "N", result.refused) for result in results if result.refused)
    yield from (f"{count:5} {reason}" for reason, count in reasons.most_common())
    yield from (f"{result.path}: {fault}" for result in results for fault in result.faults)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="a package each")
    parser.add_argument("--each", type=int, default=8, help="files of one suffix of a folder, drawn at random")
    parser.add_argument("--pixels", type=int, default=1 << 20, help="of a picture that is encoded")
    parser.add_argument("--clip-pixels", type=int, default=1 << 22, help="of all frames of a video that is encoded")
    parser.add_argument("--seconds", type=float, default=20, help="of sound that are encoded")
    parser.add_argument("--patience", type=float, default=600, help="seconds that one file may take")
    parser.add_argument("--jobs", type=int, default=1, help="children at a time")
    parser.add_argument("--out", type=Path, required=True, help="results, one line of JSON a file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    limits = Limits(given.pixels, given.clip_pixels, given.seconds)
    if given.child:
        av.logging.set_level(None)
        for line in sys.stdin.read().splitlines():
            print(line, flush=True)
            print(json.dumps(asdict(check(Path(line), limits))), flush=True)
        return 0
    results = [Result(**json.loads(line)) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    known = {result.path for result in results}
    cases = [str(path) for path in files(given.folders, given.each) if str(path) not in known]
    command = [sys.executable, __file__, "--child", "--out", str(given.out)]
    command += ["--pixels", str(limits.pixels), "--clip-pixels", str(limits.clip), "--seconds", str(limits.seconds)]
    with given.out.open("a") as out, ThreadPoolExecutor(given.jobs) as pool:

        def work(part: list[str]) -> None:
            for path, said, well in outcomes(command, part, given.patience):
                results.append(Result(**json.loads(said)) if well else Result(path, faults=[said]))
                print(json.dumps(asdict(results[-1])), file=out, flush=True)

        list(pool.map(work, (cases[i :: given.jobs] for i in range(given.jobs))))
    print("\n".join(report(results)))
    return 1 if any(result.faults for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
