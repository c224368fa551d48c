"""Colours come back as they were meant, whatever way a file says what its numbers mean."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from tokodec.codec.errors import MediaError
from tokodec.codec.media.exif import dropped_metadata
from tokodec.codec.media.kind import media_kind
from tokodec.codec.media.picture import Picture
from tokodec.codec.media.profile import (
    CodePoints,
    fitting_profile,
    profile_of_code_points,
    profile_of_gamma,
    to_srgb,
)
from tokodec.codec.media.read_image import HEIF_BRANDS, read_image
from tokodec.codec.media.write_image import write_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# x and y of red, green, blue and white, from the standards.
BT709 = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), (0.3127, 0.3290))
DISPLAY_P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.3127, 0.3290))
BT2020 = ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), (0.3127, 0.3290))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), (0.3127, 0.3290))


def to_xyz(points: tuple[tuple[float, float], ...]) -> np.ndarray:
    """The matrix from light of three primaries to XYZ, by definition."""
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in points]).T
    return xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])


def srgb_light(samples: np.ndarray) -> np.ndarray:
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def expected(samples: tuple[int, ...], points: tuple[tuple[float, float], ...], gamma: float | None) -> np.ndarray:
    """Samples of sRGB that look the same."""
    x = np.array(samples) / 255
    light = srgb_light(x) if gamma is None else x**gamma
    shown = np.clip(np.linalg.inv(to_xyz(BT709)) @ to_xyz(points) @ light, 0, 1)
    return 255 * np.where(shown <= 0.0031308, 12.92 * shown, 1.055 * shown ** (1 / 2.4) - 0.055)


def shown(icc: bytes | None, samples: tuple[int, ...]) -> np.ndarray:
    """What a viewer with an sRGB screen makes of samples with a profile."""
    picture = Picture(np.array(samples, np.uint8).reshape(1, 1, -1), icc=icc)
    assert to_srgb(picture, [(0, 1)])
    return picture.pixels[0, 0].astype(float)


def read(data: bytes) -> Picture:
    return read_image(io.BytesIO(data), "x", 1 << 20)


def saved(im: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    im.save(buffer, kind, **options)
    return buffer.getvalue()


def written(picture: Picture, suffix: str) -> tuple[bytes, list[str]]:
    buffer = io.BytesIO()
    notes = write_image(picture, buffer, suffix, "x")
    return buffer.getvalue(), notes


def chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def png(im: Image.Image, *chunks: bytes) -> bytes:
    data = saved(im, "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


COLOURS = [(200, 100, 50), (30, 160, 90), (128, 128, 128), (255, 255, 255), (0, 0, 0), (120, 130, 200)]


@pytest.mark.parametrize(
    ("points", "primaries", "gamma"),
    [
        (CodePoints(12, 13), DISPLAY_P3, None),
        (CodePoints(9, 13), BT2020, None),
        (CodePoints(12, 1), DISPLAY_P3, None),
        (CodePoints(1, 4), BT709, 2.2),
        (CodePoints(9, 8), BT2020, 1.0),
    ],
)
def test_code_points_become_a_profile(
    points: CodePoints, primaries: tuple[tuple[float, float], ...], gamma: float | None
) -> None:
    icc = profile_of_code_points(points, gray=False)
    for samples in COLOURS:
        assert np.abs(shown(icc, samples) - expected(samples, primaries, gamma)).max() <= 1.5


def test_srgb_needs_no_profile() -> None:
    for primaries in (1, 2):
        for transfer in (1, 2, 6, 13):
            assert profile_of_code_points(CodePoints(primaries, transfer), gray=False) is None
    assert profile_of_code_points(CodePoints(12, 13), gray=True) is None  # gray has no primaries


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_p3_by_code_points_only(kind: str) -> None:
    """As cameras and browsers write AVIF: no profile, nclx with primaries 12."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    data = saved(Image.new("RGB", (64, 64), (200, 100, 50)), kind, quality=95)
    at = data.index(b"colrnclx") + 8
    for primaries, transfer in ((12, 13), (9, 16), (1, 13)):
        picture = read(data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :])
        if primaries == 12:
            assert picture.icc == profile_of_code_points(CodePoints(12, 13), gray=False)
            assert np.abs(shown(picture.icc, (200, 100, 50)) - (215, 93, 31)).max() <= 1
            assert picture.notes == []
        elif transfer == 16:
            assert (picture.icc, picture.notes) == (
                None, ["colour description (PQ) not kept: samples are taken as sRGB"],
            )  # fmt: skip
        else:
            assert (picture.icc, picture.notes) == (None, [])


