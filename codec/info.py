"""What a `.tok` file holds, told without decoding it and without torch."""

from __future__ import annotations

from typing import Any

from .container.chunks import ALPH, AUDL, EXCT, EXIF, FRAME, ICCP, LAYR, TIME
from .container.fields import HYPERPRIOR, VERSION, ImageHeader, VideoHeader, header_fields
from .container.read import TokFile, read_tok
from .errors import FormatError


def describe(data: bytes, name: str) -> dict[str, Any]:
    """Header fields by their names in FORMAT.md, then sizes and state of the file. ``quality`` is divided by 100 and
    left out where the model has none; a picture whose blocks are all exact has ``lossless`` in its place.

    Keys beyond the header: ``bytes``, ``bpp`` of pictures and videos, ``seconds`` and ``kbps`` of sounds and videos
    (nearly, of videos whose frames are not evenly spaced), ``grid``, ``segments``, ``layer_bytes`` (payload bytes of
    each layer over all segments), ``overhead_bytes``, ``icc_bytes``, ``exif_bytes``, ``alpha_bytes``, ``exact_bytes``,
    ``complete``, ``problems``; of videos ``time_bytes`` and ``sound_bytes`` (payloads), and if there is sound its
    ``sound_model``, ``sound_samples``, ``sound_rate`` and ``sound_channels``.

    Raises: a FormatError that names the file.
    """
    try:
        tok = read_tok(data)
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
    layers = []
    for k in range(header.layers):
        payloads = [tok.payload(LAYR, k, s) for s in range(header.n_segments) if (LAYR, k, s) in tok.places]
        layers.append(sum(len(p) for p in payloads if p is not None))
    sizes = {kind: len(tok.payload(kind) or b"") if (kind, 0, 0) in tok.places else 0 for kind in (ICCP, EXIF, ALPH)}
    extras = sum(size + FRAME for size in sizes.values() if size)
    exact = sum(len(tok.payload(*place) or b"") for place in list(tok.places) if place[0] == EXCT)
    video = _video(tok) if isinstance(header, VideoHeader) else {}
    found |= {
        "bytes": len(data),
        **header.rates(len(data)),
        "grid": list(header.grid),
        "segments": header.n_segments,
        "layer_bytes": layers,
        "overhead_bytes": len(data) - sum(layers) - extras - exact - video.get("sound_bytes", 0),
        "icc_bytes": sizes[ICCP],
        "exif_bytes": sizes[EXIF],
        "alpha_bytes": sizes[ALPH],
        "exact_bytes": exact,
        **video,
        "complete": tok.complete,
        "problems": tok.problems,
    }
    return found


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


def _video(tok: TokFile) -> dict[str, Any]:
    """What else a video has."""
    sounds = [tok.payload(*place) or b"" for place in list(tok.places) if place[0] == AUDL]
    found: dict[str, Any] = {"time_bytes": len(tok.payload(TIME) or b""), "sound_bytes": sum(map(len, sounds))}
    if tok.track is not None:
        header = tok.track[0]
        found |= {
            "sound_model": header.model,
            "sound_samples": header.samples,
            "sound_rate": header.sample_rate,
            "sound_channels": header.channels,
        }
    return found
