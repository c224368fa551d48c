"""Weights files that are smaller on disk: safetensors with tensors deflated one by one, lossless to the last bit.

A packed file is a safetensors file itself: tensors that gain by it hold, under their name, a zlib stream of their bytes
(uint8, one axis), all others are what they were. int8 weights have little to repeat but an uneven histogram, so mostly
Huffman codes alone are best. Its metadata has beside the original entries

- ``tokodec.packed``: version of this layout, "1";
- ``tokodec.header``: the header of the original file, its exact text.

A tensor is a stream if it is shorter than the original header says. So the original file comes back bit for bit, and
hashes of weights are those of the original file: packing changes none. Every reader takes both kinds.

Command line: ``python -m tokodec.entropy.packed FILE...`` packs files in place (those that are packed already stay),
``--unpack`` undoes it, and ``--hash`` prints the hash that model cards and ``.tok`` files have.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARK, HEADER, METADATA = "tokodec.packed", "tokodec.header", "__metadata__"
VERSION = "1"
GROWTH = 16  # times its stream that a tensor may be: what a file makes us allocate. Huffman codes alone give 8 at most
THREADS = 4  # that deflate and inflate


def pack(plain: bytes) -> bytes:
    """A safetensors file, packed; as it is where that is not smaller, or if it is packed already.

    Raises: ValueError if it is no safetensors file.
    """
    parsed = _parse(plain)
    if parsed is None:
        raise ValueError("not a safetensors file")
    header, entries, metadata = parsed
    if MARK in metadata:
        return plain
    body = memoryview(plain)[8 + len(header) :]
    kept: list[tuple[str, Any, bytes | memoryview]] = []
    streams: list[tuple[str, Any, bytes | memoryview]] = []
    places = _ranges(entries, len(body))
    with ThreadPoolExecutor(THREADS) as pool:  # zlib lets the others run
        found = pool.map(_deflate, (body[slice(*place)] for place in places.values()))
        for (name, place), best in zip(places.items(), found, strict=True):
            data = body[slice(*place)]
            if len(best) < len(data):
                streams.append((name, {"dtype": "U8", "shape": [len(best)]}, best))
            else:
                kept.append((name, entries[name], data))
    out: dict[str, Any] = {METADATA: {**metadata, MARK: VERSION, HEADER: header.decode()}}
    at = 0
    for name, entry, part in kept + streams:  # streams last: all others stay aligned
        out[name] = {**entry, "data_offsets": [at, at + len(part)]}
        at += len(part)
    text = json.dumps(out, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    packed = b"".join([len(text).to_bytes(8, "little"), text, *(part for _, _, part in kept + streams)])
    return packed if len(packed) < len(plain) else plain


def unpack(data: bytes) -> bytes:
    """The file that :func:`pack` was given; what is no packed file comes back as it is.

    Raises: ValueError in one line if it is damaged. Memory: 2 * ``GROWTH`` times the size of the file at most.
    """
    found = _parse(data)
    if found is None or MARK not in found[2]:
        return data
    header, entries, metadata = found
    if metadata[MARK] != VERSION:
        raise ValueError(f"packed by version {str(metadata[MARK])[:20]!r}, known is {VERSION!r}")
    try:
        body = memoryview(data)[8 + len(header) :]
        stored = _ranges(entries, len(body))
        original = metadata[HEADER].encode()
        own = json.loads(original)
        own.pop(METADATA, None)
        places = _ranges(own)
        if set(places) != set(stored):
            raise ValueError("its tensors are others than its header says")
        for name, (begin, end) in places.items():  # all of them before the first is inflated
            size = stored[name][1] - stored[name][0]
            if not size <= end - begin <= GROWTH * size:
                raise ValueError("a tensor has another size than its header says")
        with ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(lambda name: _inflate(body[slice(*stored[name])], places[name]), places))
        return b"".join([len(original).to_bytes(8, "little"), original, *parts])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, zlib.error) as error:
        raise ValueError(f"damaged packed file: {' '.join(str(error).split())[:100]}") from error


def read(path: Path) -> bytes:
    """The unpacked bytes of a safetensors file. Raises OSError, and ValueError as :func:`unpack`."""
    return unpack(path.read_bytes())


def write(path: Path, plain: bytes) -> None:
    """Write a safetensors file, packed; it has its name once it is whole, see :func:`together`."""
    with together(path.parent) as beside:
        (beside / path.name).write_bytes(pack(plain))


@contextmanager
def together(folder: Path) -> Iterator[Path]:
    """A folder for files that belong together: they appear in ``folder`` (made if missing) when the block ends well.

    Until then nothing there changes. Then all of them are on the disk, and get their names one right after the other,
    in alphabetical order, ``config.json`` first. May be nested.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tokodec-", suffix=".tmp", dir=folder) as name:
        yield Path(name)
        paths = sorted(Path(name).iterdir())
        for path in paths:
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        for path in paths:
            path.replace(folder / path.name)


