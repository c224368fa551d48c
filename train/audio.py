"""Train, evaluate and export an audio tokenizer in one command.

    python -m tokodec.train.audio --recipe audio-24k --data SOUNDS... --minutes 25 --out OUT

The nets start as a classical transform codec (:mod:`.audio_start`). Every crop keeps a random number of codebooks. The
first part of the time has spectral losses only; then discriminators of periods and of spectra join. The budget is
wall-clock minutes. The best weights so far (by the mel distance of the held-out sounds, and from the moment the
discriminators join, the last) lie in OUT at any time; ``--resume FOLDER`` starts from released weights (a recipe with
more levels adds them), and with the discriminators that lie beside them, if any. The last thing printed is a table on
the test sounds.

Nets compute in float32 (on a GPU with the ten bits of TF32): the eight bits of bfloat16 are noise over all frequencies
only 50 dB below the loudest one. ``--precision`` is that of the discriminators.
"""

from __future__ import annotations

import argparse
import functools
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from ..codec.metrics.hearing import hearing_distance
from ..codec.metrics.spectra import MEL_SCALES, mel_distance, si_sdr, stft_distance
from ..entropy.packed import together
from ..tokenizers.audio.grvq import FRAME, AudioGRVQ, AudioGRVQConfig
from ..tokenizers.audio.grvq import RATE as SAMPLE_RATE
from ..tokenizers.folders import find_model
from .audio_start import FRAMES, start_as_transform, start_from
from .data.audio import SoundStore, at_speeds, list_sounds, read_mono
from .graphed import GraphedStep, GraphedUpdate
from .loop import call_as_released, optimizers_of, run_script
from .losses.sound_discriminators import (
    SoundDiscriminators,
    discriminator_loss,
    feature_loss,
    generator_loss,
    told_apart,
)
from .recipe import Optim, Rounding
from .trainer import BaseTrainer, Phase, Row, trainer_arguments

LONGEST = 10 * SAMPLE_RATE  # samples of a sound that an evaluation looks at
TEST_LEVELS = (1, 2, 4, 8, 10)
DISCRIMINATORS_FILE = "discriminators.safetensors"  # not part of a release
TELLING = 0.95  # momentum of the mean of what discriminators get right


@dataclass(frozen=True)
class Data:
    """Crops, and how often they are changed."""

    seconds: float  # of a crop
    mixed: float  # share of crops that another sound is added to
    coloured: float  # share of crops whose frequencies are weighted by a random curve
    speeds: tuple[float, ...]  # every sound at each of them, all in memory
    kept: tuple[float, ...]  # how often a crop keeps 1, 2, ... codebooks; empty: all alike
    holdout_every: int


@dataclass(frozen=True)
class Loss:
    """Weights of its parts."""

    mel: float
    mel_scales: int  # of the seven windows, so many drawn anew in every step; all in a CUDA graph
    stft: float
    hearing: float  # levels in bands of hearing
    waveform: float  # mean absolute difference of samples, times 10
    commitment: float
    codebook: float
    adversarial: float
    features: float
    adversarial_from: float  # share of the time, before which there are no discriminators
    auxiliary: float = 1.0  # what a quantizer asks for beside commitment and codebook


@dataclass(frozen=True)
class AudioOptim(Optim):
    """Steps of the model, and of the discriminators."""

    only: tuple[str, ...] = ()  # first parts of names of weights to train; none: all
    discriminators_lr: float = 3e-4
    discriminators_width: int = 16


@dataclass(frozen=True)
class Recipe:
    """Settings of a run; ``train/recipes/audio-24k.yaml`` says what they mean."""

    name: str
    model: AudioGRVQConfig
    start: Literal["transform", "random"]  # the weights before the first step
    data: Data
    loss: Loss
    optim: AudioOptim
    rounding: Rounding
    cpu: tuple[str, ...] = ()  # changes where there is no GPU


