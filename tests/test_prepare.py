"""Pictures before they are coded: what is kept of their metadata, and what lies under transparent pixels."""

import numpy as np
import pytest

from tokodec.codec.container.chunks import XMPP
from tokodec.codec.container.fields import ImageHeader
from tokodec.codec.container.read import MAX_PROBLEMS, read_tok
from tokodec.codec.container.write import write_tok
from tokodec.codec.errors import UsageError
from tokodec.codec.image.prepare import fill_transparent, prepare
from tokodec.codec.image.segments import picture_of
from tokodec.codec.media.picture import Picture
from tokodec.codec.media.profile import CodePoints, profile_of_code_points, profile_of_gamma
from tokodec.codec.options import COLOURS_ONLY, KEEP, EncodeOptions, parse_keep, with_short_forms

P3 = profile_of_code_points(CodePoints(12, 13), gray=False)
XMP = b"<x:xmpmeta/>"
EXIF = b"II*\0" + bytes(20)


def picture(**fields: object) -> Picture:
    pixels = np.full((4, 6, 3), (200, 100, 50), np.uint8)
    return Picture(pixels, icc=P3, exif=EXIF, xmp=XMP, **fields)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------------- metadata


def test_everything_is_kept_by_default() -> None:
    kept = prepare(picture())
    assert (kept.icc, kept.exif, kept.xmp, kept.notes) == (P3, EXIF, XMP, [])


def test_privacy_leaves_colours_alone() -> None:
    kept = prepare(picture(), COLOURS_ONLY)
    assert (kept.icc, kept.exif, kept.xmp) == (P3, None, None)
    assert kept.notes == ["EXIF and XMP left out as asked"]
    assert np.array_equal(kept.pixels, picture().pixels)


def test_without_their_profile_colours_still_look_the_same() -> None:
    """Display P3 (200, 100, 50) is sRGB (215, 93, 31): by the matrices of both and the curve that they share."""
    kept = prepare(picture(), frozenset({"exif", "xmp"}))
    assert (kept.icc, kept.exif, kept.xmp) == (None, EXIF, XMP)
    assert kept.notes == ["ICC profile left out as asked: samples converted to sRGB"]
    assert np.abs(kept.pixels.astype(int) - (215, 93, 31)).max() <= 1
    gray = Picture(np.full((4, 6, 1), 128, np.uint8), icc=profile_of_gamma(1.0, None, gray=True))
    assert abs(int(prepare(gray, frozenset()).pixels[0, 0, 0]) - 188) <= 1  # half of the light
    broken = Picture(np.full((4, 6, 3), 9, np.uint8), icc=b"no profile")
    kept = prepare(broken, frozenset())
    assert (kept.icc, int(kept.pixels.max())) == (None, 9)
    assert kept.notes == ["ICC profile left out as asked: it is of no use, samples are taken as sRGB"]


def test_what_can_be_kept() -> None:
    assert parse_keep("icc, EXIF") == {"icc", "exif"}
    assert (parse_keep("all"), parse_keep("none")) == (KEEP, frozenset())
    for text in ("", "gps", "icc,gps", "all,icc", ","):
        with pytest.raises(UsageError, match=r"^what can be kept is icc, exif and xmp, or all or none, got "):
            parse_keep(text)


def header() -> ImageHeader:
    return ImageHeader(
        model="m", weights_hash="0" * 16, prior=1, prior_hash="0" * 16, layers=1, height=4, width=6, stride=16,
        segment=64, channels=3, alpha=0, bit_depth=8,
    )  # fmt: skip


def test_xmp_is_in_a_chunk_that_readers_may_skip() -> None:
    data = write_tok(header(), [[b"abcd"]], icc=P3, exif=EXIF, xmp=XMP)
    tok = read_tok(data)
    back = picture_of(tok, np.zeros((4, 6, 3), np.uint8))
    assert (back.icc, back.exif, back.xmp) == (P3, EXIF, XMP)
    assert XMPP[:1].islower()
    before = write_tok(header(), [[b"abcd"]], icc=P3, exif=EXIF)
    assert before == data[: data.index(XMPP)] + data[data.index(b"LAYR") :]
    at = data.index(XMPP) + 10
    damaged = read_tok(data[:at] + b"\0" + data[at + 1 :])
    assert picture_of(damaged, np.zeros((4, 6, 3), np.uint8)).xmp is None
    assert damaged.problems


