"""The codecs that ours is compared with, and the search for their file nearest to a number of bytes."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features

from ..errors import UsageError


@dataclass(frozen=True)
class Peer:
    """A format that Pillow writes, with fixed options and a quality from ``lowest`` to 100."""

    name: str
    library: str  # what Pillow's `features` calls the library
    options: Mapping[str, Any]
    lowest: int = 0

    @property
    def settings(self) -> str:
        """For the report, e.g. "Pillow 13.0.0, webp 1.6.0: method=6, quality 0 to 100"."""
        from PIL import __version__

        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        turbo = self.library == "jpg" and features.check("libjpeg_turbo")
        library = "libjpeg_turbo" if turbo else self.library
        return f"Pillow {__version__}, {library} {features.version(library)}: {options}, quality {self.lowest} to 100"


PEERS = {
    peer.name: peer
    for peer in (
        Peer("jpeg", "jpg", {"subsampling": "4:2:0", "optimize": True, "progressive": True}, lowest=1),
        Peer("webp", "webp", {"method": 6}),  # lossy WebP is always 4:2:0
        Peer("avif", "avif", {"speed": 4, "subsampling": "4:2:0"}),
    )
}


@dataclass(frozen=True)
class PeerFile:
    """A finished file of a peer. ``encode_s`` is the time of this one encoding, without the search for it."""

    data: bytes
    quality: int
    encode_s: float


def find_peers(names: list[str]) -> list[Peer]:
    """Raises UsageError for a name that is unknown or that this Pillow cannot write."""
    for name in names:
        if name not in PEERS:
            raise UsageError(f"unknown codec {name!r} to compare with: choose from {', '.join(PEERS)}")
        if not features.check(PEERS[name].library):
            raise UsageError(f"Pillow was built without {name} here: leave it out or pip install -U pillow")
    return [PEERS[name] for name in dict.fromkeys(names)]


class PeerSearch:
    """Files of one picture by one peer. What was encoded for one size serves the search for the next."""

    def __init__(self, peer: Peer, pixels: np.ndarray) -> None:
        self.peer = peer
        self.image = Image.fromarray(pixels)
        self.tried: dict[int, PeerFile] = {}

    def nearest(self, most: int) -> tuple[PeerFile, bool]:
        """The largest file of at most ``most`` bytes, and True; or the one of lowest quality, and False.

        Size grows with quality but for small dips, so it is a bisection; the best of all that was tried is taken.
        """
        low, high = self.peer.lowest, 101
        if len(self.encode(low).data) > most:
            return self.encode(low), False
        while high - low > 1:
            middle = (low + high) // 2
            if len(self.encode(middle).data) <= most:
                low = middle
            else:
                high = middle
        return max((f for f in self.tried.values() if len(f.data) <= most), key=lambda f: len(f.data)), True

    def encode(self, quality: int) -> PeerFile:
        if quality not in self.tried:
            buffer = io.BytesIO()
            start = time.perf_counter()
            self.image.save(buffer, self.peer.name.upper(), quality=quality, **self.peer.options)
            seconds = time.perf_counter() - start
            self.tried[quality] = PeerFile(buffer.getvalue(), quality, seconds)
        return self.tried[quality]


def decode_peer(data: bytes) -> tuple[np.ndarray, float]:
    """Pixels ``[H, W, 3]`` uint8, and the seconds they took."""
    start = time.perf_counter()
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return pixels, time.perf_counter() - start
