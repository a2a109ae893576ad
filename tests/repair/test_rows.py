"""Rows that a repair adds or starts: never over a trained one, and told as what they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from hermetiq.errors import HermetiqError
from hermetiq.repair import InitTags, Repair, repair
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint, write_json
from tests.repair.test_repair import (
    EMBEDDING,
    END,
    END_ID,
    HEAD,
    START,
    WEIGHTS,
    contents,
    document,
    edit_tokenizer,
    edit_weights,
    rules,
)

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bpe(tmp_path_factory.mktemp("rows") / "parent", seed=1)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose end tag has a row of zeros in the embedding and the mean in the head."""
    folder = bpe(tmp_path_factory.mktemp("rows") / "untrained")

    def change(tensors: dict[str, Tensor]) -> None:
        tensors[EMBEDDING][END_ID] = 0
        tensors[HEAD][END_ID] = tensors[HEAD].float().mean(0).to(torch.bfloat16)

    edit_weights(folder, change)
    return folder


def bpe(folder: Path, *, seed: int = 0, rows: int | None = None, shards: int = 1, hidden: int = 64) -> Path:
    return tiny_checkpoint(folder, family="qwen2", tokenizer="bpe", seed=seed, rows=rows, shards=shards, hidden=hidden)


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def started(source: Path, out: Path, init: str) -> Repair:
    """Repair with `init`; the same again changes nothing, and no other value than the end tag's rows has changed."""
    result = repair(str(source), out, init_tags=InitTags.parse(init))
    again = repair(str(out), out.with_name("again"), init_tags=InitTags.parse(init))
    assert again.changes == ()
    assert contents(out.with_name("again")) == contents(out)
    before, after = weights(source), weights(out)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        changed = (tensor != after[name]).reshape(len(tensor), -1).any(dim=1).nonzero().flatten().tolist()
        assert set(changed) <= ({END_ID} if name in (EMBEDDING, HEAD) else set())
    return result


@pytest.mark.parametrize("shards", [1, 3])
def test_tokens_without_a_row_get_the_mean_and_no_row_is_lost(shards: int, tmp_path: Path) -> None:
    source = bpe(tmp_path / "source", rows=801, shards=shards)
    assert "vocab-overflow" in rules(source)
    mean_rows = InitTags("mean")
    result = repair(str(source), tmp_path / "out", init_tags=mean_rows)
    before, after = weights(source), weights(tmp_path / "out")
    for name in (EMBEDDING, HEAD):
        assert torch.equal(after[name][:801], before[name])
        mean = before[name].double().mean(0).to(torch.bfloat16)
        assert torch.equal(after[name][801:], mean.expand(2, -1))
    assert all(torch.equal(after[name], before[name]) for name in before if name not in (EMBEDDING, HEAD))
    assert document(tmp_path / "out", "config.json")["vocab_size"] == 803
    told = {change.field: change for change in result.changes if change.rule == "vocab-overflow"}
    assert told.keys() == {EMBEDDING, HEAD, "vocab_size"}
    assert told[HEAD].old == "801 rows"
    assert told[HEAD].new.startswith("803 rows; 801: the mean of all rows, for <|im_start|>")
    # The tags among them are untrained now, and that is not passed over.
    assert rules(tmp_path / "out") == {"tag-untrained"}
    assert not result.whole
    assert repair(str(tmp_path / "out"), tmp_path / "again", init_tags=mean_rows).changes == ()
    assert contents(tmp_path / "again") == contents(tmp_path / "out")
    if shards > 1:
        total = sum(tensor.nbytes for tensor in after.values())
        assert document(tmp_path / "out", "model.safetensors.index.json")["metadata"]["total_size"] == total
        untouched = [name for name in contents(source) if name.startswith("model-00002")]
        assert untouched
        assert all((tmp_path / "out" / name).read_bytes() == (source / name).read_bytes() for name in untouched)


