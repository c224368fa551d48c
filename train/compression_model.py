"""Our photo codecs for code that is written for CompressAI, and its entropy models for our nets.

>>> net = PhotoModel.from_pretrained("image-photo", quality=60)      # a CompressionModel, where CompressAI is installed
>>> out = net.eval()(x)                 # x [B, 3, 64 a, 64 b] in [0, 1] -> {"x_hat", "likelihoods": {"y", "z"}}
>>> coded = net.compress(x)             # {"strings", "shape"}, by the integer tables that files have
>>> x_hat = net.decompress(**coded)["x_hat"]

Source of the contract: Begaint et al. 2020, arXiv:2011.03029, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..entropy.hyperprior.export import export_hyperprior
from ..entropy.hyperprior.net import QUALITY_STEPS, HyperNet, HyperShape
from ..entropy.hyperprior.prior import HyperPrior
from ..tokenizers.adapters.base import needed
from ..tokenizers.image.photo import ImagePhoto, quality_steps
from ..tokenizers.image.photo_nets import ImagePhotoConfig, PhotoNets
from ..tokenizers.image.transforms import conv, subpixel
from ..tokenizers.precision import whole_float32
from .photo import CELL, PhotoCodec

try:
    from compressai.models import CompressionModel
except ImportError:  # the same methods serve without it
    CompressionModel = nn.Module


class PhotoModel(CompressionModel):
    """A photo codec at one quality as a ``CompressionModel``.

    In training mode :meth:`forward` is differentiable and its likelihoods are those of latents with uniform noise; in
    evaluation mode it rounds as the integers of the released entropy model do, so that ``x_hat`` is what
    :meth:`decompress` gives, but for the last bits of floats and for codes that a release skips at low qualities
    (`export.skip`), and bits are those of normal distributions, which tables that were counted on pictures undercut.

    Attributes: quality: 0 to 100; sets the rate, and may be changed at any time.
    """

    downsampling_factor = CELL  # what sides of pictures are multiples of

    def __init__(self, model: ImagePhoto, quality: float = 50.0) -> None:
        """model: whose weights are taken over, not copied."""
        super().__init__()
        arrays = model.entropy.arrays()
        entropy = HyperNet(HyperShape.of_export(arrays))
        entropy.load_export(arrays)
        self.codec = PhotoCodec(model.nets, entropy.to(model.device))
        self.kind, self.name, self.skip = type(model), model.name, int(arrays["skip"][0])
        self._prior: HyperPrior | None = model.entropy
        self.quality = quality

    @classmethod
    def from_pretrained(cls, name: str, quality: float = 50.0) -> PhotoModel:
        """Load a release, a folder or ``hf:USER/MODEL``. Raises ValueError if it is no photo codec."""
        return cls(ImagePhoto.from_pretrained(name), quality)

    @property
    def steps(self) -> int:
        """The quality in hundredths. Raises ValueError if it is not 0 to 100."""
        return quality_steps(self.quality)

    def _latents(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The quality ``[B]``, y in steps of the quantiser, and z. Raises ValueError if x has no whole cells."""
        if x.ndim != 4 or x.shape[1] != 3 or any(n % CELL or not n for n in x.shape[2:]):
            raise ValueError(f"pictures are [B, 3, H, W] with H and W multiples of {CELL}, got {list(x.shape)}")
        quality = x.new_full((len(x),), self.steps / QUALITY_STEPS)
        y = self.codec.nets.analysis(2 * x - 1) * self.codec.nets.gain(quality)
        return quality, y, self.codec.nets.hyper_analysis(y)

    def _pixels(self, latents: Tensor, quality: Tensor) -> Tensor:
        nets = self.codec.nets
        return (nets.synthesis(latents * nets.inverse_gain(quality), quality) + 1) / 2

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Pictures ``[B, 3, H, W]`` in [0, 1] to ``x_hat`` and likelihoods of ``y [B, M, H/16, W/16]`` and
        ``z [B, N, H/64, W/64]``. Raises ValueError unless H and W are multiples of 64."""
        quality, y, z = self._latents(x)
        steps = torch.full((len(x),), self.steps, device=x.device)
        own = self.codec.entropy
        y_rows, z_rows = y.permute(0, 2, 3, 1), z.permute(0, 2, 3, 1)
        latents, y_bits, z_bits = own.estimate(y_rows, z_rows, steps, not self.training)
        bits = {"y": own.map_of(y_bits, (y.shape[2], y.shape[3])), "z": z_bits}
        likelihoods = {name: torch.exp2(-own).permute(0, 3, 1, 2) for name, own in bits.items()}
        return {"x_hat": self._pixels(latents.permute(0, 3, 1, 2), quality), "likelihoods": likelihoods}

    # ---- bytes

    def update(self, scale_table: Any = None, force: bool = False, update_quantiles: bool = False) -> bool:
        """Make the integer nets and tables of the weights; returns whether they are new.

        Call it with ``force`` after training. Scales are fixed, and there are no quantiles: these arguments do nothing.
        """
        if self._prior is not None and not force:
            return False
        self._prior = HyperPrior(export_hyperprior(self.codec.entropy, skip=self.skip))
        return True

    def load_state_dict(self, state_dict: Any, strict: bool = True, **more: Any) -> Any:
        """Tables are those of other weights afterwards, so that :meth:`update` makes them anew."""
        self._prior = None
        return nn.Module.load_state_dict(self, state_dict, strict, **more)

    def _tables(self, device: torch.device) -> HyperPrior:
        if self._prior is None:
            raise ValueError("there are no tables of these weights yet: call update() first")
        self._prior = self._prior.on(device)
        return self._prior

    @torch.no_grad()
    def compress(self, x: Tensor) -> dict[str, Any]:
        """Pictures to ``strings [[bytes of a picture, ...]]`` and the ``shape`` of z; no header and no checksum.

        Raises: ValueError as :meth:`forward`, or if weights were loaded since the last :meth:`update`.
        """
        prior = self._tables(x.device)
        with whole_float32(x.device):
            _, y, z = self._latents(x)
        pairs = zip(y.float().cpu().numpy(), z.float().cpu().numpy(), strict=True)
        walks = [prior.quantise(own, hyper, self.steps) for own, hyper in pairs]
        return {"strings": [[prior.payloads(walk, 1)[0] for walk in walks]], "shape": z.shape[2:]}

    @torch.no_grad()
    def decompress(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int]) -> dict[str, Tensor]:
        """What :meth:`compress` gave, at the same quality, to ``x_hat`` in [0, 1]; the same codes on every machine."""
        device = next(self.parameters()).device
        prior, grid = self._tables(device), (4 * shape[0], 4 * shape[1])
        walks = [prior.decompress([own], grid, self.steps, 1) for own in strings[0]]
        latents = torch.stack([torch.from_numpy(walk.latents) for walk in walks]).to(device)
        quality = latents.new_full((len(latents),), self.steps / QUALITY_STEPS)
        with whole_float32(device):
            return {"x_hat": self._pixels(latents, quality).clamp(0, 1)}

    def tokenizer(self, name: str = "") -> ImagePhoto:
        """The way home: a photo codec of these weights, on the CPU, with files; its weights are copies."""
        model = self.kind(self.codec.nets.config, name or self.name)
        model.nets.load_state_dict(self.codec.nets.state_dict())
        model.set_entropy(self._tables(torch.device("cpu")))
        return model.eval()


class PhotoMeanScale(CompressionModel):
    """Transforms of `image-photo` with the entropy bottleneck and the Gaussian conditional of CompressAI.

    For comparisons: what do our transforms owe to our entropy model? One rate, no files. Trained by
    ``python -m tokodec.train.compressai --model tokodec.train.compression_model.PhotoMeanScale``.

    Args:   config: sizes, by the names of an :class:`~..tokenizers.image.photo_nets.ImagePhotoConfig`.
    Raises: ValueError without CompressAI.
    Source: Minnen et al. 2018, arXiv:1809.02736, without the context model.
    """

    def __init__(self, **config: Any) -> None:
        super().__init__()
        models = needed("compressai.entropy_models", "compressai")
        as_lists = {key: value for key, value in config.items() if isinstance(value, list)}
        sizes = config | {key: tuple(value) for key, value in as_lists.items()}
        self.nets = PhotoNets(ImagePhotoConfig(**sizes))
        hyper, latents = self.nets.config.hyper, self.nets.config.latents
        self.h_s = nn.Sequential(
            subpixel(hyper, latents), nn.LeakyReLU(), subpixel(latents, latents), nn.LeakyReLU(),
            conv(latents, 2 * latents, 3, 1),
        )  # fmt: skip
        self.entropy_bottleneck = models.EntropyBottleneck(hyper)
        self.gaussian_conditional = models.GaussianConditional(None)

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Pictures ``[B, 3, 64 a, 64 b]`` in [0, 1] to ``x_hat`` and likelihoods of y and z."""
        middle = x.new_full((len(x),), 0.5)
        y = self.nets.analysis(2 * x - 1) * self.nets.gain(middle)
        z_hat, z_likelihoods = self.entropy_bottleneck(self.nets.hyper_analysis(y))
        scales, means = self.h_s(z_hat).chunk(2, 1)
        y_hat, y_likelihoods = self.gaussian_conditional(y, scales, means=means)
        x_hat = (self.nets.synthesis(y_hat * self.nets.inverse_gain(middle), middle) + 1) / 2
        return {"x_hat": x_hat, "likelihoods": {"y": y_likelihoods, "z": z_likelihoods}}
