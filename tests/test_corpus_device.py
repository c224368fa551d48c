"""Threads of a rank: on a CPU several encode, and what is only hashed needs no processes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tokodec.codec.corpus import device, readers
from tokodec.codec.corpus.device import Device
from tokodec.tests.test_corpus_shards import made, shard_bytes
from tokodec.tests.test_datasets import write_sound


def test_sounds_are_encoded_in_several_threads(
    sound_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are in one, and no process is started to hash files; PyTorch has its threads again in the end."""
    (tmp_path / "media").mkdir()
    for i in range(9):
        write_sound(tmp_path / "media" / f"{i}.wav", 3000 + 500 * i)
    made(tmp_path / "media", tmp_path / "one", sound_model)
    monkeypatch.setattr(device, "_cores", lambda: 3)
    monkeypatch.setattr(readers, "_Process", None)
    names, single, before = set(), Device._single, torch.get_num_threads()
    together = threading.Barrier(3)

    def named(*arguments: Any) -> Any:
        names.add(threading.current_thread().name)
        together.wait(60)
        return single(*arguments)

    monkeypatch.setattr(Device, "_single", named)
    done = made(tmp_path / "media", tmp_path / "three", sound_model, workers=2)
    assert (done.written, len(names)) == (9, 3)
    assert shard_bytes(tmp_path / "three") == shard_bytes(tmp_path / "one")
    assert 0 < done.computing < done.seconds
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("kind", "workers", "threads", "cores", "lanes"),
    [
        ("cuda", 16, 1, 16, (1, 1)),
        ("cpu", 0, 1, 16, (1, 1)),
        ("cpu", 0, 16, 16, (1, 16)),
        ("cpu", 1, 1, 2, (2, 1)),
        ("cpu", 1, 2, 2, (2, 1)),
        ("cpu", 3, 16, 16, (4, 4)),
        ("cpu", 16, 1, 2, (2, 1)),
        ("cpu", 4, 1, 16, (5, 1)),
    ],
)
def test_lanes_of_a_device(kind: str, workers: int, threads: int, cores: int, lanes: tuple[int, int]) -> None:
    """Never more threads than workers and cores allow, nor fewer than PyTorch has."""
    assert device.lanes_of(kind, workers, threads, cores) == lanes
