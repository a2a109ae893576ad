"""ggml's quantizer as hermetiq calls it: both libraries, any number of threads, against decoders written by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as GgmlType
from hypothesis import given, settings
from hypothesis import strategies as st

from hermetiq.errors import HermetiqError
from hermetiq.quantize import ggml
from hermetiq.quantize.ggml import Float32, NonFinite, OutOfRange
from tests.oracles import ggml_blocks

# Largest error of a weight, as a share of the largest weight of its block: half a step of the coarsest grid and the
# rounding of its scales.
TOLERANCE = {
    **{"F32": 0.0, "F16": 0.0006, "BF16": 0.004, "Q8_0": 0.006, "Q6_K": 0.03, "Q5_K": 0.06, "Q5_1": 0.06},
    **{"Q5_0": 0.07, "Q4_K": 0.12, "Q4_1": 0.12, "Q4_0": 0.14, "IQ4_NL": 0.2, "IQ4_XS": 0.2, "Q3_K": 0.3, "Q2_K": 0.5},
}


def weights(rows: int, columns: int, *, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


@pytest.fixture(params=list(ggml.PROVIDERS))
def library(request: pytest.FixtureRequest) -> ggml.Ggml:
    return ggml.load(request.param)


@pytest.mark.parametrize("type", ggml.TYPES, ids=lambda type: type.name)
def test_every_type_reads_back_close_to_what_was_written(library: ggml.Ggml, type: GgmlType) -> None:
    weight = weights(5, 512)
    blocks = ggml.quantize(weight, type, library=library)
    assert blocks.shape == (5, ggml.row_bytes(type, 512))
    error = (
        np.abs(gguf.dequantize(blocks, type) - weight) if type is not GgmlType.F32 else blocks.view(np.float32) - weight
    )
    assert error.max() <= TOLERANCE[type.name] * np.abs(weight).max()


@pytest.mark.parametrize("type", ggml.TYPES, ids=lambda type: type.name)
def test_bytes_are_the_same_for_any_number_of_threads(
    library: ggml.Ggml, type: GgmlType, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = weights(37, 256)
    alone = library.blocks(weight, [type])[type]
    monkeypatch.setattr(ggml, "CHUNK_WEIGHTS", 3 * 256)
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(ggml.quantize(weight, type, threads=threads, library=library), alone)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_blocks_decode_by_hand_to_what_the_gguf_package_reads(library: ggml.Ggml, name: str) -> None:
    weight = weights(3, 512, seed=1)
    blocks = ggml.quantize(weight, GgmlType[name], library=library)
    by_hand = ggml_blocks.decode(name, blocks.tobytes()).reshape(weight.shape)
    np.testing.assert_allclose(by_hand, gguf.dequantize(blocks, GgmlType[name]), rtol=1e-6, atol=1e-6)
    assert np.abs(by_hand - weight).max() <= TOLERANCE[name] * np.abs(weight).max()


@pytest.mark.parametrize(("type", "dtype"), [(GgmlType.F16, torch.float16), (GgmlType.BF16, torch.bfloat16)])
def test_casts_round_to_nearest_even_as_torch_does(library: ggml.Ggml, type: GgmlType, dtype: torch.dtype) -> None:
    # Halfway between two values of either type, both neighbours even once, and numbers that are subnormal in half.
    halfway = 1 + np.arange(64, dtype=np.float32) * 2.0**-9
    weight = np.concatenate(
        [weights(1, 256)[0], halfway, 1 + np.arange(64, dtype=np.float32) * 2.0**-12, [1e-7, -6e-5]]
    )
    weight = weight.astype(np.float32)[None]
    expected = torch.from_numpy(weight).to(dtype).view(torch.int16).numpy()
    np.testing.assert_array_equal(ggml.quantize(weight, type, library=library).view(np.int16), expected)


def test_importance_moves_the_error_to_the_columns_that_do_not_matter(library: ggml.Ggml) -> None:
    weight = weights(64, 256)
    imatrix = np.where(np.arange(256) % 8 == 0, 100.0, 0.01).astype(np.float32)
    plain, guided = (
        gguf.dequantize(ggml.quantize(weight, GgmlType.Q4_K, imatrix=given, library=library), GgmlType.Q4_K) - weight
        for given in (None, imatrix)
    )
    assert np.square(guided[:, ::8]).mean() < 0.7 * np.square(plain[:, ::8]).mean()


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 4)),
    exponent=st.integers(-12, 3),
    type=st.sampled_from(ggml.TYPES),
    seed=st.integers(0, 1000),
)
def test_rows_are_quantized_each_on_its_own(shape: tuple[int, int], exponent: int, type: GgmlType, seed: int) -> None:
    weight = weights(shape[0], 256 * shape[1], seed=seed) * np.float32(10.0**exponent)
    together = ggml.quantize(weight, type)
    for row, blocks in zip(weight, together, strict=True):
        np.testing.assert_array_equal(ggml.quantize(row[None], type)[0], blocks)


def test_one_conversion_serves_every_type() -> None:
    weight, asked = weights(10, 256), []

    def load_rows(start: int, stop: int) -> Float32:
        asked.append((start, stop, threading.current_thread() is threading.main_thread()))
        return weight[start:stop]

    (blocks,) = ggml.quantize_rows(load_rows, 10, 256, [GgmlType.Q4_K, GgmlType.Q8_0], threads=2)
    assert asked == [(0, 10, False)]
    for type, found in blocks.items():
        np.testing.assert_array_equal(found, ggml.quantize(weight, type))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_source_type_becomes_float32_exactly(dtype: torch.dtype) -> None:
    source = torch.tensor([0.0, -0.0, 1.0, -3.140625, 1e-40, 65504.0, 2.0**-24]).to(dtype)
    bits = source.view(torch.uint16).numpy() if dtype is torch.bfloat16 else source.numpy()
    np.testing.assert_array_equal(ggml.float32(bits), source.float().numpy())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type", [GgmlType.F32, GgmlType.Q8_0, GgmlType.Q4_K])
def test_a_single_value_that_is_not_finite_is_found(value: float, type: GgmlType) -> None:
    weight = weights(300, 256)
    weight[299, 17] = value
    with pytest.raises(NonFinite):
        ggml.quantize(weight, type, threads=2)


def test_large_finite_weights_are_not_taken_for_infinity() -> None:
    assert ggml.is_finite(np.full((4, 256), 3e38, np.float32))


@pytest.mark.parametrize("type", [GgmlType.F16, GgmlType.Q8_0, GgmlType.Q4_K])
def test_weights_that_a_type_cannot_hold_are_refused(type: GgmlType, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OutOfRange, match=type.name):
        ggml.quantize(np.full((1, 256), 3e38, np.float32), type)
    capfd.readouterr()  # ggml says on its own that it found infinity


def test_a_row_that_blocks_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="256"):
        ggml.quantize(weights(2, 96), GgmlType.Q4_K)


def test_importance_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="imatrix"):
        ggml.quantize(weights(2, 256), GgmlType.Q4_K, imatrix=np.ones(255, np.float32))


def test_no_rows_are_no_bytes() -> None:
    assert ggml.quantize(np.empty((0, 256), np.float32), GgmlType.Q4_K).shape == (0, 144)


def test_a_missing_library_is_named_with_the_remedy() -> None:
    with pytest.raises(HermetiqError, match=r"nothing.*pip install xllamacpp"):
        ggml.load("nothing")


def test_ordered_keeps_order_and_begins_only_a_few_jobs_ahead() -> None:
    begun: list[int] = []

    def jobs() -> Iterator[Callable[[], int]]:
        for number in range(100):
            begun.append(number)
            yield lambda number=number: number

    results = ggml.ordered(jobs(), threads=2)
    assert next(results) == 0
    assert len(begun) <= 10
    assert list(results) == list(range(1, 100))


def test_ordered_stops_at_the_first_failure() -> None:
    def jobs() -> Iterator[Callable[[], int]]:
        yield lambda: 1
        yield lambda: 1 // 0
        while True:
            yield lambda: 2

    results = ggml.ordered(jobs(), threads=2)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        list(results)
