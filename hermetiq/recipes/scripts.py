"""Python scripts that ask a model one question, with stop ids; their names and texts are Python literals."""

from __future__ import annotations

from hermetiq.chat.contract import ChatContract

from .stops import folder_stops

_TRANSFORMERS = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = {folder}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
messages = [{{"role": "user", "content": "What is the capital of France?"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**prompt.to(model.device), max_new_tokens=200, {stops})
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
"""

_EXLLAMAV2 = """\
from exllamav2 import ExLlamaV2, ExLlamaV2Cache, ExLlamaV2Config, ExLlamaV2Tokenizer
from exllamav2.generator import ExLlamaV2DynamicGenerator
from transformers import AutoTokenizer

folder = {folder}
config = ExLlamaV2Config(folder)
model = ExLlamaV2(config)
cache = ExLlamaV2Cache(model, lazy=True)
model.load_autosplit(cache)
generator = ExLlamaV2DynamicGenerator(model=model, cache=cache, tokenizer=ExLlamaV2Tokenizer(config))
messages = [{{"role": "user", "content": "What is the capital of France?"}}]
chat = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
print(generator.generate(
    prompt=chat, max_new_tokens=200, add_bos={add_bos}, encode_special_tokens=True, completion_only=True,
    stop_conditions={stops},
))
"""


def transformers(contract: ChatContract, path: str) -> str:
    """A script for transformers on a folder; GPTQ and AWQ need the package `gptqmodel` beside it."""
    stops = folder_stops(contract)
    texts = f", stop_strings={list(stops.texts)!a}, tokenizer=tokenizer" if stops.texts else ""
    return _TRANSFORMERS.format(folder=ascii(path), stops=f"eos_token_id={list(stops.ids)!r}{texts}")


def exllamav2(contract: ChatContract, path: str) -> str:
    """A script for exllamav2 on an EXL2 folder; it needs an NVIDIA GPU."""
    stops = folder_stops(contract)
    return _EXLLAMAV2.format(folder=ascii(path), add_bos=contract.add_bos, stops=ascii([*stops.ids, *stops.texts]))
