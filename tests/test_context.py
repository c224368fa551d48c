"""The context prior: what it codes comes back, its tables are the same integers everywhere, and nothing sees ahead.

Networks are tiny and random, which is hard on the coder: their tables are sharp and fit no codes.
"""

import functools
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tokodec.entropy.coder import TableEncoder
from tokodec.entropy.context.level import KEPT_GRIDS, LevelRun
from tokodec.entropy.context.net import ContextNet, LevelNet, LevelShape, RoundedLinear
from tokodec.entropy.context.prior import CONTEXT_FILE, ContextPrior
from tokodec.entropy.integer import LOGIT_BITS, frequencies
from tokodec.entropy.packed import file_hash
from tokodec.entropy.schedule import Schedule, offsets_within, raster, refinement
from tokodec.entropy.tables import TOTAL
from tokodec.train.data.tokens import LevelSampler, TokenStore

Block = tuple[int, int, np.ndarray, np.ndarray, np.ndarray]
SHAPE = LevelShape(features=8, width=16, hidden=16, blocks=1, digit=8)
SIZES = (40, 300, 9)  # the second level takes two digits

# Kind of grid: schedules of the three levels, radius of the windows, grids.
KINDS: dict[str, tuple[list[Schedule], float, list[tuple[int, ...]]]] = {
    "row": ([raster(1)] * 3, 4, [(1,), (2,), (7,), (40,), (0,)]),
    "time": ([refinement(1, 8), refinement(1, 4), refinement(1, 1)], 5, [(1,), (8,), (13,), (50,)]),
    "plane": (
        [refinement(2, 8), refinement(2, 4), refinement(2, 2)],
        2.3,
        [(1, 1), (1, 9), (6, 1), (4, 4), (7, 10), (10, 7), (0, 3)],
    ),
    "video": (
        [refinement(3, 8, walked=1), refinement(3, 4, walked=1), refinement(3, 2)],
        1.5,
        [(1, 1, 1), (2, 3, 5), (1, 4, 4), (3, 1, 6), (2, 5, 1), (0, 2, 2)],
    ),
}
CASES = [(kind, grid) for kind, (_, _, grids) in KINDS.items() for grid in grids]


