"""Damaged pictures: what is there is decoded and the damage told; and none takes more than its header allows."""

import io
import itertools
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokodec.codec.errors import MediaError, UnsupportedMediaError
from tokodec.codec.media import read_image as image_module
from tokodec.codec.media.jpeg import scan_jpeg
from tokodec.codec.media.picture import Picture
from tokodec.codec.media.raster import FILLED
from tokodec.codec.media.read_image import read_image, refuse_unknown
from tokodec.codec.media.write_image import write_image

LIMIT = 1 << 28


def photo(height: int = 160, width: int = 208, seed: int = 0) -> np.ndarray:
    """Smooth colours with some noise, as photographs have."""
    y, x = np.mgrid[:height, :width] / 40
    smooth = np.stack([np.sin(x + y), np.cos(x - y), np.sin(x * y / 3)], -1) * 90 + 128
    noise = np.random.default_rng(seed).normal(0, 12, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def saved(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes, strict: bool = False, limit: int = LIMIT) -> Picture:
    return read_image(io.BytesIO(data), "x", limit, strict)


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def chunks_of(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


# ------------------------------------------------------------------------------------------------------------ JPEG


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}])
def test_jpeg_with_its_second_half_zeroed(options: dict[str, Any]) -> None:
    data = saved(photo(), "JPEG", quality=90, **options)
    whole = read(data)
    assert whole.problems == []
    half = read(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    assert any("the end of the file is missing" in problem for problem in half.problems)
    assert half.pixels.shape == whole.pixels.shape
    if "progressive" not in options:
        assert any("bytes that are all 0 where samples should be" in problem for problem in half.problems)
        assert np.array_equal(half.pixels[:48], whole.pixels[:48])  # what is there is decoded
    with pytest.raises(MediaError, match=r"^x: "):
        read(data[: len(data) // 2] + bytes(len(data) // 2), strict=True)


def test_jpeg_without_its_last_two_bytes() -> None:
    data = saved(photo(), "JPEG")
    picture = read(data[:-2])
    assert picture.problems == [
        "the end of the file is missing: decoded as far as it goes, what was not there is filled"
    ]
    assert np.array_equal(picture.pixels, read(data).pixels)
    with pytest.raises(MediaError, match=r"^x: the end of the file is missing"):
        read(data[:-2], strict=True)


@pytest.mark.parametrize("fill", [0, 255])
def test_hole_in_the_middle_of_a_jpeg(fill: int) -> None:
    data = saved(photo(), "JPEG", quality=90)
    at = len(data) // 2
    picture = read(data[:at] + bytes([fill]) * 200 + data[at + 200 :])
    assert picture.problems[0].startswith(f"damaged: bytes that are all {fill} where samples should be, from byte {at}")


def test_lost_interval_of_a_jpeg() -> None:
    data = saved(photo(), "JPEG", restart_marker_rows=1)
    first, second = data.index(b"\xff\xd2"), data.index(b"\xff\xd3")
    assert read(data[:first] + data[second:]).problems == ["damaged: a part between two restart markers is missing"]


def test_codes_that_make_no_sense() -> None:
    data = bytearray(saved(photo(), "JPEG", quality=90))
    at = len(data) // 2
    data[at : at + 100] = bytes(range(150, 250))
    assert read(bytes(data)).problems == ["damaged: samples that make no sense, decoded as far as it goes"]


def test_intact_jpegs_are_not_accused() -> None:
    pictures = [photo(), photo()[:5, :3], *(np.full((90, 120, 3), value, np.uint8) for value in (0, 128, 255))]
    page = np.full((300, 200, 3), 255, np.uint8)
    page[100:120, 50:90] = photo(20, 40)
    settings = itertools.product(
        [*pictures, page], [20, 90], [False, True], [False, True], [0, 2], ["RGB", "L", "CMYK"], [0, 2]
    )
    for pixels, quality, progressive, optimize, subsampling, mode, restart in settings:
        options: dict[str, Any] = {"quality": quality, "progressive": progressive, "optimize": optimize}
        options |= {"subsampling": subsampling} if mode == "RGB" else {}
        options |= {"restart_marker_rows": restart} if restart else {}
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
        assert scan_jpeg(buffer.getvalue()).problems == [], (mode, options)


def test_segments_that_end_in_nothing() -> None:
    data = saved(photo(20, 20), "JPEG")
    for length in range(0, len(data), 7):
        scan = scan_jpeg(data[:length])
        assert scan.problems
        assert not scan.ended
    for tail in (b"\xff", b"\xff\xda", b"\xff\xda\0", b"\xff\xda\0\1", b"\xff\xda\0\x02", b"\xff\xc4\0\x04\x10\x01"):
        assert scan_jpeg(b"\xff\xd8" + tail).problems


# -------------------------------------------------------------------------------------------------- other formats

BY_ROWS = [
    ("BMP", "RGB"), ("BMP", "L"), ("BMP", "1"), ("GIF", "P"), ("PPM", "RGB"), ("PPM", "L"), ("PPM", "1"),
    ("TIFF", "RGB"), ("TIFF", "I;16"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mode"), BY_ROWS)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_rows_of_a_cut_file_are_kept(kind: str, mode: str, share: float) -> None:
    buffer = io.BytesIO()
    im = Image.fromarray(photo()).convert(mode) if mode != "I;16" else Image.fromarray(photo()[..., 0] * np.uint16(257))
    im.save(buffer, kind, **({"interlace": 0} if kind == "GIF" else {}))
    data = buffer.getvalue()
    whole = read(data).pixels
    cut = data[: int(share * len(data))]
    for deep in (False, True):
        picture = read_image(io.BytesIO(cut), "x", LIMIT, deep=deep)
        assert picture.problems == [FILLED]
        found = picture.pixels // (257 if picture.pixels.dtype == np.uint16 else 1)
        same = (found == whole).all((1, 2))
        assert abs(same.sum() - 160 * share) < 10
        assert same[-60:].all() if kind == "BMP" else same[:60].all()
    with pytest.raises(MediaError, match=rf"^x: {FILLED}$"):
        read(cut, strict=True)


def test_16_bits_of_a_cut_tiff_of_colours() -> None:
    pixels = photo().astype(np.uint16) * 257
    buffer = io.BytesIO()
    write_image(Picture(pixels, bit_depth=16), buffer, "tiff", "x")
    data = buffer.getvalue()
    picture = read_image(io.BytesIO(data[: len(data) // 2]), "x", LIMIT, deep=True)
    assert picture.problems == [FILLED]
    assert np.array_equal(picture.pixels[:70], pixels[:70])


def test_hole_in_a_compressed_tiff() -> None:
    data = bytearray(saved(photo(), "TIFF", compression="tiff_lzw"))
    whole = read(bytes(data)).pixels
    data[100_000:100_300] = bytes(300)  # in the second of two strips
    picture = read(bytes(data))
    assert picture.problems == [FILLED]
    assert np.array_equal(picture.pixels[:105], whole[:105])
    assert not np.array_equal(picture.pixels[105:], whole[105:])


@pytest.mark.parametrize(
    "data",
    [b"P3 2 2 255 1 2 3 4 5 6 7 8 9 1 x 3 ", b"P2 2 2 255 1 2 3 4e ", b"P1 4 4 0 1 2 x", b"P5 2 2 -7 abcd"],
    ids=["P3", "P2", "P1", "P5"],
)
def test_rubbish_among_numbers_is_named_in_our_words(data: bytes) -> None:
    with pytest.raises(MediaError) as caught:
        read(data)
    assert str(caught.value).startswith("x is damaged or cut off: ")
    assert "invalid literal" not in str(caught.value)
    assert "b'" not in str(caught.value)


def test_a_cut_file_without_a_row_is_refused() -> None:
    for kind, size in (("BMP", 60), ("PPM", 100), ("TIFF", 160), ("GIF", 800)):
        with pytest.raises(MediaError, match=r"^x is (damaged or cut off|a damaged)"):
            read(saved(photo(), kind)[:size])


# ------------------------------------------------------------------------------------------------------------- PNG


def test_cut_png_keeps_its_rows() -> None:
    pixels = photo()
    data = saved(pixels, "PNG")
    picture = read(data[: len(data) // 2])
    found = re.fullmatch(
        r"damaged or cut off: (\d+) of 160 rows could be decoded, the rest is filled", picture.problems[0]
    )
    assert found is not None
    rows = int(found[1])
    assert 60 < rows < 100
    assert np.array_equal(picture.pixels[:rows], pixels[:rows])
    assert not picture.pixels[rows + 1 :].any()
    with pytest.raises(MediaError, match=r"^x: damaged or cut off: \d+ of 160 rows"):
        read(data[: len(data) // 2], strict=True)
    with pytest.raises(MediaError, match=r"^x is damaged or cut off: no samples are left$"):
        read(data[:45])


def test_png_that_ends_early_in_valid_chunks() -> None:
    """No checksum is wrong; there are too few rows. Pillow takes those that are missing for black ones."""
    rows = b"".join(b"\0" + bytes([200] * 6) for _ in range(3))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 6, 5, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    picture = read(data)
    assert picture.problems == ["damaged or cut off: 3 of 5 rows could be decoded, the rest is filled"]
    assert picture.pixels[..., 0].tolist() == [[200] * 6] * 3 + [[0] * 6] * 2


def test_checksums_of_png() -> None:
    pixels = photo()
    data = saved(pixels, "PNG")
    for change, told in (
        (lambda d: d[:-12], "the end of the file is missing"),
        (lambda d: d[:-13] + b"\0" + d[-12:], "damaged: IDAT chunk"),
    ):
        picture = read(change(data))
        assert picture.problems == [told]
        assert np.array_equal(picture.pixels, pixels)
    stream = b"".join(payload for kind, payload in chunks_of(data) if kind == b"IDAT")
    wrong = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", chunks_of(data)[0][1]) + chunk(b"IDAT", stream[:-1] + b"\x55")
    assert read(wrong + chunk(b"IEND", b"")).problems == ["checksum of the samples is wrong"]


def test_broken_text_costs_no_pixel() -> None:
    pixels = photo()
    data = saved(pixels, "PNG")
    text = chunk(b"tEXt", b"Title\0sunrise")
    picture = read(data[:33] + text[:-1] + b"\0" + data[33:])
    assert np.array_equal(picture.pixels, pixels)
    assert (picture.problems, picture.notes) == (["damaged: tEXt chunk"], [])


def test_interlaced_png_is_weighed_rightly() -> None:
    for height, width in ((1, 1), (5, 3), (8, 8), (33, 20)):
        pixels = photo(height, width)
        passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
        raw = b""
        for x, y, dx, dy in passes:
            part = pixels[y::dy, x::dx]
            raw += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
        data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
        picture = read(data)
        assert picture.problems == []
        assert np.array_equal(picture.pixels, pixels)
    cut = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(raw[:500]))
    assert read(cut).problems[0].startswith(f"damaged or cut off: 500 of {len(raw)} bytes could be decoded")


def test_every_bit_of_a_png_counts() -> None:
    """A changed bit is told, refused, or in a place that says nothing of the picture."""
    pixels = photo(6, 5)
    data = saved(pixels, "PNG")
    for bit in range(8 * 8, 8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            picture = read(bytes(changed))
        except MediaError:
            continue
        assert picture.problems, f"bit {bit}"


# --------------------------------------------------------------------------------------------------- which picture


def page(width: int, height: int, value: int, at: int, following: int, **tags: int) -> bytes:
    """A directory that begins at ``at``, then its samples: gray, one strip."""
    entries = {
        256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: width * height,
        **{int(name[1:]): number for name, number in tags.items()},
    }  # fmt: skip
    entries[273] = at + 2 + 12 * len(entries) + 4
    body = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in sorted(entries.items()))
    return struct.pack("<H", len(entries)) + body + struct.pack("<I", following) + bytes([value]) * (width * height)


def pages(*specs: dict[str, int]) -> bytes:
    """A TIFF of pages of 20 x 10, or as said."""
    out = b"II*\0" + struct.pack("<I", 8)
    for i, spec in enumerate(specs):
        sides = {"width": 20, "height": 10, "value": 50 * i + 50} | spec
        at = len(out)
        following = at + len(page(at=at, following=0, **sides)) if i < len(specs) - 1 else 0
        out += page(at=at, following=following, **sides)
    return out


SMALL = {"width": 5, "height": 4}


def test_picture_of_a_tiff_is_not_its_reduced_copy() -> None:
    picture = read(pages({}, {**SMALL, "t254": 1}))
    assert (picture.pixels.shape, picture.pixels[0, 0, 0]) == ((10, 20, 1), 50)
    assert picture.notes == ["1 reduced copies and masks of the picture not kept"]
    picture = read(pages({**SMALL, "t254": 1}, {**SMALL, "t255": 2}, {}))
    assert (picture.pixels.shape, picture.pixels[0, 0, 0]) == ((10, 20, 1), 150)
    with pytest.raises(UnsupportedMediaError, match=r"^x holds 2 frames \(pages\)"):
        read(pages({}, {}, {**SMALL, "t254": 1}))
    with pytest.raises(UnsupportedMediaError, match=r"^x holds reduced copies only"):
        read(pages({**SMALL, "t254": 1}))
    with pytest.raises(UnsupportedMediaError, match=r"^x is a camera raw file \(DNG\)"):
        read(pages({"t50706": 0x0401}))


def test_circles_and_crowds_of_pages() -> None:
    data = bytearray(pages({}, {**SMALL, "t254": 1}))
    second = struct.unpack_from("<I", data, 8 + 2 + 12 * 9)[0]
    struct.pack_into("<I", data, second + 2 + 12 * 10, 8)  # back to the first
    assert read(bytes(data)).pixels.shape == (10, 20, 1)
    crowd = b"II*\0" + struct.pack("<I", 8) + b"".join(struct.pack("<HI", 0, 14 + 6 * i) for i in range(170_000))
    begin = time.process_time()
    with pytest.raises(UnsupportedMediaError, match=r"^x holds 1024 or more frames"):
        read(crowd)
    assert time.process_time() - begin < 5


# ---------------------------------------------------------------------------------------------------------- bounds


def webp_lossless(width: int, height: int) -> bytes:
    """38 bytes: one colour, so that nothing but the header says how many pixels there are."""
    bits = struct.pack("<I", (width - 1) | (height - 1) << 14)
    codes = bytes([0x07, 0x10, 0xFD, 0x8F, 0xFE, 0x07]) + bytes(7)
    body = b"VP8L" + struct.pack("<I", 18) + b"\x2f" + bits + codes
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


@pytest.mark.parametrize("kind", ["WEBP", "PNG", "GIF", "JPEG", "BMP", "AVIF"])
def test_many_pixels_in_few_bytes_are_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "WEBP":
        data = webp_lossless(16383, 16383)
        assert len(data) == 38
        opened = Image.open

        def never(*_: Any, **__: Any) -> None:
            pytest.fail("opened: Pillow allocates then")

        monkeypatch.setattr(Image, "open", never)
        with pytest.raises(MediaError, match=r"^x declares 16383 x 16383 pixels in 38 bytes: no picture is that"):
            read(data)
        monkeypatch.setattr(Image, "open", opened)
        return
    monkeypatch.setattr(image_module, "_FREE_PIXELS", 1 << 10)
    monkeypatch.setattr(image_module, "_PIXELS_PER_BYTE", 1)
    data = saved(np.zeros((300, 400, 3), np.uint8), kind)
    if kind == "BMP":
        assert read(data).pixels.shape == (300, 400, 3)
        return
    with pytest.raises(MediaError, match=rf"^x declares 400 x 300 pixels in {len(data)} bytes"):
        read(data)


def test_limit_is_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind that takes more memory for a pixel may have fewer of them."""
    monkeypatch.setattr(image_module, "_FREE_PIXELS", 1 << 10)
    pixels = photo(100, 100)
    assert read(saved(pixels, "PNG"), limit=10_000).pixels.shape == pixels.shape
    for kind, options, name, most in (
        ("WEBP", {"lossless": True}, "WEBP", 6666),
        ("JPEG", {"progressive": True}, "JPEG, progressive", 8571),
    ):
        told = rf"^x has 100 x 100 pixels, more than the limit of {most} for {name}: each takes 1\d bytes of memory"
        with pytest.raises(MediaError, match=told):
            read(saved(pixels, kind, **options), limit=10_000)
        assert read(saved(pixels, kind, **options), limit=20_000).pixels.shape == pixels.shape


def test_sides_of_webp_are_those_of_its_header() -> None:
    for options in ({"lossless": True}, {"lossless": False}, {"lossless": False, "exif": b"Exif\0\0II*\0" + bytes(20)}):
        assert image_module._webp_size(saved(photo(37, 301), "WEBP", **options)[:32]) == (301, 37)
    assert image_module._webp_size(webp_lossless(16383, 2)[:32]) == (16383, 2)
    assert image_module._webp_size(b"RIFF") is None


def test_scans_without_end_are_refused() -> None:
    data = saved(photo(2000, 2000), "JPEG", progressive=True, quality=5)
    at = data.rindex(b"\xff\xda")
    many = data[:-2] + data[at:-2] * 400 + b"\xff\xd9"
    begin = time.process_time()
    with pytest.raises(MediaError, match=r"^x has 4\d\d scans of 2000 x 2000 pixels: no encoder needs so many$"):
        read(many)
    assert time.process_time() - begin < 5


def test_tiles_beyond_the_picture_are_refused() -> None:
    data = pages({"t322": 65520, "t323": 65520, "t324": 200, "t325": 200})
    with pytest.raises(MediaError, match=r"^x "):
        read(data)


def test_chained_exif_takes_no_time() -> None:
    """Each value ends where the one before begins, so that each is at the end once the other is cut off; and values
    that all lie over each other are not blanked one by one."""
    entries = 13_000
    for chained in (True, False):
        first = struct.pack("<HHHIII", 1, 0x010F, 2, 4, 0x41414141, 26)
        begin = 26 + 2 + 12 * entries + 4
        table = b"".join(
            struct.pack("<HHII", 0x0300 + i % 999, 1, 8 if chained else 900_000, begin + 8 * i if chained else begin)
            for i in range(entries)
        )
        block = b"II*\0" + struct.pack("<I", 8) + first + struct.pack("<H", entries) + table + bytes(4)
        block += bytes(8 * entries if chained else 900_000)
        data = saved(photo(4, 4), "PNG", exif=b"Exif\0\0" + block)
        start = time.process_time()
        picture = read(data)
        assert time.process_time() - start < 3
        assert picture.exif is not None
        assert len(picture.exif) <= 27


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")  # noqa: PTH110
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "JPEG, progressive", "WEBP", "AVIF", "TIFF", "HEIF", "GIF"])
def test_memory_stays_below_what_the_limit_allows(kind: str) -> None:
    """In a process of its own: peak memory over what it had, for each pixel that the header declares."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    side = 2000
    options: dict[str, Any] = {"progressive": True, "subsampling": 0} if "prog" in kind else {}
    options |= {"WEBP": {"lossless": True, "method": 0}, "AVIF": {"speed": 10}}.get(kind, {})
    pixels = np.repeat(np.repeat(photo(side // 8, side // 8), 8, 0), 8, 1)
    if kind not in ("JPEG", "JPEG, progressive", "GIF"):
        pixels = np.concatenate([pixels, pixels[..., :1]], -1)  # with alpha
    pixels = pixels // 255 if kind == "HEIF" else pixels  # its encoder takes long otherwise
    data = saved(pixels, kind.split(",")[0], **options)
    child = subprocess.run([sys.executable, "-c", PEAK], input=data, capture_output=True, check=True)
    taken = int(child.stdout) / side**2
    assert taken < image_module._COST.get(kind, image_module._USUAL_COST)


PEAK = """
import io, sys
from pathlib import Path
from PIL import Image
from tokodec.codec.media.read_image import read_image

def memory(what):
    return 1024 * int(Path("/proc/self/status").read_text().split(what + ":")[1].split()[0])

small = io.BytesIO()
Image.new("RGB", (16, 16)).save(small, "JPEG")
small.seek(0)
read_image(small, "x", 1 << 28)  # loads what it needs
data = sys.stdin.buffer.read()
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
read_image(io.BytesIO(data), "x", 1 << 28)
print(memory("VmHWM") - before)
"""


def test_streams_are_judged_by_their_first_bytes() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM"):
        refuse_unknown(saved(photo(8, 8), kind)[:4096], "x")
    for start in (bytes(4096), b"", b"Dear reader"):
        with pytest.raises(MediaError, match=r"^x is not a picture in a known format"):
            refuse_unknown(start, "x")
