"""Pictures in: any common file -> uint8 samples, alpha, colour profile, EXIF and XMP.

A reader of pictures has many chances to lose something in silence: the second frame, the low bytes of 16-bit samples,
the rotation, the colour profile, the half that is damaged. Here everything that is in the file is either in the
:class:`Picture`, or named in its ``notes`` or ``problems``, or a reason to refuse.

What decoding takes is bounded by the header before samples are read: see :func:`_check_limits`.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import ChunkError, MediaError, TokodecError, UnsupportedMediaError, one_line
from . import png
from .exif import dropped_metadata, is_adobe_rgb, read_exif, read_xmp, tiff_exif
from .jpeg import JPEG_END, JpegScan, scan_jpeg
from .picture import Picture
from .pillow_guard import DECODER_ERRORS, pillow_without_limits
from .profile import CodePoints, adobe_rgb, fitting_profile, profile_of_code_points, profile_of_gamma
from .raster import add_low_bytes, as_stored, bands, bits_per_sample, holds_16_bits, low_byte_tiles, raster
from .tiff import MAX_PAGES, TiffPage, tiff_pages

IMAGE_SUFFIXES_IN = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".heic", ".heif", ".hif", ".tif",
    ".tiff", ".bmp", ".dib", ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
# Plugins that may look at a file (JPEG's also finds MPO). The others are never asked: EPS would start Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM")
_MAGIC = {
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"BM": "BMP", b"GIF8": "GIF",
}  # fmt: skip
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_OTHERS = {  # what people have, and no reader here
    b"\xff\x0a": "JPEG XL", b"\0\0\0\x0cJXL ": "JPEG XL", b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000", b"8BPS": "Photoshop", b"\0\0\1\0": "icon", b"%!PS": "PostScript", b"%PDF": "PDF",
    b"<svg": "SVG", b"<?xml": "SVG or XML", b"v/1\1": "OpenEXR", b"#?RADIANCE": "Radiance HDR", b"SIMPLE  =": "FITS",
    b"FUJIFILM": "camera raw", b"IIRO": "camera raw", b"IIU\0": "camera raw", b"qoif": "QOI",
}  # fmt: skip
# Bytes of memory a pixel that decoding takes at most, result included. Pillow keeps 4 and the result has 3 or 4;
# progressive JPEG holds all coefficients, TIFF a strip, the libraries of the last three pictures of their own.
_COST = {"JPEG, progressive": 14, "TIFF": 12, "WEBP": 18, "AVIF": 14, "HEIF": 14}
_USUAL_COST = 9
_BUDGET = 12  # bytes of memory for each pixel of the limit
# More pixels than these must have a byte for each so many: not even pictures of one colour have fewer in practice.
_FREE_PIXELS, _PIXELS_PER_BYTE = 1 << 24, 8192
# What Python says in these errors of Pillow is about Pillow's own lines, not about the file.
_MISHAPS = (struct.error, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)
_FREE_SCANS, _PIXEL_SCANS = 16, 1 << 30  # of JPEG: each scan is a walk over the picture


# ---------------------------------------------------------------------------------------------------------- reading


def read_image(
    source: Path | BinaryIO, name: str, max_pixels: int, strict: bool = False, *, deep: bool = False
) -> Picture:
    """Read one still picture from a file of any format in ``IMAGE_SUFFIXES_IN`` (told by content, not by suffix).

    Gray stays gray (1, 2, 4, 8 and 16 bits, with or without alpha), everything else becomes RGB; a palette becomes RGB
    even if all its colours are gray. More than 8 bits are rounded to 8, CMYK and LAB converted to sRGB, with a note.
    What describes colours otherwise (code points of AVIF, HEIC and PNG, a gamma) becomes a profile. Of a TIFF with
    reduced copies the picture itself is taken. HEIC needs the package pillow-heif.

    Args:    source: a path, or a binary file object read from where it stands (need not be seekable).
             name: what messages call it.  max_pixels: larger pictures are refused before any sample is decoded.
             strict: refuse damaged files, of which otherwise what is there is decoded.
             deep: keep samples of 16 bits (PNG, TIFF, PPM and PGM); other depths above 8 are rounded to 8 all the same.
    Returns: the picture, upright: all eight EXIF orientations are applied.
    Raises:  UnsupportedMediaError for animations, several pages, float or 32-bit samples; MediaError for everything
             that cannot be read. Both are one line that names the file.
    Cost:    peak memory 2.4 times the RGB samples for PNG, baseline JPEG, TIFF and BMP (Pillow keeps 4 bytes a pixel),
             twice the gray ones (three times if they have 16 bits), 1.0 for PPM; 4.4 for progressive JPEG; the
             libraries of AVIF and WebP need 3 and 5.4. In no case more than 12 bytes for each of ``max_pixels``.
             16-bit RGB is decoded twice, for the high bytes and for the low ones, because Pillow holds only 8 bits;
             PNG is inflated once more to see that it is whole.
    """
    if not isinstance(source, Path):
        return _read_stream(source, name, max_pixels, strict, deep)
    try:
        with source.open("rb") as file:
            return _read_stream(file, name, max_pixels, strict, deep)
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise MediaError(f"{name} is a folder, not a picture") from None
    except OSError as error:
        raise MediaError(f"{name} cannot be read: {one_line(error)}") from error


def _read_stream(stream: BinaryIO, name: str, max_pixels: int, strict: bool, deep: bool) -> Picture:
    file = stream
    if not stream.seekable() or stream.tell() != 0:  # TIFF offsets count from the start
        file = io.BytesIO(stream.read())
    with pillow_without_limits():
        try:
            opened = _examine(file, name, max_pixels)
            if strict:
                _refuse_damage(opened, name)
            picture = _decode(opened, name, max_pixels, deep)
            if strict:
                _refuse_damage(opened, name)
            return picture
        except TokodecError:
            raise
        except DECODER_ERRORS as error:
            raise MediaError(f"{name} {_undecoded(error)}") from error


def _refuse_damage(opened: _Opened, name: str) -> None:
    if opened.problems:
        raise MediaError(f"{name}: {opened.problems[0]}")


def _undecoded(error: Exception) -> str:
    """What is wrong with a file of a known format that cannot be decoded."""
    why = re.sub(r"^b'(.*)'$", r"\1", one_line(error))
    if isinstance(error, _MISHAPS) or re.search("^invalid literal|to unpack|could not convert|can't decode", why):
        return "is damaged or cut off: it breaks the rules of its format"
    rare = isinstance(error, NotImplementedError) or re.search(r"(?i)unsupported|unknown|decoder error", why)
    return f"is {'damaged or of a rare kind that cannot be read' if rare else 'damaged or cut off'}: {why}"


@dataclass
class _Opened:
    """A file that has been looked at. file: what to decode, mended if that was needed.  page: of a TIFF."""

    file: BinaryIO
    size: int
    png: png.PngScan | None = None
    jpeg: JpegScan | None = None
    pages: list[TiffPage] = field(default_factory=list)
    page: int = 0
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _examine(file: BinaryIO, name: str, max_pixels: int) -> _Opened:
    """Look at the structure of a file: is it whole, which page is the picture, and what would decoding take?"""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(32)
    opened = _Opened(file, size)
    if start.startswith(png.PNG_SIGNATURE):
        header = png.read_header(file)
        if header is not None:
            _check_limits("PNG", header.width, header.height, size, name=name, max_pixels=max_pixels)
            opened.png = png.scan_png(file)
        if opened.png is not None and opened.png.problems:
            if opened.png.got < max(1, opened.png.row):
                raise MediaError(f"{name} is damaged or cut off: no samples are left")
            opened.problems = opened.png.problems
            opened.file = png.repair_png(file, opened.png)
    elif start.startswith(b"\xff\xd8\xff"):
        file.seek(0)
        data = file.read()
        opened.jpeg = scan_jpeg(data)
        if opened.jpeg.samples:
            opened.problems = opened.jpeg.problems
            whole = opened.jpeg.ended and opened.jpeg.cut is None
            opened.file = io.BytesIO(data if whole else data[: opened.jpeg.cut] + JPEG_END)
    elif (webp := _webp_size(start)) is not None:  # Pillow allocates the picture when it opens the file
        _check_limits("WEBP", *webp, size, name, max_pixels)
    elif start.startswith((b"II", b"MM")):
        opened.pages = tiff_pages(file)
        opened.page = _main_page(opened.pages, name, opened.notes)
    return opened


def _webp_size(start: bytes) -> tuple[int, int] | None:
    """Width and height by the first chunk (RFC 9649, section 2.5 on), None if it is none."""
    if len(start) < 30 or start[:4] != b"RIFF" or start[8:12] != b"WEBP":
        return None
    if start[12:16] == b"VP8X":
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if start[12:16] == b"VP8L":
        packed = int.from_bytes(start[21:25], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", start, 26)
    return width & 0x3FFF, height & 0x3FFF


def _main_page(pages: list[TiffPage], name: str, notes: list[str]) -> int:
    """The page that is the picture: not a reduced copy and not a mask. Raises UnsupportedMediaError if several are."""
    if any(page.raw for page in pages):
        raise UnsupportedMediaError(f"{name} is a camera raw file (DNG): develop it first")
    main = [i for i, page in enumerate(pages) if page.is_main]
    if pages and not main:
        raise UnsupportedMediaError(f"{name} holds reduced copies only, as camera raw files do: develop it first")
    if len(main) > 1:
        count = f"{len(main)} or more" if len(pages) == MAX_PAGES else str(len(main))
        raise UnsupportedMediaError(f"{name} holds {count} frames (pages); only single pictures can be read")
    if len(pages) > 1:
        notes.append(f"{len(pages) - 1} reduced copies and masks of the picture not kept")
    return main[0] if main else 0


def _check_limits(kind: str, width: int, height: int, size: int, name: str, max_pixels: int) -> None:
    """Raise MediaError for what would take too much memory or time, by the size that the header declares.

    Memory stays below ``_BUDGET`` bytes for each of ``max_pixels``, and below 300 MB for files of a few bytes.
    """
    pixels = width * height
    if width < 1 or height < 1:
        raise MediaError(f"{name} has no pixels: it is {width} x {height}")
    if pixels > max_pixels:
        raise MediaError(f"{name} has {width} x {height} pixels, more than the limit of {max_pixels}")
    if pixels > max(_FREE_PIXELS, _PIXELS_PER_BYTE * size):
        raise MediaError(f"{name} declares {width} x {height} pixels in {size} bytes: no picture is that simple")
    cost = _COST.get(kind, _USUAL_COST)
    if pixels > _FREE_PIXELS and pixels * cost > _BUDGET * max_pixels:
        most = _BUDGET * max_pixels // cost
        what = f"{width} x {height} pixels, more than the limit of {most} for {kind}"
        raise MediaError(f"{name} has {what}: each takes {cost} bytes of memory; see --max-pixels")


def _decode(opened: _Opened, name: str, max_pixels: int, deep: bool) -> Picture:
    file, notes = opened.file, opened.notes
    im = _open(file, name, opened.page)
    tiff = isinstance(im, TiffImageFile)
    _check_work(im, opened, name, max_pixels)
    _check_frames(im, name, notes)
    bits = bits_per_sample(im, file)
    low_tiles = low_byte_tiles(im)
    exif, orientation = tiff_exif(im, notes) if isinstance(im, TiffImageFile) else (None, 1)

    deep = deep and holds_16_bits(im, bits, low_tiles is not None)
    dtype = np.uint16 if deep else np.uint8
    rows = raster(im, file, name, bits, notes=notes, problems=opened.problems, deep=deep)
    if not tiff:
        exif, orientation = read_exif(im, notes)  # after load(): PNG may hold it behind the samples
    upright = (rows.width, rows.height) if orientation >= 5 else (rows.height, rows.width)
    pixels = np.empty((*upright, rows.channels), dtype)
    alpha = np.empty(upright, dtype) if rows.has_alpha else None
    pixels_stored = as_stored(pixels, orientation)  # views: writing to them turns the picture
    alpha_stored = None if alpha is None else as_stored(alpha, orientation)
    for y0, y1 in bands(rows.height, rows.width):
        pixels_band, alpha_band = rows.band(y0, y1)
        pixels_stored[y0:y1] = pixels_band
        if alpha_stored is not None and alpha_band is not None:
            alpha_stored[y0:y1] = alpha_band

    icc = _profile(im, file, opened.png, rows.channels == 1, notes)
    if icc is None and im.mode == "RGB" and is_adobe_rgb(exif):
        icc = adobe_rgb()
    key = im.info.get("transparency")
    xmp = read_xmp(im)
    chunks = opened.png.chunks if opened.png is not None else []
    notes += dropped_metadata(im, chunks, has_alpha=alpha is not None, exif=exif)
    if opened.jpeg is not None and opened.jpeg.long_xmp:
        notes.append("XMP beyond its first 64 kB not kept")
    del rows, im  # gives Pillow's copy back before the second pass needs another one
    if low_tiles is not None:
        add_low_bytes(_open(file, name, opened.page), low_tiles, key, pixels_stored, alpha_stored)
    if alpha is not None and deep and key is not None:
        alpha *= 257  # of one transparent colour: 0 or 255
    if bits > 8 and not deep:
        notes.insert(0, f"{bits} bits per sample reduced to 8")
    depth = 16 if bits > 8 else 8
    return Picture(pixels, alpha, icc, exif, bit_depth=depth, notes=notes, xmp=xmp, problems=opened.problems)


def _open(file: BinaryIO, name: str, page: int = 0) -> ImageFile:
    file.seek(0)
    start = file.read(16)
    if not start:
        raise MediaError(f"{name} is empty")
    heif = start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS
    formats = (*_FORMATS, "HEIF") if heif and _knows_heif() else _FORMATS
    file.seek(0)
    try:
        im = Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise MediaError(f"{name} {_refusal(start, heif and formats is _FORMATS)}") from None
    if page:
        im.seek(page)
    return im


def _knows_heif() -> bool:
    """Register the reader of pillow-heif, if that is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True


