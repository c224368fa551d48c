"""Videos as `.tok` files: what all of them share, and those of models whose rate is a number of levels."""

from __future__ import annotations

import abc
from functools import partial

from ...tokenizers.tokens import Tokens
from ..container.read import TokFile
from ..contract import Decoded, Detokenized, Encoded, Format, Sink, Source, Tokenized, Tokenless
from ..models import Model, model_for
from ..options import SOUND_OPTIONS, DecodeOptions, EncodeOptions, TokenizeOptions
from ..progress import Progress
from .clock import shown_clock
from .decode import SegmentFrames, part_of, segment_frames_of, write_frames
from .encode import encode_video
from .tokens import file_codes, file_of_codes, media_codes, write_codes
from .track import NO_SOUND

OF_SOUND = "--sound-model (or leave the sound out: --no-sound)"


class AnyVideoFormat(Format):
    """Files of videos. A subclass knows what segments hold."""

    @abc.abstractmethod
    def frames_of(self, tok: TokFile, model: Model | None, options: DecodeOptions) -> SegmentFrames:
        """What decodes the frames of a segment."""

    def decode(
        self, tok: TokFile, model: Model | None, options: DecodeOptions, sink: Sink | None, progress: Progress
    ) -> Decoded:
        part = part_of(shown_clock(tok), options.start, options.end)
        frames = self.frames_of(tok, model, options)
        notes = [NO_SOUND] if tok.track is not None and options.sound is None else []
        if sink is not None:
            load = None
            if tok.track is not None and options.sound is not None:
                load = partial(model_for, tok.sound, options.sound.model, options.device, OF_SOUND)
            notes += write_frames(tok, frames, part, sink, load_sound=load, strict=options.strict, progress=progress)
        return Decoded(None, tok.header, 1, tok.problems, notes)


class TokenlessFormat(Tokenless, AnyVideoFormat):
    """Files of videos that hold no tokens; a subclass says why."""


class VideoFormat(AnyVideoFormat):
    """Files of models whose rate is a number of levels in each segment."""

    rates = ("levels", "quality", "bpp", "kbps", "bytes")
    options = frozenset({"prior", "effort", "start", "end", "track", *SOUND_OPTIONS})

    def encode(self, source: Source, model: Model | None, options: EncodeOptions, progress: Progress) -> Encoded:
        assert model is not None
        return encode_video(source, model, options, progress)

    def frames_of(self, tok: TokFile, model: Model | None, options: DecodeOptions) -> SegmentFrames:
        assert model is not None
        return segment_frames_of(tok, model, options.levels)

    def tokenize(self, source: Source, model: Model, options: TokenizeOptions) -> Tokenized:
        return media_codes(source, model, options)

    def tokens_of(self, tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
        """Tokens of a file of one segment. Raises UsageError for more."""
        return file_codes(tok, model, levels)

    def pack(self, tokens: Tokens, model: Model) -> bytes:
        return file_of_codes(tokens, model)

    def render(self, tokens: Tokens, model: Model, sink: Sink | None, synthesis: str | None) -> Detokenized:
        return Detokenized(None, [] if sink is None else write_codes(tokens, model, sink))
