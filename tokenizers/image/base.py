"""What the codec asks of a tokenizer of pictures beyond :class:`~..api.Tokenizer`: one picture of bytes at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..api import Tokenizer
from ..tokens import Tokens


class ImageTokenizer(Tokenizer):
    """A tokenizer of pictures.

    The two methods here make and paint a whole picture at once; who has a way that takes bounded memory overrides them.
    """

    modality = "image"

    @torch.no_grad()
    def encode_picture(
        self, pixels: Tensor, quality: float | None = None, progress: Callable[[float], None] | None = None
    ) -> Tokens:
        """One picture ``[H, W, C]`` uint8 on the CPU, C = 1 or 3, to tokens ``[1, K, h, w]`` on the CPU.

        Args:    quality: 0 to 100, for models whose rate it sets; their default if None.
                 progress: called with the share that is done.
        """
        x = pixels.to(self.device).permute(2, 0, 1)[None].expand(-1, 3, -1, -1).float() / 255  # [1, 3, H, W]
        return self.encode(x).to("cpu")

    @torch.no_grad()
    def decode_picture(
        self,
        tokens: Tokens,
        channels: int = 3,
        synthesis: str | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Tokens ``[1, k, h, w]`` to one picture ``[H, W, channels]`` uint8 on the CPU.

        Args:    channels: 3, or 1 for the mean of the three.
                 synthesis: name of a synthesis net, for models that have several.
        Raises:  ValueError if the tokens are another model's, do not decode, or there is no such synthesis net.
        """
        self.check_one_synthesis(synthesis)
        return self.decode_tiled(tokens, channels, progress)

    @torch.no_grad()
    def decode_tiled(
        self, tokens: Tokens, channels: int = 3, progress: Callable[[float], None] | None = None
    ) -> Tensor:
        """As :meth:`decode_picture`: in tiles, if a class has a way."""
        x_hat = self.decode(tokens.to(self.device))[0]
        if channels == 1:
            x_hat = x_hat.mean(0, keepdim=True)
        return (x_hat.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu()

    def check_one_synthesis(self, synthesis: str | None) -> None:
        """Raise ValueError if a synthesis net was asked for by name."""
        if synthesis is not None:
            raise ValueError(f"{self.name} has one synthesis net only")
