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
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
import torch.distributed

from ..codec.audio.encode import SEGMENT
from ..codec.errors import TokodecError
from ..codec.video.segments import UNIT
from ..entropy.context.net import ContextNet, LevelShape
from ..entropy.context.prior import CONTEXT_FILE, ContextPrior
from ..entropy.integer import CONCEAL
from ..entropy.schedule import Schedule, offsets_within, raster, refinement
from ..entropy.static import StaticPrior
from ..entropy.tree import CodeTree
from ..tokenizers.api import Tokenizer
from ..tokenizers.audio.grvq import RATE, AudioGRVQ
from ..tokenizers.image.grid import ImageGrid
from ..tokenizers.tokens import TokenSpec
from ..tokenizers.video.grid import VideoGrid
from .data.audio import list_sounds, read_mono
from .data.images import list_images, read_all
from .data.tokens import Codes, LevelSampler, TokenStore, clip_views, picture_views, read_token_files, sound_views
from .data.video import list_clips, read_clip
from .recipe import change, read_recipe

STEPS_A_CHECK = 10
EVALUATIONS = 4  # a stage
EVALUATION_ROWS = 16384
SEGMENT_FRAMES = 1 + UNIT  # of clips: a segment of a file of 25 frames a second


def pick(values: Sequence[Any], level: int) -> Any:
    """The value of a level from a recipe's list, whose last entry serves all further levels."""
    return values[min(level, len(values) - 1)]


