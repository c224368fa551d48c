"""`EncodecModel` of `transformers`, such as facebook/encodec_24khz.

Source: Defossez et al. 2022, "High Fidelity Neural Audio Compression", arXiv:2210.13438.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .audio import ResidualCodec


class Encodec(ResidualCodec):
    """Mono, one frame for the whole sound. Its nets pad the last frame themselves.

    Raises: ValueError for models that also need floats to be decoded (the loudness of chunks, as at 48 kHz), or that
            take both channels at once: neither are codes.
    """

    module = "transformers:EncodecModel"

    def __init__(self, net: Any, name: str = "encodec") -> None:
        config = net.config
        if config.normalize or config.chunk_length_s is not None:
            raise ValueError(f"{name} divides chunks by their loudness, a float that is no code: it has no files")
        super().__init__(net, name)
        self.check_mono()
        self.set_rate(config.sampling_rate, config.hop_length)

    def whole_frames(self, x: Tensor) -> Tensor:
        return x

    def quantize(self, z: Tensor) -> Tensor:
        codes: Tensor = self.net.quantizer.encode(z).transpose(0, 1)
        return codes
