"""How far what a codec gives back is from its source. Each metric takes source and copy and gives one number.

Pictures are uint8 ``[H, W, 3]``, sounds float32 ``[n]`` at 24 kHz. PSNR, MS-SSIM and what is spectral need nothing
beyond the runtime dependencies, the others the `bench` extra. For pictures a missing package is an error; for sounds it
costs its metric and nothing else: :func:`choose_sound_metrics` says which.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..media.audio import resample
from ..metrics.picture import bench_extra, check_pair, ms_ssim, psnr, ssimulacra2, to_tensor
from .clips import SAMPLE_RATE, SPEECH
from .contender import chosen

if TYPE_CHECKING:
    from ..metrics.features import FeatureDistance
    from ..metrics.spectrogram import Mono


SPEECH_RATE, AUDIO_RATE = 16000, 48000  # what ViSQOL's two modes take; PESQ, STOI and DNSMOS take the first
STOI_SHORTEST = 9600  # samples at 24 kHz
DNSMOS_SAMPLES, DNSMOS_HOP = 144160, 16000  # what the network looks at: 9.01 s, every second


@dataclass(frozen=True)
class Metric:
    """``head``: of a narrow column.  ``speech``: whether it is for speech only.  ``packages``: of PyPI and as they are
    imported, where a missing one costs the metric only."""

    key: str
    title: str
    head: str
    digits: int
    higher_is_better: bool = True
    speech: bool = False
    packages: tuple[tuple[str, str], ...] = ()

    @property
    def axis(self) -> str:
        """What a chart calls it."""
        return self.title + ("" if self.higher_is_better else " (lower is better)")

    @property
    def column(self) -> tuple[str, str]:
        """Of a table, see :func:`.report.table_of`."""
        return self.head, f"{{{self.key}:.{self.digits}f}}"


# As the command line calls them, in the order of the tables.
METRICS = {
    "psnr": Metric("psnr", "PSNR, dB", "PSNR\ndB|PSNR", 2),
    "ms-ssim": Metric("ms_ssim", "MS-SSIM", "MS-\nSSIM|MS-SSIM", 4),
    "ssimulacra2": Metric("ssimulacra2", "SSIMULACRA2", "SSIMU-\nLACRA2|SSIMULACRA2", 1),
    "features": Metric("feature_distance", "feature distance (Lite2)", "feat.\ndist.|feature distance", 4, False),
}
SOUND_METRICS = {
    "visqol": Metric("visqol", "ViSQOL", "ViS-\nQOL|ViSQOL", 2, packages=(("visqol-python", "visqol"),)),
    "mel": Metric("mel_distance", "mel distance", "mel\ndist.|mel distance", 3, False),
    "stft": Metric("stft_distance", "STFT distance", "STFT\ndist.|STFT distance", 2, False),
    "pesq": Metric("pesq", "PESQ", "PESQ", 2, speech=True, packages=(("pesq", "pesq"),)),
    "stoi": Metric("stoi", "STOI", "STOI", 3, speech=True, packages=(("pystoi", "pystoi"),)),
    "dnsmos": Metric(
        "dnsmos", "DNSMOS", "DNS-\nMOS|DNSMOS", 2, speech=True,
        packages=(("speechmos", "speechmos"), ("onnxruntime", "onnxruntime")),
    ),
    "si-sdr": Metric("si_sdr", "SI-SDR, dB", "SI-\nSDR|SI-SDR, dB", 1),
}  # fmt: skip
KEYS = tuple(metric.key for metric in METRICS.values())


def choose_metrics(names: Collection[str], known: Mapping[str, Metric] = METRICS) -> list[Metric]:
    """The metrics of these names in the order of ``known``. Raises UsageError for an unknown name, or none."""
    found = chosen(names, known, "metric {}")
    if not found:
        raise UsageError(f"at least one metric is needed: choose from {', '.join(known)}")
    return [metric for name, metric in known.items() if name in found]


def choose_sound_metrics(names: Collection[str]) -> tuple[list[Metric], list[str]]:
    """As :func:`choose_metrics` of :data:`SOUND_METRICS`, without those that cannot be had here, and a note for each of
    them."""
    found, notes = [], []
    for metric in choose_metrics(names, SOUND_METRICS):
        missing = [package for package, module in metric.packages if not installed(module)]
        if missing:
            notes.append(f"no {metric.title}: {missing[0]} is missing: pip install 'tokodec[bench]'")
        else:
            found.append(metric)
    return found, notes


# --------------------------------------------------------------------------------------------------------- pictures


def measure(x: np.ndarray, x_hat: np.ndarray, keys: Collection[str], device: str = "cpu") -> dict[str, float | None]:
    """All of :data:`METRICS` by key; None for those that are not among ``keys`` and where the picture is too small.

    Args: device: where the deep features are computed; the other metrics are computed on the CPU.
    """
    return {
        "psnr": psnr(x, x_hat) if "psnr" in keys else None,
        "ms_ssim": ms_ssim(x, x_hat) if "ms_ssim" in keys else None,
        "ssimulacra2": ssimulacra2(x, x_hat) if "ssimulacra2" in keys else None,
        "feature_distance": feature_distance(x, x_hat, device) if "feature_distance" in keys else None,
    }


def feature_distance(x: np.ndarray, x_hat: np.ndarray, device: str = "cpu") -> float:
    """Distance of deep features (EfficientNet-Lite2). No LPIPS; see :class:`~..metrics.features.FeatureDistance`.

    Our models train with Lite0, another network, so that none grades itself; they are of one family, though.

    Returns: 0 to 4, lower is better, 0 for equal pictures. No unit, and no meaning beyond comparison.
    Raises:  UsageError without the `bench` extra.
    """
    import torch

    check_pair(x, x_hat)
    net = _feature_net(device)
    with torch.no_grad():
        return float(net(to_tensor(x)[None].to(device), to_tensor(x_hat)[None].to(device)))


def check_bench_extra(device: str = "cpu", keys: Collection[str] = KEYS) -> None:
    """Load what the metrics need, so that a missing package is noticed before the work. Raises UsageError."""
    if "ssimulacra2" in keys:
        with bench_extra():
            import ssimulacra2  # noqa: F401
    if "feature_distance" in keys:
        _feature_net(device)


@functools.lru_cache(maxsize=2)
def _feature_net(device: str) -> FeatureDistance:
    from ..metrics.features import FeatureDistance

    with bench_extra():
        return FeatureDistance("lite2").to(device)


# ----------------------------------------------------------------------------------------------------------- sounds


def measure_sound(x: Mono, x_hat: Mono, kind: str, metrics: Collection[Metric]) -> dict[str, float | None]:
    """Keys of all :data:`SOUND_METRICS` and their values; None for those not among ``metrics``, those that are not for
    this kind of clip, and those that the clip is too short or too quiet for. ``x``, ``x_hat``: ``[n]`` at 24 kHz."""
    if x.shape != x_hat.shape or x.ndim != 1:
        raise ValueError(f"two sounds [n] of one length are needed, got {x.shape} and {x_hat.shape}")
    keys = {metric.key for metric in metrics if kind == SPEECH or not metric.speech}
    functions = {
        "visqol": lambda: visqol(x, x_hat, kind == SPEECH),
        "mel_distance": lambda: _spectral("mel_distance", x, x_hat, SAMPLE_RATE),
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
    """Scale-invariant ratio of signal to distortion, see :func:`~..metrics.spectra.si_sdr`; decibels, higher is better.

    None for a silent source, which has no scale.
    """
    import torch

    from ..metrics.spectra import si_sdr as measure

    return None if not x.any() else measure(torch.from_numpy(x), torch.from_numpy(x_hat))


def _spectral(name: str, x: Mono, x_hat: Mono, *more: int) -> float:
    import torch

    from ..metrics import spectra

    return float(getattr(spectra, name)(torch.from_numpy(x)[None], torch.from_numpy(x_hat)[None], *more))


def _at(x: Mono, rate: int) -> Mono:
    return resample(x[None], SAMPLE_RATE, rate)[0]


def installed(module: str) -> bool:
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
