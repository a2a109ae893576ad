"""ggml's own quantizer, reached with ctypes.

Blocks must be the ones llama.cpp would make, byte for byte, so they come from `ggml_quantize_chunk` in ggml's C library
rather than from a search of our own. Two PyPI packages carry that library; either will do. ctypes lets go of Python's
lock during the call, so plain threads over slices of rows use every core, and since each row is quantized on its own
the bytes do not depend on how rows were shared out.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import gguf
import numpy as np
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import NDArray

from hermetiq.errors import HermetiqError

Float32 = NDArray[np.float32]
Blocks = NDArray[np.uint8]

TYPES = tuple(
    GgmlType[name]
    for name in (
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
    )
)
"""The types that can be made here."""

PROVIDERS = {"xllamacpp": "xllamacpp*.so", "llama_cpp": "lib/libggml-base.*"}
"""Packages that carry ggml, best first, and where in them the library lies."""

HALF_NOTHING = 2.0**-25
"""The largest magnitude that float16 rounds to zero: half of its smallest number, the tie going to zero."""

CHUNK_WEIGHTS = 1 << 20
"""Weights in one unit of work: 4 MiB as float32, small enough for a cache and for an even share between threads."""

Job = TypeVar("Job")


class NonFinite(HermetiqError):
    """Rows hold NaN or infinity."""


class OutOfRange(HermetiqError):
    """A type cannot hold the values of the rows."""


@dataclass(frozen=True)
class Ggml:
    """One loaded ggml library."""

    provider: str
    path: Path
    _library: ctypes.CDLL = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _ready: set[int] = field(default_factory=set, repr=False)

    def blocks(
        self,
        rows: Float32,  # (rows, columns)
        types: Iterable[GgmlType],
        *,
        imatrix: Float32 | None = None,  # (columns,)
    ) -> dict[GgmlType, Blocks]:  # (rows, bytes of a row) for each type
        """Quantize rows in this thread; the C calls run without Python's lock.

        `imatrix` is the importance of each column, as `ggml_quantize_chunk` takes it.

        Raises:
            ValueError: a type's block does not divide the row, or `imatrix` has another length.
            NonFinite: the rows hold NaN or infinity, of which some types would make finite nonsense.
            OutOfRange: a value is beyond what a type can hold (65504 in F16, and in the scales of most blocks).
        """
        rows = np.ascontiguousarray(rows, np.float32)
        if imatrix is not None and imatrix.shape != rows.shape[1:]:
            raise ValueError(f"imatrix has shape {imatrix.shape}, rows have {rows.shape[1]} columns")
        if not is_finite(rows):
            raise NonFinite("the weights hold NaN or infinity")
        weights = None if imatrix is None else np.ascontiguousarray(imatrix, np.float32)
        return {type: self._quantize(rows, type, weights) for type in types}

    def _quantize(self, rows: Float32, type: GgmlType, imatrix: Float32 | None) -> Blocks:
        count, columns = rows.shape
        blocks = np.empty((count, row_bytes(type, columns)), np.uint8)
        self._prepare(type)
        written = self._library.ggml_quantize_chunk(
            int(type), _address(rows), _address(blocks), 0, count, columns, _address(imatrix)
        )
        if written != blocks.nbytes:
            raise HermetiqError(f"ggml wrote {written} bytes of {type.name}, not {blocks.nbytes}", where=str(self.path))
        if not self._library.ggml_validate_row_data(int(type), _address(blocks), blocks.nbytes):
            raise OutOfRange(f"the weights are too large for {type.name}", remedy="BF16 and F32 hold every weight")
        return blocks

    def _prepare(self, type: GgmlType) -> None:
        """Build ggml's tables for a type, once: its own initialisation is what threads must not race for."""
        with self._lock:
            if int(type) not in self._ready:
                self._library.ggml_quantize_init(int(type))
                self._ready.add(int(type))


@cache
def load(provider: str | None = None) -> Ggml:
    """Load ggml from the named package, or from the first of `PROVIDERS` that is installed.

    The package itself is not imported.

    Raises:
        HermetiqError: no such package is installed, or its library cannot be used.
    """
    for name in (provider,) if provider else PROVIDERS:
        path = _find(name)
        if path:
            return Ggml(name, path, _bind(path))
    raise HermetiqError(
        f"ggml's library was not found in {provider or ' or '.join(PROVIDERS)}", remedy="pip install xllamacpp"
    )


