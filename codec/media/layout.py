"""Where channels of a sound are heard: a mask of positions, as in WAVE files, in whose order channels are kept.

Bit i of a mask is position i of :data:`POSITIONS` (WAVEFORMATEXTENSIBLE, dwChannelMask); channels come in the order of
their bits, which is FFmpeg's order too. A mask of 0 says nothing more than the number of channels: one, or left and
right, or unknown.
"""

from __future__ import annotations

from typing import Any

import numpy as np

POSITIONS = (
    "FL", "FR", "FC", "LFE", "BL", "BR", "FLC", "FRC", "BC", "SL", "SR", "TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR",
)  # fmt: skip
MONO, STEREO = 0x4, 0x3
# What a number of channels is taken for where nothing is known, as in FLAC (RFC 9639, 9.1.3).
CUSTOMARY = {1: MONO, 2: STEREO, 3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x70F, 8: 0x63F}


def mask_of(layout: Any) -> tuple[int, list[int] | None]:
    """The mask of a layout of FFmpeg, and the order in which to take its channels; None as they are."""
    names = [channel.name for channel in layout.channels]
    if len(set(names)) < len(names) or any(name not in POSITIONS for name in names):
        return 0, None
    places = [POSITIONS.index(name) for name in names]
    mask = sum(1 << place for place in places)
    order = [int(i) for i in np.argsort(places)]
    plain = len(names) <= 2 and mask == CUSTOMARY[len(names)]
    return 0 if plain else mask, None if order == sorted(order) else order


def layout_name(mask: int, channels: int) -> str:
    """What FFmpeg calls a mask; the customary one for so many channels if it is 0."""
    return f"{mask or CUSTOMARY[channels]:#x}"


def described(mask: int) -> str:
    """The positions of a mask, for messages."""
    return " ".join(name for i, name in enumerate(POSITIONS) if mask >> i & 1)
