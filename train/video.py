"""Train, evaluate and export a video tokenizer in one command.

    python -m tokodec.train.video --recipe video-grid --data CLIPS --stills PICTURES --test TEST --minutes 25 --out OUT

CLIPS are videos, or packed ones (:mod:`.data.video`) where PyAV is missing. The nets over space and the codebooks start
as those of a picture tokenizer, the layers over time as the identity. Every crop keeps a random number of levels. The
loss is a power of each crop's squared error, so that wild clips do not outweigh calm ones. In the last part of the time
the nets compute with weights rounded as a release rounds them. The budget is wall-clock minutes. The best weights so
far (by the held-out clips) lie in OUT at any time; ``--resume FOLDER`` starts from released weights. The last thing
printed is a table on the test clips, whose bits are those of the static prior.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..tokenizers.api import Tokenizer
from ..tokenizers.folders import find_model
from ..tokenizers.image.grid import ImageGrid
from ..tokenizers.image.layers import STRIDE
from ..tokenizers.quantize.vq import kmeans
from ..tokenizers.video.grid import GROUP, VideoGrid, VideoGridConfig
from .data.images import CropStore, list_images, read_rgb
from .data.video import ClipStore, Stills, list_clips, read_clip
from .loop import call_as_released, optimizers_of, psnr, run_script
from .rate import ROUNDS, lambdas, no_penalties, set_penalties
from .recipe import Optim, Rounding
from .trainer import BaseTrainer, Phase, Row, static_prior, trainer_arguments

LONGEST = 33  # frames of a clip that an evaluation looks at: a group of pictures, which begins anew
MIDDLE, FIRST = 128, 17  # edge in pixels, and frames of a clip, that are looked at without a GPU
ROWS = 32  # latents that new codebooks start from, for each codeword; a quarter of it without a GPU
DARK = 1e-4  # added to a squared error before its power


@dataclass(frozen=True)
class Data:
    """Crops of space and time."""

    shorter: int  # pixels of the shorter side of a clip, at most
    frames: int  # of a crop: the first one and whole groups
    crop: int  # edge of a crop in pixels
    speeds: tuple[int, ...]  # of a crop, in frames of its clip
    backwards: float  # share of crops that are played backwards
    stills: float  # share of crops that are still pictures under a moving camera
    whole: float  # share of crops that keep all levels, the others a random number of them
    holdout_every: int

    def __post_init__(self) -> None:
        if self.frames % GROUP != 1 or self.crop % STRIDE:
            raise ValueError(f"a crop has 1 + {GROUP} n frames, and an edge of whole cells of {STRIDE} pixels")


@dataclass(frozen=True)
class Loss:
    """Weights of its parts."""

    pixel: float
    power: float  # of a crop's mean squared error
    commitment: float
    codebook: float
    auxiliary: float = 1.0  # what a quantizer asks for beside these


@dataclass(frozen=True)
class Export:
    """How a released model chooses codes."""

    rate_weight: float  # of the bits of a code in the search, times lambda
    hold: float  # by this part of lambda * the bits of a code, what a cell had in the group before may be worse


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; ``train/recipes/video-grid.yaml`` says what they mean."""

    name: str
    model: VideoGridConfig
    start: str  # a model whose nets and codebooks are taken over, or random
    data: Data
    loss: Loss
    optim: Optim
    rounding: Rounding
    export: Export
    cpu: tuple[str, ...] = ()  # changes where there is no GPU


