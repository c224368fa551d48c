"""Tokens of sounds: from a medium, from a `.tok` file, and back to both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from ...tokenizers.audio.base import channels_of
from ...tokenizers.tokens import Tokens
from ..container.fields import MAX_CHANNELS
from ..container.read import TokFile
from ..contract import Tokenized
from ..errors import UsageError
from ..media.audio import AudioReader, Samples, Sound
from .decode import audio_tokenizer, is_left_right, read_codes, to_channels
from .encode import SoundFile, SoundTokens, analyse_samples, code_type, sound_header, without_samples

if TYPE_CHECKING:
    from ..contract import Source
    from ..models import Model
    from ..options import TokenizeOptions


def file_codes(tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
    """Tokens ``[signals, K, t]`` of a file; levels that no segment has are left out.

    Raises: UsageError if the signals change on the way, as :mod:`.stereo` has it.
    """
    if any(is_left_right(tok, segment) for segment in range(tok.sound.n_segments)):
        raise UsageError(
            "some of its segments hold left and right, and tokens are of middle and side: decode it, and tokenize that"
        )
    codes = read_codes(tok, model, levels)
    held = max(1, int((codes >= 0).any(axis=(0, 2)).sum()))
    spec = audio_tokenizer(model).spec((tok.sound.coded_samples,), channels=channels_of(len(codes)))
    return Tokens(torch.from_numpy(codes[:, :held]), spec)


def media_codes(source: Source, model: Model, options: TokenizeOptions) -> Tokenized:
    """Tokens ``[signals, K, t]`` of a sound, and what they do not tell of it."""
    tokenizer = audio_tokenizer(model)
    with AudioReader(source.data, source.name, options.max_samples, options.track) as reader:
        found = analyse_samples(reader, tokenizer, options.levels)
    if found is None:
        raise without_samples(reader)
    notes = list(found.notes)
    rate = tokenizer.hertz
    if found.sample_rate != rate:
        notes.append(f"tokens are of {rate} Hz, the source has {found.sample_rate}")
    if found.channels > len(found.codes):
        notes.append(f"the {found.channels} channels are the same, tokens are of one")
    n = -(-found.samples * rate // found.sample_rate)
    codes = torch.from_numpy(found.codes.astype(np.int64))
    tokens = Tokens(codes, tokenizer.spec((n,), channels=channels_of(len(codes))))
    return Tokenized(tokens, found.problems, notes)


def file_of_codes(tokens: Tokens, model: Model) -> bytes:
    """A `.tok` file from tokens ``[signals, K, t]``, of a sound at the model's rate.

    Raises: UsageError if there are more signals than a file holds.
    """
    codes = tokens.codes.numpy()
    if len(codes) > MAX_CHANNELS:
        raise UsageError(f"a .tok file holds {MAX_CHANNELS} signals at most, not {len(codes)}")
    sound = SoundTokens(
        codes=codes.astype(code_type(tokens.spec.codebook_sizes)),
        errors=None,
        samples=tokens.spec.size[0],
        sample_rate=audio_tokenizer(model).hertz,
        channels=len(codes),
        bit_depth=16,
        notes=[],
    )
    files = SoundFile(model, sound, sound_header(sound, model))
    held = (codes >= 0).all(axis=2).sum(1)  # levels of each signal
    if (held < 1).any() or ((codes >= 0).sum(axis=(1, 2)) > held * codes.shape[2]).any():
        raise UsageError("some codes are absent (-1), a .tok file wants all of them")
    return files.build(np.tile(held, (len(files.spans), 1)))


def sound_of_codes(tokens: Tokens, model: Model) -> Sound:
    """Samples of tokens ``[signals, K, t]`` at the model's rate."""
    with torch.inference_mode():
        x_hat = audio_tokenizer(model).decode(tokens.to(model.tokenizer.device))
    signals: Samples = x_hat[:, 0].cpu().numpy()
    return Sound(to_channels(signals, len(signals)), audio_tokenizer(model).hertz)
