"""The folder that travels: the same chat model as its source, for every reader."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from hermetiq.chat.contract import compare, derive
from hermetiq.checkpoint import Checkpoint, open_checkpoint
from hermetiq.companions import companions
from hermetiq.demo import model
from hermetiq.errors import Refusal
from hermetiq.verify.strings import parity_strings
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint

FRAGMENT = {"quant_method": "gptq", "bits": 4, "group_size": 64}
BOS_PRINTED = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def written(source: Checkpoint, folder: Path) -> Path:
    """A folder of the companions, and of weights that take no room on the disk: nothing here reads them."""
    folder.mkdir()
    for name, data in companions(source, derive(source), {}).items():
        (folder / name).write_bytes(data)
    write_empty_weights(folder / "model.safetensors", {name: info.shape for name, info in source.tensors.items()})
    return folder


def write_empty_weights(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)


def documents(source: Path | Checkpoint, quantization: dict[str, Any] | None = None) -> dict[str, Any]:
    """The companions that are JSON, parsed."""
    checkpoint = open_checkpoint(source) if isinstance(source, Path) else source
    files = companions(checkpoint, derive(checkpoint), FRAGMENT if quantization is None else quantization)
    return {name: json.loads(data) for name, data in files.items() if name.endswith(".json")}


def require_same_model(source: Checkpoint, folder: Path) -> None:
    """No difference in the contract, either way, and the same ids by our reader and by transformers."""
    artifact = open_checkpoint(folder)
    before, after = derive(source), derive(artifact)
    assert compare(before, after) == ()
    assert before.stop_ids == after.stop_ids
    assert artifact.model == source.model
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.eos_token == before.terminator
    assert theirs.chat_template == before.template
    texts = parity_strings([tag.text for tag in before.tags], [])[::10]
    expected = [source.tokenizer.encode(text) for text in texts]
    assert [artifact.tokenizer.encode(text) for text in texts] == expected
    assert [theirs.encode(text, add_special_tokens=False) for text in texts] == expected
    first = [before.bos_token_id] if before.add_bos else []
    greeting = [*first, *source.tokenizer.encode("Hi")]
    assert theirs.encode("Hi") == artifact.tokenizer.encode("Hi", add_special=True) == greeting


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen-like folder."""
    folder = tmp_path_factory.mktemp("companions") / "bpe"
    return tiny_checkpoint(folder, family="qwen2", tokenizer="bpe", tied=True, rows=832)


def test_a_hermes_folder_stays_the_same_chat_model(hermes: Path, tmp_path: Path) -> None:
    source = open_checkpoint(hermes)
    require_same_model(source, written(source, tmp_path / "out"))


def test_a_qwen_folder_stays_the_same_chat_model(bpe: Path, tmp_path: Path) -> None:
    source = open_checkpoint(bpe)
    require_same_model(source, written(source, tmp_path / "out"))


def test_a_gguf_source_gets_all_files(tmp_path: Path) -> None:
    source = open_checkpoint(model())
    require_same_model(source, written(source, tmp_path / "out"))
    names = "added_tokens_decoder chat_template clean_up_tokenization_spaces tokenizer_class"
    assert set(names.split()) <= documents(source)["tokenizer_config.json"].keys()


def test_the_same_arguments_give_the_same_bytes(bpe: Path) -> None:
    source = open_checkpoint(bpe)
    contract = derive(source)
    assert companions(source, contract, FRAGMENT) == companions(source, contract, FRAGMENT)


