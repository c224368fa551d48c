"""Pictures to files: PNG, WebP, JPEG, AVIF, TIFF, BMP and the Netpbm family, by suffix."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from PIL import Image, PngImagePlugin

from ..errors import MediaError, TokodecError, UnsupportedMediaError, one_line
from ..files import Output, atomic_output
from .exif import descriptive
from .pillow_guard import DECODER_ERRORS, pillow_without_limits
from .png import write_deep_png
from .profile import fitting_profile
from .raster import bands, to_8_bits
from .tiff import write_deep_tiff

if TYPE_CHECKING:
    from .picture import Picture


IMAGE_SUFFIXES_OUT = (".png", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm", ".pnm", ".jpg", ".jpeg", ".avif")
_DEEP = (".png", ".ppm", ".pgm", ".pnm", ".tif", ".tiff")  # hold 16 bits
PNG_LEVEL = 4  # a noisy photograph of 768 x 512: 57 ms; levels 1 to 3 take 40 ms for 11 % more bytes, 6 gains nothing
JPEG_QUALITY = 95
AVIF_QUALITY = 90
# A segment of JPEG holds 65533 bytes; these begin with "Exif\0\0" and "http://ns.adobe.com/xap/1.0/\0".
_JPEG_EXIF, _JPEG_XMP = 65533 - 6, 65533 - 29
_DIRECTORIES = (0x8769, 0x8825)  # of EXIF and GPS


# ---------------------------------------------------------------------------------------------------------- writing


def write_image(picture: Picture, target: Path | BinaryIO, format: str, name: str) -> list[str]:
    """Write a picture in the format of a suffix.

    png, tiff, bmp, ppm, pgm and webp (lossless) give back the same samples; jpeg (quality 95, 4:4:4) and avif (quality
    90, 4:4:4) are conveniences of high quality, and say so in a note. Samples of 16 bits keep them in png, tiff, ppm
    and pgm; elsewhere they are rounded to 8, with a note.

    Args:    picture: see :class:`~.picture.Picture`.
             target: a path (overwritten once the picture is whole), or a binary file object, perhaps a pipe.
             format: one of ``IMAGE_SUFFIXES_OUT``, with or without the dot.  name: what messages call the output.
    Returns: notes, a line each: what the format could not hold (ICC, EXIF, XMP) or changed.
    Raises:  UnsupportedMediaError if the format cannot hold alpha, colour or the size; MediaError for a suffix that is
             not known and for everything that the disk refuses.
    Cost:    peak memory, picture included, 2.33 times the RGB samples (Pillow keeps 4 bytes a pixel); 1.0 for gray and
             for ppm. The lossless encoder of webp needs ten times.
    """
    _check_arrays(picture)
    height, width, channels = picture.pixels.shape
    suffix = check_writable(format, name, (height, width), channels, picture.alpha is not None)
    rounded: list[str] = []
    deep = picture.pixels.itemsize == 2
    gray_alpha = channels == 1 and picture.alpha is not None  # few read it in TIFF, and Pillow does not
    if deep and suffix not in ((".png",) if gray_alpha else _DEEP):
        picture, deep = _with_8_bits(picture), False
        what = f"{suffix} of gray with alpha" if suffix in _DEEP else suffix
        rounded = [f"16 bits per sample reduced to 8: {what} holds no more"]
    try:
        with ExitStack() as stack:
            if isinstance(target, Path):
                file = stack.enter_context(atomic_output(target, force=True))
            else:  # Pillow does not look at what a file object takes
                file = target if isinstance(target, Output) else cast(BinaryIO, Output(target, name))
            if suffix in (".ppm", ".pgm", ".pnm"):
                return _write_netpbm(picture, file, suffix)
            stack.enter_context(pillow_without_limits())
            if deep:
                return _write_deep(picture, file, suffix)
            return rounded + _write_pillow(picture, file, suffix)
    except TokodecError:
        raise
    except DECODER_ERRORS as error:
        raise MediaError(f"{name} cannot be written: {one_line(error)}") from error


def check_writable(format: str, name: str, size: tuple[int, int], channels: int, has_alpha: bool) -> str:
    """Refuse what a format cannot hold, before the work of decoding it is done.

    Args:    format, name: as of :func:`write_image`.  size: height and width.
    Returns: the suffix.
    Raises:  UnsupportedMediaError if the format cannot hold alpha, colour or the size; MediaError for unknown suffixes.
    """
    suffix = "." + format.lower().removeprefix(".")
    if suffix not in IMAGE_SUFFIXES_OUT:
        raise MediaError(f"{name}: cannot write {suffix} pictures; choose one of {' '.join(IMAGE_SUFFIXES_OUT)}")
    if has_alpha and suffix in (".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".pnm"):
        raise UnsupportedMediaError(f"{name} cannot hold the alpha channel; write .png")
    if suffix == ".pgm" and channels == 3:
        raise UnsupportedMediaError(f"{name} cannot hold colour; write .ppm or .png")
    largest = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500, ".avif": 65536}.get(suffix)
    if largest is not None and max(size) > largest:
        sides = f"{size[1]} x {size[0]} pixels ({suffix} ends at {largest} a side)"
        raise UnsupportedMediaError(f"{name} cannot hold {sides}; write .png")
    return suffix


def _check_arrays(picture: Picture) -> None:
    pixels, alpha = picture.pixels, picture.alpha
    kind = pixels.dtype
    if kind not in (np.uint8, np.uint16) or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        raise ValueError(f"pixels must be uint8 or uint16 [H, W, 1 or 3], not {kind} {list(pixels.shape)}")
    if alpha is not None and (alpha.dtype != kind or alpha.shape != pixels.shape[:2]):
        raise ValueError(f"alpha must be {kind} {list(pixels.shape[:2])}, not {alpha.dtype} {list(alpha.shape)}")


def _write_netpbm(picture: Picture, file: BinaryIO, suffix: str) -> list[str]:
    height, width, channels = picture.pixels.shape
    size = picture.pixels.itemsize
    file.write(b"P%d\n%d %d\n%d\n" % (6 if channels == 3 else 5, width, height, 256**size - 1))
    for y0, y1 in bands(height, width):
        file.write(np.ascontiguousarray(picture.pixels[y0:y1], dtype=f">u{size}").data)
    return [f"{kind} not kept: {suffix} has no place for it" for kind in _metadata(picture)]


def _write_pillow(picture: Picture, file: BinaryIO, suffix: str) -> list[str]:
    notes: list[str] = []
    gray = picture.pixels.shape[2] == 1
    options: dict[str, Any]
    if suffix == ".png":
        plugin, options = "PNG", {"compress_level": PNG_LEVEL}
    elif suffix in (".tif", ".tiff"):
        plugin, options = "TIFF", {}
    elif suffix == ".webp":
        plugin, options = "WEBP", {"lossless": True, "exact": True, "quality": 50, "method": 2}
    elif suffix == ".bmp":
        plugin, options = "BMP", {}
        notes += [f"{kind} not kept: .bmp has no place for it" for kind in _metadata(picture)]
    elif suffix == ".avif":
        plugin, options = "AVIF", {"quality": AVIF_QUALITY, "subsampling": "4:0:0" if gray else "4:4:4"}
        notes.append(f".avif is lossy: written with quality {AVIF_QUALITY}")
    else:
        plugin, options = "JPEG", {"quality": JPEG_QUALITY, "subsampling": 0}
        notes.append(f"{suffix} is lossy: written with quality {JPEG_QUALITY}")
    if plugin == "WEBP" and gray:
        notes.append(".webp has no gray: written as RGB")
    if plugin != "BMP":
        options |= _metadata_options(picture, plugin, suffix, gray and plugin != "WEBP", notes)

    pipe = file
    if plugin == "TIFF" and not file.seekable():
        file = io.BytesIO()
    _to_pillow(picture).save(file, plugin, **options)
    if file is not pipe:
        assert isinstance(file, io.BytesIO)
        pipe.write(file.getbuffer())
    return notes


def _write_deep(picture: Picture, file: BinaryIO, suffix: str) -> list[str]:
    """PNG and TIFF of 16 bits, whose colours Pillow does not write: as it writes one pixel, with other samples."""
    small = io.BytesIO()
    one = _with_8_bits(replace(picture, pixels=picture.pixels[:1, :1], alpha=None))
    notes = _write_pillow(one, small, ".png" if suffix == ".png" else ".tif")
    samples = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    if suffix == ".png":
        write_deep_png(file, small, samples, PNG_LEVEL)
    else:
        write_deep_tiff(file, small, samples)
    return notes


def _with_8_bits(picture: Picture) -> Picture:
    alpha = None if picture.alpha is None else to_8_bits(picture.alpha)
    return replace(picture, pixels=to_8_bits(picture.pixels), alpha=alpha)


def _metadata_options(picture: Picture, plugin: str, suffix: str, gray: bool, notes: list[str]) -> dict[str, Any]:
    """What Pillow is to write beside the samples, as far as the format can hold it. gray: whether they are so there."""
    options: dict[str, Any] = {}
    icc, exif, xmp = picture.icc, picture.exif, picture.xmp
    if icc is not None:
        icc, note = fitting_profile(icc, gray)
        notes += [] if note is None else [note]
        if icc is not None:
            options["icc_profile"] = icc
    for kind, block, most in (("EXIF", exif, _JPEG_EXIF), ("XMP", xmp, _JPEG_XMP)):
        if plugin == "JPEG" and block is not None and len(block) > most:
            notes.append(f"{kind} not kept: {len(block)} bytes are more than {suffix} can hold")
            exif, xmp = (None, xmp) if kind == "EXIF" else (exif, None)
    if plugin == "TIFF":
        return options | _tiff_options(exif, xmp, notes)
    if exif is not None:
        options["exif"] = b"Exif\0\0" + exif
    if xmp is not None and plugin == "PNG":
        try:
            info = PngImagePlugin.PngInfo()
            info.add_itxt("XML:com.adobe.xmp", xmp.decode())
            options["pnginfo"] = info
        except UnicodeDecodeError:
            notes.append("XMP not kept: it is not UTF-8")
    elif xmp is not None:
        options["xmp"] = xmp
    return options


def _tiff_options(exif: bytes | None, xmp: bytes | None, notes: list[str]) -> dict[str, Any]:
    """All tags that describe the picture are in its directory, where TIFF 6.0 wants a resolution, too."""
    tags = Image.Exif()
    if exif is not None:
        try:
            block = Image.Exif()
            block.load(exif)
            tags = descriptive(block)
            tags.tobytes()
        except DECODER_ERRORS:
            notes.append("EXIF not kept: it is damaged")
            tags = Image.Exif()
    for tag, value in ((0x011A, 72), (0x011B, 72), (0x0128, 2)):  # 72 to an inch: nobody said anything
        if tag not in tags:
            tags[tag] = value
    if xmp is not None:
        tags[700] = xmp
    packed = not any(tag in tags for tag in _DIRECTORIES)  # Pillow's way through libtiff cannot write those
    if packed:
        tags[317] = 2  # differences of neighbours
    return {"exif": tags.tobytes(), "compression": "tiff_lzw" if packed else "raw"}


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
    held = {"ICC profile": picture.icc, "EXIF": picture.exif, "XMP": picture.xmp}
    return [kind for kind, value in held.items() if value]


# ------------------------------------------------------------------------------------------------------------ alpha


def encode_alpha(alpha: np.ndarray) -> bytes:
    """An alpha channel, uint8 or uint16 [H, W], as a gray PNG of as many bits without ancillary chunks."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(alpha)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
