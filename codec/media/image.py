"""Pictures in and out: any common file <-> uint8 samples, alpha, colour profile and EXIF.

A reader of pictures has many chances to lose something in silence: the second frame, the low bytes of 16-bit samples,
the rotation, the colour profile. Here everything that is in the file is either in the :class:`Picture`, or named in its
``notes``, or a reason to refuse. (The print resolution is the one exception: it says nothing about the samples.)

Pictures are large, so samples move in bands of rows: beside Pillow's own copy (which takes four bytes for each RGB
pixel) and the result nothing of the size of the picture is allocated, and EXIF orientation costs no copy at all.
"""

import io
import re
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import ChunkError, MediaError, TokodecError, UnsupportedMediaError

IMAGE_SUFFIXES_IN = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".dib",
    ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
IMAGE_SUFFIXES_OUT = (".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm", ".jpg", ".jpeg", ".avif")

PNG_LEVEL = 4  # a noisy photograph of 768 x 512: 57 ms; levels 1 to 3 take 40 ms for 11 % more bytes, 6 gains nothing
JPEG_QUALITY = 95
AVIF_QUALITY = 90

# Plugins that may look at a file (JPEG's also finds MPO). The others are never asked: EPS would start Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM")
_MAGIC = {
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"BM": "BMP", b"GIF8": "GIF",
}  # fmt: skip
# What Pillow's decoders raise on damaged files.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
    AttributeError, OverflowError, MemoryError, RuntimeError, ZeroDivisionError, AssertionError, ImageCms.PyCMSError,
)  # fmt: skip
_BAND_PIXELS = 1 << 18
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112


@dataclass
class Picture:
    """One still picture, upright.

    ``exif`` starts with the TIFF header (``II*\\0`` or ``MM\\0*``), without the ``Exif\\0\\0`` that JPEG puts before
    it. It is the block of the file except that the orientation, which has been applied, and the thumbnail are gone;
    offsets inside it are unchanged, so that maker notes stay readable.
    """

    pixels: np.ndarray  # uint8 [H, W, C], C = 1 (gray) or 3 (RGB, display-referred, sRGB unless icc says otherwise)
    alpha: np.ndarray | None = None  # uint8 [H, W], not premultiplied; None if the file has no alpha
    icc: bytes | None = None  # ICC profile as found in the file
    exif: bytes | None = None
    bit_depth: int = 8  # of the source: 8, or 16 if it had more than 8 bits per sample
    notes: list[str] = field(default_factory=list)  # a line each: what was converted or could not be kept


class _Raster(NamedTuple):
    """Rows of a decoded picture as the file stores them, before EXIF orientation."""

    height: int
    width: int
    channels: int
    has_alpha: bool
    band: Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]  # rows y0 .. y1 -> [h, W, C], [h, W]


# ---------------------------------------------------------------------------------------------------------- reading


def read_image(source: Path | BinaryIO, name: str, max_pixels: int) -> Picture:
    """Read one still picture from a file of any format in ``IMAGE_SUFFIXES_IN`` (told by content, not by suffix).

    Gray stays gray (1, 2, 4, 8 and 16 bits, with or without alpha), everything else becomes RGB; a palette becomes RGB
    even if all its colours are gray. More than 8 bits are rounded to 8, CMYK and LAB converted to sRGB, with a note.

    Args:    source: a path, or a binary file object read from where it stands (need not be seekable).
             name: what messages call it.  max_pixels: larger pictures are refused before any sample is decoded.
    Returns: the picture, upright: all eight EXIF orientations are applied.
    Raises:  UnsupportedMediaError for animations, several pages, float or 32-bit samples; MediaError for everything
             that cannot be read. Both are one line that names the file.
    Cost:    peak memory 2.4 times the RGB samples for PNG, JPEG, TIFF and BMP (Pillow keeps 4 bytes a pixel), twice the
             gray ones (three times if they have 16 bits), 1.0 for PPM; the libraries of AVIF and WebP need 3 and 5.4.
             16-bit RGB is decoded twice, for the high bytes and for the low ones, because Pillow holds only 8 bits.
    """
    if not isinstance(source, Path):
        return _read_stream(source, name, max_pixels)
    try:
        with source.open("rb") as file:
            return _read_stream(file, name, max_pixels)
    except FileNotFoundError:
        raise MediaError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise MediaError(f"{name} is a folder, not a picture") from None
    except OSError as error:
        raise MediaError(f"{name} cannot be read: {_one_line(error)}") from error


