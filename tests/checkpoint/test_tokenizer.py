"""Tokenizers out of folders, against transformers, sentencepiece and llama.cpp."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers

from hermetiq.checkpoint.probes import probes
from hermetiq.checkpoint.tokenizer import Tokenizer, from_folder, from_vocabulary
from hermetiq.errors import Refusal
from hermetiq.model import SpecialIds, Token, TokenKind
from tests.fixtures.gguf_files import write_gguf
from tests.fixtures.models import edit_json, write_json
from tests.fixtures.texts import texts
from tests.fixtures.tokenizers import SENTENCEPIECE, bpe_tokenizer, hermes_tokenizer
from tests.oracles.llama_vocab import llama_ids

TAGS = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
CONFIG = "tokenizer_config.json"
FOLDERS = {"hermes": lambda: hermes_tokenizer().folder, "bpe": lambda: bpe_tokenizer().folder}


def opened(folder: Path) -> Tokenizer:
    return from_folder(folder, {path.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")})


def copied(source: Path, target: Path, *without: str) -> Path:
    shutil.copytree(source, target)
    for name in without:
        (target / name).unlink()
    return target


def generic(folder: Path) -> Path:
    """The folder under the class that reads tokenizer.json as it stands: others rebuild the pipeline."""
    edit_json(folder / CONFIG, tokenizer_class="PreTrainedTokenizerFast")
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text("utf-8"))
    change(document)
    write_json(path, document)
    return folder


@pytest.fixture
def hermes_copy(tmp_path: Path) -> Path:
    return generic(copied(hermes_tokenizer().folder, tmp_path / "hermes"))


@pytest.fixture
def bpe_copy(tmp_path: Path) -> Path:
    return generic(copied(bpe_tokenizer().folder, tmp_path / "bpe"))


@pytest.mark.parametrize("kind", FOLDERS)
def test_ids_and_texts_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = generic(copied(FOLDERS[kind](), tmp_path / kind))
    ours, theirs = opened(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in texts(2000, tags=TAGS):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
        ids = ours.encode(text, add_special=True)
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids)
    named = (ours.bos_token, ours.eos_token, ours.pad_token, ours.unk_token)
    assert named == (theirs.bos_token, theirs.eos_token, theirs.pad_token, theirs.unk_token)
    assert ours.id_of("<|im_end|>") == theirs.convert_tokens_to_ids("<|im_end|>")
    assert ours.id_of("no such token") is None


def policy(folder: Path, **stated: bool) -> None:
    """Let the configuration state these fields and no other of their kind."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    kept = {key: value for key, value in config.items() if key not in ("add_bos_token", "add_eos_token")}
    write_json(folder / CONFIG, kept | stated)


@pytest.mark.parametrize("post_processor", [True, False], ids=["adds BOS", "none"])
def test_the_post_processor_decides_where_the_configuration_does_not(hermes_copy: Path, post_processor: bool) -> None:
    policy(hermes_copy)
    if not post_processor:
        rewrite(hermes_copy, lambda document: document.update(post_processor=None))
    theirs = transformers.AutoTokenizer.from_pretrained(hermes_copy)("hello")["input_ids"]
    assert opened(hermes_copy).encode("hello", add_special=True) == theirs
    assert (theirs[0] == 1) is post_processor


@pytest.mark.parametrize(
    ("stated", "first", "last"),
    [
        ({"add_bos_token": False}, [], []),
        ({"add_eos_token": True}, [1], [32_000]),
        ({"add_bos_token": False, "add_eos_token": True}, [], [32_000]),
    ],
    ids=str,
)
def test_the_configuration_decides_before_the_post_processor(
    hermes_copy: Path, stated: dict[str, bool], first: list[int], last: list[int]
) -> None:
    policy(hermes_copy, **stated)
    tokenizer = opened(hermes_copy)
    assert tokenizer.encode("hello", add_special=True) == [*first, *tokenizer.encode("hello"), *last]


def test_bos_named_by_the_post_processor_alone(hermes_copy: Path) -> None:
    (hermes_copy / CONFIG).unlink()
    (hermes_copy / "special_tokens_map.json").unlink()
    tokenizer = opened(hermes_copy)
    assert (tokenizer.add_bos, tokenizer.bos_token, tokenizer.eos_token) == (True, "<s>", None)


