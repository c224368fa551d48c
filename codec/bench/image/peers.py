"""The codecs that ours is compared with, and the search for their file nearest to a number of bytes."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from PIL import AvifImagePlugin, Image, features

from ...errors import MediaError, UsageError
from ...settings import Setting
from ..clips import Photo
from ..contender import Codec, Coded, Spec, Timed, chosen, middle, timed


def jpeg2000_bpp(quality: int) -> float:
    """What "quality" means for JPEG 2000, whose dial is a number of bits: 0.04 to 4 bits per pixel, each step 4.7 %."""
    return float(0.04 * 100 ** (quality / 100))


@dataclass(frozen=True)
class Peer(Codec):
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
    threads: int = 1
    kind = "peer"

    @property
    def settings(self) -> tuple[Setting, ...]:
        return tuple(Setting("quality", quality) for quality in self.curve)

    @property
    def described(self) -> str:
        """E.g. "Pillow 13.0.0, webp 1.6.0: method=6, quality 0 to 100; curve at 0, 2": equal if results compare."""
        options = ", ".join(f"{key}={value}" for key, value in self.options.items())
        quality = f"quality {self.lowest} to 100"
        if self.name == "jpeg2000":
            quality += f" for {jpeg2000_bpp(0):g} to {jpeg2000_bpp(100):g} bits per pixel"
        curve = f"curve at {', '.join(map(str, self.curve))}"
        return f"Pillow {version('pillow')}, {self._writer()}: {options}, {quality}; {curve}"

    def encode(self, clip: Photo, setting: Setting) -> Coded:
        buffer = io.BytesIO()
        arguments = {**self.options, **self.dial(int(setting.value), self.threads)}
        try:
            Image.fromarray(clip.x).save(buffer, self.format, **arguments)
        except (OSError, ValueError, RuntimeError) as error:
            height, width = clip.x.shape[:2]
            raise MediaError(f"{self.name} cannot write {width} x {height} pixels: {error}") from error
        return Coded.of(buffer.getvalue())

    def decode(self, coded: Coded, variant: str = "") -> np.ndarray:
        """Pixels ``[H, W, 3]`` uint8."""
        return np.asarray(Image.open(io.BytesIO(coded.files[0])).convert("RGB"))

    def spec(self) -> Spec:
        return Spec("image.peers:find_peer", {"name": self.name, "threads": self.threads}, middle(self.settings))

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


def find_peers(names: Sequence[str], threads: int = 1) -> list[Peer]:
    """Peers by name without repetition, see :func:`find_peer`. Raises UsageError for an unknown one, too."""
    return [find_peer(name, threads) for name in chosen(names, PEERS)]


def find_peer(name: str, threads: int = 1) -> Peer:
    """A peer by name, ready to write and, with at most so many ``threads``, to read.

    Raises: UsageError for one whose package is missing, or that this Pillow cannot write.
    """
    peer = PEERS[name]
    if peer.library and not features.check(peer.library):
        raise UsageError(f"Pillow was built without {name} here: leave it out or pip install -U pillow")
    if peer.module:
        _load_plugin(peer, threads)
    AvifImagePlugin.DEFAULT_MAX_THREADS = threads
    return replace(peer, threads=threads)


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

    def __init__(self, peer: Peer, clip: Photo) -> None:
        self.peer, self.clip = peer, clip
        self.tried: dict[int, Timed[Coded]] = {}  # by quality
        self.nearest_to: dict[int, tuple[int, bool]] = {}  # by bytes

    def encode(self, quality: int) -> Timed[Coded]:
        """The file of this quality, and the seconds of this one encoding, without the search for it."""
        if quality not in self.tried:
            self.tried[quality] = timed(self.peer.encode, self.clip, Setting("quality", quality))
        return self.tried[quality]

    def size(self, quality: int) -> int:
        return self.encode(quality).result.size

    def nearest(self, most: int) -> tuple[int, bool]:
        """The quality of the largest file of at most ``most`` bytes, and True; or the lowest one, and False.

        Size grows with quality but for small dips, so it is a bisection; the best of all that was tried is taken. What
        was found for a size stays, whatever is tried later.
        """
        if most not in self.nearest_to:
            self.nearest_to[most] = self._search(most)
        return self.nearest_to[most]

    def _search(self, most: int) -> tuple[int, bool]:
        low, high = self.peer.lowest, 101
        if self.size(low) > most:
            return low, False
        while high - low > 1:
            between = (low + high) // 2
            low, high = (between, high) if self.size(between) <= most else (low, between)
        return max((quality for quality in self.tried if self.size(quality) <= most), key=self.size), True
