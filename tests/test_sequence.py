"""Tokens as sequences of ids: every pattern gives every released tokenizer's tokens back, and is what it says."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokodec
from tokodec.entropy.tree import CodeTree, balanced_tree, digit_bases
from tokodec.tokenizers.folders import released_models
from tokodec.tokenizers.quantize.base import ABSENT
from tokodec.tokenizers.sequence import (
    BEGIN,
    END,
    MISSING,
    PAD,
    PATTERNS,
    ROWS,
    SPECIAL,
    Pattern,
    Sequencer,
    pad_sequences,
)
from tokodec.tokenizers.tokens import Tokens, TokenSpec

A1, B1, A2, B2 = 3, 1, 0, 4  # codes of cells a and b in two codebooks of 4 and 5


def spec_of(sizes: tuple[int, ...], size: tuple[int, ...], strides: tuple[int, ...] | None = None) -> TokenSpec:
    return TokenSpec("some", "", "image", sizes, strides or (1,) * len(size), size, "rgb")


def random_tokens(spec: TokenSpec, batch: int, levels: int, seed: int = 0, absent: float = 0.0) -> Tokens:
    g = torch.Generator().manual_seed(seed)
    codes = [torch.randint(n, (batch, *spec.grid), generator=g) for n in spec.codebook_sizes[:levels]]
    found = torch.stack(codes, 1)
    return Tokens(torch.where(torch.rand(found.shape, generator=g) < absent, ABSENT, found), spec)


def place_value(n: int) -> CodeTree:
    return CodeTree(digit_bases(n), np.arange(n, dtype=np.int64))


@pytest.mark.parametrize(
    ("pattern", "want"),
    [
        ("levels", ["begin", "a1", "b1", "a2", "b2", "end"]),
        ("interleaved", ["begin", "a1", "a2", "b1", "b2", "end"]),
        ("delay", [["begin", "begin"], ["a1", "begin"], ["b1", "a2"], ["end", "b2"], ["end", "end"]]),
        ("parallel", [["begin", "begin"], ["a1", "a2"], ["b1", "b2"], ["end", "end"]]),
    ],
)
def test_patterns_are_those_of_the_text(pattern: Pattern, want: list) -> None:
    tokens = Tokens(torch.tensor([[[A1, B1], [A2, B2]]]), spec_of((4, 5), (2,)))
    ids = {"begin": BEGIN, "end": END, "a1": 5 + A1, "b1": 5 + B1, "a2": 9 + A2, "b2": 9 + B2}
    sequencer = Sequencer((4, 5), pattern)
    assert sequencer.vocabulary_size == 5 + 4 + 5
    found = sequencer.flatten(tokens)
    assert found.tolist() == [[[ids[w] for w in row] if isinstance(row, list) else ids[row] for row in want]]
    assert found.shape[1] == sequencer.length(2)
    stream, cell = sequencer.layout(2)
    places = {"begin": (-1, -1), "end": (-1, -1), "a1": (0, 0), "b1": (0, 1), "a2": (1, 0), "b2": (1, 1)}
    for i, axis in enumerate((stream, cell)):
        expected = [[places[w][i] for w in row] if isinstance(row, list) else places[row][i] for row in want]
        assert axis.tolist() == expected
    assert [sequencer.allowed(s) for s in (0, 1)] == [(5, 9), (9, 14)]


def test_digits_of_a_code_follow_each_other_the_coarse_one_first() -> None:
    tree = CodeTree((2, 4), np.array([7, 0, 5]))  # three codes on eight leaves
    tokens = Tokens(torch.tensor([[[0, 2, ABSENT]]]), spec_of((3,), (3,)))
    sequencer = Sequencer((3,), "levels", [tree])
    assert sequencer.vocabulary_size == 5 + 2 + 4
    assert sequencer.flatten(tokens).tolist() == [[BEGIN, 5 + 1, 7 + 3, 5 + 1, 7 + 1, MISSING, MISSING, END]]
    with pytest.raises(ValueError, match="codebook 1 holds an id that is none of its codes"):
        sequencer.unflatten(torch.tensor([[BEGIN, 5, 8, 5, 7, 5, 7, END]]), tokens.spec)  # leaf 1 has no code


def test_shared_codebooks_use_the_same_ids() -> None:
    tokens = random_tokens(spec_of((7, 7, 9, 7), (5,)), 2, 4)
    shared, own = Sequencer((7, 7, 9, 7), shared=True), Sequencer((7, 7, 9, 7))
    assert (shared.vocabulary_size, own.vocabulary_size) == (5 + 7 + 9, 5 + 7 + 7 + 9 + 7)
    assert [s.offset for s in shared.streams] == [5, 5, 12, 5]
    assert torch.equal(shared.unflatten(shared.flatten(tokens), tokens.spec).codes, tokens.codes)


@pytest.mark.parametrize("name", released_models())
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("split", [False, True])
def test_round_trip_of_every_released_tokenizer(name: str, pattern: Pattern, split: bool) -> None:
    """Odd sizes, batches, any number of levels, absent codes; the trees are those of the prior, where it has one."""
    from tokodec.codec.models import load_model

    loaded = load_model(name)
    tokenizer = loaded.tokenizer
    sizes = tokenizer.codebook_sizes
    trees = getattr(loaded.prior, "trees", None) or [place_value(n) for n in sizes]
    sequencer = Sequencer(sizes, pattern, trees if split else None)
    signal = (37,) if tokenizer.modality == "audio" else (5, 3)
    for seed, (levels, absent) in enumerate([(len(sizes), 0.1), (1, 0.0), (max(1, len(sizes) // 2), 0.5)]):
        tokens = random_tokens(spec_of(sizes, signal), 3, levels, seed, absent)
        ids = sequencer.flatten(tokens)
        assert ids.dtype == torch.int64
        assert ids.shape == (3, sequencer.length(math.prod(signal), levels), *ids.shape[2:])
        assert int(ids.max()) < sequencer.vocabulary_size
        back = sequencer.unflatten(ids, tokens.spec)
        assert torch.equal(back.codes, tokens.codes)
        assert back.spec == tokens.spec


def test_what_a_tokenizer_really_makes(sound_model: Path) -> None:
    """From a signal to ids and back to the same signal."""
    tokenizer = tokodec.load(str(sound_model))
    tokens = tokenizer.encode(0.1 * torch.randn(2, 1, 1001))
    sequencer = Sequencer(tokenizer.codebook_sizes, "delay")
    back = sequencer.unflatten(sequencer.flatten(tokens), tokens.spec)
    assert torch.equal(tokenizer.decode(back), tokenizer.decode(tokens))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_layout_names_every_position(pattern: Pattern) -> None:
    """Ids lie in the block of the stream that the layout names, and of the cell's code."""
    sizes = (6, 300, 17)
    sequencer = Sequencer(sizes, pattern, [None, place_value(300), None])
    tokens = random_tokens(spec_of(sizes, (2, 4)), 1, 2, 3)
    ids = sequencer.flatten(tokens)[0]
    stream, cell = sequencer.layout(8, 2)
    assert stream.shape == cell.shape == ids.shape
    flat = tokens.codes[0].flatten(1)
    for i, s, c in zip(ids.flatten().tolist(), stream.flatten().tolist(), cell.flatten().tolist(), strict=True):
        if s < 0:
            assert i in (BEGIN, END)
            continue
        own, (low, high) = sequencer.streams[s], sequencer.allowed(s)
        assert low <= i < high
        rest = math.prod(t.base for t in sequencer.streams if t.codebook == own.codebook and t.digit > own.digit)
        assert i - low == int(flat[own.codebook, c]) // rest % own.base


