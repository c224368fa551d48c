"""Texts as `.tok` files: segments of 4096 codes, each decodable on its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ...tokenizers.tokens import Tokens
from ..container.fields import TextHeader
from ..container.read import TokFile
from ..container.write import write_tok
from ..contract import Decoded, Encoded, Format, Sink, Source, Tokenized
from ..errors import FormatError, MediaError
from ..models import Model
from ..options import DecodeOptions, EncodeOptions, TokenizeOptions
from ..progress import Progress

SEGMENT = 4096  # codes


class TextFormat(Format):
    """Nothing sets the rate: every byte is kept."""

    rates = ()
    options = frozenset({"prior"})

    def encode(self, source: Source, model: Model | None, options: EncodeOptions, progress: Progress) -> Encoded:
        assert model is not None
        return Encoded(self.pack(self.tokenize(source, model, TokenizeOptions()).tokens, model), 1)

    def decode(
        self, tok: TokFile, model: Model | None, options: DecodeOptions, sink: Sink | None, progress: Progress
    ) -> Decoded:
        assert model is not None
        tokens = self.tokens_of(tok, model)
        if options.strict and tok.problems:
            raise FormatError(tok.problems[0])
        return Decoded(self.render(tokens, model, sink, None), tok.header, 1, tok.problems)

    def tokenize(self, source: Source, model: Model, options: TokenizeOptions) -> Tokenized:
        data = source.data.read_bytes() if isinstance(source.data, Path) else source.data.read()
        if not data:
            raise MediaError(f"{source.name}: a text without a character")
        return Tokenized(model.tokenizer.encode(torch.frombuffer(bytearray(data), dtype=torch.uint8)[None]))

    def tokens_of(self, tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
        header = tok.header
        assert isinstance(header, TextHeader)
        codes = np.full((1, 1, header.length), ord("?"), dtype=np.int64)
        for s in range(header.n_segments):
            part = codes[0, :, s * header.segment : (s + 1) * header.segment]
            try:
                if not (payloads := tok.segment_payloads(s, 1)):
                    raise ValueError("missing or damaged")
                part[...] = model.prior.decompress(payloads, part.shape[1:])
            except ValueError as error:
                tok.damaged(f"segment {s}: {error}; its characters are question marks")
        return Tokens(torch.from_numpy(codes), model.tokenizer.spec((header.length,)))

    def pack(self, tokens: Tokens, model: Model) -> bytes:
        codes, n = tokens.codes[0].numpy(), tokens.codes.shape[2]
        header = TextHeader(
            model=tokens.spec.model,
            weights_hash=tokens.spec.weights_hash,
            prior=model.prior.wire_id,
            prior_hash=model.prior.hash,
            layers=1,
            length=n,
            segment=SEGMENT,
        )
        parts = [codes[:, at : at + SEGMENT] for at in range(0, n, SEGMENT)]
        return write_tok(header, [[model.prior.compress(part)[0] for part in parts]])

    def render(self, tokens: Tokens, model: Model, sink: Sink | None, synthesis: str | None) -> str:
        data = bytes(model.tokenizer.decode(tokens)[0].cpu().numpy())
        if sink is not None:
            sink.file.write(data)
        return data.decode(errors="replace")
