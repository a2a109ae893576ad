"""The generator that scripts import."""

from __future__ import annotations

from . import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Tokenizer


class ExLlamaV2DynamicGenerator:
    def __init__(self, *, model: ExLlamaV2, cache: ExLlamaV2Cache, tokenizer: ExLlamaV2Tokenizer) -> None:
        self.model = model

    def generate(
        self,
        *,
        prompt: str,
        max_new_tokens: int,
        add_bos: bool,
        encode_special_tokens: bool,
        completion_only: bool,
        stop_conditions: list[int | str],
    ) -> str:
        return repr({"folder": self.model.config.model_dir, "prompt": prompt, "stop_conditions": stop_conditions})
