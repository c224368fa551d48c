"""Training of the video codec with references: clips under way, a level in one pass, and the command that runs it."""

from __future__ import annotations

import json
import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tokodec.codec.files import atomic_output
from tokodec.codec.media.write_video import VideoWriter
from tokodec.entropy.context import net
from tokodec.entropy.context.net import RoundedLinear
from tokodec.entropy.hyperprior.export import export_hyperprior
from tokodec.entropy.hyperprior.net import HyperNet, HyperShape
from tokodec.entropy.hyperprior.prior import HyperPrior
from tokodec.tests.motion_model import SMALL, awake, clip, doubtful, shape
from tokodec.tests.resuming import assert_goes_on
from tokodec.tokenizers.image.photo import ImagePhoto
from tokodec.tokenizers.video.motion import MotionPrior, Near, VideoMotion
from tokodec.tokenizers.video.motion_nets import MotionNets, Reference
from tokodec.train import video_motion as script
from tokodec.train.data.layers import layered, outlines
from tokodec.train.data.video import ClipStore
from tokodec.train.motion_codec import CountedMotion, CountedPrior, MotionCodec, Part, Pass, Streams, levels_of
from tokodec.train.recipe import checked, read_recipe

SETTINGS = (
    "name=tiny model.still=photo model.channels=[8,16] model.analysis_blocks=[1,1] model.synthesis_blocks=[1,1] "
    "model.latents=12 model.detail=2 model.hyper=6 model.hyper_width=8 model.features=4 model.context=[8,8] "
    "model.context_blocks=1 model.motion=18 model.motion_hyper=4 model.motion_width=8 entropy.slices=[4,6,2] "
    "entropy.middle=[16,16] entropy.features=12 entropy.width=16 entropy.hidden=16 entropy.blocks=1 entropy.head=16 "
    "motion.slices=[4,14] motion.middle=[16,16] motion.features=12 motion.width=16 motion.hidden=16 motion.blocks=1 "
    "motion.head=16 start=random data.frames=5 data.crop=64 data.group=2 data.holdout_every=2 optim.batch=2 "
    "data.chains=0.5 optim.warmup_steps=2"
)


def tiny_codec() -> MotionCodec:
    torch.manual_seed(0)
    nets = MotionNets(SMALL)
    awake(nets)
    return MotionCodec(nets, HyperNet(shape(6, (3, 3, 4))), HyperNet(shape(4, (4, 14))))


def nothing(b: int) -> Reference:
    zeros = torch.zeros(b, 4, 8, 8)
    return Reference(torch.zeros(b, 3, 64, 64), zeros, zeros[:, :2], zeros[:, :1, :1, :1])


def part_of(frames: torch.Tensor, n_groups: int, n: int) -> Part:
    """Rows that all begin with the first frame ``[T, 3, 64, 64]``."""
    passes = 1 + len(levels_of(n))
    rows = n_groups + 1
    group, chain = frames[None, 1 : n + 1].expand(n_groups, -1, -1, -1, -1), frames[None, 1 : passes + 1]
    quality = torch.linspace(0.3, 0.6, rows)
    start = frames[:1].expand(rows, -1, -1, -1)
    return Part(group, chain, start, torch.ones(rows), quality, torch.full((rows,), 0.1))


# --------------------------------------------------------------------------------------------------------------- codec


def test_levels_of_a_group() -> None:
    assert [[b.frame for b in level] for level in levels_of(8)] == [[4], [2, 6], [1, 3, 5, 7]]
    assert levels_of(1) == []


