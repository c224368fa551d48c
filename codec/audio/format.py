"""Sounds as `.tok` files, of models whose rate is a number of levels in each segment."""

from __future__ import annotations

from ...tokenizers.tokens import Tokens
from ..container.read import TokFile
from ..contract import Decoded, Detokenized, Encoded, Format, Sink, Source, Tokenized
from ..media.audio import write_audio
from ..models import Model
from ..options import DecodeOptions, EncodeOptions, TokenizeOptions
from ..progress import Progress
from .decode import decode_sound, span_of, write_sound
from .encode import encode_sound
from .tokens import file_codes, file_of_codes, media_codes, sound_of_codes


class AudioFormat(Format):
    """Files of sounds."""

    rates = ("levels", "quality", "kbps", "bytes")
    options = frozenset({"prior", "effort", "start", "end", "track"})

    def encode(self, source: Source, model: Model | None, options: EncodeOptions, progress: Progress) -> Encoded:
        assert model is not None
        data, levels, tokens = encode_sound(source, model, options, progress)
        return Encoded(data, int(levels.max()), notes=tokens.notes, seconds=tokens.seconds, problems=tokens.problems)

    def decode(
        self, tok: TokFile, model: Model | None, options: DecodeOptions, sink: Sink | None, progress: Progress
    ) -> Decoded:
        assert model is not None
        span = span_of(tok.sound, options.start, options.end)
        if sink is None:
            sound = decode_sound(tok, model, span, options.levels, progress)
            return Decoded(sound, tok.header, 1, tok.problems)
        notes = write_sound(tok, model, span, sink, options, progress=progress)
        return Decoded(None, tok.header, 1, tok.problems, notes)

    def tokenize(self, source: Source, model: Model, options: TokenizeOptions) -> Tokenized:
        return media_codes(source, model, options)

    def tokens_of(self, tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
        return file_codes(tok, model, levels)

    def pack(self, tokens: Tokens, model: Model) -> bytes:
        return file_of_codes(tokens, model)

    def render(self, tokens: Tokens, model: Model, sink: Sink | None, synthesis: str | None) -> Detokenized:
        sound = sound_of_codes(tokens, model)
        return Detokenized(sound, [] if sink is None else write_audio(sound, sink.file, sink.suffix, sink.name))
