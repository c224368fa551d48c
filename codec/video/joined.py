"""Segments of a video that go over into each other: the jump at a border is spread over some frames on both sides.

Each segment is coded on its own, so detail and tint begin anew in it, and a viewer sees the picture jump. What two
neighbouring frames differ by there is taken from both sides of the border, in shares that fall linearly:

    J = blurred (first frame of a segment - last frame of the one before), at most LARGEST
    frame k before the border: + J (1 - (k + 1/2) / n) / 2,  frame k behind it: - the same,  k = 0 to n - 1
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..media.read_video import Pixels

FRAMES = 6  # on each side of a border, as files are written
LARGEST = 16  # levels of 255: what moves differs by more, and would be seen twice
CUT = 24  # levels: where frames differ by more on average, something else begins, and nothing is spread

Numbered = tuple[int, Pixels]


def joined(frames: Iterator[Numbered], segment: int, n: int) -> Iterator[Numbered]:
    """Frames ``[H, W, 3]`` with their numbers, one after the other from the beginning of a segment on, each with its
    share of the jumps at borders; ``n`` of them are held back at most. A frame that is given again and again stands for
    a segment that is lost, and nothing is spread behind it.

    Args: segment: frames of a segment, 2 n at least.  n: frames on each side of a border.
    """
    held: list[Numbered] = []
    last: Pixels | None = None
    again = False
    jump: npt.NDArray[np.float32] | None = None
    for i, pixels in frames:
        behind = i % segment
        if behind == 0:
            jump = None if last is None or again else jump_of(last, pixels)
            yield from ((j, shifted(own, jump, i - 1 - j, n)) for j, own in held)
            held = []
        again, last = pixels is last, pixels
        if segment - behind <= n:
            held.append((i, pixels))
        else:
            yield i, shifted(pixels, jump, behind, -n)
    yield from held


def jump_of(last: Pixels, first: Pixels) -> npt.NDArray[np.float32] | None:
    """J of two frames ``[H, W, 3]`` at a border; None if it is a cut."""
    apart = first.astype(np.float32) - last
    if np.abs(apart).mean() > CUT:
        return None
    wide = np.pad(apart, ((1, 1), (1, 1), (0, 0)), mode="edge")
    wide = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    blurred: npt.NDArray[np.float32] = (wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]) / 16
    return blurred.clip(-LARGEST, LARGEST)


def shifted(pixels: Pixels, jump: npt.NDArray[np.float32] | None, k: int, n: int) -> Pixels:
    """The frame ``k`` frames away from a border. n: negative behind it."""
    if jump is None or k >= abs(n):
        return pixels
    share = (1 - (k + 0.5) / abs(n)) / 2
    found: Pixels = (pixels + (share if n > 0 else -share) * jump).round().clip(0, 255).astype(np.uint8)
    return found
