"""What training scripts are made of: arguments, a budget of time or steps, optimizers and their rate over it, PSNR."""

from __future__ import annotations

import argparse
import copy
import inspect
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.func import functional_call

from ..codec.errors import TokodecError
from ..tokenizers.api import Tokenizer
from ..tokenizers.folders import CONFIG_FILE
from ..tokenizers.weights import dequantize_int8, is_int8, quantize_int8
from .muon import Muon
from .recipe import as_values, change, read_recipe
from .state import FOLDER, Attributes, RandomNumbers, States, Told, restore

TokenizerT = TypeVar("TokenizerT", bound=Tokenizer)

STEPS_A_CHECK = 20  # the clock is looked at every so many steps at most,
SECONDS_A_CHECK = 2.0  # and about as often as this


def training_arguments(text: str | None, recipe: str, media: str = "pictures") -> argparse.ArgumentParser:
    """The arguments of every script that trains on media. text: its help.  recipe: the default one."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=recipe, help="name in train/recipes or a YAML file")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="override, e.g. optim.lr=3e-4")
    parser.add_argument("--data", nargs="+", required=True, help=f"folders with training {media}")
    parser.add_argument("--test", help=f"folder with test {media}; looked at once, at the end")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=25, help="wall-clock budget")
    budget.add_argument("--steps", type=int, help="budget in steps, however long these take")
    parser.add_argument("--resume", help="model to start from: a folder or the name of a release")
    state_arguments(parser)
    parser.add_argument("--out", required=True, help="folder for the trained model")
    parser.add_argument("--force", action="store_true", help="overwrite a model in --out")
    # Most CPUs compute in bfloat16 many times slower than in float32.
    default = "bf16" if torch.cuda.is_available() else "no"
    parser.add_argument("--precision", default=default, choices=["no", "bf16"], help=f"here {default} if not given")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def state_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments about the state of a run, see :mod:`.state`."""
    parser.add_argument("--restart", action="store_true", help="start anew, whatever unfinished run --out holds")
    parser.add_argument(
        "--save-minutes", type=float, default=5, metavar="N", help="save the state of the run so often; 0: at its end"
    )


