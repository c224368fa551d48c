"""Try a trainer on a machine: how fast its steps are, and whether a run that is told to end goes on.

    python -m tokodec.train.trial speed image --data PICTURES --recipe image-grid
    python -m tokodec.train.trial resume image_1d --data PICTURES --set optim.batch=8

``speed`` makes the steps of a recipe, without evaluations and export, and prints a row: crops a second, how much of the
time the device was busy, and how much of it training waited for media. The file knows nothing of the package but what a
step is, so it measures another version of it, too: ``PYTHONPATH=OTHER python tokodec/train/trial.py speed ...``. With
``torchrun --nproc_per_node 2 -m`` all processes count.

``resume`` makes a run in one piece, and one that gets SIGTERM in the middle and goes on with the same command, both
with CUDA graphs where there is a GPU. It prints both curves, and how far the weights are apart.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

WARM_UP = 10  # steps that do not count: kernels are chosen and graphs are recorded in them
PROFILED = 10  # steps in which kernels are timed
LONG = "600"  # minutes, so that no evaluation comes
COLUMNS = ("trainer", "machine", "crops a step", "steps/s", "crops/s", "device busy", "waits for media", "memory, GB")


class Enough(Exception):
    """The steps that are wanted were made."""


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much of a line is covered by spans, each with its begin and end."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def is_kernel(event: Any) -> bool:
    """Whether an event of the profiler is work of the GPU, and no remark about it."""
    import torch

    return event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False)


class Watched:
    """Counts the steps of a run, and times those after the first ones.

    Args: steps: that are timed.
    Attributes: row: what was measured, by the names of COLUMNS but the first.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.count = steps, 0
        self.first: Any = None  # the update that counts: a step may have others, of discriminators
        self.row: dict[str, Any] = {}

    def stepped(self, update: Any) -> None:
        """Called after an update of weights. Raises Enough once all is measured."""
        import torch

        self.first = self.first or update
        if update is not self.first:
            return
        self.count += 1
        cuda = torch.cuda.is_available()
        if self.count not in (WARM_UP, WARM_UP + self.steps, WARM_UP + self.steps + PROFILED * cuda):
            return
        if cuda:
            torch.cuda.synchronize()
        trainer = update.compute.loss.__self__
        if self.count == WARM_UP:
            self.begin, self.used, self.waited = time.perf_counter(), time.process_time(), trainer.store.waited
            return
        if self.count == WARM_UP + self.steps:
            self.measure(trainer)
        if cuda and self.count == WARM_UP + self.steps:
            self.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self.profiler.start()
            return
        if cuda:
            self.profiler.stop()
            spans = [(e.time_range.start, e.time_range.end) for e in self.profiler.events() if is_kernel(e)]
            busy = covered(spans) / 1e6 / PROFILED  # seconds a step
            self.row["device busy"] = f"{busy * self.row['steps/s']:.1%}"
        raise Enough

    def measure(self, trainer: Any) -> None:
        """What the steps took."""
        import torch

        seconds, used = time.perf_counter() - self.begin, time.process_time() - self.used
        crops = trainer.optim["batch"] * trainer.optim["accumulate"] * trainer.accelerator.num_processes
        cuda = torch.cuda.is_available()
        held = torch.cuda.max_memory_reserved() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.row = {
            "machine": f"{trainer.accelerator.num_processes} x {torch.cuda.get_device_name()}" if cuda else "CPU",
            "crops a step": crops,
            "steps/s": self.steps / seconds,
            "crops/s": crops * self.steps / seconds,
            "device busy": f"{used / seconds / torch.get_num_threads():.1%}",
            "waits for media": f"{(trainer.store.waited - self.waited) / seconds:.1%}",
            "memory, GB": held / 1e9,
        }


def run_trainer(name: str, words: Sequence[str], stepped: Callable[[Any], None]) -> None:
    """Run a trainer in this process; ``stepped`` is called with every update of weights."""
    graphed = importlib.import_module("tokodec.train.graphed")
    call = graphed.GraphedUpdate.__call__

    def counted(update: Any) -> Any:
        norm = call(update)
        stepped(update)
        return norm

    with patch.object(sys, "argv", [name, *words]), patch.object(graphed.GraphedUpdate, "__call__", counted):
        importlib.import_module(f"tokodec.train.{name}").main()


def speed(name: str, steps: int, words: Sequence[str]) -> dict[str, Any]:
    """The row of a trainer. Raises SystemExit if it ends before its steps are made."""
    watched = Watched(steps)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run_trainer(name, [*words, "--minutes", LONG, "--out", str(Path(folder) / "out")], watched.stepped)
        except Enough:
            return {"trainer": name, **watched.row}
    raise SystemExit(f"{name} ended after {watched.count} steps, before there was anything to measure")


def until(steps: int, name: str, words: Sequence[str]) -> None:
    """Run a trainer that gets SIGTERM after so many steps."""
    count = 0

    def stepped(_: Any) -> None:
        nonlocal count
        count += 1
        if count == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    run_trainer(name, words, stepped)


def resume(name: str, steps: int, words: Sequence[str]) -> dict[str, Any]:
    """Run a trainer whole, and in two parts; returns both histories, and the largest difference of any weight."""
    from safetensors.torch import load_file

    folder = Path(tempfile.mkdtemp())
    try:
        outs = {part: folder / part for part in ("whole", "parts")}
        for part, stop in (("whole", 0), ("parts", steps // 2), ("parts", 0)):
            own = [*words, "--steps", str(steps), "--out", str(outs[part])]
            script = [__file__, "until", "--steps", str(stop), name] if stop else ["-m", f"tokodec.train.{name}"]
            code = subprocess.run([sys.executable, *script, *own]).returncode
            if code != (128 + signal.SIGTERM if stop else 0):
                raise SystemExit(f"{name}, {part}: ended with code {code}")
        logs = {part: json.loads((out / "training.json").read_text()) for part, out in outs.items()}
        first, second = (load_file(str(out / "model.safetensors")) for out in outs.values())
        apart = max(
            float((own.double() - second[key].double()).abs().max()) for key, own in first.items() if own.numel()
        )
        return {"apart": apart, **{part: log["history"] for part, log in logs.items()}}
    finally:
        shutil.rmtree(folder)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "resume", "until"))
    parser.add_argument("trainer", help="image, image_1d, photo, audio, video, video_motion or generator")
    parser.add_argument("--steps", type=int, default=50)
    args, words = parser.parse_known_args()
    if args.steps < 2:
        parser.error(f"--steps is 2 or more, got {args.steps}")
    if args.what == "until":
        until(args.steps, args.trainer, words)
    elif args.what == "speed":
        row = speed(args.trainer, args.steps, words)
        if os.environ.get("RANK", "0") == "0":
            print(table(COLUMNS, [[row[name] for name in COLUMNS]]))
    else:
        found = resume(args.trainer, args.steps, words)
        rows = [(a["step"], *(e["losses"].get("loss", "") for e in (a, b)))
                for a, b in zip(found["whole"], found["parts"], strict=True)]  # fmt: skip
        print(table(("step", "loss in one piece", "loss with a stop"), rows))
        print(f"largest difference of a weight: {found['apart']:g}")


if __name__ == "__main__":
    # Run by its path, the folder of this file is where modules are looked for first: some have names of packages.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]
    main()
