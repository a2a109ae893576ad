"""The rules: one table that names what can be wrong with a chat model, why it hurts, and the repair.

The table holds words only. The checks that find the faults live where the facts are (`checkpoint/`, `chat/`,
`verify/`) and make their findings here, so that a rule reads the same in `inspect`, in an error and in `rule NAME`.
The cases (U..) are those of `docs/rules.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermetiq.errors import Finding, Severity


@dataclass(frozen=True)
class Rule:
    """One thing that goes wrong for people: `what` it is, `why` it hurts, how to `repair` it."""

    name: str
    severity: Severity
    cases: tuple[str, ...]
    what: str
    why: str
    repair: str


_TABLE = (
    Rule(
        "eos-mismatch",
        "error",
        ("U01", "U02"),
        "The token that closes the assistant's turn is not the EOS that a file declares.",
        "A runtime that believes the file never stops, or begins to speak as the user.",
        "Set the field to the terminator, or export with --ignore eos-mismatch: artifacts then carry the terminator as EOS.",
    ),
    Rule(
        "template-missing",
        "error",
        ("U03",),
        "No file of the checkpoint holds a chat template.",
        "Runtimes fall back to a template of their own, and the model sees a prompt it was never trained on.",
        "Put the template of the training run into chat_template.jinja.",
    ),
    Rule(
        "template-conflict",
        "error",
        ("U04",),
        "chat_template.jinja and tokenizer_config.json hold different templates.",
        "transformers takes the .jinja file and GGUF converters the inline text: one model, two prompts.",
        "Keep the template the model was trained with in both places, or in chat_template.jinja alone.",
    ),
    Rule(
        "vocab-overflow",
        "error",
        ("U05",),
        "The tokenizer has tokens for which the embedding has no row.",
        "The first use of such a token reads outside the embedding, or the converter stops.",
        "Remove the tokens without a row from the tokenizer, or resize the embedding and train the new rows.",
    ),
    Rule(
        "vocab-padding",
        "info",
        ("U06",),
        "The embedding has more rows than the tokenizer has tokens.",
        "Harmless while nothing truncates them: artifacts name the extra rows as unused tokens.",
        "Nothing to repair.",
    ),
    Rule(
        "token-split",
        "error",
        ("U07",),
        "A tag of the template is not one token.",
        "The model reads the tag as text and copies it as text; the turn never closes.",
        "Add the tag to added_tokens of tokenizer.json with \"special\": true, under the id that was trained.",
    ),
    Rule(
        "tie-conflict",
        "error",
        ("U16",),
        "config.json ties the head to the embedding, yet the two stored tensors differ.",
        "On load one overwrites the other and the model talks nonsense.",
        "Set tie_word_embeddings to false in config.json.",
    ),
    Rule(
        "tokenizer-class",
        "warning",
        ("U17",),
        "tokenizer_config.json names a class that only one version of transformers knows, or a wrong one for the file.",
        "Other versions fail with 'Tokenizer class does not exist', or rebuild another tokenizer from the same files.",
        "Name PreTrainedTokenizerFast, or the documented class of the model.",
    ),
    Rule(
        "pretokenizer-unknown",
        "error",
        ("U18", "U49"),
        "The pre-tokenizer of tokenizer.json behaves like none that llama.cpp knows.",
        "The runtime would cut the same text into other tokens than in training.",
        "Use the pre-tokenizer of the base model; the finding names the nearest one and the strings that differ.",
    ),
    Rule(
        "double-bos",
        "warning",
        ("U19",),
        "The template prints BOS and the tokenizer adds one as well.",
        "The model sees two BOS tokens, as it never did in training; answers get worse.",
        "Set add_bos_token to false. Artifacts of hermetiq carry add_bos_token false in this case.",
    ),
    Rule(
        "tag-untrained",
        "error",
        ("U20",),
        "The embedding or head row of a template tag is zero, a copy of another row, or the mean of all rows.",
        "The model cannot read the tag, or cannot say it: the terminator never comes.",
        "Train the rows of the tags (modules_to_save: embed_tokens, lm_head), or merge from a parent that has them.",
    ),
    Rule(
        "template-tokens",
        "error",
        ("U22",),
        "The template uses tags that the vocabulary does not hold.",
        "A template was added without its tokens: the tags are split into pieces and nothing ends the turn.",
        "Use the template of the base model, or a tokenizer and weights that have the tags.",
    ),
    Rule(
        "duplicate-token",
        "error",
        ("U46",),
        "Two ids carry the same text.",
        "llama.cpp aborts when it loads such a vocabulary.",
        "Rename the unused one of the two in the tokenizer.",
    ),
    Rule(
        "spm-stale",
        "error",
        ("U48",),
        "tokenizer.model disagrees with tokenizer.json.",
        "Converters that prefer tokenizer.model lose the added tags or shift ids.",
        "Remove tokenizer.model, or add the missing tokens to added_tokens.json; hermetiq reads tokenizer.json.",
    ),
    Rule(
        "source-quantized",
        "error",
        ("U27",),
        "The source is already quantized.",
        "Quantizing twice adds both errors, and most quantized layouts cannot be read as weights at all.",
        "Export from the full-precision checkpoint it was made from.",
    ),
    Rule(
        "weight-nan",
        "error",
        ("U31", "U28"),
        "A tensor holds NaN or infinity.",
        "One such value spreads to every logit, and the model answers '!!!!!'.",
        "Download or merge the checkpoint again; a merge that makes NaN has parents of other shapes or vocabularies.",
    ),
    Rule(
        "template-unsafe",
        "error",
        ("U51",),
        "The chat template does something a template has no business with, or does not end.",
        "Rendering it would run code, hang or exhaust memory in whoever loads the model.",
        "Replace the template with the plain one of the model's family.",
    ),
    Rule(
        "remote-code",
        "error",
        (),
        "The checkpoint asks to run its own Python code (auto_map).",
        "hermetiq never runs code from a checkpoint, and a quantized copy could not either.",
        "Use a checkpoint of a supported family and remove auto_map from config.json.",
    ),
    Rule(
        "source-incomplete",
        "error",
        ("U28", "U66", "U68"),
        "Files or tensors of the checkpoint are missing, truncated, corrupt, outside its folder or left over.",
        "A loader that goes on fills the gaps with random numbers.",
        "Download the checkpoint again, and export only from a folder that holds all of it.",
    ),
)

RULES: dict[str, Rule] = {rule.name: rule for rule in _TABLE}


def finding(
    rule: str,
    *,
    file: str,
    field: str = "",
    found: str,
    expected: str,
    severity: Severity | None = None,
    repair: str | None = None,
) -> Finding:
    """A finding of the named rule, with the rule's own severity, reason and repair unless the place knows better."""
    entry = RULES[rule]
    return Finding(
        rule=rule,
        severity=severity or entry.severity,
        file=file,
        field=field,
        found=found,
        expected=expected,
        why=entry.why,
        repair=repair or entry.repair,
    )
