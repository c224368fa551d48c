"""Models for the codec: a tokenizer with its entropy model, found by name or folder, errors as one line."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tokenizers.registry import tokenizer_kinds
from .container.chunks import read_counts
from .container.fields import FIT, Header
from .errors import ModelError, UsageError, WeightsMismatchError
from .registry import FITTED, GENERATOR, MODALITY_NAMES, PRIOR_NAMES, prior_kinds

if TYPE_CHECKING:
    import torch

    from ..entropy.tree import CodeTree
    from ..tokenizers.api import Tokenizer


ASSETS = Path(__file__).resolve().parent.parent / "assets"
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"  # as in tokenizers/, which would import torch
MOST_TOKENS = 4096
FOREIGN_WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Model:
    """What a file is made with. entropy: its entropy model; None if it has none, and there is none by default."""

    tokenizer: Tokenizer
    entropy: Any

    @property
    def prior(self) -> Any:
        """The entropy model: a Prior; a HyperPrior, which is part of the tokenizer, if its rate is a quality.

        Raises: ModelError if there is none.
        """
        if self.entropy is None:
            raise ModelError(f"{self.tokenizer.name} has no entropy model: train one with tokodec.train.prior")
        return self.entropy

    @property
    def trees(self) -> list[CodeTree]:
        """The digits of every codebook's codes, coarse to fine. Raises UsageError if the entropy model has none."""
        trees: list[CodeTree] | None = getattr(self.entropy, "trees", None)
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


def load_model(name: str | Tokenizer, device: str | torch.device = "cpu", prior: str | None = None) -> Model:
    """Load a tokenizer and an entropy model by release name, folder or `hf:USER/MODEL`; kept for the next call.

    A model without an entropy model is used with codes of fixed lengths, unless its codes need one. A tokenizer itself
    is used as and where it is, with the entropy models of the folder that it was loaded from or saved to, if any.

    Args:   prior: name of an entropy model, see registry.py; the first there that the model has if None.
    Raises: ModelError if there is none or it is damaged, or the model has another ``prior``; UsageError for a device.
    """
    return _load(name, device, prior)


def _load(name: str | Tokenizer, device: str | torch.device, prior: str | None, prior_hash: str | None = None) -> Model:
    """As :func:`load_model`. prior_hash: of a static entropy model, which may be that of codes of fixed lengths."""
    from ..tokenizers.folders import find_model

    kinds = prior_kinds()
    try:
        device = pick_device(device)
        folder: Path | None
        if isinstance(name, str):
            folder = find_model(name)
            files = (WEIGHTS_FILE, FOREIGN_WEIGHTS_FILE, CONFIG_FILE, kinds["hyperprior"].file)
            tokenizer = _load_tokenizer(folder, device, _written(folder, *files))
        else:
            tokenizer, folder = name, name.source
        entropy = getattr(tokenizer, "entropy", None)  # part of the tokenizer, if its rate is a quality
        if entropy is not None:
            own = PRIOR_NAMES[entropy.wire_id]
            if prior not in (None, own):
                raise ValueError(f"{tokenizer.name} has no entropy model {prior!r}, only {own!r}")
        elif prior == "static" and prior_hash == _uniform(tokenizer.codebook_sizes).hash:
            entropy = _uniform(tokenizer.codebook_sizes)  # whatever the model has got since then
        else:
            entropy = _find_prior(folder, prior, tokenizer, device)
    except (OSError, ValueError) as error:
        raise ModelError(" ".join(str(error).split())) from error
    if entropy is not None and entropy.codebook_sizes != tokenizer.codebook_sizes:
        raise ModelError(f"the entropy model in {folder} has other codebook sizes than the tokenizer")
    return Model(tokenizer, entropy)


