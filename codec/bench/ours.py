"""Our models as contenders: the one place from where benchmarks encode and decode files with the product."""

from __future__ import annotations

import functools
import io
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...tokenizers.folders import CONFIG_FILE, CURVES_FILE, is_path
from ..contract import Decoded
from ..decode import decode_file
from ..encode import encode_file
from ..errors import UsageError
from ..models import load_model, pick_device
from ..options import check_effort
from ..registry import MODALITIES
from ..settings import Setting
from .contender import Codec, Coded

if TYPE_CHECKING:
    from ...tokenizers.api import Tokenizer

THINGS = {"image": "pictures", "audio": "sounds", "video": "videos"}  # by modality


def encode(source: Path | bytes, model: str, device: str, setting: Setting | None = None, **more: Any) -> bytes:
    """A `.tok` file of a file or its bytes. setting: the model's default if None.  more: options of encoding."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    return encode_file(file, model=model, device=device, **(setting.rate if setting else {}), **more).data


def decode(data: bytes, model: str, device: str, synthesis: str = "") -> Decoded:
    """What a `.tok` file of a picture or a sound holds."""
    return decode_file(io.BytesIO(data), model=model, synthesis=synthesis or None, device=device)


@dataclass(frozen=True)
class Ours(Codec):
    """A model that is ready to run. ``model``: name, folder or `hf:USER/MODEL`.  ``settings``: few bytes first."""

    model: str
    name: str
    settings: tuple[Setting, ...]
    device: str
    effort: int = 0
    variants: tuple[str, ...] = ("",)
    kind = "ours"

    @property
    def described(self) -> str:
        effort = f", effort {self.effort}" if self.effort else ""
        return f".tok files{effort}: {', '.join(setting.label for setting in self.settings)}"

    def encode(self, clip: Any, setting: Setting) -> Coded:
        """The whole way from a file of the clip to a .tok file."""
        more = {"effort": self.effort} if self.effort else {}
        return Coded.of(encode(clip.as_file(), self.model, self.device, setting, **more))


@functools.cache
def _beside() -> tempfile.TemporaryDirectory[str]:
    """Copies of models, until the process ends."""
    return tempfile.TemporaryDirectory()


@functools.cache
def as_it_is_now(model: str) -> str:
    """A copy of a folder that a training run writes to, whose weights may be others before a benchmark ends."""
    folder = Path(model)
    if not (is_path(model) and (folder / CURVES_FILE).is_file() and (folder / CONFIG_FILE).is_file()):
        return model
    copy = Path(tempfile.mkdtemp(dir=_beside().name)) / folder.resolve().name
    copy.mkdir()
    for path in sorted(folder.glob("*.safetensors")):
        shutil.copy2(path, copy)
    shutil.copy2(folder / CONFIG_FILE, copy)
    return str(copy)


def load_ours(model: str | None, modality: str, device: str, effort: int = 0) -> tuple[str, str, Tokenizer]:
    """Load a model, the default of its modality if None.

    Returns: its name, folder or `hf:USER/MODEL`, the device, and the tokenizer.
    Raises:  UsageError for a model of something else, and for what is no effort.
    """
    check_effort(effort)
    model, device = as_it_is_now(model or MODALITIES[modality].encode_model), pick_device(device)
    tokenizer = load_model(model, device).tokenizer
    if tokenizer.modality != modality:
        raise UsageError(f"{tokenizer.name} is not a model for {THINGS[modality]}")
    return model, device, tokenizer


def rates(kbps: Sequence[float]) -> list[Setting]:
    """Rates in kbit/s as settings, rising. Raises UsageError for one that is none."""
    if not all(rate > 0 and math.isfinite(rate) for rate in kbps):
        raise UsageError("rates are numbers above 0, in kbit/s")
    return [Setting("kbps", rate) for rate in sorted(set(kbps))]
