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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..entropy.tail import TailPrior
from ..tokenizers.image.sequence import CORE, MARGIN, ImageSequence, ImageSequenceConfig
from ..tokenizers.quantize.vq import kmeans
from .data.images import list_images, read_rgb
from .loop import optimizers_of, psnr, run_script
from .recipe import Optim
from .trainer import BaseTrainer, Phase, Row, trainer_arguments

TEST_TOKENS = (16, 32, 64, 128, 256)
STARTS = 40  # batches whose latents the codebook starts from
DARK = 1e-4  # added to a squared error before its power


@dataclass(frozen=True)
class Data:
    """Crops."""

    zoom: float
    whole: float  # share of crops that keep all tokens
    holdout_every: int


@dataclass(frozen=True)
class Loss:
    """Weights of its parts."""

    pixel: float
    power: float  # of a crop's mean squared error
    commitment: float
    codebook: float
    auxiliary: float  # entropy penalty of binary codes


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; ``train/recipes/image-1d.yaml`` says what they mean."""

    name: str
    model: ImageSequenceConfig
    quantized_from: float  # share of the time, before which latents are not quantized
    data: Data
    loss: Loss
    optim: Optim
    cpu: tuple[str, ...] = ()  # changes where there is no GPU


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


class Trainer(BaseTrainer):
    """One run of a recipe; see the module's text."""

    recipe_class = Recipe
    quick = 16
    benchmark = False

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        self.test_on(list_images, read_rgb)
        data = self.recipe.data
        self.store = self.picture_store(CORE + 2 * MARGIN, data.holdout_every, zoom=data.zoom)
        self.log(f"{len(self.store)} pictures to train on, {len(self.held)} held out, on {self.device}")
        self.media, self.held = self.middles(self.media, self.held)
        model = ImageSequence(self.recipe.model, self.recipe.name)
        self.model = (self.resumed(model) if args.resume else model).to(self.device)
        self.graphs = not model.quantizer.moves
        self.net = Autoencoder(self.model)
        self.log(f"model {sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M")
        self.own_seeds()
        self.phases = [Phase("quantized", self.recipe.quantized_from, on=bool(args.resume))]

    @torch.no_grad()
    def begin_phase(self, phase: Phase) -> None:
        """A codebook that is a table begins as the k-means of what the net makes of pictures."""
        super().begin_phase(phase)
        quantizer = self.model.quantizer
        if not quantizer.cascade:
            return
        crops = (self.store.batch(self.optim["batch"]) for _ in range(STARTS))
        rows = torch.cat([self.model.analysis(2 * x - 1).transpose(1, 2).flatten(0, 1) for x in crops])
        rows = rows[torch.randperm(len(rows), device=rows.device)[: 16 * quantizer.codebook_sizes[0]]]
        quantizer.start(rows.float(), lambda rows, n: broadcast(kmeans(rows, n)))

    def optimizers(self) -> list[torch.optim.Optimizer]:
        def in_a_block(name: str, p: nn.Parameter) -> bool:
            return p.ndim == 2 and ".blocks." in name

        return optimizers_of(self.model.named_parameters(), self.optim, in_a_block)

    def inputs(self) -> tuple[Tensor, ...]:
        batch = self.optim["batch"]
        return self.store.batch(batch), self.kept(batch)

    def kept(self, batch: int) -> Tensor:
        """Numbers of tokens ``[batch]``: some crops keep all, of the others half draw evenly, half by powers of two."""
        most = self.model.config.tokens
        rand = torch.rand(3, batch, device=self.device, generator=self.generator)
        even = 1 + most * rand[0]
        powers = float(most) ** rand[0]
        drawn = torch.where(rand[1] < 0.5, even, powers).long().clamp(1, most)
        return torch.where(rand[2] < self.recipe.data.whole, most, drawn)

    def loss(self, x: Tensor, kept: Tensor, quantized: bool) -> Tensor:
        conf = self.recipe.loss
        with self.autocast():
            x_hat, commitment, codebook, auxiliary = self.net(x, kept, quantized)
        square = (x - x_hat).square().mean((1, 2, 3))
        total = conf.pixel * (square + DARK).pow(conf.power).mean()
        return total + conf.commitment * commitment + conf.codebook * codebook + conf.auxiliary * auxiliary

    def views(self, medium: Tensor) -> Iterator[Tensor]:
        x = self.taken(medium)
        yield torch.cat([x, x.flip(3)])

    def rows(self, model: ImageSequence, medium: Tensor, prior: Any = None) -> Iterator[Row]:
        """PSNR for every number of tokens a window."""
        x = self.taken(medium)
        tokens = model.encode(x)
        for n in [n for n in TEST_TOKENS if n <= model.config.tokens] or [model.config.tokens]:
            yield {"tokens": n, "psnr": psnr(x, model.decode(tokens.levels(n)))}

    def make_prior(self, model: ImageSequence, some: Sequence[Tensor]) -> tuple[TailPrior, dict[str, Any]]:
        counts = torch.stack(self.count(model, some))  # [tokens, N]
        prior = TailPrior.from_counts(counts.numpy())
        prior.save_pretrained(self.out)
        bits = code_bits(counts)
        self.log(f"order-0 bits a code {bits:.3f}")
        return prior, {"codebook_usage": float((counts.sum(0) > 0).float().mean()), "bits": bits}


def code_bits(counts: Tensor) -> float:
    """Bits of a code by the histogram of its token ``[tokens, N]``, mean over tokens."""
    shares = counts / counts.sum(1, keepdim=True)
    return float(torch.special.entr(shares).sum(1).mean()) / math.log(2)


def main() -> None:
    run_script(trainer_arguments(__doc__, "image-1d"), Trainer)


if __name__ == "__main__":
    main()
