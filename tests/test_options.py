"""What a caller asks for: nothing is ignored, and a 0 is something that was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tokodec.codec.encode import encode_file
from tokodec.codec.errors import UsageError, too_small
from tokodec.codec.options import KEEP, DecodeOptions, EncodeOptions, Rate, SoundOptions, with_short_forms


def encoding(**short: Any) -> EncodeOptions:
    return with_short_forms(EncodeOptions(), short)


def decoding(**short: Any) -> DecodeOptions:
    return with_short_forms(DecodeOptions(), short)


def test_what_was_asked_for_is_given_by_name() -> None:
    assert encoding().given == decoding().given == []
    assert encoding(levels=0).given == ["levels"]
    assert encoding(quality=0).given == ["quality"]
    assert encoding(size=5, effort=1, prior="static", track=2).given == ["bytes", "prior", "effort", "track"]
    assert encoding(lossless=True, metadata=False, sound=False).given == ["lossless", "keep", "sound"]
    assert encoding(minutes=1, sound_kbps=1, sound_model="a", sound_track=1).given == [
        "minutes", "sound-kbps", "sound-model", "sound-track",
    ]  # fmt: skip
    assert encoding(keep=KEEP, metadata=True, sound=True, effort=0).given == []
    assert decoding(start=0, end=1, synthesis="sharp", sound=False).given == ["synthesis", "start", "end", "sound"]
    assert decoding(sound_model="a").given == ["sound-model"]


@pytest.mark.parametrize("zero", [{"quality": 0}, {"levels": 0}, {"quality": 0.0, "lossless": True}])
def test_a_rate_of_zero_is_a_rate(zero: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="give one of"):
        Rate(**zero, bpp=8.0)


@pytest.mark.parametrize("track", [0, -1])
def test_tracks_are_numbered_from_one(track: int) -> None:
    with pytest.raises(UsageError, match=f"^tracks are numbered from 1 on, got {track}$"):
        encoding(track=track)
    with pytest.raises(UsageError, match=f"tracks of the sound are numbered from 1 on, got {track}"):
        encoding(sound_track=track)


def test_what_is_for_encoding_is_none_of_decoding() -> None:
    for name in ("sound_kbps", "sound_track"):
        with pytest.raises(TypeError, match=name):
            decoding(**{name: 1})
    with pytest.raises(UsageError, match="for encoding"):
        DecodeOptions(sound=SoundOptions(track=2))


def test_what_is_kept_may_be_any_names() -> None:
    assert encoding(keep=["icc"]).keep == {"icc"}
    assert encoding(keep=("exif", "xmp")).keep == {"exif", "xmp"}
    for wrong in (["gps"], "gps"):
        with pytest.raises(UsageError, match="what can be kept is icc, exif and xmp"):
            encoding(keep=wrong)
    with pytest.raises(UsageError, match="what can be kept is icc, exif and xmp"):
        EncodeOptions(keep=["gps"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ({"sound": False}, "sound"),
        ({"sound_track": 1}, "sound-track"),
        ({"track": 1}, "track"),
        ({"minutes": 1}, "minutes"),
    ],
)
def test_what_a_picture_has_not_is_refused(short: dict[str, Any], name: str, golden: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match=f"^{name} is not an option of tiny$"):
        encode_file(golden / "pixel.png", model=str(tiny_model), device="cpu", **short)


def test_a_size_that_cannot_be_is_told_with_its_rate() -> None:
    assert (
        str(too_small(100, 90, pixels=400))
        == "the smallest file takes 100 bytes (2.0000 bpp), more than the 90 asked for"
    )
    told = str(too_small(100, 90, seconds=0.5, note=", sound included"))
    assert told == "the smallest file takes 100 bytes (1.60 kbps), sound included, more than the 90 asked for"
