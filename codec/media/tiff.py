"""Pages of TIFF files: which of them is the picture."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

MAX_PAGES = 1024
_MAX_READ = 1 << 24  # bytes of directories
_TAGS = {254: "kind", 255: "old_kind", 50706: "raw"}
_REDUCED, _MASK = 1, 4  # bits of NewSubfileType (TIFF 6.0, section 8)


@dataclass
class TiffPage:
    """A directory of the file. kind: NewSubfileType.  old_kind: SubfileType.  raw: of a DNG."""

    kind: int = 0
    old_kind: int = 0
    raw: int = 0

    @property
    def is_main(self) -> bool:
        return not self.kind & (_REDUCED | _MASK) and self.old_kind != 2


def tiff_pages(file: BinaryIO) -> list[TiffPage]:
    """Directories that follow each other, each once, ``MAX_PAGES`` at most; none of what cannot be read.

    (Pillow looks for each in a list of all before it, which takes minutes for a file of a megabyte.)
    """
    file.seek(0)
    head = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return []
    big = struct.unpack_from(order + "H", head, 2)[0] == 43
    counts, offsets, entry = ("Q", "Q", 20) if big else ("H", "I", 12)
    (at,) = struct.unpack_from(order + offsets, head, 8 if big else 4)
    size = struct.calcsize("=" + offsets)
    pages: list[TiffPage] = []
    seen: set[int] = set()
    read = 0
    try:
        while at and at not in seen and len(pages) < MAX_PAGES and read < _MAX_READ:
            seen.add(at)
            file.seek(at)
            (count,) = struct.unpack(order + counts, file.read(struct.calcsize("=" + counts)))
            directory = file.read(min(count, 65535) * entry)
            read += len(directory)
            page = TiffPage()
            for start in range(0, len(directory) - entry + 1, entry):
                tag, form = struct.unpack_from(order + "HH", directory, start)
                if tag in _TAGS:
                    place = start + entry - size
                    (value,) = struct.unpack_from(order + ("H" if form == 3 else "I"), directory, place)
                    setattr(page, _TAGS[tag], value)
            pages.append(page)
            (at,) = struct.unpack(order + offsets, file.read(size))
    except (struct.error, OverflowError):  # cut off: what is missing is not there
        pass
    return pages


def write_deep_tiff(file: BinaryIO, like: BinaryIO, samples: np.ndarray) -> None:
    """Write samples of 16 bits, not compressed, with the tags of another file.

    Args: like: a TIFF file of one directory.  samples: uint16 ``[H, W, 1 to 4]``: gray or RGB, perhaps with alpha.
    """
    height, width, channels = samples.shape
    like.seek(0)
    with Image.open(like, formats=("TIFF",)) as one:
        assert isinstance(one, TiffImageFile)
        tags = ImageFileDirectory_v2(prefix=b"II")
        for tag, value in one.tag_v2.items():
            tags[tag] = value
            tags.tagtype[tag] = one.tag_v2.tagtype[tag]
    colours = 3 if channels > 2 else 1
    tags[256], tags[257] = width, height
    tags[258], tags[259], tags[262] = (16,) * channels, 1, 2 if colours == 3 else 1
    tags[277], tags[278], tags[279] = channels, height, samples.nbytes
    tags.pop(317, None)
    if channels > colours:
        tags[338] = 2  # alpha that is not premultiplied
    tags[273] = 0  # from the end of the directory on
    file.write(b"II*\0" + struct.pack("<I", 8) + tags.tobytes(8))
    file.write(np.ascontiguousarray(samples, dtype="<u2").data)
