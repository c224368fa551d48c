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
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from ..codec.media.synthetic import synthetic_picture
from ..codec.metrics.distortion import distortion
from ..codec.metrics.picture import MS_SSIM_SMALLEST, similarity
from ..codec.provenance import as_json
from ..entropy.hyperprior.export import export_hyperprior, scale_reach
from ..entropy.hyperprior.net import QUALITY_STEPS, Z_MAX, HyperNet, HyperShape
from ..entropy.hyperprior.prior import HyperPrior
from ..entropy.hyperprior.walk import Walk
from ..entropy.packed import file_hash
from ..tokenizers.api import save_variant
from ..tokenizers.folders import find_model
from ..tokenizers.image.layers import channels_last
from ..tokenizers.image.photo import ImagePhoto, cut, pad_to_cells, rate_weight
from ..tokenizers.image.photo_nets import ImagePhotoConfig, PhotoNets
from ..tokenizers.weights import WEIGHTS_FILE
from .data.fonts import matplotlib_fonts
from .data.images import CropStore, list_images, read_all
from .graphed import GraphedStep, GraphedUpdate
from .loop import (
    Pace,
    TrainingRun,
    as_released,
    optimizers_of,
    psnr,
    run_script,
    training_arguments,
)
from .low_rank import LowRank, base_of

CHECKPOINT = "checkpoint.safetensors"
EVALUATIONS = 4
HOLDOUT_QUICK = 8
QUICK_QUALITIES = (15, 50, 85)
TEST_QUALITIES = (5, 20, 40, 60, 80, 95)
COUNTED = 240  # training pictures whose codes make the coder's tables
SYNTHETIC_HELD = 18  # synthetic pictures, one of each kind, that are evaluated
SYNTHETIC_SEEDS = (1000, 2000)  # of those that are trained on, and of those that are evaluated
CELL = 64  # pixels: pictures are padded to whole hyper cells


def large(picture: Tensor) -> bool:
    """Whether MS-SSIM can be taken of ``[H, W, 3]``."""
    return min(picture.shape[:2]) >= MS_SSIM_SMALLEST


def mean_or_none(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def shown(row: dict[str, Any]) -> str:
    similar = "" if row["ms_ssim"] is None else f" MS-SSIM {row['ms_ssim']:.4f}"
    return f"{row['bpp_estimated']:.4f} bpp {row['psnr']:.3f} dB{similar}"


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


def codec_of(recipe: dict[str, Any]) -> PhotoCodec:
    """The untrained codec of a recipe. Raises ValueError for sizes without sense."""
    sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe["model"].items()}
    inner: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe["entropy"].items()}
    shape = HyperShape(**inner)
    config = ImagePhotoConfig(
        latents=shape.latents,
        hyper=shape.hyper,
        distortion=recipe["rate"]["distortion"],
        rate_weights=tuple(recipe["rate"]["lambda"]),
        **sizes,
    )
    return PhotoCodec(PhotoNets(config), HyperNet(shape))


