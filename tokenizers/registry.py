"""Classes of tokenizers by the name in `config.json`, one row each. Standard library only."""

from __future__ import annotations

# config.json names a class of this table; nothing else is ever imported because a file says so.
TOKENIZER_CLASSES = {
    "ImageGrid": "image.grid",
    "ImagePhoto": "image.photo",
    "ImageSequence": "image.sequence",
    "AudioGRVQ": "audio.grvq",
    "VideoGrid": "video.grid",
}
