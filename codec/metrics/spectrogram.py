"""Spectrograms of mono sounds as pictures."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

WINDOW, HOP = 1024, 256  # samples of a spectrogram's window, and between two of its columns
BANDS = 256  # rows of its picture: two frequencies of the FFT each
DYNAMICS = 80.0  # dB below the loudest of the original: black
QUIET = 0.0  # dB of a tone 48 dB below full scale
# Black, violet, orange, pale yellow: even steps of lightness.
COLOURS = ((0, 0, 4), (40, 11, 84), (101, 21, 110), (159, 42, 99), (212, 72, 66), (245, 125, 21), (250, 193, 39),
           (252, 255, 164))  # fmt: skip


def levels(x: Mono) -> np.ndarray:
    """Decibels ``[BANDS, t]`` float32 of a Hann window's power every HOP samples, low frequencies first."""
    padded = np.pad(x, (WINDOW // 2, WINDOW // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW).astype(np.float32)
    power = np.square(np.abs(np.fft.rfft(frames)))[:, : 2 * BANDS].reshape(len(frames), BANDS, 2).mean(2)
    return (10 * np.log10(power.T + 1e-12)).astype(np.float32)


def spectrogram(x: Mono, loudest: float | None = None) -> Image.Image:
    """A picture with a column every HOP samples, low frequencies at the bottom.

    loudest: dB of the brightest; those of ``x`` itself by default, but silence stays dark.
    """
    decibel = levels(x)[::-1]
    loudest = max(float(decibel.max()), QUIET) if loudest is None else loudest
    place = np.clip((decibel - loudest) / DYNAMICS + 1, 0, 1)
    image = Image.fromarray((255 * place).round().astype(np.uint8), "L").convert("P")
    steps = np.linspace(0, len(COLOURS) - 1, 256)
    table = np.stack([np.interp(steps, range(len(COLOURS)), channel) for channel in zip(*COLOURS, strict=True)], 1)
    image.putpalette(table.round().astype(np.uint8).tobytes())
    return image


Mono = npt.NDArray[np.float32]  # [n], full scale is -1..1
