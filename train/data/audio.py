"""Training sounds kept decoded in memory (the GPU's, if they fit), so that a crop costs one gather."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .reading import Source, in_parallel, list_media, opened
from .store import Store
from .stream import Stream

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".opus"}
QUIETEST, LOUDEST = -35.0, -12.0  # dB of full scale: the root mean square that a crop is brought to
SILENT = 1e-4  # root mean square of what stays as quiet as it is
PEAK = 0.99
COLOURS = 7  # knots of the curve that weighs the frequencies of a crop, evenly spaced in log frequency
COLOUR_SPREAD = 4.0  # dB, standard deviation of a knot
LOWEST = 1 / 256  # of half the rate: the frequency of the first knot


def list_sounds(folders: Iterable[str | Path]) -> list[Source]:
    """All sounds below ``folders``, see :func:`~.reading.list_media`."""
    return list_media(folders, SUFFIXES, "sounds")


def read_mono(path: Source, rate: int, seconds: float = math.inf) -> Tensor:
    """One sound, or so many seconds from its beginning, as int16 ``[n]`` at ``rate``, its channels mixed.

    Raises: ValueError if it cannot be read.
    """
    import soundfile

    try:
        with soundfile.SoundFile(opened(path)) as file:
            own = file.samplerate
            frames = -1 if math.isinf(seconds) else math.ceil(seconds * own)
            samples = file.read(frames, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise ValueError(f"{path}: {error}") from error
    return resample(samples.mean(1), own, rate)


def resample(mono: np.ndarray, own: float, rate: float) -> Tensor:
    """Samples in [-1, 1] at a rate of ``own`` to int16 ``[n]`` at ``rate``."""
    import soxr

    if own != rate:
        mono = soxr.resample(mono, own, rate)
    return torch.from_numpy(np.clip(np.round(mono * 32767), -32768, 32767).astype(np.int16))


def at_speeds(sounds: Sequence[Tensor], speeds: Sequence[float]) -> list[Tensor]:
    """All sounds (int16 ``[n]``) played at every speed, pitch and all, as a tape would be; 1 leaves them as they are.

    Raises: ValueError for a speed that is not between a half and two.
    """
    if not speeds or not all(0.5 <= speed <= 2 for speed in speeds):
        raise ValueError(f"speeds are factors of 0.5 to 2, got {list(speeds)}")
    work = [(sound, speed) for speed in speeds for sound in sounds]
    return in_parallel(lambda w: w[0] if w[1] == 1 else resample(w[0].numpy() / 32768.0, w[1], 1.0), work)


class SoundStore(Store):
    """Random crops from sounds of different lengths.

    A crop begins anywhere in the set with equal chance and may run over the end of a sound into silence. It is brought
    to a random loudness, since files come in all of them; some crops are mixed with another one, some get other
    weights of their frequencies, as another microphone or room gives them, some are turned over.

    Args:
        sounds: int16 ``[n]`` each.
        size: samples of a crop.
        device, stream: see :class:`~.store.Store`.
        mixed: share of crops that another crop is added to.
        coloured: share of crops with other weights of their frequencies.
    """

    def __init__(
        self,
        sounds: Sequence[Tensor],
        size: int,
        device: torch.device | str,
        mixed: float = 0.15,
        coloured: float = 0.0,
        seed: int = 0,
        stream: Stream | None = None,
    ) -> None:
        self.size, self.mixed, self.coloured = size, mixed, coloured
        self.gap = size  # of silence
        super().__init__(sounds, device, seed, stream)

    def usable(self, medium: Tensor) -> bool:
        return len(medium) > 0

    def nothing(self) -> str:
        return "there is no sound that is not empty"

    def indexed(self, shapes: Tensor) -> None:
        # The last third of a crop may be silence at most.
        self.room = (shapes[:, 0] - 2 * self.size // 3).clamp(min=1).to(self.device)
        self.weight = self.room.double()

    def crops(self, batch: int) -> Tensor:
        """``[batch, size]`` float in [-1, 1], as they are."""
        which = torch.multinomial(self.weight, batch, replacement=True, generator=self.generator)
        share = torch.rand(batch, device=self.device, generator=self.generator, dtype=torch.float64)
        begin = self.start[which] + (share * self.room[which]).long()
        places = begin[:, None] + torch.arange(self.size, device=self.device)
        return self.buffer[places].float() / 32768

    def batch(self, batch: int) -> Tensor:
        """``[batch, 1, size]`` float in [-1, 1]."""
        self.drawn(batch)
        rand = torch.rand(5, batch, 1, device=self.device, generator=self.generator)
        x = self.crops(batch)
        if self.coloured:
            knots = torch.randn(batch, COLOURS, device=self.device, generator=self.generator)
            x = torch.where(rand[4] < self.coloured, colour(x, COLOUR_SPREAD * knots), x)
        x = level(x, QUIETEST + (LOUDEST - QUIETEST) * rand[0])
        other = level(self.crops(batch), QUIETEST + (LOUDEST - QUIETEST) * rand[1])
        x = x + torch.where(rand[2] < self.mixed, other, 0.0)
        x = torch.where(rand[3] < 0.5, -x, x)
        return (x / x.abs().amax(1, keepdim=True).clamp(min=PEAK) * PEAK)[:, None]


def level(x: Tensor, decibel: Tensor) -> Tensor:
    """Crops ``[B, n]`` brought to a root mean square of ``decibel [B, 1]`` dB; silence stays silent."""
    own = x.square().mean(1, keepdim=True).sqrt()
    return torch.where(own > SILENT, x * 10 ** (decibel / 20) / own.clamp(min=SILENT), x)


def colour(x: Tensor, decibel: Tensor) -> Tensor:
    """Crops ``[B, n]``, their frequencies weighted by a curve through ``decibel [B, knots]`` (a circular filter)."""
    spectrum = torch.fft.rfft(x)
    place = torch.linspace(0, 1, spectrum.shape[1], device=x.device).clamp(min=LOWEST).log() / -math.log(LOWEST) + 1
    place = place * (decibel.shape[1] - 1)
    below = place.long().clamp(max=decibel.shape[1] - 2)
    curve = torch.lerp(decibel[:, below], decibel[:, below + 1], place - below)
    return torch.fft.irfft(spectrum * 10 ** (curve / 20), n=x.shape[1])
