"""Ray: columns of media to columns of tokens, and all ranks of a corpus on a cluster that loses actors and machines."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import tokodec
from tokodec.codec import cli
from tokodec.codec.corpus import cluster, ray, run
from tokodec.codec.corpus.cli import with_address
from tokodec.codec.corpus.manifest import verify
from tokodec.codec.corpus.readers import reader_versions
from tokodec.codec.corpus.tally import Tally
from tokodec.codec.errors import MediaError, UsageError
from tokodec.codec.models import load_model
from tokodec.codec.options import CorpusOptions, TokenizeOptions
from tokodec.codec.tokens import tokenize_file
from tokodec.tests.test_corpus_remote import contents
from tokodec.tests.test_corpus_shards import made, shard_bytes, write_pictures

Batch = dict[str, Any]


def objects(values: list[Any]) -> np.ndarray:
    column = np.empty(len(values), object)
    column[:] = values
    return column


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# --------------------------------------------------------------------------------------------------------- a callable


def alone(model: Path, pixels: np.ndarray) -> torch.Tensor:
    """Codes ``[K, h, w]`` of ``[H, W, 3]`` that the tokenizer gives."""
    x = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    return load_model(str(model)).tokenizer.encode(x).codes[0]


def test_pictures_of_one_size(tiny_model: Path) -> None:
    """Also such that nobody may write to, as Ray gives them."""
    pixels = noise(5, 40, 33, 3)
    pixels.setflags(write=False)
    found = tokodec.ray.Tokenize(str(tiny_model), device="cpu")({"image": pixels, "label": np.arange(5)})
    assert list(found) == ["label", "codes", "spec"]
    assert found["codes"].dtype == np.int32
    assert found["codes"].shape == (5, 3, 3, 3)
    for codes, x in zip(found["codes"], pixels, strict=True):
        assert torch.equal(torch.from_numpy(codes).long(), alone(tiny_model, x))
    assert found["label"].tolist() == list(range(5))


def test_pictures_of_several_sizes_and_grey_ones(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large ones, which are encoded tile by tile, have the same codes."""
    pixels = [noise(33, 40, 3), noise(16, 16, 3), noise(20, 30), noise(70, 64, 3)]
    tokenize = ray.Tokenize(str(tiny_model), column="photo", device="cpu")
    found = tokenize({"photo": objects(pixels), "key": ["a", "b", "c", "d"]})
    assert found["key"] == ["a", "b", "c", "d"]
    assert found["codes"].dtype == object
    for codes, spec, x in zip(found["codes"], found["spec"], pixels, strict=True):
        wanted = alone(tiny_model, x if x.ndim == 3 else np.stack([x] * 3, -1))
        tokens = tokodec.ray.to_tokens(codes, spec)
        assert torch.equal(tokens.codes[0], wanted)
        assert load_model(str(tiny_model)).tokenizer.decode(tokens).shape[2:] == x.shape[:2]
    monkeypatch.setattr(ray, "MOST_PIXELS", 1000)
    again = tokenize({"photo": objects(pixels)})
    assert again["spec"].tolist() == found["spec"].tolist()
    assert all(np.array_equal(a, b) for a, b in zip(again["codes"], found["codes"], strict=True))


