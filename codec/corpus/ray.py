"""Tokens of columns of media, for whoever maps a callable over batches: Ray Data, Daft, Spark. It is `tokodec.ray`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..container.fields import MAX_PIXELS
from ..errors import MediaError, UsageError
from ..models import load_model, pick_device
from ..options import TokenizeOptions
from ..registry import MODALITIES
from ..tokens import check_tokenizable
from .device import Device
from .readers import MOST_PIXELS, Loaded, load, reason
from .sources import Sample
from .tally import Tally
from .token_files import parse_spec

if TYPE_CHECKING:
    from ...tokenizers.api import Tokenizer
    from ...tokenizers.tokens import Tokens

__all__ = ["Tokenize", "to_tokens"]

MEDIA = ("image", "audio", "amplitude", "bytes")  # what readers call a column of media
NAMES = ("key", "path", "name")  # and one of names, which errors tell
RATE = "sample_rate"


class Tokenize:
    """Batches of media to batches of tokens; each row has the codes that its medium has alone.

    ::

        photos = ray.data.read_images("photos", mode="RGB", include_paths=True)
        options = {"model": "image-grid"}
        tokens = photos.map_batches(tokodec.ray.Tokenize, fn_constructor_kwargs=options, concurrency=4, num_gpus=1)

    A batch is a dict of columns, arrays or lists with an entry a row. The column of media holds either

    - pictures: ``[B, H, W, 3]`` uint8, or an object array of ``[H, W, 3]`` of different sizes; ``[H, W]`` is grey;
    - sounds: ``[B, n]`` or ``[B, channels, n]``, or an object array of such; floats of full scale -1 to 1, or int16.
      Their hertz are in a column ``sample_rate``, or the same for all;
    - the bytes of whole files of any kind that the model is for.

    Args:
        model: release name, path of a folder on every machine, `hf:USER/MODEL`, or a tokenizer.
        column: name of the column of media; the first of ``MEDIA`` that is there if None.
        sample_rate: of sounds in a batch without such a column, Hz.
        on_error: "raise" for a row that cannot be tokenized; or "keep" it, without codes and with the reason in a
            column ``error``, which is "" for all others.
        levels, quality, max_pixels: see :class:`~..options.TokenizeOptions`.
        device: "auto", "cpu" or "cuda". In a worker of Ray, "auto" is the GPU that Ray gave it, or the CPU.

    Returns: (of a call) all other columns as they are, and
        codes: int32, a row's are ``[K, *grid]``, of a sound ``[signals, K, t]``; one array if all have one shape, else
            an object array.
        spec: JSON that says what the codes mean; :func:`to_tokens` makes tokens of both, for ``tokenizer.decode``.

    Raises: UsageError for a batch without media; MediaError for a row, with its name if there is a column ``key``,
            ``path`` or ``name``.
    """

    def __init__(
        self,
        model: str | Tokenizer = "image-grid",
        column: str | None = None,
        *,
        sample_rate: int | None = None,
        on_error: Literal["raise", "keep"] = "raise",
        levels: int | None = None,
        quality: float | None = None,
        max_pixels: int = MAX_PIXELS,
        device: str = "auto",
    ) -> None:
        if on_error not in ("raise", "keep"):
            raise UsageError(f'on_error is "raise" or "keep", got {on_error!r}')
        self._model = load_model(model, _own_device(device))
        self.column, self.sample_rate, self.on_error = column, sample_rate, on_error
        tokenizer = self._model.tokenizer
        self._options = TokenizeOptions(
            model=tokenizer, levels=levels, quality=quality, max_pixels=max_pixels, device=str(tokenizer.device)
        )
        check_tokenizable(tokenizer, self._options)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        column = next((name for name in (self.column and (self.column,)) or MEDIA if name in batch), None)
        if column is None:
            raise UsageError(f"no column {self.column or ' or '.join(MEDIA)}; there are {', '.join(batch) or 'none'}")
        n = len(batch[column])
        names = next((batch[name] for name in NAMES if name in batch and name != column), None)
        rates = batch[RATE] if RATE in batch else [self.sample_rate] * n
        rows = [self._row(batch[column][i], rates[i], f"row {i}" if names is None else str(names[i])) for i in range(n)]
        found = self._tokens(rows)
        if self.on_error == "raise":
            for (sample, _), tokens in zip(rows, found, strict=True):
                if isinstance(tokens, str):
                    raise MediaError(f"{sample.source}: {tokens}")
        codes, specs = zip(*map(self._columns, found), strict=True) if found else ((), ())
        made = {name: values for name, values in batch.items() if name != column}
        made |= {"codes": _stacked(codes), "spec": _objects(specs)}
        if self.on_error == "keep":
            made["error"] = _objects([tokens if isinstance(tokens, str) else "" for tokens in found])
        return made

    def _row(self, value: Any, rate: Any, name: str) -> tuple[Sample, Loaded]:
        """A medium as the readers of a corpus give it."""
        modality = self._model.tokenizer.modality
        if isinstance(value, (bytes, bytearray, memoryview)):
            held = _Held(name, name, data=bytes(value))
            return held, load(held, modality == "image", self._options.max_pixels)
        try:
            if modality not in ARRAYS:
                raise UsageError(f"{MODALITIES[modality].noun} comes as the bytes of a file")
            return Sample(name, name), ARRAYS[modality](np.asarray(value), rate)
        except Exception as error:
            return Sample(name, name), Loaded(problem=reason(error))

    def _tokens(self, rows: list[tuple[Sample, Loaded]]) -> list[Tokens | str]:
        """Tokens of rows, or the reason why there are none: pictures of one size go together."""
        results, tally, pending = iter(rows), Tally(), []
        with contextlib.closing(Device(self._model, self._options)) as device:
            while window := device.window(results, tally):
                pending += window
            return [item.result()[-1] for item in pending]

    def _columns(self, tokens: Tokens | str) -> tuple[np.ndarray, str]:
        """Codes and spec of a row; of one that failed, codes of the same rank."""
        sounds = self._model.tokenizer.modality == "audio"
        if isinstance(tokens, str):
            axes = len(self._model.tokenizer.strides) + 1 + sounds
            return np.zeros((0,) * axes, np.int32), ""
        codes = tokens.codes.numpy().astype(np.int32)
        return codes if sounds else codes[0], json.dumps(dataclasses.asdict(tokens.spec))


@dataclass(frozen=True)
class _Held(Sample):
    """A file in memory."""

    data: bytes = b""

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.data)


def _picture(pixels: np.ndarray, rate: Any) -> Loaded:
    """``[H, W, 3]``, ``[H, W, 1]`` or ``[H, W]`` uint8."""
    shaped = pixels[..., None] if pixels.ndim == 2 else pixels
    if shaped.dtype != np.uint8 or shaped.ndim != 3 or shaped.shape[2] not in (1, 3) or not shaped.size:
        raise UsageError(f"a picture is [H, W, 3] or [H, W] of uint8, got {list(pixels.shape)} of {pixels.dtype}")
    if shaped.size <= MOST_PIXELS:
        return Loaded(pixels=np.require(shaped, requirements=["C", "W"]))
    from PIL import Image

    file = io.BytesIO()  # as in files, larger ones are encoded tile by tile
    Image.fromarray(shaped if shaped.shape[2] == 3 else shaped[..., 0]).save(file, "PPM")
    file.seek(0)
    return Loaded(data=file)


def _sound(samples: np.ndarray, rate: Any) -> Loaded:
    """``[channels, n]`` or ``[n]``, as a file that keeps all bits."""
    import soundfile

    whole = samples.dtype == np.int16
    if not (whole or samples.dtype.kind == "f") or samples.ndim not in (1, 2) or not samples.size:
        shape = list(samples.shape)
        raise UsageError(f"a sound is [channels, n] or [n] of floats or int16, got {shape} of {samples.dtype}")
    if rate is None:
        raise UsageError(f"a sound wants its hertz: a column {RATE}, or Tokenize(..., sample_rate=)")
    file = io.BytesIO()
    samples = np.atleast_2d(samples if whole else samples.astype(np.float32)).T
    soundfile.write(file, samples, int(rate), "PCM_16" if whole else "FLOAT", format="WAV")
    file.seek(0)
    return Loaded(data=file)


ARRAYS = {"image": _picture, "audio": _sound}  # what arrays may hold, by the modality of the model


def to_tokens(codes: np.ndarray, spec: str) -> Tokens:
    """Tokens of a row's ``codes`` and ``spec``, for ``tokenizer.decode``. Raises ValueError if they do not fit."""
    import torch

    from ...tokenizers.tokens import Tokens

    meaning = parse_spec(json.loads(spec))
    numbers = torch.from_numpy(np.asarray(codes).astype(np.int64))
    return Tokens(numbers if numbers.ndim == 2 + len(meaning.strides) else numbers[None], meaning)


def _own_device(device: str) -> str:
    """In a worker of Ray, "auto" is the GPU that it was given; others that it may see are not its own."""
    ray = sys.modules.get("ray")
    if device == "auto" and ray is not None and ray.is_initialized():
        context = ray.get_runtime_context()
        if context.get_task_id() is not None or context.get_actor_id() is not None:
            return "cuda" if context.get_accelerator_ids().get("GPU") else "cpu"
    return pick_device(device)


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One array if all have one shape, else an object array."""
    if len({array.shape for array in arrays}) == 1:
        return np.stack(arrays)
    return _objects(arrays)


def _objects(values: Sequence[Any]) -> np.ndarray:
    column = np.empty(len(values), object)
    for i, value in enumerate(values):
        column[i] = value
    return column
