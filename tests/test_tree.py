"""Codes of large codebooks as digits: a bijection, small tables, and like codewords under one coarse digit."""

import itertools

import numpy as np
import pytest

from tokodec.entropy.tree import CodeTree, balanced_tree, digit_bases

SIZES = [1, 2, 255, 256, 257, 300, 1000, 4096, 8192]


def digits_of(tree: CodeTree, code: int) -> tuple[int, ...]:
    """Digits of a code, coarse to fine."""
    left, found = int(tree.leaf[code]), []
    for base in reversed(tree.bases):
        left, digit = divmod(left, base)
        found.append(digit)
    assert left == 0
    return tuple(found[::-1])


def random_tree(bases: tuple[int, ...], n: int) -> CodeTree:
    return CodeTree(bases, np.random.default_rng(n).permutation(int(np.prod(bases)))[:n])


# ----------------------------------------------------------------------------------------------------------- digits


@pytest.mark.parametrize("n", [*SIZES, 65536, 65537, 262144, 1 << 24])
def test_bases_hold_every_code_and_no_table_is_large(n: int) -> None:
    bases = digit_bases(n)
    assert 1 <= len(bases) <= 3
    assert all(1 <= base <= 256 for base in bases)
    product = int(np.prod(bases))
    assert product == n if n <= 256 else n <= product < 2 * n
    if len(bases) > 1:
        assert max(bases) <= 2 * min(bases)


def test_bases_by_hand() -> None:
    found = {n: digit_bases(n) for n in (1, 255, 256, 257, 1000, 4096, 8192, 65536, 65537, 262144)}
    assert found == {
        1: (1,), 255: (255,), 256: (256,), 257: (16, 32), 1000: (32, 32), 4096: (64, 64), 8192: (64, 128),
        65536: (256, 256), 65537: (32, 64, 64), 262144: (64, 64, 64),
    }  # fmt: skip


@pytest.mark.parametrize("dim", [0, 3])
@pytest.mark.parametrize("n", SIZES)
def test_digits_are_a_bijection(n: int, dim: int) -> None:
    tree = balanced_tree(np.random.default_rng(n).normal(size=(n, dim)))
    assert tree.bases == digit_bases(n)
    assert tree.size == n
    rows = {digits_of(tree, code) for code in range(n)}
    assert len(rows) == n
    assert all(0 <= d < base for row in rows for d, base in zip(row, tree.bases, strict=True))
    assert tree.code[tree.leaf].tolist() == list(range(n))


def test_three_digits_of_a_large_codebook() -> None:
    tree = balanced_tree(np.zeros((262144, 0)))
    assert tree.bases == (64, 64, 64)
    assert np.array_equal(np.sort(tree.leaf), np.arange(262144))


# ----------------------------------------------------------------------------------------- tables against brute force

TREES = [
    CodeTree((4,), np.array([2, 0, 3])),
    CodeTree((2, 3, 2), np.array([11, 0, 7, 6, 4])),
    random_tree((5, 7), 35),
    random_tree((3, 4, 5), 17),
    random_tree((1, 6), 1),
    balanced_tree(np.random.default_rng(0).normal(size=(300, 2))),
]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size} in {tree.bases}")
def test_code_used_and_means(tree: CodeTree) -> None:
    rows = {digits_of(tree, code): code for code in range(tree.size)}
    every = list(itertools.product(*map(range, tree.bases)))  # leaves in order
    assert tree.code.tolist() == [rows.get(leaf, -1) for leaf in every]
    features = np.random.default_rng(1).normal(size=(tree.size, 3))
    for digit in range(len(tree.bases)):
        heads = list(itertools.product(*map(range, tree.bases[: digit + 1])))
        below = [[code for row, code in rows.items() if row[: digit + 1] == head] for head in heads]
        assert tree.used(digit).shape == (int(np.prod(tree.bases[:digit])), tree.bases[digit])
        assert tree.used(digit).ravel().tolist() == [bool(codes) for codes in below]
        means = [features[codes].mean(0) if codes else np.zeros(3) for codes in below]
        assert np.allclose(tree.means(features, digit), means, atol=1e-12)


def test_means_of_features_without_dimensions() -> None:
    tree = random_tree((3, 4), 9)
    assert tree.means(np.zeros((9, 0)), 0).shape == (3, 0)
    assert tree.means(np.zeros((9, 0)), 1).shape == (12, 0)


