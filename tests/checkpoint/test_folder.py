"""Model folders: what is read, what is refused, and that reading stays lazy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hermetiq.checkpoint.documents import file_name
from hermetiq.checkpoint.finite import check_finite, non_finite
from hermetiq.checkpoint.folder import FolderCheckpoint, scan
from hermetiq.errors import Finding, HermetiqError, Refusal
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint, write_json

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("folder") / "tiny-chat", tokenizer="bpe")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("folder") / "tiny-sharded", tokenizer="bpe", shards=2)


@pytest.fixture
def folder(sharded: Path, tmp_path: Path) -> Path:
    """A sharded folder to break."""
    return copy_of(sharded, tmp_path / "broken")


@pytest.fixture
def alone(single: Path, tmp_path: Path) -> Path:
    """A folder of one file to break."""
    return copy_of(single, tmp_path / "broken")


def refused(folder: Path) -> tuple[Finding, ...]:
    with pytest.raises(Refusal) as refusal:
        FolderCheckpoint(folder)
    assert refusal.value.findings == tuple(each for each in scan(folder) if each.severity == "error")
    return refusal.value.findings


def only(folder: Path, rule: str, file: str) -> str:
    """What the one finding found, as it names `file` and `rule`."""
    (finding,) = refused(folder)
    assert (finding.rule, finding.file) == (rule, file)
    return finding.found


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors")


# What is read


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_read_as_stored(tmp_path: Path, dtype: torch.dtype, shards: int) -> None:
    folder = tiny_checkpoint(tmp_path / "m", tokenizer="bpe", dtype=dtype, shards=shards)
    stored = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    checkpoint = FolderCheckpoint(folder)
    assert checkpoint.findings == ()
    assert checkpoint.tensors.keys() == stored.keys() == checkpoint.model.expected_tensors().keys()
    for name, info in checkpoint.tensors.items():
        tensor = checkpoint.load(name)
        assert tensor.dtype == dtype
        assert tuple(tensor.shape) == info.shape
        assert torch.equal(tensor, stored[name])
        assert name in load_file(folder / info.file)
    with pytest.raises(KeyError):
        checkpoint.load("no.such.tensor")


def test_documents_templates_and_tokenizer(alone: Path) -> None:
    (alone / "chat_template.jinja").write_bytes(b"{{ messages }}\r\nend")
    checkpoint = FolderCheckpoint(alone)
    assert checkpoint.config == json.loads((alone / "config.json").read_text())
    assert set(checkpoint.documents) >= {"config.json", "generation_config.json", "tokenizer.json"}
    inline = json.loads((alone / "tokenizer_config.json").read_text())["chat_template"]
    assert checkpoint.templates == {"chat_template.jinja": "{{ messages }}\nend", "tokenizer_config.json": inline}
    assert checkpoint.tokenizer.id_of("<|im_end|>") == 802


def test_of_a_list_of_templates_the_default_counts(alone: Path) -> None:
    named = [7, {"name": ["x"]}, {"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    edit_json(alone / "tokenizer_config.json", chat_template=named)
    assert FolderCheckpoint(alone).templates == {"tokenizer_config.json": "D"}
    edit_json(alone / "tokenizer_config.json", chat_template=named[:3])
    assert FolderCheckpoint(alone).templates == {}
    edit_json(alone / "tokenizer_config.json", chat_template=7)
    assert only(alone, "source-incomplete", "tokenizer_config.json") == "7"


def test_provenance_from_card_and_recipe(alone: Path) -> None:
    card = "---\nlicense: mit\nbase_model:\n- a/b\n- c/d\ntags: []\n---\n# Title\n---\n"
    (alone / "README.md").write_text(card, encoding="utf-8")
    (alone / "mergekit_config.yml").write_text("merge_method: ties\n", encoding="utf-8")
    provenance = FolderCheckpoint(alone).provenance
    assert (provenance.name, provenance.license, provenance.base_models) == ("broken", "mit", ("a/b", "c/d"))
    assert provenance.merge_recipe == "merge_method: ties\n"
    assert provenance.revision is None


@pytest.mark.parametrize(
    ("front", "license_"),
    [
        ("license: other\nlicense_name: llama3", "llama3"),
        ("license: other", "other"),
        ("license: [mit]\nbase_model: []", None),
        ("license:\nbase_model: {a: b}", None),
        ("- a\n- b", None),
        (r'license: "\ud800"' + "\n" + r'base_model: "a/\udfff"', None),
        ("", None),
    ],
)
def test_an_odd_card_stops_nothing(alone: Path, front: str, license_: str | None) -> None:
    (alone / "README.md").write_text(f"---\n{front}\n---\ntext", encoding="utf-8")
    checkpoint = FolderCheckpoint(alone)
    assert (checkpoint.provenance.license, checkpoint.provenance.base_models) == (license_, ())
    assert checkpoint.findings == ()


@pytest.mark.parametrize("value", ["!!int ''", "!!bool x", "!!timestamp x", "2001-99-99", "[" * 3000])
def test_a_card_of_values_that_do_not_fit_their_tags_is_a_warning(value: str, alone: Path) -> None:
    (alone / "README.md").write_text(f"---\nlicense: {value}\n---\n", encoding="utf-8")
    assert [(each.severity, each.file) for each in scan(alone)] == [("warning", "README.md")]


def test_an_unreadable_card_is_a_warning(alone: Path) -> None:
    (alone / "README.md").write_text("---\nlicense: 'mit\n---\n", encoding="utf-8")
    (finding,) = FolderCheckpoint(alone).findings
    assert (finding.severity, finding.file) == ("warning", "README.md")
    assert "line" in finding.found


@pytest.mark.parametrize(
    ("folder_name", "stated", "name"),
    [
        ("My Model (v2)", "org/other", "My-Model-v2"),
        ("merged", "org/tuned", "tuned"),
        ("checkpoint-500", "./out/run/", "run"),
        ("model", None, "model"),
        ("..weird..", None, "weird"),
    ],
)
def test_the_name_is_that_of_the_folder_unless_it_says_nothing(
    single: Path, tmp_path: Path, folder_name: str, stated: str | None, name: str
) -> None:
    folder = copy_of(single, tmp_path / folder_name)
    edit_json(folder / "config.json", _name_or_path=stated)
    assert FolderCheckpoint(folder).provenance.name == name


@settings(derandomize=True, deadline=None)
@given(st.text())
def test_a_name_is_always_fit_for_a_file(text: str) -> None:
    name = file_name(text)
    assert name
    assert name[0] != "."
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def test_old_rotary_buffers_are_left_out(alone: Path) -> None:
    rewrite(alone, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    checkpoint = FolderCheckpoint(alone)
    assert checkpoint.tensors.keys() == checkpoint.model.expected_tensors().keys()


def test_a_head_beside_a_tied_embedding_is_kept(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", tokenizer="bpe", tied=True)
    assert "lm_head.weight" not in FolderCheckpoint(folder).tensors
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * 2}))
    checkpoint = FolderCheckpoint(folder)
    assert checkpoint.model.tied
    assert checkpoint.tensors["lm_head.weight"].shape == (803, 64)


def test_fingerprint_follows_the_content(single: Path, alone: Path) -> None:
    first = FolderCheckpoint(single).fingerprint()
    assert FolderCheckpoint(alone).fingerprint() == first  # Another place, the same model.
    rewrite(alone, lambda t: t[NORM].add_(1))
    other = FolderCheckpoint(alone).fingerprint()
    rewrite(alone, lambda t: t["model.embed_tokens.weight"][-1].zero_())  # The row of an added tag.
    third = FolderCheckpoint(alone).fingerprint()
    edit_json(alone / "generation_config.json", eos_token_id=1)
    assert len({first, other, third, FolderCheckpoint(alone).fingerprint()}) == 4


# Memory

WALK = """
import sys
from pathlib import Path
import torch  # What it takes by itself is not to be measured.
from hermetiq.checkpoint.shards import load_tensor, read_tensors
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) >> 10
folder = Path(sys.argv[1])
tensors, findings = read_tensors(folder)
before = peak()
for name, info in tensors.items():
    load_tensor(folder, name, info).sum()
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_reading_all_tensors_needs_the_memory_of_one(tmp_path: Path) -> None:
    save_file({f"t{i:02}": torch.zeros(4 << 20) for i in range(16)}, tmp_path / "model.safetensors")
    grown = subprocess.run([sys.executable, "-c", WALK, tmp_path], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 48  # MiB, for 16 tensors of 16 MiB.


# What is refused


def test_missing_shards_are_named(folder: Path) -> None:
    (folder / SECOND).unlink()
    assert only(folder, "source-incomplete", SECOND) == "no such file"


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_shard(folder: Path, keep: int) -> None:
    content = (folder / SECOND).read_bytes()
    (folder / SECOND).unlink()
    (folder / SECOND).write_bytes(content[:keep])
    assert only(folder, "source-incomplete", SECOND)


@pytest.mark.parametrize(
    "header", [b"\xff" * 8, b"\x08" + b"\0" * 7 + b"not json", b"version https://git-lfs.github.com"]
)
def test_corrupt_shard(folder: Path, header: bytes) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).write_bytes(header + b"\0" * 100)
    found = only(folder, "source-incomplete", SECOND)
    assert ("Git LFS" in found) == header.startswith(b"version")


