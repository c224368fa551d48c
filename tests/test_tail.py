"""The prior of sequences that may end early: exact both ways, at the cost it states, in whole layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tokodec.entropy.tables import frequency_table
from tokodec.entropy.tail import TailPrior

K, N = 40, 50


def prior() -> TailPrior:
    rng = np.random.default_rng(0)
    return TailPrior.from_counts(rng.integers(0, 30, (K, N)) ** 2)


def sequences(grid: tuple[int, ...], most: int = K, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, most + 1, grid)
    codes = rng.integers(0, N, (most, *grid))
    return np.where(np.arange(most).reshape(-1, *[1] * len(grid)) < counts, codes, -1)


def test_layers_of_forty_places() -> None:
    p = prior()
    assert p.bounds == (32, 40)
    assert [p.layers(k) for k in (1, 32, 33, 40)] == [1, 1, 2, 2]
    assert p.codebook_sizes == (N,) * K
    assert list(p.table_of[:16]) == list(range(16))  # the first places have tables of their own
    assert p.table_of[16] == p.table_of[17] == 16
    assert p.table_of.max() == len(p.tables) - 1 < 25


@pytest.mark.parametrize("grid", [(1,), (3, 5), (2, 1, 4), (0, 3)])
@pytest.mark.parametrize("most", [1, 7, 32, 33, 40])
def test_round_trip(grid: tuple[int, ...], most: int) -> None:
    p, codes = prior(), sequences(grid, most)
    payloads = p.compress(codes)
    assert len(payloads) == p.layers(most)
    found = p.decompress(payloads, grid)
    longest = max(1, int((codes >= 0).sum(0).max(initial=0)))
    assert np.array_equal(found, codes[:longest])


def test_a_prefix_of_the_layers_is_a_prefix_of_the_sequences() -> None:
    p, codes = prior(), sequences((4, 4))
    found = p.decompress(p.compress(codes)[:1], (4, 4))
    assert np.array_equal(found, codes[:32])


def test_payloads_are_as_long_as_stated() -> None:
    p, codes = prior(), sequences((20, 30))
    bits = p.bits(codes)
    assert bits.shape == (K,)
    payloads = p.compress(codes)
    for payload, own in zip(payloads, (bits[:32].sum(), bits[32:].sum()), strict=True):
        assert own <= 8 * len(payload) <= 1.001 * own + 64
    full = np.zeros((K, 10), dtype=np.int64)
    lengths = p.bits(full)[0] - p.bits(full)[1]
    first, second = p.tables[0, 0], p.tables[1, 0]
    assert lengths == pytest.approx(10 + 10 * np.log2(second / first), abs=0.01)  # a bit a cell for being full


def test_the_words_of_a_payload_stay() -> None:
    """Changed words are a change of the format. Two cells, of two and one codes."""
    tables = np.stack([frequency_table([1, 2, 3, 2]), frequency_table([5, 1, 1, 1])])
    p = TailPrior(tables, [0, 1], [frequency_table([1, 1])])
    assert p.bounds == (2,)
    payload = p.compress(np.array([[3, 0], [2, -1]]))[0]
    assert payload.hex() == "fbffdf52"
    assert np.array_equal(p.decompress([payload], (2,)), [[3, 0], [2, -1]])


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    p, codes = prior(), sequences((3, 3))
    p.save_pretrained(tmp_path)
    loaded = TailPrior.from_pretrained(tmp_path)
    assert loaded.hash == p.hash != ""
    assert loaded.compress(codes) == p.compress(codes)
    (tmp_path / "tail.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot read entropy model"):
        TailPrior.from_pretrained(tmp_path)


def test_what_is_lost_gets_a_first_code() -> None:
    p, codes = prior(), sequences((2, 3))
    lost = codes.copy()
    lost[:, 1, 1] = -1
    filled = p.conceal(lost)
    assert filled[0, 1, 1] == p.tables[0].argmax()
    filled[0, 1, 1] = -1
    assert np.array_equal(filled, lost)


def test_what_is_no_row_of_sequences_is_refused() -> None:
    p = prior()
    gap = np.array([[1], [-1], [2]])
    for wrong, message in (
        (gap, "none after a missing one"),
        (gap[1:], "one code at least"),
        (np.full((1, 2), N), "outside"),
        (np.full((1, 2), -2), "outside"),
        (np.zeros((41, 1), dtype=int), "k <= 40"),
        (np.zeros(3, dtype=int), "codes must be"),
    ):
        with pytest.raises(ValueError, match=message):
            p.compress(wrong)
    payloads = p.compress(sequences((3,)))
    for broken in ([payloads[0] + b"\1\0\0\0"], [b"abc"], [], payloads * 2):
        with pytest.raises(ValueError, match="payload"):
            p.decompress(broken, (3,))
    with pytest.raises(ValueError, match="do not make 3 places"):
        TailPrior(np.stack([frequency_table([1, 1])]), [0, 0, 0], [frequency_table([1, 1])])
    with pytest.raises(ValueError, match="table that is not there"):
        TailPrior(np.stack([frequency_table([1, 1])]), [0, 1], [frequency_table([1, 1])])
