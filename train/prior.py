"""Train, evaluate and export a context prior in one command.

    python -m tokodec.train.prior --data PICTURES... --tokenizer image-grid --minutes 8 --out OUT
    python -m tokodec.train.prior --data SOUNDS... --tokenizer audio-24k --recipe context-audio --minutes 5 --out OUT
    python -m tokodec.train.prior --data CLIPS... --tokenizer video-grid --recipe context-video --minutes 5 --out OUT
    python -m tokodec.train.prior --tokens FOLDER... --minutes 8 --out OUT     # what `codec tokenize` wrote
    torchrun --nproc_per_node 4 -m tokodec.train.prior ...                     # a process a level, on one GPU or more

Stage 1 trains in float, stage 2 goes on with the rounding that the integers will have. Of every network the integers
that did best on the held-out tokens are kept; OUT gets them as ``context.safetensors`` (copy it into the model's folder
to encode with it) after each stage, and ``training.json``. The budget is wall-clock minutes, reading and tokenizing
included. The last thing printed is a table: bits per code by level, order-0 against float against integers.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed

from ..codec.errors import TokodecError
from ..codec.provenance import as_json
from ..entropy.context.net import ContextNet, LevelShape
from ..entropy.context.prior import CONTEXT_FILE, ContextPrior
from ..entropy.integer import CONCEAL
from ..entropy.schedule import Schedule, offsets_within, raster, refinement
from ..entropy.static import StaticPrior
from ..entropy.tree import CodeTree
from ..tokenizers.api import Tokenizer
from .data.tokens import Codes, LevelSampler, TokenStore
from .loop import check_budget, learning_rate, set_rate, state_arguments, step_where_finite
from .prior_data import Data, Keeper, Ranks, read_grids
from .recipe import as_values, change, checked, read_recipe
from .state import FOLDER, Attributes, restore, state_of

STEPS_A_CHECK = 10
EVALUATIONS = 4  # a stage
EVALUATION_ROWS = 16384
LEAST_RATE = 0.01  # of the full learning rate
COUNTERS = ("rounding", "step", "steps", "passed", "due", "budget")  # that a state holds


@dataclass(frozen=True)
class Order:
    """In which order codes are coded; lists have a value a level, whose last serves all further levels."""

    steps: tuple[int, ...]  # of the refinement of each level: 1, 2, 4, 8, or 0 for raster order
    walked: int  # leading axes that are walked cell by cell first


@dataclass(frozen=True)
class Nets:
    """Windows and sizes of the networks, lists as in :class:`Order`."""

    radius: tuple[float, ...]  # of the window in cells
    features: tuple[int, ...]
    width: tuple[int, ...]
    hidden: tuple[int, ...]
    blocks: tuple[int, ...]
    digit: tuple[int, ...]
    time: float = 1.0  # how many cells of the other axes one of the first is away


@dataclass(frozen=True)
class Conceal:
    """The network that fills lost codes of the first level."""

    radius: float  # 0: none
    features: int = 0
    width: int = 0
    hidden: int = 0
    blocks: int = 0
    digit: int = 0


@dataclass(frozen=True)
class Optim:
    """Steps of the float stage."""

    rows: int  # codes of a level and step
    lr: float
    warmup_steps: int
    cooldown: float  # the last share of the stage, in which the learning rate falls linearly to zero
    weight_decay: float
    dropout: float
    grad_clip: float
    betas: tuple[float, float]


@dataclass(frozen=True)
class Rounding:
    """The second stage: the forward pass rounds as the integers will."""

    share: float  # of the time
    lr: float


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; ``train/recipes/context*.yaml`` say what they mean."""

    schedule: Order
    net: Nets
    conceal: Conceal
    data: Data
    optim: Optim
    rounding: Rounding


def pick(values: Sequence[Any], level: int) -> Any:
    """The value of a level from a recipe's list, whose last entry serves all further levels."""
    return values[min(level, len(values) - 1)]