def test_a_shard_that_goes_bad_after_opening(folder: Path) -> None:
    checkpoint = FolderCheckpoint(folder)
    (folder / SECOND).unlink()
    with pytest.raises(Refusal, match=SECOND):
        checkpoint.load(NORM)


@pytest.mark.parametrize(
    "name",
    [
        *("../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", ".safetensors/../../y.safetensors"),
        *("..\\x.safetensors", "C:x.safetensors", "a\0.safetensors", "x" * 300 + ".safetensors"),
    ],
)
def test_an_index_that_points_outside(folder: Path, name: str) -> None:
    save_file({NORM: torch.ones(64)}, folder.parent / "x.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][NORM] = name
    write_json(folder / INDEX, index)
    assert repr(name) in only(folder, "source-incomplete", INDEX)


@pytest.mark.parametrize("file", [SECOND, "config.json", "README.md", "chat_template.jinja"])
def test_a_link_out_of_the_folder(folder: Path, tmp_path: Path, file: str) -> None:
    outside = tmp_path / "outside"
    if (folder / file).exists():
        (folder / file).rename(outside)
    else:
        outside.write_text("secret")
    (folder / file).symlink_to(outside)
    findings = [each for each in scan(folder) if each.file == file]
    assert [each.found for each in findings] == ["a link out of the folder"]


def test_a_link_to_itself(folder: Path) -> None:
    (folder / "chat_template.jinja").symlink_to("chat_template.jinja")
    assert only(folder, "source-incomplete", "chat_template.jinja")


def test_a_link_inside_the_folder_is_fine(folder: Path) -> None:
    (folder / SECOND).rename(folder / "blob")
    (folder / SECOND).symlink_to("blob")
    assert FolderCheckpoint(folder).load(NORM).shape == (64,)


def test_an_index_that_disagrees_with_its_shards(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][NORM]
    index["weight_map"]["model.extra.weight"] = FIRST
    write_json(folder / INDEX, index)
    missing, surplus = refused(folder)
    assert "model.extra.weight" in missing.found
    assert f"{NORM} in {SECOND}" in surplus.found


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{", '{"a": 1, "a": 2}']
)
def test_an_unreadable_index(folder: Path, index: str) -> None:
    (folder / INDEX).write_text(index)
    assert only(folder, "source-incomplete", INDEX)


def test_two_sets_of_weights(folder: Path) -> None:
    save_file({NORM: torch.ones(64)}, folder / "model.safetensors")
    assert INDEX in only(folder, "source-incomplete", "model.safetensors")


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "a.pth", "b.ckpt"]
)
def test_pickled_weights(alone: Path, file: str) -> None:
    (alone / "model.safetensors").rename(alone / file)
    assert "pickled" in only(alone, "source-incomplete", file)


