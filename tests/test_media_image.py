"""Pictures: what is in a file is in the Picture, or named in its notes, or refused by name."""

import io
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from PIL.TiffImagePlugin import TiffImageFile

from tokodec.codec.errors import ChunkError, MediaError, UnsupportedMediaError
from tokodec.codec.media import raster as raster_module
from tokodec.codec.media import read_image as image_module
from tokodec.codec.media.picture import Picture
from tokodec.codec.media.profile import profile_of_gamma
from tokodec.codec.media.read_image import IMAGE_SUFFIXES_IN, decode_alpha, read_image
from tokodec.codec.media.write_image import IMAGE_SUFFIXES_OUT, encode_alpha, write_image

LIMIT = 1 << 20
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
GRAY = profile_of_gamma(1 / 1.8, None, gray=True)


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """Pillow's warnings would be lines on stderr."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def noise(*shape: int, top: int = 256, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, top, shape).astype(dtype)


def saved(im: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    im.save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes, limit: int = LIMIT) -> Picture:
    return read_image(io.BytesIO(data), "x", limit)


def read_or_refusal(data: bytes) -> Picture | str:
    try:
        return read(data)
    except MediaError as error:
        return str(error)


def written(picture: Picture, suffix: str) -> tuple[bytes, list[str]]:
    buffer = io.BytesIO()
    notes = write_image(picture, buffer, suffix, "x" + suffix)
    return buffer.getvalue(), notes


def rounded(samples: np.ndarray, maxval: int = 65535) -> np.ndarray:
    return np.floor(samples.astype(np.float64) * 255 / maxval + 0.5).astype(np.uint8)


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(samples: np.ndarray, colour: int, bits: int = 16, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG made by hand, since Pillow cannot write 16-bit RGB."""
    height, width = samples.shape[:2]
    raw = samples.astype(">u2" if bits == 16 else np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in raw)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + after + chunk(b"IEND", b"")