def build_net(
    recipe: Recipe,
    codewords: Sequence[npt.NDArray[np.floating]],
    ndim: int,
    trees: Sequence[CodeTree] | None = None,
) -> ContextNet:
    """The untrained networks of all levels and the filler, for grids of ``ndim`` axes."""
    schedules: list[Schedule] = []
    offsets, shapes = [], []
    names = ("features", "width", "hidden", "blocks", "digit")
    net, conceal = recipe.net, recipe.conceal
    for k in range(len(codewords)):
        steps = pick(recipe.schedule.steps, k)
        schedules.append(refinement(ndim, steps, recipe.schedule.walked) if steps else raster(ndim))
        offsets.append(offsets_within(pick(net.radius, k), (net.time, *(1.0,) * (ndim - 1))))
        shapes.append(LevelShape(**{name: pick(getattr(net, name), k) for name in names}))
    if conceal.radius:
        schedules.append(refinement(ndim, 1))
        offsets.append(offsets_within(conceal.radius, (1.0,) * ndim))
        shapes.append(LevelShape(**{name: getattr(conceal, name) for name in names}))
    return ContextNet(codewords, schedules, offsets, shapes, trees)


def codewords_of(tokenizer: Tokenizer | None, sizes: Sequence[int]) -> list[npt.NDArray[np.floating]]:
    """``[N_k, D]`` of every level; D is 0 without a tokenizer that has them."""
    words = None if tokenizer is None else tokenizer.codewords()
    return words or [np.zeros((n, 0), dtype=np.float32) for n in sizes]


