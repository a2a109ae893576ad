"""llama.cpp's own tokenizer as an oracle: the ids of many strings under the vocabulary of each of some GGUFs.

The models are loaded without its tensors, by the C library of llama-cpp-python, in a child process: a vocabulary that
llama.cpp dislikes aborts the process it is in.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def llama_ids(paths: Sequence[Path], texts: Sequence[str], *, add_special: bool = False) -> list[list[list[int]]]:
    """Per file, the ids of each text with tags recognised; BOS and EOS by the file's own policy if `add_special`.

    Raises:
        AssertionError: llama.cpp did not load a file; the message ends with its log.
    """
    task = json.dumps({"paths": [str(path) for path in paths], "texts": list(texts), "add_special": add_special})
    child = subprocess.run([sys.executable, __file__], input=task, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        raise AssertionError(f"llama.cpp refused one of {[path.name for path in paths]}: {child.stderr[-1500:]}")
    ids: list[list[list[int]]] = json.loads(child.stdout)
    return ids


def _main() -> None:
    task = json.load(sys.stdin)
    json.dump([_ids(path, task["texts"], task["add_special"]) for path in task["paths"]], sys.stdout)


def _ids(path: str, texts: list[str], add_special: bool) -> list[list[int]]:
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        sys.exit(1)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    answers = []
    for text in texts:
        raw = text.encode()
        room = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), room, len(room), add_special, True)
        if count < 0:
            sys.exit(f"no room for the ids of {text!r}")
        answers.append(list(room[:count]))
    llama_cpp.llama_model_free(model)
    return answers


if __name__ == "__main__":
    _main()
