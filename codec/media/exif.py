"""Metadata of pictures: EXIF blocks, PNG chunks, what is kept and what is noted as dropped."""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

from PIL import Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

# What Pillow's decoders raise on damaged files.
DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
    AttributeError, OverflowError, MemoryError, RuntimeError, ZeroDivisionError, AssertionError, ImageCms.PyCMSError,
)  # fmt: skip
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112


# Metadata --------------------------------------------------------------------------------------------------------


def png_chunks(file: BinaryIO) -> list[tuple[str, str]]:
    """Type and, of text chunks, keyword of all chunks except IDAT. Payloads are skipped, not read."""
    found = []
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        kind = head[4:].decode("latin-1")
        after = file.tell() + length + 4
        keyword = ""
        if kind in ("tEXt", "zTXt", "iTXt"):
            keyword = file.read(min(length, 80)).split(b"\0")[0].decode("latin-1")
        if kind != "IDAT":
            found.append((kind, " ".join(keyword.split())))
        if kind == "IEND":
            break
        file.seek(after)
    return found


def dropped_metadata(im: Image.Image, chunks: list[tuple[str, str]], has_alpha: bool, has_exif: bool) -> list[str]:
    """One note for each kind of metadata in the file that a Picture does not hold."""
    notes = []
    kinds = {kind for kind, _ in chunks}
    texts = sorted({keyword for _, keyword in chunks if keyword})
    if "XML:com.adobe.xmp" in texts:
        texts.remove("XML:com.adobe.xmp")
    if has_exif and "Raw profile type exif" in texts:
        texts.remove("Raw profile type exif")  # read as EXIF
    if im.info.get("xmp") or "XML:com.adobe.xmp" in im.info:
        notes.append("XMP not kept")
    photoshop = im.info.get("photoshop")
    if isinstance(photoshop, dict) and 0x0404 in photoshop:
        notes.append("IPTC not kept")
    if im.info.get("comment"):
        notes.append("comment not kept")
    if texts:
        notes.append(f"text not kept: {', '.join(texts)}")
    if "cICP" in kinds:
        notes.append("colour description (cICP) not kept: samples are taken as sRGB")
    elif kinds & {"gAMA", "cHRM"} and not kinds & {"iCCP", "sRGB"}:  # those two take precedence over gAMA and cHRM
        named = " and ".join(kind for kind in ("gAMA", "cHRM") if kind in kinds)
        notes.append(f"{named} not kept: samples are taken as sRGB")
    if isinstance(im, TiffImageFile):
        tags = set(im.tag_v2)
        if 700 in tags and "XMP not kept" not in notes:
            notes.append("XMP not kept")
        if 33723 in tags:
            notes.append("IPTC not kept")
        if 330 in tags:
            notes.append("pictures inside the picture (SubIFDs) not kept")
        if im.tag_v2.get(338) and not has_alpha:
            notes.append("extra channels not kept")
        private = sorted(tag for tag in tags if tag >= 0x8000 and tag not in {33723, 34675, *_TIFF_EXIF_TAGS})
        if private:
            notes.append(f"TIFF tags not kept: {', '.join(map(str, private))}")
    return notes


def read_exif(im: Image.Image, notes: list[str]) -> tuple[bytes | None, int]:
    """EXIF block without orientation and thumbnail, and the orientation."""
    block = im.info.get("exif")
    try:
        raw = im.info.get("Raw profile type exif")
        if block is None and isinstance(raw, str):  # ImageMagick's way: three lines of head, then hexadecimal
            block = bytes.fromhex("".join(raw.split("\n")[3:]))
        if not isinstance(block, bytes) or not block:
            return None, 1
        return _strip_exif(block)
    except (ValueError, struct.error):
        notes.append("EXIF not kept: it is damaged")
        return None, 1


