"""How far a decoded sound is from its source, or how it sounds by itself. Each metric gives one number a clip.

Packages that are missing cost their metric and nothing else: :func:`choose_sound_metrics` says which.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UsageError
from ..media.audio import resample
from ..metrics.spectrogram import Mono
from .clips import RATE, SPEECH

SPEECH_RATE, AUDIO_RATE = 16000, 48000  # what ViSQOL's two modes take; PESQ, STOI and DNSMOS take the first
STOI_SHORTEST = 9600  # samples at 24 kHz
DNSMOS_SAMPLES, DNSMOS_HOP = 144160, 16000  # what the network looks at: 9.01 s, every second


@dataclass(frozen=True)
class SoundMetric:
    """``packages``: of PyPI and as they are imported.  ``speech``: whether it is for speech only."""

    key: str
    title: str
    digits: int
    higher_is_better: bool
    speech: bool = False
    packages: tuple[tuple[str, str], ...] = ()


# As the command line calls them, in the order of the tables.
SOUND_METRICS = {
    "visqol": SoundMetric("visqol", "ViSQOL", 2, True, packages=(("visqol-python", "visqol"),)),
    "mel": SoundMetric("mel_distance", "mel distance", 3, False),
    "stft": SoundMetric("stft_distance", "STFT distance", 2, False),
    "pesq": SoundMetric("pesq", "PESQ", 2, True, speech=True, packages=(("pesq", "pesq"),)),
    "stoi": SoundMetric("stoi", "STOI", 3, True, speech=True, packages=(("pystoi", "pystoi"),)),
    "dnsmos": SoundMetric(
        "dnsmos", "DNSMOS", 2, True, speech=True,
        packages=(("speechmos", "speechmos"), ("onnxruntime", "onnxruntime")),
    ),
    "si-sdr": SoundMetric("si_sdr", "SI-SDR, dB", 1, True),
}  # fmt: skip


def choose_sound_metrics(names: Collection[str]) -> tuple[list[SoundMetric], list[str]]:
    """The metrics of these names in the order of :data:`SOUND_METRICS`, and a note for each that cannot be had here.

    Raises: UsageError for an unknown name, or none.
    """
    for name in names:
        if name not in SOUND_METRICS:
            raise UsageError(f"unknown metric {name!r}: choose from {', '.join(SOUND_METRICS)}")
    if not names:
        raise UsageError(f"at least one metric is needed: choose from {', '.join(SOUND_METRICS)}")
    found, notes = [], []
    for name, metric in SOUND_METRICS.items():
        if name in names:
            missing = [package for package, module in metric.packages if not _there(module)]
            if missing:
                notes.append(f"no {metric.title}: {missing[0]} is missing: pip install 'tokodec[bench]'")
            else:
                found.append(metric)
    return found, notes


def measure_sound(x: Mono, x_hat: Mono, kind: str, metrics: Collection[SoundMetric]) -> dict[str, float | None]:
    """Keys of all :data:`SOUND_METRICS` and their values; None for those not among ``metrics``, those that are not for
    this kind of clip, and those that the clip is too short or too quiet for. ``x``, ``x_hat``: ``[n]`` at 24 kHz."""
    if x.shape != x_hat.shape or x.ndim != 1:
        raise ValueError(f"two sounds [n] of one length are needed, got {x.shape} and {x_hat.shape}")
    keys = {metric.key for metric in metrics if kind == SPEECH or not metric.speech}
    functions = {
        "visqol": lambda: visqol(x, x_hat, kind == SPEECH),
        "mel_distance": lambda: _spectral("mel_distance", x, x_hat, RATE),
        "stft_distance": lambda: _spectral("stft_distance", x, x_hat),
        "pesq": lambda: pesq(x, x_hat),
        "stoi": lambda: stoi(x, x_hat),
        "dnsmos": lambda: dnsmos(x_hat),
        "si_sdr": lambda: si_sdr(x, x_hat),
    }
    return {key: function() if key in keys else None for key, function in functions.items()}


def visqol(x: Mono, x_hat: Mono, speech: bool) -> float | None:
    """ViSQOL's mean opinion score, of its speech mode (16 kHz) or its audio mode (48 kHz).

    Returns: 1 to 5, higher is better: 5.0 for equal sounds in speech mode, 4.73 in audio mode; numbers of the two modes
             do not compare. None for sounds that are silent, or too short for one of its patches.
    Source:  Chinen et al. 2020 (arXiv:2004.09584), v3.3.3 in the port `visqol-python`. Speech similarity is mapped to a
             score by the exponential fit (``--use_lattice_model=false`` there): the lattice needs a TFLite runtime.
    """
    rate = SPEECH_RATE if speech else AUDIO_RATE
    pair = (_at(sound, rate).astype(np.float64) for sound in (x, x_hat))
    try:
        score = float(_visqol(speech).measure_from_arrays(*pair, rate).moslqo)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return score if math.isfinite(score) else None


def pesq(x: Mono, x_hat: Mono) -> float | None:
    """PESQ, wideband.

    Returns: 1.0 to 4.64 (equal sounds), higher is better; None where it hears no speech, and below a quarter of a
             second.
    Source:  ITU-T P.862.2 in the package `pesq`.
    """
    from pesq import BufferTooShortError, NoUtterancesError
    from pesq import pesq as measure

    if not (x.any() and x_hat.any()):  # it would divide by zero
        return None
    try:
        return float(measure(SPEECH_RATE, _at(x, SPEECH_RATE), _at(x_hat, SPEECH_RATE), "wb"))
    except (NoUtterancesError, BufferTooShortError):
        return None


def stoi(x: Mono, x_hat: Mono) -> float | None:
    """Short-time objective intelligibility.

    Returns: 0 to 1 (equal sounds), higher is better; None for silence, and for less than 30 frames of sound, 0.4 s
             beside its pauses.
    Source:  Taal et al. 2011 (doi:10.1109/TASL.2011.2114881) in the package `pystoi`.
    """
    from pystoi import stoi as measure

    if len(x) < STOI_SHORTEST or not x.any():
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Not enough STFT frames", category=RuntimeWarning)
        try:
            return float(measure(_at(x, SPEECH_RATE), _at(x_hat, SPEECH_RATE), SPEECH_RATE))
        except RuntimeWarning:
            return None


def dnsmos(x_hat: Mono) -> float:
    """DNSMOS P.835, overall: what a listener would say of a recording, guessed without its source.

    Returns: 1 to 5, higher is better; the mean over windows of 9.01 s, a second apart. Shorter sounds are repeated.
    Source:  Reddy et al. 2022 (arXiv:2110.01763): the network and polynomial of the package `speechmos`, whose own code
             would need librosa.
    """
    sound = _at(x_hat, SPEECH_RATE).clip(-1, 1)
    while len(sound) < DNSMOS_SAMPLES:
        sound = np.concatenate([sound, sound])
    starts = range(0, len(sound) - DNSMOS_SAMPLES + 1, DNSMOS_HOP)
    session = _dnsmos_session()
    raw = [session.run(None, {"input_1": sound[None, s : s + DNSMOS_SAMPLES]})[0][0][2] for s in starts]
    return float(np.mean([-0.06766283 * r**2 + 1.11546468 * r + 0.04602535 for r in raw]))


def si_sdr(x: Mono, x_hat: Mono) -> float | None:
    """Scale-invariant ratio of signal to distortion, see :func:`~.spectra.si_sdr`; decibels, higher is better. None for
    a silent source, which has no scale."""
    import torch

    from ..metrics.spectra import si_sdr as measure

    return None if not x.any() else measure(torch.from_numpy(x), torch.from_numpy(x_hat))


def _spectral(name: str, x: Mono, x_hat: Mono, *more: int) -> float:
    import torch

    from ..metrics import spectra

    return float(getattr(spectra, name)(torch.from_numpy(x)[None], torch.from_numpy(x_hat)[None], *more))


def _at(x: Mono, rate: int) -> Mono:
    return resample(x[None], RATE, rate)[0]


def _there(module: str) -> bool:
    """Whether a module can be imported. speechmos is only looked for: its own code is not used, see :func:`dnsmos`."""
    try:
        if module == "speechmos":
            return importlib.util.find_spec(module) is not None
        importlib.import_module(module)
    except (ImportError, ValueError):
        return False
    return True


@functools.lru_cache(maxsize=2)
def _visqol(speech: bool) -> Any:
    from visqol import VisqolApi

    api = VisqolApi()
    if speech:
        api.create(mode="speech", use_lattice_model=False)
    else:
        api.create(mode="audio")
    return api


@functools.lru_cache(maxsize=1)
def _dnsmos_session() -> Any:
    import onnxruntime

    spec = importlib.util.find_spec("speechmos")
    assert spec is not None
    assert spec.submodule_search_locations
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    path = Path(spec.submodule_search_locations[0]) / "dnsmos_models" / "sig_bak_ovr.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