def test_code_points_of_png() -> None:
    """They come before a profile (PNG, third edition, 4.3), which stands in if they cannot be kept."""
    im = Image.new("RGB", (4, 4), (200, 100, 50))
    picture = read(png(im, chunk(b"cICP", bytes([12, 13, 0, 1]))))
    assert (picture.icc, picture.notes) == (profile_of_code_points(CodePoints(12, 13), gray=False), [])
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(SRGB))
    picture = read(png(im, chunk(b"cICP", bytes([9, 16, 0, 1])), profile))
    assert picture.icc == SRGB
    assert picture.notes == ["colour description (PQ) not kept: the profile is kept"]


def test_gamma_and_primaries_of_png() -> None:
    im = Image.new("RGB", (4, 4), (200, 100, 50))
    numbers = [round(100000 * value) for point in (ADOBE_RGB[3], *ADOBE_RGB[:3]) for value in point]
    where = chunk(b"cHRM", struct.pack(">8I", *numbers))
    gamma = chunk(b"gAMA", struct.pack(">I", 45455))
    picture = read(png(im, gamma, where))
    assert picture.notes == []
    for samples in COLOURS:
        assert np.abs(shown(picture.icc, samples) - expected(samples, ADOBE_RGB, 2.2)).max() <= 1.5
    assert read(png(im, gamma)).icc is None  # sRGB as good as
    assert read(png(im, chunk(b"sRGB", b"\0"), where)).icc is None  # sRGB comes first
    linear = chunk(b"gAMA", struct.pack(">I", 100000))
    assert np.abs(shown(read(png(im, linear)).icc, (128, 128, 128)) - 188).max() <= 1
    gray = read(png(Image.new("L", (4, 4), 128), linear))
    assert abs(shown(gray.icc, (128,))[0] - 188) <= 1
    for bad in (chunk(b"gAMA", bytes(4)), chunk(b"cHRM", bytes(32)), chunk(b"cHRM", struct.pack(">8I", *[31270] * 8))):
        picture = read(png(im, bad))
        assert (picture.icc, picture.notes) == (None, ["gAMA and cHRM not kept: they describe no colours"])


def test_adobe_rgb_of_cameras() -> None:
    """No profile: EXIF says that the colour space is another one, and the interoperability index which."""
    for index, space, adobe in (("R03", 0xFFFF, True), ("R98", 0xFFFF, False), ("R03", 1, False)):
        exif = Image.Exif()
        own = exif.get_ifd(0x8769)
        own[0xA001] = space
        own[0xA005] = {1: index}
        picture = read(saved(Image.new("RGB", (8, 8)), "JPEG", exif=exif))
        assert (picture.icc is not None) is adobe
        if adobe:
            for samples in COLOURS:
                assert np.abs(shown(picture.icc, samples) - expected(samples, ADOBE_RGB, 563 / 256)).max() <= 1.5
        assert read(saved(Image.new("RGB", (8, 8)), "JPEG", exif=exif, icc_profile=SRGB)).icc == SRGB


# ------------------------------------------------------------------------------------------- profiles that must fit


def test_profiles_are_valid() -> None:
    """As ICC.1 has it, and as libpng checks it before it takes one."""
    for icc in (
        profile_of_code_points(CodePoints(12, 13), gray=False),
        profile_of_gamma(1.0, None, gray=True),
        fitting_profile(SRGB, gray=True)[0],
    ):
        assert icc is not None
        assert struct.unpack_from(">I", icc) == (len(icc),)
        assert len(icc) % 4 == 0
        assert icc[36:40] == b"acsp"
        assert icc[68:80] == struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)  # D50, to the bit
        (count,) = struct.unpack_from(">I", icc, 128)
        for i in range(count):
            _, start, length = struct.unpack_from(">4sII", icc, 132 + 12 * i)
            assert start % 4 == 0
            assert 132 + 12 * count <= start <= start + length <= len(icc)
        assert ImageCms.getProfileDescription(ImageCms.getOpenProfile(io.BytesIO(icc)))


def test_profile_of_a_gray_picture_is_for_gray() -> None:
    """A JPEG of gray samples may hold a profile for RGB; a PNG must not (PNG, third edition, 11.3.2.3)."""
    p3 = profile_of_code_points(CodePoints(12, 8), gray=False)
    picture = read(saved(Image.new("L", (8, 8), 128), "JPEG", icc_profile=p3))
    assert picture.notes == ["ICC profile for RGB turned into one for gray"]
    assert picture.icc is not None
    assert picture.icc[16:20] == b"GRAY"
    assert abs(shown(picture.icc, (128,))[0] - shown(p3, (128, 128, 128))[0]) <= 1
    for suffix in (".png", ".jpg", ".tif"):
        data, notes = written(Picture(np.full((4, 4, 1), 128, np.uint8), icc=p3), suffix)
        assert "ICC profile for RGB turned into one for gray" in notes
        assert Image.open(io.BytesIO(data)).info["icc_profile"][16:20] == b"GRAY"