def _read_stream(stream: BinaryIO, name: str, max_pixels: int) -> Picture:
    file = stream
    if not stream.seekable() or stream.tell() != 0:  # TIFF offsets count from the start
        file = io.BytesIO(stream.read())
    with _pillow_without_limits():
        try:
            return _decode(file, name, max_pixels)
        except TokodecError:
            raise
        except _DECODER_ERRORS as error:
            raise MediaError(f"{name} is damaged or cut off: {_one_line(error)}") from error


def _decode(file: BinaryIO, name: str, max_pixels: int) -> Picture:
    im = _open(file, name)
    tiff = isinstance(im, TiffImageFile)
    notes: list[str] = []
    _check_size(im, name, max_pixels)
    _check_frames(im, name, notes)
    chunks = _png_chunks(file) if im.format == "PNG" else []
    bits = _bits_per_sample(im, file)
    low_tiles = _low_byte_tiles(im)
    exif, orientation = _tiff_exif(im, notes) if isinstance(im, TiffImageFile) else (None, 1)

    raster = _raster(im, file, name, bits, notes)
    if not tiff:
        exif, orientation = _exif(im, notes)  # after load(): PNG may hold it behind the samples
    upright = (raster.width, raster.height) if orientation >= 5 else (raster.height, raster.width)
    pixels = np.empty((*upright, raster.channels), np.uint8)
    alpha = np.empty(upright, np.uint8) if raster.has_alpha else None
    pixels_stored = _as_stored(pixels, orientation)  # views: writing to them turns the picture
    alpha_stored = None if alpha is None else _as_stored(alpha, orientation)
    for y0, y1 in _bands(raster.height, raster.width):
        pixels_band, alpha_band = raster.band(y0, y1)
        pixels_stored[y0:y1] = pixels_band
        if alpha_stored is not None and alpha_band is not None:
            alpha_stored[y0:y1] = alpha_band

    icc = None if im.mode in ("CMYK", "LAB") else im.info.get("icc_profile") or None  # those two are sRGB by now
    key = im.info.get("transparency")
    notes += _dropped(im, chunks, has_alpha=alpha is not None, has_exif=exif is not None)
    del raster, im  # gives Pillow's copy back before the second pass needs another one
    if low_tiles is not None:
        _add_low_bytes(_open(file, name), low_tiles, key, pixels_stored, alpha_stored)
    if bits > 8:
        notes.insert(0, f"{bits} bits per sample reduced to 8")
    return Picture(pixels, alpha, icc, exif, 16 if bits > 8 else 8, notes)


def _open(file: BinaryIO, name: str) -> ImageFile:
    file.seek(0)
    start = file.read(16)
    if not start:
        raise MediaError(f"{name} is empty")
    file.seek(0)
    try:
        return Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError:
        for magic, kind in _MAGIC.items():
            if start.startswith(magic):
                raise MediaError(f"{name} is a damaged {kind} file, or of a rare kind that cannot be read") from None
        if start.startswith(b"RIFF") or start[4:8] == b"ftyp":
            raise MediaError(f"{name} is a damaged or unknown WebP, AVIF or other container file") from None
        known = "PNG, JPEG, WebP, AVIF, TIFF, BMP, GIF, PPM"
        raise MediaError(f"{name} is not a picture in a known format ({known})") from None


def _check_size(im: ImageFile, name: str, max_pixels: int) -> None:
    width, height = im.size
    if width < 1 or height < 1:
        raise MediaError(f"{name} has no pixels: it is {width} x {height}")
    if width * height > max_pixels:
        raise MediaError(f"{name} has {width} x {height} pixels, more than the limit of {max_pixels}")


def _check_frames(im: ImageFile, name: str, notes: list[str]) -> None:
    frames = int(getattr(im, "n_frames", 1))
    if frames == 1:
        return
    if im.format == "MPO":
        notes.append(f"only the first of {frames} pictures in the file is kept (MPO)")
        return
    kind = "frames (pages)" if im.format == "TIFF" else "frames"
    raise UnsupportedMediaError(f"{name} holds {frames} {kind}; only single pictures can be read")


