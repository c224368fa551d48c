"""`text-bytes`: a text is its bytes in UTF-8, which is what language models without a vocabulary read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..api import Tokenizer
from ..tokens import Tokens


@dataclass(frozen=True)
class TextBytesConfig:
    """Nothing to choose."""


class TextBytes(Tokenizer):
    """Bytes ``[B, n]`` uint8 to codes ``[B, 1, n]`` and back."""

    config_class = TextBytesConfig
    modality = "text"
    strides = (1,)
    channels = ("utf-8",)

    def __init__(self, config: TextBytesConfig | None = None, name: str = "text-bytes") -> None:
        super().__init__(config or TextBytesConfig(), name)
        self.book = nn.Parameter(torch.arange(256.0)[:, None], requires_grad=False)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (256,)

    def encode(self, x: Tensor) -> Tokens:
        return Tokens(x[:, None].long(), self.spec((x.shape[1],)))

    def decode(self, tokens: Tokens) -> Tensor:
        self.check_tokens(tokens)
        return tokens.codes[:, 0].clamp_min(0).byte()