def build_net(
    recipe: dict[str, Any],
    codewords: Sequence[npt.NDArray[np.floating]],
    ndim: int,
    trees: Sequence[CodeTree] | None = None,
) -> ContextNet:
    """The untrained networks of all levels and the filler, for grids of ``ndim`` axes."""
    schedules: list[Schedule] = []
    offsets, shapes = [], []
    names = ("features", "width", "hidden", "blocks", "digit")
    for k in range(len(codewords)):
        steps = pick(recipe["schedule"]["steps"], k)
        schedules.append(refinement(ndim, steps, recipe["schedule"]["walked"]) if steps else raster(ndim))
        scale = (recipe["net"].get("time", 1.0), *(1.0,) * (ndim - 1))
        offsets.append(offsets_within(pick(recipe["net"]["radius"], k), scale))
        shapes.append(LevelShape(**{name: pick(recipe["net"][name], k) for name in names}))
    if recipe["conceal"]["radius"]:
        schedules.append(refinement(ndim, 1))
        offsets.append(offsets_within(recipe["conceal"]["radius"], (1.0,) * ndim))
        shapes.append(LevelShape(**{name: recipe["conceal"][name] for name in names}))
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
    """

    def __init__(
        self, net: ContextNet, sizes: Sequence[int], recipe: dict[str, Any], device: torch.device, levels: Sequence[int]
    ) -> None:
        self.net, self.device, self.recipe = net.to(device), device, recipe
        self.levels = list(levels)
        self.samplers = {
            k: LevelSampler(sizes, net.orders[k], net.nets[k].tree.leaf, net.schedules[k], net.offsets[k], device)
            for k in levels
        }
        self.loss = {k: 1.0 if net.names[k] == CONCEAL else recipe["data"]["loss"] for k in levels}
        self.best = dict.fromkeys(self.levels, math.inf)
        self.arrays: dict[int, dict[str, npt.NDArray[np.integer]]] = {}
        self.steps = 0

    def stage(self, store: TokenStore, held: TokenStore, seconds: float, rounding: bool) -> None:
        """Train for ``seconds``, evaluate and keep the best on the way."""
        optim = self.recipe["optim"]
        lr = self.recipe["rounding"]["lr"] if rounding else optim["lr"]
        cooldown = 1.0 if rounding else optim["cooldown"]
        fused = self.device.type == "cuda"
        optimizers = {
            k: torch.optim.AdamW(
                self.net.nets[k].parameters(),
                lr,
                tuple(optim["betas"]),
                weight_decay=optim["weight_decay"],
                fused=fused,
            )
            for k in self.levels
        }
        half = self.device.type == "cuda" and not rounding
        dtype = torch.bfloat16 if half else torch.float32
        begin, step, count, share, due = time.monotonic(), 0, 0, 0.0, 1 / EVALUATIONS
        sums = {k: torch.zeros((), device=self.device) for k in self.levels}
        while share < 1:
            factor = min(1.0, (step + 1) / optim["warmup_steps"], max(0.01, (1 - share) / cooldown))
            for k, optimizer in optimizers.items():
                level = self.net.nets[k]
                for group in optimizer.param_groups:
                    group["lr"] = lr * factor
                at = store.sample(optim["rows"])
                indices, leaf = self.samplers[k].examples(store, at, self.loss[k])
                with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                    bits = level.bits(indices, leaf, rounding, dtype, optim["dropout"]).mean()
                optimizer.zero_grad(set_to_none=True)
                bits.backward()
                torch.nn.utils.clip_grad_norm_(level.parameters(), optim["grad_clip"])
                optimizer.step()
                sums[k] += bits.detach()
            count += 1
            step += 1
            if step % STEPS_A_CHECK:
                continue
            trained = {k: float(total) / count for k, total in sums.items()}  # waits, so that the clock means something
            share = (time.monotonic() - begin) / max(seconds, 1e-3)
            if share >= due:
                due = (math.floor(share * EVALUATIONS) + 1) / EVALUATIONS
                found = self.evaluate(held, rounding)
                kind = "rounding" if rounding else "float"
                shown = "; ".join(
                    f"{self.net.names[k]}: {trained[k]:.3f}, held-out {found[k]:.3f}" for k in self.levels
                )
                print(f"{kind} {100 * share:5.1f} %, step {step}: {shown}", flush=True)
                for total in sums.values():
                    total.zero_()
                count = 0
                self.keep(found if rounding else self.evaluate(held, True))
        self.steps += step

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


class Ranks:
    """The processes that torchrun started, or this one alone. They speak through files in the output folder."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if self.world > 1:
            torch.distributed.init_process_group("gloo")

    def share(self, folder: Path, name: str, own: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """All processes' arrays together, on every process."""
        if self.world == 1:
            return own
        (folder / f".{name}-{self.rank}.safetensors").write_bytes(safetensors.numpy.save(own))
        torch.distributed.barrier()
        paths = [folder / f".{name}-{rank}.safetensors" for rank in range(self.world)]
        merged = {key: value for path in paths for key, value in safetensors.numpy.load_file(path).items()}
        torch.distributed.barrier()
        paths[self.rank].unlink()
        return merged


def read_grids(
    arguments: argparse.Namespace, recipe: dict[str, Any], device: torch.device, ranks: Ranks
) -> tuple[dict[str, list[Codes]], TokenSpec, Tokenizer | None]:
    """Grids "train", "held-out" and maybe "test", what they are tokens of, and the tokenizer if it is known."""
    tokenizer = None if arguments.tokenizer == "none" else Tokenizer.from_pretrained(arguments.tokenizer).to(device)
    every = recipe["data"]["holdout_every"]
    grids: dict[str, list[Codes]] = {}
    if arguments.tokens:
        named, spec = read_token_files(arguments.tokens)
        grids["train"] = [codes for i, (_, codes) in enumerate(named) if i % every]
        grids["held-out"] = [codes for i, (_, codes) in enumerate(named) if i % every == 0]
        if not grids["train"]:
            raise ValueError("the tokens of one file are too few: every held-out file needs others to learn from")
        if arguments.test:
            tests, other = read_token_files(arguments.test)
            if (other.model, other.weights_hash) != (spec.model, spec.weights_hash):
                raise ValueError(f"the test tokens are of another model, {other.model} {other.weights_hash}")
            grids["test"] = [codes for _, codes in tests]
        if tokenizer is not None and (tokenizer.name, tokenizer.weights_hash) != (spec.model, spec.weights_hash):
            raise ValueError(f"the tokens are of {spec.model} {spec.weights_hash}; give its --tokenizer, or none")
        return grids, spec, tokenizer
    if not isinstance(tokenizer, (ImageGrid, AudioGRVQ, VideoGrid)):
        raise ValueError("pictures, sounds and videos want a tokenizer for them; for other tokens use --tokens")
    own: dict[str, npt.NDArray[Any]] = {}

    def put(name: str, codes: Codes) -> None:
        own[f"{name}.{len(own):08d}.{ranks.rank}"] = np.ascontiguousarray(codes, dtype=np.int32)

    if not isinstance(tokenizer, ImageGrid):
        for name, folders in (("train", arguments.data), ("test", arguments.test or [])):
            listed = list_clips if isinstance(tokenizer, VideoGrid) else list_sounds
            paths = listed(folders) if folders else []
            generator = torch.Generator().manual_seed(arguments.seed + ranks.rank)
            for i in range(ranks.rank, len(paths), ranks.world):
                held = name == "train" and i % every == 0
                views = 0 if held or name == "test" else recipe["data"]["views"]
                for codes in file_views(tokenizer, paths[i], views, generator):
                    put("held-out" if held else name, codes)
        return shared_grids(own, ranks, arguments.out), tokenizer.spec(tokenizer.strides), tokenizer
    paths = list_images(arguments.data)
    mine = range(ranks.rank, len(paths), ranks.world)
    generator = torch.Generator().manual_seed(arguments.seed + ranks.rank)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        for i, picture in zip(mine, read_all([paths[i] for i in mine]), strict=True):
            held = i % every == 0
            for codes in picture_views(tokenizer, picture, 0 if held else recipe["data"]["views"], generator):
                put("held-out" if held else "train", codes)
    if arguments.test:
        paths = list_images(arguments.test)
        for picture in read_all(paths[ranks.rank :: ranks.world]):  # in float32, as the codec has it
            put("test", picture_views(tokenizer, picture, 0, generator)[0])
    return shared_grids(own, ranks, arguments.out), tokenizer.spec(tokenizer.strides), tokenizer


def file_views(tokenizer: AudioGRVQ | VideoGrid, path: Path, views: int, generator: torch.Generator) -> list[Codes]:
    """Codes of the segments of a sound or a clip, see :func:`sound_views` and :func:`clip_views`."""
    if isinstance(tokenizer, VideoGrid):
        return clip_views(tokenizer, read_clip(path), views, generator, SEGMENT_FRAMES)
    return sound_views(tokenizer, read_mono(path, RATE), views, generator, SEGMENT)


def shared_grids(own: dict[str, npt.NDArray[Any]], ranks: Ranks, folder: Path) -> dict[str, list[Codes]]:
    """The grids of all processes by the first part of their names."""
    grids: dict[str, list[Codes]] = {}
    shared = ranks.share(folder, "tokens", own)
    for name in sorted(shared):
        grids.setdefault(name.split(".")[0], []).append(shared[name].astype(np.int64))
    return grids


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="tokodec.train.prior", description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", nargs="+", help="folders of pictures, of sounds, or of videos")
    source.add_argument("--tokens", nargs="+", help="folders of tokens, as codec tokenize writes them")
    parser.add_argument("--test", nargs="+", help="folders to test on at the end, of the same kind")
    parser.add_argument("--tokenizer", default="image-grid", help="release name, folder, or none (codewords unknown)")
    parser.add_argument("--recipe", default="context", help="name in train/recipes or a path")
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="folder with a context.safetensors to go on from")
    parser.add_argument("--only", nargs="+", default=[], help="train only these networks of --resume, e.g. conceal")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="change the recipe, e.g. optim.lr=1e-3"
    )
    parser.add_argument("--force", action="store_true", help="overwrite a prior in --out")
    arguments = parser.parse_args(argv)
    if (arguments.out / CONTEXT_FILE).exists() and not arguments.force:
        parser.error(f"{arguments.out} holds a context prior already: give another --out, or --force")
    try:
        recipe = read_recipe(arguments.recipe)
        change(recipe, arguments.set)
        run(arguments, recipe)
    except (OSError, ValueError, TokodecError) as error:  # no pictures, damaged tokens, settings that make no sense
        parser.error(" ".join(str(error).split()))


