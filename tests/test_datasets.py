"""Media folders as datasets: the codes of the tokenizer, in one order, made once, in batches of workers."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.utils.data import DataLoader

import tokodec
from tokodec.codec import cli, datasets
from tokodec.codec.corpus.token_files import load_tokens
from tokodec.codec.datasets import SequenceCollate, TokenDataset
from tokodec.codec.errors import MediaError, ModelError, TokodecError, UsageError, WeightsMismatchError
from tokodec.codec.media.write_video import VideoWriter
from tokodec.codec.models import load_model
from tokodec.codec.tokens import tokenize_file
from tokodec.tests.hostile import mutations
from tokodec.tokenizers.sequence import END, PAD, Sequencer

PAGE = Path(__file__).resolve().parent.parent / "codec" / "corpus" / "README.md"
SIZES = {"b.png": (40, 50), "a.png": (64, 33), "deep/a.webp": (16, 80), "deep/z.png": (100, 100)}
ORDER = ["a.png", "b.png", "deep/a.webp", "deep/z.png"]


def write_picture(path: Path, height: int, width: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(x).save(path, lossless=True)


def write_sound(path: Path, samples: int, channels: int = 1, seed: int = 0) -> None:
    x = 0.1 * np.random.default_rng(seed).normal(size=(samples, channels))
    soundfile.write(path, x, 24000)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures in two folders, and what is none."""
    folder = tmp_path / "pictures"
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        write_picture(folder / name, height, width, seed)
    (folder / "notes.txt").write_text("no picture")
    (folder / "._a.png").write_text("what a file manager leaves")
    write_sound(folder / "sound.wav", 1000)
    return folder


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that the tokenizer ran on."""
    seen: list[str] = []

    def call(src: Path, *args: Any, **kwargs: Any) -> Any:
        seen.append(src.name)
        return tokenize_file(src, *args, **kwargs)

    monkeypatch.setattr(datasets, "tokenize_file", call)
    return seen


def dataset_of(folders: Any, model: Path, **kwargs: Any) -> TokenDataset:
    return TokenDataset(folders, model, device="cpu", **kwargs)


def test_the_name_in_the_package() -> None:
    from tokodec import datasets as found

    assert found is tokodec.datasets is datasets


# ------------------------------------------------------------------------------------------------------------- items


def test_items_are_the_codes_of_the_tokenizer(pictures: Path, tiny_model: Path) -> None:
    dataset = dataset_of(pictures, tiny_model)
    assert [path.relative_to(pictures).as_posix() for path in dataset.files] == ORDER
    assert len(dataset) == 4
    assert dataset.codebook_sizes == (64, 32, 16)
    for i, name in enumerate(ORDER):
        want = tokenize_file(pictures / name, None, model=str(tiny_model), device="cpu").tokens
        assert torch.equal(dataset[i], want.codes[0])
        assert dataset[i].dtype == torch.int64
        assert dataset.tokens(i).spec == want.spec
    with pytest.raises(IndexError):
        _ = dataset[4]


def test_the_order_is_that_of_the_names_whatever_the_folder_is_called(pictures: Path, tiny_model: Path) -> None:
    other = pictures.parent / "0"
    shutil.copytree(pictures, other)
    found = dataset_of([pictures, other, other / "b.png"], tiny_model).files
    assert found == [pictures / n for n in ORDER] + [other / n for n in ORDER] + [other / "b.png"]


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "tok"])
def test_files_of_tokens_are_items_as_well(suffix: str, pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    command = ["encode"] if suffix == "tok" else ["tokenize", "--format", suffix]
    for name in ORDER:
        out = tmp_path / "made" / Path(name).with_suffix(f".{suffix}")
        out.parent.mkdir(parents=True, exist_ok=True)
        assert cli.run([*command, str(pictures / name), "-o", str(out), "--model", str(tiny_model), "--quiet"]) == 0
    made, direct = dataset_of(tmp_path / "made", tiny_model), dataset_of(pictures, tiny_model)
    assert len(made) == 4
    for i in range(4):
        assert torch.equal(made[i], direct[i])
        assert made.tokens(i).spec == direct.tokens(i).spec


def test_levels(pictures: Path, tiny_model: Path, golden: Path) -> None:
    whole, coarse = dataset_of(pictures, tiny_model), dataset_of(pictures, tiny_model, levels=2)
    assert all(torch.equal(coarse[i], whole[i][:2]) for i in range(4))
    lacking = dataset_of(golden / "coarse.tok", tiny_model, levels=3)
    with pytest.raises(UsageError, match=r"coarse.tok: holds 2 of 3 levels"):
        _ = lacking[0]


def test_sounds(sound_model: Path, tmp_path: Path) -> None:
    """Of two channels the middle is the item; what is no sound is ignored."""
    for channels in (1, 2):
        write_sound(tmp_path / f"{channels}.wav", 5000, channels)
    write_picture(tmp_path / "a.png", 16, 16)
    dataset = dataset_of(tmp_path, sound_model)
    assert [path.name for path in dataset.files] == ["1.wav", "2.wav"]
    for i in range(2):
        want = tokenize_file(dataset.files[i], None, model=str(sound_model), device="cpu").tokens
        assert want.codes.shape[0] == i + 1
        assert torch.equal(dataset[i], want.codes[0])
        assert dataset.tokens(i).spec.channels == "mono"
    write_sound(tmp_path / "3.wav", 5000, 3)
    with pytest.raises(UsageError, match=r"3.wav: holds 3 signals"):
        _ = dataset_of(tmp_path, sound_model)[2]


def test_a_quality(pictures: Path, photo_model: Path, tiny_model: Path) -> None:
    dataset = dataset_of(pictures, photo_model, quality=90)
    want = tokenize_file(pictures / "a.png", None, model=str(photo_model), quality=90, device="cpu").tokens
    assert torch.equal(dataset[0], want.codes[0])
    assert dataset.tokens(0).spec.quality == 90
    with pytest.raises(UsageError, match="quality does not set the rate"):
        dataset_of(pictures, tiny_model, quality=90)


# ------------------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize(("crop", "cells"), [(32, (2, 2)), ((16, 48), (1, 3)), ([32, 16], (2, 1))])
def test_the_crop_is_in_the_middle(crop: Any, cells: tuple[int, int], pictures: Path, tiny_model: Path) -> None:
    for name in ("b.png", "deep/z.png"):
        whole = dataset_of(pictures / name, tiny_model)[0]
        cropped = dataset_of(pictures / name, tiny_model, crop=crop)
        top, left = ((n // 16 - c) // 2 for n, c in zip(SIZES[name], cells, strict=True))
        assert torch.equal(cropped[0], whole[:, top : top + cells[0], left : left + cells[1]])
        assert cropped.tokens(0).spec.size == (16 * cells[0], 16 * cells[1])
        assert cropped.tokens(0).spec == cropped.spec(cells)


def test_random_crops_are_everywhere_and_repeat_with_their_generator(pictures: Path, tiny_model: Path) -> None:
    path = pictures / "deep/z.png"  # 100 x 100: 6 x 6 whole cells, the seventh is not
    whole = dataset_of(path, tiny_model)[0]
    dataset = dataset_of(path, tiny_model, crop=64, generator=torch.Generator().manual_seed(1))
    found = [dataset[0] for _ in range(100)]
    places = {(y, x): whole[:, y : y + 4, x : x + 4].flatten().tolist() for y in range(4) for x in range(4)}
    seen = {place for codes in found for place, want in places.items() if codes.flatten().tolist() == want}
    assert seen == {(y, x) for y in range(3) for x in range(3)}
    again = dataset_of(path, tiny_model, crop=64, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(again[0], codes) for codes in found[:10])


def test_seconds_of_a_sound(sound_model: Path, tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav", 10_000)
    whole, cropped = dataset_of(tmp_path, sound_model), dataset_of(tmp_path, sound_model, crop=0.2)
    assert whole[0].shape == (4, math.ceil(10_000 / 320))
    assert torch.equal(cropped[0], whole[0][:, 8:23])  # 4800 of 9920 samples: 15 of 31 whole frames
    assert cropped.tokens(0).spec.size == (4800,)


def test_a_crop_of_a_video_begins_with_it(video_model: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with (tmp_path / "a.mkv").open("w+b") as file, VideoWriter(file, ".mkv", "", 40, 52, Fraction(1, 25)) as writer:
        for i in range(11):
            writer.write(rng.integers(0, 256, (40, 52, 3), dtype=np.uint8), Fraction(i, 25), Fraction(1, 25))
    whole, cropped = dataset_of(tmp_path, video_model), dataset_of(tmp_path, video_model, crop=(5, 16, 32))
    assert whole[0].shape[1:] == (4, 3, 4)
    assert torch.equal(cropped[0], whole[0][:, :2, 0:1, 0:2])  # 40 x 52 pixels have 2 x 3 whole cells
    assert cropped.tokens(0).spec.size == (5, 16, 32)
    random = dataset_of(tmp_path, video_model, crop=(5, 16, 32), generator=torch.Generator().manual_seed(0))
    places = {tuple(random[0].flatten().tolist()) for _ in range(40)}
    assert places == {tuple(whole[0][:, :2, y : y + 1, x : x + 2].flatten().tolist()) for y in (0, 1) for x in (0, 1)}
    with pytest.raises(UsageError, match=r"is 1 \+ n times 4 frames, and a multiple of 16 pixels twice, got 8"):
        dataset_of(tmp_path, video_model, crop=8)
    with pytest.raises(UsageError, match="less than the crop of 13 x 16 x 16"):
        _ = dataset_of(tmp_path, video_model, crop=(13, 16, 16))[0]


def test_smaller_than_the_crop_is_an_error_that_names_the_file(
    pictures: Path, tiny_model: Path, sound_model: Path
) -> None:
    dataset = dataset_of(pictures, tiny_model, crop=48)
    with pytest.raises(UsageError, match=r"b.png: 40 x 50 pixels, less than the crop of 48 x 48"):
        _ = dataset[1]
    with pytest.raises(UsageError, match=r"sound.wav: 1000 samples, less than the crop of 2560"):
        _ = dataset_of(pictures, sound_model, crop=0.1)[0]


# ------------------------------------------------------------------------------------------------------------- cache


def test_a_file_is_tokenized_once(pictures: Path, tiny_model: Path, tokenized: list[str], tmp_path: Path) -> None:
    """Whatever the levels and crops; until the file changes."""
    cache = tmp_path / "cache"
    want = [dataset_of(pictures, tiny_model)[i] for i in range(4)]
    tokenized.clear()
    for settings in ({}, {"levels": 1}, {"crop": 16}, {}):
        dataset = dataset_of(pictures, tiny_model, cache=cache, **settings)
        found = [dataset[i] for i in range(4)]
        assert tokenized == [Path(name).name for name in ORDER]
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
    assert dataset.tokens(0).spec == dataset_of(pictures, tiny_model).tokens(0).spec
    kept = [path for path in cache.rglob("*") if path.is_file()]
    assert len(kept) == 4
    assert {path.suffix for path in kept} == {".tokens"}
    tokenized.clear()
    write_picture(pictures / "b.png", 40, 50, seed=9)  # other content: another time of change
    dataset = dataset_of(pictures, tiny_model, cache=cache)
    assert not torch.equal(dataset[1], want[1])
    assert torch.equal(dataset[0], want[0])
    assert tokenized == ["b.png"]


def test_a_touched_or_moved_file_and_other_weights_are_not_in_the_cache(
    pictures: Path, tiny_model: Path, sound_model: Path, photo_model: Path, tokenized: list[str], tmp_path: Path
) -> None:
    cache, path = tmp_path / "cache", pictures / "b.png"
    _ = dataset_of(path, tiny_model, cache=cache)[0]
    os.utime(path, ns=(0, 12345))
    _ = dataset_of(path, tiny_model, cache=cache)[0]
    path = path.rename(pictures / "c.png")
    _ = dataset_of(path, tiny_model, cache=cache)[0]
    assert tokenized == ["b.png", "b.png", "c.png"]
    _ = dataset_of(path, photo_model, cache=cache)[0]
    _ = dataset_of(path, photo_model, cache=cache, quality=20)[0]
    assert tokenized == ["b.png", "b.png", "c.png", "c.png", "c.png"]
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tokenizer = tokodec.load(other, "cpu")
    with torch.no_grad():
        next(tokenizer.parameters()).mul_(1.5)
    written = tokenizer.save_pretrained(other)
    assert dataset_of(path, other, cache=cache).tokens(0).spec.weights_hash == written
    assert len(tokenized) == 6


def test_a_damaged_cache_is_made_anew(pictures: Path, tiny_model: Path, tokenized: list[str], tmp_path: Path) -> None:
    dataset = dataset_of(pictures / "b.png", tiny_model, cache=tmp_path / "cache")
    want = dataset[0]
    (kept,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    good = kept.read_bytes()
    damaged = [b"", good[:-9], b"text", *mutations(good, 40, seed=6)]
    for data in damaged:
        kept.write_bytes(data)
        assert torch.equal(dataset[0], want)
        assert kept.read_bytes() == good or torch.equal(load_tokens(kept).codes[0], want)  # what was hit says nothing
    assert len(tokenized) > 30


def test_a_cache_inside_the_folder_is_not_part_of_it(pictures: Path, tiny_model: Path) -> None:
    for _ in range(2):
        dataset = dataset_of(pictures, tiny_model, cache=pictures / "cache")
        assert dataset.fill_cache() in (4, 0)
        assert len(dataset) == 4
    assert len(dataset_of(pictures, tiny_model)) == 4


def test_filling_the_cache(pictures: Path, tiny_model: Path, tokenized: list[str], tmp_path: Path) -> None:
    dataset = dataset_of(pictures, tiny_model, cache=tmp_path / "cache")
    _ = dataset[1]
    shares: list[float] = []
    assert dataset.fill_cache(shares.append) == 3
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert dataset.fill_cache() == 0
    assert sorted(tokenized) == sorted(Path(name).name for name in ORDER)
    with pytest.raises(UsageError, match="no cache"):
        dataset_of(pictures, tiny_model).fill_cache()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the folder"):
        dataset_of(pictures, tiny_model, cache=tmp_path / "file").fill_cache()


# ----------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("context", ["fork", "spawn"] if sys.platform == "linux" else ["spawn"])
def test_batches_from_two_workers(context: str, pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The same as without workers, in order; spawned workers load the model themselves."""
    files = [pictures / name for name in ("a.png", "b.png", "deep/z.png")]
    dataset = dataset_of(files, tiny_model, crop=32, cache=tmp_path / "cache")
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=context)
    batches = list(loader)
    assert [batch.shape for batch in batches] == [(2, 3, 2, 2), (1, 3, 2, 2)]
    assert torch.equal(torch.cat(batches), torch.stack([dataset[i] for i in range(3)]))
    assert dataset.fill_cache() == 0  # the workers filled it