def check_budget(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with one line and code 2 for times and steps below 0."""
    for name in ("minutes", "steps", "save_minutes"):
        if (getattr(args, name) or 0) < 0:
            parser.error(f"--{name.replace('_', '-')} is 0 or more, got {getattr(args, name):g}")


def recipe_of(args: argparse.Namespace) -> dict[str, Any]:
    """The recipe that was asked for, with its changes: its own for machines without a GPU, then those of ``--set``.

    Raises: ValueError if there is none, or it lacks a setting that is changed.
    """
    recipe = read_recipe(args.recipe)
    if not torch.cuda.is_available():
        change(recipe, recipe.get("cpu") or [])
    change(recipe, args.set)
    return recipe


@contextmanager
def mistakes_in_one_line(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Iterator[None]:
    """Exit with one line and code 2 for what a user does wrong: no pictures, no such model, settings without sense."""
    unfinished = (Path(args.out) / FOLDER).is_dir()
    if (Path(args.out) / CONFIG_FILE).exists() and not (args.force or unfinished):
        parser.error(f"{args.out} holds a model already: give another --out, or --force")
    check_budget(parser, args)
    try:
        yield
    except (OSError, ValueError, TokodecError) as error:
        parser.error(" ".join(str(error).split()))


def run_script(parser: argparse.ArgumentParser, trainer: Callable[[dict[str, Any], argparse.Namespace], Runs]) -> None:
    """Parse the command line, make the run of the recipe that it asks for, and run it."""
    args = parser.parse_args()
    with mistakes_in_one_line(parser, args):
        run = trainer(recipe_of(args), args)
    try:
        run.run()
    except TokodecError as error:  # training that came to nothing
        parser.error(" ".join(str(error).split()))
    finally:
        run.close()


class Runs(Protocol):
    """What :func:`run_script` can run."""

    def run(self) -> None: ...

    def close(self) -> None: ...


class TrainingRun:
    """What every run of a recipe has: its devices and processes, its seeds, where it writes and what it says.

    Attributes:
        accelerator, device, process: see `accelerate`; main: whether this is the process that writes and speaks.
        seed: of this process's data.
        begin: when the run began, by :func:`time.monotonic`.
        optim: settings of the optimizers by name.
        out: folder for the model.
        states: of the run, see :mod:`.state`.  told: whether it is to end.
        benchmark: whether cuDNN tries its kernels at every new size, which pays where sizes are few.
    """

    benchmark = True

    def __init__(self, recipe: Any, args: argparse.Namespace) -> None:
        self.begin = time.monotonic()
        self.recipe, self.args = recipe, args
        self.optim: dict[str, Any] = recipe["optim"] if isinstance(recipe, dict) else vars(recipe.optim)
        self.accelerator = Accelerator(mixed_precision=args.precision, cpu=not torch.cuda.is_available())
        self.device = self.accelerator.device
        self.process = self.accelerator.process_index
        self.main = self.accelerator.is_main_process
        self.seed = args.seed * 1000 + self.process
        self.out = Path(args.out)
        self.told = Told()
        names = ("seed", "minutes", "steps", "resume", "precision", "stages", "stills", "tokenizer")
        values = recipe if isinstance(recipe, dict) else as_values(recipe)
        identity: dict[str, Any] = {"kind of training": Path(inspect.getfile(type(self))).stem, "recipe": values}
        identity |= {f"--{name}": getattr(args, name, None) for name in names}  # not all trainers have all
        identity["number of processes"] = self.accelerator.num_processes
        folder, processes = self.out / FOLDER, self.accelerator.num_processes
        self.states = States(folder, identity, self.process, processes, restart=args.restart)
        set_seed(args.seed)  # the same weights in all processes
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = self.benchmark

    def own_seeds(self) -> None:
        """From here on every process draws its own numbers: call it once the weights are there."""
        set_seed(self.args.seed + self.process)
        self.generator = torch.Generator(self.device).manual_seed(self.args.seed + 7 * self.process)

    def log(self, text: str) -> None:
        if self.main:
            print(text, flush=True)

    def close(self) -> None:
        """Called at the end, however it comes."""

    def parts(self) -> dict[str, Any]:
        """What a state holds of the run and is the same in all processes, by name: see :func:`~.state.state_of`."""
        return {}

    def own_parts(self) -> dict[str, Any]:
        """What a state holds of this process alone: random numbers, and the place in the data."""
        return {"random": RandomNumbers(), "generator": self.generator}

    def save_state(self, pace: Pace) -> None:
        """Write the state after a step; ends the run if it was told to end."""
        self.states.save({"pace": pace, **self.parts()}, self.own_parts())
        if pace.told:
            self.log(f"told to end after step {pace.step}: the same command goes on from {self.states.folder}")
            raise SystemExit(128 + (self.told.signal or signal.SIGTERM))

    def go_on(self, pace: Pace) -> None:
        """Go on from the state that was found, if there is one."""
        if self.states.found is None:
            return
        state = self.states.load()
        restore({"pace": pace, **self.parts()}, state["common"])
        restore(self.own_parts(), state["own"])
        if pace.steps is None:
            left = f"{(pace.clock.seconds - pace.seconds) / 60:.1f} minutes"
        else:
            left = f"{pace.steps - pace.step} steps"
        self.log(f"goes on from {self.states.folder} after step {pace.step}: {left} left to train")


class Clock:
    """The time of a stage, as all processes agree on it.

    Attributes: passed: seconds of it; share: the same, of its seconds; told: whether a process was told to end.
    """

    def __init__(self, run: TrainingRun, seconds: float) -> None:
        self.run, self.seconds, self.begin = run, seconds, time.monotonic()
        self.passed, self.share, self.told = 0.0, 0.0, False

    def read(self) -> float:
        own = [time.monotonic() - self.begin if self.run.main else 0.0, float(self.run.told.signal != 0)]
        both = torch.tensor(own, device=self.run.device)
        if self.run.accelerator.num_processes > 1:
            torch.distributed.all_reduce(both)
        self.passed, told = both.tolist()
        self.told = told > 0
        self.share = self.passed / max(self.seconds, 1e-3)
        return self.share


class Pace:
    """The steps of a run until its time is over, as an iterator; sets the rates of ``optimizers`` before each.

    All processes look at one clock, every ``STEPS_A_CHECK`` steps, or more often where steps are slow. Without any
    minutes there is no step, otherwise at least one. A run of so many steps takes the time that it takes.

    Args:   evaluations: at even shares of the budget, besides the one at the end.
            budget: seconds and, if ``args.steps`` is given, steps; all of what the arguments say if None.

    Attributes:
        step: how many were begun; share: of the budget that was used up when the clock was last looked at, or of the
            steps before the one at hand.
        due: whether the step at hand is one to evaluate after; save: one after which to save the state.
    """

    def __init__(
        self, run: TrainingRun, optimizers: Sequence[torch.optim.Optimizer], evaluations: int,
        budget: tuple[float, int] | None = None,
    ) -> None:  # fmt: skip
        seconds, steps = budget or (60 * run.args.minutes, run.args.steps)
        self.optim, self.optimizers, self.evaluations = run.optim, optimizers, evaluations
        self.steps: int | None = None if run.args.steps is None else steps
        self.none = not run.args.minutes
        self.clock = Clock(run, seconds)
        self.often = 60 * run.args.save_minutes or math.inf
        self.step, self.look, self.due, self.next = 0, 0, False, 1 / evaluations
        self.save, self.saved, self.share = False, 0.0, 0.0

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.clock.begin

    @property
    def told(self) -> bool:
        """Whether the run was told to end."""
        return self.clock.told

    def state_dict(self) -> dict[str, Any]:
        return Attributes(self, "step", "next", "share").state_dict() | {
            "passed": self.seconds, "seconds": self.clock.seconds, "steps": self.steps,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on: the time that has passed counts."""
        self.step, self.next, self.share, self.steps = (state[name] for name in ("step", "next", "share", "steps"))
        self.clock.begin, self.clock.seconds = time.monotonic() - state["passed"], state["seconds"]
        self.look, self.saved = self.step, state["passed"]

    def over(self) -> bool:
        """Whether the budget is used up or the run was told to end, by the clock if it is time to look at it."""
        looking, self.save = self.step >= self.look, False
        if looking:
            self.share = self.clock.read()
            slow = self.clock.passed / max(1, self.step) / SECONDS_A_CHECK  # the same on all processes
            self.look = self.step + max(1, min(STEPS_A_CHECK, int(1 / max(slow, 1e-9)))) if self.step else 1
            self.save = self.step > 0 and self.clock.passed - self.saved >= self.often
            self.saved = self.clock.passed if self.save else self.saved
        if self.steps is not None:
            self.share = self.step / max(1, self.steps)
            return self.told or self.step >= self.steps
        return self.told or (looking and (self.none or (self.share >= 1 and self.step > 0)))

    def __iter__(self) -> Iterator[int]:
        while not self.over():
            factor = learning_rate(self.step, self.share, self.optim["warmup_steps"], self.optim["cooldown"])
            set_rate(self.optimizers, factor)
            self.step += 1
            self.due = self.share >= self.next and (self.steps is not None or self.step >= self.look)
            if self.due:
                self.next = (math.floor(self.share * self.evaluations) + 1) / self.evaluations
            yield self.step


def learning_rate(step: int, share: float, warmup_steps: int, cooldown: float) -> float:
    """Factor on the learning rate: linear warm-up by steps, flat, linear cool-down by time."""
    return min(1.0, (step + 1) / warmup_steps, max(0.0, (1 - share) / cooldown))


def optimizers_of(
    named: Iterable[tuple[str, nn.Parameter]], optim: dict[str, Any], is_matrix: Callable[[str, nn.Parameter], bool]
) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices and AdamW for the rest if ``optim.muon`` is not 0.

    ``optim.muon`` is Muon's learning rate over ``optim.lr``; ``optim.weight_decay``, if there is one, is that of the
    matrices. Every group keeps its full learning rate as ``base``, which :func:`set_rate` takes a part of.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in named:
        (matrices if is_matrix(name, p) else others).append(p)
    decay = optim.get("weight_decay", 0.0)
    groups = [{"params": others, "weight_decay": 0.0}]
    if not optim["muon"]:
        groups.append({"params": matrices, "weight_decay": decay})
    groups = [group for group in groups if group["params"]]
    device = (matrices + others)[0].device
    graphs = device.type == "cuda"

    def rate(value: float) -> float | Tensor:
        """On a GPU a tensor, so that a recorded step sees it change."""
        return torch.tensor(value, device=device) if graphs else value

    betas = tuple(optim["betas"])
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=rate(optim["lr"]), betas=betas, fused=True, capturable=graphs)
    ]
    if optim["muon"] and matrices:
        found.append(Muon(matrices, lr=rate(optim["lr"] * optim["muon"]), weight_decay=decay))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["base"] = float(group["lr"])
    return found


