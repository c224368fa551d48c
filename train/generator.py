"""Train, evaluate and export a generator in one command.

    python -m tokodec.train.generator --recipe generator-image --data PICTURES... --minutes 20 --out OUT
    python -m tokodec.train.generator --recipe generator-audio --data SOUNDS... --minutes 20 --out OUT

The tokenizer is frozen and makes the codes of new random crops in every step, so no sequence comes twice. The budget is
wall-clock minutes, reading and preparing included. The best weights so far (fewest bits for the codes of held-out
media, in windows) lie in OUT at any time; ``--resume FOLDER`` starts from a trained generator. The curve of the
validation loss is in OUT/training.json. The last thing printed is a table: bits under the generator, as it was saved,
beside the tokenizer's context prior and static tables on the same tokens.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..codec.generate.bits import code_bits, priors_of, table_text, whole_windows, window_tokens
from ..codec.generate.model import Generator, GeneratorConfig
from ..codec.provenance import as_json
from ..entropy.context.prior import ContextPrior
from ..entropy.prior import Codes
from ..entropy.tree import CodeTree, balanced_tree
from ..tokenizers.api import Tokenizer
from ..tokenizers.sequence import Pattern
from .data.audio import SoundStore, list_sounds, read_mono
from .data.images import CropStore, as_input, list_images, read_rgb
from .loop import optimizers_of, run_script
from .prior import codewords_of
from .recipe import Optim
from .sizes import EXPORT
from .trainer import BaseTrainer, Row, trainer_arguments


@dataclass(frozen=True)
class Model:
    """Sizes of a generator, see :class:`GeneratorConfig`."""

    levels: int  # of the tokenizer's, coarse to fine
    pattern: Pattern  # order of the ids
    digits: bool  # large codes as two or three ids, by the trees of the tokenizer's context prior
    window: tuple[int, ...]  # pixels, or samples
    hidden: int
    inner: int
    layers: int
    heads: int
    dropout: float


@dataclass(frozen=True)
class Data:
    """Windows."""

    holdout_every: int
    holdout_windows: int  # that evaluations on the way look at
    zoom: float = 0.0  # share of crops of pictures that are cut larger and reduced,
    max_zoom: float = 1.0  # at most so many times


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; ``train/recipes/generator-*.yaml`` say what they mean."""

    name: str
    tokenizer: str
    model: Model
    data: Data
    optim: Optim
    cpu: tuple[str, ...] = ()  # changes where there is no GPU


class Media:
    """Where windows come from: codes of random crops, of what is held out, and of whole media.

    Attributes: text: how much there is.  held: media that are not trained on.  store: of the others.
    """

    text: str
    held: list[Tensor]
    store: CropStore | SoundStore

    def __init__(self, tokenizer: Any, recipe: Recipe) -> None:
        self.tokenizer, self.levels = tokenizer, recipe.model.levels

    def as_input(self, medium: Tensor) -> Tensor:
        """A medium as the tokenizer takes it."""
        raise NotImplementedError

    def windows(self, n: int) -> Tensor:
        """Codes ``[n, levels, *window]`` of new random crops."""
        codes: Tensor = self.tokenizer.encode(self.store.batch(n), self.levels).codes
        return codes

    def codes(self, medium: Tensor) -> Codes:
        """Codes ``[levels, *grid]`` of a whole medium."""
        codes: Codes = self.tokenizer.encode(self.as_input(medium), self.levels).codes[0].cpu().numpy()
        return codes


class Pictures(Media):
    """Crops at random places and scales, mirrored or not."""

    def __init__(self, tokenizer: Any, recipe: Recipe, run: Trainer) -> None:
        super().__init__(tokenizer, recipe)
        conf, window, (stride, _) = recipe.data, recipe.model.window, tokenizer.strides
        if len(window) != 2 or window[0] != window[1] or window[0] < stride or window[0] % stride:
            raise ValueError(f"a window of pictures is square, with sides of whole cells of {stride} pixels")
        run.test_on(list_images, read_rgb)
        crops = {"zoom": conf.zoom, "max_zoom": conf.max_zoom, "turned": 0.0}
        self.store = run.picture_store(window[0], conf.holdout_every, **crops)
        self.held = list(run.held)
        self.text = f"{len(self.store)} pictures to train on, {len(self.held)} held out"

    def as_input(self, medium: Tensor) -> Tensor:
        return as_input(medium, self.tokenizer.device)


