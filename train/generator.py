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

import math
import time
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..codec.generate.bits import BitsRow, code_bits, priors_of, table_text, whole_windows, window_tokens
from ..codec.generate.model import Generator, GeneratorConfig
from ..codec.provenance import as_json
from ..entropy.context.prior import ContextPrior
from ..entropy.prior import Codes
from ..entropy.tree import CodeTree, balanced_tree
from ..tokenizers.api import Tokenizer
from ..tokenizers.audio.grvq import RATE, AudioGRVQ
from ..tokenizers.image.grid import ImageGrid
from ..tokenizers.image.layers import STRIDE
from .data.audio import SoundStore, list_sounds, read_sounds
from .data.images import CropStore, list_images, read_all
from .graphed import GraphedStep
from .loop import (
    Pace,
    TrainingRun,
    optimizers_of,
    run_script,
    training_arguments,
)
from .prior import codewords_of

EVALUATIONS = 16


class Media(Protocol):
    """Where windows come from."""

    text: str  # how much there is

    def windows(self, n: int) -> Tensor:
        """Codes ``[n, levels, *window]`` of new random crops."""

    def held_out(self) -> list[Codes]:
        """Codes ``[K, *grid]`` of each whole medium that is not trained on."""

    def whole(self, folder: str) -> list[Codes]:
        """Codes ``[K, *grid]`` of each medium in a folder."""


class Pictures:
    """Crops at random places and scales, mirrored or not."""

    def __init__(self, tokenizer: ImageGrid, recipe: dict[str, Any], folders: Sequence[str], seed: int) -> None:
        conf, window = recipe["data"], recipe["model"]["window"]
        if len(window) != 2 or window[0] != window[1] or window[0] < STRIDE or window[0] % STRIDE:
            raise ValueError(f"a window of pictures is square, with sides of whole cells of {STRIDE} pixels")
        pictures = read_all(list_images(folders))
        every = conf["holdout_every"]
        self.held = pictures[::every]
        self.tokenizer, self.levels = tokenizer, recipe["model"]["levels"]
        kept = [p for i, p in enumerate(pictures) if i % every]
        self.store = CropStore(
            kept, window[0], tokenizer.device, conf["zoom"], conf["max_zoom"], seed, turned=0.0
        )  # fmt: skip
        self.text = f"{len(self.store)} pictures to train on, {len(self.held)} held out"

    def windows(self, n: int) -> Tensor:
        x = self.store.batch(n).contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            z = self.tokenizer.latents(x)
        return self.tokenizer.quantizer.encode(z.float(), self.levels)

    def held_out(self) -> list[Codes]:
        return [self._codes(p) for p in self.held]

    def whole(self, folder: str) -> list[Codes]:
        return [self._codes(p) for p in read_all(list_images([folder]))]

    def _codes(self, picture: Tensor) -> Codes:
        x = picture.to(self.tokenizer.device).permute(2, 0, 1)[None].float() / 255
        codes: Codes = self.tokenizer.encode(x).codes[0].cpu().numpy()
        return codes


class Sounds:
    """Crops at random places and loudnesses."""

    def __init__(self, tokenizer: AudioGRVQ, recipe: dict[str, Any], folders: Sequence[str], seed: int) -> None:
        conf, window = recipe["data"], recipe["model"]["window"]
        if len(window) != 1 or window[0] < 1:
            raise ValueError("a window of sounds is a number of samples")
        sounds = read_sounds(list_sounds(folders), RATE)
        every = conf["holdout_every"]
        self.held = sounds[::every]
        self.tokenizer, self.levels = tokenizer, recipe["model"]["levels"]
        kept = [s for i, s in enumerate(sounds) if i % every]
        self.store = SoundStore(kept, window[0], tokenizer.device, mixed=0.0, seed=seed)
        minutes = sum(map(len, kept)) / RATE / 60
        self.text = f"{len(kept)} sounds to train on, {minutes:.1f} minutes, {len(self.held)} held out"

    def windows(self, n: int) -> Tensor:
        return self.tokenizer.encode(self.store.batch(n), self.levels).codes

    def held_out(self) -> list[Codes]:
        return [self._codes(s) for s in self.held if len(s)]

    def whole(self, folder: str) -> list[Codes]:
        return [self._codes(s) for s in read_sounds(list_sounds([folder]), RATE) if len(s)]

    def _codes(self, sound: Tensor) -> Codes:
        x = sound.to(self.tokenizer.device).float()[None, None] / 32768
        codes: Codes = self.tokenizer.encode(x, self.levels).codes[0].cpu().numpy()
        return codes


