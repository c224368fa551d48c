"""VMAF of some frames of a clip, by the package vmaf-torch. The FFmpeg of PyAV's wheels has no filter for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...media.read_video import Pixels, untagged_matrix
from ...media.write_video import yuv_frame
from ..clips import Video
from ..metrics import Metric, installed

VMAF = Metric("vmaf", "VMAF", "VMAF", 1, packages=(("vmaf-torch", "vmaf_torch"),))
SMALLEST = 48  # pixels a side: below, the coarsest scale has no room for its filters


class VmafClip:
    """The frames of a clip that others are measured against, every ``every``-th of them.

    Source: Li et al., Netflix 2016, model v0.6.1, in the package `vmaf-torch` (arXiv:2310.15578): luma of 8 bits in
            limited range, the motion of a frame from its neighbours in the clip. It is made for 1080 lines looked at
            from three times their height: figures of small clips compare with each other only.
    """

    def __init__(self, clip: Video, every: int, device: str) -> None:
        from vmaf_torch import VMAF as Net

        self.clip, self.every, self.device = clip, every, device
        self.small = min(clip.height, clip.width) < SMALLEST
        self.net: Any = Net(clip_score=True).to(device).eval()
        self.motion = torch.zeros(len(clip.frames), 1, device=device)
        if len(clip.frames) > 1 and not self.small:
            with torch.no_grad():
                self.motion = self.net.compute_motion2(self._luma(clip.frames))

    def score(self, x_hat: Sequence[Pixels], step: int = 1) -> float | None:
        """Mean over some of the frames. x_hat: every ``step``-th frame of the clip as a codec gives it back.

        Returns: 0 to 100 (equal frames have 97 and more), higher is better; None for frames of less than 48 pixels a
                 side.
        """
        if self.small:
            return None
        found = []
        for i in range(0, len(x_hat), self.every):
            at = i * step
            x, y = self._luma(self.clip.frames[at : at + 1]), self._luma([x_hat[i]])
            with torch.no_grad():
                adm, vif = self.net.compute_adm_score(x, y), self.net.compute_vif_features(x, y)
                found.append(float(self.net.predict(adm, self.motion[at : at + 1], vif)))
        return float(np.mean(found))

    def _luma(self, frames: Sequence[Pixels] | Pixels) -> Tensor:
        """``[n, 1, H, W]``, 16 to 235."""
        matrix = untagged_matrix(self.clip.height, self.clip.width)
        planes = [yuv_frame(np.ascontiguousarray(pixels), "yuv444p", matrix).to_ndarray()[0] for pixels in frames]
        return torch.from_numpy(np.stack(planes)).to(self.device, torch.float32)[:, None]


def vmaf_missing() -> str | None:
    """A note if the package is not there."""
    return None if installed("vmaf_torch") else "no VMAF: vmaf-torch is missing: pip install 'tokodec[bench]'"
