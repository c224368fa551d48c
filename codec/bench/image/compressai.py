"""Learned codecs of the package `compressai` for the clock: their weights are random here, only their time is real.

The published weights are not needed for that, since a network takes the same time with any. The entropy coder sees as
many symbols as with trained weights, but easier ones: its part of the time is the least it can be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import UsageError
from ...settings import Setting
from ..clips import Photo
from ..contender import Codec, Coded, Spec, chosen, warm_up

MODELS = ("bmshj2018-hyperprior", "mbt2018-mean", "cheng2020-anchor")
QUALITY = 5  # of 8 (of 6 for cheng2020-anchor): which width the networks have
MULTIPLE = 64  # sides are padded to multiples of it


@dataclass(frozen=True)
class Baseline(Codec):
    """A network that is ready to code pictures."""

    name: str
    net: Any
    device: str
    kind = "baseline"
    settings = (Setting("quality", QUALITY),)
    described = f"CompressAI, quality {QUALITY}, random weights: times only"

    def encode(self, clip: Photo, setting: Setting) -> Coded:
        """The coded strings, after what decoding needs beside them as JSON."""
        height, width = clip.x.shape[:2]
        with torch.inference_mode():
            x = torch.from_numpy(clip.x.transpose(2, 0, 1).copy()).to(self.device).float()[None] / 255  # [1, 3, H, W]
            padding = (0, -width % MULTIPLE, 0, -height % MULTIPLE)
            found: dict[str, Any] = self.net.compress(torch.nn.functional.pad(x, padding, mode="replicate"))
        strings = found["strings"]
        head = {"parts": [len(part) for part in strings], "shape": list(found["shape"]), "size": [height, width]}
        files = (json.dumps(head).encode(), *(string for part in strings for string in part))
        return Coded(files, sum(map(len, files)))

    def decode(self, coded: Coded, variant: str = "") -> np.ndarray:
        """Pixels ``[H, W, 3]`` uint8."""
        head, rest = json.loads(coded.files[0]), iter(coded.files[1:])
        strings = [[next(rest) for _ in range(n)] for n in head["parts"]]
        height, width = head["size"]
        with torch.inference_mode():
            x_hat = self.net.decompress(strings, head["shape"])["x_hat"][0, :, :height, :width]
            return (x_hat.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()

    def spec(self) -> Spec:
        arguments = {"name": self.name, "device": self.device}
        return Spec("image.compressai:load_baseline", arguments, self.settings[0])


def check_baselines(names: Sequence[str]) -> list[str]:
    """The names without repetition. Raises UsageError for an unknown one, or if `compressai` cannot be imported."""
    found = chosen(names, MODELS, "CompressAI model {}")
    if found:
        _zoo()
    return found


def load_baseline(name: str, device: str) -> Baseline:
    """The model with random weights of seed 0, its entropy tables made, after one run on a small picture."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = getattr(_zoo(), name.replace("-", "_"))(quality=QUALITY, pretrained=False).eval()
    net.update()
    baseline = Baseline(name, net.to(device), device)
    warm_up(Photo("warm-up", np.zeros((MULTIPLE, MULTIPLE, 3), np.uint8)), [baseline])
    return baseline


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
