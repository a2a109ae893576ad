"""The files that travel with quantized weights, so that the folder is the same chat model as its source.

Quantizers write weights and leave the rest behind: the stop list, the template, the sampling defaults (U03, U38), or a
tokenizer class that only one version of transformers knows (U17). Here the source's own files are taken, and whatever
the chat contract speaks of is stated in every place that some reader believes. A `.gguf` source has no such files;
they are made from what its metadata says. Nothing is written: the bytes are handed out by file name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import tokenizers
from tokenizers import processors

from hermetiq.chat.contract import ChatContract
from hermetiq.chat.eos import id_list, token_text
from hermetiq.chat.special_checks import with_plain_lists
from hermetiq.checkpoint.base import Checkpoint
from hermetiq.checkpoint.documents import TEMPLATE, read_bytes
from hermetiq.checkpoint.families import ARCHITECTURES

TOKENIZER_CLASS: Final = "PreTrainedTokenizerFast"
"""Reads `tokenizer.json` as it stands in every transformers of the last years. Documented classes do not: transformers
5 builds a `LlamaTokenizer` anew from the vocabulary, and 331 of the 2,000 parity texts then get other tokens."""
QUANTIZER_FILES: Final = {"gptq": "quantize_config.json"}
"""Where readers older than `quantization_config` look, by `quant_method`."""
OWN_HEAD: Final = frozenset({"exl2"})
"""By `quant_method`: formats that quantize the head, so that it is no longer the embedding to which it was tied."""
VOCABULARIES: Final = ("tokenizer.model", "vocab.json", "merges.txt")
"""What slow tokenizers and converters read in the place of `tokenizer.json`."""

_LICENSE = re.compile(r"(licen[cs]e|notice|copying|use_policy)([-_][\w-]+)?(\.(txt|md|rst))?", re.IGNORECASE)
_PERSONAL = ("auto_map", "_name_or_path", "_commit_hash")
"""Keys that point to code of the source or to somebody's folders."""


def companions(
    checkpoint: Checkpoint, contract: ChatContract, quantization: Mapping[str, Any], *, dtype: str = "float16"
) -> dict[str, bytes]:
    """Every file of an artifact folder but its tensors, by name; the same arguments give the same bytes.

    Opened again, the folder has the same contract. What encoding adds is the contract's decision: no BOS where the
    template prints it (U19), and never an EOS behind a prompt.

    Args:
        checkpoint: the source, with its adapter.
        contract: derived from it.
        quantization: the format's `quantization_config`; empty where the weights are plain.
        dtype: of the stored floats, as torch names it.

    Raises:
        Refusal: `source-incomplete`, a file of the source cannot be copied.
    """
    texts = _special_texts(checkpoint, contract)
    documents: dict[str, Mapping[str, Any]] = {
        "config.json": _config(checkpoint, contract, quantization, dtype),
        "generation_config.json": _generation(checkpoint, contract),
        "tokenizer_config.json": _tokenizer_config(checkpoint, contract, texts),
        "special_tokens_map.json": _restated(
            with_plain_lists(checkpoint.documents.get("special_tokens_map.json", {}), checkpoint.tokenizer), texts
        ),
    }
    if added := checkpoint.documents.get("added_tokens.json"):
        documents["added_tokens.json"] = added
    if name := QUANTIZER_FILES.get(quantization.get("quant_method", "")):
        documents[name] = quantization
    return {
        **{name: json_bytes(document) for name, document in documents.items()},
        "tokenizer.json": _joined_merges(_tokenizer_json(checkpoint, contract)),
        **({TEMPLATE: contract.template.encode()} if contract.is_chat else {}),
        **dict(_copies(checkpoint)),
    }


def _config(
    checkpoint: Checkpoint, contract: ChatContract, quantization: Mapping[str, Any], dtype: str
) -> dict[str, Any]:
    """`config.json` for readers on transformers 4 (`rope_theta`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`)."""
    model, own = checkpoint.model, checkpoint.config
    scaling = None if model.rope_scaling is None else dict(model.rope_scaling)
    stated = {
        "architectures": [ARCHITECTURES[model.family]],
        "bos_token_id": _bos(checkpoint.config, contract),
        "eos_token_id": _stops(contract),
        "pad_token_id": contract.pad_token_id,
        "vocab_size": contract.rows,
        "tie_word_embeddings": model.tied and quantization.get("quant_method") not in OWN_HEAD,
        "rope_theta": model.rope_theta,
        "rope_scaling": own["rope_scaling"] if _is_early(own.get("rope_scaling")) else scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": model.rope_theta},
        "dtype": dtype,
        "torch_dtype": dtype,
        **({"quantization_config": dict(quantization)} if quantization else {}),
    }
    return _without(own, *_PERSONAL) | stated


def _is_early(scaling: object) -> bool:
    """Whether a scaling is spelled for early readers of transformers 4, who accept `type` and `factor` alone.

    Any other is written anew, under `rope_type`: some transformers wrote both names, which exllamav2 refuses, and yarn
    without the length that exllamav2 asks for.
    """
    return (
        isinstance(scaling, Mapping)
        and scaling.keys() == {"type", "factor"}
        and scaling["type"] in ("linear", "dynamic")
    )


def _generation(checkpoint: Checkpoint, contract: ChatContract) -> dict[str, Any]:
    """Stops, BOS and padding; sampling defaults stay as they are."""
    own = checkpoint.documents.get("generation_config.json", {})
    ids = {
        "bos_token_id": _bos({**checkpoint.config, **own}, contract),
        "eos_token_id": _stops(contract),
        "pad_token_id": contract.pad_token_id,
    }
    # With this mark transformers would take the ids from config.json again.
    kept = _without(own, "_from_model_config", *_PERSONAL)
    return {**kept, **{name: value for name, value in ids.items() if value is not None or name in kept}}


