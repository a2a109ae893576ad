"""exllamav2 without a GPU: the same names and arguments; `generate` answers with what it was told."""

from __future__ import annotations


class ExLlamaV2Config:
    def __init__(self, model_dir: str) -> None:
        self.model_dir = model_dir


class ExLlamaV2:
    def __init__(self, config: ExLlamaV2Config) -> None:
        self.config = config

    def load_autosplit(self, cache: ExLlamaV2Cache) -> None:
        self.cache = cache


class ExLlamaV2Cache:
    def __init__(self, model: ExLlamaV2, *, lazy: bool) -> None:
        self.model, self.lazy = model, lazy


class ExLlamaV2Tokenizer:
    def __init__(self, config: ExLlamaV2Config) -> None:
        self.config = config
