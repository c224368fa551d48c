"""Training pictures kept decoded in memory (the GPU's, if they fit), so that a crop costs one gather."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .reading import Source, list_media, opened
from .store import Store
from .stream import Stream

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"}


def list_images(folders: Iterable[str | Path]) -> list[Source]:
    """All pictures below ``folders``, see :func:`~.reading.list_media`."""
    return list_media(folders, SUFFIXES, "pictures")


def read_rgb(path: Source) -> Tensor:
    """One picture as uint8 ``[H, W, 3]``."""
    with Image.open(opened(path)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def as_input(picture: Tensor, device: torch.device) -> Tensor:
    """A picture, uint8 ``[H, W, 3]``, as ``[1, 3, H, W]`` in [0, 1]."""
    return picture.to(device).permute(2, 0, 1)[None].float() / 255


class CropStore(Store):
    """Random square crops from pictures of different sizes.

    Args:
        pictures: uint8 ``[H, W, 3]`` each; those smaller than ``size`` on a side are left out.
        size: edge of a crop in pixels.
        device, stream: see :class:`~.store.Store`.
        zoom: share of a batch that is cut larger (up to ``max_zoom`` times) and reduced, so that more scales are seen.
        turned: share of crops whose rows become columns.
    """

    def __init__(
        self,
        pictures: Sequence[Tensor],
        size: int,
        device: torch.device | str,
        zoom: float = 0.25,
        max_zoom: float = 1.75,
        seed: int = 0,
        turned: float = 0.25,
        stream: Stream | None = None,
    ) -> None:
        self.size, self.zoom, self.max_zoom, self.turned = size, zoom, max_zoom, turned
        self.host_generator = torch.Generator().manual_seed(seed)  # sizes are chosen without a word from the device
        super().__init__(pictures, device, seed, stream)

    def usable(self, medium: Tensor) -> bool:
        return min(medium.shape[:2]) >= self.size

    def nothing(self) -> str:
        return f"no picture is at least {self.size} x {self.size}"

    def indexed(self, shapes: Tensor) -> None:
        sides = shapes[:, :2]
        self.height, self.width = sides.to(self.device).unbind(1)
        # Between "each picture" and "each pixel" alike.
        self.weight = sides.prod(1).double().sqrt().to(self.device)
        self.largest = int(sides.min(1).values.max())

    def parts(self) -> dict[str, Any]:
        return super().parts() | {"host_generator": self.host_generator}

    def _rand(self, n: int) -> Tensor:
        return torch.rand(n, device=self.device, generator=self.generator)

    def _cut(self, n: int, edge: int) -> Tensor:
        """``n`` crops of ``edge`` pixels, float ``[n, 3, edge, edge]`` in [0, 1], from pictures that hold one."""
        weight = self.weight * (torch.minimum(self.height, self.width) >= edge)
        which = torch.multinomial(weight, n, replacement=True, generator=self.generator)
        height, width = self.height[which], self.width[which]
        top = (self._rand(n) * (height - edge + 1)).long()
        left = (self._rand(n) * (width - edge + 1)).long()
        line = torch.arange(edge, device=self.device)
        rows = (top[:, None] + line) * width[:, None]  # [n, edge]
        index = rows[:, :, None] + (left[:, None] + line)[:, None, :]  # [n, edge, edge]
        index = self.start[which][:, None, None] + 3 * index
        channels = torch.arange(3, device=self.device)[:, None, None]
        return self.buffer[index[:, None] + channels].float() / 255  # [n, 3, edge, edge]

    def batch(self, n: int) -> Tensor:
        """``n`` crops ``[n, 3, size, size]`` in [0, 1], flipped and turned at random."""
        self.drawn(n)
        zoomed = int(n * self.zoom)
        parts = [self._cut(n - zoomed, self.size)] if zoomed < n else []
        if zoomed:
            edge = int(self.size * (1 + (self.max_zoom - 1) * float(torch.rand(1, generator=self.host_generator))))
            edge = min(edge, self.largest)
            cut = self._cut(zoomed, edge)
            parts.append(F.interpolate(cut, self.size, mode="bilinear", antialias=True) if edge != self.size else cut)
        x = torch.cat(parts)
        x = torch.where(self._rand(n)[:, None, None, None] < 0.5, x.flip(3), x)
        return torch.where(self._rand(n)[:, None, None, None] < self.turned, x.transpose(2, 3), x)
