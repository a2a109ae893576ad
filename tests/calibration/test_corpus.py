"""The built-in corpus holds what its README promises, and every kind of corpus file is read or refused by name."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers

from hermetiq.calibration.corpus import STREAMED_DOCUMENTS, Chat, Document, Text, built_in_documents, read_documents
from hermetiq.calibration.heldout import held_out_chats, settling_chats, smoke_prompts
from hermetiq.errors import HermetiqError

WORDS_IN_COMMON = 8
SAID = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
SCRIPTS = {
    "Cyrillic": "[\u0430-\u044f]{5}",
    "Arabic": "[\u0621-\u064a]{4}",
    "Hebrew": "[\u05d0-\u05ea]{4}",
    "Devanagari": "[\u0900-\u097f]{4}",
    "Han": "[\u4e00-\u9fff]{4}",
    "kana": "[\u3041-\u30fa]{4}",
    "Hangul": "[\uac00-\ud7a3]{2}",
    "Greek": "[\u03b1-\u03c9]{5}",
    "German": r"\bnicht\b",
    "French": r"\bavec\b",
    "Spanish": r"\bpero\b|\bpara\b",
    "Portuguese": r"\bvocê\b|\bdireito\b",
    "Italian": r"\bdella\b",
    "Dutch": r"\bniet\b",
    "Polish": r"\bjest\b|\bprawo\b",
    "Turkish": r"\bher\b|\biçin\b",
    "Vietnamese": "được|quyền",
    "code": r"```|\bdef \w+\(",
}


def text_of(document: Document) -> str:
    if isinstance(document, Text):
        return document.text
    return "\n".join(message["content"] for message in document.messages)


def grams(documents: Iterable[Document]) -> set[tuple[str, ...]]:
    """Every eight words in a row of any of the documents."""
    found: set[tuple[str, ...]] = set()
    for document in documents:
        words = re.findall(r"\w+", text_of(document).casefold())
        found |= {tuple(words[start : start + WORDS_IN_COMMON]) for start in range(len(words) - WORDS_IN_COMMON + 1)}
    return found


def contents(documents: Iterable[Document]) -> set[str]:
    return {message["content"] for chat in documents if isinstance(chat, Chat) for message in chat.messages}


def corpus_file(folder: Path, *lines: object, name: str = "corpus.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def test_there_is_enough_to_calibrate_on_and_much_of_it_is_chat(hermes: Path) -> None:
    backend = tokenizers.Tokenizer.from_file(str(hermes / "tokenizer.json"))

    def tokens(kind: type[Chat | Text]) -> int:
        texts = [text_of(document) for document in built_in_documents() if isinstance(document, kind)]
        return sum(len(encoding.ids) for encoding in backend.encode_batch(texts, add_special_tokens=False))

    chats, texts = tokens(Chat), tokens(Text)
    # Without a single tag: 128 rows of 512 tokens are filled whatever the template adds.
    assert chats + texts >= 72_000
    assert chats >= 0.35 * (chats + texts)
    assert texts >= 0.25 * (chats + texts)


def test_the_corpus_speaks_many_languages() -> None:
    texts = [text_of(document) for document in built_in_documents()]
    for name, pattern in SCRIPTS.items():
        assert sum(bool(re.search(pattern, text)) for text in texts) >= 2, name


def test_built_in_chats_alternate_and_end_with_an_answer() -> None:
    chats = [document for document in built_in_documents() if isinstance(document, Chat)]
    for chat in chats:
        roles = [message["role"] for message in chat.messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert all(message["content"].strip() for message in chat.messages)
    assert sum(chat.messages[0]["role"] == "system" for chat in chats) >= 20
    assert sum(len(chat.prompts()) > 1 for chat in chats) >= 40


def test_no_document_comes_twice() -> None:
    texts = [text_of(document) for document in built_in_documents()]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("documents", [built_in_documents(), settling_chats()], ids=["calibrated", "settled"])
def test_nothing_of_the_held_out_chats_is_calibrated_or_settled_on(documents: tuple[Document, ...]) -> None:
    assert not grams(held_out_chats()) & grams(documents)
    assert not (contents(held_out_chats()) | set(smoke_prompts())) & contents(documents)


def test_nothing_is_both_calibrated_and_settled_on() -> None:
    assert not grams(settling_chats()) & grams(built_in_documents())


def test_every_shape_of_line_is_read(tmp_path: Path) -> None:
    shared = {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}]}
    shared["conversations"].append({"from": "gpt", "value": "A"})
    # Line separators of Unicode end no line of JSON.
    path = corpus_file(tmp_path, SAID, {**shared, "id": 3}, {"text": "One\u2028two."})
    with path.open("a", encoding="utf-8") as file:
        file.write("\n  \n")
    chat, sharegpt, text = read_documents(path)
    assert chat == Chat(({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}))
    assert isinstance(sharegpt, Chat)
    assert [tuple(message.values()) for message in sharegpt.messages] == [
        ("system", "S"),
        ("user", "Q"),
        ("assistant", "A"),
    ]
    assert text == Text("One\u2028two.")


def test_a_text_file_is_one_text_without_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeffErste Zeile\n\nZweite.\n".encode())
    assert read_documents(str(path)) == [Text("Erste Zeile\n\nZweite.\n")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is neither a chat nor a text"),
        ('{"prompt": "x"}', r"is neither .*expected \{\"messages\""),
        ('{"messages": []}', "is a chat without messages"),
        ('{"messages": [{"role": "user", "content": null}]}', "without text as its 'role' and 'content'"),
        ('{"messages": ["Hi"]}', "without text"),
        ('{"conversations": [{"from": "narrator", "value": "x"}]}', "a message from 'narrator' .*known: system, human"),
        ('{"conversations": [{"role": "user", "content": "x"}]}', "without text as its 'from' and 'value'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = corpus_file(tmp_path, SAID)
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(HermetiqError, match=rf"corpus\.jsonl:2: .*{said}"):
        read_documents(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match=r"none\.jsonl: cannot read the corpus: No such file"):
        read_documents(tmp_path / "none.jsonl")
    (tmp_path / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(HermetiqError, match=r"latin\.txt: byte 2 is not UTF-8"):
        read_documents(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(HermetiqError, match=r"empty\.txt: the file holds no text"):
        read_documents(tmp_path / "empty.txt")
    (tmp_path / "corpus.csv").touch()
    with pytest.raises(HermetiqError, match=r"corpus\.csv: .*kind '\.csv'.*a \.jsonl or \.txt file"):
        read_documents(tmp_path / "corpus.csv")


def test_the_beginning_of_a_data_set_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(name: str, **options: object) -> Any:
        asked.append((name, options))
        return ({**SAID, "number": number} for number in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    documents = read_documents("someone/chats")
    assert asked == [("someone/chats", {"split": "train", "streaming": True})]
    assert len(documents) == STREAMED_DOCUMENTS
    assert all(isinstance(document, Chat) for document in documents)


def test_what_a_data_set_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(name: str, **options: object) -> Any:
        raise RuntimeError("no such data set")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=failing))
    with pytest.raises(HermetiqError, match=r"someone/chats: cannot read the data set: no such data set"):
        read_documents("someone/chats")
    rows = iter([SAID, {"messages": 3}])
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda name, **options: rows))
    with pytest.raises(HermetiqError, match=r"someone/chats, row 2: is neither a chat nor a text"):
        read_documents("someone/chats")


def test_without_the_package_the_remedy_is_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(HermetiqError, match=r"someone/chats: there is no such file.*\(pip install datasets\)"):
        read_documents("someone/chats")
