"""The settings of a codec's rate control that benchmarks and the demo go through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from ..tokenizers.api import Tokenizer

QUALITIES = (0.0, 10.0, 20.0, 35.0, 50.0, 65.0, 80.0, 90.0, 100.0)


@dataclass(frozen=True)
class Setting:
    """One setting of a rate control: quality 20, 2 levels, 6 kbit/s, CRF 31.

    ``control``: a keyword of :func:`.encode.encode_file` ("quality", "levels", "kbps", "size"), or what another codec
    calls its own; "file" where there is nothing to choose.
    """

    control: str
    value: float

    @property
    def label(self) -> str:
        """For readers, e.g. "2 levels"."""
        if self.control == "file":
            return "as it is"
        if self.control == "levels":
            return f"{self.value:g} level{'s' * (self.value != 1)}"
        return f"{self.value:g} kbit/s" if self.control == "kbps" else f"{self.control} {self.value:g}"

    @property
    def rate(self) -> dict[str, Any]:
        """As a keyword of :func:`.encode.encode_file`."""
        return {self.control: int(self.value) if self.control in ("levels", "size") else self.value}


def rate_settings(tokenizer: Tokenizer, qualities: Sequence[float] | None = None) -> tuple[Setting, ...]:
    """The settings to go through, few bytes first: ``qualities`` of a model whose rate control is a quality, else every
    number of levels.

    Raises: UsageError for a quality outside of 0 to 100, for none, and for qualities of a model that has levels.
    """
    if tokenizer.rate_control != "quality":
        if qualities is not None:
            raise UsageError(f"the rate of {tokenizer.name} is its levels: leave the qualities out")
        return tuple(Setting("levels", n) for n in range(1, len(tokenizer.codebook_sizes) + 1))
    chosen = sorted(set(QUALITIES if qualities is None else qualities))
    if not chosen or not all(0 <= quality <= 100 for quality in chosen):
        raise UsageError("qualities are numbers from 0 to 100")
    return tuple(Setting("quality", quality) for quality in chosen)


def synthesis_nets(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Names of a model's synthesis nets; one empty name if it has one net only."""
    names = getattr(tokenizer.config, "synthesis", None)
    return tuple(names) if isinstance(names, (tuple, list)) else ("",)
