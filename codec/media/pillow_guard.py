"""Pillow's decoders, kept from disturbing others: what they raise, and their limits and warnings, which are global."""

from __future__ import annotations

import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from PIL import Image, ImageCms, PngImagePlugin

# What Pillow's decoders raise on damaged files.
DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError, TypeError,
    AttributeError, OverflowError, MemoryError, RuntimeError, ZeroDivisionError, AssertionError, ImageCms.PyCMSError,
)  # fmt: skip

_guard = threading.Lock()
_users = 0
_restore = ExitStack()


@contextmanager
def pillow_without_limits() -> Iterator[None]:
    """Switch off Pillow's size limit (ours is checked instead) and its warnings while anybody is inside.

    Both are global to the process: the first thread that enters sets them, the last one that leaves restores them.
    """
    global _users
    with _guard:
        if _users == 0:
            _restore.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            _restore.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
            _restore.callback(setattr, PngImagePlugin, "MAX_TEXT_CHUNK", PngImagePlugin.MAX_TEXT_CHUNK)
            PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB of all texts together
        _users += 1
    try:
        yield
    finally:
        with _guard:
            _users -= 1
            if _users == 0:
                _restore.close()
