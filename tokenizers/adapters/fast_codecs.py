"""Codebooks of `transformers` that search by `nearest_codeword`, in place of theirs; see accelerate.py."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.models.dac.modeling_dac import DacVectorQuantize
from transformers.models.encodec.modeling_encodec import EncodecEuclideanCodebook
from transformers.models.mimi.modeling_mimi import MimiEuclideanCodebook

from ..quantize.nearest import nearest_codeword


class FastEncodecCodebook(EncodecEuclideanCodebook):
    def quantize(self, hidden_states: Tensor) -> Tensor:
        return nearest_codeword(hidden_states, self.embed)


class FastMimiCodebook(MimiEuclideanCodebook):
    def quantize(self, hidden_states: Tensor) -> Tensor:
        return nearest_codeword(hidden_states, self.embed)


class FastDacQuantize(DacVectorQuantize):
    def decode_latents(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        rows = hidden_states.mT.flatten(0, 1)  # [B*t, d]
        indices = nearest_codeword(rows, self.codebook.weight, "cosine").view(len(hidden_states), -1)
        return self.codebook(indices).mT, indices


FASTER = {
    EncodecEuclideanCodebook: FastEncodecCodebook,
    MimiEuclideanCodebook: FastMimiCodebook,
    DacVectorQuantize: FastDacQuantize,
}


def faster(module: Any) -> type[Any] | None:
    """The class that a module can have instead of its own, None if there is none."""
    return FASTER.get(type(module))
