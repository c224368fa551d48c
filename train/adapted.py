"""An autoencoder around ResidualVQ of `vector-quantize-pytorch`, trained for minutes, and what its files take.

    python -m tokodec.train.adapted --data PICTURES --test TEST --minutes 2 --out my-vq

An example, not a codec: it shows that codes of somebody else's quantizer get files, and what entropy models save. After
training, bytes of the test pictures are told three times: with codes of fixed lengths, with static tables counted on
training pictures, and with a context prior (:mod:`.prior`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..codec.counting import count_prior
from ..codec.decode import decode_file
from ..codec.encode import encode_file
from ..entropy.context.prior import CONTEXT_FILE
from ..tokenizers.adapters.accelerate import accelerate
from ..tokenizers.adapters.vq_pytorch import Modules, VQImage
from ..tokenizers.registry import TokenizerKind, register_tokenizer
from .data.images import CropStore, list_images, read_rgb
from .data.reading import in_parallel
from .prior import main as train_prior

BATCH, CROP = 16, 64
PICTURES = 200  # that are read
COUNTED = 64  # pictures that tables are counted on
# For a CPU: the recipe is made for a GPU.
SMALL_PRIOR = (
    "net.radius=[2]", "net.features=[16]", "net.width=[48]", "net.hidden=[96]", "net.blocks=[1]", "net.digit=[16]",
    "conceal.radius=0", "data.views=1", "data.holdout_every=8", "optim.rows=512", "optim.warmup_steps=20",
)  # fmt: skip


@dataclass(frozen=True)
class ExampleConfig:
    """What `config.json` says of the modules."""

    width: int = 64
    dim: int = 32
    codebook_size: int = 512
    levels: int = 4


class ExampleVQ(VQImage):
    """Cells of 8 x 8 pixels."""

    config_class = ExampleConfig
    strides = (8, 8)

    def build(self) -> Modules:
        from vector_quantize_pytorch import ResidualVQ

        c, width = self.config, self.config.width
        encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
            nn.Conv2d(width, 2 * width, 2, 2), nn.GELU(), nn.Conv2d(2 * width, c.dim, 1),
        )  # fmt: skip
        decoder = nn.Sequential(
            nn.Conv2d(c.dim, 2 * width, 3, padding=1), nn.GELU(),
            nn.Conv2d(2 * width, 4 * width, 1), nn.PixelShuffle(2),
            nn.Conv2d(width, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 48, 1), nn.PixelShuffle(4),
        )  # fmt: skip
        quantizer = ResidualVQ(
            dim=c.dim, codebook_size=c.codebook_size, num_quantizers=c.levels, kmeans_init=True, decay=0.95,
            threshold_ema_dead_code=1, quantize_dropout=True,
        )  # fmt: skip
        return encoder, quantizer, decoder


register_tokenizer("ExampleVQ", TokenizerKind(__spec__.name if __spec__ else __name__, "image"))


def train(model: ExampleVQ, pictures: Sequence[Tensor], minutes: float, seed: int, device: str) -> int:
    """Train for so many minutes on crops; returns the number of steps."""
    store = CropStore(pictures, CROP, device, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    accelerate(model).train()
    begin, steps = time.monotonic(), 0
    while (done := (time.monotonic() - begin) / (60 * minutes)) < 1:
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1.0, 4 * (1 - done))  # falls in the last quarter
        x = store.batch(BATCH)
        out = model(x)
        loss = F.mse_loss(out.x_hat, x) + 0.01 * out.losses["auxiliary"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        steps += 1
    model.eval()
    return steps


def measure(paths: Sequence[Path], folder: Path, prior: str, device: str) -> dict[str, float]:
    """Mean bytes of files, their bits per pixel, and the PSNR of what they decode to."""
    sizes, bpp, psnr = [], [], []
    for path in paths:
        encoded = encode_file(path, model=str(folder), prior=prior, device=device)
        tok = folder / "measured.tok"
        tok.write_bytes(encoded.data)
        picture = decode_file(tok, model=str(folder), device=device).picture
        error = np.square(picture.pixels.astype(np.float64) - read_rgb(path).numpy()).mean()
        sizes.append(len(encoded.data))
        bpp.append(encoded.bpp)
        psnr.append(10 * np.log10(255**2 / error))
        tok.unlink()
    return {"bytes": float(np.mean(sizes)), "bpp": float(np.mean(bpp)), "psnr": float(np.mean(psnr))}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m tokodec.train.adapted", description="Train an example and measure it.")
    parser.add_argument("--data", nargs="+", required=True, help="folders of pictures")
    parser.add_argument("--test", nargs="+", required=True, help="folders of pictures to measure with")
    parser.add_argument("--minutes", type=float, default=2.0, help="for the autoencoder")
    parser.add_argument("--prior-minutes", type=float, default=4.0, help="for the context prior, and for its tokens")
    parser.add_argument("--out", type=lambda name: Path(name).resolve(), required=True, help="folder for the model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists already")
    torch.manual_seed(arguments.seed)
    order = torch.randperm(len(paths := list_images(arguments.data))).tolist()
    chosen = [path for i in order[:PICTURES] if isinstance(path := paths[i], Path)]
    model = ExampleVQ(name="example-vq").to(arguments.device)
    steps = train(model, in_parallel(read_rgb, chosen), arguments.minutes, arguments.seed, arguments.device)
    model.save_pretrained(arguments.out)
    tests = [path for path in list_images(arguments.test) if isinstance(path, Path)]
    rows = {"fixed lengths": measure(tests, arguments.out, "static", arguments.device)}
    count_prior(chosen[:COUNTED], str(arguments.out), device=arguments.device)
    rows["static tables"] = measure(tests, arguments.out, "static", arguments.device)
    prior = arguments.out / "prior"
    words = ["--tokenizer", str(arguments.out), "--out", str(prior), "--device", arguments.device]
    words += ["--minutes", str(arguments.prior_minutes), "--set", *SMALL_PRIOR]
    train_prior(["--data", *arguments.data, *words])
    shutil.move(prior / CONTEXT_FILE, arguments.out / CONTEXT_FILE)
    shutil.rmtree(prior)
    rows["context prior"] = measure(tests, arguments.out, "context", arguments.device)
    (arguments.out / "measured.json").write_text(json.dumps({"steps": steps, "seed": arguments.seed, **rows}, indent=2))
    print(f"\n{steps} steps of {BATCH} crops, seed {arguments.seed}, {len(tests)} test pictures\n")
    print("| codes | bytes | bits per pixel | PSNR, dB |\n| --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {row['bytes']:.0f} | {row['bpp']:.4f} | {row['psnr']:.2f} |")


if __name__ == "__main__":
    main()
