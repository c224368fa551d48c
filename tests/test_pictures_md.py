"""The page on pictures says what the code does: a file is made for each cell of its tables."""

import io
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from tokodec.codec.errors import MediaError, UnsupportedMediaError
from tokodec.codec.media import read_image as image_module
from tokodec.codec.media.read_image import Picture, read_image
from tokodec.codec.media.write_image import AVIF_QUALITY, JPEG_QUALITY, write_image

PAGE = (Path(image_module.__file__).parent / "PICTURES.md").read_text()
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"<x:xmpmeta/>"


def table(title: str) -> dict[str, dict[str, str]]:
    """Rows of the table below a title, by their first cell."""
    lines = re.findall(r"^\| (.*) \|$", PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0], re.M)
    rows = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


READ, DAMAGE, WRITTEN = table("Read"), table("Damage"), table("Written")
KINDS = {name: {"WebP": "WEBP", "HEIC": "HEIF"}.get(name, name) for name in READ}


def photo() -> Image.Image:
    y, x = np.mgrid[:16, :24]
    return Image.fromarray(np.stack([y * 9, x * 9, y + x], -1).astype(np.uint8))


def exif() -> Image.Exif:
    block = Image.Exif()
    block[0x010F] = "Maker"
    return block


def saved(kind: str, scale: int = 1, **options: Any) -> bytes:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    buffer = io.BytesIO()
    photo().resize((24 * scale, 16 * scale)).save(buffer, kind, **options)
    return buffer.getvalue()


def read(data: bytes) -> Picture:
    return read_image(io.BytesIO(data), "x", 1 << 20)


def with_metadata(kind: str, what: str) -> bytes:
    if what == "ICC profile":
        return saved(kind, icc_profile=SRGB)
    if what == "EXIF":
        return saved(kind, exif=exif())
    if what == "resolution":
        return saved(kind, dpi=(300, 300))
    info = PngImagePlugin.PngInfo()
    if what == "XMP":
        info.add_itxt("XML:com.adobe.xmp", XMP.decode())
        held: dict[str, dict[str, Any]] = {"PNG": {"pnginfo": info}, "TIFF": {"tiffinfo": {700: XMP}}}
        return saved(kind, **held.get(kind, {"xmp": XMP}))
    if what == "comments, text":
        info.add_text("Author", "me")
        special: dict[str, dict[str, Any]] = {"PNG": {"pnginfo": info}, "TIFF": {"tiffinfo": {0x010E: "said"}}}
        return saved(kind, **special.get(kind, {"comment": b"said"}))
    assert what == "other descriptions of colours"
    if kind == "PNG":
        data, payload = saved(kind), struct.pack(">I", 100000)
        gamma = struct.pack(">I", 4) + b"gAMA" + payload + struct.pack(">I", zlib.crc32(b"gAMA" + payload))
        return data[:33] + gamma + data[33:]
    if kind == "JPEG":
        block = Image.Exif()
        own = block.get_ifd(0x8769)
        own[0xA001], own[0xA005] = 0xFFFF, {1: "R03"}
        return saved(kind, exif=block)
    data = saved(kind)
    at = data.index(b"colrnclx") + 8
    return data[:at] + b"\0\x0c\0\x0d" + data[at + 4 :]


@pytest.mark.parametrize("what", list(READ["PNG"])[:-1])
@pytest.mark.parametrize("name", READ)
def test_what_is_read(name: str, what: str) -> None:
    said = READ[name][what]
    if said == "-":
        return
    picture = read(with_metadata(KINDS[name], what))
    held = {"ICC profile": picture.icc, "EXIF": picture.exif, "XMP": picture.xmp, "resolution": picture.exif}
    held |= {"comments, text": picture.exif, "other descriptions of colours": picture.icc}
    if said == "noted":
        assert len(picture.notes) == 1
        assert "not kept" in picture.notes[0]
    else:
        assert said.startswith("kept")
        assert held[what] is not None
        assert picture.notes == []
    assert read(saved(KINDS[name])).notes == []


@pytest.mark.parametrize("name", READ)
def test_several_pictures(name: str) -> None:
    said = READ[name]["several pictures"]
    if said == "-":
        return
    kind = "MPO" if name == "JPEG" else KINDS[name]
    data = saved(kind, save_all=True, append_images=[photo().transpose(Image.Transpose.FLIP_TOP_BOTTOM)])
    if said == "refused":
        with pytest.raises(UnsupportedMediaError, match=r"^x holds 2 frames"):
            read(data)
        return
    picture = read(data)
    assert np.abs(picture.pixels.astype(int) - np.asarray(photo())).mean() < 8
    assert len(picture.notes) == 1
    assert "of 2 pictures in the file is kept" in picture.notes[0]


@pytest.mark.parametrize("name", READ)
def test_what_is_cut_off(name: str) -> None:
    data = saved(KINDS[name], scale=8)
    data = data[: len(data) * 3 // 4]
    if DAMAGE[name]["cut off after three quarters"] == "refused":
        with pytest.raises(MediaError, match=r"^x is (damaged|a damaged)"):
            read(data)
        return
    assert len(read(data).problems) == 1
    with pytest.raises(MediaError, match=r"^x: "):
        read_image(io.BytesIO(data), "x", 1 << 20, strict=True)


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written(name: str) -> None:
    row = WRITTEN[name]
    pixels = np.asarray(photo())
    block = exif().tobytes().removeprefix(b"Exif\0\0")

    def written(**fields: Any) -> tuple[Picture, list[str]]:
        buffer = io.BytesIO()
        notes = write_image(Picture(pixels, **fields), buffer, name, "x")
        return read(buffer.getvalue()), notes

    back, notes = written()
    assert row["samples"] in ("lossless", f"quality {JPEG_QUALITY if name == 'jpg' else AVIF_QUALITY}")
    assert np.array_equal(back.pixels, pixels) is (row["samples"] == "lossless")
    lossy = [note for note in notes if "is lossy" in note]
    assert bool(lossy) is (row["samples"] != "lossless")
    for what, field, value in (("ICC profile", "icc", SRGB), ("EXIF", "exif", block), ("XMP", "xmp", XMP)):
        back, notes = written(**{field: value})
        assert (getattr(back, field) is not None) is (row[what] == "kept")
        told = [note for note in notes if "not kept" in note]
        assert told == ([] if row[what] == "kept" else [f"{what} not kept: .{name} has no place for it"])
    if row["alpha"] == "refused":
        with pytest.raises(UnsupportedMediaError, match="alpha"):
            written(alpha=pixels[..., 0])
    else:
        alpha = written(alpha=pixels[..., 0])[0].alpha
        assert alpha is not None
        assert np.abs(alpha.astype(int) - pixels[..., 0]).max() <= (0 if row["samples"] == "lossless" else 8)


def test_numbers_of_the_limits() -> None:
    for text in (
        f"more than {image_module._BUDGET} bytes of memory",
        f"Over 2^{image_module._FREE_PIXELS.bit_length() - 1} pixels",
        f"a byte for each {image_module._PIXELS_PER_BYTE} pixels",
        f"more than {image_module._FREE_SCANS} scans",
        f"no more than 2^{image_module._PIXEL_SCANS.bit_length() - 1} pixels in all scans",
        f"{image_module.MAX_PAGES} pages",
    ):
        assert text in PAGE
    costs = [cost for cost in image_module._COST.values() if cost > image_module._BUDGET]
    assert f"{min(costs)} to {max(costs)} bytes a pixel" in PAGE
    assert image_module._FREE_PIXELS * max(image_module._COST.values()) < 303e6
