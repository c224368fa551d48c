"""Rows of a picture that Pillow has opened, as uint8 or uint16 gray or RGB with or without alpha.

Pictures are large, so samples move in bands of rows: beside Pillow's own copy (which takes four bytes for each RGB
pixel) and the result nothing of the size of the picture is allocated, and EXIF orientation costs no copy at all.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from ..errors import UnsupportedMediaError
from .exif import ORIENTATION

_BAND_PIXELS = 1 << 18
_BY_ROWS = ("TIFF", "BMP", "DIB", "GIF", "PPM")  # whose decoders leave what they made before an error
FILLED = "damaged or cut off: decoded as far as it goes, what was not there is filled"


class Raster(NamedTuple):
    """Rows of a decoded picture as the file stores them, before EXIF orientation."""

    height: int
    width: int
    channels: int
    has_alpha: bool
    band: Callable[[int, int], tuple[np.ndarray, np.ndarray | None]]  # rows y0 .. y1 -> [h, W, C], [h, W]


def load(im: ImageFile) -> list[str]:
    """Decode, of a damaged file as far as it goes. Returns the problem, if there is one.

    Raises: what decoders raise, if nothing could be decoded.
    """
    try:
        im.load()
    except OSError:
        if im.format not in _BY_ROWS or im.im.getbbox() is None:
            raise
        im.tile = []  # what is left of it
        return [FILLED]
    return []


def bits_per_sample(im: ImageFile, file: BinaryIO) -> int:
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
    if im.format == "AVIF" and any(flags & 0x40 for flags in av1_flags(file)):
        return 12 if any(flags & 0x20 for flags in av1_flags(file)) else 10
    return int(im.info.get("bit_depth", 8))  # of HEIF, as pillow-heif tells it


def av1_flags(file: BinaryIO) -> list[int]:
    """Of each AV1 stream in an AVIF file (colour, perhaps alpha): 0x40 more than 8 bits, 0x20 12 bits, 0x10 gray."""
    file.seek(0)
    head = file.read(1 << 16)
    return [found[1][0] for found in re.finditer(rb"av1C\x81.(.)", head, re.DOTALL)]


def raster(
    im: ImageFile, file: BinaryIO, name: str, bits: int, *, notes: list[str], problems: list[str], deep: bool = False
) -> Raster:
    """Decode, and say how rows become uint8 gray or RGB with or without alpha.

    Args: notes, problems: what is found is put to them.
          deep: give 16 bits of what has 16; but of RGB only the high bytes, see :func:`low_byte_tiles`.
    """
    narrow = as_they_are if deep else to_8_bits
    if im.format == "PPM" and im.tile and im.tile[0].codec_name != "ppm_plain" and im.mode in ("L", "I", "RGB"):
        return _netpbm_raster(im, file, narrow, problems)
    if im.mode == "F" or (im.mode == "I" and im.format != "PPM"):
        kind = "float" if im.mode == "F" else "signed or 32-bit integer"
        raise UnsupportedMediaError(f"{name} holds {kind} samples without a defined range: convert it to 8 or 16 bits")
    photometric = 1
    if isinstance(im, TiffImageFile):
        if 2 in im.tag_v2.get(339, ()):
            raise UnsupportedMediaError(f"{name} holds signed samples without a defined range: convert it to unsigned")
        photometric = int(im.tag_v2.get(262, 1))
        if bits > 8 and im.tag_v2.get(284, 1) == 2 and im.tag_v2.get(277, 1) > 1:
            raise UnsupportedMediaError(f"{name} holds {bits}-bit channels in separate planes: save it interleaved")

    gray_alpha_16 = im.format == "PNG" and bits == 16 and im.mode == "RGBA" and im.tile[0].args == "LA;16B"
    if gray_alpha_16:  # Pillow drops the low bytes; as RGBA the four bytes are high and low gray, high and low alpha
        im.tile = [tile._replace(args="RGBA") for tile in im.tile]
    problems += load(im)
    vars(im).pop("_decoder", None)  # WebP and AVIF keep the whole decoded picture in there
    width, height = im.im.size  # not im.size, which TIFF has turned already
    mode = im.mode
    key = im.info.get("transparency")

    def rows(y0: int, y1: int) -> Image.Image:
        return im.crop((0, y0, width, y1))

    if gray_alpha_16:

        def gray_alpha_band(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
            samples = np.asarray(rows(y0, y1))  # [h, W, 4]
            both = narrow(samples[..., 0::2].astype(np.uint16) << 8 | samples[..., 1::2], 65535)  # [h, W, 2]
            return both[..., :1], both[..., 1]

        return Raster(height, width, 1, True, gray_alpha_band)

    if mode.startswith("I"):  # I;16 in either byte order; I only from PPM, which scales to 65535
        maxval = (1 << bits) - 1 if mode != "I" else 65535

        def gray_16_band(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
            samples = np.asarray(rows(y0, y1)).astype(np.uint16)  # [h, W]
            opaque = None if key is None else _opaque(samples[..., None], key)
            if photometric == 0:  # white is zero
                samples = np.uint16(maxval) - samples
            return narrow(samples, maxval)[..., None], opaque

        return Raster(height, width, 1, key is not None, gray_16_band)

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

        return Raster(height, width, channels, True, keyed_band)

    convert, target = _conversion(im, notes)
    if im.format == "AVIF" and all(flags & 0x10 for flags in av1_flags(file) or [0]):  # Pillow says RGB
        convert, target = (lambda part: part.convert(target)), "LA" if target == "RGBA" else "L"
    has_alpha = target in ("LA", "RGBA")
    channels = 3 if target.startswith("RGB") else 1

    def band(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
        samples = np.asarray(convert(rows(y0, y1)))
        samples = samples.reshape(y1 - y0, width, channels + has_alpha)
        return samples[..., :channels], samples[..., channels] if has_alpha else None

    return Raster(height, width, channels, has_alpha, band)


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


def _netpbm_raster(
    im: ImageFile, file: BinaryIO, narrow: Callable[[np.ndarray, int], np.ndarray], problems: list[str]
) -> Raster:
    """Binary PGM and PPM of any maxval; Pillow takes them apart sample by sample in Python."""
    tile = im.tile[0]
    maxval = tile.args[-1] if isinstance(tile.args, tuple) else 65535 if im.mode == "I" else 255
    width, height = im.size
    channels = 3 if im.mode == "RGB" else 1
    dtype = np.dtype(np.uint8 if maxval < 256 else ">u2")
    row_bytes = width * channels * dtype.itemsize
    there = file.seek(0, io.SEEK_END) - tile.offset
    if there < row_bytes:
        raise OSError("image file is truncated")
    problems += [FILLED] * (there < row_bytes * height)

    def band(y0: int, y1: int) -> tuple[np.ndarray, np.ndarray | None]:
        file.seek(tile.offset + y0 * row_bytes)
        size = (y1 - y0) * row_bytes
        samples = np.frombuffer(file.read(size).ljust(size, b"\0"), dtype).reshape(y1 - y0, width, channels)
        return samples if maxval == 255 else narrow(np.minimum(samples, maxval), maxval), None

    return Raster(height, width, channels, False, band)


def low_byte_tiles(im: ImageFile) -> list[Any] | None:
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


def holds_16_bits(im: ImageFile, bits: int, low_bytes: bool) -> bool:
    """Whether all 16 bits of each sample can be had, from 0 to 65535. low_bytes: whether there are tiles of them."""
    if im.format == "PPM":
        tile = im.tile[0]
        most = tile.args[-1] if isinstance(tile.args, tuple) else 65535
        return bits == 16 and tile.codec_name != "ppm_plain" and most == 65535
    return bits == 16 and (low_bytes or im.mode.startswith("I;16") or (im.format == "PNG" and im.mode in ("I", "RGBA")))


def add_low_bytes(
    im: ImageFile, tiles: list[Any], key: tuple[int, ...] | None, pixels: np.ndarray, alpha: np.ndarray | None
) -> None:
    """Put low bytes (decoded here) to the high ones, in place: rounded to 8 bits, or whole if the arrays have 16."""
    narrow = to_8_bits if pixels.itemsize == 1 else as_they_are
    if isinstance(im, TiffImageFile):
        im.getexif()[ORIENTATION] = 1
    im.tile = tiles
    load(im)
    height, width = pixels.shape[:2]
    for y0, y1 in bands(height, width):
        low = np.asarray(im.crop((0, y0, width, y1)))  # [h, W, 3 or 4]
        samples = pixels[y0:y1].astype(np.uint16) << 8 | low[..., :3]
        pixels[y0:y1] = narrow(samples, 65535)
        if alpha is not None and low.shape[2] == 4:
            alpha[y0:y1] = narrow(alpha[y0:y1].astype(np.uint16) << 8 | low[..., 3], 65535)
        elif alpha is not None and key is not None:
            alpha[y0:y1] = _opaque(samples, key)


def bands(height: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BAND_PIXELS // width)
    for y0 in range(0, height, step):
        yield y0, min(y0 + step, height)


def as_they_are(samples: np.ndarray, maxval: int) -> np.ndarray:
    """In the place of :func:`to_8_bits`."""
    return samples


def to_8_bits(samples: np.ndarray, maxval: int = 65535) -> np.ndarray:
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


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The view of an upright array that has its rows and columns where a file of this EXIF orientation has them."""
    if orientation >= 5:
        upright = upright.swapaxes(0, 1)
    # EXIF 2.32, tag 274: 0th row at the top and 0th column at the left for 1, at the top and at the right for 2, ...
    rows = -1 if orientation in (3, 4, 6, 7) else 1
    columns = -1 if orientation in (2, 3, 7, 8) else 1
    return upright[::rows, ::columns]
