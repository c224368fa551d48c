"""Shards of a corpus, in one of four formats: written one sample after the other, read by number.

::

    webdataset  NAME.tar                         KEY.codes.npy and KEY.json, see megatron.py
    megatron    NAME.bin, NAME.idx, NAME.json    sequences of ids, see megatron.py
    parquet     NAME.parquet                     key, codes (list), shape (list: B, K, *grid), spec (JSON)
    tok         NAME.tar                         KEY.tok: entropy-coded codes
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ..errors import MediaError, one_line
from ..formats import format_of
from ..tokens import tokenize_file
from .megatron import MegatronWriter, read_megatron, sequencer_maker
from .tables import pyarrow
from .token_files import parse_spec, spec_text
from .webdataset import BROKEN_ARCHIVE, CODES, INT16_CODES, SPEC, WebDatasetWriter, add_member, check_end, member_tokens

if TYPE_CHECKING:
    from ...tokenizers.tokens import Tokens
    from ..models import Model
    from ..options import CorpusOptions

# Suffixes of the files of a shard, those first that are there last.
SHARD_SUFFIXES = {
    "webdataset": (".tar",), "megatron": (".idx", ".json", ".bin"), "parquet": (".parquet",), "tok": (".tar",),
}  # fmt: skip
ROW_GROUP = 1 << 20  # bytes of codes in a row group of a parquet file


class ShardWriter(Protocol):
    """What writes a shard: its files are open."""

    def add(self, key: str, tokens: Tokens) -> None:
        """Raises UsageError for tokens or a key that the format cannot hold; nothing of them is written then."""

    def close(self) -> None:
        """Write what comes last."""


def shard_writer(options: CorpusOptions, files: list[BinaryIO], model: Model) -> ShardWriter:
    """The writer of a shard whose files are open, in the order of ``SHARD_SUFFIXES``."""
    if options.format == "megatron":
        index, schema, data = files
        maker = sequencer_maker(options.pattern or "levels", options.digits, model.tokenizer)
        return MegatronWriter(index, schema, data, maker)
    makers: dict[str, Callable[[BinaryIO], ShardWriter]] = {
        "webdataset": WebDatasetWriter, "parquet": ParquetWriter, "tok": lambda file: TokWriter(file, model),
    }  # fmt: skip
    return makers[options.format](files[0])


class TokWriter:
    """`.tok` files in a tar: each can be taken out and decoded on its own."""

    def __init__(self, file: BinaryIO, model: Model) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8")  # noqa: SIM115
        self._model = model

    def add(self, key: str, tokens: Tokens) -> None:
        add_member(self._tar, key + ".tok", format_of(self._model.tokenizer).pack(tokens, self._model))

    def close(self) -> None:
        self._tar.close()


class ParquetWriter:
    """A row for each sample, in groups of about a megabyte."""

    def __init__(self, file: BinaryIO) -> None:
        self._pa, self._file = pyarrow(), file
        self._writer: Any = None
        self._rows: list[tuple[str, Any, list[int], str]] = []
        self._bytes = 0

    def add(self, key: str, tokens: Tokens) -> None:
        import numpy as np

        kind = np.int16 if max(tokens.spec.codebook_sizes) <= INT16_CODES else np.int32
        codes = tokens.codes.cpu().numpy().astype(kind)
        self._rows.append((key, codes.ravel(), list(codes.shape), spec_text(tokens.spec)))
        self._bytes += codes.nbytes
        if self._bytes >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        pa = self._pa
        keys, codes, shapes, specs = zip(*self._rows, strict=True)
        numbers = pa.from_numpy_dtype(codes[0].dtype)
        columns = {
            "key": pa.array(keys, pa.string()),
            "codes": pa.array(codes, pa.list_(numbers)),
            "shape": pa.array(shapes, pa.list_(pa.int32())),
            "spec": pa.array(specs, pa.string()),
        }
        table = pa.table(columns)
        self._writer = self._writer or pa.parquet.ParquetWriter(self._file, table.schema, compression="zstd")
        self._writer.write_table(table)
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


class Shard(Protocol):
    """A shard that is read.

    Attributes:
        keys: of its samples, in order.
    """

    keys: list[str]

    def tokens(self, i: int) -> Tokens:
        """Raises MediaError if they cannot be read."""


def open_shard(path: Path, format: str, model: Model | None = None) -> Shard:
    """A shard by its path without suffix. model: that of `.tok` files; the release that they name if None.

    Raises: MediaError if it is missing or damaged.
    """
    first = path.with_name(path.name + SHARD_SUFFIXES[format][0])
    try:
        if format == "megatron":
            return MegatronShard(first)
        if format == "parquet":
            return ParquetShard(first)
        return TarShard(first, (".tok",) if format == "tok" else (CODES, SPEC), model)
    except (OSError, tarfile.TarError, *BROKEN_ARCHIVE) as error:
        raise MediaError(f"{first} is not a shard: {one_line(error)}") from error


class MegatronShard:
    """Documents of a Megatron corpus."""

    def __init__(self, path: Path) -> None:
        self._corpus = read_megatron(path)
        self.keys = self._corpus.names

    def tokens(self, i: int) -> Tokens:
        return self._corpus.tokens(i)


class TarShard:
    """Members of a tar by sample: the headers are read once, then each sample where it lies."""

    def __init__(self, path: Path, suffixes: tuple[str, ...], model: Model | None) -> None:
        self._path, self._suffixes, self._model = path, suffixes, model
        self._places: dict[str, dict[str, tuple[int, int]]] = {}
        self._file = path.open("rb")
        with tarfile.open(fileobj=self._file, mode="r:", encoding="utf-8") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if dot + suffix in suffixes:
                    place = member.offset_data, member.size
                    self._places.setdefault(folder + slash + stem, {})[dot + suffix] = place
            check_end(tar, self._file)
        self.keys = list(self._places)

    def tokens(self, i: int) -> Tokens:
        key = self.keys[i]
        try:
            parts = [self._bytes(*self._places[key][suffix]) for suffix in self._suffixes]
            if len(parts) == 2:
                return member_tokens(parts[0], json.loads(parts[1]))
        except (OSError, *BROKEN_ARCHIVE) as error:
            raise MediaError(f"{self._path}: {key}: {one_line(error)}") from error
        model = None if self._model is None else self._model.tokenizer
        return tokenize_file(io.BytesIO(parts[0]), model=model, device="cpu").tokens

    def _bytes(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("the shard ends early")
        return data


class ParquetShard:
    """Rows of a parquet file; the group of rows that was read last is kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = pyarrow().parquet.ParquetFile(path)
        self.keys: list[str] = self._file.read(["key"])["key"].to_pylist()
        groups = range(self._file.num_row_groups)
        self._rows = [(group, row) for group in groups for row in range(self._file.metadata.row_group(group).num_rows)]
        self._held: tuple[int, Any] = (-1, None)

    def tokens(self, i: int) -> Tokens:
        import numpy as np
        import torch

        from ...tokenizers.tokens import Tokens

        group, row = self._rows[i]
        if self._held[0] != group:
            self._held = group, self._file.read_row_group(group)
        codes, shape, spec = (self._held[1][name][row] for name in ("codes", "shape", "spec"))
        try:
            numbers = np.asarray(codes.values).astype(np.int64).reshape(shape.as_py())
            return Tokens(torch.from_numpy(numbers), parse_spec(json.loads(spec.as_py())))
        except BROKEN_ARCHIVE as error:
            raise MediaError(f"{self._path}: {self.keys[i]}: {one_line(error)}") from error