def test_no_row_is_made_up_for_a_tag_unless_asked(tmp_path: Path) -> None:
    source = bpe(tmp_path / "source", rows=801)
    result = repair(str(source), tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    assert document(tmp_path / "out", "config.json")["vocab_size"] == 801
    assert [(each.finding.rule, "--init-tags" in each.reason) for each in result.unrepaired] == [
        ("vocab-overflow", True)
    ]
    assert not result.whole


def with_padding_token(folder: Path) -> Path:
    """A trainer's `[PAD]`, behind the last row and in every list that a trainer writes it to."""
    bpe(folder)
    entry = {"id": 803, "content": "[PAD]", "special": True, **dict.fromkeys(FLAGS, False)}
    edit_tokenizer(folder, lambda tokenizer: tokenizer["added_tokens"].append(entry))
    config = document(folder, "tokenizer_config.json")
    decoder = {
        **config.get("added_tokens_decoder", {}),
        "803": {key: entry[key] for key in (*FLAGS, "content", "special")},
    }
    edit_json(folder / "tokenizer_config.json", pad_token="[PAD]", added_tokens_decoder=decoder)
    edit_json(folder / "special_tokens_map.json", pad_token="[PAD]", additional_special_tokens=["[PAD]", END])
    for name in ("config.json", "generation_config.json"):
        edit_json(folder / name, pad_token_id=803)
    write_json(folder / "added_tokens.json", {START: 801, END: END_ID, "[PAD]": 803})
    return folder


def test_a_token_without_a_row_that_no_chat_needs_is_taken_out_everywhere(tmp_path: Path) -> None:
    source = with_padding_token(tmp_path / "source")
    assert "vocab-overflow" in rules(source)
    result = repair(str(source), tmp_path / "out")
    assert result.unrepaired == ()
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    assert all(b"[PAD]" not in data for name, data in contents(tmp_path / "out").items() if name.endswith("json"))
    told = {(change.file, change.field): change for change in result.changes}
    taken = told["tokenizer.json", "added_tokens.[PAD]"]
    assert (taken.rule, taken.new) == ("vocab-overflow", "nothing")
    assert told["config.json", "pad_token_id"].old == "803"
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == 803
    assert repair(str(tmp_path / "out"), tmp_path / "again").changes == ()
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


@pytest.mark.parametrize("stated", [700, 900])
def test_stored_rows_are_believed_before_the_configuration(stated: int, tmp_path: Path) -> None:
    source = bpe(tmp_path / "source")
    edit_json(source / "config.json", vocab_size=stated)
    assert rules(source) == {"vocab-rows"}
    result = repair(str(source), tmp_path / "out")
    assert result.unrepaired == ()
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (source / WEIGHTS).read_bytes()
    (change,) = (change for change in result.changes if change.field == "vocab_size")
    assert (change.rule, change.old, change.new) == ("vocab-rows", str(stated), "803")
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 803


def test_untrained_tags_keep_their_rows_unless_asked(untrained: Path, tmp_path: Path) -> None:
    result = repair(str(untrained), tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (untrained / WEIGHTS).read_bytes()
    assert {each.finding.field for each in result.unrepaired} == {EMBEDDING, HEAD}
    assert all("--init-tags" in each.reason for each in result.unrepaired)


def test_rows_of_a_parent_end_the_finding(untrained: Path, parent: Path, tmp_path: Path) -> None:
    result = started(untrained, tmp_path / "out", f"parent:{parent}")
    for name in (EMBEDDING, HEAD):
        assert torch.equal(weights(tmp_path / "out")[name][END_ID], weights(parent)[name][END_ID])
    told = [change for change in result.changes if change.rule == "tag-untrained"]
    assert [change.field for change in told] == [f"{EMBEDDING}[{END_ID}]", f"{HEAD}[{END_ID}]"]
    assert told[0].old == f"row {END_ID} is zero"
    assert told[0].new == f"row {END_ID} of parent, for {END}"
    assert rules(tmp_path / "out") == set()
    assert result.whole


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("copy:<|endoftext|>", lambda tensor: tensor[800]),
        ("mean", lambda tensor: tensor[:END_ID].double().mean(0).to(torch.bfloat16)),
    ],
)
def test_a_start_is_given_and_still_told_untrained(
    init: str, expected: Callable[[Tensor], Tensor], untrained: Path, tmp_path: Path
) -> None:
    result = started(untrained, tmp_path / "out", init)
    for name in (EMBEDDING, HEAD):
        tensor = weights(tmp_path / "out")[name]
        assert torch.equal(tensor[END_ID], expected(tensor))
    assert "tag-untrained" in {change.rule for change in result.changes}
    assert {each.finding.rule for each in result.unrepaired} == {"tag-untrained"}
    assert "where training can start" in result.unrepaired[0].reason


@pytest.mark.parametrize("init", ["", "mean:x", "copy:", "parent", "zeros", "copy:<|nobody|>", "copy:803"])
def test_a_start_that_nobody_can_give_is_refused(init: str, untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match="init-tags"):
        repair(str(untrained), tmp_path / "out", init_tags=InitTags.parse(init))
    assert list(tmp_path.iterdir()) == []


def test_a_parent_without_trained_rows_is_refused(untrained: Path, tmp_path: Path) -> None:
    other = bpe(tmp_path / "other", hidden=32)
    same = copy_of(untrained, tmp_path / "same")
    for folder, what in ((other, "32 numbers"), (same, "untrained there too")):
        with pytest.raises(HermetiqError, match=what):
            repair(str(untrained), tmp_path / "out", init_tags=InitTags("parent", str(folder)))


def test_a_file_of_float64_is_refused_before_anything_is_lost(tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source", family="qwen2", tokenizer="bpe", rows=801, dtype=torch.float64)
    with pytest.raises(HermetiqError, match="beside F64"):
        repair(str(source), tmp_path / "out", init_tags=InitTags("mean"))
    assert list(tmp_path.iterdir()) == [source]
