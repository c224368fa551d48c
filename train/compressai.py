"""Train a model with CompressAI's contract as it is: one of its zoo, or the class of a paper.

    python -m tokodec.train.compressai --model compressai:bmshj2018-hyperprior:4 --data PICTURES --out OUT
    python -m tokodec.train.compressai --model my_paper.Model --set 'model.arguments={N: 128, M: 192}' ...

A model is a module whose ``forward(x)`` gives ``{"x_hat": [B, 3, H, W], "likelihoods": {name: [...]}}`` of pictures
``x [B, 3, H, W]`` in [0, 1], such as any ``CompressionModel``, made of whatever entropy bottlenecks and Gaussian
conditionals its author wants. Its loss is rate + lambda * distortion, and ``aux_loss()`` moves the quantiles of its
bottlenecks by an optimizer of their own. Bits are estimated from likelihoods. Budget, state, streaming data, processes
and pages are those of all trainers.

OUT holds the best weights so far as ``compressai.safetensors``, at the end with tables: a state dict by CompressAI's
names, for ``from_state_dict`` of its models. Nothing is pickled here; whoever needs ``checkpoint.pth.tar``, as
``compressai.utils.eval_model`` does, saves ``{"state_dict": load_file("compressai.safetensors")}`` as that. Only of a
FactorizedPrior, whose tables are fixed, OUT is a model that makes files as well. Hyperpriors predict tables in floats,
which differ from machine to machine; an exact codec of their checkpoint is what :mod:`.photo_compressai` makes.

Sources: Balle et al. 2018, arXiv:1802.01436; Begaint et al. 2020, arXiv:2011.03029.
"""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..codec.errors import UsageError
from ..codec.metrics.picture import similarity
from ..entropy.packed import together
from ..tokenizers.adapters.compressai import METRICS, PREFIX, ZooName, read_checkpoint, zoo_model
from ..tokenizers.adapters.factorized import ARCHITECTURES, adapt_compressai, check_fixed
from .data.images import as_input, list_images, read_rgb
from .loop import optimizers_of, run_script, step_where_finite
from .measuring import Row, evaluating
from .photo import CELL, closeness, padded
from .photo_compressai import RANDOM, ZOO, compressai_arguments, image_folder
from .recipe import Optim, checked
from .state import FOLDER
from .trainer import BaseTrainer

RECIPE, WEIGHTS = "compressai", "compressai.safetensors"
QUANTILES = ".quantiles"  # end of the names of parameters that aux_loss() moves


@dataclass(frozen=True)
class Named:
    """A model and where its weights come from."""

    name: str
    weights: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Criterion:
    """A class of losses, and its arguments."""

    class_: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """Crops."""

    crop: int
    zoom: float
    holdout_every: int

    def __post_init__(self) -> None:
        if self.crop < CELL or self.crop % CELL:
            raise ValueError(f"data.crop is a multiple of {CELL} pixels")


@dataclass(frozen=True)
class AuxOptim(Optim):
    """Steps, and those of the quantiles."""

    aux_lr: float = 1e-3


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; ``train/recipes/compressai.yaml`` says what they mean."""

    name: str
    model: Named
    criterion: Criterion
    data: Data
    optim: AuxOptim
    cpu: tuple[str, ...] = ()  # changes where there is no GPU


class RateDistortionLoss(nn.Module):
    """Rate and distortion of what a model returns, by the names of CompressAI.

    Args:    lmbda: bits a pixel for a unit of distortion.  metric: "mse", times 255^2, or "ms-ssim", 1 - MS-SSIM.
    Returns: ``loss``, ``bpp_loss`` (bits a pixel by the likelihoods), and ``mse_loss`` or ``ms_ssim_loss``.
    Source:  Balle et al. 2018, eq. (4); Begaint et al. 2020, section 3.4. We differ: nothing.
    """

    def __init__(self, lmbda: float = 0.01, metric: str = "mse") -> None:
        super().__init__()
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}: {' or '.join(METRICS)}")
        self.lmbda, self.metric = lmbda, metric

    def forward(self, output: Mapping[str, Any], target: Tensor) -> dict[str, Tensor]:
        """``x_hat`` and ``likelihoods`` of a model, and what it was given, ``[B, 3, H, W]`` in [0, 1]."""
        found = {"bpp_loss": bits_of(output["likelihoods"]) / (len(target) * target[0, 0].numel())}
        if self.metric == "mse":
            found["mse_loss"] = (output["x_hat"] - target).square().mean()
            distortion = 255**2 * found["mse_loss"]
        else:
            found["ms_ssim_loss"] = similarity(target, output["x_hat"]).mean()
            distortion = 1 - found["ms_ssim_loss"]
        return {"loss": found["bpp_loss"] + self.lmbda * distortion, **found}


def bits_of(likelihoods: Mapping[str, Tensor]) -> Tensor:
    """Bits of all that was coded, a scalar."""
    return torch.stack([-torch.log2(part.float()).sum() for part in likelihoods.values()]).sum()


def class_of(name: str) -> Any:
    """A class by ``package.module.Class``. Raises ValueError if there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no class {name}: {error}") from error


