"""Files of every released format version still decode to the same codes, and bad ones are refused by name."""

import hashlib
import inspect
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokodec.codec import errors
from tokodec.codec.container import fields as container_fields
from tokodec.codec.container.chunks import ALPH, EXIF, ICCP, LAYR
from tokodec.codec.container.read import read_tok
from tokodec.codec.container.write import write_tok
from tokodec.codec.decode import decode_file, file_tokens
from tokodec.codec.image import photo_file as photo
from tokodec.codec.image.format import Extras
from tokodec.codec.image.photo_file import photo_file
from tokodec.codec.image.quality import QualityFormat, read_walks
from tokodec.codec.image.segments import compress_tokens
from tokodec.codec.models import Model, load_model
from tokodec.entropy.context.prior import ContextPrior
from tokodec.entropy.packed import read
from tokodec.tokenizers.image.photo import ImagePhoto

GOLDEN = Path(__file__).resolve().parent / "golden"
EXPECTED: dict[str, dict[str, Any]] = json.loads((GOLDEN / "expected.json").read_text())
CONTEXT = GOLDEN / "context"
EXPECTED_CONTEXT: dict[str, dict[str, Any]] = json.loads((CONTEXT / "expected.json").read_text())
PHOTO = GOLDEN / "photo"
EXPECTED_PHOTO: dict[str, dict[str, Any]] = json.loads((PHOTO / "expected.json").read_text())
BAD = sorted((GOLDEN / "bad").glob("*.tok"))


def test_every_golden_file_has_its_expectation() -> None:
    assert {path.stem for path in GOLDEN.glob("*.tok")} == set(EXPECTED)
    assert {path.stem for path in GOLDEN.glob("*.png")} == set(EXPECTED)


def test_golden_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 480_000


def test_model_hashes_are_those_of_the_files(tiny_model: Path) -> None:
    """A golden file names the model by hash: an edited fixture would make all of them undecodable."""
    model = load_model(str(tiny_model))
    for kind, found in (("model", model.tokenizer.weights_hash), ("prior", model.prior.hash)):
        assert found == hashlib.sha256(read(tiny_model / f"{kind}.safetensors")).hexdigest()[:16]
    for name in EXPECTED:
        header = read_tok((GOLDEN / f"{name}.tok").read_bytes()).picture
        assert (header.weights_hash, header.prior_hash) == (model.tokenizer.weights_hash, model.prior.hash)


@pytest.mark.parametrize("name", EXPECTED)
def test_codes(name: str, tiny_model: Path) -> None:
    tok = read_tok((GOLDEN / f"{name}.tok").read_bytes())
    tokens, _ = file_tokens(tok, str(tiny_model), "cpu")
    assert tok.problems == []
    assert tok.complete
    assert list(tokens.codes.shape) == EXPECTED[name]["shape"]
    digest = hashlib.sha256(tokens.codes.numpy().astype("<i4").tobytes()).hexdigest()[:32]
    assert digest == EXPECTED[name]["codes"]


@pytest.mark.parametrize("name", EXPECTED)
def test_the_same_codes_give_the_same_bytes(name: str, tiny_model: Path) -> None:
    """Entropy coder and container together, without the networks."""
    data = (GOLDEN / f"{name}.tok").read_bytes()
    assert len(data) == EXPECTED[name]["bytes"]
    tok = read_tok(data)
    tokens, model = file_tokens(tok, str(tiny_model), "cpu")
    layers = compress_tokens(tokens, model)
    for k, row in enumerate(layers):
        for s, payload in enumerate(row):
            assert payload == tok.payload(LAYR, k, s)
    if name != "extras":  # zlib's output may change between its versions
        assert write_tok(tok.picture, layers) == data


@pytest.mark.parametrize("name", EXPECTED)
def test_pixels(name: str, tiny_model: Path) -> None:
    """Networks may round differently on another machine: one step of 255."""
    decoded = decode_file(GOLDEN / f"{name}.tok", model=str(tiny_model), device="cpu")
    pixels = decoded.picture.pixels
    with Image.open(GOLDEN / f"{name}.png") as im:
        expected = np.asarray(im).reshape(*pixels.shape[:2], -1)[..., : pixels.shape[2]]
    assert pixels.shape == expected.shape
    assert int(np.abs(pixels.astype(int) - expected.astype(int)).max()) <= 1
    assert decoded.problems == []


