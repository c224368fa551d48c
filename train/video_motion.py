"""Train, evaluate and export the video codec in one command.

    python -m tokodec.train.video_motion --data CLIPS --stills PICTURES --test TEST --minutes 30 --out OUT
    torchrun --nproc_per_node 2 -m tokodec.train.video_motion ...               # two GPUs

CLIPS are videos, or packed ones (:mod:`.data.video`) where PyAV is missing; PICTURES are what cameras move over, with
things before them. The nets start as those of a photo codec (`start` in the recipe), on what references leave over.
How clips are coded in a step is in :mod:`.motion_codec`. The loss is rate + lambda(quality) * distortion of every
frame; each clip has a quality of its own. The nets compute with weights rounded to int8 as a release rounds them; in
the last part of the time the entropy models round as their integers will, too. The best weights so far (by held-out
clips) lie in OUT at any time, as the model that users load and as ``checkpoint.safetensors``, the same in float32;
``--resume FOLDER`` starts from either. The tables of the coder are counted on training clips at the end. The last thing
printed is a table on the test clips, whose bits are those of whole frames through the coder.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call

from ..entropy.hyperprior.export import export_hyperprior
from ..entropy.hyperprior.net import HyperNet, HyperShape
from ..entropy.hyperprior.prior import HyperPrior
from ..tokenizers.folders import find_model
from ..tokenizers.image.layers import channels_last
from ..tokenizers.image.photo import ImagePhoto, rate_weight
from ..tokenizers.image.photo_nets import PhotoNets
from ..tokenizers.variants import find_base
from ..tokenizers.video.hierarchy import between
from ..tokenizers.video.motion import KINDS, MotionPrior, Near, VideoMotion, still_quality
from ..tokenizers.video.motion_nets import MotionNets, Reference, VideoMotionConfig
from .loop import as_released, optimizers_of, psnr, run_script
from .motion_codec import CountedMotion, CountedPrior, MotionCodec, Part, Still, Streams
from .photo import CELL, CHECKPOINT, CodeCounts, PhotoCodec, load_checkpoint
from .photo_start import grow_entropy, grow_nets, turn_hats
from .recipe import Optim, Rounding
from .trainer import BaseTrainer, Phase, Row, evaluating, trainer_arguments
from .video import read_clips

QUALITIES = (0.15, 0.4, 0.7)  # that evaluations on the way look at
TEST_QUALITIES = (10, 30, 50, 70)
GROUPS = 2  # of a clip that an evaluation looks at
MIDDLE = 256  # pixels along the edges of its middle, that evaluations on the way look at
COUNTED_QUALITIES = (15, 45, 75)


@dataclass(frozen=True)
class Entropy:
    """Sizes of an entropy model, see :class:`~tokodec.entropy.hyperprior.net.HyperShape`."""

    slices: tuple[int, ...]
    middle: tuple[int, int]
    features: int
    width: int
    hidden: int
    blocks: int
    head: int
    fine: int = 0
    state: int = 0

    def shape(self, hyper: int) -> HyperShape:
        return HyperShape(hyper=hyper, kinds=KINDS, **asdict(self))


@dataclass(frozen=True)
class Data:
    """Crops of space and time."""

    shorter: int  # pixels of the shorter side of a clip, at most
    frames: int  # of a crop
    crop: int  # edge of a crop in pixels
    group: int  # frames from one that is coded first to the next
    chains: float  # share of crops that are coded frame after frame
    speeds: tuple[int, ...]  # of a crop, in frames of its clip
    backwards: float  # share of crops that are played backwards
    stills: float  # share of crops that are pictures under a moving camera
    layers: float  # share of those in which things move before others
    holdout_every: int

    def __post_init__(self) -> None:
        if self.group & (self.group - 1) or self.group < 2 or self.frames <= self.group or self.crop % CELL:
            raise ValueError(
                f"a group is a power of two, a crop has more frames than it, and an edge of whole {CELL} pixels"
            )


@dataclass(frozen=True)
class Rate:
    """Weights of the loss."""

    balance: float  # costs are weighted by lambda^-balance, so that all rates count alike
    outlier: float  # balanced costs above count as their logarithm
    seen: float  # weight of the distortion of what the references make expect
    drop: float  # at most so much of 0..1 falls the quality with each level of the hierarchy


@dataclass(frozen=True)
class Export:
    """What a release does with what was trained."""

    skip: int  # codes of scales up to this number are zero and take no bits, as nearly all are


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; ``train/recipes/video-motion.yaml`` says what they mean."""

    name: str
    model: VideoMotionConfig
    entropy: Entropy
    motion: Entropy
    start: str  # a photo codec that the nets start as, or random
    data: Data
    rate: Rate
    optim: Optim
    new: float  # learning rate of what no photo codec has, times that of the others
    rounding: Rounding
    export: Export
    cpu: tuple[str, ...] = ()  # changes where there is no GPU