def row_bytes(type: GgmlType, columns: int) -> int:
    """Bytes of one row of `columns` weights.

    Raises:
        ValueError: the type's block does not divide the row.
    """
    block, size = gguf.GGML_QUANT_SIZES[type]
    if columns % block:
        raise ValueError(f"rows of {columns} do not divide into {type.name} blocks of {block}")
    return int(columns // block * size)


def float32(rows: NDArray[Any]) -> Float32:
    """Rows as float32: from float32, from float16, or from bfloat16 held as its uint16 bits."""
    if rows.dtype == np.uint16:
        bits = rows.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    return rows.astype(np.float32, copy=False)


def is_finite(rows: Float32) -> bool:
    """Whether no value is NaN or infinite. A finite sum proves it, at a fraction of the cost of looking at each."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(rows.sum()) or np.isfinite(rows).all())


def vanishes(
    rows: Float32,  # (rows, columns)
) -> bool:
    """Whether float16 rounds a whole row to zero that is not. Hardly any row begins with so small a value."""
    if rows.shape[1] == 1:
        return False  # A vector, of which each value is a row here.
    peaks = np.abs(rows[np.abs(rows[:, 0]) <= HALF_NOTHING]).max(axis=1, initial=0)
    return bool(((peaks > 0) & (peaks <= HALF_NOTHING)).any())


def chunks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Split rows into units of work of about `CHUNK_WEIGHTS`, as half-open ranges."""
    step = max(1, CHUNK_WEIGHTS // columns)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def ordered(jobs: Iterable[Callable[[], Job]], *, threads: int) -> Generator[Job, None, None]:
    """Run jobs on threads and yield their results in order, with only a few of them begun ahead of the reader.

    A job that raises ends the iteration with its exception; the jobs not yet begun are dropped.
    """
    remaining = iter(jobs)
    with ThreadPoolExecutor(threads, thread_name_prefix="ggml") as pool:
        waiting: deque[Future[Job]] = deque()
        try:
            waiting.extend(pool.submit(job) for job in islice(remaining, 4 * threads))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(job) for job in islice(remaining, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def quantize_rows(
    load_rows: Callable[[int, int], Float32],
    rows: int,
    columns: int,
    types: Sequence[GgmlType],
    *,
    imatrix: Float32 | None = None,  # (columns,)
    threads: int = 1,
    library: Ggml | None = None,
) -> Iterator[dict[GgmlType, Blocks]]:
    """Quantize rows into several types from one conversion of each row to float32.

    `load_rows(start, stop)` is called on the worker threads and returns (stop - start, columns); the whole matrix
    therefore never exists as float32. Yields, in row order, the blocks of each type for consecutive slices of rows.

    Raises:
        ValueError, NonFinite, OutOfRange: see `Ggml.blocks`.
    """
    ggml = library or load()

    def job(start: int, stop: int) -> dict[GgmlType, Blocks]:
        return ggml.blocks(load_rows(start, stop), types, imatrix=imatrix)

    return ordered((partial(job, start, stop) for start, stop in chunks(rows, columns)), threads=threads)


def quantize(
    weight: Float32,  # (rows, columns)
    type: GgmlType,
    *,
    imatrix: Float32 | None = None,  # (columns,)
    threads: int = 1,
    library: Ggml | None = None,
) -> Blocks:  # (rows, bytes of a row)
    """Quantize a matrix; the bytes are the same for any number of threads.

    Raises:
        ValueError, NonFinite, OutOfRange: see `Ggml.blocks`.
    """
    rows, columns = weight.shape
    slices = quantize_rows(
        lambda start, stop: weight[start:stop], rows, columns, [type], imatrix=imatrix, threads=threads, library=library
    )
    return np.concatenate([np.empty((0, row_bytes(type, columns)), np.uint8), *(slice[type] for slice in slices)])


def _find(provider: str) -> Path | None:
    """Where the package's library lies; the package is looked up, not imported."""
    spec = importlib.util.find_spec(provider) if provider in PROVIDERS else None
    folders = (spec.submodule_search_locations or ()) if spec else ()
    found = sorted(path for folder in folders for path in Path(folder).glob(PROVIDERS[provider]))
    return next((path for path in found if path.suffix in (".so", ".dylib")), None)


def _bind(path: Path) -> ctypes.CDLL:
    """Load the library and declare the functions used here."""
    try:
        library = ctypes.CDLL(str(path))
        for function, result, arguments in _SIGNATURES:
            bound = getattr(library, function)
            bound.restype, bound.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise HermetiqError(
            f"cannot use this ggml library: {error}", where=str(path), remedy="install xllamacpp again"
        ) from error
    return library


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


_POINTER, _INT64 = ctypes.c_void_p, ctypes.c_int64
_SIGNATURES: tuple[tuple[str, Any, list[Any]], ...] = (
    ("ggml_quantize_init", None, [ctypes.c_int]),
    (
        "ggml_quantize_chunk",
        ctypes.c_size_t,
        [ctypes.c_int, _POINTER, _POINTER, _INT64, _INT64, _INT64, _POINTER],
    ),
    ("ggml_validate_row_data", ctypes.c_bool, [ctypes.c_int, _POINTER, ctypes.c_size_t]),
)
