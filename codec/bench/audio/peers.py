"""Sound codecs of FFmpeg beside ours, through PyAV, at the settings that are best for them.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import MediaError
from ...media.audio import resample
from ...metrics.spectrogram import Mono
from ...settings import Setting
from ..clips import SAMPLE_RATE, Clip
from ..contender import Codec, Coded, Spec, check_ffmpeg_encoder, chosen, ffmpeg_encoder, middle

SHIFT = 16  # samples of what is decoded: the most that it is moved


@dataclass(frozen=True)
class SoundPeer(Codec):
    """An encoder of FFmpeg in a container, whose packets are the bytes that count.

    Attributes:
        kbps: rates of its curve.  options: of the encoder.  changes: further ones from so many kbit/s on.
        how: what is to be said of ``changes``.  decoded_rate: samples a second that it decodes to.
    """

    name: str
    encoder: str
    container: str
    kbps: tuple[float, ...]
    options: Mapping[str, str]
    changes: tuple[tuple[float, Mapping[str, str]], ...] = ()
    how: str = ""
    decoded_rate: int = SAMPLE_RATE
    kind = "peer"

    @property
    def settings(self) -> tuple[Setting, ...]:
        return tuple(Setting("kbps", rate) for rate in self.kbps)

    @property
    def described(self) -> str:
        return f"{ffmpeg_encoder(self.encoder, self.options)}{self.how}; rates are those of its packets"

    def encode(self, clip: Clip, setting: Setting) -> Coded:
        """A sound to a file of about so many kbit/s. Raises MediaError if the library refuses."""
        import av

        buffer = io.BytesIO()
        packet_bytes = 0
        options = dict(self.options)
        for least, more in self.changes:
            options |= more if setting.value >= least else {}
        try:
            with av.open(buffer, "w", format=self.container) as container:
                stream: Any = container.add_stream(self.encoder, rate=SAMPLE_RATE, layout="mono", options=options)
                stream.bit_rate = round(1000 * setting.value)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(clip.x[None]), format="flt", layout="mono")
                frame.sample_rate, frame.pts = SAMPLE_RATE, 0
                for packet in [*stream.encode(frame), *stream.encode(None)]:
                    packet_bytes += packet.size
                    container.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(f"{self.name} cannot write {len(clip.x)} samples at {setting.label}: {error}") from error
        return Coded((buffer.getvalue(),), packet_bytes)

    def decode(self, coded: Coded, variant: str = "") -> Mono:
        """Samples at :attr:`decoded_rate`, pre-skip and padding cut off; :meth:`align` takes them to 24 kHz."""
        import av

        with av.open(io.BytesIO(coded.files[0]), "r") as container:
            frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        return np.concatenate(frames).astype(np.float32)

    def spec(self) -> Spec:
        return Spec("audio.peers:find_sound_peer", {"name": self.name}, middle(self.settings))

    def align(self, x: Mono, x_hat: Mono) -> Mono:
        """A decoded sound to ``[n]`` at 24 kHz, moved to where it correlates best with ``x [n]``.

        It is moved by at most :data:`SHIFT` samples; what is missing at an end is silence.
        """
        fine = resample(x[None], SAMPLE_RATE, self.decoded_rate)[0]
        padded = np.zeros(len(fine) + 2 * SHIFT, np.float32)
        n = min(len(x_hat), len(fine) + SHIFT)
        padded[SHIFT : SHIFT + n] = x_hat[:n]
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(fine))  # [2 SHIFT + 1, about n]
        best = int(np.argmax(windows @ fine))
        return resample(np.ascontiguousarray(windows[best])[None], self.decoded_rate, SAMPLE_RATE)[0]


SOUND_PEERS = {
    peer.name: peer
    for peer in (
        SoundPeer(
            "opus", "libopus", "ogg", (6.0, 8.0, 12.0, 16.0, 24.0),
            {"application": "audio", "vbr": "on", "compression_level": "10"},
            changes=((0.0, {"frame_duration": "60"}), (16.0, {"frame_duration": "20"})),
            how=", frames of 60 ms below 16 kbit/s and of 20 ms from there on", decoded_rate=48000,
        ),
    )
}  # fmt: skip


def find_sound_peers(names: Sequence[str]) -> list[SoundPeer]:
    """Peers by name without repetition. Raises UsageError for an unknown one, or one that this PyAV lacks."""
    return [find_sound_peer(name) for name in chosen(names, SOUND_PEERS)]


def find_sound_peer(name: str) -> SoundPeer:
    check_ffmpeg_encoder(SOUND_PEERS[name].encoder)
    return SOUND_PEERS[name]
