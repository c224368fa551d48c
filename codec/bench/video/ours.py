"""Our side of `codec bench video`: models for videos, files that were made before, and a model for pictures that is run
frame by frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ....tokenizers.video.motion import DEFAULT_QUALITY
from ...container.chunks import LAYR
from ...container.fields import FIT, VIDEO
from ...container.read import TokFile, read_tok
from ...decode import format_and_model, video_frames
from ...errors import MediaError, UsageError
from ...media.read_video import Pixels
from ...models import Model, load_model, pick_device
from ...registry import FITTED
from ...settings import Setting
from ...video.decode import frames_of_codes
from ...video.segments import Codes, read_segment, segment_payload, video_tokenizer
from ..clips import Photo, Video
from ..contender import Codec, Coded, Spec, middle
from ..image.ours import PhotoCoder, prepare
from ..ours import Ours, load_ours, rates

QUALITIES = (0.0, 10.0, 20.0, 35.0, 50.0)
VIDEO_QUALITIES = (5.0, 15.0, 25.0, 35.0, 45.0, 60.0, 75.0)  # of models for videos whose rate is a quality


def frames_of(data: bytes, device: str, model: str | None = None) -> list[Pixels]:
    """Frames ``[H, W, 3]`` uint8 of a file. model: folder or name to take the weights from."""
    return [pixels for _, pixels in video_frames(read_tok(data), model=model, device=device)]


class VideoCoder(Ours):
    """A model for videos at levels and rates."""

    def decode(self, coded: Coded, variant: str = "") -> list[Pixels]:
        return frames_of(coded.files[0], self.device, self.model)

    def spec(self) -> Spec:
        """All levels, or the middle of the qualities: a rate may be below any file."""
        tokenizer = load_model(self.model, self.device).tokenizer
        arguments = {"model": self.model, "device": self.device, "effort": self.effort}
        setting = Setting("levels", len(tokenizer.codebook_sizes))
        if tokenizer.rate_control == "quality":
            setting = Setting("quality", DEFAULT_QUALITY)
        return Spec("video.ours:prepare_video", arguments, setting)


def prepare_video(
    model: str, device: str, levels: Sequence[int] = (), kbps: Sequence[float] = (), effort: int = 0,
    qualities: Sequence[float] = (),
) -> VideoCoder:  # fmt: skip
    """Load a model for videos, to be run at so many ``levels`` and at rates, or at qualities and rates; at every number
    of levels, or at some qualities, if nothing is said. Raises UsageError for a model of something else, and for what
    there cannot be of levels, qualities, rates and effort."""
    model, device, tokenizer = load_ours(model, "video", device, effort)
    if tokenizer.rate_control == "quality":
        if levels:
            raise UsageError(f"{tokenizer.name} has no levels")
        if not all(0 <= quality <= 100 for quality in qualities):
            raise UsageError(f"qualities are 0 to 100, got {', '.join(f'{quality:g}' for quality in qualities)}")
        at = qualities or (() if kbps else VIDEO_QUALITIES)
        own = [Setting("quality", quality) for quality in sorted(set(at))] + rates(kbps)
        return VideoCoder(model, tokenizer.name, tuple(own), device, effort)
    most = len(tokenizer.codebook_sizes)
    if not all(1 <= n <= most for n in levels):
        raise UsageError(f"levels of {tokenizer.name} are 1 to {most}")
    chosen = sorted(set(levels)) if levels or kbps else range(1, most + 1)
    settings = [Setting("levels", n) for n in chosen] + rates(kbps)
    return VideoCoder(model, tokenizer.name, tuple(settings), device, effort)


@dataclass(frozen=True)
class FileCoder(Codec):
    """Files that were made before, one a clip: of `video-fit`, say, which took its minutes on a GPU."""

    name: str
    files: Mapping[str, bytes]  # by the names of the clips
    device: str
    kind = "ours"
    settings = (Setting("file", 0),)
    described = ".tok files that were there"

    def encode(self, clip: Video, setting: Setting) -> Coded:
        """The file of a clip. Raises MediaError if it is of another one."""
        data = self.files[clip.name]
        header = read_tok(data).video
        if (header.frames, header.height, header.width) != clip.frames.shape[:3]:
            raise MediaError(f"{clip.name}: its .tok file is of {header.frames} frames of another video")
        return Coded.of(data)

    def decode(self, coded: Coded, variant: str = "") -> list[Pixels]:
        return frames_of(coded.files[0], self.device)

    def spec(self) -> None:
        """Nothing to measure: no encoder is run."""


def prepare_files(folder: Path, clips: Sequence[Path], device: str) -> FileCoder:
    """Read ``clip.tok`` for each ``clip.mp4``. Raises UsageError where none is or it holds no video; ModelError."""
    device = pick_device(device)
    files, names = {}, set()
    for clip in clips:
        path = folder / f"{clip.stem}.tok"
        try:
            files[clip.name] = path.read_bytes()
        except OSError as error:
            raise UsageError(f"no file for {clip.name}: cannot read {path}: {error.strerror}") from error
        tok = read_tok(files[clip.name])
        if tok.header.modality != VIDEO:
            raise UsageError(f"{path} is not a file of a video")
        format_and_model(tok, None, device)
        names.add(FITTED if tok.header.prior == FIT else tok.header.model)
    return FileCoder(names.pop() if len(names) == 1 else "files", files, device)


@dataclass(frozen=True)
class FrameCoder(Codec):
    """A model for pictures, which knows nothing of the frame before: its file of every ``every``-th frame."""

    coder: PhotoCoder
    every: int
    kind = "frames"

    @property
    def name(self) -> str:
        return self.coder.name

    @property
    def settings(self) -> tuple[Setting, ...]:
        return self.coder.settings

    @property
    def described(self) -> str:
        coded = "every frame" if self.every == 1 else f"one of {self.every} frames, their bytes scaled to all of them"
        return f"a .tok file for {coded}; qualities {', '.join(f'{s.value:g}' for s in self.settings)}"

    def encode(self, clip: Video, setting: Setting) -> Coded:
        """A file for each coded frame; what counts is what all frames would take."""
        coded = clip.frames[:: self.every]
        files = [self.coder.encode(Photo(clip.name, pixels), setting).files[0] for pixels in coded]
        return Coded(tuple(files), round(sum(map(len, files)) * len(clip.frames) / len(files)))

    def decode(self, coded: Coded, variant: str = "") -> list[Pixels]:
        return [self.coder.decode(Coded.of(data), self.coder.variants[0]) for data in coded.files]

    def spec(self) -> Spec:
        arguments = {"model": self.coder.model, "device": self.coder.device, "every": self.every}
        return Spec("video.ours:prepare_frames", arguments, middle(self.settings))


def prepare_frames(model: str, device: str, every: int, qualities: Sequence[float] = QUALITIES) -> FrameCoder:
    """Load a model for pictures whose rate control is a quality. Raises UsageError for another one."""
    return FrameCoder(prepare(model, device, qualities, strict=True), every)


# --------------------------------------------------------------------------------------------------------- codes


def read_codes(tok: TokFile, model: Model) -> list[Codes | None]:
    """Codes ``[k, t, h, w]`` of all segments of a file; None where one cannot be read."""
    return [read_segment(tok, model, segment) for segment in range(tok.video.n_segments)]


def same_payloads(tok: TokFile, codes: Sequence[Codes], model: Model) -> bool:
    """Whether a model makes the payloads of a file of the codes of its segments."""
    made = map(partial(segment_payload, model=model), codes)
    return all(payload == tok.payload(LAYR, 0, segment) for segment, payload in enumerate(made))


def paint(codes: Codes, model: Model, height: int, width: int) -> Pixels:
    """Frames ``[n, H, W, 3]`` of a segment's codes ``[k, t, h, w]``, with those that fill its last group."""
    return np.stack(list(frames_of_codes(codes, video_tokenizer(model).decoder(height, width))))


def clip_codes(frames: Sequence[Pixels], model: Model, levels: int) -> Codes:
    """Codes ``[levels, t, h, w]`` of frames as one clip, which a file's encoder gets one by one."""
    x = torch.from_numpy(np.stack(frames))  # [n, H, W, 3]
    codes: Codes = video_tokenizer(model).encode(x.permute(3, 0, 1, 2)[None], levels).codes[0].cpu().numpy()
    return codes
