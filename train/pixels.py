"""Train, evaluate and export the nets of the lossless coder of pixels in one command, on a CPU.

    python -m tokodec.train.pixels --data PICTURES... --test KODAK --minutes 30 --out OUT
    codec encode --lossless photo.png        # uses assets/image-lossless/pixels.safetensors

The loss is what is wanted, bits a value, so there is nothing to weigh. OUT gets the integers that did best on held-out
pictures as ``pixels.safetensors``, as the run goes on, and ``training.json`` at its end. Training pictures are made
smaller, since what a lossy file did to its pixels is not to be learnt. The last thing printed is a table: bits a value
of held-out (and test) pictures, WebP lossless against ours.
"""

from __future__ import annotations

import argparse
import io
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..codec.provenance import as_json
from ..entropy.pixels.coder import PIXELS_FILE, PixelCoder
from ..entropy.pixels.net import CODED, PixelNets, PixelShape
from ..entropy.prior import read_prior_arrays, save_prior
from .data.images import CropStore, list_images, read_rgb
from .data.reading import Source
from .loop import Pace, TrainingRun, run_script, training_arguments
from .recipe import Optim, Rounding, checked
from .state import Attributes, RandomNumbers

EVALUATIONS = 8
QUICK = 12  # held-out pictures that they look at
MIDDLE = 256  # edge in pixels of what is evaluated of a held-out picture
FILTERS = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class Data:
    crop: int
    reduce: tuple[float, float]
    soften: float
    chroma: float
    holdout_every: int


@dataclass(frozen=True)
class Recipe:
    """What ``train/recipes/image-lossless.yaml`` says."""

    name: str
    net: PixelShape
    data: Data
    optim: Optim
    rounding: Rounding


