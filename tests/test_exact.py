"""Blocks that are kept exactly: which ones, as which bytes, and back without a loss."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokodec.codec.image.exact import choose_exact, free_cells, pack_exact, paste_exact, unpack_exact

RNG = np.random.default_rng(0)


def window(height: int, width: int) -> np.ndarray:
    """Noise, with stripes of two colours in its left half."""
    pixels = RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)
    stripes = np.where(np.arange(height)[:, None, None] // 2 % 2, np.uint8(255), np.uint8(0))
    pixels[:, : width // 2] = stripes
    return pixels


def test_graphics_that_were_broken_become_exact_and_photographs_do_not() -> None:
    pixels = window(256, 256)
    blurred = pixels.astype(int)
    blurred = ((blurred + np.roll(blurred, 1, 0) + np.roll(blurred, 2, 0)) // 3).astype(np.uint8)
    blurred[:, 128:] = (pixels[:, 128:].astype(int) + RNG.integers(-10, 11, (256, 128, 3))).clip(0, 255)
    found = choose_exact(pixels, blurred, 0.014)
    assert found.tolist() == [[True, True, False, False]] * 4
    assert not choose_exact(pixels, pixels, 1.2).any()  # no error is left
    assert not choose_exact(pixels, blurred, 1e-9).any()  # and here it is worth nothing
    assert choose_exact(pixels, blurred, 12).all()  # even noise, where its error is worth more bits than it has


def test_the_larger_the_price_of_an_error_the_more_is_exact() -> None:
    steps = (RNG.integers(0, 40, (128, 128, 1)) * 6).astype(np.uint8).repeat(3, 2)
    noisy = (steps.astype(int) + RNG.integers(-4, 5, steps.shape)).clip(0, 255).astype(np.uint8)
    found = [int(choose_exact(steps, noisy, weight).sum()) for weight in (0.001, 0.1, 1.0, 10.0)]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, 4)


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 200), (300, 129), (1024, 70)])
def test_payloads_come_back(size: tuple[int, int]) -> None:
    pixels = window(*size)
    grid = (-(-size[0] // 64), -(-size[1] // 64))
    for share in (0.0, 0.4, 1.0):
        blocks = RNG.random(grid) < share
        payload = pack_exact(pixels, blocks)
        assert bool(payload) == bool(blocks.any())
        found, held = unpack_exact(payload, size)
        assert np.array_equal(found, blocks)
        mask = np.kron(blocks, np.ones((64, 64), bool))[: size[0], : size[1]]
        assert np.array_equal(held[mask], pixels[mask])
        assert not held[~mask].any()
        decoded = np.full_like(pixels, 7)
        pasted = paste_exact(decoded, payload)
        assert np.array_equal(pasted[mask], pixels[mask])
        assert (pasted[~mask] == 7).all()


def test_a_picture_that_is_all_graphics_is_small() -> None:
    pixels = window(512, 512)
    pixels[:, 256:] = pixels[:, :256]
    assert len(pack_exact(pixels, np.ones((8, 8), bool))) < 400


def test_cells_that_need_no_codes_are_two_cells_inside() -> None:
    blocks = np.zeros((3, 4), bool)
    blocks[:, 2:] = True
    free = free_cells(blocks, (11, 14))
    assert free.shape == (11, 14)
    assert not free[:, :10].any()
    assert free[:, 10:].all()
    assert free_cells(np.ones((1, 1), bool), (4, 4)).all()
    blocks[1, 3] = False
    assert not free_cells(blocks, (12, 16))[2:10, 10:].any()


def test_payloads_that_nobody_makes_are_refused() -> None:
    pixels = window(130, 70)
    blocks = np.array([[True, False], [False, True], [True, True]])
    good = pack_exact(pixels, blocks)
    mode = pack_exact(window(70, 130), np.ones((2, 3), bool))
    none = bytes([0]) + good[1:]
    more = bytes([good[0] | 1]) + good[1:]
    fewer = bytes([good[0] & 0b01111111]) + good[1:]
    turned = bytes([0b11111100]) + mode[1:]
    for bad in (good[:1], good[:20], b"\xff", b"\xfcRIFF", none, more, fewer, turned, good[:-9]):
        with pytest.raises(ValueError, match="exact blocks"):
            unpack_exact(bad, (130, 70))
    rng = np.random.default_rng(1)
    for _ in range(200):
        bad_bytes = bytearray(good)
        bad_bytes[int(rng.integers(len(good)))] ^= 1 << int(rng.integers(8))
        try:
            unpack_exact(bytes(bad_bytes), (130, 70))
        except ValueError:
            continue


def webp(pixels: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "webp", **options)
    return out.getvalue()


def hostile_pictures() -> dict[str, bytes]:
    """WebP files that are none of lossless pixels alone, in place of one of 64 x 64."""
    pixels, clear = np.full((64, 64, 3), 9, np.uint8), np.full((64, 64, 4), 9, np.uint8)
    good = webp(pixels, lossless=True)
    body = good[12:]
    bits = struct.pack("<I", 16382 | 16382 << 14)
    return {
        "a header of 16383 x 16383": good[:21] + bits + good[25:],
        "lossy": webp(pixels),
        "animated": webp(pixels, lossless=True, save_all=True, append_images=[Image.fromarray(255 - pixels)]),
        "with alpha": webp(clear, lossless=True),
        "with metadata": webp(pixels, lossless=True, xmp=b"<x/>"),
        "another size": webp(pixels[:, :63].copy(), lossless=True),
        "two pictures": b"RIFF" + struct.pack("<I", 4 + 2 * len(body)) + b"WEBP" + body + body,
        "bytes behind": good + bytes(2),
        "cut off": good[:-2],
        "cut off in agreement": good[:4] + struct.pack("<I", 18) + good[8:16] + struct.pack("<I", 6) + good[20:26],
        "version 1": good[:24] + bytes([good[24] | 0x20]) + good[25:],
        "no signature": good[:20] + b"\0" + good[21:],
        "no body": good[:20],
    }


@pytest.mark.parametrize("name", hostile_pictures())
def test_only_lossless_webp_is_decoded(name: str) -> None:
    assert unpack_exact(b"\x80" + webp(np.full((64, 64, 3), 9, np.uint8), lossless=True), (64, 64))[1].min() == 9
    with pytest.raises(ValueError, match=r"is no lossless WebP|holds no picture"):
        unpack_exact(b"\x80" + hostile_pictures()[name], (64, 64))


@pytest.mark.parametrize("size", [(0, 5), (1025, 4)])
def test_what_is_no_window(size: tuple[int, int]) -> None:
    pixels = np.zeros((*size, 3), np.uint8)
    with pytest.raises(ValueError, match="a window has"):
        pack_exact(pixels, np.zeros((1, 1), bool))
    with pytest.raises(ValueError, match="a window has"):
        choose_exact(pixels, pixels, 1.0)


def test_blocks_of_another_window_are_refused() -> None:
    with pytest.raises(ValueError, match="blocks"):
        pack_exact(window(100, 100), np.zeros((1, 2), bool))
    with pytest.raises(ValueError, match="windows are"):
        choose_exact(window(100, 100), window(100, 99), 1.0)