@pytest.mark.parametrize("described", [True, False], ids=["object", "text"])
@pytest.mark.parametrize("listed", [True, False], ids=["with added_tokens_decoder", "without"])
def test_special_tokens_map_counts_only_without_listed_added_tokens(
    hermes_copy: Path, described: bool, listed: bool
) -> None:
    config = json.loads((hermes_copy / CONFIG).read_text("utf-8"))
    if not listed:
        del config["added_tokens_decoder"]
    write_json(hermes_copy / CONFIG, config | {"eos_token": {"content": "<|im_end|>"} if described else "<|im_end|>"})
    eos = {"content": "</s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write_json(hermes_copy / "special_tokens_map.json", {"eos_token": eos if described else "</s>"})
    assert opened(hermes_copy).eos_token == ("<|im_end|>" if listed else "</s>")


def test_a_vocabulary_says_what_each_token_is() -> None:
    hermes, bpe = opened(hermes_tokenizer().folder).vocabulary, opened(bpe_tokenizer().folder).vocabulary
    assert (hermes.model, hermes.pre, hermes.add_space_prefix, hermes.merges) == ("llama", "default", True, ())
    assert (bpe.model, bpe.pre, bpe.add_space_prefix) == ("gpt2", "qwen2", False)
    assert len(hermes.tokens) == 32_002
    kinds = [token.kind for token in hermes.tokens]
    assert kinds[:3] == [TokenKind.UNKNOWN, TokenKind.CONTROL, TokenKind.CONTROL]
    assert set(kinds[3:259]) == {TokenKind.BYTE}
    assert set(kinds[259:32_000]) == {TokenKind.NORMAL}
    assert hermes.tokens[32_000:] == (Token("<|im_end|>", TokenKind.CONTROL), Token("<|im_start|>", TokenKind.CONTROL))
    assert bpe.tokens[-1] == Token("<|im_end|>", TokenKind.CONTROL)


def test_merges_are_read_in_both_spellings(bpe_copy: Path) -> None:
    pairs = opened(bpe_copy).vocabulary

    def joined(document: dict[str, Any]) -> None:
        document["model"]["merges"] = [" ".join(merge) for merge in document["model"]["merges"]]

    assert opened(rewrite(bpe_copy, joined)).vocabulary == pairs
    assert pairs.merges


def test_added_tokens_that_are_not_special_and_ids_without_a_token(bpe_copy: Path) -> None:
    size = len(opened(bpe_copy).vocabulary.tokens)

    def add(document: dict[str, Any]) -> None:
        like = document["added_tokens"][0]
        document["added_tokens"].append({**like, "id": size, "content": f"[PAD{size + 1}]", "special": False})
        # Beside a hole the library keeps the ids of added tokens only where the vocabulary has them, too.
        document["model"]["vocab"] |= {token["content"]: token["id"] for token in document["added_tokens"]}
        document["model"]["vocab"]["far"] = size + 3

    tokens = opened(rewrite(bpe_copy, add)).vocabulary.tokens
    assert [token.kind for token in tokens[size:]] == [
        TokenKind.USER_DEFINED,
        TokenKind.UNUSED,
        TokenKind.UNUSED,
        TokenKind.NORMAL,
    ]
    assert len({token.text for token in tokens}) == len(tokens)


def test_truncation_and_padding_of_the_file_are_not_obeyed(bpe_copy: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(bpe_copy / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(bpe_copy / "tokenizer.json"))
    assert 4 < len(opened(bpe_copy).encode("one two three four five six")) < 64


@pytest.mark.parametrize("without", [(), ("tokenizer.json",)], ids=["ranks as scores", "scores of tokenizer.model"])
def test_the_scores_give_llama_cpp_the_same_ids(tmp_path: Path, without: tuple[str, ...]) -> None:
    tokenizer = opened(copied(hermes_tokenizer().folder, tmp_path / "hermes", *without))
    strings = texts(2500, tags=TAGS)
    path = write_gguf(
        tmp_path / "vocabulary.gguf",
        vocabulary=tokenizer.vocabulary,
        ids=SpecialIds(2, None, None, 1, None, 0, True, False),
    )
    expected = llama_ids([path], strings)[0]
    assert [tokenizer.encode(text) for text in strings] == expected
    rebuilt = from_vocabulary(tokenizer.vocabulary, SpecialIds(2, 32_000, None, 1, None, 0, True, False))
    assert [rebuilt.encode(text) for text in strings] == expected
    assert (rebuilt.bos_token, rebuilt.eos_token, rebuilt.pad_token, rebuilt.unk_token) == (
        "<s>",
        "</s>",
        None,
        "<unk>",
    )
    assert rebuilt.decode(rebuilt.encode("Hi, you<|im_end|>", add_special=True), skip_special=True) == "Hi, you"


def test_a_sentencepiece_file_alone(tmp_path: Path) -> None:
    tokenizer = opened(copied(hermes_tokenizer().folder, tmp_path / "spm", "tokenizer.json"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(SENTENCEPIECE))
    assert tokenizer.vocabulary.tokens[400].score == pieces.get_score(400) != 0
    strings = [text for text in texts(2000) if "<|im_" not in text]
    assert [tokenizer.encode(text) for text in strings] == pieces.encode(strings)
    assert tokenizer.encode("<|im_start|>user", add_special=True) == [1, 32_001, 2188]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "<|im_end|>", "<unk>")


@pytest.mark.parametrize("named", [["<|im_start|>"], {"start": "<|im_start|>"}, [{"content": "<|im_start|>"}]], ids=str)
def test_added_tokens_json_and_the_forms_of_extra_special_tokens(tmp_path: Path, named: Any) -> None:
    folder = copied(hermes_tokenizer().folder, tmp_path / "spm", "tokenizer.json", CONFIG)
    write_json(folder / CONFIG, {"eos_token": "<|im_end|>", "extra_special_tokens": named})
    write_json(folder / "added_tokens.json", {"<|im_end|>": 32_000, "<|im_start|>": 32_001, "<tool>": 32_002})
    kinds = [token.kind for token in opened(folder).vocabulary.tokens[32_000:]]
    assert kinds == [TokenKind.CONTROL, TokenKind.CONTROL, TokenKind.USER_DEFINED]


def test_vocab_json_with_merges_txt_equals_tokenizer_json(tmp_path: Path) -> None:
    folder = copied(bpe_tokenizer().folder, tmp_path / "merges")
    whole = opened(folder)
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", model["vocab"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(whole.vocabulary.merges) + "\n", "utf-8")
    parts = opened(folder)
    assert parts.vocabulary == whole.vocabulary
    strings = [*texts(1000, tags=TAGS), "e\u0301"]
    assert [parts.encode(text) for text in strings] == [whole.encode(text) for text in strings]


def unigram(folder: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(probes()), model_writer=model, vocab_size=400, hard_vocab_limit=False, minloglevel=2
    )
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(model.getvalue())


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).unlink()


def cut_json(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:5000])


