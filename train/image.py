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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch._functorch.config
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from pytorch_msssim import ms_ssim
from torch import Tensor, nn

from ..codec.metrics.features import FeatureDistance
from ..codec.provenance import as_json
from ..entropy.static import StaticPrior
from ..entropy.tables import table_bits
from ..tokenizers.folders import CONFIG_FILE
from ..tokenizers.image.grid import ImageGrid, ImageGridConfig
from ..tokenizers.image.layers import STRIDE, channels_last
from ..tokenizers.quantize.residual import ResidualQuantizer
from .data.images import CropStore, list_images, read_all
from .loop import STEPS_A_CHECK, Clock, learning_rate, psnr, residual_energies, run_script, training_arguments
from .losses.adversarial import AdversarialGuard, PatchDiscriminator, adaptive_weight, hinge_discriminator

STAGES = ("faithful", "sharp")
EVALUATIONS = 8  # a stage
HOLDOUT_QUICK = 24  # held-out pictures that evaluations on the way look at
LEAST_USAGE = 0.97  # of the codewords in use without penalty must stay in use with it
MSSSIM_EVERY = 4  # the MS-SSIM loss looks at every 4th crop of a batch


class Autoencoder(nn.Module):
    """What stage 1 trains, as one module, so that data-parallel wrappers see every parameter used in forward."""

    def __init__(self, model: ImageGrid) -> None:
        super().__init__()
        self.analysis = model.analysis
        self.quantizer = model.quantizer
        self.synthesis = model.synthesis[model.config.synthesis[0]]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x [B, 3, H, W]`` in [0, 1] to (x_hat, commitment_loss, codebook_loss)."""
        out = self.quantizer(self.analysis(2 * x - 1))
        return (self.synthesis(out.z_q) + 1) / 2, out.commitment_loss, out.codebook_loss


def pixel_loss(x: Tensor, x_hat: Tensor, kind: str) -> Tensor:
    mse = F.mse_loss(x_hat, x, reduction="none").mean((1, 2, 3))  # [B]
    if kind == "mse":
        return mse.mean()
    if kind == "log-mse":
        return (mse + 1e-4).log().mean()
    raise ValueError(f"unknown pixel loss {kind!r}: use 'mse' or 'log-mse'")


def shifted(x: Tensor, x_hat: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Cut both ``[B, 3, H, W]`` to ``[B, 3, H - shift, W - shift]`` at one random place, the same in both.

    Without it the codes' grid and the strides of the feature net always meet in the same phase, and the synthesis net
    may learn patterns that please this net at this phase and no other.
    """
    top, left = torch.randint(shift + 1, (2,)).tolist()
    height, width = x.shape[2] - shift, x.shape[3] - shift
    window = (..., slice(top, top + height), slice(left, left + width))
    return x[window], x_hat[window]


def msssim_loss(x: Tensor, x_hat: Tensor) -> Tensor:
    return 1 - ms_ssim(x_hat.float(), x.float(), data_range=1.0)


@torch.no_grad()
def evaluate(
    model: ImageGrid, pictures: list[Tensor], prior: StaticPrior | None = None, features: FeatureDistance | None = None
) -> dict[str, list[dict[str, float]]]:
    """Mean results by synthesis net and number of levels: psnr, ms_ssim, feature distance, static bits per pixel."""
    device = model.device
    table: dict[str, list[dict[str, float]]] = {}
    batch = [p.to(device).permute(2, 0, 1)[None].float() / 255 for p in pictures]
    tokens = [model.encode(x) for x in batch]
    for synthesis in model.config.synthesis:
        table[synthesis] = []
        for levels in range(1, len(model.codebook_sizes) + 1):
            sums: dict[str, float] = {}
            for x, t in zip(batch, tokens, strict=True):
                x_hat = model.decode(t.levels(levels), synthesis)
                row = {"psnr": psnr(x, x_hat)}
                if min(x.shape[2:]) > 160:
                    row["ms_ssim"] = float(ms_ssim(x_hat, x, data_range=1.0))
                if features is not None:
                    row["features"] = float(features(x, x_hat))
                if prior is not None:
                    bits = prior.bits(t.codes[0].cpu().numpy())[:levels].sum()
                    row["bpp_estimated"] = float(bits) / (x.shape[2] * x.shape[3])
                for key, value in row.items():
                    sums[key] = sums.get(key, 0.0) + value
            table[synthesis].append({key: value / len(batch) for key, value in sums.items()})
    return table


