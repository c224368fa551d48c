"""Metadata of pictures: EXIF and XMP blocks, what is kept and what is noted as dropped."""

from __future__ import annotations

import re
import struct

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from .pillow_guard import DECODER_ERRORS

ORIENTATION = 0x0112
_RESOLUTION = (0x011A, 0x011B, 0x0128)  # along x and y, and its unit
_XMP_KEYS = ("xmp", "XML:com.adobe.xmp")  # of Pillow, and of text in a PNG


def dropped_metadata(
    im: Image.Image, chunks: list[tuple[str, str]], has_alpha: bool, exif: bytes | None
) -> list[str]:
    """One note for each kind of metadata in the file that a Picture does not hold. chunks: of a PNG."""
    notes = []
    texts = {keyword for _, keyword in chunks if keyword} - {_XMP_KEYS[1]}
    if exif is not None:
        texts.discard("Raw profile type exif")  # read as EXIF
    photoshop = im.info.get("photoshop")
    if isinstance(photoshop, dict) and 0x0404 in photoshop:
        notes.append("IPTC not kept")
    if im.info.get("comment"):
        notes.append("comment not kept")
    if texts:
        notes.append(f"text not kept: {', '.join(sorted(texts))}")
    for what, key in (("depth maps", "depth_images"), ("pictures beside it (a gain map, for instance)", "aux")):  # HEIF
        if im.info.get(key):
            notes.append(f"{what} not kept")
    dpi = im.info.get("dpi")
    if isinstance(dpi, tuple) and len(dpi) == 2 and _says_something(dpi) and not _has_resolution(exif):
        shown = " x ".join(f"{value:.4g}" for value in dict.fromkeys(map(float, dpi)))
        notes.append(f"print resolution not kept: {shown} dots per inch")
    if isinstance(im, TiffImageFile):
        tags = set(im.tag_v2)
        if 33723 in tags:
            notes.append("IPTC not kept")
        if 330 in tags:
            notes.append("pictures inside the picture (SubIFDs) not kept")
        if len(im.tag_v2.get(338, ())) > has_alpha:
            notes.append("extra channels not kept")
        private = sorted(tag for tag in tags if tag >= 0x8000 and tag not in {33723, 34675, *_TIFF_EXIF_TAGS})
        if private:
            notes.append(f"TIFF tags not kept: {', '.join(map(str, private))}")
    return notes


def _says_something(dpi: tuple[float, float]) -> bool:
    """Whether a resolution is not merely what programs write that know of none."""
    return all(value > 1 for value in dpi) and any(round(value) not in (72, 96) for value in dpi)


def _has_resolution(exif: bytes | None) -> bool:
    if exif is None:
        return False
    order = "<" if exif[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", exif, 4)
    return any(tag == _RESOLUTION[0] for tag, _, _ in _entries(exif, order, first))


def is_adobe_rgb(exif: bytes | None) -> bool:
    """Whether a camera says that samples are Adobe RGB, as they do without a profile: an uncalibrated colour space and
    the interoperability index R03 (DCF 2.0, Exif 2.32, annex B)."""
    if exif is None:
        return False
    order = "<" if exif[:2] == b"II" else ">"

    def directory(start: int, tag: int) -> tuple[int, int]:
        """Value of a tag as a number and its place, zeros if it is not there."""
        for found, kind, place in _entries(exif, order, start):
            if found == tag:
                return struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, place + 8)[0], place + 8
        return 0, 0

    own, _ = directory(struct.unpack_from(order + "I", exif, 4)[0], 0x8769)
    interoperability, _ = directory(own, 0xA005)
    _, index = directory(interoperability, 0x0001)
    return directory(own, 0xA001)[0] == 0xFFFF and bool(index) and exif[index : index + 3] == b"R03"


def read_xmp(im: Image.Image) -> bytes | None:
    """The packet of XMP, in which the orientation is 1: it has been applied."""
    for key in _XMP_KEYS:
        packet = im.info.get(key)
        if isinstance(packet, str):
            packet = packet.encode()
        if isinstance(packet, bytes) and packet.strip(b"\0"):
            upright = re.sub(rb"(tiff:Orientation\s*=\s*[\"'])[2-8]", rb"\g<1>1", packet)
            return re.sub(rb"(<tiff:Orientation>\s*)[2-8]", rb"\g<1>1", upright)
    return None


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
    if orientation >= 5:
        _swap_sides(data, order, first)
    return (bytes(data) if count else None), orientation


def _entries(data: bytes | bytearray, order: str, start: int) -> list[tuple[int, int, int]]:
    """Tag, type and place of the entries of a directory, as far as it is there."""
    if start < 8 or start + 2 > len(data):
        return []
    (count,) = struct.unpack_from(order + "H", data, start)
    places = range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12)
    return [(*struct.unpack_from(order + "HH", data, place), place) for place in places]


def _swap_sides(data: bytearray, order: str, first: int) -> None:
    """Exchange PixelXDimension and PixelYDimension: the picture has been turned."""
    for tag, _, place in _entries(data, order, first):
        if tag == 0x8769:  # the EXIF directory
            (start,) = struct.unpack_from(order + "I", data, place + 8)
            sides = {tag: (kind, place) for tag, kind, place in _entries(data, order, start) if tag in (0xA002, 0xA003)}
            if len(sides) == 2 and sides[0xA002][0] == sides[0xA003][0]:
                x, y = sides[0xA002][1] + 8, sides[0xA003][1] + 8
                data[x : x + 4], data[y : y + 4] = data[y : y + 4], data[x : x + 4]
            return


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
    zeroed = 0
    for a, b in sorted(spans):  # each byte once, however many values lie over each other
        if b > zeroed:
            data[max(a, zeroed) : b] = bytes(b - max(a, zeroed))
            zeroed = b
    cut = len(data)
    for a, b in sorted(spans, key=lambda span: -span[1]):
        if b < cut - 1:  # 1: padding to even
            break
        cut = min(cut, max(a, keep[1]))
    del data[cut:]


# Tags of a TIFF's own directory that describe the picture and may move to another file.
_TIFF_EXIF_TAGS = frozenset(
    (
        *(0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x013C),  # description, make, model, software, date, artist
        *_RESOLUTION,
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
    if not set(kept) - set(_RESOLUTION) and not _says_something(im.info.get("dpi", (1, 1))):
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