# ------------------------------------------------------------------------------------------------------------- shape


def within_share(tree: CodeTree, codewords: np.ndarray) -> float:
    """Variance inside the groups of one coarse digit, as a share of all variance."""
    coarse = tree.leaf // (tree.code.size // tree.bases[0])
    inside = sum(np.square(codewords[coarse == g] - codewords[coarse == g].mean(0)).sum() for g in np.unique(coarse))
    return float(inside / np.square(codewords - codewords.mean(0)).sum())


def test_similar_codewords_share_the_coarse_digit() -> None:
    rng = np.random.default_rng(2)
    codewords = rng.normal(size=(64, 8))[rng.integers(0, 64, 4096)] + 0.1 * rng.normal(size=(4096, 8))
    assert within_share(balanced_tree(codewords), codewords) < 0.25
    assert within_share(balanced_tree(np.zeros((4096, 0))), codewords) > 0.9  # so the measure tells them apart
    large = codewords * 1e6
    assert balanced_tree(large).leaf.tolist() != list(range(4096))
    assert within_share(balanced_tree(large), large) < 0.25


def test_codewords_on_a_line_fall_into_intervals() -> None:
    at = np.random.default_rng(3).permutation(1000)
    for direction in ([[1.0]], [[0.6, -0.8]]):
        tree = balanced_tree(at[:, None] * np.array(direction))
        coarse = tree.leaf // tree.bases[1]
        for group in range(tree.bases[0]):
            own = np.sort(at[coarse == group])
            assert (np.diff(own) == 1).all()


@pytest.mark.parametrize("n", [257, 300, 1000, 5000])
def test_coarse_digits_are_equally_full(n: int) -> None:
    tree = balanced_tree(np.random.default_rng(n).normal(size=(n, 4)))
    counts = np.bincount(tree.leaf // (tree.code.size // tree.bases[0]), minlength=tree.bases[0])
    assert counts.max() - counts.min() <= 1


def test_codes_keep_their_order_where_nothing_tells_them_apart() -> None:
    for codewords in (np.zeros((1000, 0)), np.zeros((1000, 3)), np.full((1000, 2), 0.1)):
        assert (np.diff(balanced_tree(codewords).leaf) > 0).all()
    assert balanced_tree(np.random.default_rng(4).normal(size=(200, 5))).leaf.tolist() == list(range(200))  # one digit


def test_equal_codewords_keep_their_order() -> None:
    kind = np.random.default_rng(6).integers(0, 3, 2000)
    leaf = balanced_tree(np.array([[0.0, 0.0], [5.0, 1.0], [9.0, -4.0]])[kind]).leaf
    for k in range(3):
        assert (np.diff(leaf[kind == k]) > 0).all()


def test_the_tree_is_deterministic() -> None:
    codewords = np.random.default_rng(5).normal(size=(2000, 6)).astype(np.float32)
    first = balanced_tree(codewords)
    assert np.array_equal(first.leaf, balanced_tree(codewords.copy()).leaf)
    assert np.array_equal(first.leaf, balanced_tree(codewords.astype(np.float64)).leaf)
    assert np.array_equal(first.leaf, balanced_tree(np.asfortranarray(codewords)).leaf)


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("bases", "leaf"),
    [
        ((), [0]), ((2, 2, 2, 2), [0]), ((0,), [0]), ((257,), [0]), ((2, 0), [0]), ((-2, -2), [0]),
        ((4,), [4]), ((4,), [-1]), ((4,), []), ((4,), [[0, 1]]), ((4,), [1, 1]), ((2, 2), [0, 1, 2, 3, 3]),
        ((1 << 32, 1 << 32), [0]),
    ],
)  # fmt: skip
def test_trees_that_are_refused(bases: tuple[int, ...], leaf: list) -> None:
    with pytest.raises(ValueError, match=r"digits|leaves|leaf"):
        CodeTree(bases, np.array(leaf, dtype=np.int64))


@pytest.mark.parametrize("n", [-1, 0, (1 << 24) + 1])
def test_sizes_that_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match="1 to 2"):
        digit_bases(n)


def test_no_codewords_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 2"):
        balanced_tree(np.zeros((0, 3)))
