"""Training clips kept decoded in memory (the GPU's, if they fit), so that a crop of space and time costs one gather.

    python -m tokodec.train.data.video CLIPS... --out PACK --size 256     # once, where PyAV is

A packed clip is a zip file with a picture for each frame, in order, and what the clip was in `clip.json`; Pillow reads
it, so machines that train need no video library::

    clip.json                   {"height": .., "width": .., "rate": "30000/1001"}
    000000.webp 000001.webp ...
"""

from __future__ import annotations

import argparse
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...codec.errors import TokodecError
from ...codec.files import atomic_output
from .images import CropStore
from .layers import layered, outlines
from .reading import Source, list_media, opened
from .store import Store
from .stream import Stream

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".y4m"}
PACK_SUFFIX = ".zip"
ABOUT = "clip.json"
QUALITY = 90  # of WebP
EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every member, so that packing twice gives the same bytes

# Motion of a camera over a still picture, for a whole clip: three times the standard deviation is the most.
TRAVEL = 0.6  # of the frame's edge
ZOOM = 0.25  # natural logarithm of the scale
TURN = 0.12  # radians


def list_clips(folders: Iterable[str | Path]) -> list[Source]:
    """All clips below ``folders``, packed or not, see :func:`~.reading.list_media`."""
    return list_media(folders, VIDEO_SUFFIXES | {PACK_SUFFIX}, "clips")


def reduced(pixels: np.ndarray, size: int | None) -> np.ndarray:
    """A frame ``[H, W, 3]`` uint8 whose shorter side is ``size`` at most."""
    height, width = pixels.shape[:2]
    if size is None or min(height, width) <= size:
        return pixels
    scale = size / min(height, width)
    edges = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(edges, Image.Resampling.LANCZOS))


def video_frames(path: Source, size: int | None = None) -> Iterator[np.ndarray]:
    """Frames of a video, one by one. Raises ValueError if it cannot be read, or PyAV is missing."""
    from ...codec.errors import MediaError
    from ...codec.media.read_video import VideoReader

    try:
        with VideoReader(opened(path), str(path)) as reader:
            for frame in reader:
                yield reduced(frame.pixels, size)
    except MediaError as error:
        raise ValueError(str(error)) from error
    except ImportError as error:
        raise ValueError(f"{path}: videos are read with PyAV, which is missing here: pack the clips first") from error


def pack(
    source: Path, target: Path, size: int | None = None, quality: int = QUALITY, force: bool = False
) -> int:  # fmt: skip
    """Write a video as a packed clip; returns its number of frames.

    Raises: ValueError if it cannot be read, UsageError if ``target`` is there and not ``force``.
    """
    from ...codec.errors import MediaError
    from ...codec.media.read_video import VideoReader

    try:
        with (
            VideoReader(source, str(source)) as reader,
            atomic_output(target, force) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        ):
            count = height = width = 0
            for frame in reader:
                pixels = reduced(frame.pixels, size)
                height, width, _ = pixels.shape
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "WEBP", quality=quality, method=4)
                archive.writestr(zipfile.ZipInfo(f"{count:06d}.webp", EPOCH), buffer.getvalue())
                count += 1
            about = {"height": height, "width": width, "rate": str(reader.rate or Fraction(25))}
            archive.writestr(zipfile.ZipInfo(ABOUT, EPOCH), json.dumps(about))
            return count
    except MediaError as error:
        raise ValueError(str(error)) from error


