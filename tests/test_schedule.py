"""Coding schedules: every cell is coded once, and a cell sees exactly what was coded before it."""

import itertools
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from tokodec.entropy.schedule import Schedule, offsets_within, raster, refinement

GRIDS = [(1,), (7,), (19,), (5, 3), (1, 9), (8, 1), (13, 11), (2, 3, 5), (3, 6, 9), (1, 1, 1), (2, 1, 3, 2)]


def schedules(ndim: int) -> Iterator[Schedule]:
    """All that the constructors make for so many axes, and two that only a file could hold."""
    yield raster(ndim)
    for walked, steps in itertools.product(range(ndim), (1, 2, 4, 8)):
        yield refinement(ndim, steps, walked)
    yield Schedule((3, *(1,) * (ndim - 1)), (1, 2, 0))
    yield Schedule((*(2,) * (ndim - 1), 0), tuple(range(2 ** (ndim - 1)))[::-1])  # the last axis is walked


def coding_time(schedule: Schedule, grid: Sequence[int]) -> np.ndarray:
    """When each cell is coded, flat."""
    when = np.full(int(np.prod(grid)), -1)
    for step, cells in enumerate(schedule.run(grid)):
        when[cells] = step
    return when


def cells_of(grid: Sequence[int]) -> np.ndarray:
    return np.array(list(itertools.product(*map(range, grid))))


# -------------------------------------------------------------------------------------------------- cells and steps


@pytest.mark.parametrize("grid", GRIDS)
def test_every_cell_is_coded_once(grid: tuple[int, ...]) -> None:
    for schedule in schedules(len(grid)):
        steps = list(schedule.run(grid))
        assert all(step.size for step in steps)
        assert all((np.diff(step) > 0).all() for step in steps)  # raster order inside a step
        assert np.sort(np.concatenate(steps)).tolist() == list(range(int(np.prod(grid))))
        positions = int(np.prod([grid[axis] for axis in schedule.walked]))
        assert len(steps) <= schedule.n_steps * positions


@pytest.mark.parametrize("grid", GRIDS)
def test_visible_is_what_was_coded_in_an_earlier_step(grid: tuple[int, ...]) -> None:
    reach = {1: 9, 2: 4, 3: 2, 4: 1}[len(grid)]
    offsets = np.array(list(itertools.product(range(-reach, reach + 1), repeat=len(grid))))
    cells = cells_of(grid)
    there = cells[:, None] + offsets  # [n, P, ndim]
    inside = ((there >= 0) & (there < grid)).all(-1)
    flat = np.ravel_multi_index(tuple(np.moveaxis(np.where(inside[..., None], there, 0), -1, 0)), grid)
    for schedule in schedules(len(grid)):
        visible = schedule.visible(offsets)
        assert visible.shape == (int(np.prod(schedule.tile)), len(offsets))
        when = coding_time(schedule, grid)
        seen = visible[schedule.phase(cells)]
        assert np.array_equal(seen[inside], (when[flat] < when[:, None])[inside])
        assert not visible[:, (offsets == 0).all(1)].any()  # never the cell itself


def test_a_grid_without_cells_takes_no_steps() -> None:
    for grid in ((0,), (0, 3), (4, 0)):
        for schedule in schedules(len(grid)):
            assert list(schedule.run(grid)) == []


def test_raster_is_one_cell_after_another() -> None:
    assert [step.tolist() for step in raster(2).run((3, 4))] == [[i] for i in range(12)]
    offsets = np.array([(-1, 1), (-1, -5), (0, -1), (0, 0), (0, 1), (1, -9)])
    assert raster(2).visible(offsets).tolist() == [[True, True, True, False, False, False]]


@pytest.mark.parametrize(
    ("n_steps", "sizes"),
    [
        (1, [1536]),
        (2, [768, 768]),
        (4, [384, 384, 384, 384]),
        (8, [96, 96, 96, 96, 192, 192, 384, 384]),
    ],
)
def test_shares_of_the_steps_in_the_plane(n_steps: int, sizes: list[int]) -> None:
    schedule = refinement(2, n_steps)
    assert schedule.n_steps == n_steps
    assert [len(step) for step in schedule.run((32, 48))] == sizes


def test_shares_of_the_steps_on_a_line_and_in_space() -> None:
    assert [len(step) for step in refinement(1, 4).run((80,))] == [20, 20, 20, 20]
    assert [len(step) for step in refinement(1, 8).run((80,))] == [10, 10, 10, 10, 20, 20]  # too small a tile for 8
    assert [len(step) for step in refinement(3, 8).run((4, 8, 8))] == [16, 16, 16, 16, 32, 32, 64, 64]


def test_two_steps_are_a_checkerboard() -> None:
    for ndim, grid in ((1, (9,)), (2, (7, 10)), (3, (3, 5, 4))):
        colour = cells_of(grid).sum(1) % 2
        assert coding_time(refinement(ndim, 2), grid).tolist() == colour.tolist()


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("n_steps", [2, 4, 8])
def test_the_last_half_of_the_cells_sees_all_its_neighbours(ndim: int, n_steps: int) -> None:
    schedule = refinement(ndim, n_steps)
    visible = schedule.visible(np.concatenate([np.eye(ndim, dtype=np.int64), -np.eye(ndim, dtype=np.int64)]))
    order = np.argsort(schedule.steps, kind="stable")
    half = len(order) // 2
    assert max(np.array(schedule.steps)[order[:half]]) < min(np.array(schedule.steps)[order[half:]])
    assert visible[order[half:]].all()
    assert not visible[order[:half]].any()  # the other half fills one colour of the checkerboard


