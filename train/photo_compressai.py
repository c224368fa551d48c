"""Train the codec of a model of CompressAI with an exact entropy model: from a checkpoint to files in one command.

    python -m tokodec.train.photo_compressai --model compressai:bmshj2018-hyperprior:4 --data PICTURES --out OUT
    python -m tokodec.train.photo_compressai --model compressai:mbt2018-mean:4 --checkpoint best.pth.tar ...

g_a, g_s and h_a are those of the model, from CompressAI's zoo (which downloads them) or a checkpoint of its training
scripts. Its h_s, entropy bottleneck and context model compute tables in floats, on which no two machines need agree; in
their place comes the entropy model of `image-photo`, which is trained from nothing and released in integers. What comes
out is a model like `image-photo` for all rates: the steps of the quantiser start with those of the checkpoint at its
lambda, and go with the root of lambda from there. The rest is that of :mod:`.photo`: budget, state, checks, export.
``--resume FOLDER`` goes on with a model that this script made.

Sources: see :mod:`..tokenizers.image.transforms`; gains: Cui et al. 2021, arXiv:2003.02012.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..entropy.hyperprior.net import Z_MAX, HyperNet
from ..tokenizers.adapters.compressai import ZooName, constants, part_of, read_checkpoint, zoo_model
from ..tokenizers.folders import find_model
from ..tokenizers.image.hyperprior import HyperpriorNets, ImageHyperprior, ImageHyperpriorConfig
from ..tokenizers.image.photo import rate_weight
from ..tokenizers.image.photo_nets import POINTS
from ..tokenizers.image.transforms import ARCHITECTURES
from . import photo
from .loop import optimizers_of, run_script
from .photo import PhotoCodec, between
from .recipe import checked
from .trainer import trainer_arguments

RECIPE = "image-hyperprior"
ZOO, RANDOM = "zoo", "random"
TAKEN = ("g_a", "g_s", "h_a")
LOOKED_AT = 8  # batches of crops that the order of channels and the density of z are made of
TRAIN, TEST = "train", "test"  # of an ImageFolder


@dataclass(frozen=True)
class Start:
    """What is taken over."""

    name: str  # compressai:NAME or compressai:NAME:QUALITY
    weights: str  # zoo, random, or a checkpoint
    pace: float  # learning rate of what is taken over, in units of optim.lr


@dataclass(frozen=True)
class Recipe(photo.Recipe):
    """Settings of a run; ``train/recipes/image-hyperprior.yaml`` says what they mean."""

    model: Start  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant.rank:
            raise ValueError("variants are of image-photo: variant.rank is 0 here")


def taken_weights(start: Start, metric: str) -> dict[str, Tensor]:
    """The state dict to start from. Raises ValueError or FileNotFoundError if there is none."""
    name = ZooName.of(start.name)
    if name.name not in ARCHITECTURES:
        raise ValueError(f"training knows no {name.name} of CompressAI: {', '.join(ARCHITECTURES)}")
    if start.weights in (ZOO, RANDOM):
        state: dict[str, Tensor] = zoo_model(name, metric, pretrained=start.weights == ZOO).state_dict()
        return state
    return read_checkpoint(start.weights)


def config_of(name: str, state: Mapping[str, Tensor], rate: photo.Rate) -> ImageHyperpriorConfig:
    """Sizes of the model that a state dict is of. Raises ValueError if it is of no such model."""
    first = state.get("g_a.0.weight", state.get("g_a.0.conv1.weight"))
    if first is None:
        raise ValueError(f"the checkpoint is not of {name}: it has no g_a.0.weight")
    last = state.get("g_a.6.weight", first)
    return ImageHyperpriorConfig(name, len(first), len(last), rate.distortion, rate.lambda_)


def take_over(nets: HyperpriorNets, state: Mapping[str, Tensor]) -> None:
    """Load g_a, g_s and h_a; a model without a hyperprior has no h_a, so its own stays.

    Raises: ValueError if the state dict is that of another model.
    """
    for part in TAKEN:
        held = part_of(state, f"{part}.")
        weights = {key: held[key] for key in held.keys() - set(constants(held))}
        if weights or part != "h_a":
            try:
                getattr(nets, part).load_state_dict(weights)
            except RuntimeError as error:
                first = str(error).splitlines()[1].strip()
                raise ValueError(f"the checkpoint is not of {nets.config.architecture}: {part}: {first}") from error


@torch.no_grad()
def set_gains(nets: HyperpriorNets, lmbda: float) -> None:
    """Let steps of the quantiser go with the root of lambda, and be 1 at that of the checkpoint.

    At high rates the distortion of a step d is d^2 / 12 and a bit halves the step, so the best d^2 is proportional to
    1 / lambda (Gish and Pierce 1968). lmbda: 0 for the middle of all.
    """
    weights = nets.config.rate_weights
    lmbda = lmbda or math.sqrt(weights[0] * weights[-1])
    steps = 0.5 * (rate_weight(torch.linspace(0, 1, POINTS), weights) / lmbda).log()
    nets.log_gain.points.copy_(steps[:, None].expand_as(nets.log_gain.points))
    nets.log_inverse.points.copy_(-nets.log_gain.points)


@torch.no_grad()
def look_at(codec: PhotoCodec, batches: Sequence[Tensor]) -> None:
    """Code channels of most energy first, and start the density of z where it is.

    Args: batches: crops ``[n, 3, size, size]`` in [0, 1].
    """
    nets: Any = codec.nets
    ys = [nets.g_a(x) for x in batches]
    spread = torch.stack([y.var((0, 2, 3)) for y in ys]).mean(0)
    nets.order.copy_(spread.argsort(descending=True, stable=True))
    counts = torch.full((nets.config.hyper, 2 * Z_MAX + 1), 1e-3, device=spread.device)
    for y in ys:
        quality = torch.rand(len(y), device=y.device)
        z = nets.hyper_analysis(y[:, nets.order] * nets.gain(quality)).transpose(0, 1).flatten(1)  # [N, n]
        z = z.round().clamp(-Z_MAX, Z_MAX) + Z_MAX
        counts.scatter_add_(1, z.long(), torch.ones_like(z))
    codec.entropy.density.fit(counts)


def slices_of(slices: Sequence[int], latents: int) -> list[int]:
    """The first slices that leave channels over, and one of these."""
    found: list[int] = []
    for n in slices:
        if sum(found) + n < latents:
            found.append(n)
    return [*found, latents - sum(found)]


def image_folder(args: argparse.Namespace) -> None:
    """Understand the layout of CompressAI's ImageFolder: of a folder with ``train`` and ``test`` these are meant."""
    for i, folder in enumerate(map(Path, args.data)):
        if (folder / TRAIN).is_dir() and (folder / TEST).is_dir():
            args.data[i] = str(folder / TRAIN)
            args.test = args.test or str(folder / TEST)


