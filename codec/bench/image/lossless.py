"""Lossless files of pictures beside PNG, WebP and JPEG XL: bytes, and seconds of processor time of ours.

    python -m tokodec.codec.bench.image.lossless PICTURES --out lossless.json

Each of our payloads is decoded and compared. Rows are written as they come, so a run that ends early has a table, too.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...container.chunks import FRAME
from ...image.exact import unpack_exact
from ...image.whole import bits_of, pack_whole, unpack_whole

PEERS: dict[str, dict[str, Any]] = {
    "PNG": {"optimize": True},
    "WEBP": {"lossless": True, "quality": 100, "method": 6},
    "JXL": {"lossless": True, "effort": 7},
}


def row_of(path: Path) -> dict[str, Any]:
    """Bytes of a picture of at most 1024 pixels a side by every codec; ours by the payload of its one window."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    pixels = np.asarray(picture)
    row: dict[str, Any] = {"picture": path.name, "values": pixels.size}
    for kind, options in PEERS.items():
        file = io.BytesIO()
        picture.save(file, kind, **options)
        row[kind] = len(file.getvalue())
    begin = time.process_time()
    payload = pack_whole(pixels)
    middle = time.process_time()
    size = (pixels.shape[0], pixels.shape[1])
    ours = bits_of(payload, size) is not None
    back = unpack_whole(payload, size, 3) if ours else unpack_exact(payload, size)[1]
    if not np.array_equal(back, pixels):
        raise AssertionError(f"{path.name} did not come back")
    row["tokodec"], row["method"] = len(payload) + FRAME, "pixels" if ours else "webp"
    row["encode_seconds"], row["decode_seconds"] = middle - begin, time.process_time() - middle
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    import pillow_jxl  # noqa: F401  (registers JPEG XL with Pillow)

    rows: list[dict[str, Any]] = []
    for path in sorted(arguments.folder.iterdir()):
        rows.append(row_of(path))
        arguments.out.write_text(json.dumps({"jxl": version("pillow-jxl-plugin"), "rows": rows}, indent=1) + "\n")
        values = sum(row["values"] for row in rows)
        names = (*PEERS, "tokodec")
        told = ", ".join(f"{name} {8 * sum(row[name] for row in rows) / values:.3f}" for name in names)
        print(f"{len(rows)} pictures, bits a value: {told}", flush=True)


if __name__ == "__main__":
    main()