def test_padded_batches_split_again() -> None:
    for pattern in PATTERNS:
        sequencer = Sequencer((4, 5), pattern)
        sequences = [sequencer.flatten(random_tokens(spec_of((4, 5), (n,)), 1, 2, n))[0] for n in (3, 1, 7)]
        batch = pad_sequences(sequences)
        assert batch.lengths == [len(s) for s in sequences]
        assert bool((batch.ids[~batch.mask] == PAD).all())
        assert not bool((batch.ids[batch.mask] == PAD).any())
        assert all(torch.equal(a, b) for a, b in zip(batch.split(), sequences, strict=True))
    with pytest.raises(ValueError, match="at least one sequence"):
        pad_sequences([])
    with pytest.raises(ValueError, match="same number of streams"):
        pad_sequences([torch.zeros(3, 2), torch.zeros(3, 1)])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_cells(pattern: Pattern) -> None:
    tokens = random_tokens(spec_of((4, 5), (0,)), 2, 2)
    sequencer = Sequencer((4, 5), pattern)
    ids = sequencer.flatten(tokens)
    assert ids.shape[1] == sequencer.length(0) == 2
    assert torch.equal(sequencer.unflatten(ids, tokens.spec).codes, tokens.codes)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_no_sequence_is_refused(pattern: Pattern) -> None:
    sequencer = Sequencer((4, 5), pattern)
    tokens = random_tokens(spec_of((4, 5), (6,)), 2, 2)
    ids = sequencer.flatten(tokens)
    rows = pattern in ROWS
    with pytest.raises(ValueError, match="steps are no whole number of levels"):
        sequencer.unflatten(ids[:, :-1], tokens.spec)
    with pytest.raises(ValueError, match="ids are int64"):
        sequencer.unflatten(ids[0], tokens.spec)
    wrong = ids.clone()
    wrong[0, 0] = END
    with pytest.raises(ValueError, match="begin or end is not where it belongs"):
        sequencer.unflatten(wrong, tokens.spec)
    for value in (PAD, BEGIN, 5 + 4 + 5):
        wrong = ids.clone()
        wrong[(1, 3, 0) if rows else (1, 3)] = value
        with pytest.raises(ValueError, match="holds an id that is none of its codes"):
            sequencer.unflatten(wrong, tokens.spec)
    other = dataclasses.replace(tokens.spec, codebook_sizes=(4, 6))
    with pytest.raises(ValueError, match="other codebooks"):
        sequencer.unflatten(ids, other)
    with pytest.raises(ValueError, match="other codebooks"):
        sequencer.flatten(random_tokens(other, 1, 1))


