"""Write the beginning of a model's card: what it is, how it was made, what it does on held-out media."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CARD = "README.md"


def card_text(name: str, about: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of a card.

    Args:
        about: ``training.json`` without its lists.
        rows: of the held-out media, all with the same names.
    """
    heads = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in (row.get(h, "") for h in heads)] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *cells)]
    made = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in about.items())
    return (
        f"# {name}\n\nWhat it is for, and what it is bad at: to be written.\n\n## Made by\n{made}.\n"
        "The recipe and the curves are in `training.json`.\n\n## Data\nSources and licences: to be written.\n\n"
        "## On held-out media\n" + "\n".join(lines) + "\n"
    )


def write_card(folder: Path, name: str, results: dict[str, Any]) -> bool:
    """Write the card of a model into its folder if there is none; returns whether it was written."""
    path = folder / CARD
    if path.exists():
        return False
    about = {k: v for k, v in results.items() if isinstance(v, str | int | float)}
    path.write_text(card_text(name, about, results["holdout"]), encoding="utf-8")
    return True