class Autoencoder(nn.Module):
    """What is trained, as one module."""

    def __init__(self, model: VideoGrid) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``x [B, 3, T, H, W]`` in [0, 1], levels ``[B]`` to (x_hat, commitment, codebook and auxiliary loss)."""
        z_e = self.model.analysis((2 * x - 1).permute(0, 2, 3, 4, 1).contiguous()).permute(0, 4, 1, 2, 3)
        out = self.model.quantizer(z_e, n_codes=kept)
        x_hat = self.model.synthesis(out.z_q.permute(0, 2, 3, 4, 1).contiguous()).permute(0, 4, 1, 2, 3)
        return (x_hat.float() + 1) / 2, out.commitment_loss, out.codebook_loss, out.auxiliary_loss


def read_clips(run: BaseTrainer, data: Any, layers: float = 0.0) -> ClipStore:
    """Read the clips of ``--data`` and the pictures of ``--stills``; the run gets what is held out.

    Args: data: settings as in :class:`Data`.  layers: see :class:`~.data.video.Stills`.
    """
    stills = run.args.stills if data.stills else []
    part = 0.75 if stills else 1.0  # of the memory; pictures have the rest
    longest = int(part * run.memory / 8)
    run.test_on(list_clips, read_clip)
    reading = run.read(list_clips(run.args.data), lambda path: read_clip(path, data.shorter, longest), part)
    run.media, run.held = reading.split(data.holdout_every)
    moved, text = None, ""
    if stills:
        own = run.read(list_images(stills), read_rgb, 1 - part)
        stream = run.stream(own, 0, 1 - part)
        pictures = CropStore(list(own.media.values()), data.crop, run.device, seed=run.seed + 1, stream=stream)
        moved, text = Stills(pictures, data.stills, layers), f" and {len(pictures)} pictures"
    store = ClipStore(
        run.media, data.frames, data.crop, run.device, moved, speeds=data.speeds, backwards=data.backwards,
        seed=run.seed, stream=run.stream(reading, data.holdout_every, part),
    )  # fmt: skip
    frames = sum(map(len, run.media))
    run.log(
        f"{len(store)} clips{text} to train on, {frames} frames, {len(run.held)} held out, on {run.device}"
    )
    return store


class Trainer(BaseTrainer):
    """One run of a recipe; see the module's text."""

    recipe_class = Recipe
    passes = (2, 2 + ROUNDS)
    quick = 6
    what = "clips"
    columns: ClassVar[dict[str, str]] = {
        "bpp": "{:.5f} bpp", "psnr": "{:.3f} dB", "psnr_first": "first frame {:.3f} dB",
        "psnr_worst": "worst frame {:.3f} dB",
    }  # fmt: skip

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        data = self.recipe.data
        self.store = read_clips(self, data)
        self.media, self.held = self.middles(self.media, self.held, edge=MIDDLE, frames=FIRST)
        model = VideoGrid(self.recipe.model, self.recipe.name)
        new = range(len(model.codebook_sizes))  # codebooks that nobody has trained
        if args.resume:
            model, new = self.resumed(model), range(0)
        elif self.recipe.start != "random":
            new = start_from(model, self.recipe.start)
        no_penalties(model.codebooks)  # training and its evaluations search without regard to bits
        self.model = model.to(self.device)
        self.net = Autoencoder(self.model)
        self.graphs = not model.quantizer.moves
        self.log(f"model {sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M")
        self.own_seeds()
        if new:
            self.start_codebooks(new)
        self.rounding = Phase("weights are rounded", 1 - self.recipe.rounding.share)
        self.phases = [self.rounding]

    @torch.no_grad()
    def start_codebooks(self, new: range) -> None:
        """New codebooks begin as the k-means of what the levels before them leave over.

        Latents of a net that is new too are small and alike: far from random codewords, all would get the same one.
        """
        wanted = (ROWS if self.device.type == "cuda" else ROWS // 4) * max(self.model.codebook_sizes)
        parts: list[Tensor] = []
        while sum(map(len, parts)) < wanted:
            parts.append(self.model.latents(self.store.batch(self.optim["batch"])).movedim(1, -1).flatten(0, 3))
        rows = torch.cat(parts).float()
        rows = rows[torch.randperm(len(rows), device=rows.device)[:wanted]]
        self.model.quantizer.start(rows, lambda rows, n: broadcast(kmeans(rows, n)), new.start)
        self.log(f"codebooks {new.start + 1} to {new.stop} start as k-means, where they are tables")

    def optimizers(self) -> list[torch.optim.Optimizer]:
        def in_a_block(name: str, p: nn.Parameter) -> bool:
            return p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16 and not name.startswith("quantizer.")

        return optimizers_of(self.model.named_parameters(), self.optim, in_a_block)

    def inputs(self) -> tuple[Tensor, ...]:
        batch = self.optim["batch"]
        return self.store.batch(batch), self.kept(batch)

    def kept(self, batch: int) -> Tensor:
        """Levels that crops keep, ``[batch]``: some all, the others any number alike."""
        most = len(self.model.codebook_sizes)
        rand = torch.rand(2, batch, device=self.device, generator=self.generator)
        drawn = (1 + most * rand[0]).long().clamp(1, most)
        return torch.where(rand[1] < self.recipe.data.whole, most, drawn)

    def loss(self, x: Tensor, kept: Tensor, rounding: bool) -> Tensor:
        conf = self.recipe.loss
        with self.autocast():
            call = call_as_released(self.net, self.model, "model", (x, kept)) if rounding else self.net(x, kept)
            x_hat, commitment, codebook, auxiliary = call
        square = (x - x_hat).square().mean((1, 2, 3, 4))
        total = conf.pixel * (square + DARK).pow(conf.power).mean()
        return total + conf.commitment * commitment + conf.codebook * codebook + conf.auxiliary * auxiliary

    def taken(self, medium: Tensor) -> Tensor:
        """The first group of pictures, ``[1, 3, T, H, W]`` in [0, 1]."""
        return next(self.views(medium)).float() / 255

    def views(self, medium: Tensor) -> Iterator[Tensor]:
        """The groups of pictures of a clip."""
        for part in medium.split(LONGEST):
            yield part.to(self.device).permute(3, 0, 1, 2)[None]

    def rows(self, model: VideoGrid, medium: Tensor, prior: Any = None) -> Iterator[Row]:
        """PSNR in dB of the first group of pictures as the mean over frames, of the first frame, and of the worst one.

        With a prior its bits a pixel of a frame.
        """
        x = medium[:LONGEST].to(model.device).permute(3, 0, 1, 2)[None]  # [1, 3, T, H, W] uint8
        tokens = model.encode(x)
        bits = None if prior is None else prior.bits(tokens.codes[0].cpu().numpy()).cumsum()
        for k in range(len(model.codebook_sizes)):
            pairs = zip(x.unbind(2), model.decode(tokens.levels(k + 1)).unbind(2), strict=True)
            values = [psnr(a.float() / 255, b) for a, b in pairs]
            row = {"psnr": sum(values) / len(values), "psnr_first": values[0], "psnr_worst": min(values)}
            rate = {} if bits is None else {"bpp": float(bits[k]) / math.prod(tokens.spec.size)}
            yield {"levels": k + 1, **row, **rate}

    def finish(self, model: VideoGrid, some: Sequence[Tensor]) -> tuple[VideoGrid, dict[str, Any]]:
        """Let the search count bits; what codes that are chosen by squared error alone do is reported, too.

        A cell keeps the code of the group before where another is better by no more than ``export.hold * lambda`` times
        the bits of its codebook.
        """
        conf = self.recipe.export
        if not model.codebooks:  # nothing is searched, so no search can count bits
            return model, {}
        no_penalties(model.codebooks)
        model.hold.zero_()
        plain = static_prior(self.count(model, some))
        results = {"holdout_without_rate_weight": self.measure(model, self.tested, plain)}
        slopes = lambdas(model.codebooks, latents_of(model, some))
        bits = [math.log2(n) for n in model.codebook_sizes]
        model.hold = model.hold.new_tensor([conf.hold * s * b for s, b in zip(slopes, bits, strict=True)])
        set_penalties(model.codebooks, conf.rate_weight, slopes, lambda: self.count(model, some))
        model.cpu().save_pretrained(self.out)
        self.log(f"held-out clips without, then with a rate weight of {conf.rate_weight:g}; test clips with it")
        return VideoGrid.from_pretrained(self.out).to(self.device), results


def start_from(model: VideoGrid, name: str) -> range:
    """Take over the nets and codebooks of another model; returns the codebooks that are new.

    Raises: ValueError if its nets cannot be a start.
    """
    other = Tokenizer.from_pretrained(find_model(name))
    if not isinstance(other, (ImageGrid, VideoGrid)):
        raise ValueError(f"{name} is no model whose nets could be a start")
    model.start_from(other)
    same = [mine.codebook.shape == b.codebook.shape for mine, b in zip(model.codebooks, other.codebooks, strict=False)]
    return range((*same, False).index(False), len(model.codebook_sizes))


@torch.no_grad()
def latents_of(model: VideoGrid, clips: Sequence[Tensor]) -> Iterator[Tensor]:
    """Latents ``[1, D, t, h, w]`` of the whole cells of the clips' first groups of pictures."""
    for clip in clips:
        frames = 1 + (min(len(clip), LONGEST) - 1) // GROUP * GROUP
        height, width = (n // STRIDE * STRIDE for n in clip.shape[1:3])
        x = clip[:frames, :height, :width].to(model.device).permute(3, 0, 1, 2)[None].float() / 255
        yield model.latents(x)


def main() -> None:
    parser = trainer_arguments(__doc__, "video-grid", "clips")
    parser.add_argument("--stills", nargs="*", default=[], help="folders with pictures that a camera moves over")
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
