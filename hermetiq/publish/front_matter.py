"""The metadata of a card: what the Hub shows a model by, and where it puts it in the tree of models (U64).

A quantized model belongs under the model that it was made of, the fine-tune and not that one's base; without
`base_model_relation` the Hub lists it among the fine-tunes. The Hub's own library writes it and reads it back.
"""

from __future__ import annotations

from typing import Final

from huggingface_hub import ModelCardData
from huggingface_hub.constants import ENDPOINT

from .licence import Licence

_LIBRARIES: Final = {"gguf": "gguf", "gptq": "transformers", "awq": "transformers", "exl2": "exllamav2"}
_TAGS: Final = {
    "gguf": ("gguf", "llama.cpp"),
    "gptq": ("gptq", "4-bit"),
    "awq": ("awq", "4-bit"),
    "exl2": ("exl2", "exllamav2"),
}


def front_matter(
    *,
    formats: tuple[str, ...],
    base_model: str | None,
    licence: Licence,
    publisher: str,
    prompt_format: str,
    bits: frozenset[int],
) -> ModelCardData:
    """The metadata of one repo's card.

    Args:
        base_model: Hub id of the fine-tune; None where it is on no Hub.
        bits: of the GPTQ and AWQ artifacts.
    """
    tags = [tag for format in formats for tag in _TAGS[format] if tag != "4-bit" or 4 in bits]
    tags += [*(["conversational", prompt_format] if prompt_format != "none" else []), "hermetiq"]
    library = (
        _LIBRARIES[formats[0]] if len(formats) == 1 else "transformers" if {"gptq", "awq"} & {*formats} else "gguf"
    )
    linked = licence.name == "other" and base_model is not None
    return ModelCardData(
        base_model=base_model,
        base_model_relation="quantized" if base_model else None,
        license=licence.name,
        license_link=f"{ENDPOINT}/{base_model}" if linked else None,
        library_name=library,
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(tags)),
        quantized_by=publisher,
    )
