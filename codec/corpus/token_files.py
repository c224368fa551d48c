"""Tokens in files of their own, `.npz` and `.safetensors`: integers for other programs, not compressed by a prior.

Both hold an array ``codes [B, K, *grid]`` int32 and a text ``spec``, the fields of
:class:`~...tokenizers.tokens.TokenSpec` as JSON: in .npz the zero-dimensional string array ``spec``, in .safetensors
the metadata entry ``spec``. A `.npz` has a checksum of each array; a `.safetensors` has the metadata entry ``sha256``,
see :func:`checksum`, without which it is read unchecked.

Limits: a file is refused (LimitError) before anything of the declared size is allocated if it declares

- pictures or frames of more than ``max_pixels`` pixels, counted over the batch, or videos of more than 2^24 frames;
- sounds of more than ``max_samples`` samples over all signals, or of more than ``FREE_SAMPLES`` and
  ``SAMPLES_PER_BYTE`` for every byte of the file;
- more codes than ``FREE_CODES`` and ``CODES_PER_BYTE`` for every byte of the file. Only deflated codes that say next to
  nothing come near that; a `.safetensors` file, which is not deflated, never does.

Memory of reading: 12 bytes a code.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from ..container.fields import MAX_CLIP, MAX_PIXELS, MAX_SAMPLES
from ..errors import LimitError, MediaError, ModelError, WeightsMismatchError
from ..files import source_name, stored
from ..registry import MODALITIES
from .npy import HEADER, read_array, read_header

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from ...tokenizers.api import Tokenizer
    from ...tokenizers.tokens import Tokens, TokenSpec


TOKEN_SUFFIXES = (".npz", ".safetensors")
MAX_AXES = 4
MAX_SPEC = 1 << 16  # characters of a spec
FREE_CODES, CODES_PER_BYTE = 1 << 25, 64
FREE_SAMPLES, SAMPLES_PER_BYTE = 1 << 28, 1 << 12
BLOCK = 1 << 20  # codes that are read at a time
MAX_NUMBER = 1 << 48  # of a spec: what all products of a few of them can be counted with
# What the readers of damaged files raise beside OSError: zip archives, JSON, arrays, specs.
BROKEN_FILE = (
    ValueError, KeyError, TypeError, AttributeError, EOFError, NotImplementedError, RecursionError, OverflowError,
    zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def tokens_model(spec: TokenSpec, name: str | Tokenizer | None, src: str | Path) -> str | Tokenizer:
    """The model to decode tokens of a file with: ``name`` if one is given, else the release that the file names.

    A name that a file brings along only ever means a release: a file must not make us open folders or download.
    Raises ModelError for another.
    """
    from ...tokenizers.folders import is_release

    if name is None and not is_release(spec.model):
        raise ModelError(
            f"{src}: tokens of the model {spec.model[:64]!r}, which does not come with tokodec;"
            " give its folder with --model"
        )
    return name or spec.model


def check_weights(spec: TokenSpec, tokenizer: Tokenizer, name: str = "") -> None:
    """Raise WeightsMismatchError if the tokens (of the file ``name``) are another model's."""
    if tokenizer.weights_hash != spec.weights_hash:
        raise WeightsMismatchError(
            f"{name + ': ' if name else ''}tokens of {spec.model} {spec.weights_hash},"
            f" the {tokenizer.name} at hand has {tokenizer.weights_hash}; give the right folder with --model"
        )


@functools.lru_cache(maxsize=1024)
def spec_text(spec: TokenSpec) -> str:
    """The fields of a spec as JSON: most samples of a corpus share theirs with many."""
    return json.dumps(dataclasses.asdict(spec))


def dump_tokens(tokens: Tokens, suffix: str) -> bytes:
    """Bytes of a `.npz` or `.safetensors` file; see the module's text for the schema."""
    import numpy as np
    import safetensors.numpy

    codes = np.ascontiguousarray(tokens.codes.cpu().numpy(), dtype=np.int32)  # safetensors would mix other layouts up
    spec = spec_text(tokens.spec)
    if suffix == ".safetensors":
        return safetensors.numpy.save({"codes": codes}, metadata={"spec": spec, "sha256": checksum(spec, codes)})
    buffer = BytesIO()
    np.savez_compressed(buffer, codes=codes, spec=np.array(spec))
    return buffer.getvalue()


