"""Fonts for drawn pictures (``codec/media/synthetic.py``): those that come with Matplotlib."""

from __future__ import annotations

from pathlib import Path


def matplotlib_fonts() -> list[str]:
    """Files of Matplotlib's Latin fonts: DejaVu, STIX and Computer Modern, all of free licences. None without it."""
    try:
        from matplotlib import get_data_path
    except ImportError:
        return []
    found = sorted(Path(get_data_path(), "fonts", "ttf").glob("*.ttf"))
    return [str(p) for p in found if p.name.startswith(("DejaVu", "STIXGeneral", "cmr", "cmss", "cmtt", "cmb"))]