def packed_frames(path: Source) -> Iterator[np.ndarray]:
    """Frames of a packed clip. Raises ValueError if it is damaged."""
    try:
        with zipfile.ZipFile(opened(path)) as archive:
            about = json.loads(archive.read(ABOUT))
            shape = (int(about["height"]), int(about["width"]), 3)
            for name in sorted(name for name in archive.namelist() if name.endswith(".webp")):
                with Image.open(io.BytesIO(archive.read(name)), formats=("WEBP",)) as picture:
                    pixels = np.asarray(picture.convert("RGB"))
                if pixels.shape != shape:
                    raise ValueError(f"{name} is {pixels.shape}, not {shape}")
                yield pixels
    except (OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a packed clip, or damaged: {error}") from error


def read_clip(path: Source, size: int | None = None, most: int | None = None) -> Tensor:
    """One clip as uint8 ``[T, H, W, 3]``, packed or not, its shorter side ``size`` at most.

    Args: most: bytes of its frames, after which the rest of the clip is left out.
    """
    packed = path.suffix.lower() == PACK_SUFFIX
    frames: list[Tensor] = []
    for pixels in packed_frames(path) if packed else video_frames(path, size):
        frames.append(torch.from_numpy(np.array(reduced(pixels, size))))
        if most is not None and (len(frames) + 1) * frames[0].numel() > most:
            break
    if not frames:
        raise ValueError(f"{path} holds no frames")
    return torch.stack(frames)


@dataclass(frozen=True)
class Stills:
    """Crops that are made of still pictures.

    Attributes:
        pictures: of the edge of a crop.
        share: of crops that are made of them, rounded to whole crops of a batch.
        layers: share of those in which things move in front of others (:mod:`.layers`), likewise.
    """

    pictures: CropStore
    share: float
    layers: float = 0.0


class ClipStore(Store):
    """Random crops of space and time from clips of different sizes.

    Some are played faster, some backwards, some mirrored. A share of them may be made of still pictures, over which a
    camera moves: whatever moves in them moves as a whole, and their detail is that of photographs.

    Args:
        clips: uint8 ``[T, H, W, 3]`` each; those shorter or smaller than a crop are left out.
        frames, size: of a crop, edge in pixels.
        device, stream: see :class:`~.store.Store`.
        stills: the crops that are made of pictures.
        speeds: whole numbers of frames between those of a crop, one drawn for each crop.
        backwards: share of crops that are played backwards.

    Raises: ValueError if no clip is large enough for a crop.
    """

    unit = (3,)

    def __init__(
        self,
        clips: Sequence[Tensor],
        frames: int,
        size: int,
        device: torch.device | str,
        stills: Stills | None = None,
        speeds: Sequence[int] = (1,),
        backwards: float = 0.0,
        seed: int = 0,
        stream: Stream | None = None,
    ) -> None:
        if not speeds or min(speeds) < 1 or frames < 1:
            raise ValueError(f"a crop has frames, and speeds are 1 or more, not {frames} and {list(speeds)}")
        self.frames, self.size, self.stills, self.backwards = frames, size, stills, backwards
        self.speeds = torch.tensor(speeds, device=device)
        super().__init__(clips, device, seed, stream)

    def usable(self, medium: Tensor) -> bool:
        return len(medium) >= self.frames and min(medium.shape[1:3]) >= self.size

    def nothing(self) -> str:
        return f"no clip has {self.frames} frames of at least {self.size} x {self.size}"

    def indexed(self, shapes: Tensor) -> None:
        self.length, self.height, self.width = shapes[:, :3].to(self.device).unbind(1)
        # Between "each clip" and "each pixel" alike.
        self.weight = shapes[:, :3].prod(1).double().sqrt().to(self.device)

    def parts(self) -> dict[str, Any]:
        return super().parts() | {"pictures": self.stills.pictures.parts() if self.stills else None}

    def close(self) -> None:
        super().close()
        if self.stills:
            self.stills.pictures.close()

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, device=self.device, generator=self.generator)

    def _cut(self, n: int) -> Tensor:
        """``[n, 3, T, size, size]`` float in [0, 1], from clips."""
        which = torch.multinomial(self.weight, n, replacement=True, generator=self.generator)
        length, height, width = self.length[which], self.height[which], self.width[which]
        drawn = self.speeds[(self._rand(n) * len(self.speeds)).long()]
        # Clips that are too short for their speed are played as fast as they can be.
        most = (length - 1).div(max(1, self.frames - 1), rounding_mode="floor").clamp(min=1)
        speed = torch.minimum(drawn, most)
        begin = (self._rand(n) * (length - (self.frames - 1) * speed)).long()
        top = (self._rand(n) * (height - self.size + 1)).long()
        left = (self._rand(n) * (width - self.size + 1)).long()
        moment = torch.arange(self.frames, device=self.device)
        backwards = (self._rand(n) < self.backwards)[:, None]
        moment = torch.where(backwards, moment.flip(0), moment)
        times = begin[:, None] + speed[:, None] * moment  # [n, T]
        line = torch.arange(self.size, device=self.device)
        rows = times[:, :, None] * height[:, None, None] + (top[:, None] + line)[:, None]  # [n, T, size]
        places = rows[..., None] * width[:, None, None, None] + (left[:, None] + line)[:, None, None]
        x = self.buffer[self.start[which][:, None, None, None] + places]  # [n, T, size, size, 3]
        return x.permute(0, 4, 1, 2, 3).float() / 255

    def _move_over(self, stills: Stills, n: int) -> Tensor:
        """``[n, 3, T, size, size]`` float in [0, 1]: a camera moves over pictures."""
        front = round(n * stills.layers)
        pictures = stills.pictures.batch(n + front)
        if not front:
            return moved(pictures, self._motion(n))
        heights = outlines(front, self.size, self.generator)
        things = moved(torch.cat([pictures[n:], heights], 1), self._motion(front))
        backs = moved(pictures[:n], self._motion(n))
        return torch.cat([layered(backs[:front], things, self.generator), backs[front:]])

    def _motion(self, n: int) -> Tensor:
        """Of ``n`` cameras, see :func:`moved`."""
        strength = self._rand(n, 1) ** 2  # many cameras nearly rest
        normal = torch.randn(n, 4, device=self.device, generator=self.generator).clamp(-3, 3) / 3
        motion = strength * normal * torch.tensor([TRAVEL, TRAVEL, ZOOM, TURN], device=self.device)
        moment = torch.linspace(-0.5, 0.5, self.frames, device=self.device)
        pace = moment * (1 + (self._rand(n, 1) - 0.5) * moment)  # some speed up, some slow down
        return motion[:, None] * pace[..., None]

    def batch(self, n: int) -> Tensor:
        """``n`` crops ``[n, 3, T, size, size]`` in [0, 1], half of them mirrored."""
        stills = round(n * self.stills.share) if self.stills else 0
        self.drawn(n - stills)
        parts = [self._cut(n - stills)] if stills < n else []
        if self.stills and stills:
            parts.append(self._move_over(self.stills, stills))
        x = torch.cat(parts)
        return torch.where(self._rand(n)[:, None, None, None, None] < 0.5, x.flip(4), x)