def hash_of(plain: bytes) -> str:
    """First 8 bytes of the SHA-256 of a file that is not packed, as 16 hex digits."""
    return hashlib.sha256(plain).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """The hash of a weights file: :func:`hash_of` its unpacked bytes. Raises OSError, and ValueError if it is damaged.

    ``python -m tokodec.entropy.packed --hash FILE`` prints it; for a file that is not packed, so does
    ``sha256sum FILE | cut -c1-16``.
    """
    return hash_of(read(path))


# ----------------------------------------------------------------------------------------------------------------------


def _parse(data: bytes) -> tuple[bytes, dict[str, Any], dict[str, Any]] | None:
    """Header, entries of the tensors and metadata of a safetensors file; None if it is not one, or damaged there."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 + size:
        return None
    header = data[8 : 8 + size]
    try:
        entries = json.loads(header.decode())
        metadata = entries.pop(METADATA, {})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return (header, entries, metadata) if isinstance(metadata, dict) else None


def _ranges(entries: dict[str, Any], size: int | None = None) -> dict[str, tuple[int, int]]:
    """Where in a file's data each tensor lies, in that order. Raises ValueError if gaps are left, or not ``size``."""
    found: dict[str, tuple[int, int]] = {}
    for name, entry in entries.items():
        place = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(place, list) or [type(at) for at in place] != [int, int]:
            raise ValueError("a tensor has no offsets")
        found[name] = (place[0], place[1])
    found = dict(sorted(found.items(), key=lambda item: item[1]))
    at = 0
    for begin, end in found.values():
        if begin != at or end < begin:
            raise ValueError("tensors do not lie one after the other")
        at = end
    if size is not None and at != size:
        raise ValueError("tensors do not fill the file")
    return found


def _deflate(data: memoryview) -> bytes:
    """The smaller of two zlib streams: Huffman codes alone, or with repetitions if that does not exceed ``GROWTH``."""
    found = []
    for level, strategy in ((6, zlib.Z_HUFFMAN_ONLY), (9, zlib.Z_DEFAULT_STRATEGY)):
        worker = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
        found.append(worker.compress(data) + worker.flush())
    return min((stream for stream in found if len(data) <= GROWTH * len(stream)), key=len)


def _inflate(stream: memoryview, place: tuple[int, int]) -> bytes | memoryview:
    """The bytes of a tensor that lies at ``place``. Raises ValueError or zlib.error if the stream holds others."""
    size = place[1] - place[0]
    if len(stream) == size:
        return stream
    worker = zlib.decompressobj()
    data = worker.decompress(stream, size + 1)  # one more: only then the checksum is read
    if len(data) != size or not worker.eof or worker.unused_data:
        raise ValueError("a stream has another size than its header says")
    return data


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tokodec.entropy.packed", description="Pack weights files in place.")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="safetensors file")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--unpack", action="store_true", help="plain safetensors again, in place")
    how.add_argument("--hash", action="store_true", help="change nothing, print the hash of the weights")
    args = parser.parse_args(arguments)
    for path in args.files:
        try:
            before = path.read_bytes()
            plain = unpack(before)
            if args.hash:
                print(f"{hash_of(plain)}  {path}")
                continue
            after = plain if args.unpack else pack(before)
            if after != before:
                with together(path.parent) as beside:
                    (beside / path.name).write_bytes(after)
            print(f"{hash_of(plain)}  {path}: {len(before)} -> {len(after)} bytes")
        except (OSError, ValueError) as error:
            parser.exit(1, f"{path}: {error}\n")


if __name__ == "__main__":
    main()
