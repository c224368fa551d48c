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
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..codec.provenance import as_json
from ..entropy.static import StaticPrior
from ..entropy.tables import table_bits
from ..tokenizers.api import Tokenizer
from ..tokenizers.folders import find_model
from ..tokenizers.image.grid import ImageGrid
from ..tokenizers.image.layers import STRIDE
from ..tokenizers.quantize.vq import kmeans
from ..tokenizers.video.grid import GROUP, VideoGrid, VideoGridConfig
from .data.images import list_images, read_all
from .data.video import ClipStore, list_clips, read_clips
from .graphed import GraphedStep
from .loop import (
    Pace,
    TrainingRun,
    call_as_released,
    optimizers_of,
    psnr,
    released,
    residual_energies,
    run_script,
    training_arguments,
)

EVALUATIONS = 8
HOLDOUT_QUICK = 6  # held-out clips that evaluations on the way look at
LONGEST = 33  # frames of a clip that an evaluation looks at: a group of pictures, which begins anew
STARTS = 20  # batches whose latents new codebooks start from
DARK = 1e-4  # added to a squared error before its power


class Autoencoder(nn.Module):
    """What is trained, as one module."""

    def __init__(self, model: VideoGrid) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x [B, 3, T, H, W]`` in [0, 1], levels ``[B]`` to (x_hat, commitment loss, codebook loss)."""
        z_e = self.model.analysis((2 * x - 1).permute(0, 2, 3, 4, 1).contiguous()).permute(0, 4, 1, 2, 3)
        out = self.model.quantizer(z_e, kept)
        x_hat = self.model.synthesis(out.z_q.permute(0, 2, 3, 4, 1).contiguous()).permute(0, 4, 1, 2, 3)
        return (x_hat.float() + 1) / 2, out.commitment_loss, out.codebook_loss


class Trainer(TrainingRun):
    """One run of a recipe; see the module's text."""

    def __init__(self, recipe: dict[str, Any], args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        data = recipe["data"]
        if data["frames"] % GROUP != 1 or data["crop"] % STRIDE:
            raise ValueError(f"a crop has 1 + {GROUP} n frames, and an edge of whole cells of {STRIDE} pixels")
        clips = read_clips(list_clips(args.data), data["shorter"])
        self.holdout = clips[:: data["holdout_every"]]
        self.clips = [c for i, c in enumerate(clips) if i % data["holdout_every"]]
        pictures = read_all(list_images(args.stills)) if args.stills else []
        self.store = ClipStore(
            self.clips, data["frames"], data["crop"], self.device, pictures, data["stills"] if pictures else 0.0,
            data["speeds"], data["backwards"], self.seed,
        )  # fmt: skip
        frames = sum(map(len, self.clips))
        self.log(
            f"{len(self.store)} clips and {len(pictures)} pictures to train on, {frames} frames,"
            f" {len(self.holdout)} held out, on {self.device}"
        )

        sizes: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe["model"].items()}
        model = VideoGrid(VideoGridConfig(**sizes), recipe["name"])
        new = range(len(model.codebook_sizes))  # codebooks that nobody has trained
        if args.resume:
            released = VideoGrid.from_pretrained(find_model(args.resume))
            if released.config != model.config:
                raise ValueError(f"{args.resume} has other sizes than the recipe")
            model.load_state_dict(released.state_dict())
            new = range(0)
        elif recipe["start"] != "random":
            other = Tokenizer.from_pretrained(find_model(recipe["start"]))
            if not isinstance(other, (ImageGrid, VideoGrid)):
                raise ValueError(f"{recipe['start']} is no model whose nets could be a start")
            model.start_from(other)
            same = [
                mine.basis.shape == given.basis.shape
                for mine, given in zip(model.codebooks, other.codebooks, strict=False)
            ]
            new = range((*same, False).index(False), len(model.codebook_sizes))
        for level in model.codebooks:  # training and its evaluations search without regard to bits
            level.penalty = torch.zeros(level.codebook_sizes)
        self.model = model.to(self.device)
        self.net = Autoencoder(self.model)
        self.log(f"model {sum(p.numel() for p in self.model.parameters()) / 1e6:.2f} M")
        self.own_seeds()
        if new:
            self.start_codebooks(new)
        self.best = -math.inf
        self.history: list[dict[str, Any]] = []

    @torch.no_grad()
    def start_codebooks(self, new: range) -> None:
        """New codebooks begin as the k-means of what the levels before them leave over.

        Latents of a net that is new too are small and alike: far from random codewords, all would get the same one.
        """
        batch = self.recipe["optim"]["batch"]
        z_e = [self.model.latents(self.store.batch(batch)).movedim(1, -1).flatten(0, 3) for _ in range(STARTS)]
        rows = torch.cat(z_e).float()
        rows = rows[torch.randperm(len(rows), device=rows.device)[: 32 * max(self.model.codebook_sizes)]]
        for k, level in enumerate(self.model.codebooks):
            if k in new:
                level.basis.copy_(broadcast(kmeans(rows, level.codebook_sizes[0])))
            rows = rows - level.decode(level.encode(rows))
        self.log(f"codebooks {new.start + 1} to {new.stop} start as k-means")

    def optimizers(self) -> list[torch.optim.Optimizer]:
        def in_a_block(name: str, p: nn.Parameter) -> bool:
            return p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= 16 and not name.startswith("quantizer.")

        return optimizers_of(self.model.named_parameters(), self.recipe["optim"], in_a_block)

    def run(self) -> None:
        optim = self.recipe["optim"]
        self.out.mkdir(parents=True, exist_ok=True)
        optimizers = self.optimizers()
        compute: GraphedStep | None = None
        loss = norm = torch.tensor(math.nan)
        batch = optim["batch"]
        rounding = False
        self.model.train()
        pace = Pace(self, optimizers, EVALUATIONS)
        for step in pace:
            if not rounding and pace.share >= 1 - self.recipe["rounding"]["share"]:
                rounding = True
                self.best = -math.inf  # what counts from here on is what rounded weights do
                self.log(f"[{100 * pace.share:5.1f} %] from here on weights are rounded")
            x, kept = self.store.batch(batch), self.kept(batch)
            if compute is None:
                compute = GraphedStep(self.net, self.loss, (x, kept), not self.args.eager)
            loss = compute((x, kept), rounding)
            norm = compute.clip(optim["grad_clip"])
            for optimizer in optimizers:
                optimizer.step()
            if pace.due:
                self.check(step, pace.share, pace.seconds, loss, norm, rounding)
        if pace.step and not (self.history and self.history[-1]["step"] == pace.step):
            self.check(pace.step, 1.0, pace.seconds, loss, norm, rounding)
        elif not pace.step and self.main:
            self.model.save_pretrained(self.out)
        self.accelerator.wait_for_everyone()
        if self.main:
            self.export()
        self.accelerator.end_training()

    def kept(self, batch: int) -> Tensor:
        """Levels that crops keep, ``[batch]``: some all, the others any number alike."""
        most = len(self.model.codebook_sizes)
        rand = torch.rand(2, batch, device=self.device, generator=self.generator)
        drawn = (1 + most * rand[0]).long().clamp(1, most)
        return torch.where(rand[1] < self.recipe["data"]["whole"], most, drawn)

    def loss(self, x: Tensor, kept: Tensor, rounding: bool) -> Tensor:
        conf = self.recipe["loss"]
        bf16 = self.args.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            call = call_as_released(self.net, self.model, "model", (x, kept)) if rounding else self.net(x, kept)
            x_hat, commitment, codebook = call
        square = (x - x_hat).square().mean((1, 2, 3, 4))
        total = conf["pixel"] * (square + DARK).pow(conf["power"]).mean()
        return total + conf["commitment"] * commitment + conf["codebook"] * codebook

    def check(self, step: int, share: float, seconds: float, loss: Tensor, norm: Tensor, rounding: bool) -> None:
        if not self.main:
            return
        rows = measure(released(self.model) if rounding else self.model, self.holdout[:HOLDOUT_QUICK])
        score = sum(r["psnr"] for r in rows) / len(rows)
        kept = score > self.best
        if kept:
            self.best = score
            self.model.save_pretrained(self.out)
        reports = [level.usage.report() for level in self.model.codebooks]
        for level in self.model.codebooks:
            level.usage.reset()
        bits = [math.log2(max(1.0, report.perplexity)) for report in reports]  # order-0, since the last check
        self.history.append({"step": step, "share": share, "seconds": seconds, "rows": rows, "bits": bits})
        crops = step * self.recipe["optim"]["batch"] * self.accelerator.num_processes
        self.log(
            f"[{100 * share:5.1f} %] step {step} {crops / seconds:.1f} crops/s loss {float(loss):.4f}"
            f" norm {float(norm):.2f} held-out {score:.3f} dB  "
            + "  ".join(f"{r['levels']}: {r['psnr']:.2f}" for r in rows)
            + "  bits of a code " + " ".join(f"{b:.2f}" for b in bits)
            + " usage " + " ".join(f"{report.usage:.2f}" for report in reports)
            + (" kept" if kept else "")
        )  # fmt: skip

    def export(self) -> None:
        """Show what the released weights do, and write the static prior of their codes."""
        model = VideoGrid.from_pretrained(self.out).to(self.device)
        weight = self.recipe["export"]["rate_weight"]
        results: dict[str, Any] = {"holdout_without_rate_weight": self.without_rate_weight(model)}
        set_penalties(model, self.clips, weight, self.recipe["export"]["hold"])
        model.cpu().save_pretrained(self.out)
        model = VideoGrid.from_pretrained(self.out).to(self.device)
        counts = histograms(model, self.clips)
        prior = StaticPrior.from_counts([count.numpy() for count in counts])
        prior.save_pretrained(self.out)
        results |= {
            "holdout": measure(model, self.holdout, prior),
            "codebook_usage": [float((count > 0).float().mean()) for count in counts],
            "minutes": self.args.minutes,
            "processes": self.accelerator.num_processes,
            "machine": torch.cuda.get_device_name() if self.device.type == "cuda" else "CPU",
            "clips": len(self.clips),
            "seed": self.args.seed,
            "recipe": self.recipe,
            "history": self.history,
        }
        if self.args.test:
            results["test"] = measure(model, read_clips(list_clips([self.args.test]), None), prior)
        (self.out / "training.json").write_text(as_json(results))
        self.log("codebook usage " + " ".join(f"{share:.3f}" for share in results["codebook_usage"]))
        self.log(f"held-out clips without, then with a rate weight of {weight:g}; test clips with it")
        for name in ("holdout_without_rate_weight", "holdout", "test"):
            for r in results.get(name, []):
                self.log(
                    f"{name.split('_')[0]:>8} {r['levels']} levels  {r['bpp']:.5f} bpp  {r['psnr']:.3f} dB"
                    f"  first frame {r['psnr_first']:.3f} dB  worst frame {r['psnr_worst']:.3f} dB"
                )

    def without_rate_weight(self, model: VideoGrid) -> list[dict[str, Any]]:
        """What codes that are chosen by squared error alone do on the held-out clips."""
        set_penalties(model, self.clips, 0)
        counts = histograms(model, self.clips)
        return measure(model, self.holdout, StaticPrior.from_counts([count.numpy() for count in counts]))


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, benchmark=False)  # clips have sizes of their own
def measure(model: VideoGrid, clips: Sequence[Tensor], prior: StaticPrior | None = None) -> list[dict[str, Any]]:
    """Means over clips (uint8 ``[T, H, W, 3]``, their first group of pictures) for each number of levels.

    Returns: PSNR in dB as the mean over frames, of the first frame, and of the worst one; with a prior, its bits a
             pixel of a frame.
    """
    training = model.training
    model.eval()
    keys = ("psnr", "psnr_first", "psnr_worst", *(("bpp",) if prior is not None else ()))
    rows: list[dict[str, Any]] = [dict.fromkeys(keys, 0.0) for _ in model.codebook_sizes]
    for clip in clips:
        x = clip[:LONGEST].to(model.device).permute(3, 0, 1, 2)[None]  # [1, 3, T, H, W] uint8
        tokens = model.encode(x)
        bits = None if prior is None else prior.bits(tokens.codes[0].cpu().numpy()).cumsum()
        for k, row in enumerate(rows):
            x_hat = model.decode(tokens.levels(k + 1))
            pairs = zip(x.unbind(2), x_hat.unbind(2), strict=True)
            values = [psnr(a.float() / 255, b) for a, b in pairs]
            row["psnr"] += sum(values) / len(values) / len(clips)
            row["psnr_first"] += values[0] / len(clips)
            row["psnr_worst"] += min(values) / len(clips)
            if bits is not None:
                row["bpp"] += float(bits[k]) / math.prod(tokens.spec.size) / len(clips)
    model.train(training)
    return [{"levels": k + 1, **row} for k, row in enumerate(rows)]


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, benchmark=False)
def histograms(model: VideoGrid, clips: Sequence[Tensor]) -> list[Tensor]:
    """How often the clips, cut into groups of pictures, use each codeword of every codebook, ``[N_k]`` each."""
    counts = [torch.zeros(n, dtype=torch.int64) for n in model.codebook_sizes]
    for clip in clips:
        for part in clip.split(LONGEST):
            codes = model.encode(part.to(model.device).permute(3, 0, 1, 2)[None]).codes[0].cpu()
            for own, count in zip(codes, counts, strict=True):
                count += torch.bincount(own.flatten(), minlength=len(count))
    return counts


