"""Better latents for the frames of a video, found by gradient descent: `codec encode clip.mp4 --effort`.

A frame that stands alone is a picture (:mod:`...image.refine`). Of any other, what its references tell stays as it is,
and y descends on the bits of its entropy model + lambda * the squared error of the frame. Bitstream-compatible.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ....entropy.hyperprior.descent import descend
from ....entropy.hyperprior.net import QUALITY_STEPS
from ....entropy.hyperprior.relaxed import RelaxedPrior
from ....tokenizers.image.layers import STRIDE
from ....tokenizers.image.photo import rate_weight
from ....tokenizers.video.motion import Pixels, VideoMotion, Walks
from ....tokenizers.video.motion_nets import Seen
from ....tokenizers.video.motion_records import WINDOW
from ...errors import UsageError
from ...image.canvas import Canvas
from ...image.refine import Refiner


class FrameRefiner:
    """Latents of frames after ``n_steps`` of descent each.

    Raises: UsageError for frames of more than a window (2048 x 2048 pixels).
    """

    def __init__(self, model: VideoMotion, n_steps: int, size: tuple[int, int]) -> None:
        if max(size) > WINDOW * STRIDE:
            raise UsageError(
                f"effort takes frames of at most {WINDOW * STRIDE} pixels along an edge, got {size[1]} x {size[0]}"
            )
        self.model, self.n_steps = model, n_steps
        self.relaxed = RelaxedPrior(model.entropy)

    def alone(self, pixels: Pixels, latents: npt.NDArray[np.float32], walks: Walks, steps: int) -> Walks:
        """Codes that are at least as good as those of a frame ``[H, W, 3]`` that stands alone."""
        canvas = Canvas(self.model.still, pixels, latents)
        for tile, walk in walks:
            canvas.hold(tile, walk.latents)
        refiner = Refiner(canvas, self.n_steps)
        return [(tile, refiner.refine(tile, walk, steps)) for tile, walk in walks]

    def after(self, x: Tensor, seen: Seen, apart: Tensor, y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """Better latents than y, and hyper latents for them.

        Args: x: the frame, ``[1, 3, H, W]`` in [0, 1].  y: ``[1, M, h, w]`` in steps of the quantiser.
              apart, seen: see :class:`~tokodec.tokenizers.video.motion_nets.MotionNets`.  steps: quality in hundredths.
        """
        nets, config = self.model.nets, self.model.config
        quality = torch.tensor([steps / QUALITY_STEPS], device=y.device)
        with torch.no_grad():
            inverse = nets.inverse_gain(quality)
            z = nets.hyper_analysis(y)
        weight = float(rate_weight(quality, config.rate_weights)) * 255**2 / x.shape[1]

        def error(y_hat: Tensor) -> Tensor:
            latents = (y_hat[None] * inverse).contiguous(memory_format=torch.channels_last)
            return weight * (x - nets.synthesise(latents, quality, seen, apart).x).square().sum()

        def relaxed(y: Tensor, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
            return self.relaxed(y, z, steps, noise, kind=int(apart[0, 1] != 0))

        found = descend(relaxed, error, (y[0], z[0]), self.n_steps)
        return found[0][None], found[1][None]
