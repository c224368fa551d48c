"""What there is: modalities, priors and default models, one row each. Standard library only."""

from __future__ import annotations

from .errors import UsageError

FITTED = "video-fit"  # no model: what decodes a video is in its file, video/fit/
DEFAULT_MODELS = {"image": "image-photo", "audio": "audio-24k", "video": "video-grid"}  # of `codec encode`
TUNES = {"psnr": "image-photo", "ms-ssim": "image-photo-ms-ssim"}  # of `codec encode`: what pictures are best at
TOKEN_MODELS = {  # of `codec tokenize`: few codes, for generators
    "image": "image-grid",
    "audio": "audio-24k",
    "video": "video-grid",
}
MODALITIES = {  # by class, for lists without torch
    "ImageGrid": "image",
    "ImagePhoto": "image",
    "ImageSequence": "image",
    "AudioGRVQ": "audio",
    "VideoGrid": "video",
}
DIALS = {"ImagePhoto": "quality", "ImageSequence": "tokens"}  # of classes whose rate dial is not levels
GENERATOR = "Generator"  # class of the models of `codec generate`
GENERATORS = {"image": "generator-image", "audio": "generator-audio"}  # of `codec generate`
PRIOR_FILES = {  # best first
    "hyperprior": "hyperprior.safetensors",
    "context": "context.safetensors",
    "tail": "tail.safetensors",
    "static": "prior.safetensors",
}


def choose_model(model: str | None, tune: str | None, kind: str = "image") -> str:
    """The model for what a file holds. Raises UsageError for an unknown ``tune``, or one that makes no sense."""
    if tune is None:
        return model or DEFAULT_MODELS[kind]
    if model is not None:
        raise UsageError("give a model or what it is tuned for, not both")
    if tune not in TUNES:
        raise UsageError(f"unknown tune {tune!r}: use {' or '.join(TUNES)}")
    if kind != "image":
        raise UsageError("models are tuned for pictures only")
    return TUNES[tune]