def test_weights_of_the_entropy_models_are_rounded_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = tiny_codec().eval()  # without noise
    frames = torch.from_numpy(clip(5, 64, 64)).permute(0, 3, 1, 2).float() / 255
    part = part_of(frames, 2, 4)
    layers = [layer for layer in codec.modules() if isinstance(layer, RoundedLinear)]
    calls, gradients = [], []
    plain = net.round_weight

    def counted(weight: Tensor, bias: Tensor, like: RoundedLinear) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(like)
        return plain(weight, bias, like)

    monkeypatch.setattr(net, "round_weight", counted)
    for coded in (codec, codec._coded):
        passes, _ = coded(part, nothing(3), True)
        bits = torch.cat([done.y_bits + done.m_bits for done in passes]).sum()
        gradients.append(torch.autograd.grad(bits, [layer.weight for layer in layers]))
        assert not any(layer.once or layer.held for layer in layers)
    once = len(layers)
    assert len(set(map(id, calls[:once]))) == once
    assert set(map(id, calls[once : once + 3])) <= set(map(id, calls[once + 3 :]))  # the first ones come again
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_frames_of_a_level_are_coded_as_one_by_one() -> None:
    codec = tiny_codec().eval()
    frames = torch.from_numpy(clip(5, 64, 64)).permute(0, 3, 1, 2).float() / 255
    part = part_of(frames, 2, 4)
    with torch.no_grad():
        passes, left = codec(part, nothing(3))
        assert [len(done.x) for done in passes] == [3, 3, 5]
        assert [round(float(q), 3) for q in passes[2].quality] == [0.1, 0.25, 0.1, 0.25, 0.6]
        start = codec.nets.alone(frames[:1])
        quality = part.quality[1:2]

        def one(
            frame: int, first: Reference, second: Reference | None, how: tuple[float, float], q: torch.Tensor
        ) -> tuple[Pass, Reference]:
            x = frames[frame : frame + 1]
            references = (first, first if second is None else second)
            return codec.frames(x, references, torch.tensor([how]), q, (8 if abs(how[0]) < 3 else 12, False))

        done, last = one(4, start, None, (-4.0, 0.0), quality)
        assert torch.allclose(done.x_hat, passes[0].x_hat[1:2], atol=1e-5)
        _, middle = one(2, start, last, (-2.0, 2.0), quality - 0.1)
        done, _ = one(3, middle, last, (-1.0, 1.0), quality - 0.2)
        assert torch.allclose(done.x_hat, passes[2].x_hat[3:4], atol=1e-4)
        for mine, own in zip(left.rows(slice(1, 2)), last, strict=True):
            assert torch.allclose(mine, own, atol=1e-5)
        _, first = one(1, start, None, (-1.0, 0.0), part.quality[2:])
        done, _ = one(2, first, None, (-1.0, 0.0), part.quality[2:])
        assert torch.allclose(done.x_hat, passes[1].x_hat[2:], atol=1e-4)


def test_gradients_reach_all_weights_and_earlier_frames() -> None:
    codec = tiny_codec().train()
    frames = torch.from_numpy(clip(3, 64, 64)).permute(0, 3, 1, 2).float() / 255
    part = part_of(frames, 1, 2)
    passes, _ = codec(part, nothing(2))
    passes[-1].x_hat.square().mean().backward()  # of the frame in the middle alone
    gradients = [p.grad for p in codec.nets.motion_gain.parameters()]
    assert gradients[0] is not None
    assert bool(gradients[0].any())
    codec.zero_grad()
    passes, _ = codec(part, nothing(2), True)
    sum(done.x_hat.square().mean() + done.y_bits.mean() + done.m_bits.mean() for done in passes).backward()
    without = [name for name, p in codec.named_parameters() if p.grad is None]
    assert without == []


def test_estimated_frames_are_those_of_the_coder(photo_model: Path) -> None:
    codec = tiny_codec().eval()
    model = VideoMotion(SMALL, "tiny")
    model.nets.load_state_dict(codec.nets.state_dict())
    arrays = [export_hyperprior(net) for net in (codec.entropy, codec.motion)]
    still = ImagePhoto.from_pretrained(photo_model)
    counted = CountedPrior(arrays[0]), CountedMotion(arrays[1])
    model.set_parts(still, *counted)
    frames = clip(2, 64, 64)
    first = model.shown(frames[0])
    with doubtful(math.inf):
        data, found = model.encode_after(255 - frames[1], 4000, [Near(first, -1)])
    x = model.padded(255 - frames[1])
    with torch.no_grad():
        done, _ = codec.frames(x, (first, first), torch.tensor([[-1.0, 0.0]]), torch.tensor([0.4]), (8, True))
    assert float((done.x_hat.clamp(0, 1) - found.x).abs().max()) < 0.6 / 255
    estimated = float(done.y_bits + done.m_bits)
    assert 0.7 < 8 * len(data) / estimated < 1.4  # random weights: many codes are beyond their tables
    assert counted[0].counts.of_z.sum() == 6
    assert sum(int(count.sum()) for count in counted[1].counts.of_y) == 18 * 16
    assert isinstance(counted[1], MotionPrior)