class Sounds(Media):
    """Crops at random places and loudnesses."""

    def __init__(self, tokenizer: Any, recipe: Recipe, run: Trainer) -> None:
        super().__init__(tokenizer, recipe)
        window, rate = recipe.model.window, tokenizer.hertz
        if len(window) != 1 or window[0] < 1:
            raise ValueError("a window of sounds is a number of samples")
        longest = run.memory / 8 / 2 / rate  # seconds; a long sound leaves room for others
        run.test_on(list_sounds, functools.partial(read_mono, rate=rate))
        reading = run.read(list_sounds(run.args.data), lambda path: read_mono(path, rate, longest))
        kept, self.held = reading.split(recipe.data.holdout_every)
        stream = run.stream(reading, recipe.data.holdout_every)
        self.store = SoundStore(kept, window[0], tokenizer.device, mixed=0.0, seed=run.seed, stream=stream)
        minutes = sum(map(len, kept)) / rate / 60
        self.text = f"{len(kept)} sounds to train on, {minutes:.1f} minutes, {len(self.held)} held out"

    def as_input(self, medium: Tensor) -> Tensor:
        return medium.to(self.tokenizer.device).float()[None, None] / 32768


MEDIA: dict[str, Callable[[Any, Recipe, Trainer], Media]] = {"image": Pictures, "audio": Sounds}


def trees_of(tokenizer: Tokenizer, folder: str, levels: int) -> list[CodeTree]:
    """Digits of the codes of the first levels: those of the context prior, or of the codewords if there is none."""
    prior = priors_of(folder, "cpu").get("context")
    if isinstance(prior, ContextPrior):
        return list(prior.trees[:levels])
    return [balanced_tree(words) for words in codewords_of(tokenizer, tokenizer.codebook_sizes)[:levels]]


def new_generator(recipe: Recipe, tokenizer: Tokenizer, folder: str) -> Generator:
    """The untrained generator of a recipe. Raises ValueError for settings that make no sense."""
    conf = recipe.model
    spec = tokenizer.spec(conf.window)
    trees = trees_of(tokenizer, folder, conf.levels) if conf.digits else []
    config = GeneratorConfig(
        spec, levels=conf.levels, pattern=conf.pattern, bases=tuple(tuple(tree.bases) for tree in trees),
        hidden=conf.hidden, inner=conf.inner, layers=conf.layers, heads=conf.heads,
    )  # fmt: skip
    return Generator(config, trees, recipe.name, conf.dropout)


