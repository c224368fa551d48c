"""`image-blocks`: a picture as mean colours of blocks of 8 x 8 pixels, then what they leave over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tokens import Tokens
from .base import ImageTokenizer

BLOCK = 8


@dataclass(frozen=True)
class ImageBlocksConfig:
    steps: tuple[int, ...] = (5, 3)  # values of each colour, at every level


class ImageBlocks(ImageTokenizer):
    """A picture as colours of blocks of 8 x 8 pixels: a coarse one, and how far off it is."""

    config_class = ImageBlocksConfig
    strides = (BLOCK, BLOCK)

    def __init__(self, config: ImageBlocksConfig | None = None, name: str = "image-blocks") -> None:
        super().__init__(config or ImageBlocksConfig(), name)
        width, books = 1.0, []
        for n in self.config.steps:
            ticks = (torch.arange(n) - (n - 1) / 2) * width / n
            books.append(torch.cartesian_prod(ticks, ticks, ticks))
            width /= n
        self.books = nn.ParameterList([nn.Parameter(book, requires_grad=False) for book in books])

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return tuple(len(book) for book in self.books)

    def codewords(self) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
        return [book.detach().cpu().numpy() for book in self.books]

    def encode(self, x: Tensor) -> Tokens:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % BLOCK, 0, -height % BLOCK), mode="replicate")
        left = F.avg_pool2d(x, BLOCK).permute(0, 2, 3, 1) - 0.5  # [B, h, w, 3]
        codes = []
        for book in self.books:
            code = torch.cdist(left.flatten(1, 2), book.expand(len(x), -1, -1)).argmin(2).view(left.shape[:3])
            left = left - book[code]
            codes.append(code)
        return Tokens(torch.stack(codes, 1), self.spec((height, width)))

    def decode(self, tokens: Tokens) -> Tensor:
        self.check_tokens(tokens)
        colour = torch.full((1, 1, 1, 3), 0.5, device=self.device)
        for k, book in enumerate(self.books):
            if k < tokens.n_levels:
                code = tokens.codes[:, k]
                colour = colour + book[code.clamp_min(0)] * (code >= 0)[..., None]
        x_hat = colour.permute(0, 3, 1, 2).repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)
        height, width = tokens.spec.size
        return x_hat[..., :height, :width]