def test_a_file_full_of_faults_is_read_at_once() -> None:
    """Each of 40,000 chunks that came before is one problem; all of them in a list took minutes."""
    plain = write_tok(header(), [[b"abcd"]], exif=EXIF)
    begin, end = plain.index(b"eXIF"), plain.index(b"LAYR")
    crowd = plain[:end] + plain[begin:end] * 40_000 + plain[end:]
    tok = read_tok(crowd)
    assert len(tok.problems) == MAX_PROBLEMS + 1
    assert tok.problems[0].endswith("does not belong there")
    assert tok.problems[-1] == "more is damaged"
    assert tok.metadata(b"eXIF") == EXIF


# ----------------------------------------------------------------------------------------------------- transparency


def scene(height: int, width: int, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 2, x * 2, y + x][:channels], -1).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_not_seen_has_no_influence(channels: int) -> None:
    pixels = scene(100, 120, channels)
    y, x = np.mgrid[:100, :120]
    alpha = np.where((y - 50) ** 2 + (x - 60) ** 2 < 900, 255, 0).astype(np.uint8)
    alpha[40:44] = 1  # nearly transparent is not transparent
    rng = np.random.default_rng(0)
    results = []
    for under in (rng.integers(0, 256, pixels.shape), 0):
        own = np.where(alpha[..., None] == 0, under, pixels).astype(np.uint8)
        assert fill_transparent(own, alpha) is not isinstance(under, int)
        results.append(own)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0][alpha > 0], pixels[alpha > 0])
    steps = max(int(np.abs(np.diff(results[0].astype(int), axis=axis)).max()) for axis in (0, 1))
    assert steps < 40  # no edge between what is seen and what is not, of the 198 grey levels there are
    hidden = np.where(alpha[..., None] == 0, results[0], 0).astype(int)
    assert np.abs(np.diff(hidden[:20], axis=1)).max() <= 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (17, 16), (33, 5), (300, 1000)])
def test_pictures_of_any_size_are_filled(shape: tuple[int, int]) -> None:
    pixels = np.full((*shape, 3), (10, 200, 90), np.uint8)
    alpha = np.zeros(shape, np.uint8)
    alpha[0, 0] = 255
    pixels[alpha == 0] = 7
    assert not fill_transparent(pixels, alpha)
    assert (pixels == (10, 200, 90)).all()
    assert not fill_transparent(pixels, np.full(shape, 3, np.uint8))
    fill_transparent(pixels, np.zeros(shape, np.uint8))
    assert (pixels == 128).all()


def test_hidden_colours_are_told() -> None:
    alpha = np.zeros((4, 6), np.uint8)
    alpha[:2] = 255
    hidden = picture(alpha=alpha)
    hidden.pixels[3] = 0
    assert prepare(hidden).notes == ["colours under fully transparent pixels not kept"]
    assert hidden.alpha is not None
    assert np.array_equal(hidden.alpha, alpha)
    assert (hidden.pixels == (200, 100, 50)).all()
    plain = picture(alpha=alpha)
    assert prepare(plain).notes == []


def test_short_forms_of_keep() -> None:
    def kept(**short: object) -> frozenset[str]:
        return with_short_forms(EncodeOptions(), short).keep

    assert kept() == KEEP
    assert kept(metadata=False) == COLOURS_ONLY
    assert kept(keep="exif") == kept(keep=frozenset({"exif"})) == {"exif"}
    with pytest.raises(UsageError, match="not both"):
        kept(keep="exif", metadata=False)
    with pytest.raises(UsageError, match="got gps"):
        EncodeOptions(keep=frozenset({"gps"}))