def checksum(spec: str, codes: npt.NDArray[Any]) -> str:
    """SHA-256, in hex digits, of the text of the spec, the shape of the codes ("B,K,h,w") and the codes (int32,
    little-endian), with a zero byte between them."""
    digest = hashlib.sha256(spec.encode() + b"\0" + ",".join(map(str, codes.shape)).encode() + b"\0")
    digest.update(codes.astype("<i4", order="C", copy=False).data)
    return digest.hexdigest()


def token_modality(src: str | Path) -> str:
    """What the tokens of a file are of; "image" if it does not say, reading it will tell what is wrong."""
    path = Path(src)
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(str(path), "np") as file:
                found = _spec_of((file.metadata() or {})["spec"]).modality
        else:
            with zipfile.ZipFile(path) as archive:
                found = _spec_in(archive).modality
    except (OSError, SafetensorError, *BROKEN_FILE):
        return "image"
    return found if found in MODALITIES else "image"


def load_tokens(src: str | Path | BinaryIO, max_pixels: int = MAX_PIXELS, max_samples: int = MAX_SAMPLES) -> Tokens:
    """Read what :func:`dump_tokens` wrote; nothing is unpickled.

    Args:   src: a path, or a binary file object; of what can be read only once there is a temporary copy.
            max_pixels, max_samples: refuse larger pictures and frames, and sounds with more samples in all signals.
    Raises: LimitError for more than the limits allow (see the module's text), MediaError for anything else.
    """
    from ...tokenizers.tokens import Tokens

    limits, name = (max_pixels, max_samples), source_name(src)
    try:
        with _in_a_file(src, name) as path:
            read = _read_safetensors if path.suffix.lower() == ".safetensors" else _read_npz
            codes, spec = read(path, limits)
            return Tokens(codes, spec)
    except LimitError as error:
        raise LimitError(f"{name}: {error}") from error
    except OSError as error:
        raise MediaError(f"cannot read {name}: {error.strerror or error}") from error
    except (SafetensorError, *BROKEN_FILE) as error:
        raise MediaError(f"{name} is not a file of tokens: {' '.join(str(error).split())[:200]}") from error


@contextmanager
def _in_a_file(src: str | Path | BinaryIO, name: str) -> Iterator[Path]:
    """Where tokens lie: ``src`` itself, or a copy whose suffix says what is in it. Raises MediaError."""

    def kind(start: bytes) -> str:
        if start.startswith(b"PK\3\4"):
            return ".npz"
        if start[8:9] == b"{":
            return ".safetensors"
        raise MediaError(f"{name} is not a file of tokens: it begins otherwise")

    source = stored(Path(src) if isinstance(src, (str, Path)) else src, kind)
    if isinstance(source, Path):
        yield source
        return
    start = source.read(HEADER)
    with tempfile.NamedTemporaryFile(suffix=kind(start)) as file:
        file.write(start)
        shutil.copyfileobj(source, file)
        file.flush()
        yield Path(file.name)


def _read_safetensors(path: Path, limits: tuple[int, int]) -> tuple[Tensor, TokenSpec]:
    import torch

    with safe_open(str(path), "np") as file:
        about = file.metadata() or {}
        spec = _spec_of(about["spec"])
        place = file.get_slice("codes")
        if place.get_dtype() != "I32":
            raise ValueError(f"codes are {place.get_dtype()}, not int32")
        _check(spec, tuple(place.get_shape()), limits, path.stat().st_size)
        codes = file.get_tensor("codes")
    if "sha256" in about and about["sha256"] != checksum(about["spec"], codes):
        raise ValueError("it is damaged: its checksum is another")
    return torch.from_numpy(codes).long(), spec


def _read_npz(path: Path, limits: tuple[int, int]) -> tuple[Tensor, TokenSpec]:
    import numpy as np
    import torch

    with zipfile.ZipFile(path) as archive:
        spec = _spec_in(archive)
        with _member(archive, "codes.npy") as member:
            start = member.read(HEADER)
            shape, dtype, offset = read_header(start)
            if dtype != np.int32:
                raise ValueError(f"codes are {dtype}, not int32")
            _check(spec, shape, limits, path.stat().st_size)
            size = math.prod(shape) * dtype.itemsize
            declared = archive.getinfo("codes.npy").file_size - offset
            if declared != size:
                raise ValueError(f"codes of {size} bytes, of which {declared} are there")
            codes = torch.empty(shape, dtype=torch.int64)
            flat, done, part = codes.view(-1), 0, start[offset:]
            while done < len(flat):
                part = part or member.read(BLOCK * dtype.itemsize)
                rest = member.read(-len(part) % dtype.itemsize)
                numbers = np.frombuffer(part + rest, dtype)
                if not len(numbers):
                    raise ValueError("its codes end early")
                flat[done : done + len(numbers)] = torch.from_numpy(numbers.astype(np.int64))
                done, part = done + len(numbers), b""
            if member.read(1):  # and the checksum is compared
                raise ValueError("bytes follow its codes")
    return codes, spec


