"""One small function for each rule, and the table that names them.

A check yields findings and never raises for what it looks for. Faults that stop a checkpoint from opening, its template
from rendering or its contract from being derived are in `Subject.noticed` before any check runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final, cast

from hermetiq.chat.artifact_checks import kquant_shape, not_quantized
from hermetiq.chat.contract import used_tokens
from hermetiq.chat.dialect import template_dialect
from hermetiq.chat.eos import SENTENCEPIECE, sentencepiece_file, sentencepiece_of, token_text
from hermetiq.chat.eos_checks import eos_mismatch, turn_end
from hermetiq.chat.merge_checks import merge_rows, merge_vocab
from hermetiq.chat.probe import TEMPLATE_FIELD, first_rendering, printed_tags, template_variables
from hermetiq.chat.prompt_formats import FORMATS
from hermetiq.chat.rope_checks import rope_form
from hermetiq.chat.special_checks import special_lists
from hermetiq.chat.subject import Check, Subject
from hermetiq.chat.template import TemplateError, TemplateUnsafe
from hermetiq.chat.tensor_checks import tensors_lost
from hermetiq.checkpoint.documents import TEMPLATE
from hermetiq.checkpoint.pretokenizer import pretokenizer_finding
from hermetiq.checkpoint.shards import listed
from hermetiq.errors import Finding, Severity
from hermetiq.model import EMBEDDING, TokenKind
from hermetiq.rules import finding

_CLASSES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "llama": frozenset({"LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"}),
        "gpt2": frozenset({"GPT2Tokenizer", "GPT2TokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast"}),
    }
)
"""Classes by the kind of vocabulary they rebuild; the generic one reads any tokenizer.json."""
_GENERIC_CLASS = "PreTrainedTokenizerFast"


def found_before(subject: Subject) -> Iterator[Finding]:
    """The check of a rule whose faults all come to light before the checks run."""
    return iter(())


def template_conflict(subject: Subject) -> Iterator[Finding]:
    """Two files with different templates: an error where they print another chat, else a warning."""
    templates, file = subject.checkpoint.templates, "tokenizer_config.json"
    if TEMPLATE not in templates or file not in templates:
        return
    # Jinja drops one newline at the end, so it makes no other template.
    if templates[TEMPLATE].removesuffix("\n") == templates[file].removesuffix("\n"):
        return
    variables = template_variables(subject.checkpoint.tokenizer)
    severity: Severity = "error"
    try:
        severity, found = _difference(*(first_rendering(templates[name], variables) for name in (TEMPLATE, file)))
    except (TemplateError, TemplateUnsafe) as error:
        found = f"a template that does not render: {error.what}"
    yield finding(
        "template-conflict",
        file=file,
        field=TEMPLATE_FIELD,
        found=found,
        expected=f"the template of {TEMPLATE}",
        severity=severity,
    )


def vocab_overflow(subject: Subject) -> Iterator[Finding]:
    """Tokens, of either file that gives them ids, for which the embedding has no row."""
    checkpoint = subject.checkpoint
    rows = _rows(subject)
    vocabulary = checkpoint.tokenizer.vocabulary.tokens
    added = checkpoint.documents.get("added_tokens.json", {})
    stated: dict[str, list[tuple[int, str]]] = {
        _tokenizer_file(subject): [(i, vocabulary[i].text) for i in range(rows, len(vocabulary))],
        "added_tokens.json": sorted((i, text) for text, i in added.items() if isinstance(i, int) and i >= rows),
    }
    for file, tokens in stated.items():
        if tokens:
            found = listed([f"{text} = {i}" for i, text in tokens])
            yield finding("vocab-overflow", file=file, found=found, expected=f"ids below {rows}, the embedding's rows")


def vocab_padding(subject: Subject) -> Iterator[Finding]:
    """More rows than tokens."""
    rows, tokens = _rows(subject), used_tokens(subject.checkpoint.tokenizer)
    if rows > tokens:
        found = f"{rows} rows, {tokens} tokens, {rows - tokens} rows of padding"
        yield finding("vocab-padding", file=_tokenizer_file(subject), found=found, expected="a token for every row")


def token_split(subject: Subject) -> Iterator[Finding]:
    """Tags that the tokenizer does not read as the one token that they are."""
    tokenizer = subject.checkpoint.tokenizer
    for tag in subject.contract.tags if subject.contract else ():
        ids = tokenizer.encode(tag.text)
        if ids != [tag.id]:
            pieces = " ".join(tokenizer.vocabulary.tokens[i].text for i in ids)
            found = f"{tag.text} as {len(ids)} tokens: {pieces}"
            yield finding(
                "token-split",
                file=_tokenizer_file(subject),
                field="added_tokens",
                found=found,
                expected=f"token {tag.id}",
            )


def tokenizer_class(subject: Subject) -> Iterator[Finding]:
    """A class that only transformers 5 knows, that nobody knows, or that rebuilds another kind of tokenizer."""
    stated = subject.checkpoint.documents.get("tokenizer_config.json", {}).get("tokenizer_class")
    fitting = [_GENERIC_CLASS, *sorted(_CLASSES[subject.checkpoint.tokenizer.vocabulary.model])]
    if stated is None or stated in fitting:
        return
    yield finding(
        "tokenizer-class",
        file="tokenizer_config.json",
        field="tokenizer_class",
        found=str(stated),
        expected=", ".join(fitting),
    )


def pretokenizer_unknown(subject: Subject) -> Iterator[Finding]:
    """A tokenizer that llama.cpp has no pre-tokenizer for."""
    found = pretokenizer_finding(subject.checkpoint.tokenizer, _tokenizer_file(subject))
    if found is not None:
        yield found


def double_bos(subject: Subject) -> Iterator[Finding]:
    """Encoding a rendered chat, as a runtime does, gives BOS twice."""
    tokenizer, contract = subject.checkpoint.tokenizer, subject.contract
    if contract is None or subject.probe is None or contract.bos_token_id is None:
        return
    ids = tokenizer.encode(subject.probe.chat, add_special=True)
    if ids[:2] == [contract.bos_token_id] * 2:
        yield finding(
            "double-bos",
            file=subject.probe.file,
            field=TEMPLATE_FIELD,
            found=f"{tokenizer.bos_token} printed by the template and added by the tokenizer",
            expected="one BOS",
        )


def template_tokens(subject: Subject) -> Iterator[Finding]:
    """Tags of the template that are no tokens.

    Models such as Zephyr and Tulu were trained with `<|user|>` as plain text and close their turns with EOS. So where
    no tag that the template spells out is a token, this is only told, not held against the model; in a format that ends
    turns with EOS, that one is a token all the same.
    """
    seen, tokenizer = subject.probe, subject.checkpoint.tokenizer
    if seen is None or subject.contract is None:
        return
    printed, spelled = printed_tags(seen.renderings), list(printed_tags([seen.template]))
    missing = [tag for tag in dict.fromkeys([*printed, *spelled]) if tokenizer.id_of(tag) is None]
    if missing:
        form = FORMATS.get(subject.contract.prompt_format)
        if form and form.terminator is None:
            spelled = [tag for tag in spelled if tag not in (subject.contract.terminator, tokenizer.bos_token)]
        severity: Severity = "error" if any(tag in printed for tag in missing) else "warning"
        yield finding(
            "template-tokens",
            file=seen.file,
            field=TEMPLATE_FIELD,
            found=f"{listed(missing)} not in the vocabulary",
            expected="tags that are tokens",
            severity="info" if set(spelled) <= set(missing) else severity,
        )


def duplicate_token(subject: Subject) -> Iterator[Finding]:
    """Texts that more than one id carries."""
    ids = defaultdict[str, list[int]](list)
    for i, token in enumerate(subject.checkpoint.tokenizer.vocabulary.tokens):
        ids[token.text].append(i)
    if twice := [f"{text!r} = {' and '.join(map(str, same))}" for text, same in ids.items() if len(same) > 1]:
        yield finding(
            "duplicate-token", file=_tokenizer_file(subject), found=listed(twice), expected="a text for each id"
        )


def spm_stale(subject: Subject) -> Iterator[Finding]:
    """A tokenizer.model with other pieces than tokenizer.json, or whose added tags no file beside it names."""
    if sentencepiece_file(subject.checkpoint) is None:
        return
    pieces = sentencepiece_of(subject.checkpoint)
    severity: Severity | None = None
    if pieces is None:
        # Llama 3 ships another kind of file under this name, which converters know and leave alone.
        found, severity = "a file that is no SentencePiece model", "warning"
    else:
        found = _stale_pieces(subject, [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())])
    if found:
        expected = "the pieces of tokenizer.json"
        yield finding("spm-stale", file=SENTENCEPIECE, found=found, expected=expected, severity=severity)


def _late(module: str, name: str) -> Check:
    """A check that reads tensors; its module brings torch along, and is imported when the check runs."""

    def check(subject: Subject) -> Iterator[Finding]:
        return cast(Check, getattr(import_module(f"hermetiq.chat.{module}"), name))(subject)

    return check


CHECKS: Final[Mapping[str, Check]] = MappingProxyType(
    {
        "source-incomplete": found_before,
        "source-quantized": found_before,
        "remote-code": found_before,
        "template-missing": found_before,
        "template-unsafe": found_before,
        "template-conflict": template_conflict,
        "template-tokens": template_tokens,
        "template-dialect": template_dialect,
        "eos-mismatch": eos_mismatch,
        "turn-end": turn_end,
        "token-split": token_split,
        "double-bos": double_bos,
        "duplicate-token": duplicate_token,
        "spm-stale": spm_stale,
        "tokenizer-class": tokenizer_class,
        "pretokenizer-unknown": pretokenizer_unknown,
        "vocab-overflow": vocab_overflow,
        "vocab-padding": vocab_padding,
        "rope-form": rope_form,
        "not-quantized": not_quantized,
        "kquant-shape": kquant_shape,
        "tie-conflict": _late("weight_checks", "tie_conflict"),
        "tag-untrained": _late("weight_checks", "tag_untrained"),
        "weight-nan": _late("weight_checks", "weight_nan"),
        "f16-overflow": _late("weight_checks", "f16_overflow"),
        "head-tie": _late("weight_checks", "head_tie"),
        "merge-vocab": merge_vocab,
        "merge-rows": merge_rows,
        "tensors-lost": tensors_lost,
        "vocab-rows": found_before,
        "special-lists": special_lists,
        "no-delta": _late("delta_checks", "no_delta"),
        "adapter-vocab": found_before,
    }
)
"""Every rule's check, in the order of the findings."""

