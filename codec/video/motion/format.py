"""Files of models that code frames after others (`video-motion`), and their frames. encode.py is the twin of this.

A segment is a group of frames. Layer 0 holds its first frame, which stands alone or comes after the first frame of the
segment before; layer 1 the others, which lie between that and the first frame of the next segment.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ....tokenizers.image.layers import STRIDE
from ....tokenizers.video.hierarchy import turns
from ....tokenizers.video.motion import Near, VideoMotion
from ....tokenizers.video.motion_nets import Reference
from ....tokenizers.video.motion_records import Record, only, read_records
from ...container.chunks import LAYR
from ...container.read import TokFile, most_cells
from ...contract import Encoded, Source
from ...errors import ChunkError
from ...media.read_video import Pixels
from ...models import Model
from ...options import SOUND_OPTIONS, DecodeOptions, EncodeOptions
from ...progress import Progress
from ..decode import GRAY, SegmentFrames
from ..format import TokenlessFormat
from .encode import AFTER, encode_motion


def motion_model(model: Model | None) -> VideoMotion:
    """Raises ChunkError if a file claims such an entropy model, and its model is another."""
    if model is None or not isinstance(model.tokenizer, VideoMotion):
        name = "the model" if model is None else model.tokenizer.name
        raise ChunkError(f"the header's entropy model is not one of {name} for videos")
    return model.tokenizer


class MotionFormat(TokenlessFormat):
    """See the module's text."""

    rates = ("quality", "bpp", "kbps", "bytes")
    options = frozenset({"low-delay", "effort", "start", "end", "track", *SOUND_OPTIONS})
    reason = "codes of a frame mean nothing without the frames that it refers to: there are no tokens of them"

    def encode(self, source: Source, model: Model | None, options: EncodeOptions, progress: Progress) -> Encoded:
        return encode_motion(source, motion_model(model), options, progress)

    def frames_of(self, tok: TokFile, model: Model | None, options: DecodeOptions) -> SegmentFrames:
        header = tok.video
        if (header.stride, header.group) != (STRIDE, 1):
            raise ChunkError(f"the header's stride or group is not that of {header.model}")
        return MotionFrames(tok, motion_model(model)).segment


class MotionFrames:
    """Frames of a file, segment by segment. What is lost is what its references make expect."""

    def __init__(self, tok: TokFile, model: VideoMotion) -> None:
        self.tok, self.model = tok, model
        self.size = (tok.video.height, tok.video.width)
        self.keys: dict[int, Reference] = {}  # first frames of the segments that were decoded last

    def segment(self, number: int) -> Iterator[Pixels]:
        """The frames ``[H, W, 3]`` of a segment, one by one."""
        header = self.tok.video
        begin, end = header.segment_span(number)
        known = {begin: self.key(number)}
        yield self.model.pixels_of(known[begin], self.size)
        last = end if number + 1 < header.n_segments else end - 1
        if end - begin > 1:
            if last == end:
                known[end] = self.key(number + 1)
            self.decode_between(number, begin, last, known)
        for i in range(begin + 1, end):
            yield self.model.pixels_of(known.pop(i), self.size)

    def alone(self, number: int) -> bool:
        """Whether the first frame of a segment is there, and stands alone."""
        payload = self.tok.payload(LAYR, 0, number)
        return bool(payload) and payload is not None and payload[0] != AFTER

    def key(self, number: int) -> Reference:
        """The first frame of a segment, after all those that it needs."""
        begin = number
        while begin not in self.keys and begin > 0 and not self.alone(begin):
            begin -= 1
        for i in range(begin, number + 1):
            if i not in self.keys:
                before = self.keys.get(i - 1)
                self.keys = {k: key for k, key in self.keys.items() if k >= i - 1}
                self.keys[i] = self.decode_key(i, before)
        return self.keys[number]

    def decode_key(self, number: int, before: Reference | None) -> Reference:
        near = [] if before is None else [Near(before, -self.tok.video.segment)]
        frame = number * self.tok.video.segment
        try:
            payload = self.tok.payload(LAYR, 0, number)
            if not payload:
                raise ValueError("missing or damaged")
            if payload[0] > 1:
                raise ValueError(f"its first frame is of an unknown kind {payload[0]}")
            alone = payload[0] != AFTER
            record = self.worth_it(only(read_records(payload[1:], [alone], self.size)))
            if alone:
                return self.model.decode_alone(record, self.size)
            if not near:
                raise ValueError("the frame that it refers to is lost")
            return self.model.decode_after(record, near, self.size)
        except ValueError as error:
            what = "what the one before it makes expect stands for it" if near else "gray stands for it"
            self.tok.damaged(f"segment {number}: {error}; frame {frame} is lost, {what}, until one stands alone")
        if near:
            return self.model.guess(near)
        return self.model.shown(np.full((*self.size, 3), GRAY, dtype=np.uint8))

    def decode_between(self, number: int, begin: int, last: int, known: dict[int, Reference]) -> None:
        """Add the frames of layer 1 to ``known``, which has the first one and, if it is a segment's first, the last."""
        payload, step = self.tok.payload(LAYR, 1, number), self.tok.video.segment
        lost = True
        if not payload:
            self.lost_between(number, begin, "missing or damaged")
        elif not 1 <= payload[0] <= step:
            self.lost_between(number, begin, f"a step of {payload[0]} frames")
        else:
            step, lost = payload[0], False
        order = [(begin + t.frame, tuple(begin + other for other in t.references)) for t in turns(last - begin, step)]
        if last not in known:
            order.insert(0, (last, (begin,)))
        records = iter(()) if lost or not payload else read_records(payload[1:], [False] * len(order), self.size)
        for frame, others in order:
            near = [Near(known[other], other - frame) for other in others]
            if not lost:
                try:
                    known[frame] = self.model.decode_after(self.worth_it(next(records)), near, self.size)
                    continue
                except ValueError as error:
                    self.lost_between(number, begin, error)
                    lost = True
            known[frame] = self.model.guess(near)
        try:
            if not lost:
                next(records, None)  # says what follows the last one
        except ValueError as error:
            self.lost_between(number, begin, error)

    def lost_between(self, number: int, begin: int, error: ValueError | str) -> None:
        self.tok.damaged(
            f"segment {number}: {error}; some frames behind frame {begin} are lost, what others make expect stands for"
            " them"
        )

    def worth_it(self, record: Record) -> Record:
        """Raise ValueError for a frame of more cells than its bytes can hold."""
        _, h, w = self.tok.video.segment_grid(0)
        if h * w > most_cells(sum(map(len, record.streams))):
            raise ValueError("it stands for more cells than its bytes can hold")
        return record
