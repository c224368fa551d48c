"""Better codes for one clip, found by gradient descent: `codec encode clip.mp4 --effort`. Bitstream-compatible.

The analysis net gives latents that are good on average over clips. From there the latents of a segment descend on the
squared error of its frames, seen half as they are and half as the codebooks would have them::

    frames -> g_a -> z -> (z + nearest codewords) / 2 -> g_s -> squared error
                     '--- codes as ever, of what it came to

As :mod:`..image.refine` for photographs, with the quantizer itself in the loop instead of noise: straight-through
gradients. What comes out is taken only if its real bits are worth its real error, of decoded 8-bit frames, by the
exchange rate of a Gaussian source: half a bit a latent for each halving of the error.

Source: Campos et al. 2019, "Content adaptive optimization for neural image compression", arXiv:1906.01223.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...tokenizers.api import Tokenizer
from ...tokenizers.image.layers import STRIDE
from ...tokenizers.tokens import Tokens
from ...tokenizers.video.causal import PerFrame
from ...tokenizers.video.grid import GROUP, StreamingVideoEncoder, VideoGrid
from ..errors import UsageError

if TYPE_CHECKING:
    from ..media.read_video import Pixels
    from ..models import Model


RATE = 0.05  # of learning, as a part of the root mean square of the latents
LAST_RATE = 0.2  # of that, in the last step
BETAS = (0.8, 0.95)
HELD = 0.5  # how much of a latent is its codewords while it descends
MOST_PIXELS = 1280 * 736  # of a frame: gradients take memory, see RefinedEncoder


def check_refinable(tokenizer: Tokenizer) -> VideoGrid:
    """Raises UsageError if a model has no latents that this could refine."""
    if not isinstance(tokenizer, VideoGrid):
        raise UsageError(f"effort is not an option of {tokenizer.name}")
    return tokenizer


class RefinedEncoder:
    """Codes of a segment's frames, which come one by one, all of them with the last: as
    :class:`~tokodec.tokenizers.video.tiling.FrameEncoder`, only that they are better and take their time.

    Args:    levels: of the codes, all if None.  n_steps: gradient steps.  progress: called with the share that is done.
    Raises:  UsageError for frames that are too large.
    Memory:  about 500 bytes for each pixel of the segment: 2 GB for 33 frames of 480 x 270, 15 GB of 1280 x 720.
    """

    def __init__(
        self,
        model: Model,
        height: int,
        width: int,
        levels: int | None,
        n_steps: int,
        progress: Callable[[float], None] | None = None,
    ) -> None:
        if height * width > MOST_PIXELS:
            raise UsageError(f"effort takes frames of at most {MOST_PIXELS} pixels, got {height} x {width}")
        self.model, self.tokenizer = model, check_refinable(model.tokenizer)
        self.levels, self.n_steps, self.progress = self.tokenizer.check_levels(levels), n_steps, progress
        self.frames: list[Tensor] = []
        self.none = np.zeros((self.levels, 0, -(-height // STRIDE), -(-width // STRIDE)), dtype=np.int64)

    def push(self, pixels: Pixels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The next frame ``[H, W, 3]``; gives no codes yet."""
        self.frames.append(torch.from_numpy(pixels))
        return self.none, np.zeros(self.levels)

    def finish(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Codes ``[levels, t, h, w]`` of all frames, and the squared error of their latents after each level."""
        x = torch.stack(self.frames).permute(3, 0, 1, 2)[None].to(self.tokenizer.device)  # [1, 3, T, H, W] uint8
        self.frames = []
        stream = StreamingVideoEncoder(self.tokenizer, self.levels)
        z = torch.cat([stream.latents(x), stream.last_latents()], 2)
        found = [(latents, self.quantize(latents)) for latents in (z, self.descend(z, x))]
        best, codes = min(found, key=lambda pair: self.cost(pair[1], x))
        errors = self.tokenizer.errors(best, codes)[0].double().sum((1, 2, 3)).cpu().numpy()
        return codes[0].cpu().numpy(), errors

    def quantize(self, z: Tensor) -> Tensor:
        """Latents ``[1, D, t, h, w]`` to codes ``[1, levels, t, h, w]``."""
        return StreamingVideoEncoder(self.tokenizer, self.levels).quantize(z)

    @torch.no_grad()
    def cost(self, codes: Tensor, x: Tensor) -> float:
        """Bits of a latent, and half the binary logarithm of the squared error of decoded frames."""
        latents = self.tokenizer.config.dim * codes[0, 0].numel()
        bits = float(self.model.prior.bits(codes[0].cpu().numpy()).sum())
        spec = self.tokenizer.spec(tuple(x.shape[2:]))
        x_hat = self.tokenizer.decode(Tokens(codes, spec))
        error = float(((x_hat * 255).round() - x).square().mean())
        return bits / latents + 0.5 * math.log2(max(error, 1e-6))

    @torch.enable_grad()
    def descend(self, z: Tensor, x: Tensor) -> Tensor:
        """Latents that decode to something nearer to ``x [1, 3, T, H, W]`` uint8."""
        tokenizer, target = self.tokenizer, x.float() / 255
        z = z.detach().clone().requires_grad_()
        rate = RATE * float(z.detach().square().mean().sqrt())
        optimizer = torch.optim.Adam([z], rate, BETAS)
        for step in range(self.n_steps):
            for group in optimizer.param_groups:
                group["lr"] = rate * (1 - (1 - LAST_RATE) * step / max(1, self.n_steps - 1))
            with torch.no_grad():
                z_q = tokenizer.quantizer.decode(self.quantize(z.detach()))
            x_hat = frames_of(tokenizer, z + HELD * (z_q - z).detach())
            loss = (x_hat[:, :, : x.shape[2], : x.shape[3], : x.shape[4]] - target).square().mean()
            (z.grad,) = torch.autograd.grad(loss, [z])
            optimizer.step()
            if self.progress is not None:
                self.progress((step + 1) / self.n_steps)
        return z.detach()


def frames_of(model: VideoGrid, z_q: Tensor) -> Tensor:
    """:meth:`VideoGrid.pixels` of a whole segment, whose gradients take the memory of a group of frames only: what is
    inside of a net over space is computed once more when it is needed (Chen et al. 2016, arXiv:1604.06174)."""
    x = z_q.permute(0, 2, 3, 4, 1).contiguous()
    for layer in model.synthesis:
        if isinstance(layer, PerFrame):
            parts = [checkpoint(layer, part, use_reentrant=False) for part in x.split(GROUP, 1)]
            x = torch.cat(parts, 1)
        else:
            x = layer(x)
    return (x.permute(0, 4, 1, 2, 3) + 1) / 2
