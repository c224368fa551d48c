"""What users of `transformers` type before a model: waveforms and pictures in, a batch of tensors out.

::

    processor = tokodec.processor("audio-24k")
    batch = processor(waveforms, sampling_rate=24000, return_tensors="pt")
    tokens = tokenizer.encode(batch["input_values"])  # [B, 1, n]; batch["padding_mask"] is [B, n]

Arguments, defaults, shapes and errors of sounds are those of its `EncodecFeatureExtractor`; of pictures those of its
image processors without resizing and normalization, as our models take values in [0, 1] of any size.
"""

from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from .api import Tokenizer

Floats = npt.NDArray[np.float32]


class Features(UserDict[str, Any]):
    """A batch by the names of a model's inputs, which are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["data"][name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, *place: Any, **more: Any) -> Features:
        """Itself, with tensors as `Tensor.to` gives them; masks and other integers keep their type."""
        for name, value in self.data.items():
            if isinstance(value, Tensor):
                moved = value.to(*place, **more)
                self.data[name] = moved if value.is_floating_point() else moved.to(value.dtype)
        return self

    def converted(self, kind: str | None) -> Features:
        """Lists to what ``return_tensors`` asks for. Raises ValueError for another kind, or shapes that differ."""
        if kind is None:
            return self
        if kind not in ("pt", "np"):
            raise ValueError(f"return_tensors is 'pt' or 'np', got {kind!r}")
        for name, values in self.data.items():
            shapes = sorted({value.shape for value in values})
            if len(shapes) > 1:
                raise ValueError(f"{name} of shapes {', '.join(map(str, shapes))} make no tensor: make them equal")
            stacked = np.stack(values)
            self.data[name] = torch.from_numpy(stacked) if kind == "pt" else stacked
        return self


def _array(x: Any) -> npt.NDArray[Any]:
    """A tensor, an array or lists of numbers."""
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


class AudioProcessor:
    """For a tokenizer of sounds. Attributes as in `transformers`: ``sampling_rate``, ``feature_size``."""

    model_input_names: ClassVar[tuple[str, ...]] = ("input_values", "padding_mask")
    feature_size: ClassVar[int] = 1

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.sample_rate is None:
            raise ValueError(f"{tokenizer.name} has no sampling rate")
        self.name, self.sampling_rate, self.padding_value = tokenizer.name, round(tokenizer.sample_rate), 0.0

    def __call__(
        self, raw_audio: Any, padding: bool | str | None = None, truncation: bool = False,
        max_length: int | None = None, return_tensors: str | None = None, sampling_rate: int | None = None,
    ) -> Features:  # fmt: skip
        """One sound or a list of them to a batch.

        Args:
            raw_audio: ``[n]`` numbers in [-1, 1], an array, a tensor or a list of them; or a list of such.
            padding: True or "longest" (the default), "max_length", False or "do_not_pad".
            truncation: cut off what is longer than ``max_length``; not together with ``padding``.
            return_tensors: "pt" or "np"; lists of arrays if None.
            sampling_rate: that of the sounds, which is checked.

        Returns: ``input_values`` ``[B, 1, n]`` float32, and with padding ``padding_mask`` ``[B, n]`` int32, 1 where a
            sound is. What is padded is silence at the end.
        Raises:  ValueError for another rate, more than one channel, or arguments that go not together.
        """
        if sampling_rate is None:
            told = f"say sampling_rate, so that it can be checked: {self.name} wants {self.sampling_rate} Hz"
            warnings.warn(told, stacklevel=2)
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"{self.name} was trained using a sampling rate of {self.sampling_rate}: please make sure that the"
                f" audio was sampled with {self.sampling_rate} and not {sampling_rate}"
            )
        if padding and truncation:
            raise ValueError("both padding and truncation were set: only one of them goes")
        sounds = [self._checked(x) for x in self._sounds(raw_audio)]
        padding = True if padding is None and not truncation else padding
        longest = max(map(len, sounds))
        if truncation and max_length is not None:
            sounds = [x[:max_length] for x in sounds]
        if padding not in (True, "longest", "max_length"):
            if padding not in (False, None, "do_not_pad"):
                raise ValueError(f"padding is True, 'longest', 'max_length', False or 'do_not_pad', got {padding!r}")
            return Features(input_values=[x[None] for x in sounds]).converted(return_tensors)
        if padding == "max_length":
            if max_length is None:
                raise ValueError("padding='max_length' wants a max_length")
            longest = max(longest, max_length)  # what is longer stays whole
        values = [np.pad(x, (0, longest - len(x)), constant_values=self.padding_value)[None] for x in sounds]
        masks = [(np.arange(longest) < len(x)).astype(np.int32) for x in sounds]
        return Features(input_values=values, padding_mask=masks).converted(return_tensors)

    @staticmethod
    def _sounds(raw_audio: Any) -> Sequence[Any]:
        batched = isinstance(raw_audio, (list, tuple)) and len(raw_audio) > 0
        if batched and isinstance(raw_audio[0], (np.ndarray, Tensor, list, tuple)) and np.ndim(_array(raw_audio[0])):
            return raw_audio
        return [raw_audio]

    @staticmethod
    def _checked(x: Any) -> Floats:
        found = _array(x)
        if found.ndim != 1 or not found.size:
            channels = f"{found.shape[0]} channels" if found.ndim == 2 else f"the shape {found.shape}"
            raise ValueError(f"expected mono audio [n] but an example has {channels}")
        return found.astype(np.float32)


class ImageProcessor:
    """For a tokenizer of pictures: values in [0, 1], channels first; nothing is resized."""

    model_input_names: ClassVar[tuple[str, ...]] = ("pixel_values",)

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.name = tokenizer.name

    def __call__(self, images: Any, return_tensors: str | None = None, do_rescale: bool = True) -> Features:
        """One picture or a list of them to a batch.

        Args:
            images: a PIL picture of any mode, ``[H, W, 3]``, ``[3, H, W]``, or gray ``[H, W]``, as an array or a
                tensor, or a batch of them; or a list of such.
            return_tensors: "pt" or "np", for pictures of one size; lists of arrays if None.
            do_rescale: divide by 255. Of arrays that are in [0, 1] already it is to be False; PIL pictures always are.

        Returns: ``pixel_values`` ``[B, 3, H, W]`` float32.
        Raises:  ValueError for what is no picture, floats beyond 1 that are not rescaled, or floats in [0, 1] that are.
        """
        batch = images if isinstance(images, (list, tuple)) else [images]
        if len(batch) == 1 and not isinstance(batch[0], Image.Image) and _array(batch[0]).ndim == 4:
            batch = list(_array(batch[0]))
        if not len(batch):
            raise ValueError("no pictures were given")
        return Features(pixel_values=[self._pixels(x, do_rescale) for x in batch]).converted(return_tensors)

    def _pixels(self, image: Any, rescale: bool) -> Floats:
        """``[3, H, W]`` in [0, 1]."""
        if isinstance(image, Image.Image):
            return np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        found = _array(image)
        if found.ndim == 3 and found.shape[-1] in (1, 3):
            found = found.transpose(2, 0, 1)
        elif found.ndim == 2:
            found = found[None]
        if found.ndim != 3 or found.shape[0] not in (1, 3) or not found.size:
            raise ValueError(f"a picture is [H, W, 3], [3, H, W] or [H, W], got the shape {found.shape}")
        x = np.broadcast_to(found, (3, *found.shape[1:])).astype(np.float32)
        if rescale and found.dtype.kind == "f" and x.max() <= 1 and x.max() > 0:
            raise ValueError("these pixels are in [0, 1] already: do_rescale=False")
        x = x / np.float32(255) if rescale else x
        if x.min() < 0 or x.max() > 1:
            raise ValueError(f"pixels are in [0, 1] after rescaling, and these are {x.min():.4g} to {x.max():.4g}")
        return np.ascontiguousarray(x)


PROCESSORS: dict[str, type[AudioProcessor] | type[ImageProcessor]] = {"audio": AudioProcessor, "image": ImageProcessor}


def processor(model: str | Path | Tokenizer) -> AudioProcessor | ImageProcessor:
    """What makes the inputs of a tokenizer, which is given itself or as `Tokenizer.from_pretrained` takes it.

    Raises: ValueError for one of videos.
    """
    model = Tokenizer.from_pretrained(model) if isinstance(model, (str, Path)) else model
    kind = PROCESSORS.get(model.modality)
    if kind is None:
        raise ValueError(f"{model.name} is a model for {model.modality}: processors are for sounds and pictures")
    return kind(model)
