"""The pre-tokenizer table against llama.cpp itself, and the search through it."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from hermetiq.checkpoint.pretokenizer import pretokenizer_finding
from hermetiq.checkpoint.pretokenizer_table import PRE_TOKENIZERS, TABLE, PreTokenizer, identify
from hermetiq.checkpoint.probes import probes
from hermetiq.checkpoint.tokenizer import Tokenizer, from_folder
from hermetiq.model import SpecialIds, Token, TokenKind, Vocabulary
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.texts import texts
from tests.fixtures.tokenizers import QWEN2_REGEX, bpe_tokenizer, hermes_tokenizer
from tests.oracles.llama_vocab import llama_ids

LLAMA3_REGEX = QWEN2_REGEX.replace(r"\p{N}|", r"\p{N}{1,3}|")
UNREACHABLE = "Ġworld"
"""A token that no merges make: only `ignore_merges` finds it."""
IDS = SpecialIds(eos=0, eot=None, eom=None, bos=0, pad=None, unk=None, add_bos=False, add_eos=False)


@cache
def telling_bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a BPE trained without any cuts: wherever a pre-tokenizer cuts, ids change."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=6,
        show_progress=False,
    )
    backend.train_from_iterator(probes(), trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    assert UNREACHABLE not in model["vocab"]
    return model["vocab"] | {UNREACHABLE: len(model["vocab"])}, merges


def backend_of(entry: PreTokenizer) -> tokenizers.Tokenizer:
    vocabulary, merges = telling_bpe()
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=entry.ignore_merges))
    backend.pre_tokenizer = entry.build()
    return backend


def file_of(folder: Path, name: str) -> Path:
    vocabulary, merges = telling_bpe()
    tokens = tuple(Token(text, TokenKind.NORMAL) for text in sorted(vocabulary, key=vocabulary.__getitem__))
    stored = Vocabulary("gpt2", name, tokens, tuple(f"{left} {right}" for left, right in merges), False)
    return write_gguf(folder / f"{name}.gguf", vocabulary=stored, ids=IDS)


def ids(backend: tokenizers.Tokenizer, strings: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch(strings, add_special_tokens=False)]


STRINGS = texts(2000)


@pytest.fixture(scope="module")
def runtime_ids(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    """llama.cpp's ids of all strings under each name of the table."""
    folder = tmp_path_factory.mktemp("names")
    files = [file_of(folder, entry.name) for entry in TABLE]
    return dict(zip([entry.name for entry in TABLE], llama_ids(files, STRINGS), strict=True))


@pytest.mark.parametrize("entry", TABLE, ids=lambda entry: entry.name)
def test_an_entry_gives_the_ids_of_llama_cpp(entry: PreTokenizer, runtime_ids: dict[str, list[list[int]]]) -> None:
    assert ids(backend_of(entry), STRINGS) == runtime_ids[entry.name]


def test_every_alias_gives_the_ids_of_llama_cpp(tmp_path: Path) -> None:
    aliases = [name for name, entry in PRE_TOKENIZERS.items() if name != entry.name]
    strings = list(probes())
    answers = llama_ids([file_of(tmp_path, name) for name in aliases], strings)
    expected = {entry.name: ids(backend_of(entry), strings) for entry in TABLE}
    assert [
        name for name, theirs in zip(aliases, answers, strict=True) if theirs != expected[PRE_TOKENIZERS[name].name]
    ] == []


def test_the_strings_tell_all_entries_apart() -> None:
    strings = list(probes())
    answers = [ids(backend_of(entry), strings) for entry in TABLE]
    assert all(one != other for index, one in enumerate(answers) for other in answers[:index])
    assert all(unicodedata.is_normalized("NFC", text) for text in strings)


def split(*expressions: str) -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Split(Regex(expression), behavior="isolated") for expression in expressions]


def byte_level(*before: pre_tokenizers.PreTokenizer, use_regex: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)])


# As the tokenizer.json of SmolLM2, GPT-2, Qwen2.5 and Llama 3 spell them.
PUBLISHED = {
    "smollm": (byte_level(pre_tokenizers.Digits(individual_digits=True), use_regex=True), False),
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False),
    "qwen2": (byte_level(*split(QWEN2_REGEX)), False),
    "llama-bpe": (byte_level(*split(LLAMA3_REGEX)), True),
    "smaug-bpe": (byte_level(*split(LLAMA3_REGEX)), False),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_pre_tokenizers_are_identified(name: str) -> None:
    pre_tokenizer, ignore_merges = PUBLISHED[name]
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizer
    backend.normalizer = normalizers.NFC()
    outcome = identify(backend)
    assert (outcome.name, outcome.nearest, outcome.differing) == (name, name, ())


def other_tokenizer(pre_tokenizer: pre_tokenizers.PreTokenizer, *, ignore_merges: bool = False) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=ignore_merges))
    backend.pre_tokenizer = pre_tokenizer
    vocabulary = Vocabulary("gpt2", identify(backend).name, (), (), False)
    return Tokenizer(backend, vocabulary, False, False, None, None, None, None)


@pytest.mark.parametrize(
    ("pre_tokenizer", "nearest", "difference"),
    [
        (byte_level(pre_tokenizers.Digits(individual_digits=False), use_regex=True), "gpt-2", "strings, as"),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), "gpt-2", "'\\n'"),
        (byte_level(pre_tokenizers.Whitespace()), "", "'  '"),
    ],
    ids=["digits together", "space in front", "whitespace dropped"],
)
def test_an_unknown_one_names_the_nearest_and_strings_that_differ(
    pre_tokenizer: pre_tokenizers.PreTokenizer, nearest: str, difference: str
) -> None:
    found = pretokenizer_finding(other_tokenizer(pre_tokenizer), "tokenizer.json")
    assert found is not None
    assert (found.rule, found.severity, found.file) == ("pretokenizer-unknown", "error", "tokenizer.json")
    assert nearest in found.found
    assert difference in found.found


def test_ignore_merges_set_the_other_way_is_no_match() -> None:
    found = pretokenizer_finding(other_tokenizer(byte_level(*split(QWEN2_REGEX)), ignore_merges=True), "tokenizer.json")
    assert found is not None
    assert "qwen2" in found.found
    assert "ignore_merges" in found.found


def sound(folder: Path) -> Tokenizer:
    return from_folder(folder, {path.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")})


@pytest.mark.parametrize("files", [hermes_tokenizer, bpe_tokenizer])
def test_sound_tokenizers_have_no_finding(files: object) -> None:
    assert callable(files)
    assert pretokenizer_finding(sound(files().folder), "tokenizer.json") is None


@pytest.mark.parametrize(
    ("scheme", "split_words", "severity"),
    [("always", False, "warning"), ("first", False, "warning"), ("never", False, None), ("first", True, "error")],
)
def test_spaces_in_front_of_a_sentencepiece_text(scheme: str, split_words: bool, severity: str | None) -> None:
    tokenizer = sound(hermes_tokenizer().folder)
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.normalizer = normalizers.Sequence([])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split_words)
    behind_tags = replace(tokenizer.vocabulary, add_space_prefix=scheme == "always")
    found = pretokenizer_finding(replace(tokenizer, backend=backend, vocabulary=behind_tags), "tokenizer.json")
    assert (found.severity if found else None) == severity
