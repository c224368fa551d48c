"""`image-photo`: pictures at 0.1 bits per pixel and up, one model for all rates.

::

    x [B,3,H,W] -> g_a -> y [B,M,h,w], times gain(q) -> h_a -> z [B,Nz,h/4,w/4]       h = ceil(H/16), w = ceil(W/16)
    y, z -> rounded by and coded with the entropy model (entropy/hyperprior/prior.py) -> y_hat
    y_hat times inverse gain(q) -> g_s, told q -> x_hat [B,3,H,W]

A scalar quantiser of step 1 and learned gains for each channel make the rate continuous (Cui et al. 2021, "Asymmetric
gained deep image compression", arXiv:2003.02012). The nets work at strides 8 and 16 only, where convolutions are cheap
(DCVC-RT, Jia et al. 2025, arXiv:2502.20762), in residual bottleneck blocks (ELIC, He et al. 2022, arXiv:2203.10886),
and obey the locality rule: convolutions, no normalisation, nothing that looks at the whole picture.

A cell has 768 samples, so the nets alone, without a quantiser, lose what more than M latents would hold. The last
``detail`` of the latents go round the narrow part of the nets: they are taken from the features at stride 8, and are
added to those of the synthesis. At low qualities they are all zero and take no bits; at high ones they are what is
missing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ...entropy.hyperprior.net import QUALITY_STEPS, Z_MAX
from ...entropy.hyperprior.prior import HyperPrior
from ...entropy.hyperprior.walk import CODE_MAX, Walk
from ..graphed import Graphed
from ..inputs import check_pixels, to_pictures
from ..precision import whole_float32
from ..quantize.base import ABSENT
from ..tokens import Tokens
from .base import ImageTokenizer
from .layers import STRIDE, channels_last
from .photo_nets import ImagePhotoConfig, PhotoNets
from .tiling import TILE_CELLS, Tile, analyse_tiles, paint_tiles, tiles

DEFAULT_QUALITY = 50.0
WINDOW = 64  # cells: codes are made in windows of 64 x 64 cells that know nothing of each other


class ImagePhoto(ImageTokenizer):
    """Photographs as codes of a scalar quantiser; see the module's text.

    Codes are made in windows of ``WINDOW`` cells along both axes, from the top left on; inside a window a code says
    what the codes before it left open. Tokens have a level for each channel of z and y: first the ``hyper`` channels of
    z, whose codes lie in every fourth cell along both axes (the others are ``ABSENT``), then the channels of y in the
    order of their slices. A prefix that ends with a slice is a coarser version of the same picture.
    """

    config_class: ClassVar[type[Any]] = ImagePhotoConfig
    nets_class: ClassVar[Callable[[Any], Any]] = PhotoNets
    # All kernels but those at the pixels, which stay float16. They are trained with these steps (train/photo.py).
    int8_weights: ClassVar[tuple[str, ...]] = (
        "nets.hyper_analysis.", "nets.analysis.fine.", "nets.analysis.down.", "nets.analysis.coarse.",
        "nets.analysis.leave.", "nets.analysis.detail.", "nets.synthesis.enter.", "nets.synthesis.coarse.",
        "nets.synthesis.up.", "nets.synthesis.detail.", "nets.synthesis.fine.",
    )  # fmt: skip
    synthesis_weights = ("nets.synthesis.", "nets.log_inverse.")
    modality = "image"
    strides = (STRIDE, STRIDE)
    varies = ("quality",)
    rate_control = "quality"
    needs_prior = True

    config: ImagePhotoConfig
    entropy_hash: Tensor

    def __init__(self, config: ImagePhotoConfig | None = None, name: str = "image-photo") -> None:
        super().__init__(config or ImagePhotoConfig(), name)
        self.nets: PhotoNets = channels_last(type(self).nets_class(self.config))
        self.register_buffer("entropy_hash", torch.zeros(8, dtype=torch.uint8))
        self._entropy: HyperPrior | None = None
        self._synthesise = Graphed(self._pixels)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ImagePhoto:
        self._synthesise.forget()  # weights move
        return super()._apply(fn, recurse)

    @property
    def entropy(self) -> HyperPrior:
        """The entropy model, on the device of the nets. Raises ValueError if there is none yet."""
        if self._entropy is None:
            raise ValueError(f"{self.name} has no entropy model: load it with from_pretrained, or set_entropy first")
        self._entropy = self._entropy.on(self.device)
        return self._entropy

    def set_entropy(self, entropy: HyperPrior) -> None:
        """Give the model its entropy model. Raises ValueError if it has other channels."""
        if (entropy.latents, entropy.hyper) != (self.config.latents, self.config.hyper):
            raise ValueError("the entropy model has other channels than the nets")
        self._entropy = entropy
        if entropy.hash != bytes(self.entropy_hash.tolist()).hex():  # codes have a meaning together with it only
            self.weights_hash = ""

    def save_parts(self, folder: Path) -> None:
        self.entropy.save_pretrained(folder)
        self.entropy_hash = torch.tensor(list(bytes.fromhex(self.entropy.hash)), dtype=torch.uint8)

    def load_parts(self, folder: Path) -> None:
        self.set_entropy(HyperPrior.from_pretrained(folder))
        if self.entropy.hash != bytes(self.entropy_hash.tolist()).hex():
            raise ValueError(f"{folder / HyperPrior.file} is not the entropy model that these weights were made with")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Of z's channels, then of y's."""
        return (2 * Z_MAX + 1,) * self.config.hyper + (2 * CODE_MAX + 1,) * self.config.latents

    @property
    def analysis_halo(self) -> int:
        """Cells of context that a tile needs on each side for the latents of the whole picture."""
        n8, n16 = self.config.analysis_blocks
        return -(-(8 + 8 * n8 + 16 * n16 + 16) // STRIDE)

    @property
    def synthesis_halo(self) -> int:
        """Cells of context that a tile of latents needs on each side for the pixels of the whole picture."""
        n8, n16 = self.config.synthesis_blocks
        return -(-(16 + 16 * n16 + 8 * n8 + 8) // STRIDE)

    # ---------------------------------------------------------------- pictures and tokens

    @torch.no_grad()
    def encode(self, x: Tensor, quality: float = DEFAULT_QUALITY) -> Tokens:
        """Pictures ``[B, 3, H, W]`` in [0, 1], any H and W, to tokens ``[B, K, ceil(H/16), ceil(W/16)]``.

        Args:    x: of any floating-point type, or uint8.  quality: 0 to 100, sets the rate.
        Raises:  ValueError for other shapes, types or ranges (see :mod:`..inputs`), an empty picture or another
                 quality.
        """
        self.require_float32()
        x = to_pictures(x, self.device)
        check_pixels(x)
        steps = quality_steps(quality)
        height, width = x.shape[2:]
        codes = [
            torch.from_numpy(pack_codes(self.quantise_windows(y, steps), y.shape[1:]))
            for y in self.latents(pad_to_cells(x)).cpu().numpy()
        ]
        return Tokens(torch.stack(codes), self.spec((height, width), quality=steps / 100))

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Tokens to pictures ``[B, 3, H, W]`` in [0, 1].

        Raises:  ValueError if the tokens are another model's, or end inside a slice.
        """
        self.check_tokens(tokens)
        height, width = tokens.spec.size
        steps = quality_steps(tokens.spec.quality)
        latents = [self.walk_windows(codes, steps) for codes in tokens.codes.cpu().numpy()]
        return self.pixels(torch.from_numpy(np.stack(latents)).to(self.device), steps)[..., :height, :width]

    @torch.no_grad()
    def decode_tiled(
        self, tokens: Tokens, channels: int = 3, progress: Callable[[float], None] | None = None
    ) -> Tensor:
        """Tokens ``[1, K, h, w]`` to one picture ``[H, W, channels]`` uint8, tile by tile; see :meth:`decode`."""
        self.check_tokens(tokens)
        height, width = tokens.spec.size
        steps = quality_steps(tokens.spec.quality)
        latents = self.walk_windows(tokens.codes[0].cpu().numpy(), steps)
        return self.synthesise_tiled(latents, steps, (height, width), channels, progress=progress)

    @torch.no_grad()
    def encode_picture(
        self, pixels: Tensor, quality: float | None = None, progress: Callable[[float], None] | None = None
    ) -> Tokens:
        steps = quality_steps(DEFAULT_QUALITY if quality is None else quality)
        latents = self.analyse_tiled(pixels, progress=progress)
        codes = pack_codes(self.quantise_windows(latents, steps), latents.shape[1:])
        return Tokens(torch.from_numpy(codes)[None], self.spec(tuple(pixels.shape[:2]), quality=steps / 100))

    # ---------------------------------------------------------------- the parts

    def latents(self, x: Tensor) -> Tensor:
        """Analysis only: ``x [B, 3, 16h, 16w]`` in [0, 1] to ``y [B, M, h, w]`` before the gain."""
        with whole_float32(self.device):
            return self.nets.analysis((2 * x - 1).contiguous(memory_format=torch.channels_last))

    @torch.no_grad()
    def quantise(
        self, y: npt.NDArray[np.floating], steps: int, free: npt.NDArray[np.bool_] | None = None
    ) -> Walk:
        """Latents ``[M, h, w]`` to codes at a quality of 0..10000 hundredths; ``free`` cells ``[h, w]`` have none."""
        with whole_float32(self.device):
            scaled = torch.from_numpy(np.ascontiguousarray(y)).to(self.device)[None] * self._gain(steps)
            if free is not None:  # nor do hyper latents speak of them
                scaled = scaled * torch.from_numpy(~free).to(scaled)
            z = self.nets.hyper_analysis(scaled)
        return self.entropy.quantise(scaled[0].cpu().numpy(), z[0].cpu().numpy(), steps, free)

    def _gain(self, steps: int) -> Tensor:
        return self.nets.gain(torch.tensor([steps / QUALITY_STEPS], device=self.device))

    @torch.no_grad()
    def gain(self, steps: int) -> npt.NDArray[np.float32]:
        """Steps of the quantiser in a unit of each latent at a quality of 0..10000 hundredths, ``[M, 1, 1]``."""
        return self._gain(steps)[0].cpu().numpy()

    def quantise_windows(self, y: npt.NDArray[np.floating], steps: int) -> list[tuple[Tile, Walk]]:
        """Latents ``[M, h, w]`` of a whole picture to the codes of its windows, in raster order."""
        return [(tile, self.quantise(cut(y, tile), steps)) for tile in tiles(y.shape[1], y.shape[2], 0, WINDOW)]

    def walk_windows(self, levels: npt.NDArray[np.int64], steps: int) -> npt.NDArray[np.float32]:
        """Levels of tokens ``[K, h, w]`` to latents ``[M, h, w]``. Raises ValueError if they are not whole."""
        h, w = levels.shape[1:]
        latents = np.empty((self.config.latents, h, w), dtype=np.float32)
        for tile in tiles(h, w, 0, WINDOW):
            z, codes = unpack_codes(cut(levels, tile), self.config.hyper)
            cut(latents, tile)[:] = self.entropy.walk(z, codes, steps).latents
        return latents

    @torch.no_grad()
    def pixels(self, latents: Tensor, steps: int) -> Tensor:
        """What a walk made, ``[B, M, h, w]``, to pixels ``[B, 3, 16h, 16w]`` in [0, 1]."""
        return self._synthesise(latents, torch.full((len(latents),), steps / QUALITY_STEPS, device=self.device))

    def _pixels(self, latents: Tensor, quality: Tensor) -> Tensor:
        with whole_float32(self.device):
            y = (latents * self.nets.inverse_gain(quality)).contiguous(memory_format=torch.channels_last)
            return ((self.nets.synthesis(y, quality) + 1) / 2).clamp(0, 1)

    @torch.no_grad()
    def analyse_tiled(
        self, pixels: Tensor, cells: int = TILE_CELLS, progress: Callable[[float], None] | None = None
    ) -> npt.NDArray[np.float32]:
        """Latents ``[M, h, w]`` of one picture ``[H, W, C]`` uint8 on the CPU, tile by tile: bounded memory.

        Args: progress: called with the share that is done.
        """
        self.require_float32()
        height, width, _ = pixels.shape
        grid = -(-height // STRIDE), -(-width // STRIDE)
        y: npt.NDArray[np.float32] = np.empty((self.config.latents, *grid), dtype=np.float32)
        for (rows, columns), part in analyse_tiles(self, pixels, cells, progress):
            y[:, rows, columns] = part[0].cpu().numpy()
        return y

    @torch.no_grad()
    def synthesise_tiled(
        self,
        latents: npt.NDArray[np.float32],
        steps: int,
        size: tuple[int, int],
        channels: int = 3,
        cells: int = TILE_CELLS,
        progress: Callable[[float], None] | None = None,
    ) -> Tensor:
        """One picture ``[H, W, channels]`` uint8 from its latents ``[M, h, w]``, tile by tile.

        Args: channels: 3, or 1 for the mean of the three.
        """

        def paint(box: tuple[slice, slice]) -> Tensor:
            part = torch.from_numpy(np.ascontiguousarray(latents[(slice(None), *box)])).to(self.device)
            return self.pixels(part[None], steps)[0]

        return paint_tiles(size, channels, self.synthesis_halo, paint, cells=cells, progress=progress)


def rate_weight(quality: Tensor, points: Sequence[float]) -> Tensor:
    """lambda of a quality in 0..1: bits a pixel that one unit of distortion is worth.

    Args: points: at even steps of the quality, from 0 to 1.
    """
    place = quality * (len(points) - 1)
    log = torch.zeros_like(quality)
    for k, point in enumerate(points):  # numbers and no tensor of them: a CUDA graph may record this
        log = log + (1 - (place - k).abs()).clamp_min(0) * math.log(point)
    return torch.exp(log)


def quality_steps(quality: float | None) -> int:
    """A quality of 0..100 in hundredths. Raises ValueError for anything else."""
    if quality is None or not 0 <= quality <= 100:
        raise ValueError(f"quality is 0 to 100, got {quality}")
    return round(100 * quality)


def pad_to_cells(x: Tensor) -> Tensor:
    """``[B, 3, H, W]`` with its last rows and columns repeated up to whole cells; decoding cuts them off again."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")


A = TypeVar("A", bound=np.generic)


def cut(array: npt.NDArray[A], tile: Tile) -> npt.NDArray[A]:
    """The tile's part of ``[C, h, w]``, a view."""
    t, le, b, r = tile.core
    return array[:, t:b, le:r]


def pack_codes(walks: Sequence[tuple[Tile, Walk]], grid: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Codes of all windows as levels of tokens, ``[Nz + m, h, w]``, none negative but for ``ABSENT``.

    m is the fewest channels that all windows have.
    """
    hyper, m = len(walks[0][1].z), min(len(walk.codes) for _, walk in walks)
    levels = np.full((hyper + m, *grid), ABSENT, dtype=np.int64)
    for tile, walk in walks:
        part = cut(levels, tile)
        part[:hyper, ::4, ::4] = walk.z + Z_MAX
        part[hyper:] = walk.codes[:m] + CODE_MAX
    return levels


def unpack_codes(levels: npt.NDArray[np.int64], hyper: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Inverse of :func:`pack_codes`: z ``[Nz, ceil(h/4), ceil(w/4)]`` and codes ``[m, h, w]``.

    Raises: ValueError if a code is missing.
    """
    z, codes = levels[:hyper, ::4, ::4], levels[hyper:]
    if len(levels) < hyper or z.min() < 0 or codes.min(initial=0) < 0:
        raise ValueError("some codes are absent: this model needs all of z and whole slices of y")
    return z - Z_MAX, codes - CODE_MAX
