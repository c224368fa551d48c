"""Entropy models: integer tables, a coder that agrees with plain Python word for word, and exact inverse pairs."""

import shutil
from pathlib import Path

import constriction
import numpy as np
import pytest
from safetensors.numpy import save_file

from tokodec.entropy import coder as coder_module
from tokodec.entropy.coder import Shares, TableDecoder, TableEncoder, decode_static, encode_static
from tokodec.entropy.packed import file_hash
from tokodec.entropy.static import STATIC_FILE, StaticPrior
from tokodec.entropy.tables import PRECISION, TOTAL, check_table, frequency_table, table_bits

GRIDS = [(7,), (5, 6), (2, 3, 4), (1,), (1, 1), (2, 2, 1, 3)]


class PlainAns:
    """rANS in plain Python: 32-bit words, 64-bit state, 24-bit frequencies. The specification in FORMAT.md as code."""

    def __init__(self, words: list[int] | None = None) -> None:
        self.words = list(words or [])
        self.state = 0
        while self.words and self.state < 1 << 32:
            self.state = self.state << 32 | self.words.pop()

    def push(self, table: list[int], symbol: int) -> None:
        frequency, cumulative = table[symbol], sum(table[:symbol])
        if self.state >> (64 - 24) >= frequency:
            self.words.append(self.state & 0xFFFFFFFF)
            self.state >>= 32
        self.state = self.state // frequency << 24 | cumulative + self.state % frequency

    def pull(self, table: list[int]) -> int:
        slot = self.state & (1 << 24) - 1
        symbol = cumulative = 0
        while cumulative + table[symbol] <= slot:
            cumulative += table[symbol]
            symbol += 1
        self.state = (self.state >> 24) * table[symbol] + slot - cumulative
        if self.state < 1 << 32 and self.words:
            self.state = self.state << 32 | self.words.pop()
        return symbol

    def flush(self) -> list[int]:
        words, state = list(self.words), self.state
        while state:
            words.append(state & 0xFFFFFFFF)
            state >>= 32
        return words


def plain_encode(symbols: list[int], table: list[int]) -> bytes:
    coder = PlainAns()
    for symbol in reversed(symbols):
        coder.push(table, symbol)
    return b"".join(word.to_bytes(4, "little") for word in coder.flush())


def plain_decode(payload: bytes, n: int, table: list[int]) -> list[int]:
    coder = PlainAns([int.from_bytes(payload[i : i + 4], "little") for i in range(0, len(payload), 4)])
    symbols = [coder.pull(table) for _ in range(n)]
    assert coder.state == 0
    assert not coder.words
    return symbols


def random_table(rng: np.random.Generator, n: int) -> np.ndarray:
    return frequency_table(rng.integers(0, 1 << rng.integers(1, 25), n) + (np.arange(n) == 0))


# ---------------------------------------------------------------------------------------------------------- tables


def test_table_to_the_last_unit() -> None:
    """Every symbol gets 1, the rest in proportion, left-overs to the largest remainders, equal ones in order."""
    assert frequency_table([1, 1, 1]).tolist() == [5592406, 5592405, 5592405]
    assert frequency_table([3, 0, 5, 2]).tolist() == [5033165, 1, 8388607, 3355443]
    assert frequency_table([0, 7]).tolist() == [1, 16777215]
    assert frequency_table([9]).tolist() == [16777216]
    assert frequency_table([1, 2, 4, 8, 16, 32]).tolist() == [266306, 532611, 1065221, 2130440, 4260880, 8521758]


def test_tables_are_valid() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 17, 256, 4096, 16384, 1 << 20):
        for counts in (
            rng.integers(0, 1000, n) + 1,
            np.bincount(rng.integers(0, n, 10), minlength=n),
            np.where(np.arange(n) == n - 1, (1 << 39) - 1, 0),
        ):
            table = frequency_table(counts)
            assert table.dtype == np.int64
            assert int(table.sum()) == TOTAL == 1 << 24
            assert int(table.min()) >= 1
            assert n == 1 or int(table.max()) < TOTAL
            check_table(table)


def test_table_follows_the_counts() -> None:
    counts = np.random.default_rng(1).integers(0, 10000, 500)
    table = frequency_table(counts)
    exact = 1 + counts * (TOTAL - 500) / counts.sum()
    assert float(np.abs(table - exact).max()) < 1
    assert frequency_table(counts.astype(np.uint16)).tolist() == table.tolist()
    assert frequency_table(list(counts)).tolist() == table.tolist()