def tiff(samples: np.ndarray, photometric: int, order: str = "<", compression: int = 1, **tags: Any) -> bytes:
    """A one-strip TIFF made by hand; 8 is deflate."""
    height, width, count = samples.shape
    raw = samples.astype(np.dtype(order + samples.dtype.str[1:])).tobytes()
    raw = zlib.compress(raw) if compression == 8 else raw
    bits = samples.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    entries: dict[int, tuple[int, list[int]]] = {
        256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * count), 259: (3, [compression]),
        262: (3, [photometric]), 273: (4, [0]), 277: (3, [count]), 278: (3, [height]), 279: (4, [len(raw)]),
        339: (3, [kind] * count),
    }  # fmt: skip
    if count in (2, 4):
        entries[338] = (3, [2])
    for name, value in tags.items():
        entries[int(name[1:])] = (3, list(value) if isinstance(value, tuple) else [value])
    table_end = 8 + 2 + 12 * len(entries) + 4
    extra = b""
    body = b""
    at_data = table_end + 8 * 8
    entries[273] = (4, [at_data])
    for tag, (type_, values) in sorted(entries.items()):
        packed = struct.pack(order + ("H" if type_ == 3 else "I") * len(values), *values)
        if len(packed) > 4:
            offset = table_end + len(extra)
            extra += packed
            packed = struct.pack(order + "I", offset)
        body += struct.pack(order + "HHI", tag, type_, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return (head + body + bytes(4) + extra).ljust(at_data, b"\0") + raw


def exif_block(orientation: int = 1, order: str = "<", thumbnail: bytes = b"", make: bytes = b"Maker!!\0") -> bytes:
    """IFD0 with Make and Orientation, then IFD1 with a thumbnail that ends the block."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    make_at = 8 + 2 + 24 + 4
    ifd1_at = make_at + len(make)
    ifd0 = struct.pack(order + "HHHIIHHIHHI", 2, 0x010F, 2, len(make), make_at, 0x0112, 3, 1, orientation, 0,
                       ifd1_at if thumbnail else 0)  # fmt: skip
    block = head + ifd0 + make
    if thumbnail:
        at = ifd1_at + 2 + 24 + 4
        ifd1 = struct.pack(order + "HHHIIHHIII", 2, 0x0201, 4, 1, at, 0x0202, 4, 1, len(thumbnail), 0)
        block += ifd1 + thumbnail
    return block


# ------------------------------------------------------------------------------------------------------------ modes


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "WEBP"])
def test_rgb_is_read_exactly(kind: str) -> None:
    pixels = noise(5, 7, 3)
    picture = read(saved(Image.fromarray(pixels), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert picture.pixels.dtype == np.uint8
    assert np.array_equal(picture.pixels, pixels)
    assert (picture.alpha, picture.icc, picture.exif, picture.bit_depth, picture.notes) == (None, None, None, 8, [])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_rgba_is_read_exactly_under_transparency_too(kind: str) -> None:
    samples = noise(5, 7, 4)
    samples[0, :, 3] = 0
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    picture = read(saved(Image.fromarray(samples), kind, **options))
    assert np.array_equal(picture.pixels, samples[..., :3])
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, samples[..., 3])
    assert picture.notes == []


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_gray_stays_gray(kind: str) -> None:
    pixels = noise(5, 7)
    picture = read(saved(Image.fromarray(pixels), kind))
    assert picture.pixels.shape == (5, 7, 1)
    assert np.array_equal(picture.pixels[..., 0], pixels)


def test_gray_jpeg_stays_gray() -> None:
    assert read(saved(Image.new("L", (7, 5), 90), "JPEG")).pixels.shape == (5, 7, 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_gray_with_alpha(kind: str) -> None:
    samples = noise(5, 7, 2)
    picture = read(saved(Image.fromarray(samples), kind))
    assert np.array_equal(picture.pixels, samples[..., :1])
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, samples[..., 1])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_bilevel_becomes_0_and_255(kind: str) -> None:
    bits = noise(5, 11, top=2).astype(bool)
    picture = read(saved(Image.fromarray(bits), kind))
    assert np.array_equal(picture.pixels[..., 0], bits * np.uint8(255))
    assert (picture.bit_depth, picture.notes) == (8, [])


def palette_image() -> Image.Image:
    im = Image.new("P", (7, 5))
    im.putdata(noise(35, top=3).tolist())
    im.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    return im


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette_is_expanded_without_note(kind: str) -> None:
    im = palette_image()
    picture = read(saved(im, kind))
    assert np.array_equal(picture.pixels, np.asarray(im.convert("RGB")))
    assert (picture.alpha, picture.notes) == (None, [])


@pytest.mark.parametrize(("kind", "transparency"), [("PNG", bytes([255, 128, 0])), ("PNG", 1), ("GIF", 1)])
def test_palette_transparency_becomes_alpha(kind: str, transparency: bytes | int) -> None:
    im = palette_image()
    picture = read(saved(im, kind, transparency=transparency))
    table = np.array([255, 128, 0] if isinstance(transparency, bytes) else [255, 0, 255])
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, table[np.asarray(im)])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_transparent_gray_of_few_bits(bits: int) -> None:
    values = np.arange(8)[None] % (1 << bits)  # [1, 8]
    packed = np.packbits((values[..., None] >> np.arange(bits)[::-1]) & 1)
    data = png(packed[None], 0, bits, before=chunk(b"tRNS", struct.pack(">H", 1)))
    data = data.replace(data[8:33], chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)))
    picture = read(data)
    assert np.array_equal(picture.pixels[..., 0], values * 255 // ((1 << bits) - 1))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, np.where(values == 1, 0, 255))


def test_transparent_rgb_colour() -> None:
    samples = noise(5, 7, 3)
    key = tuple(int(v) for v in samples[2, 3])
    picture = read(png(samples, 2, 8, before=chunk(b"tRNS", struct.pack(">HHH", *key))))
    assert np.array_equal(picture.pixels, samples)
    assert picture.alpha is not None
    assert (picture.alpha == 0).sum() == 1
    assert picture.alpha[2, 3] == 0


# -------------------------------------------------------------------------------------------------- 16 bits and more


def test_16_to_8_bits_is_rounding_for_every_value() -> None:
    every = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(raster_module.to_8_bits(every), rounded(every))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png(colour: int, channels: int) -> None:
    samples = noise(5, 7, channels, top=65536, dtype=np.uint16)
    picture = read(png(samples, colour))
    colours = 1 if channels < 3 else 3
    assert np.array_equal(picture.pixels, rounded(samples[..., :colours]))
    if channels in (2, 4):
        assert picture.alpha is not None
        assert np.array_equal(picture.alpha, rounded(samples[..., -1]))
    else:
        assert picture.alpha is None
    assert picture.bit_depth == 16
    assert picture.notes == ["16 bits per sample reduced to 8"]


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_transparent_colour_of_16_bits_is_compared_whole(colour: int, channels: int) -> None:
    samples = np.full((2, 3, channels), 0x1234, np.uint16)
    samples[0, 0] += 1  # the same high byte
    picture = read(png(samples, colour, before=chunk(b"tRNS", struct.pack(f">{channels}H", *[0x1234] * channels))))
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[255, 0, 0], [0, 0, 0]]
    assert np.array_equal(picture.pixels, rounded(samples))


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(
    ("order", "photometric", "channels"),
    [("<", 0, 1), ("<", 1, 1), (">", 1, 1), ("<", 2, 3), (">", 2, 3), ("<", 2, 4), (">", 2, 4)],
)
def test_16_bit_tiff(order: str, compression: int, photometric: int, channels: int) -> None:
    samples = noise(5, 7, channels, top=65536, dtype=np.uint16)
    picture = read(tiff(samples, photometric, order, compression))
    expected = 65535 - samples if photometric == 0 else samples
    assert np.array_equal(picture.pixels, rounded(expected[..., :3]))
    if channels == 4:
        assert picture.alpha is not None
        assert np.array_equal(picture.alpha, rounded(samples[..., 3]))
    assert (picture.bit_depth, picture.notes) == (16, ["16 bits per sample reduced to 8"])


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_16_bit_tiff_from_a_path_is_turned_once(tmp_path: Path, orientation: int) -> None:
    samples = noise(5, 7, 3, top=65536, dtype=np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff(samples, 2, "<", 8, t274=orientation))
    picture = read_image(tmp_path / "a.tif", "a.tif", LIMIT)
    expected = rounded(np.rot90(samples, {1: 0, 3: 2, 6: 3}[orientation]))
    assert np.array_equal(picture.pixels, expected)


@pytest.mark.parametrize(("magic", "channels"), [(b"P5", 1), (b"P6", 3)])
@pytest.mark.parametrize("maxval", [1, 15, 100, 255, 256, 4095, 65535])
def test_netpbm_of_any_maxval(magic: bytes, channels: int, maxval: int) -> None:
    samples = noise(5, 7, channels, top=maxval + 1, dtype=np.uint16)
    raw = samples.astype(np.uint8 if maxval < 256 else ">u2").tobytes()
    picture = read(magic + b"\n7 5\n%d\n" % maxval + raw)
    assert np.array_equal(picture.pixels, rounded(samples, maxval))
    assert picture.bit_depth == (16 if maxval > 255 else 8)
    assert bool(picture.notes) == (maxval > 255)


def test_plain_netpbm() -> None:
    picture = read(b"P2\n3 1\n65535\n0 300 65535\n")
    assert picture.pixels.ravel().tolist() == [0, 1, 255]
    assert picture.bit_depth == 16


@pytest.mark.parametrize(("flags", "bits"), [(0x00, 8), (0x40, 10), (0x60, 12)])
def test_depth_of_avif_is_told(monkeypatch: pytest.MonkeyPatch, flags: int, bits: int) -> None:
    data = saved(Image.new("RGB", (8, 8), (9, 8, 7)), "AVIF")
    (real,) = raster_module.av1_flags(io.BytesIO(data))
    assert real & 0x70 == 0
    monkeypatch.setattr(raster_module, "av1_flags", lambda _: [flags])  # Pillow cannot write such files
    picture = read(data)
    assert picture.bit_depth == (8 if bits == 8 else 16)
    assert picture.notes == ([] if bits == 8 else [f"{bits} bits per sample reduced to 8"])


@pytest.mark.parametrize(
    ("dtype", "word"), [(np.float32, "float"), (np.int32, "integer"), (np.int16, "integer"), (np.uint32, "integer")]
)
def test_samples_without_a_range_are_refused(dtype: type, word: str) -> None:
    with pytest.raises(UnsupportedMediaError, match=f"^x holds .*{word}"):
        read(tiff(np.zeros((2, 3, 1), dtype), 1))


def test_signed_bytes_are_refused() -> None:
    with pytest.raises(UnsupportedMediaError, match=r"^x holds signed samples"):
        read(tiff(noise(5, 7, 1), 1, t339=2))


def test_float_netpbm_is_refused() -> None:
    with pytest.raises(UnsupportedMediaError, match="float"):
        read(b"Pf\n1 1\n-1.0\n" + bytes(4))


def test_planes_of_16_bits_are_refused() -> None:
    with pytest.raises(UnsupportedMediaError, match="separate planes"):
        read(tiff(noise(2, 3, 3, dtype=np.uint16), 2, t284=2))


# ---------------------------------------------------------------------------------------------------------- colour


def test_cmyk_jpeg_becomes_rgb() -> None:
    picture = read(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert picture.pixels[4, 4, 0] > 240
    assert picture.pixels[4, 4, 1] < 20
    assert picture.notes == ["CMYK converted to RGB without an ICC profile: colours are approximate"]


def test_cmyk_profile_is_not_kept_for_rgb() -> None:
    picture = read(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF", icc_profile=b"not a profile"))
    assert picture.icc is None
    assert picture.notes == ["CMYK converted to RGB without its ICC profile, which is damaged: colours are approximate"]


def test_lab_becomes_srgb() -> None:
    rgb = Image.new("RGB", (4, 4), (200, 30, 60))
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(rgb, to_lab)
    assert lab is not None
    picture = read(saved(lab, "TIFF"))
    assert np.abs(picture.pixels.astype(int) - (200, 30, 60)).max() <= 4
    assert picture.notes == ["LAB converted to sRGB"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
def test_icc_profile_is_kept(kind: str) -> None:
    assert read(saved(Image.new("RGB", (4, 4)), kind, icc_profile=SRGB)).icc == SRGB


# ------------------------------------------------------------------------------------------------------------- EXIF


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation_turns_pixels_and_alpha(kind: str, orientation: int) -> None:
    samples = noise(5, 7, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(samples), kind, exif=exif, **options)
    picture = read(data)
    with Image.open(io.BytesIO(data)) as im:
        expected = np.asarray(ImageOps.exif_transpose(im))
    assert expected.shape[:2] == ((7, 5) if orientation >= 5 else (5, 7))
    assert np.array_equal(picture.pixels, expected[..., :3])
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, expected[..., 3])
    assert picture.exif is None  # orientation was all there was
    assert picture.notes == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_jpeg_and_avif(orientation: int) -> None:
    gradient = np.zeros((32, 48, 3), np.uint8)
    gradient[..., 0] = np.arange(32)[:, None] * 7
    gradient[..., 1] = np.arange(48)[None] * 5
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Image.Transpose
    im = Image.fromarray(gradient)
    expected = np.asarray(im.transpose(Image.Transpose(turned[orientation])) if orientation > 1 else im)
    for kind in ("JPEG", "AVIF"):
        picture = read(saved(im, kind, exif=exif, quality=95))
        assert picture.pixels.shape == expected.shape
        assert np.abs(picture.pixels.astype(int) - expected).max() < 40


def test_orientation_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster_module, "_BAND_PIXELS", 14)  # two rows at a time
    samples = noise(5, 7, 3, top=65536, dtype=np.uint16)
    picture = read(png(samples, 2, before=chunk(b"eXIf", exif_block(6))))
    assert np.array_equal(picture.pixels, rounded(np.rot90(samples, 3)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_exif_loses_orientation_and_thumbnail_only(order: str, place: str) -> None:
    block = exif_block(8, order, thumbnail=b"\xff\xd8 secret face \xff\xd9")
    data = png(noise(5, 7, 3), 2, 8, **{place: chunk(b"eXIf", block)})
    picture = read(data)
    assert picture.pixels.shape == (7, 5, 3)
    assert picture.exif is not None
    assert picture.exif.startswith(b"II*\0" if order == "<" else b"MM\0*")
    assert b"secret" not in picture.exif
    assert len(picture.exif) < len(block)
    tags = Image.Exif()
    tags.load(picture.exif)
    assert dict(tags) == {0x010F: "Maker!!"}
    assert tags.get_ifd(0x8769) == {}
    assert tags.get_ifd(1) == {}
    assert picture.exif.index(b"Maker!!") == block.index(b"Maker!!")  # offsets unchanged
    assert picture.notes == []


def test_exif_in_text_of_png() -> None:
    info = PngImagePlugin.PngInfo()
    block = b"Exif\0\0" + exif_block(6)
    info.add_text("Raw profile type exif", f"\nexif\n{len(block)}\n{block.hex()}\n")
    picture = read(saved(Image.fromarray(noise(5, 7, 3)), "PNG", pnginfo=info))
    assert picture.pixels.shape == (7, 5, 3)
    assert picture.exif is not None
    assert picture.notes == []


@pytest.mark.parametrize("cut", [0, 1, 4, 7, 9, 15, 30])
def test_damaged_exif_is_told(cut: int) -> None:
    block = exif_block(6)[:cut] or b"garbage"
    picture = read(png(noise(5, 7, 3), 2, 8, before=chunk(b"eXIf", block)))
    assert picture.pixels.shape == (5, 7, 3)
    assert (picture.exif, picture.notes) == (None, ["EXIF not kept: it is damaged"])


def test_random_exif_never_breaks_reading() -> None:
    rng = np.random.default_rng(0)
    base = exif_block(3, thumbnail=b"\xff\xd8 face \xff\xd9")
    for _ in range(300):
        block = bytearray(base)
        for _ in range(3):
            block[rng.integers(4, len(block))] = rng.integers(256)
        assert read(png(noise(2, 3, 3), 2, 8, before=chunk(b"eXIf", bytes(block)))).pixels.size == 18


def test_tiff_keeps_what_describes_it() -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x8769] = {0x829A: 0.5}
    exif[0x0112] = 6
    picture = read(saved(Image.fromarray(noise(5, 7, 3)), "TIFF", exif=exif.tobytes()))
    assert picture.pixels.shape == (7, 5, 3)
    assert picture.exif is not None
    tags = Image.Exif()
    tags.load(picture.exif)
    assert dict(tags).keys() == {0x010F, 0x8769}
    assert tags.get_ifd(0x8769) == {0x829A: 0.5}
    assert picture.notes == []


# ------------------------------------------------------------------------------------------------------------ notes

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF"])
def test_xmp_is_kept(kind: str) -> None:
    options: dict[str, Any] = {"xmp": XMP}
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        options = {"pnginfo": info}
    if kind == "TIFF":
        options = {"tiffinfo": {700: XMP}}
    picture = read(saved(Image.new("RGB", (4, 4)), kind, **options))
    assert (picture.xmp, picture.notes) == (XMP, [])
    data, _ = written(picture, "." + kind.lower())
    assert read(data).xmp == XMP


def test_orientation_in_xmp_is_upright() -> None:
    for packet, upright in (
        (b'<x tiff:Orientation="6" a="6"/>', b'<x tiff:Orientation="1" a="6"/>'),
        (b"<tiff:Orientation>8</tiff:Orientation>", b"<tiff:Orientation>1</tiff:Orientation>"),
    ):
        data = saved(Image.new("RGB", (4, 4)), "JPEG", xmp=packet, exif=b"Exif\0\0" + exif_block(6))
        assert read(data).xmp == upright


def test_xmp_that_a_format_cannot_hold_is_told() -> None:
    long = Picture(noise(4, 4, 3), xmp=b"x" * 65505)
    data, notes = written(long, ".jpg")
    assert notes[1:] == ["XMP not kept: 65505 bytes are more than .jpg can hold"]
    assert read(data).xmp is None
    long.xmp = b"x" * 65504
    assert read(written(long, ".jpg")[0]).xmp == long.xmp
    assert written(Picture(noise(4, 4, 3), xmp=b"\xff\xfe<"), ".png")[1] == ["XMP not kept: it is not UTF-8"]
    for suffix in (".bmp", ".ppm"):
        assert written(Picture(noise(4, 4, 3), xmp=XMP), suffix)[1] == [f"XMP not kept: {suffix} has no place for it"]


def test_long_xmp_of_jpeg_is_told() -> None:
    data = saved(Image.new("RGB", (8, 8)), "JPEG", xmp=XMP)
    more = b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(more) + 2) + more + data[2:]
    picture = read(data)
    assert (picture.xmp, picture.notes) == (XMP, ["XMP beyond its first 64 kB not kept"])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
def test_print_resolution_is_kept_or_told(kind: str) -> None:
    picture = read(saved(Image.new("RGB", (4, 4)), kind, dpi=(300, 300)))
    if kind == "TIFF":
        assert Image.open(io.BytesIO(written(picture, ".tif")[0])).info["dpi"] == (300, 300)
        assert picture.notes == []
    else:
        assert picture.notes == ["print resolution not kept: 300 dots per inch"]
    assert read(saved(Image.new("RGB", (4, 4)), kind, dpi=(72, 72))).notes == []
    block = Image.Exif()
    block[0x011A], block[0x011B], block[0x0128] = 300.0, 300.0, 2
    if kind == "JPEG":
        assert read(saved(Image.new("RGB", (4, 4)), kind, dpi=(300, 300), exif=block)).notes == []


def test_tiff_tags_are_told() -> None:
    data = saved(Image.new("RGB", (4, 4)), "TIFF", tiffinfo={700: XMP, 33723: b"iptc", 33550: (1.0, 1.0, 0.0)})
    assert read(data).notes == ["IPTC not kept", "TIFF tags not kept: 33550"]


def test_extra_channel_is_told() -> None:
    samples = noise(5, 7, 4)
    picture = read(tiff(samples, 2, t338=0))
    assert np.array_equal(picture.pixels, samples[..., :3])
    assert picture.notes == ["extra channels not kept"]
    with_alpha = np.concatenate([noise(5, 7, 4), noise(5, 7, 1)], -1)
    picture = read(tiff(with_alpha, 2, e338=(2, 0)))
    assert picture.alpha is not None
    assert np.array_equal(picture.alpha, with_alpha[..., 3])
    assert picture.notes == ["extra channels not kept"]


def test_iptc_and_comment_of_jpeg_are_told() -> None:
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", 8) + b"\x1c\x02\x78\0\x03abc"
    segment = b"Photoshop 3.0\0" + resource
    data = saved(Image.new("RGB", (8, 8)), "JPEG", comment=b"hello")
    data = data[:2] + b"\xff\xed" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert read(data).notes == ["IPTC not kept", "comment not kept"]


def test_text_of_png_is_told_wherever_it_stands() -> None:
    data = png(
        noise(2, 3, 3), 2, 8, before=chunk(b"tEXt", b"Title\0sunrise"), after=chunk(b"tEXt", b"Author\0somebody")
    )
    assert read(data).notes == ["text not kept: Author, Title"]


def test_mpo_takes_the_first_picture() -> None:
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 250))
    picture = read(saved(first, "MPO", save_all=True, append_images=[second]))
    assert picture.pixels[8, 8, 0] > 240
    assert picture.notes == ["only the first of 2 pictures in the file is kept (MPO)"]


# ---------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF", "TIFF"])
def test_animations_and_pages_are_refused(kind: str) -> None:
    frames = [Image.fromarray(noise(8, 9, 3) // (i + 1)) for i in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedMediaError, match=r"^x holds 3 frames"):
        read(data)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "JPEG", "BMP", "PPM"])
def test_every_cut_is_an_error_of_ours(kind: str) -> None:
    data = saved(Image.fromarray(noise(16, 16, 3)), kind)
    whole = read(data)
    refused = 0
    for length in range(1, len(data), max(1, len(data) // 60)):
        cut = read_or_refusal(data[:length])
        if isinstance(cut, Picture):
            assert cut.pixels.shape == whole.pixels.shape
            refused += bool(cut.problems)
            assert cut.problems or kind not in ("PNG", "JPEG")
        else:
            refused += 1
            assert cut.startswith("x ")
            assert "\n" not in cut
    assert refused >= 30


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "JPEG", "BMP", "PPM"])
def test_random_damage_is_a_picture_or_an_error_of_ours(kind: str) -> None:
    rng = np.random.default_rng(1)
    data = saved(Image.fromarray(noise(16, 16, 3)), kind)
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(4):
            damaged[rng.integers(len(data) if rng.integers(2) else min(200, len(data)))] = rng.integers(256)
        result = read_or_refusal(bytes(damaged))
        if isinstance(result, Picture):
            assert result.pixels.size <= 3 * LIMIT
        else:
            assert "\n" not in result


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x is empty"),
        (b"Dear reader,\nthis is a letter.\n", "x is not a picture in a known format"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), "x is a damaged PNG file"),
        (b"II*\0" + bytes(20), "x is a damaged TIFF file"),
        (b"P5\n0 5\n255\n", "x "),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "x is a file of the kind PostScript, which cannot be"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "x is a file of the kind JPEG XL, which cannot be read"),
        (b"\0\0\0\x18ftypcrx " + bytes(20), "x is a damaged or unknown WebP, AVIF or other container file"),
    ],
)
def test_what_is_no_picture(data: bytes, message: str) -> None:
    with pytest.raises(MediaError, match="^" + re.escape(message)) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    assert "BytesIO" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"^a\.png: no such file$"):
        read_image(tmp_path / "a.png", "a.png", LIMIT)
    with pytest.raises(MediaError, match=r"^here is a folder, not a picture$"):
        read_image(tmp_path, "here", LIMIT)


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:  # chmod would not stop the superuser
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MediaError, match=r"^a\.png cannot be read: permission denied$"):
        read_image(tmp_path / "a.png", "a.png", LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF"])
def test_limit_is_checked_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.fromarray(noise(5, 7, 3)), kind)
    assert read(data, 35).pixels.shape == (5, 7, 3)

    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(image_module, "raster", refuse)
    with pytest.raises(MediaError, match=r"^x has 7 x 5 pixels, more than the limit of 34$"):
        read(data, 34)


def test_pillows_own_limit_neither_warns_nor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # warns above 10, refuses above 20
    for kind in ("PNG", "WEBP", "TIFF", "GIF"):
        data = saved(Image.fromarray(noise(5, 7, 3)), kind)
        assert read(data).pixels.shape == (5, 7, 3)
        assert Image.MAX_IMAGE_PIXELS == 10
    alpha = noise(5, 7)
    assert np.array_equal(decode_alpha(encode_alpha(alpha), 5, 7), alpha)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_threads_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    data = saved(Image.fromarray(noise(64, 64, 3)), "PNG")
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                read(data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Image.MAX_IMAGE_PIXELS == 10


# ----------------------------------------------------------------------------------------------------------- streams


def test_pipe_is_read() -> None:
    samples = noise(5, 7, 3, top=65536, dtype=np.uint16)
    for data in (png(samples, 2), tiff(samples, 2)):
        out, into = os.pipe()
        with os.fdopen(into, "wb") as writer:
            writer.write(data)
        with os.fdopen(out, "rb") as pipe:
            assert np.array_equal(read_image(pipe, "-", LIMIT).pixels, rounded(samples))


def test_stream_is_read_from_where_it_stands() -> None:
    file = io.BytesIO(b"before" + saved(Image.fromarray(noise(5, 7, 3)), "TIFF"))
    file.seek(6)
    assert np.array_equal(read_image(file, "x", LIMIT).pixels, noise(5, 7, 3))


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES_OUT)
def test_pipe_is_written(suffix: str) -> None:
    out, into = os.pipe()
    picture = Picture(noise(5, 7, 1 if suffix == ".pgm" else 3))
    with os.fdopen(into, "wb") as pipe:
        write_image(picture, pipe, suffix, "-")
    with os.fdopen(out, "rb") as reader:
        assert read(reader.read()).pixels.shape[:2] == (5, 7)


# ----------------------------------------------------------------------------------------------------------- writing


def test_everything_written_can_be_read() -> None:
    assert set(IMAGE_SUFFIXES_OUT) <= set(IMAGE_SUFFIXES_IN)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_lossless_formats_give_everything_back(tmp_path: Path, suffix: str, channels: int, has_alpha: bool) -> None:
    block = exif_block().replace(struct.pack("<HHIHH", 0x0112, 3, 1, 1, 0), struct.pack("<HHIHH", 0x0128, 3, 1, 2, 0))
    exif = block if suffix not in (".tif", ".tiff") else None
    icc = SRGB if channels == 3 or suffix == ".webp" else GRAY
    picture = Picture(noise(5, 7, channels), noise(5, 7) if has_alpha else None, icc, exif)
    target = tmp_path / f"a{suffix}"
    notes = write_image(picture, target, suffix, target.name)
    again = read_image(target, target.name, LIMIT)
    expands = suffix == ".webp" and channels == 1
    assert np.array_equal(again.pixels, np.repeat(picture.pixels, 3, 2) if expands else picture.pixels)
    assert (again.alpha is None) == (not has_alpha)
    if again.alpha is not None and picture.alpha is not None:
        assert np.array_equal(again.alpha, picture.alpha)
    assert (again.icc, again.exif) == (icc, exif)
    assert notes == ([".webp has no gray: written as RGB"] if expands else [])
    assert again.notes == []


@pytest.mark.parametrize(("suffix", "channels"), [(".bmp", 1), (".bmp", 3), (".ppm", 3), (".pnm", 1), (".pgm", 1)])
def test_plain_formats_give_pixels_back_and_tell_the_rest(suffix: str, channels: int) -> None:
    picture = Picture(noise(5, 7, channels), None, SRGB, exif_block())
    data, notes = written(picture, suffix)
    assert np.array_equal(read(data).pixels, picture.pixels)
    assert notes == [
        f"ICC profile not kept: {suffix} has no place for it",
        f"EXIF not kept: {suffix} has no place for it",
    ]
    assert written(Picture(picture.pixels), suffix)[1] == []


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".avif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_formats_are_close_and_say_so(suffix: str, channels: int) -> None:
    y, x = np.mgrid[:48, :64]
    pixels = np.stack([y * 4, x * 3, y + x], -1).astype(np.uint8)[..., :channels]
    icc = SRGB if channels == 3 else GRAY
    data, notes = written(Picture(pixels, None, icc, exif_block()), suffix)
    again = read(data)
    assert again.pixels.shape == pixels.shape
    assert np.abs(again.pixels.astype(int) - pixels).mean() < 2
    assert again.icc == icc
    assert again.exif is not None
    assert b"Maker!!" in again.exif
    assert len(notes) == 1
    assert notes[0].startswith(f"{suffix} is lossy")


@pytest.mark.parametrize("channels", [1, 3])
def test_avif_keeps_alpha(channels: int) -> None:
    data, _ = written(Picture(np.full((16, 16, channels), 90, np.uint8), np.full((16, 16), 77, np.uint8)), ".avif")
    again = read(data)
    assert again.pixels.shape == (16, 16, channels)
    alpha = again.alpha
    assert alpha is not None
    assert np.abs(alpha.astype(int) - 77).max() <= 2


def test_exif_survives_tiff() -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[0x8769] = {0x829A: 0.5}
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    data, notes = written(Picture(noise(5, 7, 3), exif=block), ".tiff")
    again = read(data)
    assert again.exif is not None
    tags = Image.Exif()
    tags.load(again.exif)
    assert tags[0x010F] == "Maker"
    assert tags.get_ifd(0x8769) == {0x829A: 0.5}
    assert notes == again.notes == []


@pytest.mark.parametrize("has_exif", [False, True])
@pytest.mark.parametrize("has_alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_tags_of_a_written_tiff(channels: int, has_alpha: bool, has_exif: bool) -> None:
    """Those that TIFF 6.0 asks for, in order, and a compression that it knows; EXIF and XMP side by side."""
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2024:01:01 10:00:00"
    block = exif.tobytes().removeprefix(b"Exif\0\0") if has_exif else None
    alpha = noise(5, 7) if has_alpha else None
    data, notes = written(Picture(noise(5, 7, channels), alpha, exif=block, xmp=XMP), ".tif")
    assert notes == []
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    tags = [struct.unpack_from(order + "H", data, start + 2 + 12 * i)[0] for i in range(count)]
    assert tags == sorted(set(tags))
    required = {256, 257, 258, 259, 262, 273, 278, 279, 282, 283, 296}
    required |= {277} if channels + has_alpha > 1 else set()
    assert set(tags) >= required | ({338} if has_alpha else set()) | {700}
    with Image.open(io.BytesIO(data)) as im:
        assert isinstance(im, TiffImageFile)
        assert im.tag_v2[259] == (1 if has_exif else 5)  # uncompressed or LZW
        assert im.tag_v2.get(338, ()) == ((2,) if has_alpha else ())
        assert im.info["xmp"] == XMP
        if has_exif:
            assert im.getexif()[0x010F] == "Maker"
            assert im.getexif().get_ifd(0x8769)[0x9003] == "2024:01:01 10:00:00"


def test_too_large_exif_for_jpeg_is_told() -> None:
    data, notes = written(Picture(noise(5, 7, 3), exif=exif_block(make=bytes(70000))), ".jpg")
    assert read(data).exif is None
    assert re.search("EXIF not kept: .* more than .jpg can hold", notes[1])


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".pnm"])
def test_alpha_is_never_dropped(suffix: str) -> None:
    with pytest.raises(UnsupportedMediaError, match=rf"^x\{suffix} cannot hold the alpha channel; write \.png$"):
        written(Picture(noise(5, 7, 1), noise(5, 7)), suffix)


def test_colour_is_never_dropped() -> None:
    with pytest.raises(UnsupportedMediaError, match=r"^x\.pgm cannot hold colour"):
        written(Picture(noise(5, 7, 3)), ".pgm")


def test_too_wide_for_webp() -> None:
    with pytest.raises(UnsupportedMediaError, match=r"16384 x 1 pixels"):
        written(Picture(np.zeros((1, 16384, 3), np.uint8)), ".webp")


def test_unknown_suffix() -> None:
    with pytest.raises(MediaError, match=r"cannot write \.xyz pictures; choose one of \.png "):
        written(Picture(noise(5, 7, 3)), ".xyz")
    assert written(Picture(noise(5, 7, 3)), "PNG")[0].startswith(b"\x89PNG")


def test_full_disk_is_one_line() -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    for suffix in IMAGE_SUFFIXES_OUT:
        with pytest.raises(MediaError, match=r"^cannot write x: no space left on device$"):
            write_image(Picture(noise(5, 7, 1)), Full(), suffix, "x")


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 2), (0, 7, 3)])
def test_wrong_arrays_are_our_own_mistake(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pixels must be uint8"):
        written(Picture(np.zeros(shape, np.uint8)), ".png")


# ------------------------------------------------------------------------------------------------------------- alpha


@pytest.mark.parametrize("shape", [(1, 1), (1, 97), (64, 33)])
def test_alpha_round_trip(shape: tuple[int, int]) -> None:
    alpha = noise(*shape)
    assert np.array_equal(decode_alpha(encode_alpha(alpha), *shape), alpha)


def test_flat_alpha_is_small() -> None:
    assert len(encode_alpha(np.full((512, 768), 255, np.uint8))) < 1200


def hostile_alphas() -> dict[str, bytes]:
    good = encode_alpha(noise(5, 7))
    return {
        "nothing": b"",
        "text": b"hello",
        "another size": encode_alpha(noise(7, 5)),
        "huge size": good.replace(good[8:33], chunk(b"IHDR", struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 0, 0, 0, 0))),
        "4 bits": png(noise(5, 7, 1), 0, 4),
        "RGB": png(noise(5, 7, 3), 2, 8),
        "palette": saved(Image.new("P", (7, 5)), "PNG"),
        "interlaced": good.replace(good[8:33], chunk(b"IHDR", struct.pack(">IIBBBBB", 7, 5, 8, 0, 0, 0, 1))),
        "text chunk": png(noise(5, 7, 1), 0, 8, before=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(9999)))),
        "transparent colour": png(noise(5, 7, 1), 0, 8, before=chunk(b"tRNS", b"\0\x01")),
        "tail": good + b"more",
        "no samples": good[:33] + chunk(b"IEND", b""),
        "few samples": good[:33] + chunk(b"IDAT", zlib.compress(bytes(8))) + chunk(b"IEND", b""),
        "many samples": good[:33] + chunk(b"IDAT", zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b""),
        "after the samples": good[:33] + chunk(b"IDAT", zlib.compress(bytes(40)) + b"?") + chunk(b"IEND", b""),
        "no zlib": good[:33] + chunk(b"IDAT", b"rubbish") + chunk(b"IEND", b""),
        "unknown filter": good[:33] + chunk(b"IDAT", zlib.compress(b"\x09" * 40)) + chunk(b"IEND", b""),
        "another format": saved(Image.new("L", (7, 5)), "GIF"),
    }


@pytest.mark.parametrize("what", hostile_alphas())
def test_hostile_alpha_is_refused(what: str) -> None:
    with pytest.raises(ChunkError, match=r"^alpha chunk: "):
        decode_alpha(hostile_alphas()[what], 5, 7)


def test_every_cut_and_every_flipped_bit_of_alpha_is_refused() -> None:
    data = encode_alpha(noise(5, 7))
    for length in range(len(data)):
        with pytest.raises(ChunkError):
            decode_alpha(data[:length], 5, 7)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(ChunkError):
            decode_alpha(bytes(damaged), 5, 7)


def test_alpha_is_checked_before_it_is_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    hostile = hostile_alphas()
    monkeypatch.setattr(Image, "open", refuse)
    for what in ("another size", "huge size", "4 bits", "RGB", "palette", "interlaced", "text chunk", "tail"):
        with pytest.raises(ChunkError):
            decode_alpha(hostile[what], 5, 7)
