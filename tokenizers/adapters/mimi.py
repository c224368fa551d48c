"""`MimiModel` of `transformers`, such as kyutai/mimi.

Source: Defossez et al. 2024, "Moshi: a speech-text foundation model for real-time dialogue", arXiv:2410.00037.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .audio import ResidualCodec

CONTEXT_SECONDS = 10.0  # what one layer of its transformers sees


def projected(projection: nn.Module | None, z: Tensor) -> Tensor:
    return z if projection is None else projection(z)


class Mimi(ResidualCodec):
    """Mono. The first levels (semantic) and the others (acoustic) are two residual quantizers side by side, so latents
    are those of both, one above the other."""

    module = "transformers:MimiModel"

    def __init__(self, net: Any, name: str = "mimi") -> None:
        if net.encoder is None or net.decoder is None:
            raise ValueError(f"{name} is half a model: encoder and decoder are needed")
        super().__init__(net, name)
        self.check_mono()
        self.set_rate(net.config.sampling_rate, net.config.frame_size, CONTEXT_SECONDS)

    @property
    def parts(self) -> list[Any]:
        """The two residual quantizers."""
        quantizer: Any = self.net.quantizer
        return [quantizer.semantic_residual_vector_quantizer, quantizer.acoustic_residual_vector_quantizer]

    @property
    def levels(self) -> list[Any]:
        return [level for part in self.parts for level in part.layers]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Mimi:
        super()._apply(fn, recurse)
        for level in self.levels:
            level.codebook._embed = None  # kept from its first use on, where that was
        return self

    def whole_frames(self, x: Tensor) -> Tensor:
        return x

    def latents(self, x: Tensor) -> Tensor:
        z = self.net.encoder(x).latents
        return torch.cat([projected(part.input_proj, z) for part in self.parts], 1)

    def quantize(self, z: Tensor) -> Tensor:
        codes = []
        for part, own in zip(self.parts, z.chunk(2, 1), strict=True):
            for level in part.layers:
                codes.append(level.encode(own))
                own = own - level.decode(codes[-1])
        return torch.stack(codes, 1)

    def vectors(self, codes: Tensor) -> Iterator[Tensor]:
        n_semantic = len(self.parts[0].layers)
        for k, (level, own) in enumerate(zip(self.levels, codes.unbind(1), strict=False)):
            z_q = level.decode(own)
            none = torch.zeros_like(z_q)
            yield torch.cat([z_q, none] if k < n_semantic else [none, z_q], 1)

    def synthesise(self, z: Tensor) -> Tensor:
        halves = zip(self.parts, z.chunk(2, 1), strict=True)
        both = [projected(part.output_proj, own.contiguous()) for part, own in halves]
        x_hat: Tensor = self.net.decoder(both[0] + both[1]).audio_values
        return x_hat
