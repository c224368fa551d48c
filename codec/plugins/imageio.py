"""`.tok` files of pictures and videos in imageio's API of version 3: `import tokodec.imageio` registers them.

>>> import imageio.v3 as iio
>>> import tokodec.imageio
>>> iio.imwrite("photo.tok", pixels, quality=60)
>>> for frame in iio.imiter("clip.tok"): ...
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import imageio.config
import numpy as np
import numpy.typing as npt
from imageio.config.extensions import FileExtension
from imageio.config.plugins import PluginConfig
from imageio.core.request import RETURN_BYTES, InitializationError, Request
from imageio.core.v3_plugin_api import ImageProperties, PluginV3
from PIL import Image

from ..container.fields import SIGNATURE, ImageHeader, VideoHeader
from ..container.read import TokFile, read_tok
from ..decode import decode_file, video_frames
from ..encode import encode_file
from ..errors import TokodecError
from ..image.exact_segments import is_deep
from ..info import describe
from ..media.write_video import VideoWriter

PLUGIN, EXTENSION = "tokodec", ".tok"
Pixels = npt.NDArray[Any]


class TokPlugin(PluginV3):
    """A picture, or the frames of a video. Keywords of reading are those of `decode_file`, of writing `encode_file`."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        self.tok: TokFile | None = None
        if request.mode.io_mode == "r":
            data = request.get_file().read()
            if not data.startswith(SIGNATURE):
                raise InitializationError("not a .tok file")
            try:
                self.tok = read_tok(data)
            except TokodecError as error:
                raise OSError(str(error)) from error  # of ours, and damaged
            if not isinstance(self.tok.header, (ImageHeader, VideoHeader)):
                raise InitializationError("the file holds a sound")
        elif request.extension != EXTENSION and request.raw_uri != RETURN_BYTES:
            raise InitializationError("only .tok files are written")

    def read(self, *, index: Any = None, **short: Any) -> Pixels:
        """The picture ``[H, W]``, ``[H, W, 3]`` or with alpha; of a video all frames ``[T, H, W, 3]``, or one of them.

        Raises: IndexError for a frame that is not there, OSError for damage.
        """
        frames = self.iter(**short)
        if index is None or index is ...:
            found = list(frames)
            return np.stack(found) if self._video or index is ... else found[0]
        if index < 0:
            raise IndexError(f"frames are numbered from 0, got {index}")
        for i, frame in enumerate(frames):
            if i == index:
                return frame
        raise IndexError(f"the file has no frame {index}")

    def iter(self, **short: Any) -> Iterator[Pixels]:
        """The picture, or frame by frame of a video."""
        assert self.tok is not None, "the file is open for writing"
        try:
            if self._video:
                yield from (pixels for _, pixels in video_frames(self.tok, strict=True, **short))
                return
            picture = decode_file(io.BytesIO(self.tok.data), strict=True, **short).picture
        except TokodecError as error:
            raise OSError(str(error)) from error
        pixels = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
        yield pixels[..., 0] if pixels.shape[2] == 1 else pixels

    def write(
        self, ndimage: Any, *, fps: float | Fraction = 25, is_batch: bool | None = None, **short: Any
    ) -> bytes | None:
        """Encode a picture ``[H, W]``, ``[H, W, 3]``, ``[H, W, 4]`` uint8, or frames ``[T, H, W, 3]`` as a video.

        Args:   fps: frames a second of a video.  is_batch: whether a list of pictures is a video: it always is.
        Raises: ValueError for other shapes or types, OSError for what cannot be encoded.
        """
        pixels = np.stack([np.asarray(x) for x in ndimage]) if isinstance(ndimage, list) else np.asarray(ndimage)
        video = pixels.ndim == 4 if is_batch is None else is_batch
        if pixels.dtype != np.uint8 or pixels.ndim not in ((4,) if video else (2, 3)):
            raise ValueError(f"pixels are uint8 [H, W], [H, W, C] or [T, H, W, 3], got {pixels.dtype} {pixels.shape}")
        try:
            data = encode_frames(pixels, Fraction(fps), short) if video else encode_pixels(pixels, short)
        except TokodecError as error:
            raise OSError(str(error)) from error
        self.request.get_file().write(data)
        return data if self.request.raw_uri == RETURN_BYTES else None

    def properties(self, index: Any = None) -> ImageProperties:
        """Shape and type, without decoding."""
        assert self.tok is not None, "the file is open for writing"
        header: Any = self.tok.header
        shape: tuple[int, ...] = (header.height, header.width)
        if self._video:
            shape = (header.frames, *shape, 3) if index in (None, ...) else (*shape, 3)
        elif header.channels + header.alpha > 1:
            shape = (*shape, header.channels + header.alpha)
        n = header.frames if self._video else None
        kind = np.uint16 if not self._video and is_deep(self.tok) else np.uint8
        return ImageProperties(shape, np.dtype(kind), n_images=n, is_batch=len(shape) == 4)

    def metadata(self, index: Any = None, exclude_applied: bool = True) -> dict[str, Any]:
        """What `codec info` tells."""
        assert self.tok is not None, "the file is open for writing"
        return describe(self.tok.data, str(self.request.raw_uri)[:80])

    @property
    def _video(self) -> bool:
        return self.tok is not None and isinstance(self.tok.header, VideoHeader)


def encode_pixels(pixels: Pixels, short: dict[str, Any]) -> bytes:
    """One picture to a file."""
    stored = io.BytesIO()
    Image.fromarray(pixels).save(stored, "PNG", compress_level=1)
    stored.seek(0)
    return encode_file(stored, **short).data


def encode_frames(frames: Pixels, rate: Fraction, short: dict[str, Any]) -> bytes:
    """Frames of one size to the file of a video, by way of one without loss."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frames.y4m"
        height, width = frames.shape[1:3]
        with (
            path.open("wb") as file,
            VideoWriter(file, ".y4m", "frames", height, width, time_base=1 / rate, rate=rate) as writer,
        ):
            for i, frame in enumerate(frames):
                writer.write(np.ascontiguousarray(frame), i / rate, 1 / rate)
        return encode_file(path, **short).data


def register() -> None:
    """Make `.tok` known to imageio. Importing this module does it."""
    imageio.config.known_plugins[PLUGIN] = PluginConfig(
        name=PLUGIN, class_name="TokPlugin", module_name=__name__, install_name="imageio"
    )
    row = FileExtension(extension=EXTENSION, name="tokodec", priority=[PLUGIN])
    imageio.config.extension_list.append(row)
    imageio.config.known_extensions[EXTENSION] = [row]


register()