def test_what_is_no_sequencer_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown pattern"):
        Sequencer((4,), "spiral")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one codebook"):
        Sequencer(())
    with pytest.raises(ValueError, match="digits for 1 of 2"):
        Sequencer((4, 4), digits=[None])
    with pytest.raises(ValueError, match="do not fit a codebook of 5 codes"):
        Sequencer((5,), digits=[place_value(4)])


def test_schema_is_enough_to_read_ids() -> None:
    """A reader with the JSON alone finds the codes of the pattern "levels"."""
    tree = balanced_tree(np.random.default_rng(0).standard_normal((300, 3)))
    sequencer = Sequencer((6, 300), "levels", [None, tree])
    tokens = random_tokens(spec_of((6, 300), (9,)), 1, 2)
    schema = json.loads(json.dumps(sequencer.schema()))
    assert schema["special"] == {name: i for i, name in enumerate(SPECIAL)}
    ids = sequencer.flatten(tokens)[0, 1:-1].tolist()
    codes = []
    for k in range(2):
        own = [s for s in schema["streams"] if s["codebook"] == k]
        part = [ids.pop(0) for _ in range(9 * len(own))]
        for c in range(9):
            place = 0
            for stream, i in zip(own, part[c * len(own) :], strict=False):
                place = place * stream["base"] + i - stream["offset"]
            codes.append(place if schema["leaves"][k] is None else schema["leaves"][k].index(place))
    assert codes == tokens.codes.flatten().tolist()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("digits", [False, True])
def test_a_schema_gives_the_sequencer_again(pattern: Pattern, shared: bool, digits: bool) -> None:
    sizes = (300, 300, 7)
    trees = [place_value(300), None, CodeTree((4, 2), np.array([7, 0, 5, 1, 2, 3, 4]))] if digits else None
    sequencer = Sequencer(sizes, pattern, trees, shared)
    again = Sequencer.from_schema(json.loads(json.dumps(sequencer.schema())))
    assert again.schema() == sequencer.schema()
    tokens = random_tokens(spec_of(sizes, (3, 5)), 2, 2, absent=0.2)
    ids = sequencer.flatten(tokens)
    assert torch.equal(again.flatten(tokens), ids)
    assert torch.equal(again.unflatten(ids, tokens.spec).codes, tokens.codes)


def hostile_schema(codebooks: int, first: int = len(SPECIAL)) -> dict[str, Any]:
    """Codebooks of one code in three digits of 256 values, whose ids begin at ``first``."""
    streams = [
        {"codebook": i // 3, "digit": i % 3, "offset": first + 256 * i, "base": 256} for i in range(3 * codebooks)
    ]
    about = {"pattern": "levels", "vocabulary_size": first + 768 * codebooks, "leaves": [[0]] * codebooks}
    special = dict(zip(SPECIAL, range(len(SPECIAL)), strict=True))
    return {**about, "special": special, "codebook_sizes": [1] * codebooks, "streams": streams}


def test_a_schema_is_counted_before_there_are_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = hostile_schema(1)
    assert Sequencer.from_schema(schema).schema() == schema  # as large as it may be
    monkeypatch.setattr("tokodec.tokenizers.sequence._tables", lambda *_: pytest.fail("made tables first"))
    with pytest.raises(ValueError, match="the digits of a schema have more than 16777216 leaves"):
        Sequencer.from_schema(hostile_schema(2))
    for wrong in (hostile_schema(1, 6), {**schema, "vocabulary_size": 9}, {**schema, "streams": schema["streams"][:2]}):
        with pytest.raises(ValueError, match="its streams contradict its codebooks"):
            Sequencer.from_schema(wrong)
    for wrong in (
        {**schema, "leaves": []},
        {**schema, "codebook_sizes": [0]},
        {**schema, "streams": [{"codebook": 7, "base": 256}]},
        {**schema, "streams": [{"codebook": 0, "base": 10**30}] * 1000},
    ):
        with pytest.raises(ValueError, match="schema"):
            Sequencer.from_schema(wrong)


def test_labels_are_the_ids_and_nothing_in_the_padding() -> None:
    batch = pad_sequences([torch.tensor([BEGIN, 7, END]), torch.tensor([BEGIN, END])])
    assert batch.labels.tolist() == [[BEGIN, 7, END], [BEGIN, END, -100]]
    rows = pad_sequences([torch.tensor([[BEGIN, BEGIN], [END, END]]), torch.tensor([[BEGIN, BEGIN]])])
    assert rows.labels.tolist() == [[[BEGIN, BEGIN], [END, END]], [[BEGIN, BEGIN], [-100, -100]]]