def test_an_index_of_pickled_weights(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][NORM] = "pytorch_model.bin"
    write_json(folder / INDEX, index)
    assert "pytorch_model.bin" in only(folder, "source-incomplete", INDEX)


def test_no_weights_and_misnamed_weights(alone: Path) -> None:
    (alone / "model.safetensors").rename(alone / FIRST)
    assert FIRST in only(alone, "source-incomplete", "model.safetensors")
    (alone / FIRST).unlink()
    assert only(alone, "source-incomplete", "model.safetensors") == "no weights"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code(alone: Path, file: str) -> None:
    edit_json(alone / file, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    assert "modeling.Evil" in only(alone, "remote-code", file)


def test_quantized_by_its_configuration(alone: Path) -> None:
    edit_json(alone / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert only(alone, "source-quantized", "config.json") == "'gptq'"


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json"])
def test_quantized_by_a_quantizers_file(alone: Path, file: str) -> None:
    (alone / file).write_text("{}")
    assert only(alone, "source-quantized", file)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("model.layers.0.mlp.up_proj.qweight", torch.ones(2, 2, dtype=torch.int32)),
        ("model.layers.0.mlp.up_proj.scales", torch.ones(2, 2)),
        ("model.layers.0.mlp.up_proj.weight", torch.ones(2, 2, dtype=torch.int8)),
        ("model.layers.0.mlp.up_proj.weight", torch.ones(2, 2).to(torch.float8_e4m3fn)),
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", torch.ones(2, dtype=torch.uint8)),
        ("model.layers.0.mlp.up_proj.weight.absmax", torch.ones(2)),
        ("model.layers.0.mlp.up_proj.SCB", torch.ones(2)),
        ("model.layers.0.mlp.up_proj.weight_scale", torch.ones(2)),
    ],
)
def test_quantized_by_its_tensors(alone: Path, name: str, tensor: torch.Tensor) -> None:
    rewrite(alone, lambda t: t.update({name: tensor}))
    assert name in only(alone, "source-quantized", "model.safetensors")