class Trainer:
    """Float stage and rounding stage of some networks of a prior; they share nothing but the data.

    Attributes:
        levels: numbers of the networks that are trained here; the filler's is the last.
        best: fewest bits per code on the held-out tokens so far, of each of them as integers.
        arrays: the integers that reached it.
        floats: bits per code without rounding, as measured after the float stage.
        budget: seconds and, if they are given, steps of both stages.
    """

    def __init__(
        self, net: ContextNet, sizes: Sequence[int], recipe: Recipe, device: torch.device, levels: Sequence[int]
    ) -> None:
        self.net, self.device, self.recipe = net.to(device), device, recipe
        self.levels = list(levels)
        self.samplers = {
            k: LevelSampler(
                sizes, net.orders[k], net.nets[k].tree.leaf, net.schedules[k], offsets=net.offsets[k], device=device
            )
            for k in levels
        }
        self.loss = {k: 1.0 if net.names[k] == CONCEAL else recipe.data.loss for k in levels}
        self.best = dict.fromkeys(self.levels, math.inf)
        self.arrays: dict[int, dict[str, npt.NDArray[np.integer]]] = {}
        self.floats: dict[str, npt.NDArray[Any]] = {}
        self.steps, self.step, self.rounding, self.passed = 0, 0, False, 0.0
        self.budget: tuple[float, int | None] = (0.0, None)
        self.due = 1 / EVALUATIONS
        self.optimizers: dict[int, torch.optim.Optimizer] = {}

    def begin(self, rounding: bool) -> None:
        """Make the optimizers of a stage."""
        optim, lr = self.recipe.optim, self.recipe.rounding.lr if rounding else self.recipe.optim.lr
        adamw = functools.partial(
            torch.optim.AdamW, lr=lr, betas=optim.betas, weight_decay=optim.weight_decay, fused=True
        )  # fmt: skip
        self.optimizers = {k: adamw([{"params": self.net.nets[k].parameters(), "base": lr}]) for k in self.levels}
        self.rounding, self.step, self.passed, self.due = rounding, 0, 0.0, 1 / EVALUATIONS

    def left(self) -> str:
        """What is left of the budget."""
        return f"{self.budget[0]:.0f} s" if self.budget[1] is None else f"{self.budget[1] - self.steps} steps"

    def stage(self, store: TokenStore, held: TokenStore, keeper: Keeper) -> None:
        """Train until the stage's share of the budget is used up, evaluate and keep the best on the way."""
        optim, rounding = self.recipe.optim, self.rounding
        part = self.recipe.rounding.share if rounding else 1 - self.recipe.rounding.share
        seconds, steps = part * self.budget[0], None if self.budget[1] is None else round(part * self.budget[1])
        cooldown = 1.0 if rounding else optim.cooldown
        half = self.device.type == "cuda" and not rounding
        dtype = torch.bfloat16 if half else torch.float32
        begin, count, saved = time.monotonic() - self.passed, 0, self.passed
        share = self.passed / max(seconds, 1e-3) if steps is None else self.step / steps if steps else 1.0
        sums = {k: torch.zeros((), device=self.device) for k in self.levels}
        while share < 1:
            factor = max(LEAST_RATE, learning_rate(self.step, share, optim.warmup_steps, cooldown))
            set_rate(self.optimizers.values(), min(factor, (self.step + 1) / optim.warmup_steps))
            for k, optimizer in self.optimizers.items():
                level = self.net.nets[k]
                at = store.sample(optim.rows)
                indices, leaf = self.samplers[k].examples(store, at, self.loss[k])
                with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                    bits = level.bits(indices, leaf, rounding, dtype, optim.dropout).mean()
                optimizer.zero_grad(set_to_none=True)
                bits.backward()
                step_where_finite([optimizer], torch.nn.utils.clip_grad_norm_(level.parameters(), optim.grad_clip))
                sums[k] += bits.detach()
            count += 1
            self.step += 1
            self.steps += 1
            if self.step % STEPS_A_CHECK and steps is None:
                continue
            if not self.step % STEPS_A_CHECK:
                torch.stack(list(sums.values())).tolist()  # waits, so that the clock means something
            self.passed = time.monotonic() - begin
            share = self.passed / max(seconds, 1e-3) if steps is None else self.step / steps
            if share >= self.due:
                self.due = (math.floor(share * EVALUATIONS) + 1) / EVALUATIONS
                found = self.evaluate(held, rounding)
                kind = "rounding" if rounding else "float"
                shown = "; ".join(
                    f"{self.net.names[k]}: {float(sums[k]) / count:.3f}, held-out {found[k]:.3f}" for k in self.levels
                )
                print(f"{kind} {100 * share:5.1f} %, step {self.step}: {shown}", flush=True)
                for total in sums.values():
                    total.zero_()
                count = 0
                self.keep(found if rounding else self.evaluate(held, True))
            if keeper.told.signal or self.passed - saved >= keeper.often:
                saved = self.passed
                keeper.save(self)

    def state_dict(self) -> dict[str, Any]:
        """Of :mod:`.state`."""
        return {
            **Attributes(self, *COUNTERS).state_dict(),
            "best": list(self.best.values()),
            "arrays": {str(k): own for k, own in self.arrays.items()},
            "floats": self.floats,
            **state_of(self._parts()),
        }

    def _parts(self) -> dict[str, Any]:
        return {"nets": [self.net.nets[k] for k in self.levels], "optimizers": list(self.optimizers.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.begin(state["rounding"])
        Attributes(self, *COUNTERS).load_state_dict(state)
        self.best = dict(zip(self.levels, state["best"], strict=True))
        self.arrays = {int(k): {n: v.numpy() for n, v in own.items()} for k, own in state["arrays"].items()}
        self.floats = {name: value.numpy() for name, value in state["floats"].items()}
        restore(self._parts(), {name: state[name] for name in self._parts()})

    def keep(self, found: dict[int, float]) -> None:
        """Remember the present integers of every level that is better than before."""
        for k, bits in found.items():
            if bits < self.best[k]:
                self.best[k] = bits
                self.arrays[k] = self.net.export(k)

    @torch.no_grad()
    def evaluate(self, store: TokenStore, rounding: bool) -> dict[int, float]:
        """Bits per code on all codes of ``store``, by level."""
        self.net.eval()
        found = {}
        for k in self.levels:
            total = 0.0
            for at in torch.arange(len(store), device=self.device).split(EVALUATION_ROWS):
                # What the schedule shows; the filler has none, it is judged by lost codes as it was trained.
                loss = self.loss[k] if self.net.names[k] == CONCEAL else 0.0
                indices, leaf = self.samplers[k].examples(store, at, loss)
                total += float(self.net.nets[k].bits(indices, leaf, rounding).double().sum())
            found[k] = total / len(store)
        self.net.train()
        return found


def static_bits(prior: StaticPrior, store: TokenStore) -> list[float]:
    """Bits per code of the order-0 model."""
    codes = store.codes[:, None].cpu().numpy().astype(np.int64)
    return [float(b) / len(store) for b in prior.bits(codes)]


def integer_bits(prior: ContextPrior, grids: Sequence[Codes]) -> list[float]:
    """Bits per code of the exported integers."""
    total = np.sum([prior.bits(codes) for codes in grids], axis=0)
    return [float(b) / sum(g[0].size for g in grids) for b in total]


def table(rows: dict[str, list[float]]) -> str:
    """Bits per code, a row each, a column a level, and the sum."""
    levels = len(next(iter(rows.values())))
    lines = ["| bits per code | " + " | ".join(f"level {k + 1}" for k in range(levels)) + " | all |"]
    lines.append("| --- |" + " ---: |" * (levels + 1))
    for name, bits in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{b:.3f}" for b in [*bits, sum(bits)]) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tokodec.train.prior", description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", nargs="+", help="folders of pictures, of sounds, or of videos")
    source.add_argument("--tokens", nargs="+", help="folders of tokens, as codec tokenize writes them")
    parser.add_argument("--test", nargs="+", help="folders to test on at the end, of the same kind")
    parser.add_argument("--tokenizer", default="image-grid", help="release name, folder, or none (codewords unknown)")
    parser.add_argument("--recipe", default="context", help="name in train/recipes or a path")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="wall-clock budget, reading and tokenizing included")
    budget.add_argument("--steps", type=int, help="budget in steps, however long these take")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="folder with a context.safetensors to go on from")
    parser.add_argument("--only", nargs="+", default=[], help="train only these networks of --resume, e.g. conceal")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipe, e.g. optim.lr=1e-3"
    )
    parser.add_argument("--force", action="store_true", help="overwrite a prior in --out")
    state_arguments(parser)
    arguments = parser.parse_args(argv)
    if (arguments.out / CONTEXT_FILE).exists() and not (arguments.force or (arguments.out / FOLDER).is_dir()):
        parser.error(f"{arguments.out} holds a context prior already: give another --out, or --force")
    check_budget(parser, arguments)
    if arguments.steps == 0:
        parser.error("--steps 0 leaves nothing to train")
    try:
        values = read_recipe(arguments.recipe)
        change(values, arguments.set)
        run(arguments, checked(Recipe, values))
    except (OSError, ValueError, TokodecError) as error:  # no pictures, damaged tokens, settings that make no sense
        parser.error(" ".join(str(error).split()))