# ---------------------------------------------------------------------------------------------------------------- data


def test_things_move_before_others() -> None:
    generator = torch.Generator().manual_seed(0)
    heights = outlines(3, 64, generator)
    assert heights.shape == (3, 1, 64, 64)
    assert 0 <= float(heights.min()) < 0.3 < 0.7 < float(heights.max()) <= 1
    back, front = torch.zeros(3, 3, 4, 64, 64), torch.ones(3, 4, 4, 64, 64)
    front[:, 3] = heights[:, 0, None]
    x = layered(back, front, generator)
    assert x.shape == back.shape
    assert 0.1 < float((x > 0.5).float().mean()) < 0.9


def test_clips_go_on_where_their_last_step_ended() -> None:
    frames = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(-1, 64, 64, 3).contiguous() * 20
    store = ClipStore([frames], 9, 64, "cpu")
    seen: list[torch.Tensor] = []

    def still(x: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        seen.append(quality)
        return x

    weights = ((0.001, 1.0), (0.001, 1.0))
    streams = Streams(store, still, (2, 1), 4, weights, 0.06, seed=0)
    assert streams.passes == 3
    ends, begun = np.zeros(3), 0
    for _ in range(12):
        part = streams.next()
        numbers = [part.group[r, :, 0, 0, 0] for r in range(2)] + [part.chain[0, :, 0, 0, 0]]
        for r, row in enumerate(numbers):
            values = (row * 255 / 20).round().tolist()
            if part.begins[r]:
                ends[r] = 0
                assert float(part.start[r].max()) == 0
            assert values == [ends[r] + 1 + i for i in range(len(values))]
            ends[r] = values[-1]
        begun += int(part.begins.sum())
        assert float(part.drop.min()) >= 0
        assert float(part.drop.max()) < 0.06
    assert 3 < begun < 36
    assert all(float(q.min()) >= 0 and float(q.max()) <= 1 for q in seen)


# -------------------------------------------------------------------------------------------------------------- script


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photo_model: Path) -> Path:
    """Three clips, a picture, and a model of still frames beside the models to come."""
    out = tmp_path_factory.mktemp("train")
    (out / "clips").mkdir()
    (out / "pictures").mkdir()
    for i in range(3):
        path = out / "clips" / f"v{i}.mkv"
        rate = Fraction(25)
        with atomic_output(path, True) as file, VideoWriter(file, ".mkv", path.name, 64, 72, 1 / rate) as writer:
            for t, pixels in enumerate(clip(6, 64, 72, 1 + i)):
                writer.write(pixels, t / rate)
    Image.fromarray(clip(1, 80, 80)[0]).save(out / "pictures" / "p.png")
    (out / "photo").symlink_to(photo_model)
    return out


