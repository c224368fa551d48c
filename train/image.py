"""Train, evaluate and export an image tokenizer in one command.

    python -m tokodec.train.image --recipe image-grid --data IMAGES... --minutes 25 --out OUT
    torchrun --nproc_per_node 2 -m tokodec.train.image ...                     # two GPUs

Stage 1 trains analysis net, codebooks and the faithful synthesis net; stage 2 freezes all of that and tunes the sharp
synthesis net. The budget is wall-clock minutes. The best weights so far (by the held-out pictures) lie in OUT at any
time; ``--resume FOLDER`` starts from released weights. The last thing printed is a table on the test pictures.
"""

from __future__ import annotations

import argparse
import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec.metrics.features import FeatureDistance
from ..codec.metrics.picture import MS_SSIM_SMALLEST, similarity
from ..tokenizers.image.grid import ImageGrid, ImageGridConfig
from ..tokenizers.image.layers import STRIDE, channels_last
from ..tokenizers.quantize.base import Gradient
from .data.images import as_input, list_images, read_rgb
from .graphed import GraphedStep, GraphedUpdate
from .loop import learning_rate, optimizers_of, psnr, run_script, set_rate
from .losses.adversarial import AdversarialGuard, PatchDiscriminator, adaptive_weight, hinge_discriminator
from .rate import ROUNDS, lambdas, no_penalties, set_penalties
from .recipe import Optim
from .state import Attributes
from .trainer import BaseTrainer, Phase, Row, static_prior, trainer_arguments

STAGES = ("faithful", "sharp")
LEAST_USAGE = 0.97  # of the codewords in use without penalty must stay in use with it
MSSSIM_EVERY = 4  # the MS-SSIM loss looks at every 4th crop of a batch
COUNTED = 200  # training pictures that the rate weight is chosen with
LEAST_SIMILARITY = 1e-4  # of a scale, below which MS-SSIM has no gradient
EXPORT_CHOICE = 0.04  # of the time, for codes and for pictures that the rate weight is chosen with, at most
ACTING = ("may_act", "adapt", "weight", "ramp", "right")  # what a state holds of the adversarial term
GUARDED_EVERY = 10  # steps, after which the guard and the adaptive weight look at the discriminator


@dataclass(frozen=True)
class Data:
    """Crops."""

    crop: int
    zoom: float  # share of crops that are cut larger and reduced
    holdout_every: int

    def __post_init__(self) -> None:
        if self.crop < MS_SSIM_SMALLEST or self.crop % STRIDE:
            raise ValueError(f"data.crop is a multiple of {STRIDE}, at least {MS_SSIM_SMALLEST} pixels, for MS-SSIM")


@dataclass(frozen=True)
class ImageOptim(Optim):
    """Steps, and the estimator of gradients through the quantizer."""

    gradient: Gradient = "straight-through"


@dataclass(frozen=True)
class Faithful:
    """Stage 1: analysis, codebooks and the faithful synthesis net."""

    share: float  # of the time
    pixel: Literal["mse", "log-mse"]  # log-mse: mean of log(mse + 1e-4) per picture
    pixel_weight: float
    ms_ssim: float
    features: float
    commitment: float
    codebook: float
    auxiliary: float = 1.0  # what a quantizer asks for beside these


@dataclass(frozen=True)
class Sharp:
    """Stage 2: everything is frozen but the sharp synthesis net."""

    share: float  # of the time
    lr: float
    l1: float
    ms_ssim: float
    features: float
    feature_shift: int  # crops are cut by so many pixels at random before the feature net sees them
    adversarial: float  # times the adaptive weight
    adversarial_from: float  # share of the stage after which the discriminator starts
    discriminator_lr: float