def _refusal(start: bytes, heif: bool) -> str:
    """What is wrong with a file that begins so and that no reader takes."""
    if heif:
        return "is a HEIC picture, which the package pillow-heif reads: pip install 'tokodec[heif]'"
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return f"is a damaged {kind} file, or of a rare kind that cannot be read"
    for magic, kind in _OTHERS.items():
        if start.startswith(magic):
            return f"is a file of the kind {kind}, which cannot be read: convert it, for instance to PNG"
    if start.startswith(b"RIFF") or start[4:8] == b"ftyp":
        return "is a damaged or unknown WebP, AVIF or other container file"
    return "is not a picture in a known format (PNG, JPEG, WebP, AVIF, HEIC, TIFF, BMP, GIF, PPM)"


def refuse_unknown(start: bytes, name: str) -> None:
    """Raise MediaError if a file that begins so is of no kind that is read here: streams are judged so."""
    Image.init()
    with pillow_without_limits():
        for kind in _FORMATS:
            accept = Image.OPEN[kind][1]
            if len(start) >= 16 and (accept is None or accept(start[:16]) is True):
                return
    raise MediaError(f"{name} {_refusal(start, heif=start[8:12] in HEIF_BRANDS and not _knows_heif())}")


def _check_work(im: ImageFile, opened: _Opened, name: str, max_pixels: int) -> None:
    """Raise MediaError for what would take too much, now that Pillow has found the size."""
    progressive = opened.jpeg is not None and opened.jpeg.progressive
    width, height = im.size
    _check_limits(
        "JPEG, progressive" if progressive else im.format or "",
        width,
        height,
        opened.size,
        name=name,
        max_pixels=max_pixels,
    )
    scans = 1 if opened.jpeg is None else opened.jpeg.scans
    if scans > _FREE_SCANS and scans * width * height > _PIXEL_SCANS:
        raise MediaError(f"{name} has {scans} scans of {width} x {height} pixels: no encoder needs so many")
    if isinstance(im, TiffImageFile):
        tile = int(im.tag_v2.get(322, 0)) * int(im.tag_v2.get(323, 0))
        if tile > max(_FREE_PIXELS, 4 * width * height):
            raise MediaError(f"{name} has {width} x {height} pixels in tiles of {tile}: it is damaged")