def _strip_exif(block: bytes) -> tuple[bytes | None, int]:
    """Take orientation and thumbnail out of an EXIF block in place, so that no offset in it changes.

    Returns: the block (None if nothing else was in it), and the orientation (1 if none or out of range).
    Raises:  ValueError or struct.error if the first directory is not inside the block.
    """
    data = bytearray(block.removeprefix(b"Exif\0\0"))
    orders = {b"II*\0": "<", b"MM\0*": ">"}
    order = orders.get(bytes(data[:4]))
    if order is None:
        raise ValueError("no TIFF header")
    (first,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, first)
    end = first + 2 + 12 * count
    if first < 8 or end > len(data):
        raise ValueError("the first directory is cut off")
    if end + 4 <= len(data):
        (second,) = struct.unpack_from(order + "I", data, end)
        if second:
            struct.pack_into(order + "I", data, end, 0)
            _blank_directory(data, order, second, keep=(first, end + 4))
            end = min(end, len(data))

    orientation = 1
    for entry in range(first + 2, end, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag == ORIENTATION:
            (value,) = struct.unpack_from(order + ("I" if kind == 4 else "H"), data, entry + 8)
            orientation = value if 1 <= value <= 8 else 1
            rest = bytes(data[entry + 12 : end + 4])
            data[entry : end + 4] = rest + bytes(len(data[entry : end + 4]) - len(rest))
            count -= 1
            struct.pack_into(order + "H", data, first, count)
            break
    return (bytes(data) if count else None), orientation


def _blank_directory(data: bytearray, order: str, start: int, keep: tuple[int, int]) -> None:
    """Overwrite the thumbnail's directory and all it points to with zeros; cut them off where they end the block."""
    if start + 2 > len(data):
        return
    (count,) = struct.unpack_from(order + "H", data, start)
    end = min(start + 2 + 12 * count + 4, len(data))
    spans = [(start, end)]
    values: dict[int, int] = {}
    sizes = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
    for entry in range(start + 2, end - 15, 12):
        tag, kind, number, value = struct.unpack_from(order + "HHII", data, entry)
        values[tag] = value if kind == 4 else struct.unpack_from(order + "H", data, entry + 8)[0]
        size = number * sizes.get(kind, 1)
        if size > 4:
            spans.append((value, value + size))
    for offset, length in ((0x0201, 0x0202), (0x0111, 0x0117)):  # JPEG thumbnail, uncompressed thumbnail
        if offset in values and length in values:
            spans.append((values[offset], values[offset] + values[length]))
    spans = [(a, min(b, len(data))) for a, b in spans if keep[1] <= a < len(data) or (a >= 8 and b <= keep[0])]
    for a, b in spans:
        data[a:b] = bytes(b - a)
    while spans and max(b for _, b in spans) >= len(data) - 1 and len(data) > keep[1]:  # 1: padding to even
        del data[max(min(a for a, b in spans if b >= len(data) - 1), keep[1]) :]
        spans = [(a, b) for a, b in spans if a < len(data)]


# Tags of a TIFF's own directory that describe the picture and may move to another file.
_TIFF_EXIF_TAGS = frozenset(
    (
        *(0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C),  # description, make, model, software, date, artist
        *(0x4746, 0x4749, 0x8298, *range(0x9C9B, 0x9CA0)),  # rating, copyright, XPTitle ... XPSubject
        *(0x8769, 0x8825),  # the EXIF and GPS directories
    )
)


def tiff_exif(im: TiffImageFile, notes: list[str]) -> tuple[bytes | None, int]:
    """EXIF block made of the descriptive tags of a TIFF, and its orientation, which Pillow is told not to apply."""
    tags = im.getexif()
    orientation = im.tag_v2.get(ORIENTATION, 1)
    tags[ORIENTATION] = 1  # load() would make a turned copy of the whole picture
    kept = descriptive(tags)
    if not isinstance(orientation, int) or not 1 <= orientation <= 8:
        orientation = 1
    if not len(kept):
        return None, orientation
    try:
        return kept.tobytes().removeprefix(b"Exif\0\0"), orientation
    except DECODER_ERRORS:
        notes.append("EXIF not kept: it is damaged")
        return None, orientation


def descriptive(tags: Image.Exif) -> Image.Exif:
    """The part of a directory that says nothing about where and how samples are stored."""
    kept = Image.Exif()
    for tag in _TIFF_EXIF_TAGS:
        if tag in (0x8769, 0x8825):
            directory = {key: value for key, value in tags.get_ifd(tag).items() if key != 0xA005}
            if directory:  # 0xA005 is an offset to the interoperability directory of the old place
                kept[tag] = directory
        elif tag in tags:
            kept[tag] = tags[tag]
    return kept
