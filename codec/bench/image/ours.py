"""Our side of `codec bench image`: a model, the settings of its rate dial, and its files in memory."""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ....tokenizers.api import Tokenizer
from ...contract import check_effort
from ...decode import decode_file
from ...encode import encode_file
from ...errors import UsageError
from ...models import load_model, pick_device
from ...registry import MODALITIES

QUALITIES = (0.0, 10.0, 20.0, 35.0, 50.0, 65.0, 80.0, 90.0, 100.0)


@dataclass(frozen=True)
class Setting:
    """A place of the rate dial: one of the two."""

    levels: int | None = None
    quality: float | None = None

    @property
    def value(self) -> float:
        """The number on the dial."""
        return float(self.levels or 0) if self.quality is None else self.quality

    @property
    def label(self) -> str:
        if self.quality is not None:
            return f"quality {self.quality:g}"
        return f"{self.levels} level{'s' * (self.levels != 1)}"


@dataclass(frozen=True)
class Coder:
    """Our codec, ready to run."""

    model: str  # name, folder or hub id
    name: str
    settings: tuple[Setting, ...]  # from few bytes to many
    synthesis: tuple[str, ...]  # names of the synthesis nets; one empty name if there is only one
    device: str
    effort: int = 0

    @property
    def by_levels(self) -> bool:
        """Whether the dial is a few levels and not a quality."""
        return self.settings[0].levels is not None

    @property
    def dial(self) -> str:
        """What the dial is called."""
        return "levels" if self.by_levels else "quality"


def dial_settings(tokenizer: Tokenizer, qualities: Sequence[float] | None = None) -> tuple[Setting, ...]:
    """What to measure: ``qualities`` (:data:`QUALITIES` if None) if the model's ``dial`` is "quality", else all levels.

    Raises: UsageError for a quality outside of 0 to 100, for none, and for qualities of a model whose dial is levels.
    """
    if tokenizer.dial != "quality":
        if qualities is not None:
            raise UsageError(f"the rate dial of {tokenizer.name} is its levels: leave the qualities out")
        return tuple(Setting(levels=n) for n in range(1, len(tokenizer.codebook_sizes) + 1))
    chosen = sorted(set(QUALITIES if qualities is None else qualities))
    if not chosen or not all(0 <= quality <= 100 for quality in chosen):
        raise UsageError("qualities are numbers from 0 to 100")
    return tuple(Setting(quality=quality) for quality in chosen)


def prepare(
    model: str | None,
    device: str,
    qualities: Sequence[float] | None = None,
    strict: bool = False,
    effort: int = 0,
) -> Coder:
    """Load the model and run it once, so that no measured time holds what happens only once.

    Args:   qualities: settings of a model whose dial they are.  effort: of such a model's encoder.  strict: refuse them
            for another model.
    Raises: UsageError for settings that the model lacks.
    """
    check_effort(effort)
    model = model or MODALITIES["image"].encode_model
    device = pick_device(device)
    tokenizer = load_model(model, device).tokenizer
    if tokenizer.modality != "image":
        raise UsageError(f"{tokenizer.name} is not a model for pictures")
    synthesis = getattr(tokenizer.config, "synthesis", None)
    names = tuple(synthesis) if isinstance(synthesis, (tuple, list)) else ("",)
    by_quality = tokenizer.dial == "quality"
    if strict and effort and not by_quality:
        raise UsageError(f"effort is for models whose rate dial is a quality, {tokenizer.name} has levels")
    settings = dial_settings(tokenizer, qualities if by_quality or strict else None)
    coder = Coder(model, tokenizer.name, settings, names, device, effort if by_quality else 0)
    warm_up(np.zeros((64, 64, 3), np.uint8), coder)
    return coder


def warm_up(x: np.ndarray, coder: Coder, times: int = 1) -> None:
    """Code a picture and forget it. On a GPU, kernels are chosen and recorded in the first runs at each size."""
    for _ in range(times):
        data, _ = encode_ours(x, coder, coder.settings[-1])
        for synthesis in coder.synthesis:
            decode_ours(data, coder, synthesis)


def encode_ours(
    x: np.ndarray, coder: Coder, setting: Setting | None = None, size: int | None = None
) -> tuple[bytes, float]:
    """Our file at a setting or of at most ``size`` bytes, and the seconds it took. ``x``: ``[H, W, 3]`` uint8."""
    setting = setting or Setting()
    source = io.BytesIO(b"P6\n%d %d\n255\n" % (x.shape[1], x.shape[0]) + x.tobytes())
    start = time.perf_counter()
    encoded = encode_file(
        source,
        model=coder.model,
        levels=setting.levels,
        quality=setting.quality,
        size=size,
        effort=coder.effort,
        device=coder.device,
    )
    return encoded.data, time.perf_counter() - start


def decode_ours(data: bytes, coder: Coder, synthesis: str) -> tuple[np.ndarray, float]:
    """Pixels ``[H, W, 3]`` uint8, and the seconds they took."""
    start = time.perf_counter()
    decoded = decode_file(io.BytesIO(data), model=coder.model, synthesis=synthesis or None, device=coder.device)
    return decoded.picture.pixels, time.perf_counter() - start
