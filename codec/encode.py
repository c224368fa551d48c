"""Media file -> `.tok`. The twin of decode.py: step N here undoes step N there.

1. read the media    2. load the model    3. codes, tile by tile    4. payloads    5. choose the layers    6. write

Steps 3 to 5 of models whose rate dial is a quality are in photo.py, of those with a number of tokens in sequence.py;
sounds and videos, which are never in memory as a whole, are in sound.py and video.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .container import MAX_PIXELS, MAX_SAMPLES, ImageHeader, write_tok
from .errors import RateError, UsageError
from .files import open_output
from .media.image import encode_alpha, read_image
from .media.kind import media_kind
from .models import DEFAULT_MODELS, FITTED, Model, choose_model, load_model, pick_device

if TYPE_CHECKING:
    import numpy as np

    from ..tokenizers.api import Tokens
    from .media.image import Picture
    from .video import EncodedVideo, SoundWanted

SEGMENT = 1024  # pixels along the edge of a segment
FEWEST = 8  # cells along it
EFFORTS = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 160)  # steps of descent at effort 0, 1, ... 10


@dataclass
class Encoded:
    """A finished file in memory.

    Attributes:
        data: the file.
        levels: layers in it; of a sound or a video the most levels that a segment has.
        pixels: H * W of a picture, of all frames of a video.  seconds: of a sound or a video.  What it lacks is 0.
        frames: of a video, else 0.
        notes: what could not be kept, one line each.
        quality: of models whose rate dial it is, else None.
        tokens: in all, of models whose rate dial is their number, else None.
    """

    data: bytes
    levels: int
    pixels: int = 0
    notes: list[str] = field(default_factory=list)
    quality: float | None = None
    seconds: float = 0.0
    tokens: int | None = None
    frames: int = 0

    @property
    def bpp(self) -> float:
        """Bits per pixel of the whole file, of a picture or a video."""
        return 8 * len(self.data) / self.pixels

    @property
    def kbps(self) -> float:
        """Thousands of bits a second of the whole file, of a sound or a video."""
        return 8e-3 * len(self.data) / self.seconds


@dataclass(frozen=True)
class Rate:
    """What the user asked for: at most one of these, the model's default if none. Raises UsageError for more."""

    quality: float | None = None  # 0 to 100
    levels: int | None = None  # 1 to K
    bpp: float | None = None  # most bits per pixel, of a picture or of the frames of a video
    size: int | None = None  # most bytes
    kbps: float | None = None  # most thousands of bits a second, of a sound or a video
    tokens: int | None = None  # of a picture in all

    def __post_init__(self) -> None:
        given = {
            "quality": self.quality, "levels": self.levels, "bpp": self.bpp, "kbps": self.kbps, "bytes": self.size,
            "tokens": self.tokens,
        }  # fmt: skip
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise UsageError(f"give one of quality, levels, tokens, bpp, kbps and bytes, not {' and '.join(names)}")
        if self.quality is not None and not 0 <= self.quality <= 100:
            raise UsageError(f"quality is 0 to 100, got {self.quality:g}")
        if self.bpp is not None and not 0 < self.bpp < float("inf"):
            raise UsageError(f"bpp must be positive, got {self.bpp:g}")
        if self.kbps is not None and not 0 < self.kbps < float("inf"):
            raise UsageError(f"kbps must be positive, got {self.kbps:g}")
        if self.size is not None and self.size <= 0:
            raise UsageError(f"bytes must be positive, got {self.size}")
        if self.tokens is not None and self.tokens <= 0:
            raise UsageError(f"tokens must be positive, got {self.tokens}")

    def most_bytes(self, pixels: int) -> int | None:
        """The bytes that ``bpp`` or ``size`` allow, None if neither was given."""
        return self.size if self.bpp is None else int(min(self.bpp * pixels / 8, 2**53))

    def choose_levels(self, build: Callable[[int], bytes], n_levels: int, pixels: int) -> int:
        """The most levels that stay within the rate; ``build(n)`` makes the file with n of ``n_levels`` levels.

        Raises: UsageError for levels that the model lacks, RateError if one level is too much already.
        """
        if self.levels is not None:
            if not 1 <= self.levels <= n_levels:
                raise UsageError(f"levels is 1 to {n_levels} with this model, got {self.levels}")
            return self.levels
        if self.quality is not None:
            return min(n_levels, 1 + int(self.quality * n_levels / 100))
        most = self.most_bytes(pixels)
        if most is None:
            return n_levels
        for n in range(n_levels, 0, -1):
            if len(build(n)) <= most:
                return n
        least = len(build(1))
        raise RateError(
            f"the smallest file takes {least} bytes ({8 * least / pixels:.4f} bpp), more than the {most} asked for"
        )


