"""The house rules: who may import whom, what must not be needed, and what must never appear in the sources."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tokodec

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("assets", "codec", "entropy", "tokenizers", "train")
SOURCES = [ROOT / "__init__.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Which folders the files of a folder may import from, besides their own.
MAY_IMPORT = {
    "": {"codec", "tokenizers", "entropy"},
    "assets": set(),
    "codec": {"tokenizers", "entropy", "assets"},
    "tokenizers": set(),
    "entropy": set(),
    "train": {"codec", "tokenizers", "entropy"},
}
# Files that may import from one folder more.
MAY_ALSO_IMPORT = {
    "tokenizers/image/photo.py": {"entropy"},  # its quantiser rounds what its entropy model did not predict
    "tokenizers/graphed.py": {"entropy"},  # graphs are recorded alike
    "tokenizers/video/motion.py": {"entropy"},  # as photo.py
    "tokenizers/weights.py": {"entropy"},  # weights and priors are packed on disk alike
    "tokenizers/adapters/base.py": {"entropy"},  # as weights.py
    "tokenizers/adapters/factorized.py": {"entropy"},  # its tables are part of its weights
}
# A file that may use one package more, when it is asked for a generator.
MAY_ALSO_USE = {
    "codec/generate/model.py": {"transformers"},
    "codec/corpus/cluster.py": {"ray"},  # for --ray
    "codec/corpus/tables.py": {"pyarrow"},  # for parquet
    "codec/corpus/remote.py": {"fsspec"},  # for URLs
    "codec/metrics/features.py": {"efficientnet_lite_pytorch"},
    "codec/metrics/picture.py": {"ssimulacra2"},
    "codec/media/read_image.py": {"pillow_heif"},  # if it is there
    "codec/plugins/imageio.py": {"imageio"},  # when `tokodec.imageio` is imported
    "tokenizers/processors.py": {"PIL"},  # pictures are what it takes
    "tokenizers/adapters/fast_vq.py": {"vector_quantize_pytorch"},  # when `accelerate` meets its modules
    "tokenizers/adapters/fast_codecs.py": {"transformers"},
}
# Packages beyond the standard library that the files of a folder may import.
# Imported for types only; PyTorch brings it.
TYPES_ONLY = {"typing_extensions"}
THIRD_PARTY = {
    "": set(),
    "assets": set(),
    "codec": {"torch", "numpy", "PIL", "safetensors", "typer", "rich", "soundfile", "soxr", "av"},
    "tokenizers": {"torch", "numpy", "einops", "safetensors", "huggingface_hub", "triton"},
    "entropy": {"numpy", "constriction", "safetensors", "torch"},
}


def folder_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else ""


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of all modules that a source file imports, wherever in the file, with their line."""
    package = ("tokodec", *path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module, node.lineno
            for alias in node.names:
                yield f"{module}.{alias.name}", node.lineno


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ------------------------------------------------------------------------------------------------------- at run time


def test_import_of_the_package_imports_no_torch() -> None:
    assert run_python("import sys, tokodec; print('torch' in sys.modules, 'numpy' in sys.modules)") == "False False\n"


def test_public_names_are_there() -> None:
    assert list(tokodec.__all__) == sorted(tokodec.__all__)
    for name in tokodec.__all__:
        assert getattr(tokodec, name) is not None
        assert name in dir(tokodec)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = tokodec.nonsense


def test_entropy_knows_neither_tokenizers_nor_the_codec() -> None:
    """And only its networks take torch: who codes with fixed tables, or makes a schedule, does not wait for it."""
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module('tokodec.entropy.' + name)\n"
        "print(*sorted(m for m in sys.modules if m.startswith('tokodec.')), 'torch' in sys.modules)"
    )
    light = ["coder", "packed", "prior", "schedule", "static", "tables", "tree"]
    names = ["tokodec.entropy", *(f"tokodec.entropy.{name}" for name in light)]
    assert run_python(code, *light).split() == [*names, "False"]
    every = sorted(
        ".".join(path.relative_to(ROOT / "entropy").with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "entropy").rglob("*.py")
        if path.parent != ROOT / "entropy" or path.stem != "__init__"
    )
    assert set(light) < set(every)
    names = ["tokodec.entropy", *(f"tokodec.entropy.{name}" for name in every)]
    assert run_python(code, *every).split() == [*names, "True"]


BLOCKED = """
import sys

class Blocked:
    names = {
        "torchvision", "torchaudio", "compressai", "accelerate", "huggingface_hub", "yaml", "scipy", "matplotlib",
        "pytorch_msssim", "ssimulacra2", "efficientnet_lite_pytorch", "vector_quantize_pytorch", "tokodec.train",
        "bjontegaard", "pillow_heif", "pillow_jxl", "visqol", "pesq", "pystoi", "onnxruntime", "transformers",
        "diffusers", "pyarrow", "fsspec", "imageio",
    }

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in cls.names:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked)
"""


def test_the_codec_works_without_extras(tiny_model: Path, tmp_path: Path) -> None:
    """No torchvision, torchaudio, compressai, accelerate nor any package of training and benchmarks."""
    code = BLOCKED + (
        "from PIL import Image\n"
        "from tokodec.codec.cli import run\n"
        "model, folder = sys.argv[1:]\n"
        "Image.new('RGB', (40, 30), (9, 99, 199)).save(folder + '/a.png')\n"
        "codes = [run(['encode', folder + '/a.png', '--model', model])]\n"
        "codes += [run(['decode', folder + '/a.tok', '-o', folder + '/b.png', '--model', model])]\n"
        "codes += [run(['tokenize', folder + '/a.tok', '--model', model])]\n"
        "codes += [run(['models']), run(['encode', '--help'])]\n"
        "print(codes, sorted(Blocked.names & set(sys.modules)))"
    )
    assert run_python(code, str(tiny_model), str(tmp_path)).splitlines()[-1] == "[0, 0, 0, 0, 0] []"
    assert (tmp_path / "b.png").stat().st_size > 0