def _check_frames(im: ImageFile, name: str, notes: list[str]) -> None:
    frames = 1 if isinstance(im, TiffImageFile) else int(getattr(im, "n_frames", 1))  # those are known by their pages
    if frames == 1:
        return
    if im.format in ("MPO", "HEIF"):
        which = "first" if im.format == "MPO" else "primary"
        notes.append(f"only the {which} of {frames} pictures in the file is kept ({im.format})")
        return
    raise UnsupportedMediaError(f"{name} holds {frames} frames; only single pictures can be read")


# ---------------------------------------------------------------------------------------------------------- colours


def _profile(im: ImageFile, file: BinaryIO, scan: png.PngScan | None, gray: bool, notes: list[str]) -> bytes | None:
    """The profile of the samples: that of the file, or one made of what it says otherwise. None for sRGB."""
    if im.mode in ("CMYK", "LAB"):  # converted to sRGB
        return None
    icc = im.info.get("icc_profile") or None
    points = _code_points(im, file, scan)
    if points is not None and (icc is None or scan is not None):  # cICP comes before iCCP, nclx after a profile
        try:
            return profile_of_code_points(points, gray)
        except ValueError as error:
            what = "the profile is" if icc else "samples are taken as sRGB"
            notes.append(f"colour description ({error}) not kept: {what}{' kept' if icc else ''}")
    if icc is not None:
        icc, note = fitting_profile(icc, gray)
        notes += [] if note is None else [note]
        return icc
    if points is None and scan is not None and "sRGB" not in scan.kinds() and scan.colours:
        return _profile_of_gamma(scan, gray, notes)
    return None