def test_bytes_of_files(tiny_model: Path, sound_model: Path, video_model: Path, tmp_path: Path) -> None:
    Image.fromarray(noise(24, 40, 3)).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(4000) / 20), 16000)
    done = cli.run(["encode", str(tmp_path / "a.png"), "-o", str(tmp_path / "a.tok"), "-m", str(tiny_model)])
    assert done == 0
    for model, names in ((tiny_model, ("a.png", "a.tok")), (sound_model, ("a.wav",))):
        column = objects([(tmp_path / name).read_bytes() for name in names])
        found = ray.Tokenize(str(model), device="cpu")({"bytes": column, "path": objects(list(names))})
        for i, name in enumerate(names):
            wanted = tokenize_file(tmp_path / name, model=str(model), device="cpu").tokens
            tokens = ray.to_tokens(found["codes"][i], found["spec"][i])
            assert tokens.spec == wanted.spec
            assert torch.equal(tokens.codes, wanted.codes)
    with pytest.raises(MediaError, match="row 0: a video comes as the bytes of a file"):
        ray.Tokenize(str(video_model), device="cpu")({"image": noise(1, 16, 32, 32, 3)})


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int16])
def test_sounds_as_arrays(kind: Any, sound_model: Path) -> None:
    """Of several lengths, channels and rates; those of a file of the same samples."""
    waves = [np.sin(np.arange(n) / 20) * 0.5 for n in (5000, 3000)] + [np.cos(np.arange(8000).reshape(2, 4000) / 9)]
    sounds = [(wave * (32767 if kind == np.int16 else 1)).astype(kind) for wave in waves]
    rates = [24000, 16000, 44100]
    tokenize = ray.Tokenize(str(sound_model), device="cpu")
    found = tokenize({"audio": objects(sounds), "sample_rate": np.array(rates)})
    for i, (sound, rate) in enumerate(zip(sounds, rates, strict=True)):
        file = io.BytesIO()
        subtype = "PCM_16" if kind == np.int16 else "FLOAT"
        soundfile.write(file, np.atleast_2d(sound).T, rate, subtype, format="WAV")
        file.seek(0)
        wanted = tokenize_file(file, model=str(sound_model), device="cpu").tokens
        tokens = ray.to_tokens(found["codes"][i], found["spec"][i])
        assert tokens.spec == wanted.spec
        assert torch.equal(tokens.codes, wanted.codes)
    assert found["codes"][2].shape[0] == 2
    with pytest.raises(MediaError, match="row 0: a sound wants its hertz"):
        tokenize({"audio": objects(sounds)})
    same = ray.Tokenize(str(sound_model), sample_rate=24000, device="cpu")({"amplitude": objects(sounds[:1])})
    assert np.array_equal(same["codes"][0], found["codes"][0])


def test_rows_that_fail(tiny_model: Path) -> None:
    """They end the job by their names, or are kept with the reason."""
    batch = {
        "image": objects([noise(16, 16, 3), noise(16, 16, 4), b"\x89PNG\r\n\x1a\n nothing"]),
        "path": ["a", "b", "c"],
    }
    with pytest.raises(MediaError, match=r"^b: a picture is \[H, W, 3\] or \[H, W\] of uint8, got \[16, 16, 4\]"):
        ray.Tokenize(str(tiny_model), device="cpu")(batch)
    found = ray.Tokenize(str(tiny_model), on_error="keep", device="cpu")(batch)
    assert [codes.shape for codes in found["codes"]] == [(3, 1, 1), (0, 0, 0), (0, 0, 0)]
    assert found["path"] == ["a", "b", "c"]
    assert found["error"][0] == ""
    assert all(found["error"][1:])
    with pytest.raises(UsageError, match="no column image or audio or amplitude or bytes; there are pixels"):
        ray.Tokenize(str(tiny_model), device="cpu")({"pixels": noise(1, 16, 16, 3)})
    with pytest.raises(UsageError, match="quality does not set the rate"):
        ray.Tokenize(str(tiny_model), quality=50, device="cpu")
    empty = ray.Tokenize(str(tiny_model), on_error="keep", device="cpu")({"image": noise(0, 16, 16, 3), "path": []})
    assert [len(column) for column in empty.values()] == [0] * 4


def test_fewer_levels_and_qualities(tiny_model: Path, photo_model: Path) -> None:
    pixels = noise(2, 32, 32, 3)
    whole, coarse = (
        ray.Tokenize(str(tiny_model), levels=n, device="cpu")({"image": pixels})["codes"] for n in (None, 1)
    )
    assert np.array_equal(coarse, whole[:, :1])
    low, high = (ray.Tokenize(str(photo_model), quality=q, device="cpu")({"image": pixels}) for q in (10, 90))
    assert [ray.to_tokens(x["codes"][0], x["spec"][0]).spec.quality for x in (low, high)] == [10, 90]


# ------------------------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--ray"], ["--ray="]),
        (["--ray", "photos", "-o", "out"], ["--ray=", "photos", "-o", "out"]),
        (["--ray", "auto", "photos"], ["--ray", "auto", "photos"]),
        (["--ray", "10.0.0.1:6379"], ["--ray", "10.0.0.1:6379"]),
        (["--ray", "ray://head:10001"], ["--ray", "ray://head:10001"]),
        (["--ray", "s3://bucket:9000/photos"], ["--ray=", "s3://bucket:9000/photos"]),
        (["--ray=head:6379", "--world", "4"], ["--ray=head:6379", "--world", "4"]),
    ],
)
def test_an_address_may_follow(arguments: list[str], wanted: list[str]) -> None:
    assert with_address(arguments) == wanted


