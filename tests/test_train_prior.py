"""Training of context priors: one command from tokens to integers that code them in far fewer bits than order-0."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import tokodec
from tokodec.codec.corpus.token_files import dump_tokens
from tokodec.entropy.context.prior import CONTEXT_FILE, ContextPrior
from tokodec.entropy.schedule import offsets_within, raster, refinement
from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.audio.grvq import FRAME, RATE, AudioGRVQ
from tokodec.tokenizers.tokens import Tokens, TokenSpec
from tokodec.train import prior as script
from tokodec.train import prior_data
from tokodec.train.data.tokens import LevelSampler, TokenStore, read_token_files, sound_views

ASSETS = Path(tokodec.__file__).parent / "assets"
SIZES = (16, 8)


def correlated(height: int, width: int, seed: int) -> np.ndarray:
    """Two levels ``[2, h, w]``: stripes of random slope, one code in 20 is noise; all codes are equally frequent."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    coarse = (rng.integers(0, 64) + y * rng.integers(1, 4) + x * rng.integers(1, 4)) // 3 % SIZES[0]
    fine = (coarse // 2 + y % 2 * 4) % SIZES[1]
    codes = np.stack([coarse, fine])
    noise = np.stack([rng.integers(0, n, (height, width)) for n in SIZES])
    return np.where(rng.random(codes.shape) < 0.05, noise, codes)


def write_tokens(path: Path, codes: np.ndarray, model: str = "toy", sizes: tuple[int, ...] = SIZES) -> None:
    spec = TokenSpec(model, "0" * 16, "image", sizes, (1, 1), codes.shape[1:], "rgb")
    path.write_bytes(dump_tokens(Tokens(torch.from_numpy(codes.astype(np.int64))[None], spec), path.suffix))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of 24 grids of three sizes, in both kinds of files."""
    out = tmp_path_factory.mktemp("tokens")
    for i in range(24):
        height, width = ((20, 24), (17, 30), (24, 13))[i % 3]
        write_tokens(out / f"t{i:02d}.{('npz', 'safetensors')[i % 2]}", correlated(height, width, i))
    return out


@pytest.fixture(scope="module")
def test_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens that no training sees."""
    out = tmp_path_factory.mktemp("test")
    for i in range(4):
        write_tokens(out / f"u{i}.npz", correlated(22, 19, 100 + i))
    return out


SMALL = [
    "schedule.steps=[4,2]", "net.radius=[2,2]", "net.features=[16]", "net.width=[32]", "net.hidden=[32]",
    "net.blocks=[1]", "net.digit=[16]", "conceal.radius=1.5", "conceal.features=8", "conceal.width=16",
    "conceal.hidden=16", "conceal.blocks=1", "conceal.digit=16", "data.holdout_every=6", "optim.rows=512",
    "optim.lr=1.0e-2", "optim.warmup_steps=10", "optim.dropout=0.0", "optim.weight_decay=0.0", "rounding.lr=1.0e-3",
]  # fmt: skip


def train(out: Path, tokens: Path, *more: str, budget: str = "--steps 20", sets: Sequence[str] = ()) -> dict:
    """Run the command; returns its log."""
    command = ["--tokens", str(tokens), "--tokenizer", "none", *budget.split(), "--out", str(out)]
    script.main([*command, "--device", "cpu", *more, "--set", *SMALL, *sets])
    found: dict = json.loads((out / "training.json").read_text())
    return found


@pytest.fixture(scope="module")
def trained(
    folder: Path, test_folder: Path, tmp_path_factory: pytest.TempPathFactory, counted_time: Callable
) -> tuple[Path, dict]:
    """What 800 steps of training leave in the output folder, and their log."""
    out = tmp_path_factory.mktemp("trained") / "prior"
    with counted_time(script, 0.06):
        return out, train(out, folder, "--test", str(test_folder), budget="--minutes 0.08")


def grids_of(folder: Path) -> list[np.ndarray]:
    return [codes for _, codes in read_token_files([folder])[0]]


# ------------------------------------------------------------------------------------------------------- one command


def test_training_beats_order_0_by_far(trained: tuple[Path, dict], test_folder: Path) -> None:
    """On tokens that it has not seen, measured in bytes; the log says the same in bits."""
    out, log = trained
    prior = ContextPrior.from_pretrained(out)
    assert prior.codebook_sizes == SIZES
    assert prior.filler is not None
    grids = grids_of(test_folder)
    cells = sum(codes[0].size for codes in grids)
    assert log["test"]["order-0"] == pytest.approx([4, 3], abs=0.05)
    bits = sum(prior.bits(codes) for codes in grids) / cells
    assert log["test"]["integers"] == pytest.approx(bits.tolist(), rel=1e-6)  # as it is rounded in the log
    for held in (log["test"], log["held-out"]):
        assert held["integers"][0] < 0.65 * held["order-0"][0]
        assert held["integers"][1] < 0.65 * held["order-0"][1]
        assert sum(held["integers"]) == pytest.approx(sum(held["float"]), rel=0.15)
    size = sum(len(payload) for codes in grids for payload in prior.compress(codes))
    assert 8 * size / cells < 0.65 * 7 + 8 * 8 * 2 * len(grids) / cells
    for codes in grids:
        assert np.array_equal(prior.decompress(prior.compress(codes), codes.shape[1:]), codes)


def test_the_log_says_what_was_done(trained: tuple[Path, dict]) -> None:
    out, log = trained
    assert {path.name for path in out.iterdir()} == {CONTEXT_FILE, "training.json"}
    assert (log["train grids"], log["held-out grids"], log["test grids"]) == (20, 4, 4)  # every sixth is held out
    assert (log["seed"], log["minutes"]) == (0, 0.08)
    assert log["steps"] > 0
    assert log["recipe"]["optim"]["rows"] == 512


def test_what_was_lost_is_filled_better_than_by_chance(trained: tuple[Path, dict], test_folder: Path) -> None:
    prior = ContextPrior.from_pretrained(trained[0])
    right = lost = 0
    for codes in grids_of(test_folder):
        holes = codes.copy()
        holes[:, 3::5, 2::4] = -1  # single cells with all their levels
        filled = prior.conceal(holes)
        right += int((filled == codes)[holes < 0].sum())
        lost += int((holes < 0).sum())
    assert right > lost / 2  # by chance it were one in 11


def test_resume_goes_on_from_the_same_integers(trained: tuple[Path, dict], folder: Path, tmp_path: Path) -> None:
    out, log = trained
    still = ["optim.lr=0.0", "rounding.lr=0.0"]  # training that changes no weight
    again = train(tmp_path / "again", folder, "--resume", str(out), sets=still)
    before, after = ContextPrior.from_pretrained(out), ContextPrior.from_pretrained(tmp_path / "again")
    for codes in grids_of(folder)[:3]:
        assert after.tables_hash(codes) == before.tables_hash(codes)
    assert again["held-out"]["integers"] == log["held-out"]["integers"]
    assert after.filler is not None
    fresh = train(tmp_path / "fresh", folder, sets=still)
    assert sum(fresh["held-out"]["integers"]) > 2 * sum(again["held-out"]["integers"])


def test_a_resumed_prior_is_not_given_up_for_a_worse_one(
    trained: tuple[Path, dict], folder: Path, tmp_path: Path
) -> None:
    out, log = trained
    harm = ["optim.lr=3.0", "rounding.lr=3.0", "optim.warmup_steps=1"]
    again = train(tmp_path / "again", folder, "--resume", str(out), sets=harm)
    assert sum(again["held-out"]["float"]) > 1.05 * sum(log["held-out"]["float"])
    assert again["held-out"]["integers"] == log["held-out"]["integers"]


@pytest.mark.parametrize("source", ["tokens", "data"])
def test_a_run_that_is_told_to_end_goes_on(
    source: str, folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In the float stage and in that which rounds; media are tokenized once."""
    words = ["--steps", "60", "--device", "cpu", "--save-minutes", "0", "--set", *SMALL, "rounding.share=0.5"]
    if source == "tokens":
        words = ["--tokens", str(folder), "--tokenizer", "none", *words]
    else:
        (tmp_path / "pictures").mkdir()
        for i in range(7):
            pixels = np.random.default_rng(i).integers(0, 256, (80, 90, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
        words = ["--data", str(tmp_path / "pictures"), "--tokenizer", str(tiny_model), *words, "data.views=1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    script.main([*words, "--out", str(whole)])
    step_where_finite, steps = script.step_where_finite, itertools.count()

    def told(*given: Any) -> None:
        step_where_finite(*given)
        if next(steps) in (30, 120):  # each network steps alone
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(script, "step_where_finite", told)
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            script.main([*words, "--out", str(parts)])
        assert ended.value.code == 128 + signal.SIGTERM
    monkeypatch.setattr(prior_data, "tokenize", None)
    script.main([*words, "--out", str(parts)])
    assert capsys.readouterr().out.count("\ngoes on from") == 2
    assert (whole / CONTEXT_FILE).read_bytes() == (parts / CONTEXT_FILE).read_bytes()
    logs = [json.loads((out / "training.json").read_text()) for out in (whole, parts)]
    assert logs[0] == logs[1]
    assert {path.name for path in parts.iterdir()} == {CONTEXT_FILE, "training.json"}


def test_so_few_steps_that_a_stage_has_none(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--tokens", str(folder), "--tokenizer", "none", "--out", str(tmp_path), "--device", "cpu"]
    script.main([*command, "--steps", "1", "--set", *SMALL])
    assert json.loads((tmp_path / "training.json").read_text())["steps"] == 1
    for steps, message in (("0", "--steps 0 leaves nothing to train"), ("-1", "--steps is 0 or more, got -1")):
        with pytest.raises(SystemExit, match="2"):
            script.main([*command, "--steps", steps, "--force", "--set", *SMALL])
        assert message in capsys.readouterr().err.splitlines()[-1]


def test_only_some_networks_are_trained(
    trained: tuple[Path, dict], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = trained
    train(tmp_path / "only", folder, "--resume", str(out), "--only", "conceal", budget="--steps 200")
    assert "| integers |" in capsys.readouterr().out
    before = ContextPrior.from_pretrained(out).arrays()
    after = ContextPrior.from_pretrained(tmp_path / "only").arrays()
    assert set(after) == set(before)
    changed = {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"conceal"}


@pytest.mark.parametrize(("grid", "walked"), [((60,), 0), ((4, 6, 8), 1), ((3, 4, 5), 0)])
def test_tokens_of_any_number_of_axes(grid: tuple[int, ...], walked: int, tmp_path: Path) -> None:
    for i in range(6):
        spec = TokenSpec("toy", "0" * 16, "audio", (9, 300), (1,) * len(grid), grid, "mono", 24000.0)
        codes = np.stack([np.random.default_rng(i).integers(0, n, grid) for n in spec.codebook_sizes])
        (tmp_path / f"{i}.npz").write_bytes(dump_tokens(Tokens(torch.from_numpy(codes)[None], spec), ".npz"))
    train(tmp_path / "out", tmp_path, sets=[f"schedule.walked={walked}"])
    prior = ContextPrior.from_pretrained(tmp_path / "out")
    assert prior.ndim == len(grid)
    assert prior.levels[0].schedule.walked == tuple(range(walked))
    assert np.array_equal(prior.decompress(prior.compress(codes), grid), codes)


def test_pictures_are_tokenized_on_the_way(tiny_model: Path, tmp_path: Path) -> None:
    with Image.open(ASSETS / "kodim23.webp") as image:
        for i in range(4):
            image.crop((90 * i, 60 * i, 90 * i + 200, 60 * i + 150)).save(tmp_path / f"p{i}.png")
    command = ["--data", str(tmp_path), "--test", str(tmp_path), "--tokenizer", str(tiny_model), "--steps", "10"]
    sets = [*SMALL, "data.holdout_every=4", "data.views=2"]
    script.main([*command, "--out", str(tmp_path / "out"), "--device", "cpu", "--set", *sets])
    log = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (log["train grids"], log["held-out grids"], log["test grids"]) == (6, 1, 4)
    prior = ContextPrior.from_pretrained(tmp_path / "out")
    assert prior.codebook_sizes == (64, 32, 16)
    with Image.open(tmp_path / "p0.png") as image:
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    codes = Tokenizer.from_pretrained(tiny_model).encode(x).codes[0].numpy()
    assert np.array_equal(prior.decompress(prior.compress(codes), codes.shape[1:]), codes)


def test_numbers_of_the_recipe_may_be_written_as_the_help_does(folder: Path, tmp_path: Path) -> None:
    log = train(tmp_path / "out", folder, sets=["optim.lr=1e-3"])
    assert log["recipe"]["optim"]["lr"] == 0.001


# ---------------------------------------------------------------------------------------------------------- mistakes


def one_file(folder: Path) -> None:
    write_tokens(folder / "a.npz", correlated(9, 9, 0))


def no_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("no tokens")


def two_models(folder: Path) -> None:
    for i, model in enumerate(("toy", "toy", "other")):
        write_tokens(folder / f"{i}.npz", correlated(9, 9, 0), model)


def fewer_levels(folder: Path) -> None:
    for i in range(3):
        write_tokens(folder / f"{i}.npz", correlated(9, 9, 0)[: 2 if i else 1])


def absent_codes(folder: Path) -> None:
    for i in range(3):
        write_tokens(folder / f"{i}.npz", np.where(np.eye(9) * i > 1, -1, correlated(9, 9, 0)))


def damaged_file(folder: Path) -> None:
    for i in range(3):
        write_tokens(folder / f"{i}.npz", correlated(9, 9, 0))
    (folder / "2.npz").write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (one_file, "too few"),
        (no_file, "no tokens"),
        (two_models, "tokens of other"),
        (fewer_levels, "lacks codes"),
        (absent_codes, "lacks codes"),
        (damaged_file, "not a file of tokens"),
    ],
)
def test_tokens_that_are_refused(
    make: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokens").mkdir()
    make(tmp_path / "tokens")
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path / "out", tmp_path / "tokens")
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / CONTEXT_FILE).exists()


def test_test_tokens_of_another_model_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test").mkdir()
    write_tokens(tmp_path / "test" / "a.npz", correlated(9, 9, 0), "other")
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path / "out", folder, "--test", str(tmp_path / "test"))
    assert "other" in capsys.readouterr().err.splitlines()[-1]


def test_nothing_is_overwritten_in_silence(folder: Path, trained: tuple[Path, dict]) -> None:
    before = (trained[0] / CONTEXT_FILE).read_bytes()
    with pytest.raises(SystemExit, match="2"):
        train(trained[0], folder)
    assert (trained[0] / CONTEXT_FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("more", "sets", "message"),
    [
        ("--tokenizer {tiny}", [], "the tokens are of toy"),
        ("--only conceal", [], "goes with --resume"),
        ("--resume {trained} --only nonsense", [], "--only takes names of 0, 1, conceal"),
        ("--resume {empty}", [], "cannot read entropy model"),
        ("--resume {trained}", ["net.width=[16]"], "another shape"),
        ("--recipe nothing", [], "nothing"),
        ("--minutes 1e-6", [], "nothing is left of --minutes to train in"),
        ("--minutes -1", [], "--minutes is 0 or more, got -1"),
        ("--save-minutes -1", [], "--save-minutes is 0 or more, got -1"),
        ("", ["optim.speed=3"], "the recipe has no optim.speed"),
        ("", ["speed=3"], "the recipe has no speed"),
    ],
)
def test_arguments_that_are_refused(
    more: str,
    sets: list[str],
    message: str,
    folder: Path,
    trained: tuple[Path, dict],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = more.format(tiny=tiny_model, trained=trained[0], empty=tmp_path).split()
    with pytest.raises(SystemExit, match="2"):
        train(tmp_path / "out", folder, *words, budget="" if "--minutes" in words else "--steps 20", sets=sets)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out" / CONTEXT_FILE).exists()


# ---------------------------------------------------------------------------------------------------------- examples


def window_oracle(codes: np.ndarray, cell: tuple[int, ...], offset: np.ndarray) -> list[int] | None:
    """Codes of all levels at an offset from a cell, None outside the grid."""
    there = tuple(int(at) for at in np.add(cell, offset))
    inside = all(0 <= at < n for at, n in zip(there, codes.shape[1:], strict=True))
    return [int(level[there]) for level in codes] if inside else None


def test_examples_show_what_the_schedule_shows() -> None:
    """Windows as rows of the embedding table: a code, "unknown", or, at the own level, "outside"."""
    rng = np.random.default_rng(0)
    grids = [np.stack([rng.integers(0, n, shape) for n in SIZES]) for shape in ((4, 6), (1, 3), (5, 2))]
    store = TokenStore(grids, "cpu")
    schedule, offsets = refinement(2, 4), offsets_within(1.5, (1.0, 1.0))
    sampler = LevelSampler(SIZES, (0, 1), np.arange(SIZES[1])[::-1].copy(), schedule, offsets, "cpu")
    indices, leaf = sampler.examples(store, torch.arange(len(store)))
    unknown = (16, 16 + 1 + 8)
    outside = [unknown[0], unknown[1] + 1]
    row = 0
    for codes in grids:
        when = np.zeros(codes[0].size, int)
        for step, cells in enumerate(schedule.run(codes.shape[1:])):
            when[cells] = step
        when = when.reshape(codes.shape[1:])
        for cell in np.ndindex(*codes.shape[1:]):
            assert int(leaf[row]) == 7 - int(codes[1][cell])
            for found, offset in zip(indices[row].tolist(), offsets, strict=True):
                own = window_oracle(codes, cell, offset)
                if own is None:
                    assert found == outside
                else:
                    seen = when[tuple(np.add(cell, offset))] < when[cell]
                    assert found == [own[0], 17 + own[1] if seen else unknown[1]]
            row += 1
    assert row == len(store)


@pytest.mark.parametrize("order", [(0,), (0, 1), (1, 0)])
def test_lossy_examples_never_show_the_code_to_predict(order: tuple[int, ...]) -> None:
    codes = correlated(12, 10, 3)
    store = TokenStore([codes], "cpu", seed=4)
    offsets = offsets_within(2, (1.0, 1.0))
    sizes = [SIZES[j] for j in order]
    sampler = LevelSampler(SIZES, order, np.arange(sizes[-1]), raster(2), offsets, "cpu")
    exact, _ = sampler.examples(store, torch.arange(len(store)))
    found, leaf = sampler.examples(store, torch.arange(len(store)), loss=1.0)
    assert torch.equal(leaf, torch.from_numpy(codes[order[-1]].ravel()))
    first = np.cumsum([0] + [n + 1 for n in sizes])
    for j, level in enumerate(order):
        column, unknown = found[..., j], int(first[j]) + sizes[j]
        hidden = column == unknown
        assert 0.2 < float(hidden.float().mean()) < 0.9
        if j == len(order) - 1:
            assert hidden[:, 0].all()  # the cell itself
            outside = column == first[-1]
            assert torch.equal(outside, exact[..., j] == first[-1])
        for row, cell in enumerate(np.ndindex(12, 10)):
            for p, offset in enumerate(offsets):
                own = window_oracle(codes, cell, offset)
                if own is not None and not hidden[row, p]:
                    assert int(column[row, p]) == first[j] + own[level]


def test_lossy_examples_are_the_share_that_was_asked_for() -> None:
    store = TokenStore([correlated(40, 50, 5)], "cpu")
    sampler = LevelSampler(SIZES, (0,), np.arange(16), raster(2), offsets_within(2, (1.0, 1.0)), "cpu")
    exact, _ = sampler.examples(store, torch.arange(len(store)))
    for share in (0.0, 0.1, 0.5):
        found, _ = sampler.examples(store, torch.arange(len(store)), loss=share)
        assert abs(float((found != exact).flatten(1).any(1).float().mean()) - share) < 0.05


def test_every_cell_is_sampled_equally_often() -> None:
    store = TokenStore([correlated(2, 3, 0), correlated(1, 4, 1)], "cpu")
    counts = torch.bincount(store.sample(20000), minlength=10)
    assert counts.shape == (10,)
    assert int(counts.min()) > 1800


# --------------------------------------------------------------------------------------------------------------- sounds


def test_a_prior_of_sounds_learns_from_segments(sound_model: Path, tmp_path: Path) -> None:
    """From sounds to integers that the codec codes segments with, in fewer bits than order-0."""
    folder, out = tmp_path / "sounds", tmp_path / "prior"
    folder.mkdir()
    t = np.arange(4 * RATE) / RATE
    for i in range(8):
        swell = 0.2 + 0.1 * np.sin(2 * np.pi * (1 + 0.3 * i) * t)
        soundfile.write(folder / f"s{i}.wav", swell * np.sin(2 * np.pi * (200 + 2 * i) * t), RATE)
    words = ["--data", str(folder), "--test", str(folder), "--tokenizer", str(sound_model), "--recipe", "context-audio"]
    sets = [
        "schedule.steps=[8,4,2]", "net.radius=[3]", "net.features=[8]", "net.width=[16]", "net.hidden=[16]",
        "net.blocks=[1]", "net.digit=[16]", "data.views=2", "data.holdout_every=4", "optim.rows=256",
        "optim.lr=1.0e-2", "optim.warmup_steps=10", "optim.dropout=0.0",
    ]  # fmt: skip
    script.main([*words, "--steps", "400", "--out", str(out), "--device", "cpu", "--set", *sets])
    log = json.loads((out / "training.json").read_text())
    assert log["test grids"] == 8 * 2  # four seconds are two segments
    assert sum(log["test"]["integers"]) < 0.95 * sum(log["test"]["order-0"])
    prior, model = ContextPrior.from_pretrained(out), Tokenizer.from_pretrained(sound_model)
    assert prior.codebook_sizes == model.codebook_sizes
    assert prior.ndim == 1
    codes = model.encode(torch.from_numpy(np.float32(0.2 * np.sin(2 * np.pi * 200 * t)))[None, None]).codes[0].numpy()
    assert np.array_equal(prior.decompress(prior.compress(codes), codes.shape[1:]), codes)


def test_views_of_a_sound_are_segments_of_it_changed(sound_model: Path) -> None:
    model = AudioGRVQ.from_pretrained(sound_model)
    sound = (8000 * torch.sin(torch.arange(FRAME * 40 + 7) / 20)).short()
    generator = torch.Generator().manual_seed(0)
    (whole, rest) = sound_views(model, sound, 0, generator, 25)
    assert (whole.shape, rest.shape) == ((4, 25), (4, 16))
    expected = model.encode(sound.float()[None, None] / 32768).codes[0].numpy()
    assert np.array_equal(np.concatenate([whole, rest], axis=1), expected)
    views = sound_views(model, sound, 3, generator, 25)
    assert len(views) == 6
    assert not any(np.array_equal(view, whole) for view in views[::2])