def show(table: dict[str, list[dict[str, float]]]) -> str:
    lines = []
    for synthesis, rows in table.items():
        for levels, row in enumerate(rows, 1):
            lines.append(f"{synthesis:>9} {levels} " + "  ".join(f"{k} {v:.4f}" for k, v in row.items()))
    return "\n".join(lines)


@torch.no_grad()
def count_codes(model: ImageGrid, pictures: list[Tensor]) -> list[Tensor]:
    """Histogram of the codes of every level over ``pictures`` and their mirror images, ``[N_k]`` each."""
    counts = [torch.zeros(n, dtype=torch.long) for n in model.codebook_sizes]
    for picture in pictures:
        x = picture.to(model.device).permute(2, 0, 1)[None].float() / 255
        codes = model.encode(torch.cat([x, x.flip(3)])).codes
        for k, count in enumerate(counts):
            count += torch.bincount(codes[:, k].flatten().cpu(), minlength=count.numel())
    return counts


def latents_of(model: ImageGrid, pictures: list[Tensor]) -> Iterator[Tensor]:
    """Latents ``[1, D, h, w]`` of the whole cells of pictures."""
    for picture in pictures:
        height, width = (n - n % STRIDE for n in picture.shape[:2])
        yield model.latents(picture[:height, :width].to(model.device).permute(2, 0, 1)[None].float() / 255)