def run(arguments: argparse.Namespace, recipe: dict[str, Any]) -> None:
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
    grids, spec, tokenizer = read_grids(arguments, recipe, device, ranks)
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
    left = 60 * arguments.minutes - spent
    if left <= 0:
        raise ValueError(f"reading and tokenizing took {spent:.1f} s: nothing is left of --minutes to train in")
    if ranks.rank == 0:
        shown = " ".join(f"{b:.3f}" for b in static_bits(order0, held))
        size = sum(p.numel() for p in net.parameters())
        print(
            f"{len(grids['train'])} grids of {len(train)} cells, {len(grids['held-out'])} held out, {size} parameters,"
            f" {left:.0f} s to train; order-0 held-out {shown}",
            flush=True,
        )
    share = recipe["rounding"]["share"]
    trainer.stage(train, held, left * (1 - share), False)
    parent = {name: trainer.evaluate(stores[name], False) for name in ("held-out", "test") if name in stores}
    collect(trainer, before, chosen, ranks, arguments.out)
    trainer.stage(train, held, left * share, True)
    trainer.keep(trainer.evaluate(held, True))
    prior = collect(trainer, before, chosen, ranks, arguments.out)
    floats = {f"{name}/{k}": np.array(bits) for name, found in parent.items() for k, bits in found.items()}
    floats = ranks.share(arguments.out, "floats", floats)
    if prior is not None:
        report(arguments, recipe, prior, floats, grids, stores, order0, trainer.steps)


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
    recipe: dict[str, Any],
    prior: ContextPrior,
    floats: dict[str, npt.NDArray[Any]],
    grids: dict[str, list[Codes]],
    stores: dict[str, TokenStore],
    order0: StaticPrior,
    steps: int,
) -> None:
    """Write the log, print the tables."""
    log: dict[str, Any] = {"seed": arguments.seed, "minutes": arguments.minutes, "steps": steps, "recipe": recipe}
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
    (arguments.out / "training.json").write_text(json.dumps(log, indent=2) + "\n")
    path = arguments.out / CONTEXT_FILE
    print(f"\n{path}: {path.stat().st_size} bytes, hash {prior.hash}")


if __name__ == "__main__":
    main()
