"""`VQModel` of `diffusers`: a VQGAN with one codebook.

Source: Esser et al. 2021, "Taming Transformers for High-Resolution Image Synthesis", arXiv:2012.09841.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..precision import whole_float32
from .base import AdaptedImage, ForeignFolder


class VQGAN(ForeignFolder, AdaptedImage):
    """Pixels are -1 to 1 for its nets. They normalize over the whole picture, so it is never cut into tiles."""

    module, extra = "diffusers:VQModel", "diffusers"
    file = "diffusion_pytorch_model.safetensors"
    pixels = (-1.0, 1.0)

    def __init__(self, net: Any, name: str = "vqgan") -> None:
        config = net.config
        if config.in_channels != 3 or config.out_channels != 3:
            raise ValueError(f"{name} makes pictures of {config.out_channels} channels, files have 3")
        super().__init__(net, name)
        stride = 2 ** (len(config.block_out_channels) - 1)
        self.strides = (stride, stride)

    @classmethod
    def float32(cls) -> dict[str, Any]:
        return {"torch_dtype": torch.float32}

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.net.quantize.n_e,)

    def codewords(self) -> list[npt.NDArray[np.float32]]:
        return [self.net.quantize.embedding.weight.detach().float().cpu().numpy()]

    def encode_codes(self, x: Tensor) -> Tensor:
        with whole_float32(self.device):
            z = self.net.encode(self.to_net(x)).latents
            indices: Tensor = self.net.quantize(z)[2][2]
        return indices.reshape(len(z), 1, *z.shape[2:])

    def decode_codes(self, codes: Tensor) -> Tensor:
        own = codes[:, 0]
        with whole_float32(self.device):
            z_q = self.net.quantize.embedding(own.clamp_min(0)).movedim(3, 1)
            z_q = torch.where((own >= 0)[:, None], z_q, 0.0)
            # as its `decode` after the codes are chosen
            spatial = z_q if self.net.config.norm_type == "spatial" else None
            return self.from_net(self.net.decoder(self.net.post_quant_conv(z_q), spatial))
