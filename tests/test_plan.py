"""One output for every input: none overwrites another or an input, and every file of a folder is accounted for."""

import os
from pathlib import Path

import pytest

from tokodec.codec.console import STREAM, labelled, plan, printable
from tokodec.codec.errors import UsageError

WANTED = (".png", ".jpg")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_outputs_lie_beside_inputs_or_in_a_folder() -> None:
    make("a.png", "b.c.jpg")
    assert plan(["a.png"], None, ".tok", WANTED) == [("a.png", "a.tok")]
    assert plan(["a.png", "b.c.jpg"], "out", ".tok", WANTED) == [("a.png", "out/a.tok"), ("b.c.jpg", "out/b.c.tok")]
    assert Path("out").is_dir()
    assert plan(["a.png"], "named.tok", ".tok", WANTED) == [("a.png", "named.tok")]
    assert plan([STREAM], None, ".tok", WANTED) == [(STREAM, STREAM)]
    assert plan([STREAM], "out", ".tok", WANTED) == [(STREAM, "out/stdin.tok")]


def test_a_slash_says_folder() -> None:
    make("a.png")
    assert plan(["a.png"], "new/deep/", ".tok", WANTED) == [("a.png", "new/deep/a.tok")]
    assert Path("new/deep").is_dir()
    with pytest.raises(UsageError, match=r"^cannot make the folder a\.png: "):
        plan(["a.png"], "a.png/", ".tok", WANTED)


def test_names_that_meet_stay_whole() -> None:
    make("in/IMG_1.jpg", "in/IMG_1.png", "in/IMG_2.png", "in/img_3.jpg", "in/IMG_3.png")
    assert plan(["in"], "out", ".tok", WANTED) == [
        ("in/IMG_1.jpg", "out/IMG_1.jpg.tok"),
        ("in/IMG_1.png", "out/IMG_1.png.tok"),
        ("in/IMG_2.png", "out/IMG_2.tok"),
        ("in/IMG_3.png", "out/IMG_3.png.tok"),
        ("in/img_3.jpg", "out/img_3.jpg.tok"),
    ]
    assert plan(["in/IMG_1.jpg", "in/IMG_1.png"], None, ".tok", WANTED)[1] == ("in/IMG_1.png", "in/IMG_1.png.tok")


def test_a_whole_name_may_meet_a_short_one() -> None:
    make("a.jpg", "a.png", "a.jpg.png")
    assert [dst for _, dst in plan(["a.jpg", "a.png", "a.jpg.png"], None, ".tok", WANTED)] == [
        "a.jpg.tok", "a.png.tok", "a.jpg.png.tok",
    ]  # fmt: skip


@pytest.mark.parametrize("inputs", [["a/x.png", "b/x.png"], ["a/x.png", "a/x.png"], ["a/x.png", "a/../a/x.png"]])
def test_equal_names_in_one_folder_are_refused(inputs: list[str]) -> None:
    make("a/x.png", "b/x.png")
    with pytest.raises(UsageError, match=r"x\.png and .*x\.png would both be written to out/x\.png\.tok$"):
        plan(inputs, "out", ".tok", WANTED)
    assert not Path("out").exists()


def test_no_input_is_an_output() -> None:
    """Files are compared, not their names; also those of other inputs."""
    make("own.png", "other.png")
    os.link("own.png", "hard.png")
    Path("soft.png").symlink_to("own.png")
    for out in ("own.png", "./own.png", "hard.png", "soft.png", str(Path.cwd() / "own.png")):
        with pytest.raises(UsageError, match=r"^own\.png would be overwritten by its own output: name another"):
            plan(["own.png"], out, ".tok", WANTED)
    with pytest.raises(UsageError, match=r"^own\.png would be overwritten by its own output"):
        plan(["own.png"], None, ".png", WANTED)
    os.link("own.png", "a.tok")
    with pytest.raises(UsageError, match=r"^own\.png would be overwritten by the output of a\.png"):
        plan(["own.png", "a.png"], None, ".tok", WANTED)
    assert plan(["own.png"], "other.png", ".tok", WANTED) == [("own.png", "other.png")]  # --force decides


def test_everything_in_a_folder_is_accounted_for(capsys: pytest.CaptureFixture[str]) -> None:
    make("in/a.png", "in/B.JPG", "in/.hidden", "in/a.tok", "in/letter.txt", "in/raw.heic", "in/deep/c.png")
    Path("in/folder.png").mkdir()
    assert plan(["in"], "out", ".tok", WANTED) == [("in/B.JPG", "out/B.tok"), ("in/a.png", "out/a.tok")]
    assert capsys.readouterr().err.splitlines() == [
        "codec: in: 2 folders (deep, folder.png) left out: --recursive takes what is inside",
        "codec: in: 2 files (letter.txt, raw.heic) left out, of no kind that is read here",
    ]
    make(*(f"in/{i}.txt" for i in range(7)))
    labelled(["in"], WANTED, False, str)
    shown = "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 5 more"
    assert f"10 files ({shown}) left out" in capsys.readouterr().err


def test_folders_below_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    make("in/a.png", "in/x/a.png", "in/x/y/b.jpg", "in/x/y/b.png", "in/x/notes.txt", "in/.git/c.png")
    Path("in/x/round").symlink_to("../..", target_is_directory=True)
    assert plan(["in"], "out", ".tok", WANTED, recursive=True) == [
        ("in/a.png", "out/a.tok"),
        ("in/x/a.png", "out/x/a.tok"),
        ("in/x/y/b.jpg", "out/x/y/b.jpg.tok"),
        ("in/x/y/b.png", "out/x/y/b.png.tok"),
    ]
    assert Path("out/x/y").is_dir()
    assert capsys.readouterr().err.splitlines() == [
        "codec: in: 1 folder (x/round) left out: links are not followed",
        "codec: in: 1 file (x/notes.txt) left out, of no kind that is read here",
    ]
    beside = plan(["in"], None, ".tok", WANTED, recursive=True)
    assert beside[1] == ("in/x/a.png", "in/x/a.tok")


def test_empty_folders_pipes_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    make("in/x/a.png")
    Path("none").mkdir()
    with pytest.raises(UsageError, match=r"^no \.png, \.jpg files in the folder in$"):
        plan(["in"], None, ".tok", WANTED)
    with pytest.raises(UsageError, match="in the folder none"):
        plan(["none"], None, ".tok", WANTED, recursive=True)
    os.mkfifo("fifo")
    with pytest.raises(UsageError, match=r"^fifo is a pipe or a device: name the output with -o$"):
        plan(["fifo"], None, ".png", WANTED)
    assert plan(["fifo"], "a.png", ".png", WANTED) == [("fifo", "a.png")]


def test_names_cannot_command_a_terminal() -> None:
    assert printable("a\nb\x1b[31m\t\u202e \u00fc \u4e2d\udcff") == r"a\nb\x1b[31m\t\u202e ü 中\udcff"