class Trainer(BaseTrainer):
    """One run of a recipe; see the module's text."""

    recipe_class = Recipe
    evaluations = 16
    what, unit = "windows", "windows"
    columns: ClassVar[dict[str, str]] = {"bits": "{:.4f} bits an id"}
    brief = ("bits",)
    benchmark = False
    pair = "held out, drawn"

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        self.folder = args.tokenizer or self.recipe.tokenizer
        tokenizer = Tokenizer.from_pretrained(self.folder).to(self.device)
        tokenizer.requires_grad_(False)
        if tokenizer.modality not in MEDIA or tokenizer.rate_control != "levels":
            raise ValueError(f"{tokenizer.name} makes no codes for generators: use image-grid or audio-24k")
        self.source = MEDIA[tokenizer.modality](tokenizer, self.recipe, self)
        self.store = self.source.store
        self.model = new_generator(self.recipe, tokenizer, self.folder)
        if args.resume:
            resumed = Generator.from_pretrained(args.resume)
            if resumed.config != self.model.config:
                raise ValueError(f"{args.resume} is another generator than the recipe's, or of another tokenizer")
            self.model.load_state_dict(resumed.state_dict())
        self.net = self.model.to(self.device)
        self.priors = priors_of(self.folder, str(self.device)) if self.main else {}
        self.grids = self.cut(self.source.held, "held out", self.holdout_seconds())
        held = window_tokens(self.model, self.grids).codes
        wanted = self.recipe.data.holdout_windows
        ids = self.model.ids(held[:: max(1, len(held) // wanted)][:wanted]).to(self.device)
        self.held = self.media = ids.split(min(self.optim["batch"], max(1, len(ids) // 4)))
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        self.log(f"{self.source.text}, {len(held)} windows; {self.device}")
        self.log(f"{parameters:.2f} M parameters, {ids.shape[1] - 2} ids a window")
        self.own_seeds()

    def holdout_seconds(self) -> float:
        """How long held-out media may be tokenized."""
        return max(10.0, EXPORT / 2 * 60 * self.args.minutes) if self.args.minutes else math.inf

    def cut(self, media: Sequence[Tensor], what: str, seconds: float = math.inf) -> list[Codes]:
        """Codes of media in whole windows, of as many as time allows. Raises ValueError if there is none."""
        grids: list[Codes] = []
        begin = time.monotonic()
        for i, medium in enumerate(media):
            if grids and time.monotonic() - begin > seconds:
                self.log(f"note: {len(media) - i} of {len(media)} media {what} are left out: tokenizing takes too long")
                break
            if len(medium) and (codes := whole_windows(self.model, self.source.codes(medium))) is not None:
                grids.append(codes)
        if not grids:
            raise ValueError(f"nothing that is {what} is as large as a window")
        return grids

    def optimizers(self) -> list[torch.optim.Optimizer]:
        def in_a_block(name: str, p: nn.Parameter) -> bool:
            return p.ndim == 2 and name.startswith("llama.model.layers.")

        return optimizers_of(self.model.named_parameters(), self.optim, in_a_block)

    @torch.no_grad()
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.model.ids(self.source.windows(self.optim["batch"])),)

    def loss(self, *inputs: Tensor) -> Tensor:
        with self.autocast():
            mean: Tensor = self.model(inputs[0]).mean()
            return mean

    def rows(self, model: Generator, medium: Tensor, prior: Any = None) -> Iterator[Row]:
        """Bits an id of windows, as ids ``[B, n]``."""
        yield {"bits": float(model(medium).double().mean()) / math.log(2)}

    def sample(self, medium: Tensor) -> tuple[Tensor, Tensor]:
        """The first of windows, as its tokens decode, and one that is drawn, with the same random numbers each time."""
        drawn = self.model.sample(1, generator=torch.Generator(self.device).manual_seed(self.args.seed))
        held = self.model.tokens(medium[:1])
        tokenizer = self.source.tokenizer
        return tokenizer.decode(held), tokenizer.decode(drawn)

    def count(self, model: Any, media: Sequence[Any]) -> list[Tensor]:
        """None: a generator is no tokenizer."""
        return []

    def score(self, rows: list[Row]) -> float:
        return -float(rows[0]["bits"])

    def telemetry(self, rows: list[Row]) -> dict[str, Any]:
        trained = float(self.losses.get("loss", math.nan)) / math.log(2)
        return {"training_bits": trained, "validation_bits": rows[0]["bits"]}

    def export(self) -> None:
        """Show what the weights do as they were saved."""
        model = self.load_best()
        results: dict[str, Any] = {
            "weights_hash": model.weights_hash,
            "tokenizer": model.config.window.model,
            "tokenizer_hash": model.config.window.weights_hash,
            "prior_hashes": {name: prior.hash for name, prior in self.priors.items()},
            "media": self.source.text,
            **self.report(),
        }
        tables = {"held-out": code_bits(model, self.priors, self.grids)}
        if media := self.test_media():
            tables["test"] = code_bits(model, self.priors, self.cut(media, "in the test set"))
        results |= {name: [vars(row) for row in rows] for name, rows in tables.items()}
        (self.out / "training.json").write_text(as_json(results))
        size = (self.out / "model.safetensors").stat().st_size / 2**20
        self.log(f"{self.out}: {size:.1f} MiB, weights {model.weights_hash}")
        for name, rows in tables.items():
            self.log(f"\n{name}\n{table_text(rows)}")


def main() -> None:
    parser = trainer_arguments(__doc__, "generator-image", "pictures or sounds")
    parser.add_argument("--tokenizer", help="folder or release, instead of the recipe's")
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
