"""The parts of a card that people act on: what to download, how to start it, and what loads it at all (U50).

Commands and code are those of the runtime recipes, with the stops that the contract knows; the card only says where the
files come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Final

from hermetiq.chat.contract import ChatContract
from hermetiq.formats.legacy import legacy_note
from hermetiq.manifest import Artifact, Manifest
from hermetiq.quantize.spec import Spec, parse
from hermetiq.recipes import recipes
from hermetiq.recipes.stops import gguf_stops
from hermetiq.runtimes.environments import RUNTIMES
from hermetiq.verify.foreign import GAPS

from .markdown import block, code, plain
from .plan import MAIN, Branch, Repo

FORMATS: Final = {"gguf": "GGUF", "gptq": "GPTQ", "awq": "AWQ", "exl2": "EXL2"}
"""Names of formats as people write them."""
_LANGUAGES: Final = {".py": "python", ".sh": "sh", ".json": "json"}
_ALSO_LOADED: Final = {
    "gguf": "llama.cpp, and what is built on it: Ollama, LM Studio, KoboldCpp, llama-cpp-python",
    "gptq": "vLLM",
    "awq": "vLLM",
}
"""By format: what reads it and is not among the packages of `hermetiq verify --runtime`."""
_LLAMA_CPP_PYTHON: Final = """\
from llama_cpp import Llama

model = Llama({path}, n_ctx=4096)
messages = [{{"role": "user", "content": "What is the capital of France?"}}]
answer = model.create_chat_completion(messages, max_tokens=200{stops})
print(answer["choices"][0]["message"]["content"])
"""


def artifacts(manifest: Manifest, repo: Repo) -> Iterator[tuple[Branch, Artifact]]:
    """Every artifact of a repo with its branch."""
    known = {artifact.file: artifact for artifact in manifest.artifacts}
    return ((branch, known[file]) for branch in repo.branches for file in branch.artifacts)


def running(manifest: Manifest, repo: Repo) -> str:
    """How each runtime is started, on the first artifact of each format.

    The recipes' place is this folder: what they name is what the command above them has downloaded.
    """
    lines = ["## How to run it"]
    shown: set[str] = set()
    for branch, artifact in artifacts(manifest, repo):
        format = parse(artifact.spec).format
        if format in shown:
            continue
        shown.add(format)
        download, place = _download(repo, branch, artifact)
        others = sum(parse(each.spec).format == format for _, each in artifacts(manifest, repo)) > 1
        lines.append(f"{FORMATS[format]}: download {code(place)} first"
                     f"{'; the others go likewise' if others else ''}.")  # fmt: skip
        lines.append(block(download, "sh"))
        if not manifest.source.contract.is_chat:
            continue
        local = replace(artifact, file=place, files={}, sha256="")
        for recipe in recipes(replace(manifest, artifacts=(local,))):
            lines.append(f"### {recipe.runtime}")
            language = _LANGUAGES.get(PurePosixPath(recipe.name).suffix, "")
            told = f"No recipe: {plain(recipe.refused)}."
            if recipe.runtime == "ollama" and recipe.text:
                lines.append(f"Save as {code('Modelfile')}, then {code(f'ollama create {_model(repo)} -f Modelfile')}.")
            lines.append(block(recipe.text, language) if recipe.text else told)
        if format == "gguf":
            lines += ["### llama-cpp-python", block(_llama_cpp_python(manifest.source.contract, place), "python")]
    return "\n\n".join(lines)


def _download(repo: Repo, branch: Branch, artifact: Artifact) -> tuple[str, str]:
    """The command that brings an artifact to this folder, and where it then lies."""
    own = [file.path for file in branch.files if file.origin in artifact.files]
    revision = "" if branch.name == MAIN else f" --revision {branch.name}"
    if artifact.file not in artifact.files:
        folder = f"{_model(repo)}{'' if branch.name == MAIN else f'-{branch.name}'}"
        return f"hf download {repo.id}{revision} --local-dir {folder}", folder
    if len(own) > 1:
        return f"hf download {repo.id} --include '{PurePosixPath(own[0]).parent}/*' --local-dir .", own[0]
    return f"hf download {repo.id} {own[0]} --local-dir .", own[0]


def _model(repo: Repo) -> str:
    return repo.id.partition("/")[2]


def loading(found: Iterable[Artifact]) -> str:
    """What loads each artifact, and what does not though it reads the format."""
    lines = ["## What loads it"]
    notes: dict[str, None] = {}
    for artifact in found:
        spec = parse(artifact.spec)
        readers, gaps = _readers(spec)
        line = f"- {code(str(spec))}: {plain(', '.join(readers))}"
        line += "".join(f"; not {plain(name)}, which {plain(why)}" for name, why in gaps.items())
        lines.append(line)
        if note := legacy_note(spec):
            notes[f"\n{plain(note)}."] = None
    return lines[0] + "\n\n" + "\n".join([*lines[1:], *notes])


def _readers(spec: Spec) -> tuple[list[str], Mapping[str, str]]:
    """What loads an artifact, and what does not though it reads the format."""
    known = [name for name, runtime in RUNTIMES.items() if spec.format in runtime.formats]
    gaps = {name: GAPS[name][1] for name in known if name in GAPS and GAPS[name][0](spec)}
    also = [_ALSO_LOADED[spec.format]] if spec.format in _ALSO_LOADED else []
    return [*also, *(name for name in known if name not in gaps)], gaps


def _llama_cpp_python(contract: ChatContract, path: str) -> str:
    """A script for llama-cpp-python, which reads template and stop ids from the file."""
    texts = gguf_stops(contract).texts
    return _LLAMA_CPP_PYTHON.format(path=ascii(f"./{path}"), stops=f", stop={list(texts)!a}" if texts else "")