def _profile_of_gamma(scan: png.PngScan, gray: bool, notes: list[str]) -> bytes | None:
    gamma, where = scan.colours.get("gAMA"), scan.colours.get("cHRM")
    try:
        value = None if gamma is None or len(gamma) != 4 else struct.unpack(">I", gamma)[0] / 100000
        numbers = None if where is None or len(where) != 32 else struct.unpack(">8I", where)
        return profile_of_gamma(value, None if numbers is None else tuple(n / 100000 for n in numbers), gray)
    except (ValueError, ZeroDivisionError):
        notes.append("gAMA and cHRM not kept: they describe no colours")
        return None


def _code_points(im: ImageFile, file: BinaryIO, scan: png.PngScan | None) -> CodePoints | None:
    """Code points of ITU-T H.273 in the file, None if it has none."""
    if scan is not None:
        cicp = scan.colours.get("cICP", b"")
        return CodePoints(cicp[0], cicp[1]) if len(cicp) == 4 else None
    if im.format not in ("AVIF", "HEIF"):
        return None
    file.seek(0)
    found = re.search(rb"colrnclx(..)(..)", file.read(1 << 16), re.DOTALL)
    return None if found is None else CodePoints(*(int.from_bytes(part, "big") for part in found.groups()))


# ------------------------------------------------------------------------------------------------------------ alpha


