"""Corpora: tokens of many files in one, for programs that train generators."""

from .megatron import MegatronWriter, read_megatron
from .webdataset import WebDatasetWriter, read_webdataset, write_webdataset

__all__ = ["MegatronWriter", "WebDatasetWriter", "read_megatron", "read_webdataset", "write_webdataset"]
