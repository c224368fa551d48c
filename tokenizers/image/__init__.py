"""Image tokenizers, one idea a file."""