def cut_pieces(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes()[:5000])


def word_level(folder: Path) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    backend.save(str(folder / "tokenizer.json"))


def dropout(folder: Path) -> None:
    rewrite(folder, lambda document: document["model"].update(dropout=0.1))


def outside(folder: Path) -> None:
    target = folder.parent / "elsewhere.json"
    shutil.move(folder / "tokenizer.json", target)
    (folder / "tokenizer.json").symlink_to(target)


def unknown_class(folder: Path) -> None:
    no_tokenizer(folder)
    write_json(folder / "vocab.json", {"a": 0})


def bad_added_tokens(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    edit_json(folder / CONFIG, added_tokens_decoder={"x": "<|im_end|>"})


@pytest.mark.parametrize(
    ("damage", "file", "words"),
    [
        (no_tokenizer, "tokenizer.json", "none of"),
        (cut_json, "tokenizer.json", "does not load"),
        (cut_pieces, "tokenizer.model", "cannot read"),
        (unigram, "tokenizer.model", "another segmentation"),
        (word_level, "tokenizer.json", "WordLevel"),
        (dropout, "tokenizer.json", "0.1"),
        (outside, "tokenizer.json", "link out of the folder"),
        (unknown_class, CONFIG, "LlamaTokenizer"),
        (bad_added_tokens, CONFIG, "added tokens"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, damage: Callable[[Path], None], file: str, words: str) -> None:
    folder = copied(hermes_tokenizer().folder, tmp_path / "damaged")
    damage(folder)
    documents = {}
    for path in folder.glob("*.json"):
        if damage is not cut_json or path.name != "tokenizer.json":
            documents[path.name] = json.loads(path.read_text("utf-8"))
    with pytest.raises(Refusal) as refusal:
        from_folder(folder, documents)
    found = refusal.value.findings[0]
    assert (found.rule, found.file) == ("source-incomplete", file)
    assert words in found.found


def test_two_tokens_before_a_text_are_refused(hermes_copy: Path) -> None:
    policy(hermes_copy)

    def twice(document: dict[str, Any]) -> None:
        document["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})

    with pytest.raises(Refusal, match="<s> <s> on one side"):
        opened(rewrite(hermes_copy, twice))


def test_a_merge_that_makes_no_token_is_refused() -> None:
    vocabulary = opened(bpe_tokenizer().folder).vocabulary
    broken = replace(vocabulary, merges=("no such", *vocabulary.merges))
    with pytest.raises(Refusal, match="source-incomplete"):
        from_vocabulary(broken, SpecialIds(0, None, None, None, None, None, False, False))


def test_an_endless_piece_is_refused_at_once() -> None:
    vocabulary = opened(hermes_tokenizer().folder).vocabulary
    endless = replace(vocabulary, tokens=(*vocabulary.tokens, Token("a" * (1 << 20), TokenKind.NORMAL)))
    with pytest.raises(Refusal, match="1048576 letters"):
        from_vocabulary(endless, SpecialIds(0, None, None, None, None, None, False, False))
