"""Pictures in and out: any common file <-> uint8 samples, alpha, colour profile and EXIF.

A reader of pictures has many chances to lose something in silence: the second frame, the low bytes of 16-bit samples,
the rotation, the colour profile. Here everything that is in the file is either in the :class:`Picture`, or named in its
``notes``, or a reason to refuse. (The print resolution is the one exception: it says nothing about the samples.)

Pictures are large, so samples move in bands of rows: beside Pillow's own copy (which takes four bytes for each RGB
pixel) and the result nothing of the size of the picture is allocated, and EXIF orientation costs no copy at all.
"""

from __future__ import annotations

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
from .exif import DECODER_ERRORS, ORIENTATION, PNG_SIGNATURE, dropped_metadata, png_chunks, read_exif, tiff_exif

IMAGE_SUFFIXES_IN = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".dib",
    ".gif", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
# Plugins that may look at a file (JPEG's also finds MPO). The others are never asked: EPS would start Ghostscript.
_FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM")
_MAGIC = {
    b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    b"BM": "BMP", b"GIF8": "GIF",
}  # fmt: skip
_BAND_PIXELS = 1 << 18


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
        raise MediaError(f"{name} cannot be read: {one_line(error)}") from error


def _read_stream(stream: BinaryIO, name: str, max_pixels: int) -> Picture:
    file = stream
    if not stream.seekable() or stream.tell() != 0:  # TIFF offsets count from the start
        file = io.BytesIO(stream.read())
    with pillow_without_limits():
        try:
            return _decode(file, name, max_pixels)
        except TokodecError:
            raise
        except DECODER_ERRORS as error:
            raise MediaError(f"{name} is damaged or cut off: {one_line(error)}") from error


def _decode(file: BinaryIO, name: str, max_pixels: int) -> Picture:
    im = _open(file, name)
    tiff = isinstance(im, TiffImageFile)
    notes: list[str] = []
    _check_size(im, name, max_pixels)
    _check_frames(im, name, notes)
    chunks = png_chunks(file) if im.format == "PNG" else []
    bits = _bits_per_sample(im, file)
    low_tiles = _low_byte_tiles(im)
    exif, orientation = tiff_exif(im, notes) if isinstance(im, TiffImageFile) else (None, 1)

    raster = _raster(im, file, name, bits, notes)
    if not tiff:
        exif, orientation = read_exif(im, notes)  # after load(): PNG may hold it behind the samples
    upright = (raster.width, raster.height) if orientation >= 5 else (raster.height, raster.width)
    pixels = np.empty((*upright, raster.channels), np.uint8)
    alpha = np.empty(upright, np.uint8) if raster.has_alpha else None
    pixels_stored = _as_stored(pixels, orientation)  # views: writing to them turns the picture
    alpha_stored = None if alpha is None else _as_stored(alpha, orientation)
    for y0, y1 in bands(raster.height, raster.width):
        pixels_band, alpha_band = raster.band(y0, y1)
        pixels_stored[y0:y1] = pixels_band
        if alpha_stored is not None and alpha_band is not None:
            alpha_stored[y0:y1] = alpha_band

    icc = None if im.mode in ("CMYK", "LAB") else im.info.get("icc_profile") or None  # those two are sRGB by now
    key = im.info.get("transparency")
    notes += dropped_metadata(im, chunks, has_alpha=alpha is not None, has_exif=exif is not None)
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
        im.getexif()[ORIENTATION] = 1
    im.tile = tiles
    im.load()
    height, width = pixels.shape[:2]
    for y0, y1 in bands(height, width):
        low = np.asarray(im.crop((0, y0, width, y1)))  # [h, W, 3 or 4]
        samples = pixels[y0:y1].astype(np.uint16) << 8 | low[..., :3]
        pixels[y0:y1] = _to_8_bits(samples)
        if alpha is not None and low.shape[2] == 4:
            alpha[y0:y1] = _to_8_bits(alpha[y0:y1].astype(np.uint16) << 8 | low[..., 3])
        elif alpha is not None and key is not None:
            alpha[y0:y1] = _opaque(samples, key)


def bands(height: int, width: int) -> Iterator[tuple[int, int]]:
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


def decode_alpha(data: bytes, height: int, width: int) -> np.ndarray:
    """The array that :func:`encode_alpha` was given.

    Everything is checked before anything is inflated, so that hostile data cost no more memory than the size that the
    caller expects: 8-bit gray, not interlaced, of ``height`` x ``width``, only IHDR, IDAT and IEND, all CRCs right.

    Raises:  ChunkError.
    """
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    kinds: list[bytes] = []
    stream = bytearray()
    at = len(PNG_SIGNATURE)
    if data[:at] != PNG_SIGNATURE:
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
    with pillow_without_limits():
        try:
            im = Image.open(io.BytesIO(data), formats=("PNG",))
            im.load()
        except DECODER_ERRORS as error:
            raise ChunkError(f"alpha chunk: the PNG is damaged ({one_line(error)})") from error
        alpha = np.empty((height, width), np.uint8)
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


# ----------------------------------------------------------------------------------------------------------- Pillow

_guard = threading.Lock()
_users = 0
_restore = ExitStack()


@contextmanager
def pillow_without_limits() -> Iterator[None]:
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


def one_line(error: object) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, MemoryError):
        return "not enough memory"
    return " ".join(str(error).split()) or type(error).__name__
