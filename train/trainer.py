"""What all trainers share: steps until the time is over, checks on held-out media, export and report.

A trainer is a loss and data. Its class says how to make inputs, what the loss of a step is, and what to measure; the
rest is here: the start from another model, the size of everything for the machine and the time, gradient steps,
evaluations that keep the best weights, the histograms that priors are made of, and ``training.json``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..codec.errors import UsageError
from ..codec.provenance import as_json
from ..tokenizers.folders import find_model
from ..tokenizers.quantize.base import CodebookUsage
from ..tokenizers.quantize.processes import agree
from .card import CARD, write_card
from .data.images import as_input
from .graphed import GraphedStep, GraphedUpdate
from .loop import Pace, TokenizerT, released, training_arguments
from .measuring import Row, evaluating, histograms, mean_rows, peak_memory, static_prior
from .recipe import as_values, checked
from .rescue import LOST, Rescue
from .sizes import CHECKS, EXPORT, LEAST, SizedRun
from .state import Attributes
from .watch import SAMPLES, Sample, Watch, shown

FEW_STEPS = 50  # a run of fewer is said to be short
BACK = "back to weights of before, at half the learning rates"
COUNTERS = ("stage", "steps", "before", "checked_at", "best", "history", "budget", "costs")  # that a state holds
LOW_USAGE = 0.3  # of a codebook's words between two checks, below which the log warns


def trainer_arguments(
    text: str | None, recipe: str, media: str = "pictures", graphs: bool = True
) -> argparse.ArgumentParser:
    """The arguments of every script whose run is a :class:`BaseTrainer`, see :func:`.loop.training_arguments`."""
    parser = training_arguments(text, recipe, media)
    parser.add_argument(
        "--memory", type=float, metavar="GB", help="of decoded media at most; more are read on the way"
    )
    parser.add_argument(
        "--reuse", type=float, metavar="N", help="crops of a medium that is read on the way, before the next; 8"
    )
    if graphs:
        parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    return parser


@dataclass
class Phase:
    """A setting of the loss that is off at first.

    Attributes: text: what the log says once it is on.  begin: share of the time from which it is on.
    """

    text: str
    begin: float
    on: bool = False


class BaseTrainer(SizedRun):
    """One run of a recipe.

    A subclass sets ``model``, ``net`` (the module whose parameters get gradients), ``media`` (trained on) and ``held``
    (held out) when it is made, ``phases`` if its loss has settings that change, and defines :meth:`inputs`,
    :meth:`loss`, :meth:`optimizers`, :meth:`views` and :meth:`rows`.

    Attributes:
        recipe_class: dataclass of its recipes.  store: what training examples come from.
        evaluations: on the way; quick: held-out media that they look at, at most.
        what, unit: media and training examples, in the log.
        columns: how numbers of a row are shown; brief: those that evaluations on the way show.
        tables: results of the export that are printed.
        graphs: whether a step can be recorded as a CUDA graph.
        pair: what is shown of a held-out medium.
        passes: how often the export measures held-out media, and how often it counts the codes of training media.
        finishing: share of the budget that :meth:`finish` takes beside that.
    """

    recipe_class: ClassVar[type[Any]]
    evaluations = 8
    quick = 24
    what, unit = "pictures", "crops"
    columns: ClassVar[dict[str, str]] = {"psnr": "{:.3f} dB"}
    brief: ClassVar[tuple[str, ...]] = ("psnr",)
    tables: ClassVar[tuple[str, ...]] = ("holdout_without_rate_weight", "holdout", "test")
    graphs = True
    pair = "original, decoded"
    passes: ClassVar[tuple[int, int]] = (1, 1)
    finishing = 0.0

    model: Any
    net: nn.Module
    store: Any

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(checked(self.recipe_class, recipe), args)
        self.phases: list[Phase] = []
        self.rounding: Phase | None = None  # that of weights as a release rounds them, if there is one
        self.best = -math.inf
        self.history: list[dict[str, Any]] = []
        self.losses: dict[str, float | Tensor] = {}
        self.watch = Watch(self.out, f"{self.recipe.name}: {self.out.name}", self.log, self.pair)
        self.sampling = 0.0  # seconds that samples took
        self.slower = 1.0  # the last evaluation, than the one that was timed first
        self.steps, self.before, self.checked_at = 0, 0, -1  # in all; before this stage; of this stage
        self.stage = ""  # name of what is trained, in runs that train several things in turn
        self.budget: tuple[float, int] | None = None  # seconds and steps to train
        self.costs: list[float] = []  # seconds that an evaluation takes, one of the export, and a count of codes

    # ---- what a trainer is

    def inputs(self) -> tuple[Tensor, ...]:
        """Inputs of the loss of one step."""
        raise NotImplementedError

    def loss(self, *inputs: Any) -> Tensor:
        """The loss of :meth:`inputs` and of whether each of the phases is on."""
        raise NotImplementedError

    def optimizers(self) -> list[torch.optim.Optimizer]:
        raise NotImplementedError

    def views(self, medium: Any) -> Iterator[Tensor]:
        """What histograms count of a medium, as ``encode`` takes it."""
        raise NotImplementedError

    def rows(self, model: Any, medium: Any, prior: Any = None) -> Iterator[Row]:
        """Measure the model on a medium: a row for each number of levels; with a prior also its bits."""
        raise NotImplementedError

    # ---- what it may do otherwise

    def begin_phase(self, phase: Phase) -> None:
        """Called when a phase begins; what was best before does not count any more."""
        self.best = -math.inf

    def side_optimizers(self) -> list[torch.optim.Optimizer]:
        """Optimizers whose rates go along, and whose steps :meth:`after_step` makes."""
        return []

    def after_step(self, step: int, share: float, inputs: tuple[Tensor, ...], settings: tuple[bool, ...]) -> None:
        """Called after each step of the optimizers: discriminators learn here."""

    def score(self, rows: list[Row]) -> float:
        """How good measured weights are; more is better."""
        return sum(r["psnr"] for r in rows) / len(rows)

    def keeps(self, score: float) -> bool:
        """Whether weights of this score replace those that were kept."""
        return score > self.best

    def save(self) -> None:
        """Write the weights into ``out``."""
        self.model.save_pretrained(self.out)

    def telemetry(self, rows: list[Row]) -> dict[str, Any]:
        """Further entries of the history: bits of a code by its order-0 entropy and usage, since the last check."""
        usages = [own for own in self.model.modules() if isinstance(own, CodebookUsage)]
        reports = [own.report() for own in usages]
        if not any(report.total for report in reports):
            return {}
        for own in usages:
            own.reset()
        sizes = [len(own.counts) for own in usages]
        low = any(r.usage < LOW_USAGE and r.total > 8 * n for r, n in zip(reports, sizes, strict=True))
        bits = [math.log2(max(1.0, report.perplexity)) for report in reports]
        return {"bits": bits, "usage": [report.usage for report in reports], "collapse": low}

    def taken(self, medium: Any) -> Tensor:
        """What evaluations look at of a medium, as ``encode`` takes it; here a picture, ``[1, 3, H, W]`` in [0, 1]."""
        return as_input(medium, self.device)

    def sample(self, medium: Any) -> tuple[Tensor, Tensor]:
        """A held-out medium and what comes back of it, for those who watch; see :data:`~.watch.SHOWN`."""
        x = self.taken(medium)
        return x, self.model.decode(self.model.encode(x))

    def samples(self, always: bool) -> Iterator[Sample]:
        """Some media and what comes back of them; none where that took more of the time than evaluations may."""
        begin = time.monotonic()
        if not always and self.sampling > CHECKS * (begin - self.begin):
            return
        with evaluating(self.model):
            for i, medium in enumerate(self.on_the_way[:SAMPLES]):
                yield shown(f"{self.what} {i + 1}", *self.sample(medium))
        self.sampling += time.monotonic() - begin

    def make_prior(self, model: Any, some: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
        """Write the prior of the codes of some media into ``out``; returns it and what to report of it."""
        counts = self.count(model, some)
        prior = static_prior(counts)
        prior.save_pretrained(self.out)
        return prior, {"codebook_usage": [float((count > 0).float().mean()) for count in counts]}

    def count(self, model: Any, media: Sequence[Any]) -> list[Tensor]:
        """Histograms of the codes of media, see :func:`histograms`."""
        return histograms(model, (x for medium in media for x in self.views(medium)))

    def exportable(self) -> Any:
        """The model as the export measures it and counts its codes, before it is trained: it takes as long."""
        return self.model

    def finish(self, model: Any, some: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
        """What is done with the best weights before they are measured: returns them and what to report of it."""
        return model, {}

    # ---- start

    def resumed(self, model: TokenizerT) -> TokenizerT:
        """``model`` with the weights of ``--resume``. Raises ValueError if these have other sizes."""
        other = type(model).from_pretrained(find_model(self.args.resume))
        if other.config != model.config:
            raise ValueError(f"{self.args.resume} has other sizes than the recipe")
        model.load_state_dict(other.state_dict())
        return model

    def autocast(self) -> torch.autocast:
        """The precision of ``--precision``; it keeps no casts, which a CUDA graph would hold on to."""
        half = self.args.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False)

    # ---- sizes for the machine and the time

    def plan(self) -> None:
        """Time an evaluation and a count of codes; choose what evaluations on the way and the export look at."""
        if not self.main:
            return
        found = self.states.found
        self.costs = found["common"]["trainer"]["costs"] if found else self.measured_costs()
        self.cost: float = self.costs[0]
        self.export_cost: float = self.costs[1]
        self.on_the_way = self.some(self.held[: self.quick], CHECKS, self.cost * self.evaluations)
        self.plan_export()
        counted, there = len(self.exported), len(self.media)
        if counted < there:
            self.log(f"note: the export counts the codes of {counted} of {there} {self.what}, evenly spaced")

    def plan_export(self, slower: float = 1.0) -> None:
        """Choose what the export looks at, and how long it takes. slower: the machine, than when it was measured."""
        measured, counted = self.passes
        each = slower * measured * self.export_cost, slower * counted * self.costs[2]
        part = (EXPORT - self.finishing) / 2
        self.tested, self.exported = self.some(self.held, part, each[0]), self.some(self.media, part, each[1])
        rest = min(EXPORT * 60 * self.args.minutes, LEAST) + self.finishing * 60 * self.args.minutes
        self.reserve = each[0] * len(self.tested) + each[1] * len(self.exported) + rest

    def measured_costs(self) -> list[float]:
        """Seconds that an evaluation takes, one of the export, and a count of the codes of a medium."""
        cost = self.seconds_of(lambda: self.measure(self.model, self.held[:1]))
        model, of_export = self.exportable(), cost
        if model is not self.model:
            of_export = self.seconds_of(lambda: self.measure(model, self.held[:1]))
        return [cost, of_export, self.seconds_of(lambda: self.count(model, self.media[:1]))]

    def seconds_left(self, least: float = 0.5) -> float:
        """For training, by one clock: what is left of ``--minutes`` beside the export, a share of them at least."""
        total = 60 * self.args.minutes
        left = total - (time.monotonic() - self.begin) - (self.reserve if self.main else 0.0)
        return float(broadcast(torch.tensor(max(least * total, left), device=self.device)))

    def announce(self, compute: GraphedStep, share: float) -> None:
        """Time one step, and say how many there will be in a share of the budget; no weight changes."""
        settings, n = [phase.on for phase in self.phases], self.optim["accumulate"]
        each = n * self.seconds_of(lambda: compute(self.inputs(), *settings).item())
        batch, steps = self.optim["batch"] * n, self.args.steps
        left = self.seconds_left(0.5 if self.budget is None else 0.0)
        seconds = min(left, share * (self.budget or (left,))[0]) if steps is None else share * steps * each
        steps = round(seconds / each)
        begin = f"{seconds:.0f} s to train: " if self.timed else ""
        self.log(
            f"{begin}a step of {batch} {self.unit} takes {each:.2g} s now, so about "
            + (f"{steps} steps;" if self.timed else f"{seconds:.0f} s for {steps} steps;")
            + (f" the export takes about {self.reserve:.0f} s" if self.main else "")
        )
        if steps < FEW_STEPS and self.timed:
            self.log("note: these are few: start from a release (--resume), or give more --minutes")

    # ---- the loop

    def gradients(self, compute: GraphedStep) -> tuple[tuple[Tensor, ...], tuple[bool, ...]]:
        """Put the mean gradients of ``optim.accumulate`` batches into ``compute``; returns the last, and settings."""
        settings, n = tuple(phase.on for phase in self.phases), self.optim["accumulate"]
        inputs = self.inputs()
        loss = compute(inputs, *settings)
        if n > 1:
            total, loss = compute.flat.clone(), loss.clone()
            for _ in range(n - 1):
                inputs = self.inputs()
                loss += compute(inputs, *settings)
                total += compute.flat
            compute.flat.copy_(total / n)
            loss = loss / n
        self.losses["loss"] = loss
        return inputs, settings

    def train(self, share: float = 1.0) -> None:
        """Steps until a share of the budget is used up; the best weights on the way lie in ``out``."""
        self.out.mkdir(parents=True, exist_ok=True)
        with self.told.listening():
            self.steps_of(*self.prepared(share))
        self.accelerator.wait_for_everyone()

    def prepared(self, share: float) -> tuple[Pace, GraphedStep, GraphedUpdate]:
        """All that steps take, as it was if the run goes on."""
        self.trained_by, self.beside = self.optimizers(), self.side_optimizers()
        self.before, self.checked_at = self.steps, -1
        found, trains = self.states.found, bool(self.args.minutes)
        if found is not None:
            self.load_state_dict(found["common"]["trainer"])
        agree(*self.net.parameters(), *self.net.buffers())  # what processes read in a limited time may differ
        self.model.train()
        compute = GraphedStep(self.net, self.loss, self.inputs(), self.graphs and not self.args.eager)
        update = GraphedUpdate(compute, self.trained_by, self.optim["grad_clip"])
        if trains and found is None:
            self.announce(compute, share)
        if self.budget is None:
            self.budget = self.seconds_left(), self.args.steps or 0
        seconds, evaluations = share * self.budget[0], max(2, round(share * self.evaluations))
        if self.timed and self.before:  # what was before may have taken longer than its share
            seconds = min(seconds, max(LEAST, self.seconds_left(least=0.0)))
        pace = Pace(self, [*self.trained_by, *self.beside], evaluations, (seconds, round(share * self.budget[1])))
        if self.args.resume and trains and found is None:
            self.check(0, 0.0, 0.0)  # what it goes on from is only given up for what is better
        self.rescue = Rescue(self.net, self.trained_by)
        self.go_on(pace)
        if self.main:
            self.watch.begin()
        return pace, compute, update

    def steps_of(self, pace: Pace, compute: GraphedStep, update: GraphedUpdate) -> None:
        """The steps of :meth:`train`."""
        for step in pace:
            for phase in self.phases:
                if not phase.on and pace.share >= phase.begin:
                    phase.on = True
                    self.begin_phase(phase)
                    self.log(f"[{100 * pace.share:5.1f} %] from here on {phase.text}, step {step}")
            inputs, settings = self.gradients(compute)
            self.losses["norm"] = norm = update()
            if self.main:
                self.watch.follow((self.before + step, pace.clock.passed, pace.share, self.stage), self.losses)
            if self.rescue.needed(step, norm):
                self.rescue.back()
                self.log(f"[{100 * pace.share:5.1f} %] step {step}: {LOST} steps without finite gradients; {BACK}")
            self.after_step(step, pace.share, inputs, settings)
            self.steps = self.before + step
            if pace.due:
                self.check(pace.step, pace.share, pace.seconds)
                self.checked_at = step
                self.rescue.keep()
            if pace.save:
                self.save_state(pace)
        if not pace.told and pace.step > self.checked_at:
            self.check(pace.step, 1.0, pace.seconds)
            self.checked_at = pace.step
            pace.clock.read()  # whether it was told to end since then
        if pace.step or pace.told:
            self.save_state(pace)  # from which an export begins anew that ends too early

    # ---- the state, see :mod:`.state`

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`parts` are not: counters, and what was measured."""
        return Attributes(self, *COUNTERS).state_dict() | {"phases": [phase.on for phase in self.phases]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        Attributes(self, *COUNTERS).load_state_dict(state)
        for phase, on in zip(self.phases, state["phases"], strict=True):
            phase.on = on

    def parts(self) -> dict[str, Any]:
        return super().parts() | {
            "trainer": self, "net": self.net, "optimizers": self.trained_by, "beside": self.beside,
            "rescue": self.rescue, "watch": self.watch,
        }  # fmt: skip

    def own_parts(self) -> dict[str, Any]:
        return super().own_parts() | {"store": self.store.parts()}

    def close(self) -> None:
        self.store.close()
        self.watch.close()

    def check(self, step: int, share: float, seconds: float) -> None:
        """Measure the held-out media, log, and keep the weights if they are the best so far."""
        if not self.main:
            return
        rounded = self.rounding is not None and self.rounding.on
        begin = time.monotonic()
        rows = self.measure(released(self.model) if rounded else self.model, self.on_the_way)
        self.slower = max(1.0, (time.monotonic() - begin) / len(self.on_the_way) / max(self.cost, 1e-4))
        score = self.score(rows)
        kept = self.keeps(score)
        if kept:
            self.best = max(score, self.best)
            self.save()
        losses = {name: float(value) for name, value in self.losses.items()}
        extra = self.telemetry(rows)
        entry: dict[str, Any] = {"stage": self.stage} if self.stage else {}
        entry |= {"step": step, "share": share, "seconds": seconds, "rows": rows, "losses": losses, **extra}
        self.history.append(entry)
        trained = step * self.optim["batch"] * self.optim["accumulate"] * self.accelerator.num_processes
        numbers = losses | {k: v for k, v in extra.items() if isinstance(v, float)}
        lists = {k: v for k, v in extra.items() if isinstance(v, list)}
        speed = f"{trained / max(seconds, 1e-3):.3g} {self.unit}/s"
        self.log(
            f"[{(self.stage + ' ').lstrip()}{100 * share:5.1f} %] step {step}  {speed}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in numbers.items())
            + "  held-out  "
            + "; ".join(self.shown(row, self.brief) for row in rows)
            + "".join(f"  {name} " + " ".join(f"{v:.2f}" for v in values) for name, values in lists.items())
            + (" kept" if kept else "")
        )
        about = self.before + step, seconds, share, self.stage
        samples = self.samples(always=share >= 1)
        self.watch.checked(about, entry, samples, self.store.waited / max(seconds, 1.0))

    def measure(self, model: Any, media: Sequence[Any], prior: Any = None) -> list[Row]:
        """Means over media of :meth:`rows`."""
        with evaluating(model):
            return mean_rows(self.rows(model, medium, prior) for medium in media)

    def shown(self, row: Row, only: Sequence[str] = ()) -> str:
        """A row as text."""
        known = {k: v for k, v in row.items() if not isinstance(v, float)}
        about = " ".join(f"{v} {k}" if isinstance(v, int) else str(v) for k, v in known.items())
        numbers = {k: text for k, text in self.columns.items() if k in row and (not only or k in only)}
        return "  ".join([about, *(text.format(row[k]) for k, text in numbers.items())])

    # ---- the end

    def load_best(self) -> Any:
        """The best weights as they were saved. Raises UsageError if none had a finite score."""
        if self.main and self.best == -math.inf:
            raise UsageError("training gave no finite result: lower optim.lr")
        return self.saved()

    def saved(self) -> Any:
        """The model that :meth:`save` wrote."""
        return type(self.model).from_pretrained(self.out).to(self.device)

    def run(self) -> None:
        self.plan()
        self.train()
        self.conclude()

    def conclude(self) -> None:
        """Export, on the process that writes."""
        if self.main:
            self.export()
        self.states.clear()
        self.accelerator.end_training()

    def report(self) -> dict[str, Any]:
        """What every ``training.json`` says of its run."""
        return {
            "minutes": self.args.minutes,
            "steps": self.steps,
            "processes": self.accelerator.num_processes,
            "machine": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            self.what: len(self.media),
            "seed": self.args.seed,
            "recipe": as_values(self.recipe),
            "history": self.history,
        }

    def export(self) -> None:
        """Measure the weights as they were saved, write the prior of their codes and ``training.json``."""
        begin = time.monotonic()
        self.plan_export(self.slower)
        model, results = self.finish(self.load_best(), self.exported)
        prior, about = self.make_prior(model, self.exported)
        results |= {"holdout": self.measure(model, self.tested, prior)} | about
        if media := self.test_media():
            results["test"] = self.measure(model, media, prior)
        results |= self.report()
        (self.out / "training.json").write_text(as_json(results))
        if write_card(self.out, model.name, results):
            self.log(
                f"{self.out / CARD}: the beginning of a card; say there what the model is for, and whose the data are"
            )
        if usage := results.get("codebook_usage"):
            self.log("codebook usage " + " ".join(f"{v:.3f}" for v in (usage if isinstance(usage, list) else [usage])))
        took, so_far = time.monotonic() - begin, (time.monotonic() - self.begin) / 60
        self.log(f"exported to {self.out} in {took:.0f} s; {so_far:.1f} minutes in all, peak memory {peak_memory()}")
        for name in self.tables:
            for row in results.get(name, []):
                self.log(f"{name.removesuffix('_without_rate_weight'):>8} {self.shown(row)}")
