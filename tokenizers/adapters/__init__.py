"""Tokenizers of other people, as they are: see README.md. Nothing here is imported before one of them is used."""
