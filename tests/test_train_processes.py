"""Several processes on one machine (gloo): one codebook, one model, and a state that keeps what each of them draws."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from PIL import Image
from torch import Tensor

from tokodec.tests.resuming import outcome, run, stopped
from tokodec.tokenizers.quantize.vq import EMAVQ, VQ
from tokodec.train import image
from tokodec.train.state import FOLDER

WORLD = 2


if not __name__.startswith("tokodec."):  # processes that are started find this file by its name
    sys.path.append(str(Path(__file__).parents[1]))


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def batches(steps: int) -> Tensor:
    """Latents ``[steps, processes, 1, 3, 40]``, narrow, so that codewords far away die."""
    return torch.randn(steps, WORLD, 1, 3, 40, generator=torch.Generator().manual_seed(0)) * 0.1


def makers() -> dict[str, VQ]:
    torch.manual_seed(0)
    plain = {"kmeans_iterations": 0, "dead_below": 0.0, "decay": 0.9}
    return {
        "ema": EMAVQ(8, 3, **plain),  # type: ignore[arg-type]
        "vq": VQ(8, 3, **plain),  # type: ignore[arg-type]
        "ema, k-means, revival": EMAVQ(16, 3, kmeans_iterations=2, dead_below=2.0, decay=0.5),
        "vq, k-means, revival": VQ(16, 3, kmeans_iterations=2, dead_below=2.0, decay=0.5),
    }


def trained(rank: int, port: int, out: str) -> None:
    """What a process is left with, each with random numbers of its own."""
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=WORLD)
    found: dict[str, Tensor] = {}
    for name, quantizer in makers().items():
        torch.manual_seed(100 + rank)
        for x in batches(12):
            quantizer.train()(x[rank])
        found |= {f"{name}/{key}": value.detach().clone() for key, value in quantizer.named_buffers()}
        found |= {f"{name}/{key}": value.detach().clone() for key, value in quantizer.named_parameters()}
    arrays: dict[str, Any] = {name: value.numpy() for name, value in found.items()}
    np.savez(f"{out}/{rank}.npz", **arrays)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    out = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(trained, (free_port(), str(out)), nprocs=WORLD)
    return [dict(np.load(out / f"{rank}.npz")) for rank in range(WORLD)]


@pytest.mark.parametrize("name", makers())
def test_processes_have_one_codebook(name: str, left: list[dict[str, np.ndarray]]) -> None:
    own = [key for key in left[0] if key.startswith(f"{name}/") and "usage" not in key]
    assert f"{name}/codewords" in own
    for key in own:
        assert np.array_equal(left[0][key], left[1][key]), key
    if "revival" in name:  # all codewords lie among the latents: those that did not were replaced
        assert np.abs(left[0][f"{name}/codewords"]).max() < 0.6
        assert bool(left[0][f"{name}/started"])


@pytest.mark.parametrize("name", ["ema", "vq"])
def test_averages_are_those_of_one_process_with_all_batches(name: str, left: list[dict[str, np.ndarray]]) -> None:
    quantizer = makers()[name].train()
    for x in batches(12):
        quantizer(torch.cat([x[0], x[1]]))
    for key, value in (*quantizer.named_buffers(), *quantizer.named_parameters()):
        if "usage" not in key:
            np.testing.assert_allclose(left[0][f"{name}/{key}"], value.detach().numpy(), rtol=1e-5, atol=1e-6)
    counts = sum(own[f"{name}/usage.counts"] for own in left)
    assert np.array_equal(counts, quantizer.usage.counts.numpy())


SMALL = (
    "model.channels=[8,8,8] model.analysis_blocks=[1,1,1] model.synthesis_blocks=[1,1,1] model.dim=4"
    " model.codebook_sizes=[16] model.synthesis=[plain] export.bpp_limits=[9.0] data.holdout_every=2 data.crop=176"
    " optim.batch=1 optim.warmup_steps=2"
)


def trains(rank: int, ports: tuple[int, int], folder: str) -> None:
    """What torchrun starts: a run in one piece, one that is told to end in one of the processes, and its end."""
    torch.set_num_threads(1)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (rank, rank, WORLD, WORLD, "127.0.0.1", ports[0])
    os.environ.update(zip(names, map(str, values), strict=True))
    words = ["--data", f"{folder}/pictures", "--steps", "6", "--precision", "no", "--set", *SMALL.split()]
    run(image.main, *words, "--out", f"{folder}/whole")
    os.environ["MASTER_PORT"] = str(ports[1])  # who is first would find the store of the run before
    stopped(image.main, image.Trainer, 3 if rank else -1, *words, "--out", f"{folder}/parts")
    assert len(list(Path(folder, "parts", FOLDER).glob("*-of-2.safetensors"))) == WORLD
    assert not Path(folder, "parts", "training.json").exists()
    torch.distributed.barrier()
    run(image.main, *words, "--out", f"{folder}/parts")


def test_two_processes_of_which_one_is_told_to_end_go_on(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (180, 176, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    torch.multiprocessing.spawn(trains, ((free_port(), free_port()), str(tmp_path)), nprocs=WORLD)
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")