def run(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """What the command does."""
    begin = time.monotonic()
    ranks = Ranks()
    device = torch.device(arguments.device)
    if device.type == "cuda":
        device = torch.device("cuda", ranks.rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    torch.manual_seed(arguments.seed)
    torch.backends.cuda.matmul.allow_tf32 = True  # training only; the prior's own products refuse TF32
    arguments.out.mkdir(parents=True, exist_ok=True)
    keeper = Keeper(arguments, as_values(recipe), ranks)
    grids, spec, tokenizer = read_grids(arguments, recipe.data, device, ranks, keeper.tokens)
    stores = {name: TokenStore(own, device, arguments.seed + ranks.rank) for name, own in grids.items()}
    train, held = stores["train"], stores["held-out"]
    sizes = spec.codebook_sizes
    counts = [np.bincount(level.cpu().numpy(), minlength=n) for level, n in zip(train.codes, sizes, strict=True)]
    order0 = StaticPrior.from_counts(counts)
    before = ContextPrior.from_pretrained(arguments.resume) if arguments.resume else None
    trees = [level.tree for level in before.levels] if before else None
    net = build_net(recipe, codewords_of(tokenizer, sizes), len(spec.strides), trees)
    if before:
        net.load_export(before.arrays())
    chosen = [i for i, name in enumerate(net.names) if not arguments.only or name in arguments.only]
    if not chosen or (arguments.only and not before):
        raise ValueError(f"--only takes names of {', '.join(net.names)} and goes with --resume")
    trainer = Trainer(net, sizes, recipe, device, chosen[ranks.rank :: ranks.world])
    if before:  # what it goes on from is only given up for what is better
        trainer.keep(trainer.evaluate(held, True))
    spent = time.monotonic() - begin
    left = 60 * arguments.minutes - spent if arguments.steps is None else math.inf
    if left <= 0 and keeper.states.found is None:
        raise ValueError(f"reading and tokenizing took {spent:.1f} s: nothing is left of --minutes to train in")
    trainer.budget = left, arguments.steps
    trainer.begin(rounding=False)
    keeper.go_on(trainer, stores)
    if ranks.rank == 0:
        shown = " ".join(f"{b:.3f}" for b in static_bits(order0, held))
        size = sum(p.numel() for p in net.parameters())
        print(
            f"{len(grids['train'])} grids of {len(train)} cells, {len(grids['held-out'])} held out, {size} parameters,"
            f" {trainer.left()} to train; order-0 held-out {shown}",
            flush=True,
        )
    with keeper.told.listening():
        if not trainer.rounding:
            trainer.stage(train, held, keeper)
            found = {name: trainer.evaluate(stores[name], False) for name in ("held-out", "test") if name in stores}
            trainer.floats = {f"{name}/{k}": np.array(bits) for name, own in found.items() for k, bits in own.items()}
            collect(trainer, before, chosen, ranks, arguments.out)
            trainer.begin(rounding=True)
        trainer.stage(train, held, keeper)
    trainer.keep(trainer.evaluate(held, True))
    prior = collect(trainer, before, chosen, ranks, arguments.out)
    floats = ranks.share(arguments.out, "floats", trainer.floats)
    if prior is not None:
        report(arguments, recipe, prior, floats, grids=grids, stores=stores, order0=order0, steps=trainer.steps)
        keeper.clear()


def collect(
    trainer: Trainer, before: ContextPrior | None, chosen: Sequence[int], ranks: Ranks, folder: Path
) -> ContextPrior | None:
    """Write the best integers of all processes so far into ``folder``; the first process gets them as a prior."""
    own = {name: value for arrays in trainer.arrays.values() for name, value in arrays.items()}
    trained = ranks.share(folder, "networks", own)
    if ranks.rank:
        return None
    new = {trainer.net.names[i] for i in chosen}
    kept = before.arrays() if before else {}
    prior = ContextPrior({name: value for name, value in kept.items() if name.split(".")[0] not in new} | trained)
    prior.save_pretrained(folder)
    return prior


def report(
    arguments: argparse.Namespace,
    recipe: Recipe,
    prior: ContextPrior,
    floats: dict[str, npt.NDArray[Any]],
    grids: dict[str, list[Codes]],
    stores: dict[str, TokenStore],
    order0: StaticPrior,
    steps: int,
) -> None:
    """Write the log, print the tables."""
    log: dict[str, Any] = {"seed": arguments.seed, "minutes": arguments.minutes, "steps": steps}
    log["recipe"] = as_values(recipe)
    log |= {f"{name} grids": len(own) for name, own in grids.items()}
    for name in ("held-out", "test"):
        if name not in stores:
            continue
        rows = {
            "order-0": static_bits(order0, stores[name]),
            "integers": integer_bits(prior, grids[name]),
        }
        levels = range(len(prior.codebook_sizes))
        cost = ""
        if all(f"{name}/{k}" in floats for k in levels):
            rows["float"] = [float(floats[f"{name}/{k}"]) for k in levels]
            cost = f" integers cost {100 * (sum(rows['integers']) / sum(rows['float']) - 1):+.2f} % of it;"
        filler = floats.get(f"{name}/{len(levels)}")
        log[name] = rows | ({"filler, lost codes": [float(filler)]} if filler is not None else {})
        saved = 100 * (1 - sum(rows["integers"]) / sum(rows["order-0"]))
        print(f"\n{name}: {len(grids[name])} grids;{cost} integers save {saved:.1f} % of order-0\n{table(rows)}")
    (arguments.out / "training.json").write_text(as_json(log))
    path = arguments.out / CONTEXT_FILE
    print(f"\n{path}: {path.stat().st_size} bytes, hash {prior.hash}")


if __name__ == "__main__":
    main()
