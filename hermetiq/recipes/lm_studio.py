"""A preset for LM Studio: the template and the stops that only a text can say.

Shape: preset files in `.lmstudio/config-presets` (`identifier`, `name`, `operation.fields`), and `LLMPromptTemplate` of
LM Studio's SDK. LM Studio runs llama.cpp, which obeys the ids that the `.gguf` states; a preset has no field for ids.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

from hermetiq.chat.contract import ChatContract

from .stops import gguf_stops
from .turns import template_variables


def preset(contract: ChatContract, path: str) -> str:
    """The preset for the `.gguf` at `path`, as JSON in ASCII."""
    name = PurePosixPath(path).name.removesuffix(".gguf")
    variables = template_variables(contract)
    texts = list(gguf_stops(contract).texts)
    template = {
        "type": "jinja",
        "jinjaPromptTemplate": {
            "template": contract.template,
            "bosToken": variables.get("bos_token", ""),
            "eosToken": variables["eos_token"],
        },
        "stopStrings": [],
    }
    fields = [{"key": "llm.prediction.promptTemplate", "value": template}]
    if texts:
        fields.append({"key": "llm.prediction.stopStrings", "value": texts})
    document = {
        "identifier": f"@local:{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'model'}",
        "name": name,
        "changed": True,
        "operation": {"fields": fields},
        "load": {"fields": []},
    }
    return json.dumps(document, indent=2) + "\n"
