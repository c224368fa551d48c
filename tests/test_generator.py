"""Generators: whatever is drawn is a sequence of codes, prompts are kept, bits are those of the logits, any cache."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as from_bytes
from torch import Tensor

from tokodec.codec import models
from tokodec.codec.errors import ModelError
from tokodec.codec.generate import model as generator
from tokodec.codec.generate.model import Generator, GeneratorConfig, load_generator
from tokodec.codec.generate.sampling import choose
from tokodec.entropy import packed
from tokodec.entropy.tree import CodeTree, balanced_tree
from tokodec.tokenizers import api, folders
from tokodec.tokenizers.quantize.base import ABSENT
from tokodec.tokenizers.sequence import BEGIN, END, Pattern, Sequencer
from tokodec.tokenizers.tokens import Tokens, TokenSpec

SIZES = (300, 5, 40)  # 300 codes are 16 x 32 digits, many of which no code has
WINDOW = (3, 4)


def window_of(sizes: tuple[int, ...], grid: tuple[int, ...]) -> TokenSpec:
    return TokenSpec("some", "0123456789abcdef", "image", sizes, (1,) * len(grid), grid, "rgb")


def model_trees() -> list[CodeTree]:
    return [balanced_tree(np.random.default_rng(k).standard_normal((n, 3))) for k, n in enumerate(SIZES[:2])]


def make(pattern: Pattern = "levels", split: bool = True, seed: int = 0, noise: float = 0.5) -> Generator:
    """An untrained generator of two levels with much to say: random weights that are not small."""
    torch.manual_seed(seed)
    trees = model_trees() if split else []
    bases = tuple(tuple(tree.bases) for tree in trees)
    config = GeneratorConfig(window_of(SIZES, WINDOW), 2, pattern, bases, hidden=16, inner=24, layers=2, heads=2)
    return stir(Generator(config, trees, "tiny"), noise)


def stir(model: Generator, noise: float) -> Generator:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(noise * torch.randn_like(p))
    return model.eval()


def random_tokens(model: Generator, batch: int, grid: tuple[int, ...] = WINDOW, seed: int = 0) -> Tokens:
    g = torch.Generator().manual_seed(seed)
    sizes = model.config.window.codebook_sizes
    codes = torch.stack([torch.randint(n, (batch, *grid), generator=g) for n in sizes], 1)
    return Tokens(codes, dataclasses.replace(model.config.window, size=grid))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


ALL = pytest.mark.parametrize(
    ("pattern", "split"), [("levels", True), ("levels", False), ("interleaved", True), ("interleaved", False)]
)


# ---------------------------------------------------------------------------------------------------------------- bits


@ALL
def test_bits_are_those_of_the_logits(pattern: Pattern, split: bool) -> None:
    """By hand: the logits of all ids, -inf where an id cannot be, a softmax, and the digits of a code added up."""
    model = make(pattern, split)
    tokens = random_tokens(model, 2)
    bits = model.bits(tokens)
    assert bits.shape == (2, 2, *WINDOW)
    sequencer = Sequencer(SIZES[:2], pattern, model_trees() if split else None)
    ids = sequencer.flatten(Tokens(tokens.codes[:, :2], model.spec))
    stream, cell = sequencer.layout(12)
    expected = torch.zeros(2, 2, 12, dtype=torch.float64)
    with torch.no_grad():
        embedded = model.llama.model.embed_tokens(ids)
        rows, columns = (table.get_parameter("weight") for table in model.axes)
        for i in range(1, ids.shape[1] - 1):
            s, c = int(stream[i]), int(cell[i])
            embedded[:, i - 1] += model.streams.weight[s] + rows[c // 4] + columns[c % 4]
        logits = model.llama(inputs_embeds=embedded[:, :-2]).logits.double()
    for b, i in product(range(2), range(1, ids.shape[1] - 1)):
        own = sequencer.streams[int(stream[i])]
        allowed = torch.zeros(sequencer.vocabulary_size, dtype=torch.bool)
        allowed[slice(*sequencer.allowed(int(stream[i])))] = True
        if split:
            tree = model_trees()[own.codebook]
            used = tree.used(own.digit)
            prefix = 0 if own.digit == 0 else int(ids[b, i - 1]) - sequencer.streams[int(stream[i - 1])].offset
            allowed[slice(*sequencer.allowed(int(stream[i])))] = torch.from_numpy(used[prefix])
        p = torch.where(allowed, logits[b, i - 1], -math.inf).softmax(0)
        expected[b, own.codebook, int(cell[i])] -= p[ids[b, i]].log2()
    torch.testing.assert_close(bits.flatten(2), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("pattern", ["levels", "interleaved"])
def test_probabilities_of_all_sequences_add_up_to_one(pattern: Pattern) -> None:
    """Nothing is lost to specials, to ids of other streams, to digits that no code has, or to the end."""
    trees = [CodeTree((2, 2), np.array([3, 0, 1])), CodeTree((2,), np.arange(2))]
    config = GeneratorConfig(window_of((3, 2), (2,)), 2, pattern, ((2, 2), (2,)), 8, 8, 1, 2)
    torch.manual_seed(0)
    model = stir(Generator(config, trees), 1.0)
    codes = torch.tensor([[[a, b], [c, d]] for a, b, c, d in product(range(3), range(3), range(2), range(2))])
    bits = model.bits(Tokens(codes, config.window)).flatten(1).sum(1)
    assert float((2**-bits).sum()) == pytest.approx(1, abs=1e-6)
    assert float(bits.std()) > 0.1


def test_what_is_certain_costs_nothing() -> None:
    config = GeneratorConfig(window_of((1, 6), (4,)), 2, "interleaved", (), 8, 8, 1, 2)
    model = stir(Generator(config), 1.0)
    bits = model.bits(Tokens(torch.stack([torch.zeros(1, 4).long(), torch.arange(4)[None]], 1), config.window))
    assert float(bits[:, 0].abs().max()) == 0
    assert float(bits[:, 1].min()) > 0


def test_a_batch_and_more_levels_change_nothing() -> None:
    model = make()
    tokens = random_tokens(model, 5)
    want = model.bits(tokens)
    torch.testing.assert_close(model.bits(tokens, batch=2), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.bits(tokens.levels(2)), want, atol=1e-5, rtol=1e-5)


def test_a_smaller_grid_has_the_places_of_the_window() -> None:
    """What comes before costs the same, whatever is missing after it."""
    model = make("levels")
    tokens = random_tokens(model, 1)
    part = Tokens(tokens.codes[:, :, :2], dataclasses.replace(tokens.spec, size=(2, 4)))
    whole, bits = model.bits(tokens), model.bits(part)
    torch.testing.assert_close(bits[:, 0], whole[:, 0, :2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(bits[:, 1], whole[:, 1, :2])  # which has seen the third row of the first level
    order, full = model.order((2, 4)), model.order(WINDOW)
    both = {(int(s), int(c)): int(r) for s, c, r in zip(full.stream, full.cell, full.rotary, strict=True)}
    assert all(both[int(s), int(c)] == int(r) for s, c, r in zip(order.stream, order.cell, order.rotary, strict=True))


def test_windows_are_cut_from_larger_codes() -> None:
    model = make()
    codes = torch.arange(2 * 7 * 9).reshape(2, 7, 9)
    found = model.windows(codes)
    assert found.shape == (4, 2, *WINDOW)
    assert torch.equal(found[3], codes[:, 3:6, 4:8])
    assert model.windows(codes[:, :2]).shape == (0, 2, *WINDOW)


# ------------------------------------------------------------------------------------------------------------ sampling


@ALL
def test_whatever_is_drawn_is_a_sequence_of_codes(pattern: Pattern, split: bool) -> None:
    """At a temperature at which every id comes, those that no code has would come too."""
    model = make(pattern, split)
    tokens = model.sample(40, temperature=1e4, generator=seeded())
    assert tokens.spec == model.config.window
    assert tokens.codes.shape == (40, 2, *WINDOW)
    assert len(tokens.codes[:, 0].unique()) > 200  # of 300
    assert tokens.codes[:, 1].unique().tolist() == list(range(5))
    ids = model.ids(tokens.codes)
    assert torch.equal(model.sequencer.unflatten(ids, model.spec).codes, tokens.codes)
    assert bool((ids[:, 0] == BEGIN).all() and (ids[:, -1] == END).all())


@ALL
def test_the_cache_changes_nothing(pattern: Pattern, split: bool) -> None:
    model = make(pattern, split)
    for grid, known in ((WINDOW, 0), (WINDOW, 2), ((2, 3), 1)):
        prompt = random_tokens(model, 3, grid)
        prompt.codes[:, :, known:] = ABSENT
        settings: dict[str, Any]
        for settings in ({}, {"top_k": 3}, {"top_p": 0.7, "temperature": 0.8}):
            with_cache, without = (
                model.sample(3, prompt, generator=seeded(7), use_cache=use, **settings) for use in (True, False)
            )
            assert torch.equal(with_cache.codes, without.codes)


def test_hidden_states_of_the_cache_are_those_of_a_whole_pass() -> None:
    """Also if several ids are fed at once."""
    from tokodec.codec.generate.model import Cached

    model = make()
    order = model.order(WINDOW)
    ids = model.ids(random_tokens(model, 2).codes)
    with torch.no_grad():
        want = model.hidden(ids[:, : len(order)], order)
        walk = Cached(model, 2, order)
        for end in (1, 2, 9, 10, len(order)):
            torch.testing.assert_close(walk(ids, end), want[:, end - 1], atol=1e-4, rtol=1e-4)


@ALL
def test_a_prompt_is_kept(pattern: Pattern, split: bool) -> None:
    """Rows, or codes anywhere; levels that are missing are drawn, levels that are too many are left out."""
    model = make(pattern, split)
    prompt = random_tokens(model, 1)
    prompt.codes[:, :, 1:] = ABSENT
    drawn = model.sample(6, prompt, generator=seeded()).codes
    assert bool((drawn[:, :, 0] == prompt.codes[:, :2, 0]).all())
    assert len(drawn[:, 0, 1:].unique()) > 5
    prompt = random_tokens(model, 6, seed=1)
    holes = torch.rand(prompt.codes.shape, generator=seeded(3)) < 0.5
    prompt.codes[holes] = ABSENT
    drawn = model.sample(6, prompt, generator=seeded()).codes
    assert torch.equal(torch.where(holes[:, :2], ABSENT, drawn), prompt.codes[:, :2])
    first = random_tokens(model, 1).levels(1)
    drawn = model.sample(2, first, generator=seeded()).codes
    assert bool((drawn[:, 0] == first.codes[:, 0]).all())
    whole = random_tokens(model, 1)
    assert torch.equal(model.sample(1, whole).codes, whole.codes[:, :2])


def test_seeds_and_levels() -> None:
    model = make()
    first = model.sample(3, generator=seeded(1))
    assert torch.equal(model.sample(3, generator=seeded(1)).codes, first.codes)
    assert not torch.equal(model.sample(3, generator=seeded(2)).codes, first.codes)
    coarse = model.sample(3, levels=1, temperature=0.0)
    assert torch.equal(coarse.codes, model.sample(3, temperature=0.0).codes[:, :1])
    assert make("interleaved").sample(2, levels=1).codes.shape == (2, 1, *WINDOW)
    shares: list[float] = []
    model.sample(1, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_the_most_probable() -> None:
    model = make()
    greedy = model.sample(2, temperature=0.0)
    assert torch.equal(greedy.codes[0], greedy.codes[1])
    settings: dict[str, Any]
    for settings in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}):
        assert torch.equal(model.sample(2, generator=seeded(), **settings).codes, greedy.codes)


def test_draws_fall_by_the_probabilities() -> None:
    p = torch.tensor([0.1, 0.0, 0.4, 0.3, 0.2])
    logits = p.log()[None].expand(1000, 5)
    draw = (torch.arange(1000) + 0.5).double() / 1000

    def counts(t: float = 1.0, k: int | None = None, p: float | None = None) -> list[int]:
        chosen = choose(logits, draw, t, k, p)
        return torch.bincount(chosen, minlength=5).tolist()

    def near(found: list[int], wanted: list[float]) -> bool:
        return all(abs(a - 1000 * b) <= 1 for a, b in zip(found, wanted, strict=True))

    assert near(counts(), [0.1, 0, 0.4, 0.3, 0.2])
    assert near(counts(k=2), [0, 0, 4 / 7, 3 / 7, 0])
    assert near(counts(p=0.7), [0, 0, 4 / 7, 3 / 7, 0])
    assert near(counts(p=0.71), [0, 0, 4 / 9, 3 / 9, 2 / 9])
    assert near(counts(t=0.5), [1 / 30, 0, 16 / 30, 9 / 30, 4 / 30])
    top = torch.tensor([1 - 2**-53, 1.0], dtype=torch.float64)
    assert choose(logits[:2], top, 1.0, None, None).tolist() == [4, 2]  # beyond the last: the most probable


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"levels": 3}, "levels must be 1 to 2, got 3"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"temperature": math.nan}, "temperature must be 0 or more"),
        ({"top_k": 0}, "top-k must be at least 1"),
        ({"top_p": 0.0}, "top-p must be above 0"),
        ({"n": 0}, "samples are one at least"),
    ],
)
def test_settings_out_of_range(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().sample(**settings)


def test_other_tokens_are_refused() -> None:
    model = make()
    tokens = random_tokens(model, 2)
    with pytest.raises(ValueError, match="batch of one or of their number"):
        model.sample(3, tokens)
    other = Tokens(tokens.codes, dataclasses.replace(tokens.spec, weights_hash="fedcba9876543210"))
    for call in (lambda t: model.sample(2, t), model.bits):
        with pytest.raises(ValueError, match="tiny knows tokens of some 0123456789abcdef, not of some fedcba98"):
            call(other)
        with pytest.raises(ValueError, match=r"a grid of \(4, 4\) cells does not fit the window"):
            call(random_tokens(model, 2, (4, 4)))
    holes = tokens.codes.clone()
    holes[0, 0, 0, 0] = ABSENT
    for incomplete in (Tokens(holes, tokens.spec), tokens.levels(1)):
        with pytest.raises(ValueError, match="complete codes of 2 levels"):
            model.bits(incomplete)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": 4}, "levels must be 1 to 3"),
        ({"pattern": "delay"}, "knows the patterns levels and interleaved"),
        ({"bases": ((300,),)}, "digits for 1 of 2 levels"),
        ({"heads": 3}, "even share of the width"),
        ({"layers": 0}, "nothing may be below 1"),
        ({"window": window_of(SIZES, (0, 4))}, "a window has a cell"),
    ],
)
def test_settings_that_make_no_sense(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneratorConfig(**{"window": window_of(SIZES, WINDOW), "hidden": 16, "heads": 2, **change})
    with pytest.raises(ValueError, match="other digits than the config says"):
        Generator(GeneratorConfig(window_of(SIZES, WINDOW)), model_trees())


# ------------------------------------------------------------------------------------------------------------- on disk


@pytest.mark.parametrize(("largest", "atol"), [(127, 0.3), (31, 2.5)])
def test_saved_and_loaded(largest: int, atol: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "INT8_LARGEST", largest)
    model = make()
    tokens = random_tokens(model, 2)
    model.save_pretrained(tmp_path)
    found = Generator.from_pretrained(tmp_path)
    assert (found.name, found.config, found.weights_hash) == ("tiny", model.config, model.weights_hash)
    assert len(found.weights_hash) == 16
    torch.testing.assert_close(found.bits(tokens), model.bits(tokens), atol=atol, rtol=0.1)  # int8
    assert not found.training
    found.save_pretrained(tmp_path / "again")
    again = Generator.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(again.bits(tokens), found.bits(tokens), atol=1e-2, rtol=1e-2)
    raw = from_bytes(packed.read(tmp_path / "model.safetensors"))
    assert raw["llama.model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    assert int(raw["llama.model.layers.0.mlp.up_proj.weight"].abs().max()) == largest
    assert raw["leaf_0"].dtype == torch.int64
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["config.json", "model.safetensors"]


def test_digits_do_not_depend_on_the_prior_of_today(tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    found = Generator.from_pretrained(tmp_path)
    assert torch.equal(found.get_buffer("leaf_0"), torch.from_numpy(model_trees()[0].leaf))


def test_what_is_no_generator_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="no model 'nothing'"):
        load_generator("nothing", "cpu")
    with pytest.raises(ModelError, match="unknown class 'ImageGrid'; known: Generator"):
        load_generator(tiny_model, "cpu")
    make().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("hidden", 18), ("layers", 3), ("bases", []), ("heads", "two"), ("colour", 1)):
        changed = {**config, "config": {**config["config"], key: value}}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ModelError, match=r"not a generator's|unexpected keyword") as caught:
            load_generator(tmp_path, "cpu")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="unknown class 'Generator'"):
        api.Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ModelError, match="cannot read weights"):
        load_generator(tmp_path, "cpu")


def test_a_released_generator_is_no_tokenizer(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies beside the tokenizers and is found by its own readers only."""
    shutil.copytree(tiny_model, tmp_path / "tiny-tokenizer")
    make().save_pretrained(tmp_path / "tiny-generator")
    monkeypatch.setattr("tokodec.tokenizers.folders.ASSETS", tmp_path)
    monkeypatch.setattr(models, "ASSETS", tmp_path)
    assert folders.released_models() == ["tiny-tokenizer"]
    assert [entry["name"] for entry in models.list_models()] == ["tiny"]
    (entry,) = models.list_generators()
    assert (entry["name"], entry["tokenizer"], entry["levels"]) == ("tiny", "some", 2)
    assert entry["weights_hash"] == load_generator("tiny-generator", "cpu").weights_hash
    with pytest.raises(FileNotFoundError, match="or one of tiny-tokenizer"):
        folders.find_model("tiny-generator")


def test_training_lowers_the_bits() -> None:
    """Gradients of all parts belong together; dropout only while it is trained."""
    torch.manual_seed(0)
    config = GeneratorConfig(window_of((6, 6), (2, 3)), 2, "levels", (), 16, 24, 1, 2)
    model = Generator(config, dropout=0.1).train()
    codes = torch.arange(6).reshape(1, 1, 2, 3).repeat(8, 2, 1, 1)
    codes[:, 1] = 5 - codes[:, 0]
    tokens = Tokens(codes, config.window)
    before = float(model.bits(tokens).mean())
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        loss: Tensor = model(model.ids(codes)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before == pytest.approx(math.log2(6), abs=0.3)
    assert float(model.bits(tokens).mean()) < 0.2 * before
    assert model.training
    assert torch.equal(model.sample(1, temperature=0.0).codes, codes[:1])
