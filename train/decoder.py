"""Train the synthesis net of an `image-grid` alone, by absolute errors: codes stay what they are.

    python -m tokodec.train.decoder --recipe decoder --resume image-grid --data PICTURES... --minutes 5 --out OUT
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tokenizers.folders import find_model
from ..tokenizers.image.grid import ImageGrid
from .data.images import CropStore, list_images, read_all, read_rgb
from .loop import optimizers_of, psnr, run_script
from .recipe import Optim
from .trainer import BaseTrainer, Row, trainer_arguments


@dataclass(frozen=True)
class Recipe:
    """Settings of a run."""

    crop: int
    holdout_every: int
    optim: Optim


class Trainer(BaseTrainer):
    """One run of a recipe; see the module's text."""

    recipe_class = Recipe

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        if args.resume is None:
            raise ValueError("--resume says which model's synthesis net is trained")
        self.media, self.held = self.read(list_images(args.data), read_rgb).split(self.recipe.holdout_every)
        self.store = CropStore(self.media, self.recipe.crop, self.device, 0.0, seed=self.seed)
        self.media, self.held = self.middles(self.media, self.held)
        self.model = ImageGrid.from_pretrained(find_model(args.resume)).to(self.device)
        self.net = next(iter(self.model.synthesis.values()))
        self.own_seeds()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return optimizers_of(self.net.named_parameters(), self.optim, lambda name, p: False)

    def inputs(self) -> tuple[Tensor, ...]:
        x = self.store.batch(self.optim["batch"])
        with torch.no_grad():
            return x, self.model.quantizer.decode(self.model.encode_codes(x))

    def loss(self, x: Tensor, z_q: Tensor) -> Tensor:
        with self.autocast():
            return ((self.net(z_q).float() + 1) / 2 - x).abs().mean()

    def views(self, medium: Tensor) -> Iterator[Tensor]:
        yield medium.to(self.device).permute(2, 0, 1)[None]

    def rows(self, model: ImageGrid, medium: Tensor, prior: Any = None) -> Iterator[Row]:
        x = medium.to(self.device).permute(2, 0, 1)[None].float() / 255
        tokens = model.encode(x)
        yield {"levels": tokens.n_levels, "psnr": psnr(x, model.decode(tokens))}

    def test_media(self) -> list[Tensor]:
        return read_all(list_images([self.args.test]))


def main() -> None:
    run_script(trainer_arguments(__doc__, "decoder"), Trainer)


if __name__ == "__main__":
    main()
