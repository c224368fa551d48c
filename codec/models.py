"""Models for the codec: a tokenizer with its entropy model, found by name or folder, errors as one line."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .container.fields import FIT, PRIORS, Header
from .container.fields import MODALITIES as MODALITY_NAMES
from .errors import ModelError, UsageError, WeightsMismatchError
from .registry import DIALS, FITTED, GENERATOR, MODALITIES, PRIOR_FILES

if TYPE_CHECKING:
    import torch

    from ..entropy.hyperprior.prior import HyperPrior
    from ..entropy.prior import Prior
    from ..entropy.tree import CodeTree
    from ..tokenizers.api import Tokenizer


ASSETS = Path(__file__).resolve().parent.parent / "assets"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # as in tokenizers/, which would import torch


@dataclass(frozen=True)
class Model:
    """What a file is made with."""

    tokenizer: Tokenizer
    prior: Any  # a Prior; a HyperPrior, which is part of the tokenizer, if the rate dial is a quality

    @property
    def trees(self) -> list[CodeTree]:
        """The digits of every codebook's codes, coarse to fine. Raises UsageError if the entropy model has none."""
        trees: list[CodeTree] | None = getattr(self.prior, "trees", None)
        if trees is None:
            raise UsageError(f"{self.tokenizer.name} has no digits: only context priors write codes in digits")
        return trees


def pick_device(device: str | torch.device) -> str:
    """Resolve "auto" to "cuda" where there is a GPU, else "cpu".

    Args:    device: "auto", "cpu", "cuda", "cuda:1" and so on, or a `torch.device`.
    Returns: "cpu", "cuda" (the GPU that is PyTorch's current one) or "cuda:N" (another one).
    Raises:  UsageError for what is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or str(device).endswith(":") or not (number.isdecimal() or not number):
        raise UsageError(f"unknown device {str(device)!r}: use auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        return kind
    if not torch.cuda.is_available():
        raise UsageError("no CUDA GPU here: use --device cpu")
    if number and int(number) >= torch.cuda.device_count():
        raise UsageError(f"no GPU {number} here: they are numbered 0 to {torch.cuda.device_count() - 1}")
    return kind if not number or int(number) == torch.cuda.current_device() else f"{kind}:{int(number)}"


def load_model(name: str, device: str | torch.device = "cpu", prior: str | None = None) -> Model:
    """Load a tokenizer and one of its entropy models by release name, folder or hub id; kept for the next call.

    Args:   prior: "hyperprior", "context" or "static"; the first of these that the model has if None.
    Raises: ModelError if there is none or it is damaged, UsageError for another ``prior``.
    """
    from ..tokenizers.folders import find_model

    if prior is not None and prior not in PRIOR_FILES:
        raise UsageError(f"unknown entropy model {prior!r}: use context or static")
    try:
        folder = find_model(name)
        there = [kind for kind, file in PRIOR_FILES.items() if (folder / file).is_file()]
        kind = prior or next(iter(there), "static")
        if prior is not None and there and prior not in there:
            raise ValueError(f"{name} has no entropy model {prior!r}, only {' and '.join(map(repr, there))}")
        device = pick_device(device)
        files = (WEIGHTS_FILE, CONFIG_FILE, PRIOR_FILES["hyperprior"])
        tokenizer = _load_tokenizer(folder, device, _written(folder, *files))
        loaded = _prior_of(tokenizer) or _load_prior(folder, kind, device, _written(folder, PRIOR_FILES[kind]))
    except (OSError, ValueError) as error:
        raise ModelError(" ".join(str(error).split())) from error
    if loaded.codebook_sizes != tokenizer.codebook_sizes:
        raise ModelError(f"the entropy model {kind!r} in {folder} has other codebook sizes than the tokenizer")
    return Model(tokenizer, loaded)


def _prior_of(tokenizer: Tokenizer) -> HyperPrior | None:
    """The entropy model that is part of a tokenizer, if one is."""
    from ..entropy.hyperprior.prior import HyperPrior

    found = getattr(tokenizer, "entropy", None)
    return found if isinstance(found, HyperPrior) else None


def _written(folder: Path, *files: str) -> tuple[int, ...]:
    """When files of a model were written: a retrained one is another."""
    return tuple((folder / file).stat().st_mtime_ns for file in files if (folder / file).is_file())


@functools.lru_cache(maxsize=4)
def _load_tokenizer(folder: Path, device: str, written: tuple[int, ...]) -> Tokenizer:
    from ..tokenizers.api import Tokenizer

    return Tokenizer.from_pretrained(folder).to(device)


@functools.lru_cache(maxsize=4)
def _load_prior(folder: Path, kind: str, device: str, written: tuple[int, ...]) -> Prior:
    if kind == "static":
        from ..entropy.static import StaticPrior

        return StaticPrior.from_pretrained(folder)
    if kind == "tail":
        from ..entropy.tail import TailPrior

        return TailPrior.from_pretrained(folder)
    from ..entropy.context.prior import ContextPrior

    return ContextPrior.from_pretrained(folder, device)


def load(name: str | Path = "image-grid", device: str | torch.device = "auto") -> Tokenizer:
    """Load a tokenizer by release name, folder or hub id, ready for inference.

    Args:   device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" and so on, or a `torch.device`.
    Raises: ModelError if there is none of that name or it is damaged.
    """
    from ..tokenizers.api import Tokenizer

    try:
        return Tokenizer.from_pretrained(name).to(pick_device(device))
    except (OSError, ValueError) as error:
        raise ModelError(" ".join(str(error).split())) from error


def model_for(header: Header, name: str | None, device: str, option: str = "--model") -> Model:
    """The model that a file was made with, from its header; ``name`` overrides where to look.

    option: of the command line, in which a name can be given.

    A name that a file brings along only ever means a released model: a file must not make us open folders or download.

    Raises: ModelError if there is none, WeightsMismatchError if weights or prior are not the file's.
    """
    from ..tokenizers.folders import released_models

    if header.prior == FIT:
        raise ModelError(f"files of {FITTED} are videos that need no model, and this one claims otherwise")
    if name is None and header.model not in released_models():
        raise ModelError(
            f"made with the model {header.model}, which does not come with tokodec; give its folder with {option}"
        )
    model = load_model(name or header.model, device, PRIORS[header.prior])
    tokenizer, prior = model.tokenizer, model.prior
    if tokenizer.modality != MODALITY_NAMES[header.modality]:
        kind = MODALITY_NAMES[header.modality]
        raise ModelError(f"the file is of kind {kind}, {tokenizer.name} is a model for {tokenizer.modality}")
    if tokenizer.weights_hash != header.weights_hash:
        raise WeightsMismatchError(
            f"the file was made with weights {header.weights_hash} of {header.model},"
            f" the {tokenizer.name} at hand has {tokenizer.weights_hash}; give the right folder with {option}"
        )
    if (prior.wire_id, prior.hash) != (header.prior, header.prior_hash):
        raise WeightsMismatchError(
            f"the file was made with entropy model {PRIORS[header.prior]} {header.prior_hash},"
            f" {tokenizer.name} has {PRIORS[prior.wire_id]} {prior.hash}; give the right folder with {option}"
        )
    if tokenizer.dial == "levels" and header.layers > len(tokenizer.codebook_sizes):
        raise ModelError(f"the file has {header.layers} layers, {tokenizer.name} only {len(tokenizer.codebook_sizes)}")
    return model


def weights_hash_of(folder: Path) -> str:
    """Hash of a model's weights, which are not loaded. Raises ModelError if they are missing or damaged. No torch."""
    from ..entropy.packed import file_hash

    try:
        return file_hash(folder / WEIGHTS_FILE)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read weights {folder / WEIGHTS_FILE}: {error}") from error


