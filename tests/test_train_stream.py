"""Media that memory does not hold are read on the way: all of them, in one order, and never more than it holds."""

from __future__ import annotations

import io
import math
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from tokodec.codec.errors import UsageError
from tokodec.tests.resuming import assert_goes_on
from tokodec.train import audio, image_1d
from tokodec.train.data.audio import SoundStore, at_speeds, list_sounds, read_mono
from tokodec.train.data.images import CropStore, list_images, read_rgb
from tokodec.train.data.reading import Limits, Reading, Source, read_within
from tokodec.train.data.store import Store
from tokodec.train.data.stream import SHELVES, Stream
from tokodec.train.data.video import ClipStore, Stills
from tokodec.train.state import restore, state_of

EVERY = 5  # files at such places are held out
SIZE = 20 * 24 * 3  # bytes of a picture
MEMORY = 16 * SIZE


def paths_of(n: int) -> list[Source]:
    return [Path(f"{i}.png") for i in range(n)]


def picture(path: Source) -> Tensor:
    """A picture whose values say which it is; some are damaged."""
    number = int(Path(path.name).stem)
    if number % 17 == 3:
        raise ValueError("damaged")
    return torch.full((20, 24, 3), number, dtype=torch.uint8)


def reading_of(n: int = 60, read: Callable[[Source], Tensor] = picture) -> Reading:
    return read_within(paths_of(n), read, Limits(MEMORY, 60), seed=1)


def store_of(reading: Reading, reuse: float = 2.0, ranks: tuple[int, int] = (0, 1), seed: int = 0) -> CropStore:
    stream = Stream(reading, EVERY, MEMORY, reuse, seed, ranks)
    media, _ = reading.split(EVERY)
    return CropStore(media, 16, "cpu", zoom=0.0, seed=seed, stream=stream)


def seen(store: CropStore, batches: int) -> list[list[int]]:
    """The pictures that crops of some batches are of."""
    return [(255 * store.batch(4)[:, 0, 0, 0]).round().int().tolist() for _ in range(batches)]


# ---------------------------------------------------------------------------------------------------------------- store


def test_all_that_is_trained_on_comes_in_turn_and_memory_is_bounded() -> None:
    reading = reading_of()
    assert len(reading.media) <= 17
    assert len(reading.left) > 40
    store = store_of(reading)
    assert store.buffer.numel() <= MEMORY
    crops = [i for batch in seen(store, 120) for i in batch]
    store.close()
    readable = {i for i in range(60) if i % EVERY and i % 17 != 3}
    assert set(crops) == readable
    assert sum(map(len, store.files)) <= 16
    first = set(reading.trained(EVERY))
    assert len(set(crops[:12]) & first) > len(set(crops[:12]) - first)
    # What was read first is not seen for long: each medium gives two crops or so, then another takes its place.
    later = crops[120:160]
    assert len(set(later) - first) > len(set(later) & first)
    counts = torch.bincount(torch.tensor(crops), minlength=60)[sorted(readable)]
    assert int(counts.max()) < 6 * 480 / len(readable)


def test_crops_do_not_depend_on_how_fast_files_are_read() -> None:
    chance = np.random.default_rng(0)

    def slow(path: Source) -> Tensor:
        time.sleep(0.002 * chance.random())
        return picture(path)

    stores = [store_of(reading_of(read=read)) for read in (picture, slow)]
    assert seen(stores[0], 60) == seen(stores[1], 60)
    assert stores[1].stream is not None
    assert stores[1].stream.waited > 0
    other = store_of(reading_of(), seed=1)
    assert seen(other, 60) != seen(store_of(reading_of()), 60)


def test_processes_share_the_files() -> None:
    reading = reading_of()
    streams = [Stream(reading, EVERY, MEMORY, ranks=(rank, 3)) for rank in range(3)]
    for turn in range(3):
        orders = [stream.order(turn) for stream in streams]
        files = sorted(i for order in orders for i in order)
        assert files == sorted(i for i in (reading.left if not turn else range(60)) if i % EVERY)
        assert max(map(len, orders)) - min(map(len, orders)) <= 1
    assert streams[0].order(1) != streams[0].order(2)
    assert streams[0].order(2) == Stream(reading, EVERY, MEMORY, ranks=(0, 3)).order(2)


