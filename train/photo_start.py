"""A photo codec of the sizes of a recipe that starts as a smaller one that was trained.

    python -m tokodec.train.photo_start --recipe image-photo-2 --model image-photo --out START

What both have is taken over; further residual blocks start as the identity; further latents leave the synthesis as it
is until it has learnt what they are for. A recipe may give its qualities other rates: gains, dials and what the entropy
model reads of the quality are then those that the smaller codec has at the same lambda, and beyond its last one the
steps of the quantiser go on with the square root of lambda. ``--entropy`` names weights of the entropy model and of the
hyper analysis, under their names in the codec, that take the place of those of the smaller one.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..entropy.context.net import RoundedLinear
from ..entropy.hyperprior.net import HATS, SQUARE, HyperNet, HyperShape
from ..entropy.hyperprior.windows import WindowLinear
from ..entropy.packed import together
from ..tokenizers.image.photo import ImagePhoto, rate_weight
from ..tokenizers.image.photo_nets import POINTS, Dial, PhotoNets
from .photo import CHECKPOINT, PhotoCodec, Recipe, codec_of
from .recipe import change, checked, read_recipe

FAINT = 0.02  # of their size is what inputs start with that an output did not have before
DETAIL_GAINS = (0.2, 12.0)  # of further latents, at quality 0 and 100


def same_rate(qualities: Tensor, new: tuple[float, ...], old: tuple[float, ...]) -> Tensor:
    """The qualities in 0..1 of which a codec with rate weights ``old`` has the lambda of ``new``; some above 1.

    Raises: ValueError if ``old`` has not two points.
    """
    if len(old) != 2:
        raise ValueError("the smaller codec has rate weights for quality 0 and 100 alone")
    low, high = (math.log(weight) for weight in old)
    return (rate_weight(qualities.double(), new).log() - low) / (high - low)


def between(points: int, places: Tensor) -> Tensor:
    """Weights of ``points`` control points at places in 0..1, ``[n] -> [n, points]``; the last one beyond."""
    place = places.clamp(0, 1)[:, None] * (points - 1)
    return (1 - (place - torch.arange(points)).abs()).clamp_min(0)


@torch.no_grad()
def overlap(new: Tensor, old: Tensor, faint: float = FAINT) -> None:
    """Write ``old`` into the first rows and columns of ``new``; the rows' other columns become faint."""
    rows = len(old)
    if new.ndim > 1:
        new[:rows, old.shape[1] :] *= faint
        new[:rows, : old.shape[1]] = old
    else:
        new[:rows] = old


@torch.no_grad()
def grow_nets(new: PhotoNets, old: PhotoNets) -> None:
    """Take over the nets and dials of a smaller codec. Raises ValueError if one is not smaller."""
    points = torch.linspace(0, 1, POINTS)
    weights = (new.config.rate_weights, old.config.rate_weights)
    places = same_rate(points, *weights)
    taken = between(POINTS, places).float()
    beyond = ((places - places.clamp(0, 1)) * math.log(weights[1][1] / weights[1][0]) / 2).float()[:, None]
    parameters = dict(old.named_parameters())
    for name, p in new.named_parameters():
        if name.endswith(".points") and name in parameters:
            values = taken @ parameters[name]
            if name == "log_gain.points":
                values = values + beyond
            elif name == "log_inverse.points":
                values = values - beyond
            p[:, : values.shape[1]] = values
        elif name in parameters:
            before = parameters[name]
            if any(a > b for a, b in zip(before.shape, p.shape, strict=True)):
                raise ValueError(f"{name} is larger than in the recipe: {tuple(before.shape)}, {tuple(p.shape)}")
            overlap(p, before)
    m = old.config.latents
    gains = torch.linspace(math.log(DETAIL_GAINS[0]), math.log(DETAIL_GAINS[1]), POINTS)[:, None]
    for dial, sign in ((new.log_gain, 1), (new.log_inverse, -1)):
        assert isinstance(dial, Dial)
        dial.points[:, m:] = sign * gains
    if new.config.detail:
        into = new.synthesis.detail[0]
        assert isinstance(into, nn.Conv2d)
        assert into.bias is not None
        into.weight.zero_()
        into.bias.zero_()


@torch.no_grad()
def grow_entropy(new: HyperNet, smaller: HyperNet) -> None:
    """Take over an entropy model of fewer slices and widths. What a step knows of a slice in a new order is new."""
    layers = {name: module for name, module in smaller.named_modules() if isinstance(module, RoundedLinear)}
    for name, module in new.named_modules():
        if isinstance(module, RoundedLinear) and name in layers:
            old = layers[name]
            if isinstance(module, WindowLinear) and isinstance(old, WindowLinear) and module.extra == old.extra:
                overlap(module.channels_of_taps(), old.channels_of_taps())
                overlap(module.weight[:, : module.extra], old.weight[:, : old.extra])
            else:
                overlap(module.weight, old.weight)
            overlap(module.bias, old.bias)
    new.density.load_state_dict(smaller.density.state_dict())


@torch.no_grad()
def turn_hats(net: HyperNet, new: tuple[float, ...], old: tuple[float, ...]) -> None:
    """Let the hyper decoder read qualities with the rates ``new``, where it read those of ``old``."""
    taken = between(HATS, same_rate(torch.linspace(0, 1, HATS), new, old)).to(net.decoder.enter.weight)
    weight = net.decoder.enter.weight.unflatten(1, (len(SQUARE), -1))  # a view: [out, 9, hyper + HATS + kinds]
    hats = weight[:, :, net.shape.hyper : net.shape.hyper + HATS]
    hats.copy_(hats @ taken.T)


def grown(codec: PhotoCodec, model: ImagePhoto, entropy: dict[str, Tensor] | None = None) -> None:
    """Let ``codec`` start as ``model``; see the module's text."""
    grow_nets(codec.nets, model.nets)
    small = HyperNet(HyperShape.of_export(model.entropy.arrays()))
    small.load_export(model.entropy.arrays())
    grow_entropy(codec.entropy, small)
    own = dict(codec.named_parameters())
    for name, weight in (entropy or {}).items():
        if name not in own:
            raise ValueError(f"the codec has no {name}")
        overlap(own[name], weight)
    turn_hats(codec.entropy, codec.nets.config.rate_weights, model.config.rate_weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="image-photo-2", help="name in train/recipes or a YAML file")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="override, e.g. entropy.width=192")
    parser.add_argument("--model", default="image-photo", help="the smaller model: a folder or the name of a release")
    parser.add_argument("--entropy", help="weights that take the place of the smaller model's")
    parser.add_argument("--out", required=True, help="folder for what train/photo.py resumes from")
    args = parser.parse_args()
    torch.manual_seed(0)
    try:
        recipe = read_recipe(args.recipe)
        change(recipe, args.set)
        codec = codec_of(checked(Recipe, recipe))
        grown(codec, ImagePhoto.from_pretrained(args.model), load_file(args.entropy) if args.entropy else None)
    except (OSError, ValueError) as error:
        parser.error(" ".join(str(error).split()))
    with together(Path(args.out)) as beside:
        save_file({k: v.contiguous() for k, v in codec.state_dict().items()}, str(beside / CHECKPOINT))


if __name__ == "__main__":
    main()