def _find_prior(folder: Path | None, prior: str | None, tokenizer: Tokenizer, device: str) -> Any:
    """An entropy model of a folder, or one of fixed lengths, None if there is neither. Raises ValueError."""
    files = {} if folder is None else {name: folder / kind.file for name, kind in prior_kinds().items() if kind.file}
    there = [name for name, path in files.items() if path.is_file()]
    fixed = not there and not tokenizer.needs_prior
    if prior is not None and prior not in (there or ["static"] * fixed):
        known = " and ".join(map(repr, there)) or ("'static'" if fixed else "none")
        raise ValueError(f"{tokenizer.name} has no entropy model {prior!r}, only {known}")
    if folder is not None and there:
        name = prior or there[0]
        return _load_prior(folder, name, device, _written(folder, prior_kinds()[name].file))
    return _uniform(tokenizer.codebook_sizes) if fixed else None


def _written(folder: Path, *files: str) -> tuple[int, ...]:
    """When files of a model were written: a retrained one is another."""
    return tuple((folder / file).stat().st_mtime_ns for file in files if (folder / file).is_file())


@functools.lru_cache(maxsize=4)
def _load_tokenizer(folder: Path, device: str, written: tuple[int, ...]) -> Tokenizer:
    from ..tokenizers.api import Tokenizer

    return Tokenizer.from_pretrained(folder).to(device)


@functools.lru_cache(maxsize=4)
def _load_prior(folder: Path, name: str, device: str, written: tuple[int, ...]) -> Any:
    module, attribute = prior_kinds()[name].target.split(":")
    package = __package__.rpartition(".")[0]
    return getattr(importlib.import_module(module, package), attribute).from_pretrained(folder, device)


@functools.lru_cache(maxsize=4)
def _uniform(codebook_sizes: tuple[int, ...]) -> Any:
    from ..entropy.static import StaticPrior

    return StaticPrior.uniform(codebook_sizes)


def load(name: str | Path = "image-grid", device: str | torch.device = "auto") -> Tokenizer:
    """Load a tokenizer by release name, folder or `hf:USER/MODEL`, ready for inference.

    Args:   device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1" and so on, or a `torch.device`.
    Raises: ModelError if there is none of that name or it is damaged.
    """
    from ..tokenizers.api import Tokenizer

    try:
        return Tokenizer.from_pretrained(name).to(pick_device(device))
    except (OSError, ValueError) as error:
        raise ModelError(" ".join(str(error).split())) from error


def prior_of_counts(payload: bytes, codebook_sizes: Sequence[int]) -> Any:
    """The static entropy model of a file's own counts, see :func:`~.container.chunks.read_counts`."""
    from ..entropy.static import StaticPrior

    return StaticPrior.from_counts(read_counts(payload, codebook_sizes)).hashed()


def model_for(
    header: Header, name: str | Tokenizer | None, device: str = "auto", option: str = "--model",
    counts: bytes | None = None,
) -> Model:  # fmt: skip
    """The model that a file was made with, from its header; ``name`` overrides where to look.

    option: of the command line, in which a name can be given.
    counts: of codes, if the file brings its static tables along.

    A name that a file brings along only ever means a released model: a file must not make us open folders or download.

    Raises: ModelError if there is none, WeightsMismatchError if weights or prior are not the file's.
    """
    from ..tokenizers.folders import HUB, released_models

    if header.prior == FIT:
        raise ModelError(f"files of {FITTED} are videos that need no model, and this one claims otherwise")
    if name is None and header.model not in released_models():
        hub = f", or {HUB}{header.model}" if header.model.count("/") == 1 else ""
        raise ModelError(
            f"made with the model {header.model}, which does not come with tokodec; give its folder with {option}{hub}"
        )
    wanted = PRIOR_NAMES[header.prior]
    model = _load(name or header.model, device, wanted if counts is None else None, header.prior_hash)
    tokenizer, prior = model.tokenizer, model.entropy
    if counts is not None:
        prior = prior_of_counts(counts, tokenizer.codebook_sizes)
        model = Model(tokenizer, prior)
    if tokenizer.modality != MODALITY_NAMES[header.modality]:
        kind = MODALITY_NAMES[header.modality]
        raise ModelError(f"the file is of kind {kind}, {tokenizer.name} is a model for {tokenizer.modality}")
    if tokenizer.weights_hash != header.weights_hash:
        raise WeightsMismatchError(
            f"the file was made with weights {header.weights_hash} of {header.model},"
            f" the {tokenizer.name} at hand has {tokenizer.weights_hash}; give the right folder with {option}"
        )
    if prior is None or (prior.wire_id, prior.hash) != (header.prior, header.prior_hash):
        own = "none" if prior is None else f"{PRIOR_NAMES[prior.wire_id]} {prior.hash}"
        raise WeightsMismatchError(
            f"the file was made with entropy model {wanted} {header.prior_hash},"
            f" {tokenizer.name} has {own}; give the right folder with {option}"
        )
    if tokenizer.rate_control == "levels" and header.layers > len(tokenizer.codebook_sizes):
        raise ModelError(f"the file has {header.layers} layers, {tokenizer.name} only {len(tokenizer.codebook_sizes)}")
    return model