class Trainer:
    """One run of a recipe; see the module's text."""

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        self.recipe, self.args = recipe, args
        kwargs = DistributedDataParallelKwargs(broadcast_buffers=False)
        self.accelerator = Accelerator(
            mixed_precision=args.precision, kwargs_handlers=[kwargs], cpu=not torch.cuda.is_available()
        )
        self.device = self.accelerator.device
        rank = self.accelerator.process_index
        set_seed(args.seed)  # the same frozen basis on all ranks: buffers are not synchronised
        torch.backends.cuda.matmul.allow_tf32 = False  # codes are searched in float32
        torch.backends.cudnn.benchmark = True
        # The adaptive weight looks at gradients before backward() proper, so compiled buffers must outlive one pass.
        torch._functorch.config.donated_buffer = False
        self.main = self.accelerator.is_main_process

        paths = list_images(args.data)
        every = recipe["data"]["holdout_every"]
        self.log(f"{len(paths)} pictures, {self.accelerator.num_processes} processes on {self.device}")
        pictures = read_all(paths)
        self.holdout = pictures[::every]
        self.pictures = [p for i, p in enumerate(pictures) if i % every]
        size = recipe["data"]["crop"]
        self.store = CropStore(self.pictures, size, self.device, recipe["data"]["zoom"], seed=args.seed * 1000 + rank)
        self.log(f"{len(self.store)} to train on, {len(self.holdout)} held out")

        if args.resume:
            self.model = ImageGrid.from_pretrained(args.resume)
            for level in self.model.codebooks:  # training and its evaluations search without regard to bits
                level.penalty = torch.zeros(level.codebook_sizes)
        else:
            sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe["model"].items()}
            self.model = ImageGrid(name=sizes.pop("name"), config=ImageGridConfig(**sizes))
            for level in self.model.codebooks:
                level.gradient = recipe["optim"]["gradient"]
            self.model.quantizer.gradient = recipe["optim"]["gradient"]
        channels_last(self.model.to(self.device))
        set_seed(args.seed + rank)
        # The first synthesis net is trained in stage 1, the second, if there is one, in stage 2.
        self.net_of = dict(zip(STAGES, self.model.config.synthesis, strict=False))
        self.out = Path(args.out)
        self.features: FeatureDistance | None = None
        self.best = {"faithful": -1e9, "sharp": -1e9}
        self.rate_weight = 0.0
        self.history: list[dict[str, Any]] = []

    def log(self, text: str) -> None:
        if self.main:
            print(text, flush=True)

    def save(self) -> None:
        if self.main:
            copy_of = copy.deepcopy(self.model).cpu()
            for level in copy_of.codebooks:
                level.fold()
            copy_of.save_pretrained(self.out)

    def optimizer(self, module: nn.Module, lr: float) -> torch.optim.AdamW:
        fused = self.device.type == "cuda"
        betas = tuple(self.recipe["optim"]["betas"])
        return torch.optim.AdamW(module.parameters(), lr=lr, betas=betas, weight_decay=0.0, fused=fused)

    def step(self, loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """One guarded update: gradients are clipped, a step with a non-finite gradient is left out."""
        optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(module.parameters(), self.recipe["optim"]["grad_clip"])
        finite = torch.isfinite(torch.as_tensor(norm, device=self.device))
        for parameter in module.parameters():  # no synchronisation with the host: a bad gradient becomes zero
            if parameter.grad is not None:
                parameter.grad = torch.where(finite, parameter.grad, torch.zeros_like(parameter.grad))
        optimizer.step()

    def set_rate(self, optimizer: torch.optim.Optimizer, base: float, step: int, share: float) -> None:
        optim = self.recipe["optim"]
        for group in optimizer.param_groups:
            group["lr"] = base * learning_rate(step, share, optim["warmup_steps"], optim["cooldown"])

    def check(self, stage: str, step: int, share: float, crops: int, seconds: float, **losses: Tensor | float) -> None:
        """Evaluate on the held-out pictures, log, and keep the weights if they are the best of this stage."""
        if not self.main:
            return
        self.model.eval()
        torch.backends.cudnn.benchmark = False  # pictures of many sizes: nothing to tune for
        features = self.features if stage == "sharp" else None
        rows = evaluate(self.model, self.holdout[:HOLDOUT_QUICK], features=features)[self.net_of[stage]]
        score = sum(-r["features"] if features is not None else r["psnr"] for r in rows) / len(rows)
        usage = [level.usage.report() for level in self.model.codebooks]
        if stage == "faithful":
            for level in self.model.codebooks:
                level.usage.reset()
        # A discriminator trades a little feature distance for texture: that is kept, a collapse is not.
        kept = score > self.best[stage] - (0.1 * abs(self.best[stage]) if stage == "sharp" else 0)
        if kept:
            self.best[stage] = max(score, self.best[stage])
            self.save()
        self.history.append({"stage": stage, "step": step, "share": share, "rows": rows})
        self.log(
            f"[{stage} {100 * share:5.1f} %] step {step} {crops / seconds:.0f} crops/s  "
            + " ".join(f"{k} {float(v):.4f}" for k, v in losses.items())
            + "  held-out "
            + " ".join(f"{r['psnr']:.2f}" for r in rows)
            + (" features " + " ".join(f"{r['features']:.4f}" for r in rows) if features is not None else "")
            + (" usage " + " ".join(f"{u.usage:.3f}" for u in usage) if stage == "faithful" else "")
            + (" kept" if kept else "")
        )
        self.model.train()
        torch.backends.cudnn.benchmark = True

    def run_stage(self, stage: str, seconds: float, body: Any) -> None:
        clock, step, crops, checked = Clock(self.accelerator, seconds), 0, 0, -1
        next_check = 1 / EVALUATIONS
        losses: dict[str, Any] = {}
        while True:
            if step % STEPS_A_CHECK == 0 and clock.read() >= 1:
                break
            losses = body(step, clock.share)
            step += 1
            crops += self.recipe["optim"]["batch"] * self.accelerator.num_processes
            if clock.share >= next_check and step % STEPS_A_CHECK == 0:
                next_check += 1 / EVALUATIONS
                self.check(stage, step, clock.share, crops, time.monotonic() - clock.begin, **losses)
                checked = step
        if step > checked:
            self.check(stage, step, 1.0, crops, time.monotonic() - clock.begin, **losses)
        self.accelerator.wait_for_everyone()

    def faithful(self, seconds: float) -> None:
        conf = self.recipe["faithful"]
        self.model.train()
        auto: nn.Module = Autoencoder(self.model)
        features = FeatureDistance("lite0").to(self.device) if conf["features"] else None
        optimizer = self.optimizer(auto, self.recipe["optim"]["lr"])
        auto = self.accelerator.prepare_model(torch.compile(auto) if self.args.compile else auto)
        base = self.recipe["optim"]["lr"]

        def body(step: int, share: float) -> dict[str, Tensor]:
            self.set_rate(optimizer, base, step, share)
            x = self.store.batch(self.recipe["optim"]["batch"]).contiguous(memory_format=torch.channels_last)
            with self.accelerator.autocast():
                x_hat, commitment, codebook = auto(x)
            x_hat = x_hat.float()
            pixel = pixel_loss(x, x_hat, conf["pixel"])
            loss = conf["pixel_weight"] * pixel + conf["commitment"] * commitment + conf["codebook"] * codebook
            if conf["ms_ssim"]:
                part = slice(0, None, MSSSIM_EVERY)  # costly in float32, and a part of the batch serves as well
                loss = loss + conf["ms_ssim"] * msssim_loss(x[part], x_hat[part])
            if features is not None:
                with self.accelerator.autocast():
                    loss = loss + conf["features"] * features(x, x_hat).mean()
            self.step(loss, auto, optimizer)
            return {"pixel": pixel.detach(), "commitment": commitment.detach()}

        self.run_stage("faithful", seconds, body)

    def sharp(self, seconds: float) -> None:
        conf = self.recipe["sharp"]
        plain = self.model.synthesis[self.net_of["sharp"]]
        if not self.args.resume:
            plain.load_state_dict(self.model.synthesis[self.net_of["faithful"]].state_dict())
        self.model.requires_grad_(False)
        plain.requires_grad_(True)
        assert isinstance(plain, nn.Sequential)
        last = plain[-2].weight
        assert isinstance(last, nn.Parameter)
        quantizer: ResidualQuantizer = self.model.quantizer
        self.features = features = channels_last(FeatureDistance("lite0").to(self.device))
        critic_net = channels_last(PatchDiscriminator().to(self.device))
        optimizer = self.optimizer(plain, conf["lr"])
        critic_optimizer = self.optimizer(critic_net, conf["discriminator_lr"])
        net: nn.Module = self.accelerator.prepare_model(torch.compile(plain) if self.args.compile else plain)
        critic: nn.Module = self.accelerator.prepare_model(critic_net)
        guard = AdversarialGuard()
        state = {"act": True, "weight": 0.0}

        def body(step: int, share: float) -> dict[str, Tensor | float]:
            self.set_rate(optimizer, conf["lr"], step, share)
            self.set_rate(critic_optimizer, conf["discriminator_lr"], step, 0.0)
            x = self.store.batch(self.recipe["optim"]["batch"]).contiguous(memory_format=torch.channels_last)
            with torch.no_grad(), self.accelerator.autocast():
                z_q = quantizer(self.model.analysis(2 * x - 1)).z_q
            with self.accelerator.autocast():
                x_hat = (net(z_q) + 1) / 2
                feature = features(*shifted(x, x_hat, conf["feature_shift"])).mean()
            x_hat = x_hat.float()
            l1 = F.l1_loss(x_hat, x)
            part = slice(0, None, MSSSIM_EVERY)
            loss = conf["l1"] * l1 + conf["features"] * feature + conf["ms_ssim"] * msssim_loss(x[part], x_hat[part])
            losses: dict[str, Tensor | float] = {"l1": l1.detach(), "feature": feature.detach()}
            adversarial_on = share >= conf["adversarial_from"] and conf["adversarial"] > 0
            if adversarial_on and state["act"]:
                critic.requires_grad_(False)  # its gradients are not wanted here, nor their all-reduce
                with self.accelerator.autocast():
                    adversarial = -critic_net(x_hat).mean()
                if step % 10 == 0 or not state["weight"]:  # it changes slowly, and costs two extra backward passes
                    state["weight"] = float(adaptive_weight(loss, adversarial, last))
                ramp = min(1.0, (share - conf["adversarial_from"]) / 0.1)
                loss = loss + ramp * conf["adversarial"] * state["weight"] * adversarial
                losses |= {"adversarial": adversarial.detach(), "weight": state["weight"]}
            self.step(loss, net, optimizer)
            if adversarial_on:
                critic.requires_grad_(True)
                with self.accelerator.autocast():
                    real, fake = critic(torch.cat([x, x_hat.detach()])).float().chunk(2)
                if not guard.holding:
                    self.step(hinge_discriminator(real, fake), critic, critic_optimizer)
                if step % 10 == 0:
                    right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
                    right = self.accelerator.reduce(right.detach(), reduction="mean")
                    state["act"] = guard.update(float(right))
                losses |= {"critic": guard.accuracy, "held": float(guard.held_steps)}
            return losses

        self.run_stage("sharp", seconds, body)

    @torch.no_grad()
    def choose_rate_weight(self, model: ImageGrid) -> None:
        """Set the penalties of the search (entropy-constrained quantization) to the smallest that meets the recipe."""
        conf = self.recipe["export"]
        some = self.pictures[:: max(1, len(self.pictures) // 200)]
        levels = model.codebooks
        for level in levels:
            level.penalty = torch.zeros(level.codebook_sizes, device=self.device)
        energies = residual_energies(model.codebooks, latents_of(model, some[:50]))
        slopes = [2 * math.log(2) * energy / model.config.dim for energy in energies]
        plain = count_codes(model, some)
        plain_usage = [float((c > 0).double().mean()) for c in plain]
        before: list[Tensor | None] = []
        for weight in conf["rate_weights"]:
            counts = plain
            for _ in range(2 if weight else 0):  # the penalty changes the statistics that it is made of
                bits = [table_bits(table) for table in StaticPrior.from_counts([c.numpy() for c in counts]).tables]
                for level, slope, b in zip(levels, slopes, bits, strict=True):
                    level.penalty = torch.from_numpy(weight * slope * (b - b.min())).float().to(self.device)
                counts = count_codes(model, some)
            usage = [float((c > 0).double().mean()) for c in counts]
            if weight and min(usage) < LEAST_USAGE * min(1.0, min(plain_usage)):
                self.log(f"rate weight {weight:.2f} leaves codewords unused: " + " ".join(f"{u:.4f}" for u in usage))
                for level, penalty in zip(levels, before, strict=True):
                    level.penalty = penalty
                break
            before = [level.penalty for level in levels]
            prior = StaticPrior.from_counts([c.numpy() for c in counts])
            rows = evaluate(model, self.holdout, prior)[model.config.synthesis[0]]
            self.log(
                f"rate weight {weight:.2f}  held-out "
                + "  ".join(f"{r['bpp_estimated']:.4f} bpp {r['psnr']:.3f} dB" for r in rows)
                + "  usage "
                + " ".join(f"{u:.4f}" for u in usage)
            )
            self.rate_weight = weight
            if all(r["bpp_estimated"] <= limit for r, limit in zip(rows, conf["bpp_limits"], strict=True)):
                break

    def export(self) -> None:
        """Tables of the static prior from the best weights, codebook usage, results on the test pictures."""
        if not self.main:
            return
        begin = time.monotonic()
        torch.backends.cudnn.benchmark = False
        model = ImageGrid.from_pretrained(self.out).to(self.device)
        self.choose_rate_weight(model)
        model.cpu().save_pretrained(self.out)
        model = ImageGrid.from_pretrained(self.out).to(self.device)
        counts = count_codes(model, self.pictures)
        prior = StaticPrior.from_counts([c.numpy() for c in counts])
        prior.save_pretrained(self.out)
        usage = [float((c > 0).float().mean()) for c in counts]
        results: dict[str, Any] = {
            "codebook_usage": usage,
            "holdout": evaluate(model, self.holdout, prior),
            "minutes": self.args.minutes,
            "processes": self.accelerator.num_processes,
            "machine": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "pictures": len(self.pictures),
            "seed": self.args.seed,
            "rate_weight": self.rate_weight,
            "recipe": self.recipe,
            "history": self.history,
        }
        self.log("codebook usage on the training set: " + " ".join(f"{u:.4f}" for u in usage))
        self.log("held-out pictures\n" + show(results["holdout"]))
        if self.args.test:
            results["test"] = evaluate(model, read_all(list_images([self.args.test])), prior)
            self.log("test pictures\n" + show(results["test"]))
        (self.out / "training.json").write_text(as_json(results))
        self.log(f"exported to {self.out} in {time.monotonic() - begin:.0f} s")

    def run(self) -> None:
        seconds = 60 * self.args.minutes
        stages = [s for s in STAGES if s in self.args.stages and s in self.net_of]
        total = sum(self.recipe[s]["share"] for s in stages)
        for stage in stages:
            getattr(self, stage)(seconds * self.recipe[stage]["share"] / total)
            # The next stage and the export start from the best weights of this one.
            self.accelerator.wait_for_everyone()
            if not (self.out / CONFIG_FILE).is_file():
                raise ValueError(f"stage {stage} gave no finite result: lower its learning rate")
            best = ImageGrid.from_pretrained(self.out)
            self.model.load_state_dict(best.state_dict())
            if self.main:  # what rounding to int8 and float16 cost: compare with the last line of the stage
                rows = evaluate(self.model, self.holdout[:HOLDOUT_QUICK])[self.net_of[stage]]
                self.log(f"[{stage}, weights as released] held-out " + " ".join(f"{r['psnr']:.3f}" for r in rows))
        self.export()
        self.accelerator.end_training()


def main() -> None:
    parser = training_arguments(__doc__, "image-grid")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--compile", action="store_true", help="torch.compile the trained nets")
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