def made(kind: Any, arguments: Mapping[str, Any], name: str) -> Any:
    """An object of a class. Raises ValueError if it does not take these arguments."""
    try:
        return kind(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} does not take {dict(arguments)}: {error}") from error


def criterion_of(criterion: Criterion) -> Any:
    """Raises ValueError if there is no such class, or it does not take its arguments."""
    own = criterion.class_ == RateDistortionLoss.__name__
    return made(RateDistortionLoss if own else class_of(criterion.class_), criterion.arguments, criterion.class_)


def model_of(named: Named, metric: str) -> Any:
    """The module to train, with its weights. Raises ValueError or FileNotFoundError if there is none."""
    zoo = named.name.startswith(PREFIX)
    state = None if named.weights in (ZOO, RANDOM) else read_checkpoint(named.weights)
    if zoo:
        net = zoo_model(ZooName.of(named.name), metric, pretrained=named.weights == ZOO)
    else:
        net = made(class_of(named.name), named.arguments, named.name)
    if state is not None:
        try:
            if zoo:
                net = type(net).from_state_dict(state)  # whose sizes are those of the file
            else:
                net.load_state_dict(state)
        except (RuntimeError, KeyError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{named.weights} is not of {named.name}: {reason}") from error
    return net


class Trained(nn.Module):
    """The model in training, with the name that a card says."""

    def __init__(self, net: Any, name: str) -> None:
        super().__init__()
        self.net, self.name = net, name

    def forward(self, x: Tensor) -> dict[str, Any]:
        """What the model makes of ``x [B, 3, H, W]`` in [0, 1]. Raises ValueError if that is not what it should be."""
        out = self.net(x)
        likelihoods = out.get("likelihoods") if isinstance(out, Mapping) else None
        if not isinstance(likelihoods, Mapping) or not isinstance(out.get("x_hat"), Tensor) or not likelihoods:
            kind = type(self.net).__name__
            raise ValueError(f"{kind} does not return x_hat and likelihoods, as a CompressionModel does")
        return dict(out)


class Trainer(BaseTrainer):
    """One run of a recipe; see the module's text."""

    recipe_class = Recipe
    graphs = False  # modules of others may do what a graph cannot
    columns: ClassVar[dict[str, str]] = {
        "bpp_estimated": "{:.4f} bpp", "psnr": "{:.3f} dB", "ms_ssim": "MS-SSIM {:.4f}",
    }  # fmt: skip
    brief = ("bpp_estimated", "psnr", "ms_ssim")
    tables = ("holdout", "test")

    model: Trained

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        image_folder(args)
        out = Path(args.out)
        if (out / WEIGHTS).exists() and not (args.force or (out / FOLDER).is_dir()):
            raise UsageError(f"{args.out} holds a model already: give another --out, or --force")
        named = checked(Recipe, recipe).model
        name = args.model or named.name
        weights = named.weights if args.model is None or name.startswith(PREFIX) else RANDOM
        if args.checkpoint or args.resume:
            weights = args.checkpoint or str(Path(args.resume) / WEIGHTS)
        recipe["model"] = {"name": name, "weights": weights, "arguments": named.arguments}
        super().__init__(recipe, args)
        conf: Recipe = self.recipe
        self.criterion = criterion_of(conf.criterion).to(self.device)
        metric = conf.criterion.arguments.get("metric", METRICS[0])
        self.model = Trained(model_of(conf.model, metric), conf.name).to(self.device)
        with evaluating(self.model):  # what keeps to no contract says so before data is read
            self.model(torch.zeros(1, 3, CELL, CELL, device=self.device))
        self.net = self.model
        self.test_on(list_images, read_rgb)
        self.store = self.picture_store(conf.data.crop, conf.data.holdout_every, zoom=conf.data.zoom)
        self.log(f"{len(self.store)} pictures to train on, {len(self.held)} held out, on {self.device}")
        self.media, self.held = self.middles(self.media, self.held)
        self.log(f"{type(self.model.net).__name__} {sum(p.numel() for p in self.net.parameters()) / 1e6:.2f} M")
        self.own_seeds()

    # ---- a step

    def quantiles(self) -> list[tuple[str, nn.Parameter]]:
        """Those that ``aux_loss`` moves, if the model has it."""
        named = self.net.named_parameters() if hasattr(self.model.net, "aux_loss") else ()
        return [(name, p) for name, p in named if name.endswith(QUANTILES)]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        beside = {name for name, _ in self.quantiles()}
        named = [(name, p) for name, p in self.net.named_parameters() if name not in beside]
        return optimizers_of(named, self.optim, lambda name, p: False)

    def side_optimizers(self) -> list[torch.optim.Optimizer]:
        optim = {**self.optim, "lr": self.optim["aux_lr"]}
        quantiles = self.quantiles()
        self.of_quantiles = optimizers_of(quantiles, optim, lambda name, p: False) if quantiles else []
        return self.of_quantiles

    def inputs(self) -> tuple[Tensor, ...]:
        """Crops ``[n, 3, size, size]`` in [0, 1]."""
        return (self.store.batch(self.optim["batch"]).contiguous(),)

    def loss(self, x: Tensor) -> Tensor:
        with self.autocast():
            out = self.model(x)
        return self.judged(out, x)

    def judged(self, out: dict[str, Any], x: Tensor) -> Tensor:
        """The loss by the criterion, a number or the entry ``loss`` of several."""
        found = self.criterion(out, x)
        loss: Tensor = found["loss"] if isinstance(found, Mapping) else found
        return loss

    def after_step(self, step: int, share: float, inputs: tuple[Tensor, ...], settings: tuple[bool, ...]) -> None:
        """A step of the quantiles, whose gradients are zero until here."""
        if not self.of_quantiles:
            return
        aux = self.model.net.aux_loss()
        own = [p for _, p in self.quantiles()]
        grads = torch.autograd.grad(aux, own, allow_unused=True)
        for p, grad in zip(own, grads, strict=True):
            assert p.grad is not None
            p.grad.copy_(torch.zeros_like(p) if grad is None else grad)
        step_where_finite(self.of_quantiles, aux.detach())
        self.losses["aux"] = aux.detach()

    # ---- evaluation

    def rows(self, model: Trained, medium: Tensor, prior: Any = None) -> Iterator[Row]:
        """Bits per pixel by the likelihoods, PSNR, MS-SSIM and the loss of a picture."""
        x = as_input(medium, self.device)
        height, width = x.shape[2:]
        out = model(padded(x))
        x_hat = out["x_hat"][:, :, :height, :width].float()
        bpp, loss = float(bits_of(out["likelihoods"])) / (height * width), float(self.judged(out, padded(x)))
        yield {"bpp_estimated": bpp, "loss": loss, **closeness(x, x_hat)}

    def score(self, rows: list[Row]) -> float:
        loss = sum(row["loss"] for row in rows) / len(rows)
        return -loss if math.isfinite(loss) else -math.inf

    def sample(self, medium: Tensor) -> tuple[Tensor, Tensor]:
        x = as_input(medium, self.device)
        return x, self.model(padded(x))["x_hat"][:, :, : x.shape[2], : x.shape[3]]

    # ---- what is written

    def save(self) -> None:
        with together(self.out) as beside:
            save_file(plain(self.model.net), str(beside / WEIGHTS))

    def saved(self) -> Trained:
        self.model.net.load_state_dict(load_file(str(self.out / WEIGHTS)))
        return self.model

    def count(self, model: Any, media: Sequence[Any]) -> list[Tensor]:
        """None: a model of CompressAI brings its tables."""
        return []

    def finish(self, model: Trained, some: Sequence[Any]) -> tuple[Trained, dict[str, Any]]:
        """Make tables, write them with the weights, and a model with files if tables are fixed."""
        net = model.net.eval()
        if hasattr(net, "update"):
            net.update(force=True)
        with together(self.out) as beside:
            save_file(plain(net), str(beside / WEIGHTS))
        try:
            check_fixed(net)
            if type(net).__name__ not in ARCHITECTURES:
                raise ValueError(f"{type(net).__name__} is code, which no folder holds")
            adapt_compressai(net, self.recipe.name).save_pretrained(self.out)
        except ValueError as error:
            self.log(f"note: no .tok files of this model: {error}. See python -m tokodec.train.photo_compressai --help")
        return model, {}

    def make_prior(self, model: Any, some: Sequence[Any]) -> tuple[None, dict[str, Any]]:
        """None: the entropy model is part of the model."""
        return None, {}


def plain(net: nn.Module) -> dict[str, Tensor]:
    """A state dict on the CPU, each tensor with memory of its own."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in net.state_dict().items()}


def main() -> None:
    parser = compressai_arguments(__doc__, RECIPE, "compressai:NAME[:QUALITY] or package.module.Class")
    parser.set_defaults(precision="no")  # likelihoods of others may need all digits
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
