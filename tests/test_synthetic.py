"""Pictures from a seed: the same for everyone, of every kind, and as hard as they are meant to be."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tokodec.codec.media.synthetic import KINDS, SIZES, synthetic_name, synthetic_picture, synthetic_pictures
from tokodec.train.data.fonts import matplotlib_fonts


@pytest.mark.parametrize("index", range(len(KINDS)))
def test_a_picture_is_that_of_its_seed_and_number(index: int) -> None:
    first = synthetic_picture(index, 3)
    assert (first.dtype, first.shape[2]) == (np.uint8, 3)
    assert first.shape[:2] in SIZES
    assert np.array_equal(first, synthetic_picture(index, 3))
    assert not np.array_equal(first, synthetic_picture(index, 4)[: first.shape[0], : first.shape[1]])
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 1


def test_pictures_are_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from tokodec.codec.media.synthetic import synthetic_picture as p;"
        "print(hashlib.sha256(b''.join(p(k, 9).tobytes() for k in range(18))).hexdigest())"
    )
    seeds = [{"PYTHONHASHSEED": str(k)} for k in (1, 2)]
    found = {
        subprocess.run([sys.executable, "-c", code], env=_environment() | seed, capture_output=True, check=True).stdout
        for seed in seeds
    }
    assert len(found) == 1


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)


def test_a_set_holds_every_kind_and_names_them() -> None:
    pictures = synthetic_pictures(2 * len(KINDS) + 1, 0)
    names = [name for name, _ in pictures]
    assert len(set(names)) == len(names)
    assert names[: len(KINDS)] == [f"{kind}-0" for kind in KINDS]
    assert names[-1] == synthetic_name(2 * len(KINDS)) == "text-2"
    assert np.array_equal(pictures[7][1], synthetic_picture(7, 0))


def test_a_size_of_ones_own() -> None:
    for index in range(len(KINDS)):
        assert synthetic_picture(index, 1, size=(200, 333)).shape == (200, 333, 3)


def test_fonts_change_text_alone() -> None:
    fonts = matplotlib_fonts()
    assert len(fonts) > 10
    changed = {
        name for index, name in enumerate(KINDS)
        if not np.array_equal(synthetic_picture(index, 5), synthetic_picture(index, 5, fonts))
    }  # fmt: skip
    assert {"text", "poster", "screenshot"} <= changed
    assert not changed & {"hatching", "checkerboard", "saturated", "zone_plate", "gradient", "dark", "noise"}


def test_the_sharpest_patterns_are_there() -> None:
    """Neighbours as far apart as can be, along rows or columns, in squares of one pixel."""
    steepest = max(
        int(np.abs(np.diff(synthetic_picture(index, seed).astype(int), axis=1)).max(2).mean())
        for seed in range(8) for index in [list(KINDS).index("checkerboard"), list(KINDS).index("hatching")]
    )  # fmt: skip
    assert steepest > 100


@pytest.mark.parametrize(
    ("index", "seed", "size"), [(-1, 0, None), (0, -1, None), (0, 0, (191, 400)), (0, 0, (400, 100))]
)
def test_what_cannot_be_drawn(index: int, seed: int, size: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match="synthetic picture"):
        synthetic_picture(index, seed, size=size)
