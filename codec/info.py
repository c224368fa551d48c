"""What a `.tok` file holds, told without decoding it and without torch."""

from __future__ import annotations

from typing import Any

from .container import (
    ALPH,
    EXIF,
    FRAME,
    HYPERPRIOR,
    ICCP,
    LAYR,
    VERSION,
    AudioHeader,
    Header,
    header_fields,
    read_tok,
)
from .errors import FormatError


def describe(data: bytes, name: str) -> dict[str, Any]:
    """Header fields by their names in FORMAT.md, then sizes and state of the file. ``quality`` is divided by 100 and
    left out where the model has no such dial.

    Keys beyond the header: ``bytes``, ``bpp`` of pictures, ``seconds`` and ``kbps`` of sounds, ``grid``, ``segments``,
    ``layer_bytes`` (payload bytes of each layer over all segments), ``overhead_bytes``, ``icc_bytes``, ``exif_bytes``,
    ``alpha_bytes``, ``complete``, ``problems``.

    Raises: a FormatError that names the file.
    """
    try:
        tok = read_tok(data)
    except FormatError as error:
        raise type(error)(f"{name}: {error}") from error
    header = tok.header
    found: dict[str, Any] = {"file": name, "version": VERSION}
    for f in header_fields(header.modality):
        value = getattr(header, f.name)
        if f.name == "quality":
            if value or header.prior == HYPERPRIOR:  # a quality of 0 is one too
                found[f.name] = value / 100
            continue
        found[f.name] = value if f.names is None or f.name in ("bit_depth", "alpha") else f.names[value]
    layers = []
    for k in range(header.layers):
        payloads = [tok.payload(LAYR, k, s) for s in range(header.n_segments) if (LAYR, k, s) in tok.places]
        layers.append(sum(len(p) for p in payloads if p is not None))
    sizes = {kind: len(tok.payload(kind) or b"") if (kind, 0, 0) in tok.places else 0 for kind in (ICCP, EXIF, ALPH)}
    found |= {
        "bytes": len(data),
        **_rate(header, len(data)),
        "grid": list(header.grid),
        "segments": header.n_segments,
        "layer_bytes": layers,
        "overhead_bytes": len(data) - sum(layers) - sum(size + FRAME for size in sizes.values() if size),
        "icc_bytes": sizes[ICCP],
        "exif_bytes": sizes[EXIF],
        "alpha_bytes": sizes[ALPH],
        "complete": tok.complete,
        "problems": tok.problems,
    }
    return found


def _rate(header: Header, size: int) -> dict[str, float]:
    if isinstance(header, AudioHeader):
        return {"seconds": round(header.seconds, 6), "kbps": round(8e-3 * size / header.seconds, 6)}
    return {"bpp": round(8 * size / (header.height * header.width), 6)}
