"""`measurement.json`: what is allocated from it, what is believed of it, and which models it may be used for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hermetiq.errors import HermetiqError
from hermetiq.manifest import StoredFile, sha256_of
from hermetiq.measurement import FILE, TOLERANCE, Layer, Measurement
from hermetiq.quantize.ladder import LADDER, Rung, stored_bits

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
SHAPES = {
    f"model.layers.{block}.{name}": shape
    for block in range(6)
    for name, shape in {
        "self_attn.q_proj": (256, 256),
        "self_attn.k_proj": (64, 256),
        "mlp.up_proj": (704, 256),
        "mlp.down_proj": (256, 704),
    }.items()
}


def layer(out: int, columns: int, factor: float) -> Layer:
    """Errors that fall fourfold with each bit, as those of rounding do."""
    sizes = [stored_bits(rung.groups(columns), out) / (out * columns) for rung in LADDER]
    return Layer(out, columns, tuple(4.0**-size for size in sizes), factor)


MEASUREMENT = Measurement(
    "ab" * 32,
    "cd" * 32,
    LADDER,
    {module: layer(*shape, factor=1 + number % 7) for number, (module, shape) in enumerate(SHAPES.items())},
)


def uniform(rung: Rung) -> dict[str, Rung]:
    return dict.fromkeys(SHAPES, rung)


@pytest.mark.parametrize("bpw", [2.6, 3.0, 4.0, 4.65, 6.0, 8.0])
def test_a_target_is_hit_from_below(bpw: float) -> None:
    rungs = MEASUREMENT.allocated(bpw)
    assert rungs.keys() == SHAPES.keys()
    stored = sum(stored_bits(rungs[module].groups(columns), out) for module, (out, columns) in SHAPES.items())
    weights = sum(out * columns for out, columns in SHAPES.values())
    assert MEASUREMENT.bpw_of(rungs) == stored / weights
    assert MEASUREMENT.shortfall(rungs, bpw) == pytest.approx(1 - stored / weights / bpw)
    assert 0 <= MEASUREMENT.shortfall(rungs, bpw) < TOLERANCE


@pytest.mark.parametrize("rung", LADDER, ids=str)
def test_no_uniform_choice_of_its_size_is_better(rung: Rung) -> None:
    everywhere = uniform(rung)
    mixed = MEASUREMENT.allocated(math.nextafter(MEASUREMENT.bpw_of(everywhere), math.inf))
    assert MEASUREMENT.expected_kl(mixed) <= MEASUREMENT.expected_kl(everywhere)


def test_layers_that_matter_get_more() -> None:
    heavy = replace(MEASUREMENT.layers[Q], factor=1000.0)
    rungs = replace(MEASUREMENT, layers={**MEASUREMENT.layers, Q: heavy}).allocated(4.0)
    others = [rung for module, rung in rungs.items() if module.endswith("q_proj") and module != Q]
    assert all(LADDER.index(rungs[Q]) > LADDER.index(rung) for rung in others)


def test_the_expected_damage_is_the_sum_over_layers() -> None:
    expected = sum(layer.errors[3] * layer.factor for layer in MEASUREMENT.layers.values())
    assert MEASUREMENT.expected_kl(uniform(LADDER[3])) == pytest.approx(expected)


def test_noise_does_not_make_more_bits_look_harmful() -> None:
    noisy = list(MEASUREMENT.layers[Q].errors)
    noisy[5] = 100.0
    options = replace(MEASUREMENT.layers[Q], errors=tuple(noisy)).options
    by_size = sorted(options, key=lambda option: option.bits)
    assert [option.cost for option in by_size] == sorted((option.cost for option in options), reverse=True)
    assert options[5].cost == min(option.cost for option in options if option.bits < options[5].bits)
    assert [option.bits for option in options] == [stored_bits(rung.groups(256), 256) for rung in LADDER]


def test_layers_that_nothing_harms_take_what_is_left() -> None:
    dead = {module: replace(layer, factor=0.0) for module, layer in MEASUREMENT.layers.items()}
    rungs = replace(MEASUREMENT, layers=dead).allocated(5.0)
    assert replace(MEASUREMENT, layers=dead).shortfall(rungs, 5.0) < TOLERANCE


def test_a_target_below_the_smallest_widths_names_the_least_that_fits() -> None:
    tiny = replace(MEASUREMENT, layers={Q: MEASUREMENT.layers[Q]})
    least = tiny.bpw_of({Q: LADDER[0]})
    told = math.ceil(least * 1000) / 1000
    with pytest.raises(HermetiqError, match=f"ask for {told} or more"):
        tiny.allocated(2.1)
    assert tiny.allocated(told) == {Q: LADDER[0]}


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    stored = MEASUREMENT.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    assert stored == StoredFile(FILE, sha256_of(tmp_path / FILE))
    assert Measurement.read(tmp_path / FILE) == MEASUREMENT
    backwards = replace(MEASUREMENT, layers=dict(list(MEASUREMENT.layers.items())[::-1]))
    assert stored.sha256 == MEASUREMENT.sha256 == backwards.sha256


Change = Callable[[dict[str, Any]], object]
DAMAGES: dict[str, tuple[Change, str]] = {
    "another version": (lambda it: it.update(version=2), "not a measurement of version 1"),
    "a key missing": (lambda it: it.pop("source"), "keys missing or unknown: source"),
    "a key too many": (lambda it: it["layers"][Q].update(extra=1), rf"layers\.{Q}: keys missing or unknown: extra"),
    "no layers": (lambda it: it.update(layers={}), "no layers were measured"),
    "a list of layers": (lambda it: it.update(layers=[]), "layers: found"),
    "another ladder": (lambda it: it["rungs"][0].update(group_size=256), "another ladder"),
    "a rung missing": (lambda it: it["rungs"].pop(), "another ladder"),
    "a width without a share": (lambda it: it["rungs"][0]["widths"][0].pop(), "found 1 values, expected 2"),
    "an error missing": (lambda it: it["layers"][Q]["errors"].pop(), rf"{Q}: 16 errors for 17 widths"),
    "a negative error": (lambda it: it["layers"][Q]["errors"].__setitem__(0, -1.0), rf"{Q}: errors and factor"),
    "a negative factor": (lambda it: it["layers"][Q].update(factor=-1e-9), rf"{Q}: errors and factor"),
    "a factor beyond sense": (lambda it: it["layers"][Q].update(factor=1e300), rf"{Q}: errors and factor"),
    "a factor without end": (lambda it: it["layers"][Q].update(factor=10**400), r"factor: found '1000"),
    "a factor that is a text": (lambda it: it["layers"][Q].update(factor="1"), "factor: found '1', expected float"),
    "a factor that is a truth": (lambda it: it["layers"][Q].update(factor=True), "factor: found 'True'"),
    "no rows": (lambda it: it["layers"][Q].update(out=0), "no layer has 0 x 256 weights"),
    "endless columns": (lambda it: it["layers"][Q].update(columns=10**12), "no layer has 256 x 1000000000000"),
    "half a column": (lambda it: it["layers"][Q].update(columns=1.5), r"columns: found '1\.5', expected int"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_value_is_named_and_refused(tmp_path: Path, damage: str) -> None:
    MEASUREMENT.write(tmp_path)
    document = json.loads((tmp_path / FILE).read_bytes())
    change, told = DAMAGES[damage]
    change(document)
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(HermetiqError, match=told) as raised:
        Measurement.read(tmp_path / FILE)
    assert str(tmp_path / FILE) in raised.value.where
    assert raised.value.remedy == "measure again: leave --measurement out"


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"\xff", b'{"version": NaN}', b"[" * 100_000, b"9" * 5000],
    ids=lambda data: repr(data[:9]),
)
def test_what_is_no_measurement_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(HermetiqError, match=r"not JSON|not a measurement"):
        Measurement.read(tmp_path / FILE)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(HermetiqError, match="No such file"):
        Measurement.read(tmp_path / FILE)


def test_every_value_may_be_replaced_without_a_traceback(tmp_path: Path) -> None:
    """Each place of a small file in turn holds each kind of value; it is refused, or it can be used."""
    small = replace(MEASUREMENT, layers={Q: MEASUREMENT.layers[Q]})
    small.write(tmp_path)
    document = json.loads((tmp_path / FILE).read_bytes())
    values: tuple[Any, ...] = (None, True, -1, 0, 10**400, 1e308, 0.5, "", "\ud800", [], [[]], {}, {"": {}})
    used = 0
    for holder, key in places(document):
        before = holder[key]
        for value in values:
            holder[key] = value
            (tmp_path / FILE).write_text(json.dumps(document))
            try:
                Measurement.read(tmp_path / FILE).allocated(4.0)
                used += 1
            except HermetiqError:
                pass
        holder[key] = before
    assert used


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every place of a document, the first two of a list, as the list or object that holds it and its key there."""
    keys = list(value) if isinstance(value, dict) else range(len(value))[:2] if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def test_it_is_of_one_model_only() -> None:
    MEASUREMENT.require("ab" * 32, SHAPES)
    with pytest.raises(HermetiqError, match="fingerprint abababababab, this one's is 000000000000"):
        MEASUREMENT.require("00" * 32, SHAPES)
    with pytest.raises(HermetiqError, match=rf"{DOWN}: measured 256 x 704, the model has 256 x 512"):
        MEASUREMENT.require("ab" * 32, SHAPES | {DOWN: (256, 512)})
    with pytest.raises(HermetiqError, match=r"x: measured no such layer, the model has 8 x 8"):
        MEASUREMENT.require("ab" * 32, SHAPES | {"x": (8, 8)})
    without = {module: shape for module, shape in SHAPES.items() if module != Q}
    with pytest.raises(HermetiqError, match=rf"{Q}: measured 256 x 256, the model has no such layer"):
        MEASUREMENT.require("ab" * 32, without)


@pytest.mark.parametrize("number", [math.nan, math.inf, -1.0])
def test_numbers_that_are_none_are_not_kept(number: float) -> None:
    with pytest.raises(HermetiqError, match="numbers from 0 up"):
        replace(MEASUREMENT.layers[Q], factor=number)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HermetiqError, match="no regular file"):
        Measurement.read(tmp_path / "pipe")