def make_net(
    schedules: Sequence[Schedule],
    radius: float,
    sizes: Sequence[int] = SIZES,
    dim: int = 0,
    shape: LevelShape = SHAPE,
    filler: bool = False,
    seed: int = 0,
) -> ContextNet:
    """Networks of random weights whose tables are far from flat."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    n, ndim = len(sizes) + filler, schedules[0].ndim
    own = list(schedules[: len(sizes)]) + [refinement(ndim, 1)] * filler
    codewords = [rng.normal(size=(size, dim)) for size in sizes]
    net = ContextNet(codewords, own, [offsets_within(radius, (1.0,) * ndim)] * n, [shape] * n)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if ".logits." in name:
                parameter.mul_(4)
            elif name.endswith(".bias"):
                parameter.uniform_(-0.5, 0.5)
    return net


def levels_of(net: ContextNet) -> list[LevelNet]:
    """Its networks, with their type."""
    return [level for level in net.levels if isinstance(level, LevelNet)]


@functools.cache
def net_of(kind: str, filler: bool = False) -> ContextNet:
    schedules, radius, _ = KINDS[kind]
    return make_net(schedules, radius, filler=filler)


@functools.cache
def prior_of(kind: str, filler: bool = False) -> ContextPrior:
    return ContextPrior(net_of(kind, filler).export())


def draw(prior: ContextPrior, grid: tuple[int, ...], seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, n, grid) for n in prior.codebook_sizes])


def draw_likely(prior: ContextPrior, grid: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """Codes as the prior expects them."""
    rng = np.random.default_rng(seed)
    flat = np.zeros((len(prior.levels), int(np.prod(grid))), np.int64)
    for k, level in enumerate(prior.levels):
        run = LevelRun(level, torch.from_numpy(flat[:k]), grid)
        for step, cells in enumerate(run.layout.steps):
            leaf = np.zeros(len(cells), np.int64)
            for digit, base in enumerate(level.tree.bases):
                upto = (run.tables(step, digit, leaf).astype(np.int64) + 1).cumsum(1)
                leaf = leaf * base + (upto > rng.integers(0, TOTAL, (len(cells), 1))).argmax(1)
            flat[k, cells] = np.maximum(level.tree.code[leaf], 0)
            run.put(step, flat[k, cells])
    return flat.reshape(-1, *grid)


def blocks_of(prior: ContextPrior, codes: np.ndarray) -> list[list[Block]]:
    """For each level what is coded, in order: step, digit, cells ``[m]``, values ``[m]`` and frequencies ``[m, N]``."""
    found = []
    for level, coded in zip(prior.levels, prior._code(codes), strict=False):
        rows = [(values.copy(), shares.astype(np.int64) + 1) for values, shares in coded]
        steps, digits = list(level.schedule.run(codes.shape[1:])), len(level.tree.bases)
        assert len(rows) == len(steps) * digits
        found.append([(i // digits, i % digits, steps[i // digits], *row) for i, row in enumerate(rows)])
    return found


def same_blocks(a: list, b: list) -> bool:
    return len(a) == len(b) and all(np.array_equal(x[4], y[4]) for x, y in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize(("kind", "grid"), CASES)
def test_round_trip(kind: str, grid: tuple[int, ...]) -> None:
    prior = prior_of(kind)
    for seed in (1, 2):
        codes = draw(prior, grid, seed)
        payloads = prior.compress(codes)
        assert len(payloads) == 3
        decoded = prior.decompress(payloads, grid)
        assert decoded.dtype == np.int64
        assert np.array_equal(decoded, codes)


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_codes_round_trip(kind: str) -> None:
    prior, grid = prior_of(kind), KINDS[kind][2][3]
    for codes in (np.zeros((3, *grid), np.int64), np.stack([np.full(grid, n - 1) for n in SIZES])):
        assert np.array_equal(prior.decompress(prior.compress(codes), grid), codes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_of_the_payloads_is_a_prefix_of_the_levels(kind: str) -> None:
    prior, grid = prior_of(kind), KINDS[kind][2][3]
    codes = draw(prior, grid)
    payloads = prior.compress(codes)
    bits = prior.bits(codes)
    for k in (1, 2, 3):
        assert np.array_equal(prior.decompress(payloads[:k], grid), codes[:k])
        assert prior.compress(codes[:k]) == payloads[:k]
        assert prior.bits(codes[:k]).tolist() == bits[:k].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_grids_in_one_payload_come_back_each_with_its_levels(kind: str) -> None:
    prior, grid = prior_of(kind), KINDS[kind][2][3]
    levels = (2, 3, 1)
    parts = [draw(prior, grid, seed)[:k] for seed, k in enumerate(levels)]
    payload = prior.compress_joint(parts)
    for found, codes in zip(prior.decompress_joint(payload, levels, grid), parts, strict=True):
        assert np.array_equal(found, codes)
    assert prior.compress_joint(parts[2:]) == prior.compress(parts[2])[0]
    alone = [payload for codes in parts for payload in prior.compress(codes)]
    assert len(payload) < len(b"".join(alone))  # fewer ends of streams
    with pytest.raises(ValueError, match="more than its symbols"):
        prior.decompress_joint(payload, levels[:2], grid)
    for wrong in ((0,), (4,)):
        with pytest.raises(ValueError, match="levels, the entropy model has 3"):
            prior.decompress_joint(payload, wrong, grid)


def test_layout_of_the_array_does_not_matter() -> None:
    prior = prior_of("plane")
    codes = draw(prior, (7, 10))
    assert prior.compress(np.asfortranarray(codes)) == prior.compress(codes)
    assert prior.compress(np.repeat(codes, 2, axis=2)[:, :, ::2]) == prior.compress(codes)


@pytest.mark.parametrize(
    ("sizes", "dim", "digits"),
    [((1, 2, 70000), 0, [1, 1, 3]), ((256, 257, 1), 0, [1, 2, 1]), ((256, 257, 1), 2, [1, 2, 1]), ((4096,), 3, [2])],
)
def test_codebooks_of_one_two_and_three_digits(sizes: tuple[int, ...], dim: int, digits: list[int]) -> None:
    """With known codewords or without; a codebook of one code takes no bytes."""
    shape = LevelShape(features=4, width=8, hidden=8, blocks=2, digit=4)
    prior = ContextPrior(make_net([refinement(1, 4)] * 3, 1, sizes, dim, shape).export())
    assert prior.codebook_sizes == sizes
    assert [len(level.tree.bases) for level in prior.levels] == digits
    codes = draw(prior, (60,))
    codes[:, 0], codes[:, 1] = 0, np.array(sizes) - 1
    payloads = prior.compress(codes)
    assert [payload == b"" for payload in payloads] == [n == 1 for n in sizes]
    assert np.array_equal(prior.decompress(payloads, (60,)), codes)


def test_any_network_that_can_be_trained_can_be_coded_with() -> None:
    """Weights that vanished and biases that grew: they are rounded more coarsely, not refused."""
    for weights, bias in ((0.0, -10.0), (1e-4, -10.0), (1e-3, 20.0), (0.01, -60.0), (100.0, 100.0)):
        net = make_net([refinement(2, 2)] * 2, 1.5, (12, 300), dim=2)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if name.endswith(".bias") or ".logits_bias." in name:
                    parameter[::2] = bias
                else:
                    parameter.mul_(weights)
        prior = ContextPrior(net.export())
        codes = draw(prior, (5, 6))
        assert np.array_equal(prior.decompress(prior.compress(codes), (5, 6)), codes)


@pytest.mark.parametrize(
    ("kind", "grid"), [("row", (600,)), ("time", (3000,)), ("plane", (48, 40)), ("video", (4, 20, 24))]
)
def test_size_is_what_the_tables_say(kind: str, grid: tuple[int, ...]) -> None:
    """Measured bytes against the ideal code length: within 0.1 % and two words."""
    prior = prior_of(kind)
    for codes in (draw(prior, grid), draw_likely(prior, grid)):
        for payload, bits in zip(prior.compress(codes), prior.bits(codes), strict=True):
            assert len(payload) % 4 == 0
            assert bits > 500
            assert abs(len(payload) - bits / 8) <= 8 + 0.001 * bits / 8


def test_bits_are_those_of_the_tables() -> None:
    prior = prior_of("plane")
    codes = draw(prior, (5, 6))
    for found, blocks in zip(prior.bits(codes), blocks_of(prior, codes), strict=True):
        chosen = np.concatenate([table[np.arange(len(values)), values] for *_, values, table in blocks])
        assert found == pytest.approx(float((24 - np.log2(chosen)).sum()), abs=1e-6)


def test_grids_that_were_coded_before_do_not_matter() -> None:
    prior = ContextPrior(net_of("plane").export())
    codes = draw(prior, (5, 6))
    first = prior.compress(codes)
    for n in range(1, KEPT_GRIDS + 3):
        for grid in ((n, 6), (6, n)):
            other = draw(prior, grid, n)
            assert np.array_equal(prior.decompress(prior.compress(other), grid), other)
        assert prior.compress(codes) == first
        assert all(len(level._layouts) <= KEPT_GRIDS for level in prior.levels)  # or a server would run full


# ------------------------------------------------------------------------------------------------ tables and payloads


@pytest.mark.parametrize("kind", KINDS)
def test_tables_are_valid_and_depend_on_the_cell(kind: str) -> None:
    prior = prior_of(kind)
    for level, blocks in zip(prior.levels, blocks_of(prior, draw(prior, KINDS[kind][2][3])), strict=True):
        for _, digit, cells, values, table in blocks:
            assert table.shape == (len(cells), level.tree.bases[digit])
            assert values.min() >= 0
            assert values.max() < level.tree.bases[digit]
            assert (table.sum(1) == TOTAL).all()
            assert table.min() >= 1
        first = np.concatenate([table for _, digit, *_, table in blocks if digit == 0])
        assert len(np.unique(first, axis=0)) > len(first) // 2
        assert first.max() > 4 * first.mean()


def test_a_leaf_without_a_code_gets_next_to_nothing() -> None:
    prior = prior_of("plane")
    tree = prior.levels[1].tree
    assert tree.bases == (16, 32)
    codes = draw(prior, (7, 10))
    for _, digit, cells, _, table in blocks_of(prior, codes)[1]:
        prefix = tree.leaf[codes[1].ravel()[cells]] // 32 if digit else np.zeros(len(cells), np.int64)
        used = tree.used(digit)[prefix]
        assert not used.all() or not digit
        assert (table[~used] == 1).all()


def plain_decode(payload: bytes, tables: list[list[int]]) -> list[int]:
    """FORMAT.md, "How codes become bytes", in plain Python: 32-bit words, 64-bit state, 24-bit frequencies."""
    assert len(payload) % 4 == 0
    words = [int.from_bytes(payload[i : i + 4], "little") for i in range(0, len(payload), 4)]
    state, found = 0, []
    while words and state < 1 << 32:
        state = state << 32 | words.pop()
    for table in tables:
        slot = state % (1 << 24)
        symbol = below = 0
        while below + table[symbol] <= slot:
            below += table[symbol]
            symbol += 1
        state = table[symbol] * (state >> 24) + slot - below
        if state < 1 << 32 and words:
            state = state << 32 | words.pop()
        found.append(symbol)
    assert state == 0
    assert not words
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_in_plain_python_reads_the_payloads(kind: str) -> None:
    """Order of coding: for each step the first digits of its cells in raster order, then their second digits."""
    prior = prior_of(kind)
    codes = draw(prior, KINDS[kind][2][3])
    for k, (payload, blocks) in enumerate(zip(prior.compress(codes), blocks_of(prior, codes), strict=True)):
        tables = [row for *_, table in blocks for row in table.tolist()]
        found = plain_decode(payload, tables)
        assert found == [v for *_, values, _ in blocks for v in values.tolist()]
        tree, at = prior.levels[k].tree, 0
        for step in prior.levels[k].schedule.run(codes.shape[1:]):
            leaf = np.zeros(len(step), np.int64)
            for base in tree.bases:
                leaf = leaf * base + found[at : at + len(step)]
                at += len(step)
            assert np.array_equal(tree.code[leaf], codes[k].ravel()[step])
        assert at == len(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_integers_are_what_the_rounding_network_computes(kind: str) -> None:
    """Every table to the last unit, on grids of several sizes side by side."""
    net, prior = net_of(kind), prior_of(kind)
    grids = [grid for grid in KINDS[kind][2] if np.prod(grid)]
    every = [draw_likely(prior, grid, seed) for seed, grid in enumerate(grids)]
    store = TokenStore(every, "cpu")
    first = np.cumsum([0] + [codes[0].size for codes in every])
    for k, level in enumerate(levels_of(net)):
        sampler = LevelSampler(SIZES, range(k + 1), level.tree.leaf, net.schedules[k], net.offsets[k], "cpu")
        with torch.no_grad():
            indices, leaf = sampler.examples(store, torch.arange(len(store)))
            a = level.stream(level.embed(indices, True, torch.float32), True)
            tables, rest = [], level.tree.code.size
            for digit, base in enumerate(level.tree.bases):
                logits = level.digit_logits(a, digit, leaf // rest, True) * 2**LOGIT_BITS
                tables.append(frequencies(logits).numpy() + 1)
                rest //= base
            bits = level.bits(indices, leaf, True).double().sum()
        for codes, start in zip(every, first, strict=False):
            for _, digit, cells, _, table in blocks_of(prior, codes)[k]:
                assert np.array_equal(table, tables[digit][start + cells])
        assert float(bits) == pytest.approx(sum(prior.bits(codes)[k] for codes in every), rel=1e-3)


def plain_tables(arrays: dict[str, np.ndarray], k: int, codes: np.ndarray) -> list[np.ndarray]:
    """Frequencies of level k for each step and digit, from the arrays of the file, in integers of 64 bits."""
    own = {name.partition(".")[2]: array for name, array in arrays.items() if name.startswith(f"{k}.")}
    own = {name: array.astype(np.int64) for name, array in own.items()}
    grid, flat = codes.shape[1:], codes.reshape(len(codes), -1)
    first = np.cumsum([0] + [arrays[f"{j}.leaf"].size + 1 for j in range(k + 1)])
    known = [*flat[:k], np.full(flat.shape[1], -1)]

    def linear(name: str, x: np.ndarray, low: int, high: int, rows: slice = slice(None)) -> np.ndarray:
        weight, bias, shift = (own[f"{name}.{part}"][rows] for part in ("weight", "bias", "shift"))
        return np.clip((2 * (weight @ x + bias) + (1 << shift)) >> (shift + 1), low, high)

    def row_of(cell: tuple[int, ...]) -> np.ndarray:
        if not all(0 <= at < n for at, n in zip(cell, grid, strict=True)):
            rows = [*(first[1 : k + 1] - 1), first[-1]]
        else:
            here = [level[np.ravel_multi_index(cell, grid)] for level in known]
            rows = [first[j + 1] - 1 if code < 0 else first[j] + code for j, code in enumerate(here)]
        return np.clip(own["table"][rows].sum(0), -127, 127)

    found = []
    for cells in Schedule(tuple(own["period"].tolist()), tuple(own["steps"].tolist())).run(grid):
        logits: list[list[np.ndarray]] = [[] for _ in own["bases"]]
        for cell in cells:
            at = np.unravel_index(cell, grid)
            window = np.concatenate([row_of(tuple(at + offset)) for offset in own["offsets"]])
            h = linear("input", window, -32767, 32767)
            for i in range(sum(name.startswith("up.") for name in own) // 3):
                v = linear(f"up.{i}", np.clip((h + 4) >> 3, -127, 127), 0, 255)
                h = np.clip(h + linear(f"down.{i}", v, -32767, 32767), -32767, 32767)
            prefix, rest = 0, int(np.prod(own["bases"]))
            for i, base in enumerate(own["bases"]):
                v = linear(f"head.{i}", np.clip((h + 4) >> 3, -127, 127), -65536, 65536)
                v = np.clip(v + own[f"prefix.{i}"][prefix] if i else v, 0, 255)
                logits[i].append(linear(f"logits.{i}", v, -32768, 32768, slice(prefix * base, (prefix + 1) * base)))
                rest //= int(base)
                prefix = int(own["leaf"][flat[k, cell]]) // rest
        found += [frequencies(torch.from_numpy(np.stack(own_logits))).numpy() + 1 for own_logits in logits]
        known[k][cells] = flat[k, cells]
    return found


@pytest.mark.parametrize(
    ("which", "grid"), [("literal", (4, 5)), ("plane", (5, 6)), ("video", (2, 3, 3)), ("time", (11,))]
)
def test_tables_can_be_computed_from_the_file_in_plain_integers(which: str, grid: tuple[int, ...]) -> None:
    prior = ContextPrior(literal_arrays()) if which == "literal" else prior_of(which)
    codes = draw(prior, grid)
    for k, blocks in enumerate(blocks_of(prior, codes)):
        tables = plain_tables(prior.arrays(), k, codes)
        assert len(tables) == len(blocks)
        assert all(np.array_equal(table, block[4]) for table, block in zip(tables, blocks, strict=True))


def test_weights_are_rounded_to_the_nearest() -> None:
    """As finely as eight bits allow."""
    torch.manual_seed(0)
    for scale in (0.05, 1.0, 3.0):
        linear = RoundedLinear(50, 400, 127, 5, 8)
        with torch.no_grad():
            linear.weight.mul_(scale)
            linear.bias.uniform_(-0.5, 0.5)
        arrays = linear.export()
        bits = arrays["shift"].astype(np.int64) - 5 + 8
        weight = linear.weight.detach().double().numpy() * 2.0 ** bits[:, None]
        bias = linear.bias.detach().double().numpy() * 2.0 ** (bits + 5)
        assert np.abs(arrays["weight"] - weight).max() <= 0.5
        assert np.abs(arrays["bias"] - bias).max() <= 0.5
        assert abs(float((arrays["weight"] - weight).mean())) < 0.01
        assert np.abs(arrays["weight"].astype(np.int64)).max(1).min() >= 63


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_sees_what_is_coded_later(kind: str) -> None:
    prior, grid = prior_of(kind), KINDS[kind][2][3]
    codes = draw(prior, grid)
    before = blocks_of(prior, codes)
    rng = np.random.default_rng(5)
    later = [0, 0, 0]  # changed tables: of later steps, of finer levels, of further digits of the same code
    for _ in range(12):
        for k, size in enumerate(SIZES):
            changed = codes.copy()
            cell = int(rng.integers(codes[0].size))
            changed[k].reshape(-1)[cell] = (codes[k].ravel()[cell] + rng.integers(1, size)) % size
            after = blocks_of(prior, changed)
            for j in range(k):
                assert same_blocks(before[j], after[j])
            own = next(step for step, _, cells, *_ in before[k] if cell in cells)
            for (step, digit, cells, _, a), (*_, b) in zip(before[k], after[k], strict=True):
                differs = (a != b).any(1)
                if step < own or (step == own and not digit):
                    assert not differs.any()
                elif step == own:
                    assert not differs[cells != cell].any()
                    later[2] += int(differs.any())
                else:
                    later[0] += int(differs.any())
            later[1] += sum(not same_blocks(before[j], after[j]) for j in range(k + 1, 3))
    assert later[1] > 12
    assert later[2] > 3
    assert later[0] > 12


# ------------------------------------------------------------------------------------------------------ same everywhere


HASH_OF_TABLES = """
import sys, numpy as np, torch
from tokodec.entropy.context.prior import ContextPrior
folder = sys.argv[1]
codes = np.load(folder + "/codes.npy")
for threads, precision in ((2, "none"), (1, "bf16")):
    torch.set_num_threads(threads)
    torch.backends.mkldnn.matmul.fp32_precision = precision
    prior = ContextPrior.from_pretrained(folder)
    print(prior.levels[0].dtype, prior.tables_hash(codes), *(p.hex() for p in prior.compress(codes)))
