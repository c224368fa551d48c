"""What a `.tok` file holds, told without decoding it and without torch."""

from __future__ import annotations

from collections import Counter
from typing import Any

from .container.chunks import ALPH, AUDL, CNTS, EXCT, EXIF, ICCP, LAYR, TIME, XMPP
from .container.fields import HYPERPRIOR, VERSION, ImageHeader, VideoHeader, header_fields
from .container.read import TokFile, read_tok
from .errors import FormatError

PARTS = {"icc": ICCP, "exif": EXIF, "xmp": XMPP, "alpha": ALPH, "exact": EXCT}
VIDEO_PARTS = {"time": TIME, "sound": AUDL}


def describe(data: bytes, name: str) -> dict[str, Any]:
    """Header fields by their names in FORMAT.md, then sizes and state of the file. ``quality`` is divided by 100 and
    left out where the model has none; a picture whose blocks are all exact has ``lossless`` in its place.

    Keys beyond the header: ``bytes``, ``bpp`` of pictures and videos, ``seconds`` and ``kbps`` of sounds and videos
    (nearly, of videos whose frames are not evenly spaced), ``grid``, ``segments``, ``layer_bytes`` (payload bytes of
    each layer over all segments), ``icc_bytes``, ``exif_bytes``, ``xmp_bytes``, ``alpha_bytes``, ``exact_bytes`` (of
    payloads), ``overhead_bytes`` (what is in none of them: the header, the frames of chunks, the index), ``complete``,
    ``problems``; ``counts_bytes`` of a file with static tables of its own; of videos ``time_bytes`` and ``sound_bytes``
    (payloads as well), and if there is sound its ``sound_model``, ``sound_samples``, ``sound_rate`` and
    ``sound_channels``.

    Raises: a FormatError that names the file.
    """
    try:
        tok = read_tok(data)
        sizes = _payload_sizes(tok)
    except FormatError as error:
        raise type(error)(f"{name}: {error}") from error
    header = tok.header
    found: dict[str, Any] = {"file": name, "version": VERSION}
    lossless = isinstance(header, ImageHeader) and _is_lossless(tok, header)
    for f in header_fields(header.modality):
        value = getattr(header, f.name)
        if f.name == "quality":
            if lossless:
                found["lossless"] = True
            elif value or header.prior == HYPERPRIOR:  # a quality of 0 is one too
                found[f.name] = value / 100
            continue
        found[f.name] = value if f.names is None or f.name in ("bit_depth", "alpha") else f.names[value]
    counts = {"counts_bytes": sizes[CNTS, 0]} if (CNTS, 0, 0) in tok.places else {}
    layers = [sizes[LAYR, k] for k in range(header.layers)]
    parts = {f"{name}_bytes": sizes[kind, 0] for name, kind in PARTS.items()}
    video = {f"{name}_bytes": sizes[kind, 0] for name, kind in VIDEO_PARTS.items()}
    found |= {
        "bytes": len(data),
        **header.rates(len(data)),
        "grid": list(header.grid),
        "segments": header.n_segments,
        "layer_bytes": layers,
        "overhead_bytes": len(data) - sum(layers) - sum(parts.values()) - sum(video.values()) - sum(counts.values()),
        **parts,
        **counts,
        **(video if isinstance(header, VideoHeader) else {}),
    }
    if tok.track is not None:
        sound = tok.track[0]
        found |= {
            "sound_model": sound.model,
            "sound_samples": sound.samples,
            "sound_rate": sound.sample_rate,
            "sound_channels": sound.channels,
        }
    return found | {"complete": tok.complete, "problems": tok.problems}


def _payload_sizes(tok: TokFile) -> Counter[tuple[bytes, int]]:
    """Bytes of the payloads of all chunks that are there and whole, by kind and layer."""
    sizes: Counter[tuple[bytes, int]] = Counter()
    indexed = tok.indexed
    for kind, layer, segment in list(tok.places):
        sizes[kind, layer] += len(tok.payload(kind, layer, segment) or b"")
    return sizes if tok.indexed == indexed else _payload_sizes(tok)  # the index was wrong: places are others now


def _is_lossless(tok: TokFile, header: ImageHeader) -> bool:
    """Whether the blocks of all segments are exact, and nothing of them is lost."""
    if not all((EXCT, 0, segment) in tok.places for segment in range(header.n_segments)):
        return False
    from .image.exact import is_whole

    for segment in range(header.n_segments):
        top, left, bottom, right = (header.stride * edge for edge in header.segment_box(segment))
        payload = tok.payload(EXCT, 0, segment) or b""
        if not is_whole(payload, (min(bottom, header.height) - top, min(right, header.width) - left)):
            return False
    return True