def tokenize(*arguments: object) -> int:
    return cli.run(["tokenize", *map(str, arguments), "--format", "webdataset"])


def test_what_cannot_be_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pictures(tmp_path / "media", 1)
    media, out = tmp_path / "media", tmp_path / "out"

    def refused(*arguments: object) -> str:
        assert tokenize(media, "-o", out, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not out.exists()
        return line

    assert "Ray runs all ranks" in refused("--ray", "--rank", "0", "--world", "2")
    package = pytest.importorskip("ray")
    monkeypatch.setattr(package, "init", lambda **_: pytest.fail("Ray itself would try for minutes"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert f"no Ray cluster answers at 127.0.0.1:{port}" in refused("--ray", f"127.0.0.1:{port}")
    assert f"no Ray cluster answers at ray://127.0.0.1:{port}" in refused(f"--ray=ray://127.0.0.1:{port}")
    assert "a device of a cluster is auto" in refused("--ray", "--device", "tpu")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'tokodec[ray]'" in refused("--ray")
    assert cli.run(["tokenize", str(media), "-o", str(out), "--ray"]) == 2
    assert "--ray is for shards" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- clusters

# For a larger trial: CORPUS_PICTURES=20000 CORPUS_KILLS=3 pytest tests/test_ray.py -k dies
PICTURES, KILLS = int(os.environ.get("CORPUS_PICTURES", 240)), int(os.environ.get("CORPUS_KILLS", 1))
SIZE = max(7, PICTURES // 200)  # samples in a shard
WORLD = 2
MEMORY = 1 << 27  # bytes of objects of a machine


@pytest.fixture(scope="module", autouse=True)
def _own_token() -> Iterator[None]:
    """Clusters of these tests have a token of their own; Ray would keep one in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A head and another machine, two CPUs each, simulated on this one; this process is their driver."""
    package = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 2, "object_store_memory": MEMORY, "_system_config": soon, "include_dashboard": False}
    found = Cluster(True, head_node_args=head)
    found.add_node(num_cpus=2, object_store_memory=MEMORY)
    package.init(address=found.address, log_to_driver=False, logging_level="error")
    yield found
    package.shutdown()
    found.shutdown()


def test_a_cluster_of_its_own_gives_the_bytes_of_one_process(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started and ended by the command; paths are relative, and a bad file is what it is without Ray."""
    package = pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    write_pictures(Path("media"), 70)
    Path("media", "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    options = ("--shard-size", "20", "--workers", "1", "-m", tiny_model, "--device", "cpu")
    assert tokenize("media", "-o", "one", *options) == 2
    assert tokenize("media", "-o", "out", *options, "--ray", "--world", "1") == 2
    assert not package.is_initialized()
    assert shard_bytes(Path("out")) == shard_bytes(Path("one"))
    assert Path("out", "errors.jsonl").read_text() == Path("one", "errors.jsonl").read_text()
    assert "out: 70 samples, 4 shards" in capsys.readouterr().err


def test_the_example_of_the_page_runs(machines: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Ray Data, from files to parquet and back, with pictures of several sizes."""
    import ray as package

    package.data.DataContext.get_current().enable_progress_bars = False
    page = (Path(cluster.__file__).parent / "RAY.md").read_text()
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "read_images" in code]
    code = code.replace("image-grid", str(tiny_model)).replace("num_gpus=1", "num_gpus=0").replace("=4,", "=1,")
    code = code.replace("/data", str(tmp_path))
    pixels = {f"{i}.png": noise(*((24, 32, 3) if i % 3 else (40, 16, 3)), seed=i) for i in range(9)}
    (tmp_path / "photos").mkdir()
    for name, x in pixels.items():
        Image.fromarray(x).save(tmp_path / "photos" / name)
    names: dict[str, Any] = {}
    exec(code, names)
    rows = names["rows"]
    assert sorted(Path(row["path"]).name for row in rows) == sorted(pixels)
    for row in rows:
        found = ray.to_tokens(row["codes"], row["spec"])
        assert torch.equal(found.codes[0], alone(tiny_model, pixels[Path(row["path"]).name]))
    assert names["x_hat"].shape[1] == 3


def on_machines(sources: Any, folder: str | Path, model: Path, **options: Any) -> cluster.ClusterTally:
    sources = [str(source) for source in (sources if isinstance(sources, list) else [sources])]
    given = CorpusOptions(**{"shard_size": str(SIZE), "world": WORLD, "ray": "", **options})
    return cluster.tokenize_on_ray(sources, folder, given, TokenizeOptions(model=str(model), device="cpu"))


def test_parquet_files_and_urls_are_as_without_ray(machines: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Rows are read by the rank, URLs by its readers on any machine; a rank sends its shards where a URL says."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    paths = sorted(write_pictures(tmp_path / "media", 30).rglob("*.png"))
    rows = pa.table({"image": [path.read_bytes() for path in paths[:20]]})
    parquet.write_table(rows, tmp_path / "some.parquet", row_group_size=3)
    (tmp_path / "urls.txt").write_text("".join(f"local://{path}\n" for path in paths[20:]))
    sources, out = [tmp_path / "some.parquet", f"local://{tmp_path}/urls.txt"], f"local://{tmp_path}/out"
    tally = on_machines(sources, out, tiny_model, shard_size="4")
    assert (tally.written, tally.failed, tally.restarts) == (30, 0, 0)
    for rank in range(WORLD):
        made(sources, tmp_path / "one", tiny_model, rank=rank, world=WORLD, shard_size="4")
    assert contents(out) == contents(tmp_path / "one")
    assert len(list((tmp_path / "out").glob("part-0001-*"))) > 2
    again = on_machines(sources, out, tiny_model, shard_size="4", resume=True, world=None)
    assert (again.world, again.written, again.made) == (WORLD, 30, 0)


def test_a_reader_that_dies_loses_its_sample_alone(machines: Any) -> None:
    """What a decoder may do to its process; PyTorch is not loaded to read a picture."""
    readers = cluster.TaskReaders(1, ahead=4)
    items = ["1", "2", "__import__('os')._exit(9)", "'torch' in __import__('sys').modules"]
    assert [result for _, result in readers.map(eval, items, crashed="crashed")] == [1, 2, "crashed", False]
    with pytest.raises(ZeroDivisionError):
        list(readers.map(eval, ["1 / 0"], crashed="crashed"))


def test_machines_with_other_decoders_are_refused(tmp_path: Path) -> None:
    other = {**reader_versions(), "pillow": "1.0"}
    with pytest.raises(UsageError, match="machines of the cluster differ"):
        cluster.call_all(str(tmp_path), other, str, [1])


@pytest.mark.parametrize(
    ("device", "there", "room"),
    [
        ("auto", {"CPU": 9}, 3),
        ("auto", {"CPU": 64, "GPU": 4}, 4),
        ("cpu", {"CPU": 64, "GPU": 4}, 21),
        ("auto", {"CPU": 7, "GPU": 4}, 2),
        ("auto", {"CPU": 2}, "want 3 CPU, the cluster has 2"),
        ("cuda", {"CPU": 64}, "want 1 GPU, the cluster has 0"),
    ],
)
def test_ranks_that_a_cluster_has_room_for(device: str, there: dict[str, int], room: int | str) -> None:
    """With two readers each."""
    package = SimpleNamespace(cluster_resources=lambda: there)
    needed = cluster._bundles(package, CorpusOptions(workers=2), TokenizeOptions(device=device))
    if isinstance(room, int):
        assert cluster._room(package, needed) == room
    else:
        with pytest.raises(UsageError, match=room):
            cluster._room(package, needed)


def test_what_a_rank_refuses_ends_the_run(
    machines: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, as without Ray; what is there is left as it is, and a corpus that goes on keeps its ranks."""
    sources, out = write_pictures(tmp_path / "media", 12, (16, 16)), tmp_path / "out"
    made(sources, out, tiny_model, rank=0, world=1)
    before = shard_bytes(out)
    with pytest.raises(UsageError, match="has shards of rank 0 already: --resume"):
        on_machines(sources, out, tiny_model, workers=0, world=1, shard_size="20")
    tally = on_machines(sources, out, tiny_model, workers=0, world=None, shard_size="20", resume=True)
    assert (tally.world, tally.written, tally.made) == (1, 12, 0)
    with pytest.raises(UsageError, match="want 1001 CPU, the cluster has 4"):
        on_machines(sources, tmp_path / "other", tiny_model, workers=1000)
    assert shard_bytes(out) == before
    assert (out / "_SUCCESS").is_file()
    (out / "_manifest.json").write_text("{")
    monkeypatch.setattr(cluster, "MOST_DEATHS", 1)
    with pytest.raises(MediaError, match="rank 0 died 1 times in a row without a new shard: cannot read"):
        on_machines(sources, out, tiny_model, workers=0, world=1, shard_size="20", resume=True)


class Rank(cluster.Rank):
    """An actor that stops after every few samples until it gets SIGCONT: how far it is does not depend on its speed."""

    def run(self, *plan: Any) -> Tally:
        write, count = run._Writer._write, itertools.count(1)

        def then_stop(*arguments: Any) -> None:
            write(*arguments)
            if next(count) % (3 * SIZE // 7) == 0:  # at all places of a shard
                os.kill(os.getpid(), signal.SIGSTOP)

        run._Writer._write = then_stop  # type: ignore[assignment, method-assign]
        return super().run(*plan)


def state_of(pid: int) -> tuple[str, int]:
    """Letter of its state ("T": stopped) and parent of a process. Raises OSError if it is gone."""
    letter, above, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return letter, int(above)


def stopped_ranks() -> dict[int, int]:
    """Processes of actors on our machines that wait for SIGCONT, and those of the machines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "cmdline").read_bytes().startswith(b"ray::Rank"):
                letter, machine = state_of(int(path.name))
                if letter == "T" and state_of(machine)[1] == os.getpid():
                    found[int(path.name)] = machine
    return found


def wait_until_gone(pid: int) -> None:
    """A process that was killed holds its place for a while, in which it must not be taken for the one after it."""
    with contextlib.suppress(OSError):
        while state_of(pid)[0] not in "ZX":
            time.sleep(0.01)


def test_whatever_dies_every_sample_is_made_once(
    machines: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors by `kill -9`, and machines with all that is on them; the codes are those of undisturbed processes."""
    monkeypatch.setattr(cluster, "Rank", Rank)
    sources, out = write_pictures(tmp_path / "media", PICTURES, (32, 32)), tmp_path / "out"
    chance = random.Random(0)
    part = max(1, PICTURES // SIZE // (4 * KILLS + 2))  # of the shards: all is killed before half of them are there
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(on_machines, sources, out, tiny_model)
        for kill in range(2 * KILLS):
            wanted = kill * part + chance.randint(1, part)
            while True:
                assert not list(out.glob("_rank-*.json"))
                assert not done.done(), done.result()
                ranks = stopped_ranks()
                if len(ranks) == WORLD:  # else one is being started, or at work: the other waits for it
                    if len(list(out.glob("part-*.jsonl"))) >= wanted:
                        break
                    for rank in ranks:
                        os.kill(rank, signal.SIGCONT)
                time.sleep(0.02)
            if kill % 2 == 0:
                dead = chance.choice(sorted(ranks))
                os.kill(dead, signal.SIGKILL)
            else:
                (lost,) = machines.worker_nodes
                machine = lost.all_processes["raylet"][0].process.pid
                (dead,) = (rank for rank, above in ranks.items() if above == machine)
                machines.remove_node(lost, allow_graceful=False)
                os.kill(dead, signal.SIGKILL)  # one that is stopped does not notice that its machine is gone
                machines.add_node(num_cpus=2, object_store_memory=MEMORY)
            wait_until_gone(dead)
        while not done.done():
            for rank in stopped_ranks():
                os.kill(rank, signal.SIGCONT)
            time.sleep(0.02)
        tally = done.result()
    print(tally.note)
    assert tally.restarts == 2 * KILLS
    assert (tally.written, tally.failed) == (PICTURES, 0)
    assert list(verify(out, [str(sources)])) == []
    for rank in range(WORLD):
        made(sources, tmp_path / "one", tiny_model, rank=rank, world=WORLD, shard_size=str(SIZE))
    assert shard_bytes(out) == shard_bytes(tmp_path / "one")
    assert not list(out.glob(".tokodec-*.tmp"))