def weights_hash_of(folder: Path, file: str = WEIGHTS_FILE) -> str:
    """Hash of a model's weights, which are not loaded. Raises ModelError if they are missing or damaged. No torch."""
    from ..entropy.packed import file_hash

    try:
        return file_hash(folder / file)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read weights {folder / file}: {error}") from error


def is_model(name: str) -> bool:
    """Whether this is a folder with a model."""
    return (Path(name) / CONFIG_FILE).is_file()


def describe_model(folder: Path) -> dict[str, Any]:
    """What is in a tokenizer's folder: name, class, modality, base, quantizer ("" if it is not of a kind), codebooks,
    bytes, hash, entropy models. No torch. Raises ModelError if it is damaged."""
    from ..tokenizers.folders import read_config
    from ..tokenizers.quantizers import describe

    try:
        entry = read_config(folder)
        config, kind = entry["config"], tokenizer_kinds()[entry["class"]]
        section = config.get("quantizer") or config.get("codes") or kind.quantizer
        quantizer, sizes = describe(section), _codebook_sizes(config)
    except ValueError as error:
        detail = " ".join(str(error).split())
        raise ModelError(detail if str(folder) in detail else f"{folder / CONFIG_FILE}: {detail}") from error
    except (TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{folder / CONFIG_FILE} has settings that no model has") from error
    parts = folder.parent / entry["base"] if "base" in entry else folder  # released beside its base
    file = WEIGHTS_FILE if (folder / WEIGHTS_FILE).is_file() else FOREIGN_WEIGHTS_FILE
    return {
        "name": entry["name"],
        "class": entry["class"],
        "modality": kind.modality,
        "base": entry.get("base"),
        "quantizer": quantizer,
        "codebook_sizes": sizes,
        "rate_control": kind.rate_control,
        "synthesis": config.get("synthesis", []),
        "bytes": sum(p.stat().st_size for p in folder.glob("*.safetensors")),
        "weights_hash": weights_hash_of(folder, file),
        "priors": [name for name, k in prior_kinds().items() if k.file and (parts / k.file).is_file()],
        "folder": str(folder),
    }


def list_models() -> list[dict[str, Any]]:
    """The released tokenizers, see :func:`describe_model`. No torch."""
    paths = sorted(ASSETS.glob(f"*/{CONFIG_FILE}"))
    kinds = tokenizer_kinds()
    return [describe_model(path.parent) for path in paths if json.loads(path.read_text())["class"] in kinds]


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
    each = [config["codebook_size"]] if "codebook_size" in config else config.get("codebook_sizes", [])
    count = config.get("tokens", config.get("groups", 1))
    if not isinstance(count, int) or count > MOST_TOKENS:
        raise ValueError(f"a config says that there are {count!r} tokens or groups")
    return [n for n in each for _ in range(count)]