def trees_of(tokenizer: Tokenizer, folder: str, levels: int) -> list[CodeTree]:
    """Digits of the codes of the first levels: those of the context prior, or of the codewords if there is none."""
    prior = priors_of(folder, "cpu").get("context")
    if isinstance(prior, ContextPrior):
        return list(prior.trees[:levels])
    return [balanced_tree(words) for words in codewords_of(tokenizer, tokenizer.codebook_sizes)[:levels]]


def new_generator(recipe: dict[str, Any], tokenizer: Tokenizer, folder: str) -> Generator:
    """The untrained generator of a recipe. Raises ValueError for settings that make no sense."""
    conf = dict(recipe["model"])
    window, digits, dropout = conf.pop("window"), conf.pop("digits"), conf.pop("dropout")
    spec = tokenizer.spec(tuple(window))
    trees = trees_of(tokenizer, folder, conf["levels"]) if digits else []
    config = GeneratorConfig(spec, bases=tuple(tuple(tree.bases) for tree in trees), **conf)
    return Generator(config, trees, recipe["name"], dropout)


class Trainer(TrainingRun):
    """One run of a recipe; see the module's text."""

    benchmark = False

    def __init__(self, recipe: dict[str, Any], args: Namespace) -> None:
        self.begin = time.monotonic()
        super().__init__(recipe, args)
        self.folder = args.tokenizer or recipe["tokenizer"]
        tokenizer = Tokenizer.from_pretrained(self.folder).to(self.device)
        tokenizer.requires_grad_(False)
        self.media: Media
        if isinstance(tokenizer, ImageGrid):
            self.media = Pictures(tokenizer, recipe, args.data, self.seed)
        elif isinstance(tokenizer, AudioGRVQ):
            self.media = Sounds(tokenizer, recipe, args.data, self.seed)
        else:
            raise ValueError(f"{tokenizer.name} makes no codes for generators: use image-grid or audio-24k")
        self.model = new_generator(recipe, tokenizer, self.folder)
        if args.resume:
            resumed = Generator.from_pretrained(args.resume)
            if resumed.config != self.model.config:
                raise ValueError(f"{args.resume} is another generator than the recipe's, or of another tokenizer")
            self.model.load_state_dict(resumed.state_dict())
        self.model.to(self.device)
        self.priors = priors_of(self.folder, str(self.device)) if self.main else {}
        self.held = self.cut(self.media.held_out(), "held out")
        held = window_tokens(self.model, self.held).codes
        step = max(1, len(held) // recipe["data"]["holdout_windows"])
        self.quick = self.model.ids(held[::step][: recipe["data"]["holdout_windows"]]).to(self.device)
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        self.log(f"{self.media.text}, {len(held)} windows; {self.device}")
        self.log(f"{parameters:.2f} M parameters, {self.quick.shape[1] - 2} ids a window")
        self.own_seeds()
        self.best = math.inf
        self.history: list[dict[str, float]] = []
        self.steps = 0

    def cut(self, grids: Sequence[Codes], what: str) -> list[Codes]:
        """Codes in whole windows. Raises ValueError if there is none."""
        found = [codes for grid in grids if (codes := whole_windows(self.model, grid)) is not None]
        if not found:
            raise ValueError(f"nothing that is {what} is as large as a window")
        return found

    def optimizers(self) -> list[torch.optim.Optimizer]:
        def in_a_block(name: str, p: nn.Parameter) -> bool:
            return p.ndim == 2 and name.startswith("llama.model.layers.")

        return optimizers_of(self.model.named_parameters(), self.recipe["optim"], in_a_block)

    def loss(self, ids: Tensor) -> Tensor:
        bf16 = self.args.precision == "bf16" and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            return self.model(ids).mean()

    def run(self) -> None:
        optim = self.recipe["optim"]
        self.out.mkdir(parents=True, exist_ok=True)
        optimizers = self.optimizers()
        compute: GraphedStep | None = None
        loss = torch.tensor(math.nan)
        self.model.train()
        pace = Pace(self, optimizers, EVALUATIONS, 60 * self.args.minutes - (time.monotonic() - self.begin))
        for self.steps in pace:
            with torch.no_grad():
                ids = self.model.ids(self.media.windows(optim["batch"]))
            if compute is None:
                compute = GraphedStep(self.model, self.loss, (ids,), not self.args.eager)
            loss = compute((ids,))
            compute.clip(optim["grad_clip"])
            for optimizer in optimizers:
                optimizer.step()
            if pace.due:
                self.check(pace.share, pace.seconds, loss)
        self.check(1.0, pace.seconds, loss)
        self.accelerator.wait_for_everyone()
        if self.main:
            if not math.isfinite(self.best):
                raise ValueError("training gave no finite loss: lower optim.lr")
            self.export()
        self.accelerator.end_training()

    @torch.no_grad()
    def check(self, share: float, seconds: float, loss: Tensor) -> None:
        """Bits of the held-out windows; the weights are kept if they are the best so far."""
        if not self.main or (self.history and self.history[-1]["step"] == self.steps):
            return
        self.model.eval()
        batch = self.recipe["optim"]["batch"]
        nats = [self.model(part).double().mean(1) for part in self.quick.split(batch)]
        self.model.train()
        bits = float(torch.cat(nats).mean()) / math.log(2)
        kept = bits < self.best
        if kept:
            self.best = bits
            self.model.save_pretrained(self.out)
        trained = float(loss) / math.log(2)
        windows = self.steps * batch * self.accelerator.num_processes
        self.history.append(
            {"step": self.steps, "share": share, "seconds": seconds, "training_bits": trained, "validation_bits": bits}
        )
        self.log(
            f"[{100 * share:5.1f} %] step {self.steps} {windows / max(seconds, 1e-3):.0f} windows/s  bits an id:"
            f" training {trained:.4f} held-out {bits:.4f}" + (" kept" if kept else "")
        )

    def export(self) -> None:
        """Show what the weights do as they were saved."""
        model = Generator.from_pretrained(self.out).to(self.device)
        results: dict[str, Any] = {
            "weights_hash": model.weights_hash,
            "tokenizer": model.config.window.model,
            "tokenizer_hash": model.config.window.weights_hash,
            "prior_hashes": {name: prior.hash for name, prior in self.priors.items()},
            "minutes": self.args.minutes,
            "steps": self.steps,
            "processes": self.accelerator.num_processes,
            "machine": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "media": self.media.text,
            "seed": self.args.seed,
            "recipe": self.recipe,
            "history": self.history,
        }
        tables: dict[str, list[BitsRow]] = {"held-out": code_bits(model, self.priors, self.held)}
        if self.args.test:
            test = self.cut(self.media.whole(self.args.test), "in the test set")
            tables["test"] = code_bits(model, self.priors, test)
        for name, rows in tables.items():
            results[name] = [vars(row) for row in rows]
        (self.out / "training.json").write_text(as_json(results))
        size = (self.out / "model.safetensors").stat().st_size / 2**20
        self.log(f"{self.out}: {size:.1f} MiB, weights {model.weights_hash}")
        for name, rows in tables.items():
            self.log(f"\n{name}\n{table_text(rows)}")


def main() -> None:
    parser = training_arguments(__doc__, "generator-image", "pictures or sounds")
    parser.add_argument("--tokenizer", help="folder or release, instead of the recipe's")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
