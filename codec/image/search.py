"""The quality of a file of a wanted size, or one that reaches a target: found by trying qualities.

Sizes and metrics rise with the quality, nearly along straight lines (the logarithm of the size; decibels). So a pair of
qualities with the goal between them is narrowed by the line through both, and by halves where that is slow. Codes that
are refined take long: there each try tells how far refined files are off the others, and the next try is where the
others are better or worse by that much.

The highest quality is no longer one of codes alone (photo_file.py) and takes much longer, so it is not tried here.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..metrics.target import on_a_line
from ..options import Target
from ..progress import SILENT, Progress
from .photo_file import BEST, Attempt, PhotoFile

TOP = BEST - 1  # the highest quality that is tried
CLOSE_ENOUGH = 0.985  # a file of this share of the wanted size ends the search
LIKELY = 0.99  # of the wanted size is what a try aims at
REFINED_TRIES = 5
REFINED_ENOUGH = 0.975  # as CLOSE_ENOUGH, for refined codes
ENOUGH = 0.97  # of the wanted size must be used
STEP = 10  # hundredths: a file that reaches a target, where one of so much less quality does not, ends the search


class Goal(abc.ABC):
    """What is wanted of a file.

    Attributes: end: the quality at which the goal is met if it can be met at all.  tries: between the two ends at most.
        margin: least change of the quality in one.
    """

    end: int
    tries: int
    margin: int

    @abc.abstractmethod
    def value(self, attempt: Attempt) -> float:
        """What rises with the quality, nearly on a line."""

    @property
    @abc.abstractmethod
    def aim(self) -> float:
        """The value that a try should have."""

    @abc.abstractmethod
    def met(self, attempt: Attempt) -> bool: ...

    @abc.abstractmethod
    def enough(self, low: Attempt, high: Attempt) -> bool:
        """Whether one of these, with the goal between them, is good enough."""

    @abc.abstractmethod
    def enough_refined(self, attempt: Attempt) -> bool:
        """The same of a refined file that meets the goal."""

    @abc.abstractmethod
    def better(self, refined: list[Attempt], plain: Attempt) -> Attempt:
        """The best of files that meet the goal."""

    @abc.abstractmethod
    def moved(self, by: float) -> Goal:
        """The same, with an aim that is so much higher."""


@dataclass(frozen=True)
class Within(Goal):
    """At most so many bytes, and hardly less."""

    most: float
    end, tries, margin = 0, 12, 1

    def value(self, attempt: Attempt) -> float:
        return math.log(len(attempt.data))

    @property
    def aim(self) -> float:
        return math.log(LIKELY * self.most)

    def met(self, attempt: Attempt) -> bool:
        return len(attempt.data) <= self.most

    def enough(self, low: Attempt, high: Attempt) -> bool:
        return len(low.data) >= CLOSE_ENOUGH * self.most

    def enough_refined(self, attempt: Attempt) -> bool:
        return len(attempt.data) >= REFINED_ENOUGH * self.most

    def better(self, refined: list[Attempt], plain: Attempt) -> Attempt:
        """A refined file of as high a quality is the better one; of a lower one, where it makes use of the bytes."""
        best = max(refined, key=lambda attempt: len(attempt.data), default=plain)
        return best if best.steps >= plain.steps or len(best.data) >= ENOUGH * self.most else plain

    def moved(self, by: float) -> Within:
        return replace(self, most=self.most * math.exp(by))


@dataclass(frozen=True)
class Reach(Goal):
    """At least so much of a metric, in as few bytes as possible."""

    target: Target
    shift: float = 0.0
    end, tries, margin = TOP, 30, STEP

    def value(self, attempt: Attempt) -> float:
        assert attempt.measured is not None
        return on_a_line(self.target.metric, attempt.measured)

    @property
    def aim(self) -> float:
        return on_a_line(self.target.metric, self.target.least) + self.shift

    def met(self, attempt: Attempt) -> bool:
        return self.value(attempt) >= self.aim

    def enough(self, low: Attempt, high: Attempt) -> bool:
        return high.steps - low.steps <= STEP

    def enough_refined(self, attempt: Attempt) -> bool:
        return self.value(attempt) - self.aim < 0.02

    def better(self, refined: list[Attempt], plain: Attempt) -> Attempt:
        return min([*refined, plain], key=lambda attempt: len(attempt.data))

    def moved(self, by: float) -> Reach:
        return replace(self, shift=self.shift + by)


def nearest(at: Callable[[int], Attempt], goal: Goal) -> Attempt | None:
    """The file that just meets a goal, None if the one at the goal's end does not. at: the file of a quality."""
    first = at(goal.end)
    if not goal.met(first):
        return None
    last = at(TOP - goal.end)
    if goal.met(last):
        return last
    low, high = sorted((first, last), key=lambda attempt: attempt.steps)
    for i in range(goal.tries):
        span, values = high.steps - low.steps, [goal.value(attempt) for attempt in (low, high)]
        if span < 2 or goal.enough(low, high):
            break
        share = 0.5
        if i % 3 < 2 and math.isfinite(values[1] - values[0]):
            share = (goal.aim - values[0]) / max(values[1] - values[0], 1e-9)
        margin = min(goal.margin, span // 2)
        now = at(min(max(low.steps + round(share * span), low.steps + margin), high.steps - margin))
        if goal.met(now) == goal.met(low):
            low = now
        else:
            high = now
    return low if goal.met(low) else high


def search(files: PhotoFile, goal: Goal, progress: Progress = SILENT) -> Attempt | None:
    """The best file for a goal, None if no quality meets it."""
    plain = nearest(files.at, goal)
    if files.refiner is None:
        return plain
    if plain is None:
        only = files.at(goal.end, True, progress)
        return only if goal.met(only) else None
    refined, seen, by, now = [], set(), 0.0, plain.steps
    for i in range(REFINED_TRIES):
        seen.add(now)
        done = files.at(now, True, progress.part(1 - 0.5**i, 1 - 0.5 ** (i + 1)))
        if goal.met(done):
            refined.append(done)
            if goal.enough_refined(done):
                break
        by += goal.aim - goal.value(done)
        near = nearest(files.at, goal.moved(by))
        now = goal.end if near is None else near.steps
        if now in seen:
            break
    return goal.better(refined, plain)