def run(folder: Path, out: str, *more: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    words = ["video_motion", "--data", str(folder / "clips"), "--out", str(folder / out), "--minutes", "0.02", *more]
    monkeypatch.setattr(sys, "argv", [*words, "--set", *SETTINGS.split()])
    script.main()
    return folder / out


@pytest.mark.usefixtures("_trains")
def test_one_command_trains_and_exports(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test = ["--stills", str(folder / "pictures"), "--test", str(folder / "clips")]
    first = run(folder, "first", *test, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert "clips and 1 pictures to train on" in said
    assert " kept" in said
    assert "test 70 quality" in said
    model = VideoMotion.from_pretrained(first)
    assert model.name == "tiny"
    report = json.loads((first / "training.json").read_text())
    assert [row["quality"] for row in report["test"]] == [10, 30, 50, 70]
    assert all(0 < row["bpp"] < 20 and row["psnr"] > 5 for row in report["holdout"])
    assert report["history"][-1]["rows"][0]["quality"] == 15
    # from its checkpoint, and from what was released of it
    again = run(folder, "second", "--resume", str(first), monkeypatch=monkeypatch)
    assert (again / "checkpoint.safetensors").is_file()
    (again / "checkpoint.safetensors").unlink()
    third = run(folder, "third", "--resume", str(again), monkeypatch=monkeypatch)
    assert VideoMotion.from_pretrained(third).weights_hash


@pytest.mark.usefixtures("_trains")
def test_a_run_that_is_told_to_end_goes_on(folder: Path) -> None:
    """Clips that were under way go on, too."""
    words = ["--data", str(folder / "clips"), "--stills", str(folder / "pictures"), "--set", *SETTINGS.split()]
    assert_goes_on(script.main, script.Trainer, words, folder, (2,))


def test_the_nets_start_as_those_of_a_photo_codec(photo_model: Path) -> None:
    recipe = read_recipe("video-motion")
    photo = ImagePhoto.from_pretrained(photo_model)
    sizes = HyperShape.of_export(photo.entropy.arrays())
    recipe["model"] |= {
        "channels": [8, 16], "analysis_blocks": [1, 1], "synthesis_blocks": [1, 1], "latents": 12, "detail": 2,
        "hyper": 6, "hyper_width": 8, "features": 4, "context": [8, 8], "motion_width": 8,
    }  # fmt: skip
    recipe["entropy"] = {
        "slices": [*sizes.slices, 2], "middle": list(sizes.middle), "features": sizes.features, "width": sizes.width,
        "hidden": sizes.hidden, "blocks": sizes.blocks, "head": sizes.head,
    }  # fmt: skip
    codec = script.codec_of(checked(script.Recipe, recipe))
    script.start_from(codec, photo)
    x, steps = torch.rand(1, 3, 64, 64), torch.tensor([2500])
    with torch.no_grad():
        y, own = codec.nets.analysis(x), photo.nets.analysis(x)
        assert torch.allclose(y[:, :10], own, atol=1e-5)
        assert torch.equal(codec.nets.seen_enter.weight, -photo.nets.analysis.enter.weight)
        z = torch.randn(1, 1, 1, 6).round()
        net = HyperNet(sizes)
        net.load_export(photo.entropy.arrays())
        quality = torch.rand(1, 4, 4, 12)
        # lambda at quality 25 is that of another quality of the photo codec
        at = torch.log(torch.tensor(0.0004 * (0.0141421 / 0.0004) ** 0.5) / 0.001) / np.log(200)
        mine, _, _ = codec.entropy.eval()(quality, z, steps, kind=torch.tensor([1]))
        theirs, _, _ = net.eval()(quality[..., :10], z, (10000 * at.clamp(0, 1)).round().long()[None])
    assert float((mine[..., :4] - theirs[..., :4]).abs().mean()) < 0.05


def test_fewer_blocks_are_evenly_spaced() -> None:
    six = torch.nn.Sequential(*(torch.nn.Linear(1, 1) for _ in range(6)))
    assert [list(six).index(block) for block in script.thinned(six, 4)] == [1, 2, 4, 5]
    assert [list(six).index(block) for block in script.thinned(six, 9)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"group": 3}}, "power of two"),
        ({"data": {"crop": 100}}, "whole 64 pixels"),
        ({"data": {"frames": 8}}, "more frames"),
        ({"model": {"motion": 20}}, "320 and 20 channels"),
    ],
)
def test_recipes_without_sense_are_refused(change: dict[str, dict[str, int]], said: str) -> None:
    recipe = read_recipe("video-motion")
    for section, values in change.items():
        recipe[section] |= values
    with pytest.raises(ValueError, match=said):
        script.codec_of(checked(script.Recipe, recipe))


def test_the_released_recipe_fits_the_release() -> None:
    """The default sizes of the class are those of the recipe, and its weights are within 16 MiB."""
    recipe = checked(script.Recipe, read_recipe("video-motion"))
    codec = script.codec_of(recipe)
    assert recipe.model == type(recipe.model)()
    weights = sum(p.numel() for p in codec.parameters())
    assert weights < 19e6  # about 0.75 bytes each, as image-photo's
    assert HyperPrior(export_hyperprior(codec.motion)).kinds == 2