class Autoencoder(nn.Module):
    """What is trained, as one module."""

    def __init__(self, model: AudioGRVQ) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, n_codes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``x [B, 1, 320 t]`` in [-1, 1] to (x_hat, commitment, codebook and auxiliary loss)."""
        out = self.model.quantizer(self.model.analysis(x), n_codes=n_codes)
        return self.model.synthesise(out.z_q), out.commitment_loss, out.codebook_loss, out.auxiliary_loss


class Trainer(BaseTrainer):
    """One run of a recipe; see the module's text."""

    recipe_class = Recipe
    what = "sounds"
    columns: ClassVar[dict[str, str]] = {
        "mel_distance": "mel {:.4f}", "stft_distance": "STFT {:.4f}", "si_sdr": "SI-SDR {:.2f} dB",
    }  # fmt: skip
    brief = ("mel_distance", "si_sdr")

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        data, optim = self.recipe.data, self.recipe.optim
        size = round(data.seconds * SAMPLE_RATE / FRAME) * FRAME
        if size < FRAME:
            raise ValueError(f"a crop has at least {FRAME} samples")
        model = AudioGRVQ(self.recipe.model, self.recipe.name)
        self.shares = torch.tensor(self.kept_shares(len(model.codebook_sizes)), device=self.device)
        copies = len(data.speeds) or 1
        longest = self.memory / 8 / copies / 2 / SAMPLE_RATE  # seconds; a long sound leaves room for others
        self.test_on(list_sounds, functools.partial(read_mono, rate=SAMPLE_RATE))
        reading = self.read(list_sounds(args.data), lambda path: read_mono(path, SAMPLE_RATE, longest), 1 / copies)
        self.media, self.held = reading.split(data.holdout_every)
        stream = self.stream(reading, data.holdout_every, expand=lambda sound: at_speeds([sound], data.speeds))
        self.store = SoundStore(
            self.media if stream else at_speeds(self.media, data.speeds), size, self.device,
            mixed=data.mixed, coloured=data.coloured, seed=self.seed, stream=stream,
        )  # fmt: skip
        minutes = sum(map(len, self.media)) / SAMPLE_RATE / 60
        self.log(f"{len(self.media)} sounds, {minutes:.1f} minutes, {len(self.held)} held out, on {self.device}")

        frames = FRAMES if self.device.type == "cuda" else FRAMES // 4  # a CPU takes its time for k-means
        if args.resume:
            released = AudioGRVQ.from_pretrained(find_model(args.resume))
            start_from(model, released, self.media, frames, seed=args.seed)
        elif self.recipe.start == "transform":
            start_as_transform(model, self.media, frames, seed=args.seed)
        self.model = model.to(self.device)
        self.net = Autoencoder(self.model)
        self.graphs = not model.quantizer.moves
        self.chosen = [(n, p) for n, p in self.model.named_parameters() if not optim.only or n.startswith(optim.only)]
        if not self.chosen:
            raise ValueError(f"no weight has a name that begins with {' or '.join(optim.only)}")
        self.discriminators = SoundDiscriminators(optim.discriminators_width).to(self.device)
        if args.resume:
            self.resume_discriminators()
        millions = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (self.model, self.discriminators)]
        self.log(f"model {millions[0]:.2f} M, discriminators {millions[1]:.2f} M")
        self.own_seeds()
        self.adversarial = Phase("with discriminators", self.recipe.loss.adversarial_from)
        self.rounding = Phase("weights are rounded", 1 - self.recipe.rounding.share)
        self.phases = [self.adversarial, self.rounding]
        self.judge_step: GraphedStep | None = None
        self.right = torch.full((), 0.5, device=self.device)  # share that the discriminators get right

    def kept_shares(self, codebooks: int) -> list[float]:
        """How often crops keep 1, 2, ... codebooks. Raises ValueError for shares that make no sense."""
        kept = list(self.recipe.data.kept) or [1.0] * codebooks
        if len(kept) != codebooks or min(kept) < 0 or not sum(kept):
            raise ValueError(f"data.kept has a share for each of {codebooks} codebooks, or none")
        return kept

    def resume_discriminators(self) -> None:
        path = find_model(self.args.resume) / DISCRIMINATORS_FILE
        if path.exists():
            load_model(self.discriminators, path)
            self.log(f"discriminators from {path}")
        else:
            self.log(f"discriminators start anew: there is no {path}")

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of the model; that of the discriminators steps on its own."""

        def in_a_block(name: str, p: nn.Parameter) -> bool:
            return p.ndim == 3 and name.endswith((".up.weight", ".down.weight")) and min(p.shape[:2]) >= 16

        return optimizers_of(self.chosen, self.optim, in_a_block)

    def side_optimizers(self) -> list[torch.optim.Optimizer]:
        """That of the discriminators."""
        optim = {**self.optim, "lr": self.optim["discriminators_lr"], "muon": 0.0}
        self.of_discriminators = optimizers_of(self.discriminators.named_parameters(), optim, lambda name, p: False)
        return self.of_discriminators

    def inputs(self) -> tuple[Tensor, ...]:
        batch = self.optim["batch"]
        kept = torch.multinomial(self.shares, batch, replacement=True, generator=self.generator) + 1
        return self.store.batch(batch), kept

    def after_step(self, step: int, share: float, inputs: tuple[Tensor, ...], settings: tuple[bool, ...]) -> None:
        """A step of the discriminators."""
        adversarial, rounding = settings
        if not adversarial:
            return
        if self.judge_step is None:
            self.judge_step = GraphedStep(self.discriminators, self.judge, inputs, self.graphs and not self.args.eager)
            self.judge_update = GraphedUpdate(self.judge_step, self.of_discriminators, self.optim["grad_clip"])
        self.losses |= {"discriminators": self.judge_step(inputs, rounding), "right": self.right}
        self.judge_update()

    def parts(self) -> dict[str, Any]:
        return super().parts() | {"discriminators": self.discriminators, "right": self.right}

    def coded(self, x: Tensor, kept: Tensor, rounding: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What :class:`Autoencoder` gives, with weights as a release rounds them if ``rounding``."""
        results: tuple[Tensor, Tensor, Tensor, Tensor]
        results = call_as_released(self.net, self.model, "model", (x, kept)) if rounding else self.net(x, kept)
        return results

    def loss(self, x: Tensor, kept: Tensor, adversarial: bool, rounding: bool) -> Tensor:
        conf = self.recipe.loss
        x_hat, commitment, codebook, auxiliary = self.coded(x, kept, rounding)
        a, b = x[:, 0], x_hat[:, 0]
        scales: tuple[tuple[int, int], ...] = MEL_SCALES
        if conf.mel_scales < len(scales) and (self.args.eager or self.device.type == "cpu"):
            scales = tuple(random.sample(scales, conf.mel_scales))
        total = conf.mel * mel_distance(a, b, SAMPLE_RATE, scales).mean()
        if conf.stft:
            total = total + conf.stft * stft_distance(a, b).mean()
        if conf.hearing:
            total = total + conf.hearing * hearing_distance(a, b, SAMPLE_RATE).mean()
        total = total + conf.waveform * 10 * (a - b).abs().mean()
        total = total + conf.commitment * commitment + conf.codebook * codebook + conf.auxiliary * auxiliary
        if adversarial:
            with self.autocast(), held(self.discriminators):
                heard = self.store.size // 2  # of a crop, its end, where the nets know enough of the past
                with torch.no_grad():
                    real = self.discriminators(x[:, :, -heard:])
                fake = self.discriminators(x_hat[:, :, -heard:])
            total = total + conf.adversarial * generator_loss(fake) + conf.features * feature_loss(real, fake)
        return total

    def judge(self, x: Tensor, kept: Tensor, rounding: bool) -> Tensor:
        """The loss of the discriminators."""
        with torch.no_grad():
            x_hat = self.coded(x, kept, rounding)[0]
        with self.autocast():
            heard = self.store.size // 2
            real, fake = self.discriminators(x[:, :, -heard:]), self.discriminators(x_hat[:, :, -heard:])
            self.right.lerp_(told_apart(real, fake), 1 - TELLING)
            return discriminator_loss(real, fake)

    def score(self, rows: list[Row]) -> float:
        return -sum(r["mel_distance"] for r in rows) / len(rows)

    def keeps(self, score: float) -> bool:
        """What discriminators bring, distances do not see: from there on the last weights are kept."""
        return super().keeps(score) or (self.adversarial.on and math.isfinite(score))

    def save(self) -> None:
        super().save()
        if self.adversarial.on:
            with together(self.out) as beside:
                save_model(self.discriminators, str(beside / DISCRIMINATORS_FILE))

    def taken(self, medium: Tensor) -> Tensor:
        """The first ten seconds, ``[1, 1, n]`` in [-1, 1]."""
        return medium[:LONGEST].to(self.device).float()[None, None] / 32768

    def views(self, medium: Tensor) -> Iterator[Tensor]:
        yield medium.to(self.device).float()[None, None] / 32768

    def rows(self, model: AudioGRVQ, medium: Tensor, prior: Any = None) -> Iterator[Row]:
        """Mel and STFT distance and SI-SDR of the first ten seconds for some numbers of levels."""
        x = self.taken(medium)
        tokens = model.encode(x)
        for n in (n for n in TEST_LEVELS if n <= len(model.codebook_sizes)):
            x_hat = model.decode(tokens.levels(n))
            yield {
                "levels": n,
                "mel_distance": float(mel_distance(x[:, 0], x_hat[:, 0], SAMPLE_RATE)),
                "stft_distance": float(stft_distance(x[:, 0], x_hat[:, 0])),
                "si_sdr": si_sdr(x[0, 0], x_hat[0, 0]),
            }


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Within, no gradient goes to the parameters of ``module``."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def main() -> None:
    run_script(trainer_arguments(__doc__, "audio-24k", "sounds"), Trainer)


if __name__ == "__main__":
    main()
