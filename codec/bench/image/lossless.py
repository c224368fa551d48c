"""Lossless files of pictures beside PNG, WebP and JPEG XL: bytes, and seconds of processor time of ours.

    python -m tokodec.codec.bench.image.lossless PICTURES --out lossless.json
    python -m tokodec.codec.bench.image.lossless PICTURES --kind gray16 --every 4 --out gray16.json

Each of our files is decoded and compared. Rows are written as they come, so a run that ends early has a table, too.
Pictures of other kinds are made of colour ones: gray; with an alpha channel, an ellipse with a soft edge; of 16 bits,
two by two pixels as one, in linear light. A peer that has no such kind has no bytes.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...container.chunks import EXCT
from ...container.read import read_tok
from ...decode import decode_file
from ...encode import encode_file
from ...image.whole import bits_of
from ...media.picture import Picture
from ...media.write_image import write_image

PEERS: dict[str, dict[str, Any]] = {
    "WEBP": {"lossless": True, "exact": True, "quality": 100, "method": 6},
    "JXL": {"lossless": True, "effort": 7},
}
NAMES = ("PNG", *PEERS, "tokodec")
GAMMA = 2.2


def with_alpha(picture: Picture) -> Picture:
    h, w = picture.pixels.shape[:2]
    rows, columns = (2 * np.arange(n) / (n - 1) - 1 for n in (h, w))
    inside = 1 - np.hypot(rows[:, None], columns)  # 1 in the middle, 0 on the ellipse
    return Picture(picture.pixels, np.clip(128 + 1024 * inside, 0, 255).astype(np.uint8))


def deep(picture: Picture) -> Picture:
    h, w, channels = picture.pixels.shape
    light = (picture.pixels[: h // 2 * 2, : w // 2 * 2] / 255) ** GAMMA
    light = light.reshape(h // 2, 2, w // 2, 2, channels).mean((1, 3))
    return Picture(np.round(65535 * light ** (1 / GAMMA)).astype(np.uint16), bit_depth=16)


KINDS: dict[str, tuple[str, Callable[[Picture], Picture]]] = {  # mode to read in, and what is made of it
    "rgb": ("RGB", lambda picture: picture),
    "gray": ("L", lambda picture: picture),
    "rgba": ("RGB", with_alpha),
    "rgb16": ("RGB", deep),
    "gray16": ("L", deep),
}


def read(path: Path, kind: str) -> Picture:
    mode, made_of = KINDS[kind]
    with Image.open(path) as image:
        pixels = np.asarray(image.convert(mode))
    return made_of(Picture(pixels.reshape(*pixels.shape[:2], -1)))


def peer_bytes(picture: Picture, kind: str, plugin: str) -> int | None:
    """Bytes of a file by a plugin of Pillow, None where it has no such pictures."""
    if kind == "rgb16" or (kind == "gray16" and plugin == "WEBP"):
        return None
    samples = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    file = io.BytesIO()
    Image.fromarray(samples.squeeze()).save(file, plugin, **PEERS[plugin])
    return file.tell()


def row_of(path: Path, kind: str) -> dict[str, Any]:
    """Bytes of a picture of at most 1024 pixels a side by every codec, whole files, metadata apart."""
    picture = read(path, kind)
    values = picture.pixels.size + (0 if picture.alpha is None else picture.alpha.size)
    source = io.BytesIO()
    write_image(picture, source, ".png", path.name)
    row: dict[str, Any] = {"picture": path.name, "values": values, "PNG": source.tell()}
    row |= {plugin: peer_bytes(picture, kind, plugin) for plugin in PEERS}
    source.seek(0)
    begin = time.process_time()
    data = encode_file(source, lossless=True, device="cpu").data
    middle = time.process_time()
    back = decode_file(io.BytesIO(data), device="cpu").picture
    row |= {"encode_seconds": middle - begin, "decode_seconds": time.process_time() - middle}
    same_alpha = picture.alpha is None or (back.alpha is not None and np.array_equal(back.alpha, picture.alpha))
    if back.pixels.dtype != picture.pixels.dtype or not np.array_equal(back.pixels, picture.pixels) or not same_alpha:
        raise AssertionError(f"{path.name} did not come back")
    payload, size = read_tok(data).payload(EXCT, 0, 0), (picture.pixels.shape[0], picture.pixels.shape[1])
    assert payload is not None
    return row | {"tokodec": len(data), "method": "webp" if bits_of(payload, size) is None else "pixels"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=list(KINDS), default="rgb")
    parser.add_argument("--every", type=int, default=1, help="which pictures are taken")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    import pillow_jxl  # noqa: F401  (registers JPEG XL with Pillow)

    rows: list[dict[str, Any]] = []
    for path in sorted(arguments.folder.iterdir())[:: arguments.every]:
        rows.append(row_of(path, arguments.kind))
        report = {"kind": arguments.kind, "jxl": version("pillow-jxl-plugin"), "rows": rows}
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
        values, there = sum(row["values"] for row in rows), [name for name in NAMES if rows[-1][name] is not None]
        told = ", ".join(f"{name} {8 * sum(row[name] for row in rows) / values:.3f}" for name in there)
        print(f"{len(rows)} pictures, bits a value: {told}", flush=True)


if __name__ == "__main__":
    main()
