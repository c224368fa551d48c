"""Tokenizers: analysis network -> quantizer -> integer codes, and back. Needs torch and einops only."""
