"""Train, evaluate and export the photo codec in one command.

    python -m tokodec.train.photo --recipe image-photo --data PICTURES... --minutes 25 --out OUT
    torchrun --nproc_per_node 2 -m tokodec.train.photo ...                     # two GPUs

Every crop has a quality of its own, drawn at random, and is trained for rate + lambda(quality) * distortion. A share of
the crops is cut from pictures that are no photographs (``codec/media/synthetic.py``): a codec that has not seen such
content may destroy it. What costs several times as much as usual counts as its logarithm, so that a few crops of noise
or of hatching do not decide where everything goes. The nets compute with weights rounded to int8 as a release rounds
them; in stage 2, the last part of the time, the entropy model rounds as its integers will, too. The budget is
wall-clock minutes. The best weights so far (by the held-out pictures) lie in OUT at any time, as the model that users
load and as ``checkpoint.safetensors``, the same in float32. ``--resume FOLDER`` starts from either, or from what
``photo_start`` grew; with ``--minutes 0`` it only exports. The tables of the coder are counted on training pictures at
the end. The last thing printed is a table on the test pictures.

A recipe with a rank trains a variant of the model that it resumes from, for another distortion: low-rank differences to
the weights of its nets, while the entropy model stays. ``--resume`` with the folder of a variant goes on with it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from ..codec.metrics.distortion import distortion
from ..codec.metrics.picture import MS_SSIM_SMALLEST, similarity
from ..entropy.hyperprior.export import export_hyperprior, scale_reach
from ..entropy.hyperprior.net import QUALITY_STEPS, Z_MAX, HyperNet, HyperShape
from ..entropy.hyperprior.prior import HyperPrior
from ..entropy.hyperprior.walk import Walk
from ..entropy.packed import file_hash, together
from ..tokenizers.api import save_variant
from ..tokenizers.folders import find_model
from ..tokenizers.image.layers import channels_last
from ..tokenizers.image.photo import ImagePhoto, cut, pad_to_cells, rate_weight
from ..tokenizers.image.photo_nets import ImagePhotoConfig, PhotoNets
from ..tokenizers.weights import WEIGHTS_FILE
from .data.fonts import drawn_pictures
from .data.images import CropStore, as_input, list_images, read_rgb
from .loop import as_released, optimizers_of, psnr, run_script
from .low_rank import LowRank, base_of
from .recipe import Optim, Rounding
from .sizes import CHECKS, EXPORT
from .trainer import BaseTrainer, Phase, Row, trainer_arguments

CHECKPOINT = "checkpoint.safetensors"
QUICK_QUALITIES = (15, 50, 85)
TEST_QUALITIES = (5, 20, 40, 60, 80, 95)
COUNTED = 240  # training pictures whose codes make the coder's tables
SYNTHETIC_HELD = 18  # synthetic pictures, one of each kind, that are evaluated
SYNTHETIC_SEEDS = (1000, 2000)  # of those that are trained on, and of those that are evaluated
CELL = 64  # pixels: pictures are padded to whole hyper cells

Medium = tuple[Tensor, Row]  # a picture, uint8 [H, W, 3], and what its rows say of it


@dataclass(frozen=True)
class Sizes:
    """Sizes of the nets, see :class:`~tokodec.tokenizers.image.photo_nets.ImagePhotoConfig`."""

    channels: tuple[int, int]
    analysis_blocks: tuple[int, int]
    synthesis_blocks: tuple[int, int]
    detail: int = 0
    hyper_width: int = ImagePhotoConfig.hyper_width


@dataclass(frozen=True)
class Data:
    """Crops."""

    crop: int
    zoom: float  # share of crops that are cut larger and reduced
    holdout_every: int
    synthetic: float  # share of crops of drawn pictures
    drawn: int  # number of drawn pictures in each process

    def __post_init__(self) -> None:
        if self.crop < CELL or self.crop % CELL:
            raise ValueError(f"data.crop is a multiple of {CELL} pixels")
        if not 0 <= self.synthetic < 1 or (self.synthetic and self.drawn < 1):
            raise ValueError("data.synthetic is a share below 1, of crops of data.drawn pictures")


@dataclass(frozen=True)
class Variant:
    """A variant of a model."""

    rank: int  # of the differences to the model that it resumes from; 0: all weights are trained


@dataclass(frozen=True)
class Rate:
    """What counts, bits or distortion."""

    distortion: Literal["mse", "ms-ssim"]
    lambda_: tuple[float, ...]  # at even steps of quality 0 to 100: bits a pixel for a unit of distortion
    balance: float  # costs are weighted by lambda^-balance
    outlier: float  # balanced costs above count as their logarithm
    progressive: float  # share of crops of which only the first slices are kept


@dataclass(frozen=True)
class Export:
    """What a release codes."""

    skip: int  # codes of scales up to this number are zero and take no bits


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; ``train/recipes/image-photo*.yaml`` say what they mean."""

    name: str
    model: Sizes
    entropy: HyperShape
    data: Data
    variant: Variant
    rate: Rate
    optim: Optim
    rounding: Rounding
    export: Export
    cpu: tuple[str, ...] = ()  # changes where there is no GPU

    def __post_init__(self) -> None:
        size = self.data.crop
        if self.rate.distortion == "ms-ssim" and size < MS_SSIM_SMALLEST:
            raise ValueError(f"MS-SSIM takes crops of {MS_SSIM_SMALLEST} pixels or more, the recipe says {size}")