class Trainer(BaseTrainer):
    """One run of a recipe; see the module's text."""

    recipe_class = Recipe
    quick = 6
    what, unit = "clips", "crops"
    columns: ClassVar[dict[str, str]] = {"bpp": "{:.4f} bpp", "psnr": "{:.3f} dB", "psnr_worst": "worst {:.3f} dB"}
    brief: ClassVar[tuple[str, ...]] = ("bpp", "psnr")

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        data = self.recipe.data
        self.store = read_clips(self, data, data.layers)
        self.still_model = ImagePhoto.from_pretrained(find_base(self.out, self.recipe.model.still))
        self.codec = channels_last(self.start().to(self.device))
        self.net = self.codec
        self.model = self.released().to(self.device)  # of the weights as they were: for the export's time
        self.still = Still(photo_codec(copy.deepcopy(self.still_model)).to(self.device), args.precision == "bf16")
        sizes = {name: sum(p.numel() for p in own.parameters()) for name, own in self.codec.named_children()}
        self.log(" ".join(f"{name} {n / 1e6:.2f} M" for name, n in sizes.items()))
        self.own_seeds()
        batch = self.optim["batch"]
        chains = min(batch, round(batch * data.chains))
        weights = self.recipe.model.rate_weights, self.still_model.config.rate_weights
        self.streams = Streams(
            self.store, self.still, (batch - chains, chains), data.group, weights, drop=self.recipe.rate.drop,
            seed=self.seed,
        )  # fmt: skip
        self.state = self.nothing(batch, data.crop, data.crop)
        self.integers = Phase("the entropy models round", 1 - self.recipe.rounding.share)
        self.phases = [self.integers]

    def nothing(self, batch: int, height: int, width: int) -> Reference:
        """What clips that have not begun leave."""
        x = torch.zeros(batch, 3, height, width, device=self.device)
        zeros = x.new_zeros(batch, self.recipe.model.features, height // 8, width // 8)
        return Reference(x, zeros, zeros[:, :2].clone(), zeros[:, :1, :1, :1].clone())

    # ---- start and release

    def start(self) -> MotionCodec:
        """What training begins with."""
        recipe, resume = self.recipe, self.args.resume
        codec = codec_of(recipe)
        if resume and (Path(resume) / CHECKPOINT).is_file():
            load_checkpoint(codec, resume)
        elif resume:
            model = VideoMotion.from_pretrained(find_model(resume))
            if model.config != recipe.model:
                raise ValueError(f"{resume} has other sizes than the recipe")
            codec.nets.load_state_dict(model.nets.state_dict())
            for net, prior in zip((codec.entropy, codec.motion), model.priors, strict=True):
                net.load_export(prior.arrays())
        elif recipe.start != "random":
            start_from(codec, ImagePhoto.from_pretrained(find_model(recipe.start)))
        return codec

    def released(self, counts: Sequence[CodeCounts | None] = (None, None)) -> VideoMotion:
        """The model that users load, on the CPU, from what is trained."""
        model = VideoMotion(self.recipe.model, self.recipe.name)
        model.nets.load_state_dict(self.codec.nets.state_dict())
        priors = []
        for net, count in zip((self.codec.entropy, self.codec.motion), counts, strict=True):
            of_z, of_y = (None, None) if count is None else (count.of_z, count.of_y)
            priors.append(export_hyperprior(net, of_z, of_y, self.recipe.export.skip))
        model.set_parts(copy.deepcopy(self.still_model), HyperPrior(priors[0]), MotionPrior(priors[1]))
        return model.eval()

    def save(self) -> None:
        """Write the weights as they are, with tables made of the densities of training."""
        state = {k: v.detach().float().cpu().contiguous() for k, v in self.codec.state_dict().items()}
        save_file(state, str(self.out / "beside.tmp"))
        (self.out / "beside.tmp").replace(self.out / CHECKPOINT)
        self.released().save_pretrained(self.out)

    # ---- steps

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon is for the matrices between first and last layers; what no photo codec has goes faster."""
        photo = {f"nets.{name}" for name, _ in PhotoNets(self.recipe.model.photo).named_parameters()}

        def between_ends(name: str, p: nn.Parameter) -> bool:
            wide = p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16
            return wide and "points" not in name and "density" not in name

        found = []
        for is_new, factor in ((False, 1.0), (True, self.recipe.new)):
            named = [
                (name, p)
                for name, p in self.codec.named_parameters()
                if is_new != (name in photo or name.startswith("entropy."))
            ]
            found += optimizers_of(named, self.optim | {"lr": factor * self.optim["lr"]}, between_ends)
        return found

    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(self.streams.next())

    def own_parts(self) -> dict[str, Any]:
        return super().own_parts() | {"streams": self.streams, "under way": self.state}

    def code(self, part: Part, held: Reference, rounding: bool) -> Any:
        """Passes and what they leave, of weights as a release rounds them."""
        prefixes, largest = VideoMotion.int8_weights, VideoMotion.int8_largest
        weights = as_released(self.codec, prefixes, largest)
        with self.autocast():
            return functional_call(self.codec, weights, (part, held, rounding))

    def loss(self, *inputs: Any) -> Tensor:
        """Rate + lambda * distortion, such that all rates count alike. What the clips leave is kept for the next."""
        *part, rounding = inputs
        conf, weights = self.recipe.rate, self.recipe.model.rate_weights
        passes, left = self.code(Part(*part), self.state, rounding)
        middle, costs = math.sqrt(weights[0] * weights[-1]), []
        for done in passes:
            weight = rate_weight(done.quality, weights)
            errors = [255**2 * (done.x - x).square().mean((1, 2, 3)) for x in (done.x_hat, done.x_bar)]
            bits = (done.y_bits + done.m_bits) / done.x[0, 0].numel()
            cost = bits + weight * (errors[0] + conf.seen * errors[1])
            costs.append(cost * (weight / middle) ** -conf.balance)
        cost, most = torch.cat(costs), conf.outlier
        for mine, new in zip(self.state, left, strict=True):
            mine.copy_(new.detach())
        return torch.where(cost > most, most * (1 + torch.log(cost.clamp_min(most) / most)), cost).mean()

    # ---- measuring

    def rows(self, model: VideoMotion, medium: Tensor, prior: Any = None) -> Iterator[Row]:
        """Of the first groups of a clip: bits a pixel of all frames, PSNR in dB, mean and worst frame.

        Without a prior those that the training codec estimates, of the middle; else through the coder, of
        whole frames on a GPU.
        """
        frames, group = GROUPS * self.recipe.data.group, self.recipe.data.group
        if prior is None:
            with evaluating(self.codec):
                yield from self.estimated(middle(medium, frames))
        else:
            whole = self.device.type == "cuda"
            yield from coded_rows(model, medium[: 1 + frames] if whole else middle(medium, frames), group)

    def coded(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Frames ``x [T, 3, H, W]`` at the ``b`` QUALITIES by the training codec, those of a pass together.

        Yields ``[n, 1, 3, H, W]``, what comes back ``[n, b, 3, H, W]``, and bits ``[b]``.
        """
        (height, width), n, b = x.shape[2:], self.recipe.data.group, len(QUALITIES)
        quality = torch.tensor(QUALITIES, device=self.device)
        weights = self.recipe.model.rate_weights, self.still_model.config.rate_weights
        own = torch.from_numpy(still_quality(np.array(QUALITIES), *weights)).float().to(self.device)
        many = x[:1].expand(b, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        start, bits = self.still.coded(many, own)
        yield x[:1, None], start[None], bits
        state, begins = self.nothing(b, height, width), torch.ones(b, device=self.device)
        drop = torch.full((b,), self.recipe.rate.drop / 2, device=self.device)
        for at in range(0, len(x) - n, n):
            group = x[None, at + 1 : at + 1 + n].expand(b, -1, -1, -1, -1)
            part = Part(group, group[:0], start, begins, quality=quality, drop=drop)
            passes, state = self.code(part, state, self.integers.on)
            begins = torch.zeros_like(begins)
            for done in passes:
                frames, decoded = (own.unflatten(0, (-1, b)) for own in (done.x, done.x_hat.clamp(0, 1)))
                yield frames[:, :1], decoded, (done.y_bits + done.m_bits).view(-1, b).sum(0)

    def taken(self, medium: Tensor) -> Tensor:
        """Whole cells of frames ``[T, H, W, 3]``, as ``[T, 3, H, W]`` in [0, 1]."""
        height, width = (n // CELL * CELL for n in medium.shape[1:3])
        return medium[:, :height, :width].to(self.device).permute(0, 3, 1, 2).float() / 255

    def sample(self, medium: Tensor) -> tuple[Tensor, Tensor]:
        """A frame between the first one and that a group later, at the middle quality."""
        with evaluating(self.codec):
            *_, (frames, decoded, _) = self.coded(self.taken(middle(medium, self.recipe.data.group)))
        return frames[-1], decoded[-1, len(QUALITIES) // 2][None]

    def estimated(self, clip: Tensor) -> Iterator[Row]:
        x = self.taken(clip)
        parts = [((decoded - own).square().mean((2, 3, 4)), cost) for own, decoded, cost in self.coded(x)]
        squares, bits = torch.cat([own for own, _ in parts]), torch.stack([cost for _, cost in parts]).sum(0)
        bpp = bits / (len(squares) * x[0, 0].numel())
        costs = rate_weight(torch.tensor(QUALITIES, device=self.device), self.recipe.model.rate_weights)
        cost = (bpp + costs * 255**2 * squares.mean(0)).log()
        for i, q in enumerate(QUALITIES):
            levels = -10 * torch.log10(squares[:, i].clamp_min(1e-10))
            yield {
                "quality": round(100 * q), "bpp": float(bpp[i]), "psnr": float(levels.mean()),
                "psnr_worst": float(levels.min()), "log_cost": float(cost[i]),
            }  # fmt: skip

    def score(self, rows: list[Row]) -> float:
        return -sum(r["log_cost"] for r in rows) / len(rows)

    # ---- the end

    def count(self, model: VideoMotion, media: Sequence[Tensor]) -> list[Tensor]:
        """How often each value of y is coded, by scale, which is all that planning the export needs."""
        counts = count_codes(model, [middle(clip, self.recipe.data.group) for clip in media], self.recipe.data.group)
        return [torch.from_numpy(own) for own in counts[0].of_y]

    def load_best(self) -> VideoMotion:
        model: VideoMotion = super().load_best()
        self.codec.load_state_dict(load_file(str(self.out / CHECKPOINT)))
        return model

    def finish(self, model: VideoMotion, some: Sequence[Tensor]) -> tuple[VideoMotion, dict[str, Any]]:
        """Tables of the coder as codes of training clips are."""
        group = self.recipe.data.group
        counts = count_codes(model, [middle(clip, group) for clip in some], group)
        self.released(counts).save_pretrained(self.out)
        return VideoMotion.from_pretrained(self.out).to(self.device), {}

    def make_prior(self, model: VideoMotion, some: Sequence[Tensor]) -> tuple[Any, dict[str, Any]]:
        """They are parts of the model."""
        return model.entropy, {"codebook_usage": []}


def codec_of(recipe: Recipe) -> MotionCodec:
    """The untrained codec of a recipe. Raises ValueError for sizes without sense."""
    config = recipe.model
    nets, entropy = MotionNets(config), HyperNet(recipe.entropy.shape(config.hyper))
    motion = HyperNet(recipe.motion.shape(config.motion_hyper))
    wanted = (config.latents, config.motion)
    if (entropy.shape.latents, motion.shape.latents) != wanted:
        raise ValueError(f"slices of entropy and motion are of {wanted[0]} and {wanted[1]} channels in all")
    return MotionCodec(nets, entropy, motion)


def thinned(blocks: nn.Sequential, n: int) -> nn.Sequential:
    """As many of the blocks, evenly spaced, if there are more."""
    n = min(n, len(blocks))
    return nn.Sequential(*(blocks[math.ceil((i + 1) * len(blocks) / n) - 1] for i in range(n)))


def start_from(codec: MotionCodec, model: ImagePhoto) -> None:
    """Take over the nets and the entropy model of a photo codec, see :mod:`.photo_start`.

    Of more residual blocks some are taken, evenly spaced, the last one among them: without blocks 0 and 3 of 6 the
    synthesis of image-photo loses 2.5 dB, without the last two 5.5 (two pictures, qualities 30 and 60).
    """
    nets = copy.deepcopy(model.nets)
    for own, wanted in ((nets.analysis, codec.nets.analysis), (nets.synthesis, codec.nets.synthesis)):
        own.fine, own.coarse = thinned(own.fine, len(wanted.fine)), thinned(own.coarse, len(wanted.coarse))
    grow_nets(codec.nets, nets)
    codec.nets.oppose()
    small = HyperNet(HyperShape.of_export(model.entropy.arrays()))
    small.load_export(model.entropy.arrays())
    grow_entropy(codec.entropy, small)
    turn_hats(codec.entropy, codec.nets.config.rate_weights, model.config.rate_weights)


def photo_codec(model: ImagePhoto) -> PhotoCodec:
    """A released photo codec as its twin in training."""
    net = HyperNet(HyperShape.of_export(model.entropy.arrays()))
    net.load_export(model.entropy.arrays())
    return PhotoCodec(model.nets, net)


def middle(clip: Tensor, frames: int) -> Tensor:
    """The middle of the first frames of a clip ``[T, H, W, 3]``, one and so many more."""
    y, x = (max(0, n - MIDDLE) // 2 for n in clip.shape[1:3])
    return clip[: frames + 1, y : y + MIDDLE, x : x + MIDDLE]


def count_codes(model: VideoMotion, clips: Sequence[Tensor], group: int) -> tuple[CodeCounts, CodeCounts]:
    """The codes of y and of motion of clips, at some qualities."""
    before = model.priors
    counted = CountedPrior(before[0].arrays(), model.device), CountedMotion(before[1].arrays(), model.device)
    model.set_parts(model.still, *counted)
    try:
        for clip in clips:
            for quality in COUNTED_QUALITIES:
                for _ in coded(model, clip, group, 100 * quality):
                    pass
    finally:
        model.set_parts(model.still, *before)
    return counted[0].counts, counted[1].counts


def coded(model: VideoMotion, clip: Tensor, group: int, steps: int) -> Iterator[tuple[int, int, Tensor]]:
    """Frames of ``clip [T, H, W, 3]`` through the coder: number, bytes and pixels of each."""
    frames = clip.numpy()
    size = (frames.shape[1], frames.shape[2])

    def shown(reference: Reference) -> Tensor:
        return torch.from_numpy(model.pixels_of(reference, size))

    data, key = model.encode_alone(frames[0], steps)
    yield 0, len(data), shown(key)
    for at in range(0, len(frames) - 1, group):
        last = min(at + group, len(frames) - 1)
        data, following = model.encode_after(frames[last], steps, [Near(key, at - last)])
        yield last, len(data), shown(following)
        known = {at: key, last: following}
        for b in between(at, last):
            near = [Near(known[other], other - b.frame) for other in (b.earlier, b.later)]
            data, known[b.frame] = model.encode_after(frames[b.frame], steps, near)
            yield b.frame, len(data), shown(known[b.frame])
        key = following


def coded_rows(model: VideoMotion, clip: Tensor, group: int) -> Iterator[Row]:
    """What :meth:`Trainer.rows` says of a clip, through the coder."""
    for quality in TEST_QUALITIES:
        size, levels = 0, list[float]()
        for i, length, pixels in coded(model, clip, group, 100 * quality):
            size += length
            levels.append(psnr(clip[i].float() / 255, pixels.float() / 255))
        yield {
            "quality": quality, "bpp": 8 * size / clip[..., 0].numel(), "psnr": sum(levels) / len(levels),
            "psnr_worst": min(levels),
        }  # fmt: skip


def main() -> None:
    parser = trainer_arguments(__doc__, "video-motion", "clips")
    parser.add_argument("--stills", nargs="*", default=[], help="folders with pictures that a camera moves over")
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
