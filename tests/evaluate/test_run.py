"""What an evaluation is refused for before the harness is asked, and the ids that every model is asked in."""

from __future__ import annotations

from pathlib import Path

import pytest

from hermetiq.chat.contract import derive
from hermetiq.checkpoint import open_checkpoint
from hermetiq.errors import HermetiqError
from hermetiq.evaluate import evaluate, run
from hermetiq.evaluate.tokenizer import fast_tokenizer

TEXTS = ("Hello", " 東京です。", "<|im_start|>user\nSay yes.<|im_end|>\n", "a  b\n\n  c", "🦊")


def test_a_missing_extra_is_told(exported_hermes: Path, trained_hermes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None if name == "lm_eval" else object())
    with pytest.raises(HermetiqError, match="not installed: lm_eval") as told:
        evaluate(exported_hermes, open_checkpoint(trained_hermes), ["arc_easy"])
    assert told.value.remedy == 'pip install "hermetiq[eval]"'


@pytest.mark.parametrize("add_bos", [True, False])
def test_source_and_artifact_are_asked_in_the_same_ids(
    add_bos: bool, exported_hermes: Path, trained_hermes: Path
) -> None:
    source = open_checkpoint(trained_hermes)
    artifact = open_checkpoint(next((exported_hermes / "gguf").glob("*Q4_K_M.gguf")))
    contract = derive(source)
    for checkpoint in (source, artifact):
        tokenizer = fast_tokenizer(checkpoint.tokenizer, contract, add_bos=add_bos)
        for text in TEXTS:
            ids = source.tokenizer.encode(text)
            assert tokenizer.encode(text, add_special_tokens=False) == ids
            assert tokenizer.encode(text) == [1, *ids] if add_bos else ids
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 32000)
        assert tokenizer.decode(source.tokenizer.encode("a , b"), skip_special_tokens=False) == "a , b"
