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
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from ..codec.metrics.hearing import hearing_distance
from ..codec.metrics.spectra import MEL_SCALES, mel_distance, si_sdr, stft_distance
from ..codec.provenance import as_json
from ..entropy.static import StaticPrior
from ..tokenizers.audio.grvq import FRAME, RATE, AudioGRVQ, AudioGRVQConfig
from ..tokenizers.folders import find_model
from .audio_start import start_as_transform, start_from
from .data.audio import SoundStore, at_speeds, list_sounds, read_sounds
from .graphed import GraphedStep
from .loop import (
    Pace,
    TrainingRun,
    call_as_released,
    optimizers_of,
    released,
    run_script,
    training_arguments,
)
from .losses.sound_critics import SoundCritics, critics_loss, feature_loss, fooling_loss

EVALUATIONS = 8
HOLDOUT_QUICK = 24  # held-out sounds that evaluations on the way look at
LONGEST = 10 * RATE  # samples of a sound that an evaluation looks at
TEST_LEVELS = (1, 2, 4, 8, 10)
CRITICS_FILE = "critics.safetensors"  # not part of a release


class Autoencoder(nn.Module):
    """What is trained, as one module."""

    def __init__(self, model: AudioGRVQ) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, n_codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x [B, 1, 320 t]`` in [-1, 1] to (x_hat, commitment loss, codebook loss)."""
        out = self.model.quantizer(self.model.analysis(x), n_codes=n_codes)
        return self.model.synthesise(out.z_q), out.commitment_loss, out.codebook_loss


class Trainer(TrainingRun):
    """One run of a recipe; see the module's text."""

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        sounds = read_sounds(list_sounds(args.data), RATE)
        every = recipe["data"]["holdout_every"]
        self.holdout = sounds[::every]
        self.sounds = [s for i, s in enumerate(sounds) if i % every]
        size = round(recipe["data"]["seconds"] * RATE / FRAME) * FRAME
        if size < FRAME:
            raise ValueError(f"a crop has at least {FRAME} samples")
        played = at_speeds(self.sounds, recipe["data"]["speeds"])
        shares = recipe["data"]["mixed"], recipe["data"]["coloured"]
        self.store = SoundStore(played, size, self.device, *shares, self.seed)
        minutes = sum(map(len, self.sounds)) / RATE / 60
        self.log(f"{len(self.sounds)} sounds, {minutes:.1f} minutes, {len(self.holdout)} held out, on {self.device}")

        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe["model"].items()}
        model = AudioGRVQ(AudioGRVQConfig(**sizes), recipe["name"])
        codebooks = len(model.codebook_sizes)
        kept = [float(share) for share in recipe["data"]["kept"] or [1] * codebooks]
        if len(kept) != codebooks or min(kept) < 0 or not sum(kept):
            raise ValueError(f"data.kept has a share for each of {codebooks} codebooks, or none")
        self.shares = torch.tensor(kept, device=self.device)
        if recipe["start"] not in ("transform", "random"):
            raise ValueError(f"start is transform or random, got {recipe['start']!r}")
        if not args.resume and recipe["start"] == "transform":
            start_as_transform(model, self.sounds, seed=args.seed)
        if args.resume:
            start_from(model, AudioGRVQ.from_pretrained(find_model(args.resume)), self.sounds, seed=args.seed)
        self.model = model.to(self.device)
        self.net = Autoencoder(self.model)
        only = tuple(recipe["optim"]["only"])
        self.chosen = [(name, p) for name, p in self.model.named_parameters() if not only or name.startswith(only)]
        if not self.chosen:
            raise ValueError(f"no weight has a name that begins with {' or '.join(only)}")
        self.critics = SoundCritics(recipe["optim"]["critics_width"]).to(self.device)
        if args.resume and (found := find_model(args.resume) / CRITICS_FILE).exists():
            load_model(self.critics, found)
            self.log(f"discriminators from {found}")
        millions = [sum(p.numel() for p in net.parameters()) / 1e6 for net in (self.model, self.critics)]
        self.log(f"model {millions[0]:.2f} M, discriminators {millions[1]:.2f} M")
        self.own_seeds()
        self.best = math.inf
        self.history: list[dict[str, Any]] = []

    def optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.Optimizer]]:
        """Those of the model and that of the discriminators."""

        def in_a_block(name: str, p: nn.Parameter) -> bool:
            return p.ndim == 3 and name.endswith((".up.weight", ".down.weight")) and min(p.shape[:2]) >= 16

        optim = self.recipe["optim"]
        critics = {**optim, "lr": optim["critics_lr"], "muon": 0}
        return (
            optimizers_of(self.chosen, optim, in_a_block),
            optimizers_of(self.critics.named_parameters(), critics, in_a_block),
        )

    def run(self) -> None:
        optim, conf = self.recipe["optim"], self.recipe["loss"]
        self.out.mkdir(parents=True, exist_ok=True)
        optimizers, critics_optimizers = self.optimizers()
        compute: GraphedStep | None = None
        judge: GraphedStep | None = None
        loss = norm = torch.tensor(math.nan)
        batch = optim["batch"]
        adversarial = rounding = False
        self.model.train()
        pace = Pace(self, [*optimizers, *critics_optimizers], EVALUATIONS)
        for step in pace:
            if not adversarial and pace.share >= conf["adversarial_from"]:
                adversarial = True
                self.best = math.inf
                self.log(f"[{100 * pace.share:5.1f} %] from here on with discriminators")
            if not rounding and pace.share >= 1 - self.recipe["rounding"]["share"]:
                rounding = True
                self.best = math.inf  # what counts from here on is what rounded weights do
                self.log(f"[{100 * pace.share:5.1f} %] from here on weights are rounded")
            x = self.store.batch(batch)
            kept = torch.multinomial(self.shares, batch, replacement=True, generator=self.generator) + 1
            if compute is None:
                compute = GraphedStep(self.net, self.loss, (x, kept), not self.args.eager)
            loss = compute((x, kept), adversarial, rounding)
            norm = compute.clip(optim["grad_clip"])
            for optimizer in optimizers:
                optimizer.step()
            if adversarial:
                if judge is None:
                    judge = GraphedStep(self.critics, self.judge, (x, kept), not self.args.eager)
                judge((x, kept), rounding)
                judge.clip(optim["grad_clip"])
                critics_optimizers[0].step()
            if pace.due:
                self.check(step, pace.share, pace.seconds, loss, norm, adversarial, rounding)
        if pace.step:
            self.check(pace.step, 1.0, pace.seconds, loss, norm, adversarial, rounding)
        elif self.main:
            self.model.save_pretrained(self.out)
        self.accelerator.wait_for_everyone()
        if self.main:
            self.export()
        self.accelerator.end_training()

    def autocast(self) -> torch.autocast:
        bf16 = self.args.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)

    def coded(self, x: Tensor, kept: Tensor, rounding: bool) -> tuple[Tensor, Tensor, Tensor]:
        """What :class:`Autoencoder` gives, with weights as a release rounds them if ``rounding``."""
        found: tuple[Tensor, Tensor, Tensor]
        found = call_as_released(self.net, self.model, "model", (x, kept)) if rounding else self.net(x, kept)
        return found

    def loss(self, x: Tensor, kept: Tensor, adversarial: bool, rounding: bool) -> Tensor:
        conf = self.recipe["loss"]
        x_hat, commitment, codebook = self.coded(x, kept, rounding)
        a, b = x[:, 0], x_hat[:, 0]
        scales: tuple[tuple[int, int], ...] = MEL_SCALES
        if conf["mel_scales"] < len(scales) and (self.args.eager or self.device.type == "cpu"):
            scales = tuple(random.sample(scales, conf["mel_scales"]))
        total = conf["mel"] * mel_distance(a, b, RATE, scales).mean()
        if conf["stft"]:
            total = total + conf["stft"] * stft_distance(a, b).mean()
        if conf["hearing"]:
            total = total + conf["hearing"] * hearing_distance(a, b, RATE).mean()
        total = total + conf["waveform"] * 10 * (a - b).abs().mean()
        total = total + conf["commitment"] * commitment + conf["codebook"] * codebook
        if adversarial:
            with self.autocast(), held(self.critics):
                heard = self.store.size // 2  # of a crop, its end, where the nets know enough of the past
                with torch.no_grad():
                    real = self.critics(x[:, :, -heard:])
                fake = self.critics(x_hat[:, :, -heard:])
            total = total + conf["adversarial"] * fooling_loss(fake) + conf["features"] * feature_loss(real, fake)
        return total

    def judge(self, x: Tensor, kept: Tensor, rounding: bool) -> Tensor:
        with torch.no_grad():
            x_hat, _, _ = self.coded(x, kept, rounding)
        with self.autocast():
            heard = self.store.size // 2
            return critics_loss(self.critics(x[:, :, -heard:]), self.critics(x_hat[:, :, -heard:]))

    def check(self, step: int, share: float, seconds: float, loss: Tensor, norm: Tensor, adversarial: bool,
              rounding: bool) -> None:  # fmt: skip
        if not self.main:
            return
        rows = measure(released(self.model) if rounding else self.model, self.holdout[:HOLDOUT_QUICK])
        score = sum(r["mel_distance"] for r in rows) / len(rows)
        kept = score < self.best or adversarial  # what discriminators bring, distances do not see
        if kept:
            self.best = min(self.best, score)
            self.model.save_pretrained(self.out)
            if adversarial:
                save_model(self.critics, str(self.out / CRITICS_FILE))
        self.history.append({"step": step, "share": share, "seconds": seconds, "rows": rows})
        self.log(
            f"[{100 * share:5.1f} %] step {step} {step * self.recipe['optim']['batch'] / seconds:.0f} crops/s"
            f" loss {float(loss):.4f} norm {float(norm):.2f} held-out mel {score:.4f}  "
            + "  ".join(f"{r['levels']}: mel {r['mel_distance']:.4f} SI-SDR {r['si_sdr']:.2f} dB" for r in rows)
            + (" kept" if kept else "")
        )

    def export(self) -> None:
        """Show what the released weights do, and write the static prior of their codes."""
        model = AudioGRVQ.from_pretrained(self.out).to(self.device)
        counts = histograms(model, self.sounds)
        StaticPrior.from_counts([count.numpy() for count in counts]).save_pretrained(self.out)
        results: dict[str, Any] = {
            "holdout": measure(model, self.holdout),
            "codebook_usage": [float((count > 0).float().mean()) for count in counts],
            "minutes": self.args.minutes,
            "processes": self.accelerator.num_processes,
            "machine": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "sounds": len(self.sounds),
            "seed": self.args.seed,
            "recipe": self.recipe,
            "history": self.history,
        }
        if self.args.test:
            results["test"] = measure(model, read_sounds(list_sounds([self.args.test]), RATE))
        (self.out / "training.json").write_text(as_json(results))
        self.log("codebook usage " + " ".join(f"{share:.3f}" for share in results["codebook_usage"]))
        for name in ("holdout", "test"):
            for r in results.get(name, []):
                self.log(
                    f"{name:>8} {r['levels']} levels  mel {r['mel_distance']:.4f}  STFT {r['stft_distance']:.4f}"
                    f"  SI-SDR {r['si_sdr']:.2f} dB"
                )


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Within, no gradient goes to the parameters of ``module``."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, benchmark=False)  # every sound has a length of its own
def measure(model: AudioGRVQ, sounds: list[Tensor]) -> list[dict[str, Any]]:
    """Means over sounds (int16 ``[n]``, their first ten seconds) for each number of levels."""
    training = model.training
    model.eval()
    sums = [{"mel_distance": 0.0, "stft_distance": 0.0, "si_sdr": 0.0} for _ in TEST_LEVELS]
    levels = [n for n in TEST_LEVELS if n <= len(model.codebook_sizes)]
    for sound in sounds:
        x = sound[:LONGEST].to(model.device).float()[None, None] / 32768
        tokens = model.encode(x)
        for n, row in zip(levels, sums, strict=False):
            x_hat = model.decode(tokens.levels(n))
            row["mel_distance"] += float(mel_distance(x[:, 0], x_hat[:, 0], RATE))
            row["stft_distance"] += float(stft_distance(x[:, 0], x_hat[:, 0]))
            row["si_sdr"] += si_sdr(x[0, 0], x_hat[0, 0])
    model.train(training)
    pairs = zip(levels, sums, strict=False)
    return [{"levels": n, **{key: value / len(sounds) for key, value in row.items()}} for n, row in pairs]


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, benchmark=False)
def histograms(model: AudioGRVQ, sounds: list[Tensor]) -> list[Tensor]:
    """How often the sounds use each codeword of every codebook, ``[N_k]`` each."""
    counts = [torch.zeros(n, dtype=torch.int64) for n in model.codebook_sizes]
    for sound in sounds:
        codes = model.encode(sound.to(model.device).float()[None, None] / 32768).codes[0].cpu()
        for own, count in zip(codes, counts, strict=True):
            count += torch.bincount(own, minlength=len(count))
    return counts


def main() -> None:
    parser = training_arguments(__doc__, "audio-24k", "sounds")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