def _bits_per_sample(im: ImageFile, file: BinaryIO) -> int:
    """The depth in the file, which Pillow's mode does not tell (it calls 16-bit RGB plain RGB)."""
    if im.format == "PNG":
        file.seek(24)  # signature 8, chunk length 4, "IHDR" 4, width 4, height 4
        depth = file.read(1)[0]
        return depth
    if isinstance(im, TiffImageFile):
        return max(im.tag_v2.get(258, (1,)))
    if im.format == "PPM" and im.tile:
        args = im.tile[0].args
        if im.mode == "F":
            return 32
        maxval = args[-1] if isinstance(args, tuple) else 65535 if args == "I;16B" else 255
        return int(maxval).bit_length()
    if im.format == "AVIF" and any(flags & 0x40 for flags in _av1_flags(file)):
        return 12 if any(flags & 0x20 for flags in _av1_flags(file)) else 10
    return 8


def _av1_flags(file: BinaryIO) -> list[int]:
    """Of each AV1 stream in an AVIF file (colour, perhaps alpha): 0x40 more than 8 bits, 0x20 12 bits, 0x10 gray."""
    file.seek(0)
    head = file.read(1 << 16)
    return [found[1][0] for found in re.finditer(rb"av1C\x81.(.)", head, re.DOTALL)]


# Rows of a loaded picture ----------------------------------------------------------------------------------------


def _raster(im: ImageFile, file: BinaryIO, name: str, bits: int, notes: list[str]) -> _Raster:
    """Decode, and say how rows become uint8 gray or RGB with or without alpha."""
    if im.format == "PPM" and im.tile and im.tile[0].codec_name != "ppm_plain" and im.mode in ("L", "I", "RGB"):
        return _netpbm_raster(im, file)
    if im.mode == "F" or (im.mode == "I" and im.format != "PPM"):
        kind = "float" if im.mode == "F" else "signed or 32-bit integer"
        raise UnsupportedMediaError(f"{name} holds {kind} samples without a defined range: convert it to 8 or 16 bits")
    photometric = 1
    if isinstance(im, TiffImageFile):
        photometric = int(im.tag_v2.get(262, 1))
        if bits > 8 and im.tag_v2.get(284, 1) == 2 and im.tag_v2.get(277, 1) > 1:
            raise UnsupportedMediaError(f"{name} holds {bits}-bit channels in separate planes: save it interleaved")

    gray_alpha_16 = im.format == "PNG" and bits == 16 and im.mode == "RGBA" and im.tile[0].args == "LA;16B"
    if gray_alpha_16:  # Pillow drops the low bytes; as RGBA the four bytes are high and low gray, high and low alpha
        im.tile = [tile._replace(args="RGBA") for tile in im.tile]
    im.load()
    vars(im).pop("_decoder", None)  # WebP and AVIF keep the whole decoded picture in there
    width, height = im.im.size  # not im.size, which TIFF has turned already
    mode = im.mode
    key = im.info.get("transparency")

    def rows(y0: int, y1: int) -> Image.Image:
        return im.crop((0, y0, width, y1))

    if gray_alpha_16:

        def gray_alpha_band(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
            samples = np.asarray(rows(y0, y1))  # [h, W, 4]
            both = _to_8_bits(samples[..., 0::2].astype(np.uint16) << 8 | samples[..., 1::2])  # [h, W, 2]
            return both[..., :1], both[..., 1]

        return _Raster(height, width, 1, True, gray_alpha_band)

    if mode.startswith("I"):  # I;16 in either byte order; I only from PPM, which scales to 65535
        maxval = (1 << bits) - 1 if mode != "I" else 65535

        def gray_16_band(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
            samples = np.asarray(rows(y0, y1)).astype(np.uint16)  # [h, W]
            opaque = None if key is None else _opaque(samples[..., None], key)
            if photometric == 0:  # white is zero
                samples = np.uint16(maxval) - samples
            return _to_8_bits(samples, maxval)[..., None], opaque

        return _Raster(height, width, 1, key is not None, gray_16_band)

    if mode in ("1", "L", "RGB") and key is not None:  # one colour is transparent
        if mode == "1":
            key = 255 if key else 0
        elif im.format == "PNG" and mode == "L":
            key = key * 255 // ((1 << bits) - 1)  # Pillow spreads 2 and 4 bits over 0 .. 255, but not the key
        channels = 3 if mode == "RGB" else 1

        def keyed_band(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
            band = rows(y0, y1)
            band.info.pop("transparency", None)
            samples = np.asarray(band.convert("L") if mode == "1" else band).reshape(y1 - y0, width, channels)
            return samples, _opaque(samples, key)

        return _Raster(height, width, channels, True, keyed_band)

    convert, target = _conversion(im, notes)
    if im.format == "AVIF" and all(flags & 0x10 for flags in _av1_flags(file) or [0]):  # Pillow says RGB
        convert, target = (lambda part: part.convert(target)), "LA" if target == "RGBA" else "L"
    has_alpha = target in ("LA", "RGBA")
    channels = 3 if target.startswith("RGB") else 1

    def band(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
        samples = np.asarray(convert(rows(y0, y1)))
        samples = samples.reshape(y1 - y0, width, channels + has_alpha)
        return samples[..., :channels], samples[..., channels] if has_alpha else None

    return _Raster(height, width, channels, has_alpha, band)


def _conversion(im: Image.Image, notes: list[str]) -> tuple[Callable[[Image.Image], Image.Image], str]:
    """What brings any 8-bit mode to L, LA, RGB or RGBA, and which of them it is."""
    mode = im.mode
    if mode in ("L", "LA", "RGB", "RGBA"):
        return (lambda band: band), mode
    if mode in ("CMYK", "LAB"):
        icc = im.info.get("icc_profile")
        transform = None
        if mode == "LAB":
            source = ImageCms.createProfile("LAB")
            transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), "LAB", "RGB")
            notes.append("LAB converted to sRGB")
        elif icc:
            try:
                profile = ImageCms.getOpenProfile(io.BytesIO(icc))
                transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), "CMYK", "RGB")
                notes.append("CMYK converted to sRGB by its ICC profile")
            except (ImageCms.PyCMSError, OSError):
                notes.append("CMYK converted to RGB without its ICC profile, which is damaged: colours are approximate")
        else:
            notes.append("CMYK converted to RGB without an ICC profile: colours are approximate")
        if transform is not None:
            chosen = transform

            def by_profile(band: Image.Image) -> Image.Image:
                converted = ImageCms.applyTransform(band, chosen)
                assert converted is not None  # it is None only for inPlace
                return converted

            return by_profile, "RGB"
        return (lambda band: band.convert("RGB")), "RGB"
    if mode == "1":
        target = "L"
    elif mode == "La":
        target = "LA"
    elif mode in ("RGBa", "PA") or im.has_transparency_data:
        target = "RGBA"
    else:  # P, YCbCr, RGBX, HSV
        target = "RGB"
    return (lambda band: band.convert(target)), target