@dataclass(frozen=True)
class Export:
    """How a released model chooses codes."""

    rate_weights: tuple[float, ...]  # of the bits of a code in the search, times lambda; the first to meet the limits
    bpp_limits: tuple[float, ...]  # estimated bits per pixel at 1..K levels, without file overhead


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; ``train/recipes/image-grid.yaml`` says what they mean."""

    name: str
    model: ImageGridConfig
    data: Data
    optim: ImageOptim
    faithful: Faithful
    sharp: Sharp
    export: Export
    cpu: tuple[str, ...] = ()  # changes where there is no GPU

    def __post_init__(self) -> None:
        if self.model.quantizer is None and len(self.export.bpp_limits) != len(self.model.codebook_sizes):
            raise ValueError("export.bpp_limits has an entry for each of model.codebook_sizes")


class Autoencoder(nn.Module):
    """What stage 1 trains, as one module, so that data-parallel wrappers see every parameter used in forward."""

    def __init__(self, model: ImageGrid) -> None:
        super().__init__()
        self.analysis = model.analysis
        self.quantizer = model.quantizer
        self.synthesis = model.synthesis[model.config.synthesis[0]]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``x [B, 3, H, W]`` in [0, 1] to (x_hat, commitment_loss, codebook_loss, auxiliary_loss)."""
        out = self.quantizer(self.analysis(2 * x - 1))
        return (self.synthesis(out.z_q) + 1) / 2, out.commitment_loss, out.codebook_loss, out.auxiliary_loss


def pixel_loss(x: Tensor, x_hat: Tensor, kind: str) -> Tensor:
    """Squared error of ``[B, 3, H, W]``, or the mean of its logarithms."""
    mse = F.mse_loss(x_hat, x, reduction="none").mean((1, 2, 3))  # [B]
    return mse.mean() if kind == "mse" else (mse + 1e-4).log().mean()


def msssim_loss(x: Tensor, x_hat: Tensor) -> Tensor:
    """1 - MS-SSIM of a part of the batch: it is costly in float32, and a part serves as well."""
    part = slice(0, None, MSSSIM_EVERY)
    return 1 - similarity(x[part], x_hat[part].float(), LEAST_SIMILARITY).mean()