def set_rate(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Learning rates to ``factor`` times the full ones."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(group["base"] * factor)
            else:
                group["lr"] = group["base"] * factor


def step_where_finite(optimizers: Iterable[torch.optim.Optimizer], norm: Tensor) -> None:
    """Step optimizers of :func:`optimizers_of`; gradients whose ``norm`` is not finite change no weight and no state.

    Nothing waits for the device: the optimizers read ``found_inf``, as with :class:`torch.amp.GradScaler`.
    """
    left_out = 1 - norm.isfinite().float()
    for optimizer in optimizers:
        optimizer.found_inf = left_out  # type: ignore[attr-defined]
        optimizer.step()


def as_released(
    module: nn.Module, prefixes: tuple[str, ...], largest: int, half: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Round the weights that a release rounds to int8.

    Gradients are straight-through (Bengio et al. 2013, arXiv:1308.3432).

    Args: prefixes, largest, half: as in :func:`~tokodec.tokenizers.weights.save`.
    """
    rounded = {}
    for name, p in module.named_parameters():
        if is_int8(name, p, prefixes, half):
            rounded[name] = p + (dequantize_int8(*quantize_int8(p, largest)) - p).detach()
    return rounded


def call_as_released(net: nn.Module, model: Tokenizer, name: str, inputs: tuple[Any, ...]) -> Any:
    """Call ``net`` with its part ``name``, the model, as a release rounds it, with straight-through gradients."""
    prefixes, half = (tuple(f"{name}.{prefix}" for prefix in own) for own in (model.int8_weights, model.half_weights))
    return functional_call(net, as_released(net, prefixes, model.int8_largest, half), inputs)


@torch.no_grad()
def released(model: TokenizerT) -> TokenizerT:
    """The model as a release holds it."""
    found = copy.deepcopy(model)
    for name, p in as_released(found, found.int8_weights, found.int8_largest, found.half_weights).items():
        found.get_parameter(name).copy_(p)
    return found


def psnr(x: Tensor, x_hat: Tensor) -> float:
    """PSNR in dB of one picture pair in [0, 1], after rounding to 8 bits as a file would."""
    x_hat = (x_hat.clamp(0, 1) * 255).round() / 255
    return -10 * math.log10(max(1e-10, float((x - x_hat).square().mean())))
