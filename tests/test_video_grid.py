"""The video tokenizer: any size and length, causal in time, local in space, parts equal the whole, what it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tokodec.codec.corpus.token_files import parse_spec
from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.image.grid import ImageGrid, ImageGridConfig
from tokodec.tokenizers.tokens import Tokens, TokenSpec
from tokodec.tokenizers.video.causal import CausalNet, PerFrame, State, TimeConv, TimeDown, TimeUp
from tokodec.tokenizers.video.grid import (
    GROUP,
    StreamingVideoDecoder,
    StreamingVideoEncoder,
    VideoGrid,
    VideoGridConfig,
)

TINY = VideoGridConfig(
    channels=(6, 8, 8),
    analysis_blocks=(1, 1, 1),
    analysis_time=(1, 1),
    synthesis_blocks=(1, 1, 2),
    synthesis_time=(1, 2),
    dim=4,
    codebook_sizes=(64, 32, 16),
)


def random_model(config: VideoGridConfig = TINY) -> VideoGrid:
    """Every layer does something: those that start as the identity are random too."""
    torch.manual_seed(5)
    model = VideoGrid(config, "tiny-video")
    for name, parameter in model.named_parameters():
        if "pointwise" in name or ".up." in name or (parameter.ndim == 2 and "quantizer" not in name):
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> VideoGrid:
    return random_model()


def clip(frames: int, height: int = 32, width: int = 48, batch: int = 1, seed: int = 0) -> Tensor:
    """Blobs and noise, [B, 3, T, H, W] in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, frames, height // 9 + 1, width // 9 + 1, generator=generator)
    x = nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")
    return (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def cells(frames: int) -> int:
    return 1 + -(-(frames - 1) // GROUP)


# ------------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("frames", range(1, 11))
def test_any_number_of_frames(frames: int, model: VideoGrid) -> None:
    x = clip(frames)
    tokens = model.encode(x, rate=25.0)
    assert tokens.codes.shape == (1, 3, cells(frames), 2, 3)
    assert tokens.codes.dtype == torch.int64
    assert tokens.spec == TokenSpec(
        "tiny-video", "", "video", (64, 32, 16), (4, 16, 16), (frames, 32, 48), "rgb", 25.0, None, 1
    )
    assert tokens.spec.grid == (cells(frames), 2, 3)
    x_hat = model.decode(tokens)
    assert x_hat.shape == x.shape
    assert 0 <= float(x_hat.min()) <= float(x_hat.max()) <= 1


@pytest.mark.parametrize("size", [(1, 1), (17, 15), (16, 16), (1, 50), (43, 27)])
def test_any_size(size: tuple[int, int], model: VideoGrid) -> None:
    x = clip(6, *size, batch=2)
    tokens = model.encode(x)
    assert tokens.codes.shape == (2, 3, 3, -(-size[0] // 16), -(-size[1] // 16))
    assert model.decode(tokens).shape == x.shape
    padded = torch.nn.functional.pad(x, (0, -size[1] % 16, 0, -size[0] % 16, 0, 0), mode="replicate")
    assert torch.equal(model.encode(padded).codes, tokens.codes)


def test_codes_are_diverse(model: VideoGrid) -> None:
    codes = model.encode(clip(13, 96, 96)).codes
    assert all(len(codes[:, k].unique()) > 5 for k in range(3))


def test_bytes_are_read_as_shares_of_255(model: VideoGrid) -> None:
    x = (255 * clip(5)).byte()
    assert torch.equal(model.encode(x).codes, model.encode(x.float() / 255).codes)


def test_a_prefix_of_the_levels_is_coarser(model: VideoGrid) -> None:
    x = clip(9)
    tokens = model.encode(x)
    for n in (1, 2, 3):
        assert torch.equal(model.encode(x, levels=n).codes, tokens.levels(n).codes)
        assert model.decode(tokens.levels(n)).shape == x.shape


def test_the_grid_of_a_spec_has_the_first_frame_alone() -> None:
    spec = TokenSpec("m", "", "video", (4,), (4, 16, 16), (1, 16, 16), "rgb", first=1)
    grids = [replace(spec, size=(t, 17, 16)).grid for t in (1, 2, 5, 6, 9)]
    assert grids == [(1, 2, 1), (2, 2, 1), (2, 2, 1), (3, 2, 1), (3, 2, 1)]
    assert [spec.span(grid) for grid in grids[::2]] == [(1, 32, 16), (5, 32, 16), (9, 32, 16)]
    assert replace(spec, size=(5, 16, 16), first=None).grid == (2, 1, 1)
    assert replace(spec, first=None).span((2, 1, 1)) == (8, 16, 16)
    fields = json.loads(json.dumps(asdict(spec)))
    assert parse_spec(fields) == spec
    for wrong in (0, 5, 1.5, "1"):
        with pytest.raises(ValueError, match="first cell"):
            parse_spec({**fields, "first": wrong})


# ------------------------------------------------------------------------------------------------- parts are the whole


@pytest.mark.parametrize("parts", [[9], [1] * 9, [1, 4, 4], [2, 3, 4], [4, 5], [5, 1, 3], [7, 0, 2]])
@pytest.mark.parametrize("more", [0, 2])
def test_a_stream_gives_the_codes_of_the_whole(parts: list[int], more: int, model: VideoGrid) -> None:
    x = clip(9 + more, 20, 33)
    stream = StreamingVideoEncoder(model, 2)
    pushed = [stream.push(part) for part in x.split([*parts, more], 2)]
    codes = torch.cat([*pushed, stream.finish()], 2)
    assert torch.equal(codes, model.encode(x, 2).codes)
    assert stream.finish().shape[2] == 0


def test_a_group_has_its_codes_once_its_last_frame_is_there(model: VideoGrid) -> None:
    stream = StreamingVideoEncoder(model)
    there = [stream.push(frame).shape[2] for frame in clip(9).split(1, 2)]
    assert there == [1, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("parts", [[4], [1, 1, 1, 1], [1, 3], [3, 1]])
def test_a_stream_gives_the_frames_of_the_whole(parts: list[int], model: VideoGrid) -> None:
    x = clip(13, 20, 33)
    tokens = model.encode(x)
    stream = StreamingVideoDecoder(model, 20, 33)
    x_hat = torch.cat([stream.push(part) for part in tokens.codes.split(parts, 2)], 2)
    assert torch.equal(x_hat, model.decode(tokens))


def test_group_by_group_is_the_net_over_the_whole_clip(model: VideoGrid) -> None:
    """What is trained on whole clips is what runs group by group."""
    x = clip(17, 32, 32, batch=2)
    state = State()
    with torch.no_grad():
        whole = model.latents(x)
        parts = [model.latents(part, state) for part in x.split([1, 4, 8, 4], 2)]
        assert torch.allclose(torch.cat(parts, 2), whole, atol=1e-5)
        state = State()
        x_hat = model.pixels(whole)
        assert x_hat.shape == x.shape
        groups = [model.pixels(part, state) for part in whole.split([1, 1, 2, 1], 2)]
        assert torch.allclose(torch.cat(groups, 2), x_hat, atol=1e-5)


def test_clips_of_a_batch_are_those_alone(model: VideoGrid) -> None:
    x = clip(9, batch=3)
    codes = model.encode(x).codes
    assert all(torch.equal(codes[i : i + 1], model.encode(x[i : i + 1]).codes) for i in range(3))


# ----------------------------------------------------------------------------------------------- who depends on whom


def dependence(y: Tensor, x: Tensor) -> Tensor:
    """Which frames of ``x [1, 3, T, H, W]`` the sum of y depends on."""
    (slope,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
    return slope.abs().sum((0, 1, 3, 4)) > 0


def reach(net: CausalNet, step: int) -> int:
    """Frames that the layers of a net look back. step: frames between the moments of its first layer."""
    past = 0
    for layer in net:
        past += sum(step * (part.kernel - part.stride) for part in layer.modules() if isinstance(part, TimeConv))
        if isinstance(layer, TimeDown):
            step *= 2
        elif isinstance(layer, TimeUp):
            step //= 2
    return past


@pytest.mark.parametrize("config", [TINY, replace(TINY, analysis_blocks=(1, 2, 2), analysis_time=(2, 2))])
def test_codes_depend_on_the_past_only_and_so_far(config: VideoGridConfig) -> None:
    model = random_model(config)
    frames = 1 + GROUP * 10
    x = clip(frames, 16, 16).requires_grad_()
    z = model.latents(x)
    for cell in (0, 1, 5, 10):
        last = GROUP * cell
        first = max(0, last - GROUP + 1 - reach(model.analysis, 1))
        expected = [first <= frame <= last for frame in range(frames)]
        assert dependence(z[:, :, cell], x).tolist() == expected


def test_changes_later_leave_codes_as_they_are(model: VideoGrid) -> None:
    x, y = clip(17), clip(17)
    y[:, :, 6:] = clip(17, seed=1)[:, :, 6:]
    a, b = model.encode(x).codes, model.encode(y).codes
    assert torch.equal(a[:, :, :2], b[:, :, :2])
    assert not torch.equal(a[:, :, 2], b[:, :, 2])
    assert torch.equal(model.encode(x[:, :, :5]).codes, a[:, :, :2])


def test_frames_depend_on_cells_before_only_and_so_far(model: VideoGrid) -> None:
    n = 12
    z = torch.randn(1, 4, n, 1, 1, requires_grad=True)
    x_hat = model.pixels(z)
    reached = 0
    for frame in (0, 1, 4, 21, 22, 23, 24, 44):
        seen = dependence(x_hat[:, :, frame], z).nonzero()
        assert int(seen.max()) == cells(frame + 1) - 1
        reached = max(reached, int(seen.max() - seen.min()))
    assert reached == -(-reach(model.synthesis, GROUP) // GROUP)


def test_tiles_with_a_halo_are_the_whole(model: VideoGrid) -> None:
    x = clip(5, 16 * 12, 16 * 3)
    z = model.latents(x)
    halo = model.analysis_halo
    tile = model.latents(x[..., 16 * (6 - halo) : 16 * (7 + halo), :])
    assert torch.allclose(tile[..., halo, :], z[..., 6, :], atol=1e-5)
    less = model.latents(x[..., 16 * (6 - halo + 1) : 16 * (7 + halo - 1), :])
    assert not torch.allclose(less[..., halo - 1, :], z[..., 6, :], atol=1e-5)

    with torch.no_grad():
        x_hat, halo = model.pixels(z), model.synthesis_halo
        part = model.pixels(z[..., 6 - halo : 7 + halo, :])
    assert torch.allclose(part[..., 16 * halo : 16 * (halo + 1), :], x_hat[..., 96:112, :], atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- layers


def test_layers_over_time_by_hand() -> None:
    x = torch.arange(1.0, 6.0).reshape(1, 5, 1, 1, 1)
    conv = TimeConv(1, 1, 3, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[100.0, 10.0, 1.0]]))
        conv.bias.zero_()
        assert conv(x).flatten().tolist() == [1, 123, 345]
        assert TimeDown(1)(x).flatten().tolist() == [1, 3, 5]
        assert TimeUp(1)(x[:, :3]).flatten().tolist() == [1, 2, 2, 3, 3]
        state = State()
        up = TimeUp(1)
        assert [up(part, state).flatten().tolist() for part in x[:, :3].split(1, 1)] == [[1], [2, 2], [3, 3]]
    with pytest.raises(ValueError, match="leaves frames out"):
        TimeConv(1, 1, 1, 2)


def test_layers_over_space_see_frames_one_by_one() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1)
    x = torch.randn(2, 4, 6, 7, 3)
    y = PerFrame(conv)(x)
    assert y.shape == (2, 4, 6, 7, 5)
    assert torch.allclose(y[1, 2], conv(x[1, 2].permute(2, 0, 1)[None])[0].permute(1, 2, 0), atol=1e-6)


# ----------------------------------------------------------------------------------------------- codes that are kept


def test_what_rests_keeps_its_codes() -> None:
    model = random_model()
    noise = torch.randn(1, 3, 17, 32, 48, generator=torch.Generator().manual_seed(3))
    x = (clip(1).expand(-1, -1, 17, -1, -1) + 0.02 * noise).clamp(0, 1)

    def changed(tokens: Tokens) -> float:
        return float((tokens.codes[:, :, 2:] != tokens.codes[:, :, 1:-1]).float().mean())

    free = model.encode(x)
    model.hold.fill_(1e9)  # the first cell of a group keeps whatever the last one had
    held = model.encode(x)
    assert changed(free) > 0.05
    assert changed(held) == 0
    assert torch.equal(held.codes, held.codes[:, :, :1].expand_as(held.codes))
    model.hold.fill_(0.6)
    some = model.encode(x)
    assert 0 < changed(some) < changed(free)
    assert torch.equal(model.encode(x, levels=2).codes, some.codes[:, :2])  # still a prefix
    encoder = StreamingVideoEncoder(model)
    parts = [encoder.push(part) for part in x.split(3, 2)] + [encoder.finish()]
    assert torch.equal(torch.cat(parts, 2), some.codes)


def test_nothing_is_kept_without_a_discount(model: VideoGrid) -> None:
    z_e = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    codes = model.quantizer.encode(z_e)
    before = torch.randint(0, 16, codes.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.quantizer.encode_after(z_e, before, torch.zeros(3)), codes)
    absent = torch.full_like(codes, -1)
    assert torch.equal(model.quantizer.encode_after(z_e, absent, torch.full((3,), 1e9)), codes)


# --------------------------------------------------------------------------------------------------- from a picture's


def test_a_start_from_pictures_codes_every_fourth_frame() -> None:
    torch.manual_seed(1)
    sizes = ImageGridConfig(TINY.channels, (1, 1, 1), (1, 1, 2), 4, (64, 32), ("faithful",))
    image = ImageGrid(sizes, "pictures").eval()
    for name, parameter in image.named_parameters():
        if "pointwise" in name or "projection" in name:
            nn.init.normal_(parameter, std=0.3)
    model = VideoGrid(TINY).eval()
    model.start_from(image)
    x = clip(9)
    tokens = model.encode(x)
    for cell, frame in enumerate((0, 4, 8)):
        own = image.encode(x[:, :, frame])
        assert torch.equal(tokens.codes[:, :2, cell], own.codes)
        x_hat = model.decode(tokens.levels(2))
        assert torch.allclose(x_hat[:, :, frame], image.decode(own), atol=1e-5)
        assert all(torch.equal(x_hat[:, :, i], x_hat[:, :, frame]) for i in range(max(0, frame - 3), frame))
    other = ImageGrid(replace(sizes, channels=(8, 8, 8)))
    with pytest.raises(ValueError, match="has nets of other sizes"):
        model.start_from(other)
    model.start_from(ImageGrid(replace(sizes, codebook_sizes=(64, 33))))
    assert model.codebooks[1].basis.shape == (32, 4)


def test_a_start_from_pictures_with_more_channels_of_latents() -> None:
    sizes = ImageGridConfig(TINY.channels, (1, 1, 1), (1, 1, 2), 4, (64, 32), ("faithful",))
    image = ImageGrid(sizes, "pictures").eval()
    model = VideoGrid(replace(TINY, dim=6)).eval()
    model.start_from(image)
    x = clip(1)
    z_e, theirs = model.latents(x), image.analysis(2 * x[:, :, 0] - 1)
    assert torch.allclose(z_e[:, :4, 0], theirs, atol=1e-5)
    assert z_e[:, 4:].abs().max() < theirs.abs().max()


def test_a_start_from_videos_with_more_channels_of_latents(model: VideoGrid) -> None:
    wide = VideoGrid(replace(TINY, dim=6)).eval()
    wide.start_from(model)
    x = clip(9)
    z_e, theirs = wide.latents(x), model.latents(x)
    assert torch.allclose(z_e[:, :4], theirs, atol=1e-5)
    assert 0 < z_e[:, 4:].abs().mean() < theirs.abs().mean()
    same = VideoGrid(TINY).eval()
    same.start_from(model)
    assert torch.equal(same.encode(x).codes, model.encode(x).codes)
    with pytest.raises(ValueError, match="has nets of other sizes"):
        VideoGrid(replace(TINY, synthesis_time=(1, 1))).start_from(model)


def test_the_default_fits_the_picture_tokenizer_and_the_budget() -> None:
    with torch.device("meta"):
        model = VideoGrid()
    assert sum(tensor.numel() for tensor in model.state_dict().values()) < 12e6
    config, image = model.config, ImageGridConfig()
    assert (config.channels, config.analysis_blocks, config.synthesis_blocks) == (
        image.channels, image.analysis_blocks, image.synthesis_blocks,
    )  # fmt: skip
    assert config.dim >= image.dim


# ------------------------------------------------------------------------------------------------------------ the rest


def test_a_saved_model_comes_back(model: VideoGrid, tmp_path: Path) -> None:
    copy = random_model()
    written = copy.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, VideoGrid)
    assert (loaded.config, loaded.name, loaded.modality) == (TINY, "tiny-video", "video")
    assert loaded.weights_hash == written
    again = VideoGrid.from_pretrained(tmp_path)
    x = clip(6)
    tokens = loaded.encode(x)
    assert torch.equal(again.encode(x).codes, tokens.codes)
    assert torch.equal(again.decode(tokens), loaded.decode(tokens))
    with pytest.raises(ValueError, match="given to tiny-video"):
        model.decode(tokens)


def test_training_drops_levels_and_reaches_every_parameter() -> None:
    model = random_model().train()
    out = model.quantizer(model.latents(clip(5, batch=16)))
    kept = (out.codes >= 0).flatten(2).all(2).sum(1)
    assert set(kept.tolist()) == {1, 2, 3}
    loss = model.pixels(out.z_q).square().mean() + out.commitment_loss + out.codebook_loss
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def test_what_is_refused(model: VideoGrid) -> None:
    for shape in ((3, 5, 16, 16), (1, 1, 5, 16, 16), (1, 3, 0, 16, 16), (1, 3, 5, 0, 16)):
        with pytest.raises(ValueError, match=r"clips are a float tensor \[B, 3, T, H, W\]"):
            model.encode(torch.zeros(shape))
    with pytest.raises(ValueError, match="levels must be 1 to 3"):
        model.encode(clip(1), levels=4)
    stream = StreamingVideoEncoder(model)
    with pytest.raises(ValueError, match="nothing was pushed"):
        stream.finish()
    stream.push(clip(2))
    with pytest.raises(ValueError, match="frames of"):
        stream.push(clip(2, 16, 16))
    with pytest.raises(ValueError, match="m > 0"):
        StreamingVideoDecoder(model).push(torch.zeros(1, 3, 0, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="do not fit a grid"):
        Tokens(torch.zeros(1, 1, 3, 1, 1, dtype=torch.int64), model.spec((5, 16, 16)))
    for wrong in ({"channels": (8, 8)}, {"analysis_time": (2, 1)}, {"synthesis_time": (1,)}, {"codebook_sizes": ()}):
        with pytest.raises(ValueError, match=r"entries|at least one"):
            replace(TINY, **wrong)
