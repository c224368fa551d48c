"""Opus beside ours: libopus through PyAV, at the settings that are best for it.

What is fair to Opus here:

- Variable bit rate, the highest complexity, and below 16 kbit/s frames of 60 ms: there they score better with fewer
  bytes than the usual 20 ms; from 16 kbit/s on it is the other way round. The application "audio": on speech "voip"
  takes 1 or 2 % fewer bytes, but it filters what it codes and is worse by ViSQOL and mel distance.
- Its rate in comparisons is that of its packets alone. What a user gets is a file, whose pages take 0.5 to 0.8 kbit/s
  more; the rate of that file is reported beside it. Ours is always the whole file.
- What is decoded comes without pre-skip and padding, as long as the input, and is put where it correlates best with
  the input, within a third of a millisecond: at the low rates, where Opus resamples, it comes 5 samples of 48 kHz late.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import MediaError, UsageError
from ...media.audio import resample
from ...metrics.spectrogram import Mono
from ...settings import Setting
from ..clips import SAMPLE_RATE, Clip
from ..contender import Codec, Coded, Spec, middle

KBPS = (6.0, 8.0, 12.0, 16.0, 24.0)
OPTIONS = {"application": "audio", "vbr": "on", "compression_level": "10"}
SHORT_FRAMES = 16.0  # kbit/s from which on frames have 20 ms, and not 60
DECODED_RATE = 48000  # what Opus decodes to
SHIFT = 16  # samples at that rate: the most that a decoded sound is moved


@dataclass(frozen=True)
class Opus(Codec):
    """libopus in Ogg files, whose packets are the bytes that count."""

    name = "opus"
    kind = "peer"
    settings = tuple(Setting("kbps", rate) for rate in KBPS)

    @property
    def described(self) -> str:
        import av

        options = ", ".join(f"{key}={value}" for key, value in OPTIONS.items())
        library = ".".join(map(str, av.library_versions["libavcodec"]))
        frames = f"frames of 60 ms below {SHORT_FRAMES:g} kbit/s and of 20 ms from there on"
        version = f"libopus through PyAV {av.__version__} (libavcodec {library})"
        return f"{version}: {options}, {frames}; rates are those of its packets"

    def encode(self, clip: Clip, setting: Setting) -> Coded:
        """A sound to an Ogg file of about so many kbit/s. Raises MediaError if the library refuses."""
        import av

        buffer = io.BytesIO()
        packet_bytes = 0
        options = OPTIONS | {"frame_duration": "20" if setting.value >= SHORT_FRAMES else "60"}
        try:
            with av.open(buffer, "w", format="ogg") as container:
                stream: Any = container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono", options=options)
                stream.bit_rate = round(1000 * setting.value)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(clip.x[None]), format="flt", layout="mono")
                frame.sample_rate, frame.pts = SAMPLE_RATE, 0
                for packet in [*stream.encode(frame), *stream.encode(None)]:
                    packet_bytes += packet.size
                    container.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(f"opus cannot write {len(clip.x)} samples at {setting.label}: {error}") from error
        return Coded((buffer.getvalue(),), packet_bytes)

    def decode(self, coded: Coded, variant: str = "") -> Mono:
        """Samples ``[2 n]`` at 48 kHz, pre-skip and padding cut off; :func:`align` takes them to 24 kHz."""
        import av

        with av.open(io.BytesIO(coded.files[0]), "r") as container:
            frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        return np.concatenate(frames).astype(np.float32)

    def spec(self) -> Spec:
        return Spec("audio.opus:Opus", {}, middle(self.settings))


def find_sound_peers(names: Sequence[str]) -> list[Opus]:
    """The peers of these names. Raises UsageError for another codec than opus, or without libopus."""
    for name in names:
        if name != "opus":
            raise UsageError(f"unknown codec {name!r} to compare with: there is opus")
    if names:
        import av

        if "libopus" not in av.codecs_available:
            raise UsageError("this PyAV was built without libopus: pip install -U av")
    return [Opus()] if names else []


def align(x: Mono, x_hat: Mono) -> Mono:
    """A decoded sound ``[about 2 n]`` at 48 kHz to ``[n]`` at 24 kHz, moved to where it correlates best with ``x``.

    It is moved by at most :data:`SHIFT` samples; what is missing at an end is silence.
    """
    fine = resample(x[None], SAMPLE_RATE, DECODED_RATE)[0]
    padded = np.zeros(len(fine) + 2 * SHIFT, np.float32)
    n = min(len(x_hat), len(fine) + SHIFT)
    padded[SHIFT : SHIFT + n] = x_hat[:n]
    windows = np.lib.stride_tricks.sliding_window_view(padded, len(fine))  # [2 SHIFT + 1, 2 n]
    best = int(np.argmax(windows @ fine))
    return resample(np.ascontiguousarray(windows[best])[None], DECODED_RATE, SAMPLE_RATE)[0]