READS_WEIGHTS: Final = frozenset(
    {"tie-conflict", "head-tie", "tag-untrained", "weight-nan", "f16-overflow", "merge-rows", "no-delta"}
)
"""Rules that read tensors, and so take as long as the disk does."""


def _difference(first: str, second: str) -> tuple[Severity, str]:
    """How bad two templates' renderings of one chat differ, and where."""
    if first == second:
        return "warning", "another text that prints the same chat"
    at = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    start = max(0, at - 10)
    return "error", f"{second[start : at + 20]!r} printed where {TEMPLATE} prints {first[start : at + 20]!r}"


def _stale_pieces(subject: Subject, pieces: list[str]) -> str:
    """What readers of tokenizer.model would get wrong; empty for nothing."""
    vocabulary = subject.checkpoint.tokenizer.vocabulary.tokens
    differing = [
        f"{i} = {piece} against {vocabulary[i].text if i < len(vocabulary) else 'nothing'}"
        for i, piece in enumerate(pieces)
        if i >= len(vocabulary) or vocabulary[i].text != piece
    ]
    if differing:
        return listed(differing)
    documents = subject.checkpoint.documents
    decoder = documents.get("tokenizer_config.json", {}).get("added_tokens_decoder")
    named = {
        *documents.get("added_tokens.json", {}),
        *map(token_text, decoder.values() if isinstance(decoder, dict) else ()),
    }
    added = [token.text for token in vocabulary[len(pieces) :] if token.kind is not TokenKind.UNUSED]
    unnamed = [text for text in added if text not in named]
    return (
        f"{listed(unnamed)} in none of tokenizer.model, added_tokens.json and added_tokens_decoder" if unnamed else ""
    )


def _rows(subject: Subject) -> int:
    return subject.checkpoint.tensors[EMBEDDING].shape[0]


def _tokenizer_file(subject: Subject) -> str:
    path = subject.checkpoint.path
    if path.suffix == ".gguf":
        return path.name
    return "tokenizer.json" if "tokenizer.json" in subject.checkpoint.documents else SENTENCEPIECE
