"""Train, evaluate and export a sequence tokenizer for pictures in one command.

    python -m tokodec.train.image_1d --recipe image-1d --data PICTURES... --test KODAK --minutes 25 --out OUT

Every crop is one window and keeps a random number of its tokens, the first ones; the others are not there for the
synthesis (tail token drop). In the first part of the time latents are not quantized, then the codebook starts as their
k-means. The loss is a power of each crop's squared error, so that crops with few tokens do not outweigh the others. The
budget is wall-clock minutes. The best weights so far (by the held-out pictures) lie in OUT at any time;
``--resume FOLDER`` starts from released weights. The last thing printed is a table on the test pictures.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..codec.provenance import as_json
from ..entropy.tail import TailPrior
from ..tokenizers.folders import find_model
from ..tokenizers.image.sequence import CORE, MARGIN, ImageSequence, ImageSequenceConfig
from ..tokenizers.quantize.simvq import SimVQ
from ..tokenizers.quantize.vq import kmeans
from .data.images import CropStore, list_images, read_all
from .graphed import GraphedStep
from .loop import (
    Pace,
    TrainingRun,
    optimizers_of,
    psnr,
    run_script,
    training_arguments,
)

EVALUATIONS = 8
HOLDOUT_QUICK = 16
TEST_TOKENS = (16, 32, 64, 128, 256)
STARTS = 40  # batches whose latents the codebook starts from
DARK = 1e-4  # added to a squared error before its power


class Autoencoder(nn.Module):
    """What is trained, as one module."""

    def __init__(self, model: ImageSequence) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, kept: Tensor, quantized: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``x [B, 3, 272, 272]`` in [0, 1] and numbers of tokens ``[B]`` to (x_hat, three losses of the quantizer)."""
        z = self.model.analysis(2 * x - 1).float()
        none = z.new_zeros(())
        z_q, *losses = z, z.square().mean(), none, none
        if quantized:
            out = self.model.quantizer(z)
            z_q, losses = out.z_q, [out.commitment_loss, out.codebook_loss, out.auxiliary_loss]
        there = torch.arange(z_q.shape[2], device=x.device) < kept[:, None]
        x_hat = (self.model.synthesis(z_q, there).float() + 1) / 2
        commitment, codebook, auxiliary = losses
        return x_hat, commitment, codebook, auxiliary


