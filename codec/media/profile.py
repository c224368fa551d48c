"""ICC profiles: whether one belongs to a picture, and making one where a file describes its colours otherwise.

Files say what their numbers mean in several ways: with a profile, with code points (nclx in AVIF and HEIC, cICP in PNG;
ITU-T H.273), with a gamma and primaries (PNG). A :class:`.read_image.Picture` knows one way, the profile, so the others
become profiles: of three primaries and a curve, or of a curve alone for gray (ICC.1:2022, sections 8.3 and 8.4).
"""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageCms

if TYPE_CHECKING:
    from .picture import Picture

Curve = bytes  # data of a tag of type curv or para
_D50 = (0.9642, 1.0, 0.8249)
_D65, _DCI, _C = (0.3127, 0.3290), (0.314, 0.351), (0.310, 0.316)
# ITU-T H.273, table 2: x and y of red, green, blue, white.
_PRIMARIES: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65),  # BT.709, sRGB
    4: ((0.67, 0.33), (0.21, 0.71), (0.14, 0.08), _C),  # BT.470 M
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06), _D65),  # BT.470 BG
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),  # BT.601
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),  # SMPTE 240
    8: ((0.681, 0.319), (0.243, 0.692), (0.145, 0.049), _C),  # film
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),  # BT.2020
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _DCI),  # DCI-P3
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),  # Display P3
    22: ((0.630, 0.340), (0.295, 0.605), (0.155, 0.077), _D65),  # EBU 3213
}
_NAMES = {1: "sRGB", 9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}  # H.273, table 3; 17 is SMPTE 428
_AS_SRGB = (1, 2, 6, 13, 14, 15)  # of those, BT.709 and its kin (and what says nothing) are shown as sRGB is
UNSPECIFIED = 2
SRGB_GAMMA = 0.45455  # what PNG files of sRGB say


class CodePoints(NamedTuple):
    """Primaries and transfer characteristics of ITU-T H.273."""

    primaries: int
    transfer: int

    @property
    def is_srgb(self) -> bool:
        return self.primaries in (1, UNSPECIFIED) and self.transfer in _AS_SRGB


def profile_of_code_points(points: CodePoints, gray: bool) -> bytes | None:
    """The profile that code points stand for, None for sRGB. Raises ValueError for what no profile can say."""
    primaries, transfer = points
    if points.is_srgb or (gray and transfer in _AS_SRGB):
        return None
    if transfer in _AS_SRGB:
        curve = _srgb_curve()
    elif transfer in _GAMMAS:
        curve = _gamma_curve(_GAMMAS[transfer])
    else:
        raise ValueError({16: "PQ", 18: "HLG"}.get(transfer, f"transfer {transfer}"))
    if gray:
        return _profile("gray", b"GRAY", {b"kTRC": curve})
    known = 1 if primaries == UNSPECIFIED else primaries
    if known not in _PRIMARIES:
        raise ValueError(f"primaries {primaries}")
    return _rgb_profile(_NAMES.get(known, f"primaries {known}"), _PRIMARIES[known], curve)


def adobe_rgb() -> bytes:
    """The profile of Adobe RGB (1998), which cameras that write it name in EXIF only."""
    points = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), _D65)
    return _rgb_profile("Adobe RGB (1998)", points, _gamma_curve(563 / 256))


def profile_of_gamma(gamma: float | None, points: tuple[float, ...] | None, gray: bool) -> bytes | None:
    """The profile that gAMA and cHRM of a PNG stand for, None for what is close to sRGB.

    Args:    gamma: exponent from light to samples, e.g. 0.45455.  points: x and y of white, red, green, blue.
    Raises:  ValueError for numbers that describe no colours.
    """
    srgb_gamma = gamma is None or abs(gamma - SRGB_GAMMA) < 0.005
    usual = _PRIMARIES[1]
    where = usual if points is None else (points[2:4], points[4:6], points[6:8], points[0:2])
    near = np.allclose(np.asarray(where), np.asarray(usual), atol=0.005)
    if srgb_gamma and (near or gray):
        return None
    if gamma is not None and not 0.1 <= gamma <= 10:
        raise ValueError(f"gamma {gamma:g}")
    curve = _srgb_curve() if gamma is None else _gamma_curve(1 / gamma)
    if gray:
        return _profile("gray", b"GRAY", {b"kTRC": curve})
    return _rgb_profile("gAMA and cHRM of a PNG", where, curve)  # type: ignore[arg-type]


def fitting_profile(icc: bytes, gray: bool) -> tuple[bytes | None, str | None]:
    """A profile for samples of this kind that says of them what ``icc`` says, and a note if it is not ``icc`` itself.

    Readers refuse a profile for RGB in a gray picture. On the gray axis it is its curve, if all channels have the same;
    the other way round a curve with any primaries says the same of the gray axis.
    """
    try:
        tags = _tags(icc)
    except (struct.error, ValueError):
        return None, "ICC profile not kept: it is damaged"
    space, wanted = icc[16:20], b"GRAY" if gray else b"RGB "
    icc = icc[: int.from_bytes(icc[:4], "big")]
    if space == wanted:
        return icc, None
    if space == b"RGB " and gray and tags.get(b"rTRC") and tags[b"rTRC"] == tags.get(b"gTRC") == tags.get(b"bTRC"):
        return _profile("gray", b"GRAY", {b"kTRC": tags[b"rTRC"]}), "ICC profile for RGB turned into one for gray"
    if space == b"GRAY" and not gray and tags.get(b"kTRC"):
        profile = _rgb_profile("gray as RGB", _PRIMARIES[1], tags[b"kTRC"])
        return profile, "ICC profile for gray turned into one for RGB"
    name = space.decode("latin-1").strip()
    kind = name if name.isprintable() else "something else"
    return None, f"ICC profile not kept: it is for {kind}, and the picture is {'gray' if gray else 'RGB'}"


