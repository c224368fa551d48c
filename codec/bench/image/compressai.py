"""Learned codecs of the package `compressai` for the clock: their weights are random here, only their time is real.

The published weights are not needed for that, since a network takes the same time with any. The entropy coder sees as
many symbols as with trained weights, but easier ones: its part of the time is the least it can be.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import UsageError

MODELS = ("bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-anchor")
QUALITY = 5  # of 8 (of 6 for cheng2020-anchor): which width the networks have
MULTIPLE = 64  # sides are padded to multiples of it
LABEL = f"CompressAI, quality {QUALITY}, random weights: times only"


@dataclass(frozen=True)
class Baseline:
    """A network that is ready to code pictures."""

    name: str
    net: Any
    device: str

    def compress(self, x: np.ndarray) -> tuple[dict[str, Any], float]:
        """Strings and shape for :meth:`decompress`, and the seconds from pixels ``[H, W, 3]`` uint8 to them."""
        start = time.perf_counter()
        height, width = x.shape[:2]
        with torch.inference_mode():
            image = torch.from_numpy(x.transpose(2, 0, 1).copy()).to(self.device).float()[None] / 255  # [1, 3, H, W]
            padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
            found: dict[str, Any] = self.net.compress(torch.nn.functional.pad(image, padding, mode="replicate"))
        return found, time.perf_counter() - start

    def decompress(self, found: dict[str, Any], height: int, width: int) -> tuple[np.ndarray, float]:
        """Pixels ``[height, width, 3]`` uint8, and the seconds they took."""
        start = time.perf_counter()
        with torch.inference_mode():
            x_hat = self.net.decompress(found["strings"], found["shape"])["x_hat"][0, :, :height, :width]
            pixels = (x_hat.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        return pixels, time.perf_counter() - start


def check_baselines(names: list[str]) -> list[str]:
    """The names without repetition. Raises UsageError for an unknown one, or if `compressai` cannot be imported."""
    for name in names:
        if name not in MODELS:
            raise UsageError(f"unknown CompressAI model {name!r}: choose from {', '.join(MODELS)}")
    if names:
        _zoo()
    return list(dict.fromkeys(names))


def load_baseline(name: str, device: str) -> Baseline:
    """The model with random weights of seed 0, its entropy tables made, after one run on a small picture."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(_zoo(), name.replace("-", "_"))(quality=QUALITY, pretrained=False).eval()
    net.update()
    baseline = Baseline(name, net.to(device), device)
    warm_up(np.zeros((MULTIPLE, MULTIPLE, 3), np.uint8), baseline)
    return baseline


def warm_up(x: np.ndarray, baseline: Baseline, times: int = 1) -> None:
    """Code a picture and forget it."""
    for _ in range(times):
        baseline.decompress(baseline.compress(x)[0], *x.shape[:2])


def to_text(found: dict[str, Any]) -> str:
    """What :meth:`Baseline.compress` gives, as JSON for another process."""
    strings = [[string.hex() for string in part] for part in found["strings"]]
    return json.dumps({"strings": strings, "shape": list(found["shape"])})


def from_text(text: str) -> dict[str, Any]:
    """Undoes :func:`to_text`."""
    found = json.loads(text)
    return {"strings": [[bytes.fromhex(s) for s in part] for part in found["strings"]], "shape": found["shape"]}


def _zoo() -> Any:
    try:
        import compressai.zoo
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise UsageError(f"{package} is missing: pip install 'tokodec[baselines]'") from error
    except (RuntimeError, AttributeError) as error:  # parts built for another PyTorch or NumPy
        reason = " ".join(str(error).split())
        raise UsageError(f"compressai does not load here ({reason}): pip install 'tokodec[baselines]'") from error
    return compressai.zoo
