"""Tokenizers for videos."""
