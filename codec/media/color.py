"""High dynamic range and wide gamuts -> BT.709, which is what decoded videos are tagged as.

Light is taken as a display would show it: PQ is absolute (SMPTE ST 2084), HLG is shown at a peak of 1000 cd/m2 (ITU-R
BT.2100-2), all others by a power of 2.4 (ITU-R BT.1886). 203 cd/m2 (ITU-R BT.2408) become white; what is brighter is
compressed by the largest of its three colours, so that hues stay, into what is left above a knee.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # [H, W, 3] RGB
PQ, HLG = 16, 18  # FFmpeg's numbers of transfer functions (ITU-T H.273)
TRANSFERS = {PQ: "PQ", HLG: "HLG"}
GAMUTS = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}  # and of primaries
_XY = {  # of red, green and blue
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_WHITE = (0.3127, 0.3290)  # D65; the other white of DCI-P3 is taken for it, so that white stays white
_GAMMA, _NITS, _PEAK, _KNEE = 2.4, 203.0, 1000.0, 0.7
_ROWS = 64  # rows of a frame that are in memory as light


def _to_xyz(primaries: int) -> npt.NDArray[np.float64]:
    """RGB to XYZ, white to a luminance of 1."""
    xyz = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in (*_XY[primaries], _WHITE)])
    return xyz[:3].T * np.linalg.solve(xyz[:3].T, xyz[3])


def _light(transfer: int) -> npt.NDArray[np.float32]:
    """Light of each 16 bit code, in parts of white; of HLG that of the scene, 0 to 1."""
    v = np.arange(1 << 16) / 65535.0
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = v ** (1 / m2)
        nits = 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
        return (nits / _NITS).astype(np.float32)
    if transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(v <= 0.5, v * v / 3, (np.exp((v - c) / a) + b) / 12).astype(np.float32)
    return (v**_GAMMA).astype(np.float32)


class Conversion:
    """From the primaries and the transfer function of a video to those of BT.709."""

    def __init__(self, primaries: int, transfer: int) -> None:
        self.transfer = transfer
        self.light = _light(transfer)
        known = primaries if primaries in _XY else 9 if transfer in TRANSFERS else 1
        self.matrix = (np.linalg.inv(_to_xyz(1)) @ _to_xyz(known)).T.astype(np.float32)
        self.luminance = _to_xyz(known)[1].astype(np.float32)
        codes = 255 * (np.arange(1 << 12) / 4095.0) ** (2 / _GAMMA)  # by the root of light: dark codes are many
        self.codes = np.round(codes).astype(np.uint8)

    def __call__(self, rgb: npt.NDArray[np.uint16]) -> Pixels:
        """``[H, W, 3]`` uint16, full scale 65535, to uint8."""
        out = np.empty(rgb.shape, np.uint8)
        for top in range(0, len(rgb), _ROWS):
            x = self.light[rgb[top : top + _ROWS]]
            if self.transfer == HLG:
                y = np.maximum(x @ self.luminance, 1e-6)[..., None]
                x = x * (y**0.2 * np.float32(_PEAK / _NITS))
            x = np.maximum(x @ self.matrix, 0)
            if self.transfer in TRANSFERS:
                most = x.max(-1, keepdims=True)
                over = np.maximum(most - _KNEE, 0)
                shown = 1 - (1 - _KNEE) * np.exp(-over / (1 - _KNEE))  # of the largest, where it is over the knee
                x = np.where(over > 0, x * (shown / np.maximum(most, _KNEE)), x)
            out[top : top + _ROWS] = self.codes[np.round(np.sqrt(np.minimum(x, 1)) * 4095).astype(np.int32)]
        return out


def conversion_for(frame: Any) -> tuple[Conversion | None, list[str]]:
    """What turns frames like this one of FFmpeg into BT.709, None if nothing has to; and notes."""
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    notes = []
    if transfer in TRANSFERS:
        notes.append(f"high dynamic range ({TRANSFERS[transfer]}) is tone-mapped to standard range")
    if primaries in GAMUTS:
        notes.append(f"colours of {GAMUTS[primaries]} are converted to BT.709, and cut off where it does not reach")
    return (Conversion(primaries, transfer) if notes else None), notes