def moved(pictures: Tensor, motion: Tensor) -> Tensor:
    """Clips of pictures seen by a moving camera, ``[n, C, T, H, W]``; what lies outside is the picture mirrored.

    Args: pictures: ``[n, C, H, W]``.  motion: ``[n, T, 4]``, for each frame where the camera looks, right and down, in
          edges of the frame, the logarithm of how much it sees, and its angle in radians; zeros: the picture itself.
    """
    n, t = motion.shape[:2]
    right, down, zoom, angle = motion.unbind(-1)
    scale = zoom.exp()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # Coordinates of grid_sample go from -1 to 1, so an edge is 2.
    affine = torch.stack([cos, -sin, 2 * right, sin, cos, 2 * down], -1).view(n * t, 2, 3)
    grid = F.affine_grid(affine, [n * t, *pictures.shape[1:]], align_corners=False)
    frames = pictures[:, None].expand(-1, t, -1, -1, -1).flatten(0, 1)  # [n * T, C, H, W]
    x = F.grid_sample(frames, grid, mode="bicubic", padding_mode="reflection", align_corners=False).clamp(0, 1)
    return x.unflatten(0, (n, t)).transpose(1, 2)


def targets(folders: Sequence[str], out: Path) -> dict[Path, Path]:
    """Where the packed clip of each video goes: to its place below its folder, by the file.

    Raises: ValueError if two would get the same name, FileNotFoundError if there is no video.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        for path in list_media([folder], VIDEO_SUFFIXES, "videos"):
            if not isinstance(path, Path):
                raise ValueError(f"{path} lies in an archive: unpack it first")
            target = (out / path.relative_to(folder)).with_suffix(PACK_SUFFIX)
            other = found.setdefault(target, path)
            if other != path:
                raise ValueError(f"{other} and {path} would both be {target}: rename one, or pack into two folders")
    return {path: target for target, path in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", help="folders with videos")
    parser.add_argument("--out", required=True, help="folder for the packed clips")
    parser.add_argument("--size", type=int, default=256, help="pixels of the shorter side, at most")
    parser.add_argument("--quality", type=int, default=QUALITY, help="of WebP, 0 to 100")
    parser.add_argument("--force", action="store_true", help="overwrite packed clips in --out")
    args = parser.parse_args()
    out = Path(args.out)
    try:
        clips = targets(args.clips, out)
        taken = [target for target in clips.values() if target.exists()]
        if taken and not args.force:
            raise ValueError(f"{taken[0]} exists already: use --force to replace it")
        frames = size = 0
        for path, target in clips.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            frames += pack(path, target, args.size, args.quality, args.force)
            size += target.stat().st_size
            print(f"{target}  {target.stat().st_size / 1e6:.2f} MB", flush=True)
    except (OSError, ValueError, TokodecError) as error:
        parser.error(" ".join(str(error).split()))
    print(f"{len(clips)} clips, {frames} frames, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