@dataclass(frozen=True)
class SoundOptions:
    """What is said of a video's sound; None stands for the default."""

    kbps: float | None  # most thousands of bits a second
    model: str | None


def check_effort(effort: int) -> None:
    """Raise UsageError for what is not an effort."""
    if effort not in range(len(EFFORTS)):
        raise UsageError(f"effort is 0 to {len(EFFORTS) - 1}, got {effort}")


def encode_file(
    src: str | Path | BinaryIO,
    dst: str | Path | BinaryIO | None = None,
    model: str | None = None,
    quality: float | None = None,
    *,
    levels: int | None = None,
    bpp: float | None = None,
    size: int | None = None,
    kbps: float | None = None,
    tokens: int | None = None,
    prior: str | None = None,
    tune: str | None = None,
    effort: int = 0,
    device: str = "auto",
    force: bool = False,
    metadata: bool = True,
    max_pixels: int = MAX_PIXELS,
    max_samples: int = MAX_SAMPLES,
    sound: bool = True,
    sound_kbps: float | None = None,
    sound_model: str | None = None,
    minutes: float | None = None,
    progress: Callable[[float], None] | None = None,
    count: Callable[[int], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> Encoded:
    """Encode a picture, a sound or a video.

    Args:
        src: path or binary file object.
        dst: path or binary file object; nothing is written if None.
        model: release name, folder or hub id; the default for the modality if None.
        quality: 0 to 100.  levels: 1 to K.  tokens: of a picture in all.  bpp: most bits per pixel, of a video those of
            all its frames.  kbps: most thousands of bits a second, of a video its sound included.  size: most bytes.
            At most one of these; by default all levels or tokens, or the default quality of a model that has neither.
        prior: entropy model, "context" (smaller files) or "static" of a model that has them; the best by default.
        tune: what the picture is to be best at, "psnr" (the default) or "ms-ssim", instead of ``model``.
        effort: 0 to 10, time spent on better codes, by models whose dial is a quality, and by those for sounds and for
            videos; see :data:`EFFORTS`.
        device: "auto", "cpu" or "cuda".
        force: overwrite ``dst``.
        metadata: keep ICC profile and EXIF.
        max_pixels, max_samples: refuse larger pictures and frames, and sounds with more samples in all channels.
        sound: keep the sound of a video.  sound_kbps: most thousands of bits a second for it, 3 a channel by default
            but no more than a fifth of a size that was asked for.  sound_model: for it, instead of the default.
        minutes: that "video-fit" may take, 3 by default.
        progress: called with the share of the work that is done, now and then.
        count: called with the number of a video's frames that are done.
        report: called with a line on how a fit stands.

    Returns: the file and what was noted on the way.
    Raises:  a :class:`~.errors.TokodecError`; ``dst`` is then as it was before.
    """
    rate = Rate(quality, levels, bpp, size, kbps, tokens)
    check_effort(effort)
    name = str(src) if isinstance(src, (str, Path)) else "standard input"
    with open_output(dst, force) as file:
        kind, source = media_kind(Path(src) if isinstance(src, str) else src)
        chosen = choose_model(model, tune, kind)
        if kind != "video" and (sound_kbps is not None or sound_model is not None):
            raise UsageError(f"the sound of videos has a rate and a model of its own, and {name} is none")
        if chosen == FITTED and kind != "video":
            raise UsageError(f"{FITTED} is for videos, and {name} is none")
        if minutes is not None and chosen != FITTED:
            raise UsageError(f"minutes are for the model {FITTED} only")
        if kind == "video":
            own = SoundOptions(sound_kbps, sound_model) if sound else None
            limits = max_pixels, max_samples
            if chosen == FITTED:
                if prior is not None:
                    raise UsageError(f"{FITTED} has no entropy models to choose from")
                if effort:
                    raise UsageError(f"the effort of {FITTED} is its minutes")
                encoded = _encode_fitted(source, name, rate, minutes, own, device, limits, progress, report)
            else:
                encoded = _encode_video(source, name, chosen, rate, prior, effort, own, device, limits, progress, count)
        elif kind == "audio":
            encoded = _encode_sound(source, name, chosen, rate, prior, effort, device, max_samples, progress)
        else:
            encoded = _encode_picture(source, name, chosen, rate, prior, effort, device, metadata, max_pixels, progress)
        if file is not None:
            file.write(encoded.data)  # 6
    return encoded


def _encode_picture(
    source: Path | BinaryIO,
    name: str,
    chosen: str,
    rate: Rate,
    prior: str | None,
    effort: int,
    device: str,
    metadata: bool,
    max_pixels: int,
    progress: Callable[[float], None] | None,
) -> Encoded:
    picture = read_image(source, name, max_pixels)  # 1
    loaded = load_model(chosen, pick_device(device), prior)  # 2
    if loaded.tokenizer.modality != "image":
        raise UsageError(f"{chosen} is a model for {loaded.tokenizer.modality}, and {name} is a picture")
    if rate.kbps is not None:
        raise UsageError(f"bits a second are for sounds, and {name} is a picture: use --bpp or --bytes")
    if loaded.tokenizer.dial == "quality":
        return build_photo(picture, loaded, metadata, rate, progress, effort)  # 3, 4, 5
    if effort:
        dial = loaded.tokenizer.dial
        raise UsageError(f"effort is for models whose rate dial is a quality, that of {chosen} is {dial}")
    if loaded.tokenizer.dial == "tokens":
        return build_sequence(picture, loaded, metadata, rate, progress)  # 3, 4, 5
    if rate.tokens is not None:
        raise UsageError(f"the rate dial of {chosen} is its levels, not a number of tokens")
    tokens = encode_tokens(picture.pixels, loaded, progress)  # 3
    layers = compress_tokens(tokens, loaded)  # 4
    return build_file(picture, tokens, layers, loaded, metadata, rate)  # 5


def _encode_sound(
    source: Path | BinaryIO,
    name: str,
    chosen: str,
    rate: Rate,
    prior: str | None,
    effort: int,
    device: str,
    max_samples: int,
    progress: Callable[[float], None] | None,
) -> Encoded:
    from .sound import encode_sound

    loaded = load_model(chosen, pick_device(device), prior)  # 2
    if loaded.tokenizer.modality != "audio":
        raise UsageError(f"{chosen} is a model for {loaded.tokenizer.modality}, and {name} is a sound")
    found = encode_sound(source, name, loaded, rate, progress, max_samples, EFFORTS[effort])  # 1, 3, 4, 5
    data, levels, tokens = found
    return Encoded(data, int(levels.max()), notes=tokens.notes, seconds=tokens.seconds)


def _encode_video(
    source: Path | BinaryIO,
    name: str,
    chosen: str,
    rate: Rate,
    prior: str | None,
    effort: int,
    sound: SoundOptions | None,
    device: str,
    limits: tuple[int, int],  # pixels of a frame, samples
    progress: Callable[[float], None] | None,
    count: Callable[[int], None] | None,
) -> Encoded:
    from .video import encode_video

    loaded = load_model(chosen, pick_device(device), prior)  # 2
    if loaded.tokenizer.modality != "video":
        raise UsageError(f"{chosen} is a model for {loaded.tokenizer.modality}, and {name} is a video")
    wanted = _sound_wanted(sound, device)
    found = encode_video(source, name, loaded, rate, wanted, progress, count, *limits, EFFORTS[effort])  # 1, 3, 4, 5
    return _encoded(found)


def _encode_fitted(
    source: Path | BinaryIO,
    name: str,
    rate: Rate,
    minutes: float | None,
    sound: SoundOptions | None,
    device: str,
    limits: tuple[int, int],
    progress: Callable[[float], None] | None,
    report: Callable[[str], None] | None,
) -> Encoded:
    from .fit_video import encode_fitted

    wanted, place = _sound_wanted(sound, device), pick_device(device)
    found, quality = encode_fitted(source, name, rate, minutes, wanted, place, progress, report, *limits)  # 1, 3, 4, 5
    return _encoded(found, quality)


def _sound_wanted(sound: SoundOptions | None, device: str) -> SoundWanted | None:
    """Its model is loaded only if there is a sound."""
    from .video import SoundWanted

    if sound is None:
        return None
    model = sound.model or DEFAULT_MODELS["audio"]
    return SoundWanted(lambda: load_model(model, pick_device(device)), sound.kbps)


def _encoded(video: EncodedVideo, quality: float | None = None) -> Encoded:
    return Encoded(
        video.data,
        int(video.levels.max()),
        video.height * video.width * video.frames,
        video.notes,
        quality,
        float(video.seconds),
        frames=video.frames,
    )


def build_file(
    picture: Picture, tokens: Tokens, layers: list[list[bytes]], model: Model, metadata: bool, rate: Rate
) -> Encoded:
    """Choose the layers that ``rate`` pays for and put the file together."""
    height, width, channels = picture.pixels.shape
    alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
    icc, exif = (picture.icc, picture.exif) if metadata else (None, None)

    def build(n: int) -> bytes:
        header = image_header(tokens, model, n, alpha is not None, channels, picture.bit_depth)
        return write_tok(header, layers[:n], alpha, icc, exif)

    n = rate.choose_levels(build, len(layers), height * width)
    return Encoded(build(n), n, height * width, notes_of(picture, metadata))


def build_photo(
    picture: Picture,
    model: Model,
    metadata: bool,
    rate: Rate,
    progress: Callable[[float], None] | None = None,
    effort: int = 0,
) -> Encoded:
    """The file of a model whose rate dial is a quality."""
    from ..tokenizers.image.photo import ImagePhoto
    from .container import read_tok
    from .photo import Metadata, encode_photo

    tokenizer = model.tokenizer
    assert isinstance(tokenizer, ImagePhoto)
    if rate.levels is not None or rate.tokens is not None:
        what = "levels" if rate.tokens is None else "tokens"
        raise UsageError(f"the rate dial of {tokenizer.name} is a quality: use --quality, --bpp or --bytes, not {what}")
    height, width, channels = picture.pixels.shape
    extra = Metadata(
        channels,
        picture.bit_depth,
        None if picture.alpha is None else encode_alpha(picture.alpha),
        picture.icc if metadata else None,
        picture.exif if metadata else None,
    )
    most = rate.most_bytes(height * width)
    data, quality = encode_photo(picture, tokenizer, extra, rate.quality, most, EFFORTS[effort], progress)
    return Encoded(data, read_tok(data).header.layers, height * width, notes_of(picture, metadata), quality)


def build_sequence(
    picture: Picture, model: Model, metadata: bool, rate: Rate, progress: Callable[[float], None] | None = None
) -> Encoded:
    """The file of a model whose rate dial is the number of tokens."""
    from .sequence import encode_sequence

    height, width, channels = picture.pixels.shape
    alpha = None if picture.alpha is None else encode_alpha(picture.alpha)
    icc, exif = (picture.icc, picture.exif) if metadata else (None, None)
    layers = 0

    def build(tokens: Tokens, payloads: list[list[bytes]]) -> bytes:
        nonlocal layers
        layers = len(payloads)
        header = image_header(tokens, model, layers, alpha is not None, channels, picture.bit_depth)
        return write_tok(header, payloads, alpha, icc, exif)

    data, total = encode_sequence(picture.pixels, model, rate, build, progress)
    return Encoded(data, layers, height * width, notes_of(picture, metadata), tokens=total)


def notes_of(picture: Picture, metadata: bool) -> list[str]:
    """What could not be kept, one line each."""
    notes = list(picture.notes)
    if not metadata and (picture.icc or picture.exif):
        notes.append("ICC profile and EXIF left out as asked")
    return notes


def encode_tokens(
    pixels: np.ndarray, model: Model, progress: Callable[[float], None] | None = None, quality: float | None = None
) -> Tokens:
    """``pixels [H, W, C]`` uint8 to tokens with all levels, on the CPU. quality: of models whose rate dial it is."""
    import torch

    from ..tokenizers.image.grid import ImageGrid
    from ..tokenizers.image.photo import ImagePhoto
    from ..tokenizers.image.sequence import ImageSequence
    from ..tokenizers.image.tiling import encode_tiled
    from .photo import photo_tokens

    tokenizer = model.tokenizer
    if isinstance(tokenizer, ImagePhoto):
        return photo_tokens(pixels, tokenizer, quality, progress)
    if isinstance(tokenizer, ImageSequence):
        return tokenizer.encode_tiled(torch.from_numpy(pixels), False, progress)[0]
    assert isinstance(tokenizer, ImageGrid)
    return encode_tiled(tokenizer, torch.from_numpy(pixels), progress=progress)


def compress_tokens(tokens: Tokens, model: Model) -> list[list[bytes]]:
    """Payloads ``[k][s]`` of layer k and segment s."""
    header = image_header(tokens, model, 1)
    codes = tokens.codes[0].numpy()
    columns = []
    for segment in range(header.n_segments):
        top, left, bottom, right = header.segment_box(segment)
        columns.append(model.prior.compress(codes[:, top:bottom, left:right]))
    return [list(row) for row in zip(*columns, strict=True)]


def segment_cells(stride: int) -> int:
    """Cells along the edge of a segment of a picture."""
    return max(FEWEST, SEGMENT // stride)


def image_header(
    tokens: Tokens, model: Model, layers: int, alpha: bool = False, channels: int = 3, bit_depth: int = 8
) -> ImageHeader:
    """Header of a file that holds the first ``layers`` layers of ``tokens``."""
    height, width = tokens.spec.size
    return ImageHeader(
        model=tokens.spec.model,
        weights_hash=tokens.spec.weights_hash,
        prior=model.prior.wire_id,
        prior_hash=model.prior.hash,
        layers=layers,
        height=height,
        width=width,
        stride=tokens.spec.strides[0],
        segment=segment_cells(tokens.spec.strides[0]),
        channels=channels,
        alpha=int(alpha),
        bit_depth=bit_depth,
    )
