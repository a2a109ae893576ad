"""The cases: what people run into when they quantize chat models, why, and how hermetiq answers each.

A rule finds a fault before any work. Much else is answered by how an export is made, by `repair`, or by what `verify`
proves afterwards; a case that only a rule answers has no further words here. `docs/rules.md` shows the whole table.
"""

from __future__ import annotations

from dataclasses import dataclass

from hermetiq.rules import RULES


@dataclass(frozen=True)
class Case:
    """One thing that goes wrong for people; `number` is what the source, the rules and the tests call it."""

    number: str
    sees: str
    because: str
    answer: str = ""
    """What answers it beside rules."""

    @property
    def rules(self) -> tuple[str, ...]:
        """Names of the rules that find it."""
        return tuple(rule.name for rule in RULES.values() if self.number in rule.cases)

    @property
    def answered(self) -> str:
        """Rules and answer in one line of Markdown."""
        rules = ", ".join(f"`{name}`" for name in self.rules)
        return "; ".join(filter(None, (rules, self.answer)))


_TABLE = (
    Case(
        "U01",
        "the chat model never stops, or speaks as the user",
        "the token that ends its turns is not the EOS of `config.json`, `generation_config.json` or "
        "`tokenizer_config.json`",
        "repair; every export states the terminator first in all files, and `verify` reads it back",
    ),
    Case(
        "U02",
        "the GGUF stops at the wrong token or never",
        "a GGUF carries one EOS; lists and `generation_config.json` were dropped",
        "every GGUF states EOS, EOT and EOM, and `verify` asks llama.cpp for its set",
    ),
    Case(
        "U03",
        '"template not found", or a wrong default',
        "the template moved to `chat_template.jinja`, or was lost in training",
        "repair; an artifact folder has the template in both places",
    ),
    Case(
        "U04",
        "right in transformers, wrong in GGUF",
        "an old inline template beside a newer file",
        "repair keeps the one that transformers takes",
    ),
    Case(
        "U05",
        "vocabulary sizes 32000, 32001, 32002 do not match",
        "tags were added without resizing the embedding",
        "repair takes out a token that no chat needs and gives others a row, a tag only with `--init-tags`",
    ),
    Case(
        "U06",
        "gibberish tokens from the tail, shapes that do not fit",
        "rows padded to a multiple of 64",
        "rows are never cut off; a GGUF names them as unused tokens",
    ),
    Case(
        "U07",
        "`<|im_start|>` shows up as text",
        "the tag is no control token in the artifact",
        "repair; every GGUF types its tags as control tokens, and `verify` cuts texts in llama.cpp",
    ),
    Case(
        "U08",
        "the output is only `!!!!!`",
        "activations beyond float16 become infinite",
        "folders state float16, and `verify` answers short prompts",
    ),
    Case(
        "U09",
        "`pip install` of a quantizer fails",
        "no wheel for this Python, or torch is hidden from its build",
        "`doctor`; the solvers are our own, and no quantizer's package is needed",
    ),
    Case(
        "U10",
        "the resolver finds nothing, or installs versions of years ago",
        "packages with pins that exclude each other",
        "real packages live in environments of their own, with every version pinned",
    ),
    Case(
        "U11",
        '"not positive definite" after hours of work',
        "NaN in the activations, dead inputs, or too little text",
        "a ladder for that layer alone: float64, more damping, rounding to nearest; each step is in the manifest",
    ),
    Case(
        "U12",
        "out of memory, often in one allocation of 100 GB",
        "all activations on one device, or the model in memory twice",
        "one block is in memory at a time; the plan says disk and memory, and refuses a disk that is too small",
    ),
    Case(
        "U13",
        "a bad quant of a mixture of experts, NaN scales",
        "experts that saw too few calibration tokens",
        "refused: dense models only, and the refusal names them",
    ),
    Case(
        "U14", '"quantized", and almost as large as before', "the tool skipped layers of a kind that it does not know"
    ),
    Case(
        "U15",
        "a crash after hours, and all of it again",
        "no checkpoints of the work",
        "`export --resume`: a journal of finished blocks, and the same bytes in the end",
    ),
    Case(
        "U16",
        "a merged LoRA on a tied model talks garbage after reload",
        "head and embedding were trained apart, the flag stayed",
        "repair sets the flag true to the tensors",
    ),
    Case(
        "U17",
        '"Tokenizer class TokenizersBackend does not exist"',
        "transformers 5 wrote an internal name",
        "repair; artifact folders name the generic class, and `verify` loads it",
    ),
    Case("U18", '"BPE pre-tokenizer was not recognized"', "converters know it by a hash, which an added token changes"),
    Case(
        "U19",
        "worse answers, a warning about two BOS tokens",
        "both the template and the tokenizer put one",
        "repair; artifacts add no BOS where the template prints one, and `verify` encodes a prompt",
    ),
    Case(
        "U20",
        "the model ignores ChatML, or cannot say `<|im_end|>`",
        "the tags' rows were never trained",
        "repair only with `--init-tags`, never silently; `verify` compares the tags' rows",
    ),
    Case(
        "U21",
        "a merge that only its own tool can load",
        "parents with different added tokens",
        "repair with `--init-tags parent:PATH`",
    ),
    Case("U22", 'a merge "with ChatML" that has none of its tokens', "only the template was added"),
    Case(
        "U23",
        'loads on one GPU, "not divisible" on several',
        "a row, or the share of it that each GPU gets, is no multiple of the group size",
        "the plan names the layers that 2, 4 and 8 GPUs cannot split",
    ),
    Case(
        "U24",
        'garbage from a file that "is" GPTQ',
        "zero-points stored in one version of the format, and another in the configuration",
        "zero-points are read back and held against the stated version before they are written",
    ),
    Case(
        "U25",
        "wrong or crashing on several GPUs",
        "with `desc_act` a group is spread over the whole row",
        "groups keep their places unless `-actorder` asks otherwise; the plan names what GPUs cannot split then",
    ),
    Case(
        "U26",
        "Q4_K_M asked, 6.2 bits per weight got",
        "rows that no K-quant fits fall back silently",
        "the plan shows real and nominal bits per weight, and every type that stands in",
    ),
    Case("U27", '"Can not map tensor … absmax"', "the source was quantized already"),
    Case(
        "U28",
        "the quantized model is nonsense, the source is fine",
        "tensor names changed, and a loader filled the gaps",
        "every missing, left-over or misshapen tensor is an error on opening",
    ),
    Case(
        "U29",
        "good on short prompts only",
        "`rope_theta` is spelled in two ways",
        "repair and every folder write both spellings; a GGUF has the value itself",
    ),
    Case(
        "U30",
        "speculative decoding is gone",
        "tensors that the library's model class does not know were dropped on saving; here they are refused "
        "as left over",
        "`verify` compares the tensors' names",
    ),
    Case(
        "U31",
        "NaN in the middle of quantizing",
        "zero or broken weights in the source",
        "empty groups keep zeros and a scale that can be stored",
    ),
    Case(
        "U32",
        '"math domain error", infinite states in the middle of a conversion',
        "a badly scaled merge overflows float16",
    ),
    Case(
        "U33",
        'NaN in a GGUF, "overflow encountered in cast"',
        "bfloat16 weights beyond float16 converted through float16",
        "types that cannot hold a weight are refused by the tensor's name, while the file is written",
    ),
    Case("U34", "the output is larger than the input", "the recipe matched no layer, and everything was saved whole"),
    Case(
        "U35",
        "the quantized model is clearly worse in chats than on plain text",
        "calibrated on articles without the template, or on far fewer texts than asked for",
        "the corpus is rendered by the model's own template; the manifest says rows asked, used and dropped",
    ),
    Case(
        "U36",
        "statistics are worse with batches than without",
        "padding was counted",
        "rows are packed, and padding is seen by no sum",
    ),
    Case(
        "U37",
        "a layer of zeros",
        "the reference GPTQ zeroes columns that were never active",
        "columns that were never active are rounded to nearest",
    ),
    Case(
        "U38",
        "stop list and sampling defaults are gone after quantizing",
        "`generation_config.json` was not carried over",
        "the file travels, or is restored, and `verify` compares the stop list",
    ),
    Case(
        "U39",
        "after a merge the model runs on to the length limit",
        "a step of it reloaded the base model's tokenizer, and with it another EOS",
        "`verify` compares the ids of 2,000 texts and every special token",
    ),
    Case(
        "U40",
        "the model never stops, in any format",
        "padding was the terminator, and the trainer masked it out of the loss",
    ),
    Case(
        "U41",
        "the converter fails on `extra_special_tokens`",
        "a list in one version of transformers, an object in another",
        "repair; every folder has the form that all versions read",
    ),
    Case(
        "U42",
        '"KeyError: lm_head.weight", or no module of that name',
        "the tie flag and the stored head disagree",
        "repair; every folder has head and flag agree",
    ),
    Case(
        "U43",
        "a small or tied model repeats itself at 4 bits",
        "the embedding, which is the head too, was quantized too low",
        "GPTQ and AWQ leave head and embedding in 16 bits, GGUF gives them llama.cpp's better type, EXL2 6 "
        "or 8 bits; `verify` compares the tags' rows",
    ),
    Case("U44", '"lm_head.weight required but not present"', "a merge of tied and untied parents lost the head"),
    Case(
        "U45",
        '"some tensors share memory"',
        "layers of a self-merge, or tied tensors, are one storage",
        "tensors are read and written one by one, by name; pickled files are refused",
    ),
    Case("U46", "llama.cpp aborts on load", "two ids with one text"),
    Case(
        "U47",
        "zero merges in the tokenizer",
        "merges are written as text or as pairs",
        "both forms are read; folders have the older one where no token has a space, a GGUF has the merges themselves",
    ),
    Case(
        "U48",
        "added tags are missing in the GGUF",
        "the converter read `tokenizer.model`, which does not know them",
        "`tokenizer.json` is what is read; repair leaves a foreign file out",
    ),
    Case(
        "U49",
        "the same text gives other ids than in training",
        "another pre-tokenizer",
        "`verify` compares the ids of 2,000 texts with those of the runtime",
    ),
    Case(
        "U50",
        "right in llama.cpp, never stops in Ollama or LM Studio",
        "the import guesses template and stops",
        "`hermetiq recipes` writes the Modelfile or preset: template and stops, proven on other chats",
    ),
    Case(
        "U51",
        '"Error rendering prompt with jinja template"',
        "the template uses what the runtime's own engine lacks",
        "`verify` compares llama.cpp's rendering with the template's own",
    ),
    Case(
        "U52",
        "the answer is cut where it mentions a tag",
        "stops are matched as text",
        "recipes state ids wherever the runtime takes them, and a text only for what no id can say",
    ),
    Case(
        "U53",
        "unexpected weights on load, or a router of zeros",
        "lists of layers to leave alone that a kernel ignores",
        "refused: dense models only, so there is no router",
    ),
    Case(
        "U54",
        "`cannot import PytorchGELUTanh`",
        "an ended package is imported by people who never asked for it",
        "no package of a quantizer is imported; those that are asked run in environments of their own",
    ),
    Case(
        "U55",
        "undefined symbol in exllamav2_ext",
        "compiled against another torch",
        "`doctor` names the torch and the compiler that do not fit",
    ),
    Case("U56", "the main programs do not load EXL2 any more", "exllamav2 is archived, and its loaders were taken out"),
    Case(
        "U57",
        "the upload of many large files fails, and begins again",
        "no record of what has arrived",
        "`publish` sends large files one by one, knows what has arrived, and holds the Hub's hashes against its own",
    ),
    Case(
        "U58",
        "a file above the Hub's limit, or parts of wrong names",
        "one file, or parts that no loader joins",
        "`publish` cuts a GGUF above the limit into parts that llama.cpp loads by the first",
    ),
    Case(
        "U59",
        "too many requests",
        "a commit for each file",
        "`publish` makes one commit for a branch, and waits as long as the server says",
    ),
    Case(
        "U60",
        "the resumable upload has no folder, message or deletion",
        "limits of that call",
        "`publish` commits a whole branch at once: folders, message and deletions",
    ),
    Case(
        "U61",
        "storage is full at the end of the upload",
        "sizes and rights were not looked at first",
        "`publish` asks for room for all large files before it sends the first",
    ),
    Case(
        "U62",
        "README or files of an existing repo are replaced",
        "the tool writes into any repo, and cards are made anew",
        "an export writes only into an empty folder or over an export of its own; `publish` keeps the text "
        "between the card's markers",
    ),
    Case(
        "U63",
        "the wrong licence on the card",
        "the licence stands on the source's card, and tools have a default",
        "`publish` reads it from the cards of all parents, and never guesses",
    ),
    Case(
        "U64",
        "the quantized model is listed as a fine-tune",
        "no `base_model_relation`",
        "the card states `base_model`, the fine-tune itself, and `base_model_relation: quantized`",
    ),
    Case(
        "U65",
        "conversion dies on metadata",
        "an odd card in the repository",
        "what a card has wrong is a warning, and stops nothing",
    ),
    Case(
        "U66",
        "no `config.json`",
        "an adapter, or another kind of repository",
        "what is missing is named on opening: an adapter without its base, a repository of `.gguf` files, no access",
    ),
    Case(
        "U67",
        "a truncated GGUF is used by the next run",
        "the partial file has the final name",
        "files carry `.partial` until they are whole, and the disk is measured first",
    ),
    Case(
        "U68",
        "tensors missing, NaN",
        "shards missing or corrupt",
        "headers, sizes and the index are compared on opening; tensors are read again in full by every export",
    ),
    Case(
        "U69",
        "the merged model is twice as large, or the fine-tune is forgotten",
        "saved in float32; small changes rounded away, as in a 4-bit base",
        "a LoRA is merged in float32 into the base as it is stored, and repair stores it in the base's type",
    ),
    Case(
        "U70",
        "size mismatch for `embed_tokens` when an adapter is merged",
        "it was trained on a resized vocabulary",
        "a base grows with an adapter that brings both matrices whole",
    ),
    Case(
        "U71",
        '"missing importance matrix", garbage at 2 bits',
        "the matrix of another model",
        "the matrix comes from the same pass over the same model; no foreign file is taken",
    ),
    Case(
        "U72",
        "a converter that is not found any more",
        "llama.cpp renames its programs",
        "no script or program of llama.cpp is called; the versions of all libraries are in the manifest",
    ),
    Case(
        "U73",
        "the first token is a comma",
        "ids left out of the GGUF, so the runtime's own default counts",
        "every id is stated, and `add_bos_token` as well",
    ),
    Case(
        "U74",
        '"bfloat16 is not supported for awq"',
        "the kernels are float16 only",
        "folders state float16; the recipe for vLLM says so",
    ),
    Case(
        "U75",
        "private files in a published folder",
        "the converter copies everything in the source's folder",
        "`publish` sends what the manifest lists, of kinds that a release holds, after a scan for secrets",
    ),
    Case(
        "U76",
        "answers end early",
        "the runtime guesses stop tokens that the model does not have",
        "`verify` compares the stops of the runtime in both directions",
    ),
)

CASES: dict[str, Case] = {case.number: case for case in _TABLE}


def explain_case(number: str) -> str:
    """A case, why it happens and what answers it, as text for a terminal."""
    case = CASES[number]
    return f"{case.number}\n  people see  {case.sees}\n  because     {case.because}\n  answered by {case.answered}"
