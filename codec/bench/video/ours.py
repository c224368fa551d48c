"""Our side of `codec bench video`: models for videos, files that were made before, and a model for pictures that is run
frame by frame."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...container.fields import FIT, VIDEO
from ...container.read import read_tok
from ...contract import check_effort
from ...encode import encode_file
from ...errors import MediaError, UsageError
from ...media.read_video import Pixels
from ...models import load_model, pick_device
from ...registry import FITTED
from ...video.decode import decode_frames
from ...video.fit.format import video_model
from ..image.ours import Coder, Setting, decode_ours, encode_ours, prepare
from ..videos import Coded, Video, VideoSetting, middle

QUALITIES = (0.0, 10.0, 20.0, 35.0, 50.0)


@dataclass(frozen=True)
class VideoCoder:
    """A model for videos whose rate dial is its levels, and a rate."""

    model: str  # name, folder or hub id
    name: str
    settings: tuple[VideoSetting, ...]
    device: str
    effort: int = 0
    kind = "ours"

    @property
    def described(self) -> str:
        effort = f", effort {self.effort}" if self.effort else ""
        return f".tok files without sound{effort}: {', '.join(setting.label for setting in self.settings)}"

    def encode(self, video: Video, setting: VideoSetting) -> Coded:
        """The whole way from a file of raw pixels to a .tok file. Raises RateError if our smallest file is larger."""
        source = io.BytesIO(video.as_file())
        if setting.dial == "levels":
            levels, kbps = int(setting.value), None
        else:
            levels, kbps = None, setting.value
        encoded = encode_file(
            source, model=self.model, levels=levels, kbps=kbps, device=self.device, effort=self.effort
        )
        return Coded((encoded.data,), len(video.frames))

    def decode(self, coded: Coded) -> Iterator[Pixels]:
        tok = read_tok(coded.files[0])
        for _, pixels in decode_frames(tok, load_model(self.model, self.device)):
            yield pixels

    def job(self) -> dict[str, Any]:
        levels = len(load_model(self.model, self.device).tokenizer.codebook_sizes)  # a rate may be below any file
        setting = ("levels", levels)
        named = {"kind": self.kind, "codec": self.name, "setting": setting, "device": self.device}
        return named | {"arguments": (self.model, self.device, (), (), self.effort)}


def prepare_video(
    model: str, device: str, levels: Sequence[int] = (), kbps: Sequence[float] = (), effort: int = 0
) -> VideoCoder:
    """Load a model for videos, to be run at so many ``levels`` and at rates; at every number of levels if neither is
    said. Raises UsageError for a model of something else, and for levels, rates and an effort that there cannot be."""
    check_effort(effort)
    device = pick_device(device)
    tokenizer = load_model(model, device).tokenizer
    if tokenizer.modality != "video":
        raise UsageError(f"{tokenizer.name} is not a model for videos")
    most = len(tokenizer.codebook_sizes)
    if not all(1 <= n <= most for n in levels):
        raise UsageError(f"levels of {tokenizer.name} are 1 to {most}")
    if not all(rate > 0 and math.isfinite(rate) for rate in kbps):
        raise UsageError("rates are numbers above 0, in kbit/s")
    chosen = sorted(set(levels)) if levels or kbps else range(1, most + 1)
    settings = [VideoSetting("levels", n) for n in chosen] + [VideoSetting("kbit/s", r) for r in sorted(set(kbps))]
    return VideoCoder(model, tokenizer.name, tuple(settings), device, effort)


@dataclass(frozen=True)
class FileCoder:
    """Files that were made before, one a clip: of `video-fit`, say, which took its minutes on a GPU."""

    name: str
    files: Mapping[str, bytes]  # by the names of the clips
    device: str
    kind = "ours"
    settings = (VideoSetting("file", 0),)

    @property
    def described(self) -> str:
        return ".tok files that were there"

    def encode(self, video: Video, setting: VideoSetting) -> Coded:
        """The file of a clip. Raises MediaError if it is of another one."""
        data = self.files[video.name]
        header = read_tok(data).video
        if (header.frames, header.height, header.width) != video.frames.shape[:3]:
            raise MediaError(f"{video.name}: its .tok file is of {header.frames} frames of another video")
        return Coded((data,), len(video.frames))

    def decode(self, coded: Coded) -> Iterator[Pixels]:
        tok = read_tok(coded.files[0])
        for _, pixels in decode_frames(tok, video_model(tok.video, None, self.device)):
            yield pixels

    def job(self) -> None:
        """Nothing to weigh: no encoder is run."""


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
        video_model(tok.video, None, device)
        names.add(FITTED if tok.header.prior == FIT else tok.header.model)
    return FileCoder(names.pop() if len(names) == 1 else "files", files, device)


@dataclass(frozen=True)
class FrameCoder:
    """A model for pictures, which knows nothing of the frame before: its file of every ``every``-th frame."""

    coder: Coder
    every: int
    kind = "frames"

    @property
    def name(self) -> str:
        return self.coder.name

    @property
    def settings(self) -> tuple[VideoSetting, ...]:
        return tuple(VideoSetting("quality", setting.value) for setting in self.coder.settings)

    @property
    def described(self) -> str:
        coded = "every frame" if self.every == 1 else f"one of {self.every} frames, their bytes scaled to all of them"
        return f"a .tok file for {coded}; qualities {', '.join(f'{s.value:g}' for s in self.coder.settings)}"

    def encode(self, video: Video, setting: VideoSetting) -> Coded:
        n = len(video.frames)
        at = Setting(quality=setting.value)
        files = (encode_ours(video.frames[i], self.coder, at)[0] for i in range(0, n, self.every))
        return Coded(tuple(files), n, self.every)

    def decode(self, coded: Coded) -> Iterator[Pixels]:
        for data in coded.files:
            yield decode_ours(data, self.coder, self.coder.synthesis[0])[0]

    def job(self) -> dict[str, Any]:
        setting = dataclasses.astuple(middle(self.settings))
        named = {"kind": self.kind, "codec": self.name, "setting": setting, "device": self.coder.device}
        return named | {"arguments": (self.coder.model, self.coder.device, self.every)}


def prepare_frames(model: str, device: str, every: int, qualities: Sequence[float] = QUALITIES) -> FrameCoder:
    """Load a model for pictures whose rate dial is a quality. Raises UsageError for another one."""
    return FrameCoder(prepare(model, device, qualities, strict=True), every)