def padded(x: Tensor) -> Tensor:
    """``[B, 3, H, W]`` with its last rows and columns repeated up to multiples of 64."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % CELL, 0, -height % CELL), mode="replicate")


class Trainer(TrainingRun):
    """One run of a recipe; see the module's text."""

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)

        paths = list_images(args.data)
        every = recipe["data"]["holdout_every"]
        pictures = read_all(paths)
        size, structural = recipe["data"]["crop"], recipe["rate"]["distortion"] == "ms-ssim"
        if structural and size < MS_SSIM_SMALLEST:
            raise ValueError(f"MS-SSIM takes crops of {MS_SSIM_SMALLEST} pixels or more, the recipe says {size}")
        self.holdout = [p for p in pictures[::every] if not structural or large(p)]
        self.pictures = [p for i, p in enumerate(pictures) if i % every]
        zoom = recipe["data"]["zoom"]
        self.store = CropStore(self.pictures, size, self.device, zoom, seed=self.seed)
        self.log(f"{len(self.store)} pictures to train on, {len(self.holdout)} held out, on {self.device}")
        self.synthetic, self.drawn = list[Tensor](), None
        if recipe["data"]["synthetic"]:
            drawn = drawn_pictures(recipe["data"]["drawn"], SYNTHETIC_SEEDS[0] + self.process)
            self.synthetic = drawn_pictures(SYNTHETIC_HELD, SYNTHETIC_SEEDS[1])
            self.drawn = CropStore(drawn, size, self.device, zoom / 2, seed=self.seed)
            held = len(self.synthetic)
            self.log(f"{len(self.drawn)} synthetic pictures to train on in each process, {held} held out")

        self.ends = tuple(recipe["rate"]["lambda"])
        self.codec = codec_of(recipe)
        self.name = recipe["name"]
        rank = recipe["variant"]["rank"]
        self.base = base_of(args.resume, self.out) if rank else None
        if args.resume:
            resume(self.codec, args.resume if self.base is None else str(self.base))
        channels_last(self.codec.to(self.device))
        self.trained: nn.Module = self.codec
        if rank:
            self.codec.requires_grad_(False)
            self.trained = LowRank(self.codec.nets, rank)
            if (Path(args.resume) / CHECKPOINT).is_file() and self.base != find_model(args.resume):
                load_checkpoint(self.trained, args.resume)
        self.distortion = distortion(recipe["rate"]["distortion"])
        parts = {**dict(self.codec.named_children()), "trained": self.trained}
        sizes_of = {part: sum(p.numel() for p in module.parameters()) for part, module in parts.items()}
        self.log(" ".join(f"{part} {n / 1e6:.2f} M" for part, n in sizes_of.items()))
        self.own_seeds()
        self.best = math.inf
        self.history: list[dict[str, Any]] = []

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon, if the recipe wants it, is for the matrices between first and last layers."""

        def between(name: str, p: nn.Parameter) -> bool:
            wide = p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16
            return wide and "points" not in name and "density" not in name

        return optimizers_of(self.trained.named_parameters(), self.recipe["optim"], between)

    def run(self) -> None:
        conf, optim = self.recipe["rate"], self.recipe["optim"]
        self.out.mkdir(parents=True, exist_ok=True)
        optimizers = self.optimizers()
        compute: GraphedStep | None = None
        update: GraphedUpdate | None = None
        loss = norm = torch.tensor(math.nan)
        batch, slices = optim["batch"], len(self.recipe["entropy"]["slices"])
        rounding = False
        self.codec.train()
        pace = Pace(self, optimizers, EVALUATIONS)
        for step in pace:
            if not rounding and pace.share >= 1 - self.recipe["rounding"]["share"]:
                rounding = True
                self.best = math.inf  # what counts from here on is what the integers do
                self.log(f"[{100 * pace.share:5.1f} %] from here on the entropy model rounds")
            x = self.batch(batch)
            quality = torch.rand(batch, device=self.device, generator=self.generator)
            kept = torch.randint(1, slices + 1, (batch,), device=self.device, generator=self.generator)
            some = torch.rand(batch, device=self.device, generator=self.generator) < conf["progressive"]
            kept = torch.where(some, kept, slices)
            if compute is None or update is None:
                compute = GraphedStep(self.trained, self.loss, (x, quality, kept), not self.args.eager)
                update = GraphedUpdate(compute, optimizers, optim["grad_clip"])
            loss = compute((x, quality, kept), rounding)
            norm = update()
            if pace.due:
                self.check(step, pace.share, pace.seconds, loss, norm=norm, rounding=rounding)
        if pace.step:
            self.check(pace.step, 1.0, pace.seconds, loss, norm=norm, rounding=rounding)
        elif self.main:
            self.keep()
        self.accelerator.wait_for_everyone()
        if self.main:
            self.trained.load_state_dict(load_file(str(self.out / CHECKPOINT)))
            self.export()
        self.accelerator.end_training()

    def batch(self, n: int) -> Tensor:
        """Crops ``[n, 3, size, size]`` in [0, 1], the last ones synthetic."""
        drawn = round(n * self.recipe["data"]["synthetic"]) if self.drawn is not None else 0
        x = self.store.batch(n - drawn)
        if self.drawn is not None and drawn:
            x = torch.cat([x, self.drawn.batch(drawn)])
        return x.contiguous(memory_format=torch.channels_last)

    def weights(self) -> dict[str, Tensor]:
        """The weights that are in training, as the codec computes with them."""
        if isinstance(self.trained, LowRank):
            return self.trained.weights(self.codec.nets)
        return as_released(self.codec, ImagePhoto.int8_weights, ImagePhoto.int8_largest)

    def loss(self, x: Tensor, quality: Tensor, kept: Tensor, rounding: bool) -> Tensor:
        """Rate + lambda * distortion, such that all rates count alike."""
        conf = self.recipe["rate"]
        bf16 = self.args.precision == "bf16"
        weights = self.weights()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            x_hat, bits = functional_call(self.codec, weights, (x, quality, rounding, kept))
        weight = rate_weight(quality, self.ends)
        cost = bits / x[0, 0].numel() + weight * self.distortion(x, x_hat)
        middle = math.sqrt(self.ends[0] * self.ends[-1])
        cost, most = cost * (weight / middle) ** -conf["balance"], conf["outlier"]
        return torch.where(cost > most, most * (1 + torch.log(cost.clamp_min(most) / most)), cost).mean()

    def check(self, step: int, share: float, seconds: float, loss: Tensor, norm: Any, rounding: bool) -> None:
        if not self.main:
            return
        rows = self.evaluate(self.holdout[:HOLDOUT_QUICK], QUICK_QUALITIES, rounding)
        score = sum(r["log_cost"] for r in rows) / len(rows)
        drawn = self.evaluate(self.synthetic, QUICK_QUALITIES, rounding) if self.synthetic else []
        for r in drawn:  # photographs and the others count as in a batch
            score += self.recipe["data"]["synthetic"] * (r["log_cost"] / len(drawn) - score / len(drawn))
        kept = score < self.best
        if kept:
            self.best = score
            self.keep()
        self.history.append({"step": step, "share": share, "seconds": seconds, "rows": rows, "synthetic": drawn})
        crops = step * self.recipe["optim"]["batch"] * self.accelerator.num_processes
        self.log(
            f"[{100 * share:5.1f} %] step {step} {crops / seconds:.0f} crops/s loss {float(loss):.4f}"
            f" norm {float(norm):.2f} held-out log cost {score:.4f} "
            + "  ".join(map(shown, rows))
            + "".join(f"  synthetic {r['bpp_estimated']:.3f} bpp {r['psnr']:.2f} dB" for r in drawn)
            + (" kept" if kept else "")
        )

    def keep(self) -> None:
        """Write the weights as they are, with tables made of the densities of training."""
        state = {k: v.detach().float().cpu().contiguous() for k, v in self.trained.state_dict().items()}
        save_file(state, str(self.out / "beside.tmp"))
        (self.out / "beside.tmp").replace(self.out / CHECKPOINT)
        if isinstance(self.trained, LowRank):
            assert self.base is not None
            model = ImagePhoto(self.codec.nets.config, self.name)
            base_hash = file_hash(self.base / WEIGHTS_FILE)
            save_variant(model, self.base.name, base_hash, self.trained.change(), self.out)
        else:
            release(self.codec, self.name, self.recipe["export"]["skip"]).save_pretrained(self.out)

    @torch.no_grad()
    def evaluate(self, pictures: list[Tensor], qualities: tuple[int, ...], rounding: bool) -> list[dict[str, Any]]:
        """Means over pictures for each quality: estimated bits per pixel, PSNR, log of the training cost."""
        self.codec.eval()
        torch.backends.cudnn.benchmark = False
        rows, weights = [], self.weights()
        for q in qualities:
            quality = torch.tensor([q / 100], device=self.device)
            sums, similar = {"bpp_estimated": 0.0, "psnr": 0.0, "log_cost": 0.0}, list[float]()
            for picture in pictures:
                x = picture.to(self.device).permute(2, 0, 1)[None].float() / 255
                height, width = x.shape[2:]
                with self.accelerator.autocast():
                    x_hat, bits = functional_call(self.codec, weights, (padded(x), quality, rounding))
                x_hat = x_hat[:, :, :height, :width]
                bpp = float(bits) / (height * width)
                error = float(self.distortion(x, x_hat.clamp(0, 1)))
                sums["bpp_estimated"] += bpp
                sums["psnr"] += psnr(x, x_hat)
                if large(picture):
                    similar.append(float(similarity(x, x_hat.clamp(0, 1))))
                sums["log_cost"] += math.log(bpp + float(rate_weight(quality, self.ends)) * error)
            means = {key: value / len(pictures) for key, value in sums.items()}
            rows.append({"quality": q, **means, "ms_ssim": mean_or_none(similar)})
        torch.backends.cudnn.benchmark = True
        self.codec.train()
        return rows

    def export(self) -> None:
        """Count the codes of training pictures for the coder's tables, write the model, show what it does.

        A variant shares the tables of its base.
        """
        begin = time.monotonic()
        torch.backends.cudnn.benchmark = False
        self.codec.eval()
        if self.base is None:
            skip = self.recipe["export"]["skip"]
            model = release(self.codec, self.name, skip).to(self.device)
            some = self.pictures[:: max(1, len(self.pictures) // COUNTED)]
            if self.synthetic:
                share = self.recipe["data"]["synthetic"]
                n = round(len(some) * share / (1 - share))
                some = some + drawn_pictures(n, SYNTHETIC_SEEDS[0] + COUNTED)
            release(self.codec, self.name, skip, count_codes(model, some, self.args.seed)).save_pretrained(self.out)
        else:
            self.keep()
        model = ImagePhoto.from_pretrained(self.out).to(self.device)  # weights as released: int8 and float16
        results: dict[str, Any] = {
            "holdout": measure(model, self.holdout),
            "synthetic": measure(model, self.synthetic) if self.synthetic else [],
            "float": self.evaluate(self.holdout[:HOLDOUT_QUICK], QUICK_QUALITIES, False),
            "rounding": self.evaluate(self.holdout[:HOLDOUT_QUICK], QUICK_QUALITIES, True),
            "minutes": self.args.minutes,
            "processes": self.accelerator.num_processes,
            "machine": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "pictures": len(self.pictures),
            "seed": self.args.seed,
            "recipe": self.recipe,
            "history": self.history,
        }
        if self.args.test:
            pictures = read_all(list_images([self.args.test]))
            results["test"] = measure(model, pictures)
        (self.out / "training.json").write_text(as_json(results))
        self.log(f"exported to {self.out} in {time.monotonic() - begin:.0f} s")
        for name in ("float", "rounding", "synthetic", "holdout", "test"):
            for row in results.get(name, []):
                self.log(f"{name:>8} q {row['quality']:3d}  {shown(row)}")


def drawn_pictures(n: int, seed: int) -> list[Tensor]:
    """``n`` synthetic pictures, uint8 ``[H, W, 3]`` each, drawn by as many processes as there are cores."""
    draw = partial(synthetic_picture, seed=seed, fonts=matplotlib_fonts())
    cores = min(16, os.cpu_count() or 1)
    if cores < 4 or n < 100:
        return [torch.from_numpy(draw(index)) for index in range(n)]
    with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
        return [torch.from_numpy(pixels) for pixels in pool.map(draw, range(n), chunksize=8)]


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


def release(
    codec: PhotoCodec, name: str, skip: int, counts: tuple[npt.NDArray[Any] | None, list[Any] | None] = (None, None)
) -> ImagePhoto:
    """The model that users load, on the CPU, from what is trained."""
    model = ImagePhoto(codec.nets.config, name)
    model.nets.load_state_dict(codec.nets.state_dict())
    model.set_entropy(HyperPrior(export_hyperprior(codec.entropy, counts[0], counts[1], skip)))
    return model.eval()


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
    model: ImagePhoto, pictures: list[Tensor], seed: int
) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.int64]]]:
    """The :class:`CodeCounts` of pictures, two random qualities each."""
    rng = np.random.default_rng(seed)
    counts = CodeCounts(model.config.hyper)
    for picture in pictures:
        x = pad_to_cells(picture.to(model.device).permute(2, 0, 1)[None].float() / 255)
        with torch.no_grad():
            y = model.latents(x)[0].cpu().numpy()
        for steps in rng.integers(0, QUALITY_STEPS + 1, 2):
            counts.add(model.quantise(y, int(steps)))
    return counts.of_z, counts.of_y


@torch.no_grad()
def measure(model: ImagePhoto, pictures: list[Tensor]) -> list[dict[str, Any]]:
    """Means over pictures of what the released model does.

    Ideal bits of its integer tables, PSNR and MS-SSIM of 8-bit pixels.
    """
    latents = [model.analyse_tiled(picture) for picture in pictures]
    rows = []
    for quality in TEST_QUALITIES:
        sums, similar = {"bpp_estimated": 0.0, "psnr": 0.0}, list[float]()
        for picture, y in zip(pictures, latents, strict=True):
            walks = model.quantise_windows(y, 100 * quality)
            held = np.empty_like(y)
            for tile, walk in walks:
                cut(held, tile)[:] = walk.latents
            size = (picture.shape[0], picture.shape[1])
            decoded = model.synthesise_tiled(held, 100 * quality, size)
            x, x_hat = (p.to(model.device).permute(2, 0, 1)[None].float() / 255 for p in (picture, decoded))
            sums["bpp_estimated"] += sum(float(model.entropy.bits(w).sum()) for _, w in walks) / (size[0] * size[1])
            sums["psnr"] += psnr(x, x_hat)
            if large(picture):
                similar.append(float(similarity(x, x_hat)))
        means = {key: value / len(pictures) for key, value in sums.items()}
        rows.append({"quality": quality, **means, "ms_ssim": mean_or_none(similar)})
    return rows


def main() -> None:
    parser = training_arguments(__doc__, "image-photo")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