class Trainer(TrainingRun):
    """One run of a recipe; see the module's text."""

    benchmark = False

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        pictures = read_all(list_images(args.data))
        every = recipe["data"]["holdout_every"]
        self.holdout = pictures[::every]
        self.pictures = [p for i, p in enumerate(pictures) if i % every]
        self.store = CropStore(self.pictures, CORE + 2 * MARGIN, self.device, recipe["data"]["zoom"], seed=self.seed)
        self.log(f"{len(self.store)} pictures to train on, {len(self.holdout)} held out, on {self.device}")

        model = ImageSequence(ImageSequenceConfig(**recipe["model"]), recipe["name"])
        if args.resume:
            released = ImageSequence.from_pretrained(find_model(args.resume))
            if released.config != model.config:
                raise ValueError(f"{args.resume} has other sizes than the recipe")
            model.load_state_dict(released.state_dict())
        self.model = model.to(self.device)
        self.net = Autoencoder(self.model)
        self.log(f"model {sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M")
        self.own_seeds()
        self.best = -math.inf
        self.history: list[dict[str, Any]] = []

    @torch.no_grad()
    def start(self) -> None:
        """A SimVQ codebook begins as the k-means of what the net makes of pictures."""
        quantizer = self.model.quantizer
        if not isinstance(quantizer, SimVQ):
            return
        crops = (self.store.batch(self.recipe["optim"]["batch"]) for _ in range(STARTS))
        rows = torch.cat([self.model.analysis(2 * x - 1).transpose(1, 2).flatten(0, 1) for x in crops])
        rows = rows[torch.randperm(len(rows), device=rows.device)[: 16 * quantizer.codebook_sizes[0]]]
        quantizer.basis.copy_(broadcast(kmeans(rows.float(), quantizer.codebook_sizes[0])))

    def optimizers(self) -> list[torch.optim.Optimizer]:
        def in_a_block(name: str, p: nn.Parameter) -> bool:
            return p.ndim == 2 and ".blocks." in name

        return optimizers_of(self.model.named_parameters(), self.recipe["optim"], in_a_block)

    def run(self) -> None:
        optim = self.recipe["optim"]
        self.out.mkdir(parents=True, exist_ok=True)
        optimizers = self.optimizers()
        compute: GraphedStep | None = None
        loss = norm = torch.tensor(math.nan)
        batch = optim["batch"]
        quantized = bool(self.args.resume)
        self.model.train()
        pace = Pace(self, optimizers, EVALUATIONS)
        for step in pace:
            x, kept = self.store.batch(batch), self.kept(batch)
            if not quantized and pace.share >= self.recipe["quantized_from"]:
                quantized = True
                self.start()
                self.log(f"[{100 * pace.share:5.1f} %] from here on quantized, step {step}, loss {float(loss):.4f}")
            if compute is None:
                compute = GraphedStep(self.net, self.loss, (x, kept), not self.args.eager)
            loss = compute((x, kept), quantized)
            norm = compute.clip(optim["grad_clip"])
            for optimizer in optimizers:
                optimizer.step()
            if pace.due:
                self.check(step, pace.share, pace.seconds, loss, norm)
        if pace.step:
            self.check(pace.step, 1.0, pace.seconds, loss, norm)
        elif self.main:
            self.model.save_pretrained(self.out)
        self.accelerator.wait_for_everyone()
        if self.main:
            self.export()
        self.accelerator.end_training()

    def kept(self, batch: int) -> Tensor:
        """Numbers of tokens ``[batch]``: some crops keep all, of the others half draw evenly, half by powers of two."""
        most = self.model.config.tokens
        rand = torch.rand(3, batch, device=self.device, generator=self.generator)
        even = 1 + most * rand[0]
        powers = float(most) ** rand[0]
        drawn = torch.where(rand[1] < 0.5, even, powers).long().clamp(1, most)
        return torch.where(rand[2] < self.recipe["data"]["whole"], most, drawn)

    def loss(self, x: Tensor, kept: Tensor, quantized: bool) -> Tensor:
        conf = self.recipe["loss"]
        bf16 = self.args.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            x_hat, commitment, codebook, auxiliary = self.net(x, kept, quantized)
        square = (x - x_hat).square().mean((1, 2, 3))
        total = conf["pixel"] * (square + DARK).pow(conf["power"]).mean()
        total = total + conf["commitment"] * commitment + conf["codebook"] * codebook
        return total + conf["auxiliary"] * auxiliary

    def check(self, step: int, share: float, seconds: float, loss: Tensor, norm: Tensor) -> None:
        if not self.main:
            return
        rows = measure(self.model, self.holdout[:HOLDOUT_QUICK])
        score = sum(r["psnr"] for r in rows) / len(rows)
        kept = score > self.best
        if kept:
            self.best = score
            self.model.save_pretrained(self.out)
        self.history.append({"step": step, "share": share, "seconds": seconds, "rows": rows})
        crops = step * self.recipe["optim"]["batch"] * self.accelerator.num_processes
        self.log(
            f"[{100 * share:5.1f} %] step {step} {crops / seconds:.0f} crops/s loss {float(loss):.4f}"
            f" norm {float(norm):.2f} held-out {score:.3f} dB  "
            + "  ".join(f"{r['tokens']}: {r['psnr']:.2f}" for r in rows)
            + (" kept" if kept else "")
        )

    def export(self) -> None:
        """Show what the released weights do, and write the prior of their codes."""
        model = ImageSequence.from_pretrained(self.out).to(self.device)
        counts = histograms(model, self.pictures)
        TailPrior.from_counts(counts.numpy()).save_pretrained(self.out)
        usage = float((counts.sum(0) > 0).float().mean())
        results: dict[str, Any] = {
            "holdout": measure(model, self.holdout),
            "codebook_usage": usage,
            "bits": code_bits(counts),
            "minutes": self.args.minutes,
            "processes": self.accelerator.num_processes,
            "machine": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "pictures": len(self.pictures),
            "seed": self.args.seed,
            "recipe": self.recipe,
            "history": self.history,
        }
        if self.args.test:
            results["test"] = measure(model, read_all(list_images([self.args.test])))
        (self.out / "training.json").write_text(as_json(results))
        self.log(f"codebook usage {usage:.3f}, order-0 bits a code {results['bits']:.3f}")
        for name in ("holdout", "test"):
            for r in results.get(name, []):
                self.log(f"{name:>8} {r['tokens']:>3} tokens  {r['psnr']:.3f} dB")


@torch.no_grad()
def measure(model: ImageSequence, pictures: list[Tensor]) -> list[dict[str, float]]:
    """Mean PSNR of pictures (uint8 ``[H, W, 3]``) for every number of tokens a window."""
    training = model.training
    model.eval()
    sizes = [n for n in TEST_TOKENS if n <= model.config.tokens] or [model.config.tokens]
    sums = [0.0] * len(sizes)
    for picture in pictures:
        x = picture.to(model.device).permute(2, 0, 1)[None].float() / 255
        tokens = model.encode(x)
        for i, n in enumerate(sizes):
            sums[i] += psnr(x, model.decode(tokens.levels(n)))
    model.train(training)
    return [{"tokens": n, "psnr": total / len(pictures)} for n, total in zip(sizes, sums, strict=True)]


@torch.no_grad()
def histograms(model: ImageSequence, pictures: list[Tensor]) -> Tensor:
    """How often every token takes each code over ``pictures`` and their mirror images, ``[tokens, N]``."""
    counts = torch.zeros(model.config.tokens, model.config.codebook_size, dtype=torch.int64)
    ones = torch.ones((), dtype=torch.int64)
    for picture in pictures:
        x = picture.to(model.device).permute(2, 0, 1)[None].float() / 255
        codes = model.encode(torch.cat([x, x.flip(3)])).codes.transpose(0, 1).flatten(1).cpu()  # [tokens, windows]
        counts.scatter_add_(1, codes, ones.expand_as(codes))
    return counts


def code_bits(counts: Tensor) -> float:
    """Bits of a code by the histogram of its token ``[tokens, N]``, mean over tokens."""
    shares = counts / counts.sum(1, keepdim=True)
    return float(torch.special.entr(shares).sum(1).mean()) / math.log(2)


def main() -> None:
    parser = training_arguments(__doc__, "image-1d")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