def test_gray_stays_gray(tiny_model: Path) -> None:
    assert decode_file(GOLDEN / "gray.tok", model=str(tiny_model)).picture.pixels.shape == (20, 33, 1)


def test_alpha_profile_and_exif(tiny_model: Path) -> None:
    tok = read_tok((GOLDEN / "extras.tok").read_bytes())
    assert all(tok.payload(kind) is not None for kind in (ALPH, ICCP, EXIF))
    decoded = decode_file(GOLDEN / "extras.tok", model=str(tiny_model))
    alpha = np.zeros((40, 24), np.uint8)
    alpha[8:30, 5:20] = 200
    assert decoded.picture.alpha is not None
    assert np.array_equal(decoded.picture.alpha, alpha)
    assert decoded.picture.icc is not None
    assert decoded.picture.icc[36:40] == b"acsp"  # signature of a profile
    assert decoded.picture.exif is not None
    assert b"a golden picture\0" in decoded.picture.exif
    assert decoded.picture.bit_depth == 16
    assert decoded.notes == []
    assert decoded.picture.notes == ["decoded to 8 bits, the source had 16"]


def test_the_picture_of_several_segments_has_an_index() -> None:
    tok = read_tok((GOLDEN / "segments.tok").read_bytes())
    assert tok.picture.n_segments == 2
    assert tok.indexed


def test_the_coarse_file_holds_two_of_three_levels(tiny_model: Path) -> None:
    decoded = decode_file(GOLDEN / "coarse.tok", model=str(tiny_model))
    assert (decoded.levels, decoded.layers) == (2, 2)
    assert len(load_model(str(tiny_model)).tokenizer.codebook_sizes) == 3


def test_codes_do_not_depend_on_the_number_of_threads(tiny_model: Path) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            tok = read_tok((GOLDEN / "coarse.tok").read_bytes())
            found.append(file_tokens(tok, str(tiny_model), "cpu")[0].codes)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


# --------------------------------------------------------------------------------------------------- context prior


def test_every_context_file_has_its_expectation() -> None:
    assert {path.stem for path in CONTEXT.glob("*.tok")} == set(EXPECTED_CONTEXT) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED_CONTEXT)
def test_context_files_decode_to_their_codes_by_their_tables(name: str) -> None:
    tok = read_tok((CONTEXT / f"{name}.tok").read_bytes())
    assert (tok.picture.prior, tok.picture.prior_hash) == (2, load_model(str(CONTEXT)).prior.hash)
    tokens, model = file_tokens(tok, str(CONTEXT), "cpu")
    assert tok.problems == []
    expected = EXPECTED_CONTEXT[name]
    assert hashlib.sha256(tokens.codes.numpy().astype("<i4").tobytes()).hexdigest()[:32] == expected["codes"]
    assert isinstance(model.prior, ContextPrior)
    if tok.picture.n_segments == 1:
        assert model.prior.tables_hash(tokens.codes[0].numpy()) == expected["tables"]
    layers = compress_tokens(tokens, model)
    assert [[tok.payload(LAYR, k, s) for s in range(len(row))] for k, row in enumerate(layers)] == layers
    assert len((CONTEXT / f"{name}.tok").read_bytes()) == expected["bytes"]


def test_the_same_codes_whichever_prior(tiny_model: Path) -> None:
    for name in EXPECTED:
        assert EXPECTED_CONTEXT[name]["codes"] == EXPECTED[name]["codes"]


def test_context_files_want_their_prior(tiny_model: Path) -> None:
    with pytest.raises(errors.ModelError, match="no entropy model 'context', only 'static'"):
        decode_file(CONTEXT / "gray.tok", model=str(tiny_model), device="cpu")


# ------------------------------------------------------------------------------------------------ quality as the dial


@pytest.fixture(scope="module")
def photo_tokenizer() -> ImagePhoto:
    tokenizer = load_model(str(PHOTO)).tokenizer
    assert isinstance(tokenizer, ImagePhoto)
    return tokenizer