def latents_of(model: VideoGrid, clips: Sequence[Tensor]) -> Iterator[Tensor]:
    """Latents ``[1, D, t, h, w]`` of the whole cells of the clips' first groups of pictures."""
    for clip in clips:
        frames = 1 + (min(len(clip), LONGEST) - 1) // GROUP * GROUP
        height, width = (n // STRIDE * STRIDE for n in clip.shape[1:3])
        x = clip[:frames, :height, :width].to(model.device).permute(3, 0, 1, 2)[None].float() / 255
        yield model.latents(x)


@torch.no_grad()
@torch.backends.cudnn.flags(enabled=True, benchmark=False)
def set_penalties(model: VideoGrid, clips: Sequence[Tensor], weight: float, hold: float = 0) -> None:
    """Let the search count bits: a codeword costs its squared distance plus ``weight * lambda`` times its bits, and
    ``hold * lambda`` times those of its codebook less where it is what was there before.

    Entropy-constrained quantization (Chou, Lookabaugh and Gray 1989) with ``lambda = 2 ln 2 D_k / D``, the slope of the
    rate-distortion curve of a Gaussian source at what level k leaves over. Weight 0: squared distance alone.
    """
    for level in model.codebooks:
        level.penalty = torch.zeros(level.codebook_sizes, device=model.device)
    model.hold.zero_()
    if not weight and not hold:
        return
    energies = residual_energies(model.codebooks, latents_of(model, clips))
    slopes = [2 * math.log(2) * energy / model.config.dim for energy in energies]
    model.hold = model.hold.new_tensor(
        [hold * slope * math.log2(n) for slope, n in zip(slopes, model.codebook_sizes, strict=True)]
    )
    for _ in range(2):  # the penalty changes the statistics that it is made of
        counts = histograms(model, clips)
        tables = StaticPrior.from_counts([count.numpy() for count in counts]).tables
        for level, slope, table in zip(model.codebooks, slopes, tables, strict=True):
            bits = table_bits(table)
            level.penalty = torch.from_numpy(weight * slope * (bits - bits.min())).float().to(model.device)


def main() -> None:
    parser = training_arguments(__doc__, "video-grid", "clips")
    parser.add_argument("--stills", nargs="*", default=[], help="folders with pictures that a camera moves over")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    run_script(parser, Trainer)


if __name__ == "__main__":
    main()
