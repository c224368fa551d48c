"""Videos with `video-motion`: media file -> `.tok`. The twin of format.py.

Frames are in memory group by group, and what is coded of them, so memory does not grow with the length of a video but
for the `.tok` file itself. Where a size is asked for, the video is read and coded again at other qualities: frames
depend on those before as they were coded, so nothing less tells what a quality takes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import torch

from ....tokenizers.image.layers import STRIDE
from ....tokenizers.image.photo import quality_steps
from ....tokenizers.video.hierarchy import Turn, turns
from ....tokenizers.video.motion import ALONE, DEFAULT_QUALITY, FARTHEST, Alone, Near, VideoMotion, left_over
from ....tokenizers.video.motion_nets import Reference, up8
from ....tokenizers.video.motion_records import unmarked_alone
from ....tokenizers.video.search import moved, search
from ...container.chunks import CodedSound
from ...container.fields import FREE_CELLS, VideoHeader
from ...container.write import write_video
from ...contract import Encoded, Source
from ...errors import RateError
from ...media.read_video import Pixels, VideoReader
from ...options import EncodeOptions
from ...progress import SILENT, Progress
from ..clock import Clock, ClockMaker, clock_fields
from ..track import code_track, most_bytes, open_video
from .refine import FrameRefiner

AFTER = 0  # the kind of a first frame of a segment that comes after another one; 1: it stands alone
GROUP = 16  # frames of a segment
SECONDS = 2  # from a frame that stands alone to the next one, about
DROP = 600  # hundredths of quality that a frame has less than those of the level above
FLAT = 2  # the level whose quality all frames of a group have that stand alone: what is near them does not need them
CUT = 0.9  # a frame whose references leave this part of its own detail stands alone,
VISIBLE = 0.02  # if that is so much of the range of pixels
BEST = 10000  # the highest quality, in hundredths
FIRST = 4000  # that a search begins with
SLOPE = 3.2e-4  # of the logarithm of a size over hundredths of quality, before two of them are known
ENOUGH = 0.97  # of the wanted size ends the search
LIKELY = 0.985  # of it is what a try aims at
TRIES = 8
ASIDE = 0.9  # share of the work that frames take if there is sound


Again = Callable[[int, Progress], "Pass"]  # a quality in hundredths to the video at that quality


@dataclass
class Pass:
    """A video at a quality in hundredths: payloads of both layers, segment by segment."""

    steps: int
    keys: list[bytes] = field(default_factory=list)
    between: list[bytes] = field(default_factory=list)


@dataclass
class Turns:
    """Frames of a group as they were coded with a step, by their number behind the key, and what they cost."""

    step: int
    known: dict[int, Reference]
    data: dict[int, bytes] = field(default_factory=dict)
    cost: float = 0.0


class MotionEncoder:
    """The segments of a video, whose frames come one by one.

    Args: period: segments from a frame that stands alone to the next one, at most.  better: finds better latents.
    """

    def __init__(
        self, model: VideoMotion, steps: int, group: int, period: int, better: FrameRefiner | None = None
    ) -> None:
        self.model, self.group, self.period, self.better = model, group, period, better
        self.made = Pass(steps)
        self.key: Reference | None = None
        self.before: Pixels | None = None  # the frame that it shows, as it was
        self.since = 0  # segments since a frame stood alone
        self.waiting: list[Pixels] = []  # behind the key

    def push(self, pixels: Pixels) -> None:
        if self.key is None or self.before is None:
            self.key, self.before = self._alone(pixels), pixels
            return
        self.waiting.append(pixels)
        if len(self.waiting) == self.group:
            key = self._next_key(pixels, self.before)
            self.made.between.append(self._between(self.waiting[:-1], key))
            self.key, self.before, self.waiting = key, pixels, []

    def finish(self) -> Pass:
        """What is left: the last frame comes after the last key, those in between between them."""
        data = b""
        if self.waiting:
            coded, last = self._after(self.waiting[-1], 0, [Near(self._last_key, -len(self.waiting))])
            data = self._between(self.waiting[:-1], last, coded)
        self.made.between.append(data)
        return self.made

    @property
    def _last_key(self) -> Reference:
        assert self.key is not None
        return self.key

    def _alone(self, pixels: Pixels) -> Reference:
        data, key = self.model.encode_alone(pixels, self.made.steps, self.better)
        self.made.keys.append(bytes([1 - AFTER]) + data)
        self.since = 0
        return key

    def _next_key(self, pixels: Pixels, before: Pixels) -> Reference:
        self.since += 1
        if self.since >= self.period or is_cut(self.model, pixels, before):
            return self._alone(pixels)
        data, key = self._after(pixels, 0, [Near(self._last_key, -self.group)])
        alone = unmarked_alone(data)
        if alone is not None:
            self.since = 0
        self.made.keys.append(bytes([AFTER]) + data if alone is None else bytes([1 - AFTER]) + alone)
        return key

    def _after(self, pixels: Pixels, level: int, near: list[Near]) -> tuple[bytes, Reference]:
        cells = -(-pixels.shape[0] // STRIDE) * -(-pixels.shape[1] // STRIDE)
        steps = max(0, self.made.steps - DROP * level)
        alone = Alone(max(0, self.made.steps - DROP * FLAT), 1.0) if level else Alone(self.made.steps, ALONE)
        may_guess = cells <= FREE_CELLS
        return self.model.encode_after(pixels, steps, near, may_guess, better=self.better, alone=alone)

    def _between(self, frames: list[Pixels], last: Reference, first: bytes = b"") -> bytes:
        """Frames between the last key and another frame, behind ``first``: with the step that costs least.

        All steps are tried on the frames that the shortest of them leads over; the others wait for the best one. In a
        group that is not whole those depend on others, and all frames are tried.
        """
        if not frames and not first:
            return b""
        n, steps = len(frames) + 1, steps_of(self.group)
        each = steps[-1] if n == self.group else 1
        tries = []
        for step in steps:
            some = [turn for turn in turns(n, step) if turn.frame % each == 0]
            tries.append(self._turns(frames, some, Turns(step, {0: self._last_key, n: last})))
        best = min(tries, key=lambda made: made.cost)
        order = turns(n, best.step)
        made = self._turns(frames, [turn for turn in order if turn.frame not in best.known], best)
        return bytes([made.step]) + first + b"".join(made.data[turn.frame] for turn in order)

    def _turns(self, frames: list[Pixels], order: list[Turn], made: Turns) -> Turns:
        """Code some frames more."""
        for turn in order:
            pixels = frames[turn.frame - 1]
            near = [Near(made.known[other], other - turn.frame) for other in turn.references]
            data, found = self._after(pixels, turn.level, near)
            made.data[turn.frame], made.known[turn.frame] = data, found
            made.cost += self.model.cost(pixels, found, data, self.made.steps)
        return made


def steps_of(group: int) -> list[int]:
    """Frames from one that comes after another to the next: what a group is tried with, long ones first."""
    return [max(1, group // n) for n in (1, 4)]


@torch.no_grad()
def is_cut(model: VideoMotion, pixels: Pixels, before: Pixels) -> bool:
    """Whether a frame has little to do with an earlier one."""
    x, old = model.padded(pixels), model.padded(before)
    x_bar = moved(old, up8(search(x, old, FARTHEST)))
    return left_over(x, x_bar) > CUT and float((x - x_bar).abs().mean()) > VISIBLE


def encode_motion(source: Source, model: VideoMotion, options: EncodeOptions, progress: Progress = SILENT) -> Encoded:
    """File of a video. Raises RateError if the smallest file is too large; UsageError; MediaError."""
    if not isinstance(source.data, Path):
        source = replace(source, data=io.BytesIO(source.data.read()))  # to be read several times
    rate = options.rate
    steps = quality_steps(DEFAULT_QUALITY if rate.quality is None else rate.quality)
    first = progress.part(0, 0.5) if rate.searched else progress
    with open_video(source, options) as reader:
        heard = reader.has_sound and options.sound is not None
        made, clock = encode_pass(
            reader, model, FIRST if rate.searched else steps, options, first.part(0, ASIDE if heard else 1)
        )
        pixels = reader.height * reader.width * clock.frames
        notes = list(reader.notes)
        track, clock, said = code_track(reader, options, pixels, clock, first.part(ASIDE, 1))
        notes += said
        files = MotionFile(_header(reader, model, clock, options.low_delay, track is not None), clock.chunk(), track)
        problems = reader.problems
    most = most_bytes(rate, pixels, clock.seconds)
    if most is not None:

        def again(steps: int, part: Progress) -> Pass:
            if not isinstance(source.data, Path):
                source.data.seek(0)
            with open_video(source, options) as reader:
                return encode_pass(reader, model, steps, options, part)[0]

        made = search_rate(files, made, most, again, progress.part(0.5, 1))
        if made.steps == BEST and len(files.build(made)) < ENOUGH * most:
            notes.append(f"quality 100 takes {len(files.build(made))} of the {most} bytes")
    progress.update(1.0)
    return Encoded(
        files.build(made),
        2,
        pixels=pixels,
        notes=notes,
        quality=made.steps / 100,
        seconds=float(clock.seconds),
        frames=clock.frames,
        problems=problems,
    )


def encode_pass(
    reader: VideoReader, model: VideoMotion, steps: int, options: EncodeOptions, progress: Progress = SILENT
) -> tuple[Pass, Clock]:
    """All frames at a quality in hundredths."""
    clock = ClockMaker(reader.time_base, reader.name)
    group = group_of(options.low_delay)
    period = max(1, round(SECONDS * (reader.rate or Fraction(25)) / group))
    better = FrameRefiner(model, options.n_steps, (reader.height, reader.width)) if options.n_steps else None
    encoder = MotionEncoder(model, steps, group, period, better)
    for done, frame in enumerate(reader, start=1):
        clock.add(frame)
        encoder.push(frame.pixels)
        known = reader.frames or reader.end
        share = done / reader.frames if reader.frames else float(frame.time / (reader.end or 1))
        progress.update(min(1.0, share) if known else None, frames=done)
    return encoder.finish(), clock.clock(reader.rate)


def group_of(low_delay: bool) -> int:
    return 1 if low_delay else GROUP


@dataclass(frozen=True)
class MotionFile:
    """Files of one video. times: payload of TIME."""

    header: VideoHeader
    times: bytes | None
    track: CodedSound | None

    def build(self, made: Pass) -> bytes:
        return write_video(self.header, made.keys, self.times, self.track, made.between)


def search_rate(files: MotionFile, first: Pass, most: int, again: Again, progress: Progress = SILENT) -> Pass:
    """The video in at most ``most`` bytes and, if possible, hardly less: :data:`ENOUGH` of them.

    Args:   first: the video at a quality to begin with.  again: makes it at another one.
    Raises: RateError if it takes more at quality 0.
    """
    sizes = {first.steps: len(files.build(first))}
    best = first if sizes[first.steps] <= most else None
    for i in range(TRIES):
        if best is not None and (sizes[best.steps] >= ENOUGH * most or best.steps == BEST):
            break
        steps = next_steps(sizes, most)
        if steps in sizes:
            break
        made = again(steps, progress.part(1 - 0.5**i, 1 - 0.5 ** (i + 1)))
        sizes[steps] = len(files.build(made))
        if sizes[steps] <= most and (best is None or sizes[steps] > sizes[best.steps]):
            best = made
    if best is None and 0 not in sizes:  # sizes did not rise with the quality as they should
        best = again(0, progress)
        sizes[0] = len(files.build(best))
    if best is None or sizes[best.steps] > most:
        header, size = files.header, sizes[0]
        bpp = 8 * size / (header.frames * header.height * header.width)
        sound = "" if files.track is None else ", sound included (see --sound-kbps and --no-sound)"
        raise RateError(f"the smallest file takes {size} bytes ({bpp:.4f} bpp){sound}, more than the {most} asked for")
    return best


def next_steps(sizes: dict[int, int], most: int) -> int:
    """The quality in hundredths to try next, where logarithms of sizes are straight lines between those known."""
    aim = math.log(LIKELY * most)
    low = max((s for s, size in sizes.items() if size <= most), default=None)
    high = min((s for s, size in sizes.items() if size > most), default=None)
    known = low if high is None else high
    assert known is not None
    slope = SLOPE
    if low is not None and high is not None and low < high:
        slope = max(1e-6, math.log(sizes[high] / sizes[low]) / (high - low))
        known = low
    wanted = known + round((aim - math.log(sizes[known])) / slope)
    if low is not None and high is not None and low < high:
        return min(max(wanted, low + 1), high - 1)
    return min(max(wanted, 0), BEST)


def _header(reader: VideoReader, model: VideoMotion, clock: Clock, low_delay: bool, sound: bool) -> VideoHeader:
    return VideoHeader(
        model=model.name,
        weights_hash=model.weights_hash,
        prior=model.entropy.wire_id,
        prior_hash=model.entropy.hash,
        layers=2,
        height=reader.height,
        width=reader.width,
        stride=STRIDE,
        frames=clock.frames,
        group=1,
        segment=group_of(low_delay),
        sound=int(sound),
        **clock_fields(reader, clock),
    )
