"""`image-grid`: a picture becomes a grid of residual SimVQ codes (or another quantizer's), one cell for 16 x 16 pixels.

::

    x [B,3,H,W] -> g_a -> z_e [B,D,h,w] -> residual SimVQ -> codes [B,K,h,w]      h = ceil(H/16), w = ceil(W/16)
    codes[:, :k] -> sum of codewords z_q [B,D,h,w] -> g_s -> x_hat [B,3,H,W]      any prefix k = 1..K of the levels

The analysis net g_a and the synthesis nets g_s obey the locality rule: convolutions only, nothing normalises or
attends over the whole picture. So a tile with a margin of :attr:`ImageGrid.analysis_halo` cells gives the codes of
the whole.

One set of codes, two synthesis nets: "faithful" minimises squared error, "sharp" is tuned on deep features and against
a discriminator with g_a frozen, and invents plausible texture where the bits did not pay for the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..api import Output
from ..inputs import check_pixels, to_pictures
from ..precision import whole_float32
from ..quantizers import Section, checked_section, make_quantizer
from ..tokens import Tokens
from .base import ImageTokenizer
from .layers import PATCH, STRIDE, ResidualGrid, blocks, channels_last
from .tiling import decode_tiled, encode_tiled


@dataclass(frozen=True)
class ImageGridConfig:
    """Sizes of an :class:`ImageGrid`."""

    channels: tuple[int, ...] = (96, 192, 320)  # width at strides 4, 8, 16
    analysis_blocks: tuple[int, ...] = (2, 4, 2)  # residual blocks at strides 4, 8, 16
    synthesis_blocks: tuple[int, ...] = (2, 4, 3)
    dim: int = 32  # D of the codewords
    codebook_sizes: tuple[int, ...] = (16384, 4096, 4096, 4096)  # N of every level, coarse to fine
    synthesis: tuple[str, ...] = ("faithful", "sharp")  # names of the synthesis nets; the first is the default
    quantizer: Section | None = None  # see ..quantizers; None: rvq. dim and codebook_sizes become its own

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.analysis_blocks) == len(self.synthesis_blocks) == 3:
            raise ValueError("channels and blocks have three entries each, for strides 4, 8 and 16")
        if not self.synthesis or not self.codebook_sizes:
            raise ValueError("at least one synthesis net and one codebook are needed")
        if self.quantizer is not None:
            object.__setattr__(self, "quantizer", checked_section(self.quantizer))


def analysis_net(config: ImageGridConfig) -> nn.Sequential:
    """g_a: ``[B, 3, 16h, 16w] -> [B, D, h, w]``."""
    c4, c8, c16 = config.channels
    n4, n8, n16 = config.analysis_blocks
    return nn.Sequential(
        nn.PixelUnshuffle(PATCH),  # [B, 48, 4h, 4w]
        nn.Conv2d(3 * PATCH**2, c4, 3, padding=1),
        *blocks(c4, n4),
        nn.Conv2d(c4, c8, 2, stride=2),  # [B, c8, 2h, 2w]
        *blocks(c8, n8),
        nn.Conv2d(c8, c16, 2, stride=2),  # [B, c16, h, w]
        *blocks(c16, n16),
        nn.Conv2d(c16, config.dim, 1),
    )


def synthesis_net(config: ImageGridConfig) -> nn.Sequential:
    """g_s: ``[B, D, h, w] -> [B, 3, 16h, 16w]``."""
    c4, c8, c16 = config.channels
    n4, n8, n16 = config.synthesis_blocks
    return nn.Sequential(
        nn.Conv2d(config.dim, c16, 3, padding=1),  # [B, c16, h, w]
        *blocks(c16, n16),
        nn.Conv2d(c16, 4 * c8, 1),
        nn.PixelShuffle(2),  # [B, c8, 2h, 2w]
        *blocks(c8, n8),
        nn.Conv2d(c8, 4 * c4, 1),
        nn.PixelShuffle(2),  # [B, c4, 4h, 4w]
        *blocks(c4, n4),
        nn.Conv2d(c4, 3 * PATCH**2, 3, padding=1),
        nn.PixelShuffle(PATCH),
    )


class ImageGrid(ResidualGrid, ImageTokenizer):
    """Convolutional tokenizer of pictures, stride 16, whose rate is a number of levels of its quantizer."""

    config_class = ImageGridConfig
    int8_weights = ("analysis.", "synthesis.")
    int8_largest = 27
    int8_codebooks = 127
    modality = "image"
    strides = (STRIDE, STRIDE)

    config: ImageGridConfig

    def __init__(self, config: ImageGridConfig | None = None, name: str = "image-grid") -> None:
        super().__init__(config or ImageGridConfig(), name)
        config = self.config
        quantizer = make_quantizer(config.quantizer or "rvq", dim=config.dim, codebook_sizes=config.codebook_sizes)
        config = replace(config, dim=quantizer.dim, codebook_sizes=quantizer.codebook_sizes)
        self.config = config
        self.analysis = analysis_net(config)
        self.quantizer = quantizer
        self.synthesis = nn.ModuleDict({name: synthesis_net(config) for name in config.synthesis})
        channels_last(self)

    def forward(self, x: Tensor, synthesis: str | None = None) -> Output:
        """Pictures ``[B, 3, H, W]`` through the nets with straight-through gradients: see
        :meth:`..api.Tokenizer.forward`. synthesis: as in :meth:`decode`."""
        net = self.synthesis[self.check_synthesis(synthesis)]
        x = to_pictures(x, self.device)
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        out = self.quantizer(self.analysis((2 * x - 1).contiguous(memory_format=torch.channels_last)))
        x_hat = (net(out.z_q.contiguous(memory_format=torch.channels_last)).float() + 1) / 2
        return Output.of(x_hat[..., :height, :width], out)

    @torch.no_grad()
    def encode(self, x: Tensor, levels: int | None = None) -> Tokens:
        """Pictures ``[B, 3, H, W]`` in [0, 1], any H and W, to tokens ``[B, levels, ceil(H/16), ceil(W/16)]``.

        Args:    x: of any floating-point type, or uint8.  levels: 1..K, sets the rate; all by default.
        Raises:  ValueError for other shapes, types or ranges (see :mod:`..inputs`), or an empty picture.
        """
        x = to_pictures(x, self.device)
        check_pixels(x)
        return Tokens(self.encode_codes(x, levels), self.spec(tuple(x.shape[2:])))

    @torch.no_grad()
    def encode_codes(self, x: Tensor, levels: int | None = None) -> Tensor:
        """Codes of :meth:`encode`, by tensors alone; values of ``x`` are not looked at."""
        self.require_float32()
        x = to_pictures(x, self.device)
        height, width = x.shape[2:]
        # Replicated borders cost fewer bits than black ones; decoding cuts them off again.
        x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
        return self.quantizer.search(self.latents(x), self.check_levels(levels))

    def latents(self, x: Tensor) -> Tensor:
        """Analysis only: ``x [B, 3, 16h, 16w]`` in [0, 1] to ``z_e [B, D, h, w]``."""
        with whole_float32(self.device):
            return self.analysis((2 * x - 1).contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def decode(self, tokens: Tokens, synthesis: str | None = None) -> Tensor:
        """Tokens to pictures ``[B, 3, H, W]`` in [0, 1].

        Args:    synthesis: "faithful" or "sharp"; the first of the configuration by default.
        Raises:  ValueError if the tokens are another model's or there is no such synthesis net.
        """
        self.check_tokens(tokens)
        return self.decode_codes(tokens.codes.to(self.device), tokens.spec.size, synthesis)

    @torch.no_grad()
    def decode_codes(self, codes: Tensor, size: Sequence[int] | None = None, synthesis: str | None = None) -> Tensor:
        """Codes ``[B, k, h, w]`` to pictures ``[B, 3, H, W]`` in [0, 1], by tensors alone.

        Args:    size: (H, W); of whole cells, ``(16 h, 16 w)``, if None.
        """
        self.require_float32()
        height, width = (None, None) if size is None else size
        return self.pixels(codes, synthesis)[..., :height, :width]

    @torch.no_grad()
    def pixels(self, codes: Tensor, synthesis: str | None = None) -> Tensor:
        """Codes ``[B, k, h, w]`` to pixels ``[B, 3, 16h, 16w]`` in [0, 1]."""
        net = self.synthesis[self.check_synthesis(synthesis)]
        with whole_float32(self.device):
            z_q = self.quantizer.decode(codes).to(next(net.parameters()).dtype)  # [B, D, h, w], float32 before
            z_q = z_q.contiguous(memory_format=torch.channels_last)
            return ((net(z_q) + 1) / 2).clamp(0, 1)

    def encode_picture(
        self, pixels: Tensor, quality: float | None = None, progress: Callable[[float], None] | None = None
    ) -> Tokens:
        return encode_tiled(self, pixels, progress=progress)

    def decode_picture(
        self,
        tokens: Tokens,
        channels: int = 3,
        synthesis: str | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        self.check_synthesis(synthesis)
        return decode_tiled(self, tokens, channels, synthesis, progress=progress)

    def check_synthesis(self, synthesis: str | None) -> str:
        if synthesis is None:
            return self.config.synthesis[0]
        if synthesis not in self.synthesis:
            raise ValueError(f"no synthesis net {synthesis!r}; {self.name} has {', '.join(self.config.synthesis)}")
        return synthesis
