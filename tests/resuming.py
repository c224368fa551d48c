"""Training that is told to end, or killed, and goes on: in the end it is what a run in one piece is."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from accelerate.state import AcceleratorState

from tokodec.train import loop
from tokodec.train.state import FOLDER
from tokodec.train.trainer import BaseTrainer
from tokodec.train.watch import PAGE


def run(main: Callable[[], None], *words: object) -> None:
    """One command in this process."""
    AcceleratorState._reset_state(True)
    with patch.object(sys, "argv", ["train", *map(str, words)]):
        main()


def stopped(main: Callable[[], None], kind: type[BaseTrainer], step: int, *words: object) -> None:
    """Run a command that gets SIGTERM in a step, counted over all stages."""
    after = kind.after_step
    count = 0

    def tell(self: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        after(self, *args)
        if count == step:
            os.kill(os.getpid(), signal.SIGTERM)

    # The clock is looked at before every step, so that it ends soon.
    with patch.object(kind, "after_step", tell), patch.object(loop, "STEPS_A_CHECK", 1):
        with pytest.raises(SystemExit) as ended:
            run(main, *words)
        assert ended.value.code == 128 + signal.SIGTERM


def outcome(out: Path) -> dict[str, Any]:
    """What a run left: the bytes of its files, and all of its log but the seconds."""
    files = {p.name: p.read_bytes() for p in out.iterdir() if p.suffix == ".safetensors" or p.name == "config.json"}
    log = json.loads((out / "training.json").read_text())
    for entry in log["history"]:
        del entry["seconds"]
    return {**files, "log": log}


def assert_goes_on(
    main: Callable[[], None], kind: type[BaseTrainer], words: list[str], tmp_path: Path, stops: tuple[int, ...]
) -> None:
    """A run of 6 steps that is told to end in some of them leaves what one in one piece leaves, bit for bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(main, *words, "--steps", 6, "--out", whole)
    for step in stops:
        stopped(main, kind, step, *words, "--steps", 6, "--out", parts)
        assert (parts / FOLDER).is_dir()
        assert not (parts / "training.json").exists()
    run(main, *words, "--steps", 6, "--out", parts)
    wanted, found = outcome(whole), outcome(parts)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == value, name
    assert not (parts / FOLDER).exists()
    # Every such trainer shows held-out media before and after.
    for out in (whole, parts):
        assert (out / PAGE).read_text().count("<img ") in (2, 4, 6)
