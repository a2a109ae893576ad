"""The rules: one table that names what can be wrong with a chat model, why it hurts, and the repair.

The table holds words only. The checks that find the faults live where the facts are (`checkpoint/`, `chat/`,
`verify/`) and make their findings here, so that a rule reads the same in `inspect`, in an error and in `rule NAME`.
The cases (U..) are those of `docs/rules.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from hermetiq.errors import Finding, HermetiqError, Severity


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
        "A file declares an EOS that is not the token which closes the assistant's turn.",
        "A runtime that believes the file never stops, or goes on to speak as the user.",
        "Set the field to the terminator, or add it to the list there. "
        "With --ignore eos-mismatch an export goes on: a GGUF states the terminator as its EOS whatever the files say.",
    ),
    Rule(
        "template-missing",
        "error",
        ("U03",),
        "No file of the checkpoint holds a chat template that prints a chat.",
        "Runtimes fall back to a template of their own, and the model sees prompts that it was never trained on.",
        "Put the template of the training run into chat_template.jinja.",
    ),
    Rule(
        "template-conflict",
        "error",
        ("U04",),
        "chat_template.jinja and tokenizer_config.json hold different templates.",
        "transformers takes the .jinja file, many converters the inline text: one model, two prompts.",
        "Keep the template that the model was trained with in chat_template.jinja, "
        "and remove chat_template from tokenizer_config.json or make it the same.",
    ),
    Rule(
        "vocab-overflow",
        "error",
        ("U05",),
        "The tokenizer has tokens for which the embedding has no row.",
        "The first use of such a token reads outside the embedding; converters stop or cut it off.",
        "Remove the tokens without a row from the tokenizer if no template uses them; "
        "otherwise resize the embedding and train the new rows.",
    ),
    Rule(
        "vocab-padding",
        "info",
        ("U06",),
        "The embedding has more rows than the tokenizer has tokens.",
        "Harmless as long as no tool cuts the rows off: artifacts name them as unused tokens.",
        "Nothing to repair.",
    ),
    Rule(
        "token-split",
        "error",
        ("U07",),
        "A tag of the template is in the vocabulary, and the tokenizer does not read it as that one token.",
        "The model reads the tag as text and writes it as text; the turn never closes.",
        'Add the tag to added_tokens of tokenizer.json with "special": true, under the id that was trained.',
    ),
    Rule(
        "tie-conflict",
        "error",
        ("U16",),
        "config.json ties the head to the embedding, and the checkpoint stores two different tensors.",
        "On load one overwrites the other, and the model writes nonsense.",
        "Set tie_word_embeddings to false in config.json.",
    ),
    Rule(
        "tokenizer-class",
        "warning",
        ("U17",),
        "tokenizer_config.json names a class that some versions of transformers lack, or one for another kind of file.",
        "Those versions fail with 'Tokenizer class does not exist', or rebuild another tokenizer from the same files.",
        "Set tokenizer_class to PreTrainedTokenizerFast, or to the documented class of the model.",
    ),
    Rule(
        "pretokenizer-unknown",
        "error",
        ("U18", "U49"),
        "The pre-tokenizer of tokenizer.json behaves like none that llama.cpp knows.",
        "The runtime would cut the same text into other tokens than the training did.",
        "Use the tokenizer.json of the base model; the finding names the nearest one and strings that differ.",
    ),
    Rule(
        "double-bos",
        "warning",
        ("U19",),
        "The template prints BOS and the tokenizer adds one as well.",
        "A program that encodes the rendered chat gives the model two BOS tokens, and the answers get worse.",
        "Set add_bos_token to false in tokenizer_config.json and take BOS out of the post_processor of tokenizer.json. "
        "An exported GGUF states add_bos_token false in any case.",
    ),
    Rule(
        "tag-untrained",
        "error",
        ("U20",),
        "The row of a template tag in the embedding, or of the terminator in the head, was never trained: "
        "it is zero, a copy of another row, or the mean of all rows.",
        "The model cannot tell what the tag means, or cannot say it: the turn never closes.",
        "Train the rows of the tags (in peft: modules_to_save embed_tokens and lm_head), "
        "or merge from a parent that has them.",
    ),
    Rule(
        "template-tokens",
        "error",
        ("U22", "U21"),
        "The template uses tags that the vocabulary does not hold.",
        "A template that was added without its tokens has its tags cut into pieces, and nothing ends the turn.",
        "Use the template of the base model, or a tokenizer and weights that have the tags.",
    ),
    Rule(
        "duplicate-token",
        "error",
        ("U46",),
        "Two ids carry the same text.",
        "llama.cpp aborts when it loads such a vocabulary.",
        "Give the one that is not used another text in tokenizer.json.",
    ),
    Rule(
        "spm-stale",
        "error",
        ("U48",),
        "tokenizer.model disagrees with tokenizer.json.",
        "Tools that prefer tokenizer.model lose the added tags or shift their ids. hermetiq reads tokenizer.json.",
        "Remove tokenizer.model, or write the missing tags into added_tokens.json.",
    ),
    Rule(
        "source-quantized",
        "error",
        ("U27",),
        "The source is quantized already.",
        "Quantizing again adds a second error to the first, and most quantized layouts cannot be read as weights.",
        "Export from the full-precision checkpoint that it was made from.",
    ),
    Rule(
        "weight-nan",
        "error",
        ("U31", "U28"),
        "A tensor holds NaN or infinity.",
        "One such value spreads to every logit, and the model answers '!!!!!'.",
        "Download or merge the checkpoint again. A merge that makes NaN often has parents of different vocabularies.",
    ),
    Rule(
        "template-unsafe",
        "error",
        (),
        "The chat template reaches for what a template has no business with, or does not end.",
        "Whoever loads the model runs its template: it could hang the program, exhaust its memory or reach its data.",
        "Replace the template with the plain one of the model's family.",
    ),
    Rule(
        "remote-code",
        "error",
        (),
        "The checkpoint asks to run Python code of its own (auto_map).",
        "hermetiq never runs code from a checkpoint, and no quantized copy could carry it.",
        "Use a checkpoint of a supported family; if the code is not needed, remove auto_map from the named file.",
    ),
    Rule(
        "source-incomplete",
        "error",
        ("U28", "U30", "U66", "U68"),
        "Files or tensors of the checkpoint are missing, truncated, corrupt, left over or outside its folder.",
        "A loader that goes on fills the gaps with random numbers.",
        "Download the checkpoint again, and export from a folder that holds all of it.",
    ),
    Rule(
        "calibration-thin",
        "warning",
        ("U35",),
        "The corpus gives too few tokens or too few documents to calibrate on.",
        "The quantized model is fitted to those few texts, and is worse on everything else.",
        "Give more chats of the kind the model will see, or use the built-in corpus.",
    ),
    Rule(
        "hessian-nan",
        "error",
        ("U11", "U31"),
        "The model puts out NaN or infinity on calibration text; the first such layer is named.",
        "The input of every solver behind that layer is broken: no damping and no further text mends it.",
        "Look for broken weights in the named layer and before it (a failed merge, or a float16 overflow when it was "
        "saved), and export from a sound checkpoint.",
    ),
    Rule(
        "fp16-range",
        "warning",
        ("U08", "U32"),
        "Activations grow beyond 65504, the largest number of float16.",
        "A runtime that computes in float16 turns them into infinity and answers with '!!!!!'.",
        "Serve the model in bfloat16; leave out formats whose runtimes have float16 only.",
    ),
    Rule(
        "group-shape",
        "error",
        ("U23", "U26"),
        "A linear layer has a shape that the groups or the packed words of the recipe do not divide.",
        "Some runtimes fail on a ragged last group, and others read it wrong.",
        "Choose a group size that divides the rows of every layer; the finding names those that do.",
    ),
    Rule(
        "bits-reach",
        "error",
        ("U26",),
        "The bits per weight asked for are fewer than the format's smallest widths take for these layers.",
        "Scales, orders and group tables count, too, and in small layers they weigh more than codes.",
        "Ask for at least the size that the finding names.",
    ),
    Rule(
        "legacy-format",
        "warning",
        ("U56",),
        "The format is one whose own runtime is no longer worked on.",
        "Programs have taken their loaders of it out, and new models, GPUs and versions of torch will not be added.",
        "Make it for those who already run it, and another format beside it: gguf, gptq or awq.",
    ),
    Rule(
        "bits-unspent",
        "warning",
        ("U26",),
        "The artifact is smaller than was asked by more than half a percent.",
        "Few or small layers leave few sizes to choose from, so quality that was paid for is not there.",
        "Ask for a little more, or take it as it is.",
    ),
    Rule(
        "merge-vocab",
        "error",
        ("U21", "U39"),
        "A merge lost a tag of its template or its EOS, or has it under another id than the parent that it came from.",
        "Where the ids of the parents differ, a row-by-row merge mixes the rows of different tokens.",
        "Merge again with the tokenizers joined (mergekit: `tokenizer: {source: union}`), "
        "or take the tokenizer of the parent that the finding names.",
    ),
    Rule(
        "merge-rows",
        "error",
        ("U21",),
        "A merge has a row of NaN or zeros for a token that a parent knows, or another token's row for a tag.",
        "The tag is in the vocabulary and means nothing, or something else: turns open or close wrongly.",
        "Merge again with the tokenizers joined (mergekit: `tokenizer: {source: union}`), "
        "or copy the rows from the parent that the finding names.",
    ),
    Rule(
        "head-tie",
        "error",
        ("U42", "U44"),
        "config.json says that the head is a tensor of its own, and none is stored; "
        "or a head is stored that is the embedding once more.",
        "Loaders fail on the missing head, or fill it with random numbers; some fail on one that they do not expect.",
        "If the model it was made from is tied, set tie_word_embeddings to true in config.json; "
        "if not, the head was lost: download or merge again.",
    ),
    Rule(
        "rope-form",
        "warning",
        ("U29",),
        "rope_parameters, the new spelling of the rotary embedding, states what the old one does not, or contradicts.",
        "Programs that know the old spelling alone take another base or no scaling: good on short prompts only.",
        "Write rope_theta and rope_scaling beside rope_parameters in config.json, with the values of the training. "
        "Every export writes both.",
    ),
    Rule(
        "not-quantized",
        "error",
        ("U14", "U34"),
        "An artifact that says it is quantized has linear layers in 16 bits or more that no list of it excepts.",
        "It is larger than its name says, and loaders that expect every layer packed fail or fill it with zeros.",
        "Quantize again with a tool that finds these layers.",
    ),
    Rule(
        "kquant-shape",
        "warning",
        ("U26",),
        "A K-quant of a model whose rows 256 does not divide: other types stand in for most of it.",
        "The file has more bits per weight than its name says, and a worse type than one made for such rows.",
        "Make Q8_0, Q5_1, Q5_0, Q4_1, Q4_0 or IQ4_NL of it: their blocks of 32 fit.",
    ),
    Rule(
        "template-dialect",
        "warning",
        ("U51",),
        "The chat template uses filters, tests, methods or statements that template engines outside Python lack.",
        "Programs such as LM Studio fail with 'Error rendering prompt with jinja template'.",
        "Rewrite those places with plain conditions, loops, slices, and string methods such as split and strip.",
    ),
    Rule(
        "licence-unknown",
        "error",
        ("U63",),
        "No licence is known for what would be published, or the parents of a merge have licences that contradict it.",
        "A licence that a tool makes up gives away what is not its own, and people build on it.",
        "State the licence on the source's model card, or give the right one with --license NAME.",
    ),
    Rule(
        "repo-not-ours",
        "error",
        ("U62",),
        "The repo on the Hub holds files that hermetiq did not put there, or that were changed by hand since.",
        "A release would replace somebody's card or weights, and nobody would be asked.",
        "Give another REPO, or empty this one; text of your own on a card goes between its two markers.",
    ),
    Rule(
        "turn-end",
        "error",
        ("U01",),
        "The template prints no token behind an answer, or another one than its prompt format ends with.",
        "A chat then shows the model answers that do not end as those of its training did, and it learns to go on.",
        "Print EOS behind the assistant's text in the template ({{ eos_token }}), as the training did.",
    ),
    Rule(
        "never-stops",
        "error",
        ("U40",),
        "The model itself does not have the terminator among its choices where assistant turns end in held-out chats.",
        "It was not taught to stop, often because padding was the terminator and trainers mask padding: a fault of the "
        "training, which no quantizer caused and none repairs.",
        "Train again with the terminator in the loss and another token for padding, or take a model that stops.",
    ),
    Rule(
        "tensors-lost",
        "error",
        ("U30",),
        "An artifact lacks tensors of its source, or a checkpoint those that its configuration or its parent has "
        "beside the decoder.",
        "Loaders fill the gap with random numbers or drop what needs it, such as drafting several tokens at once.",
        "Export or save again with a tool that keeps these tensors, or copy them from the source or the parent.",
    ),
    Rule(
        "vocab-rows",
        "error",
        ("U05", "U06"),
        "config.json states another vocab_size than the embedding has rows.",
        "Loaders fail on the shape, or fill an embedding of the stated size with random numbers.",
        "Set vocab_size to the rows that are stored; `hermetiq repair` does, and never cuts a row off.",
    ),
    Rule(
        "special-lists",
        "error",
        ("U41",),
        "A list of further special tokens has a shape that some versions of transformers fail on, "
        "or names a text that is no token.",
        "Those versions fail to load the tokenizer, or add the text behind the last id, where it has no row.",
        "Name the tokens in a plain list additional_special_tokens, which every version reads; "
        "`hermetiq repair` and every export do so.",
    ),
    Rule(
        "no-delta",
        "error",
        ("U69",),
        "An adapter adds nothing to its base, or a fine-tune has the weights of the parent that is given.",
        "The model answers as if it had never been trained: the changes were not saved, or were rounded away.",
        "Look for the right checkpoint of the training; merge a LoRA into the 16-bit base, never into a 4-bit one.",
    ),
    Rule(
        "adapter-vocab",
        "error",
        ("U70",),
        "An adapter was trained on another number of rows than its base has.",
        "Its tags have no row to be merged into, and merging tools stop with a size mismatch for embed_tokens.",
        "Use the base that it was trained on; where tokens were added, save embed_tokens and lm_head whole "
        "(in peft: modules_to_save): then the base grows with them.",
    ),
    Rule(
        "f16-overflow",
        "warning",
        ("U33",),
        "A tensor has values beyond 65504, or whole rows so small that float16 rounds them to zero.",
        "Kept or computed in float16 they become infinity or nothing, and the model answers '!!!!!' or loses a token.",
        "Export gguf:BF16 or gguf:F32, which hold every weight, or gguf:Q8_0, which holds large ones. GPTQ, AWQ, EXL2 "
        "and gguf:F16 keep float16, so an export to those is refused.",
    ),
)

_LONGEST = 600
"""Characters of a checkpoint's own text that a finding shows: enough for ten names, and no file floods a terminal."""

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
        found=found if len(found) <= _LONGEST else f"{found[:_LONGEST]} …",
        expected=expected,
        why=entry.why,
        repair=repair or entry.repair,
    )


def named(name: str) -> Rule:
    """The rule of that name.

    Raises:
        HermetiqError: there is none; with the names most like it.
    """
    if name not in RULES:
        holding = [rule for rule in RULES if name and name in rule]
        near = holding[:3] or get_close_matches(name, RULES, n=3, cutoff=0.5)
        remedy = f"did you mean {', '.join(near)}?" if near else f"rules: {', '.join(RULES)}"
        raise HermetiqError(f"unknown rule {name!r}", remedy=remedy)
    return RULES[name]


def explain(name: str) -> str:
    """What the rule finds, why it hurts and how to repair it, as text for a terminal.

    Raises:
        HermetiqError: no such rule.
    """
    rule = named(name)
    cases = f"\n  cases   {', '.join(rule.cases)}" if rule.cases else ""
    return f"{rule.name} ({rule.severity})\n  what    {rule.what}\n  why     {rule.why}\n  repair  {rule.repair}{cases}"
