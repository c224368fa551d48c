"""Inference as CUDA graphs: when something is recorded, and that it computes the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tokodec.entropy.recording import recording
from tokodec.tokenizers import graphed
from tokodec.tokenizers.graphed import AFTER, KEPT, MOST, Graphed


class OnDevice(Tensor):
    """A tensor of the CPU that says it lies on a GPU."""

    is_cuda = True


def fake(*shape: int) -> Tensor:
    return torch.zeros(shape).as_subclass(OnDevice)


class Recorder:
    """Stands in for the recording."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        self.shapes.append(tuple(inputs[0].shape))
        return lambda *inputs: function(*inputs) + 100


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    found = Recorder()
    monkeypatch.setattr(graphed, "record", found)
    return found


@torch.no_grad()
def test_a_shape_that_comes_again_is_recorded(recorder: Recorder) -> None:
    run = Graphed(lambda x: x + 1)
    assert [float(run(fake(1))) for _ in range(AFTER + 2)] == [1.0] * AFTER + [101.0] * 2
    assert float(run(fake(2)).sum()) == 2  # another shape has a count of its own
    assert recorder.shapes == [(1,)]
    run.forget()
    assert float(run(fake(1))) == 1


@torch.no_grad()
def test_few_shapes_are_kept(recorder: Recorder) -> None:
    run = Graphed(lambda x: x + 1)
    for n in range(1, KEPT + 2):
        for _ in range(AFTER + 1):
            run(fake(n))
    assert len(run.recorded) == KEPT
    run(fake(1))
    assert recorder.shapes == [(n,) for n in range(1, KEPT + 2)] + [(1,)]


def test_what_is_never_recorded(recorder: Recorder) -> None:
    run = Graphed(lambda x: x.sum())
    for _ in range(AFTER + 2):
        run(fake(1))  # gradients are wanted
        with torch.no_grad():
            run(torch.zeros(1))  # on the CPU
            run(fake(MOST + 1))
    assert not recorder.shapes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@torch.no_grad()
def test_a_recorded_net_computes_the_same() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GELU(), torch.nn.Conv2d(8, 2, 1)).cuda()
    run = Graphed(net)
    for _ in range(AFTER + 3):
        x = torch.randn(1, 3, 20, 30, device="cuda")
        assert torch.equal(run(x), net(x))
    assert run.recorded


def test_no_garbage_is_collected_while_a_graph_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that is given up in a cycle must not be freed then: that spoils the recording."""
    seen: list[bool] = []

    @contextmanager
    def capture(graph: object, pool: object) -> Iterator[None]:
        seen.append(gc.isenabled())
        yield
        seen.append(gc.isenabled())

    monkeypatch.setattr(torch.cuda, "graph", capture)
    with recording(None):  # type: ignore[arg-type]
        seen.append(gc.isenabled())
    assert seen == [False] * 3
    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="kernel"), recording(None):  # type: ignore[arg-type]
        raise RuntimeError("a kernel")
    assert gc.isenabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_graphs_in_a_cycle_do_not_spoil_a_recording() -> None:
    class Held:
        """Holds a graph, and itself."""

        def __init__(self) -> None:
            self.own, self.graph = self, torch.cuda.CUDAGraph()
            x = torch.zeros(8, device="cuda")
            with recording(self.graph):
                x.add_(1)

    for _ in range(3):
        Held()
    x, graph = torch.zeros(8, device="cuda"), torch.cuda.CUDAGraph()
    with recording(graph):
        for _ in range(2000):  # enough new objects that a collection would be due
            x = x + 1
    graph.replay()
    assert float(x.sum()) == 16000