def list_models() -> list[dict[str, Any]]:
    """The released tokenizers: name, class, modality, base, codebooks, bytes, hash, entropy models. No torch."""
    found = []
    for config in sorted(ASSETS.glob(f"*/{CONFIG_FILE}")):
        entry = json.loads(config.read_text())
        if entry["class"] not in MODALITIES:
            continue
        parts = config.parent.parent / entry["base"] if "base" in entry else config.parent  # released beside its base
        found.append(
            {
                "name": entry["name"],
                "class": entry["class"],
                "modality": MODALITIES[entry["class"]],
                "base": entry.get("base"),
                "codebook_sizes": _codebook_sizes(entry["config"]),
                "dial": DIALS.get(entry["class"], "levels"),
                "synthesis": entry["config"].get("synthesis", []),
                "bytes": sum(p.stat().st_size for p in config.parent.glob("*.safetensors")),
                "weights_hash": weights_hash_of(config.parent),
                "priors": [kind for kind, file in PRIOR_FILES.items() if (parts / file).is_file()],
                "folder": str(config.parent),
            }
        )
    return found


def list_generators() -> list[dict[str, Any]]:
    """The released generators: name, class, modality, tokenizer and its hash, levels, pattern, size, rate, bytes."""
    found = []
    for config in sorted(ASSETS.glob(f"*/{CONFIG_FILE}")):
        entry = json.loads(config.read_text())
        if entry["class"] != GENERATOR:
            continue
        window = entry["config"]["window"]
        found.append(
            {
                "name": entry["name"],
                "class": entry["class"],
                "modality": window["modality"],
                "tokenizer": window["model"],
                "tokenizer_hash": window["weights_hash"],
                "levels": entry["config"]["levels"],
                "pattern": entry["config"]["pattern"],
                "size": window["size"],
                "sample_rate": window.get("sample_rate"),
                "bytes": sum(p.stat().st_size for p in config.parent.glob("*.safetensors")),
                "weights_hash": weights_hash_of(config.parent),
                "folder": str(config.parent),
            }
        )
    return found


def _codebook_sizes(config: dict[str, Any]) -> list[int]:
    """Of all levels; the config of a group-residual quantizer has those of one group, that of a sequence the one."""
    if "codebook_size" in config:
        return [config["codebook_size"]] * config["tokens"]
    return [n for n in config.get("codebook_sizes", []) for _ in range(config.get("groups", 1))]