def shifted(x: Tensor, x_hat: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Cut both ``[B, 3, H, W]`` to ``[B, 3, H - shift, W - shift]`` at one random place, the same in both.

    Without it the codes' grid and the strides of the feature net always meet in the same phase, and the synthesis net
    may learn patterns that please this net at this phase and no other.
    """
    top, left = torch.randint(shift + 1, (2,)).tolist()
    height, width = x.shape[2] - shift, x.shape[3] - shift
    window = (..., slice(top, top + height), slice(left, left + width))
    return x[window], x_hat[window]


@torch.no_grad()
def latents_of(model: ImageGrid, pictures: Sequence[Tensor]) -> Iterator[Tensor]:
    """Latents ``[1, D, h, w]`` of the whole cells of pictures."""
    for picture in pictures:
        height, width = (n - n % STRIDE for n in picture.shape[:2])
        yield model.latents(as_input(picture[:height, :width], model.device))


class Trainer(BaseTrainer):
    """One run of a recipe; see the module's text."""

    recipe_class = Recipe
    columns: ClassVar[dict[str, str]] = {
        "bpp_estimated": "{:.4f} bpp", "psnr": "{:.3f} dB", "ms_ssim": "MS-SSIM {:.4f}", "features": "features {:.4f}",
    }  # fmt: skip
    brief = ("psnr", "features")
    finishing = 2 * EXPORT_CHOICE
    graphs = False  # whether the discriminator may act is decided on the host

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        data = self.recipe.data
        self.model = self.start()
        self.test_on(list_images, read_rgb)
        self.store = self.picture_store(data.crop, data.holdout_every, zoom=data.zoom)
        self.log(f"{len(self.store)} pictures to train on, {len(self.held)} held out, on {self.device}")
        self.media, self.held = self.middles(self.media, self.held)
        channels_last(self.model.to(self.device))
        self.own_seeds()
        # The first synthesis net is trained in stage 1, the second, if there is one, in stage 2.
        self.net_of = dict(zip(STAGES, self.model.config.synthesis, strict=False))
        self.shown_nets = self.model.config.synthesis
        self.features: FeatureDistance | None = None
        self.rate_weight = 0.0
        self.lr = self.recipe.optim.lr
        self.adversarial: Phase | None = None

    def start(self) -> ImageGrid:
        """The model before the first step. Raises ValueError for a recipe that does not fit its quantizer."""
        if self.args.resume:
            model = ImageGrid.from_pretrained(self.args.resume)
            if self.recipe.model.quantizer not in (None, model.config.quantizer):
                raise ValueError(f"{self.args.resume} has another quantizer than model.quantizer: leave that out")
            no_penalties(model.codebooks)  # training and its evaluations search without regard to bits
        else:
            model = ImageGrid(name=self.recipe.name, config=self.recipe.model)
            if self.recipe.model.quantizer is None:  # else its section says
                for quantizer in (model.quantizer, *model.codebooks):
                    quantizer.gradient = self.recipe.optim.gradient
        if model.codebooks and len(self.recipe.export.bpp_limits) != len(model.codebooks):
            raise ValueError(f"export.bpp_limits has an entry for each of {len(model.codebooks)} codebooks")
        return model

    def inputs(self) -> tuple[Tensor, ...]:
        return (self.store.batch(self.optim["batch"]).contiguous(memory_format=torch.channels_last),)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return optimizers_of(self.net.named_parameters(), {**self.optim, "lr": self.lr}, lambda name, p: p.ndim == 4)

    # ---- the stages

    def begin_faithful(self) -> None:
        """Analysis net, codebooks and the faithful synthesis net."""
        self.net = Autoencoder(self.model)
        if self.recipe.faithful.features:
            self.features = FeatureDistance("lite0").to(self.device)

    def faithful(self, x: Tensor) -> Tensor:
        conf = self.recipe.faithful
        with self.autocast():
            x_hat, commitment, codebook, auxiliary = self.run_net(x)
        x_hat = x_hat.float()
        loss = conf.pixel_weight * pixel_loss(x, x_hat, conf.pixel)
        loss = loss + conf.commitment * commitment + conf.codebook * codebook + conf.auxiliary * auxiliary
        if conf.ms_ssim:
            loss = loss + conf.ms_ssim * msssim_loss(x, x_hat)
        if self.features is not None:
            with self.autocast():
                loss = loss + conf.features * self.features(x, x_hat).mean()
        return loss

    def begin_sharp(self) -> None:
        """Only the sharp synthesis net; it starts as a copy of the faithful one."""
        conf = self.recipe.sharp
        net = self.model.synthesis[self.net_of["sharp"]]
        if not self.args.resume:
            net.load_state_dict(self.model.synthesis[self.net_of["faithful"]].state_dict())
        self.model.requires_grad_(False)
        self.model.quantizer.freeze()
        self.net = net.requires_grad_(True)
        self.lr = conf.lr
        self.features = channels_last(FeatureDistance("lite0").to(self.device))
        self.discriminator = channels_last(PatchDiscriminator().to(self.device))
        self.discriminator_optimizers = optimizers_of(
            self.discriminator.named_parameters(), {**self.optim, "lr": conf.discriminator_lr, "muon": 0.0},
            lambda name, p: False,
        )  # fmt: skip
        self.judge_step: GraphedStep | None = None
        self.guard = AdversarialGuard()
        self.adversarial = Phase("with a discriminator", conf.adversarial_from if conf.adversarial else math.inf)
        self.may_act, self.adapt = True, True
        self.weight, self.ramp, self.right = (torch.zeros((), device=self.device) for _ in range(3))

    def sharp(self, x: Tensor) -> Tensor:
        conf, act = self.recipe.sharp, bool(self.adversarial and self.adversarial.on and self.may_act)
        assert self.features is not None
        with self.autocast():
            with torch.no_grad():
                z_q = self.model.quantizer(self.model.analysis(2 * x - 1)).z_q
            x_hat = (self.run_net(z_q) + 1) / 2
            feature = self.features(*shifted(x, x_hat, conf.feature_shift)).mean()
        x_hat = x_hat.float()
        self.painted = x_hat.detach()
        loss = conf.l1 * F.l1_loss(x_hat, x) + conf.features * feature + conf.ms_ssim * msssim_loss(x, x_hat)
        if not act:
            return loss
        self.discriminator.requires_grad_(False)  # its gradients are not wanted here
        with self.autocast():
            adversarial = -self.discriminator(x_hat).mean()
        if self.adapt:  # the weight changes slowly, and costs two extra backward passes
            assert isinstance(self.net, nn.Sequential)
            last = self.net[-2].weight
            assert isinstance(last, nn.Parameter)
            self.weight.copy_(adaptive_weight(loss, adversarial, last))
        self.discriminator.requires_grad_(True)
        return loss + self.ramp * conf.adversarial * self.weight * adversarial

    def judge(self, x: Tensor, x_hat: Tensor) -> Tensor:
        """The loss of the discriminator, and the share of patches that it gets right."""
        with self.autocast():
            real, fake = self.discriminator(torch.cat([x, x_hat])).float().chunk(2)
        self.right.copy_((((real > 0).float().mean() + (fake < 0).float().mean()) / 2).detach())
        return hinge_discriminator(real, fake)

    def after_step(self, step: int, share: float, inputs: tuple[Tensor, ...], settings: tuple[bool, ...]) -> None:
        """A step of the discriminator, unless it is far ahead."""
        if self.adversarial is None:
            return
        self.ramp.fill_(min(1.0, max(0.0, share - self.adversarial.begin) / 0.1))
        if not settings[0]:
            return
        self.adapt = step % GUARDED_EVERY == 0 or not float(self.weight)
        pair = (inputs[0], self.painted)
        if self.judge_step is None:
            self.judge_step = GraphedStep(self.discriminator, self.judge, pair, False)
            self.judge_update = GraphedUpdate(
                self.judge_step, self.discriminator_optimizers, self.optim["grad_clip"]
            )  # fmt: skip
        self.losses["discriminator"] = self.judge_step(pair)
        if not self.guard.holding:
            # Its rate warms up and stays.
            set_rate(self.discriminator_optimizers, learning_rate(step, 0.0, self.optim["warmup_steps"], 1.0))
            self.judge_update()
        if step % GUARDED_EVERY == 0:
            self.may_act = self.guard.update(float(self.accelerator.reduce(self.right, reduction="mean")))
        self.losses |= {"right": self.guard.accuracy, "held": float(self.guard.held_steps), "weight": self.weight}

    def parts(self) -> dict[str, Any]:
        """The whole model: what stage 2 leaves as it is comes from stage 1."""
        parts = super().parts() | {"net": self.model}
        if self.adversarial is not None:
            guard = Attributes(self.guard, *vars(self.guard))
            parts["judge"] = [self.discriminator, self.discriminator_optimizers, guard]
            parts["acting"] = Attributes(self, *ACTING)
        return parts

    def loss(self, *inputs: Any) -> Tensor:
        """That of the stage."""
        return self.faithful(inputs[0]) if self.stage == "faithful" else self.sharp(inputs[0])

    # ---- evaluation

    def begin_phase(self, phase: Phase) -> None:
        """A discriminator trades a little feature distance for texture; what was best before still counts."""

    def score(self, rows: list[Row]) -> float:
        key, sign = ("features", -1) if self.stage == "sharp" else ("psnr", 1)
        return sum(sign * r[key] for r in rows) / len(rows)

    def keeps(self, score: float) -> bool:
        """With a discriminator a little more feature distance is kept, a collapse is not."""
        on = self.adversarial is not None and self.adversarial.on
        return score > self.best - (0.1 * abs(self.best) if on and self.best > -math.inf else 0)

    def save(self) -> None:
        folded = copy.deepcopy(self.model).cpu()
        folded.quantizer.fold()
        if self.stage == "faithful" and not self.args.resume:  # nets that are not trained yet are what they begin as
            first, *others = folded.synthesis.values()
            for net in others:
                net.load_state_dict(first.state_dict())
        with warnings.catch_warnings():  # that there is no entropy model yet: the export makes one
            warnings.simplefilter("ignore", UserWarning)
            folded.save_pretrained(self.out)

    def sample(self, medium: Tensor) -> tuple[Tensor, Tensor]:
        """With the synthesis net of the stage."""
        x = self.taken(medium)
        return x, self.model.decode(self.model.encode(x), self.shown_nets[-1])

    def views(self, medium: Tensor) -> Iterator[Tensor]:
        x = self.taken(medium)
        yield torch.cat([x, x.flip(3)])

    def rows(self, model: ImageGrid, medium: Tensor, prior: Any = None) -> Iterator[Row]:
        """PSNR, MS-SSIM, in stage 2 feature distance, and with a prior its bits per pixel, by synthesis and levels."""
        x = self.taken(medium)
        tokens = model.encode(x)
        bits = None if prior is None else prior.bits(tokens.codes[0].cpu().numpy()).cumsum()
        for synthesis in self.shown_nets:
            for n in range(1, len(model.codebook_sizes) + 1):
                x_hat = model.decode(tokens.levels(n), synthesis)
                row = {"psnr": psnr(x, x_hat)}
                if min(x.shape[2:]) >= MS_SSIM_SMALLEST:
                    row["ms_ssim"] = float(similarity(x, x_hat))
                if self.stage == "sharp" and self.features is not None:
                    row["features"] = float(self.features(x, x_hat))
                if bits is not None:
                    row["bpp_estimated"] = float(bits[n - 1]) / (x.shape[2] * x.shape[3])
                yield {"synthesis": synthesis, "levels": n, **row}

    # ---- run and export

    def run(self) -> None:
        self.plan()
        stages = [s for s in STAGES if s in self.args.stages and s in self.net_of]
        shares = {s: getattr(self.recipe, s).share for s in stages}
        total, found = sum(shares.values()), self.states.found
        if found is not None:
            stages = stages[stages.index(found["common"]["trainer"]["stage"]) :]
        for self.stage in stages:
            self.best, self.losses, self.shown_nets = -math.inf, {}, (self.net_of[self.stage],)
            getattr(self, f"begin_{self.stage}")()
            self.run_net = torch.compile(self.net) if self.args.compile else self.net
            self.phases = [self.adversarial] if self.adversarial else []
            self.train(shares[self.stage] / total)
            # The next stage and the export start from the best weights of this one.
            best = self.load_best()
            self.model.load_state_dict(best.state_dict())
            if self.main:  # what rounding to int8 and float16 cost: compare with the last line of the stage
                rows = self.measure(self.model, self.on_the_way)
                self.log(f"[{self.stage}, weights as released] " + "; ".join(self.shown(r, self.brief) for r in rows))
        self.shown_nets, self.stage = self.model.config.synthesis, ""
        self.conclude()

    def finish(self, model: ImageGrid, some: Sequence[Tensor]) -> tuple[ImageGrid, dict[str, Any]]:
        """Set the penalties of the search to the smallest that meet the recipe's limits."""
        conf, levels = self.recipe.export, model.codebooks
        if not levels:  # nothing is searched, so no search can count bits
            return model, {}
        passes = ROUNDS * len(conf.rate_weights)
        each = passes * self.seconds_of(lambda: self.count(model, some[:1]))
        some = self.some(some[:: max(1, len(some) // COUNTED)], EXPORT_CHOICE, each)
        held = self.some(self.tested, EXPORT_CHOICE, self.cost * len(conf.rate_weights))
        no_penalties(levels)
        slopes = lambdas(levels, latents_of(model, some[:50]))
        self.shown_nets = model.config.synthesis[:1]
        least, before = 0.0, [level.penalty for level in levels]
        for weight in conf.rate_weights:
            counts = set_penalties(levels, weight, slopes, lambda: self.count(model, some))
            usage = [float((c > 0).double().mean()) for c in counts]
            if weight and min(usage) < least:
                self.log(f"rate weight {weight:.2f} leaves codewords unused: " + " ".join(f"{u:.4f}" for u in usage))
                for level, penalty in zip(levels, before, strict=True):
                    level.penalty = penalty
                break
            before, self.rate_weight = [level.penalty for level in levels], weight
            least = least or LEAST_USAGE * min(1.0, min(usage))
            rows = self.measure(model, held, static_prior(counts))
            shown = "; ".join(self.shown(r, ("bpp_estimated", "psnr")) for r in rows)
            self.log(f"rate weight {weight:.2f}  held-out {shown}  usage " + " ".join(f"{u:.4f}" for u in usage))
            if all(r["bpp_estimated"] <= limit for r, limit in zip(rows, conf.bpp_limits, strict=True)):
                break
        self.shown_nets = model.config.synthesis
        model.cpu().save_pretrained(self.out)
        return ImageGrid.from_pretrained(self.out).to(self.device), {"rate_weight": self.rate_weight}


def main() -> None:
    parser = trainer_arguments(__doc__, "image-grid", graphs=False)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--compile", action="store_true", help="torch.compile the trained nets")
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