class PhotoCodec(nn.Module):
    """Everything that is trained, as one module, so that data-parallel wrappers see every parameter."""

    def __init__(self, nets: PhotoNets, entropy: HyperNet) -> None:
        super().__init__()
        self.nets, self.entropy = nets, entropy

    def forward(
        self, x: Tensor, quality: Tensor, rounding: bool = False, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``x [B, 3, H, W]`` in [0, 1], sides multiples of 64, to pictures in [0, 1] and bits ``[B]``."""
        y = self.nets.analysis(2 * x - 1)
        with torch.autocast(x.device.type, enabled=False):
            y = y.float() * self.nets.gain(quality)
        z = self.nets.hyper_analysis(y)
        steps = (quality * QUALITY_STEPS).round().long()
        with torch.autocast(x.device.type, enabled=False):
            latents, y_bits, z_bits = self.entropy(
                y.permute(0, 2, 3, 1), z.float().permute(0, 2, 3, 1), steps, rounding, kept
            )
            latents = latents.permute(0, 3, 1, 2) * self.nets.inverse_gain(quality)
        return (self.nets.synthesis(latents, quality).float() + 1) / 2, y_bits.sum(1) + z_bits


def codec_of(recipe: Recipe) -> PhotoCodec:
    """The untrained codec of a recipe. Raises ValueError for sizes without sense."""
    config = ImagePhotoConfig(
        latents=recipe.entropy.latents, hyper=recipe.entropy.hyper, distortion=recipe.rate.distortion,
        rate_weights=recipe.rate.lambda_, **vars(recipe.model),
    )  # fmt: skip
    return PhotoCodec(PhotoNets(config), HyperNet(recipe.entropy))


def between(name: str, p: nn.Parameter) -> bool:
    """Whether it is a matrix between first and last layers."""
    wide = p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16
    return wide and "points" not in name and "density" not in name


def padded(x: Tensor) -> Tensor:
    """``[B, 3, H, W]`` with its last rows and columns repeated up to multiples of 64."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % CELL, 0, -height % CELL), mode="replicate")


class Trainer(BaseTrainer):
    """One run of a recipe; see the module's text."""

    recipe_class: ClassVar[type[Any]] = Recipe
    tokenizer_class: ClassVar[type[ImagePhoto]] = ImagePhoto
    evaluations, quick = 4, 8
    columns: ClassVar[dict[str, str]] = {
        "bpp_estimated": "{:.4f} bpp", "psnr": "{:.3f} dB", "ms_ssim": "MS-SSIM {:.4f}",
    }  # fmt: skip
    brief = ("bpp_estimated", "psnr", "ms_ssim")
    tables = ("float", "rounding", "synthetic", "holdout", "test")

    model: PhotoCodec
    held: list[Medium]

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        conf: Recipe = self.recipe
        self.ends, self.distortion = conf.rate.lambda_, distortion(conf.rate.distortion)
        self.base = base_of(args.resume, self.out) if conf.variant.rank else None
        self.model = self.codec()
        if args.resume:
            resume(self.model, args.resume if self.base is None else str(self.base))
        channels_last(self.model.to(self.device))
        self.net: nn.Module = self.model
        if self.base is not None:
            self.model.requires_grad_(False)
            self.net = LowRank(self.model.nets, conf.variant.rank)
            if (Path(args.resume) / CHECKPOINT).is_file() and self.base != find_model(args.resume):
                load_checkpoint(self.net, args.resume)
        self.test_on(list_images, read_rgb)
        self.read_pictures(conf.data)
        parts = {**dict(self.model.named_children()), "trained": self.net}
        sizes_of = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
        self.log(" ".join(f"{part} {n / 1e6:.2f} M" for part, n in sizes_of.items()))
        self.own_seeds()
        self.phases = [Phase("the entropy model rounds", 1 - conf.rounding.share)]

    def codec(self) -> PhotoCodec:
        """The codec before it is trained."""
        return codec_of(self.recipe)

    def read_pictures(self, data: Data) -> None:
        """What is trained on and what is held out, photographs and drawn pictures."""
        self.store = self.picture_store(data.crop, data.holdout_every, zoom=data.zoom)
        held, synthetic, self.drawn = list[Any](self.held), list[Tensor](), None
        if data.synthetic:
            drawn = drawn_pictures(data.drawn, SYNTHETIC_SEEDS[0] + self.process)
            self.drawn = CropStore(drawn, data.crop, self.device, data.zoom / 2, seed=self.seed)
            synthetic = drawn_pictures(SYNTHETIC_HELD, SYNTHETIC_SEEDS[1])
        if self.recipe.rate.distortion == "ms-ssim":
            held = [p for p in held if min(p.shape[:2]) >= MS_SSIM_SMALLEST]
        if not held:
            raise ValueError(f"no held-out picture has the {MS_SSIM_SMALLEST} pixels on each side that MS-SSIM takes")
        self.log(f"{len(self.store)} pictures to train on, {len(held)} held out, on {self.device}")
        if self.drawn is not None:
            held_out = f"{len(synthetic)} held out"
            self.log(f"{len(self.drawn)} synthetic pictures to train on in each process, {held_out}")
        self.media, held, synthetic = self.middles(self.media, held, synthetic)
        self.held = [(picture, {}) for picture in held]
        self.synthetic: list[Medium] = [(picture, {"content": "synthetic"}) for picture in synthetic]

    # ---- a step

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon, if the recipe wants it, is for the matrices between first and last layers."""
        return optimizers_of(self.net.named_parameters(), self.optim, between)

    def inputs(self) -> tuple[Tensor, ...]:
        """Crops ``[n, 3, size, size]`` in [0, 1], their qualities in 0..1, and how many slices they keep."""
        n, slices = self.optim["batch"], len(self.recipe.entropy.slices)
        x = self.crops(n)
        quality = torch.rand(n, device=self.device, generator=self.generator)
        kept = torch.randint(1, slices + 1, (n,), device=self.device, generator=self.generator)
        some = torch.rand(n, device=self.device, generator=self.generator) < self.recipe.rate.progressive
        return x, quality, torch.where(some, kept, slices)

    def crops(self, n: int) -> Tensor:
        """``[n, 3, size, size]`` in [0, 1], the last ones synthetic."""
        drawn = round(n * self.recipe.data.synthetic) if self.drawn is not None else 0
        x = self.store.batch(n - drawn)
        if self.drawn is not None and drawn:
            x = torch.cat([x, self.drawn.batch(drawn)])
        return x.contiguous(memory_format=torch.channels_last)

    def sample(self, medium: Medium) -> tuple[Tensor, Tensor]:
        """At quality 50."""
        x = self.taken(medium[0])
        quality = torch.tensor([0.5], device=self.device)
        with self.autocast():
            x_hat, _ = functional_call(self.model, self.weights(), (padded(x), quality, self.phases[0].on))
        return x, x_hat[:, :, : x.shape[2], : x.shape[3]]

    def own_parts(self) -> dict[str, Any]:
        return super().own_parts() | {"drawn": self.drawn.parts() if self.drawn else None}

    def weights(self) -> dict[str, Tensor]:
        """The weights that are in training, as the codec computes with them."""
        if isinstance(self.net, LowRank):
            return self.net.weights(self.model.nets)
        return as_released(self.model, self.tokenizer_class.int8_weights, self.tokenizer_class.int8_largest)

    def loss(self, x: Tensor, quality: Tensor, kept: Tensor, rounding: bool) -> Tensor:
        """Rate + lambda * distortion, such that all rates count alike."""
        conf, weights = self.recipe.rate, self.weights()
        with self.autocast():
            x_hat, bits = functional_call(self.model, weights, (x, quality, rounding, kept))
        weight = rate_weight(quality, self.ends)
        cost = bits / x[0, 0].numel() + weight * self.distortion(x, x_hat)
        middle = math.sqrt(self.ends[0] * self.ends[-1])
        cost, most = cost * (weight / middle) ** -conf.balance, conf.outlier
        return torch.where(cost > most, most * (1 + torch.log(cost.clamp_min(most) / most)), cost).mean()

    # ---- evaluation

    def plan(self) -> None:
        super().plan()
        if self.main:  # drawn pictures take of the time as well
            self.on_the_way += self.some(self.synthetic, CHECKS, self.cost * self.evaluations)

    def plan_export(self, slower: float = 1.0) -> None:
        super().plan_export(slower)
        self.tested_synthetic = self.some(self.synthetic, EXPORT / 2, slower * self.export_cost)
        self.reserve += slower * self.export_cost * len(self.tested_synthetic)

    @torch.no_grad()
    def measure(self, model: Any, media: Sequence[Any], prior: Any = None) -> list[Row]:
        """Means over media; weights are rounded once for all of them."""
        self.rounded = self.weights() if isinstance(model, PhotoCodec) else {}
        return super().measure(model, media, prior)

    def rows(self, model: PhotoCodec | ImagePhoto, medium: Medium, prior: Any = None) -> Iterator[Row]:
        """A row for each quality: what the released model does, or what the one in training does now."""
        picture, about = medium
        own = self.released_rows(model, picture) if isinstance(model, ImagePhoto) else self.trained_rows(model, picture)
        for row in own:
            yield about | row

    def trained_rows(self, model: PhotoCodec, picture: Tensor) -> Iterator[Row]:
        """Estimated bits per pixel, PSNR, log of the training cost."""
        x = as_input(picture, self.device)
        height, width = x.shape[2:]
        for q in QUICK_QUALITIES:
            quality = torch.tensor([q / 100], device=self.device)
            with self.autocast():
                x_hat, bits = functional_call(model, self.rounded, (padded(x), quality, self.phases[0].on))
            x_hat = x_hat[:, :, :height, :width]
            bpp, error = float(bits) / (height * width), float(self.distortion(x, x_hat.clamp(0, 1)))
            cost = bpp + float(rate_weight(quality, self.ends)) * error
            yield {"quality": q, "bpp_estimated": bpp, "log_cost": math.log(cost), **closeness(x, x_hat)}

    def released_rows(self, model: ImagePhoto, picture: Tensor) -> Iterator[Row]:
        """Ideal bits of the integer tables, PSNR and MS-SSIM of 8-bit pixels."""
        y = model.analyse_tiled(picture)
        size = (picture.shape[0], picture.shape[1])
        for q in TEST_QUALITIES:
            walks = model.quantise_windows(y, 100 * q)
            held = np.empty_like(y)
            for tile, walk in walks:
                cut(held, tile)[:] = walk.latents
            decoded = model.synthesise_tiled(held, 100 * q, size)
            bits = sum(float(model.entropy.bits(walk).sum()) for _, walk in walks)
            close = closeness(as_input(picture, self.device), as_input(decoded, self.device))
            yield {"quality": q, "bpp_estimated": bits / (size[0] * size[1]), **close}

    def score(self, rows: list[Row]) -> float:
        """Less of the log cost; photographs and drawn pictures count as in a batch."""
        share = self.recipe.data.synthetic
        parts = [[r["log_cost"] for r in rows if ("content" in r) is drawn] for drawn in (False, True)]
        photographs, drawn = (sum(costs) / max(1, len(costs)) for costs in parts)
        return -((1 - share) * photographs + share * drawn)

    def telemetry(self, rows: list[Row]) -> dict[str, Any]:
        return {"log_cost": -self.score(rows)}

    # ---- what is written

    def save(self) -> None:
        """Write the weights as they are, with tables made of the densities of training."""
        state = {k: v.detach().float().cpu().contiguous() for k, v in self.net.state_dict().items()}
        with together(self.out) as beside:
            save_file(state, str(beside / CHECKPOINT))
            if isinstance(self.net, LowRank):
                assert self.base is not None
                model = ImagePhoto(self.model.nets.config, self.recipe.name)
                base_hash = file_hash(self.base / WEIGHTS_FILE)
                save_variant(model, self.base.name, base_hash, self.net.change(), beside)
            else:
                self.released().save_pretrained(beside)

    def saved(self) -> PhotoCodec:
        load_checkpoint(self.net, str(self.out))
        return self.model

    def released(self, counts: Sequence[npt.NDArray[np.int64]] = ()) -> ImagePhoto:
        """The model that users load, on the CPU. counts: of codes, see :meth:`count`; of the densities if empty."""
        model = self.tokenizer_class(self.model.nets.config, self.recipe.name)
        model.nets.load_state_dict(self.model.nets.state_dict())
        of_z, *of_y = counts or (None,)
        export = export_hyperprior(self.model.entropy, of_z, of_y or None, self.recipe.export.skip)
        model.set_entropy(HyperPrior(export))
        return model.eval()

    def exportable(self) -> ImagePhoto:
        return self.released().to(self.device)

    def count(self, model: ImagePhoto, media: Sequence[Tensor]) -> list[Tensor]:
        """Histograms of z by channel and of y by scale; none for a variant, which shares the tables of its base."""
        if self.base is not None:
            return []
        of_z, of_y = count_codes(model, media, self.args.seed)
        return [torch.from_numpy(count) for count in (of_z, *of_y)]

    def finish(self, model: PhotoCodec, some: Sequence[Tensor]) -> tuple[ImagePhoto, dict[str, Any]]:
        """Count codes for the coder's tables, write the model, and measure it beside the one in training."""
        results: dict[str, Any] = {}
        for name, self.phases[0].on in (("float", False), ("rounding", True)):
            results[name] = self.measure(model, self.tested[: self.quick])
        if self.base is None:
            counted = list(some[:: max(1, len(some) // COUNTED)])
            if self.synthetic:
                share = self.recipe.data.synthetic
                counted += drawn_pictures(round(len(counted) * share / (1 - share)), SYNTHETIC_SEEDS[0] + COUNTED)
            counts = self.count(self.exportable(), counted)
            self.released([count.numpy() for count in counts]).save_pretrained(self.out)
        released = ImagePhoto.from_pretrained(self.out).to(self.device)  # weights as released: int8 and float16
        return released, results | {"synthetic": self.measure(released, self.tested_synthetic)}

    def make_prior(self, model: Any, some: Sequence[Any]) -> tuple[None, dict[str, Any]]:
        """None: the entropy model is part of the model."""
        return None, {}

    def test_media(self) -> list[Medium]:
        return [(picture, {}) for picture in super().test_media()]


def closeness(x: Tensor, x_hat: Tensor) -> dict[str, float]:
    """PSNR and, if it can be taken, MS-SSIM of ``[1, 3, H, W]`` in [0, 1]."""
    found = {"psnr": psnr(x, x_hat)}
    if min(x.shape[2:]) >= MS_SSIM_SMALLEST:
        found["ms_ssim"] = float(similarity(x, x_hat.clamp(0, 1)))
    return found


def load_checkpoint(module: nn.Module, folder: str) -> None:
    """Take over the weights that training left in ``folder``. Raises ValueError if they are those of another recipe."""
    try:
        module.load_state_dict(load_file(str(Path(folder) / CHECKPOINT)))
    except RuntimeError as error:
        raise ValueError(f"{folder} does not fit the recipe: {str(error).splitlines()[-1].strip()}") from error


def resume(codec: PhotoCodec, folder: str) -> None:
    """Start from a checkpoint of training, or else from a released model. Raises ValueError if neither fits."""
    if (Path(folder) / CHECKPOINT).is_file():
        load_checkpoint(codec, folder)
        return
    model = ImagePhoto.from_pretrained(find_model(folder))
    wanted = codec.nets.config
    if replace(model.config, distortion=wanted.distortion, rate_weights=wanted.rate_weights) != wanted:
        raise ValueError(f"{folder} has other sizes than the recipe")
    codec.nets.load_state_dict(model.nets.state_dict())
    codec.entropy.load_export(model.entropy.arrays())


class CodeCounts:
    """How often each value of z (by channel) and of y (by scale) is coded. of_z ``[hyper, 2 Z_MAX + 1]``."""

    def __init__(self, hyper: int) -> None:
        self.reach = scale_reach()
        self.of_z = np.zeros((hyper, 2 * Z_MAX + 1), dtype=np.int64)
        self.of_y = [np.zeros(2 * r + 1, dtype=np.int64) for r in self.reach]

    def add(self, walk: Walk) -> None:
        for count, channel in zip(self.of_z, walk.z, strict=True):
            count += np.bincount(channel.reshape(-1) + Z_MAX, minlength=2 * Z_MAX + 1)
        for step in walk.steps:
            reach = self.reach[step.tables]
            inside = np.clip(step.codes, -reach, reach) + reach
            for table in np.unique(step.tables):
                self.of_y[table] += np.bincount(inside[step.tables == table], minlength=self.of_y[table].size)


def count_codes(
    model: ImagePhoto, pictures: Sequence[Tensor], seed: int
) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """The :class:`CodeCounts` of pictures, two random qualities each."""
    rng = np.random.default_rng(seed)
    counts = CodeCounts(model.config.hyper)
    for picture in pictures:
        x = pad_to_cells(as_input(picture, model.device))
        with torch.no_grad():
            y = model.latents(x)[0].cpu().numpy()
        for steps in rng.integers(0, QUALITY_STEPS + 1, 2):
            counts.add(model.quantise(y, int(steps)))
    return counts.of_z, counts.of_y


def main() -> None:
    run_script(trainer_arguments(__doc__, "image-photo"), Trainer)


if __name__ == "__main__":
    main()