def test_workers_draw_windows_of_their_own(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Not the same ones in each worker, nor in each epoch; and the same again with the same seeds."""
    files = [pictures / "deep/z.png"] * 32
    cache = tmp_path / "cache"

    def epochs() -> list[list[Any]]:
        dataset = dataset_of(files, tiny_model, crop=16, cache=cache, generator=torch.Generator().manual_seed(3))
        shuffle = torch.Generator().manual_seed(4)
        loader = DataLoader(dataset, batch_size=1, num_workers=2, generator=shuffle)
        return [[batch.flatten().tolist() for batch in loader] for _ in range(2)]

    first, second = epochs()
    assert first[::2] != first[1::2]  # batches come from the workers in turn
    assert first != second
    assert epochs() == [first, second]


@pytest.mark.parametrize("pattern", ["levels", "delay"])
def test_sequences_of_different_lengths(pattern: Any, pictures: Path, tiny_model: Path) -> None:
    dataset = dataset_of(pictures, tiny_model)
    sequencer = dataset.sequencer(pattern)
    loader = DataLoader(dataset, batch_size=4, collate_fn=SequenceCollate(sequencer), num_workers=1)
    (batch,) = loader
    assert batch.lengths == [sequencer.length(math.prod(dataset.tokens(i).spec.grid)) for i in range(4)]
    for i, ids in enumerate(batch.split()):
        assert torch.equal(sequencer.unflatten(ids[None], dataset.tokens(i).spec).codes[0], dataset[i])
    labels = batch.labels
    assert labels.shape == batch.ids.shape
    assert torch.equal(labels[batch.mask], batch.ids[batch.mask])
    assert set(labels[~batch.mask].flatten().tolist()) == {-100}
    assert set(batch.ids[~batch.mask].flatten().tolist()) == {PAD}
    assert torch.equal(batch.to("cpu").labels, labels)


def test_digits_of_the_model(golden: Path, sound_model: Path, pictures: Path) -> None:
    dataset = dataset_of(pictures, sound_model)
    trees = load_model(str(sound_model)).trees
    assert dataset.sequencer(digits=True).schema() == Sequencer(dataset.codebook_sizes, digits=trees).schema()


def test_what_a_generator_makes_can_be_decoded(pictures: Path, tiny_model: Path) -> None:
    dataset = dataset_of(pictures, tiny_model, crop=32)
    sequencer = dataset.sequencer()
    stream, _ = sequencer.layout(4)
    made = torch.tensor([sequencer.allowed(int(s))[0] + 1 for s in stream[1:-1]])
    ids = torch.cat([torch.tensor([1]), made, torch.tensor([END])])[None]
    tokens = sequencer.unflatten(ids, dataset.spec((2, 2)))
    assert tokens.codes.unique().tolist() == [1]
    assert tokodec.load(tiny_model, "cpu").decode(tokens).shape == (1, 3, 32, 32)


# ------------------------------------------------------------------------------------------------------------ errors


def test_arguments_that_make_no_sense(pictures: Path, tiny_model: Path, sound_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    some = torch.Generator()
    bad: list[tuple[Any, Path, dict[str, Any], str]] = [
        (tmp_path / "none", tiny_model, {}, "no folder"),
        (tmp_path / "empty", tiny_model, {}, "no files for tiny"),
        ([], tiny_model, {}, "no files for tiny"),
        (pictures, tiny_model, {"levels": 0}, "levels of tiny are 1 to 3"),
        (pictures, tiny_model, {"levels": 4}, "levels of tiny are 1 to 3"),
        (pictures, tiny_model, {"crop": 40}, "multiple of 16 pixels, got 40"),
        (pictures, tiny_model, {"crop": 0}, "multiple of 16"),
        (pictures, tiny_model, {"crop": 1.5}, "multiple of 16"),
        (pictures, tiny_model, {"crop": math.nan}, "multiple of 16"),
        (pictures, tiny_model, {"crop": (16, 16, 16)}, "multiple of 16"),
        (pictures, sound_model, {"crop": (1, 1)}, "in seconds"),
        (pictures, sound_model, {"crop": -1.0}, "in seconds"),
        (pictures, sound_model, {"crop": math.inf}, "in seconds"),
        (pictures, tiny_model, {"generator": some}, "size of the crop"),
    ]
    for folders, model, settings, message in bad:
        with pytest.raises(UsageError, match=message):
            dataset_of(folders, model, **settings)
    with pytest.raises(ModelError, match="no-such-model"):
        TokenDataset(pictures, "no-such-model")
    with pytest.raises(UsageError, match="tpu"):
        TokenDataset(pictures, tiny_model, device="tpu")


def test_files_that_cannot_be_read_are_named(pictures: Path, tiny_model: Path, golden: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    cut = (golden / "gray.tok").read_bytes()[:-5]
    (folder / "cut.tok").write_bytes(cut)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.npz").write_bytes(b"text")
    shutil.copy(golden / "bad" / "WeightsMismatchError_weights.tok", folder / "weights.tok")
    shutil.copy(golden / "sound" / "mono.tok", folder / "sound.tok")
    shutil.copy(pictures / "sound.wav", folder / "sound.png")
    for cache in (None, tmp_path / "cache"):
        dataset = dataset_of(folder, tiny_model, cache=cache)
        assert len(dataset) == 6
        for i, path in enumerate(dataset.files):
            with pytest.raises(TokodecError, match=re.escape(str(path))):
                _ = dataset[i]
    assert not list((tmp_path / "cache").rglob("*.tokens"))


def test_bad_files_can_be_left_out(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    """One that is no picture and one that is smaller than the crop do not stop a DataLoader."""
    bad = {pictures / "a.png"} | {pictures / name for name, sides in SIZES.items() if min(sides) <= 16}
    assert len(bad) > 1
    (pictures / "a.png").write_bytes(b"no picture")
    dataset = dataset_of(pictures, tiny_model, cache=tmp_path / "cache", crop=32)
    with pytest.raises(MediaError, match=r"a\.png"):
        dataset.fill_cache()
    dataset.fill_cache(leave_out=True)
    assert set(dataset.left_out) == bad
    assert all(str(path) in reason for path, reason in dataset.left_out.items())
    assert {*dataset.files} == {pictures / name for name in SIZES} - bad
    assert [len(batch) for batch in DataLoader(dataset, batch_size=1, num_workers=2)] == [1] * len(dataset)


def test_tokens_of_another_model_are_refused(pictures: Path, tiny_model: Path, photo_model: Path) -> None:
    for name in ("a", "b"):
        source, model = str(pictures / f"{name}.png"), str(photo_model)
        assert cli.run(["tokenize", source, "--model", model, "--quiet"]) == 0
    dataset = dataset_of(pictures / "a.npz", tiny_model)
    with pytest.raises(WeightsMismatchError, match=r"a.npz: tokens of .*, not of tiny"):
        _ = dataset[0]


def test_errors_come_out_of_workers(pictures: Path, tiny_model: Path) -> None:
    (pictures / "a.png").write_bytes(b"no picture")
    loader = DataLoader(dataset_of(pictures, tiny_model), batch_size=None, num_workers=2)
    with pytest.raises(MediaError, match=r"a.png"):
        list(loader)


def test_collate_wants_codes_of_its_sequencer(pictures: Path, tiny_model: Path) -> None:
    codes = dataset_of(pictures, tiny_model)[0]
    with pytest.raises(ValueError, match="outside"):
        SequenceCollate(Sequencer((2, 2, 2)))([codes])
    with pytest.raises(ValueError, match="at least one"):
        SequenceCollate(Sequencer((64, 32, 16)))([])


# ------------------------------------------------------------------------------------- codec/corpus/README.md


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands and the code of the dataset, on two small pictures; `test_generate.py` runs the Trainer."""
    page = PAGE.read_text()
    shell = re.findall(r"```sh\n(.*?)```", page, re.S)[0]  # the others are those of `test_corpus_shards.py`
    python = next(code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "TokenDataset(" in code)
    for seed in range(2):
        write_picture(tmp_path / "pictures" / f"{seed}.png", 256, 300, seed)
    monkeypatch.chdir(tmp_path)
    for line in shell.splitlines():
        name, *arguments = line.split("#")[0].split()
        assert name == "codec"
        assert cli.run([*arguments, "--quiet"]) == 0
    done = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
