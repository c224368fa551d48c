"""Arrays of the `.npy` format out of bytes: a header is believed only as far as there are bytes behind it."""

from __future__ import annotations

import io
import math
import tokenize
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


HEADER = 10_000  # bytes of the longest header that is read; numpy writes 118 for what we have
# What numpy's reader of a header, which reads it as Python literals, meets in damaged ones.
_BROKEN = (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError, OverflowError)


def read_header(start: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and offset of the numbers of an array, from its first bytes.

    Raises: ValueError for what is no array in C order, or one of Python objects.
    """
    import numpy as np

    buffer = io.BytesIO(start[: HEADER + 12])
    try:
        version = np.lib.format.read_magic(buffer)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(buffer, max_header_size=HEADER)
    except _BROKEN as error:
        raise ValueError(f"its header is not one of the .npy format: {' '.join(str(error).split())[:80]}") from error
    if fortran or dtype.hasobject:
        raise ValueError(f"an array of {dtype} that is not in C order, or not of numbers")
    if any(n < 0 for n in shape):
        raise ValueError("an array has a negative side")
    return shape, dtype, buffer.tell()


def read_array(data: bytes) -> npt.NDArray[Any]:
    """The array that fills ``data``, without a copy. Raises ValueError if it does not fill them."""
    import numpy as np

    shape, dtype, offset = read_header(data)
    size = math.prod(shape) * dtype.itemsize
    if len(data) - offset != size:
        raise ValueError(f"an array of {size} bytes, of which {len(data) - offset} are there")
    return np.ndarray(shape, dtype, data, offset)
