"""Sound sources of every kind, and for each number the case that breaks one of their files.

The same number gives the same case, so a number is all that has to be known of a failure.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import sentencepiece
import torch
from safetensors.torch import save_file

from hermetiq.pipeline import export, prepare
from hermetiq.quantize.spec import parse
from tests.fixtures.models import copy_of, edit_json, tiny_checkpoint, write_json
from tests.fixtures.packed import packed_folder

from . import mutations
from .mutations import Mutation

SECRET: Final = "Qz7-nobody-may-read-this"
"""Stands in files outside the folder of a case; nothing that is said of the case may hold it."""

JSON: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)
TEMPLATE, RECIPE, CARD = "chat_template.jinja", "mergekit_config.yml", "README.md"
INDEX, SINGLE, PIECES = "model.safetensors.index.json", "model.safetensors", "tokenizer.model"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_RECIPE_TEXT = """merge_method: slerp
base_model: org/first
models:
  - model: org/first
    parameters: {weight: 0.5}
  - model: org/second+org/lora@main
slices:
  - sources:
      - model: {model: {path: third}}
        layer_range: [0, 1]
dtype: bfloat16
tokenizer_source: union
"""
_CARD_TEXT = "---\nlicense: apache-2.0\nbase_model:\n  - org/first\n  - org/second\ntags: [merge]\n---\n# A model\n"


@dataclass(frozen=True)
class Case:
    """What `inspect` is asked for."""

    path: Path
    adapter: Path | None = None
    parents: tuple[Path, ...] = ()


@dataclass(frozen=True)
class _Way:
    """A kind of case: how often it comes, of which source it breaks which of the files, and how."""

    share: int
    source: str
    files: Sequence[str]
    mutations: Sequence[Mutation]


_TEXTS: Final = (mutations.json_values, mutations.json_values, mutations.json_values, mutations.json_text)
_HEADERS: Final = (mutations.safetensors_header, mutations.safetensors_header, mutations.raw_bytes)
_WAYS: Final = (
    _Way(30, "model", JSON, _TEXTS),
    _Way(8, "model", ("tokenizer.json", "tokenizer_config.json"), _TEXTS),
    _Way(3, "model", (*JSON, INDEX), (mutations.raw_bytes,)),
    _Way(6, "shards", (INDEX,), _TEXTS),
    _Way(12, "model", (SINGLE,), _HEADERS),
    _Way(4, "packed", ("config.json", "quantize_config.json"), _TEXTS),
    _Way(4, "packed", ("gptq_model-4bit.safetensors", SINGLE), _HEADERS),
    _Way(5, "pieces", (PIECES,), (mutations.raw_bytes,)),
    _Way(3, "pieces", JSON, _TEXTS),
    _Way(5, "adapter", (ADAPTER,), _TEXTS),
    _Way(4, "adapter", (ADAPTER_WEIGHTS,), _HEADERS),
    _Way(3, "model", (RECIPE,), (mutations.yaml_text, mutations.raw_bytes)),
    _Way(2, "model", (CARD,), (mutations.yaml_text, mutations.raw_bytes)),
    _Way(5, "model", (TEMPLATE,), (mutations.template,)),
    _Way(14, "gguf", ("model.gguf",), (mutations.gguf_header, mutations.gguf_header, mutations.raw_bytes)),
)
_LINKS: Final = 3
"""The share of cases in which something other than a file stands where one is expected, or a name leads away."""


class Corpus:
    """Every source in `folder`, and cases made of them one at a time in `folder/work`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._model()
        self._shards()
        self._pieces()
        self._adapter()
        packed_folder(folder / "packed", folder / "model", parse("gptq:4bit-g32"))
        export(prepare(folder / "model", [parse("gguf:F16")]), folder / "out")
        (folder / "gguf").mkdir()
        (artifact,) = (folder / "out" / "gguf").iterdir()
        artifact.rename(folder / "gguf" / "model.gguf")
        (folder / "secret").mkdir()
        for name in (*JSON, TEMPLATE, RECIPE, CARD, INDEX, PIECES):
            write_json(folder / "secret" / name, {"chat_template": SECRET, "eos_token": SECRET, SECRET: SECRET})
        save_file({SECRET: torch.zeros(1)}, folder / "secret" / SINGLE)

    def case(self, number: int) -> Case:
        """The case of that number; the one before it is removed."""
        draw = random.Random(number)
        work = self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        if draw.randrange(100) < _LINKS:
            return self._led_away(work, draw)
        (way,) = draw.choices(_WAYS, [way.share for way in _WAYS])
        present = [file for file in way.files if (self.folder / way.source / file).exists()]
        file, mutate = draw.choice(present), draw.choice(way.mutations)
        copy_of(self.folder / way.source, work)
        data = (self.folder / way.source / file).read_bytes()
        (work / file).unlink()
        (work / file).write_bytes(mutate(data, draw))
        if way.source == "gguf":
            return Case(work / file)
        if way.source == "adapter":
            return Case(self.folder / "model", adapter=work)
        parents = (self.folder / "shards",) if file == RECIPE or draw.random() < 0.05 else ()
        return Case(work, parents=parents)

    def _led_away(self, work: Path, draw: random.Random) -> Case:
        """Links out of the folder, to themselves and to nothing; folders and pipes; an index that names other files."""
        secret = self.folder / "secret"
        if draw.random() < 0.4:
            copy_of(self.folder / "shards", work)
            index = json.loads((work / INDEX).read_text())
            named = draw.choice(
                (
                    *("../secret/model.safetensors", str(secret / SINGLE), "..", ".", "", "a/../b.safetensors"),
                    *("\x00.safetensors", "C:\\x.safetensors", "/dev/zero", f"{'x' * 300}.safetensors"),
                    "link.safetensors",
                )
            )
            (work / "link.safetensors").symlink_to(secret / SINGLE)
            for name in draw.sample(list(index["weight_map"]), draw.randint(1, 3)):
                index["weight_map"][name] = named
            (work / INDEX).write_text(json.dumps(index))
            return Case(work)
        source = draw.choice(("model", "shards", "pieces", "adapter"))
        copy_of(self.folder / source, work)
        path = draw.choice(sorted(work.iterdir()))
        path.unlink()
        ways: tuple[Callable[[], object], ...] = (
            lambda: path.symlink_to(secret / path.name),
            lambda: path.symlink_to(Path("..") / "secret" / SINGLE),
            lambda: path.symlink_to(path.name),
            lambda: path.symlink_to("nowhere"),
            lambda: path.symlink_to("/dev/zero"),
            lambda: path.symlink_to("/proc/self/environ"),
            path.mkdir,
            lambda: os.mkfifo(path),
        )
        draw.choice(ways)()
        return Case(self.folder / "model", adapter=work) if source == "adapter" else Case(work)

    def _model(self) -> None:
        folder = tiny_checkpoint(self.folder / "model", family="qwen2", tokenizer="bpe", layers=1, tied=True)
        template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
        (folder / TEMPLATE).write_text(template)
        (folder / RECIPE).write_text(_RECIPE_TEXT)
        (folder / CARD).write_text(_CARD_TEXT)
        write_json(folder / "added_tokens.json", {"<|endoftext|>": 800, "<|im_start|>": 801, "<|im_end|>": 802})

    def _shards(self) -> None:
        tiny_checkpoint(self.folder / "shards", family="llama", tokenizer="bpe", layers=1, shards=3)

    def _pieces(self) -> None:
        """A model whose tokenizer is a SentencePiece file alone, with two tags behind its pieces."""
        folder = self.folder / "pieces"
        count = 400
        tiny_checkpoint(folder, family="mistral", tokenizer="bpe", layers=1, rows=count + 2)
        for name in ("tokenizer.json", "special_tokens_map.json"):
            (folder / name).unlink()
        sentencepiece.SentencePieceTrainer.train(
            input=str(Path(__file__).parents[2] / "LICENSE"), model_prefix=str(folder / "tokenizer"), model_type="bpe",
            vocab_size=count, byte_fallback=True, minloglevel=2, num_threads=1,
        )  # fmt: skip
        (folder / "tokenizer.vocab").unlink()
        tags = {"<|im_start|>": count, "<|im_end|>": count + 1}
        described = {str(i): {"content": text, "special": True} for text, i in tags.items()}
        write_json(folder / "added_tokens.json", tags)
        edit_json(folder / "tokenizer_config.json", added_tokens_decoder=described, pad_token=None, bos_token="<s>",
                  unk_token="<unk>", tokenizer_class="LlamaTokenizer")  # fmt: skip
        edit_json(folder / "config.json", eos_token_id=count + 1, bos_token_id=1)
        write_json(folder / "generation_config.json", {"eos_token_id": count + 1})

    def _adapter(self) -> None:
        folder = copy_of(self.folder / "model", self.folder / "adapter")
        for name in (SINGLE, "config.json", "generation_config.json", RECIPE):
            (folder / name).unlink()
        module = "base_model.model.model.layers.0.self_attn.q_proj"
        factors = {f"{module}.lora_A.weight": torch.ones(4, 64), f"{module}.lora_B.weight": torch.ones(64, 4)}
        save_file(factors, folder / ADAPTER_WEIGHTS)
        write_json(folder / ADAPTER, {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none",
                                      "target_modules": ["q_proj"], "base_model_name_or_path": "org/base",
                                      "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
                                      "use_rslora": False, "fan_in_fan_out": False})  # fmt: skip
