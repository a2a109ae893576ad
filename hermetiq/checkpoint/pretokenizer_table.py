"""The pre-tokenizers of llama.cpp by name, and the search for the one that a tokenizer behaves like.

A GGUF names its pre-tokenizer; the runtime owns the regular expressions. Converters find the name by a hash over one
test string, which breaks as soon as a token is added (U18). Here the pre-tokenizer itself is run over strings that
tell the families apart, and the name follows from what it does.

The expressions are those of `llm_tokenizer_bpe` in llama.cpp's `src/llama-vocab.cpp`. An entry is in the table only if
`tests/checkpoint/test_pretokenizer.py` proves it against llama.cpp itself. `tekken` is llama.cpp's approximation: it
cuts letters outside ASCII by other rules than the tokenizer.json of Mistral Nemo, which is therefore not identified.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from time import process_time
from types import MappingProxyType
from typing import Final

import tokenizers
from tokenizers import Regex, pre_tokenizers

from hermetiq.errors import Refusal

from .documents import incomplete
from .probes import probes

_SECONDS: Final = 10
"""A thousand times what an honest pattern takes for all probes."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# llama.cpp spells the case-insensitive contractions out, so that `'\u017f` is not one of them.
_MODERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))*((?=[\p{L}])([^A-Z]))+"
    r"|[^\r\n\p{L}\p{N}]?((?=[\p{L}])([^a-z]))+((?=[\p{L}])([^A-Z]))*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """What llama.cpp does under one name."""

    name: str
    expressions: tuple[str, ...]
    """Applied in turn: each cuts what the ones before have left into its matches and the gaps between them."""
    ignore_merges: bool = False
    """A piece that is a token is taken whole, even where no sequence of merges makes it."""
    aliases: tuple[str, ...] = ()
    """Other names for the same behaviour. Names may differ in how text is cleaned up after decoding, never in ids."""
    add_bos: bool = False
    """What llama.cpp does where the file does not say (`tokenizer.ggml.add_bos_token`)."""

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The same behaviour as a `tokenizers` pre-tokenizer."""
        splits = [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in self.expressions]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


TABLE = (
    PreTokenizer(
        "gpt-2",
        (_GPT2,),
        aliases=(
            "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code", "roberta-bpe",
            "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4", "mpt", "olmo", "jais", "trillion",
            "granite-docling",
        ),
    ),
    PreTokenizer(
        "llama-bpe",
        (_MODERN.replace("DIGITS", "{1,3}"),),
        ignore_merges=True,
        aliases=("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        add_bos=True,
    ),
    PreTokenizer(
        "qwen2",
        (_MODERN.replace("DIGITS", ""),),
        aliases=("stablelm2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan", "solar-open", "grok-2"),
    ),
    PreTokenizer(
        "smollm",
        (r"\p{N}", _GPT2),
        aliases=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    PreTokenizer("smaug-bpe", (_MODERN.replace("DIGITS", "{1,3}"),), aliases=("dbrx", "chatglm-bpe")),
    PreTokenizer("tekken", (_TEKKEN,), ignore_merges=True, add_bos=True),
    PreTokenizer(
        "deepseek-v3", (r"\p{N}{1,3}", _CJK, _DEEPSEEK), aliases=("hunyuan-dense", "joyai-llm", "hy_v4")
    ),
    PreTokenizer("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
)  # fmt: skip

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = MappingProxyType(
    {name: entry for entry in TABLE for name in (entry.name, *entry.aliases)}
)
"""By llama.cpp's name, aliases included; families with the most models first."""


@dataclass(frozen=True)
class Identification:
    """The outcome of comparing a pre-tokenizer with the table."""

    name: str
    """llama.cpp's name; empty where nothing in the table behaves so."""
    nearest: str
    """The name with the fewest differences; equal to `name` where there is one."""
    differing: tuple[str, ...]
    """Probe strings that are cut differently under `nearest`; empty where only `ignore_merges` differs."""


def identify(backend: tokenizers.Tokenizer) -> Identification:
    """Which of llama.cpp's pre-tokenizers the byte-level BPE `backend` behaves like.

    `ignore_merges` of its model must agree as well: it decides between `llama-bpe` and `smaug-bpe`. Where several names
    behave the same, the one that heads its entry in the table is taken.

    Raises:
        Refusal: `source-incomplete`, its patterns take far too long.
    """
    ignore_merges = bool(getattr(backend.model, "ignore_merges", False))
    pieces = _cut(backend)
    candidates = []
    for entry in TABLE:
        compared = zip(probes(), pieces, _pieces(entry), strict=True)
        differing = tuple(text for text, mine, theirs in compared if mine != theirs)
        if not differing and entry.ignore_merges == ignore_merges:
            return Identification(entry.name, entry.name, ())
        candidates.append(Identification("", entry.name, differing))
    return min(candidates, key=lambda candidate: len(candidate.differing))


def _cut(backend: tokenizers.Tokenizer) -> list[list[str]]:
    """The pieces of every probe string, after normalization as before encoding."""
    normalizer, pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    texts = [normalizer.normalize_str(text) if normalizer else text for text in probes()]
    if pre_tokenizer is None:
        return [[text] for text in texts]
    pieces = list[list[str]]()
    started = process_time()
    for text in texts:
        pieces.append([piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)])
        if process_time() - started > _SECONDS:
            found = f"patterns that take more than {_SECONDS} seconds for {len(pieces)} short texts"
            expected = "patterns without repeated groups"
            raise Refusal(incomplete("tokenizer.json", field="pre_tokenizer", found=found, expected=expected))
    return pieces


@cache
def _pieces(entry: PreTokenizer) -> list[list[str]]:
    pre_tokenizer = entry.build()
    return [[piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)] for text in probes()]
