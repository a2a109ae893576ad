"""Axes with round ticks, labels that cover nothing, grids that shade from the smallest to the largest."""

from __future__ import annotations

import random

import pytest

from hermetiq.report.charts import LETTER, LINE, WIDTH, Axis, Mark, Point, before_after, by_layer, quality


def test_a_value_lies_where_its_share_of_the_axis_says() -> None:
    assert Axis(0, 10, 100, 200).place(2.5) == 125
    assert Axis(0.01, 1, 300, 100, log=True).place(0.1) == 200


@pytest.mark.parametrize(("value", "place"), [(-5, 100), (50, 200)])
def test_what_is_beyond_an_axis_lies_at_its_end(value: float, place: float) -> None:
    assert Axis(0, 10, 100, 200).place(value) == place


def test_nothing_at_all_has_a_place_on_a_logarithmic_axis() -> None:
    assert Axis(0.01, 1, 300, 100, log=True).place(0.0) == 300


def test_ticks_are_round_numbers_within_the_axis() -> None:
    assert [tick.text for tick in Axis(3.2, 11.9, 0, 1).ticks] == ["5", "10"]
    assert [tick.text for tick in Axis(-2, 0, 0, 1).ticks] == ["-2", "-1.5", "-1", "-0.5", "0"]
    assert [tick.text for tick in Axis(0.001, 10, 0, 1, log=True).ticks] == ["0.001", "0.01", "0.1", "1", "10"]


def test_better_is_lower_and_smaller_is_further_left() -> None:
    small, large = Point(2, 1.0, "", "exl2", good=True), Point(8, 0.01, "", "gguf", good=True)
    marks = {mark.point.kind: mark for mark in quality([small, large]).marks}
    assert marks["exl2"].x < marks["gguf"].x
    assert marks["exl2"].y < marks["gguf"].y


def test_a_file_without_any_loss_is_on_the_chart() -> None:
    chart = quality([Point(32, 0.0, "", "gguf", good=True, label="gguf:F32")])
    assert [mark.y for mark in chart.marks] == [chart.y.start]


def box(mark: Mark) -> tuple[float, float, float]:
    wide = LETTER * len(mark.point.label)
    left = mark.label_x if mark.anchor == "start" else mark.label_x - wide
    return left, left + wide, mark.label_y


@pytest.mark.parametrize("seed", range(20))
def test_no_label_covers_another_or_a_mark(seed: int) -> None:
    draw = random.Random(seed)
    points = [Point(draw.uniform(4, 6), draw.uniform(0.05, 0.2), "", "gptq", True, "gptq:4bit-g64") for _ in range(8)]
    marks = quality(points).marks
    for number, mark in enumerate(marks):
        left, right, y = box(mark)
        assert 0 <= left < right <= WIDTH
        for other in marks[:number]:
            begin, end, at = box(other)
            assert abs(y - at) >= LINE - 0.11 or right <= begin + 0.11 or end <= left + 0.11
        for other in marks:
            assert not (left < other.x < right and y - 8 < other.y < y)


def test_what_was_lost_lies_below_the_diagonal() -> None:
    chart = before_after([Point(-1, -3, "", "awq", good=True), Point(-3, -1, "", "awq", good=True)])
    lost, won = chart.marks
    assert lost.y > chart.y.place(lost.point.x)
    assert won.y < chart.y.place(won.point.x)
    assert (chart.x.low, chart.x.high) == (chart.y.low, chart.y.high) == (-5, 0)


def test_a_grid_has_a_row_for_each_kind_and_shades_by_size() -> None:
    values = {
        "model.layers.0.mlp.down_proj": 0.1,
        "model.layers.11.self_attn.q_proj": 0.001,
        "model.layers.0.mlp.up_proj": 0.01,
    }
    grid = by_layer(values, log=True, unit="x")
    assert grid.rows == ("q", "up", "down")
    assert grid.columns == 12
    shades = {(cell.row, cell.column): cell.shade for cell in grid.cells}
    assert shades == {("down", 0): 1.0, ("q", 11): 0.0, ("up", 0): pytest.approx(0.5)}
    assert (grid.low, grid.high) == ("0.001", "0.1 x")