"""


def test_tables_do_not_depend_on_threads_precision_or_process(tmp_path: Path) -> None:
    shape = LevelShape(features=16, width=64, hidden=96, blocks=2, digit=32)
    prior = ContextPrior(make_net([refinement(2, 2), refinement(2, 4)], 3, (256, 1000), shape=shape).export())
    prior.save_pretrained(tmp_path)
    codes = draw(prior, (32, 25))
    np.save(tmp_path / "codes.npy", codes)
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(" ".join([prior.tables_hash(codes), *(p.hex() for p in prior.compress(codes))]))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    done = subprocess.run([sys.executable, "-c", HASH_OF_TABLES, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"torch.float32 {found[0]}", f"torch.float64 {found[0]}"]


def test_autocast_does_not_reach_the_integers() -> None:
    prior = prior_of("plane")
    codes = draw(prior, (7, 10))
    with torch.autocast("cpu", torch.bfloat16):
        found, payloads = prior.tables_hash(codes), prior.compress(codes)
    assert found == prior.tables_hash(codes)
    assert payloads == prior.compress(codes)


def test_the_hash_of_the_tables_tells_them_apart() -> None:
    prior = prior_of("plane")
    codes = draw(prior, (4, 4))
    hashes = {prior.tables_hash(codes), prior.tables_hash(codes[:2]), prior.tables_hash(draw(prior, (4, 4), seed=2))}
    assert len(hashes) == 3
    assert prior.tables_hash(codes) in hashes
    assert all(len(h) == 64 for h in hashes)


def pattern(salt: int, low: int, high: int, *shape: int) -> np.ndarray:
    """Integers in low..high that look random and are the same with every version of every library."""
    number = (np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(1000 * salt + 1)) * np.uint64(2654435761)
    number = (number ^ (number >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(1 << 32) >> np.uint64(8)
    return (low + (number % np.uint64(high - low + 1)).astype(np.int64)).reshape(shape)


def literal_arrays() -> dict[str, np.ndarray]:
    """Two levels over a plane, 12 and 20 codes, the second as digits of 4 and 6 values."""
    arrays: dict[str, np.ndarray] = {}

    def linear(name: str, salt: int, n_in: int, n_out: int, shift: int) -> None:
        arrays[f"{name}.weight"] = pattern(salt, -40, 40, n_out, n_in).astype(np.int8)
        arrays[f"{name}.bias"] = pattern(salt + 1, -2000, 2000, n_out).astype(np.int32)
        arrays[f"{name}.shift"] = (shift + pattern(salt + 2, -1, 1, n_out)).astype(np.uint8)

    for k, (bases, n, rows, steps) in enumerate([((12,), 12, 14, 4), ((4, 6), 20, 35, 2)]):
        schedule, salt = refinement(2, steps), 100 * k
        arrays[f"{k}.bases"] = np.array(bases, np.int32)
        arrays[f"{k}.leaf"] = (np.arange(n) * 7 % int(np.prod(bases)) if k else np.arange(n)).astype(np.int32)
        arrays[f"{k}.period"] = np.array(schedule.period, np.int32)
        arrays[f"{k}.steps"] = np.array(schedule.steps, np.int32)
        arrays[f"{k}.offsets"] = offsets_within(1, (1.0, 1.0)).astype(np.int32)
        arrays[f"{k}.table"] = pattern(salt, -90, 90, rows, 4).astype(np.int8)
        linear(f"{k}.input", salt + 1, 20, 8, 3)
        linear(f"{k}.up.0", salt + 4, 8, 8, 5)
        linear(f"{k}.down.0", salt + 7, 8, 8, 4)
        for i in range(len(bases)):
            linear(f"{k}.head.{i}", salt + 10 + 10 * i, 8, 6, 5)
            linear(f"{k}.logits.{i}", salt + 13 + 10 * i, 6, int(np.prod(bases[: i + 1])), 5)
    arrays["1.prefix.1"] = pattern(300, -99, 99, 4, 6).astype(np.int32)
    return arrays


LITERAL_HASH = "38e2122f2c93f73d40849db400dd4423659aab620b14910ff15654b0bc9d5f95"
LITERAL_PAYLOADS = [
    "e950fdb9fee0fd5e74948887adf7026b7534f6683d4c4e00",
    "add684b18de744e5907b64039e2ed8e8ba0efd7106000000",
]


def test_payloads_of_a_fixed_prior() -> None:
    """Other bytes here are another file format."""
    prior = ContextPrior(literal_arrays())
    codes = np.stack([pattern(500, 0, 11, 4, 5), pattern(501, 0, 19, 4, 5)])
    assert codes[:, 0].tolist() == [[7, 8, 0, 8, 9], [6, 16, 4, 12, 14]]
    assert prior.tables_hash(codes) == LITERAL_HASH
    assert [payload.hex() for payload in prior.compress(codes)] == LITERAL_PAYLOADS
    assert np.array_equal(prior.decompress([bytes.fromhex(text) for text in LITERAL_PAYLOADS], (4, 5)), codes)


# -------------------------------------------------------------------------------------------------- damaged payloads


def decoded_or_refused(prior: ContextPrior, payloads: list[bytes], grid: tuple[int, ...]) -> bool:
    """True if the payloads decode to codes in range, False if they are refused; anything else fails."""
    try:
        codes = prior.decompress(payloads, grid)
    except ValueError:
        return False
    assert codes.shape == (len(payloads), *grid)
    for level, n in zip(codes, prior.codebook_sizes, strict=False):
        assert 0 <= level.min() <= level.max() < n
    return True


@pytest.mark.parametrize(("kind", "grid"), [("row", (7,)), ("time", (13,)), ("plane", (4, 4)), ("video", (2, 3, 5))])
def test_damaged_payloads_decode_or_are_refused(kind: str, grid: tuple[int, ...]) -> None:
    prior = prior_of(kind)
    payloads = prior.compress(draw(prior, grid))
    rng = np.random.default_rng(6)
    results = []
    for _ in range(60):
        results.append(decoded_or_refused(prior, [rng.bytes(int(rng.integers(0, 40))) for _ in range(3)], grid))
    for _ in range(60):  # of the right form, so that some decode
        results.append(decoded_or_refused(prior, [rng.bytes(4 * int(rng.integers(1, 9))) for _ in range(2)], grid))
    for k, payload in enumerate(payloads):
        for n in range(len(payload)):
            results.append(decoded_or_refused(prior, [*payloads[:k], payload[:n]], grid))
            assert n % 4 == 0 or not results[-1]
        for bit in range(0, 8 * len(payload), 3):
            flipped = bytearray(payload)
            flipped[bit // 8] ^= 1 << bit % 8
            results.append(decoded_or_refused(prior, [*payloads[:k], bytes(flipped), *payloads[k + 1 :]], grid))
    assert results.count(False) > len(results) // 2
    assert decoded_or_refused(prior, payloads, grid)


def test_a_payload_for_another_grid_is_refused() -> None:
    prior = prior_of("plane")
    payloads = prior.compress(draw(prior, (7, 10)))
    for grid in ((7, 5), (2, 2), (1, 1), (0, 3)):
        with pytest.raises(ValueError, match="more than its symbols"):
            prior.decompress(payloads, grid)
    with pytest.raises(ValueError, match="more than its symbols"):
        prior.decompress([b"1234" + payloads[0]], (7, 10))


@pytest.mark.parametrize("payload", [b"a", b"abc", b"abcde", b"abcd\0\0\0\0", b"\0\0\0\0"])
def test_a_payload_that_is_no_stream_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="32-bit words"):
        prior_of("plane").decompress([payload], (2, 2))


def test_a_leaf_without_a_code_is_refused() -> None:
    """Digits that no code has can be written down by a hostile writer."""
    prior = ContextPrior(make_net([raster(1)], 1, (300,)).export())
    level = prior.levels[0]
    none = int(np.flatnonzero(level.tree.code < 0)[0])
    (_, _, _, _, first), (_, _, _, _, _) = blocks_of(prior, np.array([[int(level.tree.code[none - 1])]]))[0]
    assert (none - 1) // 32 == none // 32  # so that the second table is the same
    second = blocks_of(prior, np.array([[int(level.tree.code[none - 1])]]))[0][1][4]
    encoder = TableEncoder()
    encoder.push(np.array([none // 32]), (first - 1).astype(np.float32))
    encoder.push(np.array([none % 32]), (second - 1).astype(np.float32))
    with pytest.raises(ValueError, match="the codebook lacks"):
        prior.decompress([encoder.finish()], (1,))


# -------------------------------------------------------------------------------------------------------- arguments


def test_codes_that_are_refused() -> None:
    prior = prior_of("plane")
    calls: list[Callable[[np.ndarray], Any]] = [prior.compress, prior.bits, prior.tables_hash, prior.conceal]
    good = draw(prior, (3, 4))
    for call in calls:
        for k, size in enumerate(SIZES):
            for value in (-2, size, 1 << 40):
                bad = good.copy()
                bad[k, 1, 2] = value
                with pytest.raises(ValueError, match=f"level {k + 1} holds a code outside"):
                    call(bad)
        shapes = {"codes must be": [(4, 3, 3), (0, 3, 3), (3,)], "of 2 axes": [(2, 3), (2, 3, 3, 3)]}
        for message, shape in ((message, shape) for message, own in shapes.items() for shape in own):
            with pytest.raises(ValueError, match=message):
                call(np.zeros(shape, np.int64))
    bad = good.copy()
    bad[0, 0, 0] = -1
    for call in calls[:3]:  # a missing code can be concealed, not coded
        with pytest.raises(ValueError, match="level 1 holds a code outside"):
            call(bad)


def test_payloads_and_grids_that_are_refused() -> None:
    prior = prior_of("plane")
    with pytest.raises(ValueError, match="4 payloads for 3 levels"):
        prior.decompress([b""] * 4, (3, 3))
    for grid in ((9,), (3, 3, 3), ()):
        with pytest.raises(ValueError, match="of 2 axes"):
            prior.decompress([b""], grid)


# ------------------------------------------------------------------------------------------------------ saved priors


@pytest.mark.parametrize("filler", [False, True])
def test_save_and_load(filler: bool, tmp_path: Path) -> None:
    prior = ContextPrior(net_of("plane", filler).export())
    assert prior.hash == ""
    prior.save_pretrained(tmp_path)
    loaded = ContextPrior.from_pretrained(tmp_path)
    assert prior.hash == loaded.hash == file_hash(tmp_path / CONTEXT_FILE)
    assert len(prior.hash) == 16
    assert loaded.codebook_sizes == prior.codebook_sizes == SIZES
    assert loaded.ndim == prior.ndim == 2
    assert (loaded.filler is not None) == filler
    codes = draw(prior, (7, 10))
    payloads = prior.compress(codes)
    moved = loaded.to("cpu")
    assert moved.hash == prior.hash
    for other in (loaded, moved):
        assert other.tables_hash(codes) == prior.tables_hash(codes)
        assert np.array_equal(other.decompress(payloads, (7, 10)), codes)
        arrays = other.arrays()
        assert set(arrays) == set(prior.arrays())
        assert all(np.array_equal(arrays[name], array) for name, array in prior.arrays().items())
        assert all(arrays[name].dtype == array.dtype for name, array in prior.arrays().items())
    (tmp_path / "again").mkdir()
    loaded.save_pretrained(tmp_path / "again")
    assert loaded.hash == prior.hash  # the same integers are the same file


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read entropy model"):
        ContextPrior.from_pretrained(tmp_path)
    prior = ContextPrior(literal_arrays())
    prior.save_pretrained(tmp_path)
    data = (tmp_path / CONTEXT_FILE).read_bytes()
    for bad in (b"", data[:50], data[:-4], b"x" * 100):
        (tmp_path / CONTEXT_FILE).write_bytes(bad)
        with pytest.raises(ValueError, match="cannot read entropy model"):
            ContextPrior.from_pretrained(tmp_path)
    for arrays in ({}, {"table.0": np.array([TOTAL], np.int32)}, {f"1{k[1:]}": v for k, v in literal_arrays().items()}):
        save_file(arrays, str(tmp_path / CONTEXT_FILE))
        with pytest.raises(ValueError, match="context model"):
            ContextPrior.from_pretrained(tmp_path)


def test_flipped_bits_in_a_saved_prior_are_refused_or_change_the_hash(tmp_path: Path) -> None:
    prior = ContextPrior(literal_arrays())
    prior.save_pretrained(tmp_path)
    data = (tmp_path / CONTEXT_FILE).read_bytes()
    refused = 0
    for at in range(0, len(data), 17):
        (tmp_path / CONTEXT_FILE).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            assert ContextPrior.from_pretrained(tmp_path).hash != prior.hash
        except ValueError:
            refused += 1
    assert refused > len(data) // 17 // 4


def damaged(change: Callable[[np.ndarray], Any], which: str) -> list[str]:
    """Names of the arrays that can be changed so, one at a time, and no ValueError tells it."""
    accepted = []
    for name, array in literal_arrays().items():
        if re.fullmatch(which, name):
            try:
                ContextPrior(literal_arrays() | {name: np.asarray(change(array))})
            except ValueError:
                continue
            accepted.append(name)
    return accepted


def test_a_missing_array_is_refused() -> None:
    arrays = literal_arrays()
    for name in arrays:
        with pytest.raises(ValueError, match="context model"):
            ContextPrior({key: array for key, array in arrays.items() if key != name})


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_an_array_of_another_type_is_refused(dtype: type) -> None:
    """Weights, biases, shifts, embeddings; the others may be any integers."""
    which = r".*(weight|bias|shift|table|prefix\.\d)" if dtype is np.int64 else ".*"
    assert damaged(lambda array: array.astype(dtype), which) == []


CHANGES: dict[str, tuple[Callable[[np.ndarray], Any], str]] = {
    "no axes": (lambda array: array.reshape(-1)[0], ".*"),
    "one more axis": (lambda array: array[None], ".*"),
    "one row less": (lambda array: array[:-1], ".*"),
    "one row more": (lambda array: np.concatenate([array, array[-1:]]), ".*"),
    "no rows": (lambda array: array[:0], ".*"),
    "one column less": (lambda array: array[:, :-1], r".*(weight|table|offsets|prefix\.\d)"),
    "one column more": (lambda array: np.concatenate([array, array[:, :1]], 1), r".*(weight|table|offsets|prefix\.\d)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_array_of_another_shape_is_refused(change: str) -> None:
    """When the prior is made, not when it is used."""
    assert damaged(*CHANGES[change]) == []


def test_a_layer_of_another_width_is_refused() -> None:
    """Weight, bias and shift fit each other, but not their neighbours."""
    arrays = literal_arrays()
    for layer in sorted({name.removesuffix(".weight") for name in arrays if name.endswith(".weight")}):
        rows = {f"{layer}.{part}": arrays[f"{layer}.{part}"][:-1] for part in ("weight", "bias", "shift")}
        with pytest.raises(ValueError, match=r"."):
            ContextPrior(arrays | rows)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("0.input.bias", 1 << 24), ("0.down.0.bias", -(1 << 31)), ("1.head.1.bias", (1 << 31) - 1),
        ("1.up.0.shift", 24), ("1.logits.1.bias", 1 << 24), ("0.logits.0.shift", 255), ("0.table", -128),
        ("1.leaf", 24), ("1.leaf", -1), ("1.leaf", 14),
        ("1.bases", 0), ("1.bases", 257), ("0.period", -1), ("0.steps", -1), ("0.steps", 5),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, value: int) -> None:
    arrays = literal_arrays()
    arrays[name].reshape(-1)[1] = value
    with pytest.raises(ValueError, match=r"."):
        ContextPrior(arrays)


def test_weights_whose_sums_may_not_be_exact_are_refused() -> None:
    arrays = literal_arrays()
    for name in ("0.logits.0", "1.logits.1", "0.input", "1.head.1"):
        many = dict(arrays)
        many[f"{name}.bias"] = np.full_like(arrays[f"{name}.bias"], 1 << 24)
        with pytest.raises(ValueError, match="not exact"):
            ContextPrior(many)


def test_levels_of_different_grids_are_refused() -> None:
    plane, row = prior_of("plane").arrays(), prior_of("row").arrays()
    mixed = {name: array for name, array in plane.items() if not name.startswith("2.")}
    mixed |= {name: array for name, array in row.items() if name.startswith("2.")}
    with pytest.raises(ValueError, match="same number of axes"):
        ContextPrior(mixed)


# ------------------------------------------------------------------------------------------------------- concealment

DIM = 3
CODEWORDS = [np.random.default_rng(n).normal(size=(n, DIM)) / 2**k for k, n in enumerate(SIZES)]


def with_holes(codes: np.ndarray, seed: int) -> np.ndarray:
    """Single codes, a run of cells at one level, and another run at all levels are missing."""
    rng = np.random.default_rng(seed)
    flat = codes.reshape(len(codes), -1).copy()
    flat[rng.random(flat.shape) < 0.1] = -1
    for rows in (rng.integers(len(flat)), slice(None)):
        start = rng.integers(flat.shape[1] + 1)
        flat[rows, start : start + flat.shape[1] // 4] = -1
    return flat.reshape(codes.shape)


def check_filled(filled: np.ndarray, given: np.ndarray, sizes: Sequence[int], absent: bool) -> None:
    """What is known is as it was; what was missing is in range, or (``absent``) still missing at a finer level."""
    assert filled.dtype == np.int64
    assert filled.shape == given.shape
    assert np.array_equal(filled[given >= 0], given[given >= 0])
    for k, (level, n) in enumerate(zip(filled, sizes, strict=False)):
        if level.size:
            assert (-1 if absent and k else 0) <= level.min() <= level.max() < n


@pytest.mark.parametrize("filler", [False, True])
@pytest.mark.parametrize(("kind", "grid"), CASES)
def test_missing_codes_are_filled(kind: str, grid: tuple[int, ...], filler: bool) -> None:
    prior = prior_of(kind, filler)
    for seed in (1, 2):
        codes = with_holes(draw(prior, grid, seed), seed)
        before = codes.copy()
        for codewords in (None, CODEWORDS):
            for k in (1, 2, 3):
                filled = prior.conceal(codes[:k], codewords)
                check_filled(filled, codes[:k], SIZES, codewords is not None)
                assert np.array_equal(filled, prior.conceal(codes[:k], codewords))
        assert np.array_equal(codes, before)


@pytest.mark.parametrize("filler", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_hole_nothing_changes_and_without_codes_something_comes(kind: str, filler: bool) -> None:
    prior, grid = prior_of(kind, filler), KINDS[kind][2][3]
    codes = draw(prior, grid)
    none = np.full_like(codes, -1)
    for codewords in (None, CODEWORDS):
        assert np.array_equal(prior.conceal(codes, codewords), codes)
        check_filled(prior.conceal(none, codewords), none, SIZES, codewords is not None)


def test_only_so_many_levels_are_filled() -> None:
    prior = prior_of("plane", True)
    codes = with_holes(draw(prior, (7, 10)), 3)
    whole = prior.conceal(codes, CODEWORDS)
    for n in (1, 2, 3):
        filled = prior.conceal(codes, CODEWORDS, n)
        assert np.array_equal(filled[:n], whole[:n])
        assert np.array_equal(filled[n:], codes[n:])


def plain_probabilities(
    level: LevelNet, codes: Sequence[np.ndarray], cell: tuple[int, ...], offsets: np.ndarray
) -> np.ndarray:
    """Probabilities of the code of ``cell`` by the rounding network; ``codes``: grids that it sees, its own last."""
    first = np.cumsum([0] + [n + 1 for n in level.sizes])
    window = []
    for there in (tuple(np.add(cell, offset)) for offset in offsets):
        inside = all(0 <= at < n for at, n in zip(there, codes[0].shape, strict=True))
        known = [int(grid[there]) if inside else -1 for grid in codes]
        rows = [int(first[j]) + (code if code >= 0 else level.sizes[j]) for j, code in enumerate(known)]
        window.append(rows if inside else [*rows[:-1], int(first[-1])])
    every = torch.from_numpy(level.tree.leaf)
    with torch.no_grad():
        a = level.stream(level.embed(torch.tensor([window]), True, torch.float32), True)
        rest, p = level.tree.code.size, torch.ones(len(every), dtype=torch.float64)
        for digit, base in enumerate(level.tree.bases):
            logits = level.digit_logits(a.expand(len(every), -1), digit, every // rest, True).double()
            rest //= base
            p *= torch.softmax(logits * np.log(2), 1)[torch.arange(len(every)), every // rest % base]
    found: np.ndarray = (p / p.sum()).numpy()
    return found


@pytest.mark.parametrize("filler", [False, True])
def test_a_missing_code_becomes_the_most_probable_one(filler: bool) -> None:
    """A cell lost all levels: each is told from what is known by then, by a filler the first from all levels around."""
    net, prior = net_of("plane", filler), prior_of("plane", filler)
    for cell in ((0, 0), (3, 2), (4, 5), (2, 0)):
        codes = draw(prior, (5, 6), seed=sum(cell))
        codes[(slice(None), *cell)] = -1
        filled = prior.conceal(codes)
        for k in range(3):
            which = 3 if filler and k == 0 else k
            seen = [*codes[1:], codes[0]] if which == 3 else [*filled[:k], codes[k]]
            p = plain_probabilities(levels_of(net)[which], seen, cell, net.offsets[which])
            assert int(filled[k][cell]) == int(p.argmax())


@pytest.mark.parametrize("filler", [False, True])
def test_with_codewords_the_expected_error_is_least(filler: bool) -> None:
    """What a level leaves of the expectation is handed to the next; a code that would make it worse stays missing."""
    net, prior = net_of("plane", filler), prior_of("plane", filler)
    absent = 0
    for seed in range(8):
        cell = (seed % 5, seed % 6)
        codes = draw(prior, (5, 6), seed=seed)
        codes[(slice(None), *cell)] = -1
        filled = prior.conceal(codes, CODEWORDS)
        rest = np.zeros(DIM)
        for k in range(3):
            which = 3 if filler and k == 0 else k
            seen = [*codes[1:], codes[0]] if which == 3 else [*filled[:k], codes[k]]
            p = plain_probabilities(levels_of(net)[which], seen, cell, net.offsets[which])
            wanted = p @ CODEWORDS[k] + rest
            distance = np.square(CODEWORDS[k] - wanted).sum(1)
            best = int(distance.argmin())
            if k and np.square(wanted).sum() <= distance[best]:
                best = -1
            assert int(filled[k][cell]) == best
            rest = wanted - (CODEWORDS[k][best] if best >= 0 else 0)
            absent += best < 0
    assert 0 < absent < 16


def test_a_hole_is_filled_from_its_rim_inwards() -> None:
    net, prior = net_of("row"), prior_of("row")
    codes = draw(prior, (14,))[:1]
    codes[0, 4:9] = -1
    filled = prior.conceal(codes)
    known = codes[0].copy()
    for rim in ([4, 8], [5, 7], [6]):
        level, offsets = levels_of(net)[0], net.offsets[0]
        known[rim] = [int(plain_probabilities(level, [known], (cell,), offsets).argmax()) for cell in rim]
    assert filled[0].tolist() == known.tolist()


def test_a_filler_sees_the_finer_levels_around() -> None:
    codes = draw(prior_of("plane"), (7, 10))
    codes[0, 2:5, 3:6] = -1
    changed = codes.copy()
    changed[1:] = draw(prior_of("plane"), (7, 10), seed=2)[1:]
    helped = prior_of("plane", True)
    alone = ContextPrior({name: array for name, array in helped.arrays().items() if not name.startswith("conceal.")})
    assert (alone.filler is None, helped.filler is None) == (True, False)
    assert np.array_equal(alone.conceal(codes)[0], alone.conceal(changed)[0])
    assert not np.array_equal(helped.conceal(codes)[0], helped.conceal(changed)[0])
    whole = np.where(codes < 0, 0, codes)  # what is coded does not know of it
    assert alone.compress(whole) == helped.compress(whole)
    assert alone.tables_hash(whole) == helped.tables_hash(whole)
