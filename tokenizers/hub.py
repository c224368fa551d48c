"""Models on the Hugging Face hub, by the mixin of `huggingface_hub`: their folder, and a card that says what they are.

Only this module needs that package, and nothing imports it before :meth:`~.api.Tokenizer.push_to_hub` is called.
"""

from __future__ import annotations

import copy
import math
import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin

from .api import Tokenizer
from .folders import HUB, read_config
from .registry import tokenizer_kinds
from .weights import WEIGHTS_FILE, file_hash

CARD_FILE = "README.md"
WEIGHTS_FILES = (WEIGHTS_FILE, "diffusion_pytorch_model.safetensors")
REPOSITORY_TAGS = ("tokodec", "tokenizer", "compression")


class HubTokenizer(ModelHubMixin, library_name="tokodec", tags=list(REPOSITORY_TAGS)):
    """A tokenizer as the mixin publishes and loads it.

    >>> HubTokenizer(tokenizer).push_to_hub("me/my-vq", private=True, model_card_kwargs={"license": "mit"})
    >>> tokenizer = HubTokenizer.from_pretrained("me/my-vq", revision="v1").tokenizer
    """

    def __init__(self, tokenizer: Tokenizer, repo_id: str = "") -> None:
        self.tokenizer, self.repo_id = tokenizer, repo_id
        self.files: list[str] = []

    def push_to_hub(self, repo_id: str, **more: Any) -> Any:
        """Upload the model and its card in one commit, see `ModelHubMixin.push_to_hub`. Returns where it is."""
        self.repo_id = repo_id if "/" in repo_id else f"USER/{repo_id}"
        return super().push_to_hub(repo_id, **more)

    def _save_pretrained(self, save_directory: Path) -> None:
        source = unchanged(self.tokenizer)
        if source is None:
            copy.deepcopy(self.tokenizer).save_pretrained(save_directory)  # which stays that of its own folder
        else:  # weights would be rounded once more
            for path in (*source.glob("*.json"), *source.glob("*.safetensors")):
                shutil.copyfile(path, save_directory / path.name)
        self.files = sorted(path.name for path in save_directory.glob("*.safetensors"))

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **hub: Any) -> HubTokenizer:
        if Path(model_id).is_dir():
            return cls(Tokenizer.from_pretrained(Path(model_id)))
        return cls(Tokenizer.from_pretrained(HUB + model_id, **hub))

    def generate_model_card(self, **about: Any) -> ModelCard:
        """The card of the folder that the model comes from, or one of what the model says of itself.

        Args: about: fields of the metadata, such as ``license``, ``datasets``, ``language`` or ``base_model``.
        """
        data = {**self._hub_mixin_info.model_card_data.to_dict(), **about}
        data["tags"] = sorted({*data.get("tags", ()), self.tokenizer.modality})
        source = self.tokenizer.source
        own = None if source is None else source / CARD_FILE
        if own is not None and own.is_file():
            card = ModelCard(own.read_text(encoding="utf-8"), ignore_metadata_errors=True)
            held = card.data.to_dict()
            held["tags"] = sorted({*(held.get("tags") or ()), *data["tags"]})
            card.data = ModelCardData(**{**data, **held, **about})
            return card
        return ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{describe(self)}")


def unchanged(tokenizer: Tokenizer) -> Path | None:
    """The folder whose weights a tokenizer has, None if there is none that holds all of it."""
    source = tokenizer.source
    if source is None or not tokenizer.weights_hash or "base" in read_config(source):
        return None
    held = next((source / name for name in WEIGHTS_FILES if (source / name).is_file()), None)
    return source if held is not None and file_hash(held) == tokenizer.weights_hash else None


def describe(model: HubTokenizer) -> str:
    """The text of a card: what tokens there are, how many bits they take, how the model is used."""
    tokenizer, name = model.tokenizer, model.repo_id or f"USER/{model.tokenizer.name}"
    sizes, cell = tokenizer.codebook_sizes, math.prod(tokenizer.strides)
    bits = sum(math.log2(n) for n in sizes)
    unit, rate = "sample", f"{bits / cell:.4g} bits a sample"
    if tokenizer.modality != "audio":
        unit, rate = "pixel", f"{bits / cell:.4g} bits a pixel"
    elif tokenizer.sample_rate:
        rate = f"{bits / cell * tokenizer.sample_rate / 1000:.4g} kbit/s"
    strides = " x ".join(map(str, tokenizer.strides))
    rows = [
        ("signals", tokenizer.modality + (f" at {tokenizer.sample_rate:g} Hz" if tokenizer.sample_rate else "")),
        (f"{unit}s a cell", strides),
        ("codebooks", sizes_text(sizes)),
        ("codes of fixed lengths", rate),
        ("files", ", ".join(model.files) or "none"),
        ("weights hash, as in headers", tokenizer.weights_hash or "none: weights were changed"),
    ]
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows)])
    stem, suffix = {"image": ("photo", ".png"), "audio": ("song", ".wav")}.get(tokenizer.modality, ("clip", ".mp4"))
    kind = tokenizer_kinds().get(type(tokenizer).__name__)
    foreign = kind is None or not kind.module.startswith(".")
    package = f" and the package of its class, `{type(tokenizer).__name__}`" if foreign else ""
    extra = f"'tokodec[{tokenizer.extra}]'" if tokenizer.extra else "tokodec"
    return f"""# {tokenizer.name}

A tokenizer of `tokodec`: signals become integer codes, and codes become small files
that decode to the same codes on every machine.

{table}

It needs `pip install {extra}`{package}.

```python
import tokodec

tokenizer = {tokenizer.load_code(HUB + name)}
tokodec.encode_file("{stem}{suffix}", "{stem}.tok", model=tokenizer)
tokodec.decode_file("{stem}.tok", "back{suffix}", model=tokenizer)
```
"""


def sizes_text(sizes: tuple[int, ...]) -> str:
    """Codebooks, those of one size counted."""
    if len(set(sizes)) == 1:
        return f"{len(sizes)} of {sizes[0]} codes"
    return ", ".join(map(str, sizes)) if len(sizes) <= 16 else f"{len(sizes)} of {min(sizes)} to {max(sizes)} codes"
