"""EnCodec and DAC for 24 kHz, for the clock: the networks of the package `transformers` with random weights.

The published weights are not needed for that, since a network takes the same time with any. Weight normalisation is
folded into the weights, as one does before inference. Codes are not entropy-coded, which would take more time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.utils import parametrize

from ...metrics.spectrogram import Mono
from ...settings import Setting
from ..clips import SAMPLE_RATE, Clip
from ..contender import Codec, Coded, Spec, chosen
from ..metrics import installed

CODEBOOKS = 4  # of 1024 codewords, 75 times a second: 3 kbit/s
# EnCodec 24 kHz is what EncodecConfig() says (Defossez et al. 2022, arXiv:2210.13438). DAC 24 kHz: conf/final/24khz.yml
# of github.com/descriptinc/descript-audio-codec (Kumar et al. 2023, arXiv:2306.06546).
DAC: dict[str, Any] = {
    "encoder_hidden_size": 64, "downsampling_ratios": [2, 4, 5, 8], "decoder_hidden_size": 1536,
    "upsampling_ratios": [8, 5, 4, 2], "n_codebooks": 32, "codebook_size": 1024, "codebook_dim": 8,
    "hop_length": 320, "sampling_rate": SAMPLE_RATE,
}  # fmt: skip
SOUND_BASELINES = {
    "encodec": f"EnCodec 24 kHz (transformers), {CODEBOOKS} codebooks, random weights: times only",
    "dac": f"DAC 24 kHz (transformers), {CODEBOOKS} of 32 codebooks, random weights: times only",
}


@dataclass(frozen=True)
class SoundBaseline(Codec):
    """A network that is ready to code sounds."""

    name: str
    net: Any
    device: str
    kind = "baseline"
    settings = (Setting("codebooks", CODEBOOKS),)

    @property
    def described(self) -> str:
        return SOUND_BASELINES[self.name]

    @torch.inference_mode()
    def encode(self, clip: Clip, setting: Setting) -> Coded:
        """Codes ``[codebooks, ceil(n / 320)]`` as int16; DAC leaves out a last frame that is not whole."""
        signal = torch.from_numpy(clip.x).to(self.device)[None, None]
        if self.name == "encodec":
            codes = self.net.encode(signal, bandwidth=0.75 * CODEBOOKS).audio_codes[0]  # [1, K, t]
        else:
            codes = self.net.encode(signal, n_quantizers=CODEBOOKS).audio_codes
        return Coded.of(codes[0].cpu().numpy().astype(np.int16).tobytes())

    @torch.inference_mode()
    def decode(self, coded: Coded, variant: str = "") -> Mono:
        """Samples ``[about 320 t]``."""
        codes = np.frombuffer(coded.files[0], np.int16).astype(np.int64).reshape(1, CODEBOOKS, -1)
        batch = torch.from_numpy(codes).to(self.device)
        if self.name == "encodec":
            x_hat = self.net.decode(batch[None], [None]).audio_values
        else:
            x_hat = self.net.decode(audio_codes=batch).audio_values
        return x_hat.reshape(-1).cpu().numpy()

    def spec(self) -> Spec:
        arguments = {"name": self.name, "device": self.device}
        return Spec("audio.neural:load_sound_baseline", arguments, self.settings[0])


def find_sound_baselines(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names without repetition, and a note if `transformers` cannot be imported; then no name is left.

    Raises: UsageError for an unknown name.
    """
    found = chosen(names, SOUND_BASELINES, "baseline {}")
    if found and not installed("transformers"):
        return [], [f"no {', '.join(found)}: transformers is missing: pip install 'tokodec[baselines]'"]
    return found, []


def load_sound_baseline(name: str, device: str) -> SoundBaseline:
    """The network with random weights of seed 0."""
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: Any = EncodecModel(EncodecConfig()) if name == "encodec" else DacModel(DacConfig(**DAC))
    for module in net.modules():
        if parametrize.is_parametrized(module):
            for parameter in list(module.parametrizations):
                parametrize.remove_parametrizations(module, parameter)
    return SoundBaseline(name, net.eval().to(device), device)