@pytest.mark.parametrize("batches", [0, 7, 40, 90])
def test_a_store_goes_on_from_its_state(batches: int) -> None:
    whole, again = store_of(reading_of()), store_of(reading_of())
    seen(whole, batches)
    state = state_of(whole.parts())
    wanted = seen(whole, 50)
    seen(again, 3)  # and something is being read ahead
    restore(again.parts(), state)
    assert seen(again, 50) == wanted
    whole.close()
    again.close()


def test_media_are_cut_to_a_shelf_and_useless_ones_passed_over() -> None:
    sizes = {0: (20, 24), 1: (20, 24), 2: (400, 24), 3: (8, 8), 4: (20, 24)}

    def read(path: Source) -> Tensor:
        i = int(Path(path.name).stem)
        return torch.full((*sizes.get(i, (9, 9)), 3), i, dtype=torch.uint8)

    reading = read_within(paths_of(20), read, Limits(1, 60), seed=1)
    reading = Reading({0: read(Path("0.png")), 1: read(Path("1.png"))}, [], reading.paths, read, [2, 3, 4, 5, 6], 2, [])
    store = CropStore(reading.split(5)[0], 16, "cpu", zoom=0, stream=Stream(reading, 5, SHELVES * SIZE, 1.0))
    crops = {i for batch in seen(store, 40) for i in batch}
    store.close()
    assert crops == {1, 2, 4}
    assert max(shape[0] for shapes in store.shapes for shape in shapes) <= 20
    alone = Reading(reading.media, [], reading.paths[:7], read, [3, 5, 6], 2, [])
    alone.media[1] = alone.media[1][:10]
    with pytest.raises(ValueError, match="no picture is at least 16 x 16"):
        CropStore(alone.split(5)[0], 16, "cpu", stream=Stream(alone, 5, MEMORY))


def test_a_stream_of_which_nothing_can_be_used_ends() -> None:
    def read(path: Source) -> Tensor:
        if path.name != "1.png":
            raise ValueError("damaged")
        return torch.zeros(20, 24, 3, dtype=torch.uint8)

    paths = paths_of(8)
    reading = Reading({1: read(Path("1.png"))}, [], paths, read, list(range(2, 8)), 2, [0])
    store = CropStore([reading.media[1]], 16, "cpu", stream=Stream(reading, 0, MEMORY, 1.0))
    seen(store, 1)
    assert 1 in store.files[0]
    paths[1:2] = [Path("9.png")]
    with pytest.raises(UsageError, match="none of the files that are left can be used"):
        seen(store, 40)
    store.close()


def test_sounds_come_at_all_speeds_and_clips_with_pictures() -> None:
    def sound(path: Source) -> Tensor:
        return torch.full((400,), 1000 * int(Path(path.name).stem) + 1000, dtype=torch.int16)

    reading = read_within(paths_of(12), sound, Limits(1600, 60))
    stream = Stream(reading, 0, 8 * 1200, 1.0, expand=lambda own: at_speeds([own], (1.0, 0.5)))
    sounds = SoundStore(list(reading.media.values()), 100, "cpu", mixed=0.0, stream=stream)
    levels: set[int] = set()
    for _ in range(60):
        levels |= {round(float(x.max()) * 32.768) for x in sounds.crops(4)}
        sounds.drawn(4)
    sounds.close()
    assert levels >= set(range(1, 13))
    assert {shape[0] for shapes in sounds.shapes for shape in shapes} >= {400, 800} - {800}

    def clip(path: Source) -> Tensor:
        return torch.full((6, 20, 24, 3), int(Path(path.name).stem), dtype=torch.uint8)

    reading = read_within(paths_of(12), clip, Limits(3 * 6 * SIZE, 60))
    stills = Stills(store_of(reading_of()), 0.5)
    media = list(reading.media.values())
    clips = ClipStore(media, 5, 16, "cpu", stills, stream=Stream(reading, 0, 16 * 6 * SIZE, 2.0))
    shown = [int(x[0, 0, 0, 0] * 255 + 0.5) for _ in range(60) for x in clips.batch(4)[:2]]
    assert set(shown) == set(range(12))
    state = state_of(clips.parts())
    wanted = [clips.batch(4) for _ in range(10)]
    restore(clips.parts(), state)
    assert all(torch.equal(a, clips.batch(4)) for a in wanted)
    clips.close()


