"""A video codec of a few kilobytes with random weights, and clips for it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokodec.codec.bench.devices import decompressed
from tokodec.codec.container.chunks import LAYR
from tokodec.codec.container.read import read_tok
from tokodec.codec.decode import video_frames
from tokodec.codec.models import load_model
from tokodec.entropy.hyperprior.export import export_hyperprior
from tokodec.entropy.hyperprior.net import HyperNet, HyperShape
from tokodec.entropy.hyperprior.prior import HyperPrior
from tokodec.tokenizers.image.photo import ImagePhoto
from tokodec.tokenizers.video.motion import KINDS, MotionPrior, VideoMotion
from tokodec.tokenizers.video.motion_nets import VideoMotionConfig
from tokodec.tokenizers.video.motion_records import read_records

SMALL = VideoMotionConfig(
    still="photo", channels=(8, 16), analysis_blocks=(1, 1), synthesis_blocks=(1, 1), latents=10, detail=4, hyper=6,
    hyper_width=8, features=4, context=(8, 8), context_blocks=1, motion=18, motion_hyper=4, motion_width=8,
)  # fmt: skip


@contextmanager
def doubtful(part: float) -> Iterator[None]:
    """Within it, frames whose references leave more than this part of them are tried alone: `inf` for none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokodec.tokenizers.video.motion.DOUBTFUL", part)
        yield


def shape(hyper: int, slices: tuple[int, ...]) -> HyperShape:
    """Of a small entropy model."""
    return HyperShape(hyper, slices, middle=(16, 16), features=12, width=16, hidden=16, blocks=1, head=16, kinds=KINDS)


def awake(model: torch.nn.Module, seed: int = 0) -> None:
    """Random numbers in place of the zeros that many layers begin with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.05)


def tiny_motion(folder: Path, photo: Path, name: str = "tiny-motion") -> Path:
    """Write a model into ``folder / name``, beside a copy of its model of still frames."""
    if not (folder / "photo").is_dir():
        shutil.copytree(photo, folder / "photo")
    torch.manual_seed(1)
    model = VideoMotion(SMALL, name)
    awake(model.nets)
    nets = [HyperNet(shape(6, (3, 3, 4))), HyperNet(shape(4, (4, 14)))]
    priors = [export_hyperprior(net) for net in nets]
    model.set_parts(ImagePhoto.from_pretrained(folder / "photo"), HyperPrior(priors[0]), MotionPrior(priors[1]))
    model.save_pretrained(folder / name)
    return folder / name


def clip(frames: int, height: int, width: int, speed: int = 2) -> np.ndarray:
    """``[T, H, W, 3]`` uint8: smooth waves that move to the left, before others that rest."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    found = []
    for t in range(frames):
        back = np.sin((x + speed * t) / 5) + np.cos(y / 7)
        front = np.sin(x / 9) * np.cos(y / 6)
        inside = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(height, width) / 4) ** 2
        plane = np.where(inside, front, back / 2)
        found.append(np.stack([127 + 100 * plane, 127 + 60 * plane, 140 - 80 * plane], 2))
    return np.clip(np.stack(found), 0, 255).astype(np.uint8)


def decoded_motion(data: bytes) -> dict[str, Any]:
    """What a file of one segment is: the weights that made it, qualities of its records, codes, and some pixels."""
    tok = read_tok(data)
    model = load_model(tok.video.model, "cpu").tokenizer
    assert isinstance(model, VideoMotion)
    with decompressed(model) as codes:
        frames = [pixels for _, pixels in video_frames(tok, device="cpu")]
    assert tok.problems == []
    digest = hashlib.sha256(b"".join(part.astype("<i4").tobytes() for part in codes))
    size, alone = (tok.video.height, tok.video.width), [False] * (len(frames) - 1)
    layers = [tok.payload(LAYR, layer, 0) or b"" for layer in (0, 1)]
    records = [*read_records(layers[0][1:], [True], size), *read_records(layers[1][1:], alone, size)]
    return {
        "weights": tok.video.weights_hash,
        "codes": digest.hexdigest()[:32],
        "n_codes": sum(part.size for part in codes),
        "step": layers[1][0],
        "qualities": [record.quality for record in records],
        "size": [len(frames), *frames[0].shape],
        "seen": [pixels[::20, ::24].mean(2).round().astype(int).ravel().tolist() for pixels in frames],
    }
