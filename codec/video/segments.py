"""Segments of a video: about a second of frames, each one chunk that decodes on its own."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...tokenizers.api import Tokenizer
from ...tokenizers.video.base import VideoTokenizer
from ..container.chunks import LAYR
from ..container.fields import MAX_CELLS, MAX_FRAMES
from ..container.read import TokFile
from ..errors import ChunkError, UsageError

if TYPE_CHECKING:
    from ..models import Model


Codes = npt.NDArray[np.int64]
SECONDS = Fraction(13, 10)  # about so long is a segment
UNIT = 32  # frames by which segments are longer for higher rates, in whole cells


def video_tokenizer(model: Model) -> VideoTokenizer:
    """Raises ChunkError if the model is for something else."""
    if not isinstance(model.tokenizer, VideoTokenizer):
        raise ChunkError(f"{model.tokenizer.name} is a model for {model.tokenizer.modality}, not for videos")
    return model.tokenizer


def segment_frames(tokenizer: Tokenizer, rate: Fraction | None, height: int, width: int) -> int:
    """Frames of a segment, some 33: more of videos with many frames a second, fewer of frames of very many pixels."""
    group, stride, _ = tokenizer.strides
    first = tokenizer.first or group
    unit = max(1, UNIT // group)  # cells
    units = 1 if rate is None else max(1, round(SECONDS * rate / (unit * group)))
    room = MAX_CELLS // (-(-height // stride) * -(-width // stride)) - 1  # cells behind the first one
    return first + group * min(units * unit, (MAX_FRAMES - first) // group, max(0, room))


def layout_of(tokenizer: Tokenizer) -> dict[str, int]:
    """The fields of a header that say how cells lie. first: 0 where it is one frame."""
    group, stride, _ = tokenizer.strides
    first = tokenizer.first or group
    return {"group": group, "stride": stride, "first": 0 if first == 1 else first}


def segment_payload(codes: Codes, model: Model) -> bytes:
    """What a LAYR holds of a segment's codes ``[k, t, h, w]``."""
    return bytes([len(codes)]) + model.prior.compress_joint([codes])


def read_segment(tok: TokFile, model: Model, segment: int, levels: int | None = None) -> Codes | None:
    """Codes ``[k, t, h, w]`` of a segment, at most ``levels``; None if it is lost, noted in ``tok.problems``."""
    header, tokenizer = tok.video, video_tokenizer(model)
    if any(getattr(header, name) != value for name, value in layout_of(tokenizer).items()):
        raise ChunkError(f"the header's stride or group is not that of {header.model}")
    if levels is not None and levels < 1:
        raise UsageError(f"levels must be at least 1, got {levels}")
    payload = tok.payload(LAYR, 0, segment)
    try:
        if not payload:
            raise ValueError("missing or damaged" if payload is None else "its levels are missing")
        if payload[0] > len(tokenizer.codebook_sizes):
            raise ValueError(f"it has {payload[0]} levels, the model {len(tokenizer.codebook_sizes)}")
        if not tok.holds_its_cells(segment):
            raise ValueError("it stands for more cells than its bytes can hold")
        codes = model.prior.decompress_joint(payload[1:], payload[:1], header.segment_grid(segment))[0]
        return np.asarray(codes[:levels], dtype=np.int64)
    except ValueError as error:
        lost_segment(tok, segment, error)
        return None


def lost_segment(tok: TokFile, segment: int, error: ValueError) -> None:
    begin, end = tok.video.segment_span(segment)
    tok.damaged(f"segment {segment}: {error}; frames {begin} to {end - 1} are lost, the one before stands for them")