class PixelTrainer(TrainingRun):
    """One run of a recipe."""

    recipe: Recipe

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(checked(Recipe, recipe), args)
        data = self.recipe.data
        self.nets = PixelNets(self.recipe.net)
        if args.resume:
            self.nets.load_export(read_prior_arrays(args.resume, PIXELS_FILE)[0])
        paths = list_images(args.data)
        held = paths[:: data.holdout_every]
        chance = random.Random(args.seed)
        self.held = [middle(reduced(p, data, chance)) for p in held]
        train = [reduced(p, data, chance) for p in paths if p not in set(held)]
        self.store = CropStore(train, data.crop, "cpu", zoom=0, seed=self.seed, turned=0.5)
        self.best, self.recent = math.inf, 0.0  # bits a value: of the best integers, and of the last batches
        self.history: list[dict[str, float]] = []

    def run(self) -> None:
        nets, optim = self.nets, self.recipe.optim
        self.optimizer = torch.optim.Adam(nets.parameters(), lr=optim.lr, betas=optim.betas)
        for group in self.optimizer.param_groups:
            group["base"] = optim.lr
        pace = Pace(self, [self.optimizer], EVALUATIONS)
        weights = sum(p.numel() for p in nets.parameters())
        self.log(f"{len(self.store)} pictures, {len(self.held)} held out, {weights} weights")
        self.go_on(pace)
        with self.told.listening():
            for step in pace:
                x = coded(self.store.batch(optim.batch))
                loss = nets(x, pace.share > 1 - self.recipe.rounding.share).sum() / x.numel()
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(nets.parameters(), optim.grad_clip)
                self.optimizer.step()
                self.recent += (loss.item() - self.recent) / min(step, 50)
                if pace.due:
                    self.evaluate(step, pace.seconds)
                if pace.save:
                    self.save_state(pace)
            if pace.step:
                self.save_state(pace)
        self.evaluate(pace.step, pace.seconds)
        self.report(pace.step)
        self.states.clear()

    def parts(self) -> dict[str, Any]:
        return {"run": Attributes(self, "best", "history", "recent"), "nets": self.nets, "optimizer": self.optimizer}

    def own_parts(self) -> dict[str, Any]:
        return {"random": RandomNumbers(), "store": self.store.parts()}

    def evaluate(self, step: int, seconds: float) -> None:
        """Measure the integers, and keep them if they are the best so far."""
        held = self.held[:: -(-len(self.held) // QUICK)]
        with torch.no_grad():
            bits = sum(float(self.nets(coded(x[None].permute(0, 3, 1, 2) / 255), True).sum()) for x in held)
        bits /= sum(x.numel() for x in held)
        self.log(f"step {step}, {seconds:.0f} s: {self.recent:.3f} bits a value, held-out {bits:.4f}")
        self.history.append({"step": step, "seconds": round(seconds), "loss": self.recent, "bits": bits})
        if bits < self.best:
            self.best = bits
            self.out.mkdir(parents=True, exist_ok=True)
            save_prior(self.nets.export(), 0, self.out / PIXELS_FILE)

    def report(self, steps: int) -> None:
        """The table, and ``training.json``."""
        coder = PixelCoder.from_pretrained(self.out)
        sets = {"held-out": self.held}
        if self.args.test:
            sets["test"] = [read_rgb(p) for p in list_images([self.args.test])]
        results = {name: sizes(coder, pictures) for name, pictures in sets.items()}
        log = {"seed": self.args.seed, "minutes": self.args.minutes, "steps": steps, "hash": coder.hash}
        log |= {"recipe": asdict(self.recipe), "history": self.history} | results
        (self.out / "training.json").write_text(as_json(log))
        self.log(f"\n{'bits a value':<12} {'WebP':>8} {'ours':>8} {'saved':>8}")
        for name, row in results.items():
            self.log(f"{name:<12} {row['webp']:8.3f} {row['ours']:8.3f} {100 * (1 - row['ours'] / row['webp']):6.1f} %")


def reduced(path: Source, data: Data, chance: random.Random) -> Tensor:
    """A picture made smaller, softer and with colours of half the resolution by chance, uint8 ``[H, W, 3]``."""
    image = Image.fromarray(read_rgb(path).numpy())
    factor, first = chance.uniform(*data.reduce), chance.uniform(data.soften, 1)
    width, height = (max(1, round(factor * n)) for n in image.size)
    image = image.resize((max(1, round(first * width)), max(1, round(first * height))), chance.choice(FILTERS))
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    if chance.random() < data.chroma:
        y, *colours = image.convert("YCbCr").split()
        half = (-(-width // 2), -(-height // 2))
        soft = [c.resize(half, Image.Resampling.BOX).resize((width, height), Image.Resampling.BICUBIC) for c in colours]
        image = Image.merge("YCbCr", (y, *soft)).convert("RGB")
    return torch.from_numpy(np.array(image))


def middle(picture: Tensor) -> Tensor:
    top, left = (max(0, n - MIDDLE) // 2 for n in picture.shape[:2])
    return picture[top : top + MIDDLE, left : left + MIDDLE]


def coded(x: Tensor) -> Tensor:
    """Pictures ``[B, 3, H, W]`` in [0, 1] as whole numbers, in the order in which channels are coded."""
    return (255 * x[:, list(CODED)]).round()


def sizes(coder: PixelCoder, pictures: Sequence[Tensor]) -> dict[str, float]:
    """Bits a value of whole pictures, as payloads of ours and as WebP lossless files."""
    ours = webp = 0
    for picture in pictures:
        planes = picture.numpy().transpose(2, 0, 1)[list(CODED)].astype(np.uint16)
        ours += len(coder.compress(planes, 8))
        file = io.BytesIO()
        Image.fromarray(picture.numpy()).save(file, "WEBP", lossless=True, quality=100, method=6)
        webp += len(file.getvalue())
    values = sum(picture.numel() for picture in pictures)
    return {"webp": 8 * webp / values, "ours": 8 * ours / values}


def main() -> None:
    parser = training_arguments(__doc__, "image-lossless")
    run_script(parser, PixelTrainer)


if __name__ == "__main__":
    main()