def test_profile_of_an_rgb_picture_is_for_rgb() -> None:
    gray = profile_of_gamma(1.0, None, gray=True)
    picture = read(saved(Image.new("P", (8, 8)), "PNG", icc_profile=gray))
    assert picture.icc is not None
    assert picture.icc[16:20] == b"RGB "
    assert np.abs(shown(picture.icc, (128, 128, 128)) - 188).max() <= 1
    data, notes = written(Picture(np.full((4, 4, 1), 128, np.uint8), icc=gray), ".webp")
    assert notes == [".webp has no gray: written as RGB", "ICC profile for gray turned into one for RGB"]
    assert Image.open(io.BytesIO(data)).info["icc_profile"][16:20] == b"RGB "


def test_profiles_that_do_not_belong_are_told() -> None:
    cmyk = bytearray(SRGB)
    cmyk[16:20] = b"CMYK"
    for icc, told in (
        (bytes(cmyk), "ICC profile not kept: it is for CMYK, and the picture is RGB"),
        (SRGB[:100], "ICC profile not kept: it is damaged"),
        (SRGB[:200], "ICC profile not kept: it is damaged"),
        (b"\0" * 200, "ICC profile not kept: it is damaged"),
    ):
        picture = read(saved(Image.new("RGB", (8, 8)), "JPEG", icc_profile=icc))
        assert (picture.icc, picture.notes) == (None, [told])
    picture = read(saved(Image.new("RGB", (8, 8)), "JPEG", icc_profile=SRGB + b"rubbish"))
    assert (picture.icc, picture.notes) == (SRGB, [])


def test_random_profiles_never_break_reading() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        icc = bytearray(SRGB)
        for _ in range(4):
            icc[rng.integers(0, 400)] = rng.integers(256)
        for gray in (False, True):
            fitted, note = fitting_profile(bytes(icc), gray)
            assert fitted is not None or note is not None
        to_srgb(Picture(np.zeros((2, 2, 3), np.uint8), icc=bytes(icc)), [(0, 2)])


# ------------------------------------------------------------------------------------------------------------ HEIC


def test_heic_is_read_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    y, x = np.mgrid[:48, :64]
    im = Image.fromarray(np.stack([y * 4, x * 3, y + x], -1).astype(np.uint8))
    block = Image.Exif()
    block[0x0112], block[0x010F] = 6, "Maker"
    data = saved(im, "HEIF", quality=95, exif=block, icc_profile=SRGB, xmp=b"<x/>")
    picture = read(data)
    assert picture.pixels.shape == (48, 64, 3)  # ISO/IEC 23008-12: properties turn it, EXIF does not
    assert np.abs(picture.pixels.astype(int) - np.asarray(im)).mean() < 4
    assert picture.exif is not None
    assert b"Maker" in picture.exif
    assert (picture.icc, picture.xmp, picture.notes, picture.problems) == (SRGB, b"<x/>", [], [])
    monkeypatch.setattr("tokodec.codec.media.read_image._knows_heif", lambda: False)
    with pytest.raises(
        MediaError, match=r"^x is a HEIC picture, which the package pillow-heif reads: pip install 'tokodec\[heif\]'"
    ):
        read(data)


@pytest.mark.parametrize("bits", [10, 12])
def test_the_depth_of_heic_is_told(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    monkeypatch.setattr(heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
    buffer = io.BytesIO()
    heif.encode("RGB;16", (32, 24), np.full((24, 32, 3), 40_000, np.uint16).tobytes(), buffer, quality=90)
    picture = read(buffer.getvalue())
    assert picture.notes[0] == f"{bits} bits per sample reduced to 8"
    assert picture.bit_depth == 16
    assert abs(int(picture.pixels[9, 9, 1]) - 156) <= 2


def test_what_lies_beside_a_heic_picture_is_told() -> None:
    im = Image.new("RGB", (8, 8))
    im.info |= {"depth_images": [object()], "aux": {"urn:com:apple:photo:2020:aux:hdrgainmap": [3]}}
    assert dropped_metadata(im, [], has_alpha=False, exif=None) == [
        "depth maps not kept", "pictures beside it (a gain map, for instance) not kept",
    ]  # fmt: skip


def test_every_brand_of_heic_is_a_picture() -> None:
    for brand in HEIF_BRANDS:
        data = b"\0\0\0\x18ftyp" + brand + bytes(300)
        assert media_kind(io.BytesIO(data))[0] == "image"