def test_what_needs_no_change_keeps_its_bytes(hermes: Path, tmp_path: Path) -> None:
    folder = copy_of(hermes, tmp_path / "m")
    document = json.loads((folder / "tokenizer.json").read_text())
    joined = [" ".join(merge) for merge in document["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps({**document, "model": {**document["model"], "merges": joined}}))
    source = open_checkpoint(folder)
    files = companions(source, derive(source), FRAGMENT)
    for name in ("tokenizer.json", "tokenizer.model"):
        assert files[name] == (folder / name).read_bytes()
    assert json.loads(files["added_tokens.json"]) == json.loads((folder / "added_tokens.json").read_text())


def test_merges_are_in_the_form_that_every_reader_takes(bpe: Path) -> None:
    before = json.loads((bpe / "tokenizer.json").read_text())
    after = documents(bpe)["tokenizer.json"]
    assert after["model"]["merges"] == [f"{left} {right}" for left, right in before["model"]["merges"]] != []
    after["model"]["merges"] = before["model"]["merges"]
    assert after == before


def test_merges_of_tokens_with_a_space_stay_pairs(bpe: Path, tmp_path: Path) -> None:
    folder = copy_of(bpe, tmp_path / "m")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    *merges, (first, second), (third, fourth) = model["merges"]
    renamed = {first + second: " ", third + fourth: "! "}
    model["vocab"] = {renamed.get(text, text): index for text, index in model["vocab"].items()}
    model["merges"] = [*merges, ["!", " "]]
    edit_json(folder / "tokenizer.json", model=model)
    source = open_checkpoint(folder)
    assert companions(source, derive(source), {})["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("stated", "written"),
    [
        ({"type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}),
        ({"type": "linear", "rope_type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"type": "yarn", "factor": 2.0},
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048},
        ),
        ({"rope_type": "default"}, None),
        ([], None),
    ],
)
def test_scaling_of_the_rotary_embedding_has_one_name(
    bpe: Path, tmp_path: Path, stated: object, written: dict[str, object] | None
) -> None:
    source = copy_of(bpe, tmp_path / "m")
    edit_json(source / "config.json", rope_scaling=stated)
    assert documents(source)["config.json"]["rope_scaling"] == written


def test_both_generations_of_transformers_read_the_configuration(bpe: Path, tmp_path: Path) -> None:
    source = copy_of(bpe, tmp_path / "m")
    config = json.loads((source / "config.json").read_text())
    del config["rope_theta"], config["torch_dtype"], config["architectures"]
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    (source / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "rope_parameters": rope}))
    made = documents(source)["config.json"]
    assert made["rope_theta"] == made["rope_parameters"]["rope_theta"] == 5e5
    assert made["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert made["rope_parameters"] == rope
    assert made["dtype"] == made["torch_dtype"] == "float16"
    assert made["architectures"] == ["Qwen2ForCausalLM"]
    assert made["quantization_config"] == FRAGMENT
    assert transformers.AutoConfig.for_model(**made).rope_parameters == rope


def test_old_readers_of_gptq_find_the_settings_beside(bpe: Path) -> None:
    assert documents(bpe)["quantize_config.json"] == FRAGMENT
    assert "quantize_config.json" not in documents(bpe, {"quant_method": "awq"})
    assert "quantization_config" not in documents(bpe, {})["config.json"]


def test_stops_and_sampling_defaults_travel(bpe: Path, tmp_path: Path) -> None:
    source = copy_of(bpe, tmp_path / "m")
    edit_json(source / "generation_config.json", temperature=0.7, top_p=0.8, do_sample=True)
    made = documents(source)
    generation = made["generation_config.json"]
    assert {"temperature": 0.7, "top_p": 0.8, "do_sample": True}.items() <= generation.items()
    assert generation["eos_token_id"] == made["config.json"]["eos_token_id"] == [802, 800]
    assert "_from_model_config" not in generation


def test_a_lost_generation_config_is_restored(bpe: Path, tmp_path: Path) -> None:
    source = copy_of(bpe, tmp_path / "m")
    (source / "generation_config.json").unlink()
    assert documents(source)["generation_config.json"] == {
        "bos_token_id": 800,
        "eos_token_id": 802,
        "pad_token_id": 800,
    }


def test_a_template_in_one_place_comes_out_in_both(bpe: Path, tmp_path: Path) -> None:
    source = copy_of(bpe, tmp_path / "m")
    template = json.loads((source / "tokenizer_config.json").read_text())["chat_template"]
    edit_json(source / "tokenizer_config.json", chat_template=None)
    (source / "chat_template.jinja").write_text(template + "\n{# é #}")
    checkpoint = open_checkpoint(source)
    files = companions(checkpoint, derive(checkpoint), FRAGMENT)
    assert files["chat_template.jinja"] == (template + "\n{# é #}").encode()
    assert json.loads(files["tokenizer_config.json"])["chat_template"] == template + "\n{# é #}"


def test_further_templates_of_a_list_are_kept(bpe: Path, tmp_path: Path) -> None:
    source = copy_of(bpe, tmp_path / "m")
    template = json.loads((source / "tokenizer_config.json").read_text())["chat_template"]
    tools = {"name": "tool_use", "template": "{{ tools }}"}
    edit_json(source / "tokenizer_config.json", chat_template=[tools, {"name": "default", "template": template + "\n"}])
    inline = documents(source)["tokenizer_config.json"]["chat_template"]
    assert inline == [{"name": "default", "template": template + "\n"}, tools]


@pytest.mark.parametrize("name", ["TokenizersBackend", "LlamaTokenizer", None])
def test_the_class_is_one_that_every_reader_knows(bpe: Path, tmp_path: Path, name: str | None) -> None:
    source = copy_of(bpe, tmp_path / "m")
    edit_json(source / "tokenizer_config.json", tokenizer_class=name)
    made = documents(source)["tokenizer_config.json"]
    assert made["tokenizer_class"] == "PreTrainedTokenizerFast"
    # The generic class would hand models a third input, at which generation stops in transformers 4.
    assert made["model_input_names"] == ["input_ids", "attention_mask"]
    assert made["clean_up_tokenization_spaces"] is False


def test_a_class_that_rebuilds_its_pipeline_does_not_change_the_ids(tmp_path: Path) -> None:
    source = open_checkpoint(tiny_checkpoint(tmp_path / "llama", family="llama"))
    assert source.documents["tokenizer_config.json"]["tokenizer_class"] == "LlamaTokenizer"
    require_same_model(source, written(source, tmp_path / "out"))


def test_a_template_that_prints_bos_gets_no_second_one(hermes: Path, tmp_path: Path) -> None:
    folder = copy_of(hermes, tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", chat_template=BOS_PRINTED)
    source = open_checkpoint(folder)
    out = written(source, tmp_path / "out")
    require_same_model(source, out)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    chat = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert theirs.encode(chat).count(1) == 1
    generic = transformers.PreTrainedTokenizerFast(tokenizer_file=str(out / "tokenizer.json"))
    assert generic.encode(chat).count(1) == 1


def test_no_eos_behind_a_prompt(hermes: Path, tmp_path: Path) -> None:
    folder = copy_of(hermes, tmp_path / "m")
    edit_json(folder / "tokenizer_config.json", add_eos_token=True)
    source = open_checkpoint(folder)
    require_same_model(source, written(source, tmp_path / "out"))


Fault = Callable[[Path], None]


def eos_of_the_base(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", eos_token="</s>")
    edit_json(folder / "special_tokens_map.json", eos_token="</s>")
    edit_json(folder / "config.json", eos_token_id=2)


def no_padding(folder: Path) -> None:
    edit_json(folder / "config.json", pad_token_id=-1)


@pytest.mark.parametrize("fault", [eos_of_the_base, no_padding], ids=lambda fault: fault.__name__)
def test_wrong_ids_are_mended_in_every_file(hermes: Path, tmp_path: Path, fault: Fault) -> None:
    folder = copy_of(hermes, tmp_path / "m")
    fault(folder)
    source = open_checkpoint(folder)
    made = documents(source)
    assert made["tokenizer_config.json"]["eos_token"] == "<|im_end|>"
    assert made["special_tokens_map.json"]["eos_token"] in ("<|im_end|>", described("<|im_end|>"))
    for name in ("config.json", "generation_config.json"):
        stops = made[name]["eos_token_id"]
        assert stops in (32000, [32000, 2])
        assert made[name].get("pad_token_id") is None
    require_same_model(source, written(source, tmp_path / "out"))


def described(text: str) -> dict[str, Any]:
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


def test_nothing_personal_and_no_code_travels(bpe: Path, tmp_path: Path) -> None:
    folder = copy_of(bpe, tmp_path / "m")
    edit_json(folder / "config.json", _name_or_path="/home/somebody/secret")
    checkpoint = open_checkpoint(folder)
    # What opening refuses in a folder must not come through another kind of checkpoint, either.
    checkpoint.documents["tokenizer_config.json"]["auto_map"] = {"AutoTokenizer": ["x.Y", None]}
    made = documents(checkpoint)
    assert "secret" not in json.dumps(made["config.json"])
    assert "auto_map" not in made["tokenizer_config.json"]


def test_the_licence_travels(bpe: Path, tmp_path: Path) -> None:
    folder = copy_of(bpe, tmp_path / "m")
    (folder / "LICENSE.txt").write_bytes(b"mine\r\n")
    (folder / "license_notes.py").write_bytes(b"print()")
    checkpoint = open_checkpoint(folder)
    files = companions(checkpoint, derive(checkpoint), FRAGMENT)
    assert files["LICENSE.txt"] == b"mine\r\n"
    assert "license_notes.py" not in files


def linked_away(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    (folder / "LICENSE").symlink_to(folder.parent / "secret")


def pointer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize("fault", [linked_away, pointer], ids=lambda fault: fault.__name__)
def test_a_file_that_cannot_be_copied_is_refused(hermes: Path, tmp_path: Path, fault: Fault) -> None:
    folder = copy_of(hermes, tmp_path / "m")
    fault(folder)
    checkpoint = open_checkpoint(folder)
    with pytest.raises(Refusal, match="source-incomplete"):
        companions(checkpoint, derive(checkpoint), FRAGMENT)


def test_an_adapters_tokenizer_is_the_one_that_travels(hermes: Path, bpe: Path, tmp_path: Path) -> None:
    base = copy_of(hermes, tmp_path / "base")
    lora = tmp_path / "lora"
    lora.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (lora / name).write_bytes((hermes / name).read_bytes())
    edit_json(lora / "tokenizer_config.json", model_max_length=77)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(2, 64), name.format("B"): torch.ones(64, 2)}, lora / "adapter_model.safetensors"
    )
    checkpoint = open_checkpoint(base, adapter=lora)
    files = companions(checkpoint, derive(checkpoint), FRAGMENT)
    assert json.loads(files["tokenizer_config.json"])["model_max_length"] == 77
    assert "tokenizer.model" not in files
    assert json.loads(files["config.json"])["model_type"] == "mistral"
