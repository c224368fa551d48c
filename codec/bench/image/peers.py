"""The codecs that ours is compared with, and the search for their file nearest to a number of bytes."""

from __future__ import annotations

import importlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image, features

from ...errors import MediaError, UsageError


def jpeg2000_bpp(quality: int) -> float:
    """What "quality" means for JPEG 2000, whose dial is a number of bits: 0.04 to 4 bits per pixel, each step 4.7 %."""
    return float(0.04 * 100 ** (quality / 100))


@dataclass(frozen=True)
class Peer:
    """A format that Pillow or a plugin of it writes, with fixed options and a quality from ``lowest`` to 100.

    ``curve``: qualities that span about 0.06 to 2 bits per pixel on photographs, as far as the format reaches.
    ``dial``: from quality and number of threads to the arguments of ``Image.save`` that depend on them.
    """

    name: str
    format: str  # what Pillow calls the format
    options: Mapping[str, Any]
    curve: tuple[int, ...]
    library: str = ""  # what Pillow's `features` calls the library, where Pillow itself writes the format
    package: str = ""  # the plugin's name on PyPI, where it does not
    module: str = ""  # and in Python
    lowest: int = 0
    dial: Callable[[int, int], dict[str, Any]] = field(default=lambda quality, threads: {"quality": quality})

    @property
    def settings(self) -> str:
        """For the report, e.g. "Pillow 13.0.0, webp 1.6.0: method=6, quality 0 to 100"."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        quality = f"quality {self.lowest} to 100"
        if self.name == "jpeg2000":
            quality += f" for {jpeg2000_bpp(0):g} to {jpeg2000_bpp(100):g} bits per pixel"
        return f"Pillow {version('pillow')}, {self._writer()}: {options}, {quality}"

    @property
    def described(self) -> str:
        """The settings, and those of the curve: equal if results compare."""
        return f"{self.settings}; curve at {', '.join(map(str, self.curve))}"

    def _writer(self) -> str:
        if not self.package:
            turbo = self.library == "jpg" and features.check("libjpeg_turbo")
            library = "libjpeg_turbo" if turbo else self.library
            return f"{library} {features.version(library)}"
        found = f"{self.package} {version(self.package)}"
        if self.name == "heic":
            info = importlib.import_module(self.module).libheif_info()
            found += f", libheif {info['libheif']}, {info['HEIF']}"
        return found


_AVIF: dict[str, Any] = {
    "format": "AVIF",
    "library": "avif",
    "curve": (0, 10, 20, 30, 40, 50, 60, 70, 80, 87),
    "dial": lambda quality, threads: {"quality": quality, "max_threads": threads},
}
# Tiles cost bytes, and libavif would choose their number from that of the threads.
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "jpeg", "JPEG", {"subsampling": "4:2:0", "optimize": True, "progressive": True},
            (1, 5, 9, 16, 26, 40, 57, 72, 84), "jpg", lowest=1,
        ),
        Peer("webp", "WEBP", {"method": 6}, (0, 2, 6, 15, 30, 50, 70, 80, 87), "webp"),  # lossy WebP is always 4:2:0
        Peer("avif", options={"speed": 4, "subsampling": "4:4:4", "autotiling": False}, **_AVIF),
        Peer("avif420", options={"speed": 4, "subsampling": "4:2:0", "autotiling": False}, **_AVIF),
        Peer(
            "jxl", "JXL", {"effort": 7}, (0, 8, 16, 30, 50, 65, 76, 84, 89), package="pillow-jxl-plugin",
            module="pillow_jxl", dial=lambda quality, threads: {"quality": quality, "num_threads": threads},
        ),
        # 4:2:0 is what cameras write, and with this x265 better than 4:4:4 below 1.5 bits per pixel, by PSNR of RGB.
        Peer(
            "heic", "HEIF", {"chroma": "420"}, (0, 7, 13, 19, 25, 31, 38, 46, 55), package="pillow-heif",
            module="pillow_heif",
            dial=lambda quality, threads: {"quality": quality, "enc_params": {"x265:pools": str(threads)}},
        ),
        Peer(
            "jpeg2000", "JPEG2000", {"irreversible": True, "mct": 1, "quality_mode": "rates"},
            (9, 20, 31, 42, 52, 62, 72, 85), "jpg_2000",
            dial=lambda quality, threads: {"quality_layers": [24 / jpeg2000_bpp(quality)]},
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class PeerFile:
    """A finished file of a peer. ``encode_s`` is the time of this one encoding, without the search for it."""

    data: bytes
    quality: int
    encode_s: float


def find_peers(names: list[str], threads: int = 1) -> list[Peer]:
    """Peers by name, ready to write and, with at most so many ``threads``, to read.

    Raises: UsageError for a name that is unknown, whose package is missing, or that this Pillow cannot write.
    """
    for name in names:
        if name not in PEERS:
            raise UsageError(f"unknown codec {name!r} to compare with: choose from {', '.join(PEERS)}")
        peer = PEERS[name]
        if peer.library and not features.check(peer.library):
            raise UsageError(f"Pillow was built without {name} here: leave it out or pip install -U pillow")
        if peer.module:
            _load_plugin(peer, threads)
    AvifImagePlugin.DEFAULT_MAX_THREADS = threads
    return [PEERS[name] for name in dict.fromkeys(names)]


def _load_plugin(peer: Peer, threads: int) -> None:
    """Import a plugin of Pillow, which then knows the format. Raises UsageError if it is missing."""
    try:
        module = importlib.import_module(peer.module)
    except ImportError as error:
        raise UsageError(f"{peer.name} needs {peer.package}, which is missing: pip install 'tokodec[bench]'") from error
    if peer.name == "heic":
        module.register_heif_opener(decode_threads=threads)
    else:
        module.JpegXLImagePlugin.DECODE_THREADS = threads


class PeerSearch:
    """Files of one picture by one peer. What was encoded for one size serves the search for the next."""

    def __init__(self, peer: Peer, pixels: np.ndarray, threads: int = 1) -> None:
        self.peer = peer
        self.image = Image.fromarray(pixels)
        self.threads = threads
        self.tried: dict[int, PeerFile] = {}
        self.found: dict[int, tuple[PeerFile, bool]] = {}

    def nearest(self, most: int) -> tuple[PeerFile, bool]:
        """The largest file of at most ``most`` bytes, and True; or the one of lowest quality, and False.

        Size grows with quality but for small dips, so it is a bisection; the best of all that was tried is taken. What
        was found for a size stays, whatever is tried later.
        """
        if most not in self.found:
            self.found[most] = self._search(most)
        return self.found[most]

    def _search(self, most: int) -> tuple[PeerFile, bool]:
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
        """The file of this quality. Raises MediaError if the library refuses, for example a tiny picture."""
        if quality not in self.tried:
            arguments = {**self.peer.options, **self.peer.dial(quality, self.threads)}
            buffer = io.BytesIO()
            start = time.perf_counter()
            try:
                self.image.save(buffer, self.peer.format, **arguments)
            except (OSError, ValueError, RuntimeError) as error:
                width, height = self.image.size
                raise MediaError(f"{self.peer.name} cannot write {width} x {height} pixels: {error}") from error
            seconds = time.perf_counter() - start
            self.tried[quality] = PeerFile(buffer.getvalue(), quality, seconds)
        return self.tried[quality]


def decode_peer(data: bytes) -> tuple[np.ndarray, float]:
    """Pixels ``[H, W, 3]`` uint8, and the seconds they took."""
    start = time.perf_counter()
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return pixels, time.perf_counter() - start
