"""The real llama.cpp, through llama-cpp-python's bindings: its quantizer, its choice of types, its logits."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

_TENSOR = re.compile(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\S+), ")
_NEW_TYPE = re.compile(r"MiB \((\S+)\)")


def quantize(
    source: Path,
    target: Path,
    file_type: int,
    *,
    threads: int = 2,
    imatrix: Mapping[str, NDArray[np.float32]] | None = None,
) -> None:
    """`llama_model_quantize` of a whole file; `imatrix` (in,) by the names of the file."""
    with _log():
        assert _quantize(source, target, file_type, threads=threads, dry_run=False, imatrix=imatrix or {}) == 0


def chosen_types(source: Path, file_type: int, *, imatrix: bool = False) -> dict[str, str] | str:
    """The type that llama.cpp would give each tensor (`q4_K`, `f32`); if it refuses the model, the log that says why.

    Nothing is quantized: the choice is read from the log of a dry run, so the weights of `source` may be a hole. It
    depends on whether there is an importance matrix, and not on what is in it.
    """
    matrix = {"any": np.ones(1, np.float32)} if imatrix else {}
    with _log() as lines:
        failed = _quantize(source, source.with_suffix(".none"), file_type, threads=1, dry_run=True, imatrix=matrix)
    log = "".join(lines)
    if failed:
        return log
    types = {}
    for place in (found := list(_TENSOR.finditer(log))):
        end = log.find("\n", place.end())
        changed = _NEW_TYPE.search(log, place.end(), end)
        types[place[1]] = changed[1] if changed else place[2]
    assert found, "llama.cpp's log has another form than this test knows"
    return types


def logits(model: Path, tokens: Sequence[int]) -> NDArray[np.float32]:  # (tokens, vocabulary)
    """Logits after every token of one sequence."""
    with _log():
        parameters = llama_cpp.llama_model_default_params()
        # Built for a CPU with AMX, this release crashes on some files unless its repacking is off.
        parameters.use_extra_bufts = False
        loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), parameters)
        assert loaded, "llama.cpp cannot load the file"
        context_parameters = llama_cpp.llama_context_default_params()
        context_parameters.n_ctx = context_parameters.n_batch = context_parameters.n_ubatch = 256
        context_parameters.n_threads = context_parameters.n_threads_batch = 1
        context_parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        context_parameters.type_k = context_parameters.type_v = llama_cpp.GGML_TYPE_F32
        context = llama_cpp.llama_init_from_model(loaded, context_parameters)
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, index, True
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
        try:
            assert llama_cpp.llama_decode(context, batch) == 0
            rows = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
            found = llama_cpp.llama_get_logits(context)
            return np.ctypeslib.as_array(found, shape=(len(tokens), rows)).copy()
        finally:
            llama_cpp.llama_batch_free(batch)
            llama_cpp.llama_free(context)
            llama_cpp.llama_model_free(loaded)


def end_of_generation(model: Path) -> set[int]:
    """Every id of the vocabulary that llama.cpp stops on, asked one by one; no tensor is loaded."""
    with _log():
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), parameters)
        assert loaded, "llama.cpp cannot load the file"
        vocabulary = llama_cpp.llama_model_get_vocab(loaded)
        tokens = range(llama_cpp.llama_vocab_n_tokens(vocabulary))
        found = {token for token in tokens if llama_cpp.llama_vocab_is_eog(vocabulary, token)}
        llama_cpp.llama_model_free(loaded)
        return found


def _quantize(
    source: Path,
    target: Path,
    file_type: int,
    *,
    threads: int,
    dry_run: bool,
    imatrix: Mapping[str, NDArray[np.float32]],
) -> int:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread, parameters.dry_run = file_type, threads, dry_run
    # An array that a nameless entry ends.
    entries = (llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
    for entry, (name, values) in zip(entries, imatrix.items(), strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if imatrix:
        parameters.imatrix = ctypes.cast(entries, type(parameters.imatrix))
    result = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    return int(result)


@contextmanager
def _log() -> Iterator[list[str]]:
    """What llama.cpp says, kept off the terminal."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback
    def keep(_level: int, text: bytes, _data: object) -> None:
        lines.append(text.decode(errors="replace"))

    @llama_cpp.llama_log_callback
    def drop(_level: int, _text: bytes, _data: object) -> None:
        pass

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    try:
        yield lines
    finally:
        _KEPT.append(drop)
        llama_cpp.llama_log_set(drop, ctypes.c_void_p(0))


_KEPT: list[object] = []
"""Callbacks that C still holds."""
