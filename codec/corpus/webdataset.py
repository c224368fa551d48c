"""Corpora of tokens as WebDataset archives: a tar with the codes and the spec of every sample."""

from __future__ import annotations

import functools
import io
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from ...tokenizers.folders import parse_json
from ..errors import MediaError, UsageError
from ..files import atomic_output
from .npy import read_array
from .token_files import parse_spec, spec_text

if TYPE_CHECKING:
    from ...tokenizers.tokens import Tokens


CODES, SPEC = ".codes.npy", ".json"  # members of a tar file, after the key
INT16_CODES = 1 << 15
# What bad JSON leads to, and headers of members that lead to further headers.
BROKEN_ARCHIVE = (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)


# -------------------------------------------------------------------------------------------------------- WebDataset


class WebDatasetWriter:
    """Adds tokens to a tar file that is open."""

    def __init__(self, file: BinaryIO) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8")  # noqa: SIM115
        self._keys: set[str] = set()
        self.codes = 0

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: str, tokens: Tokens) -> None:
        """Append tokens. Raises UsageError if the key is taken or none: a key is not empty and holds no dot."""
        import numpy as np

        check_key(key)
        if key in self._keys:
            raise UsageError(f"the key {key!r} is there twice")
        spec = tokens.spec
        kind = np.int16 if max(spec.codebook_sizes) <= INT16_CODES else np.int32
        codes = np.ascontiguousarray(tokens.codes.cpu().numpy(), dtype=np.dtype(kind).newbyteorder("<"))
        about = f'{{"spec": {spec_text(spec)}, "grid": {json.dumps(spec.grid)}'
        about += f', "levels": {tokens.n_levels}, "signals": {len(codes)}}}'
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, codes, version=(1, 0), allow_pickle=False)
        for name, data in ((key + CODES, buffer.getvalue()), (key + SPEC, about.encode())):
            add_member(self._tar, name, data)
        self._keys.add(key)
        self.codes += codes.size

    def summary(self) -> str:
        return f"{self.codes} codes"

    def close(self) -> None:
        """Write the end. Raises UsageError if there are no tokens."""
        if not self._keys:
            raise UsageError("a corpus holds the tokens of at least one file")
        self._tar.close()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a file to a tar; its time, owner and group are 0 and empty."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    if name.isascii() and len(name) < tarfile.LENGTH_NAME and len(data) < 8**11:  # what fits into a plain header
        header = bytearray(_header())
        header[: len(name)] = name.encode()
        header[124:136] = b"%011o\0" % len(data)
        header[148:156] = b"%06o\0 " % (sum(header) + 256)  # as if the sum were spaces itself
        written = bytes(header) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
        assert tar.fileobj is not None
        tar.fileobj.write(written)
        tar.offset += len(written)
        return
    tar.addfile(member, io.BytesIO(data))


@functools.cache
def _header() -> bytes:
    """Of a member without name and size: making each anew would take most of the time of small samples."""
    header = bytearray(tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[148:156] = bytes(12), bytes(8)
    return bytes(header)


def check_key(key: str) -> None:
    """Raise UsageError for what is no key: a key is a name without dots."""
    if not re.fullmatch(r"[^/.\x00][^.\x00]*", key) or key.endswith("/") or not _writable(key):
        raise UsageError(f"{key!r} is not a key: it is a name without dots")


def _writable(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:  # a file name that is no text
        return False


@contextmanager
def webdataset_writer(path: str | Path, force: bool = False) -> Iterator[WebDatasetWriter]:
    """Open a tar file for tokens; it appears when the block ends well. Raises a :class:`~..errors.TokodecError`."""
    path = Path(path)
    if path.suffix.lower() != ".tar":
        raise UsageError(f"{path}: a WebDataset is a .tar file")
    with atomic_output(path, force) as file:
        writer = WebDatasetWriter(file)
        yield writer
        writer.close()


def write_webdataset(path: str | Path, items: Iterable[tuple[str, Tokens]], force: bool = False) -> int:
    """Write tokens by key, in the order given; returns how many. Nothing is left if there is an error in between.

    Raises: UsageError for a bad key, one that is there twice, or no items at all; OutputExistsError without ``force``.
    """
    with webdataset_writer(path, force) as writer:
        for key, tokens in items:
            writer.add(key, tokens)
    return len(writer)


class _Whole(io.FileIO):
    """A file of which no read asks for more than is left: what a damaged size would make Python reserve memory for."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left)) or b""


def read_webdataset(path: str | Path) -> Iterator[tuple[str, Tokens]]:
    """Keys and tokens of a tar file, in its order; nothing is unpickled, and no member is larger than the file.

    Raises: MediaError if it is none of ours.
    """
    key, parts, reached = "", dict[str, bytes](), -1
    try:
        with _Whole(path) as file, tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                if member.offset <= reached:
                    raise ValueError("a member begins before the end of the one before")
                reached = member.offset
                folder, _, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if not member.isfile() or dot + suffix not in (CODES, SPEC):
                    continue
                found = f"{folder}/{stem}" if folder else stem
                if found != key:
                    if parts:
                        raise ValueError(f"{key} has only one of its two members")
                    key = found
                parts[dot + suffix] = _member_bytes(tar, member)
                if len(parts) == 2:
                    yield key, member_tokens(parts[CODES], parse_json(parts[SPEC]))
                    parts = {}
            check_end(tar, file)
            if parts:
                raise ValueError(f"{key} has only one of its two members")
            if not key:
                raise ValueError("it has no codes")
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror or error}") from error
    except (*BROKEN_ARCHIVE, tarfile.TarError, EOFError) as error:
        detail = " ".join(str(error).split())[:200]
        raise MediaError(f"{path} is not a WebDataset of tokens: {key + ': ' if key else ''}{detail}") from error


def check_end(tar: tarfile.TarFile, file: IO[bytes]) -> None:
    """Raise ValueError unless the end of a tar is where its last member was read: a damaged header looks like one."""
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError("it breaks off")


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """What a member holds. Raises ValueError if it has holes, which a few bytes make as large as one likes."""
    if member.issparse() or member.size < 0:
        raise ValueError("a sparse member")
    file = tar.extractfile(member)
    if file is None:
        raise ValueError("a member without bytes")
    with file:
        data = file.read()
    if len(data) != member.size:
        raise ValueError("a member that ends early")
    return data


def member_tokens(data: bytes, text: dict[str, Any]) -> Tokens:
    """Codes and their spec to tokens."""
    import numpy as np
    import torch

    from ...tokenizers.tokens import Tokens

    codes = read_array(data)
    if codes.dtype not in (np.dtype("<i2"), np.dtype("<i4")):
        raise ValueError(f"codes are {codes.dtype}, not int16 or int32")
    return Tokens(torch.from_numpy(codes.astype(np.int64)), parse_spec(text["spec"]))