def test_refinement_goes_from_sparse_to_dense() -> None:
    """Smallest distance between cells, on a torus, after 1/16, 1/8, 1/4, 1/2 and all of them: as in dithering."""
    cells = cells_of((16, 16))
    away = np.abs(cells[:, None] - cells)
    square = (np.minimum(away, 16 - away) ** 2).sum(-1)
    when = coding_time(refinement(2, 8), (16, 16))
    found = []
    for steps in (1, 2, 4, 6, 8):
        there = np.flatnonzero(when < steps)
        found.append((len(there), int(np.sort(square[np.ix_(there, there)], axis=1)[:, 1].min())))
    assert found == [(16, 16), (32, 8), (64, 4), (128, 2), (256, 1)]


def test_one_step_sees_nothing_of_its_own_level() -> None:
    assert not refinement(2, 1).visible(offsets_within(3, (1, 1))).any()


def test_walked_frames_come_one_after_another() -> None:
    schedule = refinement(3, 4, walked=1)
    assert schedule.walked == (0,)
    steps = list(schedule.run((3, 8, 8)))
    assert len(steps) == 12
    frames = [np.unique(step // 64).tolist() for step in steps]
    assert frames == [[0]] * 4 + [[1]] * 4 + [[2]] * 4
    plane = [step.tolist() for step in refinement(2, 4).run((8, 8))]
    assert [(step % 64).tolist() for step in steps] == plane * 3  # in each frame as without time


# ----------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("period", "steps"),
    [
        ((), ()), ((), (0,)), ((-1,), (0,)), ((2,), (0,)), ((2,), (0, 1, 2)), ((2, 2), (0, 1)), ((2,), (0, 2)),
        ((2,), (1, 2)), ((2,), (-1, 0)), ((0,), (0, 1)), ((0, 0), ()),
    ],
)  # fmt: skip
def test_contradictions_are_refused(period: tuple[int, ...], steps: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a period is|a tile of"):
        Schedule(period, steps)


def test_a_hostile_step_takes_no_memory() -> None:
    """A flipped bit in a file may ask for a billion steps."""
    tracemalloc.start()
    with pytest.raises(ValueError, match="a tile of"):
        Schedule((2,), (0, 1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_arguments_that_are_refused() -> None:
    for arguments in ((2, 0), (2, 3), (2, 16), (1, 4, 1), (3, 2, 3), (0, 1)):
        with pytest.raises(ValueError, match="1, 2, 4 or 8 steps"):
            refinement(*arguments)
    with pytest.raises(ValueError, match="a period is"):
        raster(0)
    for grid in ((3,), (3, 3, 3), ()):
        with pytest.raises(ValueError, match="for 2 axes"):
            list(raster(2).run(grid))


# ---------------------------------------------------------------------------------------------------------- windows


def test_offsets_by_hand() -> None:
    assert offsets_within(0, (1.0,)).tolist() == [[0]]
    assert offsets_within(2, (1.0,)).tolist() == [[0], [-1], [1], [-2], [2]]
    assert offsets_within(1, (1.0, 1.0)).tolist() == [[0, 0], [-1, 0], [0, -1], [0, 1], [1, 0]]
    counts = [len(offsets_within(radius, (1.0, 1.0))) for radius in (0, 1, 1.5, 2, 3, 4)]
    assert counts == [1, 5, 9, 13, 29, 49]
    assert len(offsets_within(1, (1.0, 1.0, 1.0))) == 7
    assert offsets_within(2, (2.0, 1.0)).tolist() == [[0, 0], [0, -1], [0, 1], [-1, 0], [0, -2], [0, 2], [1, 0]]


@pytest.mark.parametrize(
    ("radius", "scale"), [(3, (1, 1)), (2.5, (1,)), (3, (2, 1, 1)), (2, (1, 0.5)), (3.7, (1.25, 1)), (1.5, (1, 1, 1))]
)
def test_offsets_are_all_within_the_radius_nearest_first(radius: float, scale: tuple[float, ...]) -> None:
    found = offsets_within(radius, scale)
    every = itertools.product(range(-9, 10), repeat=len(scale))
    inside = {o for o in every if sum((a * s) ** 2 for a, s in zip(o, scale, strict=True)) <= radius**2}
    assert len(found) == len(inside)
    assert {tuple(o) for o in found.tolist()} == inside
    distance = ((found * np.array(scale)) ** 2).sum(1)
    assert (np.diff(distance) >= 0).all()
    assert not found[0].any()
    for a, b, near, far in zip(found, found[1:], distance, distance[1:], strict=False):
        assert near < far or tuple(a) < tuple(b)  # equal distances in raster order


def test_an_offset_just_at_the_radius_is_within() -> None:
    """0.6 / 0.2 is a little less than 3 in floats."""
    assert len(offsets_within(0.6, (0.2,))) == 7
