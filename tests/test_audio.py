"""The audio tokenizer: causal, the same in chunks as at once, and any prefix of its codes decodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.audio import grvq
from tokodec.tokenizers.audio.causal import CausalBlock, CausalConv1d, CausalSequential, Fold, State, Unfold
from tokodec.tokenizers.audio.grvq import (
    FRAME,
    HOP,
    LATENCY,
    RATE,
    WINDOW,
    AudioGRVQ,
    AudioGRVQConfig,
    Blocks,
    StreamingDecoder,
    StreamingEncoder,
)
from tokodec.tokenizers.quantize.base import ABSENT

SMALL = AudioGRVQConfig(
    analysis_channels=(12, 16), analysis_blocks=(1, 1), synthesis_channels=(16, 12), synthesis_blocks=(1, 1), dim=8,
    groups=2, codebook_sizes=(32, 16),
)  # fmt: skip


@pytest.fixture
def model() -> AudioGRVQ:
    """Random weights, none of them zero, so that every layer matters."""
    torch.manual_seed(0)
    found = AudioGRVQ(SMALL, "small").eval()
    for p in found.parameters():
        if p.ndim > 1 and not bool(p.detach().any()):
            nn.init.normal_(p, std=0.2)
    return found


def sound(samples: int, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(batch, 1, samples, generator=generator)


# -------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (7, 1, 1), (7, 1, 4), (4, 4, 1), (8, 4, 1)])
def test_a_convolution_in_parts_is_the_whole(kernel: int, stride: int, groups: int) -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(4, 8, kernel, stride, groups)
    x = torch.randn(2, 4, 40)
    whole = layer(x)
    assert whole.shape == (2, 8, 40 // stride)
    state = State()
    parts = torch.cat([layer(part, state) for part in x.split([4, 16, 8, 12], 2)], 2)
    assert torch.allclose(parts, whole, atol=1e-6)
    for t in range(40 // stride):  # output t sees inputs up to its own stride and none later
        changed = x.clone()
        changed[:, :, stride * (t + 1) :] += 1
        assert torch.allclose(layer(changed)[:, :, : t + 1], whole[:, :, : t + 1], atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "stride", "out", "groups", "bias"),
    [
        (1, 1, 8, 1, True), (1, 1, 4, 4, True), (7, 1, 4, 4, True), (7, 1, 4, 4, False), (7, 1, 8, 4, True),
        (3, 1, 8, 2, True), (4, 4, 8, 1, True), (8, 4, 8, 1, False), (8, 4, 4, 4, True),
    ],
)  # fmt: skip
def test_steps_are_the_whole(kernel: int, stride: int, out: int, groups: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = CausalConv1d(4, out, kernel, stride, groups, bias)
    x = torch.randn(2, 4, 40)
    state = State()
    parts = [layer.step(part.transpose(1, 2), state).transpose(1, 2) for part in x.split([4, 16, 8, 12], 2)]
    assert torch.allclose(torch.cat(parts, 2), layer(x), atol=1e-6)


def test_a_kernel_must_see_every_input() -> None:
    with pytest.raises(ValueError, match="leaves inputs out"):
        CausalConv1d(1, 1, 3, 4)


def test_blocks_start_as_the_identity_and_keep_states_apart() -> None:
    block = CausalBlock(6)
    x = torch.randn(1, 6, 20)
    assert torch.equal(block(x), x)
    nn.init.normal_(block.down.weight)
    net = CausalSequential([block, CausalBlock(6)])
    first, second = State(), State()
    a = net(x[:, :, :10], first)
    net(torch.randn(1, 6, 7), second)  # another stream of the same layers
    assert torch.allclose(torch.cat([a, net(x[:, :, 10:], first)], 2), net(x), atol=1e-6)


def test_folding_is_undone() -> None:
    x = torch.randn(2, 3, 20)
    folded = Fold(5)(x)
    assert folded.shape == (2, 15, 4)
    assert torch.equal(Unfold(5)(folded), x)
    assert torch.equal(folded[0, :, 0].view(5, 3), x[0, :, :5].T)
    rows, state = x.transpose(1, 2), State()
    assert torch.equal(Fold(5).step(rows, state), folded.transpose(1, 2))
    assert torch.equal(Unfold(5).step(folded.transpose(1, 2), state), rows)


# --------------------------------------------------------------------------------------------------------------- model


@pytest.mark.parametrize("samples", [1, FRAME - 1, FRAME, FRAME + 1, 5 * FRAME + 77])
def test_every_sample_comes_back(model: AudioGRVQ, samples: int) -> None:
    tokens = model.encode(sound(samples))
    assert tokens.codes.shape == (1, 4, -(-samples // FRAME))
    assert tokens.spec.size == (samples,)
    assert tokens.spec.grid == tuple(tokens.codes.shape[2:])
    assert (tokens.spec.sample_rate, tokens.spec.strides, tokens.spec.modality) == (RATE, (FRAME,), "audio")
    x_hat = model.decode(tokens)
    assert x_hat.shape == (1, 1, samples)
    assert bool(x_hat.isfinite().all())


def test_fewer_levels_are_searched_for_themselves(model: AudioGRVQ) -> None:
    x = sound(4 * FRAME)
    whole = model.encode(x)
    z = model.analysis(x)
    for n in range(1, 5):
        tokens = model.encode(x, n)
        assert tokens.codes.shape[1] == n
        assert model.decode(tokens).shape == x.shape  # also where the last level has one of its groups only
        assert model.decode(whole.levels(n)).shape == x.shape
        if n % 2 == 0:
            own, cut = (model.errors(z, codes)[:, -1].sum() for codes in (tokens.codes, whole.codes[:, :n]))
            assert own <= cut
            assert torch.equal(model.encode(x, seen=n).codes[:, :n], tokens.codes)
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=r"levels must be 1 to 4"):
            model.encode(x, wrong)


def test_codes_look_back_only(model: AudioGRVQ) -> None:
    x = sound(6 * FRAME)
    codes = model.encode(x).codes
    changed = x.clone()
    changed[:, :, 3 * FRAME :] = sound(3 * FRAME, seed=1)
    found = model.encode(changed).codes
    assert torch.equal(found[:, :, :3], codes[:, :, :3])
    assert not torch.equal(found[:, :, 3:], codes[:, :, 3:])


def test_samples_wait_for_the_overlap_and_no_longer(model: AudioGRVQ) -> None:
    """A change of frame 3 changes samples from ``HOP`` before it on, and nothing before."""
    z = torch.randn(1, SMALL.dim, 6)
    before = model.synthesise(z)
    z[:, :, 3] += 1
    moved = (model.synthesise(z) - before).abs()[0, 0] > 1e-7
    first = int(moved.nonzero()[0])
    assert 3 * FRAME - HOP <= first < 3 * FRAME
    # Such a sample is known once frame 3 is: its last sample is LATENCY - 1 later.
    assert 4 * FRAME - 1 - (3 * FRAME - HOP) == LATENCY - 1


def test_pieces_overlap(model: AudioGRVQ) -> None:
    """Block i is the sum of the last part of piece i - 2, ..., and the first one of piece i + 1, each with its gain."""
    parts = torch.randn(1, WINDOW + 1, 5)
    pieces = model.pieces(parts)
    assert torch.allclose(pieces, (parts[:, :-1] * parts[:, -1:].exp()).transpose(1, 2))
    blocks = model.overlap(pieces)
    assert blocks.shape == (1, 8, HOP)
    split = pieces.unflatten(2, (4, HOP))[0]
    assert torch.allclose(blocks[0, 4], split[1, 3] + split[2, 2] + split[3, 1] + split[4, 0], atol=1e-6)
    assert torch.allclose(blocks[0, 7], split[4, 3], atol=1e-6)


def test_blocks_are_their_shape_and_their_loudness() -> None:
    torch.manual_seed(0)
    layer = Blocks(9)
    x = 0.1 * torch.randn(2, 1, 8 * HOP)
    found = layer(x)
    assert found.shape == (2, 9, 8)
    louder = layer(5 * x)
    assert torch.allclose(louder[:, :-1], found[:, :-1], atol=1e-3)
    assert torch.allclose(louder[:, -1], found[:, -1] + torch.tensor(5.0).log(), atol=1e-3)
    assert torch.allclose(found[0, -1, 5].exp(), x[0, 0, 2 * HOP : 6 * HOP].square().mean().sqrt(), rtol=1e-4)
    assert bool(layer(torch.zeros(1, 1, HOP)).isfinite().all())
    state = State()
    parts = torch.cat([layer(part, state) for part in x.split([HOP, 4 * HOP, 3 * HOP], 2)], 2)
    assert torch.allclose(parts, found, atol=1e-6)
    state = State()
    steps = [layer.step(part.transpose(1, 2), state) for part in x.split([HOP, 4 * HOP, 3 * HOP], 2)]
    assert torch.allclose(torch.cat(steps, 1).transpose(1, 2), found, atol=1e-5)


@pytest.mark.parametrize("few", [0, 4, 32])  # all chunks by convolutions, both ways in turn, all in steps
@pytest.mark.parametrize("chunks", [[1000], [1, 2, 317, 680], [FRAME] * 3 + [40], [77] * 13])
def test_a_stream_is_the_whole(model: AudioGRVQ, chunks: list[int], few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grvq, "FEW", few)
    x = sound(sum(chunks), batch=2)
    tokens = model.encode(x, 3)
    expected = model.decode(tokens)
    encoder, decoder = StreamingEncoder(model, 3), StreamingDecoder(model)
    codes, samples, pushed, given = [], [], 0, 0
    for part in x.split(chunks, 2):
        codes.append(encoder.push(part))
        samples.append(decoder.push(codes[-1]))
        pushed, given = pushed + part.shape[2], given + samples[-1].shape[2]
        assert pushed - given < LATENCY
    codes.append(encoder.finish())
    samples += [decoder.push(codes[-1]), decoder.finish()]
    assert torch.equal(torch.cat(codes, 2), tokens.codes)
    found = torch.cat(samples, 2)
    assert found.shape[2] == FRAME * tokens.codes.shape[2]
    assert torch.allclose(found[:, :, : x.shape[2]], expected, atol=1e-5)


def test_streams_follow_the_weights(model: AudioGRVQ) -> None:
    """Weights that are loaded between two streams, or into the model of one, are those that count."""
    encoder, decoder = StreamingEncoder(model), StreamingDecoder(model)
    decoder.push(encoder.push(sound(FRAME)))
    for p in model.quantizer.parameters():
        nn.init.normal_(p)
    z = encoder.latents(sound(2 * FRAME))
    codes = model.codes(z)
    assert torch.equal(model.codes(z, None, encoder.quantizer), codes)
    assert torch.equal(decoder.quantizer.decode(codes), model.quantizer.decode(codes))


def test_streams_run_under_autocast(model: AudioGRVQ) -> None:
    encoder, decoder = StreamingEncoder(model), StreamingDecoder(model)
    x = sound(4 * FRAME)
    with torch.autocast("cpu", torch.bfloat16):
        samples = [decoder.push(encoder.push(part)) for part in x.split(FRAME, 2)]
    assert torch.cat([*samples, decoder.finish()], 2).shape == x.shape


def test_streams_hold_no_more_than_they_need(model: AudioGRVQ) -> None:
    encoder, decoder = StreamingEncoder(model), StreamingDecoder(model)

    def held() -> int:
        states = [*encoder.state._past.values(), *decoder.state._past.values()]
        kept = [t for t in (encoder.rest, decoder.tail) if t is not None]
        return sum(t.numel() for t in [*states, *kept])

    sizes = []
    for i in range(6):
        decoder.push(encoder.push(sound(2 * FRAME, seed=i)))
        sizes.append(held())
    assert len(set(sizes[1:])) == 1


def test_a_stream_needs_something(model: AudioGRVQ) -> None:
    for stream in (StreamingEncoder(model), StreamingDecoder(model)):
        with pytest.raises(ValueError, match="nothing was pushed"):
            stream.finish()
    assert StreamingEncoder(model, 2).push(sound(5)).shape == (1, 2, 0)


def test_a_batch_of_lengths_is_each_alone(model: AudioGRVQ) -> None:
    lengths = [5 * FRAME, 2 * FRAME + 9, 1]
    x = sound(5 * FRAME, batch=3)
    tokens = model.encode(x, lengths=lengths)
    x_hat = model.decode(tokens, lengths=lengths)
    for i, n in enumerate(lengths):
        alone = model.encode(x[i : i + 1, :, :n])
        frames = alone.codes.shape[2]
        assert torch.equal(tokens.codes[i : i + 1, :, :frames], alone.codes)
        assert bool((tokens.codes[i, :, frames:] == ABSENT).all())
        assert torch.allclose(x_hat[i, :, :n], model.decode(alone)[0], atol=1e-5)
        assert not bool(x_hat[i, :, n:].any())
    for wrong in ([1, 2], [0, 1, 1], [5 * FRAME + 1, 1, 1]):
        with pytest.raises(ValueError, match="lengths are one for each signal"):
            model.encode(x, lengths=wrong)


@pytest.mark.parametrize("shape", [(1, 100), (1, 2, 100), (0, 1, 100), (1, 1, 0)])
def test_other_shapes_are_refused(model: AudioGRVQ, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"sounds are a float tensor \[B, 1, n\]"):
        model.encode(torch.zeros(shape))


def test_save_and_load(model: AudioGRVQ, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, AudioGRVQ)
    assert loaded.config == SMALL
    x = sound(900)
    tokens = loaded.encode(x)
    assert tokens.spec.weights_hash == loaded.weights_hash != ""
    assert loaded.decode(tokens).shape == x.shape
    with pytest.raises(ValueError, match="tokens of small"):
        AudioGRVQ(SMALL, "other").decode(tokens)


@pytest.mark.parametrize(
    "change",
    [
        {"analysis_channels": (8,)},
        {"analysis_blocks": (1,)},
        {"synthesis_blocks": (8,)},
        {"groups": 3},
        {"codebook_sizes": ()},
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"entries each|evenly into groups"):
        AudioGRVQConfig(**{"dim": 8, **change})  # type: ignore[arg-type]


def test_sound_can_be_trained_in_all_its_parts() -> None:
    torch.manual_seed(0)
    model = AudioGRVQ(SMALL).train()
    x = sound(4 * FRAME, batch=3)
    out = model.quantizer(model.analysis(x), n_codes=torch.tensor([1, 2, 4]))
    assert [int((codes[:, 0] != ABSENT).sum()) for codes in out.codes] == [1, 2, 4]
    loss = (model.synthesise(out.z_q) - x).square().mean() + out.commitment_loss + out.codebook_loss
    loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name


def test_errors_are_those_of_what_prefixes_decode_to() -> None:
    torch.manual_seed(0)
    model = AudioGRVQ(AudioGRVQConfig((8, 16), (1, 1), (16, 8), (1, 1), 8, 2, (16, 8)))
    z = torch.randn(2, 8, 11)
    codes = model.codes(z)
    want = [(z - model.quantizer.decode(codes[:, : k + 1])).square().sum(1) for k in range(4)]
    assert torch.allclose(model.errors(z, codes), torch.stack(want, 1), atol=1e-5)
    assert model.errors(z, codes[:, :3]).shape == (2, 3, 11)