def _netpbm_raster(im: ImageFile, file: BinaryIO) -> _Raster:
    """Binary PGM and PPM of any maxval; Pillow takes them apart sample by sample in Python."""
    tile = im.tile[0]
    maxval = tile.args[-1] if isinstance(tile.args, tuple) else 65535 if im.mode == "I" else 255
    width, height = im.size
    channels = 3 if im.mode == "RGB" else 1
    dtype = np.dtype(np.uint8 if maxval < 256 else ">u2")
    row_bytes = width * channels * dtype.itemsize
    file.seek(0, io.SEEK_END)
    if file.tell() - tile.offset < row_bytes * height:
        raise OSError("image file is truncated")

    def band(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
        file.seek(tile.offset + y0 * row_bytes)
        samples = np.frombuffer(file.read((y1 - y0) * row_bytes), dtype).reshape(y1 - y0, width, channels)
        return samples if maxval == 255 else _to_8_bits(np.minimum(samples, maxval), maxval), None

    return _Raster(height, width, channels, False, band)


def _low_byte_tiles(im: ImageFile) -> list[Any] | None:
    """Tiles that decode the *low* bytes of 16-bit RGB and RGBA, or None for pictures of other kinds.

    Pillow takes the high byte of each sample. Told that the bytes stand in the other order it takes the low one.
    """
    tiles = []
    for tile in im.tile:
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        found = re.fullmatch(r"(RGB[AX]?;16)([LBN])", str(args[0]))
        if im.mode not in ("RGB", "RGBA") or not found:
            return None
        little = found[2] == "L" or (found[2] == "N" and sys.byteorder == "little")
        swapped = found[1] + ("B" if little else "L")
        tiles.append(tile._replace(args=(swapped, *args[1:]) if isinstance(tile.args, tuple) else swapped))
    return tiles or None


def _add_low_bytes(
    im: ImageFile, tiles: list[Any], key: tuple[int, ...] | None, pixels: np.ndarray, alpha: np.ndarray | None
) -> None:
    """Round high byte (in ``pixels`` and ``alpha``) and low byte (decoded here) to 8 bits, in place."""
    if isinstance(im, TiffImageFile):
        im.getexif()[_ORIENTATION] = 1
    im.tile = tiles
    im.load()
    height, width = pixels.shape[:2]
    for y0, y1 in _bands(height, width):
        low = np.asarray(im.crop((0, y0, width, y1)))  # [h, W, 3 or 4]
        samples = pixels[y0:y1].astype(np.uint16) << 8 | low[..., :3]
        pixels[y0:y1] = _to_8_bits(samples)
        if alpha is not None and low.shape[2] == 4:
            alpha[y0:y1] = _to_8_bits(alpha[y0:y1].astype(np.uint16) << 8 | low[..., 3])
        elif alpha is not None and key is not None:
            alpha[y0:y1] = _opaque(samples, key)


def _bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BAND_PIXELS // width)
    for y0 in range(0, height, step):
        yield y0, min(y0 + step, height)


def _to_8_bits(samples: np.ndarray, maxval: int = 65535) -> np.ndarray:
    """``samples`` * 255 / ``maxval``, rounded to the nearest (halves up)."""
    wide = samples.astype(np.uint32)
    wide *= 255
    if maxval == 65535:
        wide += 32895  # libpng's constant: the shift then equals the rounded quotient for all 65536 values
        wide >>= 16
    else:
        wide += maxval // 2
        wide //= maxval
    return wide.astype(np.uint8)


def _opaque(samples: np.ndarray, key: int | tuple[int, ...]) -> np.ndarray:
    """Alpha of a picture in which one colour is transparent: [h, W, C] -> [h, W]."""
    return np.where((samples == np.asarray(key)).all(axis=-1), np.uint8(0), np.uint8(255))


def _as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The view of an upright array that has its rows and columns where a file of this EXIF orientation has them."""
    if orientation >= 5:
        upright = upright.swapaxes(0, 1)
    # EXIF 2.32, tag 274: 0th row at the top and 0th column at the left for 1, at the top and at the right for 2, ...
    rows = -1 if orientation in (3, 4, 6, 7) else 1
    columns = -1 if orientation in (2, 3, 7, 8) else 1
    return upright[::rows, ::columns]


# Metadata --------------------------------------------------------------------------------------------------------


def _png_chunks(file: BinaryIO) -> list[tuple[str, str]]:
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


def _dropped(im: Image.Image, chunks: list[tuple[str, str]], has_alpha: bool, has_exif: bool) -> list[str]:
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


def _exif(im: Image.Image, notes: list[str]) -> tuple[bytes | None, int]:
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
        if tag == _ORIENTATION:
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


def _tiff_exif(im: TiffImageFile, notes: list[str]) -> tuple[bytes | None, int]:
    """EXIF block made of the descriptive tags of a TIFF, and its orientation, which Pillow is told not to apply."""
    tags = im.getexif()
    orientation = im.tag_v2.get(_ORIENTATION, 1)
    tags[_ORIENTATION] = 1  # load() would make a turned copy of the whole picture
    kept = _descriptive(tags)
    if not isinstance(orientation, int) or not 1 <= orientation <= 8:
        orientation = 1
    if not len(kept):
        return None, orientation
    try:
        return kept.tobytes().removeprefix(b"Exif\0\0"), orientation
    except _DECODER_ERRORS:
        notes.append("EXIF not kept: it is damaged")
        return None, orientation


def _descriptive(tags: Image.Exif) -> Image.Exif:
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


# ---------------------------------------------------------------------------------------------------------- writing


def write_image(picture: Picture, target: Path | BinaryIO, format: str, name: str) -> list[str]:
    """Write a picture in the format of a suffix.

    png, tiff, bmp, ppm, pgm and webp (lossless) give back the same samples; jpeg (quality 95, 4:4:4) and avif (quality
    90, 4:4:4) are conveniences of high quality, and say so in a note.

    Args:    picture: see :class:`Picture`.  target: a path (overwritten), or a binary file object, perhaps a pipe.
             format: one of ``IMAGE_SUFFIXES_OUT``, with or without the dot.  name: what messages call the output.
    Returns: notes, a line each: what the format could not hold (ICC, EXIF) or changed.
    Raises:  UnsupportedMediaError if the format cannot hold alpha, colour or the size; MediaError for a suffix that is
             not known and for everything that the disk refuses.
    Cost:    peak memory, picture included, 2.33 times the RGB samples (Pillow keeps 4 bytes a pixel); 1.0 for gray and
             for ppm. The lossless encoder of webp needs ten times.
    """
    suffix = "." + format.lower().removeprefix(".")
    if suffix not in IMAGE_SUFFIXES_OUT:
        raise MediaError(f"{name}: cannot write {suffix} pictures; choose one of {' '.join(IMAGE_SUFFIXES_OUT)}")
    _check_fits(picture, suffix, name)
    try:
        with ExitStack() as stack:
            file = stack.enter_context(target.open("wb")) if isinstance(target, Path) else target
            if suffix in (".ppm", ".pgm", ".pnm"):
                return _write_netpbm(picture, file, suffix)
            stack.enter_context(_pillow_without_limits())
            return _write_pillow(picture, file, suffix)
    except TokodecError:
        raise
    except _DECODER_ERRORS as error:
        raise MediaError(f"{name} cannot be written: {_one_line(error)}") from error


def _check_fits(picture: Picture, suffix: str, name: str) -> None:
    pixels, alpha = picture.pixels, picture.alpha
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        raise ValueError(f"pixels must be uint8 [H, W, 1 or 3], not {pixels.dtype} {list(pixels.shape)}")
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != pixels.shape[:2]):
        raise ValueError(f"alpha must be uint8 {list(pixels.shape[:2])}, not {alpha.dtype} {list(alpha.shape)}")
    if alpha is not None and suffix in (".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".pnm"):
        raise UnsupportedMediaError(f"{name} cannot hold the alpha channel; write .png")
    if suffix == ".pgm" and pixels.shape[2] == 3:
        raise UnsupportedMediaError(f"{name} cannot hold colour; write .ppm or .png")
    largest = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500, ".avif": 65536}.get(suffix)
    if largest is not None and max(pixels.shape) > largest:
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise UnsupportedMediaError(f"{name} cannot hold {size} pixels ({suffix} ends at {largest} a side); write .png")


def _write_netpbm(picture: Picture, file: BinaryIO, suffix: str) -> list[str]:
    height, width, channels = picture.pixels.shape
    file.write(b"P%d\n%d %d\n255\n" % (6 if channels == 3 else 5, width, height))
    for y0, y1 in _bands(height, width):
        file.write(np.ascontiguousarray(picture.pixels[y0:y1]).data)
    return [f"{kind} not kept: {suffix} has no place for it" for kind in _metadata(picture)]


def _write_pillow(picture: Picture, file: BinaryIO, suffix: str) -> list[str]:
    notes: list[str] = []
    icc, exif = picture.icc, picture.exif
    options: dict[str, Any]
    if suffix == ".png":
        plugin, options = "PNG", {"compress_level": PNG_LEVEL}
    elif suffix in (".tif", ".tiff"):
        plugin, options = "TIFF", {"compression": "tiff_adobe_deflate"}
    elif suffix == ".webp":
        plugin, options = "WEBP", {"lossless": True, "exact": True, "quality": 50, "method": 2}
    elif suffix == ".bmp":
        plugin, options = "BMP", {}
        notes += [f"{kind} not kept: .bmp has no place for it" for kind in _metadata(picture)]
        icc = exif = None
    elif suffix == ".avif":
        subsampling = "4:0:0" if picture.pixels.shape[2] == 1 else "4:4:4"
        plugin, options = "AVIF", {"quality": AVIF_QUALITY, "subsampling": subsampling}
        notes.append(f".avif is lossy: written with quality {AVIF_QUALITY}")
    else:
        plugin, options = "JPEG", {"quality": JPEG_QUALITY, "subsampling": 0}
        notes.append(f"{suffix} is lossy: written with quality {JPEG_QUALITY}")
        if exif is not None and len(exif) > 65527:  # a segment holds 65533 bytes, six of them "Exif\0\0"
            notes.append(f"EXIF not kept: {len(exif)} bytes are more than {suffix} can hold")
            exif = None
    if suffix == ".webp" and picture.pixels.shape[2] == 1:
        notes.append(".webp has no gray: written as RGB")
        if icc is not None and icc[16:20] == b"GRAY":
            notes.append("ICC profile not kept: it is for gray, and .webp has RGB only")
            icc = None
    if icc is not None:
        options["icc_profile"] = icc
    if exif is not None and plugin == "TIFF":
        try:
            block = Image.Exif()
            block.load(exif)
            options["exif"] = _descriptive(block).tobytes()
            options["compression"] = "raw"  # Pillow's way through libtiff cannot write the EXIF and GPS directories
        except _DECODER_ERRORS:
            notes.append("EXIF not kept: it is damaged")
    elif exif is not None:
        options["exif"] = b"Exif\0\0" + exif

    pipe = file
    if plugin == "TIFF" and not file.seekable():
        file = io.BytesIO()
    _to_pillow(picture).save(file, plugin, **options)
    if file is not pipe:
        assert isinstance(file, io.BytesIO)
        pipe.write(file.getbuffer())
    return notes


def _to_pillow(picture: Picture) -> Image.Image:
    if picture.alpha is None:
        gray = picture.pixels.shape[2] == 1
        return Image.fromarray(np.ascontiguousarray(picture.pixels[..., 0] if gray else picture.pixels))
    height, width, channels = picture.pixels.shape
    samples = np.empty((height, width, channels + 1), np.uint8)
    samples[..., :channels] = picture.pixels
    samples[..., channels] = picture.alpha
    return Image.fromarray(samples)  # [H, W, 2] is LA, [H, W, 4] is RGBA


def _metadata(picture: Picture) -> list[str]:
    return [kind for kind, value in (("ICC profile", picture.icc), ("EXIF", picture.exif)) if value]


# ------------------------------------------------------------------------------------------------------------ alpha


def encode_alpha(alpha: np.ndarray) -> bytes:
    """An alpha channel, uint8 [H, W], as an 8-bit gray PNG without ancillary chunks."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(alpha)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def decode_alpha(data: bytes, height: int, width: int) -> np.ndarray:
    """The array that :func:`encode_alpha` was given.

    Everything is checked before anything is inflated, so that hostile data cost no more memory than the size that the
    caller expects: 8-bit gray, not interlaced, of ``height`` x ``width``, only IHDR, IDAT and IEND, all CRCs right.

    Raises:  ChunkError.
    """
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    kinds: list[bytes] = []
    stream = bytearray()
    at = len(_PNG_SIGNATURE)
    if data[:at] != _PNG_SIGNATURE:
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
            raise ChunkError(f"alpha chunk: not an 8-bit gray PNG of {width} x {height}")
        kinds.append(kind)
        if kind == b"IDAT":
            stream += payload
        at += 12 + length
    if len(kinds) < 3 or kinds[-1] != b"IEND" or any(kind != b"IDAT" for kind in kinds[1:-1]):
        raise ChunkError("alpha chunk: the PNG has chunks other than IHDR, IDAT and IEND")
    _check_inflated_size(stream, height * (width + 1))
    with _pillow_without_limits():
        try:
            im = Image.open(io.BytesIO(data), formats=("PNG",))
            im.load()
        except _DECODER_ERRORS as error:
            raise ChunkError(f"alpha chunk: the PNG is damaged ({_one_line(error)})") from error
        alpha = np.empty((height, width), np.uint8)
        for y0, y1 in _bands(height, width):
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


# ----------------------------------------------------------------------------------------------------------- Pillow

_guard = threading.Lock()
_users = 0
_restore = ExitStack()


@contextmanager
def _pillow_without_limits() -> Iterator[None]:
    """Switch off Pillow's size limit (ours is checked instead) and its warnings while anybody is inside.

    Both are global to the process: the first thread that enters sets them, the last one that leaves restores them.
    """
    global _users
    with _guard:
        if _users == 0:
            _restore.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            _restore.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
        _users += 1
    try:
        yield
    finally:
        with _guard:
            _users -= 1
            if _users == 0:
                _restore.close()


def _one_line(error: object) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, MemoryError):
        return "not enough memory"
    return " ".join(str(error).split()) or type(error).__name__
