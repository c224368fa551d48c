"""Sequences for training from the codes of a corpus, on a CPU: `codec corpus compose`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError, WeightsMismatchError
from ..models import load_model
from ..progress import SILENT, Progress
from ..tokens import first_levels
from .manifest import MANIFEST, Corpus
from .megatron import MEGATRON_SUFFIXES, MegatronWriter, sequencer_maker
from .places import place_of

if TYPE_CHECKING:
    from ...tokenizers.api import Tokenizer


def compose(
    folders: Sequence[str | Path],
    out: str | Path,
    pattern: str = "levels",
    digits: bool = False,
    *,
    levels: int | None = None,
    model: str | Tokenizer | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> MegatronWriter:
    """Write the sequences of all samples of finished corpora, in their order, as `codec tokenize --format megatron`
    would have written them.

    Args:    folders: or URLs; all of one model.  out: `.bin` file or its URL.  pattern, digits: see
             :func:`.megatron.sequencer_maker`.  levels: at most so many, coarse to fine.
             model: that made the codes, if it is no release; needed for `.tok` shards and for digits.
    Returns: the writer, which says what was written.
    Raises:  a :class:`~..errors.TokodecError`; nothing is left then.
    """
    if Path(out).suffix.lower() != ".bin":
        raise UsageError(f"{out}: sequences are written to a .bin file")
    corpora = [Corpus(folder) for folder in folders]
    made = [(corpus.fingerprint["model"], corpus.fingerprint["weights_hash"]) for corpus in corpora]
    for corpus, own in zip(corpora, made, strict=True):
        if own != made[0]:
            raise WeightsMismatchError(f"{corpus.place.name}: tokens of {own[0]} {own[1]}, not of {' '.join(made[0])}")
        if corpus.fingerprint["format"] == "tok":
            corpus.model = load_model(model or own[0])
    total = sum(map(len, corpora))
    folder, _, name = str(out).rpartition("/")
    stem = Path(name).stem
    data, index, schema = (stem + suffix for suffix in MEGATRON_SUFFIXES)
    place = place_of(folder or ".")
    if place.has(MANIFEST):
        raise UsageError(f"{place.name} holds a corpus: write the sequences to another folder")
    with place.outputs([index, schema, data], force) as (index_file, schema_file, data_file):
        maker = sequencer_maker(pattern, digits, model, "cpu")
        writer = MegatronWriter(index_file, schema_file, data_file, maker)
        for corpus in corpora:
            for i in range(len(corpus)):
                key, tokens = corpus.sample(i)
                writer.add(key, first_levels(tokens, levels))
                progress.update(len(writer) / total)
        writer.close()
    return writer
