"""Everything in some folders there and back: no fault of ours, no size or length that is off, no colour that is.

By hand, it takes hours: ``python tests/media_corpus.py FOLDER ... --limit 200``. Each file is encoded and decoded with
the default models. A line is printed for each that comes back wrong, and in the end how many were refused and why.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import decode_file, video_frames
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import TokodecError
from tokodec.codec.image.prepare import prepare
from tokodec.codec.media.audio import AudioReader
from tokodec.codec.media.kind import SUFFIXES_IN, media_kind
from tokodec.codec.media.read_image import read_image
from tokodec.codec.media.read_video import VideoReader

MOST_PIXELS, MOST_SAMPLES = 1 << 24, 1 << 24
CELL = 32  # pixels along the edge of what colours are compared of
COLOUR = 12  # grey levels that the mean of a cell may be off by


def files(folders: list[Path], limit: int | None) -> list[Path]:
    """Media by their suffixes, ``limit`` of them drawn with a fixed seed."""
    found = [
        Path(here) / name for top in folders for here, _, names in os.walk(top) for name in names
        if Path(name).suffix.lower() in SUFFIXES_IN
    ]  # fmt: skip
    found.sort()
    return found if limit is None or limit >= len(found) else sorted(random.Random(0).sample(found, limit))


def cells(pixels: np.ndarray) -> np.ndarray:
    """Mean colours of squares, those at the edges cut off; of the whole picture if it is small."""
    height, width, channels = pixels.shape
    if min(height, width) < CELL:
        return pixels.mean((0, 1))
    whole = pixels[: height // CELL * CELL, : width // CELL * CELL]
    return whole.reshape(height // CELL, CELL, width // CELL, CELL, channels).mean((1, 3))


def check_picture(path: Path) -> Iterator[str]:
    """What is wrong with a picture that comes back."""
    before = prepare(read_image(path, str(path), MOST_PIXELS))
    after = decode_file(io.BytesIO(encode_file(path, max_pixels=MOST_PIXELS).data)).picture
    if after.pixels.shape != before.pixels.shape:
        yield f"{before.pixels.shape} became {after.pixels.shape}"
        return
    off = float(np.abs(cells(after.pixels) - cells(before.pixels)).max())
    if off > COLOUR:
        yield f"a colour is off by {off:.0f}"
    alphas = [np.empty(0) if picture.alpha is None else picture.alpha for picture in (before, after)]
    if not np.array_equal(alphas[0], alphas[1]):
        yield "the alpha channel differs"
    for what in ("icc", "exif", "xmp"):
        if getattr(before, what) != getattr(after, what):
            yield f"{what} differs"


def check_sound(path: Path) -> Iterator[str]:
    """What is wrong with a sound that comes back."""
    with AudioReader(path, str(path), MOST_SAMPLES) as reader:
        length = sum(block.shape[1] for block in reader.blocks())
        rate = reader.sample_rate
    after = decode_file(io.BytesIO(encode_file(path, max_samples=MOST_SAMPLES).data)).sound
    if after.sample_rate != rate:
        yield f"{rate} Hz became {after.sample_rate}"
    if abs(after.samples.shape[1] - length) > rate // 50:
        yield f"{length} samples became {after.samples.shape[1]}"


def check_video(path: Path) -> Iterator[str]:
    """What is wrong with a video that comes back."""
    with VideoReader(path, str(path), MOST_PIXELS) as video:
        means = [frame.pixels.mean((0, 1)) for frame in video]
    tok = read_tok(encode_file(path, max_pixels=MOST_PIXELS, max_samples=MOST_SAMPLES).data)
    count, off = 0, 0.0
    for i, (_, pixels) in enumerate(video_frames(tok)):
        count += 1
        if i < len(means):
            off = max(off, float(np.abs(pixels.mean((0, 1)) - means[i]).max()))
    if abs(count - len(means)) > 1:
        yield f"{len(means)} frames became {count}"
    if off > COLOUR:
        yield f"the colour of a frame is off by {off:.0f}"


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    "image": check_picture, "audio": check_sound, "video": check_video,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, help="so many files, drawn at random")
    parser.add_argument("--kinds", nargs="*", default=list(CHECKS), choices=list(CHECKS))
    given = parser.parse_args()
    refused: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    wrong = 0
    for path in files(given.folders, given.limit):
        kind = ""
        try:
            kind, _ = media_kind(path)
            if kind not in given.kinds:
                continue
            tried[kind] += 1
            faults = list(CHECKS[kind](path))
        except TokodecError as error:
            refused[re.sub(r"\d+", "N", str(error).replace(str(path), "FILE"))[:100]] += 1
            continue
        except Exception as error:  # what this script looks for
            faults = [f"{type(error).__name__}: {error}"]
        for fault in faults:
            print(f"{path}: {fault}", flush=True)
        wrong += bool(faults)
    print(f"{dict(tried)} files, {wrong} wrong, {sum(refused.values())} refused:")
    for reason, count in refused.most_common():
        print(f"{count:6} {reason}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