@pytest.mark.parametrize(
    "counts",
    [
        [], [[1, 2]], [0, 0], [1, -1], [0.5, 0.5], [1 << 39], [1 << 38, 1 << 38],
        [1 << 62, 1 << 62, 1 << 62, 1 << 62, 5],  # the sum wraps round to 5
        np.ones((1 << 20) + 1, np.int64), np.array([2**64 - 1, 1], np.uint64),
    ],
)  # fmt: skip
def test_counts_that_are_refused(counts: object) -> None:
    with pytest.raises(ValueError, match="counts must be"):
        frequency_table(counts)  # type: ignore[arg-type]


@pytest.mark.parametrize("table", [[0, TOTAL], [TOTAL - 1], [TOTAL, 1], [-1, TOTAL + 1], [[TOTAL]], [], [float(TOTAL)]])
def test_tables_that_are_refused(table: list) -> None:
    with pytest.raises(ValueError, match=r"frequenc"):
        check_table(np.array(table))


def test_bits_of_a_table() -> None:
    assert table_bits(np.array([TOTAL // 2, TOTAL // 4, TOTAL // 8, TOTAL // 8])).tolist() == [1, 2, 3, 3]
    assert table_bits(np.array([TOTAL])).tolist() == [0]
    assert table_bits(np.array([1, TOTAL - 1]))[0] == PRECISION


# ----------------------------------------------------------------------------------------------------------- coder

LITERAL_TABLE = [5033165, 1, 8388607, 3355443]
LITERAL_WORDS = [3258694953, 8738138]


def test_words_of_a_short_stream() -> None:
    """Other words here are another file format."""
    symbols = [0, 2, 2, 3, 0, 2, 1, 2, 0, 0]
    payload = encode_static(np.array(symbols), np.array(LITERAL_TABLE))
    assert np.frombuffer(payload, "<u4").tolist() == LITERAL_WORDS
    assert payload == plain_encode(symbols, LITERAL_TABLE)
    assert decode_static(payload, 10, np.array(LITERAL_TABLE)).tolist() == symbols
    assert plain_decode(payload, 10, LITERAL_TABLE) == symbols


def test_coder_agrees_with_plain_python() -> None:
    rng = np.random.default_rng(2)
    for n_symbols in (2, 3, 5, 16, 100):
        for length in (1, 2, 3, 10, 200):
            table = random_table(rng, n_symbols)
            for symbols in (
                rng.choice(n_symbols, length, p=table / TOTAL),  # as the table expects
                rng.integers(0, n_symbols, length),  # and not
                np.zeros(length, np.int64),
                np.full(length, n_symbols - 1),
            ):
                payload = encode_static(symbols, table)
                assert payload == plain_encode(symbols.tolist(), table.tolist())
                assert decode_static(payload, length, table).tolist() == symbols.tolist()
                assert plain_decode(payload, length, table.tolist()) == symbols.tolist()


def test_extreme_tables() -> None:
    for table in ([1, TOTAL - 1], [TOTAL - 1, 1], [1] * 9 + [TOTAL - 9], [TOTAL // 2, TOTAL // 2]):
        rng = np.random.default_rng(3)
        for symbols in (rng.integers(0, len(table), 300), np.zeros(300, np.int64), np.full(300, len(table) - 1)):
            payload = encode_static(symbols, np.array(table))
            assert payload == plain_encode(symbols.tolist(), table)
            assert decode_static(payload, 300, np.array(table)).tolist() == symbols.tolist()


def test_every_frequency_reaches_the_coder_unchanged() -> None:
    """constriction takes floats: each symbol alone, behind a state that shows frequency and cumulative exactly."""
    rng = np.random.default_rng(4)
    for n in (64, 16384):
        table = random_table(rng, n)
        model = coder_module.table_model(table)
        cumulative = np.concatenate([[0], np.cumsum(table)])
        state = 0x123456789ABC  # two words
        for symbol in rng.choice(n, 300):
            coder = constriction.stream.stack.AnsCoder(np.array([state & 0xFFFFFFFF, state >> 32], np.uint32))
            coder.encode_reverse(np.array([symbol], np.int32), model)
            plain = PlainAns()
            plain.state = state
            f, c = int(table[symbol]), int(cumulative[symbol])
            if plain.state >> 40 >= f:
                plain.words.append(plain.state & 0xFFFFFFFF)
                plain.state >>= 32
            plain.state = plain.state // f << 24 | c + plain.state % f
            assert coder.get_compressed().tolist() == plain.flush()


def test_nothing_to_tell_takes_no_bytes() -> None:
    one = np.array([TOTAL])
    assert encode_static(np.zeros(1000, np.int64), one) == b""
    assert decode_static(b"", 1000, one).tolist() == [0] * 1000
    assert encode_static(np.zeros(0, np.int64), np.array(LITERAL_TABLE)) == b""
    assert decode_static(b"", 0, np.array(LITERAL_TABLE)).tolist() == []
    for n, table in ((5, one), (0, np.array(LITERAL_TABLE))):
        with pytest.raises(ValueError, match="zero bytes"):
            decode_static(b"\1\0\0\0", n, table)


def test_a_row_of_the_first_symbol_may_take_no_bytes() -> None:
    """The state starts at 0 and symbol 0 leaves it there: the empty payload is a valid stream."""
    table = np.array(LITERAL_TABLE)
    assert encode_static(np.zeros(50, np.int64), table) == b""
    assert decode_static(b"", 50, table).tolist() == [0] * 50


def test_payload_is_used_up() -> None:
    rng = np.random.default_rng(5)
    table = random_table(rng, 16)
    symbols = rng.choice(16, 500, p=table / TOTAL)
    payload = encode_static(symbols, table)
    for n in (1, 100, 400):
        with pytest.raises(ValueError, match="more than its symbols"):
            decode_static(payload, n, table)
    with pytest.raises(ValueError, match="more than its symbols"):
        decode_static(rng.bytes(4) + payload, 500, table)


@pytest.mark.parametrize("payload", [b"a", b"abc", b"abcde", b"abcd\0\0\0\0", b"\0\0\0\0"])
def test_payload_that_is_no_stream(payload: bytes) -> None:
    with pytest.raises(ValueError, match="32-bit words"):
        decode_static(payload, 5, np.array(LITERAL_TABLE))


def test_random_payloads_decode_or_are_refused() -> None:
    rng = np.random.default_rng(6)
    table = random_table(rng, 50)
    refused = 0
    for _ in range(1000):
        payload = rng.bytes(int(rng.integers(0, 60)))
        try:
            symbols = decode_static(payload, 40, table)
        except ValueError:
            refused += 1
        else:
            assert symbols.shape == (40,)
            assert 0 <= symbols.min() <= symbols.max() < 50
    assert refused > 900


# ------------------------------------------------------------------------------------------ a table for every symbol


def random_blocks(rng: np.random.Generator, sizes: list[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Symbols ``[n]`` and frequencies ``[n, N]`` for each (n, N): tables from flat to nearly certain."""
    blocks = []
    for n, size in sizes:
        tables = np.stack([random_table(rng, size) for _ in range(n)]) if n else np.zeros((0, size), np.int64)
        for row in tables[::3]:  # all but certain
            row[:] = 1
            row[rng.integers(size)] += TOTAL - size
        blocks.append((rng.integers(0, size, n), tables))
    return blocks


def as_shares(tables: np.ndarray) -> Shares:
    return (tables - 1).astype(np.float32)


def encode_blocks(blocks: list[tuple[np.ndarray, np.ndarray]]) -> bytes:
    encoder = TableEncoder()
    for symbols, tables in blocks:
        encoder.push(symbols, as_shares(tables))
    return encoder.finish()


def test_every_table_reaches_the_coder_unchanged() -> None:
    """Word for word against plain Python, both ways, in rows of tables from 2 to 256 entries."""
    rng = np.random.default_rng(10)
    for sizes in ([(1, 2)], [(40, 2), (30, 3)], [(20, 256), (1, 7), (20, 64)], [(5, 100), (0, 9), (3, 1), (8, 255)]):
        blocks = random_blocks(rng, sizes)
        rows = [(int(s), t.tolist()) for symbols, tables in blocks for s, t in zip(symbols, tables, strict=True)]
        plain = PlainAns()
        for symbol, table in reversed(rows):
            plain.push(table, symbol)
        payload = encode_blocks(blocks)
        assert np.frombuffer(payload, "<u4").tolist() == plain.flush()
        decoder, reader = TableDecoder(payload), PlainAns(np.frombuffer(payload, "<u4").tolist())
        for symbols, tables in blocks:
            found = decoder.pull(as_shares(tables))
            assert found.dtype == np.int64
            assert found.tolist() == symbols.tolist()
        decoder.finish()
        assert [reader.pull(table) for _, table in rows] == [symbol for symbol, _ in rows]
        assert (reader.state, reader.words) == (0, [])


def test_one_table_for_all_is_the_static_coder() -> None:
    rng = np.random.default_rng(11)
    table = random_table(rng, 50)
    symbols = rng.choice(50, 300, p=table / TOTAL)
    assert encode_blocks([(symbols, np.tile(table, (300, 1)))]) == encode_static(symbols, table)
    parts = [(part, np.tile(table, (len(part), 1))) for part in np.split(symbols, [1, 100, 100, 250])]
    assert encode_blocks(parts) == encode_static(symbols, table)  # however it is cut into blocks


def test_tables_of_one_entry_tell_nothing() -> None:
    one = np.full((7, 1), TOTAL)
    assert encode_blocks([(np.zeros(7, np.int64), one)]) == b""
    assert encode_blocks([]) == b""
    decoder = TableDecoder(b"")
    assert decoder.pull(as_shares(one)).tolist() == [0] * 7
    assert decoder.pull(np.zeros((0, 5), np.float32)).tolist() == []
    decoder.finish()


def test_a_row_of_tables_is_used_up() -> None:
    blocks = random_blocks(np.random.default_rng(12), [(30, 16), (30, 16)])
    payload = encode_blocks(blocks)
    decoder = TableDecoder(payload)
    decoder.pull(as_shares(blocks[0][1]))
    with pytest.raises(ValueError, match="more than its symbols"):
        decoder.finish()
    for bad in (payload[:-1], payload + bytes(4)):
        with pytest.raises(ValueError, match="32-bit words"):
            TableDecoder(bad)


# ----------------------------------------------------------------------------------------------------- static prior


def test_symbols_outside_the_table_never_reach_the_coder() -> None:
    prior = StaticPrior([np.array(LITERAL_TABLE)])
    for bad in (-1, 4, 1 << 40):
        with pytest.raises(ValueError, match="level 1 holds a code outside"):
            prior.compress(np.array([[0, bad, 1]]))


def make_prior(seed: int = 7, sizes: tuple[int, ...] = (64, 32, 1, 16)) -> StaticPrior:
    rng = np.random.default_rng(seed)
    return StaticPrior.from_counts([rng.integers(0, 5000, n) for n in sizes])


def draw(prior: StaticPrior, grid: tuple[int, ...], seed: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.choice(t.size, grid, p=t / TOTAL) for t in prior.tables]).astype(np.int64)


@pytest.mark.parametrize("grid", GRIDS)
def test_prior_round_trip(grid: tuple[int, ...]) -> None:
    prior = make_prior()
    codes = draw(prior, grid)
    payloads = prior.compress(codes)
    assert len(payloads) == 4
    assert all(len(payload) % 4 == 0 for payload in payloads)
    assert np.array_equal(prior.decompress(payloads, grid), codes)
    for k in (1, 2, 3):  # a prefix of the payloads is a prefix of the levels
        assert np.array_equal(prior.decompress(payloads[:k], grid), codes[:k])
        assert prior.compress(codes[:k]) == payloads[:k]


def test_codes_are_in_raster_order() -> None:
    prior = make_prior()
    codes = draw(prior, (6, 4))
    assert prior.compress(codes) == prior.compress(codes.reshape(4, 24))
    assert prior.compress(np.asfortranarray(codes)) == prior.compress(codes)


def test_unlikely_codes_round_trip() -> None:
    prior = StaticPrior.from_counts([np.array([10**9] + [0] * 4095)])
    codes = np.arange(4096)[None, ::-1]
    assert np.array_equal(prior.decompress(prior.compress(codes), (4096,)), codes)


@pytest.mark.parametrize("grid", GRIDS)
def test_grids_in_one_payload_come_back_each_with_its_levels(grid: tuple[int, ...]) -> None:
    prior = make_prior()
    total = len(prior.tables)
    levels = (total, 1, total)
    parts = [draw(prior, grid, seed)[:k] for seed, k in enumerate(levels)]
    payload = prior.compress_joint(parts)
    assert all(map(np.array_equal, prior.decompress_joint(payload, levels, grid), parts))
    assert prior.compress_joint(parts[1:2]) == prior.compress(parts[1])[0]
    with pytest.raises(ValueError, match="more than its symbols"):
        prior.decompress_joint(payload + b"\1\0\0\0" * 2, levels, grid)
    for wrong in ((0,), (total + 1,)):
        with pytest.raises(ValueError, match="levels, the entropy model has"):
            prior.decompress_joint(payload, wrong, grid)


def test_a_codebook_of_one_takes_no_bytes_in_a_joint_payload() -> None:
    prior = StaticPrior.from_counts([[5], [3, 1]])
    codes = np.array([[0, 0, 0], [0, 1, 0]])
    assert np.array_equal(prior.decompress_joint(prior.compress_joint([codes]), [2], (3,))[0], codes)
    assert prior.compress_joint([codes[:1]]) == b""


def test_size_is_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Measured bits against the ideal code length, on streams of 100,000 codes: within 0.01 % and a word."""
    prior = make_prior()
    codes = draw(prior, (100_000,))
    ideal = prior.bits(codes)
    sizes = [8 * len(payload) for payload in prior.compress(codes)]
    with capsys.disabled():
        for k, (bits, size) in enumerate(zip(ideal, sizes, strict=True)):
            if bits:
                print(f"\n  level {k + 1}: {size} bits, ideal {bits:.0f}, gap {100 * (size / bits - 1):+.4f} %", end="")
        print()
    assert ideal[2] == sizes[2] == 0
    for bits, size in zip(ideal, sizes, strict=True):
        assert abs(size - bits) <= 1e-4 * bits + 32


def test_bits_of_short_codes() -> None:
    prior = StaticPrior([np.array([TOTAL // 2, TOTAL // 4, TOTAL // 4])] * 2)
    assert prior.bits(np.array([[0, 1], [2, 2]])).tolist() == [3, 4]
    assert prior.bits(np.array([[0, 1]])).tolist() == [3]


def test_missing_codes_become_the_most_probable_ones() -> None:
    """The smallest of equals; codes that are there stay."""
    prior = StaticPrior.from_counts([[1, 5, 2], [3, 1], [4, 4]])
    codes = np.array([[[0, -1, 2], [-1, 1, -1]], [[-1, 1, 0], [-1, -1, 1]], [[1, -1, 1], [-1, 0, 1]]])
    before = codes.copy()
    filled = prior.conceal(codes)
    assert filled.dtype == np.int64
    assert filled.tolist() == [[[0, 1, 2], [1, 1, 1]], [[0, 1, 0], [0, 0, 1]], [[1, 0, 1], [0, 0, 1]]]
    assert np.array_equal(codes, before)
    assert prior.conceal(np.full((1, 4), -1)).tolist() == [[1, 1, 1, 1]]
    assert np.array_equal(prior.conceal(codes, levels=1), np.concatenate([filled[:1], codes[1:]]))
    complete = np.array([[2, 0], [1, 0]])
    assert np.array_equal(prior.conceal(complete), complete)


def test_missing_codes_become_those_of_the_least_expected_error() -> None:
    """The mean of the first level is 1.1: code 1, although 0 is the most frequent. Finer levels are left out."""
    prior = StaticPrior([np.array([TOTAL // 2, TOTAL // 4, TOTAL // 4]), np.array([TOTAL // 2, TOTAL // 2])])
    codewords = [np.array([[0.0], [1.0], [3.4]]), np.array([[-2.0], [2.0]])]
    assert prior.conceal(np.full((2, 3), -1), codewords).tolist() == [[1, 1, 1], [-1, -1, -1]]
    known = np.array([[2, -1, 0], [-1, 0, 1]])
    assert prior.conceal(known, codewords).tolist() == [[2, 1, 0], [-1, 0, 1]]
    assert prior.conceal(known, codewords, levels=1).tolist() == [[2, 1, 0], [-1, 0, 1]]
    assert prior.conceal(known).tolist() == [[2, 0, 0], [0, 0, 1]]


def test_codes_that_cannot_be_concealed() -> None:
    prior = make_prior()
    for bad in (-2, 64):
        with pytest.raises(ValueError, match="level 1 holds a code outside"):
            prior.conceal(np.array([[bad, 1]]))
    with pytest.raises(ValueError, match="codes must be"):
        prior.conceal(np.zeros((5, 3), np.int64))
    with pytest.raises(ValueError, match="level 1 holds a code outside"):
        prior.compress(np.array([[-1, 1]]))


def test_from_counts_gives_no_codeword_probability_zero() -> None:
    prior = StaticPrior.from_counts([[0, 0, 98]])
    assert prior.tables[0].tolist() == frequency_table([1, 1, 99]).tolist()


def test_save_load_and_hash(tmp_path: Path) -> None:
    prior = make_prior()
    assert prior.hash == ""
    prior.save_pretrained(tmp_path)
    loaded = StaticPrior.from_pretrained(tmp_path)
    assert prior.hash == loaded.hash == file_hash(tmp_path / STATIC_FILE)
    assert len(prior.hash) == 16
    assert prior.codebook_sizes == loaded.codebook_sizes == (64, 32, 1, 16)
    assert all(np.array_equal(a, b) for a, b in zip(prior.tables, loaded.tables, strict=True))
    (tmp_path / "again").mkdir()
    make_prior().save_pretrained(tmp_path / "again")
    assert StaticPrior.from_pretrained(tmp_path / "again").hash == prior.hash  # the same tables are the same file
    other = make_prior(seed=9)
    other.save_pretrained(tmp_path)
    assert other.hash != prior.hash


def test_tables_of_the_golden_model_are_pinned(tiny_model: Path) -> None:
    """Compared as integers: the same on every machine."""
    prior = StaticPrior.from_pretrained(tiny_model)
    assert prior.codebook_sizes == (64, 32, 16)
    for table in prior.tables:
        check_table(table)


def test_more_than_ten_levels_keep_their_order(tmp_path: Path) -> None:
    prior = StaticPrior.from_counts([np.arange(n) + 1 for n in range(2, 15)])
    prior.save_pretrained(tmp_path)
    assert StaticPrior.from_pretrained(tmp_path).codebook_sizes == tuple(range(2, 15))


def test_damaged_prior_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="cannot read entropy model"):
        StaticPrior.from_pretrained(tmp_path)
    path = tmp_path / STATIC_FILE
    shutil.copy(tiny_model / STATIC_FILE, path)
    data = path.read_bytes()
    for bad in (b"", data[:50], data[:-4], b"x" * 100):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"cannot read|table"):
            StaticPrior.from_pretrained(tmp_path)
    table = np.array(LITERAL_TABLE, np.int32)
    for arrays in (
        {"table.1": table},
        {"table.0": table, "other": table},
        {"table.0": table - 1},
        {"table.0": table.astype(np.float32)},
        {"table.0": table[None]},
    ):
        save_file(arrays, str(path))
        with pytest.raises(ValueError, match=r"tables|frequenc"):
            StaticPrior.from_pretrained(tmp_path)


def test_flipped_bits_in_a_saved_prior_are_refused_or_change_the_hash(tmp_path: Path, tiny_model: Path) -> None:
    """Each byte of the file in turn: it does not load, or the codec sees from the hash that it is another."""
    good = StaticPrior.from_pretrained(tiny_model)
    data = (tiny_model / STATIC_FILE).read_bytes()
    refused = 0
    for at in range(len(data)):
        (tmp_path / STATIC_FILE).write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            assert StaticPrior.from_pretrained(tmp_path).hash != good.hash
        except ValueError:
            refused += 1
    assert refused > len(data) // 2


def test_prior_arguments() -> None:
    with pytest.raises(ValueError, match="at least one"):
        StaticPrior([])
    prior = make_prior()
    for shape in ((5, 3), (0, 3), (3,)):
        with pytest.raises(ValueError, match="codes must be"):
            prior.compress(np.zeros(shape, np.int64))
        with pytest.raises(ValueError, match="codes must be"):
            prior.bits(np.zeros(shape, np.int64))
    with pytest.raises(ValueError, match="5 payloads for 4 levels"):
        prior.decompress([b""] * 5, (3,))
    payloads = prior.compress(draw(prior, (40,)))
    with pytest.raises(ValueError, match="more than"):
        prior.decompress(payloads, (20,))
