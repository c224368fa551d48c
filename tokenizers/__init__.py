"""Tokenizers: analysis network -> quantizer -> integer codes, and back. Needs torch and einops only."""


def _make_way() -> None:
    """Load the package of this name from elsewhere into our place."""
    import importlib.machinery
    import importlib.util
    import sys
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent
    elsewhere = [place for place in sys.path if Path(place or ".").resolve() != root]
    spec = importlib.machinery.PathFinder.find_spec("tokenizers", elsewhere)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers")
    module = importlib.util.module_from_spec(spec)
    sys.modules["tokenizers"] = module  # whoever imports takes what is there when we are done
    spec.loader.exec_module(module)


if __name__ == "tokenizers":  # and not tokodec.tokenizers: the repository root is on sys.path, before the package of
    _make_way()  # that name from PyPI, which `transformers` wants
