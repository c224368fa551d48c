"""The bytes of a clip that was fitted (`video-fit`), and its frames."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ....entropy.fitted.codes import Weights, context_shapes, decode_grids, decode_weights, encode_grids, encode_weights
from ....tokenizers.precision import whole_float32
from ....tokenizers.video.fit import FitShape, FitSynthesis, Group
from ...errors import LimitError

_HEAD = struct.Struct("<BBBB")  # margin, channels, hidden, groups
_GROUP = struct.Struct("<BHBB")  # kind, period, fine, coarse
_COUNT = struct.Struct("<I")  # bytes of the weights
MAX_CELLS = 1 << 27  # of all grids of a segment; what a reader is ready to hold
MAX_FRAME = 1 << 24  # pixels of a frame, each of which takes some 200 bytes
MAX_GRIDS = 32  # of all groups, each of which is doubled on to the size of a frame


def write_fitted(
    shape: FitShape,
    tensors: Sequence[Weights],
    contexts: Sequence[dict[str, Weights]],
    grids: Sequence[Sequence[npt.NDArray[np.int32]]],
) -> bytes:
    """Header, weights and grids. T, H and W are not among them: the file's own header has them."""
    head = _HEAD.pack(shape.margin, shape.channels, shape.hidden, len(shape.groups))
    head += b"".join(_GROUP.pack(g.kind, g.period, g.fine, g.coarse) for g in shape.groups)
    weights = encode_weights(tensors)
    return head + _COUNT.pack(len(weights)) + weights + encode_grids(grids, contexts)


@dataclass(frozen=True)
class Fitted:
    """What a payload holds: integers, the same on every machine."""

    shape: FitShape
    weights: dict[str, Weights]
    grids: list[list[npt.NDArray[np.int32]]]

    @torch.no_grad()
    def frames(self, first: int, last: int, device: torch.device | str = "cpu") -> npt.NDArray[np.uint8]:
        """Frames ``first`` to ``last - 1``, ``[n, H, W, 3]`` uint8."""
        synthesis = FitSynthesis(self.shape).to(device)
        weights = {n: torch.from_numpy(w.values).to(device, torch.float32) for n, w in self.weights.items()}
        grids = [
            [torch.from_numpy(x[first:last] if g.period == 1 else x).to(device, torch.float32) for x in own]
            for g, own in zip(self.shape.groups, self.grids, strict=True)
        ]
        with whole_float32(torch.device(device)):
            x = synthesis(weights, grids, torch.arange(first, last, device=device))
        pixels: npt.NDArray[np.uint8] = (x.clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return pixels


def check_frame(height: int, width: int) -> None:
    """Raise LimitError for frames of more pixels than a fitted clip may have."""
    if height * width > MAX_FRAME:
        raise LimitError(f"fitted clips have at most {MAX_FRAME} pixels a frame, not {width} x {height}")


def read_fitted(data: bytes, frames: int, height: int, width: int) -> Fitted:
    """Inverse of :func:`write_fitted`.

    Raises: ValueError for what is damaged, LimitError for frames that are too large.
    """
    if len(data) < _HEAD.size:
        raise ValueError("a fitted clip ends in its header")
    margin, channels, hidden, n = _HEAD.unpack_from(data)
    at = _HEAD.size
    if len(data) < at + n * _GROUP.size + _COUNT.size:
        raise ValueError("a fitted clip ends in its header")
    groups = tuple(Group(*_GROUP.unpack_from(data, at + i * _GROUP.size)) for i in range(n))
    shape = FitShape(frames, height, width, groups, margin=margin, channels=channels, hidden=hidden)
    shapes = [shape.grids(g) for g in groups]
    if sum(map(len, shapes)) > MAX_GRIDS:
        raise ValueError(f"a fitted clip has more than {MAX_GRIDS} grids")
    if sum(math.prod(s) for own in shapes for s in own) > MAX_CELLS:
        raise ValueError(f"a fitted clip has more than {MAX_CELLS} cells")
    check_frame(height, width)
    at += n * _GROUP.size
    (count,) = _COUNT.unpack_from(data, at)
    at += _COUNT.size
    if count > len(data) - at:
        raise ValueError("a fitted clip ends in its weights")
    names = shape.weights()
    nets = [context_shapes(len(own), own[0][0], hidden) for own in shapes]
    every = [*names.values(), *(s for net in nets for s in net.values())]
    tensors = iter(decode_weights(data[at : at + count], every))
    weights = {name: next(tensors) for name in names}
    contexts = [{name: next(tensors) for name in net} for net in nets]
    return Fitted(shape, weights, decode_grids(data[at + count :], shapes, contexts))