def _spec_in(archive: zipfile.ZipFile) -> TokenSpec:
    with _member(archive, "spec.npy") as member:
        start = member.read(HEADER + 4 * MAX_SPEC + 1)  # numpy has 4 bytes a character
        if member.read(1):
            raise ValueError("its spec is too long")
    text = read_array(start)
    if text.dtype.kind != "U" or text.ndim:
        raise ValueError(f"its spec is an array of {text.dtype}, not a text")
    return _spec_of(str(text[()]))


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    """A member of a zip archive, stored or deflated. Raises ValueError for what numpy does not write."""
    found = archive.getinfo(name)
    if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or found.flag_bits & 1:
        raise ValueError(f"{name} is encrypted, or neither stored nor deflated")
    return archive.open(found)


def _spec_of(text: str) -> TokenSpec:
    from ...tokenizers.folders import parse_json

    if len(text) > MAX_SPEC:
        raise ValueError("its spec is too long")
    return parse_spec(parse_json(text))


def _check(spec: TokenSpec, shape: tuple[int, ...], limits: tuple[int, int], size: int) -> None:
    """Compare what a file of ``size`` bytes declares with the limits. Raises LimitError, or ValueError."""
    max_pixels, max_samples = limits
    if len(shape) != 2 + len(spec.strides) or shape[2:] != spec.grid or shape[1] > len(spec.codebook_sizes):
        raise ValueError(f"codes of shape {shape} do not fit a grid of {spec.grid}")
    batch = shape[0]
    if spec.modality == "audio":
        samples, most = batch * math.prod(spec.size), min(max_samples, FREE_SAMPLES + SAMPLES_PER_BYTE * size)
        if samples > most:
            raise LimitError(f"a sound of {samples} samples is over the limit of {most} for a file of {size} bytes")
    else:
        pixels = batch * math.prod(spec.size[-2:])
        if pixels > max_pixels:
            raise LimitError(f"{pixels} pixels are over the limit of {max_pixels}; see --max-pixels")
        if spec.modality == "video" and spec.size[0] > MAX_CLIP:
            raise LimitError(f"a video of {spec.size[0]} frames is over the limit of {MAX_CLIP}")
    if math.prod(shape) > FREE_CODES + CODES_PER_BYTE * size:
        raise LimitError(f"{math.prod(shape)} codes are more than a file of {size} bytes may declare")


def parse_spec(fields: dict[str, Any]) -> TokenSpec:
    """A spec from what :func:`dataclasses.asdict` makes of it, by way of JSON.

    Raises: ValueError, TypeError or AttributeError if it is none.
    """
    from ...tokenizers.tokens import TokenSpec

    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    spec = TokenSpec(**found)
    if not all(isinstance(text, str) for text in (spec.model, spec.weights_hash, spec.modality, spec.channels)):
        raise ValueError("the spec holds a name that is no text")
    sides = (spec.size, spec.strides, spec.codebook_sizes)
    if not all(isinstance(side, tuple) for side in sides):
        raise ValueError("the spec holds a size that is no list")
    if not all(type(n) is int and 0 < n < MAX_NUMBER for side in sides for n in side):
        raise ValueError("the spec holds a size that is not positive, or too large")
    if not 1 <= len(spec.size) == len(spec.strides) <= MAX_AXES:
        raise ValueError(f"the spec has {len(spec.size)} sizes and {len(spec.strides)} strides")
    for number in (spec.sample_rate, spec.quality):
        if number is not None and (type(number) not in (int, float) or not 0 <= number < MAX_NUMBER):
            raise ValueError("the spec holds a rate or a quality that is no number")
    if spec.first is not None and not (type(spec.first) is int and 1 <= spec.first <= spec.strides[0]):
        raise ValueError("the first cell of the spec is not 1 to a stride long")
    return spec