class Trainer(photo.Trainer):
    """One run of a recipe; see the module's text."""

    recipe_class, tokenizer_class = Recipe, ImageHyperprior

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        image_folder(args)
        conf = checked(Recipe, recipe)
        start = Start(args.model or conf.model.name, args.checkpoint or conf.model.weights, conf.model.pace)
        recipe["model"] = dict(vars(start))
        rate = conf.rate
        if args.resume:
            held = ImageHyperprior.from_pretrained(find_model(args.resume)).config
            self.config = dataclasses.replace(held, distortion=rate.distortion, rate_weights=rate.lambda_)
            self.start_weights: dict[str, Tensor] = {}
        else:
            self.start_weights = taken_weights(start, rate.distortion)
            self.config = config_of(ZooName.of(start.name).name, self.start_weights, rate)
        slices = slices_of(conf.entropy.slices, self.config.latents)
        recipe["entropy"] |= {"hyper": self.config.hyper, "slices": slices}
        super().__init__(recipe, args)
        if self.start_weights and self.states.found is None:
            with torch.no_grad():
                look_at(self.model, [self.store.batch(self.optim["batch"]) for _ in range(LOOKED_AT)])
        self.start_weights = {}

    def codec(self) -> PhotoCodec:
        nets: Any = HyperpriorNets(self.config)
        if self.start_weights:
            take_over(nets, self.start_weights)
            set_gains(nets, ZooName.of(self.recipe.model.name).lmbda(self.config.distortion))
        return PhotoCodec(nets, HyperNet(self.recipe.entropy))

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The entropy model learns from nothing, so what is taken over learns slower, and by AdamW alone."""
        named = list(self.net.named_parameters())
        old = [(name, p) for name, p in named if name.startswith(tuple(f"nets.{part}." for part in TAKEN))]
        names = {name for name, _ in old}
        slow = {**self.optim, "lr": self.optim["lr"] * self.recipe.model.pace, "muon": 0.0}
        new = optimizers_of([(name, p) for name, p in named if name not in names], self.optim, between)
        return [*new, *optimizers_of(old, slow, between)]


def compressai_arguments(text: str | None, recipe: str, model: str) -> argparse.ArgumentParser:
    """The arguments of scripts that start from a model of CompressAI."""
    parser = trainer_arguments(text, recipe)
    parser.add_argument("--model", help=f"{model}, to start from; else that of the recipe")
    parser.add_argument("--checkpoint", metavar="FILE", help="its weights: .pth.tar, .pth or .safetensors")
    return parser


def main() -> None:
    run_script(compressai_arguments(__doc__, RECIPE, "compressai:NAME[:QUALITY]"), Trainer)


if __name__ == "__main__":
    main()