def to_srgb(picture: Picture, bands: list[tuple[int, int]]) -> bool:
    """Convert the samples of a picture in place by its profile, which goes. False if no conversion can be made."""
    if picture.icc is None:
        return True
    gray = picture.pixels.shape[2] == 1
    srgb = ImageCms.createProfile("sRGB")
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(picture.icc))
        transform = ImageCms.buildTransform(profile, srgb, "L" if gray else "RGB", "RGB")
        for y0, y1 in bands:
            rows = picture.pixels[y0:y1]
            band = Image.fromarray(np.ascontiguousarray(rows[..., 0] if gray else rows))
            converted = ImageCms.applyTransform(band, transform)
            assert converted is not None  # it is None only for inPlace
            samples = np.asarray(converted)
            rows[...] = samples[..., 1:2] if gray else samples
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False
    picture.icc = None
    return True


# ---------------------------------------------------------------------------------------------------------- the bytes


def _tags(icc: bytes) -> dict[bytes, bytes]:
    """Data of all tags of a profile. Raises ValueError or struct.error for what is none."""
    (size,) = struct.unpack_from(">I", icc)
    if size > len(icc) or size < 132 or icc[36:40] != b"acsp":
        raise ValueError("no ICC profile")
    (count,) = struct.unpack_from(">I", icc, 128)
    if count > 1000:
        raise ValueError("too many tags")
    tags = {}
    for i in range(count):
        name, start, length = struct.unpack_from(">4sII", icc, 132 + 12 * i)
        if start < 132 or start + length > size:
            raise ValueError("a tag lies outside")
        tags[name] = icc[start : start + length]
    return tags


def _fixed(value: float) -> int:
    return round(value * 65536)


def _srgb_curve() -> Curve:
    """IEC 61966-2-1 from samples to light."""
    g, a, b, c, d = 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045
    return b"para" + bytes(4) + struct.pack(">HH5i", 3, 0, *map(_fixed, (g, a, b, c, d)))


def _gamma_curve(exponent: float) -> Curve:
    return b"para" + bytes(4) + struct.pack(">HHi", 0, 0, _fixed(exponent))


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *map(_fixed, values))


def _text(text: str) -> bytes:
    """One record of a multiLocalizedUnicodeType."""
    encoded = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(encoded), 28) + encoded


def _rgb_profile(name: str, points: tuple[tuple[float, float], ...], curve: Curve) -> bytes:
    """A profile of primaries and a curve. points: x and y of red, green, blue, white. Raises ValueError for others."""
    if any(not (0 <= x <= 1.2 and 0 < y <= 1.2) for x, y in points):
        raise ValueError("no colours")
    xyz = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in points]).T  # [XYZ, point], luminance 1
    try:
        scales = np.linalg.solve(xyz[:, :3], xyz[:, 3])
    except np.linalg.LinAlgError as error:
        raise ValueError("no three primaries") from error
    # Bradford's adaptation from the white of the points to that of profiles (ICC.1:2022, annex E).
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    gain = (bradford @ np.array(_D50)) / (bradford @ xyz[:, 3])
    adapted = np.linalg.inv(bradford) @ np.diag(gain) @ bradford
    columns = adapted @ (xyz[:, :3] * scales)
    if not np.isfinite(columns).all() or np.abs(columns).max() > 4 or (scales <= 0).any():
        raise ValueError("no three primaries")
    tags = {b"rXYZ": 0, b"gXYZ": 1, b"bXYZ": 2}
    tristimuli = {tag: _xyz(tuple(columns[:, i])) for tag, i in tags.items()}
    curves = {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    chad = b"sf32" + bytes(4) + struct.pack(">9i", *map(_fixed, adapted.ravel()))
    return _profile(name, b"RGB ", {**tristimuli, **curves, b"chad": chad})


def _profile(name: str, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 4 profile of a display. tags: beside description, copyright and white. The same bytes every time."""
    own = {b"desc": _text(name), b"cprt": _text("No copyright, use freely"), b"wtpt": _xyz(_D50), **tags}
    places: dict[bytes, int] = {}
    table, body = b"", b""
    begin = 132 + 12 * len(own)
    for tag, data in own.items():
        if data not in places:
            places[data] = begin + len(body)
            body += data + bytes(-len(data) % 4)
        table += struct.pack(">4sII", tag, places[data], len(data))
    head = struct.pack(
        ">I4sI4s4s4s6H4s4sI4s4sQI3i4s16s28s",
        begin + len(body), b"", 0x04400000, b"mntr", space, b"XYZ ", 2020, 1, 1, 0, 0, 0, b"acsp", b"", 0, b"", b"",
        0, 0, *map(_fixed, _D50), b"", b"", b"",
    )  # fmt: skip
    return head + struct.pack(">I", len(own)) + table + body
