"""One still picture in memory: what all readers give and all writers take."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Picture:
    """One still picture, upright.

    ``exif`` starts with the TIFF header (``II*\\0`` or ``MM\\0*``), without the ``Exif\\0\\0`` that JPEG puts before
    it. It is the block of the file except that the orientation, which has been applied, and the thumbnail are gone;
    offsets inside it are unchanged, so that maker notes stay readable. ``xmp`` is a packet of XML; an orientation in it
    is 1, and the profile is one for the samples as they are here: gray or RGB.
    """

    # uint8 or (lossless) uint16 [H, W, C], C = 1 (gray) or 3 (RGB, display-referred, sRGB unless icc says otherwise)
    pixels: np.ndarray
    alpha: np.ndarray | None = None  # [H, W] of the same type, not premultiplied; None if the file has no alpha
    icc: bytes | None = None  # ICC profile
    exif: bytes | None = None
    bit_depth: int = 8  # of the source: 8, or 16 if it had more than 8 bits per sample
    notes: list[str] = field(default_factory=list)  # a line each: what was converted or could not be kept
    xmp: bytes | None = None
    problems: list[str] = field(default_factory=list)  # a line each: damage, beyond which it was decoded