def write_as(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer may choose the number of layers; golden files are too small for ours to choose more than one."""
    monkeypatch.setattr(photo, "LAYERS", ((float("inf"), layers),))


def test_every_photo_file_has_its_expectation() -> None:
    assert {path.stem for path in PHOTO.glob("*.tok")} == set(EXPECTED_PHOTO)
    assert {path.stem for path in PHOTO.glob("*.png")} == set(EXPECTED_PHOTO)


def test_photo_model_hashes_are_those_of_the_files(photo_tokenizer: ImagePhoto) -> None:
    files = [PHOTO / f"{kind}.safetensors" for kind in ("model", "hyperprior")]
    model_hash, prior_hash = (hashlib.sha256(read(path)).hexdigest()[:16] for path in files)
    assert (photo_tokenizer.weights_hash, photo_tokenizer.entropy.hash) == (model_hash, prior_hash)
    for name, expected in EXPECTED_PHOTO.items():
        header = read_tok((PHOTO / f"{name}.tok").read_bytes()).picture
        assert (header.weights_hash, header.prior, header.prior_hash) == (model_hash, 3, prior_hash)
        assert (header.model, header.segment, header.layers) == ("tiny-photo", 64, expected["layers"])
        assert header.quality == round(100 * expected["quality"])


@pytest.mark.parametrize("name", EXPECTED_PHOTO)
def test_photo_files_decode_to_their_codes_and_latents(name: str, photo_tokenizer: ImagePhoto) -> None:
    """Both exactly, on every machine: latents are multiples of 1/16."""
    expected = EXPECTED_PHOTO[name]
    tok = read_tok((PHOTO / f"{name}.tok").read_bytes())
    tokens, _ = file_tokens(tok, str(PHOTO), "cpu")
    walks, held = read_walks(tok, photo_tokenizer)
    assert (tok.problems, tok.complete, held) == ([], True, expected["layers"])
    assert list(tokens.codes.shape) == expected["shape"]
    assert tokens.spec.quality == expected["quality"]
    assert hashlib.sha256(tokens.codes.numpy().astype("<i4").tobytes()).hexdigest()[:32] == expected["codes"]
    digest = hashlib.sha256()
    for _, walk in walks:
        digest.update((16 * walk.latents).astype("<i4").tobytes())
    assert digest.hexdigest()[:32] == expected["latents"]
    assert all(np.array_equal(16 * walk.latents, np.round(16 * walk.latents)) for _, walk in walks)


@pytest.mark.parametrize("name", EXPECTED_PHOTO)
def test_photo_codes_give_the_same_bytes(
    name: str, photo_tokenizer: ImagePhoto, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (PHOTO / f"{name}.tok").read_bytes()
    assert len(data) == EXPECTED_PHOTO[name]["bytes"]
    write_as(EXPECTED_PHOTO[name]["layers"], monkeypatch)
    tok = read_tok(data)
    header = tok.picture
    tokens, _ = file_tokens(tok, str(PHOTO), "cpu")
    if (header.alpha, header.channels, header.bit_depth) == (0, 3, 8):
        assert QualityFormat().pack(tokens, Model(photo_tokenizer, photo_tokenizer.entropy)) == data
    walks = [
        photo_tokenizer.entropy.walk(walk.z, walk.codes, header.quality)
        for _, walk in read_walks(tok, photo_tokenizer)[0]
    ]
    metadata = Extras(header.channels, header.bit_depth, tok.payload(ALPH))
    again = photo_file(photo_tokenizer, walks, header.quality, (header.height, header.width), metadata)
    assert name == "extras" or again == data  # zlib's output may change between its versions
    for segment in range(header.n_segments):
        for layer in range(header.layers):
            assert read_tok(again).payload(LAYR, layer, segment) == tok.payload(LAYR, layer, segment)


@pytest.mark.parametrize("name", EXPECTED_PHOTO)
def test_photo_pixels(name: str) -> None:
    decoded = decode_file(PHOTO / f"{name}.tok", model=str(PHOTO), device="cpu")
    pixels = decoded.picture.pixels
    with Image.open(PHOTO / f"{name}.png") as im:
        expected = np.asarray(im).reshape(*pixels.shape[:2], -1)[..., : pixels.shape[2]]
    assert pixels.shape == expected.shape
    assert int(np.abs(pixels.astype(int) - expected.astype(int)).max()) <= 1
    assert decoded.problems == []


def test_photo_files_show_every_path(photo_tokenizer: ImagePhoto) -> None:
    """Codes that are skipped, codes beyond their table, many tables, hyper latents other than zero."""
    excess = skipped = 0
    scales: set[int] = set()
    hyper: set[int] = set()
    for name in EXPECTED_PHOTO:
        tok = read_tok((PHOTO / f"{name}.tok").read_bytes())
        for _, walk in read_walks(tok, photo_tokenizer)[0]:
            steps = photo_tokenizer.entropy.walk(walk.z, walk.codes, tok.picture.quality).steps
            skipped += walk.codes.size - sum(step.codes.size for step in steps)
            for step in steps:
                excess += int((np.abs(step.codes) > photo_tokenizer.entropy.reach[step.tables]).sum())
                scales |= set(step.tables.tolist())
            hyper |= set(walk.z.flatten().tolist())
    assert excess > 10
    assert skipped > 10
    assert len(scales) > 32
    assert len(hyper) > 3


def test_photo_extras() -> None:
    decoded = decode_file(PHOTO / "extras.tok", model=str(PHOTO))
    assert decoded.picture.alpha is not None
    assert decoded.picture.alpha[8:30, 5:20].min() == 200
    assert int(decoded.picture.alpha.astype(int).sum()) == 200 * 22 * 15
    assert decoded.picture.icc is not None
    assert decoded.picture.exif is not None
    assert b"a golden picture\0" in decoded.picture.exif
    assert decoded.picture.notes == ["decoded to 8 bits, the source had 16"]
    assert decode_file(PHOTO / "gray.tok", model=str(PHOTO)).picture.pixels.shape == (20, 33, 1)
    assert read_tok((PHOTO / "segments.tok").read_bytes()).header.n_segments == 2


def test_photo_codes_do_not_depend_on_the_number_of_threads(photo_tokenizer: ImagePhoto) -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            walks, _ = read_walks(read_tok((PHOTO / "segments.tok").read_bytes()), photo_tokenizer)
            found.append(np.concatenate([walk.latents for _, walk in walks], 2))
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])


# ------------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_file_is_refused_by_name(path: Path, tiny_model: Path) -> None:
    with pytest.raises(errors.TokodecError) as caught:
        decode_file(path, model=str(tiny_model), device="cpu")
    assert type(caught.value).__name__ == path.stem.split("_")[0]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_format_error_has_a_bad_file() -> None:
    classes = {name for name, c in inspect.getmembers(errors, inspect.isclass) if errors.FormatError in c.__mro__[1:]}
    assert classes | {"ModelError", "WeightsMismatchError"} == {path.stem.split("_")[0] for path in BAD}


def test_a_huge_picture_is_refused_before_anything_of_its_size_is_allocated(tiny_model: Path) -> None:
    load_model(str(tiny_model))
    tracemalloc.start()
    try:
        for path in BAD:
            with pytest.raises(errors.TokodecError):
                decode_file(path, model=str(tiny_model), device="cpu", max_pixels=1 << 28)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_lying_stride_costs_no_memory(tiny_model: Path) -> None:
    """A stride of 1 asks for 256 times the codes that the picture has; it is refused before they are allocated."""
    tok = read_tok((GOLDEN / "gray.tok").read_bytes())
    fields = {**vars(tok.picture), "height": 2000, "width": 2000, "stride": 1, "segment": 128}
    header = container_fields.ImageHeader(**fields)
    data = write_tok(header, [[b""] * header.n_segments for _ in range(header.layers)])
    tracemalloc.start()
    try:
        with pytest.raises(errors.ChunkError, match="stride"):
            file_tokens(read_tok(data), str(tiny_model), "cpu")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # the codes would take 96 MB
    finally:
        tracemalloc.stop()