def test_the_library_works_without_extras(tiny_model: Path) -> None:
    code = BLOCKED + (
        "import torch, tokodec\n"
        "tokenizer = tokodec.load(sys.argv[1], device='cpu')\n"
        "x = torch.rand(2, 3, 33, 20)\n"
        "tokens = tokenizer.encode(x)\n"
        "print(tuple(tokens.codes.shape), tuple(tokenizer.decode(tokens).shape))"
    )
    assert run_python(code, str(tiny_model)) == "(2, 3, 3, 2) (2, 3, 33, 20)\n"


@pytest.mark.parametrize("first", [True, False])
def test_the_root_on_the_path_does_not_break_transformers(first: bool) -> None:
    """It imports the PyPI package `tokenizers`, and our folder of that name is found first."""
    code = (
        "import sys\n"
        "if sys.argv[1:] == ['last']: sys.path = [p for p in sys.path if p] + ['.']\n"
        "from transformers import LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "import tokenizers\n"
        "print(tokenizers.Tokenizer.__name__, hasattr(tokenizers, '_make_way'))"
    )
    arguments = [] if first else ["last"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["Tokenizer False"], done.stderr


def test_without_the_other_package_the_root_has_none() -> None:
    """Ours is no module of that name, wherever one stands."""
    code = (
        "import importlib.machinery as m, sys\n"
        "find = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = lambda name, path=None, target=None:"
        " None if name == 'tokenizers' and path else find(name, path, target)\n"
        "try: import tokenizers\n"
        "except ModuleNotFoundError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "No module named 'tokenizers'\n", done.stderr


# ---------------------------------------------------------------------------------------------------------- sources


def test_sources_are_found() -> None:
    assert len(SOURCES) > 25
    assert {folder_of(path) for path in SOURCES} == {"", *FOLDERS}


def test_parsing_of_imports() -> None:
    found = {name for name, _ in imports(ROOT / "codec" / "media" / "read_image.py")}
    assert {"tokodec.codec.errors", "tokodec.codec.errors.ChunkError", "PIL.Image"} <= found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    """codec -> tokenizers, entropy; neither of these knows the other (but for two files) or the codec; train on top."""
    home = folder_of(path)
    for name, line in imports(path):
        if not name.startswith("tokodec"):
            continue
        folder = ([*name.split("."), ""])[1]
        allowed = {home, *MAY_IMPORT[home], *MAY_ALSO_IMPORT.get(path.relative_to(ROOT).as_posix(), ())}
        assert folder not in FOLDERS or folder in allowed, f"line {line}: {home} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_inside_the_package_are_relative(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] != "tokodec", f"line {node.lineno}"
        elif isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "tokodec" for alias in node.names), f"line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_third_party_packages(path: Path) -> None:
    """Inference needs no package beyond those that are named here (and in pyproject.toml)."""
    home = folder_of(path)
    if home == "train" or "bench" in path.parts:
        return
    for name, line in imports(path):
        top = name.split(".")[0]
        more = MAY_ALSO_USE.get(path.relative_to(ROOT).as_posix(), set())
        known = sys.stdlib_module_names | {"tokodec"} | TYPES_ONLY | THIRD_PARTY[home] | more
        assert top in known, f"line {line}: {home} imports {name}"


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            unsafe = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
            assert not unsafe & {module.split(".")[0] for module in modules}, f"line {node.lineno}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True", f"line {node.lineno}"
        if isinstance(node, ast.Call):
            allow = [keyword for keyword in node.keywords if keyword.arg == "allow_pickle"]
            assert all(ast.unparse(keyword.value) == "False" for keyword in allow), f"line {node.lineno}"


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_path_of_somebodys_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search(r"""["'](/(home|root|work|tmp|mnt|data|Users|var)/|[A-Z]:\\\\)""", text) is None


def test_every_package_is_listed_for_installation() -> None:
    """A folder that pyproject.toml forgets is missing from the wheel, and only there."""
    text = (ROOT / "pyproject.toml").read_text()
    listed = set(re.findall(r'^    "(tokodec[\w.]*)",$', text, re.M))
    found = {".".join(["tokodec", *path.parent.relative_to(ROOT).parts]) for path in SOURCES}
    assert found == listed
    for path in SOURCES:
        assert (path.parent / "__init__.py").is_file()


def test_version_is_that_of_the_package() -> None:
    assert f'version = "{tokodec.__version__}"' in (ROOT / "pyproject.toml").read_text()


HELPERS = (
    "conftest.py", "golden/make.py", "hostile.py", "motion_model.py", "resuming.py", "media_corpus.py", "media_fuzz.py",
    "adapted_models.py", "compression_models.py",
    *(f"toy/toy_{name}.py" for name in ("tokenizer", "sound", "video", "adapted")),
)  # fmt: skip


def test_every_test_file_is_collected() -> None:
    """A file that is not called test_*.py would be tests that nobody runs."""
    for path in (ROOT / "tests").rglob("*.py"):
        relative = path.relative_to(ROOT / "tests")
        if str(relative) in HELPERS:
            continue
        assert relative.name.startswith("test_"), relative
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tests = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert any(name.startswith("test_") for name in tests), f"{relative} holds no test"


def test_no_test_is_defined_twice() -> None:
    """The second would replace the first in silence."""
    for path in TESTS:
        found = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert len(found) == len(set(found)), path.name


def test_collection_finds_all_of_them() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--import-mode=importlib", "--collect-only", "-q", "-p", "no:cacheprovider",
         "tests"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    collected = {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert collected == {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}
