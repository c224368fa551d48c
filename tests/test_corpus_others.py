"""Shards as the packages that people train with read them, and sequences that are composed from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokodec.codec import cli
from tokodec.codec.corpus.compose import compose
from tokodec.codec.corpus.manifest import Corpus
from tokodec.codec.corpus.megatron import read_megatron
from tokodec.codec.errors import MediaError, OutputExistsError, UsageError, WeightsMismatchError
from tokodec.codec.models import load_model
from tokodec.codec.options import CORPUS_FORMATS, CORPUS_PATTERNS
from tokodec.tests.test_corpus_shards import made, write_pictures
from tokodec.tests.test_datasets import write_sound
from tokodec.tokenizers.sequence import PATTERNS, ROWS


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("media") / "pictures", 9)


def samples(folder: Path, model: Any = None) -> dict[str, torch.Tensor]:
    corpus = Corpus(folder, model)
    found = dict(corpus.sample(i) for i in range(len(corpus)))
    return {key: tokens.codes for key, tokens in found.items()}


def test_webdataset_reads_them(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A pipeline over all shards, in order and shuffled."""
    webdataset = pytest.importorskip("webdataset")
    made(pictures, tmp_path, tiny_model, shard_size="4")
    ours = samples(tmp_path)
    urls = str(tmp_path / "part-0000-{0000..0002}.tar")
    for shuffled in (False, True):
        dataset = webdataset.WebDataset(urls, shardshuffle=3 if shuffled else False, seed=0).shuffle(4 * shuffled)
        found = list(dataset.decode())
        assert sorted(sample["__key__"] for sample in found) == sorted(ours)
        assert shuffled or [sample["__key__"] for sample in found] == list(ours)
        for sample in found:
            assert torch.equal(torch.from_numpy(sample["codes.npy"]).long(), ours[sample["__key__"]])
            assert sample["json"]["spec"]["model"] == "tiny"


def test_datasets_reads_them(pictures: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Hugging Face, from a table and as a stream; rows of ours can be joined by their key."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    made(pictures, tmp_path / "out", tiny_model, shard_size="4", format="parquet")
    ours = samples(tmp_path / "out")
    files = {"train": [str(path) for path in sorted((tmp_path / "out").glob("*.parquet"))]}
    for streaming in (False, True):
        cache = str(tmp_path / "cache")
        found = datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming, cache_dir=cache)
        assert [row["key"] for row in found] == list(ours)
        for row in found:
            assert torch.equal(torch.tensor(row["codes"]).view(row["shape"]), ours[row["key"]])
            assert json.loads(row["spec"])["model"] == "tiny"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_megatron_reads_them(pattern: Any, pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The class itself, over the index: sequences, documents, and a part of a sequence."""
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    made(pictures, tmp_path, tiny_model, shard_size="5", format="megatron", pattern=pattern)
    for stem in ("part-0000-0000", "part-0000-0001"):
        theirs, ours = indexed.IndexedDataset(str(tmp_path / stem)), read_megatron(tmp_path / stem)
        assert len(theirs) == len(ours.lengths)
        assert theirs.document_indices.tolist() == [*range(len(ours) + 1)]
        for i in range(len(theirs)):
            assert np.array_equal(theirs[i], ours.sequence(i).flatten())
            assert np.array_equal(theirs.get(i, 2, 3), ours.sequence(i).flatten()[2:5])


# ----------------------------------------------------------------------------------------------------------- compose


def test_the_patterns_of_options_are_those_of_sequences() -> None:
    assert CORPUS_PATTERNS == PATTERNS


@pytest.mark.parametrize("format", CORPUS_FORMATS)
def test_composed_sequences_are_those_of_tokenize(
    format: str, pictures: Path, golden: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Byte for byte, in every pattern and with digits, from shards of every format."""
    if format == "parquet":
        pytest.importorskip("pyarrow")
    model = golden / "context"
    made(pictures, tmp_path / "codes", model, shard_size="4", format=format)
    for pattern in PATTERNS:
        direct, out = tmp_path / pattern, tmp_path / "train.bin"
        made(pictures, direct, model, shard_size="100", format="megatron", pattern=pattern, digits=True)
        arguments = ["corpus", "compose", str(tmp_path / "codes"), "--pattern", pattern, "--digits", "-f"]
        assert cli.run([*arguments, "-o", str(out), "-m", str(model)]) == 0
        assert "9 samples, 9 sequences" in capsys.readouterr().err
        for suffix in (".bin", ".idx", ".json"):
            assert out.with_suffix(suffix).read_bytes() == (direct / f"part-0000-0000{suffix}").read_bytes()


def test_several_corpora_and_fewer_levels(sound_model: Path, tmp_path: Path) -> None:
    """Sounds in stereo are two sequences of a document."""
    for name, channels in (("a", 1), ("b", 2)):
        write_sound(tmp_path / f"{name}.wav", 5000, channels)
        made(tmp_path / f"{name}.wav", tmp_path / name, sound_model)
    folders = [tmp_path / "a", tmp_path / "b"]
    done = compose(folders, tmp_path / "train.bin", "delay", levels=2, model=str(sound_model))
    corpus = read_megatron(tmp_path / "train.bin")
    assert (len(done), corpus.names, len(corpus.lengths)) == (2, ["a", "b"], 3)
    for i, folder in enumerate(folders):
        _, tokens = Corpus(folder).sample(0)
        assert torch.equal(corpus.tokens(i).codes, tokens.levels(2).codes)
    assert corpus.sequence(0).shape[1] == 2
    assert "delay" in ROWS


def test_what_is_not_composed(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    made(pictures, tmp_path / "a", tiny_model)
    with pytest.raises(UsageError, match=r"a \.bin file"):
        compose([tmp_path / "a"], tmp_path / "train.tar")
    with pytest.raises(UsageError, match="holds a corpus"):
        compose([tmp_path / "a"], tmp_path / "a" / "train.bin")
    with pytest.raises(UsageError, match="unknown pattern"):
        compose([tmp_path / "a"], tmp_path / "train.bin", "diagonal")
    with pytest.raises(UsageError, match="no digits"):
        compose([tmp_path / "a"], tmp_path / "train.bin", digits=True, model=str(tiny_model))
    with pytest.raises(UsageError, match="not a finished corpus"):
        compose([tmp_path / "b"], tmp_path / "train.bin")
    model = load_model(str(tiny_model)).tokenizer
    type(model)(model.config, "tiny").save_pretrained(tmp_path / "other")
    made(pictures, tmp_path / "b", tmp_path / "other")
    with pytest.raises(WeightsMismatchError, match="b: tokens of tiny"):
        compose([tmp_path / "a", tmp_path / "b"], tmp_path / "train.bin")
    shard = tmp_path / "a" / "part-0000-0000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match="part-0000-0000"):
        compose([tmp_path / "a"], tmp_path / "train.bin")
    assert not list(tmp_path.glob("train*"))
    shard.write_bytes(whole)
    compose([tmp_path / "a"], tmp_path / "train.bin")
    with pytest.raises(OutputExistsError):
        compose([tmp_path / "a"], tmp_path / "train.bin")
