"""`EncodecModel` of `transformers`, such as facebook/encodec_24khz.

Source: Defossez et al. 2022, "High Fidelity Neural Audio Compression", arXiv:2210.13438.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        if config.audio_channels != 1:
            raise ValueError(f"{name} takes {config.audio_channels} channels at once, files code them one by one")
        super().__init__(net, name)
        self.set_rate(config.sampling_rate, config.hop_length)

    @property
    def levels(self) -> Any:
        return self.net.quantizer.layers

    def table(self, level: Any) -> Tensor:
        own: Tensor = level.codebook.embed
        return own

    def whole_frames(self, x: Tensor) -> Tensor:
        return x

    def quantize(self, z: Tensor) -> Tensor:
        codes: Tensor = self.net.quantizer.encode(z).transpose(0, 1)
        return codes

    def vectors(self, codes: Tensor) -> Iterator[Tensor]:
        return (level.decode(own) for level, own in zip(self.levels, codes.unbind(1), strict=False))

    def synthesise(self, z: Tensor) -> Tensor:
        x_hat: Tensor = self.net.decoder(z)
        return x_hat