def test_missing_surplus_and_misshapen_tensors(alone: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "layers.1." in name] + ["lm_head.weight"]:
            del tensors[name]
        tensors["model.layers.2.input_layernorm.weight"] = torch.ones(64)
        tensors[NORM] = torch.ones(65)

    rewrite(alone, change)
    missing, surplus, shapes = refused(alone)
    assert missing.found.startswith("10 missing: model.layers.1.input_layernorm.weight, ")
    assert missing.found.endswith("lm_head.weight")
    assert surplus.found == "1 left over: model.layers.2.input_layernorm.weight"
    assert shapes.found == "1 other shapes: model.norm.weight (65,) for (64,)"


def test_only_the_first_ten_are_named(alone: Path) -> None:
    rewrite(alone, lambda t: t.update({f"extra.{i:02}": torch.ones(1) for i in range(30)}))
    found = only(alone, "source-incomplete", "model.safetensors")
    assert "extra.09 and 20 more" in found
    assert "extra.10" not in found


def test_a_fault_of_many_shards_is_laid_to_their_index(folder: Path) -> None:
    edit_json(folder / "config.json", num_hidden_layers=1)
    assert "layers.1.input_layernorm" in only(folder, "source-incomplete", INDEX)


def test_rows_that_differ_from_the_configuration(alone: Path) -> None:
    edit_json(alone / "config.json", vocab_size=900)
    checkpoint = FolderCheckpoint(alone)
    assert [(each.rule, each.found) for each in checkpoint.findings] == [("vocab-rows", "900, and 803 rows are stored")]
    assert checkpoint.model.rows == checkpoint.config["vocab_size"] == 803
    assert checkpoint.documents["config.json"]["vocab_size"] == 900


def test_a_head_of_another_size_than_the_embedding(alone: Path) -> None:
    rewrite(alone, lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:800].clone()}))
    assert "lm_head.weight (800, 64) for (803, 64)" in only(alone, "source-incomplete", "model.safetensors")


