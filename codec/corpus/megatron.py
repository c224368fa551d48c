"""Tokens of many files as one corpus for generators: WebDataset `.tar` and Megatron `.bin` with `.idx`.

Token files of one signal each, `.npz` and `.safetensors`, are in :mod:`.token_files`. All numbers are little-endian.

WebDataset, `NAME.tar`
----------------------
Codes as they are. Each file has two members, the codes first; members of other kinds beside them are ignored::

    KEY.codes.npy   [B, K, *grid], int16, or int32 if a codebook has more than 32768 codes; -1: a code that is absent
    KEY.json        {"spec": the fields of TokenSpec, "grid": [h, w] or [t], "levels": K, "signals": B}

B is 1 but for sounds of several channels, K the number of levels that are kept, coarse to fine. KEY is the name of the
source without its suffix, its dots as "_". The same tokens in the same order give the same bytes: times are 0.

Megatron, `NAME.bin`, `NAME.idx` and `NAME.json`
------------------------------------------------
Ids of a :class:`~...tokenizers.sequence.Sequencer`, as Megatron-LM's IndexedDataset reads them: one a step, or for the
patterns delay and parallel the row of each step, one after the other. A signal is a sequence from begin to end, the
signals of one file are a document::

    NAME.bin        the ids of all sequences after each other: uint16, int32 if the vocabulary has 65500 ids or more
    NAME.idx        offset  size
                         0     9  "MMIDIDX" and two zero bytes
                         9     8  version, 1
                        17     1  type of the ids: 8 is uint16, 4 is int32
                        18     8  n, number of sequences
                        26     8  d, number of documents and 1
                        34    4n  length of each sequence, int32
                            + 8n  where each begins in NAME.bin, in bytes, int64
                            + 8d  first sequence of each document, and n, int64
    NAME.json       what the ids mean:
        format          "tokodec corpus 1"
        model, weights_hash, modality, strides, sample_rate     of all tokens, as in TokenSpec
        codebook_sizes  N of each of the K codebooks, coarse to fine
        sequencer       pattern, vocabulary, special ids, the block of ids of each stream, digits: Sequencer.schema()
        dtype           of the ids
        sequences, ids  how many there are
        kinds           what documents are, each kind once: "spec" (the fields of TokenSpec), "grid", "levels" (how many
                        of the K codebooks are kept), "signals" (how many sequences), "length" (ids of each of them),
                        "streams" (ids in the row of a step, of patterns that have rows)
        documents       [name of the source, index of its kind] of each document, in order

All tokens of a corpus are of one model. `NAME.idx` appears last: if it is there, all three are.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...tokenizers.folders import is_release, parse_json
from ..errors import MediaError, UsageError
from ..files import atomic_outputs
from ..models import load_model, pick_device
from .token_files import check_weights, parse_spec
from .webdataset import BROKEN_ARCHIVE

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from ...tokenizers.api import Tokenizer
    from ...tokenizers.sequence import Sequencer
    from ...tokenizers.tokens import Tokens, TokenSpec


CORPUS_SUFFIXES = (".tar", ".bin")
FORMAT = "tokodec corpus 1"
MAGIC = b"MMIDIDX\x00\x00"
HEAD = struct.Struct("<9sQBQQ")
VERSION = 1
DTYPES = {8: "<u2", 4: "<i4"}  # of the ids, by the code of Megatron-LM
UINT16, INT32 = 8, 4
UINT16_IDS = 65500  # vocabularies below this are uint16, as in Megatron-LM
MEGATRON_SUFFIXES = (".bin", ".idx", ".json")


# ---------------------------------------------------------------------------------------------------------- Megatron


def sequencer_maker(
    pattern: str = "levels", digits: bool = False, model: str | Tokenizer | None = None, device: str = "auto"
) -> Callable[[TokenSpec], Sequencer]:
    """What makes the sequencer for tokens of a spec.

    Args:    digits: large codes as two or three ids, by the trees of the model's context prior.
             model: where its folder is, if it is no released one.
    Raises:  UsageError for a pattern that is none; when called, for digits that the model does not have.
    """
    from ...tokenizers.sequence import PATTERNS, Sequencer

    if pattern not in PATTERNS:
        raise UsageError(f"unknown pattern {pattern!r}: use {', '.join(PATTERNS)}")

    def make(spec: TokenSpec) -> Sequencer:
        trees = None
        if digits:
            if model is None and not is_release(spec.model):
                raise UsageError(f"the digits of {spec.model} are not at hand: give its folder with --model")
            loaded = load_model(model or spec.model, pick_device(device))
            check_weights(spec, loaded.tokenizer)
            trees = loaded.trees
        return Sequencer(spec.codebook_sizes, pattern, trees)

    return make


def megatron_paths(path: str | Path) -> tuple[Path, Path, Path]:
    """`.bin`, `.idx` and `.json` of a corpus that is named by one of them, or by what they share."""
    path = Path(path)
    if path.suffix.lower() in MEGATRON_SUFFIXES:
        path = path.with_suffix("")
    data, index, schema = (path.with_name(path.name + suffix) for suffix in MEGATRON_SUFFIXES)
    return data, index, schema


class MegatronWriter:
    """Adds the sequences of tokens to files that are open.

    Args:
        sequencer: or what makes one of the spec of the first tokens.
    """

    def __init__(
        self,
        index: BinaryIO,
        schema: BinaryIO,
        data: BinaryIO,
        sequencer: Sequencer | Callable[[TokenSpec], Sequencer],
    ) -> None:
        self._files = index, schema, data
        self._make = sequencer
        self._sequencer: Sequencer | None = None
        self._first: TokenSpec | None = None
        self._lengths = array("q")
        self._ends = array("q", [0])  # sequences before each document, and all
        self._kinds: dict[tuple[TokenSpec, int, int, int, int], int] = {}
        self._documents: list[tuple[str, int]] = []
        self.ids = 0

    def __len__(self) -> int:
        """Documents so far."""
        return len(self._documents)

    @property
    def sequencer(self) -> Sequencer:
        """Of what was added; there is none before."""
        assert self._sequencer is not None
        return self._sequencer

    @property
    def dtype(self) -> int:
        return UINT16 if self.sequencer.vocabulary_size < UINT16_IDS else INT32

    def add(self, name: str, tokens: Tokens) -> None:
        """Append the sequences of the tokens as one document.

        Args:    name: of the source, for the schema.
        Raises:  UsageError if the tokens are of another model than those before, or have no sequence (codes without
                 digits).
        """
        spec = tokens.spec
        if self._first is not None and _model_of(spec) != _model_of(self._first):
            first = f"{self._first.model} {self._first.weights_hash}"
            raise UsageError(f"{name}: tokens of {spec.model} {spec.weights_hash}, the corpus has those of {first}")
        if not len(tokens.codes):
            raise UsageError(f"{name}: no signals")
        made = self._sequencer or (self._make(spec) if callable(self._make) else self._make)
        try:
            ids = made.flatten(tokens)
        except ValueError as error:
            raise UsageError(f"{name}: {error}") from error
        self._sequencer = made
        signals, streams = len(ids), ids.shape[2] if ids.ndim == 3 else 0
        length = ids[0].numel()
        self._files[2].write(ids.cpu().numpy().astype(DTYPES[self.dtype]).tobytes())
        self._first = self._first or spec
        self._lengths.extend([length] * signals)
        self._ends.append(len(self._lengths))
        kind = self._kinds.setdefault((spec, tokens.n_levels, signals, length, streams), len(self._kinds))
        self._documents.append((name, kind))
        self.ids += ids.numel()

    def summary(self) -> str:
        vocabulary = self.sequencer.vocabulary_size
        return f"{len(self._lengths)} sequences, {self.ids} ids of a vocabulary of {vocabulary}"

    def close(self) -> None:
        """Write index and schema. Raises UsageError if there are no tokens."""
        import numpy as np

        if self._first is None:
            raise UsageError("a corpus holds the tokens of at least one file")
        index, schema, _ = self._files
        lengths = np.frombuffer(self._lengths, np.int64)
        pointers = (np.cumsum(lengths) - lengths) * np.dtype(DTYPES[self.dtype]).itemsize
        index.write(HEAD.pack(MAGIC, VERSION, self.dtype, len(lengths), len(self._ends)))
        for numbers, dtype in ((lengths, "<i4"), (pointers, "<i8"), (np.frombuffer(self._ends, np.int64), "<i8")):
            index.write(numbers.astype(dtype).tobytes())
        schema.write((json.dumps(self._schema(), ensure_ascii=True) + "\n").encode())

    def _schema(self) -> dict[str, Any]:
        assert self._first is not None
        kinds = [
            {
                "spec": dataclasses.asdict(spec),
                "grid": spec.grid,
                "levels": levels,
                "signals": signals,
                "length": length,
                **({"streams": streams} if streams else {}),
            }
            for spec, levels, signals, length, streams in self._kinds
        ]
        return {
            "format": FORMAT,
            **_model_of(self._first),
            "sequencer": self.sequencer.schema(),
            "dtype": "uint16" if self.dtype == UINT16 else "int32",
            "sequences": len(self._lengths),
            "ids": self.ids,
            "kinds": kinds,
            "documents": self._documents,
        }


def _model_of(spec: TokenSpec) -> dict[str, Any]:
    """What all tokens of a corpus share."""
    shared = ("model", "weights_hash", "modality", "codebook_sizes", "strides", "sample_rate")
    return {name: getattr(spec, name) for name in shared}


@contextmanager
def megatron_writer(
    path: str | Path, sequencer: Sequencer | Callable[[TokenSpec], Sequencer], force: bool = False
) -> Iterator[MegatronWriter]:
    """Open `.bin`, `.idx` and `.json` for sequences; they appear when the block ends well.

    Args:   sequencer: or what makes one of the spec of the first tokens.
    Raises: a :class:`~..errors.TokodecError`.
    """
    data, index, schema = megatron_paths(path)
    with atomic_outputs([index, schema, data], force) as files:
        writer = MegatronWriter(files[0], files[1], files[2], sequencer)
        yield writer
        writer.close()


class MegatronCorpus:
    """What :func:`megatron_writer` wrote; the ids stay on disk until they are asked for.

    Attributes:
        schema: the parsed `.json`.
        sequencer: how codes became ids.
        names: of the source of each document.
        lengths: ``[n]`` number of ids of each sequence.
    """

    def __init__(self, path: str | Path) -> None:
        import numpy as np

        from ...tokenizers.sequence import ROWS, Sequencer

        data, index, schema = megatron_paths(path)
        self.path = data
        try:
            self.schema: dict[str, Any] = parse_json(schema.read_bytes())
            raw = index.read_bytes()
            size = data.stat().st_size
        except OSError as error:
            raise MediaError(f"cannot read {error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise MediaError(f"{schema} is not the schema of a corpus: {error}") from error
        self._dtype, self.lengths, self._ends = _read_index(raw, size, str(index))
        try:
            if self.schema["format"] != FORMAT:
                raise ValueError(f"its format is {self.schema['format']!r}, not {FORMAT!r}")
            self.sequencer = Sequencer.from_schema(self.schema["sequencer"])
            if self.sequencer.vocabulary_size > np.iinfo(self._dtype).max + 1:
                raise ValueError("the index has a type of ids that is too small for them")
            kinds = [(parse_spec(kind["spec"]), int(kind["signals"])) for kind in self.schema["kinds"]]
            if any(_model_of(spec) != _model_of(kinds[0][0]) for spec, _ in kinds):
                raise ValueError("it has several models")
            self.names = [str(name) for name, _ in self.schema["documents"]]
            of = np.array([kind for _, kind in self.schema["documents"]], np.int64)
            if of.size and (of.min() < 0 or of.max() >= len(kinds)):
                raise ValueError("it has a document of an unknown kind")
            signals = np.array([n for _, n in kinds], np.int64)[of]
            lengths = np.array([kind["length"] for kind in self.schema["kinds"]], np.int64)[of]
            streams = [kind.get("streams", 0) for kind in self.schema["kinds"]]
            rows = self.sequencer.pattern in ROWS
            whole = all(type(n) is int and n >= rows and bool(n) == rows for n in streams)
            if not whole or (rows and (lengths % np.array(streams)[of]).any()):
                raise ValueError("it has a sequence without whole rows")
            if not np.array_equal(signals, np.diff(self._ends)):
                raise ValueError("the index has other documents")
            if not np.array_equal(np.repeat(lengths, signals), self.lengths):
                raise ValueError("the index has sequences of other lengths")
        except BROKEN_ARCHIVE as error:
            raise MediaError(f"{schema} is not the schema of this corpus: {error}") from error
        self._specs = [kinds[kind][0] for kind in of]
        self._streams = np.repeat(np.array(streams, np.int64)[of], signals)
        self._begins = np.cumsum(self.lengths) - self.lengths
        self._ids: npt.NDArray[Any] = np.memmap(data, self._dtype, "r") if size else np.zeros(0, self._dtype)

    def __len__(self) -> int:
        """Documents: one for each source."""
        return len(self.names)

    def spec(self, i: int) -> TokenSpec:
        """Of document i."""
        return self._specs[i]

    def sequence(self, i: int) -> Tensor:
        """Ids of sequence i, int64: ``[L]``, or ``[L, S]`` where a step has a row of them."""
        import numpy as np
        import torch

        begin = int(self._begins[i])
        ids = torch.from_numpy(self._ids[begin : begin + int(self.lengths[i])].astype(np.int64))
        streams = int(self._streams[i])
        return ids.view(-1, streams) if streams else ids

    def document(self, i: int) -> range:
        """Sequences of document i."""
        i = range(len(self))[i]
        return range(int(self._ends[i]), int(self._ends[i + 1]))

    def tokens(self, i: int) -> Tokens:
        """Document i as tokens again, all its signals. Raises MediaError if its ids are not those of codes."""
        import torch

        ids = torch.stack([self.sequence(j) for j in self.document(i)])
        try:
            return self.sequencer.unflatten(ids, self.spec(i))
        except ValueError as error:
            raise MediaError(f"{self.path}, document {i} ({self.names[i]}): {error}") from error

    def __iter__(self) -> Iterator[tuple[str, Tokens]]:
        return ((self.names[i], self.tokens(i)) for i in range(len(self)))


def read_megatron(path: str | Path) -> MegatronCorpus:
    """Open a corpus, named as any of its files or without suffix. Raises MediaError if it is none, or damaged."""
    return MegatronCorpus(path)


def _read_index(raw: bytes, size: int, name: str) -> tuple[np.dtype[Any], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Type of the ids, lengths and document ends of an index, for ids of ``size`` bytes. Raises MediaError."""
    import numpy as np

    def broken(what: str) -> MediaError:
        return MediaError(f"{name} is not the index of this corpus: {what}")

    if len(raw) < HEAD.size or not raw.startswith(MAGIC):
        raise broken("its first bytes are others")
    _, version, code, n, d = HEAD.unpack_from(raw)
    if version != VERSION or code not in DTYPES:
        raise broken(f"version {version}, type of ids {code}")
    if len(raw) != HEAD.size + 12 * n + 8 * d or d < 2:
        raise broken(f"{len(raw)} bytes for {n} sequences and {d - 1} documents")
    dtype = np.dtype(DTYPES[code])
    lengths = np.frombuffer(raw, "<i4", n, HEAD.size).astype(np.int64)
    pointers = np.frombuffer(raw, "<i8", n, HEAD.size + 4 * n)
    ends = np.frombuffer(raw, "<i8", d, HEAD.size + 12 * n).astype(np.int64)
    begins = np.cumsum(lengths) - lengths
    if (lengths < 0).any() or not np.array_equal(pointers, begins * dtype.itemsize):
        raise broken("its sequences do not follow each other")
    if int(lengths.sum()) * dtype.itemsize != size:
        raise broken(f"it wants {int(lengths.sum()) * dtype.itemsize} bytes of ids, there are {size}")
    if ends[0] != 0 or ends[-1] != n or (np.diff(ends) < 1).any():
        raise broken("its documents do not follow each other")
    return dtype, lengths, ends