def _tokenizer_config(
    checkpoint: Checkpoint, contract: ChatContract, texts: Mapping[str, str | None]
) -> dict[str, Any]:
    own = checkpoint.documents.get("tokenizer_config.json")
    base = {"added_tokens_decoder": _added_tokens(checkpoint)} if own is None else _without(own, *_PERSONAL)
    base = with_plain_lists(base, checkpoint.tokenizer)
    return {
        # What the generic class has other defaults for: blanks before punctuation stay, and models take no third input.
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": checkpoint.model.context_length,
        **_restated(base, texts),
        "tokenizer_class": TOKENIZER_CLASS,
        "add_bos_token": contract.add_bos,
        "add_eos_token": False,
        **({"chat_template": _inline(base.get("chat_template"), contract.template)} if contract.is_chat else {}),
    }


def _added_tokens(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Added tokens by id, as `tokenizer_config.json` has them."""
    added = checkpoint.tokenizer.backend.get_added_tokens_decoder()
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {str(index): {flag: getattr(token, flag) for flag in flags} for index, token in sorted(added.items())}


def _tokenizer_json(checkpoint: Checkpoint, contract: ChatContract) -> bytes:
    """The source's file where it already puts around a text what the contract says, else one that does."""
    stored = tokenizer_file(checkpoint, "tokenizer.json")
    backend = checkpoint.tokenizer.backend
    bos = [contract.bos_token_id] if contract.add_bos and contract.bos_token_id is not None else []
    plain = backend.encode("x", add_special_tokens=False).ids
    if stored is not None and backend.encode("x").ids == [*bos, *plain]:
        return stored
    # A copy: the checkpoint's own tokenizer stays as it is.
    changed = tokenizers.Tokenizer.from_str(backend.to_str())
    names = [text for text in map(changed.id_to_token, bos) if text is not None]
    changed.post_processor = processors.TemplateProcessing(
        single=[*names, "$A"],
        pair=[*names, "$A", *(f"{name}:1" for name in names), "$B:1"],
        special_tokens=list(zip(names, bos, strict=True)),
    )
    text: str = changed.to_str()
    return text.encode()


def _joined_merges(data: bytes) -> bytes:
    """A `tokenizer.json` with merges as `a b`, which every reader takes; pairs only `tokenizers` since 0.20 (U47).

    Pairs stay where a half holds a space, which the older form cannot say.
    """
    document = json.loads(data)
    merges = document["model"].get("merges") or []
    if all(isinstance(merge, str) for merge in merges) or any(" " in half for merge in merges for half in merge):
        return data
    joined = [" ".join(merge) for merge in merges]
    return json_bytes({**document, "model": {**document["model"], "merges": joined}})


def _special_texts(checkpoint: Checkpoint, contract: ChatContract) -> dict[str, str | None]:
    """The contract's special tokens by the field that names them; None where there is none."""
    ids = {"bos_token": contract.bos_token_id, "pad_token": contract.pad_token_id, "unk_token": contract.unk_token_id}
    tokens = checkpoint.tokenizer.vocabulary.tokens
    return {
        "eos_token": contract.terminator,
        **{field: None if index is None else tokens[index].text for field, index in ids.items()},
    }


def _restated(document: Mapping[str, Any], texts: Mapping[str, str | None]) -> dict[str, Any]:
    """`document` with the special tokens of `texts`; those that it already names stay in its own form."""
    changed = {
        field: text
        for field, text in texts.items()
        if token_text(document.get(field)) != text and (text is not None or field in document)
    }
    return {**document, **changed}


def _inline(stated: Any, template: str) -> str | list[Any]:
    """The template, in the place of the default one where the source has a list of several (tool use, say)."""
    if not isinstance(stated, list):
        return template
    others = [entry for entry in stated if isinstance(entry, Mapping) and entry.get("name") != "default"]
    return [{"name": "default", "template": template}, *others]


def _stops(contract: ChatContract) -> int | list[int]:
    """All stops, the terminator first: readers that know one id only take that one."""
    others = [token for token in contract.stop_ids if token != contract.terminator_id]
    return [contract.terminator_id, *others] if others else contract.terminator_id


def _bos(document: Mapping[str, Any], contract: ChatContract) -> int | None:
    """The contract's BOS; without one the id that the source states though its tokenizer has none (Qwen)."""
    if contract.bos_token_id is not None:
        return contract.bos_token_id
    return next((token for token in id_list(document.get("bos_token_id")) if 0 <= token < contract.rows), None)


def _copies(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    """Further files of the tokenizer, and the licence that the weights come under."""
    found = {name: tokenizer_file(checkpoint, name) for name in VOCABULARIES}
    if checkpoint.path.is_dir():
        names = sorted(path.name for path in checkpoint.path.iterdir() if _LICENSE.fullmatch(path.name))
        found |= {name: read_bytes(checkpoint.path, name) for name in names}
    yield from ((name, data) for name, data in found.items() if data is not None)


def tokenizer_file(checkpoint: Checkpoint, name: str) -> bytes | None:
    """The bytes of one file of the checkpoint's tokenizer; None where it has none of that name.

    Raises:
        Refusal: `source-incomplete`, the file cannot be copied.
    """
    if checkpoint.files is not None:
        return checkpoint.files.get(name)
    return None if checkpoint.tokenizer_folder is None else read_bytes(checkpoint.tokenizer_folder, name)


def _without(document: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """JSON as every file of an artifact spells it."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