def test_a_missing_head_leaves_one_reading(alone: Path) -> None:
    rewrite(alone, lambda t: t.pop("lm_head.weight"))
    checkpoint = FolderCheckpoint(alone)
    assert [each.rule for each in checkpoint.findings] == ["head-tie"]
    assert checkpoint.model.tied
    assert checkpoint.config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"{", "line 1, column 2"),
        (b'{"a": 1,\n "b": }', "line 2"),
        (b"\xff\xfe", "UTF-8"),
        (b"[]", "list instead of an object"),
        (b'{"x": {"eos": 1, "eos": 2}}', "'eos' twice"),
        (b"[" * 100_000, "nested"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"", "line 1"),
        (rb'{"a": "\ud800"}', "no character"),
        (rb'{"\uDFFF": 1}', "no character"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_unreadable_json(alone: Path, file: str, text: bytes, found: str) -> None:
    (alone / file).write_bytes(text)
    assert found in only(alone, "source-incomplete", file)


def test_a_folder_in_the_place_of_a_file(alone: Path) -> None:
    (alone / "generation_config.json").unlink()
    (alone / "generation_config.json").mkdir()
    (alone / "model.safetensors").unlink()
    (alone / "model.safetensors").mkdir()
    assert [each.file for each in refused(alone)] == ["generation_config.json", "model.safetensors"]


def test_a_pair_of_halves_is_a_character(alone: Path) -> None:
    path = alone / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", r'{"note": "\ud83d\ude00", ', 1))
    assert FolderCheckpoint(alone).documents["tokenizer_config.json"]["note"] == "\N{GRINNING FACE}"


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", INDEX, "chat_template.jinja"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(alone: Path, file: str) -> None:
    (alone / file).unlink(missing_ok=True)
    os.mkfifo(alone / file)
    assert only(alone, "source-incomplete", file) == "a device or a pipe"


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors", INDEX])
def test_a_link_that_leads_nowhere(alone: Path, file: str) -> None:
    (alone / file).unlink(missing_ok=True)
    (alone / file).symlink_to("blob")
    assert only(alone, "source-incomplete", file) == "a link to a file that is not there"


def test_a_file_beyond_all_measure_is_not_read(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermetiq.checkpoint.documents._MOST_BYTES", 100)
    (alone / "generation_config.json").write_text(json.dumps({"note": "x" * 100}))
    assert "generation_config.json" in [each.file for each in refused(alone)]


def test_no_configuration(alone: Path) -> None:
    (alone / "config.json").unlink()
    assert only(alone, "source-incomplete", "config.json") == "no such file"
    (alone / "adapter_config.json").write_text("{}")
    assert only(alone, "source-incomplete", "config.json") == "a LoRA adapter alone"
    (alone / "model.safetensors").rename(alone / "adapter_model.safetensors")
    assert only(alone, "source-incomplete", "config.json") == "a LoRA adapter alone"


def test_several_faults_are_refused_together(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoConfig": "x.Y"}, hidden_size="64")
    (folder / "generation_config.json").write_text("{")
    (folder / FIRST).unlink()
    assert {(each.rule, each.file) for each in refused(folder)} == {
        ("remote-code", "config.json"),
        ("source-incomplete", "config.json"),
        ("source-incomplete", "generation_config.json"),
        ("source-incomplete", FIRST),
    }


def test_another_family(alone: Path) -> None:
    edit_json(alone / "config.json", model_type="gemma2")
    with pytest.raises(HermetiqError, match="llama, mistral, qwen2, qwen3"):
        FolderCheckpoint(alone)


# NaN and infinity


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 31, 64, 1000])
@settings(derandomize=True, deadline=None)
@given(data=st.data())
def test_non_finite_values_are_counted(dtype: torch.dtype, size: int, data: Any) -> None:
    places = data.draw(st.sets(st.integers(0, size - 1), max_size=5))
    values = st.sampled_from([float("nan"), float("inf"), float("-inf")])
    tensor = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
    for place in places:
        tensor[place] = data.draw(values)
    assert non_finite(tensor) == len(places)


def test_non_finite_finding() -> None:
    assert check_finite("w", torch.ones(3, 3), "f") is None
    assert check_finite("w", torch.ones(0, 3), "f") is None
    finding = check_finite("w", torch.tensor([[1.0, float("nan")]]), "f")
    assert finding is not None
    assert (finding.rule, finding.file, finding.field) == ("weight-nan", "f", "w")
    assert finding.found == "1 of 2 values NaN or infinite"
