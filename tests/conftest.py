"""What the tests share. `GENERATE_EXPECTED=1 pytest` makes the golden files anew first, see golden/make.py."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import pytest

# Before torch and NumPy: each of several workers (pytest -n 2) has one core to itself.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import torch

# Triton decides when it is imported whether kernels are compiled or interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@contextmanager
def _training() -> Iterator[None]:
    from accelerate.state import AcceleratorState

    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    AcceleratorState._reset_state(True)
    try:
        yield
    finally:
        cuda.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def training() -> Callable[[], AbstractContextManager[None]]:
    """Around training scripts: they choose kernels for the whole process and keep state of accelerate."""
    return _training


@pytest.fixture
def _trains() -> Iterator[None]:
    """A test that runs training scripts."""
    with _training():
        yield


@pytest.fixture(scope="session")
def counted_time() -> Callable[[ModuleType, float], AbstractContextManager[None]]:
    """Within, ``time.monotonic`` of a module goes on by so many seconds at every look, however fast the machine is.

    Training looks at its clock every so many steps, so what a budget of minutes leads to is a number of steps.
    """

    @contextmanager
    def counted(module: ModuleType, seconds: float) -> Iterator[None]:
        with patch.object(module, "time", SimpleNamespace(monotonic=itertools.count(0.0, seconds).__next__)):
            yield

    return counted


GOLDEN = Path(__file__).resolve().parent / "golden"


def pytest_sessionstart() -> None:
    if os.environ.get("GENERATE_EXPECTED") and "PYTEST_XDIST_WORKER" not in os.environ:  # once, before workers start
        subprocess.run([sys.executable, str(GOLDEN / "make.py")], check=True)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden files."""
    return GOLDEN


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    """Folder of a model of a few kilobytes: random weights, 64 + 32 + 16 codewords, all of them in use."""
    return GOLDEN / "tiny"


@pytest.fixture(scope="session")
def sound_model() -> Path:
    """Folder of a model for sounds: random weights, two groups of 32 + 16 codewords."""
    return GOLDEN / "sound"


@pytest.fixture(scope="session")
def video_model() -> Path:
    """Folder of a model for videos: random weights, 32 + 16 + 16 codewords."""
    return GOLDEN / "video"


@pytest.fixture(scope="session")
def sequence_model() -> Path:
    """Folder of a model of windows of at most 12 tokens of 32 codewords, briefly trained."""
    return GOLDEN / "sequence"


@pytest.fixture(scope="session")
def photo_model() -> Path:
    """Folder of a model whose rate is set by a quality: 6 + 10 channels in three slices, briefly trained."""
    return GOLDEN / "photo"