def decode_alpha(data: bytes, height: int, width: int) -> np.ndarray:
    """The array that :func:`~.write_image.encode_alpha` was given.

    Everything is checked before anything is inflated, so that hostile data cost no more memory than the size that the
    caller expects: gray of 8 or 16 bits, not interlaced, of ``height`` x ``width``, only IHDR, IDAT and IEND, all CRCs
    right.

    Raises:  ChunkError.
    """
    depth = 16 if data[24:25] == b"\x10" else 8
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    kinds: list[bytes] = []
    stream = bytearray()
    at = len(png.PNG_SIGNATURE)
    if data[:at] != png.PNG_SIGNATURE:
        raise ChunkError("alpha chunk: not a PNG")
    while at < len(data):
        if len(data) - at < 12:
            raise ChunkError("alpha chunk: the PNG is cut off")
        length, kind = struct.unpack_from(">I4s", data, at)
        if length > len(data) - at - 12:
            raise ChunkError("alpha chunk: the PNG is cut off")
        payload = memoryview(data)[at + 8 : at + 8 + length]
        if zlib.crc32(payload, zlib.crc32(kind)) != struct.unpack_from(">I", data, at + 8 + length)[0]:
            raise ChunkError("alpha chunk: the PNG has a wrong checksum")
        if not kinds and (kind != b"IHDR" or payload != header):
            raise ChunkError(f"alpha chunk: not a gray PNG of 8 or 16 bits and {width} x {height}")
        kinds.append(kind)
        if kind == b"IDAT":
            stream += payload
        at += 12 + length
    if len(kinds) < 3 or kinds[-1] != b"IEND" or any(kind != b"IDAT" for kind in kinds[1:-1]):
        raise ChunkError("alpha chunk: the PNG has chunks other than IHDR, IDAT and IEND")
    _check_inflated_size(stream, height * (width * depth // 8 + 1))
    with pillow_without_limits():
        try:
            im = Image.open(io.BytesIO(data), formats=("PNG",))
            im.load()
        except DECODER_ERRORS as error:
            raise ChunkError(f"alpha chunk: the PNG is damaged ({one_line(error)})") from error
        alpha = np.empty((height, width), f"uint{depth}")
        for y0, y1 in bands(height, width):
            alpha[y0:y1] = np.asarray(im.crop((0, y0, width, y1)))  # older Pillow checks the size here too
        return alpha


def _check_inflated_size(stream: bytes | bytearray, expected: int) -> None:
    """Pillow takes a stream that ends early for a picture whose last rows are 0, and ignores what is too much."""
    inflater = zlib.decompressobj()
    size = 0
    left: bytes | bytearray = stream
    try:
        while left and not inflater.eof and size <= expected:
            size += len(inflater.decompress(left, 1 << 20))
            left = inflater.unconsumed_tail
    except zlib.error as error:
        raise ChunkError("alpha chunk: the PNG is damaged (no valid zlib stream)") from error
    if size != expected or not inflater.eof or inflater.unused_data:
        raise ChunkError("alpha chunk: the PNG does not hold as many samples as it says")