# ------------------------------------------------------------------------------------------------------------- archives


def archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))


def test_media_in_archives_are_those_of_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files: dict[str, bytes] = {"000.txt": b"no picture"}
    for i in range(6):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(file, "PNG")
        files[f"{i:03d}.png"] = file.getvalue()
    (tmp_path / "folder").mkdir()
    (tmp_path / "shards").mkdir()
    for name, data in files.items():
        (tmp_path / "folder" / name).write_bytes(data)
    names = sorted(files)
    archive(tmp_path / "shards" / "a-000.tar", {name: files[name] for name in names[:4]})
    archive(tmp_path / "shards" / "a-001.tar", {name: files[name] for name in names[4:]})
    plain = list_images([tmp_path / "folder"])
    for given in ([tmp_path / "shards"], [str(tmp_path / "shards" / "a-{000..001}.tar")]):
        inside = list_images(given)
        assert [p.name for p in inside] == [p.name for p in plain]
        assert all(torch.equal(read_rgb(a), read_rgb(b)) for a, b in zip(inside, plain, strict=True))
    assert str(inside[0]).endswith("a-000.tar!000.png")
    with pytest.raises(FileNotFoundError, match="no sounds in"):
        list_sounds([tmp_path / "shards"])
    file = io.BytesIO()
    soundfile.write(file, 0.1 * rng.standard_normal(2400), 24000, format="FLAC")
    archive(tmp_path / "b.tar", {"x.flac": file.getvalue(), "y.flac": b"damaged"})
    good, bad = list_sounds([tmp_path / "b.tar"])
    assert len(read_mono(good, 24000)) == 2400
    with pytest.raises(ValueError, match=r"b\.tar!y\.flac"):
        read_mono(bad, 24000)
    shard = tmp_path / "shards" / "a-001.tar"
    shard.write_bytes(shard.read_bytes()[:4500])  # in the header of the third of its files
    reading = read_within(list_images([tmp_path / "shards"]), read_rgb, Limits(1 << 30, math.inf))
    assert len(reading.media) == 5
    assert "a-001.tar: cannot read the tar" in reading.notes[0]


# ------------------------------------------------------------------------------------------------------------- training


@pytest.mark.usefixtures("_trains")
def test_a_run_that_reads_on_the_way_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures of an archive, of which a third fits into memory; bit for bit, so the place in the data is kept."""
    rng = np.random.default_rng(0)
    files = {}
    for i in range(9):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (280, 272 + i, 3), dtype=np.uint8)).save(file, "PNG")
        files[f"p{i}.png"] = file.getvalue()
    archive(tmp_path / "pictures.tar", files)
    sets = (
        "model.width=16 model.heads=2 model.analysis_blocks=1 model.synthesis_blocks=1 model.tokens=20 model.dim=4"
        " model.codebook_size=16 model.smooth=8 data.holdout_every=3 optim.batch=2 quantized_from=0.0"
    )
    words = ["--data", str(tmp_path / "pictures.tar"), "--memory", "0.0007", "--reuse", "0.5", "--set", *sets.split()]
    assert_goes_on(image_1d.main, image_1d.Trainer, words, tmp_path, (3,))
    assert "files, drawn at random, are read on the way" in capsys.readouterr().out


@pytest.mark.usefixtures("_trains")
def test_sounds_that_are_read_on_the_way_train(tmp_path: Path) -> None:
    folder = tmp_path / "sounds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(8):
        soundfile.write(str(folder / f"{i}.wav"), 0.1 * rng.standard_normal(12000), 24000)
    sets = (
        "model.analysis_channels=[8,16] model.analysis_blocks=[1,1] model.synthesis_channels=[16,16]"
        " model.synthesis_blocks=[1,1] model.dim=8 model.codebook_sizes=[16,16] data.seconds=0.2 data.holdout_every=3"
        " optim.batch=2 optim.discriminators_width=2 data.kept=[] loss.adversarial_from=1.0"
    )
    words = ["--data", str(folder), "--memory", "0.0003", "--reuse", "0.5", "--set", *sets.split()]
    assert_goes_on(audio.main, audio.Trainer, words, tmp_path, (3,))


def test_every_store_is_one() -> None:
    assert all(issubclass(kind, Store) for kind in (CropStore, SoundStore, ClipStore))
