"""The rules on what ends a turn: the template prints it, and every place that states an EOS names it."""

from __future__ import annotations

from collections.abc import Iterator

from hermetiq.chat.contract import ChatContract
from hermetiq.chat.eos import EosSource
from hermetiq.chat.probe import TEMPLATE_FIELD
from hermetiq.chat.prompt_formats import FORMATS
from hermetiq.chat.subject import Subject
from hermetiq.checkpoint.shards import listed
from hermetiq.errors import Finding
from hermetiq.rules import finding

_LISTED = ("generation_config.json", "eos_token_id")
"""The place that has precedence where text is generated, and room for several ids."""


def eos_mismatch(subject: Subject) -> Iterator[Finding]:
    """Places that state an EOS without the terminator; further ids beside it are fine."""
    contract = subject.contract
    if contract is None:
        return
    vocabulary = dict(enumerate(token.text for token in subject.checkpoint.tokenizer.vocabulary.tokens))
    expected = f"{contract.terminator} = {contract.terminator_id}"
    configured = [source for source in contract.eos_sources if source.obeyed and source.field != TEMPLATE_FIELD]
    for source in configured:
        if contract.terminator_id not in source.ids:
            found = listed(f"{vocabulary.get(i, 'no token')} = {i}" for i in source.ids) or f"{source.found}, no token"
            yield finding(
                "eos-mismatch",
                file=source.file,
                field=source.field,
                found=found,
                expected=expected,
                severity="warning" if _as_published(source, contract, vocabulary) else "error",
            )
    if not configured:
        yield finding("eos-mismatch", file="config.json", field="eos_token_id", found="no EOS", expected=expected)


def turn_end(subject: Subject) -> Iterator[Finding]:
    """A template that ends answers with nothing, or in another way than its prompt format does."""
    seen, contract = subject.probe, subject.contract
    if seen is None or contract is None:
        return
    if contract.terminator not in seen.closing:
        yield finding(
            "turn-end",
            file=seen.file,
            field=TEMPLATE_FIELD,
            found=f"no token behind the answer of a chat in the format {contract.prompt_format}",
            expected=f"{contract.terminator} = {contract.terminator_id}, which is EOS",
        )
        return
    form = FORMATS.get(contract.prompt_format)
    if form and form.terminator not in (None, contract.terminator):
        yield finding(
            "turn-end",
            file=seen.file,
            field=TEMPLATE_FIELD,
            found=f"{contract.terminator} behind the answer of a chat in the format {form.name}",
            expected=str(form.terminator),
            severity="warning",
            repair="Keep it if the model was trained with it; otherwise use the template of the model's family.",
        )


def _as_published(source: EosSource, contract: ChatContract, vocabulary: dict[int, str]) -> bool:
    """Whether the place has the base model's EOS, and the list that goes before it holds the terminator.

    So Gemma and Phi are published. Who generates by that list stops; a reader of this place alone does not.
    """
    form = FORMATS.get(contract.prompt_format)
    held = any(
        (each.file, each.field) == _LISTED and contract.terminator_id in each.ids for each in contract.eos_sources
    )
    return bool(held and form and form.document_end and [vocabulary.get(i) for i in source.ids] == [form.document_end])
