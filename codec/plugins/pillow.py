"""`.tok` files of pictures in Pillow: `import tokodec.pillow` registers them.

>>> import tokodec.pillow
>>> Image.open("photo.tok").resize((320, 240)).save("small.tok", quality=40)

Opening reads the header, the first use of pixels decodes. Pictures that are damaged are an OSError, unless
`PIL.ImageFile.LOAD_TRUNCATED_IMAGES` asks for what is left. ICC profile, EXIF and XMP are kept as `codec encode` keeps
them. Models that are no releases are named by :func:`register`.
"""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from ..container.chunks import EXIF, ICCP, XMPP
from ..container.fields import SIGNATURE
from ..container.read import read_tok
from ..decode import decode_file
from ..encode import encode_file
from ..errors import ChunkError, TokodecError
from ..media.raster import to_8_bits
from ..options import DecodeOptions, with_short_forms

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import DecodeShort

FORMAT, MIME, EXTENSION = "TOK", "image/x-tok", ".tok"
MODES = {(1, 0): "L", (1, 1): "LA", (3, 0): "RGB", (3, 1): "RGBA"}  # channels, alpha
WRITTEN = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
EXIF_HEAD = b"Exif\0\0"

_options = DecodeOptions()


def register(**short: Unpack[DecodeShort]) -> None:
    """Make `.tok` known to Pillow, and say how files are decoded: ``model``, ``device`` and what else `decode_file`
    takes. Importing this module does it with the defaults."""
    global _options
    _options = with_short_forms(DecodeOptions(), short)
    Image.register_open(FORMAT, TokImageFile, lambda prefix: prefix.startswith(SIGNATURE))
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, EXTENSION)
    Image.register_mime(FORMAT, MIME)


class TokImageFile(ImageFile.ImageFile):
    """A picture that is decoded when its pixels are first used."""

    format, format_description = FORMAT, "tokodec"

    def _open(self) -> None:
        assert self.fp is not None
        data = self.fp.read()
        if not data.startswith(SIGNATURE):
            raise SyntaxError("not a .tok file")
        try:
            tok = read_tok(data, _options.max_pixels)
            header = tok.picture
        except ChunkError as error:
            raise SyntaxError(str(error)) from error  # a sound or a video: no picture of ours
        except TokodecError as error:
            raise OSError(str(error)) from error
        self._data: bytes | None = data
        self._size = header.width, header.height
        self._mode = MODES[header.channels, header.alpha]
        found = {"icc_profile": tok.metadata(ICCP), "exif": tok.metadata(EXIF), "xmp": tok.metadata(XMPP)}
        self.info |= {name: value for name, value in found.items() if value is not None}
        if "exif" in self.info:
            self.info["exif"] = EXIF_HEAD + self.info["exif"]
        self.info["model"] = header.model

    def load(self) -> Any:
        if self._data is not None:
            data = self._decoded(self._data)
            self._data = None
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self.fp = io.BytesIO(data)
            self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]
        return super().load()

    def _decoded(self, data: bytes) -> bytes:
        """Samples by rows. Raises OSError for what does not decode, or is damaged."""
        try:
            found = decode_file(io.BytesIO(data), options=_options)
        except TokodecError as error:
            raise OSError(str(error)) from error
        if found.problems and not ImageFile.LOAD_TRUNCATED_IMAGES:
            raise OSError(f"the picture is damaged: {found.problems[0]}")
        picture = found.picture
        pixels, alpha = picture.pixels, picture.alpha
        if self.mode in ("LA", "RGBA"):
            alpha = np.full_like(pixels[..., 0], np.iinfo(pixels.dtype).max) if alpha is None else alpha
            pixels = np.concatenate([pixels, alpha[..., None]], 2)
        return (to_8_bits(pixels) if pixels.itemsize > 1 else pixels).tobytes()


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    """Keywords are those of `encode_file`, with ``bytes`` for its size, and ``icc_profile``, ``exif``, ``xmp``."""
    more = dict(getattr(im, "encoderinfo", {}))
    if im.mode not in WRITTEN:
        raise OSError(f"cannot write mode {im.mode} as {FORMAT}")
    icc = more.pop("icc_profile", im.info.get("icc_profile"))
    exif, xmp = more.pop("exif", None), more.pop("xmp", im.info.get("xmp"))
    if "bytes" in more:
        more["size"] = more.pop("bytes")
    text = PngInfo()
    if xmp:
        text.add_itxt("XML:com.adobe.xmp", xmp.decode() if isinstance(xmp, bytes) else xmp)
    stored = io.BytesIO()
    exif = im.getexif() if exif is None else exif
    im.save(stored, "PNG", compress_level=1, icc_profile=icc or None, exif=exif or b"", pnginfo=text)
    stored.seek(0)
    try:
        fp.write(encode_file(stored, **more).data)
    except TokodecError as error:
        raise OSError(str(error)) from error


register()
