"""llama.cpp in its child process: what it says of a file, against other ways of asking, and how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jinja2
import numpy as np
import pytest
import tokenizers
import torch
import transformers

from hermetiq.errors import CheckFailed, HermetiqError
from hermetiq.runtimes.llama_cpp import LlamaCpp
from tests.fixtures.gguf_edits import set_token, stored_tensors, token_texts
from tests.fixtures.hermes import CHATS
from tests.fixtures.tokenizers import CHATML
from tests.oracles.gguf_llama_cpp import end_of_generation

IM_END = 32000
TEXTS = (
    "",
    "Hello!",
    " two  blanks ",
    "Où est la gare ?",
    "🦊",
    "<|im_start|>user\nHi<|im_end|>\n",
    "a\x00b",
    "٣٤٥\r\n",
)


@pytest.fixture(scope="module")
def backend(trained_hermes: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(trained_hermes / "tokenizer.json"))


@pytest.fixture(scope="module")
def exact(exported_hermes: Path) -> Iterator[LlamaCpp]:
    """The F32 file, loaded."""
    with LlamaCpp(exported_hermes / "gguf/tiny-hermes-F32.gguf", context=512, threads=1) as runtime:
        yield runtime


def prompt_of(messages: object) -> str:
    return jinja2.Environment().from_string(CHATML).render(messages=messages, add_generation_prompt=True)


def test_it_cuts_text_as_the_source_does(exact: LlamaCpp, backend: tokenizers.Tokenizer) -> None:
    plain = [backend.encode(text, add_special_tokens=False).ids for text in TEXTS]
    assert exact.tokenize(TEXTS) == plain
    assert exact.tokenize(TEXTS, add_special=True) == [[1, *ids] for ids in plain]


def test_it_renders_the_template_of_the_file(exact: LlamaCpp) -> None:
    for chat in CHATS:
        assert exact.apply_template(chat.messages) == prompt_of(chat.messages)


@pytest.fixture(scope="module")
def in_transformers(trained_hermes: Path) -> torch.nn.Module:
    model: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(trained_hermes, dtype=torch.float32)
    return model.eval()


@pytest.mark.parametrize("answer", ["", "Here you go: "], ids=["a word follows", "an unfinished character follows"])
def test_its_distribution_is_that_of_transformers(
    exact: LlamaCpp, backend: tokenizers.Tokenizer, in_transformers: torch.nn.Module, answer: str
) -> None:
    (fox,) = (chat for chat in CHATS if "🦊" in chat.answer)
    ids = [1, *backend.encode(prompt_of(fox.messages) + answer, add_special_tokens=False).ids]
    if answer:
        whole = backend.encode(prompt_of(fox.messages) + fox.answer, add_special_tokens=False).ids
        ids = [1, *whole[: whole.index(backend.token_to_id("<0xF0>"))]]
    with torch.inference_mode():
        expected = torch.log_softmax(in_transformers(torch.tensor([ids])).logits[0, -1].double(), dim=-1).numpy()
    if answer:
        assert backend.id_to_token(int(expected.argmax())) == "<0xF0>"
    found = exact.next_logprobs(ids)
    assert found.shape == expected.shape
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-9)
    # llama.cpp keeps keys and values in half precision.
    assert np.abs(found - expected).max() < 0.05
    assert (np.exp(expected) * (expected - found)).sum() < 1e-4


def test_its_end_of_generation_set_is_complete(exact: LlamaCpp) -> None:
    assert exact.end_of_generation == end_of_generation(exact.path)
    # One of them the file names, the other llama.cpp adds by its text.
    assert exact.end_of_generation == {2, IM_END}


@pytest.mark.parametrize("recipe", ["Q8_0", "Q4_K_M"])
def test_quantized_files_give_every_trained_answer_and_stop(
    exported_hermes: Path, backend: tokenizers.Tokenizer, recipe: str
) -> None:
    with LlamaCpp(exported_hermes / f"gguf/tiny-hermes-{recipe}.gguf", context=512, threads=1) as runtime:
        for chat in CHATS:
            ids = [1, *backend.encode(prompt_of(chat.messages), add_special_tokens=False).ids]
            answer = runtime.generate(ids, max_tokens=64)
            assert (answer.text, answer.stopped, answer.ids[-1]) == (chat.answer, True, IM_END)


def test_the_limit_ends_an_answer_that_has_not_stopped(exact: LlamaCpp, backend: tokenizers.Tokenizer) -> None:
    ids = [1, *backend.encode(prompt_of(CHATS[0].messages), add_special_tokens=False).ids]
    whole = exact.generate(ids, max_tokens=64)
    cut = exact.generate(ids, max_tokens=3)
    assert (cut.ids, cut.stopped) == (whole.ids[:3], False)


def test_a_request_that_is_refused_is_told(exact: LlamaCpp) -> None:
    with pytest.raises(CheckFailed, match=r"refused /completion.*context"):
        exact.generate([5] * 600, max_tokens=1)
    assert exact.tokenize(["still"])


def test_weights_that_are_no_numbers_are_told(exported_hermes: Path, tmp_path: Path) -> None:
    broken = tmp_path / "nan.gguf"
    shutil.copyfile(exported_hermes / "gguf/tiny-hermes-F32.gguf", broken)
    with stored_tensors(broken) as stored:
        stored["blk.1.ffn_up.weight"].view(np.float32)[3, 5] = np.nan
    with LlamaCpp(broken, context=64, threads=1) as runtime, pytest.raises(CheckFailed, match="computes NaN"):
        runtime.next_logprobs([1, 2, 3])


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _wrong_magic(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"GGML")


def _duplicate_token(path: Path) -> None:
    texts = token_texts(path)
    twin = next(i for i in range(301, IM_END) if len(texts[i]) == len(texts[300]))
    set_token(path, twin, texts[300])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncated, _wrong_magic, _duplicate_token, _empty])
def test_a_file_it_dislikes_is_a_failed_check(
    exported_hermes: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copyfile(exported_hermes / "gguf/tiny-hermes-Q4_K_M.gguf", broken)
    damage(broken)
    with pytest.raises(CheckFailed, match=r"broken\.gguf: llama\.cpp does not load this file; its log ends:\n") as told:
        LlamaCpp(broken, threads=1).__enter__()
    log = told.value.what.partition("ends:\n")[2]
    assert any(word in log for word in ("magic", "bounds", "GGML_ASSERT", "failed to load", "failed to read")), log
    # The log goes into the manifest.
    assert str(tmp_path) not in log


def test_a_missing_file_is_unusable_input(tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match="no such file") as told:
        LlamaCpp(tmp_path / "none.gguf").__enter__()
    assert not isinstance(told.value, CheckFailed)


def test_a_missing_runtime_is_named(tmp_path: Path, exported_hermes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xllamacpp.py").write_text("raise ModuleNotFoundError(\"No module named 'xllamacpp'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(HermetiqError, match="pip install xllamacpp"):
        LlamaCpp(exported_hermes / "gguf/tiny-hermes-Q8_0.gguf").__enter__()


def test_one_that_loads_for_too_long_is_ended(exported_hermes: Path) -> None:
    runtime = LlamaCpp(exported_hermes / "gguf/tiny-hermes-F32.gguf", start_timeout=0.0)
    with pytest.raises(CheckFailed, match="within 0 s"):
        runtime.__enter__()
    with pytest.raises(HermetiqError, match="not running"):
        runtime.tokenize(["a"])


def test_the_child_dies_alone_and_leaves_nothing(exported_hermes: Path) -> None:
    with LlamaCpp(exported_hermes / "gguf/tiny-hermes-Q4_K_M.gguf", context=64, threads=1) as runtime:
        child = _child_of(os.getpid())
        os.kill(child, signal.SIGKILL)
        with pytest.raises(CheckFailed, match="no answer to /tokenize"):
            runtime.tokenize(["a"])
    assert _is_gone(child)
    runtime.close()


def test_the_child_ends_with_its_parent(exported_hermes: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom hermetiq.runtimes.llama_cpp import LlamaCpp\n"
        "with LlamaCpp(Path(sys.argv[1]), context=64, threads=1): print('up', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(exported_hermes / "gguf/tiny-hermes-Q4_K_M.gguf")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout
            assert parent.stdout.readline() == "up\n"
            child = _child_of(parent.pid)
        finally:
            parent.kill()
    deadline = time.monotonic() + 20
    while not _is_gone(child):
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)


def _child_of(process: int) -> int:
    """The newest llama.cpp worker that `process` has started."""
    listed = subprocess.run(["ps", "-ewwo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(maxsplit=2) for line in listed.splitlines()[1:]]
    return max(int(pid) for pid, parent, what in lines if int(parent) == process and "llama_cpp_worker" in what)


def _is_gone(process: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True, check=False)
    return listed.stdout.strip()[:1] in ("", "Z")
